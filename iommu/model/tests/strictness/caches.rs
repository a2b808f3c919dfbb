//! What the unit has cached, until it is told to forget it.

use iommu_model::{Reason, Rule, UnitConfig};

use crate::hand::*;

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
