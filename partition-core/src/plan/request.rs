//! What a partition is asked for.

use handoff_abi::{ApicId, PartitionId, PciFunction, PhysAddr, PhysRange};

/// What the new partition is to have.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its number.
    pub partition: PartitionId,
    /// A name for people, at most [`Plan::MAX_NAME`](super::Plan::MAX_NAME) bytes.
    pub name: &'a str,
    /// Its processors.
    pub cpus: CpuRequest<'a>,
    /// Its memory.
    pub memory: MemoryRequest<'a>,
    /// The least memory in bytes that it can do with, for example what its image takes.
    pub least_memory: u64,
    /// The page from which it starts its processors.
    pub trampoline: Trampoline,
    /// Its PCI functions. Bridges are not asked for: they stay with the steward.
    pub functions: &'a [FunctionRequest],
    /// Its machine singletons, by number.
    pub singletons: &'a [u64],
    /// Give it devices even where no remapping unit keeps them, or their interrupts, in bounds.
    /// The plan says which.
    pub accept_unfenced: bool,
    /// What its kernel knows of remapped interrupts.
    pub messages: Messages,
    /// Treat warnings as refusals, apart from those about what is accepted by name.
    pub strict: bool,
}

/// What the interrupt messages are that a kernel gives to its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Messages {
    /// Those of the interrupt handles that it was given.
    #[default]
    Handles,
    /// Any: it knows nothing of remapping, and names a processor and a vector. A unit that looks such
    /// messages up for each device keeps them in bounds. One that does not must let through what any
    /// device behind it forges, or nothing: it is only used with a warning, and only where all its
    /// devices are the partition's, or that is accepted.
    Any {
        /// Let them through: a device of the partition, and of whoever shares the unit, can then raise
        /// any vector on any processor of the machine.
        accept_open: bool,
    },
}

/// Which processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuRequest<'a> {
    /// These.
    These(&'a [ApicId]),
    /// As many, chosen by the planner: whole cores first, and those first that are like the
    /// prime's.
    Count(u32),
}

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryRequest<'a> {
    /// These ranges, each whole page frames.
    These(&'a [PhysRange]),
    /// One range, the lowest above 1 MiB that is free.
    Bytes {
        /// Its length in bytes, whole page frames.
        length: u64,
        /// What its base is a multiple of: a power of two, at least 4096.
        alignment: u64,
        /// The address it must end at or below. A kernel that starts processors from real mode
        /// needs its first tables below 4 GiB.
        below: PhysAddr,
    },
}

/// The page below 640 KiB from which a partition starts its processors: a start-up message carries
/// 8 bits of a page number (Intel SDM volume 3, section 10.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trampoline {
    /// None: it starts no processor.
    None,
    /// One that the planner chooses.
    Any,
    /// This one.
    At(PhysAddr),
}

/// A PCI function and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionRequest {
    /// The function.
    pub function: PciFunction,
    /// How many interrupt handles it is to have: at most one for each message it can send, or one
    /// where it has an INTx pin only.
    pub interrupts: u16,
}
