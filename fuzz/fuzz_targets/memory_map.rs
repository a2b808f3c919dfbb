//! Memory maps of any entries, held against a map of bits.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::firmware::memory_map(bytes));
