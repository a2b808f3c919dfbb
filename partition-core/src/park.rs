//! The park page: where a processor goes when it leaves one kernel, and from where the next one
//! claims it.
//!
//! The park area is a piece of the baton, so it belongs to no kernel. A parked processor runs on
//! the area's own page tables, GDT and IDT, halted, and looks at its slot after each NMI. The code
//! of the area keeps all its state in the slot, so that an NMI may restart it at any instruction.
//! Every kernel maps the area at its physical address, read, write and execute.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use handoff_abi::{ApicId, FRAME_SIZE, ParkSlot, PhysAddr, PhysRange, park_state};
use iommu::Deadline;

use crate::cpu::{CpuStopped, Proof, SendIpi, StartState};
use crate::wait::look_for;

/// How many processors the area has slots for.
pub const SLOTS: usize = ParkSlot::COUNT;
/// Bytes of the area.
pub const LENGTH: u64 = ParkSlot::AREA;
/// What the area's base must be a multiple of, so that one page table reaches all of it.
pub const ALIGNMENT: u64 = 64 * 1024;

const SLOT_BYTES: u64 = 256;
const SLOTS_OFFSET: u64 = ParkSlot::FIRST;
const TABLES_OFFSET: u64 = SLOTS_OFFSET + SLOTS as u64 * SLOT_BYTES;
const GDT_OFFSET: usize = 0x800;
const GDT_POINTER_OFFSET: usize = 0x820;
const IDT_POINTER_OFFSET: usize = 0x830;
const CR3_OFFSET: usize = 0x840;
const IDT_OFFSET: usize = 0x880;
const IDT_VECTORS: usize = 19;

const _: () = {
    assert!(size_of::<ParkSlot>() == SLOT_BYTES as usize);
    assert!(IDT_OFFSET + IDT_VECTORS * 16 <= FRAME_SIZE as usize);
};

fn read(slot: &ParkSlot) -> (ApicId, u32) {
    ParkSlot::from_wire(slot.word.load(Acquire))
}

/// One step of a processor's slot; `Err` is what was found instead.
fn step(slot: &ParkSlot, cpu: ApicId, from: u32, to: u32) -> Result<(), u32> {
    let (from, to) = (ParkSlot::to_wire(cpu, from), ParkSlot::to_wire(cpu, to));
    slot.word
        .compare_exchange(from, to, AcqRel, Acquire)
        .map(drop)
        .map_err(|found| ParkSlot::from_wire(found).1)
}

/// Takes an empty slot for a processor; whether it was still empty.
fn take(slot: &ParkSlot, cpu: ApicId) -> bool {
    let word = slot.word.load(Acquire);
    let arriving = ParkSlot::to_wire(cpu, park_state::ARRIVING);
    ParkSlot::from_wire(word).1 == park_state::EMPTY
        && slot
            .word
            .compare_exchange(word, arriving, AcqRel, Acquire)
            .is_ok()
}

/// Why a park area was refused, or a processor did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ParkError {
    /// The area does not begin at a multiple of [`ALIGNMENT`], or above 4 GiB.
    Base(PhysAddr),
    /// Every slot is in use.
    Full,
    /// The processor is not in the area.
    NotThere(ApicId),
    /// The processor's slot is in another state than the operation needs.
    State {
        /// The processor.
        cpu: ApicId,
        /// One of [`park_state`].
        found: u32,
    },
    /// The processor did not answer in time.
    Timeout {
        /// The processor.
        cpu: ApicId,
        /// The state its slot is in.
        found: u32,
    },
}

impl fmt::Display for ParkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => write!(f, "the park area cannot be at {base}"),
            Self::Full => f.write_str("the park area is full"),
            Self::NotThere(cpu) => write!(f, "processor {cpu} is not in the park area"),
            Self::State { cpu, found } => write!(f, "processor {cpu} is in park state {found}"),
            Self::Timeout { cpu, found } => {
                write!(
                    f,
                    "processor {cpu} did not answer in time, park state {found}"
                )
            }
        }
    }
}

impl core::error::Error for ParkError {}

/// The park area, seen from one kernel.
#[derive(Clone, Copy, Debug)]
pub struct ParkArea<'a> {
    slots: &'a [ParkSlot; SLOTS],
    physical: PhysAddr,
}

impl<'a> ParkArea<'a> {
    fn check_base(physical: PhysAddr) -> Result<(), ParkError> {
        let fits = PhysRange::new(physical, LENGTH).is_ok_and(|range| range.end().0 <= 1 << 32);
        if fits && physical.is_aligned_to(ALIGNMENT) {
            return Ok(());
        }
        Err(ParkError::Base(physical))
    }

    /// Takes up an area that [`install`](Self::install) made.
    ///
    /// # Errors
    /// Where the physical address cannot be that of a park area.
    ///
    /// # Safety
    /// `mapped` is where the [`LENGTH`] bytes at `physical` are mapped, writable, for all of `'a`,
    /// and all that any kernel does to them is done through this type.
    pub unsafe fn adopt(mapped: NonNull<u8>, physical: PhysAddr) -> Result<Self, ParkError> {
        Self::check_base(physical)?;
        // SAFETY: the caller's area is longer than the offset.
        let slots = unsafe { mapped.add(SLOTS_OFFSET as usize) };
        // SAFETY: the slots lie inside the caller's area at a multiple of their alignment (the
        // area's is larger); they are atomics, so sharing them with other kernels is sound, and
        // every bit pattern is a value.
        let slots = unsafe { slots.cast::<[ParkSlot; SLOTS]>().as_ref() };
        Ok(Self { slots, physical })
    }

    /// Lays down the code, descriptor tables and page tables of an area that nobody uses yet.
    ///
    /// # Errors
    /// Where no area can be at the physical address.
    ///
    /// # Safety
    /// As for [`adopt`](Self::adopt); and no processor is in the area or on its way.
    pub unsafe fn install(mapped: NonNull<u8>, physical: PhysAddr) -> Result<Self, ParkError> {
        Self::check_base(physical)?;
        // SAFETY: the caller's area has LENGTH bytes, is writable and nobody else's.
        unsafe { mapped.write_bytes(0, LENGTH as usize) };
        let image = code_page(physical);
        // SAFETY: source and destination are one page each; the area is the caller's, so they do
        // not overlap.
        unsafe { mapped.copy_from_nonoverlapping(NonNull::from(&image).cast(), image.len()) };
        for (offset, value) in page_tables(physical) {
            // SAFETY: `page_tables` gives offsets below LENGTH only.
            let entry = unsafe { mapped.add(offset as usize) };
            // SAFETY: the entry is inside the caller's area, at a multiple of 8.
            unsafe { entry.cast::<u64>().write(value) };
        }
        // SAFETY: the caller promises what `adopt` asks for.
        unsafe { Self::adopt(mapped, physical) }
    }

    /// The physical memory of the area.
    #[must_use]
    pub const fn range(&self) -> PhysRange {
        PhysRange::from_bounds(self.physical, PhysAddr(self.physical.0 + LENGTH))
    }

    fn slot_address(&self, index: usize) -> u64 {
        self.physical.0 + SLOTS_OFFSET + index as u64 * SLOT_BYTES
    }

    fn find(&self, cpu: ApicId) -> Option<usize> {
        self.slots.iter().position(|slot| {
            let (found, state) = read(slot);
            state != park_state::EMPTY && found == cpu
        })
    }

    /// Every processor in the area, and the state of its slot.
    pub fn processors(&self) -> impl Iterator<Item = (ApicId, u32)> + use<'a> {
        let all = self.slots.iter().map(read);
        all.filter(|&(_, state)| state != park_state::EMPTY)
    }

    /// The slot of a processor, to read its counts.
    #[must_use]
    pub fn slot(&self, cpu: ApicId) -> Option<&'a ParkSlot> {
        self.slots.get(self.find(cpu)?)
    }

    /// Sets a slot aside for a processor that is about to come: the processor's own kernel calls
    /// this for itself, the steward for one that it takes. A slot that the same processor has left
    /// is used again.
    ///
    /// The result is the state in which the processor enters the area: by
    /// [`enter`] from 64-bit code, or as a [`StartState`] by the trampoline.
    ///
    /// # Errors
    /// Where the area is full, or the processor is in it.
    pub fn expect(&self, cpu: ApicId) -> Result<StartState, ParkError> {
        if let Some(index) = self.find(cpu) {
            let slot = self.slots.get(index).ok_or(ParkError::Full)?;
            return step(slot, cpu, park_state::LEFT, park_state::ARRIVING)
                .map(|()| self.start_state(index))
                .map_err(|found| ParkError::State { cpu, found });
        }
        // Others may come at the same time: whoever changes a slot has it.
        self.slots
            .iter()
            .position(|slot| take(slot, cpu))
            .map(|index| self.start_state(index))
            .ok_or(ParkError::Full)
    }

    fn start_state(&self, index: usize) -> StartState {
        let slot = self.slot_address(index);
        StartState {
            page_table: self.physical.0 + TABLES_OFFSET,
            entry: self.physical.0,
            stack: slot + SLOT_BYTES,
            argument: slot,
        }
    }

    /// Forgets that a processor was expected which cannot come any more.
    pub fn give_up(&self, cpu: ApicId) {
        if let Some(slot) = self.slot(cpu) {
            // In any other state it did come.
            let _ = step(slot, cpu, park_state::ARRIVING, park_state::EMPTY);
        }
    }

    /// Notes that a processor is about to be started by INIT: from now on its slot proves nothing.
    pub(crate) fn forget(&self, cpu: ApicId) {
        if let Some(slot) = self.slot(cpu) {
            // In any other state it proves nothing anyway.
            let _ = step(slot, cpu, park_state::PARKED, park_state::LEFT);
        }
    }

    /// Waits until a processor has said that it is parked.
    ///
    /// # Errors
    /// [`ParkError::Timeout`] after `microseconds`.
    pub fn confirm(
        &self,
        cpu: ApicId,
        microseconds: u32,
        deadline: &mut impl Deadline,
    ) -> Result<CpuStopped, ParkError> {
        self.wait(cpu, park_state::PARKED, microseconds, deadline)?;
        Ok(CpuStopped::new(cpu, Proof::Parked))
    }

    pub(crate) fn wait(
        &self,
        cpu: ApicId,
        wanted: u32,
        microseconds: u32,
        deadline: &mut impl Deadline,
    ) -> Result<(), ParkError> {
        let mut found = park_state::EMPTY;
        look_for(microseconds, deadline, || {
            found = self
                .slot(cpu)
                .map_or(park_state::EMPTY, |slot| read(slot).1);
            (found == wanted).then_some(())
        })
        .ok_or(ParkError::Timeout { cpu, found })
    }

    /// Claims a parked processor by compare-and-swap and wakes it; returns when it has left the
    /// area with `state`.
    ///
    /// # Errors
    /// Where it is not parked, or does not leave in time.
    ///
    /// # Safety
    /// `state` is one that a processor may run from: its page table maps the area at its physical
    /// address and the entry as code, and the stack is nobody else's.
    pub unsafe fn claim(
        &self,
        cpu: ApicId,
        state: &StartState,
        ipi: &mut impl SendIpi,
        microseconds: u32,
        deadline: &mut impl Deadline,
    ) -> Result<(), ParkError> {
        let slot = self.slot(cpu).ok_or(ParkError::NotThere(cpu))?;
        let found = read(slot).1;
        if found != park_state::PARKED {
            return Err(ParkError::State { cpu, found });
        }
        slot.entry.store(state.entry, Relaxed);
        slot.page_table.store(state.page_table, Relaxed);
        slot.stack.store(state.stack, Relaxed);
        slot.argument.store(state.argument, Relaxed);
        step(slot, cpu, park_state::PARKED, park_state::CLAIMED)
            .map_err(|found| ParkError::State { cpu, found })?;
        ipi.nmi(cpu);
        self.wait(cpu, park_state::LEFT, microseconds, deadline)
    }
}

/// Goes from 64-bit code into the park area, with the state that [`ParkArea::expect`] gave.
///
/// # Safety
/// The caller is the processor that was expected, with interrupts disabled and its local APIC's
/// LVT entries masked and LDR zero; the area is mapped at its physical address; CR4.PCIDE is 0.
/// Nothing of the caller's kernel runs on this processor afterwards.
#[cfg(target_arch = "x86_64")]
pub unsafe fn enter(state: &StartState) -> ! {
    // SAFETY: the area's code is mapped at `entry` and takes over from any 64-bit state with
    // interrupts disabled; it never returns, so clobbers need not be stated.
    unsafe {
        core::arch::asm!(
            "cli",
            "jmp {entry}",
            entry = in(reg) state.entry,
            in("rdi") state.argument,
            options(noreturn),
        )
    }
}

fn put(page: &mut [u8; FRAME_SIZE as usize], offset: usize, bytes: &[u8]) {
    for (to, from) in page.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}

fn code_page(physical: PhysAddr) -> [u8; FRAME_SIZE as usize] {
    let mut page = [0; FRAME_SIZE as usize];
    put(&mut page, 0, arch::code());
    let gdt = [
        0,
        crate::descriptors::CODE_SEGMENT,
        crate::descriptors::DATA_SEGMENT,
    ];
    for (index, descriptor) in gdt.iter().enumerate() {
        put(&mut page, GDT_OFFSET + index * 8, &descriptor.to_le_bytes());
    }
    let mut pointer = |at: usize, bytes: usize, offset: usize| {
        put(&mut page, at, &(bytes as u16 - 1).to_le_bytes());
        put(
            &mut page,
            at + 2,
            &(physical.0 + offset as u64).to_le_bytes(),
        );
    };
    pointer(GDT_POINTER_OFFSET, gdt.len() * 8, GDT_OFFSET);
    pointer(IDT_POINTER_OFFSET, IDT_VECTORS * 16, IDT_OFFSET);
    put(
        &mut page,
        CR3_OFFSET,
        &(physical.0 + TABLES_OFFSET).to_le_bytes(),
    );
    for (vector, handler) in [(2, arch::nmi()), (18, arch::machine_check())] {
        let gate = crate::descriptors::interrupt_gate(physical.0 + handler);
        put(&mut page, IDT_OFFSET + vector * 16, &gate);
    }
    page
}

/// The page tables that map just the area, at its physical address: (offset, entry).
fn page_tables(physical: PhysAddr) -> impl Iterator<Item = (u64, u64)> {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 2;
    let table = move |level: u64| TABLES_OFFSET + level * FRAME_SIZE;
    let index = move |shift: u32| (physical.0 >> shift & 0x1ff) * 8;
    let upper = [(0, 39), (1, 30), (2, 21)].map(|(level, shift)| {
        let entry = (physical.0 + table(level + 1)) | PRESENT | WRITE;
        (table(level) + index(shift), entry)
    });
    let pages = (0..LENGTH / FRAME_SIZE).map(move |page| {
        let entry = (physical.0 + page * FRAME_SIZE) | PRESENT | WRITE;
        (table(3) + index(12) + page * 8, entry)
    });
    upper.into_iter().chain(pages)
}

#[cfg(target_arch = "x86_64")]
mod arch {
    //! The area's code, copied from here and position independent. RDI is the slot throughout.

    use super::{CR3_OFFSET, GDT_POINTER_OFFSET, IDT_POINTER_OFFSET, SLOT_BYTES, park_state};

    core::arch::global_asm!(
        ".pushsection .text.baton_partition_core.park, \"ax\"",
        ".global baton_park_start, baton_park_nmi, baton_park_machine_check, baton_park_end",
        "baton_park_start:",
        "cli",
        "cld",
        "mov rax, [rip + baton_park_start + {cr3}]",
        "mov cr3, rax",
        "lea rsp, [rdi + {slot_bytes}]",
        "lgdt [rip + baton_park_start + {gdt}]",
        "push 0x08",
        "lea rax, [rip + 2f]",
        "push rax",
        "retfq",
        "2:",
        "mov eax, 0x10",
        "mov ss, eax",
        "mov ds, eax",
        "mov es, eax",
        "lidt [rip + baton_park_start + {idt}]",
        // CR4.MCE: a machine check is taken here and not turned into a shutdown.
        "mov rax, cr4",
        "or rax, 0x40",
        "mov cr4, rax",
        "mov dword ptr [rdi], {parked}",
        "baton_park_look:",
        "cmp dword ptr [rdi], {claimed}",
        "je 3f",
        "hlt",
        "jmp baton_park_look",
        // Everything the claim gave is read before the slot says that it may be used again.
        "3:",
        "mov rax, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "mov rdx, [rdi + 24]",
        "mov rsi, [rdi + 32]",
        "mov dword ptr [rdi], {left}",
        "mov cr3, rcx",
        "mov rsp, rdx",
        "mov rdi, rsi",
        "jmp rax",
        // An NMI between the look and the HLT would be slept over, so one in the loop always goes
        // back to the look.
        "baton_park_nmi:",
        "push rax",
        "push rcx",
        "lea rax, [rip + baton_park_look]",
        "lea rcx, [rip + 3b]",
        "cmp [rsp + 16], rax",
        "jb 4f",
        "cmp [rsp + 16], rcx",
        "jae 4f",
        "inc dword ptr [rdi + 40]",
        "mov [rsp + 16], rax",
        "4:",
        "pop rcx",
        "pop rax",
        "iretq",
        // A machine check is counted, and MCG_STATUS.MCIP cleared so that the next one is not a
        // shutdown (Intel SDM volume 3, section 16.3.1.2). Not counted where the slot is not in
        // RDI any more.
        "baton_park_machine_check:",
        "push rax",
        "push rcx",
        "push rdx",
        "lea rax, [rip + baton_park_look]",
        "lea rcx, [rip + 3b]",
        "cmp [rsp + 24], rax",
        "jb 5f",
        "cmp [rsp + 24], rcx",
        "jae 5f",
        "inc dword ptr [rdi + 44]",
        "5:",
        "mov ecx, 0x17a",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "iretq",
        "baton_park_end:",
        ".popsection",
        cr3 = const CR3_OFFSET,
        gdt = const GDT_POINTER_OFFSET,
        idt = const IDT_POINTER_OFFSET,
        slot_bytes = const SLOT_BYTES,
        parked = const park_state::PARKED,
        claimed = const park_state::CLAIMED,
        left = const park_state::LEFT,
    );

    unsafe extern "C" {
        static baton_park_start: u8;
        static baton_park_nmi: u8;
        static baton_park_machine_check: u8;
        static baton_park_end: u8;
    }

    fn offset(of: *const u8) -> u64 {
        (of.addr() - (&raw const baton_park_start).addr()) as u64
    }

    /// The code as it is copied to the start of the area; execution begins with its first byte.
    pub(super) fn code() -> &'static [u8] {
        let length = offset(&raw const baton_park_end) as usize;
        // SAFETY: the assembler put the bytes from the start label to the end label side by side
        // into a section that is never written.
        unsafe { core::slice::from_raw_parts(&raw const baton_park_start, length) }
    }

    /// Where the NMI handler is, from the area's start.
    pub(super) fn nmi() -> u64 {
        offset(&raw const baton_park_nmi)
    }

    /// Where the machine check handler is.
    pub(super) fn machine_check() -> u64 {
        offset(&raw const baton_park_machine_check)
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::sync::atomic::AtomicU32;
    use std::vec::Vec;

    use super::*;

    const BASE: PhysAddr = PhysAddr(0x1_0000 * 0x123);

    /// Walks 4-level tables as the Intel SDM (volume 3, figure 5-8) has them.
    fn translate(image: &[u8], base: u64, address: u64) -> Option<u64> {
        let mut table = base + TABLES_OFFSET;
        for level in (0..4).rev() {
            let index = address >> (12 + 9 * level) & 0x1ff;
            let at = (table - base + index * 8) as usize;
            let entry = u64::from_le_bytes(image.get(at..at + 8)?.try_into().ok()?);
            if entry & 1 == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        Some(table)
    }

    #[repr(align(65536))]
    struct Area([u8; LENGTH as usize]);

    #[test]
    fn the_area_maps_itself_and_nothing_else() {
        let mut area = Area([0xff; LENGTH as usize]);
        let mapped = NonNull::from(&mut area.0).cast();
        // SAFETY: the array is as long as the area and nobody else's.
        let park = unsafe { ParkArea::install(mapped, BASE) }.unwrap();
        let range = park.range();
        for page in (BASE.0 - 0x4_0000..BASE.0 + 0x8_0000).step_by(FRAME_SIZE as usize) {
            let expected = range.contains(PhysAddr(page)).then_some(page);
            assert_eq!(translate(&area.0, BASE.0, page), expected, "{page:#x}");
        }
    }

    #[test]
    fn a_base_that_one_page_table_cannot_reach_is_refused() {
        for base in [0x1000, 0x1_0800, 1 << 32, (1 << 32) - 0x1000] {
            assert_eq!(
                ParkArea::check_base(PhysAddr(base)),
                Err(ParkError::Base(PhysAddr(base)))
            );
        }
    }

    #[test]
    fn the_code_ends_before_the_descriptor_tables() {
        assert!(arch::code().len() <= GDT_OFFSET);
    }

    #[test]
    fn a_processor_has_one_slot_and_cannot_come_twice() {
        let mut area = Area([0; LENGTH as usize]);
        let mapped = NonNull::from(&mut area.0).cast();
        // SAFETY: the array is as long as the area and nobody else's.
        let park = unsafe { ParkArea::install(mapped, BASE) }.unwrap();
        for cpu in 0..SLOTS as u32 {
            park.expect(ApicId(cpu)).unwrap();
        }
        assert_eq!(park.expect(ApicId(64)), Err(ParkError::Full));
        let again = ParkError::State {
            cpu: ApicId(3),
            found: park_state::ARRIVING,
        };
        assert_eq!(park.expect(ApicId(3)), Err(again));
        park.give_up(ApicId(3));
        assert!(park.expect(ApicId(64)).is_ok());
        assert_eq!(park.expect(ApicId(3)), Err(ParkError::Full));
    }

    #[test]
    fn processors_that_come_at_the_same_time_each_get_a_slot() {
        const PROCESSORS: u32 = 4;
        let mut area = Box::new(Area([0; LENGTH as usize]));
        for round in 0..1_000 {
            let mapped = NonNull::from(&mut area.0).cast();
            // SAFETY: the array is as long as the area and nobody else's.
            let park = unsafe { ParkArea::install(mapped, BASE) }.unwrap();
            let ready = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for cpu in 0..PROCESSORS {
                    let ready = &ready;
                    scope.spawn(move || {
                        ready.fetch_add(1, AcqRel);
                        // Spinning, so that all of them go on in the same moment.
                        while ready.load(Acquire) < PROCESSORS {
                            std::thread::yield_now();
                        }
                        assert!(park.expect(ApicId(cpu)).is_ok(), "{cpu} in round {round}");
                    });
                }
            });
            let mut cpus: Vec<_> = park.processors().map(|(cpu, _)| cpu.0).collect();
            cpus.sort_unstable();
            assert_eq!(cpus, [0, 1, 2, 3]);
        }
    }
}
