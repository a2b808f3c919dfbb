//! The trampoline: a page below 1 MiB from which a processor goes from INIT and start-up straight
//! into 64-bit mode.
//!
//! Each partition has a page of its own, so two kernels can start processors at the same time. The
//! processor proves its arrival by storing the fresh nonce that it was started with.

use core::fmt;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use handoff_abi::{ApicId, FRAME_SIZE, PhysAddr};
use iommu::Deadline;

use crate::cpu::{CpuStopped, Proof, SendIpi, StartState};
use crate::descriptors::{CODE_SEGMENT, DATA_SEGMENT};
use crate::park::{ParkArea, ParkError};
use crate::wait::look_for;

const GDT_OFFSET: usize = 0xe00;
const GDT_POINTER_OFFSET: usize = 0xe20;
const FAR_POINTER_OFFSET: usize = 0xe30;
const PARAMETERS_OFFSET: usize = 0xf00;

/// What the processor takes with it.
#[derive(Debug)]
#[repr(C)]
struct Parameters {
    page_table: AtomicU64,
    entry: AtomicU64,
    stack: AtomicU64,
    argument: AtomicU64,
    nonce: AtomicU64,
    answer: AtomicU64,
    receipt: AtomicU64,
}

const _: () = {
    assert!(offset_of!(Parameters, page_table) == 0);
    assert!(offset_of!(Parameters, entry) == 8);
    assert!(offset_of!(Parameters, stack) == 16);
    assert!(offset_of!(Parameters, argument) == 24);
    assert!(offset_of!(Parameters, nonce) == 32);
    assert!(offset_of!(Parameters, answer) == 40);
    assert!(offset_of!(Parameters, receipt) == 48);
    assert!(PARAMETERS_OFFSET + size_of::<Parameters>() <= FRAME_SIZE as usize);
};

/// Why a processor was not started or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum StartError {
    /// The page is not below 1 MiB, or not at a page boundary, or page 0.
    Page(PhysAddr),
    /// The page table is not below 4 GiB: a processor that comes from real mode cannot load it.
    PageTable(u64),
    /// The bootstrap processor is never sent INIT: it would go back to firmware.
    BootstrapProcessor(ApicId),
    /// The processor did not arrive in time. It may still be executing what it executed before.
    Timeout(ApicId),
    /// There is no place for it in the park area, or it did not say that it is parked.
    Park(ParkError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(page) => write!(f, "no processor can be started from {page}"),
            Self::PageTable(table) => write!(f, "the page table at {table:#x} is not below 4 GiB"),
            Self::BootstrapProcessor(cpu) => {
                write!(f, "processor {cpu} is the bootstrap processor")
            }
            Self::Timeout(cpu) => write!(f, "processor {cpu} did not arrive in time"),
            Self::Park(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StartError {}

impl From<ParkError> for StartError {
    fn from(error: ParkError) -> Self {
        Self::Park(error)
    }
}

/// How long each part of a start may take, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Timing {
    /// From INIT to the first start-up. The MultiProcessor Specification asks for 10 ms;
    /// processors since about 2010 need none.
    pub init_to_startup: u32,
    /// From the first start-up to the second, sent where the first had no answer.
    pub startup_to_startup: u32,
    /// From the second start-up until the processor is given up.
    pub arrival: u32,
}

impl Default for Timing {
    /// Intel's sequence (SDM volume 3, section 9.4.4.1), and 100 ms for the arrival.
    fn default() -> Self {
        Self {
            init_to_startup: 10_000,
            startup_to_startup: 200,
            arrival: 100_000,
        }
    }
}

/// One partition's trampoline page. One processor at a time goes through it.
#[derive(Debug)]
pub struct Trampoline<'a> {
    parameters: &'a Parameters,
    page: u8,
    bootstrap: ApicId,
    timing: Timing,
}

impl<'a> Trampoline<'a> {
    /// Lays the trampoline down.
    ///
    /// `bootstrap` is the machine's bootstrap processor, which is never started.
    ///
    /// # Errors
    /// Where no processor can be started from the page.
    ///
    /// # Safety
    /// `mapped` is where the page at `physical` is mapped, writable, for all of `'a`; it is this
    /// partition's alone, and no processor is in it.
    pub unsafe fn install(
        mapped: NonNull<u8>,
        physical: PhysAddr,
        bootstrap: ApicId,
        timing: Timing,
    ) -> Result<Self, StartError> {
        let page = u8::try_from(physical.0 >> 12)
            .ok()
            .filter(|&page| page != 0 && physical.is_aligned_to(FRAME_SIZE))
            .ok_or(StartError::Page(physical))?;
        let mut image = [0_u8; PARAMETERS_OFFSET];
        let mut put = |offset: usize, bytes: &[u8]| {
            for (to, from) in image.iter_mut().skip(offset).zip(bytes) {
                *to = *from;
            }
        };
        let base = physical.0 as u32;
        put(0, arch::code());
        put(GDT_OFFSET + 8, &CODE_SEGMENT.to_le_bytes());
        put(GDT_OFFSET + 16, &DATA_SEGMENT.to_le_bytes());
        put(GDT_POINTER_OFFSET, &23_u16.to_le_bytes());
        put(
            GDT_POINTER_OFFSET + 2,
            &(base + GDT_OFFSET as u32).to_le_bytes(),
        );
        put(
            FAR_POINTER_OFFSET,
            &(base + arch::long_mode()).to_le_bytes(),
        );
        put(FAR_POINTER_OFFSET + 4, &8_u16.to_le_bytes());
        // SAFETY: the page is the caller's and longer than the image, which is on this stack.
        unsafe { mapped.copy_from_nonoverlapping(NonNull::from(&image).cast(), image.len()) };
        // SAFETY: the offset is inside the page.
        let parameters = unsafe { mapped.add(PARAMETERS_OFFSET) };
        // SAFETY: the parameters lie inside the caller's page, aligned, and are atomics, so any
        // bytes are a value and the processor on its way may store to them.
        let parameters = unsafe { parameters.cast::<Parameters>().as_ref() };
        Ok(Self {
            parameters,
            page,
            bootstrap,
            timing,
        })
    }

    /// Starts a processor by INIT and start-up; returns when it has arrived in 64-bit mode with
    /// `state`, about to jump to the entry. Whatever it executed before, it does no more; where it
    /// was parked in `park`, it is not any longer.
    ///
    /// # Errors
    /// See [`StartError`]. After [`StartError::Timeout`] it must be assumed that the processor may
    /// still do anything: quarantine it and all that it can reach.
    ///
    /// # Safety
    /// `state` is one that a processor may run from: its page table maps the trampoline page at
    /// its physical address, and the entry as code; the stack is nobody else's. The processor is
    /// the caller's to start.
    pub unsafe fn start(
        &mut self,
        cpu: ApicId,
        state: &StartState,
        park: &ParkArea<'_>,
        ipi: &mut impl SendIpi,
        deadline: &mut impl Deadline,
    ) -> Result<(), StartError> {
        if cpu == self.bootstrap {
            return Err(StartError::BootstrapProcessor(cpu));
        }
        if state.page_table >> 32 != 0 {
            return Err(StartError::PageTable(state.page_table));
        }
        let parameters = self.parameters;
        let nonce = parameters.nonce.load(Relaxed).wrapping_add(1);
        parameters.page_table.store(state.page_table, Relaxed);
        parameters.entry.store(state.entry, Relaxed);
        parameters.stack.store(state.stack, Relaxed);
        parameters.argument.store(state.argument, Relaxed);
        parameters.receipt.store(0, Relaxed);
        // What the page held before counts for nothing.
        parameters.answer.store(nonce.wrapping_sub(1), Relaxed);
        parameters.nonce.store(nonce, Release);
        // The processor that arrives may be the one that uses the page next, and sooner than this
        // one looks again: any answer from the nonce on is an arrival.
        let arrived = |microseconds: u32, deadline: &mut _| {
            let answer = || parameters.answer.load(Acquire).wrapping_sub(nonce);
            look_for(microseconds, deadline, || {
                (answer() < 1 << 63).then_some(())
            })
            .is_some()
        };
        park.forget(cpu);
        ipi.init(cpu);
        let pause = self.timing.init_to_startup;
        look_for(pause, deadline, || None::<()>);
        ipi.startup(cpu, self.page);
        if arrived(self.timing.startup_to_startup, deadline) {
            return Ok(());
        }
        ipi.startup(cpu, self.page);
        if arrived(self.timing.arrival, deadline) {
            return Ok(());
        }
        Err(StartError::Timeout(cpu))
    }

    /// The word whose address the processor that was started last has in RSI: zero until it stores
    /// there. It is all that a successor can say that cannot read its handoff, and so knows of no
    /// other place; see [`Watch::with_receipt`](crate::watch::Watch::with_receipt).
    #[must_use]
    pub const fn receipt(&self) -> &'a AtomicU64 {
        &self.parameters.receipt
    }

    /// Takes a processor away from whatever it executes: INIT and start-up, and through this page
    /// into the park area.
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// # Safety
    /// The processor is one that the caller may take, and the area is mapped where it says. The
    /// area's page tables do not map this page, so the area and the page must both be reachable
    /// through `page_table`, below 4 GiB, at their physical addresses.
    pub unsafe fn take(
        &mut self,
        cpu: ApicId,
        park: &ParkArea<'_>,
        page_table: u64,
        ipi: &mut impl SendIpi,
        deadline: &mut impl Deadline,
    ) -> Result<CpuStopped, StartError> {
        park.forget(cpu);
        let state = StartState {
            page_table,
            ..park.expect(cpu)?
        };
        // SAFETY: the area's code takes over from any 64-bit state; the caller maps it and this
        // page through `page_table`, and the stack is the slot's own.
        let started = unsafe { self.start(cpu, &state, park, ipi, deadline) };
        if let Err(error) = started {
            park.give_up(cpu);
            return Err(error);
        }
        park.confirm(cpu, self.timing.arrival, deadline)?;
        Ok(CpuStopped::new(cpu, Proof::Taken))
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    //! The page's code, copied from here. It runs at any page below 1 MiB: in real mode it
    //! addresses data from its own segment, in 64-bit mode from its own RIP.

    use super::{FAR_POINTER_OFFSET, GDT_POINTER_OFFSET, PARAMETERS_OFFSET};

    core::arch::global_asm!(
        ".pushsection .text.baton_partition_core.trampoline, \"ax\"",
        ".global baton_trampoline_start, baton_trampoline_long_mode, baton_trampoline_end",
        ".code16",
        "baton_trampoline_start:",
        "cli",
        "cld",
        "movw %cs, %ax",
        "movw %ax, %ds",
        "lgdtl {gdt}",
        // CR4.PAE and CR4.MCE, then CR3, EFER.LME and EFER.NXE, and CR0 with paging and
        // protection at once: straight to 64-bit mode (AMD APM volume 2, section 14.6.1).
        "movl $0x60, %eax",
        "movl %eax, %cr4",
        "movl {parameters}, %eax",
        "movl %eax, %cr3",
        "movl $0xc0000080, %ecx",
        "movl $0x900, %eax",
        "xorl %edx, %edx",
        "wrmsr",
        // CR0: PG, WP, NE, ET, MP, PE; caches on.
        "movl $0x80010033, %eax",
        "movl %eax, %cr0",
        "ljmpl *{far}",
        ".code64",
        "baton_trampoline_long_mode:",
        "movl $0x10, %eax",
        "movl %eax, %ds",
        "movl %eax, %es",
        "movl %eax, %ss",
        "xorl %eax, %eax",
        "movl %eax, %fs",
        "movl %eax, %gs",
        "leaq baton_trampoline_start + {parameters}(%rip), %rbx",
        "movq 8(%rbx), %rax",
        "movq 16(%rbx), %rsp",
        "movq 24(%rbx), %rdi",
        "leaq 48(%rbx), %rsi",
        "movq 32(%rbx), %rcx",
        // After this store the page may be used for the next processor: nothing more is read.
        "movq %rcx, 40(%rbx)",
        "jmpq *%rax",
        "baton_trampoline_end:",
        ".popsection",
        gdt = const GDT_POINTER_OFFSET,
        parameters = const PARAMETERS_OFFSET,
        far = const FAR_POINTER_OFFSET,
        options(att_syntax),
    );

    unsafe extern "C" {
        static baton_trampoline_start: u8;
        static baton_trampoline_long_mode: u8;
        static baton_trampoline_end: u8;
    }

    fn offset(of: *const u8) -> usize {
        of.addr() - (&raw const baton_trampoline_start).addr()
    }

    pub(super) fn code() -> &'static [u8] {
        let length = offset(&raw const baton_trampoline_end);
        // SAFETY: the assembler put the bytes from the start label to the end label side by side
        // into a section that is never written.
        unsafe { core::slice::from_raw_parts(&raw const baton_trampoline_start, length) }
    }

    pub(super) fn long_mode() -> u32 {
        offset(&raw const baton_trampoline_long_mode) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use handoff_abi::{ParkSlot, park_state};

    use super::*;
    use crate::park;

    const PAGE: PhysAddr = PhysAddr(0x9000);
    const BOOTSTRAP: ApicId = ApicId(0);
    const CPU: ApicId = ApicId(3);
    const STATE: StartState = StartState {
        page_table: 0x1000,
        entry: 1,
        stack: 2,
        argument: 3,
    };

    #[repr(align(65536))]
    struct Memory<const N: usize>([u8; N]);

    /// A processor that answers the `answers`-th start-up by storing the nonce it finds.
    struct Model {
        page: *mut u8,
        answers: usize,
        /// How many more starts the page has seen by the time anybody looks.
        later: u64,
        log: Vec<&'static str>,
    }

    impl Model {
        fn word(&self, offset: usize) -> &AtomicU64 {
            // SAFETY: the page is longer than the offset.
            let word = unsafe { self.page.add(PARAMETERS_OFFSET + offset) };
            // SAFETY: the page outlives the model; the word is aligned, and an atomic for the
            // trampoline too.
            unsafe { AtomicU64::from_ptr(word.cast()) }
        }
    }

    impl SendIpi for Model {
        fn init(&mut self, _: ApicId) {
            self.log.push("init");
        }

        fn startup(&mut self, _: ApicId, page: u8) {
            assert_eq!(u64::from(page) << 12, PAGE.0);
            self.log.push("startup");
            if self.log.iter().filter(|&&sent| sent == "startup").count() == self.answers {
                let nonce = self.word(32).load(Relaxed);
                self.word(40).store(nonce + self.later, Relaxed);
            }
        }

        fn nmi(&mut self, _: ApicId) {
            unreachable!("a processor is started without NMI");
        }
    }

    struct Looks(u32);

    impl Deadline for Looks {
        fn start(&mut self, _: u32) {
            self.0 = 3;
        }

        fn expired(&mut self) -> bool {
            self.0 -= 1;
            self.0 == 0
        }
    }

    fn with(answers: usize, test: impl FnOnce(&mut Trampoline<'_>, &ParkArea<'_>, &mut Model)) {
        let mut page = Memory([0; FRAME_SIZE as usize]);
        let mut area = Memory([0; park::LENGTH as usize]);
        let mapped = NonNull::from(&mut page.0).cast();
        // SAFETY: the array is a page and nobody else's.
        let trampoline = unsafe { Trampoline::install(mapped, PAGE, BOOTSTRAP, Timing::default()) };
        let mapped_area = NonNull::from(&mut area.0).cast();
        // SAFETY: the array is as long as the area and nobody else's.
        let park = unsafe { ParkArea::install(mapped_area, PhysAddr(0x10_0000)) }.unwrap();
        let mut model = Model {
            page: mapped.as_ptr(),
            answers,
            later: 0,
            log: Vec::new(),
        };
        test(&mut trampoline.unwrap(), &park, &mut model);
    }

    fn start(
        trampoline: &mut Trampoline<'_>,
        cpu: ApicId,
        state: &StartState,
        park: &ParkArea<'_>,
        model: &mut Model,
    ) -> Result<(), StartError> {
        // SAFETY: nothing is executed: the processor is a model.
        unsafe { trampoline.start(cpu, state, park, model, &mut Looks(0)) }
    }

    #[test]
    fn a_second_startup_is_sent_only_where_the_first_has_no_answer() {
        with(1, |trampoline, park, model| {
            assert_eq!(start(trampoline, CPU, &STATE, park, model), Ok(()));
            assert_eq!(model.log, ["init", "startup"]);
        });
        with(2, |trampoline, park, model| {
            assert_eq!(start(trampoline, CPU, &STATE, park, model), Ok(()));
            assert_eq!(model.log, ["init", "startup", "startup"]);
            assert_eq!(model.word(0).load(Relaxed), STATE.page_table);
        });
    }

    /// Each time is over at once. The processor answers in the second, which is behind the start-up:
    /// whoever waits did not run meanwhile.
    struct Slept<'a> {
        answer: &'a AtomicU64,
        nonce: &'a AtomicU64,
        times: u32,
    }

    impl Deadline for Slept<'_> {
        fn start(&mut self, _: u32) {}

        fn expired(&mut self) -> bool {
            self.times += 1;
            if self.times == 2 {
                self.answer.store(self.nonce.load(Relaxed), Relaxed);
            }
            true
        }
    }

    #[test]
    fn an_answer_that_came_while_nobody_looked_is_one() {
        with(0, |trampoline, park, model| {
            let page = Model {
                log: Vec::new(),
                ..*model
            };
            let mut slept = Slept {
                answer: page.word(40),
                nonce: page.word(32),
                times: 0,
            };
            // SAFETY: nothing is executed: the processor is a model.
            let started = unsafe { trampoline.start(CPU, &STATE, park, model, &mut slept) };
            assert_eq!(started, Ok(()));
            assert_eq!(model.log, ["init", "startup"]);
        });
    }

    #[test]
    fn an_answer_to_an_earlier_start_does_not_count() {
        with(1, |trampoline, park, model| {
            assert_eq!(start(trampoline, CPU, &STATE, park, model), Ok(()));
            model.answers = 0;
            let silent = Err(StartError::Timeout(CPU));
            assert_eq!(start(trampoline, CPU, &STATE, park, model), silent);
        });
    }

    #[test]
    fn a_receipt_of_an_earlier_start_is_gone() {
        with(1, |trampoline, park, model| {
            model.word(48).store(7, Relaxed);
            assert_eq!(trampoline.receipt().load(Relaxed), 7);
            assert_eq!(start(trampoline, CPU, &STATE, park, model), Ok(()));
            assert_eq!(trampoline.receipt().load(Relaxed), 0);
        });
    }

    #[test]
    fn an_arrival_is_not_missed_where_the_page_was_used_again_meanwhile() {
        with(1, |trampoline, park, model| {
            model.later = 1;
            assert_eq!(start(trampoline, CPU, &STATE, park, model), Ok(()));
        });
    }

    #[test]
    fn what_the_page_held_before_is_no_arrival() {
        with(0, |trampoline, park, model| {
            model.word(40).store(u64::MAX / 4, Relaxed);
            let silent = Err(StartError::Timeout(CPU));
            assert_eq!(start(trampoline, CPU, &STATE, park, model), silent);
        });
    }

    #[test]
    fn neither_the_bootstrap_processor_nor_a_high_page_table_is_tried() {
        with(1, |trampoline, park, model| {
            let refused = start(trampoline, BOOTSTRAP, &STATE, park, model);
            assert_eq!(refused, Err(StartError::BootstrapProcessor(BOOTSTRAP)));
            let high = StartState {
                page_table: 1 << 32,
                ..STATE
            };
            let refused = start(trampoline, CPU, &high, park, model);
            assert_eq!(refused, Err(StartError::PageTable(1 << 32)));
            assert!(model.log.is_empty());
        });
    }

    #[test]
    fn a_parked_processor_that_is_started_is_not_proved_stopped_any_more() {
        with(1, |trampoline, park, model| {
            park.expect(CPU).unwrap();
            let slot = park.slot(CPU).unwrap();
            let said = ParkSlot::to_wire(CPU, park_state::PARKED);
            slot.word.store(said, core::sync::atomic::Ordering::Release);
            assert!(park.confirm(CPU, 1, &mut Looks(0)).is_ok());
            start(trampoline, CPU, &STATE, park, model).unwrap();
            let found = park_state::LEFT;
            let refused = park.confirm(CPU, 1, &mut Looks(0));
            assert_eq!(refused, Err(ParkError::Timeout { cpu: CPU, found }));
        });
    }

    #[test]
    fn a_processor_that_arrives_but_does_not_park_is_not_taken() {
        with(1, |trampoline, park, model| {
            // SAFETY: nothing is executed: the processor is a model.
            let taken = unsafe { trampoline.take(CPU, park, 0x1000, model, &mut Looks(0)) };
            let found = park_state::ARRIVING;
            let late = StartError::Park(ParkError::Timeout { cpu: CPU, found });
            assert_eq!(taken, Err(late));
        });
    }

    #[test]
    fn a_page_that_no_startup_reaches_is_refused() {
        let mut page = Memory([0; FRAME_SIZE as usize]);
        for physical in [0, 0x9800, 0x10_0000, 1 << 40] {
            let mapped = NonNull::from(&mut page.0).cast();
            let physical = PhysAddr(physical);
            // SAFETY: the array is a page and nobody else's.
            let refused =
                unsafe { Trampoline::install(mapped, physical, BOOTSTRAP, Timing::default()) };
            assert_eq!(refused.unwrap_err(), StartError::Page(physical));
        }
    }
}
