//! What a unit is and how it behaves, chosen by the test.

/// The capabilities and the temper of one remapping unit.
///
/// The capability fields are those of CAP_REG and ECAP_REG (VT-d sections 11.4.2 and 11.4.3); the
/// rest says how hard the unit makes it for software.
#[derive(Clone, Debug)]
pub struct UnitConfig {
    /// CAP.ND, coded: 2^(4 + 2 ND) domain ids.
    pub domain_bits_code: u8,
    /// CAP.RWBF: table writes sit in a write buffer until it is flushed.
    pub write_buffer: bool,
    /// CAP.PLMR: the low protected memory region exists.
    pub protected_low: bool,
    /// CAP.PHMR: the high protected memory region exists.
    pub protected_high: bool,
    /// CAP.CM: what is not present is cached too.
    pub caching_mode: bool,
    /// CAP.SAGAW: bit 1 for 39 bits and three levels, bit 2 for 48 and four, bit 3 for 57 and five.
    pub address_widths: u8,
    /// CAP.MGAW plus one: the widest address the unit translates, in bits.
    pub guest_width: u8,
    /// CAP.FRO: offset of the fault recording registers in units of 16 bytes.
    pub fault_offset: u16,
    /// CAP.NFR plus one: the number of fault recording registers, 1 to 256.
    pub fault_records: u16,
    /// CAP.SLLPS: bit 0 for 2 MiB pages, bit 1 for 1 GiB pages.
    pub large_pages: u8,
    /// CAP.PSI: page-selective invalidation.
    pub page_selective: bool,
    /// CAP.MAMV: the largest address mask.
    pub max_address_mask: u8,
    /// CAP.DWD and CAP.DRD: invalidations drain writes and reads.
    pub drains: bool,
    /// CAP.ESIRTPS: setting the interrupt table pointer invalidates.
    pub sirtp_invalidates: bool,
    /// CAP.ESRTPS: setting the root table pointer invalidates.
    pub srtp_invalidates: bool,
    /// ECAP.C: the unit snoops the processors' caches when it reads tables.
    pub coherent: bool,
    /// ECAP.QI: queued invalidation.
    pub queued: bool,
    /// ECAP.IR: interrupt remapping.
    pub interrupts: bool,
    /// ECAP.EIM: 32-bit APIC ids.
    pub extended_interrupts: bool,
    /// ECAP.PT: pass-through translation type.
    pub pass_through: bool,
    /// ECAP.SC: the snoop bit in leaf entries.
    pub snoop_control: bool,
    /// ECAP.IRO: offset of the invalidation registers in units of 16 bytes.
    pub iotlb_offset: u16,
    /// ECAP.MHMV: the largest interrupt index mask.
    pub max_handle_mask: u8,
    /// Bits ORed into what CAP_REG reads, for capabilities the model does not act on.
    pub extra_capabilities: u64,
    /// Bits ORed into what ECAP_REG reads, for capabilities the model does not act on.
    pub extra_extended: u64,
    /// The width of physical addresses; a pointer in a table beyond it is an error.
    pub host_width: u8,
    /// The length of the register window; 0 for what the capabilities need, in whole pages.
    pub window: u32,
    /// How many steps a global command takes before its status shows.
    pub command_steps: u32,
    /// How many steps each invalidation descriptor takes.
    pub descriptor_steps: u32,
    /// The unit also snoops its queue when it does not snoop tables.
    pub queue_snoops: bool,
    /// Protected memory regions are on when the machine starts.
    pub protected_at_start: bool,
    /// Faults of a requester whose record is still pending are folded into that record.
    pub compresses_faults: bool,
    /// Rules beyond the architecture that a *fence* keeps: interrupt remapping before translation,
    /// neither ever switched off, compatibility format blocked, no translated requests.
    pub fence_rules: bool,
}

impl Default for UnitConfig {
    fn default() -> Self {
        Self {
            domain_bits_code: 6,
            write_buffer: false,
            protected_low: false,
            protected_high: false,
            caching_mode: false,
            address_widths: 0b0110,
            guest_width: 48,
            fault_offset: 0x22,
            fault_records: 8,
            large_pages: 0b11,
            page_selective: true,
            max_address_mask: 18,
            drains: true,
            sirtp_invalidates: false,
            srtp_invalidates: false,
            coherent: true,
            queued: true,
            interrupts: true,
            extended_interrupts: false,
            pass_through: true,
            snoop_control: false,
            iotlb_offset: 0x0f,
            max_handle_mask: 15,
            extra_capabilities: 0,
            extra_extended: 0,
            host_width: 46,
            window: 0,
            command_steps: 3,
            descriptor_steps: 2,
            queue_snoops: false,
            protected_at_start: false,
            compresses_faults: true,
            fence_rules: true,
        }
    }
}

impl UnitConfig {
    /// What CAP_REG reads.
    #[must_use]
    pub fn capability(&self) -> u64 {
        let flag = |on: bool, bit: u32| u64::from(on) << bit;
        u64::from(self.domain_bits_code & 7)
            | flag(self.write_buffer, 4)
            | flag(self.protected_low, 5)
            | flag(self.protected_high, 6)
            | flag(self.caching_mode, 7)
            | u64::from(self.address_widths & 0x1f) << 8
            | u64::from(self.guest_width.saturating_sub(1) & 0x3f) << 16
            | u64::from(self.fault_offset & 0x3ff) << 24
            | u64::from(self.large_pages & 0xf) << 34
            | flag(self.page_selective, 39)
            | u64::from((self.fault_records.max(1) - 1) & 0xff) << 40
            | u64::from(self.max_address_mask & 0x3f) << 48
            | flag(self.drains, 54)
            | flag(self.drains, 55)
            | flag(self.sirtp_invalidates, 62)
            | flag(self.srtp_invalidates, 63)
            | self.extra_capabilities
    }

    /// What ECAP_REG reads.
    #[must_use]
    pub fn extended_capability(&self) -> u64 {
        let flag = |on: bool, bit: u32| u64::from(on) << bit;
        flag(self.coherent, 0)
            | flag(self.queued, 1)
            | flag(self.interrupts, 3)
            | flag(self.extended_interrupts, 4)
            | flag(self.pass_through, 6)
            | flag(self.snoop_control, 7)
            | u64::from(self.iotlb_offset & 0x3ff) << 8
            | u64::from(self.max_handle_mask & 0xf) << 20
            | self.extra_extended
    }

    /// The length of the register window in bytes.
    #[must_use]
    pub fn window_length(&self) -> u32 {
        if self.window != 0 {
            return self.window;
        }
        let faults = u32::from(self.fault_offset) * 16 + u32::from(self.fault_records) * 16;
        let iotlb = u32::from(self.iotlb_offset) * 16 + 16;
        faults.max(iotlb).div_ceil(4096) * 4096
    }

    /// How many domain ids there are.
    #[must_use]
    pub fn domains(&self) -> u32 {
        1 << (4 + 2 * u32::from(self.domain_bits_code & 7)).min(16)
    }
}

/// When the units do what they were told, relative to what software does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Only while software polls: everything takes as long as it can.
    Lazy,
    /// At once, before software's next instruction.
    Eager,
    /// Anything between, and cache lines leave the caches by themselves now and then; from this
    /// seed.
    Random(u64),
}

/// What holds for the whole machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// When units act.
    pub schedule: Schedule,
    /// Microseconds that pass on each look at the clock.
    pub clock_step: u32,
    /// Memory that nobody wrote holds rubbish that looks like valid entries, not zeroes.
    pub rubbish: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            schedule: Schedule::Lazy,
            clock_step: 50,
            rubbish: true,
        }
    }
}
