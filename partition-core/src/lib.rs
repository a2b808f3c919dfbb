#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

#[expect(unsafe_code, reason = "the local APIC is memory mapped")]
pub mod apic;
pub mod baton;
pub mod cpu;
mod descriptors;
pub mod image;
pub mod ledger;
pub mod mailbox;
#[expect(
    unsafe_code,
    reason = "code and tables that outlive every kernel are laid down by address"
)]
pub mod park;
pub mod plan;
#[expect(
    unsafe_code,
    reason = "code and parameters for real mode are laid down by address"
)]
pub mod trampoline;
mod wait;
#[expect(
    unsafe_code,
    reason = "code and a mailbox that another kernel writes are laid down by address"
)]
pub mod wakeup;
pub mod watch;
