//! One test for each rule, named after it: a good request, changed so that it breaks that rule and
//! no other.

use std::collections::BTreeSet;
use std::string::{String, ToString};

use super::*;

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// It is refused, whatever is asked for besides.
    Refused,
    /// It is planned with a warning, or refused where `strict`.
    Doubted,
    /// It is refused, or planned with a warning where `accept_unfenced`.
    Unfenced,
}

fn judge(rule: &str, outcome: Outcome, change: fn(&mut World, &mut Ask)) {
    let (mut world, mut ask) = (world(), ask());
    change(&mut world, &mut ask);
    for (strict, accept_unfenced) in [(false, false), (true, false), (false, true), (true, true)] {
        ask.strict = strict;
        ask.accept_unfenced = accept_unfenced;
        let mut findings = Findings::new();
        let result = ask.plan(&world, &mut findings);
        let refused = match outcome {
            Outcome::Refused => true,
            Outcome::Doubted => strict,
            Outcome::Unfenced => !accept_unfenced,
        };
        let (found, others) = if refused {
            (findings.refusals(), findings.warnings())
        } else {
            (findings.warnings(), findings.refusals())
        };
        assert_eq!(result.is_err(), refused, "{findings:?}");
        assert!(others.is_empty(), "{others:?}");
        let rules: BTreeSet<_> = found.iter().map(Reason::rule).collect();
        assert_eq!(rules, BTreeSet::from([rule]), "{findings:?}");
        for reason in found {
            // The sentence names the resource.
            let (sentence, resource) = (reason.to_string(), reason.resource().to_string());
            let name = resource.split_once(' ').map_or("", |(_, name)| name);
            assert!(
                reason.resource() == Resource::Machine || sentence.contains(name),
                "{sentence:?} does not name {resource}"
            );
        }
    }
}

macro_rules! rules {
    ($($test:ident, $rule:literal, $outcome:ident, $change:expr;)+) => {
        $(
            #[test]
            fn $test() {
                judge($rule, Outcome::$outcome, $change);
            }
        )+

        const TESTED: &[&str] = &[$($rule),+];
    };
}

fn claim(world: &mut World, function: PciFunction) {
    world.function(function).owner = NEIGHBOUR;
}

rules! {
    name_must_not_be_empty, "name", Refused,
        |_, ask| ask.name = String::new();
    name_must_fit, "name", Refused,
        |_, ask| ask.name = "n".repeat(Plan::MAX_NAME + 1);
    partition_must_not_be_the_prime, "partition-taken", Refused,
        |_, ask| ask.partition = PartitionId(1);
    partition_must_not_exist, "partition-taken", Refused,
        |_, ask| ask.partition = PartitionId(3);
    partition_must_have_mailboxes_of_its_own, "partition-collides", Refused,
        |_, ask| ask.partition = PartitionId(9);
    plan_must_hold_all_processors, "too-many", Refused,
        |world, ask| {
            let like = world.cpus[1];
            world.cpus.extend((10..300).map(|id| Cpu { apic_id: ApicId(id), core: id, ..like }));
            ask.cpus = Cpus::These((10..300).collect());
        };
    plan_must_hold_all_memory_ranges, "too-many", Refused,
        |_, ask| {
            let ranges = (0..17).map(|index| range((16 + 8 * index) * MIB, 4 * MIB));
            ask.memory = Memory::These(ranges.collect());
        };

    processors_must_be_asked_for, "no-cpu", Refused,
        |_, ask| ask.cpus = Cpus::These(vec![]);
    processors_must_be_more_than_none, "no-cpu", Refused,
        |_, ask| ask.cpus = Cpus::Count(0);
    cpu_must_exist, "cpu-missing", Refused,
        |_, ask| ask.cpus = Cpus::These(vec![2, 3, 77]);
    cpu_must_be_asked_for_once, "cpu-twice", Refused,
        |_, ask| ask.cpus = Cpus::These(vec![2, 3, 2]);
    cpu_must_be_the_primes, "cpu-owner", Refused,
        |world, _| world.cpus[3].owner = Owner::Quarantined;
    cpu_must_be_the_primes_in_every_entry, "cpu-owner", Refused,
        |world, _| {
            let again = Cpu { owner: NEIGHBOUR, ..world.cpus[3] };
            world.cpus.push(again);
        };
    cpu_must_not_run_the_prime, "cpu-runs-prime", Refused,
        |world, ask| {
            world.cpus[1].runs_prime = true;
            ask.cpus = Cpus::These(vec![1]);
        };
    cpu_must_not_be_the_bootstrap_processor, "cpu-bootstrap", Refused,
        |world, ask| {
            world.cpus[0].runs_prime = false;
            ask.cpus = Cpus::These(vec![0]);
        };
    free_cpus_must_be_enough, "too-few-cpus", Refused,
        |_, ask| ask.cpus = Cpus::Count(4);
    threads_of_a_core_should_stay_together, "smt-split", Doubted,
        |_, ask| ask.cpus = Cpus::These(vec![3]);
    cpus_should_have_equal_features, "cpu-features", Doubted,
        |world, _| world.cpus[3].features = 8;
    cpus_should_have_equal_microcode, "cpu-microcode", Doubted,
        |world, _| world.cpus[2].microcode = 0x101;

    memory_must_have_a_byte, "memory-empty", Refused,
        |_, ask| ask.memory = Memory::These(vec![range(64 * MIB, 64 * MIB), range(MIB, 0)]);
    memory_must_be_whole_frames, "memory-misaligned", Refused,
        |_, ask| ask.memory = Memory::These(vec![range(64 * MIB, 64 * MIB + 1)]);
    memory_must_begin_at_a_frame, "memory-misaligned", Refused,
        |_, ask| ask.memory = Memory::These(vec![range(64 * MIB + 8, 65 * MIB)]);
    alignment_must_be_a_power_of_two, "alignment-invalid", Refused,
        |_, ask| {
            ask.memory =
                Memory::Bytes { length: 64 * MIB, alignment: 0x3000, below: u64::MAX };
        };
    alignment_must_be_a_frame, "alignment-invalid", Refused,
        |_, ask| {
            ask.memory = Memory::Bytes { length: 64 * MIB, alignment: 8, below: u64::MAX };
        };
    memory_must_be_asked_for_once, "memory-twice", Refused,
        |_, ask| {
            ask.memory =
                Memory::These(vec![range(64 * MIB, 64 * MIB), range(128 * MIB - 0x1000, MIB)]);
        };
    trampoline_must_be_apart_from_memory, "memory-twice", Refused,
        |_, ask| {
            ask.memory = Memory::These(vec![range(64 * MIB, 64 * MIB), range(0x8000, 0x1000)]);
            ask.trampoline = Trampoline::At(PhysAddr(0x8000));
        };
    memory_must_exist, "memory-missing", Refused,
        |world, _| {
            world.memory[3].range = range(16 * MIB, 300 * MIB);
        };
    memory_must_be_the_primes, "memory-owner", Refused,
        |_, ask| ask.memory = Memory::These(vec![range(520 * MIB, 200 * MIB)]);
    memory_must_not_be_firmwares, "memory-firmware", Refused,
        |_, ask| {
            ask.memory =
                Memory::These(vec![range(64 * MIB, 64 * MIB), range(1000 * MIB, MIB)]);
        };
    memory_must_not_be_the_batons, "memory-baton", Refused,
        |_, ask| ask.memory = Memory::These(vec![range(448 * MIB, 64 * MIB + 0x1000)]);
    memory_must_be_free, "memory-kind", Refused,
        |_, ask| ask.memory = Memory::These(vec![range(15 * MIB, 65 * MIB)]);
    memory_must_not_be_where_interrupts_go, "memory-interrupts", Refused,
        |world, ask| {
            let at = range(0xfed0_0000, 4 * MIB);
            world.memory.push(MemoryRegion {
                range: at,
                kind: MemoryKind::Usable,
                owner: PRIME,
            });
            ask.memory = Memory::These(vec![range(64 * MIB, 64 * MIB), at]);
        };
    memory_must_not_hold_registers, "memory-registers", Refused,
        |world, _| {
            world.windows.push(Window {
                function: function(DISK, 0, 0),
                range: range(300 * MIB, 0x10),
            });
        };
    memory_must_not_be_what_a_device_that_stays_reaches, "memory-reserved", Refused,
        |world, _| {
            world.reservations.push(Reservation {
                function: function(DISK, 0, 0),
                range: range(300 * MIB, 0x1000),
            });
        };
    memory_must_be_in_reach_of_the_tables, "memory-too-high", Refused,
        |world, ask| {
            let at = range(512 << 30, 64 * MIB);
            world.memory.push(MemoryRegion {
                range: at,
                kind: MemoryKind::Usable,
                owner: PRIME,
            });
            world.units[0].levels = 3;
            ask.memory = Memory::These(vec![at]);
        };
    memory_must_be_enough, "memory-too-small", Refused,
        |_, ask| ask.least_memory = 128 * MIB + 1;
    some_memory_must_be_asked_for, "memory-too-small", Refused,
        |_, ask| {
            ask.memory = Memory::These(vec![]);
            ask.least_memory = 0;
        };
    free_memory_must_be_found, "memory-not-found", Refused,
        |_, ask| {
            ask.memory =
                Memory::Bytes { length: 500 * MIB, alignment: 0x1000, below: u64::MAX };
        };
    trampoline_must_be_in_low_memory, "trampoline", Refused,
        |_, ask| ask.trampoline = Trampoline::At(PhysAddr(0xa_0000));
    trampoline_must_not_be_page_zero, "trampoline", Refused,
        |_, ask| ask.trampoline = Trampoline::At(PhysAddr(0));
    trampoline_must_be_found, "trampoline-not-found", Refused,
        |world, _| world.memory[0].kind = MemoryKind::InUse;
    trampoline_must_be_free, "memory-firmware", Refused,
        |_, ask| ask.trampoline = Trampoline::At(PhysAddr(0x9_f000));

    function_must_exist, "function-missing", Refused,
        |_, ask| ask.add(function(9, 0, 0));
    function_must_be_asked_for_once, "function-twice", Refused,
        |_, ask| ask.add(function(NET, 0, 0));
    function_must_not_be_a_bridge, "function-bridge", Refused,
        |_, ask| ask.add(function(0, 3, 0));
    function_must_be_the_primes, "function-owner", Refused,
        |world, _| claim(world, function(NET, 0, 0));
    function_must_be_below_a_root_port, "function-root-bus", Refused,
        |_, ask| ask.add(function(0, 2, 0));
    requester_id_must_not_be_shared, "requester-shared", Refused,
        |_, ask| ask.add(function(7, 4, 0));
    group_must_not_be_split, "group-split", Refused,
        |world, _| {
            let group = world.function(function(DISK, 0, 0)).isolation.group;
            world.function(function(NET, 0, 0)).isolation.group = group;
        };
    bus_must_not_be_shared, "bus-shared", Refused,
        |world, _| {
            let other = Function {
                function: function(NET, 0, 1),
                isolation: Isolation::alone(function(NET, 0, 1), 99),
                ..*world.function(function(NET, 0, 0))
            };
            world.functions.push(other);
        };
    bus_must_have_ecam, "no-ecam", Refused,
        |world, _| world.ecam[0].last_bus = EDU - 1;
    reserved_memory_must_be_inside_or_firmwares, "reserved-outside", Refused,
        |world, _| {
            world.reservations.push(Reservation {
                function: function(NET, 0, 0),
                range: range(100 * MIB, 0x1000),
            });
        };
    reserved_memory_must_exist, "reserved-outside", Refused,
        |world, _| {
            world.reservations.push(Reservation {
                function: function(NET, 0, 0),
                range: range(1024 * MIB - 0x1000, 0x2000),
            });
        };
    reserved_memory_must_not_be_shared, "reserved-shared", Refused,
        |world, _| {
            for bus in [NET, DISK] {
                world.reservations.push(Reservation {
                    function: function(bus, 0, 0),
                    range: range(1000 * MIB, 0x1000),
                });
            }
        };
    interrupt_line_should_not_be_shared, "intx-shared", Doubted,
        |world, _| {
            for bus in [NET, DISK] {
                world.function(function(bus, 0, 0)).intx = Some(20);
            }
        };
    interrupt_line_that_is_all_there_is_must_not_be_shared, "intx-shared", Refused,
        |world, _| {
            for bus in [NET, DISK] {
                world.function(function(bus, 0, 0)).intx = Some(20);
            }
            world.function(function(NET, 0, 0)).messages = 0;
        };
    registers_should_not_share_a_page, "registers-shared", Doubted,
        |world, _| {
            let page = 0xfd00_0000;
            for (bus, at) in [(NET, page), (DISK, page + 0x800)] {
                world.windows.push(Window { function: function(bus, 0, 0), range: range(at, 0x100) });
            }
        };
    interrupts_must_not_be_more_than_there_are, "too-many-interrupts", Refused,
        |_, ask| ask.functions[0].interrupts = 5;
    function_must_be_covered, "uncovered", Unfenced,
        |world, _| world.function(function(NET, 0, 0)).unit = None;
    unit_must_be_usable, "uncovered", Unfenced,
        |world, _| world.units[0].usable = false;
    unit_must_exist, "uncovered", Unfenced,
        |world, _| world.function(function(NET, 0, 0)).unit = Some(7);
    machine_must_have_an_iommu, "no-iommu", Unfenced,
        |world, _| world.units.clear();
    unit_must_remap_interrupts, "no-interrupt-remapping", Unfenced,
        |world, _| world.units[0].interrupt_remapping = false;
    messages_must_not_be_open, "open-messages", Refused,
        |_, ask| ask.messages = Messages::Any { accept_open: false };
    ats_must_not_be_required, "ats-required", Unfenced,
        |world, _| world.function(function(NET, 0, 0)).ats_required = true;

    singleton_must_exist, "singleton-missing", Refused,
        |_, ask| ask.singletons.push(77);
    singleton_must_be_asked_for_once, "singleton-twice", Refused,
        |_, ask| ask.singletons.push(resource::UART_1);
    singleton_must_be_the_primes, "singleton-taken", Refused,
        |world, _| world.singletons[1].owner = NEIGHBOUR;

    table_pages_must_be_enough, "short", Refused,
        |world, _| world.budget.table_pages = 7;
    ledger_slots_must_be_enough, "short", Refused,
        |world, _| world.budget.ledger_slots = 4;
    interrupt_handles_must_be_enough, "short", Refused,
        |world, _| world.budget.interrupt_handles = 1;
    a_domain_must_be_free, "short", Refused,
        |world, _| world.budget.domain = None;
}

#[test]
fn every_rule_has_a_test() {
    let tested: BTreeSet<_> = TESTED.iter().copied().collect();
    let all: BTreeSet<_> = Reason::RULES.iter().copied().collect();
    assert_eq!(tested, all);
    assert_eq!(all.len(), Reason::RULES.len(), "two rules have one name");
}

#[test]
fn a_culprit_is_named() {
    let mut ask = ask();
    ask.add(function(7, 5, 0));
    let mut findings = Findings::new();
    ask.plan(&world(), &mut findings).unwrap_err();
    assert_eq!(
        findings.refusals(),
        [Reason::RequesterShared {
            function: function(7, 5, 0),
            culprit: function(7, 4, 0),
            id: RequesterId::new(7, 0, 0).unwrap(),
        }]
    );
    assert_eq!(
        findings.refusals()[0].to_string(),
        "function 0000:07:05.0 shares requester id 07:00.0 with function 0000:07:04.0, which stays behind"
    );
}

#[test]
fn a_line_that_the_other_function_does_not_drive_is_not_shared() {
    for (stays, given, shared) in [
        (false, false, true),
        (false, true, true),
        (true, false, false),
    ] {
        let (mut world, mut ask) = (world(), ask());
        ask.strict = false;
        for (bus, disabled) in [(NET, given), (DISK, stays)] {
            let entry = world.function(function(bus, 0, 0));
            entry.intx = Some(20);
            entry.intx_disabled = disabled;
        }
        let mut findings = Findings::new();
        ask.plan(&world, &mut findings).unwrap();
        let rules: Vec<_> = findings.warnings().iter().map(Reason::rule).collect();
        assert_eq!(rules.contains(&"intx-shared"), shared, "{stays} {given}");
    }
}
