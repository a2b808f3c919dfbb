//! What a swap is compared with: the time for which the same service is not
//! answered while a stock Linux kernel is replaced by kexec or by a firmware reboot,
//! on the same emulated machine, as the same client sees it.
//!
//! The kernel is Debian's current one for virtual machines, downloaded and unpacked
//! but not installed. User space is one static program (`baseline-guest`) that
//! serves the demo's protocol from a table in its memory. Two events are measured,
//! in wall time and in one run of the emulator:
//!
//! * *kexec*: kernel and initramfs are loaded with `kexec_file_load` beforehand,
//!   while the service goes on; the gap is that of `reboot(LINUX_REBOOT_CMD_KEXEC)`.
//!   It includes the SHA-256 of the loaded image, which that call always has checked;
//! * *firmware reboot*: `reboot(RB_AUTOBOOT)`. SeaBIOS runs again and starts the
//!   kernel that QEMU's `-kernel` names, so there is no boot loader and no disk in
//!   the way.
//!
//! Both are the short way round: nothing is stopped in order, no root file system is
//! checked or mounted, no init system runs. An ordinary installation takes longer.
//!
//! The machine is the demo's with two differences: one more disk, from which the
//! guest reads the kernel that it starts by kexec, and no traces, which would only
//! slow it.

mod image;
mod modules;
pub(crate) mod operator;
mod package;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use baseline_guest::control::{BootId, Operation, Reply};
use baseline_guest::{layout, store};
use serde::Serialize;

use self::operator::Operator;
use crate::client::arrivals;
use crate::client::{Load, LoadOptions};
use crate::console::Watcher;
use crate::machine::{Iommu, Machine, MachineOptions};
use crate::paths;
use crate::process::Run;

/// Receives one line when a new step starts.
pub(crate) type Progress<'a> = &'a dyn Fn(&str);

/// How many requests are answered before an event, to show the gaps without one, and
/// after it, to show that the service has really resumed.
const AROUND: u64 = 1500;

/// Nothing about the kernel is tuned; `quiet` spares it a slow serial line.
const COMMAND_LINE: &str = "console=ttyS0 quiet";

/// What to measure, and where.
pub(crate) struct Options<'a> {
    /// Directory for downloads, images and logs; made if it is missing.
    pub(crate) directory: PathBuf,
    /// CPUs.
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u64,
    /// Remapping hardware.
    pub(crate) iommu: Iommu,
    /// How often each event is measured.
    pub(crate) rounds: u32,
    /// The client's time between two requests. It does not wait for answers.
    pub(crate) interval: Duration,
    /// How long a boot, a reboot or the loading of a kernel may take.
    pub(crate) limit: Duration,
    /// Told about each step.
    pub(crate) progress: Progress<'a>,
}

impl<'a> Options<'a> {
    /// The demo's machine, one round, a request each millisecond.
    pub(crate) fn new(progress: Progress<'a>) -> Self {
        Self {
            directory: paths::target().join("baseline"),
            cpus: 4,
            memory_mib: 2048,
            iommu: Iommu::VtD,
            rounds: 1,
            interval: Duration::from_millis(1),
            limit: Duration::from_secs(120),
            progress,
        }
    }
}

/// How the running kernel was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventKind {
    /// By kexec into the same kernel.
    Kexec,
    /// By a reset of the machine, through its firmware.
    FirmwareReboot,
}

/// One replacement of the kernel.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    /// How it was done.
    pub(crate) kind: EventKind,
    /// Longest time without an answer, in microseconds.
    pub(crate) gap_us: u64,
    /// Median gap between two answers before the event, in microseconds.
    pub(crate) quiet_median_us: u64,
    /// Longest gap between two answers before the event, in microseconds.
    pub(crate) quiet_max_us: u64,
    /// The new kernel's own clock when it first answered the operator, in milliseconds.
    pub(crate) new_kernel_uptime_ms: u64,
    /// Requests that the client never saw answered in its time; it repeats none.
    pub(crate) unanswered: u64,
    /// Writes that were acknowledged before the event.
    pub(crate) acked_writes: u64,
    /// Acknowledged writes that the service no longer had afterwards, by its own
    /// counters and by reading every key again. A write that waited in a queue and was
    /// applied afterwards without being acknowledged can hide one of them.
    pub(crate) lost_writes: u64,
    /// Whether the service's state outlived the event: nothing was lost.
    pub(crate) state_survives: bool,
    /// Resets of the machine, as the emulator reports them: none by kexec. A reboot
    /// has two at least, as SeaBIOS, entered by the kernel's reset, resets once more
    /// before it starts. It asks for that in several ways in a row, and QEMU carries
    /// out what it is asked a little later, so there may be more.
    pub(crate) machine_resets: usize,
    /// How often the firmware started, by its messages: not by kexec, and once or, for
    /// the same reason, more often by a reboot.
    pub(crate) firmware_starts: usize,
}

/// The measured baseline.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Baseline {
    /// The kernel, as it names itself.
    pub(crate) kernel: String,
    /// The package it came in.
    pub(crate) package: String,
    /// The emulator's version.
    pub(crate) emulator: String,
    /// Number of CPUs.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// The client's time between two requests, in microseconds.
    pub(crate) interval_us: u64,
    /// From the machine's first instruction to the first answer, in microseconds.
    pub(crate) cold_boot_us: u64,
    /// From there to the first user process, through the firmware, in ticks of the time stamp counter.
    pub(crate) cold_boot_to_init_ticks: u64,
    /// From the request for a kexec to the next kernel's first user process, in ticks.
    pub(crate) kexec_to_init_ticks: u64,
    /// Median gap of kexec, in microseconds.
    pub(crate) kexec_gap_us: u64,
    /// Median gap of a firmware reboot, in microseconds.
    pub(crate) firmware_reboot_gap_us: u64,
    /// Every event in the order of its measurement.
    pub(crate) events: Vec<Event>,
}

/// A stock kernel and an initramfs, for a partition.
pub(crate) struct Partition {
    /// The package that the kernel came in.
    pub(crate) package: String,
    /// The kernel.
    pub(crate) image: PathBuf,
    /// The initramfs, whose program tells what Linux finds.
    pub(crate) initramfs: PathBuf,
}

/// Brings the kernel to `directory`, and builds what it is started with as the kernel of a partition.
pub(crate) fn partition(directory: &Path, progress: Progress<'_>) -> Result<Partition> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let kernel = package::fetch(directory, progress)?;
    let initramfs = image::partition(directory, &kernel, progress)?;
    Ok(Partition {
        package: kernel.package,
        image: kernel.image,
        initramfs,
    })
}

/// Measures the baseline.
///
/// It fails when something is missing that cannot be fetched, when a deadline passes,
/// or when the guest does not do what it was asked to.
pub(crate) fn run(options: &Options<'_>) -> Result<Baseline> {
    let progress = options.progress;
    let directory = &options.directory;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let kernel = package::fetch(directory, progress)?;
    let images = image::build(directory, &kernel, progress)?;

    progress(&format!("booting {}", kernel.package));
    let options_of_machine = machine_options(options, &kernel, &images);
    let silent: Watcher = Arc::new(|_, _| ());
    let machine = Machine::start(&options_of_machine, &directory.join("machine"), &silent)?;
    let mut bench = Bench {
        operator: Operator::new(machine.service)?,
        machine,
        interval: options.interval,
        limit: options.limit,
    };
    let start = Instant::now();
    bench.machine.run()?;
    let mut boot = bench
        .operator
        .wait_for_boot(&mut bench.machine, None, options.limit)?;
    let cold_boot = start.elapsed();
    let cold_boot_to_init_ticks = boot.first_tsc;
    let mut kexec_to_init_ticks = 0;
    let name = boot.text.clone();
    progress(&format!(
        "{name} answers after {:.1} s",
        cold_boot.as_secs_f64()
    ));

    let mut events = Vec::new();
    for _ in 0..options.rounds.max(1) {
        progress("loading the kernel for kexec");
        bench
            .operator
            .load_kernel(&mut bench.machine, boot.boot, options.limit)?;
        for kind in [EventKind::Kexec, EventKind::FirmwareReboot] {
            progress(&format!("measuring: {kind}"));
            let (event, next, ticks) = bench.replace(kind, boot.boot)?;
            if kind == EventKind::Kexec {
                kexec_to_init_ticks = ticks;
            }
            if next.text != name {
                bail!("another kernel came up: {} instead of {name}", next.text);
            }
            progress(&format!(
                "{kind}: {} ms without an answer, {} of {} acknowledged writes lost",
                event.gap_us / 1000,
                event.lost_writes,
                event.acked_writes
            ));
            boot = next;
            events.push(event);
        }
    }
    bench.machine.quit()?;
    Ok(Baseline {
        kernel: name,
        package: kernel.package,
        emulator: emulator()?,
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        interval_us: micros(options.interval),
        cold_boot_us: micros(cold_boot),
        cold_boot_to_init_ticks,
        kexec_to_init_ticks,
        kexec_gap_us: median_gap(&events, EventKind::Kexec),
        firmware_reboot_gap_us: median_gap(&events, EventKind::FirmwareReboot),
        events,
    })
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kexec => "kexec",
            Self::FirmwareReboot => "firmware reboot",
        })
    }
}

fn machine_options(
    options: &Options<'_>,
    kernel: &package::Kernel,
    images: &image::Images,
) -> MachineOptions {
    let mut machine = MachineOptions::demo(&kernel.image, Some(&images.initramfs));
    machine.cpus = options.cpus;
    machine.memory_mib = options.memory_mib;
    machine.iommu = options.iommu;
    machine.append = COMMAND_LINE.to_owned();
    machine.trace = Vec::new();
    let file = images.disk.display().to_string().replace(',', ",,");
    let platform = match options.iommu {
        Iommu::None => "",
        _ => "iommu_platform=on,",
    };
    machine.extra = vec![
        "-drive".to_owned(),
        format!("if=none,id=kernels,format=raw,file={file}"),
        "-device".to_owned(),
        format!(
            "virtio-blk-pci,drive=kernels,serial={},{platform}disable-legacy=on,ioeventfd=off",
            layout::DISK_SERIAL
        ),
    ];
    machine
}

/// A machine under measurement.
struct Bench {
    machine: Machine,
    operator: Operator,
    interval: Duration,
    limit: Duration,
}

impl Bench {
    /// Replaces the kernel and measures what the client sees of it, and how long the first user process
    /// of the next takes, which only means something where the machine is not reset.
    fn replace(&mut self, kind: EventKind, old: BootId) -> Result<(Event, Reply, u64)> {
        let operation = match kind {
            EventKind::Kexec => Operation::Kexec,
            EventKind::FirmwareReboot => Operation::FirmwareReboot,
        };
        self.operator.clear(&mut self.machine, old)?;
        let resets = self.machine.resets();
        let starts = firmware_starts(&self.machine)?;
        // It goes on sending while nothing is answered: it gives up soon, and may have
        // many requests under way. Otherwise it would miss when the service resumes.
        let load = Load::start(
            self.machine.service,
            LoadOptions {
                seed: 1,
                keys: 1024,
                window: 1024,
                interval: self.interval,
                patience: Duration::from_millis(250),
            },
        )?;
        load.wait_answers(AROUND, self.limit)?;
        let acked_writes = load.totals().acked_writes;
        let from = now()?;
        let before = self
            .operator
            .wait_for_boot(&mut self.machine, None, self.limit)?;
        self.operator.end(operation, old)?;
        let reply = self
            .operator
            .wait_for_boot(&mut self.machine, Some(old), self.limit)?;
        load.wait_answers(AROUND, self.limit)?;
        let until = now()?;
        let report = load.finish()?;

        if let Some(foreign) = report.arrivals.iter().find(|a| a.kernel != store::KERNEL) {
            bail!(
                "kernel {:?} answered, which is not Linux",
                char::from(foreign.kernel)
            );
        }
        let gap = arrivals::longest_in(&report.arrivals, (from, until))
            .context("nothing was answered around the event")?;
        let quiet_max = arrivals::gaps(&report.arrivals)
            .filter(|gap| gap.to < from)
            .map(|gap| gap.nanoseconds())
            .max();
        let quiet_median = arrivals::median_outside(&report.arrivals, &[(from, u64::MAX)]);
        let machine_resets = self.machine.resets() - resets;
        let firmware_starts = firmware_starts(&self.machine)? - starts;
        let as_named = match kind {
            EventKind::Kexec => machine_resets == 0 && firmware_starts == 0,
            EventKind::FirmwareReboot => machine_resets > 0 && firmware_starts > 0,
        };
        if !as_named {
            bail!(
                "this was no {kind}: the machine was reset {machine_resets} times and its \
                 firmware started {firmware_starts} times"
            );
        }
        // One lost write tells that the state is gone. That it is all there can be said
        // only when every key was read again.
        let told = report.lost_writes > 0 || report.read_back_unanswered == 0;
        if acked_writes == 0 || !told {
            bail!(
                "whether the state survives cannot be told: {acked_writes} writes acknowledged, \
                 {} of {} keys not read again",
                report.read_back_unanswered,
                report.read_back
            );
        }
        let event = Event {
            kind,
            gap_us: gap.nanoseconds() / 1000,
            quiet_median_us: quiet_median.unwrap_or_default() / 1000,
            quiet_max_us: quiet_max.unwrap_or_default() / 1000,
            new_kernel_uptime_ms: reply.uptime_ms,
            unanswered: report.totals.unanswered,
            acked_writes,
            lost_writes: report.lost_writes,
            state_survives: report.lost_writes == 0,
            machine_resets,
            firmware_starts,
        };
        let ticks = reply.first_tsc.saturating_sub(before.tsc);
        Ok((event, reply, ticks))
    }
}

/// How often the firmware started. SeaBIOS writes its version twice in each start, and
/// the line after the first time, which says how it was built, once.
fn firmware_starts(machine: &Machine) -> Result<usize> {
    let path = machine.files().firmware();
    let log = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&log).matches("\nBUILD: ").count())
}

/// The emulator's version, in its own words.
fn emulator() -> Result<String> {
    let said = Run::new("qemu-system-x86_64")
        .arguments(["--version"])
        .deadline(Duration::from_secs(20))
        .succeed(|_| ())?;
    Ok(said.lines.into_iter().next().unwrap_or_default())
}

/// Nanoseconds since 1970, as the client's arrivals have them.
fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_nanos())?)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn median_gap(events: &[Event], kind: EventKind) -> u64 {
    let mut gaps: Vec<u64> = events
        .iter()
        .filter(|event| event.kind == kind)
        .map(|event| event.gap_us)
        .collect();
    gaps.sort_unstable();
    // Of two in the middle the shorter one.
    gaps.get(gaps.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or_default()
}
