//! What a unit can do, and whether that is enough.

use handoff_abi::PhysRange;

use super::spec::{AddressWidth, Capability, ExtendedCapability, FaultRecord, Register};
use super::unit::Config;
use crate::{LeafSize, ProbeError, RegisterIo};

/// CAP and ECAP of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Capabilities {
    /// CAP.
    pub capability: Capability,
    /// ECAP.
    pub extended: ExtendedCapability,
}

impl Capabilities {
    /// Reads CAP and ECAP. They lie in the first 4 KiB, so this works before it is known how long
    /// the window is.
    ///
    /// # Errors
    /// [`ProbeError::Gone`] where both read as all ones.
    pub fn read<R: RegisterIo>(registers: &mut R) -> Result<Self, ProbeError> {
        let capability = registers.read64(Register::Capability.offset());
        let extended = registers.read64(Register::ExtendedCapability.offset());
        if capability == u64::MAX && extended == u64::MAX {
            return Err(ProbeError::Gone);
        }
        Ok(Self {
            capability: Capability::from_bits_retain(capability),
            extended: ExtendedCapability::from_bits_retain(extended),
        })
    }

    /// How many bytes of register window the unit uses, in whole frames: the IOTLB registers and
    /// the fault records lie where CAP and ECAP say.
    #[must_use]
    pub fn window_length(&self) -> u64 {
        let faults = self.capability.fault_record_offset()
            + self.capability.fault_records() * FaultRecord::SIZE;
        let iotlb = self.extended.iotlb_offset() + 16;
        u64::from(faults.max(iotlb)).next_multiple_of(handoff_abi::FRAME_SIZE)
    }

    /// The narrowest supported table depth that translates every device address below
    /// `iova_limit`.
    #[must_use]
    pub fn width_for(&self, iova_limit: u64) -> Option<AddressWidth> {
        AddressWidth::ALL
            .into_iter()
            .find(|&width| self.supports(width) && iova_limit <= self.limit_of(width))
    }

    /// The first device address that no supported tables translate.
    fn widest(&self) -> u64 {
        AddressWidth::ALL
            .into_iter()
            .filter(|&width| self.supports(width))
            .map(|width| self.limit_of(width))
            .max()
            .unwrap_or(0)
    }

    /// Whether tables of this width can be used (CAP.SAGAW).
    #[must_use]
    pub fn supports(&self, width: AddressWidth) -> bool {
        self.capability.supported_widths() >> width as u8 & 1 != 0
    }

    /// The first device address that tables of this width do not translate.
    #[must_use]
    pub fn limit_of(&self, width: AddressWidth) -> u64 {
        1 << width.bits().min(self.capability.guest_address_bits())
    }

    /// The largest leaf the unit supports.
    #[must_use]
    pub const fn largest_leaf(&self) -> LeafSize {
        if !self.capability.contains(Capability::PAGES_2M) {
            LeafSize::Size4K
        } else if !self.capability.contains(Capability::PAGES_1G) {
            LeafSize::Size2M
        } else {
            LeafSize::Size1G
        }
    }

    /// Checks every requirement of the driver.
    ///
    /// # Errors
    /// The first that is not met.
    pub fn check(&self, window: PhysRange, config: &Config) -> Result<AddressWidth, ProbeError> {
        if !self.extended.contains(ExtendedCapability::QI) {
            return Err(ProbeError::NoQueuedInvalidation);
        }
        if !self.extended.contains(ExtendedCapability::IR) {
            return Err(ProbeError::NoInterruptRemapping);
        }
        if config.extended_interrupt_mode && !self.extended.contains(ExtendedCapability::EIM) {
            return Err(ProbeError::NoExtendedInterruptMode);
        }
        let needed = self.window_length();
        if window.length() < needed {
            return Err(ProbeError::WindowTooSmall { window, needed });
        }
        self.width_for(config.iova_limit)
            .ok_or(ProbeError::NoAddressWidth {
                iova_limit: config.iova_limit,
                supported: self.widest(),
            })
    }
}
