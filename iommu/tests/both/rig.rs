//! A machine with units, each brought up or not, and two partitions' worth of memory.
//!
//! Compiled for either vendor: what they differ in is in the module `vendor` of each.

use handoff_abi::{ApicId, DomainId, InterruptTarget, PhysAddr, PhysRange, RequesterId};
use iommu::{
    Access, AdoptError, Deadline, MoveError, MoveMethod, Pending, PrepareError, Reach, RegisterIo,
    TableMemory,
};
use iommu_model::{MachineConfig, Schedule};

pub(crate) use crate::vendor::*;

/// A driver over registers and memory of the test's own.
pub(crate) type Driver<R, M> = Unit<R, M, Clock>;

/// The first domain and its memory.
pub(crate) const A: DomainId = DomainId(1);
pub(crate) const A_BASE: u64 = 0x1_0000_0000;
/// The second domain and its memory.
pub(crate) const B: DomainId = DomainId(2);
pub(crate) const B_BASE: u64 = 0x1_8000_0000;
pub(crate) const PART: u64 = 0x40_0000;
/// Memory of no domain.
pub(crate) const C_BASE: u64 = 0x2_0000_0000;

/// How devices are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Blocked, invalidated, installed.
    Batch,
    /// The root table or device table is exchanged, where the unit can do that.
    Switch,
}

/// Every way there is.
pub(crate) const WAYS: &[Way] = &[Way::Batch, Way::Switch];

/// Any device.
pub(crate) const DEVICE: RequesterId = RequesterId(0x0208);
/// Another.
pub(crate) const OTHER: RequesterId = RequesterId(0x0310);

pub(crate) fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

pub(crate) fn arena(unit: usize) -> PhysRange {
    range(0x4000_0000 + unit as u64 * 0x100_0000, 0x80_0000)
}

pub(crate) fn target(destination: u32, vector: u8) -> InterruptTarget {
    InterruptTarget {
        destination: ApicId(destination),
        vector,
    }
}

/// So many devices, over a few buses.
pub(crate) fn devices(count: u16) -> Vec<RequesterId> {
    (0..count)
        .map(|i| RequesterId(((i % 3 + 0x10) << 8) | (i / 3)))
        .collect()
}

/// One machine, its drivers.
pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) units: Vec<Driver<Registers, Tables>>,
}

pub(crate) fn machine(schedule: Schedule, units: &[UnitConfig]) -> Machine {
    let config = MachineConfig {
        schedule,
        ..MachineConfig::default()
    };
    Machine::new(config, units)
}

pub(crate) fn prepare(
    machine: &Machine,
    unit: usize,
    model: &UnitConfig,
    config: Config,
) -> Result<Driver<Registers, Tables>, PrepareError> {
    Unit::prepare(
        machine.registers(unit),
        machine.memory(),
        machine.clock(),
        range(window(unit), model.window_length().into()),
        arena(unit),
        config,
    )
}

/// Prepares the first unit over registers and memory of the test's own.
pub(crate) fn prepare_over<R: RegisterIo, M: TableMemory>(
    registers: R,
    memory: M,
    machine: &Machine,
    model: &UnitConfig,
) -> Result<Driver<R, M>, PrepareError> {
    let window = range(window(0), model.window_length().into());
    let config = config(model);
    Unit::prepare(registers, memory, machine.clock(), window, arena(0), config)
}

impl Rig {
    /// Units that are prepared and not enabled.
    pub(crate) fn prepared(schedule: Schedule, models: &[UnitConfig]) -> Self {
        Self::prepared_with(schedule, models, |config| config)
    }

    pub(crate) fn prepared_with(
        schedule: Schedule,
        models: &[UnitConfig],
        change: impl Fn(Config) -> Config,
    ) -> Self {
        let machine = machine(schedule, models);
        let units = models
            .iter()
            .enumerate()
            .map(|(i, model)| prepare(&machine, i, model, change(config(model))).unwrap())
            .collect();
        Self { machine, units }
    }

    /// Units that are enabled, each with the domains `A` and `B` mapped to their memory as it is.
    pub(crate) fn up(schedule: Schedule, models: &[UnitConfig]) -> Self {
        Self::up_with(schedule, models, |config| config)
    }

    pub(crate) fn up_with(
        schedule: Schedule,
        models: &[UnitConfig],
        change: impl Fn(Config) -> Config,
    ) -> Self {
        let mut rig = Self::prepared_with(schedule, models, change);
        for unit in &mut rig.units {
            for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
                unit.create_domain(domain).unwrap();
                let mapped = unit.map(domain, base, range(base, PART), Access::READ_WRITE);
                unit.flush(mapped.unwrap()).unwrap();
            }
            unit.enable().unwrap();
        }
        rig.machine.assert_no_violations();
        rig
    }

    /// One unit with everything usual.
    pub(crate) fn one() -> Self {
        Self::up(Schedule::Lazy, &[UnitConfig::default()])
    }

    pub(crate) fn attach(&mut self, device: RequesterId, domain: DomainId) {
        let pending = self.units[0].attach(device, domain).unwrap();
        self.units[0].flush(pending).unwrap();
    }

    pub(crate) fn flush(&mut self, pending: Pending) {
        self.units[0].flush(pending).unwrap();
    }

    /// Moves devices of the first unit. `ready` is called when nothing is left to prepare.
    pub(crate) fn try_move(
        &mut self,
        devices: &[RequesterId],
        to: Option<DomainId>,
        way: Way,
        with: Pending,
        ready: impl FnOnce(&Machine),
    ) -> Result<MoveMethod, MoveError> {
        let unit = &mut self.units[0];
        let prepared = match way {
            Way::Batch => None,
            Way::Switch => Some(unit.prepare_switch(devices, to)?),
        };
        ready(&self.machine);
        let moving = match prepared {
            None => unit.start_move(devices, to, with),
            Some(prepared) => unit.start_prepared(prepared, with),
        };
        unit.finish_move(moving?)
    }

    /// Moves devices of the first unit.
    pub(crate) fn make_move(&mut self, devices: &[RequesterId], to: Option<DomainId>, way: Way) {
        let moved = self.try_move(devices, to, way, Pending::none(), |_| ());
        moved.unwrap();
    }

    /// Takes the first unit over from its record, as the next steward does.
    pub(crate) fn hand_on(&mut self, model: &UnitConfig) {
        let state = self.units[0].record().unwrap();
        let machine = self.machine.clone();
        self.units[0] = adopt(&machine, 0, model, &state, |_| true).unwrap();
    }

    /// Where a write to `iova` lands, or why not.
    pub(crate) fn write(&self, device: RequesterId, iova: u64) -> Result<u64, Reason> {
        let dma = self.machine.dma_write(0, device.0, iova, b"x");
        dma.blocked.map_or_else(|| Ok(dma.landed[0].0), Err)
    }

    /// Where a read from `iova` comes from, or why not.
    pub(crate) fn read(&self, device: RequesterId, iova: u64) -> Result<u64, Reason> {
        let dma = self.machine.dma_read(0, device.0, iova, 1);
        dma.blocked.map_or_else(|| Ok(dma.landed[0].0), Err)
    }

    /// Keeps the unit from telling of a device.
    pub(crate) fn silence(&mut self, device: RequesterId) {
        let silenced = self.units[0].silence(device, true).unwrap();
        self.flush(silenced);
    }

    /// Whether each of the devices reaches the memory of this domain and of no other.
    #[track_caller]
    pub(crate) fn all_in(&self, devices: &[RequesterId], domain: Option<DomainId>) {
        for &device in devices {
            let (a, b) = (self.write(device, A_BASE), self.write(device, B_BASE));
            assert_eq!(
                (a.is_ok(), b.is_ok()),
                (domain == Some(A), domain == Some(B)),
                "{device}"
            );
            assert_eq!(self.units[0].domain_of(device), domain);
        }
    }

    /// Lets the units do what they have to.
    pub(crate) fn idle(&self) {
        let _ = self.machine.clock().expired();
    }

    /// How many requests the first unit refused.
    pub(crate) fn faults_made(&self) -> usize {
        self.machine.all_faults(0).len()
    }

    /// Looks through all tables; nothing may have gone wrong.
    #[track_caller]
    pub(crate) fn sound(&self) {
        self.machine.audit();
        self.machine.assert_no_violations();
    }
}

/// Every schedule worth trying, with `seeds` random ones.
pub(crate) fn schedules(seeds: u64) -> impl Iterator<Item = Schedule> {
    [Schedule::Lazy, Schedule::Eager]
        .into_iter()
        .chain((1..=seeds).map(Schedule::Random))
}

/// Takes a unit over from its record, as the next steward does.
pub(crate) fn adopt(
    machine: &Machine,
    unit: usize,
    model: &UnitConfig,
    state: &State,
    allow: impl FnMut(&Reach) -> bool,
) -> Result<Driver<Registers, Tables>, AdoptError> {
    Unit::adopt(
        machine.registers(unit),
        machine.memory(),
        machine.clock(),
        range(window(unit), model.window_length().into()),
        arena(unit),
        state,
        config(model),
        allow,
    )
}

/// A unit with devices in both domains, one interrupt each, and its record.
pub(crate) fn running(schedule: Schedule, model: &UnitConfig) -> (Rig, State) {
    let mut rig = Rig::up(schedule, std::slice::from_ref(model));
    rig.attach(DEVICE, A);
    rig.attach(OTHER, B);
    for (device, destination) in [(DEVICE, 1), (OTHER, 2)] {
        let (_, pending) = rig.units[0]
            .allocate_interrupt(device, target(destination, 0x40))
            .unwrap();
        rig.flush(pending);
    }
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    assert_eq!(rig.write(OTHER, B_BASE), Ok(B_BASE));
    let state = rig.units[0].record().unwrap();
    (rig, state)
}
