//! The registers, tables and descriptors of VT-d as pure values: nothing here touches hardware.
//!
//! Reference: Intel Virtualization Technology for Directed I/O, Architecture Specification,
//! order number D51397, revision 4.1. Sections are given with each item. Only legacy mode with
//! second-stage translation is described; that is all the driver uses.

mod context;
mod fault;
mod interrupt;
mod invalidation;
mod paging;
mod registers;

pub use crate::LeafSize;
pub use context::{AddressWidth, ContextEntry, RootEntry, TranslationType};
pub use fault::FaultRecord;
pub use interrupt::InterruptEntry;
pub use invalidation::Descriptor;
pub use paging::{MAX_LEVELS, SecondStageEntry};
pub use registers::{
    Capability, ExtendedCapability, FaultStatus, GlobalStatus, InterruptTableAddress,
    ProtectedMemoryEnable, QueueAddress, Register, RootTableAddress, TranslationMode,
};
