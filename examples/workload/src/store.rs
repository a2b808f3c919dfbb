//! The key-value store: a hash table of fixed size in shared memory, with open addressing.

use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::memory::{Memory, shared};
use crate::protocol::MAX_VALUE;

shared! {
    /// A place for one key.
    Slot, 1040 {
        /// How many writes the key has ever taken; 0 while the slot is free.
        writes: AtomicU64 = 0,
        /// The key.
        key: AtomicU32 = 8,
        /// Bytes of the value.
        length: AtomicU32 = 12,
        /// The value; what is past its length is not defined.
        value: [AtomicU64; MAX_VALUE / 8] = 16,
    }
}
shared! {
    /// What the store counts.
    Counters, 16 {
        /// How many writes were ever applied.
        applied: AtomicU64 = 0,
        /// How many slots are taken.
        occupied: AtomicU64 = 8,
    }
}

/// Why a value was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PutError {
    /// The store has no place for another key.
    Full,
    /// The value is longer than [`MAX_VALUE`].
    TooLong(usize),
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the store is full"),
            Self::TooLong(length) => write!(f, "a value of {length} bytes is too long"),
        }
    }
}

impl core::error::Error for PutError {}

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// A value is longer than it can be.
    Length {
        /// The slot.
        slot: u32,
        /// The length it states.
        length: u32,
    },
    /// A key is where nobody would find it, or a second time.
    Lost {
        /// The slot.
        slot: u32,
        /// The key.
        key: u32,
    },
    /// The counters do not say what the slots say.
    Counters {
        /// Writes applied, as counted.
        applied: u64,
        /// The sum over all slots.
        sum: u64,
        /// Slots taken, as counted.
        occupied: u64,
        /// Slots found taken.
        found: u64,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { slot, length } => {
                write!(f, "slot {slot} states a value of {length} bytes")
            }
            Self::Lost { slot, key } => write!(f, "key {key} is lost in slot {slot}"),
            Self::Counters {
                applied,
                sum,
                occupied,
                found,
            } => write!(
                f,
                "{applied} writes and {occupied} keys are counted, {sum} and {found} are there"
            ),
        }
    }
}

impl core::error::Error for StoreError {}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Bytes of the value.
    pub length: usize,
    /// How many writes the key has ever taken.
    pub writes: u64,
}

/// A view of the store. One kernel at a time may write through it, by agreement.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    slots: &'a [Slot],
    counters: &'a Counters,
}

impl<'a> Store<'a> {
    /// Bytes of a slot.
    pub const SLOT: u64 = size_of::<Slot>() as u64;

    /// The store with `slots` slots, a power of two, at `offset`; `None` where it does not lie in
    /// the memory.
    pub(crate) fn at(
        memory: &Memory<'a>,
        offset: u64,
        slots: u32,
        counters: &'a Counters,
    ) -> Option<Self> {
        if !slots.is_power_of_two() {
            return None;
        }
        Some(Self {
            slots: memory.slice(offset, slots as usize)?,
            counters,
        })
    }

    /// The slots in the order in which `key` is looked for.
    fn probe(&self, key: u32) -> impl Iterator<Item = &'a Slot> + use<'a> {
        // Fibonacci hashing: the high bits of the product are the well-mixed ones.
        let hash = key.wrapping_mul(0x9e37_79b1) as usize;
        let shift = 32 - self.slots.len().trailing_zeros();
        let first = hash.checked_shr(shift).unwrap_or(0);
        let slots = self.slots;
        (0..slots.len()).filter_map(move |step| slots.get((first + step) & (slots.len() - 1)))
    }

    fn find(&self, key: u32) -> Option<&'a Slot> {
        self.probe(key)
            .take_while(|slot| slot.writes.load(Acquire) != 0)
            .find(|slot| slot.key.load(Relaxed) == key)
    }

    /// How many writes were ever applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.counters.applied.load(Acquire)
    }

    /// How many keys there are.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.counters.occupied.load(Relaxed)
    }

    /// How many keys there may be: seven eighths of the slots, so that looking for one that is not
    /// there ends soon.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        let slots = self.slots.len() as u64;
        slots - slots / 8
    }

    /// Stores `value` under `key` and counts it; says how many writes the key has taken.
    ///
    /// # Errors
    /// [`PutError`]; nothing has changed then.
    pub fn put(&mut self, key: u32, value: &[u8]) -> Result<u64, PutError> {
        if value.len() > MAX_VALUE {
            return Err(PutError::TooLong(value.len()));
        }
        let slot = match self.find(key) {
            Some(slot) => slot,
            None if self.keys() >= self.capacity() => return Err(PutError::Full),
            None => self
                .probe(key)
                .find(|slot| slot.writes.load(Relaxed) == 0)
                .ok_or(PutError::Full)?,
        };
        let writes = slot.writes.load(Relaxed);
        if writes == 0 {
            slot.key.store(key, Relaxed);
            let keys = self.counters.occupied.load(Relaxed);
            self.counters.occupied.store(keys + 1, Relaxed);
        }
        slot.length.store(value.len() as u32, Relaxed);
        for (bytes, word) in value.chunks(8).zip(&slot.value) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(whole), Relaxed);
        }
        let writes = writes.wrapping_add(1);
        slot.writes.store(writes, Release);
        let applied = self.counters.applied.load(Relaxed);
        self.counters
            .applied
            .store(applied.wrapping_add(1), Release);
        Ok(writes)
    }

    /// Copies the value of `key` to the start of `to`; `None` where the key was never written.
    #[must_use]
    pub fn get(&self, key: u32, to: &mut [u8; MAX_VALUE]) -> Option<Found> {
        let slot = self.find(key)?;
        let length = (slot.length.load(Relaxed) as usize).min(MAX_VALUE);
        for (bytes, word) in to[..length].chunks_mut(8).zip(&slot.value) {
            let word = word.load(Relaxed).to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        Some(Found {
            length,
            writes: slot.writes.load(Relaxed),
        })
    }

    /// How many writes `key` has ever taken.
    #[must_use]
    pub fn writes(&self, key: u32) -> u64 {
        self.find(key).map_or(0, |slot| slot.writes.load(Relaxed))
    }

    /// Looks at every slot. Holds whenever nobody is in the middle of a write.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), StoreError> {
        let (mut sum, mut found) = (0_u64, 0_u64);
        for (index, slot) in (0_u32..).zip(self.slots) {
            let writes = slot.writes.load(Acquire);
            if writes == 0 {
                continue;
            }
            let (key, length) = (slot.key.load(Relaxed), slot.length.load(Relaxed));
            if length as usize > MAX_VALUE {
                return Err(StoreError::Length {
                    slot: index,
                    length,
                });
            }
            if !self.find(key).is_some_and(|at| core::ptr::eq(at, slot)) {
                return Err(StoreError::Lost { slot: index, key });
            }
            sum = sum.wrapping_add(writes);
            found += 1;
        }
        let (applied, occupied) = (self.applied(), self.keys());
        if applied != sum || occupied != found {
            return Err(StoreError::Counters {
                applied,
                sum,
                occupied,
                found,
            });
        }
        Ok(())
    }
}
