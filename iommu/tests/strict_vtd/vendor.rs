//! VT-d: what the tests for either vendor and those for this one need to know of it.

use handoff_abi::{InterruptMessage, PhysAddr, RequesterId, UnitKind};
pub(crate) use iommu::vtd::{Config, State, Unit};
pub(crate) use iommu_model::{
    Clock, Injection, Interrupt, Machine, Reason, Registers, Tables, UnitConfig,
};
use proptest::prelude::ProptestConfig;

use crate::rig::Rig;

/// The architecture.
pub(crate) const KIND: UnitKind = UnitKind::VtD;
/// How many random cases a property is tried with that needs a unit for each.
pub(crate) fn cases() -> ProptestConfig {
    ProptestConfig::default()
}

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const WBF: u32 = 1 << 27;
pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IRE: u32 = 1 << 25;
pub(crate) const SIRTP: u32 = 1 << 24;
pub(crate) const CFI: u32 = 1 << 23;

/// The most faults that a unit has records for.
pub(crate) const RECORDS: u32 = 8;
/// Why a request of a device without a domain is refused.
pub(crate) const BLOCKED: Reason = Reason::ContextNotPresent;
/// Why a write, or a read, to an address that is not mapped is refused.
pub(crate) const UNMAPPED: [Reason; 2] = [Reason::NoWrite, Reason::NoRead];

pub(crate) fn window(unit: usize) -> u64 {
    0xfed9_0000 + unit as u64 * 0x1_0000
}

pub(crate) fn message() -> InterruptMessage {
    InterruptMessage {
        address: PhysAddr(0xfee0_3000),
        data: 0x61,
    }
}

pub(crate) fn config(model: &UnitConfig) -> Config {
    Config {
        iova_limit: 1 << 39,
        host_address_bits: 46,
        interrupt_entries: 256,
        extended_interrupt_mode: model.extended_interrupts,
        timeout_microseconds: 20_000,
        fault_message: Some(message()),
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

/// What goes wrong in a unit once and is repaired.
pub(crate) const PASSING: [Injection; 3] = [
    Injection::QueueErrors(1),
    Injection::TimeOuts(1),
    Injection::CompletionErrors(1),
];

/// Any of the models.
pub(crate) fn random_model(which: usize) -> UnitConfig {
    models()[which].clone()
}

/// The queue stands still when software has done so many things more.
pub(crate) const fn stuck_after(actions: u64) -> Injection {
    Injection::StuckQueueAfter(actions)
}

impl Rig {
    /// One unit with everything usual that announces its faults.
    pub(crate) fn announcing() -> Self {
        Self::one()
    }

    /// How often faults were announced.
    pub(crate) fn announced(&self) -> usize {
        self.machine.fault_messages(0).len()
    }

    /// Has a device send a message that the unit refuses.
    pub(crate) fn forge_interrupt(&self, device: RequesterId) {
        let _ = self.machine.msi(0, device.0, 0xfee0_1000, 0x30);
    }
}
