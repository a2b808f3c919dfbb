//! Writing a handoff.

use core::fmt;
use core::mem::size_of;

use zerocopy::IntoBytes;

use crate::header::{Header, MAGIC, RecordHeader};
use crate::read::{checksum, put_header};
use crate::records::Record;
use crate::{AbiVersion, Features, PartitionId, PhysAddr, kind};

/// Why a handoff cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum WriteError {
    /// The buffer is full.
    NoRoom {
        /// Bytes that are needed at least.
        need: usize,
        /// Bytes the buffer has.
        have: usize,
    },
    /// The version is none that this crate writes.
    Version(AbiVersion),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { need, have } => {
                write!(f, "the handoff needs {need} bytes and has room for {have}")
            }
            Self::Version(version) => write!(f, "handoff version {version} cannot be written"),
        }
    }
}

impl core::error::Error for WriteError {}

/// Who writes a handoff, for whom, and in which version.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The version both sides speak.
    pub version: AbiVersion,
    /// Where in physical memory the finished bytes will lie.
    pub self_address: PhysAddr,
    /// What the writer can do.
    pub features: Features,
    /// What the reader must be able to do.
    pub required: Features,
    /// The stewardship's epoch.
    pub epoch: u64,
    /// The writer's partition.
    pub writer: PartitionId,
    /// The reader's partition.
    pub reader: PartitionId,
    /// Swaps since power-on; lost in version 0.1, which has no field for it.
    pub swaps: u64,
}

impl Envelope {
    /// The envelope of a first handoff, in the newest version: nobody can do or needs more than the
    /// version has.
    #[must_use]
    pub const fn new(writer: PartitionId, reader: PartitionId, self_address: PhysAddr) -> Self {
        Self {
            version: AbiVersion::NEWEST,
            self_address,
            features: Features::empty(),
            required: Features::empty(),
            epoch: 1,
            writer,
            reader,
            swaps: 0,
        }
    }
}

/// The version that a kind of record came with. What this crate does not know is the caller's.
const fn first_version_with(of: u32) -> AbiVersion {
    match of {
        kind::HISTORY | kind::AMD_VI_UNIT => AbiVersion::V0_2,
        _ => AbiVersion::OLDEST,
    }
}

/// Writes a handoff into a buffer, which is copied to its place when it is finished.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    envelope: Envelope,
    at: usize,
    records: u32,
}

impl<'a> Writer<'a> {
    /// Begins a handoff.
    ///
    /// # Errors
    /// Where the buffer is too small for the header, or the version unknown.
    pub fn new(buffer: &'a mut [u8], envelope: Envelope) -> Result<Self, WriteError> {
        let version = envelope.version;
        if version < AbiVersion::OLDEST || version > AbiVersion::NEWEST {
            return Err(WriteError::Version(version));
        }
        let at = Header::length_in(version) as usize;
        if buffer.len() < at {
            return Err(WriteError::NoRoom {
                need: at,
                have: buffer.len(),
            });
        }
        Ok(Self {
            buffer,
            envelope,
            at,
            records: 0,
        })
    }

    /// Appends a record that a reader must understand. One that the handoff's version does not
    /// have is written all the same: a reader of that version refuses the handoff by the record's
    /// kind, which is better than to do without what it must know.
    ///
    /// # Errors
    /// Where the buffer is full.
    pub fn critical<R: Record>(&mut self, record: &R) -> Result<(), WriteError> {
        self.append(R::KIND, RecordHeader::CRITICAL, record.as_bytes())
    }

    /// Appends a record that a reader may skip. One that the handoff's version does not have is
    /// left out.
    ///
    /// # Errors
    /// Where the buffer is full.
    pub fn optional<R: Record>(&mut self, record: &R) -> Result<(), WriteError> {
        self.append(R::KIND, 0, record.as_bytes())
    }

    /// Appends a record of any kind; the payload is padded with zeros to a multiple of 8 bytes.
    ///
    /// # Errors
    /// Where the buffer is full.
    pub fn append(&mut self, of: u32, flags: u32, payload: &[u8]) -> Result<(), WriteError> {
        let critical = flags & RecordHeader::CRITICAL != 0;
        if !critical && self.envelope.version < first_version_with(of) {
            return Ok(());
        }
        let have = self.buffer.len();
        let body = payload.len().next_multiple_of(8);
        let length = size_of::<RecordHeader>().saturating_add(body);
        let need = self.at.saturating_add(length);
        let full = WriteError::NoRoom { need, have };
        let header = RecordHeader {
            kind: of,
            flags,
            length: u32::try_from(length).map_err(|_| full)?,
            reserved: 0,
        };
        let record = self.buffer.get_mut(self.at..need).ok_or(full)?;
        record.fill(0);
        let (head, rest) = record.split_at_mut(size_of::<RecordHeader>());
        head.copy_from_slice(header.as_bytes());
        for (to, from) in rest.iter_mut().zip(payload) {
            *to = *from;
        }
        self.at = need;
        self.records = self.records.saturating_add(1);
        Ok(())
    }

    /// Completes the header and the checksum and returns the finished bytes.
    #[must_use]
    pub fn finish(self) -> &'a [u8] {
        let envelope = self.envelope;
        let mut header = Header {
            magic: MAGIC,
            version: envelope.version,
            header_length: Header::length_in(envelope.version),
            length: self.at as u64,
            self_address: envelope.self_address,
            features: envelope.features,
            required: envelope.required,
            record_count: self.records,
            checksum: 0,
            epoch: envelope.epoch,
            writer: envelope.writer,
            reader: envelope.reader,
            reserved: 0,
            swaps: envelope.swaps,
        };
        let (written, _) = self.buffer.split_at_mut(self.at);
        // `new` proved that the header fits, so neither call can find too little room.
        let _ = put_header(&header, envelope.version, written);
        header.checksum = checksum(written);
        let _ = put_header(&header, envelope.version, written);
        written
    }
}
