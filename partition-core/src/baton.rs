//! Where the parts of the baton lie.

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

use core::fmt;

use handoff_abi::{Exchange, Extent, FRAME_SIZE, Handoff, Ledger, PhysAddr, PhysRange, purpose};

use crate::park;

/// How much room each part of variable size gets, in bytes; rounded up to whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Sizes {
    /// For handoff blobs.
    pub handoff: u64,
    /// For the captured firmware tables.
    pub capture: u64,
    /// For the filtered tables.
    pub filtered: u64,
    /// For the tables and queues of the remapping units.
    pub iommu: u64,
}

impl Sizes {
    /// The same number of pages for each part.
    #[must_use]
    pub const fn pages(count: u32) -> Self {
        let bytes = (count as u64).saturating_mul(FRAME_SIZE);
        Self {
            handoff: bytes,
            capture: bytes,
            filtered: bytes,
            iommu: bytes,
        }
    }
}

/// Why there is no baton.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BatonError {
    /// The room is too small.
    NoRoom {
        /// Bytes that are needed from the room's base.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The handoff names no extent of a purpose that every baton has, or one that is too small, not
    /// whole pages, or past the end of the address space.
    Extent {
        /// One of [`purpose`].
        purpose: u32,
    },
}

impl fmt::Display for BatonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { need, have } => {
                write!(f, "the baton needs {need:#x} bytes and has {have:#x}")
            }
            Self::Extent { purpose } => {
                write!(f, "the handoff has no usable extent of purpose {purpose}")
            }
        }
    }
}

impl core::error::Error for BatonError {}

/// The parts of the baton.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Baton {
    /// Handoff blobs.
    pub handoff: PhysRange,
    /// The captured firmware tables.
    pub capture: PhysRange,
    /// The [`Ledger`].
    pub ledger: PhysRange,
    /// The [`Exchange`].
    pub exchange: PhysRange,
    /// The park area.
    pub park: PhysRange,
    /// The filtered tables.
    pub filtered: PhysRange,
    /// Tables and queues of the remapping units.
    pub iommu: PhysRange,
}

impl Baton {
    /// Lays the parts out from the start of `room`, which should be a multiple of
    /// [`park::ALIGNMENT`] and below 4 GiB.
    ///
    /// # Errors
    /// Where they do not fit.
    pub fn lay_out(room: PhysRange, sizes: &Sizes) -> Result<Self, BatonError> {
        let mut at = room.base().0;
        let mut part = |length: u64, alignment: u64| -> Option<PhysRange> {
            let base = at.checked_next_multiple_of(alignment)?;
            let length = length.checked_next_multiple_of(FRAME_SIZE)?;
            at = base.checked_add(length)?;
            PhysRange::new(PhysAddr(base), length).ok()
        };
        let mut all = || {
            Some(Self {
                park: part(park::LENGTH, park::ALIGNMENT)?,
                ledger: part(size_of::<Ledger>() as u64, FRAME_SIZE)?,
                exchange: part(size_of::<Exchange>() as u64, FRAME_SIZE)?,
                handoff: part(sizes.handoff, FRAME_SIZE)?,
                capture: part(sizes.capture, FRAME_SIZE)?,
                filtered: part(sizes.filtered, FRAME_SIZE)?,
                iommu: part(sizes.iommu, FRAME_SIZE)?,
            })
        };
        let have = room.length();
        let baton = all().ok_or(BatonError::NoRoom {
            need: u64::MAX,
            have,
        })?;
        let need = baton.iommu.end().0.saturating_sub(room.base().0);
        if need > have {
            return Err(BatonError::NoRoom { need, have });
        }
        Ok(baton)
    }

    /// The parts that a handoff names.
    ///
    /// # Errors
    /// Where one is missing or cannot be right.
    pub fn find(handoff: &Handoff<'_>) -> Result<Self, BatonError> {
        let part = |wanted: u32, least: u64| {
            handoff
                .records::<Extent>()
                .find(|extent| extent.purpose == wanted)
                .and_then(|extent| PhysRange::new(extent.base, extent.length).ok())
                .filter(|range| range.is_aligned_to(FRAME_SIZE) && range.length() >= least)
                .ok_or(BatonError::Extent { purpose: wanted })
        };
        Ok(Self {
            handoff: part(purpose::HANDOFF, FRAME_SIZE)?,
            capture: part(purpose::CAPTURE, FRAME_SIZE)?,
            ledger: part(purpose::LEDGER, size_of::<Ledger>() as u64)?,
            exchange: part(purpose::EXCHANGE, size_of::<Exchange>() as u64)?,
            park: part(purpose::PARK, park::LENGTH)?,
            filtered: part(purpose::FILTERED, FRAME_SIZE)?,
            iommu: part(purpose::IOMMU, FRAME_SIZE)?,
        })
    }

    /// The parts as records of a handoff.
    #[must_use]
    pub fn extents(&self) -> [Extent; 7] {
        [
            (purpose::HANDOFF, self.handoff),
            (purpose::CAPTURE, self.capture),
            (purpose::LEDGER, self.ledger),
            (purpose::EXCHANGE, self.exchange),
            (purpose::PARK, self.park),
            (purpose::FILTERED, self.filtered),
            (purpose::IOMMU, self.iommu),
        ]
        .map(|(purpose, range)| Extent {
            purpose,
            reserved: 0,
            base: range.base(),
            length: range.length(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        handoff: 1,
        capture: 0x3000,
        filtered: 0x2001,
        iommu: 0x10_0000,
    };

    #[test]
    fn the_parts_are_whole_pages_side_by_side_inside_the_room() {
        let room = PhysRange::new(PhysAddr(0x100_0000), 0x20_0000).unwrap();
        let baton = Baton::lay_out(room, &SIZES).unwrap();
        let mut extents = baton.extents();
        extents.sort_by_key(|extent| extent.base);
        for pair in extents.windows(2) {
            assert!(pair[0].base.0 + pair[0].length <= pair[1].base.0);
        }
        for extent in extents {
            let range = PhysRange::new(extent.base, extent.length).unwrap();
            assert!(range.is_aligned_to(FRAME_SIZE) && !range.is_empty());
            assert!(room.contains_range(range));
        }
    }

    #[test]
    fn a_room_that_is_one_byte_short_is_refused() {
        let room = PhysRange::new(PhysAddr(0x100_0000), 0x20_0000).unwrap();
        let need = Baton::lay_out(room, &SIZES).unwrap().iommu.end().0 - room.base().0;
        let short = PhysRange::new(room.base(), need - 1).unwrap();
        assert_eq!(
            Baton::lay_out(short, &SIZES),
            Err(BatonError::NoRoom {
                need,
                have: need - 1
            })
        );
    }
}
