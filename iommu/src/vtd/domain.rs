//! Domains: address spaces apart from the devices attached to them.

use core::fmt;

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange};
use heapless::Vec;

use super::paging::{Leaf, MapError, Mapper, RetiredTables, UnmapError, for_leaves, translate};
use super::pending::Pending;
use super::unit::Unit;
use crate::{Access, Deadline, INTERRUPT_RANGE, RegisterIo, TableMemory};

/// How many domains one unit can have.
pub const MAX_DOMAINS: usize = 64;

/// Why a domain was not made, or not taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DomainError {
    /// The id is 0, or the unit does not tell so many apart (CAP.ND).
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
pub(super) struct Domain {
    pub(super) id: DomainId,
    pub(super) root: PhysAddr,
    /// Context entries that name it, present or not flushed since they were.
    pub(super) attached: u32,
    pub(super) retired: RetiredTables,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Domains {
    domains: Vec<Domain, MAX_DOMAINS>,
}

impl Domains {
    pub(super) fn get(&self, id: DomainId) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.id == id)
    }

    pub(super) fn get_mut(&mut self, id: DomainId) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Domain> {
        self.domains.iter_mut()
    }

    pub(super) fn is_full(&self) -> bool {
        self.domains.is_full()
    }

    pub(super) fn push(&mut self, id: DomainId, root: PhysAddr) -> bool {
        let domain = Domain {
            id,
            root,
            attached: 0,
            retired: RetiredTables::default(),
        };
        self.domains.push(domain).is_ok()
    }

    fn remove(&mut self, id: DomainId) {
        self.domains.retain(|domain| domain.id != id);
    }

    pub(super) fn count_attached(&mut self, id: DomainId) {
        if let Some(domain) = self.get_mut(id) {
            domain.attached = domain.attached.saturating_add(1);
        }
    }

    pub(super) fn count_detached(&mut self, id: DomainId) {
        if let Some(domain) = self.get_mut(id) {
            domain.attached = domain.attached.saturating_sub(1);
        }
    }
}

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Makes an empty domain.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn create_domain(&mut self, id: DomainId) -> Result<(), DomainError> {
        let limit = self.capabilities.capability.domains();
        if id.0 == 0 || u32::from(id.0) >= limit {
            return Err(DomainError::IdOutOfRange { domain: id, limit });
        }
        if self.domains.get(id).is_some() {
            return Err(DomainError::Exists(id));
        }
        if self.domains.is_full() {
            return Err(DomainError::TooMany);
        }
        let root = self
            .tables
            .zeroed(&mut self.arena)
            .ok_or(DomainError::ArenaFull)?;
        self.domains.push(id, root);
        Ok(())
    }

    /// Takes a domain away and frees its tables. No device may be attached to it; a device counts
    /// as attached until its blocking was flushed, and by then the unit has nothing of the domain
    /// in its caches.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn destroy_domain(&mut self, id: DomainId) -> Result<(), DomainError> {
        let domain = self.domains.get_mut(id).ok_or(DomainError::Unknown(id))?;
        if domain.attached != 0 {
            return Err(DomainError::Attached {
                domain: id,
                devices: domain.attached,
            });
        }
        let root = domain.root;
        domain
            .retired
            .release(&mut self.tables, &mut self.arena, |_| true);
        let shape = self.shape(root);
        Mapper {
            tables: &mut self.tables,
            arena: &mut self.arena,
            shape,
        }
        .release();
        self.domains.remove(id);
        Ok(())
    }

    fn iova_limit(&self) -> u64 {
        self.capabilities.limit_of(self.width)
    }

    /// Lets the devices of `domain` reach `memory` at the device addresses from `iova` on.
    ///
    /// The largest leaves are used that the alignment of both sides and the unit allow. Memory
    /// that is to be unmapped in parts is therefore mapped in those parts: leaves are not split.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is changed then.
    pub fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<Pending, MapError> {
        let root = self
            .domains
            .get(domain)
            .ok_or(MapError::UnknownDomain(domain))?
            .root;
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
        let limit = self.iova_limit();
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
        let limit = self.config.host_limit();
        if memory.end().0 > limit {
            return Err(MapError::MemoryTooHigh { memory, limit });
        }
        if from.overlaps(INTERRUPT_RANGE) || memory.overlaps(INTERRUPT_RANGE) {
            return Err(MapError::InterruptRange { iova, memory });
        }
        if memory.overlaps(self.arena.range()) {
            return Err(MapError::OwnTables { memory });
        }
        let shape = self.shape(root);
        Mapper {
            tables: &mut self.tables,
            arena: &mut self.arena,
            shape,
        }
        .map(Leaf {
            iova,
            memory,
            access,
        })?;
        let pending = self.pending();
        Ok(if self.caching_mode() {
            // What was not present may be cached as such (section 6.1).
            pending.with_domain(domain)
        } else {
            pending
        })
    }

    /// Takes `length` bytes of device addresses from `iova` on out of a domain. All of them must
    /// be mapped, and the range must not have a part of a larger leaf only. The memory is out of
    /// the devices' reach when the result was flushed, not before.
    ///
    /// # Errors
    /// See [`UnmapError`]; nothing is changed then.
    pub fn unmap(
        &mut self,
        domain: DomainId,
        iova: u64,
        length: u64,
    ) -> Result<Pending, UnmapError> {
        let limit = self.iova_limit();
        let tag = self.queue.next_sequence();
        let unknown = UnmapError::UnknownDomain(domain);
        let (root, mut retired) = match self.domains.get(domain) {
            Some(domain) => (domain.root, domain.retired),
            None => return Err(unknown),
        };
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
        let shape = self.shape(root);
        Mapper {
            tables: &mut self.tables,
            arena: &mut self.arena,
            shape,
        }
        .unmap(iova, length, &mut retired, tag)?;
        if let Some(domain) = self.domains.get_mut(domain) {
            domain.retired = retired;
        }
        Ok(self.pending().with_domain(domain))
    }

    /// The leaf that translates `iova` in a domain; `None` where it is not mapped.
    #[must_use]
    pub fn translate(&self, domain: DomainId, iova: u64) -> Option<Leaf> {
        let shape = self.shape(self.domains.get(domain)?.root);
        if iova >= self.iova_limit() {
            return None;
        }
        translate(&self.tables, shape, iova)
    }

    /// Calls `each` for every leaf of a domain, lowest device address first, until it says
    /// `false`. Returns whether all were seen; `false` also where there is no such domain.
    pub fn for_each_leaf(&self, domain: DomainId, mut each: impl FnMut(Leaf) -> bool) -> bool {
        self.domains.get(domain).is_some_and(|domain| {
            for_leaves(&self.tables, domain.root, self.width.levels(), 0, &mut each)
        })
    }
}
