//! Taking over a unit that runs, from the tables that are in force and the record that came with
//! them.

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange, RequesterId};

use super::hardware::Hardware;
use super::interrupts::InterruptTable;
use super::probe::Capabilities;
use super::queue::Queue;
use super::spec::{
    AddressWidth, ContextEntry, ExtendedCapability, GlobalStatus, InterruptTableAddress,
    QueueAddress, Register, RootEntry, RootTableAddress, SecondStageEntry, TranslationMode,
    TranslationType,
};
use super::state::State;
use super::unit::{Config, Phase, Unit};
use crate::adopt::{StatusAddress, at_fault};
use crate::arena::Arena;
use crate::domain::{Domains, MAX_DOMAINS};
use crate::paging::{for_leaves, index_shift};
use crate::tables::{Tables, offset};
use crate::{
    AdoptError, Deadline, INTERRUPT_RANGE, LeafSize, Reach, RegisterIo, TableFault, TableMemory,
};

/// The walk through tables in force. It only reads.
struct Walk<'a, M> {
    tables: &'a Tables<M>,
    arena: Arena,
    domains: Domains,
    width: AddressWidth,
    largest: LeafSize,
    iova_limit: u64,
    host_limit: u64,
}

impl<M: TableMemory> Walk<'_, M> {
    /// Notes that `entry` leads to the table at `table`, and to none that was seen before: so
    /// tables form a tree, and the walk ends.
    fn claim(&mut self, entry: PhysAddr, table: PhysAddr) -> Result<(), AdoptError> {
        if self.arena.claim(table) {
            return Ok(());
        }
        let fault = if self.arena.range().contains(table) && table.is_aligned_to(FRAME_SIZE) {
            TableFault::Shared(table)
        } else {
            TableFault::OutsideArena(table)
        };
        Err(at_fault(entry, fault))
    }

    fn second_stage(&mut self, table: PhysAddr, level: u32, base: u64) -> Result<(), AdoptError> {
        for slot in 0..512 {
            let at = offset(table, slot * 8);
            let entry = SecondStageEntry(self.tables.load(at));
            if entry == SecondStageEntry::ABSENT {
                continue;
            }
            let iova = base | slot << index_shift(level);
            if !entry.is_present() || entry.foreign_bits_set() {
                return Err(at_fault(at, TableFault::ForeignBits(entry.0)));
            }
            if entry.is_leaf(level) {
                self.leaf(at, entry, level, iova)?;
            } else {
                if entry != SecondStageEntry::table(entry.address()) {
                    return Err(at_fault(at, TableFault::ForeignBits(entry.0)));
                }
                self.claim(at, entry.address())?;
                self.second_stage(entry.address(), level - 1, iova)?;
            }
        }
        Ok(())
    }

    fn leaf(
        &self,
        at: PhysAddr,
        entry: SecondStageEntry,
        level: u32,
        iova: u64,
    ) -> Result<(), AdoptError> {
        let size = match level {
            1 => LeafSize::Size4K,
            2 => LeafSize::Size2M,
            3 => LeafSize::Size1G,
            _ => return Err(at_fault(at, TableFault::LeafSize)),
        };
        let bad = |fault| Err(at_fault(at, fault));
        if size > self.largest || !entry.address().is_aligned_to(size.bytes()) {
            return bad(TableFault::LeafSize);
        }
        if entry != SecondStageEntry::leaf(entry.address(), size, entry.access()) {
            return bad(TableFault::ForeignBits(entry.0));
        }
        let (Ok(from), Ok(memory)) = (
            PhysRange::new(PhysAddr(iova), size.bytes()),
            PhysRange::new(entry.address(), size.bytes()),
        ) else {
            return bad(TableFault::AddressTooWide(iova));
        };
        if from.end().0 > self.iova_limit {
            return bad(TableFault::AddressTooWide(iova));
        }
        if memory.end().0 > self.host_limit {
            return bad(TableFault::MemoryTooHigh(memory));
        }
        if from.overlaps(INTERRUPT_RANGE) || memory.overlaps(INTERRUPT_RANGE) {
            return bad(TableFault::InterruptRange);
        }
        if memory.overlaps(self.arena.range()) {
            return bad(TableFault::OwnTables(memory));
        }
        Ok(())
    }

    /// The domains of the record: every id and every root once.
    fn record_domains(&mut self, state: &State, id_limit: u32) -> Result<(), AdoptError> {
        let count = state.domain_count as usize;
        let domains = state.domains.get(..count).ok_or(AdoptError::Record {
            field: "domain_count",
            value: state.domain_count.into(),
        })?;
        for domain in domains {
            let bad_id = AdoptError::Record {
                field: "domains.id",
                value: domain.id.into(),
            };
            let id = match u16::try_from(domain.id) {
                Ok(id) if id != 0 && domain.id < id_limit => DomainId(id),
                _ => return Err(bad_id),
            };
            let root = PhysAddr(domain.root);
            if self.domains.get(id).is_some() {
                return Err(bad_id);
            }
            if !self.arena.claim(root) {
                return Err(AdoptError::Record {
                    field: "domains.root",
                    value: root.0,
                });
            }
            self.second_stage(root, self.width.levels(), 0)?;
            if !self.domains.push(id, root) {
                return Err(bad_id);
            }
        }
        Ok(())
    }

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
            self.claim(at, table)?;
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
        if entry.width() != Some(self.width) {
            return bad(TableFault::Levels);
        }
        match self.domains.get(entry.domain()) {
            Some(domain) if domain.root == entry.root() => Ok(domain.id),
            _ => bad(TableFault::Domain(entry.domain())),
        }
    }

    /// Puts every leaf of a domain before `allow`.
    fn leaves(
        &self,
        requester: Option<RequesterId>,
        id: DomainId,
        allow: &mut impl FnMut(&Reach) -> bool,
    ) -> Result<(), AdoptError> {
        let Some(domain) = self.domains.get(id) else {
            return Ok(());
        };
        let mut refused = None;
        for_leaves::<_, SecondStageEntry>(
            self.tables,
            domain.root,
            self.width.levels(),
            0,
            &mut |leaf| {
                let reach = Reach::Memory {
                    requester,
                    domain: id,
                    iova: leaf.iova,
                    memory: leaf.memory,
                    access: leaf.access,
                };
                let allowed = allow(&reach);
                if !allowed {
                    refused = Some(reach);
                }
                allowed
            },
        );
        refused.map_or(Ok(()), |reach| Err(AdoptError::NotAllowed(reach)))
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
        let recorded = |field, value, actual: u64| {
            if value == actual {
                Ok(())
            } else {
                Err(AdoptError::Record { field, value })
            }
        };
        recorded("register_base", state.register_base, window.base().0)?;
        recorded("register_length", state.register_length, window.length())?;
        recorded("arena_base", state.arena_base, arena.base().0)?;
        recorded("arena_length", state.arena_length, arena.length())?;

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
        if own.address() != interrupt_address {
            return Err(AdoptError::Record {
                field: "interrupt_table_address",
                value: state.interrupt_table_address,
            });
        }

        let tables = Tables {
            memory,
            coherent: capabilities.extended.contains(ExtendedCapability::C),
        };
        let mut walk = Walk {
            tables: &tables,
            arena: Arena::new(arena).map_err(AdoptError::Arena)?,
            domains: Domains::default(),
            width,
            largest: capabilities.largest_leaf(),
            iova_limit: capabilities.limit_of(width),
            host_limit: config.host_limit(),
        };
        let root = RootTableAddress(state.root_table_address);
        let queue_address = QueueAddress(state.queue_address);
        let status = StatusAddress::from_record(state.status_address)?;
        let interrupt_frames =
            InterruptTable::length(config.interrupt_entries).div_ceil(FRAME_SIZE);
        for (field, value, frame, count) in [
            (
                "interrupt_table_address",
                state.interrupt_table_address,
                interrupt_address.table(),
                interrupt_frames,
            ),
            ("root_table_address", root.0, root.table(), 1),
            ("queue_address", queue_address.0, queue_address.queue(), 1),
            ("status_address", state.status_address, status.frame(), 1),
        ] {
            if !walk.arena.claim_run(frame, count) {
                return Err(AdoptError::Record { field, value });
            }
        }
        if root.mode() != TranslationMode::Legacy || root != RootTableAddress::legacy(root.table())
        {
            return Err(AdoptError::Record {
                field: "root_table_address",
                value: root.0,
            });
        }
        if queue_address != QueueAddress::one_frame(queue_address.queue()) {
            return Err(AdoptError::Record {
                field: "queue_address",
                value: queue_address.0,
            });
        }

        walk.record_domains(state, capabilities.capability.domains())?;
        walk.contexts(root.table(), |walk, requester, domain| {
            walk.leaves(Some(requester), domain, &mut allow)
        })?;
        let mut unattached = heapless::Vec::<DomainId, MAX_DOMAINS>::new();
        unattached.extend(
            walk.domains
                .iter()
                .filter(|domain| domain.attached == 0)
                .map(|domain| domain.id),
        );
        for &domain in &unattached {
            walk.leaves(None, domain, &mut allow)?;
        }
        walk.interrupts(&interrupts, &mut allow)?;

        let Walk { arena, domains, .. } = walk;
        let mut unit = Self {
            hardware,
            tables,
            arena,
            window,
            capabilities,
            config,
            width,
            root: root.table(),
            queue: Queue::new(queue_address.queue(), status.next()),
            interrupts,
            domains,
            phase: Phase::InUse,
            last_retirement: None,
            installs: 0,
        };
        unit.take_over_queue(state)?;
        unit.set_fault_message(config.fault_message)?;
        Ok(unit)
    }

    fn take_over_queue(&mut self, state: &State) -> Result<(), AdoptError> {
        let tail = self.hardware.read64(Register::InvalidationQueueTail);
        let slot = Queue::slot(tail).ok_or(AdoptError::Mismatch {
            register: Register::InvalidationQueueTail.into(),
            recorded: state.queue_tail.into(),
            found: tail,
        })?;
        // Waits of the old steward that are still under way write to its status word, not here.
        let (frame, status) = (self.queue.frame(), self.queue.status());
        self.tables.store_and_publish(status, state.sequence.into());
        self.queue = Queue::running(frame, status, slot, state.sequence);
        self.queue
            .run_out(&mut self.hardware, &mut self.tables, tail)?;
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
