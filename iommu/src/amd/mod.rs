//! AMD-Vi: the driver of one remapping unit.
//!
//! | step | function |
//! | --- | --- |
//! | look what the unit can do | [`Capabilities::read`] |
//! | lay out tables that block everything | [`Unit::prepare`] |
//! | domains and what is in them | [`Unit::create_domain`], [`Unit::map`], [`Unit::unmap`], [`Unit::destroy_domain`] |
//! | devices | [`Unit::attach`], [`Unit::block`], [`Unit::move_devices`], [`Unit::prepare_move`] |
//! | interrupts | [`Unit::allocate_interrupt`], [`Unit::open_vectors`], [`Unit::retarget`], [`Unit::clear_interrupt`] |
//! | put the tables into force | [`Unit::enable`], or [`Unit::enable_over`] a command buffer that runs |
//! | make the unit notice a change | [`Unit::flush`], or [`Unit::submit`] and [`Unit::wait`] |
//! | what was refused | [`Unit::drain_faults`], [`Unit::silence`] |
//! | hand the unit over | [`Unit::record`], [`Unit::adopt`] |
//!
//! # What is unlike VT-d
//! * A device table entry of zeros lets everything pass. The table has an entry for each of the
//!   65,536 requester ids (2 MiB), and each denies memory and interrupts before the unit is told of
//!   it. The table is never shorter, in pieces or elsewhere than below 4 GiB.
//! * An entry that denies is as valid as any other, and cached: to attach a device needs a flush
//!   too.
//! * Which interrupt a message raises is decided by the device it comes from and the low bits of
//!   its data, the vector. Each device with interrupts has a table of its own, so no device has a
//!   way to another's, whatever it sends; and a kernel that knows nothing of the fence can have
//!   every vector at one processor ([`Unit::open_vectors`]).
//! * Device caches (DTE.I) are off for every device, the exclusion range is off, port and system
//!   management requests are aborted, and so are NMI, INIT, ExtINT and the lines LINT0 and LINT1. A
//!   system management interrupt is not: no entry says anything of it. Where the unit has a filter
//!   (SmiFSup) it is on, and lets only those devices pass that firmware locked in; where it has none
//!   such an interrupt goes to the machine's firmware.
//! * Translations are invalidated by domain, never by page: one command, right for any change.
//! * A device's interrupt table is never freed, but for another that takes its place.
//!
//! # No entry is ever seen torn
//! The unit reads a device table entry at once, 256 bits, and may do so between any two of the
//! 64-bit stores it is written by. Every entry the unit can see denies or is whole, since all that
//! opens something is one store, and what it depends on is there before it:
//! * *Attach*: the word with the domain id, then the word with V, TV, Mode, the page tables, IR and
//!   IW. Before the second store the entry denies memory, whatever its domain id.
//! * *Block*: the second of these words becomes V and TV alone. The domain id goes when an
//!   invalidation proved that nothing cached with it is left.
//! * *Move*: block, invalidate, attach, invalidate. No order of the stores shows the tables of one
//!   domain with the id of another. Or a whole table takes the place of another, by one store to a
//!   register.
//! * *Interrupts*: IV, IntTabLen, the table and IntCtl are one word and one store, made when the
//!   table is filled. V, TV and IV are never clear.
//!
//! An interrupt entry of 32 bits is one store, made together with its neighbour as it stands. Of
//! one with 128 bits the lower half, with RemapEn and the processor, is stored after the upper one,
//! with the vector. To *retarget* a live one to another processor is one store. Where the upper half
//! changes as well, the device is given another table, with everything as it was but this entry, by one store
//! to its device table entry: a message finds the old target or the new one, none is lost, none
//! goes anywhere else, and when the flush is done all go to the new one.
//!
//! A paging entry has 64 bits and is one store; a new table is filled before the entry that leads
//! to it is stored.

#![forbid(unsafe_code)]

mod adopt;
mod closing;
mod commands;
mod devices;
mod events;
mod hardware;
mod interrupts;
mod pending;
mod probe;
pub mod spec;
mod state;
mod unit;
mod vendor;

pub use probe::Capabilities;
pub use spec::{CapabilityHeader, InterruptFormat};
pub use state::{DomainState, State};
pub use unit::{AmdVi, Config, Unit};

pub use crate::{
    AdoptError, AttachError, DomainError, EnableError, Installed, Interrupt, InterruptError,
    InterruptHandle, InvalidateError, Leaf, MAX_DOMAINS, MapError, MoveError, Moving, Pending,
    PrepareError, PreparedMove, ProbeError, RegisterError, SELECTIVE_LIMIT, Submitted, TableFault,
    TriggerMode, UnmapError,
};
