//! Tests of Linux kernels, with a writer of bzImages of their own.

mod load;
mod parse;
mod place;

use std::vec;
use std::vec::Vec;

use handoff_abi::{PhysAddr, PhysRange};

use super::*;
use crate::image::paging::Levels;

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

/// A kernel file to be written; what is not said otherwise is as it should be. Offsets and widths
/// are those of the protocol's document.
#[derive(Clone, Debug)]
struct File {
    setup_sects: u8,
    boot_flag: u16,
    jump: u8,
    magic: [u8; 4],
    version: u16,
    loadflags: u8,
    initrd_addr_max: u32,
    kernel_alignment: u32,
    relocatable: u8,
    min_alignment: u8,
    xloadflags: u16,
    cmdline_size: u32,
    payload_offset: u32,
    payload_length: u32,
    pref_address: u64,
    init_size: u32,
    /// The protected-mode part, whole paragraphs.
    kernel: Vec<u8>,
    /// What comes after it, as a signature does.
    after: Vec<u8>,
}

const PREFERRED: u64 = 0x100_0000;
const ALIGNMENT: u64 = 0x20_0000;
const INIT_SIZE: u64 = 0x9_8000;

fn kernel() -> File {
    File {
        setup_sects: 3,
        boot_flag: 0xaa55,
        jump: 0x6a,
        magic: *b"HdrS",
        version: 0x020f,
        loadflags: 1,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: ALIGNMENT as u32,
        relocatable: 1,
        min_alignment: 21,
        xloadflags: 0x7f,
        cmdline_size: 2047,
        payload_offset: 0x400,
        payload_length: 0xb00,
        pref_address: PREFERRED,
        init_size: INIT_SIZE as u32,
        kernel: (0..0x1000_u32).map(|index| (index * 3) as u8).collect(),
        after: vec![],
    }
}

/// The CRC that the document tells of, bit by bit: polynomial 04C11DB7h, reflected, from all ones on
/// and not inverted at the end.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => crc >> 1 ^ 0xedb8_8320,
        })
    })
}

impl File {
    fn setup_length(&self) -> usize {
        let sectors = match self.setup_sects {
            0 => 4,
            count => usize::from(count),
        };
        (sectors + 1) * 512
    }

    /// The file, its last four bytes of kernel being such that the checksum is right.
    fn write(&self) -> Vec<u8> {
        let mut out = vec![0; self.setup_length()];
        // Other fields hold what no reader may take for zero.
        out[..0x290].fill(0x5e);
        // A PE header, as kernels have that firmware can start.
        out[0x3c..0x40].copy_from_slice(&0x40_u32.to_le_bytes());
        out[0x40..0x44].copy_from_slice(b"PE\0\0");
        out[0x58..0x5a].copy_from_slice(&0x20b_u16.to_le_bytes());
        out[0x98..0x9c].fill(0);
        out[0xe8..0xf0].fill(0);
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[self.setup_sects]);
        let paragraphs = u32::try_from(self.kernel.len() / 16).unwrap();
        put(0x1f4, &paragraphs.to_le_bytes());
        put(0x1fe, &self.boot_flag.to_le_bytes());
        put(0x200, &[0xeb, self.jump]);
        put(0x202, &self.magic);
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.loadflags]);
        put(0x22c, &self.initrd_addr_max.to_le_bytes());
        put(0x230, &self.kernel_alignment.to_le_bytes());
        put(0x234, &[self.relocatable, self.min_alignment]);
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &self.cmdline_size.to_le_bytes());
        put(0x248, &self.payload_offset.to_le_bytes());
        put(0x24c, &self.payload_length.to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        out.extend(&self.kernel);
        let end = out.len();
        if let Some(before) = end.checked_sub(4).filter(|_| self.kernel.len() > 4) {
            let sum = crc(&out[..before]).to_le_bytes();
            out[before..].copy_from_slice(&sum);
        }
        out.extend(&self.after);
        out
    }
}

/// What signing does to a file.
fn sign(file: &mut Vec<u8>) {
    let at = u32::try_from(file.len()).unwrap();
    file[0x98..0x9c].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    file[0xe8..0xec].copy_from_slice(&at.to_le_bytes());
    file[0xec..0xf0].copy_from_slice(&0x200_u32.to_le_bytes());
    file.extend([0x5a; 0x200]);
}

/// An archive with members of these sizes.
fn archive(sizes: &[usize]) -> Vec<u8> {
    let mut out = vec![];
    let mut member = |name: &str, size: usize| {
        out.extend(b"070701");
        for field in 0..13 {
            let value = match field {
                6 => size,
                11 => name.len() + 1,
                _ => 0,
            };
            out.extend(std::format!("{value:08X}").into_bytes());
        }
        out.extend(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(vec![0x31; size]);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    for (number, &size) in sizes.iter().enumerate() {
        member(&std::format!("file{number}"), size);
    }
    member("TRAILER!!!", 0);
    out
}

fn ram(base: u64, end: u64) -> E820Entry {
    E820Entry {
        range: range(base, end - base),
        kind: E820Entry::RAM,
    }
}

fn other(base: u64, end: u64, kind: u32) -> E820Entry {
    E820Entry {
        kind,
        ..ram(base, end)
    }
}

/// A partition with little memory, some of it where Linux starts processors from.
fn map() -> Vec<E820Entry> {
    vec![
        ram(0x2_0000, 0x4_0000),
        other(0x5_0000, 0x5_8000, 2),
        ram(0x4000_0000, 0x4200_0000),
        other(0x4200_0000, 0x4201_0000, 3),
    ]
}

fn request(map: &[E820Entry]) -> LinuxRequest<'_> {
    LinuxRequest {
        memory_map: map,
        taken: &[],
        command_line: b"console=hvc0",
        initrd: None,
        rsdp: PhysAddr(0x4200_0000),
        setup_data: &[],
        levels: Levels::Four,
    }
}
