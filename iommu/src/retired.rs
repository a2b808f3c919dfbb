//! Tables that are out of use and not yet free.

use handoff_abi::{FRAME_SIZE, PhysAddr};

use crate::TableMemory;
use crate::arena::Arena;
use crate::tables::{Tables, offset};

/// Tables that were unlinked but that the unit may still have pointers to in its caches.
///
/// They are chained through their first two entries: the address of the next one, and the number
/// of the invalidation that proves the table unused. Both are multiples of 4 KiB, so a unit that
/// still looks there reads entries that are not present, of whatever kind of table it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetiredTables {
    first: Option<PhysAddr>,
}

impl RetiredTables {
    pub(crate) fn push<M: TableMemory>(
        &mut self,
        tables: &mut Tables<M>,
        table: PhysAddr,
        tag: u64,
    ) {
        tables.store(offset(table, 8), tag * FRAME_SIZE);
        tables.store(table, self.first.map_or(0, |next| next.0));
        tables.publish(table, 16);
        self.first = Some(table);
    }

    /// Gives back every table whose tag `proved` holds for.
    pub(crate) fn release<M: TableMemory>(
        &mut self,
        tables: &mut Tables<M>,
        arena: &mut Arena,
        proved: impl Fn(u64) -> bool,
    ) {
        let mut kept = Self::default();
        let mut table = self.first;
        while let Some(at) = table {
            let (next, tag) = tables.load_pair(at);
            let tag = tag / FRAME_SIZE;
            table = (next != 0).then_some(PhysAddr(next));
            if proved(tag) {
                arena.give_back(at);
            } else {
                kept.push(tables, at, tag);
            }
        }
        *self = kept;
    }
}
