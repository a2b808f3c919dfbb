//! The smaller machine of any machine: a view that is accepted is what comes out.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::smaller::partition(bytes));
