//! The command buffer (AMD 48882 section 2.4): fetching, errors, waits; and what each command does
//! to the caches.

use super::entry::POINTER;
use super::report::{Event, Invalidation, Rule};
use super::unit::{Log, Unit};
use crate::config::Schedule;
use crate::memory::Memory;

/// Everything, in the page-selective command: the one encoding that the section names for it.
const EVERYTHING: u64 = 0x7fff_ffff_ffff_f000;

/// A command as decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    Invalidate(Invalidation),
    /// INVALIDATE_IOTLB_PAGES: no device of the model has an IOTLB.
    RemoteIotlb,
    Prefetch {
        sid: u16,
        address: u64,
    },
    Wait {
        store: Option<(u64, u64)>,
        interrupt: bool,
        flush: bool,
    },
}

/// Hardware error type: the unit's own access found no memory.
const MASTER_ABORT: u64 = 1;

impl Unit {
    pub(crate) fn command_slots(&self) -> u64 {
        1 << (self.command_base >> 56 & 0xf)
    }

    pub(crate) fn commands_busy(&self) -> bool {
        self.command_run.on
            && !self.halted
            && !self.injected.stuck_commands
            && self.command_head != self.command_tail
    }

    /// Whether `at` lies in a slot that software has submitted and the unit has not fetched.
    pub(crate) fn pending_slot(&self, at: u64) -> bool {
        if !self.command_run.on || self.halted {
            return false;
        }
        let length = self.command_slots() * 16;
        let Some(offset) = at.checked_sub(self.command_base & POINTER) else {
            return false;
        };
        if offset >= length {
            return false;
        }
        let slot = offset & !15;
        let ahead = (slot + length - self.command_head) % length;
        let waiting = (self.command_tail + length - self.command_head) % length;
        ahead < waiting
    }

    pub(crate) fn step_commands(&mut self, memory: &mut Memory, log: &mut Log, when: Schedule) {
        if !self.commands_busy() {
            return;
        }
        if self.command_steps_left > 0 && when != Schedule::Eager {
            self.command_steps_left -= 1;
            return;
        }
        self.command_steps_left = self.config.command_steps;
        let at = (self.command_base & POINTER) + self.command_head;
        if self.too_wide(at) || self.injected.hardware_errors > 0 {
            self.injected.hardware_errors = self.injected.hardware_errors.saturating_sub(1);
            self.halt([MASTER_ABORT << 57 | 6 << 60, at]);
            return;
        }
        let read = |at| {
            if self.config.commands_snoop {
                memory.processor(at)
            } else {
                self.fetch(memory, at)
            }
        };
        let (low, high) = (read(at), read(at + 8));
        let decoded = if self.injected.illegal_commands > 0 {
            self.injected.illegal_commands -= 1;
            Err(None)
        } else {
            self.decode(log, low, high).map_err(Some)
        };
        let command = match decoded {
            Ok(command) => command,
            Err(why) => {
                if let Some(why) = why {
                    let detail = format!("{low:#018x} {high:#018x}: {why}");
                    log.broken(self.number, Rule::InvalidCommand, detail);
                }
                // The head stays at the command. What was fetched before it and not executed is
                // lost.
                self.halt([5 << 60, at]);
                return;
            }
        };
        self.command_head = (self.command_head + 16) % (self.command_slots() * 16);
        self.count(&command);
        self.fetched.push(command);
        let empty = self.command_head == self.command_tail;
        let waits = |c: &Command| matches!(c, Command::Wait { .. });
        let due = match command {
            Command::Wait { flush: true, .. } => true,
            _ if when == Schedule::Eager => true,
            Command::Wait { .. } if !self.reordering(when) => true,
            // A wait without f holds nothing up that comes after it.
            _ => empty && self.fetched.iter().any(waits),
        };
        if due {
            self.execute_fetched(memory, log, when);
        }
    }

    fn reordering(&self, when: Schedule) -> bool {
        self.config.reorders && when == Schedule::Lazy
    }

    /// Stops fetching commands, with an event; what was not executed never is.
    fn halt(&mut self, words: [u64; 2]) {
        self.halted = true;
        self.fetched.clear();
        self.command_run.want(false, 0);
        self.command_run.on = false;
        if words[0] >> 60 == 6 {
            self.hardware_error(words);
        } else {
            self.log_event(words);
        }
    }

    fn count(&mut self, command: &Command) {
        let counters = &mut self.counters;
        match command {
            Command::Invalidate(Invalidation::All) => counters.all_commands += 1,
            Command::Invalidate(Invalidation::Entry { .. }) => counters.entry_commands += 1,
            Command::Invalidate(Invalidation::Interrupts { .. }) => {
                counters.interrupt_commands += 1;
            }
            Command::Invalidate(Invalidation::Pages { .. }) => counters.page_commands += 1,
            Command::RemoteIotlb | Command::Prefetch { .. } => counters.other_commands += 1,
            Command::Wait {
                store: None,
                interrupt: false,
                ..
            } => counters.barriers += 1,
            Command::Wait { .. } => counters.waits += 1,
        }
    }

    fn decode(&self, log: &mut Log, low: u64, high: u64) -> Result<Command, &'static str> {
        let config = &self.config;
        let only = |low_mask: u64, high_mask: u64, what: &'static str| {
            if low & !(low_mask | 0xf << 60) != 0 || high & !high_mask != 0 {
                Err(what)
            } else {
                Ok(())
            }
        };
        let sid = low as u16;
        match low >> 60 {
            1 => {
                only(0x000f_ffff_ffff_ffff, u64::MAX, "reserved bits in a wait")?;
                Ok(Command::Wait {
                    store: (low & 1 != 0).then_some((low & 0x000f_ffff_ffff_fff8, high)),
                    interrupt: low & 2 != 0,
                    flush: low & 4 != 0,
                })
            }
            2 => {
                only(0xffff, 0, "reserved bits in a device table command")?;
                Ok(Command::Invalidate(Invalidation::Entry { sid }))
            }
            3 => {
                let what = "reserved bits in a page command";
                only(0xffff_000f_ffff, !0xff8, what)?;
                if high & 4 != 0 {
                    return Err("a guest address, but GTSup is clear");
                }
                let did = (low >> 32) as u16;
                let (address, shift) = self.invalidation_range(log, high);
                Ok(Command::Invalidate(Invalidation::Pages {
                    did,
                    address,
                    shift,
                    directories: high & 2 != 0,
                }))
            }
            4 if !config.remote_iotlb => Err("IotlbSup is clear"),
            4 => {
                only(0x0fff_ffff_ffff_ffff, !0xfca, "reserved bits")?;
                Ok(Command::RemoteIotlb)
            }
            5 => {
                only(0xffff, 0, "reserved bits in an interrupt table command")?;
                Ok(Command::Invalidate(Invalidation::Interrupts { sid }))
            }
            6 if !config.prefetch => Err("PreFSup is clear"),
            6 => {
                only(0x000f_ffff_ff00_ffff, !0xfea, "reserved bits")?;
                Ok(Command::Prefetch {
                    sid,
                    address: high & !0xfff,
                })
            }
            7 => Err("PPRSup is clear"),
            8 if !config.invalidate_all => Err("IASup is clear"),
            8 => {
                only(0, 0, "reserved bits")?;
                Ok(Command::Invalidate(Invalidation::All))
            }
            _ => Err("an opcode the unit does not have"),
        }
    }

    /// What a page command covers (section 2.4.3): with S set, the lowest clear address bit from
    /// bit 12 on says how much.
    fn invalidation_range(&self, log: &mut Log, high: u64) -> (u64, u8) {
        let address = high & !0xfff;
        if high & 1 == 0 {
            return (address, 12);
        }
        if address == EVERYTHING {
            return (0, 64);
        }
        let shift = (address | 0xfff).trailing_ones() as u8 + 1;
        if shift > 63 {
            let detail = format!("address {address:#x} with S");
            log.broken(self.number, Rule::InvalidationRangeUndefined, detail);
            return (address, 12);
        }
        (address >> shift << shift, shift)
    }

    /// Executes what was fetched: the last first, if the unit may, and the waits after everything
    /// else.
    fn execute_fetched(&mut self, memory: &mut Memory, log: &mut Log, when: Schedule) {
        let mut commands = core::mem::take(&mut self.fetched);
        if self.reordering(when) {
            let (mut waits, mut others): (Vec<_>, Vec<_>) = commands
                .into_iter()
                .partition(|c| matches!(c, Command::Wait { .. }));
            others.reverse();
            others.append(&mut waits);
            commands = others;
        }
        for command in commands {
            self.execute(memory, log, command);
            if self.halted {
                return;
            }
        }
    }

    fn execute(&mut self, memory: &mut Memory, log: &mut Log, command: Command) {
        match command {
            Command::Invalidate(what) => {
                self.apply(memory, log, what);
                // The caches are filled again at once, from whatever the tables say now.
                self.prefetch(memory);
            }
            Command::RemoteIotlb => {}
            Command::Prefetch { sid, address } => {
                self.watch(sid, address);
                self.prefetch(memory);
            }
            Command::Wait {
                store, interrupt, ..
            } => {
                // Writes that used what was invalidated have arrived before the wait ends.
                for write in self.landing() {
                    memory.device_write_bytes(write.0, &write.1);
                }
                if store.is_none() && !interrupt {
                    return;
                }
                if self.injected.lost_waits > 0 {
                    self.injected.lost_waits -= 1;
                    return;
                }
                if let Some((at, data)) = store {
                    if self.too_wide(at) {
                        self.halt([MASTER_ABORT << 57 | 6 << 60, at]);
                        return;
                    }
                    self.store_pages.insert(at >> 12);
                    memory.device_write(at, data);
                }
                if interrupt {
                    self.raise_wait_interrupt();
                }
                log.event(Event::WaitDone { unit: self.number });
            }
        }
    }

    /// Takes out the writes that arrive now: those whose translation was invalidated.
    fn landing(&mut self) -> Vec<(u64, Vec<u8>)> {
        let (now, later) = core::mem::take(&mut self.posted)
            .into_iter()
            .partition::<Vec<_>, _>(|w| w.drained);
        self.posted = later;
        now.into_iter().map(|w| (w.at, w.data)).collect()
    }

    /// What an invalidation does to the caches.
    pub(crate) fn apply(&mut self, memory: &Memory, log: &mut Log, what: Invalidation) {
        // An entry that was cached is fetched again at once.
        let again: Vec<u16> = match what {
            Invalidation::All => self.entries.keys().copied().collect(),
            Invalidation::Entry { sid } if self.entries.contains_key(&sid) => vec![sid],
            _ => Vec::new(),
        };
        match what {
            Invalidation::All => {
                self.entries.clear();
                self.translations.clear();
                self.shared.clear();
                self.directories.clear();
                self.interrupt_entries.clear();
                self.live.retain(|_, l| !l.leaving);
                self.live_tables.retain(|_, l| !l.leaving);
                self.since_enable.all = true;
                for write in &mut self.posted {
                    write.drained = true;
                }
                self.missing.clone_from(&self.hot);
            }
            Invalidation::Entry { sid } => {
                self.entries.remove(&sid);
                for live in [&mut self.live, &mut self.live_tables] {
                    if let Some(live) = live.get_mut(&sid) {
                        live.entry_flushed = live.leaving;
                    }
                }
                self.since_enable.entries.insert(sid);
            }
            Invalidation::Interrupts { sid } => {
                self.interrupt_entries.retain(|&(s, _), _| s != sid);
                self.since_enable.interrupts.insert(sid);
                if self.live_tables.get(&sid).is_some_and(|l| l.entry_flushed) {
                    self.live_tables.remove(&sid);
                }
            }
            Invalidation::Pages {
                did,
                address,
                shift,
                directories,
            } => self.apply_pages(did, address, shift, directories),
        }
        for sid in again {
            let _ = self.entry(memory, sid);
        }
        // So is an interrupt entry that is still there.
        self.refetch_interrupts(memory, what);
        log.event(self.event(what));
    }

    fn apply_pages(&mut self, did: u16, address: u64, shift: u8, directories: bool) {
        let first = u128::from(address);
        let end = first + (1_u128 << shift);
        let apart = |page: u64, shift: u8| {
            let base = u128::from(page) << shift;
            base + (1_u128 << shift) <= first || base >= end
        };
        self.translations
            .retain(|&(_, page, shift), t| t.did != did || apart(page, shift));
        self.shared
            .retain(|&(d, page, shift), _| d != did || apart(page, shift));
        if directories {
            self.directories
                .retain(|&(d, level, prefix), _| d != did || apart(prefix, 12 + 9 * (level - 1)));
        }
        for write in &mut self.posted {
            write.drained |= write.did == did && !apart(write.iova >> 12, 12);
        }
        if shift == 64 && directories {
            self.since_enable.domains.insert(did);
        }
        if shift == 64 {
            // A device whose old entry is gone from the cache cannot bring its translations back,
            // so that nothing of the entry is left now.
            self.live
                .retain(|_, l| !(l.entry_flushed && l.entry.did() == did));
        }
        self.missing.clone_from(&self.hot);
    }
}
