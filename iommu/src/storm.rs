//! Bounding what a fenced device can cost by making faults.
//!
//! A device that is blocked can still keep a processor busy: each request that the unit refuses is
//! recorded, announced and looked at. [`FaultCounts`] counts them by requester, and when one of them
//! made too many within a window, [`stop`] silences it in the unit (VT-d: FPD; AMD-Vi: SA and IG)
//! and takes its bus mastering away. Both, since neither is enough: a silenced device still takes
//! the unit's time and its refused interrupts may still be recorded, and a function that is no bus
//! master may not obey.
//!
//! ```
//! # use handoff_abi::RequesterId;
//! # use iommu::storm::{FaultCounts, Limit};
//! // 64 faults within 100 ms, by a clock of milliseconds; up to 16 requesters at a time.
//! let mut counts = FaultCounts::<16>::new(Limit { faults: 64, window: 100 });
//! # let (nic, now) = (RequesterId(0x0100), 7);
//! for _ in 0..64 {
//!     counts.note(nic, now); // From within `drain_faults`.
//! }
//! // After it: whoever is to be stopped.
//! let storm = counts.next_storm().unwrap();
//! assert_eq!((storm.requester, storm.faults), (nic, 64));
//! assert_eq!(counts.next_storm(), None);
//! ```
//!
//! # Which requesters are remembered
//!
//! The memory is fixed, and whoever makes the faults chooses the ids they come from as far as the
//! bridges above let it. When a fault comes from one that has no row and all `N` are taken,
//!
//! 1. a row of a requester that was stopped is used again, else
//! 2. the row with the fewest faults.
//!
//! The newcomer may have had a row before and lost it. So it begins with the largest count that any
//! lost row had as *doubt*: it made between `count - doubt` and `count` faults.
//!
//! A requester is stopped for the faults that it made for certain, so nobody is stopped for the
//! faults of others. No number of other requesters can hide one that storms: the rows' counts add up
//! to no more than all faults of the window, hence the fewest are at most a part in `N` of them, a
//! requester that made more than that keeps its row, and it is found when it has made that many and
//! [`Limit::faults`] more. ("Space-Saving": Metwally, Agrawal and El Abbadi, 2005.) Faults from so
//! many requesters that none of them stands out are a [flood](FaultCounts::is_flooded).

use core::fmt;

use handoff_abi::{PciFunction, RequesterId};
use heapless::Vec;

use crate::config_space::ConfigSpace;
use crate::quiesce::{QuiesceError, stop_bus_master};

/// When the faults of a requester are a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Limit {
    /// So many faults within one window are too many. At least 1; 0 is taken for 1.
    pub faults: u32,
    /// How long a window is, in the unit of time that the embedder's clock has. One begins with the
    /// first fault after the window before is over.
    pub window: u64,
}

/// A requester that made too many faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Storm {
    /// Who made them. Functions below a PCI Express to PCI bridge share one id.
    pub requester: RequesterId,
    /// How many it made for certain in this window; the count stops at its largest value.
    pub faults: u32,
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} made {} faults", self.requester, self.faults)
    }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    requester: RequesterId,
    count: u32,
    doubt: u32,
    stopped: bool,
}

impl Row {
    const fn certain(&self) -> u32 {
        self.count - self.doubt
    }
}

/// The faults of up to `N` requesters within the present window. See the [module](self) for what
/// becomes of more. `N` is at least 1.
#[derive(Clone, Debug)]
pub struct FaultCounts<const N: usize> {
    limit: Limit,
    /// When the window began; `None` before the first fault.
    begun: Option<u64>,
    rows: Vec<Row, N>,
    /// The largest count that a requester lost its row with in this window. No row that was not
    /// stopped has less.
    lost: u32,
    total: u32,
}

impl<const N: usize> FaultCounts<N> {
    const SOME: () = assert!(N > 0, "no requester can be counted");

    /// Counts nothing yet.
    #[must_use]
    pub const fn new(limit: Limit) -> Self {
        let () = Self::SOME;
        Self {
            limit,
            begun: None,
            rows: Vec::new(),
            lost: 0,
            total: 0,
        }
    }

    /// Counts a fault that was found at `now`. Takes a time that depends on `N` alone.
    pub fn note(&mut self, requester: RequesterId, now: u64) {
        self.turn_window(now);
        self.total = self.total.saturating_add(1);
        if let Some(row) = self.rows.iter_mut().find(|row| row.requester == requester) {
            row.count = row.count.saturating_add(1);
            return;
        }
        if self.rows.is_full() {
            // What was stopped first, then the fewest faults.
            let first = |(_, row): &(usize, &Row)| (!row.stopped, row.count);
            if let Some((place, row)) = self.rows.iter().enumerate().min_by_key(first) {
                if !row.stopped {
                    self.lost = self.lost.max(row.count);
                }
                self.rows.swap_remove(place);
            }
        }
        let new = Row {
            requester,
            count: self.lost.saturating_add(1),
            doubt: self.lost,
            stopped: false,
        };
        // There is room: a row was taken out.
        let _ = self.rows.push(new);
    }

    /// Begins a new window where the present one is over. Requesters that were stopped stay known,
    /// so that faults of theirs that were under way do not have them stopped again; and one that is
    /// over the limit stays until it was asked for.
    fn turn_window(&mut self, now: u64) {
        let over = |begun: u64| now.wrapping_sub(begun) >= self.limit.window;
        if self.begun.is_none_or(over) {
            let limit = self.limit.faults.max(1);
            self.begun = Some(now);
            self.total = 0;
            self.rows
                .retain(|row| row.stopped || row.certain() >= limit);
        }
    }

    /// The next requester that is to be stopped. It is told once.
    pub fn next_storm(&mut self) -> Option<Storm> {
        let limit = self.limit.faults.max(1);
        let row = self
            .rows
            .iter_mut()
            .find(|row| !row.stopped && row.certain() >= limit)?;
        row.stopped = true;
        Some(Storm {
            requester: row.requester,
            faults: row.certain(),
        })
    }

    /// Forgets a requester: it was given to a new owner and is heard again. Its next storm is told
    /// again.
    pub fn forget(&mut self, requester: RequesterId) {
        self.rows.retain(|row| row.requester != requester);
    }

    /// The faults of this window, of all requesters; the count stops at its largest value.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// Whether this window had more faults than `N` requesters could have made without any of them
    /// being stopped. They come from many, or are made anew by one that does not obey. The fault
    /// message is best left off until the window is over: what is refused stays refused.
    #[must_use]
    pub fn is_flooded(&self) -> bool {
        let rows = u32::try_from(N).unwrap_or(u32::MAX);
        self.total > rows.saturating_mul(self.limit.faults.max(1))
    }
}

/// What became of a storm: a report for the log of the embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stopped<S, E> {
    /// Who made how many faults.
    pub storm: Storm,
    /// Whether it is silenced in the unit, or why not.
    pub silenced: Result<(), S>,
    /// Whether all of its functions have ceased to be bus masters; else the first that has not.
    pub bus_masters: Result<(), QuiesceError<E>>,
}

impl<S, E> Stopped<S, E> {
    /// Whether it makes no more faults: its functions are no bus masters, or the unit says nothing
    /// of them.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        self.silenced.is_ok() || self.bus_masters.is_ok()
    }
}

impl<S: fmt::Display, E: fmt::Display> fmt::Display for Stopped<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storm.fmt(f)?;
        match &self.silenced {
            Ok(()) => f.write_str(", is silenced")?,
            Err(error) => write!(f, ", cannot be silenced ({error})")?,
        }
        match &self.bus_masters {
            Ok(()) => f.write_str(" and no bus master"),
            Err(error) => write!(f, " and stays a bus master ({error})"),
        }
    }
}

/// Stops a requester: takes bus mastering from all its `functions`, and has the unit silence it.
/// Each is tried whatever becomes of the other.
///
/// `functions` are those that make requests with this id: one, or those below a bridge. `silence` has
/// the unit keep quiet about the requester, and flushes that.
pub fn stop<P: ConfigSpace, S>(
    storm: Storm,
    functions: &[PciFunction],
    config: &mut P,
    silence: impl FnOnce(RequesterId) -> Result<(), S>,
) -> Stopped<S, P::Error> {
    let mut bus_masters = Ok(());
    for &function in functions {
        // Evaluated for all of them; the first error is kept.
        bus_masters = bus_masters.and(stop_bus_master(config, function));
    }
    Stopped {
        storm,
        silenced: silence(storm.requester),
        bus_masters,
    }
}
