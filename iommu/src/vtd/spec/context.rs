//! Root and context entries (sections 9.1 and 9.3).

use handoff_abi::{DomainId, PhysAddr};

use super::registers::FRAME_MASK;

/// A root entry: 128 bits, one for each bus (section 9.1).
///
/// Low half: P, bit 0; CTP, bits 63:12, the context table. All else is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RootEntry {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl RootEntry {
    /// The present entry that leads to the context table at `table`.
    #[must_use]
    pub const fn present(table: PhysAddr) -> Self {
        Self {
            low: table.0 & FRAME_MASK | 1,
            high: 0,
        }
    }

    /// P, bit 0.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.low & 1 != 0
    }

    /// CTP, bits 63:12: the context table.
    #[must_use]
    pub const fn context_table(self) -> PhysAddr {
        PhysAddr(self.low & FRAME_MASK)
    }

    /// Whether a reserved bit is set.
    #[must_use]
    pub const fn reserved_bits_set(self) -> bool {
        self.low & 0xffe != 0 || self.high != 0
    }
}

/// How wide a domain's addresses are, and so how many levels its tables have: AW, bits 66:64 of a
/// context entry; the same number is the bit of SAGAW that says the unit supports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39 = 1,
    /// 48 bits, 4 levels.
    Bits48 = 2,
    /// 57 bits, 5 levels.
    Bits57 = 3,
}

impl AddressWidth {
    /// The widths, narrowest first.
    pub const ALL: [Self; 3] = [Self::Bits39, Self::Bits48, Self::Bits57];

    /// The number of address bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        30 + 9 * self as u32
    }

    /// The number of table levels.
    #[must_use]
    pub const fn levels(self) -> u32 {
        self as u32 + 2
    }

    /// The width with this number of levels.
    #[must_use]
    pub const fn from_levels(levels: u32) -> Option<Self> {
        match levels {
            3 => Some(Self::Bits39),
            4 => Some(Self::Bits48),
            5 => Some(Self::Bits57),
            _ => None,
        }
    }
}

/// What a context entry does with requests: TT, bits 3:2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum TranslationType {
    /// 00b: untranslated requests are translated; translated requests and translation requests
    /// (ATS) are blocked. The only type the driver writes.
    UntranslatedOnly = 0,
    /// 01b: as 00b, with ATS allowed.
    DeviceTlb = 1,
    /// 10b: requests pass untranslated.
    PassThrough = 2,
    /// 11b: reserved.
    Reserved = 3,
}

/// A context entry: 128 bits, one for each device and function of a bus (section 9.3).
///
/// Low half: P, bit 0; FPD, bit 1; TT, bits 3:2; SSPTPTR, bits 63:12, the root of the second-stage
/// tables. High half: AW, bits 2:0; DID, bits 23:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ContextEntry {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl ContextEntry {
    /// P, bit 0 of the low half.
    pub const PRESENT: u64 = 1;
    /// FPD, bit 1 of the low half: faults of this device are blocked but not recorded. Honoured
    /// in an entry that is not present, too.
    pub const FAULT_PROCESSING_DISABLE: u64 = 2;

    /// The present entry that gives a device the domain `domain` with the tables at `root`;
    /// faults are recorded and ATS is off.
    #[must_use]
    pub const fn present(domain: DomainId, root: PhysAddr, width: AddressWidth) -> Self {
        Self {
            low: root.0 & FRAME_MASK | Self::PRESENT,
            high: (domain.0 as u64) << 8 | width as u64,
        }
    }

    /// P.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.low & Self::PRESENT != 0
    }

    /// Whether nothing is left of a domain: not present, and zero but for FPD.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.low & !Self::FAULT_PROCESSING_DISABLE == 0 && self.high == 0
    }

    /// TT.
    #[must_use]
    pub const fn translation_type(self) -> TranslationType {
        match self.low >> 2 & 3 {
            0 => TranslationType::UntranslatedOnly,
            1 => TranslationType::DeviceTlb,
            2 => TranslationType::PassThrough,
            _ => TranslationType::Reserved,
        }
    }

    /// SSPTPTR: the root of the second-stage tables.
    #[must_use]
    pub const fn root(self) -> PhysAddr {
        PhysAddr(self.low & FRAME_MASK)
    }

    /// DID: the domain id that tags what the unit caches for the device.
    #[must_use]
    pub const fn domain(self) -> DomainId {
        DomainId((self.high >> 8) as u16)
    }

    /// AW, if it is one the driver knows.
    #[must_use]
    pub const fn width(self) -> Option<AddressWidth> {
        match self.high & 7 {
            1 => Some(AddressWidth::Bits39),
            2 => Some(AddressWidth::Bits48),
            3 => Some(AddressWidth::Bits57),
            _ => None,
        }
    }

    /// Whether a bit is set that is reserved, or that the specification leaves to software (bits
    /// 70:67) and the driver never sets.
    #[must_use]
    pub const fn reserved_bits_set(self) -> bool {
        self.low & 0xff0 != 0 || self.high & !0x00ff_ff07 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_entry_has_the_bits_of_the_specification() {
        let entry = ContextEntry::present(
            DomainId(0xabcd),
            PhysAddr(0x1234_5000),
            AddressWidth::Bits48,
        );
        assert_eq!((entry.low, entry.high), (0x1234_5001, 0x00ab_cd02));
        assert_eq!(entry.domain(), DomainId(0xabcd));
        assert_eq!(entry.width(), Some(AddressWidth::Bits48));
        assert_eq!(entry.translation_type(), TranslationType::UntranslatedOnly);
        assert!(!entry.reserved_bits_set());
        for (low, high) in [
            (1 << 4, 0),
            (1 << 11, 0),
            (0, 1 << 3),
            (0, 1 << 7),
            (0, 1 << 24),
        ] {
            assert!(ContextEntry { low, high }.reserved_bits_set());
        }
        assert!(ContextEntry { low: 2, high: 0 }.is_empty());
        assert!(!ContextEntry { low: 0, high: 1 }.is_empty());
    }

    #[test]
    fn widths_are_those_of_sagaw() {
        assert_eq!(
            AddressWidth::ALL.map(|w| (w as u8, w.bits(), w.levels())),
            [(1, 39, 3), (2, 48, 4), (3, 57, 5)]
        );
    }

    #[test]
    fn a_root_entry_has_the_bits_of_the_specification() {
        let entry = RootEntry::present(PhysAddr(0x7000));
        assert_eq!((entry.low, entry.high), (0x7001, 0));
        assert!(
            RootEntry {
                low: 0x7003,
                high: 0
            }
            .reserved_bits_set()
        );
        assert!(
            RootEntry {
                low: 0x7001,
                high: 1
            }
            .reserved_bits_set()
        );
    }
}
