//! Attempts that a remapping unit stops and that an emulator is known to let through or not to record. They run
//! on a machine of their own, with this kernel alone on it, and each says what came of it; what
//! ought to have come of it is for the operator to know.

use alloc::vec::Vec;

use handoff_abi::{FRAME_SIZE, InterruptHandle, PciFunction, PhysAddr, PhysRange, UnitKind};
use iommu::Access;

use super::devices;
use super::faults::drain;
use super::kernel::{Failure, Kernel, copy_in, copy_out, failure};
use super::own_devices::{EDUS, FIRST_VECTOR};
use crate::edu::Direction;
use crate::{clock, cpu, interrupts, pci, println};

/// A vector that no entry of this kernel is for; the kernel counts it like any other.
const FORGED_VECTOR: u8 = FIRST_VECTOR + 0x1f;
/// An index far beyond the table's end, where the table has 256 entries.
const BEYOND: u16 = 0x0fff;
/// How long an interrupt is waited for, in microseconds.
const ARRIVAL: u64 = 100_000;
/// How long the device's own may take: it has to come.
const OWN: u64 = 5_000_000;
/// How long the device may take for one DMA.
const DMA: u64 = 2_000_000;
/// Memory that is mapped for devices in one piece.
const PIECE: u64 = 2 << 20;
/// Bytes of a DMA on memory, what they are before it, and what the device has to write.
const LENGTH: usize = 64;
const KEPT: u8 = 0x3c;
const WRITTEN: u8 = 0xc5;

/// What is attacked with.
struct Attacker {
    function: PciFunction,
    own: InterruptHandle,
    /// The entry of the other device.
    others: InterruptHandle,
    /// Memory that the device may use.
    scratch: PhysAddr,
    count: u32,
}

/// Makes every attempt.
///
/// # Errors
/// Where the machine has not two such devices, or one does not do what it can.
pub fn attack(kernel: &mut Kernel) -> Result<(), Failure> {
    let functions: Vec<PciFunction> = EDUS.lock().iter().map(|(function, _)| *function).collect();
    let [function, other, ..] = functions[..] else {
        return Err(failure!("two devices are needed to forge an interrupt"));
    };
    let handle = |of: PciFunction| {
        let mut all = kernel.handles.iter();
        all.find(|handle| handle.function == of)
            .copied()
            .ok_or_else(|| failure!("{of} has no interrupt entry"))
    };
    let (own, others) = (handle(function)?, handle(other)?);
    let scratch = kernel
        .memory
        .take(FRAME_SIZE, FRAME_SIZE, u64::MAX)
        .ok_or_else(|| failure!("there is no memory to attack with"))?;
    let mut attacker = Attacker {
        function,
        own,
        others,
        scratch: scratch.base(),
        count: 0,
    };
    let result = attacker.all(kernel);
    // SAFETY: the device has MSI only, no table.
    unsafe { devices::set_message(&own) }?;
    kernel.memory.add(scratch);
    result?;
    println!("@holes attempts={}", attacker.count);
    Ok(())
}

impl Attacker {
    fn all(&mut self, kernel: &mut Kernel) -> Result<(), Failure> {
        // The control: what is allowed comes.
        if !self.raise(&self.own, OWN)? {
            return Err(failure!("the device's own interrupt does not come"));
        }
        let (me, requester) = (cpu::apic_id(), self.function.requester);
        let compatible = pci::message(me, FORGED_VECTOR);
        let others = (self.others.message_address, self.others.message_data);
        let absent = self.absent(kernel)?.message();
        let beyond = kernel.unit()?.interrupt_handle(requester, BEYOND).message();
        for (what, message) in [
            ("handle-of-another", others),
            ("handle-not-set", (absent.address, absent.data)),
            ("handle-beyond-table", (beyond.address, beyond.data)),
            ("compatible-format", compatible),
        ] {
            self.message(kernel, what, message)?;
        }
        self.written(kernel, "handle-of-another-by-dma", others)?;
        self.written(kernel, "compatible-format-by-dma", compatible)?;
        self.load(&compatible.1.to_le_bytes())?;
        let pending = kernel.unit()?.block(requester)?;
        kernel.unit()?.flush(pending)?;
        let result = self.write_loaded(kernel, "compatible-format-of-blocked", compatible);
        let domain = kernel.domain;
        let pending = kernel.unit()?.attach(requester, domain)?;
        kernel.unit()?.flush(pending)?;
        result?;
        self.read_only(kernel)
    }

    /// An entry that is not set: the first that an interrupt could be for.
    fn absent(&self, kernel: &mut Kernel) -> Result<iommu::InterruptHandle, Failure> {
        let unit = kernel.unit()?;
        let set: Vec<u16> = unit
            .interrupts()
            .filter(|interrupt| {
                unit.kind() == UnitKind::VtD || interrupt.handle.source == self.function.requester
            })
            .map(|interrupt| interrupt.handle.index)
            .collect();
        let index = (0..BEYOND)
            .find(|index| !set.contains(index))
            .ok_or_else(|| failure!("every interrupt entry is set"))?;
        Ok(unit.interrupt_handle(self.function.requester, index))
    }

    /// Sends a message by the device's MSI capability.
    fn message(
        &mut self,
        kernel: &mut Kernel,
        what: &str,
        (address, data): (PhysAddr, u32),
    ) -> Result<(), Failure> {
        drain(kernel)?;
        let forged = InterruptHandle {
            message_address: address,
            message_data: data,
            ..self.own
        };
        let came = self.raise(&forged, ARRIVAL)?;
        self.tell(kernel, what, ("message", address, data), effect(came))
    }

    /// Sends a message as a DMA write.
    fn written(
        &mut self,
        kernel: &mut Kernel,
        what: &str,
        (address, data): (PhysAddr, u32),
    ) -> Result<(), Failure> {
        self.load(&data.to_le_bytes())?;
        self.write_loaded(kernel, what, (address, data))
    }

    /// Writes the four bytes that the device has loaded: a message's data.
    fn write_loaded(
        &mut self,
        kernel: &mut Kernel,
        what: &str,
        (address, data): (PhysAddr, u32),
    ) -> Result<(), Failure> {
        drain(kernel)?;
        let before = came();
        self.dma(Direction::ToMemory, address, 4)?;
        let came = clock::wait_until(ARRIVAL, || came() != before);
        self.tell(kernel, what, ("write", address, data), effect(came))
    }

    /// Writes to memory that the device may only read: before and after the unit has cached that.
    fn read_only(&mut self, kernel: &mut Kernel) -> Result<(), Failure> {
        let domain = kernel.domain;
        let memory = kernel
            .memory
            .take(PIECE, PIECE, u64::MAX)
            .ok_or_else(|| failure!("there is no memory to be read only"))?;
        kernel.unmap_dma(domain, memory)?;
        let unit = kernel.unit()?;
        let pending = unit.map(domain, memory.base().0, memory, Access::READ)?;
        unit.flush(pending)?;
        let result = self.write_read_only(kernel, memory.base());
        kernel.unmap_dma(domain, memory)?;
        kernel.map_dma(domain, memory)?;
        kernel.memory.add(memory);
        result
    }

    fn write_read_only(&mut self, kernel: &mut Kernel, base: PhysAddr) -> Result<(), Failure> {
        for (what, page) in [("read-only", 0), ("read-only-cached", 1)] {
            // A page for each, so that a fault says which it was.
            let at = PhysAddr(base.0 + page * FRAME_SIZE);
            // SAFETY: the memory was just taken out of what is free, and is mapped in the window.
            unsafe { copy_in(at, &[KEPT; LENGTH]) };
            if what == "read-only-cached" {
                self.dma(Direction::FromMemory, at, LENGTH as u64)?;
            }
            self.load(&[WRITTEN; LENGTH])?;
            drain(kernel)?;
            self.dma(Direction::ToMemory, at, LENGTH as u64)?;
            let end = PhysAddr(at.0 + LENGTH as u64);
            // SAFETY: as above.
            let found = unsafe { copy_out(PhysRange::from_bounds(at, end)) };
            let kept = found.iter().all(|&byte| byte == KEPT);
            let effect = if kept { "none" } else { "written" };
            let data = u32::from_le_bytes([WRITTEN; 4]);
            self.tell(kernel, what, ("write", at, data), effect)?;
        }
        Ok(())
    }

    /// Says what came of an attempt: a message, or a write of these first four bytes.
    fn tell(
        &mut self,
        kernel: &mut Kernel,
        what: &str,
        (kind, address, data): (&str, PhysAddr, u32),
        effect: &str,
    ) -> Result<(), Failure> {
        let records = drain(kernel)?;
        self.count += 1;
        println!(
            "@hole n={} what={what} kind={kind} by={} address={:#x} data={data:#x} effect={effect} records={} reason={}",
            self.count, self.function, address.0, records[1], records[4]
        );
        Ok(())
    }

    /// Has the device read bytes into its buffer, to write them later.
    fn load(&self, bytes: &[u8]) -> Result<(), Failure> {
        // SAFETY: the scratch page is this kernel's, mapped, and nothing else is in it.
        unsafe { copy_in(self.scratch, bytes) };
        self.dma(Direction::FromMemory, self.scratch, bytes.len() as u64)
    }

    fn dma(&self, direction: Direction, address: PhysAddr, length: u64) -> Result<(), Failure> {
        let mut edus = EDUS.lock();
        let (_, edu) = edus
            .iter_mut()
            .find(|(function, _)| *function == self.function)
            .ok_or_else(|| failure!("{} is not this kernel's any more", self.function))?;
        edu.dma(direction, address.0, 0, length, DMA)?;
        Ok(())
    }

    /// Whether an interrupt comes when the device sends this message.
    fn raise(&self, message: &InterruptHandle, microseconds: u64) -> Result<bool, Failure> {
        // SAFETY: the device has MSI only, no table.
        unsafe { devices::set_message(message) }?;
        let before = came();
        let mut edus = EDUS.lock();
        let (_, edu) = edus
            .iter_mut()
            .find(|(function, _)| *function == self.function)
            .ok_or_else(|| failure!("{} is not this kernel's any more", self.function))?;
        edu.raise(1);
        let raised = clock::wait_until(microseconds, || came() != before);
        edu.acknowledge();
        Ok(raised)
    }
}

const fn effect(came: bool) -> &'static str {
    if came { "delivered" } else { "none" }
}

/// Interrupts that have come by any vector of such devices.
fn came() -> u64 {
    (FIRST_VECTOR..=FORGED_VECTOR).map(interrupts::count).sum()
}
