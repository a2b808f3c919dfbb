//! The planner: what a new partition gets, or every reason why it cannot have it.
//!
//! [`plan`] compares a [`Request`] with a [`Machine`] and writes nothing but its result, so every
//! call is a dry run. It checks every rule, also after one is broken, and leaves what it found in
//! [`Findings`]: *refusals*, which mean that there is no plan, and *warnings*, which do not.
//!
//! The groups of functions that cannot be kept apart come from [`alias`].
//!
//! Plan and findings live on the caller's stack, with about 5 KiB each.
//!
//! ```
//! use handoff_abi::{ApicId, Owner, PartitionId, PhysAddr, PhysRange};
//! use partition_core::plan::*;
//!
//! let prime = Owner::Partition(PartitionId(1));
//! let cpu = |id| Cpu {
//!     apic_id: ApicId(id),
//!     core: id,
//!     is_bsp: id == 0,
//!     runs_prime: id == 0,
//!     features: 0,
//!     microcode: 0,
//!     owner: prime,
//! };
//! let machine = Machine {
//!     prime: PartitionId(1),
//!     cpus: &[cpu(0), cpu(1)],
//!     memory: &[MemoryRegion {
//!         range: PhysRange::from_bounds(PhysAddr(0), PhysAddr(1 << 30)),
//!         kind: MemoryKind::Usable,
//!         owner: prime,
//!     }],
//!     functions: &[],
//!     reservations: &[],
//!     units: &[],
//!     windows: &[],
//!     ecam: &[],
//!     singletons: &[],
//!     budget: Budget { table_pages: 0, ledger_slots: 16, interrupt_handles: 0, domain: None },
//! };
//! let mut request = Request {
//!     partition: PartitionId(2),
//!     name: "beta",
//!     cpus: CpuRequest::Count(1),
//!     memory: MemoryRequest::Bytes {
//!         length: 64 << 20,
//!         alignment: 2 << 20,
//!         below: PhysAddr(1 << 32),
//!     },
//!     least_memory: 0,
//!     trampoline: Trampoline::Any,
//!     functions: &[],
//!     singletons: &[],
//!     accept_unfenced: false,
//!     messages: Messages::Handles,
//!     strict: true,
//! };
//! let mut findings = Findings::new();
//! let plan = plan(&machine, &request, &mut findings)?;
//! assert_eq!(plan.cpus(), [ApicId(1)]);
//! assert_eq!(plan.memory(), [PhysRange::new(PhysAddr(2 << 20), 64 << 20).unwrap()]);
//!
//! request.cpus = CpuRequest::These(&[ApicId(0)]);
//! partition_core::plan::plan(&machine, &request, &mut findings).unwrap_err();
//! assert_eq!(findings.refusals()[0].to_string(), "the prime runs on processor 0");
//! # Ok::<(), Refused>(())
//! ```

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

pub mod alias;
mod budget;
mod cpus;
mod findings;
mod functions;
mod identity;
mod machine;
mod memory;
mod outcome;
mod request;
#[cfg(test)]
mod tests;

use handoff_abi::{Exchange, Owner, PartitionId};
use heapless::Vec;

pub use findings::{Findings, List, Reason, Refused, Resource, Supply};
pub use identity::CpuIdentity;
pub use machine::{
    Budget, Buses, Cpu, EcamWindow, Function, FunctionKind, Machine, MemoryKind, MemoryRegion,
    PageSize, Reservation, Singleton, Unit, Window,
};
pub use outcome::{DomainMap, MapReason, Plan, PlannedBus, PlannedFunction, Requester};
pub use request::{CpuRequest, FunctionRequest, MemoryRequest, Messages, Request, Trampoline};

/// Plans a partition, or finds every reason why not.
///
/// A resource can be given away where it belongs to [`Machine::prime`] or is parked. `findings` is
/// emptied first; warnings are in it also where there is a plan.
///
/// # Errors
/// Where a rule refuses the request; the findings have all of them.
pub fn plan(
    machine: &Machine<'_>,
    request: &Request<'_>,
    findings: &mut Findings,
) -> Result<Plan, Refused> {
    findings.clear();
    let mut draft = Draft {
        machine,
        request,
        findings,
        plan: Plan::empty(request.partition),
    };
    draft.partition();
    draft.cpus();
    draft.functions();
    draft.memory();
    draft.reservations();
    draft.singletons();
    draft.budget();
    let plan = draft.plan;
    findings.refusals().first().map_or(Ok(plan), |first| {
        Err(Refused {
            refusals: findings.refusals().len(),
            first: *first,
        })
    })
}

/// A plan in the making. What is in it is only a plan where no rule was broken.
struct Draft<'a> {
    machine: &'a Machine<'a>,
    request: &'a Request<'a>,
    findings: &'a mut Findings,
    plan: Plan,
}

impl Machine<'_> {
    fn may_give(&self, owner: Owner) -> bool {
        owner == Owner::Partition(self.prime) || owner == Owner::Parked
    }

    fn owners(&self) -> impl Iterator<Item = Owner> {
        let cpus = self.cpus.iter().map(|cpu| cpu.owner);
        let memory = self.memory.iter().map(|region| region.owner);
        let functions = self.functions.iter().map(|function| function.owner);
        let singletons = self.singletons.iter().map(|singleton| singleton.owner);
        cpus.chain(memory).chain(functions).chain(singletons)
    }

    fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        let owners = self.owners().filter_map(|owner| match owner {
            Owner::Partition(partition) => Some(partition),
            _ => None,
        });
        core::iter::once(self.prime).chain(owners)
    }
}

impl Draft<'_> {
    fn partition(&mut self) {
        let Request {
            partition, name, ..
        } = *self.request;
        match Vec::from_slice(name.as_bytes()) {
            Ok(bytes) if !name.is_empty() => self.plan.name = bytes,
            _ => self.findings.refuse(Reason::Name { length: name.len() }),
        }
        for other in self.machine.partitions() {
            if other == partition {
                self.findings.refuse(Reason::PartitionTaken { partition });
            } else if Exchange::place(other) == Exchange::place(partition) {
                self.findings
                    .refuse(Reason::PartitionCollides { partition, other });
            }
        }
    }

    fn singletons(&mut self) {
        for (index, &number) in self.request.singletons.iter().enumerate() {
            if self
                .request
                .singletons
                .iter()
                .take(index)
                .any(|&n| n == number)
            {
                self.findings.refuse(Reason::SingletonTwice { number });
                continue;
            }
            let mut found = false;
            for singleton in self
                .machine
                .singletons
                .iter()
                .filter(|s| s.number == number)
            {
                found = true;
                let owner = singleton.owner;
                if !self.machine.may_give(owner) {
                    self.findings
                        .refuse(Reason::SingletonTaken { number, owner });
                }
            }
            if !found {
                self.findings.refuse(Reason::SingletonMissing { number });
            }
            push(
                &mut self.plan.singletons,
                number,
                List::Singletons,
                self.findings,
            );
        }
    }
}

/// Adds to a list of the plan, or refuses the request where the list is full.
fn push<T, const N: usize>(list: &mut Vec<T, N>, item: T, name: List, findings: &mut Findings) {
    if list.push(item).is_err() {
        findings.refuse(Reason::TooMany {
            list: name,
            most: N,
        });
    }
}
