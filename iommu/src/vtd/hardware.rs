//! The registers of one unit, with every poll bounded.

use super::spec::{GlobalStatus, Register};
use crate::{Deadline, RegisterError, RegisterIo};

/// Registers and clock of one unit.
#[derive(Debug)]
pub(super) struct Hardware<R, C> {
    pub(super) registers: R,
    pub(super) clock: C,
    pub(super) timeout: u32,
    /// A command that was given and not seen done: its bit, and what its status will be.
    unfinished: Option<(GlobalStatus, bool)>,
}

impl<R: RegisterIo, C: Deadline> Hardware<R, C> {
    pub(super) const fn new(registers: R, clock: C, timeout: u32) -> Self {
        Self {
            registers,
            clock,
            timeout,
            unfinished: None,
        }
    }

    pub(super) fn read32(&mut self, register: Register) -> u32 {
        self.registers.read32(register.offset())
    }

    pub(super) fn write32(&mut self, register: Register, value: u32) {
        self.registers.write32(register.offset(), value);
    }

    pub(super) fn read64(&mut self, register: Register) -> u64 {
        self.registers.read64(register.offset())
    }

    pub(super) fn write64(&mut self, register: Register, value: u64) {
        self.registers.write64(register.offset(), value);
    }

    /// Reads a 32-bit register until `done`.
    pub(super) fn poll32(
        &mut self,
        register: Register,
        done: impl Fn(u32) -> bool,
    ) -> Result<u32, RegisterError> {
        self.clock.start(self.timeout);
        loop {
            // The clock is asked before the register: if it is over, the register gets one more
            // look after that, however long the caller was kept from running in between.
            let expired = self.clock.expired();
            let value = self.read32(register);
            if value == u32::MAX {
                return Err(RegisterError::gone(register));
            }
            if done(value) {
                return Ok(value);
            }
            if expired {
                return Err(RegisterError::timeout(register, value));
            }
        }
    }

    /// Reads a 64-bit register until `done`.
    pub(super) fn poll64(
        &mut self,
        register: Register,
        done: impl Fn(u64) -> bool,
    ) -> Result<u64, RegisterError> {
        self.clock.start(self.timeout);
        loop {
            let expired = self.clock.expired();
            let value = self.read64(register);
            if value == u64::MAX {
                return Err(RegisterError::gone(register));
            }
            if done(value) {
                return Ok(value);
            }
            if expired {
                return Err(RegisterError::timeout(register, value));
            }
        }
    }

    pub(super) fn status(&mut self) -> Result<GlobalStatus, RegisterError> {
        match self.read32(Register::GlobalStatus) {
            u32::MAX => Err(RegisterError::gone(Register::GlobalStatus)),
            bits => Ok(GlobalStatus::from_bits_retain(bits)),
        }
    }

    /// Waits until the command that was given last is done, if it was not seen done.
    pub(super) fn settle(&mut self) -> Result<(), RegisterError> {
        if let Some((bit, until)) = self.unfinished {
            self.poll32(Register::GlobalStatus, |status| {
                GlobalStatus::from_bits_retain(status).contains(bit) == until
            })?;
            self.unfinished = None;
        }
        Ok(())
    }

    /// Writes one command bit and waits for its status (section 11.4.4.1: one bit for each write,
    /// all other bits as they stand, no one-shot bit replayed, no command before the last is done).
    fn command(&mut self, bit: GlobalStatus, set: bool, until: bool) -> Result<(), RegisterError> {
        self.settle()?;
        let mut command = self.status()? & GlobalStatus::PERSISTENT;
        command.set(bit, set);
        self.write32(Register::GlobalCommand, command.bits());
        self.unfinished = Some((bit, until));
        self.settle()
    }

    /// Switches a persistent function on or off; does nothing where it already is so.
    pub(super) fn switch(&mut self, bit: GlobalStatus, on: bool) -> Result<(), RegisterError> {
        self.settle()?;
        if self.status()?.contains(bit) == on {
            return Ok(());
        }
        self.command(bit, on, on)
    }

    /// Makes the unit latch RTADDR (SRTP) or IRTA (SIRTP).
    pub(super) fn latch(&mut self, bit: GlobalStatus) -> Result<(), RegisterError> {
        self.command(bit, true, true)
    }

    /// Flushes the unit's write buffer (section 6.8). Only for units with CAP.RWBF.
    pub(super) fn flush_write_buffer(&mut self) -> Result<(), RegisterError> {
        self.command(GlobalStatus::WBFS, true, false)
    }
}
