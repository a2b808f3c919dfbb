//! PCI functions by their address, through the configuration space that this kernel may use.

use handoff_abi::{InterruptHandle, PciFunction, PhysAddr};
use spin::Mutex;

use super::kernel::{Failure, failure};
use crate::pci::{self, Ecam, MsixTable};

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

/// Lets a function make requests or stops it from that, and makes sure that it took effect.
///
/// # Errors
/// Where it does not answer or does not obey.
pub fn set_bus_master(at: PciFunction, on: bool) -> Result<(), Failure> {
    if function(at)?.set_bus_master(on) {
        return Ok(());
    }
    Err(failure!("function {at} does not obey its bus master bit"))
}

/// Keeps a function from using its interrupt line.
pub fn disable_intx(at: PciFunction) {
    if let Ok(function) = function(at) {
        function.disable_intx();
    }
}

/// Switches a function's messages off.
pub fn disable_messages(at: PciFunction) {
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
