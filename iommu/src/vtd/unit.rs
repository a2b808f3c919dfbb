//! One remapping unit: how it is brought up, and what all parts of the driver share.

use handoff_abi::{DomainId, FRAME_SIZE, InterruptMessage, PhysAddr, PhysRange};

use super::closing::Running;
use super::hardware::Hardware;
use super::interrupts::InterruptTable;
use super::pending::{MAX_DESCRIPTORS, descriptors};
use super::probe::Capabilities;
use super::queue::Queue;
use super::spec::{
    AddressWidth, Capability, ExtendedCapability, FaultRecord, FaultStatus, GlobalStatus,
    ProtectedMemoryEnable, Register, RootTableAddress, TranslationMode,
};
use crate::arena::Arena;
use crate::domain::Domains;
use crate::paging::Shape;
use crate::tables::Tables;
use crate::{
    Deadline, EnableError, InvalidateError, Pending, PrepareError, RegisterError, RegisterIo,
    Submitted, TableMemory,
};

/// What the embedder wants of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// The first device address that need not be translated. The shallowest tables that reach it
    /// are used. With device addresses equal to physical ones this is the end of RAM.
    pub iova_limit: u64,
    /// How many bits the machine's physical addresses have (DMAR's Host Address Width), 12 to 52.
    pub host_address_bits: u8,
    /// How many interrupt remapping entries there are: a power of two, 256 to 65536.
    pub interrupt_entries: u32,
    /// Whether APIC ids have 32 bits; set where the processors are in x2APIC mode.
    pub extended_interrupt_mode: bool,
    /// The longest the unit may take over anything, in microseconds.
    pub timeout_microseconds: u32,
    /// The message that announces a fault, or none where faults are drained by polling. It is not
    /// remapped: it names a processor directly, one of the unit's steward.
    pub fault_message: Option<InterruptMessage>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            iova_limit: 1 << 39,
            host_address_bits: 52,
            interrupt_entries: 256,
            extended_interrupt_mode: false,
            timeout_microseconds: 1_000_000,
            fault_message: None,
        }
    }
}

impl Config {
    pub(super) const fn host_limit(&self) -> u64 {
        1 << self.host_address_bits
    }

    pub(super) const fn host_address_bits_valid(&self) -> bool {
        12 <= self.host_address_bits && self.host_address_bits <= 52
    }
}

/// Whether the unit uses the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not yet: they can be changed without telling it.
    Prepared,
    /// From some step of [`Unit::enable`] on.
    InUse,
}

/// One VT-d unit with its tables.
///
/// It owns its register window `R`, its table memory `M` and a clock `C`. See the [module
/// documentation](super) for how the parts work together.
#[derive(Debug)]
pub struct Unit<R, M, C> {
    pub(super) hardware: Hardware<R, C>,
    pub(super) tables: Tables<M>,
    pub(super) arena: Arena,
    pub(super) window: PhysRange,
    pub(super) capabilities: Capabilities,
    pub(super) config: Config,
    pub(super) width: AddressWidth,
    pub(super) root: PhysAddr,
    pub(super) queue: Queue,
    pub(super) interrupts: InterruptTable,
    pub(crate) domains: Domains,
    pub(super) phase: Phase,
    /// The number of the first batch that proves the retirement of the context or interrupt entry
    /// that was retired last.
    pub(super) last_retirement: Option<u64>,
    /// How many context and interrupt entries were made present, modulo 2^32.
    pub(super) installs: u32,
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Lays out the tables of a unit that block everything. No register is written: what firmware
    /// set up stays in force until [`enable`](Self::enable). Domains can be made, filled and
    /// attached in between, so that devices that firmware needs (reserved regions) are never cut
    /// off.
    ///
    /// `window` is where the unit's registers lie, for [`record`](Self::record) and to check that
    /// `registers` reaches them all; `arena` is memory for this unit's tables alone.
    ///
    /// # Errors
    /// See [`PrepareError`].
    pub fn prepare(
        mut registers: R,
        memory: M,
        clock: C,
        window: PhysRange,
        arena: PhysRange,
        config: Config,
    ) -> Result<Self, PrepareError> {
        if !config.host_address_bits_valid() {
            return Err(PrepareError::HostAddressBits(config.host_address_bits));
        }
        if !config.interrupt_entries.is_power_of_two()
            || !(256..=65536).contains(&config.interrupt_entries)
        {
            return Err(PrepareError::InterruptEntries(config.interrupt_entries));
        }
        let capabilities = Capabilities::read(&mut registers).map_err(PrepareError::Probe)?;
        let width = capabilities
            .check(window, &config)
            .map_err(PrepareError::Probe)?;
        let limit = config.host_limit();
        if arena.end().0 > limit {
            return Err(PrepareError::ArenaTooHigh { arena, limit });
        }
        let mut arena = Arena::new(arena).map_err(PrepareError::Arena)?;
        let mut tables = Tables {
            memory,
            coherent: capabilities.extended.contains(ExtendedCapability::C),
        };
        let full = PrepareError::ArenaFull;
        let interrupt_frames =
            InterruptTable::length(config.interrupt_entries).div_ceil(FRAME_SIZE) as usize;
        let interrupt_table = tables
            .zeroed_run(&mut arena, interrupt_frames)
            .ok_or(full)?;
        let root = tables.zeroed(&mut arena).ok_or(full)?;
        let queue = tables.zeroed(&mut arena).ok_or(full)?;
        let status = tables.zeroed(&mut arena).ok_or(full)?;
        Ok(Self {
            hardware: Hardware::new(registers, clock, config.timeout_microseconds),
            tables,
            arena,
            window,
            capabilities,
            config,
            width,
            root,
            queue: Queue::new(queue, status),
            interrupts: InterruptTable::new(
                interrupt_table,
                config.interrupt_entries,
                config.extended_interrupt_mode,
            ),
            domains: Domains::default(),
            phase: Phase::Prepared,
            last_retirement: None,
            installs: 0,
        })
    }

    /// Puts the tables into force. On success every device that is attached reaches its domain and
    /// nothing else, and every other device reaches nothing; interrupts pass only through entries
    /// of this unit.
    ///
    /// The order is that of the specification, with interrupts fenced before DMA so that at no
    /// instant a device is confined in memory and free to forge interrupts: fault event masked and
    /// old faults cleared; the queue of firmware, if any, switched off; root table (SRTP); own
    /// queue; context cache and IOTLB invalidated; interrupt table (SIRTP); interrupt entry cache
    /// invalidated; interrupt remapping on; compatibility format off; translation on; protected
    /// memory regions off; fault event on.
    ///
    /// Where firmware left translation or interrupt remapping on, it stays on: the new tables
    /// replace the old ones while the unit runs, and no request passes untranslated. Where it left
    /// a queue running, see [`enable_over`](Self::enable_over).
    ///
    /// # Errors
    /// See [`EnableError`]. The unit may be left anywhere on the way; `enable` can be called again.
    pub fn enable(&mut self) -> Result<(), EnableError> {
        self.bring_up(None::<&mut M>)
    }

    /// As [`enable`](Self::enable), over the invalidation queue that firmware or an earlier kernel
    /// left running and [`EnableError::QueueRuns`] named; `queue` reaches its memory.
    ///
    /// A running queue may be switched off only behind a wait (section 6.5.2), so one is put where
    /// its tail is. That is the only place outside the arena that the driver ever writes to: 16
    /// bytes, which are put back when the unit has passed them. The wait itself writes into the
    /// arena. Whether the memory is still that queue, and not in use for something else since, only
    /// the embedder knows: it says so by calling this function.
    ///
    /// # Errors
    /// See [`EnableError`].
    pub fn enable_over<Q: TableMemory>(&mut self, queue: &mut Q) -> Result<(), EnableError> {
        self.bring_up(Some(queue))
    }

    fn bring_up<Q: TableMemory>(&mut self, foreign: Option<&mut Q>) -> Result<(), EnableError> {
        self.hardware.settle()?;
        let status = self.hardware.status()?;
        if status.contains(GlobalStatus::TES) {
            let mode = RootTableAddress(self.hardware.read64(Register::RootTableAddress)).mode();
            if mode != TranslationMode::Legacy {
                return Err(EnableError::TranslationMode(mode));
            }
        }
        let running = self.running_queue()?;
        let foreign_memory = running.and_then(Running::foreign);
        if let (Some(memory), None) = (foreign_memory, &foreign) {
            return Err(EnableError::QueueRuns(memory));
        }
        self.mask_fault_event()?;
        self.clear_faults()?;
        if let Some(queue) = running {
            self.close_queue(queue, foreign.filter(|_| foreign_memory.is_some()))?;
        }
        self.phase = Phase::InUse;

        if self.capabilities.capability.contains(Capability::RWBF) {
            self.hardware.flush_write_buffer()?;
        }
        let root = self.root_table_address();
        self.hardware.write64(Register::RootTableAddress, root.0);
        self.hardware.latch(GlobalStatus::RTPS)?;

        self.start_queue()?;
        let unit = self.window.base();
        if !self.capabilities.capability.contains(Capability::ESRTPS) {
            self.flush(Pending::all_caches(unit).without_interrupts())?;
        }

        let table = self.interrupts.address();
        self.hardware
            .write64(Register::InterruptTableAddress, table.0);
        self.hardware.latch(GlobalStatus::IRTPS)?;
        if !self.capabilities.capability.contains(Capability::ESIRTPS) {
            self.flush(Pending::all_caches(unit).interrupts_only())?;
        }
        self.hardware.switch(GlobalStatus::IRES, true)?;
        self.hardware.switch(GlobalStatus::CFIS, false)?;

        self.hardware.switch(GlobalStatus::TES, true)?;
        self.disable_protected_memory()?;
        self.set_fault_message(self.config.fault_message)?;
        Ok(())
    }

    pub(super) const fn root_table_address(&self) -> RootTableAddress {
        RootTableAddress::legacy(self.root)
    }

    fn mask_fault_event(&mut self) -> Result<(), RegisterError> {
        self.hardware
            .write32(Register::FaultEventControl, FAULT_EVENT_MASK);
        // Reading it back proves that no message of the old setting is on its way any more.
        self.hardware
            .poll32(Register::FaultEventControl, |control| {
                control & FAULT_EVENT_MASK != 0
            })?;
        Ok(())
    }

    fn clear_faults(&mut self) -> Result<(), RegisterError> {
        for record in 0..self.capabilities.capability.fault_records() {
            self.clear_fault_record(record);
        }
        let errors = FaultStatus::QUEUE_ERRORS | FaultStatus::PFO;
        self.hardware.write32(Register::FaultStatus, errors.bits());
        Ok(())
    }

    pub(super) fn fault_record_offset(&self, record: u32) -> u32 {
        self.capabilities.capability.fault_record_offset() + record * FaultRecord::SIZE
    }

    pub(super) fn clear_fault_record(&mut self, record: u32) {
        let (offset, value) = FaultRecord::CLEAR;
        let at = self.fault_record_offset(record) + offset;
        self.hardware.registers.write32(at, value);
    }

    fn start_queue(&mut self) -> Result<(), RegisterError> {
        let sequence = self.queue.restart();
        let status = self.queue.status();
        self.tables.store_and_publish(status, sequence.into());
        self.hardware.write64(Register::InvalidationQueueTail, 0);
        self.hardware
            .write64(Register::InvalidationQueueAddress, self.queue.address().0);
        self.hardware.switch(GlobalStatus::QIES, true)
    }

    fn disable_protected_memory(&mut self) -> Result<(), RegisterError> {
        let regions = Capability::PLMR | Capability::PHMR;
        if !self.capabilities.capability.intersects(regions) {
            return Ok(());
        }
        let enable = self.hardware.read32(Register::ProtectedMemoryEnable);
        let enable = ProtectedMemoryEnable::from_bits_retain(enable);
        if !enable.intersects(ProtectedMemoryEnable::EPM | ProtectedMemoryEnable::PRS) {
            return Ok(());
        }
        self.hardware.write32(
            Register::ProtectedMemoryEnable,
            enable.difference(ProtectedMemoryEnable::EPM).bits(),
        );
        self.hardware
            .poll32(Register::ProtectedMemoryEnable, |enable| {
                !ProtectedMemoryEnable::from_bits_retain(enable)
                    .contains(ProtectedMemoryEnable::PRS)
            })?;
        Ok(())
    }

    /// Says which message announces a fault, or that none does. The message is not remapped: it
    /// must name a processor of whoever is the unit's steward, and changes with the stewardship.
    /// Faults that were recorded before are not announced again: drain them afterwards.
    ///
    /// # Errors
    /// Where FECTL does not take the value.
    pub fn set_fault_message(
        &mut self,
        message: Option<InterruptMessage>,
    ) -> Result<(), RegisterError> {
        self.mask_fault_event()?;
        self.config.fault_message = message;
        let Some(message) = message else {
            return Ok(());
        };
        self.hardware
            .write32(Register::FaultEventData, message.data);
        self.hardware
            .write32(Register::FaultEventAddress, message.address.0 as u32);
        self.hardware.write32(
            Register::FaultEventUpperAddress,
            (message.address.0 >> 32) as u32,
        );
        self.hardware.write32(Register::FaultEventControl, 0);
        self.hardware
            .poll32(Register::FaultEventControl, |control| {
                control & FAULT_EVENT_MASK == 0
            })?;
        Ok(())
    }

    /// Gives a batch of changes to the unit, with one write to its queue's tail. The batches of
    /// several units can be submitted before any is waited for, so that the waits overlap.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn submit(&mut self, pending: Pending) -> Result<Submitted, InvalidateError> {
        let foreign = pending.unit.is_some_and(|unit| unit != self.window.base());
        if foreign || pending.mixed {
            return Err(InvalidateError::ForeignUnit);
        }
        if self.phase == Phase::Prepared {
            // The unit has never seen these tables.
            self.complete(&pending, self.queue.next_sequence(), self.installs)?;
        }
        if self.phase == Phase::Prepared || pending.is_none() {
            return Ok(Submitted {
                pending,
                sequence: None,
                installs: self.installs,
            });
        }
        if self.capabilities.capability.contains(Capability::RWBF) {
            self.hardware.flush_write_buffer()?;
        }
        let mut sequence = None;
        if pending.needs_commands() {
            sequence = Some(self.queue.submit(
                &mut self.hardware,
                &mut self.tables,
                descriptors(&pending),
                MAX_DESCRIPTORS,
            )?);
        }
        Ok(Submitted {
            pending,
            sequence,
            installs: self.installs,
        })
    }

    /// Waits until a batch is done. Then what it retired is free: blocked devices can be attached
    /// anew, cleared interrupt entries and unlinked tables are used again.
    ///
    /// # Errors
    /// See [`InvalidateError`]. What was to be retired stays as it is, blocked and not reusable,
    /// until [`invalidate_everything`](Self::invalidate_everything) succeeds.
    pub fn wait(&mut self, submitted: Submitted) -> Result<(), InvalidateError> {
        self.wait_proved(submitted).map(|_| ())
    }

    /// As [`wait`](Self::wait). Returns the number of the wait that was done, if there was one.
    pub(super) fn wait_proved(
        &mut self,
        submitted: Submitted,
    ) -> Result<Option<u64>, InvalidateError> {
        let Submitted {
            pending,
            sequence,
            installs,
        } = submitted;
        let Some(sequence) = sequence else {
            return Ok(None);
        };
        let proved = self.queue.wait(
            &mut self.hardware,
            &mut self.tables,
            sequence,
            || descriptors(&pending),
            MAX_DESCRIPTORS,
        )?;
        self.complete(&pending, proved, installs)?;
        Ok(Some(proved))
    }

    /// [`submit`](Self::submit) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn flush(&mut self, pending: Pending) -> Result<(), InvalidateError> {
        let submitted = self.submit(pending)?;
        self.wait(submitted)
    }

    /// Invalidates every cache of the unit and finishes every retirement that was begun, also
    /// those whose [`Pending`] was lost or whose wait failed.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn invalidate_everything(&mut self) -> Result<(), InvalidateError> {
        // Nothing can be retired while this runs, so it proves all that was retired before.
        let retired = self.last_retirement.take();
        let result = self.flush(Pending::everything(self.window.base()));
        if result.is_err() {
            self.last_retirement = retired;
        }
        result
    }

    /// What follows a batch that is done: `proved` is the number of its wait, `installs` the count
    /// when it was submitted.
    fn complete(
        &mut self,
        pending: &Pending,
        proved: u64,
        installs: u32,
    ) -> Result<(), InvalidateError> {
        // A batch proves nothing about an entry that was retired after it was submitted. One that
        // it names can only be such if it was made present again in between; one that is looked
        // for afterwards, if anything was retired since.
        let doubtful = pending.sweep || pending.retires() && self.installs != installs;
        if doubtful && !self.all_retired_before(proved) {
            return self.invalidate_everything();
        }
        if pending.sweep {
            self.empty_retired_contexts();
            self.interrupts.empty_retired(&mut self.tables);
        }
        for &change in pending.devices() {
            if change.retire {
                self.empty_retired_context(change.requester, Some(change.domain));
            }
        }
        for &change in pending.interrupts() {
            if change.retire {
                self.interrupts.empty(&mut self.tables, change.index);
            }
        }
        for domain in self.domains.iter_mut() {
            if pending.covers_domain(domain.id) {
                domain
                    .retired
                    .release(&mut self.tables, &mut self.arena, |tag| tag <= proved);
            }
        }
        Ok(())
    }

    /// Whether every retirement there was began before the batch with this number was submitted.
    pub(super) fn all_retired_before(&self, proved: u64) -> bool {
        self.last_retirement.is_none_or(|retired| retired <= proved)
    }

    pub(super) fn retirement_begun(&mut self) {
        self.last_retirement = Some(self.queue.next_sequence());
    }

    pub(super) fn caching_mode(&self) -> bool {
        self.capabilities.capability.contains(Capability::CM)
    }

    pub(super) fn pending(&self) -> Pending {
        Pending::stored(self.window.base())
    }

    pub(super) fn shape(&self, root: PhysAddr) -> Shape {
        Shape {
            root,
            levels: self.width.levels(),
            largest: self.capabilities.largest_leaf(),
        }
    }

    /// What the unit can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Where its registers lie.
    #[must_use]
    pub const fn window(&self) -> PhysRange {
        self.window
    }

    /// The memory of its tables and queue.
    #[must_use]
    pub const fn arena(&self) -> PhysRange {
        self.arena.range()
    }

    /// How many frames of the arena are free.
    #[must_use]
    pub const fn free_frames(&self) -> usize {
        self.arena.free_frames()
    }

    /// The width of its domains.
    #[must_use]
    pub const fn width(&self) -> AddressWidth {
        self.width
    }

    /// How many levels the tables of its domains have.
    #[must_use]
    pub const fn levels(&self) -> u32 {
        self.width.levels()
    }

    /// The domains it has.
    pub fn domain_ids(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.domains.ids()
    }

    /// Gives registers, memory and clock back. The unit goes on as it was set up.
    #[must_use]
    pub fn into_parts(self) -> (R, M, C) {
        (
            self.hardware.registers,
            self.tables.memory,
            self.hardware.clock,
        )
    }
}

/// IM, bit 31 of FECTL (section 11.4.7.2).
const FAULT_EVENT_MASK: u32 = 1 << 31;
