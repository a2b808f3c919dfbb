//! Batches of invalidations that a unit was given.

use core::fmt;

use crate::{Pending, Register, RegisterError};

/// Why an invalidation was not done. What it was to invalidate may still be in use by devices:
/// what was blocked stays blocked, and no memory or entry is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InvalidateError {
    /// A register did not do what it should have. The head of the queue (VT-d: IQH; AMD-Vi: the
    /// command buffer's) stands for a wait that was not completed in time.
    Register(RegisterError),
    /// The unit stopped at the batch each time it was given.
    Refused {
        /// The register that says so (VT-d: FSTS; AMD-Vi: the status register).
        register: Register,
        /// What it held. Of FSTS the bits that are errors of the queue.
        value: u64,
    },
    /// The changes are not, or not only, changes of this unit's tables.
    ForeignUnit,
}

impl From<RegisterError> for InvalidateError {
    fn from(error: RegisterError) -> Self {
        Self::Register(error)
    }
}

impl fmt::Display for InvalidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(error) => write!(f, "invalidation not completed: {error}"),
            Self::Refused { register, value } => {
                write!(f, "invalidation refused, {register} holds {value:#x}")
            }
            Self::ForeignUnit => f.write_str("the changes are those of another unit"),
        }
    }
}

impl core::error::Error for InvalidateError {}

/// A batch of invalidations that was given to the unit. Only `wait` of the unit tells when it is
/// done.
#[must_use = "the invalidation is done only when it was waited for"]
#[derive(Debug)]
pub struct Submitted {
    pub(crate) pending: Pending,
    /// The number of its wait; `None` where the unit had nothing to do.
    pub(crate) sequence: Option<u64>,
    /// How many entries had been put into force when it was submitted.
    pub(crate) installs: u32,
}
