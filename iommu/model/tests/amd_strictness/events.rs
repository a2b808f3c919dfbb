//! The event log and the unit's own interrupts.

use handoff_abi::PhysAddr;
use iommu::{Deadline, RegisterIo, TableMemory};
use iommu_model::amd::{Injection, Interrupt, Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn events_arrive_after_the_tail_moved() {
    let mut hand = up();
    let _ = hand.machine.dma_write(0, 0x0200, IOVA, &[1]);
    assert_eq!(hand.registers.read64(0x2018), 16);
    let at = PhysAddr(EVENTS);
    assert_eq!(hand.tables.load(at), 0, "not yet");
    assert_eq!(hand.next_event()[1], IOVA);
    hand.machine.assert_no_violations();

    let _ = hand.machine.dma_write(0, 0x0200, IOVA, &[1]);
    hand.registers.write64(0x2010, 32);
    hand.broke(Rule::EventSkipped);
    hand.machine.forget_violations();
    hand.registers.write64(0x2010, 64);
    hand.broke(Rule::EventHeadInvalid);

    // One that never arrives can only be passed over.
    let mut hand = up();
    hand.machine.inject(0, Injection::LostEvents(1));
    let _ = hand.machine.dma_write(0, 0x0200, IOVA, &[1]);
    let _ = hand.machine.dma_write(0, 0x0201, IOVA, &[1]);
    hand.clock.start(10_000);
    while !hand.clock.expired() {
        assert_eq!(hand.tables.load(at), 0);
    }
    hand.registers.write64(0x2010, 16);
    assert_eq!(hand.next_event()[0] as u16, 0x0201);
    hand.machine.assert_no_violations();
}

#[test]
fn the_event_log_is_a_ring_that_overflows_and_is_restarted() {
    let mut hand = up();
    for _ in 0..3 {
        for sid in 0x200..0x200 + 90 {
            let _ = hand.machine.dma_write(0, sid, IOVA, &[1]);
        }
        for sid in 0x200..0x200 + 90 {
            assert_eq!(hand.next_event()[0] as u16, sid);
        }
    }
    for sid in 0x200..0x300 {
        let _ = hand.machine.dma_write(0, sid, IOVA, &[1]);
    }
    assert_eq!(hand.status() & 1, 1, "EventOverflow");
    assert!(hand.awaits(EVENT_RUN, 0));
    for sid in 0x200..0x2ff {
        assert_eq!(hand.next_event()[0] as u16, sid);
    }
    // Making room and clearing the bit is not enough.
    hand.registers.write64(0x2020, 1);
    assert_eq!(hand.status() & 1, 0);
    let _ = hand.machine.dma_write(0, 0x0400, IOVA, &[1]);
    assert_eq!(hand.machine.counters(0).events_lost, 2);
    let on = hand.control;
    hand.write_control(on & !EVENT_LOG_EN);
    hand.write_control(on);
    assert!(hand.awaits(EVENT_RUN, EVENT_RUN));
    let _ = hand.machine.dma_write(0, 0x0500, IOVA, &[1]);
    assert_eq!(hand.next_event()[0] as u16, 0x0500);
    hand.machine.assert_no_violations();
}

#[test]
fn the_event_log_is_changed_while_it_stands_still() {
    type Act = fn(&mut Hand);
    let cases: [(Act, Rule); 4] = [
        (
            |h| h.registers.write64(0x10, 0x66_0000 | RING),
            Rule::EventLogChangedWhileRunning,
        ),
        (
            |h| h.registers.write64(0x2018, 0),
            Rule::EventLogChangedWhileRunning,
        ),
        (
            |h| {
                let on = h.control;
                h.write_control(on & !EVENT_LOG_EN);
                h.write_control(on);
            },
            Rule::EnabledAgainBeforeStopped,
        ),
        (
            |h| h.write_control(h.control | EVENT_INT_EN),
            Rule::EventInterruptAimless,
        ),
    ];
    for (act, rule) in cases {
        let mut hand = up();
        act(&mut hand);
        hand.broke(rule);
    }
    let mut hand = Hand::new(UnitConfig::default());
    hand.registers.write64(0x10, EVENTS | 3 << 56);
    hand.write_control(COHERENT | EVENT_LOG_EN);
    hand.broke(Rule::EventLogInvalid);
}

#[test]
fn an_event_interrupt_is_sent_once_until_it_is_cleared() {
    let mut hand = up();
    // By the MSI capability among the registers.
    hand.registers.write32(0x158, 1 << 16);
    hand.registers.write32(0x15c, 0xfee0_2000);
    hand.registers.write32(0x160, 0);
    hand.registers.write32(0x164, 0x42);
    hand.write_control(hand.control | EVENT_INT_EN);
    for sid in [0x0200, 0x0201] {
        let _ = hand.machine.dma_write(0, sid, IOVA, &[1]);
    }
    assert_eq!(hand.machine.messages(0), [(0xfee0_2000, 0x42)]);
    hand.registers.write64(0x2020, 2);
    let _ = hand.machine.dma_write(0, 0x0202, IOVA, &[1]);
    assert_eq!(hand.machine.messages(0).len(), 2);
    hand.machine.assert_no_violations();

    // In x2APIC mode.
    let mut hand = Hand::new(UnitConfig {
        x2apic: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.registers
        .write64(0x170, 0x43 << 32 | 0x12_3456 << 8 | 1 << 56);
    hand.write_control(hand.control | 1 << 51 | EVENT_INT_EN);
    let _ = hand.machine.dma_write(0, 0x0200, IOVA, &[1]);
    assert_eq!(hand.machine.messages(0), [(0x0112_3400_fee5_6000, 0x43)]);
    hand.machine.assert_no_violations();
}

#[test]
fn a_device_can_be_silenced() {
    let at = Hand::entry_at(SID);
    // SE: the first, until the entry leaves the cache. SA: none.
    for (bits, expected) in [(0_u64, 6), (1 << 33, 2), (1 << 34, 0)] {
        let mut hand = up();
        hand.store(at + 8, bits | 1);
        for _ in 0..2 {
            hand.run(&[entry_command(SID)]);
            for _ in 0..3 {
                assert!(blocked(&hand, 0x9000, true).is_some());
            }
        }
        let logged = hand.machine.counters(0).events_logged;
        assert_eq!(logged, expected, "{bits:#x}");
        assert_eq!(hand.machine.all_faults(0).len(), 6);
        hand.machine.assert_no_violations();
    }
    // IG: of its interrupts none; SupIOPF: none by this entry.
    let mut hand = up();
    hand.interrupts(9);
    hand.store(INTERRUPTS + 16, 2);
    let off = Interrupt::Blocked(Reason::InterruptNotEnabled);
    assert_eq!(hand.machine.msi(0, SID, 0xfee0_0000, 1), off);
    assert_eq!(hand.machine.counters(0).events_logged, 0);
    assert_eq!(hand.machine.msi(0, SID, 0xfee0_0000, 2), off);
    let [low, high] = hand.next_event();
    assert_eq!(high, 0xfee0_0000);
    assert_eq!(
        low & !(1 << 53),
        2 << 60 | 1 << 51 | 1 << 32 | u64::from(SID)
    );
    hand.store(at + 16, 2 << 60 | INTERRUPTS | 1 << 5 | 9 << 1 | 1);
    hand.run(&[entry_command(SID)]);
    assert_eq!(hand.machine.msi(0, SID, 0xfee0_0000, 2), off);
    assert_eq!(hand.machine.counters(0).events_logged, 1);
    hand.machine.assert_no_violations();
}
