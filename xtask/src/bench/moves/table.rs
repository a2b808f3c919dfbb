//! The table of moves, for a person.

use super::Row;
use crate::ui::Screen;

/// What the figures hold and do not hold.
const NOTES: &[&str] = &[
    "Stores, commands, waits and register accesses are counted by the strict model. Its unit does at",
    "once what it is told, so a register that is read while a wait is not done is not read at all.",
    "Waits are those that software has to wait for, on a model that does nothing before. Stores are",
    "those to tables, of 8 or 16 bytes; those to the queue are in the report, and so are the cache",
    "lines that are written back (VT-d's unit does not snoop here, as QEMU's does not).",
    "Instructions are the driver's own on an emulated processor, with the stores, register accesses",
    "and cache line write-backs. Those of the unit, the caller and the bring-up are not in them.",
    "Linux, Xen and ACRN stand for the stores, commands, waits and accesses that those drivers make",
    "for each device, written anew. Their locks, look-ups and statistics are left out: their",
    "instructions are fewer here than theirs.",
];

/// Prints it.
pub(super) fn print(rows: &[Row], screen: &Screen) {
    for line in lines(rows) {
        match line {
            Line::Heading(text) => screen.heading(&text),
            Line::Text(text) => screen.line(&text),
        }
    }
    screen.line("");
    for note in NOTES {
        screen.line(&format!("  {note}"));
    }
}

enum Line {
    Heading(String),
    Text(String),
}

const HEAD: [&str; 2] = [
    "                         +---------------------- blackout -----------------------+  \
     +----- before ------+  +--- after ----+",
    "    N  way                 stores  commands  waits  writes  reads  instructions   \
       stores  instructions  waits  instructions",
];

fn lines(rows: &[Row]) -> Vec<Line> {
    let mut lines = Vec::new();
    for rows in rows.chunk_by(|one, other| one.unit == other.unit) {
        let unit = rows.first().map_or("", |row| &row.unit);
        lines.push(Line::Heading(format!(
            "Moving N devices from domain to domain, {unit}"
        )));
        lines.extend(HEAD.map(|head| Line::Text(head.to_owned())));
        let mut counts: Vec<usize> = rows.iter().map(|row| row.devices).collect();
        counts.sort_unstable();
        counts.dedup();
        for count in counts {
            let beside = rows.iter().filter(|row| row.devices == count);
            lines.extend(beside.map(|row| Line::Text(text(row))));
        }
        let mut said = Vec::new();
        for row in rows {
            for rule in &row.breaks {
                let text = format!("  {} breaks a rule of the model: {rule}", row.way);
                if !said.contains(&text) {
                    said.push(text);
                }
            }
        }
        lines.extend(said.into_iter().map(Line::Text));
    }
    lines
}

fn text(row: &Row) -> String {
    let way = match &row.method {
        Some(method) if *method != row.way => format!("{} ({method})", row.way),
        _ => row.way.clone(),
    };
    let some = |number: u64| match number {
        0 => "-".to_owned(),
        number => number.to_string(),
    };
    let Row {
        prepare,
        blackout,
        settle,
        ..
    } = row;
    format!(
        "{:>5}  {way:<18}{:>8} {:>9} {:>6} {:>7} {:>6} {:>13}   {:>8} {:>13} {:>6} {:>13}",
        row.devices,
        blackout.table_stores,
        blackout.commands + blackout.barriers,
        blackout.waits,
        blackout.mmio_writes,
        blackout.mmio_reads,
        blackout.instructions,
        some(prepare.table_stores),
        some(prepare.instructions),
        some(settle.waits),
        some(settle.instructions),
    )
}
