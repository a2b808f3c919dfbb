//! The figures that are only known when everything is over: from the trace, the packets and the
//! client's books.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::client::Snapshot;
use crate::client::arrivals::{gaps, longest_in, median_outside, served_by};
use crate::event::Line;
use crate::session::{Evidence, NIC, owners};
use crate::trace::{Place, Trace};

use super::vendor::{NOT_SHOWN, vendor};
use super::{DEVICE_TABLES, Fence, LoadSums, Rate, Report, Swap, sources};

/// How long after the new kernel says it serves the client may still notice.
const AFTERWARDS: u64 = 500_000_000;

/// The most memory that a new prime may not get, beyond the firmware's.
const MOST_LEFT_BEHIND: u64 = 1 << 20;

/// The interval in which answers are counted for the picture.
const RATE_INTERVAL: u64 = 50_000_000;

/// The report of a session that is over: its figures, and whatever is not as it must be.
pub(crate) fn report(evidence: &Evidence) -> Report {
    let mut report = Report {
        swaps: evidence.swaps.clone(),
        owners: owners::phases(&evidence.said),
        versions: evidence.versions.clone(),
        handoff_bytes: evidence.handoff_bytes,
        reclaimed: evidence.reclaimed.clone().unwrap_or_default(),
        firmware_reboots: evidence.reboots,
        sources: sources(),
        ..Report::default()
    };
    report.run.iommu = evidence.iommu.name().to_owned();
    let spans: Vec<(u64, u64)> = report
        .swaps
        .iter()
        .map(|swap| swap.times.handover)
        .zip(ends(&report.swaps))
        .collect();
    let arrivals = &evidence.load.arrivals;
    let median = median_outside(arrivals, &spans);
    // The kernel before the first swap has served from the start.
    let mut since = 0;
    for (index, (swap, &span)) in report.swaps.iter_mut().zip(&spans).enumerate() {
        swap.client_median_gap_us = median.map(|gap| gap / 1_000);
        swap.client_gap_us = longest_in(arrivals, span).map(|gap| gap.nanoseconds() / 1_000);
        books(swap, index, evidence);
        if let Err(error) = traced(swap, since, span.1, &evidence.trace) {
            report.failures.push(format!("{error:#}"));
        }
        since = swap.times.serving;
    }
    fence(&mut report.fence, evidence);
    report.load = sums(evidence, median);
    report
        .failures
        .extend(evidence.said.iter().flatten().filter_map(trouble));
    let found = judge(&report, evidence);
    report.failures.extend(found);
    report
}

/// What a kernel says when something went wrong that no step waits for.
fn trouble(line: &Line) -> Option<String> {
    const WORDS: [&str; 5] = ["trouble", "panic", "exception", "failed", "disallowed"];
    let event = line.event.as_ref()?;
    WORDS
        .contains(&event.word.as_str())
        .then(|| format!("a kernel said: {}", line.text))
}

/// Until when each transfer may still be noticed: for a while, but not beyond the next one.
fn ends(swaps: &[Swap]) -> impl Iterator<Item = u64> {
    let next = swaps.iter().skip(1).map(|swap| swap.times.handover);
    swaps
        .iter()
        .zip(next.chain([u64::MAX]))
        .map(|(swap, next)| (swap.times.serving + AFTERWARDS).min(next))
}

/// The client's figures from this hand-over to the next one.
fn books(swap: &mut Swap, index: usize, evidence: &Evidence) {
    let begin = evidence.books.get(index).copied().unwrap_or_default();
    let last = index + 1 == evidence.books.len();
    let end = evidence.books.get(index + 1).copied().unwrap_or(Snapshot {
        totals: evidence.load.totals,
        lost_writes: evidence.load.lost_writes,
        duplicated_writes: evidence.load.duplicated_writes,
        last_sequence: u64::MAX,
    });
    // What only the final reading shows belongs to nobody in particular: the last swap has it.
    let (lost, duplicated) = if last {
        (evidence.load.lost_writes, evidence.load.duplicated_writes)
    } else {
        (end.lost_writes, end.duplicated_writes)
    };
    swap.sent = end.totals.sent - begin.totals.sent;
    swap.acked_writes = end.totals.acked_writes - begin.totals.acked_writes;
    swap.lost_writes = lost - begin.lost_writes;
    swap.duplicated_writes = duplicated - begin.duplicated_writes;
    let sent: BTreeSet<u64> = evidence
        .load
        .sequences
        .iter()
        .copied()
        .filter(|sequence| (begin.last_sequence + 1..=end.last_sequence).contains(sequence))
        .collect();
    let dropped = evidence.packets.dropped(&sent);
    let unanswered = sent
        .iter()
        .filter(|sequence| evidence.packets.requests.contains(sequence))
        .filter(|sequence| !evidence.packets.replies.contains(sequence))
        .count() as u64;
    swap.dropped_packets = dropped.before_device + unanswered;
}

/// The emulator's figures around a transfer. `since` is when the old kernel began to serve.
fn traced(swap: &mut Swap, since: u64, until: u64, trace: &Trace) -> Result<()> {
    let handover = swap.times.handover;
    // The CPUs that rang while the old kernel served are the old ones. Right after a transfer the
    // kernel before it may still have rung: then only the last one to ring before the command is.
    let ringers: Vec<u32> = trace
        .transmit_doorbells(NIC, (since, handover))
        .filter_map(|bell| bell.cpu)
        .collect();
    let Some(&last) = ringers.last() else {
        bail!(
            "nobody served before swap {}: the trace has no doorbell",
            swap.number
        );
    };
    let bells = trace
        .handed_over(NIC, (since, until), &ringers)
        .or_else(|| trace.handed_over(NIC, (handover, until), &[last]));
    match bells {
        Some((last, first)) => {
            swap.blackout_ns = Some(first.at - last.at);
            swap.times.last_doorbell = Some(last.at);
            swap.times.first_doorbell = Some(first.at);
        }
        None => bail!(
            "the trace shows no hand-over of the transmit queue in swap {} from CPU {last}",
            swap.number
        ),
    }
    let during = (handover, swap.times.serving.max(handover));
    swap.device_resets = trace.device_resets_between(during).values().sum::<u64>()
        + trace.bus_resets_between(during);
    swap.fence = trace.fence_between((swap.times.launch.unwrap_or(handover), swap.times.serving));
    Ok(())
}

fn fence(fence: &mut Fence, evidence: &Evidence) {
    let vendor = vendor(evidence.iommu);
    fence.counts = evidence.trace.fence();
    vendor.recorded_by.clone_into(&mut fence.recorded_by);
    fence.not_shown_by_emulator = [vendor.not_shown, NOT_SHOWN]
        .concat()
        .iter()
        .map(|&one| one.to_owned())
        .collect();
    let mut used: BTreeSet<Place> = BTreeSet::new();
    for (attempt, between) in &evidence.attempts {
        let mut attempt = attempt.clone();
        fence.attempts += 1;
        if matches!(attempt.kind.as_str(), "read" | "write") {
            fence.memory_attempts += 1;
            attempt.confirmed = evidence
                .trace
                .faults_between(*between)
                .find(|fault| !used.contains(&fault.place) && vendor.matches(fault, &attempt))
                .is_some_and(|fault| used.insert(fault.place));
            fence.faults_confirmed += u64::from(attempt.confirmed);
            fence.fault_records += u64::from(attempt.confirmed && attempt.record.is_some());
            fence.blocked += u64::from(attempt.confirmed && attempt.blocked);
        } else {
            // A handle of a device that is in service raises interrupts all the time, so a kernel
            // cannot tell whose it saw. The trace can: each message is delivered or not.
            attempt.confirmed = evidence
                .trace
                .interrupts_between(*between)
                .find(|one| {
                    vendor.is_message(one, &attempt) && !one.delivered && !used.contains(&one.place)
                })
                .is_some_and(|one| used.insert(one.place));
            fence.blocked += u64::from(attempt.confirmed);
        }
        fence.all.push(attempt);
    }
}

fn sums(evidence: &Evidence, median: Option<u64>) -> LoadSums {
    let load = &evidence.load;
    let dropped = evidence.packets.dropped(&load.sequences);
    LoadSums {
        sent: load.totals.sent,
        answered: load.totals.answered,
        acked_writes: load.totals.acked_writes,
        read_back: load.read_back,
        read_back_unanswered: load.read_back_unanswered,
        lost_writes: load.lost_writes,
        duplicated_writes: load.duplicated_writes,
        unanswered: load.totals.unanswered,
        duplicate_replies: load.totals.duplicate_replies,
        wrong_replies: load.totals.strange + load.totals.wrong_values + load.totals.refused,
        dropped_before_device: dropped.before_device,
        dropped_inside: dropped.inside,
        median_gap_ns: median,
        longest_gaps: LoadSums::longest(gaps(&load.arrivals).collect()),
        rate: Rate::of(
            load.arrivals.iter().map(|arrival| arrival.at),
            RATE_INTERVAL,
        ),
        served_by: served_by(&load.arrivals)
            .iter()
            .map(|arrival| (char::from(arrival.kernel).to_string(), arrival.at))
            .collect(),
        complaints: load.complaints.clone(),
    }
}

/// Everything that is not as it must be, in words.
fn judge(report: &Report, evidence: &Evidence) -> Vec<String> {
    let mut failures = Vec::new();
    let mut check = |good: bool, text: String| {
        if !good {
            failures.push(text);
        }
    };
    let load = &report.load;
    check(
        load.lost_writes == 0,
        format!("{} acknowledged writes were lost", load.lost_writes),
    );
    check(
        load.duplicated_writes == 0,
        format!(
            "{} writes were applied more than once",
            load.duplicated_writes
        ),
    );
    check(
        load.unanswered == 0,
        format!("{} requests were never answered", load.unanswered),
    );
    check(
        load.wrong_replies == 0,
        format!("{} answers were wrong", load.wrong_replies),
    );
    check(
        load.read_back > 0 && load.read_back_unanswered == 0,
        format!(
            "{} of {} keys could not be read again at the end",
            load.read_back_unanswered, load.read_back
        ),
    );
    check(
        evidence.load.applied == load.acked_writes || load.unanswered > 0,
        format!(
            "the store applied {} writes and acknowledged {}",
            evidence.load.applied, load.acked_writes
        ),
    );
    check(
        report.firmware_reboots == 0,
        format!("the machine was rebooted {} times", report.firmware_reboots),
    );
    let resets = evidence
        .trace
        .device_resets_between((evidence.began, u64::MAX));
    check(
        !resets.contains_key(NIC),
        "the network device was reset".to_owned(),
    );
    for swap in &report.swaps {
        let number = swap.number;
        check(
            swap.device_resets == 0,
            format!("swap {number} reset {} devices", swap.device_resets),
        );
        check(
            swap.dropped_packets == 0,
            format!("swap {number} dropped {} packets", swap.dropped_packets),
        );
        check(
            swap.bytes_copied.is_none_or(|bytes| bytes == 0),
            format!(
                "swap {number} copied {} bytes",
                swap.bytes_copied.unwrap_or(0)
            ),
        );
        check(
            swap.ring_addresses_before == swap.ring_addresses_after,
            format!("swap {number} moved the rings"),
        );
    }
    let left = report.reclaimed.left_behind();
    check(
        left <= MOST_LEFT_BEHIND,
        format!("{left} bytes beyond the firmware's were not reclaimed"),
    );
    let tables = report.reclaimed.bytes_of(DEVICE_TABLES);
    let most = vendor(evidence.iommu).device_tables;
    check(
        tables <= most,
        format!("{tables} bytes were left in device tables, more than {most}"),
    );
    let fence = &report.fence;
    check(
        fence.blocked == fence.attempts,
        format!(
            "{} of {} attempts were not blocked",
            fence.attempts - fence.blocked,
            fence.attempts
        ),
    );
    check(
        fence.faults_confirmed == fence.memory_attempts,
        format!(
            "{} of {} attempts on memory left a fault in the emulator's trace",
            fence.faults_confirmed, fence.memory_attempts
        ),
    );
    check(
        !vendor(evidence.iommu).log_is_written || fence.fault_records == fence.memory_attempts,
        format!(
            "{} of {} attempts on memory left a record that the emulator confirms",
            fence.fault_records, fence.memory_attempts
        ),
    );
    failures
}
