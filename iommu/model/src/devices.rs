//! What a test does as a device, as firmware and as an observer.

use crate::interrupt::Interrupt;
use crate::machine::{Attack, Machine, State};
use crate::memory::Memory;
use crate::report::{Reason, Rule};
use crate::unit::{AfterRootPointer, PostedWrite, Unit, global};
use crate::walk::INTERRUPT_RANGE;

/// A register's offset and a value for it.
pub type RegisterWrite = (u32, u64);

/// What became of a device's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dma {
    /// Where bytes arrived or came from: physical address and length, in order.
    pub landed: Vec<(u64, u64)>,
    /// Why the rest was blocked; `None` where all went through.
    pub blocked: Option<Reason>,
    /// What a read gave, up to where it was blocked.
    pub data: Vec<u8>,
}

/// What a device reaches, as one run of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// The first address the device uses.
    pub iova: u64,
    /// The physical address that it leads to.
    pub at: u64,
    /// How many bytes.
    pub length: u64,
    /// Whether it may read.
    pub read: bool,
    /// Whether it may write.
    pub write: bool,
}

/// Something that goes wrong inside a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// Commands with these bits of GCMD never complete.
    StuckCommand(u32),
    /// The queue stands still.
    StuckQueue,
    /// So many wait descriptors are executed without their status write.
    LostWaits(u32),
    /// So many wait descriptors end in an invalidation time-out (ITE).
    TimeOuts(u32),
    /// So many wait descriptors come with a completion error (ICE).
    CompletionErrors(u32),
    /// So many descriptors end in a queue error (IQE) although they are valid.
    QueueErrors(u32),
    /// The queue stands still when software has done so many things more.
    StuckQueueAfter(u64),
    /// The unit vanishes: reads give ones, writes do nothing.
    Gone,
    /// The unit vanishes when software has done so many things more.
    GoneAfter(u64),
    /// All of the above is undone.
    Nothing,
}

impl Machine {
    /// A device's memory write. Bytes land page by page until one is blocked.
    pub fn dma_write(&self, unit: usize, sid: u16, iova: u64, data: &[u8]) -> Dma {
        self.dma(unit, sid, iova, data.len() as u64, Some(data))
    }

    /// A device's memory read.
    pub fn dma_read(&self, unit: usize, sid: u16, iova: u64, length: u64) -> Dma {
        self.dma(unit, sid, iova, length, None)
    }

    fn dma(&self, unit: usize, sid: u16, iova: u64, length: u64, data: Option<&[u8]>) -> Dma {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        let mut result = Dma {
            landed: Vec::new(),
            blocked: None,
            data: Vec::new(),
        };
        let mut done = 0;
        while done < length {
            let here = iova.wrapping_add(done);
            let part = (4096 - here % 4096).min(length - done);
            match units[unit].request(memory, sid, here, data.is_some()) {
                Ok((at, _)) => {
                    match data {
                        Some(bytes) => {
                            let bytes = &bytes[done as usize..][..part as usize];
                            memory.device_write_bytes(at, bytes);
                        }
                        None => result.data.extend(memory.read_bytes(at, part as usize)),
                    }
                    result.landed.push((at, part));
                }
                Err(reason) => {
                    result.blocked = Some(reason);
                    break;
                }
            }
            done += part;
        }
        result
    }

    /// A posted write that has passed translation but has not arrived yet. It arrives when an
    /// invalidation drains it, or with [`land`](Self::land). Gives why it was blocked, or where
    /// it is heading.
    ///
    /// # Errors
    /// The reason for which it was blocked.
    pub fn dma_post(&self, unit: usize, sid: u16, iova: u64, data: &[u8]) -> Result<u64, Reason> {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        let unit = &mut units[unit];
        let (at, did) = unit.request(memory, sid, iova, true)?;
        unit.posted.push(PostedWrite {
            did,
            drained: false,
            at,
            data: data.to_vec(),
        });
        Ok(at)
    }

    /// Lets every write in flight arrive; gives where they land.
    pub fn land(&self, unit: usize) -> Vec<u64> {
        let mut state = self.0.borrow_mut();
        let posted = core::mem::take(&mut state.units[unit].posted);
        for write in &posted {
            state.memory.device_write_bytes(write.at, &write.data);
        }
        posted.into_iter().map(|w| w.at).collect()
    }

    /// A message signalled interrupt: a write of `data` to `address` by `sid`, whether by its MSI
    /// capability or by DMA; a unit cannot tell.
    pub fn msi(&self, unit: usize, sid: u16, address: u64, data: u32) -> Interrupt {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        units[unit].interrupt(memory, sid, address, data)
    }

    /// Has the unit keep an eye on this address: it fetches the translation whenever it can.
    /// Every DMA does that too.
    pub fn watch(&self, unit: usize, sid: u16, iova: u64) {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        units[unit].watch(sid, iova);
        units[unit].prefetch(memory);
    }

    /// Has a device try to write to `iova` whenever software does anything, from now on. What it
    /// reaches is told by [`take_attacks`](Self::take_attacks).
    pub fn attack(&self, unit: usize, sid: u16, iova: u64) {
        let mut state = self.0.borrow_mut();
        state.attackers.push((unit, sid, iova));
        let State { units, memory, .. } = &mut *state;
        units[unit].watch(sid, iova);
        units[unit].prefetch(memory);
    }

    /// Ends all attacks and gives how they went, in order.
    #[must_use]
    pub fn take_attacks(&self) -> Vec<Attack> {
        let mut state = self.0.borrow_mut();
        state.attackers.clear();
        core::mem::take(&mut state.attacks)
    }

    /// Makes something go wrong in a unit from now on.
    pub fn inject(&self, unit: usize, what: Injection) {
        let mut state = self.0.borrow_mut();
        let actions = state.actions;
        let injected = &mut state.units[unit].injected;
        match what {
            Injection::StuckCommand(bits) => injected.stuck_command = bits,
            Injection::StuckQueue => injected.stuck_queue = true,
            Injection::LostWaits(count) => injected.lost_waits = count,
            Injection::TimeOuts(count) => injected.time_outs = count,
            Injection::CompletionErrors(count) => injected.completion_errors = count,
            Injection::QueueErrors(count) => injected.queue_errors = count,
            Injection::Gone => injected.gone = true,
            Injection::StuckQueueAfter(more) => injected.stuck_after = Some(actions + more),
            Injection::GoneAfter(more) => injected.gone_after = Some(actions + more),
            Injection::Nothing => *injected = Default::default(),
        }
    }

    /// The memory at `at`, as a processor sees it; changes nothing and counts nothing.
    #[must_use]
    pub fn peek(&self, at: u64) -> u64 {
        self.0.borrow().memory.processor(at)
    }

    /// Writes memory as firmware or another kernel would: seen by all, counted by none.
    pub fn poke(&self, at: u64, value: u64) {
        let mut state = self.0.borrow_mut();
        state.memory.device_write(at, value);
    }

    /// Bytes of memory.
    #[must_use]
    pub fn peek_bytes(&self, at: u64, length: usize) -> Vec<u8> {
        self.0.borrow().memory.read_bytes(at, length)
    }

    /// GSTS as it is.
    #[must_use]
    pub fn status(&self, unit: usize) -> u32 {
        self.0.borrow().units[unit].gsts
    }

    /// Changes GSTS behind software's back.
    pub fn force_status(&self, unit: usize, status: u32) {
        self.0.borrow_mut().units[unit].gsts = status;
    }

    /// Changes what RTADDR (20h), IQA (90h), IRTA (B8h) or a bound of the protected regions (68h to
    /// 78h) reads as, behind software's back.
    ///
    /// # Panics
    /// For any other register.
    pub fn force_register(&self, unit: usize, (offset, value): RegisterWrite) {
        let mut state = self.0.borrow_mut();
        let unit = &mut state.units[unit];
        match offset {
            0x20 => unit.rtaddr = value,
            0x68 => unit.low_base = value as u32,
            0x6c => unit.low_limit = value as u32,
            0x70 => unit.high_base = value,
            0x78 => unit.high_limit = value,
            0x90 => unit.iqa = value,
            0xb8 => unit.irta = value,
            _ => panic!("{offset:#x} cannot be forced"),
        }
    }

    /// The root table's and the interrupt table's registers as the unit latched them.
    #[must_use]
    pub fn latched(&self, unit: usize) -> (Option<u64>, Option<u64>) {
        let state = self.0.borrow();
        (state.units[unit].root, state.units[unit].interrupt_table)
    }

    /// Whether protected memory regions are enabled or still in force.
    #[must_use]
    pub fn protected(&self, unit: usize) -> bool {
        self.0.borrow().units[unit].pmen != 0
    }

    /// All faults since the start, whether or not a register was free: requester, information
    /// field, reason.
    #[must_use]
    pub fn all_faults(&self, unit: usize) -> Vec<(u16, u64, u8)> {
        self.0.borrow().units[unit].all_faults.clone()
    }

    /// The fault event messages that the unit sent: address and data.
    #[must_use]
    pub fn fault_messages(&self, unit: usize) -> Vec<(u64, u32)> {
        self.0.borrow().units[unit].fault_messages.clone()
    }

    /// Puts a unit where firmware or an earlier kernel may have left it: translation on with this
    /// root table (RTADDR), and, where given, interrupt remapping (IRTA) and a queue (IQA).
    pub fn left_on(&self, unit: usize, rtaddr: u64, irta: Option<u64>, iqa: Option<u64>) {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        let unit = &mut units[unit];
        unit.rtaddr = rtaddr;
        unit.root = Some(rtaddr);
        unit.after_root = AfterRootPointer::Done;
        unit.gsts |= global::TE | global::SRTP;
        if let Some(irta) = irta {
            unit.irta = irta;
            unit.interrupt_table = Some(irta);
            unit.interrupt_cache_flushed = true;
            unit.gsts |= global::IRE | global::SIRTP;
        }
        if let Some(iqa) = iqa {
            unit.iqa = iqa;
            unit.queue = Some(crate::unit::Queue {
                base: iqa & !0xfff,
                slots: 256 << (iqa & 7),
            });
            unit.gsts |= global::QIE;
        }
        unit.find_context_pages(memory);
    }

    /// Moves the queue of a unit on, as whoever ran it before may have left it: all of it is done up
    /// to `slot`, and the last thing in it was a wait or was not.
    ///
    /// # Panics
    /// Where the unit runs no queue, or one without such a slot.
    pub fn left_queue(&self, unit: usize, slot: u32, behind_wait: bool) {
        let unit = &mut self.0.borrow_mut().units[unit];
        let queue = unit.queue.expect("the queue is off");
        assert!(slot < queue.slots, "the queue has {} slots", queue.slots);
        unit.iqh = slot;
        unit.iqt = slot;
        unit.last_was_wait = behind_wait;
    }

    /// Everything that `sid` reaches through a unit: what the tables in memory say, and what the
    /// caches still remember of earlier ones. Runs of addresses are joined.
    ///
    /// # Panics
    /// Where translation is off: then it reaches everything.
    #[must_use]
    pub fn reach(&self, unit: usize, sid: u16) -> Vec<Reach> {
        let mut state = self.0.borrow_mut();
        let State {
            units, memory, log, ..
        } = &mut *state;
        let unit = &units[unit];
        assert!(unit.translating(), "translation is off");
        let mut found = Vec::new();
        for context in unit.contexts_of(memory, sid) {
            let leaves = unit.leaves(memory, log, context, &mut Vec::new());
            found.extend(leaves.iter().map(|leaf| Reach {
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

    /// Looks through all live tables of all units for what must not be there, and adds what it
    /// finds to the violations: leaves over the interrupt range or over structures, malformed
    /// entries, and a domain id with two sets of tables.
    pub fn audit(&self) {
        let mut state = self.0.borrow_mut();
        let State {
            units, memory, log, ..
        } = &mut *state;
        let mut structures: Vec<(u64, u64)> = Vec::new();
        let mut leaves = Vec::new();
        for unit in units.iter().filter(|u| u.translating()) {
            let root = unit.root.unwrap_or(0) & !0xfff;
            structures.push((root, 4096));
            if let Some(irta) = unit.interrupt_table {
                structures.push((irta & !0xfff, 32 << (irta & 0xf)));
            }
            if let Some(queue) = unit.queue {
                structures.push((queue.base, u64::from(queue.slots) * 16));
            }
            let mut walked = Vec::new();
            for bus in 0..=255_u16 {
                for low in 0..=255_u16 {
                    let sid = bus << 8 | low;
                    let Some((page, context)) = unit.context_in_memory(memory, sid) else {
                        if unit.bus_absent(memory, bus as u8) {
                            break;
                        }
                        continue;
                    };
                    structures.push((page, 4096));
                    if context.kind == 2 || walked.contains(&(context.table, context.levels)) {
                        continue;
                    }
                    walked.push((context.table, context.levels));
                    let mut pages = Vec::new();
                    for leaf in unit.leaves(memory, log, context, &mut pages) {
                        leaves.push((unit.number, sid, leaf));
                    }
                    structures.extend(pages.into_iter().map(|p| (p, 4096)));
                }
            }
        }
        structures.sort_unstable();
        structures.dedup();
        for (unit, sid, leaf) in leaves {
            let end = leaf.output + (1 << leaf.shift);
            let detail = format!(
                "{sid:#06x}: {:#x} to {:#x}..{end:#x}",
                leaf.iova, leaf.output
            );
            if leaf.output < INTERRUPT_RANGE.end && end > INTERRUPT_RANGE.start {
                log.broken(unit, Rule::LeafCoversInterruptRange, detail.clone());
            }
            // They do not overlap each other, so the last one that begins below the leaf's end is
            // the only one that can reach into it.
            let below = structures.partition_point(|&(at, _)| at < end);
            if let Some((at, _)) = structures[..below]
                .last()
                .filter(|(at, length)| leaf.output < at + length)
            {
                let detail = format!("{detail} over the structure at {at:#x}");
                log.broken(unit, Rule::LeafCoversTables, detail);
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
            for write in &unit.posted {
                if hits(write.at, write.data.len() as u64) {
                    log.broken(
                        unit.number,
                        Rule::UndrainedWrite,
                        format!("{:#x}", write.at),
                    );
                }
            }
            for (&(sid, page, shift), hit) in &unit.translations {
                let useful = hit.read || hit.write;
                if useful && !allowed.contains(&sid) && hits(hit.output, 1 << shift) {
                    let detail = format!("{sid:#06x} by the IOTLB: {:#x}", page << shift);
                    log.broken(unit.number, Rule::ReleasedMemoryStillReachable, detail);
                }
            }
            if !unit.translating() {
                let detail = "translation is off".to_string();
                log.broken(unit.number, Rule::ReleasedMemoryStillReachable, detail);
                continue;
            }
            let mut sids: Vec<u16> = unit.contexts.keys().copied().collect();
            sids.extend(unit.live_contexts.keys());
            sids.sort_unstable();
            sids.dedup();
            for sid in sids {
                if allowed.contains(&sid) {
                    continue;
                }
                for context in unit.contexts_of(memory, sid) {
                    let leaves = unit.leaves(memory, log, context, &mut Vec::new());
                    if leaves.iter().any(|l| hits(l.output, 1 << l.shift)) {
                        let detail = format!("{sid:#06x} by its tables");
                        log.broken(unit.number, Rule::ReleasedMemoryStillReachable, detail);
                    }
                }
            }
        }
    }
}

/// Sorts and joins runs that continue each other.
pub(crate) fn join(mut found: Vec<Reach>) -> Vec<Reach> {
    found.sort_unstable();
    found.dedup();
    let mut joined: Vec<Reach> = Vec::new();
    for next in found {
        if let Some(last) = joined.last_mut()
            && (last.read, last.write) == (next.read, next.write)
            && next.iova.wrapping_sub(last.iova) == next.at.wrapping_sub(last.at)
            && next.iova <= last.iova + last.length
        {
            last.length = last.length.max(next.iova + next.length - last.iova);
            continue;
        }
        joined.push(next);
    }
    joined
}

impl Unit {
    /// One request of at most a page, translated or not.
    pub(crate) fn request(
        &mut self,
        memory: &Memory,
        sid: u16,
        iova: u64,
        write: bool,
    ) -> Result<(u64, u16), Reason> {
        if INTERRUPT_RANGE.contains(&iova) {
            // Anything but a message is refused there; messages are sent with `Machine::msi`.
            return Err(Reason::InterruptReserved);
        }
        let translated = if self.translating() {
            self.watch(sid, iova);
            match self.translate(memory, sid, iova, write) {
                Ok(t) => (t.at, t.did),
                Err(why) => {
                    if !why.silent {
                        self.record_fault(sid, iova & !0xfff, !write, why.reason);
                    }
                    return Err(why.reason);
                }
            }
        } else {
            (iova, 0)
        };
        // Whether protected ranges block translated requests is up to the unit; this one does.
        if self.pmen & 1 != 0 && self.in_protected(translated.0) {
            return Err(Reason::BlockedByType);
        }
        Ok(translated)
    }

    fn in_protected(&self, at: u64) -> bool {
        let low = self.config.protected_low
            && (u64::from(self.low_base)..=u64::from(self.low_limit) | 0xfffff).contains(&at);
        let high = self.config.protected_high
            && (self.high_base..=self.high_limit | 0xfffff).contains(&at);
        low || high
    }
}
