//! Host page table entries (section 2.2.3).

use handoff_abi::PhysAddr;

use crate::paging::PagingEntry;
use crate::{Access, LeafSize};

/// An entry of a host page table, 64 bits at every level (section 2.2.3).
///
/// PR, bit 0: present; Next Level, bits 11:9: the level of the table it leads to, or 0 for a leaf;
/// bits 51:12: that table or the memory; U, bit 59; FC, bit 60: the memory is accessed coherently;
/// IR and IW, bits 61 and 62: reading and writing allowed. Rights are the intersection of the
/// device table entry and all levels. A leaf lies in the table whose level is that of its size:
/// neither skipped levels nor sizes between (Next Level 7) are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PageEntry(pub u64);

impl PageEntry {
    const PRESENT: u64 = 1;
    const NEXT_LEVEL_SHIFT: u32 = 9;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const FORCE_COHERENT: u64 = 1 << 60;
    const READ: u64 = 1 << 61;
    const WRITE: u64 = 1 << 62;

    /// The entry that is not present. It allows nothing either: there are units that do not look
    /// at PR.
    pub const ABSENT: Self = Self(0);

    /// The entry, in a table of `level` (2 to 6), that leads to the table at `table`, one level
    /// down.
    #[must_use]
    pub const fn table(table: PhysAddr, level: u32) -> Self {
        let next = ((level as u64).wrapping_sub(1) & 7) << Self::NEXT_LEVEL_SHIFT;
        Self(table.0 & Self::ADDRESS | Self::READ | Self::WRITE | next | Self::PRESENT)
    }

    /// The leaf that maps memory at `to`, in a table of the level that its size has. Memory is
    /// accessed coherently, whatever the device asks for.
    #[must_use]
    pub const fn leaf(to: PhysAddr, access: Access) -> Self {
        let mut rights = 0;
        if access.contains(Access::READ) {
            rights |= Self::READ;
        }
        if access.contains(Access::WRITE) {
            rights |= Self::WRITE;
        }
        Self(to.0 & Self::ADDRESS | Self::FORCE_COHERENT | rights | Self::PRESENT)
    }

    /// PR.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Next Level.
    #[must_use]
    pub const fn next_level(self) -> u32 {
        (self.0 >> Self::NEXT_LEVEL_SHIFT) as u32 & 7
    }

    /// The next table, or the memory a leaf maps.
    #[must_use]
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.0 & Self::ADDRESS)
    }

    /// IR and IW.
    #[must_use]
    pub const fn access(self) -> Access {
        let mut access = Access::empty();
        if self.0 & Self::READ != 0 {
            access = access.union(Access::READ);
        }
        if self.0 & Self::WRITE != 0 {
            access = access.union(Access::WRITE);
        }
        access
    }
}

impl PagingEntry for PageEntry {
    fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    fn bits(self) -> u64 {
        self.0
    }

    fn table(table: PhysAddr, level: u32) -> Self {
        Self::table(table, level)
    }

    fn leaf(to: PhysAddr, _size: LeafSize, access: Access) -> Self {
        Self::leaf(to, access)
    }

    fn is_present(self) -> bool {
        self.is_present()
    }

    fn is_leaf(self, _level: u32) -> bool {
        self.next_level() == 0
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
        assert_eq!(
            PageEntry::table(PhysAddr(0x5000), 4).0,
            0x6000_0000_0000_5601
        );
        assert_eq!(
            PageEntry::table(PhysAddr(0x5000), 2).0,
            0x6000_0000_0000_5201
        );
        assert_eq!(
            PageEntry::leaf(PhysAddr(0x4000_0000), Access::READ).0,
            0x3000_0000_4000_0001
        );
        assert_eq!(
            PageEntry::leaf(PhysAddr(0x5000), Access::WRITE).0,
            0x5000_0000_0000_5001
        );
        let both = PageEntry::leaf(PhysAddr(0x5000), Access::READ_WRITE);
        assert_eq!(both.0, 0x7000_0000_0000_5001);
        assert_eq!(both.access(), Access::READ_WRITE);
        assert_eq!(both.next_level(), 0);
    }
}
