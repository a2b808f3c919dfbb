//! Batches of invalidations, and what is done when one is.

use handoff_abi::RequesterId;

use super::{Driver, Phase, Vendor};
use crate::{InvalidateError, Pending, Submitted, TableMemory};

impl<V: Vendor, M: TableMemory> Driver<V, M> {
    /// Gives a batch of changes to the unit, with one write to its queue's tail. The batches of
    /// several units can be submitted before any is waited for, so that the waits overlap.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn submit(&mut self, pending: Pending) -> Result<Submitted, InvalidateError> {
        self.submit_with(pending, &[])
    }

    /// As [`submit`](Self::submit), with device entries that changed besides.
    pub(super) fn submit_with(
        &mut self,
        pending: Pending,
        more: &[RequesterId],
    ) -> Result<Submitted, InvalidateError> {
        let foreign = pending.unit.is_some_and(|unit| unit != self.window.base());
        if foreign || pending.mixed {
            return Err(InvalidateError::ForeignUnit);
        }
        let sequence = match self.phase {
            Phase::Prepared => {
                // The unit has never seen these tables.
                self.complete(&pending, self.vendor.next_sequence(), self.installs)?;
                None
            }
            Phase::InUse => {
                self.settle_exchange()?;
                V::submit(self, &pending, more)?
            }
        };
        Ok(Submitted {
            pending,
            sequence,
            installs: self.installs,
        })
    }

    /// Waits until a batch is done. Then what it retired is free: blocked devices can be attached
    /// anew, cleared interrupt entries and unlinked tables are used again.
    ///
    /// # Errors
    /// See [`InvalidateError`]. What was to be retired stays as it is, blocked and not reusable,
    /// until [`invalidate_everything`](Self::invalidate_everything) succeeds.
    pub fn wait(&mut self, submitted: Submitted) -> Result<(), InvalidateError> {
        self.wait_proved(submitted, &[]).map(|_| ())
    }

    /// As [`wait`](Self::wait). Returns the number of the wait that was done, if there was one.
    pub(super) fn wait_proved(
        &mut self,
        submitted: Submitted,
        more: &[RequesterId],
    ) -> Result<Option<u64>, InvalidateError> {
        let Submitted {
            pending,
            sequence,
            installs,
        } = submitted;
        let Some(sequence) = sequence else {
            return Ok(None);
        };
        let proved = V::await_batch(self, sequence, &pending, more)?;
        self.complete(&pending, proved, installs)?;
        Ok(Some(proved))
    }

    /// [`submit`](Self::submit) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn flush(&mut self, pending: Pending) -> Result<(), InvalidateError> {
        let submitted = self.submit(pending)?;
        self.wait(submitted)
    }

    /// Invalidates every cache of the unit and finishes every retirement that was begun, also
    /// those whose [`Pending`] was lost or whose wait failed.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn invalidate_everything(&mut self) -> Result<(), InvalidateError> {
        // Nothing can be retired while this runs, so it proves all that was retired before.
        let retired = self.last_retirement.take();
        let result = self.flush(Pending::everything(self.window.base()));
        if result.is_err() {
            self.last_retirement = retired;
        } else if self.switch_under_way() {
            self.switch_proved();
            self.recount_attached();
        }
        result
    }

    /// What follows a batch that is done: `proved` is the number of its wait, `installs` the count
    /// when it was submitted.
    fn complete(
        &mut self,
        pending: &Pending,
        proved: u64,
        installs: u32,
    ) -> Result<(), InvalidateError> {
        // A batch proves nothing about an entry that was retired after it was submitted. One that
        // it names can only be such if it was put into force again in between; one that is looked
        // for afterwards, if anything was retired since.
        let looked_for = pending.sweep
            || V::INTERRUPTS_BY_DEVICE && pending.interrupts().iter().any(|change| change.retire);
        let doubtful = looked_for || pending.retires() && self.installs != installs;
        if doubtful && !self.all_retired_before(proved) {
            return self.invalidate_everything();
        }
        if pending.sweep {
            for requester in V::devices(self, self.top) {
                self.empty_retired(requester, None);
            }
            V::empty_interrupts(self);
        }
        for &change in pending.devices() {
            if change.retire {
                self.empty_retired(change.requester, Some(change.domain));
            }
        }
        for &change in pending.interrupts() {
            if change.retire {
                V::empty_interrupt(self, change.source, change.index);
            }
        }
        V::release(self, pending, proved);
        for domain in self.domains.iter_mut() {
            if pending.covers_domain(domain.id) {
                domain
                    .retired
                    .release(&mut self.tables, &mut self.arena, |tag| tag <= proved);
            }
        }
        Ok(())
    }

    /// Whether every retirement there was began before the batch with this number was submitted.
    pub(super) fn all_retired_before(&self, proved: u64) -> bool {
        self.last_retirement.is_none_or(|retired| retired <= proved)
    }

    pub(crate) fn retirement_begun(&mut self) {
        self.last_retirement = Some(self.vendor.next_sequence());
    }

    /// Notes that an entry was put into force.
    pub(crate) const fn installed(&mut self) {
        self.installs = self.installs.wrapping_add(1);
    }
}
