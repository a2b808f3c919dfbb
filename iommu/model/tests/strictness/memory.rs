//! How tables are stored: lines that are written back, the write buffer, entries that are torn.

use handoff_abi::PhysAddr;
use iommu::TableMemory;
use iommu_model::{Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn a_unit_that_does_not_snoop_sees_only_lines_written_back() {
    let mut hand = Hand::new(UnitConfig {
        coherent: false,
        ..UnitConfig::default()
    });
    hand.bring_up();
    let at = Hand::context_at();
    hand.tables.store(PhysAddr(at + 8), 1 << 8 | 1);
    hand.tables.store(PhysAddr(at), TABLES[0] | 1);
    assert_eq!(write(&hand), Err(Reason::ContextNotPresent));
    // Only the line next to it.
    hand.tables.write_back(PhysAddr(at - 64), 64);
    assert_eq!(write(&hand), Err(Reason::ContextNotPresent));
    hand.tables.write_back(PhysAddr(at), 16);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    // A descriptor that was not written back is not there either: the unit reads an old one. (It
    // is the last of its line, so that the wait does not take it along.)
    while hand.tail % 64 != 48 {
        hand.submit(1 << 4 | 1, 0);
    }
    hand.tables.store(PhysAddr(QUEUE + hand.tail), 1 << 4 | 1);
    hand.tables.store(PhysAddr(QUEUE + hand.tail + 8), 0);
    hand.tail += 16;
    assert!(!hand.wait());
    hand.broke(Rule::InvalidDescriptor);
}

#[test]
fn a_write_buffer_holds_stores_back() {
    let mut hand = Hand::new(UnitConfig {
        write_buffer: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.attach(0);
    assert_eq!(write(&hand), Err(Reason::ContextNotPresent));
    hand.command(WBF);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
}

#[test]
fn an_entry_that_is_written_whole_is_not_torn_and_can_be_reused_too_early() {
    let at = PhysAddr(Hand::context_at());
    let entry = |domain: usize| (TABLES[domain] | 1, (domain as u64 + 1) << 8 | 1);
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    let stores = hand.machine.stores_to(CONTEXT, 1);
    hand.tables.store_pair(at, entry(0).0, entry(0).1);
    assert_eq!(hand.machine.stores_to(CONTEXT, 1), stores + 1);
    hand.tables.store_pair(at, entry(0).0, entry(0).1);
    hand.machine.assert_no_violations();
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    // Another domain in its place, and what is left of it in the caches.
    hand.tables.store_pair(at, entry(1).0, entry(1).1);
    hand.broke(Rule::EntryReusedBeforeInvalidation);
    assert_eq!(write(&hand), Ok(FRAMES[0]));

    // Emptied at once.
    let mut hand = up();
    hand.tables.store_pair(at, 0, 0);
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    let mut hand = up();
    let next = PhysAddr(at.0 + 16);
    hand.tables.store_pair(next, entry(1).0, entry(0).1);
    hand.broke(Rule::DomainIdWithTwoTables);

    let mut hand = up();
    hand.tables.store_pair(PhysAddr(at.0 + 8), 0, 0);
    hand.broke(Rule::MemoryAccessMisaligned);
}

#[test]
fn torn_and_reused_entries_bite() {
    // Present first, upper half later.
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    let at = Hand::context_at();
    hand.store(at, TABLES[0] | 1);
    hand.store(at + 8, 1 << 8 | 1);
    hand.broke(Rule::TornEntry);

    // Reused without any invalidation.
    let mut hand = up();
    hand.clear_present();
    hand.attach(1);
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    // Reused after the invalidation was submitted and before it was waited for.
    let mut hand = up();
    hand.clear_present();
    hand.submit(1 << 4 | 1, 0);
    hand.submit(1 << 4 | 0xc0 | 2, 0);
    hand.ring();
    hand.attach(1);
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    // An interrupt entry.
    let mut hand = up();
    hand.interrupt_entry(3, 0x40, 1, SID);
    hand.machine.assert_no_violations();
    hand.interrupt_entry(3, 0x40, 1, 0x110);
    hand.broke(Rule::TornEntry);

    // One domain, two sets of tables.
    let mut hand = up();
    hand.store(CONTEXT + 0x800 + 8, 1 << 8 | 1);
    hand.store(CONTEXT + 0x800, TABLES[1] | 1);
    hand.broke(Rule::DomainIdWithTwoTables);

    // A translation type that trusts devices.
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.store(at + 8, 1 << 8 | 2);
    hand.store(at, TABLES[0] | 2 << 2 | 1);
    hand.broke(Rule::TranslatedRequestsAllowed);

    // A width that the unit does not have.
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.store(at + 8, 1 << 8 | 3);
    hand.store(at, TABLES[0] | 1);
    hand.broke(Rule::ContextEntryInvalid);
    assert_eq!(write(&hand), Err(Reason::ContextInvalid));
}
