//! The entry stubs and the symbols of the linker script.

use core::arch::global_asm;

use super::{Image, LOAD_OFFSET};

// PVH enters in 32-bit protected mode, paging off, with EBX at the start info (Xen, "x86/HVM direct
// boot ABI"), and so does Multiboot2 with EBX at its boot information and EAX telling that it is that
// (Multiboot2 Specification 2.0, section 3.2). The stub fills page tables that map the first 4 GiB at their physical addresses and
// the first 2 GiB at LOAD_OFFSET as well, and goes on in 64-bit mode at the link address. The code is
// linked high and runs low until then, hence `- {offset}`; the sum wraps to the physical address.
global_asm!(
    r#"
    .pushsection .note.Xen, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_start - {offset}
    .popsection

    // Magic, i386, length, checksum; the entry, by its physical address; the end.
    .pushsection .multiboot2, "a"
    .balign 8
multiboot2_header:
    .long 0xe85250d6
    .long 0
    .long multiboot2_header_end - multiboot2_header
    .long 0x100000000 - 0xe85250d6 - (multiboot2_header_end - multiboot2_header)
    .word 3, 0
    .long 12
    .long multiboot2_start - {offset}
    .balign 8
    .word 0, 0
    .long 8
multiboot2_header_end:
    .popsection

    .pushsection .bss.boot_tables, "aw", @nobits
    .balign 4096
boot_pml4:
    .skip 4096
boot_pdpt_low:
    .skip 4096
boot_pdpt_high:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .popsection

    .pushsection .rodata.boot_gdt, "a"
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_pointer:
    .word boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt - {offset}
    .popsection

    .pushsection .text.boot, "ax"
    .code32
    .global pvh_start
pvh_start:
    xorl %eax, %eax
multiboot2_start:
    cli
    cld
    movl %eax, %ebp
    movl %ebx, %esi
    movl $(boot_stack_top - {offset}), %esp

    movl $(boot_pd - {offset}), %edi
    movl $0x83, %eax
    movl $2048, %ecx
2:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b

    movl $(boot_pdpt_low - {offset}), %edi
    movl $(boot_pd - {offset} + 3), %eax
    movl $4, %ecx
2:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b

    movl $(boot_pdpt_high - {offset}), %edi
    movl $(boot_pd - {offset} + 3), %eax
    movl %eax, 510*8(%edi)
    addl $4096, %eax
    movl %eax, 511*8(%edi)

    movl $(boot_pml4 - {offset}), %edi
    movl $(boot_pdpt_low - {offset} + 3), %eax
    movl %eax, (%edi)
    movl $(boot_pdpt_high - {offset} + 3), %eax
    movl %eax, 511*8(%edi)
    movl %edi, %cr3

    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80010001, %eax
    movl %eax, %cr0

    lgdt (boot_gdt_pointer - {offset})
    pushl $8
    pushl $(2f - {offset})
    lretl
    .code64
2:  movabsq $3f, %rax
    jmpq *%rax
3:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movabsq $boot_stack_top, %rsp
    movl %ebp, %edx
    xorl %ebp, %ebp
    movl %esi, %esi
    xorl %edi, %edi
    call kernel_entry
    ud2

    .global _successor_start
_successor_start:
    cli
    cld
    movabsq $boot_stack_top, %rsp
    xorl %ebp, %ebp
    movq %rsi, %rdx
    movq %rdi, %rsi
    movl $1, %edi
    call kernel_entry
    ud2
    .popsection
    "#,
    offset = const LOAD_OFFSET,
    options(att_syntax)
);

unsafe extern "C" {
    static image_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static boot_stack_guard: u8;
    static image_end: u8;
    static baton_text_start: u8;
    static baton_text_end: u8;
    /// The 64-bit entry.
    pub(super) fn _successor_start();
}

macro_rules! address {
    ($symbol:ident) => {
        (&raw const $symbol).addr() as u64
    };
}

pub(super) fn image() -> Image {
    Image {
        start: address!(image_start),
        text_end: address!(text_end),
        rodata_end: address!(rodata_end),
        stack_guard: address!(boot_stack_guard),
        end: address!(image_end),
        baton_text: (address!(baton_text_start), address!(baton_text_end)),
    }
}
