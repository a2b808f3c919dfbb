//! The invalidation queue.

use iommu::RegisterIo;
use iommu_model::{Injection, Reason, Rule};

use crate::hand::*;

#[test]
fn bad_descriptors_stop_the_queue_until_repaired_and_rung_again() {
    let bad: [(u64, u64); 9] = [
        (0, 0),
        (1, 0),
        (1 << 4 | 1 << 8 | 1, 0),
        (1 << 4 | 1, 1),
        (3 << 4 | 2, 19),
        (3 << 4 | 2, 0x1000 | 1),
        (3, 0),
        (1 << 5 | 1 << 4 | 5, STATUS),
        (1 << 4 | 31 << 27 | 4, 0),
    ];
    for (low, high) in bad {
        let mut hand = up();
        let place = QUEUE + hand.tail;
        hand.submit(low, high);
        assert!(!hand.wait(), "{low:#x} {high:#x}");
        hand.broke(Rule::InvalidDescriptor);
        hand.machine.forget_violations();
        assert_ne!(hand.registers.read32(0x34) & 1 << 4, 0);
        assert_eq!(hand.registers.read64(0x80), place - QUEUE);
        // Repaired, cleared, not rung: nothing moves.
        hand.store(place, 1 << 4 | 1);
        hand.store(place + 8, 0);
        hand.registers.write32(0x34, 1 << 4);
        for _ in 0..50 {
            assert_eq!(hand.registers.read64(0x80), place - QUEUE);
        }
        hand.ring();
        assert!(hand.wait());
        hand.machine.assert_no_violations();
    }
}

#[test]
fn a_tail_beyond_the_queue_and_a_pending_slot_bite() {
    let mut hand = up();
    hand.registers.write64(0x88, 4096);
    hand.broke(Rule::QueueTailInvalid);
    assert_ne!(hand.registers.read32(0x34) & 1 << 4, 0);

    let mut hand = up();
    let place = QUEUE + hand.tail;
    hand.submit(1 << 4 | 1, 0);
    hand.ring();
    hand.store(place, 1 << 4 | 2);
    hand.broke(Rule::PendingDescriptorOverwritten);
}

#[test]
fn waits_can_be_lost_time_out_and_come_with_errors() {
    let mut hand = up();
    hand.machine.inject(0, Injection::LostWaits(1));
    assert!(!hand.wait());
    assert!(hand.wait());

    let mut hand = up();
    hand.machine.inject(0, Injection::TimeOuts(1));
    assert!(!hand.wait());
    assert_ne!(hand.registers.read32(0x34) & 1 << 6, 0);
    hand.registers.write32(0x34, 1 << 6);
    assert!(hand.wait(), "the queue goes on once ITE is cleared");

    let mut hand = up();
    hand.machine.inject(0, Injection::CompletionErrors(1));
    assert!(hand.wait());
    assert_ne!(hand.registers.read32(0x34) & 1 << 5, 0);

    let mut hand = up();
    hand.machine.inject(0, Injection::StuckQueue);
    assert!(!hand.wait());
    hand.machine.assert_no_violations();
}

#[test]
fn the_queue_is_set_up_while_off_and_left_while_empty() {
    let mut hand = up();
    hand.registers.write64(0x90, 0x66_0000);
    hand.broke(Rule::QueueAddressWhileEnabled);

    let mut hand = up();
    hand.submit(1 << 4 | 1, 0);
    hand.ring();
    let now = hand.status() & 0x96ff_ffff;
    hand.registers.write32(0x18, now & !QIE);
    hand.broke(Rule::QueueDisabledWhileBusy);

    let mut hand = up();
    hand.registers.write64(0x28, 1 << 63 | 1 << 61);
    hand.broke(Rule::RegisterInvalidationWhileQueued);
    assert_eq!(hand.registers.read64(0x28) >> 63, 1, "never completes");
}

#[test]
fn a_queue_can_stop_in_the_middle() {
    let mut hand = up();
    hand.machine.inject(0, Injection::StuckQueueAfter(6));
    hand.clear_present();
    hand.submit(1 << 4 | 1, 0);
    hand.submit(1 << 4 | 0xc0 | 2, 0);
    assert!(!hand.wait());
    hand.machine.inject(0, Injection::Nothing);
    for _ in 0..20 {
        let _ = hand.status();
    }
    assert_eq!(write(&hand), Err(Reason::ContextNotPresent));
}
