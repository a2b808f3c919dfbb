//! The kernel: an ELF file with a Multiboot2 header (Multiboot2 Specification 2.0, section 3.1).

use core::fmt;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;

use crate::memory::{NoMemory, Pages};
use uefi::boot::PAGE_SIZE;

/// The header lies in so many bytes at the beginning of the file, at a multiple of 8.
const SEARCHED: usize = 32 << 10;
const MAGIC: u32 = 0xe852_50d6;
/// Tags: the end, and the entry's physical address.
const END: u16 = 0;
const ENTRY: u16 = 3;
/// The bit of a tag that a loader may ignore.
const OPTIONAL: u16 = 1;

/// Why a file is no kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ImageError {
    /// It is no ELF file for this machine.
    NotElf,
    /// It has no Multiboot2 header for i386 with a right checksum.
    NoHeader,
    /// Its header asks for something that this loader does not do.
    Tag(u16),
    /// Its header does not say where it is entered.
    NoEntry,
    /// A segment reaches past the file, or past 4 GiB.
    Segment {
        /// Its physical address.
        at: u64,
    },
    /// There is no segment to load, or they lie too far apart.
    Segments,
    /// Its memory is in use.
    Memory(NoMemory),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("the kernel is no ELF file for x86-64"),
            Self::NoHeader => f.write_str("the kernel has no Multiboot2 header"),
            Self::Tag(kind) => write!(f, "the kernel's header needs tag {kind}"),
            Self::NoEntry => f.write_str("the kernel's header does not say where it is entered"),
            Self::Segment { at } => write!(
                f,
                "the kernel's segment at {at:#x} reaches past the file or 4 GiB"
            ),
            Self::Segments => f.write_str("the kernel's segments do not make one image"),
            Self::Memory(error) => fmt::Display::fmt(error, f),
        }
    }
}

/// A kernel that can be loaded.
pub(crate) struct Image<'a> {
    file: ElfBytes<'a, LittleEndian>,
    /// Where it is entered: a physical address.
    pub(crate) entry: u32,
}

impl<'a> Image<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let file = ElfBytes::minimal_parse(bytes).map_err(|_| ImageError::NotElf)?;
        if file.ehdr.e_machine != EM_X86_64 {
            return Err(ImageError::NotElf);
        }
        let header = header(bytes).ok_or(ImageError::NoHeader)?;
        Ok(Self {
            file,
            entry: entry(header)?,
        })
    }

    /// Puts it where it was linked to run.
    pub(crate) fn load(&self) -> Result<(), ImageError> {
        let segments = || {
            let all = self.file.segments().into_iter().flatten();
            all.filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz != 0)
        };
        let mut bounds: Option<(u64, u64)> = None;
        for segment in segments() {
            let wrong = ImageError::Segment {
                at: segment.p_paddr,
            };
            let end = segment.p_paddr.checked_add(segment.p_memsz).ok_or(wrong)?;
            if end > 1 << 32 || segment.p_filesz > segment.p_memsz {
                return Err(wrong);
            }
            let (low, high) = bounds.unwrap_or((segment.p_paddr, end));
            bounds = Some((low.min(segment.p_paddr), high.max(end)));
        }
        let (low, high) = bounds.ok_or(ImageError::Segments)?;
        let low = low - low % PAGE_SIZE as u64;
        let length = usize::try_from(high - low).map_err(|_| ImageError::Segments)?;
        let mut pages = Pages::at(low, length).map_err(ImageError::Memory)?;
        for segment in segments() {
            let wrong = ImageError::Segment {
                at: segment.p_paddr,
            };
            let data = self.file.segment_data(&segment).map_err(|_| wrong)?;
            // Both lie within the bounds found above.
            let offset = (segment.p_paddr - low) as usize;
            pages.bytes()[offset..offset + data.len()].copy_from_slice(data);
        }
        Ok(())
    }
}

/// The tags of the header.
fn header(bytes: &[u8]) -> Option<&[u8]> {
    let searched = &bytes[..bytes.len().min(SEARCHED)];
    (0..searched.len()).step_by(8).find_map(|at| {
        let found = &searched[at..];
        let word = |index: usize| {
            let bytes = found.get(index * 4..index * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (magic, architecture, length, checksum) = (word(0)?, word(1)?, word(2)?, word(3)?);
        let sum = magic
            .wrapping_add(architecture)
            .wrapping_add(length)
            .wrapping_add(checksum);
        let fits = magic == MAGIC && architecture == 0 && sum == 0;
        fits.then(|| found.get(16..usize::try_from(length).ok()?))?
    })
}

/// Where the tags say that the kernel is entered.
fn entry(mut tags: &[u8]) -> Result<u32, ImageError> {
    let mut entry = None;
    while let Some((head, _)) = tags.split_first_chunk::<8>() {
        let kind = u16::from_le_bytes([head[0], head[1]]);
        let flags = u16::from_le_bytes([head[2], head[3]]);
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let tag = tags.get(..size).ok_or(ImageError::NoHeader)?;
        match kind {
            END => break,
            ENTRY => {
                let address = tag.get(8..12).and_then(|bytes| bytes.try_into().ok());
                entry = address.map(u32::from_le_bytes);
            }
            _ if flags & OPTIONAL != 0 => {}
            other => return Err(ImageError::Tag(other)),
        }
        // Tags are never empty, and begin at multiples of 8.
        tags = tags.get(size.max(8).next_multiple_of(8)..).unwrap_or(&[]);
    }
    entry.ok_or(ImageError::NoEntry)
}
