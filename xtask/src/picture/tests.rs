//! The picture of a made-up report. `BATON_PICTURE=FILE cargo test` keeps it for a look.

use super::owners::Map;
use super::{Scale, draw, grouped, marks};
use crate::report::{
    Fence, LoadSums, Owned, Phase, Rate, Report, RunInfo, StepTime, Swap, SwapTimes,
};

fn owned(kind: &str, id: &str, (base, length): (u64, u64), owner: &str) -> Owned {
    Owned {
        kind: kind.to_owned(),
        id: id.to_owned(),
        base,
        length,
        owner: owner.to_owned(),
    }
}

fn phase(name: &str, first: &str, second: &str) -> Phase {
    const MIB: u64 = 1 << 20;
    let devices = [
        "01:00.0", "02:00.0", "03:00.0", "04:00.0", "05:00.0", "07:01.0", "07:02.0",
    ];
    let mut all = vec![
        owned("memory", "", (0, MIB), "firmware"),
        owned("memory", "", (MIB, 1400 * MIB), first),
        owned("memory", "", (1401 * MIB, 4 * MIB), "baton"),
        owned("memory", "", (1405 * MIB, 6 * MIB), "workload"),
        owned("memory", "", (1411 * MIB, 512 * MIB), second),
        owned("memory", "", (1923 * MIB, 124 * MIB), first),
    ];
    for cpu in 0..4 {
        let owner = if cpu < 2 { first } else { second };
        all.push(owned("cpu", &cpu.to_string(), (0, 0), owner));
    }
    for (number, device) in devices.iter().enumerate() {
        let owner = match number {
            0 => "workload",
            1 | 3 => second,
            _ => first,
        };
        all.push(owned("device", device, (0, 0), owner));
    }
    Phase {
        name: name.to_owned(),
        owned: all,
    }
}

fn swap(number: u64, from: &str, to: &str, manner: &str, blackout: u64) -> Swap {
    let steps = if manner == "return" {
        Vec::new()
    } else {
        [
            ("plan", 210_000),
            ("carve", 900_000),
            ("fence", 2_400_000),
            ("load", 9_100_000),
            ("launch", 400_000),
            ("ready", 31_000_000),
        ]
        .map(|(name, ns)| StepTime {
            name: name.to_owned(),
            ns,
        })
        .to_vec()
    };
    Swap {
        number,
        from: from.to_owned(),
        to: to.to_owned(),
        manner: manner.to_owned(),
        inspected: blackout > 10_000_000,
        blackout_ns: Some(blackout),
        client_gap_us: Some(blackout / 1_000 + 900),
        client_median_gap_us: Some(520),
        bytes_copied: Some(0),
        steps,
        times: SwapTimes::default(),
        ..Swap::default()
    }
}

fn report() -> Report {
    let second = 1_000_000_000;
    let begin = 1_795_271_918 * second;
    Report {
        run: RunInfo {
            seed: 7,
            cpus: 4,
            memory_mib: 2048,
            iommu: "vt-d".to_owned(),
            emulator: "QEMU 7.2".to_owned(),
            took_ns: 20 * second,
        },
        swaps: vec![
            swap(1, "alpha", "beta", "retire", 310_000),
            swap(2, "beta", "gamma", "retire", 22_000_000),
            swap(3, "gamma", "alpha", "retire", 290_000),
            swap(4, "alpha", "beta", "stay", 19_000_000),
            swap(5, "beta", "alpha", "return", 350_000),
        ],
        fence: Fence {
            attempts: 48,
            blocked: 48,
            ..Fence::default()
        },
        load: LoadSums {
            sent: 23_412,
            rate: Rate {
                from: begin,
                interval: second / 20,
                answers: (0..400).map(|n: u32| 80 + n * 37 % 23).collect(),
            },
            served_by: [
                ("a", 0),
                ("b", 5),
                ("g", 9),
                ("a", 13),
                ("b", 17),
                ("a", 18),
            ]
            .map(|(kernel, at)| (kernel.to_owned(), begin + at * second))
            .to_vec(),
            ..LoadSums::default()
        },
        owners: vec![
            phase("at first", "alpha", "alpha"),
            phase("swap 1, launched", "alpha", "beta"),
            phase("swap 1, served", "parked", "beta"),
            phase("swap 1, reclaimed", "beta", "beta"),
        ],
        ..Report::default()
    }
}

#[test]
fn the_picture_shows_every_transfer_phase_and_figure() {
    let drawn = draw(&report());
    if let Some(path) = std::env::var_os("BATON_PICTURE") {
        std::fs::write(path, &drawn).unwrap();
    }
    for text in [
        "310.0 us",
        "the standby takes it back",
        "48 / 48",
        "launched",
        "workload",
        "23\u{2009}412",
    ] {
        assert!(drawn.contains(text), "{text}");
    }
    assert_eq!(drawn.matches("without a swap (median)").count(), 5);
    for unfit in ["NaN", "inf", "href", "<script"] {
        assert!(!drawn.contains(unfit), "{unfit}");
    }
}

#[test]
fn the_picture_names_the_vendor() {
    let mut report = report();
    assert!(draw(&report).contains("2048 MiB, VT-d, QEMU"));
    report.run.iommu = "amd-vi".to_owned();
    assert!(draw(&report).contains("2048 MiB, AMD-Vi, QEMU"));
}

#[test]
fn an_empty_report_has_a_picture_too() {
    let drawn = draw(&Report::default());
    assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
}

#[test]
fn what_must_be_zero_and_is_not_stands_out() {
    let mut report = report();
    assert!(!draw(&report).contains(super::BAD));
    report.load.lost_writes = 3;
    assert!(draw(&report).contains(super::BAD));
}

#[test]
fn a_scale_stays_inside_its_bounds() {
    let scale = Scale::new((100, 200), (0.0, 10.0));
    assert_eq!(
        [50, 100, 150, 300].map(|at| scale.at(at)),
        [0.0, 0.0, 5.0, 10.0]
    );
    let point = Scale::new((5, 5), (0.0, 10.0));
    assert_eq!(point.at(5), 0.0);
}

#[test]
fn numbers_are_grouped_and_axes_marked_in_round_steps() {
    assert_eq!(grouped(1_234_567).replace('\u{2009}', " "), "1 234 567");
    assert_eq!(grouped(123), "123");
    assert_eq!([3, 20, 138, 1000].map(marks), [1, 2, 10, 100]);
}

#[test]
fn short_ranges_are_widened_and_nothing_overlaps() {
    let report = report();
    let map = Map::of(&report.owners, 2048 << 20, 400.0);
    let edges: Vec<f64> = [
        0,
        1 << 20,
        1401 << 20,
        1405 << 20,
        1411 << 20,
        1923 << 20,
        2048 << 20,
    ]
    .map(|address: u64| map.at(address))
    .to_vec();
    assert_eq!(edges[0], 0.0);
    assert!((edges[6] - 400.0).abs() < 0.01);
    assert!(
        edges.windows(2).all(|pair| pair[1] - pair[0] > 2.0),
        "{edges:?}"
    );
}
