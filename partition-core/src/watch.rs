//! Watching a partition that is being brought up, and saying how far one is oneself.

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
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use handoff_abi::{
    AbiVersion, ApicId, Exchange, Features, Header, Owner, PartitionId, PartitionStatus, resource,
    state,
};
use iommu::Deadline;

use crate::ledger::LedgerView;
use crate::wait::look_for;

const IN_USE: u32 = 0x1_0000;

/// Why a partition that was waited for did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum WatchError {
    /// It did not come that far in time.
    Timeout {
        /// The state it was in, one of [`state`].
        reached: u32,
        /// Whether its heartbeat moved while it was waited for: slow, and not dead.
        alive: bool,
    },
    /// It gave up by itself.
    Failed {
        /// The kernel's own number for why.
        reason: u32,
        /// More of it.
        detail: u64,
    },
    /// It was started and refused what it was given; its receipt says so.
    Refused {
        /// The kernel's own number for why.
        reason: u64,
    },
    /// It left the order of states: it is not what was launched, or it writes nonsense.
    Order {
        /// The state it was in.
        from: u32,
        /// The state it claims.
        to: u32,
    },
    /// The place in the exchange is another partition's.
    Stranger {
        /// What the place says.
        found: u32,
    },
    /// It states a version or lacks a feature it cannot be worked with.
    Version {
        /// What it states.
        found: AbiVersion,
    },
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout {
                reached,
                alive: true,
            } => {
                write!(f, "it is alive but came only to state {reached} in time")
            }
            Self::Timeout {
                reached,
                alive: false,
            } => {
                write!(
                    f,
                    "it stopped in state {reached} and its heart does not beat"
                )
            }
            Self::Failed { reason, detail } => {
                write!(f, "it gave up: reason {reason}, detail {detail:#x}")
            }
            Self::Refused { reason } => {
                write!(f, "it refused what it was given: reason {reason}")
            }
            Self::Order { from, to } => write!(f, "it went from state {from} to state {to}"),
            Self::Stranger { found } => write!(f, "its place in the exchange says {found:#x}"),
            Self::Version { found } => write!(f, "it speaks version {found}"),
        }
    }
}

impl core::error::Error for WatchError {}

/// Whether a watcher may see `to` after it saw `from`: it may miss states on the way up, and from
/// [`state::READY`] on they may come again, but nobody goes back below that or leaves
/// [`state::RETIRED`].
const fn may_be_seen_after(from: u32, to: u32) -> bool {
    if from == to {
        return true;
    }
    match to {
        state::ENTERED..=state::READY => from != state::EMPTY && from < to,
        state::SERVING..=state::RETIRED => from >= state::READY && from < state::RETIRED,
        _ => false,
    }
}

/// Why a handoff that reads well is not for the processor that reads it, or not for now. Nothing has
/// been touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ArrivalError {
    /// Who wrote it is not the steward.
    Writer {
        /// Who it says wrote it.
        stated: PartitionId,
        /// Who is the steward.
        steward: PartitionId,
    },
    /// It was written under another stewardship.
    Epoch {
        /// The epoch it states.
        stated: u64,
        /// The ledger's.
        ledger: u64,
    },
    /// The processor that reads it is not the reader's.
    Reader {
        /// Who it says it is for.
        stated: PartitionId,
        /// The processor.
        cpu: ApicId,
        /// Who owns the processor; `None` where the ledger has no such processor.
        owner: Option<Owner>,
    },
    /// The reader's place in the exchange was not prepared for it.
    Place {
        /// Who it says it is for.
        stated: PartitionId,
        /// What the place says.
        found: u32,
        /// The state it is in.
        state: u32,
    },
}

impl fmt::Display for ArrivalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Writer { stated, steward } => write!(
                f,
                "handoff was written by partition {stated}, and the steward is partition {steward}"
            ),
            Self::Epoch { stated, ledger } => write!(
                f,
                "handoff was written in epoch {stated}, and the ledger is in epoch {ledger}"
            ),
            Self::Reader {
                stated,
                cpu,
                owner: Some(owner),
            } => write!(
                f,
                "handoff is for partition {stated}, and processor {cpu} belongs to {owner}"
            ),
            Self::Reader {
                stated,
                cpu,
                owner: None,
            } => write!(
                f,
                "handoff is for partition {stated}, and processor {cpu} is in no ledger"
            ),
            Self::Place {
                stated,
                found,
                state,
            } => write!(
                f,
                "handoff is for partition {stated}, whose place says {found:#x} in state {state}"
            ),
        }
    }
}

impl core::error::Error for ArrivalError {}

/// One's own status: every state and heartbeat that others see is written through this.
#[derive(Debug)]
pub struct OwnStatus<'a> {
    status: &'a PartitionStatus,
}

impl<'a> OwnStatus<'a> {
    /// Takes the place of a partition that was launched, on its first processor `cpu`, after its
    /// handoff was read: where the header agrees with what the ledger and the exchange say. They
    /// are the steward's, so a stale handoff and one for somebody else are told apart from one's
    /// own before anything is written.
    ///
    /// # Errors
    /// What does not agree.
    pub fn arrive(
        exchange: &'a Exchange,
        ledger: LedgerView<'_>,
        header: &Header,
        cpu: ApicId,
    ) -> Result<Self, ArrivalError> {
        let (stated, steward) = (header.writer, ledger.steward());
        if stated != steward {
            return Err(ArrivalError::Writer { stated, steward });
        }
        let (stated, epoch) = (header.epoch, u64::from(ledger.stewardship().epoch));
        if stated != epoch {
            return Err(ArrivalError::Epoch {
                stated,
                ledger: epoch,
            });
        }
        let stated = header.reader;
        let owner = ledger
            .find(resource::CPU, cpu.0.into(), 1)
            .map(|entry| entry.word.owner);
        if owner != Some(Owner::Partition(stated)) {
            return Err(ArrivalError::Reader { stated, cpu, owner });
        }
        let status = exchange.status.get(Exchange::place(stated));
        let (found, state) = status.map_or((0, state::EMPTY), |status| {
            (status.partition.load(Acquire), status.state.load(Acquire))
        });
        match status {
            Some(status) if found == IN_USE | u32::from(stated.0) && state == state::LAUNCHED => {
                Ok(Self { status })
            }
            _ => Err(ArrivalError::Place {
                stated,
                found,
                state,
            }),
        }
    }

    /// Takes the place of `me` without asking: for the very first kernel, whose place is still
    /// empty, and for a partition that has [arrived](Self::arrive).
    #[must_use]
    pub fn new(exchange: &'a Exchange, me: PartitionId) -> Option<Self> {
        let status = exchange.status.get(Exchange::place(me))?;
        status.partition.store(IN_USE | u32::from(me.0), Release);
        Some(Self { status })
    }

    /// States version and features; before [`state::NEGOTIATED`].
    pub fn speak(&self, version: AbiVersion, features: Features) {
        let bits = u32::from(version.major) << 16 | u32::from(version.minor);
        self.status.version.store(bits, Relaxed);
        self.status.features.store(features.bits(), Release);
    }

    /// States how far this partition has come, at time `now` of the time stamp counter.
    pub fn enter(&self, new: u32, now: u64) {
        self.status.since.store(now, Relaxed);
        self.status.state.store(new, Release);
    }

    /// Gives up, and says why.
    pub fn fail(&self, reason: u32, detail: u64) {
        self.status.failure.store(reason, Relaxed);
        self.status.detail.store(detail, Relaxed);
        self.status.state.store(state::FAILED, Release);
    }

    /// One beat.
    pub fn beat(&self) {
        self.status.heartbeat.fetch_add(1, Relaxed);
    }

    /// The state that was entered last.
    #[must_use]
    pub fn state(&self) -> u32 {
        self.status.state.load(Relaxed)
    }
}

/// A partition as its steward watches it.
#[derive(Debug)]
pub struct Watch<'a> {
    status: &'a PartitionStatus,
    partition: PartitionId,
    last: u32,
    receipt: Option<&'a AtomicU64>,
}

impl<'a> Watch<'a> {
    /// Prepares the place of a partition that is about to be launched.
    #[must_use]
    pub fn prepare(exchange: &'a Exchange, partition: PartitionId) -> Option<Self> {
        let place = Exchange::place(partition);
        let status = exchange.status.get(place)?;
        status.heartbeat.store(0, Relaxed);
        status.version.store(0, Relaxed);
        status.failure.store(0, Relaxed);
        status.features.store(0, Relaxed);
        status.detail.store(0, Relaxed);
        status
            .partition
            .store(IN_USE | u32::from(partition.0), Relaxed);
        // Queues that an earlier partition of this place left behind begin empty.
        for (index, row) in exchange.mailboxes.iter().enumerate() {
            for (other, mailbox) in row.iter().enumerate() {
                if index == place || other == place {
                    mailbox.head.store(0, Relaxed);
                    mailbox.tail.store(0, Relaxed);
                }
            }
        }
        status.state.store(state::LAUNCHED, Release);
        Some(Self {
            status,
            partition,
            last: state::LAUNCHED,
            receipt: None,
        })
    }

    /// Watches the receipt of the trampoline that the partition is started by as well
    /// ([`Trampoline::receipt`](crate::trampoline::Trampoline::receipt)): a successor that cannot
    /// read its handoff knows of no exchange, and stores its reason there.
    #[must_use]
    pub const fn with_receipt(self, receipt: &'a AtomicU64) -> Self {
        Self {
            receipt: Some(receipt),
            ..self
        }
    }

    /// Watches a partition that lives already.
    #[must_use]
    pub fn join(exchange: &'a Exchange, partition: PartitionId) -> Option<Self> {
        let status = exchange.status.get(Exchange::place(partition))?;
        Some(Self {
            status,
            partition,
            last: status.state.load(Acquire),
            receipt: None,
        })
    }

    /// Forgets a partition that is no more.
    pub fn clear(self) {
        self.status.state.store(state::EMPTY, Release);
        self.status.partition.store(0, Release);
    }

    /// Looks once. The order of states is in `docs/swap.md`.
    ///
    /// # Errors
    /// Where it failed or refused, or claims a state that cannot follow.
    pub fn look(&mut self) -> Result<u32, WatchError> {
        let receipt = self.receipt.map_or(0, |receipt| receipt.load(Acquire));
        if receipt != 0 {
            return Err(WatchError::Refused { reason: receipt });
        }
        let found = self.status.partition.load(Acquire);
        if found != IN_USE | u32::from(self.partition.0) {
            return Err(WatchError::Stranger { found });
        }
        let now = self.status.state.load(Acquire);
        if now == state::FAILED {
            return Err(WatchError::Failed {
                reason: self.status.failure.load(Relaxed),
                detail: self.status.detail.load(Relaxed),
            });
        }
        if !may_be_seen_after(self.last, now) {
            return Err(WatchError::Order {
                from: self.last,
                to: now,
            });
        }
        self.last = now;
        Ok(now)
    }

    /// Waits until the partition is in state `wanted`, or, on the way up to [`state::READY`], past
    /// it: states that follow each other quickly may be missed.
    ///
    /// # Errors
    /// Where it is not, in time.
    pub fn wait(
        &mut self,
        wanted: u32,
        microseconds: u32,
        deadline: &mut impl Deadline,
    ) -> Result<(), WatchError> {
        let heartbeat = self.status.heartbeat.load(Relaxed);
        let mut reached = self.last;
        look_for(microseconds, deadline, || match self.look() {
            Ok(now) => {
                reached = now;
                let there = now == wanted || (now > wanted && now <= state::READY);
                there.then_some(Ok(()))
            }
            Err(error) => Some(Err(error)),
        })
        .unwrap_or_else(|| {
            let alive = self.status.heartbeat.load(Relaxed) != heartbeat;
            Err(WatchError::Timeout { reached, alive })
        })
    }

    /// The version and features the partition states.
    ///
    /// # Errors
    /// Where it has no version in common with `ours`.
    pub fn negotiated(&self, ours: AbiVersion) -> Result<(AbiVersion, Features), WatchError> {
        let bits = self.status.version.load(Acquire);
        let found = AbiVersion {
            major: (bits >> 16) as u16,
            minor: bits as u16,
        };
        let features = Features::from_bits_retain(self.status.features.load(Acquire));
        match ours.common(found) {
            Some(common) if common == found => Ok((found, features)),
            _ => Err(WatchError::Version { found }),
        }
    }

    /// Time stamp counter when it entered the state that it is in; an allegation.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.status.since.load(Relaxed)
    }

    /// The partition.
    #[must_use]
    pub const fn partition(&self) -> PartitionId {
        self.partition
    }
}
