//! The demo with a stock Linux beside the first kernel.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use baseline_guest::control::Operation;

use super::{DemoOptions, QUIET, start_with, watcher};
use crate::baseline;
use crate::build::Images;
use crate::client::{Load, LoadOptions};
use crate::linux::{Linux, nanoseconds};
use crate::machine::{Files, MachineOptions, TRACE_MMIO};
use crate::paths;
use crate::report::{self, PartitionShare, Report, RunInfo};
use crate::session::{self, Session};
use crate::setup::qemu_version;
use crate::ui::{Screen, duration};

/// The Linux's name among those who own something.
const NAME: &str = "Linux";

/// Runs the machine, then another one on which the same kernel boots the ordinary way, and fills the
/// report.
pub(super) fn perform(
    options: &DemoOptions,
    images: &Images,
    directory: &Path,
    screen: &Screen,
) -> Result<(Report, Files)> {
    let step = screen.step("Linux");
    let linux = Linux::prepare(directory, &|text| step.progress(text))?;
    step.done(&linux.package);
    let quiet = Arc::new(AtomicBool::new(false));
    let mut machine = MachineOptions::demo(&images.first, None).behind(options.iommu);
    linux.add_to(&mut machine);
    let mut machine = start_with(options, machine, directory, &watcher(screen, &quiet))?;
    let step = screen.step("Boot and capture");
    machine.run()?;
    let first = session::wait_first(&mut machine)?;
    step.done(&format!("{} came up by PVH and serves", first.0));
    let seed = options.seed;
    let load = Load::start(
        machine.service,
        LoadOptions {
            seed,
            ..LoadOptions::default()
        },
    )?;
    session::first_answers(&load)?;
    machine.qmp.trace(TRACE_MMIO, false)?;
    std::thread::sleep(QUIET);

    let mut session = Session::new(machine, load, screen, first);
    let mut found = None;
    let told = session
        .step("Launch", |session| {
            let linux = linux.launch(session)?;
            let text = format!(
                "{} CPUs, {} functions, first process after {}",
                linux.cpus,
                linux.pci_functions.len(),
                duration(linux.launch_to_init_ns)
            );
            found = Some(linux);
            Ok(text)
        })
        .and_then(|()| {
            session.step("Linux crashes", |session| {
                linux.end(session, Operation::Panic)?;
                Ok("the service went on, and everything was taken back".to_owned())
            })
        });
    let broken = told.err().map(|error| {
        let error = session::explain(&session, error);
        screen.line(&format!("  {error:#}"));
        format!("{error:#}")
    });
    quiet.store(true, Ordering::Relaxed);
    let evidence = session.close()?;
    let mut report = report::report(&evidence);
    report.run = RunInfo {
        seed,
        cpus: options.cpus,
        memory_mib: options.memory,
        iommu: options.iommu.name().to_owned(),
        emulator: qemu_version()?,
        took_ns: 0,
    };
    report.failures.splice(0..0, broken);
    if let Some(linux_found) = &mut found {
        linux_found.partitions =
            partitions(&report, linux_found.partition, &linux, &evidence.files);
        if let Err(error) = compare(linux_found, screen) {
            let error = format!("the same kernel, booted the ordinary way: {error:#}");
            report.failures.push(error);
        }
    }
    report.linux = found;
    Ok((report, evidence.files))
}

/// Who owned what when Linux had been launched.
fn partitions(report: &Report, number: u64, linux: &Linux, files: &Files) -> Vec<PartitionShare> {
    let Some(phase) = report
        .owners
        .iter()
        .find(|phase| phase.name.ends_with("launched"))
    else {
        return Vec::new();
    };
    let prime = report
        .versions
        .first()
        .map_or("", |version| version.kernel.as_str());
    let shares = [
        (prime.to_owned(), prime, files.directory.join("com1.log")),
        (
            format!("partition {number}"),
            NAME,
            linux.console().to_path_buf(),
        ),
    ];
    shares
        .into_iter()
        .map(|(owner, name, console)| PartitionShare {
            owner: name.to_owned(),
            resources: phase
                .owned
                .iter()
                .filter(|owned| owned.owner == owner)
                .cloned()
                .collect(),
            console: paths::shown(&console),
        })
        .collect()
}

/// The same kernel on a machine of its own: through firmware, and by kexec.
fn compare(found: &mut report::Linux, screen: &Screen) -> Result<()> {
    let step = screen.step("The same kernel, booted the ordinary way");
    let progress = |text: &str| step.progress(text);
    let baseline = baseline::run(&baseline::Options::new(&progress))?;
    let nanoseconds = |ticks| Some(nanoseconds(ticks, found.tsc_hertz));
    found.cold_boot_ns = nanoseconds(baseline.cold_boot_to_init_ticks);
    found.kexec_ns = nanoseconds(baseline.kexec_to_init_ticks);
    step.done(&baseline.kernel);
    Ok(())
}

/// What came of it, for people.
pub(super) fn summarise(linux: &report::Linux, screen: &Screen) {
    let or = |ns: Option<u64>| ns.map_or_else(|| "?".to_owned(), duration);
    screen.line(&format!(
        "  Linux    {}: {} CPUs, {:#x} bytes, {} functions",
        linux.kernel,
        linux.cpus,
        linux.memory_bytes,
        linux.pci_functions.len()
    ));
    screen.line(&format!(
        "  to init  {} after launch, {} after a cold boot, {} after kexec",
        duration(linux.launch_to_init_ns),
        or(linux.cold_boot_ns),
        or(linux.kexec_ns)
    ));
    if linux.interrupts_open {
        screen.line(
            "  open     its devices, and all behind the same remapping unit, can raise any vector on any CPU",
        );
    }
}
