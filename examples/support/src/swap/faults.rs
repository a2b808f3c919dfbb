//! The unit's fault records: drained by the steward, when the unit says that there are any, and bounded.
//! A device that makes too many is silenced in the unit and loses its bus mastering, whoever's it is.

use alloc::vec::Vec;

use acpi_capture::Capture;
use handoff_abi::{ApicId, InterruptMessage, Message, PciFunction, RequesterId, message};
use iommu::storm::{self, FaultCounts, Limit, Storm};
use iommu::{Access, Fault};

use super::devices::Configuration;
use super::inventory::Topology;
use super::kernel::{Failure, Kernel, copy_out};
use crate::cpu::apic_id;
use crate::{clock, interrupts, pci, println};

/// What a device may make: 24 faults within 5 s. The attempts of `attack` are fewer, a device that
/// does nothing else makes more.
const LIMIT: Limit = Limit {
    faults: 24,
    window: 5_000,
};
/// The vector of the unit's message that there is a fault.
const VECTOR: u8 = 0xf2;
/// How often the steward looks where there is no such message, in microseconds.
const LOOK: u64 = 250_000;

/// What has been drained.
#[derive(Debug)]
pub struct Faults {
    counts: FaultCounts<16>,
    /// The first that nobody was told of, and how many there are.
    first: Option<Fault>,
    records: u32,
    listens: Listens,
}

/// How the steward hears of a fault.
#[derive(Clone, Copy, Debug, Default)]
enum Listens {
    /// It does not yet.
    #[default]
    NotYet,
    /// The unit sends a message to this processor, which has taken so many of them. There may be more
    /// faults than were drained at a time.
    Message { to: ApicId, taken: u64, more: bool },
    /// It looks by the clock: next when this is over.
    Clock(clock::Deadline),
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            counts: FaultCounts::new(LIMIT),
            first: None,
            records: 0,
            listens: Listens::NotYet,
        }
    }
}

impl Faults {
    /// The unit was taken over: whom its message goes to was another kernel's to say.
    pub const fn taken_over(&mut self) {
        self.listens = Listens::NotYet;
    }

    /// Forgets requesters that have a new owner: they are heard again.
    pub fn forget(&mut self, requesters: &[RequesterId]) {
        for &requester in requesters {
            self.counts.forget(requester);
        }
    }
}

/// Looks for faults if there is reason to. Called on the control processor.
///
/// # Errors
/// Where the unit does not answer.
pub fn look(kernel: &mut Kernel) -> Result<(), Failure> {
    if kernel.unit.is_none() {
        return Ok(());
    }
    let here = apic_id();
    // Before the records are read: what comes meanwhile is looked for again.
    let came = interrupts::count(VECTOR);
    match kernel.faults.listens {
        Listens::Message { to, taken, more } if to == here => {
            if taken == came && !more {
                return Ok(());
            }
        }
        Listens::Clock(next) => {
            if !next.expired() {
                return Ok(());
            }
        }
        Listens::NotYet | Listens::Message { .. } => {
            let (address, data) = pci::message(here, VECTOR);
            let announced = kernel
                .unit()?
                .announce_faults(InterruptMessage { address, data })?;
            println!(
                "@faults announced={} cpu={here}",
                if announced { "yes" } else { "no" }
            );
            // What was recorded before is not announced.
            kernel.faults.listens = if announced {
                Listens::Message {
                    to: here,
                    taken: came,
                    more: true,
                }
            } else {
                Listens::Clock(clock::Deadline::default())
            };
        }
    }
    let more = take(kernel)?;
    kernel.faults.listens = match kernel.faults.listens {
        Listens::Message { to, .. } => Listens::Message {
            to,
            taken: came,
            more,
        },
        Listens::NotYet | Listens::Clock(_) => Listens::Clock(clock::Deadline::after(LOOK)),
    };
    Ok(())
}

/// Drains the fault records into a message: how many there were since the last one, and the first.
///
/// # Errors
/// Where this kernel does not drive the unit, or that does not answer.
pub fn drain(kernel: &mut Kernel) -> Result<Message, Failure> {
    take(kernel)?;
    let records = core::mem::take(&mut kernel.faults.records);
    let mut reply = [message::DRAINED, records.into(), 0, 0, 0, 0, 0, 0];
    if let Some(fault) = kernel.faults.first.take() {
        reply[2] = fault.source.0.into();
        reply[3] = fault.address().unwrap_or(0);
        reply[4] = fault.code.into();
        reply[5] = fault
            .access()
            .is_some_and(|access| access.contains(Access::WRITE))
            .into();
        println!(
            "@fault source={} address={:#x} code={} text=\"{fault}\"",
            fault.source, reply[3], fault.code
        );
    }
    Ok(reply)
}

/// Takes what is recorded, and says whether there is more.
fn take(kernel: &mut Kernel) -> Result<bool, Failure> {
    kernel.unit()?;
    let mut more = false;
    let Kernel { unit, faults, .. } = kernel;
    if let Some(unit) = unit {
        let now = clock::now() / 1_000_000;
        let count = unit.drain_faults(|fault| {
            faults.counts.note(fault.source, now);
            faults.first.get_or_insert(fault);
        })?;
        faults.records = faults.records.saturating_add(count.records);
        more = count.more;
    }
    while let Some(storm) = kernel.faults.counts.next_storm() {
        stop(kernel, storm)?;
    }
    Ok(more)
}

/// Stops a requester. Its owner may see that by its device's bus master bit.
fn stop(kernel: &mut Kernel, storm: Storm) -> Result<(), Failure> {
    let functions = functions_of(kernel, storm.requester)?;
    let stopped = storm::stop(storm, &functions, &mut Configuration, |requester| {
        let unit = kernel.unit()?;
        let pending = unit.silence(requester, true)?;
        unit.flush(pending)?;
        Ok::<_, Failure>(())
    });
    println!(
        "@storm source={} faults={} bounded={} text=\"{stopped}\"",
        storm.requester,
        storm.faults,
        if stopped.is_bounded() { "yes" } else { "no" }
    );
    Ok(())
}

/// The functions whose requests may come with this id.
fn functions_of(kernel: &mut Kernel, requester: RequesterId) -> Result<Vec<PciFunction>, Failure> {
    // SAFETY: the window maps the baton.
    let bytes = unsafe { copy_out(kernel.baton.capture) };
    let topology = Topology::scan(kernel, &Capture::parse(&bytes)?)?;
    Ok(topology
        .endpoints()
        .filter(|&function| topology.requesters(function).contains(&requester))
        .collect())
}
