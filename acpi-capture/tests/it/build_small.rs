//! More tables built byte by byte: those that the smaller machine does not have.

use crate::build::{Bytes, fix_sum, sdt};

/// A structure of the HMAT: its length is filled in.
pub(crate) fn hmat_structure(kind: u16, content: &[u8]) -> Vec<u8> {
    let head = Bytes::new().u16(kind).u16(0).u32(8 + content.len() as u32);
    head.raw(content).0
}

pub(crate) fn hmat(structures: &[Vec<u8>]) -> Vec<u8> {
    let body = Bytes::new().u32(0).raw(&structures.concat());
    sdt(b"HMAT", 2, &body.0)
}

pub(crate) fn hmat_proximity(flags: u16, initiator: u32, memory: u32) -> Vec<u8> {
    let content = Bytes::new().u16(flags).u16(0).u32(initiator).u32(memory);
    hmat_structure(0, &content.u32(0).u64(0).u64(0).0)
}

/// A matrix of measures; rows are initiators.
pub(crate) fn hmat_matrix(
    measure: u8,
    unit: u64,
    initiators: &[u32],
    targets: &[u32],
    cells: &[u16],
) -> Vec<u8> {
    let head = Bytes::new().raw(&[0, measure, 0, 0]);
    let head = head.u32(initiators.len() as u32).u32(targets.len() as u32);
    let mut content = head.u32(0).u64(unit);
    for &domain in initiators.iter().chain(targets) {
        content = content.u32(domain);
    }
    for &cell in cells {
        content = content.u16(cell);
    }
    hmat_structure(1, &content.0)
}

pub(crate) fn hmat_cache(memory: u32, size: u64, attributes: u32, handles: &[u16]) -> Vec<u8> {
    let head = Bytes::new().u32(memory).u32(0).u64(size).u32(attributes);
    let head = head.u16(0).u16(handles.len() as u16);
    let content = handles
        .iter()
        .fold(head, |bytes, &handle| bytes.u16(handle));
    hmat_structure(2, &content.0)
}

pub(crate) fn hmat_sample() -> Vec<u8> {
    hmat(&[
        hmat_proximity(1, 0, 0),
        hmat_proximity(0, 7, 2),
        hmat_matrix(0, 100, &[0, 1], &[0, 1, 2], &[1, 2, 3, 4, 0, 0xffff]),
        hmat_cache(2, 1 << 34, 0x0040_1111, &[0x1100, 0x1101]),
        hmat_structure(9, &[1, 2, 3, 4]),
    ])
}

/// A register in some address space.
pub(crate) fn register(space: u8, width: u8, address: u64) -> Vec<u8> {
    Bytes::new().raw(&[space, width, 0, 1]).u64(address).0
}

/// A console at COM1 and on PCI function 00:16.3; from revision 4 on with a path.
pub(crate) fn spcr(revision: u8, path: &[u8]) -> Vec<u8> {
    let body = Bytes::new().raw(&[1, 0, 0, 0]).raw(&register(1, 8, 0x3f8));
    let body = body.raw(&[3, 4]).u32(4).raw(&[7, 0, 1, 2, 3, 0]);
    let body = body.u16(0xa13d).u16(0x8086).raw(&[0, 0x16, 3]).u32(1).u8(0);
    let mut body = body.u32(1_843_200);
    if revision >= 4 {
        body = body.u32(0).u16(path.len() as u16 + 1).u16(88);
        body = body.raw(path).u8(0);
    }
    sdt(b"SPCR", revision, &body.0)
}

/// A debug port: kind, subkind, path, registers as address and size.
pub(crate) type PlainPort<'a> = (u16, u16, &'a [u8], &'a [(u64, u32)]);

pub(crate) fn dbg2(ports: &[PlainPort<'_>]) -> Vec<u8> {
    let mut body = Bytes::new().u32(44).u32(ports.len() as u32);
    for &(kind, subkind, path, registers) in ports {
        let sizes_at = 22 + 12 * registers.len();
        let path_at = sizes_at + 4 * registers.len();
        let oem_at = path_at + path.len() + 1;
        body = body.u8(0).u16((oem_at + 2) as u16);
        body = body.u8(registers.len() as u8).u16(path.len() as u16 + 1);
        body = body.u16(path_at as u16).u16(2).u16(oem_at as u16);
        body = body
            .u16(kind)
            .u16(subkind)
            .u16(0)
            .u16(22)
            .u16(sizes_at as u16);
        for &(address, _) in registers {
            body = body.raw(&register(1, 8, address));
        }
        for &(_, size) in registers {
            body = body.u32(size);
        }
        body = body.raw(path).u8(0).raw(&[0xab, 0xcd]);
    }
    sdt(b"DBG2", 0, &body.0)
}

pub(crate) fn bgrt(status: u8, image: u64) -> Vec<u8> {
    let body = Bytes::new().u16(1).raw(&[status, 0]).u64(image);
    sdt(b"BGRT", 1, &body.u32(640).u32(200).0)
}

/// A TPM; with a log of this length and address, or in the short form.
pub(crate) fn tpm2(start_method: u32, log: Option<(u32, u64)>) -> Vec<u8> {
    let body = Bytes::new()
        .u16(1)
        .u16(0)
        .u64(0xfed4_0040)
        .u32(start_method);
    let body = match log {
        Some((length, address)) => body.raw(&[0; 12]).u32(length).u64(address),
        None => body,
    };
    sdt(b"TPM2", 4, &body.0)
}

pub(crate) fn waet(flags: u32) -> Vec<u8> {
    sdt(b"WAET", 1, &Bytes::new().u32(flags).0)
}

pub(crate) fn ecdt(control: u64, data: u64, path: &[u8]) -> Vec<u8> {
    let body = Bytes::new().raw(&register(1, 8, control));
    let body = body.raw(&register(1, 8, data)).u32(0).u8(0x6e);
    sdt(b"ECDT", 1, &body.raw(path).u8(0).0)
}

/// An item of `setup_data`.
pub(crate) fn setup_data(next: u64, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = Bytes::new().u64(next).u32(kind).u32(data.len() as u32);
    head.raw(data).0
}

/// The same table with other fields in its header.
pub(crate) fn renamed(mut table: Vec<u8>, oem: &[u8; 6], oem_table: &[u8; 8]) -> Vec<u8> {
    table[10..16].copy_from_slice(oem);
    table[16..24].copy_from_slice(oem_table);
    fix_sum(&mut table, 9);
    table
}
