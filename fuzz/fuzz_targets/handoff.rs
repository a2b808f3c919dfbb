//! A handoff of any bytes, and of the same under a right checksum, so that the records are reached.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::kernel::handoff(bytes));
