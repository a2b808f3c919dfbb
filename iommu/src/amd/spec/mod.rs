//! The registers, tables and commands of AMD-Vi as pure values: nothing here touches hardware.
//!
//! Sections are those of the AMD I/O Virtualization Technology (IOMMU) Specification, publication
//! 48882. Only host translation and interrupt remapping are described; that is all the driver uses.

mod command;
mod device;
mod event;
mod interrupt;
mod paging;
mod registers;

pub use command::Command;
pub use device::DeviceEntry;
pub use event::{Event, EventKind};
pub use interrupt::{InterruptEntry, InterruptFormat};
pub use paging::PageEntry;
pub use registers::{
    CapabilityHeader, Control, DeviceTableBase, ExtendedFeature, Register, RingBase, SmiFilter,
    Status,
};
