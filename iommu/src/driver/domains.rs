//! Domains of one unit, and what is in them.

use handoff_abi::{DomainId, PhysAddr, PhysRange};

use super::{Driver, Vendor};
use crate::domain::{Bounds, first_unmapped};
use crate::paging::{Leaf, Mapper, for_leaves, translate};
use crate::{Access, DomainError, MapError, Pending, TableMemory, UnmapError};

impl<V: Vendor, M: TableMemory> Driver<V, M> {
    /// Makes an empty domain.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn create_domain(&mut self, id: DomainId) -> Result<(), DomainError> {
        self.domains.check_new(id, self.vendor.domain_limit())?;
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
        self.mapper(root).release();
        self.domains.remove(id);
        // Prepared tables may name it.
        self.entry_changed();
        Ok(())
    }

    fn bounds(&self) -> Bounds {
        self.vendor.bounds(self.arena.range())
    }

    fn mapper(&mut self, root: PhysAddr) -> Mapper<'_, M, V::Entry> {
        Mapper::new(&mut self.tables, &mut self.arena, self.vendor.shape(root))
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
        self.mapper(root).map(Leaf {
            iova,
            memory,
            access,
        })?;
        let pending = self.pending();
        Ok(if self.vendor.caches_not_present() {
            // What was not present may be cached as such (VT-d section 6.1, AMD-Vi section 3.2.1).
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
        let tag = self.vendor.next_sequence();
        let unknown = UnmapError::UnknownDomain(domain);
        let (root, mut retired) = match self.domains.get(domain) {
            Some(domain) => (domain.root, domain.retired),
            None => return Err(unknown),
        };
        self.bounds().check_unmap(iova, length)?;
        self.mapper(root).unmap(iova, length, &mut retired, tag)?;
        if let Some(domain) = self.domains.get_mut(domain) {
            domain.retired = retired;
        }
        Ok(self.pending().with_domain(domain))
    }

    /// The leaf that translates `iova` in a domain; `None` where it is not mapped.
    #[must_use]
    pub fn translate(&self, domain: DomainId, iova: u64) -> Option<Leaf> {
        let root = self.domains.get(domain)?.root;
        if iova >= self.bounds().iova_limit {
            return None;
        }
        translate::<_, V::Entry>(&self.tables, self.vendor.shape(root), iova)
    }

    /// The first part of `memory` that a domain does not translate at the device addresses equal to
    /// physical ones; `None` where it translates all, and where there is no such domain.
    ///
    /// It is for what firmware reserves for a device, which may lie in memory that is mapped already:
    /// what is named is to be mapped, until nothing is. That the rest is mapped as it must be,
    /// [`attach_reserved`](Self::attach_reserved) says.
    #[must_use]
    pub fn first_unmapped(&self, domain: DomainId, memory: PhysRange) -> Option<PhysRange> {
        self.domains.get(domain)?;
        first_unmapped(memory, |at| self.translate(domain, at))
    }

    /// Calls `each` for every leaf of a domain, lowest device address first, until it says
    /// `false`. Returns whether all were seen; `false` also where there is no such domain.
    pub fn for_each_leaf(&self, domain: DomainId, mut each: impl FnMut(Leaf) -> bool) -> bool {
        self.domains.get(domain).is_some_and(|domain| {
            let levels = self.vendor.shape(domain.root).levels;
            for_leaves::<_, V::Entry>(&self.tables, domain.root, levels, 0, &mut each)
        })
    }

    /// How many levels the tables of its domains have.
    #[must_use]
    pub fn levels(&self) -> u32 {
        self.vendor.shape(self.top).levels
    }
}
