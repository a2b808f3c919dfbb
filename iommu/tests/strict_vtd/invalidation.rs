//! What the caches still know, and when it is forgotten.

use handoff_abi::DomainId;
use iommu::Access;
use iommu::vtd::{InvalidateError, Pending};
use iommu_model::{Event, Injection, Invalidation, Reason, Schedule, UnitConfig};

use crate::rig::*;

#[test]
fn what_is_unmapped_is_out_of_reach_after_the_flush_and_not_before() {
    for model in models() {
        for schedule in schedules(3) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            rig.attach(DEVICE, A);
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            let pending = rig.units[0].unmap(A, A_BASE, PART).unwrap();
            // The control: without the invalidation the model does still let it through.
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            rig.flush(pending);
            assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::NoWrite));
            rig.machine.release(A_BASE, PART, &[]);
            rig.sound();
        }
    }
}

#[test]
fn a_blocked_device_is_out_of_reach_after_the_flush_and_not_before() {
    for model in models() {
        for schedule in schedules(3) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            rig.attach(DEVICE, A);
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            let pending = rig.units[0].block(DEVICE);
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            assert_eq!(rig.units[0].domain_of(DEVICE), None);
            rig.flush(pending);
            assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::ContextNotPresent));
            rig.machine.release(A_BASE, PART, &[]);
            rig.attach(DEVICE, B);
            assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
            assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::NoWrite));
            rig.sound();
        }
    }
}

#[test]
fn unlinked_tables_are_reused_only_after_the_flush() {
    for schedule in schedules(3) {
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        rig.attach(DEVICE, A);
        // A page of its own, below tables of its own.
        let at = 0x20_0000_1000;
        let free = rig.units[0].free_frames();
        let pending = rig.units[0].map(A, at, range(0x3_0000_0000, 0x1000), Access::READ_WRITE);
        rig.flush(pending.unwrap());
        let used = free - rig.units[0].free_frames();
        assert_eq!(used, 2);
        assert_eq!(rig.write(DEVICE, at), Ok(0x3_0000_0000));
        let pending = rig.units[0].unmap(A, at, 0x1000).unwrap();
        assert_eq!(rig.units[0].free_frames(), free - used, "still in use");
        // What is mapped meanwhile takes other frames.
        let other = 0x21_0000_1000;
        let second = rig.units[0].map(B, other, range(0x4_0000_0000, 0x1000), Access::READ);
        assert_eq!(rig.write(DEVICE, at), Ok(0x3_0000_0000));
        rig.flush(pending);
        rig.flush(second.unwrap());
        assert_eq!(
            rig.units[0].free_frames(),
            free - 2,
            "only the second mapping's"
        );
        assert_eq!(rig.write(DEVICE, at), Err(Reason::NoWrite));
        rig.sound();
    }
}

#[test]
fn a_lost_pending_is_made_up_for_by_invalidating_everything() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let at = 0x20_0000_1000;
    let free = rig.units[0].free_frames();
    let pending = rig.units[0].map(A, at, range(0x3_0000_0000, 0x1000), Access::READ_WRITE);
    rig.flush(pending.unwrap());
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    drop(rig.units[0].block(DEVICE));
    drop(rig.units[0].unmap(A, at, 0x1000).unwrap());
    assert!(rig.units[0].attach(DEVICE, B).is_err());
    rig.units[0].invalidate_everything().unwrap();
    assert_eq!(rig.units[0].free_frames(), free);
    assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::ContextNotPresent));
    rig.attach(DEVICE, B);
    assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
    rig.sound();
}

#[test]
fn an_early_batch_does_not_prove_a_later_retirement() {
    // A batch is submitted; only then the device is blocked; its wait must not free the entry.
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.attach(OTHER, A);
    let early = rig.units[0].block(OTHER);
    let submitted = rig.units[0].submit(early).unwrap();
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    let late = rig.units[0].block(DEVICE);
    rig.units[0].wait(submitted).unwrap();
    match rig.units[0].attach(DEVICE, B) {
        // The driver made up for it by itself.
        Ok(pending) => {
            rig.flush(pending);
            rig.flush(late);
        }
        Err(_) => {
            rig.flush(late);
            rig.attach(DEVICE, B);
        }
    }
    assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
    assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::NoWrite));
    rig.sound();

    // The same with so many that the batch keeps no note of each.
    let mut rig = Rig::one();
    let devices: Vec<_> = (0..20)
        .map(|i| handoff_abi::RequesterId(0x500 + i))
        .collect();
    for &device in &devices {
        rig.attach(device, A);
    }
    rig.attach(DEVICE, A);
    let mut early = Pending::none();
    for &device in &devices {
        early = early.merge(rig.units[0].block(device));
    }
    let submitted = rig.units[0].submit(early).unwrap();
    let late = rig.units[0].block(DEVICE);
    rig.units[0].wait(submitted).unwrap();
    let again = rig.units[0].attach(devices[3], B).unwrap();
    rig.flush(again);
    if let Ok(pending) = rig.units[0].attach(DEVICE, B) {
        rig.flush(pending);
    }
    rig.flush(late);
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.sound();
}

#[test]
fn every_batch_has_context_before_iotlb_and_drains() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let at = rig.machine.dma_post(0, DEVICE.0, A_BASE, b"late").unwrap();
    assert_eq!(at, A_BASE);
    assert!(!rig.machine.take_events().is_empty());
    let pending = rig.units[0].block(DEVICE);
    rig.flush(pending);
    let kinds: Vec<_> = rig
        .machine
        .take_events()
        .into_iter()
        .filter_map(|e| match e {
            Event::Invalidated { kind, .. } => Some(kind),
            _ => None,
        })
        .collect();
    assert_eq!(
        kinds,
        [
            Invalidation::ContextDevice {
                did: A.0,
                sid: DEVICE.0,
                mask: 0
            },
            Invalidation::IotlbDomain { did: A.0 }
        ]
    );
    rig.machine.release(A_BASE, PART, &[]);
    assert_eq!(rig.machine.peek_bytes(A_BASE, 4), b"late");
    rig.sound();
}

#[test]
fn caching_mode_is_told_of_everything_that_appears() {
    let model = UnitConfig {
        caching_mode: true,
        ..UnitConfig::default()
    };
    for schedule in schedules(6) {
        let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
        assert!(rig.write(DEVICE, A_BASE).is_err());
        rig.attach(DEVICE, A);
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        let at = 0x3_0000_0000;
        assert!(rig.write(DEVICE, at).is_err());
        let pending = rig.units[0].map(A, at, range(at, 0x1000), Access::READ_WRITE);
        rig.flush(pending.unwrap());
        assert_eq!(rig.write(DEVICE, at), Ok(at));
        let moved = rig.units[0].move_devices(&[DEVICE], Some(B), Pending::none());
        moved.unwrap();
        assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
        assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::NoWrite));
        let blocked = rig.units[0].block(DEVICE);
        rig.flush(blocked);
        assert!(rig.write(DEVICE, B_BASE).is_err());
        rig.attach(DEVICE, B);
        assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
        let many: Vec<_> = (0..30)
            .map(|i| handoff_abi::RequesterId(0x700 + i))
            .collect();
        for &device in &many {
            assert!(rig.write(device, A_BASE).is_err());
        }
        rig.units[0]
            .move_devices(&many, Some(A), Pending::none())
            .unwrap();
        for &device in &many {
            assert_eq!(rig.write(device, A_BASE), Ok(A_BASE));
        }
        rig.sound();
    }
}

#[test]
fn the_queue_wraps_many_times() {
    for model in [
        UnitConfig::default(),
        UnitConfig {
            coherent: false,
            ..UnitConfig::default()
        },
    ] {
        for schedule in schedules(2) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            for round in 0..400 {
                let domain = if round % 2 == 0 { A } else { B };
                rig.attach(DEVICE, domain);
                let base = if round % 2 == 0 { A_BASE } else { B_BASE };
                assert_eq!(rig.write(DEVICE, base), Ok(base));
                let pending = rig.units[0].block(DEVICE);
                rig.flush(pending);
            }
            rig.sound();
        }
    }
}

#[test]
fn more_batches_than_the_queue_holds_wait_for_room() {
    let mut rig = Rig::one();
    let mut waiting = Vec::new();
    for i in 0..300 {
        let device = handoff_abi::RequesterId(0x600 + i % 200);
        let pending = match rig.units[0].domain_of(device) {
            None => match rig.units[0].attach(device, A) {
                Ok(pending) => pending,
                Err(_) => continue,
            },
            Some(_) => rig.units[0].block(device),
        };
        waiting.push(rig.units[0].submit(pending).unwrap());
        let domain = rig.units[0].block(handoff_abi::RequesterId(0x600));
        waiting.push(rig.units[0].submit(domain).unwrap());
    }
    for submitted in waiting {
        rig.units[0].wait(submitted).unwrap();
    }
    rig.sound();
}

#[test]
fn a_full_queue_that_stands_still_ends_in_an_error() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.machine.inject(0, Injection::StuckQueue);
    let mut failed = false;
    for _ in 0..200 {
        let pending = rig.units[0].unmap(A, A_BASE, PART);
        let mapped = rig.units[0].map(A, A_BASE, range(A_BASE, PART), Access::READ);
        let Ok(pending) = pending else { continue };
        drop(mapped);
        if let Err(error) = rig.units[0].submit(pending) {
            assert!(matches!(error, InvalidateError::Register(_)), "{error:?}");
            failed = true;
            break;
        }
    }
    assert!(failed);
    rig.machine.inject(0, Injection::Nothing);
    rig.units[0].invalidate_everything().unwrap();
    rig.sound();
}

#[test]
fn errors_of_the_queue_are_repaired_and_the_batch_is_done_all_the_same() {
    let injections = [
        Injection::QueueErrors(1),
        Injection::QueueErrors(2),
        Injection::TimeOuts(1),
        Injection::TimeOuts(2),
        Injection::CompletionErrors(1),
    ];
    for injection in injections {
        for schedule in schedules(4) {
            for coherent in [true, false] {
                let model = UnitConfig {
                    coherent,
                    ..UnitConfig::default()
                };
                let mut rig = Rig::up(schedule, &[model]);
                rig.attach(DEVICE, A);
                assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
                let pending = rig.units[0].block(DEVICE);
                rig.machine.inject(0, injection);
                rig.flush(pending);
                assert!(rig.write(DEVICE, A_BASE).is_err(), "{injection:?}");
                rig.machine.release(A_BASE, PART, &[]);
                rig.attach(DEVICE, B);
                assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
                rig.sound();
            }
        }
    }
}

#[test]
fn errors_without_end_are_an_error_and_the_device_stays_blocked() {
    for injection in [
        Injection::QueueErrors(1000),
        Injection::TimeOuts(1000),
        Injection::LostWaits(1000),
        Injection::StuckQueue,
    ] {
        let mut rig = Rig::one();
        rig.attach(DEVICE, A);
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        let pending = rig.units[0].block(DEVICE);
        rig.machine.inject(0, injection);
        let before = rig.machine.now();
        rig.units[0].flush(pending).unwrap_err();
        assert!(rig.machine.now() - before < 1_000_000, "{injection:?}");
        assert_eq!(rig.units[0].domain_of(DEVICE), None);
        assert!(rig.units[0].attach(DEVICE, B).is_err(), "not reusable");
        assert!(rig.units[0].destroy_domain(A).is_err());
        rig.machine.inject(0, Injection::Nothing);
        rig.units[0].invalidate_everything().unwrap();
        assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::ContextNotPresent));
        rig.attach(DEVICE, B);
        assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
        rig.sound();
    }
}

#[test]
fn a_fault_handler_can_make_the_queue_run_again() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    assert!(!rig.units[0].recover_queue().unwrap());
    let pending = rig.units[0].block(DEVICE);
    rig.machine.inject(0, Injection::QueueErrors(1));
    let submitted = rig.units[0].submit(pending).unwrap();
    // The unit gets to it while software looks elsewhere.
    for _ in 0..20 {
        let _ = rig.units[0].domain_of(DEVICE);
    }
    assert!(rig.units[0].recover_queue().unwrap());
    rig.units[0].wait(submitted).unwrap();
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.attach(DEVICE, B);
    rig.sound();
}

#[test]
fn changes_of_two_units_are_not_mixed() {
    let model = UnitConfig::default();
    let mut rig = Rig::up(Schedule::Lazy, &[model.clone(), model]);
    let first = rig.units[0].attach(DEVICE, A).unwrap();
    let second = rig.units[1].attach(DEVICE, A).unwrap();
    let error = rig.units[1].flush(first.clone()).unwrap_err();
    assert_eq!(error, InvalidateError::ForeignUnit);
    let error = rig.units[0].flush(first.merge(second)).unwrap_err();
    assert_eq!(error, InvalidateError::ForeignUnit);
}

#[test]
fn a_destroyed_domain_leaves_nothing_behind_in_its_id() {
    for caching_mode in [false, true] {
        let model = UnitConfig {
            caching_mode,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        let id = DomainId(5);
        for round in 0..3 {
            let unit = &mut rig.units[0];
            unit.create_domain(id).unwrap();
            let base = 0x10_0000_0000 + round * 0x100_0000;
            let pending = unit.map(id, 0x1000, range(base, 0x1000), Access::READ_WRITE);
            unit.flush(pending.unwrap()).unwrap();
            let pending = unit.attach(DEVICE, id).unwrap();
            unit.flush(pending).unwrap();
            assert_eq!(rig.write(DEVICE, 0x1000), Ok(base));
            let pending = rig.units[0].block(DEVICE);
            rig.flush(pending);
            rig.units[0].destroy_domain(id).unwrap();
            rig.machine.release(base, 0x1000, &[]);
        }
        rig.sound();
    }
}

#[test]
fn an_old_batch_does_not_prove_a_retirement_of_the_same_device_begun_after_it() {
    for schedule in schedules(4) {
        // A device.
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        rig.attach(DEVICE, A);
        let pending = rig.units[0].block(DEVICE);
        let old = rig.units[0].submit(pending).unwrap();
        rig.units[0].invalidate_everything().unwrap();
        rig.attach(DEVICE, A);
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        let pending = rig.units[0].block(DEVICE);
        rig.units[0].wait(old).unwrap();
        if let Ok(attached) = rig.units[0].attach(DEVICE, B) {
            rig.flush(attached);
            assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::NoWrite));
        }
        rig.flush(pending);
        rig.sound();

        // The same, in a move.
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        rig.attach(DEVICE, A);
        let devices = [DEVICE];
        let moving = rig.units[0]
            .start_move(&devices, Some(B), Pending::none())
            .unwrap();
        rig.units[0].invalidate_everything().unwrap();
        rig.attach(DEVICE, A);
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        let pending = rig.units[0].block(DEVICE);
        if rig.units[0].finish_move(moving).is_ok() {
            assert_eq!(rig.write(DEVICE, A_BASE), Err(Reason::NoWrite));
        }
        rig.flush(pending);
        rig.sound();

        // An interrupt entry.
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        let (handle, pending) = rig.units[0]
            .allocate_interrupt(DEVICE, target(1, 0x40))
            .unwrap();
        rig.flush(pending);
        let pending = rig.units[0].clear_interrupt(handle).unwrap();
        let old = rig.units[0].submit(pending).unwrap();
        rig.units[0].invalidate_everything().unwrap();
        let mut again = None;
        // Handles are given out in turn; go round until this one is.
        let mut all = Pending::none();
        while again != Some(handle) {
            let (next, pending) = rig.units[0]
                .allocate_interrupt(DEVICE, target(1, 0x41))
                .unwrap();
            all = all.merge(pending);
            again = Some(next);
        }
        rig.flush(all);
        let message = handle.message();
        let send = |rig: &Rig, sid: u16| {
            let got = rig.machine.msi(0, sid, message.address.0, message.data);
            matches!(got, iommu_model::Interrupt::Delivered { .. })
        };
        assert!(send(&rig, DEVICE.0));
        let pending = rig.units[0].clear_interrupt(handle).unwrap();
        rig.units[0].wait(old).unwrap();
        if let Ok((next, pending)) = rig.units[0].allocate_interrupt(OTHER, target(2, 0x42)) {
            rig.flush(pending);
            assert!(
                next != handle || !send(&rig, DEVICE.0),
                "the old source still passes"
            );
        }
        rig.flush(pending);
        rig.sound();
    }
}

#[test]
fn an_earlier_batch_does_not_free_the_tables_unlinked_after_it() {
    for schedule in schedules(2) {
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        rig.attach(DEVICE, A);
        rig.attach(OTHER, A);
        let at = 0x20_0000_1000;
        let memory = range(0x3_0000_0000, 0x1000);
        let pending = rig.units[0].map(A, at, memory, Access::READ_WRITE);
        rig.flush(pending.unwrap());
        // A batch that invalidates the domain, and only then the unmapping.
        let pending = rig.units[0].block(OTHER);
        let earlier = rig.units[0].submit(pending).unwrap();
        assert_eq!(rig.write(DEVICE, at), Ok(0x3_0000_0000));
        let free = rig.units[0].free_frames();
        let pending = rig.units[0].unmap(A, at, 0x1000).unwrap();
        rig.units[0].wait(earlier).unwrap();
        let unlinked = rig.units[0].free_frames();
        // Frames that are given out now hold tables of another domain.
        let other = 0x21_0000_1000;
        let mapped = rig.units[0].map(B, other, range(0x4_0000_0000, 0x1000), Access::READ);
        rig.flush(mapped.unwrap());
        assert_eq!(unlinked, free, "freed although the unit may still use them");
        rig.flush(pending);
        assert_eq!(rig.units[0].free_frames(), free, "two freed, two in use");
        assert_eq!(rig.write(DEVICE, at), Err(Reason::NoWrite));
        rig.sound();
    }
}
