//! `cargo xtask fuzz`: all fuzz targets in turn, on the compiler in use.
//!
//! LLVM's coverage instrumentation is asked for by code generation options that a stable compiler
//! has; `libfuzzer-sys` brings libFuzzer as source. So neither a nightly compiler nor cargo-fuzz is
//! needed, only a C++ compiler. Address sanitizing would need a nightly compiler: the parsers forbid
//! unsafe code, and overflow checks and assertions are on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{Run, find};
use crate::ui::Screen;

/// What is to be fuzzed, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FuzzOptions {
    /// Minutes in all; each target gets its part.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Only those whose name is this; may be given several times.
    #[arg(long, value_name = "TARGET")]
    only: Vec<String>,
    /// Run the target on this input once, and stop.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// The least time that is any use to a target.
const LEAST: u64 = 5;

/// Instruments every edge, and what is compared there.
const INSTRUMENTED: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing -Cdebug-assertions=on -Ccodegen-units=1";

/// What libFuzzer said at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    edges: u64,
    inputs: u64,
    /// What it wrote down because it found something.
    found: Vec<String>,
}

impl Figures {
    /// Takes in a line of libFuzzer's.
    fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        if let Some(count) = words
            .clone()
            .next()
            .and_then(|word| word.strip_prefix('#')?.parse().ok())
        {
            self.executions = self.executions.max(count);
            while let Some(word) = words.next() {
                match word {
                    "cov:" => self.edges = next(&mut words).unwrap_or(self.edges),
                    "corp:" => self.inputs = next(&mut words).unwrap_or(self.inputs),
                    _ => {}
                }
            }
        }
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = count.trim().parse().unwrap_or(self.executions);
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.found.push(path.trim().to_owned());
        }
    }
}

/// The number at the start of the next word: `corp: 12/340b` has 12 inputs.
fn next<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u64> {
    words.next()?.split('/').next()?.parse().ok()
}

/// Where the fuzz workspace is.
fn directory() -> PathBuf {
    paths::workspace().join("fuzz")
}

/// Where it is built: apart from the workspace's own, which is built with other options.
pub(crate) fn target_directory() -> PathBuf {
    paths::target().join("fuzz")
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let directory = directory().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Those of `all` that are asked for.
fn chosen(all: &[String], only: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = only.iter().find(|name| !all.contains(name)) {
        bail!(
            "no target is called {unknown}; there are {}",
            all.join(", ")
        );
    }
    let wanted = |name: &&String| only.is_empty() || only.contains(name);
    Ok(all.iter().filter(wanted).cloned().collect())
}

fn cargo(command: &str) -> Run {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Run::new(cargo)
        .unset("CARGO_MANIFEST_DIR")
        .unset("CARGO_PKG_NAME")
        .unset("CARGO_ENCODED_RUSTFLAGS")
        .set("CARGO_TARGET_DIR", target_directory())
        .directory(directory())
        .deadline(Duration::from_secs(40 * 60))
        .arguments([command])
}

/// The triple of this machine: with `--target`, build scripts are not instrumented.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Run::new(rustc)
        .arguments(["-vV"])
        .deadline(Duration::from_secs(30))
        .succeed(|_| ())?;
    let host = said
        .lines
        .iter()
        .find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

/// Builds the targets, and runs each of them on its part of the time.
pub(crate) fn run(options: &FuzzOptions, screen: &Screen) -> Result<()> {
    let names = chosen(&targets()?, &options.only)?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if find(&compiler).is_none() {
        bail!(
            "libFuzzer is built with a C++ compiler and there is no `{compiler}`: install one \
             (Debian: apt-get install g++) or set CXX; nothing else is needed, and nothing is \
             installed here"
        );
    }
    screen.heading("Fuzzing");
    let built = build(&names, screen)?;
    if let Some(input) = &options.input {
        let [name] = names.as_slice() else {
            bail!("--input needs one target: --only TARGET");
        };
        let input = fs::canonicalize(input).with_context(|| input.display().to_string())?;
        Run::new(built.join(name))
            .arguments([input])
            .deadline(Duration::from_secs(60))
            .succeed(|line| screen.detail(line))?;
        screen.line("  the input is handled: nothing is found with it");
        return Ok(());
    }
    let seconds = (options.minutes * 60 / names.len().max(1) as u64).max(LEAST);
    let mut all = Figures::default();
    for name in &names {
        let figures = fuzz(&built, name, seconds, screen)?;
        all.executions += figures.executions;
        for found in figures.found {
            screen.line(&format!(
                "      found {found}\n      again: cargo xtask fuzz --only {name} --input {found}"
            ));
            all.found.push(found);
        }
    }
    screen.line(&format!(
        "{} targets, {seconds} s each: {} executions, {} findings",
        names.len(),
        all.executions,
        all.found.len()
    ));
    if !all.found.is_empty() {
        bail!(
            "{} inputs are findings: {}",
            all.found.len(),
            all.found.join(", ")
        );
    }
    Ok(())
}

/// Builds the targets and writes their seeds. Says where the targets are.
fn build(names: &[String], screen: &Screen) -> Result<PathBuf> {
    let step = screen.step("seeds");
    cargo("run")
        .arguments(["--no-default-features", "--bin", "seeds", "--", "corpus"])
        .succeed(|line| step.progress(line.trim()))?;
    step.done("written to fuzz/corpus");
    let step = screen.step("instrumented build");
    let host = host()?;
    let bins = names.iter().flat_map(|name| ["--bin", name]);
    cargo("build")
        .arguments(["--release", "--target", &host])
        .arguments(bins)
        .set("RUSTFLAGS", INSTRUMENTED)
        .succeed(|line| step.progress(line.trim()))?;
    step.done(&format!("{} targets", names.len()));
    Ok(target_directory().join(host).join("release"))
}

fn fuzz(built: &Path, name: &str, seconds: u64, screen: &Screen) -> Result<Figures> {
    let corpus = directory().join("corpus").join(name);
    let artifacts = directory().join("artifacts").join(name);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let step = screen.step(name);
    let mut figures = Figures::default();
    let finished = Run::new(built.join(name))
        .arguments([&corpus])
        .arguments([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", artifacts.display()),
            // A single input of a few KiB: a second is a hang.
            "-timeout=5".to_owned(),
            "-rss_limit_mb=1024".to_owned(),
            "-print_final_stats=1".to_owned(),
        ])
        .deadline(Duration::from_secs(seconds + 120))
        .finish(|line| {
            figures.line(line);
            if line.starts_with('#') {
                step.progress(line);
            }
        })?;
    let text = format!(
        "{} executions, {} edges, {} inputs",
        figures.executions, figures.edges, figures.inputs
    );
    if finished.status.success() && figures.found.is_empty() {
        step.done(&text);
    } else {
        step.failed(&text);
        for line in &finished.lines {
            if line.contains("panicked at") || line.contains("ERROR: libFuzzer") {
                screen.detail(line);
            }
        }
        if figures.found.is_empty() {
            bail!(
                "{name} ended badly ({}):\n{}",
                finished.status,
                finished.tail()
            );
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::{Figures, chosen, targets};

    #[test]
    fn figures_are_read_from_what_libfuzzer_says() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 120 ft: 130 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#4096\tNEW    cov: 400 ft: 900 corp: 12/340b lim: 4 exec/s: 2048 rss: 33Mb",
            "artifact_prefix='/x/'; Test unit written to /x/crash-12",
            "stat::number_of_executed_units: 5000",
        ] {
            figures.line(line);
        }
        let expected = Figures {
            executions: 5000,
            edges: 400,
            inputs: 12,
            found: vec!["/x/crash-12".to_owned()],
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn every_target_has_an_entry_in_the_manifest_and_a_smoke_run() {
        let manifest = std::fs::read_to_string(super::directory().join("Cargo.toml")).unwrap();
        let seeds = std::fs::read_to_string(super::directory().join("src/seeds.rs")).unwrap();
        let all = targets().unwrap();
        assert!(all.len() >= 12);
        for name in &all {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
            assert!(seeds.contains(&format!("(\"{name}\", ")), "{name}");
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_refused() {
        let all = ["a".to_owned(), "b".to_owned()];
        assert_eq!(chosen(&all, &[]).unwrap(), all);
        assert_eq!(chosen(&all, &all[1..]).unwrap(), all[1..]);
        let error = chosen(&all, &["c".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("there are a, b"));
    }
}
