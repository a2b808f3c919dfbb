//! An ACPI table of any kind: its entries are put together from the input, with right lengths where
//! the input does not ask for wrong ones, under a right checksum.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::tables::table(bytes));
