//! The machine itself behind the traits: registers by volatile access, and table memory in a
//! kernel's own mapping. The only module of the crate with unsafe code.
#![expect(
    unsafe_code,
    reason = "device registers and memory at addresses that the kernel chose"
)]

use core::ptr::NonNull;

use volatile::VolatilePtr;

use crate::RegisterIo;

/// A unit's registers, mapped uncached.
///
/// An access outside the window does not happen: it reads as all ones, as an absent device does.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the value is the only way to the registers (the contract of `new`), and which processor
// accesses them makes no difference to the unit.
unsafe impl Send for Mmio {}

impl Mmio {
    /// The registers at `base`, `length` bytes.
    ///
    /// # Safety
    /// For as long as the value exists, `base` to `base + length` is mapped, readable, writable
    /// and uncached, to the register window of one remapping unit; `base` is a multiple of 8; and
    /// nothing else in this kernel accesses the window. What the unit then does to memory is the
    /// caller's affair too: a unit that is told to use tables elsewhere than in memory that was
    /// set aside for it can let devices overwrite anything.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length }
    }

    fn register<T>(&self, offset: u32) -> Option<NonNull<T>> {
        let offset = offset as usize;
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.length || !offset.is_multiple_of(size_of::<T>()) {
            return None;
        }
        // SAFETY: `offset` is below `length`, so the sum stays in the mapped window.
        Some(unsafe { self.base.add(offset) }.cast())
    }

    fn read<T: Copy>(&self, offset: u32, absent: T) -> T {
        self.register(offset).map_or(absent, |at| {
            // SAFETY: `register` made sure that the pointer is aligned (the base is, by contract)
            // and in the window, which is mapped and accessed through this value alone.
            let register = unsafe { VolatilePtr::new(at) };
            register.read()
        })
    }

    fn write<T: Copy>(&self, offset: u32, value: T) {
        if let Some(at) = self.register(offset) {
            // SAFETY: as in `read`.
            let register = unsafe { VolatilePtr::new(at) };
            register.write(value);
        }
    }
}

impl RegisterIo for Mmio {
    fn read32(&mut self, offset: u32) -> u32 {
        self.read(offset, u32::MAX)
    }

    fn write32(&mut self, offset: u32, value: u32) {
        self.write(offset, value);
    }

    fn read64(&mut self, offset: u32) -> u64 {
        self.read(offset, u64::MAX)
    }

    fn write64(&mut self, offset: u32, value: u64) {
        self.write(offset, value);
    }
}

#[cfg(target_arch = "x86_64")]
pub use direct::{CacheFlush, DirectMemory};

// The instructions that write cache lines back are those of this architecture.
#[cfg(target_arch = "x86_64")]
mod direct {
    use core::arch::asm;
    use core::ptr::NonNull;

    use handoff_abi::{PhysAddr, PhysRange};
    use volatile::VolatilePtr;

    use crate::TableMemory;

    /// How cache lines are written back (Intel SDM volume 2, CLFLUSH and CLFLUSHOPT).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[cfg_attr(feature = "defmt", derive(defmt::Format))]
    pub enum CacheFlush {
        /// CLFLUSH: CPUID.01H:EDX bit 19. Every x86-64 processor has it.
        Clflush,
        /// CLFLUSHOPT: CPUID.07H.0:EBX bit 23. Faster, for several lines go at once.
        ClflushOpt,
    }

    /// Table memory that the kernel has mapped in one piece.
    ///
    /// An access outside the range does not happen: it reads as 0, which in every table is an
    /// entry that is not present.
    #[derive(Debug)]
    pub struct DirectMemory {
        range: PhysRange,
        base: NonNull<u8>,
        flush: CacheFlush,
    }

    // SAFETY: the value is the only way to the memory (the contract of `new`), which is the same
    // from every processor.
    unsafe impl Send for DirectMemory {}

    impl DirectMemory {
        /// The smallest cache line there is; to flush a larger one twice does no harm.
        const LINE: u64 = 64;

        /// The memory `range`, mapped at `base`. For a kernel with a linear mapping of memory,
        /// `base` is the range's physical base plus the mapping's offset.
        ///
        /// # Safety
        /// For as long as the value exists, the virtual addresses from `base` on, as many bytes as
        /// `range` has, are mapped to `range`, readable, writable and cached write-back; both are
        /// multiples of 4096; no Rust reference to any of it exists; and no one but the unit, and
        /// other stewards after this one, accesses it. The processor has the instruction that
        /// `flush` names.
        #[must_use]
        pub const unsafe fn new(range: PhysRange, base: NonNull<u8>, flush: CacheFlush) -> Self {
            Self { range, base, flush }
        }

        fn word(&self, at: PhysAddr) -> Option<VolatilePtr<'_, u64>> {
            // An address below the range wraps to an offset above any range's length.
            let offset = at.0.wrapping_sub(self.range.base().0);
            if !at.is_aligned_to(8) || offset >= self.range.length().saturating_sub(7) {
                return None;
            }
            let offset = usize::try_from(offset).ok()?;
            // SAFETY: `offset` and the 8 bytes from there are below the length of the mapped range.
            let pointer = unsafe { self.base.add(offset) }.cast();
            // SAFETY: the pointer is aligned, since base and offset are, and lies in memory that
            // is mapped and accessed through this value alone.
            Some(unsafe { VolatilePtr::new(pointer) })
        }

        fn write_back_line(&self, at: PhysAddr) {
            let Some(line) = self.word(at) else {
                return;
            };
            let line = line.as_raw_ptr().as_ptr();
            match self.flush {
                // SAFETY: the address is mapped, and writing a line back changes no memory as the
                // processor sees it.
                CacheFlush::Clflush => unsafe {
                    asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
                },
                // SAFETY: as above; that the processor has the instruction is the contract of
                // `new`.
                CacheFlush::ClflushOpt => unsafe {
                    asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
                },
            }
        }
    }

    impl TableMemory for DirectMemory {
        fn load(&self, at: PhysAddr) -> u64 {
            self.word(at).map_or(0, VolatilePtr::read)
        }

        fn store(&mut self, at: PhysAddr, value: u64) {
            if let Some(word) = self.word(at) {
                word.write(value);
            }
        }

        fn write_back(&mut self, at: PhysAddr, length: u64) {
            let asked = PhysRange::from_bounds(at, PhysAddr(at.0.saturating_add(length)));
            let lines = asked.intersection(self.range);
            let mut line = lines.base().0 & !(Self::LINE - 1);
            let end = lines.end().0;
            while line < end {
                self.write_back_line(PhysAddr(line));
                line += Self::LINE;
            }
            // SAFETY: a fence only orders; it waits here until the lines are written back.
            unsafe { asm!("sfence", options(nostack, preserves_flags)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use handoff_abi::{PhysAddr, PhysRange};

    use super::*;
    use crate::TableMemory;

    #[test]
    fn accesses_stay_in_the_register_window() {
        let mut window = [0x1111_1111_2222_2222_u64, 0, 0, 0];
        // SAFETY: the array is aligned, as long as said, and not used otherwise until the value
        // is gone.
        let mut mmio = unsafe { Mmio::new(NonNull::from(&mut window).cast(), 32) };
        assert_eq!(mmio.read64(0), 0x1111_1111_2222_2222);
        assert_eq!(mmio.read32(4), 0x1111_1111);
        mmio.write32(12, 7);
        assert_eq!(mmio.read64(8), 7 << 32);
        mmio.write64(32, 1);
        mmio.write64(28, 1);
        assert_eq!(mmio.read64(32), u64::MAX);
        assert_eq!(mmio.read64(u32::MAX - 7), u64::MAX);
        assert_eq!(mmio.read32(2), u32::MAX);
        assert_eq!(window, [0x1111_1111_2222_2222, 7 << 32, 0, 0]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn accesses_stay_in_the_table_memory() {
        let mut frame = std::boxed::Box::new([0_u64; 512]);
        let range = PhysRange::new(PhysAddr(0x8000), 4096).unwrap();
        let base = NonNull::from(&mut *frame).cast();
        // SAFETY: the frame is as long as the range and not used otherwise until the value is
        // gone; its base being no multiple of 4096 matters to no access made here. CLFLUSH is in
        // every x86-64 processor.
        let mut memory = unsafe { DirectMemory::new(range, base, CacheFlush::Clflush) };
        memory.store(PhysAddr(0x8ff8), 5);
        memory.store(PhysAddr(0x9000), 6);
        memory.store(PhysAddr(0x7ff8), 6);
        memory.store(PhysAddr(0x8004), 6);
        memory.write_back(PhysAddr(0x8000), 4096);
        memory.write_back(PhysAddr(0x8ff8), u64::MAX);
        assert_eq!(memory.load(PhysAddr(0x8ff8)), 5);
        assert_eq!(memory.load(PhysAddr(0x9000)), 0);
        assert_eq!(frame[511], 5);
        assert_eq!(frame.iter().sum::<u64>(), 5);
    }
}
