//! What is a kernel and what is none.

use std::string::{String, ToString};

use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn parse(change: impl FnOnce(&mut File)) -> Result<(), BzImageError> {
    let mut file = kernel();
    change(&mut file);
    BzImage::parse(&file.write()).map(|_| ())
}

#[test]
fn a_kernel_is_read_as_it_was_written() {
    let mut file = kernel();
    file.after = vec![1, 2, 3];
    let bytes = file.write();
    let image = BzImage::parse(&bytes).unwrap();
    assert_eq!(image.version(), 0x020f);
    assert!(image.is_relocatable());
    assert!(image.can_be_above_4g());
    assert!(image.takes_5_level_paging());
    assert_eq!(image.alignment(), ALIGNMENT);
    assert_eq!(image.preferred_address(), PREFERRED);
    assert_eq!(image.init_size(), INIT_SIZE);
    assert_eq!(image.initrd_limit(), 0x8000_0000);
    assert_eq!(image.command_line_limit(), 2047);
    assert_eq!(image.header(), &bytes[0x1f1..0x26c]);
    let kernel = file.setup_length()..file.setup_length() + 0x1000;
    assert_eq!(image.kernel(), &bytes[kernel]);
}

#[test]
fn no_setup_sectors_are_four() {
    assert_eq!(parse(|file| file.setup_sects = 0), Ok(()));
}

#[test]
fn each_field_that_is_wrong_is_named() {
    use BzImageError as E;
    type Change = fn(&mut File);
    let cases: &[(Change, E)] = &[
        (|file| file.boot_flag = 0xaa56, E::BootFlag(0xaa56)),
        (
            |file| file.magic = *b"HdrT",
            E::Magic(u32::from_le_bytes(*b"HdrT")),
        ),
        (|file| file.version = 0x020b, E::Version(0x020b)),
        (|file| file.version = 0x0300, E::Version(0x0300)),
        (|file| file.jump = 0x65, E::HeaderLength { end: 0x267 }),
        (|file| file.jump = 0x8f, E::HeaderLength { end: 0x291 }),
        (|file| file.loadflags = 0x80, E::LoadedLow),
        (
            |file| file.xloadflags = 0x7e,
            E::No64BitEntry { xloadflags: 0x7e },
        ),
        (
            |file| file.kernel.truncate(0x200),
            E::NoKernel { length: 0x200 },
        ),
        (
            |file| file.payload_offset = 0x1ff,
            E::Payload {
                offset: 0x1ff,
                length: 0xb00,
            },
        ),
        (
            |file| file.payload_length = 0,
            E::Payload {
                offset: 0x400,
                length: 0,
            },
        ),
        (
            |file| file.payload_length = 0xc01,
            E::Payload {
                offset: 0x400,
                length: 0xc01,
            },
        ),
        (
            |file| file.payload_length = u32::MAX,
            E::Payload {
                offset: 0x400,
                length: u32::MAX,
            },
        ),
        (
            |file| file.kernel_alignment = 0x30_0000,
            E::Alignment {
                kernel_alignment: 0x30_0000,
                min_alignment: 21,
            },
        ),
        (
            |file| file.kernel_alignment = 0,
            E::Alignment {
                kernel_alignment: 0,
                min_alignment: 21,
            },
        ),
        (
            |file| file.kernel_alignment = 1 << 31,
            E::Alignment {
                kernel_alignment: 1 << 31,
                min_alignment: 21,
            },
        ),
        (
            |file| file.min_alignment = 22,
            E::Alignment {
                kernel_alignment: 0x20_0000,
                min_alignment: 22,
            },
        ),
        (
            |file| file.min_alignment = 200,
            E::Alignment {
                kernel_alignment: 0x20_0000,
                min_alignment: 200,
            },
        ),
        (|file| file.pref_address = 0, E::PreferredAddress(0)),
        (
            |file| file.pref_address = 0x10_0000,
            E::PreferredAddress(0x10_0000),
        ),
        (
            |file| {
                file.pref_address = 0_u64.wrapping_sub(ALIGNMENT);
                file.init_size = 0x20_0001;
            },
            E::PreferredAddress(0_u64.wrapping_sub(ALIGNMENT)),
        ),
        (
            |file| file.init_size = 0xfff,
            E::InitSize {
                init_size: 0xfff,
                length: 0x1000,
            },
        ),
    ];
    for (change, error) in cases {
        assert_eq!(parse(change), Err(*error), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_no_kernel() {
    let whole = kernel().write();
    for length in 0..whole.len() {
        let error = BzImage::parse(&whole[..length]).unwrap_err();
        assert_eq!(error, BzImageError::Truncated { have: length });
    }
}

#[test]
fn a_size_that_is_a_lie_is_a_truncation() {
    let mut file = kernel().write();
    file[0x1f4..0x1f8].fill(0xff);
    let have = file.len();
    let error = BzImage::parse(&file).unwrap_err();
    assert_eq!(error, BzImageError::Truncated { have });
}

#[test]
fn a_byte_that_was_changed_shows_in_the_checksum() {
    let whole = kernel().write();
    assert!(BzImage::parse(&whole).unwrap().is_intact());
    let mut seen = 0;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        if let Ok(image) = BzImage::parse(&damaged) {
            // The eight bytes that a signature's place has, and the PE checksum, are not counted.
            let signed = (0x98..0x9c).contains(&at) || (0xe8..0xf0).contains(&at);
            assert_eq!(image.is_intact(), signed, "{at:#x}");
            seen += 1;
        }
    }
    assert!(seen > 0x1000);
}

#[test]
fn a_signed_kernel_is_intact() {
    let mut file = kernel().write();
    sign(&mut file);
    assert!(BzImage::parse(&file).unwrap().is_intact());
    // Nothing of what follows the kernel is under the checksum.
    let last = file.len() - 1;
    file[last] ^= 1;
    assert!(BzImage::parse(&file).unwrap().is_intact());
    // Without a PE header these bytes are like all others.
    file[0x40] = b'Q';
    assert!(!BzImage::parse(&file).unwrap().is_intact());
}

#[test]
fn every_error_says_something_of_its_own() {
    use BzImageError as E;
    let all = [
        E::Truncated { have: 1 },
        E::BootFlag(1),
        E::Magic(1),
        E::Version(0x0301),
        E::HeaderLength { end: 1 },
        E::LoadedLow,
        E::No64BitEntry { xloadflags: 1 },
        E::NoKernel { length: 1 },
        E::Payload {
            offset: 1,
            length: 1,
        },
        E::Alignment {
            kernel_alignment: 1,
            min_alignment: 1,
        },
        E::PreferredAddress(1),
        E::InitSize {
            init_size: 1,
            length: 1,
        },
    ];
    let mut said: Vec<String> = all.iter().map(ToString::to_string).collect();
    said.sort();
    said.dedup();
    assert_eq!(said.len(), all.len());
}

#[test]
fn an_initial_ram_disk_is_followed_to_its_end() {
    let plain = archive(&[0, 1, 2, 3, 4, 5000]);
    assert_eq!(check_initrd(&plain), Ok(InitrdFormat::Cpio));
    // Early microcode, padding, and the compressed rest.
    let mut two = plain.clone();
    two.resize(two.len().next_multiple_of(512), 0);
    two.extend(b"\x28\xb5\x2f\xfdwhatever");
    assert_eq!(check_initrd(&two), Ok(InitrdFormat::Zstd));
    let mut three = plain.clone();
    three.extend(archive(&[7]));
    assert_eq!(check_initrd(&three), Ok(InitrdFormat::Cpio));
    assert_eq!(check_initrd(b"\x1f\x8b\x08\0"), Ok(InitrdFormat::Gzip));
    for (bytes, error) in [
        (&b""[..], InitrdError::Empty),
        (&[0; 512], InitrdError::Empty),
        (b"#!/bin/sh", InitrdError::Unknown { offset: 0 }),
        (b"\0\0\0\0hello", InitrdError::Unknown { offset: 4 }),
    ] {
        assert_eq!(check_initrd(bytes), Err(error));
    }
}

#[test]
fn an_archive_that_ends_too_soon_is_damaged() {
    let whole = archive(&[3, 100, 0]);
    let mut last = 0;
    // The padding after the trailer may be missing.
    let end = whole.len() - 1;
    for length in 1..end {
        match check_initrd(&whole[..length]) {
            Err(InitrdError::Damaged { offset }) => {
                // Where the next member would be, its padding included.
                assert!(offset >= last && offset <= length.next_multiple_of(4));
                last = offset;
            }
            // So short that it is not known for an archive.
            Err(InitrdError::Unknown { offset: 0 }) if length < 6 => {}
            other => panic!("{length}: {other:?}"),
        }
    }
    assert!(last > 0);
    let mut wrong = whole.clone();
    wrong[6 + 6 * 8] = b'G';
    let damaged = Err(InitrdError::Damaged { offset: 0 });
    assert_eq!(check_initrd(&wrong), damaged);
    // A size that reaches past the end, and one that would wrap.
    for digits in [b"00001000", b"FFFFFFFF"] {
        wrong[6 + 6 * 8..6 + 7 * 8].copy_from_slice(digits);
        assert_eq!(check_initrd(&wrong), damaged);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(
        changes in list((any::<Index>(), any::<u8>()), 0..12),
        header in list((0x1f1_usize..0x270, any::<u8>()), 0..6),
    ) {
        let mut file = kernel().write();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        for (at, byte) in header {
            file[at] = byte;
        }
        if let Ok(image) = BzImage::parse(&file) {
            let _ = image.is_intact();
            prop_assert!(image.alignment().is_power_of_two());
            prop_assert_eq!(image.preferred_address() % image.alignment(), 0);
            prop_assert!(image.init_size() >= image.kernel().len() as u64);
            prop_assert!(image.kernel().len() > 0x200);
        }
    }

    #[test]
    fn any_archive_is_read_without_panic(
        sizes in list(0..600_usize, 0..5),
        changes in list((any::<Index>(), any::<u8>()), 0..4),
        cut in any::<Index>(),
    ) {
        let mut bytes = archive(&sizes);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = check_initrd(&bytes);
        let _ = check_initrd(&bytes[cut.index(bytes.len())..]);
    }
}
