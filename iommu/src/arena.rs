//! The frames that tables and queues are made of.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange, UnitKind};

use crate::Config;
use crate::amd::spec::{DeviceTableBase, RingBase};

const MAX_FRAMES: usize = 4096;

/// The longest arena in bytes: 16 MiB.
pub const MAX_ARENA_LENGTH: u64 = MAX_FRAMES as u64 * FRAME_SIZE;

/// Why a range cannot be an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ArenaError {
    /// Base or length is not a multiple of 4 KiB, or the range is empty.
    Unaligned(PhysRange),
    /// The range begins at address 0, which stands for "none".
    Zero(PhysRange),
    /// The range has more than [`MAX_ARENA_LENGTH`] bytes.
    TooLong(PhysRange),
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned(range) => write!(f, "arena {range} is not a run of 4 KiB frames"),
            Self::Zero(range) => write!(f, "arena {range} begins at address 0"),
            Self::TooLong(range) => write!(
                f,
                "arena {range} is longer than {:#x} bytes",
                MAX_ARENA_LENGTH
            ),
        }
    }
}

impl core::error::Error for ArenaError {}

/// What a unit's arena is to have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ArenaNeeds {
    /// The buses with devices that are attached to domains or silenced.
    pub buses: u32,
    /// The devices with interrupts.
    pub interrupt_sources: u32,
    /// The page tables of all domains, the first table of each among them.
    pub page_tables: u32,
    /// Whether many devices are moved by [switch](crate::MoveMethod::Switch).
    pub switch: bool,
}

impl ArenaNeeds {
    /// How many bytes the arena of a unit must have.
    #[must_use]
    pub fn length(&self, kind: UnitKind, config: &Config) -> u64 {
        let switches = 1 + u64::from(self.switch);
        let own = match kind {
            UnitKind::AmdVi => {
                let format = config.interrupt_format();
                DeviceTableBase::FRAMES * switches
                    + 2 * RingBase::FRAMES
                    + 1
                    + u64::from(self.interrupt_sources) * format.table_frames()
            }
            _ => {
                let interrupts = u64::from(config.interrupt_entries) * 16;
                // Root and context tables, queue, and the frame that waits write to.
                interrupts.div_ceil(FRAME_SIZE) + (1 + u64::from(self.buses)) * switches + 2
            }
        };
        (own + u64::from(self.page_tables)) * FRAME_SIZE
    }
}

/// The frames of one physical range, and which of them are in use.
///
/// It only keeps count; whoever takes a frame makes it zero.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    range: PhysRange,
    /// One bit for each frame; set where the frame is in use.
    used: [u64; Self::WORDS],
    free: usize,
    /// Where the search for a free frame begins.
    next: usize,
}

impl Arena {
    const WORDS: usize = MAX_FRAMES / 64;

    pub(crate) fn new(range: PhysRange) -> Result<Self, ArenaError> {
        if range.is_empty() || !range.is_aligned_to(FRAME_SIZE) {
            return Err(ArenaError::Unaligned(range));
        }
        if range.base().0 == 0 {
            return Err(ArenaError::Zero(range));
        }
        if range.length() > MAX_ARENA_LENGTH {
            return Err(ArenaError::TooLong(range));
        }
        Ok(Self {
            range,
            used: [0; Self::WORDS],
            free: (range.length() / FRAME_SIZE) as usize,
            next: 0,
        })
    }

    pub(crate) const fn range(&self) -> PhysRange {
        self.range
    }

    const fn frames(&self) -> usize {
        (self.range.length() / FRAME_SIZE) as usize
    }

    /// How many frames are free.
    pub(crate) const fn free_frames(&self) -> usize {
        self.free
    }

    fn is_used(&self, frame: usize) -> bool {
        self.used
            .get(frame / 64)
            .is_none_or(|word| word >> (frame % 64) & 1 != 0)
    }

    fn mark(&mut self, frame: usize, used: bool) {
        if let Some(word) = self.used.get_mut(frame / 64) {
            let bit = 1 << (frame % 64);
            if used {
                *word |= bit;
                self.free -= 1;
            } else {
                *word &= !bit;
                self.free += 1;
            }
        }
    }

    const fn address(&self, frame: usize) -> PhysAddr {
        PhysAddr(self.range.base().0 + frame as u64 * FRAME_SIZE)
    }

    /// The number of the frame at `address`, if it begins one of this arena.
    fn number(&self, address: PhysAddr) -> Option<usize> {
        (self.range.contains(address) && address.is_aligned_to(FRAME_SIZE))
            .then(|| ((address.0 - self.range.base().0) / FRAME_SIZE) as usize)
    }

    /// Takes `count` frames that lie one after the other.
    pub(crate) fn take_run(&mut self, count: usize) -> Option<PhysAddr> {
        let frames = self.frames();
        if count == 0 || count > self.free {
            return None;
        }
        let last = frames - count;
        let start = if self.next > last { 0 } else { self.next };
        let first = (start..=last)
            .chain(0..start)
            .find(|&first| !(first..first + count).any(|frame| self.is_used(frame)))?;
        for frame in first..first + count {
            self.mark(frame, true);
        }
        self.next = first + count;
        Some(self.address(first))
    }

    /// Marks the frame at `address` as used, during the walk of tables that somebody else built.
    /// `false` where it is not a frame of this arena or was claimed before.
    pub(crate) fn claim(&mut self, address: PhysAddr) -> bool {
        match self.number(address) {
            Some(frame) if !self.is_used(frame) => {
                self.mark(frame, true);
                true
            }
            _ => false,
        }
    }

    /// Claims `count` frames from `address` on; `false` as for [`claim`](Self::claim).
    pub(crate) fn claim_run(&mut self, address: PhysAddr, count: u64) -> bool {
        (0..count).all(|frame| {
            address
                .checked_add(frame * FRAME_SIZE)
                .is_some_and(|at| self.claim(at))
        })
    }

    /// Gives one frame back.
    pub(crate) fn give_back(&mut self, address: PhysAddr) {
        if let Some(frame) = self.number(address)
            && self.is_used(frame)
        {
            self.mark(frame, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(base: u64, length: u64) -> PhysRange {
        PhysRange::new(PhysAddr(base), length).unwrap()
    }

    #[test]
    fn ranges_that_are_no_arena_are_refused() {
        assert!(matches!(
            Arena::new(range(0x1000, 0)),
            Err(ArenaError::Unaligned(_))
        ));
        assert!(matches!(
            Arena::new(range(0x1800, 0x1000)),
            Err(ArenaError::Unaligned(_))
        ));
        assert!(matches!(
            Arena::new(range(0, 0x1000)),
            Err(ArenaError::Zero(_))
        ));
        assert!(matches!(
            Arena::new(range(0x1000, 0x100_1000)),
            Err(ArenaError::TooLong(_))
        ));
        assert_eq!(
            Arena::new(range(0x1000, 0x100_0000)).unwrap().free_frames(),
            4096
        );
    }

    proptest! {
        #[test]
        fn frames_are_handed_out_once_and_runs_are_contiguous(
            steps in prop::collection::vec((any::<bool>(), 1_usize..6, any::<prop::sample::Index>()), 1..120),
            frames in 1_u64..70,
        ) {
            let mut arena = Arena::new(range(0x7000_0000, frames * FRAME_SIZE)).unwrap();
            let mut used = BTreeSet::new();
            for (take, count, which) in steps {
                if take {
                    match arena.take_run(count) {
                        Some(at) => for frame in 0..count as u64 {
                            let frame = at.0 + frame * FRAME_SIZE;
                            prop_assert!(arena.range().contains(PhysAddr(frame)));
                            prop_assert!(used.insert(frame));
                        },
                        None => {
                            let taken = |frame: u64| used.contains(&(0x7000_0000 + frame * FRAME_SIZE));
                            let count = count as u64;
                            let blocked = (0..(frames + 1).saturating_sub(count))
                                .all(|first| (first..first + count).any(taken));
                            prop_assert!(blocked);
                        }
                    }
                } else if !used.is_empty() {
                    let at = *which.get(&used.iter().copied().collect::<std::vec::Vec<_>>());
                    arena.give_back(PhysAddr(at));
                    used.remove(&at);
                }
                prop_assert_eq!(arena.free_frames() as u64, frames - used.len() as u64);
            }
            for frame in 0..frames {
                let at = 0x7000_0000 + frame * FRAME_SIZE;
                prop_assert_eq!(arena.claim(PhysAddr(at)), !used.contains(&at));
            }
        }
    }
}
