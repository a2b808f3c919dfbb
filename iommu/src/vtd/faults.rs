//! Taking fault records out of the unit (section 7.2.1).

use super::spec::{FaultRecord, FaultStatus, Register};
use super::unit::Unit;
use crate::{Deadline, Fault, FaultCount, InvalidateError, RegisterError, RegisterIo, TableMemory};

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Hands every recorded fault to `each`, oldest first, and makes room for new ones.
    ///
    /// A unit sends its fault message when its status goes from quiet to not quiet, so a drain goes
    /// on until the status is quiet; but at most as many faults are handed over as the unit has
    /// records, so that a device that makes faults without end cannot keep the caller here. Then
    /// [`FaultCount::more`] says so.
    ///
    /// A unit may record one fault of a device at a time: what the device does until it is drained
    /// is blocked as well, but counted nowhere.
    ///
    /// # Errors
    /// Where the unit is gone.
    pub fn drain_faults(
        &mut self,
        mut each: impl FnMut(Fault),
    ) -> Result<FaultCount, RegisterError> {
        let records = self.vendor.capabilities.capability.fault_records();
        let unquiet = FaultStatus::PPF | FaultStatus::PFO;
        let mut count = FaultCount::default();
        let mut next = None;
        // Some rounds find only that there were more faults than records.
        for _ in 0..records + 4 {
            let status = self.fault_status()?;
            if !status.intersects(unquiet) {
                return Ok(count);
            }
            if status.contains(FaultStatus::PPF) {
                if count.records == records {
                    break;
                }
                // The index is that of the fault that ended the quiet. What was recorded since
                // follows it, and may be all that is left.
                let first = next.unwrap_or(status.record_index()) % records;
                for record in (first..records).chain(0..first) {
                    if let Some(fault) = self.fault(record)? {
                        each(fault);
                        self.clear_fault_record(record);
                        count.records += 1;
                        next = Some(record + 1);
                        break;
                    }
                }
            }
            if status.contains(FaultStatus::PFO) {
                count.overflowed = true;
                self.vendor
                    .hardware
                    .write32(Register::FaultStatus, FaultStatus::PFO.bits());
            }
        }
        count.more = self.fault_status()?.intersects(unquiet);
        Ok(count)
    }

    /// The fault in a record; `None` where it has none.
    fn fault(&mut self, record: u32) -> Result<Option<Fault>, RegisterError> {
        let at = self.fault_record_offset(record);
        let high = self.vendor.hardware.registers.read64(at + 8);
        if high == u64::MAX {
            return Err(RegisterError::gone(Register::FaultStatus));
        }
        if !(FaultRecord { low: 0, high }).is_pending() {
            return Ok(None);
        }
        let low = self.vendor.hardware.registers.read64(at);
        Ok(Some(FaultRecord { low, high }.decode()))
    }

    fn fault_status(&mut self) -> Result<FaultStatus, RegisterError> {
        match self.vendor.hardware.read32(Register::FaultStatus) {
            u32::MAX => Err(RegisterError::gone(Register::FaultStatus)),
            bits => Ok(FaultStatus::from_bits_retain(bits)),
        }
    }

    /// Makes the invalidation queue run again where it stopped at an error, and invalidates
    /// everything then. Waits do this by themselves; it is for a fault handler that finds the
    /// error first. Returns whether there was an error.
    ///
    /// # Errors
    /// See [`InvalidateError`].
    pub fn recover_queue(&mut self) -> Result<bool, InvalidateError> {
        let recovered = self
            .vendor
            .queue
            .recover(&mut self.vendor.hardware, &mut self.tables)?
            .is_some();
        if recovered {
            self.invalidate_everything()?;
        }
        Ok(recovered)
    }
}
