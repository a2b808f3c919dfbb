//! DMA Remapping Reporting table (Intel VT-d Architecture Specification, section 8).
//!
//! What the table says is firmware's allegation, and firmware gets it wrong in many ways. A
//! structure that cannot be read is an error of its own and the rest is still read. What is
//! unclear makes devices [`Uncovered`]; a fence must not let such a device do DMA.

use core::fmt;

use bitflags::bitflags;
use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange, ReservedRegion, UnitDescription, UnitKind};

use super::definitions::{Definitions, UnitKey};
use super::entry::{EntryError, FieldWidth, RawEntries, RawEntry};
use super::raw::{AnddRaw, AtsrRaw, DmarRaw, DrhdRaw, RhsaRaw, RmrrRaw, SidpRaw};
use super::{Sdt, Signature, TableError};

mod findings;
mod lookup;
mod scope;

pub use findings::DmarFinding;
pub use lookup::{
    BridgeBuses, Covered, InterruptSource, InterruptSourceKind, PciTopology, Uncovered, UnitMatch,
    Via,
};
pub use scope::{ScopeError, Scopes};

bitflags! {
    /// The table's own flags (VT-d, section 8.1). Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmarFlags: u8 {
        /// The platform supports interrupt remapping.
        const INTR_REMAP = 1;
        /// Firmware asks that x2APIC mode be left alone.
        const X2APIC_OPT_OUT = 1 << 1;
        /// Firmware asks for DMA to be restricted by default.
        const DMA_CTRL_PLATFORM_OPT_IN_FLAG = 1 << 2;
        /// Firmware asks that DMA remapping be left alone.
        const DMA_REMAP_OPT_OUT = 1 << 3;
        const _ = !0;
    }
}

/// A remapping unit: DMA Remapping Hardware Unit Definition, type 0 (VT-d, section 8.3).
#[derive(Clone, Copy, Debug)]
pub struct Drhd<'a> {
    /// The unit in the vocabulary of the other crates.
    pub description: UnitDescription,
    /// Where in the table the structure begins, in bytes.
    pub offset: usize,
    scopes: &'a [u8],
}

impl<'a> Drhd<'a> {
    /// Whether there can be a unit at all: its registers are at a page boundary and neither at 0
    /// nor at the very end of the address space. Firmware writes such addresses for a unit it
    /// switched off.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let registers = self.description.registers;
        registers.base().0 != 0 && !registers.is_empty() && registers.is_aligned_to(FRAME_SIZE)
    }

    /// The devices it names.
    #[must_use]
    pub fn scopes(&self) -> Scopes<'a> {
        Scopes::new(self.scopes)
    }

    /// What the definitions of one unit have in common: segment group and registers.
    const fn key(&self) -> UnitKey {
        let UnitDescription {
            segment, registers, ..
        } = self.description;
        (segment, registers.base().0)
    }
}

/// What is wrong with a reserved memory region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RegionFault {
    /// The limit is below the base, and by more than one.
    Reversed {
        /// The base.
        base: PhysAddr,
        /// The limit, the last byte.
        limit: PhysAddr,
    },
    /// The region would reach the end of the address space.
    Wraps {
        /// The base.
        base: PhysAddr,
        /// The limit, the last byte.
        limit: PhysAddr,
    },
}

impl fmt::Display for RegionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reversed { base, limit } => {
                write!(
                    f,
                    "a reserved region ends at {limit}, before its start {base}"
                )
            }
            Self::Wraps { base, limit } => {
                write!(f, "a reserved region from {base} to {limit} wraps")
            }
        }
    }
}

impl core::error::Error for RegionFault {}

/// Memory that devices keep reaching: Reserved Memory Region Reporting, type 1 (VT-d, section
/// 8.4).
#[derive(Clone, Copy, Debug)]
pub struct Rmrr<'a> {
    /// The PCI segment group of the devices.
    pub segment: u16,
    /// The first byte.
    pub base: PhysAddr,
    /// The last byte.
    pub limit: PhysAddr,
    /// Where in the table the structure begins, in bytes.
    pub offset: usize,
    scopes: &'a [u8],
}

impl<'a> Rmrr<'a> {
    /// The region, grown to whole page frames. A limit just below the base, which real firmware
    /// leaves behind, is an empty region.
    ///
    /// # Errors
    /// Where its ends make no sense. Its devices still reach something, so a planner must not
    /// give them away as if there were no region.
    pub fn region(&self) -> Result<ReservedRegion, RegionFault> {
        let (base, limit) = (self.base, self.limit);
        if limit.checked_add(1) == Some(base) {
            return Ok(ReservedRegion {
                segment: self.segment,
                range: PhysRange::from_bounds(base, base),
            });
        }
        if limit < base {
            return Err(RegionFault::Reversed { base, limit });
        }
        let offset_in_frame = FRAME_SIZE.wrapping_sub(1);
        let start = PhysAddr(base.0 & !offset_in_frame);
        let end = (limit.0 | offset_in_frame)
            .checked_add(1)
            .map(PhysAddr)
            .ok_or(RegionFault::Wraps { base, limit })?;
        Ok(ReservedRegion {
            segment: self.segment,
            range: PhysRange::from_bounds(start, end),
        })
    }

    /// The devices it is for.
    #[must_use]
    pub fn scopes(&self) -> Scopes<'a> {
        Scopes::new(self.scopes)
    }
}

/// Root ports below which ATS may be used: type 2 (VT-d, section 8.5).
#[derive(Clone, Copy, Debug)]
pub struct Atsr<'a> {
    /// The PCI segment group.
    pub segment: u16,
    /// All root ports of the segment group, instead of those named.
    pub all_ports: bool,
    scopes: &'a [u8],
}

impl<'a> Atsr<'a> {
    /// The root ports.
    #[must_use]
    pub fn scopes(&self) -> Scopes<'a> {
        Scopes::new(self.scopes)
    }
}

/// Which memory a unit is near: Remapping Hardware Static Affinity, type 3 (VT-d, section 8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rhsa {
    /// The unit's registers.
    pub registers: PhysAddr,
    /// The proximity domain.
    pub domain: u32,
}

/// A device that does DMA and is no PCI function: ACPI Name-space Device Declaration, type 4
/// (VT-d, section 8.7).
#[derive(Clone, Copy, Debug)]
pub struct Andd<'a> {
    /// Its number; a scope of kind `AcpiNamespaceDevice` has it as the enumeration id.
    pub number: u8,
    /// Its path in the namespace, up to a NUL if there is one. Any bytes.
    pub name: &'a [u8],
}

/// Integrated devices with a translation cache: type 5 (VT-d, section 8.8).
#[derive(Clone, Copy, Debug)]
pub struct Satc<'a> {
    /// The PCI segment group.
    pub segment: u16,
    /// The devices do not work with ATS off, so they cannot be fenced without trusting them.
    pub atc_required: bool,
    scopes: &'a [u8],
}

impl<'a> Satc<'a> {
    /// The devices.
    #[must_use]
    pub fn scopes(&self) -> Scopes<'a> {
        Scopes::new(self.scopes)
    }
}

/// Properties of integrated devices: type 6 (VT-d, section 8.9).
#[derive(Clone, Copy, Debug)]
pub struct Sidp<'a> {
    /// The PCI segment group.
    pub segment: u16,
    scopes: &'a [u8],
}

impl<'a> Sidp<'a> {
    /// The devices.
    #[must_use]
    pub fn scopes(&self) -> Scopes<'a> {
        Scopes::new(self.scopes)
    }
}

/// A remapping structure.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum DmarStructure<'a> {
    /// Type 0.
    Unit(Drhd<'a>),
    /// Type 1.
    ReservedMemory(Rmrr<'a>),
    /// Type 2.
    RootPortAts(Atsr<'a>),
    /// Type 3.
    StaticAffinity(Rhsa),
    /// Type 4.
    NamespaceDevice(Andd<'a>),
    /// Type 5.
    TranslationCache(Satc<'a>),
    /// Type 6.
    DeviceProperties(Sidp<'a>),
    /// Any other type.
    Unknown(RawEntry<'a>),
}

/// The remapping structures of a DMAR table, in order.
#[derive(Clone, Debug)]
pub struct Structures<'a>(RawEntries<'a>);

impl<'a> Iterator for Structures<'a> {
    type Item = Result<DmarStructure<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(decode))
    }
}

/// The register window of a unit: `size` is the exponent of its length in pages, in newer tables.
fn registers(base: u64, size: u8) -> PhysRange {
    // Bits 3:0; bits 7:4 are reserved.
    let length = FRAME_SIZE << (size & 0xf);
    PhysRange::new(PhysAddr(base), length)
        .unwrap_or(PhysRange::from_bounds(PhysAddr(base), PhysAddr(base)))
}

fn decode(entry: RawEntry<'_>) -> Result<DmarStructure<'_>, EntryError> {
    let table = Signature::DMAR;
    Ok(match entry.kind {
        0 => {
            let raw: DrhdRaw = entry.fixed(table)?;
            DmarStructure::Unit(Drhd {
                description: UnitDescription {
                    kind: UnitKind::VtD,
                    segment: raw.segment.get(),
                    registers: registers(raw.base.get(), raw.size),
                    include_all: raw.flags & 1 != 0,
                    amd_vi: None,
                },
                offset: entry.offset,
                scopes: entry.after::<DrhdRaw>(),
            })
        }
        1 => {
            let raw: RmrrRaw = entry.fixed(table)?;
            DmarStructure::ReservedMemory(Rmrr {
                segment: raw.segment.get(),
                base: PhysAddr(raw.base.get()),
                limit: PhysAddr(raw.limit.get()),
                offset: entry.offset,
                scopes: entry.after::<RmrrRaw>(),
            })
        }
        2 => {
            let raw: AtsrRaw = entry.fixed(table)?;
            DmarStructure::RootPortAts(Atsr {
                segment: raw.segment.get(),
                all_ports: raw.flags & 1 != 0,
                scopes: entry.after::<AtsrRaw>(),
            })
        }
        3 => {
            let raw: RhsaRaw = entry.fixed(table)?;
            DmarStructure::StaticAffinity(Rhsa {
                registers: PhysAddr(raw.base.get()),
                domain: raw.domain.get(),
            })
        }
        4 => {
            let raw: AnddRaw = entry.fixed(table)?;
            let name = entry.after::<AnddRaw>();
            let name = name.split(|&byte| byte == 0).next().unwrap_or(name);
            DmarStructure::NamespaceDevice(Andd {
                number: raw.number,
                name,
            })
        }
        5 => {
            let raw: AtsrRaw = entry.fixed(table)?;
            DmarStructure::TranslationCache(Satc {
                segment: raw.segment.get(),
                atc_required: raw.flags & 1 != 0,
                scopes: entry.after::<AtsrRaw>(),
            })
        }
        6 => {
            let raw: SidpRaw = entry.fixed(table)?;
            DmarStructure::DeviceProperties(Sidp {
                segment: raw.segment.get(),
                scopes: entry.after::<SidpRaw>(),
            })
        }
        _ => DmarStructure::Unknown(entry),
    })
}

/// The DMAR table.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'a> {
    sdt: Sdt<'a>,
    width: u8,
    flags: DmarFlags,
}

impl<'a> Dmar<'a> {
    /// Views `bytes` as a DMAR table.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a DMAR table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw: DmarRaw = sdt.fixed(Signature::DMAR)?;
        Ok(Self {
            sdt,
            width: raw.host_address_width,
            flags: DmarFlags::from_bits_retain(raw.flags),
        })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// How many bits a physical address has that a device may use, as firmware says; it may be
    /// any number up to 256.
    #[must_use]
    pub fn host_address_width(&self) -> u16 {
        u16::from(self.width).saturating_add(1)
    }

    /// The table's own flags.
    #[must_use]
    pub fn flags(&self) -> DmarFlags {
        self.flags
    }

    /// The remapping structures, in order.
    #[must_use]
    pub fn structures(&self) -> Structures<'a> {
        self.structures_from(size_of::<DmarRaw>())
    }

    fn structures_from(&self, offset: usize) -> Structures<'a> {
        Structures(RawEntries::new(
            Signature::DMAR,
            FieldWidth::Word,
            offset,
            self.sdt.tail(offset),
        ))
    }

    /// Where units are defined, duplicates included, up to the limit.
    fn definitions(&self) -> Definitions {
        Definitions::new(self.structures().filter_map(|structure| match structure {
            Ok(DmarStructure::Unit(unit)) => Some((unit.key(), unit.offset)),
            _ => None,
        }))
    }

    /// The unit definition that begins at `offset`.
    fn unit_at(&self, offset: usize) -> Option<Drhd<'a>> {
        match self.structures_from(offset).next() {
            Some(Ok(DmarStructure::Unit(unit))) => Some(unit),
            _ => None,
        }
    }

    /// The units, in the table's order: a unit that is listed more than once (same segment group,
    /// same registers) counts once. The place in this order is the unit's *index*.
    pub fn units(&self) -> impl Iterator<Item = UnitDescription> + use<'a> {
        let table = *self;
        let definitions = self.definitions();
        (0..definitions.count()).filter_map(move |place| {
            let all = definitions.first_of(place)?;
            let mut all = all.filter_map(|offset| table.unit_at(offset));
            let first = all.next()?.description;
            // Any one of its definitions may say that it covers the rest.
            let include_all = first.include_all || all.any(|other| other.description.include_all);
            Some(UnitDescription {
                include_all,
                ..first
            })
        })
    }

    /// The reserved memory regions, in the table's order.
    pub fn reserved_memory(&self) -> impl Iterator<Item = Rmrr<'a>> + use<'a> {
        self.structures().filter_map(|structure| match structure {
            Ok(DmarStructure::ReservedMemory(region)) => Some(region),
            _ => None,
        })
    }
}
