//! Tests of the crate from outside: against tables built byte by byte, against models, and
//! against the tables of real machines.

mod boot;
mod build;
mod build_small;
mod capture;
mod corpus;
mod dmar;
mod fields;
mod hostile;
mod iasl;
mod ivrs;
mod machines;
mod memory;
mod namespace;
mod once;
mod oracle;
mod partition;
mod reencode;
mod setup;
mod small;
mod snapshots;
mod strangers;
mod tables;
mod words;
mod work;
