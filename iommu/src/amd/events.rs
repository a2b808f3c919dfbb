//! The event log (section 2.5).

use handoff_abi::PhysAddr;

use super::hardware::Hardware;
use super::probe::Capabilities;
use super::spec::{Control, Event, EventKind, Register, RingBase, Status};
use super::unit::Unit;
use crate::tables::{Tables, offset};
use crate::{Deadline, Fault, FaultCount, InvalidateError, RegisterError, RegisterIo, TableMemory};

/// The ring into which the unit writes events.
#[derive(Clone, Debug)]
pub(super) struct EventLog {
    ring: PhysAddr,
    /// The next slot to read.
    head: u32,
}

impl EventLog {
    /// A log of zeros that the unit is to be given.
    pub(super) const fn new(ring: PhysAddr) -> Self {
        Self { ring, head: 0 }
    }

    /// The log that the unit runs, read up to `head`.
    pub(super) const fn running(ring: PhysAddr, head: u32) -> Self {
        Self { ring, head }
    }

    pub(super) const fn ring(&self) -> PhysAddr {
        self.ring
    }

    pub(super) const fn base(&self) -> RingBase {
        RingBase::new(self.ring)
    }

    const fn slot(&self) -> PhysAddr {
        offset(self.ring, RingBase::pointer(self.head))
    }

    /// Gives the unit the log, empty. The unit must not be logging.
    pub(super) fn give<R: RegisterIo, M: TableMemory, C: Deadline>(
        &mut self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
    ) {
        for slot in 0..RingBase::ENTRIES {
            self.head = slot;
            self.clear(tables);
        }
        self.head = 0;
        hardware.write(Register::EventLogBase, self.base().0);
        hardware.write(Register::EventLogHead, 0);
        hardware.write(Register::EventLogTail, 0);
        hardware.write(
            Register::Status,
            (Status::EVENT_OVERFLOW | Status::EVENT_INTERRUPT).bits(),
        );
    }

    /// The entry at the head is not to be taken for a new one when the ring comes round.
    fn clear<M: TableMemory>(&self, tables: &mut Tables<M>) {
        let at = self.slot();
        tables.store(at, 0);
        tables.store(offset(at, 8), 0);
        tables.publish(at, RingBase::ENTRY);
    }

    /// The entry at the head, which the tail pointer promises. The pointer may be ahead of the
    /// entry; `None` where it does not come, if `patient` within the time the unit has for
    /// anything.
    fn take<R: RegisterIo, M: TableMemory, C: Deadline>(
        &self,
        hardware: &mut Hardware<R, C>,
        tables: &mut Tables<M>,
        patient: bool,
    ) -> Option<Event> {
        hardware.clock.start(hardware.timeout);
        loop {
            let expired = !patient || hardware.clock.expired();
            // The code is in the low half. The entry is one write of 16 bytes, so where there is a
            // code there is the rest.
            let low = tables.load(self.slot());
            let high = tables.load(offset(self.slot(), 8));
            let event = Event { low, high };
            if event.code() != 0 {
                self.clear(tables);
                return Some(event);
            }
            if expired {
                return None;
            }
        }
    }
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Hands every logged fault to `each`, oldest first, and makes room for new ones.
    ///
    /// At most as many events are taken as the log has entries, so that a device that makes faults
    /// without end cannot keep the caller here. Then, or where an entry did not come in time,
    /// [`FaultCount::more`] says so. A log that overflowed is started again. What a device does
    /// while the log is full is blocked as well, but counted nowhere.
    ///
    /// # Errors
    /// Where the unit is gone, or its log cannot be started again.
    pub fn drain_faults(
        &mut self,
        mut each: impl FnMut(Fault),
    ) -> Result<FaultCount, RegisterError> {
        let mut count = FaultCount::default();
        // Cleared before the tail is read: what comes later is announced again.
        self.vendor
            .hardware
            .write(Register::Status, Status::EVENT_INTERRUPT.bits());
        let limit = Capabilities::limit_of(self.vendor.levels);
        let overflowed = self
            .vendor
            .hardware
            .status()?
            .contains(Status::EVENT_OVERFLOW);
        let tail = self.event_tail()?;
        let mut patient = true;
        while self.vendor.events.head != tail {
            let event =
                self.vendor
                    .events
                    .take(&mut self.vendor.hardware, &mut self.tables, patient);
            if event.is_none() {
                if !overflowed {
                    count.more = true;
                    break;
                }
                // The log has stopped: what did not come until now never will.
                patient = false;
            }
            self.vendor.events.head = (self.vendor.events.head + 1) % RingBase::ENTRIES;
            if let Some(EventKind::Fault(fault)) = event.map(|event| event.decode(limit)) {
                each(fault);
                count.records += 1;
            }
        }
        self.vendor.hardware.write(
            Register::EventLogHead,
            RingBase::pointer(self.vendor.events.head),
        );
        if overflowed {
            count.overflowed = true;
            self.restart_log()?;
        }
        count.more |= self.event_tail()? != self.vendor.events.head;
        Ok(count)
    }

    fn event_tail(&mut self) -> Result<u32, RegisterError> {
        self.vendor
            .hardware
            .read_present(Register::EventLogTail)
            .map(RingBase::slot)
    }

    /// Makes the unit log again after an overflow, with an empty log (section 2.5.2).
    fn restart_log(&mut self) -> Result<(), RegisterError> {
        let run = Status::EVENT_LOG_RUN;
        self.vendor
            .hardware
            .switch(Control::EVENT_LOG, run, false)?;
        self.vendor
            .events
            .give(&mut self.vendor.hardware, &mut self.tables);
        self.vendor.hardware.switch(Control::EVENT_LOG, run, true)
    }

    /// Makes the command buffer run again where it stopped at an error, and invalidates everything
    /// then. Waits do this by themselves; it is for a fault handler that finds the error first.
    /// Returns whether there was an error.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn recover_queue(&mut self) -> Result<bool, InvalidateError> {
        let recovered = self
            .vendor
            .commands
            .recover(&mut self.vendor.hardware)?
            .is_some();
        if recovered {
            self.invalidate_everything()?;
        }
        Ok(recovered)
    }
}
