//! What the next steward of a unit must know.

pub use handoff_abi::{AmdViState as State, VtdDomain as DomainState};

use super::spec::DeviceTableBase;
use super::unit::Unit;
use crate::domain::MAX_DOMAINS;
use crate::{Deadline, RegisterError, RegisterIo, TableMemory};

const _: () = assert!(State::MAX_DOMAINS == MAX_DOMAINS);

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Writes down what the next steward needs. Nothing must be changed or submitted between this
    /// and the moment the stewardship passes; what is pending should be flushed before.
    ///
    /// # Errors
    /// Where the unit is gone.
    pub fn record(&mut self) -> Result<State, RegisterError> {
        // The next steward compares the register with the record, and takes the tables for those in
        // force.
        self.settle_exchange()?;
        let (domains, domain_count) = self.domains.recorded();
        Ok(State {
            register_base: self.window.base().0,
            register_length: self.window.length(),
            extended_feature: self.vendor.capabilities.features.bits(),
            control: self.vendor.hardware.control()?.bits(),
            device_table_base: DeviceTableBase::full(self.top).0,
            command_buffer_base: self.vendor.commands.base().0,
            event_log_base: self.vendor.events.base().0,
            status_address: self.vendor.commands.status().0,
            arena_base: self.arena.range().base().0,
            arena_length: self.arena.range().length(),
            sequence: self.vendor.commands.sequence(),
            capability_header: self.vendor.capabilities.header.bits(),
            ivhd_flags: self.vendor.config.ivhd_flags.into(),
            command_tail: self.vendor.commands.tail(),
            levels: self.vendor.levels,
            host_address_bits: self.vendor.config.host_address_bits.into(),
            domain_count,
            domains,
        })
    }
}
