//! Units (AMD IOMMU, sections 5.2.2.1 to 5.2.2.3).

use bitflags::bitflags;
use handoff_abi::{AmdViUnit, PhysAddr, PhysRange, RequesterId, UnitDescription, UnitKind};

use super::device::Devices;
use crate::table::RawEntry;
use crate::table::definitions::UnitKey;
use crate::table::raw::{IvhdExtensionRaw, IvhdRaw};

bitflags! {
    /// Flags of a unit: how firmware wants its control register. Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IvhdFlags: u8 {
        /// `HtTunEn`.
        const HT_TUNNEL = 1;
        /// `PassPW`.
        const PASS_POSTED_WRITES = 1 << 1;
        /// `ResPassPW`.
        const RESPONSES_PASS_POSTED_WRITES = 1 << 2;
        /// `Isoc`.
        const ISOCHRONOUS = 1 << 3;
        /// `IotlbSup`: devices' translation caches are supported.
        const IOTLB_SUPPORT = 1 << 4;
        /// `Coherent`: the unit's reads of its tables see the processors' caches.
        const COHERENT = 1 << 5;
        /// `PreFSup`, in blocks of type 10h.
        const PREFETCH_SUPPORT = 1 << 6;
        /// `PPRSup`, in blocks of type 10h.
        const PERIPHERAL_PAGE_REQUESTS = 1 << 7;
        const _ = !0;
    }
}

/// A remapping unit: I/O Virtualization Hardware Definition, type 10h, 11h or 40h.
#[derive(Clone, Copy, Debug)]
pub struct Ivhd<'a> {
    /// The unit in the vocabulary of the other crates.
    pub description: UnitDescription,
    /// The type of the block: 10h, 11h or 40h.
    pub block: u8,
    /// Where in the table the block begins, in bytes.
    pub offset: usize,
    /// How firmware wants its control register.
    pub flags: IvhdFlags,
    /// The unit's own PCI function. Firmware's ranges often include it; it is never translated.
    pub requester: RequesterId,
    /// Where in that function's configuration space the IOMMU's capability block is.
    pub capability: u16,
    /// `IOMMU Info`: bits 4:0 are the number of the MSI message, bits 12:8 the unit id of
    /// HyperTransport.
    pub information: u16,
    /// Type 10h: `Feature Info`. Types 11h and 40h: `Attributes`.
    pub attributes: u32,
    /// Types 11h and 40h: the extended feature register (MMIO offset 30h), as firmware saw it.
    pub features: Option<u64>,
    /// Type 40h: the second extended feature register (MMIO offset 1A0h), as firmware saw it.
    pub features2: Option<u64>,
    /// The whole block.
    bytes: &'a [u8],
}

/// Bytes of registers without performance counters (AMD IOMMU, section 3.4).
const REGISTERS: u64 = 0x4000;
/// Bytes of registers with performance counters.
const REGISTERS_WITH_COUNTERS: u64 = 0x8_0000;

impl<'a> Ivhd<'a> {
    pub(super) fn new(
        entry: &RawEntry<'a>,
        raw: &IvhdRaw,
        extension: Option<&IvhdExtensionRaw>,
    ) -> Self {
        let attributes = raw.features.get();
        // `PCSup` of the feature register. Type 10h does not say; it has the numbers of counters
        // and of banks.
        let has_counters = match extension {
            Some(extension) => extension.features.get() & 1 << 9 != 0,
            None => attributes >> 13 & 0xf != 0 && attributes >> 17 & 0x3f != 0,
        };
        let length = match has_counters {
            true => REGISTERS_WITH_COUNTERS,
            false => REGISTERS,
        };
        let base = PhysAddr(raw.base.get());
        let registers = PhysRange::new(base, length).unwrap_or(PhysRange::from_bounds(base, base));
        Self {
            description: UnitDescription {
                kind: UnitKind::AmdVi,
                segment: raw.segment.get(),
                registers,
                include_all: false,
                amd_vi: Some(AmdViUnit {
                    function: RequesterId(raw.requester.get()),
                    capability_offset: raw.capability.get(),
                    flags: raw.flags,
                }),
            },
            block: raw.kind,
            offset: entry.offset,
            flags: IvhdFlags::from_bits_retain(raw.flags),
            requester: RequesterId(raw.requester.get()),
            capability: raw.capability.get(),
            information: raw.information.get(),
            attributes,
            features: extension.map(|extension| extension.features.get()),
            features2: extension
                .filter(|_| raw.kind == 0x40)
                .map(|extension| extension.features2.get()),
            bytes: entry.bytes,
        }
    }

    /// Whether there can be a unit at all: its registers are at a multiple of 16 KiB and neither
    /// at 0 nor at the very end of the address space.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let registers = self.description.registers;
        registers.base().0 != 0
            && !registers.is_empty()
            && registers.base().is_aligned_to(REGISTERS)
    }

    /// The devices it names, in order.
    #[must_use]
    pub fn devices(&self) -> Devices<'a> {
        let fixed = match self.features {
            Some(_) => size_of::<IvhdRaw>().saturating_add(size_of::<IvhdExtensionRaw>()),
            None => size_of::<IvhdRaw>(),
        };
        let devices = self.bytes.get(fixed..).unwrap_or(&[]);
        Devices::new(self.offset.saturating_add(fixed), devices)
    }

    /// The number of the message that the unit interrupts with (`MSInum`).
    #[must_use]
    pub const fn message_number(&self) -> u8 {
        (self.information & 0x1f) as u8
    }

    /// What the blocks of one unit have in common: segment group and the unit's own function.
    pub(super) const fn key(&self) -> UnitKey {
        (self.description.segment, self.requester.0 as u64)
    }

    /// How good the block is among those of its unit. Of two blocks of one type the longer one
    /// counts, then the one with the greater bytes: which comes first must not matter.
    pub(super) fn rank(&self) -> (bool, u8, usize, &'a [u8]) {
        let readable = self.devices().all(|device| device.is_ok());
        (readable, self.block, self.bytes.len(), self.bytes)
    }
}
