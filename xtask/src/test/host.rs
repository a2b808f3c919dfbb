//! A prime that drives the remapping unit itself, and hands it over as a unit of Baton's.

use anyhow::{Result, ensure};

use super::scenarios::{Context, served, unharmed};
use crate::session::{Manner, Session};

/// Whether the first kernel has said a line that begins and goes on like this.
fn said(session: &Session, begin: &str, then: &str) -> bool {
    let lines = session.machine.consoles[0].history();
    lines
        .iter()
        .any(|line| line.text.starts_with(begin) && line.text.contains(then))
}

/// The first kernel's own driver fences a successor, under load and attacked by both. At the hand-over
/// its tables are exchanged for Baton's; the next swap is one like any other.
pub(super) fn host_managed(context: &Context) -> Result<()> {
    let mut options = context.machine();
    options.append = "iommu=host".to_owned();
    let mut session = context.boot("machine", &options, 11)?;
    ensure!(
        said(&session, "@fenced ", "host=yes"),
        "the first kernel does not drive the unit itself"
    );
    for image in ["beta.elf", "gamma.elf"] {
        session.launch(image)?;
        let taken_over = said(&session, "@taken-over ", "unit=");
        if !taken_over {
            session.both_run()?;
            session.attack()?;
        }
        session.hand_over(Manner::Retire, !taken_over)?;
        ensure!(
            taken_over == (image == "gamma.elf") && said(&session, "@taken-over ", "unit="),
            "the unit was not taken over when the first kernel retired"
        );
        session.reclaim()?;
    }
    let report = unharmed(session)?;
    ensure!(
        served(&report) == "abg",
        "the clients were served by {}",
        served(&report)
    );
    Ok(())
}
