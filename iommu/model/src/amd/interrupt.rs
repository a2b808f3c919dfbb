//! Interrupt remapping (AMD 48882 section 2.2.5).

use super::entry::{DeviceEntry, InterruptControl};
use super::events::Request;
use super::report::{Invalidation, Reason};
use super::unit::{Unit, control};
use super::walk::Blocked;
use crate::memory::Memory;

/// What became of an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// It reached the processors.
    Delivered {
        /// The destination: an APIC id, or a logical one.
        destination: u32,
        /// The vector.
        vector: u8,
        /// The delivery mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 `ExtINT`.
        mode: u8,
        /// Whether the destination is logical.
        logical: bool,
        /// Whether it went through an interrupt table.
        remapped: bool,
    },
    /// It was blocked.
    Blocked(Reason),
}

/// An interrupt table entry of either format, as words of 128 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterruptEntry(pub(crate) [u64; 2]);

impl InterruptEntry {
    pub(crate) fn enabled(&self) -> bool {
        self.0[0] & 1 != 0
    }

    pub(crate) fn silent(&self) -> bool {
        self.0[0] & 2 != 0
    }

    /// What an enabled entry delivers; `None` where reserved bits or values are set.
    pub(crate) fn decode(&self, wide: bool, x2apic: bool) -> Option<Interrupt> {
        let [low, high] = self.0;
        let kind = (low >> 2 & 7) as u8;
        let (reserved, vector, destination) = if !wide {
            (low >> 24, low >> 16, low >> 8 & 0xff)
        } else if x2apic {
            let reserved = low >> 32 | high << 8 >> 16;
            let destination = low >> 8 & 0xff_ffff | (high >> 56) << 24;
            (reserved, high, destination)
        } else {
            (low >> 16 | high >> 8, high, low >> 8 & 0xff)
        };
        // No guest mode; fixed and arbitrated are all there is.
        let good = reserved == 0 && low & 1 << 7 == 0 && kind <= 1;
        good.then_some(Interrupt::Delivered {
            destination: destination as u32,
            vector: vector as u8,
            mode: kind,
            logical: low & 1 << 6 != 0,
            remapped: true,
        })
    }
}

impl Unit {
    /// Whether the SMI filter lets a device's system management interrupts pass.
    fn smi_passes(&self, sid: u16) -> bool {
        // SmiDID, bits 15:0; SmiDV, bit 16.
        let named = |filter: &u64| filter & 0x1_ffff == 1 << 16 | u64::from(sid);
        let filtering = !self.smi_filters.is_empty() && self.control & control::SMI_FILTER_EN != 0;
        !filtering || self.smi_filters.iter().any(named)
    }

    /// Whether interrupt entries have 128 bits.
    pub(crate) fn wide_interrupts(&self) -> bool {
        self.control & control::GA_EN != 0
    }

    pub(crate) fn interrupt_entry_size(&self) -> u64 {
        if self.wide_interrupts() { 16 } else { 4 }
    }

    pub(crate) fn decode_interrupt(&self, entry: InterruptEntry) -> Option<Interrupt> {
        let x2apic = self.control & control::XT_EN != 0;
        entry.decode(self.wide_interrupts(), x2apic)
    }

    /// The most entries an interrupt table can have, as a power of two.
    pub(crate) fn most_interrupt_bits(&self) -> u8 {
        if self.many_interrupts() { 11 } else { 9 }
    }

    fn many_interrupts(&self) -> bool {
        self.control & control::MANY_INTERRUPTS == 1 << 43
    }

    /// A write of `data` to `address` in the interrupt range by `sid`.
    pub(crate) fn interrupt(
        &mut self,
        memory: &Memory,
        sid: u16,
        address: u64,
        data: u32,
    ) -> Interrupt {
        let forwarded = Interrupt::Delivered {
            destination: (address >> 12 & 0xff) as u32,
            vector: data as u8,
            mode: (data >> 8 & 7) as u8,
            logical: address & 1 << 2 != 0,
            remapped: false,
        };
        if !self.enabled() {
            return forwarded;
        }
        let answer = self.remap(memory, sid, address, data);
        answer.map_or_else(
            |why| {
                let request = Request {
                    sid,
                    address,
                    write: true,
                    interrupt: true,
                };
                self.record_fault(request, &why);
                Interrupt::Blocked(why.reason)
            },
            |remapped| remapped.unwrap_or(forwarded),
        )
    }

    /// What becomes of a message: remapped, or (`None`) forwarded as it is.
    fn remap(
        &mut self,
        memory: &Memory,
        sid: u16,
        address: u64,
        data: u32,
    ) -> Result<Option<Interrupt>, Blocked> {
        let mode = (data >> 8 & 7) as u8;
        let index = (data & 0x7ff) as u16;
        // With 2048 interrupts a logical destination makes the delivery mode's bits a part of the
        // index, and everything can be remapped.
        let logical = address & 1 << 2 != 0;
        let remappable = mode <= 1 || self.many_interrupts() && logical;
        // An interrupt entry is looked up before the device table entry is.
        if remappable && let Some(&cached) = self.interrupt_entries.get(&(sid, index)) {
            let entry = self.entries.get(&sid).map(|c| c.entry);
            return self.deliver(InterruptEntry(cached), entry).map(Some);
        }
        let entry = self
            .entry(memory, sid)
            .map_err(|reason| Blocked::new(reason, None))?;
        let block = |reason| Err(Blocked::new(reason, Some(entry)));
        let control = entry.interrupt_control();
        if control == InterruptControl::NotValid {
            return Ok(None);
        }
        if let Some(reason) = entry.interrupt_problem() {
            return block(reason);
        }
        if !remappable {
            let passes = match mode {
                2 => self.smi_passes(sid),
                4 => entry.passes_nmi(),
                5 => entry.passes_init(),
                7 => entry.passes_ext_int(),
                _ => false,
            };
            // None of them may have a logical destination.
            return if passes && !logical {
                Ok(None)
            } else {
                block(Reason::DeliveryMode)
            };
        }
        match control {
            InterruptControl::Forward => Ok(None),
            InterruptControl::Remap if u32::from(index) >= 1 << entry.interrupt_length() => {
                block(Reason::IndexTooLarge)
            }
            InterruptControl::Remap => {
                let found = self.fetch_interrupt(memory, sid, entry, index);
                self.deliver(found, Some(entry)).map(Some)
            }
            _ => block(Reason::InterruptAborted),
        }
    }

    fn deliver(
        &self,
        found: InterruptEntry,
        entry: Option<DeviceEntry>,
    ) -> Result<Interrupt, Blocked> {
        let block = |reason| Blocked {
            silent: found.silent(),
            ..Blocked::new(reason, entry)
        };
        if !found.enabled() {
            return Err(block(Reason::InterruptNotEnabled));
        }
        self.decode_interrupt(found)
            .ok_or_else(|| block(Reason::InterruptEntryReserved))
    }

    /// The entry of `index` in a table, as the unit sees it.
    fn interrupt_entry_at(&self, memory: &Memory, root: u64, index: u16) -> InterruptEntry {
        let at = root + u64::from(index) * self.interrupt_entry_size();
        InterruptEntry(if self.wide_interrupts() {
            [self.fetch(memory, at), self.fetch(memory, at + 8)]
        } else {
            [
                self.fetch(memory, at & !7) >> ((at & 4) * 8) & 0xffff_ffff,
                0,
            ]
        })
    }

    /// Reads an interrupt entry, and keeps it where the unit keeps such.
    fn fetch_interrupt(
        &mut self,
        memory: &Memory,
        sid: u16,
        entry: DeviceEntry,
        index: u16,
    ) -> InterruptEntry {
        let found = self.interrupt_entry_at(memory, entry.interrupt_root(), index);
        if found.enabled() || self.config.caches_not_present {
            self.interrupt_entries.insert((sid, index), found.0);
        }
        found
    }

    /// Fetches an interrupt entry ahead of time, if the device's entry as the unit sees it leads
    /// to this table.
    pub(crate) fn prefetch_interrupt(&mut self, memory: &Memory, sid: u16, root: u64, index: u16) {
        if self.interrupt_entries.contains_key(&(sid, index)) {
            return;
        }
        let Ok(entry) = self.entry(memory, sid) else {
            return;
        };
        let leads = entry.remaps()
            && entry.interrupt_root() == root
            && u32::from(index) < 1 << entry.interrupt_length();
        if leads {
            let found = self.interrupt_entry_at(memory, root, index);
            if found.enabled() {
                self.interrupt_entries.insert((sid, index), found.0);
            }
        }
    }

    /// After an invalidation: entries that are enabled still may be fetched again at once.
    pub(crate) fn refetch_interrupts(&mut self, memory: &Memory, what: Invalidation) {
        let tables: Vec<(u64, u64, Vec<u16>)> = match what {
            Invalidation::All => self
                .interrupt_tables
                .iter()
                .map(|(&root, t)| (root, t.end, t.sids.iter().copied().collect()))
                .collect(),
            Invalidation::Interrupts { sid } => self
                .interrupt_tables
                .iter()
                .filter(|(_, t)| t.sids.contains(&sid))
                .map(|(&root, t)| (root, t.end, vec![sid]))
                .collect(),
            _ => return,
        };
        for (root, end, sids) in tables {
            for index in 0..((end - root) / self.interrupt_entry_size()) as u16 {
                let found = self.interrupt_entry_at(memory, root, index);
                if !found.enabled() {
                    continue;
                }
                for &sid in &sids {
                    self.prefetch_interrupt(memory, sid, root, index);
                }
            }
        }
    }

    /// Whether a device's LINT pin message passes: 0 or 1.
    pub(crate) fn lint(&mut self, memory: &Memory, sid: u16, pin: u8) -> bool {
        if !self.enabled() {
            return true;
        }
        self.entry(memory, sid).is_ok_and(|entry| {
            entry.interrupt_control() == InterruptControl::NotValid || entry.passes_lint(pin)
        })
    }
}
