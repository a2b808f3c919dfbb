//! What the host sees of the workload's memory while it changes hands.
//!
//! The device goes on receiving while nobody serves: what it may write by itself (its used rings and
//! the buffers it was given for that) is no kernel's doing and is told apart. All else must be the
//! same, byte for byte, when the next kernel owns it.

use std::ops::Range;

use anyhow::{Context, Result, bail};

use crate::qmp::RingAddresses;

/// Bytes of a descriptor, and where its fields are (virtio 1.x, 2.7.5).
const DESCRIPTOR: u64 = 16;
/// The device writes this descriptor's buffer.
const WRITE: u16 = 2;
/// The descriptor's buffer holds a table of descriptors.
const INDIRECT: u16 = 4;

/// The workload's memory at one moment.
pub(super) struct Look {
    /// Where it begins.
    pub(super) base: u64,
    /// What is there.
    pub(super) bytes: Vec<u8>,
    /// Where the device has its queues.
    pub(super) rings: Vec<RingAddresses>,
}

/// How two looks compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Bytes that must be the same.
    pub(super) compared: u64,
    /// Those that are not, and the bytes of rings that moved.
    pub(super) copied: u64,
    /// Bytes that the device wrote meanwhile.
    pub(super) written_by_device: u64,
}

impl Look {
    fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn at<const N: usize>(&self, address: u64) -> Result<[u8; N]> {
        let offset = address
            .checked_sub(self.base)
            .and_then(|offset| usize::try_from(offset).ok())
            .with_context(|| format!("{address:#x} lies before the workload"))?;
        self.bytes
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .with_context(|| format!("{address:#x} lies behind the workload"))
    }

    /// Addresses that the device may write.
    fn device_writes(&self) -> Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        for ring in &self.rings {
            let entries = u64::from(ring.size);
            ranges.push(ring.used..ring.used + 6 + 8 * entries);
            for number in 0..entries {
                let descriptor = ring.descriptors + number * DESCRIPTOR;
                let address = u64::from_le_bytes(self.at(descriptor)?);
                let length = u32::from_le_bytes(self.at(descriptor + 8)?);
                let flags = u16::from_le_bytes(self.at(descriptor + 12)?);
                if flags & INDIRECT != 0 {
                    bail!("queue {} has an indirect descriptor", ring.queue);
                }
                if flags & WRITE != 0 {
                    ranges.push(address..address.saturating_add(length.into()));
                }
            }
        }
        Ok(ranges)
    }

    /// Compares this look, at the freeze, with a later one, after the commit.
    pub(super) fn compare(&self, later: &Self) -> Result<Comparison> {
        if (self.base, self.bytes.len()) != (later.base, later.bytes.len()) {
            bail!(
                "the workload moved from {:#x} to {:#x}",
                self.base,
                later.base
            );
        }
        let mut theirs = vec![false; self.bytes.len()];
        for range in self.device_writes()? {
            let begin = range.start.clamp(self.base, self.end()) - self.base;
            let end = range.end.clamp(self.base, self.end()) - self.base;
            theirs[usize::try_from(begin)?..usize::try_from(end)?].fill(true);
        }
        let mut found = Comparison::default();
        for ((before, after), &device) in self.bytes.iter().zip(&later.bytes).zip(&theirs) {
            let changed = u64::from(before != after);
            if device {
                found.written_by_device += changed;
            } else {
                found.compared += 1;
                found.copied += changed;
            }
        }
        let moved = self.rings.iter().zip(&later.rings);
        found.copied += moved
            .filter(|(before, after)| before != after)
            .map(|(before, _)| before.bytes())
            .sum::<u64>();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::{Comparison, Look};
    use crate::qmp::RingAddresses;

    const BASE: u64 = 0x10_0000;

    /// A queue of two descriptors: the device reads the first one's buffer at 0x400 and writes the
    /// second one's at 0x500, 16 bytes each.
    fn look() -> Look {
        let mut bytes = vec![0; 0x1000];
        let mut descriptor = |at: usize, buffer: u64, flags: u8| {
            bytes[at..at + 8].copy_from_slice(&(BASE + buffer).to_le_bytes());
            bytes[at + 8] = 16;
            bytes[at + 12] = flags;
        };
        descriptor(0x100, 0x400, 0);
        descriptor(0x110, 0x500, 2);
        Look {
            base: BASE,
            bytes,
            rings: vec![RingAddresses {
                queue: 0,
                size: 2,
                descriptors: BASE + 0x100,
                available: BASE + 0x200,
                used: BASE + 0x300,
            }],
        }
    }

    fn compared(changes: &[usize]) -> Comparison {
        let mut later = look();
        for &at in changes {
            later.bytes[at] ^= 1;
        }
        look().compare(&later).unwrap()
    }

    #[test]
    fn what_the_device_writes_is_no_copy() {
        let found = compared(&[0x300, 0x315, 0x500, 0x50f]);
        assert_eq!(found.copied, 0);
        assert_eq!(found.written_by_device, 4);
        assert_eq!(found.compared, 0x1000 - (6 + 16) - 16);
    }

    #[test]
    fn everything_else_is() {
        for at in [
            0, 0x100, 0x118, 0x200, 0x2ff, 0x316, 0x400, 0x4ff, 0x510, 0xfff,
        ] {
            assert_eq!(compared(&[at]).copied, 1, "{at:#x}");
        }
    }

    #[test]
    fn a_ring_that_moved_was_copied() {
        let mut later = look();
        later.rings[0].used += 0x40;
        assert_eq!(look().compare(&later).unwrap().copied, 32 + 10 + 22);
    }

    #[test]
    fn a_queue_outside_of_the_workload_is_an_error() {
        let mut outside = look();
        outside.rings[0].descriptors = BASE - 16;
        assert!(outside.compare(&look()).is_err());
        let mut beyond = look();
        beyond.rings[0].descriptors = BASE + 0xff8;
        assert!(beyond.compare(&look()).is_err());
        let mut indirect = look();
        indirect.bytes[0x10c] = 4;
        assert!(indirect.compare(&look()).is_err());
    }
}
