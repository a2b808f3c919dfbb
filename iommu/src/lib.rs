#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate std;

mod platform;

pub use platform::{Deadline, RegisterIo, TableMemory};
