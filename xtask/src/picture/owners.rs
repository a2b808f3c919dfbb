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

/// The narrowest piece of memory that can still be seen.
const THINNEST: f64 = 2.0;

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
        &format!("memory, {} MiB to scale", report.run.memory_mib),
    );
    drawing.text(devices_left, *y, head, "devices");
    *y += 10.0;

    let top_of_memory = report.run.memory_mib << 20;
    let cpus = ids(&report.owners, "cpu");
    let devices = ids(&report.owners, "device");
    for phase in &report.owners {
        drawing.text(MARGIN, *y + 17.0, TEXT.sized(12.5), &phase.name);
        let all: Vec<&Owned> = phase.owned.iter().collect();
        cells(drawing, &all, ("cpu", &cpus), (MARGIN + NAMES, *y, CPUS));
        memory(
            drawing,
            phase,
            top_of_memory,
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
        let x = memory_left + memory_width * part as f64 / 4.0;
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
    top_of_memory: u64,
    (left, top, width): (f64, f64, f64),
) {
    drawing.rect(
        (left, top, width, 25.0),
        colour(""),
        2.0,
        "nobody, or not RAM",
    );
    let mut ranges: Vec<&Owned> = phase
        .owned
        .iter()
        .filter(|owned| owned.kind == "memory" && owned.length > 0 && owned.base < top_of_memory)
        .collect();
    // Short ranges are drawn last: they get more room than they have, at their neighbours' cost.
    ranges.sort_by_key(|range| std::cmp::Reverse(range.length));
    for range in ranges {
        let end = range.base.saturating_add(range.length).min(top_of_memory);
        let at = |address: u64| width * (address as f64 / top_of_memory as f64);
        let (begin, stop) = (at(range.base), at(end));
        let wide = (stop - begin).max(THINNEST);
        let begin = begin.min(width - wide);
        let about = format!(
            "{:#x}, {}: {}",
            range.base,
            bytes(range.length),
            range.owner
        );
        drawing.rect(
            (left + begin, top, wide, 25.0),
            colour(&range.owner),
            0.0,
            &about,
        );
        let label = bytes(range.length);
        if text_width(&label, 10.5) + 8.0 < wide {
            let style = TEXT.sized(10.5).in_colour("#ffffff").at(Anchor::Middle);
            drawing.text(left + begin + wide / 2.0, top + 16.5, style, &label);
        }
    }
    drawing.frame((left, top, width, 25.0), "#d1d5db");
}
