//! Interrupt remapping entries.

use handoff_abi::{InterruptTarget, PhysAddr, RequesterId, UnitKind};

use super::spec::{InterruptEntry, InterruptTableAddress};
use super::unit::Unit;
use crate::driver::Vendor;
use crate::pending::InterruptChange;
use crate::tables::{Tables, offset};
use crate::{
    Deadline, Interrupt, InterruptError, InterruptHandle, Pending, RegisterIo, TableMemory,
    TriggerMode,
};

/// The interrupt remapping table. Which entries are free is told by the table itself: those that
/// are all zero.
#[derive(Clone, Debug)]
pub(super) struct InterruptTable {
    base: PhysAddr,
    entries: u32,
    extended: bool,
    /// Where the search for a free entry begins.
    next: u32,
}

impl InterruptTable {
    const ENTRY: u64 = 16;

    pub(super) const fn new(base: PhysAddr, entries: u32, extended: bool) -> Self {
        Self {
            base,
            entries,
            extended,
            next: 0,
        }
    }

    /// The size of a table in bytes.
    pub(super) const fn length(entries: u32) -> u64 {
        entries as u64 * Self::ENTRY
    }

    pub(super) const fn extended(&self) -> bool {
        self.extended
    }

    /// The value of IRTA. S is one less than the logarithm of the number of entries.
    pub(super) const fn address(&self) -> InterruptTableAddress {
        let size = (self.entries.trailing_zeros() as u8).saturating_sub(1);
        InterruptTableAddress::new(self.base, size, self.extended)
    }

    pub(super) fn indices(&self) -> impl Iterator<Item = u16> + use<> {
        (0..self.entries).map(|index| index as u16)
    }

    const fn has(&self, index: u16) -> bool {
        (index as u32) < self.entries
    }

    const fn slot(&self, index: u16) -> PhysAddr {
        offset(self.base, index as u64 * Self::ENTRY)
    }

    /// The entry, all zero for an index beyond the table.
    pub(super) fn load<M: TableMemory>(&self, tables: &Tables<M>, index: u16) -> InterruptEntry {
        if !self.has(index) {
            return InterruptEntry { low: 0, high: 0 };
        }
        let (low, high) = tables.load_pair(self.slot(index));
        InterruptEntry { low, high }
    }

    fn find_free<M: TableMemory>(&mut self, tables: &Tables<M>) -> Option<u16> {
        let index = (self.next..self.entries)
            .chain(0..self.next)
            .find(|&index| self.load(tables, index as u16).is_empty())?;
        self.next = (index + 1) % self.entries;
        Some(index as u16)
    }

    /// Zeroes an entry that is not present and was invalidated.
    pub(super) fn empty<M: TableMemory>(&mut self, tables: &mut Tables<M>, index: u16) {
        let entry = self.load(tables, index);
        if entry.is_present() || entry.is_empty() {
            return;
        }
        let slot = self.slot(index);
        tables.store(slot, 0);
        tables.store(offset(slot, 8), 0);
        tables.publish(slot, Self::ENTRY);
    }

    pub(super) fn empty_retired<M: TableMemory>(&mut self, tables: &mut Tables<M>) {
        for index in self.indices() {
            self.empty(tables, index);
        }
    }
}

const fn handle(source: RequesterId, index: u16) -> InterruptHandle {
    InterruptHandle::new(UnitKind::VtD, source, index)
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Takes a free entry and sets it: messages of `source`, and of no other device, that name the
    /// returned handle raise `target`. [`InterruptHandle::message`] is what goes into the device's
    /// MSI capability or MSI-X table.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<(InterruptHandle, Pending), InterruptError> {
        self.allocate_interrupt_with(source, target, TriggerMode::Edge)
    }

    /// As [`allocate_interrupt`](Self::allocate_interrupt), for an I/O APIC pin, which can be of
    /// either trigger mode; see [`InterruptHandle::redirection_entry`].
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn allocate_interrupt_with(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
        trigger: TriggerMode,
    ) -> Result<(InterruptHandle, Pending), InterruptError> {
        let entry =
            InterruptEntry::present(source, target, trigger, self.vendor.interrupts.extended())
                .ok_or(InterruptError::BadTarget(target))?;
        let index = self
            .vendor
            .interrupts
            .find_free(&self.tables)
            .ok_or(InterruptError::Full(source))?;
        let handle = handle(source, index);
        Ok((handle, self.install_interrupt(handle, entry)))
    }

    /// As [`allocate_interrupt`](Self::allocate_interrupt), for an index that is given: what a device
    /// already sends, because its messages went through another table.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn set_interrupt(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, InterruptError> {
        let extended = self.vendor.interrupts.extended();
        let entry = InterruptEntry::present(handle.source, target, TriggerMode::Edge, extended)
            .ok_or(InterruptError::BadTarget(target))?;
        if !self.vendor.interrupts.has(handle.index) {
            return Err(InterruptError::BadIndex(handle));
        }
        if !self
            .vendor
            .interrupts
            .load(&self.tables, handle.index)
            .is_empty()
        {
            return Err(InterruptError::InUse(handle));
        }
        Ok(self.install_interrupt(handle, entry))
    }

    /// Writes an entry that is empty.
    fn install_interrupt(&mut self, handle: InterruptHandle, entry: InterruptEntry) -> Pending {
        self.tables.install_pair(
            self.vendor.interrupts.slot(handle.index),
            entry.low,
            entry.high,
        );
        self.installed();
        if self.vendor.caches_not_present() {
            self.interrupt_changed(handle, false)
        } else {
            self.pending()
        }
    }

    fn interrupt_changed(&self, handle: InterruptHandle, retire: bool) -> Pending {
        self.pending().with_interrupt(InterruptChange {
            source: handle.source,
            index: handle.index,
            retire,
        })
    }

    /// The entry with this handle, all zero where it is another device's.
    fn interrupt_entry(&self, handle: InterruptHandle) -> InterruptEntry {
        let entry = self.vendor.interrupts.load(&self.tables, handle.index);
        if entry.source() == handle.source {
            entry
        } else {
            InterruptEntry { low: 0, high: 0 }
        }
    }

    /// Sends the interrupts of an entry elsewhere, without losing one: see [no entry is ever
    /// seen torn](super#no-entry-is-ever-seen-torn). The vector of a level-triggered I/O APIC pin must be changed in its
    /// redirection entry too.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, InterruptError> {
        let old = self.interrupt_entry(handle);
        if !old.is_present() {
            return Err(InterruptError::NotSet(handle));
        }
        let new = InterruptEntry::present(
            old.source(),
            target,
            old.trigger(),
            self.vendor.interrupts.extended(),
        )
        .ok_or(InterruptError::BadTarget(target))?;
        if new == old {
            return Ok(Pending::none());
        }
        // The upper half is the same in both.
        let slot = self.vendor.interrupts.slot(handle.index);
        self.tables.store_and_publish(slot, new.low);
        Ok(self.interrupt_changed(handle, false))
    }

    /// Drops the interrupts of an entry from now on. When the result was flushed, none is raised
    /// any more and the handle can be given out again.
    ///
    /// # Errors
    /// [`InterruptError::NotSet`].
    pub fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<Pending, InterruptError> {
        let entry = self.interrupt_entry(handle);
        if entry.is_empty() {
            return Err(InterruptError::NotSet(handle));
        }
        if entry.is_present() {
            let slot = self.vendor.interrupts.slot(handle.index);
            self.tables
                .store_and_publish(slot, entry.low & !InterruptEntry::PRESENT);
        }
        self.retirement_begun();
        Ok(self.interrupt_changed(handle, true))
    }

    /// Drops all interrupts of a device from now on, see [`clear_interrupt`](Self::clear_interrupt).
    pub fn clear_interrupts(&mut self, source: RequesterId) -> Pending {
        let mut pending = Pending::none();
        for index in self.vendor.interrupts.indices() {
            if let Ok(cleared) = self.clear_interrupt(handle(source, index)) {
                pending = pending.merge(cleared);
            }
        }
        pending
    }

    /// The entry with this handle; `None` where it is not set.
    #[must_use]
    pub fn interrupt(&self, handle: InterruptHandle) -> Option<Interrupt> {
        let entry = self.interrupt_entry(handle);
        entry.is_present().then(|| Interrupt {
            handle,
            target: entry.target(self.vendor.interrupts.extended()),
        })
    }

    /// How the interrupts of an entry are signalled; `None` where it is not set.
    #[must_use]
    pub fn trigger(&self, handle: InterruptHandle) -> Option<TriggerMode> {
        let entry = self.interrupt_entry(handle);
        entry.is_present().then(|| entry.trigger())
    }

    /// Every entry that is set.
    pub fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        self.vendor.interrupts.indices().filter_map(|index| {
            let source = self.vendor.interrupts.load(&self.tables, index).source();
            self.interrupt(handle(source, index))
        })
    }
}
