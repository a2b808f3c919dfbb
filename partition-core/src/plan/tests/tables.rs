//! The number of remapping table pages, against tables that are really laid out.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Lays tables out from the top, entry by entry; each table is its level and where it begins.
fn lay_out(
    maps: &[PhysRange],
    largest: PageSize,
    (level, base): (u32, u64),
    tables: &mut BTreeSet<(u32, u64)>,
) {
    tables.insert((level, base));
    if level == 1 {
        return;
    }
    let span = 1_u64 << (12 + 9 * (level - 1));
    for map in maps {
        let first = map.base().0.max(base) / span;
        let last = (map.end().0 - 1).min(base + (span * 512 - 1)) / span;
        for entry in first..=last {
            let at = entry * span;
            let whole = map.base().0 <= at && at + span <= map.end().0;
            let leaf = whole
                && match level {
                    2 => largest != PageSize::Size4KiB,
                    3 => largest == PageSize::Size1GiB,
                    _ => false,
                };
            if !leaf && first <= last {
                lay_out(&[*map], largest, (level - 1, at), tables);
            }
        }
    }
}

fn tables_for(maps: &[PhysRange], levels: u8, largest: PageSize) -> u64 {
    let mut tables = BTreeSet::new();
    let top = u32::from(levels);
    lay_out(maps, largest, (top, 0), &mut tables);
    tables.len() as u64
}

fn planned(memory: &[PhysRange], levels: u8, largest: PageSize) -> Plan {
    let mut world = world();
    world.memory = memory
        .iter()
        .map(|range| MemoryRegion {
            range: *range,
            kind: MemoryKind::Usable,
            owner: PRIME,
        })
        .collect();
    world.windows.clear();
    world.units[0].levels = levels;
    world.units[0].largest_page = largest;
    world.budget.table_pages = u64::MAX;
    let mut ask = ask();
    ask.memory = Memory::These(memory.to_vec());
    ask.least_memory = 0;
    ask.trampoline = Trampoline::None;
    ask.plan(&world, &mut Findings::new()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn one_range_is_counted_exactly_and_several_never_too_low(
        starts in prop::collection::vec((0_u64..1 << 10, 0_u64..1 << 18, 1_u64..1 << 19), 1..4),
        levels in 3_u8..=5,
        largest in prop::sample::select(vec![
            PageSize::Size4KiB,
            PageSize::Size2MiB,
            PageSize::Size1GiB,
        ]),
    ) {
        // Apart from each other, away from where interrupts go, and below 512 GiB.
        let mut at = 4 << 30;
        let mut ranges = vec![];
        for (skip, offset, length) in starts {
            let base = at + (skip % 4) * (1 << 30) + offset * 4096;
            ranges.push(range(base, length * 4096));
            at = base + length * 4096;
        }
        let contexts = 2;
        let count = planned(&ranges, levels, largest).table_pages() - contexts;
        let laid = tables_for(&ranges, levels, largest);
        prop_assert!(count >= laid, "{count} < {laid}");
        let one = planned(&ranges[..1], levels, largest).table_pages() - contexts;
        prop_assert_eq!(one, tables_for(&ranges[..1], levels, largest));
    }
}
