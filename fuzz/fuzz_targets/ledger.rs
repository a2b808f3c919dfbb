//! A ledger that another kernel filled with anything: reading it must neither panic nor hang, and
//! a survivor must be able to bring it to rest.
#![no_main]

use std::sync::atomic::Ordering::SeqCst;

use handoff_abi::{Ledger, LedgerSlot, PartitionId, Phase, resource};
use libfuzzer_sys::fuzz_target;
use partition_core::ledger::{LedgerView, Steward};

fuzz_target!(|words: Vec<u64>| {
    let mut words = words.into_iter();
    let mut next = || words.next().unwrap_or(0);
    let ledger = Box::new(Ledger {
        magic: Ledger::MAGIC.into(),
        stewardship: next().into(),
        used: (next() as u32).into(),
        reserved: Default::default(),
        slots: std::array::from_fn(|_| LedgerSlot::default()),
    });
    for slot in &ledger.slots[..64] {
        slot.kind.store(next() as u32 % 8, SeqCst);
        slot.parent.store(next() as u32, SeqCst);
        slot.base.store(next(), SeqCst);
        slot.length.store(next(), SeqCst);
        slot.word.store(next(), SeqCst);
    }
    let view = LedgerView::new(&ledger).expect("the magic is right");
    let _ = (view.steward(), view.entries().count(), view.free_slots());
    let _ = view.find(resource::MEMORY, next(), next());
    if let Ok(steward) = Steward::seize(&ledger, PartitionId(9), &[]) {
        assert!(
            steward
                .view()
                .entries()
                .all(|entry| entry.word.phase == Phase::Settled)
        );
        assert_eq!(steward.view().steward(), PartitionId(9));
    }
});
