//! Device table entries (AMD 48882 section 2.2.2): their fields, where they are, and their cache.

use super::config::UnitConfig;
use super::report::Reason;
use super::unit::{CachedEntry, Unit, control};
use crate::memory::Memory;

/// Address bits 51:12 of every pointer in a table.
pub(crate) const POINTER: u64 = 0x000f_ffff_ffff_f000;

/// The four words of a device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceEntry(pub(crate) [u64; 4]);

/// What an entry does with interrupts that can be remapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterruptControl {
    /// IV = 0, or V = 0: they pass as they are.
    NotValid,
    Abort,
    Forward,
    Remap,
    Reserved,
}

impl DeviceEntry {
    fn bit(&self, bit: usize) -> bool {
        self.0[bit / 64] >> (bit % 64) & 1 != 0
    }

    pub(crate) fn valid(&self) -> bool {
        self.bit(0)
    }

    pub(crate) fn translation_valid(&self) -> bool {
        self.bit(1)
    }

    pub(crate) fn mode(&self) -> u8 {
        (self.0[0] >> 9 & 7) as u8
    }

    pub(crate) fn root(&self) -> u64 {
        self.0[0] & POINTER
    }

    pub(crate) fn read(&self) -> bool {
        self.bit(61)
    }

    pub(crate) fn write(&self) -> bool {
        self.bit(62)
    }

    pub(crate) fn did(&self) -> u16 {
        self.0[1] as u16
    }

    /// SE: only the first page fault is reported while the entry is cached.
    pub(crate) fn suppresses_more(&self) -> bool {
        self.bit(97)
    }

    /// SA: no page fault is reported.
    pub(crate) fn suppresses_all(&self) -> bool {
        self.bit(98)
    }

    pub(crate) fn excluded(&self) -> bool {
        self.bit(103)
    }

    pub(crate) fn interrupt_valid(&self) -> bool {
        self.bit(128)
    }

    /// IntTabLen: the table has 2^n entries.
    pub(crate) fn interrupt_length(&self) -> u8 {
        (self.0[2] >> 1 & 0xf) as u8
    }

    /// IG: refused interrupts are not reported.
    pub(crate) fn ignores_unmapped(&self) -> bool {
        self.bit(133)
    }

    pub(crate) fn interrupt_root(&self) -> u64 {
        self.0[2] & 0x000f_ffff_ffff_ff80
    }

    /// Bit 6 of the root is a bit of the field, and no table can start there.
    pub(crate) fn interrupt_root_aligned(&self) -> bool {
        !self.bit(134)
    }

    pub(crate) fn passes_init(&self) -> bool {
        self.bit(184)
    }

    pub(crate) fn passes_ext_int(&self) -> bool {
        self.bit(185)
    }

    pub(crate) fn passes_nmi(&self) -> bool {
        self.bit(186)
    }

    pub(crate) fn passes_lint(&self, pin: u8) -> bool {
        self.bit(190 + usize::from(pin & 1))
    }

    pub(crate) fn interrupt_control(&self) -> InterruptControl {
        if !self.valid() || !self.interrupt_valid() {
            return InterruptControl::NotValid;
        }
        match self.0[2] >> 60 & 3 {
            0 => InterruptControl::Abort,
            1 => InterruptControl::Forward,
            2 => InterruptControl::Remap,
            _ => InterruptControl::Reserved,
        }
    }

    /// What is wrong with the half that is about memory, if it is valid at all.
    pub(crate) fn memory_problem(&self, config: &UnitConfig) -> Option<Reason> {
        if !self.valid() {
            return None;
        }
        // Host access and dirty bits, guest translation and page requests are features the model
        // has not, so their fields are reserved.
        let reserved = self.0[0] & (0x1fc | 0x1ff << 52 | 1 << 63) != 0
            || self.0[1] & (0xffff << 16 | !0x3ff << 32) != 0;
        if reserved {
            return Some(Reason::DeviceEntryReserved);
        }
        let levels_known = self.mode() <= config.levels;
        if self.translation_valid() && !levels_known || self.0[1] >> 35 & 3 == 3 {
            return Some(Reason::DeviceEntryEncoding);
        }
        None
    }

    /// What is wrong with the half that is about interrupts, if it is valid at all.
    pub(crate) fn interrupt_problem(&self) -> Option<Reason> {
        if !self.interrupt_valid() {
            return None;
        }
        if self.0[2] & (0xf << 52 | 1 << 59) != 0 || self.0[3] & 0x003f_ffff_ffff_ffff != 0 {
            return Some(Reason::DeviceEntryReserved);
        }
        match self.interrupt_control() {
            InterruptControl::Reserved => Some(Reason::DeviceEntryReserved),
            InterruptControl::Remap if self.interrupt_length() > 11 => {
                Some(Reason::DeviceEntryEncoding)
            }
            _ => None,
        }
    }

    /// Whether any request to memory may pass, translated or not.
    pub(crate) fn passes_memory(&self) -> bool {
        !self.valid() || self.translation_valid() && (self.read() || self.write())
    }

    /// Whether requests pass that no table checks.
    pub(crate) fn fails_open(&self) -> Option<&'static str> {
        let forwards = matches!(
            self.interrupt_control(),
            InterruptControl::NotValid | InterruptControl::Forward
        );
        if !self.valid() {
            Some("V is clear")
        } else if self.mode() == 0 && self.passes_memory() {
            Some("no page tables, and access allowed")
        } else if forwards {
            Some("interrupts pass unmapped")
        } else {
            None
        }
    }

    /// Whether the device is trusted with more than a fence allows.
    pub(crate) fn trusts(&self, special: bool) -> Option<&'static str> {
        let special_passes = self.passes_init()
            || self.passes_ext_int()
            || self.passes_nmi()
            || self.passes_lint(0)
            || self.passes_lint(1);
        if self.bit(96) {
            Some("I: translated requests")
        } else if self.excluded() {
            Some("EX: the exclusion range")
        } else if self.0[1] >> 35 & 3 != 0 {
            Some("IoCtl: port I/O")
        } else if self.0[1] >> 40 & 3 != 0 {
            Some("SysMgt: system management messages")
        } else if special_passes && !special {
            Some("special interrupts")
        } else {
            None
        }
    }

    /// The same apart from what may change at any time: permissions and what is reported.
    pub(crate) fn same_memory(&self, other: &Self) -> bool {
        self.root() == other.root()
            && self.mode() == other.mode()
            && self.did() == other.did()
            && self.translation_valid() == other.translation_valid()
            && self.valid() == other.valid()
    }

    pub(crate) fn remaps(&self) -> bool {
        self.interrupt_control() == InterruptControl::Remap
    }

    pub(crate) fn same_interrupts(&self, other: &Self) -> bool {
        self.interrupt_root() == other.interrupt_root()
            && self.interrupt_length() == other.interrupt_length()
    }
}

impl Unit {
    /// How many segments the device table has, as a power of two.
    pub(crate) fn segment_bits(&self) -> u32 {
        ((self.control & control::SEGMENTS) >> 34).min(3) as u32
    }

    /// Base and length of each segment of the device table.
    pub(crate) fn segments(&self) -> Vec<(u64, u64)> {
        (0..1_usize << self.segment_bits())
            .map(|i| {
                let register = self.device_tables[i];
                let pages = if i == 0 {
                    register & 0x1ff
                } else {
                    register & 0xff
                };
                (register & POINTER, (pages + 1) * 4096)
            })
            .collect()
    }

    /// Where the entry of `sid` is; `None` where the table has none.
    pub(crate) fn entry_address(&self, sid: u16) -> Option<u64> {
        let bits = 16 - self.segment_bits();
        let (segment, index) = if bits == 16 {
            (0, u64::from(sid))
        } else {
            (usize::from(sid >> bits), u64::from(sid) & ((1 << bits) - 1))
        };
        let (base, length) = self.segments()[segment];
        (index * 32 < length).then_some(base + index * 32)
    }

    /// The device whose entry holds the word at `at`.
    pub(crate) fn entry_holding(&self, at: u64) -> Option<u16> {
        let bits = 16 - self.segment_bits();
        let room = 32 << bits;
        self.segments()
            .into_iter()
            .enumerate()
            .find_map(|(segment, (base, length))| {
                let offset = at.checked_sub(base)?;
                (offset < length.min(room))
                    .then_some(((segment as u64) << bits | (offset / 32)) as u16)
            })
    }

    /// The entry of `sid` as processors see it.
    pub(crate) fn entry_in_memory(&self, memory: &Memory, sid: u16) -> Option<DeviceEntry> {
        let at = self.entry_address(sid)?;
        Some(DeviceEntry(core::array::from_fn(|i| {
            memory.processor(at + i as u64 * 8)
        })))
    }

    /// The entry of `sid`, from the cache where it has it, and into it.
    pub(crate) fn entry(&mut self, memory: &Memory, sid: u16) -> Result<DeviceEntry, Reason> {
        if let Some(cached) = self.entries.get(&sid) {
            return Ok(cached.entry);
        }
        let at = self.entry_address(sid).ok_or(Reason::DeviceBeyondTable)?;
        if self.too_wide(at) {
            return Err(Reason::DeviceTableUnreadable);
        }
        let entry = DeviceEntry(core::array::from_fn(|i| {
            self.fetch(memory, at + i as u64 * 8)
        }));
        let cached = CachedEntry {
            entry,
            reported: false,
        };
        self.entries.insert(sid, cached);
        Ok(entry)
    }
}
