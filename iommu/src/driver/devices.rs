//! Attaching devices to domains and blocking them.

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};

use super::{DeviceState, Driver, Vendor};
use crate::domain::maps_identically;
use crate::pending::DeviceChange;
use crate::{AttachError, Pending, TableMemory};

impl<V: Vendor, M: TableMemory> Driver<V, M> {
    /// Lets a blocked device use a domain. Device caches (ATS) stay off: the unit refuses requests
    /// that are translated already. A device that was silenced is heard again.
    ///
    /// Until the last store the device is blocked, and after it the entry is whole. The device
    /// reaches its domain when the result was flushed.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
    ) -> Result<Pending, AttachError> {
        self.attach_reserved(requester, domain, &[])
    }

    /// As [`attach`](Self::attach), for a device that firmware needs to go on reaching `reserved`
    /// (VT-d: the regions of an RMRR; AMD-Vi: unity ranges of an IVMD, exclusion ranges among them):
    /// it is refused unless the domain maps all of it, at device addresses equal to physical ones,
    /// for reading and writing.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_reserved(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
        reserved: &[PhysRange],
    ) -> Result<Pending, AttachError> {
        let root = self
            .domains
            .get(domain)
            .ok_or(AttachError::UnknownDomain(domain))?
            .root;
        match self.device_state(requester) {
            DeviceState::Blocked => {}
            DeviceState::Retiring(_) => return Err(AttachError::NotFlushed(requester)),
            DeviceState::Attached(domain) => {
                return Err(AttachError::AlreadyAttached { requester, domain });
            }
        }
        for &memory in reserved {
            if !maps_identically(memory, |at| self.translate(domain, at)) {
                return Err(AttachError::ReservedNotMapped { requester, memory });
            }
        }
        V::make_entry(self, requester)?;
        self.install_device(requester, domain, root);
        let pending = self.pending();
        if !self.caches_blocked() {
            return Ok(pending);
        }
        let pending = pending.with_device(DeviceChange {
            requester,
            // A cached entry that blocks has no domain.
            domain: DomainId(0),
            retire: false,
        });
        Ok(if V::BLOCKED_IS_CACHED {
            pending
        } else {
            // In caching mode so may be translations (VT-d section 6.1).
            pending.with_domain(domain)
        })
    }

    pub(super) fn device_state(&self, requester: RequesterId) -> DeviceState {
        V::device_state(self, self.top, requester)
    }

    /// Whether the unit may have cached that a device is blocked.
    pub(super) fn caches_blocked(&self) -> bool {
        V::BLOCKED_IS_CACHED || self.vendor.caches_not_present()
    }

    /// Writes the entry of a device that is blocked, and of which the unit has nothing else in its
    /// caches.
    pub(super) fn install_device(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
        root: PhysAddr,
    ) {
        V::write_attached(self, requester, domain, root);
        self.entry_changed();
        self.domains.count_attached(domain);
        self.installed();
    }

    /// Blocks a device: no memory is within its reach when the result was flushed. Its interrupts
    /// are another matter, see `clear_interrupts`.
    ///
    /// One store blocks it. The domain id in the entry stays until the unit has forgotten what it
    /// cached with it (VT-d section 6.5.3.3).
    pub fn block(&mut self, requester: RequesterId) -> Pending {
        match self.retire_device(requester) {
            Some(domain) => self
                .pending()
                .with_device(DeviceChange {
                    requester,
                    domain,
                    retire: true,
                })
                .with_domain(domain),
            None => Pending::none(),
        }
    }

    /// Blocks a device in the tables. Returns the domain whose translations the unit may still have
    /// for it; `None` where it has none.
    pub(super) fn retire_device(&mut self, requester: RequesterId) -> Option<DomainId> {
        let domain = match self.device_state(requester) {
            DeviceState::Blocked => return None,
            DeviceState::Retiring(domain) => domain,
            DeviceState::Attached(domain) => {
                V::write_retiring(self, requester);
                self.entry_changed();
                domain
            }
        };
        self.retirement_begun();
        Some(domain)
    }

    /// Whether a device was blocked and that was not finished.
    pub(super) fn is_retiring(&self, requester: RequesterId) -> bool {
        matches!(self.device_state(requester), DeviceState::Retiring(_))
    }

    /// Takes away what is left of an entry that blocks and was invalidated. If `domain` is given,
    /// only where the entry is still that of this domain: the device may have been attached anew and
    /// blocked again since.
    pub(super) fn empty_retired(&mut self, requester: RequesterId, domain: Option<DomainId>) {
        let DeviceState::Retiring(found) = self.device_state(requester) else {
            return;
        };
        if domain.is_none_or(|domain| domain == found) {
            V::write_blocked(self, requester);
            self.entry_changed();
            self.domains.count_detached(found);
        }
    }

    /// The domain a device is attached to; `None` where it is blocked.
    #[must_use]
    pub fn domain_of(&self, requester: RequesterId) -> Option<DomainId> {
        match self.device_state(requester) {
            DeviceState::Attached(domain) => Some(domain),
            DeviceState::Blocked | DeviceState::Retiring(_) => None,
        }
    }
}
