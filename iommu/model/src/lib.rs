//! Strict, adversarial models of remapping hardware, to test drivers against: VT-d here, AMD-Vi in
//! [`amd`].
//!
//! Each is written from the architecture's specification and shares nothing with any driver: neither
//! constants nor code. Where the specification leaves hardware a choice, the model takes the choice
//! that hurts software most:
//!
//! * everything takes as long as it can, and progresses only while software polls (or at once, or at
//!   random: [`Schedule`]);
//! * every cache keeps what it has until an invalidation takes it out, and fills up again at once,
//!   after every single store and every single descriptor;
//! * the IOTLB is searched before the context cache, so a hot translation outlives its context entry;
//! * memory nobody wrote holds rubbish that looks like valid entries;
//! * a unit that does not snoop sees only what was written back, by the cache line.
//!
//! A rule of the architecture that software breaks is kept as a [`Violation`]; a test ends with
//! [`Machine::assert_no_violations`]. What the model of VT-d leaves out: scalable mode, device-TLBs, page
//! requests, posted interrupts, advanced fault logging.

pub mod amd;
mod config;
mod devices;
mod fabric;
mod faults;
mod interrupt;
mod machine;
mod memory;
pub mod pci;
mod queue;
mod registers;
mod report;
mod stores;
mod unit;
mod walk;

pub use config::{MachineConfig, Schedule, UnitConfig};
pub use devices::{Dma, Injection, Reach, RegisterWrite};
pub use fabric::Arrival;
pub use interrupt::Interrupt;
pub use machine::{Attack, Clock, Machine, Registers, Tables};
pub use report::{Counters, Event, Invalidation, MemoryCounters, Reason, Rule, Violation};
