//! The workload's memory against models that are written from the specifications.

mod device;
mod memory;
mod queue;
