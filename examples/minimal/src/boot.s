# PVH leaves the processor in 32-bit protected mode without paging; EBX is the start info.
.section .note.pvh, "a", @note
    .long 4, 4, 18          # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

.section .text.boot, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    mov esp, offset boot_stack_top
    # Identity map of the first 4 GiB in 2 MiB pages.
    mov eax, offset directories
    or eax, 3
    mov ecx, 0
1:  mov [pointers + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 1b
    mov eax, 0x83
    mov ecx, 0
2:  mov [directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 2b
    mov eax, offset pointers
    or eax, 3
    mov [pml4], eax
    mov eax, cr4
    or eax, 0x620           # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, 0x900          # EFER.LME, NXE
    xor edx, edx
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp 8, offset long_mode
.code64
long_mode:
    mov eax, 16
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov rsp, offset boot_stack_top
    jmp {prime}

.section .data.boot, "aw"
.balign 8
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .short 23
    .quad gdt

.section .bss.boot, "aw", @nobits
.balign 4096
.global pml4
pml4: .skip 0x1000
pointers: .skip 0x1000
directories: .skip 0x4000
    .skip 0x10000
boot_stack_top:
