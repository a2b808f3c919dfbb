//! The invalidation queue (section 6.5.2).

use handoff_abi::{FRAME_SIZE, PhysAddr};

use super::hardware::Hardware;
use super::spec::{Descriptor, FaultStatus, QueueAddress, Register};
use crate::tables::{Tables, offset};
use crate::{Deadline, InvalidateError, RegisterError, RegisterIo, TableMemory};

/// Whether a wait that wrote `seen` has the number `wanted` or a later one. A wait writes the lower
/// half of its number.
const fn reached(seen: u32, wanted: u64) -> bool {
    seen.wrapping_sub(wanted as u32) < 1 << 31
}

/// How a look at a batch under way ended.
enum Progress {
    Done,
    Stopped(FaultStatus),
}

/// A queue of one frame, and a second frame into which waits write their sequence numbers.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    frame: PhysAddr,
    status: PhysAddr,
    /// The next slot to write.
    tail: u32,
    /// A slot that the unit is known to have passed.
    head: u32,
    /// The number of the wait written last.
    sequence: u64,
    /// Waits up to this number prove nothing: the unit stopped at a descriptor before one of them.
    poisoned: Option<u64>,
}

impl Queue {
    const SLOTS: u32 = (FRAME_SIZE / Descriptor::SIZE) as u32;
    /// Where a wait writes that replaces a descriptor the unit stopped at.
    const SCRATCH: u64 = 64;
    /// Where the wait writes that closes a queue before it is switched off. The next steward's status
    /// begins at 128.
    const CLOSED: u64 = 96;
    /// How often a batch is given to the unit before it counts as refused.
    const ATTEMPTS: u32 = 3;
    /// How many looks at the status word there are for each look at FSTS, which is slow.
    const LOOKS: u32 = 1024;

    /// A queue that the unit is to be given, with nothing in it.
    pub(super) const fn new(frame: PhysAddr, status: PhysAddr) -> Self {
        Self {
            frame,
            status,
            tail: 0,
            head: 0,
            sequence: 0,
            poisoned: None,
        }
    }

    /// Begins anew with an empty ring. Sequence numbers go on, so that one that is waited for is
    /// never reached by mistake. Returns what the status word is to hold.
    pub(super) const fn restart(&mut self) -> u32 {
        self.tail = 0;
        self.head = 0;
        self.poisoned = None;
        self.sequence as u32
    }

    /// The queue that the unit runs, all of which it has executed, with its tail at `tail`.
    /// `sequence` is the number of the last wait.
    pub(super) const fn running(
        frame: PhysAddr,
        status: PhysAddr,
        tail: u32,
        sequence: u32,
    ) -> Self {
        Self {
            frame,
            status,
            tail,
            head: tail,
            sequence: sequence as u64,
            poisoned: None,
        }
    }

    pub(super) const fn frame(&self) -> PhysAddr {
        self.frame
    }

    pub(super) const fn status(&self) -> PhysAddr {
        self.status
    }

    /// Where the wait writes that closes a queue before it is switched off.
    pub(super) const fn closed(&self) -> PhysAddr {
        offset(self.status, Self::CLOSED)
    }

    pub(super) const fn address(&self) -> QueueAddress {
        QueueAddress::one_frame(self.frame)
    }

    pub(super) const fn tail(&self) -> u32 {
        self.tail
    }

    /// What the wait that was written last writes.
    pub(super) const fn sequence(&self) -> u32 {
        self.sequence as u32
    }

    /// The number the next wait will have. A batch with this number or a later one is submitted
    /// after every store made until now.
    pub(super) const fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }

    /// The slot that an IQH or IQT value names; `None` where it is none of this queue.
    pub(super) fn slot(value: u64) -> Option<u32> {
        let slot = u32::try_from(value / Descriptor::SIZE).ok()?;
        (value.is_multiple_of(Descriptor::SIZE) && slot < Self::SLOTS).then_some(slot)
    }

    const fn free(&self) -> u32 {
        // One slot stays empty: with head equal to tail the queue is empty, not full.
        Self::SLOTS - 1 - (self.tail + Self::SLOTS - self.head) % Self::SLOTS
    }

    fn write<M: TableMemory>(&mut self, tables: &mut Tables<M>, descriptor: Descriptor) {
        let at = offset(self.frame, u64::from(self.tail) * Descriptor::SIZE);
        tables.store(offset(at, 8), descriptor.high);
        tables.store(at, descriptor.low);
        tables.publish(at, Descriptor::SIZE);
        self.tail = (self.tail + 1) % Self::SLOTS;
    }

    /// Puts a batch and its wait into the queue, with one write to IQT. `count` is no less than
    /// the number of descriptors.
    pub(super) fn submit<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        batch: impl Iterator<Item = Descriptor>,
        count: usize,
    ) -> Result<u64, InvalidateError> {
        let needed = u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
        if self.free() < needed {
            self.make_room(hardware, tables, needed)?;
        }
        for descriptor in batch {
            self.write(tables, descriptor);
        }
        self.sequence = self.next_sequence();
        let status = self.status;
        self.write(tables, Descriptor::wait(status, self.sequence as u32));
        self.ring(hardware);
        Ok(self.sequence)
    }

    fn ring<R: RegisterIo, C: Deadline>(&self, hardware: &mut Hardware<R, C>) {
        hardware.write64(
            Register::InvalidationQueueTail,
            u64::from(self.tail) * Descriptor::SIZE,
        );
    }

    fn make_room<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        needed: u32,
    ) -> Result<(), InvalidateError> {
        let mut attempts = Self::ATTEMPTS;
        loop {
            let tail = self.tail;
            let room = |head: u32| Self::SLOTS - 1 - (tail + Self::SLOTS - head) % Self::SLOTS;
            let result = hardware.poll64(Register::InvalidationQueueHead, |head| {
                Self::slot(head).is_some_and(|head| room(head) >= needed)
            });
            match result {
                Ok(head) => {
                    self.head = Self::slot(head).unwrap_or(self.head);
                    return Ok(());
                }
                Err(error) => {
                    attempts -= 1;
                    if attempts == 0 || self.recover(hardware, tables)?.is_none() {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Waits until the wait with this number, and with it its batch, is done. Where the unit
    /// stopped at an error, the queue is made to run again and `batch` is submitted once more: to
    /// invalidate twice does no harm, to take an invalidation for done does.
    pub(super) fn wait<R: RegisterIo, M: TableMemory, C: Deadline, I>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        mut sequence: u64,
        batch: impl Fn() -> I,
        count: usize,
    ) -> Result<u64, InvalidateError>
    where
        I: Iterator<Item = Descriptor>,
    {
        let mut refused = FaultStatus::empty();
        for _ in 0..Self::ATTEMPTS {
            if self.poisoned.is_some_and(|last| sequence <= last) {
                sequence = self.submit(hardware, tables, batch(), count)?;
            }
            match self.look(hardware, tables, sequence)? {
                Progress::Done => return Ok(sequence),
                Progress::Stopped(status) => {
                    refused = status;
                    self.recover(hardware, tables)?;
                }
            }
        }
        Err(InvalidateError::Refused {
            register: Register::FaultStatus.into(),
            value: refused.bits().into(),
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
            // The wait writes 4 bytes; the other half of the word stays as it was.
            let status = tables.load(self.status) as u32;
            if reached(status, sequence) {
                return Ok(Progress::Done);
            }
            looks = looks.wrapping_add(1);
            if expired || looks.is_multiple_of(Self::LOOKS) {
                let status = match hardware.read32(Register::FaultStatus) {
                    u32::MAX => {
                        return Err(RegisterError::gone(Register::FaultStatus));
                    }
                    bits => FaultStatus::from_bits_retain(bits),
                };
                if status.intersects(FaultStatus::QUEUE_ERRORS) {
                    return Ok(Progress::Stopped(status));
                }
            }
            if expired {
                return Err(RegisterError::timeout(
                    Register::InvalidationQueueHead,
                    hardware.read64(Register::InvalidationQueueHead),
                ));
            }
        }
    }

    /// Waits until the unit has fetched everything up to `tail`, over errors that are there already
    /// and those that come on the way.
    pub(super) fn run_out<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        tail: u64,
    ) -> Result<(), RegisterError> {
        self.recover(hardware, tables)?;
        let mut attempts = Self::ATTEMPTS;
        loop {
            let polled = hardware.poll64(Register::InvalidationQueueHead, |head| head == tail);
            let Err(error) = polled else { return Ok(()) };
            attempts -= 1;
            if self.recover(hardware, tables)?.is_none() || attempts == 0 {
                return Err(error);
            }
        }
    }

    /// Makes the unit go on after an error. A descriptor it stopped at (IQE) is replaced by a wait
    /// that writes to a place nobody reads. No wait that is under way counts any more. `None`
    /// where the unit reports no error.
    pub(super) fn recover<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
    ) -> Result<Option<FaultStatus>, RegisterError> {
        let status = FaultStatus::from_bits_retain(hardware.read32(Register::FaultStatus));
        if status.bits() == u32::MAX {
            return Err(RegisterError::gone(Register::FaultStatus));
        }
        let errors = status & FaultStatus::QUEUE_ERRORS;
        if errors.is_empty() {
            return Ok(None);
        }
        self.poisoned = Some(self.sequence);
        if errors.contains(FaultStatus::IQE) {
            let head = hardware.read64(Register::InvalidationQueueHead);
            if let Some(slot) = Self::slot(head) {
                let at = offset(self.frame, u64::from(slot) * Descriptor::SIZE);
                let idle = Descriptor::wait(offset(self.status, Self::SCRATCH), 0);
                tables.store(at, idle.low);
                tables.store(offset(at, 8), idle.high);
                tables.publish(at, Descriptor::SIZE);
            }
        }
        hardware.write32(Register::FaultStatus, errors.bits());
        // Not every unit fetches again when the bit is cleared.
        self.ring(hardware);
        Ok(Some(errors))
    }
}
