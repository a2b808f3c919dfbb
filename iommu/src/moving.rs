//! Moving devices from domain to domain.

use core::fmt;

use handoff_abi::{DomainId, RequesterId};
use heapless::Vec;

use crate::{AttachError, InvalidateError, MAX_DOMAINS, Submitted};

/// How the devices of a move were invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MoveMethod {
    /// Device by device and domain by domain, for a few devices: the caches of the others stay
    /// warm.
    Selective,
    /// Everything at once, for many: the batch has the same length however many they are.
    Global,
    /// By exchanging the table that says which domain a device is in for another that was prepared:
    /// also the stores and register writes are the same, however many they are.
    Switch,
}

/// Why devices were not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MoveError {
    /// A device or the domain cannot be used. If this comes from the start of a move, nothing was
    /// changed.
    Attach(AttachError),
    /// The unit did not finish the invalidation. Every device of the move is blocked.
    Invalidate(InvalidateError),
    /// The devices are in the new domain, but the unit did not finish the invalidation that tells
    /// it so: each reaches the new domain or nothing.
    Install(InvalidateError),
}

impl From<AttachError> for MoveError {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl From<InvalidateError> for MoveError {
    fn from(error: InvalidateError) -> Self {
        Self::Invalidate(error)
    }
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach(error) => error.fmt(f),
            Self::Invalidate(error) => write!(f, "devices stay blocked: {error}"),
            Self::Install(error) => write!(f, "devices may stay blocked: {error}"),
        }
    }
}

impl core::error::Error for MoveError {}

/// A move that is ready to be made, see `prepare_move` of the unit.
#[derive(Debug)]
pub struct PreparedMove<'a> {
    pub(crate) devices: &'a [RequesterId],
    pub(crate) to: Option<DomainId>,
    pub(crate) method: MoveMethod,
    /// The generation of the tables it was prepared for.
    pub(crate) generation: u64,
    /// How many devices each domain will have, in the order of the domains.
    pub(crate) counts: Vec<u32, MAX_DOMAINS>,
}

impl PreparedMove<'_> {
    /// How the devices will be moved, if no other device is attached or blocked before.
    #[must_use]
    pub const fn method(&self) -> MoveMethod {
        self.method
    }
}

/// A move under way: its devices are blocked in the tables and the invalidation was submitted, or,
/// for a [switch](MoveMethod::Switch), the tables are exchanged. `finish_move` of the unit completes
/// it; without that it is not known what the devices reach.
#[must_use = "the devices are not moved until the move is finished"]
#[derive(Debug)]
pub struct Moving<'a> {
    pub(crate) devices: &'a [RequesterId],
    pub(crate) to: Option<DomainId>,
    pub(crate) method: MoveMethod,
    pub(crate) submitted: Submitted,
    pub(crate) switched: Option<Switched>,
}

/// What the end of a switch has to know.
#[derive(Debug)]
pub(crate) struct Switched {
    pub(crate) generation: u64,
    pub(crate) counts: Vec<u32, MAX_DOMAINS>,
}

/// A move whose devices are in the new domain in the tables; the unit may still have in its caches
/// that they were blocked. `wait_installed` of the unit completes it.
#[must_use = "the unit may go on refusing the devices until this was waited for"]
#[derive(Debug)]
pub struct Installed<'a> {
    pub(crate) devices: &'a [RequesterId],
    pub(crate) method: MoveMethod,
    pub(crate) submitted: Option<Submitted>,
}
