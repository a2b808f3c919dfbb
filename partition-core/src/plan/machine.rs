//! The machine as the planner sees it.

use handoff_abi::{ApicId, DomainId, Owner, PartitionId, PciFunction, PhysRange};

use super::alias::Isolation;

/// The captured machine, borrowed from whoever captured it.
///
/// Nothing in it is trusted to be consistent: a resource that is listed twice is only given away
/// where every entry of it allows that.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The partition that asks, and that gives the resources away.
    pub prime: PartitionId,
    /// Every processor.
    pub cpus: &'a [Cpu],
    /// The memory map, each part with its owner. What no region covers is not memory.
    pub memory: &'a [MemoryRegion],
    /// Every PCI function.
    pub functions: &'a [Function],
    /// Which function is bound to which reserved region; one entry for each pair.
    pub reservations: &'a [Reservation],
    /// The remapping units that [`Function::unit`] counts.
    pub units: &'a [Unit],
    /// Register windows: the BARs of functions and what bridges forward.
    pub windows: &'a [Window],
    /// Where the configuration space of each bus is.
    pub ecam: &'a [EcamWindow],
    /// What the machine has one of.
    pub singletons: &'a [Singleton],
    /// What is left of what plans use up.
    pub budget: Budget,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Cpu {
    /// Its local APIC's id.
    pub apic_id: ApicId,
    /// The core it is a hardware thread of: threads of one core have the same number.
    pub core: u32,
    /// It is the bootstrap processor, IA32_APIC_BASE.BSP (Intel SDM volume 3, section 10.4.4).
    pub is_bsp: bool,
    /// The prime executes on it and has not made it free.
    pub runs_prime: bool,
    /// A digest of what CPUID reports. Processors with the same features have the same digest: see
    /// [`CpuIdentity`](super::CpuIdentity), which has the core's number as well.
    pub features: u64,
    /// The microcode update's revision, in MSR 8Bh (section 11.11.7).
    pub microcode: u32,
    /// Who owns it.
    pub owner: Owner,
}

/// What a part of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MemoryKind {
    /// RAM that its owner has free.
    Usable,
    /// RAM that its owner uses now: the running kernel's image, heap and stacks.
    InUse,
    /// Firmware's, or not RAM at all.
    Reserved,
    /// ACPI tables.
    AcpiReclaimable,
    /// ACPI non-volatile storage.
    AcpiNvs,
    /// RAM with errors.
    Unusable,
}

impl MemoryKind {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::InUse => "in use",
            Self::Reserved => "reserved",
            Self::AcpiReclaimable => "ACPI reclaimable",
            Self::AcpiNvs => "ACPI NVS",
            Self::Unusable => "unusable",
        }
    }
}

/// A part of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemoryRegion {
    /// Where.
    pub range: PhysRange,
    /// What.
    pub kind: MemoryKind,
    /// Whose.
    pub owner: Owner,
}

/// Whether a PCI function is a device or leads to further buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FunctionKind {
    /// A device: type 0 configuration header.
    Endpoint,
    /// A port or bridge: type 1 configuration header. Its registers stay with the steward.
    Bridge(Buses),
}

/// The buses below a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Buses {
    /// Secondary Bus Number: the bus right below.
    pub secondary: u8,
    /// Subordinate Bus Number: the highest bus below.
    pub subordinate: u8,
}

/// A PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Function {
    /// Segment, bus, device and function.
    pub function: PciFunction,
    /// Class code: base class in bits 23:16, sub-class in 15:8, programming interface in 7:0.
    pub class: u32,
    /// Device or bridge.
    pub kind: FunctionKind,
    /// The ids it makes requests with, the functions it cannot be kept apart from, and the root
    /// port it is below: from [`alias::groups`](super::alias::groups).
    pub isolation: Isolation,
    /// The remapping unit that translates its requests, by its place in [`Machine::units`]; `None`
    /// where no unit covers it.
    pub unit: Option<u16>,
    /// The interrupt line that its INTx pin is routed to (a global system interrupt), where it has
    /// a pin.
    pub intx: Option<u32>,
    /// It does not drive that line now: Interrupt Disable, bit 10 of its command register, is set.
    /// A function that is given away can clear the bit; one that stays leaves it as it is.
    pub intx_disabled: bool,
    /// How many message signalled interrupts it can have: MSI-X table size or MSI vectors.
    pub messages: u16,
    /// It only works with ATS on: a SATC entry with ATC_REQUIRED (VT-d section 8.8).
    pub ats_required: bool,
    /// Who owns it.
    pub owner: Owner,
}

impl Function {
    /// Whether it is a bridge.
    #[must_use]
    pub const fn is_bridge(&self) -> bool {
        matches!(self.kind, FunctionKind::Bridge(_))
    }
}

/// A function and a region of memory that it keeps reaching on firmware's behalf: one device of
/// one RMRR (VT-d section 8.4) or IVMD (AMD-Vi section 5.2.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Reservation {
    /// The function.
    pub function: PciFunction,
    /// The memory, whole page frames.
    pub range: PhysRange,
}

/// A remapping unit, as far as the planner has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Unit {
    /// Its driver has taken it up. A unit that is not usable covers nothing.
    pub usable: bool,
    /// It can remap interrupts.
    pub interrupt_remapping: bool,
    /// It looks any interrupt message of a device up in a table of that device's, as AMD-Vi does; so a
    /// kernel that knows nothing of it is fenced too.
    pub remaps_any_message: bool,
    /// How many levels of tables its driver uses: 3 to 6.
    pub levels: u8,
    /// The largest page that its tables can hold.
    pub largest_page: PageSize,
}

/// The size of a page of a remapping unit's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PageSize {
    /// 4 KiB.
    Size4KiB,
    /// 2 MiB.
    Size2MiB,
    /// 1 GiB.
    Size1GiB,
}

/// Registers of a PCI function in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Window {
    /// The function; of a bridge it is what the bridge forwards.
    pub function: PciFunction,
    /// Where the registers are.
    pub range: PhysRange,
}

/// The memory that is the configuration space of a run of buses (PCI Firmware Specification,
/// section 4.1.2: an MCFG entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EcamWindow {
    /// The PCI segment group.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
    /// Where bus 0 of the segment would be: the configuration space of bus `n` begins
    /// `n << 20` bytes further on.
    pub base: handoff_abi::PhysAddr,
}

/// Something that the machine has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Singleton {
    /// Which: a singleton number of [`handoff_abi::resource`].
    pub number: u64,
    /// Who owns it.
    pub owner: Owner,
}

/// What is left of what a plan uses up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Budget {
    /// Frames for remapping tables.
    pub table_pages: u64,
    /// Free slots of the ledger.
    pub ledger_slots: u64,
    /// Free interrupt remapping entries.
    pub interrupt_handles: u32,
    /// The domain that the partition's devices would use; `None` where none is free.
    pub domain: Option<DomainId>,
}
