//! `cargo xtask bench`: what a swap and a move of devices cost, in instructions and accesses that
//! repeat exactly, and a swap in wall time beside the ways there are today. Figures, not tests.

mod counted;
mod moves;
mod spent;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::baseline::{self, Baseline};
use crate::build::{self, Images};
use crate::client::{Load, LoadOptions};
use crate::console::Watcher;
use crate::machine::{Iommu, Machine, MachineOptions, TRACE_MMIO};
use crate::paths;
use crate::report;
use crate::session::{self, Manner, Session};
use crate::setup::Toolchain;
use crate::ui::{Screen, Step, duration};

/// The most instructions that freeze to first service may take with one request.
const BUDGET: u64 = 100_000;

/// How often the counted machine runs: all its figures must be the same.
const RUNS: usize = 2;

/// How many functions are shown of those that instructions were spent in.
const SHOWN: usize = 8;

/// What is to be measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchOptions {
    /// Only the parts that count instructions and accesses.
    #[arg(long)]
    pub(crate) counted: bool,
    /// Only the part that moves devices from domain to domain.
    #[arg(long)]
    pub(crate) moves: bool,
    /// The remapping hardware of the machine that swaps. Moves are measured with both.
    #[arg(long, value_enum, default_value = "vt-d")]
    pub(crate) iommu: Iommu,
    /// How often the kernel is swapped.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) swaps: u64,
}

/// The figures.
#[derive(Clone, Debug, Serialize)]
struct Bench {
    /// The remapping hardware of the machine that swapped.
    iommu: &'static str,
    moves: Vec<moves::Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    counted: Vec<counted::Swap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wall: Option<Wall>,
}

/// All in wall time of one host: only their ratios mean anything.
#[derive(Clone, Debug, Serialize)]
struct Wall {
    swap_client_gap_us: Vec<u64>,
    swap_blackout_ns: Vec<u64>,
    baseline: Baseline,
}

/// Measures.
pub(crate) fn run(options: &BenchOptions, toolchain: &Toolchain, screen: &Screen) -> Result<()> {
    if options.iommu == Iommu::None && !options.moves {
        bail!("without an IOMMU nothing is swapped: only --moves runs with --iommu none");
    }
    let directory = paths::target().join("bench");
    fs::create_dir_all(&directory)?;
    let step = screen.step("The counter");
    let plugin = counted::plugin(toolchain, &step)?;
    step.done("built");
    let moves = moves::run(&directory, &plugin, toolchain, screen)?;
    let (mut counted, mut wall) = (Vec::new(), None);
    if !options.moves {
        let images = build::run(toolchain, &build::KERNELS, screen)?;
        counted = count(options, &images, &plugin, &directory, screen)?;
        if !options.counted {
            wall = Some(compare(options, &images, &directory, screen)?);
        }
    }
    let file = directory.join("bench.json");
    fs::write(
        &file,
        serde_json::to_string_pretty(&Bench {
            iommu: options.iommu.name(),
            moves,
            counted,
            wall,
        })?,
    )?;
    screen.line(&format!("  figures  {}", paths::shown(&file)));
    Ok(())
}

/// Counts on machines behind either vendor's remapping hardware, `runs` times each.
///
/// # Errors
/// Where two runs differ in anything, or cost more than they may.
pub(crate) fn check_repeats(
    runs: usize,
    toolchain: &Toolchain,
    screen: &Screen,
    step: &Step,
) -> Result<()> {
    let directory = paths::target().join("test/counted");
    fs::create_dir_all(&directory)?;
    let plugin = counted::plugin(toolchain, step)?;
    let images = build::run(toolchain, &build::KERNELS, screen)?;
    for iommu in [Iommu::VtD, Iommu::AmdVi] {
        repeat(runs, iommu, &images, &plugin, &directory, step)
            .with_context(|| iommu.to_string())?;
    }
    Ok(())
}

/// Runs the chain `runs` times on a machine whose time is instructions, and says what it cost: the
/// same each time and no more than it may, or it is an error.
fn repeat(
    runs: usize,
    iommu: Iommu,
    images: &Images,
    plugin: &Path,
    directory: &Path,
    step: &Step,
) -> Result<Vec<counted::Swap>> {
    let mut all = (1..=runs).map(|run| {
        let directory = directory.join(format!("counted-{run}"));
        counted::run(images, iommu, plugin, &directory, step)
    });
    let first = all.next().context("there is a first run")??;
    for (again, run) in all.zip(2..) {
        let again = again?;
        if again != first {
            let file = directory.join("differs.json");
            fs::write(&file, serde_json::to_string_pretty(&[&first, &again])?)?;
            bail!(
                "run {run} is not the same as the first: see {}",
                paths::shown(&file)
            );
        }
    }
    for swap in first.iter().filter(|swap| swap.requests == 1) {
        let spent = swap.freeze_to_service.instructions;
        if spent > BUDGET {
            bail!("freeze to service takes {spent} instructions, more than {BUDGET}");
        }
    }
    Ok(first)
}

/// The chain on a machine whose time is instructions, more than once.
fn count(
    options: &BenchOptions,
    images: &Images,
    plugin: &Path,
    directory: &Path,
    screen: &Screen,
) -> Result<Vec<counted::Swap>> {
    let step = screen.step(&format!("Swaps, {}, counted", options.iommu));
    let first = match repeat(RUNS, options.iommu, images, plugin, directory, &step) {
        Ok(first) => first,
        Err(error) => {
            step.failed("not the same in every run, or too much");
            return Err(error);
        }
    };
    step.done(&format!("the same in {RUNS} runs"));
    for swap in &first {
        screen.heading(&format!(
            "To {}, {} waiting at the freeze, instructions and accesses counted",
            swap.to,
            if swap.requests == 1 {
                "1 request".to_owned()
            } else {
                format!("{} requests", swap.requests)
            }
        ));
        screen.line(
            "                     instructions   waits    MMIO   ports  config  commands  IOMMU waits",
        );
        for (what, cost) in [
            ("fence", &swap.fence),
            ("launch to ready", &swap.launch_to_ready),
            ("freeze to service", &swap.freeze_to_service),
            ("reclaim", &swap.reclaim),
        ] {
            screen.line(&format!(
                "  {what:<18} {:>12} {:>7} {:>7} {:>7} {:>7} {:>9} {:>12}",
                cost.instructions,
                cost.waits,
                cost.mmio.total(),
                cost.ports.total(),
                cost.config.total(),
                cost.invalidation_commands,
                cost.invalidation_waits
            ));
        }
        let list = |all: &[(String, u64)]| {
            let shown = all.iter().take(SHOWN);
            let shown = shown.map(|(name, count)| format!("{count} {name}"));
            shown.collect::<Vec<_>>().join(", ")
        };
        screen.line(&format!("  by crate     {}", list(&swap.spent.crates)));
        screen.line(&format!("  by function  {}", list(&swap.spent.functions)));
    }
    Ok(first)
}

/// The swap beside kexec and reboot, all seen by the same kind of client.
fn compare(
    options: &BenchOptions,
    images: &Images,
    directory: &Path,
    screen: &Screen,
) -> Result<Wall> {
    let step = screen.step("Swaps");
    let mut machine =
        MachineOptions::demo(&images.first, Some(&images.modules)).behind(options.iommu);
    machine.trace.push(TRACE_MMIO.to_owned());
    let silent: Watcher = Arc::new(|_, _| ());
    let mut machine = Machine::start(&machine, &directory.join("swap"), &silent)?;
    machine.run()?;
    let first = session::wait_first(&mut machine)?;
    let load = Load::start(machine.service, LoadOptions::default())?;
    session::first_answers(&load)?;
    machine.qmp.trace(TRACE_MMIO, false)?;
    let mut session = Session::new(machine, load, screen, first);
    for (_, image) in (0..options.swaps).zip(session::CHAIN.iter().cycle()) {
        step.progress(&format!("to {image}"));
        session.launch(image)?;
        session.hand_over(Manner::Retire, false)?;
        session.reclaim()?;
    }
    let report = report::report(&session.close()?);
    let swap_client_gap_us: Vec<u64> = report
        .swaps
        .iter()
        .filter_map(|swap| swap.client_gap_us)
        .collect();
    let swap_blackout_ns: Vec<u64> = report
        .swaps
        .iter()
        .filter_map(|swap| swap.blackout_ns)
        .collect();
    step.done(&format!("{} of them", report.swaps.len()));

    let step = screen.step("kexec and reboot");
    let progress = |text: &str| step.progress(text);
    let baseline = baseline::run(&baseline::Options::new(&progress))?;
    step.done(&baseline.kernel);

    let longest = swap_client_gap_us.iter().max().copied();
    let longest = longest.context("no gap was measured")?;
    screen.heading("Time without an answer, as the same client sees it on the same emulator");
    for (what, gap) in [
        ("swap, the longest", longest),
        ("kexec", baseline.kexec_gap_us),
        ("firmware reboot", baseline.firmware_reboot_gap_us),
    ] {
        screen.line(&format!(
            "  {what:<18} {:>12}  {:>8.1} x a swap",
            duration(gap * 1000),
            gap as f64 / longest.max(1) as f64
        ));
    }
    Ok(Wall {
        swap_client_gap_us,
        swap_blackout_ns,
        baseline,
    })
}
