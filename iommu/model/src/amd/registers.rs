//! The register file: which offsets exist, and what an access does (AMD 48882 section 3.4).

use super::entry::POINTER;
use super::report::{Event, Rule};
use super::unit::{LateEvent, Log, SinceEnable, Unit, control, status};
use super::walk::INTERRUPT_RANGE;
use crate::memory::Memory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    DeviceTable(usize),
    CommandBase,
    EventBase,
    Control,
    ExclusionBase,
    ExclusionLimit,
    Features,
    HardwareEvent(usize),
    MsiVector,
    Msi(usize),
    XtInterrupt(usize),
    Features2,
    SmiFilter(usize),
    CommandHead,
    CommandTail,
    EventHead,
    EventTail,
    Status,
    /// Of a feature the model has not.
    Absent,
}

use Register as R;

/// The register whose 8 bytes hold `offset`.
fn decode(offset: u32) -> Option<Register> {
    Some(match offset & !7 {
        0x00 => R::DeviceTable(0),
        0x08 => R::CommandBase,
        0x10 => R::EventBase,
        0x18 => R::Control,
        0x20 => R::ExclusionBase,
        0x28 => R::ExclusionLimit,
        0x30 => R::Features,
        base @ 0x40..=0x50 => R::HardwareEvent(((base - 0x40) / 8) as usize),
        base @ 0x60..=0xd8 => R::SmiFilter(((base - 0x60) / 8) as usize),
        base @ 0x100..=0x130 => R::DeviceTable(((base - 0x100) / 8) as usize + 1),
        0x150 => R::MsiVector,
        base @ (0x158 | 0x160) => R::Msi(((base - 0x158) / 8) as usize),
        base @ 0x170..=0x180 => R::XtInterrupt(((base - 0x170) / 8) as usize),
        0x1a0 => R::Features2,
        0x2000 => R::CommandHead,
        0x2008 => R::CommandTail,
        0x2010 => R::EventHead,
        0x2018 => R::EventTail,
        0x2020 => R::Status,
        // Page requests, the guest APIC's log, the second logs, what is specific to
        // a device, performance, address routing.
        0x38
        | 0xe0..=0xf8
        | 0x138..=0x148
        | 0x168
        | 0x190
        | 0x200..=0x258
        | 0x2030..=0x2058
        | 0x2070..=0x2090 => R::Absent,
        _ => return None,
    })
}

/// The offset bits of a ring's pointer.
const RING_POINTER: u64 = 0x7_fff0;
/// Base and length of a ring.
const RING_BASE: u64 = POINTER | 0xf << 56;

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
        let Some(register) = self.checked(log, offset, width) else {
            return ones;
        };
        let value = self.value(register);
        if width == 4 {
            value >> (offset % 8 * 8) & ones
        } else {
            value
        }
    }

    fn checked(&self, log: &mut Log, offset: u32, width: u32) -> Option<Register> {
        let detail = format!("{width} bytes at {offset:#x}");
        if offset.saturating_add(width) > self.config.window_length() || !offset.is_multiple_of(4) {
            log.broken(self.number, Rule::AccessOutsideWindow, detail);
            return None;
        }
        if !offset.is_multiple_of(width) {
            log.broken(self.number, Rule::AccessWidth, detail);
            return None;
        }
        let found = decode(offset);
        if found.is_none() {
            log.broken(self.number, Rule::RegisterNotImplemented, detail);
        }
        found
    }

    fn value(&self, register: Register) -> u64 {
        match register {
            _ if !self.implemented(register) => 0,
            R::DeviceTable(i) => self.device_tables[i],
            R::CommandBase => self.command_base,
            R::EventBase => self.event_base,
            R::Control => self.control,
            R::ExclusionBase => self.exclusion_base,
            R::ExclusionLimit => self.exclusion_limit,
            R::Features => self.config.features(),
            R::HardwareEvent(i) => self.hardware_event[i],
            R::Msi(i) => self.msi[i],
            R::XtInterrupt(i) => self.xt_control[i],
            R::Features2 => self.config.features2(),
            R::SmiFilter(i) => self.smi_filters[i],
            R::CommandHead => self.command_head,
            R::CommandTail => self.command_tail,
            R::EventHead => self.event_head,
            R::EventTail => self.event_tail,
            R::Status => self.status_value(),
            R::MsiVector | R::Absent => 0,
        }
    }

    fn implemented(&self, register: Register) -> bool {
        let config = &self.config;
        match register {
            R::DeviceTable(i) => i < 1 << config.segments.min(3),
            R::HardwareEvent(_) => config.hardware_events,
            R::MsiVector | R::Msi(_) => config.msi_registers,
            R::XtInterrupt(_) => config.x2apic,
            R::SmiFilter(i) => i < self.smi_filters.len(),
            R::Absent => false,
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
        let Some(register) = self.checked(log, offset, width) else {
            return;
        };
        if !self.implemented(register) {
            let detail = format!("{value:#x} to {offset:#x} ({register:?})");
            log.broken(self.number, Rule::RegisterNotImplemented, detail);
            return;
        }
        let half = width == 4;
        let value = if half {
            // Bits that are cleared by writing one must not be, by a write to the other half.
            let other = match register {
                R::Status => 0,
                _ => self.value(register),
            };
            let shift = offset % 8 * 8;
            other & !(0xffff_ffff << shift) | value << shift
        } else {
            value
        };
        self.set(memory, log, register, value, half);
        self.prefetch(memory);
    }

    fn no_reserved(&self, log: &mut Log, register: Register, value: u64, mask: u64) -> u64 {
        if value & !mask != 0 {
            let detail = format!("{value:#x} to {register:?}");
            log.broken(self.number, Rule::ReservedBitsInRegister, detail);
        }
        value & mask
    }

    fn set(&mut self, memory: &Memory, log: &mut Log, register: Register, value: u64, half: bool) {
        let number = self.number;
        let detail = format!("{value:#x} to {register:?}");
        match register {
            R::Features | R::Features2 | R::Absent => {
                log.broken(number, Rule::WriteToReadOnlyRegister, detail);
            }
            R::DeviceTable(i) => {
                let size = if i == 0 { 0x1ff } else { 0xff };
                let value = self.no_reserved(log, register, value, POINTER | size);
                self.set_device_table(memory, log, i, value, half);
            }
            R::CommandBase => {
                let value = self.no_reserved(log, register, value, RING_BASE);
                if self.command_run.on {
                    log.broken(number, Rule::CommandBufferChangedWhileRunning, detail);
                    return;
                }
                self.command_base = value;
                (self.command_head, self.command_tail) = (0, 0);
            }
            R::CommandHead => {
                let value = self.no_reserved(log, register, value, RING_POINTER);
                if self.command_run.on {
                    log.broken(number, Rule::CommandBufferChangedWhileRunning, detail);
                } else {
                    self.command_head = value;
                }
            }
            R::CommandTail => self.set_command_tail(log, value),
            R::EventBase => {
                let value = self.no_reserved(log, register, value, RING_BASE);
                if self.event_run.on {
                    log.broken(number, Rule::EventLogChangedWhileRunning, detail);
                    return;
                }
                self.event_base = value;
                (self.event_head, self.event_tail) = (0, 0);
            }
            R::EventTail => {
                let value = self.no_reserved(log, register, value, RING_POINTER);
                if self.event_run.on {
                    log.broken(number, Rule::EventLogChangedWhileRunning, detail);
                } else {
                    self.event_tail = value;
                }
            }
            R::EventHead => self.set_event_head(log, value),
            R::Control => self.set_control(memory, log, value),
            R::ExclusionBase => {
                let value = self.no_reserved(log, register, value, POINTER | 3);
                self.exclusion_base = value;
                if value & 1 != 0 && self.config.fence_rules {
                    log.broken(number, Rule::ExclusionRangeUsed, detail);
                }
            }
            R::ExclusionLimit => {
                self.exclusion_limit = self.no_reserved(log, register, value, POINTER);
            }
            R::HardwareEvent(2) => self.hardware_event[2] &= !(value & 3),
            R::HardwareEvent(i) => self.hardware_event[i] = value,
            R::MsiVector => {}
            // SmiFLock, bit 17: as it is until the machine is reset.
            R::SmiFilter(i) if self.smi_filters[i] & 1 << 17 != 0 => {}
            R::SmiFilter(i) => {
                self.smi_filters[i] = self.no_reserved(log, register, value, 0x3_ffff);
            }
            R::Msi(i) => self.msi[i] = value,
            R::XtInterrupt(i) => self.xt_control[i] = value,
            R::Status => {
                let known = status::CLEARABLE | status::EVENT_RUN | status::COMMAND_RUN;
                let value = self.no_reserved(log, register, value, known);
                self.status &= !(value & status::CLEARABLE);
            }
        }
    }

    fn set_device_table(
        &mut self,
        memory: &Memory,
        log: &mut Log,
        index: usize,
        value: u64,
        half: bool,
    ) {
        let number = self.number;
        let detail = format!("{value:#x} for segment {index}");
        self.device_tables[index] = value;
        if !self.enabled() {
            return;
        }
        if half {
            log.broken(number, Rule::BaseWrittenInHalves, detail.clone());
        }
        if !self.config.live_table_switch {
            let rule = Rule::DeviceTableChangedWhileEnabled;
            log.broken(number, rule, detail);
        }
        self.counters.table_switches += 1;
        log.event(Event::TableSwitched { unit: number });
        self.since_enable = SinceEnable::default();
        self.check_device_table(memory, log, false);
        self.find_live(memory);
    }

    fn set_command_tail(&mut self, log: &mut Log, value: u64) {
        self.counters.tail_writes += 1;
        let tail = self.no_reserved(log, R::CommandTail, value, RING_POINTER);
        if tail >= self.command_slots() * 16 {
            let detail = format!("tail {value:#x}");
            log.broken(self.number, Rule::CommandTailInvalid, detail);
            return;
        }
        self.command_tail = tail;
        self.command_steps_left = self.config.command_steps;
        log.event(Event::TailWritten { unit: self.number });
    }

    fn set_event_head(&mut self, log: &mut Log, value: u64) {
        let number = self.number;
        let head = self.no_reserved(log, R::EventHead, value, RING_POINTER);
        let length = 16 << (self.event_base >> 56 & 0xf);
        let (base, from) = (self.event_base & POINTER, self.event_head);
        let ahead = |p: u64| (p + length - from) % length;
        let detail = format!("from {from:#x} to {value:#x}, tail {:#x}", self.event_tail);
        if head >= length || ahead(head) > ahead(self.event_tail) {
            if self.event_run.on {
                log.broken(number, Rule::EventHeadInvalid, detail);
                return;
            }
        } else {
            let passed = |e: &LateEvent| e.at >= base && ahead(e.at - base) < ahead(head);
            if self.late_events.iter().any(|e| passed(e) && !e.lost) {
                log.broken(number, Rule::EventSkipped, detail);
            }
            self.late_events.retain(|e| !(passed(e) && e.lost));
        }
        self.event_head = head;
    }

    /// The bits of the control register that this unit has.
    fn control_mask(&self) -> u64 {
        let config = &self.config;
        let flag = |on: bool, bits: u64| if on { bits } else { 0 };
        control::IOMMU_EN
            | control::EVENT_LOG_EN
            | control::EVENT_INT_EN
            | control::COM_WAIT_INT_EN
            | control::COHERENT
            | control::CMD_BUF_EN
            | control::LINK
            | flag(config.guest_apic, control::GA_EN)
            | flag(config.smi_filters > 0, control::SMI_FILTER_EN)
            | flag(config.segments > 0, control::SEGMENTS)
            | flag(config.many_interrupts, control::MANY_INTERRUPTS)
            | flag(config.x2apic, control::XT_EN | control::INT_CAP_XT_EN)
    }

    fn set_control(&mut self, memory: &Memory, log: &mut Log, value: u64) {
        let number = self.number;
        let old = self.control;
        let detail = format!("control {old:#x} becomes {value:#x}");
        let segments = (value & control::SEGMENTS) >> 34;
        let unknown = value & !self.control_mask() != 0
            || segments > u64::from(self.config.segments.min(3))
            || value & control::XT_EN != 0 && value & control::GA_EN == 0;
        if unknown {
            log.broken(number, Rule::FeatureNotSupported, detail.clone());
        }
        let new = value & self.control_mask();
        let rises = |bit: u64| new & bit != 0 && old & bit == 0;
        let falls = |bit: u64| new & bit == 0 && old & bit != 0;
        let format = control::GA_EN | control::XT_EN | control::SEGMENTS | control::MANY_INTERRUPTS;
        if (new ^ old) & format != 0 && (self.enabled() || rises(control::IOMMU_EN)) {
            let rule = if self.enabled() {
                Rule::FormatChangedWhileEnabled
            } else {
                Rule::EnabledBeforeConfigured
            };
            log.broken(number, rule, detail.clone());
        }
        if rises(control::CMD_BUF_EN) {
            let start = self.command_base & POINTER;
            let length = self.command_slots() * 16;
            let good = self.command_slots() >= 256
                && !self.too_wide(start + length)
                && self.command_head < length
                && self.command_tail < length;
            if !good {
                let detail = format!(
                    "base {:#x}, head {:#x}, tail {:#x}",
                    self.command_base, self.command_head, self.command_tail
                );
                log.broken(number, Rule::CommandBufferInvalid, detail);
            }
            if self.command_run.on {
                log.broken(number, Rule::EnabledAgainBeforeStopped, detail.clone());
            } else {
                self.halted = false;
            }
        }
        // A unit that stands still has to be switched off as it is.
        let busy = self.commands_busy() || !self.fetched.is_empty();
        if falls(control::CMD_BUF_EN) && busy && !self.injected.stuck_commands {
            log.broken(number, Rule::CommandsSwitchedOffWhileBusy, detail.clone());
        }
        if rises(control::EVENT_LOG_EN) {
            let start = self.event_base & POINTER;
            let slots = 1_u64 << (self.event_base >> 56 & 0xf);
            if slots < 256 || self.too_wide(start + slots * 16) {
                let detail = format!("base {:#x}", self.event_base);
                log.broken(number, Rule::EventLogInvalid, detail);
            }
            if self.event_run.on {
                log.broken(number, Rule::EnabledAgainBeforeStopped, detail.clone());
            } else {
                // A log that is switched on anew records again.
                self.overflowed = false;
                self.status &= !status::OVERFLOW;
            }
        }
        if falls(control::EVENT_LOG_EN) {
            self.late_events.retain(|e| !e.lost);
        }
        self.control = new;
        if rises(control::EVENT_INT_EN) {
            let (address, data) = self.message();
            if !INTERRUPT_RANGE.contains(&(address & 0xffff_ffff)) || data & 0xff < 16 {
                let detail = format!("address {address:#x}, data {data:#x}");
                log.broken(number, Rule::EventInterruptAimless, detail);
            }
        }
        if rises(control::IOMMU_EN) {
            if old & control::CMD_BUF_EN == 0 {
                log.broken(number, Rule::EnabledBeforeConfigured, detail);
            }
            self.since_enable = SinceEnable::default();
            self.check_device_table(memory, log, self.config.denied_when_enabled);
            self.find_live(memory);
        } else if falls(control::IOMMU_EN) && self.config.fence_rules {
            log.broken(number, Rule::TranslationSwitchedOff, detail);
        }
        self.follow_control();
        log.event(Event::Control {
            unit: number,
            value: new,
        });
    }
}
