//! Making PCI Express functions send every request to the unit that fences them.
//!
//! A unit fences what reaches it. Two things go round it, and both are a function's or a port's own to
//! switch:
//!
//! * Requests between peers: a switch, a root port or a device of several functions may route a request
//!   from one function straight to another. *Access Control Services* have it sent upstream (PCI
//!   Express Base Specification, section 6.12).
//! * Translated requests: with *Address Translation Services* a function asks the unit for a
//!   translation and sends requests that claim to be translated. The driver of this crate has its
//!   units refuse these, but a port on the way may pass them to a peer (section 10.2).
//!
//! [`isolate`] is for every function of the machine, bridges too, once, before units are enabled:
//! firmware and an earlier kernel may have left any of it as it suited them.

use core::fmt;

use handoff_abi::PciFunction;

use crate::config_space::{ConfigError, ConfigSpace, find_express, for_each_extended, read, write};

/// Extended capability ids (PCI Code and ID Assignment Specification, section 3).
const ACCESS_CONTROL: u16 = 0x000d;
const ADDRESS_TRANSLATION: u16 = 0x000f;
const PAGE_REQUEST: u16 = 0x0013;
const PROCESS_ADDRESS_SPACE: u16 = 0x001b;

/// ACS Capability (section 7.7.11.2): what the function can do.
const ACS_CAPABILITY: u16 = 4;
/// ACS Control (section 7.7.11.3), of the same layout.
const ACS_CONTROL: u16 = 6;
/// Source Validation, Translation Blocking, P2P Request Redirect, P2P Completion Redirect and
/// Upstream Forwarding: whatever sends requests upstream, or stops those that lie.
const UPSTREAM: u16 = 0b1_1111;
/// P2P Egress Control and Direct Translated P2P: both let requests to peers through again.
const TO_PEERS: u16 = 0b110_0000;

/// ATS Control (section 10.5.1.3), and Enable in it.
const ATS_CONTROL: (u16, u16) = (6, 1 << 15);
/// Page Request Control (section 10.5.2.2), and Enable in it.
const PAGE_REQUEST_CONTROL: (u16, u16) = (4, 1);
/// PASID Control (section 7.8.9.3), and PASID Enable in it.
const PASID_CONTROL: (u16, u16) = (6, 1);

/// Why a function's requests may go round the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum IsolationError<E> {
    /// Its configuration space cannot be used.
    Config(ConfigError<E>),
    /// A control register did not take what was written.
    Refused {
        /// The function.
        function: PciFunction,
        /// The register's offset.
        offset: u16,
        /// What was written.
        written: u16,
        /// What it reads.
        found: u16,
    },
}

impl<E> From<ConfigError<E>> for IsolationError<E> {
    fn from(error: ConfigError<E>) -> Self {
        Self::Config(error)
    }
}

impl<E: fmt::Display> fmt::Display for IsolationError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => fmt::Display::fmt(error, f),
            Self::Refused {
                function,
                offset,
                written,
                found,
            } => write!(
                f,
                "{function}: control register {offset:#x} was given {written:#06x} and reads {found:#06x}"
            ),
        }
    }
}

impl<E: core::error::Error> core::error::Error for IsolationError<E> {}

/// Has `function` send its requests, and those of the functions below it, upstream: of Access Control
/// Services it gets all that it can do, but for those that let requests to peers through. Page
/// requests, translation services and process address spaces are switched off, in this order. Every
/// register is read back.
///
/// A function without these capabilities has nothing to switch: which functions are one group is for
/// the planner to know. It must make no requests meanwhile (see [`quiesce`](crate::quiesce)): what ATS
/// Enable decides must not change under way (section 10.5.1.3).
///
/// # Errors
/// [`IsolationError`]; what was switched before stays so.
pub fn isolate<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
) -> Result<(), IsolationError<S::Error>> {
    if find_express(config, function)?.is_none() {
        return Ok(());
    }
    // First a look at all of it: nothing is written into a list that is broken.
    let mut off = [
        (PAGE_REQUEST, PAGE_REQUEST_CONTROL, None),
        (ADDRESS_TRANSLATION, ATS_CONTROL, None),
        (PROCESS_ADDRESS_SPACE, PASID_CONTROL, None),
    ];
    let mut access_control = None;
    for_each_extended(config, function, |id, at| {
        if id == ACCESS_CONTROL {
            access_control = Some(at);
        }
        for (_, _, place) in off.iter_mut().filter(|(wanted, _, _)| *wanted == id) {
            *place = Some(at);
        }
    })?;
    for (_, (register, enable), at) in off {
        if let Some(at) = at {
            let value = read(config, function, at + register)?;
            if value & enable != 0 {
                set(config, function, at + register, value & !enable, enable)?;
            }
        }
    }
    if let Some(at) = access_control {
        let able = read(config, function, at + ACS_CAPABILITY)?;
        let value = read(config, function, at + ACS_CONTROL)?;
        let wanted = value & !TO_PEERS | able & UPSTREAM;
        if value != wanted {
            let matter = TO_PEERS | able & UPSTREAM;
            set(config, function, at + ACS_CONTROL, wanted, matter)?;
        }
    }
    Ok(())
}

/// Writes a register, of which the bits of `matter` have to read as they were written.
fn set<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
    offset: u16,
    written: u16,
    matter: u16,
) -> Result<(), IsolationError<S::Error>> {
    write(config, function, offset, written)?;
    let found = read(config, function, offset)?;
    if (found ^ written) & matter == 0 {
        Ok(())
    } else {
        Err(IsolationError::Refused {
            function,
            offset,
            written,
            found,
        })
    }
}
