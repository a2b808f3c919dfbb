//! What the unit remembers, what makes it forget, and stores into live entries.

use handoff_abi::PhysAddr;
use iommu::{RegisterIo, TableMemory};
use iommu_model::amd::{Interrupt, Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn stale_translations_live_until_the_right_commands_in_the_right_order() {
    let entry = entry_command(SID);
    let (old, new) = (domain_command(1), domain_command(2));
    let gone = Err(Reason::NoWrite);
    // (commands, what the requester reaches afterwards; the same from a unit that keeps order)
    type Case<'a> = (&'a [(u64, u64)], Result<u64, Reason>, Result<u64, Reason>);
    let cases: [Case<'_>; 9] = [
        (&[], Ok(FRAMES[0]), Ok(FRAMES[0])),
        (&[entry], Ok(FRAMES[0]), Ok(FRAMES[0])),
        (&[old], Ok(FRAMES[0]), Ok(FRAMES[0])),
        (&[entry, BARRIER, new], Ok(FRAMES[0]), Ok(FRAMES[0])),
        (&[old, BARRIER, entry], Ok(FRAMES[0]), Ok(FRAMES[0])),
        // Nothing keeps these two in order.
        (&[entry, old], Ok(FRAMES[0]), gone),
        // A wait without f waits, and lets what comes after it go first.
        (&[entry, (1 << 60, 0), old], Ok(FRAMES[0]), gone),
        (&[entry, BARRIER, old], gone, gone),
        (&[ALL], gone, gone),
    ];
    for (commands, reordered, ordered) in cases {
        for (reorders, expected) in [(true, reordered), (false, ordered)] {
            let mut hand = Hand::new(UnitConfig {
                reorders,
                ..UnitConfig::default()
            });
            hand.bring_up();
            hand.attach(0);
            assert_eq!(write(&hand), Ok(FRAMES[0]));
            hand.block();
            for &command in commands {
                hand.submit(command);
            }
            assert!(hand.wait());
            assert_eq!(write(&hand), expected, "{commands:x?} {reorders}");
            hand.machine.assert_no_violations();
        }
    }
}

#[test]
fn an_entry_that_denies_is_cached_like_any_other() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.write_entry(0);
    assert_eq!(write(&hand), Err(Reason::NoWrite));
    hand.run(&[entry_command(SID ^ 1)]);
    assert_eq!(write(&hand), Err(Reason::NoWrite));
    hand.run(&[entry_command(SID)]);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
}

#[test]
fn a_page_command_covers_its_range_and_directories_only_when_asked() {
    let mut hand = up();
    let leaf = TABLES[0] + 8192;
    for slot in 8..12 {
        hand.store(leaf + 8 * slot, 0x777_0000 | slot << 12 | RW | 1);
        assert_eq!(blocked(&hand, slot << 12, true), None);
    }
    for slot in 8..12 {
        hand.store(leaf + 8 * slot, 0);
    }
    let reached = |hand: &Hand| [8, 9, 10, 11].map(|s| blocked(hand, s << 12, true).is_none());
    hand.run(&[(3 << 60 | 1 << 32, 0x9000)]);
    assert_eq!(reached(&hand), [true, false, true, true]);
    // Another domain.
    hand.run(&[(3 << 60 | 2 << 32, 0x8000)]);
    assert_eq!(reached(&hand), [true, false, true, true]);
    // Two pages: the lowest address bit that is clear is bit 12.
    hand.run(&[(3 << 60 | 1 << 32, 0xa000 | 1)]);
    assert_eq!(reached(&hand), [true, false, false, false]);
    // Four pages: it is bit 13.
    hand.run(&[(3 << 60 | 1 << 32, 0x9000 | 1)]);
    assert_eq!(reached(&hand), [false; 4]);

    // The last table is freed; without PDE the unit still walks through it.
    hand.store(leaf + 8 * 12, 0x777_7000 | RW | 1);
    assert_eq!(blocked(&hand, 0xc000, true), None);
    hand.store(TABLES[0] + 4096, 0);
    hand.run(&[(3 << 60 | 1 << 32, 0x7fff_ffff_ffff_f000 | 1)]);
    assert_eq!(blocked(&hand, 0xc000, true), None);
    hand.run(&[domain_command(1)]);
    assert_eq!(blocked(&hand, 0xc000, true), Some(Reason::NotPresent));
    hand.machine.assert_no_violations();

    hand.run(&[(3 << 60 | 1 << 32, !0xfff | 1)]);
    hand.broke(Rule::InvalidationRangeUndefined);
}

#[test]
fn a_domain_shares_its_translations() {
    let mut hand = up();
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    let other = 0x0200;
    let at = Hand::entry_at(other);
    hand.store(at + 8, 1);
    hand.store(at, Hand::translating(0) & !WRITE);
    hand.store(TABLES[0] + 8192 + 8 * 8, 0);
    hand.run(&[entry_command(other)]);
    let dma = hand.machine.dma_read(0, other, IOVA, 1);
    assert_eq!(dma.landed, [(FRAMES[0], 1)], "from the cache");
    let dma = hand.machine.dma_write(0, other, IOVA, &[1]);
    assert_eq!(
        dma.blocked,
        Some(Reason::NoWrite),
        "with its own permissions"
    );
    hand.run(&[domain_command(1)]);
    let dma = hand.machine.dma_read(0, other, IOVA, 1);
    assert_eq!(dma.blocked, Some(Reason::NotPresent));
    hand.machine.assert_no_violations();
}

#[test]
fn a_unit_may_remember_what_was_not_there() {
    let mut hand = Hand::new(UnitConfig {
        caches_not_present: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.attach(0);
    assert_eq!(blocked(&hand, 0x9000, true), Some(Reason::NotPresent));
    hand.store(TABLES[0] + 8192 + 8 * 9, 0x777_7000 | RW | 1);
    assert_eq!(blocked(&hand, 0x9000, true), Some(Reason::NotPresent));
    hand.run(&[(3 << 60 | 1 << 32, 0x9000)]);
    assert_eq!(blocked(&hand, 0x9000, true), None);

    hand.interrupts(9);
    let send = |hand: &Hand| hand.machine.msi(0, SID, 0xfee0_0000, 7);
    let off = Interrupt::Blocked(Reason::InterruptNotEnabled);
    assert_eq!(send(&hand), off);
    hand.interrupt_entry(7, 0x51, 3);
    assert_eq!(send(&hand), off, "cached");
    hand.run(&[interrupts_command(SID)]);
    assert!(matches!(send(&hand), Interrupt::Delivered { .. }));
    hand.machine.assert_no_violations();
}

#[test]
fn a_unit_that_does_not_snoop_sees_only_lines_written_back() {
    for by_control in [false, true] {
        let mut hand = Hand::new(UnitConfig {
            coherent: by_control,
            ..UnitConfig::default()
        });
        if by_control {
            hand.control &= !COHERENT;
            hand.flush = true;
        }
        hand.bring_up();
        let at = Hand::entry_at(SID);
        hand.tables.store(PhysAddr(at + 8), 1);
        hand.tables.store(PhysAddr(at), Hand::translating(0));
        hand.run(&[entry_command(SID)]);
        assert_eq!(write(&hand), Err(Reason::NoWrite));
        // Only the line next to it.
        hand.tables.write_back(PhysAddr(at - 64), 64);
        hand.run(&[entry_command(SID)]);
        assert_eq!(write(&hand), Err(Reason::NoWrite));
        hand.tables.write_back(PhysAddr(at), 32);
        hand.run(&[entry_command(SID)]);
        assert_eq!(write(&hand), Ok(FRAMES[0]));
        hand.machine.assert_no_violations();
        // A command that was not written back is not there either: the unit reads an old one. (It
        // is the last of its line, so that the wait does not take it along.)
        while hand.tail % 64 != 48 {
            hand.submit(entry_command(SID));
        }
        hand.tables
            .store(PhysAddr(COMMANDS + hand.tail), entry_command(SID).0);
        hand.tail += 16;
        assert!(!hand.wait());
        hand.broke(Rule::InvalidCommand);
    }
}

#[test]
fn half_an_entry_that_is_written_whole_is_not_torn_and_can_be_reused_too_early() {
    let at = PhysAddr(Hand::entry_at(SID));
    let half = |domain: usize| (Hand::translating(domain), domain as u64 + 1);
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    let stores = hand.machine.stores_to(at.0, 16);
    hand.tables.store_pair(at, half(0).0, half(0).1);
    assert_eq!(hand.machine.stores_to(at.0, 16), stores + 1);
    hand.tables.store_pair(at, half(0).0, half(0).1);
    hand.machine.assert_no_violations();
    // Another domain in its place.
    hand.tables.store_pair(at, half(1).0, half(1).1);
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    // Denied at once, and no more: that is how it is taken back.
    let mut hand = up();
    hand.tables.store_pair(at, DENIED[0], DENIED[1]);
    hand.machine.assert_no_violations();
    hand.tables.store_pair(at, half(1).0, half(1).1);
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    let mut hand = up();
    let other = PhysAddr(Hand::entry_at(0x0200));
    hand.tables.store_pair(other, half(1).0, half(0).1);
    hand.broke(Rule::DomainIdWithTwoTables);

    let mut hand = up();
    hand.tables.store_pair(PhysAddr(at.0 + 8), 0, 0);
    hand.broke(Rule::MemoryAccessMisaligned);
}

#[test]
fn torn_and_reused_entries_bite() {
    // Permissions first, the domain later.
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    let at = Hand::entry_at(SID);
    hand.store(at, Hand::translating(0));
    hand.store(at + 8, 1);
    hand.broke(Rule::TornEntry);

    // What is reported, and permissions taken away, may change in place.
    let mut hand = up();
    hand.store(at + 8, 1 << 34 | 1);
    hand.store(at, Hand::translating(0) & !WRITE);
    hand.machine.assert_no_violations();

    // Another table in place.
    let mut hand = up();
    hand.store(at, Hand::translating(1));
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    // Blocked between, and: not invalidated at all; the entry only; the domain only; the other
    // way round; both, and not awaited.
    let (entry, domain) = (entry_command(SID), domain_command(1));
    let cases: [&[(u64, u64)]; 5] = [&[], &[entry], &[domain], &[domain, entry], &[entry, domain]];
    for (i, commands) in cases.into_iter().enumerate() {
        let mut hand = up();
        hand.block();
        if i < 4 {
            hand.run(commands);
        } else {
            commands.iter().for_each(|&c| hand.submit(c));
            hand.ring();
        }
        hand.write_entry(1);
        hand.broke(Rule::EntryReusedBeforeInvalidation);
    }

    // The same tables under another domain id.
    let mut hand = up();
    hand.block();
    hand.store(at + 8, 2);
    hand.store(at, Hand::translating(0));
    hand.broke(Rule::EntryReusedBeforeInvalidation);

    // Back to where it was needs nothing.
    let mut hand = up();
    hand.block();
    hand.write_entry(0);
    hand.machine.assert_no_violations();

    // One domain, two sets of tables.
    let mut hand = up();
    let other = Hand::entry_at(0x0200);
    hand.store(other + 8, 1);
    hand.store(other, Hand::translating(1));
    hand.broke(Rule::DomainIdWithTwoTables);

    // An interrupt entry, and an interrupt table.
    let mut hand = up();
    hand.interrupts(9);
    hand.interrupt_entry(3, 0x40, 1);
    hand.machine.assert_no_violations();
    hand.interrupt_entry(3, 0x41, 1);
    hand.broke(Rule::TornEntry);

    let mut hand = up();
    hand.interrupts(9);
    hand.interrupt_entry(3, 0x40, 1);
    // Its table is this device's alone, so what is in the cache goes to nobody else's.
    hand.store(INTERRUPTS + 48, 0);
    hand.interrupt_entry(3, 0x41, 1);
    hand.machine.assert_no_violations();

    let mut hand = up();
    hand.interrupts(9);
    hand.store(at + 16, 2 << 60 | 0x66_0000 | 9 << 1 | 1);
    hand.broke(Rule::EntryReusedBeforeInvalidation);
    let mut hand = up();
    hand.interrupts(9);
    hand.store(at + 16, 1);
    hand.run(&[entry_command(SID), interrupts_command(SID)]);
    hand.store(at + 16, 2 << 60 | 0x66_0000 | 9 << 1 | 1);
    hand.machine.assert_no_violations();
}

#[test]
fn an_entry_is_fetched_between_any_two_stores() {
    // The wrong order, in a unit that is used to no better: permissions before the domain.
    let mut hand = Hand::new(lax());
    hand.bring_up();
    let at = Hand::entry_at(SID);
    hand.store(at + 8, 7);
    hand.run(&[entry_command(SID)]);
    hand.machine.watch(0, SID, IOVA);
    hand.submit(entry_command(SID));
    hand.store(at, Hand::translating(0));
    hand.store(at + 8, 1);
    hand.run(&[entry_command(SID)]);
    let _ = write(&hand);
    // The translation is there under a domain that was never meant.
    hand.run(&[domain_command(1)]);
    hand.store(TABLES[0] + 8192 + 8 * 8, 0);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
}

#[test]
fn entries_that_trust_devices_bite() {
    let at = Hand::entry_at(SID);
    let trusting = [
        (8, 1 << 32, "I"),
        (8, 1 << 39, "EX"),
        (8, 1 << 35, "IoCtl"),
        (8, 1 << 40, "SysMgt"),
        (16, 1 << 56 | 1, "INIT"),
        (16, 1 << 57 | 1, "ExtInt"),
        (16, 1 << 58 | 1, "NMI"),
        (16, 1 << 62 | 1, "LINT0"),
        (16, 1 << 63 | 1, "LINT1"),
    ];
    for (offset, word, what) in trusting {
        let mut hand = Hand::new(UnitConfig::default());
        hand.bring_up();
        hand.store(at + offset, word);
        let violations = hand.machine.violations();
        assert_eq!(violations.len(), 1, "{what}");
        assert_eq!(violations[0].rule, Rule::EntryTrustsDevice, "{what}");
    }
    let mut hand = Hand::new(UnitConfig {
        trusted_sources: vec![SID],
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.store(at + 16, 1 << 58 | 1);
    hand.machine.assert_no_violations();
    hand.registers.write64(0x28, 0x5000_0000);
    hand.registers.write64(0x20, 0x4000_0000 | 3);
    hand.broke(Rule::ExclusionRangeUsed);
}

#[test]
fn entries_that_mean_nothing_bite_and_are_logged() {
    // (word, value, reserved bits rather than an encoding, an interrupt)
    let cases = [
        (0, 1 << 2 | 3, true, false),
        (0, 1 << 55 | 3, true, false),
        (1, 1 << 16, true, false),
        (1, 3 << 35, false, false),
        (2, 3 << 60 | 1, true, true),
        (2, 2 << 60 | INTERRUPTS | 12 << 1 | 1, false, true),
        (2, 1 << 59 | 1, true, true),
    ];
    for (word, value, reserved, interrupt) in cases {
        let mut hand = Hand::new(UnitConfig::default());
        hand.bring_up();
        hand.store(Hand::entry_at(SID) + word * 8, value);
        hand.broke(Rule::DeviceEntryInvalid);
        hand.run(&[entry_command(SID)]);
        if interrupt {
            let got = hand.machine.msi(0, SID, 0xfee0_1000, 3);
            assert!(matches!(got, Interrupt::Blocked(_)), "{value:#x}");
        } else {
            assert!(write(&hand).is_err(), "{value:#x}");
        }
        let [low, _] = hand.next_event();
        assert_eq!(low >> 60, 1, "{value:#x}");
        assert_eq!(low >> 55 & 1 != 0, reserved, "{value:#x}");
        assert_eq!(low >> 51 & 1 != 0, interrupt, "{value:#x}");
    }
}

#[test]
fn an_attacker_tries_at_every_step() {
    let mut hand = up();
    hand.machine.attack(0, SID, IOVA);
    hand.machine.attack(0, 0x200, IOVA);
    hand.move_over();
    let attacks = hand.machine.take_attacks();
    let own: Vec<_> = attacks.iter().filter(|a| a.sid == SID).collect();
    assert!(own.len() > 10);
    assert_eq!(own.first().map(|a| a.result), Some(Ok(FRAMES[0])));
    assert_eq!(own.last().map(|a| a.result), Some(Ok(FRAMES[1])));
    assert!(own.iter().any(|a| a.result.is_err()), "blocked in between");
    assert!(
        attacks
            .iter()
            .filter(|a| a.sid != SID)
            .all(|a| a.result.is_err())
    );
    assert!(hand.machine.take_attacks().is_empty());
    hand.machine.assert_no_violations();
}
