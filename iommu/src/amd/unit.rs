//! One remapping unit: how it is brought up, and what all parts of the driver share.

use handoff_abi::{PhysAddr, PhysRange};

use super::commands::CommandBuffer;
use super::devices::Buses;
use super::events::EventLog;
use super::hardware::Hardware;
use super::interrupts::Replaced;
use super::pending::every_id;
use super::probe::Capabilities;
use super::spec::{
    CapabilityHeader, Control, DeviceEntry, DeviceTableBase, InterruptFormat, Register, RingBase,
    SmiFilter, Status,
};
use crate::arena::Arena;
use crate::driver::{Driver, Phase, Running};
use crate::tables::{Tables, offset};
use crate::{
    Deadline, EnableError, InvalidateError, PrepareError, RegisterError, RegisterIo, TableMemory,
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

/// What an AMD-Vi unit has besides what both vendors' have.
#[derive(Debug)]
pub struct AmdVi<R, C> {
    pub(super) hardware: Hardware<R, C>,
    pub(super) capabilities: Capabilities,
    pub(super) config: Config,
    pub(super) levels: u32,
    pub(super) buses: Buses,
    pub(super) commands: CommandBuffer,
    pub(super) events: EventLog,
    /// Interrupt tables that others took the place of and that the unit may still read.
    pub(super) replaced: heapless::Vec<Replaced, { Replaced::MAX }>,
}

/// One AMD-Vi unit with its tables.
///
/// It owns its register window `R`, its table memory `M` and a clock `C`. See the [module
/// documentation](super) for how the parts work together.
pub type Unit<R, M, C> = Driver<AmdVi<R, C>, M>;

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
        let vendor = AmdVi {
            hardware: Hardware::new(registers, clock, config.timeout_microseconds),
            capabilities,
            config,
            levels,
            buses: Buses::default(),
            commands: CommandBuffer::new(ring, status),
            events: EventLog::new(log),
            replaced: heapless::Vec::new(),
        };
        Ok(Self::new(vendor, tables, arena, window, device_table))
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
    /// one store to a register, and no request passes untranslated. Where it left a command buffer
    /// running, see [`enable_over`](Self::enable_over).
    ///
    /// # Errors
    /// See [`EnableError`]. The unit may be left anywhere on the way; `enable` can be called again.
    pub fn enable(&mut self) -> Result<(), EnableError> {
        self.bring_up(None::<&mut M>)
    }

    /// As [`enable`](Self::enable), over the command buffer that firmware or an earlier kernel left
    /// running and [`EnableError::QueueRuns`] named; `queue` reaches its memory.
    ///
    /// A running buffer is switched off only when all of its commands are done, which only a wait
    /// behind them tells (section 2.4), so one is put where its tail is. That is the only place
    /// outside the arena that the driver ever writes to: 16 bytes, which are put back when the unit
    /// has passed them. The wait itself writes into the arena. Whether the memory is still that
    /// buffer, and not in use for something else since, only the embedder knows: it says so by
    /// calling this function.
    ///
    /// # Errors
    /// See [`EnableError`].
    pub fn enable_over<Q: TableMemory>(&mut self, queue: &mut Q) -> Result<(), EnableError> {
        self.bring_up(Some(queue))
    }

    fn bring_up<Q: TableMemory>(&mut self, foreign: Option<&mut Q>) -> Result<(), EnableError> {
        let found = self.vendor.hardware.control()?;
        if found.contains(Control::IOMMU) && found & Control::FORMAT != self.vendor.config.format()
        {
            return Err(EnableError::InterruptFormat { control: found });
        }
        let running = self.running_buffer(found)?;
        let foreign_memory = running.and_then(Running::foreign);
        if let (Some(memory), None) = (foreign_memory, &foreign) {
            return Err(EnableError::QueueRuns(memory));
        }
        self.check_device_table()?;
        if let Some(buffer) = running {
            self.close_buffer(buffer, found, foreign.filter(|_| foreign_memory.is_some()))?;
        }
        // A unit that is on must see the new tables, so it snoops from here on if it is to.
        let control =
            self.vendor.config.control() | found & Control::SMI_FILTER | self.refuse_smi();
        let snooping = control & Control::COHERENT;
        self.vendor
            .hardware
            .set_control(found.difference(LOGS) | snooping);
        let runs = Status::COMMAND_BUFFER_RUN | Status::EVENT_LOG_RUN;
        self.vendor.hardware.poll_running(runs, false)?;

        self.phase = Phase::InUse;
        let table = DeviceTableBase::full(self.top);
        self.vendor
            .hardware
            .write(Register::DeviceTableBase, table.0);
        self.vendor.hardware.write(Register::ExclusionBase, 0);
        self.vendor.hardware.write(Register::ExclusionLimit, 0);
        self.vendor
            .commands
            .give(&mut self.vendor.hardware, &mut self.tables);
        self.vendor
            .events
            .give(&mut self.vendor.hardware, &mut self.tables);

        if !found.contains(Control::IOMMU) {
            self.vendor.hardware.set_control(control - Control::IOMMU);
        }
        self.vendor.hardware.set_control(control);
        self.vendor.hardware.poll_running(runs, true)?;
        self.invalidate_every_id()?;
        self.set_fault_interrupt(self.vendor.config.fault_interrupt)?;
        Ok(())
    }

    /// Takes the devices out of the SMI filter that firmware named there, but for those that it locked
    /// in. Returns what the control register has to have for the filter to be on, where there is one.
    pub(super) fn refuse_smi(&mut self) -> Control {
        let registers = &mut self.vendor.hardware.registers;
        let filters = self.vendor.capabilities.features.smi_filters();
        for filter in 0..filters {
            let at = Register::SmiFilter.offset() + filter * 8;
            let found = SmiFilter::from_bits_retain(registers.read64(at));
            if found.contains(SmiFilter::VALID) && !found.contains(SmiFilter::LOCK) {
                registers.write64(at, 0);
            }
        }
        if filters == 0 {
            Control::empty()
        } else {
            Control::SMI_FILTER
        }
    }

    /// Looks whether every device table entry is what it must be: V, TV and IV set in all of them.
    fn check_device_table(&self) -> Result<(), EnableError> {
        for id in 0..=u16::MAX {
            let entry = offset(self.top, u64::from(id) * DeviceEntry::SIZE);
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
        let mut control = self.vendor.hardware.control()?;
        control.set(Control::EVENT_INTERRUPT, on);
        self.vendor.hardware.set_control(control);
        self.vendor.config.fault_interrupt = on;
        Ok(())
    }

    /// As [`invalidate_everything`](Self::invalidate_everything), where the unit may have
    /// something in its caches of which these tables know nothing.
    pub(super) fn invalidate_every_id(&mut self) -> Result<(), InvalidateError> {
        if !self.vendor.capabilities.invalidates_all() {
            let AmdVi {
                commands, hardware, ..
            } = &mut self.vendor;
            let sequence = commands.submit(hardware, &mut self.tables, every_id)?;
            commands.wait(hardware, &mut self.tables, sequence, every_id)?;
        }
        self.invalidate_everything()
    }

    /// What the unit can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.vendor.capabilities
    }

    /// Gives registers, memory and clock back. The unit goes on as it was set up.
    #[must_use]
    pub fn into_parts(self) -> (R, M, C) {
        (
            self.vendor.hardware.registers,
            self.tables.memory,
            self.vendor.hardware.clock,
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
