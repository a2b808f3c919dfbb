//! Drives the drivers, unchanged, from a host test against the units that QEMU emulates. No
//! guest runs: the one processor is halted, and the test reads and writes the machine's memory,
//! ports and registers over QEMU's *qtest* socket.
//!
//! * [`Qemu`] starts an emulator and speaks its protocol; [`Bus`] is what devices and driver share.
//! * [`QemuRegisters`], [`QemuTables`] and [`WallClock`] are the traits that `iommu` asks for.
//! * [`Machine`] is a board with root ports, bridges and `edu` devices on it, numbered and given
//!   addresses as firmware would do.
//! * [`Edu`] is a device that does whatever DMA it is told to and raises interrupts.
//! * [`Fence`] is a machine whose unit the driver brought up, with two domains and what a test asks
//!   of them.
//! * [`AmdMachine`] and [`AmdFence`] are the same for AMD-Vi, whose devices all sit on bus 0.
//! * [`Trace`] is what QEMU says it did: an oracle that does not pass through the driver.
//! * [`raw`] reads and writes the unit's registers, tables and queue with constants of its own, so
//!   that a mistake in the driver's is not repeated by the test.
//!
//! Needs `qemu-system-x86_64` (7.2 or later) and `setpriv` of util-linux, which ties the emulator's
//! life to the test's. Whatever goes wrong in the harness itself panics with QEMU's own words: it
//! is a test that fails.

mod amd;
mod bus;
mod edu;
mod fence;
mod machine;
mod pci;
mod platform;
mod process;
pub mod raw;
mod trace;

pub use amd::{
    AMD_ARENA, AMD_REGISTERS, AMD_WINDOW, AmdDriver, AmdFence, AmdMachine, SharedTables,
};
pub use bus::Bus;
pub use edu::Edu;
pub use fence::{
    Attack, Blocked, Driver, Fence, MINE, THEIRS, UNMAPPED, delivered, id, reaches, target,
};
pub use machine::{Board, Machine, Place, VTD_REGISTERS};
pub use pci::Function;
pub use platform::{AccessCounts, Observer, QemuRegisters, QemuTables, Step, WallClock};
pub use process::{Qemu, Settings};
pub use trace::{Event, Trace};
