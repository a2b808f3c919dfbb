//! What the next steward of a unit must know.

use handoff_abi::DomainId;
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
            extended_feature: self.capabilities.features.bits(),
            control: self.hardware.control()?.bits(),
            device_table_base: DeviceTableBase::full(self.device_table).0,
            command_buffer_base: self.commands.base().0,
            event_log_base: self.events.base().0,
            status_address: self.commands.status().0,
            arena_base: self.arena.range().base().0,
            arena_length: self.arena.range().length(),
            sequence: self.commands.sequence(),
            capability_header: self.capabilities.header.bits(),
            ivhd_flags: self.config.ivhd_flags.into(),
            command_tail: self.commands.tail(),
            levels: self.levels,
            host_address_bits: self.config.host_address_bits.into(),
            domain_count,
            domains,
        })
    }
}
