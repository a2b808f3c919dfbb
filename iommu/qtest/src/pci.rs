//! Configuration space, by configuration mechanism #1 (PCI Local Bus Specification 3.0, section
//! 3.2.2.3.2).

use handoff_abi::{InterruptMessage, RequesterId};

use crate::Bus;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Command register: answer to memory accesses.
const MEMORY_SPACE: u32 = 1 << 1;
/// Command register: make requests.
const BUS_MASTER: u32 = 1 << 2;

/// Capability id of message signalled interrupts.
const MSI: u8 = 5;

/// One PCI function, by its own address; the id it makes requests with can be another.
#[derive(Clone, Debug)]
pub struct Function {
    bus: Bus,
    address: RequesterId,
}

impl Function {
    /// The function at `address`.
    #[must_use]
    pub const fn new(bus: Bus, address: RequesterId) -> Self {
        Self { bus, address }
    }

    /// Its bus, device and function number.
    #[must_use]
    pub const fn address(&self) -> RequesterId {
        self.address
    }

    fn select(&self, offset: u8) {
        let address = 1 << 31 | u32::from(self.address.0) << 8 | u32::from(offset & !3);
        self.bus.out32(CONFIG_ADDRESS, address);
    }

    /// Reads 4 bytes at `offset`, a multiple of 4.
    #[must_use]
    pub fn read(&self, offset: u8) -> u32 {
        self.select(offset);
        self.bus.in32(CONFIG_DATA)
    }

    /// Writes 4 bytes at `offset`, a multiple of 4.
    pub fn write(&self, offset: u8, value: u32) {
        self.select(offset);
        self.bus.out32(CONFIG_DATA, value);
    }

    fn set_command(&self, bit: u32, on: bool) {
        // The status register in the upper half is cleared by ones: write zeros there.
        let command = self.read(4) & 0xffff;
        self.write(4, if on { command | bit } else { command & !bit });
    }

    /// Lets the function make requests, or not.
    pub fn set_bus_master(&self, on: bool) {
        self.set_command(BUS_MASTER, on);
    }

    /// Lets the function answer to memory accesses.
    pub fn enable_memory(&self) {
        self.set_command(MEMORY_SPACE, true);
    }

    /// Gives a bridge its buses and a window of memory (PCI-to-PCI Bridge Architecture
    /// Specification 1.2, section 3.2.5), and lets it forward both ways.
    pub fn set_up_bridge(&self, secondary: u8, subordinate: u8, window: std::ops::Range<u64>) {
        let primary = self.address.bus();
        self.write(
            0x18,
            u32::from(primary) | u32::from(secondary) << 8 | u32::from(subordinate) << 16,
        );
        assert!(window.start.is_multiple_of(1 << 20) && window.end.is_multiple_of(1 << 20));
        let base = (window.start >> 16) as u32 & 0xfff0;
        let limit = ((window.end - 1) >> 16) as u32 & 0xfff0;
        self.write(0x20, base | limit << 16);
        self.enable_memory();
        self.set_bus_master(true);
    }

    /// Where a capability lies in configuration space.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<u8> {
        let mut at = self.read(0x34) as u8 & !3;
        for _ in 0..48 {
            if at == 0 {
                return None;
            }
            let header = self.read(at);
            if header as u8 == id {
                return Some(at);
            }
            at = (header >> 8) as u8 & !3;
        }
        None
    }

    /// Has the function signal its interrupt by this message; one with 64-bit addresses.
    ///
    /// # Panics
    /// Where it has no such capability.
    pub fn set_message(&self, message: InterruptMessage) {
        let at = self.capability(MSI).expect("the function has MSI");
        let header = self.read(at);
        assert_ne!(header & 1 << 23, 0, "64-bit MSI addresses");
        self.write(at + 4, message.address.0 as u32);
        self.write(at + 8, (message.address.0 >> 32) as u32);
        self.write(at + 12, message.data);
        self.write(at, header | 1 << 16);
    }
}
