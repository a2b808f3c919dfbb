#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod access;
pub mod amd;
mod arena;
mod domain;
mod fault;
pub mod mmio;
mod moving;
mod paging;
mod pending;
mod platform;
pub mod quiesce;
mod reach;
mod retired;
mod tables;
pub mod vtd;

pub use access::{Access, INTERRUPT_RANGE};
pub use arena::{ArenaError, MAX_ARENA_LENGTH};
pub use domain::{DomainError, MAX_DOMAINS};
pub use fault::{Fault, FaultCount, FaultReason, FaultRequest};
pub use moving::MoveMethod;
pub use paging::{Leaf, LeafSize, MapError, UnmapError};
pub use pending::{Pending, SELECTIVE_LIMIT};
pub use platform::{Deadline, RegisterIo, TableMemory};
pub use reach::Reach;
