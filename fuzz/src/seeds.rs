//! Inputs to begin with, in the grammar of the targets, written by hand from the specifications;
//! and a few rounds of damage to them, for a run without a fuzzer.

use crate::{firmware, kernel, linux, plan, smaller, tables};

/// An entry in the grammar of the tables: right length.
fn entry(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, kind, content.len() as u8];
    bytes.extend_from_slice(content);
    bytes
}

fn asked(kind: u8, revision: u8, fixed: &[u8], entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![kind, revision];
    bytes.extend_from_slice(fixed);
    bytes.extend(entries.concat());
    bytes
}

fn drhd(all: u8, base: u64, scopes: &[u8]) -> Vec<u8> {
    let mut content = vec![all, 0, 0, 0];
    content.extend_from_slice(&base.to_le_bytes());
    content.extend_from_slice(scopes);
    entry(0, &content)
}

/// Entries of a unit of AMD's: ranges, aliases, special devices, an ACPI device.
const DEVICES: &[u8] = &[
    3, 8, 0, 0, 4, 0xfe, 0xff, 0, 0x43, 0, 0xff, 0, 0, 0xa5, 0, 0, 4, 0xff, 0xff, 0, 0, 0, 0, 0,
    0x48, 0, 0, 0, 0, 0xa0, 0, 2, 0x48, 0, 0, 0xd7, 0x21, 0xa0, 0, 1, 0x42, 0x10, 0, 0, 0, 0x18, 0,
    0, 0x46, 0x28, 0, 2, 0, 0, 0, 0x80, 1, 0, 0, 0x40,
];

fn ivhd(kind: u8) -> Vec<u8> {
    let mut content = vec![2, 0, 0x40, 0];
    content.extend_from_slice(&0xfd50_0000_u64.to_le_bytes());
    content.extend_from_slice(&[0; 8]);
    if kind != 0x10 {
        content.extend_from_slice(&[0; 16]);
    }
    content.extend_from_slice(DEVICES);
    if kind == 0x40 {
        content.extend_from_slice(b"\xf0\xa5\0\x40AMDI0020\0\0\0\0\0\0\0\0\x02\x04FUR0");
    }
    entry(kind, &content)
}

fn table_seeds() -> Vec<Vec<u8>> {
    let cpu = |id: u8| entry(0, &[id, id, 1, 0, 0, 0]);
    let x2apic = |id: u8| entry(9, &[0, 0, id, 1, 0, 0, 1, 0, 0, 0, id, 0, 0, 0]);
    let graphics = [1, 8, 0, 0, 0, 0, 2, 0];
    let mut region = vec![0, 0, 0, 0];
    region.extend_from_slice(&0x7d00_0000_u64.to_le_bytes());
    region.extend_from_slice(&0x7f7f_ffff_u64.to_le_bytes());
    region.extend_from_slice(&graphics);
    let mut matrix = vec![0; 24];
    matrix[4] = 1;
    matrix[8] = 1;
    matrix.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 10, 0]);
    let mut port = vec![
        1, 14, 0, 38, 0, 2, 0, 40, 0, 0, 0x80, 0, 0, 0, 0, 22, 0, 34, 0,
    ];
    port.extend_from_slice(&[1, 8, 0, 1, 0xf8, 3, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, b'.', 0]);
    vec![
        asked(
            0,
            5,
            &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0],
            &[
                cpu(0),
                cpu(2),
                cpu(2),
                x2apic(7),
                entry(1, &[8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
                entry(2, &[0, 0, 2, 0, 0, 0, 0, 0]),
                entry(4, &[0xff, 5, 0, 1]),
                entry(
                    0x10,
                    &[
                        1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
                    ],
                ),
            ],
        ),
        asked(
            1,
            3,
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[
                entry(0, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                entry(1, &[0; 38]),
                entry(2, &[0; 22]),
                entry(5, &[0; 30]),
            ],
        ),
        asked(
            2,
            1,
            &[38, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[
                drhd(0, 0xfed9_0000, &graphics),
                drhd(1, 0xfed9_1000, &[3, 8, 0, 0, 2, 0xf0, 31, 0]),
                entry(1, &region),
                entry(4, b"\0\0\0\x01\\_SB.I2C0\0"),
                entry(5, &[1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 3, 0]),
            ],
        ),
        asked(
            3,
            2,
            &[0x43, 0x30, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[
                ivhd(0x10),
                ivhd(0x11),
                ivhd(0x40),
                entry(
                    0x22,
                    &[
                        0, 0, 0xff, 0xf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x70, 0xb9, 0x97, 0, 0, 0, 0,
                        1, 0, 0, 0, 0, 0, 0, 0,
                    ],
                ),
            ],
        ),
        asked(
            4,
            2,
            &[0; 4],
            &[entry(0, &[0; 32]), entry(1, &matrix), entry(2, &[0; 24])],
        ),
        asked(5, 0, &[1, 0, 0, 0, 1, 0, 0, 0], &[entry(0, &port)]),
        asked(
            6,
            1,
            &[0; 8],
            &[vec![0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0]],
        ),
        asked(7, 1, &[2, 0, 0, 0, 0, 0, 0, 0], &[vec![10, 20, 20, 10]]),
        asked(8, 6, &[0x11; 240], &[]),
        asked(9, 1, &[0x22; 20], &[]),
        asked(
            10,
            4,
            &[1; 44],
            &[vec![10, 0, 88, 0], b"\\_SB.UAR1\0".to_vec()],
        ),
        asked(11, 1, &[1; 20], &[]),
        asked(12, 4, &[1; 40], &[]),
        asked(13, 1, &[3, 0, 0, 0], &[]),
        asked(14, 1, &[1; 29], &[b"\\_SB.EC0\0".to_vec()]),
        asked(15, 1, &[0; 16], &[]),
    ]
}

fn ivrs_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![1, 0x10, 0, 0x28, 0, 5, 0xff];
    for (kind, unit) in [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)] {
        seed.extend_from_slice(&[kind, unit, DEVICES.len() as u8]);
        seed.extend_from_slice(DEVICES);
    }
    vec![
        seed,
        vec![
            0, 9, 0, 0x80, 0, 0xff, 0xff, 2, 0, 8, 3, 8, 0, 0, 4, 0xff, 0xff, 0, 2, 0, 4, 0x80, 0,
            0, 0,
        ],
    ]
}

fn smbios_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x00\x18\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00maker\0version\0\0\
          \x02\x08\x01\0\x01\x02\x03\x04board\0\0\0\0\x7f\x04\x02\0\0\0"
            .to_vec(),
    ]
}

fn setup_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![0, 0];
    // An item of the memory map, one that is indirect, and one that leads back.
    seed.extend_from_slice(&0x1024_u64.to_le_bytes());
    seed.extend_from_slice(&[1, 0, 0, 0, 20, 0, 0, 0]);
    seed.extend_from_slice(&[0; 20]);
    seed.extend_from_slice(&0x1000_u64.to_le_bytes());
    seed.extend_from_slice(&[0, 0, 0, 0x80, 24, 0, 0, 0]);
    seed.extend_from_slice(&[1, 0, 0, 0x80, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0]);
    seed.extend_from_slice(&0x1010_u64.to_le_bytes());
    vec![seed]
}

fn boot_seeds() -> Vec<Vec<u8>> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    // Start info, a module and an entry of the memory map behind it.
    let mut pvh: Vec<u8> = words(&[0, 1 << 32, 0x1038, 0x1080, 0xf_5a40, 0x1058, 1]);
    pvh.extend::<Vec<u8>>(words(&[0x10_0000, 0x1000, 0x1080, 0, 0, 0x9_fc00, 1]));
    // Command line, module, both memory maps, frame buffer, SMBIOS, RSDP, end.
    let map = [24, 0, 0x10_0000, 0, 0x1000, 0, 1, 0].map(u32::to_le_bytes);
    let efi = [40, 1, 7, 0, 0x10_0000, 0, 0, 0, 16, 0, 8, 0].map(u32::to_le_bytes);
    let screen = [0xe000_0000, 0, 4096, 1024, 768, 0x0120].map(u32::to_le_bytes);
    let tags = [
        (1, b"a=1\0".to_vec()),
        (3, b"\0\0\x10\0\0\x10\x10\0m\0".to_vec()),
        (6, map.concat()),
        (17, efi.concat()),
        (8, screen.concat()),
        (13, b"\x03\0\0\0\0\0\0\0_SM3_".to_vec()),
        (14, vec![0; 20]),
        (0, vec![]),
    ];
    let mut multiboot2 = vec![0, 2, 0, 0, 0, 0, 0, 0];
    for (kind, content) in tags {
        multiboot2.extend_from_slice(&[kind, 0, 0, 0, 8 + content.len() as u8, 0, 0, 0]);
        multiboot2.extend(content);
        multiboot2.resize(multiboot2.len().next_multiple_of(8), 0);
    }
    // Boot parameters with one entry, a UEFI map and more entries in setup_data.
    let mut linux = vec![0; 0x340];
    for (at, bytes) in [
        (0x0f, &[0x70][..]),
        (0x1c0, b"EL64"),
        (0x1c8, &[40]),
        (0x1d0, &[0, 0x13, 0, 0, 40]),
        (0x1e8, &[1]),
        (0x21c, &[1]),
        (0x228, &[0, 0x10]),
        (0x250, &[0xf0, 0x12]),
        (0x2d8, &[0, 0x10]),
        (0x2e0, &[1]),
        (0x2f8, &[1, 0, 0, 0, 20]),
        (0x310, &[1]),
    ] {
        linux[at..at + bytes.len()].copy_from_slice(bytes);
    }
    [(0, pvh), (1, multiboot2), (2, linux)]
        .into_iter()
        .map(|(protocol, memory)| [vec![protocol], memory].concat())
        .collect()
}

fn map_seeds() -> Vec<Vec<u8>> {
    let mut e820 = vec![0];
    for (base, length, kind) in [
        (0_u64, 0x9_fc00_u64, 1_u32),
        (0x10_0000, 1 << 30, 1),
        (0x9_fc00, 0x400, 2),
    ] {
        e820.extend_from_slice(&base.to_le_bytes());
        e820.extend_from_slice(&length.to_le_bytes());
        e820.extend_from_slice(&kind.to_le_bytes());
    }
    let mut uefi = vec![28];
    for (kind, base, pages) in [(7_u64, 0x10_0000_u64, 0x100_u64), (0, 0, 0xa0)] {
        for number in [kind, base, 0, pages, 0xf, 0] {
            uefi.extend_from_slice(&number.to_le_bytes());
        }
    }
    vec![
        e820,
        uefi,
        vec![0, 4, 0, 100, 5, 50, 10, 2, 20, 5, 8, 90, 200, 3, 10, 100],
    ]
}

fn capture_seeds() -> Vec<Vec<u8>> {
    let all = table_seeds();
    let mut seed = vec![
        0x4f, 9, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 0xff, 0xff, 0, 0,
    ];
    for table in all.iter().take(7) {
        let table = &table[..table.len().min(250)];
        seed.push((table.len() - 2) as u8);
        seed.extend_from_slice(table);
    }
    let mut scan = seed.clone();
    scan[0] = 0x8f;
    vec![seed, scan]
}

fn blob_seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![1, b'A', b'P', b'C', 2, 0, 0, 0];
    seed.extend_from_slice(&0x1000_u64.to_le_bytes());
    seed.extend_from_slice(&[44, 0, 0, 0, 64, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0]);
    seed.extend_from_slice(&crate::grammar::sdt(b"APIC", 3, &[0; 8]));
    vec![seed]
}

fn partition_seeds() -> Vec<Vec<u8>> {
    let all = table_seeds();
    let mut seed = Vec::new();
    for kind in [0, 1, 7] {
        // The kind and the revision are the target's own.
        let asked = &all[kind][2..];
        let length = asked.len().div_ceil(2);
        seed.push(length as u8);
        seed.extend_from_slice(asked);
        seed.resize(seed.len() + length * 2 - asked.len(), 0);
    }
    // Two processors, one range of memory, one host bridge with a window.
    seed.extend_from_slice(&[2, 0, 1, 1, 0, 1, 0x40, 1, 1, 2, 0x70, 0, 1]);
    seed.extend_from_slice(&[0, 3, 5, 0, 0xb]);
    seed.extend_from_slice(&[0, 0x10, 0, 0]);
    seed.extend_from_slice(&[0x11; 9]);
    seed.extend_from_slice(&[1, 0, 0x20, 0, 0, 0, 0, 0, 0, 0xff, 0x2f]);
    vec![seed]
}

/// A target: its name, what it does, and its seeds.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All targets.
pub const TARGETS: [Target; 15] = [
    ("acpi_table", tables::table, table_seeds),
    ("ivrs", tables::ivrs_in_any_order, ivrs_seeds),
    ("smbios", firmware::smbios, smbios_seeds),
    ("setup_data", firmware::setup_data, setup_seeds),
    ("boot", firmware::boot, boot_seeds),
    ("memory_map", firmware::memory_map, map_seeds),
    ("capture", firmware::capture, capture_seeds),
    ("capture_blob", firmware::capture_blob, blob_seeds),
    ("partition", smaller::partition, partition_seeds),
    ("handoff", kernel::handoff, kernel::handoff_seeds),
    ("image", kernel::image, kernel::image_seeds),
    ("bzimage", linux::bzimage, linux::bzimage_seeds),
    ("ledger", kernel::ledger, kernel::ledger_seeds),
    ("mailbox", kernel::mailbox, kernel::mailbox_seeds),
    ("plan", plan::plan, || plan::seeds().into()),
];

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Changes a few bytes, or takes out, doubles, or cuts off some.
fn damaged(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(bytes.len());
        let interesting = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff];
        match (numbers.below(6), bytes.is_empty()) {
            (_, true) => bytes.push(numbers.next() as u8),
            (0 | 1, _) => bytes[at] = numbers.next() as u8,
            (2, _) => bytes[at] = interesting[numbers.below(interesting.len())],
            (3, _) => {
                let end = (at + 1 + numbers.below(8)).min(bytes.len());
                bytes.drain(at..end);
            }
            (4, _) => {
                let end = (at + 1 + numbers.below(24)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Runs a target on its seeds and on `rounds` damaged ones.
pub fn smoke(target: &Target, rounds: usize) {
    let (name, run, seeds) = target;
    let seeds = seeds();
    run(&[]);
    let mut numbers = Numbers(name.bytes().fold(0x9e37_79b9_7f4a_7c15, |n, b| {
        n.rotate_left(9) ^ u64::from(b)
    }));
    for seed in &seeds {
        run(seed);
        for end in (0..seed.len()).step_by(7) {
            run(&seed[..end]);
        }
    }
    for _ in 0..rounds {
        let seed = &seeds[numbers.below(seeds.len())];
        run(&damaged(seed, &mut numbers));
    }
}
