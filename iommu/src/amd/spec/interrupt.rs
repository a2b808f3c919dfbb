//! Interrupt remapping table entries (section 2.2.5).

use handoff_abi::{ApicId, InterruptTarget};

/// How interrupt entries look, which holds for all tables of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum InterruptFormat {
    /// 32 bits, 8-bit APIC ids (GAEn clear). Every unit has it.
    #[default]
    Bits32,
    /// 128 bits, 8-bit APIC ids (GAEn), for units with GASup.
    Bits128,
    /// 128 bits, 32-bit APIC ids (GAEn and XTEn), for units with GASup and XTSup, where the
    /// processors are in x2APIC mode.
    Bits128X2Apic,
}

impl InterruptFormat {
    /// How many entries a table has: one for each vector in each of the two delivery modes that
    /// have any.
    pub const ENTRIES: u16 = 512;
    /// The logarithm of [`ENTRIES`](Self::ENTRIES), for IntTabLen.
    pub const LOG_ENTRIES: u32 = Self::ENTRIES.trailing_zeros();
    /// Where the entries of lowest priority begin.
    pub const LOWEST_PRIORITY: u16 = 256;

    /// The size of an entry in bytes.
    #[must_use]
    pub const fn entry_size(self) -> u64 {
        match self {
            Self::Bits32 => 4,
            Self::Bits128 | Self::Bits128X2Apic => 16,
        }
    }

    /// The frames of a table.
    #[must_use]
    pub const fn table_frames(self) -> u64 {
        (Self::ENTRIES as u64 * self.entry_size()).div_ceil(handoff_abi::FRAME_SIZE)
    }
}

/// An interrupt entry. 32 bits: RemapEn, bit 0; SupIOPF, bit 1; IntType, bits 4:2; RqEoi, bit 5; DM,
/// bit 6; destination, bits 15:8; vector, bits 23:16. 128 bits: the low half begins alike, with
/// bits 23:0 of the destination in bits 31:8; in the high half the vector, bits 7:0, and bits 31:24
/// of the destination, bits 63:56. What has 32 bits is in `low`.
///
/// The entries that can be made here are of one shape: fixed delivery (IntType 000b) to one
/// processor in physical mode. An NMI, INIT, SMI or ExtINT, or a logical or broadcast destination,
/// has no value of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptEntry {
    /// Bits 63:0, or 31:0.
    pub low: u64,
    /// Bits 127:64; 0 for an entry of 32 bits.
    pub high: u64,
}

impl InterruptEntry {
    /// RemapEn.
    pub const ENABLED: u64 = 1;
    /// The lowest vector that is not reserved for exceptions (Intel SDM volume 3, section 12.5.2).
    pub const FIRST_VECTOR: u8 = 16;

    /// The entry that sends interrupts to `target`, or `None` where the target is not one: a vector
    /// below 16, or an APIC id that does not fit or means all processors (all ones).
    #[must_use]
    pub const fn enabled(target: InterruptTarget, format: InterruptFormat) -> Option<Self> {
        let destination = target.destination.0 as u64;
        let vector = target.vector as u64;
        if target.vector < Self::FIRST_VECTOR {
            return None;
        }
        match format {
            InterruptFormat::Bits32 if destination < 0xff => Some(Self {
                low: vector << 16 | destination << 8 | Self::ENABLED,
                high: 0,
            }),
            InterruptFormat::Bits128 if destination < 0xff => Some(Self {
                low: destination << 8 | Self::ENABLED,
                high: vector,
            }),
            InterruptFormat::Bits128X2Apic if destination < 0xffff_ffff => Some(Self {
                low: (destination & 0x00ff_ffff) << 8 | Self::ENABLED,
                high: destination >> 24 << 56 | vector,
            }),
            _ => None,
        }
    }

    /// RemapEn.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        self.low & Self::ENABLED != 0
    }

    /// Whether it is all zero.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.low == 0 && self.high == 0
    }

    /// Destination and vector.
    #[must_use]
    pub const fn target(self, format: InterruptFormat) -> InterruptTarget {
        let (destination, vector) = match format {
            InterruptFormat::Bits32 => (self.low >> 8 & 0xff, self.low >> 16),
            InterruptFormat::Bits128 => (self.low >> 8 & 0xff, self.high),
            InterruptFormat::Bits128X2Apic => (
                self.low >> 8 & 0x00ff_ffff | self.high >> 56 << 24,
                self.high,
            ),
        };
        InterruptTarget {
            destination: ApicId(destination as u32),
            vector: vector as u8,
        }
    }

    /// Whether the entry is one that [`enabled`](Self::enabled) makes.
    #[must_use]
    pub fn is_canonical(self, format: InterruptFormat) -> bool {
        Self::enabled(self.target(format), format) == Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [InterruptFormat; 3] = [
        InterruptFormat::Bits32,
        InterruptFormat::Bits128,
        InterruptFormat::Bits128X2Apic,
    ];

    fn target(destination: u32, vector: u8) -> InterruptTarget {
        InterruptTarget {
            destination: ApicId(destination),
            vector,
        }
    }

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        let entry = |target, format| {
            let entry = InterruptEntry::enabled(target, format).unwrap();
            assert!(entry.is_canonical(format));
            assert_eq!(entry.target(format), target);
            (entry.low, entry.high)
        };
        let near = target(0x21, 0x45);
        assert_eq!(entry(near, FORMATS[0]), (0x0045_2101, 0));
        assert_eq!(entry(near, FORMATS[1]), (0x2101, 0x45));
        assert_eq!(entry(near, FORMATS[2]), (0x2101, 0x45));
        let far = target(0x1234_5678, 0x45);
        assert_eq!(entry(far, FORMATS[2]), (0x3456_7801, 0x1200_0000_0000_0045));
    }

    #[test]
    fn targets_that_are_none_are_refused() {
        for (format, destination, vector) in [
            (FORMATS[0], 1, 15),
            (FORMATS[0], 255, 32),
            (FORMATS[1], 255, 32),
            (FORMATS[1], 256, 32),
            (FORMATS[2], u32::MAX, 32),
            (FORMATS[2], 1, 0),
        ] {
            assert_eq!(
                InterruptEntry::enabled(target(destination, vector), format),
                None
            );
        }
    }

    #[test]
    fn any_bit_that_widens_an_entry_is_noticed() {
        for format in FORMATS {
            let good = InterruptEntry::enabled(target(1, 32), format).unwrap();
            // SupIOPF, IntType, RqEoi, DM, GuestMode.
            for bit in 1..8 {
                let low = good.low ^ 1 << bit;
                assert!(!InterruptEntry { low, ..good }.is_canonical(format));
            }
            let low = good.low ^ 1 << 63;
            assert!(!InterruptEntry { low, ..good }.is_canonical(format));
            let high = good.high ^ 1 << 8;
            assert!(!InterruptEntry { high, ..good }.is_canonical(format));
        }
    }

    #[test]
    fn a_table_has_as_many_frames_as_its_entries_need() {
        assert_eq!(InterruptFormat::Bits32.table_frames(), 1);
        assert_eq!(InterruptFormat::Bits128.table_frames(), 2);
    }
}
