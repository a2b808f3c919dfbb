//! Pages from firmware that stay when boot services end.

use core::fmt;
use core::ptr::NonNull;
use core::slice;

use uefi::boot::{self, AllocateType, MemoryType, PAGE_SIZE};

/// There is no memory where it is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoMemory {
    /// Where; `None` for anywhere below 4 GiB.
    at: Option<u64>,
    bytes: usize,
}

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes;
        match self.at {
            Some(at) => write!(f, "firmware uses some of the {bytes} bytes at {at:#x}"),
            None => write!(f, "there are no {bytes} bytes below 4 GiB"),
        }
    }
}

/// Whole pages below 4 GiB, zeroed, at the same virtual and physical address (UEFI 2.10, section
/// 2.3.4). They are never given back.
pub(crate) struct Pages {
    first: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// Somewhere.
    pub(crate) fn low(bytes: usize) -> Result<Self, NoMemory> {
        Self::of(
            AllocateType::MaxAddress(u32::MAX.into()),
            MemoryType::LOADER_DATA,
            None,
            bytes,
        )
    }

    /// Somewhere, to hold code.
    pub(crate) fn code(bytes: usize) -> Result<Self, NoMemory> {
        Self::of(
            AllocateType::MaxAddress(u32::MAX.into()),
            MemoryType::LOADER_CODE,
            None,
            bytes,
        )
    }

    /// The page at `at`, a multiple of the page size, and those behind it.
    pub(crate) fn at(at: u64, bytes: usize) -> Result<Self, NoMemory> {
        Self::of(
            AllocateType::Address(at),
            MemoryType::LOADER_DATA,
            Some(at),
            bytes,
        )
    }

    fn of(
        place: AllocateType,
        kind: MemoryType,
        at: Option<u64>,
        bytes: usize,
    ) -> Result<Self, NoMemory> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let first = boot::allocate_pages(place, kind, pages).map_err(|_| NoMemory { at, bytes })?;
        let length = pages * PAGE_SIZE;
        // SAFETY: these pages were just given to this program, and hold bytes.
        unsafe { first.write_bytes(0, length) };
        Ok(Self { first, length })
    }

    /// Their address.
    pub(crate) fn base(&self) -> usize {
        self.first.addr().get()
    }

    /// Their bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the pages are this value's alone, were zeroed, and are never given back.
        unsafe { slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}
