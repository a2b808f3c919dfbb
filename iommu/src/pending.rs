//! What a table change leaves to be invalidated.

use handoff_abi::{DomainId, PhysAddr, RequesterId};
use heapless::Vec;

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

/// A device's entry that changed: a VT-d context entry or an AMD-Vi device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceChange {
    pub(crate) requester: RequesterId,
    /// The domain id the old entry was cached with.
    pub(crate) domain: DomainId,
    /// Whether what is left of the entry is zeroed when the invalidation is done.
    pub(crate) retire: bool,
}

/// An interrupt entry that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterruptChange {
    pub(crate) source: RequesterId,
    /// Its index; 0 where a device's entries are invalidated all at once.
    pub(crate) index: u16,
    pub(crate) retire: bool,
}

/// Changes of a unit's tables that the unit may not have noticed yet.
///
/// Every operation that changes a table returns one. The change counts only after the value has
/// gone through `flush`, or `submit` and `wait`, of the unit it came from. Several can be
/// [merged](Self::merge) and share one invalidation. To drop one is to leave the unit with stale
/// entries; nothing is reused before that is made up for, and the unit's `invalidate_everything`
/// does so.
#[must_use = "the unit may go on using what was changed until this is flushed"]
#[derive(Clone, Debug, Default)]
pub struct Pending {
    devices: Scope<DeviceChange>,
    domains: Scope<DomainId>,
    interrupts: Scope<InterruptChange>,
    /// Tables were stored to, which matters to VT-d units with CAP.RWBF.
    pub(crate) stored: bool,
    /// Entries were retired that it keeps no note of; they are to be looked for afterwards.
    pub(crate) sweep: bool,
    /// The unit it belongs to, by the base of its registers; `None` as long as it is empty.
    pub(crate) unit: Option<PhysAddr>,
    /// Changes of two units were merged.
    pub(crate) mixed: bool,
}

impl Pending {
    /// Nothing to invalidate: where a loop of merges begins.
    pub fn none() -> Self {
        Self::default()
    }

    pub(crate) fn stored(unit: PhysAddr) -> Self {
        Self {
            stored: true,
            unit: Some(unit),
            ..Self::default()
        }
    }

    /// Every cache of the unit.
    pub(crate) fn all_caches(unit: PhysAddr) -> Self {
        Self {
            devices: Scope::All,
            domains: Scope::All,
            interrupts: Scope::All,
            ..Self::stored(unit)
        }
    }

    /// Every cache of the unit, and every retirement that was begun.
    pub(crate) fn everything(unit: PhysAddr) -> Self {
        Self {
            sweep: true,
            ..Self::all_caches(unit)
        }
    }

    pub(crate) fn without_interrupts(mut self) -> Self {
        self.interrupts = Scope::default();
        self
    }

    pub(crate) fn interrupts_only(mut self) -> Self {
        self.devices = Scope::default();
        self.domains = Scope::default();
        self
    }

    pub(crate) fn with_device(mut self, change: DeviceChange) -> Self {
        let retired = change.retire || self.retires_device();
        self.devices.insert(change);
        self.sweep |= retired && self.devices.is_all();
        self
    }

    pub(crate) fn with_domain(mut self, domain: DomainId) -> Self {
        self.domains.insert(domain);
        self
    }

    pub(crate) fn with_interrupt(mut self, change: InterruptChange) -> Self {
        let retired = change.retire || self.retires_interrupt();
        self.interrupts.insert(change);
        self.sweep |= retired && self.interrupts.is_all();
        self
    }

    /// Both sets of changes, to share one invalidation. Changes of two units cannot share one:
    /// flushing the result is refused.
    pub fn merge(mut self, other: Self) -> Self {
        let devices = self.retires_device() || other.retires_device();
        let interrupts = self.retires_interrupt() || other.retires_interrupt();
        self.devices.merge(&other.devices);
        self.domains.merge(&other.domains);
        self.interrupts.merge(&other.interrupts);
        self.sweep |= other.sweep
            || devices && self.devices.is_all()
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
        !self.needs_commands() && !self.stored
    }

    /// Whether domains or interrupt entries are to be invalidated.
    pub(crate) fn needs_other_commands(&self) -> bool {
        !(self.domains.is_empty() && self.interrupts.is_empty())
    }

    pub(crate) fn needs_commands(&self) -> bool {
        !(self.devices.is_empty() && self.domains.is_empty() && self.interrupts.is_empty())
    }

    pub(crate) const fn all_devices(&self) -> bool {
        self.devices.is_all()
    }

    pub(crate) const fn all_domains(&self) -> bool {
        self.domains.is_all()
    }

    pub(crate) const fn all_interrupts(&self) -> bool {
        self.interrupts.is_all()
    }

    pub(crate) fn domains(&self) -> &[DomainId] {
        self.domains.items()
    }

    pub(crate) fn devices(&self) -> &[DeviceChange] {
        self.devices.items()
    }

    pub(crate) fn interrupts(&self) -> &[InterruptChange] {
        self.interrupts.items()
    }

    /// Whether what is tagged with `domain` is invalidated.
    pub(crate) fn covers_domain(&self, domain: DomainId) -> bool {
        self.domains.is_all() || self.domains.items().contains(&domain)
    }

    /// Whether something is to be done to the tables when the batch is done.
    pub(crate) fn retires(&self) -> bool {
        self.sweep || self.retires_device() || self.retires_interrupt()
    }

    fn retires_device(&self) -> bool {
        self.devices().iter().any(|change| change.retire)
    }

    fn retires_interrupt(&self) -> bool {
        self.interrupts().iter().any(|change| change.retire)
    }
}
