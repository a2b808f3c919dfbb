//! Taking a running unit over: devices notice nothing, and nothing the old steward left is believed.

use handoff_abi::{PhysAddr, RequesterId};
use iommu::Reach;
use iommu::amd::{AdoptError, Config, InterruptFormat, Pending, State, TableFault, Unit};
use iommu_model::amd::{Event, Injection, Interrupt, Schedule, UnitConfig};

use crate::rig::*;

const FRAME: u64 = 0x000f_ffff_ffff_f000;

#[test]
fn a_device_that_keeps_running_notices_nothing() {
    for model in models() {
        let (mut rig, state) = running(Schedule::Lazy, &model);
        let before = rig.machine.counters(0);
        drop(rig.machine.take_events());
        rig.machine.attack(0, DEVICE.0, A_BASE);
        rig.machine.attack(0, OTHER.0, A_BASE);
        let machine = rig.machine.clone();
        rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
        for attack in rig.machine.take_attacks() {
            assert_eq!(attack.result.is_ok(), attack.sid == DEVICE.0);
        }
        let spent = rig.machine.counters(0) - before;
        assert_eq!(spent.table_switches, 0);
        if model.invalidate_all {
            assert_eq!((spent.waits, spent.all_commands), (1, 1));
        }
        // The control register is written, if at all, with what it holds.
        let control = rig.machine.control(0);
        assert!(rig.machine.take_events().iter().all(|event| match event {
            Event::Control { value, .. } => *value == control,
            Event::TableSwitched { .. } => false,
            _ => true,
        }));
        let raised = rig.machine.msi(0, DEVICE.0, 0xfee0_0000, 0x40);
        assert!(matches!(
            raised,
            Interrupt::Delivered { destination: 1, .. }
        ));
        let both = [DEVICE, OTHER];
        rig.units[0]
            .move_devices(&both, Some(B), Pending::none())
            .unwrap();
        for device in both {
            assert_eq!(rig.write(device, B_BASE), Ok(B_BASE));
            assert!(rig.write(device, A_BASE).is_err());
        }
        rig.machine.release(A_BASE, PART, &[]);
        rig.units[0].destroy_domain(A).unwrap();
        assert_eq!(rig.units[0].interrupts().count(), 2);
        rig.sound();
    }
}

#[test]
fn a_record_that_is_wrong_anywhere_is_refused() {
    type Change = fn(&mut State);
    let changes: [(&str, Change); 24] = [
        ("register base", |s| s.register_base += 0x1000),
        ("register length", |s| s.register_length *= 2),
        ("arena base", |s| s.arena_base += 0x1000),
        ("arena length", |s| s.arena_length -= 0x1000),
        ("features", |s| s.extended_feature ^= 1 << 6),
        ("control", |s| s.control ^= 1),
        ("control, format", |s| s.control ^= 1 << 17),
        ("control, commands", |s| s.control ^= 1 << 12),
        ("device table", |s| s.device_table_base += 0x1000),
        ("device table's size", |s| s.device_table_base -= 1),
        ("commands", |s| s.command_buffer_base += 0x1000),
        ("commands' size", |s| s.command_buffer_base ^= 1 << 56),
        ("events", |s| s.event_log_base += 0x1000),
        ("events' size", |s| s.event_log_base ^= 1 << 57),
        ("status, not aligned", |s| s.status_address += 8),
        ("status in the device table", |s| {
            s.status_address = s.device_table_base & FRAME
        }),
        ("status elsewhere", |s| s.status_address = 0x5000),
        ("levels", |s| s.levels = 4),
        ("levels, none", |s| s.levels = 0),
        ("host bits", |s| s.host_address_bits = 300),
        ("domain count", |s| s.domain_count = 65),
        ("domain id", |s| s.domains[1].id = 1),
        ("domain id zero", |s| s.domains[0].id = 0),
        ("domain root", |s| s.domains[0].root = s.domains[1].root),
    ];
    let model = UnitConfig::default();
    let (rig, good) = running(Schedule::Lazy, &model);
    let writes = rig.machine.counters(0).mmio_writes;
    let stores = rig.machine.memory_counters().stores;
    for (what, change) in changes {
        let mut state = good;
        change(&mut state);
        let result = adopt(&rig.machine, 0, &model, &state, |_| true);
        assert!(result.is_err(), "{what}");
    }
    let mut state = good;
    state.domains[0].root = 0x5000_0000_0000;
    assert!(adopt(&rig.machine, 0, &model, &state, |_| true).is_err());
    let mut state = good;
    state.domain_count = 1;
    assert!(adopt(&rig.machine, 0, &model, &state, |_| true).is_err());
    assert_eq!(rig.machine.counters(0).mmio_writes, writes);
    assert_eq!(rig.machine.memory_counters().stores, stores);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    drop(adopt(&rig.machine, 0, &model, &good, |_| true).unwrap());
}

#[test]
fn a_register_that_is_not_as_the_record_says_is_refused() {
    let model = UnitConfig::default();
    for (offset, bits) in [
        (0x00, 0x1000),
        (0x00, 1),
        (0x08, 0x1000),
        (0x10, 0x1000),
        (0x18, 1 << 17),
        (0x18, 1 << 1),
    ] {
        let (rig, state) = running(Schedule::Lazy, &model);
        let value = match offset {
            0x00 => state.device_table_base,
            0x08 => state.command_buffer_base,
            0x10 => state.event_log_base,
            _ => state.control,
        };
        rig.machine.force_register(0, (offset, value ^ bits));
        let result = adopt(&rig.machine, 0, &model, &state, |_| true);
        assert!(
            matches!(result, Err(AdoptError::Mismatch { .. })),
            "{offset:#x}: {result:?}"
        );
    }
    // The format of interrupt entries is the caller's to know.
    let (rig, state) = running(Schedule::Lazy, &model);
    let result = Unit::adopt(
        rig.machine.registers(0),
        rig.machine.memory(),
        rig.machine.clock(),
        range(window(0), 0x4000),
        arena(0),
        &state,
        Config {
            interrupt_format: InterruptFormat::Bits128,
            ..config(&model)
        },
        |_| true,
    );
    assert!(matches!(result, Err(AdoptError::Mismatch { .. })));
}

#[test]
fn a_table_that_lies_is_refused() {
    let model = UnitConfig {
        fence_rules: false,
        ..UnitConfig::default()
    };
    let (rig, state) = running(Schedule::Lazy, &model);
    let peek = |at| rig.machine.peek(at);
    let table = state.device_table_base & FRAME;
    let entry = |device: RequesterId| table + u64::from(device.0) * 32;
    let stranger = entry(RequesterId(0x4321));
    let root = state.domains[0].root;
    // A's memory begins at 4 GiB: the fifth entry of the root.
    let upper = root + 4 * 8;
    let middle = peek(upper) & FRAME;
    let leaf = middle;
    let own = entry(DEVICE) + 16;
    let interrupts = peek(own) & 0x000f_ffff_ffff_ffc0;
    let outside = |at| TableFault::OutsideArena(PhysAddr(at));
    type Expected = fn(&TableFault) -> bool;
    let foreign: Expected = |fault| matches!(fault, TableFault::ForeignBits(_));
    let shared: Expected = |fault| matches!(fault, TableFault::Shared(_));
    let elsewhere: Expected = |fault| matches!(fault, TableFault::OutsideArena(_));
    assert!(elsewhere(&outside(0)));
    let cases: Vec<(&str, u64, u64, Expected)> = vec![
        ("an entry of zeros", stranger, 0, foreign),
        ("V alone", stranger, 1, foreign),
        ("Mode 0 with rights", stranger, 3 << 61 | 3, |f| {
            matches!(f, TableFault::Levels)
        }),
        ("no IV", stranger + 16, 0, foreign),
        ("IntCtl forward", stranger + 16, 1 << 60 | 1, foreign),
        ("NMI pass", stranger + 16, 1 << 58 | 1, foreign),
        ("LINT0", stranger + 16, 1 << 62 | 1, foreign),
        ("device caches", stranger + 8, 1 << 32, foreign),
        ("system management", stranger + 8, 1 << 40, foreign),
        ("exclusion", stranger + 8, 1 << 39, foreign),
        ("the fourth word", stranger + 24, 1, foreign),
        ("a domain that is none", stranger + 8, 77, |f| {
            matches!(f, TableFault::Domain(_))
        }),
        (
            "another depth",
            entry(DEVICE),
            peek(entry(DEVICE)) ^ 7 << 9,
            |f| matches!(f, TableFault::Levels),
        ),
        (
            "another domain's tables",
            entry(DEVICE),
            peek(entry(OTHER)),
            |f| matches!(f, TableFault::Domain(_)),
        ),
        (
            "guest tables",
            entry(DEVICE),
            peek(entry(DEVICE)) | 1 << 55,
            foreign,
        ),
        (
            "a longer interrupt table",
            entry(DEVICE) + 16,
            peek(entry(DEVICE) + 16) ^ 0b11 << 1,
            foreign,
        ),
        (
            "another's interrupt table",
            entry(DEVICE) + 16,
            peek(entry(OTHER) + 16),
            shared,
        ),
        (
            "interrupts outside",
            entry(DEVICE) + 16,
            2 << 60 | 0x5000 | 9 << 1 | 1,
            elsewhere,
        ),
        (
            "interrupts over the device table",
            entry(DEVICE) + 16,
            2 << 60 | table | 9 << 1 | 1,
            shared,
        ),
        // Beside a table of its own, all else as it should be.
        ("IntCtl abort", own, peek(own) & !(3 << 60), foreign),
        ("IntCtl forward", own, peek(own) ^ 3 << 60, foreign),
        ("IntCtl reserved", own, peek(own) | 3 << 60, foreign),
        ("INIT passes", own, peek(own) | 1 << 56, foreign),
        ("ExtINT passes", own, peek(own) | 1 << 57, foreign),
        ("NMI passes", own, peek(own) | 1 << 58, foreign),
        ("LINT0 passes", own, peek(own) | 1 << 62, foreign),
        ("LINT1 passes", own, peek(own) | 1 << 63, foreign),
        ("an NMI", interrupts + 0x40 * 4, 0x40_0101 | 3 << 2, foreign),
        (
            "a logical destination",
            interrupts + 0x40 * 4,
            0x40_0141,
            foreign,
        ),
        ("all processors", interrupts + 0x40 * 4, 0x40_ff01, foreign),
        ("a cycle", upper, 3 << 61 | 2 << 9 | root | 1, shared),
        ("a table twice", root + 9 * 8, peek(upper), shared),
        (
            "a table outside",
            upper,
            3 << 61 | 2 << 9 | 0x5000 | 1,
            elsewhere,
        ),
        ("a level skipped", upper, peek(upper) ^ 3 << 9, foreign),
        (
            "fewer rights above",
            upper,
            peek(upper) & !(1 << 62),
            foreign,
        ),
        ("rights and not present", root + 9 * 8, 3 << 61, foreign),
        ("a size between", leaf, peek(leaf) | 7 << 9, foreign),
        ("not coherent", leaf, peek(leaf) & !(1 << 60), foreign),
        ("no rights", leaf, peek(leaf) & !(3 << 61), foreign),
        ("a leaf not aligned", leaf, peek(leaf) | 0x1000, |f| {
            matches!(f, TableFault::LeafSize)
        }),
        (
            "the interrupt range",
            leaf,
            7 << 60 | 0xfee0_0000 | 1,
            |f| matches!(f, TableFault::InterruptRange),
        ),
        (
            "HyperTransport's",
            leaf,
            7 << 60 | 0xfd_0000_0000 | 1,
            |f| matches!(f, TableFault::SpecialRange(_)),
        ),
        ("the arena", leaf, 7 << 60 | 0x4000_0000 | 1, |f| {
            matches!(f, TableFault::OwnTables(_))
        }),
        ("no memory", leaf, 7 << 60 | 1 << 46 | 1, |f| {
            matches!(f, TableFault::MemoryTooHigh(_))
        }),
    ];
    let writes = rig.machine.counters(0).mmio_writes;
    for (what, at, value, expected) in cases {
        let good = rig.machine.peek(at);
        rig.machine.poke(at, value);
        match adopt(&rig.machine, 0, &model, &state, |_| true) {
            Err(AdoptError::Table { fault, .. }) => {
                assert!(expected(&fault), "{what}: {fault:?}");
            }
            other => panic!("{what}: {other:?}"),
        }
        rig.machine.poke(at, good);
    }
    assert_eq!(rig.machine.counters(0).mmio_writes, writes);
    drop(adopt(&rig.machine, 0, &model, &state, |_| true).unwrap());
}

#[test]
fn any_one_bit_of_a_table_that_is_changed_is_noticed_or_harmless() {
    use proptest::prelude::*;
    let model = UnitConfig {
        fence_rules: false,
        ..UnitConfig::default()
    };
    let (rig, state) = running(Schedule::Lazy, &model);
    let table = state.device_table_base & FRAME;
    let root = state.domains[0].root;
    let words: Vec<u64> = (0..4)
        .map(|word| table + u64::from(DEVICE.0) * 32 + word * 8)
        .chain((0..4).map(|word| table + 0x1234 * 32 + word * 8))
        .chain([root + 4 * 8, root, rig.machine.peek(root + 4 * 8) & FRAME])
        .collect();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    runner
        .run(&(prop::sample::select(words), 0_u32..64), |(at, bit)| {
            let good = rig.machine.peek(at);
            rig.machine.poke(at, good ^ 1 << bit);
            let mut seen = Vec::new();
            let result = adopt(&rig.machine, 0, &model, &state, |reach| {
                seen.push(*reach);
                match reach {
                    Reach::Memory {
                        requester,
                        iova,
                        memory,
                        ..
                    } => {
                        let own = match requester {
                            Some(device) if *device == DEVICE => range(A_BASE, PART),
                            Some(device) if *device == OTHER => range(B_BASE, PART),
                            Some(_) => return false,
                            None => return true,
                        };
                        own.contains_range(*memory) && *iova == memory.base().0
                    }
                    Reach::Interrupt { .. } => true,
                    _ => false,
                }
            });
            // SA and IG say what is logged, and a right can be missing. The domain of an entry that
            // denies only says what is invalidated when it is used next.
            let denying = (table + 0x1234 * 32..table + 0x1235 * 32).contains(&at);
            let quiet = (bit == 34 && at % 32 == 8)
                || (bit == 5 && at % 32 == 16)
                || (denying && bit < 16 && at % 32 == 8);
            let page_entry = at < table || at >= table + (2 << 20);
            let fewer = page_entry && (bit == 61 || bit == 62);
            prop_assert!(
                result.is_err() || quiet || fewer,
                "bit {bit} at {at:#x}: {seen:?}"
            );
            rig.machine.poke(at, good);
            drop(result);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_retirement_that_was_begun_is_finished() {
    let model = UnitConfig::default();
    let (mut rig, _) = running(Schedule::Lazy, &model);
    drop(rig.units[0].block(DEVICE));
    drop(rig.units[0].clear_interrupts(OTHER));
    let state = rig.units[0].record().unwrap();
    let machine = rig.machine.clone();
    rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.units[0].destroy_domain(A).unwrap();
    rig.attach(DEVICE, B);
    assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
    let set = rig.units[0]
        .allocate_interrupt(OTHER, target(3, 0x40))
        .unwrap();
    assert_eq!(set.0.index, 0x40);
    rig.flush(set.1);
    rig.sound();
}

#[test]
fn commands_that_are_under_way_run_out_and_a_stopped_buffer_runs_again() {
    let model = UnitConfig::default();
    for injection in [Injection::Nothing, Injection::IllegalCommands(1)] {
        let (mut rig, state) = running(Schedule::Lazy, &model);
        rig.machine.inject(0, injection);
        for device in 0..20 {
            let attached = rig.units[0].attach(RequesterId(0x600 + device), A).unwrap();
            drop(rig.units[0].submit(attached).unwrap());
        }
        let machine = rig.machine.clone();
        rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
        for device in 0..20 {
            assert_eq!(rig.write(RequesterId(0x600 + device), A_BASE), Ok(A_BASE));
        }
        rig.sound();
    }
    let (rig, state) = running(Schedule::Lazy, &model);
    rig.machine.inject(0, Injection::StuckCommands);
    let result = adopt(&rig.machine, 0, &model, &state, |_| true);
    assert!(
        matches!(result, Err(AdoptError::Invalidate(_))),
        "{result:?}"
    );
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
}

#[test]
fn stewardship_passes_on_and_on() {
    let model = UnitConfig::default();
    let (mut rig, _) = running(Schedule::Lazy, &model);
    let machine = rig.machine.clone();
    // More often than the frame that waits write to has places.
    for round in 0..40_u16 {
        let state = rig.units[0].record().unwrap();
        rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
        let to = if round % 2 == 0 { B } else { A };
        rig.units[0]
            .move_devices(&[DEVICE], Some(to), Pending::none())
            .unwrap();
        assert_eq!(rig.units[0].domain_of(DEVICE), Some(to));
        // Events are read on from where they were.
        assert!(rig.write(RequesterId(0x900 + round), A_BASE).is_err());
        let mut sources = Vec::new();
        rig.units[0]
            .drain_faults(|fault| sources.push(fault.source))
            .unwrap();
        assert_eq!(sources, [RequesterId(0x900 + round)]);
    }
    rig.sound();
}

#[test]
fn a_unit_is_taken_over_after_a_switch() {
    let model = UnitConfig::default();
    let (mut rig, _) = running(Schedule::Lazy, &model);
    let devices: Vec<_> = (0..20).map(|i| RequesterId(0x600 + i)).collect();
    let prepared = rig.units[0].prepare_move(&devices, Some(A)).unwrap();
    let moving = rig.units[0]
        .start_prepared(prepared, Pending::none())
        .unwrap();
    rig.units[0].finish_move(moving).unwrap();
    let free = rig.units[0].free_frames();
    let state = rig.units[0].record().unwrap();
    let machine = rig.machine.clone();
    rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
    // The other table is free memory again.
    assert_eq!(rig.units[0].free_frames(), free + 512);
    for &device in &devices {
        assert_eq!(rig.write(device, A_BASE), Ok(A_BASE));
    }
    rig.sound();
}
