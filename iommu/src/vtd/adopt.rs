//! Taking over a unit that runs, from the tables that are in force and the record that came with
//! them.

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange, RequesterId};

use super::hardware::Hardware;
use super::interrupts::InterruptTable;
use super::probe::Capabilities;
use super::queue::Queue;
use super::spec::{
    AddressWidth, ContextEntry, ExtendedCapability, GlobalStatus, InterruptTableAddress,
    QueueAddress, Register, RootEntry, RootTableAddress, SecondStageEntry, TranslationType,
};
use super::state::State;
use super::unit::{Config, Unit, VtD};
use crate::adopt::{StatusAddress, at_fault};
use crate::arena::Arena;
use crate::driver::{Phase, Vendor, Walk, check_recorded};
use crate::tables::{Tables, offset};
use crate::{AdoptError, Deadline, Reach, RegisterIo, TableFault, TableMemory};

impl<M: TableMemory> Walk<'_, M, SecondStageEntry> {
    /// Root and context tables. `each` is called with every device that has a domain.
    fn contexts(
        &mut self,
        root: PhysAddr,
        mut each: impl FnMut(&Self, RequesterId, DomainId) -> Result<(), AdoptError>,
    ) -> Result<(), AdoptError> {
        for bus in 0..=u8::MAX {
            let at = offset(root, u64::from(bus) * 16);
            let (low, high) = self.tables.load_pair(at);
            let entry = RootEntry { low, high };
            if (low, high) == (0, 0) {
                continue;
            }
            if !entry.is_present() || entry.reserved_bits_set() {
                return Err(at_fault(at, TableFault::ForeignBits(low | high)));
            }
            let table = entry.context_table();
            self.claim(at, table, 1)?;
            for function in 0..=u8::MAX {
                let requester = RequesterId(u16::from(bus) << 8 | u16::from(function));
                let at = offset(table, u64::from(function) * 16);
                let (low, high) = self.tables.load_pair(at);
                let entry = ContextEntry { low, high };
                if entry.is_empty() {
                    continue;
                }
                let domain = self.context(at, entry)?;
                self.domains.count_attached(domain);
                if entry.is_present() {
                    each(self, requester, domain)?;
                }
            }
        }
        Ok(())
    }

    /// An entry that is not empty. Present or not, it must be one of the driver's: what is not
    /// present is a retirement that was begun.
    fn context(&self, at: PhysAddr, entry: ContextEntry) -> Result<DomainId, AdoptError> {
        let bad = |fault| Err(at_fault(at, fault));
        if entry.reserved_bits_set() {
            return bad(TableFault::ForeignBits(entry.low & 0xfff | entry.high));
        }
        if entry.translation_type() != TranslationType::UntranslatedOnly {
            return bad(TableFault::TranslationType(entry.translation_type()));
        }
        if entry.width().map(AddressWidth::levels) != Some(self.levels()) {
            return bad(TableFault::Levels);
        }
        match self.domains.get(entry.domain()) {
            Some(domain) if domain.root == entry.root() => Ok(domain.id),
            _ => bad(TableFault::Domain(entry.domain())),
        }
    }

    fn interrupts(
        &self,
        table: &InterruptTable,
        allow: &mut impl FnMut(&Reach) -> bool,
    ) -> Result<(), AdoptError> {
        for index in table.indices() {
            let entry = table.load(self.tables, index);
            if !entry.is_present() {
                continue;
            }
            if !entry.is_canonical(table.extended()) {
                let at = offset(table.address().table(), u64::from(index) * 16);
                return Err(at_fault(at, TableFault::ForeignBits(entry.low)));
            }
            let reach = Reach::Interrupt {
                source: entry.source(),
                index,
                target: entry.target(table.extended()),
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
    /// what this driver writes; and everything that the tables allow, each leaf of each device and
    /// each interrupt, which `allow` must allow too. Then the queue is taken over: what is in it is
    /// let run out, and one batch that invalidates every cache is waited for. That proves both that
    /// the queue obeys the new steward and that no cache holds what the tables do not say.
    ///
    /// Translation and interrupt remapping are never switched off and no table pointer is written,
    /// so devices that keep running notice nothing. The depth of tables, the size of the interrupt
    /// table and the width of physical addresses are those of the record; `config` gives the rest,
    /// and must agree about the width of APIC ids.
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
        check_recorded(
            window,
            [state.register_base, state.register_length],
            arena,
            [state.arena_base, state.arena_length],
        )?;

        let bad_width = AdoptError::Record {
            field: "levels",
            value: state.levels.into(),
        };
        let width = AddressWidth::from_levels(state.levels).ok_or(bad_width)?;
        let interrupt_address = InterruptTableAddress(state.interrupt_table_address);
        let config = Config {
            host_address_bits: u8::try_from(state.host_address_bits).unwrap_or(0),
            interrupt_entries: interrupt_address.entries(),
            ..config
        };
        if !config.host_address_bits_valid() {
            return Err(AdoptError::Record {
                field: "host_address_bits",
                value: state.host_address_bits.into(),
            });
        }

        let capabilities = Capabilities::read(&mut registers).map_err(AdoptError::Probe)?;
        capabilities
            .check(window, &config)
            .map_err(AdoptError::Probe)?;
        if !capabilities.supports(width) || capabilities.limit_of(width) < config.iova_limit {
            return Err(bad_width);
        }
        let mut hardware = Hardware::new(registers, clock, config.timeout_microseconds);
        compare_registers(&mut hardware, state)?;

        let interrupts = InterruptTable::new(
            interrupt_address.table(),
            interrupt_address.entries(),
            interrupt_address.extended(),
        );
        // Also refuses reserved bits of IRTA, and the wrong interrupt mode.
        let own = InterruptTable::new(
            interrupt_address.table(),
            config.interrupt_entries,
            config.extended_interrupt_mode,
        );
        let tables = Tables {
            memory,
            coherent: capabilities.extended.contains(ExtendedCapability::C),
        };
        let root = RootTableAddress(state.root_table_address);
        let queue_address = QueueAddress(state.queue_address);
        let status = StatusAddress::from_record(state.status_address)?;
        let interrupt_frames =
            InterruptTable::length(config.interrupt_entries).div_ceil(FRAME_SIZE);
        let vendor = VtD {
            hardware,
            capabilities,
            config,
            width,
            queue: Queue::new(queue_address.queue(), status.next()),
            interrupts,
        };
        let empty = Arena::new(arena).map_err(AdoptError::Arena)?;
        let shape = vendor.shape(root.table());
        let mut walk = Walk::new(&tables, empty, vendor.bounds(arena), shape);
        walk.claim_recorded(&[
            (
                "interrupt_table_address",
                interrupt_address.0,
                own.address().0,
                interrupt_address.table(),
                interrupt_frames,
            ),
            (
                "root_table_address",
                root.0,
                RootTableAddress::legacy(root.table()).0,
                root.table(),
                1,
            ),
            (
                "queue_address",
                queue_address.0,
                QueueAddress::one_frame(queue_address.queue()).0,
                queue_address.queue(),
                1,
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
        walk.contexts(root.table(), |walk, requester, domain| {
            walk.leaves(Some(requester), domain, &mut allow)
        })?;
        walk.unattached(&mut allow)?;
        walk.interrupts(&vendor.interrupts, &mut allow)?;

        let Walk { arena, domains, .. } = walk;
        let mut unit = Self {
            domains,
            phase: Phase::InUse,
            ..Self::new(vendor, tables, arena, window, root.table())
        };
        unit.take_over_queue(state)?;
        unit.set_fault_message(config.fault_message)?;
        Ok(unit)
    }

    fn take_over_queue(&mut self, state: &State) -> Result<(), AdoptError> {
        let tail = self.vendor.hardware.read64(Register::InvalidationQueueTail);
        let slot = Queue::slot(tail).ok_or(AdoptError::Mismatch {
            register: Register::InvalidationQueueTail.into(),
            recorded: state.queue_tail.into(),
            found: tail,
        })?;
        // Waits of the old steward that are still under way write to its status word, not here.
        let (frame, status) = (self.vendor.queue.frame(), self.vendor.queue.status());
        self.tables.store_and_publish(status, state.sequence.into());
        self.vendor.queue = Queue::running(frame, status, slot, state.sequence);
        self.vendor
            .queue
            .run_out(&mut self.vendor.hardware, &mut self.tables, tail)?;
        self.invalidate_everything()?;
        Ok(())
    }
}

/// The record's registers against the unit's, and both against what a running fence has.
fn compare_registers<R: RegisterIo, C: Deadline>(
    hardware: &mut Hardware<R, C>,
    state: &State,
) -> Result<(), AdoptError> {
    for (register, recorded) in [
        (Register::Capability, state.capability),
        (Register::ExtendedCapability, state.extended_capability),
        (Register::RootTableAddress, state.root_table_address),
        (
            Register::InterruptTableAddress,
            state.interrupt_table_address,
        ),
        // The base and size; with 128-bit descriptors DW is clear on both sides.
        (Register::InvalidationQueueAddress, state.queue_address),
    ] {
        let found = hardware.read64(register);
        if found != recorded {
            return Err(AdoptError::Mismatch {
                register: register.into(),
                recorded,
                found,
            });
        }
    }
    let found = hardware.status()?;
    let on = GlobalStatus::TES | GlobalStatus::IRES | GlobalStatus::QIES;
    let compared = on | GlobalStatus::CFIS;
    let recorded = GlobalStatus::from_bits_retain(state.global_status);
    if found & compared != on || recorded & compared != on {
        return Err(AdoptError::Mismatch {
            register: Register::GlobalStatus.into(),
            recorded: recorded.bits().into(),
            found: found.bits().into(),
        });
    }
    Ok(())
}
