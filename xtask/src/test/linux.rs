//! A stock Linux in a partition, beside the kernel that serves.

use anyhow::{Result, ensure};
use baseline_guest::control::Operation;

use super::scenarios::{Context, difference, owners, unharmed};
use crate::linux::Linux;

/// What would not start is refused. Linux is refused while its interrupts would be open and nobody asked for that; then it finds its
/// partition and nothing else, works, and crashes. The prime serves meanwhile, nobody resets the
/// machine, and everything comes back.
pub(super) fn linux(context: &Context) -> Result<()> {
    ends(context, &[Operation::Panic])
}

/// The same with a Linux that resets its machine, and then one that switches it off.
pub(super) fn linux_ends(context: &Context) -> Result<()> {
    ends(context, &[Operation::FirmwareReboot, Operation::PowerOff])
}

fn ends(context: &Context, operations: &[Operation]) -> Result<()> {
    let directory = context.directory.join("machine");
    let linux = Linux::prepare(&directory, &|_| ())?;
    let mut options = context.machine();
    linux.add_to(&mut options);
    let mut session = context.boot("machine", &options, 12)?;
    let before = owners(&mut session)?;
    linux.bad_input(&mut session)?;
    ensure!(
        before == owners(&mut session)?,
        "after files that were refused the machine is not as it was"
    );
    for &operation in operations {
        linux.launch(&mut session)?;
        linux.end(&mut session, operation)?;
        let after = owners(&mut session)?;
        ensure!(
            before == after,
            "after {operation:?} the machine is not as it was: {}",
            difference(&before, &after)
        );
    }
    unharmed(session).map(drop)
}
