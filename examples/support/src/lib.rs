//! What the example kernels share: how a kernel boots or is entered, its paging, interrupts and
//! clock, and the devices of the demo machine.
//!
//! Everything here serves kernels of one address space with identity DMA (IO virtual address =
//! physical address). [`swap`] is Baton's protocol as these kernels embed it.
#![no_std]

extern crate alloc;

pub mod apic;
pub mod block;
pub mod boot;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod edu;
pub mod interrupts;
pub mod mark;
pub mod memory;
pub mod mmio;
pub mod net;
pub mod paging;
pub mod pci;
pub mod service;
pub mod swap;
pub mod virtio;

pub use handoff_abi::{PhysAddr, PhysRange};
