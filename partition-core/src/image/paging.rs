//! The page tables that a kernel is entered with.
//!
//! 4-level paging (Intel SDM volume 3, section 4.5), or 5-level paging for memory at its own
//! addresses: the image's segments at their virtual addresses, and physical memory at its own. Pages that are not executable have XD set,
//! so IA32_EFER.NXE must be set before the tables are loaded. Memory types are those of the page
//! attribute table's state at power-on (section 11.12.4). No entry is global or for user mode.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};

use super::{Access, Layout, is_canonical};

/// The memory that tables are made in: what the builder needs of an embedder.
pub trait TableFrames {
    /// A frame of 4 KiB that belongs to the new kernel and holds only zeros; `None` where there is
    /// none left.
    fn allocate(&mut self) -> Option<PhysAddr>;
    /// Reads the 8 bytes at `at`, in a frame that [`allocate`](Self::allocate) returned.
    fn load(&self, at: PhysAddr) -> u64;
    /// Writes the 8 bytes at `at`, in a frame that [`allocate`](Self::allocate) returned.
    fn store(&mut self, at: PhysAddr, value: u64);
}

/// Whether memory is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Caching {
    /// Write-back: RAM.
    WriteBack,
    /// Strong uncacheable: registers.
    Uncached,
}

/// Physical memory that appears at its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Identity {
    /// The memory, whole pages of 4 KiB.
    pub range: PhysRange,
    /// What may be done with it.
    pub access: Access,
    /// Whether it is cached.
    pub caching: Caching,
}

/// How many levels tables have, which is what the processor is in: CR4.LA57.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Levels {
    /// 4-level paging.
    #[default]
    Four,
    /// 5-level paging.
    Five,
}

/// The finished tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EntryTables {
    /// The PML4 table, or the PML5 table: what goes into CR3.
    pub root: PhysAddr,
    /// How many frames the tables took.
    pub frames: u64,
}

/// Why there are no tables. Frames that were taken are not given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PagingError {
    /// There are no frames left.
    OutOfFrames {
        /// How many there were.
        had: u64,
    },
    /// What was allocated is no frame: not a page of 4 KiB, above 52 bits, page 0, or the frame that
    /// was allocated first.
    Frame(PhysAddr),
    /// The range is not whole pages of 4 KiB, or not in the lower half of the address space.
    Range(PhysRange),
    /// The address is to lead to two places, or to one place cached and uncached.
    Conflict {
        /// The virtual address.
        address: u64,
    },
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames { had } => write!(f, "page tables need more than {had} frames"),
            Self::Frame(frame) => write!(f, "no page table can be at {frame}"),
            Self::Range(range) => write!(f, "{range} cannot be mapped to itself"),
            Self::Conflict { address } => {
                write!(f, "virtual address {address:#x} is to be two things")
            }
        }
    }
}

impl core::error::Error for PagingError {}

/// Makes tables for a placed image and for memory that is to appear at its own addresses. Pages of
/// 2 MiB are used where virtual and physical address allow.
///
/// Where ranges of `identity` overlap, the first one decides on access. Where such memory is the
/// image's, at the same address, the image's access holds.
///
/// # Errors
/// Where frames run out, or an address would have to be two things.
pub fn build<M: TableFrames>(
    memory: &mut M,
    layout: &Layout<'_>,
    identity: &[Identity],
) -> Result<EntryTables, PagingError> {
    let mut builder = Builder::new(memory)?;
    for segment in layout.segments() {
        builder.map(
            segment.address,
            segment.pages,
            leaf(segment.access, Caching::WriteBack),
        )?;
    }
    for entry in identity {
        builder.map_identity(entry)?;
    }
    Ok(builder.finish())
}

/// Makes tables for memory that is to appear at its own addresses and for nothing else, as a kernel
/// is entered with that places itself.
///
/// Where ranges overlap, the first one decides on access. All are in the lower half of the address
/// space that 4-level paging has.
///
/// # Errors
/// Where frames run out, or an address would have to be two things.
pub fn identity<M: TableFrames>(
    memory: &mut M,
    levels: Levels,
    ranges: impl IntoIterator<Item = Identity>,
) -> Result<EntryTables, PagingError> {
    let mut builder = Builder::new(memory)?;
    if levels == Levels::Five {
        // The lower half of 4-level paging's addresses is below one entry, the first.
        let lower = builder.table()?;
        builder.top = builder.root;
        builder
            .memory
            .store(builder.root, lower.0 | PRESENT | WRITABLE);
        builder.root = lower;
    }
    for entry in ranges {
        builder.map_identity(&entry)?;
    }
    Ok(builder.finish())
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const PAGE_SIZE: u64 = 1 << 7;
const EXECUTE_DISABLE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const LARGE_PAGE: u64 = 2 << 20;
const LOWER_HALF: u64 = 1 << 47;

const fn leaf(access: Access, caching: Caching) -> u64 {
    let write = if access.write { WRITABLE } else { 0 };
    let execute = if access.execute { 0 } else { EXECUTE_DISABLE };
    // Entry 3 of the page attribute table.
    let caching = match caching {
        Caching::WriteBack => 0,
        Caching::Uncached => CACHE_DISABLE | WRITE_THROUGH,
    };
    PRESENT | write | execute | caching
}

struct Builder<'m, M> {
    memory: &'m mut M,
    /// What CR3 is to point at; the PML4 table unless there are five levels.
    top: PhysAddr,
    /// The PML4 table.
    root: PhysAddr,
    frames: u64,
}

impl<'m, M: TableFrames> Builder<'m, M> {
    fn new(memory: &'m mut M) -> Result<Self, PagingError> {
        let mut builder = Self {
            memory,
            top: PhysAddr(0),
            root: PhysAddr(0),
            frames: 0,
        };
        builder.root = builder.table()?;
        builder.top = builder.root;
        Ok(builder)
    }

    const fn finish(&self) -> EntryTables {
        EntryTables {
            root: self.top,
            frames: self.frames,
        }
    }

    fn map_identity(&mut self, entry: &Identity) -> Result<(), PagingError> {
        let range = entry.range;
        if !range.is_aligned_to(FRAME_SIZE) || range.end().0 > LOWER_HALF {
            return Err(PagingError::Range(range));
        }
        self.map(range.base().0, range, leaf(entry.access, entry.caching))
    }

    fn table(&mut self) -> Result<PhysAddr, PagingError> {
        let frame = self
            .memory
            .allocate()
            .ok_or(PagingError::OutOfFrames { had: self.frames })?;
        // A zero in an entry's address field would be no table, and the root is known already.
        if frame.0 & !ADDRESS != 0 || frame.0 == 0 || frame == self.root || frame == self.top {
            return Err(PagingError::Frame(frame));
        }
        self.frames = self.frames.saturating_add(1);
        Ok(frame)
    }

    /// Maps whole pages from `address` on to `range`.
    fn map(&mut self, address: u64, range: PhysRange, leaf: u64) -> Result<(), PagingError> {
        if range.end().0 & !ADDRESS != 0 || !range.is_aligned_to(FRAME_SIZE) {
            return Err(PagingError::Range(range));
        }
        let mut offset = 0;
        while offset < range.length() {
            let at = address.wrapping_add(offset);
            if !is_canonical(at) {
                return Err(PagingError::Range(range));
            }
            let physical = range.base().0.saturating_add(offset);
            let left = range.length().saturating_sub(offset);
            let large = (at | physical).is_multiple_of(LARGE_PAGE) && left >= LARGE_PAGE;
            let size = if large && self.map_large(at, physical, leaf)? {
                LARGE_PAGE
            } else {
                self.map_small(at, physical, leaf)?;
                FRAME_SIZE
            };
            offset = offset.saturating_add(size);
        }
        Ok(())
    }

    /// Maps 2 MiB; `false` where a table is in the way that holds smaller pages.
    fn map_large(&mut self, at: u64, physical: u64, leaf: u64) -> Result<bool, PagingError> {
        let entry = self.directory_entry(at)?;
        let old = self.memory.load(entry);
        if old & PRESENT == 0 {
            self.memory.store(entry, physical | leaf | PAGE_SIZE);
            return Ok(true);
        }
        if old & PAGE_SIZE == 0 {
            return Ok(false);
        }
        agree(old, physical | leaf, at).map(|()| true)
    }

    /// Maps 4 KiB.
    fn map_small(&mut self, at: u64, physical: u64, leaf: u64) -> Result<(), PagingError> {
        let entry = self.directory_entry(at)?;
        let directory = self.memory.load(entry);
        if directory & PRESENT != 0 && directory & PAGE_SIZE != 0 {
            let inside = at % LARGE_PAGE;
            return agree(directory.wrapping_add(inside), physical | leaf, at);
        }
        let entry = self.next(entry, at, 12)?;
        let old = self.memory.load(entry);
        if old & PRESENT == 0 {
            self.memory.store(entry, physical | leaf);
            return Ok(());
        }
        agree(old, physical | leaf, at)
    }

    /// The page directory entry for an address.
    fn directory_entry(&mut self, at: u64) -> Result<PhysAddr, PagingError> {
        let root = slot(self.root, at, 39);
        let pointer = self.next(root, at, 30)?;
        self.next(pointer, at, 21)
    }

    /// The entry for `at` in the table that `entry` leads to; makes the table where there is none.
    fn next(&mut self, entry: PhysAddr, at: u64, shift: u32) -> Result<PhysAddr, PagingError> {
        let old = self.memory.load(entry);
        let table = if old & PRESENT == 0 {
            let table = self.table()?;
            // Access is decided by the entries of pages alone.
            self.memory.store(entry, table.0 | PRESENT | WRITABLE);
            table
        } else {
            PhysAddr(old & ADDRESS)
        };
        Ok(slot(table, at, shift))
    }
}

/// The entry for an address in a table whose index begins at bit `shift`. Tables are whole frames,
/// so the index goes into the lower 12 bits.
const fn slot(table: PhysAddr, at: u64, shift: u32) -> PhysAddr {
    PhysAddr(table.0 | ((at >> shift) & 0x1ff) << 3)
}

/// Whether an address may keep the entry it has where it was to have another.
const fn agree(old: u64, new: u64, address: u64) -> Result<(), PagingError> {
    const SAME: u64 = ADDRESS | CACHE_DISABLE | WRITE_THROUGH;
    if (old ^ new) & SAME == 0 {
        Ok(())
    } else {
        Err(PagingError::Conflict { address })
    }
}
