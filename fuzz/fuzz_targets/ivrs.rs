//! An IVRS table: look-ups must not depend on the order of its blocks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::tables::ivrs_in_any_order(bytes));
