//! Table memory, as a unit that may not snoop the caches needs it.

use handoff_abi::{FRAME_SIZE, PhysAddr};

use crate::TableMemory;
use crate::arena::Arena;

/// The memory of the tables and whether the unit snoops (VT-d: ECAP.C; AMD-Vi: Coherent).
#[derive(Debug)]
pub(crate) struct Tables<M> {
    pub(crate) memory: M,
    pub(crate) coherent: bool,
}

impl<M: TableMemory> Tables<M> {
    pub(crate) fn load(&self, at: PhysAddr) -> u64 {
        self.memory.load(at)
    }

    /// Stores without making the store visible to a unit that does not snoop.
    pub(crate) fn store(&mut self, at: PhysAddr, value: u64) {
        self.memory.store(at, value);
    }

    /// Makes stores visible to a unit that does not snoop.
    pub(crate) fn publish(&mut self, at: PhysAddr, length: u64) {
        if !self.coherent {
            self.memory.write_back(at, length);
        }
    }

    pub(crate) fn store_and_publish(&mut self, at: PhysAddr, value: u64) {
        self.store(at, value);
        self.publish(at, 8);
    }

    pub(crate) fn load_pair(&self, at: PhysAddr) -> (u64, u64) {
        (self.load(at), self.load(offset(at, 8)))
    }

    /// Writes a 128-bit entry that is not present now. The half with the present bit comes last,
    /// so the unit sees either no entry or all of it. Both halves lie in one cache line, which
    /// reaches memory with its stores in order, so one write-back after both is enough.
    pub(crate) fn install_pair(&mut self, at: PhysAddr, low: u64, high: u64) {
        self.store(offset(at, 8), high);
        self.store(at, low);
        self.publish(at, 16);
    }

    /// Takes `count` frames from the arena and makes them zero.
    pub(crate) fn zeroed_run(&mut self, arena: &mut Arena, count: usize) -> Option<PhysAddr> {
        let at = arena.take_run(count)?;
        let length = count as u64 * FRAME_SIZE;
        for word in (0..length).step_by(8) {
            self.store(offset(at, word), 0);
        }
        self.publish(at, length);
        Some(at)
    }

    pub(crate) fn zeroed(&mut self, arena: &mut Arena) -> Option<PhysAddr> {
        self.zeroed_run(arena, 1)
    }
}

/// An address inside a frame run of the arena, which the arena has checked not to wrap.
pub(crate) const fn offset(at: PhysAddr, bytes: u64) -> PhysAddr {
    PhysAddr(at.0.wrapping_add(bytes))
}
