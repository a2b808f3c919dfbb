//! The model as a whole: a correct driver, the order of events, and the rules that nothing else has.

use handoff_abi::PhysAddr;
use iommu::{RegisterIo, TableMemory};
use iommu_model::{Event, Injection, MachineConfig, Rule, Schedule, UnitConfig};

use crate::hand::*;

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
