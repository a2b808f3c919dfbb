//! The walk through tables in force, before a unit is taken over. It only reads.

use core::marker::PhantomData;

use handoff_abi::{DomainId, FRAME_SIZE, PhysAddr, PhysRange, RequesterId, VtdDomain};

use crate::adopt::at_fault;
use crate::arena::Arena;
use crate::domain::{Bounds, Domains};
use crate::paging::{PagingEntry, Shape, for_leaves, index_shift};
use crate::tables::{Tables, offset};
use crate::{AdoptError, INTERRUPT_RANGE, LeafSize, MAX_DOMAINS, Reach, TableFault, TableMemory};

/// What was seen of the tables so far.
pub(crate) struct Walk<'a, M, E> {
    pub(crate) tables: &'a Tables<M>,
    pub(crate) arena: Arena,
    pub(crate) domains: Domains,
    bounds: Bounds,
    shape: Shape,
    entries: PhantomData<E>,
}

impl<'a, M: TableMemory, E: PagingEntry> Walk<'a, M, E> {
    /// A walk in which nothing of the arena has a use yet. The root of `shape` does not count.
    pub(crate) fn new(tables: &'a Tables<M>, arena: Arena, bounds: Bounds, shape: Shape) -> Self {
        Self {
            tables,
            arena,
            domains: Domains::default(),
            bounds,
            shape,
            entries: PhantomData,
        }
    }

    /// How many levels the tables of domains have.
    pub(crate) const fn levels(&self) -> u32 {
        self.shape.levels
    }

    /// Notes that `entry` leads to the table of so many frames at `table`, and to none that was seen
    /// before: so tables form a tree, and the walk ends.
    pub(crate) fn claim(
        &mut self,
        entry: PhysAddr,
        table: PhysAddr,
        frames: u64,
    ) -> Result<(), AdoptError> {
        if self.arena.claim_run(table, frames) {
            return Ok(());
        }
        let whole = PhysRange::new(table, frames * FRAME_SIZE);
        let inside = whole.is_ok_and(|whole| self.arena.range().contains_range(whole));
        let fault = if inside && table.is_aligned_to(FRAME_SIZE) {
            TableFault::Shared(table)
        } else {
            TableFault::OutsideArena(table)
        };
        Err(at_fault(entry, fault))
    }

    /// Claims what the record itself names: each field, its value, what the value would be if it
    /// were one of the driver's, and the frames it stands for.
    pub(crate) fn claim_recorded(
        &mut self,
        fields: &[(&'static str, u64, u64, PhysAddr, u64)],
    ) -> Result<(), AdoptError> {
        for &(field, value, whole, frame, count) in fields {
            if value != whole || !self.arena.claim_run(frame, count) {
                return Err(AdoptError::Record { field, value });
            }
        }
        Ok(())
    }

    fn pages(&mut self, table: PhysAddr, level: u32, base: u64) -> Result<(), AdoptError> {
        for slot in 0..512 {
            let at = offset(table, slot * 8);
            let entry = E::from_bits(self.tables.load(at));
            if entry.bits() == 0 {
                continue;
            }
            let iova = base | slot << index_shift(level);
            if !entry.is_present() {
                return Err(at_fault(at, TableFault::ForeignBits(entry.bits())));
            }
            if entry.is_leaf(level) {
                self.leaf(at, entry, level, iova)?;
            } else {
                if entry != E::table(entry.address(), level) {
                    return Err(at_fault(at, TableFault::ForeignBits(entry.bits())));
                }
                self.claim(at, entry.address(), 1)?;
                self.pages(entry.address(), level - 1, iova)?;
            }
        }
        Ok(())
    }

    fn leaf(&self, at: PhysAddr, entry: E, level: u32, iova: u64) -> Result<(), AdoptError> {
        let bad = |fault| Err(at_fault(at, fault));
        let size = LeafSize::at_level(level).filter(|&size| {
            size <= self.shape.largest && entry.address().is_aligned_to(size.bytes())
        });
        let Some(size) = size else {
            return bad(TableFault::LeafSize);
        };
        let access = entry.access();
        if access.is_empty() || entry != E::leaf(entry.address(), size, access) {
            return bad(TableFault::ForeignBits(entry.bits()));
        }
        let (Ok(from), Ok(memory)) = (
            PhysRange::new(PhysAddr(iova), size.bytes()),
            PhysRange::new(entry.address(), size.bytes()),
        ) else {
            return bad(TableFault::AddressTooWide(iova));
        };
        if from.end().0 > self.bounds.iova_limit {
            return bad(TableFault::AddressTooWide(iova));
        }
        if memory.end().0 > self.bounds.host_limit {
            return bad(TableFault::MemoryTooHigh(memory));
        }
        if from.overlaps(INTERRUPT_RANGE) || memory.overlaps(INTERRUPT_RANGE) {
            return bad(TableFault::InterruptRange);
        }
        let special = self.bounds.special;
        if from.overlaps(special) || memory.overlaps(special) {
            return bad(TableFault::SpecialRange(special));
        }
        if memory.overlaps(self.arena.range()) {
            return bad(TableFault::OwnTables(memory));
        }
        Ok(())
    }

    /// The domains of the record: every id and every root once.
    pub(crate) fn record_domains(
        &mut self,
        domains: &[VtdDomain; MAX_DOMAINS],
        count: u32,
        id_limit: u32,
    ) -> Result<(), AdoptError> {
        let domains = domains.get(..count as usize).ok_or(AdoptError::Record {
            field: "domain_count",
            value: count.into(),
        })?;
        for domain in domains {
            let bad_id = AdoptError::Record {
                field: "domains.id",
                value: domain.id.into(),
            };
            let id = u16::try_from(domain.id).map(DomainId).map_err(|_| bad_id)?;
            if self.domains.check_new(id, id_limit).is_err() {
                return Err(bad_id);
            }
            let root = PhysAddr(domain.root);
            if !self.arena.claim(root) {
                return Err(AdoptError::Record {
                    field: "domains.root",
                    value: root.0,
                });
            }
            self.pages(root, self.shape.levels, 0)?;
            self.domains.push(id, root);
        }
        Ok(())
    }

    /// Puts every leaf of a domain before `allow`.
    pub(crate) fn leaves(
        &self,
        requester: Option<RequesterId>,
        id: DomainId,
        allow: &mut impl FnMut(&Reach) -> bool,
    ) -> Result<(), AdoptError> {
        let Some(domain) = self.domains.get(id) else {
            return Ok(());
        };
        let mut refused = None;
        for_leaves::<_, E>(
            self.tables,
            domain.root,
            self.shape.levels,
            0,
            &mut |leaf| {
                let reach = Reach::Memory {
                    requester,
                    domain: id,
                    iova: leaf.iova,
                    memory: leaf.memory,
                    access: leaf.access,
                };
                let allowed = allow(&reach);
                if !allowed {
                    refused = Some(reach);
                }
                allowed
            },
        );
        refused.map_or(Ok(()), |reach| Err(AdoptError::NotAllowed(reach)))
    }

    /// Puts the leaves of the domains before `allow` to which no device is attached.
    pub(crate) fn unattached(
        &self,
        allow: &mut impl FnMut(&Reach) -> bool,
    ) -> Result<(), AdoptError> {
        self.domains
            .iter()
            .filter(|domain| domain.attached == 0)
            .try_for_each(|domain| self.leaves(None, domain.id, allow))
    }
}

/// Compares what the record says of window and arena with what they are.
pub(crate) fn check_recorded(
    window: PhysRange,
    recorded_window: [u64; 2],
    arena: PhysRange,
    recorded_arena: [u64; 2],
) -> Result<(), AdoptError> {
    let [register_base, register_length] = recorded_window;
    let [arena_base, arena_length] = recorded_arena;
    for (field, value, actual) in [
        ("register_base", register_base, window.base().0),
        ("register_length", register_length, window.length()),
        ("arena_base", arena_base, arena.base().0),
        ("arena_length", arena_length, arena.length()),
    ] {
        if value != actual {
            return Err(AdoptError::Record { field, value });
        }
    }
    Ok(())
}
