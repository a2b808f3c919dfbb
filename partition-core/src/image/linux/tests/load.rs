//! What is in memory when a kernel is entered, read as Linux reads it.

use std::collections::BTreeMap;
use std::string::String;

use super::*;
use crate::image::WritePhys;
use crate::image::paging::TableFrames;

/// Memory as pages that were written, everything else being somebody else's bytes.
#[derive(Default)]
struct Ram {
    pages: BTreeMap<u64, Vec<u8>>,
    bad: Option<PhysRange>,
}

impl Ram {
    fn each(&mut self, at: PhysAddr, length: u64, mut byte: impl FnMut(usize) -> u8) {
        for offset in 0..length {
            let address = at.0 + offset;
            let page = self.pages.entry(address >> 12).or_insert(vec![0xaa; 4096]);
            page[(address & 0xfff) as usize] = byte(offset as usize);
        }
    }

    fn read(&self, at: u64, length: u64) -> Vec<u8> {
        (at..at + length)
            .map(|address| {
                self.pages
                    .get(&(address >> 12))
                    .map_or(0xaa, |page| page[(address & 0xfff) as usize])
            })
            .collect()
    }

    fn number(&self, at: u64, bytes: u64) -> u64 {
        let read = self.read(at, bytes);
        read.iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn check(&self, at: PhysAddr, length: u64) -> Result<(), String> {
        let bad = self
            .bad
            .is_some_and(|bad| bad.overlaps(range(at.0, length)));
        if bad { Err("bad".into()) } else { Ok(()) }
    }
}

impl WritePhys for Ram {
    type Error = String;

    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), String> {
        self.check(at, bytes.len() as u64)?;
        self.each(at, bytes.len() as u64, |offset| bytes[offset]);
        Ok(())
    }

    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), String> {
        self.check(at, length)?;
        self.each(at, length, |_| 0);
        Ok(())
    }
}

/// Frames from an address on that is below 4 GiB.
struct Frames(Vec<[u64; 512]>);

const FRAMES: u64 = 0x41f0_0000;

impl Frames {
    const fn place(at: PhysAddr) -> (usize, usize) {
        let offset = at.0 - FRAMES;
        ((offset / 4096) as usize, (offset % 4096 / 8) as usize)
    }

    /// Where an address leads, by the manual's rules for `levels` levels, and whether it may be
    /// written and executed.
    fn look_up(&self, root: PhysAddr, levels: u32, address: u64) -> Option<(u64, bool, bool)> {
        let mut table = root.0;
        let (mut write, mut execute) = (true, true);
        for level in (1..=levels).rev() {
            let index = address >> (12 + 9 * (level - 1)) & 0x1ff;
            let entry = TableFrames::load(self, PhysAddr(table + 8 * index));
            if entry & 1 == 0 {
                return None;
            }
            write &= entry & 2 != 0;
            execute &= entry >> 63 == 0;
            let base = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || (level == 2 && entry & 0x80 != 0) {
                let inside = (1_u64 << (12 + 9 * (level - 1))) - 1;
                return Some((base + (address & inside), write, execute));
            }
            table = base;
        }
        None
    }
}

impl TableFrames for Frames {
    fn allocate(&mut self) -> Option<PhysAddr> {
        self.0.push([0; 512]);
        Some(PhysAddr(FRAMES + 4096 * (self.0.len() as u64 - 1)))
    }

    fn load(&self, at: PhysAddr) -> u64 {
        let (table, entry) = Self::place(at);
        self.0[table][entry]
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        let (table, entry) = Self::place(at);
        self.0[table][entry] = value;
    }
}

/// A range's address, length and type, as the zero page has them.
type Range = (u64, u64, u64);
/// An item's type and data.
type Item = (u64, Vec<u8>);

/// Reads the memory map as Linux does: the zero page's, then what `setup_data` adds; and the other
/// items.
fn told(ram: &Ram, zero_page: u64) -> (Vec<Range>, Vec<Item>) {
    let entry = |at: u64| {
        (
            ram.number(at, 8),
            ram.number(at + 8, 8),
            ram.number(at + 16, 4),
        )
    };
    let count = ram.number(zero_page + 0x1e8, 1);
    let mut map: Vec<_> = (0..count)
        .map(|n| entry(zero_page + 0x2d0 + 20 * n))
        .collect();
    let mut items = vec![];
    let mut at = ram.number(zero_page + 0x250, 8);
    while at != 0 {
        assert_eq!(at % 8, 0);
        let (kind, length) = (ram.number(at + 8, 4), ram.number(at + 12, 4));
        if kind == 1 {
            map.extend((0..length / 20).map(|n| entry(at + 16 + 20 * n)));
        } else {
            items.push((kind, ram.read(at + 16, length)));
        }
        at = ram.number(at, 8);
    }
    (map, items)
}

fn loaded(file: &File, request: &LinuxRequest<'_>, test: impl FnOnce(&LinuxLayout<'_>, &Ram)) {
    let bytes = file.write();
    let image = BzImage::parse(&bytes).unwrap();
    let layout = image.place(request).unwrap();
    let mut ram = Ram::default();
    layout.load(&mut ram).unwrap();
    test(&layout, &ram);
}

#[test]
fn the_zero_page_says_what_was_asked() {
    let map = map();
    let disk = archive(&[100]);
    let request = LinuxRequest {
        initrd: Some(&disk),
        ..request(&map)
    };
    let file = kernel();
    loaded(&file, &request, |layout, ram| {
        let zero_page = layout.zero_page().0;
        let number = |at: u64, bytes| ram.number(zero_page + at, bytes);
        // The header, but for what a loader writes.
        assert_eq!(number(0x202, 4), u64::from(u32::from_le_bytes(*b"HdrS")));
        assert_eq!(number(0x206, 2), 0x020f);
        assert_eq!(number(0x230, 4), ALIGNMENT);
        assert_eq!(number(0x260, 4), INIT_SIZE);
        assert_eq!(number(0x210, 1), 0xff);
        assert_eq!(number(0x226, 2), 0);
        assert_eq!(number(0x23c, 4), 0);
        assert_eq!(number(0x240, 8), 0);
        assert_eq!(number(0x250, 8), 0);
        assert_eq!(number(0x70, 8), 0x4200_0000);
        let disk_at = number(0x218, 4) | number(0xc0, 4) << 32;
        let disk_length = number(0x21c, 4) | number(0xc4, 4) << 32;
        assert_eq!(ram.read(disk_at, disk_length), disk);
        let line = number(0x228, 4) | number(0xc8, 4) << 32;
        assert_eq!(ram.read(line, 13), b"console=hvc0\0");
        // The sentinel, by which Linux knows a loader that did not clear the page, and the header's
        // neighbours.
        assert_eq!(number(0x1ef, 1), 0);
        assert_eq!(number(0x1f0, 1), 0);
        assert_eq!(number(0x26c, 4), 0);
        let expected: Vec<_> = map
            .iter()
            .map(|entry| {
                let range = entry.range;
                (range.base().0, range.length(), u64::from(entry.kind))
            })
            .collect();
        assert_eq!(told(ram, zero_page), (expected, vec![]));
        assert_eq!(
            ram.read(layout.kernel().base().0, 0x1000)[..0xff0],
            file.kernel[..0xff0]
        );
    });
}

#[test]
fn addresses_above_4_gib_are_told_in_two_halves() {
    let map = [ram(0x2_0000, 0x4_0000), ram(0x25_4000_0000, 0x25_4200_0000)];
    let disk = archive(&[100]);
    let request = LinuxRequest {
        initrd: Some(&disk),
        ..request(&map)
    };
    loaded(&kernel(), &request, |layout, ram| {
        let zero_page = layout.zero_page().0;
        assert_eq!(ram.number(zero_page + 0xc0, 4), 0x25);
        assert_eq!(ram.number(zero_page + 0xc8, 4), 0x25);
        let disk_at = ram.number(zero_page + 0x218, 4) | 0x25 << 32;
        assert_eq!(ram.read(disk_at, disk.len() as u64), disk);
    });
}

#[test]
fn a_memory_map_of_any_length_arrives() {
    for count in [127, 128, 129, 500] {
        let mut map = vec![ram(0x2_0000, 0x4_0000), ram(0x4000_0000, 0x4200_0000)];
        let mut at = 0x5000_0000;
        while map.len() < count {
            map.push(other(at, at + 0x1000, 2 + (map.len() as u32 % 3)));
            at += 0x3000;
        }
        let items = [
            SetupDataItem {
                kind: SetupDataItem::RNG_SEED,
                data: &[7; 33],
            },
            SetupDataItem { kind: 5, data: &[] },
        ];
        let request = LinuxRequest {
            setup_data: &items,
            ..request(&map)
        };
        loaded(&kernel(), &request, |layout, ram| {
            let (read, others) = told(ram, layout.zero_page().0);
            assert_eq!(read.len(), count);
            for (read, entry) in read.iter().zip(&map) {
                assert_eq!(read.0, entry.range.base().0);
                assert_eq!(read.1, entry.range.length());
                assert_eq!(read.2, u64::from(entry.kind));
            }
            assert_eq!(others, [(9, vec![7; 33]), (5, vec![])]);
        });
    }
}

#[test]
fn the_processor_comes_from_the_page_before_the_zero_page() {
    let map = map();
    loaded(&kernel(), &request(&map), |layout, ram| {
        let mut frames = Frames(vec![]);
        let tables = layout.tables(&mut frames, &[]).unwrap();
        let state = layout.start_state(&tables);
        assert_eq!(state.page_table, tables.root.0);
        assert_eq!(state.entry, layout.parameters().base().0);
        assert_eq!(state.argument, state.entry);
        assert_eq!(ram.number(state.entry, 2), 0xfcfa, "cli, cld");
        // The descriptor table's limit and address, and the descriptors of the boot protocol: flat,
        // execute and read in 64 bits, read and write.
        let pointer = state.argument + 0xf00;
        assert_eq!(ram.number(pointer, 2), 31);
        let table = ram.number(pointer + 2, 8);
        assert_eq!(ram.number(table + 0x10, 8), 0x00af_9b00_0000_ffff);
        assert_eq!(ram.number(table + 0x18, 8), 0x00cf_9300_0000_ffff);
        assert_eq!(ram.number(pointer + 0x10, 8), layout.zero_page().0);
        assert_eq!(ram.number(pointer + 0x18, 8), layout.entry().0);
        assert!(state.stack <= table && state.stack > state.entry + 0x800);
    });
}

#[test]
fn what_linux_reads_before_it_has_tables_of_its_own_is_mapped() {
    let map = map();
    let disk = archive(&[0x3000]);
    let bytes = kernel().write();
    let image = BzImage::parse(&bytes).unwrap();
    for (levels, count) in [(Levels::Four, 4), (Levels::Five, 5)] {
        let request = LinuxRequest {
            initrd: Some(&disk),
            levels,
            ..request(&map)
        };
        let layout = image.place(&request).unwrap();
        let mut frames = Frames(vec![]);
        let tables = layout.tables(&mut frames, &[]).unwrap();
        assert_eq!(tables.frames, frames.0.len() as u64);
        let look_up = |address: u64| frames.look_up(tables.root, count, address);
        let low = range(0x2_0000, 0x2_0000);
        for of in [layout.kernel(), layout.parameters(), layout.initrd(), low] {
            for address in [of.base().0, of.base().0 + of.length() - 1] {
                assert_eq!(look_up(address), Some((address, true, true)));
            }
        }
        assert_eq!(look_up(0x40e), Some((0x40e, false, false)));
        // Neither what is beside, nor anybody else's memory.
        for address in [
            0x1000,
            0x1_ffff,
            0x4_0000,
            0x5_0000,
            0x3fff_ffff,
            0x41e0_0000,
        ] {
            assert_eq!(look_up(address), None, "{address:#x}");
        }
    }
}

#[test]
fn memory_that_cannot_be_written_is_named() {
    let map = map();
    let disk = archive(&[0x3000]);
    let request = LinuxRequest {
        initrd: Some(&disk),
        ..request(&map)
    };
    let bytes = kernel().write();
    let image = BzImage::parse(&bytes).unwrap();
    let layout = image.place(&request).unwrap();
    let last = layout.parameters().base().0 + layout.parameters().length() - 1;
    for (piece, whole, bad) in [
        (Piece::Kernel, layout.kernel(), layout.kernel().base().0 + 5),
        (Piece::Initrd, layout.initrd(), layout.initrd().base().0),
        (Piece::Parameters, layout.parameters(), last),
    ] {
        let mut ram = Ram {
            bad: Some(range(bad, 1)),
            ..Ram::default()
        };
        let error = layout.load(&mut ram).unwrap_err();
        assert_eq!((error.piece, error.range), (piece, whole));
    }
}
