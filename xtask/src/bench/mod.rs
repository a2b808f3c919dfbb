//! `cargo xtask bench`: what a swap costs beside the ways there are today. Figures, not tests.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::baseline::{self, Baseline};
use crate::build;
use crate::client::{Load, LoadOptions};
use crate::console::Watcher;
use crate::machine::{Machine, MachineOptions, TRACE_MMIO};
use crate::paths;
use crate::report;
use crate::session::{self, Manner, Session};
use crate::setup::Toolchain;
use crate::ui::{Screen, duration};

/// What is to be measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchOptions {
    /// How often the kernel is swapped.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) swaps: u64,
}

/// The figures, all in wall time of one host: only their ratios mean anything.
#[derive(Clone, Debug, Serialize)]
struct Bench {
    swap_client_gap_us: Vec<u64>,
    swap_blackout_ns: Vec<u64>,
    baseline: Baseline,
}

/// Measures.
pub(crate) fn run(options: &BenchOptions, toolchain: &Toolchain, screen: &Screen) -> Result<()> {
    let images = build::run(toolchain, &build::KERNELS, screen)?;
    let directory = paths::target().join("bench");
    fs::create_dir_all(&directory)?;

    let step = screen.step("Swaps");
    let mut machine = MachineOptions::demo(&images.first, Some(&images.modules));
    machine.trace.push(TRACE_MMIO.to_owned());
    let silent: Watcher = Arc::new(|_, _| ());
    let mut machine = Machine::start(&machine, &directory.join("swap"), &silent)?;
    machine.run()?;
    let first = session::wait_first(&mut machine.consoles[0])?;
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
    let file = directory.join("bench.json");
    let bench = Bench {
        swap_client_gap_us,
        swap_blackout_ns,
        baseline,
    };
    fs::write(&file, serde_json::to_string_pretty(&bench)?)?;
    screen.line(&format!("  figures  {}", paths::shown(&file)));
    Ok(())
}
