//! I/O Virtualization Reporting Structure (AMD I/O Virtualization Technology (IOMMU)
//! Specification, section 5.2).
//!
//! The table names each unit up to three times, for software of different ages; here each unit
//! counts once, by its best block. As with DMAR, what is said is firmware's allegation: a block or
//! an entry that cannot be read is an error of its own, and the devices it was for are
//! [`Uncovered`](super::Uncovered).

use handoff_abi::{PhysAddr, UnitDescription};

use super::definitions::Definitions;
use super::entry::{EntryError, FieldWidth, RawEntries, RawEntry};
use super::raw::{IvhdExtensionRaw, IvhdRaw, IvmdRaw, IvrsRaw};
use super::{Sdt, Signature, TableError};

mod device;
mod findings;
mod lookup;
mod memory;
mod unit;

pub use device::{
    AcpiDevice, AcpiUid, DeviceError, DeviceSettings, DeviceSpan, Devices, IvhdDevice,
    SpecialDevice, SpecialKind,
};
pub use findings::IvrsFinding;
pub use lookup::{IvrsCovered, IvrsMatch};
pub use memory::{Ivmd, IvmdFlags, IvmdTarget, UnityMap};
pub use unit::{Ivhd, IvhdFlags};

/// A block of the table.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum IvrsBlock<'a> {
    /// Type 10h, 11h or 40h: a unit.
    Unit(Ivhd<'a>),
    /// Type 20h, 21h or 22h: memory that devices keep reaching.
    Memory(Ivmd),
    /// Any other type.
    Unknown(RawEntry<'a>),
}

/// The blocks of an IVRS table, in order.
#[derive(Clone, Debug)]
pub struct Blocks<'a>(RawEntries<'a>);

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<IvrsBlock<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(decode))
    }
}

fn decode(entry: RawEntry<'_>) -> Result<IvrsBlock<'_>, EntryError> {
    let table = Signature::IVRS;
    Ok(match entry.kind {
        0x10 => IvrsBlock::Unit(Ivhd::new(&entry, &entry.fixed(table)?, None)),
        0x11 | 0x40 => {
            let (raw, extension): (IvhdRaw, IvhdExtensionRaw) = entry.fixed_pair(table)?;
            IvrsBlock::Unit(Ivhd::new(&entry, &raw, Some(&extension)))
        }
        0x20..=0x22 => {
            let raw: IvmdRaw = entry.fixed(table)?;
            IvrsBlock::Memory(Ivmd::new(entry.offset, &raw))
        }
        _ => IvrsBlock::Unknown(entry),
    })
}

/// The IVRS table.
#[derive(Clone, Copy, Debug)]
pub struct Ivrs<'a> {
    sdt: Sdt<'a>,
    information: u32,
}

impl<'a> Ivrs<'a> {
    /// Views `bytes` as an IVRS table.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as an IVRS table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw: IvrsRaw = sdt.fixed(Signature::IVRS)?;
        Ok(Self {
            sdt,
            information: raw.information.get(),
        })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// `IVinfo`: bit 0 says that the feature words of the blocks of types 11h and 40h count, bit 1
    /// that firmware asks for DMA to be remapped from the start, bits 7:5 are `GVASize`, 14:8
    /// `PASize`, 21:15 `VASize`, and bit 22 is `HtAtsResv`.
    #[must_use]
    pub fn information(&self) -> u32 {
        self.information
    }

    /// `PASize`: how many bits a physical address has.
    #[must_use]
    pub fn physical_address_width(&self) -> u8 {
        (self.information >> 8 & 0x7f) as u8
    }

    /// `VASize`: how many bits an address has that a device may use.
    #[must_use]
    pub fn virtual_address_width(&self) -> u8 {
        (self.information >> 15 & 0x7f) as u8
    }

    /// The blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> Blocks<'a> {
        self.blocks_from(size_of::<IvrsRaw>())
    }

    fn blocks_from(&self, offset: usize) -> Blocks<'a> {
        Blocks(RawEntries::new(
            Signature::IVRS,
            FieldWidth::ByteAndWord,
            offset,
            self.sdt.tail(offset),
        ))
    }

    /// Where the unit blocks are that can be read, up to the limit.
    fn definitions(&self) -> Definitions {
        Definitions::new(self.blocks().filter_map(|block| match block {
            Ok(IvrsBlock::Unit(unit)) => Some((unit.key(), unit.offset)),
            _ => None,
        }))
    }

    /// The unit block that begins at `offset`.
    fn unit_at(&self, offset: usize) -> Option<Ivhd<'a>> {
        match self.blocks_from(offset).next() {
            Some(Ok(IvrsBlock::Unit(unit))) => Some(unit),
            _ => None,
        }
    }

    /// The units, in the order of their first blocks, each by its best block: one without an
    /// unreadable entry rather than one with, then the highest type, then the longest. The place
    /// in this order is the unit's *index*.
    pub fn units(&self) -> impl Iterator<Item = Ivhd<'a>> + Clone + use<'a> {
        self.units_of(self.definitions())
    }

    fn units_of(
        &self,
        definitions: Definitions,
    ) -> impl Iterator<Item = Ivhd<'a>> + Clone + use<'a> {
        let table = *self;
        (0..definitions.count()).filter_map(move |place| {
            let mut blocks = definitions
                .first_of(place)?
                .filter_map(|offset| table.unit_at(offset));
            let first = blocks.next()?;
            let ranked = (first, first.rank());
            let (best, _) = blocks.fold(ranked, |best, other| {
                let rank = other.rank();
                if rank > best.1 { (other, rank) } else { best }
            });
            Some(best)
        })
    }

    /// Whether the unit can be driven: its registers make sense and no other unit claims them.
    fn is_usable(&self, definitions: &Definitions, unit: &Ivhd<'a>) -> bool {
        let registers = unit.description.registers;
        let mut blocks = definitions.offsets().filter_map(|at| self.unit_at(at));
        unit.is_usable()
            && !blocks.any(|other| {
                other.key() != unit.key() && other.description.registers.overlaps(registers)
            })
    }

    /// The memory definitions, in the table's order.
    pub fn memory(&self) -> impl Iterator<Item = Ivmd> + use<'a> {
        self.blocks().filter_map(|block| match block {
            Ok(IvrsBlock::Memory(memory)) => Some(memory),
            _ => None,
        })
    }

    /// The units in the vocabulary of the other crates, in the order of [`units`](Self::units).
    pub fn descriptions(&self) -> impl Iterator<Item = UnitDescription> + use<'a> {
        self.units().map(|unit| unit.description)
    }
}

/// The lower 12 bits that a page's address does not have.
fn page_of(address: u64) -> PhysAddr {
    PhysAddr(address & !handoff_abi::FRAME_SIZE.wrapping_sub(1))
}
