#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod address;
mod ids;
mod remapping;

pub use address::{AddressError, FRAME_SIZE, PhysAddr, PhysRange};
pub use ids::{ApicId, DomainId, Owner, PartitionId, PciFunction, RequesterId, WorkloadId};
pub use remapping::{
    DeviceScope, InterruptMessage, InterruptTarget, PathHop, ReservedRegion, ScopeKind,
    UnitDescription, UnitKind,
};
