//! What the fuzz targets do with their input, as functions, so that the same code
//! runs below a fuzzer and as a short test on any machine.
//!
//! A function takes any bytes. It panics where the library broke a promise.

pub mod firmware;
pub mod grammar;
pub mod kernel;
pub mod linux;
pub mod plan;
pub mod seeds;
pub mod smaller;
pub mod tables;

#[cfg(test)]
mod smoke;
