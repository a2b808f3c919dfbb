//! System Resource Affinity Table (ACPI 6.5, section 5.2.16).

use bitflags::bitflags;
use handoff_abi::{ApicId, PciFunction, PhysAddr, PhysRange, RequesterId};

use super::entry::{EntryError, FieldWidth, RawEntries, RawEntry};
use super::raw::{SratApicRaw, SratGenericRaw, SratMemoryRaw, SratRaw, SratX2ApicRaw};
use super::{Sdt, Signature, TableError};

/// Type fields of the entries (ACPI 6.5, section 5.2.16).
pub(crate) mod kind {
    pub(crate) const LOCAL_APIC: u8 = 0;
    pub(crate) const MEMORY: u8 = 1;
    pub(crate) const LOCAL_X2APIC: u8 = 2;
    pub(crate) const GENERIC_INITIATOR: u8 = 5;
    pub(crate) const GENERIC_PORT: u8 = 6;
}

bitflags! {
    /// Flags of a memory affinity entry (ACPI 6.5, table 5.62). Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MemoryAffinityFlags: u32 {
        /// The entry counts.
        const ENABLED = 1;
        /// Memory may be plugged in there.
        const HOT_PLUGGABLE = 2;
        /// The memory is non-volatile.
        const NON_VOLATILE = 4;
        const _ = !0;
    }
}

/// Memory near some processors: an entry of type 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAffinity {
    /// The proximity domain.
    pub domain: u32,
    /// The memory; what would wrap past the end of the address space is cut off.
    pub range: PhysRange,
    /// Flags.
    pub flags: MemoryAffinityFlags,
}

/// How an entry names a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DeviceHandle {
    /// A device of the namespace: `_HID` and `_UID`.
    Acpi {
        /// Its `_HID`.
        hardware_id: [u8; 8],
        /// Its `_UID`.
        uid: [u8; 4],
    },
    /// A PCI function.
    Pci(PciFunction),
    /// A handle of another type, as it stands.
    Other {
        /// The type field.
        kind: u8,
        /// The handle.
        handle: [u8; 16],
    },
}

/// A device that is near some memory: an entry of type 5 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GenericAffinity {
    /// The proximity domain.
    pub domain: u32,
    /// The device.
    pub handle: DeviceHandle,
    /// Whether the entry counts.
    pub enabled: bool,
    /// Whether it is a port that others are behind (type 6), and not an initiator (type 5).
    pub is_port: bool,
}

/// An entry of the SRAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Affinity<'a> {
    /// Type 0 or 2: a processor.
    Processor {
        /// Its local APIC id.
        apic_id: ApicId,
        /// The proximity domain.
        domain: u32,
        /// The clock domain.
        clock_domain: u32,
        /// Whether the entry counts.
        enabled: bool,
        /// Whether the entry is of type 2 (x2APIC).
        x2apic: bool,
    },
    /// Type 1: memory.
    Memory(MemoryAffinity),
    /// Type 5 or 6: a device.
    Device(GenericAffinity),
    /// Any other type; those of other architectures (3, 4 and 7) are left as they are.
    Unknown(RawEntry<'a>),
}

/// The entries of a SRAT, in order.
#[derive(Clone, Debug)]
pub struct SratEntries<'a> {
    entries: RawEntries<'a>,
    wide_domains: bool,
}

impl<'a> Iterator for SratEntries<'a> {
    type Item = Result<Affinity<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        let wide_domains = self.wide_domains;
        Some(
            self.entries
                .next()?
                .and_then(|entry| decode(entry, wide_domains)),
        )
    }
}

fn decode(entry: RawEntry<'_>, wide_domains: bool) -> Result<Affinity<'_>, EntryError> {
    let table = Signature::SRAT;
    Ok(match u8::try_from(entry.kind).unwrap_or(u8::MAX) {
        kind::LOCAL_APIC => {
            let raw: SratApicRaw = entry.fixed(table)?;
            // Revision 1 of the table left the upper 24 bits reserved, and firmware left rubbish
            // there.
            let [b1, b2, b3] = if wide_domains {
                raw.domain_high
            } else {
                [0; 3]
            };
            Affinity::Processor {
                apic_id: ApicId(u32::from(raw.apic_id)),
                domain: u32::from_le_bytes([raw.domain_low, b1, b2, b3]),
                clock_domain: raw.clock_domain.get(),
                enabled: raw.flags.get() & 1 != 0,
                x2apic: false,
            }
        }
        kind::MEMORY => {
            let raw: SratMemoryRaw = entry.fixed(table)?;
            let domain = raw.domain.get();
            let base = raw.base.get();
            let end = base.saturating_add(raw.size.get());
            Affinity::Memory(MemoryAffinity {
                domain: if wide_domains { domain } else { domain & 0xff },
                range: PhysRange::from_bounds(PhysAddr(base), PhysAddr(end)),
                flags: MemoryAffinityFlags::from_bits_retain(raw.flags.get()),
            })
        }
        kind::LOCAL_X2APIC => {
            let raw: SratX2ApicRaw = entry.fixed(table)?;
            Affinity::Processor {
                apic_id: ApicId(raw.apic_id.get()),
                domain: raw.domain.get(),
                clock_domain: raw.clock_domain.get(),
                enabled: raw.flags.get() & 1 != 0,
                x2apic: true,
            }
        }
        kind @ (kind::GENERIC_INITIATOR | kind::GENERIC_PORT) => {
            let raw: SratGenericRaw = entry.fixed(table)?;
            let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = raw.handle;
            Affinity::Device(GenericAffinity {
                domain: raw.domain.get(),
                handle: match raw.handle_type {
                    0 => DeviceHandle::Acpi {
                        hardware_id: [a, b, c, d, e, f, g, h],
                        uid: [i, j, k, l],
                    },
                    // The bus number comes first here, then device and function.
                    1 => DeviceHandle::Pci(PciFunction {
                        segment: u16::from_le_bytes([a, b]),
                        requester: RequesterId(u16::from_be_bytes([c, d])),
                    }),
                    kind => DeviceHandle::Other {
                        kind,
                        handle: raw.handle,
                    },
                },
                enabled: raw.flags.get() & 1 != 0,
                is_port: kind == kind::GENERIC_PORT,
            })
        }
        _ => Affinity::Unknown(entry),
    })
}

/// The SRAT.
#[derive(Clone, Copy, Debug)]
pub struct Srat<'a> {
    sdt: Sdt<'a>,
}

impl<'a> Srat<'a> {
    /// Views `bytes` as a SRAT.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a SRAT.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let sdt = sdt.expect(Signature::SRAT, size_of::<SratRaw>())?;
        Ok(Self { sdt })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> SratEntries<'a> {
        let offset = size_of::<SratRaw>();
        SratEntries {
            entries: RawEntries::new(
                Signature::SRAT,
                FieldWidth::Byte,
                offset,
                self.sdt.tail(offset),
            ),
            wide_domains: self.sdt.revision() >= 2,
        }
    }
}
