//! Tests of the crate from outside: against tables built byte by byte, against models, and
//! against the tables of real machines.

mod build;
mod capture;
mod corpus;
mod dmar;
mod hostile;
mod iasl;
mod memory;
mod namespace;
mod oracle;
mod partition;
mod tables;
