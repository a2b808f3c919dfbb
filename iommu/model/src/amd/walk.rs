//! Translation (AMD 48882 sections 2.2.2 to 2.2.4): tables, caches, reasons.

use super::entry::{DeviceEntry, POINTER};
use super::report::{Reason, Rule};
use super::unit::{CachedTranslation, Log, Unit};
use crate::memory::Memory;

const PRESENT: u64 = 1;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;
/// Bits 60:52 of a page directory entry.
const RESERVED_IN_DIRECTORY: u64 = 0x1ff << 52;
/// Bits 58:52 of a page translation entry.
const RESERVED_IN_LEAF: u64 = 0x7f << 52;

/// More table pages than this in one domain are taken for tables gone wrong.
const MOST_TABLES: usize = 2048;

/// The interrupt address range.
pub(crate) const INTERRUPT_RANGE: core::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;
/// `HyperTransport`'s own range.
pub(crate) const HYPERTRANSPORT_RANGE: core::ops::Range<u64> = 0xfd_0000_0000..0x100_0000_0000;

/// A request that is blocked, and by what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    pub(crate) reason: Reason,
    /// The device table entry, where it could be read.
    pub(crate) entry: Option<DeviceEntry>,
    /// The table entry that could not be read.
    pub(crate) unreadable: u64,
    /// No event (the interrupt entry's SupIOPF).
    pub(crate) silent: bool,
}

impl Blocked {
    pub(crate) fn new(reason: Reason, entry: Option<DeviceEntry>) -> Self {
        Self {
            reason,
            entry,
            unreadable: 0,
            silent: false,
        }
    }
}

/// A translation: where it leads and under which domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translated {
    pub(crate) at: u64,
    pub(crate) did: u16,
}

/// One leaf, with the permissions of its page tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    pub(crate) iova: u64,
    pub(crate) shift: u8,
    pub(crate) output: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// What a page table entry says.
enum Step {
    Leaf { shift: u8, output: u64 },
    Directory { table: u64, level: u8 },
}

impl Unit {
    /// Reads one present entry of a table of `level`, met on the way to `iova`.
    fn read_entry(&self, entry: u64, level: u8, iova: u64) -> Result<Step, Reason> {
        let next = (entry >> 9 & 7) as u8;
        let own = 12 + 9 * (level - 1);
        let pointer = entry & POINTER;
        match next {
            0 | 7 => {
                if entry & RESERVED_IN_LEAF != 0 {
                    return Err(Reason::EntryReserved);
                }
                let shift = if next == 0 {
                    own
                } else {
                    // The lowest clear bit of the address, from bit 12 on, says the size.
                    let size = (pointer | 0xfff).trailing_ones() as u8 + 1;
                    if size <= own || size >= own + 9 || size > 51 {
                        return Err(Reason::LevelInvalid);
                    }
                    size
                };
                let below = (1 << shift) - 1;
                if next == 0 && pointer & below != 0 {
                    return Err(Reason::EntryReserved);
                }
                Ok(Step::Leaf {
                    shift,
                    output: pointer & !below,
                })
            }
            _ if entry & RESERVED_IN_DIRECTORY != 0 => Err(Reason::EntryReserved),
            _ if next >= level => Err(Reason::LevelInvalid),
            _ => {
                let skipped = (next + 1..level).any(|l| iova >> (12 + 9 * (l - 1)) & 0x1ff != 0);
                if skipped {
                    return Err(Reason::LevelInvalid);
                }
                Ok(Step::Directory {
                    table: pointer,
                    level: next,
                })
            }
        }
    }

    /// Walks the page tables, through the cache of directory entries.
    fn walk(&mut self, memory: &Memory, entry: DeviceEntry, iova: u64) -> Result<Leaf, Blocked> {
        let block = |reason| Blocked::new(reason, Some(entry));
        let (mut table, mut level) = (entry.root(), entry.mode());
        let (mut read, mut write) = (true, true);
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = table + (iova >> shift & 0x1ff) * 8;
            if self.too_wide(at) {
                return Err(Blocked {
                    unreadable: at,
                    ..block(Reason::PageTableUnreadable)
                });
            }
            let key = (entry.did(), level, iova >> shift);
            let found = match self.directories.get(&key) {
                Some(cached) => *cached,
                None => self.fetch(memory, at),
            };
            self.walked.insert(table >> 12, ());
            if found & PRESENT == 0 {
                return Err(block(Reason::NotPresent));
            }
            read &= found & READ != 0;
            write &= found & WRITE != 0;
            match self.read_entry(found, level, iova).map_err(block)? {
                Step::Leaf { shift, output } => {
                    return Ok(Leaf {
                        iova: iova >> shift << shift,
                        shift,
                        output,
                        read,
                        write,
                    });
                }
                Step::Directory { table: t, level: l } => {
                    self.directories.insert(key, found);
                    (table, level) = (t, l);
                }
            }
        }
    }

    fn cached(&self, sid: u16, iova: u64) -> Option<CachedTranslation> {
        self.shifts.iter().find_map(|&shift| {
            let hit = self.translations.get(&(sid, iova >> shift, shift))?;
            Some(CachedTranslation {
                output: hit.output + (iova & ((1 << shift) - 1)),
                ..*hit
            })
        })
    }

    /// What another device of the domain brought into the cache.
    fn cached_by_domain(&self, did: u16, iova: u64) -> Option<Leaf> {
        self.shifts.iter().find_map(|&shift| {
            let hit = self.shared.get(&(did, iova >> shift, shift))?;
            Some(Leaf {
                iova: iova >> shift << shift,
                shift,
                output: hit.output,
                read: hit.read,
                write: hit.write,
            })
        })
    }

    fn remember(&mut self, sid: u16, entry: DeviceEntry, leaf: Leaf) {
        let did = entry.did();
        let page = leaf.iova >> leaf.shift;
        let own = CachedTranslation {
            did,
            output: leaf.output,
            read: leaf.read && entry.read(),
            write: leaf.write && entry.write(),
        };
        self.shifts.insert(leaf.shift);
        self.translations.insert((sid, page, leaf.shift), own);
        let tables = CachedTranslation {
            read: leaf.read,
            write: leaf.write,
            ..own
        };
        self.shared.insert((did, page, leaf.shift), tables);
    }

    /// Whether the exclusion range takes `iova` of a device with `entry` out of translation.
    fn excluded(&self, entry: DeviceEntry, iova: u64) -> bool {
        self.exclusion_base & 1 != 0
            && (self.exclusion_base & 2 != 0 || entry.excluded())
            && (self.exclusion_base & POINTER..=self.exclusion_limit & POINTER | 0xfff)
                .contains(&iova)
    }

    /// Translates one address, from the caches where they have it, and fills them.
    pub(crate) fn translate(
        &mut self,
        memory: &Memory,
        sid: u16,
        iova: u64,
        write: bool,
    ) -> Result<Translated, Blocked> {
        // A translation is looked up before the device table entry is: a hot one needs no entry.
        if let Some(hit) = self.cached(sid, iova) {
            if write && !hit.write || !write && !hit.read {
                // Who reports it, and whether, is for the entry to say.
                let entry = self.entry(memory, sid).ok();
                let reason = match (hit.read || hit.write, write) {
                    (false, _) => Reason::NotPresent,
                    (true, true) => Reason::NoWrite,
                    (true, false) => Reason::NoRead,
                };
                return Err(Blocked::new(reason, entry));
            }
            return Ok(Translated {
                at: hit.output,
                did: hit.did,
            });
        }
        let entry = self.entry(memory, sid).map_err(|reason| Blocked {
            unreadable: self.entry_address(sid).unwrap_or(0),
            ..Blocked::new(reason, None)
        })?;
        let block = |reason| Blocked::new(reason, Some(entry));
        if !entry.valid() {
            return Ok(Translated { at: iova, did: 0 });
        }
        if let Some(reason) = entry.memory_problem(&self.config) {
            return Err(block(reason));
        }
        if !entry.translation_valid() {
            return Err(block(Reason::TranslationNotValid));
        }
        if self.excluded(entry, iova) {
            let did = entry.did();
            return Ok(Translated { at: iova, did });
        }
        if write && !entry.write() {
            return Err(block(Reason::NoWrite));
        }
        if !write && !entry.read() {
            return Err(block(Reason::NoRead));
        }
        let leaf = if entry.mode() == 0 {
            Leaf {
                iova: iova & !0xfff,
                shift: 12,
                output: iova & !0xfff,
                read: true,
                write: true,
            }
        } else {
            let limit = 12 + 9 * u32::from(entry.mode());
            if limit < 64 && iova >> limit != 0 {
                return Err(block(Reason::AddressTooWide));
            }
            match self.cached_by_domain(entry.did(), iova) {
                Some(leaf) => leaf,
                None => match self.walk(memory, entry, iova) {
                    Ok(leaf) => leaf,
                    Err(why) => {
                        if self.config.caches_not_present && why.reason == Reason::NotPresent {
                            let nothing = Leaf {
                                iova: iova & !0xfff,
                                shift: 12,
                                output: 0,
                                read: false,
                                write: false,
                            };
                            self.remember(sid, entry, nothing);
                        }
                        return Err(why);
                    }
                },
            }
        };
        self.remember(sid, entry, leaf);
        if write && !leaf.write {
            return Err(block(Reason::NoWrite));
        }
        if !write && !leaf.read {
            return Err(block(Reason::NoRead));
        }
        Ok(Translated {
            at: leaf.output + (iova & ((1 << leaf.shift) - 1)),
            did: entry.did(),
        })
    }

    /// Whether there is nothing, or something that is not memory, at a physical address.
    pub(crate) fn not_memory(&self, at: u64) -> bool {
        self.too_wide(at) || self.config.hypertransport_range && HYPERTRANSPORT_RANGE.contains(&at)
    }

    /// Keeps an eye on a translation from now on.
    pub(crate) fn watch(&mut self, sid: u16, iova: u64) {
        let key = (sid, iova & !0xfff);
        if self.hot.insert(key) {
            self.missing.insert(key);
        }
    }

    /// Fetches what the unit keeps an eye on, wherever the caches have a gap.
    pub(crate) fn prefetch(&mut self, memory: &Memory) {
        self.prefetch_those(memory, |_| true);
    }

    /// As [`prefetch`](Self::prefetch), after the unit's view of the word at `at` changed: only
    /// what can depend on it.
    pub(crate) fn prefetch_after(&mut self, memory: &Memory, at: u64) {
        if !self.enabled() || self.injected.gone {
            return;
        }
        if let Some(sid) = self.entry_holding(at) {
            // The entry is fetched at this very moment, whatever half of it is written.
            let _ = self.entry(memory, sid);
            self.prefetch_those(memory, |other| other == sid);
        } else if !self.missing.is_empty() && self.walked.contains_key(&(at >> 12)) {
            self.prefetch(memory);
        }
    }

    fn prefetch_those(&mut self, memory: &Memory, which: impl Fn(u16) -> bool) {
        if !self.enabled() || self.injected.gone || self.missing.is_empty() {
            return;
        }
        let mut missing = core::mem::take(&mut self.missing);
        missing.retain(|&(sid, iova)| {
            if which(sid) && self.cached(sid, iova).is_none() {
                // Whether it is a read or a write only decides which fault a prefetch would give,
                // and prefetches give none.
                let _ = self.translate(memory, sid, iova, false);
            }
            self.cached(sid, iova).is_none()
        });
        self.missing.append(&mut missing);
    }

    /// All leaves below a device table entry, as memory has them now; malformed entries are
    /// reported. Permissions are those of the page tables and of the entry together.
    pub(crate) fn leaves(
        &self,
        memory: &Memory,
        log: &mut Log,
        entry: DeviceEntry,
        pages: &mut Vec<u64>,
    ) -> Vec<Leaf> {
        let mut found = Vec::new();
        let usable = entry.valid()
            && entry.translation_valid()
            && entry.mode() != 0
            && entry.memory_problem(&self.config).is_none();
        if !usable {
            return found;
        }
        let malformed = |log: &mut Log, detail: String| {
            log.broken(self.number, Rule::PageTableMalformed, detail);
        };
        let mut path = vec![(
            entry.root(),
            entry.mode(),
            0_u64,
            entry.read(),
            entry.write(),
        )];
        while let Some((table, level, base, read, write)) = path.pop() {
            if self.too_wide(table) {
                malformed(log, format!("a table at {table:#x}, beyond memory"));
                continue;
            }
            pages.push(table);
            if pages.len() > MOST_TABLES {
                let detail = "more table pages than anyone makes: rubbish or a cycle";
                malformed(log, detail.to_string());
                return found;
            }
            let own = 12 + 9 * (level - 1);
            let page = memory.page(self.snoops(), table >> 12);
            // The last level of six has seven address bits left.
            let slots = 1_u64 << (64 - u32::from(own)).min(9);
            for index in 0..slots {
                let word = page[index as usize];
                if word & PRESENT == 0 {
                    continue;
                }
                let iova = base | index << own;
                let (r, w) = (read && word & READ != 0, write && word & WRITE != 0);
                match self.read_entry(word, level, iova) {
                    Err(reason) => {
                        malformed(log, format!("{word:#x} for {iova:#x}: {reason:?}"));
                    }
                    Ok(Step::Directory { table, level }) => path.push((table, level, iova, r, w)),
                    Ok(Step::Leaf { shift, .. }) if shift >= 39 => {
                        // Leaves of 512 GiB are known not to work.
                        malformed(log, format!("{word:#x} for {iova:#x}: 2^{shift} bytes"));
                    }
                    Ok(Step::Leaf { shift, output }) => {
                        // A leaf of an unusual size is repeated in every slot it covers, and each
                        // slot leads its own part there.
                        let within = iova & ((1 << shift) - 1);
                        found.push(Leaf {
                            iova,
                            shift: own,
                            output: output | within,
                            read: r,
                            write: w,
                        });
                    }
                }
            }
        }
        found
    }

    /// The device table entries that `sid` may be served by: the cached one, and what memory has.
    pub(crate) fn entries_of(&self, memory: &Memory, sid: u16) -> Vec<DeviceEntry> {
        let mut found: Vec<DeviceEntry> = Vec::new();
        let cached = self.entries.get(&sid).map(|c| c.entry);
        let in_memory = self.entry_address(sid).map(|at| {
            DeviceEntry(core::array::from_fn(|i| {
                self.fetch(memory, at + i as u64 * 8)
            }))
        });
        for entry in cached.into_iter().chain(in_memory) {
            if !found.iter().any(|other| other.0[0] == entry.0[0]) {
                found.push(entry);
            }
        }
        found
    }
}
