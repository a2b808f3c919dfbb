//! What a unit is and how it behaves, chosen by the test.

/// The features and the temper of one unit.
///
/// The features are those of the Extended Feature Registers (AMD 48882 section 3.4, MMIO offsets
/// 0030h and 01A0h) and of the unit's capability block and IVHD; the rest says how hard the unit
/// makes it for software.
#[derive(Clone, Debug)]
pub struct UnitConfig {
    /// EFR.PreFSup: the PREFETCH_IOMMU_PAGES command.
    pub prefetch: bool,
    /// EFR.XTSup: 32-bit APIC ids in interrupt entries and in the unit's own messages.
    pub x2apic: bool,
    /// EFR.IASup: the INVALIDATE_IOMMU_ALL command.
    pub invalidate_all: bool,
    /// EFR.GASup: interrupt entries of 128 bits.
    pub guest_apic: bool,
    /// EFR.HESup: the hardware event registers.
    pub hardware_events: bool,
    /// EFR.HATS: the deepest page tables, 4 to 6 levels.
    pub levels: u8,
    /// EFR.DevTblSegSup, coded: the device table has up to 2^n segments.
    pub segments: u8,
    /// EFR.MsiCapMmioSup: the MSI capability shows among the registers.
    pub msi_registers: bool,
    /// EFR2.NumIntRemapSup: 2048 interrupts to a device, not 512.
    pub many_interrupts: bool,
    /// Capability header, IotlbSup: the INVALIDATE_IOTLB_PAGES command.
    pub remote_iotlb: bool,
    /// Capability header, NpCache: what is not present is cached too.
    pub caches_not_present: bool,
    /// IVHD, Coherent: the unit can snoop the processors' caches when it reads tables. It does
    /// while Control.Coherent is set.
    pub coherent: bool,
    /// Bits ORed into what the Extended Feature Register reads, for features the model does not
    /// act on.
    pub extra_features: u64,
    /// Bits ORed into what the Extended Feature 2 Register reads.
    pub extra_features2: u64,
    /// The width of physical addresses; a pointer in a table beyond it is an error.
    pub host_width: u8,
    /// How many steps it takes until a status bit follows its enable bit.
    pub enable_steps: u32,
    /// How many steps each command takes to be fetched.
    pub command_steps: u32,
    /// How many steps each word of an event's entry lags behind the tail pointer.
    pub event_steps: u32,
    /// The unit also snoops its command buffer when it does not snoop tables.
    pub commands_snoop: bool,
    /// Commands that no wait with the f bit separates execute in any order: the last first.
    pub reorders: bool,
    /// SmiFSup and SmiFRC: so many registers, a power of two, name devices whose system management
    /// interrupts pass where SmiFEn is set. Without any all pass.
    pub smi_filters: u32,
    /// FD_0000_0000h to FF_FFFF_FFFFh is `HyperTransport`'s, not memory (EFR2.HtRangeIgnore is
    /// clear).
    pub hypertransport_range: bool,
    /// The device table's base may be rewritten while the unit is on.
    pub live_table_switch: bool,
    /// Nothing may pass at the moment when the unit is switched on: every entry denies DMA and
    /// interrupts.
    pub denied_when_enabled: bool,
    /// Devices that may have pass bits in their entry: those that raise `ExtInt` or NMI for the
    /// machine.
    pub trusted_sources: Vec<u16>,
    /// Rules beyond the architecture that a *fence* keeps: nothing fails open, translation is
    /// never switched off, no device is trusted with already translated addresses, an entry is
    /// not given to another owner before its old contents are gone.
    pub fence_rules: bool,
}

impl Default for UnitConfig {
    fn default() -> Self {
        Self {
            prefetch: false,
            x2apic: false,
            invalidate_all: true,
            guest_apic: true,
            hardware_events: true,
            levels: 6,
            segments: 0,
            msi_registers: true,
            many_interrupts: false,
            remote_iotlb: false,
            caches_not_present: false,
            coherent: true,
            extra_features: 0,
            extra_features2: 0,
            host_width: 48,
            enable_steps: 2,
            command_steps: 2,
            event_steps: 2,
            commands_snoop: false,
            reorders: true,
            smi_filters: 0,
            hypertransport_range: true,
            live_table_switch: true,
            denied_when_enabled: true,
            trusted_sources: Vec::new(),
            fence_rules: true,
        }
    }
}

impl UnitConfig {
    /// What the Extended Feature Register reads.
    #[must_use]
    pub fn features(&self) -> u64 {
        let flag = |on: bool, bit: u32| u64::from(on) << bit;
        flag(self.prefetch, 0)
            | flag(self.x2apic, 2)
            | flag(self.invalidate_all, 6)
            | flag(self.guest_apic, 7)
            | flag(self.hardware_events, 8)
            | u64::from(self.levels.clamp(4, 6) - 4) << 10
            | flag(self.smi_filters > 0, 16)
            | u64::from(self.smi_filters.checked_ilog2().unwrap_or(0) & 7) << 18
            | u64::from(self.segments.min(3)) << 38
            | flag(self.msi_registers, 46)
            | self.extra_features
    }

    /// What the Extended Feature 2 Register reads.
    #[must_use]
    pub fn features2(&self) -> u64 {
        u64::from(self.many_interrupts) << 8
            | u64::from(!self.hypertransport_range) << 11
            | self.extra_features2
    }

    /// The unit's PCI capability header (section 3.2.1): id 0Fh, type 3, revision 1.
    #[must_use]
    pub fn capability(&self) -> u32 {
        0x0f | 3 << 16
            | 1 << 19
            | u32::from(self.remote_iotlb) << 24
            | u32::from(self.caches_not_present) << 26
            | 1 << 27
    }

    /// The length of the register window in bytes.
    #[must_use]
    pub fn window_length(&self) -> u32 {
        0x4000
    }
}
