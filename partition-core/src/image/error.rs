//! Why an image is refused.

use core::fmt;

use handoff_abi::PhysRange;

/// Why a file is not an image that can be started. A segment is named by its place in the program
/// header table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ImageError {
    /// It does not begin with the ELF magic.
    NotElf,
    /// It ends before the headers that it states.
    Truncated {
        /// Bytes there are.
        have: usize,
    },
    /// A header contradicts itself: a table whose entries have the wrong size, or a version other
    /// than 1.
    Header,
    /// It is not a 64-bit file; EI_CLASS.
    Class(u8),
    /// It is not little-endian; EI_DATA.
    ByteOrder(u8),
    /// It is not for x86-64; e_machine.
    Machine(u16),
    /// It is neither an executable nor a position independent one; e_type.
    Type(u16),
    /// It asks for a dynamic linker.
    Interpreter,
    /// It has relocations, which nobody applies.
    Relocations,
    /// Nothing of it is to be loaded.
    NoSegments,
    /// It has more than [`Image::MAX_SEGMENTS`](super::Image::MAX_SEGMENTS) segments to be loaded,
    /// or as many with notes and dynamic sections.
    TooManySegments,
    /// The segment has more bytes in the file than in memory.
    SegmentSize {
        /// The segment.
        segment: u16,
    },
    /// Bytes of the segment are past the end of the file.
    SegmentOutsideFile {
        /// The segment.
        segment: u16,
    },
    /// The segment's addresses wrap or are not canonical.
    SegmentAddress {
        /// The segment.
        segment: u16,
    },
    /// The segment's alignment is not a power of two, is above 1 GiB, or address and file offset
    /// differ by something that is not a multiple of it.
    SegmentAlignment {
        /// The segment.
        segment: u16,
    },
    /// Two segments have an address, or a page of 4 KiB, in common.
    SegmentsOverlap {
        /// One.
        segment: u16,
        /// The other.
        other: u16,
    },
    /// It has no Baton note: it does not know how to take over a machine.
    NoteMissing,
    /// It has two Baton notes.
    NoteTwice,
    /// The Baton note is too short.
    NoteLength(usize),
    /// The entry that the Baton note gives is in no executable segment.
    Entry(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("the image is not an ELF file"),
            Self::Truncated { have } => {
                write!(f, "the image is truncated: it ends after {have} bytes")
            }
            Self::Header => f.write_str("the image's ELF header contradicts itself"),
            Self::Class(class) => write!(f, "the image has ELF class {class}, not 2 (64-bit)"),
            Self::ByteOrder(data) => {
                write!(
                    f,
                    "the image has ELF data encoding {data}, not 1 (little-endian)"
                )
            }
            Self::Machine(machine) => {
                write!(f, "the image is for ELF machine {machine}, not 62 (x86-64)")
            }
            Self::Type(of) => {
                write!(
                    f,
                    "the image has ELF type {of}, neither 2 (executable) nor 3 (position independent)"
                )
            }
            Self::Interpreter => f.write_str("the image asks for a dynamic linker"),
            Self::Relocations => f.write_str("the image has relocations, which nobody applies"),
            Self::NoSegments => f.write_str("the image has nothing to be loaded"),
            Self::TooManySegments => write!(
                f,
                "the image has more than {} segments of a kind",
                super::Image::MAX_SEGMENTS
            ),
            Self::SegmentSize { segment } => {
                write!(
                    f,
                    "segment {segment} has more bytes in the file than in memory"
                )
            }
            Self::SegmentOutsideFile { segment } => {
                write!(f, "segment {segment} reaches past the end of the file")
            }
            Self::SegmentAddress { segment } => {
                write!(f, "segment {segment} has impossible addresses")
            }
            Self::SegmentAlignment { segment } => {
                write!(f, "segment {segment} has an impossible alignment")
            }
            Self::SegmentsOverlap { segment, other } => {
                write!(f, "segments {segment} and {other} share a page")
            }
            Self::NoteMissing => f.write_str("the image has no Baton note"),
            Self::NoteTwice => f.write_str("the image has two Baton notes"),
            Self::NoteLength(length) => {
                write!(
                    f,
                    "the image's Baton note has {length} bytes, fewer than 24"
                )
            }
            Self::Entry(entry) => {
                write!(
                    f,
                    "the image's entry {entry:#x} is in no executable segment"
                )
            }
        }
    }
}

impl core::error::Error for ImageError {}

/// Why an image cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PlaceError {
    /// The room does not begin at a page of 4 KiB.
    Misaligned(PhysRange),
    /// The room is too small.
    TooLarge {
        /// Bytes that are needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The image runs where it is placed, and there the addresses are not canonical.
    Address(PhysRange),
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned(room) => write!(f, "room {room} does not begin at a page"),
            Self::TooLarge { need, have } => {
                write!(f, "the image needs {need:#x} bytes and has {have:#x}")
            }
            Self::Address(room) => write!(f, "the image cannot run at {room}"),
        }
    }
}

impl core::error::Error for PlaceError {}
