//! What a processor's store into live tables must not do: the ownership rules of VT-d section
//! 6.5.3.3, and entries that a unit could read half-written.

use crate::memory::Memory;
use crate::report::Rule;
use crate::unit::{Log, Unit, global};

impl Unit {
    fn entry_words(memory: &Memory, at: u64, value: u64) -> ((u64, u64), (u64, u64)) {
        let base = at & !15;
        let old = (memory.processor(base), memory.processor(base + 8));
        let new = if at == base {
            (value, old.1)
        } else {
            (old.0, value)
        };
        (old, new)
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
        if old == value || self.injected.gone {
            return;
        }
        if self.translating() {
            if self.roots().any(|root| at >> 12 == root >> 12) {
                self.check_root_store(memory, log, at, value);
            }
            if let Some(&bus) = self.context_pages.get(&(at >> 12)) {
                let sid = u16::from(bus) << 8 | (at >> 4 & 0xff) as u16;
                self.check_context_store(memory, log, at, value, sid);
            }
        }
        if self.gsts & global::IRE != 0 {
            let irta = self.interrupt_table.unwrap_or(0);
            let entries = 2_u64 << (irta & 0xf);
            if let Some(offset) = at.checked_sub(irta & !0xfff)
                && offset / 16 < entries
            {
                self.check_interrupt_store(memory, log, at, value, (offset / 16) as u16);
            }
        }
    }

    /// Looks at a store of 16 bytes before it is made. An entry that is written whole is not torn;
    /// what it held before must be gone all the same. Other structures are not written so by any
    /// driver, and are looked at word by word.
    pub(crate) fn check_pair(&mut self, memory: &Memory, log: &mut Log, at: u64, pair: (u64, u64)) {
        let old = (memory.processor(at), memory.processor(at + 8));
        if old == pair || self.injected.gone {
            return;
        }
        match self.context_pages.get(&(at >> 12)) {
            Some(&bus) if self.translating() => {
                let sid = u16::from(bus) << 8 | (at >> 4 & 0xff) as u16;
                let live = self.live_contexts.get(&sid).copied();
                let detail = format!("context entry {sid:#06x}: {old:x?} becomes {pair:x?}");
                if pair.0 & 1 != 0 {
                    self.check_present(log, sid, pair, live, &detail);
                } else if live.is_some() && old.1 != pair.1 {
                    let rule = Rule::EntryReusedBeforeInvalidation;
                    log.broken(self.number, rule, detail);
                }
            }
            _ => {
                self.check_store(memory, log, at + 8, old.1, pair.1);
                self.check_store(memory, log, at, old.0, pair.0);
            }
        }
    }

    fn check_root_store(&self, memory: &Memory, log: &mut Log, at: u64, value: u64) {
        let (old, new) = Self::entry_words(memory, at, value);
        let bus = at >> 4 & 0xff;
        let detail = format!("root entry {bus:#x}: {old:x?} becomes {new:x?}");
        if old.0 & new.0 & 1 != 0 {
            log.broken(self.number, Rule::EntryReusedBeforeInvalidation, detail);
        } else if new.0 & 1 != 0 && new.1 != 0 {
            log.broken(self.number, Rule::TornEntry, detail);
        }
    }

    fn check_context_store(
        &mut self,
        memory: &Memory,
        log: &mut Log,
        at: u64,
        value: u64,
        sid: u16,
    ) {
        let (old, new) = Self::entry_words(memory, at, value);
        let number = self.number;
        let detail = format!(
            "context entry {sid:#06x}: {:#x} {:#x} becomes {:#x} {:#x}",
            old.0, old.1, new.0, new.1
        );
        let live = self.live_contexts.get(&sid).copied();
        if old.1 != new.1 {
            if new.0 & 1 != 0 {
                log.broken(number, Rule::TornEntry, detail.clone());
            } else if live.is_some() {
                log.broken(number, Rule::EntryReusedBeforeInvalidation, detail.clone());
            }
        }
        if new.0 & 1 != 0 && old.0 != new.0 {
            self.check_present(log, sid, new, live, &detail);
        }
    }

    /// Looks at a context entry that becomes present, or another.
    fn check_present(
        &mut self,
        log: &mut Log,
        sid: u16,
        new: (u64, u64),
        live: Option<(u64, u64)>,
        detail: &str,
    ) {
        let silence = 2;
        if let Some(live) = live
            && (live.0 & !silence != new.0 & !silence || live.1 != new.1)
        {
            log.broken(self.number, Rule::EntryReusedBeforeInvalidation, detail);
        }
        self.live_contexts.insert(sid, new);
        self.check_context(log, new, detail);
    }

    /// Looks at every context entry that is present below a root table put into force.
    pub(crate) fn check_contexts(&self, memory: &Memory, log: &mut Log) {
        let pages: Vec<_> = self.context_pages.iter().map(|(&p, &b)| (p, b)).collect();
        for (page, bus) in pages {
            for index in 0..256_u64 {
                let at = page * 4096 + index * 16;
                let entry = (memory.processor(at), memory.processor(at + 8));
                if entry.0 & 1 != 0 {
                    let sid = u16::from(bus) << 8 | index as u16;
                    let detail = format!(
                        "context entry {sid:#06x}: {:#x} {:#x} put into force",
                        entry.0, entry.1
                    );
                    self.check_context(log, entry, &detail);
                }
            }
        }
    }

    /// What a present context entry must be like.
    fn check_context(&self, log: &mut Log, new: (u64, u64), detail: &str) {
        let number = self.number;
        match self.decode_context(new.0, new.1) {
            Err(why) => {
                let detail = format!("{detail}: {:?}", why.reason);
                log.broken(number, Rule::ContextEntryInvalid, detail);
            }
            Ok(context) => {
                if context.did == 0 && self.config.caching_mode {
                    log.broken(number, Rule::DomainIdZeroInCachingMode, detail);
                }
                if u32::from(context.did) >= self.config.domains() {
                    log.broken(number, Rule::DomainIdTooLarge, detail);
                }
                if context.kind != 0 && self.config.fence_rules {
                    log.broken(number, Rule::TranslatedRequestsAllowed, detail);
                }
                let other = self.live_contexts.values().find(|e| {
                    (e.1 >> 8) as u16 == context.did
                        && (e.0 & !0xfff != context.table || e.1 & 7 != new.1 & 7)
                });
                if let Some(other) = other {
                    let detail = format!("{detail}; another is {:#x} {:#x}", other.0, other.1);
                    log.broken(number, Rule::DomainIdWithTwoTables, detail);
                }
            }
        }
    }

    fn check_interrupt_store(
        &mut self,
        memory: &Memory,
        log: &mut Log,
        at: u64,
        value: u64,
        index: u16,
    ) {
        let (old, new) = Self::entry_words(memory, at, value);
        let detail = format!("interrupt entry {index:#x}: {old:x?} becomes {new:x?}");
        let live = self.live_interrupts.get(&index).copied();
        if old.1 != new.1 {
            if new.0 & 1 != 0 {
                log.broken(self.number, Rule::TornEntry, detail);
            } else if live.is_some() {
                log.broken(self.number, Rule::EntryReusedBeforeInvalidation, detail);
            }
        }
        if new.0 & 1 != 0 {
            self.live_interrupts.insert(index, new);
        }
    }

    /// Follows a store that was made: the unit fetches what it may.
    pub(crate) fn after_store(&mut self, memory: &Memory, at: u64) {
        if self.injected.gone {
            return;
        }
        if self.roots().any(|root| at >> 12 == root >> 12) {
            self.context_pages.clear();
            for root in [self.old_root, self.root].into_iter().flatten() {
                for bus in 0..=255_u8 {
                    let entry = memory.processor((root & !0xfff) + u64::from(bus) * 16);
                    if entry & 1 != 0 {
                        self.context_pages.insert(entry >> 12, bus);
                    }
                }
            }
        }
        let irta = self.interrupt_table.unwrap_or(0);
        if self.gsts & global::IRE != 0
            && let Some(offset) = at.checked_sub(irta & !0xfff)
            && offset / 16 < 2 << (irta & 0xf)
        {
            let index = (offset / 16) as u16;
            let base = at & !15;
            let entry = [self.fetch(memory, base), self.fetch(memory, base + 8)];
            if entry[0] & 1 != 0 {
                self.interrupt_entries.entry(index).or_insert(entry);
            }
        }
        if self.translating()
            && let Some(&bus) = self.context_pages.get(&(at >> 12))
        {
            let sid = u16::from(bus) << 8 | (at >> 4 & 0xff) as u16;
            self.prefetch_context(memory, sid);
        }
    }
}
