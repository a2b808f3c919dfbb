#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![doc = include_str!("../README.md")]

mod aml;
pub mod boot;
mod capture;
pub mod memory;
pub mod partition;
mod smbios;
pub mod table;

pub use capture::{
    BlobError, Capture, CaptureError, CaptureRequest, CaptureSummary, CapturedKind, CapturedTable,
    ReadPhys, SmbiosSource, State, capture,
};
pub use smbios::{SmbiosEntry, SmbiosError, SmbiosStructure, SmbiosStructures, StructureError};
