//! The order and the form of what is written while a unit is brought up.

use handoff_abi::{DomainId, PhysAddr, RequesterId};
use iommu::Access;
use iommu::vtd::{Config, EnableError, Pending, PrepareError, ProbeError};
use iommu_model::{
    Attack, Event, Injection, Interrupt, Invalidation, Reason, Rule, Schedule, UnitConfig,
    Violation,
};

use crate::rig::*;

#[test]
fn every_kind_of_unit_comes_up_without_breaking_a_rule() {
    for model in models() {
        for schedule in schedules(4) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            let status = rig.machine.status(0);
            assert_eq!(status & (TE | QIE | IRE | CFI), TE | QIE | IRE);
            assert!(!rig.machine.protected(0), "protected memory stays on");
            assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::RootNotPresent));
            rig.attach(DEVICE, A);
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE), "{model:?}");
            assert_eq!(rig.read(DEVICE, A_BASE + PART - 1), Ok(A_BASE + PART - 1));
            assert_eq!(rig.write(DEVICE, B_BASE), Err(Reason::NoWrite));
            rig.sound();
        }
    }
}

#[test]
fn the_order_is_root_context_iotlb_interrupts_translation() {
    let rig = Rig::up(Schedule::Lazy, &[UnitConfig::default()]);
    let steps: Vec<_> = rig
        .machine
        .take_events()
        .into_iter()
        .filter_map(|event| match event {
            Event::CommandDone { bit, on, .. } => Some(Ok((bit, on))),
            Event::Invalidated { kind, .. } => Some(Err(kind)),
            _ => None,
        })
        .collect();
    let place = |wanted: Result<(u32, bool), Invalidation>| {
        steps
            .iter()
            .position(|s| *s == wanted)
            .unwrap_or_else(|| panic!("{wanted:?} is not in {steps:?}"))
    };
    let order = [
        place(Ok((SRTP, true))),
        place(Err(Invalidation::ContextGlobal)),
        place(Err(Invalidation::IotlbGlobal)),
        place(Ok((IRE, true))),
        place(Ok((TE, true))),
    ];
    assert!(order.is_sorted(), "{steps:?}");
    let interrupts = [
        place(Ok((SIRTP, true))),
        place(Err(Invalidation::InterruptGlobal)),
        place(Ok((IRE, true))),
    ];
    assert!(interrupts.is_sorted(), "{steps:?}");
}

#[test]
fn a_unit_that_invalidates_by_itself_is_given_no_descriptors() {
    let model = UnitConfig {
        srtp_invalidates: true,
        sirtp_invalidates: true,
        ..UnitConfig::default()
    };
    let mut rig = Rig::prepared(Schedule::Lazy, &[model]);
    rig.units[0].enable().unwrap();
    assert_eq!(rig.machine.counters(0).descriptors(), 0);
    rig.sound();
}

#[test]
fn the_write_buffer_is_flushed_only_where_there_is_one() {
    for write_buffer in [false, true] {
        let model = UnitConfig {
            write_buffer,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        let flushes = rig
            .machine
            .take_events()
            .iter()
            .filter(|e| matches!(e, Event::CommandDone { bit: WBF, .. }))
            .count();
        assert_eq!(flushes > 0, write_buffer);
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        rig.sound();
    }
}

#[test]
fn a_command_that_never_completes_is_an_error_and_can_be_tried_again() {
    for stuck in [SRTP, QIE, SIRTP, IRE, TE] {
        let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
        rig.machine.inject(0, Injection::StuckCommand(stuck));
        let before = rig.machine.now();
        let error = rig.units[0].enable().unwrap_err();
        assert!(matches!(error, EnableError::Register(_)), "{error:?}");
        assert!(rig.machine.now() - before < 1_000_000, "it took too long");
        assert_eq!(rig.machine.status(0) & TE, 0);
        rig.machine.assert_no_violations();
        // It was only slow, and is tried again.
        rig.machine.inject(0, Injection::Nothing);
        rig.units[0].enable().unwrap();
        assert_eq!(rig.machine.status(0) & (TE | IRE | QIE), TE | IRE | QIE);
        rig.sound();
    }
}

#[test]
fn a_queue_that_stands_still_is_an_error_and_translation_stays_off() {
    for injection in [Injection::StuckQueue, Injection::LostWaits(100)] {
        let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
        rig.machine.inject(0, injection);
        assert!(matches!(
            rig.units[0].enable(),
            Err(EnableError::Invalidate(_))
        ));
        assert_eq!(rig.machine.status(0) & (TE | IRE), 0);
        rig.machine.assert_no_violations();
        rig.machine.inject(0, Injection::Nothing);
        rig.units[0].enable().unwrap();
        rig.sound();
    }
}

#[test]
fn a_unit_that_cannot_be_a_fence_is_refused_before_anything_is_written() {
    let plain = UnitConfig::default();
    type Expected = fn(&ProbeError) -> bool;
    let cases: [(UnitConfig, Config, Expected); 6] = [
        (
            UnitConfig {
                queued: false,
                ..plain.clone()
            },
            config(&UnitConfig::default()),
            |e| *e == ProbeError::NoQueuedInvalidation,
        ),
        (
            UnitConfig {
                interrupts: false,
                ..plain.clone()
            },
            config(&UnitConfig::default()),
            |e| *e == ProbeError::NoInterruptRemapping,
        ),
        (
            plain.clone(),
            Config {
                extended_interrupt_mode: true,
                ..config(&UnitConfig::default())
            },
            |e| *e == ProbeError::NoExtendedInterruptMode,
        ),
        (
            UnitConfig {
                address_widths: 0b0001,
                ..plain.clone()
            },
            config(&UnitConfig::default()),
            |e| matches!(e, ProbeError::NoAddressWidth { .. }),
        ),
        (
            UnitConfig {
                guest_width: 38,
                ..plain.clone()
            },
            config(&UnitConfig::default()),
            |e| matches!(e, ProbeError::NoAddressWidth { .. }),
        ),
        (
            UnitConfig {
                fault_offset: 0x100,
                fault_records: 256,
                window: 0x1000,
                ..plain.clone()
            },
            config(&UnitConfig::default()),
            |e| matches!(e, ProbeError::WindowTooSmall { needed: 0x2000, .. }),
        ),
    ];
    for (model, config, expected) in cases {
        let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
        let error = prepare(&machine, 0, &model, config).unwrap_err();
        let PrepareError::Probe(error) = error else {
            panic!("{error:?}")
        };
        assert!(expected(&error), "{error:?}");
        assert_eq!(machine.counters(0).mmio_writes, 0);
    }
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&plain));
    machine.inject(0, Injection::Gone);
    assert_eq!(
        prepare(&machine, 0, &plain, config(&UnitConfig::default())).unwrap_err(),
        PrepareError::Probe(ProbeError::Gone)
    );
}

#[test]
fn preparing_writes_no_register_and_the_tables_block_all() {
    let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
    assert_eq!(rig.machine.counters(0).mmio_writes, 0);
    rig.units[0].enable().unwrap();
    for sid in (0..=u16::MAX).step_by(257) {
        let device = handoff_abi::RequesterId(sid);
        assert!(rig.write(device, A_BASE).is_err());
        assert!(rig.read(device, 0).is_err());
    }
    rig.sound();
}

#[test]
fn a_device_attached_before_is_served_from_the_first_instant() {
    let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
    let unit = &mut rig.units[0];
    unit.create_domain(A).unwrap();
    let mapped = unit.map(A, A_BASE, range(A_BASE, PART), Access::READ_WRITE);
    unit.flush(mapped.unwrap()).unwrap();
    let attached = unit.attach(DEVICE, A).unwrap();
    unit.flush(attached).unwrap();
    // With translation still off it reaches everything, at this very address too.
    rig.machine.attack(0, DEVICE.0, A_BASE);
    rig.units[0].enable().unwrap();
    let attacks = rig.machine.take_attacks();
    assert!(attacks.len() > 20);
    assert!(attacks.iter().all(|a| a.result == Ok(A_BASE)));
    assert_eq!(rig.write(DEVICE, B_BASE), Err(Reason::NoWrite));
    rig.sound();
}

#[test]
fn interrupts_are_fenced_before_and_after_translation_is_on() {
    let rig = Rig::one();
    let blocked = Interrupt::Blocked(Reason::CompatibilityBlocked);
    assert_eq!(rig.machine.msi(0, DEVICE.0, 0xfee0_0000, 0x30), blocked);
    let absent = Interrupt::Blocked(Reason::InterruptNotPresent);
    assert_eq!(rig.machine.msi(0, DEVICE.0, 0xfee0_0010, 0), absent);
}

/// Tables as firmware leaves them: one device on bus 0 that reaches 2 MiB at `at`, and rubbish
/// elsewhere in the root table is absent. Gives RTADDR.
pub(crate) fn firmware_tables(machine: &iommu_model::Machine, device: u16, at: u64) -> u64 {
    let root = 0x7000_0000;
    for word in (root..root + 0x5000_u64).step_by(8) {
        machine.poke(word, 0);
    }
    machine.poke(root + u64::from(device >> 8) * 16, (root + 0x1000) | 1);
    let entry = root + 0x1000 + u64::from(device & 0xff) * 16;
    machine.poke(entry + 8, 9 << 8 | 1);
    machine.poke(entry, (root + 0x2000) | 1);
    machine.poke(root + 0x2000 + (at >> 30 & 511) * 8, (root + 0x3000) | 3);
    machine.poke(root + 0x3000 + (at >> 21 & 511) * 8, at | 0x83);
    root
}

#[test]
fn what_firmware_left_on_is_replaced_without_a_gap() {
    for schedule in schedules(6) {
        for with_queue in [false, true] {
            let rig = Rig::prepared(schedule, &[UnitConfig::default()]);
            let mut rig = rig;
            let (device, region) = (0x00a0, 0x2000_0000);
            let root = firmware_tables(&rig.machine, device, region);
            let irta = with_queue.then_some(0x7001_0007);
            let iqa = with_queue.then_some(0x7002_0000);
            rig.machine.left_on(0, root, irta, iqa);
            let unit = &mut rig.units[0];
            unit.create_domain(A).unwrap();
            let mapped = unit.map(A, region, range(region, 0x20_0000), Access::READ_WRITE);
            unit.flush(mapped.unwrap()).unwrap();
            let device = handoff_abi::RequesterId(device);
            let attached = unit.attach(device, A).unwrap();
            unit.flush(attached).unwrap();
            rig.machine.attack(0, device.0, region);
            rig.machine.attack(0, DEVICE.0, A_BASE);
            if with_queue {
                let mut memory = rig.machine.memory();
                rig.units[0].enable_over(&mut memory).unwrap();
            } else {
                rig.units[0].enable().unwrap();
            }
            for attack in rig.machine.take_attacks() {
                let expected = attack.sid == device.0;
                assert_eq!(attack.result.is_ok(), expected, "{attack:?}");
            }
            assert_eq!(
                rig.machine.latched(0).0.map(|r| r & !0xfff != root),
                Some(true)
            );
            rig.sound();
        }
    }
}

/// Brings a unit up that firmware left on, with a device whose translation of `A_BASE` fills the caches
/// under the id `theirs`; the driver has that device in `B`, and another in `A`. Gives where requests
/// of both at `A_BASE` landed on the way.
fn over_full_caches(model: &UnitConfig, schedule: Schedule, theirs: DomainId) -> Vec<Attack> {
    const REGION: u64 = 0x2000_0000;
    let firmwares = RequesterId(0x00a0);
    let mut rig = Rig::prepared(schedule, std::slice::from_ref(model));
    let root = firmware_tables(&rig.machine, firmwares.0, REGION);
    let entry = root + 0x1000 + u64::from(firmwares.0 & 0xff) * 16;
    rig.machine.poke(entry + 8, u64::from(theirs.0) << 8 | 1);
    rig.machine.poke(
        root + 0x2000 + (A_BASE >> 30 & 511) * 8,
        (root + 0x3000) | 3,
    );
    rig.machine
        .poke(root + 0x3000 + (A_BASE >> 21 & 511) * 8, REGION | 0x83);
    rig.machine.left_on(0, root, None, None);
    assert_eq!(rig.write(firmwares, A_BASE), Ok(REGION));
    let unit = &mut rig.units[0];
    for (device, domain, base) in [(DEVICE, A, A_BASE), (firmwares, B, B_BASE)] {
        unit.create_domain(domain).unwrap();
        let mapped = unit.map(domain, base, range(base, PART), Access::READ_WRITE);
        let attached = unit.attach(device, domain).unwrap();
        unit.flush(mapped.unwrap().merge(attached)).unwrap();
    }
    rig.machine.attack(0, DEVICE.0, A_BASE);
    rig.machine.attack(0, firmwares.0, A_BASE);
    rig.units[0].enable().unwrap();
    let attacks = rig.machine.take_attacks();
    for offset in [0, 0x1f_fff8, 0x20_0000] {
        let at = A_BASE + offset;
        assert_eq!(rig.write(DEVICE, at), Ok(at), "{theirs:?}");
        assert_eq!(rig.write(firmwares, at), Err(UNMAPPED[0]), "{theirs:?}");
    }
    // One id for two sets of tables is against the rules, whoever made the first.
    if [A, B].contains(&theirs) {
        let broken = rig.machine.violations();
        let two_tables = |broken: &Violation| broken.rule == Rule::DomainIdWithTwoTables;
        assert!(broken.iter().all(two_tables), "{broken:?}");
        rig.machine.forget_violations();
    }
    rig.sound();
    attacks
        .into_iter()
        .filter(|attack| attack.sid == DEVICE.0)
        .collect()
}

#[test]
fn nothing_that_firmware_left_in_the_caches_is_used_once_a_unit_is_up() {
    let foreign = |attack: &Attack| attack.result.is_ok_and(|at| at != A_BASE);
    // Firmware's tables here have three levels and leaves of 2 MiB.
    let fitting = |model: &UnitConfig| {
        model.address_widths & 0b0010 != 0
            && model.large_pages & 1 != 0
            && !model.protected_at_start
    };
    for model in models().into_iter().filter(fitting) {
        for schedule in schedules(4) {
            // Under an id that is not in use here it is never used by a device of another.
            let attacks = over_full_caches(&model, schedule, DomainId(9));
            assert!(!attacks.iter().any(foreign), "{attacks:?}");
            for theirs in [A, B] {
                over_full_caches(&model, schedule, theirs);
            }
        }
    }
    // Under an equal id it can be, until the unit was told to forget it: the ids matter.
    let model = UnitConfig::default();
    let mixed = over_full_caches(&model, Schedule::Lazy, A);
    assert!(mixed.iter().any(foreign));
}

#[test]
fn firmware_that_protects_memory_and_translates_is_taken_over_without_a_gap() {
    // Translation is on for a device that firmware needs (its RMRR), and protected regions keep
    // everything else from all other memory.
    let model = UnitConfig {
        protected_low: true,
        protected_high: true,
        protected_at_start: true,
        ..UnitConfig::default()
    };
    let (needed, region) = (RequesterId(0x00a0), 0x2000_0000);
    let end = region + 0x20_0000;
    for schedule in schedules(6) {
        let mut rig = Rig::prepared(schedule, std::slice::from_ref(&model));
        let bounds = [
            (0x68, end),
            (0x6c, 0xfff0_0000),
            (0x70, 1 << 32),
            (0x78, 1 << 40),
        ];
        for bound in bounds {
            rig.machine.force_register(0, bound);
        }
        let root = firmware_tables(&rig.machine, needed.0, region);
        rig.machine.left_on(0, root, None, None);
        // Firmware's root table has this bus too, and leads it to what the regions protect.
        rig.machine.poke(root + 0x1000 + 0xa8 * 16 + 8, 10 << 8 | 1);
        rig.machine
            .poke(root + 0x1000 + 0xa8 * 16, (root + 0x4000) | 1);
        rig.machine.poke(root + 0x4000 + 8 * 4, A_BASE | 0x83);
        let stray = RequesterId(0x00a8);
        assert_eq!(rig.write(stray, A_BASE), Err(Reason::BlockedByType));
        assert_eq!(rig.write(needed, region), Ok(region));
        assert!(rig.machine.protected(0));

        let unit = &mut rig.units[0];
        unit.create_domain(A).unwrap();
        for (at, length) in [(region, 0x20_0000), (A_BASE, PART)] {
            let mapped = unit.map(A, at, range(at, length), Access::READ_WRITE);
            unit.flush(mapped.unwrap()).unwrap();
        }
        for device in [needed, DEVICE] {
            let attached = unit.attach(device, A).unwrap();
            unit.flush(attached).unwrap();
        }
        rig.machine.attack(0, needed.0, region);
        rig.machine.attack(0, stray.0, A_BASE);
        rig.units[0].enable().unwrap();
        for attack in rig.machine.take_attacks() {
            let expected = attack.sid == needed.0;
            assert_eq!(attack.result.is_ok(), expected, "{attack:?}");
        }
        assert!(!rig.machine.protected(0));
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        assert_eq!(rig.write(needed, A_BASE), Ok(A_BASE));
        rig.sound();
    }
}

/// Which kinds of tables an adopter copies that knows only the architecture, as Linux does in a crash
/// kernel: the root table with its context tables, and an interrupt table of 65,536 entries.
#[test]
fn a_crash_kernel_that_copies_context_tables_finds_them_whole() {
    let mut rig = Rig::up_with(Schedule::Lazy, &[UnitConfig::default()], |config| Config {
        interrupt_entries: 65_536,
        ..config
    });
    let attached = devices(12);
    rig.make_move(&attached, Some(A), Way::Batch);
    rig.make_move(&attached[..6], Some(B), Way::Switch);
    let blocked = rig.units[0].block(attached[0]);
    rig.flush(blocked);
    let (root, interrupts) = rig.machine.latched(0);
    let (root, interrupts) = (root.unwrap(), interrupts.unwrap());
    // Legacy mode, all of it in memory that is the arena's.
    assert_eq!(root & 0xfff, 0);
    assert_eq!(interrupts & 0xf, 0xf, "2 to the power of 16 entries");
    assert!(arena(0).contains(PhysAddr(interrupts & !0xfff)));
    let mut copied = Vec::new();
    for bus in 0..256 {
        let [low, high] = [0, 8].map(|word| rig.machine.peek(root + bus * 16 + word));
        assert_eq!(high, 0);
        if low & 1 == 0 {
            assert_eq!(low, 0);
            continue;
        }
        let table = low & !0xfff;
        assert!(arena(0).contains(PhysAddr(table)) && low & 0xffe == 0);
        for device in 0..256 {
            let [low, high] = [0, 8].map(|word| rig.machine.peek(table + device * 16 + word));
            if low & 1 == 0 {
                continue;
            }
            // Translation type 0, three levels, no reserved bit; a domain id that has to be kept.
            assert_eq!((low & 0xffe, high & !0xffff00), (0, 1));
            let base = if high >> 8 == u64::from(A.0) {
                A_BASE
            } else {
                B_BASE
            };
            let sid = RequesterId((bus << 8 | device) as u16);
            assert_eq!(rig.write(sid, base), Ok(base));
            copied.push(sid);
        }
    }
    let mut expected = attached[1..].to_vec();
    expected.sort();
    assert_eq!(copied, expected);
}

#[test]
fn firmware_tables_of_another_kind_are_refused_and_left_alone() {
    let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
    rig.machine.left_on(0, 0x7000_0000 | 1 << 10, None, None);
    assert!(matches!(
        rig.units[0].enable(),
        Err(EnableError::TranslationMode(_))
    ));
    assert_eq!(rig.machine.latched(0).0, Some(0x7000_0000 | 1 << 10));
    assert_eq!(rig.machine.status(0) & TE, TE);
}

#[test]
fn the_fault_event_is_aimed_while_masked() {
    let mut rig = Rig::one();
    assert!(rig.machine.fault_messages(0).is_empty());
    let _ = rig.write(DEVICE, 0);
    assert_eq!(rig.machine.fault_messages(0), [(0xfee0_3000, 0x61)]);
    let mut seen = 0;
    rig.units[0].drain_faults(|_| seen += 1).unwrap();
    assert_eq!(seen, 1);
    let mut other = message();
    other.address = PhysAddr(0x1_0000_0000 | 0xfee0_5000);
    rig.units[0].set_fault_message(Some(other)).unwrap();
    let _ = rig.write(DEVICE, 0);
    assert_eq!(rig.machine.fault_messages(0)[1], (0x1_fee0_5000, 0x61));
    rig.units[0].drain_faults(|_| ()).unwrap();
    rig.units[0].set_fault_message(None).unwrap();
    let _ = rig.write(DEVICE, 0);
    assert_eq!(rig.machine.fault_messages(0).len(), 2, "it is masked");
    rig.sound();
}

#[test]
fn to_enable_a_unit_again_leaves_no_gap() {
    for model in models() {
        for schedule in schedules(2) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            rig.attach(DEVICE, A);
            rig.machine.attack(0, DEVICE.0, A_BASE);
            rig.machine.attack(0, OTHER.0, A_BASE);
            rig.units[0].enable().unwrap();
            for attack in rig.machine.take_attacks() {
                assert_eq!(attack.result.is_ok(), attack.sid == DEVICE.0, "{attack:?}");
            }
            let moved = rig.units[0].move_devices(&[DEVICE], Some(B), Pending::none());
            moved.unwrap();
            assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
            rig.machine.release(A_BASE, PART, &[]);
            rig.sound();
        }
    }
}
