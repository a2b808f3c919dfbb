//! A handoff as a reader meets it: whole, damaged in each place, too old, too new, and random.

use handoff_abi::*;
use proptest::prelude::*;

const AT: PhysAddr = PhysAddr(0x0123_4000);

const SPEAKS: Speaks = Speaks {
    newest: AbiVersion::V0_2,
    oldest: AbiVersion::V0_1,
    features: Features::ADOPT_DEVICES.union(Features::VT_D),
};

const CLOCK: Clock = Clock {
    tsc_hertz: 1_000_000_000,
};

fn envelope(version: AbiVersion) -> Envelope {
    Envelope {
        version,
        self_address: AT,
        features: Features::VT_D,
        required: Features::ADOPT_DEVICES,
        epoch: 7,
        writer: PartitionId(1),
        reader: PartitionId(2),
        swaps: 3,
    }
}

fn extent(base: u64) -> Extent {
    Extent {
        purpose: purpose::LEDGER,
        reserved: 0,
        base: PhysAddr(base),
        length: 0x8000,
    }
}

fn write(version: AbiVersion, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = [0xaa_u8; 4096];
    let mut writer = Writer::new(&mut buffer, envelope(version)).unwrap();
    fill(&mut writer);
    writer.finish().to_vec()
}

fn full(version: AbiVersion) -> Vec<u8> {
    write(version, |writer| {
        writer.critical(&extent(0x10_0000)).unwrap();
        writer.critical(&CLOCK).unwrap();
        writer.critical(&extent(0x20_0000)).unwrap();
        writer
            .optional(&History {
                frozen_at: 1,
                committed_at: 2,
                previous: PartitionId(1),
                reserved: [0; 3],
                swap: 3,
            })
            .unwrap();
    })
}

/// The checksum as RFC 1952 has it, bit by bit; the crate uses a table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn patched(mut blob: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    blob[offset..offset + bytes.len()].copy_from_slice(bytes);
    blob[52..56].fill(0);
    let sum = crc32(&blob);
    blob[52..56].copy_from_slice(&sum.to_le_bytes());
    blob
}

fn refusal(blob: &[u8]) -> HandoffError {
    Handoff::parse(blob, AT, &SPEAKS).unwrap_err()
}

#[test]
fn what_is_written_is_read() {
    let blob = full(AbiVersion::V0_2);
    let handoff = Handoff::parse(&blob, AT, &SPEAKS).unwrap();
    let header = handoff.header();
    assert_eq!((header.epoch, header.swaps), (7, 3));
    assert_eq!(
        (header.writer, header.reader),
        (PartitionId(1), PartitionId(2))
    );
    let extents: Vec<_> = handoff.records::<Extent>().collect();
    assert_eq!(extents, [extent(0x10_0000), extent(0x20_0000)]);
    assert_eq!(handoff.first::<Clock>(), Some(CLOCK));
    assert_eq!(handoff.first::<History>().unwrap().swap, 3);
    assert_eq!(handoff.first::<Console>(), None);
    assert_eq!(stated_length(&blob), Ok(blob.len() as u64));
}

#[test]
fn version_0_1_has_neither_the_swap_count_nor_the_history() {
    let blob = full(AbiVersion::V0_1);
    let handoff = Handoff::parse(&blob, AT, &SPEAKS).unwrap();
    assert_eq!(handoff.header().header_length, 72);
    assert_eq!(handoff.header().swaps, 0);
    assert_eq!(handoff.first::<History>(), None);
    assert_eq!(handoff.records::<Extent>().count(), 2);
}

#[test]
fn a_record_of_a_later_version_is_left_out_only_where_a_reader_may_skip_it() {
    let later = [kind::HISTORY, kind::AMD_VI_UNIT];
    for (version, flags, expected) in [
        (AbiVersion::V0_1, 0, &later[..0]),
        (AbiVersion::V0_1, RecordHeader::CRITICAL, &later[..]),
        (AbiVersion::V0_2, 0, &later[..]),
        (AbiVersion::V0_2, RecordHeader::CRITICAL, &later[..]),
    ] {
        let blob = write(version, |writer| {
            for of in later {
                writer.append(of, flags, &[0; 1136]).unwrap();
            }
        });
        let handoff = Handoff::parse(&blob, AT, &SPEAKS).unwrap();
        let kinds: Vec<_> = handoff.raw_records().map(|raw| raw.header.kind).collect();
        assert_eq!(kinds, expected, "{version}, flags {flags}");
    }
}

#[test]
fn an_older_reader_refuses_a_newer_version_by_name() {
    let older = Speaks {
        newest: AbiVersion::V0_1,
        ..SPEAKS
    };
    let error = Handoff::parse(&full(AbiVersion::V0_2), AT, &older).unwrap_err();
    assert_eq!(
        error.to_string(),
        "handoff version 0.2, this kernel reads 0.1 to 0.1"
    );
}

#[test]
fn each_header_field_that_is_wrong_is_named() {
    let blob = || full(AbiVersion::V0_2);
    let length = blob().len() as u64;
    let count = 4_u32;
    assert!(matches!(
        refusal(&patched(blob(), 0, b"BATON\0\x1a\r")),
        HandoffError::Magic { .. }
    ));
    for (major, minor) in [(0_u16, 0_u16), (0, 3), (1, 1), (u16::MAX, u16::MAX)] {
        let version = [major.to_le_bytes(), minor.to_le_bytes()].concat();
        assert_eq!(
            refusal(&patched(blob(), 8, &version)),
            HandoffError::Version {
                found: AbiVersion { major, minor },
                oldest: SPEAKS.oldest,
                newest: SPEAKS.newest
            }
        );
    }
    for found in [0_u32, 72, 79, 81, 84, u32::MAX, 4096] {
        assert_eq!(
            refusal(&patched(blob(), 12, &found.to_le_bytes())),
            HandoffError::HeaderLength { found }
        );
    }
    for found in [0_u64, 71, length + 4, MAX_LENGTH + 8, u64::MAX] {
        assert_eq!(
            refusal(&patched(blob(), 16, &found.to_le_bytes())),
            HandoffError::Length { found }
        );
    }
    assert_eq!(
        refusal(&patched(blob(), 16, &(length + 8).to_le_bytes())),
        HandoffError::Truncated {
            have: length,
            need: length + 8
        }
    );
    let elsewhere = PhysAddr(AT.0 + 0x1000);
    assert_eq!(
        refusal(&patched(blob(), 24, &elsewhere.0.to_le_bytes())),
        HandoffError::Address {
            written_for: elsewhere,
            found_at: AT
        }
    );
    let wanted = Features::from_bits_retain(1 << 40 | 1);
    assert_eq!(
        refusal(&patched(blob(), 40, &wanted.bits().to_le_bytes())),
        HandoffError::Features {
            missing: Features::from_bits_retain(1 << 40)
        }
    );
    for stated in [0, count - 1, count + 1, u32::MAX] {
        assert_eq!(
            refusal(&patched(blob(), 48, &stated.to_le_bytes())),
            HandoffError::RecordCount {
                stated,
                found: count
            }
        );
    }
    assert_eq!(
        refusal(&patched(blob(), 68, &[0, 0, 0, 1])),
        HandoffError::Reserved
    );
    let mut summed = blob();
    summed[52] ^= 1;
    assert!(matches!(refusal(&summed), HandoffError::Checksum { .. }));
}

#[test]
fn every_single_bit_that_flips_is_noticed() {
    let blob = full(AbiVersion::V0_2);
    for bit in 0..blob.len() * 8 {
        let mut damaged = blob.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Handoff::parse(&damaged, AT, &SPEAKS).is_err(), "bit {bit}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let blob = full(AbiVersion::V0_2);
    for length in 0..blob.len() {
        assert!(
            Handoff::parse(&blob[..length], AT, &SPEAKS).is_err(),
            "{length} bytes"
        );
    }
}

#[test]
fn bytes_after_the_end_do_not_matter() {
    let mut blob = full(AbiVersion::V0_2);
    blob.extend([0x55; 100]);
    assert!(Handoff::parse(&blob, AT, &SPEAKS).is_ok());
}

#[test]
fn an_unknown_record_is_skipped_unless_it_is_critical() {
    let with = |flags| {
        write(AbiVersion::V0_2, |writer| {
            writer.append(0x7777, flags, b"something new").unwrap();
            writer.critical(&CLOCK).unwrap();
        })
    };
    let optional = with(0);
    let handoff = Handoff::parse(&optional, AT, &SPEAKS).unwrap();
    assert_eq!(handoff.first::<Clock>(), Some(CLOCK));
    let raw = handoff.raw_records().next().unwrap();
    assert_eq!((raw.offset, raw.header.kind), (80, 0x7777));
    assert_eq!(raw.payload, b"something new\0\0\0");
    assert_eq!(
        refusal(&with(RecordHeader::CRITICAL)),
        HandoffError::CriticalRecord {
            offset: 80,
            kind: 0x7777
        }
    );
}

#[test]
fn a_longer_record_of_a_newer_writer_is_read_as_far_as_it_is_known() {
    let blob = write(AbiVersion::V0_2, |writer| {
        let mut payload = CLOCK.tsc_hertz.to_le_bytes().to_vec();
        payload.extend([0xff; 16]);
        writer
            .append(kind::CLOCK, RecordHeader::CRITICAL, &payload)
            .unwrap();
    });
    let handoff = Handoff::parse(&blob, AT, &SPEAKS).unwrap();
    assert_eq!(handoff.first::<Clock>(), Some(CLOCK));
}

#[test]
fn a_record_of_any_known_kind_is_refused_one_byte_short() {
    use core::mem::size_of;
    for (of, size) in [
        (kind::EXTENT, size_of::<Extent>()),
        (kind::CPU, size_of::<Cpu>()),
        (kind::MEMORY, size_of::<Memory>()),
        (kind::FUNCTION, size_of::<Function>()),
        (kind::INTERRUPT_HANDLE, size_of::<InterruptHandle>()),
        (kind::FIRMWARE, size_of::<Firmware>()),
        (kind::VTD_UNIT, size_of::<VtdUnit>()),
        (kind::WORKLOAD, size_of::<Workload>()),
        (kind::CONSOLE, size_of::<Console>()),
        (kind::CLOCK, size_of::<Clock>()),
        (kind::ECAM, size_of::<Ecam>()),
        (kind::HISTORY, size_of::<History>()),
        (kind::DOMAIN, size_of::<Domain>()),
        (kind::PLATFORM, size_of::<Platform>()),
        (kind::AMD_VI_UNIT, size_of::<AmdViState>()),
    ] {
        let with = |length: usize| {
            write(AbiVersion::V0_2, |writer| {
                writer.append(of, 0, &vec![0; length]).unwrap();
            })
        };
        // Records are of whole words.
        let blob = with(size - 8);
        let refused = refusal(&blob);
        assert!(
            matches!(refused, HandoffError::RecordTooShort { kind, .. } if kind == of),
            "{of}: {refused}"
        );
        assert!(Handoff::parse(&with(size), AT, &SPEAKS).is_ok(), "{of}");
    }
}

#[test]
fn a_record_that_is_too_short_is_refused() {
    let blob = write(AbiVersion::V0_2, |writer| {
        writer.append(kind::EXTENT, 0, &[0; 16]).unwrap();
    });
    assert_eq!(
        refusal(&blob),
        HandoffError::RecordTooShort {
            offset: 80,
            kind: kind::EXTENT,
            found: 32
        }
    );
}

#[test]
fn a_record_whose_length_lies_is_refused() {
    for found in [0_u32, 8, 15, 17, 20, 4096, u32::MAX, 0xffff_fff8] {
        assert_eq!(
            refusal(&patched(
                full(AbiVersion::V0_2),
                80 + 8,
                &found.to_le_bytes()
            )),
            HandoffError::RecordLength { offset: 80, found }
        );
    }
}

#[test]
fn a_buffer_that_is_too_small_is_an_error_and_not_a_short_handoff() {
    let mut buffer = [0; 90];
    assert_eq!(
        Writer::new(&mut buffer[..79], envelope(AbiVersion::V0_2)).unwrap_err(),
        WriteError::NoRoom { need: 80, have: 79 }
    );
    let mut writer = Writer::new(&mut buffer, envelope(AbiVersion::V0_2)).unwrap();
    assert_eq!(
        writer.critical(&CLOCK),
        Err(WriteError::NoRoom {
            need: 104,
            have: 90
        })
    );
    assert!(Handoff::parse(writer.finish(), AT, &SPEAKS).is_ok());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Handoff::parse(&bytes, AT, &SPEAKS);
        let _ = stated_length(&bytes);
    }

    #[test]
    fn random_changes_under_a_right_checksum_never_panic(
        offset in 8_usize..200,
        bytes in proptest::collection::vec(any::<u8>(), 1..16),
    ) {
        let blob = full(AbiVersion::V0_2);
        prop_assume!(offset + bytes.len() <= blob.len());
        if let Ok(handoff) = Handoff::parse(&patched(blob, offset, &bytes), AT, &SPEAKS) {
            prop_assert_eq!(handoff.raw_records().count() as u32, handoff.header().record_count);
            let _ = handoff.records::<Extent>().count();
        }
    }
}

#[test]
fn every_error_says_what_is_wrong_and_where() {
    let missing = Features::AMD_VI;
    for (error, text) in [
        (
            HandoffError::Truncated { have: 7, need: 64 },
            "handoff has 7 bytes and needs 64",
        ),
        (
            HandoffError::Magic { found: 0x2a },
            "handoff begins with 0x000000000000002a, which is not its magic",
        ),
        (
            HandoffError::HeaderLength { found: 9 },
            "handoff header states a length of 9 bytes",
        ),
        (
            HandoffError::Length { found: 9 },
            "handoff states a length of 9 bytes",
        ),
        (
            HandoffError::Address {
                written_for: PhysAddr(0x1000),
                found_at: PhysAddr(0x2000),
            },
            "handoff was written for 0x1000 and found at 0x2000",
        ),
        (
            HandoffError::Checksum {
                stated: 1,
                computed: 2,
            },
            "handoff checksum is 0x00000002, stated 0x00000001",
        ),
        (
            HandoffError::Features { missing },
            "handoff requires what this kernel has not: AMD_VI",
        ),
        (
            HandoffError::Reserved,
            "handoff header has a reserved field that is not zero",
        ),
        (
            HandoffError::RecordLength {
                offset: 0x80,
                found: 3,
            },
            "record at offset 0x80 states a length of 3 bytes",
        ),
        (
            HandoffError::CriticalRecord {
                offset: 0x80,
                kind: 0x99,
            },
            "critical record at offset 0x80 is of unknown kind 0x99",
        ),
        (
            HandoffError::RecordTooShort {
                offset: 0x80,
                kind: 1,
                found: 24,
            },
            "record of kind 0x1 at offset 0x80 has only 24 bytes",
        ),
        (
            HandoffError::RecordCount {
                stated: 3,
                found: 2,
            },
            "handoff states 3 records and has 2",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
