//! Builds delta, the example kernel in C, with the C compiler that linking needs anyway.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths;
use crate::process::Run;

/// The C standard and what a kernel without a C library, FPU state or red zone needs.
const FLAGS: [&str; 12] = [
    "-std=c11",
    "-O2",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pie",
    "-mcmodel=kernel",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-asynchronous-unwind-tables",
    "-nostdlib",
    "-static",
    "-no-pie",
];
const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"];
const LINKER: &str = "-Wl,--build-id=none,-zmax-page-size=4096,-znoexecstack";

/// Builds it into `directory` and returns its image.
pub(super) fn delta(directory: &Path) -> Result<PathBuf> {
    let sources = paths::workspace().join("examples").join("delta");
    let include = paths::workspace().join("handoff-abi").join("include");
    let image = directory.join("delta.elf");
    let mut inputs: Vec<PathBuf> = fs::read_dir(&sources)
        .with_context(|| format!("cannot list {}", sources.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            matches!(kind, Some("c" | "S"))
        })
        .collect();
    inputs.sort();
    let mut script = OsString::from("-Wl,-T,");
    script.push(sources.join("link.ld"));
    Run::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .arguments(FLAGS)
        .arguments(WARNINGS)
        .arguments(["-I".into(), include.into_os_string()])
        .arguments([LINKER])
        .arguments([script])
        .arguments(inputs)
        .arguments(["-o".into(), image.clone().into_os_string()])
        .deadline(Duration::from_secs(60))
        .succeed(|_| ())?;
    Ok(image)
}
