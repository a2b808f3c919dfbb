//! Root and context tables.

use handoff_abi::{DomainId, PhysAddr, RequesterId};

use super::spec::{ContextEntry, RootEntry};
use super::unit::Unit;
use crate::driver::Vendor;
use crate::pending::DeviceChange;
use crate::tables::offset;
use crate::{AttachError, Deadline, Pending, RegisterIo, TableMemory};

/// A requester id of each bus.
pub(super) fn buses() -> impl Iterator<Item = RequesterId> {
    (0..=u8::MAX).map(|bus| RequesterId(u16::from(bus) << 8))
}

/// Every requester id of a bus.
pub(super) fn functions(bus: RequesterId) -> impl Iterator<Item = RequesterId> {
    (0..=u16::from(u8::MAX)).map(move |function| RequesterId(bus.0 & 0xff00 | function))
}

/// Where a device's entry lies in its bus's context table.
const fn slot_in(table: PhysAddr, requester: RequesterId) -> PhysAddr {
    offset(table, (requester.0 & 0xff) as u64 * 16)
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    fn root_slot(root: PhysAddr, bus: u8) -> PhysAddr {
        offset(root, u64::from(bus) * 16)
    }

    fn context_table(&self, root: PhysAddr, bus: u8) -> Option<PhysAddr> {
        // The upper half has nothing but reserved bits.
        let low = self.tables.load(Self::root_slot(root, bus));
        let entry = RootEntry { low, high: 0 };
        entry.is_present().then(|| entry.context_table())
    }

    /// Where a device's context entry lies below a root table, if its bus has a context table.
    pub(super) fn context_slot(&self, root: PhysAddr, requester: RequesterId) -> Option<PhysAddr> {
        let table = self.context_table(root, requester.bus())?;
        Some(slot_in(table, requester))
    }

    /// As [`context_slot`](Self::context_slot), with a table made where there is none. An empty
    /// context table blocks as the absent root entry did, so nothing has to be invalidated for it
    /// alone.
    pub(super) fn context_slot_made(
        &mut self,
        root: PhysAddr,
        requester: RequesterId,
    ) -> Option<PhysAddr> {
        if let Some(slot) = self.context_slot(root, requester) {
            return Some(slot);
        }
        let table = self.tables.zeroed(&mut self.arena)?;
        let entry = RootEntry::present(table);
        let slot = Self::root_slot(root, requester.bus());
        self.tables.install_pair(slot, entry.low, entry.high);
        Some(slot_in(table, requester))
    }

    /// The context entry at `slot`.
    pub(super) fn context_entry(&self, slot: PhysAddr) -> ContextEntry {
        let (low, high) = self.tables.load_pair(slot);
        ContextEntry { low, high }
    }

    /// A device's slot below the root table in force, and its entry.
    pub(super) fn context_of(&self, requester: RequesterId) -> Option<(PhysAddr, ContextEntry)> {
        let slot = self.context_slot(self.top, requester)?;
        Some((slot, self.context_entry(slot)))
    }

    /// Copies the context tables in force below another root table: those of the buses that have
    /// one, and of the buses of `devices`. Devices of a bus that has none any more are blocked.
    /// `None` where the arena is full.
    pub(super) fn copy_contexts(&mut self, root: PhysAddr, devices: &[RequesterId]) -> Option<()> {
        for &requester in devices {
            self.context_slot_made(root, requester)?;
        }
        for bus in buses() {
            let from = self.context_slot(self.top, bus);
            let to = match from {
                Some(_) => self.context_slot_made(root, bus),
                None => self.context_slot(root, bus),
            };
            let Some(to) = to else {
                if from.is_some() {
                    return None;
                }
                continue;
            };
            for word in (0..handoff_abi::FRAME_SIZE).step_by(8) {
                let value = from.map_or(0, |from| self.tables.load(offset(from, word)));
                self.tables.store(offset(to, word), value);
            }
            self.tables.publish(to, handoff_abi::FRAME_SIZE);
        }
        Some(())
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
            .context_slot_made(self.top, requester)
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
        self.entry_changed();
        let pending = self.pending();
        Ok(if entry.is_present() || self.vendor.caches_not_present() {
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
