//! Tables built byte by byte from the specifications, without any definition of the crate's own.

use std::collections::BTreeMap;

use acpi_capture::ReadPhys;
use handoff_abi::{PhysAddr, PhysRange};

/// A range by its ends.
pub(crate) fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr(start), PhysAddr(end))
}

/// Appends numbers of any width.
#[derive(Clone, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn new() -> Self {
        Self::default()
    }
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    pub(crate) fn u8(self, number: u8) -> Self {
        self.raw(&[number])
    }
    pub(crate) fn u16(self, number: u16) -> Self {
        self.raw(&number.to_le_bytes())
    }
    pub(crate) fn u32(self, number: u32) -> Self {
        self.raw(&number.to_le_bytes())
    }
    pub(crate) fn u64(self, number: u64) -> Self {
        self.raw(&number.to_le_bytes())
    }
}

/// Makes the byte at `at` such that all bytes add up to zero.
pub(crate) fn fix_sum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = sum.wrapping_neg();
}

/// A table with the common header.
pub(crate) fn sdt(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Bytes::new()
        .raw(signature)
        .u32(36 + body.len() as u32)
        .u8(revision)
        .u8(0)
        .raw(b"VENDOR")
        .raw(b"MACHINE\0")
        .u32(7)
        .raw(b"MAKE")
        .u32(9)
        .raw(body)
        .0;
    fix_sum(&mut table, 9);
    table
}

/// An RSDP of ACPI 2.0.
pub(crate) fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = Bytes::new()
        .raw(b"RSD PTR ")
        .u8(0)
        .raw(b"VENDOR")
        .u8(2)
        .u32(rsdt)
        .u32(36)
        .u64(xsdt)
        .u8(0)
        .raw(&[0; 3])
        .0;
    fix_sum(&mut bytes[..20], 8);
    fix_sum(&mut bytes, 32);
    bytes
}

/// An RSDP of ACPI 1.0.
pub(crate) fn rsdp_v1(rsdt: u32) -> Vec<u8> {
    let mut bytes = rsdp(rsdt, 0);
    bytes.truncate(20);
    bytes[15] = 0;
    fix_sum(&mut bytes, 8);
    bytes
}

pub(crate) fn xsdt(pointers: &[u64]) -> Vec<u8> {
    let body = pointers.iter().fold(Bytes::new(), |b, &p| b.u64(p));
    sdt(b"XSDT", 1, &body.0)
}

pub(crate) fn rsdt(pointers: &[u32]) -> Vec<u8> {
    let body = pointers.iter().fold(Bytes::new(), |b, &p| b.u32(p));
    sdt(b"RSDT", 1, &body.0)
}

pub(crate) fn madt(local_apic: u32, flags: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let body = Bytes::new().u32(local_apic).u32(flags);
    sdt(b"APIC", 3, &body.raw(&entries.concat()).0)
}

pub(crate) fn local_apic(uid: u8, apic_id: u8, flags: u32) -> Vec<u8> {
    Bytes::new().raw(&[0, 8, uid, apic_id]).u32(flags).0
}

pub(crate) fn local_x2apic(uid: u32, apic_id: u32, flags: u32) -> Vec<u8> {
    let head = Bytes::new().raw(&[9, 16, 0, 0]);
    head.u32(apic_id).u32(flags).u32(uid).0
}

pub(crate) fn io_apic(id: u8, address: u32, interrupt_base: u32) -> Vec<u8> {
    let head = Bytes::new().raw(&[1, 12, id, 0]);
    head.u32(address).u32(interrupt_base).0
}

pub(crate) fn source_override(source: u8, interrupt: u32, flags: u16) -> Vec<u8> {
    let head = Bytes::new().raw(&[2, 10, 0, source]);
    head.u32(interrupt).u16(flags).0
}

pub(crate) fn nmi_source(flags: u16, interrupt: u32) -> Vec<u8> {
    Bytes::new().raw(&[3, 8]).u16(flags).u32(interrupt).0
}

pub(crate) fn local_apic_nmi(uid: u8, flags: u16, lint: u8) -> Vec<u8> {
    Bytes::new().raw(&[4, 6, uid]).u16(flags).u8(lint).0
}

pub(crate) fn local_x2apic_nmi(uid: u32, flags: u16, lint: u8) -> Vec<u8> {
    let head = Bytes::new().raw(&[10, 12]).u16(flags);
    head.u32(uid).raw(&[lint, 0, 0, 0]).0
}

pub(crate) fn local_apic_override(address: u64) -> Vec<u8> {
    Bytes::new().raw(&[5, 12, 0, 0]).u64(address).0
}

pub(crate) fn wakeup(mailbox: u64) -> Vec<u8> {
    Bytes::new().raw(&[16, 16, 0, 0]).u32(0).u64(mailbox).0
}

/// Allocations are base, segment, first bus, last bus.
pub(crate) fn mcfg(allocations: &[(u64, u16, u8, u8)]) -> Vec<u8> {
    let mut body = Bytes::new().u64(0);
    for &(base, segment, first, last) in allocations {
        body = body.u64(base).u16(segment).u8(first).u8(last).u32(0);
    }
    sdt(b"MCFG", 1, &body.0)
}

pub(crate) fn srat(revision: u8, entries: &[Vec<u8>]) -> Vec<u8> {
    let body = Bytes::new().u32(1).u64(0);
    sdt(b"SRAT", revision, &body.raw(&entries.concat()).0)
}

pub(crate) fn srat_apic(domain: u32, apic_id: u8, flags: u32) -> Vec<u8> {
    let [d0, d1, d2, d3] = domain.to_le_bytes();
    let head = Bytes::new().raw(&[0, 16, d0, apic_id]).u32(flags);
    head.raw(&[0, d1, d2, d3]).u32(0).0
}

pub(crate) fn srat_x2apic(domain: u32, apic_id: u32, flags: u32) -> Vec<u8> {
    let head = Bytes::new().raw(&[2, 24, 0, 0]).u32(domain).u32(apic_id);
    head.u32(flags).u32(0).u32(0).0
}

pub(crate) fn srat_memory(domain: u32, base: u64, length: u64, flags: u32) -> Vec<u8> {
    let head = Bytes::new().raw(&[1, 40]).u32(domain).u16(0);
    head.u64(base).u64(length).u32(0).u32(flags).u64(0).0
}

pub(crate) fn slit(rows: &[Vec<u8>]) -> Vec<u8> {
    let body = Bytes::new().u64(rows.len() as u64).raw(&rows.concat());
    sdt(b"SLIT", 1, &body.0)
}

pub(crate) fn hpet(base: u64, number: u8) -> Vec<u8> {
    let body = Bytes::new().u32(0x8086_a201).raw(&[0, 64, 0, 0]).u64(base);
    sdt(b"HPET", 1, &body.u8(number).u16(100).u8(0).0)
}

/// A FADT of 276 bytes with these pointers.
pub(crate) fn fadt(facs: (u32, u64), dsdt: (u32, u64)) -> Vec<u8> {
    let mut table = sdt(b"FACP", 6, &[0; 240]);
    table[36..40].copy_from_slice(&facs.0.to_le_bytes());
    table[40..44].copy_from_slice(&dsdt.0.to_le_bytes());
    table[132..140].copy_from_slice(&facs.1.to_le_bytes());
    table[140..148].copy_from_slice(&dsdt.1.to_le_bytes());
    fix_sum(&mut table, 9);
    table
}

pub(crate) fn facs() -> Vec<u8> {
    Bytes::new().raw(b"FACS").u32(64).raw(&[0; 56]).0
}

pub(crate) fn dmar(width: u8, flags: u8, structures: &[Vec<u8>]) -> Vec<u8> {
    let body = Bytes::new().raw(&[width - 1, flags]).raw(&[0; 10]);
    sdt(b"DMAR", 1, &body.raw(&structures.concat()).0)
}

/// A remapping structure: its length is filled in.
pub(crate) fn structure(kind: u16, fixed: &[u8], scopes: &[Vec<u8>]) -> Vec<u8> {
    let scopes = scopes.concat();
    let length = 4 + fixed.len() + scopes.len();
    let head = Bytes::new().u16(kind).u16(length as u16);
    head.raw(fixed).raw(&scopes).0
}

pub(crate) fn drhd(include_all: bool, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let fixed = Bytes::new().u8(include_all.into()).u8(0);
    structure(0, &fixed.u16(segment).u64(base).0, scopes)
}

pub(crate) fn rmrr(segment: u16, base: u64, limit: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let fixed = Bytes::new().u16(0).u16(segment).u64(base).u64(limit);
    structure(1, &fixed.0, scopes)
}

/// A device scope; a hop is a device and a function number.
pub(crate) fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let length = 6 + 2 * path.len();
    let head = Bytes::new().raw(&[kind, length as u8, 0, 0, id, bus]);
    path.iter()
        .fold(head, |bytes, &(device, function)| {
            bytes.raw(&[device, function])
        })
        .0
}

/// An IVRS table of these blocks.
pub(crate) fn ivrs(blocks: &[Vec<u8>]) -> Vec<u8> {
    let body = Bytes::new().u32(0x0020_3043).u64(0);
    sdt(b"IVRS", 2, &body.raw(&blocks.concat()).0)
}

/// A unit: `block` is 10h, 11h or 40h, and `function` the unit's own function.
pub(crate) fn ivhd(
    block: u8,
    segment: u16,
    function: u16,
    base: u64,
    devices: &[Vec<u8>],
) -> Vec<u8> {
    let devices = devices.concat();
    let fixed = if block == 0x10 { 24 } else { 40 };
    let head = Bytes::new()
        .u8(block)
        .u8(0xb0)
        .u16((fixed + devices.len()) as u16);
    let head = head.u16(function).u16(0x40).u64(base).u16(segment).u16(0);
    let head = match block {
        0x10 => head.u32(0x8000_0000),
        _ => head.u32(0).u64(0x22_a2c0_f000_01f2).u64(0x11),
    };
    head.raw(&devices).0
}

/// A device entry of four bytes.
pub(crate) fn device(kind: u8, id: u16, settings: u8) -> Vec<u8> {
    Bytes::new().u8(kind).u16(id).u8(settings).0
}

/// Two entries: a range and its end.
pub(crate) fn device_range(first: u16, last: u16, settings: u8) -> Vec<u8> {
    [device(3, first, settings), device(4, last, 0)].concat()
}

/// A device entry with an alias: 42h, or 43h with the end that follows it.
pub(crate) fn device_alias(first: u16, last: Option<u16>, alias: u16) -> Vec<u8> {
    let kind = if last.is_some() { 0x43 } else { 0x42 };
    let entry = Bytes::new().u8(kind).u16(first).u16(0).u16(alias).u8(0).0;
    [entry, last.map_or(Vec::new(), |last| device(4, last, 0))].concat()
}

/// An I/O APIC (variety 1) or HPET (variety 2).
pub(crate) fn special(variety: u8, handle: u8, id: u16, settings: u8) -> Vec<u8> {
    let head = Bytes::new().u8(0x48).u16(0).u8(settings).u8(handle);
    head.u16(id).u8(variety).0
}

/// A device of the namespace.
pub(crate) fn acpi_device(id: u16, hardware_id: &[u8; 8], format: u8, uid: &[u8]) -> Vec<u8> {
    let head = Bytes::new()
        .u8(0xf0)
        .u16(id)
        .u8(0x40)
        .raw(hardware_id)
        .raw(&[0; 8]);
    head.u8(format).u8(uid.len() as u8).raw(uid).0
}

/// Memory of devices: `block` is 20h, 21h or 22h.
pub(crate) fn ivmd(block: u8, flags: u8, ids: (u16, u16), base: u64, length: u64) -> Vec<u8> {
    let head = Bytes::new()
        .u8(block)
        .u8(flags)
        .u16(32)
        .u16(ids.0)
        .u16(ids.1);
    head.u64(0).u64(base).u64(length).0
}

pub(crate) const ENDPOINT: u8 = 1;
pub(crate) const BRIDGE: u8 = 2;
pub(crate) const IO_APIC: u8 = 3;
pub(crate) const HPET: u8 = 4;

/// The 64-bit entry point of SMBIOS.
pub(crate) fn smbios_entry_64(table: u64, length: u32) -> Vec<u8> {
    let head = Bytes::new().raw(b"_SM3_").raw(&[0, 24, 3, 4, 0, 1, 0]);
    let mut bytes = head.u32(length).u64(table).0;
    fix_sum(&mut bytes, 5);
    bytes
}

/// The 32-bit entry point of SMBIOS.
pub(crate) fn smbios_entry_32(table: u32, length: u16, count: u16) -> Vec<u8> {
    let tail = Bytes::new().raw(b"_DMI_").u8(0).u16(length).u32(table);
    let mut tail = tail.u16(count).u8(0x28).0;
    fix_sum(&mut tail, 5);
    let head = Bytes::new().raw(b"_SM_").raw(&[0, 31, 2, 8]).u16(200);
    let mut bytes = head.u8(0).raw(&[0; 5]).raw(&tail).0;
    fix_sum(&mut bytes, 4);
    bytes
}

pub(crate) fn smbios_structure(kind: u8, handle: u16, data: &[u8], strings: &[&str]) -> Vec<u8> {
    let head = Bytes::new().u8(kind).u8(4 + data.len() as u8).u16(handle);
    let mut bytes = head.raw(data).0;
    for string in strings {
        bytes.extend_from_slice(string.as_bytes());
        bytes.push(0);
    }
    if strings.is_empty() {
        bytes.push(0);
    }
    bytes.push(0);
    bytes
}

/// Physical memory with holes. Pieces must not overlap.
#[derive(Clone, Default)]
pub(crate) struct Memory(pub(crate) BTreeMap<u64, Vec<u8>>);

impl Memory {
    pub(crate) fn put(&mut self, at: u64, bytes: Vec<u8>) {
        self.0.insert(at, bytes);
    }
}

/// There is nothing at this address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hole(pub(crate) PhysAddr);

impl ReadPhys for Memory {
    type Error = Hole;

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), Hole> {
        for (offset, byte) in into.iter_mut().enumerate() {
            let address = at.0.wrapping_add(offset as u64);
            *byte = self
                .0
                .range(..=address)
                .next_back()
                .and_then(|(&base, bytes)| bytes.get((address - base) as usize))
                .copied()
                .ok_or(Hole(PhysAddr(address)))?;
        }
        Ok(())
    }
}
