//! Making PCI functions quiet before they are moved to another domain.
//!
//! A posted write waits in the fabric, untranslated, until it reaches the unit. One that a device
//! issued in its old domain and that arrives after the move is translated by the new one. No
//! invalidation helps: the unit has not seen it yet. So the functions that change their domain are
//! made quiet first, while the old tables are in force:
//!
//! 1. Bus Master Enable is cleared in all of them, so that they issue nothing more;
//! 2. it is read back from all of them: it must be clear, and the completion of the read has pushed
//!    every write ahead that the function issued before (PCI Express Base Specification, section
//!    2.4.1, completions do not pass posted requests);
//! 3. Transactions Pending is awaited, so that no read is under way whose completion the device may
//!    still answer to.
//!
//! Messages (MSI, MSI-X) are posted writes as well: the function raises no interrupt afterwards
//! either. Bus mastering is switched on again by the driver of the new owner when it has set the
//! device up, never here. A device that moves *with* its domain is not to be made quiet: what it
//! reaches does not change.
//!
//! A function without a PCI Express capability has no Transactions Pending
//! ([`BusMaster::express_capability`] says so). Step 2 holds for it all the same; that it awaits no
//! completion is for its driver, or a reset, to ensure.

use core::fmt;

use handoff_abi::PciFunction;

use crate::Deadline;
use crate::config_space::{ConfigError, ConfigSpace, find_express, read, write};

/// The Command register (PCI Express Base Specification, section 7.5.1.1.3).
const COMMAND: u16 = 0x04;
/// Bus Master Enable in it.
const BUS_MASTER_ENABLE: u16 = 1 << 2;
/// The Device Status register's place in the PCI Express capability (section 7.5.3.5).
const DEVICE_STATUS: u16 = 0x0a;
/// Transactions Pending in that.
const TRANSACTIONS_PENDING: u16 = 1 << 5;
/// Why a function is not known to be quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum QuiesceError<E> {
    /// Its configuration space cannot be used.
    Config(ConfigError<E>),
    /// Bus Master Enable is still set after it was cleared.
    StillBusMaster {
        /// The function.
        function: PciFunction,
        /// The Command register.
        command: u16,
    },
    /// Transactions were still pending when the time was over. Bus Master Enable is clear.
    StillPending {
        /// The function.
        function: PciFunction,
        /// The Device Status register.
        device_status: u16,
    },
}

impl<E> QuiesceError<E> {
    /// The function that is to blame.
    #[must_use]
    pub const fn function(&self) -> PciFunction {
        match self {
            Self::Config(error) => error.function(),
            Self::StillBusMaster { function, .. } | Self::StillPending { function, .. } => {
                *function
            }
        }
    }
}

impl<E: fmt::Display> fmt::Display for QuiesceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => fmt::Display::fmt(error, f),
            Self::StillBusMaster { function, command } => {
                write!(f, "{function}: still a bus master, command {command:#06x}")
            }
            Self::StillPending {
                function,
                device_status,
            } => write!(
                f,
                "{function}: transactions pending, device status {device_status:#06x}"
            ),
        }
    }
}

impl<E> From<ConfigError<E>> for QuiesceError<E> {
    fn from(error: ConfigError<E>) -> Self {
        Self::Config(error)
    }
}

impl<E: core::error::Error> core::error::Error for QuiesceError<E> {}

/// A function that makes requests, looked at beforehand so that [`quiesce`] has little to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BusMaster {
    function: PciFunction,
    express: Option<u16>,
}

impl BusMaster {
    /// Looks for the function's PCI Express capability. Nothing is written.
    ///
    /// # Errors
    /// [`QuiesceError::Config`].
    pub fn find<S: ConfigSpace>(
        config: &mut S,
        function: PciFunction,
    ) -> Result<Self, QuiesceError<S::Error>> {
        Ok(Self {
            function,
            express: find_express(config, function)?,
        })
    }

    /// The function.
    #[must_use]
    pub const fn function(&self) -> PciFunction {
        self.function
    }

    /// The offset of its PCI Express capability; `None` for a conventional function, which cannot
    /// say whether transactions are pending.
    #[must_use]
    pub const fn express_capability(&self) -> Option<u16> {
        self.express
    }
}

/// Makes functions quiet: none of them is a bus master any more, every write that any of them
/// issued has reached the unit, and no transaction is pending in those that can tell. See the
/// [module](self) for the order.
///
/// One period of `timeout_microseconds` bounds the wait for all of them.
///
/// # Errors
/// The first one that is found, of a function that is not known to be quiet. Bus Master Enable was
/// cleared in *all* that can be reached, and stays so.
pub fn quiesce<S: ConfigSpace, C: Deadline>(
    config: &mut S,
    clock: &mut C,
    timeout_microseconds: u32,
    functions: &[BusMaster],
) -> Result<(), QuiesceError<S::Error>> {
    let mut result = Ok(());
    // All of them, whatever becomes of one: `and` keeps the first error and comes too late to stop.
    for master in functions {
        result = result.and(clear_bus_master(config, master.function));
    }
    for master in functions {
        result = result.and(require_no_bus_master(config, master.function));
    }
    result?;
    clock.start(timeout_microseconds);
    for master in functions {
        if let Some(capability) = master.express {
            await_transactions(config, clock, master.function, capability + DEVICE_STATUS)?;
        }
    }
    Ok(())
}

/// Clears a function's Bus Master Enable and reads it back: what it does without being asked is over,
/// and what it did has reached the unit. Whether transactions are pending is not looked at.
///
/// # Errors
/// [`QuiesceError::Config`], [`QuiesceError::StillBusMaster`].
pub fn stop_bus_master<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
) -> Result<(), QuiesceError<S::Error>> {
    clear_bus_master(config, function)?;
    require_no_bus_master(config, function)
}

fn clear_bus_master<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
) -> Result<(), QuiesceError<S::Error>> {
    let command = read(config, function, COMMAND)?;
    if command & BUS_MASTER_ENABLE == 0 {
        return Ok(());
    }
    Ok(write(
        config,
        function,
        COMMAND,
        command & !BUS_MASTER_ENABLE,
    )?)
}

fn require_no_bus_master<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
) -> Result<(), QuiesceError<S::Error>> {
    let command = read(config, function, COMMAND)?;
    if command & BUS_MASTER_ENABLE == 0 {
        Ok(())
    } else {
        Err(QuiesceError::StillBusMaster { function, command })
    }
}

fn await_transactions<S: ConfigSpace, C: Deadline>(
    config: &mut S,
    clock: &mut C,
    function: PciFunction,
    offset: u16,
) -> Result<(), QuiesceError<S::Error>> {
    let mut expired = false;
    loop {
        let device_status = read(config, function, offset)?;
        if device_status & TRANSACTIONS_PENDING == 0 {
            return Ok(());
        }
        // The last look is one after the time was over.
        if expired {
            return Err(QuiesceError::StillPending {
                function,
                device_status,
            });
        }
        expired = clock.expired();
    }
}
