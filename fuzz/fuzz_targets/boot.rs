//! What a boot loader says by PVH, Multiboot2 or Linux's boot protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_fuzz::firmware::boot(bytes));
