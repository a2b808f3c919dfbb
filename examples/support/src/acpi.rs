//! The few words of the ACPI tables that a kernel needs before it has parsed anything: found by
//! signature, each length and checksum tested, copied out. The real reader is `acpi-capture`.

use handoff_abi::{PhysAddr, PhysRange};

use crate::mmio;

/// What a kernel wants to know first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firmware {
    /// FADT: the power management timer's port.
    pub pm_timer: Option<u16>,
    /// MCFG: where configuration space of segment 0 is, its first and last bus.
    pub ecam: Option<(u64, u8, u8)>,
    /// MADT: where the first IO APIC is.
    pub io_apic: Option<u64>,
    /// MADT: ids of the processors that are enabled.
    pub processors: [Option<u8>; 16],
}

/// Looks for the tables, from the RSDP on.
///
/// # Safety
/// The window maps `mapped`, and nobody writes the tables meanwhile.
#[must_use]
pub unsafe fn find(rsdp: PhysAddr, mapped: &[PhysRange]) -> Firmware {
    let tables = Tables { mapped };
    let mut found = Firmware::default();
    let revision = tables.byte(rsdp.0 + 15).unwrap_or(0);
    let (root, width) = if revision >= 2 {
        (tables.u64(rsdp.0 + 24), 8)
    } else {
        (tables.u32(rsdp.0 + 16).map(u64::from), 4)
    };
    let Some((root, length)) = root.and_then(|root| Some((root, tables.check(root)?))) else {
        return found;
    };
    for at in (root + 36..root + u64::from(length)).step_by(width) {
        let table = if width == 8 {
            tables.u64(at)
        } else {
            tables.u32(at).map(u64::from)
        };
        let Some((table, length)) = table.and_then(|table| Some((table, tables.check(table)?)))
        else {
            continue;
        };
        let signature = tables.u32(table).map(u32::to_le_bytes);
        match signature.as_ref() {
            Some(b"FACP") if length >= 80 => {
                // PM_TMR_BLK (ACPI 6.5, section 5.2.9).
                let port = tables
                    .u32(table + 76)
                    .and_then(|port| u16::try_from(port).ok());
                found.pm_timer = port.filter(|&port| port != 0);
            }
            Some(b"MCFG") if length >= 60 => {
                found.ecam = tables.u64(table + 44).and_then(|base| {
                    let segment = tables.u32(table + 52)?;
                    let first = tables.byte(table + 54)?;
                    let last = tables.byte(table + 55)?;
                    (segment & 0xffff == 0).then_some((base, first, last))
                });
            }
            Some(b"APIC") => tables.madt(table, length, &mut found),
            _ => {}
        }
    }
    found
}

struct Tables<'a> {
    mapped: &'a [PhysRange],
}

impl Tables<'_> {
    fn byte(&self, address: u64) -> Option<u8> {
        let address = PhysAddr(address);
        if !self.mapped.iter().any(|range| range.contains(address)) {
            return None;
        }
        // SAFETY: the window maps the address, by the promise made to `find`.
        Some(unsafe { mmio::pointer(address).read_volatile() })
    }

    fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (offset, byte) in (0..).zip(&mut bytes) {
            *byte = self.byte(address.checked_add(offset)?)?;
        }
        Some(bytes)
    }

    fn u32(&self, address: u64) -> Option<u32> {
        self.bytes(address).map(u32::from_le_bytes)
    }

    fn u64(&self, address: u64) -> Option<u64> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// The length of the table there, if its checksum is right.
    fn check(&self, table: u64) -> Option<u32> {
        let length = self.u32(table.checked_add(4)?)?;
        if !(36..=0x10_0000).contains(&length) {
            return None;
        }
        let mut sum = 0_u8;
        for offset in 0..u64::from(length) {
            sum = sum.wrapping_add(self.byte(table.checked_add(offset)?)?);
        }
        (sum == 0).then_some(length)
    }

    fn madt(&self, table: u64, length: u32, found: &mut Firmware) {
        let end = table + u64::from(length);
        let mut at = table + 44;
        let mut processors = found.processors.iter_mut();
        while let (Some(kind), Some(size)) = (self.byte(at), self.byte(at + 1)) {
            if size < 2 || at + u64::from(size) > end {
                return;
            }
            match (kind, size) {
                (0, 8..) if self.u32(at + 4).is_some_and(|flags| flags & 1 != 0) => {
                    if let Some(slot) = processors.next() {
                        *slot = self.byte(at + 3);
                    }
                }
                (1, 12..) if found.io_apic.is_none() => {
                    found.io_apic = self.u32(at + 4).map(u64::from);
                }
                _ => {}
            }
            at += u64::from(size);
            if at >= end {
                return;
            }
        }
    }
}
