//! Installing: apt and rustup.

use std::time::Duration;

use anyhow::Result;

use super::facts::Privilege;
use crate::paths;
use crate::process::Run;
use crate::ui::Step;

/// Installs `names` with apt; refreshes apt's lists only where they do not know the packages.
pub(super) fn packages(names: &[&str], privilege: Privilege, step: &Step) -> Result<()> {
    let install = apt(privilege)
        .arguments(["install", "-y", "--no-install-recommends"])
        .arguments(names);
    if install.succeed(|line| step.progress(line)).is_ok() {
        return Ok(());
    }
    apt(privilege)
        .arguments(["update"])
        .succeed(|line| step.progress(line))?;
    install.succeed(|line| step.progress(line))?;
    Ok(())
}

fn apt(privilege: Privilege) -> Run {
    let run = match privilege {
        Privilege::Sudo => {
            Run::new("sudo").arguments(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"])
        }
        Privilege::Root | Privilege::None => {
            Run::new("apt-get").set("DEBIAN_FRONTEND", "noninteractive")
        }
    };
    run.arguments(["-o", "DPkg::Lock::Timeout=120"])
        .deadline(Duration::from_secs(15 * 60))
}

/// Adds `target` to the toolchain that the workspace uses.
pub(super) fn rustup_target(target: &str, step: &Step) -> Result<()> {
    Run::new("rustup")
        .arguments(["target", "add", target])
        // Where it fails, its last lines are shown: they are to say why.
        .unset("RUST_BACKTRACE")
        .directory(paths::workspace())
        .deadline(Duration::from_secs(5 * 60))
        .succeed(|line| step.progress(line))?;
    Ok(())
}
