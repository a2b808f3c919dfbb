//! Memory-mapped registers, and the window through which all physical memory is reached.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use handoff_abi::PhysAddr;

/// Virtual less physical address of the window that [`pointer`] answers from.
static WINDOW: AtomicU64 = AtomicU64::new(0);

/// Says where the kernel's page tables map physical memory: address 0 would be at `offset`.
///
/// # Safety
/// The page tables in force map there all the memory and registers that the kernel uses, and no
/// pointer that was made with another offset is used again.
pub unsafe fn set_window(offset: u64) {
    WINDOW.store(offset, Ordering::Relaxed);
}

/// The offset of the window.
#[must_use]
pub fn window() -> u64 {
    WINDOW.load(Ordering::Relaxed)
}

/// Where `address` is in the window. The pointer may be used only where the kernel's page tables
/// map that address; null never is.
#[must_use]
pub fn pointer(address: PhysAddr) -> NonNull<u8> {
    let virt = window().wrapping_add(address.0) as usize;
    NonNull::new(core::ptr::with_exposed_provenance_mut(virt)).unwrap_or(NonNull::dangling())
}

/// A window of device registers. Every access is a single volatile one of the width it names, in
/// little-endian order as PCI and the APICs have it.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the registers belong to whoever holds the value, on whichever processor.
unsafe impl Send for Mmio {}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $bytes:literal) => {
        #[doc = concat!("Reads ", $bytes, ".")]
        ///
        /// # Panics
        /// Where the register is not inside the window or not at a multiple of its width.
        #[must_use]
        pub fn $read(&self, offset: usize) -> $type {
            let register = self.register::<$type>(offset);
            // SAFETY: `register` is inside the window, aligned, and `new` was promised that the
            // window is mapped device memory.
            unsafe { register.read_volatile() }
        }

        #[doc = concat!("Writes ", $bytes, ".")]
        ///
        /// # Panics
        /// Where the register is not inside the window or not at a multiple of its width.
        pub fn $write(&self, offset: usize, value: $type) {
            let register = self.register::<$type>(offset);
            // SAFETY: as for reading; `new` was promised that a write harms no memory.
            unsafe { register.write_volatile(value) }
        }
    };
}

impl Mmio {
    /// The registers of `length` bytes from `base` on, through the window.
    ///
    /// # Safety
    /// The kernel's page tables map them uncached for as long as the value lives; they are a
    /// device's, never memory that Rust knows as an object; and the device cannot write the
    /// kernel's memory other than as the caller of [`Mmio`] sets it up to.
    #[must_use]
    pub unsafe fn new(base: PhysAddr, length: usize) -> Self {
        Self {
            base: pointer(base),
            length,
        }
    }

    /// Bytes of the window.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// The part of `length` bytes from `offset` on, as a window of its own; `None` where it is not
    /// inside this one.
    #[must_use]
    pub fn part(&self, offset: usize, length: usize) -> Option<Self> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: `offset` is inside the mapped window.
        let base = unsafe { self.base.byte_add(offset) };
        Some(Self { base, length })
    }

    fn register<T>(&self, offset: usize) -> NonNull<T> {
        assert!(
            offset.is_multiple_of(size_of::<T>())
                && offset
                    .checked_add(size_of::<T>())
                    .is_some_and(|end| end <= self.length),
            "register {offset:#x} is not in a window of {:#x} bytes",
            self.length
        );
        // SAFETY: just checked to be inside the mapped window.
        unsafe { self.base.byte_add(offset) }.cast()
    }

    access!(read8, write8, u8, "1 byte");
    access!(read16, write16, u16, "2 bytes");
    access!(read32, write32, u32, "4 bytes");
    access!(read64, write64, u64, "8 bytes in one access");
}
