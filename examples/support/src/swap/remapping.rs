//! The remapping unit as firmware describes it, in a DMAR table (VT-d) or an IVRS (AMD-Vi).

use alloc::vec::Vec;

use acpi_capture::Capture;
use acpi_capture::table::{Dmar, Ivrs, PciTopology};
use handoff_abi::{PciFunction, PhysRange, RequesterId, UnitDescription, UnitKind};
use iommu::{ArenaNeeds, Config};

use super::devices;
use super::kernel::{Failure, failure};

/// What the unit's arena has room for: the demo machine has eight buses with eight functions, and
/// at most four domains that each map 2 GiB, some of it in small pieces. The function of every slot
/// of two more buses may have interrupts.
const NEEDS: ArenaNeeds = ArenaNeeds {
    buses: 16,
    interrupt_sources: 64,
    page_tables: 88,
    switch: true,
};

/// The table that describes the machine's remapping units.
#[derive(Clone, Copy, Debug)]
pub enum Remapping<'a> {
    /// VT-d's.
    VtD(Dmar<'a>),
    /// AMD-Vi's.
    AmdVi(Ivrs<'a>),
}

impl<'a> Remapping<'a> {
    /// The table that was captured; `None` where the machine has no remapping hardware.
    ///
    /// # Errors
    /// Where the table cannot be read, or there are tables of both.
    pub fn of(captured: &Capture<'a>) -> Result<Option<Self>, Failure> {
        match (captured.dmar(), captured.ivrs()) {
            (Some(dmar), None) => Ok(Some(Self::VtD(dmar?))),
            (None, Some(ivrs)) => Ok(Some(Self::AmdVi(ivrs?))),
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(failure!("there are a DMAR table and an IVRS")),
        }
    }

    /// As [`of`](Self::of), where the machine must have one.
    ///
    /// # Errors
    /// Where it has none that can be read.
    pub fn needed(captured: &Capture<'a>) -> Result<Self, Failure> {
        Self::of(captured)?.ok_or_else(|| failure!("there is neither a DMAR table nor an IVRS"))
    }

    /// The unit. These kernels drive one.
    ///
    /// # Errors
    /// Where the table has none.
    pub fn unit(&self) -> Result<UnitDescription, Failure> {
        match self {
            Self::VtD(dmar) => dmar.units().next(),
            Self::AmdVi(ivrs) => ivrs.descriptions().next(),
        }
        .ok_or_else(|| failure!("no unit is described where there should be one"))
    }

    /// The place among the units of the one that covers a function; `None` where none does that
    /// could be relied on.
    #[must_use]
    pub fn unit_of(&self, function: PciFunction, topology: &impl PciTopology) -> Option<u16> {
        let index = match self {
            Self::VtD(dmar) => dmar.unit_for(function, topology).covered()?.index,
            Self::AmdVi(ivrs) => ivrs.unit_for(function).covered()?.index,
        };
        u16::try_from(index).ok()
    }

    /// The memory that a function keeps reaching on firmware's behalf; `None` where that is unknown,
    /// because a part of the table that could tell cannot be read.
    #[must_use]
    pub fn reserved_for(
        &self,
        function: PciFunction,
        topology: &impl PciTopology,
    ) -> Option<Vec<PhysRange>> {
        match self {
            Self::VtD(dmar) => dmar
                .reserved_for(function, topology)
                .map(|region| Some(region.ok()?.range))
                .collect(),
            Self::AmdVi(ivrs) if ivrs.lost_memory().is_some() => None,
            Self::AmdVi(ivrs) => {
                let alias = self.alias_of(function).map(|requester| PciFunction {
                    segment: function.segment,
                    requester,
                });
                [Some(function), alias]
                    .into_iter()
                    .flatten()
                    .flat_map(|function| ivrs.reserved_for(function))
                    .map(|map| Some(map.ok()?.region.range))
                    .collect()
            }
        }
    }

    /// The id that requests of a function arrive with, where that is the unit's and not the bridges'
    /// doing.
    #[must_use]
    pub fn alias_of(&self, function: PciFunction) -> Option<RequesterId> {
        match self {
            Self::VtD(_) => None,
            Self::AmdVi(ivrs) => {
                let covered = ivrs.unit_for(function).covered()?;
                Some(covered.arrives_as).filter(|&alias| alias != function.requester)
            }
        }
    }

    /// What the driver is to know of the unit, apart from its description. Configuration space must
    /// be mapped.
    ///
    /// # Errors
    /// Where the unit's function does not answer.
    pub fn config(&self, iova_limit: u64) -> Result<Config, Failure> {
        let host_address_bits = match self {
            Self::VtD(dmar) => u8::try_from(dmar.host_address_width()).unwrap_or(0),
            Self::AmdVi(ivrs) => ivrs.physical_address_width(),
        };
        let mut config = Config {
            iova_limit,
            host_address_bits,
            ..Config::default()
        };
        let unit = self.unit()?;
        if let Some(amd_vi) = unit.amd_vi {
            let function = devices::function(PciFunction {
                segment: unit.segment,
                requester: amd_vi.function,
            })?;
            config.capability_header = function
                .config()
                .read32(usize::from(amd_vi.capability_offset & 0xfc));
        }
        Ok(config)
    }
}

/// How long the unit's arena must be, by what was captured of firmware's tables.
///
/// # Errors
/// As for [`Remapping::of`].
pub fn arena_length(captured: &Capture<'_>) -> Result<u64, Failure> {
    let kind = match Remapping::of(captured)? {
        Some(Remapping::AmdVi(_)) => UnitKind::AmdVi,
        // Without a unit nothing is in it, but a baton has one.
        Some(Remapping::VtD(_)) | None => UnitKind::VtD,
    };
    Ok(NEEDS.length(kind, &Config::default()))
}

/// A unit's vendor, as it is told to the operator.
#[must_use]
pub const fn vendor(kind: UnitKind) -> &'static str {
    match kind {
        UnitKind::AmdVi => "amd-vi",
        _ => "vtd",
    }
}
