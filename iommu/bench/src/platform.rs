//! What a measurement runs on, and who watches it.

use handoff_abi::{PhysAddr, UnitDescription};
use iommu::{Deadline, RegisterIo, TableMemory};

/// Memory for tables in which 16 bytes can be stored at once, as other drivers do.
pub trait WideMemory: TableMemory {
    /// Writes 16 bytes at `at`, a multiple of 16, in one store; `low` comes first in memory.
    fn store_pair(&mut self, at: PhysAddr, low: u64, high: u64);
}

/// One unit and the memory for its tables.
pub trait Platform {
    /// The unit's registers.
    type Registers: RegisterIo;
    /// The memory.
    type Memory: WideMemory;
    /// A clock.
    type Clock: Deadline;

    /// All three. Whoever had them before has them no more.
    fn parts(&self) -> (Self::Registers, Self::Memory, Self::Clock);
    /// The unit, as firmware would describe it.
    fn description(&self) -> UnitDescription;
    /// The head of the capability block of an AMD-Vi unit.
    fn capability_header(&self) -> u32;
}

/// A part of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// What can be done beforehand, while the devices work.
    Prepare,
    /// The blackout: from here the devices are moved, until nothing reaches the old domain and
    /// everything is installed that lets them reach the new one.
    Move,
    /// What may go on while the devices are set up by their new owner.
    Settle,
    /// All is done.
    Done,
}

/// Is told where phases begin. What it does itself must cost nothing that is counted.
pub trait Observer {
    /// A phase begins.
    fn begin(&mut self, phase: Phase);
}
