//! What the emulator is known not to enforce or not to record: tried on a machine of its own, and
//! held against what the architecture says. Elsewhere such an attempt would prove nothing; the
//! tests of the register model do, and each hole names the one that does.

mod amd_vi;
mod vt_d;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build::Images;
use crate::console::{Done, Watcher};
use crate::event::Event;
use crate::machine::{Files, Iommu, Machine, MachineOptions};
use crate::report::{Fence, Hole};
use crate::session;
use crate::trace::Trace;

/// How long all attempts may take together.
const ATTEMPTS: Duration = Duration::from_secs(60);

/// What is known of the emulator's model of one kind of hardware.
struct Catalogue {
    /// The attempts.
    known: &'static [Known],
    /// How a record of this reason is called.
    record: fn(u64) -> String,
    /// Whether the unit writes records of what it blocks.
    log_is_written: bool,
}

impl Catalogue {
    /// Of `iommu`; `None` where there is nothing to get through.
    const fn of(iommu: Iommu) -> Option<&'static Self> {
        match iommu {
            Iommu::VtD => Some(&vt_d::CATALOGUE),
            Iommu::AmdVi => Some(&amd_vi::CATALOGUE),
            Iommu::None => None,
        }
    }

    fn known(&self, name: &str) -> Option<&'static Known> {
        self.known.iter().find(|known| known.name == name)
    }
}

/// An attempt that the kernel makes, and what is known of it.
struct Known {
    /// Its name on the console.
    name: &'static str,
    /// In words.
    what: &'static str,
    /// The reason in the record that the architecture asks for.
    reason: u64,
    /// The most that an emulator was ever seen to let happen; `none` where it has to be blocked.
    worst: &'static str,
    /// Whether the record was always there.
    recorded: bool,
    /// The test of the register model that proves it: where from the workspace, and its name.
    proved_by: (&'static str, &'static str),
}

/// What came of all attempts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Each attempt.
    pub(crate) holes: Vec<Hole>,
    /// What should have been enforced or recorded and was not, or what the trace does not confirm.
    pub(crate) failures: Vec<String>,
}

impl Found {
    /// What came of them, for a person.
    pub(crate) fn sentence(&self) -> String {
        let open = self.holes.iter().filter(|hole| !hole.blocked).count();
        let enforced = self.holes.iter().filter(|hole| hole.enforced()).count();
        let silent = self.holes.len() - open - enforced;
        format!(
            "of {} attempts that hardware blocks and records, this emulator lets {open} through and \
             leaves {silent} more without a record; the register model's tests prove each",
            self.holes.len()
        )
    }

    /// Puts the holes into the report: those that are open, and those that turned out closed.
    pub(crate) fn report(&self, fence: &mut Fence) {
        let (enforced, open) = self.holes.iter().cloned().partition(Hole::enforced);
        fence.not_enforced_by_emulator = open;
        fence.enforced_by_emulator_too = enforced;
    }
}

/// Boots a machine of its own in `directory`, with the first kernel alone on it, and has that make
/// every attempt.
pub(crate) fn look(
    images: &Images,
    iommu: Iommu,
    directory: &Path,
    watcher: &Watcher,
) -> Result<(Found, Files)> {
    let catalogue = Catalogue::of(iommu).context("without an IOMMU there is nothing to try")?;
    let mut options = MachineOptions::demo(&images.first, Some(&images.modules)).behind(iommu);
    options.cpus = 2;
    options.memory_mib = 1024;
    let requests = iommu.trace_requests().iter();
    options.trace.extend(requests.map(|&one| one.to_owned()));
    let mut machine = Machine::start(&options, directory, watcher)?;
    machine.run()?;
    session::wait_first(&mut machine)?;
    let done = machine.consoles[0].command_ok("attack holes", ATTEMPTS)?;
    ensure!(
        machine.resets() == 0,
        "the machine was reset by an attempt on the fence"
    );
    let cpu_threads = machine.cpu_threads.clone();
    let files = machine.quit()?;
    let trace = Trace::read(&files.trace(), &cpu_threads)?;
    Ok((judge(catalogue, &done, &trace)?, files))
}

/// What an event says, held against what is known and against the trace.
fn judge(catalogue: &Catalogue, done: &Done, trace: &Trace) -> Result<Found> {
    let between = (
        session::nanoseconds(done.sent),
        session::nanoseconds(done.ended),
    );
    // The trace has the device's own interrupts too, so each attempt takes the first of its address
    // that no attempt before it has taken.
    let mut messages: Vec<_> = trace.interrupts_between(between).copied().collect();
    let mut found = Found::default();
    let mut made = 0;
    for event in done.all("hole") {
        let name = event.need("what")?;
        let known = catalogue
            .known(name)
            .with_context(|| format!("nothing is known of the attempt `{name}`"))?;
        let effect = event.need("effect")?;
        let address = event.number("address")?;
        let confirmed = if effect == "written" || known.name.starts_with("read-only") {
            let page = address & !0xfff;
            let faults = trace
                .faults_between(between)
                .filter(|fault| fault.write && fault.address & !0xfff == page)
                .count();
            // One DMA may be several requests, of which the unit records the first, if any.
            let told = if catalogue.log_is_written {
                event.number("records")? > 0
            } else {
                effect == "none"
            };
            (faults > 0) == told
        } else {
            let data = event
                .get("data")
                .map(|_| event.number("data"))
                .transpose()?;
            let place = messages
                .iter()
                .position(|one| one.address == address && data.is_none_or(|data| data == one.data));
            place.is_some_and(|place| messages.remove(place).delivered == (effect == "delivered"))
        };
        let hole = hole(catalogue, known, event, confirmed)?;
        if let Some(failure) = failure(known, event, &hole)? {
            found.failures.push(failure);
        }
        found.holes.push(hole);
        made += 1;
    }
    let missing: Vec<&str> = catalogue
        .known
        .iter()
        .map(|known| known.name)
        .filter(|name| {
            !done
                .all("hole")
                .any(|event| event.get("what") == Some(name))
        })
        .collect();
    if !missing.is_empty() || made != catalogue.known.len() {
        bail!("{made} attempts were made; missing: {missing:?}");
    }
    Ok(found)
}

fn hole(catalogue: &Catalogue, known: &Known, event: &Event, confirmed: bool) -> Result<Hole> {
    let (effect, records) = (event.need("effect")?, event.number("records")?);
    let blocked = effect == "none";
    let recorded = records > 0;
    let observed = match (blocked, recorded) {
        (true, true) => format!(
            "blocked, with {}",
            (catalogue.record)(event.number("reason")?)
        ),
        (true, false) => "blocked, without a record".to_owned(),
        (false, true) => format!("{effect}, with a record"),
        (false, false) => format!("{effect}, without a record"),
    };
    Ok(Hole {
        what: known.what.to_owned(),
        expected: format!("blocked, with {}", (catalogue.record)(known.reason)),
        observed,
        blocked,
        recorded,
        confirmed,
        proved_by: format!("{}: {}", known.proved_by.0, known.proved_by.1),
    })
}

/// What is wrong beyond what is known. A hole that is closed is none.
fn failure(known: &Known, event: &Event, hole: &Hole) -> Result<Option<String>> {
    let told = Some(format!("{}: {}", known.what, hole.observed));
    if !hole.blocked && event.need("effect")? != known.worst {
        return Ok(told);
    }
    if known.recorded && !hole.recorded {
        return Ok(told);
    }
    if hole.recorded && event.number("reason")? != known.reason {
        return Ok(told);
    }
    if !hole.confirmed {
        return Ok(Some(format!(
            "{}: the emulator's trace does not agree that it was {}",
            known.what, hole.observed
        )));
    }
    Ok(None)
}

/// Whether every test that is named as a proof is there.
pub(crate) fn proofs_are_there(workspace: &Path) -> Result<()> {
    for catalogue in [&vt_d::CATALOGUE, &amd_vi::CATALOGUE] {
        for known in catalogue.known {
            let (file, test) = known.proved_by;
            let path = workspace.join(file);
            let source = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(
                source.contains(&format!("#[test]\nfn {test}()")),
                "{file} has no test {test}"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Catalogue, amd_vi, failure, hole, proofs_are_there, vt_d};
    use crate::event::Event;

    fn judged(catalogue: &Catalogue, line: &str, confirmed: bool) -> (Option<String>, bool) {
        let event = Event::parse(line).unwrap();
        let known = catalogue.known(event.get("what").unwrap()).unwrap();
        let hole = hole(catalogue, known, &event, confirmed).unwrap();
        (failure(known, &event, &hole).unwrap(), hole.enforced())
    }

    #[test]
    fn every_hole_names_a_proof_that_is_there() {
        proofs_are_there(&crate::paths::workspace()).unwrap();
    }

    #[test]
    fn a_known_hole_is_no_failure_and_a_closed_one_is_enforced() {
        let open = "@hole what=compatible-format effect=delivered records=0 reason=0";
        assert_eq!(judged(&vt_d::CATALOGUE, open, true), (None, false));
        let closed = "@hole what=compatible-format effect=none records=1 reason=37";
        assert_eq!(judged(&vt_d::CATALOGUE, closed, true), (None, true));
        let silent = "@hole what=handle-of-another effect=none records=0 reason=0";
        assert_eq!(judged(&vt_d::CATALOGUE, silent, true), (None, false));
        let silent = "@hole what=handle-of-another effect=none records=0 reason=0";
        assert_eq!(judged(&amd_vi::CATALOGUE, silent, true), (None, false));
        let logged = "@hole what=handle-of-another effect=none records=1 reason=2";
        assert_eq!(judged(&amd_vi::CATALOGUE, logged, true), (None, true));
    }

    #[test]
    fn what_has_to_be_enforced_is_a_failure_where_it_is_not() {
        for line in [
            "@hole what=handle-of-another effect=delivered records=0 reason=0",
            "@hole what=read-only-cached effect=written records=0 reason=0",
            "@hole what=compatible-format effect=written records=0 reason=0",
            "@hole what=read-only effect=none records=0 reason=0",
            "@hole what=read-only effect=none records=1 reason=6",
        ] {
            assert!(judged(&vt_d::CATALOGUE, line, true).0.is_some(), "{line}");
        }
        for line in [
            "@hole what=handle-of-another effect=delivered records=0 reason=0",
            "@hole what=read-only effect=written records=0 reason=0",
            "@hole what=compatible-format effect=none records=1 reason=1",
        ] {
            assert!(judged(&amd_vi::CATALOGUE, line, true).0.is_some(), "{line}");
        }
        let lie = "@hole what=compatible-format effect=none records=1 reason=37";
        assert!(judged(&vt_d::CATALOGUE, lie, false).0.is_some());
    }
}
