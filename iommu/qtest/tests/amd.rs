//! The AMD-Vi driver against QEMU's `amd-iommu`: what its model shows. What it does not (the event
//! log, the length of interrupt tables, more than one unit) is tested on the strict model.

use handoff_abi::{InterruptMessage, PhysAddr, PhysRange, RequesterId};
use iommu::amd::{InterruptFormat, Pending};
use iommu::{Access, MoveMethod, Reach};
use iommu_qtest::{
    AMD_ARENA, AMD_REGISTERS, AmdFence, AmdMachine, MINE, THEIRS, UNMAPPED, delivered, id, reaches,
    target,
};

const MINE_AT: u64 = MINE.base().0;
const THEIRS_AT: u64 = THEIRS.base().0;

/// The device table, as the unit's register says.
fn device_table(fence: &AmdFence) -> (u64, u64) {
    let register = fence.machine.bus().read64(AMD_REGISTERS);
    (register & 0x000f_ffff_ffff_f000, (register & 0x1ff) + 1)
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn an_unfenced_device_reaches_everything_and_after_enable_nothing() {
    let machine = AmdMachine::start(1);
    let edu = machine.edus()[0].clone();
    assert!(reaches(machine.bus(), &edu, MINE_AT, MINE_AT), "control");
    let (mut driver, _) = machine.driver(machine.config()).unwrap();
    driver.enable().unwrap();
    assert!(!reaches(machine.bus(), &edu, MINE_AT, MINE_AT));
    assert!(!reaches(machine.bus(), &edu, THEIRS_AT, THEIRS_AT));
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn every_one_of_the_65536_device_table_entries_denies_memory_and_interrupts() {
    let fence = AmdFence::new(1);
    let (table, frames) = device_table(&fence);
    assert_eq!(frames, 512, "an entry for every requester id");
    let bytes = fence.machine.bus().read(table, 2 << 20);
    let mut seen = 0;
    for entry in bytes.chunks_exact(32) {
        let word = |i: usize| u64::from_le_bytes(entry[i * 8..i * 8 + 8].try_into().unwrap());
        // V and TV set, Mode 0, IR and IW clear: blocked. IV set, IntCtl 00b and no pass: aborted.
        assert_eq!([word(0), word(1), word(2), word(3)], [3, 0, 1, 0]);
        seen += 1;
    }
    assert_eq!(seen, 65536);
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_device_reaches_its_domain_and_nothing_else() {
    let mut fence = AmdFence::new(2);
    fence.attach(0, id(1));
    fence.attach(1, id(2));
    for (device, own, foreign) in [(0, MINE_AT, THEIRS_AT), (1, THEIRS_AT, MINE_AT)] {
        assert!(fence.reaches(device, own));
        assert!(fence.reaches(device, own + 0xfff0));
        for at in [
            foreign,
            UNMAPPED.base().0,
            AMD_ARENA.base().0,
            device_table(&fence).0 + 32,
        ] {
            assert!(fence.cannot_write(device, at), "{device} wrote {at:#x}");
            assert!(!fence.reaches(device, at), "{device} reached {at:#x}");
        }
    }
    // A page whose neighbour is not the device's.
    let edu = fence.edu(0);
    let end = MINE.end().0;
    fence.machine.bus().fill(end - 8, 16, 0);
    fence.machine.bus().fill(MINE_AT, 16, 0x77);
    edu.dma_read(MINE_AT, 16);
    edu.dma_write(end - 8, 16);
    assert_eq!(fence.machine.bus().read(end - 8, 8), [0x77; 8]);
    assert_eq!(fence.machine.bus().read(end, 8), [0; 8]);
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_device_cannot_reach_another_devices_registers() {
    let mut fence = AmdFence::new(2);
    fence.attach(0, id(1));
    let victim = fence.edu(1);
    let before = victim.destination_register();
    fence
        .edu(0)
        .dma_write(victim.destination_register_address(), 8);
    assert_eq!(victim.destination_register(), before);
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn rights_and_leaf_sizes_are_kept() {
    let mut fence = AmdFence::new(1);
    fence.attach(0, id(1));
    let iova = 0x40_0000_0000;
    let memory = PhysRange::new(PhysAddr(0x3000_0000), 0x20_0000).unwrap();
    let large = fence
        .driver
        .map(id(1), iova, memory, Access::READ_WRITE)
        .unwrap();
    let read_only = fence
        .driver
        .map(
            id(1),
            0x5000_0000,
            PhysRange::new(PhysAddr(0x3100_0000), 0x1000).unwrap(),
            Access::READ,
        )
        .unwrap();
    fence.driver.flush(large.merge(read_only)).unwrap();
    assert_eq!(
        fence.driver.translate(id(1), iova).unwrap().memory,
        memory,
        "one leaf"
    );
    let bus = fence.machine.bus().clone();
    let edu = fence.edu(0);
    assert!(reaches(&bus, &edu, iova + 0x1f_fff0, 0x301f_fff0));
    bus.fill(0x3100_0000, 8, 0x55);
    edu.dma_read(0x5000_0000, 8);
    edu.dma_write(MINE_AT, 8);
    assert_eq!(bus.read(MINE_AT, 8), [0x55; 8], "readable");
    bus.fill(MINE_AT, 8, 0x66);
    edu.dma_read(MINE_AT, 8);
    edu.dma_write(0x5000_0000, 8);
    assert_eq!(bus.read(0x3100_0000, 8), [0x55; 8], "not writable");
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn what_is_unmapped_stays_reachable_until_the_flush_and_not_after() {
    let mut fence = AmdFence::new(1);
    fence.attach(0, id(1));
    assert!(fence.reaches(0, MINE_AT));
    let pending = fence.driver.unmap(id(1), MINE_AT, MINE.length()).unwrap();
    // The control: the emulated unit does keep translations.
    assert!(fence.reaches(0, MINE_AT), "a stale translation");
    fence.driver.flush(pending).unwrap();
    assert!(!fence.reaches(0, MINE_AT));
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_blocked_device_reaches_nothing_and_can_be_attached_again() {
    let mut fence = AmdFence::new(1);
    fence.attach(0, id(1));
    assert!(fence.reaches(0, MINE_AT));
    let blocked = fence.driver.block(fence.edu(0).requester());
    fence.driver.flush(blocked).unwrap();
    assert!(!fence.reaches(0, MINE_AT));
    fence.attach(0, id(2));
    assert!(fence.reaches(0, THEIRS_AT));
    assert!(!fence.reaches(0, MINE_AT));
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_batch_of_devices_moves_with_two_batches_of_commands_however_many_they_are() {
    let mut fence = AmdFence::new(10);
    let devices: Vec<RequesterId> = (0..10).map(|i| fence.edu(i).requester()).collect();
    for device in 0..10 {
        fence.attach(device, id(1));
        assert!(fence.reaches(device, MINE_AT));
    }
    // Blocked: the entries, a barrier, the old domain, a wait; installed: the entries, a wait.
    for (count, commands) in [(3, 3 + 1 + 1 + 1 + 3 + 1), (10, 2 * (1 + 1))] {
        for (devices, to, at, not) in [
            (&devices[..count], id(2), THEIRS_AT, MINE_AT),
            (&devices[..count], id(1), MINE_AT, THEIRS_AT),
        ] {
            let mut trace = fence.machine.bus().trace();
            let _ = fence.observer.take();
            fence
                .driver
                .move_devices(devices, Some(to), Pending::none())
                .unwrap();
            let counts = fence.observer.take();
            assert_eq!(counts.register_writes, 2);
            let executed = trace.take_named("amdvi_command_exec").len();
            assert_eq!(executed, commands);
            for device in 0..count {
                assert!(fence.reaches(device, at));
                assert!(!fence.reaches(device, not));
            }
        }
    }
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn the_command_buffer_wraps() {
    let mut fence = AmdFence::new(1);
    let requester = fence.edu(0).requester();
    for round in 0..400 {
        let pending = fence.driver.attach(requester, id(1)).unwrap();
        fence.driver.flush(pending).unwrap();
        if round % 50 == 0 {
            assert!(fence.reaches(0, MINE_AT), "round {round}");
        }
        let blocked = fence.driver.block(requester);
        fence.driver.flush(blocked).unwrap();
        if round % 50 == 0 {
            assert!(!fence.reaches(0, MINE_AT), "round {round}");
        }
    }
}

const FORMATS: [InterruptFormat; 2] = [InterruptFormat::Bits32, InterruptFormat::Bits128];

fn with_format(devices: usize, interrupt_format: InterruptFormat) -> AmdFence {
    AmdFence::with(devices, |config| iommu::amd::Config {
        interrupt_format,
        ..config
    })
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_devices_own_entry_delivers_where_it_says_in_either_format() {
    for format in FORMATS {
        let mut fence = with_format(2, format);
        let handles = [fence.interrupt(0, 0, 0x41), fence.interrupt(1, 1, 0x41)];
        assert_eq!(handles.map(|handle| handle.index), [0x41; 2]);
        let mut trace = fence.machine.bus().trace();
        fence.edu(0).raise();
        assert_eq!(delivered(&trace.take()), [(0, 0x41)], "{format:?}");
        fence.edu(1).raise();
        assert_eq!(delivered(&trace.take()), [(1, 0x41)], "{format:?}");
        let retargeted = fence.driver.retarget(handles[0], target(1, 0x66)).unwrap();
        fence.driver.flush(retargeted).unwrap();
        fence.edu(0).raise();
        assert_eq!(delivered(&trace.take()), [(1, 0x66)], "{format:?}");
        let cleared = fence.driver.clear_interrupt(handles[0]).unwrap();
        fence.driver.flush(cleared).unwrap();
        fence.edu(0).raise();
        assert_eq!(delivered(&trace.take()), [], "{format:?}");
        fence.edu(1).raise();
        assert_eq!(delivered(&trace.take()), [(1, 0x41)], "{format:?}");
    }
}

fn message(address: u64, data: u32) -> InterruptMessage {
    InterruptMessage {
        address: PhysAddr(address),
        data,
    }
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn no_message_of_a_device_without_entries_is_an_interrupt() {
    let fence = AmdFence::new(1);
    let mut trace = fence.machine.bus().trace();
    for data in [0x41, 0x141, 0x241, 0x441, 0x541, 0x741, 0xc041] {
        for address in [0xfee0_0000, 0xfee0_1000, 0xfeef_f000, 0xfee0_0010] {
            fence.edu(0).set_message(message(address, data));
            fence.edu(0).raise();
            assert_eq!(delivered(&trace.take()), [], "{address:#x} {data:#x}");
        }
    }
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_kernel_that_knows_nothing_of_the_fence_reaches_its_own_processor_alone() {
    for format in FORMATS {
        let mut fence = with_format(2, format);
        let edu = fence.edu(0);
        let pending = fence
            .driver
            .open_vectors(edu.requester(), handoff_abi::ApicId(1))
            .unwrap();
        fence.driver.flush(pending).unwrap();
        let mut trace = fence.machine.bus().trace();
        // Whatever processor it names, and in both delivery modes that only raise a vector.
        for (address, data) in [
            (0xfee0_0000, 0x41),
            (0xfee0_1000, 0x41),
            (0xfeef_f000, 0x41),
            (0xfee0_000c, 0x41),
            (0xfee0_0000, 0x141),
        ] {
            edu.set_message(message(address, data));
            edu.raise();
            assert_eq!(
                delivered(&trace.take()),
                [(1, 0x41)],
                "{address:#x} {data:#x}"
            );
        }
        for vector in [16, 17, 0x80, 0xff_u8] {
            edu.set_message(message(0xfee0_0000, vector.into()));
            edu.raise();
            assert_eq!(delivered(&trace.take()), [(1, vector.into())]);
        }
        // SMI, NMI, INIT, ExtINT and what is none; and vectors of exceptions.
        for data in [0x241, 0x441, 0x541, 0x741, 0x00, 0x0f, 0x10f] {
            edu.set_message(message(0xfee0_0000, data));
            edu.raise();
            assert_eq!(delivered(&trace.take()), [], "{data:#x}");
        }
        let moved = fence
            .driver
            .retarget_all(edu.requester(), handoff_abi::ApicId(0))
            .unwrap();
        fence.driver.flush(moved).unwrap();
        edu.set_message(message(0xfee0_1000, 0x41));
        edu.raise();
        assert_eq!(delivered(&trace.take()), [(0, 0x41)]);
        // Another device has no way there.
        fence.edu(1).set_message(message(0xfee0_1000, 0x41));
        fence.edu(1).raise();
        assert_eq!(delivered(&trace.take()), []);
    }
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_dma_write_to_interrupt_addresses_raises_nothing() {
    let mut fence = AmdFence::new(1);
    fence.attach(0, id(1));
    let edu = fence.edu(0);
    let pending = fence
        .driver
        .open_vectors(edu.requester(), handoff_abi::ApicId(0))
        .unwrap();
    fence.driver.flush(pending).unwrap();
    fence.machine.bus().write(MINE_AT, &[0x41, 0, 0, 0]);
    let mut trace = fence.machine.bus().trace();
    edu.dma_read(MINE_AT, 4);
    edu.dma_write(0xfee0_0000, 4);
    edu.dma_write(0xfee0_1000, 4);
    // The emulated unit takes such writes for the south bridge's, which has no entry.
    assert_eq!(delivered(&trace.take()), []);
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn a_prepared_switch_costs_the_same_however_many_devices_there_are() {
    let machine = AmdMachine::start(2);
    let (mut driver, observer) = machine.driver(machine.config()).unwrap();
    for (domain, memory) in [(id(1), MINE), (id(2), THEIRS)] {
        driver.create_domain(domain).unwrap();
        let mapped = driver.map(domain, memory.base().0, memory, Access::READ_WRITE);
        driver.flush(mapped.unwrap()).unwrap();
    }
    driver.enable().unwrap();
    // Most of them are nowhere on the machine; their entries are as good as any.
    let mut all: Vec<RequesterId> = machine.edus().iter().map(|edu| edu.requester()).collect();
    all.extend((0x100..0x300).map(RequesterId));
    driver
        .move_devices(&all, Some(id(1)), Pending::none())
        .unwrap();
    let there = |driver: &iommu_qtest::AmdDriver, domain| {
        all.iter().all(|&device| driver.domain_of(device) == domain)
    };
    assert!(there(&driver, Some(id(1))));
    let mut costs = Vec::new();
    for (count, to) in [
        (40, Some(id(2))),
        (514, Some(id(1))),
        (514, None),
        (514, Some(id(2))),
    ] {
        let prepared = driver.prepare_move(&all[..count], to).unwrap();
        assert_eq!(prepared.method(), MoveMethod::Switch);
        let reached = reaches(machine.bus(), &machine.edus()[0], MINE_AT, MINE_AT);
        let before = driver.domain_of(all[0]);
        assert_eq!(
            reached,
            before == Some(id(1)),
            "nothing in force has changed"
        );
        let mut trace = machine.bus().trace();
        let _ = observer.take();
        let moving = driver.start_prepared(prepared, Pending::none()).unwrap();
        assert_eq!(driver.finish_move(moving), Ok(MoveMethod::Switch));
        let counts = observer.take();
        let commands = trace.take_named("amdvi_command_exec").len();
        costs.push((counts.register_writes, counts.stores, commands));
        for (edu, &device) in machine.edus().iter().zip(&all) {
            assert_eq!(driver.domain_of(device), to);
            let mine = reaches(machine.bus(), edu, MINE_AT, MINE_AT);
            let theirs = reaches(machine.bus(), edu, THEIRS_AT, THEIRS_AT);
            assert_eq!((mine, theirs), (to == Some(id(1)), to == Some(id(2))));
        }
    }
    // Two register writes, two commands and nothing else stored. (How often the driver looks whether
    // the unit still runs is a matter of how long the emulator takes to hear of the commands.)
    assert_eq!(costs, [(2, 4, 2); 4]);
    assert!(there(&driver, Some(id(2))));
    assert!(driver.destroy_domain(id(2)).is_err());
    driver.destroy_domain(id(1)).unwrap();
}

#[test]
#[ignore = "long: a whole device table goes through the socket (cargo xtask test --full)"]
fn the_next_steward_takes_over_without_a_gap() {
    for format in FORMATS {
        let mut fence = with_format(2, format);
        fence.attach(0, id(1));
        let handle = fence.interrupt(0, 1, 0x41);
        // Somewhere in the middle of the command buffer.
        for _ in 0..37 {
            let pending = fence.driver.invalidate_everything();
            pending.unwrap();
        }
        let state = fence.driver.record().unwrap();
        let config = iommu::amd::Config {
            interrupt_format: format,
            ..fence.machine.config()
        };
        let before = fence.machine.bus().read64(AMD_REGISTERS);
        // The device goes on while the unit is taken over, and is never refused.
        let observer = iommu_qtest::Observer::default();
        let (registers, memory) = fence.machine.platform(&observer);
        let edu = fence.edu(0);
        let bus = fence.machine.bus().clone();
        let tries = std::rc::Rc::new(std::cell::Cell::new((0, 0_u64)));
        let seen = tries.clone();
        observer.before_each_access(move |step| {
            let (mut done, mut steps) = seen.get();
            steps += 1;
            let rare = !matches!(step, iommu_qtest::Step::Load(_)) || steps % 50_000 == 0;
            if rare && reaches(&bus, &edu, MINE_AT, MINE_AT) {
                done += 1;
            } else if rare {
                panic!("refused before {step:?}");
            }
            seen.set((done, steps));
        });
        let mut allowed = Vec::new();
        let mut driver = iommu::amd::Unit::adopt(
            registers,
            memory,
            iommu_qtest::WallClock::default(),
            iommu_qtest::AMD_WINDOW,
            AMD_ARENA,
            &state,
            config,
            |reach| {
                allowed.push(*reach);
                true
            },
        )
        .unwrap();
        observer.stop();
        assert!(tries.get().0 > 5, "{:?}", tries.get());
        assert_eq!(fence.machine.bus().read64(AMD_REGISTERS), before);
        // What it was asked about: the domain of the device, its interrupt, the other domain.
        let interrupts = allowed
            .iter()
            .filter(|reach| matches!(reach, Reach::Interrupt { .. }))
            .count();
        assert_eq!(interrupts, 1);
        assert!(allowed.iter().all(|reach| match reach {
            Reach::Memory { memory, .. } =>
                MINE.contains_range(*memory) || THEIRS.contains_range(*memory),
            Reach::Interrupt { source, index, .. } =>
                (*source, *index) == (handle.source, handle.index),
            _ => false,
        }));
        // And it obeys the new steward.
        let device = fence.edu(0).requester();
        assert_eq!(driver.domain_of(device), Some(id(1)));
        driver
            .move_devices(&[device], Some(id(2)), Pending::none())
            .unwrap();
        assert!(fence.reaches(0, THEIRS_AT));
        assert!(!fence.reaches(0, MINE_AT));
        let mut trace = fence.machine.bus().trace();
        fence.edu(0).raise();
        assert_eq!(delivered(&trace.take()), [(1, 0x41)]);
        let cleared = driver.clear_interrupt(handle).unwrap();
        driver.flush(cleared).unwrap();
        fence.edu(0).raise();
        assert_eq!(delivered(&trace.take()), []);
    }
}
