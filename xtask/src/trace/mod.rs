//! The emulator's trace: what really happened to the devices, whatever any kernel says.

mod line;
mod marks;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};

use line::{Record, Rejected, What, parse, rejected};
use marks::Marks;
pub(crate) use marks::{Executed, Mark};

/// The transmit queue of a network device (virtio 1.x, 5.1.2: without multiqueue, 0 receives and 1
/// transmits).
const TRANSMIT_QUEUE: u16 = 1;

/// Status bit DRIVER_OK (virtio 1.x, 2.1).
const DRIVER_OK: u8 = 4;

/// Bridge control and its secondary bus reset bit (PCI-to-PCI bridge specification, 3.2.5.18).
const BRIDGE_CONTROL: u16 = 0x3e;
const SECONDARY_BUS_RESET: u32 = 1 << 6;

/// A place in the trace: the number of the line. Lines are in the order of events.
pub(crate) type Place = u64;

/// A doorbell of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doorbell {
    /// When, nanoseconds since 1970.
    pub(crate) at: u64,
    /// Where in the trace.
    pub(crate) place: Place,
    /// The CPU that rang it; `None` where the trace does not tell.
    pub(crate) cpu: Option<u32>,
    /// The device, an index into the names.
    device: usize,
    queue: u16,
}

/// A write of a virtio device's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status {
    at: u64,
    device: usize,
    value: u8,
}

/// A blocked request of a device, as the emulated IOMMU saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// When, nanoseconds since 1970.
    pub(crate) at: u64,
    /// Where in the trace.
    pub(crate) place: Place,
    /// Requester id.
    pub(crate) source: u16,
    /// Fault reason; `None` where the trace does not tell.
    pub(crate) reason: Option<u8>,
    /// The address the device asked for.
    pub(crate) address: u64,
    /// Direction.
    pub(crate) write: bool,
}

/// An interrupt that a device asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupt {
    /// When, nanoseconds since 1970.
    pub(crate) at: u64,
    /// Where in the trace.
    pub(crate) place: Place,
    /// The message's address. On VT-d it holds the handle.
    pub(crate) address: u64,
    /// The message's data. On AMD-Vi it holds the index.
    pub(crate) data: u64,
    /// It was delivered.
    pub(crate) delivered: bool,
}

/// Counts of accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    /// Reads.
    pub(crate) reads: u64,
    /// Writes.
    pub(crate) writes: u64,
}

/// What the fence cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct FenceCounts {
    /// Commands that the IOMMU took from its queue, without those that software waits for.
    pub(crate) invalidation_commands: u64,
    /// Commands that software waits for.
    pub(crate) waits: u64,
    /// Accesses to its registers.
    #[serde(default)]
    pub(crate) mmio_accesses: u64,
    /// Writes among them; absent where the trace does not tell the direction.
    pub(crate) mmio_writes: Option<u64>,
    /// Reads among them; absent where the trace does not tell the direction.
    pub(crate) mmio_reads: Option<u64>,
}

#[derive(Clone, Copy)]
enum FenceEvent {
    Command,
    Wait,
    Register { write: Option<bool> },
}

#[derive(Clone, Copy)]
struct Access {
    place: Place,
    cpu: i32,
    region: u32,
    write: bool,
}

/// A whole trace, read.
#[derive(Default)]
pub(crate) struct Trace {
    doorbells: Vec<Doorbell>,
    statuses: Vec<Status>,
    marks: Vec<Mark>,
    faults: Vec<Fault>,
    interrupts: Vec<Interrupt>,
    requesters: BTreeSet<u16>,
    fence: Vec<(u64, Place, FenceEvent)>,
    bus_resets: Vec<u64>,
    accesses: Vec<Access>,
    regions: Vec<String>,
    devices: Vec<String>,
    lines: u64,
}

/// What is only needed while reading.
struct Reader<'a> {
    trace: Trace,
    cpu_threads: &'a [u32],
    region_numbers: HashMap<String, u32>,
    device_numbers: HashMap<u64, usize>,
    /// The last access of each thread: a doorbell or status follows from it.
    last_access: HashMap<u32, (i32, u32)>,
    /// The last request of a device on each thread: when, by whom, for which address.
    last_request: HashMap<u32, (u64, u16, u64)>,
    /// The last interrupt that was asked for on each thread.
    last_interrupt: HashMap<u32, usize>,
}

impl Trace {
    /// Reads the trace at `path`. `cpu_threads` are the host's threads of the CPUs, in their order;
    /// they tell who rang a doorbell where accesses are not traced.
    pub(crate) fn read(path: &Path, cpu_threads: &[u32]) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_lines(BufReader::with_capacity(1 << 20, file), cpu_threads)
    }

    fn from_lines(mut lines: impl BufRead, cpu_threads: &[u32]) -> Result<Self> {
        let mut reader = Reader {
            trace: Self::default(),
            // Under -icount all CPUs share a thread, and the thread says nothing.
            cpu_threads: if all_differ(cpu_threads) {
                cpu_threads
            } else {
                &[]
            },
            region_numbers: HashMap::new(),
            device_numbers: HashMap::new(),
            last_access: HashMap::new(),
            last_request: HashMap::new(),
            last_interrupt: HashMap::new(),
        };
        let mut marks = Marks::default();
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            reader.trace.lines += 1;
            if let Ok(text) = std::str::from_utf8(&line) {
                let text = text.trim_end();
                if let Some(mark) = marks.take(text, reader.trace.lines) {
                    reader.trace.marks.push(mark);
                } else if let Some(record) = parse(text) {
                    reader.take(&record);
                } else if let Some(rejected) = rejected(text) {
                    reader.reject(rejected);
                }
            }
            line.clear();
        }
        Ok(reader.trace)
    }

    /// How many lines it has.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// All doorbells of `device`'s transmit queue between two times.
    pub(crate) fn transmit_doorbells(
        &self,
        device: &str,
        between: (u64, u64),
    ) -> impl Iterator<Item = &Doorbell> {
        self.doorbells.iter().filter(move |bell| {
            bell.queue == TRANSMIT_QUEUE
                && self.devices[bell.device] == device
                && (between.0..=between.1).contains(&bell.at)
        })
    }

    /// The last transmit doorbell by one of the CPUs `old` and the first after it by another CPU,
    /// between two times. `None` where there is no such pair, and where an old CPU rings once more
    /// after a new one: then both served, and there is no blackout to speak of.
    pub(crate) fn handed_over(
        &self,
        device: &str,
        between: (u64, u64),
        old: &[u32],
    ) -> Option<(Doorbell, Doorbell)> {
        let is_old = |bell: &Doorbell| bell.cpu.is_some_and(|cpu| old.contains(&cpu));
        let bells: Vec<&Doorbell> = self.transmit_doorbells(device, between).collect();
        let first_new = bells.iter().position(|bell| !is_old(bell))?;
        if first_new == 0 || bells[first_new..].iter().any(|bell| is_old(bell)) {
            return None;
        }
        Some((*bells[first_new - 1], *bells[first_new]))
    }

    /// Resets between two times of virtio devices, by name, that were in service: a zero status after
    /// DRIVER_OK.
    pub(crate) fn device_resets_between(&self, between: (u64, u64)) -> BTreeMap<String, u64> {
        let mut in_service = vec![false; self.devices.len()];
        let mut resets = BTreeMap::new();
        for status in &self.statuses {
            if status.value & DRIVER_OK != 0 {
                in_service[status.device] = true;
            } else if status.value == 0
                && std::mem::take(&mut in_service[status.device])
                && (between.0..=between.1).contains(&status.at)
            {
                *resets
                    .entry(self.devices[status.device].clone())
                    .or_default() += 1;
            }
        }
        resets
    }

    /// Secondary bus resets between two times.
    pub(crate) fn bus_resets_between(&self, between: (u64, u64)) -> u64 {
        let resets = self.bus_resets.iter();
        resets
            .filter(|at| (between.0..=between.1).contains(at))
            .count() as u64
    }

    /// The marks that kernels left, in order.
    pub(crate) fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// Blocked requests between two times.
    pub(crate) fn faults_between(&self, between: (u64, u64)) -> impl Iterator<Item = &Fault> {
        self.faults
            .iter()
            .filter(move |fault| (between.0..=between.1).contains(&fault.at))
    }

    /// The requester ids under which devices asked for memory. Only AMD-Vi's are told.
    pub(crate) fn requesters(&self) -> &BTreeSet<u16> {
        &self.requesters
    }

    /// Interrupts that devices asked for between two times.
    pub(crate) fn interrupts_between(
        &self,
        between: (u64, u64),
    ) -> impl Iterator<Item = &Interrupt> {
        self.interrupts
            .iter()
            .filter(move |one| (between.0..=between.1).contains(&one.at))
    }

    /// What the fence cost over all.
    pub(crate) fn fence(&self) -> FenceCounts {
        self.fence_where(|_, _| true)
    }

    /// What the fence cost between two times.
    pub(crate) fn fence_between(&self, between: (u64, u64)) -> FenceCounts {
        self.fence_where(|at, _| (between.0..=between.1).contains(&at))
    }

    /// What the fence cost between two places.
    pub(crate) fn fence_in(&self, places: &Range<Place>) -> FenceCounts {
        self.fence_where(|_, place| places.contains(&place))
    }

    fn fence_where(&self, keep: impl Fn(u64, Place) -> bool) -> FenceCounts {
        let mut counts = FenceCounts::default();
        let (mut writes, mut reads) = (0, 0);
        for (at, place, event) in &self.fence {
            if keep(*at, *place) {
                match event {
                    FenceEvent::Command => counts.invalidation_commands += 1,
                    FenceEvent::Wait => counts.waits += 1,
                    FenceEvent::Register { write } => {
                        counts.mmio_accesses += 1;
                        writes += u64::from(*write == Some(true));
                        reads += u64::from(*write == Some(false));
                    }
                }
            }
        }
        if writes + reads == counts.mmio_accesses {
            (counts.mmio_writes, counts.mmio_reads) = (Some(writes), Some(reads));
        }
        counts
    }

    /// Accesses to devices by some CPUs between two places, by region. Only what was traced: accesses
    /// are traced where [`crate::machine::TRACE_MMIO`] is on.
    pub(crate) fn accesses_in(
        &self,
        places: &Range<Place>,
        cpus: &[u32],
    ) -> BTreeMap<&str, Counts> {
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for access in &self.accesses {
            let counted = u32::try_from(access.cpu).is_ok_and(|cpu| cpus.contains(&cpu));
            if counted && places.contains(&access.place) {
                let region = &self.regions[access.region as usize];
                counts.entry(region).or_default().add(access.write);
            }
        }
        counts
    }
}

impl Counts {
    /// Adds what was counted elsewhere.
    pub(crate) fn join(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
    }

    fn add(&mut self, write: bool) {
        if write {
            self.writes += 1;
        } else {
            self.reads += 1;
        }
    }

    /// Both.
    pub(crate) fn total(&self) -> u64 {
        self.reads + self.writes
    }
}

impl Reader<'_> {
    fn take(&mut self, record: &Record<'_>) {
        let place = self.trace.lines;
        let at = record.at;
        match record.what {
            What::Access { write, cpu, region } => {
                let region = self.region(region);
                self.last_access.insert(record.thread, (cpu, region));
                self.trace.accesses.push(Access {
                    place,
                    cpu,
                    region,
                    write,
                });
            }
            What::VirtioStatus { device, value } => {
                let device = self.device(device, record.thread);
                self.trace.statuses.push(Status { at, device, value });
            }
            What::VirtioNotify { device, queue } => {
                let device = self.device(device, record.thread);
                let cpu = self.cpu_of(record.thread);
                self.trace.doorbells.push(Doorbell {
                    at,
                    place,
                    cpu,
                    device,
                    queue,
                });
            }
            What::Command => self.trace.fence.push((at, place, FenceEvent::Command)),
            What::Wait => self.trace.fence.push((at, place, FenceEvent::Wait)),
            What::Register { write } => {
                let event = FenceEvent::Register { write };
                self.trace.fence.push((at, place, event));
            }
            What::Fault {
                source,
                reason,
                address,
                write,
            } => self.trace.faults.push(Fault {
                at,
                place,
                source,
                reason,
                address,
                write,
            }),
            What::Asked { source, address } => {
                self.trace.requesters.insert(source);
                self.last_request
                    .insert(record.thread, (at, source, address));
            }
            What::InterruptRequest { address, data } => {
                let index = self.trace.interrupts.len();
                self.last_interrupt.insert(record.thread, index);
                self.trace.interrupts.push(Interrupt {
                    at,
                    place,
                    address,
                    data,
                    delivered: false,
                });
            }
            What::InterruptRemapped => {
                if let Some(index) = self.last_interrupt.remove(&record.thread) {
                    self.trace.interrupts[index].delivered = true;
                }
            }
            What::Config {
                write,
                offset,
                value,
                ..
            } => {
                if write && offset == BRIDGE_CONTROL && value & SECONDARY_BUS_RESET != 0 {
                    self.trace.bus_resets.push(at);
                }
            }
        }
    }

    /// A request that was rejected belongs to whoever last asked for its address. Requests of CPUs that
    /// nothing answers are rejected too, and belong to nobody.
    fn reject(&mut self, rejected: Rejected) {
        let mut asked = self.last_request.iter();
        let asked = asked.find(|(_, (_, _, address))| *address == rejected.address);
        if let Some((&thread, &(at, source, address))) = asked {
            self.last_request.remove(&thread);
            self.trace.faults.push(Fault {
                at,
                place: self.trace.lines,
                source,
                reason: None,
                address,
                write: rejected.write,
            });
        }
    }

    fn region(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.region_numbers.get(name) {
            return number;
        }
        let number = u32::try_from(self.trace.regions.len()).unwrap_or(u32::MAX);
        self.trace.regions.push(name.to_owned());
        self.region_numbers.insert(name.to_owned(), number);
        number
    }

    fn cpu_of(&self, thread: u32) -> Option<u32> {
        if let Some(cpu) = self.cpu_threads.iter().position(|&one| one == thread) {
            return u32::try_from(cpu).ok();
        }
        let (cpu, _) = self.last_access.get(&thread)?;
        u32::try_from(*cpu).ok()
    }

    /// The number of the device that the emulator calls `pointer`. Its name is learnt from the access
    /// that led to the event: the region of a virtio device is called after it.
    fn device(&mut self, pointer: u64, thread: u32) -> usize {
        let devices = &mut self.trace.devices;
        let number = *self.device_numbers.entry(pointer).or_insert_with(|| {
            devices.push(format!("{pointer:#x}"));
            devices.len() - 1
        });
        if devices[number].starts_with("0x")
            && let Some((_, region)) = self.last_access.get(&thread)
        {
            let region = &self.trace.regions[*region as usize];
            for prefix in ["virtio-pci-common-", "virtio-pci-notify-"] {
                if let Some(name) = region.strip_prefix(prefix) {
                    name.clone_into(&mut devices[number]);
                }
            }
        }
        number
    }
}

fn all_differ(threads: &[u32]) -> bool {
    let mut sorted = threads.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len() == threads.len()
}

#[cfg(test)]
mod tests;
