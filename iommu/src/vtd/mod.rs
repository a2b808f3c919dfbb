//! VT-d: the driver of one remapping unit.
//!
//! | step | function |
//! | --- | --- |
//! | look what the unit can do | [`Capabilities::read`] |
//! | lay out tables that block everything | [`Unit::prepare`] |
//! | domains and what is in them | [`Unit::create_domain`], [`Unit::map`], [`Unit::unmap`], [`Unit::destroy_domain`] |
//! | devices | [`Unit::attach`], [`Unit::block`], [`Unit::move_devices`], [`Unit::prepare_move`] |
//! | interrupts | [`Unit::allocate_interrupt`], [`Unit::retarget`], [`Unit::clear_interrupt`] |
//! | put the tables into force | [`Unit::enable`], or [`Unit::enable_over`] a queue that runs |
//! | make the unit notice a change | [`Unit::flush`], or [`Unit::submit`] and [`Unit::wait`] |
//! | what was refused | [`Unit::drain_faults`], [`Unit::silence`] |
//! | hand the unit over | [`Unit::record`], [`Unit::adopt`] |
//!
//! # Choices
//! * Legacy mode, second-stage tables, queued invalidation, interrupt remapping. A unit without
//!   the last two is refused.
//! * ATS is off for every device: a device that may send translated addresses can reach all
//!   memory.
//! * Each unit has tables of its own. A domain that devices of several units use is made on each.
//! * Translations are invalidated by domain, never by page: one descriptor, right for any change.
//! * The context table of a bus is never freed: there are at most 256, 1 MiB in all.
//! * Whatever fails, a device ends blocked or as it was, and nothing is reused that the unit may
//!   still have in a cache.
//!
//! # No entry is ever seen torn
//! Context and interrupt entries have 128 bits and are written by 64-bit stores; the unit may read
//! an entry between any two of them. The present bit is in the lower half.
//! * *Set*: the entry is not present. The upper half is stored first, then the lower one with the
//!   present bit. The unit sees an entry that is not present, or the whole one.
//! * *Retire*: the present bit alone is cleared, by one store. The rest follows when an
//!   invalidation proved that the unit has forgotten the entry (section 6.5.3.3).
//! * *Retarget* an interrupt: P, FPD, DM, RH, TM, DLM, V and DST are bits 63:0, and SID, SQ and SVT
//!   bits 83:64 (section 9.9). The source of a live entry does not change, so the upper half does
//!   not, and one 64-bit store replaces everything that does. The entry is present before and
//!   after it and whichever half-pair the unit reads is one of two whole entries: a message finds
//!   the old target or the new one. None is lost, none goes anywhere else, and when the
//!   invalidation of the index is done, all go to the new one.
//!
//! A paging entry has 64 bits and is one store; a new table is filled before the entry that leads
//! to it is stored.
//!
//! # Exchanging the root table
//! A [prepared](Unit::prepare_move) move of many devices writes a second root table, with a context
//! table for each bus that has one, beforehand. The move is RTADDR and SRTP with translation on,
//! then one batch of a global context cache invalidation, a global IOTLB invalidation and a wait
//! (section 6.6). Until the wait is done a request may be answered from either table, and from what
//! is cached of either: both are whole, and no other device has another entry in one than in the
//! other. The batch is not left out where the unit invalidates by itself (ESRTPS): that it also
//! drains writes that the old tables let through, only the IOTLB invalidation promises. Where the
//! unit does not say that it took the new table, the devices are blocked in both, and no batch is
//! given to it before it was told again.

#![forbid(unsafe_code)]

mod adopt;
mod closing;
mod context;
mod faults;
mod hardware;
mod interrupts;
mod pending;
mod probe;
mod queue;
pub mod spec;
mod state;
mod unit;
mod vendor;

pub use probe::Capabilities;
pub use state::{DomainState, State};
pub use unit::{Config, Unit, VtD};

pub use crate::{
    AdoptError, AttachError, DomainError, EnableError, Installed, Interrupt, InterruptError,
    InterruptHandle, InvalidateError, Leaf, MAX_DOMAINS, MapError, MoveError, Moving, Pending,
    PrepareError, PreparedMove, ProbeError, RegisterError, SELECTIVE_LIMIT, Submitted, TableFault,
    TriggerMode, UnmapError,
};
