//! Moving many devices by exchanging the device table.

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, RequesterId};
use heapless::Vec;

use super::spec::{DeviceEntry, DeviceTableBase, Register};
use super::unit::{Phase, Unit};
use crate::domain::MAX_DOMAINS;
use crate::moving::Switched;
use crate::tables::offset;
use crate::{
    AttachError, Deadline, InvalidateError, MoveError, MoveMethod, Moving, Pending, PreparedMove,
    RegisterIo, SELECTIVE_LIMIT, Submitted, TableMemory,
};

/// A device table that is not in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spare {
    table: PhysAddr,
    /// Whether the unit has nothing of it in its caches.
    pub(super) forgotten: bool,
    /// The generation of the table in force that it was made from.
    made_from: Option<u64>,
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Prepares a move of devices, so that little is left to do when it is made. How it will be
    /// made depends on how many devices there are:
    /// * up to [`SELECTIVE_LIMIT`]: as [`start_move`](Self::start_move) does, one by one;
    /// * above, where the arena has 2 MiB to spare and the unit has INVALIDATE_IOMMU_ALL: a second
    ///   device table is written now, and the move exchanges one for the other by one register. It
    ///   costs two register writes, two commands and one wait, however many devices there are;
    /// * else as [`start_move`](Self::start_move) does.
    ///
    /// In a switch no device is blocked in between: until the wait is over a request is answered
    /// by the old table or the new one. The devices must be quiet: bus mastering off, nothing under
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
        let root = self.root_of(to)?;
        let at_once = self.capabilities.invalidates_all();
        let mut counts = Vec::new();
        let method = if devices.len() <= SELECTIVE_LIMIT || !at_once {
            MoveMethod::Selective
        } else if self.phase == Phase::InUse
            && let Some(table) = self.spare_table()
        {
            // A move that was prepared before loses its table.
            self.entry_changed();
            self.fill(table, devices, to.zip(root));
            counts = self.count_in(table);
            self.spare = Some(Spare {
                table,
                forgotten: true,
                made_from: Some(self.generation),
            });
            MoveMethod::Switch
        } else {
            MoveMethod::Global
        };
        Ok(PreparedMove {
            devices,
            to,
            method,
            generation: self.generation,
            counts,
        })
    }

    /// A table that can be written without the unit noticing.
    fn spare_table(&mut self) -> Option<PhysAddr> {
        if let Some(spare) = self.spare {
            return spare.forgotten.then_some(spare.table);
        }
        let table = self.arena.take_run(DeviceTableBase::FRAMES as usize)?;
        super::unit::deny_all(&mut self.tables, table);
        Some(table)
    }

    /// Writes into `table` what the table in force has, but for `devices`, which go to the domain
    /// `to` with its root. Buses that never had a device deny in both.
    fn fill(&mut self, table: PhysAddr, devices: &[RequesterId], to: Option<(DomainId, PhysAddr)>) {
        for &requester in devices {
            self.buses.mark(requester);
        }
        for requester in self.buses.devices() {
            let entry = self.entry(requester);
            self.put(table, requester, entry);
        }
        for &requester in devices {
            let mut entry = self.entry(requester);
            let [memory, tags, interrupts, _] = &mut entry.0;
            match to {
                Some((domain, root)) => {
                    *memory = DeviceEntry::memory(root, self.levels);
                    *tags = domain.0.into();
                    *interrupts &= !DeviceEntry::IGNORE_INTERRUPTS;
                }
                None => {
                    *memory = DeviceEntry::NO_MEMORY;
                    *tags &= DeviceEntry::SUPPRESS_PAGE_FAULTS;
                }
            }
            self.put(table, requester, entry);
        }
        let length = DeviceTableBase::FRAMES * FRAME_SIZE;
        self.tables.publish(table, length);
    }

    fn put(&mut self, table: PhysAddr, requester: RequesterId, entry: DeviceEntry) {
        let at = offset(table, u64::from(requester.0) * DeviceEntry::SIZE);
        for (word, value) in (0..).step_by(8).zip(entry.0) {
            self.tables.store(offset(at, word), value);
        }
    }

    /// How many entries of a table name each domain.
    fn count_in(&self, table: PhysAddr) -> Vec<u32, MAX_DOMAINS> {
        let mut counts: Vec<u32, MAX_DOMAINS> = self.domains.iter().map(|_| 0).collect();
        for requester in self.buses.devices() {
            let at = offset(table, u64::from(requester.0) * DeviceEntry::SIZE);
            let id = self.load_entry(at).domain();
            let place = self.domains.iter().position(|domain| domain.id == id);
            if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
                *count += 1;
            }
        }
        counts
    }

    /// Notes that an entry of the table in force changed, so that a prepared one is out of date.
    pub(super) const fn entry_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Where a device's entry lies in a table that is prepared, and would be put into force.
    pub(super) fn prepared_slot(&self, requester: RequesterId) -> Option<PhysAddr> {
        let spare = self.spare?;
        (spare.made_from == Some(self.generation))
            .then(|| offset(spare.table, u64::from(requester.0) * DeviceEntry::SIZE))
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
        let current = Some(generation) == self.spare.and_then(|spare| spare.made_from)
            && generation == self.generation;
        let Some(spare) = self
            .spare
            .filter(|_| current && method == MoveMethod::Switch)
        else {
            return self.start_move(devices, to, with);
        };
        let base = DeviceTableBase::full(spare.table);
        self.hardware.write(Register::DeviceTableBase, base.0);
        self.spare = Some(Spare {
            table: self.device_table,
            forgotten: false,
            made_from: None,
        });
        self.device_table = spare.table;
        self.entry_changed();
        self.installs = self.installs.wrapping_add(1);
        if let Some(domain) = to.and_then(|to| self.domains.get_mut(to)) {
            domain.attached = domain.attached.saturating_add(devices.len() as u32);
        }
        let switched = Switched {
            generation: self.generation,
            counts,
        };
        let pending = with.merge(Pending::all_caches(self.window.base()));
        match self.submit(pending) {
            Ok(submitted) => Ok(Moving {
                devices,
                to,
                method: MoveMethod::Switch,
                submitted,
                switched: Some(switched),
            }),
            Err(error) => Err(self.stop_switch(devices, error)),
        }
    }

    /// The end of a switch: waits until the table before is forgotten.
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

    /// Notes that the unit has nothing of a table that was in force before.
    pub(super) const fn switch_proved(&mut self) {
        if let Some(spare) = &mut self.spare {
            spare.forgotten = true;
        }
    }

    /// Whether the unit may have something of a table that was in force before.
    pub(super) fn switch_under_way(&self) -> bool {
        self.spare.is_some_and(|spare| !spare.forgotten)
    }

    /// Blocks the devices of a switch that was not proved done. The domains they came from stay in
    /// use until everything is invalidated.
    fn stop_switch(&mut self, devices: &[RequesterId], error: InvalidateError) -> MoveError {
        for &requester in devices {
            self.retire_device(requester);
        }
        MoveError::Invalidate(error)
    }

    /// Counts the devices of every domain anew, when nothing is cached that no entry names.
    pub(super) fn recount_attached(&mut self) {
        let counts = self.count_in(self.device_table);
        for (domain, count) in self.domains.iter_mut().zip(counts) {
            domain.attached = count;
        }
    }
}
