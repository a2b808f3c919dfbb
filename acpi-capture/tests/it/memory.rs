//! Memory maps against a model that knows every byte.

use acpi_capture::memory::*;
use handoff_abi::{PhysAddr, PhysRange};
use proptest::prelude::*;

use crate::build::{Bytes, range};

const KINDS: [MemoryKind; 8] = [
    MemoryKind::Usable,
    MemoryKind::SpecificPurpose,
    MemoryKind::AcpiReclaimable,
    MemoryKind::Persistent,
    MemoryKind::AcpiNvs,
    MemoryKind::Runtime,
    MemoryKind::Reserved,
    MemoryKind::Unusable,
];

/// How restricted each kind is, written down again.
fn rank(kind: MemoryKind) -> usize {
    KINDS.iter().position(|&other| other == kind).unwrap()
}

const SIZE: usize = 64;

/// What is said of each of the addresses 0 to 63, and of the last 64 below the end.
type Model = [Option<MemoryKind>; SIZE];

#[derive(Clone, Debug)]
enum Step {
    Insert(PhysRange, MemoryKind),
    Carve(PhysRange, MemoryKind),
    Subtract(PhysRange),
    Intersect(PhysRange),
}

fn some_range() -> impl Strategy<Value = PhysRange> {
    (0..SIZE as u64, 0..SIZE as u64).prop_map(|(a, b)| range(a.min(b), a.max(b)))
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&KINDS[..]);
    prop_oneof![
        4 => (some_range(), kind()).prop_map(|(r, k)| Step::Insert(r, k)),
        1 => (some_range(), kind()).prop_map(|(r, k)| Step::Carve(r, k)),
        1 => some_range().prop_map(Step::Subtract),
        1 => some_range().prop_map(Step::Intersect),
    ]
}

fn apply_to_model(model: &mut Model, step: &Step) {
    for (at, byte) in model.iter_mut().enumerate() {
        let inside = |range: &PhysRange| range.contains(PhysAddr(at as u64));
        match step {
            Step::Insert(range, kind) if inside(range) => {
                *byte = match *byte {
                    Some(old) if rank(old) > rank(*kind) => Some(old),
                    _ => Some(*kind),
                };
            }
            Step::Carve(range, kind) if inside(range) => *byte = Some(*kind),
            Step::Subtract(range) if inside(range) => *byte = None,
            Step::Intersect(range) if !inside(range) => *byte = None,
            _ => {}
        }
    }
}

fn apply<const N: usize>(map: &mut MemoryMap<N>, step: &Step) -> Result<(), MapError> {
    match *step {
        Step::Insert(range, kind) => map.insert(MemoryRegion { range, kind }),
        Step::Carve(range, kind) => map.carve(range, kind),
        Step::Subtract(range) => map.subtract(range),
        Step::Intersect(range) => {
            map.intersect(range);
            Ok(())
        }
    }
}

/// The runs of equal bytes of the model: what a normal map must have as regions.
fn runs(model: &Model) -> Vec<MemoryRegion> {
    let mut runs: Vec<MemoryRegion> = Vec::new();
    for (at, byte) in model.iter().enumerate() {
        let at = at as u64;
        let Some(kind) = *byte else { continue };
        match runs.last_mut() {
            Some(last) if last.kind == kind && last.range.end().0 == at => {
                last.range = range(last.range.base().0, at + 1);
            }
            _ => runs.push(MemoryRegion {
                range: range(at, at + 1),
                kind,
            }),
        }
    }
    runs
}

proptest! {
    #[test]
    fn a_map_says_of_every_byte_what_the_model_says(steps in prop::collection::vec(step(), 0..24)) {
        let mut map = MemoryMap::<SIZE>::new();
        let mut model = [None; SIZE];
        for step in &steps {
            apply(&mut map, step).unwrap();
            apply_to_model(&mut model, step);
            prop_assert_eq!(map.regions(), runs(&model));
        }
        for (at, &kind) in model.iter().enumerate() {
            prop_assert_eq!(map.kind_at(PhysAddr(at as u64)), kind);
        }
        for kind in KINDS {
            let bytes = model.iter().filter(|&&byte| byte == Some(kind)).count();
            prop_assert_eq!(map.total(kind), bytes as u64);
        }
    }

    #[test]
    fn a_map_that_is_full_stays_as_it_was(steps in prop::collection::vec(step(), 0..24)) {
        let mut map = MemoryMap::<3>::new();
        let mut model = [None; SIZE];
        for step in &steps {
            let mut wanted = model;
            apply_to_model(&mut wanted, step);
            match apply(&mut map, step) {
                Ok(()) => model = wanted,
                Err(MapError::Full { capacity }) => {
                    prop_assert_eq!(capacity, 3);
                    prop_assert!(runs(&wanted).len() > 3);
                }
                Err(other) => panic!("{other}"),
            }
            prop_assert_eq!(map.regions(), runs(&model));
        }
    }

    #[test]
    fn the_order_of_entries_does_not_matter(
        regions in prop::collection::vec((some_range(), prop::sample::select(&KINDS[..])), 0..12),
        seed: u64,
    ) {
        let regions: Vec<_> = regions
            .into_iter()
            .map(|(range, kind)| MemoryRegion { range, kind })
            .collect();
        let mut shuffled = regions.clone();
        let mut state = seed | 1;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(at, (state >> 33) as usize % (at + 1));
        }
        prop_assert_eq!(
            MemoryMap::<SIZE>::from_regions(regions).unwrap(),
            MemoryMap::<SIZE>::from_regions(shuffled).unwrap()
        );
    }

    #[test]
    fn entries_anywhere_in_the_address_space_are_taken(
        entries in prop::collection::vec(
            (any::<u64>(), any::<u64>(), 0_u32..9, 0_u32..64), 0..16,
        ),
        probes in prop::collection::vec(any::<u64>(), 8),
    ) {
        // Shifting right makes short ranges and low addresses as likely as huge ones.
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(base, length, kind, shift)| (base >> shift, length >> (63 - shift), kind))
            .collect();
        let mut bytes = Bytes::new();
        for &(base, length, kind) in &entries {
            bytes = bytes.u64(base).u64(length).u32(kind).u32(0xdead_beef);
        }
        let parsed = E820Entries::parse(&bytes.0, E820Entries::PVH).unwrap();
        let map = MemoryMap::<64>::from_regions(parsed).unwrap();
        let edges = entries.iter().flat_map(|&(base, length, _)| {
            [base, base.wrapping_sub(1), base.wrapping_add(length), base.wrapping_add(length).wrapping_sub(1)]
        });
        for probe in edges.chain(probes) {
            if probe == u64::MAX {
                continue;
            }
            let expected = entries
                .iter()
                .filter_map(|&(base, length, number)| {
                    let end = u128::from(base) + u128::from(length);
                    let wraps = end > u128::from(u64::MAX);
                    let kind = MemoryKind::from_e820(number);
                    let inside = probe >= base && u128::from(probe) < end;
                    inside.then_some(if wraps { kind.max(MemoryKind::Reserved) } else { kind })
                })
                .max_by_key(|&kind| rank(kind));
            prop_assert_eq!(map.kind_at(PhysAddr(probe)), expected, "{:#x}", probe);
        }
    }

    #[test]
    fn whole_frames_are_usable_only_if_every_byte_is(
        regions in prop::collection::vec(
            (0_u64..0x8000, 0_u64..0x4000, prop::sample::select(&KINDS[..])), 0..8,
        ),
    ) {
        let map = MemoryMap::<64>::from_regions(regions.into_iter().map(|(base, length, kind)| {
            MemoryRegion { range: range(base, base + length), kind }
        })).unwrap();
        let frames = map.in_frames().unwrap();
        for frame in 0..16_u64 {
            let bytes = || (frame * 0x1000..(frame + 1) * 0x1000).map(|at| map.kind_at(PhysAddr(at)));
            let worst = bytes().flatten().filter(|&kind| kind != MemoryKind::Usable).max();
            let expected = match worst {
                Some(kind) => Some(kind),
                None => bytes().all(|kind| kind == Some(MemoryKind::Usable)).then_some(MemoryKind::Usable),
            };
            prop_assert_eq!(frames.kind_at(PhysAddr(frame * 0x1000)), expected);
            prop_assert_eq!(frames.kind_at(PhysAddr(frame * 0x1000 + 0xfff)), expected);
        }
    }

    #[test]
    fn usable_memory_that_is_found_is_usable_aligned_and_the_highest(
        steps in prop::collection::vec(step(), 0..12),
        length in 1_u64..16,
        shift in 0_u32..4,
        window in some_range(),
    ) {
        let mut map = MemoryMap::<SIZE>::new();
        for step in &steps {
            apply(&mut map, step).unwrap();
        }
        let alignment = 1 << shift;
        let fits = |base: u64| {
            (base..base + length).all(|at| {
                map.kind_at(PhysAddr(at)) == Some(MemoryKind::Usable) && window.contains(PhysAddr(at))
            })
        };
        let expected = (0..SIZE as u64).rev().find(|&base| base % alignment == 0 && fits(base));
        let found = map.find_usable(length, alignment, window);
        prop_assert_eq!(found.map(|range| range.base().0), expected);
        prop_assert!(found.is_none_or(|range| range.length() == length));
        if let Some(found) = found {
            prop_assert!(map.is_all(found, MemoryKind::Usable));
        }
    }

    #[test]
    fn uefi_descriptors_of_any_size_are_read(size in 40_usize..100, pages in 1_u64..1000, count in 0_usize..5) {
        let mut bytes = Vec::new();
        for place in 0..count {
            let base = place as u64 * 0x100_0000;
            let descriptor = Bytes::new().u32(7).u32(0).u64(base).u64(0xabcd).u64(pages).u64(0xf);
            bytes.extend_from_slice(&descriptor.0);
            bytes.resize((place + 1) * size, 0xcc);
        }
        let regions: Vec<_> = UefiDescriptors::parse(&bytes, size).unwrap().collect();
        prop_assert_eq!(regions.len(), count);
        for (place, region) in regions.into_iter().enumerate() {
            let base = place as u64 * 0x100_0000;
            prop_assert_eq!(region.range, range(base, base + pages * 4096));
            prop_assert_eq!(region.kind, MemoryKind::Usable);
        }
        if count > 0 {
            prop_assert_eq!(
                UefiDescriptors::parse(&bytes[1..], size).unwrap_err(),
                SourceError::Length { length: bytes.len() - 1, size }
            );
        }
    }
}

#[test]
fn entries_that_are_too_small_or_incomplete_are_refused() {
    assert_eq!(
        E820Entries::parse(&[0; 38], 19).unwrap_err(),
        SourceError::EntrySize {
            size: 19,
            needed: 20
        }
    );
    assert!(E820Entries::parse(&[0; 41], 20).is_err());
    assert!(UefiDescriptors::parse(&[0; 39], 39).is_err());
    assert!(UefiDescriptors::parse(&[], 0).is_err());
    assert_eq!(E820Entries::parse(&[], 20).unwrap().count(), 0);
}

#[test]
fn uefi_memory_is_usable_only_where_firmware_lets_go_of_it() {
    let kind = MemoryKind::from_uefi;
    let write_back = 1 << 3;
    for usable in [1, 2, 3, 4, 7] {
        assert_eq!(kind(usable, write_back), MemoryKind::Usable);
        assert_eq!(kind(usable, 0), MemoryKind::Reserved);
        assert_eq!(kind(usable, write_back | 1 << 63), MemoryKind::Runtime);
        assert_eq!(
            kind(usable, write_back | 1 << 18),
            MemoryKind::SpecificPurpose
        );
    }
    assert_eq!(kind(5, write_back), MemoryKind::Runtime);
    assert_eq!(kind(9, write_back), MemoryKind::AcpiReclaimable);
    assert_eq!(kind(10, write_back), MemoryKind::AcpiNvs);
    assert_eq!(kind(8, write_back), MemoryKind::Unusable);
    for reserved in [0, 11, 12, 13, 15, 16, 0x7000_0000] {
        assert_eq!(kind(reserved, write_back), MemoryKind::Reserved);
    }
    // A descriptor with more pages than the address space has.
    let descriptor = Bytes::new().u32(7).u32(0).u64(0).u64(0).u64(u64::MAX);
    let bytes = descriptor.u64(write_back).0;
    let region = UefiDescriptors::parse(&bytes, 40).unwrap().next().unwrap();
    assert_eq!(region.kind, MemoryKind::Reserved);
}

#[test]
fn a_number_of_the_system_address_map_means_what_the_specification_says() {
    // ACPI 6.5, table 15.5, and Linux's number for memory for a specific purpose.
    for (number, kind, back) in [
        (0, MemoryKind::Reserved, 2),
        (1, MemoryKind::Usable, 1),
        (2, MemoryKind::Reserved, 2),
        (3, MemoryKind::AcpiReclaimable, 3),
        (4, MemoryKind::AcpiNvs, 4),
        (5, MemoryKind::Unusable, 5),
        (6, MemoryKind::Reserved, 2),
        (7, MemoryKind::Persistent, 7),
        (8, MemoryKind::Reserved, 2),
        // A kernel that does not know Linux's number must not take such memory for its own.
        (0xefff_ffff, MemoryKind::SpecificPurpose, 2),
    ] {
        assert_eq!(MemoryKind::from_e820(number), kind, "{number}");
        assert_eq!(kind.to_e820(), back, "{kind}");
    }
    assert_eq!(MemoryKind::Runtime.to_e820(), 2);
    assert_eq!(MemoryKind::from_uefi(6, 1 << 3), MemoryKind::Runtime);
    assert_eq!(MemoryKind::from_uefi(14, 1 << 3), MemoryKind::Persistent);
}

#[test]
fn a_range_is_all_of_a_kind_where_no_byte_of_it_is_another() {
    let region = |start, end, kind| MemoryRegion {
        range: range(start, end),
        kind,
    };
    let map = MemoryMap::<8>::from_regions([
        region(0x1000, 0x3000, MemoryKind::Usable),
        region(0x3000, 0x4000, MemoryKind::Reserved),
    ])
    .unwrap();
    assert!(map.is_all(range(0x1000, 0x3000), MemoryKind::Usable));
    assert!(map.is_all(range(0x2fff, 0x3000), MemoryKind::Usable));
    assert!(map.is_all(range(0x3000, 0x4000), MemoryKind::Reserved));
    assert!(!map.is_all(range(0x3000, 0x4000), MemoryKind::Usable));
    assert!(!map.is_all(range(0x2fff, 0x3001), MemoryKind::Usable));
    assert!(!map.is_all(range(0xfff, 0x1001), MemoryKind::Usable));
    assert!(!map.is_all(range(0x8000, 0x8001), MemoryKind::Usable));
    assert!(map.is_all(range(0x8000, 0x8000), MemoryKind::Usable));
    assert_ne!(map, MemoryMap::default());
    assert!(MemoryMap::<8>::default().regions().is_empty());
}

#[test]
fn no_memory_is_found_for_nothing_or_at_an_alignment_that_is_none() {
    let map = MemoryMap::<4>::from_regions([MemoryRegion {
        range: range(0x1000, 0x9000),
        kind: MemoryKind::Usable,
    }])
    .unwrap();
    let everywhere = range(0, 0x1_0000);
    assert_eq!(map.find_usable(0, 0x1000, everywhere), None);
    assert_eq!(map.find_usable(0x1000, 0, everywhere), None);
    assert_eq!(map.find_usable(0x1000, 3, everywhere), None);
    assert_eq!(
        map.find_usable(0x1000, 0x1000, everywhere),
        Some(range(0x8000, 0x9000))
    );
}
