//! AMD-Vi.

use handoff_abi::{DomainId, PhysAddr, RequesterId};
use iommu::amd::spec::Command;
use iommu::{Deadline, RegisterIo};

use super::{TimedOut, wait_for};
use crate::case::RESIDENT;
use crate::platform::WideMemory;
use crate::run::{B, STATUS};

/// Register offsets (AMD 48882 section 3.4).
mod register {
    pub(super) const DEVICE_TABLE: u32 = 0;
    pub(super) const COMMAND_BUFFER: u32 = 8;
    pub(super) const COMMAND_HEAD: u32 = 0x2000;
    pub(super) const COMMAND_TAIL: u32 = 0x2008;
}

/// Base address fields.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// A device table entry that denies memory: V and TV.
const CLEAR: (u64, u64) = (3, 0);
/// The size of an entry.
const ENTRY: u64 = 32;
/// The size of a command.
const COMMAND: u64 = 16;
/// What a wait of Xen's says.
const DONE: u64 = 1;
/// With fewer free bytes than this Linux asks where the unit is.
const NEARLY_FULL: u64 = 0x20;

/// A wait that does not stall what follows (F, bit 2, is clear): both drivers give nothing before it
/// is done.
const fn wait(status: PhysAddr, data: u64) -> Command {
    let mut wait = Command::completion_wait(status, data);
    wait.low &= !(1 << 2);
    wait
}

/// A unit that is up, as a driver knows it that moves devices one by one.
#[derive(Debug)]
pub struct Unit<R, M, C> {
    registers: R,
    memory: M,
    clock: C,
    table: PhysAddr,
    ring: PhysAddr,
    length: u64,
    /// Where the next command goes, in bytes.
    tail: u64,
    /// Where the unit was when it was asked last.
    head: u64,
    sequence: u64,
    /// The half of the device table entry that is about memory, of devices in the new domain.
    entry: (u64, u64),
}

impl<R: RegisterIo, M: WideMemory, C: Deadline> Unit<R, M, C> {
    /// Takes over what Baton brought up.
    #[must_use]
    pub fn take((mut registers, memory, clock): (R, M, C)) -> Self {
        let ring = registers.read64(register::COMMAND_BUFFER);
        let tail = registers.read64(register::COMMAND_TAIL);
        let mut unit = Self {
            table: PhysAddr(registers.read64(register::DEVICE_TABLE) & ADDRESS),
            ring: PhysAddr(ring & ADDRESS),
            length: COMMAND << (ring >> 56 & 0xf),
            tail,
            head: tail,
            sequence: 0,
            registers,
            memory,
            clock,
            entry: (0, 0),
        };
        unit.entry = unit.load(unit.slot(RESIDENT));
        unit.memory.store(STATUS.base(), 0);
        unit
    }

    fn slot(&self, device: RequesterId) -> PhysAddr {
        PhysAddr(self.table.0 + u64::from(device.0) * ENTRY)
    }

    fn load(&self, at: PhysAddr) -> (u64, u64) {
        (self.memory.load(at), self.memory.load(PhysAddr(at.0 + 8)))
    }

    /// One command, one write of the tail.
    fn put(&mut self, command: Command) {
        let at = self.ring.0 + self.tail;
        self.memory.store(PhysAddr(at), command.low);
        self.memory.store(PhysAddr(at + 8), command.high);
        self.tail = (self.tail + COMMAND) % self.length;
        self.registers
            .write32(register::COMMAND_TAIL, self.tail as u32);
    }

    /// As Linux moves a device: the entry is cleared and everything of it invalidated, then it is
    /// written and invalidated again. Its change of an entry flushes it and waits, and so does who
    /// asked for the change.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn linux(&mut self, device: RequesterId) -> Result<(), TimedOut> {
        let at = self.slot(device);
        let domain = DomainId(self.load(at).1 as u16);
        self.linux_update(device, CLEAR)?;
        self.linux_put(Command::pages(domain));
        self.linux_wait()?;
        self.linux_update(device, self.entry)
    }

    fn linux_update(
        &mut self,
        device: RequesterId,
        (low, high): (u64, u64),
    ) -> Result<(), TimedOut> {
        let at = self.slot(device);
        // The half about interrupts first, as it is.
        let interrupts = PhysAddr(at.0 + 16);
        let same = self.load(interrupts);
        self.memory.store_pair(interrupts, same.0, same.1);
        self.memory.store_pair(at, low, high);
        for _ in 0..2 {
            self.linux_put(Command::device_entry(device));
            self.linux_wait()?;
        }
        Ok(())
    }

    fn linux_put(&mut self, command: Command) {
        let next = (self.tail + COMMAND) % self.length;
        if (self.head + self.length - next) % self.length <= NEARLY_FULL {
            self.head = u64::from(self.registers.read32(register::COMMAND_HEAD));
        }
        self.put(command);
    }

    fn linux_wait(&mut self) -> Result<(), TimedOut> {
        self.sequence += 1;
        let status = STATUS.base();
        self.linux_put(wait(status, self.sequence));
        wait_for(&self.memory, &mut self.clock, status, self.sequence, || ())
    }

    /// As Xen moves a device: the half of the entry that is about memory is replaced by one store
    /// of 16 bytes, then it and the old domain are invalidated.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn xen(&mut self, device: RequesterId) -> Result<(), TimedOut> {
        let at = self.slot(device);
        let domain = DomainId(self.load(at).1 as u16);
        let (low, high) = self.entry;
        self.memory.store_pair(at, low, high);
        self.xen_put(Command::device_entry(device));
        self.xen_wait()?;
        self.xen_put(Command::pages(domain));
        self.xen_wait()
    }

    /// One command: a register says whether there is room.
    fn xen_put(&mut self, command: Command) {
        self.registers.read32(register::COMMAND_HEAD);
        self.put(command);
    }

    fn xen_wait(&mut self) -> Result<(), TimedOut> {
        let status = STATUS.base();
        self.memory.store(status, 0);
        self.xen_put(wait(status, DONE));
        wait_for(&self.memory, &mut self.clock, status, DONE, || ())
    }

    /// Whether a device is in the new domain, by what the table says.
    #[must_use]
    pub fn is_moved(&self, device: RequesterId) -> bool {
        let (low, high) = self.load(self.slot(device));
        (low, high) == self.entry && high as u16 == B.0
    }
}
