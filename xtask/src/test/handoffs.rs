//! Handoffs that are wrong on purpose: the successor refuses each by name, and the prime, who made
//! it so, takes everything back and serves on.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::scenarios::{Context, difference, owners, unharmed};
use crate::session::{Manner, Session};

/// How long a launch may take that ends with a refusal.
const REFUSED: Duration = Duration::from_secs(30);

/// What is wrong, and what the refusal must say.
pub(super) type Wrong = (&'static str, &'static str);

/// What can be wrong in a handoff of any version.
const ANY: &[Wrong] = &[
    ("magic", "which is not its magic"),
    (
        "version-new",
        "handoff version 0.3, this kernel reads 0.1 to 0.2",
    ),
    (
        "version-old",
        "handoff version 0.0, this kernel reads 0.1 to 0.2",
    ),
    ("version-other", "handoff version 1."),
    ("header-short", "header states a length of"),
    ("header-odd", "header states a length of"),
    ("header-long", "header states a length of"),
    ("length-huge", "handoff states a length of"),
    ("length-odd", "handoff states a length of"),
    ("length-long", "record at offset"),
    ("length-short", "record at offset"),
    ("self-address", "was written for"),
    ("features", "ADOPT_DEVICES"),
    (
        "required",
        "requires what this kernel has not: 0x10000000000",
    ),
    ("record-count", "records and has"),
    ("checksum", "checksum is"),
    ("epoch", "epoch"),
    ("writer", "partition 119"),
    ("reader", "partition 119"),
    ("reader-prime", "partition 1"),
    ("reserved", "reserved field"),
    ("record-length", "states a length of 12 bytes"),
    ("short-record", "of kind 0x3"),
    ("foreign-cpu", "the smaller machine is not the handoff's"),
    ("critical-record", "is of unknown kind 0x7fff0001"),
];

/// What reads otherwise in version 0.2, whose header is longer.
const SINCE_0_2: &[Wrong] = &[
    (
        "version-new",
        "handoff version 0.3, this kernel reads 0.1 to 0.2",
    ),
    (
        "version-old",
        "handoff version 0.0, this kernel reads 0.1 to 0.2",
    ),
    ("header-short", "header states a length of 72 bytes"),
    ("length-long", "record at offset"),
    ("checksum", "checksum is"),
    ("swaps", "swaps"),
    ("critical-record", "is of unknown kind 0x7fff0001"),
];

/// Every fault in version 0.1, which the first kernel writes; then, two swaps later and on the same
/// console again, those of version 0.2.
pub(super) fn bad_handoffs(context: &Context) -> Result<()> {
    let mut session = context.boot("machine", &context.machine(), 8)?;
    all(&mut session, "0.1", ANY)?;
    for image in ["beta.elf", "gamma.elf"] {
        session.launch(image)?;
        session.hand_over(Manner::Retire, false)?;
        session.reclaim()?;
    }
    all(&mut session, "0.2", SINCE_0_2)?;
    unharmed(session).map(drop)
}

fn all(session: &mut Session, version: &str, wrong: &[Wrong]) -> Result<()> {
    let before = owners(session)?;
    // One that is taken for good hides none of the others.
    let mut failures = Vec::new();
    for &(what, why) in wrong {
        if let Err(error) = refused(session, "beta.elf", version, what, why) {
            failures.push(format!("{what}: {error:#}"));
            session.machine.consoles[0].command("undo", Duration::from_secs(30))?;
        }
        let after = owners(session)?;
        if before != after {
            failures.push(format!(
                "{what}: the machine is not as it was: {}",
                difference(&before, &after)
            ));
        }
        session.load.wait_answers(20, Duration::from_secs(10))?;
    }
    ensure!(
        failures.is_empty(),
        "handoffs of version {version}: {}",
        failures.join("; ")
    );
    // What need not be understood is no reason to refuse.
    let done = session.machine.consoles[0].command_ok(
        "launch beta.elf handoff=optional-record",
        Duration::from_secs(60),
    )?;
    done.one("ready")?;
    session.machine.consoles[0].command_ok("undo", Duration::from_secs(30))?;
    let after = owners(session)?;
    ensure!(
        before == after,
        "after an undo the machine is not as it was: {}",
        difference(&before, &after)
    );
    Ok(())
}

/// One launch. The refusal is on the successor's console; the prime says that it was refused.
pub(super) fn refused(
    session: &mut Session,
    image: &str,
    version: &str,
    what: &str,
    why: &str,
) -> Result<()> {
    session.machine.consoles[1].skip();
    let line = format!("launch {image} handoff={what}");
    let done = session.machine.consoles[0].command(&line, REFUSED)?;
    ensure!(done.result == "failed", "it was launched: {}", done.result);
    let handoff = done.one("handoff")?;
    ensure!(
        handoff.get("version") == Some(version),
        "this handoff is none of version {version}: {handoff}"
    );
    ensure!(
        done.text.contains("it refused") || done.text.contains("it gave up"),
        "the prime does not know that it was refused: {}",
        done.text
    );
    let (_, event) =
        session.machine.consoles[1].wait_event("handoff-refused", Duration::from_secs(5))?;
    let text = event.need("text")?;
    ensure!(
        text.contains(why),
        "the refusal says `{text}` and not `{why}`"
    );
    Ok(())
}
