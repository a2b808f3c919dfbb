//! One unit of either vendor.

use handoff_abi::{
    AmdViState, DomainId, InterruptMessage, InterruptTarget, PhysRange, RequesterId,
    UnitDescription, UnitKind, VtdUnit,
};

use crate::amd::InterruptFormat;
use crate::amd::spec::{CapabilityHeader, Control, Register as AmdRegister};
use crate::{
    Access, AdoptError, AttachError, Deadline, DomainError, EnableError, Fault, FaultCount,
    Installed, Interrupt, InterruptError, InterruptHandle, InvalidateError, Leaf, MapError,
    MoveError, MoveMethod, Moving, Pending, PrepareError, PreparedMove, ProbeError, Reach,
    RegisterError, RegisterIo, Submitted, TableMemory, UnmapError, amd, vtd,
};

/// What the embedder knows of a unit and wants of it, apart from its description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// The first device address that need not be translated. The shallowest tables that reach it
    /// are used. With device addresses equal to physical ones this is the end of RAM.
    pub iova_limit: u64,
    /// How many bits the machine's physical addresses have (VT-d: DMAR's Host Address Width; AMD-Vi:
    /// IVRS's PAsize), 12 to 52.
    pub host_address_bits: u8,
    /// Whether APIC ids have 32 bits; set where the processors are in x2APIC mode.
    pub x2apic: bool,
    /// The longest the unit may take over anything, in microseconds.
    pub timeout_microseconds: u32,
    /// The message that announces a fault, or none where faults are drained by polling. It is not
    /// remapped: it names a processor directly, one of the unit's steward.
    ///
    /// AMD-Vi: the message stands in the MSI capability of the unit's PCI function, and is for
    /// whoever writes configuration space to put there; the unit is told only whether to send it.
    pub fault_message: Option<InterruptMessage>,
    /// VT-d: how many interrupt remapping entries there are for all devices, a power of two from
    /// 256 to 65536. AMD-Vi: each device has a table of its own.
    pub interrupt_entries: u32,
    /// AMD-Vi: the four bytes at the [capability
    /// offset](handoff_abi::AmdViUnit::capability_offset) of the unit's PCI function.
    pub capability_header: u32,
}

impl Default for Config {
    fn default() -> Self {
        let vtd = vtd::Config::default();
        Self {
            iova_limit: vtd.iova_limit,
            host_address_bits: vtd.host_address_bits,
            x2apic: vtd.extended_interrupt_mode,
            timeout_microseconds: vtd.timeout_microseconds,
            fault_message: vtd.fault_message,
            interrupt_entries: vtd.interrupt_entries,
            capability_header: amd::Config::default().capability.bits(),
        }
    }
}

impl Config {
    const fn vtd(&self) -> vtd::Config {
        vtd::Config {
            iova_limit: self.iova_limit,
            host_address_bits: self.host_address_bits,
            interrupt_entries: self.interrupt_entries,
            extended_interrupt_mode: self.x2apic,
            timeout_microseconds: self.timeout_microseconds,
            fault_message: self.fault_message,
        }
    }

    /// AMD-Vi: how interrupt entries look, where nobody before decided it.
    pub(crate) const fn interrupt_format(&self) -> InterruptFormat {
        if self.x2apic {
            InterruptFormat::Bits128X2Apic
        } else {
            InterruptFormat::Bits32
        }
    }

    const fn amd(&self, ivhd_flags: u8, running: InterruptFormat) -> amd::Config {
        let interrupt_format = match (self.interrupt_format(), running) {
            (InterruptFormat::Bits32, InterruptFormat::Bits128) => running,
            (format, _) => format,
        };
        amd::Config {
            iova_limit: self.iova_limit,
            host_address_bits: self.host_address_bits,
            capability: CapabilityHeader::from_bits_retain(self.capability_header),
            ivhd_flags,
            interrupt_format,
            timeout_microseconds: self.timeout_microseconds,
            fault_interrupt: self.fault_message.is_some(),
        }
    }
}

/// The record of a unit of either vendor, for the handoff: what the next steward must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Of a VT-d unit.
    VtD(VtdUnit),
    /// Of an AMD-Vi unit.
    AmdVi(AmdViState),
}

impl State {
    /// The architecture of its unit.
    #[must_use]
    pub const fn kind(&self) -> UnitKind {
        match self {
            Self::VtD(_) => UnitKind::VtD,
            Self::AmdVi(_) => UnitKind::AmdVi,
        }
    }

    /// Where the unit's registers lie.
    #[must_use]
    pub const fn register_base(&self) -> u64 {
        match self {
            Self::VtD(state) => state.register_base,
            Self::AmdVi(state) => state.register_base,
        }
    }

    /// How many levels the tables of its domains have.
    #[must_use]
    pub const fn levels(&self) -> u32 {
        match self {
            Self::VtD(state) => state.levels,
            Self::AmdVi(state) => state.levels,
        }
    }
}

impl From<VtdUnit> for State {
    fn from(state: VtdUnit) -> Self {
        Self::VtD(state)
    }
}

impl From<AmdViState> for State {
    fn from(state: AmdViState) -> Self {
        Self::AmdVi(state)
    }
}

/// One unit of either vendor with its tables, for code that does not care which.
///
/// Every operation is the one of the same name of [`vtd::Unit`] or [`amd::Unit`], which say more of
/// what it does; what only one of them has is reached by matching. The module documentation of
/// [`amd`] tells in what the two are unlike.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocator to put either elsewhere, and both are large"
)]
pub enum Unit<R, M, C> {
    /// A VT-d unit.
    VtD(vtd::Unit<R, M, C>),
    /// An AMD-Vi unit.
    AmdVi(amd::Unit<R, M, C>),
}

/// The same of either unit.
macro_rules! either {
    ($self:expr, $unit:ident => $body:expr) => {
        match $self {
            Unit::VtD($unit) => $body,
            Unit::AmdVi($unit) => $body,
        }
    };
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Lays out the tables of a unit that block everything. No register is written: what firmware
    /// set up stays in force until [`enable`](Self::enable). Domains can be made, filled and
    /// attached in between, so that devices that firmware needs (reserved regions) are never cut
    /// off.
    ///
    /// `description` says which vendor's it is and where its registers lie; `arena` is memory for
    /// this unit's tables alone, see [`ArenaNeeds`](crate::ArenaNeeds) for how much. An AMD-Vi unit
    /// that firmware left on keeps its format of interrupt entries.
    ///
    /// # Errors
    /// See [`PrepareError`].
    pub fn prepare(
        mut registers: R,
        memory: M,
        clock: C,
        description: &UnitDescription,
        arena: PhysRange,
        config: Config,
    ) -> Result<Self, PrepareError> {
        let window = description.registers;
        match (description.kind, description.amd_vi) {
            (UnitKind::VtD, _) => {
                vtd::Unit::prepare(registers, memory, clock, window, arena, config.vtd())
                    .map(Self::VtD)
            }
            (UnitKind::AmdVi, Some(unit)) => {
                let control = registers.read64(AmdRegister::Control.offset());
                if control == u64::MAX {
                    return Err(PrepareError::Probe(ProbeError::Gone));
                }
                let control = Control::from_bits_retain(control);
                let running = if control.contains(Control::IOMMU) {
                    control.interrupt_format()
                } else {
                    InterruptFormat::Bits32
                };
                let config = config.amd(unit.flags, running);
                amd::Unit::prepare(registers, memory, clock, window, arena, config).map(Self::AmdVi)
            }
            _ => Err(PrepareError::Description),
        }
    }

    /// Takes over a unit that runs with the tables another steward built in `arena`: first it is
    /// all read and checked, each leaf and each interrupt put before `allow`; then the queue is
    /// taken over with one wait. Translation and interrupt remapping are never off.
    ///
    /// `window` is where its registers lie. The vendor, the depth of tables, the width of physical
    /// addresses and, on AMD-Vi, the capability header and the IVHD's flags are those of the record;
    /// `config` gives the rest, and must agree about the width of APIC ids.
    ///
    /// # Errors
    /// See [`AdoptError`].
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub fn adopt(
        registers: R,
        memory: M,
        clock: C,
        window: PhysRange,
        arena: PhysRange,
        state: &State,
        config: Config,
        allow: impl FnMut(&Reach) -> bool,
    ) -> Result<Self, AdoptError> {
        match state {
            State::VtD(state) => {
                let config = config.vtd();
                vtd::Unit::adopt(
                    registers, memory, clock, window, arena, state, config, allow,
                )
                .map(Self::VtD)
            }
            State::AmdVi(state) => {
                let control = Control::from_bits_retain(state.control);
                // The flags are those of the record.
                let config = config.amd(0, control.interrupt_format());
                amd::Unit::adopt(
                    registers, memory, clock, window, arena, state, config, allow,
                )
                .map(Self::AmdVi)
            }
        }
    }

    /// Writes down what the next steward needs. Nothing must be changed or submitted between this
    /// and the moment the stewardship passes; what is pending should be flushed before.
    ///
    /// # Errors
    /// Where the unit is gone.
    pub fn record(&mut self) -> Result<State, RegisterError> {
        match self {
            Self::VtD(unit) => unit.record().map(State::VtD),
            Self::AmdVi(unit) => unit.record().map(State::AmdVi),
        }
    }

    /// Puts the tables into force. On success every device that is attached reaches its domain and
    /// nothing else, and every other device reaches nothing; interrupts pass only through entries
    /// of this unit. Where firmware left the unit on it stays on, and no request passes untranslated.
    ///
    /// Where the tables that are replaced have a domain with the id of one here, a device of that
    /// domain may be served from what the unit has cached under the id, until this returns; nothing
    /// of it is left then. Choose ids that are not in use there: the driver cannot see them, as those
    /// tables are not in its memory.
    ///
    /// # Errors
    /// See [`EnableError`]. The unit may be left anywhere on the way; `enable` can be called again.
    pub fn enable(&mut self) -> Result<(), EnableError> {
        either!(self, unit => unit.enable())
    }

    /// As [`enable`](Self::enable), over the queue that firmware or an earlier kernel left running
    /// and [`EnableError::QueueRuns`] named; `queue` reaches its memory.
    ///
    /// # Errors
    /// See [`EnableError`].
    pub fn enable_over<Q: TableMemory>(&mut self, queue: &mut Q) -> Result<(), EnableError> {
        either!(self, unit => unit.enable_over(queue))
    }

    /// Whether the tables were prepared and the unit has never seen them.
    pub(crate) const fn is_prepared(&self) -> bool {
        either!(self, unit => unit.is_prepared())
    }

    /// The architecture of the unit.
    #[must_use]
    pub const fn kind(&self) -> UnitKind {
        match self {
            Self::VtD(_) => UnitKind::VtD,
            Self::AmdVi(_) => UnitKind::AmdVi,
        }
    }

    /// Where its registers lie.
    #[must_use]
    pub const fn window(&self) -> PhysRange {
        either!(self, unit => unit.window())
    }

    /// The memory of its tables and queues.
    #[must_use]
    pub const fn arena(&self) -> PhysRange {
        either!(self, unit => unit.arena())
    }

    /// How many frames of the arena are free.
    #[must_use]
    pub const fn free_frames(&self) -> usize {
        either!(self, unit => unit.free_frames())
    }

    /// How many levels the tables of its domains have.
    #[must_use]
    pub fn levels(&self) -> u32 {
        either!(self, unit => unit.levels())
    }

    /// Gives registers, memory and clock back. The unit goes on as it was set up.
    #[must_use]
    pub fn into_parts(self) -> (R, M, C) {
        either!(self, unit => unit.into_parts())
    }

    // Domains.

    /// Makes an empty domain.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn create_domain(&mut self, id: DomainId) -> Result<(), DomainError> {
        either!(self, unit => unit.create_domain(id))
    }

    /// Takes a domain away and frees its tables. No device may be attached to it; a device counts
    /// as attached until its blocking was flushed.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn destroy_domain(&mut self, id: DomainId) -> Result<(), DomainError> {
        either!(self, unit => unit.destroy_domain(id))
    }

    /// The domains it has.
    pub fn domain_ids(&self) -> impl Iterator<Item = DomainId> + '_ {
        either!(self, unit => unit.domains.ids())
    }

    /// Lets the devices of `domain` reach `memory` at the device addresses from `iova` on.
    ///
    /// The largest leaves are used that the alignment of both sides and the unit allow. Memory
    /// that is to be unmapped in parts is therefore mapped in those parts: leaves are not split.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is changed then.
    pub fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<Pending, MapError> {
        either!(self, unit => unit.map(domain, iova, memory, access))
    }

    /// Takes `length` bytes of device addresses from `iova` on out of a domain. The memory is out of
    /// the devices' reach when the result was flushed, not before.
    ///
    /// # Errors
    /// See [`UnmapError`]; nothing is changed then.
    pub fn unmap(
        &mut self,
        domain: DomainId,
        iova: u64,
        length: u64,
    ) -> Result<Pending, UnmapError> {
        either!(self, unit => unit.unmap(domain, iova, length))
    }

    /// The leaf that translates `iova` in a domain; `None` where it is not mapped.
    #[must_use]
    pub fn translate(&self, domain: DomainId, iova: u64) -> Option<Leaf> {
        either!(self, unit => unit.translate(domain, iova))
    }

    /// The first part of `memory` that a domain does not translate at the device addresses equal to
    /// physical ones; `None` where it translates all, and where there is no such domain. It is for
    /// what firmware reserves for a device: map what is named until nothing is.
    #[must_use]
    pub fn first_unmapped(&self, domain: DomainId, memory: PhysRange) -> Option<PhysRange> {
        either!(self, unit => unit.first_unmapped(domain, memory))
    }

    /// Calls `each` for every leaf of a domain, lowest device address first, until it says
    /// `false`. Returns whether all were seen; `false` also where there is no such domain.
    pub fn for_each_leaf(&self, domain: DomainId, each: impl FnMut(Leaf) -> bool) -> bool {
        either!(self, unit => unit.for_each_leaf(domain, each))
    }

    // Devices.

    /// Lets a blocked device use a domain, with what firmware needs it to go on reaching (reserved
    /// regions): the domain must map all of `reserved` at device addresses equal to physical ones.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_reserved(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
        reserved: &[PhysRange],
    ) -> Result<Pending, AttachError> {
        either!(self, unit => unit.attach_reserved(requester, domain, reserved))
    }

    /// Lets a blocked device use a domain.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
    ) -> Result<Pending, AttachError> {
        either!(self, unit => unit.attach(requester, domain))
    }

    /// Blocks a device: no memory is within its reach when the result was flushed. Its interrupts
    /// are another matter, see [`clear_interrupts`](Self::clear_interrupts).
    pub fn block(&mut self, requester: RequesterId) -> Pending {
        either!(self, unit => unit.block(requester))
    }

    /// The domain a device is attached to; `None` where it is blocked.
    #[must_use]
    pub fn domain_of(&self, requester: RequesterId) -> Option<DomainId> {
        either!(self, unit => unit.domain_of(requester))
    }

    /// Moves devices, each from whatever domain it is attached to, or none, into the domain `to`,
    /// or into none; `with` joins in the invalidation (the retargeting of the devices' interrupts,
    /// say). In between every device is blocked.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn move_devices(
        &mut self,
        devices: &[RequesterId],
        to: Option<DomainId>,
        with: Pending,
    ) -> Result<MoveMethod, MoveError> {
        either!(self, unit => unit.move_devices(devices, to, with))
    }

    /// Prepares a move of devices, so that little is left to do when it is made, and says
    /// [how](PreparedMove::method) it will be made. Nothing in force is changed.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn prepare_move<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
    ) -> Result<PreparedMove<'a>, AttachError> {
        either!(self, unit => unit.prepare_move(devices, to))
    }

    /// As [`prepare_move`](Self::prepare_move), but the move will be a switch however few devices
    /// there are, where there is room for one.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn prepare_switch<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
    ) -> Result<PreparedMove<'a>, AttachError> {
        either!(self, unit => unit.prepare_switch(devices, to))
    }

    /// The first step of [`move_devices`](Self::move_devices). Start the moves of all units before
    /// finishing any, and the waits overlap.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn start_move<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
        with: Pending,
    ) -> Result<Moving<'a>, MoveError> {
        either!(self, unit => unit.start_move(devices, to, with))
    }

    /// Makes a move that was prepared: what [`start_move`](Self::start_move) does, in the way that
    /// was prepared.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn start_prepared<'a>(
        &mut self,
        prepared: PreparedMove<'a>,
        with: Pending,
    ) -> Result<Moving<'a>, MoveError> {
        either!(self, unit => unit.start_prepared(prepared, with))
    }

    /// The second step of [`move_devices`](Self::move_devices): waits until nothing reaches the old
    /// domains. What is left is that the devices can begin.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn install_move<'a>(&mut self, moving: Moving<'a>) -> Result<Installed<'a>, MoveError> {
        either!(self, unit => unit.install_move(moving))
    }

    /// The last step of [`move_devices`](Self::move_devices): waits until the unit knows of the new
    /// domain.
    ///
    /// # Errors
    /// [`MoveError::Install`].
    pub fn wait_installed(&mut self, installed: Installed<'_>) -> Result<MoveMethod, MoveError> {
        either!(self, unit => unit.wait_installed(installed))
    }

    /// The rest of [`move_devices`](Self::move_devices): [`install_move`](Self::install_move) and
    /// [`wait_installed`](Self::wait_installed).
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn finish_move(&mut self, moving: Moving<'_>) -> Result<MoveMethod, MoveError> {
        either!(self, unit => unit.finish_move(moving))
    }

    // Interrupts.

    /// The handle of an index in the table that has `source`'s entries; whether it is set,
    /// [`interrupt`](Self::interrupt) tells.
    #[must_use]
    pub const fn interrupt_handle(&self, source: RequesterId, index: u16) -> InterruptHandle {
        InterruptHandle::new(self.kind(), source, index)
    }

    /// Takes a free entry and sets it: messages of `source`, and of no other device, that name the
    /// returned handle raise `target`. [`InterruptHandle::message`] is what goes into the device's
    /// MSI capability or MSI-X table. The interrupt passes when the result was flushed.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<(InterruptHandle, Pending), InterruptError> {
        either!(self, unit => unit.allocate_interrupt(source, target))
    }

    /// As [`allocate_interrupt`](Self::allocate_interrupt), for an index that is given: what the
    /// device or an I/O APIC pin already sends.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn set_interrupt(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, InterruptError> {
        either!(self, unit => unit.set_interrupt(handle, target))
    }

    /// Sends the interrupts of an entry elsewhere, without losing one.
    ///
    /// # Errors
    /// See [`InterruptError`].
    pub fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, InterruptError> {
        either!(self, unit => unit.retarget(handle, target))
    }

    /// Drops the interrupts of an entry from now on. When the result was flushed, none is raised
    /// any more and the handle can be given out again.
    ///
    /// # Errors
    /// [`InterruptError::NotSet`].
    pub fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<Pending, InterruptError> {
        either!(self, unit => unit.clear_interrupt(handle))
    }

    /// Drops all interrupts of a device from now on, see [`clear_interrupt`](Self::clear_interrupt).
    pub fn clear_interrupts(&mut self, source: RequesterId) -> Pending {
        either!(self, unit => unit.clear_interrupts(source))
    }

    /// The entry with this handle; `None` where it is not set.
    #[must_use]
    pub fn interrupt(&self, handle: InterruptHandle) -> Option<Interrupt> {
        either!(self, unit => unit.interrupt(handle))
    }

    /// Every entry that is set.
    pub fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        let (vtd, amd) = match self {
            Self::VtD(unit) => (Some(unit.interrupts()), None),
            Self::AmdVi(unit) => (None, Some(unit.interrupts())),
        };
        vtd.into_iter().flatten().chain(amd.into_iter().flatten())
    }

    /// Every entry of one device that is set.
    pub fn interrupts_of(&self, source: RequesterId) -> impl Iterator<Item = Interrupt> + '_ {
        self.interrupts()
            .filter(move |interrupt| interrupt.handle.source == source)
    }

    // Invalidation.

    /// Gives a batch of changes to the unit, with one register write. The batches of several units
    /// can be submitted before any is waited for, so that the waits overlap.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn submit(&mut self, pending: Pending) -> Result<Submitted, InvalidateError> {
        either!(self, unit => unit.submit(pending))
    }

    /// Waits until a batch is done. Then what it retired is free: blocked devices can be attached
    /// anew, cleared interrupt entries and unlinked tables are used again.
    ///
    /// # Errors
    /// See [`InvalidateError`]. What was to be retired stays as it is, blocked and not reusable,
    /// until [`invalidate_everything`](Self::invalidate_everything) succeeds.
    pub fn wait(&mut self, submitted: Submitted) -> Result<(), InvalidateError> {
        either!(self, unit => unit.wait(submitted))
    }

    /// [`submit`](Self::submit) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn flush(&mut self, pending: Pending) -> Result<(), InvalidateError> {
        either!(self, unit => unit.flush(pending))
    }

    /// Invalidates every cache of the unit and finishes every retirement that was begun, also
    /// those whose [`Pending`] was lost or whose wait failed.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn invalidate_everything(&mut self) -> Result<(), InvalidateError> {
        either!(self, unit => unit.invalidate_everything())
    }

    /// Makes the queue run again where it stopped at an error, and invalidates everything then.
    /// Waits do this by themselves; it is for a fault handler that finds the error first. Returns
    /// whether there was an error.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn recover_queue(&mut self) -> Result<bool, InvalidateError> {
        either!(self, unit => unit.recover_queue())
    }

    // Faults.

    /// Hands every recorded fault to `each`, oldest first, and makes room for new ones. At most as
    /// many as the unit has room for; where there are more, [`FaultCount::more`] says so.
    ///
    /// # Errors
    /// Where the unit is gone, or does not record again.
    pub fn drain_faults(&mut self, each: impl FnMut(Fault)) -> Result<FaultCount, RegisterError> {
        either!(self, unit => unit.drain_faults(each))
    }

    /// Keeps the unit from recording the faults of one device, or lets it record them again. The
    /// device stays as blocked as it is: this is for one that makes faults faster than anybody can
    /// look at them.
    ///
    /// # Errors
    /// [`AttachError::ArenaFull`].
    pub fn silence(
        &mut self,
        requester: RequesterId,
        silent: bool,
    ) -> Result<Pending, AttachError> {
        either!(self, unit => unit.silence(requester, silent))
    }

    /// Changes the message that announces a fault, or switches it off. A new steward must do this:
    /// the message names one of the old one's processors.
    ///
    /// AMD-Vi: the message itself is for whoever writes configuration space, see
    /// [`Config::fault_message`].
    ///
    /// # Errors
    /// Where the unit does not take it.
    pub fn set_fault_message(
        &mut self,
        message: Option<InterruptMessage>,
    ) -> Result<(), RegisterError> {
        match self {
            Self::VtD(unit) => unit.set_fault_message(message),
            Self::AmdVi(unit) => unit.set_fault_interrupt(message.is_some()),
        }
    }
}
