//! The registers of one unit, with every poll bounded.

use super::spec::{Control, Register, Status};
use crate::{Deadline, RegisterError, RegisterIo};

/// Registers and clock of one unit.
#[derive(Debug)]
pub(super) struct Hardware<R, C> {
    pub(super) registers: R,
    pub(super) clock: C,
    pub(super) timeout: u32,
}

impl<R: RegisterIo, C: Deadline> Hardware<R, C> {
    pub(super) const fn new(registers: R, clock: C, timeout: u32) -> Self {
        Self {
            registers,
            clock,
            timeout,
        }
    }

    pub(super) fn read(&mut self, register: Register) -> u64 {
        self.registers.read64(register.offset())
    }

    /// As [`read`](Self::read), for a register that is never all ones.
    pub(super) fn read_present(&mut self, register: Register) -> Result<u64, RegisterError> {
        match self.read(register) {
            u64::MAX => Err(RegisterError::gone(register)),
            value => Ok(value),
        }
    }

    pub(super) fn write(&mut self, register: Register, value: u64) {
        self.registers.write64(register.offset(), value);
    }

    /// Reads a register until `done`.
    pub(super) fn poll(
        &mut self,
        register: Register,
        done: impl Fn(u64) -> bool,
    ) -> Result<u64, RegisterError> {
        self.clock.start(self.timeout);
        loop {
            // The clock is asked before the register: if it is over, the register gets one more
            // look after that, however long the caller was kept from running in between.
            let expired = self.clock.expired();
            let value = self.read_present(register)?;
            if done(value) {
                return Ok(value);
            }
            if expired {
                return Err(RegisterError::timeout(register, value));
            }
        }
    }

    pub(super) fn status(&mut self) -> Result<Status, RegisterError> {
        self.read_present(Register::Status)
            .map(Status::from_bits_retain)
    }

    pub(super) fn control(&mut self) -> Result<Control, RegisterError> {
        self.read_present(Register::Control)
            .map(Control::from_bits_retain)
    }

    pub(super) fn set_control(&mut self, control: Control) {
        self.write(Register::Control, control.bits());
    }

    /// Switches functions on or off, and waits until `running` says so.
    pub(super) fn switch(
        &mut self,
        functions: Control,
        running: Status,
        on: bool,
    ) -> Result<(), RegisterError> {
        let mut control = self.control()?;
        control.set(functions, on);
        self.set_control(control);
        self.poll_running(running, on)
    }

    /// Waits until all of `running` is set, or none of it.
    pub(super) fn poll_running(&mut self, running: Status, on: bool) -> Result<(), RegisterError> {
        self.poll(Register::Status, |status| {
            let status = Status::from_bits_retain(status);
            if on {
                status.contains(running)
            } else {
                !status.intersects(running)
            }
        })?;
        Ok(())
    }
}
