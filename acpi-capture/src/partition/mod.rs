//! The smaller machine: ACPI tables and a memory map that show one partition and nothing else.
//!
//! [`PartitionView::write`] takes what firmware said of the whole machine and writes tables for
//! one kernel: its processors, its memory, its PCI buses. Interrupt controllers, timers and
//! remapping units that someone else runs are not in them. An ordinary kernel that reads these
//! tables stays within its partition without knowing that there is one.

use core::fmt;

use handoff_abi::{ApicId, PhysAddr, PhysRange};

use crate::Capture;
use crate::memory::{MapError, MemoryKind, MemoryMap, MemoryRegion};
use crate::table::{Madt, TableError};

mod check;
mod dsdt;
mod numa;
mod output;
mod tables;

use output::Output;

/// What goes through a window of a host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum WindowKind {
    /// Ports, 0 to 0xFFFF.
    Io,
    /// Memory below 4 GiB, for BARs that are not prefetchable.
    Memory32,
    /// Prefetchable memory, at any address.
    Memory64Prefetchable,
}

/// A range of addresses that a host bridge passes on to the buses below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Window {
    /// What goes through.
    pub kind: WindowKind,
    /// The addresses, or port numbers.
    pub range: PhysRange,
}

/// Some contiguous PCI buses of the partition, which its kernel sees below a host bridge of their
/// own. In truth they lie below root ports; the windows are those of these root ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct HostBridge<'a> {
    /// The segment group.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
    /// Where configuration space of bus 0 of the segment group is, or would be: what MCFG gives.
    pub ecam: PhysAddr,
    /// What it passes on.
    pub windows: &'a [Window],
}

impl HostBridge<'_> {
    /// The memory of the configuration space of its buses.
    fn config_space(&self) -> Option<PhysRange> {
        crate::table::EcamAllocation {
            base: self.ecam,
            segment: self.segment,
            first_bus: self.first_bus,
            last_bus: self.last_bus,
        }
        .memory()
    }
}

/// The word that stands for the machine's reset register: who writes it asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ResetWord {
    /// The byte that is written.
    pub address: PhysAddr,
    /// What is written to it.
    pub value: u8,
}

/// One partition, as its kernel is to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView<'a> {
    /// Its processors; the kernel starts on the first.
    pub cpus: &'a [ApicId],
    /// Its memory.
    pub memory: &'a [PhysRange],
    /// Memory it knows of and must not use as its own: the baton, above all.
    pub reserved: &'a [MemoryRegion],
    /// Its PCI buses.
    pub bridges: &'a [HostBridge<'a>],
    /// The reset register it sees.
    pub reset: ResetWord,
    /// The multiprocessor wakeup mailbox its other processors wait at, if they do. A kernel that
    /// finds one starts them that way and never sends INIT.
    pub wakeup: Option<PhysAddr>,
    /// The address at which its kernel finds what is written to the buffer: a multiple of 16.
    pub place: PhysAddr,
}

/// Where the written tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PartitionTables {
    /// The RSDP.
    pub rsdp: PhysAddr,
    /// All of them, the RSDP included.
    pub range: PhysRange,
}

/// Why a partition's tables were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PartitionError {
    /// A captured table that is needed has a layout that cannot be read.
    Table(TableError),
    /// The capture has no sound MADT.
    NoMadt,
    /// There is no processor.
    NoCpu,
    /// The MADT has no enabled processor with this id.
    UnknownCpu(ApicId),
    /// The processor is listed twice.
    DuplicateCpu(ApicId),
    /// Two ranges of memory overlap.
    MemoryOverlap {
        /// The first.
        first: PhysRange,
        /// The other.
        second: PhysRange,
    },
    /// The buses of a host bridge are in the wrong order, or their configuration space does not
    /// fit the address space.
    Buses {
        /// The host bridge's place in the request.
        bridge: usize,
    },
    /// Two host bridges have a bus in common.
    BusOverlap {
        /// The first one's place in the request.
        first: usize,
        /// The other's.
        second: usize,
    },
    /// There are more host bridges than can be named.
    TooManyBridges {
        /// How many can.
        limit: usize,
    },
    /// A window is empty, or reaches past what its kind can address.
    Window {
        /// The host bridge's place in the request.
        bridge: usize,
        /// The window.
        window: Window,
    },
    /// A window overlaps another one, memory, or configuration space.
    WindowOverlap {
        /// The host bridge's place in the request.
        bridge: usize,
        /// The window.
        window: Window,
        /// What it overlaps.
        with: PhysRange,
    },
    /// Processors and memory of the partition are in more proximity domains than are supported.
    TooManyNodes {
        /// How many are.
        limit: usize,
    },
    /// The place is not a multiple of 16, or the buffer would reach past the address space there.
    Place {
        /// The place.
        place: PhysAddr,
        /// Bytes of the buffer.
        length: usize,
    },
    /// The tables do not fit the buffer.
    Buffer {
        /// Bytes of the buffer.
        have: usize,
    },
}

impl fmt::Display for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(error) => fmt::Display::fmt(error, f),
            Self::NoMadt => f.write_str("the capture has no sound MADT"),
            Self::NoCpu => f.write_str("the partition has no processor"),
            Self::UnknownCpu(id) => write!(f, "the MADT has no enabled processor {id}"),
            Self::DuplicateCpu(id) => write!(f, "processor {id} is listed twice"),
            Self::MemoryOverlap { first, second } => {
                write!(f, "memory {first} and {second} overlap")
            }
            Self::Buses { bridge } => write!(f, "the buses of host bridge {bridge} make no sense"),
            Self::BusOverlap { first, second } => {
                write!(f, "host bridges {first} and {second} share a bus")
            }
            Self::TooManyBridges { limit } => {
                write!(f, "there can be {limit} host bridges")
            }
            Self::Window { bridge, window } => write!(
                f,
                "{:?} window {} of host bridge {bridge} makes no sense",
                window.kind, window.range
            ),
            Self::WindowOverlap {
                bridge,
                window,
                with,
            } => write!(
                f,
                "{:?} window {} of host bridge {bridge} overlaps {with}",
                window.kind, window.range
            ),
            Self::TooManyNodes { limit } => {
                write!(f, "the partition spans more than {limit} proximity domains")
            }
            Self::Place { place, length } => {
                write!(f, "{length} bytes of tables cannot be at {place}")
            }
            Self::Buffer { have } => {
                write!(f, "the tables do not fit a buffer of {have} bytes")
            }
        }
    }
}

impl core::error::Error for PartitionError {}

impl From<TableError> for PartitionError {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

impl PartitionView<'_> {
    /// Checks the view against what was captured, and writes its tables to `buffer`, which is, or
    /// will be copied to, [`place`](Self::place). The RSDP comes first.
    ///
    /// # Errors
    /// Where the view contradicts itself or the captured tables, or the buffer is too small. The
    /// buffer is then in any state.
    pub fn write(
        &self,
        capture: &Capture<'_>,
        buffer: &mut [u8],
    ) -> Result<PartitionTables, PartitionError> {
        let madt: Madt<'_> = capture.madt().ok_or(PartitionError::NoMadt)??;
        self.check(&madt)?;
        let mut output = Output::new(self.place, buffer)?;
        tables::write_all(self, capture, &madt, &mut output)?;
        Ok(PartitionTables {
            rsdp: self.place,
            range: output.range(),
        })
    }

    /// The memory map of the partition: its memory, the reserved regions of the view, and the
    /// tables, reserved. Where these overlap, the safer kind counts.
    ///
    /// # Errors
    /// Where the map has too little room.
    pub fn memory_map<const N: usize>(
        &self,
        tables: &PartitionTables,
    ) -> Result<MemoryMap<N>, MapError> {
        let usable = self.memory.iter().map(|&range| MemoryRegion {
            range,
            kind: MemoryKind::Usable,
        });
        let tables = MemoryRegion {
            range: tables.range,
            kind: MemoryKind::Reserved,
        };
        MemoryMap::from_regions(usable.chain(self.reserved.iter().copied()).chain([tables]))
    }
}
