//! How a kernel comes into being: through PVH or Multiboot2 on the first processor of a fresh machine,
//! or entered in 64-bit mode as a successor.

mod arch;
mod info;
mod note;

pub use info::{BootInfo, NoBootInfo};
pub use note::BatonNote;

use handoff_abi::PhysAddr;

/// Link address less physical address of an image that a boot loader loaded.
pub const LOAD_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// How the kernel was entered. In both cases interrupts are off, the stack is the image's boot
/// stack, and page tables of somebody else's are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// By a boot loader. The first 4 GiB are mapped at their physical addresses and the image at
    /// its link address.
    Loaded {
        /// What Multiboot2 has in EAX; zero through the PVH note.
        loader: u32,
        /// Where the start info of PVH, or the boot information of Multiboot2 is.
        information: PhysAddr,
    },
    /// At `_successor_start`.
    Successor {
        /// RDI at entry: where the handoff is said to be.
        argument: u64,
        /// RSI at entry: where a word can be left for the prime.
        receipt: u64,
    },
}

/// Where the parts of the kernel's image are linked. `text`, `rodata` and `data` (which includes
/// .bss) begin and end at page boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// First address of the image and of its code.
    pub start: u64,
    /// End of the code, start of the read-only data.
    pub text_end: u64,
    /// End of the read-only data, start of the data.
    pub rodata_end: u64,
    /// The page below the boot stack, which stays unmapped.
    pub stack_guard: u64,
    /// End of the image.
    pub end: u64,
    /// The code of Baton's libraries: start and end.
    pub baton_text: (u64, u64),
}

impl Image {
    /// This kernel's.
    #[must_use]
    pub fn own() -> Self {
        arch::image()
    }

    /// Bytes of the image in memory.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.end - self.start
    }
}

/// Names the function that the kernel begins in: `fn(Entry) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn kernel_entry(kind: u64, argument: u64, other: u64) -> ! {
            let main: fn($crate::boot::Entry) -> ! = $main;
            main(if kind == 0 {
                $crate::boot::Entry::Loaded {
                    loader: other as u32,
                    information: $crate::PhysAddr(argument),
                }
            } else {
                $crate::boot::Entry::Successor {
                    argument,
                    receipt: other,
                }
            })
        }
    };
}
