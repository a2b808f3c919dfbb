//! Moving many devices from domain to domain with one invalidation.

use handoff_abi::{DomainId, PhysAddr, RequesterId};

use super::unit::Unit;
use crate::pending::{DeviceChange, SELECTIVE_LIMIT};
use crate::{
    AttachError, Deadline, Installed, MoveError, MoveMethod, Moving, Pending, PreparedMove,
    RegisterIo, TableMemory,
};

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
        if self.root_of(to)?.is_some() {
            for &requester in devices {
                self.context_slot_made(requester)
                    .ok_or(AttachError::ArenaFull)?;
            }
        }
        let method = Self::method_for(devices);
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
            switched: None,
        })
    }

    /// Prepares a move of devices and says how it will be made.
    ///
    /// # Errors
    /// [`AttachError::UnknownDomain`].
    pub fn prepare_move<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
    ) -> Result<PreparedMove<'a>, AttachError> {
        self.root_of(to)?;
        Ok(PreparedMove {
            devices,
            to,
            method: Self::method_for(devices),
            generation: 0,
            counts: heapless::Vec::new(),
        })
    }

    /// Makes a move that was prepared: what [`start_move`](Self::start_move) does, in the way that
    /// was prepared.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn start_prepared<'a>(
        &mut self,
        prepared: PreparedMove<'a>,
        with: Pending,
    ) -> Result<Moving<'a>, MoveError> {
        self.start_move(prepared.devices, prepared.to, with)
    }

    const fn method_for(devices: &[RequesterId]) -> MoveMethod {
        if devices.len() > SELECTIVE_LIMIT {
            MoveMethod::Global
        } else {
            MoveMethod::Selective
        }
    }

    /// The root of the domain that devices are moved to.
    fn root_of(&self, to: Option<DomainId>) -> Result<Option<PhysAddr>, AttachError> {
        to.map(|to| {
            let domain = self.domains.get(to);
            domain
                .map(|domain| domain.root)
                .ok_or(AttachError::UnknownDomain(to))
        })
        .transpose()
    }

    /// The rest of [`move_devices`](Self::move_devices): [`install_move`](Self::install_move) and
    /// [`wait_installed`](Self::wait_installed).
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn finish_move(&mut self, moving: Moving<'_>) -> Result<MoveMethod, MoveError> {
        let installed = self.install_move(moving)?;
        self.wait_installed(installed)
    }

    /// The second step of [`move_devices`](Self::move_devices): waits until the devices are proved
    /// blocked, then installs the new entries. From here on nothing reaches the old domains.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn install_move<'a>(&mut self, moving: Moving<'a>) -> Result<Installed<'a>, MoveError> {
        let Moving {
            devices,
            to,
            method,
            submitted,
            switched: _,
        } = moving;
        let mut installed = Installed {
            devices,
            method,
            submitted: None,
        };
        let installs = submitted.installs;
        let proved = self.wait_proved(submitted)?;
        if self.installs != installs
            && !proved.is_some_and(|proved| self.all_retired_before(proved))
            && devices.iter().any(|&device| self.is_retiring(device))
        {
            // A device was attached and blocked anew while the move was under way.
            self.invalidate_everything()?;
        }
        let root = self.root_of(to)?;
        let Some((to, root)) = to.zip(root) else {
            for &requester in devices {
                self.empty_retired_context(requester, None);
            }
            return Ok(installed);
        };
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
        installed.submitted = Some(self.submit(pending).map_err(MoveError::Install)?);
        Ok(installed)
    }

    /// The last step of [`move_devices`](Self::move_devices): waits until the unit knows of the new
    /// domain, where it does not by then (in caching mode).
    ///
    /// # Errors
    /// [`MoveError::Install`].
    pub fn wait_installed(&mut self, installed: Installed<'_>) -> Result<MoveMethod, MoveError> {
        if let Some(submitted) = installed.submitted {
            self.wait(submitted).map_err(MoveError::Install)?;
        }
        Ok(installed.method)
    }
}
