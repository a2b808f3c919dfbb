//! What the next steward of a unit must know.

use handoff_abi::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::domain::MAX_DOMAINS;
use super::hardware::RegisterError;
use super::unit::Unit;
use crate::{Deadline, RegisterIo, TableMemory};

/// A domain in a [`State`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DomainState {
    /// The physical address of the root of its tables.
    pub root: u64,
    /// Its id.
    pub id: u32,
    /// How many devices are attached to it. For people; whoever adopts the unit counts them.
    pub attached: u32,
}

/// A unit as one steward leaves it to the next: plain numbers of fixed place, nothing of which
/// [`Unit::adopt`] believes unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct State {
    /// Physical address of the register window.
    pub register_base: u64,
    /// Its length in bytes.
    pub register_length: u64,
    /// CAP.
    pub capability: u64,
    /// ECAP.
    pub extended_capability: u64,
    /// RTADDR.
    pub root_table_address: u64,
    /// IQA.
    pub queue_address: u64,
    /// IRTA.
    pub interrupt_table_address: u64,
    /// Physical address of the 4 bytes that waits write to.
    pub status_address: u64,
    /// Physical address of the arena.
    pub arena_base: u64,
    /// Its length in bytes.
    pub arena_length: u64,
    /// GSTS.
    pub global_status: u32,
    /// The slot at the queue's tail. For people; the register is what counts.
    pub queue_tail: u32,
    /// The number of the last wait.
    pub sequence: u32,
    /// How many levels the domains' tables have.
    pub levels: u32,
    /// How many bits the machine's physical addresses have.
    pub host_address_bits: u32,
    /// How many of [`domains`](Self::domains) count.
    pub domain_count: u32,
    /// The domains.
    pub domains: [DomainState; MAX_DOMAINS],
}

const _: () = assert!(size_of::<State>() == 104 + 16 * MAX_DOMAINS);

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
