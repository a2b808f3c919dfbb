//! Memory that devices keep reaching (AMD IOMMU, section 5.2.2.9).

use bitflags::bitflags;
use handoff_abi::{FRAME_SIZE, PciFunction, PhysAddr, PhysRange, RequesterId, ReservedRegion};

use super::page_of;
use crate::table::RegionFault;
use crate::table::raw::IvmdRaw;

bitflags! {
    /// Flags of a memory definition. Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IvmdFlags: u8 {
        /// `Unity`: the memory is mapped where it is.
        const UNITY = 1;
        /// `IR`: devices read there.
        const READ = 1 << 1;
        /// `IW`: devices write there.
        const WRITE = 1 << 2;
        /// `ExclusionRange`: the memory is not to be translated at all.
        const EXCLUSION_RANGE = 1 << 3;
        const _ = !0;
    }
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum IvmdTarget {
    /// Type 20h: every device's.
    All,
    /// Type 21h: that of the device with this id.
    One(RequesterId),
    /// Type 22h: that of the devices from the first id to the last, in whichever order firmware
    /// wrote the two.
    Range(RequesterId, RequesterId),
}

/// A mapping that devices need: the memory, at its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UnityMap {
    /// The memory.
    pub region: ReservedRegion,
    /// Whether devices read there.
    pub read: bool,
    /// Whether devices write there.
    pub write: bool,
}

/// I/O Virtualization Memory Definition, type 20h, 21h or 22h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ivmd {
    /// The PCI segment group of the devices.
    pub segment: u16,
    /// Whose memory it is.
    pub target: IvmdTarget,
    /// How it is reached.
    pub flags: IvmdFlags,
    /// The first byte.
    pub base: PhysAddr,
    /// Bytes.
    pub length: u64,
    /// Where in the table the block begins, in bytes.
    pub offset: usize,
}

impl Ivmd {
    pub(super) fn new(offset: usize, raw: &IvmdRaw) -> Self {
        let first = RequesterId(raw.requester.get());
        let last = RequesterId(raw.last_requester.get());
        Self {
            segment: raw.segment.get(),
            target: match raw.kind {
                0x20 => IvmdTarget::All,
                0x21 => IvmdTarget::One(first),
                _ => IvmdTarget::Range(first, last),
            },
            flags: IvmdFlags::from_bits_retain(raw.flags),
            base: PhysAddr(raw.base.get()),
            length: raw.size.get(),
            offset,
        }
    }

    /// Whether it is memory of `function`.
    #[must_use]
    pub fn is_for(&self, function: PciFunction) -> bool {
        let requester = function.requester;
        self.segment == function.segment
            && match self.target {
                IvmdTarget::All => true,
                IvmdTarget::One(one) => one == requester,
                IvmdTarget::Range(a, b) => (a.min(b)..=a.max(b)).contains(&requester),
            }
    }

    /// The mapping that stands for it, grown to whole page frames; of a length of zero, empty.
    ///
    /// An exclusion range becomes a mapping for reading and writing: the unit has but one register
    /// for such ranges, and a range there is open to more devices than those it is for.
    ///
    /// # Errors
    /// Where its ends make no sense. Its devices still reach something, so a planner must not give
    /// them away as if there were no region.
    pub fn unity_map(&self) -> Result<UnityMap, RegionFault> {
        let excluded = self.flags.contains(IvmdFlags::EXCLUSION_RANGE);
        let range = match self.length {
            0 => PhysRange::from_bounds(self.base, self.base),
            length => {
                let base = self.base;
                let wraps = RegionFault::Wraps {
                    base,
                    limit: PhysAddr(base.0.wrapping_add(length).wrapping_sub(1)),
                };
                let end = base
                    .checked_add(length)
                    .and_then(|end| end.0.checked_next_multiple_of(FRAME_SIZE))
                    .ok_or(wraps)?;
                PhysRange::from_bounds(page_of(base.0), PhysAddr(end))
            }
        };
        Ok(UnityMap {
            region: ReservedRegion {
                segment: self.segment,
                range,
            },
            read: excluded || self.flags.contains(IvmdFlags::READ),
            write: excluded || self.flags.contains(IvmdFlags::WRITE),
        })
    }
}
