//! Devices that are plugged when the first kernel asks for them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use handoff_abi::RequesterId;

use super::scenarios::{Context, swap_once};
use crate::session::nanoseconds;

/// The machine that AMD-Vi needs, with the hardware that does not: so the plugging alone is tried.
pub(super) fn plugged_devices(context: &Context) -> Result<()> {
    let mut options = context.machine();
    options.plug = true;
    swap_once(context, &options)
}

/// The emulated AMD-Vi takes a function for one on bus 0 that is plugged before its bus has a number.
/// Here each asks under its own requester id, and has its interrupts by its own entry.
pub(super) fn requesters(context: &Context) -> Result<()> {
    let mut options = context.machine();
    let requests = context.iommu.trace_requests().iter();
    options.trace.extend(requests.map(|&one| one.to_owned()));
    let mut session = context.boot("machine", &options, 11)?;
    let devices = session.machine.requesters()?;
    // It raises an interrupt with this device, and copies memory.
    let done = session.machine.consoles[0].command_ok("attack holes", Duration::from_secs(60))?;
    let trace = session.close()?.trace;

    let seen: BTreeSet<RequesterId> = trace
        .requesters()
        .iter()
        .map(|&id| RequesterId(id))
        .collect();
    // The kernel reads and writes the disk before it serves.
    for name in ["nic", "blk", "edu1"] {
        let id = devices.get(name);
        let id = id.with_context(|| format!("there is no device {name}"))?;
        ensure!(
            id.bus() != 0 && seen.contains(id),
            "nothing was asked for by {name}, {id}; only by {seen:?}"
        );
    }
    let known: BTreeSet<RequesterId> = devices.into_values().collect();
    ensure!(
        seen.is_subset(&known),
        "memory was asked for by {seen:?}, and these are all the devices: {known:?}"
    );
    // The entries of functions on bus 0 deny interrupts.
    let between = (nanoseconds(done.sent), nanoseconds(done.ended));
    ensure!(
        trace.interrupts_between(between).any(|one| one.delivered),
        "no interrupt was delivered"
    );
    Ok(())
}
