//! Interrupt remapping table entries and the messages that name them (sections 5.1 and 9.9).

use handoff_abi::{ApicId, InterruptTarget, RequesterId};

use crate::TriggerMode;

/// An interrupt remapping table entry: 128 bits (section 9.9).
///
/// Low half: P, bit 0; FPD, bit 1; DM, bit 2; RH, bit 3; TM, bit 4; DLM, bits 7:5; AVAIL, bits
/// 11:8; IM, bit 15; V, bits 23:16; DST, bits 63:32 (in xAPIC mode the id is in bits 47:40). High
/// half: SID, bits 15:0; SQ, bits 17:16; SVT, bits 19:18.
///
/// The entries that can be made here are of one shape: fixed delivery (DLM 000b) to one processor
/// in physical mode, from exactly one source (SVT 01b, SQ 00b). An NMI, INIT, SMI or ExtINT, or a
/// logical or broadcast destination, has no value of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptEntry {
    /// Bits 63:0: processor, vector and all else that a change of target changes.
    pub low: u64,
    /// Bits 127:64: the source.
    pub high: u64,
}

impl InterruptEntry {
    /// P, bit 0 of the low half.
    pub const PRESENT: u64 = 1;
    const LEVEL: u64 = 1 << 4;
    /// The lowest vector that is not reserved for exceptions (Intel SDM volume 3, section 12.5.2).
    const FIRST_VECTOR: u8 = 16;

    /// The present entry that sends the interrupts of `source` to `target`, or `None` where the
    /// target is not one: a vector below 16, or an APIC id that does not fit (8 bits unless
    /// `extended`) or means all processors (all ones).
    #[must_use]
    pub const fn present(
        source: RequesterId,
        target: InterruptTarget,
        trigger: TriggerMode,
        extended: bool,
    ) -> Option<Self> {
        let destination = target.destination.0;
        let field = if extended {
            if destination == u32::MAX {
                return None;
            }
            destination as u64
        } else {
            if destination >= 0xff {
                return None;
            }
            (destination as u64) << 8
        };
        if target.vector < Self::FIRST_VECTOR {
            return None;
        }
        let trigger = match trigger {
            TriggerMode::Edge => 0,
            TriggerMode::Level => Self::LEVEL,
        };
        Some(Self {
            low: field << 32 | (target.vector as u64) << 16 | trigger | Self::PRESENT,
            high: 0b01 << 18 | source.0 as u64,
        })
    }

    /// P.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.low & Self::PRESENT != 0
    }

    /// Whether both halves are zero.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.low == 0 && self.high == 0
    }

    /// SID: the source whose messages the entry accepts.
    #[must_use]
    pub const fn source(self) -> RequesterId {
        RequesterId(self.high as u16)
    }

    /// TM.
    #[must_use]
    pub const fn trigger(self) -> TriggerMode {
        if self.low & Self::LEVEL == 0 {
            TriggerMode::Edge
        } else {
            TriggerMode::Level
        }
    }

    /// DST and V, with DST as the interrupt mode has it.
    #[must_use]
    pub const fn target(self, extended: bool) -> InterruptTarget {
        let field = (self.low >> 32) as u32;
        InterruptTarget {
            destination: ApicId(if extended { field } else { field >> 8 & 0xff }),
            vector: (self.low >> 16) as u8,
        }
    }

    /// Whether the entry is one that [`present`](Self::present) makes.
    #[must_use]
    pub fn is_canonical(self, extended: bool) -> bool {
        Self::present(
            self.source(),
            self.target(extended),
            self.trigger(),
            extended,
        ) == Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(destination: u32, vector: u8) -> InterruptTarget {
        InterruptTarget {
            destination: ApicId(destination),
            vector,
        }
    }

    #[test]
    fn an_entry_has_the_bits_of_the_specification() {
        let source = RequesterId::new(3, 0x1f, 7).unwrap();
        let entry =
            InterruptEntry::present(source, target(0x21, 0x45), TriggerMode::Edge, false).unwrap();
        assert_eq!(entry.low, 0x0000_2100_0045_0001);
        assert_eq!(entry.high, 0x0004_03ff);
        let entry =
            InterruptEntry::present(source, target(0x1_0021, 0x45), TriggerMode::Level, true)
                .unwrap();
        assert_eq!(entry.low, 0x0001_0021_0045_0011);
        assert_eq!(entry.target(true), target(0x1_0021, 0x45));
    }

    #[test]
    fn targets_that_are_none_are_refused() {
        let source = RequesterId(8);
        for (extended, destination, vector) in [
            (false, 1, 15),
            (false, 255, 32),
            (false, 256, 32),
            (true, u32::MAX, 32),
        ] {
            assert_eq!(
                InterruptEntry::present(
                    source,
                    target(destination, vector),
                    TriggerMode::Edge,
                    extended
                ),
                None
            );
        }
        assert!(
            InterruptEntry::present(source, target(254, 16), TriggerMode::Edge, false).is_some()
        );
    }

    #[test]
    fn any_bit_that_widens_an_entry_is_noticed() {
        let good = InterruptEntry::present(RequesterId(8), target(1, 32), TriggerMode::Edge, false)
            .unwrap();
        assert!(good.is_canonical(false));
        // DM, RH, DLM, AVAIL, IM, reserved, FPD.
        for bit in [1, 2, 3, 5, 6, 7, 8, 11, 12, 15, 24, 31, 32, 48, 63] {
            let entry = InterruptEntry {
                low: good.low ^ 1 << bit,
                ..good
            };
            assert!(!entry.is_canonical(false), "bit {bit}");
        }
        // SQ, SVT, reserved.
        for bit in [16, 17, 18, 19, 20, 63] {
            let entry = InterruptEntry {
                high: good.high ^ 1 << bit,
                ..good
            };
            assert!(!entry.is_canonical(false), "bit {}", bit + 64);
        }
    }
}
