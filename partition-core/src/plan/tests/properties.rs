//! Machines and requests made up at random: the planner and the judge agree on every one, and
//! whatever is planned stands up to the judge.

use core::cell::Cell;

use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};

use super::judge::{acceptable, check};
use super::*;

const PAGE: u64 = 4096;

fn mostly<T: Clone + core::fmt::Debug + 'static>(
    usual: T,
    others: Vec<T>,
) -> impl Strategy<Value = T> {
    prop_oneof![24 => Just(usual), 1 => select(others)]
}

fn owner() -> impl Strategy<Value = Owner> {
    mostly(
        PRIME,
        vec![
            Owner::Parked,
            NEIGHBOUR,
            Owner::Quarantined,
            Owner::Firmware,
        ],
    )
}

fn cpus() -> impl Strategy<Value = Vec<Cpu>> {
    let core = select(vec![1_usize, 1, 2, 2, 4]);
    let traits = (
        owner(),
        mostly(7, vec![8]),
        mostly(0x100, vec![0x101]),
        mostly(false, vec![true]),
    );
    (list(core, 2..5), list(traits, 16)).prop_map(|(cores, traits)| {
        let threads = cores
            .iter()
            .enumerate()
            .flat_map(|(core, threads)| core::iter::repeat_n(core as u32, *threads));
        threads
            .zip(traits)
            .zip(0..)
            .take(8)
            .map(|((core, (owner, features, microcode, runs)), id)| Cpu {
                apic_id: ApicId(id),
                core,
                is_bsp: id == 0,
                runs_prime: (id == 0) != runs,
                features,
                microcode,
                owner,
            })
            .collect()
    })
}

fn small_range(pages: core::ops::Range<u64>, longest: u64) -> impl Strategy<Value = PhysRange> {
    let end = pages.end;
    (pages, 1..=longest)
        .prop_map(move |(first, length)| range(first * PAGE, length.min(end - first).max(1) * PAGE))
}

/// 3 MiB of memory: the last boundary is where it ends.
fn memory() -> impl Strategy<Value = Vec<MemoryRegion>> {
    let what = || {
        let usable = (Just(MemoryKind::Usable), owner());
        let other = select(vec![
            (MemoryKind::Reserved, Owner::Firmware),
            (MemoryKind::InUse, PRIME),
            (MemoryKind::Usable, Owner::Baton),
            (MemoryKind::AcpiNvs, Owner::Firmware),
            (
                MemoryKind::Usable,
                Owner::Workload(handoff_abi::WorkloadId(1)),
            ),
        ]);
        prop_oneof![6 => usable, 1 => other]
    };
    let cuts = list(1_u64..0x300, 0..6);
    let parts = list(what(), 8);
    let extra = prop::option::weighted(0.1, (small_range(0..0x300, 4), what()));
    (cuts, parts, extra).prop_map(|(mut cuts, parts, extra)| {
        cuts.extend([0, 0x300]);
        cuts.sort_unstable();
        cuts.dedup();
        let pieces = cuts.windows(2).zip(parts);
        let mut regions: Vec<_> = pieces
            .map(|(cut, (kind, owner))| MemoryRegion {
                range: range(cut[0] * PAGE, (cut[1] - cut[0]) * PAGE),
                kind,
                owner,
            })
            .collect();
        regions.extend(extra.map(|(range, (kind, owner))| MemoryRegion { range, kind, owner }));
        regions
    })
}

/// Three devices alone, one with two functions, two behind a bridge, one on the root bus.
fn places(acs: bool) -> Vec<Facts> {
    let several = |number| Facts {
        acs: if acs { Acs::FUNCTION } else { Acs::empty() },
        ..endpoint(4, 0, number)
    };
    vec![
        endpoint(0, 2, 0),
        root_port(3, 1, 1),
        endpoint(1, 0, 0),
        root_port(4, 2, 2),
        endpoint(2, 0, 0),
        root_port(5, 3, 3),
        endpoint(3, 0, 0),
        root_port(6, 4, 4),
        several(0),
        several(1),
        root_port(7, 6, 7),
        bridge(6, 0, Some(PortType::PcieToPciBridge), 7, 7),
        endpoint(7, 4, 0),
        endpoint(7, 5, 0),
    ]
}

fn devices() -> impl Strategy<Value = Vec<PciFunction>> {
    let all: Vec<_> = places(false)
        .iter()
        .filter(|place| place.kind == FunctionKind::Endpoint)
        .map(|place| place.function)
        .collect();
    // What belongs together comes together more often than not.
    let apart = subsequence(all, 0..3);
    let together = select(vec![
        vec![],
        vec![function(1, 0, 0)],
        vec![function(1, 0, 0), function(3, 0, 0)],
        vec![function(4, 0, 0), function(4, 0, 1)],
        vec![function(7, 4, 0), function(7, 5, 0), function(2, 0, 0)],
    ]);
    prop_oneof![1 => apart, 4 => together]
}

fn pci() -> impl Strategy<Value = Vec<Function>> {
    let traits = (
        owner(),
        mostly(Some(0), vec![None, Some(1), Some(2)]),
        (
            mostly(None, vec![Some(20), Some(21)]),
            prop::bool::weighted(0.3),
        ),
        mostly(4, vec![0, 1]),
        prop::bool::weighted(0.03),
    );
    (any::<bool>(), list(traits, 14)).prop_map(|(acs, traits)| {
        let mut all = functions(&places(acs));
        for (entry, (owner, unit, (intx, intx_disabled), messages, ats_required)) in
            all.iter_mut().zip(traits)
        {
            *entry = Function {
                owner,
                unit,
                intx,
                intx_disabled,
                messages,
                ats_required,
                ..*entry
            };
        }
        all
    })
}

fn any_function() -> impl Strategy<Value = PciFunction> {
    select(places(false)).prop_map(|place| place.function)
}

fn any_device() -> impl Strategy<Value = PciFunction> {
    any_function().prop_filter("a device", |function| function.requester.bus() != 0)
}

fn a_world() -> impl Strategy<Value = World> {
    let often = || prop::bool::weighted(0.95);
    let unit = (often(), often(), any::<bool>()).prop_map(
        |(usable, interrupt_remapping, remaps_any_message)| Unit {
            usable,
            interrupt_remapping,
            remaps_any_message,
            levels: 3,
            largest_page: PageSize::Size2MiB,
        },
    );
    // Of those that are often asked for, often where memory is asked for.
    let device = prop_oneof![any_device(), Just(function(1, 0, 0))];
    let reservation = (device, small_range(0..0x300, 8))
        .prop_map(|(function, range)| Reservation { function, range });
    // Registers lie above memory as a rule.
    let place = prop_oneof![8 => 0x300_u64..0x320, 1 => 0_u64..0x300];
    let window = (any_function(), place, 0_u64..4).prop_map(|(function, page, part)| Window {
        function,
        range: range(page * PAGE + part * 0x400, 0x400),
    });
    let ecam = mostly((0, 255), vec![(0, 2), (4, 255)]).prop_map(|(first_bus, last_bus)| {
        vec![EcamWindow {
            segment: 0,
            first_bus,
            last_bus,
            base: PhysAddr(0xb000_0000),
        }]
    });
    let singletons = list(owner(), 4).prop_map(|owners| {
        let numbered = (1_u64..).zip(owners);
        numbered
            .map(|(number, owner)| Singleton { number, owner })
            .collect::<Vec<_>>()
    });
    let budget = (
        mostly(1000, vec![0, 3]),
        mostly(1000, vec![0, 3, 4]),
        mostly(1000, vec![0, 1]),
        mostly(Some(DomainId(3)), vec![None]),
    )
        .prop_map(
            |(table_pages, ledger_slots, interrupt_handles, domain)| Budget {
                table_pages,
                ledger_slots,
                interrupt_handles,
                domain,
            },
        );
    (
        (cpus(), memory(), pci(), list(reservation, 0..2)),
        (list(unit, 0..3), list(window, 0..6), ecam, singletons),
        budget,
    )
        .prop_map(
            |(
                (cpus, memory, functions, reservations),
                (units, windows, ecam, singletons),
                budget,
            )| World {
                prime: PartitionId(1),
                cpus,
                memory,
                functions,
                reservations,
                units,
                windows,
                ecam,
                singletons,
                budget,
            },
        )
}

fn an_ask() -> impl Strategy<Value = Ask> {
    let cpus = prop_oneof![
        1 => subsequence((0_u32..9).collect::<Vec<_>>(), 1..3).prop_map(Cpus::These),
        1 => list(1_u32..8, 0..3).prop_map(Cpus::These),
        1 => (0_u32..4).prop_map(Cpus::Count),
        3 => (1_u32..3).prop_map(Cpus::Count),
    ];
    let odd = (0_u64..0x30_0000, 0_u64..0x2000).prop_map(|(base, length)| range(base, length));
    let memory = prop_oneof![
        6 => list(small_range(1..0x300, 0x20), 1..3).prop_map(Memory::These),
        1 => list(odd, 0..2).prop_map(Memory::These),
        6 => (
            1_u64..0x80,
            mostly(0x1000, vec![0, 0x2000, 0x1_0000, 0x3000]),
            mostly(0x30_0000, vec![0, 0x18_0000, u64::MAX]),
        )
            .prop_map(|(pages, alignment, below)| Memory::Bytes {
                length: pages * PAGE,
                alignment,
                below,
            }),
    ];
    let trampoline = prop_oneof![
        Just(Trampoline::None),
        Just(Trampoline::Any),
        (0_u64..0xa2).prop_map(|page| Trampoline::At(PhysAddr(page * PAGE))),
    ];
    (
        (cpus, memory, mostly(0, vec![PAGE, 8 * PAGE]), trampoline),
        (
            devices(),
            mostly(1_u16, vec![0, 2, 5]),
            list(1_u64..6, 0..3),
        ),
        (
            mostly(2, vec![1, 3, 9]),
            mostly(4, vec![0, 33]),
            prop::bool::weighted(0.3),
            any::<bool>(),
            prop_oneof![
                3 => Just(Messages::Handles),
                1 => any::<bool>().prop_map(|accept_open| Messages::Any { accept_open }),
            ],
        ),
    )
        .prop_map(
            |(
                (cpus, memory, least_memory, trampoline),
                (devices, interrupts, singletons),
                (partition, name, accept_unfenced, strict, messages),
            )| Ask {
                partition: PartitionId(partition),
                name: "n".repeat(name),
                cpus,
                memory,
                least_memory,
                trampoline,
                functions: devices
                    .into_iter()
                    .map(|function| FunctionRequest {
                        function,
                        interrupts,
                    })
                    .collect(),
                singletons,
                accept_unfenced,
                messages,
                strict,
            },
        )
}

#[test]
fn planner_and_judge_agree_and_plans_stand_up() {
    let (planned, refused) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config {
        cases: 2000,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&(a_world(), an_ask()), |(world, ask)| {
            let mut findings = Findings::new();
            let result = ask.plan(&world, &mut findings);
            prop_assert_eq!(result.is_err(), !findings.refusals().is_empty());
            let verdict = acceptable(&world, &ask);
            match result {
                Ok(plan) => {
                    planned.set(planned.get() + 1);
                    prop_assert_eq!(verdict, Ok(()));
                    prop_assert_eq!(check(&world, &ask, &plan), Ok(()));
                    if ask.strict && !ask.accept_unfenced && ask.messages == Messages::Handles {
                        prop_assert!(findings.warnings().is_empty());
                    }
                }
                Err(_) => {
                    refused.set(refused.get() + 1);
                    prop_assert!(verdict.is_err(), "{:?}", findings.refusals());
                }
            }
            Ok(())
        })
        .unwrap();
    // Both must happen often, or the agreement says little.
    let (planned, refused) = (planned.get(), refused.get());
    assert!(planned > 200 && refused > 200, "{planned} to {refused}");
}

/// Any 64-bit number, with the borders more often than their share.
fn wild() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        select(vec![
            0,
            1,
            0xfff,
            0x1000,
            1 << 20,
            1 << 39,
            1 << 52,
            u64::MAX - 1,
            u64::MAX
        ]),
        (0_u64..64).prop_map(|shift| 1 << shift),
    ]
}

fn wild_range() -> impl Strategy<Value = PhysRange> {
    (wild(), wild())
        .prop_map(|(a, b)| PhysRange::from_bounds(PhysAddr(a.min(b)), PhysAddr(b.max(a))))
}

proptest! {
    #![proptest_config(Config::with_cases(500))]

    #[test]
    fn no_numbers_make_the_planner_panic(
        mut world in a_world(),
        mut ask in an_ask(),
        ranges in list(wild_range(), 8),
        numbers in list(wild(), 8),
        ids in list(any::<u16>(), 4),
    ) {
        for (region, range) in world.memory.iter_mut().zip(&ranges) {
            region.range = *range;
        }
        for (window, range) in world.windows.iter_mut().zip(ranges.iter().rev()) {
            window.range = *range;
        }
        for (reservation, range) in world.reservations.iter_mut().zip(ranges.iter().skip(3)) {
            reservation.range = *range;
        }
        for (entry, id) in world.functions.iter_mut().zip(&ids) {
            entry.unit = Some(*id);
            entry.isolation.group = *id;
            entry.function.requester = RequesterId(*id);
        }
        for unit in &mut world.units {
            unit.levels = numbers[0] as u8;
            unit.largest_page = PageSize::Size1GiB;
        }
        world.ecam[0].base = PhysAddr(numbers[1]);
        world.budget.table_pages = numbers[2];
        ask.least_memory = numbers[3];
        match &mut ask.memory {
            Memory::These(list) => list.extend(&ranges[4..]),
            Memory::Bytes { length, alignment, below } => {
                (*length, *alignment, *below) = (numbers[4], numbers[5], numbers[6]);
            }
        }
        ask.trampoline = Trampoline::At(PhysAddr(numbers[7]));
        let mut findings = Findings::new();
        let result = ask.plan(&world, &mut findings);
        prop_assert_eq!(result.is_err(), !findings.refusals().is_empty());
    }
}
