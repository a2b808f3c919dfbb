//! Queued invalidation (VT-d section 6.5.2): descriptors, errors, waits; and what each invalidation
//! does to the caches.

use crate::config::Schedule;
use crate::faults;
use crate::memory::Memory;
use crate::report::{Event, Invalidation, Rule};
use crate::unit::{AfterRootPointer, Log, Queue, Unit};

enum Descriptor {
    Invalidate(Invalidation, bool),
    Wait {
        interrupt: bool,
        status: Option<(u64, u32)>,
    },
}

impl Unit {
    pub(crate) fn write_tail(&mut self, log: &mut Log, value: u64) {
        self.counters.tail_writes += 1;
        let number = self.number;
        let tail = (value >> 4) as u32;
        if value & !0x7_fff0 != 0 {
            log.broken(
                number,
                Rule::ReservedBitsInRegister,
                format!("IQT {value:#x}"),
            );
        }
        let Some(queue) = self.queue else {
            if value != 0 {
                let detail = format!("IQT {value:#x} while the queue is off");
                log.broken(number, Rule::QueueTailInvalid, detail);
            }
            self.iqt = tail;
            return;
        };
        if tail >= queue.slots {
            log.broken(number, Rule::QueueTailInvalid, format!("IQT {value:#x}"));
            self.set_error(faults::QUEUE_ERROR);
            self.queue_halted = true;
            return;
        }
        self.iqt = tail;
        log.event(Event::TailWritten { unit: number });
        // A halted queue goes on only when the error was cleared and the tail is written again.
        if self.fsts & (faults::QUEUE_ERROR | faults::TIME_OUT) == 0 {
            self.queue_halted = false;
        }
        self.descriptor_steps_left = self.config.descriptor_steps;
    }

    pub(crate) fn queue_busy(&self) -> bool {
        self.queue.is_some()
            && !self.queue_halted
            && !self.injected.stuck_queue
            && self.iqh != self.iqt
    }

    /// Whether `at` lies in a slot that software has submitted and the unit has not processed.
    pub(crate) fn pending_slot(&self, at: u64) -> bool {
        let Some(queue) = self.queue else {
            return false;
        };
        let Some(offset) = at.checked_sub(queue.base) else {
            return false;
        };
        let slot = offset / 16;
        if slot >= u64::from(queue.slots) || self.queue_halted {
            return false;
        }
        let ahead = (slot as u32 + queue.slots - self.iqh) % queue.slots;
        let waiting = (self.iqt + queue.slots - self.iqh) % queue.slots;
        ahead < waiting
    }

    pub(crate) fn step_queue(&mut self, memory: &mut Memory, log: &mut Log, schedule: Schedule) {
        if !self.queue_busy() || self.fsts & (faults::QUEUE_ERROR | faults::TIME_OUT) != 0 {
            return;
        }
        let Some(queue) = self.queue else { return };
        if self.descriptor_steps_left > 0 && schedule != Schedule::Eager {
            self.descriptor_steps_left -= 1;
            return;
        }
        self.descriptor_steps_left = self.config.descriptor_steps;
        let at = queue.base + u64::from(self.iqh) * 16;
        let read = |at| {
            if self.config.queue_snoops || self.config.coherent {
                memory.processor(at)
            } else {
                memory.written_back(at)
            }
        };
        let (low, high) = (read(at), read(at + 8));
        let decoded = if self.injected.queue_errors > 0 {
            self.injected.queue_errors -= 1;
            Err(None)
        } else {
            self.decode(low, high).map_err(Some)
        };
        match decoded {
            Ok(descriptor) => self.execute(memory, log, queue, descriptor),
            Err(why) => {
                if let Some(why) = why {
                    let detail = format!("{low:#018x} {high:#018x}: {why}");
                    log.broken(self.number, Rule::InvalidDescriptor, detail);
                }
                self.queue_halted = true;
                self.set_error(faults::QUEUE_ERROR);
            }
        }
    }

    fn decode(&self, low: u64, high: u64) -> Result<Descriptor, &'static str> {
        let field = |shift: u32, bits: u32| low >> shift & ((1 << bits) - 1);
        let clear = |mask: u64| low & mask == 0;
        let did = field(16, 16) as u16;
        let config = &self.config;
        let known = |did: u16| {
            if u32::from(did) < config.domains() {
                Ok(did)
            } else {
                Err("a domain id beyond CAP.ND")
            }
        };
        // The type is seven bits: 11:9 and 3:0.
        match field(9, 3) << 4 | field(0, 4) {
            1 => {
                if !clear(0xfffc_0000_0000_f1c0) || high != 0 {
                    return Err("reserved bits in a context cache descriptor");
                }
                let what = match field(4, 2) {
                    1 => Invalidation::ContextGlobal,
                    2 => Invalidation::ContextDomain { did: known(did)? },
                    3 => Invalidation::ContextDevice {
                        did: known(did)?,
                        sid: field(32, 16) as u16,
                        mask: field(48, 2) as u8,
                    },
                    _ => return Err("a reserved granularity"),
                };
                Ok(Descriptor::Invalidate(what, false))
            }
            2 => {
                if !clear(0xffff_ffff_0000_f100) || high & 0xf80 != 0 {
                    return Err("reserved bits in an IOTLB descriptor");
                }
                let mask = (high & 0x3f) as u8;
                let address = high & !0xfff;
                let what = match field(4, 2) {
                    1 => Invalidation::IotlbGlobal,
                    2 => Invalidation::IotlbDomain { did: known(did)? },
                    3 if !config.page_selective => return Err("CAP.PSI is clear"),
                    3 if mask > config.max_address_mask => return Err("a mask above CAP.MAMV"),
                    3 if address & ((1 << (12 + u32::from(mask))) - 1) != 0 => {
                        return Err("an address that its mask does not align");
                    }
                    3 => Invalidation::IotlbPages {
                        did: known(did)?,
                        address,
                        mask,
                        hint: high & 1 << 6 != 0,
                    },
                    _ => return Err("a reserved granularity"),
                };
                Ok(Descriptor::Invalidate(what, field(6, 1) != 0))
            }
            4 => {
                if !config.interrupts {
                    return Err("ECAP.IR is clear");
                }
                if !clear(0xffff_0000_07ff_f1e0) || high != 0 {
                    return Err("reserved bits in an interrupt entry cache descriptor");
                }
                let mask = field(27, 5) as u8;
                if field(4, 1) == 0 {
                    return Ok(Descriptor::Invalidate(Invalidation::InterruptGlobal, false));
                }
                if mask > config.max_handle_mask {
                    return Err("a mask above ECAP.MHMV");
                }
                let what = Invalidation::InterruptIndex {
                    index: field(32, 16) as u16,
                    mask,
                };
                Ok(Descriptor::Invalidate(what, false))
            }
            5 => {
                if !clear(0xffff_f180) || high & 3 != 0 {
                    return Err("reserved bits in a wait descriptor");
                }
                let (interrupt, status) = (field(4, 1) != 0, field(5, 1) != 0);
                if interrupt && status {
                    return Err("a wait with both status write and interrupt");
                }
                if status && high >> config.host_width != 0 {
                    return Err("a status address beyond the host's width");
                }
                Ok(Descriptor::Wait {
                    interrupt,
                    status: status.then_some((high, (low >> 32) as u32)),
                })
            }
            _ => Err("a type the unit does not have"),
        }
    }

    fn execute(&mut self, memory: &mut Memory, log: &mut Log, queue: Queue, this: Descriptor) {
        self.iqh = (self.iqh + 1) % queue.slots;
        self.last_was_wait = matches!(this, Descriptor::Wait { .. });
        match this {
            Descriptor::Invalidate(what, drains) => {
                match what {
                    Invalidation::InterruptGlobal | Invalidation::InterruptIndex { .. } => {
                        self.counters.interrupt_descriptors += 1;
                    }
                    Invalidation::ContextGlobal
                    | Invalidation::ContextDomain { .. }
                    | Invalidation::ContextDevice { .. } => self.counters.context_descriptors += 1,
                    _ => self.counters.iotlb_descriptors += 1,
                }
                self.drain(drains, what);
                // Writes that were drained have arrived; the unit's own come in order with them.
                for write in self.landing() {
                    memory.device_write_bytes(write.0, &write.1);
                }
                self.apply(memory, log, what);
                // The caches are filled again at once, from whatever the tables say now.
                self.prefetch(memory);
            }
            Descriptor::Wait { interrupt, status } => {
                self.counters.waits += 1;
                if self.injected.completion_errors > 0 {
                    self.injected.completion_errors -= 1;
                    self.set_error(faults::COMPLETION_ERROR);
                }
                if self.injected.time_outs > 0 {
                    self.injected.time_outs -= 1;
                    // Waits are dropped and nothing is fetched until ITE is cleared.
                    self.set_error(faults::TIME_OUT);
                    return;
                }
                if self.injected.lost_waits > 0 {
                    self.injected.lost_waits -= 1;
                    return;
                }
                if interrupt {
                    self.ics |= 1;
                }
                if let Some((at, data)) = status {
                    let mut word = memory.processor(at & !7).to_le_bytes();
                    let byte = (at & 4) as usize;
                    word[byte..byte + 4].copy_from_slice(&data.to_le_bytes());
                    memory.device_write(at & !7, u64::from_le_bytes(word));
                }
                log.event(Event::WaitDone { unit: self.number });
            }
        }
    }

    /// Marks the writes in flight that this invalidation drains as arrived.
    pub(crate) fn drain(&mut self, drains: bool, what: Invalidation) {
        if !drains {
            return;
        }
        let covers = |did: u16| match what {
            Invalidation::IotlbGlobal => true,
            Invalidation::IotlbDomain { did: d } | Invalidation::IotlbPages { did: d, .. } => {
                d == did
            }
            _ => false,
        };
        for write in &mut self.posted {
            write.drained |= covers(write.did);
        }
    }

    /// Takes out the writes that arrive now: those that were drained.
    pub(crate) fn landing(&mut self) -> Vec<(u64, Vec<u8>)> {
        let (now, later) = core::mem::take(&mut self.posted)
            .into_iter()
            .partition::<Vec<_>, _>(|w| w.drained);
        self.posted = later;
        now.into_iter().map(|w| (w.at, w.data)).collect()
    }

    /// What an invalidation does to the caches (VT-d section 6.5).
    pub(crate) fn apply(&mut self, memory: &Memory, log: &mut Log, what: Invalidation) {
        // An invalidation flushes the write buffer first.
        self.write_buffer.clear();
        let contexts: Vec<u16> = self.live_contexts.keys().copied().collect();
        let interrupts: Vec<u16> = self.live_interrupts.keys().copied().collect();
        match what {
            Invalidation::ContextGlobal => {
                self.contexts.clear();
                self.live_contexts.clear();
                if self.old_root.take().is_some() {
                    self.find_context_pages(memory);
                }
                if self.after_root == AfterRootPointer::NeedsContextCache {
                    self.after_root = AfterRootPointer::NeedsIotlb;
                }
            }
            Invalidation::ContextDomain { did } => {
                self.contexts.retain(|_, c| c.did != did);
                self.live_contexts.retain(|_, e| (e.1 >> 8) as u16 != did);
            }
            Invalidation::ContextDevice { did, sid, mask } => {
                // FM leaves function bits out of the comparison: none, 2, 2:1, 2:0.
                let ignored = [0, 4, 6, 7][usize::from(mask & 3)];
                let same = |other: u16| (other ^ sid) & !ignored == 0;
                self.contexts.retain(|&s, c| !same(s) || c.did != did);
                self.live_contexts
                    .retain(|&s, e| !same(s) || (e.1 >> 8) as u16 != did);
            }
            Invalidation::IotlbGlobal => {
                self.translations.clear();
                self.structures.clear();
                if self.after_root == AfterRootPointer::NeedsIotlb {
                    self.after_root = AfterRootPointer::Done;
                }
            }
            Invalidation::IotlbDomain { did } => {
                self.translations.retain(|_, t| t.did != did);
                self.structures.retain(|&(d, ..), _| d != did);
            }
            Invalidation::IotlbPages {
                did,
                address,
                mask,
                hint,
            } => {
                let first = u128::from(address);
                let end = first + (1_u128 << (12 + u32::from(mask)));
                let apart = |base: u64, shift: u8| {
                    let base = u128::from(base);
                    base + (1_u128 << shift) <= first || base >= end
                };
                self.translations
                    .retain(|&(_, page, shift), t| t.did != did || apart(page << shift, shift));
                if !hint {
                    self.structures.retain(|&(d, level, prefix), _| {
                        let shift = 12 + 9 * (level - 1);
                        d != did || apart(prefix << shift, shift)
                    });
                }
            }
            Invalidation::InterruptGlobal => {
                self.interrupt_entries.clear();
                self.live_interrupts.clear();
                if self.interrupt_table.is_some() {
                    self.interrupt_cache_flushed = true;
                }
            }
            Invalidation::InterruptIndex { index, mask } => {
                let ignored = ((1_u32 << mask.min(16)) - 1) as u16;
                let same = |other: u16| (other ^ index) & !ignored == 0;
                self.interrupt_entries.retain(|&i, _| !same(i));
                self.live_interrupts.retain(|&i, _| !same(i));
            }
        }
        if matches!(
            what,
            Invalidation::IotlbGlobal
                | Invalidation::IotlbDomain { .. }
                | Invalidation::IotlbPages { .. }
        ) {
            self.missing.clone_from(&self.hot);
        }
        // An entry that is still present can be fetched again this moment.
        self.keep_live(memory, &contexts, &interrupts);
        log.event(Event::Invalidated {
            unit: self.number,
            kind: what,
        });
    }
}
