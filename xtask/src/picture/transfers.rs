//! Each transfer of the service: the way to it, and the blackout enlarged.

use crate::report::{Report, Swap};
use crate::ui::duration;

use super::palette::{colour, tint};
use super::svg::{Anchor, Drawing, FAINT, HEADING, TEXT, text_width};
use super::{INNER, MARGIN, Scale};

/// Shades for the steps, in turn.
const SHADES: [&str; 6] = [
    "#4b5f7a", "#6d829e", "#8fa2ba", "#56718f", "#7a8fa9", "#9fb0c4",
];

/// The width of the titles left of the bars, and of the bars' names.
const TITLES: f64 = 205.0;
const NAMES: f64 = 92.0;

/// What a bar leaves free at its right for its figure.
const FIGURES: f64 = 300.0;

pub(super) fn draw(drawing: &mut Drawing, report: &Report, y: &mut f64) {
    if report.swaps.is_empty() {
        return;
    }
    drawing.text(MARGIN, *y, HEADING, "Each transfer");
    drawing.text(
        MARGIN + INNER,
        *y,
        FAINT.at(Anchor::End),
        "steps by the prime's clock; blackout by the emulator's trace; gap by the client's clock",
    );
    *y += 18.0;
    // The host's own look takes longer than all else: it must not set the scale.
    let held = |swap: &&Swap| !swap.inspected;
    let free = report.swaps.iter().filter(held).count() > 0;
    let longest = report
        .swaps
        .iter()
        .filter(|swap| held(swap) || !free)
        .flat_map(|swap| [swap.blackout_ns, swap.client_gap_us.map(|us| us * 1_000)])
        .flatten()
        .max()
        .unwrap_or(1);
    for swap in &report.swaps {
        one(drawing, swap, longest, y);
    }
    *y += 16.0;
}

fn one(drawing: &mut Drawing, swap: &Swap, longest: u64, y: &mut f64) {
    let top = *y;
    let height = if swap.steps.is_empty() { 84.0 } else { 124.0 };
    drawing.rect((MARGIN, top, INNER, height), "#f8f9fb", 6.0, "");
    // The title: from whom to whom.
    let x = MARGIN + 14.0;
    let title = TEXT.sized(15.0).bold();
    drawing.text(x, top + 26.0, title, &format!("{}", swap.number));
    drawing.text(
        x + 18.0,
        top + 26.0,
        title.in_colour(colour(&swap.from)),
        &swap.from,
    );
    let arrow = x + 88.0;
    drawing.line(
        (arrow, top + 21.0),
        (arrow + 16.0, top + 21.0),
        "#6b7280",
        1.5,
    );
    drawing.shape(
        &[
            (arrow + 22.0, top + 21.0),
            (arrow + 15.0, top + 17.0),
            (arrow + 15.0, top + 25.0),
        ],
        "#6b7280",
        1.0,
    );
    drawing.text(
        arrow + 28.0,
        top + 26.0,
        title.in_colour(colour(&swap.to)),
        &swap.to,
    );
    let manner = match swap.manner.as_str() {
        "retire" => "the old kernel retires",
        "stay" => "the old kernel stays as standby",
        "return" => "the standby takes it back",
        other => other,
    };
    drawing.text(x, top + 45.0, FAINT.sized(11.5), manner);
    if swap.inspected {
        drawing.text(
            x,
            top + 61.0,
            FAINT.sized(11.5),
            "held by the host for a look",
        );
    }

    let left = MARGIN + TITLES + NAMES;
    let right = MARGIN + INNER - 14.0;
    let mut row = top + 14.0;
    if !swap.steps.is_empty() {
        steps(drawing, swap, (left, right), row);
        row += 44.0;
    }
    outages(drawing, swap, longest, (left, right), row);
    *y = top + height + 10.0;
}

/// The steps to a ready successor, to scale.
fn steps(drawing: &mut Drawing, swap: &Swap, (left, right): (f64, f64), top: f64) {
    let total: u64 = swap.steps.iter().map(|step| step.ns).sum();
    let label = FAINT.sized(11.5).at(Anchor::End);
    drawing.text(left - 10.0, top + 14.0, label, "steps");
    drawing.text(
        left - 10.0,
        top + 28.0,
        label.sized(11.0),
        &format!("{} in all", duration(total)),
    );
    let scale = Scale::new((0, total.max(1)), (left, right));
    let mut at = 0;
    let mut free_from = left;
    for (number, step) in swap.steps.iter().enumerate() {
        let (begin, end) = (scale.at(at), scale.at(at + step.ns));
        at += step.ns;
        let about = format!("{}: {}", step.name, duration(step.ns));
        let shade = SHADES[number % SHADES.len()];
        drawing.rect(
            (begin, top, (end - begin).max(1.0), 20.0),
            shade,
            1.0,
            &about,
        );
        let inside = text_width(&step.name, 11.0) + 8.0 < end - begin;
        if inside {
            let white = TEXT.sized(11.0).in_colour("#ffffff").at(Anchor::Middle);
            drawing.text(f64::midpoint(begin, end), top + 14.0, white, &step.name);
        }
        // The duration stands below, with the name where that did not fit; what has no room is left
        // to the text that shows when pointed at.
        let below = if inside { duration(step.ns) } else { about };
        let width = text_width(&below, 10.5);
        let middle = f64::midpoint(begin, end);
        let start = (middle - width / 2.0).max(free_from);
        let wanted = inside || step.ns * 40 > total;
        if wanted && start + width <= right && start <= middle {
            drawing.text(start, top + 33.0, FAINT.sized(10.5), &below);
            free_from = start + width + 8.0;
        }
    }
}

/// Blackout and the client's gap, on a scale that all transfers share.
fn outages(drawing: &mut Drawing, swap: &Swap, longest: u64, (left, right): (f64, f64), top: f64) {
    let edge = right - FIGURES;
    let scale = Scale::new((0, longest.max(1)), (left, edge));
    let label = FAINT.sized(11.5).at(Anchor::End);
    let held = if swap.inspected {
        ", with the host's look"
    } else {
        ""
    };
    let median = swap.client_median_gap_us.map_or_else(String::new, |us| {
        format!("; {} without a swap (median)", duration(us * 1_000))
    });
    let gap = swap.client_gap_us.map(|us| us * 1_000);
    let rows = [
        (
            "blackout",
            swap.blackout_ns,
            colour(&swap.to),
            held.to_owned(),
        ),
        ("client's gap", gap, "#5b6675", median),
    ];
    let mut y = top;
    for (name, value, fill, beside) in rows {
        drawing.text(left - 10.0, y + 14.0, label, name);
        drawing.rect((left, y, right - left, 19.0), tint(""), 2.0, "");
        let Some(value) = value else {
            drawing.text(left + 8.0, y + 14.0, FAINT.sized(11.5), "not measured");
            y += 26.0;
            continue;
        };
        let end = scale.at(value).max(left + 2.0);
        drawing.rect((left, y, end - left, 19.0), fill, 2.0, &duration(value));
        let mut x = end + 8.0;
        if value > longest {
            // It goes on beyond the scale: the bar is shown broken.
            let cut = edge - 36.0;
            for shift in [0.0, 9.0] {
                let (begin, end) = (cut + shift, cut + shift + 4.0);
                drawing.shape(
                    &[
                        (begin, y + 19.0),
                        (begin + 6.0, y),
                        (end + 6.0, y),
                        (end, y + 19.0),
                    ],
                    "#f8f9fb",
                    1.0,
                );
            }
            x = edge + 8.0;
        }
        let figure = duration(value);
        drawing.text(x, y + 14.0, TEXT.sized(12.5).bold(), &figure);
        let x = x + text_width(&figure, 12.5) + 8.0;
        drawing.text(
            x,
            y + 14.0,
            FAINT.sized(11.0),
            beside.trim_start_matches([',', ';', ' ']),
        );
        y += 26.0;
    }
}
