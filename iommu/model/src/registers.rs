//! The register file: which offsets exist, how wide they are, what an access does (VT-d section
//! 11.4).

use crate::memory::Memory;
use crate::report::{Event, Invalidation, Rule};
use crate::unit::{AfterRootPointer, Command, Log, Queue, Unit, global};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Version,
    Capability,
    Extended,
    Command,
    Status,
    RootTable,
    ContextCommand,
    FaultStatus,
    FaultControl,
    FaultData,
    FaultAddress,
    FaultUpper,
    FaultLog,
    ProtectedEnable,
    LowBase,
    LowLimit,
    HighBase,
    HighLimit,
    QueueHead,
    QueueTail,
    QueueAddress,
    CompletionStatus,
    CompletionControl,
    CompletionData,
    CompletionAddress,
    CompletionUpper,
    QueueError,
    InterruptTable,
    InvalidateAddress,
    IotlbInvalidate,
    RecordLow(usize),
    RecordHigh(usize),
}

use Register as R;

/// The register at `offset`, its own offset and its width in bytes.
fn decode(unit: &Unit, offset: u32) -> Option<(Register, u32, u32)> {
    let fixed = [
        (R::Version, 0x00, 4),
        (R::Capability, 0x08, 8),
        (R::Extended, 0x10, 8),
        (R::Command, 0x18, 4),
        (R::Status, 0x1c, 4),
        (R::RootTable, 0x20, 8),
        (R::ContextCommand, 0x28, 8),
        (R::FaultStatus, 0x34, 4),
        (R::FaultControl, 0x38, 4),
        (R::FaultData, 0x3c, 4),
        (R::FaultAddress, 0x40, 4),
        (R::FaultUpper, 0x44, 4),
        (R::FaultLog, 0x58, 8),
        (R::ProtectedEnable, 0x64, 4),
        (R::LowBase, 0x68, 4),
        (R::LowLimit, 0x6c, 4),
        (R::HighBase, 0x70, 8),
        (R::HighLimit, 0x78, 8),
        (R::QueueHead, 0x80, 8),
        (R::QueueTail, 0x88, 8),
        (R::QueueAddress, 0x90, 8),
        (R::CompletionStatus, 0x9c, 4),
        (R::CompletionControl, 0xa0, 4),
        (R::CompletionData, 0xa4, 4),
        (R::CompletionAddress, 0xa8, 4),
        (R::CompletionUpper, 0xac, 4),
        (R::QueueError, 0xb0, 8),
        (R::InterruptTable, 0xb8, 8),
    ];
    if let Some(&found) = fixed
        .iter()
        .find(|(_, base, width)| (*base..base + width).contains(&offset))
    {
        return Some(found);
    }
    let iotlb = u32::from(unit.config.iotlb_offset) * 16;
    if (iotlb..iotlb + 8).contains(&offset) {
        return Some((R::InvalidateAddress, iotlb, 8));
    }
    if (iotlb + 8..iotlb + 16).contains(&offset) {
        return Some((R::IotlbInvalidate, iotlb + 8, 8));
    }
    let faults = u32::from(unit.config.fault_offset) * 16;
    let end = faults + u32::from(unit.config.fault_records) * 16;
    if (faults..end).contains(&offset) {
        let index = ((offset - faults) / 16) as usize;
        let base = offset & !7;
        return Some(if (base - faults).is_multiple_of(16) {
            (R::RecordLow(index), base, 8)
        } else {
            (R::RecordHigh(index), base, 8)
        });
    }
    None
}

/// Reads of one unit's registers that software may make without looking at the clock.
const UNBOUNDED_POLLS: u32 = 200_000;

impl Unit {
    /// A read of `width` bytes.
    pub(crate) fn read(&mut self, log: &mut Log, offset: u32, width: u32) -> u64 {
        self.counters.mmio_reads += 1;
        self.unbounded_polls += 1;
        assert!(
            self.unbounded_polls < UNBOUNDED_POLLS,
            "unit {}: register {offset:#x} is polled without a deadline",
            self.number
        );
        let ones = u64::MAX >> (64 - width * 8);
        if self.injected.gone {
            return ones;
        }
        let Some((register, base, own)) = self.checked(log, offset, width) else {
            return ones;
        };
        let value = self.value(register);
        if own == 8 && width == 4 {
            value >> ((offset - base) * 8) & ones
        } else {
            value
        }
    }

    fn checked(&self, log: &mut Log, offset: u32, width: u32) -> Option<(Register, u32, u32)> {
        if !offset.is_multiple_of(width) || offset + width > self.config.window_length() {
            let detail = format!("{width} bytes at {offset:#x}");
            log.broken(self.number, Rule::AccessOutsideWindow, detail);
            return None;
        }
        let Some((register, base, own)) = decode(self, offset) else {
            let detail = format!("{width} bytes at {offset:#x}, where there is no register");
            log.broken(self.number, Rule::AccessWidth, detail);
            return None;
        };
        let fits = if own == 8 {
            (width == 8 && offset == base) || width == 4
        } else {
            width == 4
        };
        if !fits {
            let detail = format!("{width} bytes at {offset:#x} ({register:?})");
            log.broken(self.number, Rule::AccessWidth, detail);
            return None;
        }
        Some((register, base, own))
    }

    fn value(&self, register: Register) -> u64 {
        match register {
            R::Version => 0x10,
            R::Capability => self.config.capability(),
            R::Extended => self.config.extended_capability(),
            R::Command | R::FaultLog => 0,
            R::Status => self.gsts.into(),
            R::RootTable => self.rtaddr,
            R::ContextCommand => self.ccmd,
            R::FaultStatus => self.fsts_value().into(),
            R::FaultControl => self.fectl.into(),
            R::FaultData => self.fedata.into(),
            R::FaultAddress => self.feaddr.into(),
            R::FaultUpper => self.feuaddr.into(),
            R::ProtectedEnable => self.pmen.into(),
            R::LowBase => self.low_base.into(),
            R::LowLimit => self.low_limit.into(),
            R::HighBase => self.high_base,
            R::HighLimit => self.high_limit,
            R::QueueHead => u64::from(self.iqh) << 4,
            R::QueueTail => u64::from(self.iqt) << 4,
            R::QueueAddress => self.iqa,
            R::CompletionStatus => self.ics.into(),
            R::CompletionControl => self.iectl.into(),
            R::CompletionData => self.iedata.into(),
            R::CompletionAddress => self.ieaddr.into(),
            R::CompletionUpper => self.ieuaddr.into(),
            R::QueueError => 0,
            R::InterruptTable => self.irta,
            R::InvalidateAddress => 0,
            R::IotlbInvalidate => self.iotlb,
            R::RecordLow(i) => self.records[i][0],
            R::RecordHigh(i) => self.records[i][1],
        }
    }

    fn implemented(&self, register: Register) -> bool {
        let config = &self.config;
        match register {
            R::FaultLog => false,
            R::ProtectedEnable => config.protected_low || config.protected_high,
            R::LowBase | R::LowLimit => config.protected_low,
            R::HighBase | R::HighLimit => config.protected_high,
            R::QueueHead
            | R::QueueTail
            | R::QueueAddress
            | R::CompletionStatus
            | R::CompletionControl
            | R::CompletionData
            | R::CompletionAddress
            | R::CompletionUpper => config.queued,
            R::InterruptTable => config.interrupts,
            _ => true,
        }
    }

    /// A write of `width` bytes.
    pub(crate) fn write(
        &mut self,
        memory: &mut Memory,
        log: &mut Log,
        offset: u32,
        width: u32,
        value: u64,
    ) {
        self.counters.mmio_writes += 1;
        if self.injected.gone {
            return;
        }
        let Some((register, base, own)) = self.checked(log, offset, width) else {
            return;
        };
        if !self.implemented(register) {
            let detail = format!("{value:#x} to {register:?}");
            log.broken(self.number, Rule::RegisterNotImplemented, detail);
            return;
        }
        let (high_half, low_half) = (width == 4 && offset != base, width == 4 && offset == base);
        let value = match own {
            8 if high_half => self.value(register) & 0xffff_ffff | value << 32,
            8 if low_half => {
                // The bits that are cleared by writing one must not be, by a write to the other
                // half.
                let other = match register {
                    R::RecordHigh(_) => 0,
                    _ => self.value(register) & !0xffff_ffff,
                };
                other | value
            }
            _ => value,
        };
        self.set(memory, log, register, value, low_half);
    }

    fn set(
        &mut self,
        memory: &mut Memory,
        log: &mut Log,
        register: Register,
        value: u64,
        low_half: bool,
    ) {
        let narrow = value as u32;
        match register {
            R::Version | R::Capability | R::Extended | R::Status | R::QueueHead | R::QueueError => {
                let detail = format!("{value:#x} to {register:?}");
                log.broken(self.number, Rule::WriteToReadOnlyRegister, detail);
            }
            R::Command => self.start_command(log, narrow),
            R::RootTable => self.rtaddr = value,
            R::InterruptTable => self.irta = value,
            R::ContextCommand => {
                self.ccmd = value;
                if value >> 63 != 0 && !low_half {
                    self.context_command(memory, log);
                }
            }
            R::FaultStatus => self.write_fsts(narrow),
            R::FaultControl => {
                let aimed = self.feaddr & 0xfff0_0000 == 0xfee0_0000;
                if narrow >> 31 == 0 && !aimed {
                    let detail = format!("address {:#x}", self.feaddr);
                    log.broken(self.number, Rule::FaultEventAddressInvalid, detail);
                }
                self.write_fectl(narrow);
            }
            R::FaultData | R::FaultAddress | R::FaultUpper => {
                if self.fectl >> 31 == 0 {
                    let detail = format!("{value:#x} to {register:?}");
                    log.broken(self.number, Rule::FaultEventChangedWhileUnmasked, detail);
                }
                match register {
                    R::FaultData => self.fedata = narrow,
                    R::FaultAddress => self.feaddr = narrow,
                    _ => self.feuaddr = narrow,
                }
            }
            R::ProtectedEnable => {
                self.pmen = self.pmen & 1 | narrow & 1 << 31;
                self.protected_steps = self.config.command_steps.max(1);
            }
            R::LowBase | R::LowLimit | R::HighBase | R::HighLimit => {
                if self.pmen != 0 {
                    let detail = format!("{value:#x} to {register:?}");
                    log.broken(self.number, Rule::ProtectedRangeChangedWhileEnabled, detail);
                }
                match register {
                    R::LowBase => self.low_base = narrow,
                    R::LowLimit => self.low_limit = narrow,
                    R::HighBase => self.high_base = value,
                    _ => self.high_limit = value,
                }
            }
            R::QueueTail => self.write_tail(log, value),
            R::QueueAddress => {
                if self.gsts & global::QIE != 0 || self.command.is_some() {
                    log.broken(
                        self.number,
                        Rule::QueueAddressWhileEnabled,
                        format!("{value:#x}"),
                    );
                } else {
                    self.iqa = value;
                }
            }
            R::CompletionStatus => self.ics &= !(narrow & 1),
            R::CompletionControl => self.iectl = self.iectl & !(1 << 31) | narrow & 1 << 31,
            R::CompletionData => self.iedata = narrow,
            R::CompletionAddress => self.ieaddr = narrow,
            R::CompletionUpper => self.ieuaddr = narrow,
            R::InvalidateAddress => self.iva = value,
            R::IotlbInvalidate => {
                self.iotlb = value;
                if value >> 63 != 0 && !low_half {
                    self.iotlb_command(memory, log);
                }
            }
            R::RecordLow(_) => {}
            R::RecordHigh(i) => self.write_record_high(i, value),
            R::FaultLog => {}
        }
    }

    fn start_command(&mut self, log: &mut Log, value: u32) {
        let changed = (value ^ self.gsts) & global::SWITCHES;
        let asked = changed | value & global::ONE_SHOTS;
        let detail = format!("GCMD {value:#010x} over GSTS {:#010x}", self.gsts);
        if value & !(global::SWITCHES | global::ONE_SHOTS) != 0 {
            log.broken(self.number, Rule::ReservedBitsInRegister, detail.clone());
        }
        if self.command.is_some() {
            log.broken(self.number, Rule::CommandWhileOneIsPending, detail.clone());
            return;
        }
        if asked.count_ones() > 1 {
            log.broken(self.number, Rule::SeveralCommandsAtOnce, detail);
            return;
        }
        if asked == 0 {
            return;
        }
        let config = &self.config;
        let supported = match asked {
            global::QIE => config.queued,
            global::IRE | global::SIRTP | global::CFI => config.interrupts,
            global::SFL | global::EAFL => false,
            _ => true,
        };
        if !supported {
            log.broken(self.number, Rule::CommandNotSupported, detail);
            return;
        }
        let on = value & asked != 0;
        if !self.command_allowed(log, asked, on, detail) {
            return;
        }
        // WBFS is set while the buffer is being flushed; SRTP and SIRTP clear their status.
        match asked {
            global::WBF => self.gsts |= global::WBF,
            global::SRTP | global::SIRTP => self.gsts &= !asked,
            _ => {}
        }
        self.command = Some(Command {
            bit: asked,
            on,
            steps: self.config.command_steps,
        });
    }

    /// The order of bring-up (VT-d section 6.6, and `fence_rules`).
    fn command_allowed(&self, log: &mut Log, bit: u32, on: bool, detail: String) -> bool {
        let mut broken = |rule| log.broken(self.number, rule, detail.clone());
        let config = &self.config;
        match (bit, on) {
            (global::TE, true) => {
                match self.after_root {
                    AfterRootPointer::Done => {}
                    AfterRootPointer::NeverSet => {
                        broken(Rule::RootTablePointerNeverSet);
                        return false;
                    }
                    _ => broken(Rule::TranslationOnBeforeInvalidation),
                }
                if config.fence_rules && config.interrupts {
                    let irta = self.interrupt_table.unwrap_or(0);
                    if self.gsts & global::IRE == 0 {
                        broken(Rule::TranslationOnBeforeInterruptRemapping);
                    } else if self.gsts & global::CFI != 0 && irta & 1 << 11 == 0 {
                        broken(Rule::CompatibilityFormatPasses);
                    }
                }
            }
            (global::TE, false) if config.fence_rules => broken(Rule::TranslationSwitchedOff),
            (global::IRE, false) if config.fence_rules => {
                broken(Rule::InterruptRemappingSwitchedOff);
            }
            (global::IRE, true) => {
                if self.interrupt_table.is_none() {
                    broken(Rule::InterruptTablePointerNeverSet);
                    return false;
                }
                if !self.interrupt_cache_flushed {
                    broken(Rule::InterruptRemappingOnBeforeInvalidation);
                }
            }
            (global::QIE, true) if self.iqt != 0 => broken(Rule::QueueEnabledWithTail),
            (global::QIE, false) if self.iqh != self.iqt || !self.last_was_wait => {
                broken(Rule::QueueDisabledWhileBusy);
            }
            _ => {}
        }
        true
    }

    pub(crate) fn finish_command(&mut self, memory: &mut Memory, log: &mut Log, done: Command) {
        match done.bit {
            global::SRTP => self.set_root_pointer(memory, log),
            global::SIRTP => self.set_interrupt_pointer(log),
            global::WBF => {
                self.write_buffer.clear();
                self.gsts &= !global::WBF;
            }
            global::QIE if done.on => {
                if self.iqa >> self.config.host_width != 0 || self.iqa & 0xff8 != 0 {
                    let detail = format!("IQA {:#x}", self.iqa);
                    log.broken(self.number, Rule::ReservedBitsInRegister, detail);
                }
                self.queue = Some(Queue {
                    base: self.iqa & !0xfff,
                    slots: 256 << (self.iqa & 7),
                });
                self.iqh = 0;
                self.queue_halted = false;
                self.gsts |= global::QIE;
            }
            global::QIE => {
                self.queue = None;
                self.gsts &= !global::QIE;
            }
            bit if done.on => self.gsts |= bit,
            bit => self.gsts &= !bit,
        }
        log.event(Event::CommandDone {
            unit: self.number,
            bit: done.bit,
            on: done.on,
        });
        self.prefetch(memory);
    }

    fn set_root_pointer(&mut self, memory: &Memory, log: &mut Log) {
        self.counters.root_pointer_sets += 1;
        if self.rtaddr & 0xfff != 0 || self.rtaddr >> self.config.host_width != 0 {
            let detail = format!("RTADDR {:#x}", self.rtaddr);
            log.broken(self.number, Rule::RootTableAddressInvalid, detail);
        }
        if self.translating() && self.root != Some(self.rtaddr) {
            self.old_root = self.root;
        }
        self.root = Some(self.rtaddr);
        self.gsts |= global::SRTP;
        self.after_root = AfterRootPointer::NeedsContextCache;
        if self.config.srtp_invalidates {
            self.write_buffer.clear();
            self.apply(memory, log, Invalidation::ContextGlobal);
            self.apply(memory, log, Invalidation::IotlbGlobal);
        }
        self.find_context_pages(memory);
        if self.translating() {
            self.check_contexts(memory, log);
        }
    }

    fn set_interrupt_pointer(&mut self, log: &mut Log) {
        self.counters.interrupt_pointer_sets += 1;
        let reserved = if self.config.extended_interrupts {
            0x7f0
        } else {
            0xff0
        };
        if self.irta & reserved != 0 || self.irta >> self.config.host_width != 0 {
            let detail = format!("IRTA {:#x}", self.irta);
            log.broken(self.number, Rule::InterruptTableAddressInvalid, detail);
        }
        self.interrupt_table = Some(self.irta);
        self.gsts |= global::SIRTP;
        self.interrupt_cache_flushed = self.config.sirtp_invalidates;
        if self.config.sirtp_invalidates {
            self.interrupt_entries.clear();
            self.live_interrupts.clear();
        }
    }

    fn context_command(&mut self, memory: &Memory, log: &mut Log) {
        if self.gsts & global::QIE != 0 {
            let detail = format!("CCMD {:#x}", self.ccmd);
            log.broken(self.number, Rule::RegisterInvalidationWhileQueued, detail);
            return;
        }
        let (did, sid) = (self.ccmd as u16, (self.ccmd >> 16) as u16);
        let granularity = self.ccmd >> 61 & 3;
        let what = match granularity {
            1 => Some(Invalidation::ContextGlobal),
            2 => Some(Invalidation::ContextDomain { did }),
            3 => Some(Invalidation::ContextDevice {
                did,
                sid,
                mask: (self.ccmd >> 32 & 3) as u8,
            }),
            _ => None,
        };
        if let Some(what) = what {
            self.apply(memory, log, what);
        }
        self.ccmd = self.ccmd & !(1 << 63) | granularity << 59;
    }

    fn iotlb_command(&mut self, memory: &Memory, log: &mut Log) {
        if self.gsts & global::QIE != 0 {
            let detail = format!("IOTLB {:#x}", self.iotlb);
            log.broken(self.number, Rule::RegisterInvalidationWhileQueued, detail);
            return;
        }
        let did = (self.iotlb >> 32) as u16;
        let granularity = self.iotlb >> 60 & 3;
        let what = match granularity {
            1 => Some(Invalidation::IotlbGlobal),
            2 => Some(Invalidation::IotlbDomain { did }),
            3 => Some(Invalidation::IotlbPages {
                did,
                address: self.iva & !0xfff,
                mask: (self.iva & 0x3f) as u8,
                hint: self.iva & 1 << 6 != 0,
            }),
            _ => None,
        };
        if let Some(what) = what {
            self.drain(self.iotlb >> 48 & 1 != 0, what);
            self.apply(memory, log, what);
        }
        self.iotlb = self.iotlb & !(1 << 63) | granularity << 57;
    }
}
