//! Bringing a unit up over a command buffer that somebody else left running.

use iommu::amd::{EnableError, InvalidateError, RegisterError, spec};
use iommu_model::amd::{Event, Injection, Machine, Schedule, UnitConfig};

use crate::rig::*;

const TABLE: u64 = 0x2000_0000;
const COMMANDS: u64 = 0x2200_0000;
const EVENTS: u64 = 0x2210_0000;

/// A machine whose unit was left on with a buffer of `1 << log` slots, in which `count` commands
/// that invalidate an entry were submitted from slot `first` on, and with no wait behind them.
fn left(model: &UnitConfig, schedule: Schedule, log: u64, first: u64, count: u64) -> Machine {
    let machine = machine(schedule, std::slice::from_ref(model));
    machine.fill(TABLE, &[0b11, 0, 0b1, 0], 512);
    let frames = (16 << log) / 0x1000;
    machine.fill(COMMANDS, &[2 << 60 | 0x77, 0], frames);
    let coherent = u64::from(model.coherent) << 10;
    machine.left_on(
        0,
        TABLE | 0x1ff,
        COMMANDS | log << 56,
        EVENTS | 9 << 56,
        CMD_BUF_EN | EVENT_LOG_EN | coherent,
    );
    // As if everything before `first` was done long ago.
    machine.force_register(0, (0x2000, first * 16));
    machine.force_register(0, (0x2008, (first + count) % (1 << log) * 16));
    machine
}

fn memory_of(machine: &Machine, log: u64) -> Vec<u64> {
    let words = (16 << log) / 8;
    (0..words)
        .map(|word| machine.peek(COMMANDS + word * 8))
        .collect()
}

#[test]
fn commands_that_were_left_in_a_buffer_are_done_before_it_is_switched_off() {
    for coherent in [false, true] {
        let model = UnitConfig {
            coherent,
            ..UnitConfig::default()
        };
        for schedule in schedules(1) {
            for (log, first, count) in [(8, 0, 40), (9, 500, 12), (9, 0, 0), (12, 4095, 1)] {
                let machine = left(&model, schedule, log, first, count);
                let before = memory_of(&machine, log);
                let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
                unit.enable_over(&mut machine.memory()).unwrap();
                assert!(machine.counters(0).entry_commands >= count);
                assert_eq!(memory_of(&machine, log), before, "put back");
                machine.audit();
                machine.assert_no_violations();
            }
        }
    }
}

#[test]
fn a_buffer_that_runs_is_left_alone_until_its_memory_is_given() {
    let model = UnitConfig::default();
    let machine = left(&model, Schedule::Lazy, 9, 0, 4);
    let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
    let refused = EnableError::QueueRuns(range(COMMANDS, 16 << 9));
    assert_eq!(unit.enable(), Err(refused));
    assert_eq!(machine.counters(0).mmio_writes, 0);
    unit.enable_over(&mut machine.memory()).unwrap();
    // Its own it closes by itself.
    unit.enable().unwrap();
    machine.audit();
    machine.assert_no_violations();
}

#[test]
fn a_buffer_that_stopped_at_an_error_is_switched_off_as_it_is() {
    // Before it is looked at, and while it is waited for.
    for (bad, seen) in [(0, false), (3, true)] {
        let model = UnitConfig {
            command_steps: 50,
            ..UnitConfig::default()
        };
        let machine = left(&model, Schedule::Lazy, 9, 0, 0);
        let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
        machine.poke(COMMANDS + bad * 16, 0xf << 60);
        machine.force_register(0, (0x2008, 4 * 16));
        let result = unit.enable_over(&mut machine.memory());
        let stopped = matches!(
            result,
            Err(EnableError::Invalidate(InvalidateError::Refused { .. }))
        );
        assert_eq!((stopped, result.is_ok()), (seen, !seen), "{result:?}");
        unit.enable().unwrap();
        machine.forget_violations();
        machine.audit();
        machine.assert_no_violations();
    }
}

#[test]
fn a_buffer_that_stands_still_ends_in_an_error_and_nothing_is_switched_off() {
    for injection in [Injection::StuckCommands, Injection::LostWaits(1)] {
        let model = UnitConfig::default();
        let machine = left(&model, Schedule::Lazy, 9, 0, 4);
        let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
        machine.inject(0, injection);
        let error = unit.enable_over(&mut machine.memory()).unwrap_err();
        let EnableError::Invalidate(InvalidateError::Register(RegisterError::Timeout {
            register,
            ..
        })) = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(register, spec::Register::CommandBufferHead.into());
        let control = |event: &Event| matches!(event, Event::Control { .. });
        assert!(!machine.take_events().iter().any(control), "switched off");
        machine.inject(0, Injection::Nothing);
        unit.enable_over(&mut machine.memory()).unwrap();
        machine.audit();
        machine.assert_no_violations();
    }
}

#[test]
fn a_buffer_that_cannot_be_one_is_refused_before_anything_is_written() {
    let model = UnitConfig::default();
    let inside = arena(0).base().0 | 9 << 56;
    let beyond = (1 << 46) | 9 << 56;
    for (base, tail) in [(inside, 0), (beyond, 0), (COMMANDS | 8 << 56, 16 << 8)] {
        let machine = left(&model, Schedule::Lazy, 9, 0, 0);
        machine.left_on(
            0,
            TABLE | 0x1ff,
            base,
            EVENTS | 9 << 56,
            CMD_BUF_EN | EVENT_LOG_EN | 1 << 10,
        );
        machine.force_register(0, (0x2008, tail));
        let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
        let address = base;
        assert_eq!(
            unit.enable_over(&mut machine.memory()),
            Err(EnableError::QueueUnusable { address, tail })
        );
        assert_eq!(machine.counters(0).mmio_writes, 0);
    }
}
