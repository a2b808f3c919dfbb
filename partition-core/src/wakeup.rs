//! Processors that wait at a multiprocessor wakeup mailbox, for a kernel that knows nothing of Baton.
//!
//! Such a kernel would start its further processors by INIT, and INIT sends the bootstrap processor
//! back to firmware. Where the MADT has a wakeup structure it does not: each processor waits at a
//! mailbox, and jumps to where the mailbox says once that has its id (ACPI 6.5, section 5.2.12.19).
//! A processor comes here out of the park area and stays until it is woken, or taken. It spins, as
//! the mailbox is only memory; a kernel wakes what it has within seconds of its start.
//!
//! The area lies in memory that the kernel's memory map has as firmware's ([`KIND`]). Its code is
//! left for good by a processor that was woken.

use core::fmt;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use handoff_abi::{ApicId, FRAME_SIZE, PhysAddr, PhysRange};

use crate::cpu::StartState;

/// Bytes of the area: the mailbox's page, and one with code and the processors' blocks.
pub const LENGTH: u64 = 2 * FRAME_SIZE;
/// The area's type in a memory map: firmware's own, ACPI NVS.
pub const KIND: u32 = 4;
/// How many processors can wait.
pub const MOST: usize = 192;

const CODE_OFFSET: usize = FRAME_SIZE as usize;
const BLOCKS_OFFSET: usize = CODE_OFFSET + 0x400;

/// The mailbox: the first half is the kernel's to write, but for the acknowledgement.
#[derive(Debug)]
#[repr(C)]
struct Mailbox {
    command: AtomicU16,
    reserved: AtomicU16,
    apic_id: AtomicU32,
    vector: AtomicU64,
}

/// Where a processor waits, and for which id.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Block {
    mailbox: u64,
    apic_id: u64,
}

const _: () = {
    assert!(offset_of!(Mailbox, command) == 0);
    assert!(offset_of!(Mailbox, apic_id) == 4);
    assert!(offset_of!(Mailbox, vector) == 8);
    assert!(offset_of!(Block, mailbox) == 0);
    assert!(offset_of!(Block, apic_id) == 8);
    assert!(BLOCKS_OFFSET + MOST * size_of::<Block>() <= LENGTH as usize);
};

/// Why there is no such area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum WakeupError {
    /// The area does not begin at a page boundary, or wraps.
    Base(PhysAddr),
    /// More than [`MOST`] processors are to wait.
    TooMany(usize),
}

impl fmt::Display for WakeupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => write!(f, "no processor can wait at {base}"),
            Self::TooMany(count) => write!(f, "{count} processors cannot wait, at most {MOST}"),
        }
    }
}

impl core::error::Error for WakeupError {}

/// The area of one partition.
#[derive(Clone, Copy, Debug)]
pub struct WakeupArea<'a> {
    cpus: &'a [ApicId],
    mailbox: &'a Mailbox,
    physical: PhysAddr,
}

impl<'a> WakeupArea<'a> {
    /// Lays the area down for the processors that are to wait there.
    ///
    /// # Errors
    /// Where it cannot be there, or there are too many processors.
    ///
    /// # Safety
    /// `mapped` is where the [`LENGTH`] bytes at `physical` are mapped, writable, for all of `'a`;
    /// they are the partition's, and nobody uses them yet.
    pub unsafe fn install(
        mapped: NonNull<u8>,
        physical: PhysAddr,
        cpus: &'a [ApicId],
    ) -> Result<Self, WakeupError> {
        if !physical.is_aligned_to(FRAME_SIZE) || PhysRange::new(physical, LENGTH).is_err() {
            return Err(WakeupError::Base(physical));
        }
        if cpus.len() > MOST {
            return Err(WakeupError::TooMany(cpus.len()));
        }
        // SAFETY: the caller's area has LENGTH bytes, is writable and nobody else's.
        unsafe { mapped.write_bytes(0, LENGTH as usize) };
        let code = arch::code();
        // SAFETY: the code's page is inside the area.
        let to = unsafe { mapped.add(CODE_OFFSET) };
        // SAFETY: the code is shorter than what lies before the blocks, and is not in the area.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(code).cast(), code.len()) };
        for (index, cpu) in cpus.iter().enumerate() {
            let block = Block {
                mailbox: physical.0,
                apic_id: cpu.0.into(),
            };
            // SAFETY: there are at most MOST blocks, and all of these are inside the area.
            let at = unsafe { mapped.add(BLOCKS_OFFSET + index * size_of::<Block>()) };
            // SAFETY: the block is inside the caller's area, at a multiple of 16.
            unsafe { at.cast::<Block>().write(block) };
        }
        // SAFETY: the mailbox is at the area's start, aligned, and made of atomics: what the
        // partition writes there is a value whatever it is.
        let mailbox = unsafe { mapped.cast::<Mailbox>().as_ref() };
        Ok(Self {
            cpus,
            mailbox,
            physical,
        })
    }

    /// Where the mailbox is: what the MADT says.
    #[must_use]
    pub const fn mailbox(&self) -> PhysAddr {
        self.physical
    }

    /// The memory of the area.
    #[must_use]
    pub const fn range(&self) -> PhysRange {
        PhysRange::from_bounds(self.physical, PhysAddr(self.physical.0 + LENGTH))
    }

    /// The processor that the kernel asks for and that did not come yet, if it asks for one.
    #[must_use]
    pub fn wanted(&self) -> Option<ApicId> {
        let command = self.mailbox.command.load(Relaxed);
        (command == arch::WAKEUP as u16).then(|| ApicId(self.mailbox.apic_id.load(Relaxed)))
    }

    /// The state in which a processor begins to wait; `None` for one that is not to. The tables map
    /// the area and where the kernel wants its processors, at their physical addresses: for Linux
    /// that is the RAM below 1 MiB.
    #[must_use]
    pub fn start_state(&self, cpu: ApicId, page_table: u64) -> Option<StartState> {
        let index = self.cpus.iter().position(|&other| other == cpu)? as u64;
        let block = BLOCKS_OFFSET as u64 + index * size_of::<Block>() as u64;
        Some(StartState {
            page_table,
            entry: self.physical.0 + CODE_OFFSET as u64,
            // The code has no use for one; the kernel brings its own.
            stack: self.physical.0 + LENGTH,
            argument: self.physical.0 + block,
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use core::mem::offset_of;

    use super::{Block, Mailbox};

    /// The command by which a processor is woken.
    pub(super) const WAKEUP: u32 = 1;

    core::arch::global_asm!(
        ".pushsection .text.baton_partition_core.wakeup, \"ax\"",
        ".global baton_wakeup_start, baton_wakeup_end",
        "baton_wakeup_start:",
        "movq {mailbox}(%rdi), %rbx",
        "movl {wanted}(%rdi), %edx",
        "2:",
        "pause",
        "cmpw ${wakeup}, (%rbx)",
        "jne 2b",
        "cmpl %edx, {apic_id}(%rbx)",
        "jne 2b",
        "movq {vector}(%rbx), %rax",
        // The acknowledgement: the kernel may use the mailbox for the next one.
        "movw $0, (%rbx)",
        "jmpq *%rax",
        "baton_wakeup_end:",
        ".popsection",
        mailbox = const offset_of!(Block, mailbox),
        wanted = const offset_of!(Block, apic_id),
        apic_id = const offset_of!(Mailbox, apic_id),
        vector = const offset_of!(Mailbox, vector),
        wakeup = const WAKEUP,
        options(att_syntax),
    );

    unsafe extern "C" {
        static baton_wakeup_start: u8;
        static baton_wakeup_end: u8;
    }

    pub(super) fn code() -> &'static [u8] {
        let start = &raw const baton_wakeup_start;
        let length = (&raw const baton_wakeup_end).addr() - start.addr();
        // SAFETY: the assembler put the bytes from the start label to the end label side by side
        // into a section that is never written.
        unsafe { core::slice::from_raw_parts(start, length) }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering::{Acquire, Release};
    use std::boxed::Box;
    use std::thread;
    use std::vec::Vec;

    use super::*;

    #[repr(align(4096))]
    struct Memory([u8; LENGTH as usize]);

    const CPUS: [ApicId; 3] = [ApicId(2), ApicId(0x1_0003), ApicId(7)];

    fn area(memory: &mut Memory) -> WakeupArea<'static> {
        let mapped = NonNull::from(&mut memory.0).cast::<u8>();
        let physical = PhysAddr(mapped.as_ptr().addr() as u64);
        // SAFETY: the array is as long as the area, and outlives what the tests do with it.
        unsafe { WakeupArea::install(mapped, physical, &CPUS) }.unwrap()
    }

    static WOKEN: AtomicU32 = AtomicU32::new(0);

    /// Where processors are sent: it returns to whoever called the area's code.
    extern "C" fn vector() {
        WOKEN.fetch_add(1, Release);
    }

    /// Waits as a processor does: the code, in place, with the block that it is given.
    fn wait_as(argument: u64) {
        let code = arch::code().as_ptr();
        // SAFETY: the code takes its block in RDI, changes registers that a callee may change but
        // for RBX, which is saved here, and jumps on with the return address where it was.
        unsafe {
            core::arch::asm!(
                "push rbx",
                "call {code}",
                "pop rbx",
                code = in(reg) code,
                in("rdi") argument,
                clobber_abi("C"),
            );
        }
    }

    #[test]
    fn each_processor_leaves_when_the_mailbox_has_its_id_and_says_so() {
        let memory = Box::leak(Box::new(Memory([0x5a; LENGTH as usize])));
        let area = area(memory);
        let waiting: Vec<_> = CPUS
            .map(|cpu| {
                let state = area.start_state(cpu, 0x1000).unwrap();
                (cpu, thread::spawn(move || wait_as(state.argument)))
            })
            .into();
        assert_eq!(area.wanted(), None);
        let vector = vector as extern "C" fn() as usize as u64;
        area.mailbox.vector.store(vector, Relaxed);
        // Commands that are none wake nobody, and neither does another's id.
        area.mailbox.apic_id.store(2, Relaxed);
        for command in [0, 2, 0x101] {
            area.mailbox.command.store(command, Release);
            thread::yield_now();
        }
        area.mailbox.command.store(0, Release);
        area.mailbox.apic_id.store(3, Relaxed);
        area.mailbox.command.store(1, Release);
        thread::yield_now();
        assert_eq!(area.wanted(), Some(ApicId(3)));
        assert_eq!(WOKEN.load(Acquire), 0);
        area.mailbox.command.store(0, Release);
        for ((cpu, thread), count) in waiting.into_iter().rev().zip(1..) {
            area.mailbox.apic_id.store(cpu.0, Relaxed);
            area.mailbox.command.store(1, Release);
            thread.join().unwrap();
            assert_eq!(WOKEN.load(Acquire), count);
            assert_eq!(area.mailbox.command.load(Acquire), 0, "acknowledged");
        }
    }

    #[test]
    fn the_area_holds_the_code_and_a_block_for_each_processor() {
        let mut memory = Memory([0x5a; LENGTH as usize]);
        let area = area(&mut memory);
        let base = area.mailbox().0;
        assert_eq!(area.range().length(), LENGTH);
        let code = arch::code();
        assert!(code.len() <= BLOCKS_OFFSET - CODE_OFFSET);
        assert_eq!(&memory.0[CODE_OFFSET..][..code.len()], code);
        // The mailbox is all zeros, or it would be a command.
        assert!(memory.0[..CODE_OFFSET].iter().all(|&byte| byte == 0));
        for (index, cpu) in CPUS.into_iter().enumerate() {
            let state = area.start_state(cpu, 0x1000).unwrap();
            assert_eq!(state.entry, base + 0x1000);
            assert_eq!(state.page_table, 0x1000);
            let at = (state.argument - base) as usize;
            assert_eq!(at, BLOCKS_OFFSET + 16 * index);
            let block: Vec<u8> = [base.to_le_bytes(), u64::from(cpu.0).to_le_bytes()].concat();
            assert_eq!(&memory.0[at..at + 16], block);
        }
        assert!(area.start_state(ApicId(5), 0x1000).is_none());
    }

    #[test]
    fn an_area_that_cannot_be_is_refused() {
        let mut memory = Memory([0; LENGTH as usize]);
        let mapped = NonNull::from(&mut memory.0).cast::<u8>();
        let install = |physical: u64, cpus: &[ApicId]| {
            // SAFETY: the array is as long as the area.
            unsafe { WakeupArea::install(mapped, PhysAddr(physical), cpus) }.map(|_| ())
        };
        for base in [0x800, u64::MAX - 0xfff] {
            let refused = Err(WakeupError::Base(PhysAddr(base)));
            assert_eq!(install(base, &CPUS), refused);
        }
        let many: Vec<ApicId> = (0..=MOST as u32).map(ApicId).collect();
        let refused = Err(WakeupError::TooMany(MOST + 1));
        assert_eq!(install(0x1000, &many), refused);
        assert_eq!(install(0x1000, &many[1..]), Ok(()));
    }
}
