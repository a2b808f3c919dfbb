//! What one kernel knows and holds of the machine it shares.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use handoff_abi::{
    AbiVersion, ApicId, Console, DomainId, Exchange, FRAME_SIZE, InterruptHandle, Ledger, Owner,
    PartitionId, PciFunction, PhysAddr, PhysRange, Speaks, UnitKind, Workload, resource,
};
use iommu::mmio::{CacheFlush, DirectMemory, Mmio};
use iommu::{Access as DmaAccess, Deadline, Pending};
use partition_core::baton::Baton;
use partition_core::ledger::{LedgerView, Steward};
use partition_core::park::ParkArea;
use partition_core::trampoline::Trampoline;
use partition_core::watch::OwnStatus;
use spin::Mutex;

use super::faults::Faults;
use super::fence::Fence;
use super::launch::Launched;
use super::misbehave::Misbehaviour;
use crate::mark::{WAIT, WAITED, mark};
use crate::memory::{Carver, Frames};
use crate::paging::{Access, AddressSpace};
use crate::{clock, mmio};

/// What makes one example kernel another than the next.
#[derive(Debug)]
pub struct Config {
    /// Its name.
    pub name: &'static str,
    /// The letter it signs replies with.
    pub letter: u8,
    /// The versions it reads and writes, and what it can do.
    pub speaks: Speaks,
    /// Where it maps physical memory.
    pub window: u64,
    /// Bytes of its heap.
    pub heap: u64,
    /// Gives memory to its allocator.
    ///
    /// # Safety
    /// The memory is mapped in the window and nobody else's.
    pub add_heap: unsafe fn(PhysRange),
}

/// The remapping unit, of either vendor, as these kernels drive it.
pub type Unit = iommu::Unit<Mmio, DirectMemory, Timer>;

/// The clock that bounds every poll of the libraries.
#[derive(Debug, Default)]
pub struct Timer(clock::Deadline);

impl Deadline for Timer {
    fn start(&mut self, microseconds: u32) {
        self.0 = clock::Deadline::after(microseconds.into());
    }

    fn expired(&mut self) -> bool {
        self.0.expired()
    }
}

/// The clock that bounds a wait for a processor or for another kernel. Such a wait is always counted
/// as one, even where the other was quick: how quick depends on who runs when. It is over when this
/// is dropped.
#[derive(Debug, Default)]
pub struct Patience {
    timer: Timer,
    waiting: bool,
}

impl Deadline for Patience {
    fn start(&mut self, microseconds: u32) {
        if !core::mem::replace(&mut self.waiting, true) {
            mark::<WAIT>();
        }
        self.timer.start(microseconds);
    }

    fn expired(&mut self) -> bool {
        self.timer.expired()
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if self.waiting {
            mark::<WAITED>();
        }
    }
}

/// Why a step failed, as a sentence for the person who watches.
#[derive(Debug)]
pub struct Failure {
    /// The sentence.
    pub text: String,
    /// Whether it was refused before anything was touched.
    pub refused: bool,
}

impl<E: core::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::from_error(error)
    }
}

impl Failure {
    /// The sentence of an error.
    pub fn from_error(error: impl core::error::Error) -> Self {
        Self {
            text: alloc::format!("{error}"),
            refused: false,
        }
    }

    /// The same, where nothing was touched.
    #[must_use]
    pub fn refusal(self) -> Self {
        Self {
            refused: true,
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A failure with this sentence.
macro_rules! failure {
    ($($argument:tt)*) => { $crate::swap::kernel::Failure {
        text: alloc::format!($($argument)*),
        refused: false,
    } };
}
pub(crate) use failure;

/// The machine as one kernel has it. The control processor holds it.
#[derive(Debug)]
pub struct Kernel {
    /// Which kernel.
    pub config: &'static Config,
    /// Its partition.
    pub me: PartitionId,
    /// The version of the handoff it was launched with, or the newest it speaks.
    pub version: AbiVersion,
    /// Where the baton's parts are.
    pub baton: Baton,
    /// The ledger.
    pub ledger: &'static Ledger,
    /// Status and mailboxes.
    pub exchange: &'static Exchange,
    /// Its own place in the exchange.
    pub status: OwnStatus<'static>,
    /// The park area.
    pub park: ParkArea<'static>,
    /// Its own trampoline.
    pub trampoline: Trampoline<'static>,
    /// Where the trampoline is.
    pub trampoline_page: PhysAddr,
    /// The machine's bootstrap processor.
    pub bootstrap: ApicId,
    /// Its page tables.
    pub space: AddressSpace,
    /// Frames for them.
    pub frames: Frames,
    /// Its memory that is not in use.
    pub memory: Carver,
    /// The right to write the ledger, while it is the steward.
    pub steward: Option<Steward<'static>>,
    /// The remapping unit, while it is the steward.
    pub unit: Option<Fence>,
    /// The register window of the unit.
    pub unit_window: PhysRange,
    /// The architecture of the unit; `None` where there is none.
    pub unit_kind: Option<UnitKind>,
    /// What the unit recorded, while it is the steward.
    pub faults: Faults,
    /// The domain of its devices.
    pub domain: DomainId,
    /// The workload.
    pub workload: Workload,
    /// The functions it drives.
    pub functions: Vec<PciFunction>,
    /// The interrupt entries it knows of: of its own functions and the workload's.
    pub handles: Vec<InterruptHandle>,
    /// The partition it launched, until that has taken everything over.
    pub successor: Option<Launched>,
    /// The highest number it has given to a partition.
    pub launches: u16,
    /// The partition that launched it, until everything of that is reclaimed.
    pub prime: Option<PartitionId>,
    /// The archive of images.
    pub modules: PhysRange,
    /// Swaps since power-on.
    pub swaps: u64,
    /// Its console.
    pub console: Console,
    /// The processor that serves.
    pub service_cpu: ApicId,
    /// Whether it has said that the commit has come and is held.
    pub held: bool,
    /// What it was told to do wrong.
    pub misbehaviour: Misbehaviour,
}

/// The kernel, handed from one control processor to the next.
pub static KERNEL: Mutex<Option<Box<Kernel>>> = Mutex::new(None);

/// The pieces in which memory is mapped for devices, so that any part at a multiple of 2 MiB can be
/// taken out again.
pub fn dma_pieces(range: PhysRange) -> impl Iterator<Item = PhysRange> {
    const PIECE: u64 = 2 << 20;
    let mut at = range.base();
    core::iter::from_fn(move || {
        let end = (at.0 + 1).next_multiple_of(PIECE).min(range.end().0);
        let piece = PhysRange::from_bounds(at, PhysAddr(end));
        at = PhysAddr(end.max(at.0));
        (!piece.is_empty()).then_some(piece)
    })
}

/// The first address that devices of a partition may reach: what is below is firmware's and the
/// trampolines'.
pub const DMA_FLOOR: u64 = 1 << 20;

impl Kernel {
    /// The ledger, to be read.
    #[must_use]
    pub fn view(&self) -> Option<LedgerView<'static>> {
        LedgerView::new(self.ledger).ok()
    }

    /// The right to write the ledger.
    ///
    /// # Errors
    /// Where this kernel is not the steward.
    pub fn steward(&mut self) -> Result<&mut Steward<'static>, Failure> {
        let me = self.me;
        self.steward
            .as_mut()
            .ok_or_else(|| failure!("partition {me} is not the steward"))
    }

    /// The remapping unit.
    ///
    /// # Errors
    /// Where this kernel does not drive it.
    pub fn unit(&mut self) -> Result<&mut Fence, Failure> {
        let me = self.me;
        self.unit
            .as_mut()
            .ok_or_else(|| failure!("partition {me} does not drive the remapping unit"))
    }

    /// What this kernel owns.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        Owner::Partition(self.me)
    }

    /// Memory of an owner, as the ledger has it.
    #[must_use]
    pub fn memory_of(&self, owner: Owner) -> Vec<PhysRange> {
        let mut all: Vec<_> = self
            .view()
            .into_iter()
            .flat_map(|view| view.owned_by(owner))
            .filter_map(|entry| entry.range())
            .collect();
        all.sort();
        all
    }

    /// Processors of an owner, as the ledger has them.
    #[must_use]
    pub fn cpus_of(&self, owner: Owner) -> Vec<ApicId> {
        self.view()
            .into_iter()
            .flat_map(|view| view.owned_by(owner))
            .filter(|entry| entry.kind == resource::CPU)
            .map(|entry| ApicId(entry.base as u32))
            .collect()
    }

    /// Maps memory into the window.
    ///
    /// # Errors
    /// Where frames for tables are short, or something else is mapped there.
    pub fn map(&mut self, range: PhysRange, access: Access) -> Result<(), Failure> {
        self.space
            .map_window(self.config.window, range, access, &mut self.frames)?;
        Ok(())
    }

    /// Lets devices of `domain` reach `range`.
    ///
    /// # Errors
    /// Where the unit's tables are full, or a part is mapped already.
    pub fn map_dma(&mut self, domain: DomainId, range: PhysRange) -> Result<(), Failure> {
        let range = PhysRange::from_bounds(PhysAddr(range.base().0.max(DMA_FLOOR)), range.end());
        let unit = self.unit()?;
        let mut pending = Pending::none();
        for piece in dma_pieces(range) {
            match unit.map(domain, piece.base().0, piece, DmaAccess::READ_WRITE) {
                Ok(more) => pending = pending.merge(more),
                Err(error) => {
                    unit.flush(pending)?;
                    return Err(error);
                }
            }
        }
        unit.flush(pending)?;
        Ok(())
    }

    /// Takes `range` out of the reach of the devices of `domain`.
    ///
    /// # Errors
    /// Where a part is not mapped in pieces of its own.
    pub fn unmap_dma(&mut self, domain: DomainId, range: PhysRange) -> Result<(), Failure> {
        let range = PhysRange::from_bounds(PhysAddr(range.base().0.max(DMA_FLOOR)), range.end());
        if range.is_empty() {
            return Ok(());
        }
        let unit = self.unit()?;
        let pending = unit.unmap(domain, range.base().0, range.length())?;
        unit.flush(pending)?;
        Ok(())
    }
}

/// A reference to a live area of the baton.
///
/// # Safety
/// `T` is made of atomics only, the range is as long as a `T`, and the window maps it for good.
#[must_use]
pub unsafe fn shared<T>(range: PhysRange) -> &'static T {
    let area = mmio::pointer(range.base()).cast::<T>();
    // SAFETY: the caller's promise; extents begin at page boundaries.
    unsafe { area.as_ref() }
}

/// The unit's registers and its memory, as the driver wants them.
///
/// # Safety
/// `window` is the register window of a remapping unit that this kernel alone drives, `arena` its
/// tables, and the kernel's window maps both for good.
#[must_use]
pub unsafe fn unit_parts(window: PhysRange, arena: PhysRange) -> (Mmio, DirectMemory, Timer) {
    let registers = mmio::pointer(window.base());
    // SAFETY: the caller's promise.
    let registers = unsafe { Mmio::new(registers, window.length() as usize) };
    let memory = mmio::pointer(arena.base());
    // SAFETY: the caller's promise; every processor with 64-bit mode has CLFLUSH.
    let memory = unsafe { DirectMemory::new(arena, memory, CacheFlush::Clflush) };
    (registers, memory, Timer::default())
}

/// Copies memory that another kernel may write out, once.
///
/// # Safety
/// The window maps the range.
#[must_use]
pub unsafe fn copy_out(range: PhysRange) -> Vec<u8> {
    let mut copy = Vec::with_capacity(range.length() as usize);
    let (mut at, end) = (range.base().0, range.end().0);
    while at < end {
        let from = mmio::pointer(PhysAddr(at));
        if at.is_multiple_of(8) && end - at >= 8 {
            // SAFETY: the caller's promise; volatile, because the other side may write meanwhile.
            let word = unsafe { from.cast::<u64>().read_volatile() };
            copy.extend_from_slice(&word.to_ne_bytes());
            at += 8;
        } else {
            // SAFETY: as above.
            copy.push(unsafe { from.read_volatile() });
            at += 1;
        }
    }
    copy
}

/// Copies bytes into memory that is another kernel's to read.
///
/// # Safety
/// The window maps the memory writable, and no object of this kernel is there.
pub unsafe fn copy_in(at: PhysAddr, bytes: &[u8]) {
    let to = mmio::pointer(at);
    // SAFETY: the caller's promise; the source is this kernel's own.
    unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
}

/// Fills memory with zeros.
///
/// # Safety
/// As for [`copy_in`].
pub unsafe fn zero(at: PhysAddr, length: u64) {
    let to = mmio::pointer(at);
    // SAFETY: the caller's promise.
    unsafe { to.write_bytes(0, length as usize) };
}

/// The page that holds an address.
#[must_use]
pub fn page_of(address: PhysAddr) -> PhysRange {
    let base = PhysAddr(address.0 & !(FRAME_SIZE - 1));
    PhysRange::from_bounds(base, PhysAddr(base.0 + FRAME_SIZE))
}
