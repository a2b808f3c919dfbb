//! SMBIOS entry points and structures of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::firmware::smbios(bytes));
