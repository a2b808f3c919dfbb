//! What firmware and boot loaders leave in memory: captures, SMBIOS, memory maps, `setup_data`.

use acpi_capture::boot::{BootError, BootItem, BootItems, MAX_ENTRIES};
use acpi_capture::memory::{
    E820Entries, MemoryKind, MemoryMap, MemoryRegion, SetupData, UefiDescriptors,
};
use acpi_capture::table::{Sdt, checksum};
use acpi_capture::{
    Capture, CaptureRequest, CapturedKind, ReadPhys, SmbiosEntry, SmbiosSource, SmbiosStructures,
    State, capture as take,
};
use handoff_abi::{PhysAddr, PhysRange};

use crate::grammar::{self, Input, fix_sum};
use crate::tables;

/// Memory from one address on; it changes behind the reader where the input says so.
pub struct Piece<'a> {
    pub base: u64,
    pub bytes: &'a [u8],
}

impl ReadPhys for Piece<'_> {
    type Error = ();

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), ()> {
        let start = usize::try_from(at.0.checked_sub(self.base).ok_or(())?).map_err(|_| ())?;
        let end = start.checked_add(into.len()).ok_or(())?;
        into.copy_from_slice(self.bytes.get(start..end).ok_or(())?);
        Ok(())
    }
}

/// SMBIOS of any bytes.
pub fn smbios(bytes: &[u8]) {
    let mut fixed = bytes.to_vec();
    for (anchor, at, length) in [(&b"_SM3_"[..], 5, 24), (b"_SM_", 4, 31)] {
        if fixed.len() >= length {
            fixed[..anchor.len()].copy_from_slice(anchor);
            let length_at = if at == 5 { 6 } else { 5 };
            fixed[length_at] = length as u8;
            fix_sum(&mut fixed[..length], at);
            let entry = SmbiosEntry::parse(&fixed).expect("it was put together");
            assert_eq!((entry.length, entry.is_64_bit), (length, at == 5));
        }
    }
    let _ = SmbiosEntry::parse(bytes);
    let mut structures = SmbiosStructures::new(bytes);
    let mut count = 0;
    for structure in structures.by_ref().flatten() {
        count += 1;
        let strings = structure.strings().count();
        assert!(strings < 256 || structure.string(255).is_some());
        assert!(structure.formatted.len() >= 4);
        for number in 0..=(strings.min(254) as u8 + 1) {
            let there = number != 0 && usize::from(number) <= strings;
            assert_eq!(structure.string(number).is_some(), there);
        }
    }
    assert!(count * 6 <= bytes.len());
    assert!(structures.offset() <= bytes.len());
}

/// A list of `setup_data`: the input is the memory from `0x1000` on.
pub fn setup_data(bytes: &[u8]) {
    let mut input = Input(bytes);
    let first = 0x1000 + u64::from(input.word()) % 0x800;
    let memory = Piece {
        base: 0x1000,
        bytes: input.0,
    };
    let items = SetupData::new(&memory, PhysAddr(first));
    let mut count = 0;
    for item in items {
        count += 1;
        if let Ok(item) = item {
            assert!(item.data.base().0.checked_add(item.data.length()).is_some());
        }
    }
    assert!(count <= SetupData::<Piece<'_>>::MAX_ITEMS + 1);
}

/// What a boot loader says: the first byte gives the protocol and the place, the rest is the memory
/// from `0x1000` on, with the protocol's magic put in.
pub fn boot_items(bytes: &[u8]) -> Vec<Result<BootItem, BootError>> {
    let mut input = Input(bytes);
    let chosen = input.byte();
    let start = usize::from(chosen >> 2);
    let (at, magic): (usize, &[u8]) = match chosen % 4 {
        0 => (0, &[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]),
        1 => (4, &[0, 0, 0, 0]),
        2 => (0x202, b"HdrS\x0f\x02"),
        _ => (0, &[]),
    };
    let mut bytes = input.0.to_vec();
    let field = start + at;
    if let Some(field) = bytes.get_mut(field..field + magic.len()) {
        field.copy_from_slice(magic);
    }
    let memory = Piece {
        base: 0x1000,
        bytes: &bytes,
    };
    let address = PhysAddr(0x1000 + start as u64);
    let items = match chosen % 4 {
        0 => BootItems::pvh(&memory, address),
        2 => BootItems::linux(&memory, address),
        _ => BootItems::multiboot2(&memory, address),
    };
    let Ok(items) = items else {
        return Vec::new();
    };
    // Two lists and 64 items of setup_data with as many entries as the memory has, at most.
    let most = 66 * (bytes.len() / 20 + 2) + MAX_ENTRIES as usize;
    let items: Vec<_> = items.take(most + 1).collect();
    assert!(items.len() <= most, "it does not end");
    items
}

/// What a boot loader says holds by itself, whatever it is.
pub fn boot(bytes: &[u8]) {
    for item in boot_items(bytes) {
        match item {
            Ok(BootItem::Module { range, .. }) => {
                assert!(range.base().0.checked_add(range.length()).is_some());
            }
            Err(BootError::Magic { .. } | BootError::Version { .. }) => {
                panic!("that is known from the beginning")
            }
            _ => {}
        }
    }
}

/// Entries of every format; and steps on a small map, held against one kind for each byte.
pub fn memory_map(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = 20 + usize::from(input.byte() % 80);
    for entries in [
        E820Entries::parse(input.0, size).map(Iterator::collect::<Vec<_>>),
        UefiDescriptors::parse(input.0, size).map(Iterator::collect),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(entries.len(), input.0.len() / size);
        if let Ok(map) = MemoryMap::<64>::from_regions(entries.iter().copied()) {
            check(&map);
            for entry in &entries {
                let kinds = entries
                    .iter()
                    .filter(|other| other.range.contains(entry.range.base()));
                let expected = kinds.map(|other| other.kind).max();
                assert_eq!(map.kind_at(entry.range.base()), expected);
            }
            if let Ok(frames) = map.in_frames() {
                check(&frames);
                let usable = MemoryKind::Usable;
                assert!(frames.total(usable) <= map.total(usable));
            }
        }
    }
    let mut map = MemoryMap::<16>::new();
    let mut plain = [None; 256];
    while !input.is_empty() {
        let (step, base, length) = (input.byte(), input.byte(), input.byte());
        let kind = MemoryKind::from_e820(u32::from(step >> 2 & 7));
        let end = u64::from(base) + u64::from(length);
        let range = PhysRange::from_bounds(PhysAddr(base.into()), PhysAddr(end.min(256)));
        let before = map.clone();
        let done = match step & 3 {
            0 => map.insert(MemoryRegion { range, kind }),
            1 => map.carve(range, kind),
            2 => map.subtract(range),
            _ => {
                map.intersect(range);
                Ok(())
            }
        };
        if done.is_err() {
            assert_eq!(map, before);
            continue;
        }
        for (at, byte) in plain.iter_mut().enumerate() {
            let inside = range.contains(PhysAddr(at as u64));
            *byte = match (step & 3, inside) {
                (0, true) => Some(byte.map_or(kind, |old: MemoryKind| old.max(kind))),
                (1, true) => Some(kind),
                (2, true) | (3, false) => None,
                _ => *byte,
            };
        }
        check(&map);
    }
    for (at, &kind) in plain.iter().enumerate() {
        assert_eq!(map.kind_at(PhysAddr(at as u64)), kind);
    }
}

fn check<const N: usize>(map: &MemoryMap<N>) {
    let regions = map.regions();
    assert!(regions.iter().all(|region| !region.range.is_empty()));
    assert!(regions.windows(2).all(|pair| {
        let (a, b) = (pair[0], pair[1]);
        a.range.end() < b.range.base() || (a.range.end() == b.range.base() && a.kind != b.kind)
    }));
}

/// Reads everything of a capture.
pub fn read_capture(blob: &[u8], trusted: bool) {
    let Ok(capture) = Capture::parse(blob) else {
        return;
    };
    for table in capture.tables() {
        if table.kind == CapturedKind::Sdt && table.state.is_copied() {
            tables::read(table.bytes);
            if trusted {
                let sdt = Sdt::parse_any_sum(table.bytes).expect("a copied table");
                assert_eq!(sdt.signature(), table.signature);
                assert_eq!(sdt.bytes().len(), table.stated_length as usize);
                assert_eq!(table.state == State::Sound, checksum(table.bytes) == 0);
            }
        }
    }
    let _ = (
        capture.rsdp(),
        capture.madt(),
        capture.fadt(),
        capture.mcfg(),
    );
    let _ = (
        capture.srat(),
        capture.slit(),
        capture.hpet(),
        capture.hmat(),
    );
    let _ = (
        capture.dmar(),
        capture.ivrs(),
        capture.smbios_entries().count(),
    );
    let _ = capture.smbios_structures().map(Iterator::count);
    assert!(capture.bytes().len() <= blob.len());
}

/// A capture of any bytes. A right header and a directory come first, so that entries are reached.
pub fn capture_blob(bytes: &[u8]) {
    read_capture(bytes, false);
    let mut blob = b"BATONFW\0".to_vec();
    blob.extend_from_slice(&1_u32.to_le_bytes());
    blob.extend_from_slice(&(32 + bytes.len() as u32).to_le_bytes());
    let entries = bytes.first().copied().unwrap_or(0) % 8;
    blob.extend_from_slice(&u32::from(entries).to_le_bytes());
    blob.extend_from_slice(&[0; 12]);
    blob.extend_from_slice(bytes);
    read_capture(&blob, false);
}

/// Memory full of tables that point anywhere: the input says what is where, and which sums are
/// made right.
pub fn capture(bytes: &[u8]) {
    const BASE: u64 = 0xf_0000;
    let mut input = Input(bytes);
    let flags = input.byte();
    let pointers: Vec<u16> = (0..input.byte() % 12).map(|_| input.word()).collect();
    let mut memory = vec![0; 0x100];
    let mut places = Vec::new();
    while !input.is_empty() && memory.len() < 0x8000 {
        let length = usize::from(input.byte()) + 2;
        let content = input.take(length);
        places.push(memory.len() as u64);
        memory.extend(grammar::table(content));
        let gap = usize::from(content.first().copied().unwrap_or(0) % 5);
        memory.resize(memory.len() + gap, 0);
    }
    // Pointers to tables mostly, and to anything sometimes.
    let mut body = Vec::new();
    for &pointer in &pointers {
        let place = places.get(usize::from(pointer) % (places.len() + 1));
        let address = BASE + place.copied().unwrap_or(u64::from(pointer));
        body.extend_from_slice(&address.to_le_bytes());
    }
    let root = grammar::sdt(b"XSDT", 1, &body);
    let root_at = memory.len() as u64 + BASE;
    memory.extend(root);
    let mut rsdp = b"RSD PTR \0VENDOR\x02\0\0\0\0\x24\0\0\0".to_vec();
    rsdp.extend_from_slice(&root_at.to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    fix_sum(&mut rsdp[..20], 8);
    fix_sum(&mut rsdp, 32);
    memory[..36].copy_from_slice(&rsdp);
    // SMBIOS, whose structures are any of the bytes.
    let mut entry = b"_SM3_\0\x18\x03\0\0\x01\0".to_vec();
    entry.extend_from_slice(&0x200_u32.to_le_bytes());
    entry.extend_from_slice(&(BASE + 0x80).to_le_bytes());
    fix_sum(&mut entry, 5);
    memory[0x40..0x40 + entry.len()].copy_from_slice(&entry);
    let request = CaptureRequest {
        max_tables: usize::from(flags & 0xf),
        max_table_length: if flags & 0x10 != 0 { 256 } else { 1 << 20 },
        ..CaptureRequest::new(
            PhysAddr(BASE),
            match flags >> 6 {
                0 => SmbiosSource::None,
                1 => SmbiosSource::Scan,
                _ => SmbiosSource::At {
                    entry_32: Some(PhysAddr(BASE + 0x41)),
                    entry_64: Some(PhysAddr(BASE + 0x40)),
                },
            },
        )
    };
    let mut buffer = vec![0xee; if flags & 0x20 != 0 { 0x600 } else { 0x2_0000 }];
    let memory = Piece {
        base: BASE,
        bytes: &memory,
    };
    if let Ok(summary) = take(&memory, &request, &mut buffer) {
        let blob = &buffer[..summary.length];
        assert!(
            Capture::parse(blob).is_ok(),
            "a capture that cannot be read back"
        );
        read_capture(blob, true);
    }
}
