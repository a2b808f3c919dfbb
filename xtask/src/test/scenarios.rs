//! Scenarios: each boots a machine of its own and looks at what happens there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::build::{Broken, Images, elf};
use crate::client::{Load, LoadOptions};
use crate::console::Watcher;
use crate::event::Event;
use crate::holes;
use crate::machine::{
    BootPath, Firmware, Iommu, Loader, Machine, MachineOptions, TRACE_MMIO, kill_all,
};
use crate::paths;
use crate::report::{self, Owned, Report};
use crate::session::owners::phases;
use crate::session::{self, Manner, Session};
use crate::ui::Screen;

/// A scenario.
pub(super) struct Scenario {
    /// Its name.
    pub(super) name: &'static str,
    /// What it shows.
    pub(super) about: &'static str,
    /// Whether it only runs with `--full`.
    pub(super) long: bool,
    /// The remapping hardware of its machines.
    iommu: Iommu,
    /// From power-on to the first kernel.
    pub(super) boot: BootPath,
    /// The longest it may take, in seconds.
    limit: u64,
    work: fn(&Context) -> Result<()>,
}

/// Where a successor hangs.
const HANGS: &[&str] = &[
    "launched:hang",
    "negotiated:hang",
    "expecting:hang",
    "deaf:hang",
];

/// GRUB, started by a PC BIOS.
const GRUB: BootPath = BootPath {
    firmware: Firmware::SeaBios,
    loader: Loader::Multiboot2,
};

/// GRUB, started by UEFI.
const UEFI_GRUB: BootPath = BootPath {
    firmware: Firmware::Ovmf,
    loader: Loader::Multiboot2,
};

/// Baton's own application, started by UEFI.
const UEFI: BootPath = BootPath {
    firmware: Firmware::Ovmf,
    loader: Loader::Uefi,
};

/// All of them.
pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "serve",
        about: "the first kernel boots, fences and serves",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 60,
        work: serve,
    },
    Scenario {
        name: "serve-unfenced",
        about: "without an IOMMU the first kernel serves as well, and can give nothing away",
        long: false,
        iommu: Iommu::None,
        boot: BootPath::DIRECT,
        limit: 60,
        work: serve_unfenced,
    },
    Scenario {
        name: "minimal",
        about: "the minimal embedding hands its workload over and has both processors at the end",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 60,
        work: minimal,
    },
    Scenario {
        name: "bad-plans",
        about: "plans that cannot be are refused with a reason, and nothing is touched",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 60,
        work: bad_plans,
    },
    Scenario {
        name: "machine-facts",
        about: "threads, features, microcode and interrupt lines of the machine decide over plans",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 90,
        work: super::facts::machine_facts,
    },
    Scenario {
        name: "queue-nonsense",
        about: "nonsense in a queue is told once, and in the status",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 60,
        work: super::queue::queue_nonsense,
    },
    Scenario {
        name: "foreign-registers",
        about: "a workload that names foreign registers is not adopted, and the service goes on",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 90,
        work: super::queue::foreign_registers,
    },
    Scenario {
        name: "bad-images",
        about: "broken images are refused and the service goes on",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 90,
        work: bad_images,
    },
    Scenario {
        name: "bad-handoffs",
        about: "a handoff that is wrong in any field is refused by name, and everything is taken back",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 180,
        work: super::handoffs::bad_handoffs,
    },
    Scenario {
        name: "c-kernel",
        about: "a kernel in C, written from the header alone, takes over, serves and owns the machine",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 120,
        work: super::delta::c_kernel,
    },
    Scenario {
        name: "linux",
        about: "a stock Linux finds its partition and nothing else, works, and crashes; the prime serves",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 420,
        work: super::linux::linux,
    },
    Scenario {
        name: "amd-linux",
        about: "behind AMD-Vi a stock Linux is fenced with all its interrupts, works, and crashes",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 420,
        work: super::linux::linux,
    },
    Scenario {
        name: "linux-ends",
        about: "a stock Linux that resets its machine, or switches it off, ends alone",
        long: true,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 600,
        work: super::linux::linux_ends,
    },
    Scenario {
        name: "known-holes",
        about: "what the emulator does not enforce is what is known of it, and nothing more",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 60,
        work: known_holes,
    },
    Scenario {
        name: "multiboot2",
        about: "the same first kernel, loaded by GRUB from a disk, hands over to another",
        long: false,
        iommu: Iommu::VtD,
        boot: GRUB,
        limit: 120,
        work: one_swap,
    },
    Scenario {
        name: "uefi-multiboot2",
        about: "the same on a machine with UEFI",
        long: true,
        iommu: Iommu::VtD,
        boot: UEFI_GRUB,
        limit: 240,
        work: one_swap,
    },
    Scenario {
        name: "uefi",
        about: "the same, loaded by an application of Baton's that captures what UEFI says",
        long: true,
        iommu: Iommu::VtD,
        boot: UEFI,
        limit: 240,
        work: one_swap,
    },
    Scenario {
        name: "amd-uefi",
        about: "the same with AMD-Vi",
        long: true,
        iommu: Iommu::AmdVi,
        boot: UEFI,
        limit: 240,
        work: one_swap,
    },
    Scenario {
        name: "chain",
        about: "three swaps in one power-on, back to the first binary",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 180,
        work: chain,
    },
    Scenario {
        name: "host-managed",
        about: "a kernel that drives its unit itself fences with it, and hands it over as Baton's",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 180,
        work: super::host::host_managed,
    },
    Scenario {
        name: "stay",
        about: "the old kernel stays as standby and takes the service back",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 120,
        work: stay,
    },
    Scenario {
        name: "no-library-in-service",
        about: "a second of service after a swap executes nothing of the libraries",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 120,
        work: no_library_in_service,
    },
    Scenario {
        name: "successor-hangs",
        about: "a successor that hangs is stopped and everything is taken back",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 180,
        work: |context| misbehaves(context, HANGS),
    },
    Scenario {
        name: "successor-loops",
        about: "a successor that loops wildly is stopped and everything is taken back",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 180,
        work: |context| misbehaves(context, &["entered:loop", "ready:loop"]),
    },
    Scenario {
        name: "successor-exits",
        about: "a successor that gives up leaves everything behind",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 120,
        work: |context| misbehaves(context, &["negotiated:exit"]),
    },
    Scenario {
        name: "successor-slow",
        about: "a successor that wakes up too late finds itself stopped",
        long: true,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 300,
        work: |context| {
            misbehaves(context, &["entered:slow", "negotiated:slow"])?;
            wakes_up_late(context)
        },
    },
    Scenario {
        name: "successor-every-fault",
        about: "every way to go wrong at every state of the protocol",
        long: true,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 1800,
        work: |context| {
            let mut faults = Vec::new();
            for point in ["launched", "entered", "negotiated", "ready", "expecting"] {
                for how in ["hang", "loop", "exit", "slow"] {
                    faults.push(format!("{point}:{how}"));
                }
            }
            faults.push("deaf:hang".to_owned());
            misbehaves(context, &faults)
        },
    },
    Scenario {
        name: "twenty-chains",
        about: "twenty chains of three swaps with different seeds",
        long: true,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 3600,
        work: twenty_chains,
    },
    Scenario {
        name: "fault-storm",
        about: "a device that makes faults without end is silenced and loses its bus mastering",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 90,
        work: fault_storm,
    },
    Scenario {
        name: "fault-message",
        about: "the unit's own message has the steward stop a device that makes faults",
        long: false,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 90,
        work: fault_message,
    },
    Scenario {
        name: "plugged-devices",
        about: "devices that come when the first kernel asks for them are fenced like any other",
        long: true,
        iommu: Iommu::VtD,
        boot: BootPath::DIRECT,
        limit: 120,
        work: super::plugged::plugged_devices,
    },
    Scenario {
        name: "amd-serve",
        about: "the first kernel asks for its devices, fences by AMD-Vi and serves",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 60,
        work: serve,
    },
    Scenario {
        name: "amd-requesters",
        about: "every function behind AMD-Vi obeys the entry of its own requester id",
        long: false,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 60,
        work: super::plugged::requesters,
    },
    Scenario {
        name: "amd-chain",
        about: "three swaps behind AMD-Vi, with every attack, back to the first binary",
        long: false,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 240,
        work: chain,
    },
    Scenario {
        name: "amd-stay",
        about: "behind AMD-Vi the old kernel stays as standby and takes the service back",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 120,
        work: stay,
    },
    Scenario {
        name: "amd-bad-plans",
        about: "behind AMD-Vi plans that cannot be are refused with the same reasons",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 60,
        work: bad_plans,
    },
    Scenario {
        name: "amd-bad-handoffs",
        about: "behind AMD-Vi handoffs that are wrong are refused and all is taken back",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 180,
        work: super::handoffs::bad_handoffs,
    },
    Scenario {
        name: "amd-known-holes",
        about: "what the emulated AMD-Vi does not enforce is what is known of it",
        long: false,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 60,
        work: known_holes,
    },
    Scenario {
        name: "amd-successor-hangs",
        about: "behind AMD-Vi a successor that hangs is stopped and undone",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 180,
        work: |context| misbehaves(context, HANGS),
    },
    Scenario {
        name: "amd-twenty-chains",
        about: "twenty chains of three swaps behind AMD-Vi with different seeds",
        long: true,
        iommu: Iommu::AmdVi,
        boot: BootPath::DIRECT,
        limit: 3600,
        work: twenty_chains,
    },
];

impl Scenario {
    /// Runs it in a thread of its own, so that its deadline holds whatever it does. Its logs are
    /// kept when it fails.
    pub(super) fn run(&self, images: &Images, screen: &Screen, logs: &Path, keep: bool) -> bool {
        let step = screen.step(self.name);
        let directory = logs.join(self.name);
        if directory.exists()
            && let Err(error) = fs::remove_dir_all(&directory)
        {
            step.failed(&format!("cannot clear {}: {error}", directory.display()));
            return false;
        }
        let context = Context {
            iommu: self.iommu,
            boot: self.boot,
            images: images.clone(),
            directory: directory.clone(),
            screen: screen.clone(),
        };
        let (sender, receiver) = mpsc::channel();
        let work = self.work;
        let worker = thread::spawn(move || {
            // The receiver waits until the deadline; after it nobody wants to know.
            let _ = sender.send(work(&context));
        });
        let result = match receiver.recv_timeout(Duration::from_secs(self.limit)) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                kill_all();
                Err(anyhow!("it was still running after {} s", self.limit))
            }
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("it panicked")),
        };
        // A thread that panicked has said so already.
        let _ = worker.join();
        match result {
            Ok(()) => {
                step.done(self.about);
                if !keep {
                    // Only space is lost where this fails.
                    let _ = fs::remove_dir_all(&directory);
                }
                true
            }
            Err(error) => {
                step.failed(&format!("{error:#}"));
                screen.detail(&format!("logs in {}", paths::shown(&directory)));
                false
            }
        }
    }
}

/// What a scenario has to work with.
pub(super) struct Context {
    pub(super) iommu: Iommu,
    boot: BootPath,
    images: Images,
    pub(super) directory: PathBuf,
    screen: Screen,
}

impl Context {
    /// The demo's machine.
    pub(super) fn machine(&self) -> MachineOptions {
        let options = MachineOptions::demo(&self.images.first, Some(&self.images.modules));
        let mut options = options.behind(self.iommu);
        options.boot = self.boot;
        options.trace.push(TRACE_MMIO.to_owned());
        options
    }

    /// Boots a machine whose first kernel serves, and puts load on it.
    pub(super) fn boot(&self, name: &str, options: &MachineOptions, seed: u64) -> Result<Session> {
        let silent: Watcher = Arc::new(|_, _| ());
        let mut machine = Machine::start(options, &self.directory.join(name), &silent)?;
        machine.run()?;
        let first = session::wait_first(&mut machine)?;
        let load = Load::start(
            machine.service,
            LoadOptions {
                seed,
                ..LoadOptions::default()
            },
        )?;
        session::first_answers(&load)?;
        machine.qmp.trace(TRACE_MMIO, false)?;
        Ok(Session::new(machine, load, &self.screen, first))
    }
}

/// Ends the session; the service must have been unharmed throughout.
pub(super) fn unharmed(session: Session) -> Result<Report> {
    let report = report::report(&session.close()?);
    if !report.failures.is_empty() {
        let mut text = report.failures.join("; ");
        for complaint in &report.load.complaints {
            text.push_str("; ");
            text.push_str(complaint);
        }
        bail!("{text}");
    }
    Ok(report)
}

/// The kernels that served the clients, in order.
pub(super) fn served(report: &Report) -> String {
    let letters = report.load.served_by.iter();
    letters.map(|(letter, _)| letter.as_str()).collect()
}

fn serve(context: &Context) -> Result<()> {
    let name = context.iommu.name();
    let mut session = context.boot(name, &context.machine(), 1)?;
    session.load.wait_answers(500, Duration::from_secs(20))?;
    // It is fenced: there is something to give away.
    session.dry_run()?;
    let log = session.machine.files().trace();
    unharmed(session)?;
    // Whatever can do so sends requests upstream: the emulator's root ports have their ACS Control
    // register at 14Eh, and all of the services that are wanted.
    let log = fs::read_to_string(&log).with_context(|| format!("no {}", log.display()))?;
    let ports = log
        .lines()
        .filter(|line| line.contains("pci_cfg_write pcie-root-port"))
        .filter(|line| line.ends_with(" @0x14e <- 0x1f"))
        .count();
    ensure!(ports == 6, "{ports} of 6 root ports send requests upstream");
    Ok(())
}

fn serve_unfenced(context: &Context) -> Result<()> {
    let mut session = context.boot("no-iommu", &context.machine(), 1)?;
    let done = session.machine.consoles[0].command("plan", Duration::from_secs(20))?;
    ensure!(done.result != "ok", "a plan without an IOMMU was accepted");
    unharmed(session).map(drop)
}

/// Plans that must be refused, and the rule that each breaks.
const RULES: &[(&str, &str)] = &[
    ("overlap", "memory-baton"),
    ("shared-requester", "requester-shared"),
    ("own-cpu", "cpu-runs-prime"),
    ("absent-cpu", "cpu-missing"),
    ("absent-memory", "memory-missing"),
    ("past-the-end", "memory-missing"),
    ("absent-function", "function-missing"),
    ("absent-interrupts", "too-many-interrupts"),
    ("absent-singleton", "singleton-missing"),
    ("cpu-twice", "cpu-twice"),
    ("registers", "memory-missing"),
    ("firmware", "memory-firmware"),
];

/// The embedding that authors copy: all that it does is seen on its console.
fn minimal(context: &Context) -> Result<()> {
    let mut options = MachineOptions::demo(&context.images.path("minimal.elf"), None);
    options.cpus = 2;
    let silent: Watcher = Arc::new(|_, _| ());
    let mut machine = Machine::start(&options, &context.directory.join("machine"), &silent)?;
    machine.run()?;
    let mut said = Vec::new();
    for expected in [
        "prime: the successor is ready",
        "prime: commit",
        "successor: serving, the counter is 42",
        "successor: processor 0 works for me",
    ] {
        let line = machine.consoles[0].next_line(Duration::from_secs(20))?;
        said.extend(line.map(|line| line.text));
        ensure!(
            said.last().is_some_and(|last| last == expected),
            "it said {said:?} and not `{expected}`"
        );
    }
    ensure!(machine.resets() == 0, "the machine was reset");
    machine.quit().map(drop)
}

fn bad_plans(context: &Context) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 2)?;
    let before = owners(&mut session)?;
    for &(name, rule) in RULES {
        session.bad_plan(name)?;
        let done = session.machine.consoles[0]
            .command(&format!("plan {name}"), Duration::from_secs(20))?;
        let broken: Vec<&str> = done
            .all("refused")
            .filter_map(|event| event.get("rule"))
            .collect();
        ensure!(
            broken.contains(&rule),
            "the bad plan `{name}` breaks {broken:?} and not {rule}"
        );
        ensure!(
            done.all("plan").next().is_none(),
            "the bad plan `{name}` came to something"
        );
    }
    let after = owners(&mut session)?;
    ensure!(
        before == after,
        "the machine is not as it was: {}",
        difference(&before, &after)
    );
    session.dry_run()?;
    unharmed(session).map(drop)
}

fn known_holes(context: &Context) -> Result<()> {
    holes::proofs_are_there(&paths::workspace())?;
    let silent: Watcher = Arc::new(|_, _| ());
    let (found, files) = holes::look(&context.images, context.iommu, &context.directory, &silent)?;
    ensure!(found.failures.is_empty(), "{}", found.failures.join("; "));
    let reboots = files.firmware_reentries()?;
    ensure!(reboots == 0, "the machine was rebooted {reboots} times");
    Ok(())
}

fn bad_images(context: &Context) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 3)?;
    let before = owners(&mut session)?;
    let names = Broken::ALL.map(Broken::file_name);
    for name in names.into_iter().chain(["nothing-of-the-kind.elf"]) {
        let done = session.machine.consoles[0]
            .command(&format!("launch {name}"), Duration::from_secs(60))?;
        ensure!(done.result != "ok", "{name} was launched");
        ensure!(!done.text.is_empty(), "{name} was refused without a reason");
        let after = owners(&mut session)?;
        ensure!(
            before == after,
            "{name}: the machine is not as it was: {}",
            difference(&before, &after)
        );
        session.load.wait_answers(50, Duration::from_secs(10))?;
    }
    // The same machine still swaps.
    session.launch("beta.elf")?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    unharmed(session).map(drop)
}

/// The ledger as the kernel on COM1 prints it on demand. Whether memory that lies side by side and
/// has one owner is one entry or several makes no difference.
pub(super) fn owners(session: &mut Session) -> Result<Vec<Owned>> {
    let console = &mut session.machine.consoles[0];
    console.command_ok("status", Duration::from_secs(20))?;
    let history = console.history();
    let last = history
        .iter()
        .rposition(|line| line.event.as_ref().is_some_and(|event| event.word == "up"))
        .context("the kernel did not say who it is")?;
    let phases = phases(&[history[last..].to_vec()]);
    let mut owned = phases
        .into_iter()
        .next()
        .context("the kernel printed no owners")?
        .owned;
    owned.sort();
    owned.dedup_by(|next, before| {
        let joined = next.kind == "memory"
            && before.kind == "memory"
            && next.owner == before.owner
            && before.base + before.length == next.base;
        if joined {
            before.length += next.length;
        }
        joined
    });
    Ok(owned)
}

/// What differs between two ledgers, for an error.
pub(super) fn difference(before: &[Owned], after: &[Owned]) -> String {
    let only = |these: &[Owned], others: &[Owned]| {
        let these = these.iter().filter(|one| !others.contains(one));
        let shown = these.map(|one| {
            format!(
                "{} {}{:#x}+{:#x} {}",
                one.kind, one.id, one.base, one.length, one.owner
            )
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    format!(
        "gone: {}; new: {}",
        only(before, after),
        only(after, before)
    )
}

fn one_swap(context: &Context) -> Result<()> {
    swap_once(context, &context.machine())
}

/// One swap with every attack.
pub(super) fn swap_once(context: &Context, options: &MachineOptions) -> Result<()> {
    let mut session = context.boot("machine", options, 10)?;
    session.launch("beta.elf")?;
    session.attack()?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    unharmed(session).map(drop)
}

fn chain(context: &Context) -> Result<()> {
    chain_with(context, 4)
}

fn twenty_chains(context: &Context) -> Result<()> {
    (1..=20).try_for_each(|seed| chain_with(context, seed))
}

/// The successor's device makes faults until the steward, which is the other kernel, stops it. Then
/// it makes none, nobody else notices, and the machine is handed over as ever.
fn fault_storm(context: &Context) -> Result<()> {
    storm_with(context, "attack storm", |storm, stormed| {
        let (attempts, records) = (stormed.number("attempts")?, stormed.number("records")?);
        ensure!(
            storm.number("faults")? == records && attempts == records,
            "not every fault was counted: {storm}, {stormed}"
        );
        Ok(())
    })
}

/// The same, with nobody asking the steward to look: the unit, which has room for one record, tells it
/// of each, so that it has heard of nearly all when it stops the device. By the clock it would hear of
/// too few in a time to stop it at all.
fn fault_message(context: &Context) -> Result<()> {
    storm_with(context, "attack storm unasked", |storm, stormed| {
        let (attempts, faults) = (stormed.number("attempts")?, storm.number("faults")?);
        ensure!(
            attempts <= faults + 2,
            "the steward heard late: {storm}, {stormed}"
        );
        Ok(())
    })
}

fn storm_with(
    context: &Context,
    command: &str,
    counted: impl Fn(&Event, &Event) -> Result<()>,
) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 11)?;
    session.launch("beta.elf")?;
    session.machine.consoles[1].command_ok(command, Duration::from_secs(60))?;
    let event = |console: usize, word: &str| {
        let history = session.machine.consoles[console].history();
        let mut events = history.into_iter().filter_map(|line| line.event);
        let event = events.find(|event| event.word == word);
        event.with_context(|| format!("no @{word} came on console {}", console + 1))
    };
    let (storm, stormed) = (event(0, "storm")?, event(1, "stormed")?);
    ensure!(
        storm.need("bounded")? == "yes",
        "it was not stopped: {storm}"
    );
    ensure!(
        stormed.need("by")?.ends_with(storm.need("source")?),
        "another was stopped: {storm} for {stormed}"
    );
    ensure!(
        stormed.need("bus_master")? == "no" && stormed.number("after")? == 0,
        "it goes on: {stormed}"
    );
    counted(&storm, &stormed)?;
    session.load.wait_answers(200, Duration::from_secs(10))?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    unharmed(session).map(drop)
}

fn chain_with(context: &Context, seed: u64) -> Result<()> {
    let name = format!("seed-{seed}");
    let mut session = context.boot(&name, &context.machine(), seed)?;
    for image in session::CHAIN {
        session.launch(image)?;
        session.attack()?;
        session.hand_over(Manner::Retire, true)?;
        session.reclaim()?;
        let swap = session.swaps.last().context("a swap was made")?;
        ensure!(
            swap.bytes_copied == Some(0),
            "swap {} copied {:?} bytes",
            swap.number,
            swap.bytes_copied
        );
    }
    let served = served(&unharmed(session).with_context(|| format!("seed {seed}"))?);
    ensure!(served == "abga", "the clients were served by {served}");
    Ok(())
}

fn stay(context: &Context) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 5)?;
    session.launch("beta.elf")?;
    session.hand_over(Manner::Stay, false)?;
    session.both_run()?;
    session.hand_over(Manner::Return, false)?;
    session.load.wait_answers(200, Duration::from_secs(10))?;
    let served = served(&unharmed(session)?);
    ensure!(served == "aba", "the clients were served by {served}");
    Ok(())
}

/// Every block of the libraries' code that beta executes is logged: some while it looks at a plan,
/// none while it only serves.
fn no_library_in_service(context: &Context) -> Result<()> {
    let library = elf::section(&context.images.read("beta.elf")?, ".text.baton")?;
    let mut options = context.machine();
    let length = library.end - library.start;
    options.extra = vec![
        "-dfilter".to_owned(),
        format!("{:#x}+{length:#x}", library.start),
    ];
    let mut session = context.boot("machine", &options, 7)?;
    session.launch("beta.elf")?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    let planning = executed(&mut session, |session| session.dry_run().map(drop))?;
    ensure!(
        planning > 0,
        "not even a plan executes library code: the log is blind"
    );
    let serving = executed(&mut session, |session| {
        thread::sleep(Duration::from_secs(1));
        session.load.wait_answers(500, Duration::from_secs(20))
    })?;
    ensure!(
        serving == 0,
        "{serving} blocks of library code were executed while serving"
    );
    unharmed(session).map(drop)
}

/// How many blocks of code inside of the filter are executed during `what`.
fn executed(session: &mut Session, what: impl FnOnce(&mut Session) -> Result<()>) -> Result<usize> {
    // Without chains between blocks each one comes by the log. The trace stays on: it is the log too.
    const TRACED: &str = "guest_errors,trace:virtio_set_status";
    let count = |session: &Session| -> Result<usize> {
        let log = fs::read(session.machine.files().trace())?;
        Ok(log
            .split(|&byte| byte == b'\n')
            .filter(|line| line.starts_with(b"Trace "))
            .count())
    };
    let before = count(session)?;
    session
        .machine
        .qmp
        .monitor(&format!("log exec,nochain,{TRACED}"))?;
    what(session)?;
    session.machine.qmp.monitor(&format!("log {TRACED}"))?;
    Ok(count(session)? - before)
}

/// Launches successors that go wrong, one after the other, and then one that does not.
fn misbehaves<S: AsRef<str>>(context: &Context, faults: &[S]) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 6)?;
    let before = owners(&mut session)?;
    for fault in faults {
        let fault = fault.as_ref();
        let line = format!("launch beta.elf fault={fault}");
        let done = session.machine.consoles[0].command(&line, Duration::from_secs(90))?;
        // One that only fails once it is ready is found out by the hand-over.
        let done = if done.result == "ok" {
            session.machine.consoles[0].command("handover", Duration::from_secs(90))?
        } else {
            done
        };
        ensure!(done.result != "ok", "a successor with {fault} took over");
        ensure!(!done.text.is_empty(), "{fault}: no reason was given");
        // Where the kernel has taken everything back by itself there is nothing left to undo.
        session.machine.consoles[0].command_ok("undo", Duration::from_secs(90))?;
        let after = owners(&mut session)?;
        ensure!(
            before == after,
            "{fault}: the machine is not as it was: {}",
            difference(&before, &after)
        );
        session.load.wait_answers(100, Duration::from_secs(10))?;
    }
    session.launch("beta.elf")?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    unharmed(session).map(drop)
}

/// A successor that was asked to expect the commit and answers when the prime has given up: what it
/// says then counts for nothing, and the next time it takes over.
fn wakes_up_late(context: &Context) -> Result<()> {
    let mut session = context.boot("late", &context.machine(), 9)?;
    session.launch("beta.elf fault=expecting:slow")?;
    let done = session.machine.consoles[0].command("handover", Duration::from_secs(20))?;
    ensure!(
        done.result == "failed",
        "the hand-over to a kernel that does not answer ended with {}",
        done.result
    );
    session.load.wait_answers(100, Duration::from_secs(10))?;
    session.machine.consoles[1].wait_event("late", Duration::from_secs(60))?;
    // Its answer is on its way while the service goes on.
    session.load.wait_answers(500, Duration::from_secs(10))?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    unharmed(session).map(drop)
}
