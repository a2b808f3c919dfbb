//! What comes out: a plan.

use handoff_abi::{ApicId, DomainId, PartitionId, PciFunction, PhysAddr, PhysRange, RequesterId};
use heapless::Vec;

/// A partition that can be carved, exactly.
///
/// Only [`plan`](super::plan) makes one, so a value proves that the rules held for the machine
/// that was described. It proves nothing about a machine that has changed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) partition: PartitionId,
    pub(super) name: Vec<u8, { Self::MAX_NAME }>,
    pub(super) cpus: Vec<ApicId, { Self::MAX_CPUS }>,
    pub(super) memory: Vec<PhysRange, { Self::MAX_RANGES }>,
    pub(super) trampoline: Option<PhysAddr>,
    pub(super) functions: Vec<PlannedFunction, { Self::MAX_FUNCTIONS }>,
    pub(super) requesters: Vec<Requester, { Self::MAX_REQUESTERS }>,
    pub(super) buses: Vec<PlannedBus, { Self::MAX_BUSES }>,
    pub(super) maps: Vec<DomainMap, { Self::MAX_MAPS }>,
    pub(super) singletons: Vec<u64, { Self::MAX_SINGLETONS }>,
    pub(super) domain: Option<DomainId>,
    pub(super) interrupt_handles: u32,
    pub(super) table_pages: u64,
    pub(super) ledger_slots: u64,
}

/// A PCI function of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PlannedFunction {
    /// The function.
    pub function: PciFunction,
    /// How many interrupt handles it gets.
    pub interrupts: u16,
    /// Its remapping unit; `None` where it has none, which was accepted.
    pub unit: Option<u16>,
    /// Its DMA and its interrupts are fenced. `false` only where that was accepted.
    pub fenced: bool,
}

/// A requester id that is to be attached to the partition's domain, or to have interrupt entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Requester {
    /// The remapping unit to program.
    pub unit: u16,
    /// The PCI segment group.
    pub segment: u16,
    /// The id.
    pub id: RequesterId,
}

/// A bus that the partition gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PlannedBus {
    /// The PCI segment group.
    pub segment: u16,
    /// The bus number.
    pub bus: u8,
    /// Its configuration space: 1 MiB.
    pub ecam: PhysRange,
}

/// A range that the partition's domain maps to itself, to be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DomainMap {
    /// The memory.
    pub range: PhysRange,
    /// Why it is mapped.
    pub reason: MapReason,
}

/// Why a range is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MapReason {
    /// It is memory of the partition.
    Memory,
    /// A device keeps reaching it on firmware's behalf, and firmware has it reserved.
    Reserved,
}

impl Plan {
    /// The longest name in bytes.
    pub const MAX_NAME: usize = 32;
    /// The most processors.
    pub const MAX_CPUS: usize = 256;
    /// The most memory ranges.
    pub const MAX_RANGES: usize = 16;
    /// The most PCI functions.
    pub const MAX_FUNCTIONS: usize = 64;
    /// The most requester ids.
    pub const MAX_REQUESTERS: usize = 128;
    /// The most buses.
    pub const MAX_BUSES: usize = 32;
    /// The most ranges that the domain maps.
    pub const MAX_MAPS: usize = 32;
    /// The most machine singletons.
    pub const MAX_SINGLETONS: usize = 16;

    pub(super) const fn empty(partition: PartitionId) -> Self {
        Self {
            partition,
            name: Vec::new(),
            cpus: Vec::new(),
            memory: Vec::new(),
            trampoline: None,
            functions: Vec::new(),
            requesters: Vec::new(),
            buses: Vec::new(),
            maps: Vec::new(),
            singletons: Vec::new(),
            domain: None,
            interrupt_handles: 0,
            table_pages: 0,
            ledger_slots: 0,
        }
    }

    /// The partition's number.
    #[must_use]
    pub const fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The partition's name.
    #[must_use]
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or("")
    }

    /// Its processors, in the order of the request or of the machine.
    #[must_use]
    pub fn cpus(&self) -> &[ApicId] {
        &self.cpus
    }

    /// Its memory, the trampoline page not included.
    #[must_use]
    pub fn memory(&self) -> &[PhysRange] {
        &self.memory
    }

    /// How many bytes of memory it has, the trampoline page not included.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory
            .iter()
            .fold(0, |sum: u64, range| sum.saturating_add(range.length()))
    }

    /// The page from which it starts its processors.
    #[must_use]
    pub const fn trampoline(&self) -> Option<PhysAddr> {
        self.trampoline
    }

    /// Its PCI functions, in the order of the request.
    #[must_use]
    pub fn functions(&self) -> &[PlannedFunction] {
        &self.functions
    }

    /// Every requester id to attach to its domain, each once, in order.
    #[must_use]
    pub fn requesters(&self) -> &[Requester] {
        &self.requesters
    }

    /// Its buses, each once, in order.
    #[must_use]
    pub fn buses(&self) -> &[PlannedBus] {
        &self.buses
    }

    /// What its domain maps; no two ranges overlap. Empty where it has no domain.
    #[must_use]
    pub fn maps(&self) -> &[DomainMap] {
        &self.maps
    }

    /// Its machine singletons.
    #[must_use]
    pub fn singletons(&self) -> &[u64] {
        &self.singletons
    }

    /// The domain its devices use; `None` where no device of it is behind a remapping unit.
    #[must_use]
    pub const fn domain(&self) -> Option<DomainId> {
        self.domain
    }

    /// How many interrupt handles it takes.
    #[must_use]
    pub const fn interrupt_handles(&self) -> u32 {
        self.interrupt_handles
    }

    /// How many frames its remapping tables take at most.
    #[must_use]
    pub const fn table_pages(&self) -> u64 {
        self.table_pages
    }

    /// How many ledger slots carving it takes at most.
    #[must_use]
    pub const fn ledger_slots(&self) -> u64 {
        self.ledger_slots
    }

    /// Whether every device of it is fenced.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.functions.iter().all(|function| function.fenced)
    }
}
