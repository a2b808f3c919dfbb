//! The ledger: who owns what, now.
//!
//! Every kernel may read it ([`LedgerView`]); only the steward writes it ([`Steward`]). A transfer
//! is an intent, then the effect, then the completion, so that a survivor can tell forward from
//! back; each of the three is one store, and so are a split and the commit.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use core::fmt;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use handoff_abi::{
    ApicId, Ledger, LedgerSlot, LedgerWord, Owner, PartitionId, Phase, PhysAddr, PhysRange,
    Stewardship, resource,
};

use crate::cpu::CpuStopped;

#[cfg(test)]
mod tests;

/// Why the ledger could not be read or changed. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum LedgerError {
    /// There is no ledger: the magic is wrong.
    Magic(u64),
    /// The partition is not the steward.
    NotSteward {
        /// Who asked.
        asked: PartitionId,
        /// Who it is.
        steward: PartitionId,
    },
    /// No slot is free.
    Full,
    /// There is no such slot, or it is not in use, or what it holds has no meaning.
    Slot(u16),
    /// The slot's transfer is in another phase than the operation needs.
    Phase {
        /// The slot.
        slot: u16,
        /// The phase it is in.
        found: Phase,
    },
    /// The resource is in the ledger already, in part at least.
    Overlap {
        /// The slot it overlaps.
        slot: u16,
    },
    /// A part that is to be split off is not inside the slot, or is empty.
    OutsideSlot {
        /// The slot.
        slot: u16,
    },
    /// The resource belongs to somebody else.
    Owner {
        /// The slot.
        slot: u16,
        /// Who owns it.
        found: Owner,
    },
    /// A processor of the partition has not been proved stopped, so nothing it can reach can be
    /// given to anybody else.
    CpuRuns(ApicId),
    /// Somebody else changed the word in between.
    Raced {
        /// The slot.
        slot: u16,
    },
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "no ledger: it begins with {found:#018x}"),
            Self::NotSteward { asked, steward } => {
                write!(
                    f,
                    "partition {asked} is not the steward, partition {steward} is"
                )
            }
            Self::Full => f.write_str("the ledger has no free slot"),
            Self::Slot(slot) => write!(f, "ledger slot {slot} is not in use or has no meaning"),
            Self::Phase { slot, found } => write!(f, "ledger slot {slot} is in phase {found}"),
            Self::Overlap { slot } => write!(f, "the resource overlaps ledger slot {slot}"),
            Self::OutsideSlot { slot } => write!(f, "the part is not inside ledger slot {slot}"),
            Self::Owner { slot, found } => write!(f, "ledger slot {slot} belongs to {found}"),
            Self::CpuRuns(cpu) => write!(f, "processor {cpu} has not been proved stopped"),
            Self::Raced { slot } => write!(f, "ledger slot {slot} was changed by somebody else"),
        }
    }
}

impl core::error::Error for LedgerError {}

/// A resource as the ledger has it at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Entry {
    /// The slot's number.
    pub slot: u16,
    /// One of [`resource`].
    pub kind: u32,
    /// Where it begins.
    pub base: u64,
    /// How much of it there is.
    pub length: u64,
    /// Owner, next owner and phase.
    pub word: LedgerWord,
}

impl Entry {
    /// The memory of a memory entry.
    #[must_use]
    pub fn range(&self) -> Option<PhysRange> {
        if self.kind != resource::MEMORY {
            return None;
        }
        PhysRange::new(PhysAddr(self.base), self.length).ok()
    }

    const fn overlaps(&self, kind: u32, base: u64, length: u64) -> bool {
        self.kind == kind
            && base < self.base.saturating_add(self.length)
            && self.base < base.saturating_add(length)
    }
}

/// The ledger, to be read.
#[derive(Clone, Copy, Debug)]
pub struct LedgerView<'a> {
    ledger: &'a Ledger,
}

impl<'a> LedgerView<'a> {
    /// Looks at a ledger.
    ///
    /// # Errors
    /// Where the magic is wrong.
    pub fn new(ledger: &'a Ledger) -> Result<Self, LedgerError> {
        match ledger.magic.load(Acquire) {
            Ledger::MAGIC => Ok(Self { ledger }),
            other => Err(LedgerError::Magic(other)),
        }
    }

    /// Who holds stewardship on paper; [`steward`](Self::steward) says who holds it in fact.
    #[must_use]
    pub fn stewardship(self) -> Stewardship {
        Stewardship::from_wire(self.ledger.stewardship.load(Acquire))
    }

    /// The one partition that may write now. Where stewardship follows a workload, that is
    /// whoever owns the workload.
    #[must_use]
    pub fn steward(self) -> PartitionId {
        let stewardship = self.stewardship();
        match stewardship.follows {
            Some((next, slot)) if self.workload_owner(slot) == Some(next) => next,
            _ => stewardship.holder,
        }
    }

    fn workload_owner(self, slot: u16) -> Option<PartitionId> {
        match self.entry(slot)?.word.owner {
            Owner::Partition(partition) => Some(partition),
            _ => None,
        }
    }

    /// The entry in a slot; `None` where it is free, was split, or does not count yet.
    #[must_use]
    pub fn entry(self, slot: u16) -> Option<Entry> {
        let raw = self.ledger.slots.get(usize::from(slot))?;
        let before = raw.word.load(Acquire);
        let entry = Entry {
            slot,
            kind: raw.kind.load(Relaxed),
            base: raw.base.load(Relaxed),
            length: raw.length.load(Relaxed),
            word: LedgerWord::from_wire(before)?,
        };
        let parent = raw.parent.load(Acquire);
        // The slot was given to something else while it was read: what was read is a mixture.
        if raw.word.load(Acquire) != before {
            return None;
        }
        let counts = match entry.word.phase {
            Phase::Free | Phase::Split => false,
            Phase::Pending => self.is_split(parent),
            Phase::Settled | Phase::Intent | Phase::Effect => true,
        };
        counts.then(|| Entry {
            word: LedgerWord {
                phase: if entry.word.phase == Phase::Pending {
                    Phase::Settled
                } else {
                    entry.word.phase
                },
                ..entry.word
            },
            ..entry
        })
    }

    fn is_split(self, parent: u32) -> bool {
        parent
            .checked_sub(1)
            .and_then(|slot| self.ledger.slots.get(usize::try_from(slot).ok()?))
            .and_then(|raw| LedgerWord::from_wire(raw.word.load(Acquire)))
            .is_some_and(|word| word.phase == Phase::Split)
    }

    /// Every entry. Not a snapshot: the steward may write meanwhile.
    pub fn entries(self) -> impl Iterator<Item = Entry> + use<'a> {
        let used = self.ledger.used.load(Acquire).min(Ledger::CAPACITY as u32);
        (0..used as u16).filter_map(move |slot| self.entry(slot))
    }

    /// Every entry of this owner.
    pub fn owned_by(self, owner: Owner) -> impl Iterator<Item = Entry> + use<'a> {
        self.entries()
            .filter(move |entry| entry.word.owner == owner)
    }

    /// Every processor that this owner may use: one that it owns, and one whose transfer to it has
    /// taken effect.
    fn processors(self, owner: Owner) -> impl Iterator<Item = ApicId> + use<'a> {
        self.entries()
            .filter(move |entry| {
                let word = entry.word;
                let coming = word.phase == Phase::Effect && word.next == owner;
                entry.kind == resource::CPU && (word.owner == owner || coming)
            })
            .map(|entry| ApicId(entry.base as u32))
    }

    /// The entry that holds all of this resource.
    #[must_use]
    pub fn find(self, kind: u32, base: u64, length: u64) -> Option<Entry> {
        self.entries().find(|entry| {
            entry.kind == kind
                && base >= entry.base
                && base.saturating_add(length) <= entry.base.saturating_add(entry.length)
        })
    }

    /// How many slots have no entry.
    #[must_use]
    pub fn free_slots(self) -> usize {
        Ledger::CAPACITY.saturating_sub(self.entries().count())
    }
}

/// The ledger, to be written: a value of this type was the steward when it was made, and every
/// operation checks again that it still is.
#[derive(Debug)]
pub struct Steward<'a> {
    ledger: &'a Ledger,
    me: PartitionId,
}

impl<'a> Steward<'a> {
    /// Makes an empty ledger whose first steward is `me`. Nobody else may know of it yet.
    pub fn format(ledger: &'a Ledger, me: PartitionId) -> Self {
        for slot in &ledger.slots {
            for word in [&slot.base, &slot.length, &slot.word] {
                word.store(0, Relaxed);
            }
            slot.kind.store(0, Relaxed);
            slot.parent.store(0, Relaxed);
        }
        ledger.used.store(0, Relaxed);
        let first = Stewardship {
            holder: me,
            follows: None,
            epoch: 1,
        };
        ledger.stewardship.store(first.to_wire(), Relaxed);
        ledger.magic.store(Ledger::MAGIC, Release);
        Self { ledger, me }
    }

    /// Takes up stewardship after the commit that passed it, and raises the epoch.
    ///
    /// # Errors
    /// Where `me` is not the steward.
    pub fn take_up(ledger: &'a Ledger, me: PartitionId) -> Result<Self, LedgerError> {
        let view = LedgerView::new(ledger)?;
        let steward = Self { ledger, me };
        steward.check()?;
        let old = view.stewardship();
        if old.holder != me || old.follows.is_some() {
            let new = Stewardship {
                holder: me,
                follows: None,
                epoch: old.epoch.wrapping_add(1),
            };
            ledger.stewardship.store(new.to_wire(), Release);
        }
        Ok(steward)
    }

    /// Takes stewardship away from a partition all of whose processors are proved stopped, and
    /// raises the epoch. Transfers that were under way are undone or completed.
    ///
    /// # Errors
    /// [`LedgerError::CpuRuns`] where the steward has a processor for which there is no proof.
    pub fn seize(
        ledger: &'a Ledger,
        me: PartitionId,
        proofs: &[CpuStopped],
    ) -> Result<Self, LedgerError> {
        let view = LedgerView::new(ledger)?;
        let old = view.steward();
        if old != me {
            let running = view
                .processors(Owner::Partition(old))
                .find(|cpu| !proofs.iter().any(|proof| proof.cpu() == *cpu));
            if let Some(cpu) = running {
                return Err(LedgerError::CpuRuns(cpu));
            }
        }
        let new = Stewardship {
            holder: me,
            follows: None,
            epoch: view.stewardship().epoch.wrapping_add(1),
        };
        ledger.stewardship.store(new.to_wire(), Release);
        let steward = Self { ledger, me };
        steward.recover()?;
        Ok(steward)
    }

    /// The ledger, to be read.
    #[must_use]
    pub const fn view(&self) -> LedgerView<'a> {
        LedgerView {
            ledger: self.ledger,
        }
    }

    /// The partition that holds this stewardship.
    #[must_use]
    pub const fn partition(&self) -> PartitionId {
        self.me
    }

    fn check(&self) -> Result<(), LedgerError> {
        let steward = self.view().steward();
        if steward == self.me {
            return Ok(());
        }
        Err(LedgerError::NotSteward {
            asked: self.me,
            steward,
        })
    }

    fn word(&self, owner: Owner, next: Owner, phase: Phase) -> u64 {
        let epoch = self.view().stewardship().epoch as u16 & 0xfff;
        LedgerWord {
            owner,
            next,
            phase,
            epoch,
        }
        .to_wire()
    }

    fn raw(&self, slot: u16) -> Result<&'a LedgerSlot, LedgerError> {
        self.ledger
            .slots
            .get(usize::from(slot))
            .ok_or(LedgerError::Slot(slot))
    }

    fn entry(&self, slot: u16) -> Result<Entry, LedgerError> {
        self.view().entry(slot).ok_or(LedgerError::Slot(slot))
    }

    fn free_slot(&self, not: &[u16]) -> Result<u16, LedgerError> {
        let free = |slot: &u16| {
            !not.contains(slot)
                && self.raw(*slot).is_ok_and(|raw| {
                    LedgerWord::from_wire(raw.word.load(Acquire))
                        .is_none_or(|word| word.phase == Phase::Free)
                })
        };
        (0..Ledger::CAPACITY as u16)
            .find(free)
            .ok_or(LedgerError::Full)
    }

    fn fill(
        &self,
        slot: u16,
        parent: u32,
        (kind, base, length): (u32, u64, u64),
        word: u64,
    ) -> Result<(), LedgerError> {
        let raw = self.raw(slot)?;
        raw.kind.store(kind, Relaxed);
        raw.parent.store(parent, Relaxed);
        raw.base.store(base, Relaxed);
        raw.length.store(length, Relaxed);
        raw.word.store(word, Release);
        self.ledger
            .used
            .fetch_max(u32::from(slot).saturating_add(1), AcqRel);
        Ok(())
    }

    /// Enters a resource that is not in the ledger yet.
    ///
    /// # Errors
    /// Where it overlaps one that is, or no slot is free.
    pub fn add(
        &mut self,
        kind: u32,
        base: u64,
        length: u64,
        owner: Owner,
    ) -> Result<u16, LedgerError> {
        self.check()?;
        if let Some(other) = self
            .view()
            .entries()
            .find(|entry| entry.overlaps(kind, base, length))
        {
            return Err(LedgerError::Overlap { slot: other.slot });
        }
        let slot = self.free_slot(&[])?;
        let word = self.word(owner, owner, Phase::Settled);
        self.fill(slot, 0, (kind, base, length), word)?;
        Ok(slot)
    }

    /// Cuts `part` out of a settled memory entry and returns the slot that holds just it. The
    /// slots of all pieces are written first and begin to count with one store.
    ///
    /// # Errors
    /// Where the entry is in transfer, does not hold all of `part`, or slots are short.
    pub fn split(&mut self, slot: u16, part: PhysRange) -> Result<u16, LedgerError> {
        self.check()?;
        let entry = self.entry(slot)?;
        if entry.word.phase != Phase::Settled {
            return Err(LedgerError::Phase {
                slot,
                found: entry.word.phase,
            });
        }
        let whole = entry.range().ok_or(LedgerError::Slot(slot))?;
        if part.is_empty() || !whole.contains_range(part) {
            return Err(LedgerError::OutsideSlot { slot });
        }
        if part == whole {
            return Ok(slot);
        }
        let owner = entry.word.owner;
        let (slots, count) = self.write_pieces(&entry, whole, part)?;
        let new = slots.get(..count).unwrap_or(&[]);
        self.raw(slot)?
            .word
            .store(self.word(owner, owner, Phase::Split), Release);
        // From here on the pieces count; now they are made to stand on their own, and the slot
        // they came from is free again.
        for &piece in new {
            let raw = self.raw(piece)?;
            raw.word
                .store(self.word(owner, owner, Phase::Settled), Release);
            raw.parent.store(0, Release);
        }
        self.release(&[slot]);
        Ok(new.first().copied().unwrap_or(slot))
    }

    /// Writes the slots of `part` and of what is left around it, and says which and how many they
    /// are. They do not count yet.
    fn write_pieces(
        &self,
        entry: &Entry,
        whole: PhysRange,
        part: PhysRange,
    ) -> Result<([u16; 3], usize), LedgerError> {
        let owner = entry.word.owner;
        let parent = u32::from(entry.slot).saturating_add(1);
        let pieces = [
            part,
            PhysRange::from_bounds(whole.base(), part.base()),
            PhysRange::from_bounds(part.end(), whole.end()),
        ];
        let mut slots = [entry.slot; 3];
        let mut count = 0_usize;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let taken = slots.get(..count).unwrap_or(&[]);
            let free = self.free_slot(taken).inspect_err(|_| self.release(taken))?;
            let fields = (entry.kind, piece.base().0, piece.length());
            let word = self.word(owner, owner, Phase::Pending);
            self.fill(free, parent, fields, word)?;
            if let Some(place) = slots.get_mut(count) {
                *place = free;
            }
            count = count.saturating_add(1);
        }
        Ok((slots, count))
    }

    fn release(&self, slots: &[u16]) {
        for raw in slots.iter().filter_map(|&slot| self.raw(slot).ok()) {
            raw.word.store(0, Release);
            raw.parent.store(0, Release);
        }
    }

    /// Joins memory entries of the same owner that touch; returns how many slots that freed. Not
    /// for an instant in which another kernel relies on a complete ledger: for a moment the joined
    /// memory is in no slot.
    ///
    /// # Errors
    /// Where this is not the steward.
    pub fn join(&mut self) -> Result<usize, LedgerError> {
        self.check()?;
        let mut freed = 0_usize;
        let settled =
            |entry: &Entry| entry.kind == resource::MEMORY && entry.word.phase == Phase::Settled;
        while let Some((low, high)) = self.view().entries().filter(settled).find_map(|low| {
            let end = low.range()?.end();
            let high = self
                .view()
                .entries()
                .filter(settled)
                .find(|high| high.word.owner == low.word.owner && high.base == end.0)?;
            Some((low, high))
        }) {
            self.release(&[high.slot]);
            let length = low.length.saturating_add(high.length);
            self.raw(low.slot)?.length.store(length, Release);
            freed = freed.saturating_add(1);
        }
        Ok(freed)
    }

    /// States that a resource is to change owner. The owner still owns it.
    ///
    /// # Errors
    /// Where a transfer of it is under way already.
    pub fn intend(&mut self, slot: u16, next: Owner) -> Result<(), LedgerError> {
        self.step(slot, Phase::Settled, |word| {
            (word.owner, next, Phase::Intent)
        })
    }

    /// States that the next owner may use the resource from now on: the fence is in place.
    ///
    /// # Errors
    /// Where no transfer was intended.
    pub fn effect(&mut self, slot: u16) -> Result<(), LedgerError> {
        self.step(slot, Phase::Intent, |word| {
            (word.owner, word.next, Phase::Effect)
        })
    }

    /// Completes a transfer.
    ///
    /// # Errors
    /// Where it had no effect yet.
    pub fn complete(&mut self, slot: u16) -> Result<(), LedgerError> {
        self.step(slot, Phase::Effect, |word| {
            (word.next, word.next, Phase::Settled)
        })
    }

    /// Takes an intent back.
    ///
    /// # Errors
    /// Where the transfer is not in that phase.
    pub fn undo(&mut self, slot: u16) -> Result<(), LedgerError> {
        self.step(slot, Phase::Intent, |word| {
            (word.owner, word.owner, Phase::Settled)
        })
    }

    fn step(
        &mut self,
        slot: u16,
        from: Phase,
        to: impl FnOnce(LedgerWord) -> (Owner, Owner, Phase),
    ) -> Result<(), LedgerError> {
        self.check()?;
        let raw = self.raw(slot)?;
        let bits = raw.word.load(Acquire);
        let word = LedgerWord::from_wire(bits).ok_or(LedgerError::Slot(slot))?;
        if word.phase != from {
            return Err(LedgerError::Phase {
                slot,
                found: word.phase,
            });
        }
        let (owner, next, phase) = to(word);
        raw.word
            .compare_exchange(bits, self.word(owner, next, phase), AcqRel, Acquire)
            .map(drop)
            .map_err(|_| LedgerError::Raced { slot })
    }

    /// All three steps of a transfer whose effect needs nothing done.
    ///
    /// # Errors
    /// Where a transfer of it is under way already.
    pub fn transfer(&mut self, slot: u16, next: Owner) -> Result<(), LedgerError> {
        self.intend(slot, next)?;
        self.effect(slot)?;
        self.complete(slot)
    }

    /// Gives a processor that is proved stopped to another owner.
    ///
    /// # Errors
    /// Where the ledger has no such processor, or it is in transfer.
    pub fn release_cpu(&mut self, proof: CpuStopped, next: Owner) -> Result<(), LedgerError> {
        let entry = self
            .view()
            .find(resource::CPU, u64::from(proof.cpu().0), 1)
            .ok_or(LedgerError::CpuRuns(proof.cpu()))?;
        match entry.word.phase {
            Phase::Intent => self.undo(entry.slot)?,
            Phase::Effect => self.complete(entry.slot)?,
            _ => {}
        }
        self.transfer(entry.slot, next)
    }

    /// Takes everything of a partition that cannot be proved stopped out of use: its processors and
    /// all that they can reach. Returns how many entries that are.
    ///
    /// # Errors
    /// Where this is not the steward.
    pub fn quarantine(&mut self, partition: PartitionId) -> Result<usize, LedgerError> {
        self.give_all(partition, Owner::Quarantined)
    }

    /// Gives everything of a partition to `heir`, memory included: allowed once each of its
    /// processors has been released. Returns how many entries changed owner.
    ///
    /// # Errors
    /// [`LedgerError::CpuRuns`] where a processor has not been released.
    pub fn inherit(&mut self, from: PartitionId, heir: Owner) -> Result<usize, LedgerError> {
        self.check()?;
        if let Some(cpu) = self.view().processors(Owner::Partition(from)).next() {
            return Err(LedgerError::CpuRuns(cpu));
        }
        self.give_all(from, heir)
    }

    fn give_all(&mut self, from: PartitionId, heir: Owner) -> Result<usize, LedgerError> {
        self.check()?;
        let owner = Owner::Partition(from);
        let mut count = 0_usize;
        for entry in self.view().entries() {
            let word = entry.word;
            if word.owner != owner && word.next != owner {
                continue;
            }
            match word.phase {
                Phase::Intent => self.undo(entry.slot)?,
                Phase::Effect => self.complete(entry.slot)?,
                _ => {}
            }
            // Once no transfer is under way, what the partition may use is just what it owns.
            if self.entry(entry.slot)?.word.owner == owner {
                self.transfer(entry.slot, heir)?;
                count = count.saturating_add(1);
            }
        }
        Ok(count)
    }

    /// Brings every transfer that was under way to an end: an intent is undone, an effect is
    /// completed, a split that never counted is dropped and one that did is finished.
    fn recover(&self) -> Result<(), LedgerError> {
        for slot in 0..Ledger::CAPACITY as u16 {
            let raw = self.raw(slot)?;
            let Some(word) = LedgerWord::from_wire(raw.word.load(Acquire)) else {
                continue;
            };
            let settled = |owner| self.word(owner, owner, Phase::Settled);
            let new = match word.phase {
                Phase::Intent => settled(word.owner),
                Phase::Effect => settled(word.next),
                Phase::Pending if self.view().is_split(raw.parent.load(Acquire)) => {
                    settled(word.owner)
                }
                Phase::Pending => 0,
                Phase::Free | Phase::Settled | Phase::Split => continue,
            };
            raw.word.store(new, Release);
            raw.parent.store(0, Release);
        }
        for slot in 0..Ledger::CAPACITY as u16 {
            let raw = self.raw(slot)?;
            let split = LedgerWord::from_wire(raw.word.load(Acquire))
                .is_some_and(|word| word.phase == Phase::Split);
            if split {
                raw.word.store(0, Release);
            }
        }
        Ok(())
    }

    /// Lets stewardship follow a workload to `next`, so that the commit of that workload passes
    /// both with one store. Until then nothing changes, and [`disarm`](Armed::disarm) takes it
    /// back.
    ///
    /// # Errors
    /// Where the workload is not in the ledger, is in transfer, or is not this partition's.
    pub fn arm(self, workload: u16, next: PartitionId) -> Result<Armed<'a>, (Self, LedgerError)> {
        match self.try_arm(workload, next) {
            Ok(commit_bits) => Ok(Armed {
                steward: self,
                workload,
                next,
                commit_bits,
            }),
            Err(error) => Err((self, error)),
        }
    }

    fn try_arm(&self, workload: u16, next: PartitionId) -> Result<(u64, u64), LedgerError> {
        self.check()?;
        let entry = self.entry(workload)?;
        if entry.kind != resource::WORKLOAD {
            return Err(LedgerError::Slot(workload));
        }
        if entry.word.phase != Phase::Settled {
            return Err(LedgerError::Phase {
                slot: workload,
                found: entry.word.phase,
            });
        }
        if entry.word.owner != Owner::Partition(self.me) {
            return Err(LedgerError::Owner {
                slot: workload,
                found: entry.word.owner,
            });
        }
        let stewardship = Stewardship {
            holder: self.me,
            follows: Some((next, workload)),
            ..self.view().stewardship()
        };
        self.ledger
            .stewardship
            .store(stewardship.to_wire(), Release);
        let after = Owner::Partition(next);
        Ok((
            entry.word.to_wire(),
            self.word(after, after, Phase::Settled),
        ))
    }
}

/// A stewardship that passes with the next commit.
#[derive(Debug)]
#[must_use = "stewardship follows the workload until it is committed or disarmed"]
pub struct Armed<'a> {
    steward: Steward<'a>,
    workload: u16,
    next: PartitionId,
    commit_bits: (u64, u64),
}

impl<'a> Armed<'a> {
    /// The commit: one store, after which `next` owns the workload and is the steward. There is no
    /// way back for the partition that calls it.
    ///
    /// # Errors
    /// [`LedgerError::Raced`], with the stewardship back, where somebody else changed the
    /// workload's word: nothing was committed.
    pub fn commit(self) -> Result<(), (Steward<'a>, LedgerError)> {
        let slot = self.workload;
        let (before, after) = self.commit_bits;
        let swapped = self.steward.raw(slot).is_ok_and(|raw| {
            raw.word
                .compare_exchange(before, after, AcqRel, Acquire)
                .is_ok()
        });
        if swapped {
            return Ok(());
        }
        let error = LedgerError::Raced { slot };
        Err((self.disarm(), error))
    }

    /// Stewardship stays.
    #[must_use]
    pub fn disarm(self) -> Steward<'a> {
        let stewardship = Stewardship {
            follows: None,
            ..self.steward.view().stewardship()
        };
        self.steward
            .ledger
            .stewardship
            .store(stewardship.to_wire(), Release);
        self.steward
    }

    /// Who is to own the workload.
    #[must_use]
    pub const fn next(&self) -> PartitionId {
        self.next
    }
}
