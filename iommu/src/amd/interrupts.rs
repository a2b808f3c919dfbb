//! Interrupt remapping tables, one for each device that has interrupts.

use handoff_abi::{ApicId, FRAME_SIZE, InterruptTarget, PhysAddr, RequesterId, UnitKind};

use super::devices::slot_in;
use super::spec::{DeviceEntry, InterruptEntry, InterruptFormat};
use super::unit::Unit;
use crate::driver::Vendor;
use crate::pending::{DeviceChange, InterruptChange};
use crate::tables::{Tables, offset};
use crate::{
    Deadline, Interrupt, InterruptError, InterruptHandle, Pending, RegisterIo, TableMemory,
};

/// A table that another took the place of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replaced {
    source: RequesterId,
    table: PhysAddr,
    /// The number of the first batch that can prove it unused.
    tag: u64,
}

impl Replaced {
    /// How many can wait for a flush.
    pub(super) const MAX: usize = 32;
}

/// The table of one device.
#[derive(Clone, Copy, Debug)]
pub(super) struct InterruptTable {
    pub(super) base: PhysAddr,
    pub(super) format: InterruptFormat,
}

impl InterruptTable {
    /// The 8 bytes that hold the entry, or its low half, and how far it is shifted there.
    pub(super) const fn place(self, index: u16) -> (PhysAddr, u32) {
        let at = index as u64 * self.format.entry_size();
        (offset(self.base, at & !7), (at as u32 & 7) * 8)
    }

    pub(super) fn load<M: TableMemory>(self, tables: &Tables<M>, index: u16) -> InterruptEntry {
        let (at, shift) = self.place(index);
        let low = tables.load(at);
        match self.format {
            InterruptFormat::Bits32 => InterruptEntry {
                low: low >> shift & 0xffff_ffff,
                high: 0,
            },
            InterruptFormat::Bits128 | InterruptFormat::Bits128X2Apic => InterruptEntry {
                low,
                high: tables.load(offset(at, 8)),
            },
        }
    }

    /// Stores the word with the low half, and with it, of 32-bit entries, the neighbour as it is.
    fn store_low<M: TableMemory>(self, tables: &mut Tables<M>, index: u16, low: u64) {
        let (at, shift) = self.place(index);
        let word = match self.format {
            InterruptFormat::Bits32 => tables.load(at) & !(0xffff_ffff << shift) | low << shift,
            InterruptFormat::Bits128 | InterruptFormat::Bits128X2Apic => low,
        };
        tables.store(at, word);
    }

    fn store_high<M: TableMemory>(self, tables: &mut Tables<M>, index: u16, high: u64) {
        match self.format {
            InterruptFormat::Bits32 => {}
            InterruptFormat::Bits128 | InterruptFormat::Bits128X2Apic => {
                tables.store(offset(self.place(index).0, 8), high);
            }
        }
    }

    /// Makes the entry visible. It lies in one cache line.
    fn publish<M: TableMemory>(self, tables: &mut Tables<M>, index: u16) {
        tables.publish(self.place(index).0, self.format.entry_size().max(8));
    }

    /// Writes an entry that is not enabled now. The half with RemapEn comes last.
    fn install<M: TableMemory>(self, tables: &mut Tables<M>, index: u16, entry: InterruptEntry) {
        self.store_high(tables, index, entry.high);
        self.store_low(tables, index, entry.low);
        self.publish(tables, index);
    }

    /// Zeroes an entry that is not enabled and was invalidated.
    fn empty<M: TableMemory>(self, tables: &mut Tables<M>, index: u16) {
        let entry = self.load(tables, index);
        if !entry.is_enabled() && !entry.is_empty() {
            self.store_low(tables, index, 0);
            self.store_high(tables, index, 0);
            self.publish(tables, index);
        }
    }
}

const fn handle(source: RequesterId, index: u16) -> InterruptHandle {
    InterruptHandle::new(UnitKind::AmdVi, source, index)
}

/// The vectors that an entry can be for.
const VECTORS: core::ops::RangeInclusive<u16> = InterruptEntry::FIRST_VECTOR as u16..=255;

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    pub(super) fn interrupt_table(&self, source: RequesterId) -> Option<InterruptTable> {
        let base = self.entry(source).interrupt_table()?;
        Some(InterruptTable {
            base,
            format: self.vendor.config.interrupt_format,
        })
    }

    fn load_interrupt(&self, handle: InterruptHandle) -> Option<(InterruptTable, InterruptEntry)> {
        if handle.index >= InterruptFormat::ENTRIES {
            return None;
        }
        let table = self.interrupt_table(handle.source)?;
        Some((table, table.load(&self.tables, handle.index)))
    }

    const fn frames_of_table(&self) -> u64 {
        self.vendor.config.interrupt_format.table_frames()
    }

    fn new_table(&mut self) -> Result<InterruptTable, InterruptError> {
        let frames = self.frames_of_table() as usize;
        let base = self
            .tables
            .zeroed_run(&mut self.arena, frames)
            .ok_or(InterruptError::ArenaFull)?;
        Ok(InterruptTable {
            base,
            format: self.vendor.config.interrupt_format,
        })
    }

    fn entry_for(&self, target: InterruptTarget) -> Result<InterruptEntry, InterruptError> {
        InterruptEntry::enabled(target, self.vendor.config.interrupt_format)
            .ok_or(InterruptError::BadTarget(target))
    }

    /// The device's table, or a new one that the unit does not know yet.
    fn table_made(
        &mut self,
        source: RequesterId,
    ) -> Result<(InterruptTable, bool), InterruptError> {
        match self.interrupt_table(source) {
            Some(table) => Ok((table, false)),
            None => Ok((self.new_table()?, true)),
        }
    }

    /// What changed entries of a device leave to invalidate. `fresh` is a table that becomes the
    /// device's: its address is one store, made when what is in it is there.
    fn changed(&mut self, source: RequesterId, fresh: Option<InterruptTable>) -> Pending {
        self.installed();
        self.vendor.buses.mark(source);
        let pending = self.pending().with_interrupt(InterruptChange {
            source,
            index: 0,
            retire: false,
        });
        let Some(table) = fresh else {
            return pending;
        };
        let entry = self.entry(source);
        let quiet = entry.0[2] & DeviceEntry::IGNORE_INTERRUPTS;
        let at = offset(self.slot(source), 16);
        let word = DeviceEntry::interrupts(table.base, InterruptFormat::LOG_ENTRIES);
        self.tables.store_and_publish(at, word | quiet);
        if let Some(prepared) = self.prepared_top() {
            let at = offset(slot_in(prepared, source), 16);
            self.tables.store_and_publish(at, word | quiet);
        }
        pending.with_device(DeviceChange {
            requester: source,
            domain: entry.domain(),
            retire: false,
        })
    }

    /// Takes a free entry of `source`'s table and sets it: the returned handle's message raises
    /// `target`, and no other device has a way to it. [`InterruptHandle::message`] is what goes
    /// into the device's MSI capability or MSI-X table. The index is the target's vector if that
    /// is free.
    ///
    /// The interrupt passes when the result was flushed.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<(InterruptHandle, Pending), InterruptError> {
        let entry = self.entry_for(target)?;
        let (table, fresh) = self.table_made(source)?;
        let index = core::iter::once(u16::from(target.vector))
            .chain(VECTORS)
            .find(|&index| table.load(&self.tables, index).is_empty())
            .ok_or(InterruptError::Full(source))?;
        table.install(&mut self.tables, index, entry);
        let pending = self.changed(source, fresh.then_some(table));
        Ok((handle(source, index), pending))
    }

    /// As [`allocate_interrupt`](Self::allocate_interrupt), for an index that is given: what an I/O
    /// APIC pin or a device already sends.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn set_interrupt(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, InterruptError> {
        let entry = self.entry_for(target)?;
        if handle.index >= InterruptFormat::ENTRIES || !VECTORS.contains(&(handle.index & 0xff)) {
            return Err(InterruptError::BadIndex(handle));
        }
        if let Some((_, entry)) = self.load_interrupt(handle)
            && !entry.is_empty()
        {
            return Err(InterruptError::InUse(handle));
        }
        let (table, fresh) = self.table_made(handle.source)?;
        table.install(&mut self.tables, handle.index, entry);
        Ok(self.changed(handle.source, fresh.then_some(table)))
    }

    /// Lets a device raise every vector from 16 on, with fixed delivery or lowest priority, at one
    /// processor: for a kernel that knows nothing of the fence and programs its devices as if there
    /// were none. Whatever address and data it gives them, nothing but that vector at that
    /// processor comes of it.
    ///
    /// # Errors
    /// See [`InterruptError`]; the device must have no entry set.
    pub fn open_vectors(
        &mut self,
        source: RequesterId,
        destination: ApicId,
    ) -> Result<Pending, InterruptError> {
        let target = |vector: u16| InterruptTarget {
            destination,
            vector: vector as u8,
        };
        self.entry_for(target(255))?;
        if let Some(table) = self.interrupt_table(source)
            && let Some(index) = (0..InterruptFormat::ENTRIES)
                .find(|&index| !table.load(&self.tables, index).is_empty())
        {
            return Err(InterruptError::InUse(handle(source, index)));
        }
        let (table, fresh) = self.table_made(source)?;
        for vector in VECTORS {
            let entry = self.entry_for(target(vector))?;
            for index in [vector, InterruptFormat::LOWEST_PRIORITY + vector] {
                table.install(&mut self.tables, index, entry);
            }
        }
        Ok(self.changed(source, fresh.then_some(table)))
    }

    /// Sends the interrupts of an entry elsewhere, without losing one: see [no entry is ever seen
    /// torn](super#no-entry-is-ever-seen-torn).
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, InterruptError> {
        let (table, old) = self
            .load_interrupt(handle)
            .filter(|(_, entry)| entry.is_enabled())
            .ok_or(InterruptError::NotSet(handle))?;
        let new = self.entry_for(target)?;
        if new == old {
            return Ok(Pending::none());
        }
        if new.high != old.high {
            return self.replace_table(handle.source, |index, entry| {
                if index == handle.index { new } else { entry }
            });
        }
        table.store_low(&mut self.tables, handle.index, new.low);
        table.publish(&mut self.tables, handle.index);
        Ok(self.changed(handle.source, None))
    }

    /// Sends all interrupts of a device to another processor, vectors as they are, without losing
    /// one.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn retarget_all(
        &mut self,
        source: RequesterId,
        destination: ApicId,
    ) -> Result<Pending, InterruptError> {
        let Some(table) = self.interrupt_table(source) else {
            return Ok(Pending::none());
        };
        let format = table.format;
        // The vector is one that any entry can have, so the rest of the target is judged here.
        self.entry_for(InterruptTarget {
            destination,
            vector: 255,
        })?;
        let change = |entry: InterruptEntry| {
            let target = InterruptTarget {
                destination,
                ..entry.target(format)
            };
            match InterruptEntry::enabled(target, format) {
                Some(new) if entry.is_enabled() => new,
                _ => entry,
            }
        };
        let entries = 0..InterruptFormat::ENTRIES;
        if entries.clone().any(|index| {
            let entry = table.load(&self.tables, index);
            change(entry).high != entry.high
        }) {
            return self.replace_table(source, |_, entry| change(entry));
        }
        for index in entries {
            let entry = table.load(&self.tables, index);
            let new = change(entry);
            if new != entry {
                table.store_low(&mut self.tables, index, new.low);
                table.publish(&mut self.tables, index);
            }
        }
        Ok(self.changed(source, None))
    }

    /// Gives a device another table, with each entry as `change` says, by one store. The old one is
    /// free when the result was flushed.
    fn replace_table(
        &mut self,
        source: RequesterId,
        change: impl Fn(u16, InterruptEntry) -> InterruptEntry,
    ) -> Result<Pending, InterruptError> {
        let Some(old) = self.interrupt_table(source) else {
            return Ok(Pending::none());
        };
        if self.vendor.replaced.is_full() {
            return Err(InterruptError::NotFlushed);
        }
        let new = self.new_table()?;
        for index in 0..InterruptFormat::ENTRIES {
            let entry = change(index, old.load(&self.tables, index));
            if !entry.is_empty() {
                new.install(&mut self.tables, index, entry);
            }
        }
        let pending = self.changed(source, Some(new));
        let replaced = Replaced {
            source,
            table: old.base,
            tag: self.vendor.next_sequence(),
        };
        let kept = self.vendor.replaced.push(replaced);
        debug_assert!(kept.is_ok(), "looked at above");
        Ok(pending)
    }

    /// Frees the tables that a batch proves unused.
    pub(super) fn release_replaced(&mut self, pending: &Pending, proved: u64) {
        let frames = self.frames_of_table();
        let arena = &mut self.arena;
        self.vendor.replaced.retain(|replaced| {
            let source = replaced.source;
            let device =
                pending.all_devices() || pending.devices().iter().any(|d| d.requester == source);
            let entries =
                pending.all_interrupts() || pending.interrupts().iter().any(|i| i.source == source);
            if !device || !entries || replaced.tag > proved {
                return true;
            }
            for frame in 0..frames {
                arena.give_back(offset(replaced.table, frame * FRAME_SIZE));
            }
            false
        });
    }

    /// Drops the interrupts of an entry from now on. When the result was flushed, none is raised
    /// any more and the handle can be given out again.
    ///
    /// # Errors
    /// [`InterruptError::NotSet`].
    pub fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<Pending, InterruptError> {
        let (table, entry) = self
            .load_interrupt(handle)
            .filter(|(_, entry)| !entry.is_empty())
            .ok_or(InterruptError::NotSet(handle))?;
        self.retire_interrupt(table, handle.index, entry);
        Ok(self.cleared(handle.source))
    }

    /// Drops all interrupts of a device from now on, see [`clear_interrupt`](Self::clear_interrupt).
    pub fn clear_interrupts(&mut self, source: RequesterId) -> Pending {
        let Some(table) = self.interrupt_table(source) else {
            return Pending::none();
        };
        for index in 0..InterruptFormat::ENTRIES {
            let entry = table.load(&self.tables, index);
            self.retire_interrupt(table, index, entry);
        }
        self.cleared(source)
    }

    fn retire_interrupt(&mut self, table: InterruptTable, index: u16, entry: InterruptEntry) {
        if entry.is_enabled() {
            let low = entry.low & !InterruptEntry::ENABLED;
            table.store_low(&mut self.tables, index, low);
            table.publish(&mut self.tables, index);
        }
    }

    fn cleared(&mut self, source: RequesterId) -> Pending {
        self.retirement_begun();
        self.pending().with_interrupt(InterruptChange {
            source,
            index: 0,
            retire: true,
        })
    }

    /// Zeroes the cleared entries of a device, which were invalidated.
    pub(super) fn empty_retired_interrupts(&mut self, source: RequesterId) {
        if let Some(table) = self.interrupt_table(source) {
            for index in 0..InterruptFormat::ENTRIES {
                table.empty(&mut self.tables, index);
            }
        }
    }

    /// The entry with this handle; `None` where it is not set.
    #[must_use]
    pub fn interrupt(&self, handle: InterruptHandle) -> Option<Interrupt> {
        let (table, entry) = self.load_interrupt(handle)?;
        entry.is_enabled().then(|| Interrupt {
            handle,
            target: entry.target(table.format),
        })
    }

    /// Every entry that is set.
    pub fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        self.vendor
            .buses
            .devices()
            .filter(|&source| self.interrupt_table(source).is_some())
            .flat_map(|source| {
                (0..InterruptFormat::ENTRIES).map(move |index| handle(source, index))
            })
            .filter_map(|handle| self.interrupt(handle))
    }
}
