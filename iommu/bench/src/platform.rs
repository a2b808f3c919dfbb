//! What a measurement runs on, and who watches it.

use handoff_abi::{PhysAddr, PhysRange};
use iommu::amd::CapabilityHeader;
use iommu::{Deadline, RegisterIo, TableMemory};

/// Memory for tables in which 16 bytes can be stored at once, as other drivers do.
pub trait WideMemory: TableMemory {
    /// Writes 16 bytes at `at`, a multiple of 16, in one store; `low` comes first in memory.
    fn store_pair(&mut self, at: PhysAddr, low: u64, high: u64);
}

/// One unit and the memory for its tables.
///
/// Whoever asks for registers or memory has given back what was asked for before.
pub trait Platform {
    /// The unit's registers.
    type Registers: RegisterIo;
    /// The memory.
    type Memory: WideMemory;
    /// A clock.
    type Clock: Deadline;

    /// The unit's registers.
    fn registers(&self) -> Self::Registers;
    /// The memory.
    fn memory(&self) -> Self::Memory;
    /// A clock.
    fn clock(&self) -> Self::Clock;
    /// Where the registers are.
    fn window(&self) -> PhysRange;
    /// The head of the capability block of an AMD-Vi unit.
    fn capability(&self) -> CapabilityHeader;
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
