//! One processor: its descriptor tables, its control registers, and how it waits.

use core::pin::Pin;

pub use x86_64::instructions::interrupts::without_interrupts;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::instructions::{hlt, interrupts};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::interrupts::{DOUBLE_FAULT_STACK, MACHINE_CHECK_STACK, NMI_STACK, load};
use crate::mark::{WAIT, WAITED, mark};

const STACK: usize = 8192;

/// What the processor itself reads in the course of its work: one for each processor, in memory
/// that stays for as long as the processor runs.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct PerCpu {
    stacks: [[u8; STACK]; 3],
    task: TaskStateSegment,
    descriptors: GlobalDescriptorTable,
    code: SegmentSelector,
    data: SegmentSelector,
    task_selector: SegmentSelector,
}

impl PerCpu {
    /// One that is not in use yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            stacks: [[0; STACK]; 3],
            task: TaskStateSegment::new(),
            descriptors: GlobalDescriptorTable::new(),
            code: SegmentSelector::NULL,
            data: SegmentSelector::NULL,
            task_selector: SegmentSelector::NULL,
        }
    }
}

impl Default for PerCpu {
    fn default() -> Self {
        Self::new()
    }
}

/// Brings the processor that calls this into the kernel's state: its own descriptor tables, the
/// shared interrupt table, write protection and no-execute on, machine checks on, interrupts off.
/// Its local APIC is enabled by [`apic::enable_this`](crate::apic::enable_this).
///
/// # Safety
/// `per_cpu` stays where it is for good and is used for no other processor; the page tables in
/// force are the kernel's own, and the stack is the caller's.
pub unsafe fn init_this(per_cpu: &'static mut PerCpu) {
    interrupts::disable();
    for (index, stack) in [DOUBLE_FAULT_STACK, NMI_STACK, MACHINE_CHECK_STACK]
        .into_iter()
        .zip(&per_cpu.stacks)
    {
        let top = VirtAddr::from_ptr(stack.as_ptr_range().end);
        per_cpu.task.interrupt_stack_table[usize::from(index)] = top;
    }
    let task: *const TaskStateSegment = &raw const per_cpu.task;
    per_cpu.descriptors = GlobalDescriptorTable::new();
    per_cpu.code = per_cpu
        .descriptors
        .append(Descriptor::kernel_code_segment());
    per_cpu.data = per_cpu
        .descriptors
        .append(Descriptor::kernel_data_segment());
    // SAFETY: the segment lives as long as the tables, in the same 'static value, and nothing
    // writes it any more.
    let task = unsafe { Descriptor::tss_segment_unchecked(task) };
    per_cpu.task_selector = per_cpu.descriptors.append(task);

    let per_cpu: &'static PerCpu = Pin::into_ref(Pin::new(per_cpu)).get_ref();
    per_cpu.descriptors.load();
    // SAFETY: the selector is of the table just loaded: 64-bit code.
    unsafe { CS::set_reg(per_cpu.code) };
    // SAFETY: likewise, data.
    unsafe { SS::set_reg(per_cpu.data) };
    // SAFETY: likewise.
    unsafe { DS::set_reg(per_cpu.data) };
    // SAFETY: likewise.
    unsafe { ES::set_reg(per_cpu.data) };
    // SAFETY: nothing here is addressed through FS.
    unsafe { FS::set_reg(SegmentSelector::NULL) };
    // SAFETY: nothing here is addressed through GS.
    unsafe { GS::set_reg(SegmentSelector::NULL) };
    // SAFETY: the selector is of the task segment just appended, which no processor uses yet.
    unsafe { load_tss(per_cpu.task_selector) };
    load();

    // SAFETY: the kernel's own tables grant each page what is done with it, so write protection
    // and no-execute change nothing for correct code.
    unsafe { Cr0::update(|flags| *flags |= Cr0Flags::WRITE_PROTECT) };
    // SAFETY: as above.
    unsafe { Efer::update(|flags| *flags |= EferFlags::NO_EXECUTE_ENABLE) };
    // SAFETY: the interrupt table has an entry for machine checks.
    unsafe { Cr4::update(|flags| *flags |= Cr4Flags::MACHINE_CHECK_EXCEPTION) };
}

/// Halts until an interrupt arrives, unless `ready` says that there is work. Interrupts are off
/// while `ready` runs, and the processor goes to sleep in the same instant as they go on, so no
/// interrupt that makes work can slip in between.
pub fn wait_for_interrupt(ready: impl FnOnce() -> bool) {
    interrupts::disable();
    if ready() {
        interrupts::enable();
    } else {
        mark::<WAIT>();
        interrupts::enable_and_hlt();
        mark::<WAITED>();
    }
}

/// Halts for good, interrupts off. An NMI is still answered.
pub fn halt_forever() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// The id in the local APIC of the processor that calls this, as CPUID has it (8 bits).
#[must_use]
pub fn apic_id() -> handoff_abi::ApicId {
    handoff_abi::ApicId(core::arch::x86_64::__cpuid(1).ebx >> 24)
}
