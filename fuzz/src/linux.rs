//! A Linux kernel's file, its initial RAM disk and the partition that it is to run in.

use std::collections::HashMap;

use handoff_abi::{PhysAddr, PhysRange};
use partition_core::image::WritePhys;
use partition_core::image::linux::{
    BzImage, E820Entry, LinuxLayout, LinuxRequest, SetupDataItem, check_initrd,
};
use partition_core::image::paging::{Levels, TableFrames};

use crate::grammar::Input;

/// What is written must be inside what was placed.
struct Placed([PhysRange; 3]);

impl WritePhys for Placed {
    type Error = ();

    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), ()> {
        self.zero(at, bytes.len() as u64)
    }

    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), ()> {
        let written = PhysRange::new(at, length).expect("no write wraps");
        let inside = |place: &PhysRange| place.contains_range(written);
        assert!(written.is_empty() || self.0.iter().any(inside), "{written}");
        Ok(())
    }
}

/// A few frames, somewhere.
#[derive(Default)]
struct Frames(HashMap<u64, u64>, u64);

impl TableFrames for Frames {
    fn allocate(&mut self) -> Option<PhysAddr> {
        const MOST: u64 = 64;
        self.1 += 1;
        (self.1 <= MOST).then_some(PhysAddr(self.1 << 12))
    }

    fn load(&self, at: PhysAddr) -> u64 {
        self.0.get(&at.0).copied().unwrap_or(0)
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.0.insert(at.0, value);
    }
}

/// A number near what matters: pages up to 2 MiB, multiples of 2 MiB, or any.
fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() % 3 {
        0 => u64::from(input.byte()) << 13,
        1 => u64::from(input.byte()) << 21,
        _ => input.quad(),
    }
}

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length)
        .unwrap_or_else(|_| PhysRange::from_bounds(PhysAddr(base), PhysAddr(base)))
}

/// What a placement promises, whatever it was asked.
fn check(layout: &LinuxLayout<'_>, image: &BzImage<'_>, request: &LinuxRequest<'_>) {
    let pieces = [layout.kernel(), layout.parameters(), layout.initrd()];
    for (place, &piece) in pieces.iter().enumerate() {
        if piece.is_empty() {
            continue;
        }
        let ram =
            |entry: &E820Entry| entry.kind == E820Entry::RAM && entry.range.contains_range(piece);
        assert!(request.memory_map.iter().any(ram));
        assert!(!request.taken.iter().any(|taken| taken.overlaps(piece)));
        let others = pieces.iter().skip(place + 1);
        assert!(!others.into_iter().any(|other| other.overlaps(piece)));
        assert!(piece.base().0 >= 1 << 20);
        assert!(image.can_be_above_4g() || piece.end().0 <= 1 << 32);
    }
    assert_eq!(layout.kernel().base().0 % image.alignment(), 0);
    assert_eq!(layout.kernel().length(), image.init_size());
    layout
        .load(&mut Placed(pieces))
        .expect("memory never fails");
    // Much memory, or memory in pieces, takes more frames than there are.
    let _ = layout.tables(&mut Frames::default(), &[]);
}

/// Sets what every kernel has, so that the rest is looked at.
fn fixed(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    let length = file.len().max(0x800).next_multiple_of(16);
    file.resize(length, 0);
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&((length - 0x400) as u32 / 16).to_le_bytes());
    file[0x1fe..0x208].copy_from_slice(b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
    file[0x211] |= 1;
    file[0x236] |= 1;
    file
}

/// A kernel and a partition, as the input says.
pub fn bzimage(bytes: &[u8]) {
    places(bytes);
}

/// Reads a kernel, and places it where the input says; whether there was room. First come the
/// partition and what the kernel is told, then its file.
fn places(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let choices = input.byte();
    let mut map = Vec::new();
    let mut end = 0_u64;
    for _ in 0..input.byte() % 8 {
        // Mostly in order; where it is not, that is to be found.
        let base = end.wrapping_add(address(&mut input));
        let length = address(&mut input);
        let kind = u32::from(input.byte() % 4);
        map.push(E820Entry {
            range: range(base, length),
            kind,
        });
        end = base.wrapping_add(length);
    }
    if choices & 1 != 0 {
        // A map that does not fit the zero page.
        let more = (0..200).map(|number| E820Entry {
            range: range(end.saturating_add(number << 12), 1 << 12),
            kind: 2,
        });
        map.extend(more);
    }
    let taken: Vec<PhysRange> = (0..input.byte() % 4)
        .map(|_| range(address(&mut input), address(&mut input)))
        .collect();
    let length = usize::from(input.byte());
    let initrd = input.take(length);
    let _ = check_initrd(initrd);
    let length = usize::from(input.byte());
    let command_line = input.take(length);
    let kind = input.double();
    let item = [SetupDataItem {
        kind,
        data: command_line,
    }];
    let request = LinuxRequest {
        memory_map: &map,
        taken: &taken,
        command_line,
        initrd: (choices & 2 != 0).then_some(initrd),
        rsdp: PhysAddr(input.quad()),
        setup_data: if choices & 4 == 0 { &item } else { &[] },
        levels: if choices & 8 == 0 {
            Levels::Four
        } else {
            Levels::Five
        },
    };
    let mut placed = false;
    for file in [input.0.to_vec(), fixed(input.0)] {
        let Ok(image) = BzImage::parse(&file) else {
            continue;
        };
        let _ = image.is_intact();
        if let Ok(layout) = image.place(&request) {
            check(&layout, &image, &request);
            placed = true;
        }
    }
    placed
}

/// A partition with a small kernel that fits, with and without an initial RAM disk.
pub(crate) fn bzimage_seeds() -> Vec<Vec<u8>> {
    let mut file = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 0x7f, 0]);
    put(0x238, &0x7ff_u32.to_le_bytes());
    put(0x248, &0x210_u32.to_le_bytes());
    put(0x24c, &0x100_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x1_0000_u32.to_le_bytes());
    let file = fixed(&file);
    let mut archive = b"070701".to_vec();
    for field in 0..13 {
        let value = if field == 11 { 11 } else { 0 };
        archive.extend(format!("{value:08X}").into_bytes());
    }
    archive.extend(b"TRAILER!!!\0\0\0\0");
    [0_u8, 1, 2, 7, 8]
        .into_iter()
        .map(|choices| {
            // 128 KiB from 128 KiB on, and 32 MiB somewhat above 32 MiB; a page of it is taken.
            let mut seed = vec![choices, 2, 0, 16, 0, 16, 1, 1, 16, 1, 16, 1];
            seed.extend([1, 1, 17, 0, 1]);
            seed.push(archive.len() as u8);
            seed.extend(&archive);
            seed.push(5);
            seed.extend(b"quiet");
            seed.extend(9_u32.to_le_bytes());
            seed.extend(0xe_0000_u64.to_le_bytes());
            seed.extend(&file);
            seed
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_kernels_that_fit() {
        for seed in bzimage_seeds() {
            let at = seed.len() - 0x800;
            assert!(BzImage::parse(&seed[at..]).is_ok());
            assert!(places(&seed));
        }
    }
}
