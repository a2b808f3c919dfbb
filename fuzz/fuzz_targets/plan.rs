//! The planner: any request to any machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::plan::plan(bytes));
