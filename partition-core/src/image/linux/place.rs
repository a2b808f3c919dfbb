//! Where a kernel and what it is told go.

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};
use heapless::Vec;

use super::{BzImage, LinuxPlaceError, Piece, check_initrd};
use crate::cpu::StartState;
use crate::image::paging::{EntryTables, Identity, Levels, PagingError, TableFrames, identity};
use crate::image::{Access, paging::Caching};

/// The entries that a zero page has room for (`E820_MAX_ENTRIES_ZEROPAGE`).
pub(super) const ZERO_PAGE_ENTRIES: usize = 128;
/// Bytes of an entry.
pub(super) const E820_SIZE: u64 = 20;
/// Bytes before the data of an item of `setup_data`.
pub(super) const SETUP_DATA_HEADER: u64 = 16;
/// The kind of the item that holds further entries of the memory map.
pub(super) const SETUP_E820_EXT: u32 = 1;
const SETUP_INDIRECT: u32 = 1 << 31;

const MIB: u64 = 1 << 20;
const NO_LIMIT: u64 = 1 << 52;
const BELOW_4G: u64 = 1 << 32;

/// A range of the memory map that a kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct E820Entry {
    /// Where.
    pub range: PhysRange,
    /// Its type number (ACPI 6.5, table 15.5).
    pub kind: u32,
}

impl E820Entry {
    /// The type number of RAM.
    pub const RAM: u32 = 1;
}

/// An item of the list `setup_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupDataItem<'a> {
    /// Its kind, such as [`RNG_SEED`](Self::RNG_SEED).
    pub kind: u32,
    /// What it says.
    pub data: &'a [u8],
}

impl SetupDataItem<'_> {
    /// Bytes for the random number generator: a kernel that chooses its own addresses has no other
    /// source so early, on processors without RDRAND.
    pub const RNG_SEED: u32 = 9;
}

/// What a kernel is to be started with.
#[derive(Clone, Copy, Debug)]
pub struct LinuxRequest<'a> {
    /// Its memory map, in ascending order and without overlaps. What is RAM in it is the kernel's
    /// alone: everything is placed there, and Linux uses all of it.
    pub memory_map: &'a [E820Entry],
    /// Parts of that RAM that hold what is needed until the kernel runs, or longer: nothing is placed
    /// there.
    pub taken: &'a [PhysRange],
    /// The command line, without a zero at its end.
    pub command_line: &'a [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Where the RSDP of its tables is. Without one, Linux would look for firmware's.
    pub rsdp: PhysAddr,
    /// What else it is told. Further entries of the memory map are not the caller's to add.
    pub setup_data: &'a [SetupDataItem<'a>],
    /// The paging mode that the processor will be in, which is not always the caller's choice: it
    /// cannot be changed in 64-bit mode.
    pub levels: Levels,
}

/// A kernel with its place in memory.
#[derive(Clone, Copy, Debug)]
pub struct LinuxLayout<'a> {
    pub(super) image: &'a BzImage<'a>,
    pub(super) request: LinuxRequest<'a>,
    kernel: PhysRange,
    parameters: PhysRange,
    initrd: PhysRange,
    /// Where `setup_data` begins in the parameters.
    pub(super) setup_data: u64,
}

impl<'a> BzImage<'a> {
    /// What the RAM below 1 MiB must have in one piece, between 64 KiB, up to where Linux leaves
    /// memory to firmware, and 9F000h, where it takes firmware's data area to begin: its real-mode
    /// code with room to grow, and two pages to change the paging mode from.
    pub const LOW_MEMORY: u64 = 0x1_0000;
    const LOW_BOUNDS: (u64, u64) = (0x1_0000, 0x9_f000);

    /// Finds room for everything, at or above 1 MiB: the kernel at its preferred address where that
    /// is free, else as low as its alignment allows.
    ///
    /// # Errors
    /// Where the kernel would not start, and why.
    pub fn place(&'a self, request: &LinuxRequest<'a>) -> Result<LinuxLayout<'a>, LinuxPlaceError> {
        check_map(request.memory_map)?;
        self.check_told(request)?;
        let mut room = Room {
            map: request.memory_map,
            taken: request.taken,
            own: Vec::new(),
        };
        let (low, high) = Self::LOW_BOUNDS;
        let have = room.largest(low, high);
        if have < Self::LOW_MEMORY {
            let need = Self::LOW_MEMORY;
            return Err(LinuxPlaceError::NoLowMemory { need, have });
        }
        let limit = if self.can_be_above_4g() {
            NO_LIMIT
        } else {
            BELOW_4G
        };
        let kernel = self.place_kernel(&mut room, limit)?;
        let initrd = match request.initrd {
            Some(bytes) => self.place_initrd(&mut room, bytes, limit)?,
            None => PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)),
        };
        let setup_data = parameters::COMMAND_LINE
            .saturating_add(request.command_line.len() as u64)
            .saturating_add(1)
            .next_multiple_of(8);
        let need = setup_data
            .saturating_add(
                setup_data_length(request).ok_or(LinuxPlaceError::SetupData {
                    item: request.setup_data.len(),
                })?,
            )
            .next_multiple_of(FRAME_SIZE);
        let parameters = room.take(Piece::Parameters, need, FRAME_SIZE, limit)?;
        Ok(LinuxLayout {
            image: self,
            request: *request,
            kernel,
            parameters,
            initrd,
            setup_data,
        })
    }

    fn check_told(&self, request: &LinuxRequest<'_>) -> Result<(), LinuxPlaceError> {
        // 5.5 was the first with this version; 5.0 the first that looks at the field.
        const TAKES_RSDP: u16 = 0x020f;
        if request.rsdp.0 == 0 {
            return Err(LinuxPlaceError::Rsdp);
        }
        if self.version() < TAKES_RSDP {
            return Err(LinuxPlaceError::RsdpIgnored(self.version()));
        }
        if request.levels == Levels::Five && !self.takes_5_level_paging() {
            return Err(LinuxPlaceError::FiveLevelPaging);
        }
        let have = request.command_line.len() as u64;
        let limit = self.command_line_limit();
        if have > limit {
            return Err(LinuxPlaceError::CommandLineLength { have, limit });
        }
        if let Some(offset) = request.command_line.iter().position(|&byte| byte == 0) {
            return Err(LinuxPlaceError::CommandLineZero { offset });
        }
        for (item, of) in request.setup_data.iter().enumerate() {
            let own = matches!(of.kind, 0 | SETUP_E820_EXT) || of.kind & SETUP_INDIRECT != 0;
            if own || u32::try_from(of.data.len()).is_err() {
                return Err(LinuxPlaceError::SetupData { item });
            }
        }
        Ok(())
    }

    fn place_kernel(&self, room: &mut Room<'_>, limit: u64) -> Result<PhysRange, LinuxPlaceError> {
        let preferred = PhysRange::new(PhysAddr(self.preferred_address()), self.init_size())
            .map_err(|_| LinuxPlaceError::MemoryMap { entry: 0 })?;
        if preferred.base().0 >= MIB && preferred.end().0 <= limit && room.is_free(preferred) {
            room.keep(preferred);
            return Ok(preferred);
        }
        if !self.is_relocatable() {
            return Err(LinuxPlaceError::NotRelocatable(preferred));
        }
        room.take(Piece::Kernel, self.init_size(), self.alignment(), limit)
    }

    fn place_initrd(
        &self,
        room: &mut Room<'_>,
        bytes: &[u8],
        limit: u64,
    ) -> Result<PhysRange, LinuxPlaceError> {
        check_initrd(bytes)?;
        let length = bytes.len() as u64;
        // A multiple of the page keeps what Linux frees later apart from all else.
        let need = length
            .checked_next_multiple_of(FRAME_SIZE)
            .ok_or(LinuxPlaceError::InitrdLength(bytes.len()))?;
        let below = self.initrd_limit();
        let placed = match room.take(Piece::Initrd, need, FRAME_SIZE, below) {
            Err(_) if self.can_be_above_4g() => {
                room.take(Piece::Initrd, need, FRAME_SIZE, limit)?
            }
            other => other?,
        };
        PhysRange::new(placed.base(), length)
            .map_err(|_| LinuxPlaceError::InitrdLength(bytes.len()))
    }
}

/// Where things are among the parameters.
pub(super) mod parameters {
    use handoff_abi::FRAME_SIZE;

    /// The page that a processor comes to first.
    pub(in super::super) const ENTRY: u64 = 0;
    pub(in super::super) const ZERO_PAGE: u64 = FRAME_SIZE;
    pub(in super::super) const COMMAND_LINE: u64 = 2 * FRAME_SIZE;
}

impl LinuxLayout<'_> {
    /// The memory that the kernel needs before it has read its memory map, from where it is loaded.
    #[must_use]
    pub const fn kernel(&self) -> PhysRange {
        self.kernel
    }

    /// What the kernel is told, and the page that its processor comes to first.
    #[must_use]
    pub const fn parameters(&self) -> PhysRange {
        self.parameters
    }

    /// The initial RAM disk; empty where there is none.
    #[must_use]
    pub const fn initrd(&self) -> PhysRange {
        self.initrd
    }

    pub(super) fn parameter(&self, offset: u64) -> PhysAddr {
        PhysAddr(self.parameters.base().0.saturating_add(offset))
    }

    /// Where the zero page is, `struct boot_params`.
    #[must_use]
    pub fn zero_page(&self) -> PhysAddr {
        self.parameter(parameters::ZERO_PAGE)
    }

    /// The 64-bit entry.
    #[must_use]
    pub const fn entry(&self) -> PhysAddr {
        PhysAddr(self.kernel.base().0.saturating_add(BzImage::ENTRY))
    }

    /// The state that its first processor is started in, with the tables that [`tables`](Self::tables)
    /// made.
    #[must_use]
    pub fn start_state(&self, tables: &EntryTables) -> StartState {
        let page = self.parameter(parameters::ENTRY).0;
        StartState {
            page_table: tables.root.0,
            entry: page,
            stack: page.saturating_add(super::entry::STACK),
            argument: page,
        }
    }

    /// Makes the tables that the kernel is entered with: everything that was placed, and the RAM below
    /// 1 MiB, from where Linux changes the paging mode, at their own addresses; and `others`, which
    /// are for the way in. Page 0 is mapped too, to be read: Linux looks up there how much memory
    /// firmware left below 1 MiB.
    ///
    /// # Errors
    /// See [`PagingError`].
    pub fn tables<M: TableFrames>(
        &self,
        frames: &mut M,
        others: &[Identity],
    ) -> Result<EntryTables, PagingError> {
        let all = |range| Identity {
            range,
            access: Access {
                write: true,
                execute: true,
            },
            caching: Caching::WriteBack,
        };
        let firmware = Identity {
            access: Access {
                write: false,
                execute: false,
            },
            ..all(PhysRange::from_bounds(PhysAddr(0), PhysAddr(FRAME_SIZE)))
        };
        let low = self
            .request
            .memory_map
            .iter()
            .filter(|entry| entry.kind == E820Entry::RAM && entry.range.base().0 < MIB)
            .map(|entry| {
                let end = entry.range.end().0.min(MIB);
                PhysRange::from_bounds(
                    PhysAddr(entry.range.base().0.next_multiple_of(FRAME_SIZE)),
                    PhysAddr(crate::image::page_of(end)),
                )
            })
            .filter(|range| !range.is_empty())
            .map(all);
        let pages = |range: PhysRange| {
            let end = range.end().0.next_multiple_of(FRAME_SIZE);
            PhysRange::from_bounds(
                PhysAddr(crate::image::page_of(range.base().0)),
                PhysAddr(end),
            )
        };
        let placed = [self.kernel, self.parameters, self.initrd]
            .into_iter()
            .map(pages)
            .map(all);
        let ranges = placed
            .chain(others.iter().copied())
            .chain(low)
            .chain([firmware]);
        identity(frames, self.request.levels, ranges)
    }
}

/// How many bytes the list `setup_data` takes.
fn setup_data_length(request: &LinuxRequest<'_>) -> Option<u64> {
    let further = request.memory_map.len().saturating_sub(ZERO_PAGE_ENTRIES) as u64;
    let extended = match further {
        0 => 0,
        count => item_length(count.checked_mul(E820_SIZE)?)?,
    };
    request.setup_data.iter().try_fold(extended, |sum, item| {
        sum.checked_add(item_length(item.data.len() as u64)?)
    })
}

/// What an item of `setup_data` takes: the next one begins at a multiple of 8.
pub(super) fn item_length(data: u64) -> Option<u64> {
    data.checked_add(SETUP_DATA_HEADER)?
        .checked_next_multiple_of(8)
}

fn check_map(map: &[E820Entry]) -> Result<(), LinuxPlaceError> {
    // The further entries' length is a number of 32 bits.
    const MOST: usize = (u32::MAX / E820_SIZE as u32) as usize;
    let mut end = 0;
    for (entry, at) in map.iter().enumerate() {
        if at.range.is_empty()
            || at.range.base().0 < end
            || at.range.end().0 > NO_LIMIT
            || entry > MOST
        {
            return Err(LinuxPlaceError::MemoryMap { entry });
        }
        end = at.range.end().0;
    }
    Ok(())
}

/// The RAM of a memory map, less what is taken.
struct Room<'a> {
    map: &'a [E820Entry],
    taken: &'a [PhysRange],
    own: Vec<PhysRange, 3>,
}

impl Room<'_> {
    fn taken(&self) -> impl Iterator<Item = PhysRange> {
        let filled = |range: &PhysRange| !range.is_empty();
        self.taken.iter().chain(&self.own).copied().filter(filled)
    }

    /// The free pieces between two addresses: each begins where RAM or what is taken ends.
    fn pieces(&self, low: u64, high: u64) -> impl Iterator<Item = PhysRange> {
        let ram = |entry: &&E820Entry| entry.kind == E820Entry::RAM;
        self.map.iter().filter(ram).flat_map(move |entry| {
            let start = entry.range.base().0.max(low);
            let end = entry.range.end().0.min(high);
            let inside = move |at: &u64| (start..end).contains(at);
            let starts = self
                .taken()
                .map(|taken| taken.end().0)
                .chain(Some(start))
                .filter(inside);
            starts
                .filter(|&at| !self.taken().any(|taken| taken.contains(PhysAddr(at))))
                .map(move |at| {
                    let next = self
                        .taken()
                        .map(|taken| taken.base().0)
                        .filter(|&base| base >= at)
                        .fold(end, u64::min);
                    PhysRange::from_bounds(PhysAddr(at), PhysAddr(next))
                })
        })
    }

    fn is_free(&self, range: PhysRange) -> bool {
        self.pieces(range.base().0, range.end().0)
            .any(|piece| piece == range)
    }

    fn largest(&self, low: u64, high: u64) -> u64 {
        let lengths = self.pieces(low, high).map(|piece| piece.length());
        lengths.max().unwrap_or(0)
    }

    fn keep(&mut self, range: PhysRange) {
        // One for each kind of piece.
        let _ = self.own.push(range);
    }

    /// The lowest place at or above 1 MiB.
    fn take(
        &mut self,
        piece: Piece,
        need: u64,
        alignment: u64,
        limit: u64,
    ) -> Result<PhysRange, LinuxPlaceError> {
        let limit = limit.min(NO_LIMIT);
        let fits = |free: PhysRange| {
            let base = free.base().0.checked_next_multiple_of(alignment)?;
            let range = PhysRange::new(PhysAddr(base), need).ok()?;
            free.contains_range(range).then_some(range)
        };
        let lowest = self
            .pieces(MIB, limit)
            .filter_map(fits)
            .min_by_key(|range| range.base().0);
        let range = lowest.ok_or_else(|| LinuxPlaceError::NoRoom {
            piece,
            need,
            alignment,
            have: self.largest(MIB, limit),
            limit,
        })?;
        self.keep(range);
        Ok(range)
    }
}
