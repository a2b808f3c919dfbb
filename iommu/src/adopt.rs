//! Why a unit that runs is not taken over, and what both vendors check of it alike.

use core::fmt;

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange};

use crate::vtd::spec::TranslationType;
use crate::{ArenaError, InvalidateError, ProbeError, Reach, Register, RegisterError};

/// What is wrong with an entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TableFault {
    /// It leads to something that is not a frame of the arena.
    OutsideArena(PhysAddr),
    /// It leads to a frame that something else leads to as well.
    Shared(PhysAddr),
    /// Bits are set, or clear, that the driver never leaves so. In an AMD-Vi device table entry this
    /// may be an entry that lets requests or interrupts pass.
    ForeignBits(u64),
    /// VT-d: it lets requests through untranslated or translated already.
    TranslationType(TranslationType),
    /// It has tables of another depth than the record.
    Levels,
    /// It pairs a domain id with tables that are not this domain's in the record.
    Domain(DomainId),
    /// It is a leaf of a size that the unit does not support, or is not aligned to it.
    LeafSize,
    /// It maps device addresses that the unit does not translate.
    AddressTooWide(u64),
    /// It maps memory beyond the machine's physical addresses.
    MemoryTooHigh(PhysRange),
    /// It maps the interrupt range, on one side or the other.
    InterruptRange,
    /// It maps addresses that the architecture uses for something else than memory.
    SpecialRange(PhysRange),
    /// It maps the arena.
    OwnTables(PhysRange),
}

impl fmt::Display for TableFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideArena(at) => write!(f, "leads to {at}, outside the arena"),
            Self::Shared(at) => write!(f, "leads to {at}, which has another use"),
            Self::ForeignBits(bits) => write!(f, "holds {bits:#x}"),
            Self::TranslationType(kind) => write!(f, "has the translation type {kind:?}"),
            Self::Levels => f.write_str("has tables of another depth than the record"),
            Self::Domain(domain) => write!(f, "is not the domain {domain} of the record"),
            Self::LeafSize => f.write_str("is a leaf of a size that is not possible"),
            Self::AddressTooWide(iova) => write!(f, "maps {iova:#x}, beyond the width"),
            Self::MemoryTooHigh(memory) => write!(f, "maps {memory}, which the machine lacks"),
            Self::InterruptRange => f.write_str("maps the interrupt range"),
            Self::SpecialRange(special) => write!(f, "maps {special}, which is no memory"),
            Self::OwnTables(memory) => write!(f, "maps {memory}, the unit's own tables"),
        }
    }
}

/// Why a unit was not taken over.
///
/// But for [`Register`](Self::Register) and [`Invalidate`](Self::Invalidate) nothing was written,
/// neither to registers nor to tables. In every case the unit goes on as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AdoptError {
    /// The unit is not fit for use.
    Probe(ProbeError),
    /// The arena is no arena.
    Arena(ArenaError),
    /// A field of the record has a value that it cannot have.
    Record {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A register is not as the record says, or not as a running fence has it.
    Mismatch {
        /// The register.
        register: Register,
        /// What the record says.
        recorded: u64,
        /// What the register holds.
        found: u64,
    },
    /// A table is not as the driver leaves it.
    Table {
        /// Where the entry lies.
        entry: PhysAddr,
        /// What is wrong with it.
        fault: TableFault,
    },
    /// The tables allow something that the caller does not.
    NotAllowed(Reach),
    /// A register did not do what it should have while the queue was taken over.
    Register(RegisterError),
    /// The invalidation that proves the queue taken over was not done.
    Invalidate(InvalidateError),
}

impl From<RegisterError> for AdoptError {
    fn from(error: RegisterError) -> Self {
        Self::Register(error)
    }
}

impl From<InvalidateError> for AdoptError {
    fn from(error: InvalidateError) -> Self {
        Self::Invalidate(error)
    }
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(error) => error.fmt(f),
            Self::Arena(error) => error.fmt(f),
            Self::Record { field, value } => {
                write!(f, "the record's {field} cannot be {value:#x}")
            }
            Self::Mismatch {
                register,
                recorded,
                found,
            } => write!(
                f,
                "{register} holds {found:#x}, the record says {recorded:#x}"
            ),
            Self::Table { entry, fault } => write!(f, "the entry at {entry} {fault}"),
            Self::NotAllowed(reach) => write!(f, "not allowed: {reach}"),
            Self::Register(error) => error.fmt(f),
            Self::Invalidate(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AdoptError {}

pub(crate) const fn at_fault(entry: PhysAddr, fault: TableFault) -> AdoptError {
    AdoptError::Table { entry, fault }
}

/// Where waits write. Each steward uses another place of the same frame, so that a wait of the one
/// before is not taken for one of its own.
pub(crate) struct StatusAddress(PhysAddr);

impl StatusAddress {
    const STEP: u64 = 128;

    pub(crate) fn from_record(value: u64) -> Result<Self, AdoptError> {
        if value.is_multiple_of(Self::STEP) {
            Ok(Self(PhysAddr(value)))
        } else {
            Err(AdoptError::Record {
                field: "status_address",
                value,
            })
        }
    }

    pub(crate) const fn frame(&self) -> PhysAddr {
        PhysAddr(self.0.0 & !(FRAME_SIZE - 1))
    }

    pub(crate) const fn next(&self) -> PhysAddr {
        let inside = (self.0.0 + Self::STEP) & (FRAME_SIZE - 1);
        PhysAddr(self.frame().0 | inside)
    }
}
