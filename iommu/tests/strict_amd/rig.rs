//! A machine with units, each brought up or not, and two partitions' worth of memory.

use handoff_abi::{ApicId, DomainId, InterruptTarget, PhysAddr, PhysRange, RequesterId};
use iommu::amd::{
    AdoptError, CapabilityHeader, Config, InterruptFormat, Pending, PrepareError, State, Unit,
};
use iommu::{Access, Reach};
use iommu_model::amd::{Clock, Machine, MachineConfig, Registers, Schedule, Tables};
pub(crate) use iommu_model::amd::{Reason, UnitConfig};

pub(crate) type Amd = Unit<Registers, Tables, Clock>;

/// The first domain and its memory.
pub(crate) const A: DomainId = DomainId(1);
pub(crate) const A_BASE: u64 = 0x1_0000_0000;
/// The second domain and its memory.
pub(crate) const B: DomainId = DomainId(2);
pub(crate) const B_BASE: u64 = 0x1_8000_0000;
pub(crate) const PART: u64 = 0x40_0000;

/// Any device.
pub(crate) const DEVICE: RequesterId = RequesterId(0x0208);
/// Another.
pub(crate) const OTHER: RequesterId = RequesterId(0x0310);

pub(crate) const IOMMU_EN: u64 = 1;
pub(crate) const EVENT_LOG_EN: u64 = 1 << 2;
pub(crate) const CMD_BUF_EN: u64 = 1 << 12;
pub(crate) const GA_EN: u64 = 1 << 17;

pub(crate) fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

pub(crate) fn window(unit: usize) -> u64 {
    0xfed8_0000 + unit as u64 * 0x1_0000
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

pub(crate) fn config(model: &UnitConfig) -> Config {
    Config {
        iova_limit: 1 << 39,
        host_address_bits: 46,
        capability: CapabilityHeader::from_bits_retain(model.capability()),
        ivhd_flags: u8::from(model.coherent) << 5,
        interrupt_format: if model.x2apic {
            InterruptFormat::Bits128X2Apic
        } else {
            InterruptFormat::Bits32
        },
        timeout_microseconds: 200_000,
        fault_interrupt: false,
    }
}

/// One machine, its drivers.
pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) units: Vec<Amd>,
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
) -> Result<Amd, PrepareError> {
    Unit::prepare(
        machine.registers(unit),
        machine.memory(),
        machine.clock(),
        range(window(unit), model.window_length().into()),
        arena(unit),
        config,
    )
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

    /// Looks through all tables; nothing may have gone wrong.
    #[track_caller]
    pub(crate) fn sound(&self) {
        self.machine.audit();
        self.machine.assert_no_violations();
    }
}

/// Every kind of unit that differs in what the driver has to do.
pub(crate) fn models() -> Vec<UnitConfig> {
    let plain = UnitConfig::default();
    vec![
        plain.clone(),
        UnitConfig {
            coherent: false,
            ..plain.clone()
        },
        UnitConfig {
            caches_not_present: true,
            ..plain.clone()
        },
        UnitConfig {
            invalidate_all: false,
            guest_apic: false,
            levels: 4,
            ..plain.clone()
        },
        UnitConfig {
            x2apic: true,
            coherent: false,
            caches_not_present: true,
            prefetch: true,
            segments: 3,
            many_interrupts: true,
            remote_iotlb: true,
            commands_snoop: true,
            ..plain
        },
    ]
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
) -> Result<Amd, AdoptError> {
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

/// How devices are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Blocked, invalidated, installed.
    Batch,
    /// The device table is exchanged, where the unit can and the devices are many.
    Switch,
}

/// Every way there is.
pub(crate) const WAYS: &[Way] = &[Way::Batch, Way::Switch];

impl Rig {
    /// Moves devices of the first unit.
    pub(crate) fn make_move(&mut self, devices: &[RequesterId], to: Option<DomainId>, way: Way) {
        let unit = &mut self.units[0];
        let moving = match way {
            Way::Batch => unit.start_move(devices, to, Pending::none()),
            Way::Switch => {
                let prepared = unit.prepare_move(devices, to).unwrap();
                unit.start_prepared(prepared, Pending::none())
            }
        };
        unit.finish_move(moving.unwrap()).unwrap();
    }
}

/// Memory of no domain.
pub(crate) const C_BASE: u64 = 0x2_0000_0000;

/// The most events that the unit's log holds.
pub(crate) const RECORDS: u32 = 512;

impl Rig {
    /// One unit with everything usual that announces its faults.
    pub(crate) fn announcing() -> Self {
        let mut rig = Self::up(Schedule::Eager, &[UnitConfig::default()]);
        rig.machine.set_msi(0, 0xfee0_3000, 0x61);
        rig.units[0].set_fault_interrupt(true).unwrap();
        rig
    }

    /// How often faults were announced.
    pub(crate) fn announced(&self) -> usize {
        self.machine.messages(0).len()
    }

    /// How many requests the unit refused.
    pub(crate) fn faults_made(&self) -> usize {
        self.machine.all_faults(0).len()
    }

    /// Lets the unit do what it has to.
    pub(crate) fn idle(&self) {
        let _ = iommu::Deadline::expired(&mut self.machine.clock());
    }

    /// Keeps the unit from telling of a device.
    pub(crate) fn silence(&mut self, device: RequesterId) {
        let silenced = self.units[0].silence(device, true).unwrap();
        self.flush(silenced);
    }

    /// Has a device send a message that the unit refuses.
    pub(crate) fn forge_interrupt(&self, device: RequesterId) {
        let _ = self.machine.msi(0, device.0, 0xfee0_0000, 0x30);
    }
}
