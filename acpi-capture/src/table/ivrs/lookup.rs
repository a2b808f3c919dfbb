//! Which unit translates for a device, and by whose tables.

use handoff_abi::{PciFunction, RequesterId, UnitDescription};

use super::{
    DeviceError, DeviceSettings, DeviceSpan, Ivhd, IvhdDevice, Ivrs, IvrsBlock, SpecialDevice,
    SpecialKind, UnityMap,
};
use crate::table::definitions::MAX_DEFINITIONS;
use crate::table::{EntryError, InterruptSource, InterruptSourceKind, RegionFault, Uncovered};

/// The unit that covers a device, and how the device is to be treated there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IvrsCovered {
    /// The unit's index: its place among [`Ivrs::units`].
    pub index: usize,
    /// The unit.
    pub unit: UnitDescription,
    /// The id the device's requests arrive with: its own, or another one whose tables the unit
    /// then uses. Devices with one such id cannot be told apart.
    pub arrives_as: RequesterId,
    /// What firmware wants in the table entry: all that any entry for this device says.
    pub settings: DeviceSettings,
    /// Firmware asks that ATS be off.
    pub ats_disabled: bool,
}

/// Which unit covers a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvrsMatch {
    /// This one.
    Covered(IvrsCovered),
    /// None that could be relied on.
    Uncovered(Uncovered),
}

impl IvrsMatch {
    /// The unit, if one covers the device.
    #[must_use]
    pub const fn covered(self) -> Option<IvrsCovered> {
        match self {
            Self::Covered(covered) => Some(covered),
            Self::Uncovered(_) => None,
        }
    }
}

/// How exactly an entry speaks of a device; a greater one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    /// It speaks of every device.
    All,
    /// It speaks of a range.
    Range,
    /// It speaks of this one.
    Exact,
}

impl Precision {
    fn of(first: RequesterId, last: RequesterId) -> Self {
        match first == last {
            true => Self::Exact,
            false => Self::Range,
        }
    }
}

/// How precisely an entry names `requester`, if it does.
///
/// A special device says with which id interrupts come; like the scope of an I/O APIC in a DMAR
/// table it says nothing of the DMA of a function with the same id.
fn names(device: &IvhdDevice<'_>, requester: RequesterId) -> Option<Precision> {
    match device {
        IvhdDevice::All(_) => Some(Precision::All),
        IvhdDevice::Span(span) => span
            .contains(requester)
            .then(|| Precision::of(span.first, span.last)),
        IvhdDevice::Acpi(device) => (device.requester == requester).then_some(Precision::Exact),
        _ => None,
    }
}

/// How precisely an entry that cannot be read may have named `requester`.
fn may_name(error: &DeviceError, requester: RequesterId) -> Option<Precision> {
    let (first, last) = error.may_name();
    (first..=last)
        .contains(&requester)
        .then(|| Precision::of(first, last))
}

/// The entries of a unit that speak of one device, put together.
#[derive(Default)]
struct Merged {
    alias: Option<RequesterId>,
    other_alias: Option<RequesterId>,
    settings: DeviceSettings,
    ats_disabled: bool,
}

impl Merged {
    fn of(unit: &Ivhd<'_>, requester: RequesterId) -> Self {
        let mut merged = Self::default();
        for device in unit.devices().flatten() {
            match device {
                IvhdDevice::All(settings) => merged.settings |= settings,
                IvhdDevice::Acpi(device) if device.requester == requester => {
                    merged.settings |= device.settings;
                }
                IvhdDevice::Span(span) if span.contains(requester) => merged.add(&span),
                _ => {}
            }
        }
        merged
    }

    fn add(&mut self, span: &DeviceSpan) {
        self.settings |= span.settings;
        self.ats_disabled |= span.ats_disabled;
        // That a device has an alias holds against any number of entries that do not say so: who
        // knows of the alias may write both table entries, who does not writes the wrong one.
        match (self.alias, span.alias) {
            (None, alias) => self.alias = alias,
            (Some(alias), Some(other)) if alias != other => self.other_alias = Some(other),
            _ => {}
        }
    }
}

impl<'a> Ivrs<'a> {
    /// The unit that translates for `function`, and by whose tables.
    ///
    /// An entry for the one function wins over an entry for a range, and that over an entry for
    /// all; entries that cannot be read count as if they named whatever they may have named. The
    /// order of blocks and entries does not matter. Ask for a function behind a bridge that changes
    /// requester ids by the id that arrives.
    #[must_use]
    pub fn unit_for(&self, function: PciFunction) -> IvrsMatch {
        self.find(function)
            .map_or_else(IvrsMatch::Uncovered, IvrsMatch::Covered)
    }

    fn find(&self, function: PciFunction) -> Result<IvrsCovered, Uncovered> {
        let PciFunction { segment, requester } = function;
        let mut best: Option<(usize, Ivhd<'a>, Precision)> = None;
        let mut conflict: Option<(usize, usize, Precision)> = None;
        let mut doubt = self.lost_block().map(|offset| (offset, Precision::All));
        let definitions = self.definitions();
        for (index, unit) in self.units_of(definitions).enumerate() {
            if unit.description.segment != segment {
                continue;
            }
            if unit.requester == requester {
                return Err(Uncovered::TheUnitItself { index });
            }
            let mut named = None;
            for device in unit.devices() {
                match device {
                    Ok(device) => named = named.max(names(&device, requester)),
                    Err(error) => {
                        if let Some(precision) = may_name(&error, requester)
                            && doubt.is_none_or(|(_, other)| precision > other)
                        {
                            doubt = Some((error.offset(), precision));
                        }
                    }
                }
            }
            let Some(precision) = named else { continue };
            match best {
                Some((_, _, other)) if other > precision => {}
                Some((first, _, other)) if other == precision => {
                    conflict = Some((first, index, precision));
                }
                _ => best = Some((index, unit, precision)),
            }
        }
        let precision = best.map(|(_, _, precision)| precision);
        if let Some((offset, doubtful)) = doubt
            && Some(doubtful) >= precision
        {
            return Err(Uncovered::Unreadable { offset });
        }
        if let Some((first, second, at)) = conflict
            && Some(at) == precision
        {
            return Err(Uncovered::Conflict { first, second });
        }
        let (index, unit, _) = best.ok_or(Uncovered::NoUnit)?;
        if !self.is_usable(&definitions, &unit) {
            return Err(Uncovered::DeadUnit { index });
        }
        let merged = Merged::of(&unit, requester);
        if let (Some(first), Some(second)) = (merged.alias, merged.other_alias) {
            return Err(Uncovered::Aliases { first, second });
        }
        Ok(IvrsCovered {
            index,
            unit: unit.description,
            arrives_as: merged.alias.unwrap_or(requester),
            settings: merged.settings,
            ats_disabled: merged.ats_disabled,
        })
    }

    /// Where a block begins that cannot be read and may have been, or hide, a unit.
    fn lost_block(&self) -> Option<usize> {
        let mut definitions = 0_usize;
        self.blocks().find_map(|block| match block {
            Ok(IvrsBlock::Unit(unit)) => {
                definitions = definitions.saturating_add(1);
                (definitions > MAX_DEFINITIONS).then_some(unit.offset)
            }
            Ok(_) => None,
            Err(EntryError::Short { kind, offset, .. }) => {
                matches!(kind, 0x10 | 0x11 | 0x40).then_some(offset)
            }
            Err(EntryError::Stuck { offset, .. } | EntryError::Overrun { offset, .. }) => {
                Some(offset)
            }
        })
    }

    /// The special devices of all units, with their units' indices, as often as the units' best
    /// blocks name them.
    pub fn special_devices(
        &self,
    ) -> impl Iterator<Item = (usize, Ivhd<'a>, SpecialDevice)> + Clone + use<'a> {
        self.units().enumerate().flat_map(|(index, unit)| {
            let devices = unit.devices().flatten();
            devices.filter_map(move |device| match device {
                IvhdDevice::Special(special) => Some((index, unit, special)),
                _ => None,
            })
        })
    }

    /// The I/O APICs and HPET blocks that the units name, as often as they name them.
    pub fn interrupt_sources(&self) -> impl Iterator<Item = InterruptSource> + Clone + use<'a> {
        self.special_devices().filter_map(|(index, unit, special)| {
            let kind = match special.kind {
                SpecialKind::IoApic(id) => InterruptSourceKind::IoApic(id),
                SpecialKind::Hpet(number) => InterruptSourceKind::Hpet(number),
                SpecialKind::Other { .. } => return None,
            };
            let unit = unit.description;
            Some(InterruptSource {
                kind,
                index,
                unit,
                function: Some(PciFunction {
                    segment: unit.segment,
                    requester: special.requester,
                }),
            })
        })
    }

    /// The one source of this kind; `None` where no unit names it, or where it is named more than
    /// once and not alike, so that its interrupts cannot be fenced.
    #[must_use]
    pub fn interrupt_source(&self, kind: InterruptSourceKind) -> Option<InterruptSource> {
        let mut named = self
            .interrupt_sources()
            .filter(|source| source.kind == kind);
        let first = named.next()?;
        named.all(|other| other == first).then_some(first)
    }

    /// The memory that `function` keeps reaching on firmware's behalf, or why that is unknown. Ask
    /// for the id the function's requests arrive with, too, where it has an alias.
    pub fn reserved_for(
        &self,
        function: PciFunction,
    ) -> impl Iterator<Item = Result<UnityMap, RegionFault>> + use<'a> {
        self.memory()
            .filter(move |memory| memory.is_for(function))
            .map(|memory| memory.unity_map())
    }

    /// Whether a memory definition is lost: it, or the rest of the table, cannot be read. Then
    /// nobody knows all the memory that a device keeps reaching.
    #[must_use]
    pub fn lost_memory(&self) -> Option<EntryError> {
        self.blocks().find_map(|block| match block {
            Err(error @ EntryError::Short { kind, .. }) => {
                (0x20..=0x22).contains(&kind).then_some(error)
            }
            Err(error) => Some(error),
            Ok(_) => None,
        })
    }
}
