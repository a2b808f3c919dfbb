//! A successor's command line: a record of the example kernels' own, not critical.

use handoff_abi::Handoff;

/// Kinds from 8000_0000h on are for those who write and read them to agree on.
pub const KIND: u32 = 0x8000_0001;

/// The command line in a handoff; empty where it has none.
#[must_use]
pub fn of<'a>(handoff: &Handoff<'a>) -> &'a str {
    handoff
        .raw_records()
        .find(|record| record.header.kind == KIND)
        .and_then(|record| core::str::from_utf8(record.payload).ok())
        .map_or("", |line| line.trim_end_matches('\0'))
}

/// The value of `key=value` in a command line.
#[must_use]
pub fn option<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
