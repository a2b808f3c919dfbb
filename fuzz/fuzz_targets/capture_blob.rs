//! A capture of any bytes, as another kernel may have left it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::firmware::capture_blob(bytes));
