//! Placing images and copying them into memory.

use std::string::{String, ToString};

use super::*;

/// Memory from an address on, full of somebody else's bytes.
struct Ram {
    base: u64,
    bytes: Vec<u8>,
    fail_at: Option<u64>,
}

impl Ram {
    fn new(base: u64, length: usize) -> Self {
        Self {
            base,
            bytes: vec![0xaa; length],
            fail_at: None,
        }
    }

    fn part(&mut self, at: PhysAddr, length: u64) -> Result<&mut [u8], String> {
        if let Some(bad) = self.fail_at
            && at.0 <= bad
            && bad < at.0 + length
        {
            return Err("bad memory".to_string());
        }
        let start = usize::try_from(at.0.checked_sub(self.base).unwrap()).unwrap();
        let length = usize::try_from(length).unwrap();
        Ok(&mut self.bytes[start..start + length])
    }
}

impl WritePhys for Ram {
    type Error = String;

    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), String> {
        self.part(at, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), String> {
        self.part(at, length)?.fill(0);
        Ok(())
    }
}

const ROOM: u64 = 0x1000_0000;

/// What memory is to hold after loading at its start: bytes of the file, zeros in the rest of
/// their pages, and what was there before in between.
fn expected(elf: &Elf, length: usize) -> Vec<u8> {
    let mut memory = vec![0xaa; length];
    let parts = || elf.parts.iter().filter(|part| part.kind == LOAD);
    let base = parts().map(|part| part.address & !0xfff).min().unwrap();
    for part in parts() {
        let start = usize::try_from(part.address - base).unwrap();
        let end = start + usize::try_from(part.memory_size).unwrap();
        memory[start & !0xfff..end.next_multiple_of(0x1000)].fill(0);
        memory[start..start + part.bytes.len()].copy_from_slice(&part.bytes);
    }
    memory
}

#[test]
fn memory_has_the_files_bytes_and_zeros_and_nothing_else_changes() {
    for elf in [kernel(), independent_kernel()] {
        let file = elf.write();
        let image = Image::parse(&file).unwrap();
        let layout = image.place(range(ROOM, 0x10_0000)).unwrap();
        let mut ram = Ram::new(ROOM, 0x10_0000);
        layout.load(&mut ram).unwrap();
        assert!(ram.bytes == expected(&elf, 0x10_0000));
    }
}

#[test]
fn an_image_runs_where_it_is_linked_or_where_it_lies() {
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(range(ROOM, 0xa000)).unwrap();
    assert_eq!(layout.range(), range(ROOM, 0xa000));
    assert_eq!(layout.entry(), ENTRY);
    assert_eq!(layout.physical(ENTRY), Some(PhysAddr(ROOM + 0x40)));
    assert_eq!(
        layout.physical(TEXT + 0x9fff),
        Some(PhysAddr(ROOM + 0x9fff))
    );
    assert_eq!(layout.physical(TEXT + 0xa000), None);
    assert_eq!(layout.physical(TEXT - 1), None);
    let placed: Vec<_> = layout
        .segments()
        .map(|segment| (segment.address, segment.pages))
        .collect();
    assert_eq!(
        placed,
        [
            (TEXT, range(ROOM, 0x2000)),
            (TEXT + 0x2000, range(ROOM + 0x2000, 0x1000)),
            (TEXT + 0x4000, range(ROOM + 0x4000, 0x6000)),
        ]
    );

    let file = independent_kernel().write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(range(ROOM, 0xa000)).unwrap();
    assert_eq!(layout.entry(), ROOM + 0x40);
    assert_eq!(layout.physical(0x40), Some(PhysAddr(ROOM + 0x40)));
    for segment in layout.segments() {
        assert_eq!(segment.address, segment.pages.base().0);
    }
}

#[test]
fn a_room_that_is_too_small_or_crooked_is_refused() {
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    assert_eq!(
        image.place(range(ROOM, 0x9fff)).unwrap_err(),
        PlaceError::TooLarge {
            need: 0xa000,
            have: 0x9fff
        }
    );
    let room = range(ROOM + 0x10, 0x10_0000);
    assert_eq!(image.place(room).unwrap_err(), PlaceError::Misaligned(room));
}

#[test]
fn an_image_with_wide_gaps_does_not_fit_any_room() {
    let mut elf = kernel();
    elf.parts[2].address = 0x7fff_ffff_f000;
    elf.parts[2].memory_size = 0x20;
    let file = elf.write();
    let image = Image::parse(&file).unwrap();
    assert!(matches!(
        image.place(range(ROOM, 1 << 40)).unwrap_err(),
        PlaceError::TooLarge { .. }
    ));
}

#[test]
fn an_independent_image_cannot_run_at_addresses_that_are_not_canonical() {
    let file = independent_kernel().write();
    let image = Image::parse(&file).unwrap();
    let room = range(1 << 47, 0x10_0000);
    let place = range(1 << 47, 0xa000);
    assert_eq!(image.place(room).unwrap_err(), PlaceError::Address(place));
}

#[test]
fn memory_that_cannot_be_written_is_reported_with_its_segment() {
    let file = kernel().write();
    let image = Image::parse(&file).unwrap();
    let layout = image.place(range(ROOM, 0x10_0000)).unwrap();
    for (bad, segment) in [
        (0x10, 0),
        (0x1fff, 0),
        (0x2000, 1),
        (0x2350, 1),
        (0x9fff, 2),
    ] {
        let mut ram = Ram::new(ROOM, 0x10_0000);
        ram.fail_at = Some(ROOM + bad);
        let error = layout.load(&mut ram).unwrap_err();
        assert_eq!(error.segment, segment);
        assert!(error.range.contains(PhysAddr(ROOM + bad)));
        assert!(error.to_string().contains("bad memory"));
    }
}
