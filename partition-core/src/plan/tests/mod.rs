//! Tests of the planner: a machine to plan for, each rule by itself, and an independent judge for
//! machines and requests made up at random.

mod alias;
mod edges;
mod judge;
mod properties;
mod rules;
mod tables;

use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use handoff_abi::{
    ApicId, DomainId, Owner, PartitionId, PciFunction, PhysAddr, PhysRange, RequesterId, resource,
};

use super::alias::{Acs, Facts, Isolation, PortType, groups};
use super::*;

const PRIME: Owner = Owner::Partition(PartitionId(1));
const NEIGHBOUR: Owner = Owner::Partition(PartitionId(3));
const MIB: u64 = 1 << 20;

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

fn function(bus: u8, device: u8, number: u8) -> PciFunction {
    PciFunction {
        segment: 0,
        requester: RequesterId::new(bus, device, number).unwrap(),
    }
}

/// A machine that owns its lists.
#[derive(Clone, Debug)]
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

    fn function(&mut self, wanted: PciFunction) -> &mut Function {
        let mut all = self.functions.iter_mut();
        all.find(|entry| entry.function == wanted).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Cpus {
    These(Vec<u32>),
    Count(u32),
}

#[derive(Clone, Debug)]
enum Memory {
    These(Vec<PhysRange>),
    Bytes {
        length: u64,
        alignment: u64,
        below: u64,
    },
}

/// A request that owns its lists.
#[derive(Clone, Debug)]
struct Ask {
    partition: PartitionId,
    name: String,
    cpus: Cpus,
    memory: Memory,
    least_memory: u64,
    trampoline: Trampoline,
    functions: Vec<FunctionRequest>,
    singletons: Vec<u64>,
    accept_unfenced: bool,
    messages: Messages,
    strict: bool,
}

impl Ask {
    /// Plans this for that machine.
    fn plan(&self, world: &World, findings: &mut Findings) -> Result<Plan, Refused> {
        let ids: Vec<ApicId>;
        let cpus = match &self.cpus {
            Cpus::These(list) => {
                ids = list.iter().copied().map(ApicId).collect();
                CpuRequest::These(&ids)
            }
            Cpus::Count(count) => CpuRequest::Count(*count),
        };
        let memory = match &self.memory {
            Memory::These(ranges) => MemoryRequest::These(ranges),
            &Memory::Bytes {
                length,
                alignment,
                below,
            } => MemoryRequest::Bytes {
                length,
                alignment,
                below: PhysAddr(below),
            },
        };
        let request = Request {
            partition: self.partition,
            name: &self.name,
            cpus,
            memory,
            least_memory: self.least_memory,
            trampoline: self.trampoline,
            functions: &self.functions,
            singletons: &self.singletons,
            accept_unfenced: self.accept_unfenced,
            messages: self.messages,
            strict: self.strict,
        };
        plan(&world.machine(), &request, findings)
    }

    fn add(&mut self, function: PciFunction) {
        self.functions.push(FunctionRequest {
            function,
            interrupts: 1,
        });
    }
}

fn root_port(device: u8, bus: u8, last: u8) -> Facts {
    Facts {
        function: function(0, device, 0),
        kind: FunctionKind::Bridge(Buses {
            secondary: bus,
            subordinate: last,
        }),
        port: Some(PortType::RootPort),
        acs: Acs::PORT,
        phantom_functions: 0,
        quirk: None,
    }
}

fn endpoint(bus: u8, device: u8, number: u8) -> Facts {
    Facts {
        function: function(bus, device, number),
        kind: FunctionKind::Endpoint,
        port: Some(PortType::Endpoint),
        acs: Acs::empty(),
        phantom_functions: 0,
        quirk: None,
    }
}

fn bridge(bus: u8, device: u8, port: Option<PortType>, secondary: u8, subordinate: u8) -> Facts {
    Facts {
        kind: FunctionKind::Bridge(Buses {
            secondary,
            subordinate,
        }),
        port,
        ..endpoint(bus, device, 0)
    }
}

fn solve(facts: &[Facts]) -> Vec<Isolation> {
    let mut results = vec![Isolation::alone(function(0, 0, 0), 0); facts.len()];
    groups(facts, &mut results).unwrap();
    results
}

/// Functions as a machine has them, from facts about their places.
fn functions(facts: &[Facts]) -> Vec<Function> {
    let isolation = solve(facts);
    facts
        .iter()
        .zip(isolation)
        .map(|(facts, isolation)| Function {
            function: facts.function,
            class: 0x02_0000,
            kind: facts.kind,
            isolation,
            unit: Some(0),
            intx: None,
            intx_disabled: false,
            messages: 4,
            ats_required: false,
            owner: PRIME,
        })
        .collect()
}

const NET: u8 = 1;
const DISK: u8 = 2;
const EDU: u8 = 3;

/// Four processors, the last two threads of one core; 1 GiB of memory; three devices alone below a
/// root port each, one on the root bus, and two below a PCI Express to PCI bridge.
fn world() -> World {
    let cpu = |id: u32, core: u32| Cpu {
        apic_id: ApicId(id),
        core,
        is_bsp: id == 0,
        runs_prime: id == 0,
        features: 7,
        microcode: 0x100,
        owner: PRIME,
    };
    let region = |base: u64, end: u64, kind, owner| MemoryRegion {
        range: range(base, end - base),
        kind,
        owner,
    };
    let usable = MemoryKind::Usable;
    let reserved = MemoryKind::Reserved;
    let mut facts = vec![endpoint(0, 2, 0)];
    for bus in [NET, DISK, EDU] {
        facts.push(root_port(bus + 2, bus, bus));
        facts.push(endpoint(bus, 0, 0));
    }
    facts.push(root_port(9, 6, 7));
    facts.push(bridge(6, 0, Some(PortType::PcieToPciBridge), 7, 7));
    facts.push(Facts {
        port: None,
        ..endpoint(7, 4, 0)
    });
    facts.push(Facts {
        port: None,
        ..endpoint(7, 5, 0)
    });
    let windows = [NET, DISK, EDU]
        .map(|bus| Window {
            function: function(bus, 0, 0),
            range: range(0xfe00_0000 + u64::from(bus) * MIB, 0x4000),
        })
        .to_vec();
    World {
        prime: PartitionId(1),
        cpus: vec![cpu(0, 0), cpu(1, 1), cpu(2, 2), cpu(3, 2)],
        memory: vec![
            region(0, 0x9_f000, usable, PRIME),
            region(0x9_f000, MIB, reserved, Owner::Firmware),
            region(MIB, 16 * MIB, MemoryKind::InUse, PRIME),
            region(16 * MIB, 512 * MIB, usable, PRIME),
            region(512 * MIB, 520 * MIB, usable, Owner::Baton),
            region(520 * MIB, 600 * MIB, usable, PRIME),
            region(
                600 * MIB,
                640 * MIB,
                usable,
                Owner::Workload(handoff_abi::WorkloadId(1)),
            ),
            region(640 * MIB, 1000 * MIB, usable, NEIGHBOUR),
            region(1000 * MIB, 1024 * MIB, MemoryKind::AcpiNvs, Owner::Firmware),
        ],
        functions: functions(&facts),
        reservations: vec![],
        units: vec![Unit {
            usable: true,
            interrupt_remapping: true,
            remaps_any_message: false,
            levels: 4,
            largest_page: PageSize::Size2MiB,
        }],
        windows,
        ecam: vec![EcamWindow {
            segment: 0,
            first_bus: 0,
            last_bus: 255,
            base: PhysAddr(0xb000_0000),
        }],
        singletons: vec![
            Singleton {
                number: resource::UART_0,
                owner: PRIME,
            },
            Singleton {
                number: resource::UART_1,
                owner: PRIME,
            },
        ],
        budget: Budget {
            table_pages: 64,
            ledger_slots: 64,
            interrupt_handles: 64,
            domain: Some(DomainId(2)),
        },
    }
}

/// Two threads, 128 MiB, a page to start from, two devices and a console: all as it should be.
fn ask() -> Ask {
    let mut ask = Ask {
        partition: PartitionId(2),
        name: "beta".to_string(),
        cpus: Cpus::These(vec![2, 3]),
        memory: Memory::These(vec![range(256 * MIB, 128 * MIB)]),
        least_memory: 64 * MIB,
        trampoline: Trampoline::Any,
        functions: vec![],
        singletons: vec![resource::UART_1],
        accept_unfenced: false,
        messages: Messages::Handles,
        strict: true,
    };
    ask.add(function(NET, 0, 0));
    ask.add(function(EDU, 0, 0));
    ask
}

#[test]
fn a_function_that_is_listed_twice_is_given_once() {
    let (mut world, mut ask) = (world(), ask());
    ask.accept_unfenced = true;
    let once = ask.plan(&world, &mut Findings::new()).unwrap();
    // Another unit, which cannot remap interrupts.
    world.units.push(Unit {
        interrupt_remapping: false,
        ..world.units[0]
    });
    let again = Function {
        unit: Some(1),
        ..*world.function(function(NET, 0, 0))
    };
    world.functions.push(again);
    let plan = ask.plan(&world, &mut Findings::new()).unwrap();
    assert_eq!(plan.functions().len(), once.functions().len());
    assert_eq!(plan.interrupt_handles(), once.interrupt_handles());
    assert!(once.functions()[0].fenced && !plan.functions()[0].fenced);
    // Its requests are to be caught wherever they go.
    let id = again.function.requester;
    let ids = plan.requesters().iter().filter(|at| at.id == id);
    assert_eq!(ids.map(|at| at.unit).collect::<Vec<_>>(), [0, 1]);
    // What one entry does not allow is refused.
    world.functions.last_mut().unwrap().owner = NEIGHBOUR;
    let mut findings = Findings::new();
    ask.plan(&world, &mut findings).unwrap_err();
    let rules: Vec<_> = findings.refusals().iter().map(Reason::rule).collect();
    assert_eq!(rules, ["function-owner"]);
}

#[test]
fn a_good_request_gets_exactly_what_it_asks_for() {
    let mut findings = Findings::new();
    let plan = ask().plan(&world(), &mut findings).unwrap();
    assert!(findings.refusals().is_empty() && findings.warnings().is_empty());
    assert_eq!(plan.partition(), PartitionId(2));
    assert_eq!(plan.name(), "beta");
    assert_eq!(plan.cpus(), [ApicId(2), ApicId(3)]);
    assert_eq!(plan.memory(), [range(256 * MIB, 128 * MIB)]);
    assert_eq!(plan.memory_bytes(), 128 * MIB);
    assert_eq!(plan.trampoline(), Some(PhysAddr(0x1000)));
    let planned: Vec<_> = plan
        .functions()
        .iter()
        .map(|planned| planned.function)
        .collect();
    assert_eq!(planned, [function(NET, 0, 0), function(EDU, 0, 0)]);
    assert!(plan.is_fenced());
    let ids: Vec<_> = plan
        .requesters()
        .iter()
        .map(|requester| requester.id)
        .collect();
    assert_eq!(ids, [RequesterId(0x0100), RequesterId(0x0300)]);
    let buses: Vec<_> = plan.buses().iter().map(|bus| (bus.bus, bus.ecam)).collect();
    assert_eq!(
        buses,
        [(1, range(0xb010_0000, MIB)), (3, range(0xb030_0000, MIB))]
    );
    let maps: Vec<_> = plan.maps().iter().map(|map| map.range).collect();
    assert_eq!(maps, [range(256 * MIB, 128 * MIB), range(0x1000, 0x1000)]);
    assert_eq!(plan.singletons(), [resource::UART_1]);
    assert_eq!(plan.domain(), Some(DomainId(2)));
    assert_eq!(plan.interrupt_handles(), 2);
    // A root, a table of each lower level but the lowest for 128 MiB in large pages, all three for
    // the trampoline page (two of them counted twice), and two context tables.
    assert_eq!(plan.table_pages(), 1 + 2 + 3 + 2);
    assert_eq!(plan.ledger_slots(), 5);
}

#[test]
fn both_functions_behind_a_bridge_come_with_all_its_ids() {
    let mut ask = ask();
    ask.functions.clear();
    ask.add(function(7, 4, 0));
    ask.add(function(7, 5, 0));
    let plan = ask.plan(&world(), &mut Findings::new()).unwrap();
    let ids: Vec<_> = plan
        .requesters()
        .iter()
        .map(|requester| requester.id.0)
        .collect();
    assert_eq!(ids, [0x0600, 0x0700, 0x0720, 0x0728]);
    let buses: Vec<_> = plan.buses().iter().map(|bus| bus.bus).collect();
    assert_eq!(buses, [7]);
}

#[test]
fn a_choice_takes_whole_cores_and_the_lowest_memory() {
    let mut ask = ask();
    ask.cpus = Cpus::Count(2);
    ask.memory = Memory::Bytes {
        length: 64 * MIB,
        alignment: 32 * MIB,
        below: 4096 * MIB,
    };
    let mut findings = Findings::new();
    let plan = ask.plan(&world(), &mut findings).unwrap();
    assert_eq!(plan.cpus(), [ApicId(2), ApicId(3)]);
    assert_eq!(plan.memory(), [range(32 * MIB, 64 * MIB)]);
    ask.cpus = Cpus::Count(1);
    let plan = ask.plan(&world(), &mut findings).unwrap();
    assert_eq!(plan.cpus(), [ApicId(1)]);
    ask.cpus = Cpus::Count(3);
    let plan = ask.plan(&world(), &mut findings).unwrap();
    assert_eq!(plan.cpus().len(), 3);
}

#[test]
fn a_choice_of_memory_goes_around_what_is_in_the_way() {
    let mut world = world();
    world.reservations.push(Reservation {
        function: function(NET, 0, 0),
        range: range(20 * MIB, 0x1000),
    });
    let whole = world.memory[3];
    world.memory[3].range = range(16 * MIB, 4 * MIB);
    world.memory.push(MemoryRegion {
        range: range(20 * MIB, 0x1000),
        kind: MemoryKind::Reserved,
        owner: Owner::Firmware,
    });
    world.memory.push(MemoryRegion {
        range: PhysRange::from_bounds(PhysAddr(20 * MIB + 0x1000), whole.range.end()),
        ..whole
    });
    world.windows.push(Window {
        function: function(DISK, 0, 0),
        range: range(30 * MIB, 0x10),
    });
    let mut ask = ask();
    ask.memory = Memory::Bytes {
        length: 16 * MIB,
        alignment: 0x1000,
        below: 4096 * MIB,
    };
    ask.least_memory = 0;
    let plan = ask.plan(&world, &mut Findings::new()).unwrap();
    assert_eq!(plan.memory(), [range(30 * MIB + 0x1000, 16 * MIB)]);
    // The firmware's memory that the first device keeps reaching is mapped for it.
    let reserved: Vec<_> = plan
        .maps()
        .iter()
        .filter(|map| map.reason == MapReason::Reserved)
        .map(|map| map.range)
        .collect();
    assert_eq!(reserved, [range(20 * MIB, 0x1000)]);
}

#[test]
fn a_choice_of_memory_ends_where_it_must() {
    let mut ask = ask();
    let at = |below: u64| Memory::Bytes {
        length: 128 * MIB,
        alignment: 128 * MIB,
        below,
    };
    ask.memory = at(256 * MIB);
    let plan = ask.plan(&world(), &mut Findings::new()).unwrap();
    assert_eq!(plan.memory(), [range(128 * MIB, 128 * MIB)]);
    ask.memory = at(256 * MIB - 1);
    let refused = ask.plan(&world(), &mut Findings::new()).unwrap_err();
    assert_eq!(refused.first.rule(), "memory-not-found");
}

#[test]
fn a_choice_never_takes_the_bootstrap_processor() {
    let mut world = world();
    world.cpus[0].runs_prime = false;
    let mut ask = ask();
    ask.strict = false;
    ask.cpus = Cpus::Count(3);
    let plan = ask.plan(&world, &mut Findings::new()).unwrap();
    assert!(!plan.cpus().contains(&ApicId(0)));
    ask.cpus = Cpus::Count(4);
    let refused = ask.plan(&world, &mut Findings::new()).unwrap_err();
    let (asked, free) = (4, 3);
    assert_eq!(refused.first, Reason::TooFewCpus { asked, free });
}

#[test]
fn a_thread_that_is_parked_still_shares_its_core() {
    let mut world = world();
    world.cpus[3].owner = Owner::Parked;
    let mut ask = ask();
    ask.cpus = Cpus::These(vec![2]);
    let refused = ask.plan(&world, &mut Findings::new()).unwrap_err();
    assert_eq!(refused.first.rule(), "smt-split");
}

#[test]
fn what_a_device_keeps_reaching_may_be_memory_of_its_partition() {
    let mut world = world();
    let inside = range(300 * MIB, 0x4000);
    world.reservations.push(Reservation {
        function: function(NET, 0, 0),
        range: inside,
    });
    let plan = ask().plan(&world, &mut Findings::new()).unwrap();
    assert!(
        plan.maps()
            .iter()
            .all(|map| map.reason == MapReason::Memory)
    );
    // The planner itself does not put memory there.
    let mut ask = ask();
    ask.memory = Memory::Bytes {
        length: 128 * MIB,
        alignment: 256 * MIB,
        below: 4096 * MIB,
    };
    let mut findings = Findings::new();
    ask.plan(&world, &mut findings).unwrap_err();
    let (length, alignment) = (128 * MIB, 256 * MIB);
    assert!(
        findings
            .refusals()
            .contains(&Reason::MemoryNotFound { length, alignment })
    );
}

#[test]
fn memory_that_is_firmwares_and_somebody_elses_is_not_reserved_by_firmware() {
    let mut world = world();
    let range = range(1000 * MIB, 0x1000);
    let function = function(NET, 0, 0);
    world.reservations.push(Reservation { function, range });
    ask().plan(&world, &mut Findings::new()).unwrap();
    world.memory.push(MemoryRegion {
        range,
        kind: MemoryKind::Usable,
        owner: NEIGHBOUR,
    });
    let refused = ask().plan(&world, &mut Findings::new()).unwrap_err();
    assert_eq!(refused.first, Reason::ReservedOutside { function, range });
}

#[test]
fn what_a_bridge_forwards_is_not_shared_with_what_is_below_it() {
    let mut world = world();
    let below = world.windows[0].range;
    world.windows.push(Window {
        function: function(0, NET + 2, 0),
        range: range(below.base().0, MIB),
    });
    let mut findings = Findings::new();
    ask().plan(&world, &mut findings).unwrap();
    assert!(findings.warnings().is_empty());
}

#[test]
fn a_partition_without_devices_needs_no_unit_and_no_tables() {
    let mut world = world();
    world.units.clear();
    world.budget.table_pages = 0;
    world.budget.domain = None;
    let mut ask = ask();
    ask.functions.clear();
    let plan = ask.plan(&world, &mut Findings::new()).unwrap();
    assert_eq!((plan.domain(), plan.table_pages()), (None, 0));
    assert!(plan.maps().is_empty() && plan.is_fenced());
}

#[test]
fn open_messages_are_let_through_only_where_that_is_asked_for_and_the_plan_says_so() {
    let mut world = world();
    let mut ask = ask();
    ask.messages = Messages::Any { accept_open: true };
    let mut findings = Findings::new();
    let plan = ask.plan(&world, &mut findings).unwrap();
    // Once for each device.
    let rules: Vec<_> = findings.warnings().iter().map(Reason::rule).collect();
    assert_eq!(rules, ["open-messages", "open-messages"]);
    assert!(!plan.is_fenced());
    // So it is where the unit has no device but the partition's: whom it opens is asking for it.
    ask.messages = Messages::Any { accept_open: false };
    assert!(ask.plan(&world, &mut findings).is_err());
    let asked: Vec<_> = ask.functions.iter().map(|wish| wish.function).collect();
    let mut alone = world.clone();
    for entry in &mut alone.functions {
        if !asked.contains(&entry.function) {
            entry.unit = None;
        }
    }
    let plan = ask.plan(&alone, &mut findings).unwrap();
    assert!(!plan.is_fenced() && findings.warnings().len() == 2);
    // A unit that looks every message up keeps any kernel in bounds.
    world.units[0].remaps_any_message = true;
    for accept_open in [false, true] {
        ask.messages = Messages::Any { accept_open };
        let plan = ask.plan(&world, &mut findings).unwrap();
        assert!(plan.is_fenced() && findings.warnings().is_empty());
    }
}

#[test]
fn unfenced_devices_are_given_only_where_that_is_accepted_and_the_plan_says_so() {
    let mut world = world();
    world.function(function(NET, 0, 0)).unit = None;
    let mut ask = ask();
    ask.accept_unfenced = true;
    let mut findings = Findings::new();
    let plan = ask.plan(&world, &mut findings).unwrap();
    assert_eq!(findings.warnings().len(), 1);
    assert_eq!(findings.warnings()[0].rule(), "uncovered");
    assert!(!plan.is_fenced());
    let fenced: Vec<_> = plan
        .functions()
        .iter()
        .map(|planned| planned.fenced)
        .collect();
    assert_eq!(fenced, [false, true]);
    let ids: Vec<_> = plan
        .requesters()
        .iter()
        .map(|requester| requester.id.0)
        .collect();
    assert_eq!(ids, [0x0300]);
}

#[test]
fn every_broken_rule_is_found_at_once() {
    let mut ask = ask();
    ask.cpus = Cpus::These(vec![0, 9]);
    ask.memory = Memory::These(vec![range(500 * MIB, 16 * MIB)]);
    ask.add(function(7, 4, 0));
    ask.singletons.push(99);
    let mut findings = Findings::new();
    let refused = ask.plan(&world(), &mut findings).unwrap_err();
    let rules: Vec<_> = findings.refusals().iter().map(Reason::rule).collect();
    for rule in [
        "cpu-runs-prime",
        "cpu-bootstrap",
        "cpu-missing",
        "memory-baton",
        "memory-too-small",
        "requester-shared",
        "singleton-missing",
    ] {
        assert!(rules.contains(&rule), "{rule} is not in {rules:?}");
    }
    assert_eq!(refused.refusals, rules.len());
    assert_eq!(refused.first, findings.refusals()[0]);
}

#[test]
fn more_refusals_than_there_is_room_for_are_counted_off() {
    let mut ask = ask();
    ask.cpus = Cpus::These((100..400).collect());
    let mut findings = Findings::new();
    let refused = ask.plan(&world(), &mut findings).unwrap_err();
    assert!(findings.truncated());
    assert_eq!(refused.refusals, Findings::CAPACITY);
    // The same findings serve for the next question.
    super::tests::ask().plan(&world(), &mut findings).unwrap();
    assert!(!findings.truncated() && findings.refusals().is_empty());
}

#[test]
fn a_plan_and_its_findings_are_small_enough_for_a_kernels_stack() {
    assert!(size_of::<Plan>() <= 6 << 10, "{}", size_of::<Plan>());
    assert!(
        size_of::<Findings>() <= 5 << 10,
        "{}",
        size_of::<Findings>()
    );
    assert!(size_of::<Refused>() <= 64, "{}", size_of::<Refused>());
}
