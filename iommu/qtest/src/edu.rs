//! QEMU's `edu` device: it moves memory to and from a buffer of its own, and raises interrupts, as
//! it is told to (QEMU documentation, `docs/specs/edu`).

use std::time::{Duration, Instant};

use handoff_abi::{InterruptMessage, RequesterId};

use crate::{Bus, Function};

const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

const RUN: u32 = 1;
const TO_MEMORY: u32 = 2;

/// Where the device's buffer is, as its registers see it.
const BUFFER: u64 = 0x4_0000;

/// How long a transfer may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(20);

/// An `edu` device.
///
/// A transfer that the IOMMU refuses looks to the device like any other: only memory, the buffer
/// and the fault records tell.
#[derive(Clone, Debug)]
pub struct Edu {
    bus: Bus,
    function: Function,
    requester: RequesterId,
    registers: u64,
}

impl Edu {
    /// The longest transfer in bytes: the buffer is a page, and version 7.2 ends itself at a
    /// transfer of all of it.
    pub const MAX_TRANSFER: usize = 4095;

    pub(crate) const fn new(
        bus: Bus,
        function: Function,
        requester: RequesterId,
        registers: u64,
    ) -> Self {
        Self {
            bus,
            function,
            requester,
            registers,
        }
    }

    /// Its place in configuration space.
    #[must_use]
    pub const fn function(&self) -> &Function {
        &self.function
    }

    /// The id its requests carry.
    #[must_use]
    pub const fn requester(&self) -> RequesterId {
        self.requester
    }

    /// Where its registers lie in physical memory.
    #[must_use]
    pub const fn registers(&self) -> u64 {
        self.registers
    }

    fn transfer(&self, source: u64, destination: u64, count: usize, direction: u32) {
        assert!((1..=Self::MAX_TRANSFER).contains(&count));
        self.bus.write64(self.registers + SOURCE, source);
        self.bus.write64(self.registers + DESTINATION, destination);
        self.bus.write64(self.registers + COUNT, count as u64);
        self.bus.write32(self.registers + COMMAND, RUN | direction);
        let end = Instant::now() + TRANSFER_TIMEOUT;
        loop {
            let over = Instant::now() >= end;
            if self.bus.read32(self.registers + COMMAND) & RUN == 0 {
                return;
            }
            assert!(!over, "{} did not end its transfer", self.requester);
        }
    }

    /// The device reads `count` bytes of memory into its buffer.
    pub fn dma_read(&self, address: u64, count: usize) {
        self.transfer(address, BUFFER, count, 0);
    }

    /// The device writes the first `count` bytes of its buffer to memory.
    pub fn dma_write(&self, address: u64, count: usize) {
        self.transfer(BUFFER, address, count, TO_MEMORY);
    }

    /// The device's register that holds the address of the last write, as the processor reads it.
    /// A write that lands in the registers themselves would show here.
    #[must_use]
    pub fn destination_register(&self) -> u64 {
        self.bus.read64(self.registers + DESTINATION)
    }

    /// Where [`destination_register`](Self::destination_register) lies in physical memory: what a
    /// write to another device's registers would aim at.
    #[must_use]
    pub const fn destination_register_address(&self) -> u64 {
        self.registers + DESTINATION
    }

    /// Has the device signal interrupts by this message.
    pub fn set_message(&self, message: InterruptMessage) {
        self.function.set_message(message);
    }

    /// The device raises its interrupt, once.
    pub fn raise(&self) {
        self.bus.write32(self.registers + RAISE, 1);
        self.bus.write32(self.registers + ACKNOWLEDGE, 1);
        self.bus.settle();
    }
}
