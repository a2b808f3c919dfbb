//! Switching off a command buffer that runs already.

use handoff_abi::PhysAddr;

use super::spec::{Command, Control, Register, RingBase, Status};
use super::unit::Unit;
use crate::driver::{Running, place};
use crate::{Deadline, EnableError, InvalidateError, RegisterError, RegisterIo, TableMemory};

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// The command buffer that the unit fetches from, if it does. One that stopped at an error has
    /// nothing under way. Nothing is written.
    pub(super) fn running_buffer(
        &mut self,
        control: Control,
    ) -> Result<Option<Running>, EnableError> {
        let runs = Status::COMMAND_BUFFER_RUN;
        if !control.contains(Control::COMMAND_BUFFER)
            || !self.vendor.hardware.status()?.contains(runs)
        {
            return Ok(None);
        }
        let base = RingBase(self.vendor.hardware.read(Register::CommandBufferBase));
        let tail = self
            .vendor
            .hardware
            .read_present(Register::CommandBufferTail)?;
        let own = base == self.vendor.commands.base();
        let limit = self.vendor.config.host_limit();
        let arena = self.arena.range();
        Running::new(base.ring(), base.length(), tail, own, arena, limit)
            .map(Some)
            .ok_or(EnableError::QueueUnusable {
                address: base.0,
                tail,
            })
    }

    /// Lets a buffer run out behind a wait of this driver, so that nothing of it is under way when it
    /// is switched off: that all was fetched, the head says; that all is done, only the wait does
    /// (section 2.4). `foreign` reaches its memory where it is somebody else's.
    pub(super) fn close_buffer<Q: TableMemory>(
        &mut self,
        buffer: Running,
        control: Control,
        mut foreign: Option<&mut Q>,
    ) -> Result<(), EnableError> {
        // Whether the unit snoops is as somebody else has set it.
        let snooped = control.contains(Control::COHERENT);
        self.await_head(buffer, buffer.tail())?;
        // Whoever else's buffer it is, the unit writes nowhere but into this unit's arena.
        let done = self.vendor.commands.closed();
        self.tables.store(done, 0);
        if !snooped {
            self.tables.memory.write_back(done, 8);
        }
        let Command { low, high } = Command::completion_wait(done, CLOSED);
        let slot = buffer.slot();
        let before = match foreign.as_deref_mut() {
            Some(memory) => place(memory, snooped, slot.base(), [low, high]),
            None => place(&mut self.tables.memory, snooped, slot.base(), [low, high]),
        };
        let Some(before) = before else {
            return Err(EnableError::QueueMemory(slot));
        };
        let tail = buffer.next_tail();
        self.vendor
            .hardware
            .write(Register::CommandBufferTail, tail);
        self.await_closing(done)?;
        self.await_head(buffer, tail)?;
        if let Some(memory) = foreign {
            // The unit has passed the slot. What the memory is used for now, if it is no longer a
            // buffer to anybody, finds it as it was.
            if place(memory, snooped, slot.base(), before).is_none() {
                return Err(EnableError::QueueMemory(slot));
            }
        }
        Ok(())
    }

    fn await_head(&mut self, buffer: Running, tail: u64) -> Result<(), EnableError> {
        let polled = self
            .vendor
            .hardware
            .poll(Register::CommandBufferHead, |head| {
                // There are units that are at the end where they are at the beginning.
                head % buffer.length() == tail
            });
        match polled {
            Ok(_) => Ok(()),
            Err(error) => Err(self.stopped_or(error)?.into()),
        }
    }

    fn await_closing(&mut self, done: PhysAddr) -> Result<(), EnableError> {
        let hardware = &mut self.vendor.hardware;
        hardware.clock.start(hardware.timeout);
        loop {
            let expired = hardware.clock.expired();
            if self.tables.load(done) == CLOSED {
                return Ok(());
            }
            if expired {
                break;
            }
        }
        // The wait stays in its slot: the unit may still fetch it, and must not find less.
        let last = hardware.read(Register::CommandBufferHead);
        let error = RegisterError::timeout(Register::CommandBufferHead, last);
        Err(self.stopped_or(error)?.into())
    }

    /// That the unit stopped at a command, where it did, else `error`.
    fn stopped_or(&mut self, error: RegisterError) -> Result<InvalidateError, RegisterError> {
        let status = self.vendor.hardware.status()?;
        Ok(if status.contains(Status::COMMAND_BUFFER_RUN) {
            InvalidateError::Register(error)
        } else {
            InvalidateError::Refused {
                register: Register::Status.into(),
                value: status.bits(),
            }
        })
    }
}

/// What the closing wait writes.
const CLOSED: u64 = 1;
