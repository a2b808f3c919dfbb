//! A queue that a unit runs already: firmware's, an earlier kernel's, or this driver's own. It is
//! switched off only behind a wait of this driver.

use handoff_abi::{PhysAddr, PhysRange};

use crate::TableMemory;
use crate::tables::offset;

/// The size of a slot: a VT-d descriptor of 128 bits or an AMD-Vi command.
const SLOT: u64 = 16;

/// A queue that a unit runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    memory: PhysRange,
    /// The byte offset of the next slot.
    tail: u64,
    own: bool,
}

impl Running {
    /// A queue of `length` bytes at `base`; `None` where it cannot be closed: it lies beyond the
    /// machine's addresses, in the arena although it is not this driver's, or short of its tail.
    pub(crate) fn new(
        base: PhysAddr,
        length: u64,
        tail: u64,
        own: bool,
        arena: PhysRange,
        host_limit: u64,
    ) -> Option<Self> {
        let memory = PhysRange::new(base, length).ok()?;
        let misplaced = memory.end().0 > host_limit || (!own && memory.overlaps(arena));
        let good = !misplaced && tail < length && tail.is_multiple_of(SLOT);
        good.then_some(Self { memory, tail, own })
    }

    /// Its memory, where it is somebody else's.
    pub(crate) const fn foreign(self) -> Option<PhysRange> {
        if self.own { None } else { Some(self.memory) }
    }

    /// How many bytes it has.
    pub(crate) const fn length(self) -> u64 {
        self.memory.length()
    }

    pub(crate) const fn tail(self) -> u64 {
        self.tail
    }

    /// The slot that the unit fetches next, once it is told to. It is software's until then.
    pub(crate) fn slot(self) -> PhysRange {
        let base = offset(self.memory.base(), self.tail);
        PhysRange::from_bounds(base, offset(base, SLOT))
    }

    pub(crate) const fn next_tail(self) -> u64 {
        (self.tail + SLOT) % self.length()
    }
}

/// Stores the two words of a slot and returns what was there; `None` where the memory does not take
/// it: the unit would execute whatever lies there.
pub(crate) fn place<T: TableMemory>(
    memory: &mut T,
    snooped: bool,
    at: PhysAddr,
    [low, high]: [u64; 2],
) -> Option<[u64; 2]> {
    let upper = offset(at, 8);
    let before = [memory.load(at), memory.load(upper)];
    memory.store(upper, high);
    memory.store(at, low);
    if !snooped {
        memory.write_back(at, SLOT);
    }
    (memory.load(at) == low && memory.load(upper) == high).then_some(before)
}
