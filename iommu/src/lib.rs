#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod access;
mod adopt;
pub mod amd;
mod arena;
mod attach;
mod bring_up;
mod config_space;
mod domain;
mod driver;
mod fault;
mod hardware;
mod host;
mod interrupt;
mod invalidation;
pub mod isolation;
pub mod mmio;
mod moving;
mod paging;
mod pending;
mod platform;
pub mod quiesce;
mod reach;
mod retired;
pub mod storm;
mod tables;
mod unit;
pub mod vtd;

pub use access::{Access, INTERRUPT_RANGE};
pub use adopt::{AdoptError, TableFault};
pub use arena::{ArenaError, ArenaNeeds, MAX_ARENA_LENGTH};
pub use attach::AttachError;
pub use bring_up::{EnableError, PrepareError, ProbeError};
pub use config_space::{ConfigError, ConfigSpace};
pub use domain::{DomainError, MAX_DOMAINS};
pub use driver::Driver;
pub use fault::{Fault, FaultCount, FaultReason, FaultRequest};
pub use hardware::{Register, RegisterError};
pub use host::{HostDriver, HostError, HostManaged};
pub use interrupt::{Interrupt, InterruptError, InterruptHandle, TriggerMode};
pub use invalidation::{InvalidateError, Submitted};
pub use moving::{Installed, MoveError, MoveMethod, Moving, PreparedMove};
pub use paging::{Leaf, LeafSize, MapError, UnmapError};
pub use pending::{Pending, SELECTIVE_LIMIT};
pub use platform::{Deadline, RegisterIo, TableMemory};
pub use reach::Reach;
pub use unit::{Config, State, Unit};
