//! Entries of memory maps as the boot paths give them.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::{MemoryKind, MemoryRegion};

/// Why bytes are not a memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SourceError {
    /// An entry has fewer bytes than its format needs.
    EntrySize {
        /// Bytes an entry has.
        size: usize,
        /// Bytes it needs.
        needed: usize,
    },
    /// The bytes are not a whole number of entries.
    Length {
        /// Bytes there are.
        length: usize,
        /// Bytes an entry has.
        size: usize,
    },
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EntrySize { size, needed } => {
                write!(
                    f,
                    "memory map entries of {size} bytes need at least {needed}"
                )
            }
            Self::Length { length, size } => write!(
                f,
                "{length} bytes are not a whole number of memory map entries of {size}"
            ),
        }
    }
}

impl core::error::Error for SourceError {}

/// A region for these numbers, whatever they are. One that would wrap is reserved up to the end of
/// the address space: whoever wrote the entry did not know what is there.
fn region(base: u64, length: u64, kind: MemoryKind) -> MemoryRegion {
    match PhysRange::new(PhysAddr(base), length) {
        Ok(range) => MemoryRegion { range, kind },
        Err(_) => MemoryRegion {
            range: PhysRange::from_bounds(PhysAddr(base), PhysAddr(u64::MAX)),
            kind: MemoryKind::Reserved.max(kind),
        },
    }
}

impl MemoryRegion {
    /// A region for a base, a length and a type number of the system address map (ACPI 6.5,
    /// section 15). An entry that would wrap is reserved up to the end of the address space.
    #[must_use]
    pub fn from_e820(base: u64, length: u64, number: u32) -> Self {
        region(base, length, MemoryKind::from_e820(number))
    }
}

fn whole_entries(bytes: &[u8], size: usize, needed: usize) -> Result<(), SourceError> {
    if size < needed {
        return Err(SourceError::EntrySize { size, needed });
    }
    if bytes.len().checked_rem(size) != Some(0) {
        return Err(SourceError::Length {
            length: bytes.len(),
            size,
        });
    }
    Ok(())
}

/// Entries of a system address map: base, length and type, as the BIOS (20 bytes, section 15.1 of
/// ACPI 6.5), the Linux boot protocol (20) and PVH (24, the last four reserved) lay them out.
#[derive(Clone, Debug)]
pub struct E820Entries<'a> {
    left: &'a [u8],
    size: usize,
}

#[derive(FromBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned)]
#[repr(C)]
struct E820Raw {
    base: U64,
    length: U64,
    kind: U32,
}

impl<'a> E820Entries<'a> {
    /// Bytes of an entry of PVH's memory map.
    pub const PVH: usize = 24;
    /// Bytes of an entry of the BIOS's and of Linux's.
    pub const BIOS: usize = 20;

    /// The entries of `size` bytes each in `bytes`.
    ///
    /// # Errors
    /// Where an entry is too small, or `bytes` is not a whole number of them.
    pub fn parse(bytes: &'a [u8], size: usize) -> Result<Self, SourceError> {
        whole_entries(bytes, size, size_of::<E820Raw>())?;
        Ok(Self { left: bytes, size })
    }
}

impl Iterator for E820Entries<'_> {
    type Item = MemoryRegion;

    fn next(&mut self) -> Option<MemoryRegion> {
        let (entry, rest) = self.left.split_at_checked(self.size)?;
        self.left = rest;
        let (raw, _) = E820Raw::read_from_prefix(entry).ok()?;
        Some(MemoryRegion::from_e820(
            raw.base.get(),
            raw.length.get(),
            raw.kind.get(),
        ))
    }
}

/// Descriptors of a UEFI memory map (UEFI 2.10, section 7.2.3). Firmware says how long one is;
/// it is longer than what the specification names.
#[derive(Clone, Debug)]
pub struct UefiDescriptors<'a> {
    left: &'a [u8],
    size: usize,
}

#[derive(FromBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned)]
#[repr(C)]
struct UefiRaw {
    kind: U32,
    padding: U32,
    base: U64,
    virtual_base: U64,
    pages: U64,
    attribute: U64,
}

impl<'a> UefiDescriptors<'a> {
    /// The descriptors of `size` bytes each in `bytes`.
    ///
    /// # Errors
    /// Where a descriptor is too small, or `bytes` is not a whole number of them.
    pub fn parse(bytes: &'a [u8], size: usize) -> Result<Self, SourceError> {
        whole_entries(bytes, size, size_of::<UefiRaw>())?;
        Ok(Self { left: bytes, size })
    }
}

impl Iterator for UefiDescriptors<'_> {
    type Item = MemoryRegion;

    fn next(&mut self) -> Option<MemoryRegion> {
        let (descriptor, rest) = self.left.split_at_checked(self.size)?;
        self.left = rest;
        let (raw, _) = UefiRaw::read_from_prefix(descriptor).ok()?;
        let kind = MemoryKind::from_uefi(raw.kind.get(), raw.attribute.get());
        Some(match raw.pages.get().checked_mul(FRAME_SIZE) {
            Some(length) => region(raw.base.get(), length, kind),
            // Longer than the address space: it wraps wherever it begins.
            None => region(raw.base.get().max(1), u64::MAX, kind),
        })
    }
}
