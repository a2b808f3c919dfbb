//! What is odd about a DMAR table, for people and for planners.

use core::fmt;

use super::{Dmar, DmarStructure, EntryError, RegionFault, ScopeError};
use crate::table::definitions::MAX_DEFINITIONS;

/// Something odd in a DMAR table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DmarFinding {
    /// A structure cannot be read.
    Structure(EntryError),
    /// A device scope cannot be read.
    Scope {
        /// Where in the table its structure begins, in bytes.
        offset: usize,
        /// Why.
        error: ScopeError,
    },
    /// There are more unit definitions than are read; this and later ones do not count.
    TooManyUnits {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// A unit has no usable registers.
    DeadUnit {
        /// Where in the table it is defined, in bytes.
        offset: usize,
    },
    /// A unit is defined again.
    DuplicateUnit {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// Another unit is to cover the rest of the segment group, too; none of them can be relied on.
    SecondIncludeAll {
        /// Where in the table, in bytes.
        offset: usize,
    },
    /// The ends of a reserved region make no sense.
    Region {
        /// Where in the table, in bytes.
        offset: usize,
        /// Why.
        fault: RegionFault,
    },
    /// A structure of a type that is not known.
    UnknownStructure {
        /// Where in the table, in bytes.
        offset: usize,
        /// The type field.
        kind: u16,
    },
}

impl fmt::Display for DmarFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Structure(error) => fmt::Display::fmt(error, f),
            Self::Scope { offset, error } => write!(f, "DMAR at {offset:#x}: {error}"),
            Self::TooManyUnits { offset } => {
                write!(f, "DMAR: the units from {offset:#x} on are too many")
            }
            Self::DeadUnit { offset } => {
                write!(f, "DMAR: the unit at {offset:#x} has no usable registers")
            }
            Self::DuplicateUnit { offset } => {
                write!(f, "DMAR: the unit at {offset:#x} was defined before")
            }
            Self::SecondIncludeAll { offset } => write!(
                f,
                "DMAR: the unit at {offset:#x} is not the first that is to cover the rest of its segment, which is \
                 uncovered"
            ),
            Self::Region { offset, fault } => write!(f, "DMAR at {offset:#x}: {fault}"),
            Self::UnknownStructure { offset, kind } => {
                write!(f, "DMAR: the structure at {offset:#x} has type {kind}")
            }
        }
    }
}

impl Dmar<'_> {
    /// Everything odd in the table, in its order. Nothing here stops the rest from being used;
    /// [`unit_for`](Self::unit_for) has already drawn the conclusions for devices.
    pub fn findings(&self, mut report: impl FnMut(DmarFinding)) {
        let definitions = self.definitions();
        let mut count = 0_usize;
        for structure in self.structures() {
            let structure = match structure {
                Ok(structure) => structure,
                Err(error) => {
                    report(DmarFinding::Structure(error));
                    continue;
                }
            };
            let (offset, scopes) = match structure {
                DmarStructure::Unit(unit) => {
                    let offset = unit.offset;
                    count = count.saturating_add(1);
                    if count > MAX_DEFINITIONS {
                        report(DmarFinding::TooManyUnits { offset });
                        return;
                    }
                    if !unit.is_usable() {
                        report(DmarFinding::DeadUnit { offset });
                    }
                    let earlier = |&other: &usize| other < offset;
                    if definitions.of(unit.key()).any(|other| earlier(&other)) {
                        report(DmarFinding::DuplicateUnit { offset });
                    } else if unit.description.include_all
                        && definitions
                            .offsets()
                            .take_while(earlier)
                            .filter_map(|offset| self.unit_at(offset))
                            .any(|other| {
                                other.description.include_all
                                    && other.description.segment == unit.description.segment
                            })
                    {
                        report(DmarFinding::SecondIncludeAll { offset });
                    }
                    (offset, unit.scopes())
                }
                DmarStructure::ReservedMemory(region) => {
                    let offset = region.offset;
                    if let Err(fault) = region.region() {
                        report(DmarFinding::Region { offset, fault });
                    }
                    (offset, region.scopes())
                }
                DmarStructure::Unknown(entry) => {
                    report(DmarFinding::UnknownStructure {
                        offset: entry.offset,
                        kind: entry.kind,
                    });
                    continue;
                }
                _ => continue,
            };
            for error in scopes.filter_map(Result::err) {
                report(DmarFinding::Scope { offset, error });
            }
        }
    }
}
