//! PCI functions by their address, through the configuration space that this kernel may use.

use alloc::vec::Vec;
use core::fmt;

use handoff_abi::{InterruptHandle, PciFunction, PhysAddr};
use iommu::quiesce::{self, BusMaster};
use iommu::{ConfigSpace, isolation};
use spin::Mutex;

use super::kernel::{Failure, Timer, failure};
use crate::mmio::Mmio;
use crate::pci::{self, Ecam, MsixTable};

/// How long the transactions of functions that are made quiet may be pending, in microseconds: half
/// as long again as the 50 ms after which a completion has timed out at the latest.
const QUIET: u32 = 75_000;

/// One range of buses for each host bridge that the kernel sees.
static CONFIGURATION: Mutex<heapless::Vec<Ecam, 16>> = Mutex::new(heapless::Vec::new());

/// Adds configuration space of some buses, mapped into the window.
pub fn add(ecam: Ecam) {
    let _ = CONFIGURATION.lock().push(ecam);
}

/// Forgets what was added, for a kernel that sees all of it from now on.
pub fn clear() {
    CONFIGURATION.lock().clear();
}

/// A function that answers.
///
/// # Errors
/// Where none does, or its bus is not this kernel's to see.
pub fn function(function: PciFunction) -> Result<pci::Function, Failure> {
    CONFIGURATION
        .lock()
        .iter()
        .find_map(|ecam| ecam.function(function.requester))
        .ok_or_else(|| failure!("function {function} does not answer"))
}

/// Visits every function of bus `bus` and behind its bridges.
pub fn scan(bus: u8, visit: &mut impl FnMut(&pci::Function)) {
    for ecam in CONFIGURATION.lock().iter() {
        ecam.scan(bus, visit);
    }
}

/// Configuration space of the functions that this kernel may see, as the libraries want it.
#[derive(Debug)]
pub struct Configuration;

/// A function whose bus is not this kernel's to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfSight;

impl fmt::Display for OutOfSight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bus is not this kernel's to see")
    }
}

impl core::error::Error for OutOfSight {}

impl Configuration {
    fn registers(at: PciFunction) -> Result<Mmio, OutOfSight> {
        let all = CONFIGURATION.lock();
        let registers = all.iter().find_map(|ecam| ecam.registers(at.requester));
        registers.filter(|_| at.segment == 0).ok_or(OutOfSight)
    }
}

impl ConfigSpace for Configuration {
    type Error = OutOfSight;

    fn read16(&mut self, function: PciFunction, offset: u16) -> Result<u16, OutOfSight> {
        Ok(Self::registers(function)?.read16(offset.into()))
    }

    fn write16(
        &mut self,
        function: PciFunction,
        offset: u16,
        value: u16,
    ) -> Result<(), OutOfSight> {
        Self::registers(function)?.write16(offset.into(), value);
        Ok(())
    }
}

/// Makes functions quiet before they change hands without a workload: what they did is done, and
/// they do nothing more. Then their messages are off.
///
/// # Errors
/// The first that cannot be made quiet. None of those that obey is a bus master then.
pub fn quiesce(functions: &[PciFunction]) -> Result<(), Failure> {
    let masters = functions
        .iter()
        .map(|&function| BusMaster::find(&mut Configuration, function))
        .collect::<Result<Vec<_>, _>>()?;
    quiesce::quiesce(&mut Configuration, &mut Timer::default(), QUIET, &masters)?;
    for &function in functions {
        disable_messages(function);
    }
    Ok(())
}

/// Has functions send every request upstream, to the unit. They make none meanwhile.
///
/// # Errors
/// The first that goes on as it was.
pub fn isolate(functions: impl Iterator<Item = PciFunction>) -> Result<(), Failure> {
    for function in functions {
        isolation::isolate(&mut Configuration, function)?;
    }
    Ok(())
}

/// Keeps a function from using its interrupt line.
pub fn disable_intx(at: PciFunction) {
    if let Ok(function) = function(at) {
        function.disable_intx();
    }
}

/// Switches a function's messages off.
fn disable_messages(at: PciFunction) {
    if let Ok(function) = function(at) {
        function.disable_msi();
        function.enable_msix(false);
    }
}

/// Gives a function the message of an interrupt entry, by MSI-X where it has that.
///
/// # Errors
/// Where it does not answer or can send no such message.
///
/// # Safety
/// The window maps the function's MSI-X table, if it has one.
pub unsafe fn set_message(handle: &InterruptHandle) -> Result<(), Failure> {
    let function = function(handle.function)?;
    let (address, data): (PhysAddr, u32) = (handle.message_address, handle.message_data);
    if let Some((base, entries)) = function.msix_table() {
        // SAFETY: the caller's promise.
        let table = unsafe { MsixTable::new(base, entries) };
        let entry = u16::try_from(handle.message).unwrap_or(u16::MAX);
        if table.set(entry, address, data) && function.enable_msix(true) {
            return Ok(());
        }
    } else if handle.message == 0 && function.set_msi(address, data) {
        return Ok(());
    }
    Err(failure!(
        "function {} cannot send message {}",
        handle.function,
        handle.message
    ))
}
