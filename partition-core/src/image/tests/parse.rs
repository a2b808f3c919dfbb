//! What is read from a file, and every reason to refuse one.

use std::string::ToString;

use handoff_abi::{AbiVersion, Features};

use super::*;

fn error(change: impl FnOnce(&mut Elf)) -> ImageError {
    let mut elf = kernel();
    change(&mut elf);
    let error = Image::parse(&elf.write()).unwrap_err();
    assert!(!error.to_string().is_empty());
    error
}

#[test]
fn a_good_file_is_read() {
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    assert_eq!(
        *image.note(),
        BatonNote {
            version: AbiVersion { major: 0, minor: 2 },
            features: Features::from_bits_retain(5),
            entry: ENTRY,
        }
    );
    let segments: Vec<_> = image.segments().copied().collect();
    let access = |write, execute| Access { write, execute };
    assert_eq!(segments.len(), 3);
    assert_eq!(segments[0].address, TEXT);
    assert_eq!(segments[0].access, access(false, true));
    assert_eq!(image.segment_bytes(&segments[0]), text());
    assert_eq!(segments[1].access, access(false, false));
    assert_eq!(image.segment_bytes(&segments[1]), [0x52; 0x100]);
    assert_eq!(segments[2].memory_size, 0x5010);
    assert_eq!(segments[2].access, access(true, false));
    assert_eq!(image.segment_bytes(&segments[2]), [0xda; 0x20]);
    assert_eq!(
        image.footprint(),
        Footprint {
            base: TEXT,
            length: 0xa000,
            alignment: 0x1000
        }
    );
    assert!(!image.is_position_independent() && !image.has_writable_code());
}

#[test]
fn writable_code_is_reported_and_a_great_alignment_too() {
    let mut elf = kernel();
    elf.parts[0].flags |= WRITE;
    elf.parts[0].align = 0x20_0000;
    // The writer puts bytes at offsets that fit pages only: move them to 2 MiB.
    let mut file = elf.write();
    let bytes = elf.parts[0].bytes.clone();
    file.resize(0x20_0000, 0);
    file.extend(bytes);
    file[64 + 8..64 + 16].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    let image = Image::parse(&file).unwrap();
    assert!(image.has_writable_code());
    assert_eq!(image.footprint().alignment, 0x20_0000);
}

#[test]
fn what_is_no_elf_file_is_refused() {
    assert_eq!(
        Image::parse(b"").unwrap_err(),
        ImageError::Truncated { have: 0 }
    );
    assert_eq!(Image::parse(&[0; 64]).unwrap_err(), ImageError::NotElf);
    assert_eq!(
        Image::parse(b"#!/bin/sh\nexec true\n").unwrap_err(),
        ImageError::NotElf
    );
}

#[test]
fn a_file_for_another_machine_is_refused() {
    assert_eq!(error(|elf| elf.class = 1), ImageError::Class(1));
    assert_eq!(error(|elf| elf.class = 3), ImageError::Class(3));
    assert_eq!(error(|elf| elf.data = 2), ImageError::ByteOrder(2));
    assert_eq!(error(|elf| elf.machine = 183), ImageError::Machine(183));
}

#[test]
fn a_file_that_is_no_executable_is_refused() {
    assert_eq!(error(|elf| elf.kind = 1), ImageError::Type(1));
    assert_eq!(error(|elf| elf.kind = 4), ImageError::Type(4));
    assert_eq!(error(|elf| elf.version = 2), ImageError::Header);
    assert_eq!(error(|elf| elf.header_entry_size = 32), ImageError::Header);
}

#[test]
fn a_file_that_needs_more_than_loading_is_refused() {
    let part = |kind, bytes: Vec<u8>| Part {
        kind,
        align: 8,
        ..note(bytes)
    };
    let dynamic = |tag: u64| {
        let words = [5, 0x1000, tag, 0x2000, 0, 0];
        part(
            DYNAMIC,
            words.into_iter().flat_map(u64::to_le_bytes).collect(),
        )
    };
    assert_eq!(
        error(|elf| elf.parts.push(part(INTERP, b"/lib/ld.so\0".to_vec()))),
        ImageError::Interpreter
    );
    assert_eq!(
        error(|elf| elf.parts.push(dynamic(1))),
        ImageError::Interpreter
    );
    for tag in [7, 17, 23, 35, 36] {
        let found = error(|elf| elf.parts.push(dynamic(tag)));
        assert_eq!(found, ImageError::Relocations);
    }
    // Neither a harmless tag nor one after the end is in the way.
    let mut elf = kernel();
    elf.parts.push(dynamic(4));
    let words = [0_u64, 0, 7, 0x2000];
    let bytes = words.into_iter().flat_map(u64::to_le_bytes).collect();
    elf.parts.push(part(DYNAMIC, bytes));
    Image::parse(&elf.write()).unwrap();
}

#[test]
fn a_file_with_nothing_to_load_is_refused() {
    let found = error(|elf| elf.parts.retain(|part| part.kind != LOAD));
    assert_eq!(found, ImageError::NoSegments);
    let found = error(|elf| {
        for part in &mut elf.parts {
            part.bytes.clear();
            part.memory_size = 0;
        }
    });
    assert_eq!(found, ImageError::NoSegments);
}

#[test]
fn too_many_segments_are_refused() {
    let with = |count: u64| {
        let mut elf = kernel();
        for index in 3..count {
            let address = TEXT + 0x10_0000 + index * 0x1000;
            elf.parts.push(load(address, 0, vec![1], 1));
        }
        Image::parse(&elf.write()).map(|image| image.segments().count())
    };
    assert_eq!(with(16), Ok(16));
    assert_eq!(with(17), Err(ImageError::TooManySegments));
    let notes = |count| {
        let mut elf = kernel();
        let other = raw_note(b"GNU\0", 5, &[0; 16]);
        elf.parts.extend(core::iter::repeat_n(note(other), count));
        Image::parse(&elf.write()).map(drop)
    };
    assert_eq!(notes(15), Ok(()));
    assert_eq!(notes(16), Err(ImageError::TooManySegments));
}

#[test]
fn a_segment_must_be_in_the_file_and_fit_its_memory() {
    assert_eq!(
        error(|elf| elf.parts[2].memory_size = 0x1f),
        ImageError::SegmentSize { segment: 2 }
    );
    let with_size = |size: u64| {
        let mut file = kernel().write();
        file[64 + 32..64 + 40].copy_from_slice(&size.to_le_bytes());
        file[64 + 40..64 + 48].copy_from_slice(&size.to_le_bytes());
        Image::parse(&file).unwrap_err()
    };
    let outside = ImageError::SegmentOutsideFile { segment: 0 };
    assert_eq!(with_size(0x1_0000), outside);
    assert_eq!(with_size(u64::MAX), outside);
    let mut file = kernel().write();
    file[64 + 56 * 3 + 8..64 + 56 * 3 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(
        Image::parse(&file).unwrap_err(),
        ImageError::SegmentOutsideFile { segment: 3 }
    );
}

#[test]
fn a_segments_addresses_must_be_possible() {
    let at = |address: u64, size: u64| {
        error(|elf| {
            elf.parts[2].address = address;
            elf.parts[2].memory_size = size;
        })
    };
    let impossible = ImageError::SegmentAddress { segment: 2 };
    assert_eq!(at(0x8000_0000_0000, 0x1000), impossible);
    assert_eq!(at(0xffff_7fff_ffff_f000, 0x2000), impossible);
    assert_eq!(at(0x7fff_ffff_f000, 0x1001), impossible);
    // From one half of the address space into the other.
    assert_eq!(at(0x1000, 0xffff_8000_0000_0000), impossible);
    // Past the end of it, and into its last page.
    assert_eq!(at(TEXT, u64::MAX), impossible);
    assert_eq!(at(0xffff_ffff_ffff_e000, 0x1001), impossible);
    // The last byte of the lower half is possible, but it is not next to the rest: what is wrong
    // then is only that there would be too much room in between.
    let mut elf = kernel();
    elf.parts[2].address = 0x7fff_ffff_f000;
    elf.parts[2].memory_size = 0x1000;
    Image::parse(&elf.write()).unwrap();
}

#[test]
fn a_segments_alignment_must_be_possible() {
    let with = |align: u64| {
        let mut file = kernel().write();
        file[64 + 48..64 + 56].copy_from_slice(&align.to_le_bytes());
        Image::parse(&file).map(|image| image.footprint().alignment)
    };
    assert_eq!(with(0), Ok(0x1000));
    assert_eq!(with(1), Ok(0x1000));
    assert_eq!(with(0x800), Ok(0x1000));
    let impossible = Err(ImageError::SegmentAlignment { segment: 0 });
    assert_eq!(with(3), impossible);
    assert_eq!(with(1 << 31), impossible);
    // Address and offset differ by something else.
    assert_eq!(with(0x20_0000), impossible);
}

#[test]
fn segments_must_not_share_a_page() {
    let overlap = ImageError::SegmentsOverlap {
        segment: 1,
        other: 0,
    };
    assert_eq!(error(|elf| elf.parts[1].address = TEXT + 0x1340), overlap);
    // Not even where no byte is shared.
    assert_eq!(error(|elf| elf.parts[1].address = TEXT + 0x1a40), overlap);
}

#[test]
fn a_file_without_a_baton_note_is_refused() {
    let other = |name: &[u8], kind| {
        let bytes = raw_note(name, kind, &descriptor(0, 2, 5, ENTRY));
        error(|elf| elf.parts[3] = note(bytes))
    };
    assert_eq!(error(|elf| drop(elf.parts.pop())), ImageError::NoteMissing);
    assert_eq!(other(b"Baton\0", 2), ImageError::NoteMissing);
    assert_eq!(other(b"Baton", 1), ImageError::NoteMissing);
    assert_eq!(other(b"Xen\0", 1), ImageError::NoteMissing);
}

#[test]
fn the_baton_note_is_found_among_others() {
    let mut bytes = raw_note(b"GNU\0", 3, &[1; 20]);
    bytes.extend(raw_note(b"Xen\0", 18, &[0; 8]));
    bytes.extend(raw_note(b"odd\0\0", 7, &[1; 3]));
    let mut longer = descriptor(0, 3, 1 << 60, ENTRY);
    longer.extend([9; 8]);
    bytes.extend(raw_note(b"Baton\0", 1, &longer));
    let mut elf = kernel();
    elf.parts[3] = note(bytes);
    elf.parts.insert(0, note(raw_note(b"GNU\0", 5, &[0; 16])));
    let file = elf.write();
    let image = Image::parse(&file).unwrap();
    assert_eq!(image.note().version, AbiVersion { major: 0, minor: 3 });
    assert_eq!(image.note().features.bits(), 1 << 60);
    assert_eq!(image.note().entry, ENTRY);
}

#[test]
fn two_baton_notes_or_a_short_one_are_refused() {
    assert_eq!(
        error(|elf| elf.parts.push(elf.parts[3].clone())),
        ImageError::NoteTwice
    );
    let short = &descriptor(0, 2, 5, ENTRY)[..23];
    let bytes = raw_note(b"Baton\0", 1, short);
    assert_eq!(
        error(|elf| elf.parts[3] = note(bytes)),
        ImageError::NoteLength(23)
    );
}

#[test]
fn the_entry_must_be_in_code_that_the_file_has() {
    for entry in [
        0,
        TEXT - 1,
        TEXT + 0x1900,
        TEXT + 0x2340,
        TEXT + 0x4000,
        u64::MAX,
    ] {
        let bytes = raw_note(b"Baton\0", 1, &descriptor(0, 2, 5, entry));
        let found = error(|elf| elf.parts[3] = note(bytes));
        assert_eq!(found, ImageError::Entry(entry));
    }
}

#[test]
fn a_program_of_the_host_is_refused_for_its_interpreter_or_relocations() {
    // A file that other tools have written: the test program itself.
    let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let error = Image::parse(&file).unwrap_err();
    assert!(
        matches!(error, ImageError::Interpreter | ImageError::Relocations),
        "{error}"
    );
}
