//! Versions of the wire format, and features within one.

use core::fmt;
use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A version of the wire format. The rules are in `docs/abi.md`: within one major version fields
/// are only appended and records only added; while the major version is 0, a reader accepts the
/// minor versions it names.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AbiVersion {
    /// A different major version is a different format.
    pub major: u16,
    /// A greater minor version has everything of the smaller ones.
    pub minor: u16,
}

impl AbiVersion {
    /// The first version: the header of 72 bytes.
    pub const V0_1: Self = Self { major: 0, minor: 1 };
    /// Appends [`Header::swaps`](crate::Header) and adds the records
    /// [`kind::HISTORY`](crate::kind::HISTORY) and [`kind::AMD_VI_UNIT`](crate::kind::AMD_VI_UNIT).
    pub const V0_2: Self = Self { major: 0, minor: 2 };
    /// The newest version that this crate writes.
    pub const NEWEST: Self = Self::V0_2;
    /// The oldest version that this crate reads.
    pub const OLDEST: Self = Self::V0_1;

    /// The version both sides speak: of the same major version the smaller minor one. `None` where
    /// the two have no version in common.
    #[must_use]
    pub const fn common(self, other: Self) -> Option<Self> {
        if self.major != other.major {
            return None;
        }
        Some(if self.minor < other.minor {
            self
        } else {
            other
        })
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Abilities of a kernel that the other side may ask for.
///
/// Every bit is kept, known or not: a newer peer may offer more than this crate has names for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Features(u64);

bitflags::bitflags! {
    impl Features: u64 {
        /// Adopts the queues of a workload's device where they lie, without a reset.
        const ADOPT_DEVICES = 1 << 0;
        /// Drives VT-d units from the tables in the baton.
        const VT_D = 1 << 1;
        /// Drives AMD-Vi units from the tables in the baton.
        const AMD_VI = 1 << 2;
        /// Can stay as a warm standby and take the workload back.
        const STANDBY = 1 << 3;
        const _ = !0;
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Features {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Features({=u64:#x})", self.0);
    }
}

/// What one kernel says of itself before it is believed in anything else: the versions it reads
/// and the features it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Speaks {
    /// The newest version it reads and writes.
    pub newest: AbiVersion,
    /// The oldest version it reads, of the same major version.
    pub oldest: AbiVersion,
    /// What it can do.
    pub features: Features,
}

impl Speaks {
    /// Every version that this crate knows.
    #[must_use]
    pub const fn every_version(features: Features) -> Self {
        Self {
            newest: AbiVersion::NEWEST,
            oldest: AbiVersion::OLDEST,
            features,
        }
    }

    /// Whether it reads `version`.
    #[must_use]
    pub fn reads(&self, version: AbiVersion) -> bool {
        version.major == self.newest.major && version >= self.oldest && version <= self.newest
    }
}

const _: () = {
    assert!(size_of::<AbiVersion>() == 4);
    assert!(offset_of!(AbiVersion, major) == 0);
    assert!(offset_of!(AbiVersion, minor) == 2);
    assert!(size_of::<Features>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_version_is_the_smaller_of_one_major() {
        assert_eq!(
            AbiVersion::V0_1.common(AbiVersion::V0_2),
            Some(AbiVersion::V0_1)
        );
        assert_eq!(
            AbiVersion { major: 1, minor: 0 }.common(AbiVersion::V0_2),
            None
        );
    }

    #[test]
    fn features_are_told_by_name_and_unknown_ones_by_number() {
        let features = Features::VT_D | Features::STANDBY | Features::from_bits_retain(1 << 60);
        assert_eq!(
            std::format!("{features}"),
            "VT_D | STANDBY | 0x1000000000000000"
        );
    }

    #[test]
    fn who_speaks_every_version_reads_from_the_oldest_to_the_newest() {
        let speaks = Speaks::every_version(Features::AMD_VI);
        assert_eq!(speaks.features, Features::AMD_VI);
        assert!(speaks.reads(AbiVersion::OLDEST) && speaks.reads(AbiVersion::NEWEST));
        let AbiVersion { major, minor } = AbiVersion::NEWEST;
        let later = AbiVersion {
            major,
            minor: minor + 1,
        };
        let other = AbiVersion {
            major: major + 1,
            minor,
        };
        assert!(!speaks.reads(later) && !speaks.reads(other));
    }

    #[test]
    fn bits_of_a_newer_peer_survive() {
        assert_eq!(Features::from_bits_retain(1 << 60).bits(), 1 << 60);
    }
}
