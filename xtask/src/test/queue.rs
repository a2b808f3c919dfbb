//! Nonsense in the workload's memory: in a queue of the network device, and where its registers are.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::scenarios::Context;
use crate::console::Watcher;
use crate::machine::Machine;
use crate::report;
use crate::session::{self, Manner};

const QUICK: Duration = Duration::from_secs(20);

/// A ring that seems to have been used for more frames than it has: the kernel says so and serves
/// no more, but goes on otherwise.
pub(super) fn queue_nonsense(context: &Context) -> Result<()> {
    let silent: Watcher = Arc::new(|_, _| ());
    let directory = context.directory.join("wrecked");
    let mut machine = Machine::start(&context.machine(), &directory, &silent)?;
    machine.run()?;
    session::wait_first(&mut machine)?;
    let console = &mut machine.consoles[0];
    let before = console.command_ok("status", QUICK)?;
    ensure!(
        before.all("queue").next().is_none(),
        "a queue is in trouble before anything was done to it"
    );

    console.skip();
    console.send("wreck ring")?;
    let (_, event) = console.wait_event("queue", QUICK)?;
    let (name, state) = (event.need("name")?, event.need("state")?);
    ensure!(
        (name, state) == ("receive", "broken"),
        "the {name} queue is {state}"
    );
    let text = event.need("text")?;
    ensure!(text.contains("used"), "it says only `{text}`");

    // It goes on, and says it again only when asked.
    for _ in 0..2 {
        let status = console.command_ok("status", QUICK)?;
        let told: Vec<_> = status.all("queue").collect();
        ensure!(
            told.len() == 1,
            "the status tells of {} queues in trouble",
            told.len()
        );
    }
    let said = console
        .history()
        .iter()
        .filter(|line| line.text.starts_with("@queue "))
        .count();
    ensure!(said == 3, "it was said {said} times: once, and twice asked");
    machine.quit().map(drop)
}

/// A workload whose header names registers that are not its device's: the successor refuses it, by
/// name, before it maps them, and the service goes on. With the right ones it takes over.
pub(super) fn foreign_registers(context: &Context) -> Result<()> {
    let mut session = context.boot("registers", &context.machine(), 5)?;
    session.machine.consoles[0].command_ok("wreck registers", QUICK)?;
    let done = session.machine.consoles[0].command("launch beta.elf", Duration::from_secs(90))?;
    ensure!(
        done.result != "ok",
        "a successor came up on a workload that names foreign registers"
    );
    let (_, failed) = session.machine.consoles[1].wait_event("failed", QUICK)?;
    let text = failed.need("text")?;
    ensure!(
        text.contains("transmit queue's notification"),
        "the successor says only `{text}`"
    );
    session.load.wait_answers(100, Duration::from_secs(10))?;
    session.machine.consoles[0].command_ok("wreck registers", QUICK)?;
    session.launch("beta.elf")?;
    session.hand_over(Manner::Retire, false)?;
    session.reclaim()?;
    // The report holds what the successor said against the run; there must be nothing else.
    let report = report::report(&session.close()?);
    let mut failures = report.failures.iter();
    let other = failures.find(|failure| !failure.contains("transmit queue's notification"));
    if let Some(other) = other {
        bail!("{other}");
    }
    Ok(())
}
