//! What a writer that died, a proof that is missing and somebody else's store leave of the ledger.

use std::boxed::Box;
use std::string::ToString;
use std::sync::atomic::Ordering::SeqCst;
use std::vec::Vec;

use super::*;
use crate::cpu::Proof;

const PRIME: PartitionId = PartitionId(1);
const NEXT: PartitionId = PartitionId(2);
const THIRD: PartitionId = PartitionId(3);

fn owner(partition: PartitionId) -> Owner {
    Owner::Partition(partition)
}

fn stopped(cpu: u32) -> CpuStopped {
    CpuStopped::new(ApicId(cpu), Proof::Parked)
}

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

fn blank() -> Box<Ledger> {
    Box::new(Ledger {
        magic: Default::default(),
        stewardship: Default::default(),
        used: Default::default(),
        reserved: Default::default(),
        slots: std::array::from_fn(|_| LedgerSlot::default()),
    })
}

fn set_phase(ledger: &Ledger, slot: u16, phase: Phase) {
    let word = &ledger.slots[usize::from(slot)].word;
    let old = LedgerWord::from_wire(word.load(SeqCst)).unwrap();
    word.store(LedgerWord { phase, ..old }.to_wire(), SeqCst);
}

fn owners(view: LedgerView<'_>) -> Vec<(u64, u64, Owner)> {
    let mut all: Vec<_> = view
        .entries()
        .map(|entry| (entry.base, entry.length, entry.word.owner))
        .collect();
    all.sort_by_key(|entry| entry.0);
    all
}

#[test]
fn a_new_ledger_has_nothing_of_what_was_there_before() {
    let ledger = blank();
    {
        let mut old = Steward::format(&ledger, NEXT);
        for cpu in 0..5 {
            old.add(resource::CPU, cpu, 1, owner(NEXT)).unwrap();
        }
        ledger.slots[3].parent.store(7, SeqCst);
    }
    let steward = Steward::format(&ledger, PRIME);
    assert_eq!(steward.partition(), PRIME);
    assert_eq!(steward.view().steward(), PRIME);
    assert_eq!(steward.view().stewardship().epoch, 1);
    assert_eq!(ledger.used.load(SeqCst), 0);
    assert_eq!(steward.view().free_slots(), Ledger::CAPACITY);
    for slot in &ledger.slots {
        assert_eq!(slot.word.load(SeqCst), 0);
        assert_eq!(slot.parent.load(SeqCst), 0);
    }
}

#[test]
fn a_resource_may_begin_where_another_ends_and_end_where_it_begins() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    for (base, length) in [(0x2000, 0x1000), (0x3000, 0x1000), (0x1000, 0x1000)] {
        steward
            .add(resource::MEMORY, base, length, owner(PRIME))
            .unwrap();
    }
    assert_eq!(ledger.used.load(SeqCst), 3);
    assert_eq!(steward.view().free_slots(), Ledger::CAPACITY - 3);
}

#[test]
fn a_resource_is_found_where_one_entry_of_its_kind_holds_all_of_it() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0x2000, 0x1000, owner(PRIME))
        .unwrap();
    let view = steward.view();
    let found = |kind, base, length| view.find(kind, base, length).map(|entry| entry.slot);
    assert_eq!(found(resource::MEMORY, 0x2000, 0x1000), Some(slot));
    assert_eq!(found(resource::MEMORY, 0x2800, 0x800), Some(slot));
    assert_eq!(found(resource::MEMORY, 0x2000, 1), Some(slot));
    assert_eq!(found(resource::MEMORY, 0x1fff, 2), None);
    assert_eq!(found(resource::MEMORY, 0x2000, 0x1001), None);
    assert_eq!(found(resource::CPU, 0x2000, 0x1000), None);
}

#[test]
fn an_entry_says_how_far_its_transfer_has_come_and_whose_it_is() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0, 0x1000, owner(PRIME))
        .unwrap();
    let word = |steward: &Steward<'_>| steward.view().entry(slot).unwrap().word;
    let expect = |owner, next, phase| LedgerWord {
        owner,
        next,
        phase,
        epoch: 1,
    };
    let (prime, next) = (owner(PRIME), owner(NEXT));
    assert_eq!(word(&steward), expect(prime, prime, Phase::Settled));
    steward.intend(slot, next).unwrap();
    assert_eq!(word(&steward), expect(prime, next, Phase::Intent));
    steward.undo(slot).unwrap();
    assert_eq!(word(&steward), expect(prime, prime, Phase::Settled));
    steward.intend(slot, next).unwrap();
    steward.effect(slot).unwrap();
    assert_eq!(word(&steward), expect(prime, next, Phase::Effect));
    steward.complete(slot).unwrap();
    assert_eq!(word(&steward), expect(next, next, Phase::Settled));
}

#[test]
fn a_step_out_of_turn_changes_nothing() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0, 0x1000, owner(PRIME))
        .unwrap();
    let phase = |found| Err(LedgerError::Phase { slot, found });
    assert_eq!(steward.effect(slot), phase(Phase::Settled));
    assert_eq!(steward.complete(slot), phase(Phase::Settled));
    assert_eq!(steward.undo(slot), phase(Phase::Settled));
    steward.intend(slot, owner(NEXT)).unwrap();
    assert_eq!(steward.intend(slot, owner(NEXT)), phase(Phase::Intent));
    assert_eq!(steward.complete(slot), phase(Phase::Intent));
    assert_eq!(
        steward.split(slot, range(0, 0x100)),
        Err(LedgerError::Phase {
            slot,
            found: Phase::Intent
        })
    );
    steward.effect(slot).unwrap();
    assert_eq!(steward.undo(slot), phase(Phase::Effect));
    let beyond = Ledger::CAPACITY as u16;
    assert_eq!(
        steward.intend(beyond, owner(NEXT)),
        Err(LedgerError::Slot(beyond))
    );
    ledger.slots[usize::from(slot)].word.store(0xf, SeqCst);
    assert_eq!(steward.complete(slot), Err(LedgerError::Slot(slot)));
    assert_eq!(steward.view().entry(slot), None);
}

#[test]
fn a_store_of_somebody_else_between_look_and_step_is_noticed() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0, 0x1000, owner(PRIME))
        .unwrap();
    let raced = steward.step(slot, Phase::Settled, |word| {
        set_phase(&ledger, slot, Phase::Effect);
        (word.owner, owner(NEXT), Phase::Intent)
    });
    assert_eq!(raced, Err(LedgerError::Raced { slot }));
    assert_eq!(
        steward.view().entry(slot).unwrap().word.phase,
        Phase::Effect
    );
}

#[test]
fn only_memory_that_an_entry_holds_is_cut_out_of_it() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0x1000, 0x2000, owner(PRIME))
        .unwrap();
    let cpu = steward
        .add(resource::CPU, 0x1000, 0x2000, owner(PRIME))
        .unwrap();
    let outside = Err(LedgerError::OutsideSlot { slot });
    assert_eq!(steward.split(slot, range(0x1000, 0)), outside);
    assert_eq!(steward.split(slot, range(0xfff, 0x10)), outside);
    assert_eq!(steward.split(slot, range(0x2fff, 2)), outside);
    assert_eq!(
        steward.split(cpu, range(0x1000, 0x1000)),
        Err(LedgerError::Slot(cpu))
    );
    assert_eq!(steward.view().entry(cpu).unwrap().range(), None);
    assert_eq!(steward.split(900, range(0, 1)), Err(LedgerError::Slot(900)));
    assert_eq!(steward.split(slot, range(0x1000, 0x2000)), Ok(slot));
    assert_eq!(steward.view().entries().count(), 2);
}

/// A split that is not through: the pieces wait for the slot they come from to say that it was split.
/// That slot is not the first: its number counts from 1 in the pieces.
fn half_split(ledger: &Ledger) -> (u16, [u16; 2]) {
    let mut steward = Steward::format(ledger, PRIME);
    steward.add(resource::CPU, 1, 1, owner(PRIME)).unwrap();
    let whole = steward
        .add(resource::MEMORY, 0x1000, 0x3000, owner(PRIME))
        .unwrap();
    let entry = steward.view().entry(whole).unwrap();
    let (slots, count) = steward
        .write_pieces(&entry, entry.range().unwrap(), range(0x1000, 0x1000))
        .unwrap();
    assert_eq!(count, 2);
    // Before it ends, the processor is nobody's: what is left is memory.
    steward.release(&[0]);
    (whole, [slots[0], slots[1]])
}

#[test]
fn the_pieces_of_a_split_count_from_the_one_store_on_and_the_whole_counts_until_then() {
    let ledger = blank();
    let (whole, pieces) = half_split(&ledger);
    let view = LedgerView::new(&ledger).unwrap();
    assert_eq!(owners(view), [(0x1000, 0x3000, owner(PRIME))]);
    set_phase(&ledger, whole, Phase::Split);
    let both = [
        (0x1000, 0x1000, owner(PRIME)),
        (0x2000, 0x2000, owner(PRIME)),
    ];
    assert_eq!(owners(view), both);
    assert_eq!(
        view.entry(pieces[0]).unwrap().word.phase,
        Phase::Settled,
        "what counts is settled for a reader"
    );
    // The writer had made one of the two stand on its own when it died.
    set_phase(&ledger, pieces[0], Phase::Settled);
    assert_eq!(owners(view), both);
}

#[test]
fn a_survivor_drops_a_split_that_never_counted_and_finishes_one_that_did() {
    for counted in [false, true] {
        let ledger = blank();
        let (whole, pieces) = half_split(&ledger);
        if counted {
            set_phase(&ledger, whole, Phase::Split);
        }
        let view = LedgerView::new(&ledger).unwrap();
        let before = owners(view);
        Steward::seize(&ledger, NEXT, &[]).unwrap();
        assert_eq!(owners(view), before);
        let gone: &[u16] = if counted { &[whole] } else { &pieces };
        for &slot in gone {
            let raw = &ledger.slots[usize::from(slot)];
            assert_eq!(raw.word.load(SeqCst), 0, "slot {slot} is free again");
        }
        for slot in &ledger.slots {
            assert_eq!(slot.parent.load(SeqCst), 0);
        }
    }
}

#[test]
fn a_split_whose_pieces_all_stand_on_their_own_leaves_a_free_slot() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let whole = steward
        .add(resource::MEMORY, 0, 0x3000, owner(PRIME))
        .unwrap();
    let piece = steward.split(whole, range(0x1000, 0x1000)).unwrap();
    for slot in &ledger.slots {
        assert_eq!(slot.parent.load(SeqCst), 0);
    }
    assert_eq!(ledger.slots[usize::from(whole)].word.load(SeqCst), 0);
    assert_eq!(steward.view().entry(whole), None);
    assert_ne!(piece, whole);
    // The slot is the first that is used again.
    assert_eq!(steward.add(resource::CPU, 0, 1, owner(PRIME)), Ok(whole));
}

#[test]
fn memory_is_joined_only_where_it_touches_and_has_one_owner() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let mut add = |kind, base, of| steward.add(kind, base, 0x1000, owner(of)).unwrap();
    add(resource::MEMORY, 0x2000, PRIME);
    add(resource::MEMORY, 0x1000, PRIME);
    add(resource::MEMORY, 0x3000, NEXT);
    let moving = add(resource::MEMORY, 0x4000, NEXT);
    add(resource::MEMORY, 0x8000, PRIME);
    add(resource::FUNCTION, 0x9000, PRIME);
    add(resource::FUNCTION, 0xa000, PRIME);
    steward.intend(moving, owner(PRIME)).unwrap();
    assert_eq!(steward.join(), Ok(1));
    assert_eq!(
        owners(steward.view()),
        [
            (0x1000, 0x2000, owner(PRIME)),
            (0x3000, 0x1000, owner(NEXT)),
            (0x4000, 0x1000, owner(NEXT)),
            (0x8000, 0x1000, owner(PRIME)),
            (0x9000, 0x1000, owner(PRIME)),
            (0xa000, 0x1000, owner(PRIME)),
        ]
    );
    assert_eq!(steward.join(), Ok(0));
}

#[test]
fn a_processor_that_is_proved_stopped_goes_to_its_new_owner_wherever_its_transfer_stood() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let mut slots = Vec::new();
    for cpu in 0..3 {
        slots.push(steward.add(resource::CPU, cpu, 1, owner(NEXT)).unwrap());
    }
    for &slot in &slots[1..] {
        steward.intend(slot, owner(PRIME)).unwrap();
    }
    steward.effect(slots[2]).unwrap();
    for (cpu, &slot) in slots.iter().enumerate() {
        steward
            .release_cpu(stopped(cpu as u32), owner(THIRD))
            .unwrap();
        let word = steward.view().entry(slot).unwrap().word;
        assert_eq!((word.owner, word.phase), (owner(THIRD), Phase::Settled));
    }
    assert_eq!(
        steward.release_cpu(stopped(7), owner(THIRD)),
        Err(LedgerError::CpuRuns(ApicId(7)))
    );
}

#[test]
fn stewardship_is_seized_with_a_proof_for_each_processor_and_not_with_less() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    steward.add(resource::CPU, 4, 1, owner(PRIME)).unwrap();
    steward.add(resource::CPU, 5, 1, owner(PRIME)).unwrap();
    steward.add(resource::CPU, 6, 1, owner(NEXT)).unwrap();
    steward
        .add(resource::MEMORY, 0, 0x1000, owner(PRIME))
        .unwrap();
    let seize = |proofs: &[CpuStopped]| Steward::seize(&ledger, NEXT, proofs).map(drop);
    assert_eq!(seize(&[stopped(5)]), Err(LedgerError::CpuRuns(ApicId(4))));
    assert_eq!(seize(&[stopped(4)]), Err(LedgerError::CpuRuns(ApicId(5))));
    let view = LedgerView::new(&ledger).unwrap();
    assert_eq!((view.steward(), view.stewardship().epoch), (PRIME, 1));
    assert_eq!(seize(&[stopped(5), stopped(4)]), Ok(()));
    assert_eq!((view.steward(), view.stewardship().epoch), (NEXT, 2));
    // Whoever has it already needs no proof of itself.
    assert_eq!(seize(&[]), Ok(()));
    assert_eq!((view.steward(), view.stewardship().epoch), (NEXT, 3));
}

#[test]
fn a_processor_that_the_steward_may_use_already_must_be_proved_stopped_too() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward.add(resource::CPU, 4, 1, owner(THIRD)).unwrap();
    steward.intend(slot, owner(PRIME)).unwrap();
    let seize = |proofs: &[CpuStopped]| Steward::seize(&ledger, NEXT, proofs).map(drop);
    steward.effect(slot).unwrap();
    assert_eq!(seize(&[]), Err(LedgerError::CpuRuns(ApicId(4))));
    assert_eq!(seize(&[stopped(4)]), Ok(()));
}

#[test]
fn a_processor_that_was_only_meant_for_the_steward_needs_no_proof() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward.add(resource::CPU, 4, 1, owner(THIRD)).unwrap();
    steward.intend(slot, owner(PRIME)).unwrap();
    assert!(Steward::seize(&ledger, NEXT, &[]).is_ok());
}

/// Memory of every kind of transfer that the second partition can be part of.
fn transfers(steward: &mut Steward<'_>) -> [u16; 6] {
    let mut add = |base, of| {
        steward
            .add(resource::MEMORY, base, 0x1000, owner(of))
            .unwrap()
    };
    let slots = [
        add(0x1000, NEXT),
        add(0x3000, NEXT),
        add(0x5000, NEXT),
        add(0x7000, THIRD),
        add(0x9000, THIRD),
        add(0xb000, THIRD),
    ];
    let [_, leaves, left, meant, came, _] = slots;
    for (slot, next) in [(leaves, THIRD), (left, THIRD), (meant, NEXT), (came, NEXT)] {
        steward.intend(slot, owner(next)).unwrap();
    }
    steward.effect(left).unwrap();
    steward.effect(came).unwrap();
    slots
}

#[test]
fn what_a_partition_has_is_given_on_wherever_a_transfer_stood() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slots = transfers(&mut steward);
    let heir = owner(PRIME);
    assert_eq!(steward.inherit(NEXT, heir), Ok(3));
    let third = owner(THIRD);
    let expected = [heir, heir, third, third, heir, third];
    for (slot, expected) in slots.into_iter().zip(expected) {
        let word = steward.view().entry(slot).unwrap().word;
        assert_eq!(
            (word.owner, word.next, word.phase),
            (expected, expected, Phase::Settled),
            "slot {slot}"
        );
    }
}

#[test]
fn quarantine_takes_what_a_partition_may_use_already() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let [.., came, _] = transfers(&mut steward);
    assert_eq!(steward.quarantine(NEXT), Ok(3));
    assert_eq!(
        steward.view().entry(came).unwrap().word.owner,
        Owner::Quarantined
    );
}

#[test]
fn nothing_is_inherited_while_a_processor_may_be_used_already() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward.add(resource::CPU, 4, 1, owner(PRIME)).unwrap();
    steward.intend(slot, owner(NEXT)).unwrap();
    steward.effect(slot).unwrap();
    assert_eq!(
        steward.inherit(NEXT, owner(PRIME)),
        Err(LedgerError::CpuRuns(ApicId(4)))
    );
}

#[test]
fn who_is_no_steward_any_more_changes_nothing() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let memory = steward
        .add(resource::MEMORY, 0, 0x2000, owner(PRIME))
        .unwrap();
    let workload = steward.add(resource::WORKLOAD, 1, 1, owner(PRIME)).unwrap();
    Steward::seize(&ledger, NEXT, &[]).unwrap();
    let bits = || -> Vec<u64> {
        let slots = ledger.slots.iter().map(|slot| slot.word.load(SeqCst));
        slots.chain([ledger.stewardship.load(SeqCst)]).collect()
    };
    let before = bits();
    let error = LedgerError::NotSteward {
        asked: PRIME,
        steward: NEXT,
    };
    assert_eq!(steward.add(resource::CPU, 1, 1, owner(PRIME)), Err(error));
    assert_eq!(steward.split(memory, range(0, 0x1000)), Err(error));
    assert_eq!(steward.join(), Err(error));
    assert_eq!(steward.intend(memory, owner(NEXT)), Err(error));
    assert_eq!(steward.inherit(PRIME, owner(NEXT)), Err(error));
    assert_eq!(steward.quarantine(PRIME), Err(error));
    assert_eq!(steward.arm(workload, THIRD).unwrap_err().1, error);
    assert_eq!(bits(), before);
}

#[test]
fn a_steward_that_takes_up_what_it_has_raises_no_epoch() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let workload = steward.add(resource::WORKLOAD, 1, 1, owner(PRIME)).unwrap();
    let steward = Steward::take_up(&ledger, PRIME).unwrap();
    assert_eq!(steward.view().stewardship().epoch, 1);
    // A hand-over that was under way is over with that.
    let armed = steward.arm(workload, NEXT).unwrap();
    assert_eq!(armed.next(), NEXT);
    let expected = Stewardship {
        holder: PRIME,
        follows: Some((NEXT, workload)),
        epoch: 1,
    };
    let view = LedgerView::new(&ledger).unwrap();
    assert_eq!(view.stewardship(), expected);
    Steward::take_up(&ledger, PRIME).unwrap();
    let expected = Stewardship {
        holder: PRIME,
        follows: None,
        epoch: 2,
    };
    assert_eq!(view.stewardship(), expected);
}

#[test]
fn a_word_has_the_low_bits_of_its_writers_epoch() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let old = steward.view().stewardship();
    let new = Stewardship {
        epoch: 0x1_2abc,
        ..old
    };
    ledger.stewardship.store(new.to_wire(), SeqCst);
    let slot = steward.add(resource::CPU, 1, 1, owner(PRIME)).unwrap();
    assert_eq!(steward.view().entry(slot).unwrap().word.epoch, 0xabc);
}

#[test]
fn a_workload_in_transfer_cannot_be_armed() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let workload = steward.add(resource::WORKLOAD, 1, 1, owner(PRIME)).unwrap();
    steward.intend(workload, owner(THIRD)).unwrap();
    let (steward, error) = steward.arm(workload, NEXT).unwrap_err();
    assert_eq!(
        error,
        LedgerError::Phase {
            slot: workload,
            found: Phase::Intent
        }
    );
    assert_eq!(steward.view().stewardship().follows, None);
}

#[test]
fn stewardship_that_follows_a_workload_of_nobodys_stays() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let workload = steward.add(resource::WORKLOAD, 1, 1, owner(PRIME)).unwrap();
    let armed = steward.arm(workload, NEXT).unwrap();
    let word = LedgerWord {
        owner: Owner::Quarantined,
        next: Owner::Quarantined,
        phase: Phase::Settled,
        epoch: 1,
    };
    ledger.slots[usize::from(workload)]
        .word
        .store(word.to_wire(), SeqCst);
    assert_eq!(armed.steward.view().steward(), PRIME);
    // What was armed is no longer what is there: nothing is committed, and stewardship is back.
    let (steward, error) = armed.commit().unwrap_err();
    assert_eq!(error, LedgerError::Raced { slot: workload });
    assert_eq!(steward.view().stewardship().follows, None);
    assert_eq!(
        steward.view().entry(workload).unwrap().word.owner,
        Owner::Quarantined
    );
}

#[test]
fn every_error_says_what_is_wrong_and_where() {
    let text = |error: LedgerError| error.to_string();
    let (slot, found) = (12, Phase::Effect);
    for (error, expected) in [
        (
            LedgerError::Magic(0x2a),
            "no ledger: it begins with 0x000000000000002a",
        ),
        (
            LedgerError::NotSteward {
                asked: PRIME,
                steward: NEXT,
            },
            "partition 1 is not the steward, partition 2 is",
        ),
        (LedgerError::Full, "the ledger has no free slot"),
        (
            LedgerError::Slot(12),
            "ledger slot 12 is not in use or has no meaning",
        ),
        (
            LedgerError::Phase { slot, found },
            "ledger slot 12 is in phase effect",
        ),
        (
            LedgerError::Overlap { slot },
            "the resource overlaps ledger slot 12",
        ),
        (
            LedgerError::OutsideSlot { slot },
            "the part is not inside ledger slot 12",
        ),
        (
            LedgerError::Owner {
                slot,
                found: owner(NEXT),
            },
            "ledger slot 12 belongs to partition 2",
        ),
        (
            LedgerError::CpuRuns(ApicId(5)),
            "processor 5 has not been proved stopped",
        ),
        (
            LedgerError::Raced { slot },
            "ledger slot 12 was changed by somebody else",
        ),
    ] {
        assert_eq!(text(error), expected);
    }
}
