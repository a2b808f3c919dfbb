//! What it costs to move N devices from one domain to another: Baton's two ways beside the ways of
//! Linux, Xen and ACRN, which take one device after the other.
//!
//! Each [`Case`] is a unit, a way and a number of devices. [`run()`] brings a unit up with the same
//! driver for all ways, attaches the devices to the domain [`A`], and has the way move them to the
//! domain [`B`]; an [`Observer`] is told where the phases begin. Everything goes through a
//! [`Platform`], so one program runs on the strict models, which count and hold every way against
//! the rules (the feature `model`), and on a machine whose instructions are counted.
//!
//! The ways of others ([`peers`]) are written anew from what their drivers do: the stores, commands,
//! waits and register accesses of one device's move, in their order. What such a driver does besides
//! (locks, look-ups of its own structures, statistics) is left out, in their favour.
#![cfg_attr(not(feature = "model"), no_std)]
#![forbid(unsafe_code)]

mod case;
#[cfg(feature = "model")]
pub mod model;
mod ours;
pub mod peers;
mod platform;
mod run;

pub use case::{COUNTS, Case, Vendor, Way, cases, devices};
pub use platform::{Observer, Phase, Platform, WideMemory};
pub use run::{A, ARENA, B, Failure, MEMORY, STATUS, run};
