//! What the tests share: memory as bytes, and a virtio device that is written from the
//! specification alone (Virtual I/O Device 1.2, section 2.7): it shares no constant and no structure
//! with the driver.
use std::sync::atomic::Ordering::SeqCst;

use baton_workload::memory::{Memory, Page};

/// Memory that is looked at byte by byte.
pub(crate) struct Region {
    pages: Vec<Page>,
}

impl Region {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            pages: (0..bytes.div_ceil(4096)).map(|_| Page::new()).collect(),
        }
    }

    pub(crate) fn memory(&self) -> Memory<'_> {
        Memory::from_pages(&self.pages)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pages.len() as u64 * 4096
    }

    pub(crate) fn get(&self, at: u64) -> u8 {
        let word = self.pages[(at / 4096) as usize].0[(at % 4096 / 8) as usize].load(SeqCst);
        word.to_le_bytes()[(at % 8) as usize]
    }

    pub(crate) fn set(&self, at: u64, byte: u8) {
        let word = &self.pages[(at / 4096) as usize].0[(at % 4096 / 8) as usize];
        let mut bytes = word.load(SeqCst).to_le_bytes();
        bytes[(at % 8) as usize] = byte;
        word.store(u64::from_le_bytes(bytes), SeqCst);
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        std::array::from_fn(|offset| self.get(at + offset as u64))
    }

    pub(crate) fn read16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    pub(crate) fn read32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    pub(crate) fn read64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        for (offset, &byte) in bytes.iter().enumerate() {
            self.set(at + offset as u64, byte);
        }
    }
}

/// A piece of a chain as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

/// The device's end of a split ring.
pub(crate) struct Device<'a> {
    memory: &'a Region,
    /// Where the memory begins for the device.
    base: u64,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl<'a> Device<'a> {
    pub(crate) fn new(
        memory: &'a Region,
        base: u64,
        size: u16,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Self {
        // Section 2.7: alignment of the three parts.
        assert_eq!(descriptors % 16, 0);
        assert_eq!(available % 2, 0);
        assert_eq!(used % 4, 0);
        Self {
            memory,
            base,
            size,
            descriptors,
            available,
            used,
            next_available: 0,
            next_used: 0,
        }
    }

    fn at(&self, address: u64) -> u64 {
        address.checked_sub(self.base).expect("below the memory")
    }

    /// Whether the driver wants no interrupts (bit 0 of the available ring's flags).
    pub(crate) fn no_interrupt(&self) -> bool {
        self.memory.read16(self.at(self.available)) & 1 != 0
    }

    /// Asks the driver not to notify (bit 0 of the used ring's flags).
    pub(crate) fn set_no_notify(&self, on: bool) {
        self.memory
            .write(self.at(self.used), &u16::from(on).to_le_bytes());
    }

    /// Takes the next chain that was made available: its head and its pieces.
    pub(crate) fn take(&mut self) -> Option<(u16, Vec<Piece>)> {
        let available = self.at(self.available);
        let index = self.memory.read16(available + 2);
        if index == self.next_available {
            return None;
        }
        assert!(
            index.wrapping_sub(self.next_available) <= self.size,
            "more chains are available than the ring has room for"
        );
        let slot = u64::from(self.next_available % self.size);
        self.next_available = self.next_available.wrapping_add(1);
        let head = self.memory.read16(available + 4 + 2 * slot);
        let mut pieces = vec![];
        let mut next = Some(head);
        while let Some(id) = next {
            assert!(id < self.size, "descriptor {id} does not exist");
            assert!(pieces.len() < usize::from(self.size), "the chain is a loop");
            let descriptor = self.at(self.descriptors) + 16 * u64::from(id);
            let flags = self.memory.read16(descriptor + 12);
            assert_eq!(flags & !3, 0, "a flag that was not negotiated");
            let piece = Piece {
                address: self.memory.read64(descriptor),
                length: self.memory.read32(descriptor + 8),
                writable: flags & 2 != 0,
            };
            // Section 2.7.4.2: what the device reads comes before what it writes.
            let after_writable = pieces.last().is_some_and(|last: &Piece| last.writable);
            assert!(piece.writable || !after_writable, "readable after writable");
            pieces.push(piece);
            next = (flags & 1 != 0).then(|| self.memory.read16(descriptor + 14));
        }
        Some((head, pieces))
    }

    /// Gives a chain back. Whether it makes sense is not the device's concern.
    pub(crate) fn give_back(&mut self, id: u32, length: u32) {
        let used = self.at(self.used);
        let element = used + 4 + 8 * u64::from(self.next_used % self.size);
        self.memory.write(element, &id.to_le_bytes());
        self.memory.write(element + 4, &length.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
        self.memory.write(used + 2, &self.next_used.to_le_bytes());
    }

    /// Claims to have used chains that it has not.
    pub(crate) fn skip(&mut self, count: u16) {
        self.next_used = self.next_used.wrapping_add(count);
        let used = self.at(self.used);
        self.memory.write(used + 2, &self.next_used.to_le_bytes());
    }

    /// Fills the start of a piece.
    pub(crate) fn fill(&self, piece: &Piece, bytes: &[u8]) {
        assert!(piece.writable && bytes.len() <= piece.length as usize);
        self.memory.write(self.at(piece.address), bytes);
    }
}
