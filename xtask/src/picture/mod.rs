//! The picture of a run: one SVG file that needs nothing else.
//!
//! From top to bottom: what came of it, the whole power-on with the clients' answers over time, each
//! transfer of the service with its blackout enlarged, and who owned each CPU, memory range and
//! device phase by phase. It is drawn from the report alone.

mod owners;
mod palette;
mod svg;
mod transfers;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::machine::Iommu;
use crate::report::Report;
use crate::ui::duration;

use palette::{colour, name, tint};
use svg::{Anchor, Drawing, FAINT, HEADING, TEXT};

/// The picture's width.
const WIDTH: f64 = 1180.0;
/// The space left and right.
const MARGIN: f64 = 36.0;
/// The width that is drawn on.
const INNER: f64 = WIDTH - 2.0 * MARGIN;

/// The most columns in which answers are shown.
const COLUMNS: usize = 370;

/// The colour of what must not be there.
const BAD: &str = "#c62f3b";
/// The colour of what must.
const GOOD: &str = "#1a7f4b";

/// Draws `report` into the file `path`.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    fs::write(path, draw(report)).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(report: &Report) -> String {
    let mut drawing = Drawing::default();
    let mut y = 44.0;
    head(&mut drawing, report, &mut y);
    power_on(&mut drawing, report, &mut y);
    transfers::draw(&mut drawing, report, &mut y);
    owners::draw(&mut drawing, report, &mut y);
    drawing.finish(WIDTH, y + 24.0)
}

/// The title and the figures that matter most.
fn head(drawing: &mut Drawing, report: &Report, y: &mut f64) {
    let swaps = report.swaps.len();
    let title = match swaps {
        0 => "A key-value service under load".to_owned(),
        1 => "One transfer of a live service between kernels, one power-on".to_owned(),
        _ => format!("{swaps} transfers of a live service between kernels, one power-on"),
    };
    drawing.text(MARGIN, *y, HEADING.sized(24.0), &title);
    *y += 24.0;
    let run = &report.run;
    drawing.text(
        MARGIN,
        *y,
        FAINT,
        &format!(
            "{} CPUs, {} MiB, {}, {}, seed {}",
            run.cpus,
            run.memory_mib,
            fenced_by(&run.iommu),
            run.emulator,
            run.seed
        ),
    );
    *y += 22.0;
    let load = &report.load;
    let resets: u64 = report.swaps.iter().map(|swap| swap.device_resets).sum();
    let dropped = load.dropped_before_device + load.dropped_inside;
    let copied: u64 = report
        .swaps
        .iter()
        .filter_map(|swap| swap.bytes_copied)
        .sum();
    let fence = &report.fence;
    let must_be_zero = |value: u64| (value.to_string(), if value == 0 { GOOD } else { BAD });
    let mut chips = vec![
        ("requests".to_owned(), (grouped(load.sent), "#24292f")),
        ("lost writes".to_owned(), must_be_zero(load.lost_writes)),
        (
            "applied twice".to_owned(),
            must_be_zero(load.duplicated_writes),
        ),
        ("packets dropped".to_owned(), must_be_zero(dropped)),
    ];
    if swaps > 0 {
        let shortest = report
            .swaps
            .iter()
            .filter_map(|swap| swap.blackout_ns)
            .min();
        let all = fence.blocked == fence.attempts && fence.attempts > 0;
        let blocked = format!("{} / {}", fence.blocked, fence.attempts);
        chips.extend([
            ("bytes copied".to_owned(), must_be_zero(copied)),
            ("device resets".to_owned(), must_be_zero(resets)),
            ("reboots".to_owned(), must_be_zero(report.firmware_reboots)),
            (
                "attacks blocked".to_owned(),
                (blocked, if all { GOOD } else { BAD }),
            ),
            (
                "shortest blackout".to_owned(),
                (shortest.map_or_else(|| "?".to_owned(), duration), "#24292f"),
            ),
        ]);
    }
    let width = INNER / chips.len() as f64;
    for (number, (label, (value, fill))) in chips.iter().enumerate() {
        let x = MARGIN + number as f64 * width;
        drawing.rect((x, *y, width - 8.0, 54.0), "#f6f7f9", 6.0, "");
        let middle = x + (width - 8.0) / 2.0;
        let style = TEXT.sized(19.0).bold().in_colour(fill).at(Anchor::Middle);
        drawing.text(middle, *y + 25.0, style, value);
        drawing.text(
            middle,
            *y + 43.0,
            FAINT.sized(11.5).at(Anchor::Middle),
            label,
        );
    }
    *y += 54.0 + 34.0;
}

/// The remapping hardware in the words of its vendor.
fn fenced_by(name: &str) -> String {
    Iommu::from_str(name, true).map_or_else(|_| format!("IOMMU {name}"), |iommu| iommu.to_string())
}

/// A number with its digits in groups of three.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}

/// The distance between marks on an axis of `length`: 1, 2 or 5 times a power of ten, about a dozen.
fn marks(length: u64) -> u64 {
    let mut step = 1;
    loop {
        for times in [1, 2, 5] {
            if length / (step * times) <= 14 {
                return step * times;
            }
        }
        step *= 10;
    }
}

/// The whole time from the first answer to the last.
fn power_on(drawing: &mut Drawing, report: &Report, y: &mut f64) {
    if report.load.rate.answers.is_empty() {
        return;
    }
    let rate = &report.load.rate.coarser(COLUMNS);
    drawing.text(MARGIN, *y, HEADING, "Answers to the clients");
    drawing.text(
        MARGIN + INNER,
        *y,
        FAINT.at(Anchor::End),
        &format!(
            "answers in {} each; the colour is the kernel that answers",
            duration(rate.interval)
        ),
    );
    *y += 12.0;
    let length = rate.interval * rate.answers.len() as u64;
    let scale = Scale::new((rate.from, rate.from + length), (MARGIN, MARGIN + INNER));
    let (top, height) = (*y, 92.0);

    let served = &report.load.served_by;
    for (number, (kernel, from)) in served.iter().enumerate() {
        let until = served
            .get(number + 1)
            .map_or(rate.from + length, |next| next.1);
        let (left, right) = (scale.at(*from), scale.at(until));
        let about = format!("{} answers for {}", name(kernel), duration(until - from));
        drawing.rect((left, top, right - left, height), tint(kernel), 0.0, &about);
    }
    let most = f64::from(rate.answers.iter().copied().max().unwrap_or(1).max(1));
    for (number, &count) in rate.answers.iter().enumerate() {
        let begin = rate.from + number as u64 * rate.interval;
        let kernel = served
            .iter()
            .rev()
            .find(|(_, from)| *from <= begin + rate.interval / 2)
            .map_or("?", |(kernel, _)| kernel.as_str());
        let (left, right) = (scale.at(begin), scale.at(begin + rate.interval));
        let tall = (height - 16.0) * f64::from(count) / most;
        drawing.rect(
            (left, top + height - tall, (right - left).max(0.6), tall),
            colour(kernel),
            0.0,
            "",
        );
    }
    for (number, (kernel, from)) in served.iter().enumerate() {
        let x = scale.at(*from);
        let next = served
            .get(number + 1)
            .map_or(MARGIN + INNER, |next| scale.at(next.1));
        drawing.line((x, top), (x, top + height), "#374151", 1.0);
        let style = TEXT.sized(12.0).bold().in_colour(colour(kernel));
        if svg::text_width(name(kernel), 12.0) + 6.0 < next - x {
            drawing.text(x + 4.0, top + 12.0, style, name(kernel));
        }
    }
    let seconds = length / 1_000_000_000;
    let step = usize::try_from(marks(seconds)).unwrap_or(1);
    for second in (0..=seconds).step_by(step) {
        let x = scale.at(rate.from + second * 1_000_000_000);
        drawing.line((x, top + height), (x, top + height + 4.0), "#9aa3ad", 1.0);
        let style = FAINT.sized(11.0).at(Anchor::Middle);
        drawing.text(x, top + height + 16.0, style, &format!("{second} s"));
    }
    *y = top + height + 50.0;
}

/// From a range of times to a range of pixels.
#[derive(Clone, Copy)]
struct Scale {
    from: (u64, u64),
    to: (f64, f64),
}

impl Scale {
    fn new(from: (u64, u64), to: (f64, f64)) -> Self {
        Self { from, to }
    }

    fn at(&self, value: u64) -> f64 {
        let (first, last) = self.from;
        let span = last.saturating_sub(first).max(1) as f64;
        let part = value.clamp(first, last.max(first)).saturating_sub(first) as f64 / span;
        self.to.0 + part * (self.to.1 - self.to.0)
    }
}

#[cfg(test)]
mod tests;
