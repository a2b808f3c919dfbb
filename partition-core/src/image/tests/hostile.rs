//! Files that somebody has damaged or made up to do harm.

use core::convert::Infallible;

use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::paging::{Caching, Identity, TableFrames, build};
use super::*;

/// Memory that holds nothing, but notices what is outside.
struct Bounds(PhysRange);

impl WritePhys for Bounds {
    type Error = Infallible;

    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Infallible> {
        assert!(self.0.contains_range(range(at.0, bytes.len() as u64)));
        Ok(())
    }

    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), Infallible> {
        assert!(self.0.contains_range(range(at.0, length)));
        Ok(())
    }
}

/// Frames that are few.
struct Few(Vec<u64>);

impl TableFrames for Few {
    fn allocate(&mut self) -> Option<PhysAddr> {
        if self.0.len() == 64 * 512 {
            return None;
        }
        let at = self.0.len() as u64 * 8 + 4096;
        self.0.resize(self.0.len() + 512, 0);
        Some(PhysAddr(at))
    }

    fn load(&self, at: PhysAddr) -> u64 {
        self.0[(at.0 as usize - 4096) / 8]
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.0[(at.0 as usize - 4096) / 8] = value;
    }
}

/// Does all that is done with an image, and checks what a value of it promises.
fn use_all(file: &[u8]) -> Result<(), ImageError> {
    let image = Image::parse(file)?;
    let footprint = image.footprint();
    let mut pages = vec![];
    for segment in image.segments() {
        let end = segment.address + (segment.memory_size - 1);
        for address in [segment.address, end] {
            assert_eq!((address as i64) << 16 >> 16, address as i64);
        }
        assert!(segment.address >= footprint.base);
        assert!(end - footprint.base < footprint.length);
        let bytes = image.segment_bytes(segment).len() as u64;
        assert_eq!(bytes, segment.file_size);
        assert!(bytes <= segment.memory_size);
        pages.push((segment.address & !0xfff, end | 0xfff));
    }
    pages.sort_unstable();
    assert!(pages.windows(2).all(|pair| pair[0].1 < pair[1].0));
    let entry = image.note().entry;
    assert!(image.segments().any(|segment| {
        segment.access.execute
            && (segment.address..segment.address + segment.file_size).contains(&entry)
    }));
    for room in [
        range(0x1000_0000, 0x100_0000),
        range(0x1000, u64::MAX - 0x1000),
    ] {
        let Ok(layout) = image.place(room) else {
            continue;
        };
        assert!(room.contains_range(layout.range()));
        layout.load(&mut Bounds(layout.range())).unwrap();
        let identity = Identity {
            range: range(0x1000_0000, 0x100_0000),
            access: Access {
                write: true,
                execute: false,
            },
            caching: Caching::WriteBack,
        };
        let _ = build(&mut Few(vec![]), &layout, &[identity]);
    }
    Ok(())
}

#[test]
fn every_truncation_is_refused() {
    for elf in [kernel(), independent_kernel()] {
        let file = elf.write();
        use_all(&file).unwrap();
        for length in 0..file.len() {
            use_all(&file[..length]).unwrap_err();
        }
    }
}

#[test]
fn every_byte_of_the_headers_may_be_anything() {
    let file = kernel().write();
    let headers = 64 + 56 * 4;
    // An interpreter that looks for undefined behaviour takes a thousand times as long.
    let values = if cfg!(miri) { 128 } else { 1 };
    for at in 0..headers {
        for value in (0..=255).step_by(values) {
            let mut file = file.clone();
            file[at] = value;
            let _ = use_all(&file);
        }
    }
}

#[test]
fn notes_of_any_length_end() {
    for (name, descriptor) in [
        (u32::MAX, 0),
        (0, u32::MAX),
        (u32::MAX, u32::MAX),
        (6, u32::MAX - 3),
        (u32::MAX - 11, 12),
    ] {
        let mut bytes = raw_note(b"Baton\0", 1, &super::descriptor(0, 2, 5, ENTRY));
        bytes[0..4].copy_from_slice(&name.to_le_bytes());
        bytes[4..8].copy_from_slice(&descriptor.to_le_bytes());
        let mut elf = kernel();
        elf.parts[3] = note(bytes);
        assert_eq!(use_all(&elf.write()), Err(ImageError::NoteMissing));
    }
}

#[test]
fn more_program_headers_than_a_header_can_count_end_with_the_file() {
    // e_phnum is PN_XNUM: the number is in the first section header.
    let mut file = kernel().write();
    file[56..58].copy_from_slice(&0xffff_u16.to_le_bytes());
    let section = file.len() - 64;
    file[section + 44..section + 48].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(use_all(&file), Err(ImageError::Truncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_are_refused_or_keep_every_promise(
        independent: bool,
        damage in list((any::<Index>(), any::<u8>()), 1..8),
        words in list((any::<Index>(), any::<u64>(), 0_u32..64), 0..3),
        cut in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let elf = if independent { independent_kernel() } else { kernel() };
        let mut file = elf.write();
        // Most of what matters is in the headers.
        for (index, value) in damage {
            let at = index.index(file.len().min(0x400));
            file[at] = value;
        }
        for (index, value, shift) in words {
            let at = 8 * index.index(0x120 / 8);
            file[at..at + 8].copy_from_slice(&(value >> shift).to_le_bytes());
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = use_all(&file);
    }

    #[test]
    fn program_headers_of_any_content_are_refused_or_keep_every_promise(
        parts in list((0_u32..8, 0_u32..8, any::<[u64; 5]>(), list(0_u32..64, 5)), 1..24),
    ) {
        let mut file = kernel().write();
        let table = file.len() as u64;
        for (kind, flags, words, shifts) in &parts {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            let mut words: Vec<u64> = words.iter().zip(shifts).map(|(w, s)| w >> s).collect();
            words[4] = 1 << shifts[4];
            for word in [words[0], words[1], 0, words[2], words[3], words[4]] {
                file.extend(word.to_le_bytes());
            }
        }
        file[32..40].copy_from_slice(&table.to_le_bytes());
        file[56..58].copy_from_slice(&(parts.len() as u16).to_le_bytes());
        let _ = use_all(&file);
    }

    #[test]
    fn bytes_of_any_content_are_refused(file in list(any::<u8>(), 0..512)) {
        prop_assert!(use_all(&file).is_err());
    }
}
