//! Tests of images, with an ELF writer of their own.

mod hostile;
mod load;
mod paging;
mod parse;

use std::vec;
use std::vec::Vec;

use handoff_abi::{PhysAddr, PhysRange};

use super::*;

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERP: u32 = 3;
const NOTE: u32 = 4;

const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

/// A program header with its bytes.
#[derive(Clone, Debug)]
struct Part {
    kind: u32,
    flags: u32,
    address: u64,
    bytes: Vec<u8>,
    memory_size: u64,
    align: u64,
}

/// A file to be written; what is not said otherwise is as it should be.
#[derive(Clone, Debug)]
struct Elf {
    class: u8,
    data: u8,
    version: u32,
    kind: u16,
    machine: u16,
    header_entry_size: u16,
    parts: Vec<Part>,
}

fn load(address: u64, flags: u32, bytes: Vec<u8>, memory_size: u64) -> Part {
    Part {
        kind: LOAD,
        flags: flags | READ,
        address,
        bytes,
        memory_size,
        align: 0x1000,
    }
}

fn raw_note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(descriptor.len()).unwrap().to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(descriptor);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn descriptor(major: u16, minor: u16, features: u64, entry: u64) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(major.to_le_bytes());
    bytes.extend(minor.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(features.to_le_bytes());
    bytes.extend(entry.to_le_bytes());
    bytes
}

fn note(bytes: Vec<u8>) -> Part {
    Part {
        kind: NOTE,
        flags: READ,
        address: 0,
        memory_size: bytes.len() as u64,
        bytes,
        align: 4,
    }
}

impl Elf {
    /// Headers, the parts' bytes each at an offset that fits its address, and one empty section
    /// header at the very end.
    fn write(&self) -> Vec<u8> {
        let headers = 64 + 56 * self.parts.len();
        let mut at = headers as u64;
        let mut offsets = vec![];
        for part in &self.parts {
            let align = part.align.clamp(1, 0x1000);
            if align.is_power_of_two() {
                at += (part.address.wrapping_sub(at)) % align;
            }
            offsets.push(at);
            at += part.bytes.len() as u64;
        }
        let sections = at.next_multiple_of(8);
        let mut out = vec![0x7f, b'E', b'L', b'F', self.class, self.data, 1, 0];
        out.extend([0; 8]);
        out.extend(self.kind.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(self.version.to_le_bytes());
        out.extend(0x1234_u64.to_le_bytes());
        out.extend(64_u64.to_le_bytes());
        out.extend(sections.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        let count = u16::try_from(self.parts.len()).unwrap();
        for field in [64, self.header_entry_size, count, 64, 1, 0] {
            out.extend(field.to_le_bytes());
        }
        for (part, offset) in self.parts.iter().zip(&offsets) {
            out.extend(part.kind.to_le_bytes());
            out.extend(part.flags.to_le_bytes());
            for field in [
                *offset,
                part.address,
                0xdead_0000,
                part.bytes.len() as u64,
                part.memory_size,
                part.align,
            ] {
                out.extend(field.to_le_bytes());
            }
        }
        for (part, offset) in self.parts.iter().zip(&offsets) {
            out.resize(usize::try_from(*offset).unwrap(), 0xee);
            out.extend(&part.bytes);
        }
        out.resize(usize::try_from(sections).unwrap() + 64, 0);
        out
    }
}

const TEXT: u64 = 0xffff_ffff_8000_0000;
const ENTRY: u64 = TEXT + 0x40;

fn text() -> Vec<u8> {
    (0..0x1900_u32).map(|index| (index * 7) as u8).collect()
}

/// A kernel in the highest 2 GiB: text, read-only data that begins inside a page, and data with
/// much that is zero.
fn kernel() -> Elf {
    Elf {
        class: 2,
        data: 1,
        version: 1,
        kind: 2,
        machine: 62,
        header_entry_size: 56,
        parts: vec![
            load(TEXT, EXECUTE, text(), 0x1900),
            load(TEXT + 0x2340, 0, vec![0x52; 0x100], 0x100),
            load(TEXT + 0x4000, WRITE, vec![0xda; 0x20], 0x5010),
            note(raw_note(b"Baton\0", 1, &descriptor(0, 2, 5, ENTRY))),
        ],
    }
}

/// The same, position independent and linked from 0 on.
fn independent_kernel() -> Elf {
    let mut elf = kernel();
    elf.kind = 3;
    for part in elf.parts.iter_mut().filter(|part| part.kind == LOAD) {
        part.address -= TEXT;
    }
    elf.parts[3] = note(raw_note(b"Baton\0", 1, &descriptor(0, 2, 5, 0x40)));
    elf
}
