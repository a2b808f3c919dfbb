//! `setup_data`, which a boot loader leaves in memory as a list.

use std::cell::Cell;

use acpi_capture::ReadPhys;
use acpi_capture::memory::{E820Entries, SetupData, SetupError, SetupItem, SetupKind};
use handoff_abi::PhysAddr;

use crate::build::{Bytes, Memory, range};
use crate::build_small::setup_data;

fn items(memory: &Memory, first: u64) -> Vec<Result<SetupItem, SetupError>> {
    SetupData::new(memory, PhysAddr(first)).collect()
}

#[test]
fn every_item_of_the_list_is_found_in_order() {
    let mut memory = Memory::default();
    let entries = Bytes::new().u64(0x1_0000_0000).u64(0x1000).u32(1);
    memory.put(0x9_0000, setup_data(0x7000_0003, 1, &entries.0));
    memory.put(0x7000_0003, setup_data(0x8000_0000, 9, &[7; 32]));
    memory.put(0x8000_0000, setup_data(0, 77, b""));
    let found: Vec<_> = items(&memory, 0x9_0000)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let kinds: Vec<_> = found.iter().map(|item| item.kind).collect();
    assert_eq!(
        kinds,
        [
            SetupKind::E820Extension,
            SetupKind::RngSeed,
            SetupKind::Unknown(77)
        ]
    );
    assert_eq!(found[1].data, range(0x7000_0013, 0x7000_0033));
    assert!(found[2].data.is_empty());
    // The data of the first is more of the memory map.
    let mut bytes = vec![0; found[0].data.length() as usize];
    memory.read(found[0].data.base(), &mut bytes).unwrap();
    let map: Vec<_> = E820Entries::parse(&bytes, E820Entries::BIOS)
        .unwrap()
        .collect();
    assert_eq!(map[0].range, range(0x1_0000_0000, 0x1_0000_1000));
    assert_eq!(items(&memory, 0), []);
}

#[test]
fn indirect_data_is_where_the_item_says() {
    let indirect = |kind: u32, address: u64, length: u64| {
        let data = Bytes::new().u32(kind).u32(0).u64(length).u64(address);
        let mut memory = Memory::default();
        memory.put(0x1000, setup_data(0x2000, 1 << 31, &data.0));
        memory.put(0x2000, setup_data(0, 9, &[1]));
        let found = items(&memory, 0x1000);
        assert!(found.len() == 2 && found[1].is_ok());
        found[0]
    };
    assert_eq!(
        indirect(1 << 31 | 1, 0x5000, 0x40),
        Ok(SetupItem {
            header: PhysAddr(0x1000),
            kind: SetupKind::E820Extension,
            data: range(0x5000, 0x5040),
            indirect: true
        })
    );
    let header = PhysAddr(0x1000);
    assert_eq!(
        indirect(1 << 31, 0x5000, 0x40),
        Err(SetupError::Indirect { header })
    );
    assert_eq!(
        indirect(1 << 31 | 1, u64::MAX, 2),
        Err(SetupError::Wraps { header, length: 2 })
    );
    // What follows the address is nobody's.
    let data = Bytes::new().u32(1 << 31 | 9).u32(0).u64(0x20).u64(0x6000);
    let mut memory = Memory::default();
    memory.put(0x1000, setup_data(0, 1 << 31, &data.raw(&[0xee; 16]).0));
    assert_eq!(
        items(&memory, 0x1000)[0].unwrap().data,
        range(0x6000, 0x6020)
    );
    memory.put(0x1000, setup_data(0, 1 << 31, &[0; 23]));
    assert_eq!(
        items(&memory, 0x1000),
        [Err(SetupError::Indirect { header })]
    );
}

#[test]
fn a_ring_a_hole_and_the_end_of_memory_end_the_list() {
    let mut memory = Memory::default();
    memory.put(0x1000, setup_data(0x2000, 9, &[1]));
    memory.put(0x2000, setup_data(0x1000, 9, &[1]));
    let found = items(&memory, 0x1000);
    assert_eq!(found.len(), SetupData::<&Memory>::MAX_ITEMS + 1);
    assert!(matches!(
        found.last(),
        Some(Err(SetupError::TooMany { .. }))
    ));
    memory.put(0x2000, setup_data(0x3000, 9, &[1]));
    let header = PhysAddr(0x3000);
    assert_eq!(
        items(&memory, 0x1000)[2..],
        [Err(SetupError::Unreadable { header })]
    );
    // Half a header.
    memory.put(0x3000, vec![0; 15]);
    assert_eq!(
        items(&memory, 0x1000)[2..],
        [Err(SetupError::Unreadable { header })]
    );
    // Data past the end of the address space; the next item is still read.
    let mut last = setup_data(0x1000, 9, b"");
    last[12..16].copy_from_slice(&[0xff; 4]);
    memory.put(u64::MAX - 15, last);
    memory.put(0x1000, setup_data(0, 9, &[1]));
    let found = items(&memory, u64::MAX - 15);
    assert!(
        matches!(found[..], [Err(SetupError::Wraps { .. }), Ok(_)]),
        "{found:?}"
    );
}

/// Memory that counts how often each byte is read.
struct Counted<'a>(&'a Memory, Cell<usize>);

impl ReadPhys for Counted<'_> {
    type Error = crate::build::Hole;

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), Self::Error> {
        self.1.set(self.1.get() + into.len());
        self.0.read(at, into)
    }
}

#[test]
fn a_header_is_read_once_and_its_data_not_at_all() {
    let mut memory = Memory::default();
    memory.put(0x1000, setup_data(0x2000, 9, &[1; 100]));
    memory.put(0x2000, setup_data(0, 9, &[1; 100]));
    let counted = Counted(&memory, Cell::new(0));
    assert_eq!(SetupData::new(&counted, PhysAddr(0x1000)).count(), 2);
    assert_eq!(counted.1.get(), 32);
}

#[test]
fn each_kind_has_its_number() {
    for (number, kind) in [
        (1, SetupKind::E820Extension),
        (2, SetupKind::DeviceTree),
        (3, SetupKind::PciRom),
        (4, SetupKind::Efi),
        (5, SetupKind::AppleProperties),
        (6, SetupKind::Jailhouse),
        (7, SetupKind::ConfidentialComputing),
        (8, SetupKind::Ima),
        (9, SetupKind::RngSeed),
        (10, SetupKind::KexecHandover),
        (11, SetupKind::Unknown(11)),
    ] {
        let mut memory = Memory::default();
        memory.put(0x1000, setup_data(0, number, &[1]));
        assert_eq!(items(&memory, 0x1000)[0].unwrap().kind, kind);
    }
}
