//! Domains: address spaces apart from the devices attached to them.

use core::fmt;

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange, VtdDomain};
use heapless::Vec;

use crate::paging::{Leaf, MapError, UnmapError};
use crate::retired::RetiredTables;
use crate::{Access, INTERRUPT_RANGE};

/// How many domains one unit can have.
pub const MAX_DOMAINS: usize = 64;

/// Why a domain was not made, or not taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DomainError {
    /// The id is 0, or the unit does not tell so many apart.
    IdOutOfRange {
        /// The id.
        domain: DomainId,
        /// The first id the unit does not have.
        limit: u32,
    },
    /// The unit has a domain with this id.
    Exists(DomainId),
    /// The unit has no domain with this id.
    Unknown(DomainId),
    /// The unit has [`MAX_DOMAINS`] domains.
    TooMany,
    /// The arena has no free frame.
    ArenaFull,
    /// Devices are attached to the domain, or were blocked and that was not flushed.
    Attached {
        /// The domain.
        domain: DomainId,
        /// How many devices.
        devices: u32,
    },
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IdOutOfRange { domain, limit } => {
                write!(f, "domain id {domain} is not from 1 to {}", limit - 1)
            }
            Self::Exists(domain) => write!(f, "domain {domain} exists"),
            Self::Unknown(domain) => write!(f, "no domain {domain}"),
            Self::TooMany => write!(f, "the unit has {MAX_DOMAINS} domains"),
            Self::ArenaFull => f.write_str("the arena is full"),
            Self::Attached { domain, devices } => {
                write!(f, "{devices} devices are attached to domain {domain}")
            }
        }
    }
}

impl core::error::Error for DomainError {}

#[derive(Clone, Debug)]
pub(crate) struct Domain {
    pub(crate) id: DomainId,
    pub(crate) root: PhysAddr,
    /// Device entries that name it, in force or not flushed since they were.
    pub(crate) attached: u32,
    pub(crate) retired: RetiredTables,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Domains {
    domains: Vec<Domain, MAX_DOMAINS>,
}

impl Domains {
    pub(crate) fn get(&self, id: DomainId) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: DomainId) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.id == id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.iter().map(|domain| domain.id)
    }

    /// What a record says of them, and how many there are.
    pub(crate) fn recorded(&self) -> ([VtdDomain; MAX_DOMAINS], u32) {
        let mut records = [VtdDomain::default(); MAX_DOMAINS];
        let mut count = 0;
        for (record, domain) in records.iter_mut().zip(self.iter()) {
            *record = VtdDomain {
                root: domain.root.0,
                id: domain.id.0.into(),
                attached: domain.attached,
            };
            count += 1;
        }
        (records, count)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Domain> {
        self.domains.iter_mut()
    }

    pub(crate) fn push(&mut self, id: DomainId, root: PhysAddr) -> bool {
        let domain = Domain {
            id,
            root,
            attached: 0,
            retired: RetiredTables::default(),
        };
        self.domains.push(domain).is_ok()
    }

    pub(crate) fn remove(&mut self, id: DomainId) {
        self.domains.retain(|domain| domain.id != id);
    }

    pub(crate) fn count_attached(&mut self, id: DomainId) {
        if let Some(domain) = self.get_mut(id) {
            domain.attached = domain.attached.saturating_add(1);
        }
    }

    pub(crate) fn count_detached(&mut self, id: DomainId) {
        if let Some(domain) = self.get_mut(id) {
            domain.attached = domain.attached.saturating_sub(1);
        }
    }

    /// Whether a domain can be made with this id.
    pub(crate) fn check_new(&self, id: DomainId, limit: u32) -> Result<(), DomainError> {
        if id.0 == 0 || u32::from(id.0) >= limit {
            return Err(DomainError::IdOutOfRange { domain: id, limit });
        }
        if self.get(id).is_some() {
            return Err(DomainError::Exists(id));
        }
        if self.domains.is_full() {
            return Err(DomainError::TooMany);
        }
        Ok(())
    }

    /// The domain, if it can be taken away.
    pub(crate) fn check_unused(&mut self, id: DomainId) -> Result<&mut Domain, DomainError> {
        let domain = self.get_mut(id).ok_or(DomainError::Unknown(id))?;
        if domain.attached != 0 {
            return Err(DomainError::Attached {
                domain: id,
                devices: domain.attached,
            });
        }
        Ok(domain)
    }
}

/// Whether all of `memory` is mapped at equal addresses, for reading and writing.
pub(crate) fn maps_identically(memory: PhysRange, translate: impl Fn(u64) -> Option<Leaf>) -> bool {
    let mut at = memory.base().0;
    while at < memory.end().0 {
        match translate(at) {
            Some(leaf)
                if leaf.iova == leaf.memory.base().0 && leaf.access == Access::READ_WRITE =>
            {
                at = leaf.memory.end().0;
            }
            _ => return false,
        }
    }
    true
}

/// The first part of `memory` whose pages are not translated.
pub(crate) fn first_unmapped(
    memory: PhysRange,
    translate: impl Fn(u64) -> Option<Leaf>,
) -> Option<PhysRange> {
    let (mut at, end) = (memory.base().0, memory.end().0);
    while at < end {
        match translate(at) {
            Some(leaf) => at = leaf.iova.saturating_add(leaf.memory.length()),
            None => break,
        }
    }
    let base = at;
    while at < end && translate(at).is_none() {
        at = (at & !(FRAME_SIZE - 1)).saturating_add(FRAME_SIZE);
    }
    (base < end).then(|| PhysRange::from_bounds(PhysAddr(base), PhysAddr(at.min(end))))
}

/// What a mapping must keep to, whichever domain it is in.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The first device address that is not translated.
    pub(crate) iova_limit: u64,
    /// The first physical address that the machine does not have.
    pub(crate) host_limit: u64,
    /// The unit's own tables.
    pub(crate) arena: PhysRange,
    /// Addresses on either side that are no memory to this vendor's units; may be empty.
    pub(crate) special: PhysRange,
}

impl Bounds {
    /// Whether `memory` may be mapped at `iova`. Returns the access without bits that are none.
    pub(crate) fn check_map(
        &self,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<Access, MapError> {
        if memory.is_empty()
            || !memory.is_aligned_to(FRAME_SIZE)
            || !iova.is_multiple_of(FRAME_SIZE)
        {
            return Err(MapError::Unaligned { iova, memory });
        }
        let access = access & Access::READ_WRITE;
        if access.is_empty() {
            return Err(MapError::NoAccess);
        }
        let length = memory.length();
        let limit = self.iova_limit;
        let from = match PhysRange::new(PhysAddr(iova), length) {
            Ok(from) if from.end().0 <= limit => from,
            _ => {
                return Err(MapError::AddressTooWide {
                    iova,
                    length,
                    limit,
                });
            }
        };
        let limit = self.host_limit;
        if memory.end().0 > limit {
            return Err(MapError::MemoryTooHigh { memory, limit });
        }
        if from.overlaps(INTERRUPT_RANGE) || memory.overlaps(INTERRUPT_RANGE) {
            return Err(MapError::InterruptRange { iova, memory });
        }
        let special = self.special;
        if from.overlaps(special) || memory.overlaps(special) {
            return Err(MapError::SpecialRange {
                iova,
                memory,
                special,
            });
        }
        if memory.overlaps(self.arena) {
            return Err(MapError::OwnTables { memory });
        }
        Ok(access)
    }

    /// Whether `length` bytes from `iova` on are device addresses that can be unmapped.
    pub(crate) fn check_unmap(&self, iova: u64, length: u64) -> Result<(), UnmapError> {
        let limit = self.iova_limit;
        if length == 0 || !length.is_multiple_of(FRAME_SIZE) || !iova.is_multiple_of(FRAME_SIZE) {
            return Err(UnmapError::Unaligned { iova, length });
        }
        if iova.checked_add(length).is_none_or(|end| end > limit) {
            return Err(UnmapError::AddressTooWide {
                iova,
                length,
                limit,
            });
        }
        Ok(())
    }
}
