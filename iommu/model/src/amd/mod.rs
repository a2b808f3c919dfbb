//! A strict, adversarial model of AMD IOMMUs (AMD 48882), of the same shape as that of VT-d.
//!
//! It is written from the specification and shares nothing with any driver. What it leaves to
//! hardware it takes in the way that hurts software most:
//!
//! * a unit that is off, and a device table entry that is not valid, let everything pass;
//! * every cache keeps what it has until a command takes it out, and fills up again at once, after
//!   every single store and every single command, whether an entry allows anything or not;
//! * a translation or an interrupt entry is looked up before the device table entry is, so a hot
//!   one outlives its entry;
//! * commands are fetched long before they are executed, and execute only when a COMPLETION_WAIT
//!   asks for it, the last first ([`UnitConfig::reorders`]) unless a wait with the f bit is between;
//! * an event's entry arrives in memory after the tail moved, its first word last;
//! * bits that the specification calls meaningless hold rubbish.
//!
//! Where the specification was not at hand and public sources disagree or are silent, the model
//! chose:
//!
//! * V = 0 lets interrupts pass as well, whatever IV says;
//! * a device id beyond the device table is an IO_PAGE_FAULT, and a Mode that the unit has not an
//!   ILLEGAL_DEV_TABLE_ENTRY with RZ clear;
//! * IntCtl = 00b is logged as an IO_PAGE_FAULT; a delivery mode that may not pass is not logged;
//! * an interrupt's event has the message's address;
//! * a leaf that is not aligned to its size counts as reserved bits (RZ);
//! * the command head stays at an illegal command, and what was fetched and not executed is lost;
//! * a table or a command where there is no memory is a hardware error of type master abort; a page
//!   there is refused without an event;
//! * RW is rubbish wherever it is said to mean nothing, PE and RZ are clear there;
//! * switching the event log on clears EventOverflow; clearing EventOverflow alone restarts nothing.
//!
//! What it leaves out: guest translation, peripheral page requests, the guest virtual APIC, remote
//! IOTLBs (device-TLBs), secure nested paging, a second event log.

mod commands;
mod config;
mod devices;
mod entry;
mod events;
mod inspect;
mod interrupt;
mod machine;
mod registers;
mod report;
mod stores;
mod unit;
mod walk;

pub use crate::config::{MachineConfig, Schedule};
pub use crate::devices::{Reach, RegisterWrite};
pub use crate::fabric::Arrival;
pub use crate::report::MemoryCounters;
pub use config::UnitConfig;
pub use devices::{Dma, Injection};
pub use interrupt::Interrupt;
pub use machine::{Attack, Clock, Machine, Registers, Tables};
pub use report::{Counters, Event, Fault, Invalidation, Reason, Rule, Violation};
