#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Every byte that is read here was written by another kernel.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod address;
mod header;
mod ids;
mod live;
mod read;
mod records;
mod remapping;
mod version;
mod write;

pub use address::{AddressError, FRAME_SIZE, PhysAddr, PhysRange};
pub use header::{Header, MAGIC, RecordHeader};
pub use ids::{ApicId, DomainId, Owner, PartitionId, PciFunction, RequesterId, WorkloadId};
pub use live::{
    Exchange, Ledger, LedgerSlot, LedgerWord, MAILBOX_SLOTS, MAX_PARTITIONS, Mailbox, Message,
    ParkSlot, PartitionStatus, Phase, Stewardship, message, park_state, resource, state,
};
pub use read::{Handoff, HandoffError, MAX_LENGTH, RawRecord, stated_length};
pub use records::{
    AmdViState, Clock, Console, Cpu, Domain, Ecam, Extent, Firmware, Function, History,
    InterruptHandle, Memory, Platform, Record, VtdDomain, VtdUnit, Workload, kind, memory, purpose,
};
pub use remapping::{
    AmdViUnit, DeviceScope, InterruptMessage, InterruptTarget, PathHop, ReservedRegion, ScopeKind,
    UnitDescription, UnitKind,
};
pub use version::{AbiVersion, Features, Speaks};
pub use write::{Envelope, WriteError, Writer};
