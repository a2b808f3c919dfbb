//! Second-stage paging entries (section 9.8).

use handoff_abi::PhysAddr;

use crate::paging::PagingEntry;
use crate::{Access, LeafSize};

/// The most levels second-stage tables have.
pub const MAX_LEVELS: u32 = 5;

/// An entry of a second-stage table, 64 bits at every level (section 9.8).
///
/// R, bit 0; W, bit 1; PS, bit 7, in levels 2 and 3: a leaf; bits 51:12: the next table or the
/// memory. An entry with neither R nor W is not present. Rights are the intersection of all
/// levels, so entries that lead to a table grant everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SecondStageEntry(pub u64);

impl SecondStageEntry {
    /// Bits 51:12.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const PAGE_SIZE: u64 = 1 << 7;
    const RIGHTS: u64 = 3;

    /// The entry that is not present.
    pub const ABSENT: Self = Self(0);

    /// The entry that leads to the table at `table`.
    #[must_use]
    pub const fn table(table: PhysAddr) -> Self {
        Self(table.0 & Self::ADDRESS | Self::RIGHTS)
    }

    /// The leaf that maps `size` bytes of memory at `to`.
    #[must_use]
    pub const fn leaf(to: PhysAddr, size: LeafSize, access: Access) -> Self {
        let page_size = match size {
            LeafSize::Size4K => 0,
            LeafSize::Size2M | LeafSize::Size1G => Self::PAGE_SIZE,
        };
        Self(to.0 & Self::ADDRESS | page_size | access.bits() as u64 & Self::RIGHTS)
    }

    /// R or W is set.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & Self::RIGHTS != 0
    }

    /// Whether an entry that lies in a table of this level (1 to 5) is a leaf.
    #[must_use]
    pub const fn is_leaf(self, level: u32) -> bool {
        level == 1 || self.0 & Self::PAGE_SIZE != 0
    }

    /// The next table, or the memory a leaf maps.
    #[must_use]
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.0 & Self::ADDRESS)
    }

    /// R and W.
    #[must_use]
    pub const fn access(self) -> Access {
        Access::from_bits_truncate(self.0 as u8)
    }

    /// Whether a bit is set that the driver never sets: all but R, W, PS and the address.
    #[must_use]
    pub const fn foreign_bits_set(self) -> bool {
        self.0 & !(Self::ADDRESS | Self::PAGE_SIZE | Self::RIGHTS) != 0
    }
}

impl PagingEntry for SecondStageEntry {
    fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    fn bits(self) -> u64 {
        self.0
    }

    fn table(table: PhysAddr, _level: u32) -> Self {
        Self::table(table)
    }

    fn leaf(to: PhysAddr, size: LeafSize, access: Access) -> Self {
        Self::leaf(to, size, access)
    }

    fn is_present(self) -> bool {
        self.is_present()
    }

    fn is_leaf(self, level: u32) -> bool {
        self.is_leaf(level)
    }

    fn address(self) -> PhysAddr {
        self.address()
    }

    fn access(self) -> Access {
        self.access()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        assert_eq!(SecondStageEntry::table(PhysAddr(0x5000)).0, 0x5003);
        assert_eq!(
            SecondStageEntry::leaf(PhysAddr(0x5000), LeafSize::Size4K, Access::READ).0,
            0x5001
        );
        assert_eq!(
            SecondStageEntry::leaf(PhysAddr(0x4000_0000), LeafSize::Size1G, Access::READ_WRITE).0,
            0x4000_0083
        );
        assert_eq!(
            SecondStageEntry::leaf(PhysAddr(0x20_0000), LeafSize::Size2M, Access::WRITE).0,
            0x20_0082
        );
        assert!(SecondStageEntry(4).foreign_bits_set());
        assert!(SecondStageEntry(1 << 11).foreign_bits_set());
        assert!(SecondStageEntry(1 << 62).foreign_bits_set());
    }

    #[test]
    fn sizes_are_those_of_the_levels() {
        assert_eq!(
            [LeafSize::Size4K, LeafSize::Size2M, LeafSize::Size1G].map(LeafSize::bytes),
            [1 << 12, 1 << 21, 1 << 30]
        );
    }
}
