//! Tables that are made to cost as much as they can: reading everything of them takes no more than
//! 1 ms for each KiB.

use std::time::{Duration, Instant};

use acpi_capture::table::*;

use crate::build::*;
use crate::hostile::read_everything;

/// What a KiB may take. Code that is not optimised takes some twenty times as long; what grows with
/// the square of the input takes hundreds of times as long.
const BOUND: Duration = Duration::from_millis(if cfg!(debug_assertions) { 20 } else { 1 });

/// What it takes to read everything of these bytes; panics where that is more than the bound.
pub(crate) fn reading(name: &str, bytes: &[u8]) -> Duration {
    let kib = bytes.len().div_ceil(1024).max(1) as u32;
    let work = || std::hint::black_box(read_everything(bytes));
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let least = (0..2).map(once).min().unwrap();
    if least <= BOUND * kib {
        return least / kib;
    }
    // Something else may have come in between: the time that the processor spent here tells, but
    // is only brought up to date now and then.
    let start = spent();
    let mut runs = 0;
    while runs < 3 || (spent().saturating_sub(start) < Duration::from_millis(100) && runs < 1000) {
        work();
        runs += 1;
    }
    let each = spent().saturating_sub(start) / runs;
    assert!(each <= BOUND * kib, "{name}: {each:?} for {kib} KiB");
    each / kib
}

/// Time that this thread was on a processor, where Linux says it; else, all time.
fn spent() -> Duration {
    thread_local!(static START: Instant = Instant::now());
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = said.and_then(|said| said.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| START.with(Instant::elapsed), Duration::from_nanos)
}

fn ivhd_of(unit: u16, block: u8, devices: &[u8]) -> Vec<u8> {
    let mut bytes = vec![block, 0, 0, 0];
    bytes.extend_from_slice(&unit.to_le_bytes());
    bytes.extend_from_slice(&[0x40, 0]);
    bytes.extend_from_slice(&(0xfd00_0000 + u64::from(unit) * 0x4000).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    if block != 0x10 {
        bytes.extend_from_slice(&[0; 16]);
    }
    bytes.extend_from_slice(devices);
    let length = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Tables of about `size` bytes and the names of what they are made to cost.
fn tables(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let filler = |header: [u8; 4], taken: usize| {
        let count = size.saturating_sub(taken) / 4;
        header.repeat(count)
    };
    // All of these share one bit of the filter for repeated ids.
    let colliding = (1..=size as u32 / 16).map(|k| local_x2apic(k, k << 13 | (k & 0x1fff) ^ 5, 1));
    let io_apics = |count| vec![scope(3, 8, 0xf0, &[(31, 0)]); count];
    let units = |count: u64, scopes: &[Vec<u8>]| {
        let units = (1..=count).map(|n| drhd(n % 2 == 0, (n % 3) as u16, n * 0x1000, scopes));
        units.collect::<Vec<_>>()
    };
    let mut scattered = units(128, &[]);
    scattered.push(filler([9, 0, 4, 0], 128 * 16));
    let specials = special(1, 8, 0xa0, 0).repeat(size / 128 / 8);
    let ranges = device_range(8, 0xfffe, 0).repeat(size / 128 / 8);
    let distinct = |block, devices: &[u8]| {
        let blocks = (0..128).map(|unit| ivhd_of(unit * 8, block, devices));
        blocks.collect::<Vec<_>>()
    };
    let mut lost = distinct(0x10, &[]);
    lost.push(filler([0x77, 0, 4, 0], 128 * 24));
    vec![
        (
            "processors whose ids share a bit",
            madt(0, 0, &colliding.collect::<Vec<_>>()),
        ),
        (
            "one processor again and again",
            madt(0, 0, &vec![local_apic(1, 1, 1); size / 8]),
        ),
        (
            "entries of two bytes",
            madt(0, 0, &vec![vec![0x77, 2]; size / 2]),
        ),
        (
            "units with many scopes",
            dmar(38, 1, &units(128, &io_apics(size / 128 / 8))),
        ),
        (
            "one unit with all scopes",
            dmar(38, 1, &units(1, &io_apics((size / 8).min(8000)))),
        ),
        ("units before much else", dmar(38, 1, &scattered)),
        ("units of AMD before much else", ivrs(&lost)),
        (
            "units with many special devices",
            ivrs(&distinct(0x11, &specials)),
        ),
        ("units with many ranges", ivrs(&distinct(0x40, &ranges))),
        (
            "one unit in many blocks",
            ivrs(&vec![ivhd_of(8, 0x11, &ranges); 128]),
        ),
        (
            "memory of many devices",
            ivrs(&vec![ivmd(0x22, 1, (0, 0xffff), 0x1000, 0x1000); size / 32]),
        ),
        ("affinities", srat(3, &vec![srat_apic(0, 1, 1); size / 16])),
        (
            "a structure of many strings",
            smbios_structure(1, 1, &[1, 2, 3], &vec!["x"; size / 2]),
        ),
        (
            "structures without strings",
            smbios_structure(1, 1, &[], &[]).repeat(size / 6),
        ),
    ]
}

#[test]
fn no_table_takes_more_than_a_millisecond_for_each_kib() {
    let mut worst = Vec::new();
    for size in [16 << 10, 128 << 10] {
        for (name, table) in tables(size) {
            worst.push((reading(name, &table), name, table.len()));
        }
    }
    worst.sort_unstable();
    for (each, name, length) in worst.iter().rev().take(3) {
        eprintln!("{name}: {each:?} for each KiB of {length} bytes");
    }
}

#[test]
fn ids_that_share_their_bits_do_not_hide_the_processors_before_them() {
    let entries: Vec<_> = (1..=4000_u32)
        .map(|k| local_x2apic(k, k << 13 | (k & 0x1fff) ^ 5, 1))
        .collect();
    let table = madt(0, 0, &entries);
    let seen = Madt::parse(&table).unwrap().processors().count();
    assert_eq!(seen, 2049);
    // Ids below 8192 have a bit each: none of them is ever looked for.
    let entries: Vec<_> = (0..8192).map(|id| local_x2apic(id, id, 1)).collect();
    let table = madt(0, 0, &entries);
    assert_eq!(Madt::parse(&table).unwrap().processors().count(), 8192);
}
