//! Event log entries, 128 bits each (section 2.5).

use handoff_abi::RequesterId;

use crate::{Fault, FaultReason, FaultRequest};

/// An event log entry.
///
/// Low half: DeviceID, bits 15:0; DomainID (or part of a PASID), bits 47:32; flags, bits 59:48; the
/// code, bits 63:60. High half: the address. Flags of an I/O page fault: GN, bit 48; I, bit 51: an
/// interrupt; PR, bit 52: the page is present, the interrupt remapped; RW, bit 53: a write, where PR
/// is set; PE, bit 54: not permitted; RZ, bit 55: a reserved bit is set or a level impossible; TR, bit 56: a request
/// for a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Event {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum EventKind {
    /// A request that was refused.
    Fault(Fault),
    /// A command that the unit could not execute (ILLEGAL_COMMAND_ERROR, COMMAND_HARDWARE_ERROR);
    /// the buffer stopped there.
    Command,
    /// Anything else.
    Other,
}

impl Event {
    const ILLEGAL_DEVICE_ENTRY: u8 = 1;
    const PAGE_FAULT: u8 = 2;
    const DEVICE_TABLE_ERROR: u8 = 3;
    const PAGE_TABLE_ERROR: u8 = 4;
    const ILLEGAL_COMMAND: u8 = 5;
    const COMMAND_ERROR: u8 = 6;
    const DEVICE_CACHE_TIMEOUT: u8 = 7;
    const INVALID_REQUEST: u8 = 8;

    const GUEST: u64 = 1 << 48;
    const INTERRUPT: u64 = 1 << 51;
    const PRESENT: u64 = 1 << 52;
    const WRITE: u64 = 1 << 53;
    const RESERVED_BIT: u64 = 1 << 55;
    const TRANSLATION: u64 = 1 << 56;

    /// The code; 0 where the entry was not written yet.
    #[must_use]
    pub const fn code(self) -> u8 {
        (self.low >> 60) as u8
    }

    /// Whether RW means something: a page fault must have PR set, and an invalid request has no RW.
    const fn tells_direction(self) -> bool {
        match self.code() {
            Self::PAGE_FAULT => self.low & Self::PRESENT != 0,
            Self::INVALID_REQUEST => false,
            _ => true,
        }
    }

    /// What the entry says. `limit` is the first address that page tables do not translate.
    #[must_use]
    pub const fn decode(self, limit: u64) -> EventKind {
        let code = self.code();
        let address = self.high & !0xfff;
        let kind = (self.low >> 57 & 7) as u8;
        let interrupt = match code {
            // A posted write to interrupt addresses: none of the device's are let through, or
            // this address is no interrupt.
            Self::INVALID_REQUEST => kind == 5 || kind == 6,
            _ => self.low & Self::INTERRUPT != 0,
        };
        let domain = (self.low >> 32) as u16;
        let reason = match code {
            Self::ILLEGAL_DEVICE_ENTRY | Self::DEVICE_TABLE_ERROR | Self::PAGE_TABLE_ERROR => {
                FaultReason::BadTable
            }
            Self::PAGE_FAULT
                if self.low & Self::PRESENT != 0 && self.low & Self::RESERVED_BIT != 0 =>
            {
                FaultReason::BadTable
            }
            Self::PAGE_FAULT if interrupt => FaultReason::InterruptEntry,
            // No domain has the number 0.
            Self::PAGE_FAULT if domain == 0 => FaultReason::Blocked,
            Self::PAGE_FAULT if address >= limit => FaultReason::AddressTooWide,
            Self::PAGE_FAULT => FaultReason::NotPermitted,
            Self::INVALID_REQUEST if interrupt => FaultReason::InterruptEntry,
            Self::INVALID_REQUEST => FaultReason::RequestType,
            Self::DEVICE_CACHE_TIMEOUT => FaultReason::Other,
            Self::ILLEGAL_COMMAND | Self::COMMAND_ERROR => return EventKind::Command,
            _ => return EventKind::Other,
        };
        let request = if interrupt {
            // The entry has the message's address, not its data.
            FaultRequest::Interrupt { index: 0 }
        } else if self.low & Self::TRANSLATION != 0 && code != Self::INVALID_REQUEST {
            FaultRequest::PageRequest { address }
        } else if !self.tells_direction() {
            FaultRequest::Access { address }
        } else if self.low & Self::WRITE != 0 {
            FaultRequest::Write { address }
        } else {
            FaultRequest::Read { address }
        };
        EventKind::Fault(Fault {
            source: RequesterId(self.low as u16),
            request,
            reason,
            code,
            pasid: if self.low & Self::GUEST != 0 {
                Some(self.low as u32 & 0xf_0000 | domain as u32)
            } else {
                None
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 39;

    fn fault(low: u64, high: u64) -> Fault {
        match (Event { low, high }).decode(LIMIT) {
            EventKind::Fault(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn page_faults_decode() {
        // A write of a device in domain 7 to a page it may not write.
        let low = 2 << 60 | 1 << 54 | 1 << 53 | 1 << 52 | 7 << 32 | 0x0208;
        assert_eq!(
            fault(low, 0x1234_5678),
            Fault {
                source: RequesterId(0x0208),
                request: FaultRequest::Write {
                    address: 0x1234_5000
                },
                reason: FaultReason::NotPermitted,
                code: 2,
                pasid: None,
            }
        );
        let read = low & !(1 << 53);
        assert_eq!(
            fault(read, 0x5000).request,
            FaultRequest::Read { address: 0x5000 }
        );
        let absent = fault(low & !(1 << 52), 0x5000);
        assert_eq!(absent.request, FaultRequest::Access { address: 0x5000 });
        assert_eq!(absent.reason, FaultReason::NotPermitted);
        assert_eq!(fault(low, LIMIT).reason, FaultReason::AddressTooWide);
        assert_eq!(fault(low & !(7 << 32), 0).reason, FaultReason::Blocked);
        assert_eq!(fault(low | 1 << 55, 0).reason, FaultReason::BadTable);
        let translation = fault(low | 1 << 56, 0x5000).request;
        assert_eq!(translation, FaultRequest::PageRequest { address: 0x5000 });
        assert_eq!(fault(low | 1 << 48 | 3 << 16, 0).pasid, Some(0x3_0007));
    }

    #[test]
    fn interrupts_are_told_apart_from_memory() {
        let remapping = fault(2 << 60 | 1 << 51 | 0x0208, 0xfee0_0000);
        assert_eq!(remapping.request, FaultRequest::Interrupt { index: 0 });
        assert_eq!(remapping.reason, FaultReason::InterruptEntry);
        let aborted = fault(8 << 60 | 5 << 57 | 0x0208, 0xfee0_0000);
        assert_eq!(aborted.request, FaultRequest::Interrupt { index: 0 });
        let translated = fault(8 << 60 | 1 << 57 | 0x0208, 0x5000);
        assert_eq!(translated.reason, FaultReason::RequestType);
        assert_eq!(translated.address(), Some(0x5000));
    }

    #[test]
    fn what_is_no_fault_of_a_device_is_none() {
        for (code, kind) in [
            (5, EventKind::Command),
            (6, EventKind::Command),
            (10, EventKind::Other),
        ] {
            let event = Event {
                low: code << 60,
                high: 0,
            };
            assert_eq!(event.decode(LIMIT), kind);
        }
    }
}
