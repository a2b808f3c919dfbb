//! QEMU's educational device: DMA and interrupts on demand, to try a fence with.

use core::fmt;

use handoff_abi::{PhysAddr, PhysRange};

use crate::clock;
use crate::mmio::Mmio;
use crate::pci::Function;

/// The device's vendor and device id.
pub const ID: (u16, u16) = (0x1234, 0x11e8);
/// Where the device's buffer begins, in its own addresses.
const BUFFER: u64 = 0x4_0000;
/// Bytes that can be moved: an offset and a length together. The buffer has one more, but QEMU 7.2
/// stops the whole machine if it is touched.
pub const MAX: u64 = 4095;

/// Registers (QEMU, "EDU device").
const IDENTIFICATION: usize = 0x00;
const LIVENESS: usize = 0x04;
const INTERRUPT_STATUS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
const LENGTH: usize = 0x100;

const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
const INTERRUPT: u64 = 4;

/// Why nothing was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EduError {
    /// The offset and the length exceed [`MAX`], or there is nothing to move.
    Bounds {
        /// The offset into the device's buffer.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The device is still busy after the time it had.
    Timeout,
    /// It is not such a device.
    Absent,
}

impl fmt::Display for EduError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounds { offset, length } => {
                write!(f, "{length} bytes at {offset:#x} are not in the buffer")
            }
            Self::Timeout => f.write_str("the device is busy"),
            Self::Absent => f.write_str("there is no such device"),
        }
    }
}

impl core::error::Error for EduError {}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory into the device's buffer: the device reads memory.
    FromMemory,
    /// From the device's buffer into memory: the device writes memory.
    ToMemory,
}

/// The device.
#[derive(Debug)]
pub struct Edu {
    registers: Mmio,
}

impl Edu {
    /// What has to be mapped into the window, uncached, before the device is used; `None` where
    /// the function is not such a device.
    #[must_use]
    pub fn window(function: &Function) -> Option<PhysRange> {
        let bar = function
            .bar(0)
            .filter(|_| (function.vendor(), function.device()) == ID)?;
        PhysRange::new(bar.address, LENGTH as u64).ok()
    }

    /// Takes the device into use: it may make requests from now on.
    ///
    /// # Errors
    /// Where it does not answer as such a device.
    ///
    /// # Safety
    /// The window maps [`window`](Self::window) uncached for as long as the value is used, and what
    /// the device is made to write is memory that may be written, or is fenced off.
    pub unsafe fn create(function: &Function) -> Result<Self, EduError> {
        let range = Self::window(function).ok_or(EduError::Absent)?;
        function.enable_memory();
        // SAFETY: the caller's promise.
        let registers = unsafe { Mmio::new(range.base(), LENGTH) };
        let edu = Self { registers };
        if edu.registers.read32(IDENTIFICATION) & 0xff != 0xed || !edu.is_alive(0x1234_5678) {
            return Err(EduError::Absent);
        }
        function.set_bus_master(true);
        Ok(edu)
    }

    /// Whether the device inverts `word` when asked to.
    #[must_use]
    pub fn is_alive(&self, word: u32) -> bool {
        self.registers.write32(LIVENESS, word);
        self.registers.read32(LIVENESS) == !word
    }

    /// Moves `length` bytes between `memory`, an address as the device sees it, and `offset` of the
    /// device's buffer, and waits for that.
    ///
    /// That it was done says nothing of whether an IOMMU let it pass: the device does not notice.
    /// On QEMU it takes 100 ms.
    ///
    /// # Errors
    /// [`EduError`].
    pub fn dma(
        &mut self,
        direction: Direction,
        memory: u64,
        offset: u64,
        length: u64,
        microseconds: u64,
    ) -> Result<(), EduError> {
        self.start(direction, memory, offset, length, false)?;
        if clock::wait_until(microseconds, || !self.is_busy()) {
            Ok(())
        } else {
            Err(EduError::Timeout)
        }
    }

    /// Begins what [`dma`](Self::dma) does and returns at once. With `interrupt` the device raises
    /// its interrupt when it is done.
    ///
    /// # Errors
    /// [`EduError`]; [`EduError::Timeout`] where it is busy.
    pub fn start(
        &mut self,
        direction: Direction,
        memory: u64,
        offset: u64,
        length: u64,
        interrupt: bool,
    ) -> Result<(), EduError> {
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > MAX) {
            return Err(EduError::Bounds { offset, length });
        }
        if self.is_busy() {
            return Err(EduError::Timeout);
        }
        let (from, to, way) = match direction {
            Direction::FromMemory => (memory, BUFFER + offset, 0),
            Direction::ToMemory => (BUFFER + offset, memory, TO_MEMORY),
        };
        self.registers.write64(SOURCE, from);
        self.registers.write64(DESTINATION, to);
        self.registers.write64(COUNT, length);
        let interrupt = if interrupt { INTERRUPT } else { 0 };
        self.registers.write64(COMMAND, RUN | way | interrupt);
        Ok(())
    }

    /// Whether it is moving data.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.registers.read64(COMMAND) & RUN != 0
    }

    /// Makes the device raise its interrupt: the message of MSI where that is enabled. `cause` is
    /// not zero.
    pub fn raise(&mut self, cause: u32) {
        self.registers.write32(RAISE, cause);
    }

    /// Ends the device's interrupt; says what it was for.
    pub fn acknowledge(&mut self) -> u32 {
        let cause = self.registers.read32(INTERRUPT_STATUS);
        self.registers.write32(ACKNOWLEDGE, cause);
        cause
    }

    /// A register of the device that another device's DMA may hit, to show that it does not: the
    /// physical address of the liveness register.
    #[must_use]
    pub fn target(function: &Function) -> Option<PhysAddr> {
        Self::window(function).and_then(|range| range.base().checked_add(LIVENESS as u64))
    }
}
