//! Attaching devices to domains and blocking them: the device table.

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};

use super::spec::DeviceEntry;
use super::unit::Unit;
use crate::domain::maps_identically;
use crate::pending::DeviceChange;
use crate::tables::offset;
use crate::{AttachError, Deadline, Pending, RegisterIo, TableMemory};

/// The buses that have, or had, a device whose entry is not the one that denies everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Buses([u64; 4]);

impl Buses {
    pub(super) fn mark(&mut self, requester: RequesterId) {
        let bus = requester.bus();
        if let Some(word) = self.0.get_mut(usize::from(bus / 64)) {
            *word |= 1 << (bus % 64);
        }
    }

    fn has(self, bus: u8) -> bool {
        self.0
            .get(usize::from(bus / 64))
            .is_some_and(|word| word >> (bus % 64) & 1 != 0)
    }

    /// Every requester id of these buses.
    pub(super) fn devices(self) -> impl Iterator<Item = RequesterId> {
        (0..=u16::MAX)
            .step_by(256)
            .filter(move |first| self.has((first >> 8) as u8))
            .flat_map(|first| (0..256).map(move |function| RequesterId(first | function)))
    }
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    pub(super) const fn slot(&self, requester: RequesterId) -> PhysAddr {
        offset(self.device_table, requester.0 as u64 * DeviceEntry::SIZE)
    }

    pub(super) fn load_entry(&self, at: PhysAddr) -> DeviceEntry {
        let word = |index: u64| self.tables.load(offset(at, index * 8));
        DeviceEntry([word(0), word(1), word(2), word(3)])
    }

    pub(super) fn entry(&self, requester: RequesterId) -> DeviceEntry {
        self.load_entry(self.slot(requester))
    }

    /// Lets a blocked device use a domain. Device caches stay off: the unit refuses requests that
    /// are translated already (I clear). A device that was [silenced](Self::silence) is heard
    /// again.
    ///
    /// The word with the domain id is stored first and then, by one store, the word with the page
    /// tables: until that one the device is denied, and after it the entry is whole. Unlike VT-d's,
    /// an entry that denies is valid and cached: the device reaches its domain when the result was
    /// flushed.
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
    /// (unity ranges of an IVMD, exclusion ranges among them): it is refused unless the domain maps
    /// all of it, at device addresses equal to physical ones, for reading and writing.
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
        let entry = self.entry(requester);
        if entry.has_memory() {
            return Err(AttachError::AlreadyAttached {
                requester,
                domain: entry.domain(),
            });
        }
        if entry.domain().0 != 0 {
            return Err(AttachError::NotFlushed(requester));
        }
        for &memory in reserved {
            if !maps_identically(memory, |at| self.translate(domain, at)) {
                return Err(AttachError::ReservedNotMapped { requester, memory });
            }
        }
        self.install_device(requester, domain, root);
        Ok(self.attached_pending(requester, domain))
    }

    /// Writes the memory half of the entry of a device that is denied, and of which the unit has
    /// nothing else in its caches.
    pub(super) fn install_device(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
        root: PhysAddr,
    ) {
        let slot = self.slot(requester);
        let interrupts = self.entry(requester).0[2];
        if interrupts & DeviceEntry::IGNORE_INTERRUPTS != 0 {
            let heard = interrupts & !DeviceEntry::IGNORE_INTERRUPTS;
            self.tables.store(offset(slot, 16), heard);
        }
        self.tables.store(offset(slot, 8), domain.0.into());
        self.tables
            .store(slot, DeviceEntry::memory(root, self.levels));
        self.tables.publish(slot, DeviceEntry::SIZE);
        self.buses.mark(requester);
        self.entry_changed();
        self.domains.count_attached(domain);
        self.installs = self.installs.wrapping_add(1);
    }

    /// What an entry that was put into force leaves to invalidate: the entry that denied.
    pub(super) fn attached_pending(&self, requester: RequesterId, domain: DomainId) -> Pending {
        self.pending().with_device(DeviceChange {
            requester,
            domain,
            retire: false,
        })
    }

    /// Blocks a device: no memory is within its reach when the result was flushed. Its interrupts
    /// are another matter, see [`clear_interrupts`](Self::clear_interrupts).
    ///
    /// One store makes the entry deny. Its domain id stays until the unit has forgotten what it
    /// cached with it.
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

    /// Makes a device's entry deny memory. Returns the domain whose translations the unit may
    /// still have for it; `None` where it has none.
    pub(super) fn retire_device(&mut self, requester: RequesterId) -> Option<DomainId> {
        let entry = self.entry(requester);
        if entry.domain().0 == 0 {
            return None;
        }
        if entry.has_memory() {
            let slot = self.slot(requester);
            self.tables.store_and_publish(slot, DeviceEntry::NO_MEMORY);
            self.entry_changed();
        }
        self.retirement_begun();
        Some(entry.domain())
    }

    /// Whether a device was blocked and that was not finished.
    pub(super) fn is_retiring(&self, requester: RequesterId) -> bool {
        let entry = self.entry(requester);
        !entry.has_memory() && entry.domain().0 != 0
    }

    /// Removes the domain id of an entry that denies and was invalidated. If `domain` is given,
    /// only where it is still this one: the device may have been attached anew and blocked again
    /// since.
    pub(super) fn empty_retired_device(
        &mut self,
        requester: RequesterId,
        domain: Option<DomainId>,
    ) {
        let entry = self.entry(requester);
        if !self.is_retiring(requester) || domain.is_some_and(|domain| domain != entry.domain()) {
            return;
        }
        let silence = entry.0[1] & DeviceEntry::SUPPRESS_PAGE_FAULTS;
        let at = offset(self.slot(requester), 8);
        self.tables.store_and_publish(at, silence);
        self.entry_changed();
        self.domains.count_detached(entry.domain());
    }

    /// Finishes the retirement of all devices and interrupt entries.
    pub(super) fn empty_all_retired(&mut self) {
        for requester in self.buses.devices() {
            self.empty_retired_device(requester, None);
            self.empty_retired_interrupts(requester);
        }
    }

    /// The domain a device is attached to; `None` where it is blocked.
    #[must_use]
    pub fn domain_of(&self, requester: RequesterId) -> Option<DomainId> {
        let entry = self.entry(requester);
        entry.has_memory().then(|| entry.domain())
    }

    /// Keeps the unit from logging the page faults and refused interrupts of one device (SA and
    /// IG), or lets it log them again. The device stays as blocked as it is: this is for one that
    /// makes faults faster than anybody can look at them.
    pub fn silence(&mut self, requester: RequesterId, silent: bool) -> Pending {
        let entry = self.entry(requester);
        let change = |word: u64, bit: u64| if silent { word | bit } else { word & !bit };
        let memory = change(entry.0[1], DeviceEntry::SUPPRESS_PAGE_FAULTS);
        let interrupts = change(entry.0[2], DeviceEntry::IGNORE_INTERRUPTS);
        if (memory, interrupts) == (entry.0[1], entry.0[2]) {
            return Pending::none();
        }
        let slot = self.slot(requester);
        self.tables.store(offset(slot, 8), memory);
        self.tables.store(offset(slot, 16), interrupts);
        self.tables.publish(slot, DeviceEntry::SIZE);
        self.buses.mark(requester);
        self.entry_changed();
        self.pending().with_device(DeviceChange {
            requester,
            domain: entry.domain(),
            retire: false,
        })
    }
}
