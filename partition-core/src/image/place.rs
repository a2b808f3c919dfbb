//! Where an image goes, and putting it there.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};

use super::{Access, Image, PlaceError, Segment, is_canonical};

/// Writes physical memory: what a loader needs of an embedder.
pub trait WritePhys {
    /// Why memory could not be written.
    type Error;

    /// Writes `bytes` from `at` on.
    ///
    /// # Errors
    /// Where the memory cannot be written. What was written of it before does not matter: the
    /// memory is not used then.
    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Writes `length` zeros from `at` on.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), Self::Error>;
}

/// Why an image was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LoadError<E> {
    /// The segment that could not be written, by its place in the program header table.
    pub segment: u16,
    /// Where it was to go.
    pub range: PhysRange,
    /// Why.
    pub error: E,
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "segment {} cannot be written to {}: {}",
            self.segment, self.range, self.error
        )
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for LoadError<E> {}

/// A segment with its place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PlacedSegment {
    /// The segment, with addresses as linked.
    pub segment: Segment,
    /// The virtual address of its first page of 4 KiB, at run time.
    pub address: u64,
    /// The physical memory it is in, whole pages of 4 KiB.
    pub pages: PhysRange,
    /// What may be done with it.
    pub access: Access,
}

/// An image with its place in physical memory: one piece, in which segments lie as far from each
/// other as their addresses do.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'i> {
    image: &'i Image<'i>,
    range: PhysRange,
    /// What is added to a linked address; wraps.
    slide: u64,
}

impl<'a> Image<'a> {
    /// Places the image at the start of `room`. A position independent image will run at its
    /// physical addresses, any other at those it was linked for.
    ///
    /// # Errors
    /// Where it does not fit.
    pub fn place(&'a self, room: PhysRange) -> Result<Layout<'a>, PlaceError> {
        let footprint = self.footprint();
        if !room.base().is_aligned_to(FRAME_SIZE) {
            return Err(PlaceError::Misaligned(room));
        }
        let too_large = PlaceError::TooLarge {
            need: footprint.length,
            have: room.length(),
        };
        if footprint.length > room.length() {
            return Err(too_large);
        }
        let range = PhysRange::new(room.base(), footprint.length).map_err(|_| too_large)?;
        let slide = if self.is_position_independent() {
            if !is_canonical(range.base().0) || !is_canonical(range.end().0) {
                return Err(PlaceError::Address(range));
            }
            range.base().0.wrapping_sub(footprint.base)
        } else {
            0
        };
        Ok(Layout {
            image: self,
            range,
            slide,
        })
    }
}

impl<'i> Layout<'i> {
    /// The image.
    #[must_use]
    pub const fn image(&self) -> &'i Image<'i> {
        self.image
    }

    /// The physical memory it takes.
    #[must_use]
    pub const fn range(&self) -> PhysRange {
        self.range
    }

    /// The virtual address at which it is entered.
    #[must_use]
    pub const fn entry(&self) -> u64 {
        self.image.note().entry.wrapping_add(self.slide)
    }

    /// Where a linked address is in physical memory; `None` outside the image's footprint.
    #[must_use]
    pub fn physical(&self, linked: u64) -> Option<PhysAddr> {
        let offset = linked.checked_sub(self.image.footprint().base)?;
        if offset >= self.range.length() {
            return None;
        }
        self.range.base().checked_add(offset)
    }

    /// Each segment with its place.
    pub fn segments(&self) -> impl Iterator<Item = PlacedSegment> + use<'i> {
        let layout = *self;
        layout.image.segments().filter_map(move |segment| {
            let (base, end) = segment.pages();
            let pages = PhysRange::new(layout.physical(base)?, end.checked_sub(base)?).ok()?;
            Some(PlacedSegment {
                segment: *segment,
                address: base.wrapping_add(layout.slide),
                pages,
                access: segment.access,
            })
        })
    }

    /// Copies the image into memory. What its pages have besides the file's bytes becomes zero, so
    /// nothing of an earlier owner shows.
    ///
    /// # Errors
    /// Where memory cannot be written.
    pub fn load<M: WritePhys>(&self, memory: &mut M) -> Result<(), LoadError<M::Error>> {
        for placed in self.segments() {
            let segment = placed.segment;
            let bytes = self.image.segment_bytes(&segment);
            let head = segment
                .address
                .saturating_sub(super::page_of(segment.address));
            let at = PhysAddr(placed.pages.base().0.saturating_add(head));
            let end = PhysAddr(at.0.saturating_add(segment.file_size));
            let mut write = || {
                if head != 0 {
                    memory.zero(placed.pages.base(), head)?;
                }
                if !bytes.is_empty() {
                    memory.write(at, bytes)?;
                }
                let rest = PhysRange::from_bounds(end, placed.pages.end());
                if !rest.is_empty() {
                    memory.zero(rest.base(), rest.length())?;
                }
                Ok(())
            };
            write().map_err(|error| LoadError {
                segment: segment.number,
                range: placed.pages,
                error,
            })?;
        }
        Ok(())
    }
}
