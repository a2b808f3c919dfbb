//! Physical addresses and ranges of them.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The size of a page frame in bytes: 4 KiB (Intel SDM volume 3, section 5.3).
pub const FRAME_SIZE: u64 = 4096;

/// A physical address of the machine, in bytes.
///
/// Any 64-bit value is representable: an address that firmware or another kernel gave is an
/// allegation until somebody has checked it against the machine.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The address `offset` bytes further on, or `None` past the end of the 64-bit space.
    #[must_use]
    pub const fn checked_add(self, offset: u64) -> Option<Self> {
        match self.0.checked_add(offset) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `alignment`, which must be a power of two; `false`
    /// for any other `alignment`.
    #[must_use]
    pub const fn is_aligned_to(self, alignment: u64) -> bool {
        alignment.is_power_of_two() && self.0 & alignment.wrapping_sub(1) == 0
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why two numbers are not a [`PhysRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AddressError {
    /// The first byte the range was to have.
    pub base: PhysAddr,
    /// The length in bytes it was to have.
    pub length: u64,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x} bytes at {} wrap past the end of the address space",
            self.length, self.base
        )
    }
}

impl core::error::Error for AddressError {}

/// A range of physical addresses: `length` bytes from `base` on.
///
/// A value of this type proves that `base + length` does not overflow 64 bits, so
/// [`end`](Self::end) is exact. The very last byte of the 64-bit space is therefore in no range;
/// no x86-64 processor has it (physical addresses end at 52 bits, AMD APM volume 2, section 5.1).
/// A range may be empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PhysRange {
    base: PhysAddr,
    length: u64,
}

impl PhysRange {
    /// The range of `length` bytes from `base` on.
    ///
    /// # Errors
    /// Where `base + length` does not fit 64 bits.
    pub const fn new(base: PhysAddr, length: u64) -> Result<Self, AddressError> {
        match base.checked_add(length) {
            Some(_) => Ok(Self { base, length }),
            None => Err(AddressError { base, length }),
        }
    }

    /// The range from `start` up to, but without, `end`; empty where `end` is not above `start`.
    #[must_use]
    pub const fn from_bounds(start: PhysAddr, end: PhysAddr) -> Self {
        Self {
            base: start,
            length: end.0.saturating_sub(start.0),
        }
    }

    /// The first byte.
    #[must_use]
    pub const fn base(self) -> PhysAddr {
        self.base
    }

    /// The length in bytes.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.length
    }

    /// The first byte after the range.
    #[must_use]
    pub const fn end(self) -> PhysAddr {
        // It does not wrap: that is what a value of this type proves.
        PhysAddr(self.base.0.wrapping_add(self.length))
    }

    /// Whether the range has no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length == 0
    }

    /// Whether `address` lies in the range.
    #[must_use]
    pub const fn contains(self, address: PhysAddr) -> bool {
        address.0 >= self.base.0 && address.0 < self.end().0
    }

    /// Whether every byte of `other` lies in the range; an empty `other` lies in every range.
    #[must_use]
    pub const fn contains_range(self, other: Self) -> bool {
        other.is_empty() || (other.base.0 >= self.base.0 && other.end().0 <= self.end().0)
    }

    /// Whether the two ranges share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The bytes that both ranges have; empty where they share none.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        let start = if self.base.0 > other.base.0 {
            self.base
        } else {
            other.base
        };
        let end = if self.end().0 < other.end().0 {
            self.end()
        } else {
            other.end()
        };
        Self::from_bounds(start, end)
    }

    /// Whether base and length are multiples of `alignment`, which must be a power of two.
    #[must_use]
    pub const fn is_aligned_to(self, alignment: u64) -> bool {
        self.base.is_aligned_to(alignment) && PhysAddr(self.length).is_aligned_to(alignment)
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base.0, self.end().0)
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = PhysRange> {
        (0_u64..64, 0_u64..64)
            .prop_map(|(base, length)| PhysRange::new(PhysAddr(base), length).unwrap())
    }

    #[test]
    fn a_range_that_wraps_is_refused() {
        assert!(PhysRange::new(PhysAddr(u64::MAX), 0).is_ok());
        assert_eq!(
            PhysRange::new(PhysAddr(u64::MAX), 1),
            Err(AddressError {
                base: PhysAddr(u64::MAX),
                length: 1
            })
        );
    }

    #[test]
    fn a_range_that_wraps_is_told_by_its_numbers() {
        let error = PhysRange::new(PhysAddr(u64::MAX), 2).unwrap_err();
        assert_eq!(
            std::format!("{error}"),
            "0x2 bytes at 0xffffffffffffffff wrap past the end of the address space"
        );
    }

    #[test]
    fn addresses_and_ranges_are_told_in_hexadecimal() {
        let range = PhysRange::new(PhysAddr(0x1000), 0x2000).unwrap();
        for text in [std::format!("{range}"), std::format!("{range:?}")] {
            assert_eq!(text, "0x1000..0x3000");
        }
        let base = range.base();
        for text in [std::format!("{base}"), std::format!("{base:?}")] {
            assert_eq!(text, "0x1000");
        }
    }

    #[test]
    fn an_address_is_aligned_to_powers_of_two_that_divide_it() {
        let aligned = |address, alignment| PhysAddr(address).is_aligned_to(alignment);
        assert!(aligned(0x3000, 0x1000) && aligned(0x3000, 1) && aligned(0, 1 << 63));
        assert!(!aligned(0x3000, 0x2000) && !aligned(0x3800, 0x1000));
        // No power of two.
        assert!(!aligned(0x3000, 0) && !aligned(0x3000, 0x3000) && !aligned(0, 3));
    }

    #[test]
    fn a_range_is_aligned_where_both_ends_are() {
        let aligned = |base, length| {
            let range = PhysRange::new(PhysAddr(base), length).unwrap();
            range.is_aligned_to(0x1000)
        };
        assert!(aligned(0x1000, 0x3000));
        assert!(!aligned(0x1800, 0x1000) && !aligned(0x1000, 0x1800) && !aligned(1, 1));
    }

    proptest! {
        #[test]
        fn set_operations_agree_with_membership(a in range(), b in range()) {
            let members = |r: PhysRange| (0..128).filter(move |&x| r.contains(PhysAddr(x)));
            let common: std::vec::Vec<_> = members(a).filter(|&x| b.contains(PhysAddr(x))).collect();
            prop_assert_eq!(members(a.intersection(b)).collect::<std::vec::Vec<_>>(), common.clone());
            prop_assert_eq!(a.overlaps(b), !common.is_empty());
            prop_assert_eq!(a.contains_range(b), common.len() as u64 == b.length());
        }
    }
}
