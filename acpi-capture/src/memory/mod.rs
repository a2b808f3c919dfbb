//! Memory maps: from what a boot path gives to one sorted list without overlaps.
//!
//! Firmware's maps are unsorted, overlap, touch, and contradict themselves. [`MemoryMap`] takes
//! entries in any order; where two say different things about a byte, the safer one counts (the
//! greater [`MemoryKind`]). Bytes that no entry names are in no region, and must be taken for
//! devices or nothing.

use core::fmt;

use handoff_abi::PhysRange;

mod map;
mod setup;
mod source;

pub use map::{MapError, MemoryMap};
pub use setup::{SetupData, SetupError, SetupItem, SetupKind};
pub use source::{E820Entries, SourceError, UefiDescriptors};

/// What a byte of the address space may be used for, from the least to the most restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MemoryKind {
    /// Ordinary memory: any kernel may use it.
    Usable,
    /// Memory with special properties that firmware asks not to use for ordinary purposes.
    SpecificPurpose,
    /// ACPI tables; usable once they are no longer needed.
    AcpiReclaimable,
    /// Persistent memory.
    Persistent,
    /// Firmware's own across sleep: never to be touched.
    AcpiNvs,
    /// UEFI runtime code and data.
    Runtime,
    /// Reserved, or of a type that is not known.
    Reserved,
    /// Memory with errors.
    Unusable,
}

impl MemoryKind {
    /// The kind for a type number of the system address map (ACPI 6.5, table 15.5). Numbers that
    /// are not known, and the disabled memory of type 6, are reserved.
    #[must_use]
    pub const fn from_e820(number: u32) -> Self {
        match number {
            1 => Self::Usable,
            3 => Self::AcpiReclaimable,
            4 => Self::AcpiNvs,
            5 => Self::Unusable,
            7 => Self::Persistent,
            // Not in the specification: Linux's number for `EFI_MEMORY_SP`.
            0xefff_ffff => Self::SpecificPurpose,
            _ => Self::Reserved,
        }
    }

    /// The type number of the system address map, for a kernel that is booted with one.
    #[must_use]
    pub const fn to_e820(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::AcpiReclaimable => 3,
            Self::AcpiNvs => 4,
            Self::Unusable => 5,
            Self::Persistent => 7,
            Self::SpecificPurpose | Self::Runtime | Self::Reserved => 2,
        }
    }

    /// The kind for a UEFI memory descriptor (UEFI 2.10, section 7.2.3), after
    /// `ExitBootServices`. Like Linux, this takes memory for usable only if it can be cached
    /// write-back. What the loader placed is usable too: a kernel carves out its own image.
    #[must_use]
    pub const fn from_uefi(kind: u32, attribute: u64) -> Self {
        const WRITE_BACK: u64 = 1 << 3;
        const SPECIFIC_PURPOSE: u64 = 1 << 18;
        const RUNTIME: u64 = 1 << 63;
        match kind {
            // EfiLoaderCode and -Data, EfiBootServicesCode and -Data, EfiConventionalMemory.
            1..=4 | 7 => {
                if attribute & RUNTIME != 0 {
                    Self::Runtime
                } else if attribute & WRITE_BACK == 0 {
                    Self::Reserved
                } else if attribute & SPECIFIC_PURPOSE != 0 {
                    Self::SpecificPurpose
                } else {
                    Self::Usable
                }
            }
            5 | 6 => Self::Runtime,
            8 => Self::Unusable,
            9 => Self::AcpiReclaimable,
            10 => Self::AcpiNvs,
            14 => Self::Persistent,
            // Reserved, memory-mapped IO, PAL code, unaccepted memory, and what is not known.
            _ => Self::Reserved,
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usable => "usable",
            Self::SpecificPurpose => "specific purpose",
            Self::AcpiReclaimable => "ACPI tables",
            Self::Persistent => "persistent",
            Self::AcpiNvs => "ACPI NVS",
            Self::Runtime => "UEFI runtime",
            Self::Reserved => "reserved",
            Self::Unusable => "unusable",
        })
    }
}

/// A range of memory and what it may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemoryRegion {
    /// Where.
    pub range: PhysRange,
    /// What for.
    pub kind: MemoryKind,
}
