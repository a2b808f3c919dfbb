//! A virtqueue whose whole state is in shared memory: a split ring (Virtual I/O Device 1.2, section
//! 2.7) and, beside it, what the driver has to remember.
//!
//! [`Queue`] keeps no cursor of its own, so a kernel can lay one over a live ring long before it
//! takes the ring over, and go on exactly where the other kernel stopped. Addresses are the
//! device's: with VIRTIO_F_ACCESS_PLATFORM IO virtual addresses, here the same as physical ones.
//!
//! Indirect descriptors, event indices and in-order use are not negotiated.

use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};

use crate::memory::{Memory, PAGE, shared};

/// The largest ring that the driver's state has room for.
pub const MAX_SIZE: u16 = 256;

/// VIRTQ_DESC_F_NEXT: another descriptor follows.
const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes.
const WRITE: u16 = 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;

shared! {
    /// A descriptor (section 2.7.5).
    Descriptor, 16 {
        /// The buffer's address, as the device sees it.
        address: AtomicU64 = 0,
        /// Its length in bytes.
        length: AtomicU32 = 8,
        /// NEXT, WRITE.
        flags: AtomicU16 = 12,
        /// The next descriptor of the chain, with NEXT.
        next: AtomicU16 = 14,
    }
}
shared! {
    /// What both the available and the used ring begin with (sections 2.7.6 and 2.7.8).
    RingHeader, 4 {
        /// What one side asks of the other.
        flags: AtomicU16 = 0,
        /// Where the next entry goes; counts on past the size, modulo 65536.
        index: AtomicU16 = 2,
    }
}
shared! {
    /// An entry of the used ring (section 2.7.8).
    UsedElement, 8 {
        /// The first descriptor of the chain.
        id: AtomicU32 = 0,
        /// How many bytes the device wrote to it.
        length: AtomicU32 = 4,
    }
}
shared! {
    /// What the driver remembers.
    DriverState, 80 {
        /// The ring's size, to notice a wrong one.
        size: AtomicU32 = 0,
        /// How far the used ring has been taken, modulo 65536.
        last_used: AtomicU32 = 4,
        /// How often the device broke the rules.
        violations: AtomicU64 = 8,
        /// Descriptors that are part of a chain the device owns, one bit each.
        busy: [AtomicU64; 4] = 16,
        /// Those of them that begin a chain.
        heads: [AtomicU64; 4] = 48,
    }
}

/// Where the device finds a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring, which the driver writes.
    pub available: u64,
    /// The used ring, which the device writes.
    pub used: u64,
}

/// A piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// As the device sees it.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether the device writes it; else it reads it.
    pub device_writes: bool,
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u16,
    /// How many bytes the device says it wrote. Not checked: the caller knows how many there are.
    pub length: u32,
}

/// Why a ring cannot be laid out or taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueError {
    /// The size is not a power of two, or more than [`MAX_SIZE`].
    Size(u32),
    /// The ring does not lie in the memory at a page boundary.
    Place(u64),
    /// The state that was found there is of another size.
    OtherSize {
        /// The size in the driver's state.
        found: u32,
        /// The size that was asked for.
        wanted: u16,
    },
    /// The cursors contradict each other.
    Cursors {
        /// How far the driver has made chains available.
        available: u16,
        /// How far the device has used them.
        used: u16,
        /// How far the driver has taken those back.
        last_used: u32,
        /// How many chains are said to be out.
        chains: u32,
    },
    /// A descriptor is said to be out that does not exist, or a chain begins with one that is not.
    Descriptors,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "a ring cannot have {size} descriptors"),
            Self::Place(offset) => write!(f, "there is no place for a ring at {offset:#x}"),
            Self::OtherSize { found, wanted } => {
                write!(f, "the ring has {found} descriptors, not {wanted}")
            }
            Self::Cursors {
                available,
                used,
                last_used,
                chains,
            } => write!(
                f,
                "available {available}, used {used}, taken {last_used} and {chains} chains out \
                 cannot be"
            ),
            Self::Descriptors => f.write_str("a descriptor is out that cannot be"),
        }
    }
}

impl core::error::Error for QueueError {}

/// Why a chain was not submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubmitError {
    /// There are not enough free descriptors.
    Full,
    /// The chain is empty, or longer than the ring, or a segment that the device reads follows one
    /// that it writes.
    Chain,
    /// The descriptor asked for is not free.
    Busy(u16),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::Chain => f.write_str("such a chain cannot be submitted"),
            Self::Busy(id) => write!(f, "descriptor {id} is not free"),
        }
    }
}

impl core::error::Error for SubmitError {}

/// The device broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// It gave back a chain that it does not own. The entry was skipped.
    NotOwned {
        /// The descriptor it named.
        id: u32,
    },
    /// It says that it used more chains than it was given. Nothing that it says can be believed
    /// any more, and nothing was skipped: the device has to be reset.
    Index {
        /// Its index.
        used: u16,
        /// Up to where it had been given chains.
        available: u16,
    },
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOwned { id } => {
                write!(f, "the device gave back chain {id}, which it does not own")
            }
            Self::Index { used, available } => write!(
                f,
                "the device has used {used} chains and was given {available}"
            ),
        }
    }
}

impl core::error::Error for DeviceError {}

/// A view of a ring. At most one kernel may use it to change the ring at any time, by agreement;
/// any number may hold one.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    size: u16,
    offset: u64,
    descriptors: &'a [Descriptor],
    available: &'a RingHeader,
    available_ring: &'a [AtomicU16],
    used: &'a RingHeader,
    used_ring: &'a [UsedElement],
    state: &'a DriverState,
}

/// Offsets of available ring, used ring and state from the start, and the whole length.
const fn offsets(size: u16) -> [u64; 4] {
    let size = size as u64;
    let available = (16 * size).next_multiple_of(PAGE);
    let used = available + (6 + 2 * size).next_multiple_of(PAGE);
    let state = used + (6 + 8 * size).next_multiple_of(PAGE);
    [available, used, state, state + PAGE]
}

impl<'a> Queue<'a> {
    /// Bytes that a ring of `size` takes, with the driver's state.
    #[must_use]
    pub const fn bytes(size: u16) -> u64 {
        offsets(size)[3]
    }

    fn view(memory: &Memory<'a>, offset: u64, size: u16) -> Result<Self, QueueError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueError::Size(u32::from(size)));
        }
        let place = || {
            if !offset.is_multiple_of(PAGE) {
                return None;
            }
            let count = usize::from(size);
            let [available, used, state, end] = offsets(size);
            if offset.checked_add(end)? > memory.length() {
                return None;
            }
            Some(Self {
                size,
                offset,
                descriptors: memory.slice(offset, count)?,
                available: memory.get(offset + available)?,
                available_ring: memory.slice(offset + available + 4, count)?,
                used: memory.get(offset + used)?,
                used_ring: memory.slice(offset + used + 4, count)?,
                state: memory.get(offset + state)?,
            })
        };
        place().ok_or(QueueError::Place(offset))
    }

    /// Lays out an empty ring at `offset`. The device must not know of it yet.
    ///
    /// # Errors
    /// Where the size or the place is impossible.
    pub fn create(memory: &Memory<'a>, offset: u64, size: u16) -> Result<Self, QueueError> {
        let queue = Self::view(memory, offset, size)?;
        let words = memory
            .slice::<AtomicU64>(offset, (Self::bytes(size) / 8) as usize)
            .ok_or(QueueError::Place(offset))?;
        words.iter().for_each(|word| word.store(0, Relaxed));
        queue.state.size.store(u32::from(size), Relaxed);
        Ok(queue)
    }

    /// Lays a view over the ring at `offset`, changing nothing. The ring may be in use by another
    /// kernel meanwhile; before this one uses it, it should [`check`](Self::check).
    ///
    /// # Errors
    /// Where the size or the place is impossible, or there is no ring of that size.
    pub fn adopt(memory: &Memory<'a>, offset: u64, size: u16) -> Result<Self, QueueError> {
        let queue = Self::view(memory, offset, size)?;
        let found = queue.state.size.load(Relaxed);
        if found != u32::from(size) {
            return Err(QueueError::OtherSize {
                found,
                wanted: size,
            });
        }
        Ok(queue)
    }

    /// Whether the cursors make sense together. Holds whenever nobody is in the middle of a change;
    /// the device may go on using chains.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> Result<(), QueueError> {
        let available = self.available.index.load(Relaxed);
        let used = self.used.index.load(Acquire);
        let last_used = self.state.last_used.load(Relaxed);
        let mut chains = 0;
        let mut wrong = false;
        for (word, (busy, heads)) in self.state.busy.iter().zip(&self.state.heads).enumerate() {
            let (busy, heads) = (busy.load(Relaxed), heads.load(Relaxed));
            let exist = match usize::from(self.size).saturating_sub(word * 64) {
                64.. => u64::MAX,
                some => (1 << some) - 1,
            };
            wrong |= busy & !exist != 0 || heads & !busy != 0;
            chains += heads.count_ones();
        }
        if wrong {
            return Err(QueueError::Descriptors);
        }
        let taken = u16::try_from(last_used).ok();
        let agree = taken.is_some_and(|taken| {
            let out = available.wrapping_sub(taken);
            u32::from(out) == chains && used.wrapping_sub(taken) <= out
        });
        if !agree {
            return Err(QueueError::Cursors {
                available,
                used,
                last_used,
                chains,
            });
        }
        Ok(())
    }

    /// How many descriptors it has.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Where the device finds it, if the memory begins at `base` for the device.
    #[must_use]
    pub const fn addresses(&self, base: u64) -> RingAddresses {
        let [available, used, ..] = offsets(self.size);
        let descriptors = base + self.offset;
        RingAddresses {
            descriptors,
            available: descriptors + available,
            used: descriptors + used,
        }
    }

    /// The descriptor `id` as it stands; `None` where there is none.
    #[must_use]
    pub fn descriptor(&self, id: u16) -> Option<Segment> {
        let descriptor = self.descriptors.get(usize::from(id))?;
        Some(Segment {
            address: descriptor.address.load(Relaxed),
            length: descriptor.length.load(Relaxed),
            device_writes: descriptor.flags.load(Relaxed) & WRITE != 0,
        })
    }

    /// Whether descriptor `id` is part of a chain that the device owns.
    #[must_use]
    pub fn is_busy(&self, id: u16) -> bool {
        bit(&self.state.busy, id)
    }

    /// A descriptor that is free; `None` where all are busy.
    #[must_use]
    pub fn free(&self) -> Option<u16> {
        let words = self.state.busy.iter().zip((0_u16..).step_by(64));
        for (word, first) in words {
            let id = first + (!word.load(Relaxed)).trailing_zeros() as u16;
            if id >= self.size {
                return None;
            }
            if id < first + 64 {
                return Some(id);
            }
        }
        None
    }

    /// How many descriptors are free.
    #[must_use]
    pub fn free_count(&self) -> u16 {
        let busy: u32 = self
            .state
            .busy
            .iter()
            .map(|word| word.load(Relaxed).count_ones())
            .sum();
        self.size.saturating_sub(busy as u16)
    }

    /// Gives the device a chain, and says which descriptor it begins with. The device sees it at
    /// once, but need not look before it is notified ([`wants_notification`](Self::wants_notification)).
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has changed then.
    pub fn submit(&mut self, chain: &[Segment]) -> Result<u16, SubmitError> {
        let ordered = chain.is_sorted_by_key(|segment| segment.device_writes);
        if chain.is_empty() || chain.len() > usize::from(self.size) || !ordered {
            return Err(SubmitError::Chain);
        }
        if chain.len() > usize::from(self.free_count()) {
            return Err(SubmitError::Full);
        }
        // From the last segment to the first, so that each knows its successor.
        let mut next = None;
        for segment in chain.iter().rev() {
            let id = self.free().ok_or(SubmitError::Full)?;
            self.fill(id, segment, next);
            next = Some(id);
        }
        let head = next.ok_or(SubmitError::Chain)?;
        self.publish(head);
        Ok(head)
    }

    /// Gives the device a chain of the one descriptor `id`, for rings where descriptors and buffers
    /// belong together.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has changed then.
    pub fn submit_at(&mut self, id: u16, segment: &Segment) -> Result<(), SubmitError> {
        if id >= self.size {
            return Err(SubmitError::Chain);
        }
        if self.is_busy(id) {
            return Err(SubmitError::Busy(id));
        }
        self.fill(id, segment, None);
        self.publish(id);
        Ok(())
    }

    fn fill(&mut self, id: u16, segment: &Segment, next: Option<u16>) {
        let Some(descriptor) = self.descriptors.get(usize::from(id)) else {
            return;
        };
        let flags = if segment.device_writes { WRITE } else { 0 } | next.map_or(0, |_| NEXT);
        descriptor.address.store(segment.address, Relaxed);
        descriptor.length.store(segment.length, Relaxed);
        descriptor.flags.store(flags, Relaxed);
        descriptor.next.store(next.unwrap_or(0), Relaxed);
        set(&self.state.busy, id, true);
    }

    fn publish(&mut self, head: u16) {
        set(&self.state.heads, head, true);
        let index = self.available.index.load(Relaxed);
        if let Some(entry) = self
            .available_ring
            .get(usize::from(index & (self.size - 1)))
        {
            entry.store(head, Relaxed);
        }
        // The device must not see the index before the entry and the descriptors.
        self.available.index.store(index.wrapping_add(1), Release);
    }

    /// Whether the device wants to be notified of what was submitted since it was last asked.
    #[must_use]
    pub fn wants_notification(&self) -> bool {
        // The index must be visible before the flag is read: a load may pass an earlier store.
        fence(SeqCst);
        self.used.flags.load(Relaxed) & NO_NOTIFY == 0
    }

    /// Whether something has come back.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.used.index.load(Acquire) != self.state.last_used.load(Relaxed) as u16
    }

    /// Takes the next chain that came back, and frees its descriptors.
    ///
    /// # Errors
    /// Where the device broke the rules.
    pub fn take_used(&mut self) -> Result<Option<Used>, DeviceError> {
        let used = self.used.index.load(Acquire);
        let last = self.state.last_used.load(Relaxed) as u16;
        if used == last {
            return Ok(None);
        }
        let available = self.available.index.load(Relaxed);
        let violation = |error| {
            self.state.violations.fetch_add(1, Relaxed);
            Err(error)
        };
        if used.wrapping_sub(last) > available.wrapping_sub(last) {
            return violation(DeviceError::Index { used, available });
        }
        let Some(element) = self.used_ring.get(usize::from(last & (self.size - 1))) else {
            return Ok(None);
        };
        let (id, length) = (element.id.load(Relaxed), element.length.load(Relaxed));
        self.state
            .last_used
            .store(u32::from(last.wrapping_add(1)), Relaxed);
        let head = match u16::try_from(id) {
            Ok(head) if head < self.size && bit(&self.state.heads, head) => head,
            _ => return violation(DeviceError::NotOwned { id }),
        };
        set(&self.state.heads, head, false);
        // Each step frees a descriptor that was busy and begins no other chain, so the walk ends
        // whatever the table says.
        let mut at = head;
        while let Some(descriptor) = self.descriptors.get(usize::from(at))
            && bit(&self.state.busy, at)
            && !bit(&self.state.heads, at)
        {
            set(&self.state.busy, at, false);
            if descriptor.flags.load(Relaxed) & NEXT == 0 {
                break;
            }
            at = descriptor.next.load(Relaxed);
        }
        Ok(Some(Used { head, length }))
    }

    /// Whether the device shall interrupt when it has used a chain. It may do so regardless. After
    /// interrupts were asked for, what came back before has to be looked for once more.
    pub fn set_interrupts(&mut self, wanted: bool) {
        let flags = if wanted { 0 } else { NO_INTERRUPT };
        if self.available.flags.load(Relaxed) != flags {
            self.available.flags.store(flags, Relaxed);
            fence(SeqCst);
        }
    }

    /// Whether the device was asked to interrupt.
    #[must_use]
    pub fn interrupts(&self) -> bool {
        self.available.flags.load(Relaxed) & NO_INTERRUPT == 0
    }

    /// How far the driver has made chains available, the device has used them, and the driver has
    /// taken them back; each modulo 65536.
    #[must_use]
    pub fn cursors(&self) -> (u16, u16, u16) {
        (
            self.available.index.load(Relaxed),
            self.used.index.load(Acquire),
            self.state.last_used.load(Relaxed) as u16,
        )
    }

    /// How often the device broke the rules.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.state.violations.load(Relaxed)
    }
}

fn bit(words: &[AtomicU64; 4], id: u16) -> bool {
    words
        .get(usize::from(id / 64))
        .is_some_and(|word| word.load(Relaxed) >> (id % 64) & 1 != 0)
}

/// Only the driver writes these words, so a load and a store do.
fn set(words: &[AtomicU64; 4], id: u16, on: bool) {
    if let Some(word) = words.get(usize::from(id / 64)) {
        let mask = 1 << (id % 64);
        let old = word.load(Relaxed);
        word.store(if on { old | mask } else { old & !mask }, Relaxed);
    }
}
