//! What the embedder provides: a unit's registers, memory for tables, and a clock that bounds
//! every poll. All three are plain traits over numbers, so a model of the hardware, an emulator at
//! the end of a socket and the machine itself serve the driver alike.

use handoff_abi::PhysAddr;

/// The register window of one remapping unit, by byte offset from its base.
///
/// An access has exactly the width asked for. Reads take `&mut self` because a read can have side
/// effects. Offsets are those of the architecture's register table, always a multiple of the
/// width and below the window's length.
pub trait RegisterIo {
    /// Reads 4 bytes.
    fn read32(&mut self, offset: u32) -> u32;
    /// Writes 4 bytes.
    fn write32(&mut self, offset: u32, value: u32);
    /// Reads 8 bytes in one access.
    fn read64(&mut self, offset: u32) -> u64;
    /// Writes 8 bytes in one access.
    fn write64(&mut self, offset: u32, value: u64);
}

/// The physical memory that holds a unit's tables and queues, as the unit sees it.
///
/// The driver reads and writes only inside the arena it was given, or inside the one slot of another's
/// queue that it has to close and was given the memory of. The order of stores as made
/// here is the order in which the unit may observe them: an implementation makes each a single
/// volatile store (x86-64 keeps stores in order) and never merges or splits one.
pub trait TableMemory {
    /// Reads the 8 bytes at `at`, a multiple of 8.
    fn load(&self, at: PhysAddr) -> u64;
    /// Writes the 8 bytes at `at`, a multiple of 8, in one store.
    fn store(&mut self, at: PhysAddr, value: u64);
    /// Makes what was stored to `length` bytes from `at` visible to a unit that does not snoop the
    /// caches: writes the cache lines back and fences. Called only for such units.
    fn write_back(&mut self, at: PhysAddr, length: u64);
}

/// A clock that bounds a poll.
pub trait Deadline {
    /// Begins a period of `microseconds`.
    fn start(&mut self, microseconds: u32);
    /// Whether the period that was begun last is over. Executes a PAUSE, or the like, where the
    /// caller is to wait politely.
    fn expired(&mut self) -> bool;
}
