//! Interrupt remapping.

use iommu_model::{Interrupt, Reason, UnitConfig};

use crate::hand::*;

#[test]
fn interrupts_are_remapped_verified_and_blocked_with_their_reasons() {
    let mut hand = up();
    hand.interrupt_entry(5, 0x51, 3, SID);
    let address = |index: u64| 0xfee0_0010 | (index & 0x7fff) << 5 | (index >> 15) << 2;
    let msi = |hand: &Hand, sid, address, data| hand.machine.msi(0, sid, address, data);
    let delivered = Interrupt::Delivered {
        destination: 3,
        vector: 0x51,
        mode: 0,
        remapped: true,
    };
    assert_eq!(msi(&hand, SID, address(5), 0), delivered);
    assert_eq!(msi(&hand, SID, address(3) | 8, 2), delivered, "subhandle");
    let blocked = [
        (SID + 1, address(5), 0, Reason::SourceMismatch),
        (SID, address(6), 0, Reason::InterruptNotPresent),
        (SID, address(256), 0, Reason::IndexTooLarge),
        (SID, 0xfee0_3000, 0x51, Reason::CompatibilityBlocked),
        (SID, address(5), 0x1_0000, Reason::InterruptReserved),
    ];
    for (sid, address, data, reason) in blocked {
        assert_eq!(msi(&hand, sid, address, data), Interrupt::Blocked(reason));
    }
    hand.store(INTERRUPTS + 7 * 16 + 8, 1 << 18 | u64::from(SID));
    hand.store(INTERRUPTS + 7 * 16, 1 << 15 | 1);
    let reserved = Interrupt::Blocked(Reason::InterruptEntryReserved);
    assert_eq!(msi(&hand, SID, address(7), 0), reserved);
    let faults = hand.machine.all_faults(0);
    assert_eq!(faults[0], (SID + 1, 5 << 48, 0x26));
    assert_eq!(faults[3].2, 0x25);
}

#[test]
fn interrupt_entries_are_cached_until_invalidated() {
    let mut hand = up();
    hand.interrupt_entry(5, 0x51, 3, SID);
    let at = INTERRUPTS + 5 * 16;
    let send = |hand: &Hand| hand.machine.msi(0, SID, 0xfee0_0010 | 5 << 5, 0);
    let before = send(&hand);
    hand.store(at, 0);
    assert_eq!(send(&hand), before, "still cached");
    hand.submit(1 << 4 | 4 | 4 << 32, 0);
    assert!(hand.wait());
    assert_eq!(send(&hand), before, "another index");
    hand.submit(1 << 4 | 4 | 1 << 27 | 4 << 32, 0);
    assert!(hand.wait());
    assert_eq!(
        send(&hand),
        Interrupt::Blocked(Reason::InterruptNotPresent),
        "two indices at once"
    );
}

#[test]
fn source_verification_has_its_qualifiers() {
    let mut hand = up();
    let mut case = |index: u64, high: u64, good: &[u16], bad: &[u16]| {
        hand.store(INTERRUPTS + index * 16 + 8, high);
        hand.store(INTERRUPTS + index * 16, 0x40 << 16 | 1);
        let address = 0xfee0_0010 | index << 5;
        for &sid in good {
            let got = hand.machine.msi(0, sid, address, 0);
            assert!(
                matches!(got, Interrupt::Delivered { .. }),
                "{high:#x} {sid:#x}"
            );
        }
        for &sid in bad {
            let got = hand.machine.msi(0, sid, address, 0);
            assert_eq!(
                got,
                Interrupt::Blocked(Reason::SourceMismatch),
                "{high:#x} {sid:#x}"
            );
        }
    };
    case(1, 0, &[0, 0xffff], &[]);
    case(
        2,
        1 << 18 | 1 << 16 | 0x100,
        &[0x100, 0x104],
        &[0x101, 0x200],
    );
    case(3, 1 << 18 | 2 << 16 | 0x100, &[0x100, 0x106], &[0x101]);
    case(4, 1 << 18 | 3 << 16 | 0x100, &[0x100, 0x107], &[0x108]);
    case(5, 2 << 18 | 0x0305, &[0x300, 0x5ff], &[0x200, 0x600]);
}

#[test]
fn without_remapping_every_message_passes() {
    let hand = Hand::new(UnitConfig::default());
    let got = hand.machine.msi(0, SID, 0xfee0_3000, 0x451);
    assert_eq!(
        got,
        Interrupt::Delivered {
            destination: 3,
            vector: 0x51,
            mode: 4,
            remapped: false
        }
    );
}
