//! A sorted list of regions that neither overlap nor touch with the same kind.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};

use super::{MemoryKind, MemoryRegion};

/// Why a map was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MapError {
    /// It would have more regions than there is room for.
    Full {
        /// How many there is room for.
        capacity: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { capacity } => {
                write!(f, "the memory map has room for {capacity} regions")
            }
        }
    }
}

impl core::error::Error for MapError {}

const NOTHING: MemoryRegion = MemoryRegion {
    range: PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)),
    kind: MemoryKind::Reserved,
};

/// A memory map of at most `N` regions: sorted, without overlaps, without empty regions, and no
/// two of one kind touch.
///
/// A change that fails leaves the map as it was. Each change builds the new map beside the old one
/// and so needs `24 * N` bytes of stack.
#[derive(Clone)]
pub struct MemoryMap<const N: usize> {
    regions: [MemoryRegion; N],
    length: usize,
}

impl<const N: usize> MemoryMap<N> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            regions: [NOTHING; N],
            length: 0,
        }
    }

    /// A map of these regions, in any order.
    ///
    /// # Errors
    /// Where they need more room than there is.
    pub fn from_regions(regions: impl IntoIterator<Item = MemoryRegion>) -> Result<Self, MapError> {
        let mut map = Self::new();
        for region in regions {
            map.insert(region)?;
        }
        Ok(map)
    }

    /// The regions, in order.
    #[must_use]
    pub fn regions(&self) -> &[MemoryRegion] {
        self.regions.get(..self.length).unwrap_or(&[])
    }

    /// Puts `region` in. Where the map already says something, the safer kind counts.
    ///
    /// # Errors
    /// Where the map would get too many regions.
    pub fn insert(&mut self, region: MemoryRegion) -> Result<(), MapError> {
        self.rewrite(region.range, |old| {
            Some(old.map_or(region.kind, |old| old.max(region.kind)))
        })
    }

    /// Makes `range` of this kind, whatever it was.
    ///
    /// # Errors
    /// Where the map would get too many regions.
    pub fn carve(&mut self, range: PhysRange, kind: MemoryKind) -> Result<(), MapError> {
        self.rewrite(range, |_| Some(kind))
    }

    /// Takes `range` out: the map then says nothing of it.
    ///
    /// # Errors
    /// Where the map would get too many regions.
    pub fn subtract(&mut self, range: PhysRange) -> Result<(), MapError> {
        self.rewrite(range, |_| None)
    }

    /// Takes everything out but `range`.
    pub fn intersect(&mut self, range: PhysRange) {
        let mut kept = 0_usize;
        for at in 0..self.length {
            let Some(&region) = self.regions.get(at) else {
                break;
            };
            let common = region.range.intersection(range);
            if let Some(slot) = self.regions.get_mut(kept)
                && !common.is_empty()
            {
                *slot = MemoryRegion {
                    range: common,
                    kind: region.kind,
                };
                kept = kept.saturating_add(1);
            }
        }
        self.length = kept;
    }

    /// The map in whole page frames: usable regions shrink to the frames they fill, all others
    /// grow to the frames they touch.
    ///
    /// # Errors
    /// Where the map would get too many regions.
    pub fn in_frames(&self) -> Result<Self, MapError> {
        let mut map = Self::new();
        let mask = !FRAME_SIZE.wrapping_sub(1);
        for region in self.regions() {
            let (base, end) = (region.range.base().0, region.range.end().0);
            let (lower, upper) = (base & mask, end & mask);
            let (base, end) = match region.kind {
                MemoryKind::Usable => (
                    base.checked_next_multiple_of(FRAME_SIZE).unwrap_or(upper),
                    upper,
                ),
                _ => (
                    lower,
                    end.checked_next_multiple_of(FRAME_SIZE).unwrap_or(u64::MAX),
                ),
            };
            map.insert(MemoryRegion {
                range: PhysRange::from_bounds(PhysAddr(base), PhysAddr(end)),
                kind: region.kind,
            })?;
        }
        Ok(map)
    }

    /// What the map says of this address.
    #[must_use]
    pub fn kind_at(&self, address: PhysAddr) -> Option<MemoryKind> {
        self.regions()
            .iter()
            .find(|region| region.range.contains(address))
            .map(|region| region.kind)
    }

    /// Whether every byte of `range` is of this kind.
    #[must_use]
    pub fn is_all(&self, range: PhysRange, kind: MemoryKind) -> bool {
        // Regions of one kind do not touch, so one of them has the whole range or none has.
        range.is_empty()
            || self
                .regions()
                .iter()
                .any(|region| region.kind == kind && region.range.contains_range(range))
    }

    /// The regions of one kind.
    pub fn of_kind(&self, kind: MemoryKind) -> impl Iterator<Item = PhysRange> + '_ {
        self.regions()
            .iter()
            .filter(move |region| region.kind == kind)
            .map(|region| region.range)
    }

    /// How many bytes there are of one kind.
    #[must_use]
    pub fn total(&self, kind: MemoryKind) -> u64 {
        self.of_kind(kind)
            .fold(0, |sum, range| sum.saturating_add(range.length()))
    }

    /// The highest usable `length` bytes within `window` whose base is a multiple of `alignment`
    /// (a power of two); `None` where there are none.
    #[must_use]
    pub fn find_usable(&self, length: u64, alignment: u64, window: PhysRange) -> Option<PhysRange> {
        let mask = !alignment.checked_sub(1)?;
        if !alignment.is_power_of_two() || length == 0 {
            return None;
        }
        self.regions().iter().rev().find_map(|region| {
            let room = region.range.intersection(window);
            if region.kind != MemoryKind::Usable {
                return None;
            }
            let base = PhysAddr(room.end().0.checked_sub(length)? & mask);
            if base < room.base() {
                return None;
            }
            PhysRange::new(base, length).ok()
        })
    }

    /// Builds the map anew with `change` applied to what it says of each byte of `range`.
    fn rewrite(
        &mut self,
        range: PhysRange,
        change: impl Fn(Option<MemoryKind>) -> Option<MemoryKind>,
    ) -> Result<(), MapError> {
        if range.is_empty() {
            return Ok(());
        }
        let below = PhysRange::from_bounds(PhysAddr(0), range.base());
        let above = PhysRange::from_bounds(range.end(), PhysAddr(u64::MAX));
        let mut next = Self::new();
        for region in self.regions() {
            next.push(region.range.intersection(below), Some(region.kind))?;
        }
        // Everything in the range up to here is done.
        let mut done = range.base();
        for region in self.regions() {
            let inner = region.range.intersection(range);
            if inner.is_empty() {
                continue;
            }
            next.push(PhysRange::from_bounds(done, inner.base()), change(None))?;
            next.push(inner, change(Some(region.kind)))?;
            done = inner.end();
        }
        next.push(PhysRange::from_bounds(done, range.end()), change(None))?;
        for region in self.regions() {
            next.push(region.range.intersection(above), Some(region.kind))?;
        }
        *self = next;
        Ok(())
    }

    /// Puts a piece at the end; pieces come in order.
    fn push(&mut self, range: PhysRange, kind: Option<MemoryKind>) -> Result<(), MapError> {
        let Some(kind) = kind else { return Ok(()) };
        if range.is_empty() {
            return Ok(());
        }
        if let Some(last) = self
            .length
            .checked_sub(1)
            .and_then(|last| self.regions.get_mut(last))
            && last.kind == kind
            && last.range.end() == range.base()
        {
            last.range = PhysRange::from_bounds(last.range.base(), range.end());
            return Ok(());
        }
        let Some(slot) = self.regions.get_mut(self.length) else {
            return Err(MapError::Full { capacity: N });
        };
        *slot = MemoryRegion { range, kind };
        self.length = self.length.saturating_add(1);
        Ok(())
    }
}

impl<const N: usize> Default for MemoryMap<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> PartialEq for MemoryMap<N> {
    fn eq(&self, other: &Self) -> bool {
        self.regions() == other.regions()
    }
}

impl<const N: usize> Eq for MemoryMap<N> {}

impl<const N: usize> fmt::Debug for MemoryMap<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}
