//! Fault records and the message that announces them.

use iommu::RegisterIo;
use iommu_model::{Rule, UnitConfig};

use crate::hand::*;

#[test]
fn fault_records_form_a_ring_that_overflows_and_folds() {
    let mut hand = up();
    for sid in 0x200..0x209 {
        let _ = hand.machine.dma_write(0, sid, IOVA, &[1]);
    }
    assert_eq!(hand.registers.read32(0x34) & 3, 3, "PFO and PPF");
    assert_eq!(hand.machine.all_faults(0).len(), 9);
    hand.registers.write32(0x34, 1);
    hand.registers.write64(0x228, 1 << 63);
    let _ = hand.machine.dma_write(0, 0x201, IOVA, &[1]);
    assert_eq!(hand.registers.read64(0x228) >> 63, 0, "folded into its own");
    let _ = hand.machine.dma_write(0, 0x300, IOVA, &[1]);
    assert_eq!(hand.registers.read64(0x228) as u16, 0x300);
}

#[test]
fn fault_records_may_lie_beyond_the_first_page() {
    let mut hand = Hand::new(UnitConfig {
        fault_offset: 0x100,
        fault_records: 256,
        ..UnitConfig::default()
    });
    assert_eq!(hand.registers.read64(0x08) >> 40 & 0xff, 255);
    hand.registers.write64(0x1000 + 255 * 16 + 8, 1 << 63);
    hand.machine.assert_no_violations();
    let _ = hand.registers.read64(0x2000);
    hand.broke(Rule::AccessOutsideWindow);
}

#[test]
fn the_fault_event_is_sent_when_unmasked_and_changed_when_masked() {
    let mut hand = up();
    hand.registers.write32(0x3c, 0x41);
    hand.registers.write32(0x40, 0xfee0_1000);
    hand.registers.write32(0x44, 0);
    let _ = hand.machine.dma_write(0, 0x200, 0, &[1]);
    assert!(hand.machine.fault_messages(0).is_empty());
    hand.registers.write32(0x38, 0);
    assert_eq!(hand.machine.fault_messages(0), [(0xfee0_1000, 0x41)]);
    hand.machine.assert_no_violations();
    hand.registers.write32(0x40, 0xfee0_2000);
    hand.broke(Rule::FaultEventChangedWhileUnmasked);
}
