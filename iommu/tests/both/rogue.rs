//! Registers that give any value: a unit that vanishes, or that is broken, or is not one.
//!
//! Whatever it reads, the driver ends within its time, does not panic, and touches no memory but its
//! arena.

use std::cell::Cell;
use std::rc::Rc;

use handoff_abi::{PhysAddr, PhysRange};
use iommu::{Access, Pending, RegisterIo, TableMemory};
use iommu_model::Schedule;
use proptest::prelude::*;

use crate::rig::*;

/// What reads give.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Ones, as where nothing answers.
    Ones,
    /// Zeros.
    Zeros,
    /// Anything.
    Any,
    /// What the register holds, but for one bit.
    Flipped,
}

/// From when on registers lie, and how.
#[derive(Clone, Debug, Default)]
struct Lies(Rc<Cell<Option<(u32, Answer, u64)>>>, Rc<Cell<u64>>);

impl Lies {
    /// Registers lie after so many accesses more.
    fn begin(&self, after: u32, answer: Answer, seed: u64) {
        self.0.set(Some((after, answer, seed | 1)));
        self.1.set(0);
    }

    fn end(&self) {
        self.0.set(None);
        self.1.set(0);
    }

    fn answer(&self, truth: u64) -> u64 {
        let accesses = self.1.get() + 1;
        assert!(accesses < 200_000, "polled without a deadline");
        self.1.set(accesses);
        let Some((after, answer, mut random)) = self.0.get() else {
            return truth;
        };
        if after > 0 {
            self.0.set(Some((after - 1, answer, random)));
            return truth;
        }
        // xorshift64: any value but always the same for a seed.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.0.set(Some((0, answer, random)));
        match answer {
            Answer::Ones => u64::MAX,
            Answer::Zeros => 0,
            Answer::Any => random,
            Answer::Flipped => truth ^ 1 << (random >> 58),
        }
    }
}

struct Rogue<R> {
    registers: R,
    lies: Lies,
}

impl<R: RegisterIo> RegisterIo for Rogue<R> {
    fn read32(&mut self, offset: u32) -> u32 {
        let truth = self.registers.read32(offset);
        self.lies.answer(truth.into()) as u32
    }
    fn write32(&mut self, offset: u32, value: u32) {
        self.registers.write32(offset, value);
    }
    fn read64(&mut self, offset: u32) -> u64 {
        let truth = self.registers.read64(offset);
        self.lies.answer(truth)
    }
    fn write64(&mut self, offset: u32, value: u64) {
        self.registers.write64(offset, value);
    }
}

/// Memory of which the driver may touch the arena alone.
struct Guarded<M> {
    memory: M,
    arena: PhysRange,
}

impl<M: TableMemory> TableMemory for Guarded<M> {
    fn load(&self, at: PhysAddr) -> u64 {
        assert!(self.arena.contains(at), "{at} is read");
        self.memory.load(at)
    }
    fn store(&mut self, at: PhysAddr, value: u64) {
        assert!(self.arena.contains(at), "{at} is written");
        self.memory.store(at, value);
    }
    fn write_back(&mut self, at: PhysAddr, length: u64) {
        assert!(self.arena.contains(at), "{at} is written back");
        self.memory.write_back(at, length);
    }
}

type Rogues = Driver<Rogue<Registers>, Guarded<Tables>>;

/// A unit that is prepared over registers that tell the truth so far, or lie from the beginning.
fn prepared(machine: &Machine, model: &UnitConfig, lies: &Lies) -> Option<Rogues> {
    let registers = Rogue {
        registers: machine.registers(0),
        lies: lies.clone(),
    };
    let memory = Guarded {
        memory: machine.memory(),
        arena: arena(0),
    };
    prepare_over(registers, memory, machine, model).ok()
}

/// Any operation that looks at registers; what it gives does not matter.
fn operate(unit: &mut Rogues, which: u8) {
    match which % 10 {
        0 => {
            let _ = unit.enable();
        }
        1 => {
            if let Ok(pending) = unit.attach(DEVICE, A) {
                let _ = unit.flush(pending);
            }
        }
        2 => {
            let pending = unit.block(DEVICE);
            let _ = unit.flush(pending);
        }
        3 => {
            let _ = unit.move_devices(&[DEVICE, OTHER], Some(B), Pending::none());
        }
        4 => {
            let _ = unit.drain_faults(|_| ());
        }
        5 => {
            let _ = unit.record();
        }
        6 => {
            let _ = unit.recover_queue();
        }
        7 => {
            let _ = unit.invalidate_everything();
        }
        8 => {
            if let Ok((_, pending)) = unit.allocate_interrupt(OTHER, target(1, 0x41)) {
                let _ = unit.flush(pending);
            }
        }
        _ => {
            if let Ok(pending) = unit.unmap(A, A_BASE, PART) {
                let _ = unit.flush(pending);
            }
            let mapped = unit.map(A, A_BASE, range(A_BASE, PART), Access::READ_WRITE);
            if let Ok(pending) = mapped {
                let _ = unit.flush(pending);
            }
        }
    }
}

/// A unit that is enabled, and has the two domains.
fn enabled(machine: &Machine, lies: &Lies) -> Rogues {
    let mut unit = prepared(machine, &UnitConfig::default(), lies).unwrap();
    for domain in [A, B] {
        unit.create_domain(domain).unwrap();
    }
    unit.enable().unwrap();
    unit
}

#[test]
fn a_unit_that_vanishes_at_any_access_of_anything_ends_it_in_time() {
    for which in 0..10 {
        let machine = machine(Schedule::Lazy, &[UnitConfig::default()]);
        let lies = Lies::default();
        let mut unit = enabled(&machine, &lies);
        for after in 0..16 {
            let before = machine.now();
            lies.begin(after, Answer::Ones, 1);
            operate(&mut unit, which);
            assert!(machine.now() - before < 20_000_000, "{which}, {after}");
            lies.end();
            operate(&mut unit, which);
        }
    }
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Ones),
        Just(Answer::Zeros),
        Just(Answer::Any),
        Just(Answer::Flipped),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// A unit in use.
    #[test]
    fn whatever_a_running_units_registers_say_operations_end_and_stay_in_the_arena(
        steps in prop::collection::vec((0_u8..10, 0_u32..12, answer(), any::<u64>()), 1..60),
    ) {
        let machine = machine(Schedule::Lazy, &[UnitConfig::default()]);
        let lies = Lies::default();
        let mut unit = enabled(&machine, &lies);
        for (which, after, answer, seed) in steps {
            let before = machine.now();
            lies.begin(after, answer, seed);
            operate(&mut unit, which);
            prop_assert!(machine.now() - before < 20_000_000);
            lies.end();
            operate(&mut unit, which);
        }
    }

    /// A unit that is brought up.
    #[test]
    fn whatever_registers_say_a_unit_is_brought_up_or_refused(
        after in 0_u32..60,
        answer in answer(),
        seed: u64,
        then in prop::collection::vec(0_u8..10, 0..6),
    ) {
        let machine = machine(Schedule::Lazy, &[UnitConfig::default()]);
        let lies = Lies::default();
        lies.begin(after, answer, seed);
        if let Some(mut unit) = prepared(&machine, &UnitConfig::default(), &lies) {
            let _ = unit.create_domain(A);
            let _ = unit.enable();
            for which in then {
                operate(&mut unit, which);
            }
        }
        prop_assert!(machine.now() < 100_000_000);
    }
}
