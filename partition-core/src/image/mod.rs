//! Kernel images: reading an ELF64 file, placing it, and the page tables it is entered with.
//!
//! [`Image::parse`] checks a whole file before anything is written; [`Image::place`] decides where
//! in physical memory it goes, [`Layout::load`] copies it there, and [`paging::build`] makes page
//! tables in which it finds itself at the addresses that it was linked for.
//!
//! A kernel states that it is one in a note, [`BatonNote`]; in assembly:
//!
//! ```text
//! .pushsection .note.baton, "a", @note
//! .balign 4
//! .long 6, 24, 1              // length of the name, length of the rest, type
//! .asciz "Baton"
//! .balign 4
//! .short 0, 2                 // ABI version
//! .long 0
//! .quad 2                     // features
//! .quad baton_entry
//! .popsection
//! ```
//!
//! Linux, which knows nothing of any of this, is in [`linux`].
//!
//! Names and numbers are those of the ELF-64 Object File Format and the System V ABI, AMD64
//! supplement. Physical addresses in the file (p_paddr) and section headers have no influence.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod error;
pub mod linux;
mod note;
pub mod paging;
mod place;
#[cfg(test)]
mod tests;

use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::parse::ParseError;
use elf::segment::ProgramHeader;
use handoff_abi::FRAME_SIZE;
use heapless::Vec;

pub use error::{ImageError, PlaceError};
pub use note::BatonNote;
pub use place::{Layout, LoadError, PlacedSegment, WritePhys};

const MAX_SEGMENTS: usize = 16;

/// What may be done with memory besides reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Access {
    /// It may be written.
    pub write: bool,
    /// Instructions may be fetched from it.
    pub execute: bool,
}

/// A part of an image that is loaded: a program header of type PT_LOAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Segment {
    /// Its place in the program header table.
    pub number: u16,
    /// Where its bytes begin in the file.
    pub file_offset: u64,
    /// How many bytes it has in the file.
    pub file_size: u64,
    /// The virtual address it is linked for.
    pub address: u64,
    /// How many bytes it has in memory; those that the file does not have are zero.
    pub memory_size: u64,
    /// What may be done with it.
    pub access: Access,
}

impl Segment {
    /// The first address and the address after the last, grown to whole pages of 4 KiB.
    ///
    /// Neither wraps: addresses were found to be canonical, so the last page of the address space
    /// is the only one whose end is 0, and [`Image::parse`] refuses a segment in it.
    pub(super) const fn pages(&self) -> (u64, u64) {
        let last = self
            .address
            .saturating_add(self.memory_size.saturating_sub(1));
        (
            page_of(self.address),
            page_of(last).saturating_add(FRAME_SIZE),
        )
    }
}

pub(super) const fn page_of(address: u64) -> u64 {
    address & !FRAME_SIZE.saturating_sub(1)
}

/// The virtual addresses that an image takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Footprint {
    /// The first, a multiple of 4096.
    pub base: u64,
    /// How many bytes of memory it takes when placed in one piece, whole pages.
    pub length: u64,
    /// The greatest alignment that a segment asks for, at least 4096. Where the physical address
    /// differs from the virtual one by a multiple of 2 MiB, large pages can be used.
    pub alignment: u64,
}

/// A kernel image that can be loaded and entered.
///
/// A value proves: a little-endian ELF64 file for x86-64, without interpreter or relocations; 1 to
/// [`MAX_SEGMENTS`](Self::MAX_SEGMENTS) segments with all their bytes in the file and canonical
/// addresses in 48 bits, no two of them in one page; a single Baton note, whose entry is in an
/// executable segment.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    segments: Vec<Segment, MAX_SEGMENTS>,
    footprint: Footprint,
    position_independent: bool,
    note: BatonNote,
}

impl<'a> Image<'a> {
    /// The most segments that an image may have loaded.
    pub const MAX_SEGMENTS: usize = MAX_SEGMENTS;
    const MAX_ALIGNMENT: u64 = 1 << 30;

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Where it is not an image that can be started.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let read = |error: ParseError| header_error(&error, bytes);
        let have = bytes.len();
        let ident = bytes
            .get(..abi::EI_NIDENT)
            .ok_or(ImageError::Truncated { have })?;
        let (_, class, ..) = parse_ident::<LittleEndian>(ident).map_err(read)?;
        if class != Class::ELF64 {
            return Err(ImageError::Class(abi::ELFCLASS32));
        }
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(read)?;
        let header = &file.ehdr;
        if header.e_machine != abi::EM_X86_64 {
            return Err(ImageError::Machine(header.e_machine));
        }
        let position_independent = match header.e_type {
            abi::ET_EXEC => false,
            abi::ET_DYN => true,
            other => return Err(ImageError::Type(other)),
        };
        if header.version != u32::from(abi::EV_CURRENT) {
            return Err(ImageError::Header);
        }
        let table = file.segments().ok_or(ImageError::NoSegments)?;
        let mut segments: Vec<Segment, MAX_SEGMENTS> = Vec::new();
        let mut alignment = FRAME_SIZE;
        let mut note = None;
        let mut searched = 0_usize;
        for (number, entry) in table.iter().enumerate() {
            let segment = u16::try_from(number).map_err(|_| ImageError::TooManySegments)?;
            match entry.p_type {
                abi::PT_LOAD if entry.p_memsz == 0 && entry.p_filesz == 0 => {}
                abi::PT_LOAD => {
                    let loaded = load_segment(bytes, segment, &entry)?;
                    if let Some(other) = segments.iter().find(|other| share_page(other, &loaded)) {
                        return Err(ImageError::SegmentsOverlap {
                            segment,
                            other: other.number,
                        });
                    }
                    alignment = alignment.max(entry.p_align);
                    segments
                        .push(loaded)
                        .map_err(|_| ImageError::TooManySegments)?;
                }
                abi::PT_INTERP => return Err(ImageError::Interpreter),
                // Each of these is searched, so there must not be any number of them.
                abi::PT_NOTE | abi::PT_DYNAMIC if searched == MAX_SEGMENTS => {
                    return Err(ImageError::TooManySegments);
                }
                abi::PT_NOTE => {
                    searched = searched.saturating_add(1);
                    find_note(file_bytes(bytes, segment, &entry)?, &mut note)?;
                }
                abi::PT_DYNAMIC => {
                    searched = searched.saturating_add(1);
                    refuse_relocations(file_bytes(bytes, segment, &entry)?)?;
                }
                _ => {}
            }
        }
        let footprint = footprint(&segments, alignment).ok_or(ImageError::NoSegments)?;
        let note = note.ok_or(ImageError::NoteMissing)?;
        let in_segment = |segment: &Segment| {
            segment.access.execute
                && note
                    .entry
                    .checked_sub(segment.address)
                    .is_some_and(|offset| offset < segment.file_size)
        };
        if !segments.iter().any(in_segment) {
            return Err(ImageError::Entry(note.entry));
        }
        Ok(Self {
            bytes,
            segments,
            footprint,
            position_independent,
            note,
        })
    }

    /// What it says of itself.
    #[must_use]
    pub const fn note(&self) -> &BatonNote {
        &self.note
    }

    /// What is loaded, in the order of the program header table.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// The bytes that the file has of a segment of this image.
    #[must_use]
    pub fn segment_bytes(&self, segment: &Segment) -> &'a [u8] {
        slice(self.bytes, segment.file_offset, segment.file_size).unwrap_or(&[])
    }

    /// The addresses it takes, as linked.
    #[must_use]
    pub const fn footprint(&self) -> Footprint {
        self.footprint
    }

    /// Whether it can run at any address (e_type is ET_DYN).
    #[must_use]
    pub const fn is_position_independent(&self) -> bool {
        self.position_independent
    }

    /// Whether a segment may be written as well as executed. Such an image is accepted; its tables
    /// give it what it asks for.
    #[must_use]
    pub fn has_writable_code(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.access.write && segment.access.execute)
    }
}

fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(length)?).ok()?;
    bytes.get(usize::try_from(offset).ok()?..end)
}

/// What is wrong with headers that could not be read.
fn header_error(error: &ParseError, bytes: &[u8]) -> ImageError {
    match error {
        ParseError::BadMagic(_) => ImageError::NotElf,
        ParseError::UnsupportedElfClass(class) => ImageError::Class(*class),
        ParseError::UnsupportedElfEndianness(data) => ImageError::ByteOrder(*data),
        ParseError::SliceReadError(_) | ParseError::BadOffset(_) | ParseError::IntegerOverflow => {
            ImageError::Truncated { have: bytes.len() }
        }
        _ => ImageError::Header,
    }
}

fn file_bytes<'a>(
    bytes: &'a [u8],
    segment: u16,
    entry: &ProgramHeader,
) -> Result<&'a [u8], ImageError> {
    slice(bytes, entry.p_offset, entry.p_filesz).ok_or(ImageError::SegmentOutsideFile { segment })
}

fn load_segment(bytes: &[u8], number: u16, entry: &ProgramHeader) -> Result<Segment, ImageError> {
    let segment = number;
    file_bytes(bytes, segment, entry)?;
    if entry.p_filesz > entry.p_memsz {
        return Err(ImageError::SegmentSize { segment });
    }
    // 0 and 1 both mean that no alignment is asked for.
    let alignment = entry.p_align.max(1);
    if !alignment.is_power_of_two()
        || alignment > Image::MAX_ALIGNMENT
        || (entry.p_vaddr ^ entry.p_offset) & alignment.saturating_sub(1) != 0
    {
        return Err(ImageError::SegmentAlignment { segment });
    }
    let last = entry.p_vaddr.checked_add(entry.p_memsz.saturating_sub(1));
    let possible = |last: u64| {
        is_canonical(entry.p_vaddr)
            && is_canonical(last)
            // In one half of the address space, and not in its last page, so that ends do not wrap.
            && entry.p_vaddr >> 63 == last >> 63
            && last < page_of(u64::MAX)
    };
    if !last.is_some_and(possible) {
        return Err(ImageError::SegmentAddress { segment });
    }
    Ok(Segment {
        number,
        file_offset: entry.p_offset,
        file_size: entry.p_filesz,
        address: entry.p_vaddr,
        memory_size: entry.p_memsz,
        access: Access {
            write: entry.p_flags & abi::PF_W != 0,
            execute: entry.p_flags & abi::PF_X != 0,
        },
    })
}

/// Whether bits 63:47 are the same (Intel SDM volume 1, section 3.3.7.1), as with 4-level paging.
pub(super) const fn is_canonical(address: u64) -> bool {
    let upper = address >> 47;
    upper == 0 || upper == u64::MAX >> 47
}

fn share_page(a: &Segment, b: &Segment) -> bool {
    let ((a_base, a_end), (b_base, b_end)) = (a.pages(), b.pages());
    a_base < b_end && b_base < a_end
}

fn footprint(segments: &[Segment], alignment: u64) -> Option<Footprint> {
    let base = segments.iter().map(|segment| segment.pages().0).min()?;
    let end = segments.iter().map(|segment| segment.pages().1).max()?;
    Some(Footprint {
        base,
        length: end.checked_sub(base)?,
        alignment,
    })
}

/// Looks for the Baton note in a segment of notes. All are padded to 4 bytes; those few of GNU's
/// that are padded to 8 come out the same, their contents being multiples of 8 bytes.
fn find_note(bytes: &[u8], found: &mut Option<BatonNote>) -> Result<(), ImageError> {
    for note in NoteIterator::new(LittleEndian, Class::ELF64, 4, bytes) {
        let Note::Unknown(note) = note else {
            continue;
        };
        if note.name != BatonNote::NAME || note.n_type != u64::from(BatonNote::TYPE) {
            continue;
        }
        let note =
            BatonNote::from_descriptor(note.desc).ok_or(ImageError::NoteLength(note.desc.len()))?;
        if found.replace(note).is_some() {
            return Err(ImageError::NoteTwice);
        }
    }
    Ok(())
}

/// Looks through a dynamic section: pairs of a tag and a value, ended by DT_NULL.
fn refuse_relocations(bytes: &[u8]) -> Result<(), ImageError> {
    // DT_RELR and DT_RELRSZ, which came later than the rest.
    const RELRSZ: i64 = 35;
    const RELR: i64 = 36;
    let (pairs, _) = bytes.as_chunks::<16>();
    for pair in pairs {
        let (tag, _) = pair.split_at(8);
        match tag.try_into().map(i64::from_le_bytes) {
            Ok(abi::DT_NULL) => return Ok(()),
            Ok(abi::DT_NEEDED) => return Err(ImageError::Interpreter),
            Ok(abi::DT_REL | abi::DT_RELA | abi::DT_JMPREL | RELR | RELRSZ) => {
                return Err(ImageError::Relocations);
            }
            _ => {}
        }
    }
    Ok(())
}
