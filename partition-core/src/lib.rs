//! partition-core
#![no_std]
