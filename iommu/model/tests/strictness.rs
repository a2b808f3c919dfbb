//! The model is as strict as it says: a correct driver passes, and each mistake bites.

mod hand;

use hand::*;
use handoff_abi::PhysAddr;
use iommu::{Deadline, RegisterIo, TableMemory};
use iommu_model::{Event, Injection, Interrupt, MachineConfig, Reason, Rule, Schedule, UnitConfig};

fn up() -> Hand {
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.attach(0);
    hand
}

/// Where a write by the requester lands.
fn write(hand: &Hand) -> Result<u64, Reason> {
    let dma = hand.machine.dma_write(0, SID, IOVA, b"data");
    dma.blocked.map_or_else(|| Ok(dma.landed[0].0), Err)
}

#[test]
fn a_correct_driver_breaks_no_rule_under_any_schedule() {
    let schedules = [Schedule::Lazy, Schedule::Eager]
        .into_iter()
        .chain((0..50).map(Schedule::Random));
    for schedule in schedules {
        for coherent in [true, false] {
            for write_buffer in [false, true] {
                let config = MachineConfig {
                    schedule,
                    ..MachineConfig::default()
                };
                let unit = UnitConfig {
                    coherent,
                    write_buffer,
                    ..UnitConfig::default()
                };
                let mut hand = Hand::with(config, unit);
                hand.bring_up();
                hand.attach(0);
                if write_buffer {
                    hand.command(WBF);
                }
                assert_eq!(write(&hand), Ok(FRAMES[0]), "{schedule:?}");
                hand.move_over();
                if write_buffer {
                    hand.command(WBF);
                }
                assert_eq!(write(&hand), Ok(FRAMES[1]), "{schedule:?}");
                hand.machine.audit();
                hand.machine.assert_no_violations();
            }
        }
    }
}

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
fn gcmd_takes_one_command_at_a_time() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.registers.write64(0x20, ROOT);
    hand.registers.write32(0x18, SRTP | QIE);
    hand.broke(Rule::SeveralCommandsAtOnce);

    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.queue_on();
    hand.root_on();
    let all = hand.status();
    assert_ne!(all & SRTP, 0);
    hand.registers.write64(0xb8, INTERRUPTS | 7);
    hand.registers.write32(0x18, all | SIRTP);
    hand.broke(Rule::SeveralCommandsAtOnce);

    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.registers.write64(0x90, QUEUE);
    hand.registers.write32(0x18, QIE);
    hand.registers.write32(0x18, QIE | SRTP);
    hand.broke(Rule::CommandWhileOneIsPending);
}

#[test]
fn a_stuck_command_never_completes() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.machine.inject(0, Injection::StuckCommand(QIE));
    hand.registers.write64(0x90, QUEUE);
    hand.registers.write32(0x18, QIE);
    hand.clock.start(1_000);
    while !hand.clock.expired() {
        assert_eq!(hand.status() & QIE, 0);
    }
}

#[test]
fn translation_waits_for_root_pointer_invalidation_and_interrupts() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.registers.write32(0x18, TE);
    hand.broke(Rule::RootTablePointerNeverSet);

    // IOTLB before context cache does not count.
    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.queue_on();
    hand.registers.write64(0x20, ROOT);
    hand.command(SRTP);
    hand.submit(1 << 4 | 0xc0 | 2, 0);
    hand.submit(1 << 4 | 1, 0);
    assert!(hand.wait());
    hand.interrupts_on();
    hand.command(TE);
    hand.broke(Rule::TranslationOnBeforeInvalidation);

    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.queue_on();
    hand.root_on();
    hand.command(TE);
    hand.broke(Rule::TranslationOnBeforeInterruptRemapping);

    // With ESRTPS and ESIRTPS nothing needs to be invalidated.
    let mut hand = Hand::new(UnitConfig {
        srtp_invalidates: true,
        sirtp_invalidates: true,
        ..UnitConfig::default()
    });
    hand.build_tables();
    hand.registers.write64(0x20, ROOT);
    hand.command(SRTP);
    hand.registers.write64(0xb8, INTERRUPTS | 7);
    hand.command(SIRTP);
    hand.command(IRE);
    hand.command(TE);
    hand.machine.assert_no_violations();
    hand.registers.write32(0x18, IRE);
    hand.broke(Rule::TranslationSwitchedOff);
}

#[test]
fn interrupt_remapping_waits_for_its_invalidation() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.registers.write64(0xb8, INTERRUPTS | 7);
    hand.registers.write32(0x18, IRE);
    hand.broke(Rule::InterruptTablePointerNeverSet);
    hand.command(SIRTP);
    hand.command(IRE);
    hand.broke(Rule::InterruptRemappingOnBeforeInvalidation);
}

#[test]
fn the_root_pointer_is_latched_by_srtp_only() {
    let mut hand = up();
    hand.registers.write64(0x20, 0x66_0000);
    assert_eq!(hand.machine.latched(0).0, Some(ROOT));
    assert_eq!(write(&hand), Ok(FRAMES[0]));
}

#[test]
fn a_new_root_table_serves_nobody_before_the_invalidation() {
    let mut hand = up();
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    let other = 0x66_0000;
    hand.zero(other);
    hand.registers.write64(0x20, other);
    hand.command(SRTP);
    assert_eq!(write(&hand), Ok(FRAMES[0]), "the caches still have it");
    hand.submit(1 << 4 | 1, 0);
    assert!(hand.wait());
    assert_eq!(write(&hand), Ok(FRAMES[0]), "so has the IOTLB");
    hand.submit(1 << 4 | 0xc0 | 2, 0);
    assert!(hand.wait());
    assert_eq!(write(&hand), Err(Reason::RootNotPresent));
}

#[test]
fn stale_translations_live_until_the_right_invalidation() {
    // (descriptors, what the requester reaches afterwards)
    let context = 3 << 4 | 1 | 1 << 16 | u64::from(SID) << 32;
    let old = 2 << 4 | 0xc0 | 2 | 1 << 16;
    let new = 2 << 4 | 0xc0 | 2 | 2 << 16;
    let cases: [(&[u64], Result<u64, Reason>); 6] = [
        (&[], Ok(FRAMES[0])),
        (&[context], Ok(FRAMES[0])),
        (&[context, new], Ok(FRAMES[0])),
        (&[old], Ok(FRAMES[0])),
        (&[old, context], Ok(FRAMES[0])),
        (&[context, old], Err(Reason::ContextNotPresent)),
    ];
    for (descriptors, expected) in cases {
        let mut hand = up();
        assert_eq!(write(&hand), Ok(FRAMES[0]));
        hand.clear_present();
        for &descriptor in descriptors {
            hand.submit(descriptor, 0);
        }
        assert!(hand.wait());
        assert_eq!(write(&hand), expected, "{descriptors:x?}");
        hand.machine.assert_no_violations();
    }
}

#[test]
fn a_page_invalidation_covers_its_pages_only_and_a_hint_keeps_the_upper_levels() {
    let mut hand = up();
    let leaf = TABLES[0] + 8192;
    hand.store(leaf + 8 * 9, 0x777_7003);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    let _ = hand.machine.dma_write(0, SID, 0x9000, &[1]);
    hand.store(leaf + 8 * 8, 0);
    hand.store(leaf + 8 * 9, 0);
    hand.submit(3 << 4 | 0xc0 | 2 | 1 << 16, 0x8000);
    assert!(hand.wait());
    assert_eq!(write(&hand), Err(Reason::NoWrite));
    assert_eq!(hand.machine.dma_write(0, SID, 0x9000, &[1]).blocked, None);
    hand.submit(3 << 4 | 0xc0 | 2 | 1 << 16, 0x8000 | 1);
    assert!(hand.wait());
    let dma = hand.machine.dma_write(0, SID, 0x9000, &[1]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite));

    // The last table is freed; with IH the unit still walks through it.
    hand.store(leaf + 8 * 10, 0x777_7003);
    let _ = hand.machine.dma_write(0, SID, 0xa000, &[1]);
    hand.store(TABLES[0] + 4096, 0);
    hand.submit(3 << 4 | 0xc0 | 2 | 1 << 16, 0xa000 | 1 << 6);
    assert!(hand.wait());
    assert_eq!(hand.machine.dma_write(0, SID, 0xa000, &[1]).blocked, None);
    hand.submit(3 << 4 | 0xc0 | 2 | 1 << 16, 0xa000);
    assert!(hand.wait());
    let dma = hand.machine.dma_write(0, SID, 0xa000, &[1]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite));
    hand.machine.assert_no_violations();
}

#[test]
fn caching_mode_remembers_what_was_not_there() {
    let mut hand = Hand::new(UnitConfig {
        caching_mode: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    assert_eq!(write(&hand), Err(Reason::ContextNotPresent));
    hand.attach(0);
    assert_eq!(write(&hand), Err(Reason::ContextNotPresent), "cached");
    // The entry's own domain is not what it is tagged with.
    hand.submit(3 << 4 | 1 | 1 << 16 | u64::from(SID) << 32, 0);
    assert!(hand.wait());
    assert_eq!(
        write(&hand),
        Err(Reason::ContextNotPresent),
        "tagged with 0"
    );
    hand.submit(3 << 4 | 1 | u64::from(SID) << 32, 0);
    hand.submit(2 << 4 | 0xc0 | 2 | 1 << 16, 0);
    assert!(hand.wait());
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    // Pages too.
    let _ = hand.machine.dma_write(0, SID, 0x9000, &[1]);
    hand.store(TABLES[0] + 8192 + 8 * 9, 0x777_7003);
    let dma = hand.machine.dma_write(0, SID, 0x9000, &[1]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite), "cached");
    hand.submit(3 << 4 | 0xc0 | 2 | 1 << 16, 0x9000);
    assert!(hand.wait());
    assert_eq!(hand.machine.dma_write(0, SID, 0x9000, &[1]).blocked, None);
    hand.machine.assert_no_violations();
}

#[test]
fn domain_zero_in_caching_mode_bites() {
    let mut hand = Hand::new(UnitConfig {
        caching_mode: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    let at = Hand::context_at();
    hand.store(at + 8, 1);
    hand.store(at, TABLES[0] | 1);
    hand.broke(Rule::DomainIdZeroInCachingMode);
}

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

#[test]
fn register_accesses_have_the_right_width_and_place() {
    let hand = Hand::new(UnitConfig::default());
    type Access = fn(&mut Hand);
    let cases: [(Access, Rule); 9] = [
        (
            |h| assert_ne!(h.registers.read64(0x34 - 4), 1),
            Rule::AccessWidth,
        ),
        (|h| h.registers.write64(0x38, 0), Rule::AccessWidth),
        (
            |h| assert_ne!(h.registers.read64(0x18), 1),
            Rule::AccessWidth,
        ),
        (
            |h| assert_ne!(h.registers.read32(0x22), 1),
            Rule::AccessOutsideWindow,
        ),
        (
            |h| assert_ne!(h.registers.read32(0x1000), 1),
            Rule::AccessOutsideWindow,
        ),
        (
            |h| h.registers.write32(0x1c, 0),
            Rule::WriteToReadOnlyRegister,
        ),
        (
            |h| h.registers.write64(0x08, 0),
            Rule::WriteToReadOnlyRegister,
        ),
        (
            |h| h.registers.write32(0x64, 0),
            Rule::RegisterNotImplemented,
        ),
        (
            |h| h.registers.write64(0x88, 8),
            Rule::ReservedBitsInRegister,
        ),
    ];
    drop(hand);
    for (access, rule) in cases {
        let mut hand = Hand::new(UnitConfig::default());
        access(&mut hand);
        hand.broke(rule);
    }
    let mut hand = Hand::new(UnitConfig::default());
    let wide = hand.registers.read64(0x08);
    let halves =
        u64::from(hand.registers.read32(0x08)) | u64::from(hand.registers.read32(0x0c)) << 32;
    assert_eq!(wide, halves);
    hand.machine.assert_no_violations();
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

#[test]
fn writes_in_flight_are_drained_or_found_out() {
    let mut hand = up();
    hand.machine.dma_post(0, SID, IOVA, b"late").unwrap();
    hand.clear_present();
    hand.submit(3 << 4 | 1 | 1 << 16 | u64::from(SID) << 32, 0);
    hand.submit(2 << 4 | 2 | 1 << 16, 0);
    assert!(hand.wait());
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
}

#[test]
fn a_leaf_over_the_tables_is_found() {
    let mut hand = up();
    hand.store(TABLES[0] + 8192 + 8 * 0x20, ROOT | 3);
    hand.machine.audit();
    hand.broke(Rule::LeafCoversTables);
}

#[test]
fn a_unit_can_vanish() {
    let mut hand = up();
    hand.machine.inject(0, Injection::GoneAfter(3));
    for _ in 0..3 {
        let _ = hand.status();
    }
    assert_eq!(hand.status(), u32::MAX);
    assert_eq!(hand.registers.read64(0x08), u64::MAX);
}

#[test]
#[should_panic(expected = "without a deadline")]
fn polling_without_a_deadline_is_stopped() {
    let mut hand = Hand::new(UnitConfig::default());
    loop {
        let _ = hand.status();
    }
}

#[test]
fn events_tell_the_order_of_things() {
    let mut hand = up();
    assert!(!hand.machine.take_events().is_empty());
    let before = hand.machine.counters(0);
    hand.move_over();
    let events = hand.machine.take_events();
    let tail = Event::TailWritten { unit: 0 };
    let done = Event::WaitDone { unit: 0 };
    assert_eq!(events.first(), Some(&tail));
    assert_eq!(events.last(), Some(&done));
    let spent = hand.machine.counters(0) - before;
    assert_eq!(
        (spent.descriptors(), spent.waits, spent.mmio_writes),
        (3, 1, 1)
    );
}

#[test]
fn the_other_rules_bite_too() {
    type Act = fn(&mut Hand);
    let fresh: [(Act, Rule); 8] = [
        (
            |h| h.registers.write32(0x18, 1 << 28),
            Rule::CommandNotSupported,
        ),
        (
            |h| {
                h.registers.write64(0x20, ROOT | 1);
                h.command(SRTP);
            },
            Rule::RootTableAddressInvalid,
        ),
        (
            |h| {
                h.registers.write64(0x20, 1 << 50);
                h.command(SRTP);
            },
            Rule::RootTableAddressInvalid,
        ),
        (
            |h| {
                h.registers.write64(0xb8, INTERRUPTS | 1 << 11);
                h.command(SIRTP);
            },
            Rule::InterruptTableAddressInvalid,
        ),
        (
            |h| {
                h.registers.write64(0x88, 16);
                h.registers.write64(0x90, QUEUE);
                h.command(QIE);
            },
            Rule::QueueEnabledWithTail,
        ),
        (
            |h| h.registers.write32(0x38, 0),
            Rule::FaultEventAddressInvalid,
        ),
        (
            |h| assert_eq!(h.tables.load(PhysAddr(4)), 0),
            Rule::MemoryAccessMisaligned,
        ),
        (
            |h| {
                h.build_tables();
                h.queue_on();
                h.root_on();
                h.interrupts_on();
                h.command(1 << 23);
                h.command(TE);
            },
            Rule::CompatibilityFormatPasses,
        ),
    ];
    for (act, rule) in fresh {
        let mut hand = Hand::new(UnitConfig::default());
        act(&mut hand);
        hand.broke(rule);
    }
    let running: [(Act, Rule); 5] = [
        (
            |h| {
                let now = h.status() & 0x96ff_ffff;
                h.registers.write32(0x18, now & !IRE);
            },
            Rule::InterruptRemappingSwitchedOff,
        ),
        // A root entry that changes while present, and one with an upper half.
        (
            |h| h.store(ROOT + 16, 0x66_0001),
            Rule::EntryReusedBeforeInvalidation,
        ),
        (
            |h| {
                h.store(ROOT + 40, 1);
                h.store(ROOT + 32, 0x66_0001);
            },
            Rule::TornEntry,
        ),
        // The present bit and something else in one store, with the upper half to follow.
        (
            |h| {
                h.store(Hand::context_at(), 0);
                h.store(Hand::context_at() + 8, 0);
            },
            Rule::EntryReusedBeforeInvalidation,
        ),
        (
            |h| {
                let at = INTERRUPTS + 5 * 16;
                h.interrupt_entry(5, 0x51, 3, SID);
                h.store(at, 0);
                h.store(at + 8, 0);
            },
            Rule::EntryReusedBeforeInvalidation,
        ),
    ];
    for (act, rule) in running {
        let mut hand = up();
        act(&mut hand);
        hand.broke(rule);
    }
    let mut hand = Hand::new(UnitConfig {
        domain_bits_code: 0,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.store(Hand::context_at() + 8, 16 << 8 | 1);
    hand.store(Hand::context_at(), TABLES[0] | 1);
    hand.broke(Rule::DomainIdTooLarge);
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
