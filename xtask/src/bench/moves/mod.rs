//! What it costs to move N devices from domain to domain: each of Baton's ways and those of other
//! drivers, on the strict models in this process and on the units that QEMU emulates.

mod emulated;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use iommu_bench::model::{self, Counts, Kind, Measurement, Phases};
use iommu_bench::{COUNTS, Case, Vendor, cases};
use serde::Serialize;

use crate::build;
use crate::paths;
use crate::setup::Toolchain;
use crate::ui::Screen;

/// How often the emulated machine runs: all its figures must be the same.
const RUNS: usize = 2;

/// From how many devices on Baton's ways take fewer instructions than any other driver's, whose
/// locks and book-keeping are not even counted.
const MANY: usize = 32;

/// What one way costs for one number of devices.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// VT-d or AMD-Vi.
    unit: String,
    /// The way.
    way: String,
    /// Whether it is one of Baton's.
    ours: bool,
    /// How many devices.
    devices: usize,
    /// How Baton made the move.
    method: Option<String>,
    /// Rules of the strict model that the way breaks.
    breaks: Vec<String>,
    /// Before the blackout.
    prepare: Cost,
    /// The blackout.
    blackout: Cost,
    /// After it, until the devices can begin.
    settle: Cost,
}

/// What a phase costs.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    table_stores: u64,
    queue_stores: u64,
    lines_written_back: u64,
    commands: u64,
    barriers: u64,
    /// Waits that software has to wait for in this phase.
    waits: u64,
    mmio_writes: u64,
    mmio_reads: u64,
    instructions: u64,
}

impl Cost {
    const fn new(counts: &Counts, waits: u64, emulated: &emulated::Cost) -> Self {
        Self {
            table_stores: counts.table_stores,
            queue_stores: counts.queue_stores,
            lines_written_back: counts.lines_written_back,
            commands: counts.commands,
            barriers: counts.barriers,
            waits,
            mmio_writes: counts.mmio_writes,
            mmio_reads: counts.mmio_reads,
            instructions: emulated.instructions,
        }
    }
}

impl Row {
    fn new(measured: &Measurement, emulated: &Phases<emulated::Cost>) -> Self {
        let Measurement {
            case,
            method,
            counts,
            waited,
            broken,
        } = measured;
        Self {
            unit: case.vendor.to_string(),
            way: case.way.to_string(),
            ours: case.way.is_ours(),
            devices: case.devices,
            method: method.map(|method| format!("{method:?}").to_lowercase()),
            breaks: broken.iter().cloned().collect(),
            prepare: Cost::new(&counts.prepare, waited.prepare, &emulated.prepare),
            blackout: Cost::new(&counts.blackout, waited.blackout, &emulated.blackout),
            settle: Cost::new(&counts.settle, waited.settle, &emulated.settle),
        }
    }
}

/// Measures, prints and checks.
pub(super) fn run(
    directory: &Path,
    plugin: &Path,
    toolchain: &Toolchain,
    screen: &Screen,
) -> Result<Vec<Row>> {
    let step = screen.step("The kernel that moves devices");
    let kernels = paths::target().join("kernels").join(toolchain.tag());
    fs::create_dir_all(&kernels)?;
    let kernel = build::kernel(toolchain, &build::MOVES, &kernels, &step)?;
    step.done("built");

    let most = COUNTS.into_iter().max().context("a number of devices")?;
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for vendor in Vendor::ALL {
        let all: Vec<Case> = cases(vendor, most).collect();
        let step = screen.step(&format!("Moves on {vendor}"));
        let mut measured = Vec::new();
        for &case in &all {
            step.progress(&format!("model: {case}"));
            measured.push(model::measure(Kind::AsEmulated, case)?);
        }
        wrong.extend(model::unkept(&measured));
        step.progress("emulated");
        let emulated = twice(vendor, &all, &kernel, plugin, directory)?;
        for (measured, emulated) in measured.iter().zip(&emulated) {
            agree(measured, emulated)?;
            rows.push(Row::new(measured, emulated));
        }
        step.done(&format!(
            "{} moves of up to {most}: the model's counts are those of QEMU's trace, and {RUNS} runs \
             are the same",
            all.len()
        ));
    }
    wrong.extend(dearer(&rows));
    table::print(&rows, screen);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(rows)
}

/// Where one of Baton's ways takes no fewer instructions than another driver's, in plain sentences.
fn dearer(rows: &[Row]) -> Vec<String> {
    let of = |ours: bool| {
        rows.iter()
            .filter(move |row| row.ours == ours && row.devices >= MANY)
    };
    let mut dearer = Vec::new();
    for mine in of(true) {
        let beside =
            of(false).filter(|other| (&other.unit, other.devices) == (&mine.unit, mine.devices));
        for other in beside {
            let cost = |row: &Row| row.blackout.instructions + row.settle.instructions;
            if cost(mine) >= cost(other) {
                dearer.push(format!(
                    "{}, {} devices: {} takes {} instructions, and {} takes {}",
                    mine.unit,
                    mine.devices,
                    mine.way,
                    cost(mine),
                    other.way,
                    cost(other)
                ));
            }
        }
    }
    dearer
}

fn twice(
    vendor: Vendor,
    cases: &[Case],
    kernel: &Path,
    plugin: &Path,
    directory: &Path,
) -> Result<Vec<Phases<emulated::Cost>>> {
    let mut runs = (1..=RUNS).map(|run| {
        let directory = directory.join(format!("moves-{vendor}-{run}"));
        emulated::run(vendor, cases, kernel, plugin, &directory)
    });
    let first = runs.next().context("there is a first run")??;
    for again in runs {
        for ((case, one), other) in cases.iter().zip(&first).zip(again?) {
            ensure!(*one == other, "{case}: two runs differ: {one:?}, {other:?}");
        }
    }
    Ok(first)
}

/// Holds the model's counts against those from QEMU's trace, phase by phase.
fn agree(measured: &Measurement, emulated: &Phases<emulated::Cost>) -> Result<()> {
    let counts = &measured.counts;
    for (phase, model, emulated) in [
        ("preparation", &counts.prepare, &emulated.prepare),
        ("blackout", &counts.blackout, &emulated.blackout),
        ("end", &counts.settle, &emulated.settle),
    ] {
        ensure!(
            emulated.agrees(model),
            "{}, {phase}: the model counts {model:?}, QEMU's trace {emulated:?}",
            measured.case
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MANY, Row, dearer, emulated};
    use iommu_bench::model::{Counts, Measurement, Phases};
    use iommu_bench::{Case, Vendor, Way};

    fn row(way: Way, devices: usize, instructions: u64) -> Row {
        let measured = Measurement {
            case: Case {
                vendor: Vendor::VtD,
                way,
                devices,
            },
            method: None,
            counts: Phases::<Counts>::default(),
            waited: Phases::default(),
            broken: Default::default(),
        };
        let emulated = Phases {
            blackout: emulated::Cost {
                instructions,
                ..emulated::Cost::default()
            },
            ..Phases::default()
        };
        Row::new(&measured, &emulated)
    }

    #[test]
    fn a_way_that_takes_more_instructions_than_another_driver_is_named() {
        let rows = [
            row(Way::Batch, MANY, 999),
            row(Way::Switch, MANY, 1000),
            row(Way::Linux, MANY, 1000),
            row(Way::Xen, MANY, 2000),
            // With few devices it may.
            row(Way::Batch, 1, 1000),
            row(Way::Linux, 1, 500),
            // Nor are other numbers of devices compared.
            row(Way::Xen, 2 * MANY, 1),
        ];
        assert_eq!(
            dearer(&rows),
            ["VT-d, 32 devices: switch takes 1000 instructions, and Linux takes 1000"]
        );
        assert!(dearer(&rows[..1]).is_empty());
    }
}
