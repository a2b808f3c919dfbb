//! The planner's rules on what the machine says of itself: threads, features, microcode, interrupt
//! lines.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::scenarios::{Context, unharmed};
use crate::session::Session;

const QUICK: Duration = Duration::from_secs(20);

/// A network device that knows no message interrupts, on a bus of its own.
const WITHOUT_MESSAGES: [&str; 4] = [
    "-device",
    "pcie-root-port,id=port20,chassis=20,addr=0x14",
    "-device",
    "e1000,bus=port20,romfile=",
];

/// Two cores of two threads. The last thread has another microcode and a feature less.
const UNLIKE: [&str; 4] = [
    "-smp",
    "3,maxcpus=4,sockets=1,cores=2,threads=2",
    "-device",
    "max-x86_64-cpu,socket-id=0,core-id=1,thread-id=1,ucode-rev=0x0000000200000002,adx=off",
];

/// How a dry run ended, and the rules that it warned of or broke, with the resource.
fn rules(session: &mut Session, line: &str) -> Result<(String, BTreeSet<(String, String)>)> {
    let done = session.machine.consoles[0].command(line, QUICK)?;
    let found = done
        .all("warning")
        .chain(done.all("refused"))
        .filter_map(|event| {
            Some((
                event.get("rule")?.to_owned(),
                event.get("resource")?.to_owned(),
            ))
        })
        .collect();
    Ok((done.result, found))
}

fn names(found: &BTreeSet<(String, String)>) -> BTreeSet<&str> {
    found.iter().map(|(rule, _)| rule.as_str()).collect()
}

/// Dry runs: what is asked, how it ends, and which rules it warns of or breaks.
type Expected = (&'static str, &'static str, &'static [&'static str]);

fn expect(session: &mut Session, runs: &[Expected]) -> Result<()> {
    for &(line, result, expected) in runs {
        let (ended, found) = rules(session, line)?;
        ensure!(
            ended == result && names(&found) == expected.iter().copied().collect(),
            "`{line}` ended with {ended}: {found:?}; {result} with {expected:?} was expected"
        );
    }
    Ok(())
}

/// Every rule that compares facts of the machine fires where they differ, and not where they do not.
pub(super) fn machine_facts(context: &Context) -> Result<()> {
    let mut options = context.machine();
    options.extra = UNLIKE
        .iter()
        .chain(&WITHOUT_MESSAGES)
        .map(|&word| word.to_owned())
        .collect();
    options.append = "intx=firmware".to_owned();
    let mut session = context.boot("unlike", &options, 3)?;
    let runs: &[Expected] = &[
        // Whole cores, one of whose threads is unlike the first processor.
        (
            "plan",
            "ok",
            &["cpu-features", "cpu-microcode", "intx-shared"],
        ),
        (
            "plan cpus=2,3",
            "ok",
            &["cpu-features", "cpu-microcode", "intx-shared"],
        ),
        // Half a core.
        ("plan cpus=2", "ok", &["smt-split", "intx-shared"]),
        (
            "plan cpus=3",
            "ok",
            &["smt-split", "cpu-features", "cpu-microcode", "intx-shared"],
        ),
        // What is doubtful is refused where that is asked for.
        (
            "plan cpus=2 strict",
            "refused",
            &["smt-split", "intx-shared"],
        ),
        (
            "plan cpus=2,3 strict",
            "refused",
            &["cpu-features", "cpu-microcode", "intx-shared"],
        ),
    ];
    expect(&mut session, runs)?;
    // A line is all that this device has, and others use it.
    let (ended, found) = rules(&mut session, "plan devices=8086:100e cpus=2,3")?;
    ensure!(
        ended == "refused" && names(&found).contains("intx-shared"),
        "a device with nothing but a shared line: {ended}, {found:?}"
    );
    unharmed(session)?;

    // All alike, and nobody uses a line.
    let mut options = context.machine();
    options.extra = WITHOUT_MESSAGES
        .iter()
        .map(|&word| word.to_owned())
        .collect();
    let mut session = context.boot("alike", &options, 3)?;
    let runs: &[Expected] = &[
        ("plan strict", "ok", &[]),
        ("plan cpus=3 strict", "ok", &[]),
        ("plan devices=8086:100e strict", "ok", &[]),
    ];
    expect(&mut session, runs)?;
    unharmed(session).map(drop)
}
