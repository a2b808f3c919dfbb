//! Moving many devices from domain to domain with one invalidation.

use core::fmt;

use handoff_abi::{DomainId, RequesterId};

use super::context::AttachError;
use super::pending::Pending;
use super::queue::InvalidateError;
use super::unit::{Submitted, Unit};
use crate::pending::{DeviceChange, SELECTIVE_LIMIT};
use crate::{Deadline, MoveMethod, RegisterIo, TableMemory};

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
        }
    }
}

impl core::error::Error for MoveError {}

/// A move under way: its devices are blocked in the tables and the invalidation was submitted.
/// [`Unit::finish_move`] completes it; without that the devices stay blocked.
#[must_use = "the devices stay blocked until the move is finished"]
#[derive(Debug)]
pub struct Moving<'a> {
    devices: &'a [RequesterId],
    to: Option<DomainId>,
    method: MoveMethod,
    submitted: Submitted,
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Moves devices, each from whatever domain it is attached to, or none, into the domain `to`,
    /// or into none. However many they are, the unit is given one batch of invalidations and is
    /// waited for once; `with` joins in (the retargeting of the devices' interrupts, say).
    ///
    /// In between every device is blocked: at no instant does the unit have a translation of an
    /// old domain for a device that is in the new one.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn move_devices(
        &mut self,
        devices: &[RequesterId],
        to: Option<DomainId>,
        with: Pending,
    ) -> Result<MoveMethod, MoveError> {
        let moving = self.start_move(devices, to, with)?;
        self.finish_move(moving)
    }

    /// The first half of [`move_devices`](Self::move_devices): blocks the devices in the tables
    /// and submits the invalidation. Start the moves of all units before finishing any, and the
    /// waits overlap.
    ///
    /// # Errors
    /// See [`MoveError`]; an [`AttachError`] comes before anything is changed.
    pub fn start_move<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
        with: Pending,
    ) -> Result<Moving<'a>, MoveError> {
        if let Some(to) = to {
            self.domains.get(to).ok_or(AttachError::UnknownDomain(to))?;
            for &requester in devices {
                self.context_slot_made(requester)
                    .ok_or(AttachError::ArenaFull)?;
            }
        }
        let method = if devices.len() > SELECTIVE_LIMIT {
            MoveMethod::Global
        } else {
            MoveMethod::Selective
        };
        let mut pending = with;
        let mut retired = false;
        for &requester in devices {
            if let Some(domain) = self.retire_context(requester) {
                retired = true;
                if method == MoveMethod::Selective {
                    // Not to be zeroed afterwards: the new entry replaces what is left, or the
                    // end of the move zeroes it.
                    let change = DeviceChange {
                        requester,
                        domain,
                        retire: false,
                    };
                    pending = pending.merge(self.pending().with_device(change).with_domain(domain));
                }
            }
        }
        if retired && method == MoveMethod::Global {
            pending = pending.merge(Pending::all_caches(self.window.base()).without_interrupts());
        }
        let submitted = self.submit(pending)?;
        Ok(Moving {
            devices,
            to,
            method,
            submitted,
        })
    }

    /// The second half of [`move_devices`](Self::move_devices): waits, then installs the new
    /// entries.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn finish_move(&mut self, moving: Moving<'_>) -> Result<MoveMethod, MoveError> {
        let Moving {
            devices,
            to,
            method,
            submitted,
        } = moving;
        let installs = submitted.installs;
        let proved = self.wait_proved(submitted)?;
        if self.installs != installs
            && !proved.is_some_and(|proved| self.all_retired_before(proved))
            && devices.iter().any(|&device| self.is_retiring(device))
        {
            // A device was attached and blocked anew while the move was under way.
            self.invalidate_everything()?;
        }
        let Some(to) = to else {
            for &requester in devices {
                self.empty_retired_context(requester, None);
            }
            return Ok(method);
        };
        let root = self
            .domains
            .get(to)
            .ok_or(AttachError::UnknownDomain(to))?
            .root;
        let mut pending = Pending::none();
        for &requester in devices {
            let slot = self.context_slot(requester).ok_or(AttachError::ArenaFull)?;
            let entry = self.context_entry(slot);
            if entry.is_present() {
                // Named twice, or attached by the caller since.
                if entry.domain() != to {
                    return Err(AttachError::AlreadyAttached {
                        requester,
                        domain: entry.domain(),
                    }
                    .into());
                }
                continue;
            }
            if !entry.is_empty() {
                self.domains.count_detached(entry.domain());
            }
            self.install_context(slot, to, root);
            if self.caching_mode() {
                pending = pending.merge(self.attached_pending(requester, to));
            }
        }
        pending.stored = true;
        // Nothing to do unless the unit caches absent entries or needs its write buffer flushed.
        self.flush(pending)?;
        Ok(method)
    }
}
