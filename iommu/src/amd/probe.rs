//! What a unit can do, and whether that is enough.

use handoff_abi::PhysRange;

use super::spec::{CapabilityHeader, ExtendedFeature, InterruptFormat, Register};
use super::unit::Config;
use crate::{ProbeError, RegisterIo};

/// The capability header and the extended features of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Capabilities {
    /// The header of its capability block in PCI configuration space.
    pub header: CapabilityHeader,
    /// Extended Feature Register; all clear where the unit has none.
    pub features: ExtendedFeature,
}

impl Capabilities {
    /// The smallest and the most levels that are used.
    const LEVELS: core::ops::RangeInclusive<u32> = 3..=5;
    /// The registers of a unit without performance counters (section 3.4).
    const WINDOW: u64 = 0x4000;

    /// Reads what the unit says of itself.
    ///
    /// # Errors
    /// [`ProbeError::Gone`] where the registers read as all ones, [`ProbeError::NotAnIommu`].
    pub fn read<R: RegisterIo>(
        registers: &mut R,
        header: CapabilityHeader,
    ) -> Result<Self, ProbeError> {
        if !header.is_iommu() {
            return Err(ProbeError::NotAnIommu(header));
        }
        let mut features = 0;
        if header.contains(CapabilityHeader::EFR) {
            features = registers.read64(Register::ExtendedFeature.offset());
        }
        if features == u64::MAX || registers.read64(Register::Control.offset()) == u64::MAX {
            return Err(ProbeError::Gone);
        }
        Ok(Self {
            header,
            features: ExtendedFeature::from_bits_retain(features),
        })
    }

    /// The fewest levels that are supported and translate every device address below `iova_limit`.
    #[must_use]
    pub fn levels_for(&self, iova_limit: u64) -> Option<u32> {
        Self::LEVELS
            .into_iter()
            .find(|&levels| self.supports(levels) && iova_limit <= Self::limit_of(levels))
    }

    /// Whether tables of this depth can be used.
    #[must_use]
    pub fn supports(&self, levels: u32) -> bool {
        Self::LEVELS.contains(&levels)
            && self.features.max_levels().is_some_and(|max| levels <= max)
    }

    /// The first device address that no supported tables translate.
    fn widest(&self) -> u64 {
        Self::LEVELS
            .into_iter()
            .rfind(|&levels| self.supports(levels))
            .map_or(0, Self::limit_of)
    }

    /// The first device address that tables of this depth do not translate.
    #[must_use]
    pub const fn limit_of(levels: u32) -> u64 {
        1 << (12 + 9 * levels)
    }

    /// Whether what is not present may be cached.
    #[must_use]
    pub const fn caches_not_present(&self) -> bool {
        self.header.contains(CapabilityHeader::NP_CACHE)
    }

    /// Whether one command invalidates everything.
    #[must_use]
    pub const fn invalidates_all(&self) -> bool {
        self.features.contains(ExtendedFeature::IA)
    }

    /// Checks every requirement of the driver.
    ///
    /// # Errors
    /// The first that is not met.
    pub fn check(&self, window: PhysRange, config: &Config) -> Result<u32, ProbeError> {
        let needed = match config.interrupt_format {
            InterruptFormat::Bits32 => ExtendedFeature::empty(),
            InterruptFormat::Bits128 => ExtendedFeature::GA,
            InterruptFormat::Bits128X2Apic => ExtendedFeature::GA.union(ExtendedFeature::XT),
        };
        if !self.features.contains(needed) {
            return Err(ProbeError::NoInterruptFormat(config.interrupt_format));
        }
        if window.length() < Self::WINDOW {
            return Err(ProbeError::WindowTooSmall {
                window,
                needed: Self::WINDOW,
            });
        }
        self.levels_for(config.iova_limit)
            .ok_or(ProbeError::NoAddressWidth {
                iova_limit: config.iova_limit,
                supported: self.widest(),
            })
    }
}
