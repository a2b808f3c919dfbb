//! Memory that several kernels and a device may read and write: reached through atomics only,
//! never through references to anything else. The one module of this crate with unsafe code.
#![expect(
    unsafe_code,
    reason = "a region of raw memory is made into atomics here, and nowhere else"
)]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// The unit that areas are aligned to, in bytes.
pub const PAGE: u64 = 4096;

/// A type made of atomics alone.
///
/// # Safety
/// Every byte of it belongs to an atomic integer: no padding, no bit pattern that is invalid,
/// nothing that is read or written other than atomically.
pub unsafe trait Shared {}

// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU8 {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU16 {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU64 {}
// SAFETY: an array has no padding between or after its elements.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a structure of atomics with its size and every offset asserted.
macro_rules! shared {
    (
        $(#[$doc:meta])*
        $name:ident, $size:literal {
            $( $(#[$field_doc:meta])* $field:ident : $type:ty = $offset:literal, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $type, )*
        }

        const _: () = {
            const fn shared<T: $crate::memory::Shared>() -> usize {
                size_of::<T>()
            }
            assert!(size_of::<$name>() == $size);
            $( assert!(core::mem::offset_of!($name, $field) == $offset); )*
            // The fields fill the structure, so there is no padding.
            assert!(0 $( + shared::<$type>() )* == $size);
        };

        #[expect(unsafe_code, reason = "asserted just above")]
        // SAFETY: all fields are made of atomics alone, and they fill the structure.
        unsafe impl $crate::memory::Shared for $name {}
    };
}
pub(crate) use shared;

/// A page of atomics, for memory that is allocated as such.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [AtomicU64; 512]);

impl Page {
    /// A page of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// A region of shared memory that begins at a page boundary.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    base: NonNull<u8>,
    length: u64,
    lives: PhantomData<&'a [AtomicU64]>,
}

// SAFETY: the memory is reached as atomics only.
unsafe impl Send for Memory<'_> {}
// SAFETY: as above.
unsafe impl Sync for Memory<'_> {}

impl<'a> Memory<'a> {
    /// The region of `length` bytes from `base` on; `None` where `base` is not at a page boundary.
    ///
    /// # Safety
    /// For all of `'a` the memory is mapped readable and writable as ordinary write-back memory,
    /// and no one in this program reads or writes it other than by atomics.
    #[must_use]
    pub unsafe fn new(base: NonNull<u8>, length: u64) -> Option<Self> {
        base.addr()
            .get()
            .is_multiple_of(PAGE as usize)
            .then_some(Self {
                base,
                length,
                lives: PhantomData,
            })
    }

    /// These pages.
    #[must_use]
    pub const fn from_pages(pages: &'a [Page]) -> Self {
        Self {
            base: NonNull::from_ref(pages).cast(),
            length: size_of_val(pages) as u64,
            lives: PhantomData,
        }
    }

    /// Bytes of the region.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// What is at `offset`; `None` where it does not lie in the region or is not aligned.
    #[must_use]
    pub fn get<T: Shared>(&self, offset: u64) -> Option<&'a T> {
        self.slice::<T>(offset, 1)?.first()
    }

    /// The `count` that begin at `offset`; `None` where they do not lie in the region or are not
    /// aligned.
    #[must_use]
    pub fn slice<T: Shared>(&self, offset: u64, count: usize) -> Option<&'a [T]> {
        let bytes = (size_of::<T>() as u64).checked_mul(count as u64)?;
        if offset.checked_add(bytes)? > self.length
            || !offset.is_multiple_of(align_of::<T>() as u64)
        {
            return None;
        }
        // SAFETY: the offset is inside the region.
        let first = unsafe { self.base.byte_add(offset as usize) };
        // SAFETY: inside the region and aligned, since the region begins at a page boundary and no
        // atomic asks for more; the region is mapped for `'a`, and `T` is made of atomics, which
        // may be written by others while there is a shared reference to them.
        Some(unsafe { NonNull::slice_from_raw_parts(first.cast::<T>(), count).as_ref() })
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn what_is_not_in_the_region_or_not_aligned_is_not_given() {
        let pages = [const { Page::new() }; 2];
        let memory = Memory::from_pages(&pages);
        assert_eq!(memory.length(), 8192);
        assert!(memory.get::<AtomicU64>(8184).is_some());
        assert!(memory.get::<AtomicU64>(8192).is_none());
        assert!(memory.get::<AtomicU64>(4).is_none());
        assert!(memory.get::<AtomicU32>(4).is_some());
        assert!(memory.get::<AtomicU8>(u64::MAX).is_none());
        assert!(memory.slice::<AtomicU64>(0, 1025).is_none());
        assert!(memory.slice::<AtomicU64>(8, usize::MAX).is_none());
        memory.get::<AtomicU16>(2).unwrap().store(0xabcd, Relaxed);
        assert_eq!(pages[0].0[0].load(Relaxed), 0xabcd_0000);
    }
}
