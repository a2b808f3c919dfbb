//! Moving devices from domain to domain, in a batch and by exchanging the device table.

use handoff_abi::{ApicId, RequesterId};
use iommu::amd::{MoveError, Pending};
use iommu::{Access, MoveMethod};
use iommu_model::amd::{Injection, Interrupt, Reason, Schedule, UnitConfig};

use crate::rig::*;

/// A unit with devices in `A`.
fn with_devices(schedule: Schedule, model: UnitConfig, devices: &[RequesterId]) -> Rig {
    let mut rig = Rig::up(schedule, &[model]);
    rig.units[0]
        .move_devices(devices, Some(A), Pending::none())
        .unwrap();
    for &device in devices {
        assert_eq!(rig.write(device, A_BASE), Ok(A_BASE));
    }
    rig
}

#[test]
fn the_blackout_has_one_wait_however_many_devices_there_are() {
    for count in [1, 8, 32, 128] {
        let devices = devices(count);
        let mut rig = with_devices(Schedule::Eager, UnitConfig::default(), &devices);
        let before = rig.machine.counters(0);
        let moving = rig.units[0]
            .start_move(&devices, Some(B), Pending::none())
            .unwrap();
        let installed = rig.units[0].install_move(moving).unwrap();
        let cost = rig.machine.counters(0) - before;
        // Two batches were given; the second was not waited for.
        assert_eq!(
            (cost.tail_writes, cost.mmio_writes, cost.mmio_reads),
            (2, 2, 0)
        );
        if count <= 8 {
            assert_eq!(cost.entry_commands, 2 * u64::from(count));
            assert_eq!((cost.page_commands, cost.barriers), (1, 1));
        } else {
            assert_eq!((cost.all_commands, cost.entry_commands), (2, 0));
        }
        assert_eq!(cost.waits, 2);
        rig.units[0].wait_installed(installed).unwrap();
        rig.all_in(&devices, Some(B));
        rig.sound();
    }
}

#[test]
fn a_switch_costs_the_same_however_many_devices_there_are() {
    let mut costs = Vec::new();
    for count in [9, 32, 128, 512] {
        let devices = devices(count);
        let mut rig = with_devices(Schedule::Eager, UnitConfig::default(), &devices);
        let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
        assert_eq!(prepared.method(), MoveMethod::Switch);
        rig.all_in(&devices, Some(A));
        let before = rig.machine.counters(0);
        let memory = rig.machine.memory_counters().stores;
        let moving = rig.units[0]
            .start_prepared(prepared, Pending::none())
            .unwrap();
        assert_eq!(rig.units[0].finish_move(moving), Ok(MoveMethod::Switch));
        let cost = rig.machine.counters(0) - before;
        let stores = rig.machine.memory_counters().stores - memory;
        costs.push((
            cost.mmio_writes,
            cost.mmio_reads,
            cost.commands(),
            cost.waits,
            stores,
        ));
        rig.all_in(&devices, Some(B));
        rig.machine.release(A_BASE, PART, &[]);
        rig.units[0].destroy_domain(A).unwrap();
        rig.sound();
    }
    // Two registers written and none read; two commands, one of them the wait; their four words.
    assert_eq!(costs, [(2, 0, 2, 1, 4); 4]);
}

#[test]
fn tables_are_exchanged_to_and_fro_on_every_kind_of_unit() {
    for model in models() {
        let devices = devices(12);
        let mut rig = with_devices(Schedule::Lazy, model.clone(), &devices);
        rig.attach(RequesterId(0x7777), A);
        let handle = rig.units[0]
            .allocate_interrupt(devices[3], iommu_target())
            .map(|(handle, pending)| {
                rig.units[0].flush(pending).unwrap();
                handle
            })
            .unwrap();
        let expected = if model.invalidate_all {
            MoveMethod::Switch
        } else {
            MoveMethod::Selective
        };
        for to in [Some(B), Some(A), None, Some(B)] {
            let prepared = rig.units[0].prepare_move(&devices, to).unwrap();
            assert_eq!(prepared.method(), expected);
            // Interrupts may change in between, and join in.
            let vectors = rig.units[0].retarget_all(devices[3], ApicId(2)).unwrap();
            let moving = rig.units[0].start_prepared(prepared, vectors).unwrap();
            assert_eq!(rig.units[0].finish_move(moving), Ok(expected));
            rig.all_in(&devices, to);
            assert_eq!(rig.write(RequesterId(0x7777), A_BASE), Ok(A_BASE));
            let raised = rig
                .machine
                .msi(0, devices[3].0, 0xfee0_0000, handle.index.into());
            assert!(matches!(
                raised,
                Interrupt::Delivered {
                    destination: 2,
                    vector: 0x41,
                    ..
                }
            ));
            let back = rig.units[0].retarget_all(devices[3], ApicId(1)).unwrap();
            rig.flush(back);
        }
        rig.sound();
    }
}

fn iommu_target() -> handoff_abi::InterruptTarget {
    target(1, 0x41)
}

#[test]
fn a_prepared_move_that_is_out_of_date_is_made_as_if_it_were_not_prepared() {
    type Change = fn(&mut Rig);
    let changes: [Change; 4] = [
        |rig| rig.attach(RequesterId(0x7777), A),
        |rig| {
            let blocked = rig.units[0].block(RequesterId(0x1000));
            rig.flush(blocked);
        },
        |rig| {
            let silenced = rig.units[0].silence(RequesterId(0x7777), true).unwrap();
            rig.flush(silenced);
        },
        |rig| {
            rig.units[0].destroy_domain(B).unwrap();
            rig.units[0].create_domain(B).unwrap();
            let mapped = rig.units[0].map(B, B_BASE, range(B_BASE, PART), Access::READ_WRITE);
            rig.flush(mapped.unwrap());
        },
    ];
    for change in changes {
        let devices = devices(20);
        let mut rig = with_devices(Schedule::Lazy, UnitConfig::default(), &devices);
        let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
        change(&mut rig);
        let moving = rig.units[0]
            .start_prepared(prepared, Pending::none())
            .unwrap();
        assert_eq!(rig.units[0].finish_move(moving), Ok(MoveMethod::Global));
        rig.all_in(&devices, Some(B));
        rig.sound();
    }
    // A second preparation makes the first one out of date.
    let devices = devices(20);
    let mut rig = with_devices(Schedule::Lazy, UnitConfig::default(), &devices);
    let first = rig.units[0].prepare_move(&devices, None).unwrap();
    let second = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
    drop(second);
    let moving = rig.units[0].start_prepared(first, Pending::none()).unwrap();
    rig.units[0].finish_move(moving).unwrap();
    rig.all_in(&devices, None);
    rig.sound();
}

#[test]
fn a_move_that_fails_leaves_every_device_blocked_or_whole() {
    for count in [2, 12] {
        for injection in [
            Injection::StuckCommands,
            Injection::LostWaits(1),
            Injection::IllegalCommands(1000),
        ] {
            for switch in [false, true] {
                let devices = devices(count);
                let mut rig = with_devices(Schedule::Lazy, UnitConfig::default(), &devices);
                let unit = &mut rig.units[0];
                let prepared = switch.then(|| unit.prepare_move(&devices, Some(B)).unwrap());
                rig.machine.inject(0, injection);
                let unit = &mut rig.units[0];
                let result = match prepared {
                    Some(prepared) => unit.start_prepared(prepared, Pending::none()),
                    None => unit.start_move(&devices, Some(B), Pending::none()),
                };
                let result = result.and_then(|moving| unit.finish_move(moving));
                assert!(
                    matches!(result, Err(MoveError::Invalidate(_))),
                    "{result:?}"
                );
                for &device in &devices {
                    assert_eq!(rig.units[0].domain_of(device), None);
                    assert!(rig.units[0].attach(device, A).is_err());
                }
                // The unit may have something of the old domain.
                assert!(rig.units[0].destroy_domain(A).is_err());
                rig.machine.inject(0, Injection::Nothing);
                rig.units[0].invalidate_everything().unwrap();
                rig.all_in(&devices, None);
                rig.machine.release(A_BASE, PART, &[]);
                rig.units[0].destroy_domain(A).unwrap();
                rig.units[0]
                    .move_devices(&devices, Some(B), Pending::none())
                    .unwrap();
                rig.all_in(&devices, Some(B));
                rig.sound();
            }
        }
    }
}

#[test]
fn the_waits_of_two_units_overlap() {
    let models = [UnitConfig::default(), UnitConfig::default()];
    let mut rig = Rig::up(Schedule::Lazy, &models);
    let devices = devices(4);
    for unit in &mut rig.units {
        unit.move_devices(&devices, Some(A), Pending::none())
            .unwrap();
    }
    drop(rig.machine.take_events());
    let moving: Vec<_> = rig
        .units
        .iter_mut()
        .map(|unit| unit.start_move(&devices, Some(B), Pending::none()).unwrap())
        .collect();
    // Both were told before either was waited for.
    let counters = [0, 1].map(|unit| rig.machine.counters(unit).tail_writes);
    for (unit, moving) in rig.units.iter_mut().zip(moving) {
        unit.finish_move(moving).unwrap();
    }
    let after = [0, 1].map(|unit| rig.machine.counters(unit).tail_writes);
    assert_eq!(after, counters.map(|n| n + 1));
    for &device in &devices {
        for unit in 0..2 {
            let dma = rig.machine.dma_write(unit, device.0, B_BASE, b"x");
            assert_eq!(dma.blocked, None);
        }
    }
    rig.sound();
}

#[test]
fn without_room_for_a_second_table_a_move_is_a_batch() {
    let model = UnitConfig::default();
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
    let mut unit = iommu::amd::Unit::prepare(
        machine.registers(0),
        machine.memory(),
        machine.clock(),
        range(window(0), 0x4000),
        range(arena(0).base().0, 0x30_0000),
        config(&model),
    )
    .unwrap();
    unit.create_domain(A).unwrap();
    unit.enable().unwrap();
    let devices = devices(20);
    let prepared = unit.prepare_move(&devices, Some(A)).unwrap();
    assert_eq!(prepared.method(), MoveMethod::Global);
    let moving = unit.start_prepared(prepared, Pending::none()).unwrap();
    assert_eq!(unit.finish_move(moving), Ok(MoveMethod::Global));
    assert_eq!(
        machine.dma_write(0, devices[0].0, 0, b"x").blocked,
        Some(Reason::NotPresent)
    );
    machine.audit();
    machine.assert_no_violations();
}
