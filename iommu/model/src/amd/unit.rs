//! The state of one unit, and what all its parts use.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::commands::Command;
use super::config::UnitConfig;
use super::entry::DeviceEntry;
use super::report::{Counters, Event, Fault, Rule, Violation};
use crate::config::Schedule;
use crate::memory::{ByPage, Memory};

/// Bits of the control register (MMIO offset 0018h).
pub(crate) mod control {
    pub(crate) const IOMMU_EN: u64 = 1 << 0;
    pub(crate) const EVENT_LOG_EN: u64 = 1 << 2;
    pub(crate) const EVENT_INT_EN: u64 = 1 << 3;
    pub(crate) const COM_WAIT_INT_EN: u64 = 1 << 4;
    pub(crate) const COHERENT: u64 = 1 << 10;
    pub(crate) const CMD_BUF_EN: u64 = 1 << 12;
    pub(crate) const GA_EN: u64 = 1 << 17;
    pub(crate) const SMI_FILTER_EN: u64 = 1 << 22;
    pub(crate) const SEGMENTS: u64 = 7 << 34;
    pub(crate) const MANY_INTERRUPTS: u64 = 3 << 43;
    pub(crate) const XT_EN: u64 = 1 << 50;
    pub(crate) const INT_CAP_XT_EN: u64 = 1 << 51;
    /// HtTunEn, InvTimeOut, PassPW, ResPassPW and Isoc: how the unit speaks on its links.
    pub(crate) const LINK: u64 = 1 << 1 | 7 << 5 | 3 << 8 | 1 << 11;
}

/// Bits of the status register (MMIO offset 2020h).
pub(crate) mod status {
    pub(crate) const OVERFLOW: u64 = 1 << 0;
    pub(crate) const EVENT_INT: u64 = 1 << 1;
    pub(crate) const COM_WAIT_INT: u64 = 1 << 2;
    pub(crate) const EVENT_RUN: u64 = 1 << 3;
    pub(crate) const COMMAND_RUN: u64 = 1 << 4;
    pub(crate) const CLEARABLE: u64 = OVERFLOW | EVENT_INT | COM_WAIT_INT;
}

/// A run bit that follows its enable bit after a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    pub(crate) on: bool,
    pub(crate) wanted: bool,
    steps: u32,
}

impl Run {
    pub(crate) fn want(&mut self, wanted: bool, steps: u32) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.steps = steps;
        }
    }

    pub(crate) fn changing(&self) -> bool {
        self.on != self.wanted
    }

    fn step(&mut self, at_once: bool) {
        if self.steps > 0 && !at_once {
            self.steps -= 1;
        } else {
            self.on = self.wanted;
        }
    }
}

/// A device table entry as the unit cached it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedEntry {
    pub(crate) entry: DeviceEntry,
    /// A page fault of the device was logged since (for DTE.SE).
    pub(crate) reported: bool,
}

/// A translation as the unit cached it, or (NpCache) that there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedTranslation {
    pub(crate) did: u16,
    pub(crate) output: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// What a device table entry let through and a cache may still hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveEntry {
    pub(crate) entry: DeviceEntry,
    /// The entry in memory lets nothing of it through any more.
    pub(crate) leaving: bool,
    /// It was invalidated since.
    pub(crate) entry_flushed: bool,
}

/// Devices whose entries name one interrupt table, and the table's end.
#[derive(Clone, Debug, Default)]
pub(crate) struct InterruptTable {
    pub(crate) end: u64,
    pub(crate) sids: BTreeSet<u16>,
}

/// A write whose translation is done and whose data has not arrived.
#[derive(Clone, Debug)]
pub(crate) struct PostedWrite {
    pub(crate) did: u16,
    pub(crate) iova: u64,
    pub(crate) drained: bool,
    pub(crate) at: u64,
    pub(crate) data: Vec<u8>,
}

/// An event whose entry is not in memory yet although the tail moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LateEvent {
    pub(crate) at: u64,
    pub(crate) words: [u64; 2],
    pub(crate) second_written: bool,
    pub(crate) steps: u32,
    /// It never comes.
    pub(crate) lost: bool,
}

/// What was invalidated since the unit was switched on or got another device table.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinceEnable {
    pub(crate) all: bool,
    pub(crate) entries: BTreeSet<u16>,
    pub(crate) interrupts: BTreeSet<u16>,
    pub(crate) domains: BTreeSet<u16>,
}

/// Faults that a test injects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Injected {
    pub(crate) stuck_run: u64,
    pub(crate) stuck_commands: bool,
    pub(crate) lost_waits: u32,
    pub(crate) illegal_commands: u32,
    pub(crate) hardware_errors: u32,
    pub(crate) lost_events: u32,
    pub(crate) gone: bool,
    pub(crate) gone_after: Option<u64>,
    pub(crate) stuck_after: Option<u64>,
}

pub(crate) struct Unit {
    pub(crate) number: usize,
    pub(crate) config: UnitConfig,
    // Registers.
    pub(crate) control: u64,
    pub(crate) status: u64,
    /// The device table's base register and those of segments 1 to 7.
    pub(crate) device_tables: [u64; 8],
    pub(crate) command_base: u64,
    pub(crate) command_head: u64,
    pub(crate) command_tail: u64,
    pub(crate) event_base: u64,
    pub(crate) event_head: u64,
    pub(crate) event_tail: u64,
    pub(crate) exclusion_base: u64,
    pub(crate) exclusion_limit: u64,
    pub(crate) hardware_event: [u64; 3],
    /// MSI header and address low, address high and data, as two registers of 64 bits.
    pub(crate) msi: [u64; 2],
    pub(crate) xt_control: [u64; 3],
    // Commands.
    pub(crate) command_run: Run,
    /// Commands stopped by an error, until they are switched off and on.
    pub(crate) halted: bool,
    /// Fetched, not executed.
    pub(crate) fetched: Vec<Command>,
    pub(crate) command_steps_left: u32,
    /// Where completion waits stored lately.
    pub(crate) store_pages: BTreeSet<u64>,
    // Events.
    pub(crate) event_run: Run,
    /// The log overflowed, until it is switched off and on.
    pub(crate) overflowed: bool,
    pub(crate) late_events: VecDeque<LateEvent>,
    /// Messages the unit itself sent: address and data.
    pub(crate) messages: Vec<(u64, u32)>,
    // Caches.
    pub(crate) entries: HashMap<u16, CachedEntry>,
    /// By device, and page number of the page with the size's shift.
    pub(crate) translations: BTreeMap<(u16, u64, u8), CachedTranslation>,
    /// The same by domain, with the permissions of the page tables alone.
    pub(crate) shared: HashMap<(u16, u64, u8), CachedTranslation>,
    /// The page sizes in the two, as shifts.
    pub(crate) shifts: BTreeSet<u8>,
    /// Page directory entries by domain, level and the address bits above it.
    pub(crate) directories: HashMap<(u16, u8, u64), u64>,
    pub(crate) interrupt_entries: HashMap<(u16, u16), [u64; 2]>,
    // What the unit keeps an eye on, to fetch as early as it may.
    pub(crate) hot: BTreeSet<(u16, u64)>,
    /// Those of `hot` that are not in the cache.
    pub(crate) missing: BTreeSet<(u16, u64)>,
    /// Pages that walks read page tables from.
    pub(crate) walked: ByPage<()>,
    // What software did that the unit may have seen.
    pub(crate) live: HashMap<u16, LiveEntry>,
    pub(crate) live_tables: HashMap<u16, LiveEntry>,
    pub(crate) smi_filters: Vec<u64>,
    pub(crate) interrupt_tables: BTreeMap<u64, InterruptTable>,
    pub(crate) since_enable: SinceEnable,
    pub(crate) posted: Vec<PostedWrite>,
    pub(crate) injected: Injected,
    pub(crate) counters: Counters,
    /// Polls without a look at the clock.
    pub(crate) unbounded_polls: u32,
    pub(crate) all_faults: Vec<Fault>,
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

impl Unit {
    pub(crate) fn new(number: usize, config: UnitConfig) -> Self {
        Self {
            number,
            control: control::COHERENT,
            status: 0,
            device_tables: [0; 8],
            command_base: 8 << 56,
            command_head: 0,
            command_tail: 0,
            event_base: 8 << 56,
            event_head: 0,
            event_tail: 0,
            exclusion_base: 0,
            exclusion_limit: 0,
            hardware_event: [0; 3],
            msi: [0; 2],
            xt_control: [0; 3],
            command_run: Run::default(),
            halted: false,
            fetched: Vec::new(),
            command_steps_left: 0,
            store_pages: BTreeSet::new(),
            event_run: Run::default(),
            overflowed: false,
            late_events: VecDeque::new(),
            messages: Vec::new(),
            entries: HashMap::new(),
            translations: BTreeMap::new(),
            shared: HashMap::new(),
            shifts: BTreeSet::new(),
            directories: HashMap::new(),
            interrupt_entries: HashMap::new(),
            hot: BTreeSet::new(),
            missing: BTreeSet::new(),
            walked: ByPage::default(),
            live: HashMap::new(),
            live_tables: HashMap::new(),
            smi_filters: vec![0; config.smi_filters as usize],
            interrupt_tables: BTreeMap::new(),
            since_enable: SinceEnable::default(),
            posted: Vec::new(),
            injected: Injected::default(),
            counters: Counters::default(),
            unbounded_polls: 0,
            all_faults: Vec::new(),
            config,
        }
    }

    /// Whether the unit sees what processors stored before it was written back.
    pub(crate) fn snoops(&self) -> bool {
        self.config.coherent && self.control & control::COHERENT != 0
    }

    /// What the unit reads at `at`.
    pub(crate) fn fetch(&self, memory: &Memory, at: u64) -> u64 {
        if self.snoops() {
            memory.processor(at)
        } else {
            memory.written_back(at)
        }
    }

    pub(crate) fn enabled(&self) -> bool {
        self.control & control::IOMMU_EN != 0
    }

    /// Whether an address is beyond the machine's physical addresses.
    pub(crate) fn too_wide(&self, address: u64) -> bool {
        address >> self.config.host_width != 0
    }

    /// What the status register reads.
    pub(crate) fn status_value(&self) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        self.status
            | flag(self.event_run.on, status::EVENT_RUN)
            | flag(self.command_run.on, status::COMMAND_RUN)
    }

    /// Has the run bits follow the control register.
    pub(crate) fn follow_control(&mut self) {
        let on = |bit: u64| self.control & bit != 0 && self.enabled();
        let commands = on(control::CMD_BUF_EN) && !self.halted;
        let events = on(control::EVENT_LOG_EN) && !self.overflowed;
        let steps = self.config.enable_steps;
        self.command_run.want(commands, steps);
        self.event_run.want(events, steps);
    }

    /// One step of the unit's own work.
    pub(crate) fn step(&mut self, memory: &mut Memory, log: &mut Log, schedule: Schedule) {
        if self.injected.gone {
            return;
        }
        let at_once = schedule == Schedule::Eager;
        let stuck = self.injected.stuck_run;
        if self.command_run.changing() && stuck & status::COMMAND_RUN == 0 {
            self.command_run.step(at_once);
        }
        if self.event_run.changing() && stuck & status::EVENT_RUN == 0 {
            self.event_run.step(at_once);
        }
        self.step_events(memory, at_once);
        self.step_commands(memory, log, schedule);
    }

    /// Whether there is anything left to do.
    pub(crate) fn busy(&self) -> bool {
        let stuck = self.injected.stuck_run;
        !self.injected.gone
            && (self.command_run.changing() && stuck & status::COMMAND_RUN == 0
                || self.event_run.changing() && stuck & status::EVENT_RUN == 0
                || self.late_events.iter().any(|e| !e.lost)
                || self.commands_busy())
    }
}
