//! Moving many devices by exchanging the tables that say which domain they are in.

use handoff_abi::{DomainId, PhysAddr, RequesterId};
use heapless::Vec;

use super::{DeviceState, Driver, Phase, Vendor};
use crate::moving::Switched;
use crate::{
    AttachError, InvalidateError, MAX_DOMAINS, MoveError, MoveMethod, Moving, Pending,
    PreparedMove, RegisterError, Submitted, TableMemory,
};

/// A top that is not in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spare {
    top: PhysAddr,
    /// Whether the unit has nothing of it in its caches.
    forgotten: bool,
    /// The generation of the tables in force that it was made from.
    made_from: Option<u64>,
    /// Whether the unit was told to use the tables in force, and did not say that it does.
    unsettled: bool,
}

impl<V: Vendor, M: TableMemory> Driver<V, M> {
    /// Prepares a move of devices, so that little is left to do when it is made. How it will be
    /// made depends on how many devices there are:
    /// * up to [`SELECTIVE_LIMIT`](crate::SELECTIVE_LIMIT): as [`start_move`](Self::start_move) does, one by one;
    /// * above, where the unit can invalidate all at once and the arena has room for a second root
    ///   table with a context table for each bus with devices (VT-d), or for a second device table
    ///   (AMD-Vi, 2 MiB): these are written now, and the move exchanges them for those in force. It
    ///   costs the same register accesses and commands and one wait, however many devices there are;
    /// * else as [`start_move`](Self::start_move) does.
    ///
    /// In a switch no device is blocked in between: until the wait is over a request is answered
    /// by the old tables or the new ones. The devices must be quiet: bus mastering off, nothing under
    /// way.
    ///
    /// Nothing in force is changed. Interrupts can be changed before the move is made; where a
    /// device is attached, blocked or silenced meanwhile, the move is made as if it had not been
    /// prepared.
    ///
    /// # Errors
    /// [`AttachError::UnknownDomain`].
    pub fn prepare_move<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
    ) -> Result<PreparedMove<'a>, AttachError> {
        let method = self.method_for(devices);
        self.prepare_by(devices, to, method == MoveMethod::Global)
    }

    /// As [`prepare_move`](Self::prepare_move), but the move will be a switch however few devices
    /// there are, where there is room for one.
    ///
    /// # Errors
    /// [`AttachError::UnknownDomain`].
    pub fn prepare_switch<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
    ) -> Result<PreparedMove<'a>, AttachError> {
        self.prepare_by(devices, to, self.vendor.invalidates_all())
    }

    fn prepare_by<'a>(
        &mut self,
        devices: &'a [RequesterId],
        to: Option<DomainId>,
        switch: bool,
    ) -> Result<PreparedMove<'a>, AttachError> {
        let root = self.root_of(to)?;
        let mut method = self.method_for(devices);
        let mut counts = Vec::new();
        if switch
            && self.phase == Phase::InUse
            && let Some(top) = self.spare_top()
        {
            // A move that was prepared before loses its tables.
            self.entry_changed();
            let filled = V::fill(self, top, devices, to.zip(root)).is_some();
            if filled {
                counts = self.count_in(top);
                method = MoveMethod::Switch;
            }
            self.spare = Some(Spare {
                top,
                forgotten: true,
                made_from: filled.then_some(self.generation),
                unsettled: false,
            });
        }
        Ok(PreparedMove {
            devices,
            to,
            method,
            generation: self.generation,
            counts,
        })
    }

    /// A top below which tables can be written without the unit noticing.
    fn spare_top(&mut self) -> Option<PhysAddr> {
        match self.spare {
            Some(spare) => spare.forgotten.then_some(spare.top),
            None => V::make_top(self),
        }
    }

    /// How many entries below a top name each domain.
    fn count_in(&self, top: PhysAddr) -> Vec<u32, MAX_DOMAINS> {
        let mut counts: Vec<u32, MAX_DOMAINS> = self.domains.iter().map(|_| 0).collect();
        for requester in V::devices(self, top) {
            let (DeviceState::Attached(id) | DeviceState::Retiring(id)) =
                V::device_state(self, top, requester)
            else {
                continue;
            };
            let place = self.domains.iter().position(|domain| domain.id == id);
            if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
                *count += 1;
            }
        }
        counts
    }

    /// Notes that an entry of the tables in force changed, so that prepared ones are out of date.
    pub(crate) const fn entry_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// The top that is prepared, and would be put into force.
    pub(crate) fn prepared_top(&self) -> Option<PhysAddr> {
        let spare = self.spare?;
        (spare.made_from == Some(self.generation)).then_some(spare.top)
    }

    /// Makes a move that was prepared: what [`start_move`](Self::start_move) does, in the way that
    /// was prepared. [`finish_move`](Self::finish_move) completes it, and says how it was made.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn start_prepared<'a>(
        &mut self,
        prepared: PreparedMove<'a>,
        with: Pending,
    ) -> Result<Moving<'a>, MoveError> {
        let PreparedMove {
            devices,
            to,
            method,
            generation,
            counts,
        } = prepared;
        // With nothing changed since, the other top is as it was made for this move.
        let current = generation == self.generation;
        let Some(spare) = self
            .spare
            .filter(|_| current && method == MoveMethod::Switch)
        else {
            return self.start_move(devices, to, with);
        };
        let old = core::mem::replace(&mut self.top, spare.top);
        self.spare = Some(Spare {
            top: old,
            forgotten: false,
            made_from: None,
            unsettled: true,
        });
        self.entry_changed();
        self.installed();
        if let Some(domain) = to.and_then(|to| self.domains.get_mut(to)) {
            domain.attached = domain.attached.saturating_add(devices.len() as u32);
        }
        let switched = Switched {
            generation: self.generation,
            counts,
        };
        let pending = with.merge(self.all_devices());
        let submitted = self
            .submit(pending)
            .map_err(|error| self.stop_switch(devices, error))?;
        Ok(Moving {
            devices,
            to,
            method: MoveMethod::Switch,
            submitted,
            switched: Some(switched),
        })
    }

    /// Tells the unit to use the tables in force, where it was not seen to.
    pub(crate) fn settle_exchange(&mut self) -> Result<(), RegisterError> {
        if self.spare.is_some_and(|spare| spare.unsettled) {
            V::exchange(self, self.top)?;
            if let Some(spare) = &mut self.spare {
                spare.unsettled = false;
            }
        }
        Ok(())
    }

    /// The end of a switch: waits until the tables before are forgotten.
    pub(super) fn finish_switch(
        &mut self,
        devices: &[RequesterId],
        submitted: Submitted,
        switched: &Switched,
    ) -> Result<(), MoveError> {
        if let Err(error) = self.wait(submitted) {
            return Err(self.stop_switch(devices, error));
        }
        if switched.generation == self.generation {
            for (domain, &count) in self.domains.iter_mut().zip(&switched.counts) {
                domain.attached = count;
            }
        } else {
            // A device was attached or blocked while the switch was under way.
            self.recount_attached();
        }
        self.switch_proved();
        Ok(())
    }

    /// Notes that the unit has nothing of the tables that were in force before.
    pub(super) const fn switch_proved(&mut self) {
        if let Some(spare) = &mut self.spare {
            spare.forgotten = true;
        }
    }

    /// Whether the unit may have something of tables that were in force before.
    pub(super) fn switch_under_way(&self) -> bool {
        self.spare.is_some_and(|spare| !spare.forgotten)
    }

    /// Blocks the devices of a switch that was not proved done, in the old tables too where the unit
    /// may be using them. The domains they came from stay in use until everything is invalidated.
    fn stop_switch(&mut self, devices: &[RequesterId], error: InvalidateError) -> MoveError {
        let unsettled = self.spare.filter(|spare| spare.unsettled);
        for top in [Some(self.top), unsettled.map(|spare| spare.top)]
            .into_iter()
            .flatten()
        {
            let new = core::mem::replace(&mut self.top, top);
            for &requester in devices {
                self.retire_device(requester);
            }
            self.top = new;
        }
        MoveError::Invalidate(error)
    }

    /// Counts the devices of every domain anew, when nothing is cached that no entry names.
    pub(super) fn recount_attached(&mut self) {
        let counts = self.count_in(self.top);
        for (domain, count) in self.domains.iter_mut().zip(counts) {
            domain.attached = count;
        }
    }
}
