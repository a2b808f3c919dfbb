//! Interrupt remapping entries.

use core::fmt;

use handoff_abi::{InterruptTarget, PhysAddr, RequesterId};

use super::pending::Pending;
use super::spec::{InterruptEntry, InterruptHandle, InterruptTableAddress, TriggerMode};
use super::unit::Unit;
use crate::pending::InterruptChange;
use crate::tables::{Tables, offset};
use crate::{Deadline, RegisterIo, TableMemory};

/// Why an interrupt entry was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InterruptError {
    /// The vector is below 16, or the APIC id means all processors or does not fit (8 bits unless
    /// [`Config::extended_interrupt_mode`](super::Config::extended_interrupt_mode)).
    BadTarget(InterruptTarget),
    /// The table has no entry with this handle, or it is not set.
    NotSet(InterruptHandle),
    /// Every entry of the table is in use.
    Full,
}

impl fmt::Display for InterruptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTarget(target) => write!(
                f,
                "vector {} of processor {} is not a target",
                target.vector, target.destination
            ),
            Self::NotSet(handle) => write!(f, "interrupt entry {} is not set", handle.0),
            Self::Full => f.write_str("every interrupt entry is in use"),
        }
    }
}

impl core::error::Error for InterruptError {}

/// An interrupt entry that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Interrupt {
    /// Its index.
    pub handle: InterruptHandle,
    /// The only device whose messages it accepts.
    pub source: RequesterId,
    /// Where they go.
    pub target: InterruptTarget,
    /// How they are signalled there.
    pub trigger: TriggerMode,
}

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

    pub(super) fn handles(&self) -> impl Iterator<Item = InterruptHandle> + use<> {
        (0..self.entries).map(|index| InterruptHandle(index as u16))
    }

    const fn slot(&self, handle: InterruptHandle) -> PhysAddr {
        offset(self.base, handle.0 as u64 * Self::ENTRY)
    }

    /// The entry, all zero for a handle beyond the table.
    pub(super) fn load<M: TableMemory>(
        &self,
        tables: &Tables<M>,
        handle: InterruptHandle,
    ) -> InterruptEntry {
        if u32::from(handle.0) >= self.entries {
            return InterruptEntry { low: 0, high: 0 };
        }
        let (low, high) = tables.load_pair(self.slot(handle));
        InterruptEntry { low, high }
    }

    fn find_free<M: TableMemory>(&mut self, tables: &Tables<M>) -> Option<InterruptHandle> {
        let index = (self.next..self.entries)
            .chain(0..self.next)
            .find(|&index| self.load(tables, InterruptHandle(index as u16)).is_empty())?;
        self.next = (index + 1) % self.entries;
        Some(InterruptHandle(index as u16))
    }

    /// Zeroes an entry that is not present and was invalidated.
    pub(super) fn empty<M: TableMemory>(
        &mut self,
        tables: &mut Tables<M>,
        handle: InterruptHandle,
    ) {
        let entry = self.load(tables, handle);
        if entry.is_present() || entry.is_empty() {
            return;
        }
        let slot = self.slot(handle);
        tables.store(slot, 0);
        tables.store(offset(slot, 8), 0);
        tables.publish(slot, Self::ENTRY);
    }

    pub(super) fn empty_retired<M: TableMemory>(&mut self, tables: &mut Tables<M>) {
        for handle in self.handles() {
            self.empty(tables, handle);
        }
    }
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
        let entry = InterruptEntry::present(source, target, trigger, self.interrupts.extended())
            .ok_or(InterruptError::BadTarget(target))?;
        let handle = self
            .interrupts
            .find_free(&self.tables)
            .ok_or(InterruptError::Full)?;
        self.tables
            .install_pair(self.interrupts.slot(handle), entry.low, entry.high);
        self.installs = self.installs.wrapping_add(1);
        let pending = self.pending();
        let pending = if self.caching_mode() {
            pending.with_interrupt(InterruptChange {
                handle,
                retire: false,
            })
        } else {
            pending
        };
        Ok((handle, pending))
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
        let old = self.interrupts.load(&self.tables, handle);
        if !old.is_present() {
            return Err(InterruptError::NotSet(handle));
        }
        let new = InterruptEntry::present(
            old.source(),
            target,
            old.trigger(),
            self.interrupts.extended(),
        )
        .ok_or(InterruptError::BadTarget(target))?;
        if new == old {
            return Ok(Pending::none());
        }
        // The upper half is the same in both.
        let slot = self.interrupts.slot(handle);
        self.tables.store_and_publish(slot, new.low);
        Ok(self.pending().with_interrupt(InterruptChange {
            handle,
            retire: false,
        }))
    }

    /// Drops the interrupts of an entry from now on. When the result was flushed, none is raised
    /// any more and the handle can be given out again.
    ///
    /// # Errors
    /// [`InterruptError::NotSet`].
    pub fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<Pending, InterruptError> {
        let entry = self.interrupts.load(&self.tables, handle);
        if entry.is_empty() {
            return Err(InterruptError::NotSet(handle));
        }
        if entry.is_present() {
            let slot = self.interrupts.slot(handle);
            self.tables
                .store_and_publish(slot, entry.low & !InterruptEntry::PRESENT);
        }
        self.retirement_begun();
        Ok(self.pending().with_interrupt(InterruptChange {
            handle,
            retire: true,
        }))
    }

    /// The entry with this handle; `None` where it is not set.
    #[must_use]
    pub fn interrupt(&self, handle: InterruptHandle) -> Option<Interrupt> {
        let entry = self.interrupts.load(&self.tables, handle);
        entry.is_present().then(|| Interrupt {
            handle,
            source: entry.source(),
            target: entry.target(self.interrupts.extended()),
            trigger: entry.trigger(),
        })
    }

    /// Every entry that is set.
    pub fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        self.interrupts
            .handles()
            .filter_map(|handle| self.interrupt(handle))
    }
}
