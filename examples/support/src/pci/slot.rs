//! The slot of a root port: its power, and whether the link to what was plugged is up (PCI Express
//! Base Specification 5.0, sections 7.5.3.8 to 7.5.3.11).

use super::{Function, capability};
use crate::clock;

/// Offsets in the PCI Express capability.
const CAPABILITIES: usize = 0x02;
const LINK_CAPABILITIES: usize = 0x0c;
const LINK_STATUS: usize = 0x12;
const SLOT_CAPABILITIES: usize = 0x14;
const SLOT_CONTROL: usize = 0x18;
const SLOT_STATUS: usize = 0x1a;

/// Slot Implemented, of the capabilities register.
const SLOT_IMPLEMENTED: u16 = 1 << 8;
/// Data Link Layer Link Active Reporting Capable.
const LINK_ACTIVE_REPORTED: u32 = 1 << 20;
/// Data Link Layer Link Active.
const LINK_ACTIVE: u16 = 1 << 13;
/// Power Controller Present.
const POWER_CONTROLLER: u32 = 1 << 1;
/// Power Controller Control: set is off.
const POWER_OFF: u16 = 1 << 10;
/// Power Indicator Control, and its value for "on".
const POWER_INDICATOR: u16 = 3 << 8;
const POWER_INDICATOR_ON: u16 = 1 << 8;
/// Command Completed and the other events, all write 1 to clear.
const EVENTS: u16 = 0x11f;
/// Presence Detect State.
const PRESENT: u16 = 1 << 6;

/// How long a link may take to come up, in microseconds: the specification gives a device a second
/// from power to its first answer.
const LINK_UP: u64 = 1_000_000;

/// A slot in which something sticks whose link does not come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLink;

/// Switches the power of an occupied slot on and waits until what sticks in it is there. Says
/// whether anything does; a port that has no slot has nothing to switch.
///
/// # Errors
/// [`NoLink`].
pub fn power_on(port: &Function) -> Result<bool, NoLink> {
    let config = port.config();
    let Some(express) = port.capability(capability::EXPRESS) else {
        return Ok(false);
    };
    let slot = config.read16(express + CAPABILITIES) & SLOT_IMPLEMENTED != 0;
    if !slot || config.read16(express + SLOT_STATUS) & PRESENT == 0 {
        return Ok(false);
    }
    let control = config.read16(express + SLOT_CONTROL);
    let switched = config.read32(express + SLOT_CAPABILITIES) & POWER_CONTROLLER != 0;
    if switched && control & POWER_OFF != 0 {
        let on = control & !(POWER_OFF | POWER_INDICATOR) | POWER_INDICATOR_ON;
        config.write16(express + SLOT_CONTROL, on);
    }
    // What happened to the slot before is told by what is found in it now.
    config.write16(express + SLOT_STATUS, EVENTS);
    if config.read32(express + LINK_CAPABILITIES) & LINK_ACTIVE_REPORTED == 0 {
        return Ok(true);
    }
    let active = || config.read16(express + LINK_STATUS) & LINK_ACTIVE != 0;
    if clock::wait_until(LINK_UP, active) {
        Ok(true)
    } else {
        Err(NoLink)
    }
}
