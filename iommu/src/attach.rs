//! Why a device is not let into a domain.

use core::fmt;

use handoff_abi::{DomainId, PhysRange, RequesterId};

/// Why a device was not attached, or not silenced. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AttachError {
    /// The unit has no domain with this id.
    UnknownDomain(DomainId),
    /// The device is attached to a domain.
    AlreadyAttached {
        /// The device.
        requester: RequesterId,
        /// The domain it is attached to.
        domain: DomainId,
    },
    /// The device was blocked and that was not flushed.
    NotFlushed(RequesterId),
    /// VT-d: the arena has no frame for the bus's context table.
    ArenaFull,
    /// Firmware needs the device to reach this memory at the same device addresses, and in the
    /// domain it does not.
    ReservedNotMapped {
        /// The device.
        requester: RequesterId,
        /// The memory.
        memory: PhysRange,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDomain(domain) => write!(f, "no domain {domain}"),
            Self::AlreadyAttached { requester, domain } => {
                write!(f, "{requester} is attached to domain {domain}")
            }
            Self::NotFlushed(requester) => {
                write!(f, "{requester} was blocked and that was not flushed")
            }
            Self::ArenaFull => f.write_str("the arena is full"),
            Self::ReservedNotMapped { requester, memory } => {
                write!(f, "{requester} must reach {memory} and would not")
            }
        }
    }
}

impl core::error::Error for AttachError {}
