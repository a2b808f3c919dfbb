//! Where kernels go, held against a search of every page.

use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;

fn error_with(
    change: impl FnOnce(&mut File),
    request: &LinuxRequest<'_>,
) -> Option<LinuxPlaceError> {
    let mut file = kernel();
    change(&mut file);
    let bytes = file.write();
    let image = BzImage::parse(&bytes).unwrap();
    image.place(request).err()
}

fn error(request: &LinuxRequest<'_>) -> Option<LinuxPlaceError> {
    error_with(|_| (), request)
}

#[test]
fn the_preferred_address_is_taken_where_it_is_free() {
    let map = [
        ram(0x2_0000, 0x4_0000),
        ram(0x10_0000, PREFERRED + INIT_SIZE + 0x10_0000),
    ];
    let bytes = kernel().write();
    let image = BzImage::parse(&bytes).unwrap();
    let layout = image.place(&request(&map)).unwrap();
    assert_eq!(layout.kernel(), range(PREFERRED, INIT_SIZE));
    assert_eq!(layout.entry(), PhysAddr(PREFERRED + 0x200));
    // All else is as low as it can be.
    assert_eq!(layout.parameters().base(), PhysAddr(0x10_0000));
    assert!(layout.initrd().is_empty());

    let taken = [range(PREFERRED + INIT_SIZE - 1, 1)];
    let request = LinuxRequest {
        taken: &taken,
        ..request(&map)
    };
    let layout = image.place(&request).unwrap();
    assert_eq!(layout.kernel(), range(0x20_0000, INIT_SIZE));
}

#[test]
fn what_is_taken_is_gone_round() {
    let map = map();
    let bytes = kernel().write();
    let image = BzImage::parse(&bytes).unwrap();
    let taken = [
        range(0x4020_0000, 1),
        range(0x4000_0000, 0x1000),
        range(0x4040_0000 + INIT_SIZE - 1, 1),
    ];
    let disk = archive(&[0x5000]);
    let request = LinuxRequest {
        taken: &taken,
        initrd: Some(&disk),
        ..request(&map)
    };
    let layout = image.place(&request).unwrap();
    assert_eq!(layout.kernel().base(), PhysAddr(0x4060_0000));
    assert_eq!(
        layout.initrd(),
        range(0x4000_1000, disk.len() as u64),
        "the first page that is free"
    );
    let after = 0x4000_1000 + (disk.len() as u64).next_multiple_of(0x1000);
    assert_eq!(layout.parameters(), range(after, 0x3000));
}

#[test]
fn a_kernel_that_is_too_large_is_refused_with_what_there_is() {
    let map = [
        ram(0x2_0000, 0x4_0000),
        ram(0x4000_1000, 0x4020_0000 + INIT_SIZE - 1),
    ];
    let have = INIT_SIZE - 1 + 0x1f_f000;
    let refused = LinuxPlaceError::NoRoom {
        piece: Piece::Kernel,
        need: INIT_SIZE,
        alignment: ALIGNMENT,
        have,
        limit: 1 << 52,
    };
    assert_eq!(error(&request(&map)), Some(refused));
    let fixed = error_with(|file| file.relocatable = 0, &request(&map));
    let wanted = range(PREFERRED, INIT_SIZE);
    assert_eq!(fixed, Some(LinuxPlaceError::NotRelocatable(wanted)));
}

#[test]
fn only_a_kernel_that_can_be_above_4_gib_is_put_there() {
    let map = [ram(0x2_0000, 0x4_0000), ram(0x1_4000_0000, 0x1_4200_0000)];
    let disk = archive(&[0x5000]);
    let request = LinuxRequest {
        initrd: Some(&disk),
        ..request(&map)
    };
    let bytes = kernel().write();
    let image = BzImage::parse(&bytes).unwrap();
    let layout = image.place(&request).unwrap();
    assert_eq!(layout.kernel().base(), PhysAddr(0x1_4000_0000));
    assert!(layout.initrd().base().0 > 1 << 32);
    let refused = LinuxPlaceError::NoRoom {
        piece: Piece::Kernel,
        need: INIT_SIZE,
        alignment: ALIGNMENT,
        have: 0,
        limit: 1 << 32,
    };
    assert_eq!(
        error_with(|file| file.xloadflags = 1, &request),
        Some(refused)
    );
}

#[test]
fn an_initial_ram_disk_stays_below_its_limit_where_the_kernel_says_so() {
    let map = map();
    let disk = archive(&[0x5000]);
    let request = LinuxRequest {
        initrd: Some(&disk),
        ..request(&map)
    };
    let limit = 0x4000_1000;
    let change = |file: &mut File| {
        file.xloadflags = 1;
        file.initrd_addr_max = limit - 1;
    };
    let refused = LinuxPlaceError::NoRoom {
        piece: Piece::Initrd,
        need: (disk.len() as u64).next_multiple_of(0x1000),
        alignment: 0x1000,
        have: 0,
        limit: u64::from(limit),
    };
    assert_eq!(error_with(change, &request), Some(refused));
    // The same kernel, with everything anywhere.
    let change = |file: &mut File| file.initrd_addr_max = limit - 1;
    assert_eq!(error_with(change, &request), None);
}

#[test]
fn without_ram_below_1_mib_linux_has_no_further_processors() {
    let above = ram(0x4000_0000, 0x4200_0000);
    let need = BzImage::LOW_MEMORY;
    for (low, have) in [
        (vec![], 0),
        // Not in one piece.
        (
            vec![ram(0x2_0000, 0x2_8000), ram(0x2_9000, 0x3_8000)],
            0xf000,
        ),
        // Firmware's, or what Linux takes for that.
        (vec![ram(0x0, 0x1_0000)], 0),
        (vec![ram(0x9_0000, 0xa_0000)], 0xf000),
        (vec![other(0x2_0000, 0x8_0000, 2)], 0),
    ] {
        let map: Vec<E820Entry> = low.into_iter().chain([above]).collect();
        let refused = LinuxPlaceError::NoLowMemory { need, have };
        assert_eq!(error(&request(&map)), Some(refused), "{map:x?}");
    }
    let taken = [range(0x2_8000, 0x1000)];
    let map = map();
    let request = LinuxRequest {
        taken: &taken,
        ..request(&map)
    };
    let have = 0x1_7000;
    assert_eq!(error(&request), None);
    let taken = [range(0x2_8000, 0x9000)];
    let request = LinuxRequest {
        taken: &taken,
        ..request
    };
    let refused = LinuxPlaceError::NoLowMemory {
        need,
        have: have - 0x8000,
    };
    assert_eq!(error(&request), Some(refused));
}

#[test]
fn a_memory_map_that_is_none_is_refused() {
    let low = ram(0x2_0000, 0x4_0000);
    let high = ram(0x4000_0000, 0x4200_0000);
    for (map, entry) in [
        (vec![high, low], 1),
        (vec![low, ram(0x3_f000, 0x5_0000), high], 1),
        (vec![low, high, other(0x4300_0000, 0x4300_0000, 2)], 2),
        (vec![low, high, other(1 << 51, (1 << 52) + 1, 2)], 2),
    ] {
        let refused = LinuxPlaceError::MemoryMap { entry };
        assert_eq!(error(&request(&map)), Some(refused));
    }
    let refused = LinuxPlaceError::NoLowMemory {
        need: BzImage::LOW_MEMORY,
        have: 0,
    };
    assert_eq!(error(&request(&[])), Some(refused));
}

#[test]
fn what_linux_would_not_take_is_refused_before_it_is_started() {
    use LinuxPlaceError as E;
    let map = map();
    let plain = request(&map);
    let long = [b'x'; 2048];
    let data = |kind: u32| SetupDataItem { kind, data: &[1] };
    let cases = [
        (
            LinuxRequest {
                command_line: &long,
                ..plain
            },
            E::CommandLineLength {
                have: 2048,
                limit: 2047,
            },
        ),
        (
            LinuxRequest {
                command_line: b"quiet\0",
                ..plain
            },
            E::CommandLineZero { offset: 5 },
        ),
        (
            LinuxRequest {
                rsdp: PhysAddr(0),
                ..plain
            },
            E::Rsdp,
        ),
        (
            LinuxRequest {
                initrd: Some(b"none"),
                ..plain
            },
            E::Initrd(InitrdError::Unknown { offset: 0 }),
        ),
        (
            LinuxRequest {
                setup_data: &[data(9), data(0)],
                ..plain
            },
            E::SetupData { item: 1 },
        ),
        (
            LinuxRequest {
                setup_data: &[data(1)],
                ..plain
            },
            E::SetupData { item: 0 },
        ),
        (
            LinuxRequest {
                setup_data: &[data(1 << 31 | 9)],
                ..plain
            },
            E::SetupData { item: 0 },
        ),
    ];
    for (request, refused) in cases {
        assert_eq!(error(&request), Some(refused), "{refused}");
    }
    let full = LinuxRequest {
        command_line: &long[1..],
        ..plain
    };
    assert_eq!(error(&full), None);
    let old = error_with(|file| file.version = 0x020e, &plain);
    assert_eq!(old, Some(E::RsdpIgnored(0x020e)));
    let five = LinuxRequest {
        levels: Levels::Five,
        ..plain
    };
    assert_eq!(error(&five), None);
    let four_only = error_with(|file| file.xloadflags = 0b11, &five);
    assert_eq!(four_only, Some(E::FiveLevelPaging));
}

const PAGE: u64 = 0x1000;

/// Whether a page is RAM of the map and nobody's.
fn is_free(page: u64, map: &[E820Entry], taken: &[PhysRange]) -> bool {
    let whole = range(page, PAGE);
    map.iter()
        .any(|entry| entry.kind == 1 && entry.range.contains_range(whole))
        && !taken.iter().any(|other| other.overlaps(whole))
}

/// The lowest place, by trying them all. Everything is whole pages.
fn lowest(
    need: u64,
    alignment: u64,
    below: u64,
    map: &[E820Entry],
    taken: &[PhysRange],
) -> Option<u64> {
    (0x10_0000..below)
        .step_by(usize::try_from(alignment).unwrap())
        .find(|&base| {
            let mut pages = (base..base + need).step_by(0x1000);
            base + need <= below && pages.all(|page| is_free(page, map, taken))
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn everything_is_at_the_lowest_place_that_is_free(
        // Borders in steps of a page between 1 and 5 MiB.
        borders in subsequence((0x100_u64..0x500).collect::<Vec<_>>(), 2..14),
        kinds in list(prop_oneof![3 => Just(1_u32), 1 => Just(2_u32)], 14),
        taken in list((0x100_u64..0x500, 0_u64..0x18), 0..5),
        size in 1_u64..0x60,
        shift in 0_u32..6,
        disk in 0_usize..0x2_0000,
        preferred in 0x100_u64..0x480,
    ) {
        let mut map = vec![ram(0x2_0000, 0x4_0000)];
        for (pair, kind) in borders.windows(2).zip(kinds) {
            map.push(other(pair[0] * PAGE, pair[1] * PAGE, kind));
        }
        let mut taken: Vec<PhysRange> = taken
            .into_iter()
            .map(|(base, pages)| range(base * PAGE, pages * PAGE))
            .collect();
        let alignment = PAGE << shift;
        let mut file = kernel();
        file.kernel_alignment = u32::try_from(alignment).unwrap();
        file.min_alignment = 12;
        file.init_size = u32::try_from(size * PAGE).unwrap();
        file.pref_address = (preferred * PAGE) & !(alignment - 1);
        let bytes = file.write();
        let image = BzImage::parse(&bytes).unwrap();
        let disk = archive(&[disk]);
        let given = taken.clone();
        let request = LinuxRequest {
            taken: &given,
            initrd: Some(&disk),
            ..request(&map)
        };
        let placed = image.place(&request);

        // Pieces of RAM that touch are not joined by the loader, and so not by what is compared: a
        // place must be in one entry.
        let whole = |base: u64, length: u64| {
            map.iter().any(|entry| entry.range.contains_range(range(base, length)))
        };
        let mut expect = |need: u64, alignment: u64, first: Option<u64>| {
            let fits = |base: u64| {
                whole(base, need)
                    && (base..base + need).step_by(0x1000).all(|page| is_free(page, &map, &taken))
            };
            let base = first.filter(|&base| base >= 0x10_0000 && fits(base)).or_else(|| {
                let mut from = lowest(need, alignment, 0x50_0000, &map, &taken)?;
                while !fits(from) {
                    from += alignment;
                    if from >= 0x50_0000 {
                        return None;
                    }
                }
                Some(from)
            });
            if let Some(base) = base {
                taken.push(range(base, need));
            }
            base
        };
        let kernel = expect(size * PAGE, alignment, Some(file.pref_address));
        let pages = (disk.len() as u64).next_multiple_of(PAGE);
        let disk_at = kernel.and_then(|_| expect(pages, PAGE, None));
        let told = disk_at.and_then(|_| expect(3 * PAGE, PAGE, None));
        match (placed, kernel, disk_at, told) {
            (Ok(layout), Some(kernel), Some(disk_at), Some(told)) => {
                prop_assert_eq!(layout.kernel(), range(kernel, size * PAGE));
                prop_assert_eq!(layout.initrd(), range(disk_at, disk.len() as u64));
                prop_assert_eq!(layout.parameters(), range(told, 3 * PAGE));
            }
            (Err(LinuxPlaceError::NoRoom { piece, need, have, .. }), kernel, disk_at, told) => {
                let missing = match piece {
                    Piece::Kernel => kernel,
                    Piece::Initrd => disk_at,
                    Piece::Parameters => told,
                };
                prop_assert_eq!(missing, None);
                prop_assert!(have < need + alignment);
            }
            (placed, ..) => prop_assert!(false, "{placed:?}"),
        }
    }
}
