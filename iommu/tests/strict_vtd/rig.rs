//! A machine with units, each brought up or not, and two partitions' worth of memory.

use handoff_abi::RequesterId;
use handoff_abi::{ApicId, DomainId, InterruptMessage, InterruptTarget, PhysAddr, PhysRange};
use iommu::vtd::{AdoptError, Config, Pending, PrepareError, State, Unit};
use iommu::{Access, Reach};
use iommu_model::{Clock, Machine, MachineConfig, Registers, Schedule, Tables};
pub(crate) use iommu_model::{Reason, UnitConfig};

pub(crate) type Vtd = Unit<Registers, Tables, Clock>;

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

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const WBF: u32 = 1 << 27;
pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IRE: u32 = 1 << 25;
pub(crate) const SIRTP: u32 = 1 << 24;
pub(crate) const CFI: u32 = 1 << 23;

pub(crate) fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

pub(crate) fn window(unit: usize) -> u64 {
    0xfed9_0000 + unit as u64 * 0x1_0000
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

pub(crate) fn message() -> InterruptMessage {
    InterruptMessage {
        address: PhysAddr(0xfee0_3000),
        data: 0x61,
    }
}

pub(crate) fn config() -> Config {
    Config {
        iova_limit: 1 << 39,
        host_address_bits: 46,
        interrupt_entries: 256,
        extended_interrupt_mode: false,
        timeout_microseconds: 20_000,
        fault_message: Some(message()),
    }
}

/// One machine, its drivers.
pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) units: Vec<Vtd>,
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
) -> Result<Vtd, PrepareError> {
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
        let machine = machine(schedule, models);
        let units = models
            .iter()
            .enumerate()
            .map(|(i, model)| {
                let config = Config {
                    extended_interrupt_mode: model.extended_interrupts,
                    ..config()
                };
                prepare(&machine, i, model, config).unwrap()
            })
            .collect();
        Self { machine, units }
    }

    /// Units that are enabled, each with the domains `A` and `B` mapped to their memory as it is.
    pub(crate) fn up(schedule: Schedule, models: &[UnitConfig]) -> Self {
        let mut rig = Self::prepared(schedule, models);
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
            write_buffer: true,
            ..plain.clone()
        },
        UnitConfig {
            caching_mode: true,
            ..plain.clone()
        },
        UnitConfig {
            srtp_invalidates: true,
            sirtp_invalidates: true,
            ..plain.clone()
        },
        UnitConfig {
            coherent: false,
            write_buffer: true,
            caching_mode: true,
            protected_low: true,
            protected_high: true,
            protected_at_start: true,
            extended_interrupts: true,
            ..plain.clone()
        },
        UnitConfig {
            address_widths: 0b0100,
            large_pages: 0,
            ..plain.clone()
        },
        UnitConfig {
            address_widths: 0b0010,
            guest_width: 39,
            large_pages: 1,
            fault_records: 1,
            domain_bits_code: 0,
            page_selective: false,
            max_address_mask: 0,
            pass_through: false,
            ..plain.clone()
        },
        UnitConfig {
            address_widths: 0b1000,
            guest_width: 57,
            fault_offset: 0x100,
            fault_records: 256,
            host_width: 52,
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
) -> Result<Vtd, AdoptError> {
    Unit::adopt(
        machine.registers(unit),
        machine.memory(),
        machine.clock(),
        range(window(unit), model.window_length().into()),
        arena(unit),
        state,
        Config {
            extended_interrupt_mode: model.extended_interrupts,
            ..config()
        },
        allow,
    )
}

/// How devices are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Blocked, invalidated, installed.
    Batch,
}

/// Every way there is.
pub(crate) const WAYS: &[Way] = &[Way::Batch];

impl Rig {
    /// Moves devices of the first unit.
    pub(crate) fn make_move(&mut self, devices: &[RequesterId], to: Option<DomainId>, _way: Way) {
        self.units[0]
            .move_devices(devices, to, Pending::none())
            .unwrap();
    }
}

/// Memory of no domain.
pub(crate) const C_BASE: u64 = 0x2_0000_0000;

/// The most faults that a unit has records for, in [`Rig::announcing`].
pub(crate) const RECORDS: u32 = 8;

impl Rig {
    /// One unit with everything usual that announces its faults.
    pub(crate) fn announcing() -> Self {
        Self::one()
    }

    /// How often faults were announced.
    pub(crate) fn announced(&self) -> usize {
        self.machine.fault_messages(0).len()
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
        let _ = self.machine.msi(0, device.0, 0xfee0_1000, 0x30);
    }
}
