#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod access;
mod arena;
mod fault;
pub mod mmio;
mod moving;
mod platform;
mod reach;
pub mod vtd;

pub use access::{Access, INTERRUPT_RANGE};
pub use arena::{ArenaError, MAX_ARENA_LENGTH};
pub use fault::{Fault, FaultCount, FaultReason, FaultRequest};
pub use moving::MoveMethod;
pub use platform::{Deadline, RegisterIo, TableMemory};
pub use reach::Reach;
