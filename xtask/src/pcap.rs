//! The packets of the emulated network device, as the emulator recorded them (libpcap format).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::client::wire::{reply_sequence, request_sequence};

/// The service's UDP port in the guest.
const PORT: u16 = 7777;

const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;

/// What the recording shows of the service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packets {
    /// Requests on their way to the device, by number.
    pub(crate) requests: BTreeSet<u64>,
    /// Replies on their way out, by number.
    pub(crate) replies: BTreeSet<u64>,
    /// Requests that came more than once.
    pub(crate) repeated_requests: u64,
    /// Replies that went out more than once.
    pub(crate) repeated_replies: u64,
    /// Times of replies in the machine's own time, nanoseconds, in order.
    pub(crate) reply_times: Vec<u64>,
    /// Packets of any kind.
    pub(crate) packets: u64,
}

impl Packets {
    /// Reads a recording.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("in {}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let word = |at: usize| -> Option<u32> {
            let four = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(four.try_into().ok()?))
        };
        let fraction = match word(0) {
            Some(MICROSECONDS) => 1_000,
            Some(NANOSECONDS) => 1,
            _ => bail!("this is no recording of packets"),
        };
        if word(20) != Some(ETHERNET) {
            bail!("the packets are not Ethernet");
        }
        let mut packets = Self::default();
        let mut at = FILE_HEADER;
        // The emulator may be cut off inside the last packet: what is whole counts.
        while let (Some(seconds), Some(part), Some(length)) = (word(at), word(at + 4), word(at + 8))
        {
            let begin = at + PACKET_HEADER;
            let Some(frame) = bytes.get(begin..begin + length as usize) else {
                break;
            };
            let time = u64::from(seconds) * 1_000_000_000 + u64::from(part) * fraction;
            packets.packets += 1;
            packets.take(frame, time);
            at = begin + length as usize;
        }
        Ok(packets)
    }

    fn take(&mut self, frame: &[u8], time: u64) {
        let Some((source, destination, payload)) = udp(frame) else {
            return;
        };
        if destination == PORT
            && let Some(sequence) = request_sequence(payload)
        {
            self.repeated_requests += u64::from(!self.requests.insert(sequence));
        }
        if source == PORT
            && let Some(sequence) = reply_sequence(payload)
        {
            self.reply_times.push(time);
            self.repeated_replies += u64::from(!self.replies.insert(sequence));
        }
    }

    /// Packets that were lost on their way, given the numbers of all requests that were sent: those
    /// that never reached the device, and those that the device's driver never answered.
    pub(crate) fn dropped(&self, sent: &BTreeSet<u64>) -> Dropped {
        Dropped {
            before_device: sent.difference(&self.requests).count() as u64,
            inside: self.requests.difference(&self.replies).count() as u64,
        }
    }
}

/// Where packets were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Sent by the client and never seen at the emulated device.
    pub(crate) before_device: u64,
    /// Seen at the device and never answered.
    pub(crate) inside: u64,
}

/// Source port, destination port and payload of a UDP datagram in IPv4 in Ethernet.
fn udp(frame: &[u8]) -> Option<(u16, u16, &[u8])> {
    let half = |at: usize| -> Option<u16> {
        let two = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes(two.try_into().ok()?))
    };
    if half(12)? != 0x0800 || frame.get(14)? >> 4 != 4 || *frame.get(23)? != 17 {
        return None;
    }
    let header = usize::from(frame.get(14)? & 15) * 4;
    let udp = 14 + header;
    let length = usize::from(half(udp + 4)?);
    let payload = frame.get(udp + 8..udp + length)?;
    Some((half(udp)?, half(udp + 2)?, payload))
}

#[cfg(test)]
mod tests {
    use super::{Dropped, Packets, udp};
    use crate::client::wire::tests::reply_bytes;
    use crate::client::wire::{Operation, Reply, Status, request};
    use proptest::prelude::*;

    fn frame(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00]);
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17];
        ip.resize(20, 0);
        bytes.extend(ip);
        bytes.extend(source.to_be_bytes());
        bytes.extend(destination.to_be_bytes());
        bytes.extend((payload.len() as u16 + 8).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload);
        bytes
    }

    fn recording(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xa1b2_c3d4u32.to_le_bytes());
        bytes.extend([2, 0, 4, 0]);
        bytes.extend([0; 8]);
        bytes.extend(65536u32.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        for (number, frame) in (1u32..).zip(frames) {
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(number.to_le_bytes());
            bytes.extend((frame.len() as u32).to_le_bytes());
            bytes.extend((frame.len() as u32).to_le_bytes());
            bytes.extend(frame);
        }
        bytes
    }

    fn asked(sequence: u64) -> Vec<u8> {
        frame(40000, 7777, &request(Operation::Read, sequence, 1, &[]))
    }

    fn answered(sequence: u64) -> Vec<u8> {
        let reply = Reply {
            operation: Operation::Read,
            status: Status::NotFound,
            kernel: b'a',
            swap: 0,
            sequence,
            key: 1,
            writes: 0,
            applied: 0,
            value: Vec::new(),
        };
        frame(7777, 40000, &reply_bytes(&reply))
    }

    #[test]
    fn requests_and_replies_are_matched_by_their_numbers() {
        let bytes = recording(&[
            asked(1),
            answered(1),
            asked(2),
            asked(3),
            answered(3),
            answered(3),
        ]);
        let packets = Packets::parse(&bytes).unwrap();
        assert_eq!(packets.packets, 6);
        assert_eq!(packets.repeated_replies, 1);
        assert_eq!(
            packets.reply_times,
            [1_000_002_000, 1_000_005_000, 1_000_006_000]
        );
        assert_eq!(
            packets.dropped(&(1..=4).collect()),
            Dropped {
                before_device: 1,
                inside: 1
            }
        );
    }

    #[test]
    fn other_packets_are_counted_and_passed_over() {
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let packets = Packets::parse(&recording(&[
            arp,
            frame(53, 40000, b"x"),
            frame(7777, 9, b""),
        ]))
        .unwrap();
        assert_eq!(packets.packets, 3);
        assert!(packets.requests.is_empty() && packets.replies.is_empty());
    }

    #[test]
    fn a_cut_recording_counts_as_far_as_it_goes() {
        let whole = recording(&[asked(1), answered(1)]);
        let packets = Packets::parse(&whole[..whole.len() - 1]).unwrap();
        assert_eq!(packets.packets, 1);
        assert!(Packets::parse(b"something else altogether").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = udp(&bytes);
            let mut file = recording(&[]);
            file.extend(&bytes);
            let _ = Packets::parse(&file);
        }
    }
}
