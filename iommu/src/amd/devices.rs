//! The device table.

use handoff_abi::{DomainId, PhysAddr, RequesterId};

use super::spec::DeviceEntry;
use super::unit::Unit;
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
    pub(super) fn devices(self) -> impl Iterator<Item = RequesterId> + use<> {
        (0..=u16::MAX)
            .step_by(256)
            .filter(move |first| self.has((first >> 8) as u8))
            .flat_map(|first| (0..256).map(move |function| RequesterId(first | function)))
    }
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    pub(super) const fn slot(&self, requester: RequesterId) -> PhysAddr {
        slot_in(self.top, requester)
    }

    pub(super) fn load_entry(&self, at: PhysAddr) -> DeviceEntry {
        let word = |index: u64| self.tables.load(offset(at, index * 8));
        DeviceEntry([word(0), word(1), word(2), word(3)])
    }

    pub(super) fn entry(&self, requester: RequesterId) -> DeviceEntry {
        self.load_entry(self.slot(requester))
    }

    /// Writes an entry of a table that is not in force, which is published when it is whole.
    fn put(&mut self, table: PhysAddr, requester: RequesterId, entry: DeviceEntry) {
        let at = slot_in(table, requester);
        for (word, value) in (0..).step_by(8).zip(entry.0) {
            self.tables.store(offset(at, word), value);
        }
    }

    /// Copies the entries in force to another table. Buses that never had a device deny in both.
    pub(super) fn copy_entries(&mut self, table: PhysAddr) {
        for requester in self.vendor.buses.devices() {
            let entry = self.entry(requester);
            self.put(table, requester, entry);
        }
    }

    /// Writes into another table that a device is in the domain `to` with its root, or in none.
    pub(super) fn put_moved(
        &mut self,
        table: PhysAddr,
        requester: RequesterId,
        to: Option<(DomainId, PhysAddr)>,
    ) {
        let mut entry = self.entry(requester);
        let [memory, tags, interrupts, _] = &mut entry.0;
        match to {
            Some((domain, root)) => {
                *memory = DeviceEntry::memory(root, self.vendor.levels);
                *tags = domain.0.into();
                *interrupts &= !DeviceEntry::IGNORE_INTERRUPTS;
            }
            None => {
                *memory = DeviceEntry::NO_MEMORY;
                *tags &= DeviceEntry::SUPPRESS_PAGE_FAULTS;
            }
        }
        self.put(table, requester, entry);
    }

    /// Keeps the unit from logging the page faults and refused interrupts of one device (SA and
    /// IG), or lets it log them again. The device stays as blocked as it is: this is for one that
    /// makes faults faster than anybody can look at them.
    ///
    /// # Errors
    /// None: the device table has an entry for every device.
    pub fn silence(
        &mut self,
        requester: RequesterId,
        silent: bool,
    ) -> Result<Pending, AttachError> {
        let entry = self.entry(requester);
        let change = |word: u64, bit: u64| if silent { word | bit } else { word & !bit };
        let memory = change(entry.0[1], DeviceEntry::SUPPRESS_PAGE_FAULTS);
        let interrupts = change(entry.0[2], DeviceEntry::IGNORE_INTERRUPTS);
        if (memory, interrupts) == (entry.0[1], entry.0[2]) {
            return Ok(Pending::none());
        }
        let slot = self.slot(requester);
        self.tables.store(offset(slot, 8), memory);
        self.tables.store(offset(slot, 16), interrupts);
        self.tables.publish(slot, DeviceEntry::SIZE);
        self.vendor.buses.mark(requester);
        self.entry_changed();
        Ok(self.pending().with_device(DeviceChange {
            requester,
            domain: entry.domain(),
            retire: false,
        }))
    }
}

/// Where a device's entry lies in a table.
pub(super) const fn slot_in(table: PhysAddr, requester: RequesterId) -> PhysAddr {
    offset(table, requester.0 as u64 * DeviceEntry::SIZE)
}
