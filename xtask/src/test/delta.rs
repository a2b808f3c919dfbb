//! The example kernel in C: it takes part in a swap as successor.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::handoffs::{self, Wrong};
use super::scenarios::{Context, owners, served, unharmed};
use crate::session::Manner;

/// How long delta may take to own what the prime had.
const INHERITED: Duration = Duration::from_secs(20);

/// What delta refuses a handoff for, and how it says so.
const WRONG: &[Wrong] = &[
    ("magic", "there is no handoff"),
    ("version-new", "another version"),
    ("header-odd", "length of the header"),
    ("length-long", "no room for its head"),
    ("checksum", "checksum"),
    ("self-address", "written elsewhere"),
    ("required", "requires what this kernel has not"),
    ("features", "cannot hand devices over"),
    ("reserved", "reserved field"),
    ("record-count", "number of records"),
    ("short-record", "shorter than its structure"),
    ("critical-record", "unknown kind"),
    ("epoch", "another epoch"),
    ("writer", "not written by the steward"),
    ("reader", "somebody else's processor"),
];

/// Delta refuses what is wrong, takes the workload over from alpha under load, serves it, and owns
/// every processor and all memory that alpha had.
pub(super) fn c_kernel(context: &Context) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 9)?;
    let before = owners(&mut session)?;
    for &(what, why) in WRONG {
        handoffs::refused(&mut session, "delta.elf", "0.1", what, why)?;
        ensure!(
            before == owners(&mut session)?,
            "after the handoff with a wrong {what} the machine is not as it was"
        );
    }
    session.launch("delta.elf")?;
    session.both_run()?;
    session.hand_over(Manner::Retire, true)?;
    session.load.wait_answers(200, INHERITED)?;
    let delta = &mut session.machine.consoles[1];
    let (_, inherited) = delta.wait_event("inherited", INHERITED)?;
    let count = |name: &str| inherited.number(name);
    ensure!(
        (count("cpus")?, count("workers")?) == (2, 3),
        "of alpha's two processors {} came, and {} work beside the first",
        count("cpus")?,
        count("workers")?
    );
    ensure!(
        count("bytes")? > 1 << 30 && count("devices")? > 0,
        "alpha had more memory and devices than that: {inherited}"
    );
    session.load.wait_answers(200, INHERITED)?;
    let report = unharmed(session)?;
    ensure!(
        served(&report) == "ad",
        "the clients were served by {}",
        served(&report)
    );
    Ok(())
}
