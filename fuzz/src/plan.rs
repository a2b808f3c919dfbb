//! The planner: machines and requests of any kind. [`rules`] judges what it says of them.
//!
//! Most of what an input asks for is plausible: memory without gaps, functions below ports. One
//! choice in a few is a number of any size, a duplicate or a contradiction.

mod rules;

use handoff_abi::{
    ApicId, DomainId, Owner, PartitionId, PciFunction, PhysAddr, PhysRange, RequesterId, WorkloadId,
};
use partition_core::plan::alias::{Acs, Facts, Isolation, PortType, Requesters, groups};
use partition_core::plan::{
    Budget, Buses, Cpu, CpuRequest, EcamWindow, Findings, Function, FunctionKind, FunctionRequest,
    Machine, MemoryKind, MemoryRegion, MemoryRequest, Messages, PageSize, Plan, Refused, Request,
    Reservation, Singleton, Trampoline, Unit, Window, plan as make,
};

use crate::grammar::Input;

const PAGE: u64 = 4096;

fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() % 32 {
        // Less than 4 MiB, so that things meet.
        0..=25 => u64::from(input.word() % 0x400) * PAGE,
        26 => u64::from(input.double()),
        27 => 0xfede_0000 + u64::from(input.word()) * 0x20,
        28 => 1 << (input.byte() % 64),
        29 => (1_u64 << (input.byte() % 64)).wrapping_neg(),
        _ => input.quad(),
    }
}

fn length(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        pages @ 0..=0xcf => (u64::from(pages) + 1) * PAGE,
        pages @ 0xd0..=0xef => u64::from(pages - 0xcf) * 64 * PAGE,
        0xf0..=0xf3 => 0,
        0xf4..=0xf7 => u64::from(input.word()),
        _ => address(input),
    }
}

fn range_from(base: u64, length: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base.saturating_add(length)))
}

fn range(input: &mut Input<'_>) -> PhysRange {
    let base = address(input);
    range_from(base, length(input))
}

fn owner(choice: u8, prime: PartitionId) -> Owner {
    match choice % 32 {
        26 => Owner::Parked,
        27 => Owner::Partition(PartitionId(u16::from(choice >> 5) + 2)),
        28 => Owner::Workload(WorkloadId(1)),
        29 => Owner::Quarantined,
        30 => Owner::Firmware,
        31 => Owner::Baton,
        _ => Owner::Partition(prime),
    }
}

/// One of the list, or something made of the choice itself.
fn pick<T: Copy>(list: &[T], choice: u8, other: impl Fn(u8) -> T) -> T {
    list.get(usize::from(choice) % (list.len() + 1))
        .copied()
        .unwrap_or_else(|| other(choice))
}

fn cpus(input: &mut Input<'_>, prime: PartitionId) -> Vec<Cpu> {
    let count = match input.byte() {
        few @ 0..=0xef => u32::from(few % 12),
        many => 250 + u32::from(many & 0xf),
    };
    (0..count)
        .map(|number| {
            let odd = input.byte();
            let mut cpu = Cpu {
                apic_id: ApicId(number),
                core: number / 2,
                is_bsp: number == 0,
                runs_prime: number == 0,
                features: 7,
                microcode: 0x100,
                owner: owner(odd, prime),
            };
            match odd >> 5 {
                5 => cpu.microcode += 1,
                6 => {
                    let what = input.byte();
                    cpu.is_bsp ^= what & 1 != 0;
                    cpu.runs_prime ^= what & 2 != 0;
                    cpu.features ^= u64::from(what & 4);
                    cpu.core += u32::from(what >> 4);
                }
                7 => cpu.apic_id = ApicId(input.byte().into()),
                _ => {}
            }
            cpu
        })
        .collect()
}

fn memory(input: &mut Input<'_>, prime: PartitionId) -> Vec<MemoryRegion> {
    let mut end = 0;
    (0..input.byte() % 16)
        .map(|_| {
            let odd = input.byte();
            let base = if odd & 7 == 7 { address(input) } else { end };
            let range = range_from(base, length(input));
            end = range.end().0;
            let choice = input.byte();
            MemoryRegion {
                range,
                kind: match odd >> 3 {
                    27 => MemoryKind::InUse,
                    28 => MemoryKind::Reserved,
                    29 => MemoryKind::AcpiReclaimable,
                    30 => MemoryKind::AcpiNvs,
                    31 => MemoryKind::Unusable,
                    _ => MemoryKind::Usable,
                },
                owner: owner(choice, prime),
            }
        })
        .collect()
}

/// A tree of ports, bridges and devices, drawn from the top down.
fn facts(input: &mut Input<'_>) -> Vec<Facts> {
    let mut all: Vec<Facts> = Vec::new();
    let (mut bus, mut last, mut device) = (0_u8, 0_u8, 0_u8);
    let count = match input.byte() {
        few @ 0..=0xfb => few % 16,
        many => many - 0xb0,
    };
    for _ in 0..count {
        let odd = input.byte();
        let (port, leads) = match odd % 8 {
            0 => (Some(PortType::RootPort), true),
            1 => (Some(PortType::PcieToPciBridge), true),
            2 => (Some(PortType::UpstreamPort), true),
            3 => (Some(PortType::DownstreamPort), true),
            4 => (PortType::from_bits(odd >> 4), false),
            _ => (Some(PortType::Endpoint), false),
        };
        if port == Some(PortType::RootPort) {
            (bus, device) = (0, device.max(last));
        }
        let mut function = PciFunction {
            segment: 0,
            requester: RequesterId(
                u16::from(bus) << 8 | u16::from(device % 32) << 3 | u16::from(odd >> 3 & 1),
            ),
        };
        device = device.wrapping_add(1);
        let mut buses = Buses {
            secondary: last.wrapping_add(1),
            subordinate: last.wrapping_add(1 + (odd >> 6)),
        };
        let mut quirk = None;
        if odd >> 4 == 15 {
            let what = input.byte();
            match what % 4 {
                0 => function.requester = RequesterId(input.word()),
                1 => function.segment = 1,
                2 => quirk = Some(RequesterId(input.word())),
                _ => (buses.secondary, buses.subordinate) = (input.byte(), input.byte()),
            }
        }
        let kind = if leads {
            (bus, last, device) = (buses.secondary, buses.subordinate, 0);
            FunctionKind::Bridge(buses)
        } else {
            FunctionKind::Endpoint
        };
        all.push(Facts {
            function,
            kind,
            port,
            acs: match odd >> 4 & 3 {
                0 => Acs::empty(),
                1 => Acs::from_bits_retain(u16::from(odd)),
                _ => Acs::PORT,
            },
            phantom_functions: if odd == 0xe5 { input.byte() } else { 0 },
            quirk,
        });
    }
    all
}

fn functions(input: &mut Input<'_>, prime: PartitionId) -> Vec<Function> {
    let facts = facts(input);
    let mut isolation: Vec<_> = facts
        .iter()
        .zip(0..)
        .map(|(facts, group)| Isolation::alone(facts.function, group))
        .collect();
    if groups(&facts, &mut isolation).is_ok() {
        rules::groups_keep_ids_together(&facts, &isolation);
    }
    facts
        .iter()
        .zip(isolation)
        .map(|(facts, isolation)| {
            let odd = input.byte();
            let mut function = Function {
                function: facts.function,
                class: 0x02_0000,
                kind: facts.kind,
                isolation,
                unit: Some(0),
                intx: None,
                intx_disabled: false,
                messages: 4,
                ats_required: false,
                owner: owner(odd, prime),
            };
            match odd >> 5 {
                // What no topology leads to.
                5 => {
                    let what = input.byte();
                    let iso = &mut function.isolation;
                    match what % 4 {
                        0 => iso.group = u16::from(what >> 4),
                        1 => iso.requesters = Requesters::only(RequesterId(input.word())),
                        2 => iso.below = None,
                        _ => iso.below = Some(facts.function),
                    }
                }
                6 => {
                    let what = input.byte();
                    function.unit = [None, Some(1), Some(2), Some(0xffff)][usize::from(what % 4)];
                    function.ats_required = what & 0x80 != 0;
                }
                7 => {
                    let what = input.byte();
                    function.intx = Some(20 + u32::from(what & 1));
                    function.intx_disabled = what & 2 != 0;
                    function.messages = u16::from(what >> 2 & 1);
                }
                _ => {}
            }
            function
        })
        .collect()
}

/// The lists of a machine.
struct World {
    prime: PartitionId,
    cpus: Vec<Cpu>,
    memory: Vec<MemoryRegion>,
    functions: Vec<Function>,
    reservations: Vec<Reservation>,
    units: Vec<Unit>,
    windows: Vec<Window>,
    ecam: Vec<EcamWindow>,
    singletons: Vec<Singleton>,
    budget: Budget,
}

impl World {
    fn machine(&self) -> Machine<'_> {
        Machine {
            prime: self.prime,
            cpus: &self.cpus,
            memory: &self.memory,
            functions: &self.functions,
            reservations: &self.reservations,
            units: &self.units,
            windows: &self.windows,
            ecam: &self.ecam,
            singletons: &self.singletons,
            budget: self.budget,
        }
    }
}

fn any_function(number: u8) -> PciFunction {
    PciFunction {
        segment: u16::from(number >> 7),
        requester: RequesterId(u16::from(number) << 3),
    }
}

fn world(input: &mut Input<'_>) -> World {
    let prime = PartitionId(1);
    let cpus = cpus(input, prime);
    let memory = memory(input, prime);
    let mut functions = functions(input, prime);
    // The same function once more.
    if input.byte() % 32 == 31 {
        let choice = usize::from(input.byte());
        if let Some(again) = functions.get(choice % functions.len().max(1)) {
            let mut again = *again;
            match input.byte() % 4 {
                0 => {}
                1 => again.owner = Owner::Quarantined,
                2 => again.unit = Some(1),
                _ => again.messages = 0,
            }
            functions.push(again);
        }
    }
    let known: Vec<_> = functions.iter().map(|entry| entry.function).collect();
    let reservations = (0..input.byte() % 6)
        .map(|_| Reservation {
            function: pick(&known, input.byte(), any_function),
            range: range(input),
        })
        .collect();
    let units = (0..input.byte() % 4)
        .map(|_| {
            let odd = input.byte();
            Unit {
                usable: odd & 7 != 7,
                interrupt_remapping: odd >> 3 & 7 != 7,
                remaps_any_message: odd & 1 != 0,
                levels: if odd >> 6 == 3 { input.byte() } else { 4 },
                largest_page: match odd % 3 {
                    0 => PageSize::Size2MiB,
                    1 => PageSize::Size1GiB,
                    _ => PageSize::Size4KiB,
                },
            }
        })
        .collect();
    let windows = (0..input.byte() % 8)
        .map(|_| Window {
            function: pick(&known, input.byte(), any_function),
            range: range(input),
        })
        .collect();
    let ecam = (0..=input.byte() % 3)
        .map(|number| {
            let odd = input.byte();
            EcamWindow {
                segment: u16::from(number),
                first_bus: if odd & 7 == 7 { input.byte() } else { 0 },
                last_bus: if odd & 56 == 56 { input.byte() } else { 255 },
                base: PhysAddr(if odd >> 6 == 3 {
                    address(input)
                } else {
                    0xb000_0000
                }),
            }
        })
        .collect();
    let singletons = (0..input.byte() % 24)
        .map(|number| {
            let odd = input.byte();
            Singleton {
                number: u64::from(if odd >> 5 == 7 { 1 } else { number }),
                owner: owner(odd, prime),
            }
        })
        .collect();
    let scarce = input.byte();
    let mut budget = Budget {
        table_pages: 1 << 50,
        ledger_slots: 64,
        interrupt_handles: 64,
        domain: Some(DomainId(3)),
    };
    match scarce % 16 {
        12 => budget.table_pages = input.byte().into(),
        13 => budget.ledger_slots = input.byte().into(),
        14 => budget.interrupt_handles = input.byte().into(),
        15 => budget.domain = None,
        _ => {}
    }
    World {
        prime,
        cpus,
        memory,
        functions,
        reservations,
        units,
        windows,
        ecam,
        singletons,
        budget,
    }
}

/// Any request to any machine.
pub fn plan(bytes: &[u8]) {
    planned(bytes, rules::judge);
}

/// Plans what the bytes ask for, and has somebody look at what came of it.
fn planned<T>(
    bytes: &[u8],
    look: impl FnOnce(&Machine<'_>, &Request<'_>, &Findings, &Result<Plan, Refused>) -> T,
) -> T {
    let mut input = Input(bytes);
    let input = &mut input;
    let world = world(input);
    let known: Vec<_> = world.cpus.iter().map(|cpu| cpu.apic_id).collect();
    let mut ids = Vec::new();
    let cpus = match input.byte() {
        many @ 0xf0.. => CpuRequest::Count(u32::from(input.word()) << (many & 0xf)),
        few @ 0x80.. => CpuRequest::Count(u32::from(few % 8)),
        few => {
            ids.extend(
                (0..few % 8).map(|_| pick(&known, input.byte(), |other| ApicId(other.into()))),
            );
            if few == 0x7f {
                ids.extend(&known);
            }
            CpuRequest::These(&ids)
        }
    };
    let mut ranges = Vec::new();
    let memory = match input.byte() {
        chosen @ 0x80.. => {
            let length = length(input);
            let alignment = match chosen & 0xf {
                14 => address(input),
                15 => 1 << (input.byte() % 64),
                some => PAGE << (some % 4),
            };
            let below = if chosen >> 4 & 3 == 3 {
                address(input)
            } else {
                1 << 32
            };
            MemoryRequest::Bytes {
                length,
                alignment,
                below: PhysAddr(below),
            }
        }
        these => {
            ranges.extend((0..these % 20).map(|_| range(input)));
            MemoryRequest::These(&ranges)
        }
    };
    let places: Vec<_> = world.functions.iter().map(|entry| entry.function).collect();
    let mut functions = Vec::new();
    let wish = |function, interrupts| FunctionRequest {
        function,
        interrupts,
    };
    match input.byte() {
        // All that is below a port.
        all @ 0xe0.. => functions.extend(
            world
                .functions
                .iter()
                .filter(|entry| !entry.is_bridge() && entry.isolation.below.is_some())
                .map(|entry| wish(entry.function, u16::from(all & 1))),
        ),
        some => functions.extend((0..some % 6).map(|_| {
            let odd = input.byte();
            let interrupts = if odd >> 4 == 15 { input.word() } else { 1 };
            wish(pick(&places, odd, any_function), interrupts)
        })),
    }
    let numbers: Vec<_> = (0..input.byte() % 24)
        .map(|number| {
            u64::from(if number % 4 == 3 {
                input.byte()
            } else {
                number
            })
        })
        .collect();
    let names = ["beta", "", &"n".repeat(32), &"n".repeat(33)];
    let odd = input.byte();
    let request = Request {
        partition: PartitionId(if odd >> 5 == 7 { input.word() } else { 2 }),
        name: names[if odd & 28 == 28 {
            usize::from(odd & 3)
        } else {
            0
        }],
        cpus,
        memory,
        least_memory: if odd >> 5 == 6 { length(input) } else { 0 },
        trampoline: match input.byte() {
            0..0x60 => Trampoline::None,
            0x60..0xd0 => Trampoline::Any,
            at @ 0xd0..0xf0 => Trampoline::At(PhysAddr(u64::from(at - 0xd0) * 0x5000)),
            _ => Trampoline::At(PhysAddr(address(input))),
        },
        functions: &functions,
        singletons: &numbers,
        messages: match odd >> 2 & 7 {
            5 => Messages::Any { accept_open: false },
            6 => Messages::Any { accept_open: true },
            _ => Messages::Handles,
        },
        accept_unfenced: odd & 1 != 0,
        strict: odd & 2 != 0,
    };
    let mut findings = Findings::new();
    let machine = world.machine();
    let result = make(&machine, &request, &mut findings);
    look(&machine, &request, &findings, &result)
}

/// Machines with a little of all, and requests that are granted.
pub(crate) fn seeds() -> [Vec<u8>; 3] {
    // Four processors, 9 pages of low memory, 3 MiB of free memory, one region of firmware's.
    let mut machine = vec![4, 0, 0, 0, 0];
    machine.extend_from_slice(&[3, 0, 158, 0, 0xe0, 0xd1, 30, 0, 0xdb, 0]);
    // A root port and a device, another and another, one with a bridge and two devices behind it.
    machine.extend_from_slice(&[8, 0x20, 5, 0x20, 5, 0x20, 1, 5, 13]);
    machine.extend_from_slice(&[0; 8]);
    // No function twice; a reserved region; a unit; registers of the first device; all buses.
    machine.extend_from_slice(&[0, 1, 1, 0, 0xa0, 0, 0, 1, 0, 1, 1, 0, 0xff, 3, 0, 0, 0]);
    // Two singletons, and plenty of everything else.
    machine.extend_from_slice(&[2, 0, 0, 0]);
    let request = |rest: &[u8]| [&machine, rest].concat();
    [
        // Two processors, a range, the first device, no singleton, strict, a trampoline.
        request(&[2, 2, 3, 1, 0, 0, 2, 15, 1, 1, 2, 2, 0x80]),
        // What the planner chooses; all devices; both singletons.
        request(&[0x82, 0x80, 31, 0xe1, 2, 2, 0x80]),
        // A function that shares an id with one that stays.
        request(&[0x82, 0x80, 7, 1, 6, 0, 2, 0]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_granted_and_refused_as_they_say() {
        let said = seeds().map(|seed| {
            planned(&seed, |_, _, findings, result| {
                let refusals = findings.refusals().iter();
                let devices = result.as_ref().map_or(0, |plan| plan.functions().len());
                (
                    devices,
                    refusals.map(|reason| reason.rule()).collect::<Vec<_>>(),
                )
            })
        });
        let shared = vec!["requester-shared"];
        assert_eq!(said, [(1, vec![]), (4, vec![]), (0, shared)]);
    }
}
