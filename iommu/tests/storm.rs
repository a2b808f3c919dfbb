//! Counting faults, against a naive account that remembers everything.

use std::collections::BTreeMap;

use handoff_abi::{PciFunction, RequesterId};
use iommu::quiesce::QuiesceError;
use iommu::storm::{FaultCounts, Limit, Storm, stop};
use iommu_model::pci::{ConfigSpaces, Misbehaviour};
use proptest::prelude::*;

const LIMIT: Limit = Limit {
    faults: 64,
    window: 1000,
};

fn id(number: u16) -> RequesterId {
    RequesterId(number)
}

#[test]
fn one_that_reaches_the_limit_within_a_window_is_told_once() {
    let mut counts = FaultCounts::<4>::new(LIMIT);
    for _ in 0..63 {
        counts.note(id(7), 5);
        assert_eq!(counts.next_storm(), None);
    }
    counts.note(id(7), 1004);
    let storm = Storm {
        requester: id(7),
        faults: 64,
    };
    assert_eq!(counts.next_storm(), Some(storm));
    for now in 0..10_000 {
        counts.note(id(7), now);
        assert_eq!(counts.next_storm(), None, "again");
    }
    // Its new owner may storm as well.
    counts.forget(id(7));
    for _ in 0..64 {
        assert_eq!(counts.next_storm(), None);
        counts.note(id(7), 20_000);
    }
    assert_eq!(counts.next_storm(), Some(storm));
}

#[test]
fn faults_that_are_spread_over_windows_are_no_storm() {
    let mut counts = FaultCounts::<4>::new(LIMIT);
    for window in 0..100 {
        for _ in 0..63 {
            counts.note(id(1), window * 1000);
        }
        assert_eq!(counts.total(), 63);
        assert_eq!(counts.next_storm(), None);
    }
    // A clock that wraps begins no new window too early, and none too late.
    let mut counts = FaultCounts::<4>::new(LIMIT);
    for now in [u64::MAX - 10, u64::MAX, 0, 900] {
        counts.note(id(1), now);
    }
    assert_eq!(counts.total(), 4);
    counts.note(id(1), 989);
    assert_eq!(counts.total(), 1);
}

#[test]
fn a_storm_that_was_not_asked_for_outlasts_its_window() {
    let mut counts = FaultCounts::<1>::new(LIMIT);
    for _ in 0..70 {
        counts.note(id(1), 0);
    }
    counts.note(id(1), 5000);
    let faults = counts.next_storm().map(|storm| storm.faults);
    assert_eq!(faults, Some(71));
}

#[test]
fn a_limit_of_none_is_one_of_one() {
    let mut counts = FaultCounts::<1>::new(Limit {
        faults: 0,
        window: 0,
    });
    assert_eq!(counts.next_storm(), None);
    counts.note(id(1), 0);
    assert!(counts.next_storm().is_some());
}

#[test]
fn no_number_of_others_hides_the_worst() {
    // One fault in five is the storm's. Each of the others comes from an id of its own.
    for others in [1_u16, 7, 100, 60_000] {
        let mut counts = FaultCounts::<8>::new(LIMIT);
        let mut own = 0;
        let mut next = 0;
        let found = (0..100_000_u32).find_map(|fault| {
            if fault % 5 == 0 {
                own += 1;
                counts.note(id(0xffff), 0);
            } else {
                next = (next + 1) % others;
                counts.note(id(next), 0);
            }
            counts.next_storm().filter(|s| s.requester == id(0xffff))
        });
        assert!(found.is_some(), "{others} others");
        let total = counts.total();
        assert!(own <= 64 + total / 8, "{own} of {total}");
    }
}

#[test]
fn faults_from_everywhere_are_a_flood_and_nobodys_storm() {
    let mut counts = FaultCounts::<8>::new(LIMIT);
    for round in 0..10 {
        for number in 0..1000 {
            counts.note(id(number), round);
            assert_eq!(counts.next_storm(), None);
        }
        assert_eq!(counts.is_flooded(), counts.total() > 8 * 64);
    }
    counts.note(id(1), 1000);
    assert!(!counts.is_flooded(), "the next window is a new one");
}

#[test]
fn those_that_were_stopped_make_room_first() {
    let mut counts = FaultCounts::<3>::new(LIMIT);
    for number in [1, 2] {
        for _ in 0..64 {
            counts.note(id(number), 0);
        }
    }
    counts.note(id(3), 0);
    assert!(counts.next_storm().is_some() && counts.next_storm().is_some());
    for number in [4, 5] {
        for _ in 0..63 {
            counts.note(id(number), 0);
        }
    }
    // Of none of the five is anything in doubt.
    for number in [3, 4, 5] {
        let left = if number == 3 { 63 } else { 1 };
        for _ in 0..left {
            assert_eq!(counts.next_storm(), None, "{number}");
            counts.note(id(number), 0);
        }
        let storm = counts.next_storm().unwrap();
        assert_eq!((storm.requester, storm.faults), (id(number), 64));
    }
}

#[test]
fn storms_of_others_do_not_let_one_begin_anew_and_anew() {
    const ROWS: u32 = 5;
    let limit = Limit {
        faults: 20,
        window: 1000,
    };
    let mut counts = FaultCounts::<5>::new(limit);
    let fill = |counts: &mut FaultCounts<5>, number, faults| {
        (0..faults).for_each(|_| counts.note(id(number), 0));
        counts.next_storm().map(|storm| storm.requester)
    };
    for number in 1..5 {
        fill(&mut counts, number, 19);
    }
    // One goes to just below the limit, is crowded out by a newcomer, and comes back when another
    // was stopped and left its row.
    let mut own = 0;
    for round in 0..20 {
        own += 18;
        if fill(&mut counts, 0xffff, 18).is_some() {
            break;
        }
        assert!(own < 20 + counts.total() / ROWS, "hidden in round {round}");
        fill(&mut counts, 100 + round, 1);
        fill(&mut counts, 100 + round, 19);
    }
    assert!(own < 18 * 20, "never told");
}

#[test]
fn a_storm_is_stopped_in_the_unit_and_at_the_device_whatever_fails() {
    let storm = Storm {
        requester: id(0x0300),
        faults: 64,
    };
    let functions = [0x20, 0x28].map(|low| PciFunction {
        segment: 0,
        requester: id(0x0300 | low),
    });
    for silences in [true, false] {
        for obeys in [true, false] {
            let mut spaces = ConfigSpaces::default();
            functions.iter().for_each(|&f| spaces.add(f, &[]));
            if !obeys {
                spaces.misbehave(functions[0], Misbehaviour::ReadOnly);
            }
            let mut asked = Vec::new();
            let stopped = stop(storm, &functions, &mut spaces, |requester| {
                asked.push(requester);
                if silences {
                    Ok(())
                } else {
                    Err("the arena is full")
                }
            });
            assert_eq!(asked, [id(0x0300)]);
            assert!(!spaces.is_bus_master(functions[1]));
            assert_eq!(stopped.silenced.is_ok(), silences);
            assert_eq!(stopped.is_bounded(), silences || obeys);
            match stopped.bus_masters {
                Ok(()) => assert!(obeys),
                Err(QuiesceError::StillBusMaster { function, .. }) => {
                    assert!(!obeys && function == functions[0]);
                }
                other => panic!("{other:?}"),
            }
            let text = stopped.to_string();
            assert!(text.starts_with("03:00.0 made 64 faults, "), "{text}");
            assert_eq!(text.contains("the arena is full"), !silences);
            assert_eq!(text.contains("stays a bus master"), !obeys);
        }
    }
}

proptest! {
    /// Any faults at any times: nobody is stopped for what others did, everybody is who made so
    /// many that others cannot hide it, nobody twice.
    #[test]
    fn nobody_is_stopped_for_others_and_nobody_is_hidden_by_them(
        faults in prop::collection::vec((0_u16..20, 1_u32..40, 0_u64..300), 0..120),
        limit in 1_u32..60,
    ) {
        const ROWS: usize = 5;
        let mut counts = FaultCounts::<ROWS>::new(Limit { faults: limit, window: 1000 });
        // Of the present window: when it began, and who made how many.
        let mut begun = None;
        let mut account = BTreeMap::<u16, u32>::new();
        let mut stopped = Vec::new();
        let mut now = 0;
        for (number, burst, pause) in faults {
            now += pause;
            if begun.is_none_or(|begun| now - begun >= 1000) {
                begun = Some(now);
                account.clear();
            }
            for _ in 0..burst {
                counts.note(id(number), now);
                *account.entry(number).or_default() += 1;
                let total: u32 = account.values().sum();
                prop_assert_eq!(counts.total(), total);
                if let Some(storm) = counts.next_storm() {
                    let own = account[&storm.requester.0];
                    prop_assert!((limit..=own).contains(&storm.faults));
                    stopped.push(storm.requester.0);
                    prop_assert_eq!(counts.next_storm(), None);
                }
                let hidden = account.iter().find(|&(number, &own)| {
                    own >= limit + total / ROWS as u32 && !stopped.contains(number)
                });
                prop_assert_eq!(hidden, None);
            }
        }
    }
}
