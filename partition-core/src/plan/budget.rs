//! What a plan uses up.

use handoff_abi::PhysRange;

use super::Draft;
use super::findings::{Reason, Supply};
use super::machine::PageSize;

/// Bits of address that a page of 4 KiB takes, and each level of tables adds.
const PAGE_BITS: u32 = 12;
const LEVEL_BITS: u32 = 9;

impl Draft<'_> {
    pub(super) fn budget(&mut self) {
        let budget = self.machine.budget;
        self.short(
            Supply::InterruptHandles,
            u64::from(self.plan.interrupt_handles),
            u64::from(budget.interrupt_handles),
        );
        self.plan.ledger_slots = self.ledger_slots();
        self.short(
            Supply::LedgerSlots,
            self.plan.ledger_slots,
            budget.ledger_slots,
        );
        if self.plan.requesters.is_empty() {
            self.plan.maps.clear();
            return;
        }
        self.plan.domain = budget.domain;
        let left = u64::from(budget.domain.is_some());
        self.short(Supply::Domains, 1, left);
        self.plan.table_pages = self.table_pages();
        self.short(
            Supply::TablePages,
            self.plan.table_pages,
            budget.table_pages,
        );
    }

    fn short(&mut self, supply: Supply, need: u64, left: u64) {
        if need > left {
            self.findings.refuse(Reason::Short { supply, need, left });
        }
    }

    /// Everything but memory changes owner in the slot it has. A range of memory may be cut out of
    /// the middle of a slot, which makes three of one, and while it is cut the old slot is still
    /// in use.
    fn ledger_slots(&self) -> u64 {
        let ranges = self
            .plan
            .memory
            .len()
            .saturating_add(usize::from(self.plan.trampoline.is_some()));
        if ranges == 0 {
            return 0;
        }
        u64::try_from(ranges)
            .unwrap_or(u64::MAX)
            .saturating_mul(2)
            .saturating_add(1)
    }

    /// One set of tables for the domain, made so that every unit can use it, and a context table
    /// for each bus of each unit.
    fn table_pages(&mut self) -> u64 {
        let mut levels = 6;
        let mut largest = PageSize::Size1GiB;
        let mut pages = 0_u64;
        let mut bus_before = None;
        for requester in &self.plan.requesters {
            let unit = self.machine.units.get(usize::from(requester.unit));
            if let Some(unit) = unit {
                levels = levels.min(unit.levels.max(1));
                largest = largest.min(unit.largest_page);
            }
            // In order, so that what is equal is side by side.
            let bus = Some((requester.unit, requester.segment, requester.id.bus()));
            if bus != bus_before {
                pages = pages.saturating_add(1);
                bus_before = bus;
            }
        }
        let bits = LEVEL_BITS
            .saturating_mul(u32::from(levels))
            .saturating_add(PAGE_BITS);
        for map in &self.plan.maps {
            let range = map.range;
            let reach = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
            if range.end().0 > reach {
                self.findings.refuse(Reason::MemoryTooHigh { range, bits });
            }
            for level in 1..levels {
                pages = pages.saturating_add(tables(range, level, largest));
            }
        }
        pages.saturating_add(1)
    }
}

/// How many tables of a level, 1 being the lowest, a range takes where it is mapped to itself with
/// pages as large as can be. The range is not empty: no mapping is.
fn tables(range: PhysRange, level: u8, largest: PageSize) -> u64 {
    let bits = LEVEL_BITS
        .saturating_mul(u32::from(level))
        .saturating_add(PAGE_BITS);
    let spans = |address: u64| address.checked_shr(bits).unwrap_or(0);
    let (first, last) = (
        spans(range.base().0),
        spans(range.end().0.saturating_sub(1)),
    );
    let touched = last.saturating_sub(first).saturating_add(1);
    // What one table covers can be one page instead, where the range has all of it.
    let one_page = match level {
        1 => largest >= PageSize::Size2MiB,
        2 => largest >= PageSize::Size1GiB,
        _ => false,
    };
    if !one_page {
        return touched;
    }
    let cut = |address: u64| spans(address).checked_shl(bits) != Some(address);
    let first_whole = first.saturating_add(u64::from(cut(range.base().0)));
    let whole = spans(range.end().0).saturating_sub(first_whole);
    touched.saturating_sub(whole)
}
