//! Which unit translates for a device.

use core::fmt;

use handoff_abi::{
    DeviceScope, PciFunction, RequesterId, ReservedRegion, ScopeKind, UnitDescription,
};

use super::{Dmar, DmarStructure, Drhd, EntryError, RegionFault, ScopeError};
use crate::table::definitions::MAX_DEFINITIONS;

/// The buses behind a bridge, as its configuration space says (PCI-to-PCI Bridge Architecture
/// Specification 1.2, sections 3.2.5.3 and 3.2.5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BridgeBuses {
    /// The bus right behind the bridge.
    pub secondary: u8,
    /// The last bus behind it.
    pub subordinate: u8,
}

/// The PCI topology of the machine as it is now.
///
/// A table names a device by a path through bridges, because bus numbers can change; only the
/// bridges know where a path leads.
pub trait PciTopology {
    /// The buses behind the bridge at `function`; `None` where there is no bridge.
    fn bridge_buses(&self, function: PciFunction) -> Option<BridgeBuses>;
}

impl<T: PciTopology + ?Sized> PciTopology for &T {
    fn bridge_buses(&self, function: PciFunction) -> Option<BridgeBuses> {
        (**self).bridge_buses(function)
    }
}

/// How a unit came to cover a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Via {
    /// A device scope names it.
    Scope,
    /// A device scope names this bridge, which it lies below.
    Bridge(PciFunction),
    /// No unit names it, and the unit has `INCLUDE_PCI_ALL`.
    IncludeAll,
}

/// The unit that covers a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Covered {
    /// The unit's index: its place among [`Dmar::units`].
    pub index: usize,
    /// The unit.
    pub unit: UnitDescription,
    /// How.
    pub via: Via,
}

/// Why no unit can be said to cover a device. Such a device must not be given away, nor be allowed
/// to do DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Uncovered {
    /// No unit names it and none covers the rest of its segment group.
    NoUnit,
    /// Two units name it, or none does and both are to cover the rest: the ones with these indices.
    Conflict {
        /// The first.
        first: usize,
        /// The other.
        second: usize,
    },
    /// The unit that covers it cannot work: firmware gave it no usable registers.
    DeadUnit {
        /// Its index.
        index: usize,
    },
    /// No readable scope names it, and there are scopes that cannot be read, so that the unit that
    /// covers the rest cannot be trusted to cover this one.
    Unreadable {
        /// Where in the table the unreadable structure begins, in bytes.
        offset: usize,
    },
    /// IVRS: it is itself the unit with this index, which translates for others only.
    TheUnitItself {
        /// The index.
        index: usize,
    },
    /// IVRS: its requests are said to arrive with two different ids.
    Aliases {
        /// The first.
        first: RequesterId,
        /// The other.
        second: RequesterId,
    },
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit => f.write_str("no remapping unit covers it"),
            Self::Conflict { first, second } => {
                write!(f, "units {first} and {second} both claim it")
            }
            Self::DeadUnit { index } => {
                write!(f, "unit {index} covers it and has no usable registers")
            }
            Self::Unreadable { offset } => {
                write!(
                    f,
                    "the structure at {offset:#x} is unreadable and may name it"
                )
            }
            Self::TheUnitItself { index } => write!(f, "it is unit {index} itself"),
            Self::Aliases { first, second } => {
                write!(f, "its requests arrive as {first} or as {second}")
            }
        }
    }
}

impl core::error::Error for Uncovered {}

/// Which unit covers a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum UnitMatch {
    /// This one.
    Covered(Covered),
    /// None that could be relied on.
    Uncovered(Uncovered),
}

impl UnitMatch {
    /// The unit, if one covers the device.
    #[must_use]
    pub const fn covered(self) -> Option<Covered> {
        match self {
            Self::Covered(covered) => Some(covered),
            Self::Uncovered(_) => None,
        }
    }
}

/// What interrupts without being a PCI function of the ordinary kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InterruptSourceKind {
    /// The I/O APIC with this id in the MADT.
    IoApic(u8),
    /// The HPET block with this number.
    Hpet(u8),
}

/// An I/O APIC or HPET block: which unit remaps its interrupts, and with which id they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptSource {
    /// Which.
    pub kind: InterruptSourceKind,
    /// The unit's index: its place among [`Dmar::units`].
    pub index: usize,
    /// The unit.
    pub unit: UnitDescription,
    /// The id its interrupts come with; `None` where the path leads through something that is no
    /// bridge now.
    pub function: Option<PciFunction>,
}

/// Follows the path of a scope to the function it names.
fn resolve(scope: &DeviceScope, segment: u16, topology: &impl PciTopology) -> Option<PciFunction> {
    let mut bus = scope.start_bus;
    let mut reached = None;
    for hop in scope.path() {
        if let Some(bridge) = reached {
            let below = topology.bridge_buses(bridge)?.secondary;
            // A bridge that is not set up yet, or one that would lead back, leads nowhere. Bus
            // numbers grow on the way down, so this also ends every loop.
            if below <= bus {
                return None;
            }
            bus = below;
        }
        reached = Some(PciFunction {
            segment,
            requester: RequesterId::new(bus, hop.device, hop.function)?,
        });
    }
    reached
}

/// How a scope names `function`, if it does.
///
/// A path through something that is no bridge now leads to nothing, so it names nothing that
/// exists.
fn names(
    scope: &DeviceScope,
    segment: u16,
    function: PciFunction,
    topology: &impl PciTopology,
) -> Option<Via> {
    let with_all_below = match scope.kind {
        ScopeKind::PciEndpoint => false,
        ScopeKind::PciSubHierarchy => true,
        // An I/O APIC, an HPET and an ACPI device may be named by the id of a function that is
        // there as well; their scope says nothing about that function's DMA.
        _ => return None,
    };
    let named = resolve(scope, segment, topology)?;
    if named == function {
        return Some(Via::Scope);
    }
    if !with_all_below {
        return None;
    }
    let buses = topology.bridge_buses(named)?;
    // A bridge whose bus numbers were never set has nothing behind it.
    let below = buses.secondary > named.requester.bus()
        && (buses.secondary..=buses.subordinate).contains(&function.requester.bus());
    below.then_some(Via::Bridge(named))
}

impl<'a> Dmar<'a> {
    /// The unit that translates for `function`.
    ///
    /// A scope that names the function, or a bridge above it, wins; among bridges the nearest one.
    /// Else it is the unit with `INCLUDE_PCI_ALL` of the segment group; where there are two of these,
    /// neither can be relied on. The order of the structures does not matter. Ask for a virtual function by its physical function, and for a function
    /// behind a bridge that changes requester ids by the id that arrives.
    #[must_use]
    pub fn unit_for(&self, function: PciFunction, topology: &impl PciTopology) -> UnitMatch {
        let mut best: Option<(Drhd<'a>, Via)> = None;
        let mut conflict = None;
        let mut rest: Option<Drhd<'a>> = None;
        let mut other_rest: Option<Drhd<'a>> = None;
        let mut doubt = None;
        let mut definitions = 0_usize;
        for structure in self.structures() {
            let unit = match structure {
                Ok(DmarStructure::Unit(unit)) => unit,
                Ok(_) => continue,
                Err(error) => {
                    // Only what may have been a unit casts doubt.
                    if let Some(offset) = doubtful(&error) {
                        doubt.get_or_insert(Uncovered::Unreadable { offset });
                    }
                    continue;
                }
            };
            definitions = definitions.saturating_add(1);
            if definitions > MAX_DEFINITIONS {
                doubt.get_or_insert(Uncovered::Unreadable {
                    offset: unit.offset,
                });
                break;
            }
            if unit.description.segment != function.segment {
                continue;
            }
            if unit.description.include_all {
                match rest {
                    None => rest = Some(unit),
                    Some(rest) if rest.key() != unit.key() => other_rest = Some(unit),
                    Some(_) => {}
                }
            }
            for scope in unit.scopes() {
                let scope = match scope {
                    Ok(scope) => scope,
                    // A scope of an unknown kind names nothing that is known to do DMA.
                    Err(ScopeError::Kind { .. }) => continue,
                    Err(_) => {
                        doubt.get_or_insert(Uncovered::Unreadable {
                            offset: unit.offset,
                        });
                        continue;
                    }
                };
                let Some(via) = names(&scope, function.segment, function, topology) else {
                    continue;
                };
                match &best {
                    Some((other, other_via)) if depth(*other_via) == depth(via) => {
                        if other.key() != unit.key() {
                            conflict = Some((*other, unit, depth(via)));
                        }
                    }
                    Some((_, other_via)) if depth(*other_via) > depth(via) => {}
                    _ => best = Some((unit, via)),
                }
            }
        }
        let definitions = self.definitions();
        let conflicting = |first: &Drhd<'_>, second: &Drhd<'_>| {
            UnitMatch::Uncovered(Uncovered::Conflict {
                first: definitions.index_of(first.key()),
                second: definitions.index_of(second.key()),
            })
        };
        if let (Some((first, second, at)), Some((_, via))) = (conflict, best)
            && at == depth(via)
        {
            return conflicting(&first, &second);
        }
        let (unit, via) = match (best, doubt, rest, other_rest) {
            (Some(found), ..) => found,
            (None, Some(doubt), ..) => return UnitMatch::Uncovered(doubt),
            (None, None, Some(first), Some(second)) => return conflicting(&first, &second),
            (None, None, Some(unit), None) => (unit, Via::IncludeAll),
            (None, None, None, _) => return UnitMatch::Uncovered(Uncovered::NoUnit),
        };
        let index = definitions.index_of(unit.key());
        if !unit.is_usable() {
            return UnitMatch::Uncovered(Uncovered::DeadUnit { index });
        }
        let unit = self.units().nth(index).unwrap_or(unit.description);
        UnitMatch::Covered(Covered { index, unit, via })
    }

    /// The I/O APICs and HPET blocks that the units name, as often as the table names them.
    pub fn interrupt_sources<'t, T: PciTopology>(
        &self,
        topology: &'t T,
    ) -> impl Iterator<Item = InterruptSource> + use<'a, 't, T> {
        let table = *self;
        let definitions = self.definitions();
        let units = (0..definitions.count()).filter_map(move |place| {
            let unit = table.unit_at(definitions.offset(place)?)?;
            Some((definitions.index_of(unit.key()), unit))
        });
        units.flat_map(move |(index, unit)| {
            let segment = unit.description.segment;
            unit.scopes().flatten().filter_map(move |scope| {
                let kind = match scope.kind {
                    ScopeKind::IoApic => InterruptSourceKind::IoApic(scope.enumeration_id),
                    ScopeKind::MsiCapableHpet => InterruptSourceKind::Hpet(scope.enumeration_id),
                    _ => return None,
                };
                Some(InterruptSource {
                    kind,
                    index,
                    unit: unit.description,
                    function: resolve(&scope, segment, topology),
                })
            })
        })
    }

    /// The memory that `function` keeps reaching on firmware's behalf, or why that is unknown.
    pub fn reserved_for<'t, T: PciTopology>(
        &self,
        function: PciFunction,
        topology: &'t T,
    ) -> impl Iterator<Item = Result<ReservedRegion, RegionFault>> + use<'a, 't, T> {
        self.reserved_memory()
            .filter(move |region| {
                region.segment == function.segment
                    && region
                        .scopes()
                        .flatten()
                        .any(|scope| names(&scope, region.segment, function, topology).is_some())
            })
            .map(|region| region.region())
    }
}

/// How near a match is: a bridge further down has a higher bus number.
fn depth(via: Via) -> u16 {
    match via {
        Via::Scope => u16::MAX,
        Via::Bridge(bridge) => u16::from(bridge.requester.bus()),
        Via::IncludeAll => 0,
    }
}

/// Where a structure begins that could have been a unit.
fn doubtful(error: &EntryError) -> Option<usize> {
    match *error {
        EntryError::Short {
            kind: 0, offset, ..
        } => Some(offset),
        EntryError::Short { .. } => None,
        EntryError::Stuck { offset, .. } | EntryError::Overrun { offset, .. } => Some(offset),
    }
}
