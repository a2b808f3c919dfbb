//! What of AMD-Vi the common driver asks for.

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange, RequesterId};
use heapless::Vec;

use super::commands::CommandBuffer;
use super::devices::slot_in;
use super::hardware::Hardware;
use super::pending::{Cached, commands};
use super::probe::Capabilities;
use super::spec::{DeviceEntry, DeviceTableBase, PageEntry, Register};
use super::unit::{AmdVi, deny_all};
use crate::domain::Bounds;
use crate::driver::{DeviceState, Driver, Vendor};
use crate::paging::Shape;
use crate::tables::offset;
use crate::{
    AttachError, Deadline, InvalidateError, LeafSize, MAX_DOMAINS, Pending, RegisterError,
    RegisterIo, TableMemory,
};

/// Addresses that HyperTransport uses for messages (section 2.1.4.2); no unit translates them or has
/// memory there.
const HYPERTRANSPORT_RANGE: PhysRange =
    PhysRange::from_bounds(PhysAddr(0xfd_0000_0000), PhysAddr(0x100_0000_0000));

/// Domain ids have 16 bits, on every unit.
const DOMAIN_LIMIT: u32 = 1 << 16;

impl<R, C> AmdVi<R, C> {
    /// The command buffer, the registers to work it with, and what the unit may have cached.
    fn buffer<'a>(
        &'a mut self,
        domains: &'a [DomainId],
    ) -> (&'a mut CommandBuffer, &'a mut Hardware<R, C>, Cached<'a>) {
        let cached = Cached {
            all_at_once: self.capabilities.invalidates_all(),
            buses: &self.buses,
            domains,
        };
        (&mut self.commands, &mut self.hardware, cached)
    }
}

impl<R: RegisterIo, C: Deadline> Vendor for AmdVi<R, C> {
    type Entry = PageEntry;
    const INTERRUPTS_BY_DEVICE: bool = true;
    const BLOCKED_IS_CACHED: bool = true;

    fn domain_limit(&self) -> u32 {
        DOMAIN_LIMIT
    }

    fn bounds(&self, arena: PhysRange) -> Bounds {
        Bounds {
            iova_limit: Capabilities::limit_of(self.levels),
            host_limit: self.config.host_limit(),
            arena,
            special: HYPERTRANSPORT_RANGE,
        }
    }

    fn shape(&self, root: PhysAddr) -> Shape {
        Shape {
            root,
            levels: self.levels,
            largest: LeafSize::Size1G,
        }
    }

    fn caches_not_present(&self) -> bool {
        self.capabilities.caches_not_present()
    }

    fn invalidates_all(&self) -> bool {
        self.capabilities.invalidates_all()
    }

    fn next_sequence(&self) -> u64 {
        self.commands.next_sequence()
    }

    fn submit<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        pending: &Pending,
        more: &[RequesterId],
    ) -> Result<Option<u64>, InvalidateError> {
        if !pending.needs_commands() && more.is_empty() {
            return Ok(None);
        }
        let domains: Vec<DomainId, MAX_DOMAINS> = unit.domains.ids().collect();
        let (buffer, hardware, cached) = unit.vendor.buffer(&domains);
        let batch = || commands(pending, more, cached);
        buffer.submit(hardware, &mut unit.tables, batch).map(Some)
    }

    fn await_batch<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        sequence: u64,
        pending: &Pending,
        more: &[RequesterId],
    ) -> Result<u64, InvalidateError> {
        let domains: Vec<DomainId, MAX_DOMAINS> = unit.domains.ids().collect();
        let (buffer, hardware, cached) = unit.vendor.buffer(&domains);
        let batch = || commands(pending, more, cached);
        buffer.wait(hardware, &mut unit.tables, sequence, batch)
    }

    fn device_state<M: TableMemory>(
        unit: &Driver<Self, M>,
        top: PhysAddr,
        requester: RequesterId,
    ) -> DeviceState {
        let slot = slot_in(top, requester);
        // The rest is about interrupts.
        let (memory, tags) = unit.tables.load_pair(slot);
        let entry = DeviceEntry([memory, tags, 0, 0]);
        if entry.has_memory() {
            DeviceState::Attached(entry.domain())
        } else if entry.domain().0 != 0 {
            DeviceState::Retiring(entry.domain())
        } else {
            DeviceState::Blocked
        }
    }

    fn make_entry<M: TableMemory>(
        _unit: &mut Driver<Self, M>,
        _requester: RequesterId,
    ) -> Result<(), AttachError> {
        Ok(())
    }

    /// The word with the domain id is stored first and then, by one store, the word with the page
    /// tables: until that one the device is denied, and after it the entry is whole.
    fn write_attached<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        requester: RequesterId,
        domain: DomainId,
        root: PhysAddr,
    ) {
        let slot = unit.slot(requester);
        let interrupts = unit.tables.load(offset(slot, 16));
        if interrupts & DeviceEntry::IGNORE_INTERRUPTS != 0 {
            let heard = interrupts & !DeviceEntry::IGNORE_INTERRUPTS;
            unit.tables.store(offset(slot, 16), heard);
        }
        unit.tables.store(offset(slot, 8), domain.0.into());
        unit.tables
            .store(slot, DeviceEntry::memory(root, unit.vendor.levels));
        unit.tables.publish(slot, DeviceEntry::SIZE);
        unit.vendor.buses.mark(requester);
    }

    fn write_retiring<M: TableMemory>(unit: &mut Driver<Self, M>, requester: RequesterId) {
        let slot = unit.slot(requester);
        unit.tables.store_and_publish(slot, DeviceEntry::NO_MEMORY);
    }

    fn write_blocked<M: TableMemory>(unit: &mut Driver<Self, M>, requester: RequesterId) {
        let silence = unit.entry(requester).0[1] & DeviceEntry::SUPPRESS_PAGE_FAULTS;
        let at = offset(unit.slot(requester), 8);
        unit.tables.store_and_publish(at, silence);
    }

    fn devices<M: TableMemory>(
        unit: &Driver<Self, M>,
        _top: PhysAddr,
    ) -> impl Iterator<Item = RequesterId> + use<R, C, M> {
        unit.vendor.buses.devices()
    }

    fn empty_interrupt<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        source: RequesterId,
        _index: u16,
    ) {
        unit.empty_retired_interrupts(source);
    }

    fn empty_interrupts<M: TableMemory>(unit: &mut Driver<Self, M>) {
        for source in unit.vendor.buses.devices() {
            unit.empty_retired_interrupts(source);
        }
    }

    fn release<M: TableMemory>(unit: &mut Driver<Self, M>, pending: &Pending, proved: u64) {
        unit.release_replaced(pending, proved);
    }

    fn make_top<M: TableMemory>(unit: &mut Driver<Self, M>) -> Option<PhysAddr> {
        let table = unit.arena.take_run(DeviceTableBase::FRAMES as usize)?;
        deny_all(&mut unit.tables, table);
        Some(table)
    }

    fn fill<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        top: PhysAddr,
        devices: &[RequesterId],
        to: Option<(DomainId, PhysAddr)>,
    ) -> Option<()> {
        for &requester in devices {
            unit.vendor.buses.mark(requester);
        }
        unit.copy_entries(top);
        for &requester in devices {
            unit.put_moved(top, requester, to);
        }
        let length = DeviceTableBase::FRAMES * FRAME_SIZE;
        unit.tables.publish(top, length);
        Some(())
    }

    /// One register, which the unit obeys at once. It stays on: until everything is invalidated,
    /// requests are answered from the old table or the new one.
    fn exchange<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        top: PhysAddr,
    ) -> Result<(), RegisterError> {
        let base = DeviceTableBase::full(top);
        unit.vendor
            .hardware
            .write(Register::DeviceTableBase, base.0);
        Ok(())
    }
}
