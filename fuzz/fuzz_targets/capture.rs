//! A memory full of tables that point anywhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::firmware::capture(bytes));
