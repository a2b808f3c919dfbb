//! Device table entries (section 2.2.2).

use handoff_abi::{DomainId, PhysAddr};

use super::registers::FRAME_MASK;

/// A device table entry: 256 bits, four words (section 2.2.2.1).
///
/// * Word 0: V, bit 0, and TV, bit 1: what follows is valid; Mode, bits 11:9: the levels of the
///   page tables, 0 for none; their root, bits 51:12; IR and IW, bits 61 and 62.
/// * Word 1: DomainID, bits 15:0; I, bit 32 (device caches); SE and SA, bits 33 and 34 (page faults
///   are not logged); IoCtl, bits 36:35; SysMgt, bits 41:40.
/// * Word 2: IV, bit 0; IntTabLen, bits 4:1: logarithm of the number of entries; IG, bit 5
///   (refused interrupts are not logged); the interrupt table, bits 51:6; passes for INIT, ExtINT
///   and NMI, bits 58:56; IntCtl, bits 61:60; passes for LINT0 and LINT1, bits 63:62.
/// * Word 3: nothing the driver uses.
///
/// An entry of zeros lets everything pass: V and IV must be set for a device to be fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceEntry(pub [u64; 4]);

impl DeviceEntry {
    /// The size in bytes.
    pub const SIZE: u64 = 32;

    /// Word 0 of a device that reaches no memory: V and TV set, Mode 0, IR and IW clear.
    pub const NO_MEMORY: u64 = 0b11;
    /// Word 2 of a device that raises no interrupt: IV set, IntCtl 00b, all passes clear.
    pub const NO_INTERRUPTS: u64 = 0b1;

    /// The entry of a device that reaches nothing.
    pub const DENIED: Self = Self([Self::NO_MEMORY, 0, Self::NO_INTERRUPTS, 0]);

    /// SA, in word 1.
    pub const SUPPRESS_PAGE_FAULTS: u64 = 1 << 34;
    /// IG, in word 2.
    pub const IGNORE_INTERRUPTS: u64 = 1 << 5;

    /// Mode, in word 0.
    pub const MODE: u64 = 7 << 9;

    const READ_WRITE: u64 = 3 << 61;
    const INTERRUPT_TABLE: u64 = 0x000f_ffff_ffff_ffc0;
    const REMAPPED: u64 = 0b10 << 60;
    const LENGTH_SHIFT: u32 = 1;

    /// Word 0 of a device in a domain with page tables of `levels` at `root`.
    #[must_use]
    pub const fn memory(root: PhysAddr, levels: u32) -> u64 {
        root.0 & FRAME_MASK | (levels as u64 & 7) << 9 | Self::READ_WRITE | Self::NO_MEMORY
    }

    /// Word 2 of a device with an interrupt table of 2^`log_entries` entries at `table`: fixed and
    /// arbitrated interrupts are remapped, all others blocked.
    #[must_use]
    pub const fn interrupts(table: PhysAddr, log_entries: u32) -> u64 {
        table.0 & Self::INTERRUPT_TABLE
            | (log_entries as u64 & 0xf) << Self::LENGTH_SHIFT
            | Self::REMAPPED
            | Self::NO_INTERRUPTS
    }

    /// Whether word 0 lets the device reach memory.
    #[must_use]
    pub const fn has_memory(self) -> bool {
        self.0[0] != Self::NO_MEMORY
    }

    /// The page tables' root.
    #[must_use]
    pub const fn root(self) -> PhysAddr {
        PhysAddr(self.0[0] & FRAME_MASK)
    }

    /// DomainID; 0 where the device has none.
    #[must_use]
    pub const fn domain(self) -> DomainId {
        DomainId(self.0[1] as u16)
    }

    /// The interrupt table; `None` where the device has none.
    #[must_use]
    pub const fn interrupt_table(self) -> Option<PhysAddr> {
        if self.0[2] & !Self::IGNORE_INTERRUPTS == Self::NO_INTERRUPTS {
            None
        } else {
            Some(PhysAddr(self.0[2] & Self::INTERRUPT_TABLE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        assert_eq!(
            DeviceEntry::memory(PhysAddr(0x1234_5000), 4),
            0x6000_0000_1234_5803
        );
        assert_eq!(
            DeviceEntry::interrupts(PhysAddr(0x7000_8000), 9),
            0x2000_0000_7000_8013
        );
        let denied = DeviceEntry::DENIED;
        assert!(!denied.has_memory());
        assert_eq!(denied.interrupt_table(), None);
        let entry = DeviceEntry([
            DeviceEntry::memory(PhysAddr(0x1234_5000), 3),
            0xabcd,
            DeviceEntry::interrupts(PhysAddr(0x7000_8000), 9) | DeviceEntry::IGNORE_INTERRUPTS,
            0,
        ]);
        assert!(entry.has_memory());
        assert_eq!(entry.root(), PhysAddr(0x1234_5000));
        assert_eq!(entry.domain(), DomainId(0xabcd));
        assert_eq!(entry.interrupt_table(), Some(PhysAddr(0x7000_8000)));
    }
}
