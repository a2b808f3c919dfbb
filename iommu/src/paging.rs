//! Building and taking apart the tables of a domain. Both vendors have tables of 512 entries of 64
//! bits, 9 address bits a level; what the bits of an entry are is the vendor's affair
//! ([`PagingEntry`]).

use core::fmt;
use core::marker::PhantomData;

use handoff_abi::{DomainId, PhysAddr, PhysRange};

use crate::arena::Arena;
use crate::retired::RetiredTables;
use crate::tables::{Tables, offset};
use crate::{Access, TableMemory};

/// The size of what a leaf maps; the number is the level of the table the leaf lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum LeafSize {
    /// 4 KiB.
    Size4K = 1,
    /// 2 MiB.
    Size2M = 2,
    /// 1 GiB.
    Size1G = 3,
}

impl LeafSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        0x1000 << (9 * (self as u32 - 1))
    }

    /// The size of a leaf in a table of this level; `None` where no leaf can be.
    #[must_use]
    pub const fn at_level(level: u32) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }
}

/// The shift of the index into a table of this level.
pub(crate) const fn index_shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

/// An entry of a table, as one vendor has it.
///
/// All zero is an entry that is not present, and so is every multiple of 4 KiB below 2^52: an
/// unlinked table keeps such numbers where a unit may still look.
pub trait PagingEntry: Copy + Eq {
    /// The entry with these bits.
    fn from_bits(bits: u64) -> Self;
    /// Its bits.
    fn bits(self) -> u64;
    /// The entry, in a table of `level`, that leads to the next table at `table` and grants
    /// everything: rights are the intersection of all levels.
    fn table(table: PhysAddr, level: u32) -> Self;
    /// The leaf that maps `size` bytes of memory at `to`.
    fn leaf(to: PhysAddr, size: LeafSize, access: Access) -> Self;
    /// Whether it is present.
    fn is_present(self) -> bool;
    /// Whether an entry in a table of `level` is a leaf.
    fn is_leaf(self, level: u32) -> bool;
    /// The next table, or the memory a leaf maps.
    fn address(self) -> PhysAddr;
    /// What a leaf allows.
    fn access(self) -> Access;
}

/// Why nothing was mapped. Every error leaves the tables as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MapError {
    /// The unit has no domain with this id.
    UnknownDomain(DomainId),
    /// An address or the length is not a multiple of 4 KiB, or the length is 0.
    Unaligned {
        /// The first device address.
        iova: u64,
        /// The memory.
        memory: PhysRange,
    },
    /// Neither reading nor writing was to be allowed.
    NoAccess,
    /// The device addresses end beyond what the domain's tables translate.
    AddressTooWide {
        /// The first device address.
        iova: u64,
        /// How many bytes.
        length: u64,
        /// The first address that is not translated.
        limit: u64,
    },
    /// The memory ends beyond the machine's physical addresses.
    MemoryTooHigh {
        /// The memory.
        memory: PhysRange,
        /// The first address the machine does not have.
        limit: u64,
    },
    /// Device addresses or memory touch [`INTERRUPT_RANGE`](crate::INTERRUPT_RANGE).
    InterruptRange {
        /// The first device address.
        iova: u64,
        /// The memory.
        memory: PhysRange,
    },
    /// Device addresses or memory touch a range that the architecture uses for something else than
    /// memory.
    SpecialRange {
        /// The first device address.
        iova: u64,
        /// The memory.
        memory: PhysRange,
        /// The range.
        special: PhysRange,
    },
    /// The memory is part of the unit's own arena.
    OwnTables {
        /// The memory.
        memory: PhysRange,
    },
    /// A device address is mapped already.
    Overlap {
        /// The address.
        iova: u64,
    },
    /// The arena has too few free frames.
    ArenaFull {
        /// How many more tables are needed.
        needed: usize,
        /// How many frames are free.
        free: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDomain(domain) => write!(f, "no domain {domain}"),
            Self::Unaligned { iova, memory } => {
                write!(f, "{memory} at {iova:#x} is not a run of 4 KiB pages")
            }
            Self::NoAccess => f.write_str("a mapping must allow an access"),
            Self::AddressTooWide {
                iova,
                length,
                limit,
            } => write!(
                f,
                "{length:#x} bytes at {iova:#x} end beyond the domain's {limit:#x}"
            ),
            Self::MemoryTooHigh { memory, limit } => {
                write!(f, "{memory} ends beyond the machine's {limit:#x}")
            }
            Self::InterruptRange { iova, memory } => {
                write!(f, "{memory} at {iova:#x} touches the interrupt range")
            }
            Self::SpecialRange {
                iova,
                memory,
                special,
            } => write!(
                f,
                "{memory} at {iova:#x} touches {special}, which is no memory"
            ),
            Self::OwnTables { memory } => write!(f, "{memory} holds the unit's own tables"),
            Self::Overlap { iova } => write!(f, "{iova:#x} is mapped already"),
            Self::ArenaFull { needed, free } => {
                write!(f, "{needed} tables needed, {free} frames free")
            }
        }
    }
}

impl core::error::Error for MapError {}

/// Why nothing was unmapped. Every error leaves the tables as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum UnmapError {
    /// The unit has no domain with this id.
    UnknownDomain(DomainId),
    /// Address or length is not a multiple of 4 KiB, or the length is 0.
    Unaligned {
        /// The first device address.
        iova: u64,
        /// How many bytes.
        length: u64,
    },
    /// The device addresses end beyond what the domain's tables translate.
    AddressTooWide {
        /// The first device address.
        iova: u64,
        /// How many bytes.
        length: u64,
        /// The first address that is not translated.
        limit: u64,
    },
    /// An address in the range is not mapped.
    NotMapped {
        /// The address.
        iova: u64,
    },
    /// The range has a part of a larger leaf only. Leaves are not split.
    WouldSplit {
        /// Where the leaf begins.
        iova: u64,
        /// How many bytes it maps.
        size: u64,
    },
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDomain(domain) => write!(f, "no domain {domain}"),
            Self::Unaligned { iova, length } => {
                write!(
                    f,
                    "{length:#x} bytes at {iova:#x} are not a run of 4 KiB pages"
                )
            }
            Self::AddressTooWide {
                iova,
                length,
                limit,
            } => write!(
                f,
                "{length:#x} bytes at {iova:#x} end beyond the domain's {limit:#x}"
            ),
            Self::NotMapped { iova } => write!(f, "{iova:#x} is not mapped"),
            Self::WouldSplit { iova, size } => {
                write!(f, "would split the leaf of {size:#x} bytes at {iova:#x}")
            }
        }
    }
}

impl core::error::Error for UnmapError {}

/// One leaf of a domain's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Leaf {
    /// The first device address.
    pub iova: u64,
    /// The memory.
    pub memory: PhysRange,
    /// What the device may do there.
    pub access: Access,
}

/// Where a domain's tables begin and what may be in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub(crate) root: PhysAddr,
    pub(crate) levels: u32,
    pub(crate) largest: LeafSize,
}

/// A part of a mapping: some bytes of it, all below one entry's reach.
#[derive(Clone, Copy)]
struct Part {
    iova: u64,
    memory: u64,
    length: u64,
}

/// Calls `each` with every slot of a table of `level` that `whole` touches and the part of `whole`
/// that lies there.
fn for_slots<E>(
    level: u32,
    whole: Part,
    mut each: impl FnMut(u64, Part) -> Result<(), E>,
) -> Result<(), E> {
    let span = 1_u64 << index_shift(level);
    let mut done = 0;
    while done < whole.length {
        let iova = whole.iova + done;
        let length = (span - iova % span).min(whole.length - done);
        let part = Part {
            iova,
            memory: whole.memory.wrapping_add(done),
            length,
        };
        each(iova >> index_shift(level) & 0x1ff, part)?;
        done += length;
    }
    Ok(())
}

const fn slot_address(table: PhysAddr, slot: u64) -> PhysAddr {
    offset(table, slot * 8)
}

fn load<M: TableMemory, E: PagingEntry>(tables: &Tables<M>, table: PhysAddr, slot: u64) -> E {
    E::from_bits(tables.load(slot_address(table, slot)))
}

/// The leaf size if one leaf in a table of `level` maps all of `part`.
fn fits_leaf(level: u32, part: Part, largest: LeafSize) -> Option<LeafSize> {
    LeafSize::at_level(level).filter(|&size| {
        size <= largest && part.length == size.bytes() && part.memory.is_multiple_of(size.bytes())
    })
}

/// The tables of one domain.
pub(crate) struct Mapper<'a, M, E> {
    tables: &'a mut Tables<M>,
    arena: &'a mut Arena,
    shape: Shape,
    entries: PhantomData<E>,
}

impl<'a, M: TableMemory, E: PagingEntry> Mapper<'a, M, E> {
    pub(crate) const fn new(tables: &'a mut Tables<M>, arena: &'a mut Arena, shape: Shape) -> Self {
        Self {
            tables,
            arena,
            shape,
            entries: PhantomData,
        }
    }

    fn load(&self, table: PhysAddr, slot: u64) -> E {
        load(self.tables, table, slot)
    }

    /// Maps a range whose addresses were checked. The largest leaves are used that alignment, the
    /// unit and the tables that exist already allow: where a smaller page was mapped before, its
    /// table stays and is filled with small leaves.
    pub(crate) fn map(&mut self, leaf: Leaf) -> Result<(), MapError> {
        let whole = Part {
            iova: leaf.iova,
            memory: leaf.memory.base().0,
            length: leaf.memory.length(),
        };
        let needed = self.plan(Some(self.shape.root), self.shape.levels, whole)?;
        let full = MapError::ArenaFull {
            needed,
            free: self.arena.free_frames(),
        };
        if needed > self.arena.free_frames() {
            return Err(full);
        }
        // Frames are taken one by one and were counted, so this does not run short.
        self.fill(self.shape.root, self.shape.levels, whole, leaf.access)
            .ok_or(full)
    }

    /// How many tables a mapping adds.
    fn plan(&self, table: Option<PhysAddr>, level: u32, whole: Part) -> Result<usize, MapError> {
        let mut needed = 0;
        for_slots(level, whole, |slot, part| {
            let entry = table.map_or(E::from_bits(0), |table| self.load(table, slot));
            let fits = fits_leaf(level, part, self.shape.largest).is_some();
            let next = if !entry.is_present() {
                if fits {
                    return Ok(());
                }
                needed += 1;
                if level == 2 {
                    return Ok(());
                }
                None
            } else if entry.is_leaf(level) {
                return Err(MapError::Overlap { iova: part.iova });
            } else {
                Some(entry.address())
            };
            needed += self.plan(next, level - 1, part)?;
            Ok(())
        })?;
        Ok(needed)
    }

    /// Fills a table. A new table is filled before the entry that leads to it is stored, and every
    /// entry is one store, so the unit never sees a part of a mapping that is not whole below.
    fn fill(&mut self, table: PhysAddr, level: u32, whole: Part, access: Access) -> Option<()> {
        let mut first = None;
        let mut last = 0;
        for_slots(level, whole, |slot, part| {
            let entry = self.load(table, slot);
            let new = if entry.is_present() {
                self.fill(entry.address(), level - 1, part, access)
                    .ok_or(())?;
                return Ok(());
            } else if let Some(size) = fits_leaf(level, part, self.shape.largest) {
                E::leaf(PhysAddr(part.memory), size, access)
            } else {
                let next = self.tables.zeroed(self.arena).ok_or(())?;
                self.fill(next, level - 1, part, access).ok_or(())?;
                E::table(next, level)
            };
            self.tables.store(slot_address(table, slot), new.bits());
            first.get_or_insert(slot);
            last = slot;
            Ok::<(), ()>(())
        })
        .ok()?;
        if let Some(first) = first {
            self.tables
                .publish(slot_address(table, first), (last + 1 - first) * 8);
        }
        Some(())
    }

    /// Unmaps a range whose addresses were checked. Tables that become empty are unlinked and put
    /// on `retired` with `tag`, to be released when an invalidation proves them unused.
    pub(crate) fn unmap(
        &mut self,
        iova: u64,
        length: u64,
        retired: &mut RetiredTables,
        tag: u64,
    ) -> Result<(), UnmapError> {
        let whole = Part {
            iova,
            memory: 0,
            length,
        };
        self.check_mapped(self.shape.root, self.shape.levels, whole)?;
        self.clear(self.shape.root, self.shape.levels, whole, retired, tag);
        Ok(())
    }

    fn check_mapped(&self, table: PhysAddr, level: u32, whole: Part) -> Result<(), UnmapError> {
        for_slots(level, whole, |slot, part| {
            let entry = self.load(table, slot);
            if !entry.is_present() {
                return Err(UnmapError::NotMapped { iova: part.iova });
            }
            if !entry.is_leaf(level) {
                return self.check_mapped(entry.address(), level - 1, part);
            }
            let span = 1 << index_shift(level);
            if part.length != span {
                return Err(UnmapError::WouldSplit {
                    iova: part.iova - part.iova % span,
                    size: span,
                });
            }
            Ok(())
        })
    }

    fn clear(
        &mut self,
        table: PhysAddr,
        level: u32,
        whole: Part,
        retired: &mut RetiredTables,
        tag: u64,
    ) {
        let mut first = None;
        let mut last = 0;
        // Tables that became empty, to be retired after the entry that leads to them is gone.
        let _: Result<(), ()> = for_slots(level, whole, |slot, part| {
            let entry = self.load(table, slot);
            let mut empty = None;
            if !entry.is_leaf(level) {
                let next = entry.address();
                self.clear(next, level - 1, part, retired, tag);
                if (0..512).any(|slot| self.load(next, slot).is_present()) {
                    return Ok(());
                }
                empty = Some(next);
            }
            self.tables.store(slot_address(table, slot), 0);
            first.get_or_insert(slot);
            last = slot;
            if let Some(next) = empty {
                retired.push(self.tables, next, tag);
            }
            Ok(())
        });
        if let Some(first) = first {
            self.tables
                .publish(slot_address(table, first), (last + 1 - first) * 8);
        }
    }

    /// Gives every table of the domain back. Only for a domain that no device can use.
    pub(crate) fn release(&mut self) {
        self.release_below(self.shape.root, self.shape.levels);
    }

    fn release_below(&mut self, table: PhysAddr, level: u32) {
        if level > 1 {
            for slot in 0..512 {
                let entry = self.load(table, slot);
                if entry.is_present() && !entry.is_leaf(level) {
                    self.release_below(entry.address(), level - 1);
                }
            }
        }
        self.arena.give_back(table);
    }
}

/// The leaf that translates `iova`.
pub(crate) fn translate<M: TableMemory, E: PagingEntry>(
    tables: &Tables<M>,
    shape: Shape,
    iova: u64,
) -> Option<Leaf> {
    let mut table = shape.root;
    for level in (1..=shape.levels).rev() {
        let slot = iova >> index_shift(level) & 0x1ff;
        let entry: E = load(tables, table, slot);
        if !entry.is_present() {
            return None;
        }
        if entry.is_leaf(level) {
            let size = 1 << index_shift(level);
            return Some(Leaf {
                iova: iova - iova % size,
                memory: PhysRange::new(entry.address(), size).ok()?,
                access: entry.access(),
            });
        }
        table = entry.address();
    }
    None
}

/// Calls `each` for every leaf of tables that are known to be well formed; stops where it says
/// `false`, and says so.
pub(crate) fn for_leaves<M: TableMemory, E: PagingEntry>(
    tables: &Tables<M>,
    table: PhysAddr,
    level: u32,
    base: u64,
    each: &mut impl FnMut(Leaf) -> bool,
) -> bool {
    (0..512).all(|slot| {
        let entry: E = load(tables, table, slot);
        let iova = base | slot << index_shift(level);
        if !entry.is_present() {
            true
        } else if entry.is_leaf(level) {
            PhysRange::new(entry.address(), 1 << index_shift(level)).is_ok_and(|memory| {
                each(Leaf {
                    iova,
                    memory,
                    access: entry.access(),
                })
            })
        } else {
            for_leaves::<M, E>(tables, entry.address(), level - 1, iova, each)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::vec::Vec;

    use handoff_abi::FRAME_SIZE;
    use proptest::prelude::*;

    use super::*;
    use crate::amd::spec::PageEntry;
    use crate::vtd::spec::SecondStageEntry;

    /// Memory that is what was stored last, and counts what a unit that does not snoop has not
    /// been shown.
    #[derive(Default)]
    struct Words {
        words: BTreeMap<u64, u64>,
        hidden: BTreeSet<u64>,
    }

    impl TableMemory for Words {
        fn load(&self, at: PhysAddr) -> u64 {
            *self.words.get(&at.0).unwrap_or(&0xdead_beef_dead_beef)
        }

        fn store(&mut self, at: PhysAddr, value: u64) {
            if self.words.insert(at.0, value) != Some(value) {
                self.hidden.insert(at.0);
            }
        }

        fn write_back(&mut self, at: PhysAddr, length: u64) {
            self.hidden
                .retain(|&word| word < at.0 || word >= at.0 + length);
        }
    }

    struct Fixture<E = SecondStageEntry> {
        tables: Tables<Words>,
        arena: Arena,
        shape: Shape,
        retired: RetiredTables,
        entries: PhantomData<E>,
    }

    const ARENA: u64 = 0x1000_0000;

    impl<E: PagingEntry> Fixture<E> {
        fn new(levels: u32, largest: LeafSize, frames: u64) -> Self {
            let mut tables = Tables {
                memory: Words::default(),
                coherent: false,
            };
            let range = PhysRange::new(PhysAddr(ARENA), frames * FRAME_SIZE).unwrap();
            let mut arena = Arena::new(range).unwrap();
            let root = tables.zeroed(&mut arena).unwrap();
            Self {
                tables,
                arena,
                shape: Shape {
                    root,
                    levels,
                    largest,
                },
                retired: RetiredTables::default(),
                entries: PhantomData,
            }
        }

        fn mapper(&mut self) -> Mapper<'_, Words, E> {
            Mapper::new(&mut self.tables, &mut self.arena, self.shape)
        }

        fn map(&mut self, iova: u64, memory: u64, length: u64) -> Result<(), MapError> {
            self.mapper().map(Leaf {
                iova,
                memory: PhysRange::new(PhysAddr(memory), length).unwrap(),
                access: Access::READ_WRITE,
            })
        }

        fn unmap(&mut self, iova: u64, length: u64) -> Result<(), UnmapError> {
            let mut retired = self.retired;
            let result = self.mapper().unmap(iova, length, &mut retired, 1);
            self.retired = retired;
            result
        }

        fn leaves(&self) -> Vec<Leaf> {
            let mut leaves = Vec::new();
            for_leaves::<_, E>(
                &self.tables,
                self.shape.root,
                self.shape.levels,
                0,
                &mut |leaf| {
                    leaves.push(leaf);
                    true
                },
            );
            leaves
        }

        /// Every word that was stored to and lies in a frame in use was written back.
        fn all_published(&self) -> bool {
            self.tables.memory.hidden.is_empty()
        }
    }

    const M2: u64 = 0x20_0000;
    const G1: u64 = 0x4000_0000;

    #[test]
    fn the_largest_leaves_are_used_that_alignment_and_unit_allow() {
        for (largest, iova, memory, expected) in [
            (LeafSize::Size1G, G1, 2 * G1, [(1, 1), (1, 2)].as_slice()),
            (LeafSize::Size2M, G1, 2 * G1, &[(512, 1), (1, 2)]),
            (LeafSize::Size1G, G1, 2 * G1 + M2, &[(513, 1)]),
        ] {
            let mut fixture = Fixture::<SecondStageEntry>::new(3, largest, 2000);
            fixture.map(iova, memory, G1 + M2).unwrap();
            let expected: usize = expected.iter().map(|&(count, _)| count).sum();
            assert_eq!(fixture.leaves().len(), expected, "{largest:?}");
            assert!(fixture.all_published());
        }
        let mut fixture = Fixture::<SecondStageEntry>::new(3, LeafSize::Size1G, 2000);
        fixture.map(M2, M2 + 0x1000, M2).unwrap();
        assert_eq!(fixture.leaves().len(), 512);
    }

    #[test]
    fn a_leaf_is_never_split() {
        let mut fixture = Fixture::<SecondStageEntry>::new(4, LeafSize::Size2M, 100);
        fixture.map(M2, 0, M2).unwrap();
        assert_eq!(
            fixture.unmap(M2 + 0x1000, 0x1000),
            Err(UnmapError::WouldSplit { iova: M2, size: M2 })
        );
        assert_eq!(
            fixture.unmap(M2, 2 * M2),
            Err(UnmapError::NotMapped { iova: 2 * M2 })
        );
        assert_eq!(fixture.leaves().len(), 1);
        fixture.unmap(M2, M2).unwrap();
        assert_eq!(fixture.leaves(), []);
    }

    #[test]
    fn an_arena_that_is_too_small_changes_nothing() {
        // The root, and one frame where two are needed.
        let mut fixture = Fixture::<SecondStageEntry>::new(3, LeafSize::Size4K, 2);
        assert_eq!(
            fixture.map(0, 0, 0x1000),
            Err(MapError::ArenaFull { needed: 2, free: 1 })
        );
        assert_eq!(fixture.arena.free_frames(), 1);
        assert_eq!(fixture.leaves(), []);
    }

    #[test]
    fn unlinked_tables_are_given_back_only_with_proof() {
        let mut fixture = Fixture::<SecondStageEntry>::new(4, LeafSize::Size4K, 10);
        fixture.map(0, 0, 0x1000).unwrap();
        assert_eq!(fixture.arena.free_frames(), 6);
        fixture.unmap(0, 0x1000).unwrap();
        assert_eq!(fixture.arena.free_frames(), 6);
        let Fixture {
            tables,
            arena,
            retired,
            ..
        } = &mut fixture;
        retired.release(tables, arena, |tag| tag < 1);
        assert_eq!(arena.free_frames(), 6);
        retired.release(tables, arena, |tag| tag <= 1);
        assert_eq!(arena.free_frames(), 9);
    }

    /// A number of bytes and where they go, in few enough places that ranges meet often.
    fn place() -> impl Strategy<Value = u64> {
        (
            prop_oneof![Just(0), Just(1), Just(511)],
            0_u64..4,
            prop_oneof![Just(0_u64), Just(1), Just(511), 0..512_u64],
        )
            .prop_map(|(g, m, k)| g * G1 + m * M2 + k * 0x1000)
    }

    fn length() -> impl Strategy<Value = u64> {
        prop_oneof![Just(1_u64), Just(512), Just(1024), 1..600_u64].prop_map(|n| n * 0x1000)
    }

    /// A step: unmap or map, where, which memory, how much.
    type Step = (u8, u64, u64, u64);

    fn agree<E: PagingEntry>(
        steps: Vec<Step>,
        levels: u32,
        largest: LeafSize,
    ) -> Result<(), TestCaseError> {
        let mut fixture = Fixture::<E>::new(levels, largest, 200);
        // Page of device addresses to page of memory.
        let mut pages: BTreeMap<u64, u64> = BTreeMap::new();
        let limit = 1 << (12 + 9 * levels);
        for (step, iova, memory, length) in steps {
            if iova + length > limit {
                continue;
            }
            let range = (0..length).step_by(0x1000);
            let before = (fixture.leaves(), fixture.arena.free_frames());
            if step != 0 {
                let taken = range
                    .clone()
                    .find(|page| pages.contains_key(&(iova + page)));
                match fixture.map(iova, memory, length) {
                    Ok(()) => {
                        prop_assert_eq!(taken, None);
                        pages.extend(range.map(|page| (iova + page, memory + page)));
                    }
                    Err(MapError::Overlap { iova: at }) => {
                        prop_assert!(pages.contains_key(&at));
                        prop_assert_eq!(Some(at), taken.map(|page| iova + page));
                        prop_assert_eq!(before, (fixture.leaves(), fixture.arena.free_frames()));
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            } else {
                let hole = range
                    .clone()
                    .find(|page| !pages.contains_key(&(iova + page)));
                match fixture.unmap(iova, length) {
                    Ok(()) => {
                        prop_assert_eq!(hole, None);
                        for page in range {
                            pages.remove(&(iova + page));
                        }
                    }
                    Err(UnmapError::NotMapped { iova: at }) => {
                        prop_assert!(!pages.contains_key(&at));
                        prop_assert_eq!(before, (fixture.leaves(), fixture.arena.free_frames()));
                    }
                    Err(UnmapError::WouldSplit { iova: at, size }) => {
                        let leaf = translate::<_, E>(&fixture.tables, fixture.shape, at).unwrap();
                        prop_assert_eq!((leaf.iova, leaf.memory.length()), (at, size));
                        prop_assert!(at < iova || at + size > iova + length);
                        prop_assert_eq!(before, (fixture.leaves(), fixture.arena.free_frames()));
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            prop_assert!(fixture.all_published());
            let mut found = BTreeMap::new();
            for leaf in fixture.leaves() {
                prop_assert!(leaf.memory.length() <= largest.bytes());
                prop_assert!(leaf.memory.is_aligned_to(leaf.memory.length()));
                prop_assert_eq!(
                    translate::<_, E>(&fixture.tables, fixture.shape, leaf.iova),
                    Some(leaf)
                );
                for page in (0..leaf.memory.length()).step_by(0x1000) {
                    found.insert(leaf.iova + page, leaf.memory.base().0 + page);
                }
            }
            prop_assert!(found == pages);
        }
        let Fixture {
            tables,
            arena,
            retired,
            ..
        } = &mut fixture;
        retired.release(tables, arena, |_| true);
        fixture.mapper().release();
        prop_assert_eq!(fixture.arena.free_frames(), 200);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn tables_agree_with_a_map_of_pages(
            steps in prop::collection::vec((0..3_u8, place(), place(), length()), 1..12),
            levels in 3_u32..=5,
            largest in prop_oneof![Just(LeafSize::Size4K), Just(LeafSize::Size2M), Just(LeafSize::Size1G)],
        ) {
            agree::<SecondStageEntry>(steps.clone(), levels, largest)?;
            agree::<PageEntry>(steps, levels, largest)?;
        }
    }
}
