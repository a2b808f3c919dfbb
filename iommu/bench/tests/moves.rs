//! What moves cost, for up to 32 devices: as many stores, commands, waits and register accesses as
//! written here, and not one more.

use std::sync::OnceLock;

use iommu::MoveMethod;
use iommu_bench::model::{Counts, Kind, Measurement, Phases, measure, unkept};
use iommu_bench::{Vendor, Way, cases};

const MOST: usize = 32;

fn measured(kind: Kind) -> Vec<Measurement> {
    let all = Vendor::ALL
        .into_iter()
        .flat_map(|vendor| cases(vendor, MOST));
    all.map(|case| measure(kind, case).unwrap_or_else(|wrong| panic!("{wrong}")))
        .collect()
}

/// On units like those that QEMU emulates.
fn emulated() -> &'static [Measurement] {
    static ALL: OnceLock<Vec<Measurement>> = OnceLock::new();
    ALL.get_or_init(|| measured(Kind::AsEmulated))
}

fn of(vendor: Vendor, way: Way) -> impl Iterator<Item = (u64, &'static Measurement)> {
    let mine = emulated()
        .iter()
        .filter(move |m| (m.case.vendor, m.case.way) == (vendor, way));
    mine.map(|m| (m.case.devices as u64, m))
}

/// Table stores, commands, barriers, waits, register writes and reads.
fn figures(counts: Counts) -> [u64; 6] {
    [
        counts.table_stores,
        counts.commands,
        counts.barriers,
        counts.waits,
        counts.mmio_writes,
        counts.mmio_reads,
    ]
}

#[test]
fn a_batch_on_vtd_is_given_at_once_and_waited_for_once() {
    for (n, m) in of(Vendor::VtD, Way::Batch) {
        let (method, commands) = match n {
            ..=8 => (MoveMethod::Selective, n + 1),
            _ => (MoveMethod::Global, 2),
        };
        assert_eq!(m.method, Some(method));
        assert_eq!(figures(m.counts.blackout), [3 * n, commands, 0, 1, 1, 0]);
        assert_eq!(m.waited, waited(1, 0));
    }
}

#[test]
fn a_batch_on_amdvi_is_waited_for_once_in_the_blackout_and_once_after() {
    for (n, m) in of(Vendor::AmdVi, Way::Batch) {
        let (method, commands, barriers) = match n {
            ..=8 => (MoveMethod::Selective, 2 * n + 1, 1),
            _ => (MoveMethod::Global, 2, 0),
        };
        assert_eq!(m.method, Some(method));
        let expected = [3 * n, commands, barriers, 2, 2, 0];
        assert_eq!(figures(m.counts.blackout), expected);
        assert_eq!(m.waited, waited(1, 1));
    }
}

#[test]
fn a_switch_stores_nothing_in_the_blackout_and_costs_the_same_for_any_number() {
    for (vendor, expected, table) in [
        // RTADDR, GCMD and IQT; GSTS before and after.
        (Vendor::VtD, [0, 2, 0, 1, 3, 2], 3 * 512),
        // The device table's base and the tail.
        (Vendor::AmdVi, [0, 1, 0, 1, 2, 0], 65_536 * 4),
    ] {
        for (n, m) in of(vendor, Way::Switch) {
            assert_eq!(m.method, Some(MoveMethod::Switch), "{n}");
            assert_eq!(figures(m.counts.blackout), expected, "{}", m.case);
            assert_eq!(m.waited, waited(1, 0));
            // Second tables as large as those in force.
            assert!(m.counts.prepare.table_stores >= table, "{:?}", m.counts);
            let told = Counts {
                table_stores: 0,
                lines_written_back: 0,
                ..m.counts.prepare
            };
            assert_eq!(told, Counts::default(), "the unit is told nothing before");
        }
    }
}

const fn waited(blackout: u64, settle: u64) -> Phases<u64> {
    Phases {
        prepare: 0,
        blackout,
        settle,
    }
}

#[test]
fn other_drivers_cost_a_multiple_of_the_devices() {
    for (vendor, way, each) in [
        (Vendor::VtD, Way::Linux, [6, 2, 0, 2, 2, 0]),
        (Vendor::VtD, Way::Xen, [1, 2, 0, 2, 4, 8]),
        (Vendor::VtD, Way::Acrn, [4, 2, 0, 2, 2, 0]),
        (Vendor::AmdVi, Way::Linux, [4, 5, 0, 5, 10, 0]),
        (Vendor::AmdVi, Way::Xen, [1, 2, 0, 2, 4, 4]),
    ] {
        for (n, m) in of(vendor, way) {
            assert_eq!(figures(m.counts.blackout), each.map(|it| it * n));
            assert_eq!(m.counts.prepare, Counts::default());
            assert_eq!(m.counts.settle, Counts::default());
            assert_eq!(m.waited, waited(each[3] * n, 0), "each is waited for");
        }
    }
}

#[test]
fn only_ways_that_take_their_entry_back_keep_the_models_rules() {
    for m in emulated() {
        let keeps = match m.case.way {
            Way::Batch | Way::Switch | Way::Linux => true,
            // They change an entry that is in force, or what is left of it, before the unit has
            // forgotten it.
            Way::Xen | Way::Acrn => false,
        };
        assert_eq!(m.broken.is_empty(), keeps, "{}: {:?}", m.case, m.broken);
    }
}

#[test]
fn what_is_said_of_the_ways_holds() {
    assert_eq!(unkept(emulated()), Vec::<String>::new());
}

#[test]
fn what_does_not_hold_is_named() {
    let changed = |way: Way, change: fn(&mut Measurement)| {
        let mut all = emulated().to_vec();
        let last = all.iter_mut().rfind(|m| m.case.way == way).unwrap();
        change(last);
        unkept(&all)
    };
    let said = changed(Way::Batch, |m| m.waited.blackout = 2);
    assert_eq!(
        said,
        ["AMD-Vi, batch, 32 devices: 2 waits in the blackout, not 1"]
    );
    let said = changed(Way::Switch, |m| {
        m.broken.insert("a rule".to_owned());
    });
    assert_eq!(
        said,
        ["AMD-Vi, switch, 32 devices: the move breaks a rule: a rule"]
    );
    // As if a peer did as little.
    let said = changed(Way::Xen, |m| m.counts = Phases::default());
    assert_eq!(said.len(), 2, "{said:?}");
    // One more register access with more devices.
    let mut all = emulated().to_vec();
    let mut more = all
        .iter()
        .rfind(|m| m.case.way == Way::Switch)
        .unwrap()
        .clone();
    more.case.devices = 33;
    more.counts.blackout.mmio_reads += 1;
    all.push(more);
    let said = unkept(&all);
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("AMD-Vi, switch, 32 devices: a switch costs"));
}

#[test]
fn a_unit_that_snoops_costs_the_same_but_for_cache_lines() {
    for (one, other) in measured(Kind::Plain).iter().zip(emulated()) {
        let bare = |m: &Measurement| {
            let Phases {
                prepare,
                blackout,
                settle,
            } = m.counts;
            [prepare, blackout, settle].map(|counts| Counts {
                lines_written_back: 0,
                ..counts
            })
        };
        assert_eq!(bare(one), bare(other), "{}", one.case);
        assert_eq!(one.waited, other.waited);
        assert_eq!(one.broken, other.broken);
        let lines = one.counts.blackout.lines_written_back;
        assert_eq!(lines, 0, "{}", one.case);
    }
}
