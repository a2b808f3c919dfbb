//! Translation (VT-d sections 3.4, 3.7 and 9): tables, caches, reasons.

use crate::memory::Memory;
use crate::report::{Reason, Rule};
use crate::unit::{CachedContext, CachedTranslation, Log, Unit};

const PRESENT: u64 = 1;
const FAULT_PROCESSING_DISABLED: u64 = 1 << 1;
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const PAGE_SIZE: u64 = 1 << 7;
const SNOOP: u64 = 1 << 11;
const TRANSIENT: u64 = 1 << 62;
const POINTER: u64 = 0x000f_ffff_ffff_f000;

/// More table pages than this in one domain are taken for tables gone wrong.
const MOST_TABLES: usize = 2048;

/// The interrupt address range.
pub(crate) const INTERRUPT_RANGE: core::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// A request that is blocked, and whether the context entry asks for silence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    pub(crate) reason: Reason,
    pub(crate) silent: bool,
}

/// A translation: where it leads and under which domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translated {
    pub(crate) at: u64,
    pub(crate) did: u16,
}

/// The fields of a present context entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    pub(crate) did: u16,
    pub(crate) kind: u8,
    pub(crate) levels: u8,
    pub(crate) table: u64,
    pub(crate) silent: bool,
}

/// One leaf as found in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    pub(crate) iova: u64,
    pub(crate) shift: u8,
    pub(crate) output: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

fn blocked(reason: Reason, silent: bool) -> Blocked {
    Blocked { reason, silent }
}

impl Unit {
    fn too_wide(&self, address: u64) -> bool {
        address >> self.config.host_width != 0
    }

    /// Decodes context entry words.
    pub(crate) fn decode_context(&self, low: u64, high: u64) -> Result<Context, Blocked> {
        let silent = low & FAULT_PROCESSING_DISABLED != 0;
        if low & PRESENT == 0 {
            return Err(blocked(Reason::ContextNotPresent, silent));
        }
        // High: AW in 2:0, four bits for software in 6:3, bit 7 reserved, DID in 23:8.
        if low & 0xff0 != 0 || high & !0x00ff_ff7f != 0 || self.too_wide(low & !0xfff) {
            return Err(blocked(Reason::ContextReserved, silent));
        }
        let kind = (low >> 2 & 3) as u8;
        let width = (high & 7) as u8;
        let width_known = (1..=3).contains(&width) && self.config.address_widths >> width & 1 != 0;
        let largest = (1..=3_u8)
            .rev()
            .find(|w| self.config.address_widths >> w & 1 != 0);
        let kind_known = match kind {
            0 => true,
            // Device-TLBs are not modelled, so ECAP.DT reads 0.
            2 => self.config.pass_through && largest == Some(width),
            _ => false,
        };
        if !width_known || !kind_known {
            return Err(blocked(Reason::ContextInvalid, silent));
        }
        Ok(Context {
            did: (high >> 8) as u16,
            kind,
            levels: width + 2,
            table: low & POINTER,
            silent,
        })
    }

    /// The words that lead to the context entry of `sid`, as the unit would fetch them. Of a root
    /// table that was replaced and the new one it refers to one for half of the devices and to the
    /// other for the other half.
    fn fetch_context(&self, memory: &Memory, sid: u16) -> CachedContext {
        let old = self.old_root.filter(|_| sid & 1 != 0);
        self.fetch_context_below(memory, old.or(self.root), sid)
    }

    fn fetch_context_below(&self, memory: &Memory, root: Option<u64>, sid: u16) -> CachedContext {
        let root = root.unwrap_or(0) & !0xfff;
        let entry = root + u64::from(sid >> 8) * 16;
        let (root_low, root_high) = (self.fetch(memory, entry), self.fetch(memory, entry + 8));
        let usable = root_low & PRESENT != 0
            && root_low & 0xffe == 0
            && root_high == 0
            && !self.too_wide(root_low);
        let (low, high) = if usable {
            let at = (root_low & !0xfff) + u64::from(sid & 0xff) * 16;
            (self.fetch(memory, at), self.fetch(memory, at + 8))
        } else {
            (0, 0)
        };
        let did = if low & PRESENT == 0 {
            0
        } else {
            (high >> 8) as u16
        };
        CachedContext {
            low,
            high,
            did,
            root_low,
            root_high,
        }
    }

    /// Caches the context entry of `sid` if it can be and is not.
    pub(crate) fn prefetch_context(&mut self, memory: &Memory, sid: u16) {
        let _ = self.context(memory, sid);
    }

    fn context(&mut self, memory: &Memory, sid: u16) -> Result<Context, Blocked> {
        let found = match self.contexts.get(&sid) {
            Some(cached) => *cached,
            None => {
                let fetched = self.fetch_context(memory, sid);
                let good = self.decode_context(fetched.low, fetched.high).is_ok();
                if good || self.config.caching_mode {
                    self.contexts.insert(sid, fetched);
                }
                fetched
            }
        };
        if self.root.is_none_or(|r| self.too_wide(r)) {
            return Err(blocked(Reason::RootPointerInvalid, false));
        }
        if found.root_low & PRESENT == 0 {
            return Err(blocked(Reason::RootNotPresent, false));
        }
        if found.root_low & 0xffe != 0 || found.root_high != 0 {
            return Err(blocked(Reason::RootReserved, false));
        }
        if self.too_wide(found.root_low) {
            return Err(blocked(Reason::ContextPointerInvalid, false));
        }
        self.decode_context(found.low, found.high)
    }

    /// Whether the entry's reserved bits are clear, and whether it is a leaf.
    fn check_entry(&self, entry: u64, level: u8) -> Result<bool, Reason> {
        let large = entry & PAGE_SIZE != 0;
        let size_known = match level {
            2 => self.config.large_pages & 1 != 0,
            3 => self.config.large_pages & 2 != 0,
            _ => false,
        };
        if large && !size_known {
            return Err(Reason::EntryReserved);
        }
        let leaf = level == 1 || large;
        let mut reserved = TRANSIENT;
        if !leaf || !self.config.snoop_control {
            reserved |= SNOOP;
        }
        if leaf && level > 1 {
            reserved |= ((1 << (12 + 9 * (level - 1))) - 1) & POINTER;
        }
        if entry & reserved != 0 {
            return Err(Reason::EntryReserved);
        }
        if self.too_wide(entry & POINTER) {
            return Err(if leaf {
                Reason::EntryReserved
            } else {
                Reason::TablePointerInvalid
            });
        }
        Ok(leaf)
    }

    fn cached(&self, sid: u16, iova: u64) -> Option<CachedTranslation> {
        [12_u8, 21, 30].into_iter().find_map(|shift| {
            let hit = self.translations.get(&(sid, iova >> shift, shift))?;
            Some(CachedTranslation {
                output: hit.output + (iova & ((1 << shift) - 1)),
                ..*hit
            })
        })
    }

    /// Translates one address, from the caches where they have it, and fills them.
    pub(crate) fn translate(
        &mut self,
        memory: &Memory,
        sid: u16,
        iova: u64,
        write: bool,
    ) -> Result<Translated, Blocked> {
        // A translation is looked up before the context is: the IOTLB may be tagged with the
        // requester, so a hot entry needs no context entry.
        if let Some(hit) = self.cached(sid, iova) {
            // Whether its faults are reported is told by the context entry alone.
            let silent = (write && !hit.write || !write && !hit.read)
                && self.context(memory, sid).is_ok_and(|c| c.silent);
            if write && !hit.write {
                return Err(blocked(Reason::NoWrite, silent));
            }
            if !write && !hit.read {
                return Err(blocked(Reason::NoRead, silent));
            }
            return Ok(Translated {
                at: hit.output,
                did: hit.did,
            });
        }
        let context = self.context(memory, sid)?;
        let silent = context.silent;
        let did = context.did;
        let (leaf, read, writable) = if context.kind == 2 {
            let leaf = Leaf {
                iova,
                shift: 12,
                output: iova & !0xfff,
                read: true,
                write: true,
            };
            (leaf, true, true)
        } else {
            let limit = (12 + 9 * u32::from(context.levels)).min(self.config.guest_width.into());
            if limit < 64 && iova >> limit != 0 {
                return Err(blocked(Reason::AddressTooWide, silent));
            }
            let leaf = self.walk(memory, context, iova).map_err(|reason| {
                let reason = match reason {
                    Reason::NoRead if write => Reason::NoWrite,
                    other => other,
                };
                blocked(reason, silent)
            });
            let leaf = match leaf {
                Ok(leaf) => leaf,
                Err(why) => {
                    if self.config.caching_mode
                        && matches!(why.reason, Reason::NoRead | Reason::NoWrite)
                    {
                        let nothing = CachedTranslation {
                            did,
                            output: 0,
                            read: false,
                            write: false,
                        };
                        self.translations.insert((sid, iova >> 12, 12), nothing);
                    }
                    return Err(why);
                }
            };
            (leaf, leaf.read, leaf.write)
        };
        if write && !writable {
            return Err(blocked(Reason::NoWrite, silent));
        }
        if !write && !read {
            return Err(blocked(Reason::NoRead, silent));
        }
        let at = leaf.output + (iova & ((1 << leaf.shift) - 1));
        if INTERRUPT_RANGE.contains(&at) {
            return Err(blocked(Reason::OutputIsInterrupt, silent));
        }
        self.translations.insert(
            (sid, iova >> leaf.shift, leaf.shift),
            CachedTranslation {
                did,
                output: leaf.output,
                read,
                write: writable,
            },
        );
        Ok(Translated { at, did })
    }

    /// Walks the page tables, through the paging-structure caches. An entry with neither R nor W
    /// gives `NoRead`.
    fn walk(&mut self, memory: &Memory, context: Context, iova: u64) -> Result<Leaf, Reason> {
        let mut table = context.table;
        let (mut read, mut write) = (true, true);
        for level in (1..=context.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let key = (context.did, level, iova >> shift);
            let entry = match self.structures.get(&key) {
                Some(cached) => *cached,
                None => self.fetch(memory, table + (iova >> shift & 0x1ff) * 8),
            };
            self.walked.insert(table >> 12, ());
            if entry & (READ | WRITE) == 0 {
                return Err(Reason::NoRead);
            }
            let leaf = self.check_entry(entry, level)?;
            read &= entry & READ != 0;
            write &= entry & WRITE != 0;
            if leaf {
                return Ok(Leaf {
                    iova: iova >> shift << shift,
                    shift,
                    output: entry & POINTER,
                    read,
                    write,
                });
            }
            self.structures.insert(key, entry);
            table = entry & POINTER;
        }
        Err(Reason::TablePointerInvalid)
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
        if self.missing.is_empty() || !self.translating() {
            return;
        }
        let page = at >> 12;
        if self.roots().any(|r| r >> 12 == page) || self.walked.contains_key(&page) {
            self.prefetch(memory);
        } else if let Some(&bus) = self.context_pages.get(&page) {
            let sid = u16::from(bus) << 8 | (at >> 4 & 0xff) as u16;
            self.prefetch_those(memory, |other| other == sid);
        }
    }

    fn prefetch_those(&mut self, memory: &Memory, which: impl Fn(u16) -> bool) {
        if !self.translating() || self.injected.gone {
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

    /// Looks for the context tables that the root table names.
    pub(crate) fn find_context_pages(&mut self, memory: &Memory) {
        self.context_pages.clear();
        // What the new root table leads to counts where both lead to something.
        for root in [self.old_root, self.root].into_iter().flatten() {
            for bus in 0..=255_u8 {
                let entry = memory.processor((root & !0xfff) + u64::from(bus) * 16);
                if entry & PRESENT != 0 {
                    self.context_pages.insert(entry >> 12, bus);
                }
            }
        }
        let Some(root) = self.root else { return };
        // What is present there is live from now on.
        for bus in 0..=255_u8 {
            let entry = memory.processor((root & !0xfff) + u64::from(bus) * 16);
            if entry & PRESENT == 0 {
                continue;
            }
            let page = entry >> 12;
            for index in 0..256_u64 {
                let at = page * 4096 + index * 16;
                let words = (memory.processor(at), memory.processor(at + 8));
                if words.0 & PRESENT != 0 {
                    self.live_contexts
                        .insert(u16::from(bus) << 8 | index as u16, words);
                }
            }
        }
    }

    /// After an invalidation: entries that are present still may be fetched again at once.
    pub(crate) fn keep_live(&mut self, memory: &Memory, contexts: &[u16], interrupts: &[u16]) {
        for &sid in contexts {
            let root = self.root.unwrap_or(0) & !0xfff;
            let entry = memory.processor(root + u64::from(sid >> 8) * 16);
            if entry & PRESENT == 0 {
                continue;
            }
            let at = (entry & !0xfff) + u64::from(sid & 0xff) * 16;
            let words = (memory.processor(at), memory.processor(at + 8));
            if words.0 & PRESENT != 0 {
                self.live_contexts.insert(sid, words);
            }
        }
        let table = self.interrupt_table.unwrap_or(0) & !0xfff;
        for &index in interrupts {
            let at = table + u64::from(index) * 16;
            let words = (memory.processor(at), memory.processor(at + 8));
            if words.0 & PRESENT != 0 {
                self.live_interrupts.insert(index, words);
            }
        }
    }

    /// All leaves below a context entry, as memory has them now; malformed entries are reported.
    pub(crate) fn leaves(
        &self,
        memory: &Memory,
        log: &mut Log,
        context: Context,
        pages: &mut Vec<u64>,
    ) -> Vec<Leaf> {
        let mut found = Vec::new();
        let mut path = vec![(context.table, context.levels, 0_u64, true, true)];
        while let Some((table, level, base, read, write)) = path.pop() {
            pages.push(table);
            if pages.len() > MOST_TABLES {
                let detail = "more table pages than anyone makes: rubbish or a cycle".to_string();
                log.broken(self.number, Rule::PageTableMalformed, detail);
                return found;
            }
            let shift = 12 + 9 * (level - 1);
            let page = memory.page(self.config.coherent, table >> 12);
            for index in 0..512_u64 {
                let mut entry = page[index as usize];
                if !self.write_buffer.is_empty() {
                    entry = self.fetch(memory, table + index * 8);
                }
                if entry & (READ | WRITE) == 0 {
                    continue;
                }
                let iova = base | index << shift;
                match self.check_entry(entry, level) {
                    Err(reason) => {
                        let detail = format!("{entry:#x} for {iova:#x}: {reason:?}");
                        log.broken(self.number, Rule::PageTableMalformed, detail);
                    }
                    Ok(leaf) => {
                        let (r, w) = (read && entry & READ != 0, write && entry & WRITE != 0);
                        if leaf {
                            found.push(Leaf {
                                iova,
                                shift,
                                output: entry & POINTER,
                                read: r,
                                write: w,
                            });
                        } else {
                            path.push((entry & POINTER, level - 1, iova, r, w));
                        }
                    }
                }
            }
        }
        found
    }

    /// The root tables that the unit may refer to.
    pub(crate) fn roots(&self) -> impl Iterator<Item = u64> + use<> {
        self.root.into_iter().chain(self.old_root)
    }

    /// The context entries that `sid` may be served by: the cached one, and what memory has.
    pub(crate) fn contexts_of(&self, memory: &Memory, sid: u16) -> Vec<Context> {
        let mut found: Vec<Context> = Vec::new();
        let cached = self.contexts.get(&sid).copied();
        let fetched = self.roots().map(|root| {
            // From whichever root table the unit may refer to.
            self.fetch_context_below(memory, Some(root), sid)
        });
        for entry in cached.into_iter().chain(fetched) {
            if let Ok(context) = self.decode_context(entry.low, entry.high)
                && !found.iter().any(|c| c.table == context.table)
            {
                found.push(context);
            }
        }
        found
    }

    /// The context entry of `sid` in memory, and the page it is in.
    pub(crate) fn context_in_memory(&self, memory: &Memory, sid: u16) -> Option<(u64, Context)> {
        let entry = self.fetch_context(memory, sid);
        let context = self.decode_context(entry.low, entry.high).ok()?;
        Some((entry.root_low & !0xfff, context))
    }

    /// Whether the root table has nothing for `bus`.
    pub(crate) fn bus_absent(&self, memory: &Memory, bus: u8) -> bool {
        self.fetch_context(memory, u16::from(bus) << 8).root_low & PRESENT == 0
    }
}
