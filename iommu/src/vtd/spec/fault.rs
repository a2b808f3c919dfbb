//! Fault recording registers, 128 bits each (section 11.4.7.7), and fault reasons (appendix A).

use handoff_abi::RequesterId;

use crate::{Fault, FaultReason, FaultRequest};

/// A fault recording register.
///
/// Low half: FI, bits 63:12: the page, or for an interrupt its index in bits 63:48. High half:
/// SID, bits 15:0; T2, bit 28; PP, bit 31; FR, bits 39:32; PV, bits 59:40; T1, bit 62; F, bit 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FaultRecord {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl FaultRecord {
    /// The size in bytes.
    pub const SIZE: u32 = 16;
    /// Where the 32 bits with F lie, and what clears F when written there.
    pub const CLEAR: (u32, u32) = (12, 1 << 31);
    const PASID_PRESENT: u64 = 1 << 31;

    /// F: the register holds a fault that nobody has taken yet.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.high >> 63 != 0
    }

    /// What the record says.
    #[must_use]
    pub const fn decode(self) -> Fault {
        let code = (self.high >> 32) as u8;
        let address = self.low & !0xfff;
        let reason = reason(code);
        let request = if is_interrupt(code) {
            FaultRequest::Interrupt {
                index: (self.low >> 48) as u16,
            }
        } else {
            match (self.high >> 62 & 1, self.high >> 28 & 1) {
                (0, 0) => FaultRequest::Write { address },
                (0, _) => FaultRequest::PageRequest { address },
                (_, 0) => FaultRequest::Read { address },
                _ => FaultRequest::Atomic { address },
            }
        };
        Fault {
            source: RequesterId(self.high as u16),
            request,
            reason,
            code,
            // PV means something only where PP is set; units leave rubbish there otherwise.
            pasid: if self.high & Self::PASID_PRESENT != 0 {
                Some((self.high >> 40) as u32 & 0xf_ffff)
            } else {
                None
            },
        }
    }
}

/// Interrupt remapping's reasons begin at 20h.
const fn is_interrupt(code: u8) -> bool {
    code >= 0x20 && code <= 0x2f
}

/// The reasons of legacy mode (appendix A, tables of legacy-mode and interrupt-remapping faults).
const fn reason(code: u8) -> FaultReason {
    match code {
        // Root entry or context entry not present.
        0x01 | 0x02 => FaultReason::Blocked,
        0x04 => FaultReason::AddressTooWide,
        // No right to write, no right to read.
        0x05 | 0x06 => FaultReason::NotPermitted,
        // Invalid context entry; table unreadable; reserved bits.
        0x03 | 0x07..=0x0c => FaultReason::BadTable,
        0x0d => FaultReason::RequestType,
        0x0e => FaultReason::InterruptRange,
        // Index beyond the table, entry not present.
        0x21 | 0x22 => FaultReason::InterruptEntry,
        // Table unreadable, reserved bits in the entry.
        0x23 | 0x24 => FaultReason::BadTable,
        0x20 | 0x25 => FaultReason::InterruptFormat,
        0x26 => FaultReason::InterruptSource,
        _ => FaultReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_write_decodes() {
        // As QEMU 7.2 leaves it: no PASID, but rubbish in its field.
        let record = FaultRecord {
            low: 0x1234_5000,
            high: 1 << 63 | 0x0f_fff0 << 40 | 5 << 32 | 0x0300,
        };
        assert!(record.is_pending());
        assert_eq!(
            record.decode(),
            Fault {
                source: RequesterId(0x0300),
                request: FaultRequest::Write {
                    address: 0x1234_5000
                },
                reason: FaultReason::NotPermitted,
                code: 5,
                pasid: None,
            }
        );
    }

    #[test]
    fn kinds_of_requests_are_told_apart() {
        let request = |t1: u64, t2: u64| {
            FaultRecord {
                low: 0x5000,
                high: t1 << 62 | t2 << 28 | 6 << 32,
            }
            .decode()
            .request
        };
        assert_eq!(request(1, 0), FaultRequest::Read { address: 0x5000 });
        assert_eq!(request(1, 1), FaultRequest::Atomic { address: 0x5000 });
        assert_eq!(request(0, 1), FaultRequest::PageRequest { address: 0x5000 });
    }

    #[test]
    fn interrupt_faults_name_the_index() {
        let fault = FaultRecord {
            low: 0xabcd << 48,
            high: 1 << 63 | 0x26 << 32 | 0x0108,
        }
        .decode();
        assert_eq!(fault.request, FaultRequest::Interrupt { index: 0xabcd });
        assert_eq!(fault.reason, FaultReason::InterruptSource);
        assert_eq!(fault.address(), None);
    }

    #[test]
    fn a_pasid_counts_only_where_it_is_present() {
        let high = 1 << 63 | 0x1_2345 << 40 | 1 << 31;
        assert_eq!(FaultRecord { low: 0, high }.decode().pasid, Some(0x1_2345));
    }
}
