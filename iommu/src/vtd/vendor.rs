//! What of VT-d the common driver asks for.

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};

use super::context::{buses, functions};
use super::pending::{MAX_DESCRIPTORS, Moved, descriptors};
use super::spec::{
    Capability, ContextEntry, GlobalStatus, Register, RootTableAddress, SecondStageEntry,
};
use super::unit::VtD;
use crate::domain::Bounds;
use crate::driver::{DeviceState, Driver, Vendor};
use crate::paging::Shape;
use crate::tables::offset;
use crate::{
    AttachError, Deadline, InvalidateError, Pending, RegisterError, RegisterIo, SELECTIVE_LIMIT,
    TableMemory,
};

impl<R: RegisterIo, C: Deadline> VtD<R, C> {
    pub(super) fn has(&self, capability: Capability) -> bool {
        self.capabilities.capability.contains(capability)
    }

    /// Flushes the write buffer of a unit that has one: what was stored is visible afterwards.
    pub(super) fn flush_write_buffer(&mut self) -> Result<(), RegisterError> {
        if self.has(Capability::RWBF) {
            self.hardware.flush_write_buffer()?;
        }
        Ok(())
    }

    /// Puts a root table into force: RTADDR, when no command is under way that might look at it, and
    /// SRTP.
    pub(super) fn latch_root_table(
        &mut self,
        address: RootTableAddress,
    ) -> Result<(), RegisterError> {
        self.hardware.settle()?;
        self.hardware.write64(Register::RootTableAddress, address.0);
        self.hardware.latch(GlobalStatus::RTPS)
    }
}

/// What may be cached of devices that are moved.
fn moved<R: RegisterIo, C: Deadline, M: TableMemory>(
    unit: &Driver<VtD<R, C>, M>,
    devices: &[RequesterId],
) -> Moved {
    let cached = |&requester: &RequesterId| {
        let domain = match VtD::device_state(unit, unit.top, requester) {
            DeviceState::Retiring(domain) => domain,
            // The entry was not present until now. It is cached as such in caching mode only, with
            // domain id 0.
            _ if unit.vendor.caches_not_present() => DomainId(0),
            _ => return None,
        };
        Some((requester, domain))
    };
    // More are never invalidated one by one.
    devices
        .iter()
        .take(SELECTIVE_LIMIT)
        .filter_map(cached)
        .collect()
}

impl<R: RegisterIo, C: Deadline> Vendor for VtD<R, C> {
    type Entry = SecondStageEntry;
    const INTERRUPTS_BY_DEVICE: bool = false;
    const BLOCKED_IS_CACHED: bool = false;

    fn domain_limit(&self) -> u32 {
        self.capabilities.capability.domains()
    }

    fn bounds(&self, arena: PhysRange) -> Bounds {
        Bounds {
            iova_limit: self.capabilities.limit_of(self.width),
            host_limit: self.config.host_limit(),
            arena,
            special: PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)),
        }
    }

    fn shape(&self, root: PhysAddr) -> Shape {
        Shape {
            root,
            levels: self.width.levels(),
            largest: self.capabilities.largest_leaf(),
        }
    }

    fn caches_not_present(&self) -> bool {
        self.has(Capability::CM)
    }

    fn invalidates_all(&self) -> bool {
        true
    }

    fn next_sequence(&self) -> u64 {
        self.queue.next_sequence()
    }

    fn submit<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        pending: &Pending,
        more: &[RequesterId],
    ) -> Result<Option<u64>, InvalidateError> {
        let more = moved(unit, more);
        let commands = pending.needs_commands() || !more.is_empty();
        if commands || pending.stored {
            unit.vendor.flush_write_buffer()?;
        }
        if !commands {
            return Ok(None);
        }
        let Self {
            queue, hardware, ..
        } = &mut unit.vendor;
        queue
            .submit(
                hardware,
                &mut unit.tables,
                descriptors(pending, &more),
                MAX_DESCRIPTORS,
            )
            .map(Some)
    }

    fn await_batch<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        sequence: u64,
        pending: &Pending,
        more: &[RequesterId],
    ) -> Result<u64, InvalidateError> {
        let more = moved(unit, more);
        let Self {
            queue, hardware, ..
        } = &mut unit.vendor;
        queue.wait(
            hardware,
            &mut unit.tables,
            sequence,
            || descriptors(pending, &more),
            MAX_DESCRIPTORS,
        )
    }

    fn device_state<M: TableMemory>(
        unit: &Driver<Self, M>,
        top: PhysAddr,
        requester: RequesterId,
    ) -> DeviceState {
        match unit.context_slot(top, requester) {
            Some(slot) => match unit.context_entry(slot) {
                entry if entry.is_present() => DeviceState::Attached(entry.domain()),
                entry if entry.is_empty() => DeviceState::Blocked,
                entry => DeviceState::Retiring(entry.domain()),
            },
            None => DeviceState::Blocked,
        }
    }

    fn make_entry<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        requester: RequesterId,
    ) -> Result<(), AttachError> {
        unit.context_slot_made(unit.top, requester)
            .map(|_| ())
            .ok_or(AttachError::ArenaFull)
    }

    fn write_attached<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        requester: RequesterId,
        domain: DomainId,
        root: PhysAddr,
    ) {
        // The upper half of the entry is stored before the lower one, which has the present bit, so
        // the unit never sees a part of an entry.
        if let Some(slot) = unit.context_slot(unit.top, requester) {
            let entry = ContextEntry::present(domain, root, unit.vendor.width);
            unit.tables.install_pair(slot, entry.low, entry.high);
        }
    }

    fn write_retiring<M: TableMemory>(unit: &mut Driver<Self, M>, requester: RequesterId) {
        if let Some(slot) = unit.context_slot(unit.top, requester) {
            let low = unit.tables.load(slot);
            unit.tables
                .store_and_publish(slot, low & !ContextEntry::PRESENT);
        }
    }

    fn write_blocked<M: TableMemory>(unit: &mut Driver<Self, M>, requester: RequesterId) {
        if let Some((slot, entry)) = unit.context_of(requester) {
            let low = entry.low & ContextEntry::FAULT_PROCESSING_DISABLE;
            unit.tables.store(slot, low);
            unit.tables.store(offset(slot, 8), 0);
            unit.tables.publish(slot, 16);
        }
    }

    fn devices<M: TableMemory>(
        unit: &Driver<Self, M>,
        top: PhysAddr,
    ) -> impl Iterator<Item = RequesterId> + use<R, C, M> {
        let mut present = [false; 256];
        for (present, bus) in present.iter_mut().zip(buses()) {
            *present = unit.context_slot(top, bus).is_some();
        }
        present
            .into_iter()
            .zip(buses())
            .filter(|(present, _)| *present)
            .flat_map(|(_, bus)| functions(bus))
    }

    fn empty_interrupt<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        _source: RequesterId,
        index: u16,
    ) {
        unit.vendor.interrupts.empty(&mut unit.tables, index);
    }

    fn empty_interrupts<M: TableMemory>(unit: &mut Driver<Self, M>) {
        unit.vendor.interrupts.empty_retired(&mut unit.tables);
    }

    fn release<M: TableMemory>(_unit: &mut Driver<Self, M>, _pending: &Pending, _proved: u64) {}

    fn make_top<M: TableMemory>(unit: &mut Driver<Self, M>) -> Option<PhysAddr> {
        unit.tables.zeroed(&mut unit.arena)
    }

    fn fill<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        top: PhysAddr,
        devices: &[RequesterId],
        to: Option<(DomainId, PhysAddr)>,
    ) -> Option<()> {
        unit.copy_contexts(top, devices)?;
        for &requester in devices {
            let slot = unit.context_slot(top, requester)?;
            let entry = match to {
                Some((domain, root)) => ContextEntry::present(domain, root, unit.vendor.width),
                None => ContextEntry {
                    low: unit.context_entry(slot).low & ContextEntry::FAULT_PROCESSING_DISABLE,
                    high: 0,
                },
            };
            unit.tables.install_pair(slot, entry.low, entry.high);
        }
        Some(())
    }

    /// RTADDR, and GCMD.SRTP to make the unit look at it (section 6.6). Translation stays on: until
    /// everything is invalidated, requests are answered from the old tables or the new ones.
    fn exchange<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        top: PhysAddr,
    ) -> Result<(), RegisterError> {
        unit.vendor.flush_write_buffer()?;
        unit.vendor.latch_root_table(RootTableAddress::legacy(top))
    }
}
