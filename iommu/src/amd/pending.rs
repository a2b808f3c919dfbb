//! The invalidation commands of a set of changes.

use handoff_abi::{DomainId, RequesterId};

use super::devices::Buses;
use super::spec::Command;
use crate::Pending;

/// What the unit may have in its caches, for units that have no command that invalidates all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached<'a> {
    /// Whether there is such a command.
    pub(super) all_at_once: bool,
    /// The buses of all devices whose entries were ever other than denied.
    pub(super) buses: &'a Buses,
    /// Every domain there is.
    pub(super) domains: &'a [DomainId],
}

/// The batch, without its wait: device table entries, then, when these are done, pages and interrupt
/// tables. In this order a request between two of them cannot fill a cache again from a stale device
/// table entry (section 2.4.2). `more` are devices whose entries changed besides.
pub(super) fn commands<'a>(
    pending: &'a Pending,
    more: &'a [RequesterId],
    cached: Cached<'a>,
) -> impl Iterator<Item = Command> + 'a {
    let all = pending.all_devices() || pending.all_domains() || pending.all_interrupts();
    let at_once = all && cached.all_at_once;
    let every = |all: bool| {
        (all && !at_once)
            .then(|| cached.buses.devices())
            .into_iter()
            .flatten()
    };
    let some = pending.devices().iter().enumerate().filter_map(|(i, c)| {
        // The same entry can be there twice, retired and not.
        let earlier = pending.devices().get(..i).unwrap_or(&[]);
        let first = !earlier.iter().any(|d| d.requester == c.requester);
        first.then_some(c.requester)
    });
    let devices = some
        .chain(more.iter().copied())
        .chain(every(pending.all_devices()))
        .map(Command::device_entry);
    let every_domain: &[DomainId] = if pending.all_domains() {
        cached.domains
    } else {
        &[]
    };
    let domains = pending.domains().iter().chain(every_domain);
    let tables = pending
        .interrupts()
        .iter()
        .enumerate()
        .filter_map(|(i, c)| {
            let earlier = pending.interrupts().get(..i).unwrap_or(&[]);
            let first = !earlier.iter().any(|d| d.source == c.source);
            first.then_some(c.source)
        })
        .chain(every(pending.all_interrupts()))
        .map(Command::interrupt_table);
    let entries = !pending.devices().is_empty() || pending.all_devices() || !more.is_empty();
    let others = pending.needs_other_commands();
    let selective = devices
        .chain((entries && others).then(Command::barrier))
        .chain(domains.map(|&domain| Command::pages(domain)))
        .chain(tables)
        .filter(move |_| !at_once);
    at_once.then(Command::all).into_iter().chain(selective)
}

/// Everything that any unit can have in its caches, one by one: at the beginning, when it is not
/// known what was in force before.
pub(super) fn every_id() -> impl Iterator<Item = Command> {
    let ids = || 0..=u16::MAX;
    ids()
        .map(|id| Command::device_entry(RequesterId(id)))
        .chain([Command::barrier()])
        .chain(ids().map(|id| Command::pages(DomainId(id))))
        .chain(ids().map(|id| Command::interrupt_table(RequesterId(id))))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use handoff_abi::PhysAddr;

    use super::*;
    use crate::pending::{DeviceChange, InterruptChange};

    const UNIT: PhysAddr = PhysAddr(0xfed8_0000);

    fn blocked(requester: u16, domain: u16) -> Pending {
        Pending::stored(UNIT)
            .with_device(DeviceChange {
                requester: RequesterId(requester),
                domain: DomainId(domain),
                retire: true,
            })
            .with_domain(DomainId(domain))
    }

    fn interrupts(requester: u16) -> Pending {
        Pending::stored(UNIT).with_interrupt(InterruptChange {
            source: RequesterId(requester),
            index: 0,
            retire: true,
        })
    }

    fn batch(pending: &Pending, more: &[u16], all_at_once: bool) -> Vec<Command> {
        let more: Vec<_> = more.iter().copied().map(RequesterId).collect();
        let mut buses = Buses::default();
        buses.mark(RequesterId(0x0100));
        commands(
            pending,
            &more,
            Cached {
                all_at_once,
                buses: &buses,
                domains: &[DomainId(5)],
            },
        )
        .collect()
    }

    #[test]
    fn a_batch_has_devices_then_domains_then_interrupt_tables_each_once() {
        let pending = interrupts(9)
            .merge(blocked(8, 1))
            .merge(blocked(9, 1))
            .merge(blocked(8, 2))
            .merge(interrupts(9));
        assert_eq!(
            batch(&pending, &[7], true),
            [
                Command::device_entry(RequesterId(8)),
                Command::device_entry(RequesterId(9)),
                Command::device_entry(RequesterId(7)),
                Command::barrier(),
                Command::pages(DomainId(1)),
                Command::pages(DomainId(2)),
                Command::interrupt_table(RequesterId(9)),
            ]
        );
    }

    #[test]
    fn many_devices_are_invalidated_by_one_command_or_in_a_loop() {
        let many = (0..9).fold(interrupts(0x0100), |all, device| {
            all.merge(blocked(0x0100 + device, 1))
        });
        assert_eq!(batch(&many, &[], true), [Command::all()]);
        let loops = batch(&many, &[], false);
        assert_eq!(loops.len(), 256 + 1 + 1 + 1);
        assert_eq!(loops[0], Command::device_entry(RequesterId(0x0100)));
        assert_eq!(loops[255], Command::device_entry(RequesterId(0x01ff)));
        assert_eq!(loops[256], Command::barrier());
        assert_eq!(loops[257], Command::pages(DomainId(1)));
        assert_eq!(loops[258], Command::interrupt_table(RequesterId(0x0100)));
        let everything = batch(&Pending::everything(UNIT), &[], false);
        assert_eq!(everything.len(), 256 + 1 + 1 + 256);
    }

    #[test]
    fn every_id_is_every_id() {
        assert_eq!(every_id().count(), 3 * 65536 + 1);
        assert_eq!(
            every_id().last(),
            Some(Command::interrupt_table(RequesterId(u16::MAX)))
        );
    }
}
