//! The machine: units, memory, time, and the handles that a driver is given.

use core::cell::RefCell;
use core::fmt;
use std::collections::VecDeque;
use std::rc::Rc;

use handoff_abi::PhysAddr;
use iommu::{Deadline, RegisterIo, TableMemory};

use crate::config::{MachineConfig, Schedule, UnitConfig};
use crate::fabric::{Arrival, Fabric};
use crate::memory::{self, Memory};
use crate::pci::Effect;
use crate::report::{Counters, Event, MemoryCounters, Reason, Rule, Violation};
use crate::unit::{Log, Unit};

/// Loads of one word in a row that software may make without looking at the clock.
const UNBOUNDED_POLLS: u32 = 100_000;

pub(crate) struct State {
    pub(crate) config: MachineConfig,
    pub(crate) memory: Memory,
    pub(crate) units: Vec<Unit>,
    pub(crate) log: Log,
    pub(crate) counters: MemoryCounters,
    now: u64,
    random: u64,
    /// How many things software did.
    pub(crate) actions: u64,
    pub(crate) attackers: Vec<(usize, u16, u64)>,
    pub(crate) attacks: Vec<Attack>,
    pub(crate) fabric: Fabric<Reason>,
    /// The word that was loaded last, and how often in a row without a look at the clock.
    polled: (u64, u32),
}

impl State {
    fn random(&mut self, below: u64) -> u64 {
        // xorshift64*: small, seeded, good enough to pick schedules.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn step_unit(&mut self, number: usize) {
        let schedule = self.config.schedule;
        let unit = &mut self.units[number];
        unit.step(&mut self.memory, &mut self.log, schedule);
    }

    /// Software did something. `polling` says whether it looked at something that units change.
    pub(crate) fn action(&mut self, polling: bool) {
        self.actions += 1;
        if matches!(self.config.schedule, Schedule::Random(_)) && self.random(16) == 0 {
            // A write buffer drains by itself some time.
            let number = self.random(self.units.len() as u64) as usize;
            self.units[number].write_buffer.clear();
        }
        for number in 0..self.units.len() {
            let injected = &mut self.units[number].injected;
            injected.gone |= injected.gone_after.is_some_and(|w| self.actions >= w);
            injected.stuck_queue |= injected.stuck_after.is_some_and(|w| self.actions >= w);
            match self.config.schedule {
                Schedule::Lazy => {
                    if polling {
                        self.step_unit(number);
                    }
                }
                Schedule::Eager => {
                    while self.units[number].busy() {
                        let before = (self.units[number].iqh, self.units[number].command);
                        self.step_unit(number);
                        let unit = &self.units[number];
                        if before.0 == unit.iqh
                            && before.1.is_some() == unit.command.is_some()
                            && unit.protected_steps == 0
                        {
                            break;
                        }
                    }
                }
                Schedule::Random(_) => {
                    let steps = self.random(4) + u64::from(polling);
                    for _ in 0..steps {
                        self.step_unit(number);
                    }
                }
            }
        }
        self.attack();
    }

    fn attack(&mut self) {
        for &(unit, sid, iova) in &self.attackers {
            let result = self.units[unit].request(&self.memory, sid, iova, true);
            self.attacks.push(Attack {
                action: self.actions,
                sid,
                result: result.map(|(at, _)| at),
            });
        }
        let Self { units, memory, .. } = self;
        self.fabric.advance(self.actions, |unit, sid, iova| {
            let result = units[unit].request(memory, sid, iova, true);
            result.map(|(at, _)| at)
        });
    }

    fn check_alignment(&mut self, at: u64) -> bool {
        if !at.is_multiple_of(8) {
            let detail = format!("{at:#x}");
            self.log.broken(0, Rule::MemoryAccessMisaligned, detail);
            return false;
        }
        true
    }

    fn load(&mut self, at: u64) -> u64 {
        self.counters.loads += 1;
        if !self.check_alignment(at) {
            return 0;
        }
        self.polled = match self.polled {
            (last, count) if last == at => (at, count + 1),
            _ => (at, 0),
        };
        assert!(
            self.polled.1 < UNBOUNDED_POLLS,
            "memory at {at:#x} is polled without a deadline"
        );
        self.action(true);
        self.memory.processor(at)
    }

    fn store(&mut self, at: u64, value: u64) {
        self.counters.stores += 1;
        if !self.check_alignment(at) {
            return;
        }
        let old = self.memory.processor(at);
        for unit in &mut self.units {
            if unit.pending_slot(at) && old != value {
                let detail = format!("{value:#x} at {at:#x}");
                self.log
                    .broken(unit.number, Rule::PendingDescriptorOverwritten, detail);
            }
            if unit.config.coherent {
                unit.delay_write(at, old);
            }
            unit.check_store(&self.memory, &mut self.log, at, old, value);
        }
        self.memory.store(at, value);
        for unit in &mut self.units {
            unit.after_store(&self.memory, at);
            unit.prefetch_after(&self.memory, at);
        }
        // Any cache line may leave the caches by itself at any time.
        if matches!(self.config.schedule, Schedule::Random(_)) && self.random(3) == 0 {
            self.write_line_back(at);
        }
        self.action(false);
    }

    /// A store of 16 bytes at once, as CMPXCHG16B makes it.
    fn store_pair(&mut self, at: u64, pair: (u64, u64)) {
        self.counters.stores += 1;
        if !at.is_multiple_of(16) {
            let detail = format!("16 bytes at {at:#x}");
            self.log.broken(0, Rule::MemoryAccessMisaligned, detail);
            return;
        }
        let old = (self.memory.processor(at), self.memory.processor(at + 8));
        for unit in &mut self.units {
            if unit.pending_slot(at) && old != pair {
                let detail = format!("{pair:x?} at {at:#x}");
                self.log
                    .broken(unit.number, Rule::PendingDescriptorOverwritten, detail);
            }
            if unit.config.coherent {
                unit.delay_write(at, old.0);
                unit.delay_write(at + 8, old.1);
            }
            unit.check_pair(&self.memory, &mut self.log, at, pair);
        }
        self.memory.store_pair(at, pair);
        for unit in &mut self.units {
            unit.after_store(&self.memory, at);
            unit.prefetch_after(&self.memory, at);
        }
        if matches!(self.config.schedule, Schedule::Random(_)) && self.random(3) == 0 {
            self.write_line_back(at);
        }
        self.action(false);
    }

    fn write_line_back(&mut self, at: u64) {
        let changed = self.memory.write_line_back(at);
        for unit in &mut self.units {
            if !unit.config.coherent {
                for &(word, old) in &changed {
                    unit.delay_write(word, old);
                }
                for &(word, _) in &changed {
                    unit.prefetch_after(&self.memory, word);
                }
            }
        }
    }
}

/// One try of an attacking device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// After how many things that software did.
    pub action: u64,
    /// The device.
    pub sid: u16,
    /// Where its write would have landed, or why it was blocked.
    pub result: Result<u64, Reason>,
}

/// A simulated machine: some remapping units, memory, time.
///
/// Clones share one machine.
#[derive(Clone)]
pub struct Machine(pub(crate) Rc<RefCell<State>>);

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({} units)", self.0.borrow().units.len())
    }
}

impl Machine {
    /// A machine with these units.
    #[must_use]
    pub fn new(config: MachineConfig, units: &[UnitConfig]) -> Self {
        let random = match config.schedule {
            Schedule::Random(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 1,
        };
        Self(Rc::new(RefCell::new(State {
            memory: Memory::new(config.rubbish),
            config,
            units: units
                .iter()
                .enumerate()
                .map(|(number, config)| Unit::new(number, config.clone()))
                .collect(),
            log: Log {
                violations: Vec::new(),
                events: VecDeque::new(),
            },
            counters: MemoryCounters::default(),
            now: 0,
            random,
            actions: 0,
            attackers: Vec::new(),
            attacks: Vec::new(),
            fabric: Fabric::default(),
            polled: (0, 0),
        })))
    }

    /// The registers of a unit, for a driver.
    #[must_use]
    pub fn registers(&self, unit: usize) -> Registers {
        Registers {
            machine: self.clone(),
            unit,
        }
    }

    /// The memory, for a driver.
    #[must_use]
    pub fn memory(&self) -> Tables {
        Tables(self.clone())
    }

    /// A clock, for a driver.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock {
            machine: self.clone(),
            end: 0,
            overdue: 0,
        }
    }

    /// The rules that were broken so far.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.0.borrow().log.violations.clone()
    }

    /// Fails the test if a rule was broken.
    ///
    /// # Panics
    /// Where there are violations; the message lists them.
    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(
            violations.is_empty(),
            "{} broken rules:\n{}",
            violations.len(),
            violations
                .iter()
                .map(|v| format!("  {v}\n"))
                .collect::<String>()
        );
    }

    /// Forgets the rules that were broken so far, for a test that breaks them on purpose.
    pub fn forget_violations(&self) {
        self.0.borrow_mut().log.violations.clear();
    }

    /// What a unit did so far.
    #[must_use]
    pub fn counters(&self, unit: usize) -> Counters {
        self.0.borrow().units[unit].counters
    }

    /// What was done to memory so far.
    #[must_use]
    pub fn memory_counters(&self) -> MemoryCounters {
        self.0.borrow().counters
    }

    /// How many stores were made so far to the pages that `length` bytes from `base` are in.
    #[must_use]
    pub fn stores_to(&self, base: u64, length: u64) -> u64 {
        self.0.borrow().memory.stores_to(base, length)
    }

    /// The history since the last call.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        self.0.borrow_mut().log.events.drain(..).collect()
    }

    /// Has a device, a bus master, issue posted writes to `iova` without end. They wait in the fabric
    /// and arrive at the unit at any moment.
    pub fn stream(&self, unit: usize, sid: u16, iova: u64) {
        self.0.borrow_mut().fabric.stream(unit, sid, iova);
    }

    /// Follows what a function does besides DMA. It makes requests with its own id.
    pub fn follow(&self, effect: Effect) {
        let mut state = self.0.borrow_mut();
        match effect {
            Effect::Access(_) => state.action(false),
            Effect::BusMaster(function, on) => state.fabric.set_issuing(function.requester.0, on),
            Effect::Completion(function) => state.fabric.push_ahead(function.requester.0),
        }
    }

    /// The moments since the last call at which a posted write could have arrived.
    #[must_use]
    pub fn take_arrivals(&self) -> Vec<Arrival<Reason>> {
        self.0.borrow_mut().fabric.take_arrivals()
    }

    /// Microseconds since the start.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.borrow().now
    }

    /// How many things software did so far: register accesses, loads, stores, looks at the clock.
    #[must_use]
    pub fn actions(&self) -> u64 {
        self.0.borrow().actions
    }
}

/// A unit's registers.
#[derive(Clone, Debug)]
pub struct Registers {
    machine: Machine,
    unit: usize,
}

impl Registers {
    fn read(&self, offset: u32, width: u32) -> u64 {
        let mut state = self.machine.0.borrow_mut();
        state.action(true);
        let State { units, log, .. } = &mut *state;
        units[self.unit].read(log, offset, width)
    }

    fn write(&self, offset: u32, width: u32, value: u64) {
        let mut state = self.machine.0.borrow_mut();
        let State {
            units, log, memory, ..
        } = &mut *state;
        units[self.unit].write(memory, log, offset, width, value);
        state.action(false);
    }
}

impl RegisterIo for Registers {
    fn read32(&mut self, offset: u32) -> u32 {
        self.read(offset, 4) as u32
    }
    fn write32(&mut self, offset: u32, value: u32) {
        self.write(offset, 4, value.into());
    }
    fn read64(&mut self, offset: u32) -> u64 {
        self.read(offset, 8)
    }
    fn write64(&mut self, offset: u32, value: u64) {
        self.write(offset, 8, value);
    }
}

/// The memory that holds tables and queues.
#[derive(Clone, Debug)]
pub struct Tables(Machine);

impl TableMemory for Tables {
    fn load(&self, at: PhysAddr) -> u64 {
        self.0.0.borrow_mut().load(at.0)
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.0.0.borrow_mut().store(at.0, value);
    }

    fn write_back(&mut self, at: PhysAddr, length: u64) {
        let mut state = self.0.0.borrow_mut();
        for line in memory::lines(at.0, length) {
            state.counters.lines_written_back += 1;
            state.write_line_back(line);
        }
        state.action(false);
    }
}

impl Tables {
    /// Writes 16 bytes at `at`, a multiple of 16, in one store, `low` first in memory. The drivers
    /// that the model is for do without; others do not.
    pub fn store_pair(&mut self, at: PhysAddr, low: u64, high: u64) {
        self.0.0.borrow_mut().store_pair(at.0, (low, high));
    }
}

/// A clock that advances only when it is looked at.
#[derive(Clone, Debug)]
pub struct Clock {
    machine: Machine,
    end: u64,
    overdue: u32,
}

impl Deadline for Clock {
    fn start(&mut self, microseconds: u32) {
        self.end = self.machine.0.borrow().now + u64::from(microseconds);
        self.overdue = 0;
    }

    fn expired(&mut self) -> bool {
        let mut state = self.machine.0.borrow_mut();
        state.action(true);
        state.now += u64::from(state.config.clock_step);
        state.polled.1 = 0;
        for unit in &mut state.units {
            unit.unbounded_polls = 0;
        }
        let over = state.now >= self.end;
        if over {
            self.overdue += 1;
            assert!(self.overdue < 1000, "polling goes on past its deadline");
        }
        over
    }
}
