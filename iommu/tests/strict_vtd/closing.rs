//! A queue that runs when the driver comes: whose memory is written to, when it is switched off, and
//! what happens where it cannot be.

use std::cell::Cell;

use handoff_abi::{PhysAddr, PhysRange};
use iommu::vtd::{EnableError, InvalidateError, RegisterError, spec};
use iommu::{Access, TableMemory};
use iommu_model::{Injection, Machine, Schedule, Tables, UnitConfig};

use crate::bring_up::firmware_tables;
use crate::rig::*;

const QUEUE: u64 = 0x7002_0000;
const DEVICE_OF_FIRMWARE: u16 = 0x00a0;
const REGION: u64 = 0x2000_0000;

/// The memory of firmware's queue, as an embedder gives it: this range and nothing else.
struct QueueMemory {
    tables: Tables,
    range: PhysRange,
    stores: Cell<u32>,
}

impl QueueMemory {
    fn new(machine: &Machine, range: PhysRange) -> Self {
        Self {
            tables: machine.memory(),
            range,
            stores: Cell::new(0),
        }
    }
}

impl TableMemory for QueueMemory {
    fn load(&self, at: PhysAddr) -> u64 {
        if self.range.contains(at) {
            self.tables.load(at)
        } else {
            0
        }
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.stores.set(self.stores.get() + 1);
        if self.range.contains(at) {
            self.tables.store(at, value);
        }
    }

    fn write_back(&mut self, at: PhysAddr, length: u64) {
        assert!(self.range.contains(at));
        self.tables.write_back(at, length);
    }
}

/// A unit that firmware left on with a queue of 2^`size` frames, done up to `slot`; the driver has
/// the device that firmware's tables have.
fn left(model: &UnitConfig, schedule: Schedule, size: u8, slot: u32, behind_wait: bool) -> Rig {
    let mut rig = Rig::prepared(schedule, std::slice::from_ref(model));
    let root = firmware_tables(&rig.machine, DEVICE_OF_FIRMWARE, REGION);
    let queue = QUEUE | u64::from(size);
    rig.machine.left_on(0, root, Some(0x7001_0007), Some(queue));
    rig.machine.left_queue(0, slot, behind_wait);
    let unit = &mut rig.units[0];
    unit.create_domain(A).unwrap();
    let mapped = unit.map(A, REGION, range(REGION, 0x20_0000), Access::READ_WRITE);
    unit.flush(mapped.unwrap()).unwrap();
    let device = handoff_abi::RequesterId(DEVICE_OF_FIRMWARE);
    let attached = unit.attach(device, A).unwrap();
    unit.flush(attached).unwrap();
    rig
}

fn memory_of(size: u8) -> PhysRange {
    range(QUEUE, 4096 << size)
}

#[test]
fn a_queue_that_runs_is_named_and_nothing_is_written() {
    for behind_wait in [false, true] {
        let mut rig = left(&UnitConfig::default(), Schedule::Lazy, 2, 9, behind_wait);
        let before = (rig.machine.latched(0), rig.machine.status(0));
        assert_eq!(
            rig.units[0].enable(),
            Err(EnableError::QueueRuns(memory_of(2)))
        );
        assert_eq!(rig.machine.counters(0).mmio_writes, 0);
        assert_eq!((rig.machine.latched(0), rig.machine.status(0)), before);
    }
}

#[test]
fn a_queue_that_runs_is_closed_behind_a_wait_whatever_came_last() {
    for model in models() {
        // Firmware's tables have three levels, and its device works from the start.
        let model = UnitConfig {
            protected_at_start: false,
            ..model
        };
        if model.address_widths & 2 == 0 {
            continue;
        }
        for schedule in schedules(2) {
            for (size, slot) in [(0, 0), (0, 255), (2, 1023)] {
                for behind_wait in [false, true] {
                    let mut rig = left(&model, schedule, size, slot, behind_wait);
                    let memory = memory_of(size);
                    let bytes = memory.length() as usize;
                    let before = rig.machine.peek_bytes(QUEUE, bytes);
                    rig.machine.attack(0, DEVICE_OF_FIRMWARE, REGION);
                    rig.machine.attack(0, DEVICE.0, A_BASE);
                    let mut queue = QueueMemory::new(&rig.machine, memory);
                    rig.units[0].enable_over(&mut queue).unwrap();
                    for attack in rig.machine.take_attacks() {
                        let expected = attack.sid == DEVICE_OF_FIRMWARE;
                        assert_eq!(attack.result.is_ok(), expected, "{attack:?}");
                    }
                    let after = rig.machine.peek_bytes(QUEUE, bytes);
                    assert!(before == after, "the slot is put back");
                    assert_eq!(queue.stores.get(), 4, "one slot, there and back");
                    rig.sound();
                }
            }
        }
    }
}

#[test]
fn memory_that_is_not_the_queue_is_noticed_before_the_unit_looks_at_it() {
    let mut rig = left(&UnitConfig::default(), Schedule::Eager, 0, 4, false);
    let elsewhere = range(QUEUE + 0x1_0000, 4096);
    let mut queue = QueueMemory::new(&rig.machine, elsewhere);
    assert_eq!(
        rig.units[0].enable_over(&mut queue),
        Err(EnableError::QueueMemory(range(QUEUE + 64, 16)))
    );
    assert_eq!(rig.machine.counters(0).tail_writes, 0);
    assert_eq!(rig.machine.status(0) & (TE | QIE | IRE), TE | QIE | IRE);
    rig.machine.assert_no_violations();
}

fn refused(status: spec::FaultStatus) -> InvalidateError {
    InvalidateError::Refused {
        register: spec::Register::FaultStatus.into(),
        value: status.bits().into(),
    }
}

#[test]
fn a_queue_that_stands_still_ends_in_an_error_and_nothing_is_switched_off() {
    for (injection, expected) in [
        (
            Injection::StuckQueue,
            InvalidateError::Register(RegisterError::Timeout {
                register: spec::Register::InvalidationQueueHead.into(),
                last: 64,
            }),
        ),
        (
            Injection::LostWaits(1),
            InvalidateError::Register(RegisterError::Timeout {
                register: spec::Register::InvalidationQueueHead.into(),
                last: 80,
            }),
        ),
        (Injection::TimeOuts(1), refused(spec::FaultStatus::ITE)),
        (Injection::QueueErrors(1), refused(spec::FaultStatus::IQE)),
    ] {
        let mut rig = left(&UnitConfig::default(), Schedule::Lazy, 0, 4, false);
        rig.machine.inject(0, injection);
        let mut queue = QueueMemory::new(&rig.machine, memory_of(0));
        let began = rig.machine.now();
        let error = rig.units[0].enable_over(&mut queue).unwrap_err();
        assert_eq!(error, EnableError::Invalidate(expected), "{injection:?}");
        let took = rig.machine.now() - began;
        assert!(took <= 2 * u64::from(config(&UnitConfig::default()).timeout_microseconds));
        let on = TE | QIE | IRE;
        assert_eq!(rig.machine.status(0) & on, on);
        assert_eq!(
            rig.machine.latched(0).0.map(|r| r & !0xfff),
            Some(0x7000_0000)
        );
        rig.machine.assert_no_violations();
    }
}

#[test]
fn what_kept_a_queue_from_being_closed_once_does_not_for_ever() {
    for injection in [Injection::LostWaits(1), Injection::TimeOuts(1)] {
        let mut rig = left(&UnitConfig::default(), Schedule::Lazy, 0, 4, false);
        rig.machine.inject(0, injection);
        let mut queue = QueueMemory::new(&rig.machine, memory_of(0));
        rig.units[0].enable_over(&mut queue).unwrap_err();
        rig.units[0].enable_over(&mut queue).unwrap();
        rig.sound();
    }
}

#[test]
fn a_queue_that_cannot_be_one_is_refused_before_anything_is_written() {
    let tables = arena(0).base().0;
    for address in [
        QUEUE | 1 << 11,
        tables + 0x10_0000,
        (tables - 4096) | 1,
        1 << 50,
    ] {
        let mut rig = left(&UnitConfig::default(), Schedule::Lazy, 0, 4, false);
        rig.machine
            .left_on(0, 0x7000_0000, Some(0x7001_0007), Some(address));
        let mut queue = rig.machine.memory();
        assert_eq!(
            rig.units[0].enable_over(&mut queue),
            Err(EnableError::QueueUnusable { address, tail: 64 })
        );
        assert_eq!(rig.machine.counters(0).mmio_writes, 0);
    }
}

#[test]
fn the_drivers_own_queue_needs_no_memory_from_outside() {
    for behind_wait in [false, true] {
        let mut rig = Rig::one();
        rig.machine.left_queue(0, 77, behind_wait);
        rig.units[0].enable().unwrap();
        rig.attach(DEVICE, A);
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
        rig.sound();
    }
}
