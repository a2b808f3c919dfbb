//! Where requests lead, why they are refused, and what an observer finds in the tables.

use handoff_abi::PhysAddr;
use iommu::{RegisterIo, TableMemory};
use iommu_model::amd::{Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn dma_of_a_stranger_is_blocked_and_logged() {
    let mut hand = up();
    let dma = hand.machine.dma_write(0, 0x0200, 0x1234_5678, &[1]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite));
    let dma = hand.machine.dma_read(0, SID, 0x9008, 4);
    assert_eq!(dma.blocked, Some(Reason::NotPresent));
    let write = 2 << 60 | 1 << 54 | 1 << 53 | 1 << 52 | 0x0200;
    assert_eq!(hand.next_event(), [write, 0x1234_5678], "PE, RW, PR");
    // RW means nothing of what is not present, and says so by being wrong.
    let read = 2 << 60 | 1 << 53 | 1 << 32 | u64::from(SID);
    assert_eq!(hand.next_event(), [read, 0x9008]);
    assert_eq!(hand.registers.read64(0x2010), hand.registers.read64(0x2018));
    let faults = hand.machine.all_faults(0);
    assert_eq!((faults[0].sid, faults[0].write), (0x0200, true));
    assert_eq!((faults[1].did, faults[1].write), (1, false));
    hand.machine.assert_no_violations();
}

#[test]
fn the_walk_gives_its_reasons() {
    let mut hand = up();
    let leaf = TABLES[0] + 8192;
    let middle = TABLES[0] + 4096;
    hand.store(leaf + 8 * 0x10, 0x500_0000 | READ | 1);
    hand.store(leaf + 8 * 0x11, 0x500_0000 | RW | 1 << 55 | 1);
    hand.store(leaf + 8 * 0x12, 0x500_0000 | RW | 1 << 9 | 1);
    hand.store(leaf + 8 * 0x13, 0x500_0000 | RW);
    hand.store(middle + 8, 1 << 50 | 1 << 9 | RW | 1);
    hand.store(middle + 16, 0x4000_1000 | RW | 1);
    hand.store(middle + 24, (TABLES[0] + 8192) | 2 << 9 | RW | 1);
    hand.store(middle + 32, (TABLES[0] + 8192) | 1 << 9 | 1 << 57 | RW | 1);
    hand.store(TABLES[0] + 8, (TABLES[0] + 8192) | 1 << 9 | RW | 1);
    hand.store(leaf + 8 * 0x18, 0x0700_1000 | RW | 7 << 9 | 1);
    hand.store(leaf + 8 * 0x14, 0x000f_ffff_ffff_f000 | RW | 7 << 9 | 1);
    // Sizes of another level.
    hand.store(leaf + 8 * 0x1c, 0x070f_f000 | RW | 7 << 9 | 1);
    hand.store(middle + 40, 0x0700_1000 | RW | 7 << 9 | 1);
    hand.store(leaf + 8 * 0x16, 1 << 49 | RW | 1);
    let cases = [
        (1 << 39, true, Some(Reason::AddressTooWide)),
        (0x9000, true, Some(Reason::NotPresent)),
        (0x1_0000, true, Some(Reason::NoWrite)),
        (0x1_0000, false, None),
        (0x1_1000, true, Some(Reason::EntryReserved)),
        (0x1_2000, true, Some(Reason::LevelInvalid)),
        (0x1_3000, true, Some(Reason::NotPresent)),
        (0x1_4000, true, Some(Reason::LevelInvalid)),
        (0x1_8000, true, None),
        (0x1_6000, true, Some(Reason::NoMemory)),
        (0x1_c000, true, Some(Reason::LevelInvalid)),
        (0xa0_0000, true, Some(Reason::LevelInvalid)),
        (0x20_0000, true, Some(Reason::PageTableUnreadable)),
        (0x40_0000, true, Some(Reason::EntryReserved)),
        (0x60_0000, true, Some(Reason::LevelInvalid)),
        (0x80_0000, true, Some(Reason::EntryReserved)),
        // A level is skipped, so the address bits of that level must be zero.
        (0x4000_8000, true, None),
        (0x4020_8000, true, Some(Reason::LevelInvalid)),
        (0xfee0_0000, true, Some(Reason::SpecialAddress)),
        (0xfd_0000_0000, false, Some(Reason::SpecialAddress)),
    ];
    for (at, write, expected) in cases {
        assert_eq!(blocked(&hand, at, write), expected, "{at:#x}");
    }
    let events: Vec<(u64, u64)> = hand
        .machine
        .all_faults(0)
        .iter()
        .filter(|f| f.reason.code() != 0)
        .map(|f| (f.reason.code().into(), f.address))
        .collect();
    for (code, address) in events {
        let [low, high] = hand.next_event();
        assert_eq!(low >> 60, code, "{address:#x}");
        match code {
            4 => {
                assert_eq!(high, 1 << 50, "the entry that could not be read");
                assert_eq!(low >> 57 & 3, 1, "master abort");
            }
            8 => {
                assert_eq!(high, address);
                assert_eq!(low as u16, SID);
            }
            _ => {
                assert_eq!((high, low >> 32 & 0xffff), (address, 1));
                let reserved = [0x1_1000, 0x40_0000, 0x80_0000].contains(&address);
                assert_eq!(low >> 55 & 1 != 0, reserved, "{address:#x}");
            }
        }
    }
    hand.machine.assert_no_violations();
    hand.machine.audit();
    hand.broke(Rule::PageTableMalformed);
}

#[test]
fn permissions_of_all_levels_and_of_the_entry_count() {
    for (level, shift) in [(0, 30), (1, 21)] {
        let mut hand = up();
        let at = TABLES[0] + level * 4096 + 8 * (IOVA >> shift & 511);
        let word = hand.tables.load(PhysAddr(at));
        hand.store(at, word & !WRITE);
        assert_eq!(blocked(&hand, IOVA, true), Some(Reason::NoWrite));
        assert_eq!(blocked(&hand, IOVA, false), None);
    }
    let mut hand = up();
    let at = Hand::entry_at(SID);
    hand.store(at, Hand::translating(0) & !READ);
    hand.run(&[entry_command(SID)]);
    assert_eq!(blocked(&hand, IOVA, false), Some(Reason::NoRead));
    assert_eq!(blocked(&hand, IOVA, true), None);
    assert_eq!(
        blocked(&hand, IOVA, false),
        Some(Reason::NoRead),
        "from the cache"
    );
    // V without TV.
    let mut hand = up();
    hand.store(at, 1);
    hand.run(&[entry_command(SID)]);
    assert_eq!(write(&hand), Err(Reason::TranslationNotValid));
    hand.machine.assert_no_violations();
}

#[test]
fn leaves_come_in_many_sizes_and_tables_in_many_levels() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    let root = 0x13_0000;
    for page in 0..6 {
        hand.zero(root + page * 4096);
    }
    // Six levels down to one; 2 MiB, 1 GiB, and 64 KiB in sixteen slots.
    for level in (1..6_u64).rev() {
        let at = root + (5 - level) * 4096;
        hand.store(at, (at + 4096) | level << 9 | RW | 1);
    }
    hand.store(root + 4 * 4096 + 8, 0x4000_0000 | RW | 1);
    hand.store(root + 3 * 4096 + 8, 0x1_0000_0000 | RW | 1);
    for slot in 16..32 {
        let at = root + 5 * 4096 + slot * 8;
        hand.store(at, 0x700_0000 | 0x7000 | 7 << 9 | RW | 1);
    }
    let at = Hand::entry_at(SID);
    hand.store(at + 8, 1);
    hand.store(at, root | 6 << 9 | RW | 3);
    hand.run(&[entry_command(SID)]);
    let landed = |iova| hand.machine.dma_write(0, SID, iova, &[1]).landed[0].0;
    assert_eq!(landed(0x20_1234), 0x4000_1234);
    assert_eq!(landed(0x4123_4567), 0x1_0123_4567);
    assert_eq!(landed(0x1_a123), 0x700_a123);
    let reach = hand.machine.reach(0, SID);
    assert_eq!(reach.len(), 3, "{reach:x?}");
    assert_eq!((reach[0].at, reach[0].length), (0x700_0000, 0x1_0000));
    hand.machine.audit();
    hand.machine.assert_no_violations();

    // More levels than the unit has, and the one that means nothing.
    for (levels, mode) in [(4, 5), (6, 7)] {
        let mut hand = Hand::new(UnitConfig {
            levels,
            ..UnitConfig::default()
        });
        hand.bring_up();
        hand.store(at, root | mode << 9 | RW | 3);
        hand.broke(Rule::DeviceEntryInvalid);
        hand.run(&[entry_command(SID)]);
        assert_eq!(write(&hand), Err(Reason::DeviceEntryEncoding));
        let [low, high] = hand.next_event();
        assert_eq!((low, high), (1 << 60 | 1 << 53 | u64::from(SID), IOVA));
    }
}

#[test]
fn a_request_over_two_pages_lands_up_to_the_border() {
    let hand = up();
    let dma = hand.machine.dma_write(0, SID, IOVA + 0xffe, &[1, 2, 3, 4]);
    assert_eq!(dma.landed, [(FRAMES[0] + 0xffe, 2)]);
    assert_eq!(dma.blocked, Some(Reason::NotPresent));
}

#[test]
fn the_exclusion_range_is_not_translated() {
    let mut hand = Hand::new(lax());
    hand.bring_up();
    hand.registers.write64(0x28, 0x4000_0000);
    hand.registers.write64(0x20, 0x4000_0000 | 1);
    let lands = |hand: &Hand, sid| hand.machine.dma_write(0, sid, 0x4000_0ff0, &[1]).blocked;
    assert_eq!(lands(&hand, SID), Some(Reason::NoWrite));
    hand.store(Hand::entry_at(SID) + 8, 1 << 39);
    hand.run(&[entry_command(SID)]);
    assert_eq!(lands(&hand, SID), None);
    assert_eq!(lands(&hand, 0x0200), Some(Reason::NoWrite));
    hand.registers.write64(0x20, 0x4000_0000 | 3);
    assert_eq!(lands(&hand, 0x0200), None, "allowed to all");
    let dma = hand.machine.dma_write(0, SID, 0x4000_1000, &[1]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite), "beyond");
}

#[test]
fn writes_in_flight_are_awaited_or_found_out() {
    let mut hand = up();
    hand.machine.dma_post(0, SID, IOVA, b"late").unwrap();
    hand.block();
    // Another domain's commands do not take it along.
    hand.run(&[entry_command(SID), domain_command(2)]);
    hand.machine.release(FRAMES[0], 4096, &[]);
    hand.broke(Rule::UndrainedWrite);
    assert_eq!(hand.machine.land(0), [FRAMES[0]]);

    let mut hand = up();
    hand.machine.dma_post(0, SID, IOVA, b"late").unwrap();
    hand.machine.release(FRAMES[0], 4096, &[]);
    hand.broke(Rule::ReleasedMemoryStillReachable);
    hand.machine.forget_violations();
    hand.move_over();
    hand.machine.release(FRAMES[0], 4096, &[]);
    hand.machine.assert_no_violations();
    assert_eq!(hand.machine.peek_bytes(FRAMES[0], 4), b"late");
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
    assert!(hand.machine.denied(0, 0x200));
    assert!(!hand.machine.denied(0, SID));
}

#[test]
fn leaves_over_what_is_not_the_domains_are_found() {
    let cases = [
        (DEVICES, Rule::LeafCoversTables),
        (COMMANDS, Rule::LeafCoversTables),
        (EVENTS, Rule::LeafCoversTables),
        (STORE, Rule::LeafCoversTables),
        (TABLES[0] + 4096, Rule::LeafCoversTables),
        (INTERRUPTS, Rule::LeafCoversTables),
        (0xfee0_1000, Rule::LeafCoversInterruptRange),
        (0xfd_f800_0000, Rule::LeafCoversInterruptRange),
        (1 << 48, Rule::LeafCoversInterruptRange),
    ];
    for (output, rule) in cases {
        let mut hand = up();
        hand.interrupts(9);
        hand.store(TABLES[0] + 8192 + 8 * 0x20, output | RW | 1);
        hand.machine.audit();
        hand.broke(rule);
    }
    // Used, it is found at once.
    let mut hand = up();
    hand.store(TABLES[0] + 8192 + 8 * 0x20, 0xfee0_1000 | RW | 1);
    assert_eq!(blocked(&hand, 0x2_0000, true), None);
    hand.broke(Rule::LeafCoversInterruptRange);

    // Two tables in each other; a domain with two tables that came with the device table.
    let mut hand = Hand::new(lax());
    hand.prepare();
    for (sid, at) in [(0x0200, INTERRUPTS), (0x0300, INTERRUPTS + 0x80)] {
        let word = 2 << 60 | at | 9 << 1 | 1;
        hand.machine.poke(Hand::entry_at(sid) + 16, word);
    }
    for (sid, domain) in [(0x0200, 0), (0x0300, 1)] {
        hand.machine
            .poke(Hand::entry_at(sid), Hand::translating(domain));
    }
    hand.enable();
    hand.run(&[ALL]);
    hand.machine.assert_no_violations();
    hand.machine.audit();
    hand.broke(Rule::InterruptTablesOverlap);
    hand.broke(Rule::DomainIdWithTwoTables);
}
