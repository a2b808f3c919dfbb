//! Functions that the operator plugs in before the machine is looked at: `plug=operator` on the
//! command line.
//!
//! An emulated AMD-Vi unit takes the number of a device's bus when the device is plugged in and
//! never again, so what sits behind a bridge at power-on has bus 0's numbers for ever. On such a
//! machine the bridges start empty. This kernel says `@plug` when every bus has its number, and the
//! operator `plugged` when everything that can be sits in its slot. Where a bridge was among that,
//! the bus behind it gets its number and the kernel says `@plug` once more.

use alloc::vec::Vec;

use acpi_capture::Capture;

use super::devices;
use super::inventory::map_configuration;
use super::kernel::{Failure, Kernel, failure};
use crate::pci::{Ecam, Function, assign, slot};
use crate::{clock, console, println};

/// What the operator says.
const PLUGGED: &str = "plugged";
/// How long the operator may take over one round, in microseconds.
const OPERATOR: u64 = 120_000_000;

/// Lets the operator plug, and gives what was plugged bus numbers, memory and interrupt lines.
///
/// # Errors
/// Where the operator does not answer in time, or there is no room for what was plugged.
pub fn by_operator(kernel: &mut Kernel, captured: &Capture<'_>) -> Result<(), Failure> {
    let allocation = map_configuration(kernel, captured)?;
    let last = allocation.last_bus;
    // SAFETY: just mapped, for good.
    let ecam = unsafe { Ecam::new(allocation.base, allocation.first_bus, last) };
    assign::number_buses(&ecam, 0, last)?;
    let mut more = true;
    while more {
        println!("@plug");
        answer()?;
        let result = take_in(&ecam, last);
        match &result {
            Ok(_) => println!("@done command={PLUGGED} result=ok"),
            Err(error) => println!("@done command={PLUGGED} result=failed text=\"{error}\""),
        }
        more = result?;
    }
    Ok(())
}

/// Waits until the operator says that everything is plugged.
fn answer() -> Result<(), Failure> {
    let plugged = clock::wait_until(OPERATOR, || {
        let Some(line) = console::read_line() else {
            return false;
        };
        let word = line.split_ascii_whitespace().next().unwrap_or("");
        if word != PLUGGED {
            println!("@done command={word} result=refused text=\"what is plugged comes first\"");
        }
        word == PLUGGED
    });
    if plugged {
        Ok(())
    } else {
        Err(failure!("nobody said that everything is plugged"))
    }
}

/// Powers what was plugged and finds it a place. Whether a bridge has come that something can be
/// plugged in behind, now that its bus has a number; nothing is placed before it is.
fn take_in(ecam: &Ecam, last: u8) -> Result<bool, Failure> {
    let mut ports = Vec::new();
    devices::scan(0, &mut |function| {
        if function.secondary_bus().is_some() {
            ports.push(function.id());
        }
    });
    for port in ports.into_iter().filter_map(|id| ecam.function(id)) {
        slot::power_on(&port).map_err(|slot::NoLink| {
            let id = port.id();
            failure!("the link of what was plugged into port {id} does not come up")
        })?;
    }
    if assign::number_buses(ecam, 0, last)? != 0 {
        return Ok(true);
    }
    assign::assign_memory(ecam, 0)?;
    assign::route_lines(ecam, 0);
    devices::scan(0, &mut |function| {
        if function.id().bus() != 0 {
            println!("plugged {function} line {}", line(function));
        }
    });
    Ok(false)
}

/// The interrupt line of a function, 0 where it has none.
fn line(function: &Function) -> u32 {
    function.interrupt_line().unwrap_or(0)
}
