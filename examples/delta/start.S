/* Where processors come to delta, and how exceptions leave it. */

/* What the loader looks for: struct baton_note of baton.h. */
	.section .note.baton, "a", @note
	.balign 4
	.long 6, 24, 1
	.asciz "Baton"
	.balign 4
	.short 0, 2
	.long 0
	.quad 1				/* BATON_FEATURE_ADOPT_DEVICES */
	.quad delta_entry

	.text
/* The first processor: RDI is the handoff, RSI the receipt (docs/entry.md). */
	.global delta_entry
delta_entry:
	lea	boot_stack_top(%rip), %rsp
	xor	%ebp, %ebp
	call	delta
	ud2

/* A processor that was claimed out of the park area: RDI is its number, RSP its stack. */
	.global worker_entry
worker_entry:
	xor	%ebp, %ebp
	call	worker
	ud2

/* load_descriptors(gdt pointer, idt pointer): reloads all that came with the old tables. */
	.global load_descriptors
load_descriptors:
	lgdt	(%rdi)
	lidt	(%rsi)
	mov	$0x10, %eax
	mov	%eax, %ss
	mov	%eax, %ds
	mov	%eax, %es
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	pop	%rax
	push	$0x08
	push	%rax
	lretq

/* Every exception is the end. Some push an error code, so the vector is told by where it came. */
	.balign 16
	.global exception_stubs
exception_stubs:
	vector = 0
	.rept 32
	.balign 16
	push	$vector
	jmp	exception_common
	vector = vector + 1
	.endr
exception_common:
	cld
	mov	(%rsp), %rdi
	mov	8(%rsp), %rsi		/* RIP, or the error code */
	mov	16(%rsp), %rdx		/* CS, or RIP */
	and	$-16, %rsp
	call	exception
	ud2

	.bss
	.balign 16
	.skip 16384
boot_stack_top:

	.section .note.GNU-stack, "", @progbits
