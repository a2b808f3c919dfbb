//! PCI configuration space through ECAM: finding functions, BARs, capabilities, message interrupts.

pub mod assign;
pub mod slot;

use core::fmt;

use handoff_abi::{PhysAddr, PhysRange, RequesterId};

use crate::mmio::Mmio;

/// Register offsets of configuration space (PCI Local Bus Specification 3.0, section 6.1).
const ID: usize = 0x00;
const COMMAND: usize = 0x04;
const CLASS: usize = 0x08;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SECONDARY_BUS: usize = 0x19;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

/// Bits of the command register.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Bit of the status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Capability ids.
pub mod capability {
    /// Message signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor specific; virtio's are such.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// Message signalled interrupts, extended.
    pub const MSIX: u8 = 0x11;
}

/// The mapped configuration space of a range of buses of one segment.
#[derive(Clone, Copy, Debug)]
pub struct Ecam {
    base: PhysAddr,
    first_bus: u8,
    last_bus: u8,
}

impl Ecam {
    /// What MCFG or a handoff describes: `base` is where bus 0 would be, whether it is in the range
    /// or not.
    ///
    /// # Safety
    /// The window maps [`range`](Self::range) uncached for as long as the value or a [`Function`]
    /// of it is used.
    #[must_use]
    pub const unsafe fn new(base: PhysAddr, first_bus: u8, last_bus: u8) -> Self {
        Self {
            base,
            first_bus,
            last_bus,
        }
    }

    /// Where configuration space of buses `first_bus` to `last_bus` is, if bus 0 is at `base`.
    #[must_use]
    pub const fn range(base: PhysAddr, first_bus: u8, last_bus: u8) -> PhysRange {
        PhysRange::from_bounds(
            PhysAddr(base.0 + ((first_bus as u64) << 20)),
            PhysAddr(base.0 + ((last_bus as u64 + 1) << 20)),
        )
    }

    /// The configuration space of `id`, whether anything answers there or not; `None` where its bus
    /// is not in the range.
    #[must_use]
    pub fn registers(&self, id: RequesterId) -> Option<Mmio> {
        if id.bus() < self.first_bus || id.bus() > self.last_bus {
            return None;
        }
        let base = PhysAddr(self.base.0 + (u64::from(id.0) << 12));
        // SAFETY: `new` was promised that the bus is mapped.
        Some(unsafe { Mmio::new(base, 4096) })
    }

    /// The function `id`; `None` where its bus is not in the range or nothing answers.
    #[must_use]
    pub fn function(&self, id: RequesterId) -> Option<Function> {
        let config = self.registers(id)?;
        let function = Function { id, config };
        (function.vendor() != 0xffff).then_some(function)
    }

    /// Visits every function that answers on `bus` and behind its bridges, each bus once.
    pub fn scan(&self, bus: u8, visit: &mut impl FnMut(&Function)) {
        let mut seen = [0_u64; 4];
        self.scan_bus(bus, &mut seen, visit);
    }

    fn scan_bus(&self, bus: u8, seen: &mut [u64; 4], visit: &mut impl FnMut(&Function)) {
        let word = &mut seen[usize::from(bus / 64)];
        if *word >> (bus % 64) & 1 != 0 {
            return;
        }
        *word |= 1 << (bus % 64);
        for device in 0..32 {
            for number in 0..8 {
                let function =
                    RequesterId::new(bus, device, number).and_then(|id| self.function(id));
                let Some(function) = function else {
                    if number == 0 {
                        break;
                    }
                    continue;
                };
                visit(&function);
                if let Some(secondary) = function.secondary_bus().filter(|&bus| bus != 0) {
                    self.scan_bus(secondary, seen, visit);
                }
                if number == 0 && !function.is_multifunction() {
                    break;
                }
            }
        }
    }
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Where it points to.
    pub address: PhysAddr,
    /// Whether it is memory, not ports.
    pub memory: bool,
    /// Whether it takes two registers.
    pub wide: bool,
}

/// A function's configuration space.
#[derive(Debug)]
pub struct Function {
    id: RequesterId,
    config: Mmio,
}

impl Function {
    /// Bus, device and function.
    #[must_use]
    pub const fn id(&self) -> RequesterId {
        self.id
    }

    /// The registers.
    #[must_use]
    pub const fn config(&self) -> &Mmio {
        &self.config
    }

    /// Who made it.
    #[must_use]
    pub fn vendor(&self) -> u16 {
        self.config.read16(ID)
    }

    /// What it is.
    #[must_use]
    pub fn device(&self) -> u16 {
        self.config.read16(ID + 2)
    }

    /// Base class, sub-class and programming interface, in bits 23:16, 15:8 and 7:0.
    #[must_use]
    pub fn class(&self) -> u32 {
        self.config.read32(CLASS) >> 8
    }

    fn header_type(&self) -> u8 {
        self.config.read8(HEADER_TYPE)
    }

    fn is_multifunction(&self) -> bool {
        self.header_type() & 0x80 != 0
    }

    /// The bus behind a PCI-to-PCI bridge; `None` for anything else.
    #[must_use]
    pub fn secondary_bus(&self) -> Option<u8> {
        (self.header_type() & 0x7f == 1).then(|| self.config.read8(SECONDARY_BUS))
    }

    /// Lets the function make requests, or stops it from that. Returns once the write has taken
    /// effect, and says whether it has.
    pub fn set_bus_master(&self, on: bool) -> bool {
        let command = self.config.read16(COMMAND);
        let wanted = if on {
            command | COMMAND_BUS_MASTER
        } else {
            command & !COMMAND_BUS_MASTER
        };
        self.config.write16(COMMAND, wanted);
        self.is_bus_master() == on
    }

    /// Whether the function may make requests.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.config.read16(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Lets the function answer at its BARs, and keeps it from using interrupt lines.
    pub fn enable_memory(&self) {
        let command = self.config.read16(COMMAND);
        self.config
            .write16(COMMAND, command | COMMAND_MEMORY | COMMAND_INTX_DISABLE);
    }

    /// Keeps the function from using its interrupt line.
    pub fn disable_intx(&self) {
        let command = self.config.read16(COMMAND);
        self.config.write16(COMMAND, command | COMMAND_INTX_DISABLE);
    }

    /// Whether it is kept from using its interrupt line.
    #[must_use]
    pub fn is_intx_disabled(&self) -> bool {
        self.config.read16(COMMAND) & COMMAND_INTX_DISABLE != 0
    }

    /// The interrupt line of its pin, as firmware wrote it down (PCI Local Bus Specification 3.0,
    /// section 6.2.4: Interrupt Line and Interrupt Pin); `None` where it has no pin or the line is
    /// not known. It is the input of the 8259s. Which input of the I/O APICs it is as well, only
    /// AML says; functions that share the one share the other.
    #[must_use]
    pub fn interrupt_line(&self) -> Option<u32> {
        let pin = self.config.read8(INTERRUPT_PIN);
        let line = self.config.read8(INTERRUPT_LINE);
        ((1..=4).contains(&pin) && line != 0 && line != 0xff).then_some(line.into())
    }

    /// How many message interrupts it can have: entries of its MSI-X table, else messages of MSI.
    #[must_use]
    pub fn messages(&self) -> u16 {
        if let Some(at) = self.capability(capability::MSIX) {
            return (self.config.read16(at + 2) & 0x7ff) + 1;
        }
        // Multiple Message Capable, bits 3:1, is a power of two up to 32.
        self.capability(capability::MSI)
            .map_or(0, |at| 1 << (self.config.read16(at + 2) >> 1 & 7).min(5))
    }

    /// How many base address registers its header has.
    #[must_use]
    pub fn bar_count(&self) -> usize {
        match self.header_type() & 0x7f {
            0 => 6,
            1 => 2,
            _ => 0,
        }
    }

    /// Base address register `index`; `None` where there is none or it is not set.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<Bar> {
        if index >= self.bar_count() {
            return None;
        }
        let low = self.config.read32(BAR0 + 4 * index);
        let (memory, wide) = (low & 1 == 0, low & 7 == 4);
        let mut address = u64::from(low & if memory { !0xf } else { !3 });
        if wide && index + 1 < self.bar_count() {
            address |= u64::from(self.config.read32(BAR0 + 4 * (index + 1))) << 32;
        }
        (address != 0).then_some(Bar {
            address: PhysAddr(address),
            memory,
            wide,
        })
    }

    /// The range of memory that base address register `index` answers to. The function does not
    /// answer while it is measured, so it must not be in use.
    #[must_use]
    pub fn measure_bar(&self, index: usize) -> Option<PhysRange> {
        let bar = self.bar(index).filter(|bar| bar.memory)?;
        PhysRange::new(bar.address, self.bar_size(index)?).ok()
    }

    /// How much memory base address register `index` answers to, whether it is set or not; `None`
    /// where it is no register for memory. As for [`measure_bar`](Self::measure_bar), the function
    /// must not be in use.
    #[must_use]
    pub fn bar_size(&self, index: usize) -> Option<u64> {
        if index >= self.bar_count() {
            return None;
        }
        let register = BAR0 + 4 * index;
        let command = self.config.read16(COMMAND);
        self.config.write16(COMMAND, command & !COMMAND_MEMORY);
        let probe = |register: usize| {
            let old = self.config.read32(register);
            self.config.write32(register, u32::MAX);
            let mask = self.config.read32(register);
            self.config.write32(register, old);
            mask
        };
        let low = probe(register);
        let mut mask = u64::from(low & !0xf) | 0xffff_ffff_0000_0000;
        if low & 7 == 4 && index + 1 < self.bar_count() {
            mask = mask & 0xffff_ffff | u64::from(probe(register + 4)) << 32;
        }
        self.config.write16(COMMAND, command);
        // A register that is not there is zero whatever is written to it.
        let size = (!mask).wrapping_add(1);
        (low & 1 == 0 && low & !0xf != 0 && size.is_power_of_two()).then_some(size)
    }

    /// Sets base address register `index`, which is for memory.
    pub fn set_bar(&self, index: usize, address: PhysAddr) {
        if index >= self.bar_count() {
            return;
        }
        let register = BAR0 + 4 * index;
        let wide = self.config.read32(register) & 7 == 4;
        self.config.write32(register, address.0 as u32);
        if wide && index + 1 < self.bar_count() {
            self.config.write32(register + 4, (address.0 >> 32) as u32);
        }
    }

    /// The capabilities: id and offset, in the order of the list.
    pub fn capabilities(&self) -> impl Iterator<Item = (u8, usize)> + '_ {
        let listed = self.config.read16(COMMAND + 2) & STATUS_CAPABILITIES != 0;
        let mut at = if listed {
            usize::from(self.config.read8(CAPABILITIES) & !3)
        } else {
            0
        };
        // There is room for 48 in 192 bytes; a longer list is a loop.
        let mut left = 48;
        core::iter::from_fn(move || {
            if at < 0x40 || left == 0 {
                return None;
            }
            left -= 1;
            let found = (self.config.read8(at), at);
            at = usize::from(self.config.read8(at + 1) & !3);
            Some(found)
        })
    }

    /// The first capability with this id.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<usize> {
        self.capabilities()
            .find(|&(found, _)| found == id)
            .map(|(_, at)| at)
    }

    /// Programs the one message of MSI and enables it. Says whether the function has MSI.
    pub fn set_msi(&self, address: PhysAddr, data: u32) -> bool {
        let Some(at) = self.capability(capability::MSI) else {
            return false;
        };
        let control = self.config.read16(at + 2);
        // Off while it changes; one message.
        self.config.write16(at + 2, control & !0x71);
        self.config.write32(at + 4, address.0 as u32);
        let data_at = if control & 0x80 != 0 {
            self.config.write32(at + 8, (address.0 >> 32) as u32);
            at + 12
        } else {
            at + 8
        };
        self.config.write16(data_at, data as u16);
        self.config.write16(at + 2, control & !0x70 | 1);
        true
    }

    /// Disables MSI. Says whether the function has it.
    pub fn disable_msi(&self) -> bool {
        let Some(at) = self.capability(capability::MSI) else {
            return false;
        };
        let control = self.config.read16(at + 2);
        self.config.write16(at + 2, control & !1);
        true
    }

    /// Where the MSI-X table is, and how many entries it has.
    #[must_use]
    pub fn msix_table(&self) -> Option<(PhysAddr, u16)> {
        let at = self.capability(capability::MSIX)?;
        let entries = (self.config.read16(at + 2) & 0x7ff) + 1;
        let table = self.config.read32(at + 4);
        let bar = self.bar((table & 7) as usize).filter(|bar| bar.memory)?;
        let address = bar.address.checked_add(u64::from(table & !7))?;
        Some((address, entries))
    }

    /// Enables or disables MSI-X. Says whether the function has it.
    pub fn enable_msix(&self, on: bool) -> bool {
        let Some(at) = self.capability(capability::MSIX) else {
            return false;
        };
        // Bit 15 enables, bit 14 masks all.
        let control = self.config.read16(at + 2) & !0xc000;
        self.config
            .write16(at + 2, control | if on { 0x8000 } else { 0 });
        true
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:04x}:{:04x} class {:06x}",
            self.id,
            self.vendor(),
            self.device(),
            self.class()
        )
    }
}

/// A function's MSI-X table (PCI Local Bus Specification 3.0, section 6.8.2.6).
#[derive(Debug)]
pub struct MsixTable {
    entries: Mmio,
}

impl MsixTable {
    /// The table of `entries` entries at `base`.
    ///
    /// # Safety
    /// It is one, and the window maps it uncached for as long as the value is used.
    #[must_use]
    pub unsafe fn new(base: PhysAddr, entries: u16) -> Self {
        // SAFETY: the caller's promise.
        let entries = unsafe { Mmio::new(base, usize::from(entries) * 16) };
        Self { entries }
    }

    /// How many entries it has.
    #[must_use]
    pub fn length(&self) -> usize {
        self.entries.length() / 16
    }

    /// Sets the message of `entry` and unmasks it. Says whether there is such an entry.
    pub fn set(&self, entry: u16, address: PhysAddr, data: u32) -> bool {
        let at = usize::from(entry) * 16;
        if !self.mask(entry) {
            return false;
        }
        self.entries.write32(at, address.0 as u32);
        self.entries.write32(at + 4, (address.0 >> 32) as u32);
        self.entries.write32(at + 8, data);
        self.entries.write32(at + 12, 0);
        true
    }

    /// Masks `entry`. Says whether there is such an entry.
    pub fn mask(&self, entry: u16) -> bool {
        if usize::from(entry) >= self.length() {
            return false;
        }
        self.entries.write32(usize::from(entry) * 16 + 12, 1);
        true
    }
}

/// The message that raises `vector` on the processor `to`, in the compatibility format (Intel SDM
/// volume 3, section 12.11): fixed delivery, edge, physical destination.
#[must_use]
pub const fn message(to: handoff_abi::ApicId, vector: u8) -> (PhysAddr, u32) {
    (
        PhysAddr(0xfee0_0000 | (to.0 as u64 & 0xff) << 12),
        vector as u32,
    )
}
