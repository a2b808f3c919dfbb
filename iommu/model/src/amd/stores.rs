//! What a processor's store into live tables must not do, and what the device table must be like
//! when a unit starts to use it.

use std::collections::HashMap;

use super::entry::{DeviceEntry, POINTER};
use super::interrupt::InterruptEntry;
use super::report::Rule;
use super::unit::{InterruptTable, LiveEntry, Log, Unit};
use crate::memory::Memory;

/// How many entries broke a rule, and the first of them.
#[derive(Default)]
struct Findings(Vec<(Rule, u32, String)>);

impl Findings {
    fn add(&mut self, rule: Rule, sid: u16, entry: &DeviceEntry, what: &str) {
        match self.0.iter_mut().find(|(r, ..)| *r == rule) {
            Some((_, count, _)) => *count += 1,
            None => {
                let detail = format!("entry {sid:#06x} ({:#x?}): {what}", entry.0);
                self.0.push((rule, 1, detail));
            }
        }
    }

    fn total(&self) -> u32 {
        self.0.iter().map(|(_, count, _)| count).sum()
    }

    fn report(self, unit: usize, log: &mut Log) {
        for (rule, count, detail) in self.0 {
            log.broken(unit, rule, format!("{count} of them, the first: {detail}"));
        }
    }
}

impl Unit {
    /// Every entry of the device table, in the view of processors or of the unit.
    pub(crate) fn all_entries(
        &self,
        memory: &Memory,
        processors: bool,
        mut with: impl FnMut(u16, DeviceEntry),
    ) {
        let bits = 16 - self.segment_bits();
        let room = 32_u64 << bits;
        for (segment, (base, length)) in self.segments().into_iter().enumerate() {
            for offset in (0..length.min(room)).step_by(4096) {
                let page = memory.page(processors || self.snoops(), (base + offset) >> 12);
                for (i, words) in page.chunks_exact(4).enumerate() {
                    let index = offset / 32 + i as u64;
                    let sid = ((segment as u64) << bits | index) as u16;
                    with(sid, DeviceEntry(core::array::from_fn(|w| words[w])));
                }
            }
        }
    }

    /// Looks through the device table that the unit is given.
    pub(crate) fn check_device_table(&self, memory: &Memory, log: &mut Log, deny_all: bool) {
        let number = self.number;
        let room = 32_u64 << (16 - self.segment_bits());
        for (base, length) in self.segments() {
            let detail = format!("{length:#x} bytes at {base:#x}");
            if base == 0 || self.too_wide(base + length) {
                log.broken(number, Rule::DeviceTableAddressInvalid, detail);
                return;
            }
            if length < room && self.config.fence_rules {
                log.broken(number, Rule::DeviceTableTooShort, detail);
            }
        }
        let mut findings = Findings::default();
        let mut enabled_tables: HashMap<(u64, u8), bool> = HashMap::new();
        // Most entries are like their neighbour.
        let mut good = None;
        self.all_entries(memory, false, |sid, entry| {
            if good == Some(entry) {
                return;
            }
            let before = findings.total();
            self.check_contents(sid, &entry, &mut findings);
            let key = (entry.interrupt_root(), entry.interrupt_length());
            let interrupts = deny_all
                && entry.remaps()
                && *enabled_tables
                    .entry(key)
                    .or_insert_with(|| self.any_enabled(memory, &entry));
            let passes = entry.passes_memory() || entry.fails_open().is_some() || interrupts;
            if deny_all && passes {
                findings.add(Rule::EnabledBeforeDenied, sid, &entry, "something passes");
            }
            if findings.total() == before && !self.config.trusted_sources.contains(&sid) {
                good = Some(entry);
            }
        });
        findings.report(number, log);
    }

    fn any_enabled(&self, memory: &Memory, entry: &DeviceEntry) -> bool {
        let size = self.interrupt_entry_size();
        let end = entry.interrupt_root() + (size << entry.interrupt_length().min(11));
        (entry.interrupt_root()..end).step_by(8).any(|at| {
            let word = self.fetch(memory, at);
            match size {
                16 => at & 8 == 0 && word & 1 != 0,
                _ => word & (1 | 1 << 32) != 0,
            }
        })
    }

    /// What one entry holds that it must not.
    fn check_contents(&self, sid: u16, entry: &DeviceEntry, findings: &mut Findings) {
        let problem = entry
            .memory_problem(&self.config)
            .or_else(|| entry.interrupt_problem());
        if let Some(reason) = problem {
            let what = format!("{reason:?}");
            findings.add(Rule::DeviceEntryInvalid, sid, entry, &what);
        }
        if entry.remaps() {
            if !entry.interrupt_root_aligned() {
                let what = "bit 6 of the table's address";
                findings.add(Rule::InterruptTableMisaligned, sid, entry, what);
            }
            if entry.interrupt_length() > self.most_interrupt_bits() {
                findings.add(Rule::InterruptTableTooLong, sid, entry, "IntTabLen");
            }
        }
        if !self.config.fence_rules {
            return;
        }
        if let Some(why) = entry.fails_open() {
            findings.add(Rule::EntryFailsOpen, sid, entry, why);
        }
        let special = self.config.trusted_sources.contains(&sid);
        if let Some(why) = entry.trusts(special) {
            findings.add(Rule::EntryTrustsDevice, sid, entry, why);
        }
    }

    /// Looks at what the device table lets through now: the unit may have seen all of it.
    pub(crate) fn find_live(&mut self, memory: &Memory) {
        let mut live = HashMap::new();
        let mut live_tables = HashMap::new();
        self.all_entries(memory, true, |sid, entry| {
            let fresh = LiveEntry {
                entry,
                leaving: false,
                entry_flushed: false,
            };
            if entry.passes_memory() {
                live.insert(sid, fresh);
            }
            if entry.remaps() {
                live_tables.insert(sid, fresh);
            }
        });
        self.live = live;
        self.live_tables = live_tables;
        self.interrupt_tables.clear();
        let tables: Vec<(u16, DeviceEntry)> = self
            .live_tables
            .iter()
            .map(|(&sid, l)| (sid, l.entry))
            .collect();
        for (sid, entry) in tables {
            self.enter_interrupt_table(sid, &entry);
        }
    }

    fn enter_interrupt_table(&mut self, sid: u16, entry: &DeviceEntry) {
        let size = self.interrupt_entry_size();
        let root = entry.interrupt_root();
        let end = root + (size << entry.interrupt_length().min(11));
        let table = self.interrupt_tables.entry(root).or_insert(InterruptTable {
            end,
            sids: Default::default(),
        });
        table.end = table.end.max(end);
        table.sids.insert(sid);
    }

    /// Looks at a store before it is made.
    pub(crate) fn check_store(
        &mut self,
        memory: &Memory,
        log: &mut Log,
        at: u64,
        old: u64,
        value: u64,
    ) {
        if old == value || self.injected.gone || !self.enabled() {
            return;
        }
        if let Some(sid) = self.entry_holding(at) {
            self.check_entry_store(memory, log, at, value, sid);
        } else if let Some((root, _)) = self.interrupt_table_at(at) {
            let offset = at - root;
            if self.wide_interrupts() {
                let index = (offset / 16) as u16;
                self.check_wide_store(memory, log, at, value, index);
            } else {
                for half in [0, 32] {
                    let (old, new) = (old >> half & 0xffff_ffff, value >> half & 0xffff_ffff);
                    if old != new {
                        self.check_interrupt(log, at + half / 8, InterruptEntry([new, 0]));
                    }
                }
            }
        }
    }

    fn interrupt_table_at(&self, at: u64) -> Option<(u64, Vec<u16>)> {
        let (&root, table) = self.interrupt_tables.range(..=at).next_back()?;
        (at < table.end).then(|| (root, table.sids.iter().copied().collect()))
    }

    fn check_entry_store(&mut self, memory: &Memory, log: &mut Log, at: u64, value: u64, sid: u16) {
        let number = self.number;
        let Some(old) = self.entry_in_memory(memory, sid) else {
            return;
        };
        let word = (at / 8 % 4) as usize;
        let mut new = old;
        new.0[word] = value;
        // What is reported of a device may change at any time.
        let suppressions = 3 << 33;
        if word == 1 && new.passes_memory() && (old.0[1] ^ value) & !suppressions != 0 {
            let detail = format!("entry {sid:#06x}: {:x?} becomes {:x?}", old.0, new.0);
            log.broken(number, Rule::TornEntry, detail);
        }
        self.check_entry(log, sid, old, new);
    }

    /// Looks at a store of 16 bytes before it is made. Half an entry that is written whole is not
    /// torn; what it held before must be gone all the same. Other structures are not written so by
    /// any driver, and are looked at word by word.
    pub(crate) fn check_pair(&mut self, memory: &Memory, log: &mut Log, at: u64, pair: (u64, u64)) {
        let words = (memory.processor(at), memory.processor(at + 8));
        if words == pair || self.injected.gone || !self.enabled() {
            return;
        }
        let entry = self
            .entry_holding(at)
            .and_then(|sid| Some((sid, self.entry_in_memory(memory, sid)?)));
        let Some((sid, old)) = entry else {
            self.check_store(memory, log, at + 8, words.1, pair.1);
            self.check_store(memory, log, at, words.0, pair.0);
            return;
        };
        let half = (at / 8 % 4) as usize;
        let mut new = old;
        (new.0[half], new.0[half + 1]) = pair;
        self.check_entry(log, sid, old, new);
    }

    /// Looks at a device table entry that becomes another.
    fn check_entry(&mut self, log: &mut Log, sid: u16, old: DeviceEntry, new: DeviceEntry) {
        let number = self.number;
        let mut findings = Findings::default();
        self.check_contents(sid, &new, &mut findings);
        findings.report(number, log);
        let detail = format!("entry {sid:#06x}: {:x?} becomes {:x?}", old.0, new.0);
        let fence = self.config.fence_rules;
        let mut reused = || {
            if fence {
                let rule = Rule::EntryReusedBeforeInvalidation;
                log.broken(number, rule, detail.clone());
            }
        };
        let fresh = LiveEntry {
            entry: new,
            leaving: false,
            entry_flushed: false,
        };
        if new.passes_memory() {
            let before = self.live.insert(sid, fresh);
            if before.is_some_and(|l| !l.entry.same_memory(&new)) {
                reused();
            }
        } else if let Some(live) = self.live.get_mut(&sid)
            && !live.leaving
        {
            (live.leaving, live.entry_flushed) = (true, false);
        }
        if new.remaps() {
            let before = self.live_tables.insert(sid, fresh);
            if before.is_some_and(|l| !l.entry.same_interrupts(&new)) {
                reused();
            }
        } else if let Some(live) = self.live_tables.get_mut(&sid)
            && !live.leaving
        {
            (live.leaving, live.entry_flushed) = (true, false);
        }
        if new.passes_memory() && new.mode() != 0 {
            let other = self.live.iter().find(|(_, l)| {
                let entry = &l.entry;
                entry.did() == new.did()
                    && entry.mode() != 0
                    && (entry.root() != new.root() || entry.mode() != new.mode())
            });
            if let Some((other, live)) = other {
                let detail = format!("{detail}; {other:#06x} has {:x?}", live.entry.0);
                log.broken(number, Rule::DomainIdWithTwoTables, detail);
            }
        }
    }

    fn check_wide_store(&self, memory: &Memory, log: &mut Log, at: u64, value: u64, index: u16) {
        let base = at & !15;
        let old = [memory.processor(base), memory.processor(base + 8)];
        let mut new = old;
        new[(at / 8 % 2) as usize] = value;
        let detail = format!("interrupt entry {index:#x} at {base:#x}: {old:x?} becomes {new:x?}");
        let number = self.number;
        // The unit reads the entry whole. Where RemapEn is clear it reads that, or has the entry before
        // in its cache: to write the upper half then is not a reuse, since all entries of a table are
        // the same devices'.
        if old[1] != new[1] && new[0] & 1 != 0 {
            log.broken(number, Rule::TornEntry, detail);
        }
        self.check_interrupt(log, base, InterruptEntry(new));
    }

    fn check_interrupt(&self, log: &mut Log, at: u64, entry: InterruptEntry) {
        if entry.enabled() && self.decode_interrupt(entry).is_none() {
            let detail = format!("{:x?} at {at:#x}", entry.0);
            log.broken(self.number, Rule::InterruptEntryInvalid, detail);
        }
    }

    /// Follows a store that was made: the unit fetches what it may.
    pub(crate) fn after_store(&mut self, memory: &Memory, at: u64) {
        if self.injected.gone || !self.enabled() {
            return;
        }
        if let Some(sid) = self.entry_holding(at) {
            self.interrupt_tables.retain(|_, table| {
                table.sids.remove(&sid);
                !table.sids.is_empty()
            });
            if let Some(entry) = self.entry_in_memory(memory, sid)
                && entry.remaps()
            {
                self.enter_interrupt_table(sid, &entry);
            }
        }
        self.interrupts_after(memory, at);
    }

    /// After the unit's view of the word at `at` changed: fetches the interrupt entries in it.
    pub(crate) fn interrupts_after(&mut self, memory: &Memory, at: u64) {
        if self.injected.gone || !self.enabled() {
            return;
        }
        let Some((root, sids)) = self.interrupt_table_at(at) else {
            return;
        };
        let size = self.interrupt_entry_size();
        let first = (at - root) / size;
        let last = (at + 7 - root) / size;
        for index in first..=last {
            for &sid in &sids {
                self.prefetch_interrupt(memory, sid, root, index as u16);
            }
        }
    }

    /// The unit's own structures: device table, command buffer, event log, interrupt tables.
    pub(crate) fn structures(&self) -> Vec<(u64, u64)> {
        let ring = |base: u64| (base & POINTER, 16 << (base >> 56 & 0xf));
        let mut found = self.segments();
        if self.command_run.on {
            found.push(ring(self.command_base));
        }
        if self.event_run.on {
            found.push(ring(self.event_base));
        }
        found.extend(self.store_pages.iter().map(|page| (page << 12, 4096)));
        let tables = self.interrupt_tables.iter();
        found.extend(tables.map(|(&root, table)| (root, table.end - root)));
        found
    }
}
