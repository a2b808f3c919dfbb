//! Packet buffers: one for each descriptor of a ring.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::memory::Memory;

/// Bytes of a buffer.
pub const BUFFER: usize = 2048;

/// The buffers of one ring. Contents are copied in and out, in words of 8 bytes: while the device
/// owns a buffer, nobody here looks at it, and what has been copied out does not change any more.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    buffers: &'a [[AtomicU64; BUFFER / 8]],
    offset: u64,
}

impl<'a> Buffers<'a> {
    pub(crate) fn at(memory: &Memory<'a>, offset: u64, count: u16) -> Option<Self> {
        Some(Self {
            buffers: memory.slice(offset, usize::from(count))?,
            offset,
        })
    }

    /// The offset of buffer `index` from the start of the memory.
    #[must_use]
    pub const fn offset(&self, index: u16) -> u64 {
        self.offset + index as u64 * BUFFER as u64
    }

    /// Copies as much of buffer `index` to `to` as fits; says how many bytes that is. Nothing for
    /// a buffer that does not exist.
    pub fn copy_out(&self, index: u16, to: &mut [u8]) -> usize {
        let Some(buffer) = self.buffers.get(usize::from(index)) else {
            return 0;
        };
        let length = to.len().min(BUFFER);
        for (bytes, word) in to[..length].chunks_mut(8).zip(buffer) {
            let word = word.load(Relaxed).to_le_bytes();
            match <&mut [u8; 8]>::try_from(&mut *bytes) {
                Ok(whole) => *whole = word,
                Err(_) => bytes.copy_from_slice(&word[..bytes.len()]),
            }
        }
        length
    }

    /// Copies as much of `from` to the start of buffer `index` as fits; says how many bytes that
    /// is. The rest of the last word becomes zero.
    pub fn copy_in(&self, index: u16, from: &[u8]) -> usize {
        let Some(buffer) = self.buffers.get(usize::from(index)) else {
            return 0;
        };
        let length = from.len().min(BUFFER);
        for (bytes, word) in from[..length].chunks(8).zip(buffer) {
            let value = match <[u8; 8]>::try_from(bytes) {
                Ok(whole) => whole,
                Err(_) => {
                    let mut partial = [0; 8];
                    partial[..bytes.len()].copy_from_slice(bytes);
                    partial
                }
            };
            word.store(u64::from_le_bytes(value), Relaxed);
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec;

    use super::*;
    use crate::memory::Page;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            bytes in proptest::collection::vec(any::<u8>(), 0..=BUFFER),
            index in 0_u16..4,
        ) {
            let pages = [const { Page::new() }; 2];
            let buffers = Buffers::at(&Memory::from_pages(&pages), 0, 4).unwrap();
            prop_assert_eq!(buffers.copy_in(index, &bytes), bytes.len());
            let mut out = vec![0; bytes.len()];
            prop_assert_eq!(buffers.copy_out(index, &mut out), bytes.len());
            prop_assert_eq!(out, bytes);
            for other in (0..4).filter(|&other| other != index) {
                let mut out = [1; BUFFER];
                prop_assert_eq!(buffers.copy_out(other, &mut out), BUFFER);
                prop_assert_eq!(out, [0; BUFFER]);
            }
        }
    }

    #[test]
    fn a_buffer_that_does_not_exist_is_not_touched() {
        let pages = [Page::new()];
        let buffers = Buffers::at(&Memory::from_pages(&pages), 0, 2).unwrap();
        assert_eq!(buffers.copy_in(2, &[1; 8]), 0);
        assert_eq!(buffers.copy_out(2, &mut [1; 8]), 0);
        assert!(Buffers::at(&Memory::from_pages(&pages), 0, 3).is_none());
    }
}
