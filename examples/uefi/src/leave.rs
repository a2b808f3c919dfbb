//! From 64-bit mode into the kernel: in 32-bit protected mode without paging, as Multiboot2 prescribes
//! (Multiboot2 Specification 2.0, section 3.2).

use core::arch::{asm, global_asm};
use core::slice;

use crate::memory::{NoMemory, Pages};

// Runs from a page below 4 GiB that is mapped at its physical address, so that it may switch paging
// off under itself. EDI: where to, ESI: the boot information, EDX: what EAX is to hold.
global_asm!(
    r#"
    .pushsection .text.leave, "ax"
    .global leave_start
    .global leave_end
    .code32
leave_start:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl %edx, %ebp
    movl $0xc0000080, %ecx
    rdmsr
    andl $0xfffffeff, %eax
    wrmsr
    xorl %eax, %eax
    movl %eax, %cr4
    movl %ebp, %eax
    movl %esi, %ebx
    jmp *%edi
leave_end:
    .code64
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static leave_start: u8;
    static leave_end: u8;
}

/// What EAX holds when a Multiboot2 loader enters the kernel.
const MAGIC: u32 = 0x36d7_6289;

/// Nothing, flat 32-bit code, flat data.
const DESCRIPTORS: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Where the code begins in the page; the descriptors lie in front of it.
const CODE: usize = 64;

/// Everything for the last step, so that it needs nothing of firmware's.
pub(crate) struct Jump {
    page: usize,
    entry: u32,
}

impl Jump {
    /// A page with descriptors and code.
    pub(crate) fn prepare(entry: u32) -> Result<Self, NoMemory> {
        let (start, end) = (&raw const leave_start, &raw const leave_end);
        let length = end.addr() - start.addr();
        // SAFETY: the two symbols are the ends of the code above, which is never written.
        let code = unsafe { slice::from_raw_parts(start, length) };
        let mut page = Pages::code(CODE + length)?;
        for (place, descriptor) in page.bytes().chunks_exact_mut(8).zip(DESCRIPTORS) {
            place.copy_from_slice(&descriptor.to_le_bytes());
        }
        page.bytes()[CODE..CODE + length].copy_from_slice(code);
        Ok(Self {
            page: page.base(),
            entry,
        })
    }

    /// Enters the kernel with the boot information at `information`, or, where the memory map is not
    /// in it, as no loader does, so that it refuses.
    pub(crate) fn enter(self, information: u32, complete: bool) -> ! {
        let pointer = Pointer {
            limit: (size_of_val(&DESCRIPTORS) - 1) as u16,
            base: self.page as u64,
        };
        let magic = if complete { MAGIC } else { 0 };
        // SAFETY: boot services have ended and interrupts go off first, so nothing needs firmware's
        // descriptors again; selector 8 is the 32-bit code of the page's own table, and the page is
        // mapped at its physical address and may be executed.
        unsafe {
            asm!(
                "cli",
                "lgdt [{pointer}]",
                "push 8",
                "push {code}",
                "retfq",
                pointer = in(reg) &raw const pointer,
                code = in(reg) self.page + CODE,
                in("edi") self.entry,
                in("esi") information,
                in("edx") magic,
                options(noreturn)
            )
        }
    }
}

/// What LGDT reads.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}
