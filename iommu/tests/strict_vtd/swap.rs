//! Moving devices: what it costs, and what is within reach meanwhile.

use handoff_abi::RequesterId;
use iommu::vtd::Pending;
use iommu_model::{Event, Reason, Schedule, UnitConfig};

use crate::rig::*;

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
