//! What a table allows, as it is put before whoever has to allow it.

use core::fmt;

use handoff_abi::{DomainId, InterruptTarget, PhysRange, RequesterId};

use crate::Access;

/// One thing that tables found in force allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Reach {
    /// Memory.
    Memory {
        /// The device that reaches it; `None` for a domain to which none is attached.
        requester: Option<RequesterId>,
        /// The domain.
        domain: DomainId,
        /// The first device address.
        iova: u64,
        /// The memory.
        memory: PhysRange,
        /// What may be done there.
        access: Access,
    },
    /// An interrupt.
    Interrupt {
        /// The device that raises it.
        source: RequesterId,
        /// The index of its entry.
        index: u16,
        /// Where it goes.
        target: InterruptTarget,
    },
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory {
                requester,
                domain,
                iova,
                memory,
                access,
            } => {
                match requester {
                    Some(requester) => write!(f, "{requester} in domain {domain}")?,
                    None => write!(f, "domain {domain}")?,
                }
                let read = if access.contains(Access::READ) {
                    "r"
                } else {
                    "-"
                };
                let write = if access.contains(Access::WRITE) {
                    "w"
                } else {
                    "-"
                };
                write!(f, " reaches {memory} ({read}{write}) at {iova:#x}")
            }
            Self::Interrupt {
                source,
                index,
                target,
            } => write!(
                f,
                "{source} raises vector {} of processor {} through entry {index}",
                target.vector, target.destination
            ),
        }
    }
}
