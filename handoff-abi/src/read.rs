//! Reading a handoff: checked once, from a copy.

use core::fmt;
use core::mem::size_of;

use zerocopy::{FromBytes, IntoBytes};

use crate::header::{Header, MAGIC, RecordHeader};
use crate::records::Record;
use crate::{AbiVersion, Features, PhysAddr, Speaks};

/// The longest handoff that is read, in bytes. A writer stays far below it.
pub const MAX_LENGTH: u64 = 1 << 20;

/// Why a handoff is refused. Nothing has been touched when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum HandoffError {
    /// Fewer bytes than a header.
    Truncated {
        /// How many there are.
        have: u64,
        /// How many are needed.
        need: u64,
    },
    /// The first eight bytes are not [`MAGIC`].
    Magic {
        /// What they are.
        found: u64,
    },
    /// The header states a length that is not a multiple of 8, too short for its version, or more
    /// than the whole.
    HeaderLength {
        /// The length it states.
        found: u32,
    },
    /// The total length is not a multiple of 8, shorter than the header, or above [`MAX_LENGTH`].
    Length {
        /// The length it states.
        found: u64,
    },
    /// It was written for another place: a copy, or two sides that disagree on the layout.
    Address {
        /// Where it says that it is.
        written_for: PhysAddr,
        /// Where it was found.
        found_at: PhysAddr,
    },
    /// The checksum does not fit.
    Checksum {
        /// What it states.
        stated: u32,
        /// What the bytes have.
        computed: u32,
    },
    /// A version this reader does not read.
    Version {
        /// The handoff's.
        found: AbiVersion,
        /// The oldest that is read.
        oldest: AbiVersion,
        /// The newest that is read.
        newest: AbiVersion,
    },
    /// The writer requires features that this reader has not.
    Features {
        /// Those that are missing.
        missing: Features,
    },
    /// A reserved field of the header is not zero in a version whose fields are all known.
    Reserved,
    /// A record's length is not a multiple of 8, below 16, or past the end.
    RecordLength {
        /// Where the record begins, in bytes from the handoff's start.
        offset: u64,
        /// The length it states.
        found: u32,
    },
    /// A record that must be understood is of an unknown kind.
    CriticalRecord {
        /// Where the record begins.
        offset: u64,
        /// Its kind.
        kind: u32,
    },
    /// A record's payload is shorter than its structure.
    RecordTooShort {
        /// Where the record begins.
        offset: u64,
        /// Its kind.
        kind: u32,
        /// The length it states, header included.
        found: u32,
    },
    /// The count of records is not that of the records present.
    RecordCount {
        /// What the header states.
        stated: u32,
        /// What is there.
        found: u32,
    },
}

impl fmt::Display for HandoffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { have, need } => {
                write!(f, "handoff has {have} bytes and needs {need}")
            }
            Self::Magic { found } => write!(
                f,
                "handoff begins with {found:#018x}, which is not its magic"
            ),
            Self::HeaderLength { found } => {
                write!(f, "handoff header states a length of {found} bytes")
            }
            Self::Length { found } => write!(f, "handoff states a length of {found} bytes"),
            Self::Address {
                written_for,
                found_at,
            } => {
                write!(
                    f,
                    "handoff was written for {written_for} and found at {found_at}"
                )
            }
            Self::Checksum { stated, computed } => {
                write!(
                    f,
                    "handoff checksum is {computed:#010x}, stated {stated:#010x}"
                )
            }
            Self::Version {
                found,
                oldest,
                newest,
            } => {
                write!(
                    f,
                    "handoff version {found}, this kernel reads {oldest} to {newest}"
                )
            }
            Self::Features { missing } => {
                write!(f, "handoff requires what this kernel has not: {missing}")
            }
            Self::Reserved => f.write_str("handoff header has a reserved field that is not zero"),
            Self::RecordLength { offset, found } => {
                write!(
                    f,
                    "record at offset {offset:#x} states a length of {found} bytes"
                )
            }
            Self::CriticalRecord { offset, kind } => {
                write!(
                    f,
                    "critical record at offset {offset:#x} is of unknown kind {kind:#x}"
                )
            }
            Self::RecordTooShort {
                offset,
                kind,
                found,
            } => {
                write!(
                    f,
                    "record of kind {kind:#x} at offset {offset:#x} has only {found} bytes"
                )
            }
            Self::RecordCount { stated, found } => {
                write!(f, "handoff states {stated} records and has {found}")
            }
        }
    }
}

impl core::error::Error for HandoffError {}

/// How many bytes a handoff has, from a copy of its first [`Header::LENGTH_V0_1`] bytes: enough to
/// know how much to copy out before [`Handoff::parse`] checks all of it.
///
/// # Errors
/// Where there are fewer bytes, the magic is wrong, or the length is out of bounds.
pub fn stated_length(start: &[u8]) -> Result<u64, HandoffError> {
    let need = u64::from(Header::LENGTH_V0_1);
    let have = start.len() as u64;
    if have < need {
        return Err(HandoffError::Truncated { have, need });
    }
    let header = known_header(start);
    if header.magic != MAGIC {
        return Err(HandoffError::Magic {
            found: header.magic,
        });
    }
    if header.length < need || header.length > MAX_LENGTH || !header.length.is_multiple_of(8) {
        return Err(HandoffError::Length {
            found: header.length,
        });
    }
    Ok(header.length)
}

/// The header as far as `bytes` reach; fields beyond are zero.
fn known_header(bytes: &[u8]) -> Header {
    let mut padded = [0_u8; size_of::<Header>()];
    let known = bytes.len().min(padded.len());
    if let (Some(to), Some(from)) = (padded.get_mut(..known), bytes.get(..known)) {
        to.copy_from_slice(from);
    }
    zerocopy::transmute!(padded)
}

pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let field = core::mem::offset_of!(Header, checksum);
    let mut digest = CRC.digest();
    let (before, rest) = bytes.split_at(field.min(bytes.len()));
    digest.update(before);
    digest.update(&[0; 4]);
    digest.update(rest.get(4..).unwrap_or(&[]));
    digest.finalize()
}

/// A handoff whose every byte has been checked. It borrows a private copy: the bytes in shared
/// memory may have changed since and do not matter.
#[derive(Clone, Copy, Debug)]
pub struct Handoff<'a> {
    header: Header,
    records: &'a [u8],
}

impl<'a> Handoff<'a> {
    /// Checks `bytes`, a private copy of the memory at `found_at`, for a reader that `speaks`.
    ///
    /// # Errors
    /// The first thing that is wrong; see [`HandoffError`].
    pub fn parse(
        bytes: &'a [u8],
        found_at: PhysAddr,
        speaks: &Speaks,
    ) -> Result<Self, HandoffError> {
        let length = stated_length(bytes)?;
        let have = bytes.len() as u64;
        let whole = usize::try_from(length)
            .ok()
            .and_then(|length| bytes.get(..length))
            .ok_or(HandoffError::Truncated { have, need: length })?;
        // The version decides how everything after it is read, so it comes before the checksum.
        let version = known_header(whole).version;
        if !speaks.reads(version) {
            return Err(HandoffError::Version {
                found: version,
                oldest: speaks.oldest,
                newest: speaks.newest,
            });
        }
        let stated = known_header(whole).header_length;
        let header_bytes = usize::try_from(stated)
            .ok()
            .filter(|_| stated >= Header::length_in(version) && stated.is_multiple_of(8))
            .and_then(|stated| whole.get(..stated))
            .ok_or(HandoffError::HeaderLength { found: stated })?;
        let header = known_header(
            header_bytes
                .get(..Header::length_in(version) as usize)
                .unwrap_or(header_bytes),
        );
        let computed = checksum(whole);
        if header.checksum != computed {
            return Err(HandoffError::Checksum {
                stated: header.checksum,
                computed,
            });
        }
        if header.self_address != found_at {
            return Err(HandoffError::Address {
                written_for: header.self_address,
                found_at,
            });
        }
        if header.reserved != 0 {
            return Err(HandoffError::Reserved);
        }
        let missing = header.required.difference(speaks.features);
        if !missing.is_empty() {
            return Err(HandoffError::Features { missing });
        }
        let handoff = Self {
            header,
            records: whole.get(header_bytes.len()..).unwrap_or(&[]),
        };
        handoff.check_records()?;
        Ok(handoff)
    }

    fn check_records(&self) -> Result<(), HandoffError> {
        let mut found = 0_u32;
        let mut walk = Walk::new(self);
        while let Some(item) = walk.next_checked()? {
            found = found.saturating_add(1);
            let known = known_size(item.header.kind);
            if known.is_none() && item.header.flags & RecordHeader::CRITICAL != 0 {
                return Err(HandoffError::CriticalRecord {
                    offset: item.offset,
                    kind: item.header.kind,
                });
            }
            if known.is_some_and(|size| item.payload.len() < size) {
                return Err(HandoffError::RecordTooShort {
                    offset: item.offset,
                    kind: item.header.kind,
                    found: item.header.length,
                });
            }
        }
        if found != self.header.record_count {
            return Err(HandoffError::RecordCount {
                stated: self.header.record_count,
                found,
            });
        }
        Ok(())
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Every record of type `R`, in the order they were written.
    pub fn records<R: Record>(&self) -> impl Iterator<Item = R> + use<'a, R> {
        self.raw_records()
            .filter(|raw| raw.header.kind == R::KIND)
            .filter_map(|raw| {
                R::read_from_prefix(raw.payload)
                    .ok()
                    .map(|(record, _)| record)
            })
    }

    /// The first record of type `R`.
    #[must_use]
    pub fn first<R: Record>(&self) -> Option<R> {
        self.records::<R>().next()
    }

    /// Every record, known or not.
    pub fn raw_records(&self) -> impl Iterator<Item = RawRecord<'a>> + use<'a> {
        let mut walk = Walk::new(self);
        core::iter::from_fn(move || walk.next_checked().ok().flatten())
    }
}

/// A record as bytes.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// Where it begins, in bytes from the handoff's start.
    pub offset: u64,
    /// Its header.
    pub header: RecordHeader,
    /// What follows the header.
    pub payload: &'a [u8],
}

struct Walk<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Walk<'a> {
    fn new(handoff: &Handoff<'a>) -> Self {
        Self {
            rest: handoff.records,
            offset: handoff
                .header
                .length
                .saturating_sub(handoff.records.len() as u64),
        }
    }

    fn next_checked(&mut self) -> Result<Option<RawRecord<'a>>, HandoffError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let offset = self.offset;
        let Ok((header, _)) = RecordHeader::read_from_prefix(self.rest) else {
            return Err(HandoffError::RecordLength { offset, found: 0 });
        };
        let wrong = HandoffError::RecordLength {
            offset,
            found: header.length,
        };
        let length = header.length as usize;
        if !header.length.is_multiple_of(8) {
            return Err(wrong);
        }
        let payload = self
            .rest
            .get(size_of::<RecordHeader>()..length)
            .ok_or(wrong)?;
        self.rest = self.rest.get(length..).unwrap_or(&[]);
        self.offset = offset.saturating_add(u64::from(header.length));
        Ok(Some(RawRecord {
            offset,
            header,
            payload,
        }))
    }
}

/// The size of the structure of a record of this kind, or `None` for a kind that is not known.
fn known_size(of: u32) -> Option<usize> {
    use crate::records::*;
    Some(match of {
        kind::EXTENT => size_of::<Extent>(),
        kind::CPU => size_of::<Cpu>(),
        kind::MEMORY => size_of::<Memory>(),
        kind::FUNCTION => size_of::<Function>(),
        kind::INTERRUPT_HANDLE => size_of::<InterruptHandle>(),
        kind::FIRMWARE => size_of::<Firmware>(),
        kind::VTD_UNIT => size_of::<VtdUnit>(),
        kind::WORKLOAD => size_of::<Workload>(),
        kind::CONSOLE => size_of::<Console>(),
        kind::CLOCK => size_of::<Clock>(),
        kind::ECAM => size_of::<Ecam>(),
        kind::HISTORY => size_of::<History>(),
        kind::DOMAIN => size_of::<Domain>(),
        kind::PLATFORM => size_of::<Platform>(),
        kind::AMD_VI_UNIT => size_of::<AmdViState>(),
        _ => return None,
    })
}

/// Copies the fixed part of the header back into bytes; used by the writer.
pub(crate) fn put_header(header: &Header, version: AbiVersion, into: &mut [u8]) -> Option<()> {
    let length = Header::length_in(version) as usize;
    into.get_mut(..length)?
        .copy_from_slice(header.as_bytes().get(..length)?);
    Some(())
}
