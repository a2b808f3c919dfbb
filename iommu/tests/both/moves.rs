//! Moving devices from domain to domain, whichever vendor's unit it is and whichever way.

use handoff_abi::{DomainId, RequesterId};
use iommu::{Access, AttachError, MoveError, MoveMethod, Pending};
use iommu_model::Schedule;
use proptest::prelude::*;

use crate::rig::*;

/// A unit with devices in `A`.
fn in_a(schedule: Schedule, model: &UnitConfig, devices: &[RequesterId]) -> Rig {
    let mut rig = Rig::up(schedule, std::slice::from_ref(model));
    rig.make_move(devices, Some(A), Way::Batch);
    rig.all_in(devices, Some(A));
    rig
}

#[test]
fn devices_move_to_and_fro_whatever_the_unit_is_like() {
    for model in models() {
        for count in [1, 8, 9, 20] {
            let devices = devices(count);
            let mut rig = in_a(Schedule::Lazy, &model, &devices);
            for &way in WAYS {
                for to in [Some(B), Some(A), None, None, Some(A)] {
                    rig.make_move(&devices, to, way);
                    rig.all_in(&devices, to);
                    let foreign = if to == Some(A) { B_BASE } else { A_BASE };
                    rig.machine.release(foreign, PART, &[]);
                }
            }
            rig.units[0].destroy_domain(B).unwrap();
            assert!(rig.units[0].destroy_domain(A).is_err());
            rig.sound();
        }
    }
}

#[test]
fn the_old_tables_stay_as_they_are_until_the_unit_has_forgotten_them() {
    let devices = devices(12);
    let mut rig = in_a(Schedule::Lazy, &UnitConfig::default(), &devices);
    let prepared = rig.units[0].prepare_move(&devices, Some(B)).unwrap();
    let free = rig.units[0].free_frames();
    let moving = rig.units[0]
        .start_prepared(prepared, Pending::none())
        .unwrap();
    // Neither domain can go, and no other switch be prepared.
    assert!(rig.units[0].destroy_domain(A).is_err());
    assert!(rig.units[0].destroy_domain(B).is_err());
    let early = rig.units[0].prepare_move(&devices, Some(A)).unwrap();
    assert_eq!(early.method(), MoveMethod::Global);
    assert_eq!(rig.units[0].free_frames(), free);
    rig.units[0].finish_move(moving).unwrap();
    rig.units[0].destroy_domain(A).unwrap();
    rig.sound();
}

#[test]
fn a_device_that_never_stops_reaches_the_old_domain_then_nothing_then_the_new() {
    for model in models() {
        for schedule in schedules(2) {
            for count in [1, 12] {
                let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
                let devices = devices(count);
                // The same device address leads to both domains' memory.
                for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
                    let memory = range(base, 0x1000);
                    let mapped = rig.units[0].map(domain, 0x5000, memory, Access::READ_WRITE);
                    rig.flush(mapped.unwrap());
                }
                rig.make_move(&devices, Some(A), Way::Batch);
                for device in &devices {
                    rig.machine.attack(0, device.0, 0x5000);
                }
                rig.make_move(&devices, Some(B), Way::Batch);
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
                // Nobody is in the new domain before everybody has left the old one.
                let last_old = attacks.iter().rposition(|a| a.result == Ok(A_BASE));
                let first_new = attacks.iter().position(|a| a.result == Ok(B_BASE));
                assert!(last_old < first_new || first_new.is_none());
                assert_eq!(rig.write(devices[0], 0x5000), Ok(B_BASE));
                rig.machine.release(A_BASE, PART, &[]);
                rig.sound();
            }
        }
    }
}

#[test]
fn what_passed_the_unit_lands_before_the_move_is_done() {
    for &way in WAYS {
        for count in [1, 12] {
            let devices = devices(count);
            let mut rig = in_a(Schedule::Lazy, &UnitConfig::default(), &devices);
            for device in &devices {
                let at = A_BASE + u64::from(device.0) * 8;
                rig.machine.dma_post(0, device.0, at, b"in time!").unwrap();
            }
            rig.make_move(&devices, Some(B), way);
            rig.machine.release(A_BASE, PART, &[]);
            assert!(rig.machine.land(0).is_empty());
            rig.sound();
        }
    }
}

#[test]
fn a_move_that_fails_at_any_step_leaves_each_device_old_blocked_or_new() {
    for &way in WAYS {
        for count in [2, 12] {
            for gone in [false, true] {
                let devices = devices(count);
                let mut rig = in_a(Schedule::Lazy, &UnitConfig::default(), &devices);
                let mut failed = 0;
                // At each thing that software does, until the move is through before it.
                for step in 0.. {
                    assert!(step < 2_000, "it never succeeds");
                    let trouble = if gone {
                        Injection::GoneAfter(step)
                    } else {
                        stuck_after(step)
                    };
                    let begin = |machine: &Machine| machine.inject(0, trouble);
                    let result = rig.try_move(&devices, Some(B), way, Pending::none(), begin);
                    rig.machine.inject(0, Injection::Nothing);
                    let at = format!("{way:?}, {count} devices, step {step}: {result:?}");
                    let found: Vec<_> = devices
                        .iter()
                        .map(|&device| rig.units[0].domain_of(device))
                        .collect();
                    match result {
                        Ok(_) => {
                            assert!(found.iter().all(|&domain| domain == Some(B)), "{at}");
                            rig.all_in(&devices, Some(B));
                            break;
                        }
                        Err(MoveError::Invalidate(_)) => {
                            failed += 1;
                            assert!(found.iter().all(Option::is_none), "{at}");
                            for &device in &devices {
                                // Not before it is proved that the unit has forgotten them.
                                assert!(rig.units[0].attach(device, B).is_err(), "{at}");
                                assert!(rig.write(device, B_BASE).is_err() || way != Way::Batch);
                            }
                        }
                        // In the tables they are where they should be; the unit may go on refusing.
                        Err(MoveError::Install(_)) => {
                            failed += 1;
                            assert!(found.iter().all(|&domain| domain == Some(B)), "{at}");
                            for &device in &devices {
                                assert!(rig.write(device, A_BASE).is_err(), "{at}");
                            }
                        }
                        Err(other) => panic!("{at}: {other:?}"),
                    }
                    // And back.
                    rig.units[0].invalidate_everything().unwrap();
                    for (&device, domain) in devices.iter().zip(found) {
                        assert_eq!(rig.write(device, B_BASE).is_ok(), domain == Some(B), "{at}");
                        assert!(rig.write(device, A_BASE).is_err(), "{at}");
                    }
                    rig.machine.release(A_BASE, PART, &[]);
                    rig.make_move(&devices, Some(A), Way::Batch);
                    rig.all_in(&devices, Some(A));
                }
                assert!(failed > 4, "{failed} failed");
                if !gone {
                    rig.sound();
                }
            }
        }
    }
}

#[test]
fn a_move_that_cannot_be_made_changes_nothing() {
    let nowhere = DomainId(9);
    for &way in WAYS {
        let devices = devices(12);
        let mut rig = in_a(Schedule::Lazy, &UnitConfig::default(), &devices);
        let before = rig.machine.memory_counters().stores;
        let error = rig.try_move(&devices, Some(nowhere), way, Pending::none(), |_| ());
        let expected = MoveError::Attach(AttachError::UnknownDomain(nowhere));
        assert_eq!(error.unwrap_err(), expected);
        assert_eq!(rig.machine.memory_counters().stores, before);
        rig.all_in(&devices, Some(A));
        rig.sound();
    }
}

#[test]
fn a_move_of_devices_that_had_no_domain_or_are_named_twice() {
    for model in models() {
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        let twice = [DEVICE, OTHER, DEVICE];
        // There, where they are already, and out of it.
        for to in [Some(B), Some(B), None] {
            rig.make_move(&twice, to, Way::Batch);
            rig.all_in(&twice, to);
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
        let devices = devices(count);
        let mut rig = in_a(Schedule::Lazy, &UnitConfig::default(), &devices);
        let moving = rig.units[0].start_move(&devices, Some(B), Pending::none());
        drop(moving.unwrap());
        for &device in &devices {
            assert_eq!(rig.units[0].domain_of(device), None);
            assert!(rig.units[0].attach(device, B).is_err());
        }
        rig.units[0].invalidate_everything().unwrap();
        rig.all_in(&devices, None);
        rig.make_move(&devices, Some(B), Way::Batch);
        rig.all_in(&devices, Some(B));
        rig.sound();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Any moves in any way, against a naive account.
    #[test]
    fn any_moves_end_where_they_should(
        steps in prop::collection::vec(
            (0_usize..30, 1_usize..30, 0_u8..3, prop::sample::select(WAYS)),
            1..8,
        ),
        seed in 0_u64..4,
    ) {
        let all = devices(40);
        let schedule = if seed == 0 { Schedule::Lazy } else { Schedule::Random(seed) };
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        let mut account = vec![None; all.len()];
        for (first, count, to, way) in steps {
            let to = [None, Some(A), Some(B)][usize::from(to)];
            let some = first..(first + count).min(all.len());
            rig.make_move(&all[some.clone()], to, way);
            account[some].fill(to);
            for (&device, &domain) in all.iter().zip(&account) {
                rig.all_in(&[device], domain);
            }
        }
        rig.sound();
        for domain in [A, B] {
            let empty = !account.contains(&Some(domain));
            prop_assert_eq!(rig.units[0].destroy_domain(domain).is_ok(), empty);
        }
    }
}
