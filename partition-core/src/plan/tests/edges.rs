//! The last that is still allowed, the first that is not, and what a person reads.

use std::string::ToString;

use super::*;

fn rules(reasons: &[Reason]) -> Vec<&'static str> {
    reasons.iter().map(Reason::rule).collect()
}

#[test]
fn a_domain_reaches_to_its_last_byte_and_not_past_it() {
    // Three levels of 9 bits above a page of 12: 512 GiB.
    let end = 1_u64 << 39;
    let plan = |end| {
        let mut world = world();
        world.units[0].levels = 3;
        world.memory.push(MemoryRegion {
            range: range(end - 128 * MIB, 128 * MIB),
            kind: MemoryKind::Usable,
            owner: PRIME,
        });
        let mut ask = ask();
        ask.memory = Memory::These(vec![range(end - 128 * MIB, 128 * MIB)]);
        let mut findings = Findings::new();
        let result = ask.plan(&world, &mut findings);
        result.map(drop).map_err(|refused| refused.first)
    };
    assert_eq!(plan(end), Ok(()));
    assert_eq!(
        plan(end + 0x1000),
        Err(Reason::MemoryTooHigh {
            range: range(end + 0x1000 - 128 * MIB, 128 * MIB),
            bits: 39
        })
    );
}

#[test]
fn as_many_processors_are_chosen_as_a_plan_holds_and_no_more() {
    let mut world = world();
    let most = Plan::MAX_CPUS as u32;
    let pattern = world.cpus[1];
    for id in 4..=most + 8 {
        world.cpus.push(Cpu {
            apic_id: ApicId(id),
            core: id,
            ..pattern
        });
    }
    let plan = |count| {
        let mut ask = ask();
        ask.strict = false;
        ask.cpus = Cpus::Count(count);
        let mut findings = Findings::new();
        let planned = ask.plan(&world, &mut findings);
        planned
            .map(|plan| plan.cpus().len() as u32)
            .map_err(|refused| refused.first)
    };
    assert_eq!(plan(most), Ok(most));
    for more in [most + 1, most + 3] {
        assert_eq!(
            plan(more),
            Err(Reason::TooMany {
                list: List::Cpus,
                most: Plan::MAX_CPUS
            })
        );
    }
}

#[test]
fn a_choice_prefers_what_is_like_the_prime_even_to_more_threads() {
    let mut world = world();
    // The core of two threads is of another kind, and so is the first single thread.
    world.cpus[1].features = 9;
    world.cpus[2].microcode = 0x101;
    world.cpus[3].microcode = 0x101;
    let alike = world.cpus[0];
    for (id, core) in [(4, 4), (6, 6), (7, 6)] {
        world.cpus.push(Cpu {
            apic_id: ApicId(id),
            core,
            is_bsp: false,
            runs_prime: false,
            ..alike
        });
    }
    let plan = |count| {
        let mut ask = ask();
        ask.strict = false;
        ask.cpus = Cpus::Count(count);
        let plan = ask.plan(&world, &mut Findings::new()).unwrap();
        plan.cpus().iter().map(|cpu| cpu.0).collect::<Vec<_>>()
    };
    assert_eq!(plan(1), [4]);
    assert_eq!(plan(2), [6, 7]);
    assert_eq!(plan(3), [6, 7, 4]);
    assert_eq!(plan(5), [6, 7, 4, 2, 3]);
}

#[test]
fn a_machine_without_processors_has_none_to_give() {
    let mut world = world();
    world.cpus.clear();
    let mut findings = Findings::new();
    ask().plan(&world, &mut findings).unwrap_err();
    assert_eq!(
        rules(findings.refusals()),
        ["cpu-missing", "cpu-missing"],
        "{findings:?}"
    );
}

#[test]
fn a_function_that_is_listed_twice_must_be_the_same_both_times() {
    let wanted = function(NET, 0, 0);
    let mut world = world();
    let same = *world.function(wanted);
    world.functions.push(same);
    let plan = ask().plan(&world, &mut Findings::new()).unwrap();
    assert_eq!(plan.functions().len(), 2);
    world.functions.last_mut().unwrap().owner = NEIGHBOUR;
    let mut findings = Findings::new();
    ask().plan(&world, &mut findings).unwrap_err();
    assert!(
        findings.refusals().contains(&Reason::FunctionOwner {
            function: wanted,
            owner: NEIGHBOUR
        }),
        "{findings:?}"
    );
}

#[test]
fn a_culprit_is_named_once_for_each_rule() {
    let mut world = world();
    let culprit = function(DISK, 0, 0);
    // It shares an id with the one and a group with the other.
    let id = function(NET, 0, 0).requester;
    let group = world.function(function(EDU, 0, 0)).isolation.group;
    let entry = world.function(culprit);
    entry.isolation.requesters = entry.isolation.requesters.with(id).unwrap();
    entry.isolation.group = group;
    let mut findings = Findings::new();
    let ask = ask();
    ask.plan(&world, &mut findings).unwrap_err();
    assert_eq!(
        findings.refusals(),
        [
            Reason::RequesterShared {
                function: function(NET, 0, 0),
                culprit,
                id
            },
            Reason::GroupSplit {
                function: function(EDU, 0, 0),
                culprit
            },
        ]
    );
    // Two others of one rule are named both, and each only for the first that it shares with.
    let bridge = [function(7, 4, 0), function(7, 5, 0)];
    for culprit in bridge {
        world.function(culprit).isolation.group = group;
    }
    world.function(function(NET, 0, 0)).isolation.group = group;
    world.function(culprit).isolation.requesters =
        super::super::alias::Requesters::only(culprit.requester);
    ask.plan(&world, &mut findings).unwrap_err();
    let culprits: Vec<_> = findings
        .refusals()
        .iter()
        .map(|reason| match *reason {
            Reason::GroupSplit { function, culprit } => (function, culprit),
            other => panic!("{other}"),
        })
        .collect();
    let first = function(NET, 0, 0);
    assert_eq!(
        culprits,
        [(first, culprit), (first, bridge[0]), (first, bridge[1])]
    );
}

#[test]
fn functions_of_two_segments_share_no_id() {
    let mut world = world();
    let mut other = *world.function(function(NET, 0, 0));
    other.function.segment = 1;
    other.isolation.group = 99;
    world.functions.push(other);
    ask().plan(&world, &mut Findings::new()).unwrap();
}

#[test]
fn memory_that_the_map_has_not_is_named_to_its_last_byte() {
    let mut world = world();
    let whole = world.memory[3];
    // Two holes, of one page and of two, and something empty that ends neither.
    for (base, end) in [(16, 300), (301, 320), (322, 512)] {
        world.memory.push(MemoryRegion {
            range: range(base * MIB, (end - base) * MIB),
            ..whole
        });
    }
    world.memory.push(MemoryRegion {
        range: range(320 * MIB + 0x1000, 0),
        ..whole
    });
    world.memory.remove(3);
    let mut findings = Findings::new();
    ask().plan(&world, &mut findings).unwrap_err();
    assert_eq!(
        findings.refusals(),
        [
            Reason::MemoryMissing {
                range: range(300 * MIB, MIB)
            },
            Reason::MemoryMissing {
                range: range(320 * MIB, 2 * MIB)
            },
        ]
    );
}

#[test]
fn the_page_to_start_from_is_below_640_kib() {
    let mut world = world();
    // Nothing is free below, and the page right at the end is.
    world.memory[0].owner = NEIGHBOUR;
    world.memory[1].range = range(0x9_f000, 0x1000);
    let whole = world.memory[3];
    world.memory.push(MemoryRegion {
        range: range(0xa_0000, 0x1000),
        ..whole
    });
    let mut findings = Findings::new();
    ask().plan(&world, &mut findings).unwrap_err();
    assert_eq!(findings.refusals(), [Reason::TrampolineNotFound]);
}

#[test]
fn what_a_device_keeps_reaching_around_its_memory_is_mapped_around_it() {
    let mut world = world();
    world.reservations.push(Reservation {
        function: function(NET, 0, 0),
        range: range(255 * MIB, 130 * MIB),
    });
    let whole = world.memory.remove(3);
    for (base, end, firmware) in [
        (16, 255, false),
        (255, 256, true),
        (256, 384, false),
        (384, 385, true),
        (385, 512, false),
    ] {
        let mut region = MemoryRegion {
            range: range(base * MIB, (end - base) * MIB),
            ..whole
        };
        if firmware {
            region.kind = MemoryKind::Reserved;
            region.owner = Owner::Firmware;
        }
        world.memory.push(region);
    }
    let mut findings = Findings::new();
    let mut ask = ask();
    ask.strict = false;
    let plan = ask.plan(&world, &mut findings);
    let maps: Vec<_> = match &plan {
        Ok(plan) => plan.maps().iter().map(|map| map.range).collect(),
        Err(_) => panic!("{findings:?}"),
    };
    assert_eq!(
        maps,
        [
            range(256 * MIB, 128 * MIB),
            range(0x1000, 0x1000),
            range(255 * MIB, MIB),
            range(384 * MIB, MIB),
        ]
    );
}

#[test]
fn more_warnings_than_there_is_room_for_are_counted_off() {
    let mut findings = Findings::new();
    for number in 0..=Findings::CAPACITY as u32 {
        assert!(!findings.truncated(), "{number}");
        findings.warn(Reason::CpuFeatures {
            cpu: ApicId(number),
            other: ApicId(0),
        });
    }
    assert!(findings.truncated());
    assert_eq!(findings.warnings().len(), Findings::CAPACITY);
    // One that is there already is not lost.
    findings.warn(Reason::CpuFeatures {
        cpu: ApicId(0),
        other: ApicId(0),
    });
    assert!(findings.truncated());
}

#[test]
fn whatever_is_short_or_full_has_a_name() {
    for (list, name) in [
        (List::Cpus, "processors"),
        (List::MemoryRanges, "memory ranges"),
        (List::Functions, "PCI functions"),
        (List::Requesters, "requester ids"),
        (List::Buses, "buses"),
        (List::DomainMaps, "domain mappings"),
        (List::Singletons, "machine singletons"),
    ] {
        let sentence = Reason::TooMany { list, most: 7 }.to_string();
        assert!(sentence.contains(name), "{sentence}");
    }
    for (supply, text) in [
        (
            Supply::TablePages,
            "3 remapping table pages are needed and 2 are left",
        ),
        (
            Supply::LedgerSlots,
            "3 ledger slots are needed and 2 are left",
        ),
        (
            Supply::InterruptHandles,
            "3 interrupt handles are needed and 2 are left",
        ),
        (Supply::Domains, "3 domains are needed and 2 are left"),
    ] {
        let reason = Reason::Short {
            supply,
            need: 3,
            left: 2,
        };
        assert_eq!(reason.to_string(), text);
    }
    for (kind, name) in [
        (MemoryKind::Usable, "usable"),
        (MemoryKind::InUse, "in use"),
        (MemoryKind::Reserved, "reserved"),
        (MemoryKind::AcpiReclaimable, "ACPI reclaimable"),
        (MemoryKind::AcpiNvs, "ACPI NVS"),
        (MemoryKind::Unusable, "unusable"),
    ] {
        assert_eq!(kind.name(), name);
    }
    for (resource, name) in [
        (Resource::Partition(PartitionId(2)), "partition 2"),
        (Resource::Cpu(ApicId(3)), "processor 3"),
        (
            Resource::Memory(range(0x1000, 0x1000)),
            "memory 0x1000..0x2000",
        ),
        (
            Resource::Function(function(1, 2, 3)),
            "function 0000:01:02.3",
        ),
        (Resource::Singleton(4), "singleton 4"),
        (Resource::Machine, "the machine"),
    ] {
        assert_eq!(resource.to_string(), name);
    }
}

#[test]
fn a_refusal_says_how_many_reasons_there_are() {
    let first = Reason::TrampolineNotFound;
    let refused = |refusals| Refused { refusals, first }.to_string();
    assert_eq!(refused(1), std::format!("the request is refused: {first}"));
    assert_eq!(
        refused(3),
        std::format!("the request is refused for 3 reasons: {first}")
    );
}

#[test]
fn a_contradiction_of_the_topology_names_its_functions() {
    use super::super::alias::AliasError;
    let (one, two) = (function(1, 0, 0), function(2, 3, 1));
    for (error, text) in [
        (
            AliasError::TooMany(70000),
            "70000 PCI functions are too many",
        ),
        (
            AliasError::Lengths {
                facts: 3,
                results: 2,
            },
            "3 PCI functions do not fit 2 results",
        ),
        (
            AliasError::FunctionTwice(one),
            "function 0000:01:00.0 is listed twice",
        ),
        (
            AliasError::BusNumbers(one),
            "bridge 0000:01:00.0 has impossible bus numbers",
        ),
        (
            AliasError::BusTwice {
                bridge: one,
                other: two,
            },
            "bridges 0000:01:00.0 and 0000:02:03.1 lead to the same bus",
        ),
        (
            AliasError::PortWithoutSwitch(two),
            "downstream port 0000:02:03.1 is not below an upstream port",
        ),
        (
            AliasError::TooManyIds(one),
            "function 0000:01:00.0 has too many requester ids",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
