//! Page tables that a kernel builds for itself.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::mapper::{MapToError, TranslateResult};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame,
    Size2MiB, Size4KiB, Translate,
};

use crate::boot::Image;
use crate::mmio;

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and execute.
    Code,
    /// Read.
    ReadOnly,
    /// Read and write.
    Data,
    /// Read and write, uncached: device registers.
    Device,
    /// Read, write and execute: only for a trampoline.
    Trampoline,
}

impl Access {
    fn flags(self) -> PageTableFlags {
        let present = PageTableFlags::PRESENT;
        let writable = PageTableFlags::WRITABLE;
        let no_execute = PageTableFlags::NO_EXECUTE;
        match self {
            Self::Code => present,
            Self::ReadOnly => present | no_execute,
            Self::Data => present | writable | no_execute,
            Self::Device => {
                present
                    | writable
                    | no_execute
                    | PageTableFlags::NO_CACHE
                    | PageTableFlags::WRITE_THROUGH
            }
            Self::Trampoline => present | writable,
        }
    }
}

/// Why a range was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapError {
    /// The address is not canonical, or not physical.
    Address(u64),
    /// Address and range differ in their place within a page.
    Alignment {
        /// The virtual address.
        virt: u64,
        /// The range.
        range: PhysRange,
    },
    /// There is no frame left for tables.
    Frames,
    /// Something else is mapped there already.
    Taken(u64),
    /// There was nothing to unmap, or only a part of a larger page.
    Absent(u64),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address:#x} is no address"),
            Self::Alignment { virt, range } => {
                write!(f, "{range} cannot be mapped at {virt:#x}")
            }
            Self::Frames => f.write_str("no frame is left for page tables"),
            Self::Taken(address) => write!(f, "{address:#x} is mapped already"),
            Self::Absent(address) => write!(f, "{address:#x} is not mapped as such"),
        }
    }
}

impl core::error::Error for MapError {}

/// A hierarchy of 4 levels. Its frames are reached through the window of [`mmio`].
#[derive(Debug)]
pub struct AddressSpace {
    root: PhysAddr,
}

impl AddressSpace {
    /// An empty one.
    ///
    /// # Errors
    /// Where there is no frame.
    pub fn new(frames: &mut impl FrameAllocator<Size4KiB>) -> Result<Self, MapError> {
        let frame = frames.allocate_frame().ok_or(MapError::Frames)?;
        let root = PhysAddr(frame.start_address().as_u64());
        let table = mmio::pointer(root).cast::<PageTable>();
        // SAFETY: the frame is ours alone, is in the window, and is as large and as aligned as a
        // page table.
        unsafe { table.write(PageTable::new()) };
        Ok(Self { root })
    }

    /// The physical address of the top table, for CR3.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    fn mapper(&mut self) -> OffsetPageTable<'_> {
        let table = mmio::pointer(self.root).cast::<PageTable>();
        // SAFETY: the frame holds a page table since `new`, and `self` is borrowed mutably.
        let table = unsafe { &mut *table.as_ptr() };
        // SAFETY: all frames of tables are in the window.
        unsafe { OffsetPageTable::new(table, VirtAddr::new_truncate(mmio::window())) }
    }

    /// Maps the pages that `range` touches so that its first byte is at `virt`, with pages of
    /// 2 MiB wherever they fit. A page that is mapped to the same place already stays as it is.
    ///
    /// # Errors
    /// [`MapError`]; what was mapped before the error stays.
    pub fn map(
        &mut self,
        virt: u64,
        range: PhysRange,
        access: Access,
        frames: &mut impl FrameAllocator<Size4KiB>,
    ) -> Result<(), MapError> {
        if range.base().0 % FRAME_SIZE != virt % FRAME_SIZE {
            return Err(MapError::Alignment { virt, range });
        }
        let end = range
            .end()
            .0
            .checked_next_multiple_of(FRAME_SIZE)
            .ok_or(MapError::Address(range.end().0))?;
        let mut phys = range.base().0 & !(FRAME_SIZE - 1);
        let mut virt = virt & !(FRAME_SIZE - 1);
        let mut mapper = self.mapper();
        while phys < end {
            let large = phys.is_multiple_of(Size2MiB::SIZE)
                && virt.is_multiple_of(Size2MiB::SIZE)
                && end - phys >= Size2MiB::SIZE;
            // Where a part of the larger page is mapped already, the rest comes in small pages.
            let size = match large
                .then(|| map_page::<Size2MiB>(&mut mapper, virt, phys, access, frames))
            {
                Some(Ok(())) => Size2MiB::SIZE,
                Some(Err(error @ (MapError::Frames | MapError::Address(_)))) => return Err(error),
                Some(Err(_)) | None => {
                    map_page::<Size4KiB>(&mut mapper, virt, phys, access, frames)?;
                    FRAME_SIZE
                }
            };
            phys += size;
            virt = virt.checked_add(size).ok_or(MapError::Address(virt))?;
        }
        Ok(())
    }

    /// Maps `range` into the window at `window`, as [`mmio::pointer`] will expect it there.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_window(
        &mut self,
        window: u64,
        range: PhysRange,
        access: Access,
        frames: &mut impl FrameAllocator<Size4KiB>,
    ) -> Result<(), MapError> {
        let virt = window
            .checked_add(range.base().0)
            .ok_or(MapError::Address(range.base().0))?;
        self.map(virt, range, access, frames)
    }

    /// Maps the kernel's own image, which lies at `physical` in one piece, where it is linked: code,
    /// read-only data and data each with its own access, the guard page not at all.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_image(
        &mut self,
        image: &Image,
        physical: PhysAddr,
        frames: &mut impl FrameAllocator<Size4KiB>,
    ) -> Result<(), MapError> {
        for (start, end, access) in [
            (image.start, image.text_end, Access::Code),
            (image.text_end, image.rodata_end, Access::ReadOnly),
            (image.rodata_end, image.stack_guard, Access::Data),
            (image.stack_guard + FRAME_SIZE, image.end, Access::Data),
        ] {
            let base = physical
                .checked_add(start - image.start)
                .ok_or(MapError::Address(physical.0))?;
            let range = PhysRange::new(base, end - start).map_err(|_| MapError::Address(base.0))?;
            self.map(start, range, access, frames)?;
        }
        Ok(())
    }

    /// Unmaps `length` bytes from `virt` on, both multiples of 4 KiB; pages of 2 MiB go whole or
    /// not at all. Other processors that use this address space have to flush their translations.
    ///
    /// # Errors
    /// Where a page is not mapped; what was unmapped before the error stays unmapped.
    ///
    /// # Safety
    /// Nothing there is used any more.
    pub unsafe fn unmap(&mut self, virt: u64, length: u64) -> Result<(), MapError> {
        let end = virt.checked_add(length).ok_or(MapError::Address(virt))?;
        let mut at = virt;
        let mut mapper = self.mapper();
        while at < end {
            let address = VirtAddr::try_new(at).map_err(|_| MapError::Address(at))?;
            let small =
                Page::<Size4KiB>::from_start_address(address).map_err(|_| MapError::Address(at))?;
            if let Ok((_, flush)) = mapper.unmap(small) {
                flush.flush();
                at += FRAME_SIZE;
                continue;
            }
            let large = Page::<Size2MiB>::from_start_address(address)
                .ok()
                .filter(|_| end - at >= Size2MiB::SIZE)
                .ok_or(MapError::Absent(at))?;
            let (_, flush) = mapper.unmap(large).map_err(|_| MapError::Absent(at))?;
            flush.flush();
            at += Size2MiB::SIZE;
        }
        Ok(())
    }

    /// Where `virt` goes to.
    #[must_use]
    pub fn translate(&mut self, virt: u64) -> Option<PhysAddr> {
        let address = VirtAddr::try_new(virt).ok()?;
        let found = self.mapper().translate_addr(address)?;
        Some(PhysAddr(found.as_u64()))
    }

    /// Makes the processor that calls this use the tables.
    ///
    /// # Safety
    /// They map the code, the stack and the data in use as they are mapped now, but for the
    /// window; the caller says by [`mmio::set_window`] where that is before it is used again.
    pub unsafe fn activate(&self) {
        let frame = PhysFrame::containing_address(x86_64::PhysAddr::new_truncate(self.root.0));
        // SAFETY: the caller's promise.
        unsafe { Cr3::write(frame, Cr3Flags::empty()) };
    }

    /// The tables in force, for a look at what a loader has mapped.
    ///
    /// # Safety
    /// Their frames are in the window, and nobody changes them meanwhile. They are not changed
    /// through this value unless they are the caller's own.
    #[must_use]
    pub unsafe fn current() -> Self {
        let (frame, _) = Cr3::read();
        Self {
            root: PhysAddr(frame.start_address().as_u64()),
        }
    }
}

fn map_page<'a, S: PageSize>(
    mapper: &mut OffsetPageTable<'a>,
    virt: u64,
    phys: u64,
    access: Access,
    frames: &mut impl FrameAllocator<Size4KiB>,
) -> Result<(), MapError>
where
    OffsetPageTable<'a>: Mapper<S>,
{
    let address = VirtAddr::try_new(virt).map_err(|_| MapError::Address(virt))?;
    let page = Page::<S>::containing_address(address);
    let address = x86_64::PhysAddr::try_new(phys).map_err(|_| MapError::Address(phys))?;
    let frame = PhysFrame::<S>::containing_address(address);
    // The permissions of a page are the AND of all levels: parents grant everything.
    let parents = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    // SAFETY: the address space is the kernel's own; each range it maps is memory it owns, or
    // registers, or memory it shares through atomics only.
    let mapped =
        unsafe { mapper.map_to_with_table_flags(page, frame, access.flags(), parents, frames) };
    match mapped {
        Ok(flush) => {
            flush.flush();
            Ok(())
        }
        Err(MapToError::FrameAllocationFailed) => Err(MapError::Frames),
        Err(_) => match mapper.translate(page.start_address()) {
            // What is mapped to the same place already stays as it is.
            TranslateResult::Mapped {
                frame: there,
                offset,
                ..
            } if there.size() >= S::SIZE
                && there.start_address() + offset == frame.start_address() =>
            {
                Ok(())
            }
            _ => Err(MapError::Taken(virt)),
        },
    }
}
