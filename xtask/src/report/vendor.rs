//! What an attempt on the fence leaves behind on each kind of remapping hardware, as far as the emulator
//! goes.

use handoff_abi::RequesterId;

use super::Attempt;
use crate::machine::Iommu;
use crate::trace::{Fault, Interrupt};

/// What cannot be seen on this emulator, whatever the fence says. What can be seen not to be enforced
/// is tried ([`crate::holes`]).
pub(super) const NOT_SHOWN: &[&str] = &[
    "a missing cache flush does not show: the emulator has no caches",
    "a triple fault resets the whole machine: it cannot be fenced",
];

/// What the emulator tells of one kind of hardware.
pub(super) struct Vendor {
    /// Whether the unit writes records of what it blocked.
    pub(super) log_is_written: bool,
    /// Whether the address says all of an interrupt message: on AMD-Vi the index is in the data.
    address_is_message: bool,
    /// What tells that a request was blocked, beside that nothing changed.
    pub(super) recorded_by: &'static str,
    /// What cannot be seen on it.
    pub(super) not_shown: &'static [&'static str],
    /// The most that a new prime may leave in device tables, of which the architecture says how long
    /// they are: on AMD-Vi 65,536 entries of 32 bytes, in the one in use and in one for a move.
    pub(super) device_tables: u64,
}

const VT_D: Vendor = Vendor {
    log_is_written: true,
    address_is_message: true,
    recorded_by: "the unit's fault records, which a kernel drained, and the emulator's trace",
    not_shown: &[
        "a second fault of the same source is not recorded while the first one stands",
        "a missing invalidation of the interrupt entry cache does not show: entries are not cached",
    ],
    device_tables: 0,
};

const AMD_VI: Vendor = Vendor {
    log_is_written: false,
    address_is_message: false,
    recorded_by: "the emulator's trace alone: its unit never writes the event log",
    not_shown: &[
        "the event log stays empty: that the driver reads it is proved on the register model \
         (iommu/tests/strict_amd/events.rs)",
        "a missing invalidation of a device table entry or of an interrupt table does not show: \
         neither is cached",
        "the length of an interrupt table is not looked at",
        "illegal commands are skipped, and the unit does not halt",
        "there is one unit, and no segment of the device table",
    ],
    device_tables: 2 * (65_536 * 32),
};

/// A machine without remapping hardware: nothing is attempted there.
const NONE: Vendor = Vendor {
    log_is_written: false,
    address_is_message: false,
    recorded_by: "",
    not_shown: &[],
    device_tables: 0,
};

/// What the emulator tells of `iommu`.
pub(super) const fn vendor(iommu: Iommu) -> &'static Vendor {
    match iommu {
        Iommu::VtD => &VT_D,
        Iommu::AmdVi => &AMD_VI,
        Iommu::None => &NONE,
    }
}

impl Vendor {
    /// Whether `fault` is what the attempt left behind: what the kernel drained, or, where it can drain
    /// nothing, what the attempting device did.
    pub(super) fn matches(&self, fault: &Fault, attempt: &Attempt) -> bool {
        // Fault records name the page.
        let page = |address: u64| address & !0xfff;
        let agrees = match &attempt.record {
            Some(record) => {
                record.source == fault.source && page(record.address) == page(fault.address)
            }
            None => {
                !self.log_is_written
                    && requester(&attempt.by) == Some(fault.source)
                    && attempt.address == fault.address
            }
        };
        agrees && fault.write == (attempt.kind == "write")
    }

    /// Whether `interrupt` is the message of the attempt.
    pub(super) fn is_message(&self, interrupt: &Interrupt, attempt: &Attempt) -> bool {
        let data = match attempt.data {
            Some(data) => data == interrupt.data,
            None => self.address_is_message,
        };
        interrupt.address == attempt.address && data
    }
}

/// A function, in the way that kernels print it, as a requester id: `bus:device.function`, with or
/// without a segment before it.
fn requester(text: &str) -> Option<u16> {
    let mut parts = text.rsplit(':');
    let (device, function) = parts.next()?.split_once('.')?;
    let part = |text: &str| u8::from_str_radix(text, 16).ok();
    let bus = part(parts.next()?)?;
    RequesterId::new(bus, part(device)?, part(function)?).map(|id| id.0)
}

#[cfg(test)]
mod tests {
    use super::{AMD_VI, VT_D, requester};
    use crate::report::{Attempt, Record};
    use crate::trace::{Fault, Interrupt};

    fn fault(write: bool) -> Fault {
        Fault {
            at: 0,
            place: 1,
            source: 0x300,
            reason: None,
            address: 0x12_3000,
            write,
        }
    }

    fn attempt(kind: &str, by: &str, address: u64) -> Attempt {
        Attempt {
            kind: kind.to_owned(),
            by: by.to_owned(),
            address,
            ..Attempt::default()
        }
    }

    fn recorded(kind: &str, source: u16, address: u64) -> Attempt {
        Attempt {
            record: Some(Record {
                source,
                address,
                reason: "5".to_owned(),
            }),
            ..attempt(kind, "05:00.0", 0)
        }
    }

    #[test]
    fn a_fault_must_agree_with_the_record_in_everything() {
        for vendor in [&VT_D, &AMD_VI] {
            let matches = |attempt: &Attempt| vendor.matches(&fault(true), attempt);
            assert!(matches(&recorded("write", 0x300, 0x12_3000)));
            assert!(matches(&recorded("write", 0x300, 0x12_3010)));
            assert!(!matches(&recorded("read", 0x300, 0x12_3000)));
            assert!(!matches(&recorded("write", 0x400, 0x12_3000)));
            assert!(!matches(&recorded("write", 0x300, 0x12_4000)));
            assert!(!matches(&Attempt::default()));
        }
    }

    #[test]
    fn without_a_record_only_a_unit_that_writes_none_confirms_by_what_was_done() {
        let done = attempt("write", "0000:03:00.0", 0x12_3000);
        assert!(!VT_D.matches(&fault(true), &done));
        assert!(AMD_VI.matches(&fault(true), &done));
        assert!(!AMD_VI.matches(&fault(false), &done));
        for (by, address) in [
            ("0000:04:00.0", 0x12_3000),
            ("0000:03:00.0", 0x12_3004),
            ("edu", 0x12_3000),
        ] {
            assert!(!AMD_VI.matches(&fault(true), &attempt("write", by, address)));
        }
    }

    #[test]
    fn a_message_is_told_by_its_data_where_the_address_does_not_say_it_all() {
        let interrupt = Interrupt {
            at: 0,
            place: 1,
            address: 0xfee0_0000,
            data: 0x41,
            delivered: false,
        };
        let mut done = attempt("interrupt", "03:00.0", 0xfee0_0000);
        assert!(VT_D.is_message(&interrupt, &done));
        assert!(!AMD_VI.is_message(&interrupt, &done));
        done.data = Some(0x41);
        assert!(VT_D.is_message(&interrupt, &done) && AMD_VI.is_message(&interrupt, &done));
        done.data = Some(0x42);
        assert!(!VT_D.is_message(&interrupt, &done) && !AMD_VI.is_message(&interrupt, &done));
    }

    #[test]
    fn a_function_is_read_with_and_without_its_segment() {
        assert_eq!(requester("03:02.1"), Some(0x311));
        assert_eq!(requester("0000:03:02.1"), Some(0x311));
        for text in ["", "03", "03:02", "03:20.0", "03:00.8", "x:00.0"] {
            assert_eq!(requester(text), None, "{text}");
        }
    }
}
