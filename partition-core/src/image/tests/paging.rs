//! Entry page tables, read back by a walker that shares nothing with the builder.

use std::collections::BTreeMap;

use proptest::collection::vec as list;
use proptest::prelude::*;

use super::super::paging::*;
use super::*;

/// Frames from 16 MiB on.
struct Frames {
    tables: Vec<[u64; 512]>,
    limit: usize,
}

const FRAMES: u64 = 0x100_0000;

impl Frames {
    const fn new(limit: usize) -> Self {
        Self {
            tables: vec![],
            limit,
        }
    }

    const fn locate(at: u64) -> (usize, usize) {
        assert!(at.is_multiple_of(8) && at >= FRAMES);
        let offset = at - FRAMES;
        ((offset / 4096) as usize, (offset % 4096 / 8) as usize)
    }
}

impl TableFrames for Frames {
    fn allocate(&mut self) -> Option<PhysAddr> {
        if self.tables.len() == self.limit {
            return None;
        }
        self.tables.push([0; 512]);
        Some(PhysAddr(FRAMES + 4096 * (self.tables.len() as u64 - 1)))
    }

    fn load(&self, at: PhysAddr) -> u64 {
        let (table, entry) = Self::locate(at.0);
        self.tables[table][entry]
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        let (table, entry) = Self::locate(at.0);
        self.tables[table][entry] = value;
    }
}

/// What a virtual page of 4 KiB leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Leaf {
    physical: u64,
    write: bool,
    execute: bool,
    uncached: bool,
}

/// Every page that the tables map, found by going through all of them: the SDM's rules for entries
/// of each level, access being what every level allows.
fn walk(frames: &Frames, root: u64) -> BTreeMap<u64, Leaf> {
    let mut pages = BTreeMap::new();
    walk_table(frames, root, 4, 0, (true, true), &mut pages);
    pages
}

fn walk_table(
    frames: &Frames,
    table: u64,
    level: u32,
    base: u64,
    (write, execute): (bool, bool),
    pages: &mut BTreeMap<u64, Leaf>,
) {
    let span = 1_u64 << (12 + 9 * (level - 1));
    for index in 0..512 {
        let entry = frames.load(PhysAddr(table + 8 * index));
        if entry & 1 == 0 {
            assert_eq!(entry, 0);
            continue;
        }
        // Neither for user mode nor global, nothing in the bits that are ignored or reserved.
        assert_eq!(entry & 0x7ff0_0000_0000_0f64, 0, "{entry:#x}");
        let mut virtual_base = base + index * span;
        if level == 4 && index >= 256 {
            virtual_base |= 0xffff << 48;
        }
        let access = (write && entry & 2 != 0, execute && entry >> 63 == 0);
        let address = entry & 0x000f_ffff_ffff_f000;
        let large = entry & 0x80 != 0;
        assert!(
            !large || level == 2,
            "only large pages of 2 MiB are expected"
        );
        if level > 1 && !large {
            walk_table(frames, address, level - 1, virtual_base, access, pages);
            continue;
        }
        assert_eq!(address % span, 0);
        let uncached = match entry & 0x18 {
            0 => false,
            0x18 => true,
            other => panic!("memory type {other:#x}"),
        };
        for offset in (0..span).step_by(4096) {
            let leaf = Leaf {
                physical: address + offset,
                write: access.0,
                execute: access.1,
                uncached,
            };
            assert_eq!(pages.insert(virtual_base + offset, leaf), None);
        }
    }
}

/// The rules once more, page by page; an address that would have to be two things is an error.
fn expected(layout: &Layout<'_>, identity: &[Identity]) -> Result<BTreeMap<u64, Leaf>, u64> {
    let mut pages = BTreeMap::new();
    for segment in layout.segments() {
        for offset in (0..segment.pages.length()).step_by(4096) {
            let leaf = Leaf {
                physical: segment.pages.base().0 + offset,
                write: segment.access.write,
                execute: segment.access.execute,
                uncached: false,
            };
            pages.insert(segment.address + offset, leaf);
        }
    }
    for entry in identity {
        for page in (entry.range.base().0..entry.range.end().0).step_by(4096) {
            let leaf = Leaf {
                physical: page,
                write: entry.access.write,
                execute: entry.access.execute,
                uncached: entry.caching == Caching::Uncached,
            };
            let old = *pages.entry(page).or_insert(leaf);
            if (old.physical, old.uncached) != (leaf.physical, leaf.uncached) {
                return Err(page);
            }
        }
    }
    Ok(pages)
}

const DATA: Access = Access {
    write: true,
    execute: false,
};

fn ram(base: u64, length: u64) -> Identity {
    Identity {
        range: range(base, length),
        access: DATA,
        caching: Caching::WriteBack,
    }
}

const MIB: u64 = 1 << 20;

/// A partition's memory, the baton, a trampoline page and the local APIC.
fn usual() -> Vec<Identity> {
    vec![
        ram(256 * MIB, 128 * MIB),
        ram(512 * MIB + 0x5000, 2 * MIB),
        Identity {
            access: Access {
                write: true,
                execute: true,
            },
            ..ram(0x8000, 0x1000)
        },
        Identity {
            caching: Caching::Uncached,
            ..ram(0xfee0_0000, 0x1000)
        },
    ]
}

fn check(elf: &Elf, room: PhysRange, identity: &[Identity]) -> EntryTables {
    let file = elf.write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(room).unwrap();
    let mut frames = Frames::new(usize::MAX);
    let tables = build(&mut frames, &layout, identity).unwrap();
    assert_eq!(tables.frames, frames.tables.len() as u64);
    let found = walk(&frames, tables.root.0);
    assert!(found == expected(&layout, identity).unwrap());
    tables
}

#[test]
fn a_kernel_finds_itself_and_what_it_needs() {
    let tables = check(&kernel(), range(256 * MIB, 16 * MIB), &usual());
    // The root; three tables for the kernel; three for the first GiB, and in its directory one
    // more table of pages each for the trampoline and the two ends of the baton; two for the APIC.
    assert_eq!(tables.frames, 1 + 3 + 5 + 2);
}

#[test]
fn an_independent_kernel_keeps_its_own_access_inside_its_partitions_memory() {
    let room = range(256 * MIB + 0x3000, 16 * MIB);
    let tables = check(&independent_kernel(), room, &usual());
    // No tables of its own but one in place of a large page.
    assert_eq!(tables.frames, 1 + 6 + 2);
}

#[test]
fn large_pages_are_used_for_a_large_segment() {
    let mut elf = kernel();
    elf.parts[2].memory_size = 0x5000 + 8 * MIB;
    let tables = check(&elf, range(256 * MIB, 32 * MIB), &[]);
    assert_eq!(tables.frames, 1 + 2 + 2);
    // Addresses that differ by something else need small pages.
    let tables = check(&elf, range(256 * MIB + 0x1000, 32 * MIB), &[]);
    assert_eq!(tables.frames, 1 + 2 + 5);
}

#[test]
fn frames_that_run_out_are_an_error_at_every_point() {
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(range(256 * MIB, 16 * MIB)).unwrap();
    for limit in 0..11 {
        let result = build(&mut Frames::new(limit), &layout, &usual());
        let had = limit as u64;
        assert_eq!(result.unwrap_err(), PagingError::OutOfFrames { had });
    }
    build(&mut Frames::new(11), &layout, &usual()).unwrap();
}

#[test]
fn an_address_that_would_be_two_things_is_an_error() {
    let mut elf = kernel();
    for part in &mut elf.parts {
        part.address = part.address.wrapping_sub(TEXT - 300 * MIB);
    }
    elf.parts[3] = note(raw_note(b"Baton\0", 1, &descriptor(0, 2, 5, 300 * MIB)));
    let file = elf.write();
    let image = Image::parse(&file).unwrap();
    // Linked at 300 MiB and placed elsewhere, while 300 MiB is to be seen at 300 MiB.
    let layout = image.place(range(256 * MIB, 16 * MIB)).unwrap();
    let result = build(&mut Frames::new(99), &layout, &usual());
    let address = 300 * MIB;
    assert_eq!(result.unwrap_err(), PagingError::Conflict { address });
    // Placed where it is linked.
    let layout = image.place(range(300 * MIB, 16 * MIB)).unwrap();
    build(&mut Frames::new(99), &layout, &usual()).unwrap();
    // Cached and uncached.
    for (first, second) in [(2 * MIB, 2 * MIB), (2 * MIB, 0x1000), (0x1000, 0x1000)] {
        let twice = [
            ram(2 * MIB, first),
            Identity {
                caching: Caching::Uncached,
                ..ram(2 * MIB, second)
            },
        ];
        let result = build(&mut Frames::new(99), &layout, &twice);
        let address = 2 * MIB;
        assert_eq!(result.unwrap_err(), PagingError::Conflict { address });
    }
}

#[test]
fn memory_that_cannot_be_at_its_own_address_is_an_error() {
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(range(256 * MIB, 16 * MIB)).unwrap();
    for bad in [
        range(0x800, 0x1000),
        range(0x1000, 0x800),
        range((1 << 47) - 0x1000, 0x2000),
        range(1 << 47, 0x1000),
    ] {
        let result = build(
            &mut Frames::new(99),
            &layout,
            &[Identity {
                range: bad,
                ..ram(0, 0)
            }],
        );
        assert_eq!(result.unwrap_err(), PagingError::Range(bad));
    }
    // The kernel above what an entry can name.
    let layout = image.place(range(1 << 52, 16 * MIB)).unwrap();
    let result = build(&mut Frames::new(99), &layout, &[]);
    assert!(matches!(result.unwrap_err(), PagingError::Range(_)));
}

#[test]
fn frames_that_are_none_are_an_error() {
    struct Bad(u64);
    impl TableFrames for Bad {
        fn allocate(&mut self) -> Option<PhysAddr> {
            Some(PhysAddr(self.0))
        }
        fn load(&self, _: PhysAddr) -> u64 {
            0
        }
        fn store(&mut self, _: PhysAddr, _: u64) {}
    }
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(range(256 * MIB, 16 * MIB)).unwrap();
    // The last is good once, but is given again.
    for at in [0, 0x1008, 1 << 52, u64::MAX, 0x5000] {
        let error = build(&mut Bad(at), &layout, &[]).unwrap_err();
        assert_eq!(error, PagingError::Frame(PhysAddr(at)));
    }
}

fn identity() -> impl Strategy<Value = Identity> {
    // Borders at multiples of 4 KiB near multiples of 2 MiB, in 32 MiB.
    let border = || (0_u64..16, 0_u64..4).prop_map(|(large, small)| large * 512 + small);
    (
        border(),
        border(),
        any::<(bool, bool)>(),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(a, b, (write, execute), uncached)| Identity {
            range: range(a.min(b) * 4096, a.abs_diff(b) * 4096),
            access: Access { write, execute },
            caching: if uncached {
                Caching::Uncached
            } else {
                Caching::WriteBack
            },
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tables_hold_what_a_model_of_single_pages_holds(
        ranges in list(identity(), 0..5),
        page in 0_u64..0x1800,
        independent: bool,
        bss in 0_u64..0x800,
    ) {
        let mut elf = if independent { independent_kernel() } else { kernel() };
        elf.parts[2].memory_size += bss * 4096;
        let file = elf.write();
        let image = Image::parse(&file).unwrap();
        let layout = image.place(range(page * 4096, 16 * MIB)).unwrap();
        let mut frames = Frames::new(usize::MAX);
        let result = build(&mut frames, &layout, &ranges);
        match expected(&layout, &ranges) {
            Ok(pages) => {
                let tables = result.unwrap();
                prop_assert!(walk(&frames, tables.root.0) == pages);
            }
            Err(address) => {
                prop_assert_eq!(result, Err(PagingError::Conflict { address }));
            }
        }
    }
}
