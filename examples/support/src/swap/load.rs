//! A successor's memory is filled: image, entry page tables, firmware tables, handoff.

use alloc::vec::Vec;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange, purpose};
use partition_core::image::paging::{self, Caching, Identity, TableFrames};
use partition_core::image::{Access as ImageAccess, Image, WritePhys};

use super::filtered;
use super::handoff::{handoff_at, write_handoff};
use super::kernel::{Failure, Kernel, copy_in, failure, page_of, zero};
use super::launch::{self, Stage};
use crate::{apic, mmio, println};

/// Writes through the window into memory that was carved out.
#[derive(Debug)]
pub struct Carved;

impl WritePhys for Carved {
    type Error = core::convert::Infallible;

    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Self::Error> {
        // SAFETY: the loader stays inside the room it was given, which is the partition's memory:
        // the window maps it, and nothing of this kernel is there any more.
        unsafe { copy_in(at, bytes) };
        Ok(())
    }

    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), Self::Error> {
        // SAFETY: as above.
        unsafe { zero(at, length) };
        Ok(())
    }
}

/// Frames for the entry tables, from the partition's memory.
#[derive(Debug)]
pub struct EntryFrames {
    /// The next one.
    pub next: u64,
    /// Where there are no more.
    pub end: u64,
}

impl TableFrames for EntryFrames {
    fn allocate(&mut self) -> Option<PhysAddr> {
        let frame = PhysAddr(self.next);
        self.next = self
            .next
            .checked_add(FRAME_SIZE)
            .filter(|&next| next <= self.end)?;
        // SAFETY: the frame is in the partition's memory, and nothing else is there.
        unsafe { zero(frame, FRAME_SIZE) };
        Some(frame)
    }

    fn load(&self, at: PhysAddr) -> u64 {
        let entry = mmio::pointer(at).cast::<u64>();
        // SAFETY: the builder reads only entries of frames that were allocated above.
        unsafe { entry.read() }
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        let entry = mmio::pointer(at).cast::<u64>();
        // SAFETY: the builder writes only entries of frames that were allocated above.
        unsafe { entry.write(value) };
    }
}

/// Fills the memory of the partition that is on its way. Returns where its entry page tables are,
/// and its entry.
///
/// # Errors
/// Where the image or its tables do not fit.
pub fn load(kernel: &mut Kernel, image: &Image<'_>) -> Result<(PhysAddr, u64), Failure> {
    let launched = launch::launched(kernel)?;
    launched.stage = Stage::Loaded;
    let plan = launched.plan.clone();
    let room = plan
        .memory()
        .iter()
        .copied()
        .max_by_key(|range| range.length())
        .ok_or_else(|| failure!("the plan has no memory"))?;
    let layout = image.place(room)?;
    layout.load(&mut Carved)?;
    let end = layout.range().end().0.next_multiple_of(FRAME_SIZE);
    let mut frames = EntryFrames {
        next: end,
        end: room.end().0,
    };
    let data = ImageAccess {
        write: true,
        execute: false,
    };
    let code = ImageAccess {
        write: true,
        execute: true,
    };
    let mut identity = Vec::new();
    let mut add = |range, access, caching| {
        identity.push(Identity {
            range,
            access,
            caching,
        })
    };
    for &range in plan.memory() {
        add(range, data, Caching::WriteBack);
    }
    for extent in kernel.baton.extents() {
        let access = if extent.purpose == purpose::PARK {
            code
        } else {
            data
        };
        add(
            PhysRange::new(extent.base, extent.length)?,
            access,
            Caching::WriteBack,
        );
    }
    if let Some(page) = plan.trampoline() {
        add(page_of(page), code, Caching::WriteBack);
    }
    add(page_of(apic::base()), data, Caching::Uncached);
    let tables = paging::build(&mut frames, &layout, &identity)?;
    let loaded = PhysRange::from_bounds(room.base(), PhysAddr(frames.next));
    let firmware = filtered::write(kernel, &plan, None)?.firmware;
    let launched = launch::launched(kernel)?;
    launched.loaded = loaded;
    launched.firmware = firmware;
    let bytes = write_handoff(kernel)?;
    let launched = launch::launched(kernel)?;
    let (partition, version) = (launched.partition, launched.version);
    let at = handoff_at(kernel, partition).0;
    println!("@handoff bytes={bytes} at={at:#x} version={version}");
    Ok((tables.root, layout.entry()))
}
