//! Moving many devices from domain to domain with one invalidation.

use handoff_abi::{DomainId, PhysAddr, RequesterId};

use super::{DeviceState, Driver, Vendor};
use crate::pending::SELECTIVE_LIMIT;
use crate::{AttachError, Installed, MoveError, MoveMethod, Moving, Pending, TableMemory};

/// The devices that are invalidated one by one.
const fn one_by_one(method: MoveMethod, devices: &[RequesterId]) -> &[RequesterId] {
    match method {
        MoveMethod::Selective => devices,
        MoveMethod::Global | MoveMethod::Switch => &[],
    }
}

impl<V: Vendor, M: TableMemory> Driver<V, M> {
    /// Moves devices, each from whatever domain it is attached to, or none, into the domain `to`,
    /// or into none. However many they are, the unit is given one batch of invalidations that
    /// proves them blocked; `with` joins in (the retargeting of the devices' interrupts, say).
    ///
    /// In between every device is blocked: at no instant does the unit have a translation of an
    /// old domain for a device that is in the new one. Where the unit may have cached that a device
    /// is blocked (AMD-Vi always, VT-d in caching mode) a second batch tells it of the new domain.
    /// [`install_move`](Self::install_move) does not wait for it, and a
    /// [prepared](Self::prepare_move) move of many devices has none.
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

    /// The first step of [`move_devices`](Self::move_devices): blocks the devices in the tables and
    /// submits the invalidation. Start the moves of all units before finishing any, and the waits
    /// overlap.
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
                V::make_entry(self, requester)?;
            }
        }
        let method = self.method_for(devices);
        let mut pending = with;
        let mut left = None;
        for &requester in devices {
            let domain = self.retire_device(requester);
            // Devices that are moved together mostly leave one domain.
            if let Some(domain) = domain
                && left != Some(domain)
            {
                left = Some(domain);
                pending = pending.merge(self.pending().with_domain(domain));
            }
        }
        let mut more = &[][..];
        if left.is_some() {
            more = one_by_one(method, devices);
            if method == MoveMethod::Global {
                pending = pending.merge(self.all_devices());
            }
        }
        let submitted = self.submit_with(pending, more)?;
        Ok(Moving {
            devices,
            to,
            method,
            submitted,
            switched: None,
        })
    }

    /// How devices are moved without preparation. Where nothing invalidates all of them at once, a
    /// loop over the devices is the shorter one.
    pub(super) fn method_for(&self, devices: &[RequesterId]) -> MoveMethod {
        if devices.len() > SELECTIVE_LIMIT && self.vendor.invalidates_all() {
            MoveMethod::Global
        } else {
            MoveMethod::Selective
        }
    }

    /// All devices and all that is cached of their domains.
    pub(super) fn all_devices(&self) -> Pending {
        Pending::all_caches(self.window.base()).without_interrupts()
    }

    /// The root of the domain that devices are moved to.
    pub(super) fn root_of(&self, to: Option<DomainId>) -> Result<Option<PhysAddr>, AttachError> {
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
    /// blocked, installs the new entries and submits the invalidation of the old ones, where there
    /// is any. From here on nothing reaches the old domains; what is left is that the devices can
    /// begin.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn install_move<'a>(&mut self, moving: Moving<'a>) -> Result<Installed<'a>, MoveError> {
        let Moving {
            devices,
            to,
            method,
            submitted,
            switched,
        } = moving;
        let mut installed = Installed {
            devices,
            method,
            submitted: None,
        };
        if let Some(switched) = switched {
            self.finish_switch(devices, submitted, &switched)?;
            return Ok(installed);
        }
        let more = one_by_one(method, devices);
        let installs = submitted.installs;
        let proved = self.wait_proved(submitted, more)?;
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
                self.empty_retired(requester, None);
            }
            return Ok(installed);
        };
        for &requester in devices {
            match self.device_state(requester) {
                // Named twice, or attached by the caller since.
                DeviceState::Attached(domain) if domain == to => continue,
                DeviceState::Attached(domain) => {
                    return Err(AttachError::AlreadyAttached { requester, domain }.into());
                }
                DeviceState::Retiring(domain) => self.domains.count_detached(domain),
                DeviceState::Blocked => {}
            }
            self.install_device(requester, to, root);
        }
        let mut pending = self.pending();
        let mut more = more;
        if !self.caches_blocked() {
            // Nothing to do unless the unit needs its write buffer flushed.
            more = &[];
        } else if method == MoveMethod::Global {
            pending = pending.merge(self.all_devices());
        } else if !V::BLOCKED_IS_CACHED {
            pending = pending.with_domain(to);
        }
        let submitted = self.submit_with(pending, more);
        installed.submitted = Some(submitted.map_err(MoveError::Install)?);
        Ok(installed)
    }

    /// The last step of [`move_devices`](Self::move_devices): waits until the unit knows of the new
    /// domain.
    ///
    /// # Errors
    /// [`MoveError::Install`].
    pub fn wait_installed(&mut self, installed: Installed<'_>) -> Result<MoveMethod, MoveError> {
        let Installed {
            devices,
            method,
            submitted,
        } = installed;
        if let Some(submitted) = submitted {
            self.wait_proved(submitted, one_by_one(method, devices))
                .map_err(MoveError::Install)?;
        }
        Ok(method)
    }
}
