//! The interrupt descriptor table: exceptions print and halt, every other vector counts, calls its
//! handler if it has one, and is acknowledged.

use core::arch::global_asm;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::apic;
use crate::console::print_last_words;

/// The first vector that is not an exception's (Intel SDM volume 3, section 7.2).
pub const FIRST_VECTOR: u8 = 32;
/// The spurious vector, which is not acknowledged (Intel SDM volume 3, section 12.9).
pub const SPURIOUS: u8 = 0xff;
const NMI: u64 = 2;
const MACHINE_CHECK: u64 = 18;

/// Stacks of the interrupt stack table.
pub const DOUBLE_FAULT_STACK: u16 = 0;
/// As [`DOUBLE_FAULT_STACK`].
pub const NMI_STACK: u16 = 1;
/// As [`DOUBLE_FAULT_STACK`].
pub const MACHINE_CHECK_STACK: u16 = 2;

/// What was interrupted.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    /// R15 to RAX, as pushed.
    pub registers: [u64; 15],
    /// The vector.
    pub vector: u64,
    /// The error code, or 0.
    pub error: u64,
    /// Where it was.
    pub rip: u64,
    /// Its code segment.
    pub cs: u64,
    /// Its flags.
    pub rflags: u64,
    /// Its stack.
    pub rsp: u64,
    /// Its stack segment.
    pub ss: u64,
}

// One stub of 16 bytes for each vector pushes an error code where the processor has not, and the
// vector. The processor has aligned the stack to 16 before it pushed 5 words; with 2 more and 15
// registers it is aligned again at the call (System V ABI, section 3.2.2).
global_asm!(
    r#"
    .pushsection .text.interrupts, "ax"
    .balign 16
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector < 32 && ((0x60227d00 >> vector) & 1)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr
    .balign 16
interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    call {dispatch}
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq
    .popsection
    "#,
    dispatch = sym dispatch,
    options(att_syntax)
);

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// What runs when an interrupt arrives: with interrupts off, on the stack of what it interrupted.
pub type Handler = fn();
/// What runs when an NMI or a machine check arrives, on a stack of its own. It may come at any
/// point, also inside another handler or while the console is locked: it prints, if at all, by
/// [`print_last_words`].
pub type UrgentHandler = fn(&Frame);

static TABLE: Once<InterruptDescriptorTable> = Once::new();
static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 256];
static URGENT: [AtomicPtr<()>; 2] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 2];

/// Makes the processor that calls this use the table.
pub(crate) fn load() {
    TABLE.call_once(build).load();
}

fn build() -> InterruptDescriptorTable {
    let stub = |vector: u8| {
        VirtAddr::new_truncate((&raw const interrupt_stubs).addr() as u64 + 16 * u64::from(vector))
    };
    let mut table = InterruptDescriptorTable::new();
    macro_rules! exceptions {
        ($($name:ident = $vector:literal $(on $stack:expr)?,)*) => { $({
            // SAFETY: the stub of this vector leaves the stack as the processor has it.
            let options = unsafe { table.$name.set_handler_addr(stub($vector)) };
            let _ = &options;
            // SAFETY: each of these stacks serves one vector alone.
            $( unsafe { options.set_stack_index($stack) }; )?
        })* };
    }
    exceptions! {
        divide_error = 0,
        debug = 1,
        non_maskable_interrupt = 2 on NMI_STACK,
        breakpoint = 3,
        overflow = 4,
        bound_range_exceeded = 5,
        invalid_opcode = 6,
        device_not_available = 7,
        double_fault = 8 on DOUBLE_FAULT_STACK,
        invalid_tss = 10,
        segment_not_present = 11,
        stack_segment_fault = 12,
        general_protection_fault = 13,
        page_fault = 14,
        x87_floating_point = 16,
        alignment_check = 17,
        machine_check = 18 on MACHINE_CHECK_STACK,
        simd_floating_point = 19,
        virtualization = 20,
        cp_protection_exception = 21,
        hv_injection_exception = 28,
        vmm_communication_exception = 29,
        security_exception = 30,
    }
    for vector in FIRST_VECTOR..=u8::MAX {
        // SAFETY: as above.
        unsafe { table[vector].set_handler_addr(stub(vector)) };
    }
    table
}

/// How often `vector` has arrived, on any processor.
#[must_use]
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// How many NMIs have arrived, on any processor.
#[must_use]
pub fn nmi_count() -> u64 {
    count(NMI as u8)
}

/// Sets what runs when `vector` arrives.
///
/// # Panics
/// Where the vector is an exception's.
pub fn set_handler(vector: u8, handler: Option<Handler>) {
    assert!(vector >= FIRST_VECTOR, "vector {vector} is an exception's");
    let pointer = handler.map_or(core::ptr::null_mut(), |handler| handler as *mut ());
    HANDLERS[usize::from(vector)].store(pointer, Ordering::Release);
}

/// Sets what runs when an NMI arrives; without it an NMI is only counted.
pub fn set_nmi_handler(handler: Option<UrgentHandler>) {
    let pointer = handler.map_or(core::ptr::null_mut(), |handler| handler as *mut ());
    URGENT[0].store(pointer, Ordering::Release);
}

/// Sets what runs when a machine check arrives; without it, it prints and halts.
pub fn set_machine_check_handler(handler: Option<UrgentHandler>) {
    let pointer = handler.map_or(core::ptr::null_mut(), |handler| handler as *mut ());
    URGENT[1].store(pointer, Ordering::Release);
}

fn urgent(which: usize) -> Option<UrgentHandler> {
    let pointer = URGENT[which].load(Ordering::Acquire);
    if pointer.is_null() {
        return None;
    }
    // SAFETY: only `set_nmi_handler` and `set_machine_check_handler` store here, and they store
    // functions of this very type.
    Some(unsafe { core::mem::transmute::<*mut (), UrgentHandler>(pointer) })
}

extern "C" fn dispatch(frame: &mut Frame) {
    let vector = (frame.vector & 0xff) as u8;
    COUNTS[usize::from(vector)].fetch_add(1, Ordering::Relaxed);
    if vector < FIRST_VECTOR {
        match (frame.vector, urgent(0), urgent(1)) {
            (NMI, Some(handler), _) | (MACHINE_CHECK, _, Some(handler)) => handler(frame),
            (NMI, None, _) => {}
            _ => exception(frame),
        }
        return;
    }
    let pointer = HANDLERS[usize::from(vector)].load(Ordering::Acquire);
    if !pointer.is_null() {
        // SAFETY: only `set_handler` stores here, and it stores functions of this very type.
        let handler = unsafe { core::mem::transmute::<*mut (), Handler>(pointer) };
        handler();
    }
    if vector != SPURIOUS {
        apic::acknowledge();
    }
}

fn exception(frame: &Frame) -> ! {
    print_last_words(format_args!(
        "@exception vector={} error={:#x} rip={:#x} rsp={:#x} cr2={:#x} rflags={:#x}\n\
         registers (r15 to rax) {:x?}\n",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        Cr2::read_raw(),
        frame.rflags,
        frame.registers,
    ));
    crate::cpu::halt_forever()
}
