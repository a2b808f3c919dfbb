//! What the drivers of both vendors do alike: domains, devices, batches and moves.
//!
//! The vendors differ in where a device's entry lies and how it looks, in how the unit is told of a
//! change, and in how interrupt entries are kept: that is what [`Vendor`] has.

mod adopt;
mod batches;
mod closing;
mod devices;
mod domains;
mod moves;
mod switch;

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};

pub(crate) use self::adopt::{Walk, check_recorded};
pub(crate) use self::closing::{Running, place};
use self::switch::Spare;
use crate::arena::Arena;
use crate::domain::{Bounds, Domains};
use crate::paging::{PagingEntry, Shape};
use crate::tables::Tables;
use crate::{AttachError, InvalidateError, Pending, RegisterError, TableMemory};

/// Whether the unit uses the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not yet: they can be changed without telling it.
    Prepared,
    /// From some step of bringing it up on.
    InUse,
}

/// What a device's entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It reaches nothing, and the unit has nothing of it in its caches.
    Blocked,
    /// It was in this domain and is blocked in the tables; the unit may not know yet.
    Retiring(DomainId),
    /// It is in this domain.
    Attached(DomainId),
}

/// What a vendor's units have that the other's have not: their registers, and how they want it said.
///
/// The tables that say which domain a device is in hang from one address, the *top*: VT-d's root
/// table, AMD-Vi's device table.
pub trait Vendor: Sized {
    /// An entry of a page table.
    type Entry: PagingEntry;
    /// Whether interrupt entries are invalidated for a device all at once, so that all its retired
    /// ones have to be looked for.
    const INTERRUPTS_BY_DEVICE: bool;
    /// Whether an entry that blocks is cached like any other on every unit.
    const BLOCKED_IS_CACHED: bool;

    /// The first domain id that the unit does not have.
    fn domain_limit(&self) -> u32;
    /// What mappings keep to, and the depth and leaves of tables.
    fn bounds(&self, arena: PhysRange) -> Bounds;
    /// The tables of a domain with this root.
    fn shape(&self, root: PhysAddr) -> Shape;
    /// Whether what is not present may be cached (VT-d: CM; AMD-Vi: `NpCache`).
    fn caches_not_present(&self) -> bool;
    /// Whether one batch of the same length invalidates all devices, however many.
    fn invalidates_all(&self) -> bool;

    /// The number that the wait of the next batch will have.
    fn next_sequence(&self) -> u64;
    /// Gives a batch to the unit. `more` are devices whose entries changed besides. Returns the
    /// number of its wait, or `None` where the unit has nothing to do.
    fn submit<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        pending: &Pending,
        more: &[RequesterId],
    ) -> Result<Option<u64>, InvalidateError>;
    /// Waits until the batch of this number is done, which is submitted again where it got lost.
    /// Returns the number of the wait that was done.
    fn await_batch<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        sequence: u64,
        pending: &Pending,
        more: &[RequesterId],
    ) -> Result<u64, InvalidateError>;

    /// What a device's entry in the tables below `top` says.
    fn device_state<M: TableMemory>(
        unit: &Driver<Self, M>,
        top: PhysAddr,
        requester: RequesterId,
    ) -> DeviceState;
    /// Makes room for a device's entry, where there may be none.
    fn make_entry<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        requester: RequesterId,
    ) -> Result<(), AttachError>;
    /// Writes the entry of a device that is blocked, or whose retirement was proved.
    fn write_attached<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        requester: RequesterId,
        domain: DomainId,
        root: PhysAddr,
    );
    /// Blocks a device by one store, of which the unit may have a cached entry.
    fn write_retiring<M: TableMemory>(unit: &mut Driver<Self, M>, requester: RequesterId);
    /// Takes away what is left of the entry of a device whose retirement was proved.
    fn write_blocked<M: TableMemory>(unit: &mut Driver<Self, M>, requester: RequesterId);
    /// Every device below `top` that may be anything but blocked.
    fn devices<M: TableMemory>(
        unit: &Driver<Self, M>,
        top: PhysAddr,
    ) -> impl Iterator<Item = RequesterId> + use<Self, M>;
    /// Zeroes retired interrupt entries of a device: one, or all where they are invalidated so.
    fn empty_interrupt<M: TableMemory>(unit: &mut Driver<Self, M>, source: RequesterId, index: u16);
    /// Zeroes every retired interrupt entry.
    fn empty_interrupts<M: TableMemory>(unit: &mut Driver<Self, M>);
    /// Frees what else a batch proves unused.
    fn release<M: TableMemory>(unit: &mut Driver<Self, M>, pending: &Pending, proved: u64);

    /// A top of which the unit knows nothing and below which every device is blocked.
    fn make_top<M: TableMemory>(unit: &mut Driver<Self, M>) -> Option<PhysAddr>;
    /// Makes the tables below `top` as those in force, but for `devices`, which go to the domain `to`
    /// with its root, or to none. `None` where the arena has too few frames.
    fn fill<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        top: PhysAddr,
        devices: &[RequesterId],
        to: Option<(DomainId, PhysAddr)>,
    ) -> Option<()>;
    /// Tells the unit to use the tables below `top`.
    fn exchange<M: TableMemory>(
        unit: &mut Driver<Self, M>,
        top: PhysAddr,
    ) -> Result<(), RegisterError>;
}

/// One unit with its tables: see [`vtd::Unit`](crate::vtd::Unit) and
/// [`amd::Unit`](crate::amd::Unit), which are this with what one vendor's have besides.
///
/// It owns its register window, its table memory and a clock.
#[derive(Debug)]
pub struct Driver<V, M> {
    pub(crate) vendor: V,
    pub(crate) tables: Tables<M>,
    pub(crate) arena: Arena,
    pub(crate) window: PhysRange,
    pub(crate) domains: Domains,
    pub(crate) phase: Phase,
    /// The root table or device table.
    pub(crate) top: PhysAddr,
    /// The number of the first batch that proves the retirement of the device or interrupt entry
    /// that was retired last.
    pub(crate) last_retirement: Option<u64>,
    /// How many device and interrupt entries were put into force, modulo 2^32.
    pub(crate) installs: u32,
    /// The other top, where there is one.
    pub(crate) spare: Option<Spare>,
    /// Goes up with every change of a device's entry, which prepared tables have to follow.
    pub(crate) generation: u64,
}

impl<V, M> Driver<V, M> {
    pub(crate) fn new(
        vendor: V,
        tables: Tables<M>,
        arena: Arena,
        window: PhysRange,
        top: PhysAddr,
    ) -> Self {
        Self {
            vendor,
            tables,
            arena,
            window,
            domains: Domains::default(),
            phase: Phase::Prepared,
            top,
            last_retirement: None,
            installs: 0,
            spare: None,
            generation: 0,
        }
    }

    /// Where its registers lie.
    #[must_use]
    pub const fn window(&self) -> PhysRange {
        self.window
    }

    /// The memory of its tables and queues.
    #[must_use]
    pub const fn arena(&self) -> PhysRange {
        self.arena.range()
    }

    /// How many frames of the arena are free.
    #[must_use]
    pub const fn free_frames(&self) -> usize {
        self.arena.free_frames()
    }

    /// Whether the unit has never seen these tables.
    pub(crate) const fn is_prepared(&self) -> bool {
        matches!(self.phase, Phase::Prepared)
    }

    /// The domains it has.
    pub fn domain_ids(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.domains.ids()
    }

    /// A change that leaves nothing to invalidate but a write buffer.
    pub(crate) fn pending(&self) -> Pending {
        Pending::stored(self.window.base())
    }
}
