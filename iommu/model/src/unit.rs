//! The state of one unit, and what all its parts use.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::config::{Schedule, UnitConfig};
use crate::memory::{ByPage, Memory};
use crate::report::{Counters, Event, Rule, Violation};

/// A context entry as the unit cached it. `did` is what it is tagged with: the entry's own, or 0
/// for one that is not present (caching mode).
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedContext {
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) did: u16,
    /// Which root entry words led there, so that a root fault can be told from a context fault.
    pub(crate) root_low: u64,
    pub(crate) root_high: u64,
}

/// A translation as the unit cached it, or (caching mode) that there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedTranslation {
    pub(crate) did: u16,
    pub(crate) output: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// A global command under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) bit: u32,
    pub(crate) on: bool,
    pub(crate) steps: u32,
}

/// The queue as latched when it was switched on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) base: u64,
    pub(crate) slots: u32,
}

/// How far the invalidations that SRTP calls for have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterRootPointer {
    NeverSet,
    NeedsContextCache,
    NeedsIotlb,
    Done,
}

/// A write whose translation is done and whose data has not arrived.
#[derive(Clone, Debug)]
pub(crate) struct PostedWrite {
    pub(crate) did: u16,
    pub(crate) drained: bool,
    pub(crate) at: u64,
    pub(crate) data: Vec<u8>,
}

/// Faults that a test injects into the queue's working.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Injected {
    pub(crate) stuck_command: u32,
    pub(crate) stuck_queue: bool,
    pub(crate) lost_waits: u32,
    pub(crate) time_outs: u32,
    pub(crate) completion_errors: u32,
    pub(crate) queue_errors: u32,
    pub(crate) gone: bool,
    pub(crate) gone_after: Option<u64>,
    pub(crate) stuck_after: Option<u64>,
}

pub(crate) struct Unit {
    pub(crate) number: usize,
    pub(crate) config: UnitConfig,
    // Global command and status.
    pub(crate) gsts: u32,
    pub(crate) command: Option<Command>,
    // Root table.
    pub(crate) rtaddr: u64,
    pub(crate) root: Option<u64>,
    /// The root table before, which the unit may go on referring to while it translates, until the
    /// context cache was invalidated globally (section 6.6).
    pub(crate) old_root: Option<u64>,
    pub(crate) after_root: AfterRootPointer,
    // Interrupt table.
    pub(crate) irta: u64,
    pub(crate) interrupt_table: Option<u64>,
    pub(crate) interrupt_cache_flushed: bool,
    // Queue.
    pub(crate) iqa: u64,
    pub(crate) iqh: u32,
    pub(crate) iqt: u32,
    pub(crate) queue: Option<Queue>,
    pub(crate) queue_halted: bool,
    pub(crate) descriptor_steps_left: u32,
    pub(crate) last_was_wait: bool,
    pub(crate) ics: u32,
    pub(crate) iectl: u32,
    pub(crate) iedata: u32,
    pub(crate) ieaddr: u32,
    pub(crate) ieuaddr: u32,
    // Register-based invalidation.
    pub(crate) ccmd: u64,
    pub(crate) iotlb: u64,
    pub(crate) iva: u64,
    // Faults.
    pub(crate) fsts: u32,
    pub(crate) fault_index: u8,
    pub(crate) next_record: u16,
    pub(crate) records: Vec<[u64; 2]>,
    pub(crate) fectl: u32,
    pub(crate) fedata: u32,
    pub(crate) feaddr: u32,
    pub(crate) feuaddr: u32,
    /// Fault event messages that were sent: address and data.
    pub(crate) fault_messages: Vec<(u64, u32)>,
    // Protected memory.
    pub(crate) pmen: u32,
    pub(crate) protected_steps: u32,
    pub(crate) low_base: u32,
    pub(crate) low_limit: u32,
    pub(crate) high_base: u64,
    pub(crate) high_limit: u64,
    // Caches.
    pub(crate) contexts: HashMap<u16, CachedContext>,
    /// By requester and page number of the 4 KiB, 2 MiB or 1 GiB page, with the size's shift.
    pub(crate) translations: BTreeMap<(u16, u64, u8), CachedTranslation>,
    /// Non-leaf entries by domain, level and the address bits above it.
    pub(crate) structures: HashMap<(u16, u8, u64), u64>,
    pub(crate) interrupt_entries: HashMap<u16, [u64; 2]>,
    // What the unit keeps an eye on, to fetch as early as it may.
    pub(crate) hot: BTreeSet<(u16, u64)>,
    /// Those of `hot` that are not in the cache.
    pub(crate) missing: BTreeSet<(u16, u64)>,
    /// Pages that walks read second-stage entries from.
    pub(crate) walked: ByPage<()>,
    /// Pages known to hold context tables, with their bus.
    pub(crate) context_pages: ByPage<u8>,
    /// Context entries (by requester) that were seen present and are not invalidated since, with
    /// the domain id seen.
    pub(crate) live_contexts: HashMap<u16, (u64, u64)>,
    pub(crate) live_interrupts: HashMap<u16, (u64, u64)>,
    pub(crate) write_buffer: ByPage<u64>,
    pub(crate) posted: Vec<PostedWrite>,
    pub(crate) injected: Injected,
    pub(crate) counters: Counters,
    // Polls without a look at the clock.
    pub(crate) unbounded_polls: u32,
    /// Records of every fault, whether or not a register was free for it.
    pub(crate) all_faults: Vec<(u16, u64, u8)>,
}

/// What a unit reports to while it works.
pub(crate) struct Log {
    pub(crate) violations: Vec<Violation>,
    pub(crate) events: VecDeque<Event>,
}

impl Log {
    pub(crate) fn broken(&mut self, unit: usize, rule: Rule, detail: impl Into<String>) {
        // The same rule broken again and again in one run tells nothing new.
        if self.violations.len() < 64 {
            self.violations.push(Violation {
                unit,
                rule,
                detail: detail.into(),
            });
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        if self.events.len() >= 1 << 16 {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// Bits of GCMD and GSTS (VT-d sections 11.4.4.1 and 11.4.4.2).
pub(crate) mod global {
    pub(crate) const TE: u32 = 1 << 31;
    pub(crate) const SRTP: u32 = 1 << 30;
    pub(crate) const SFL: u32 = 1 << 29;
    pub(crate) const EAFL: u32 = 1 << 28;
    pub(crate) const WBF: u32 = 1 << 27;
    pub(crate) const QIE: u32 = 1 << 26;
    pub(crate) const IRE: u32 = 1 << 25;
    pub(crate) const SIRTP: u32 = 1 << 24;
    pub(crate) const CFI: u32 = 1 << 23;
    pub(crate) const SWITCHES: u32 = TE | EAFL | QIE | IRE | CFI;
    pub(crate) const ONE_SHOTS: u32 = SRTP | SFL | WBF | SIRTP;
}

impl Unit {
    pub(crate) fn new(number: usize, config: UnitConfig) -> Self {
        let records = vec![[0; 2]; usize::from(config.fault_records)];
        let protected = config.protected_at_start;
        Self {
            number,
            gsts: 0,
            command: None,
            rtaddr: 0,
            root: None,
            old_root: None,
            after_root: AfterRootPointer::NeverSet,
            irta: 0,
            interrupt_table: None,
            interrupt_cache_flushed: false,
            iqa: 0,
            iqh: 0,
            iqt: 0,
            queue: None,
            queue_halted: false,
            descriptor_steps_left: 0,
            last_was_wait: true,
            ics: 0,
            iectl: 1 << 31,
            iedata: 0,
            ieaddr: 0,
            ieuaddr: 0,
            ccmd: 0,
            iotlb: 0,
            iva: 0,
            fsts: 0,
            fault_index: 0,
            next_record: 0,
            records,
            fectl: 1 << 31,
            fedata: 0,
            feaddr: 0,
            feuaddr: 0,
            fault_messages: Vec::new(),
            pmen: if protected { 1 << 31 | 1 } else { 0 },
            protected_steps: 0,
            low_base: 0,
            low_limit: if protected { 0xfff0_0000 } else { 0 },
            high_base: if protected { 1 << 32 } else { 0 },
            high_limit: if protected { 1 << 40 } else { 0 },
            contexts: HashMap::new(),
            translations: BTreeMap::new(),
            structures: HashMap::new(),
            interrupt_entries: HashMap::new(),
            hot: BTreeSet::new(),
            missing: BTreeSet::new(),
            walked: ByPage::default(),
            context_pages: ByPage::default(),
            live_contexts: HashMap::new(),
            live_interrupts: HashMap::new(),
            write_buffer: ByPage::default(),
            posted: Vec::new(),
            injected: Injected::default(),
            counters: Counters::default(),
            unbounded_polls: 0,
            all_faults: Vec::new(),
            config,
        }
    }

    /// What the unit reads at `at`.
    pub(crate) fn fetch(&self, memory: &Memory, at: u64) -> u64 {
        if !self.write_buffer.is_empty()
            && let Some(old) = self.write_buffer.get(&at)
        {
            return *old;
        }
        if self.config.coherent {
            memory.processor(at)
        } else {
            memory.written_back(at)
        }
    }

    /// A word that this unit will see changed some time, but not yet.
    pub(crate) fn delay_write(&mut self, at: u64, old: u64) {
        if self.config.write_buffer {
            self.write_buffer.entry(at).or_insert(old);
        }
    }

    pub(crate) fn translating(&self) -> bool {
        self.gsts & global::TE != 0
    }

    /// One step of the unit's own work: a command or a descriptor.
    pub(crate) fn step(&mut self, memory: &mut Memory, log: &mut Log, schedule: Schedule) {
        if self.injected.gone {
            return;
        }
        if self.protected_steps > 0 {
            self.protected_steps -= 1;
            if self.protected_steps == 0 {
                self.pmen = self.pmen & !1 | self.pmen >> 31;
            }
        }
        if let Some(command) = &mut self.command
            && command.bit & self.injected.stuck_command == 0
        {
            if command.steps > 0 && schedule != Schedule::Eager {
                command.steps -= 1;
            } else {
                let command = *command;
                self.command = None;
                self.finish_command(memory, log, command);
            }
        }
        self.step_queue(memory, log, schedule);
    }

    /// Whether there is anything left to do.
    pub(crate) fn busy(&self) -> bool {
        !self.injected.gone
            && (self
                .command
                .is_some_and(|c| c.bit & self.injected.stuck_command == 0)
                || self.queue_busy()
                || self.protected_steps > 0)
    }
}
