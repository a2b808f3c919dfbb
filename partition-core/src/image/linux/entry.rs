//! The way from the state in which Baton starts a processor to the one in which Linux expects it.

use handoff_abi::FRAME_SIZE;

use crate::descriptors::{CODE_SEGMENT, DATA_SEGMENT};

/// The stack lies below the descriptors and grows down towards the code.
pub(super) const STACK: u64 = GDT as u64;
const GDT: usize = 0xe00;
const GDT_POINTER: usize = 0xf00;
const ZERO_PAGE: usize = 0xf10;
const KERNEL: usize = 0xf18;

/// The selectors that the boot protocol calls `__BOOT_CS` and `__BOOT_DS`.
const BOOT_CS: usize = 0x10;
const BOOT_DS: usize = 0x18;

/// The page that a processor comes to first, for the page at `at`: code that is entered at its start
/// with RDI = `at`, loads the protocol's descriptors, and jumps to `kernel` with RSI = `zero_page`.
pub(super) fn page(at: u64, zero_page: u64, kernel: u64) -> [u8; FRAME_SIZE as usize] {
    let mut page = [0; FRAME_SIZE as usize];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (to, from) in page.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    };
    put(0, arch::code());
    put(GDT.saturating_add(BOOT_CS), &CODE_SEGMENT.to_le_bytes());
    put(GDT.saturating_add(BOOT_DS), &DATA_SEGMENT.to_le_bytes());
    put(GDT_POINTER, &31_u16.to_le_bytes());
    put(
        GDT_POINTER.saturating_add(2),
        &at.saturating_add(GDT as u64).to_le_bytes(),
    );
    put(ZERO_PAGE, &zero_page.to_le_bytes());
    put(KERNEL, &kernel.to_le_bytes());
    page
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "code that runs elsewhere is copied from here")]
mod arch {
    use super::{BOOT_CS, BOOT_DS, GDT_POINTER, KERNEL, ZERO_PAGE};

    core::arch::global_asm!(
        ".pushsection .text.baton_partition_core.linux_entry, \"ax\"",
        ".global baton_linux_entry_start, baton_linux_entry_end",
        "baton_linux_entry_start:",
        "cli",
        "cld",
        "lgdtq {gdt}(%rdi)",
        "movl ${data}, %eax",
        "movl %eax, %ds",
        "movl %eax, %es",
        "movl %eax, %fs",
        "movl %eax, %gs",
        "movl %eax, %ss",
        "movq {zero_page}(%rdi), %rsi",
        "movq {kernel}(%rdi), %rax",
        "pushq ${code}",
        "pushq %rax",
        "lretq",
        "baton_linux_entry_end:",
        ".popsection",
        gdt = const GDT_POINTER,
        zero_page = const ZERO_PAGE,
        kernel = const KERNEL,
        code = const BOOT_CS,
        data = const BOOT_DS,
        options(att_syntax),
    );

    unsafe extern "C" {
        static baton_linux_entry_start: u8;
        static baton_linux_entry_end: u8;
    }

    pub(super) fn code() -> &'static [u8] {
        let start = &raw const baton_linux_entry_start;
        let length = (&raw const baton_linux_entry_end)
            .addr()
            .saturating_sub(start.addr());
        // SAFETY: the assembler put the bytes from the start label to the end label side by side
        // into a section that is never written.
        unsafe { core::slice::from_raw_parts(start, length) }
    }
}
