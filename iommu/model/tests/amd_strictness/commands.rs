//! The command buffer: order, errors, waits.

use iommu::RegisterIo;
use iommu_model::amd::{Event, Injection, Reason, Rule, UnitConfig};

use crate::hand::*;

#[test]
fn commands_are_executed_when_a_wait_asks_for_it() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.write_entry(0);
    hand.submit(entry_command(SID));
    hand.ring();
    let tail = hand.tail;
    assert!(
        (0..20).any(|_| hand.registers.read64(0x2000) == tail),
        "fetched"
    );
    assert_eq!(write(&hand), Err(Reason::NoWrite), "and not executed");
    assert!(hand.wait());
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    hand.machine.assert_no_violations();
}

#[test]
fn bad_commands_stop_the_unit_until_it_is_switched_off_and_on() {
    let bad: [(u64, u64); 14] = [
        (0, 0),
        (9 << 60, 0),
        (2 << 60 | 1 << 16, 0),
        (2 << 60, 1),
        (3 << 60 | 1 << 20, 3),
        (3 << 60 | 1 << 48, 3),
        (3 << 60, 8),
        (3 << 60, 4),
        (4 << 60 | 5, 0),
        (5 << 60 | 1 << 32, 0),
        (6 << 60, 0),
        (7 << 60, 0),
        (8 << 60 | 1, 0),
        (1 << 60 | 1 << 52, 0),
    ];
    for command in bad {
        let mut hand = up();
        hand.block();
        let place = hand.tail;
        hand.submit(entry_command(SID));
        hand.submit(command);
        assert!(!hand.wait(), "{command:x?}");
        hand.broke(Rule::InvalidCommand);
        hand.machine.forget_violations();
        assert_eq!(hand.status() & COMMAND_RUN, 0);
        assert_eq!(hand.next_event(), [5 << 60, COMMANDS + place + 16]);
        // Ringing does not help.
        hand.ring();
        assert!(!hand.awaits(COMMAND_RUN, COMMAND_RUN));
        let on = hand.control;
        hand.write_control(on & !CMD_BUF_EN);
        hand.registers.write64(0x2000, 0);
        hand.registers.write64(0x2008, 0);
        hand.tail = 0;
        hand.write_control(on);
        assert!(hand.awaits(COMMAND_RUN, COMMAND_RUN));
        assert!(hand.wait());
        // What was fetched before and not executed was lost.
        assert_eq!(write(&hand), Ok(FRAMES[0]));
        hand.run(&[entry_command(SID), domain_command(1)]);
        assert_eq!(write(&hand), Err(Reason::NoWrite));
        hand.machine.assert_no_violations();
    }
}

#[test]
fn a_unit_has_the_commands_its_features_say() {
    let mut hand = Hand::new(UnitConfig {
        invalidate_all: false,
        ..UnitConfig::default()
    });
    hand.prepare();
    hand.enable();
    hand.submit(ALL);
    assert!(!hand.wait());
    hand.broke(Rule::InvalidCommand);

    let mut hand = Hand::new(UnitConfig {
        prefetch: true,
        remote_iotlb: true,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.attach(0);
    // Remote IOTLBs there are none; a prefetch brings a translation into the cache.
    hand.run(&[(4 << 60 | u64::from(SID), IOVA)]);
    hand.run(&[(6 << 60 | u64::from(SID), IOVA)]);
    hand.store(TABLES[0] + 8192 + 8 * 8, 0);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    hand.machine.assert_no_violations();
}

#[test]
fn the_command_buffer_is_changed_while_it_stands_still() {
    type Act = fn(&mut Hand);
    let cases: [(Act, Rule); 6] = [
        (
            |h| h.registers.write64(0x08, 0x66_0000 | RING),
            Rule::CommandBufferChangedWhileRunning,
        ),
        (
            |h| h.registers.write64(0x2000, 0),
            Rule::CommandBufferChangedWhileRunning,
        ),
        (
            |h| h.registers.write64(0x2008, 4096),
            Rule::CommandTailInvalid,
        ),
        (
            |h| {
                let at = COMMANDS + h.tail;
                h.submit(entry_command(SID));
                h.ring();
                h.store(at, entry_command(SID + 1).0);
            },
            Rule::PendingCommandOverwritten,
        ),
        (
            |h| {
                h.submit(entry_command(SID));
                h.ring();
                h.write_control(h.control & !CMD_BUF_EN);
            },
            Rule::CommandsSwitchedOffWhileBusy,
        ),
        (
            |h| {
                let on = h.control;
                h.write_control(on & !CMD_BUF_EN);
                h.write_control(on);
            },
            Rule::EnabledAgainBeforeStopped,
        ),
    ];
    for (act, rule) in cases {
        let mut hand = up();
        act(&mut hand);
        hand.broke(rule);
    }
    // Fetched and not executed is busy too.
    let mut hand = up();
    hand.submit(entry_command(SID));
    hand.ring();
    let tail = hand.tail;
    while hand.registers.read64(0x2000) != tail {}
    hand.write_control(hand.control & !CMD_BUF_EN);
    hand.broke(Rule::CommandsSwitchedOffWhileBusy);

    // Moved elsewhere, correctly.
    let mut hand = up();
    let on = hand.control;
    hand.write_control(on & !CMD_BUF_EN);
    assert!(hand.awaits(COMMAND_RUN, 0));
    hand.registers.write64(0x08, COMMANDS | RING);
    assert_eq!(
        hand.registers.read64(0x2008),
        0,
        "the base resets the pointers"
    );
    hand.tail = 0;
    hand.write_control(on);
    assert!(hand.wait());
    hand.machine.assert_no_violations();

    for base in [COMMANDS | 7 << 56, 1 << 51 | RING] {
        let mut hand = Hand::new(UnitConfig::default());
        hand.registers.write64(0x08, base);
        hand.write_control(COHERENT | CMD_BUF_EN);
        hand.broke(Rule::CommandBufferInvalid);
    }
}

#[test]
fn waits_can_be_lost_and_commands_can_fail() {
    let mut hand = up();
    hand.machine.inject(0, Injection::LostWaits(1));
    assert!(!hand.wait());
    assert!(hand.wait());
    hand.machine.inject(0, Injection::StuckCommands);
    assert!(!hand.wait());
    hand.machine.inject(0, Injection::Nothing);
    assert!(hand.wait());
    hand.machine.inject(0, Injection::IllegalCommands(1));
    assert!(!hand.wait());
    assert_eq!(hand.next_event()[0], 5 << 60);
    hand.machine.assert_no_violations();

    let mut hand = up();
    hand.machine.inject(0, Injection::CommandHardwareErrors(1));
    let place = COMMANDS + hand.tail;
    assert!(!hand.wait());
    assert_eq!(hand.next_event(), [6 << 60 | 1 << 57, place]);
    let registers = [0x40, 0x48, 0x50].map(|at| hand.registers.read64(at));
    assert_eq!(registers, [6 << 60 | 1 << 57, place, 1]);
    hand.registers.write64(0x50, 1);
    assert_eq!(hand.registers.read64(0x50), 0);
    hand.machine.assert_no_violations();

    // A store where there is no memory.
    let mut hand = up();
    hand.submit((1 << 60 | 1 << 49 | 1, 5));
    assert!(!hand.wait());
    assert_eq!(hand.next_event(), [6 << 60 | 1 << 57, 1 << 49]);

    let mut hand = Hand::new(UnitConfig::default());
    hand.machine.inject(0, Injection::StuckRun(COMMAND_RUN));
    hand.prepare();
    hand.write_control(hand.control | IOMMU_EN);
    assert!(!hand.awaits(COMMAND_RUN, COMMAND_RUN));
}

#[test]
fn a_wait_can_raise_an_interrupt() {
    let mut hand = up();
    hand.machine.set_msi(0, 0xfee0_1000, 0x41);
    hand.submit((1 << 60 | 2, 0));
    assert!(hand.wait());
    assert_eq!(hand.status() & 4, 4, "ComWaitInt");
    assert!(hand.machine.messages(0).is_empty(), "not asked for");
    hand.write_control(hand.control | 1 << 4);
    hand.registers.write64(0x2020, 4);
    hand.submit((1 << 60 | 2, 0));
    assert!(hand.wait());
    assert_eq!(hand.machine.messages(0), [(0xfee0_1000, 0x41)]);
    hand.machine.assert_no_violations();
}

#[test]
fn events_tell_the_order_of_things() {
    let mut hand = up();
    assert!(!hand.machine.take_events().is_empty());
    let before = hand.machine.counters(0);
    hand.block();
    hand.submit(entry_command(SID));
    hand.submit(BARRIER);
    hand.submit(domain_command(1));
    assert!(hand.wait());
    let events = hand.machine.take_events();
    assert_eq!(events.first(), Some(&Event::TailWritten { unit: 0 }));
    assert_eq!(events.last(), Some(&Event::WaitDone { unit: 0 }));
    assert_eq!(events.len(), 4);
    let spent = hand.machine.counters(0) - before;
    assert_eq!(
        (
            spent.commands(),
            spent.waits,
            spent.barriers,
            spent.mmio_writes
        ),
        (4, 1, 1, 1)
    );
    assert_eq!((spent.entry_commands, spent.page_commands), (1, 1));
}

#[test]
fn the_commands_can_stop_in_the_middle() {
    let mut hand = up();
    hand.machine.inject(0, Injection::StuckCommandsAfter(9));
    hand.block();
    hand.submit(entry_command(SID));
    hand.submit(ALL);
    assert!(!hand.wait());
    hand.machine.inject(0, Injection::Nothing);
    for _ in 0..20 {
        let _ = hand.status();
    }
    assert_eq!(write(&hand), Err(Reason::NoWrite));
}
