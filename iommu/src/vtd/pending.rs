//! What a table change leaves to be invalidated.

use handoff_abi::{DomainId, PhysAddr, RequesterId};
use heapless::Vec;

use super::spec::{Descriptor, InterruptHandle};

/// Up to how many devices, domains or interrupt entries are invalidated one by one; above it, all
/// at once. A selective invalidation leaves the other devices' caches warm.
pub const SELECTIVE_LIMIT: usize = 8;

/// A set of things to invalidate: a few, or all.
#[derive(Clone, Debug)]
enum Scope<T> {
    Some(Vec<T, SELECTIVE_LIMIT>),
    All,
}

impl<T: Copy + PartialEq> Scope<T> {
    fn insert(&mut self, item: T) {
        if let Self::Some(items) = self
            && !items.contains(&item)
            && items.push(item).is_err()
        {
            *self = Self::All;
        }
    }

    fn merge(&mut self, other: &Self) {
        match other {
            Self::Some(items) => items.iter().for_each(|&item| self.insert(item)),
            Self::All => *self = Self::All,
        }
    }

    const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    fn items(&self) -> &[T] {
        match self {
            Self::Some(items) => items,
            Self::All => &[],
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(items) if items.is_empty())
    }
}

impl<T> Default for Scope<T> {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

/// A context entry that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContextChange {
    pub(super) requester: RequesterId,
    /// The domain id the old entry was cached with.
    pub(super) domain: DomainId,
    /// Whether what is left of the entry is zeroed when the invalidation is done.
    pub(super) retire: bool,
}

/// An interrupt entry that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InterruptChange {
    pub(super) handle: InterruptHandle,
    pub(super) retire: bool,
}

/// Changes of a unit's tables that the unit may not have noticed yet.
///
/// Every operation that changes a table returns one. The change counts only after the value has
/// gone through [`Unit::flush`], or [`Unit::submit`] and [`Unit::wait`]. Several can be
/// [merged](Self::merge) and share one invalidation. To drop one is to leave the unit with stale
/// entries; nothing is reused before that is made up for, and [`Unit::invalidate_everything`]
/// does so.
///
/// [`Unit::flush`]: super::Unit::flush
/// [`Unit::submit`]: super::Unit::submit
/// [`Unit::wait`]: super::Unit::wait
/// [`Unit::invalidate_everything`]: super::Unit::invalidate_everything
#[must_use = "the unit may go on using what was changed until this is flushed"]
#[derive(Clone, Debug, Default)]
pub struct Pending {
    contexts: Scope<ContextChange>,
    domains: Scope<DomainId>,
    interrupts: Scope<InterruptChange>,
    /// Tables were stored to, which matters to units with CAP.RWBF.
    pub(super) stored: bool,
    /// Entries were retired that it keeps no note of; they are to be looked for afterwards.
    pub(super) sweep: bool,
    /// The unit it belongs to, by the base of its registers; `None` as long as it is empty.
    pub(super) unit: Option<PhysAddr>,
    /// Changes of two units were merged.
    pub(super) mixed: bool,
}

impl Pending {
    /// Nothing to invalidate: where a loop of merges begins.
    pub fn none() -> Self {
        Self::default()
    }

    pub(super) fn stored(unit: PhysAddr) -> Self {
        Self {
            stored: true,
            unit: Some(unit),
            ..Self::default()
        }
    }

    /// Every cache of the unit.
    pub(super) fn all_caches(unit: PhysAddr) -> Self {
        Self {
            contexts: Scope::All,
            domains: Scope::All,
            interrupts: Scope::All,
            ..Self::stored(unit)
        }
    }

    /// Every cache of the unit, and every retirement that was begun.
    pub(super) fn everything(unit: PhysAddr) -> Self {
        Self {
            sweep: true,
            ..Self::all_caches(unit)
        }
    }

    pub(super) fn without_interrupts(mut self) -> Self {
        self.interrupts = Scope::default();
        self
    }

    pub(super) fn interrupts_only(mut self) -> Self {
        self.contexts = Scope::default();
        self.domains = Scope::default();
        self
    }

    pub(super) fn with_context(mut self, change: ContextChange) -> Self {
        let retired = change.retire || self.retires_context();
        self.contexts.insert(change);
        self.sweep |= retired && self.contexts.is_all();
        self
    }

    pub(super) fn with_domain(mut self, domain: DomainId) -> Self {
        self.domains.insert(domain);
        self
    }

    pub(super) fn with_interrupt(mut self, change: InterruptChange) -> Self {
        let retired = change.retire || self.retires_interrupt();
        self.interrupts.insert(change);
        self.sweep |= retired && self.interrupts.is_all();
        self
    }

    /// Both sets of changes, to share one invalidation. Changes of two units cannot share one:
    /// flushing the result is refused.
    pub fn merge(mut self, other: Self) -> Self {
        let contexts = self.retires_context() || other.retires_context();
        let interrupts = self.retires_interrupt() || other.retires_interrupt();
        self.contexts.merge(&other.contexts);
        self.domains.merge(&other.domains);
        self.interrupts.merge(&other.interrupts);
        self.sweep |= other.sweep
            || contexts && self.contexts.is_all()
            || interrupts && self.interrupts.is_all();
        self.stored |= other.stored;
        self.mixed |= other.mixed;
        match (self.unit, other.unit) {
            (Some(a), Some(b)) if a != b => self.mixed = true,
            (None, unit) => self.unit = unit,
            _ => {}
        }
        self
    }

    /// Whether the unit has nothing to invalidate and nothing is to be done afterwards.
    pub fn is_none(&self) -> bool {
        !self.needs_descriptors() && !self.stored
    }

    pub(super) fn needs_descriptors(&self) -> bool {
        !(self.contexts.is_empty() && self.domains.is_empty() && self.interrupts.is_empty())
    }

    pub(super) fn contexts(&self) -> &[ContextChange] {
        self.contexts.items()
    }

    pub(super) fn interrupts(&self) -> &[InterruptChange] {
        self.interrupts.items()
    }

    /// Whether what is tagged with `domain` is invalidated.
    pub(super) fn covers_domain(&self, domain: DomainId) -> bool {
        self.domains.is_all() || self.domains.items().contains(&domain)
    }

    /// Whether something is to be done to the tables when the batch is done.
    pub(super) fn retires(&self) -> bool {
        self.sweep || self.retires_context() || self.retires_interrupt()
    }

    fn retires_context(&self) -> bool {
        self.contexts().iter().any(|change| change.retire)
    }

    fn retires_interrupt(&self) -> bool {
        self.interrupts().iter().any(|change| change.retire)
    }

    /// The most descriptors one batch has, its wait included.
    pub(super) const MAX_DESCRIPTORS: usize = 3 * SELECTIVE_LIMIT + 1;

    /// The batch, without its wait: context cache, then IOTLB, then interrupt entry cache. In this
    /// order a request between two of them cannot refill the IOTLB from a stale context entry; the
    /// unit runs an IOTLB invalidation only after all context-cache invalidations before it
    /// (section 6.5.2.11).
    pub(super) fn descriptors(&self) -> impl Iterator<Item = Descriptor> + '_ {
        let contexts = self.contexts().iter().enumerate().filter_map(|(i, c)| {
            // The same entry can be there twice, retired and not.
            let first = self
                .contexts()
                .iter()
                .take(i)
                .all(|d| (d.requester, d.domain) != (c.requester, c.domain));
            first.then(|| Descriptor::context_device(c.requester, c.domain))
        });
        let interrupts = self.interrupts().iter().enumerate().filter_map(|(i, c)| {
            let first = self
                .interrupts()
                .iter()
                .take(i)
                .all(|d| d.handle != c.handle);
            first.then(|| Descriptor::interrupt_index(c.handle))
        });
        let all_contexts = self.contexts.is_all().then(Descriptor::context_global);
        let all_domains = self.domains.is_all().then(Descriptor::iotlb_global);
        let all_interrupts = self.interrupts.is_all().then(Descriptor::interrupt_global);
        contexts
            .chain(all_contexts)
            .chain(
                self.domains
                    .items()
                    .iter()
                    .map(|&d| Descriptor::iotlb_domain(d)),
            )
            .chain(all_domains)
            .chain(interrupts)
            .chain(all_interrupts)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const UNIT: PhysAddr = PhysAddr(0xfed9_0000);

    fn blocked(requester: u16, domain: u16) -> Pending {
        Pending::stored(UNIT)
            .with_context(ContextChange {
                requester: RequesterId(requester),
                domain: DomainId(domain),
                retire: true,
            })
            .with_domain(DomainId(domain))
    }

    fn cleared(handle: u16) -> Pending {
        Pending::stored(UNIT).with_interrupt(InterruptChange {
            handle: InterruptHandle(handle),
            retire: true,
        })
    }

    fn descriptors(pending: &Pending) -> Vec<Descriptor> {
        pending.descriptors().collect()
    }

    #[test]
    fn a_batch_has_contexts_then_domains_then_interrupts_each_once() {
        let pending = cleared(4)
            .merge(blocked(8, 1))
            .merge(blocked(9, 1))
            .merge(blocked(8, 1))
            .merge(cleared(4));
        assert_eq!(
            descriptors(&pending),
            [
                Descriptor::context_device(RequesterId(8), DomainId(1)),
                Descriptor::context_device(RequesterId(9), DomainId(1)),
                Descriptor::iotlb_domain(DomainId(1)),
                Descriptor::interrupt_index(InterruptHandle(4)),
            ]
        );
        assert!(!pending.sweep);
    }

    #[test]
    fn too_many_devices_are_invalidated_at_once_and_looked_for_afterwards() {
        let many = (0..9).fold(Pending::none(), |all, device| all.merge(blocked(device, 1)));
        assert_eq!(
            descriptors(&many),
            [
                Descriptor::context_global(),
                Descriptor::iotlb_domain(DomainId(1)),
            ]
        );
        assert!(many.sweep);
        let few = (0..8).fold(Pending::none(), |all, device| all.merge(blocked(device, 1)));
        assert_eq!(descriptors(&few).len(), 9);
        assert!(!few.sweep);
        // What is to be retired is not forgotten when it meets "all" from either side.
        for merged in [
            Pending::all_caches(UNIT).merge(blocked(1, 1)),
            blocked(1, 1).merge(Pending::all_caches(UNIT)),
            Pending::all_caches(UNIT).merge(cleared(1)),
            cleared(1).merge(Pending::all_caches(UNIT)),
        ] {
            assert!(merged.sweep);
        }
        assert!(!Pending::all_caches(UNIT).sweep);
    }

    #[test]
    fn the_longest_batch_is_as_long_as_said() {
        let all = (0..8).fold(Pending::none(), |all, i| {
            all.merge(blocked(i, i + 1)).merge(cleared(i))
        });
        assert_eq!(descriptors(&all).len() + 1, Pending::MAX_DESCRIPTORS);
    }

    #[test]
    fn changes_of_two_units_are_noticed() {
        let other = Pending::stored(PhysAddr(0xfed8_0000));
        assert!(blocked(1, 1).merge(other.clone()).mixed);
        assert!(!Pending::none().merge(other).mixed);
        assert!(!blocked(1, 1).merge(Pending::none()).mixed);
        assert!(Pending::none().is_none());
    }
}
