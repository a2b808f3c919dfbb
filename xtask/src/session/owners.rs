//! Owners and reclaimed resources, as the kernels print them.

use std::collections::HashMap;

use anyhow::Result;

use crate::console::Done;
use crate::event::{Event, Line};
use crate::report::{Owned, Phase, Reclaimed, Unreclaimed};

/// The phase that a kernel's listing on demand has.
const ON_DEMAND: &str = "now";

/// The phase that a kernel lists which no longer writes the ledger: it says nothing new.
const RETIRED: &str = "retired";

/// The owners phase by phase, from all that was said on all consoles.
pub(crate) fn phases(consoles: &[Vec<Line>]) -> Vec<Phase> {
    let mut said: Vec<(usize, &Line)> = consoles
        .iter()
        .enumerate()
        .flat_map(|(console, lines)| lines.iter().map(move |line| (console, line)))
        .collect();
    said.sort_by_key(|(_, line)| line.at);
    let mut listing = Listing::default();
    for (console, line) in said {
        if let Some(event) = &line.event {
            listing.take(console, event);
        }
    }
    listing.name_the_rest();
    listing.phases
}

#[derive(Default)]
struct Listing {
    phases: Vec<Phase>,
    /// Which kernel runs in which partition.
    names: HashMap<String, String>,
    /// Transfers of the service so far.
    swaps: u64,
    /// The phase that a console lists just now, and its place.
    open: HashMap<usize, (String, usize)>,
}

impl Listing {
    fn take(&mut self, console: usize, event: &Event) {
        match event.word.as_str() {
            "owner" => self.owner(console, event),
            word => {
                self.open.remove(&console);
                if word == "up"
                    && let (Some(kernel), Some(partition)) =
                        (event.get("kernel"), event.get("partition"))
                {
                    self.names.insert(partition.to_owned(), kernel.to_owned());
                }
                if word == "serving"
                    && let Ok(swap) = event.number("swap")
                {
                    self.swaps = self.swaps.max(swap);
                }
            }
        }
    }

    fn owner(&mut self, console: usize, event: &Event) {
        let (Some(phase), Some(owned)) = (event.get("phase"), self.owned(event)) else {
            return;
        };
        if phase == RETIRED
            || (phase == ON_DEMAND && !self.phases.is_empty() && !self.is_open(console, phase))
        {
            return;
        }
        if !self.is_open(console, phase) {
            let name = match phase {
                ON_DEMAND => "at first".to_owned(),
                "launched" => format!("swap {}, launched", self.swaps + 1),
                other => format!("swap {}, {other}", self.swaps),
            };
            self.phases.push(Phase {
                name,
                owned: Vec::new(),
            });
            self.open
                .insert(console, (phase.to_owned(), self.phases.len() - 1));
        }
        if let Some((_, place)) = self.open.get(&console) {
            self.phases[*place].owned.push(owned);
        }
    }

    /// A partition may be listed on one console before its kernel says on the other who it is.
    fn name_the_rest(&mut self) {
        for owned in self.phases.iter_mut().flat_map(|phase| &mut phase.owned) {
            let number = owned.owner.strip_prefix("partition ");
            if let Some(name) = number.and_then(|number| self.names.get(number)) {
                owned.owner.clone_from(name);
            }
        }
    }

    fn is_open(&self, console: usize, phase: &str) -> bool {
        self.open
            .get(&console)
            .is_some_and(|(open, _)| open == phase)
    }

    fn owned(&self, event: &Event) -> Option<Owned> {
        let kind = event.get("kind")?;
        let base = event.number("base").ok()?;
        let (who, number) = event.get("owner")?.rsplit_once('-')?;
        let owner = match who {
            "partition" => self
                .names
                .get(number)
                .cloned()
                .unwrap_or_else(|| format!("partition {number}")),
            other => other.to_owned(),
        };
        let id = match kind {
            "cpu" => base.to_string(),
            "device" => format!(
                "{:02x}:{:02x}.{}",
                base >> 8 & 0xff,
                base >> 3 & 0x1f,
                base & 7
            ),
            _ => String::new(),
        };
        Some(Owned {
            kind: kind.to_owned(),
            id,
            base,
            length: event.number("length").ok()?,
            owner,
        })
    }
}

/// What a `reclaim` said.
pub(crate) fn reclaimed(done: &Done) -> Result<Reclaimed> {
    let event = done.one("reclaimed")?;
    let unreclaimed = done
        .all("unreclaimed")
        .map(|event| {
            Ok(Unreclaimed {
                what: event.need("what")?.to_owned(),
                bytes: event.number("bytes")?,
                why: event.need("why")?.to_owned(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Reclaimed {
        cpus: event.number("cpus")?,
        bytes: event.number("bytes")?,
        devices: event.number("devices")?,
        unreclaimed,
    })
}

#[cfg(test)]
mod tests {
    use super::phases;
    use crate::event::Line;

    fn said(lines: &[&str]) -> Vec<Line> {
        lines
            .iter()
            .map(|line| Line::now((*line).to_owned()))
            .collect()
    }

    #[test]
    fn owners_are_named_and_grouped_by_phase() {
        let first = said(&[
            "@up kernel=alpha partition=1 cpus=4",
            "@owner phase=now kind=cpu base=0x0 length=0x1 owner=partition-1",
            "@owner phase=now kind=memory base=0x100000 length=0x200000 owner=baton-0",
            "@owner phase=now kind=device base=0x311 length=0x1 owner=workload-1",
            "@serving swap=0",
            "@owner phase=now kind=cpu base=0x0 length=0x1 owner=partition-1",
        ]);
        let second = said(&[
            "@up kernel=beta partition=2 cpus=2",
            "@done command=x result=ok",
        ]);
        let third = said(&[
            "@owner phase=launched kind=cpu base=0x2 length=0x1 owner=partition-2",
            "@serving swap=1",
            "@owner phase=retired kind=cpu base=0x2 length=0x1 owner=partition-2",
            "@owner phase=served kind=cpu base=0x2 length=0x1 owner=partition-3",
        ]);
        let found = phases(&[first, second, third]);
        let names: Vec<&str> = found.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["at first", "swap 1, launched", "swap 1, served"]);
        assert_eq!(found[0].owned.len(), 3);
        assert_eq!(found[0].owned[0].owner, "alpha");
        assert_eq!(found[0].owned[1].owner, "baton");
        assert_eq!(found[0].owned[2].id, "03:02.1");
        assert_eq!(found[1].owned[0].owner, "beta");
        assert_eq!(found[2].owned[0].owner, "partition 3");
    }

    #[test]
    fn a_partition_that_says_later_who_it_is_is_named_too() {
        let said = said(&[
            "@owner phase=launched kind=cpu base=0x2 length=0x1 owner=partition-2",
            "@up kernel=beta partition=2",
        ]);
        assert_eq!(phases(&[said])[0].owned[0].owner, "beta");
    }

    #[test]
    fn two_consoles_that_speak_at_once_are_kept_apart() {
        let mut first = said(&[
            "@up kernel=a partition=1",
            "@owner phase=launched kind=cpu base=0x0 length=0x1 owner=partition-1",
        ]);
        let second = said(&["@up kernel=b partition=2"]);
        first.extend(said(&[
            "@owner phase=launched kind=cpu base=0x1 length=0x1 owner=partition-1",
        ]));
        let found = phases(&[first, second]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].owned.len(), 2);
    }
}
