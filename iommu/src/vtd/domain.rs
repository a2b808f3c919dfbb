//! Domains of one unit, and what is in them.

use handoff_abi::{DomainId, PhysAddr, PhysRange};

use super::spec::SecondStageEntry;
use super::unit::Unit;
use crate::domain::{Bounds, DomainError};
use crate::paging::{Leaf, MapError, Mapper, Shape, UnmapError, for_leaves, translate};
use crate::{Access, Deadline, Pending, RegisterIo, TableMemory};

impl<R: RegisterIo, M: TableMemory, C: Deadline> Unit<R, M, C> {
    /// Makes an empty domain.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn create_domain(&mut self, id: DomainId) -> Result<(), DomainError> {
        let limit = self.capabilities.capability.domains();
        self.domains.check_new(id, limit)?;
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
        let domain = self.domains.check_unused(id)?;
        let root = domain.root;
        domain
            .retired
            .release(&mut self.tables, &mut self.arena, |_| true);
        let shape = self.shape(root);
        self.mapper(shape).release();
        self.domains.remove(id);
        Ok(())
    }

    fn iova_limit(&self) -> u64 {
        self.capabilities.limit_of(self.width)
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            iova_limit: self.iova_limit(),
            host_limit: self.config.host_limit(),
            arena: self.arena.range(),
            special: PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)),
        }
    }

    const fn mapper(&mut self, shape: Shape) -> Mapper<'_, M, SecondStageEntry> {
        Mapper::new(&mut self.tables, &mut self.arena, shape)
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
        let access = self.bounds().check_map(iova, memory, access)?;
        let shape = self.shape(root);
        self.mapper(shape).map(Leaf {
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
        let tag = self.queue.next_sequence();
        let unknown = UnmapError::UnknownDomain(domain);
        let (root, mut retired) = match self.domains.get(domain) {
            Some(domain) => (domain.root, domain.retired),
            None => return Err(unknown),
        };
        self.bounds().check_unmap(iova, length)?;
        let shape = self.shape(root);
        self.mapper(shape).unmap(iova, length, &mut retired, tag)?;
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
        translate::<_, SecondStageEntry>(&self.tables, shape, iova)
    }

    /// Calls `each` for every leaf of a domain, lowest device address first, until it says
    /// `false`. Returns whether all were seen; `false` also where there is no such domain.
    pub fn for_each_leaf(&self, domain: DomainId, mut each: impl FnMut(Leaf) -> bool) -> bool {
        self.domains.get(domain).is_some_and(|domain| {
            for_leaves::<_, SecondStageEntry>(
                &self.tables,
                domain.root,
                self.width.levels(),
                0,
                &mut each,
            )
        })
    }
}
