//! The workload of the demonstration: a key-value store that is served over UDP, and the memory it
//! lives in.
//!
//! Everything that has to survive a swap of kernels is in one region of physical memory with a
//! versioned layout ([`layout`]): the store, the rings and buffers of the network device, the
//! cursors of both, the network configuration and who the device is. A kernel that takes the
//! workload over lays its own view over that memory ([`Workload::adopt`]) and goes on; the device
//! notices nothing.
//!
//! [`protocol`] is the format of the datagrams, and [`answer()`] is the service itself: a datagram
//! in, a datagram out.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod answer;
mod buffers;
pub mod layout;
pub mod memory;
pub mod protocol;
pub mod queue;
mod registers;
pub mod store;
mod workload;

pub use answer::{Server, answer};
pub use buffers::{BUFFER, Buffers};
pub use layout::{Geometry, Network, Nic};
pub use memory::Memory;
pub use queue::Queue;
pub use registers::{NicError, Registers, Structure};
pub use store::Store;
pub use workload::{AdoptError, CreateError, Workload};
