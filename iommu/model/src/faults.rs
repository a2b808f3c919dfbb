//! Primary fault logging (VT-d sections 7.2 and 11.4.7).

use crate::report::Reason;
use crate::unit::Unit;

pub(crate) const OVERFLOW: u32 = 1 << 0;
pub(crate) const PENDING: u32 = 1 << 1;
pub(crate) const QUEUE_ERROR: u32 = 1 << 4;
pub(crate) const COMPLETION_ERROR: u32 = 1 << 5;
pub(crate) const TIME_OUT: u32 = 1 << 6;
const CLEARABLE: u32 = OVERFLOW | QUEUE_ERROR | COMPLETION_ERROR | TIME_OUT;
const RECORD_VALID: u64 = 1 << 63;
const MASKED: u32 = 1 << 31;
const EVENT_PENDING: u32 = 1 << 30;

impl Unit {
    /// Logs a fault; `info` is the page address or, for an interrupt, the index in bits 63:48.
    pub(crate) fn record_fault(&mut self, sid: u16, info: u64, read: bool, reason: Reason) {
        self.all_faults.push((sid, info, reason as u8));
        if self.fsts & OVERFLOW != 0 {
            return;
        }
        let pending = |r: &[u64; 2]| r[1] & RECORD_VALID != 0;
        if self.config.compresses_faults
            && self
                .records
                .iter()
                .any(|r| pending(r) && r[1] as u16 == sid)
        {
            return;
        }
        let index = self.next_record;
        if pending(&self.records[usize::from(index)]) {
            let quiet = self.fsts_value() & 0xff == 0;
            self.fsts |= OVERFLOW;
            self.raise(quiet);
            return;
        }
        let quiet = self.fsts_value() & 0xff == 0;
        if !self.records.iter().any(pending) {
            self.fault_index = index as u8;
        }
        // PASID fields are not meaningful while PP is clear, so they hold rubbish.
        self.records[usize::from(index)] = [
            info & !0xfff,
            RECORD_VALID
                | u64::from(read) << 62
                | 0xf_ffff << 40
                | u64::from(reason as u8) << 32
                | u64::from(sid),
        ];
        self.next_record = (index + 1) % self.config.fault_records;
        self.raise(quiet);
    }

    /// Sets error bits of FSTS.
    pub(crate) fn set_error(&mut self, bits: u32) {
        let quiet = self.fsts_value() & 0xff == 0;
        self.fsts |= bits;
        self.raise(quiet);
    }

    /// A fault event is sent when the status goes from nothing to something.
    fn raise(&mut self, was_quiet: bool) {
        if !was_quiet {
            return;
        }
        self.fectl |= EVENT_PENDING;
        self.send_event();
    }

    fn send_event(&mut self) {
        if self.fectl & EVENT_PENDING != 0 && self.fectl & MASKED == 0 {
            self.fectl &= !EVENT_PENDING;
            let address = u64::from(self.feaddr) | u64::from(self.feuaddr) << 32;
            self.fault_messages.push((address, self.fedata));
        }
    }

    pub(crate) fn fsts_value(&self) -> u32 {
        let any = self.records.iter().any(|r| r[1] & RECORD_VALID != 0);
        let pending = if any { PENDING } else { 0 };
        self.fsts | pending | u32::from(self.fault_index) << 8
    }

    pub(crate) fn write_fsts(&mut self, value: u32) {
        self.fsts &= !(value & CLEARABLE);
        self.settle();
    }

    pub(crate) fn write_record_high(&mut self, index: usize, value: u64) {
        if value & RECORD_VALID != 0 {
            self.records[index][1] &= !RECORD_VALID;
        }
        // FRI stays: it names the record that made PPF rise, not the oldest that is left.
        self.settle();
    }

    fn settle(&mut self) {
        if self.fsts_value() & !0xff00 == 0 {
            self.fectl &= !EVENT_PENDING;
        }
    }

    pub(crate) fn write_fectl(&mut self, value: u32) {
        self.fectl = self.fectl & !MASKED | value & MASKED;
        self.send_event();
    }
}
