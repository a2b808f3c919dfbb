//! The two toolchains that kernels can be built with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::Source;
use super::facts::Facts;
use crate::paths;
use crate::process::{Run, find};

/// The kernels' target.
pub(crate) const KERNEL_TARGET: &str = "x86_64-unknown-none";

/// The target of what UEFI starts.
pub(crate) const UEFI_TARGET: &str = "x86_64-unknown-uefi";

/// The oldest compiler that builds the workspace.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// Where the distribution keeps its compiler. Named in full: rustup's proxies often come first in
/// `PATH`.
const DISTRIBUTION_BIN: &str = "/usr/bin";

/// How kernels are built.
#[derive(Clone, Debug)]
pub(crate) enum Toolchain {
    /// The compiler in use has a ready-made core for the kernels' target.
    Ready,
    /// The distribution's compiler has none: core is built from the distribution's sources. A stable
    /// compiler does so only when told to accept its unstable options.
    FromSource {
        /// The compiler.
        rustc: PathBuf,
        /// The package manager that belongs to it.
        cargo: PathBuf,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => write!(f, "core ready-made for {KERNEL_TARGET}"),
            Self::FromSource { rustc, .. } => {
                write!(f, "core built from source by {}", rustc.display())
            }
        }
    }
}

impl Toolchain {
    /// The toolchain for `source`, once the set-up has nothing left to do.
    pub(super) fn choose(facts: &Facts, source: Source) -> Result<Self> {
        let ready = match source {
            Source::Rustup => true,
            Source::Auto => facts.target,
            Source::Distribution => false,
        };
        if ready {
            return Ok(Self::Ready);
        }
        let rustc = Path::new(DISTRIBUTION_BIN).join("rustc");
        if find("ld.lld").is_none() {
            bail!("`ld.lld` is not in PATH");
        }
        Ok(Self::FromSource {
            rustc,
            cargo: Path::new(DISTRIBUTION_BIN).join("cargo"),
        })
    }

    /// A cargo command in the workspace for the host.
    pub(crate) fn cargo(&self, command: &str) -> Run {
        let run = match self {
            Self::Ready => Run::new("cargo"),
            Self::FromSource { rustc, cargo, .. } => Run::new(cargo)
                .unset("RUSTUP_TOOLCHAIN")
                .set("RUSTC", rustc)
                .set("RUSTDOC", rustc.with_file_name("rustdoc")),
        };
        // What `cargo run` sets for this very program is no business of the packages it builds.
        run.unset("CARGO_MANIFEST_DIR")
            .unset("CARGO_PKG_NAME")
            .directory(paths::workspace())
            .arguments([command])
    }

    /// A cargo command in the workspace for the kernels' target.
    pub(crate) fn kernel_cargo(&self, command: &str) -> Run {
        self.cross_cargo(command, KERNEL_TARGET, "ld.lld")
    }

    /// A cargo command in the workspace for what UEFI starts.
    pub(crate) fn uefi_cargo(&self, command: &str) -> Run {
        self.cross_cargo(command, UEFI_TARGET, "lld-link")
    }

    /// A cargo command for `target`. The distribution ships no `rust-lld`, but `linker`.
    fn cross_cargo(&self, command: &str, target: &str, linker: &str) -> Run {
        let run = self.cargo(command).arguments(["--target", target]);
        let variable = target.to_uppercase().replace('-', "_");
        match self {
            Self::Ready => run,
            Self::FromSource { .. } => run
                .arguments(["-Zbuild-std=core,alloc,compiler_builtins"])
                .set("RUSTC_BOOTSTRAP", "1")
                .set(format!("CARGO_TARGET_{variable}_LINKER"), linker),
        }
    }

    /// Tells the two apart in the name of a directory: what one built is no use to the other.
    pub(crate) fn tag(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::FromSource { .. } => "from-source",
        }
    }
}

/// Whether `rustc` has core for `target`.
pub(crate) fn has_target(rustc: &Path, target: &str) -> bool {
    let Ok(told) = Run::new(rustc)
        .arguments(["--print", "target-libdir", "--target", target])
        .directory(paths::workspace())
        .deadline(Duration::from_secs(20))
        .succeed(|_| ())
    else {
        return false;
    };
    let Some(directory) = told.lines.first() else {
        return false;
    };
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// The packages that are missing to build core with the distribution's compiler.
pub(super) fn distribution_missing() -> Vec<&'static str> {
    let bin = Path::new(DISTRIBUTION_BIN);
    let mut missing = Vec::new();
    let rustc = bin.join("rustc");
    if !rustc_new_enough(&rustc) {
        missing.push("rustc-web");
    }
    if !bin.join("cargo").is_file() {
        missing.push("cargo-web");
    }
    // The sources must be those of the compiler itself; the package puts them below its own root.
    if !Path::new("/usr/lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        missing.push("rust-web-src");
    }
    if find("ld.lld").is_none() {
        missing.push("lld");
    }
    missing
}

fn rustc_new_enough(rustc: &Path) -> bool {
    rustc.is_file()
        && Run::new(rustc)
            .arguments(["--version"])
            .deadline(Duration::from_secs(20))
            .succeed(|_| ())
            .ok()
            .and_then(|told| parse_version(told.lines.first()?))
            .is_some_and(|version| version >= OLDEST_RUSTC)
}

fn parse_version(line: &str) -> Option<(u32, u32)> {
    let mut parts = line.strip_prefix("rustc ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn the_compilers_version_is_read() {
        let line = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)";
        assert_eq!(parse_version(line), Some((1, 96)));
        assert_eq!(parse_version("rustc 2.1.0-nightly"), Some((2, 1)));
        assert_eq!(parse_version("cargo 1.96.0"), None);
    }
}
