//! The key-value protocol, written from its description and not from the kernels' sources: the
//! client is the judge of what they send.
//!
//! All little-endian. Request: magic, operation, three reserved bytes, sequence, key, length of the
//! value, eight reserved bytes, value. Reply: magic, operation with the high bit set, status, the
//! serving kernel's letter, the number of swaps, sequence, key, length of the value, how many writes
//! the key has taken, how many the store has taken, value.

const REQUEST_MAGIC: u32 = 0x3156_4b42;
const REPLY_MAGIC: u32 = 0x3156_4b52;
const REQUEST_HEADER: usize = 32;
const REPLY_HEADER: usize = 40;
const REPLY_BIT: u8 = 0x80;

/// The longest value.
pub(crate) const LONGEST_VALUE: usize = 1024;

/// The shortest value this client writes: its sequence number, its key and its length.
const SHORTEST_VALUE: usize = 16;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Store the value.
    Write = 1,
    /// Return the value.
    Read = 2,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Done.
    Ok,
    /// The key was never written.
    NotFound,
    /// The server would not.
    Refused,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// What was asked for.
    pub(crate) operation: Operation,
    /// How it went.
    pub(crate) status: Status,
    /// The letter of the kernel that answered.
    pub(crate) kernel: u8,
    /// How many swaps the workload has seen, modulo 256.
    pub(crate) swap: u8,
    /// The request's number.
    pub(crate) sequence: u64,
    /// The request's key.
    pub(crate) key: u32,
    /// How many writes the key has ever taken.
    pub(crate) writes: u64,
    /// How many writes the store has ever applied.
    pub(crate) applied: u64,
    /// The value, for reads.
    pub(crate) value: Vec<u8>,
}

/// The bytes of a request.
pub(crate) fn request(operation: Operation, sequence: u64, key: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_HEADER + value.len());
    bytes.extend(REQUEST_MAGIC.to_le_bytes());
    bytes.extend([operation as u8, 0, 0, 0]);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(key.to_le_bytes());
    bytes.extend((value.len() as u32).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(value);
    bytes
}

/// The number of the request in `bytes`, if they are one.
pub(crate) fn request_sequence(bytes: &[u8]) -> Option<u64> {
    (bytes.len() >= REQUEST_HEADER && u32_at(bytes, 0)? == REQUEST_MAGIC)
        .then(|| u64_at(bytes, 8))?
}

/// The number of the request that `bytes` answer, if they are a reply.
pub(crate) fn reply_sequence(bytes: &[u8]) -> Option<u64> {
    (bytes.len() >= REPLY_HEADER && u32_at(bytes, 0)? == REPLY_MAGIC).then(|| u64_at(bytes, 8))?
}

/// Reads a reply; what is wrong with it where it is none.
pub(crate) fn parse_reply(bytes: &[u8]) -> Result<Reply, String> {
    let short = || format!("a reply of {} bytes is too short", bytes.len());
    if bytes.len() < REPLY_HEADER {
        return Err(short());
    }
    let magic = u32_at(bytes, 0).ok_or_else(short)?;
    if magic != REPLY_MAGIC {
        return Err(format!("a reply begins with {magic:#010x}"));
    }
    let operation = match bytes[4].checked_sub(REPLY_BIT) {
        Some(1) => Operation::Write,
        Some(2) => Operation::Read,
        _ => return Err(format!("a reply has the operation {:#04x}", bytes[4])),
    };
    let status = match bytes[5] {
        0 => Status::Ok,
        1 => Status::NotFound,
        2 => Status::Refused,
        other => return Err(format!("a reply has the status {other}")),
    };
    let length = u32_at(bytes, 20).ok_or_else(short)? as usize;
    let value = &bytes[REPLY_HEADER..];
    if value.len() != length {
        return Err(format!(
            "a reply promises {length} bytes of value and has {}",
            value.len()
        ));
    }
    Ok(Reply {
        operation,
        status,
        kernel: bytes[6],
        swap: bytes[7],
        sequence: u64_at(bytes, 8).ok_or_else(short)?,
        key: u32_at(bytes, 16).ok_or_else(short)?,
        writes: u64_at(bytes, 24).ok_or_else(short)?,
        applied: u64_at(bytes, 32).ok_or_else(short)?,
        value: value.to_vec(),
    })
}

/// The value that write `sequence` puts below `key`: every byte follows from the two, so that a
/// reader can tell whose value it is and that all of it is there.
pub(crate) fn value_of(key: u32, sequence: u64) -> Vec<u8> {
    let mut random = Random::new(sequence ^ (u64::from(key) << 40));
    let span = (LONGEST_VALUE - SHORTEST_VALUE) as u64;
    // Mostly short, sometimes as long as may be.
    let extra = if random.below(32) == 0 {
        span
    } else {
        random.below(256)
    };
    let length = SHORTEST_VALUE + extra as usize;
    let mut value = Vec::with_capacity(length + 8);
    value.extend(sequence.to_le_bytes());
    value.extend(key.to_le_bytes());
    value.extend((length as u32).to_le_bytes());
    while value.len() < length {
        value.extend(random.next().to_le_bytes());
    }
    value.truncate(length);
    value
}

/// The write that `value` below `key` came from, if all of it is as that write made it.
pub(crate) fn written_by(key: u32, value: &[u8]) -> Option<u64> {
    let sequence = u64_at(value, 0)?;
    (value == value_of(key, sequence)).then_some(sequence)
}

/// Repeatable numbers (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    /// From `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(eight.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes of a reply, as a server would send them.
    pub(crate) fn reply_bytes(reply: &Reply) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(*b"RKV1");
        bytes.push(reply.operation as u8 | 0x80);
        bytes.push(match reply.status {
            Status::Ok => 0,
            Status::NotFound => 1,
            Status::Refused => 2,
        });
        bytes.extend([reply.kernel, reply.swap]);
        bytes.extend(reply.sequence.to_le_bytes());
        bytes.extend(reply.key.to_le_bytes());
        bytes.extend((reply.value.len() as u32).to_le_bytes());
        bytes.extend(reply.writes.to_le_bytes());
        bytes.extend(reply.applied.to_le_bytes());
        bytes.extend(&reply.value);
        bytes
    }

    #[test]
    fn a_request_has_its_fields_where_the_description_says() {
        let bytes = request(
            Operation::Write,
            0x0102_0304_0506_0708,
            0xa1b2_c3d4,
            b"value",
        );
        assert_eq!(&bytes[0..4], b"BKV1");
        assert_eq!(bytes[4], 1);
        assert_eq!(bytes[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0xd4, 0xc3, 0xb2, 0xa1]);
        assert_eq!(bytes[20..24], [5, 0, 0, 0]);
        assert_eq!(&bytes[32..], b"value");
        assert_eq!(request_sequence(&bytes), Some(0x0102_0304_0506_0708));
        assert_eq!(reply_sequence(&bytes), None);
    }

    #[test]
    fn a_value_names_its_write_and_a_changed_byte_shows() {
        let value = value_of(7, 99);
        assert_eq!(written_by(7, &value), Some(99));
        assert_eq!(written_by(8, &value), None);
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 1;
            assert_eq!(written_by(7, &changed), None, "byte {at}");
        }
        assert_eq!(written_by(7, &value[..value.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_reply(&bytes);
            let _ = request_sequence(&bytes);
            let _ = reply_sequence(&bytes);
        }

        #[test]
        fn a_reply_is_read_as_it_was_sent(sequence: u64, key: u32, writes: u64, swap: u8,
                                         value in prop::collection::vec(any::<u8>(), 0..64)) {
            let reply = Reply {
                operation: Operation::Read, status: Status::Ok, kernel: b'a', swap, sequence, key,
                writes, applied: writes, value,
            };
            prop_assert_eq!(parse_reply(&reply_bytes(&reply)), Ok(reply));
        }

        #[test]
        fn values_fit_the_protocol(key: u32, sequence: u64) {
            let value = value_of(key, sequence);
            prop_assert!(value.len() <= LONGEST_VALUE);
            prop_assert_eq!(written_by(key, &value), Some(sequence));
        }
    }
}
