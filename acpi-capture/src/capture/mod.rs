//! Copying out what firmware told the first kernel.
//!
//! [`capture`] starts at an RSDP and copies every table that can be reached into one buffer, with
//! the addresses they came from. [`Capture`] reads such a buffer back, in any later kernel.

use core::fmt;

use handoff_abi::PhysAddr;

mod blob;
mod collect;

pub use blob::{BlobError, Capture, CapturedKind, CapturedTable, State};
pub use collect::capture;

use crate::table::RsdpError;

/// Reads physical memory by copying it out.
///
/// Copying leaves no question of aliasing, alignment or lifetime. In a kernel this reads through
/// whatever mapping it has; in a test it is a list of byte vectors.
pub trait ReadPhys {
    /// Why memory cannot be read.
    type Error;

    /// Copies `into.len()` bytes from address `at` on.
    ///
    /// # Errors
    /// Where any of these bytes cannot be read; `into` is then in any state.
    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), Self::Error>;
}

impl<M: ReadPhys + ?Sized> ReadPhys for &M {
    type Error = M::Error;

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), Self::Error> {
        (**self).read(at, into)
    }
}

/// Where to look for SMBIOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SmbiosSource {
    /// Nowhere.
    None,
    /// In 0xF0000 to 0xFFFFF, at every 16th byte (SMBIOS 3.7, section 5.2): the way without UEFI.
    Scan,
    /// At these addresses, as UEFI's configuration table gives them.
    At {
        /// The 32-bit entry point.
        entry_32: Option<PhysAddr>,
        /// The 64-bit entry point.
        entry_64: Option<PhysAddr>,
    },
}

/// What to capture, and how much of it at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CaptureRequest {
    /// The RSDP.
    pub rsdp: PhysAddr,
    /// Where to look for SMBIOS.
    pub smbios: SmbiosSource,
    /// The most pointers that are followed from the root table.
    pub max_tables: usize,
    /// The most bytes of one table; a longer one is skipped.
    pub max_table_length: usize,
}

impl CaptureRequest {
    /// A request with limits that fit every known machine: 256 tables of at most 4 MiB each.
    #[must_use]
    pub const fn new(rsdp: PhysAddr, smbios: SmbiosSource) -> Self {
        Self {
            rsdp,
            smbios,
            max_tables: 256,
            max_table_length: 4 << 20,
        }
    }
}

/// What a capture came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CaptureSummary {
    /// Bytes of the buffer that are in use: the blob.
    pub length: usize,
    /// Tables that were copied and are sound.
    pub sound: usize,
    /// Tables that were copied and have a bad checksum.
    pub bad_checksum: usize,
    /// Pointers that led to nothing that was copied; the blob says which, and why.
    pub skipped: usize,
}

/// Why nothing was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum CaptureError {
    /// The RSDP cannot be read.
    RsdpUnreadable {
        /// Where it was to be.
        address: PhysAddr,
    },
    /// There is no RSDP.
    Rsdp {
        /// Where it was to be.
        address: PhysAddr,
        /// What is wrong.
        error: RsdpError,
    },
    /// Neither the XSDT nor the RSDT is there and sound.
    NoRoot {
        /// The XSDT, or zero.
        xsdt: PhysAddr,
        /// The RSDT, or zero.
        rsdt: PhysAddr,
    },
    /// The buffer is too small for the blob's header and directory and the root table.
    Buffer {
        /// Bytes that are needed at least.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsdpUnreadable { address } => write!(f, "the RSDP at {address} is unreadable"),
            Self::Rsdp { address, error } => write!(f, "at {address}: {error}"),
            Self::NoRoot { xsdt, rsdt } => write!(
                f,
                "neither the XSDT at {xsdt} nor the RSDT at {rsdt} can be used"
            ),
            Self::Buffer { needed, have } => write!(
                f,
                "the capture needs a buffer of at least {needed} bytes and has {have}"
            ),
        }
    }
}

impl core::error::Error for CaptureError {}
