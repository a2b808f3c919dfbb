//! Where a request goes, by the tables and the protected ranges.

use iommu::{Deadline, RegisterIo};
use iommu_model::{Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn dma_of_a_stranger_is_blocked_and_recorded() {
    let mut hand = up();
    let dma = hand.machine.dma_write(0, 0x0200, IOVA, &[1]);
    assert_eq!(dma.blocked, Some(Reason::RootNotPresent));
    let dma = hand.machine.dma_read(0, 0x0110, IOVA, 4);
    assert_eq!(dma.blocked, Some(Reason::ContextNotPresent));
    assert_eq!(hand.registers.read32(0x34) & 0xff02, 0x0002);
    assert_eq!(hand.registers.read64(0x220), IOVA);
    assert_eq!(
        hand.registers.read64(0x228) & !(0xf_ffff << 40),
        1 << 63 | 1 << 32 | 0x200
    );
    assert_eq!(
        hand.registers.read64(0x238) & !(0xf_ffff << 40),
        1 << 63 | 1 << 62 | 2 << 32 | 0x110
    );
    hand.registers.write64(0x228, 1 << 63);
    hand.registers.write32(0x23c, 1 << 31);
    assert_eq!(hand.registers.read32(0x34) & 2, 0);
}

#[test]
fn the_walk_gives_the_reasons_of_the_specification() {
    let mut hand = up();
    let dma = |hand: &Hand, at: u64, write: bool| {
        if write {
            hand.machine.dma_write(0, SID, at, &[1]).blocked
        } else {
            hand.machine.dma_read(0, SID, at, 1).blocked
        }
    };
    assert_eq!(dma(&hand, 1 << 39, true), Some(Reason::AddressTooWide));
    assert_eq!(dma(&hand, 0x9000, true), Some(Reason::NoWrite));
    assert_eq!(dma(&hand, 0x9000, false), Some(Reason::NoRead));
    let leaf = TABLES[0] + 8192;
    hand.store(leaf + 8 * 0x10, 0x500_0001);
    assert_eq!(dma(&hand, 0x1_0000, true), Some(Reason::NoWrite));
    assert_eq!(dma(&hand, 0x1_0000, false), None);
    hand.store(leaf + 8 * 0x11, 0x500_0083);
    assert_eq!(dma(&hand, 0x1_1000, true), Some(Reason::EntryReserved));
    hand.store(leaf + 8 * 0x12, 0x500_0803);
    assert_eq!(
        dma(&hand, 0x1_2000, true),
        Some(Reason::EntryReserved),
        "SNP"
    );
    hand.store(leaf + 8 * 0x13, 0xfee0_0003);
    assert_eq!(dma(&hand, 0x1_3000, true), Some(Reason::OutputIsInterrupt));
    hand.store(TABLES[0] + 4096 + 8, 1 << 50 | 3);
    assert_eq!(
        dma(&hand, 0x20_0000, true),
        Some(Reason::TablePointerInvalid)
    );
    hand.store(TABLES[0] + 4096 + 16, 0x4000_1083);
    assert_eq!(dma(&hand, 0x40_0000, true), Some(Reason::EntryReserved));
    hand.machine.audit();
    hand.broke(Rule::LeafCoversInterruptRange);
    hand.broke(Rule::PageTableMalformed);
}

#[test]
fn a_request_over_two_pages_lands_up_to_the_border() {
    let hand = up();
    let dma = hand.machine.dma_write(0, SID, IOVA + 0xffe, &[1, 2, 3, 4]);
    assert_eq!(dma.landed, [(FRAMES[0] + 0xffe, 2)]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite));
}

#[test]
fn large_pages_need_the_capability() {
    for (large_pages, expected) in [(0b01, None), (0b00, Some(Reason::EntryReserved))] {
        let mut hand = Hand::new(UnitConfig {
            large_pages,
            ..UnitConfig::default()
        });
        hand.bring_up();
        hand.store(TABLES[0] + 4096 + 8, 0x4000_0083);
        hand.attach(0);
        let dma = hand.machine.dma_write(0, SID, 0x20_1234, &[1]);
        assert_eq!(dma.blocked, expected);
        if expected.is_none() {
            assert_eq!(dma.landed, [(0x4000_1234, 1)]);
        }
    }
}

#[test]
fn protected_ranges_block_until_they_are_off() {
    let mut hand = Hand::new(UnitConfig {
        protected_low: true,
        protected_high: true,
        protected_at_start: true,
        ..UnitConfig::default()
    });
    assert!(
        hand.machine
            .dma_write(0, SID, 0x200_0000, &[1])
            .blocked
            .is_some()
    );
    hand.registers.write32(0x68, 0);
    hand.broke(Rule::ProtectedRangeChangedWhileEnabled);
    hand.machine.forget_violations();
    hand.registers.write32(0x64, 0);
    hand.clock.start(1_000);
    while hand.registers.read32(0x64) & 1 != 0 {
        assert!(!hand.clock.expired());
    }
    assert!(!hand.machine.protected(0));
    assert!(
        hand.machine
            .dma_write(0, SID, 0x200_0000, &[1])
            .blocked
            .is_none()
    );
}

#[test]
fn reach_tells_what_tables_and_caches_allow() {
    let mut hand = up();
    let all = hand.machine.reach(0, SID);
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].iova, all[0].at, all[0].length),
        (IOVA, FRAMES[0], 4096)
    );
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    hand.store(TABLES[0] + 8192 + 8 * 8, 0);
    assert_eq!(hand.machine.reach(0, SID).len(), 1, "the IOTLB has it");
    assert!(hand.machine.reach(0, 0x200).is_empty());
}

#[test]
fn a_leaf_over_the_tables_is_found() {
    let mut hand = up();
    hand.store(TABLES[0] + 8192 + 8 * 0x20, ROOT | 3);
    hand.machine.audit();
    hand.broke(Rule::LeafCoversTables);
}
