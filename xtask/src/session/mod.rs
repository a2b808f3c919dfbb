//! A machine under load, and the conversation with its kernels.

mod evidence;
mod look;
pub(crate) mod owners;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use evidence::Evidence;
use look::Look;

use crate::client::{Load, Snapshot};
use crate::console::{Console, Done};
use crate::event::Event;
use crate::machine::Machine;
use crate::qmp::RingAddresses;
use crate::report::{Attempt, Record, StepTime, Swap, SwapTimes, Version};
use crate::ui::{Screen, bytes};

/// How long a kernel may take to come up after it was started.
const UP: Duration = Duration::from_secs(60);
/// How long a command may take that only looks.
const QUICK: Duration = Duration::from_secs(20);
/// How long a launch, an attack or a reclaim may take.
const LONG: Duration = Duration::from_secs(120);
/// How long a hand-over may take.
const HANDOVER: Duration = Duration::from_secs(40);

/// The virtio device with the workload's queues.
pub(crate) const NIC: &str = "virtio-net";
/// Its queues: receive and transmit.
const QUEUES: [u16; 2] = [0, 1];

/// The images that follow the first kernel, over and over: the third swap comes back to it.
pub(crate) const CHAIN: [&str; 3] = ["beta.elf", "gamma.elf", "alpha.elf"];

/// Plans that must be refused.
pub(crate) const BAD_PLANS: [&str; 3] = ["overlap", "shared-requester", "own-cpu"];

/// The magic of a handoff, and where its length stands.
const HANDOFF_MAGIC: &[u8; 8] = b"BATON\0\x1a\n";
const HANDOFF_LENGTH: usize = 16;

/// How the service is to be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The old kernel gives up everything afterwards.
    Retire,
    /// The old kernel remains as warm standby.
    Stay,
    /// The standby takes the service back.
    Return,
}

impl Manner {
    fn name(self) -> &'static str {
        match self {
            Self::Retire => "retire",
            Self::Stay => "stay",
            Self::Return => "return",
        }
    }
}

/// The conversation.
pub(crate) struct Session {
    /// The machine.
    pub(crate) machine: Machine,
    /// The client.
    pub(crate) load: Load,
    /// Where it is shown.
    pub(crate) screen: Screen,
    /// The console of the kernel that serves.
    pub(crate) prime: usize,
    /// The kernel on each console.
    pub(crate) kernels: [String; 2],
    /// Versions seen.
    pub(crate) versions: Vec<Version>,
    /// Transfers so far.
    pub(crate) swaps: Vec<Swap>,
    /// The books at each hand-over's command.
    pub(crate) books: Vec<Snapshot>,
    /// Attempts to get through the fence, with the time between which they were made.
    pub(crate) attempts: Vec<(Attempt, (u64, u64))>,
    /// Bytes of the largest handoff.
    pub(crate) handoff_bytes: u64,
    /// The reclaim of the last prime.
    pub(crate) reclaimed: Option<crate::report::Reclaimed>,
    /// When the first kernel was found to serve.
    pub(crate) began: SystemTime,
    /// What is on its way: filled by launch, used up by the hand-over.
    launch: Option<Launch>,
}

/// What a launch told.
#[derive(Clone, Debug, Default)]
struct Launch {
    begun: u64,
    ready: u64,
    prepare_ns: Option<u64>,
    launch_to_ready_ns: Option<u64>,
    steps: Vec<StepTime>,
}

/// Waits for the first kernel: its console, then its service. A kernel that was told to asks for its
/// devices before, once or more often.
pub(crate) fn wait_first(machine: &mut Machine) -> Result<(String, Version)> {
    let mut rounds = 0;
    let up = loop {
        let (_, event) = machine.consoles[0].wait_any(&["plug", "up"], UP)?;
        if event.word == "up" {
            break event;
        }
        rounds += 1;
        let plugged = machine.plug()?;
        ensure!(
            plugged > 0,
            "the kernel asks for devices ({event}), and none of {:?} lies on a bus with a number",
            machine.unplugged()
        );
        machine.consoles[0].command_ok("plugged", QUICK)?;
    };
    ensure!(
        machine.unplugged().is_empty(),
        "the kernel asked for devices {rounds} times; {:?} are not plugged",
        machine.unplugged()
    );
    let first = (up.need("kernel")?.to_owned(), version(&up, None)?);
    machine.consoles[0].wait_event("serving", UP)?;
    Ok(first)
}

fn version(up: &Event, agreed: Option<&str>) -> Result<Version> {
    Ok(Version {
        kernel: up.need("kernel")?.to_owned(),
        speaks: up.need("abi")?.to_owned(),
        agreed: agreed.map(str::to_owned),
    })
}

impl Session {
    /// A machine whose first kernel serves on COM1.
    pub(crate) fn new(
        machine: Machine,
        load: Load,
        screen: &Screen,
        first: (String, Version),
    ) -> Self {
        Self {
            machine,
            load,
            screen: screen.clone(),
            prime: 0,
            kernels: [first.0, String::new()],
            versions: vec![first.1],
            swaps: Vec::new(),
            books: Vec::new(),
            attempts: Vec::new(),
            handoff_bytes: 0,
            reclaimed: None,
            began: SystemTime::now(),
            launch: None,
        }
    }

    /// Does one step of the sequence, shown under `title`.
    pub(crate) fn step(
        &mut self,
        title: &str,
        what: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<()> {
        let step = self.screen.step(title);
        match what(self) {
            Ok(text) => {
                step.done(&text);
                Ok(())
            }
            Err(error) => {
                step.failed("did not succeed");
                Err(error.context(format!("step `{title}`")))
            }
        }
    }

    fn other(&self) -> usize {
        1 - self.prime
    }

    fn console(&mut self, which: usize) -> &mut Console {
        &mut self.machine.consoles[which]
    }

    /// A good plan as a dry run: what it would give away.
    pub(crate) fn dry_run(&mut self) -> Result<String> {
        let prime = self.prime;
        let done = self.console(prime).command_ok("plan", QUICK)?;
        let of_kind = |kind: &str| {
            done.all("plan")
                .filter(|event| event.get("kind") == Some(kind))
                .cloned()
                .collect::<Vec<_>>()
        };
        let memory: u64 = of_kind("memory")
            .iter()
            .map(|event| event.number("length"))
            .sum::<Result<u64>>()?;
        let (cpus, functions) = (of_kind("cpu").len(), of_kind("function").len());
        if cpus == 0 || memory == 0 {
            bail!("the dry run planned {cpus} CPUs and {memory} bytes");
        }
        Ok(format!(
            "{cpus} CPUs, {}, {functions} functions",
            bytes(memory)
        ))
    }

    /// A bad plan as a dry run: it must be refused, and say why.
    pub(crate) fn bad_plan(&mut self, name: &str) -> Result<String> {
        let prime = self.prime;
        let line = format!("plan {name}");
        let done = self.console(prime).command(&line, QUICK)?;
        if done.result != "refused" {
            bail!(
                "the bad plan `{name}` ended with {}: {}",
                done.result,
                done.text
            );
        }
        let reason = done.one("refused")?;
        let sentence = reason.need("text")?;
        reason.need("resource")?;
        Ok(format!("{}: {sentence}", reason.need("rule")?))
    }

    /// Launches `image` on the other console.
    pub(crate) fn launch(&mut self, image: &str) -> Result<String> {
        let (prime, other) = (self.prime, self.other());
        self.console(other).skip();
        let done = self
            .console(prime)
            .command_ok(&format!("launch {image}"), LONG)?;
        let (_, up) = self.console(other).wait_event("up", UP)?;
        let ready = done.one("ready")?;
        let agreed = ready.need("version")?.to_owned();
        self.versions.push(version(&up, Some(&agreed))?);
        self.kernels[other] = up.need("kernel")?.to_owned();
        self.measure_handoff(&done)?;
        self.launch = Some(Launch {
            begun: nanoseconds(done.sent),
            ready: nanoseconds(done.ended),
            prepare_ns: Some(ready.number("prepare_ns")?),
            launch_to_ready_ns: Some(ready.number("launch_to_ready_ns")?),
            steps: steps(&done)?,
        });
        Ok(format!(
            "{} runs beside {}, ABI {agreed}",
            self.kernels[other], self.kernels[prime]
        ))
    }

    /// Reads the handoff's length from its header in the machine's memory.
    fn measure_handoff(&mut self, done: &Done) -> Result<()> {
        let at = done.one("handoff")?.number("at")?;
        let header = self.machine.qmp.physical_memory(at, 64)?;
        if header[..8] != HANDOFF_MAGIC[..] {
            bail!("there is no handoff at {at:#x}, where the prime says it wrote one");
        }
        let length = header[HANDOFF_LENGTH..]
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.handoff_bytes = self.handoff_bytes.max(length);
        Ok(())
    }

    /// Both kernels answer on their consoles, and the clients are served meanwhile.
    pub(crate) fn both_run(&mut self) -> Result<String> {
        for which in [self.prime, self.other()] {
            self.console(which).command_ok("status", QUICK)?;
        }
        self.load.wait_answers(50, QUICK)?;
        Ok(format!(
            "{} and {} both answer",
            self.kernels[0], self.kernels[1]
        ))
    }

    /// Lets the kernel on each console attack the fence.
    pub(crate) fn attack(&mut self) -> Result<String> {
        let mut made = 0;
        self.machine.trace_requests(true)?;
        for which in [self.prime, self.other()] {
            let kernel = self.kernels[which].clone();
            let done = self.console(which).command_ok("attack", LONG)?;
            let between = (nanoseconds(done.sent), nanoseconds(done.ended));
            for event in done.all("attempt") {
                self.attempts.push((attempt(&kernel, event)?, between));
                made += 1;
            }
        }
        self.machine.trace_requests(false)?;
        if made == 0 {
            bail!("no kernel attempted anything");
        }
        self.load.wait_answers(50, QUICK)?;
        Ok(format!("{made} attempts"))
    }

    /// Hands the service over.
    pub(crate) fn hand_over(&mut self, manner: Manner, inspect: bool) -> Result<String> {
        let (old, new) = (self.prime, self.other());
        let number = self.swaps.len() as u64 + 1;
        let mut swap = Swap {
            number,
            from: self.kernels[old].clone(),
            to: self.kernels[new].clone(),
            manner: manner.name().to_owned(),
            inspected: inspect,
            ..Swap::default()
        };
        swap.ring_addresses_before = self.rings()?;
        let mut line = "handover".to_owned();
        if inspect {
            line.push_str(" inspect");
        }
        if manner == Manner::Stay {
            line.push_str(" stay");
        }
        // A standby asks for the service on its own console; otherwise the prime gives it.
        let asked = if manner == Manner::Return { new } else { old };
        if manner == Manner::Return {
            line = "return".to_owned();
        }
        self.console(new).skip();
        self.books.push(self.load.snapshot());
        let sent = SystemTime::now();
        self.console(asked).send(&line)?;
        if inspect {
            self.inspect(old, new, &mut swap)?;
        }
        let (serving, event) = self.console(new).wait_event("serving", HANDOVER)?;
        if event.number("swap")? != number {
            bail!("{} says `{event}` after swap {number}", self.kernels[new]);
        }
        self.prime = new;
        if swap.ring_addresses_after.is_empty() {
            swap.ring_addresses_after = self.rings()?;
        }
        let launch = self.launch.take().unwrap_or_default();
        swap.prepare_ns = launch.prepare_ns;
        swap.launch_to_ready_ns = launch.launch_to_ready_ns;
        swap.steps = launch.steps;
        swap.times = SwapTimes {
            launch: (launch.begun > 0).then_some(launch.begun),
            ready: (launch.ready > 0).then_some(launch.ready),
            handover: nanoseconds(sent),
            serving: nanoseconds(serving),
            ..SwapTimes::default()
        };
        let gained = format!("{} serves", self.kernels[new]);
        self.swaps.push(swap);
        self.load.wait_answers(50, QUICK)?;
        Ok(gained)
    }

    /// Looks at the workload's memory while it is frozen and again when it is committed.
    fn inspect(&mut self, old: usize, new: usize, swap: &mut Swap) -> Result<()> {
        let (_, frozen) = self.console(old).wait_event("frozen", HANDOVER)?;
        let at = (frozen.number("workload")?, frozen.number("length")?);
        let before = self.look(at)?;
        self.console(old).send("go")?;
        self.console(new).wait_event("committed", HANDOVER)?;
        let after = self.look(at)?;
        self.console(new).send("go")?;
        let found = before.compare(&after)?;
        swap.bytes_copied = Some(found.copied);
        swap.bytes_compared = Some(found.compared);
        swap.bytes_written_by_device = Some(found.written_by_device);
        swap.ring_addresses_before = before.rings;
        swap.ring_addresses_after = after.rings;
        Ok(())
    }

    fn look(&mut self, (base, length): (u64, u64)) -> Result<Look> {
        Ok(Look {
            base,
            bytes: self.machine.qmp.physical_memory(base, length)?,
            rings: self.rings()?,
        })
    }

    fn rings(&mut self) -> Result<Vec<RingAddresses>> {
        QUEUES
            .iter()
            .map(|&queue| self.machine.qmp.ring_addresses(NIC, queue))
            .collect()
    }

    /// The new prime takes everything over that the old one had.
    pub(crate) fn reclaim(&mut self) -> Result<String> {
        let prime = self.prime;
        let done = self.console(prime).command_ok("reclaim", LONG)?;
        let reclaimed = owners::reclaimed(&done)?;
        if let Some(swap) = self.swaps.last_mut() {
            swap.times.reclaimed = Some(nanoseconds(done.ended));
        }
        let told = format!(
            "{} CPUs, {}, {} devices; {} stay behind",
            reclaimed.cpus,
            bytes(reclaimed.bytes),
            reclaimed.devices,
            bytes(reclaimed.left_behind())
        );
        self.reclaimed = Some(reclaimed);
        Ok(told)
    }
}

fn steps(done: &Done) -> Result<Vec<StepTime>> {
    done.all("step")
        .map(|event| {
            Ok(StepTime {
                name: event.need("name")?.to_owned(),
                ns: event.number("ns")?,
            })
        })
        .collect()
}

fn attempt(kernel: &str, event: &Event) -> Result<Attempt> {
    let record = match event.yes("fault") {
        true => Some(Record {
            source: u16::try_from(event.number("source")?)?,
            address: event.number("address")?,
            reason: event.need("reason")?.to_owned(),
        }),
        false => None,
    };
    Ok(Attempt {
        kernel: kernel.to_owned(),
        kind: event.need("kind")?.to_owned(),
        by: event.need("by")?.to_owned(),
        target: event.need("target")?.to_owned(),
        address: event.number("address")?,
        data: event
            .get("data")
            .map(|_| event.number("data"))
            .transpose()?,
        blocked: event.yes("blocked"),
        confirmed: false,
        record,
    })
}

/// A time on the scale of traces and reports.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The error of a step, with what the emulator and the kernels last said where it is gone.
pub(crate) fn explain(session: &Session, error: anyhow::Error) -> anyhow::Error {
    let resets = session.machine.resets();
    if resets > 0 {
        return error.context(format!(
            "the machine was reset {resets} times: a triple fault, or a kernel wrote a reset register"
        ));
    }
    for console in &session.machine.consoles {
        let last = console.history().into_iter().rev().find(|line| {
            line.event
                .as_ref()
                .is_some_and(|event| event.word == "panic" || event.word == "exception")
        });
        if let Some(line) = last {
            return error.context(format!("on {}: {}", console.name(), line.text));
        }
    }
    error
}

/// Waits for the service's first answers.
pub(crate) fn first_answers(load: &Load) -> Result<()> {
    load.wait_answers(200, UP)
        .context("the service does not answer")
}
