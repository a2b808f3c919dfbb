//! Golden blobs: written once, read for ever.
//!
//! `tests/golden/NAME.bin` is a handoff and `NAME.txt` what it means; `VERSION-layout.txt` has
//! the size of every structure of that version, and offset and size of every field. None of these files is ever written again.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use handoff_abi::*;
use proptest::prelude::*;

use crate::blobs::{AT, BLOBS, SPEAKS};
use crate::describe::{layout, meaning, structures};

/// The layouts that are kept, the newest last.
pub(crate) const LAYOUTS: [&str; 2] = ["0.1-layout.txt", "0.2-layout.txt"];

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

pub(crate) fn kept(name: &str) -> Vec<u8> {
    let path = path(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn kept_text(name: &str) -> String {
    String::from_utf8(kept(name)).unwrap()
}

#[test]
fn every_golden_blob_still_means_what_it_meant() {
    for blob in BLOBS {
        let bytes = kept(&format!("{}.bin", blob.name));
        let read = Handoff::parse(&bytes, AT, &SPEAKS);
        let meant = kept_text(&format!("{}.txt", blob.name));
        assert_eq!(meaning(&read), meant, "{}", blob.name);
        let refused = read.is_err();
        assert_eq!(refused, blob.name.ends_with("critical"), "{}", blob.name);
    }
}

#[test]
fn today_s_writer_still_makes_the_same_bytes() {
    for blob in BLOBS {
        let bytes = kept(&format!("{}.bin", blob.name));
        assert!(blob.write() == bytes, "{} is written otherwise", blob.name);
    }
}

#[test]
fn no_golden_file_is_forgotten() {
    let mut expected: Vec<_> = BLOBS
        .iter()
        .flat_map(|blob| [format!("{}.bin", blob.name), format!("{}.txt", blob.name)])
        .chain(LAYOUTS.map(String::from))
        .collect();
    expected.sort();
    let mut found: Vec<_> = fs::read_dir(path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_reader_of_other_versions_refuses_a_golden_blob_by_its_version() {
    for blob in BLOBS {
        let other = if blob.version == AbiVersion::V0_1 {
            AbiVersion::V0_2
        } else {
            AbiVersion::V0_1
        };
        let speaks = Speaks {
            newest: other,
            oldest: other,
            ..SPEAKS
        };
        let bytes = kept(&format!("{}.bin", blob.name));
        assert_eq!(
            Handoff::parse(&bytes, AT, &speaks).unwrap_err(),
            HandoffError::Version {
                found: blob.version,
                oldest: other,
                newest: other
            }
        );
    }
}

#[test]
fn the_full_blobs_have_every_kind_of_their_version() {
    let kinds = |name: &str| {
        let bytes = kept(name);
        let handoff = Handoff::parse(&bytes, AT, &SPEAKS).unwrap();
        let mut kinds: Vec<_> = handoff.raw_records().map(|raw| raw.header.kind).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    };
    let second: Vec<_> = (kind::EXTENT..=kind::PLATFORM)
        .chain([kind::AMD_VI_UNIT])
        .collect();
    let first: Vec<_> = (kind::EXTENT..=kind::PLATFORM)
        .filter(|&kind| kind != kind::HISTORY)
        .collect();
    assert_eq!(kinds("0.1-full.bin"), first);
    assert_eq!(kinds("0.2-full.bin"), second);
}

/// The only bytes a reader does not hold to the checksum are those behind `length`, which are not
/// part of the handoff.
#[test]
fn a_change_of_any_byte_is_noticed() {
    for blob in BLOBS {
        let mut bytes = kept(&format!("{}.bin", blob.name));
        let whole = Handoff::parse(&bytes, AT, &SPEAKS).map(|_| ());
        let length = bytes.len();
        let every_value: Vec<u8> = (1..=255).collect();
        let changes = if length < 200 {
            &every_value[..]
        } else {
            &[0x01, 0x10, 0x80, 0xff]
        };
        for offset in 0..length {
            for change in changes {
                bytes[offset] ^= change;
                let error =
                    Handoff::parse(&bytes, AT, &SPEAKS).expect_err("a changed byte went unnoticed");
                // What decides how the rest is read is checked before the checksum; nothing else.
                let before_checksum = match error {
                    HandoffError::Magic { .. } => offset < 8,
                    HandoffError::Version { .. } => (8..12).contains(&offset),
                    HandoffError::HeaderLength { .. } => (8..24).contains(&offset),
                    HandoffError::Length { .. } | HandoffError::Truncated { .. } => {
                        (16..24).contains(&offset)
                    }
                    HandoffError::Checksum { .. } => true,
                    _ => false,
                };
                assert!(before_checksum, "{} byte {offset}: {error}", blob.name);
                bytes[offset] ^= change;
            }
        }
        bytes.extend([0x5a; 64]);
        assert_eq!(Handoff::parse(&bytes, AT, &SPEAKS).map(|_| ()), whole);
    }
}

#[test]
fn the_layout_is_the_one_that_was_published() {
    assert_eq!(layout(), kept_text(LAYOUTS[LAYOUTS.len() - 1]));
}

/// What a minor version may do to a structure: append to it.
#[test]
fn every_field_of_an_older_version_is_where_it_was() {
    let newest = layout();
    let newest: HashMap<_, _> = newest
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    for older in LAYOUTS.map(kept_text) {
        for line in older.lines() {
            let (name, was) = line.split_once(' ').unwrap();
            let is = newest[name];
            if name.contains('.') {
                assert_eq!(is, was, "{name} has moved");
            } else {
                let size = |text: &str| text.parse::<usize>().unwrap();
                assert!(size(is) >= size(was), "{name} has shrunk");
            }
        }
    }
}

proptest! {
    /// The first 24 bytes are those of every version there will ever be.
    #[test]
    fn a_version_to_come_is_refused_by_its_name_whatever_else_it_holds(
        major: u16,
        minor: u16,
        header_length: u32,
        rest in proptest::collection::vec(any::<u8>(), 48..400),
    ) {
        prop_assume!(major != 0 || !(1..=2).contains(&minor));
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(major.to_le_bytes());
        bytes.extend(minor.to_le_bytes());
        bytes.extend(header_length.to_le_bytes());
        let length = (24 + rest.len()) / 8 * 8;
        bytes.extend((length as u64).to_le_bytes());
        bytes.extend(rest);
        prop_assert_eq!(
            Handoff::parse(&bytes, AT, &SPEAKS).unwrap_err(),
            HandoffError::Version {
                found: AbiVersion { major, minor },
                oldest: SPEAKS.oldest,
                newest: SPEAKS.newest,
            }
        );
    }
}

#[test]
fn no_structure_has_padding_and_every_field_is_aligned() {
    for structure in structures() {
        let mut end = 0;
        for field in &structure.fields {
            assert_eq!(field.offset, end, "{}.{}", structure.name, field.name);
            if matches!(field.size, 2 | 4 | 8) && field.name != "function" {
                assert!(field.offset.is_multiple_of(field.size), "{}", field.name);
            }
            end += field.size;
        }
        assert_eq!(structure.size, end, "{}", structure.name);
    }
}

/// Run once when a version is added, with `--ignored`. It writes what is not there yet and leaves
/// what is there alone.
#[test]
#[ignore = "writes the golden files of a new version"]
fn write_the_golden_files_that_are_missing() {
    let create = |name: &str, bytes: &[u8]| {
        if !path(name).exists() {
            fs::write(path(name), bytes).unwrap();
        }
    };
    for blob in BLOBS {
        let bytes = blob.write();
        let text = meaning(&Handoff::parse(&bytes, AT, &SPEAKS));
        create(&format!("{}.bin", blob.name), &bytes);
        create(&format!("{}.txt", blob.name), text.as_bytes());
    }
    create(LAYOUTS[LAYOUTS.len() - 1], layout().as_bytes());
}
