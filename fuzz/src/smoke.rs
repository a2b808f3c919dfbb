//! Every target on its seeds, on many a beginning of them, and on some hundred damaged ones, in a
//! few seconds and on the stable compiler: `cargo test --lib`. `BATON_SMOKE_ROUNDS` asks for more.

use crate::seeds::{TARGETS, smoke};

#[test]
fn no_target_finds_anything_near_its_seeds() {
    let rounds = std::env::var("BATON_SMOKE_ROUNDS").map_or(1000, |rounds| rounds.parse().unwrap());
    for target in &TARGETS {
        smoke(target, rounds);
    }
}

#[test]
fn the_seeds_reach_what_they_are_for() {
    use acpi_capture::table::{Ivrs, Madt, Sdt};
    let (_, _, seeds) = TARGETS[0];
    let tables: Vec<_> = seeds()
        .iter()
        .map(|seed| crate::grammar::table(seed))
        .collect();
    let mut names: Vec<_> = tables
        .iter()
        .map(|table| Sdt::parse(table).unwrap().signature().to_string())
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), crate::grammar::SHAPES.len());
    let madt = Madt::parse(&tables[0]).unwrap();
    assert!(madt.entries().all(|entry| entry.is_ok()) && madt.processors().count() == 3);
    let ivrs = Ivrs::parse(&tables[3]).unwrap();
    let unit = ivrs.units().next().unwrap();
    assert!(unit.block == 0x40 && unit.devices().all(|device| device.is_ok()));
    assert!(unit.devices().count() >= 8);
    let (_, _, seeds) = TARGETS.iter().find(|target| target.0 == "boot").unwrap();
    let items = |seed: &Vec<u8>| {
        let items = crate::firmware::boot_items(seed);
        items.into_iter().filter_map(Result::ok).count()
    };
    assert_eq!(seeds().iter().map(items).collect::<Vec<_>>(), [5, 8, 7]);
}
