//! Moving devices: what it costs, and what is within reach meanwhile.

use handoff_abi::RequesterId;
use iommu::vtd::{AttachError, MoveError, Pending};
use iommu_model::{Event, Injection, Reason, Schedule, UnitConfig};

use crate::rig::*;

fn devices(count: u16) -> Vec<RequesterId> {
    (0..count).map(|i| RequesterId(0x1000 + i)).collect()
}

fn attach_all(rig: &mut Rig, unit: usize, devices: &[RequesterId]) {
    let mut pending = Pending::none();
    for &device in devices {
        pending = pending.merge(rig.units[unit].attach(device, A).unwrap());
    }
    rig.units[unit].flush(pending).unwrap();
    for &device in devices {
        let dma = rig.machine.dma_write(unit, device.0, A_BASE, &[1]);
        assert_eq!(dma.blocked, None);
    }
}

#[test]
fn moving_any_number_of_devices_costs_one_wait() {
    for model in [
        UnitConfig::default(),
        UnitConfig {
            coherent: false,
            ..UnitConfig::default()
        },
    ] {
        for count in [1, 8, 32, 128, 512] {
            // The unit is done before software looks for the first time: what is counted is what
            // the move itself needs.
            let mut rig = Rig::up(Schedule::Eager, std::slice::from_ref(&model));
            let devices = devices(count);
            attach_all(&mut rig, 0, &devices);
            let (before, memory) = (rig.machine.counters(0), rig.machine.memory_counters());
            rig.units[0]
                .move_devices(&devices, Some(B), Pending::none())
                .unwrap();
            let spent = rig.machine.counters(0) - before;
            let stores = rig.machine.memory_counters().stores - memory.stores;
            let count = u64::from(count);
            assert_eq!(spent.waits, 1, "{count} devices");
            assert_eq!(
                (spent.mmio_writes, spent.mmio_reads),
                (1, 0),
                "{count} devices"
            );
            assert_eq!(spent.tail_writes, 1);
            // One for each device up to eight and one for the old domain, or all at once.
            let expected = if count <= 8 { count + 2 } else { 3 };
            assert_eq!(spent.descriptors(), expected, "{count} devices");
            // Present bit, then the two halves; and the descriptors.
            assert!(stores <= 3 * count + 2 * expected, "{stores} stores");
            for &device in &devices {
                assert_eq!(rig.write(device, B_BASE), Ok(B_BASE));
                assert_eq!(rig.write(device, A_BASE), Err(Reason::NoWrite));
            }
            rig.machine.release(A_BASE, PART, &[]);
            rig.sound();
        }
    }
}

#[test]
fn a_move_with_interrupts_and_a_block_of_all_cost_one_wait_too() {
    for count in [1, 32, 512] {
        let mut rig = Rig::up(Schedule::Eager, &[UnitConfig::default()]);
        let devices = devices(count);
        attach_all(&mut rig, 0, &devices);
        let mut handles = Vec::new();
        for &device in devices.iter().take(200) {
            let (handle, pending) = rig.units[0]
                .allocate_interrupt(device, target(1, 0x40))
                .unwrap();
            rig.flush(pending);
            handles.push(handle);
        }
        let before = rig.machine.counters(0);
        let mut with = Pending::none();
        for &handle in &handles {
            with = with.merge(rig.units[0].retarget(handle, target(2, 0x50)).unwrap());
        }
        rig.units[0].move_devices(&devices, Some(B), with).unwrap();
        let spent = rig.machine.counters(0) - before;
        assert_eq!(
            (spent.waits, spent.mmio_writes, spent.mmio_reads),
            (1, 1, 0)
        );
        let before = rig.machine.counters(0);
        rig.units[0]
            .move_devices(&devices, None, Pending::none())
            .unwrap();
        let spent = rig.machine.counters(0) - before;
        assert_eq!(
            (spent.waits, spent.mmio_writes, spent.mmio_reads),
            (1, 1, 0)
        );
        for &device in &devices {
            assert!(rig.write(device, B_BASE).is_err());
            assert_eq!(rig.units[0].domain_of(device), None);
        }
        rig.machine.release(B_BASE, PART, &[]);
        rig.sound();
    }
}

#[test]
fn the_waits_of_two_units_overlap() {
    let slow = UnitConfig {
        descriptor_steps: 40,
        ..UnitConfig::default()
    };
    let mut rig = Rig::up(Schedule::Lazy, &[slow.clone(), slow]);
    let devices = devices(4);
    attach_all(&mut rig, 0, &devices);
    attach_all(&mut rig, 1, &devices);
    assert!(!rig.machine.take_events().is_empty());
    let start = rig.machine.now();
    let first = rig.units[0]
        .start_move(&devices, Some(B), Pending::none())
        .unwrap();
    let second = rig.units[1]
        .start_move(&devices, Some(B), Pending::none())
        .unwrap();
    rig.units[0].finish_move(first).unwrap();
    let one = rig.machine.now() - start;
    rig.units[1].finish_move(second).unwrap();
    let both = rig.machine.now() - start;
    assert!(both < one + one / 4, "{both} for both, {one} for one");
    let events = rig.machine.take_events();
    let tail = events
        .iter()
        .rposition(|e| matches!(e, Event::TailWritten { .. }));
    let done = events
        .iter()
        .position(|e| matches!(e, Event::WaitDone { .. }));
    assert!(tail < done, "a wait was over before all were begun");
    for unit in 0..2 {
        for &device in &devices {
            let dma = rig.machine.dma_write(unit, device.0, B_BASE, &[1]);
            assert_eq!(dma.landed, [(B_BASE, 1)]);
        }
    }
    rig.machine.release(A_BASE, PART, &[]);
    rig.sound();
}

#[test]
fn a_device_that_never_stops_reaches_the_old_domain_then_nothing_then_the_new() {
    for model in models() {
        for schedule in schedules(4) {
            for count in [1, 12] {
                let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
                let devices = devices(count);
                // The same device address leads to both domains' memory.
                for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
                    let memory = range(base, 0x1000);
                    let access = iommu::Access::READ_WRITE;
                    let pending = rig.units[0].map(domain, 0x5000, memory, access);
                    rig.flush(pending.unwrap());
                }
                attach_all(&mut rig, 0, &devices);
                for device in &devices {
                    rig.machine.attack(0, device.0, 0x5000);
                }
                rig.units[0]
                    .move_devices(&devices, Some(B), Pending::none())
                    .unwrap();
                let attacks = rig.machine.take_attacks();
                for device in &devices {
                    let phases: Vec<_> = attacks
                        .iter()
                        .filter(|a| a.sid == device.0)
                        .map(|a| match a.result {
                            Ok(A_BASE) => 0,
                            Err(_) => 1,
                            Ok(B_BASE) => 2,
                            Ok(other) => panic!("{other:#x}"),
                        })
                        .collect();
                    assert!(phases.is_sorted(), "{phases:?}");
                }
                assert_eq!(rig.write(devices[0], 0x5000), Ok(B_BASE));
                rig.machine.release(A_BASE, PART, &[]);
                rig.sound();
            }
        }
    }
}

#[test]
fn a_write_in_flight_lands_before_the_move_is_done() {
    for count in [1, 12] {
        let mut rig = Rig::one();
        let devices = devices(count);
        attach_all(&mut rig, 0, &devices);
        for device in &devices {
            let at = A_BASE + u64::from(device.0) * 8;
            rig.machine.dma_post(0, device.0, at, b"in time!").unwrap();
        }
        rig.units[0]
            .move_devices(&devices, Some(B), Pending::none())
            .unwrap();
        rig.machine.release(A_BASE, PART, &[]);
        rig.sound();
        assert!(rig.machine.land(0).is_empty());
    }
}

#[test]
fn a_move_that_fails_anywhere_leaves_each_device_old_blocked_or_new() {
    for count in [1, 12] {
        for step in 0..80 {
            for gone in [false, true] {
                let mut rig = Rig::one();
                let devices = devices(count);
                attach_all(&mut rig, 0, &devices);
                rig.machine.inject(
                    0,
                    if gone {
                        Injection::GoneAfter(step)
                    } else {
                        Injection::StuckQueueAfter(step)
                    },
                );
                let result = rig.units[0].move_devices(&devices, Some(B), Pending::none());
                for &device in &devices {
                    let found = rig.units[0].domain_of(device);
                    match &result {
                        Ok(_) => assert_eq!(found, Some(B)),
                        Err(MoveError::Invalidate(_)) => assert_eq!(found, None),
                        Err(other) => panic!("{other:?}"),
                    }
                }
                rig.machine.inject(0, Injection::Nothing);
                if result.is_ok() {
                    continue;
                }
                for &device in &devices {
                    assert!(rig.units[0].attach(device, B).is_err(), "not reusable");
                }
                rig.units[0].invalidate_everything().unwrap();
                for &device in &devices {
                    assert!(rig.write(device, A_BASE).is_err());
                    rig.attach(device, A);
                    assert_eq!(rig.write(device, A_BASE), Ok(A_BASE), "and back");
                }
                if !gone {
                    rig.sound();
                }
            }
        }
    }
}

#[test]
fn a_move_that_cannot_be_made_changes_nothing() {
    let mut rig = Rig::one();
    let devices = devices(3);
    attach_all(&mut rig, 0, &devices);
    let before = rig.machine.memory_counters().stores;
    let unknown = handoff_abi::DomainId(9);
    let error = rig.units[0].move_devices(&devices, Some(unknown), Pending::none());
    let expected = MoveError::Attach(AttachError::UnknownDomain(unknown));
    assert_eq!(error.unwrap_err(), expected);
    assert_eq!(rig.machine.memory_counters().stores, before);
    for &device in &devices {
        assert_eq!(rig.write(device, A_BASE), Ok(A_BASE));
    }
    rig.sound();
}

#[test]
fn a_move_of_devices_that_had_no_domain_or_are_named_twice() {
    for caching_mode in [false, true] {
        let model = UnitConfig {
            caching_mode,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        let twice = [DEVICE, OTHER, DEVICE];
        rig.units[0]
            .move_devices(&twice, Some(B), Pending::none())
            .unwrap();
        for device in [DEVICE, OTHER] {
            assert_eq!(rig.units[0].domain_of(device), Some(B));
            assert_eq!(rig.write(device, B_BASE), Ok(B_BASE));
        }
        // Where it is already.
        rig.units[0]
            .move_devices(&twice, Some(B), Pending::none())
            .unwrap();
        assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
        rig.units[0]
            .move_devices(&twice, None, Pending::none())
            .unwrap();
        for device in [DEVICE, OTHER] {
            assert!(rig.write(device, B_BASE).is_err());
        }
        rig.units[0].destroy_domain(A).unwrap();
        rig.units[0].destroy_domain(B).unwrap();
        rig.machine.release(B_BASE, PART, &[]);
        rig.sound();
    }
}

#[test]
fn a_move_that_is_dropped_leaves_the_devices_blocked() {
    for count in [1, 12] {
        let mut rig = Rig::one();
        let devices = devices(count);
        attach_all(&mut rig, 0, &devices);
        drop(
            rig.units[0]
                .start_move(&devices, Some(B), Pending::none())
                .unwrap(),
        );
        for &device in &devices {
            assert_eq!(rig.units[0].domain_of(device), None);
            assert!(rig.units[0].attach(device, B).is_err());
        }
        rig.units[0].invalidate_everything().unwrap();
        for &device in &devices {
            assert!(rig.write(device, A_BASE).is_err());
            rig.attach(device, B);
        }
        rig.sound();
    }
}
