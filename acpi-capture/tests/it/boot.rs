//! What boot loaders say, written byte by byte from their specifications.

use acpi_capture::boot::*;
use acpi_capture::memory::{MemoryKind, MemoryRegion, SetupError};
use handoff_abi::PhysAddr;
use proptest::prelude::*;

use crate::build::{Bytes, Memory, range};
use crate::build_small::setup_data;

type Found = Vec<Result<BootItem, BootError>>;

fn memory(start: u64, end: u64, kind: MemoryKind) -> BootItem {
    BootItem::Memory(MemoryRegion {
        range: range(start, end),
        kind,
    })
}

fn module(start: u64, end: u64, command_line: Option<u64>) -> BootItem {
    BootItem::Module {
        range: range(start, end),
        command_line: command_line.map(PhysAddr),
    }
}

fn structure(base: u64, length: u64) -> BootItem {
    BootItem::Structure(range(base, base + length))
}

fn e820(base: u64, length: u64, kind: u32) -> Bytes {
    Bytes::new().u64(base).u64(length).u32(kind)
}

fn uefi(kind: u32, base: u64, pages: u64, size: usize) -> Vec<u8> {
    let head = Bytes::new().u32(kind).u32(0).u64(base).u64(0);
    let mut bytes = head.u64(pages).u64(1 << 3).0;
    bytes.resize(size, 0xee);
    bytes
}

// PVH

const START: u64 = 0x6000;

fn start_info(version: u32, modules: u32, entries: u32) -> Vec<u8> {
    Bytes::new()
        .u32(0x336e_c578)
        .u32(version)
        .u32(0)
        .u32(modules)
        .u64(0x7000)
        .u64(0x8000)
        .u64(0xf_5a40)
        .u64(0x9000)
        .u32(entries)
        .u32(0)
        .0
}

fn pvh(memory: &Memory) -> Result<Found, BootError> {
    Ok(BootItems::pvh(memory, PhysAddr(START))?.collect())
}

#[test]
fn pvh_says_where_everything_is() {
    let mut all = Memory::default();
    all.put(START, start_info(1, 2, 2));
    let modules = Bytes::new().u64(0x10_0000).u64(0x2000).u64(0).u64(0);
    let modules = modules.u64(0x20_0000).u64(0x10).u64(0x8100).u64(0);
    all.put(0x7000, modules.0);
    let map = e820(0, 0x9_fc00, 1).u32(0).raw(&e820(0x9_fc00, 0x400, 2).0);
    all.put(0x9000, map.u32(0).0);
    let found: Vec<_> = pvh(&all).unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(
        found,
        [
            structure(START, 56),
            BootItem::Rsdp(PhysAddr(0xf_5a40)),
            BootItem::CommandLine(PhysAddr(0x8000)),
            module(0x10_0000, 0x10_2000, None),
            module(0x20_0000, 0x20_0010, Some(0x8100)),
            memory(0, 0x9_fc00, MemoryKind::Usable),
            memory(0x9_fc00, 0xa_0000, MemoryKind::Reserved),
        ]
    );
}

#[test]
fn a_start_info_that_is_none_is_refused() {
    let address = PhysAddr(START);
    let with = |bytes: Vec<u8>| {
        let mut memory = Memory::default();
        memory.put(START, bytes);
        pvh(&memory)
    };
    assert_eq!(
        with(start_info(0, 0, 0)),
        Err(BootError::Version {
            address,
            found: 0,
            needed: 1
        })
    );
    let mut other = start_info(1, 0, 0);
    other[0] = 0x79;
    let found = 0x336e_c579;
    assert_eq!(with(other), Err(BootError::Magic { address, found }));
    let short = start_info(1, 0, 0)[..55].to_vec();
    assert_eq!(with(short), Err(BootError::Unreadable { address }));
}

#[test]
fn a_list_ends_at_what_cannot_be_read_and_the_next_one_follows() {
    let mut all = Memory::default();
    all.put(START, start_info(1, u32::MAX, 1));
    all.put(
        0x7000,
        Bytes::new()
            .u64(u64::MAX)
            .u64(2)
            .u64(0)
            .u64(0)
            .raw(&[0; 31])
            .0,
    );
    all.put(0x9000, e820(0, 0x1000, 1).u32(0).0);
    let found = pvh(&all).unwrap();
    let wraps = BootError::Wraps {
        address: PhysAddr(u64::MAX),
        length: 2,
    };
    let address = PhysAddr(0x7020);
    assert_eq!(
        found[3..],
        [
            Err(wraps),
            Err(BootError::Unreadable { address }),
            Ok(memory(0, 0x1000, MemoryKind::Usable)),
        ]
    );
}

#[test]
fn a_list_is_not_followed_for_ever() {
    let mut all = Memory::default();
    let entries = 5000_u32;
    all.put(START, start_info(1, 0, entries));
    all.put(0x9000, vec![0; 24 * entries as usize]);
    let found = pvh(&all).unwrap();
    assert_eq!(found.len(), 3 + MAX_ENTRIES as usize + 1);
    let address = PhysAddr(0x9000 + 24 * u64::from(MAX_ENTRIES));
    assert_eq!(*found.last().unwrap(), Err(BootError::TooMany { address }));
}

// Multiboot2

const INFO: u64 = 0x1_0000;

fn tag(kind: u32, content: &[u8]) -> Vec<u8> {
    let head = Bytes::new().u32(kind).u32(8 + content.len() as u32);
    let mut bytes = head.raw(content).0;
    bytes.resize(bytes.len().next_multiple_of(8), 0xaa);
    bytes
}

fn information(tags: &[Vec<u8>]) -> Vec<u8> {
    let tags = tags.concat();
    let head = Bytes::new().u32(8 + tags.len() as u32).u32(0);
    head.raw(&tags).0
}

fn multiboot2(tags: &[Vec<u8>]) -> Found {
    let mut memory = Memory::default();
    memory.put(INFO, information(tags));
    let mut items = BootItems::multiboot2(&memory, PhysAddr(INFO)).unwrap();
    let whole = structure(INFO, memory.0[&INFO].len() as u64);
    assert_eq!(items.next(), Some(Ok(whole)));
    items.collect()
}

fn end() -> Vec<u8> {
    tag(0, &[])
}

#[test]
fn every_tag_that_is_known_is_understood() {
    let map = Bytes::new().u32(24).u32(0);
    let map = map.raw(&e820(0x10_0000, 0x1000, 1).0).u32(0);
    let efi = Bytes::new().u32(48).u32(1);
    let efi = efi
        .raw(&uefi(7, 0x20_0000, 1, 48))
        .raw(&uefi(9, 0x30_0000, 2, 48));
    let screen = Bytes::new().u64(0xe000_0000).u32(4096).u32(1024).u32(768);
    let tags = [
        tag(1, b"trial=1\0"),
        tag(2, b"GRUB 2.06\0"),
        tag(3, &Bytes::new().u32(0x40_0000).u32(0x40_1000).raw(b"m\0").0),
        tag(4, &[0; 8]),
        tag(6, &map.0),
        tag(8, &screen.raw(&[32, 1, 0, 0, 0, 0]).0),
        tag(9, &[0; 12]),
        tag(12, &Bytes::new().u64(0x7f00_0018).0),
        tag(
            13,
            &Bytes::new()
                .raw(&[3, 0, 0, 0, 0, 0, 0, 0])
                .raw(b"_SM3_rest")
                .0,
        ),
        tag(
            13,
            &Bytes::new()
                .raw(&[2, 8, 0, 0, 0, 0, 0, 0])
                .raw(b"_SM_-rest")
                .0,
        ),
        tag(14, &[0; 20]),
        tag(15, &[0; 36]),
        tag(17, &efi.0),
        tag(18, &[]),
        tag(11, &Bytes::new().u32(0x7e00_0018).0),
        tag(4711, &[1, 2, 3]),
        end(),
        tag(1, b"behind the end\0"),
    ];
    let at = |index: usize| INFO + 8 + tags[..index].concat().len() as u64;
    let found: Vec<_> = multiboot2(&tags).into_iter().map(Result::unwrap).collect();
    assert_eq!(
        found,
        [
            BootItem::CommandLine(PhysAddr(at(0) + 8)),
            module(0x40_0000, 0x40_1000, Some(at(2) + 16)),
            memory(0x10_0000, 0x10_1000, MemoryKind::Usable),
            BootItem::Framebuffer(Framebuffer {
                base: PhysAddr(0xe000_0000),
                pitch: 4096,
                width: 1024,
                height: 768,
                bits_per_pixel: 32,
            }),
            BootItem::EfiSystemTable(PhysAddr(0x7f00_0018)),
            BootItem::Smbios {
                entry: PhysAddr(at(8) + 16),
                is_64_bit: true
            },
            BootItem::Smbios {
                entry: PhysAddr(at(9) + 16),
                is_64_bit: false
            },
            BootItem::RsdpV1(PhysAddr(at(10) + 8)),
            BootItem::Rsdp(PhysAddr(at(11) + 8)),
            memory(0x20_0000, 0x20_1000, MemoryKind::Usable),
            memory(0x30_0000, 0x30_2000, MemoryKind::AcpiReclaimable),
            BootItem::EfiBootServices,
            BootItem::EfiSystemTable(PhysAddr(0x7e00_0018)),
        ]
    );
}

#[test]
fn a_tag_too_short_for_what_it_is_is_reported_and_the_next_one_follows() {
    let address = PhysAddr(INFO + 8);
    let line = tag(1, b"x\0");
    for (kind, least) in [(1, 1), (3, 8), (6, 8), (17, 8), (8, 24), (11, 4), (12, 8)]
        .into_iter()
        .chain([(13, 13), (14, 20), (15, 36)])
    {
        let found = multiboot2(&[tag(kind, &vec![0; least - 1]), line.clone(), end()]);
        let length = 8 + least as u32 - 1;
        assert_eq!(
            found[0],
            Err(BootError::Length { address, length }),
            "tag {kind}"
        );
        assert!(
            matches!(found[1..], [Ok(BootItem::CommandLine(_))]),
            "{kind}"
        );
    }
}

#[test]
fn a_map_whose_entries_do_not_fit_is_refused() {
    for (kind, size, length) in [
        (6, 19, 19),
        (6, 0, 24),
        (6, 24, 25),
        (17, 39, 39),
        (17, 48, 49),
    ] {
        let content = Bytes::new().u32(size).u32(0).raw(&vec![0; length]);
        let found = multiboot2(&[tag(kind, &content.0), end()]);
        let wrong = BootError::Length {
            address: PhysAddr(INFO + 8 + 16),
            length: size,
        };
        assert_eq!(found, [Err(wrong)], "{kind} {size} {length}");
    }
}

#[test]
fn tags_end_with_the_boot_information() {
    let address = PhysAddr(INFO + 8);
    // Without an end tag, and with the padding of the last tag missing.
    let mut memory = Memory::default();
    memory.put(INFO, Bytes::new().u32(17).u32(0).u32(1).u32(9).u8(0).0);
    let items = || BootItems::multiboot2(&memory, PhysAddr(INFO)).unwrap();
    let line = BootItem::CommandLine(PhysAddr(INFO + 16));
    assert_eq!(items().skip(1).collect::<Found>(), [Ok(line)]);
    // Tags of no bytes, of too few, and of more than there are.
    for length in [0, 7, 17, u32::MAX] {
        let bytes = Bytes::new().u32(24).u32(0).u32(1).u32(length);
        let mut memory = Memory::default();
        memory.put(INFO, bytes.u64(0).0);
        let items = BootItems::multiboot2(&memory, PhysAddr(INFO)).unwrap();
        let wrong = BootError::Length { address, length };
        assert_eq!(items.skip(1).collect::<Found>(), [Err(wrong)]);
    }
    for length in [0, 7, 8, 15] {
        let mut memory = Memory::default();
        memory.put(INFO, Bytes::new().u32(length).u32(0).u64(0).0);
        let wrong = BootError::Length {
            address: PhysAddr(INFO),
            length,
        };
        let items = BootItems::multiboot2(&memory, PhysAddr(INFO));
        assert_eq!(items.map(drop), Err(wrong));
    }
}

#[test]
fn a_module_that_ends_before_it_begins_is_refused() {
    let bounds = Bytes::new().u32(0x2000).u32(0x1000);
    let wraps = BootError::Wraps {
        address: PhysAddr(0x2000),
        length: u64::MAX - 0xfff,
    };
    assert_eq!(multiboot2(&[tag(3, &bounds.0), end()]), [Err(wraps)]);
}

#[test]
fn a_screen_of_text_is_no_frame_buffer() {
    let screen = Bytes::new().u64(0xb_8000).u32(160).u32(80).u32(25);
    assert_eq!(
        multiboot2(&[tag(8, &screen.raw(&[16, 2, 0, 0]).0), end()]),
        []
    );
}

// Linux

/// Boot parameters of one page, with `fields` written over them.
fn boot_params(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let standard: [(usize, &[u8]); 2] = [(0x202, b"HdrS"), (0x206, &[0x0f, 0x02])];
    for (at, bytes) in standard.iter().chain(fields) {
        page[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    page
}

fn linux(memory: &Memory) -> Result<Found, BootError> {
    Ok(BootItems::linux(memory, PhysAddr(START))?.collect())
}

#[test]
fn linux_boot_parameters_are_read_to_the_end() {
    let mut all = Memory::default();
    let map = e820(0, 0x8_0000, 1).raw(&e820(0x10_0000, 0x10_0000, 1).0);
    let screen = Bytes::new().u16(1024).u16(768).u16(32).u32(0xc000_0000);
    let fields: [(usize, &[u8]); 20] = [
        (0x0f, &[0x70]),
        (0x12, &screen.0),
        (0x24, &4096_u16.to_le_bytes()),
        (0x36, &2_u32.to_le_bytes()),
        (0x3a, &[0x38]),
        (0x70, &0x7fff_e014_u64.to_le_bytes()),
        (0xc0, &1_u32.to_le_bytes()),
        (0xc4, &[0]),
        (0xc8, &2_u32.to_le_bytes()),
        (0x1c0, b"EL64"),
        (0x1c4, &0x7e00_0000_u32.to_le_bytes()),
        (0x1c8, &48_u32.to_le_bytes()),
        (0x1d0, &0x7000_u32.to_le_bytes()),
        (0x1d4, &96_u32.to_le_bytes()),
        (0x1d8, &1_u32.to_le_bytes()),
        (0x1e8, &[2]),
        (0x218, &0x3000_0000_u32.to_le_bytes()),
        (0x21c, &0x4000_u32.to_le_bytes()),
        (0x228, &0x2_0000_u32.to_le_bytes()),
        (0x250, &0x8000_u64.to_le_bytes()),
    ];
    let mut page = boot_params(&fields);
    page[0x2d0..0x2d0 + map.0.len()].copy_from_slice(&map.0);
    all.put(START, page);
    all.put(0x7000 + 0x1000, setup_data(0x9000, 9, &[7; 32]));
    let more = e820(0x1_0000_0000, 0x1000, 1).raw(&e820(0x2_0000_0000, 0x1000, 2).0);
    all.put(0x9000, setup_data(0, 1, &more.0));
    let descriptors = [uefi(7, 0x10_0000, 1, 48), uefi(11, 0xfec0_0000, 1, 48)];
    all.put(0x7000, descriptors.concat());
    let found: Vec<_> = linux(&all)
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        found,
        [
            structure(START, 4096),
            BootItem::Rsdp(PhysAddr(0x7fff_e014)),
            BootItem::CommandLine(PhysAddr(0x2_0002_0000)),
            module(0x1_3000_0000, 0x1_3000_4000, None),
            BootItem::Framebuffer(Framebuffer {
                base: PhysAddr(0x38_c000_0000),
                pitch: 4096,
                width: 1024,
                height: 768,
                bits_per_pixel: 32,
            }),
            BootItem::EfiSystemTable(PhysAddr(0x1_7e00_0000)),
            memory(0, 0x8_0000, MemoryKind::Usable),
            memory(0x10_0000, 0x20_0000, MemoryKind::Usable),
            memory(0x10_0000, 0x10_1000, MemoryKind::Usable),
            memory(0xfec0_0000, 0xfec0_1000, MemoryKind::Reserved),
            memory(0x1_0000_0000, 0x1_0000_1000, MemoryKind::Usable),
            memory(0x2_0000_0000, 0x2_0000_1000, MemoryKind::Reserved),
        ]
    );
}

#[test]
fn what_no_uefi_loader_left_is_not_read_as_its_own() {
    let mut all = Memory::default();
    let fields: [(usize, &[u8]); 4] = [
        (0x0f, &[0x03]),
        (0x1c4, &[0xff; 4]),
        (0x1d0, &[0xff; 8]),
        (0x1e8, &[0]),
    ];
    all.put(START, boot_params(&fields));
    assert_eq!(linux(&all), Ok(vec![Ok(structure(START, 4096))]));
}

#[test]
fn boot_parameters_that_are_none_are_refused() {
    let address = PhysAddr(START);
    let with = |bytes: Vec<u8>| {
        let mut memory = Memory::default();
        memory.put(START, bytes);
        linux(&memory)
    };
    let found = u32::from_le_bytes(*b"HdrT");
    assert_eq!(
        with(boot_params(&[(0x202, b"HdrT")])),
        Err(BootError::Magic { address, found })
    );
    assert_eq!(
        with(boot_params(&[(0x206, &[0x0b, 0x02])])),
        Err(BootError::Version {
            address,
            found: 0x20b,
            needed: 0x20c
        })
    );
    assert_eq!(
        with(boot_params(&[])[..0x257].to_vec()),
        Err(BootError::Unreadable {
            address: PhysAddr(START + 0x1fe)
        })
    );
}

#[test]
fn the_boot_parameters_have_room_for_128_entries_whatever_they_say() {
    let mut all = Memory::default();
    all.put(START, boot_params(&[(0x1e8, &[255])]));
    assert_eq!(linux(&all).unwrap().len(), 1 + 128);
}

#[test]
fn a_setup_data_that_is_wrong_is_reported_and_the_list_goes_on() {
    let mut all = Memory::default();
    let first: (usize, &[u8]) = (0x250, &0x8000_u64.to_le_bytes());
    all.put(START, boot_params(&[first]));
    all.put(0x8000, setup_data(0x9000, 1, &[0; 21]));
    all.put(0x9000, setup_data(0xa000, 1, &e820(0, 0x1000, 1).0));
    let header = PhysAddr(0xa000);
    assert_eq!(
        linux(&all).unwrap()[1..],
        [
            Err(BootError::Length {
                address: PhysAddr(0x8010),
                length: 20
            }),
            Ok(memory(0, 0x1000, MemoryKind::Usable)),
            Err(BootError::Setup(SetupError::Unreadable { header })),
        ]
    );
}

proptest! {
    /// Whatever lies there is read in bounded time, and never panics.
    #[test]
    fn any_bytes_are_read_to_an_end(
        bytes in prop::collection::vec(any::<u8>(), 0x258..0x400),
        protocol in 0..3,
    ) {
        let mut bytes = bytes;
        match protocol {
            0 => bytes[..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]),
            1 => bytes[..8].copy_from_slice(&[0, 2, 0, 0, 0, 0, 0, 0]),
            _ => bytes[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02"),
        }
        let mut memory = Memory::default();
        memory.put(START, bytes);
        let at = PhysAddr(START);
        let items = match protocol {
            0 => BootItems::pvh(&memory, at),
            1 => BootItems::multiboot2(&memory, at),
            _ => BootItems::linux(&memory, at),
        };
        let most = 3 * MAX_ENTRIES as usize;
        prop_assert!(items.unwrap().take(most + 1).count() <= most);
    }
}
