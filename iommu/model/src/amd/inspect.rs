//! What a test finds out as an observer who sees everything.

use std::collections::BTreeSet;

use super::machine::{Machine, State};
use super::report::Rule;
use super::unit::{Log, Unit};
use super::walk::INTERRUPT_RANGE;
use crate::devices::{Reach, join};
use crate::memory::Memory;

impl Machine {
    /// Everything that `sid` reaches through a unit: what the tables in memory say, and what the
    /// caches still remember of earlier ones. Runs of addresses are joined. A device that nothing
    /// holds back reaches one run as long as physical addresses go.
    ///
    /// # Panics
    /// Where the unit is off: then it reaches everything.
    #[must_use]
    pub fn reach(&self, unit: usize, sid: u16) -> Vec<Reach> {
        let mut state = self.0.borrow_mut();
        let State {
            units, memory, log, ..
        } = &mut *state;
        let unit = &units[unit];
        assert!(unit.enabled(), "the unit is off");
        let mut found = Vec::new();
        for entry in unit.entries_of(memory, sid) {
            let open = !entry.valid();
            if open || entry.passes_memory() && entry.mode() == 0 {
                found.push(Reach {
                    iova: 0,
                    at: 0,
                    length: 1 << unit.config.host_width,
                    read: open || entry.read(),
                    write: open || entry.write(),
                });
            }
            let leaves = unit.leaves(memory, log, entry, &mut Vec::new());
            let useful = leaves.iter().filter(|leaf| leaf.read || leaf.write);
            found.extend(useful.map(|leaf| Reach {
                iova: leaf.iova,
                at: leaf.output,
                length: 1 << leaf.shift,
                read: leaf.read,
                write: leaf.write,
            }));
        }
        let own = (sid, 0, 0)..=(sid, u64::MAX, u8::MAX);
        for (&(_, page, shift), hit) in unit.translations.range(own) {
            if hit.read || hit.write {
                found.push(Reach {
                    iova: page << shift,
                    at: hit.output,
                    length: 1 << shift,
                    read: hit.read,
                    write: hit.write,
                });
            }
        }
        join(found)
    }

    /// Whether a device is denied everything, by its entry in memory: memory, and interrupts.
    #[must_use]
    pub fn denied(&self, unit: usize, sid: u16) -> bool {
        let state = self.0.borrow();
        let unit = &state.units[unit];
        unit.entry_in_memory(&state.memory, sid)
            .is_some_and(|e| !e.passes_memory() && e.fails_open().is_none() && !e.remaps())
    }

    /// Looks through all live tables of all units for what must not be there, and adds what it
    /// finds to the violations: entries that fail open, leaves over the interrupt range or over
    /// structures, malformed entries, a domain id with two sets of tables, overlapping interrupt
    /// tables, caches that were never emptied.
    pub fn audit(&self) {
        let mut state = self.0.borrow_mut();
        let State {
            units, memory, log, ..
        } = &mut *state;
        let mut structures: Vec<(u64, u64)> = Vec::new();
        let mut leaves = Vec::new();
        for unit in units.iter().filter(|u| u.enabled()) {
            unit.check_device_table(memory, log, false);
            unit.check_interrupt_tables(log);
            unit.check_since_enable(log);
            structures.extend(unit.structures());
            let mut walked = BTreeSet::new();
            let mut domains: Vec<(u16, u64, u8)> = Vec::new();
            unit.all_entries(memory, true, |sid, entry| {
                if !entry.passes_memory() || !entry.valid() || entry.mode() == 0 {
                    return;
                }
                let tables = (entry.did(), entry.root(), entry.mode());
                let other = domains.iter().find(|d| d.0 == tables.0 && **d != tables);
                if let Some(other) = other {
                    let detail = format!("{sid:#06x}: {tables:x?} and {other:x?}");
                    log.broken(unit.number, Rule::DomainIdWithTwoTables, detail);
                }
                if !domains.contains(&tables) {
                    domains.push(tables);
                }
                if walked.insert((entry.root(), entry.mode(), entry.read(), entry.write())) {
                    let mut pages = Vec::new();
                    for leaf in unit.leaves(memory, log, entry, &mut pages) {
                        leaves.push((unit.number, sid, leaf));
                    }
                    structures.extend(pages.into_iter().map(|p| (p, 4096)));
                }
            });
        }
        structures.sort_unstable();
        structures.dedup();
        for (number, sid, leaf) in leaves {
            let length = 1 << leaf.shift;
            let end = leaf.output.saturating_add(length);
            let detail = format!(
                "{sid:#06x}: {:#x} to {:#x}..{end:#x}",
                leaf.iova, leaf.output
            );
            let last = end - 1;
            if leaf.output < INTERRUPT_RANGE.end && end > INTERRUPT_RANGE.start
                || units[number].not_memory(leaf.output)
                || units[number].not_memory(last)
            {
                log.broken(number, Rule::LeafCoversInterruptRange, detail.clone());
            }
            // The nearest structures below the leaf's end are the only ones that can reach into
            // it; a few of them, because rings and tables may lie inside each other's pages.
            let below = structures.partition_point(|&(at, _)| at < end);
            let hit = structures[..below]
                .iter()
                .rev()
                .take(8)
                .find(|(at, length)| leaf.output < at + length);
            if let Some((at, _)) = hit {
                let detail = format!("{detail} over the structure at {at:#x}");
                log.broken(number, Rule::LeafCoversTables, detail);
            }
        }
    }

    /// Software gives this memory to someone else: no unit may reach it any more, be it through
    /// tables, through caches or by a write in flight, except for `allowed` requesters.
    pub fn release(&self, start: u64, length: u64, allowed: &[u16]) {
        let mut state = self.0.borrow_mut();
        let State {
            units, memory, log, ..
        } = &mut *state;
        let end = start + length;
        let hits = |at: u64, length: u64| at < end && at + length > start;
        for unit in units.iter() {
            unit.check_released(memory, log, &hits, allowed);
        }
    }
}

impl Unit {
    fn check_interrupt_tables(&self, log: &mut Log) {
        let mut before: Option<(u64, u64)> = None;
        for (&root, table) in &self.interrupt_tables {
            if let Some((at, end)) = before
                && end > root
            {
                let detail = format!("{at:#x}..{end:#x} and {root:#x}..{:#x}", table.end);
                log.broken(self.number, Rule::InterruptTablesOverlap, detail);
            }
            before = Some((root, table.end));
        }
    }

    /// Whether everything was invalidated since the unit was switched on or got another table.
    fn check_since_enable(&self, log: &mut Log) {
        let since = &self.since_enable;
        if since.all {
            return;
        }
        let domains = self.live.values().filter(|l| l.entry.mode() != 0);
        let missing_domain = domains
            .map(|l| l.entry.did())
            .find(|did| !since.domains.contains(did));
        let (entries, interrupts) = (since.entries.len(), since.interrupts.len());
        if entries < 1 << 16 || interrupts < 1 << 16 || missing_domain.is_some() {
            let detail = format!(
                "{entries} entries, {interrupts} interrupt tables, domain missing: {missing_domain:?}"
            );
            log.broken(self.number, Rule::NotInvalidatedAfterEnable, detail);
        }
    }

    fn check_released(
        &self,
        memory: &Memory,
        log: &mut Log,
        hits: &impl Fn(u64, u64) -> bool,
        allowed: &[u16],
    ) {
        for write in &self.posted {
            if hits(write.at, write.data.len() as u64) {
                let detail = format!("{:#x}", write.at);
                log.broken(self.number, Rule::UndrainedWrite, detail);
            }
        }
        for (&(sid, page, shift), hit) in &self.translations {
            let useful = hit.read || hit.write;
            if useful && !allowed.contains(&sid) && hits(hit.output, 1 << shift) {
                let detail = format!("{sid:#06x} by the IOTLB: {:#x}", page << shift);
                log.broken(self.number, Rule::ReleasedMemoryStillReachable, detail);
            }
        }
        if !self.enabled() {
            let detail = "the unit is off".to_string();
            log.broken(self.number, Rule::ReleasedMemoryStillReachable, detail);
            return;
        }
        // Memory and what the unit may have cached of it.
        let mut sids: BTreeSet<u16> = self
            .entries
            .keys()
            .chain(self.live.keys())
            .copied()
            .collect();
        self.all_entries(memory, true, |sid, entry| {
            if entry.passes_memory() {
                sids.insert(sid);
            }
        });
        for sid in sids {
            if allowed.contains(&sid) {
                continue;
            }
            for entry in self.entries_of(memory, sid) {
                let everything = entry.passes_memory() && (!entry.valid() || entry.mode() == 0);
                let leaves = self.leaves(memory, log, entry, &mut Vec::new());
                let reached = leaves
                    .iter()
                    .any(|l| (l.read || l.write) && hits(l.output, 1 << l.shift));
                if everything || reached {
                    let detail = format!("{sid:#06x} by its tables");
                    log.broken(self.number, Rule::ReleasedMemoryStillReachable, detail);
                }
            }
        }
    }
}
