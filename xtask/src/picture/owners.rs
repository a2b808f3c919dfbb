//! Who owned each CPU, memory range and device, phase by phase.

use std::collections::BTreeSet;

use crate::report::{Owned, Phase, Report};
use crate::ui::bytes;

use super::palette::{colour, name};
use super::svg::{Anchor, Drawing, FAINT, HEADING, TEXT, text_width};
use super::{INNER, MARGIN};

const NAMES: f64 = 150.0;
const CPUS: f64 = 132.0;
const DEVICES: f64 = 300.0;
const GAP: f64 = 22.0;
const ROW: f64 = 34.0;

/// The least width of a piece of memory, and of one that is shorter than [`SHORT`].
const THIN: f64 = 6.0;
const THINNEST: f64 = 1.5;
const SHORT: u64 = 64 << 10;

/// Where addresses lie in the picture. To scale, but for short pieces, which are widened to be seen;
/// the same for all phases.
pub(super) struct Map {
    /// Addresses where the owner changes in any phase, and their places.
    edges: Vec<(u64, f64)>,
}

impl Map {
    /// Of the memory below `top`, in a width of `width`.
    pub(super) fn of(phases: &[Phase], top: u64, width: f64) -> Self {
        let mut addresses: BTreeSet<u64> = phases
            .iter()
            .flat_map(|phase| &phase.owned)
            .filter(|owned| owned.kind == "memory" && owned.base < top)
            .flat_map(|owned| [owned.base, owned.base.saturating_add(owned.length).min(top)])
            .collect();
        addresses.extend([0, top]);
        let addresses: Vec<u64> = addresses.into_iter().collect();
        let pieces: Vec<u64> = addresses.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let least = |piece: u64| if piece < SHORT { THINNEST } else { THIN };
        let reserved: f64 = pieces.iter().map(|&piece| least(piece)).sum();
        let rest = (width - reserved).max(0.0);
        let mut x = 0.0;
        let mut edges = vec![(0, 0.0)];
        for (address, piece) in addresses.iter().skip(1).zip(&pieces) {
            x += least(*piece) + rest * *piece as f64 / top.max(1) as f64;
            edges.push((*address, x));
        }
        Self { edges }
    }

    /// The place of `address`.
    pub(super) fn at(&self, address: u64) -> f64 {
        let after = self.edges.partition_point(|(edge, _)| *edge < address);
        let Some(&(edge, x)) = self.edges.get(after) else {
            return self.edges.last().map_or(0.0, |(_, x)| *x);
        };
        if edge == address || after == 0 {
            return x;
        }
        let (before, from) = self.edges[after - 1];
        from + (x - from) * (address - before) as f64 / (edge - before) as f64
    }
}

pub(super) fn draw(drawing: &mut Drawing, report: &Report, y: &mut f64) {
    if report.owners.is_empty() {
        return;
    }
    drawing.text(MARGIN, *y, HEADING, "Who owned what");
    *y += 20.0;
    legend(drawing, report, y);

    let memory_left = MARGIN + NAMES + CPUS + GAP;
    let memory_width = INNER - NAMES - CPUS - DEVICES - 2.0 * GAP;
    let devices_left = memory_left + memory_width + GAP;
    let head = FAINT.sized(11.5);
    drawing.text(MARGIN + NAMES, *y, head, "CPUs");
    drawing.text(
        memory_left,
        *y,
        head,
        &format!(
            "memory, {} MiB; short ranges are widened",
            report.run.memory_mib
        ),
    );
    drawing.text(devices_left, *y, head, "devices");
    *y += 10.0;

    let top_of_memory = report.run.memory_mib << 20;
    let map = Map::of(&report.owners, top_of_memory, memory_width);
    let cpus = ids(&report.owners, "cpu");
    let devices = ids(&report.owners, "device");
    for phase in &report.owners {
        drawing.text(MARGIN, *y + 17.0, TEXT.sized(12.5), &phase.name);
        let all: Vec<&Owned> = phase.owned.iter().collect();
        cells(drawing, &all, ("cpu", &cpus), (MARGIN + NAMES, *y, CPUS));
        memory(
            drawing,
            phase,
            (top_of_memory, &map),
            (memory_left, *y, memory_width),
        );
        cells(
            drawing,
            &all,
            ("device", &devices),
            (devices_left, *y, DEVICES),
        );
        *y += ROW;
    }
    // The scale of memory.
    let quarter = top_of_memory / 4;
    for part in 0..=4u64 {
        let x = memory_left + map.at(part * quarter);
        drawing.line((x, *y - 6.0), (x, *y - 2.0), "#9aa3ad", 1.0);
        let style = FAINT.sized(10.5).at(Anchor::Middle);
        drawing.text(x, *y + 9.0, style, &bytes(part * quarter));
    }
    *y += 22.0;
}

fn legend(drawing: &mut Drawing, report: &Report, y: &mut f64) {
    let owners: BTreeSet<&str> = report
        .owners
        .iter()
        .flat_map(|phase| &phase.owned)
        .map(|owned| owned.owner.as_str())
        .collect();
    let mut x = MARGIN;
    for owner in owners {
        let label = name(owner);
        drawing.rect((x, *y - 10.0, 12.0, 12.0), colour(owner), 2.0, "");
        drawing.text(x + 18.0, *y, TEXT.sized(12.0), label);
        x += 18.0 + text_width(label, 12.0) + 18.0;
    }
    *y += 24.0;
}

/// All ids of a kind in any phase, in the order of their numbers.
fn ids(phases: &[Phase], kind: &str) -> Vec<String> {
    let found: BTreeSet<(usize, &str)> = phases
        .iter()
        .flat_map(|phase| &phase.owned)
        .filter(|owned| owned.kind == kind)
        .map(|owned| (owned.id.len(), owned.id.as_str()))
        .collect();
    found.into_iter().map(|(_, id)| id.to_owned()).collect()
}

/// One cell for each id.
fn cells(
    drawing: &mut Drawing,
    owned: &[&Owned],
    (kind, ids): (&str, &[String]),
    (left, top, width): (f64, f64, f64),
) {
    if ids.is_empty() {
        return;
    }
    let each = (width / ids.len() as f64).min(44.0);
    for (number, id) in ids.iter().enumerate() {
        let x = left + number as f64 * each;
        let owner = owned
            .iter()
            .find(|one| one.kind == kind && one.id == *id)
            .map_or("", |one| one.owner.as_str());
        let about = format!(
            "{kind} {id}: {}",
            if owner.is_empty() { "nobody" } else { owner }
        );
        drawing.rect((x, top, each - 3.0, 25.0), colour(owner), 3.0, &about);
        let light = TEXT.sized(10.5).in_colour("#ffffff").at(Anchor::Middle);
        let dark = light.in_colour("#4b5563");
        let style = if matches!(owner, "" | "parked") {
            dark
        } else {
            light
        };
        let label = short(id);
        if text_width(label, 10.5) <= each {
            drawing.text(x + (each - 3.0) / 2.0, top + 16.5, style, label);
        }
    }
}

/// A device is known by bus and slot in the demo's machine; the function is in the text that shows when
/// pointed at.
fn short(id: &str) -> &str {
    id.split('.').next().unwrap_or(id)
}

fn memory(
    drawing: &mut Drawing,
    phase: &Phase,
    (top_of_memory, map): (u64, &Map),
    (left, top, width): (f64, f64, f64),
) {
    drawing.rect(
        (left, top, width, 25.0),
        colour(""),
        2.0,
        "nobody, or not RAM",
    );
    let ranges = phase
        .owned
        .iter()
        .filter(|owned| owned.kind == "memory" && owned.base < top_of_memory);
    for range in ranges {
        let end = range.base.saturating_add(range.length).min(top_of_memory);
        let (begin, end) = (map.at(range.base), map.at(end));
        let about = format!(
            "{:#x}, {}: {}",
            range.base,
            bytes(range.length),
            range.owner
        );
        let place = (left + begin, top, end - begin, 25.0);
        drawing.rect(place, colour(&range.owner), 0.0, &about);
        let label = bytes(range.length);
        if text_width(&label, 10.5) + 8.0 < end - begin {
            let style = TEXT.sized(10.5).in_colour("#ffffff").at(Anchor::Middle);
            drawing.text(left + f64::midpoint(begin, end), top + 16.5, style, &label);
        }
    }
    drawing.frame((left, top, width, 25.0), "#d1d5db");
}
