//! Interrupt tables in all formats.

use iommu::RegisterIo;
use iommu_model::amd::{Interrupt, Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn interrupts_are_remapped_by_their_data_and_blocked_with_their_reasons() {
    let mut hand = up();
    let msi = |hand: &Hand, address, data| hand.machine.msi(0, SID, address, data);
    let aborted = Interrupt::Blocked(Reason::InterruptAborted);
    assert_eq!(msi(&hand, 0xfee0_1000, 0x21), aborted);
    hand.interrupts(8);
    hand.interrupt_entry(0x21, 0x51, 3);
    hand.interrupt_entry(0x22, 0x52, 4);
    // Arbitrated, logical.
    hand.store(INTERRUPTS + 0x23 * 16 + 8, 0x53);
    hand.store(INTERRUPTS + 0x23 * 16, 7 << 8 | 1 << 6 | 1 << 2 | 1);
    let delivered = |destination, vector| Interrupt::Delivered {
        destination,
        vector,
        mode: 0,
        logical: false,
        remapped: true,
    };
    // The address says nothing.
    for address in [0xfee0_0000, 0xfeef_fffc, 0xfee0_1004] {
        assert_eq!(msi(&hand, address, 0x21), delivered(3, 0x51));
    }
    assert_eq!(msi(&hand, 0xfee0_0000, 0x22), delivered(4, 0x52));
    let arbitrated = Interrupt::Delivered {
        destination: 7,
        vector: 0x53,
        mode: 1,
        logical: true,
        remapped: true,
    };
    assert_eq!(msi(&hand, 0xfee0_0000, 0x23), arbitrated);
    let off = Interrupt::Blocked(Reason::InterruptNotEnabled);
    assert_eq!(msi(&hand, 0xfee0_0000, 0x24), off);
    // Lowest priority in the message is part of the index, here beyond the table.
    let beyond = Interrupt::Blocked(Reason::IndexTooLarge);
    for data in [0x100, 0x121] {
        assert_eq!(msi(&hand, 0xfee0_0000, data), beyond);
    }
    assert_eq!(msi(&hand, 0xfee0_0000, 0xff), off);
    // NMI, INIT, ExtINT and the modes that are none do not pass; SMI does.
    let mode = Interrupt::Blocked(Reason::DeliveryMode);
    for bits in [3, 4, 5, 6, 7] {
        assert_eq!(msi(&hand, 0xfee0_0000, bits << 8 | 0x21), mode);
    }
    let smi = msi(&hand, 0xfee0_0000, 0x221);
    assert!(matches!(
        smi,
        Interrupt::Delivered {
            mode: 2,
            remapped: false,
            ..
        }
    ));
    assert!(!hand.machine.lint(0, SID, 1));
    // Another device has another table, or none.
    let other = hand.machine.msi(0, 0x0200, 0xfee0_0000, 0x21);
    assert_eq!(other, aborted);
    hand.machine.assert_no_violations();

    let mut case = |low: u64, high: u64| {
        hand.store(INTERRUPTS + 0x30 * 16, 0);
        hand.run(&[interrupts_command(SID)]);
        hand.store(INTERRUPTS + 0x30 * 16 + 8, high);
        hand.store(INTERRUPTS + 0x30 * 16, low | 1);
        hand.broke(Rule::InterruptEntryInvalid);
        hand.machine.forget_violations();
        let reserved = Interrupt::Blocked(Reason::InterruptEntryReserved);
        assert_eq!(
            msi(&hand, 0xfee0_0000, 0x30),
            reserved,
            "{low:#x} {high:#x}"
        );
    };
    case(2 << 2, 0x40);
    case(1 << 7, 0x40);
    case(1 << 16, 0x40);
    case(1 << 32, 0x40);
    case(0, 0x140);
    case(0, 1 << 56 | 0x40);
}

#[test]
fn interrupt_entries_have_three_formats() {
    // 32 bits.
    let mut hand = Hand::new(UnitConfig {
        guest_apic: false,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.interrupts(9);
    let entry = |vector: u64, destination: u64| vector << 16 | destination << 8 | 1;
    hand.store(INTERRUPTS + 8, entry(0x53, 4) << 32 | entry(0x52, 3));
    let got = [2, 3].map(|data| hand.machine.msi(0, SID, 0xfee0_0000, data));
    for (got, (to, what)) in got.into_iter().zip([(3, 0x52), (4, 0x53)]) {
        assert!(
            matches!(got, Interrupt::Delivered { destination, vector, .. }
                if (destination, vector) == (to, what)),
            "{got:?}"
        );
    }
    hand.machine.assert_no_violations();
    hand.store(INTERRUPTS + 16, 1 << 24 | entry(0x54, 1));
    hand.broke(Rule::InterruptEntryInvalid);

    // 128 bits with 32-bit destinations.
    let mut hand = Hand::new(UnitConfig {
        x2apic: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.interrupts(9);
    hand.interrupt_entry(5, 0x55, 0x8123_4567);
    let got = hand.machine.msi(0, SID, 0xfee0_0000, 5);
    let wide = matches!(
        got,
        Interrupt::Delivered {
            destination: 0x8123_4567,
            vector: 0x55,
            ..
        }
    );
    assert!(wide, "{got:?}");
    hand.machine.assert_no_violations();
    hand.write_control(hand.control & !XT_EN);
    hand.broke(Rule::FormatChangedWhileEnabled);
}

#[test]
fn with_2048_interrupts_a_logical_destination_makes_the_delivery_mode_part_of_the_index() {
    let config = UnitConfig {
        many_interrupts: true,
        ..UnitConfig::default()
    };
    let mut hand = Hand::new(config);
    hand.control |= 1 << 43;
    hand.bring_up();
    for page in 0..8 {
        hand.zero(0x70_0000 + page * 4096);
    }
    let word = 2 << 60 | 0x70_0000 | 11 << 1 | 1;
    hand.store(Hand::entry_at(SID) + 16, word);
    hand.run(&[entry_command(SID)]);
    hand.store(0x70_0000 + 0x421 * 16 + 8, 0x51);
    hand.store(0x70_0000 + 0x421 * 16, 1);
    let got = hand.machine.msi(0, SID, 0xfee0_0004, 0x421);
    assert!(matches!(got, Interrupt::Delivered { remapped: true, .. }));
    let smi = hand.machine.msi(0, SID, 0xfee0_0004, 0x221);
    assert_eq!(smi, Interrupt::Blocked(Reason::InterruptNotEnabled));
    let nmi = hand.machine.msi(0, SID, 0xfee0_0000, 0x421);
    assert_eq!(nmi, Interrupt::Blocked(Reason::DeliveryMode));
    hand.machine.assert_no_violations();

    // Not without.
    let mut hand = up();
    hand.store(Hand::entry_at(SID) + 16, word);
    hand.broke(Rule::InterruptTableTooLong);
    let mut hand = up();
    hand.store(Hand::entry_at(SID) + 16, word & !(15 << 1) | 1 << 6);
    hand.broke(Rule::InterruptTableMisaligned);
}

#[test]
fn interrupts_pass_unmapped_where_the_entry_says_so() {
    let mut hand = Hand::new(lax());
    hand.bring_up();
    let at = Hand::entry_at(SID) + 16;
    let passes = |hand: &Hand, mode: u32, logical: u64| {
        let got = hand
            .machine
            .msi(0, SID, 0xfee0_3000 | logical << 2, mode << 8 | 0x51);
        matches!(
            got,
            Interrupt::Delivered {
                remapped: false,
                ..
            }
        )
    };
    let mut set = |word: u64| {
        hand.store(at, word);
        hand.run(&[entry_command(SID)]);
        let modes = [0, 1, 4, 5, 7].map(|mode| passes(&hand, mode, 0));
        let pins = [0, 1].map(|pin| hand.machine.lint(0, SID, pin));
        (modes, pins, passes(&hand, 4, 1))
    };
    let (t, f) = (true, false);
    assert_eq!(set(0), ([t; 5], [t; 2], t), "IV clear");
    assert_eq!(set(1), ([f; 5], [f; 2], f));
    assert_eq!(set(1 << 60 | 1), ([t, t, f, f, f], [f; 2], f));
    assert_eq!(set(1 << 56 | 1), ([f, f, f, t, f], [f; 2], f), "INIT");
    assert_eq!(set(1 << 57 | 1), ([f, f, f, f, t], [f; 2], f), "ExtInt");
    assert_eq!(set(1 << 58 | 1), ([f, f, t, f, f], [f; 2], f), "NMI");
    assert_eq!(set(1 << 62 | 1), ([f; 5], [t, f], f));
    assert_eq!(set(1 << 63 | 1), ([f; 5], [f, t], f));
    hand.machine.assert_no_violations();

    let mut hand = Hand::new(UnitConfig {
        smi_filters: 2,
        ..UnitConfig::default()
    });
    hand.bring_up();
    let smi = |hand: &Hand| passes(hand, 2, 0);
    assert!(smi(&hand), "SmiFEn clear");
    let control = hand.registers.read64(0x18);
    hand.registers.write64(0x18, control | 1 << 22);
    let got = hand.machine.msi(0, SID, 0xfee0_0000, 0x200);
    assert_eq!(got, Interrupt::Blocked(Reason::DeliveryMode));
    hand.registers.write64(0x68, 0b11 << 16 | u64::from(SID));
    assert!(smi(&hand), "named");
    hand.registers.write64(0x68, 0);
    assert!(smi(&hand), "locked");
}

#[test]
fn interrupt_entries_are_cached_until_invalidated() {
    let mut hand = up();
    hand.interrupts(9);
    hand.interrupt_entry(5, 0x51, 3);
    let send = |hand: &Hand| hand.machine.msi(0, SID, 0xfee0_0000, 5);
    let before = send(&hand);
    assert!(matches!(before, Interrupt::Delivered { .. }));
    hand.store(INTERRUPTS + 5 * 16, 0);
    assert_eq!(send(&hand), before, "still cached");
    hand.run(&[interrupts_command(0x0200), entry_command(SID)]);
    assert_eq!(send(&hand), before, "another device, another cache");
    hand.run(&[interrupts_command(SID)]);
    assert_eq!(send(&hand), Interrupt::Blocked(Reason::InterruptNotEnabled));
    // The table is taken away: a hot entry does not need it.
    hand.interrupt_entry(6, 0x52, 3);
    hand.store(Hand::entry_at(SID) + 16, DENIED[2]);
    hand.run(&[entry_command(SID)]);
    let got = hand.machine.msi(0, SID, 0xfee0_0000, 6);
    assert!(matches!(got, Interrupt::Delivered { .. }));
    hand.run(&[interrupts_command(SID)]);
    let got = hand.machine.msi(0, SID, 0xfee0_0000, 6);
    assert_eq!(got, Interrupt::Blocked(Reason::InterruptAborted));
    hand.machine.assert_no_violations();
}
