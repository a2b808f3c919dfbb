//! Switching off a queue that runs already: firmware's, an earlier kernel's, or this driver's own.

use handoff_abi::{FRAME_SIZE, PhysAddr};

use super::spec::{Descriptor, FaultStatus, GlobalStatus, QueueAddress, Register};
use super::unit::Unit;
use crate::driver::{Running, place};
use crate::{Deadline, EnableError, InvalidateError, RegisterError, RegisterIo, TableMemory};

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// The queue that the unit runs, if it runs one. Nothing is written.
    pub(super) fn running_queue(&mut self) -> Result<Option<Running>, EnableError> {
        if !self.vendor.hardware.status()?.contains(GlobalStatus::QIES) {
            return Ok(None);
        }
        let address = QueueAddress(
            self.vendor
                .hardware
                .read64(Register::InvalidationQueueAddress),
        );
        let tail = self.vendor.hardware.read64(Register::InvalidationQueueTail);
        let unusable = EnableError::QueueUnusable {
            address: address.0,
            tail,
        };
        let length = FRAME_SIZE << address.size();
        let own = address == self.vendor.queue.address();
        let limit = self.vendor.config.host_limit();
        let arena = self.arena.range();
        let running = Running::new(address.queue(), length, tail, own, arena, limit);
        match running.filter(|_| !address.wide()) {
            Some(running) => Ok(Some(running)),
            None => Err(unusable),
        }
    }

    /// Switches a running queue off behind a wait of this driver. `foreign` reaches its memory
    /// where it is somebody else's.
    ///
    /// A queue may be switched off only when it is empty and a wait was the last thing in it
    /// (section 6.5.2); there are units that otherwise go on for ever. That it is empty says that
    /// all was fetched; that the wait is done, that all is done.
    pub(super) fn close_queue<Q: TableMemory>(
        &mut self,
        queue: Running,
        mut foreign: Option<&mut Q>,
    ) -> Result<(), EnableError> {
        self.vendor
            .hardware
            .poll64(Register::InvalidationQueueHead, |head| head == queue.tail())?;
        // Whoever else's queue it is, the unit writes nowhere but into this unit's arena.
        let done = self.vendor.queue.closed();
        self.tables.store_and_publish(done, 0);
        let Descriptor { low, high } = Descriptor::wait(done, CLOSED);
        let wait = [low, high];
        let slot = queue.slot();
        let before = match foreign.as_deref_mut() {
            Some(memory) => place(memory, self.tables.coherent, slot.base(), wait),
            None => place(
                &mut self.tables.memory,
                self.tables.coherent,
                slot.base(),
                wait,
            ),
        };
        let Some(before) = before else {
            return Err(EnableError::QueueMemory(slot));
        };
        let tail = queue.next_tail();
        self.vendor
            .hardware
            .write64(Register::InvalidationQueueTail, tail);
        self.await_closing(done)?;
        self.vendor
            .hardware
            .poll64(Register::InvalidationQueueHead, |head| head == tail)?;
        if let Some(memory) = foreign {
            // The unit has passed the slot. What the memory is used for now, if it is no longer
            // a queue to anybody, finds it as it was.
            if place(memory, self.tables.coherent, slot.base(), before).is_none() {
                return Err(EnableError::QueueMemory(slot));
            }
        }
        self.vendor.hardware.switch(GlobalStatus::QIES, false)?;
        Ok(())
    }

    fn await_closing(&mut self, done: PhysAddr) -> Result<(), EnableError> {
        self.vendor
            .hardware
            .clock
            .start(self.vendor.hardware.timeout);
        loop {
            let expired = self.vendor.hardware.clock.expired();
            if self.tables.load(done) as u32 == CLOSED {
                return Ok(());
            }
            if expired {
                break;
            }
        }
        // The wait stays in its slot: the unit may still fetch it, and must not find less.
        let status = self.vendor.hardware.read32(Register::FaultStatus);
        let errors = FaultStatus::from_bits_retain(status);
        let error = if status == u32::MAX {
            InvalidateError::Register(RegisterError::gone(Register::FaultStatus))
        } else if errors.intersects(FaultStatus::QUEUE_ERRORS) {
            InvalidateError::Refused {
                register: Register::FaultStatus.into(),
                value: (errors & FaultStatus::QUEUE_ERRORS).bits().into(),
            }
        } else {
            InvalidateError::Register(RegisterError::timeout(
                Register::InvalidationQueueHead,
                self.vendor.hardware.read64(Register::InvalidationQueueHead),
            ))
        };
        Err(error.into())
    }
}

/// What the closing wait writes.
const CLOSED: u32 = 1;
