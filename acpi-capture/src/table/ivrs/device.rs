//! The devices of a unit (AMD IOMMU, sections 5.2.2.4 to 5.2.2.7).

use core::fmt;

use bitflags::bitflags;
use handoff_abi::RequesterId;
use zerocopy::FromBytes;

use crate::table::raw::{
    AcpiDeviceRaw, DeviceAliasRaw, DeviceEntry4Raw, DeviceExtendedRaw, SpecialDeviceRaw,
};

/// Type fields of the device entries.
mod kind {
    pub(super) const PADDING: u8 = 0;
    pub(super) const ALL: u8 = 1;
    pub(super) const SELECT: u8 = 2;
    pub(super) const RANGE_START: u8 = 3;
    pub(super) const RANGE_END: u8 = 4;
    pub(super) const PADDING_8: u8 = 0x40;
    pub(super) const ALIAS_SELECT: u8 = 0x42;
    pub(super) const ALIAS_RANGE: u8 = 0x43;
    pub(super) const EXTENDED_SELECT: u8 = 0x46;
    pub(super) const EXTENDED_RANGE: u8 = 0x47;
    pub(super) const SPECIAL: u8 = 0x48;
    pub(super) const ACPI: u8 = 0xf0;
}

bitflags! {
    /// What firmware wants in a device's table entry (AMD IOMMU, table "DTE Setting"). Each of the
    /// named bits lets interrupts pass that no table remaps: a fence leaves them out for all but
    /// the source that needs them. Bits 5:4 are `SysMgt`. Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct DeviceSettings: u8 {
        /// `INITPass`.
        const INIT_PASS = 1;
        /// `EIntPass`.
        const EXTERNAL_INTERRUPT_PASS = 1 << 1;
        /// `NMIPass`.
        const NMI_PASS = 1 << 2;
        /// `Lint0Pass`.
        const LINT0_PASS = 1 << 6;
        /// `Lint1Pass`.
        const LINT1_PASS = 1 << 7;
        const _ = !0;
    }
}

impl DeviceSettings {
    /// `SysMgt`: which system management messages pass.
    #[must_use]
    pub const fn system_management(self) -> u8 {
        self.bits() >> 4 & 3
    }
}

/// Requester ids that are treated alike: entries of types 2 to 4, 42h, 43h, 46h and 47h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpan {
    /// The first id.
    pub first: RequesterId,
    /// The last id, the first or a later one.
    pub last: RequesterId,
    /// The id their requests arrive with, where it is not their own: the unit uses the tables of
    /// this one.
    pub alias: Option<RequesterId>,
    /// What firmware wants in their table entries.
    pub settings: DeviceSettings,
    /// Firmware asks that ATS be off for them.
    pub ats_disabled: bool,
}

impl DeviceSpan {
    /// Whether `requester` is one of them.
    #[must_use]
    pub fn contains(&self, requester: RequesterId) -> bool {
        (self.first..=self.last).contains(&requester)
    }
}

/// What a special device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SpecialKind {
    /// The I/O APIC with this id in the MADT.
    IoApic(u8),
    /// The HPET block with this number.
    Hpet(u8),
    /// Any other.
    Other {
        /// The variety field.
        variety: u8,
        /// The handle field.
        handle: u8,
    },
}

/// An I/O APIC or HPET block and the id its interrupts come with: an entry of type 48h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialDevice {
    /// Which.
    pub kind: SpecialKind,
    /// The id its interrupts come with.
    pub requester: RequesterId,
    /// What firmware wants in the table entry of that id.
    pub settings: DeviceSettings,
}

/// The unique id of an ACPI device: its `_UID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcpiUid<'a> {
    /// None.
    None,
    /// A number.
    Integer(u64),
    /// A string, often the device's path in the namespace. Any bytes.
    Text(&'a [u8]),
    /// A format that is not known, or a number that has not eight bytes.
    Other {
        /// The format field.
        format: u8,
        /// The bytes.
        bytes: &'a [u8],
    },
}

/// A device with a name in the ACPI namespace and none on PCI: an entry of type F0h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiDevice<'a> {
    /// The id its requests come with.
    pub requester: RequesterId,
    /// What firmware wants in the table entry of that id.
    pub settings: DeviceSettings,
    /// Its `_HID`, up to eight characters and zeros.
    pub hardware_id: [u8; 8],
    /// Its `_CID`, or zeros.
    pub compatible_id: [u8; 8],
    /// Its `_UID`.
    pub uid: AcpiUid<'a>,
}

/// What a unit's block says of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IvhdDevice<'a> {
    /// Type 1: every device of the segment group.
    All(DeviceSettings),
    /// One requester id or a range of them.
    Span(DeviceSpan),
    /// Type 48h: an interrupt source.
    Special(SpecialDevice),
    /// Type F0h: an ACPI device.
    Acpi(AcpiDevice<'a>),
    /// A type that is not known, of a length that is.
    Unknown {
        /// Where in the table it begins, in bytes.
        offset: usize,
        /// The type field.
        kind: u8,
    },
}

/// Why a device entry cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DeviceError {
    /// The entry reaches past the end of the block. The iteration ends here.
    Overrun {
        /// Where in the table it begins, in bytes.
        offset: usize,
        /// The type field.
        kind: u8,
        /// The id it names, where that can be read.
        requester: Option<RequesterId>,
        /// Bytes it needs.
        needed: usize,
        /// Bytes left in the block.
        left: usize,
    },
    /// The entry's type is one whose length is not known, so that nothing after it can be found.
    /// The iteration ends here.
    Stuck {
        /// Where in the table it begins, in bytes.
        offset: usize,
        /// The type field.
        kind: u8,
    },
    /// A range begins and does not end, or another one begins before its end.
    NoEnd {
        /// Where in the table the range begins, in bytes.
        offset: usize,
        /// The first id of the range.
        first: RequesterId,
        /// The last id that may belong to it.
        last: RequesterId,
    },
    /// A range ends that did not begin.
    NoStart {
        /// Where in the table the end is, in bytes.
        offset: usize,
        /// The last id of the range.
        last: RequesterId,
    },
    /// A range ends before it begins.
    Reversed {
        /// Where in the table the range begins, in bytes.
        offset: usize,
        /// The first id.
        first: RequesterId,
        /// The last id.
        last: RequesterId,
    },
}

impl DeviceError {
    /// Where in the table the unreadable entry begins, in bytes.
    #[must_use]
    pub const fn offset(&self) -> usize {
        match *self {
            Self::Overrun { offset, .. }
            | Self::Stuck { offset, .. }
            | Self::NoEnd { offset, .. }
            | Self::NoStart { offset, .. }
            | Self::Reversed { offset, .. } => offset,
        }
    }

    /// The ids the entry may have been for: first and last.
    #[must_use]
    pub fn may_name(&self) -> (RequesterId, RequesterId) {
        const LOWEST: RequesterId = RequesterId(0);
        const HIGHEST: RequesterId = RequesterId(u16::MAX);
        match *self {
            Self::Overrun {
                kind,
                requester: Some(first),
                ..
            } => match kind {
                kind::RANGE_START | kind::ALIAS_RANGE | kind::EXTENDED_RANGE => (first, HIGHEST),
                kind::SPECIAL => (LOWEST, HIGHEST),
                _ => (first, first),
            },
            Self::Overrun { .. } | Self::Stuck { .. } => (LOWEST, HIGHEST),
            Self::NoEnd { first, last, .. } => (first, last),
            Self::NoStart { last, .. } => (LOWEST, last),
            Self::Reversed { first, last, .. } => (first.min(last), first.max(last)),
        }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun {
                offset,
                kind,
                needed,
                left,
                ..
            } => write!(
                f,
                "the device entry at {offset:#x} of type {kind:#04x} needs {needed} bytes and \
                 {left} are left"
            ),
            Self::Stuck { offset, kind } => write!(
                f,
                "the device entry at {offset:#x} has type {kind:#04x}; the rest of its block is \
                 unread"
            ),
            Self::NoEnd { offset, first, .. } => {
                write!(f, "the range from {first} on at {offset:#x} has no end")
            }
            Self::NoStart { offset, last } => {
                write!(f, "the range up to {last} at {offset:#x} has no start")
            }
            Self::Reversed {
                offset,
                first,
                last,
            } => write!(
                f,
                "the range from {first} to {last} at {offset:#x} ends before it begins"
            ),
        }
    }
}

impl core::error::Error for DeviceError {}

/// A range that has begun.
#[derive(Clone, Copy, Debug)]
struct Open {
    offset: usize,
    span: DeviceSpan,
    /// Another one began before it ended.
    broken: bool,
}

/// The devices of a block, in order, ranges as one.
#[derive(Clone, Debug)]
pub struct Devices<'a> {
    offset: usize,
    left: &'a [u8],
    open: Option<Open>,
}

/// What one entry comes to.
enum Step<'a> {
    Item(Result<IvhdDevice<'a>, DeviceError>),
    Begin(DeviceSpan),
    End(RequesterId),
    Skip,
}

impl<'a> Devices<'a> {
    pub(super) const fn new(offset: usize, bytes: &'a [u8]) -> Self {
        Self {
            offset,
            left: bytes,
            open: None,
        }
    }

    /// Bytes of the entry that comes next: by its type, up to 7Fh; an ACPI device says.
    fn length(&self, kind: u8) -> Option<usize> {
        match kind {
            0..0x40 => Some(4),
            0x40..0x80 => Some(8),
            kind::ACPI => {
                let uid = self.left.get(size_of::<AcpiDeviceRaw>().wrapping_sub(1));
                let uid = usize::from(uid.copied().unwrap_or(0));
                Some(size_of::<AcpiDeviceRaw>().saturating_add(uid))
            }
            _ => None,
        }
    }

    /// The next entry, whatever it is.
    fn step(&mut self) -> Option<Step<'a>> {
        let &kind = self.left.first()?;
        let (offset, left) = (self.offset, self.left.len());
        let Some(length) = self.length(kind) else {
            self.left = &[];
            return Some(Step::Item(Err(DeviceError::Stuck { offset, kind })));
        };
        let Some((entry, rest)) = self.left.split_at_checked(length) else {
            // Zeros that fill up a block are padding, also where they are fewer than an entry has.
            let is_padding = self.left.iter().all(|&byte| byte == 0);
            let requester = self.left.get(1..3).and_then(|id| id.try_into().ok());
            let requester = requester.map(|id| RequesterId(u16::from_le_bytes(id)));
            self.left = &[];
            return Some(match is_padding {
                true => Step::Skip,
                false => Step::Item(Err(DeviceError::Overrun {
                    offset,
                    kind,
                    requester,
                    needed: length,
                    left,
                })),
            });
        };
        self.left = rest;
        self.offset = offset.saturating_add(length);
        Some(decode(offset, kind, entry).unwrap_or(Step::Skip))
    }

    fn end(&mut self, offset: usize, last: RequesterId) -> Result<IvhdDevice<'a>, DeviceError> {
        let Some(open) = self.open.take() else {
            return Err(DeviceError::NoStart { offset, last });
        };
        let (offset, first) = (open.offset, open.span.first);
        if open.broken {
            return Err(DeviceError::NoEnd {
                offset,
                first,
                last: last.max(first),
            });
        }
        if last < first {
            return Err(DeviceError::Reversed {
                offset,
                first,
                last,
            });
        }
        Ok(IvhdDevice::Span(DeviceSpan { last, ..open.span }))
    }
}

impl<'a> Iterator for Devices<'a> {
    type Item = Result<IvhdDevice<'a>, DeviceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let offset = self.offset;
            match self.step() {
                Some(Step::Item(item)) => return Some(item),
                Some(Step::Skip) => {}
                Some(Step::Begin(span)) => {
                    self.open = Some(match self.open {
                        // Neither range can be told from the other now: both are of what lies
                        // between the lower start and the end.
                        Some(open) => Open {
                            span: DeviceSpan {
                                first: open.span.first.min(span.first),
                                ..span
                            },
                            broken: true,
                            ..open
                        },
                        None => Open {
                            offset,
                            span,
                            broken: false,
                        },
                    });
                }
                Some(Step::End(last)) => return Some(self.end(offset, last)),
                None => {
                    let open = self.open.take()?;
                    return Some(Err(DeviceError::NoEnd {
                        offset: open.offset,
                        first: open.span.first,
                        last: RequesterId(u16::MAX),
                    }));
                }
            }
        }
    }
}

fn span(requester: u16, settings: u8) -> DeviceSpan {
    let requester = RequesterId(requester);
    DeviceSpan {
        first: requester,
        last: requester,
        alias: None,
        settings: DeviceSettings::from_bits_retain(settings),
        ats_disabled: false,
    }
}

/// Decodes an entry that is as long as its type must be; `None` where it is not.
fn decode<'a>(offset: usize, kind: u8, entry: &'a [u8]) -> Option<Step<'a>> {
    let select = |span| Step::Item(Ok(IvhdDevice::Span(span)));
    let (raw, _) = DeviceEntry4Raw::read_from_prefix(entry).ok()?;
    let plain = span(raw.requester.get(), raw.settings);
    Some(match kind {
        kind::PADDING | kind::PADDING_8 => Step::Skip,
        kind::ALL => Step::Item(Ok(IvhdDevice::All(plain.settings))),
        kind::SELECT => select(plain),
        kind::RANGE_START => Step::Begin(plain),
        kind::RANGE_END => Step::End(plain.first),
        kind::ALIAS_SELECT | kind::ALIAS_RANGE => {
            let raw = DeviceAliasRaw::read_from_bytes(entry).ok()?;
            let span = DeviceSpan {
                alias: Some(RequesterId(raw.alias.get())),
                ..plain
            };
            match kind {
                kind::ALIAS_SELECT => select(span),
                _ => Step::Begin(span),
            }
        }
        kind::EXTENDED_SELECT | kind::EXTENDED_RANGE => {
            let raw = DeviceExtendedRaw::read_from_bytes(entry).ok()?;
            let span = DeviceSpan {
                ats_disabled: raw.extended.get() >> 31 != 0,
                ..plain
            };
            match kind {
                kind::EXTENDED_SELECT => select(span),
                _ => Step::Begin(span),
            }
        }
        kind::SPECIAL => {
            let raw = SpecialDeviceRaw::read_from_bytes(entry).ok()?;
            let kind = match raw.variety {
                1 => SpecialKind::IoApic(raw.handle),
                2 => SpecialKind::Hpet(raw.handle),
                variety => SpecialKind::Other {
                    variety,
                    handle: raw.handle,
                },
            };
            Step::Item(Ok(IvhdDevice::Special(SpecialDevice {
                kind,
                requester: RequesterId(raw.requester.get()),
                settings: plain.settings,
            })))
        }
        kind::ACPI => {
            let (raw, uid) = AcpiDeviceRaw::read_from_prefix(entry).ok()?;
            let uid = match (raw.uid_format, uid.as_array()) {
                (0, _) if uid.is_empty() => AcpiUid::None,
                (1, Some(&number)) => AcpiUid::Integer(u64::from_le_bytes(number)),
                (2, _) => AcpiUid::Text(uid),
                (format, _) => AcpiUid::Other { format, bytes: uid },
            };
            Step::Item(Ok(IvhdDevice::Acpi(AcpiDevice {
                requester: plain.first,
                settings: plain.settings,
                hardware_id: raw.hardware_id,
                compatible_id: raw.compatible_id,
                uid,
            })))
        }
        kind => Step::Item(Ok(IvhdDevice::Unknown { offset, kind })),
    })
}
