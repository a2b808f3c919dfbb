//! The live areas of the baton: memory that several kernels read and write at the same time.
//! Atomics only; what may be concluded from a value is in `docs/swap.md`.

use core::fmt;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::{ApicId, FRAME_SIZE, Owner, PartitionId};

/// What kind of thing a ledger slot is about; the meaning of its base and length follows.
pub mod resource {
    /// A processor: base is the APIC id, length 1.
    pub const CPU: u32 = 1;
    /// Memory: base and length in bytes.
    pub const MEMORY: u32 = 2;
    /// A PCI function: base is the segment in bits 31:16 and the requester id in 15:0, length 1.
    pub const FUNCTION: u32 = 3;
    /// A workload: base is its number, length 1. Its word is what the commit stores to.
    pub const WORKLOAD: u32 = 4;
    /// A machine singleton: base is one of the numbers below, length 1.
    pub const SINGLETON: u32 = 5;
    /// A remapping unit: base is its register address, length the window's bytes.
    pub const REMAPPING_UNIT: u32 = 6;

    /// Singleton: the first UART of the ISA bus.
    pub const UART_0: u64 = 1;
    /// Singleton: the second UART of the ISA bus.
    pub const UART_1: u64 = 2;
    /// Singleton: the authority to reset the machine.
    pub const RESET: u64 = 3;
    /// Singleton: the I/O APICs and the 8259 pair.
    pub const INTERRUPT_CONTROLLERS: u64 = 4;
    /// Singleton: real time clock and CMOS.
    pub const RTC: u64 = 5;
    /// Singleton: the ACPI fixed hardware, power management timer included.
    pub const ACPI_FIXED_HARDWARE: u64 = 6;
    /// Singleton: configuration space of the bridges above the partitions' buses.
    pub const PCI_BRIDGES: u64 = 7;
    /// Singleton: configuration mechanism #1, ports 0xCF8 and 0xCFC.
    pub const PCI_CONFIG_PORTS: u64 = 8;
}

/// How far a transfer in a ledger slot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Phase {
    /// The slot is not in use.
    Free,
    /// The slot's fields are written, and it counts only once the slot it was split from says so.
    Pending,
    /// The owner owns it.
    Settled,
    /// The owner still owns it, and it is being made ready for the next owner. A survivor undoes.
    Intent,
    /// The next owner may use it already; the transfer is being completed. A survivor completes.
    Effect,
    /// It was split; the slots that name it as their parent stand in its place.
    Split,
}

/// The word of a ledger slot: owner, next owner and phase in one atomic value.
///
/// Bits 3:0 phase; 27:4 owner and 51:28 next owner, each with its kind in the upper 8 bits and its
/// number in the lower 16; 63:52 the low bits of the epoch in which it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LedgerWord {
    /// Who owns it now.
    pub owner: Owner,
    /// Who is to own it; the owner itself where no transfer is under way.
    pub next: Owner,
    /// How far the transfer has come.
    pub phase: Phase,
    /// The epoch of the writer, modulo 4096.
    pub epoch: u16,
}

impl LedgerWord {
    /// The bits that stand for this word.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        let phase = match self.phase {
            Phase::Free => 0,
            Phase::Pending => 1,
            Phase::Settled => 2,
            Phase::Intent => 3,
            Phase::Effect => 4,
            Phase::Split => 5,
        };
        phase
            | (self.owner.to_wire() as u64 & 0xff_ffff) << 4
            | (self.next.to_wire() as u64 & 0xff_ffff) << 28
            | (self.epoch as u64 & 0xfff) << 52
    }

    /// The word these bits stand for; `None` where a part of them has no meaning.
    #[must_use]
    #[inline]
    pub const fn from_wire(bits: u64) -> Option<Self> {
        // No owner is 0. Most slots were never used, so this is the most frequent answer.
        if bits == 0 {
            return None;
        }
        let phase = match bits & 0xf {
            0 => Phase::Free,
            1 => Phase::Pending,
            2 => Phase::Settled,
            3 => Phase::Intent,
            4 => Phase::Effect,
            5 => Phase::Split,
            _ => return None,
        };
        match (
            Owner::from_wire((bits >> 4 & 0xff_ffff) as u32),
            Owner::from_wire((bits >> 28 & 0xff_ffff) as u32),
        ) {
            (Some(owner), Some(next)) => Some(Self {
                owner,
                next,
                phase,
                epoch: (bits >> 52) as u16,
            }),
            _ => None,
        }
    }
}

/// One resource and its owner.
///
/// `kind`, `base`, `length` and `parent` do not change while the slot is in use.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LedgerSlot {
    /// One of [`resource`].
    pub kind: AtomicU32,
    /// 0, or 1 + the slot it was split from.
    pub parent: AtomicU32,
    /// Where the resource begins.
    pub base: AtomicU64,
    /// How much of it there is.
    pub length: AtomicU64,
    /// A [`LedgerWord`].
    pub word: AtomicU64,
}

/// The record of the one owner of every resource. Only the steward writes it.
#[derive(Debug)]
#[repr(C)]
pub struct Ledger {
    /// [`Ledger::MAGIC`].
    pub magic: AtomicU64,
    /// A [`Stewardship`].
    pub stewardship: AtomicU64,
    /// Slots that have ever been in use: those at this index and above are free.
    pub used: AtomicU32,
    /// Zero.
    pub reserved: [AtomicU32; 11],
    /// The slots.
    pub slots: [LedgerSlot; Self::CAPACITY],
}

impl Ledger {
    /// `BATLEDGR`.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"BATLEDGR");
    /// How many slots there are: with the head they fill 32 KiB.
    pub const CAPACITY: usize = 1022;
}

/// Who may write the ledger, the remapping units and shared configuration space.
///
/// Either one partition, or *whoever owns a workload*: before the last commit the holder says that
/// stewardship follows that workload, and then the one store of the commit passes both.
///
/// Bits 15:0 holder, 31:16 next holder, 42:32 ledger slot of the workload, 43 follows, 63:44 epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stewardship {
    /// The holder.
    pub holder: PartitionId,
    /// Where stewardship passes to the next owner of a workload: that partition, and the workload's
    /// slot in the ledger.
    pub follows: Option<(PartitionId, u16)>,
    /// Raised by one with each new holder, 20 bits.
    pub epoch: u32,
}

impl Stewardship {
    /// The bits that stand for this stewardship; a slot of 2048 or more, or an epoch of 20 bits or
    /// more, is cut.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        let (next, slot, follows) = match self.follows {
            Some((next, slot)) => (next.0, slot, 1),
            None => (0, 0, 0),
        };
        self.holder.0 as u64
            | (next as u64) << 16
            | (slot as u64 & 0x7ff) << 32
            | follows << 43
            | (self.epoch as u64 & 0xf_ffff) << 44
    }

    /// The stewardship these bits stand for.
    #[must_use]
    pub const fn from_wire(bits: u64) -> Self {
        let follows = if bits >> 43 & 1 == 1 {
            Some((
                PartitionId((bits >> 16) as u16),
                (bits >> 32) as u16 & 0x7ff,
            ))
        } else {
            None
        };
        Self {
            holder: PartitionId(bits as u16),
            follows,
            epoch: (bits >> 44) as u32,
        }
    }
}

/// How far a partition has come; written by the partition itself, except for
/// [`LAUNCHED`](state::LAUNCHED) and [`EMPTY`](state::EMPTY), which the steward writes.
pub mod state {
    /// Nobody is there.
    pub const EMPTY: u32 = 0;
    /// Its first processor is being started.
    pub const LAUNCHED: u32 = 1;
    /// It runs and has found the baton.
    pub const ENTERED: u32 = 2;
    /// It has checked the handoff and stated version and features.
    pub const NEGOTIATED: u32 = 3;
    /// All its processors and devices are up; it waits for the commit.
    pub const READY: u32 = 4;
    /// It owns the workload and serves.
    pub const SERVING: u32 = 5;
    /// It has stopped serving and everything of the workload is in the workload's memory.
    pub const FROZEN: u32 = 6;
    /// It has given the workload away and lives on to take it back.
    pub const STANDBY: u32 = 7;
    /// It has given everything away; its processors are parked or about to be.
    pub const RETIRED: u32 = 8;
    /// It gave up by itself; `failure` says why.
    pub const FAILED: u32 = 0xff;
}

/// What a partition says of itself. An allegation, like all that another kernel writes.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PartitionStatus {
    /// 0, or 0x1_0000 + the partition's number.
    pub partition: AtomicU32,
    /// One of [`state`].
    pub state: AtomicU32,
    /// Grows while the partition lives.
    pub heartbeat: AtomicU64,
    /// The version it speaks with the steward: major in bits 31:16, minor in 15:0.
    pub version: AtomicU32,
    /// With [`state::FAILED`]: the kernel's own number for why.
    pub failure: AtomicU32,
    /// The features it has.
    pub features: AtomicU64,
    /// Where its memory for others to look at is, or 0: what `failure` is about.
    pub detail: AtomicU64,
    /// Time stamp counter when `state` was written last.
    pub since: AtomicU64,
    /// Zero.
    pub reserved: [AtomicU64; 2],
}

/// Messages that fit one mailbox: a power of two, so that the counts may wrap.
pub const MAILBOX_SLOTS: usize = 16;

/// A message: a kind, and seven words whose meaning follows from it. Words that a kind does not name
/// are zero.
pub type Message = [u64; 8];

/// Kinds of messages, the first word. The last word of a question is a number that its answer
/// repeats, so that an answer which came too late is not taken for that of a later question.
///
/// Kinds from 8000_0000_0000_0000h on are private to kernels that know each other.
pub mod message {
    /// To the next owner of the workload: the commit is about to come. Word 1: whether to hold after
    /// it, for an onlooker (1), or to serve at once (0). Word 7: to be repeated.
    pub const EXPECT: u64 = 1;
    /// Back: a processor waits for the commit and does nothing else. Word 1: its APIC id. Word 2: the
    /// vector, 20h to FFh, that it wants the interrupts of the workload's devices with.
    pub const EXPECTING: u64 = 2;
    /// To the steward: drain the fault records of the remapping units, and say what they were.
    pub const DRAIN: u64 = 3;
    /// Back. Word 1: how many there were. Of the first, word 2: the requester id; 3: the address;
    /// 4: the unit's code for the reason; 5: whether it was a write.
    pub const DRAINED: u64 = 4;
    /// To the next owner: the commit does not come; wait as before.
    pub const STAND: u64 = 5;
    /// To the owner of the workload: hand it to the sender, which is [`STANDBY`](super::state::STANDBY).
    pub const RETURN: u64 = 6;
}

/// A queue from one partition to one other: single producer, single consumer.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Mailbox {
    /// How many messages have ever been put in; the producer writes it.
    pub head: AtomicU32,
    /// Zero.
    pub reserved: [AtomicU32; 15],
    /// How many messages have ever been taken out; the consumer writes it.
    pub tail: AtomicU32,
    /// Zero.
    pub reserved_too: [AtomicU32; 15],
    /// Message `n` is in slot `n` modulo [`MAILBOX_SLOTS`].
    pub slots: [[AtomicU64; 8]; MAILBOX_SLOTS],
}

/// How many partitions there can be at a time. A partition's place is its number modulo this.
pub const MAX_PARTITIONS: usize = 8;

/// What partitions tell each other.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Exchange {
    /// The status of each partition.
    pub status: [PartitionStatus; MAX_PARTITIONS],
    /// `mailboxes[from][to]`.
    pub mailboxes: [[Mailbox; MAX_PARTITIONS]; MAX_PARTITIONS],
}

impl Exchange {
    /// The place of a partition in both arrays.
    #[must_use]
    pub const fn place(partition: PartitionId) -> usize {
        partition.0 as usize % MAX_PARTITIONS
    }
}

/// How far the processor of a slot of the park area has come.
pub mod park_state {
    /// Nobody is there.
    pub const EMPTY: u32 = 0;
    /// A processor is on its way; its kernel wrote that.
    pub const ARRIVING: u32 = 1;
    /// The processor is in the park area and executes nothing else; it wrote that itself.
    pub const PARKED: u32 = 2;
    /// Somebody wants it; it leaves at its next look.
    pub const CLAIMED: u32 = 3;
    /// It has left with the state that the claim gave it; it wrote that itself.
    pub const LEFT: u32 = 4;
}

/// One processor's slot in the park area. What is done with it is in `docs/entry.md`.
#[derive(Debug)]
#[repr(C, align(256))]
pub struct ParkSlot {
    /// One of [`park_state`] in the lower half, which the area's code reads and writes as 32 bits,
    /// and the processor's APIC id in the upper: who has the slot is decided by one store.
    pub word: AtomicU64,
    /// Where it is to go on.
    pub entry: AtomicU64,
    /// With which CR3.
    pub page_table: AtomicU64,
    /// With which RSP.
    pub stack: AtomicU64,
    /// With which RDI.
    pub argument: AtomicU64,
    /// NMIs taken while parked.
    pub nmi_count: AtomicU32,
    /// Machine checks taken while parked.
    pub machine_check_count: AtomicU32,
    /// The upper part is the processor's stack.
    pub stack_area: [AtomicU64; 26],
}

impl ParkSlot {
    /// How many slots the park area has.
    pub const COUNT: usize = 64;
    /// Where the first is, in bytes from the area's start.
    pub const FIRST: u64 = FRAME_SIZE;
    /// Bytes of the area: the code page, the slots and four page tables.
    pub const AREA: u64 = 9 * FRAME_SIZE;

    /// The bits of a slot's word.
    #[must_use]
    pub const fn to_wire(cpu: ApicId, state: u32) -> u64 {
        (cpu.0 as u64) << 32 | state as u64
    }

    /// The processor and the state that the bits of a slot's word stand for.
    #[must_use]
    pub const fn from_wire(bits: u64) -> (ApicId, u32) {
        (ApicId((bits >> 32) as u32), bits as u32)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Pending => "pending",
            Self::Settled => "settled",
            Self::Intent => "intent",
            Self::Effect => "effect",
            Self::Split => "split",
        })
    }
}

const _: () = {
    assert!(size_of::<LedgerSlot>() == 32);
    assert!(offset_of!(LedgerSlot, kind) == 0);
    assert!(offset_of!(LedgerSlot, parent) == 4);
    assert!(offset_of!(LedgerSlot, base) == 8);
    assert!(offset_of!(LedgerSlot, length) == 16);
    assert!(offset_of!(LedgerSlot, word) == 24);
    assert!(size_of::<Ledger>() == 32 * 1024);
    assert!(offset_of!(Ledger, magic) == 0);
    assert!(offset_of!(Ledger, stewardship) == 8);
    assert!(offset_of!(Ledger, used) == 16);
    assert!(offset_of!(Ledger, reserved) == 20);
    assert!(offset_of!(Ledger, slots) == 64);
    assert!(Ledger::CAPACITY < 0x800);
    assert!(size_of::<PartitionStatus>() == 64);
    assert!(offset_of!(PartitionStatus, partition) == 0);
    assert!(offset_of!(PartitionStatus, state) == 4);
    assert!(offset_of!(PartitionStatus, heartbeat) == 8);
    assert!(offset_of!(PartitionStatus, version) == 16);
    assert!(offset_of!(PartitionStatus, failure) == 20);
    assert!(offset_of!(PartitionStatus, features) == 24);
    assert!(offset_of!(PartitionStatus, detail) == 32);
    assert!(offset_of!(PartitionStatus, since) == 40);
    assert!(offset_of!(PartitionStatus, reserved) == 48);
    assert!(size_of::<Mailbox>() == 1152);
    assert!(offset_of!(Mailbox, head) == 0);
    assert!(offset_of!(Mailbox, reserved) == 4);
    assert!(offset_of!(Mailbox, tail) == 64);
    assert!(offset_of!(Mailbox, reserved_too) == 68);
    assert!(offset_of!(Mailbox, slots) == 128);
    assert!(offset_of!(Exchange, status) == 0);
    assert!(offset_of!(Exchange, mailboxes) == 512);
    assert!(size_of::<Exchange>() == 512 + 64 * 1152);
    assert!(size_of::<ParkSlot>() == 256);
    assert!(offset_of!(ParkSlot, word) == 0);
    assert!(offset_of!(ParkSlot, entry) == 8);
    assert!(offset_of!(ParkSlot, page_table) == 16);
    assert!(offset_of!(ParkSlot, stack) == 24);
    assert!(offset_of!(ParkSlot, argument) == 32);
    assert!(offset_of!(ParkSlot, nmi_count) == 40);
    assert!(offset_of!(ParkSlot, machine_check_count) == 44);
    assert!(offset_of!(ParkSlot, stack_area) == 48);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_ledger_word_is_its_bits(bits: u64) {
            if let Some(word) = LedgerWord::from_wire(bits) {
                prop_assert_eq!(word.to_wire(), bits);
            }
        }

        #[test]
        fn a_stewardship_survives_the_wire(holder: u16, next: u16, slot in 0_u16..1022, follows: bool, epoch in 0_u32..1 << 20) {
            let stewardship = Stewardship {
                holder: PartitionId(holder),
                follows: follows.then_some((PartitionId(next), slot)),
                epoch,
            };
            prop_assert_eq!(Stewardship::from_wire(stewardship.to_wire()), stewardship);
        }
    }

    #[test]
    fn a_word_packs_both_owners_without_overlap() {
        let word = LedgerWord {
            owner: Owner::Partition(PartitionId(0xffff)),
            next: Owner::Workload(crate::WorkloadId(0xffff)),
            phase: Phase::Intent,
            epoch: 0xfff,
        };
        assert_eq!(LedgerWord::from_wire(word.to_wire()), Some(word));
    }
}
