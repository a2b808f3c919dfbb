//! examples/workload
#![no_std]
