//! Handoffs that are wrong on purpose, for the tests: `handoff=WHAT` on the command line.
//!
//! The checksum fits what was made wrong, except where it is the checksum itself: so each fault is
//! found by the check that is for it, or by none.

use core::mem::offset_of;

use handoff_abi::{AbiVersion, Header, PartitionId, RecordHeader, Writer, kind};

use super::command_line::option;
use super::kernel::{Failure, failure};

/// A kind of record that nobody has ever heard of.
const UNKNOWN: u32 = 0x7fff_0001;
/// A feature that nobody has.
const UNKNOWN_FEATURE: u64 = 1 << 40;
/// A partition that there is not.
const STRANGER: PartitionId = PartitionId(0x77);

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Spoil<'a>(Option<&'a str>);

impl<'a> Spoil<'a> {
    /// What the command line asks for.
    #[must_use]
    pub fn of(line: &'a str) -> Self {
        Self(option(line, "handoff"))
    }

    /// Adds a record, if one was asked for.
    ///
    /// # Errors
    /// Where there is no room for it.
    pub fn append(self, writer: &mut Writer<'_>) -> Result<(), Failure> {
        match self.0 {
            Some("critical-record") => {
                writer.append(UNKNOWN, RecordHeader::CRITICAL, b"understand me")?;
            }
            Some("optional-record") => writer.append(UNKNOWN, 0, b"or do not")?,
            Some("short-record") => {
                writer.append(kind::MEMORY, RecordHeader::CRITICAL, &[0; 8])?;
            }
            // The bootstrap processor, which the smaller machine's tables do not have.
            Some("foreign-cpu") => writer.append(kind::CPU, RecordHeader::CRITICAL, &[0; 8])?,
            _ => {}
        }
        Ok(())
    }

    /// Makes one field of the finished handoff wrong, the first `length` bytes of `place`, if that
    /// was asked for. Returns how many bytes there are to be copied.
    ///
    /// # Errors
    /// Where no such fault is known: a test with a slip of the pen must not pass.
    pub fn spoil(
        self,
        place: &mut [u8],
        length: usize,
        version: AbiVersion,
    ) -> Result<usize, Failure> {
        const HEADER_LENGTH: usize = offset_of!(Header, header_length);
        const LENGTH: usize = offset_of!(Header, length);
        const VERSION: usize = offset_of!(Header, version);
        const MINOR: usize = VERSION + offset_of!(AbiVersion, minor);
        let Some(what) = self.0 else {
            return Ok(length);
        };
        let header_length = Header::length_in(version);
        let long = length as u64;
        let mut field = Field { place };
        match what {
            // As a copy through something that changes the ends of lines leaves it.
            "magic" => field.set(offset_of!(Header, magic) + 7, b"\r"),
            "version-new" => field.set(MINOR, &(AbiVersion::NEWEST.minor + 1).to_le_bytes()),
            "version-old" => field.set(MINOR, &(AbiVersion::OLDEST.minor - 1).to_le_bytes()),
            "version-other" => field.set(VERSION, &1_u16.to_le_bytes()),
            "header-short" => field.set(HEADER_LENGTH, &(header_length - 8).to_le_bytes()),
            "header-odd" => field.set(HEADER_LENGTH, &(header_length + 4).to_le_bytes()),
            "header-long" => field.set(HEADER_LENGTH, &(long as u32 + 8).to_le_bytes()),
            "length-short" => field.set(LENGTH, &(long - 8).to_le_bytes()),
            "length-odd" => field.set(LENGTH, &(long - 4).to_le_bytes()),
            "length-long" => field.set(LENGTH, &(long + 8).to_le_bytes()),
            "length-huge" => field.set(LENGTH, &u64::MAX.to_le_bytes()),
            "self-address" => field.add(offset_of!(Header, self_address), 0x1000),
            "features" => field.set(offset_of!(Header, features), &[0; 8]),
            "required" => field.set(offset_of!(Header, required), &UNKNOWN_FEATURE.to_le_bytes()),
            "record-count" => field.add(offset_of!(Header, record_count), 1),
            "epoch" => field.add(offset_of!(Header, epoch), 1),
            "writer" => field.set(offset_of!(Header, writer), &STRANGER.0.to_le_bytes()),
            "reader" => field.set(offset_of!(Header, reader), &STRANGER.0.to_le_bytes()),
            // The reader takes itself for the prime.
            "reader-prime" => {
                let prime: [u8; 2] = field.bytes(offset_of!(Header, writer));
                field.set(offset_of!(Header, reader), &prime);
            }
            "reserved" => field.set(offset_of!(Header, reserved), &[1]),
            "swaps" if version >= AbiVersion::V0_2 => field.add(offset_of!(Header, swaps), 1),
            "record-length" => field.set(
                header_length as usize + offset_of!(RecordHeader, length),
                &12_u32.to_le_bytes(),
            ),
            "checksum" => {
                field.add(offset_of!(Header, checksum), 1);
                return Ok(length);
            }
            "critical-record" | "optional-record" | "short-record" | "foreign-cpu" => {
                return Ok(length);
            }
            other => {
                return Err(failure!(
                    "nobody can make '{other}' of a handoff of version {version} wrong"
                ));
            }
        }
        let stated = u64::from_le_bytes(field.bytes(LENGTH));
        let length = usize::try_from(stated)
            .ok()
            .filter(|&stated| stated <= field.place.len())
            .unwrap_or(length);
        let sum = field.checksum(length);
        field.set(offset_of!(Header, checksum), &sum.to_le_bytes());
        Ok(length)
    }
}

/// The bytes of a handoff.
struct Field<'a> {
    place: &'a mut [u8],
}

impl Field<'_> {
    fn set(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.place.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Adds to a field; a carry past its second byte is not of interest.
    fn add(&mut self, at: usize, more: u16) {
        let old = u16::from_le_bytes(self.bytes(at));
        self.set(at, &old.wrapping_add(more).to_le_bytes());
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.place.iter().skip(at)) {
            *to = *from;
        }
        bytes
    }

    /// CRC-32/ISO-HDLC of the first `length` bytes, the checksum's own field as zero. Written for
    /// itself: what makes a handoff wrong shares nothing with what checks it.
    fn checksum(&self, length: usize) -> u32 {
        const FIELD: usize = offset_of!(Header, checksum);
        let bytes = self.place.iter().enumerate().take(length);
        !bytes.fold(u32::MAX, |sum, (at, &byte)| {
            let byte = if (FIELD..FIELD + 4).contains(&at) {
                0
            } else {
                byte
            };
            (0..8).fold(sum ^ u32::from(byte), |sum, _| {
                sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        })
    }
}
