//! SMBIOS: entry points and the structures they lead to.
//!
//! Reference: System Management BIOS Reference Specification 3.7 (DMTF DSP0134), section 5.2 for
//! the entry points and 6.1 for the structures.

use core::fmt;

use handoff_abi::PhysAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::table::checksum;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry2Raw {
    anchor: [u8; 4],
    checksum: u8,
    length: u8,
    major: u8,
    minor: u8,
    largest: U16,
    revision: u8,
    formatted: [u8; 5],
    intermediate_anchor: [u8; 5],
    intermediate_checksum: u8,
    table_length: U16,
    table: U32,
    count: U16,
    bcd_revision: u8,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry3Raw {
    anchor: [u8; 5],
    checksum: u8,
    length: u8,
    major: u8,
    minor: u8,
    docrev: u8,
    revision: u8,
    reserved: u8,
    table_length: U32,
    table: U64,
}

const _: () = assert!(size_of::<Entry2Raw>() == 31 && size_of::<Entry3Raw>() == 24);

/// Why bytes are not an SMBIOS entry point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SmbiosError {
    /// The bytes begin with neither anchor.
    Anchor {
        /// What they begin with.
        found: [u8; 4],
    },
    /// There are fewer bytes than the entry point has.
    Truncated {
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The bytes do not add up to zero.
    Checksum {
        /// What they add up to, modulo 256.
        sum: u8,
    },
}

impl fmt::Display for SmbiosError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anchor { found } => {
                write!(
                    f,
                    "an SMBIOS entry point was expected, there is \"{}\"",
                    found.escape_ascii()
                )
            }
            Self::Truncated { needed, have } => {
                write!(
                    f,
                    "an SMBIOS entry point needs {needed} bytes and has {have}"
                )
            }
            Self::Checksum { sum } => write!(
                f,
                "the bytes of the SMBIOS entry point add up to {sum:#04x} instead of zero"
            ),
        }
    }
}

impl core::error::Error for SmbiosError {}

/// An SMBIOS entry point of either format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SmbiosEntry {
    /// Whether it is the 64-bit entry point of SMBIOS 3.
    pub is_64_bit: bool,
    /// Major version of the specification.
    pub major: u8,
    /// Minor version of the specification.
    pub minor: u8,
    /// Bytes of the entry point itself.
    pub length: usize,
    /// Where the structures are.
    pub table: PhysAddr,
    /// Bytes of the structures: exactly so many with the 32-bit entry point, at most so many with
    /// the 64-bit one.
    pub table_length: u32,
    /// How many structures there are, where the entry point says.
    pub structures: Option<u16>,
}

impl SmbiosEntry {
    /// More bytes than any entry point has.
    pub const MAX_LENGTH: usize = 32;

    /// Reads an entry point of either format. Bytes after it are ignored.
    ///
    /// # Errors
    /// Where there is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, SmbiosError> {
        let truncated = |needed| SmbiosError::Truncated {
            needed,
            have: bytes.len(),
        };
        let sound = |length: u8, least: usize| {
            // Firmware of SMBIOS 2.1 states 1Eh for 1Fh, and the sum is over what it states.
            let length = usize::from(length).max(least);
            let whole = bytes.get(..length).ok_or(truncated(length))?;
            match checksum(whole) {
                0 => Ok(length),
                sum => Err(SmbiosError::Checksum { sum }),
            }
        };
        if bytes.starts_with(b"_SM3_") {
            let (raw, _) = Entry3Raw::read_from_prefix(bytes)
                .map_err(|_| truncated(size_of::<Entry3Raw>()))?;
            return Ok(Self {
                is_64_bit: true,
                major: raw.major,
                minor: raw.minor,
                length: sound(raw.length, size_of::<Entry3Raw>())?,
                table: PhysAddr(raw.table.get()),
                table_length: raw.table_length.get(),
                structures: None,
            });
        }
        if bytes.starts_with(b"_SM_") {
            let (raw, _) = Entry2Raw::read_from_prefix(bytes)
                .map_err(|_| truncated(size_of::<Entry2Raw>()))?;
            return Ok(Self {
                is_64_bit: false,
                major: raw.major,
                minor: raw.minor,
                length: sound(raw.length, 0x1e)?,
                table: PhysAddr(u64::from(raw.table.get())),
                table_length: u32::from(raw.table_length.get()),
                structures: Some(raw.count.get()),
            });
        }
        Err(SmbiosError::Anchor {
            found: bytes.first_chunk().copied().unwrap_or_default(),
        })
    }
}

/// A structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmbiosStructure<'a> {
    /// Its type.
    pub kind: u8,
    /// Its handle; real tables use some twice.
    pub handle: u16,
    /// The formatted area: type, length and handle included.
    pub formatted: &'a [u8],
    strings: &'a [u8],
}

impl<'a> SmbiosStructure<'a> {
    /// The type of the structure that ends the table.
    pub const END_OF_TABLE: u8 = 127;

    /// The string with this number, counted from 1; `None` for 0, which stands for no string, and
    /// for a number that is not there.
    #[must_use]
    pub fn string(&self, number: u8) -> Option<&'a [u8]> {
        let place = usize::from(number).checked_sub(1)?;
        self.strings().nth(place)
    }

    /// Its strings, in order. Any bytes but zero.
    pub fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.strings
            .split(|&byte| byte == 0)
            .take_while(|string| !string.is_empty())
    }
}

/// Why the structures end where they do, or go on only further behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum StructureError {
    /// A structure states a length that is less than its header's, or more than there is.
    Length {
        /// Where it begins, in bytes.
        offset: usize,
        /// The length it states.
        length: u8,
    },
    /// The strings of a structure do not end.
    Strings {
        /// Where the structure begins, in bytes.
        offset: usize,
    },
    /// There are zeros where a structure should begin. The structures after them are still read.
    Stray {
        /// Where they begin, in bytes.
        offset: usize,
        /// How many there are.
        count: usize,
    },
}

impl StructureError {
    /// Whether structures after this place cannot be read either.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Stray { .. })
    }
}

impl fmt::Display for StructureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { offset, length } => write!(
                f,
                "the SMBIOS structure at {offset:#x} states a length of {length}"
            ),
            Self::Strings { offset } => write!(
                f,
                "the strings of the SMBIOS structure at {offset:#x} do not end"
            ),
            Self::Stray { offset, count } => {
                write!(
                    f,
                    "{count} stray zeros between SMBIOS structures at {offset:#x}"
                )
            }
        }
    }
}

impl core::error::Error for StructureError {}

/// The structures of an SMBIOS table, in order, up to and with the end-of-table structure or to
/// where they stop making sense. Zeros between them are an error of their own.
#[derive(Clone, Debug)]
pub struct SmbiosStructures<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> SmbiosStructures<'a> {
    /// The structures in `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Bytes of the structures that were iterated over so far.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    fn read(&self, left: &'a [u8]) -> Result<(SmbiosStructure<'a>, usize), StructureError> {
        let offset = self.offset;
        let bad_length = |length| StructureError::Length { offset, length };
        let &[kind, length, h0, h1] = left
            .first_chunk()
            .ok_or(bad_length(left.get(1).copied().unwrap_or(0)))?;
        if length < 4 {
            return Err(bad_length(length));
        }
        let (formatted, rest) = left
            .split_at_checked(usize::from(length))
            .ok_or(bad_length(length))?;
        // Two zeros end the strings, also where there are none.
        let end = rest
            .windows(2)
            .position(|pair| pair == [0, 0])
            .ok_or(StructureError::Strings { offset })?;
        let structure = SmbiosStructure {
            kind,
            handle: u16::from_le_bytes([h0, h1]),
            formatted,
            strings: rest.get(..end).unwrap_or(&[]),
        };
        let used = formatted.len().saturating_add(end).saturating_add(2);
        Ok((structure, used))
    }
}

impl<'a> Iterator for SmbiosStructures<'a> {
    type Item = Result<SmbiosStructure<'a>, StructureError>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.bytes.get(self.offset..)?;
        if left.is_empty() {
            return None;
        }
        // Of a type of zero and a length of zero: no structure, but more of the zeros that end the
        // strings of the one before.
        if left.starts_with(&[0, 0]) {
            let count = left.iter().take_while(|&&byte| byte == 0).count();
            let offset = self.offset;
            self.offset = offset.saturating_add(count);
            return Some(Err(StructureError::Stray { offset, count }));
        }
        match self.read(left) {
            Ok((structure, used)) => {
                self.offset = self.offset.saturating_add(used);
                if structure.kind == SmbiosStructure::END_OF_TABLE {
                    self.bytes = self.bytes.get(..self.offset).unwrap_or(&[]);
                }
                Some(Ok(structure))
            }
            Err(error) => {
                self.bytes = &[];
                Some(Err(error))
            }
        }
    }
}
