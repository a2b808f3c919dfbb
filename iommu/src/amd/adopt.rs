//! Taking over a unit that runs, from the tables that are in force and the record that came with
//! them.

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};

use super::commands::CommandBuffer;
use super::devices::Buses;
use super::events::EventLog;
use super::hardware::Hardware;
use super::interrupts::InterruptTable;
use super::probe::Capabilities;
use super::spec::{
    CapabilityHeader, Control, DeviceEntry, DeviceTableBase, ExtendedFeature, InterruptFormat,
    PageEntry, Register, RingBase,
};
use super::state::State;
use super::unit::{AmdVi, Config, Unit};
use crate::adopt::{StatusAddress, at_fault};
use crate::arena::Arena;
use crate::driver::{Phase, Vendor, Walk, check_recorded};
use crate::tables::{Tables, offset};
use crate::{AdoptError, Deadline, Reach, RegisterIo, TableFault, TableMemory};

impl<M: TableMemory> Walk<'_, M, PageEntry> {
    /// All device table entries. `each` is called with every device whose entry is not the one that
    /// denies everything.
    fn devices(
        &mut self,
        table: PhysAddr,
        format: InterruptFormat,
        mut each: impl FnMut(
            &Self,
            RequesterId,
            Option<DomainId>,
            Option<InterruptTable>,
        ) -> Result<(), AdoptError>,
    ) -> Result<(), AdoptError> {
        for id in 0..=u16::MAX {
            let requester = RequesterId(id);
            let at = offset(table, u64::from(id) * DeviceEntry::SIZE);
            let word = |index: u64| self.tables.load(offset(at, index * 8));
            let entry = DeviceEntry([word(0), word(1), word(2), word(3)]);
            if entry == DeviceEntry::DENIED {
                continue;
            }
            let domain = self.device(at, entry)?;
            let interrupts = match entry.interrupt_table() {
                Some(base) => {
                    self.claim(offset(at, 16), base, format.table_frames())?;
                    Some(InterruptTable { base, format })
                }
                None => None,
            };
            each(self, requester, domain, interrupts)?;
        }
        Ok(())
    }

    /// An entry that is not the one that denies everything. Every bit must be one of the driver's.
    /// Returns the domain whose memory the device reaches.
    fn device(&mut self, at: PhysAddr, entry: DeviceEntry) -> Result<Option<DomainId>, AdoptError> {
        let bad = |word: u64, fault| Err(at_fault(offset(at, word * 8), fault));
        let [memory, tags, interrupts, reserved] = entry.0;
        let id = entry.domain();
        if tags & !DeviceEntry::SUPPRESS_PAGE_FAULTS != id.0.into() {
            return bad(1, TableFault::ForeignBits(tags));
        }
        if reserved != 0 {
            return bad(3, TableFault::ForeignBits(reserved));
        }
        let expected = match entry.interrupt_table() {
            Some(table) => DeviceEntry::interrupts(table, InterruptFormat::LOG_ENTRIES),
            None => DeviceEntry::NO_INTERRUPTS,
        };
        if interrupts & !DeviceEntry::IGNORE_INTERRUPTS != expected {
            return bad(2, TableFault::ForeignBits(interrupts));
        }
        let root = self.domains.get(id).map(|domain| domain.root);
        if id.0 != 0 {
            if root.is_none() {
                return bad(1, TableFault::Domain(id));
            }
            self.domains.count_attached(id);
        }
        if !entry.has_memory() {
            // Denied; with a domain id, a retirement that was begun.
            return Ok(None);
        }
        if memory & !DeviceEntry::MODE != DeviceEntry::memory(entry.root(), 0) {
            return bad(0, TableFault::ForeignBits(memory));
        }
        if memory != DeviceEntry::memory(entry.root(), self.levels()) {
            return bad(0, TableFault::Levels);
        }
        if root != Some(entry.root()) {
            return bad(0, TableFault::Domain(id));
        }
        Ok(Some(id))
    }

    fn interrupts(
        &self,
        source: RequesterId,
        table: InterruptTable,
        allow: &mut impl FnMut(&Reach) -> bool,
    ) -> Result<(), AdoptError> {
        for index in 0..InterruptFormat::ENTRIES {
            let entry = table.load(self.tables, index);
            if !entry.is_enabled() {
                continue;
            }
            if !entry.is_canonical(table.format) {
                let at = table.place(index).0;
                return Err(at_fault(at, TableFault::ForeignBits(entry.low)));
            }
            let reach = Reach::Interrupt {
                source,
                index,
                target: entry.target(table.format),
            };
            if !allow(&reach) {
                return Err(AdoptError::NotAllowed(reach));
            }
        }
        Ok(())
    }
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Takes over a unit that runs with the tables another steward built in `arena`.
    ///
    /// First everything is read and checked, and nothing is written: the record against the
    /// registers; every table, which must lie in the arena, have one way to it and hold nothing but
    /// what this driver writes, among them all 65,536 device table entries, each of which must
    /// deny or lead to a domain of the record; and everything that the tables allow, each leaf of
    /// each device and each interrupt, is put before `allow`. Then the command buffer is taken
    /// over where it stands: what the steward before left in it is let run out, and one batch that
    /// invalidates every cache is waited for. That proves both that the buffer obeys the new
    /// steward and that no cache holds what the tables do not say.
    ///
    /// The unit is never switched off and no table pointer is written, so devices that keep
    /// running notice nothing. The depth of tables, the width of physical addresses, the capability
    /// header and the IVHD's flags are those of the record; `config` gives the rest, and must agree
    /// about the format of interrupt entries. The log is read on from where it stands.
    ///
    /// # Errors
    /// See [`AdoptError`].
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub fn adopt(
        mut registers: R,
        memory: M,
        clock: C,
        window: PhysRange,
        arena: PhysRange,
        state: &State,
        config: Config,
        mut allow: impl FnMut(&Reach) -> bool,
    ) -> Result<Self, AdoptError> {
        let bad = |field, value| AdoptError::Record { field, value };
        check_recorded(
            window,
            [state.register_base, state.register_length],
            arena,
            [state.arena_base, state.arena_length],
        )?;
        let config = Config {
            host_address_bits: u8::try_from(state.host_address_bits).unwrap_or(0),
            capability: CapabilityHeader::from_bits_retain(state.capability_header),
            ivhd_flags: u8::try_from(state.ivhd_flags)
                .map_err(|_| bad("ivhd_flags", state.ivhd_flags.into()))?,
            ..config
        };
        if !config.host_address_bits_valid() {
            let bits = state.host_address_bits.into();
            return Err(bad("host_address_bits", bits));
        }

        let capabilities =
            Capabilities::read(&mut registers, config.capability).map_err(AdoptError::Probe)?;
        capabilities
            .check(window, &config)
            .map_err(AdoptError::Probe)?;
        let levels = state.levels;
        if !capabilities.supports(levels) || Capabilities::limit_of(levels) < config.iova_limit {
            return Err(bad("levels", levels.into()));
        }
        let mut hardware = Hardware::new(registers, clock, config.timeout_microseconds);
        compare_registers(&mut hardware, state, &config, capabilities.features)?;

        let tables = Tables {
            memory,
            coherent: config.coherent(),
        };
        let device_table = DeviceTableBase(state.device_table_base);
        let commands = RingBase(state.command_buffer_base);
        let events = RingBase(state.event_log_base);
        let status = StatusAddress::from_record(state.status_address)?;
        let mut vendor = AmdVi {
            hardware,
            capabilities,
            config,
            levels,
            buses: Buses::default(),
            commands: CommandBuffer::new(commands.ring(), status.next()),
            events: EventLog::new(events.ring()),
            replaced: heapless::Vec::new(),
        };
        let empty = Arena::new(arena).map_err(AdoptError::Arena)?;
        let shape = vendor.shape(device_table.table());
        let mut walk = Walk::new(&tables, empty, vendor.bounds(arena), shape);
        walk.claim_recorded(&[
            (
                "device_table_base",
                device_table.0,
                DeviceTableBase::full(device_table.table()).0,
                device_table.table(),
                DeviceTableBase::FRAMES,
            ),
            (
                "command_buffer_base",
                commands.0,
                RingBase::new(commands.ring()).0,
                commands.ring(),
                RingBase::FRAMES,
            ),
            (
                "event_log_base",
                events.0,
                RingBase::new(events.ring()).0,
                events.ring(),
                RingBase::FRAMES,
            ),
            (
                "status_address",
                state.status_address,
                state.status_address,
                status.frame(),
                1,
            ),
        ])?;
        walk.record_domains(&state.domains, state.domain_count, vendor.domain_limit())?;
        let buses = &mut vendor.buses;
        walk.devices(
            device_table.table(),
            config.interrupt_format,
            |walk, requester, domain, table| {
                buses.mark(requester);
                if let Some(domain) = domain {
                    walk.leaves(Some(requester), domain, &mut allow)?;
                }
                if let Some(table) = table {
                    walk.interrupts(requester, table, &mut allow)?;
                }
                Ok(())
            },
        )?;
        walk.unattached(&mut allow)?;

        let Walk { arena, domains, .. } = walk;
        let mut unit = Self {
            domains,
            phase: Phase::InUse,
            ..Self::new(vendor, tables, arena, window, device_table.table())
        };
        unit.take_over_rings()?;
        let control = unit.vendor.hardware.control()? | unit.refuse_smi();
        unit.vendor.hardware.set_control(control);
        unit.set_fault_interrupt(config.fault_interrupt)?;
        Ok(unit)
    }

    fn take_over_rings(&mut self) -> Result<(), AdoptError> {
        // Waits of the old steward that are still under way write to its status word, not here.
        let (ring, status) = (self.vendor.commands.ring(), self.vendor.commands.status());
        self.tables.store_and_publish(status, 0);
        // An error that the old steward left would keep the buffer from running out.
        if self
            .vendor
            .commands
            .recover(&mut self.vendor.hardware)?
            .is_none()
        {
            let tail = self
                .vendor
                .hardware
                .read_present(Register::CommandBufferTail)?;
            let slot = RingBase::slot(tail);
            // This makes room; what is done, the wait of the batch tells.
            self.vendor
                .hardware
                .poll(Register::CommandBufferHead, |head| {
                    RingBase::slot(head) == slot
                })?;
            self.vendor.commands = CommandBuffer::running(ring, status, slot);
        }
        let head = self.vendor.hardware.read_present(Register::EventLogHead)?;
        self.vendor.events = EventLog::running(self.vendor.events.ring(), RingBase::slot(head));
        self.invalidate_every_id()?;
        Ok(())
    }
}

/// The record's registers against the unit's, and both against what a running fence has.
fn compare_registers<R: RegisterIo, C: Deadline>(
    hardware: &mut Hardware<R, C>,
    state: &State,
    config: &Config,
    features: ExtendedFeature,
) -> Result<(), AdoptError> {
    let compare = |register: Register, recorded, found| {
        if found == recorded {
            Ok(())
        } else {
            Err(AdoptError::Mismatch {
                register: register.into(),
                recorded,
                found,
            })
        }
    };
    // A unit without the register reads as if it had no features.
    let found = features.bits();
    compare(Register::ExtendedFeature, state.extended_feature, found)?;
    for (register, recorded) in [
        (Register::DeviceTableBase, state.device_table_base),
        (Register::CommandBufferBase, state.command_buffer_base),
        (Register::EventLogBase, state.event_log_base),
    ] {
        compare(register, recorded, hardware.read(register))?;
    }
    // An exclusion range would let requests pass, whatever the tables say.
    let exclusion = hardware.read(Register::ExclusionBase) & 0b11;
    compare(Register::ExclusionBase, 0, exclusion)?;
    // Nothing may be on but what a running fence has; the event interrupt may be on or off, and the
    // filter is switched on where there is one.
    let running = config.control().bits();
    let changes = (Control::EVENT_INTERRUPT | Control::SMI_FILTER).bits();
    compare(Register::Control, running, state.control & !changes)?;
    let found = hardware.control()?.bits() & !changes;
    compare(Register::Control, running, found)
}
