//! One remapping unit: how it is brought up, and what all parts of the driver share.

use handoff_abi::{DomainId, PhysAddr, PhysRange};

use super::commands::CommandBuffer;
use super::devices::Buses;
use super::events::EventLog;
use super::hardware::Hardware;
use super::interrupts::Replaced;
use super::pending::{Cached, commands, every_id};
use super::probe::Capabilities;
use super::spec::{
    CapabilityHeader, Control, DeviceEntry, DeviceTableBase, InterruptFormat, Register, RingBase,
    Status,
};
use super::switch::Spare;
use crate::arena::Arena;
use crate::domain::{Domains, MAX_DOMAINS};
use crate::paging::Shape;
use crate::tables::{Tables, offset};
use crate::{
    Deadline, EnableError, InvalidateError, LeafSize, Pending, PrepareError, RegisterError,
    RegisterIo, Submitted, TableMemory,
};

/// What the embedder knows of a unit and wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// The first device address that need not be translated. The shallowest tables that reach it
    /// are used. With device addresses equal to physical ones this is the end of RAM.
    pub iova_limit: u64,
    /// How many bits the machine's physical addresses have (IVRS's PAsize), 12 to 52.
    pub host_address_bits: u8,
    /// The four bytes at the beginning of the unit's capability block in the configuration space
    /// of its PCI function.
    pub capability: CapabilityHeader,
    /// The flags of the unit's IVHD. With *Coherent* the unit snoops the caches when it reads its
    /// tables; without, they are written back.
    pub ivhd_flags: u8,
    /// How interrupt entries look. With the processors in x2APIC mode it must be
    /// [`InterruptFormat::Bits128X2Apic`].
    pub interrupt_format: InterruptFormat,
    /// The longest the unit may take over anything, in microseconds.
    pub timeout_microseconds: u32,
    /// Whether the unit raises an interrupt for an event; otherwise events are drained by polling.
    /// The message is in the MSI capability of the unit's PCI function, and is for whoever writes
    /// configuration space. It is not remapped: it names a processor directly, one of the unit's
    /// steward.
    pub fault_interrupt: bool,
}

impl Default for Config {
    /// For a unit of which nothing is known: it caches what is not present and does not snoop.
    fn default() -> Self {
        Self {
            iova_limit: 1 << 39,
            host_address_bits: 52,
            // Id 0Fh, type 3, NpCache, EFRSup.
            capability: CapabilityHeader::from_bits_retain(0x0c03_000f),
            ivhd_flags: 0,
            interrupt_format: InterruptFormat::Bits32,
            timeout_microseconds: 1_000_000,
            fault_interrupt: false,
        }
    }
}

impl Config {
    /// Coherent, bit 5 of an IVHD's flags.
    const IVHD_COHERENT: u8 = 1 << 5;

    pub(super) const fn host_limit(&self) -> u64 {
        1 << self.host_address_bits
    }

    pub(super) const fn host_address_bits_valid(&self) -> bool {
        12 <= self.host_address_bits && self.host_address_bits <= 52
    }

    pub(super) const fn coherent(&self) -> bool {
        self.ivhd_flags & Self::IVHD_COHERENT != 0
    }

    /// The format bits of the control register.
    pub(super) const fn format(&self) -> Control {
        match self.interrupt_format {
            InterruptFormat::Bits32 => Control::empty(),
            InterruptFormat::Bits128 => Control::GA,
            InterruptFormat::Bits128X2Apic => Control::FORMAT,
        }
    }

    /// The control register of a running fence, but for the event interrupt.
    pub(super) fn control(&self) -> Control {
        let coherent = if self.coherent() {
            Control::COHERENT
        } else {
            Control::empty()
        };
        Control::RUNNING | self.format() | coherent | Control::from_ivhd_flags(self.ivhd_flags)
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

/// One AMD-Vi unit with its tables.
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
    pub(super) levels: u32,
    pub(super) device_table: PhysAddr,
    pub(super) buses: Buses,
    pub(super) commands: CommandBuffer,
    pub(super) events: EventLog,
    pub(crate) domains: Domains,
    /// Interrupt tables that others took the place of and that the unit may still read.
    pub(super) replaced: heapless::Vec<Replaced, { Replaced::MAX }>,
    pub(super) phase: Phase,
    /// The number of the first batch that proves the retirement of the device or interrupt entry
    /// that was retired last.
    pub(super) last_retirement: Option<u64>,
    /// How many device and interrupt entries were put into force, modulo 2^32.
    pub(super) installs: u32,
    /// The other device table, where there is one.
    pub(super) spare: Option<Spare>,
    /// Goes up with every change of the device table that a prepared one has to follow.
    pub(super) generation: u64,
}

/// The first address that not every kernel would look for tables at.
const LOW_MEMORY: u64 = 1 << 32;

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Lays out the tables of a unit that block everything: each of the 65,536 device table
    /// entries denies memory and interrupts. No register is written: what firmware set up stays in
    /// force until [`enable`](Self::enable). Domains can be made, filled and attached in between,
    /// so that devices that firmware needs (reserved regions) are never cut off.
    ///
    /// `window` is where the unit's registers lie, for [`record`](Self::record) and to check that
    /// `registers` reaches them all; `arena` is memory for this unit's tables alone, below 4 GiB.
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
        let capabilities =
            Capabilities::read(&mut registers, config.capability).map_err(PrepareError::Probe)?;
        let levels = capabilities
            .check(window, &config)
            .map_err(PrepareError::Probe)?;
        let limit = config.host_limit().min(LOW_MEMORY);
        if arena.end().0 > limit {
            return Err(PrepareError::ArenaTooHigh { arena, limit });
        }
        let mut arena = Arena::new(arena).map_err(PrepareError::Arena)?;
        let mut tables = Tables {
            memory,
            coherent: config.coherent(),
        };
        let full = PrepareError::ArenaFull;
        let frames = |count: u64| count as usize;
        let device_table = arena
            .take_run(frames(DeviceTableBase::FRAMES))
            .ok_or(full)?;
        let ring = tables
            .zeroed_run(&mut arena, frames(RingBase::FRAMES))
            .ok_or(full)?;
        let log = tables
            .zeroed_run(&mut arena, frames(RingBase::FRAMES))
            .ok_or(full)?;
        let status = tables.zeroed(&mut arena).ok_or(full)?;
        deny_all(&mut tables, device_table);
        Ok(Self {
            hardware: Hardware::new(registers, clock, config.timeout_microseconds),
            tables,
            arena,
            window,
            capabilities,
            config,
            levels,
            device_table,
            buses: Buses::default(),
            commands: CommandBuffer::new(ring, status),
            events: EventLog::new(log),
            domains: Domains::default(),
            replaced: heapless::Vec::new(),
            phase: Phase::Prepared,
            last_retirement: None,
            installs: 0,
            spare: None,
            generation: 0,
        })
    }

    /// Puts the tables into force. On success every device that is attached reaches its domain and
    /// nothing else, and every other device reaches nothing; interrupts pass only through entries
    /// of this unit.
    ///
    /// The device table, which fences memory and interrupts at once, is looked through before the
    /// unit is told of it. Then the order is: logs and command buffer of firmware, if any, off;
    /// device table; exclusion range off; own rings; everything but the unit itself on; the unit
    /// on; all caches invalidated; event interrupt on.
    ///
    /// Where firmware left the unit on it stays on: the new device table replaces the old one by
    /// one store to a register, and no request passes untranslated.
    ///
    /// # Errors
    /// See [`EnableError`]. The unit may be left anywhere on the way; `enable` can be called again.
    pub fn enable(&mut self) -> Result<(), EnableError> {
        let found = self.hardware.control()?;
        if found.contains(Control::IOMMU) && found & Control::FORMAT != self.config.format() {
            return Err(EnableError::InterruptFormat { control: found });
        }
        self.check_device_table()?;
        if found.contains(Control::COMMAND_BUFFER) {
            self.run_out()?;
        }
        // A unit that is on must see the new tables, so it snoops from here on if it is to.
        let control = self.config.control() | found & Control::SMI_FILTER;
        let snooping = control & Control::COHERENT;
        self.hardware.set_control(found.difference(LOGS) | snooping);
        let runs = Status::COMMAND_BUFFER_RUN | Status::EVENT_LOG_RUN;
        self.hardware.poll_running(runs, false)?;

        self.phase = Phase::InUse;
        let table = DeviceTableBase::full(self.device_table);
        self.hardware.write(Register::DeviceTableBase, table.0);
        self.hardware.write(Register::ExclusionBase, 0);
        self.hardware.write(Register::ExclusionLimit, 0);
        self.commands.give(&mut self.hardware, &mut self.tables);
        self.events.give(&mut self.hardware, &mut self.tables);

        if !found.contains(Control::IOMMU) {
            self.hardware.set_control(control - Control::IOMMU);
        }
        self.hardware.set_control(control);
        self.hardware.poll_running(runs, true)?;
        self.invalidate_every_id()?;
        self.set_fault_interrupt(self.config.fault_interrupt)?;
        Ok(())
    }

    /// Waits until the commands that somebody else left in a buffer are fetched, if the unit still
    /// fetches any: a buffer is switched off only when it is empty.
    fn run_out(&mut self) -> Result<(), RegisterError> {
        if !self.hardware.status()?.contains(Status::COMMAND_BUFFER_RUN) {
            return Ok(());
        }
        let length = RingBase(self.hardware.read(Register::CommandBufferBase)).length();
        let tail = self.hardware.read_present(Register::CommandBufferTail)?;
        self.hardware.poll(Register::CommandBufferHead, |head| {
            head % length == tail % length
        })?;
        Ok(())
    }

    /// Looks whether every device table entry is what it must be: V, TV and IV set in all of them.
    fn check_device_table(&self) -> Result<(), EnableError> {
        for id in 0..=u16::MAX {
            let entry = offset(self.device_table, u64::from(id) * DeviceEntry::SIZE);
            let [memory, _, interrupts, reserved] = self.load_entry(entry).0;
            let fenced = memory & DeviceEntry::NO_MEMORY == DeviceEntry::NO_MEMORY
                && interrupts & DeviceEntry::NO_INTERRUPTS == DeviceEntry::NO_INTERRUPTS
                && reserved == 0;
            if !fenced {
                return Err(EnableError::DeviceTable { entry });
            }
        }
        Ok(())
    }

    /// Says whether the unit raises its interrupt when it logs an event. Events that were logged
    /// before are not announced again: drain them afterwards.
    ///
    /// # Errors
    /// Where the unit is gone.
    pub fn set_fault_interrupt(&mut self, on: bool) -> Result<(), RegisterError> {
        let mut control = self.hardware.control()?;
        control.set(Control::EVENT_INTERRUPT, on);
        self.hardware.set_control(control);
        self.config.fault_interrupt = on;
        Ok(())
    }

    /// Gives a batch of changes to the unit, with one write to its buffer's tail. The batches of
    /// several units can be submitted before any is waited for, so that the waits overlap.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn submit(&mut self, pending: Pending) -> Result<Submitted, InvalidateError> {
        self.submit_with(pending, &[])
    }

    /// As [`submit`](Self::submit), with device entries that changed besides.
    pub(super) fn submit_with(
        &mut self,
        pending: Pending,
        more: &[handoff_abi::RequesterId],
    ) -> Result<Submitted, InvalidateError> {
        let foreign = pending.unit.is_some_and(|unit| unit != self.window.base());
        if foreign || pending.mixed {
            return Err(InvalidateError::ForeignUnit);
        }
        if self.phase == Phase::Prepared {
            // The unit has never seen these tables.
            self.complete(&pending, self.commands.next_sequence(), self.installs)?;
        }
        let nothing = !pending.needs_commands() && more.is_empty();
        let sequence = if self.phase == Phase::Prepared || nothing {
            None
        } else {
            let ids = self.domain_list();
            let cached = Cached {
                all_at_once: self.capabilities.invalidates_all(),
                buses: &self.buses,
                domains: &ids,
            };
            Some(
                self.commands
                    .submit(&mut self.hardware, &mut self.tables, || {
                        commands(&pending, more, cached)
                    })?,
            )
        };
        Ok(Submitted {
            pending,
            sequence,
            installs: self.installs,
        })
    }

    fn domain_list(&self) -> heapless::Vec<DomainId, MAX_DOMAINS> {
        self.domains.ids().collect()
    }

    /// Waits until a batch is done. Then what it retired is free: blocked devices can be attached
    /// anew, cleared interrupt entries and unlinked tables are used again.
    ///
    /// # Errors
    /// See [`InvalidateError`]. What was to be retired stays as it is, blocked and not reusable,
    /// until [`invalidate_everything`](Self::invalidate_everything) succeeds.
    pub fn wait(&mut self, submitted: Submitted) -> Result<(), InvalidateError> {
        self.wait_proved(submitted, &[]).map(|_| ())
    }

    /// As [`wait`](Self::wait). Returns the number of the wait that was done, if there was one.
    pub(super) fn wait_proved(
        &mut self,
        submitted: Submitted,
        more: &[handoff_abi::RequesterId],
    ) -> Result<Option<u64>, InvalidateError> {
        let Submitted {
            pending,
            sequence,
            installs,
        } = submitted;
        let Some(sequence) = sequence else {
            return Ok(None);
        };
        let ids = self.domain_list();
        let cached = Cached {
            all_at_once: self.capabilities.invalidates_all(),
            buses: &self.buses,
            domains: &ids,
        };
        let proved = self
            .commands
            .wait(&mut self.hardware, &mut self.tables, sequence, || {
                commands(&pending, more, cached)
            })?;
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
        } else {
            if self.switch_under_way() {
                self.switch_proved();
                self.recount_attached();
            }
        }
        result
    }

    /// As [`invalidate_everything`](Self::invalidate_everything), where the unit may have
    /// something in its caches of which these tables know nothing.
    pub(super) fn invalidate_every_id(&mut self) -> Result<(), InvalidateError> {
        if !self.capabilities.invalidates_all() {
            let Self {
                commands,
                hardware,
                tables,
                ..
            } = self;
            let sequence = commands.submit(hardware, tables, every_id)?;
            commands.wait(hardware, tables, sequence, every_id)?;
        }
        self.invalidate_everything()
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
        // it names can only be such if it was put into force again in between; one that is looked
        // for afterwards, if anything was retired since. Interrupt entries are looked for in all
        // of a device's table.
        let looked_for = pending.sweep || pending.interrupts().iter().any(|change| change.retire);
        let doubtful = looked_for || pending.retires() && self.installs != installs;
        if doubtful && !self.all_retired_before(proved) {
            return self.invalidate_everything();
        }
        if pending.sweep {
            self.empty_all_retired();
        }
        for &change in pending.devices() {
            if change.retire {
                self.empty_retired_device(change.requester, Some(change.domain));
            }
        }
        for &change in pending.interrupts() {
            if change.retire {
                self.empty_retired_interrupts(change.source);
            }
        }
        self.release_replaced(pending, proved);
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

    pub(super) const fn retirement_begun(&mut self) {
        self.last_retirement = Some(self.commands.next_sequence());
    }

    pub(super) const fn caching_mode(&self) -> bool {
        self.capabilities.caches_not_present()
    }

    pub(super) fn pending(&self) -> Pending {
        Pending::stored(self.window.base())
    }

    pub(super) const fn shape(&self, root: PhysAddr) -> Shape {
        Shape {
            root,
            levels: self.levels,
            largest: LeafSize::Size1G,
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

    /// The memory of its tables and rings.
    #[must_use]
    pub const fn arena(&self) -> PhysRange {
        self.arena.range()
    }

    /// How many frames of the arena are free.
    #[must_use]
    pub const fn free_frames(&self) -> usize {
        self.arena.free_frames()
    }

    /// How many levels the tables of its domains have.
    #[must_use]
    pub const fn levels(&self) -> u32 {
        self.levels
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

/// EventLogEn, EventIntEn, ComWaitIntEn, CmdBufEn, PPRLogEn, PPRIntEn, PPREn, GALogEn and GAIntEn:
/// what writes to memory, or raises interrupts, of somebody else.
const LOGS: Control = Control::from_bits_retain(0b1_1100 | 0xf << 12 | 0b11 << 28);

/// Writes the whole device table so that no device reaches anything. The unit does not use it yet.
pub(super) fn deny_all<M: TableMemory>(tables: &mut Tables<M>, table: PhysAddr) {
    let length = (u64::from(u16::MAX) + 1) * DeviceEntry::SIZE;
    for entry in (0..length).step_by(DeviceEntry::SIZE as usize) {
        for (word, value) in (0..).step_by(8).zip(DeviceEntry::DENIED.0) {
            tables.store(offset(table, entry + word), value);
        }
    }
    tables.publish(table, length);
}
