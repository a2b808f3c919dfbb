//! AMD-Vi: what the tests for either vendor and those for this one need to know of it.

use handoff_abi::{RequesterId, UnitKind};
use iommu::amd::{CapabilityHeader, InterruptFormat};
pub(crate) use iommu::amd::{Config, State, Unit};
use iommu_model::Schedule;
pub(crate) use iommu_model::amd::{
    Clock, Injection, Interrupt, Machine, Reason, Registers, Tables, UnitConfig,
};
use proptest::prelude::ProptestConfig;

use crate::rig::Rig;

/// The architecture.
pub(crate) const KIND: UnitKind = UnitKind::AmdVi;
/// How many random cases a property is tried with that needs a unit for each. It takes a quarter of a
/// million stores to lay one out.
pub(crate) fn cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases / 8,
        ..default
    }
}

pub(crate) const IOMMU_EN: u64 = 1;
pub(crate) const EVENT_LOG_EN: u64 = 1 << 2;
pub(crate) const CMD_BUF_EN: u64 = 1 << 12;
pub(crate) const GA_EN: u64 = 1 << 17;

/// The most events that the unit's log holds.
pub(crate) const RECORDS: u32 = 512;
/// Why a request of a device without a domain is refused.
pub(crate) const BLOCKED: Reason = Reason::NoWrite;
/// Why a write, or a read, to an address that is not mapped is refused.
pub(crate) const UNMAPPED: [Reason; 2] = [Reason::NotPresent; 2];

pub(crate) fn window(unit: usize) -> u64 {
    0xfed8_0000 + unit as u64 * 0x1_0000
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

/// What goes wrong in a unit once and is repaired.
pub(crate) const PASSING: [Injection; 3] = [
    Injection::IllegalCommands(1),
    Injection::CommandHardwareErrors(1),
    Injection::LostEvents(1),
];

/// Any of the models. An interrupt table that takes the place of another is one given away too
/// early to the model, see `where_both_halves_change_the_device_gets_another_table`; entries of 32
/// bits have no halves.
pub(crate) fn random_model(which: usize) -> UnitConfig {
    UnitConfig {
        x2apic: false,
        ..models()[which].clone()
    }
}

/// No command is fetched when software has done so many things more.
pub(crate) const fn stuck_after(actions: u64) -> Injection {
    Injection::StuckCommandsAfter(actions)
}

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

    /// Has a device send a message that the unit refuses.
    pub(crate) fn forge_interrupt(&self, device: RequesterId) {
        let _ = self.machine.msi(0, device.0, 0xfee0_0000, 0x30);
    }
}
