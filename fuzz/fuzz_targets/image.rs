//! A successor's image of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::kernel::image(bytes));
