//! One remapping unit: how it is brought up, and what all parts of the driver share.

use handoff_abi::{FRAME_SIZE, InterruptMessage, PhysRange};

use super::hardware::Hardware;
use super::interrupts::InterruptTable;
use super::probe::Capabilities;
use super::queue::Queue;
use super::spec::{
    AddressWidth, Capability, ExtendedCapability, FaultRecord, FaultStatus, GlobalStatus,
    ProtectedMemoryEnable, Register, RootTableAddress, TranslationMode,
};
use crate::arena::Arena;
use crate::driver::{Driver, Phase, Running};
use crate::tables::Tables;
use crate::{Deadline, EnableError, Pending, PrepareError, RegisterError, RegisterIo, TableMemory};

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

/// What a VT-d unit has besides what both vendors' have.
#[derive(Debug)]
pub struct VtD<R, C> {
    pub(super) hardware: Hardware<R, C>,
    pub(super) capabilities: Capabilities,
    pub(super) config: Config,
    pub(super) width: AddressWidth,
    pub(super) queue: Queue,
    pub(super) interrupts: InterruptTable,
}

/// One VT-d unit with its tables.
///
/// It owns its register window `R`, its table memory `M` and a clock `C`. See the [module
/// documentation](super) for how the parts work together.
pub type Unit<R, M, C> = Driver<VtD<R, C>, M>;

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
        let vendor = VtD {
            hardware: Hardware::new(registers, clock, config.timeout_microseconds),
            capabilities,
            config,
            width,
            queue: Queue::new(queue, status),
            interrupts: InterruptTable::new(
                interrupt_table,
                config.interrupt_entries,
                config.extended_interrupt_mode,
            ),
        };
        Ok(Self::new(vendor, tables, arena, window, root))
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
        self.vendor.hardware.settle()?;
        let status = self.vendor.hardware.status()?;
        let translating = status.contains(GlobalStatus::TES);
        if translating {
            let mode =
                RootTableAddress(self.vendor.hardware.read64(Register::RootTableAddress)).mode();
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

        self.vendor.flush_write_buffer()?;
        let root = self.root_table_address();
        self.vendor.latch_root_table(root)?;

        self.start_queue()?;
        let unit = self.window.base();
        // That the unit invalidates by itself does not say that it drains what the tables before let
        // through.
        if translating || !self.vendor.has(Capability::ESRTPS) {
            self.flush(Pending::all_caches(unit).without_interrupts())?;
        }

        let table = self.vendor.interrupts.address();
        self.vendor
            .hardware
            .write64(Register::InterruptTableAddress, table.0);
        self.vendor.hardware.latch(GlobalStatus::IRTPS)?;
        if !self.vendor.has(Capability::ESIRTPS) {
            self.flush(Pending::all_caches(unit).interrupts_only())?;
        }
        self.vendor.hardware.switch(GlobalStatus::IRES, true)?;
        self.vendor.hardware.switch(GlobalStatus::CFIS, false)?;

        self.vendor.hardware.switch(GlobalStatus::TES, true)?;
        self.disable_protected_memory()?;
        self.set_fault_message(self.vendor.config.fault_message)?;
        Ok(())
    }

    pub(super) const fn root_table_address(&self) -> RootTableAddress {
        RootTableAddress::legacy(self.top)
    }

    fn mask_fault_event(&mut self) -> Result<(), RegisterError> {
        self.vendor
            .hardware
            .write32(Register::FaultEventControl, FAULT_EVENT_MASK);
        // Reading it back proves that no message of the old setting is on its way any more.
        self.vendor
            .hardware
            .poll32(Register::FaultEventControl, |control| {
                control & FAULT_EVENT_MASK != 0
            })?;
        Ok(())
    }

    fn clear_faults(&mut self) -> Result<(), RegisterError> {
        for record in 0..self.vendor.capabilities.capability.fault_records() {
            self.clear_fault_record(record);
        }
        let errors = FaultStatus::QUEUE_ERRORS | FaultStatus::PFO;
        self.vendor
            .hardware
            .write32(Register::FaultStatus, errors.bits());
        Ok(())
    }

    pub(super) fn fault_record_offset(&self, record: u32) -> u32 {
        self.vendor.capabilities.capability.fault_record_offset() + record * FaultRecord::SIZE
    }

    pub(super) fn clear_fault_record(&mut self, record: u32) {
        let (offset, value) = FaultRecord::CLEAR;
        let at = self.fault_record_offset(record) + offset;
        self.vendor.hardware.registers.write32(at, value);
    }

    fn start_queue(&mut self) -> Result<(), RegisterError> {
        let sequence = self.vendor.queue.restart();
        let status = self.vendor.queue.status();
        self.tables.store_and_publish(status, sequence.into());
        self.vendor
            .hardware
            .write64(Register::InvalidationQueueTail, 0);
        self.vendor.hardware.write64(
            Register::InvalidationQueueAddress,
            self.vendor.queue.address().0,
        );
        self.vendor.hardware.switch(GlobalStatus::QIES, true)
    }

    fn disable_protected_memory(&mut self) -> Result<(), RegisterError> {
        let regions = Capability::PLMR | Capability::PHMR;
        if !self.vendor.capabilities.capability.intersects(regions) {
            return Ok(());
        }
        let enable = self.vendor.hardware.read32(Register::ProtectedMemoryEnable);
        let enable = ProtectedMemoryEnable::from_bits_retain(enable);
        if !enable.intersects(ProtectedMemoryEnable::EPM | ProtectedMemoryEnable::PRS) {
            return Ok(());
        }
        self.vendor.hardware.write32(
            Register::ProtectedMemoryEnable,
            enable.difference(ProtectedMemoryEnable::EPM).bits(),
        );
        self.vendor
            .hardware
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
        self.vendor.config.fault_message = message;
        let Some(message) = message else {
            return Ok(());
        };
        self.vendor
            .hardware
            .write32(Register::FaultEventData, message.data);
        self.vendor
            .hardware
            .write32(Register::FaultEventAddress, message.address.0 as u32);
        self.vendor.hardware.write32(
            Register::FaultEventUpperAddress,
            (message.address.0 >> 32) as u32,
        );
        self.vendor.hardware.write32(Register::FaultEventControl, 0);
        self.vendor
            .hardware
            .poll32(Register::FaultEventControl, |control| {
                control & FAULT_EVENT_MASK == 0
            })?;
        Ok(())
    }

    /// What the unit can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.vendor.capabilities
    }

    /// The width of its domains.
    #[must_use]
    pub const fn width(&self) -> AddressWidth {
        self.vendor.width
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

/// IM, bit 31 of FECTL (section 11.4.7.2).
const FAULT_EVENT_MASK: u32 = 1 << 31;
