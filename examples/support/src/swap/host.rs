//! A VT-d unit as a kernel drives it that knows nothing of Baton: the host of `iommu=host`.
//!
//! It is what a small kernel has: legacy mode, one domain after the other, and after each change an
//! invalidation and a wait. It shares nothing with the driver of `iommu`; bits are those of the VT-d
//! specification, chapters 9 and 11.

use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;

use handoff_abi::{
    DomainId, FRAME_SIZE, InterruptTarget, PhysAddr, PhysRange, RequesterId, UnitKind,
};
use iommu::{Access, HostDriver, InterruptHandle};

use crate::clock;
use crate::mmio::{self, Mmio};

/// How long the unit may take over anything, in microseconds.
const PATIENCE: u64 = 1_000_000;
/// The ids in the tables begin above those of Baton's domains.
const FIRST_ID: u16 = 0x100;
const ENTRIES: u16 = 256;
const WORD: u64 = 8;

// Registers.
const CAP: usize = 0x08;
const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const RTADDR: usize = 0x20;
const IQT: usize = 0x88;
const IQA: usize = 0x90;
const IRTA: usize = 0xb8;
/// What GSTS has of what GCMD is to keep: all but the one-shot commands.
const KEPT: u32 = 0x96ff_ffff;
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;

// Invalidation descriptors, the lower halves.
const CONTEXTS: u64 = 1 | 1 << 4;
const CONTEXT_OF_DEVICE: u64 = 1 | 3 << 4;
const TRANSLATIONS: u64 = 2 | 1 << 4 | 3 << 6;
const TRANSLATIONS_OF_DOMAIN: u64 = 2 | 2 << 4 | 3 << 6;
const INTERRUPTS: u64 = 4;
const INTERRUPT: u64 = 4 | 1 << 4;
const WAIT: u64 = 5 | 1 << 5;

/// Why the driver did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostVtdError {
    /// The unit did not do it in time; the step.
    Timeout(&'static str),
    /// There is no memory for another table.
    Memory,
    /// There is no such domain.
    Domain(DomainId),
    /// The tables of the unit are too shallow for the address.
    Address(u64),
    /// Something is mapped there already, or nothing, or a part of a larger page only.
    Mapped(u64),
    /// No interrupt entry is free, or it is not the device's.
    Interrupt(RequesterId),
}

impl fmt::Display for HostVtdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(step) => write!(f, "the unit does not answer: {step}"),
            Self::Memory => f.write_str("no memory for another table"),
            Self::Domain(domain) => write!(f, "no domain {domain}"),
            Self::Address(iova) => write!(f, "{iova:#x} is beyond the unit's tables"),
            Self::Mapped(iova) => write!(f, "what is mapped at {iova:#x} does not fit"),
            Self::Interrupt(source) => write!(f, "no interrupt entry of {source}"),
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct HostVtd {
    registers: Mmio,
    /// Memory for tables, and how much of it is used.
    pool: PhysRange,
    used: u64,
    levels: u64,
    large_pages: bool,
    root: PhysAddr,
    queue: PhysAddr,
    /// Where waits write their number.
    status: PhysAddr,
    interrupts: PhysAddr,
    tail: u64,
    waits: u32,
    domains: Vec<(DomainId, PhysAddr)>,
}

fn word(at: PhysAddr) -> *mut u64 {
    mmio::pointer(at).cast().as_ptr()
}

const fn offset(base: PhysAddr, bytes: u64) -> PhysAddr {
    PhysAddr(base.0 + bytes)
}

/// Which id stands in the tables for a domain.
const fn number(domain: DomainId) -> u64 {
    (FIRST_ID + domain.0) as u64
}

impl HostVtd {
    /// Brings the unit up with tables in `pool`: translation and interrupt remapping are on, and
    /// every device reaches nothing.
    ///
    /// # Errors
    /// Where the unit does not answer.
    ///
    /// # Safety
    /// The registers are a VT-d unit's that nobody drives, and the window maps `pool`, which is this
    /// driver's alone for as long as the unit uses its tables.
    pub unsafe fn new(registers: Mmio, pool: PhysRange) -> Result<Self, HostVtdError> {
        let capability = registers.read64(CAP);
        let none = PhysAddr(0);
        let mut host = Self {
            registers,
            pool,
            used: 0,
            // SAGAW: bit 9 for three levels, bit 10 for four.
            levels: if capability >> 9 & 1 == 1 { 3 } else { 4 },
            large_pages: capability >> 34 & 1 == 1,
            root: none,
            queue: none,
            status: none,
            interrupts: none,
            tail: 0,
            waits: 0,
            domains: Vec::new(),
        };
        host.root = host.frame()?;
        host.queue = host.frame()?;
        host.status = host.frame()?;
        host.interrupts = host.frame()?;
        host.registers.write64(RTADDR, host.root.0);
        host.command(SRTP, "its root table")?;
        host.registers.write64(IQT, 0);
        host.registers.write64(IQA, host.queue.0);
        host.command(QIE, "its queue")?;
        host.invalidate(&[CONTEXTS, TRANSLATIONS])?;
        // 2^(7 + 1) entries.
        host.registers.write64(IRTA, host.interrupts.0 | 7);
        host.command(SIRTP, "its interrupt table")?;
        host.invalidate(&[INTERRUPTS])?;
        host.command(IRE, "interrupt remapping")?;
        host.command(TE, "translation")?;
        Ok(host)
    }

    /// The memory of the invalidation queue, for who takes the unit over.
    #[must_use]
    pub const fn queue(&self) -> PhysRange {
        PhysRange::from_bounds(self.queue, offset(self.queue, FRAME_SIZE))
    }

    /// A zeroed frame of the pool.
    fn frame(&mut self) -> Result<PhysAddr, HostVtdError> {
        let at = offset(self.pool.base(), self.used);
        if at.0 + FRAME_SIZE > self.pool.end().0 {
            return Err(HostVtdError::Memory);
        }
        self.used += FRAME_SIZE;
        for entry in 0..FRAME_SIZE / WORD {
            self.store(offset(at, entry * WORD), 0);
        }
        Ok(at)
    }

    fn load(&self, at: PhysAddr) -> u64 {
        // SAFETY: only words of frames of the pool are asked for, which `new` was promised.
        unsafe { word(at).read_volatile() }
    }

    /// Stores, and writes the line back: the unit may not snoop.
    fn store(&mut self, at: PhysAddr, value: u64) {
        let word = word(at);
        // SAFETY: as for `load`; nobody else looks but the unit.
        unsafe { word.write_volatile(value) };
        // SAFETY: the address is mapped, and the instruction changes no memory.
        unsafe { asm!("clflush [{}]", in(reg) word, options(nostack, preserves_flags)) };
        // SAFETY: a fence only orders.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    }

    /// One command of GCMD, and its answer in GSTS.
    fn command(&mut self, bit: u32, step: &'static str) -> Result<(), HostVtdError> {
        let kept = self.registers.read32(GSTS) & KEPT;
        self.registers.write32(GCMD, kept | bit);
        if clock::wait_until(PATIENCE, || self.registers.read32(GSTS) & bit != 0) {
            Ok(())
        } else {
            Err(HostVtdError::Timeout(step))
        }
    }

    fn enqueue(&mut self, low: u64, high: u64) {
        let at = offset(self.queue, self.tail);
        self.store(at, low);
        self.store(offset(at, WORD), high);
        self.tail = (self.tail + 16) % FRAME_SIZE;
    }

    /// Has the unit forget, and waits until it has.
    fn invalidate(&mut self, descriptors: &[u64]) -> Result<(), HostVtdError> {
        for &descriptor in descriptors {
            self.enqueue(descriptor, 0);
        }
        self.waits = self.waits.wrapping_add(1);
        let wanted = u64::from(self.waits);
        self.enqueue(WAIT | wanted << 32, self.status.0);
        self.registers.write64(IQT, self.tail);
        let status = self.status;
        if clock::wait_until(PATIENCE, || self.load(status) == wanted) {
            Ok(())
        } else {
            Err(HostVtdError::Timeout("an invalidation"))
        }
    }

    fn root_of(&self, domain: DomainId) -> Result<PhysAddr, HostVtdError> {
        let found = self.domains.iter().find(|(id, _)| *id == domain);
        found
            .map(|(_, root)| *root)
            .ok_or(HostVtdError::Domain(domain))
    }

    /// The place of the entry for `iova` in the tables of `level`, which are made on the way where
    /// `make` says so; `None` where they are not there.
    fn entry(
        &mut self,
        root: PhysAddr,
        iova: u64,
        level: u64,
        make: bool,
    ) -> Result<Option<PhysAddr>, HostVtdError> {
        if iova >> (12 + 9 * self.levels) != 0 {
            return Err(HostVtdError::Address(iova));
        }
        let mut table = root;
        let mut at = self.levels;
        loop {
            let entry = offset(table, (iova >> (12 + 9 * (at - 1)) & 511) * WORD);
            if at == level {
                return Ok(Some(entry));
            }
            let found = self.load(entry);
            table = match found & 3 {
                0 if make => {
                    let table = self.frame()?;
                    self.store(entry, table.0 | 3);
                    table
                }
                0 => return Ok(None),
                // A large page where a smaller one is wanted.
                _ if found & 1 << 7 != 0 => return Err(HostVtdError::Mapped(iova)),
                _ => PhysAddr(found & !0xfff),
            };
            at -= 1;
        }
    }

    /// The entry of a device, where its bus has a context table or is to have one.
    fn context(
        &mut self,
        requester: RequesterId,
        make: bool,
    ) -> Result<Option<PhysAddr>, HostVtdError> {
        let slot = offset(self.root, u64::from(requester.0 >> 8) * 16);
        let found = self.load(slot);
        let table = match found & 1 {
            1 => PhysAddr(found & !0xfff),
            _ if make => {
                let table = self.frame()?;
                self.store(slot, table.0 | 1);
                table
            }
            _ => return Ok(None),
        };
        Ok(Some(offset(table, u64::from(requester.0 & 0xff) * 16)))
    }

    const fn interrupt(&self, index: u16) -> PhysAddr {
        offset(self.interrupts, index as u64 * 16)
    }

    /// The entry of a handle, if it is its device's.
    fn interrupt_of(&self, handle: InterruptHandle) -> Result<PhysAddr, HostVtdError> {
        let at = self.interrupt(handle.index);
        let source = self.load(offset(at, WORD)) as u16;
        if handle.index < ENTRIES && self.load(at) & 1 == 1 && source == handle.source.0 {
            Ok(at)
        } else {
            Err(HostVtdError::Interrupt(handle.source))
        }
    }
}

/// The lower half of a present entry: fixed, edge, physical destination in xAPIC's place.
const fn remapped(target: InterruptTarget) -> u64 {
    1 | (target.vector as u64) << 16 | (target.destination.0 as u64) << 40
}

/// A large page, where there are any.
const LARGE: u64 = 2 << 20;

impl HostDriver for HostVtd {
    type Error = HostVtdError;

    fn create_domain(&mut self, id: DomainId) -> Result<(), HostVtdError> {
        let root = self.frame()?;
        self.domains.push((id, root));
        Ok(())
    }

    fn destroy_domain(&mut self, id: DomainId) -> Result<(), HostVtdError> {
        self.domains.retain(|(known, _)| *known != id);
        self.invalidate(&[TRANSLATIONS_OF_DOMAIN | number(id) << 16])
    }

    fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<(), HostVtdError> {
        let root = self.root_of(domain)?;
        let rights = u64::from(access.contains(Access::READ))
            | u64::from(access.contains(Access::WRITE)) << 1;
        let mut done = 0;
        while done < memory.length() {
            let (from, to) = (iova + done, memory.base().0 + done);
            let large = self.large_pages
                && from.is_multiple_of(LARGE)
                && to.is_multiple_of(LARGE)
                && memory.length() - done >= LARGE;
            let (level, length) = if large { (2, LARGE) } else { (1, FRAME_SIZE) };
            let entry = self.entry(root, from, level, true)?;
            let entry = entry.ok_or(HostVtdError::Mapped(from))?;
            if self.load(entry) != 0 {
                return Err(HostVtdError::Mapped(from));
            }
            self.store(entry, to | u64::from(large) << 7 | rights);
            done += length;
        }
        Ok(())
    }

    fn unmap(&mut self, domain: DomainId, iova: u64, length: u64) -> Result<(), HostVtdError> {
        let root = self.root_of(domain)?;
        let mut done = 0;
        while done < length {
            let at = iova + done;
            let upper = self.entry(root, at, 2, false)?;
            let upper = upper.ok_or(HostVtdError::Mapped(at))?;
            let large = self.load(upper) & 1 << 7 != 0;
            if large && (!at.is_multiple_of(LARGE) || length - done < LARGE) {
                return Err(HostVtdError::Mapped(at));
            }
            let entry = if large {
                upper
            } else {
                let entry = self.entry(root, at, 1, false)?;
                entry.ok_or(HostVtdError::Mapped(at))?
            };
            self.store(entry, 0);
            done += if large { LARGE } else { FRAME_SIZE };
        }
        self.invalidate(&[TRANSLATIONS_OF_DOMAIN | number(domain) << 16])
    }

    fn attach(&mut self, requester: RequesterId, domain: DomainId) -> Result<(), HostVtdError> {
        let root = self.root_of(domain)?;
        let entry = self
            .context(requester, true)?
            .ok_or(HostVtdError::Domain(domain))?;
        // AW: 1 for three levels, 2 for four. The half with P comes last.
        self.store(offset(entry, WORD), number(domain) << 8 | (self.levels - 2));
        self.store(entry, root.0 | 1);
        let source = u64::from(requester.0) << 32;
        self.invalidate(&[
            CONTEXT_OF_DEVICE | number(domain) << 16 | source,
            TRANSLATIONS_OF_DOMAIN | number(domain) << 16,
        ])
    }

    fn block(&mut self, requester: RequesterId) -> Result<(), HostVtdError> {
        let Some(entry) = self.context(requester, false)? else {
            return Ok(());
        };
        let low = self.load(entry);
        if low & 1 == 0 {
            return Ok(());
        }
        let domain = self.load(offset(entry, WORD)) >> 8 & 0xffff;
        self.store(entry, low & !1);
        let source = u64::from(requester.0) << 32;
        self.invalidate(&[
            CONTEXT_OF_DEVICE | domain << 16 | source,
            TRANSLATIONS_OF_DOMAIN | domain << 16,
        ])?;
        self.store(entry, 0);
        self.store(offset(entry, WORD), 0);
        Ok(())
    }

    fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<InterruptHandle, HostVtdError> {
        let index = (0..ENTRIES)
            .find(|&index| self.load(self.interrupt(index)) == 0)
            .ok_or(HostVtdError::Interrupt(source))?;
        let at = self.interrupt(index);
        // SVT 01b: all 16 bits of the requester id are compared.
        self.store(offset(at, WORD), 1 << 18 | u64::from(source.0));
        self.store(at, remapped(target));
        self.invalidate(&[INTERRUPT | u64::from(index) << 32])?;
        Ok(InterruptHandle::new(UnitKind::VtD, source, index))
    }

    fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<(), HostVtdError> {
        let at = self.interrupt_of(handle)?;
        self.store(at, remapped(target));
        self.invalidate(&[INTERRUPT | u64::from(handle.index) << 32])
    }

    fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<(), HostVtdError> {
        let at = self.interrupt_of(handle)?;
        self.store(at, 0);
        self.store(offset(at, WORD), 0);
        self.invalidate(&[INTERRUPT | u64::from(handle.index) << 32])
    }
}
