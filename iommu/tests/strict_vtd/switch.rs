//! Moving devices by exchanging the root table while translation is on.

use handoff_abi::{DomainId, RequesterId};
use iommu::vtd::{MoveError, Pending, Unit};
use iommu::{Access, MoveMethod};
use iommu_model::{Injection, Interrupt, Reason, Schedule, UnitConfig};

use crate::rig::*;

/// A device that stays where it is.
const STAYS: RequesterId = RequesterId(0x7777);

/// A unit with devices in `A`, and their translations hot.
fn with_devices(schedule: Schedule, model: &UnitConfig, devices: &[RequesterId]) -> Rig {
    let mut rig = Rig::up(schedule, std::slice::from_ref(model));
    rig.units[0]
        .move_devices(devices, Some(A), Pending::none())
        .unwrap();
    for &device in devices {
        assert_eq!(rig.write(device, A_BASE), Ok(A_BASE));
    }
    rig
}

impl Rig {
    fn switch(&mut self, devices: &[RequesterId], to: Option<DomainId>) {
        let prepared = self.units[0].prepare_switch(devices, to).unwrap();
        assert_eq!(prepared.method(), MoveMethod::Switch);
        let moving = self.units[0]
            .start_prepared(prepared, Pending::none())
            .unwrap();
        assert_eq!(self.units[0].finish_move(moving), Ok(MoveMethod::Switch));
    }
}

#[test]
fn a_switch_costs_the_same_however_many_devices_there_are() {
    for srtp_invalidates in [false, true] {
        let model = UnitConfig {
            srtp_invalidates,
            ..UnitConfig::default()
        };
        let mut costs = Vec::new();
        for count in [1, 9, 32, 128, 512] {
            let devices = devices(count);
            let mut rig = with_devices(Schedule::Eager, &model, &devices);
            let prepared = rig.units[0].prepare_switch(&devices, Some(B)).unwrap();
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
            assert_eq!(cost.root_pointer_sets, 1);
            costs.push((
                cost.mmio_writes,
                cost.mmio_reads,
                cost.descriptors(),
                cost.waits,
                stores,
            ));
            rig.all_in(&devices, Some(B));
            rig.machine.release(A_BASE, PART, &[]);
            rig.units[0].destroy_domain(A).unwrap();
            rig.sound();
        }
        // RTADDR, GCMD and IQT written, GSTS read before and after; three descriptors, one of them
        // the wait; their six words.
        assert_eq!(costs, [(3, 2, 3, 1, 6); 5]);
    }
}

#[test]
fn the_number_of_devices_decides_how_they_are_moved() {
    for (count, expected) in [
        (1, MoveMethod::Selective),
        (8, MoveMethod::Selective),
        (9, MoveMethod::Switch),
        (512, MoveMethod::Switch),
    ] {
        let devices = devices(count);
        let mut rig = with_devices(Schedule::Lazy, &UnitConfig::default(), &devices);
        let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
        assert_eq!(prepared.method(), expected);
        let moving = rig.units[0]
            .start_prepared(prepared, Pending::none())
            .unwrap();
        assert_eq!(rig.units[0].finish_move(moving), Ok(expected));
        rig.all_in(&devices, Some(B));
        rig.machine.release(A_BASE, PART, &[]);
        rig.sound();
    }
}

#[test]
fn root_tables_are_exchanged_to_and_fro_on_every_kind_of_unit() {
    for model in models() {
        for schedule in schedules(2) {
            let devices = devices(12);
            let mut rig = with_devices(schedule, &model, &devices);
            rig.attach(STAYS, A);
            let (handle, pending) = rig.units[0]
                .allocate_interrupt(devices[3], target(1, 0x41))
                .unwrap();
            rig.flush(pending);
            for (round, to) in [Some(B), Some(A), None, Some(B), Some(A)]
                .into_iter()
                .enumerate()
            {
                let prepared = rig.units[0].prepare_move(&devices, to).unwrap();
                assert_eq!(prepared.method(), MoveMethod::Switch);
                // Interrupts may change in between, and join in.
                let vector = 0x50 + round as u8;
                let vectors = rig.units[0].retarget(handle, target(2, vector)).unwrap();
                let moving = rig.units[0].start_prepared(prepared, vectors).unwrap();
                assert_eq!(rig.units[0].finish_move(moving), Ok(MoveMethod::Switch));
                rig.all_in(&devices, to);
                assert_eq!(rig.write(STAYS, A_BASE), Ok(A_BASE));
                if to != Some(A) {
                    rig.machine.release(A_BASE, PART, &[STAYS.0]);
                }
                if to != Some(B) {
                    rig.machine.release(B_BASE, PART, &[]);
                }
                let message = handle.message();
                let raised = rig
                    .machine
                    .msi(0, devices[3].0, message.address.0, message.data);
                assert!(matches!(
                    raised,
                    Interrupt::Delivered { destination: 2, vector: found, .. } if found == vector
                ));
                rig.sound();
            }
            // Each domain counts its devices, whatever way they came.
            assert!(rig.units[0].destroy_domain(A).is_err());
            rig.units[0].destroy_domain(B).unwrap();
        }
    }
}

#[test]
fn a_device_that_never_stops_reaches_the_old_domain_or_the_new_and_never_stops() {
    for model in models() {
        for schedule in schedules(6) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            // The same device address leads to both domains' memory.
            for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
                let pending =
                    rig.units[0].map(domain, 0x5000, range(base, 0x1000), Access::READ_WRITE);
                rig.flush(pending.unwrap());
            }
            let devices = devices(12);
            rig.units[0]
                .move_devices(&devices, Some(A), Pending::none())
                .unwrap();
            rig.attach(STAYS, A);
            for device in devices.iter().chain([&STAYS]) {
                assert_eq!(rig.write(*device, 0x5000), Ok(A_BASE));
                rig.machine.attack(0, device.0, 0x5000);
            }
            rig.switch(&devices, Some(B));
            let mut seen = [false; 2];
            for attack in rig.machine.take_attacks() {
                let at = attack.result.expect("no request is refused in a switch");
                seen[usize::from(at == B_BASE)] = true;
                assert!(at == A_BASE || at == B_BASE && attack.sid != STAYS.0);
            }
            assert!(seen[0]);
            for &device in &devices {
                assert_eq!(rig.write(device, 0x5000), Ok(B_BASE));
            }
            rig.machine.release(A_BASE, PART, &[STAYS.0]);
            rig.sound();
        }
    }
}

#[test]
fn a_device_that_was_blocked_finds_nothing_or_the_new_domain() {
    for model in models() {
        for schedule in schedules(4) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            // Nothing of them is cached, so they are looked up in the new tables as they are.
            let devices = devices(12);
            for device in &devices {
                rig.machine.attack(0, device.0, B_BASE);
            }
            rig.switch(&devices, Some(B));
            for attack in rig.machine.take_attacks() {
                let nothing = matches!(
                    attack.result,
                    Err(Reason::RootNotPresent | Reason::ContextNotPresent)
                );
                assert!(nothing || attack.result == Ok(B_BASE), "{attack:?}");
            }
            rig.all_in(&devices, Some(B));
            rig.sound();
        }
    }
}

#[test]
fn a_write_in_flight_lands_before_the_switch_is_done() {
    for srtp_invalidates in [false, true] {
        let model = UnitConfig {
            srtp_invalidates,
            ..UnitConfig::default()
        };
        let devices = devices(12);
        let mut rig = with_devices(Schedule::Lazy, &model, &devices);
        for device in &devices {
            let at = A_BASE + u64::from(device.0) * 8;
            rig.machine.dma_post(0, device.0, at, b"in time!").unwrap();
        }
        rig.switch(&devices, Some(B));
        rig.machine.release(A_BASE, PART, &[]);
        rig.sound();
        assert!(rig.machine.land(0).is_empty());
    }
}

#[test]
fn a_prepared_switch_that_is_out_of_date_is_made_as_if_it_were_not_prepared() {
    type Change = fn(&mut Rig);
    let changes: [Change; 4] = [
        |rig| rig.attach(STAYS, A),
        |rig| {
            let blocked = rig.units[0].block(RequesterId(0x1000));
            rig.flush(blocked);
        },
        |rig| {
            let silenced = rig.units[0].silence(STAYS, true).unwrap();
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
        let mut rig = with_devices(Schedule::Lazy, &UnitConfig::default(), &devices);
        let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
        assert_eq!(prepared.method(), MoveMethod::Switch);
        change(&mut rig);
        let moving = rig.units[0]
            .start_prepared(prepared, Pending::none())
            .unwrap();
        assert_eq!(rig.units[0].finish_move(moving), Ok(MoveMethod::Global));
        rig.all_in(&devices, Some(B));
        rig.sound();
    }
}

#[test]
fn devices_of_new_buses_get_their_tables_by_the_switch() {
    let mut rig = Rig::one();
    rig.attach(STAYS, A);
    let devices = devices(12);
    let free = rig.units[0].free_frames();
    // A root table, and a context table for each of four buses.
    let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
    assert_eq!(rig.units[0].free_frames(), free - 5);
    let moving = rig.units[0]
        .start_prepared(prepared, Pending::none())
        .unwrap();
    rig.units[0].finish_move(moving).unwrap();
    rig.all_in(&devices, Some(B));
    // The other way round the same frames serve, and those of the buses that are new there.
    rig.switch(&devices, Some(A));
    rig.switch(&devices, None);
    assert_eq!(rig.units[0].free_frames(), free - 5 - 3);
    rig.all_in(&devices, None);
    assert_eq!(rig.write(STAYS, A_BASE), Ok(A_BASE));
    rig.sound();
}

#[test]
fn without_room_for_other_tables_devices_are_moved_all_at_once() {
    let model = UnitConfig::default();
    for spare in 0..4 {
        let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
        // The frames of every unit, two domains of two tables each, three context tables.
        let frames = 4 + 4 + 3 + spare;
        let mut unit = Unit::prepare(
            machine.registers(0),
            machine.memory(),
            machine.clock(),
            range(window(0), model.window_length().into()),
            range(0x4000_0000, frames * 0x1000),
            config(&UnitConfig::default()),
        )
        .unwrap();
        for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
            unit.create_domain(domain).unwrap();
            let mapped = unit.map(domain, base, range(base, PART), Access::READ_WRITE);
            unit.flush(mapped.unwrap()).unwrap();
        }
        unit.enable().unwrap();
        let devices = devices(12);
        unit.move_devices(&devices, Some(A), Pending::none())
            .unwrap();
        for to in [Some(B), Some(A)] {
            let prepared = unit.prepare_move(&devices, to).unwrap();
            assert_eq!(prepared.method(), MoveMethod::Global, "{spare}");
            let moving = unit.start_prepared(prepared, Pending::none()).unwrap();
            assert_eq!(unit.finish_move(moving), Ok(MoveMethod::Global));
            for device in &devices {
                assert_eq!(unit.domain_of(*device), to);
            }
        }
        machine.audit();
        machine.assert_no_violations();
    }
}

/// What can go wrong, and whether the unit works again when that is over.
fn injections(step: u64) -> [(Injection, bool); 3] {
    [
        (Injection::GoneAfter(step), false),
        (Injection::StuckQueueAfter(step), true),
        (Injection::StuckCommand(SRTP), true),
    ]
}

#[test]
fn a_switch_that_fails_anywhere_leaves_each_device_old_blocked_or_new() {
    for model in [
        UnitConfig::default(),
        UnitConfig {
            srtp_invalidates: true,
            write_buffer: true,
            coherent: false,
            ..UnitConfig::default()
        },
    ] {
        for step in 0..60 {
            for (injection, works_again) in injections(step) {
                let devices = devices(12);
                let mut rig = with_devices(Schedule::Lazy, &model, &devices);
                rig.attach(STAYS, A);
                let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
                rig.machine.inject(0, injection);
                let result = rig.units[0]
                    .start_prepared(prepared, Pending::none())
                    .and_then(|moving| rig.units[0].finish_move(moving));
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
                    rig.all_in(&devices, Some(B));
                    continue;
                }
                // The unit may use either root table now, and neither lets a device reach anything
                // but what it did, or nothing.
                for &device in &devices {
                    assert!(matches!(rig.write(device, A_BASE), Ok(A_BASE) | Err(_)));
                    assert!(rig.units[0].attach(device, B).is_err(), "not reusable");
                }
                assert!(rig.units[0].destroy_domain(A).is_err());
                assert!(rig.units[0].destroy_domain(B).is_err());
                rig.units[0].invalidate_everything().unwrap();
                rig.all_in(&devices, None);
                assert_eq!(rig.write(STAYS, A_BASE), Ok(A_BASE));
                rig.machine.release(B_BASE, PART, &[]);
                rig.machine.release(A_BASE, PART, &[STAYS.0]);
                rig.units[0].destroy_domain(B).unwrap();
                for &device in &devices {
                    rig.attach(device, A);
                }
                rig.all_in(&devices, Some(A));
                if works_again {
                    rig.sound();
                }
            }
        }
    }
}

#[test]
fn a_device_is_not_taken_for_blocked_while_the_unit_may_use_the_old_root_table() {
    let devices = devices(12);
    let mut rig = with_devices(Schedule::Lazy, &UnitConfig::default(), &devices);
    rig.attach(STAYS, A);
    assert_eq!(rig.write(STAYS, A_BASE), Ok(A_BASE));
    let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
    rig.machine.inject(0, Injection::StuckCommand(SRTP));
    rig.units[0]
        .start_prepared(prepared, Pending::none())
        .unwrap_err();
    // The devices of the move are blocked in the table that the unit uses.
    let (root, _) = rig.machine.latched(0);
    for device in &devices {
        let bus = rig
            .machine
            .peek(root.unwrap() + u64::from(device.0 >> 8) * 16);
        let entry = (bus & !0xfff) + u64::from(device.0 & 0xff) * 16;
        assert_eq!(rig.machine.peek(entry) & 1, 0, "{device}");
    }
    // The entry that is cleared is one of the new table's; the unit has not said that it uses it.
    let blocked = rig.units[0].block(STAYS);
    rig.units[0].flush(blocked).unwrap_err();
    // Nor is the next steward told so.
    rig.units[0].record().unwrap_err();
    rig.machine.inject(0, Injection::Nothing);
    rig.units[0].invalidate_everything().unwrap();
    assert!(rig.write(STAYS, A_BASE).is_err());
    rig.all_in(&devices, None);
    rig.machine.release(A_BASE, PART, &[]);
    rig.sound();
}

#[test]
fn a_unit_is_adopted_after_a_switch_that_failed() {
    let model = UnitConfig::default();
    let devices = devices(12);
    let mut rig = with_devices(Schedule::Lazy, &model, &devices);
    let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
    rig.machine.inject(0, Injection::StuckCommand(SRTP));
    rig.units[0]
        .start_prepared(prepared, Pending::none())
        .unwrap_err();
    rig.machine.inject(0, Injection::Nothing);
    let state = rig.units[0].record().unwrap();
    assert_eq!(rig.machine.latched(0).0, Some(state.root_table_address));
    drop(rig.units.pop().unwrap().into_parts());
    let unit = adopt(&rig.machine, 0, &model, &state, |_| true).unwrap();
    rig.units.push(unit);
    rig.all_in(&devices, None);
    rig.machine.release(A_BASE, PART, &[]);
    rig.sound();
}

#[test]
fn a_write_in_flight_lands_before_a_unit_that_was_on_is_brought_up() {
    for srtp_invalidates in [false, true] {
        let model = UnitConfig {
            srtp_invalidates,
            ..UnitConfig::default()
        };
        let devices = devices(2);
        let mut rig = with_devices(Schedule::Lazy, &model, &devices);
        rig.machine
            .dma_post(0, devices[0].0, A_BASE, b"in time!")
            .unwrap();
        rig.units[0].enable().unwrap();
        assert!(rig.machine.land(0).is_empty());
        rig.sound();
    }
}

#[test]
fn a_unit_is_adopted_after_a_switch() {
    let model = UnitConfig::default();
    let devices = devices(12);
    let mut rig = with_devices(Schedule::Lazy, &model, &devices);
    rig.switch(&devices, Some(B));
    let state = rig.units[0].record().unwrap();
    drop(rig.units.pop().unwrap().into_parts());
    let unit = adopt(&rig.machine, 0, &model, &state, |_| true).unwrap();
    rig.units.push(unit);
    rig.all_in(&devices, Some(B));
    rig.switch(&devices, Some(A));
    rig.all_in(&devices, Some(A));
    rig.sound();
}
