//! The event log (AMD 48882 section 2.5) and the unit's own interrupts (section 2.8).

use super::report::{Event, Fault, Reason};
use super::unit::{LateEvent, Unit, control, status};
use super::walk::Blocked;
use crate::memory::Memory;

/// Hardware error types of section 2.5: the access was aborted by the master, or by the target.
const MASTER_ABORT: u64 = 1;

/// A request, for the event that reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) sid: u16,
    pub(crate) address: u64,
    pub(crate) write: bool,
    pub(crate) interrupt: bool,
}

impl Unit {
    /// Reports a request that was refused, where it is reported at all.
    pub(crate) fn record_fault(&mut self, request: Request, why: &Blocked) {
        let Request {
            sid,
            address,
            write,
            interrupt,
        } = request;
        let did = why.entry.map_or(0, |e| e.did());
        self.all_faults.push(Fault {
            sid,
            did,
            address,
            write,
            interrupt,
            reason: why.reason,
        });
        let code = why.reason.code();
        if code == 0 || why.silent || code == 2 && self.suppressed(sid, interrupt, why) {
            return;
        }
        let flag = |on: bool, bit: u32| u64::from(on) << bit;
        let common = u64::from(sid) | flag(interrupt, 51) | u64::from(code) << 60;
        let domain = u64::from(did) << 32;
        let rw = flag(write && !interrupt, 53);
        match code {
            1 => {
                let rz = flag(why.reason == Reason::DeviceEntryReserved, 55);
                self.log_event([common | rw | rz, address & !3]);
            }
            2 => {
                let (present, permission, reserved) = why.reason.flags();
                // RW means something only for a request to memory that was present; otherwise it
                // is rubbish.
                let rw = if present && !interrupt {
                    rw
                } else {
                    flag(!write, 53)
                };
                let flags = flag(present, 52) | flag(permission, 54) | flag(reserved, 55);
                self.log_event([common | domain | rw | flags, address]);
            }
            3 => self.hardware_error([common | rw | MASTER_ABORT << 57, why.unreadable]),
            4 => self.hardware_error([common | domain | rw | MASTER_ABORT << 57, why.unreadable]),
            _ => {
                // INVALID_DEVICE_REQUEST: a read, or something else than an interrupt, in a range
                // that is not memory.
                let kind = if write { 4_u64 } else { 0 };
                self.log_event([u64::from(sid) | kind << 57 | 8 << 60, address]);
            }
        }
    }

    /// Whether the page fault of a device is kept quiet, by SE, SA or IG.
    fn suppressed(&mut self, sid: u16, interrupt: bool, why: &Blocked) -> bool {
        let Some(entry) = why.entry else { return false };
        if interrupt {
            return entry.ignores_unmapped();
        }
        if entry.suppresses_all() {
            return true;
        }
        let Some(cached) = self.entries.get_mut(&sid) else {
            return false;
        };
        let quiet = entry.suppresses_more() && cached.reported;
        cached.reported = true;
        quiet
    }

    /// An error that shows in the hardware event registers too, where the unit has them.
    pub(crate) fn hardware_error(&mut self, words: [u64; 2]) {
        if self.config.hardware_events {
            // Valid; and overflow, if it was valid before.
            let before = self.hardware_event[2];
            self.hardware_event = [words[0], words[1], 1 | before & 2 | (before & 1) << 1];
        }
        self.log_event(words);
    }

    fn event_slots(&self) -> u64 {
        1 << (self.event_base >> 56 & 0xf)
    }

    /// Adds an entry to the log, if it runs and has room.
    pub(crate) fn log_event(&mut self, words: [u64; 2]) {
        if !self.event_run.on || self.overflowed {
            self.counters.events_lost += 1;
            return;
        }
        let length = self.event_slots() * 16;
        let next = (self.event_tail + 16) % length;
        if next == self.event_head {
            // The log stops until it is switched off and on again.
            self.counters.events_lost += 1;
            self.status |= status::OVERFLOW;
            self.overflowed = true;
            self.follow_control();
            self.raise_event_interrupt();
            return;
        }
        let lost = self.injected.lost_events > 0;
        self.injected.lost_events -= u32::from(lost);
        self.late_events.push_back(LateEvent {
            at: (self.event_base & super::entry::POINTER) + self.event_tail,
            words,
            second_written: false,
            steps: self.config.event_steps,
            lost,
        });
        self.event_tail = next;
        self.counters.events_logged += 1;
        self.raise_event_interrupt();
    }

    /// An interrupt is sent when the status bit rises; while it is set nothing more is sent.
    fn raise_event_interrupt(&mut self) {
        let rises = self.status & status::EVENT_INT == 0;
        self.status |= status::EVENT_INT;
        if rises && self.control & control::EVENT_INT_EN != 0 {
            self.send_message();
        }
    }

    pub(crate) fn raise_wait_interrupt(&mut self) {
        let rises = self.status & status::COM_WAIT_INT == 0;
        self.status |= status::COM_WAIT_INT;
        if rises && self.control & control::COM_WAIT_INT_EN != 0 {
            self.send_message();
        }
    }

    /// The unit's own message, which nothing remaps.
    pub(crate) fn message(&self) -> (u64, u32) {
        if self.control & control::INT_CAP_XT_EN != 0 {
            let register = self.xt_control[0];
            let destination = register >> 8 & 0xff_ffff | (register >> 56) << 24;
            let address = 0xfee0_0000 | (destination & 0xff) << 12 | (destination >> 8) << 40;
            return (address, (register >> 32) as u32 & 0xff);
        }
        let address = self.msi[0] >> 32 | self.msi[1] << 32;
        (address, (self.msi[1] >> 32) as u32)
    }

    fn send_message(&mut self) {
        let enabled = self.control & control::INT_CAP_XT_EN != 0 || self.msi[0] & 1 << 16 != 0;
        if enabled {
            let message = self.message();
            self.messages.push(message);
        }
    }

    /// Entries reach memory one word after the other, the one with the event code last.
    pub(crate) fn step_events(&mut self, memory: &mut Memory, at_once: bool) {
        while let Some(position) = self.late_events.iter().position(|e| !e.lost) {
            let late = &mut self.late_events[position];
            if late.steps > 0 && !at_once {
                late.steps -= 1;
                return;
            }
            late.steps = self.config.event_steps;
            if late.second_written {
                memory.device_write(late.at, late.words[0]);
                self.late_events.remove(position);
            } else {
                memory.device_write(late.at + 8, late.words[1]);
                late.second_written = true;
            }
            if !at_once {
                return;
            }
        }
    }

    pub(crate) fn event(&self, kind: super::report::Invalidation) -> Event {
        Event::Invalidated {
            unit: self.number,
            kind,
        }
    }
}
