//! Physical memory before there is an allocator: free ranges to carve from, and frames in a row.

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};
use heapless::Vec;
use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size4KiB};

/// Free ranges of memory, carved from the front.
#[derive(Clone, Debug, Default)]
pub struct Carver {
    free: Vec<PhysRange, 64>,
}

impl Carver {
    /// Nothing free.
    #[must_use]
    pub const fn new() -> Self {
        Self { free: Vec::new() }
    }

    /// Adds the whole frames of `range`. Memory below 1 MiB is not added: it belongs to firmware
    /// and trampolines. Where there is no room to note the range, it stays unused.
    pub fn add(&mut self, range: PhysRange) {
        let start = range.base().0.max(0x10_0000).next_multiple_of(FRAME_SIZE);
        let end = range.end().0 & !(FRAME_SIZE - 1);
        let whole = PhysRange::from_bounds(PhysAddr(start), PhysAddr(end));
        if !whole.is_empty() {
            // A range that is not noted is memory not used, nothing worse.
            let _ = self.free.push(whole);
        }
    }

    /// Takes the frames that `range` touches out of what is free.
    pub fn reserve(&mut self, range: PhysRange) {
        let start = range.base().0 & !(FRAME_SIZE - 1);
        let end = range.end().0.next_multiple_of(FRAME_SIZE);
        let taken = PhysRange::from_bounds(PhysAddr(start), PhysAddr(end));
        let mut rest = Vec::<PhysRange, 64>::new();
        for &free in &self.free {
            if !free.overlaps(taken) {
                let _ = rest.push(free);
                continue;
            }
            for piece in [
                PhysRange::from_bounds(free.base(), taken.base()),
                PhysRange::from_bounds(taken.end(), free.end()),
            ] {
                if !piece.is_empty() {
                    let _ = rest.push(piece);
                }
            }
        }
        self.free = rest;
    }

    /// Takes `length` bytes (rounded up to whole frames) at a multiple of `alignment` below
    /// `limit`.
    pub fn take(&mut self, length: u64, alignment: u64, limit: u64) -> Option<PhysRange> {
        let length = length.checked_next_multiple_of(FRAME_SIZE)?;
        let alignment = alignment.max(FRAME_SIZE);
        let found = self.free.iter().find_map(|free| {
            let base = free.base().0.checked_next_multiple_of(alignment)?;
            let range = PhysRange::new(PhysAddr(base), length).ok()?;
            (free.contains_range(range) && range.end().0 <= limit).then_some(range)
        })?;
        self.reserve(found);
        Some(found)
    }

    /// The ranges that are left.
    #[must_use]
    pub fn free(&self) -> &[PhysRange] {
        &self.free
    }

    /// Bytes that are left.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.iter().map(|range| range.length()).sum()
    }
}

/// Frames one after the other, for page tables; never given back.
#[derive(Debug)]
pub struct Frames {
    next: u64,
    end: u64,
}

impl Frames {
    /// Frames from `range`.
    ///
    /// # Safety
    /// The memory is nobody else's from now on.
    #[must_use]
    pub const unsafe fn new(range: PhysRange) -> Self {
        Self {
            next: range.base().0.next_multiple_of(FRAME_SIZE),
            end: range.end().0,
        }
    }

    /// Bytes that are left.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }
}

// SAFETY: each frame is given once, and `new` was promised that nobody else uses them.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        let after = self.next.checked_add(FRAME_SIZE)?;
        if after > self.end {
            return None;
        }
        let frame = PhysFrame::containing_address(x86_64::PhysAddr::try_new(self.next).ok()?);
        self.next = after;
        Some(frame)
    }
}
