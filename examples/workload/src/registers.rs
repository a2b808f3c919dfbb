//! The network device's registers: what the workload's memory says, held against the device.

use core::fmt;
use core::ops::Range;

use crate::layout::Nic;

/// A register or a structure of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Structure {
    /// The common configuration.
    Common,
    /// The interrupt status.
    Isr,
    /// The device configuration.
    Device,
    /// Where the receive queue is notified.
    ReceiveNotify,
    /// Where the transmit queue is notified.
    TransmitNotify,
    /// The MSI-X table.
    MsixTable,
}

impl Structure {
    const fn name(self) -> &'static str {
        match self {
            Self::Common => "common configuration",
            Self::Isr => "interrupt status",
            Self::Device => "device configuration",
            Self::ReceiveNotify => "receive queue's notification",
            Self::TransmitNotify => "transmit queue's notification",
            Self::MsixTable => "MSI-X table",
        }
    }
}

/// Why the record of a device is not this device's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NicError {
    /// A structure is elsewhere: the device's capabilities and BARs put it there.
    Elsewhere {
        /// Which.
        structure: Structure,
        /// Where the record has it.
        recorded: u64,
        /// Where the device has it; for a notification, where all of them are.
        found: Range<u64>,
    },
    /// A notification is not aligned to its two bytes (Virtual I/O Device 1.2, section 4.1.4.4).
    Misaligned {
        /// Which.
        structure: Structure,
        /// Where the record has it.
        recorded: u64,
    },
    /// The MSI-X table has another length.
    MsixEntries {
        /// What the record says.
        recorded: u32,
        /// What the device says.
        found: u32,
    },
    /// A queue uses an MSI-X entry that the table does not have.
    MsixEntry(u16),
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere {
                structure,
                recorded,
                found,
            } => write!(
                f,
                "the {} is at {:#x}..{:#x} and not at {recorded:#x}",
                structure.name(),
                found.start,
                found.end
            ),
            Self::Misaligned {
                structure,
                recorded,
            } => write!(f, "the {} cannot be at {recorded:#x}", structure.name()),
            Self::MsixEntries { recorded, found } => {
                write!(f, "the MSI-X table has {found} entries and not {recorded}")
            }
            Self::MsixEntry(entry) => write!(f, "there is no MSI-X entry {entry}"),
        }
    }
}

impl core::error::Error for NicError {}

/// Where a device's registers are, as its configuration space says: capabilities and BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The common configuration.
    pub common: Range<u64>,
    /// The interrupt status.
    pub isr: Range<u64>,
    /// The device configuration.
    pub device: Range<u64>,
    /// The notifications of all queues.
    pub notify: Range<u64>,
    /// The MSI-X table.
    pub msix_table: Range<u64>,
    /// How many entries it has.
    pub msix_entries: u32,
}

impl Nic {
    /// Whether the record's registers are those of the device. Who owns the workload's memory says
    /// nothing of what is written there: a kernel that goes on with the device checks this before
    /// it maps a register of the record, let alone writes to it.
    ///
    /// # Errors
    /// [`NicError`], for the first that is not.
    pub fn check(&self, found: &Registers) -> Result<(), NicError> {
        for (structure, recorded, found) in [
            (Structure::Common, self.common, &found.common),
            (Structure::Isr, self.isr, &found.isr),
            (Structure::Device, self.device, &found.device),
            (Structure::MsixTable, self.msix_table, &found.msix_table),
        ] {
            if recorded != found.start {
                return Err(NicError::Elsewhere {
                    structure,
                    recorded,
                    found: found.clone(),
                });
            }
        }
        for (structure, recorded) in [Structure::ReceiveNotify, Structure::TransmitNotify]
            .into_iter()
            .zip(self.notify)
        {
            let last = recorded.checked_add(1);
            if !found.notify.contains(&recorded)
                || !last.is_some_and(|last| found.notify.contains(&last))
            {
                return Err(NicError::Elsewhere {
                    structure,
                    recorded,
                    found: found.notify.clone(),
                });
            }
            if recorded % 2 != 0 {
                return Err(NicError::Misaligned {
                    structure,
                    recorded,
                });
            }
        }
        if self.msix_entries != found.msix_entries {
            return Err(NicError::MsixEntries {
                recorded: self.msix_entries,
                found: found.msix_entries,
            });
        }
        // 0xffff stands for none.
        let unknown = |&entry: &u16| entry != u16::MAX && u32::from(entry) >= found.msix_entries;
        match self.msix_entry.into_iter().find(|entry| unknown(entry)) {
            Some(entry) => Err(NicError::MsixEntry(entry)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR: u64 = 0x8_0000_0000;

    fn found() -> Registers {
        let structure = |offset: u64, length: u64| BAR + offset..BAR + offset + length;
        Registers {
            common: structure(0, 0x1000),
            isr: structure(0x1000, 0x1000),
            device: structure(0x2000, 0x1000),
            notify: structure(0x3000, 0x1000),
            msix_table: 0xfe80_0000..0xfe80_0040,
            msix_entries: 4,
        }
    }

    fn record() -> Nic {
        Nic {
            function: 0x100,
            features: 1 << 32,
            common: BAR,
            isr: BAR + 0x1000,
            device: BAR + 0x2000,
            notify: [BAR + 0x3000, BAR + 0x3ffe],
            msix_table: 0xfe80_0000,
            msix_entries: 4,
            msix_entry: [0, 3],
        }
    }

    #[test]
    fn registers_of_the_device_are_accepted() {
        assert_eq!(record().check(&found()), Ok(()));
        let polled = Nic {
            msix_entry: [u16::MAX; 2],
            ..record()
        };
        assert_eq!(polled.check(&found()), Ok(()));
    }

    #[test]
    fn each_structure_elsewhere_is_refused_by_name() {
        let foreign = 0xfed9_0000;
        type Field = fn(&mut Nic) -> &mut u64;
        let all: [(Structure, Field); 6] = [
            (Structure::Common, |nic| &mut nic.common),
            (Structure::Isr, |nic| &mut nic.isr),
            (Structure::Device, |nic| &mut nic.device),
            (Structure::MsixTable, |nic| &mut nic.msix_table),
            (Structure::ReceiveNotify, |nic| &mut nic.notify[0]),
            (Structure::TransmitNotify, |nic| &mut nic.notify[1]),
        ];
        for (expected, field) in all {
            for value in [0, foreign, BAR + 0x4000, u64::MAX, u64::MAX - 1] {
                let mut nic = record();
                *field(&mut nic) = value;
                let Err(NicError::Elsewhere {
                    structure,
                    recorded,
                    ..
                }) = nic.check(&found())
                else {
                    panic!("{expected:?} at {value:#x} was accepted");
                };
                assert_eq!((structure, recorded), (expected, value));
            }
        }
    }

    #[test]
    fn a_notification_lies_wholly_among_the_notifications() {
        for (at, accepted) in [
            (BAR + 0x2ffe, false),
            (BAR + 0x2fff, false),
            (BAR + 0x3002, true),
            (BAR + 0x3fff, false),
            (BAR + 0x4000, false),
        ] {
            let nic = Nic {
                notify: [at, BAR + 0x3000],
                ..record()
            };
            assert_eq!(nic.check(&found()).is_ok(), accepted, "{at:#x}");
        }
        let odd = Nic {
            notify: [BAR + 0x3001, BAR + 0x3000],
            ..record()
        };
        assert_eq!(
            odd.check(&found()),
            Err(NicError::Misaligned {
                structure: Structure::ReceiveNotify,
                recorded: BAR + 0x3001
            })
        );
    }

    #[test]
    fn interrupts_are_the_devices() {
        let longer = Nic {
            msix_entries: 5,
            ..record()
        };
        let error = longer.check(&found()).unwrap_err();
        assert_eq!(
            error,
            NicError::MsixEntries {
                recorded: 5,
                found: 4
            }
        );
        let beyond = Nic {
            msix_entry: [0, 4],
            ..record()
        };
        assert_eq!(beyond.check(&found()), Err(NicError::MsixEntry(4)));
    }
}
