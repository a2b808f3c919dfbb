//! The command buffer (section 2.4).

use handoff_abi::PhysAddr;

use super::hardware::Hardware;
use super::spec::{Command, Control, Register, RingBase, Status};
use crate::tables::{Tables, offset};
use crate::{Deadline, InvalidateError, RegisterError, RegisterIo, TableMemory};

/// How a look at commands under way ended.
enum Progress {
    Done,
    Stopped(Status),
}

/// The ring of commands, and a frame into which waits write their sequence numbers.
///
/// The unit's head pointer is not used: it tells what was fetched, not what was done, and not every
/// unit has it right. What the ring has room for is known from the waits alone.
#[derive(Clone, Debug)]
pub(super) struct CommandBuffer {
    ring: PhysAddr,
    status: PhysAddr,
    /// The next slot to write.
    tail: u32,
    /// How many slots before it the unit may not have passed.
    under_way: u32,
    /// The number of the wait written last.
    sequence: u64,
    /// Waits up to this number prove nothing: the unit stopped at a command before one of them.
    poisoned: Option<u64>,
}

impl CommandBuffer {
    /// How often a batch is given to the unit before it counts as refused.
    const ATTEMPTS: u32 = 3;
    /// How many looks at the status word there are for each look at the register, which is slow.
    const LOOKS: u32 = 1024;

    /// A buffer that the unit is to be given, with nothing in it.
    pub(super) const fn new(ring: PhysAddr, status: PhysAddr) -> Self {
        Self {
            ring,
            status,
            tail: 0,
            under_way: 0,
            sequence: 0,
            poisoned: None,
        }
    }

    /// The buffer that the unit runs, all of which it has fetched, with its tail at `tail`.
    pub(super) const fn running(ring: PhysAddr, status: PhysAddr, tail: u32) -> Self {
        let mut buffer = Self::new(ring, status);
        buffer.tail = tail;
        buffer
    }

    pub(super) const fn ring(&self) -> PhysAddr {
        self.ring
    }

    pub(super) const fn status(&self) -> PhysAddr {
        self.status
    }

    /// Where the wait writes that closes a buffer before it is switched off. The next steward's
    /// status begins at 128.
    pub(super) const fn closed(&self) -> PhysAddr {
        offset(self.status, 64)
    }

    pub(super) const fn base(&self) -> RingBase {
        RingBase::new(self.ring)
    }

    pub(super) const fn tail(&self) -> u32 {
        self.tail
    }

    pub(super) const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The number the next wait will have. A batch with this number or a later one is submitted
    /// after every store made until now.
    pub(super) const fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }

    /// Gives the unit the ring, empty. The unit must not be fetching. Sequence numbers go on, so
    /// that one that is waited for is never reached by mistake; but no wait under way counts.
    pub(super) fn give<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
    ) {
        tables.store_and_publish(self.status, self.sequence);
        hardware.write(Register::CommandBufferBase, self.base().0);
        self.rewind(hardware);
    }

    fn rewind<R: RegisterIo, C: Deadline>(&mut self, hardware: &mut Hardware<R, C>) {
        self.poisoned = Some(self.sequence);
        self.tail = 0;
        self.under_way = 0;
        hardware.write(Register::CommandBufferHead, 0);
        hardware.write(Register::CommandBufferTail, 0);
    }

    /// How many slots are free. One stays empty: with head equal to tail the ring is empty.
    const fn free(&self) -> u32 {
        RingBase::ENTRIES - 1 - self.under_way
    }

    fn write<M: TableMemory>(&mut self, tables: &mut Tables<M>, command: Command) {
        let at = offset(self.ring, RingBase::pointer(self.tail));
        tables.store(offset(at, 8), command.high);
        tables.store(at, command.low);
        tables.publish(at, RingBase::ENTRY);
        self.tail = (self.tail + 1) % RingBase::ENTRIES;
        self.under_way += 1;
    }

    /// Closes what was written with a wait and tells the unit.
    fn ring_with_wait<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
    ) {
        self.sequence += 1;
        let wait = Command::completion_wait(self.status, self.sequence);
        self.write(tables, wait);
        hardware.write(Register::CommandBufferTail, RingBase::pointer(self.tail));
    }

    /// Puts a batch and its wait into the buffer, with one write to its tail if they fit. A longer
    /// batch goes in parts, each of which is waited for before the next.
    pub(super) fn submit<R: RegisterIo, M: TableMemory, C: Deadline, I>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        batch: impl Fn() -> I,
    ) -> Result<u64, InvalidateError>
    where
        I: Iterator<Item = Command>,
    {
        let mut refused = Status::empty();
        for _ in 0..Self::ATTEMPTS {
            match self.submit_once(hardware, tables, batch())? {
                Progress::Done => return Ok(self.sequence),
                Progress::Stopped(status) => {
                    refused = status;
                    self.recover(hardware)?;
                }
            }
        }
        Err(InvalidateError::Refused {
            register: Register::Status.into(),
            value: refused.bits(),
        })
    }

    fn submit_once<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        batch: impl Iterator<Item = Command>,
    ) -> Result<Progress, RegisterError> {
        for command in batch {
            // One slot more, for the wait.
            let room = self.make_room(hardware, tables, 2)?;
            if matches!(room, Progress::Stopped(_)) {
                return Ok(room);
            }
            self.write(tables, command);
        }
        let room = self.make_room(hardware, tables, 1)?;
        if matches!(room, Progress::Done) {
            self.ring_with_wait(hardware, tables);
        }
        Ok(room)
    }

    /// Waits until `slots` are free, where fewer are.
    fn make_room<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        slots: u32,
    ) -> Result<Progress, RegisterError> {
        if self.free() >= slots {
            return Ok(Progress::Done);
        }
        // Where none is free the last is a wait that was not done in time; it is looked for again.
        if self.free() > 0 {
            self.ring_with_wait(hardware, tables);
        }
        self.look(hardware, tables, self.sequence)
    }

    /// Waits until the wait with this number, and with it its batch, is done. Where the unit
    /// stopped at an error, the buffer is made to run again and `batch` is submitted once more: to
    /// invalidate twice does no harm, to take an invalidation for done does.
    pub(super) fn wait<R: RegisterIo, M: TableMemory, C: Deadline, I>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        mut sequence: u64,
        batch: impl Fn() -> I,
    ) -> Result<u64, InvalidateError>
    where
        I: Iterator<Item = Command>,
    {
        let mut refused = Status::empty();
        for _ in 0..Self::ATTEMPTS {
            if self.poisoned.is_some_and(|last| sequence <= last) {
                sequence = self.submit(hardware, tables, &batch)?;
            }
            match self.look(hardware, tables, sequence)? {
                Progress::Done => return Ok(sequence),
                Progress::Stopped(status) => {
                    refused = status;
                    self.recover(hardware)?;
                }
            }
        }
        Err(InvalidateError::Refused {
            register: Register::Status.into(),
            value: refused.bits(),
        })
    }

    fn look<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &Tables<M>,
        sequence: u64,
    ) -> Result<Progress, RegisterError> {
        hardware.clock.start(hardware.timeout);
        let mut looks = 0_u32;
        loop {
            let expired = looks != 0 && hardware.clock.expired();
            let seen = tables.load(self.status);
            if seen >= sequence {
                if seen == self.sequence {
                    self.under_way = 0;
                }
                return Ok(Progress::Done);
            }
            looks = looks.wrapping_add(1);
            if expired || looks.is_multiple_of(Self::LOOKS) {
                let status = hardware.status()?;
                if !status.contains(Status::COMMAND_BUFFER_RUN) {
                    return Ok(Progress::Stopped(status));
                }
            }
            if expired {
                return Err(RegisterError::timeout(
                    Register::CommandBufferHead,
                    hardware.read(Register::CommandBufferHead),
                ));
            }
        }
    }

    /// Makes the unit fetch again after an error (section 2.4): the buffer is switched off and on
    /// with an empty ring. No wait that is under way counts any more. `None` where the unit has
    /// not stopped.
    pub(super) fn recover<R: RegisterIo, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
    ) -> Result<Option<Status>, RegisterError> {
        let status = hardware.status()?;
        let run = Status::COMMAND_BUFFER_RUN;
        if status.contains(run) {
            return Ok(None);
        }
        hardware.switch(Control::COMMAND_BUFFER, run, false)?;
        self.rewind(hardware);
        hardware.switch(Control::COMMAND_BUFFER, run, true)?;
        Ok(Some(status))
    }
}
