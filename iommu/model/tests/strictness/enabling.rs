//! Registers, commands and the order in which a unit is switched on.

use iommu::{Deadline, RegisterIo};
use iommu_model::{Injection, Reason, Rule, UnitConfig};

use crate::hand::*;

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
