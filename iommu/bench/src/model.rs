//! Measurements on the strict models: what the unit and the memory saw, and which rules a way broke.

use core::fmt;
use core::ops::{Add, Sub};
use std::collections::BTreeSet;

use handoff_abi::{
    AmdViUnit, FRAME_SIZE, PhysAddr, PhysRange, RequesterId, UnitDescription, UnitKind,
};
use iommu::{Deadline, MoveMethod, RegisterIo};
use iommu_model::amd::Machine as AmdMachine;
use iommu_model::{Machine as VtdMachine, MachineConfig, Schedule};

use crate::case::{Case, Vendor, devices};
use crate::platform::{Observer, Phase, Platform, WideMemory};
use crate::run::{MEMORY, STATUS, run};

/// What was done in a phase, as the model saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stores to tables, of 8 or of 16 bytes.
    pub table_stores: u64,
    /// Stores to the queue or command buffer, and to the words in which waits say that they are
    /// done.
    pub queue_stores: u64,
    /// Cache lines that were written back.
    pub lines_written_back: u64,
    /// Invalidation commands: everything that the unit was told but waits and barriers.
    pub commands: u64,
    /// Waits that software can wait for.
    pub waits: u64,
    /// Waits that only keep order among commands.
    pub barriers: u64,
    /// Register writes.
    pub mmio_writes: u64,
    /// Register reads.
    pub mmio_reads: u64,
}

impl Counts {
    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            table_stores: with(self.table_stores, other.table_stores),
            queue_stores: with(self.queue_stores, other.queue_stores),
            lines_written_back: with(self.lines_written_back, other.lines_written_back),
            commands: with(self.commands, other.commands),
            waits: with(self.waits, other.waits),
            barriers: with(self.barriers, other.barriers),
            mmio_writes: with(self.mmio_writes, other.mmio_writes),
            mmio_reads: with(self.mmio_reads, other.mmio_reads),
        }
    }

    /// Register accesses.
    #[must_use]
    pub const fn mmio(&self) -> u64 {
        self.mmio_writes + self.mmio_reads
    }
}

impl Add for Counts {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.zip(other, |one, other| one + other)
    }
}

impl Sub for Counts {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        self.zip(before, |after, before| after - before)
    }
}

/// The phases of one move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases<T> {
    /// Before the blackout.
    pub prepare: T,
    /// The blackout.
    pub blackout: T,
    /// After it, before the devices can begin.
    pub settle: T,
}

/// What a move cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Which.
    pub case: Case,
    /// How Baton made it.
    pub method: Option<MoveMethod>,
    /// What it cost, on a unit that is done with everything at once: the least there is.
    pub counts: Phases<Counts>,
    /// How many waits had to be done in each phase before software could go on, on a unit that
    /// does nothing before it is waited for.
    pub waited: Phases<u64>,
    /// The rules that were broken.
    pub broken: BTreeSet<String>,
}

/// What was not as it must be, whatever a way costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Wrong {}

/// Which unit is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One with the capabilities of the unit that QEMU 7.2 emulates. VT-d's does not snoop the
    /// caches; AMD-Vi's is asked to.
    AsEmulated,
    /// One that snoops and caches only what is present.
    Plain,
}

/// Measures one case.
///
/// # Errors
/// Where the move failed, a device does not reach what it should or reaches what it should not, or
/// the counts depend on when the unit does what it is told.
pub fn measure(kind: Kind, case: Case) -> Result<Measurement, Wrong> {
    let eager = once(kind, case, Schedule::Eager)?;
    let lazy = once(kind, case, Schedule::Lazy)?;
    let total = |one: &Once| {
        let Phases {
            prepare,
            blackout,
            settle,
        } = one.counts;
        Counts {
            // A driver may look at a register as long as a wait is not done.
            mmio_reads: 0,
            ..prepare + blackout + settle
        }
    };
    if (total(&eager), &eager.broken, eager.method) != (total(&lazy), &lazy.broken, lazy.method) {
        return Err(Wrong(format!(
            "{case}: a quick unit and a slow one differ: {eager:?} {lazy:?}"
        )));
    }
    let waited = Phases {
        prepare: lazy.counts.prepare.waits,
        blackout: lazy.counts.blackout.waits,
        settle: lazy.counts.settle.waits,
    };
    Ok(Measurement {
        case,
        method: eager.method,
        counts: eager.counts,
        waited,
        broken: eager.broken,
    })
}

/// What is said of Baton's ways and does not hold of these measurements, in plain sentences: one wait
/// in the blackout, no rule broken, a switch that costs the same for any number of devices, and no
/// more waits and register accesses than any other driver's for more than a few.
#[must_use]
pub fn unkept(measurements: &[Measurement]) -> Vec<String> {
    let mut unkept = Vec::new();
    let ours = measurements.iter().filter(|m| m.case.way.is_ours());
    for one in ours.clone() {
        let case = one.case;
        if one.waited.blackout != 1 {
            let waits = one.waited.blackout;
            unkept.push(format!("{case}: {waits} waits in the blackout, not 1"));
        }
        for rule in &one.broken {
            unkept.push(format!("{case}: the move breaks a rule: {rule}"));
        }
        let of_others = measurements.iter().filter(|m| {
            !m.case.way.is_ours()
                && (m.case.vendor, m.case.devices) == (case.vendor, case.devices)
                && case.devices >= MANY
        });
        for other in of_others {
            let cost = |m: &Measurement| {
                let Phases {
                    blackout, settle, ..
                } = m.counts;
                let both = blackout + settle;
                (both.waits, both.mmio())
            };
            let (mine, theirs) = (cost(one), cost(other));
            if mine.0 >= theirs.0 || mine.1 >= theirs.1 {
                unkept.push(format!(
                    "{case}: {mine:?} waits and register accesses are not fewer than the {theirs:?} \
                     of {}",
                    other.case.way
                ));
            }
        }
    }
    let switched: Vec<_> = ours
        .filter(|m| m.method == Some(MoveMethod::Switch))
        .collect();
    for pair in switched.windows(2) {
        let [one, other] = pair else { continue };
        if one.case.vendor == other.case.vendor && one.counts.blackout != other.counts.blackout {
            unkept.push(format!(
                "{}: a switch costs {:?}, and {:?} for {} devices",
                one.case, one.counts.blackout, other.counts.blackout, other.case.devices
            ));
        }
    }
    unkept
}

/// From how many devices on Baton's ways cost less than any other's in each respect.
const MANY: usize = 8;

#[derive(Debug)]
struct Once {
    method: Option<MoveMethod>,
    counts: Phases<Counts>,
    broken: BTreeSet<String>,
}

fn once(kind: Kind, case: Case, schedule: Schedule) -> Result<Once, Wrong> {
    let config = MachineConfig {
        schedule,
        ..MachineConfig::default()
    };
    match case.vendor {
        Vendor::VtD => {
            let mut unit = iommu_model::UnitConfig::default();
            if kind == Kind::AsEmulated {
                unit.address_widths = 0b0010;
                unit.guest_width = 39;
                unit.fault_records = 1;
                unit.coherent = false;
            }
            let machine = VtdMachine::new(config, std::slice::from_ref(&unit));
            on(&OnModel(machine, 0), case)
        }
        Vendor::AmdVi => {
            let mut unit = iommu_model::amd::UnitConfig::default();
            if kind == Kind::AsEmulated {
                unit.prefetch = true;
                unit.caches_not_present = true;
                unit.msi_registers = false;
            }
            let machine = AmdMachine::new(config, std::slice::from_ref(&unit));
            on(&OnModel(machine, unit.capability()), case)
        }
    }
}

fn on<M: Strict>(platform: &OnModel<M>, case: Case) -> Result<Once, Wrong> {
    let machine = &platform.0;
    let mut watch = Watch {
        machine,
        queue: STATUS,
        seen: Vec::new(),
    };
    let wrong = |what: String| Wrong(format!("{case}: {what}"));
    let method = run(platform, case, &mut watch).map_err(|failure| wrong(failure.to_string()))?;
    let [prepare, blackout, settle, done] = watch.seen[..] else {
        return Err(wrong("a phase is missing".to_owned()));
    };
    for device in devices(case.devices) {
        let reach = MEMORY.map(|memory| machine.lets_write(device.0, memory.base()));
        if reach != [false, true] {
            return Err(wrong(format!("{device} reaches {reach:?} of the domains")));
        }
    }
    machine.release(MEMORY[0]);
    Ok(Once {
        method,
        counts: Phases {
            prepare: blackout - prepare,
            blackout: settle - blackout,
            settle: done - settle,
        },
        broken: machine.broken(),
    })
}

/// A model of either vendor.
trait Strict: Clone {
    const KIND: UnitKind;
    type Registers: RegisterIo;
    type Memory: WideMemory;
    type Clock: Deadline;
    fn registers(&self) -> Self::Registers;
    fn memory(&self) -> Self::Memory;
    fn clock(&self) -> Self::Clock;
    /// The bytes of the register window.
    fn length(&self) -> u64;
    /// The queue or command buffer that the unit runs.
    fn queue(&self) -> PhysRange;
    /// All but the stores, which are not told apart.
    fn counted(&self) -> Counts;
    fn stores(&self) -> u64;
    fn stores_to(&self, range: PhysRange) -> u64;
    fn lets_write(&self, device: u16, at: PhysAddr) -> bool;
    fn release(&self, memory: PhysRange);
    fn broken(&self) -> BTreeSet<String>;
}

macro_rules! strict {
    ($machine:ty, $module:path, $kind:expr, $length:literal, $queue:literal, $bytes:expr, $counted:expr) => {
        const _: () = {
            use $module as model;

            impl WideMemory for model::Tables {
                fn store_pair(&mut self, at: PhysAddr, low: u64, high: u64) {
                    Self::store_pair(self, at, low, high);
                }
            }

            impl Strict for $machine {
                const KIND: UnitKind = $kind;
                type Registers = model::Registers;
                type Memory = model::Tables;
                type Clock = model::Clock;

                fn registers(&self) -> Self::Registers {
                    Self::registers(self, 0)
                }
                fn memory(&self) -> Self::Memory {
                    Self::memory(self)
                }
                fn clock(&self) -> Self::Clock {
                    Self::clock(self)
                }
                fn length(&self) -> u64 {
                    $length
                }
                fn queue(&self) -> PhysRange {
                    let register = Self::registers(self, 0).read64($queue);
                    let bytes: fn(u64) -> u64 = $bytes;
                    let base = register & 0x000f_ffff_ffff_f000;
                    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + bytes(register)))
                }
                fn counted(&self) -> Counts {
                    let counted: fn(model::Counters) -> Counts = $counted;
                    Counts {
                        lines_written_back: self.memory_counters().lines_written_back,
                        ..counted(self.counters(0))
                    }
                }
                fn stores(&self) -> u64 {
                    self.memory_counters().stores
                }
                fn stores_to(&self, range: PhysRange) -> u64 {
                    Self::stores_to(self, range.base().0, range.length())
                }
                fn lets_write(&self, device: u16, at: PhysAddr) -> bool {
                    self.dma_write(0, device, at.0, b"x").landed == [(at.0, 1)]
                }
                fn release(&self, memory: PhysRange) {
                    Self::release(self, memory.base().0, memory.length(), &[]);
                    self.audit();
                }
                fn broken(&self) -> BTreeSet<String> {
                    let violations = self.violations();
                    violations.iter().map(|v| v.rule.to_string()).collect()
                }
            }
        };
    };
}

// IQA has the size in bits 2:0, in frames.
strict!(
    VtdMachine,
    iommu_model,
    UnitKind::VtD,
    0x1000,
    0x90,
    |iqa| FRAME_SIZE << (iqa & 7),
    |counters| Counts {
        commands: counters.descriptors() - counters.waits,
        waits: counters.waits,
        mmio_writes: counters.mmio_writes,
        mmio_reads: counters.mmio_reads,
        ..Counts::default()
    }
);

// The command buffer's base has the size in bits 59:56, in commands.
strict!(
    AmdMachine,
    iommu_model::amd,
    UnitKind::AmdVi,
    0x4000,
    0x8,
    |base| 16 << (base >> 56 & 0xf),
    |counters| Counts {
        commands: counters.commands() - counters.waits - counters.barriers,
        waits: counters.waits,
        barriers: counters.barriers,
        mmio_writes: counters.mmio_writes,
        mmio_reads: counters.mmio_reads,
        ..Counts::default()
    }
);

/// A modelled machine, and the head of its unit's capability block.
struct OnModel<M>(M, u32);

impl<M: Strict> Platform for OnModel<M> {
    type Registers = M::Registers;
    type Memory = M::Memory;
    type Clock = M::Clock;

    fn parts(&self) -> (M::Registers, M::Memory, M::Clock) {
        (self.0.registers(), self.0.memory(), self.0.clock())
    }
    fn description(&self) -> UnitDescription {
        let base = PhysAddr(0xfed8_0000);
        UnitDescription {
            kind: M::KIND,
            segment: 0,
            registers: PhysRange::from_bounds(base, PhysAddr(base.0 + self.0.length())),
            include_all: true,
            amd_vi: (M::KIND == UnitKind::AmdVi).then_some(AmdViUnit {
                function: RequesterId(8),
                capability_offset: 0x40,
                // Coherent.
                flags: 1 << 5,
            }),
        }
    }
    fn capability_header(&self) -> u32 {
        self.1
    }
}

struct Watch<'a, M> {
    machine: &'a M,
    queue: PhysRange,
    seen: Vec<Counts>,
}

impl<M: Strict> Observer for Watch<'_, M> {
    fn begin(&mut self, phase: Phase) {
        if phase == Phase::Prepare {
            self.queue = self.machine.queue();
        }
        let machine = self.machine;
        let queue_stores = machine.stores_to(self.queue) + machine.stores_to(STATUS);
        self.seen.push(Counts {
            table_stores: machine.stores() - queue_stores,
            queue_stores,
            ..machine.counted()
        });
    }
}
