//! The ledger against a naive model, and every point at which its writer may die.

use handoff_abi::*;
use partition_core::ledger::*;
use proptest::prelude::*;

const PRIME: PartitionId = PartitionId(1);
const NEXT: PartitionId = PartitionId(2);
const W: Owner = Owner::Workload(WorkloadId(1));

fn owner(partition: PartitionId) -> Owner {
    Owner::Partition(partition)
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

/// A copy of a ledger's bytes, as a survivor finds them after the writer has died.
fn copy(ledger: &Ledger) -> Box<Ledger> {
    use std::sync::atomic::Ordering::SeqCst;
    let to = blank();
    to.magic.store(ledger.magic.load(SeqCst), SeqCst);
    to.stewardship
        .store(ledger.stewardship.load(SeqCst), SeqCst);
    to.used.store(ledger.used.load(SeqCst), SeqCst);
    for (to, from) in to.slots.iter().zip(&ledger.slots) {
        to.kind.store(from.kind.load(SeqCst), SeqCst);
        to.parent.store(from.parent.load(SeqCst), SeqCst);
        to.base.store(from.base.load(SeqCst), SeqCst);
        to.length.store(from.length.load(SeqCst), SeqCst);
        to.word.store(from.word.load(SeqCst), SeqCst);
    }
    to
}

fn memory(view: LedgerView<'_>) -> Vec<(u64, u64, Owner)> {
    let mut all: Vec<_> = view
        .entries()
        .filter(|entry| entry.kind == resource::MEMORY)
        .map(|entry| (entry.base, entry.length, entry.word.owner))
        .collect();
    all.sort_by_key(|entry| entry.0);
    all
}

#[test]
fn a_page_of_zeros_is_no_ledger() {
    assert_eq!(
        LedgerView::new(&blank()).unwrap_err(),
        LedgerError::Magic(0)
    );
}

#[test]
fn a_split_leaves_every_byte_with_its_owner() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0x1000, 0x9000, owner(PRIME))
        .unwrap();
    let middle = steward.split(slot, range(0x4000, 0x2000)).unwrap();
    steward.transfer(middle, owner(NEXT)).unwrap();
    assert_eq!(
        memory(steward.view()),
        [
            (0x1000, 0x3000, owner(PRIME)),
            (0x4000, 0x2000, owner(NEXT)),
            (0x6000, 0x4000, owner(PRIME)),
        ]
    );
    steward.transfer(middle, owner(PRIME)).unwrap();
    assert_eq!(steward.join(), Ok(2));
    assert_eq!(memory(steward.view()), [(0x1000, 0x9000, owner(PRIME))]);
    assert_eq!(steward.view().free_slots(), Ledger::CAPACITY - 1);
}

#[test]
fn what_is_in_the_ledger_cannot_be_entered_again() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0x1000, 0x1000, owner(PRIME))
        .unwrap();
    for (base, length) in [(0x1000, 0x1000), (0, 0x1001), (0x1fff, 1), (0, u64::MAX)] {
        assert_eq!(
            steward.add(resource::MEMORY, base, length, W),
            Err(LedgerError::Overlap { slot })
        );
    }
    assert!(steward.add(resource::MEMORY, 0x2000, 1, W).is_ok());
    assert!(steward.add(resource::CPU, 0x1000, 1, W).is_ok());
}

#[test]
fn only_the_steward_writes() {
    let ledger = blank();
    let _steward = Steward::format(&ledger, PRIME);
    assert_eq!(
        Steward::take_up(&ledger, NEXT).unwrap_err(),
        LedgerError::NotSteward {
            asked: NEXT,
            steward: PRIME
        }
    );
}

#[test]
fn the_commit_passes_workload_and_stewardship_with_one_store() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let workload = steward.add(resource::WORKLOAD, 1, 1, owner(PRIME)).unwrap();
    let view = steward.view();
    let armed = steward.arm(workload, NEXT).unwrap();
    assert_eq!(view.steward(), PRIME);
    assert!(Steward::take_up(&ledger, NEXT).is_err());
    let before = copy(&ledger);
    armed.commit().unwrap();
    let changed = before
        .slots
        .iter()
        .zip(&ledger.slots)
        .filter(|(a, b)| {
            let bits = |slot: &LedgerSlot| slot.word.load(std::sync::atomic::Ordering::SeqCst);
            bits(a) != bits(b)
        })
        .count();
    assert_eq!(changed, 1);
    assert_eq!(view.steward(), NEXT);
    assert_eq!(view.entry(workload).unwrap().word.owner, owner(NEXT));
    let new = Steward::take_up(&ledger, NEXT).unwrap();
    assert_eq!(
        new.view().stewardship(),
        Stewardship {
            holder: NEXT,
            follows: None,
            epoch: 2
        }
    );
    assert_eq!(
        Steward::take_up(&ledger, PRIME).unwrap_err(),
        LedgerError::NotSteward {
            asked: PRIME,
            steward: NEXT
        }
    );
}

#[test]
fn a_handover_that_is_disarmed_leaves_the_prime_steward() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let workload = steward.add(resource::WORKLOAD, 1, 1, owner(PRIME)).unwrap();
    let mut steward = steward.arm(workload, NEXT).unwrap().disarm();
    assert_eq!(steward.view().steward(), PRIME);
    assert!(steward.add(resource::CPU, 0, 1, owner(PRIME)).is_ok());
}

#[test]
fn a_workload_of_somebody_else_cannot_be_armed() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let theirs = steward.add(resource::WORKLOAD, 1, 1, owner(NEXT)).unwrap();
    let cpu = steward.add(resource::CPU, 1, 1, owner(PRIME)).unwrap();
    let (steward, error) = steward.arm(theirs, NEXT).unwrap_err();
    assert_eq!(
        error,
        LedgerError::Owner {
            slot: theirs,
            found: owner(NEXT)
        }
    );
    let (steward, error) = steward.arm(cpu, NEXT).unwrap_err();
    assert_eq!(error, LedgerError::Slot(cpu));
    assert_eq!(
        steward.arm(900, NEXT).unwrap_err().1,
        LedgerError::Slot(900)
    );
}

#[test]
fn nothing_is_inherited_from_a_partition_whose_processor_still_runs() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, NEXT);
    steward
        .add(resource::MEMORY, 0x1000, 0x1000, owner(PRIME))
        .unwrap();
    steward.add(resource::CPU, 5, 1, owner(PRIME)).unwrap();
    assert_eq!(
        steward.inherit(PRIME, owner(NEXT)),
        Err(LedgerError::CpuRuns(ApicId(5)))
    );
    assert_eq!(
        Steward::seize(&ledger, PRIME, &[]).map(drop),
        Ok(()),
        "the steward of this ledger has no processor in it"
    );
    assert_eq!(
        Steward::seize(&ledger, NEXT, &[]).unwrap_err(),
        LedgerError::CpuRuns(ApicId(5))
    );
}

#[test]
fn a_full_ledger_refuses_and_is_as_it_was() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let first = steward
        .add(resource::MEMORY, 0, 0x10_0000, owner(PRIME))
        .unwrap();
    for cpu in 1..Ledger::CAPACITY as u64 - 1 {
        steward.add(resource::CPU, cpu, 1, owner(PRIME)).unwrap();
    }
    let before: Vec<_> = steward.view().entries().collect();
    assert_eq!(before.len(), Ledger::CAPACITY - 1);
    assert_eq!(
        steward.split(first, range(0x1000, 0x1000)),
        Err(LedgerError::Full)
    );
    assert_eq!(steward.view().entries().collect::<Vec<_>>(), before);
}

#[test]
fn a_survivor_ends_every_transfer_where_it_stood() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    let slot = steward
        .add(resource::MEMORY, 0, 0x1000, owner(PRIME))
        .unwrap();
    let survivor_sees = |ledger: &Ledger| {
        let found = copy(ledger);
        let steward = Steward::seize(&found, NEXT, &[]).unwrap();
        steward.view().entry(slot).unwrap().word.owner
    };
    steward.intend(slot, W).unwrap();
    assert_eq!(survivor_sees(&ledger), owner(PRIME));
    steward.effect(slot).unwrap();
    assert_eq!(survivor_sees(&ledger), W);
    steward.complete(slot).unwrap();
    assert_eq!(survivor_sees(&ledger), W);
}

#[test]
fn every_word_of_nonsense_is_read_without_panic() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    steward
        .add(resource::MEMORY, u64::MAX, u64::MAX, W)
        .unwrap();
    let view = steward.view();
    for value in [0, 1, u32::MAX] {
        ledger
            .used
            .store(value, std::sync::atomic::Ordering::SeqCst);
        for parent in [0, 1, 1023, u32::MAX] {
            ledger.slots[0]
                .parent
                .store(parent, std::sync::atomic::Ordering::SeqCst);
            let _ = view.entries().count();
            let _ = view.find(resource::MEMORY, u64::MAX, u64::MAX);
            let _ = view.steward();
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Split(u64, u64),
    Transfer(usize, u16),
    Join,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0_u64..64, 1_u64..16).prop_map(|(base, length)| Operation::Split(base, length)),
        (0_usize..16, 1_u16..4).prop_map(|(index, to)| Operation::Transfer(index, to)),
        Just(Operation::Join),
    ]
}

proptest! {
    #[test]
    fn each_byte_has_one_owner_whatever_is_done(operations in proptest::collection::vec(operation(), 1..40)) {
        let ledger = blank();
        let mut steward = Steward::format(&ledger, PRIME);
        steward.add(resource::MEMORY, 0, 64, owner(PRIME)).unwrap();
        let mut model = [owner(PRIME); 64];
        for operation in operations {
            match operation {
                Operation::Split(base, length) => {
                    let part = range(base, length);
                    if let Some(entry) = steward.view().find(resource::MEMORY, base, length) {
                        let slot = steward.split(entry.slot, part).unwrap();
                        prop_assert_eq!(steward.view().entry(slot).unwrap().range(), Some(part));
                    }
                }
                Operation::Transfer(index, to) => {
                    let entry = steward.view().entries().nth(index);
                    if let Some(entry) = entry {
                        let to = owner(PartitionId(to));
                        steward.transfer(entry.slot, to).unwrap();
                        let end = entry.base + entry.length;
                        model[entry.base as usize..end as usize].fill(to);
                    }
                }
                Operation::Join => {
                    steward.join().unwrap();
                }
            }
            let mut seen = [None; 64];
            for (base, length, owner) in memory(steward.view()) {
                for byte in base..base + length {
                    prop_assert_eq!(seen[byte as usize].replace(owner), None, "two owners of {}", byte);
                }
            }
            prop_assert_eq!(&seen.map(Option::unwrap)[..], &model[..]);
        }
    }
}

#[test]
fn what_a_running_partition_can_reach_is_quarantined_and_not_given_away() {
    let ledger = blank();
    let mut steward = Steward::format(&ledger, PRIME);
    steward.add(resource::CPU, 2, 1, owner(NEXT)).unwrap();
    let slot = steward
        .add(resource::MEMORY, 0, 0x1000, owner(NEXT))
        .unwrap();
    steward
        .add(resource::MEMORY, 0x1000, 0x1000, owner(PRIME))
        .unwrap();
    assert_eq!(steward.quarantine(NEXT), Ok(2));
    assert_eq!(steward.view().owned_by(Owner::Quarantined).count(), 2);
    assert_eq!(steward.inherit(NEXT, owner(PRIME)), Ok(0));
    assert_eq!(
        steward.view().entry(slot).unwrap().word.owner,
        Owner::Quarantined
    );
}
