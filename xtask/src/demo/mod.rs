//! The demo: a kernel that serves network clients is replaced by another on the same machine.

mod linux;
mod narrate;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Images};
use crate::client::{Load, LoadOptions};
use crate::console::Watcher;
use crate::holes;
use crate::machine::{BootPath, Files, Iommu, Loader, Machine, MachineOptions, TRACE_MMIO};
use crate::paths;
use crate::picture;
use crate::report::{self, Report, RunInfo};
use crate::session::{self, BAD_PLANS, CHAIN, Manner, Session};
use crate::setup::{Toolchain, qemu_version};
use crate::ui::{Screen, duration};

/// How long the service is watched undisturbed before the first swap, for the median gap.
const QUIET: Duration = Duration::from_secs(2);

/// What is launched beside the first kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Successor {
    /// Kernels that know Baton.
    Kernels,
    /// Debian's stock kernel, which does not.
    Linux,
}

/// What the demo is to do.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoOptions {
    /// Boot and serve only.
    #[arg(long)]
    pub(crate) no_swap: bool,
    /// What is launched beside the first kernel: the kernels that take its service over in turn, or a
    /// stock Linux that has a partition of its own.
    #[arg(long, value_enum, default_value = "kernels")]
    pub(crate) successor: Successor,
    /// The remapping hardware.
    #[arg(long, value_enum, default_value = "vt-d")]
    pub(crate) iommu: Iommu,
    /// Plug the devices when the first kernel asks for them, as is always done with amd-vi.
    #[arg(long)]
    pub(crate) plug: bool,
    /// From power-on to the first kernel.
    #[command(flatten)]
    pub(crate) boot: BootPath,
    /// CPUs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(4..=64))]
    pub(crate) cpus: u32,
    /// RAM in MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1536..=65536))]
    pub(crate) memory: u64,
    /// How often the kernel is swapped.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=200))]
    pub(crate) swaps: u64,
    /// Decides which keys the client writes and reads in which order.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Keep the emulator's trace and all other logs.
    #[arg(long)]
    pub(crate) keep_logs: bool,
    /// Where the report goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(options: &DemoOptions, toolchain: &Toolchain, screen: &Screen) -> Result<()> {
    if options.no_swap && options.successor == Successor::Linux {
        bail!("--no-swap launches nothing");
    }
    if options.iommu == Iommu::None && !options.no_swap {
        bail!("without an IOMMU nothing is fenced: only --no-swap runs with --iommu none");
    }
    options.boot.check()?;
    let with_linux = options.successor == Successor::Linux;
    let recipes = if options.no_swap || with_linux {
        &build::KERNELS[..1]
    } else {
        &build::KERNELS[..]
    };
    let images = build::run(toolchain, recipes, screen)?;
    if options.boot.loader == Loader::Uefi {
        build::uefi_boot(toolchain, &images, screen)?;
    }
    let directory = paths::target().join("demo");
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot clear {}", directory.display()))?;
    }
    fs::create_dir_all(&directory)?;
    let begun = Instant::now();
    let (mut report, files) = if with_linux {
        linux::perform(options, &images, &directory, screen)?
    } else {
        perform(options, &images, &directory, screen)?
    };
    report.run.took_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);

    let json = options
        .json
        .clone()
        .unwrap_or_else(|| directory.join("report.json"));
    report.write(&json)?;
    let drawn = json.with_extension("svg");
    picture::write(&report, &drawn)?;
    summarise(&report, options, screen);
    screen.line("");
    screen.line(&format!("  report   {}", paths::shown(&json)));
    screen.line(&format!("  picture  {}", paths::shown(&drawn)));
    if options.keep_logs || !report.failures.is_empty() {
        screen.line(&format!("  logs     {}", paths::shown(&files.directory)));
    } else {
        files.discard();
    }
    if report.failures.is_empty() {
        Ok(())
    } else {
        bail!("{}", report.failures.join("; "))
    }
}

/// Runs the machine and fills the report. Failures of the sequence are in the report: what was found
/// out before them is worth having.
fn perform(
    options: &DemoOptions,
    images: &Images,
    directory: &Path,
    screen: &Screen,
) -> Result<(Report, Files)> {
    let quiet = Arc::new(AtomicBool::new(false));
    let mut machine = start(options, images, directory, screen, &quiet)?;
    let step = screen.step("Boot and capture");
    machine.run()?;
    let first = session::wait_first(&mut machine)?;
    step.done(&format!("{} came up by PVH and serves", first.0));

    let step = screen.step("Service");
    let load = Load::start(
        machine.service,
        LoadOptions {
            seed: options.seed,
            ..LoadOptions::default()
        },
    )?;
    session::first_answers(&load)?;
    // Names of devices are learnt; from here on each access would cost a line.
    machine.qmp.trace(TRACE_MMIO, false)?;
    std::thread::sleep(QUIET);
    step.done(&format!(
        "{} answers so far, one client",
        load.totals().answered
    ));

    let mut session = Session::new(machine, load, screen, first);
    let mut broken = None;
    if !options.no_swap
        && let Err(error) = sequence(options, &mut session)
    {
        let error = session::explain(&session, error);
        screen.line(&format!("  {error:#}"));
        broken = Some(format!("{error:#}"));
    }
    quiet.store(true, Ordering::Relaxed);
    let step = screen.step("Evidence");
    step.progress("reading every key again, then the trace");
    let evidence = session.close()?;
    step.done(&format!(
        "{} keys read again, {} lines of trace, {} packets",
        evidence.load.read_back,
        evidence.trace.lines(),
        evidence.packets.packets
    ));
    let mut report = report::report(&evidence);
    report.run = RunInfo {
        seed: options.seed,
        cpus: options.cpus,
        memory_mib: options.memory,
        iommu: options.iommu.name().to_owned(),
        emulator: qemu_version()?,
        took_ns: 0,
    };
    report.failures.splice(0..0, broken);
    if !options.no_swap {
        known_holes(&mut report, options, images, directory, screen);
    }
    Ok((report, evidence.files))
}

/// What this emulator leaves open: on a machine of its own, so that it tells nothing about the one
/// that was swapped.
fn known_holes(
    report: &mut Report,
    options: &DemoOptions,
    images: &Images,
    directory: &Path,
    screen: &Screen,
) {
    screen.heading("What this emulator does not enforce, on a machine of its own");
    let step = screen.step("Known holes");
    let silent: Watcher = Arc::new(|_, _| ());
    match holes::look(images, options.iommu, &directory.join("holes"), &silent) {
        Ok((found, files)) => {
            found.report(&mut report.fence);
            for hole in &found.holes {
                screen.detail(&format!("{}: {}", hole.what, hole.observed));
            }
            step.done(&found.sentence());
            if !options.keep_logs && found.failures.is_empty() {
                files.discard();
                // Nothing of it is left; where something is, it does no harm.
                let _ = fs::remove_dir(&files.directory);
            }
            report.failures.extend(found.failures);
        }
        Err(error) => {
            step.failed("did not succeed");
            report.failures.push(format!("known holes: {error:#}"));
        }
    }
}

fn start(
    options: &DemoOptions,
    images: &Images,
    directory: &Path,
    screen: &Screen,
    quiet: &Arc<AtomicBool>,
) -> Result<Machine> {
    let machine = MachineOptions::demo(&images.first, Some(&images.modules)).behind(options.iommu);
    start_with(options, machine, directory, &watcher(screen, quiet))
}

fn start_with(
    options: &DemoOptions,
    mut machine: MachineOptions,
    directory: &Path,
    watcher: &Watcher,
) -> Result<Machine> {
    machine.cpus = options.cpus;
    machine.memory_mib = options.memory;
    machine.boot = options.boot;
    machine.plug |= options.plug;
    machine.trace.push(TRACE_MMIO.to_owned());
    Machine::start(&machine, directory, watcher)
}

/// Shows what the kernels say.
fn watcher(screen: &Screen, quiet: &Arc<AtomicBool>) -> Watcher {
    let (screen, quiet) = (screen.clone(), Arc::clone(quiet));
    Arc::new(move |console, line| {
        if quiet.load(Ordering::Relaxed) {
            return;
        }
        if let Some(sentence) = line.event.as_ref().and_then(narrate::sentence) {
            screen.detail(&format!("{console} | {sentence}"));
        }
    })
}

/// The steps after the first service.
fn sequence(options: &DemoOptions, session: &mut Session) -> Result<()> {
    session.step("Plan, dry run", Session::dry_run)?;
    for name in BAD_PLANS {
        session.step(&format!("Bad plan {name}"), |session| {
            session.bad_plan(name)
        })?;
    }
    for (number, image) in (1..=options.swaps).zip(CHAIN.iter().cycle()) {
        session
            .screen
            .heading(&format!("Swap {number} of {}", options.swaps));
        session.step("Launch", |session| session.launch(image))?;
        session.step("Both run", Session::both_run)?;
        session.step("Attack the fence", Session::attack)?;
        // The first and the last are not held by the host, so that their blackout is the machine's
        // alone; the host looks at the memory of those between.
        let inspect = number != 1 && number != options.swaps;
        session.step("Hand over", |session| {
            session.hand_over(Manner::Retire, inspect)
        })?;
        session.step("Retire and reclaim", Session::reclaim)?;
    }
    session.screen.heading("Stay, and come back");
    let image = CHAIN[usize::try_from(options.swaps).unwrap_or(0) % CHAIN.len()];
    session.step("Launch", |session| session.launch(image))?;
    session.step("Hand over, stay", |session| {
        session.hand_over(Manner::Stay, true)
    })?;
    session.step("Return", |session| session.hand_over(Manner::Return, false))
}

fn summarise(report: &Report, options: &DemoOptions, screen: &Screen) {
    let load = &report.load;
    screen.heading("What came of it");
    screen.line(&format!(
        "  client   {} requests, {} writes acknowledged; {} lost, {} applied twice, {} unanswered",
        load.sent, load.acked_writes, load.lost_writes, load.duplicated_writes, load.unanswered
    ));
    if let Some(gap) = load.median_gap_ns {
        screen.line(&format!("  median   {} between answers", duration(gap)));
    }
    if let Some(linux) = &report.linux {
        linux::summarise(linux, screen);
    }
    for swap in &report.swaps {
        screen.line(&format!(
            "  swap {}   {} -> {} ({}): blackout {}, client gap {}, {} resets, {} dropped{}",
            swap.number,
            swap.from,
            swap.to,
            swap.manner,
            swap.blackout_ns.map_or_else(|| "?".to_owned(), duration),
            swap.client_gap_us
                .map_or_else(|| "?".to_owned(), |gap| duration(gap * 1_000)),
            swap.device_resets,
            swap.dropped_packets,
            match swap.bytes_copied {
                Some(bytes) => format!(", {bytes} bytes copied (held for the look)"),
                None => String::new(),
            }
        ));
    }
    if report.fence.attempts > 0 {
        screen.line(&format!(
            "  fence    {}: {} of {} attempts blocked; {} of {} on memory told by {}",
            options.iommu,
            report.fence.blocked,
            report.fence.attempts,
            report.fence.faults_confirmed,
            report.fence.memory_attempts,
            report.fence.recorded_by
        ));
    }
    for failure in &report.failures {
        screen.line(&format!("  FAILED   {failure}"));
    }
}
