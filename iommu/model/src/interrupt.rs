//! Interrupt remapping (VT-d section 5.1).

use crate::memory::Memory;
use crate::report::Reason;
use crate::unit::{Unit, global};
use crate::walk::Blocked;

/// What became of an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// It reached the processors.
    Delivered {
        /// The destination field: an APIC id.
        destination: u32,
        /// The vector.
        vector: u8,
        /// The delivery mode field: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 `ExtINT`.
        mode: u8,
        /// Whether it went through the remapping table.
        remapped: bool,
    },
    /// It was blocked.
    Blocked(Reason),
}

impl Unit {
    /// A write of `data` to `address` in the interrupt range by `sid`.
    pub(crate) fn interrupt(
        &mut self,
        memory: &Memory,
        sid: u16,
        address: u64,
        data: u32,
    ) -> Interrupt {
        let remappable = address & 1 << 4 != 0;
        let compatibility = Interrupt::Delivered {
            destination: (address >> 12 & 0xff) as u32,
            vector: data as u8,
            mode: (data >> 8 & 7) as u8,
            remapped: false,
        };
        if self.gsts & global::IRE == 0 {
            return compatibility;
        }
        if !remappable {
            let extended = self.interrupt_table.unwrap_or(0) & 1 << 11 != 0;
            if self.gsts & global::CFI != 0 && !extended {
                return compatibility;
            }
            self.record_fault(sid, 0, false, Reason::CompatibilityBlocked);
            return Interrupt::Blocked(Reason::CompatibilityBlocked);
        }
        let handle = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u32;
        let with_subhandle = address & 1 << 3 != 0;
        let index = handle + if with_subhandle { data & 0xffff } else { 0 };
        let answer = if address & 3 != 0 || data >> 16 != 0 {
            Err(Blocked {
                reason: Reason::InterruptReserved,
                silent: false,
            })
        } else {
            self.remap(memory, sid, index)
        };
        answer.unwrap_or_else(|why| {
            if !why.silent {
                self.record_fault(sid, u64::from(index & 0xffff) << 48, false, why.reason);
            }
            Interrupt::Blocked(why.reason)
        })
    }

    fn remap(&mut self, memory: &Memory, sid: u16, index: u32) -> Result<Interrupt, Blocked> {
        let block = |reason, silent| Err(Blocked { reason, silent });
        let table = self.interrupt_table.unwrap_or(0);
        if index >= 2 << (table & 0xf) {
            return block(Reason::IndexTooLarge, false);
        }
        if table >> self.config.host_width != 0 {
            return block(Reason::InterruptPointerInvalid, false);
        }
        let key = index as u16;
        let [low, high] = match self.interrupt_entries.get(&key) {
            Some(cached) => *cached,
            None => {
                let at = (table & !0xfff) + u64::from(index) * 16;
                let entry = [self.fetch(memory, at), self.fetch(memory, at + 8)];
                if entry[0] & 1 != 0 || self.config.caching_mode {
                    self.interrupt_entries.insert(key, entry);
                }
                entry
            }
        };
        let silent = low & 2 != 0;
        if low & 1 == 0 {
            return block(Reason::InterruptNotPresent, silent);
        }
        let extended = table & 1 << 11 != 0;
        let destination = if extended {
            (low >> 32) as u32
        } else {
            (low >> 40 & 0xff) as u32
        };
        let mode = (low >> 5 & 7) as u8;
        let (qualifier, kind) = (high >> 16 & 3, high >> 18 & 3);
        let reserved = low & 0xff00_f000 != 0
            || (!extended && low >> 32 & 0xffff_00ff != 0)
            || high >> 20 != 0
            || kind == 3
            || matches!(mode, 3 | 6);
        if reserved {
            return block(Reason::InterruptEntryReserved, silent);
        }
        let expected = high as u16;
        let verified = match kind {
            0 => true,
            1 => (sid ^ expected) & ![0, 4, 6, 7][qualifier as usize] == 0,
            _ => ((expected >> 8)..=(expected & 0xff)).contains(&(sid >> 8)),
        };
        if !verified {
            return block(Reason::SourceMismatch, silent);
        }
        Ok(Interrupt::Delivered {
            destination,
            vector: (low >> 16) as u8,
            mode,
            remapped: true,
        })
    }
}
