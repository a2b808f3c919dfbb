//! The register set (section 11.4).

use core::fmt;

use bitflags::bitflags;
use handoff_abi::PhysAddr;

/// Bits 63:12, where registers and entries hold the address of a 4 KiB frame.
pub(super) const FRAME_MASK: u64 = !0xfff;

/// A register at a fixed offset from the unit's base (section 11.4, table of registers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u32)]
#[non_exhaustive]
pub enum Register {
    /// VER, 32 bits: architecture version (section 11.4.1).
    Version = 0x00,
    /// CAP, 64 bits (section 11.4.2).
    Capability = 0x08,
    /// ECAP, 64 bits (section 11.4.3).
    ExtendedCapability = 0x10,
    /// GCMD, 32 bits, write only (section 11.4.4.1).
    GlobalCommand = 0x18,
    /// GSTS, 32 bits, read only (section 11.4.4.2).
    GlobalStatus = 0x1c,
    /// RTADDR, 64 bits (section 11.4.5).
    RootTableAddress = 0x20,
    /// FSTS, 32 bits (section 11.4.7.1).
    FaultStatus = 0x34,
    /// FECTL, 32 bits: bit 31 masks the fault event (section 11.4.7.2).
    FaultEventControl = 0x38,
    /// FEDATA, 32 bits: data of the fault event's message (section 11.4.7.3).
    FaultEventData = 0x3c,
    /// FEADDR, 32 bits: low half of the message's address (section 11.4.7.4).
    FaultEventAddress = 0x40,
    /// FEUADDR, 32 bits: high half of the message's address (section 11.4.7.5).
    FaultEventUpperAddress = 0x44,
    /// PMEN, 32 bits (section 11.4.8.1).
    ProtectedMemoryEnable = 0x64,
    /// IQH, 64 bits: offset of the next descriptor the unit fetches, bits 18:4 (section 11.4.9.1).
    InvalidationQueueHead = 0x80,
    /// IQT, 64 bits: offset of the next descriptor software writes, bits 18:4 (section 11.4.9.2).
    InvalidationQueueTail = 0x88,
    /// IQA, 64 bits (section 11.4.9.3).
    InvalidationQueueAddress = 0x90,
    /// IRTA, 64 bits (section 11.4.10.1).
    InterruptTableAddress = 0xb8,
}

impl Register {
    /// The byte offset from the unit's base.
    #[must_use]
    pub const fn offset(self) -> u32 {
        self as u32
    }

    /// The specification's abbreviation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "VER",
            Self::Capability => "CAP",
            Self::ExtendedCapability => "ECAP",
            Self::GlobalCommand => "GCMD",
            Self::GlobalStatus => "GSTS",
            Self::RootTableAddress => "RTADDR",
            Self::FaultStatus => "FSTS",
            Self::FaultEventControl => "FECTL",
            Self::FaultEventData => "FEDATA",
            Self::FaultEventAddress => "FEADDR",
            Self::FaultEventUpperAddress => "FEUADDR",
            Self::ProtectedMemoryEnable => "PMEN",
            Self::InvalidationQueueHead => "IQH",
            Self::InvalidationQueueTail => "IQT",
            Self::InvalidationQueueAddress => "IQA",
            Self::InterruptTableAddress => "IRTA",
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// CAP, the Capability Register (section 11.4.2). Flags as constants, fields as methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Capability(u64);

bitflags! {
    impl Capability: u64 {
        /// Required Write-Buffer Flushing, bit 4: table updates need GCMD.WBF (section 6.8).
        const RWBF = 1 << 4;
        /// Protected Low-Memory Region, bit 5.
        const PLMR = 1 << 5;
        /// Protected High-Memory Region, bit 6.
        const PHMR = 1 << 6;
        /// Caching Mode, bit 7: entries that are not present may be cached (section 6.1).
        const CM = 1 << 7;
        /// Second-stage 2 MiB pages, bit 34 (SLLPS or SSLPS, bits 37:34).
        const PAGES_2M = 1 << 34;
        /// Second-stage 1 GiB pages, bit 35.
        const PAGES_1G = 1 << 35;
        /// Enhanced Set Interrupt Remap Table Pointer Support, bit 62: SIRTP invalidates the
        /// interrupt entry cache.
        const ESIRTPS = 1 << 62;
        /// Enhanced Set Root Table Pointer Support, bit 63: SRTP invalidates all
        /// DMA-remapping caches.
        const ESRTPS = 1 << 63;
        // Other flags and the fields.
        const _ = !0;
    }
}

impl Capability {
    /// How many domain ids the unit tells apart: 2^(4 + 2 ND), ND in bits 2:0.
    #[must_use]
    pub const fn domains(self) -> u32 {
        1 << (4 + 2 * (self.0 as u32 & 7))
    }

    /// SAGAW, bits 12:8: which table depths the unit walks, see [`AddressWidth`].
    ///
    /// [`AddressWidth`]: super::AddressWidth
    #[must_use]
    pub const fn supported_widths(self) -> u8 {
        (self.0 >> 8) as u8 & 0x1f
    }

    /// Maximum Guest Address Width: how many address bits a device may use, 1 to 64. MGAW, bits
    /// 21:16, holds one less.
    #[must_use]
    pub const fn guest_address_bits(self) -> u32 {
        (self.0 >> 16) as u32 % 64 + 1
    }

    /// Byte offset of the first fault recording register: FRO, bits 33:24, in 16 byte units.
    #[must_use]
    pub const fn fault_record_offset(self) -> u32 {
        ((self.0 >> 24) as u32 & 0x3ff) * 16
    }

    /// How many fault recording registers there are, 1 to 256. NFR, bits 47:40, holds one less.
    #[must_use]
    pub const fn fault_records(self) -> u32 {
        (self.0 >> 40) as u32 % 256 + 1
    }
}

/// ECAP, the Extended Capability Register (section 11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ExtendedCapability(u64);

bitflags! {
    impl ExtendedCapability: u64 {
        /// Page-walk Coherency, bit 0: the unit snoops the caches when it reads its tables.
        const C = 1 << 0;
        /// Queued Invalidation, bit 1.
        const QI = 1 << 1;
        /// Interrupt Remapping, bit 3.
        const IR = 1 << 3;
        /// Extended Interrupt Mode, bit 4: 32-bit APIC ids.
        const EIM = 1 << 4;
        // Other flags and the fields.
        const _ = !0;
    }
}

impl ExtendedCapability {
    /// Byte offset of the IOTLB registers: IRO, bits 17:8, in 16 byte units.
    #[must_use]
    pub const fn iotlb_offset(self) -> u32 {
        ((self.0 >> 8) as u32 & 0x3ff) * 16
    }
}

/// GSTS, the Global Status Register, and GCMD, the Global Command Register, whose bits have the
/// same places (section 11.4.4). Named for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GlobalStatus(u32);

bitflags! {
    impl GlobalStatus: u32 {
        /// Compatibility Format Interrupt Status, bit 23: interrupts that bypass remapping pass.
        const CFIS = 1 << 23;
        /// Interrupt Remapping Table Pointer Status, bit 24. One-shot command SIRTP.
        const IRTPS = 1 << 24;
        /// Interrupt Remapping Enable Status, bit 25.
        const IRES = 1 << 25;
        /// Queued Invalidation Enable Status, bit 26.
        const QIES = 1 << 26;
        /// Write Buffer Flush Status, bit 27: 1 while a flush goes on. One-shot command WBF.
        const WBFS = 1 << 27;
        /// Root Table Pointer Status, bit 30. One-shot command SRTP.
        const RTPS = 1 << 30;
        /// Translation Enable Status, bit 31.
        const TES = 1 << 31;
        // Reserved bits and advanced fault logging, which the driver leaves as they are.
        const _ = !0;
    }
}

impl GlobalStatus {
    /// What of a status read is written back with a command: all but the one-shot bits SRTP (30),
    /// SFL (29), WBF (27) and SIRTP (24), which must not be replayed (section 11.4.4.1).
    pub const PERSISTENT: Self = Self(0x96ff_ffff);
}

/// FSTS, the Fault Status Register (section 11.4.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FaultStatus(u32);

bitflags! {
    impl FaultStatus: u32 {
        /// Primary Fault Overflow, bit 0, write 1 to clear: a fault found no free record.
        const PFO = 1 << 0;
        /// Primary Pending Fault, bit 1: some record has its F bit set.
        const PPF = 1 << 1;
        /// Invalidation Queue Error, bit 4, write 1 to clear: a descriptor was malformed.
        const IQE = 1 << 4;
        /// Invalidation Completion Error, bit 5, write 1 to clear.
        const ICE = 1 << 5;
        /// Invalidation Time-out Error, bit 6, write 1 to clear.
        const ITE = 1 << 6;
        // The record index and reserved bits.
        const _ = !0;
    }
}

impl FaultStatus {
    /// The errors of the invalidation queue.
    pub const QUEUE_ERRORS: Self = Self(Self::IQE.0 | Self::ICE.0 | Self::ITE.0);

    /// Fault Record Index, bits 15:8: the first pending record. Only meaningful where
    /// [`PPF`](Self::PPF) is set.
    #[must_use]
    pub const fn record_index(self) -> u32 {
        self.0 >> 8 & 0xff
    }
}

/// PMEN, the Protected Memory Enable Register (section 11.4.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ProtectedMemoryEnable(u32);

bitflags! {
    impl ProtectedMemoryEnable: u32 {
        /// Protected Region Status, bit 0: the regions are protected now.
        const PRS = 1 << 0;
        /// Enable Protected Memory, bit 31.
        const EPM = 1 << 31;
        const _ = !0;
    }
}

/// Which kind of table RTADDR points to: TTM, bits 11:10 (section 11.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum TranslationMode {
    /// 00b: root and context tables of 16 byte entries.
    Legacy = 0,
    /// 01b: scalable-mode tables.
    Scalable = 1,
    /// 10b: reserved.
    Reserved = 2,
    /// 11b: all DMA is aborted.
    AbortDma = 3,
}

/// RTADDR, the Root Table Address Register (section 11.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RootTableAddress(pub u64);

impl RootTableAddress {
    /// The register for a legacy-mode root table in the frame at `table`.
    #[must_use]
    pub const fn legacy(table: PhysAddr) -> Self {
        Self(table.0 & FRAME_MASK)
    }

    /// RTA, bits 63:12: the root table.
    #[must_use]
    pub const fn table(self) -> PhysAddr {
        PhysAddr(self.0 & FRAME_MASK)
    }

    /// TTM, bits 11:10.
    #[must_use]
    pub const fn mode(self) -> TranslationMode {
        match self.0 >> 10 & 3 {
            0 => TranslationMode::Legacy,
            1 => TranslationMode::Scalable,
            2 => TranslationMode::Reserved,
            _ => TranslationMode::AbortDma,
        }
    }
}

/// IQA, the Invalidation Queue Address Register (section 11.4.9.3), with 128-bit descriptors
/// (DW, bit 11, clear).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct QueueAddress(pub u64);

impl QueueAddress {
    /// The register for a queue of one frame: QS, bits 2:0, is 0, 256 descriptors.
    #[must_use]
    pub const fn one_frame(queue: PhysAddr) -> Self {
        Self(queue.0 & FRAME_MASK)
    }

    /// IQA, bits 63:12: the queue.
    #[must_use]
    pub const fn queue(self) -> PhysAddr {
        PhysAddr(self.0 & FRAME_MASK)
    }

    /// QS, bits 2:0: the queue has 2^QS frames.
    #[must_use]
    pub const fn size(self) -> u8 {
        self.0 as u8 & 7
    }

    /// DW, bit 11: descriptors have 256 bits.
    #[must_use]
    pub const fn wide(self) -> bool {
        self.0 >> 11 & 1 != 0
    }
}

/// IRTA, the Interrupt Remapping Table Address Register (section 11.4.10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptTableAddress(pub u64);

impl InterruptTableAddress {
    /// The register for the table at `table` with 2^(`size` + 1) entries (S, bits 3:0), with EIME,
    /// bit 11, set for 32-bit APIC ids.
    #[must_use]
    pub const fn new(table: PhysAddr, size: u8, extended: bool) -> Self {
        Self(table.0 & FRAME_MASK | (extended as u64) << 11 | (size & 0xf) as u64)
    }

    /// IRTA, bits 63:12: the table.
    #[must_use]
    pub const fn table(self) -> PhysAddr {
        PhysAddr(self.0 & FRAME_MASK)
    }

    /// How many entries the table has: 2^(S + 1).
    #[must_use]
    pub const fn entries(self) -> u32 {
        2 << (self.0 & 0xf)
    }

    /// EIME, bit 11.
    #[must_use]
    pub const fn extended(self) -> bool {
        self.0 >> 11 & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The value that QEMU 7.2's unit reports, and what is known of that unit from its source and
    // from measurement.
    #[test]
    fn the_capabilities_of_a_known_unit_decode() {
        let cap = Capability::from_bits_retain(0x00d2_008c_2226_0206);
        assert_eq!(cap.domains(), 0x1_0000);
        assert_eq!(cap.supported_widths(), 0b00010);
        assert_eq!(cap.guest_address_bits(), 39);
        assert_eq!(cap.fault_record_offset(), 0x220);
        assert_eq!(cap.fault_records(), 1);
        assert!(cap.contains(Capability::PAGES_2M | Capability::PAGES_1G));
        assert!(!cap.intersects(
            Capability::RWBF
                | Capability::CM
                | Capability::PLMR
                | Capability::PHMR
                | Capability::ESRTPS
                | Capability::ESIRTPS
        ));
        let ecap = ExtendedCapability::from_bits_retain(0x00f0_0f4a);
        assert!(ecap.contains(ExtendedCapability::QI | ExtendedCapability::IR));
        assert!(!ecap.intersects(ExtendedCapability::C | ExtendedCapability::EIM));
        assert_eq!(ecap.iotlb_offset(), 0xf0);
    }

    #[test]
    fn one_shot_commands_are_not_replayed() {
        let one_shot = 1 << 30 | 1 << 29 | 1 << 27 | 1 << 24;
        assert_eq!(GlobalStatus::PERSISTENT.bits(), !one_shot);
    }

    #[test]
    fn registers_lie_where_the_specification_puts_them() {
        for (register, offset, name) in [
            (Register::Capability, 0x8, "CAP"),
            (Register::ExtendedCapability, 0x10, "ECAP"),
            (Register::GlobalCommand, 0x18, "GCMD"),
            (Register::GlobalStatus, 0x1c, "GSTS"),
            (Register::RootTableAddress, 0x20, "RTADDR"),
            (Register::FaultStatus, 0x34, "FSTS"),
            (Register::FaultEventControl, 0x38, "FECTL"),
            (Register::FaultEventData, 0x3c, "FEDATA"),
            (Register::FaultEventAddress, 0x40, "FEADDR"),
            (Register::FaultEventUpperAddress, 0x44, "FEUADDR"),
            (Register::ProtectedMemoryEnable, 0x64, "PMEN"),
            (Register::InvalidationQueueHead, 0x80, "IQH"),
            (Register::InvalidationQueueTail, 0x88, "IQT"),
            (Register::InvalidationQueueAddress, 0x90, "IQA"),
            (Register::InterruptTableAddress, 0xb8, "IRTA"),
        ] {
            assert_eq!((register.offset(), register.name()), (offset, name));
        }
    }

    #[test]
    fn address_registers_hold_table_and_fields() {
        assert_eq!(
            InterruptTableAddress::new(PhysAddr(0x1234_5000), 7, true).0,
            0x1234_5807
        );
        assert_eq!(InterruptTableAddress(0xf).entries(), 65536);
        assert_eq!(
            RootTableAddress(0x9000 | 1 << 10).mode(),
            TranslationMode::Scalable
        );
        assert_eq!(
            RootTableAddress(0x9000 | 3 << 10).mode(),
            TranslationMode::AbortDma
        );
        assert_eq!(QueueAddress(0x7803).queue(), PhysAddr(0x7000));
        assert!(QueueAddress(0x7803).wide());
        assert_eq!(QueueAddress(0x7803).size(), 3);
    }
}
