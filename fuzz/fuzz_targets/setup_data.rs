//! A list of `setup_data` anywhere in a small memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::firmware::setup_data(bytes));
