//! Capturing from memory with holes, and reading captures back.

use acpi_capture::table::Signature;
use acpi_capture::*;
use handoff_abi::PhysAddr;
use proptest::prelude::*;

use crate::build::{self, Memory};

const RSDP: u64 = 0xf_5a40;

/// A small machine: its tables lie at odd addresses, and one vendor table is damaged.
pub(crate) fn machine() -> Memory {
    let mut memory = Memory::default();
    let mut vendor = build::sdt(b"VEND", 1, &[1, 2, 3]);
    vendor[37] ^= 0xff;
    memory.put(RSDP, build::rsdp(0x7fe_0001, 0x1_0000_0003));
    memory.put(
        0x1_0000_0003,
        build::xsdt(&[
            0x7fe_1001,
            0x7fe_2003,
            0,
            0x7fe_3005,
            0x7fe_2003,
            0xdead_0000,
            0x7fe_9000,
        ]),
    );
    memory.put(0x7fe_0001, build::rsdt(&[0x7fe_1001]));
    memory.put(
        0x7fe_1001,
        build::fadt((0x7fe_4000, 0x7fe_5000), (0x7fe_6000, 0x7fe_6000)),
    );
    memory.put(
        0x7fe_2003,
        build::madt(0xfee0_0000, 1, &[build::local_apic(0, 0, 1)]),
    );
    memory.put(0x7fe_3005, vendor);
    memory.put(0x7fe_4000, build::facs());
    memory.put(0x7fe_5000, build::facs());
    memory.put(0x7fe_6000, build::sdt(b"DSDT", 2, &[0x10; 100]));
    // No table: the signature is not printable.
    memory.put(0x7fe_9000, vec![0; 64]);
    memory
}

fn request() -> CaptureRequest {
    CaptureRequest::new(PhysAddr(RSDP), SmbiosSource::None)
}

pub(crate) fn take(memory: &Memory, request: &CaptureRequest) -> Vec<u8> {
    let mut buffer = vec![0xee; 1 << 20];
    let summary = capture(memory, request, &mut buffer).unwrap();
    buffer.truncate(summary.length);
    buffer
}

fn listing(blob: &[u8]) -> Vec<(String, u64, State, usize)> {
    Capture::parse(blob)
        .unwrap()
        .tables()
        .map(|table| {
            (
                table.signature.to_string(),
                table.address.0,
                table.state,
                table.bytes.len(),
            )
        })
        .collect()
}

fn row(signature: &str, address: u64, state: State, length: usize) -> (String, u64, State, usize) {
    (signature.to_owned(), address, state, length)
}

#[test]
fn every_reachable_table_is_copied_and_what_is_skipped_says_why() {
    let memory = machine();
    let mut buffer = vec![0xee; 1 << 16];
    let summary = capture(&memory, &request(), &mut buffer).unwrap();
    assert_eq!(
        (summary.sound, summary.bad_checksum, summary.skipped),
        (7, 1, 3)
    );
    let blob = &buffer[..summary.length];
    assert_eq!(
        listing(blob),
        [
            row("RSDP", RSDP, State::Sound, 36),
            row("XSDT", 0x1_0000_0003, State::Sound, 36 + 7 * 8),
            row("FACP", 0x7fe_1001, State::Sound, 276),
            row("APIC", 0x7fe_2003, State::Sound, 52),
            row("VEND", 0x7fe_3005, State::BadChecksum, 39),
            row("\\x00\\x00\\x00\\x00", 0x7fe_2003, State::Duplicate, 0),
            row("\\x00\\x00\\x00\\x00", 0xdead_0000, State::Unreadable, 0),
            row("\\x00\\x00\\x00\\x00", 0x7fe_9000, State::NotATable, 0),
            row("DSDT", 0x7fe_6000, State::Sound, 136),
            row("FACS", 0x7fe_5000, State::Sound, 64),
            row("FACS", 0x7fe_4000, State::Sound, 64),
        ]
    );
    let capture = Capture::parse(blob).unwrap();
    assert_eq!(capture.rsdp_address(), PhysAddr(RSDP));
    assert_eq!(capture.rsdp().unwrap().xsdt, PhysAddr(0x1_0000_0003));
    for table in capture.tables().filter(|table| table.state.is_copied()) {
        assert_eq!(table.bytes, memory.0[&table.address.0]);
    }
    assert_eq!(capture.madt().unwrap().unwrap().processors().count(), 1);
    assert!(capture.find(Signature(*b"VEND")).is_none());
    assert_eq!(capture.all(Signature(*b"VEND")).count(), 1);
    assert!(capture.dmar().is_none());
}

#[test]
fn nothing_of_what_was_in_the_buffer_gets_into_the_capture() {
    let memory = machine();
    let mut images = [0x00, 0xff].map(|fill| vec![fill; 1 << 16]);
    let lengths = images
        .each_mut()
        .map(|buffer| capture(&memory, &request(), buffer).unwrap().length);
    assert_eq!(lengths[0], lengths[1]);
    assert_eq!(images[0][..lengths[0]], images[1][..lengths[1]]);
}

#[test]
fn a_damaged_or_missing_xsdt_is_replaced_by_the_rsdt() {
    for damage in [
        |memory: &mut Memory| memory.0.get_mut(&0x1_0000_0003).unwrap()[40] ^= 1,
        |memory: &mut Memory| drop(memory.0.remove(&0x1_0000_0003)),
        |memory: &mut Memory| memory.0.get_mut(&0x1_0000_0003).unwrap()[4] = 3,
        |memory: &mut Memory| memory.0.get_mut(&RSDP).unwrap()[33] ^= 1,
    ] {
        let mut memory = machine();
        damage(&mut memory);
        let blob = take(&memory, &request());
        let capture = Capture::parse(&blob).unwrap();
        assert!(capture.find(Signature::RSDT).is_some());
        assert!(capture.fadt().is_some() && capture.madt().is_none());
        memory.0.remove(&0x7fe_0001);
        let error = super::capture::capture(&memory, &request(), &mut [0; 4096]).unwrap_err();
        assert!(matches!(error, CaptureError::NoRoot { .. }), "{error}");
    }
}

#[test]
fn an_rsdp_of_acpi_1_at_the_end_of_memory_is_enough() {
    let mut memory = machine();
    memory.put(RSDP, build::rsdp_v1(0x7fe_0001));
    let blob = take(&memory, &request());
    let capture = Capture::parse(&blob).unwrap();
    assert_eq!(capture.rsdp().unwrap().revision, 0);
    assert!(capture.fadt().is_some());
}

#[test]
fn no_rsdp_is_an_error_that_says_where() {
    let memory = machine();
    let at = |address| CaptureRequest::new(PhysAddr(address), SmbiosSource::None);
    let address = PhysAddr(0x7000);
    assert_eq!(
        capture(&memory, &at(0x7000), &mut [0; 4096]).unwrap_err(),
        CaptureError::RsdpUnreadable { address }
    );
    assert!(matches!(
        capture(&memory, &at(0x7fe_1001), &mut [0; 4096]),
        Err(CaptureError::Rsdp { .. })
    ));
}

#[test]
fn limits_on_number_and_length_are_kept_and_reported() {
    let memory = machine();
    let few = CaptureRequest {
        max_tables: 2,
        ..request()
    };
    let blob = take(&memory, &few);
    let states: Vec<_> = listing(&blob).into_iter().map(|row| row.2).collect();
    assert_eq!(states.iter().filter(|&&s| s == State::TooMany).count(), 1);
    assert!(Capture::parse(&blob).unwrap().madt().is_some());
    let short = CaptureRequest {
        max_table_length: 135,
        ..request()
    };
    let rows = listing(&take(&memory, &short));
    assert!(rows.contains(&row("FACP", 0x7fe_1001, State::TooLong, 0)));
    assert!(rows.contains(&row("APIC", 0x7fe_2003, State::Sound, 52)));
}

#[test]
fn a_buffer_of_any_size_gives_a_capture_or_an_error() {
    let memory = machine();
    let whole = take(&memory, &request()).len();
    for size in 0..whole + 8 {
        let mut buffer = vec![0xee; size];
        match capture(&memory, &request(), &mut buffer) {
            Ok(summary) => {
                let capture = Capture::parse(&buffer[..summary.length]).unwrap();
                let no_room = capture
                    .tables()
                    .filter(|table| table.state == State::NoRoom)
                    .count();
                assert_eq!(
                    no_room == 0,
                    size >= whole,
                    "{size} of {whole}: {capture:?}"
                );
            }
            Err(CaptureError::Buffer { needed, have }) => assert!(needed > have && have == size),
            Err(CaptureError::NoRoot { .. }) => assert!(size < whole),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn both_smbios_entry_points_are_found_by_scanning_and_their_structures_end_where_they_end() {
    let structures = [
        build::smbios_structure(0, 0, &[0; 20], &["vendor", "1.0"]),
        build::smbios_structure(1, 1, &[1, 2, 3], &[]),
        build::smbios_structure(127, 2, &[], &[]),
    ]
    .concat();
    let mut memory = machine();
    // Rows of the area that hold nothing, among them an anchor with a bad sum.
    let mut area = vec![0; 0x1_0000];
    let mut fake = build::smbios_entry_64(0x1234, 5);
    fake[7] ^= 1;
    let wide = build::smbios_entry_64(0x7f0_0ff0, 0x1_0000);
    let narrow = build::smbios_entry_32(0x7f0_0ff0, structures.len() as u16, 3);
    let rsdp = memory.0.remove(&RSDP).unwrap();
    for (at, bytes) in [
        (0x100, &fake),
        (0x250, &narrow),
        (0x910, &wide),
        (0x5a40, &rsdp),
    ] {
        area[at..at + bytes.len()].copy_from_slice(bytes);
    }
    memory.put(0xf_0000, area);
    let mut table = structures.clone();
    // Memory is readable in whole pages.
    table.resize(0x1010, 0xcc);
    memory.put(0x7f0_0ff0, table);
    let scan = CaptureRequest::new(PhysAddr(RSDP), SmbiosSource::Scan);
    let blob = take(&memory, &scan);
    let capture = Capture::parse(&blob).unwrap();
    let entries: Vec<_> = capture.smbios_entries().collect();
    assert_eq!(
        entries.iter().map(|entry| entry.0.0).collect::<Vec<_>>(),
        [0xf_0910, 0xf_0250]
    );
    assert!(entries[0].1.unwrap().is_64_bit && !entries[1].1.unwrap().is_64_bit);
    let found: Vec<_> = capture
        .smbios_structures()
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        found.iter().map(|s| s.kind).collect::<Vec<_>>(),
        [0, 1, 127]
    );
    assert_eq!(found[0].string(1), Some(&b"vendor"[..]));
    assert_eq!(found[0].string(2), Some(&b"1.0"[..]));
    assert_eq!((found[0].string(0), found[0].string(3)), (None, None));
    assert_eq!(found[1].strings().count(), 0);
    let stored = capture
        .tables()
        .find(|table| table.kind == CapturedKind::SmbiosStructures)
        .unwrap();
    // Cut where they end, although the entry point stated more and memory has more.
    assert_eq!(stored.bytes, structures);
    assert_eq!(stored.state, State::Sound);
    // Given addresses are taken at their word.
    let given = SmbiosSource::At {
        entry_32: Some(PhysAddr(0xf_0250)),
        entry_64: Some(PhysAddr(0xf_0000)),
    };
    let blob = take(&memory, &CaptureRequest::new(PhysAddr(RSDP), given));
    let capture = Capture::parse(&blob).unwrap();
    let states: Vec<_> = capture
        .tables()
        .filter(|table| table.kind == CapturedKind::SmbiosEntry)
        .map(|table| table.state)
        .collect();
    assert_eq!(states, [State::NotATable, State::Sound]);
    assert_eq!(capture.smbios_structures().unwrap().count(), 3);
}

#[test]
fn smbios_structures_without_an_end_are_copied_as_far_as_memory_goes() {
    let mut memory = machine();
    let structures = build::smbios_structure(0, 0, &[0; 20], &["vendor"]);
    memory.put(0x9000, build::smbios_entry_64(0x7f0_0000, 0x10_0000));
    let mut table = structures.repeat(200);
    table.truncate(0x1800);
    memory.put(0x7f0_0000, table);
    let given = SmbiosSource::At {
        entry_32: None,
        entry_64: Some(PhysAddr(0x9000)),
    };
    let blob = take(&memory, &CaptureRequest::new(PhysAddr(RSDP), given));
    let stored = Capture::parse(&blob)
        .unwrap()
        .tables()
        .find(|table| table.kind == CapturedKind::SmbiosStructures)
        .unwrap();
    assert_eq!(
        (stored.state, stored.bytes.len()),
        (State::Shortened, 0x1000)
    );
    assert_eq!(stored.stated_length, 0x10_0000);
}

#[test]
fn damaged_captures_are_refused() {
    let blob = take(&machine(), &request());
    for length in 0..blob.len() {
        assert!(Capture::parse(&blob[..length]).is_err());
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut blob = blob.clone();
        blob[at..at + bytes.len()].copy_from_slice(bytes);
        Capture::parse(&blob).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(0, b"X"), BlobError::Magic);
    assert_eq!(with(8, &[2]), BlobError::Version { found: 2 });
    assert!(matches!(with(16, &[0xff; 4]), BlobError::Truncated { .. }));
    // The fourth entry: kind, state, offset past the end, offset into the directory, length.
    let entry = 32 + 3 * 32;
    for (at, bytes) in [
        (4, &[9][..]),
        (6, &[99]),
        (6, &[State::Unreadable as u8 + 2]),
        (20, &[0xff; 4]),
        (20, &[0; 4]),
        (24, &[0xff; 4]),
    ] {
        assert_eq!(
            with(entry + at, bytes),
            BlobError::Entry { index: 3 },
            "{at}"
        );
    }
}

proptest! {
    #[test]
    fn a_capture_of_any_bytes_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
    ) {
        let mut memory = machine();
        let addresses: Vec<_> = memory.0.keys().copied().collect();
        for (index, value) in &flips {
            let bytes = memory.0.get_mut(&addresses[index.index(addresses.len())]).unwrap();
            let at = index.index(bytes.len());
            bytes[at] = *value;
        }
        let mut buffer = vec![0; 1 << 16];
        if let Ok(summary) = capture(&memory, &request(), &mut buffer) {
            let captured = Capture::parse(&buffer[..summary.length]).unwrap();
            prop_assert!(captured.tables().count() >= 2);
        }
        // The blob itself, damaged.
        let mut blob = take(&machine(), &request());
        for (index, value) in flips {
            let at = index.index(blob.len());
            blob[at] = value;
        }
        if let Ok(capture) = Capture::parse(&blob) {
            for table in capture.tables() {
                crate::hostile::read_everything(table.bytes);
            }
        }
    }
}
