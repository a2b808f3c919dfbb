//! What is there on this machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Tool;
use super::toolchain::{KERNEL_TARGET, distribution_missing, has_target};
use crate::process::{Run, find};

/// The oldest QEMU that can answer all that is asked of it (`x-query-virtio-queue-status`).
const OLDEST_QEMU: (u32, u32) = (7, 2);

/// With which right packages can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// This process may install.
    Root,
    /// `sudo` lets this user without asking.
    Sudo,
    /// Neither.
    None,
}

/// The facts that decide what has to be installed.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// `qemu-system-x86_64` is there.
    pub(crate) qemu: bool,
    /// What is not there of what was asked for.
    pub(crate) tools_missing: Vec<Tool>,
    /// The compiler in use has core for the kernels' target.
    pub(crate) target: bool,
    /// rustup is there.
    pub(crate) rustup: bool,
    /// rustup was tried and failed.
    pub(crate) rustup_failed: bool,
    /// What is missing to build core with the distribution's packages.
    pub(crate) distribution_missing: Vec<&'static str>,
    /// `apt-get` is there.
    pub(crate) apt: bool,
    /// With which right packages can be installed.
    pub(crate) privilege: Privilege,
}

impl Facts {
    /// Finds them. Quick: it runs `rustc` once and reads no network.
    pub(crate) fn find(tools: &[Tool]) -> Result<Self> {
        Ok(Self {
            qemu: find("qemu-system-x86_64").is_some(),
            tools_missing: tools
                .iter()
                .copied()
                .filter(|tool| !tool.is_there())
                .collect(),
            target: has_target(Path::new("rustc"), KERNEL_TARGET),
            rustup: find("rustup").is_some(),
            rustup_failed: false,
            distribution_missing: distribution_missing(),
            apt: find("apt-get").is_some(),
            privilege: privilege(),
        })
    }
}

fn privilege() -> Privilege {
    if rustix::process::geteuid().is_root() {
        return Privilege::Root;
    }
    let sudo = find("sudo").is_some()
        && Run::new("sudo")
            .arguments(["-n", "true"])
            .deadline(Duration::from_secs(10))
            .succeed(|_| ())
            .is_ok();
    if sudo {
        Privilege::Sudo
    } else {
        Privilege::None
    }
}

/// The version of QEMU as it names itself; an error where it is too old.
pub(crate) fn qemu_version() -> Result<String> {
    let told = Run::new("qemu-system-x86_64")
        .arguments(["--version"])
        .deadline(Duration::from_secs(20))
        .succeed(|_| ())?;
    let first = told.lines.first().map_or("", String::as_str);
    let Some((major, minor)) = parse_version(first) else {
        bail!("`qemu-system-x86_64 --version` says `{first}`: no version in it");
    };
    if (major, minor) < OLDEST_QEMU {
        bail!(
            "QEMU {major}.{minor} is too old: {}.{} or newer is needed",
            OLDEST_QEMU.0,
            OLDEST_QEMU.1
        );
    }
    Ok(format!("QEMU {major}.{minor}"))
}

fn parse_version(line: &str) -> Option<(u32, u32)> {
    let rest = line.strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn the_emulators_version_is_read() {
        let line = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)";
        assert_eq!(parse_version(line), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("something else"), None);
    }
}
