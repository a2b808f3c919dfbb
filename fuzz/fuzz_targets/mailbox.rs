//! A mailbox whose other side keeps to the rules, or does not.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::kernel::mailbox(bytes));
