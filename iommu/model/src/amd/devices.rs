//! What a test does as a device and as firmware.

use super::entry::POINTER;
use super::events::Request;
use super::interrupt::Interrupt;
use super::machine::{Attack, Machine, State};
use super::report::{Fault, Reason, Rule};
use super::unit::{Log, PostedWrite, SinceEnable, Unit, control};
use super::walk::{Blocked, HYPERTRANSPORT_RANGE, INTERRUPT_RANGE, Translated};
use crate::devices::RegisterWrite;
use crate::memory::Memory;

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

/// Something that goes wrong inside a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// These run bits of the status register (EventLogRun, bit 3; CmdBufRun, bit 4) never change.
    StuckRun(u64),
    /// No command is fetched: completions never come.
    StuckCommands,
    /// No command is fetched when software has done so many things more.
    StuckCommandsAfter(u64),
    /// So many waits are executed without their store or interrupt.
    LostWaits(u32),
    /// So many commands are taken for illegal although they are valid.
    IllegalCommands(u32),
    /// So many fetches end in a hardware error.
    CommandHardwareErrors(u32),
    /// So many events move the tail and never arrive.
    LostEvents(u32),
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
        let State {
            units, memory, log, ..
        } = &mut *state;
        let mut result = Dma {
            landed: Vec::new(),
            blocked: None,
            data: Vec::new(),
        };
        let mut done = 0;
        while done < length {
            let here = iova.wrapping_add(done);
            let part = (4096 - here % 4096).min(length - done);
            match units[unit].request(memory, log, sid, here, data.is_some()) {
                Ok(Translated { at, .. }) => {
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

    /// A posted write that has passed translation but has not arrived yet. It arrives when a wait
    /// ends after an invalidation of its translation, or with [`land`](Self::land). Gives why it
    /// was blocked, or where it is heading.
    ///
    /// # Errors
    /// The reason for which it was blocked.
    pub fn dma_post(&self, unit: usize, sid: u16, iova: u64, data: &[u8]) -> Result<u64, Reason> {
        let mut state = self.0.borrow_mut();
        let State {
            units, memory, log, ..
        } = &mut *state;
        let unit = &mut units[unit];
        let Translated { at, did } = unit.request(memory, log, sid, iova, true)?;
        unit.posted.push(PostedWrite {
            did,
            iova,
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
    /// capability or by DMA; a unit cannot tell. I/O APICs and HPETs send the same, under the
    /// device id of their IVHD entry; the low 11 bits of a redirection entry are the data's.
    pub fn msi(&self, unit: usize, sid: u16, address: u64, data: u32) -> Interrupt {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        units[unit].interrupt(memory, sid, address, data)
    }

    /// Whether a message that asserts LINT0 or LINT1 (`pin`) passes.
    pub fn lint(&self, unit: usize, sid: u16, pin: u8) -> bool {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        units[unit].lint(memory, sid, pin)
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
        self.watch(unit, sid, iova);
        self.0.borrow_mut().attackers.push((unit, sid, iova));
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
            Injection::StuckRun(bits) => injected.stuck_run = bits,
            Injection::StuckCommands => injected.stuck_commands = true,
            Injection::StuckCommandsAfter(more) => injected.stuck_after = Some(actions + more),
            Injection::LostWaits(count) => injected.lost_waits = count,
            Injection::IllegalCommands(count) => injected.illegal_commands = count,
            Injection::CommandHardwareErrors(count) => injected.hardware_errors = count,
            Injection::LostEvents(count) => injected.lost_events = count,
            Injection::Gone => injected.gone = true,
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

    /// Fills whole pages with these words again and again, as [`poke`](Self::poke) does.
    ///
    /// # Panics
    /// Where the words do not fill a page, or `at` begins none.
    pub fn fill(&self, at: u64, words: &[u64], pages: u64) {
        assert!(at.is_multiple_of(4096) && 512 % words.len() == 0);
        let mut state = self.0.borrow_mut();
        let page = core::array::from_fn(|i| words[i % words.len()]);
        for number in at / 4096..at / 4096 + pages {
            state.memory.device_write_page(number, page);
        }
    }

    /// Bytes of memory.
    #[must_use]
    pub fn peek_bytes(&self, at: u64, length: usize) -> Vec<u8> {
        self.0.borrow().memory.read_bytes(at, length)
    }

    /// The status register as it is.
    #[must_use]
    pub fn status(&self, unit: usize) -> u64 {
        self.0.borrow().units[unit].status_value()
    }

    /// The control register as it is.
    #[must_use]
    pub fn control(&self, unit: usize) -> u64 {
        self.0.borrow().units[unit].control
    }

    /// Changes the device table's base (0h), the command buffer's (8h), the event log's (10h), the
    /// control register (18h) or a head or tail (2000h to 2018h), behind software's back.
    ///
    /// # Panics
    /// For any other register.
    pub fn force_register(&self, unit: usize, (offset, value): RegisterWrite) {
        let mut state = self.0.borrow_mut();
        let unit = &mut state.units[unit];
        match offset {
            0x00 => unit.device_tables[0] = value,
            0x08 => unit.command_base = value,
            0x10 => unit.event_base = value,
            0x18 => {
                unit.control = value;
                unit.follow_control();
            }
            0x60..=0xd8 => unit.smi_filters[(offset as usize - 0x60) / 8] = value,
            0x2000 => unit.command_head = value,
            0x2008 => unit.command_tail = value,
            0x2010 => unit.event_head = value,
            0x2018 => unit.event_tail = value,
            _ => panic!("{offset:#x} cannot be forced"),
        }
    }

    /// Sets the unit's MSI capability, as PCI configuration space has it: enabled, this message.
    pub fn set_msi(&self, unit: usize, address: u64, data: u32) {
        let mut state = self.0.borrow_mut();
        state.units[unit].msi = [
            1 << 16 | address << 32,
            address >> 32 | u64::from(data) << 32,
        ];
    }

    /// All refused requests since the start, whether or not an event was logged.
    #[must_use]
    pub fn all_faults(&self, unit: usize) -> Vec<Fault> {
        self.0.borrow().units[unit].all_faults.clone()
    }

    /// The messages that the unit itself sent: address and data.
    #[must_use]
    pub fn messages(&self, unit: usize) -> Vec<(u64, u32)> {
        self.0.borrow().units[unit].messages.clone()
    }

    /// Puts a unit where firmware or an earlier kernel may have left it: with these base
    /// registers and this control register, everything running, nothing pending.
    pub fn left_on(&self, unit: usize, device_table: u64, commands: u64, events: u64, bits: u64) {
        let mut state = self.0.borrow_mut();
        let State { units, memory, .. } = &mut *state;
        let unit = &mut units[unit];
        unit.device_tables[0] = device_table;
        (unit.command_base, unit.command_head, unit.command_tail) = (commands, 0, 0);
        (unit.event_base, unit.event_head, unit.event_tail) = (events, 0, 0);
        unit.control = bits | control::IOMMU_EN;
        unit.follow_control();
        unit.command_run.on = unit.command_run.wanted;
        unit.event_run.on = unit.event_run.wanted;
        unit.since_enable = SinceEnable {
            all: true,
            ..SinceEnable::default()
        };
        unit.find_live(memory);
    }
}

impl Unit {
    /// One request of at most a page, translated or not.
    pub(crate) fn request(
        &mut self,
        memory: &Memory,
        log: &mut Log,
        sid: u16,
        iova: u64,
        write: bool,
    ) -> Result<Translated, Reason> {
        let special = INTERRUPT_RANGE.contains(&iova)
            || self.config.hypertransport_range && HYPERTRANSPORT_RANGE.contains(&iova);
        let answer = if special {
            // Anything but a message is refused there; messages are sent with `Machine::msi`.
            Err(Blocked::new(Reason::SpecialAddress, None))
        } else if self.enabled() {
            self.watch(sid, iova);
            self.translate(memory, sid, iova, write)
        } else {
            Ok(Translated { at: iova, did: 0 })
        };
        let answer = answer.and_then(|found| {
            if self.not_memory(found.at) {
                return Err(Blocked::new(Reason::NoMemory, None));
            }
            if INTERRUPT_RANGE.contains(&found.at) {
                let detail = format!("{sid:#06x} by {iova:#x} at {:#x}", found.at & POINTER);
                log.broken(self.number, Rule::LeafCoversInterruptRange, detail);
            }
            Ok(found)
        });
        answer.map_err(|why| {
            if self.enabled() {
                let request = Request {
                    sid,
                    address: iova,
                    write,
                    interrupt: false,
                };
                self.record_fault(request, &why);
            }
            why.reason
        })
    }
}
