//! The invalidation batch of a set of changes.

use handoff_abi::{DomainId, RequesterId};
use heapless::Vec;

use super::spec::Descriptor;
use crate::Pending;
use crate::pending::SELECTIVE_LIMIT;

/// The most descriptors one batch has, its wait included.
pub(super) const MAX_DESCRIPTORS: usize = 4 * SELECTIVE_LIMIT + 1;

/// Devices whose entries changed besides those of a [`Pending`], each with the domain id that its
/// entry may be cached with.
pub(super) type Moved = Vec<(RequesterId, DomainId), SELECTIVE_LIMIT>;

/// The batch, without its wait: context cache, then IOTLB, then interrupt entry cache. In this
/// order a request between two of them cannot refill the IOTLB from a stale context entry; the
/// unit runs an IOTLB invalidation only after all context-cache invalidations before it
/// (section 6.5.2.11).
pub(super) fn descriptors<'a>(
    pending: &'a Pending,
    more: &'a [(RequesterId, DomainId)],
) -> impl Iterator<Item = Descriptor> + 'a {
    let more = more
        .iter()
        .map(|&(requester, domain)| Descriptor::context_device(requester, domain));
    let contexts = pending.devices().iter().enumerate().filter_map(|(i, c)| {
        // The same entry can be there twice, retired and not.
        let first = pending
            .devices()
            .iter()
            .take(i)
            .all(|d| (d.requester, d.domain) != (c.requester, c.domain));
        first.then(|| Descriptor::context_device(c.requester, c.domain))
    });
    let interrupts = pending
        .interrupts()
        .iter()
        .enumerate()
        .filter_map(|(i, c)| {
            let first = pending
                .interrupts()
                .iter()
                .take(i)
                .all(|d| d.index != c.index);
            first.then(|| Descriptor::interrupt_index(c.index))
        });
    let all_contexts = pending.all_devices().then(Descriptor::context_global);
    let all_domains = pending.all_domains().then(Descriptor::iotlb_global);
    let all_interrupts = pending.all_interrupts().then(Descriptor::interrupt_global);
    let domains = pending.domains().iter();
    contexts
        .chain(more)
        .chain(all_contexts)
        .chain(domains.map(|&d| Descriptor::iotlb_domain(d)))
        .chain(all_domains)
        .chain(interrupts)
        .chain(all_interrupts)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use handoff_abi::PhysAddr;

    use super::*;
    use crate::pending::{DeviceChange, InterruptChange};

    const UNIT: PhysAddr = PhysAddr(0xfed9_0000);

    fn blocked(requester: u16, domain: u16) -> Pending {
        Pending::stored(UNIT)
            .with_device(DeviceChange {
                requester: RequesterId(requester),
                domain: DomainId(domain),
                retire: true,
            })
            .with_domain(DomainId(domain))
    }

    fn cleared(handle: u16) -> Pending {
        Pending::stored(UNIT).with_interrupt(InterruptChange {
            source: RequesterId(8),
            index: handle,
            retire: true,
        })
    }

    fn descriptors(pending: &Pending) -> Vec<Descriptor> {
        super::descriptors(pending, &[]).collect()
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
                Descriptor::interrupt_index(4),
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
        let more: Vec<_> = (8..16).map(|i| (RequesterId(i), DomainId(1))).collect();
        let count = super::descriptors(&all, &more).count();
        assert_eq!(count + 1, MAX_DESCRIPTORS);
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
