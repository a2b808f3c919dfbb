//! What the next steward of a unit must know.

use handoff_abi::DomainId;
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
        let mut domains = [DomainState::default(); MAX_DOMAINS];
        let mut domain_count = 0;
        for (state, domain) in domains.iter_mut().zip(self.domains.iter()) {
            let DomainId(id) = domain.id;
            *state = DomainState {
                root: domain.root.0,
                id: id.into(),
                attached: domain.attached,
            };
            domain_count += 1;
        }
        Ok(State {
            register_base: self.window.base().0,
            register_length: self.window.length(),
            capability: self.capabilities.capability.bits(),
            extended_capability: self.capabilities.extended.bits(),
            root_table_address: self.root_table_address().0,
            queue_address: self.queue.address().0,
            interrupt_table_address: self.interrupts.address().0,
            status_address: self.queue.status().0,
            arena_base: self.arena.range().base().0,
            arena_length: self.arena.range().length(),
            global_status: self.hardware.status()?.bits(),
            queue_tail: self.queue.tail(),
            sequence: self.queue.sequence(),
            levels: self.width.levels(),
            host_address_bits: self.config.host_address_bits.into(),
            domain_count,
            domains,
        })
    }
}
