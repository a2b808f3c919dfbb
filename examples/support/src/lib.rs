//! examples/support
#![no_std]
