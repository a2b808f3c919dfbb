//! A Linux kernel's file of any bytes, for a partition of any shape.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::linux::bzimage(bytes));
