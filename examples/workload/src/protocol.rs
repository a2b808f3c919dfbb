//! The datagrams of the key-value service. Little-endian; a header and the value after it.
//!
//! A client numbers its requests, and the reply repeats the number. Writes are not idempotent on
//! purpose: `writes` and `applied` of the reply count each application, so a write that was lost or
//! applied twice shows.

use core::fmt;
use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The UDP port of the service.
pub const PORT: u16 = 7777;
/// "BKV1".
pub const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"BKV1");
/// "RKV1".
pub const REPLY_MAGIC: u32 = 0x3156_4b52;
/// The longest value, in bytes.
pub const MAX_VALUE: usize = 1024;
/// The longest datagram either way, in bytes.
pub const MAX_DATAGRAM: usize = size_of::<ReplyHeader>() + MAX_VALUE;

/// What a request asks for.
pub mod op {
    /// Store the value, and count.
    pub const WRITE: u8 = 1;
    /// Give the value.
    pub const READ: u8 = 2;
    /// Set in a reply's `op`.
    pub const REPLY: u8 = 0x80;
}

/// How a request ended.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// The key was never written.
    pub const NOT_FOUND: u8 = 1;
    /// The request is not understood, or the store is full. Nothing was changed.
    pub const REFUSED: u8 = 2;
}

/// What a request begins with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// One of [`op`].
    pub op: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The client's number for the request.
    pub sequence: U64,
    /// The key.
    pub key: U32,
    /// Bytes of the value that follows; 0 for a read.
    pub value_length: U32,
    /// Zero.
    pub reserved2: U64,
}

/// What a reply begins with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ReplyHeader {
    /// [`REPLY_MAGIC`].
    pub magic: U32,
    /// The request's, with [`op::REPLY`].
    pub op: u8,
    /// One of [`status`].
    pub status: u8,
    /// The letter of the kernel that answers, in ASCII.
    pub kernel: u8,
    /// How many swaps the workload has seen, modulo 256.
    pub swap: u8,
    /// The request's.
    pub sequence: U64,
    /// The request's.
    pub key: U32,
    /// Bytes of the value that follows; 0 unless a read succeeded.
    pub value_length: U32,
    /// How many writes the key has ever taken.
    pub writes: U64,
    /// How many writes the store has ever applied.
    pub applied: U64,
}

const _: () = {
    assert!(size_of::<RequestHeader>() == 32);
    assert!(offset_of!(RequestHeader, op) == 4);
    assert!(offset_of!(RequestHeader, sequence) == 8);
    assert!(offset_of!(RequestHeader, key) == 16);
    assert!(offset_of!(RequestHeader, value_length) == 20);
    assert!(offset_of!(RequestHeader, reserved2) == 24);
    assert!(size_of::<ReplyHeader>() == 40);
    assert!(offset_of!(ReplyHeader, status) == 5);
    assert!(offset_of!(ReplyHeader, kernel) == 6);
    assert!(offset_of!(ReplyHeader, swap) == 7);
    assert!(offset_of!(ReplyHeader, sequence) == 8);
    assert!(offset_of!(ReplyHeader, key) == 16);
    assert!(offset_of!(ReplyHeader, value_length) == 20);
    assert!(offset_of!(ReplyHeader, writes) == 24);
    assert!(offset_of!(ReplyHeader, applied) == 32);
};

/// Why a datagram is not a request or a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// Shorter than a header.
    Short(usize),
    /// The magic number is another one.
    Magic(u32),
    /// The operation is unknown.
    Op(u8),
    /// A reserved byte is not zero.
    Reserved,
    /// The length of the value is out of bounds, or not what the datagram carries.
    Length {
        /// As the header states it.
        stated: u32,
        /// Bytes that follow the header.
        carried: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(length) => write!(f, "a datagram of {length} bytes has no header"),
            Self::Magic(magic) => write!(f, "the magic number is {magic:#x}"),
            Self::Op(op) => write!(f, "operation {op} is unknown"),
            Self::Reserved => f.write_str("a reserved byte is not zero"),
            Self::Length { stated, carried } => write!(
                f,
                "a value of {stated} bytes is stated and {carried} bytes are carried"
            ),
        }
    }
}

impl core::error::Error for DecodeError {}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Store `value` under `key`.
    Write {
        /// The client's number.
        sequence: u64,
        /// The key.
        key: u32,
        /// The value, at most [`MAX_VALUE`] bytes.
        value: &'a [u8],
    },
    /// Give the value of `key`.
    Read {
        /// The client's number.
        sequence: u64,
        /// The key.
        key: u32,
    },
}

fn value_of(stated: u32, carried: &[u8]) -> Result<&[u8], DecodeError> {
    if stated as usize != carried.len() || carried.len() > MAX_VALUE {
        return Err(DecodeError::Length {
            stated,
            carried: carried.len(),
        });
    }
    Ok(carried)
}

impl<'a> Request<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// Where it is not a request to the letter.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        let (header, carried) = RequestHeader::ref_from_prefix(datagram)
            .map_err(|_| DecodeError::Short(datagram.len()))?;
        if header.magic != REQUEST_MAGIC {
            return Err(DecodeError::Magic(header.magic.get()));
        }
        if header.reserved != [0; 3] || header.reserved2 != 0 {
            return Err(DecodeError::Reserved);
        }
        let (sequence, key) = (header.sequence.get(), header.key.get());
        let value = value_of(header.value_length.get(), carried)?;
        match header.op {
            op::WRITE => Ok(Self::Write {
                sequence,
                key,
                value,
            }),
            op::READ if value.is_empty() => Ok(Self::Read { sequence, key }),
            op::READ => Err(DecodeError::Length {
                stated: header.value_length.get(),
                carried: value.len(),
            }),
            other => Err(DecodeError::Op(other)),
        }
    }

    /// Writes the datagram to the start of `out` and says how long it is; `None` where the value is
    /// too long or `out` too short.
    #[must_use]
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let (op, sequence, key, value) = match *self {
            Self::Write {
                sequence,
                key,
                value,
            } => (op::WRITE, sequence, key, value),
            Self::Read { sequence, key } => (op::READ, sequence, key, [].as_slice()),
        };
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            op,
            reserved: [0; 3],
            sequence: sequence.into(),
            key: key.into(),
            value_length: u32::try_from(value.len()).ok()?.into(),
            reserved2: 0.into(),
        };
        put(&header, value, out)
    }
}

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// One of [`op`], without [`op::REPLY`].
    pub op: u8,
    /// One of [`status`].
    pub status: u8,
    /// The letter of the kernel that answers.
    pub kernel: u8,
    /// How many swaps the workload has seen, modulo 256.
    pub swap: u8,
    /// The request's number.
    pub sequence: u64,
    /// The request's key.
    pub key: u32,
    /// How many writes the key has ever taken.
    pub writes: u64,
    /// How many writes the store has ever applied.
    pub applied: u64,
    /// The value, where a read succeeded.
    pub value: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// Where it is not a reply to the letter.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        let (header, carried) = ReplyHeader::ref_from_prefix(datagram)
            .map_err(|_| DecodeError::Short(datagram.len()))?;
        if header.magic != REPLY_MAGIC {
            return Err(DecodeError::Magic(header.magic.get()));
        }
        if header.op & op::REPLY == 0 {
            return Err(DecodeError::Op(header.op));
        }
        Ok(Self {
            op: header.op & !op::REPLY,
            status: header.status,
            kernel: header.kernel,
            swap: header.swap,
            sequence: header.sequence.get(),
            key: header.key.get(),
            writes: header.writes.get(),
            applied: header.applied.get(),
            value: value_of(header.value_length.get(), carried)?,
        })
    }

    /// Writes the datagram to the start of `out` and says how long it is; `None` where the value is
    /// too long or `out` too short.
    #[must_use]
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let header = ReplyHeader {
            magic: REPLY_MAGIC.into(),
            op: self.op | op::REPLY,
            status: self.status,
            kernel: self.kernel,
            swap: self.swap,
            sequence: self.sequence.into(),
            key: self.key.into(),
            value_length: u32::try_from(self.value.len()).ok()?.into(),
            writes: self.writes.into(),
            applied: self.applied.into(),
        };
        put(&header, self.value, out)
    }
}

fn put(header: &(impl IntoBytes + Immutable), value: &[u8], out: &mut [u8]) -> Option<usize> {
    if value.len() > MAX_VALUE {
        return None;
    }
    let header = header.as_bytes();
    let length = header.len() + value.len();
    let (head, tail) = out.get_mut(..length)?.split_at_mut_checked(header.len())?;
    head.copy_from_slice(header);
    tail.copy_from_slice(value);
    Some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_laid_out_as_agreed() {
        let mut out = [0xee; 64];
        let request = Request::Write {
            sequence: 0x0102_0304_0506_0708,
            key: 0xa0b0_c0d0,
            value: b"xyz",
        };
        assert_eq!(request.encode(&mut out), Some(35));
        assert_eq!(
            out[..35],
            *b"BKV1\x01\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01\xd0\xc0\xb0\xa0\x03\0\0\0\0\0\0\0\0\0\0\0xyz"
        );
    }

    #[test]
    fn a_reply_is_laid_out_as_agreed() {
        let mut out = [0xee; 64];
        let reply = Reply {
            op: op::READ,
            status: status::OK,
            kernel: b'a',
            swap: 3,
            sequence: 9,
            key: 5,
            writes: 7,
            applied: 8,
            value: b"v",
        };
        assert_eq!(reply.encode(&mut out), Some(41));
        assert_eq!(
            out[..41],
            *b"RKV1\x82\0a\x03\x09\0\0\0\0\0\0\0\x05\0\0\0\x01\0\0\0\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0v"
        );
    }

    #[test]
    fn each_wrong_field_is_named() {
        let mut datagram = [0; 36];
        let request = Request::Write {
            sequence: 1,
            key: 2,
            value: b"abcd",
        };
        assert_eq!(request.encode(&mut datagram), Some(36));
        let with = |at: usize, byte: u8| {
            let mut copy = datagram;
            copy[at] = byte;
            copy
        };
        assert_eq!(
            Request::decode(&datagram[..31]),
            Err(DecodeError::Short(31))
        );
        assert!(matches!(
            Request::decode(&with(0, 0)),
            Err(DecodeError::Magic(_))
        ));
        assert_eq!(Request::decode(&with(4, 9)), Err(DecodeError::Op(9)));
        assert_eq!(Request::decode(&with(6, 1)), Err(DecodeError::Reserved));
        assert_eq!(Request::decode(&with(31, 1)), Err(DecodeError::Reserved));
        for wrong in [with(20, 3), with(20, 5), with(23, 1), with(4, op::READ)] {
            assert!(matches!(
                Request::decode(&wrong),
                Err(DecodeError::Length { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            write: bool,
            sequence: u64,
            key: u32,
            value in proptest::collection::vec(any::<u8>(), 0..=MAX_VALUE),
        ) {
            let request = if write {
                Request::Write { sequence, key, value: &value }
            } else {
                Request::Read { sequence, key }
            };
            let mut out = [0; MAX_DATAGRAM];
            let length = request.encode(&mut out).unwrap();
            prop_assert_eq!(Request::decode(&out[..length]), Ok(request));
            prop_assert_eq!(request.encode(&mut out[..length - 1]), None);
        }

        #[test]
        fn replies_survive_the_wire(
            header: [u8; 4],
            numbers: (u64, u32, u64, u64),
            value in proptest::collection::vec(any::<u8>(), 0..=MAX_VALUE),
        ) {
            let reply = Reply {
                op: header[0] & !op::REPLY,
                status: header[1],
                kernel: header[2],
                swap: header[3],
                sequence: numbers.0,
                key: numbers.1,
                writes: numbers.2,
                applied: numbers.3,
                value: &value,
            };
            let mut out = [0; MAX_DATAGRAM];
            let length = reply.encode(&mut out).unwrap();
            prop_assert_eq!(Reply::decode(&out[..length]), Ok(reply));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = bytes;
            for (to, from) in bytes.iter_mut().zip(REQUEST_MAGIC.to_le_bytes()) {
                *to = from;
            }
            if let Ok(request) = Request::decode(&bytes) {
                let mut out = [0; MAX_DATAGRAM];
                let length = request.encode(&mut out).unwrap();
                prop_assert_eq!(&out[..length], &bytes[..]);
            }
        }
    }
}
