//! What is odd about an IVRS table, for people and for planners.

use core::fmt;

use handoff_abi::RequesterId;

use super::{DeviceError, IvhdDevice, Ivrs, IvrsBlock, SpecialDevice, SpecialKind};
use crate::table::definitions::{Definitions, MAX_DEFINITIONS};
use crate::table::{EntryError, Madt, RegionFault};

/// Something odd in an IVRS table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum IvrsFinding {
    /// A block cannot be read.
    Block(EntryError),
    /// A device entry cannot be read.
    Device(DeviceError),
    /// There are more units than are read; this and later ones do not count.
    TooManyUnits {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// A unit has no usable registers, or has another unit's.
    DeadUnit {
        /// Where in the table it is defined, in bytes.
        offset: usize,
    },
    /// A block of a type the unit has had before.
    DuplicateBlock {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// A block puts the unit's registers elsewhere than the unit's best block.
    Registers {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// A unit's best block is not the one of the highest type, because that one has entries that
    /// cannot be read.
    LesserBlock {
        /// Where in the table the block is that counts, in bytes.
        offset: usize,
    },
    /// The ends of a memory definition make no sense.
    Region {
        /// Where in the table, in bytes.
        offset: usize,
        /// Why.
        fault: RegionFault,
    },
    /// A memory definition is not of whole pages.
    UnalignedRegion {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// A memory definition for a range of devices names the last one first.
    ReversedTarget {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// A block of a type that is not known.
    UnknownBlock {
        /// Where in the table, in bytes.
        offset: usize,
        /// The type field.
        kind: u16,
    },
    /// A device entry of a type that is not known.
    UnknownDevice {
        /// Where in the table, in bytes.
        offset: usize,
        /// The type field.
        kind: u8,
    },
    /// A special device is named again, with the same id or with another one.
    RepeatedSource {
        /// The index of the unit.
        index: usize,
        /// Which.
        kind: SpecialKind,
        /// The id it is said to interrupt with this time.
        requester: RequesterId,
    },
    /// A special device is an I/O APIC that the MADT does not have.
    StrayIoApic {
        /// The index of the unit.
        index: usize,
        /// The id.
        id: u8,
    },
    /// No unit names this I/O APIC of the MADT, so its interrupts cannot be fenced.
    MissingIoApic {
        /// The id.
        id: u8,
    },
}

impl fmt::Display for IvrsFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(error) => fmt::Display::fmt(error, f),
            Self::Device(error) => write!(f, "IVRS: {error}"),
            Self::TooManyUnits { offset } => {
                write!(f, "IVRS: the units from {offset:#x} on are too many")
            }
            Self::DeadUnit { offset } => {
                write!(
                    f,
                    "IVRS: the unit at {offset:#x} has no registers of its own"
                )
            }
            Self::DuplicateBlock { offset } => {
                write!(f, "IVRS: the block at {offset:#x} was there before")
            }
            Self::Registers { offset } => write!(
                f,
                "IVRS: the block at {offset:#x} puts its unit's registers elsewhere"
            ),
            Self::LesserBlock { offset } => write!(
                f,
                "IVRS: the block at {offset:#x} counts, as a better one is unreadable"
            ),
            Self::Region { offset, fault } => write!(f, "IVRS at {offset:#x}: {fault}"),
            Self::UnalignedRegion { offset } => {
                write!(f, "IVRS: the memory at {offset:#x} is not of whole pages")
            }
            Self::ReversedTarget { offset } => {
                write!(f, "IVRS: the memory at {offset:#x} is for a reversed range")
            }
            Self::UnknownBlock { offset, kind } => {
                write!(f, "IVRS: the block at {offset:#x} has type {kind:#04x}")
            }
            Self::UnknownDevice { offset, kind } => {
                write!(f, "IVRS: the entry at {offset:#x} has type {kind:#04x}")
            }
            Self::RepeatedSource {
                index,
                kind,
                requester,
            } => write!(f, "IVRS: unit {index} names {kind:?} again, as {requester}"),
            Self::StrayIoApic { index, id } => {
                write!(
                    f,
                    "IVRS: unit {index} names I/O APIC {id}, which is not there"
                )
            }
            Self::MissingIoApic { id } => write!(f, "IVRS: no unit names I/O APIC {id}"),
        }
    }
}

impl Ivrs<'_> {
    /// Everything odd in the table: blocks in order, then units, then interrupt sources, these
    /// against the MADT if there is one. Nothing here stops the rest from being used;
    /// [`unit_for`](Self::unit_for) has already drawn the conclusions for devices.
    pub fn findings(&self, madt: Option<&Madt<'_>>, mut report: impl FnMut(IvrsFinding)) {
        let definitions = self.definitions();
        let mut count = 0_usize;
        for block in self.blocks() {
            match block {
                Err(error) => report(IvrsFinding::Block(error)),
                Ok(IvrsBlock::Unit(unit)) => {
                    let offset = unit.offset;
                    count = count.saturating_add(1);
                    if count > MAX_DEFINITIONS {
                        report(IvrsFinding::TooManyUnits { offset });
                        return;
                    }
                    let mut earlier = definitions
                        .of(unit.key())
                        .take_while(|&other| other < offset)
                        .filter_map(|other| self.unit_at(other));
                    if earlier.any(|other| other.block == unit.block) {
                        report(IvrsFinding::DuplicateBlock { offset });
                    }
                    for device in unit.devices() {
                        match device {
                            Err(error) => report(IvrsFinding::Device(error)),
                            Ok(IvhdDevice::Unknown { offset, kind }) => {
                                report(IvrsFinding::UnknownDevice { offset, kind });
                            }
                            Ok(_) => {}
                        }
                    }
                }
                Ok(IvrsBlock::Memory(memory)) => {
                    let offset = memory.offset;
                    match memory.unity_map() {
                        Err(fault) => report(IvrsFinding::Region { offset, fault }),
                        Ok(map)
                            if map.region.range.base() != memory.base
                                || map.region.range.length() != memory.length =>
                        {
                            report(IvrsFinding::UnalignedRegion { offset });
                        }
                        Ok(_) => {}
                    }
                    if let super::IvmdTarget::Range(first, last) = memory.target
                        && last < first
                    {
                        report(IvrsFinding::ReversedTarget { offset });
                    }
                }
                Ok(IvrsBlock::Unknown(entry)) => report(IvrsFinding::UnknownBlock {
                    offset: entry.offset,
                    kind: entry.kind,
                }),
            }
        }
        self.unit_findings(&definitions, &mut report);
        self.source_findings(madt, &mut report);
    }

    fn unit_findings(&self, definitions: &Definitions, report: &mut impl FnMut(IvrsFinding)) {
        for unit in self.units() {
            let offset = unit.offset;
            if !self.is_usable(definitions, &unit) {
                report(IvrsFinding::DeadUnit { offset });
            }
            let blocks = definitions
                .of(unit.key())
                .filter_map(|offset| self.unit_at(offset));
            for other in blocks.clone() {
                if other.description.registers.base() != unit.description.registers.base() {
                    report(IvrsFinding::Registers {
                        offset: other.offset,
                    });
                }
            }
            if blocks.clone().any(|other| other.block > unit.block) {
                report(IvrsFinding::LesserBlock { offset });
            }
        }
    }

    /// One pass over the sources and one over the MADT, however many there are: what was seen is
    /// kept as a bit for each of the 256 handles.
    fn source_findings(&self, madt: Option<&Madt<'_>>, report: &mut impl FnMut(IvrsFinding)) {
        let io_apics = || madt.iter().flat_map(|madt| madt.io_apics());
        let mut present = Handles::default();
        for io_apic in io_apics() {
            present.insert(io_apic.id);
        }
        let (mut named, mut hpets) = (Handles::default(), Handles::default());
        for (index, _, special) in self.special_devices() {
            let SpecialDevice {
                kind, requester, ..
            } = special;
            let repeated = match kind {
                SpecialKind::IoApic(id) => !named.insert(id),
                SpecialKind::Hpet(number) => !hpets.insert(number),
                SpecialKind::Other { .. } => false,
            };
            if repeated {
                report(IvrsFinding::RepeatedSource {
                    index,
                    kind,
                    requester,
                });
            }
            if let SpecialKind::IoApic(id) = kind
                && madt.is_some()
                && !present.contains(id)
            {
                report(IvrsFinding::StrayIoApic { index, id });
            }
        }
        for io_apic in io_apics() {
            let id = io_apic.id;
            if !named.contains(id) {
                report(IvrsFinding::MissingIoApic { id });
            }
        }
    }
}

/// A set of handles.
#[derive(Default)]
struct Handles([u64; 4]);

impl Handles {
    fn contains(&self, handle: u8) -> bool {
        let word = self.0.get(usize::from(handle >> 6));
        word.is_some_and(|word| word >> (handle & 0x3f) & 1 != 0)
    }

    /// Whether it was not there before.
    fn insert(&mut self, handle: u8) -> bool {
        let new = !self.contains(handle);
        if let Some(word) = self.0.get_mut(usize::from(handle >> 6)) {
            *word |= 1 << (handle & 0x3f);
        }
        new
    }
}
