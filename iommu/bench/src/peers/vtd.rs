//! VT-d.

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, RequesterId};
use iommu::vtd::spec::Descriptor;
use iommu::{Deadline, RegisterIo};

use super::{TimedOut, wait_for};
use crate::case::RESIDENT;
use crate::platform::WideMemory;
use crate::run::{B, STATUS};

/// Register offsets (VT-d section 11.4).
mod register {
    pub(super) const ECAP: u32 = 0x10;
    pub(super) const RTADDR: u32 = 0x20;
    pub(super) const FSTS: u32 = 0x34;
    pub(super) const IQH: u32 = 0x80;
    pub(super) const IQT: u32 = 0x88;
    pub(super) const IQA: u32 = 0x90;
}

/// ECAP.C: the unit snoops.
const COHERENT: u64 = 1;
/// P of root and context entries.
const PRESENT: u64 = 1;

/// What a driver puts where a wait is to say that it is done, and what the wait says.
const IN_USE: u64 = 1;
const DONE: u64 = 2;

/// A unit that is up, as a driver knows it that moves devices one by one.
#[derive(Debug)]
pub struct Unit<R, M, C> {
    registers: R,
    memory: M,
    clock: C,
    root: PhysAddr,
    queue: PhysAddr,
    slots: u64,
    tail: u64,
    coherent: bool,
    /// The context entry of devices in the new domain.
    entry: (u64, u64),
}

impl<R: RegisterIo, M: WideMemory, C: Deadline> Unit<R, M, C> {
    /// Takes over what Baton brought up.
    #[must_use]
    pub fn take((mut registers, memory, clock): (R, M, C)) -> Self {
        let queue = registers.read64(register::IQA);
        let mut unit = Self {
            root: PhysAddr(registers.read64(register::RTADDR) & !(FRAME_SIZE - 1)),
            queue: PhysAddr(queue & !(FRAME_SIZE - 1)),
            slots: 256 << (queue & 7),
            tail: registers.read64(register::IQT) / Descriptor::SIZE,
            coherent: registers.read64(register::ECAP) & COHERENT != 0,
            registers,
            memory,
            clock,
            entry: (0, 0),
        };
        let resident = unit.context(RESIDENT);
        unit.entry = unit.load(resident);
        unit
    }

    fn load(&self, at: PhysAddr) -> (u64, u64) {
        (self.memory.load(at), self.memory.load(PhysAddr(at.0 + 8)))
    }

    /// Where the context entry of a device is.
    fn context(&self, device: RequesterId) -> PhysAddr {
        let root = PhysAddr(self.root.0 + u64::from(device.bus()) * 16);
        let table = self.memory.load(root) & !(FRAME_SIZE - 1);
        PhysAddr(table + u64::from(device.0 & 0xff) * 16)
    }

    /// Writes an entry back for a unit that does not snoop.
    fn sync(&mut self, entry: PhysAddr) {
        if !self.coherent {
            self.memory.write_back(entry, 16);
        }
    }

    /// Writes a descriptor into the next slot, and returns that slot.
    fn put(&mut self, descriptor: Descriptor) -> u64 {
        let slot = self.tail;
        let at = self.queue.0 + slot * Descriptor::SIZE;
        self.memory.store(PhysAddr(at + 8), descriptor.high);
        self.memory.store(PhysAddr(at), descriptor.low);
        self.sync(PhysAddr(at));
        self.tail = (slot + 1) % self.slots;
        slot
    }

    fn ring(&mut self) {
        let tail = (self.tail * Descriptor::SIZE) as u32;
        self.registers.write32(register::IQT, tail);
    }

    /// One wait descriptor; its data are the low half of what is compared.
    fn wait_descriptor(status: PhysAddr) -> Descriptor {
        Descriptor::wait(status, DONE as u32)
    }

    /// As Linux moves a device: the entry loses its present bit, then both caches are invalidated,
    /// then it is cleared and written anew.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn linux(&mut self, device: RequesterId) -> Result<(), TimedOut> {
        let at = self.context(device);
        let high = PhysAddr(at.0 + 8);
        let old = self.load(at);
        let domain = DomainId((old.1 >> 8) as u16);
        self.memory.store(at, old.0 & !PRESENT);
        self.sync(at);
        self.linux_submit(Descriptor::context_device(device, domain))?;
        self.linux_submit(Descriptor::iotlb_domain(domain))?;
        self.memory.store(at, 0);
        self.memory.store(high, 0);
        self.sync(at);
        // Attached: what is not present is written first, then the present bit is set.
        let new = self.entry;
        self.memory.store(high, new.1);
        self.memory.store(at, new.0 & !PRESENT);
        self.memory.store(at, new.0);
        self.sync(at);
        Ok(())
    }

    /// One descriptor, one wait, one write of the tail. Each slot has a status word beside the
    /// queue.
    fn linux_submit(&mut self, descriptor: Descriptor) -> Result<(), TimedOut> {
        let status = |slot: u64| PhysAddr(STATUS.base().0 + slot * 8);
        let first = self.put(descriptor);
        self.memory.store(status(first), IN_USE);
        let last = self.tail;
        self.memory.store(status(last), IN_USE);
        self.put(Self::wait_descriptor(status(last)));
        self.ring();
        let registers = &mut self.registers;
        let fault = || {
            registers.read32(register::FSTS);
        };
        wait_for(&self.memory, &mut self.clock, status(last), DONE, fault)?;
        for slot in [first, last] {
            self.memory.store(status(slot), 0);
        }
        Ok(())
    }

    /// As Xen moves a device: the entry is replaced by one store of 16 bytes, then both caches are
    /// invalidated.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn xen(&mut self, device: RequesterId) -> Result<(), TimedOut> {
        let at = self.context(device);
        let old = self.load(at);
        let domain = DomainId((old.1 >> 8) as u16);
        let (low, high) = self.entry;
        self.memory.store_pair(at, low, high);
        self.sync(at);
        self.xen_put(Descriptor::context_device(device, domain));
        self.xen_wait()?;
        self.xen_put(Descriptor::iotlb_domain(domain));
        self.xen_wait()
    }

    /// One descriptor: two registers say where to put it, one that it is there.
    fn xen_put(&mut self, descriptor: Descriptor) {
        self.registers.read32(register::IQT);
        self.registers.read32(register::IQH);
        self.put(descriptor);
        self.ring();
    }

    fn xen_wait(&mut self) -> Result<(), TimedOut> {
        let status = STATUS.base();
        self.memory.store(status, 0);
        self.xen_put(Self::wait_descriptor(status));
        wait_for(&self.memory, &mut self.clock, status, DONE, || ())
    }

    /// As ACRN moves a device: the entry is cleared, then both caches are invalidated, then it is
    /// written anew.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn acrn(&mut self, device: RequesterId) -> Result<(), TimedOut> {
        let at = self.context(device);
        let high = PhysAddr(at.0 + 8);
        let old = self.load(at);
        let domain = DomainId((old.1 >> 8) as u16);
        self.memory.store(at, 0);
        self.memory.store(high, 0);
        self.sync(at);
        self.acrn_submit(Descriptor::context_device(device, domain))?;
        self.acrn_submit(Descriptor::iotlb_domain(domain))?;
        let new = self.entry;
        self.memory.store(high, new.1);
        self.memory.store(at, new.0);
        self.sync(at);
        Ok(())
    }

    fn acrn_submit(&mut self, descriptor: Descriptor) -> Result<(), TimedOut> {
        let status = STATUS.base();
        self.put(descriptor);
        self.put(Self::wait_descriptor(status));
        self.memory.store(status, IN_USE);
        self.ring();
        wait_for(&self.memory, &mut self.clock, status, DONE, || ())
    }

    /// Whether a device is in the new domain, by what the table says.
    #[must_use]
    pub fn is_moved(&self, device: RequesterId) -> bool {
        let (low, high) = self.load(self.context(device));
        (low, high) == self.entry && (high >> 8) as u16 == B.0
    }
}
