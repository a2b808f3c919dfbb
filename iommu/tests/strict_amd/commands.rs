//! What is invalidated, in which order, and what happens when the unit does not do it.

use handoff_abi::{DomainId, RequesterId};
use iommu::Access;
use iommu::amd::{InvalidateError, Pending};
use iommu_model::amd::{Event, Injection, Invalidation, Schedule, UnitConfig};

use crate::rig::*;

fn invalidations(rig: &Rig) -> Vec<Invalidation> {
    rig.machine
        .take_events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Invalidated { kind, .. } => Some(kind),
            _ => None,
        })
        .collect()
}

const fn pages(did: u16) -> Invalidation {
    Invalidation::Pages {
        did,
        address: 0,
        shift: 64,
        directories: true,
    }
}

#[test]
fn entries_are_invalidated_before_pages_whatever_order_the_unit_likes() {
    for schedule in schedules(8) {
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        for device in [DEVICE, OTHER] {
            rig.attach(device, A);
            rig.machine.attack(0, device.0, A_BASE);
        }
        drop(invalidations(&rig));
        let blocked = rig.units[0].block(DEVICE).merge(rig.units[0].block(OTHER));
        rig.flush(blocked);
        let order = invalidations(&rig);
        let last_entry = order
            .iter()
            .rposition(|kind| matches!(kind, Invalidation::Entry { .. }));
        let first_page = order.iter().position(|kind| *kind == pages(A.0));
        assert!(last_entry < first_page, "{order:?}");
        drop(rig.machine.take_attacks());
        for device in [DEVICE, OTHER] {
            assert!(rig.write(device, A_BASE).is_err());
            assert_eq!(rig.machine.reach(0, device.0), []);
        }
        rig.sound();
    }
}

#[test]
fn a_change_counts_when_it_was_flushed_and_not_before() {
    let mut rig = Rig::one();
    let attached = rig.units[0].attach(DEVICE, A).unwrap();
    // The control: an entry that denies is cached.
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.flush(attached);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    let unmapped = rig.units[0].unmap(A, A_BASE, PART).unwrap();
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE), "control: cached");
    rig.flush(unmapped);
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.machine.release(A_BASE, PART, &[]);
    rig.sound();
}

#[test]
fn a_unit_that_caches_what_is_not_present_is_told_of_mappings() {
    for caches_not_present in [false, true] {
        let model = UnitConfig {
            caches_not_present,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        let at = 0x3_0000_0000;
        rig.machine.watch(0, DEVICE.0, at);
        assert!(rig.write(DEVICE, at).is_err());
        drop(invalidations(&rig));
        let mapped = rig.units[0].map(A, at, range(at, 0x1000), Access::READ_WRITE);
        rig.flush(mapped.unwrap());
        assert_eq!(rig.write(DEVICE, at), Ok(at));
        assert_eq!(invalidations(&rig) == [pages(A.0)], caches_not_present);
        rig.sound();
    }
}

#[test]
fn a_flush_is_one_write_to_one_register_and_one_wait() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.attach(OTHER, B);
    let before = rig.machine.counters(0);
    let blocked = rig.units[0].block(DEVICE).merge(rig.units[0].block(OTHER));
    rig.flush(blocked);
    let cost = rig.machine.counters(0) - before;
    assert_eq!((cost.mmio_writes, cost.mmio_reads), (1, 0));
    assert_eq!((cost.tail_writes, cost.waits, cost.barriers), (1, 1, 1));
    assert_eq!((cost.entry_commands, cost.page_commands), (2, 2));
    // Nothing to do is nothing done.
    let before = rig.machine.counters(0);
    rig.flush(Pending::none());
    assert_eq!(rig.machine.counters(0) - before, Default::default());
    rig.sound();
}

#[test]
fn without_a_command_for_all_the_unit_is_told_one_by_one() {
    let model = UnitConfig {
        invalidate_all: false,
        ..UnitConfig::default()
    };
    let mut rig = Rig::up(Schedule::Eager, &[model]);
    let counters = rig.machine.counters(0);
    assert!(counters.entry_commands >= 65536);
    assert!(counters.interrupt_commands >= 65536);
    assert!(counters.page_commands >= 65536);
    assert_eq!(counters.all_commands, 0);
    // Later only what can be in the caches: one bus has devices.
    rig.attach(DEVICE, A);
    let before = rig.machine.counters(0);
    rig.units[0].invalidate_everything().unwrap();
    let cost = rig.machine.counters(0) - before;
    assert_eq!((cost.entry_commands, cost.interrupt_commands), (256, 256));
    assert_eq!(cost.page_commands, 2);
    // Many devices are a longer loop, not one over all.
    let devices: Vec<_> = (0x300..0x314).map(RequesterId).collect();
    let before = rig.machine.counters(0);
    rig.units[0]
        .move_devices(&devices, Some(B), Pending::none())
        .unwrap();
    let cost = rig.machine.counters(0) - before;
    assert_eq!((cost.entry_commands, cost.page_commands), (20, 0));
    for device in devices {
        assert_eq!(rig.write(device, B_BASE), Ok(B_BASE));
    }
    rig.sound();
}

#[test]
fn the_buffer_wraps_and_is_never_overrun() {
    for schedule in schedules(3) {
        let mut rig = Rig::up(schedule, &[UnitConfig::default()]);
        for round in 0..300 {
            let attached = rig.units[0].attach(DEVICE, A).unwrap();
            rig.flush(attached);
            if round % 20 == 0 {
                assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            }
            let blocked = rig.units[0].block(DEVICE);
            rig.flush(blocked);
        }
        // Without waiting for any, until there is no more room.
        let mut submitted = Vec::new();
        for device in 0..400 {
            let attached = rig.units[0].attach(RequesterId(0x500 + device), A).unwrap();
            submitted.push(rig.units[0].submit(attached).unwrap());
        }
        for one in submitted {
            rig.units[0].wait(one).unwrap();
        }
        assert_eq!(rig.write(RequesterId(0x500 + 399), A_BASE), Ok(A_BASE));
        rig.sound();
    }
}

#[test]
fn a_command_taken_for_illegal_is_given_again() {
    for injection in [
        Injection::IllegalCommands(1),
        Injection::IllegalCommands(2),
        Injection::CommandHardwareErrors(1),
    ] {
        let mut rig = Rig::one();
        rig.attach(DEVICE, A);
        rig.machine.inject(0, injection);
        let blocked = rig.units[0].block(DEVICE);
        rig.flush(blocked);
        assert!(rig.write(DEVICE, A_BASE).is_err());
        rig.machine.release(A_BASE, PART, &[]);
        rig.attach(DEVICE, B);
        assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
        rig.sound();
    }
}

#[test]
fn an_error_in_one_batch_makes_no_other_count_for_done() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.attach(OTHER, A);
    rig.machine.inject(0, Injection::IllegalCommands(1));
    let first = rig.units[0].block(DEVICE);
    let first = rig.units[0].submit(first).unwrap();
    let second = rig.units[0].block(OTHER);
    let second = rig.units[0].submit(second).unwrap();
    rig.units[0].wait(second).unwrap();
    assert!(rig.write(OTHER, A_BASE).is_err());
    rig.units[0].wait(first).unwrap();
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.machine.release(A_BASE, PART, &[]);
    rig.sound();
}

#[test]
fn commands_that_are_always_illegal_are_refused_and_the_device_stays_blocked() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.machine.inject(0, Injection::IllegalCommands(1000));
    let blocked = rig.units[0].block(DEVICE);
    let error = rig.units[0].flush(blocked).unwrap_err();
    assert!(
        matches!(error, InvalidateError::Refused { .. }),
        "{error:?}"
    );
    assert_eq!(rig.units[0].domain_of(DEVICE), None);
    assert!(rig.units[0].attach(DEVICE, B).is_err(), "not flushed");
    rig.machine.inject(0, Injection::Nothing);
    assert_eq!(rig.units[0].recover_queue(), Ok(false), "it runs");
    rig.units[0].invalidate_everything().unwrap();
    rig.attach(DEVICE, B);
    assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
    rig.sound();
}

#[test]
fn a_handler_that_finds_the_buffer_stopped_makes_it_run_again() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.machine.inject(0, Injection::IllegalCommands(1));
    let blocked = rig.units[0].block(DEVICE);
    let submitted = rig.units[0].submit(blocked).unwrap();
    while rig.machine.status(0) & 1 << 4 != 0 {
        let _ = rig.units[0].drain_faults(|_| ());
    }
    assert_eq!(rig.units[0].recover_queue(), Ok(true));
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.units[0].wait(submitted).unwrap();
    rig.attach(DEVICE, B);
    assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
    rig.sound();
}

#[test]
fn a_wait_that_never_comes_has_a_deadline_and_nothing_is_reused() {
    for injection in [Injection::StuckCommands, Injection::LostWaits(1)] {
        let mut rig = Rig::one();
        rig.attach(DEVICE, A);
        rig.machine.inject(0, injection);
        let unmapped = rig.units[0].unmap(A, A_BASE, PART).unwrap();
        let blocked = rig.units[0].block(DEVICE);
        let before = rig.machine.now();
        let error = rig.units[0].flush(unmapped.merge(blocked)).unwrap_err();
        assert!(matches!(error, InvalidateError::Register(_)), "{error:?}");
        assert!(rig.machine.now() - before < 1_000_000);
        assert!(rig.units[0].attach(DEVICE, B).is_err());
        assert!(rig.units[0].destroy_domain(A).is_err());
        rig.machine.inject(0, Injection::Nothing);
        rig.units[0].invalidate_everything().unwrap();
        rig.units[0].destroy_domain(A).unwrap();
        rig.machine.release(A_BASE, PART, &[]);
        rig.attach(DEVICE, B);
        assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
        rig.sound();
    }
}

#[test]
fn a_buffer_that_filled_up_behind_a_stuck_unit_is_never_overrun() {
    let mut rig = Rig::one();
    rig.machine.inject(0, Injection::StuckCommands);
    let mut failed = 0;
    for device in 0..600 {
        let attached = rig.units[0].attach(RequesterId(0x500 + device), A).unwrap();
        if rig.units[0].submit(attached).is_err() {
            failed += 1;
            if failed == 3 {
                break;
            }
        }
    }
    assert_eq!(failed, 3);
    rig.machine.inject(0, Injection::Nothing);
    rig.units[0].invalidate_everything().unwrap();
    assert_eq!(rig.write(RequesterId(0x500), A_BASE), Ok(A_BASE));
    rig.sound();
}

#[test]
fn a_unit_that_vanishes_is_an_error() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.machine.inject(0, Injection::Gone);
    let blocked = rig.units[0].block(DEVICE);
    assert!(matches!(
        rig.units[0].flush(blocked),
        Err(InvalidateError::Register(_))
    ));
    assert!(rig.units[0].drain_faults(|_| ()).is_err());
    assert!(rig.units[0].record().is_err());
}

#[test]
fn unlinked_tables_are_reused_only_with_proof() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let at = 0x3_0000_1000;
    let mapped = rig.units[0].map(A, at, range(at, 0x1000), Access::READ_WRITE);
    rig.flush(mapped.unwrap());
    let free = rig.units[0].free_frames();
    // Submitted before the tables were unlinked: no proof.
    let early = rig.units[0].map(A, at + 0x1000, range(at, 0x1000), Access::READ);
    let early = early
        .unwrap()
        .merge(rig.units[0].unmap(A, at + 0x1000, 0x1000).unwrap());
    let early = rig.units[0].submit(early).unwrap();
    let unmapped = rig.units[0].unmap(A, at, 0x1000).unwrap();
    rig.units[0].wait(early).unwrap();
    assert_eq!(rig.units[0].free_frames(), free);
    rig.flush(unmapped);
    assert_eq!(rig.units[0].free_frames(), free + 2);
    rig.sound();
}

#[test]
fn changes_of_another_unit_are_refused() {
    let models = [UnitConfig::default(), UnitConfig::default()];
    let mut rig = Rig::up(Schedule::Lazy, &models);
    let pending = rig.units[0].attach(DEVICE, A).unwrap();
    assert_eq!(
        rig.units[1].flush(pending.clone()),
        Err(InvalidateError::ForeignUnit)
    );
    let mixed = rig.units[1].attach(DEVICE, A).unwrap().merge(pending);
    assert_eq!(rig.units[1].flush(mixed), Err(InvalidateError::ForeignUnit));
}

#[test]
fn a_domain_id_is_free_again_when_nothing_of_it_is_cached() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    let blocked = rig.units[0].block(DEVICE);
    rig.flush(blocked);
    rig.units[0].destroy_domain(A).unwrap();
    rig.units[0].create_domain(A).unwrap();
    let memory = range(0x3_0000_0000, 0x1000);
    let mapped = rig.units[0].map(A, A_BASE, memory, Access::READ_WRITE);
    rig.flush(mapped.unwrap());
    rig.attach(DEVICE, A);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(0x3_0000_0000));
    assert_eq!(
        rig.units[0].domain_ids().collect::<Vec<_>>(),
        [B, DomainId(1)]
    );
    rig.sound();
}
