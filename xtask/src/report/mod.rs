//! `report.json`: the figures of a run, and where each comes from.

mod figures;
mod vendor;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::client::arrivals::Gap;
use crate::qmp::RingAddresses;
use crate::trace::FenceCounts;

pub(crate) use figures::report;

/// Everything that a run found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What was asked for.
    pub(crate) run: RunInfo,
    /// Each transfer of the service, in order.
    pub(crate) swaps: Vec<Swap>,
    /// What the fence did, and what it cost.
    pub(crate) fence: Fence,
    /// What the last prime of the run took over from those before it.
    pub(crate) reclaimed: Reclaimed,
    /// How often the machine went back to its firmware.
    pub(crate) firmware_reboots: u64,
    /// Bytes of the largest handoff.
    pub(crate) handoff_bytes: u64,
    /// ABI versions: what each kernel said it speaks, and what each pair agreed on.
    pub(crate) versions: Vec<Version>,
    /// The client's load over the whole run.
    pub(crate) load: LoadSums,
    /// Who owned what, phase by phase.
    pub(crate) owners: Vec<Phase>,
    /// The Linux that had a partition, where there was one.
    #[serde(default)]
    pub(crate) linux: Option<Linux>,
    /// What went wrong, in words. Empty where nothing did.
    pub(crate) failures: Vec<String>,
    /// Where each figure comes from.
    pub(crate) sources: BTreeMap<String, String>,
}

/// A stock Linux in a partition, as it described its machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Linux {
    /// Its release and version.
    pub(crate) kernel: String,
    /// The number of its partition.
    pub(crate) partition: u64,
    /// The processors that it runs on.
    pub(crate) cpus: u64,
    /// The memory that it counts as its own.
    pub(crate) memory_bytes: u64,
    /// The PCI functions that it sees.
    pub(crate) pci_functions: Vec<String>,
    /// Whether the remapping unit lets through whatever interrupt message its devices send.
    pub(crate) interrupts_open: bool,
    /// What its log has at the level of errors, or reports of bugs.
    pub(crate) kernel_errors: Vec<String>,
    /// From its start to its first user process.
    pub(crate) launch_to_init_ns: u64,
    /// The same from the start of a machine of its own, through firmware.
    pub(crate) cold_boot_ns: Option<u64>,
    /// The same from a request for kexec on that machine.
    pub(crate) kexec_ns: Option<u64>,
    /// The rate of the time stamp counter, by which these are measured.
    pub(crate) tsc_hertz: u64,
    /// Who owned what while it ran.
    pub(crate) partitions: Vec<PartitionShare>,
}

/// What one partition had.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PartitionShare {
    /// Its kernel.
    pub(crate) owner: String,
    /// What it had.
    pub(crate) resources: Vec<Owned>,
    /// The file with what its console said.
    pub(crate) console: String,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunInfo {
    /// Decides keys and order of the load.
    pub(crate) seed: u64,
    /// CPUs.
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u64,
    /// The remapping hardware.
    pub(crate) iommu: String,
    /// The emulator.
    pub(crate) emulator: String,
    /// Nanoseconds from start to end.
    pub(crate) took_ns: u64,
}

/// One transfer of the service from a kernel to another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Swap {
    /// Its number since power-on.
    pub(crate) number: u64,
    /// The kernel that served before.
    pub(crate) from: String,
    /// The kernel that serves after.
    pub(crate) to: String,
    /// `retire`, `stay` (the old kernel remains as standby) or `return` (it takes the service back).
    pub(crate) manner: String,
    /// Whether the host held the frozen machine to look at its memory; the blackout and the gap then
    /// include the time that took.
    pub(crate) inspected: bool,
    /// How long the prime prepared: plan, carve, fence, load.
    pub(crate) prepare_ns: Option<u64>,
    /// From the successor's first instruction to its word that it is ready.
    pub(crate) launch_to_ready_ns: Option<u64>,
    /// From the old kernel's last transmit doorbell to the new kernel's first.
    pub(crate) blackout_ns: Option<u64>,
    /// The client's longest time without an answer around the transfer.
    pub(crate) client_gap_us: Option<u64>,
    /// The median time between answers when nothing is swapped.
    pub(crate) client_median_gap_us: Option<u64>,
    /// Requests sent from this hand-over's command to the next one's.
    pub(crate) sent: u64,
    /// Writes acknowledged in that time.
    pub(crate) acked_writes: u64,
    /// Acknowledged writes that are not there.
    pub(crate) lost_writes: u64,
    /// Writes that were applied more often than they were sent.
    pub(crate) duplicated_writes: u64,
    /// Requests of that time that never reached the device, or were never answered.
    pub(crate) dropped_packets: u64,
    /// Virtio devices in service that were reset, and secondary bus resets.
    pub(crate) device_resets: u64,
    /// Where the queues lay before.
    pub(crate) ring_addresses_before: Vec<RingAddresses>,
    /// Where they lie after.
    pub(crate) ring_addresses_after: Vec<RingAddresses>,
    /// Bytes of the workload that changed place or content between freeze and service. Absent where
    /// the host did not look.
    pub(crate) bytes_copied: Option<u64>,
    /// Bytes that were compared for it.
    pub(crate) bytes_compared: Option<u64>,
    /// Bytes that the network device wrote meanwhile, by itself: packets that arrived.
    pub(crate) bytes_written_by_device: Option<u64>,
    /// The fence's work from the launch command to the first service.
    pub(crate) fence: FenceCounts,
    /// Steps with their durations, in order.
    pub(crate) steps: Vec<StepTime>,
    /// When it happened.
    pub(crate) times: SwapTimes,
}

/// A step of a swap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepTime {
    /// Its name.
    pub(crate) name: String,
    /// How long it took.
    pub(crate) ns: u64,
}

/// The times of a swap, nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SwapTimes {
    /// The launch command.
    pub(crate) launch: Option<u64>,
    /// The successor said that it is ready.
    pub(crate) ready: Option<u64>,
    /// The hand-over's command.
    pub(crate) handover: u64,
    /// The old kernel's last transmit doorbell.
    pub(crate) last_doorbell: Option<u64>,
    /// The new kernel's first.
    pub(crate) first_doorbell: Option<u64>,
    /// The new kernel said that it serves.
    pub(crate) serving: u64,
    /// Everything was reclaimed.
    pub(crate) reclaimed: Option<u64>,
}

/// What the fence did, and what it cost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Fence {
    /// Attempts to get through that the emulator can enforce.
    pub(crate) attempts: u64,
    /// Those that did not.
    pub(crate) blocked: u64,
    /// Attempts that move memory: only these leave a record, where the emulator writes any.
    pub(crate) memory_attempts: u64,
    /// Those of them that the emulator's trace confirms: a fault of the same source and address.
    #[serde(default)]
    pub(crate) faults_confirmed: u64,
    /// Fault records that kernels drained and that the emulator's trace confirms.
    pub(crate) fault_records: u64,
    /// What tells that a request was blocked on this machine, beside that nothing changed.
    #[serde(default)]
    pub(crate) recorded_by: String,
    /// What this emulator was found not to enforce or not to record, on a machine of its own.
    pub(crate) not_enforced_by_emulator: Vec<Hole>,
    /// What emulators were known not to enforce or not to record, and this one does.
    pub(crate) enforced_by_emulator_too: Vec<Hole>,
    /// What cannot be seen on an emulator, whatever it enforces.
    pub(crate) not_shown_by_emulator: Vec<String>,
    /// What the IOMMU was asked over all.
    #[serde(flatten)]
    pub(crate) counts: FenceCounts,
    /// Every attempt.
    pub(crate) all: Vec<Attempt>,
}

/// An attempt to get through the fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// The kernel that made it.
    pub(crate) kernel: String,
    /// What was attempted: `read` and `write` move memory, `interrupt` raises one.
    pub(crate) kind: String,
    /// By which device.
    pub(crate) by: String,
    /// On what.
    pub(crate) target: String,
    /// The address that the device was told: of memory, or of an interrupt message.
    pub(crate) address: u64,
    /// An interrupt message's data.
    #[serde(default)]
    pub(crate) data: Option<u64>,
    /// The kernel found that it had no effect.
    pub(crate) blocked: bool,
    /// The fault record that the kernel drained.
    pub(crate) record: Option<Record>,
    /// The emulator's trace shows it too: the same fault (source, address and direction), or an
    /// interrupt message with this address and data that was not delivered.
    pub(crate) confirmed: bool,
}

/// An attempt that emulators are known to treat otherwise than hardware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hole {
    /// What was attempted.
    pub(crate) what: String,
    /// What the architecture says of it.
    pub(crate) expected: String,
    /// What was seen.
    pub(crate) observed: String,
    /// Whether it had no effect.
    pub(crate) blocked: bool,
    /// Whether it left a fault record.
    pub(crate) recorded: bool,
    /// Whether the emulator's trace shows the same.
    pub(crate) confirmed: bool,
    /// The test against the register model that proves what is expected.
    pub(crate) proved_by: String,
}

impl Hole {
    /// Whether the emulator did what hardware does.
    pub(crate) fn enforced(&self) -> bool {
        self.blocked && self.recorded
    }
}

/// A fault record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Requester id.
    pub(crate) source: u16,
    /// The address that was asked for.
    pub(crate) address: u64,
    /// Why it was blocked.
    pub(crate) reason: String,
}

/// What a new prime took over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reclaimed {
    /// CPUs.
    pub(crate) cpus: u64,
    /// Bytes of memory.
    pub(crate) bytes: u64,
    /// PCI functions.
    pub(crate) devices: u64,
    /// What it did not get.
    pub(crate) unreclaimed: Vec<Unreclaimed>,
}

/// What device tables are called among what is not reclaimed.
pub(crate) const DEVICE_TABLES: &str = "device-tables";

/// Something that stayed where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unreclaimed {
    /// What.
    pub(crate) what: String,
    /// How much.
    pub(crate) bytes: u64,
    /// Why.
    pub(crate) why: String,
}

impl Reclaimed {
    /// Bytes that are nobody's to use any more. The firmware's were never anybody's, the workload's
    /// are in service, and device tables are as long as the architecture has them.
    pub(crate) fn left_behind(&self) -> u64 {
        let all: u64 = self.unreclaimed.iter().map(|one| one.bytes).sum();
        all - ["firmware", "workload", DEVICE_TABLES]
            .map(|what| self.bytes_of(what))
            .iter()
            .sum::<u64>()
    }

    /// Bytes that were not reclaimed because they are this.
    pub(crate) fn bytes_of(&self, what: &str) -> u64 {
        let of_it = self.unreclaimed.iter().filter(|one| one.what == what);
        of_it.map(|one| one.bytes).sum()
    }
}

/// ABI versions of a kernel or of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// Who.
    pub(crate) kernel: String,
    /// The newest version it speaks.
    pub(crate) speaks: String,
    /// The version that it was launched with; absent for the first.
    pub(crate) agreed: Option<String>,
}

/// The client's sums.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LoadSums {
    /// Requests sent. None is ever sent again.
    pub(crate) sent: u64,
    /// Requests answered.
    pub(crate) answered: u64,
    /// Writes acknowledged.
    pub(crate) acked_writes: u64,
    /// Keys read again at the end.
    pub(crate) read_back: u64,
    /// Keys among them whose reading was not answered.
    pub(crate) read_back_unanswered: u64,
    /// Acknowledged writes that are not there.
    pub(crate) lost_writes: u64,
    /// Writes applied more often than sent.
    pub(crate) duplicated_writes: u64,
    /// Requests never answered.
    pub(crate) unanswered: u64,
    /// Answers that came twice.
    pub(crate) duplicate_replies: u64,
    /// Answers that make no sense, and values that nobody wrote.
    pub(crate) wrong_replies: u64,
    /// Requests that never reached the device.
    pub(crate) dropped_before_device: u64,
    /// Requests that reached the device and were never answered.
    pub(crate) dropped_inside: u64,
    /// The median time between answers when nothing is swapped, in nanoseconds.
    pub(crate) median_gap_ns: Option<u64>,
    /// The ten longest times without an answer: when, nanoseconds since 1970, and how long.
    pub(crate) longest_gaps: Vec<(u64, u64)>,
    /// Answers over time.
    pub(crate) rate: Rate,
    /// Which kernels answered, in order, from when on.
    pub(crate) served_by: Vec<(String, u64)>,
    /// The first things that were wrong, in words.
    pub(crate) complaints: Vec<String>,
}

/// Answers over time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// The first answer, nanoseconds since 1970.
    pub(crate) from: u64,
    /// Nanoseconds of one count.
    pub(crate) interval: u64,
    /// Answers in each interval.
    pub(crate) answers: Vec<u32>,
}

impl Rate {
    /// Of answers at these times, in order.
    pub(crate) fn of(times: impl Iterator<Item = u64>, interval: u64) -> Self {
        let mut rate = Self {
            interval,
            ..Self::default()
        };
        for time in times {
            if rate.from == 0 {
                rate.from = time;
            }
            let index =
                usize::try_from(time.saturating_sub(rate.from) / interval).unwrap_or(usize::MAX);
            if index > 1 << 20 {
                break;
            }
            if rate.answers.len() <= index {
                rate.answers.resize(index + 1, 0);
            }
            rate.answers[index] += 1;
        }
        rate
    }
}

impl Rate {
    /// The same in at most `most` intervals.
    pub(crate) fn coarser(&self, most: usize) -> Self {
        let times = self.answers.len().div_ceil(most.max(1)).max(1);
        Self {
            from: self.from,
            interval: self.interval * times as u64,
            answers: self
                .answers
                .chunks(times)
                .map(|some| some.iter().sum())
                .collect(),
        }
    }
}

/// Who owned what in one phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Phase {
    /// Its name.
    pub(crate) name: String,
    /// The owners.
    pub(crate) owned: Vec<Owned>,
}

/// A resource and its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Owned {
    /// `cpu`, `memory` or `device`.
    pub(crate) kind: String,
    /// Which one; empty for memory.
    pub(crate) id: String,
    /// First address, for memory.
    pub(crate) base: u64,
    /// Bytes, for memory.
    pub(crate) length: u64,
    /// Who.
    pub(crate) owner: String,
}

impl Report {
    /// Writes it as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads one that was written.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }
}

impl LoadSums {
    /// The longest gaps first.
    pub(crate) fn longest(mut gaps: Vec<Gap>) -> Vec<(u64, u64)> {
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.nanoseconds()));
        gaps.truncate(10);
        gaps.iter()
            .map(|gap| (gap.from, gap.nanoseconds()))
            .collect()
    }
}

/// Where each figure comes from.
fn sources() -> BTreeMap<String, String> {
    const SOURCES: &[(&str, &str)] = &[
        (
            "swaps.prepare_ns",
            "the prime's time stamp counter, from its @ready line: the emulator has no event for it",
        ),
        (
            "swaps.launch_to_ready_ns",
            "the prime's time stamp counter, from its @ready line: the emulator has no event for it",
        ),
        (
            "swaps.blackout_ns",
            "the emulator's trace of doorbells of the network device's transmit queue, with the CPU \
             that rang each; resolution 1 us",
        ),
        (
            "swaps.client_gap_us",
            "the host client's clock: the longest time between two answers that touches the interval \
             from the hand-over's command to half a second after the new kernel said it serves",
        ),
        (
            "swaps.client_median_gap_us",
            "the host client's clock: the median over all times between answers outside of these \
             intervals",
        ),
        (
            "swaps.sent, swaps.acked_writes",
            "the host client's books, from this hand-over's command to the next one's",
        ),
        (
            "swaps.lost_writes, swaps.duplicated_writes",
            "the host client's books: each key counts its writes, and each value names its write; \
             every key is read again at the end. What only that reading shows is put down to the last \
             transfer",
        ),
        (
            "swaps.dropped_packets",
            "the numbers of the requests the client sent, against the requests and replies that the \
             emulator recorded at the network device",
        ),
        (
            "swaps.device_resets",
            "the emulator's trace of virtio status writes (zero after DRIVER_OK), and of secondary \
             bus resets in bridge control",
        ),
        (
            "swaps.ring_addresses_before, swaps.ring_addresses_after",
            "the emulator's device model (x-query-virtio-queue-status)",
        ),
        (
            "swaps.bytes_copied",
            "the host reads the workload's physical memory from the emulator when it is frozen and \
             again after the commit, before the new kernel serves, and counts bytes that differ, but \
             for the used rings and the receive buffers that the device writes by itself; plus the \
             bytes of every ring that lies elsewhere",
        ),
        (
            "fence.attempts, fence.blocked",
            "the kernels attempt; an attempt counts as blocked when the emulator's trace has the fault \
             with the same source, address and direction and the kernel found nothing changed, or, for \
             an interrupt, when the trace has the message and no delivery",
        ),
        (
            "fence.fault_records",
            "records that the kernels drained, each found in the emulator's trace with the same \
             source, address and direction",
        ),
        (
            "fence.faults_confirmed",
            "faults in the emulator's trace, one for each attempt on memory: on VT-d the one of the \
             record that the kernel drained, on AMD-Vi, where the emulator writes no event log, the \
             one of the attempt's source, address and direction: the unit was asked for it, and it was \
             rejected",
        ),
        (
            "fence.not_enforced_by_emulator, fence.enforced_by_emulator_too",
            "a kernel alone on a second machine: the interrupts that came to it, the memory it read \
             back and the records it drained; each held against the trace of that machine",
        ),
        (
            "fence.not_shown_by_emulator",
            "a list: what of the emulator's sources cannot be seen from a guest",
        ),
        (
            "fence.invalidation_commands, fence.waits, fence.mmio_accesses, fence.mmio_writes, \
             fence.mmio_reads",
            "the emulator's trace of commands taken and of register accesses; on AMD-Vi it does not \
             tell reads from writes (`cargo xtask bench` counts them apart)",
        ),
        (
            "reclaimed",
            "what the new prime read and wrote; it can be no more than the machine has, which is \
             checked",
        ),
        (
            "firmware_reboots",
            "the emulator's RESET events, or how often the firmware said that it runs again, whichever is more",
        ),
        (
            "handoff_bytes",
            "the length in the handoff's header, read from the machine's memory by the host",
        ),
        (
            "load",
            "the host client's books; the emulator's recording of packets",
        ),
        ("owners", "the ledger, as the kernels print it"),
    ];
    SOURCES
        .iter()
        .map(|&(figure, source)| (figure.to_owned(), source.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Rate, Report, Swap, sources};
    use serde_json::Value;

    /// The fields that the figures are looked up by; they must not be renamed by accident.
    #[test]
    fn the_report_has_the_fields_it_promises() {
        let report = Report {
            swaps: vec![Swap::default()],
            sources: sources(),
            ..Report::default()
        };
        let json: Value = serde_json::to_value(&report).unwrap();
        for path in [
            "/swaps/0/prepare_ns",
            "/swaps/0/launch_to_ready_ns",
            "/swaps/0/blackout_ns",
            "/swaps/0/client_gap_us",
            "/swaps/0/sent",
            "/swaps/0/acked_writes",
            "/swaps/0/lost_writes",
            "/swaps/0/duplicated_writes",
            "/swaps/0/dropped_packets",
            "/swaps/0/device_resets",
            "/swaps/0/ring_addresses_before",
            "/swaps/0/ring_addresses_after",
            "/swaps/0/bytes_copied",
            "/fence/attempts",
            "/fence/blocked",
            "/fence/fault_records",
            "/fence/not_enforced_by_emulator",
            "/fence/invalidation_commands",
            "/fence/waits",
            "/fence/mmio_writes",
            "/fence/mmio_reads",
            "/reclaimed/cpus",
            "/reclaimed/bytes",
            "/reclaimed/devices",
            "/reclaimed/unreclaimed",
            "/firmware_reboots",
            "/handoff_bytes",
            "/versions",
        ] {
            assert!(json.pointer(path).is_some(), "{path}");
        }
    }

    #[test]
    fn every_figure_has_a_source() {
        let json: Value = serde_json::to_value(Report {
            swaps: vec![Swap::default()],
            ..Report::default()
        })
        .unwrap();
        let known: String = sources().into_keys().collect::<Vec<_>>().join(", ");
        let without = [
            "number",
            "from",
            "to",
            "manner",
            "inspected",
            "steps",
            "times",
            "fence",
            "bytes_compared",
            "bytes_written_by_device",
        ];
        for key in json["swaps"][0].as_object().unwrap().keys() {
            let named = known.contains(&format!("swaps.{key}"));
            assert!(named || without.contains(&key.as_str()), "{key}");
        }
    }

    #[test]
    fn a_second_without_answers_is_seen_in_the_rate() {
        let rate = Rate::of([100, 101, 109, 131].into_iter(), 10);
        assert_eq!((rate.from, &rate.answers), (100, &vec![3, 0, 0, 1]));
        let coarse = rate.coarser(2);
        assert_eq!((coarse.interval, coarse.answers), (20, vec![3, 1]));
    }

    #[test]
    fn a_written_report_reads_back() {
        let path = std::env::temp_dir().join(format!("baton-report-{}.json", std::process::id()));
        let report = Report {
            handoff_bytes: 1234,
            swaps: vec![Swap {
                number: 3,
                blackout_ns: Some(5),
                ..Swap::default()
            }],
            sources: sources(),
            ..Report::default()
        };
        report.write(&path).unwrap();
        let back = Report::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(back.handoff_bytes, 1234);
        assert_eq!(back.swaps[0].blackout_ns, Some(5));
        assert_eq!(back.sources, sources());
    }
}
