//! A stock Linux in a partition: what it is started with, what it finds, and what it must find.

mod facts;

use std::cell::Cell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use baseline_guest::control::Operation;
use baseline_guest::layout;

pub(crate) use facts::Facts;
use facts::Planned;

use crate::baseline::operator::Operator;
use crate::baseline::{self, Progress};
use crate::build;
use crate::console::Console;
use crate::event::{Event, Line};
use crate::machine::{Iommu, LinuxFiles, Machine, MachineOptions};
use crate::paths;
use crate::report;
use crate::session::Session;

/// How long a launch may take, and how long Linux may take until it has said everything.
const LIMIT: Duration = Duration::from_secs(180);
/// How long the prime may take for what it only looks up, and how long Linux may take to answer.
const QUICK: Duration = Duration::from_secs(30);
/// How long a Linux that has ended is asked in vain.
const SILENCE: Duration = Duration::from_secs(2);
/// How often its console's file is read again.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of its disk.
const DISK_BYTES: u64 = 1 << 20;
/// What it is told beside what the prime says.
const WORDS: &str = "quiet";

/// What a machine needs to have a Linux as partition, and where that one's traces are.
pub(crate) struct Linux {
    /// The package that the kernel came in.
    pub(crate) package: String,
    /// Where in that what the last launched one said begins.
    begun: Cell<usize>,
    archive: PathBuf,
    files: LinuxFiles,
}

impl Linux {
    /// Downloads the kernel, unless that was done; builds what it is started with; and makes its disk in
    /// `directory`.
    pub(crate) fn prepare(directory: &Path, progress: Progress<'_>) -> Result<Self> {
        let partition = baseline::partition(&paths::target().join("baseline"), progress)?;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let archive = directory.join("linux.tar");
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (kernel, ramdisk) = (read(&partition.image)?, read(&partition.initramfs)?);
        let mut damaged = kernel.clone();
        if let Some(byte) = damaged.get_mut(kernel.len() / 2) {
            *byte ^= 1;
        }
        build::archive(
            &archive,
            &[
                ("vmlinuz", &kernel),
                ("vmlinuz-damaged", &damaged),
                ("vmlinuz-cut", &kernel[..kernel.len() / 2]),
                ("initramfs", &ramdisk),
                ("initramfs-cut", &ramdisk[..ramdisk.len() / 2]),
            ],
        )?;
        let disk = directory.join("linux.img");
        fs::File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("cannot write {}", disk.display()))?;
        // Free now, and hardly anybody's before the emulator takes it.
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let files = LinuxFiles {
            disk,
            console: directory.join("linux.log"),
            service: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
        };
        Ok(Self {
            package: partition.package,
            begun: Cell::new(0),
            archive,
            files,
        })
    }

    /// Gives a machine its files and its devices.
    pub(crate) fn add_to(&self, machine: &mut MachineOptions) {
        machine.linux = Some(self.files.clone());
        machine.modules = Some(self.archive.clone());
    }

    /// The file with what its console said.
    pub(crate) fn console(&self) -> &Path {
        &self.files.console
    }

    /// What the last launched one has said so far.
    fn said(&self) -> Result<String> {
        let all = fs::read(self.console())
            .with_context(|| format!("cannot read {}", self.console().display()))?;
        let said = all.get(self.begun.get()..).unwrap_or_default();
        Ok(String::from_utf8_lossy(said).into_owned())
    }

    /// The events among that.
    fn events(&self) -> Result<Vec<Event>> {
        let said = self.said()?;
        // A line that is not complete may be half an event.
        let complete = said.rfind('\n').map_or("", |end| &said[..end]);
        Ok(complete
            .lines()
            .filter_map(|line| Line::now(line.trim_end().to_owned()).event)
            .collect())
    }

    /// Waits until its console has said something.
    fn wait<T>(
        &self,
        machine: &mut Machine,
        what: &str,
        found: impl Fn(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(found) = found(self)? {
                return Ok(found);
            }
            // Notices an emulator that has ended.
            while machine.consoles[0].next_line(Duration::ZERO)?.is_some() {}
            ensure!(
                Instant::now() < end,
                "Linux did not {what} within {} s; see {}",
                LIMIT.as_secs(),
                paths::shown(self.console())
            );
            thread::sleep(LOOK);
        }
    }

    fn facts(&self, machine: &mut Machine) -> Result<Facts> {
        self.wait(machine, "say what it finds", |linux| {
            let events = linux.events()?;
            if let Some(failed) = events.iter().find(|event| event.word == "linux-failed") {
                bail!("{failed}");
            }
            let ready = events.iter().any(|event| event.word == "linux-ready");
            ready.then(|| Facts::read(&events)).transpose()
        })
    }

    /// Launches it beside the kernel that serves, and compares what it finds with what it was given.
    ///
    /// Where its interrupts cannot be fenced, it must be refused before that is asked for by name.
    pub(crate) fn launch(&self, session: &mut Session) -> Result<report::Linux> {
        let mut line = format!("linux {} {WORDS}", layout::PARTITION);
        let iommu = session.machine.iommu;
        let prime = &mut session.machine.consoles[0];
        if iommu != Iommu::AmdVi {
            refused(prime, &line)?;
            line.push_str(" open-interrupts");
        }
        let hertz = prime
            .command_ok("status", QUICK)?
            .one("up")?
            .number("tsc_hertz")?;
        self.begun.set(fs::read(self.console())?.len());
        let done = prime.command_ok(&line, LIMIT)?;
        let started = done.one("launched")?.number("tsc")?;
        let planned = Planned::read(&done)?;
        let facts = self.facts(&mut session.machine)?;
        facts.check(&planned)?;
        self.check_disk()?;
        let reply = Operator::new(self.files.service)?
            .wait_for_boot(&mut session.machine, None, QUICK)
            .context("Linux does not answer on its network")?;
        ensure!(
            reply.text == facts.kernel,
            "another kernel answers on its network: {}",
            reply.text
        );
        session.load.wait_answers(200, QUICK)?;
        let ticks = facts.first_tsc.saturating_sub(started);
        Ok(facts.report(&planned, nanoseconds(ticks, hertz), hertz))
    }

    /// What would not start is refused before anything is touched, each for its own reason.
    pub(crate) fn bad_input(&self, session: &mut Session) -> Result<()> {
        const BAD: [(&str, &str); 5] = [
            ("kernel=vmlinuz-cut", "truncated"),
            ("kernel=vmlinuz-damaged", "checksum is wrong"),
            ("ramdisk=initramfs-cut", "ends too soon"),
            ("mib=32", "the kernel needs"),
            ("low=no", "Linux needs"),
        ];
        for (what, why) in BAD {
            let line = format!("linux open-interrupts {what}");
            let done = session.machine.consoles[0].command(&line, LIMIT)?;
            ensure!(
                done.result == "refused" && done.text.contains(why),
                "a Linux with {what} is {}: {}",
                done.result,
                done.text
            );
        }
        Ok(())
    }

    /// What it wrote must be on its disk.
    fn check_disk(&self) -> Result<()> {
        let bytes = fs::read(&self.files.disk)?;
        let at = usize::try_from(layout::PATTERN_AT)?;
        let pattern: Vec<u8> = (0..layout::PATTERN_BYTES).map(layout::pattern).collect();
        ensure!(
            bytes
                .get(at..)
                .is_some_and(|rest| rest.starts_with(&pattern)),
            "what Linux wrote is not on its disk"
        );
        let others = bytes.len() - pattern.len();
        let zeros = bytes.iter().filter(|&&byte| byte == 0).count();
        ensure!(
            zeros >= others,
            "Linux wrote to its disk what it was not asked for"
        );
        Ok(())
    }

    /// Has it crash, reset its machine or switch it off, while the service goes on. Then everything it
    /// had is taken back.
    pub(crate) fn end(&self, session: &mut Session, operation: Operation) -> Result<()> {
        let mut operator = Operator::new(self.files.service)?;
        let boot = operator.wait_for_boot(&mut session.machine, None, QUICK)?;
        session.machine.consoles[0].skip();
        operator.end(operation, boot.boot)?;
        if operation == Operation::FirmwareReboot {
            // The prime takes everything back by itself, and soon: Linux waits 15 ms.
            session.machine.consoles[0].wait_event("linux-reset", QUICK)?;
            session.machine.consoles[0].wait_event("undone", QUICK)?;
            session.load.wait_answers(200, QUICK)?;
            ensure!(session.machine.resets() == 0, "the machine was reset");
            return Ok(());
        }
        let end = Instant::now() + QUICK;
        let machine = &mut session.machine;
        while operator.wait_for_boot(machine, None, SILENCE).is_ok() {
            ensure!(Instant::now() < end, "Linux goes on after {operation:?}");
        }
        if operation == Operation::Panic {
            self.wait(machine, "say that it ends", |linux| {
                Ok(linux.said()?.contains("end Kernel panic").then_some(()))
            })?;
        }
        session.load.wait_answers(200, QUICK)?;
        ensure!(session.machine.resets() == 0, "the machine was reset");
        session.machine.consoles[0].command_ok("undo", LIMIT)?;
        session.load.wait_answers(200, QUICK)?;
        Ok(())
    }
}

/// A kernel that knows nothing of remapped interrupts must be refused for that, and for nothing else.
fn refused(prime: &mut Console, line: &str) -> Result<()> {
    let done = prime.command(line, LIMIT)?;
    let rules: Vec<_> = done
        .all("refused")
        .filter_map(|event| event.get("rule"))
        .collect();
    ensure!(
        done.result == "refused"
            && !rules.is_empty()
            && rules.iter().all(|&rule| rule == "open-messages"),
        "a kernel that knows nothing of remapped interrupts is {}: {} ({rules:?})",
        done.result,
        done.text
    );
    Ok(())
}

/// Ticks of the time stamp counter as nanoseconds.
pub(crate) fn nanoseconds(ticks: u64, hertz: u64) -> u64 {
    let exact = u128::from(ticks) * 1_000_000_000 / u128::from(hertz.max(1));
    u64::try_from(exact).unwrap_or(u64::MAX)
}
