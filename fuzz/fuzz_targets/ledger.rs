//! A ledger that another kernel filled with anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::kernel::ledger(bytes));
