//! What a unit reports of a request it refused.

use core::fmt;

use handoff_abi::RequesterId;

/// What the device tried to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum FaultRequest {
    /// It read memory in the 4 KiB page at this address, as the device sees addresses.
    Read {
        /// The page's first byte.
        address: u64,
    },
    /// It wrote memory in the 4 KiB page at this address, as the device sees addresses.
    Write {
        /// The page's first byte.
        address: u64,
    },
    /// It read or wrote memory; which, the unit does not say.
    Access {
        /// The page's first byte.
        address: u64,
    },
    /// It read and wrote memory in one atomic operation.
    Atomic {
        /// The page's first byte.
        address: u64,
    },
    /// It asked for a page to be made present (PCI Express ATS, Page Request Services).
    PageRequest {
        /// The page's first byte.
        address: u64,
    },
    /// It raised an interrupt through the remapping entry of this index.
    Interrupt {
        /// The index the message named; 0 where the message had none.
        index: u16,
    },
}

/// Why a request was refused, as far as both vendors tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum FaultReason {
    /// The device is blocked: it has no domain.
    Blocked,
    /// The address is not mapped for this access.
    NotPermitted,
    /// The address lies beyond the width of the domain.
    AddressTooWide,
    /// The kind of request is not allowed to this device (an already translated request, say).
    RequestType,
    /// The mapping leads to the interrupt address range.
    InterruptRange,
    /// A table is malformed or could not be read.
    BadTable,
    /// An interrupt message that names no usable entry.
    InterruptEntry,
    /// An interrupt message with the handle of another device.
    InterruptSource,
    /// An interrupt message in the format that names processor and vector directly.
    InterruptFormat,
    /// A reason this crate has no word for; see the code.
    Other,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocked => "the device is blocked",
            Self::NotPermitted => "not mapped for this access",
            Self::AddressTooWide => "address beyond the width of the domain",
            Self::RequestType => "kind of request not allowed",
            Self::InterruptRange => "mapping leads to the interrupt range",
            Self::BadTable => "malformed or unreadable table",
            Self::InterruptEntry => "no usable interrupt entry",
            Self::InterruptSource => "interrupt entry of another device",
            Self::InterruptFormat => "interrupt format that bypasses remapping",
            Self::Other => "other reason",
        })
    }
}

/// One refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fault {
    /// Who made the request. Functions below a PCI Express to PCI bridge share one id.
    pub source: RequesterId,
    /// What it tried.
    pub request: FaultRequest,
    /// Why it was refused.
    pub reason: FaultReason,
    /// The vendor's own code for the reason (VT-d: Fault Reason, section 7.1.3 and appendix A).
    pub code: u8,
    /// The process address space the request carried, where it carried one.
    pub pasid: Option<u32>,
}

impl Fault {
    /// The page that was asked for; `None` for an interrupt.
    #[must_use]
    pub const fn address(&self) -> Option<u64> {
        match self.request {
            FaultRequest::Read { address }
            | FaultRequest::Write { address }
            | FaultRequest::Access { address }
            | FaultRequest::Atomic { address }
            | FaultRequest::PageRequest { address } => Some(address),
            FaultRequest::Interrupt { .. } => None,
        }
    }

    /// The access that was tried; `None` for an interrupt or a page request, and where the unit does
    /// not say.
    #[must_use]
    pub const fn access(&self) -> Option<crate::Access> {
        match self.request {
            FaultRequest::Read { .. } => Some(crate::Access::READ),
            FaultRequest::Write { .. } => Some(crate::Access::WRITE),
            FaultRequest::Atomic { .. } => Some(crate::Access::READ_WRITE),
            FaultRequest::Access { .. }
            | FaultRequest::PageRequest { .. }
            | FaultRequest::Interrupt { .. } => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.source)?;
        match self.request {
            FaultRequest::Read { address } => write!(f, "read {address:#x}")?,
            FaultRequest::Write { address } => write!(f, "write {address:#x}")?,
            FaultRequest::Access { address } => write!(f, "access to {address:#x}")?,
            FaultRequest::Atomic { address } => write!(f, "atomic access to {address:#x}")?,
            FaultRequest::PageRequest { address } => write!(f, "page request for {address:#x}")?,
            FaultRequest::Interrupt { index } => write!(f, "interrupt entry {index}")?,
        }
        write!(f, ": {} (code {:#04x})", self.reason, self.code)
    }
}

/// What one drain of the fault records found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FaultCount {
    /// Records handed over.
    pub records: u32,
    /// Whether the unit refused more requests than it could record. Those were blocked too.
    pub overflowed: bool,
    /// Whether the unit had still more to say. It announces no fault until a drain ended without
    /// this, so drain again, when there is time; a device that does this is best silenced.
    pub more: bool,
}
