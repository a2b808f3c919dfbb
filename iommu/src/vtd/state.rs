//! What the next steward of a unit must know.

pub use handoff_abi::{VtdDomain as DomainState, VtdUnit as State};

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
            capability: self.vendor.capabilities.capability.bits(),
            extended_capability: self.vendor.capabilities.extended.bits(),
            root_table_address: self.root_table_address().0,
            queue_address: self.vendor.queue.address().0,
            interrupt_table_address: self.vendor.interrupts.address().0,
            status_address: self.vendor.queue.status().0,
            arena_base: self.arena.range().base().0,
            arena_length: self.arena.range().length(),
            global_status: self.vendor.hardware.status()?.bits(),
            queue_tail: self.vendor.queue.tail(),
            sequence: self.vendor.queue.sequence(),
            levels: self.vendor.width.levels(),
            host_address_bits: self.vendor.config.host_address_bits.into(),
            domain_count,
            domains,
        })
    }
}
