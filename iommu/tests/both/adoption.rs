//! Taking a running unit over, whichever vendor's it is.

use iommu::{Access, AdoptError, Pending, Reach};
use iommu_model::Schedule;

use crate::rig::*;

#[test]
fn everything_that_the_tables_allow_is_put_before_the_caller() {
    let model = UnitConfig::default();
    let (rig, state) = running(Schedule::Lazy, &model);
    let mut seen = Vec::new();
    drop(adopt(&rig.machine, 0, &model, &state, |reach| {
        seen.push(*reach);
        true
    }));
    for (device, domain, base) in [(DEVICE, A, A_BASE), (OTHER, B, B_BASE)] {
        let bytes: u64 = seen
            .iter()
            .map(|reach| match reach {
                Reach::Memory {
                    requester,
                    domain: d,
                    iova,
                    memory,
                    access,
                } if *requester == Some(device) => {
                    assert_eq!((*d, *access), (domain, Access::READ_WRITE));
                    assert!(range(base, PART).contains_range(*memory));
                    assert_eq!(*iova, memory.base().0);
                    memory.length()
                }
                _ => 0,
            })
            .sum();
        assert_eq!(bytes, PART);
    }
    let interrupts = seen.iter().filter(|r| matches!(r, Reach::Interrupt { .. }));
    assert_eq!(interrupts.count(), 2);
    // Each of them can be refused, and then nothing was written.
    for (refused, expected) in seen.iter().enumerate() {
        let (rig, state) = running(Schedule::Lazy, &model);
        let writes = rig.machine.counters(0).mmio_writes;
        let stores = rig.machine.memory_counters().stores;
        let mut count = 0;
        let result = adopt(&rig.machine, 0, &model, &state, |_| {
            count += 1;
            count != refused + 1
        });
        let Err(AdoptError::NotAllowed(reach)) = result else {
            panic!("{result:?}")
        };
        assert_eq!(reach, *expected);
        assert_eq!(rig.machine.counters(0).mmio_writes, writes);
        assert_eq!(rig.machine.memory_counters().stores, stores);
        assert_eq!(
            rig.write(DEVICE, A_BASE),
            Ok(A_BASE),
            "it goes on as it was"
        );
    }
}

#[test]
fn the_queue_is_taken_over_wherever_it_stands() {
    let model = UnitConfig::default();
    for schedule in [Schedule::Lazy, Schedule::Eager, Schedule::Random(7)] {
        let (mut rig, _) = running(schedule, &model);
        // Every time it stands elsewhere; it goes round more than once.
        for rounds in 0..24 {
            for _ in 0..rounds {
                let pending = rig.units[0].block(DEVICE);
                rig.flush(pending);
                rig.attach(DEVICE, A);
            }
            // One batch that nobody waited for.
            let pending = rig.units[0].block(OTHER);
            drop(rig.units[0].submit(pending).unwrap());
            rig.hand_on(&model);
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            assert_eq!(rig.write(OTHER, B_BASE), Err(BLOCKED));
            rig.attach(OTHER, B);
            assert_eq!(rig.write(OTHER, B_BASE), Ok(B_BASE));
        }
        rig.sound();
    }
}

#[test]
fn a_unit_goes_from_steward_to_steward_many_times() {
    let model = UnitConfig {
        coherent: false,
        ..UnitConfig::default()
    };
    let (mut rig, _) = running(Schedule::Lazy, &model);
    for round in 0..70 {
        rig.hand_on(&model);
        let (to, base) = if round % 2 == 0 {
            (B, B_BASE)
        } else {
            (A, A_BASE)
        };
        rig.units[0]
            .move_devices(&[DEVICE], Some(to), Pending::none())
            .unwrap();
        assert_eq!(rig.write(DEVICE, base), Ok(base));
        let interrupts: Vec<_> = rig.units[0].interrupts().collect();
        assert_eq!(interrupts.len(), 2);
        let handle = interrupts[0].handle;
        let pending = rig.units[0].retarget(handle, target(round, 0x50)).unwrap();
        rig.flush(pending);
        let message = handle.message();
        let got = rig
            .machine
            .msi(0, DEVICE.0, message.address.0, message.data);
        assert!(matches!(got, Interrupt::Delivered { destination, .. } if destination == round));
    }
    rig.sound();
}

#[test]
fn free_frames_are_counted_anew() {
    let model = UnitConfig::default();
    let (mut rig, _) = running(Schedule::Lazy, &model);
    let free = rig.units[0].free_frames();
    // A retirement that was begun and never flushed is finished by the takeover.
    let at = 0x20_0000_1000;
    let pending = rig.units[0].map(A, at, range(0x3_0000_0000, 0x1000), Access::READ);
    rig.flush(pending.unwrap());
    drop(rig.units[0].unmap(A, at, 0x1000).unwrap());
    drop(rig.units[0].block(DEVICE));
    rig.hand_on(&model);
    assert_eq!(rig.units[0].free_frames(), free);
    assert_eq!(rig.write(DEVICE, A_BASE), Err(BLOCKED));
    rig.attach(DEVICE, B);
    rig.units[0].destroy_domain(A).unwrap();
    let mut ids: Vec<_> = rig.units[0].domain_ids().collect();
    ids.sort_unstable();
    assert_eq!(ids, [B]);
    rig.sound();
}

#[test]
fn a_unit_that_was_never_enabled_is_not_adopted() {
    let model = UnitConfig::default();
    let mut rig = Rig::prepared(Schedule::Lazy, std::slice::from_ref(&model));
    let state = rig.units[0].record().unwrap();
    let result = adopt(&rig.machine, 0, &model, &state, |_| true);
    assert!(
        matches!(result, Err(AdoptError::Mismatch { .. })),
        "{result:?}"
    );
}

#[test]
fn a_queue_that_stands_still_is_not_taken_over() {
    let model = UnitConfig::default();
    let (rig, state) = running(Schedule::Lazy, &model);
    rig.machine.inject(0, stuck_after(0));
    let result = adopt(&rig.machine, 0, &model, &state, |_| true);
    assert!(
        matches!(
            result,
            Err(AdoptError::Invalidate(_) | AdoptError::Register(_))
        ),
        "{result:?}"
    );
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
}
