//! The head of a handoff and the frame of its records.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{AbiVersion, Features, PartitionId, PhysAddr};

/// The first eight bytes of a handoff: `BATON`, a zero, a DOS end-of-file and a line feed, so that
/// a copy through something that changes text is noticed.
pub const MAGIC: u64 = u64::from_le_bytes(*b"BATON\0\x1a\n");

/// The head of a handoff. Little-endian, at an 8-byte boundary.
///
/// A reader takes `header_length` bytes, at least [`Self::LENGTH_V0_1`], and ignores what is past
/// the fields it knows; a field that the writer's version did not have reads as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// The version this handoff is written in.
    pub version: AbiVersion,
    /// Bytes of this header; the first record begins there. A multiple of 8.
    pub header_length: u32,
    /// Bytes of the whole handoff, header and records. A multiple of 8.
    pub length: u64,
    /// Where in physical memory the handoff was written. One that is found anywhere else is a copy
    /// and is refused.
    pub self_address: PhysAddr,
    /// What the writer can do.
    pub features: Features,
    /// What the reader must be able to do.
    pub required: Features,
    /// How many records follow.
    pub record_count: u32,
    /// CRC-32/ISO-HDLC of all `length` bytes, with this field as zero.
    pub checksum: u32,
    /// The stewardship's epoch in which it was written.
    pub epoch: u64,
    /// The partition that wrote it.
    pub writer: PartitionId,
    /// The partition that it is for.
    pub reader: PartitionId,
    /// Zero.
    pub reserved: u32,
    /// From version 0.2: how many swaps this machine has been through since power-on.
    pub swaps: u64,
}

impl Header {
    /// Bytes of the header in version 0.1.
    pub const LENGTH_V0_1: u32 = 72;
    /// Bytes of the header in version 0.2.
    pub const LENGTH_V0_2: u32 = 80;

    /// Bytes of the header in `version`.
    #[must_use]
    pub const fn length_in(version: AbiVersion) -> u32 {
        if version.minor < AbiVersion::V0_2.minor {
            Self::LENGTH_V0_1
        } else {
            Self::LENGTH_V0_2
        }
    }
}

/// The head of a record. The next record begins `length` bytes after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHeader {
    /// What it is: one of [`kind`](crate::kind), or unknown.
    pub kind: u32,
    /// [`Self::CRITICAL`] or 0.
    pub flags: u32,
    /// Bytes of the record, this header included. A multiple of 8, at least 16.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
}

impl RecordHeader {
    /// Flag: a reader that does not know the record's kind must refuse the handoff.
    pub const CRITICAL: u32 = 1 << 0;
}

const _: () = {
    assert!(size_of::<Header>() == Header::LENGTH_V0_2 as usize);
    assert!(offset_of!(Header, magic) == 0);
    assert!(offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, header_length) == 12);
    assert!(offset_of!(Header, length) == 16);
    assert!(offset_of!(Header, self_address) == 24);
    assert!(offset_of!(Header, features) == 32);
    assert!(offset_of!(Header, required) == 40);
    assert!(offset_of!(Header, record_count) == 48);
    assert!(offset_of!(Header, checksum) == 52);
    assert!(offset_of!(Header, epoch) == 56);
    assert!(offset_of!(Header, writer) == 64);
    assert!(offset_of!(Header, reader) == 66);
    assert!(offset_of!(Header, reserved) == 68);
    assert!(offset_of!(Header, swaps) == Header::LENGTH_V0_1 as usize);
    assert!(size_of::<RecordHeader>() == 16);
    assert!(offset_of!(RecordHeader, kind) == 0);
    assert!(offset_of!(RecordHeader, flags) == 4);
    assert!(offset_of!(RecordHeader, length) == 8);
    assert!(offset_of!(RecordHeader, reserved) == 12);
};
