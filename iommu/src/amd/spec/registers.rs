//! The registers (section 3.4) and the capability header (section 3.2.1).

use core::fmt;

use bitflags::bitflags;
use handoff_abi::{FRAME_SIZE, PhysAddr};

use super::InterruptFormat;

/// Bits 51:12, where registers and entries hold the address of a 4 KiB frame.
pub(super) const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// A register, 64 bits, at a fixed offset from the unit's base (section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u32)]
#[non_exhaustive]
pub enum Register {
    /// Device Table Base Address Register.
    DeviceTableBase = 0x0000,
    /// Command Buffer Base Address Register.
    CommandBufferBase = 0x0008,
    /// Event Log Base Address Register.
    EventLogBase = 0x0010,
    /// IOMMU Control Register.
    Control = 0x0018,
    /// IOMMU Exclusion Base Register: ExEn, bit 0; Allow, bit 1.
    ExclusionBase = 0x0020,
    /// IOMMU Exclusion Range Limit Register.
    ExclusionLimit = 0x0028,
    /// IOMMU Extended Feature Register.
    ExtendedFeature = 0x0030,
    /// SMI Filter Register, the first of [`ExtendedFeature::smi_filters`]; each has 8 bytes.
    SmiFilter = 0x0060,
    /// Command Buffer Head Pointer Register: byte offset, bits 18:4.
    CommandBufferHead = 0x2000,
    /// Command Buffer Tail Pointer Register.
    CommandBufferTail = 0x2008,
    /// Event Log Head Pointer Register.
    EventLogHead = 0x2010,
    /// Event Log Tail Pointer Register.
    EventLogTail = 0x2018,
    /// IOMMU Status Register.
    Status = 0x2020,
}

impl Register {
    /// The byte offset from the unit's base.
    #[must_use]
    pub const fn offset(self) -> u32 {
        self as u32
    }

    /// The specification's name, without the words all registers share.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceTableBase => "Device Table Base",
            Self::CommandBufferBase => "Command Buffer Base",
            Self::EventLogBase => "Event Log Base",
            Self::Control => "Control",
            Self::ExclusionBase => "Exclusion Base",
            Self::ExclusionLimit => "Exclusion Range Limit",
            Self::ExtendedFeature => "Extended Feature",
            Self::SmiFilter => "SMI Filter",
            Self::CommandBufferHead => "Command Buffer Head",
            Self::CommandBufferTail => "Command Buffer Tail",
            Self::EventLogHead => "Event Log Head",
            Self::EventLogTail => "Event Log Tail",
            Self::Status => "Status",
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The capability header: the four bytes of PCI configuration space where the unit's capability
/// block begins (section 3.2.1). Flags as constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CapabilityHeader(u32);

bitflags! {
    impl CapabilityHeader: u32 {
        /// IotlbSup, bit 24: devices may have translation caches of their own.
        const IOTLB = 1 << 24;
        /// NpCache, bit 26: what is not present may be cached, so a mapping takes effect when it
        /// was invalidated.
        const NP_CACHE = 1 << 26;
        /// EFRSup, bit 27: there is an Extended Feature Register.
        const EFR = 1 << 27;
        // Other flags and the fields.
        const _ = !0;
    }
}

impl CapabilityHeader {
    /// Whether these are the four bytes of an IOMMU's capability block: id 0Fh, type 3.
    #[must_use]
    pub const fn is_iommu(self) -> bool {
        self.0 & 0x0007_00ff == 0x0003_000f
    }
}

/// IOMMU Extended Feature Register (section 3.4.5). Flags as constants, fields as methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ExtendedFeature(u64);

bitflags! {
    impl ExtendedFeature: u64 {
        /// XTSup, bit 2: 32-bit APIC ids.
        const XT = 1 << 2;
        /// IASup, bit 6: INVALIDATE_IOMMU_ALL.
        const IA = 1 << 6;
        /// GASup, bit 7: guest virtual APIC, and with it interrupt entries of 128 bits.
        const GA = 1 << 7;
        // Other flags and the fields.
        const _ = !0;
    }
}

impl ExtendedFeature {
    /// How many SMI Filter Registers there are: two to the power of SmiFRC, bits 20:18, where SmiFSup,
    /// bits 17:16, is 01b. There is room for 16.
    #[must_use]
    pub const fn smi_filters(self) -> u32 {
        match (self.0 >> 16 & 3, self.0 >> 18 & 7) {
            (0b01, count @ 0..4) => 1 << count,
            (0b01, _) => 16,
            _ => 0,
        }
    }

    /// The most levels host page tables can have: HATS, bits 11:10. `None` where host address
    /// translation is not supported.
    #[must_use]
    pub const fn max_levels(self) -> Option<u32> {
        match self.0 >> 10 & 3 {
            0 => Some(4),
            1 => Some(5),
            2 => Some(6),
            _ => None,
        }
    }
}

/// IOMMU Control Register (section 3.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Control(u64);

bitflags! {
    impl Control: u64 {
        /// IommuEn, bit 0: requests are looked up in the device table. Without it all pass.
        const IOMMU = 1 << 0;
        /// HtTunEn, bit 1.
        const HT_TUNNEL = 1 << 1;
        /// EventLogEn, bit 2.
        const EVENT_LOG = 1 << 2;
        /// EventIntEn, bit 3: an interrupt for each event logged.
        const EVENT_INTERRUPT = 1 << 3;
        /// PassPW, bit 8.
        const PASS_PW = 1 << 8;
        /// ResPassPW, bit 9.
        const RESPONSE_PASS_PW = 1 << 9;
        /// Coherent, bit 10: the unit snoops the caches when it reads its tables.
        const COHERENT = 1 << 10;
        /// Isoc, bit 11.
        const ISOCHRONOUS = 1 << 11;
        /// CmdBufEn, bit 12.
        const COMMAND_BUFFER = 1 << 12;
        /// GAEn, bit 17: interrupt entries have 128 bits.
        const GA = 1 << 17;
        /// SmiFEn, bit 22: of the devices' system management interrupts only those pass whose device
        /// an SMI filter register names.
        const SMI_FILTER = 1 << 22;
        /// XTEn, bit 50: interrupt entries have 32-bit APIC ids.
        const XT = 1 << 50;
        // All else stays off: it is none of the fence's.
        const _ = !0;
    }
}

impl Control {
    /// InvTimeOut, bits 7:5, 100b: one second.
    const INVALIDATION_TIMEOUT: Self = Self(4 << 5);

    /// What a running fence has set, but for the format of interrupt entries, the event interrupt
    /// and what firmware's flags and the caller say.
    pub(crate) const RUNNING: Self = Self(
        Self::IOMMU.0 | Self::EVENT_LOG.0 | Self::COMMAND_BUFFER.0 | Self::INVALIDATION_TIMEOUT.0,
    );

    /// What an IVHD's flags ask for: HtTunEn, PassPW, ResPassPW and Isoc, its bits 0 to 3 (section
    /// 5.2.2.1).
    #[must_use]
    pub const fn from_ivhd_flags(flags: u8) -> Self {
        let flags = flags as u64;
        Self(
            (flags & 1) << 1
                | (flags >> 1 & 1) << 8
                | (flags >> 2 & 1) << 9
                | (flags >> 3 & 1) << 11,
        )
    }

    /// The two bits that say how interrupt entries are read.
    pub(crate) const FORMAT: Self = Self(Self::GA.0 | Self::XT.0);

    /// How interrupt entries are read (GAEn and XTEn).
    #[must_use]
    pub const fn interrupt_format(self) -> InterruptFormat {
        if !self.contains(Self::GA) {
            InterruptFormat::Bits32
        } else if !self.contains(Self::XT) {
            InterruptFormat::Bits128
        } else {
            InterruptFormat::Bits128X2Apic
        }
    }
}

/// SMI Filter Register: SmiDID, bits 15:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SmiFilter(u64);

bitflags! {
    impl SmiFilter: u64 {
        /// SmiDV, bit 16: the device may raise system management interrupts.
        const VALID = 1 << 16;
        /// SmiFLock, bit 17: the register stays as it is until the machine is reset.
        const LOCK = 1 << 17;
        // The device.
        const _ = !0;
    }
}

/// IOMMU Status Register (section 3.4.15). The first two are cleared by writing ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Status(u64);

bitflags! {
    impl Status: u64 {
        /// EventOverflow, bit 0: there was no room for an event, and logging has stopped.
        const EVENT_OVERFLOW = 1 << 0;
        /// EventLogInt, bit 1: an event was logged.
        const EVENT_INTERRUPT = 1 << 1;
        /// EventLogRun, bit 3.
        const EVENT_LOG_RUN = 1 << 3;
        /// CmdBufRun, bit 4: commands are fetched. Clear after an error in one.
        const COMMAND_BUFFER_RUN = 1 << 4;
        // Logs that are not used.
        const _ = !0;
    }
}

/// Device Table Base Address Register (section 3.4.1): address, bits 51:12; size in 4 KiB frames
/// less one, bits 8:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceTableBase(pub u64);

impl DeviceTableBase {
    /// The frames of a table for all 65,536 devices.
    pub const FRAMES: u64 = 512;

    /// The register for a full table at `table`.
    #[must_use]
    pub const fn full(table: PhysAddr) -> Self {
        Self(table.0 & FRAME_MASK | (Self::FRAMES - 1))
    }

    /// The table.
    #[must_use]
    pub const fn table(self) -> PhysAddr {
        PhysAddr(self.0 & FRAME_MASK)
    }
}

/// Command Buffer Base and Event Log Base Address Register (sections 3.4.2 and 3.4.3): address,
/// bits 51:12; logarithm of the number of 16-byte entries, bits 59:56.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RingBase(pub u64);

impl RingBase {
    /// How many entries the driver's rings have: what other kernels use as well, so that one of
    /// them can take a ring over where it lies.
    pub const ENTRIES: u32 = 512;
    /// The size of an entry in bytes.
    pub const ENTRY: u64 = 16;
    /// The size of a ring in bytes.
    pub const LENGTH: u64 = Self::ENTRIES as u64 * Self::ENTRY;
    /// The frames of a ring.
    pub const FRAMES: u64 = Self::LENGTH / FRAME_SIZE;

    /// The register for a ring of [`ENTRIES`](Self::ENTRIES) at `ring`.
    #[must_use]
    pub const fn new(ring: PhysAddr) -> Self {
        Self(ring.0 & FRAME_MASK | (Self::ENTRIES.trailing_zeros() as u64) << 56)
    }

    /// The ring.
    #[must_use]
    pub const fn ring(self) -> PhysAddr {
        PhysAddr(self.0 & FRAME_MASK)
    }

    /// The size in bytes of the ring that the register says, whoever wrote it.
    #[must_use]
    pub const fn length(self) -> u64 {
        Self::ENTRY << (self.0 >> 56 & 0xf)
    }

    /// The slot that a head or tail pointer names. There are units whose pointer reads as the
    /// size of the ring where it has wrapped to the beginning.
    #[must_use]
    pub const fn slot(pointer: u64) -> u32 {
        (pointer >> 4) as u32 % Self::ENTRIES
    }

    /// The pointer that names a slot.
    #[must_use]
    pub const fn pointer(slot: u32) -> u64 {
        slot as u64 * Self::ENTRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_fields_of_the_specification() {
        assert_eq!(DeviceTableBase::full(PhysAddr(0x7000_0000)).0, 0x7000_01ff);
        assert_eq!(
            RingBase::new(PhysAddr(0x7020_0000)).0,
            0x0900_0000_7020_0000
        );
        assert_eq!(RingBase::FRAMES, 2);
        assert_eq!(RingBase::new(PhysAddr(0x1000)).length(), RingBase::LENGTH);
        assert_eq!(RingBase::slot(0x2000), 0);
        assert_eq!(RingBase::slot(RingBase::pointer(511)), 511);
        assert_eq!(Control::from_ivhd_flags(0xff).bits(), 0xb02);
        assert_eq!(Control::from_ivhd_flags(0xf0).bits(), 0);
        assert_eq!(Control::RUNNING.bits(), 0x1085);
    }

    #[test]
    fn features_are_read_as_the_specification_has_them() {
        // As QEMU 7.2 has it: PreF, PPR, GT, IA, GA, HE; six levels.
        let efr = ExtendedFeature::from_bits_retain(0x29d3);
        assert!(efr.contains(ExtendedFeature::IA | ExtendedFeature::GA));
        assert!(!efr.contains(ExtendedFeature::XT));
        assert_eq!(efr.max_levels(), Some(6));
        let levels = |bits: u64| ExtendedFeature::from_bits_retain(bits << 10).max_levels();
        assert_eq!([0, 1, 3].map(levels), [Some(4), Some(5), None]);
        assert!(CapabilityHeader::from_bits_retain(0x0c0b_640f).is_iommu());
        assert!(!CapabilityHeader::from_bits_retain(0x0c0b_6405).is_iommu());
    }
}
