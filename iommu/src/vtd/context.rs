//! Attaching devices to domains and blocking them: root and context tables.

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};

use super::spec::{ContextEntry, RootEntry};
use super::unit::Unit;
use crate::domain::maps_identically;
use crate::pending::DeviceChange;
use crate::tables::offset;
use crate::{AttachError, Deadline, Pending, RegisterIo, TableMemory};

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    fn root_slot(&self, bus: u8) -> PhysAddr {
        offset(self.root, u64::from(bus) * 16)
    }

    fn context_table(&self, bus: u8) -> Option<PhysAddr> {
        let (low, high) = self.tables.load_pair(self.root_slot(bus));
        let entry = RootEntry { low, high };
        entry.is_present().then(|| entry.context_table())
    }

    /// Where a device's context entry lies, if its bus has a context table.
    pub(super) fn context_slot(&self, requester: RequesterId) -> Option<PhysAddr> {
        let table = self.context_table(requester.bus())?;
        Some(offset(table, u64::from(requester.0 & 0xff) * 16))
    }

    /// As [`context_slot`](Self::context_slot), with a table made where there is none. An empty
    /// context table blocks as the absent root entry did, so nothing has to be invalidated for it
    /// alone.
    pub(super) fn context_slot_made(&mut self, requester: RequesterId) -> Option<PhysAddr> {
        if self.context_table(requester.bus()).is_none() {
            let table = self.tables.zeroed(&mut self.arena)?;
            let entry = RootEntry::present(table);
            let slot = self.root_slot(requester.bus());
            self.tables.install_pair(slot, entry.low, entry.high);
        }
        self.context_slot(requester)
    }

    pub(super) fn context_entry(&self, slot: PhysAddr) -> ContextEntry {
        let (low, high) = self.tables.load_pair(slot);
        ContextEntry { low, high }
    }

    /// Lets a blocked device use a domain. ATS stays off: the unit refuses translated requests and
    /// requests for translations (TT 00b). A device that was [silenced](Self::silence) is heard
    /// again.
    ///
    /// The upper half of the entry is stored before the lower one, which has the present bit, so
    /// the unit never sees a part of an entry.
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
    /// (the regions of an RMRR): it is refused unless the domain maps all of it, at device addresses
    /// equal to physical ones, for reading and writing.
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
        let slot = self
            .context_slot_made(requester)
            .ok_or(AttachError::ArenaFull)?;
        let old = self.context_entry(slot);
        if old.is_present() {
            return Err(AttachError::AlreadyAttached {
                requester,
                domain: old.domain(),
            });
        }
        if !old.is_empty() {
            return Err(AttachError::NotFlushed(requester));
        }
        for &memory in reserved {
            if !maps_identically(memory, |at| self.translate(domain, at)) {
                return Err(AttachError::ReservedNotMapped { requester, memory });
            }
        }
        self.install_context(slot, domain, root);
        Ok(self.attached_pending(requester, domain))
    }

    /// Writes the entry of a device whose entry is not present and was invalidated.
    pub(super) fn install_context(&mut self, slot: PhysAddr, domain: DomainId, root: PhysAddr) {
        let entry = ContextEntry::present(domain, root, self.width);
        self.tables.install_pair(slot, entry.low, entry.high);
        self.domains.count_attached(domain);
        self.installs = self.installs.wrapping_add(1);
    }

    /// What an entry that became present leaves to invalidate: in caching mode the entry that was
    /// not present is cached, with domain id 0, and so may be translations (section 6.1).
    pub(super) fn attached_pending(&self, requester: RequesterId, domain: DomainId) -> Pending {
        let pending = self.pending();
        if !self.caching_mode() {
            return pending;
        }
        pending
            .with_device(DeviceChange {
                requester,
                domain: DomainId(0),
                retire: false,
            })
            .with_domain(domain)
    }

    /// Blocks a device: no memory is within its reach when the result was flushed. Its interrupts
    /// are another matter, see [`clear_interrupt`](Self::clear_interrupt).
    ///
    /// Only the present bit is cleared now; the rest of the entry follows when the unit has
    /// forgotten it (section 6.5.3.3).
    pub fn block(&mut self, requester: RequesterId) -> Pending {
        match self.retire_context(requester) {
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

    /// Clears the present bit of a device's entry. Returns the domain whose translations the unit
    /// may still have for it; `None` where it has none.
    pub(super) fn retire_context(&mut self, requester: RequesterId) -> Option<DomainId> {
        let slot = self.context_slot(requester)?;
        let entry = self.context_entry(slot);
        if entry.is_empty() {
            return None;
        }
        if entry.is_present() {
            self.tables
                .store_and_publish(slot, entry.low & !ContextEntry::PRESENT);
        }
        self.retirement_begun();
        Some(entry.domain())
    }

    /// Whether a device was blocked and that was not finished.
    pub(super) fn is_retiring(&self, requester: RequesterId) -> bool {
        self.context_slot(requester).is_some_and(|slot| {
            let entry = self.context_entry(slot);
            !entry.is_present() && !entry.is_empty()
        })
    }

    /// Zeroes what is left of an entry that is not present and was invalidated. If `domain` is
    /// given, only where the entry is still that of this domain: it may have been attached anew
    /// and blocked again since.
    pub(super) fn empty_retired_context(
        &mut self,
        requester: RequesterId,
        domain: Option<DomainId>,
    ) {
        let Some(slot) = self.context_slot(requester) else {
            return;
        };
        let entry = self.context_entry(slot);
        if entry.is_present()
            || entry.is_empty()
            || domain.is_some_and(|domain| domain != entry.domain())
        {
            return;
        }
        self.tables
            .store(slot, entry.low & ContextEntry::FAULT_PROCESSING_DISABLE);
        self.tables.store(offset(slot, 8), 0);
        self.tables.publish(slot, 16);
        self.domains.count_detached(entry.domain());
    }

    /// [`empty_retired_context`](Self::empty_retired_context) for every device.
    pub(super) fn empty_retired_contexts(&mut self) {
        for bus in 0..=u8::MAX {
            if self.context_table(bus).is_some() {
                for function in 0..=u8::MAX {
                    let requester = RequesterId(u16::from(bus) << 8 | u16::from(function));
                    self.empty_retired_context(requester, None);
                }
            }
        }
    }

    /// The domain a device is attached to; `None` where it is blocked.
    #[must_use]
    pub fn domain_of(&self, requester: RequesterId) -> Option<DomainId> {
        let entry = self.context_entry(self.context_slot(requester)?);
        entry.is_present().then(|| entry.domain())
    }

    /// Keeps the unit from recording the faults of one device (FPD), or lets it record them again.
    /// The device stays as blocked as it is: this is for one that makes faults faster than anybody
    /// can look at them. Faults of interrupts are not covered.
    ///
    /// # Errors
    /// [`AttachError::ArenaFull`].
    pub fn silence(
        &mut self,
        requester: RequesterId,
        silent: bool,
    ) -> Result<Pending, AttachError> {
        let slot = self
            .context_slot_made(requester)
            .ok_or(AttachError::ArenaFull)?;
        let entry = self.context_entry(slot);
        let low = if silent {
            entry.low | ContextEntry::FAULT_PROCESSING_DISABLE
        } else {
            entry.low & !ContextEntry::FAULT_PROCESSING_DISABLE
        };
        if low == entry.low {
            return Ok(Pending::none());
        }
        self.tables.store_and_publish(slot, low);
        let pending = self.pending();
        Ok(if entry.is_present() || self.caching_mode() {
            // An entry that is not present is cached with domain id 0.
            let domain = if entry.is_present() {
                entry.domain()
            } else {
                DomainId(0)
            };
            pending.with_device(DeviceChange {
                requester,
                domain,
                retire: false,
            })
        } else {
            pending
        })
    }
}
