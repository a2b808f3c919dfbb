//! Checks that need no machine: format, lints, documentation, tests on the host, builds.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Tally;
use crate::bench;
use crate::coverage;
use crate::fuzz;
use crate::mutants::{self, Driver};
use crate::paths;
use crate::process::Run;
use crate::setup::{Tool, Toolchain, UEFI_TARGET};
use crate::ui::{Screen, Step};

/// The package that is for UEFI only.
const UEFI_PACKAGE: &str = "uefi-boot";

/// Packages that are for the kernels' target only.
const KERNEL_PACKAGES: [&str; 5] = ["alpha", "beta", "minimal", "moves", "baton-support"];

/// The libraries, in the order of their arrows.
const LIBRARIES: [&str; 4] = ["handoff-abi", "acpi-capture", "iommu", "partition-core"];

/// A check.
pub(super) struct Check {
    /// Its name.
    pub(super) name: &'static str,
    /// What it checks.
    pub(super) about: &'static str,
    /// Whether it only runs with `--full`.
    pub(super) long: bool,
    work: fn(&Job<'_>) -> Result<Tally>,
}

/// What a check has to work with.
struct Job<'a> {
    name: &'static str,
    toolchain: &'a Toolchain,
    screen: &'a Screen,
    step: &'a Step,
    logs: &'a Path,
}

/// All of them.
pub(super) const ALL: &[Check] = &[
    Check {
        name: "format",
        about: "rustfmt has nothing to change",
        long: false,
        work: format,
    },
    Check {
        name: "host-tests",
        about: "unit, property and model tests on the host",
        long: false,
        work: host_tests,
    },
    Check {
        name: "lint-host",
        about: "clippy has nothing to say about host code",
        long: false,
        work: lint_host,
    },
    Check {
        name: "lint-uefi",
        about: "clippy has nothing to say about what UEFI starts",
        long: true,
        work: lint_uefi,
    },
    Check {
        name: "lint-kernels",
        about: "clippy has nothing to say about the kernels",
        long: false,
        work: lint_kernels,
    },
    Check {
        name: "documentation",
        about: "the documentation builds without a warning",
        long: false,
        work: documentation,
    },
    Check {
        name: "bare-metal-builds",
        about: "each library builds for the kernels' target, with no features and with all",
        long: false,
        work: bare_metal_builds,
    },
    Check {
        name: "packages",
        about: "each library can be packaged",
        long: false,
        work: packages,
    },
    Check {
        name: "fuzz-smoke",
        about: "no fuzz target finds anything near its seeds",
        long: false,
        work: fuzz_smoke,
    },
    Check {
        name: "mutants",
        about: "the tests notice every third mistake that can be put into the VT-d driver",
        long: false,
        work: |job| try_mutants(job, Driver::Vtd, false),
    },
    Check {
        name: "coverage",
        about: "the tests run nearly every line of parsers, filter, planner and ledger",
        long: true,
        work: line_coverage,
    },
    Check {
        name: "amd-qtest",
        about: "the AMD-Vi driver drives the unit that QEMU emulates",
        long: true,
        work: amd_qtest,
    },
    Check {
        name: "counted-repeats",
        about: "what the bench counts of a swap is the same in every run, behind either vendor's unit",
        long: true,
        work: counted_repeats,
    },
    Check {
        name: "all-mutants",
        about: "the tests notice every mistake that is put into the VT-d driver",
        long: true,
        work: |job| try_mutants(job, Driver::Vtd, true),
    },
    Check {
        name: "amd-mutants",
        about: "the tests notice every mistake that is put into the AMD-Vi driver",
        long: true,
        work: |job| try_mutants(job, Driver::Amd, true),
    },
];

impl Check {
    /// Runs it.
    pub(super) fn run(&self, toolchain: &Toolchain, screen: &Screen, logs: &Path) -> Tally {
        let step = screen.step(self.name);
        let job = Job {
            name: self.name,
            toolchain,
            screen,
            step: &step,
            logs,
        };
        match (self.work)(&job) {
            Ok(tally) if tally.failed == 0 => {
                let text = match (&tally.not_run[..], tally.passed) {
                    ([], 1) => self.about.to_owned(),
                    ([], passed) => format!("{}: {passed}", self.about),
                    (why, _) => format!("NOT RUN: {}", why.join("; ")),
                };
                step.done(&text);
                tally
            }
            Ok(tally) => {
                step.failed(&format!(
                    "{} of {} failed",
                    tally.failed,
                    tally.failed + tally.passed
                ));
                tally
            }
            Err(error) => {
                step.failed(&format!("{error:#}"));
                Tally {
                    failed: 1,
                    ..Tally::default()
                }
            }
        }
    }
}

impl Job<'_> {
    /// Runs `run` with what is usual; its output goes to a log.
    fn run(&self, run: Run) -> Result<Tally> {
        self.logged(run, self.name)?;
        Ok(passed(1))
    }

    fn logged(&self, run: Run, log: &str) -> Result<Vec<String>> {
        let log = self.logs.join(format!("{log}.log"));
        let finished = run
            .log(&log)
            .deadline(Duration::from_secs(12 * 60))
            .succeed(|line| self.step.progress(line.trim()))?;
        Ok(finished.lines)
    }

    /// Whether cargo has the subcommand `name`. The distribution's packages come without some.
    fn has(&self, name: &str) -> bool {
        self.toolchain
            .cargo(name)
            .arguments(["--version"])
            .deadline(Duration::from_secs(30))
            .succeed(|_| ())
            .is_ok()
    }
}

fn passed(count: u64) -> Tally {
    Tally {
        passed: count,
        ..Tally::default()
    }
}

fn not_run(why: &str) -> Tally {
    Tally {
        not_run: vec![why.to_owned()],
        ..Tally::default()
    }
}

/// `--workspace` without what is for the kernels' target, or UEFI, only.
fn host(run: Run) -> Run {
    let packages = KERNEL_PACKAGES.iter().chain([&UEFI_PACKAGE]);
    let excluded = packages.flat_map(|name| ["--exclude", name]);
    run.arguments(["--workspace"]).arguments(excluded)
}

fn format(job: &Job<'_>) -> Result<Tally> {
    if !job.has("fmt") {
        return Ok(not_run("rustfmt is not installed"));
    }
    job.run(job.toolchain.cargo("fmt").arguments(["--all", "--check"]))
}

fn lint_host(job: &Job<'_>) -> Result<Tally> {
    if !job.has("clippy") {
        return Ok(not_run("clippy is not installed"));
    }
    job.run(host(job.toolchain.cargo("clippy")).arguments([
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn lint_kernels(job: &Job<'_>) -> Result<Tally> {
    if !job.has("clippy") {
        return Ok(not_run("clippy is not installed"));
    }
    let packages = KERNEL_PACKAGES.iter().flat_map(|name| ["--package", name]);
    job.run(
        job.toolchain
            .kernel_cargo("clippy")
            .arguments(packages)
            .arguments(["--", "-D", "warnings"]),
    )
}

fn lint_uefi(job: &Job<'_>) -> Result<Tally> {
    if !job.has("clippy") {
        return Ok(not_run("clippy is not installed"));
    }
    if !Tool::UefiTarget.is_there() {
        return Ok(not_run(&format!("there is no {UEFI_TARGET}")));
    }
    let run = job.toolchain.uefi_cargo("clippy");
    job.run(run.arguments(["--package", UEFI_PACKAGE, "--", "-D", "warnings"]))
}

fn documentation(job: &Job<'_>) -> Result<Tally> {
    let run = host(job.toolchain.cargo("doc"))
        .arguments(["--no-deps", "--document-private-items"])
        .set("RUSTDOCFLAGS", "-D warnings");
    job.run(run)
}

fn host_tests(job: &Job<'_>) -> Result<Tally> {
    let run = host(job.toolchain.cargo("test"));
    cargo_tests(job, run.arguments(["--no-fail-fast"]))
}

fn amd_qtest(job: &Job<'_>) -> Result<Tally> {
    let run = job.toolchain.cargo("test");
    let only = ["--package", "iommu-qtest", "--test", "amd"];
    cargo_tests(
        job,
        run.arguments(only).arguments(["--", "--include-ignored"]),
    )
}

/// More runs than the bench makes: who of the processors is ahead is another matter in each.
fn counted_repeats(job: &Job<'_>) -> Result<Tally> {
    const RUNS: usize = 5;
    bench::check_repeats(RUNS, job.toolchain, job.screen, job.step)?;
    Ok(passed(1))
}

fn cargo_tests(job: &Job<'_>, run: Run) -> Result<Tally> {
    let log = job.logs.join(format!("{}.log", job.name));
    let run = run.log(&log).deadline(Duration::from_secs(12 * 60));
    let mut tally = Tally::default();
    let finished = run.finish(|line| {
        if let Some((passed, failed)) = test_result(line) {
            tally.passed += passed;
            tally.failed += failed;
            job.screen.detail(line);
        } else if line.starts_with("test ") && line.ends_with("FAILED") {
            job.screen.detail(line);
        } else {
            job.step.progress(line.trim());
        }
    })?;
    if !finished.status.success() && tally.failed == 0 {
        bail!("cargo test failed before any test:\n{}", finished.tail());
    }
    if tally.passed == 0 {
        bail!("no test was run");
    }
    Ok(tally)
}

/// What passed and failed, from a test program's closing line.
fn test_result(line: &str) -> Option<(u64, u64)> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let count = |word: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some((count("passed")?, count("failed")?))
}

fn bare_metal_builds(job: &Job<'_>) -> Result<Tally> {
    let mut tally = Tally::default();
    for library in LIBRARIES {
        for features in ["--no-default-features", "--all-features"] {
            let run =
                job.toolchain
                    .kernel_cargo("build")
                    .arguments(["--package", library, features]);
            job.logged(run, &format!("bare-metal-{library}{features}"))
                .with_context(|| format!("{library} with {features}"))?;
            tally.passed += 1;
        }
    }
    Ok(tally)
}

/// The packages, and a build of all of them from what is in them alone: what one lacks shows.
///
/// `cargo package` would build them too, but from copies that it keeps in its home under the path
/// of the workspace and the version. A second run at that path builds the first run's sources.
fn packages(job: &Job<'_>) -> Result<Tally> {
    let directory = paths::target().join("package");
    remove_all(&directory)?;
    let names = LIBRARIES.iter().flat_map(|name| ["--package", name]);
    let run = job
        .toolchain
        .cargo("package")
        .arguments(names)
        .arguments(["--allow-dirty", "--no-verify"]);
    job.logged(run, job.name)?;

    let unpacked = directory.join("unpacked");
    fs::create_dir(&unpacked)?;
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [\"*\"]\n");
    manifest.push_str("[patch.crates-io]\n");
    for library in LIBRARIES {
        let package = only_package(&directory, library)?;
        let run = Run::new("tar")
            .arguments(["-xzf", &package, "--strip-components=1"])
            .arguments([format!("--directory=unpacked/{library}")])
            .directory(&directory);
        fs::create_dir(unpacked.join(library))?;
        job.logged(run, &format!("package-{library}"))?;
        manifest.push_str(&format!("{library} = {{ path = \"{library}\" }}\n"));
    }
    fs::write(unpacked.join("Cargo.toml"), manifest)?;
    fs::copy(
        paths::workspace().join("Cargo.lock"),
        unpacked.join("Cargo.lock"),
    )?;
    let run = job
        .toolchain
        .cargo("build")
        .arguments(["--workspace", "--all-features"])
        .set("CARGO_TARGET_DIR", directory.join("target"))
        .directory(&unpacked);
    job.logged(run, "packages-build")?;
    Ok(passed(LIBRARIES.len() as u64))
}

/// The file name of the one package of `library` in `directory`.
fn only_package(directory: &Path, library: &str) -> Result<String> {
    let mut found = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let version = name.strip_prefix(library).and_then(|rest| {
                rest.strip_prefix('-')?
                    .strip_suffix(".crate")?
                    .chars()
                    .next()
            });
            version.is_some_and(|first| first.is_ascii_digit())
        });
    match (found.next(), found.next()) {
        (Some(package), None) => Ok(package),
        _ => bail!("{} has not one package of {library}", directory.display()),
    }
}

/// Removes `directory` and what is in it, if it is there.
fn remove_all(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Every fuzz target on its seeds and on damaged ones, without a fuzzer and without C++.
fn fuzz_smoke(job: &Job<'_>) -> Result<Tally> {
    let run = job
        .toolchain
        .cargo("test")
        .arguments(["--lib", "--no-default-features"])
        .set("CARGO_TARGET_DIR", fuzz::target_directory())
        .directory(paths::workspace().join("fuzz"));
    let lines = job.logged(run, job.name)?;
    let (passed, failed) = lines
        .iter()
        .find_map(|line| test_result(line))
        .context("cargo test says nothing of its result")?;
    if passed == 0 {
        bail!("no test was run");
    }
    Ok(Tally {
        passed,
        failed,
        ..Tally::default()
    })
}

/// Nothing is installed for it: [`coverage::run`] does that where it is asked for.
fn line_coverage(job: &Job<'_>) -> Result<Tally> {
    let Some(tools) = coverage::Tools::find()? else {
        return Ok(not_run(&format!(
            "the LLVM tools are missing: {}",
            coverage::Tools::BY_HAND
        )));
    };
    let mut tally = Tally::default();
    for group in coverage::measure(&tools, job.step)? {
        let enough = group.enough();
        tally.passed += u64::from(enough);
        tally.failed += u64::from(!enough);
        job.screen
            .detail(&format!("{}: {}", group.name, group.figures()));
    }
    Ok(tally)
}

/// What noticed each of them, and after how long, is in the log.
fn try_mutants(job: &Job<'_>, driver: Driver, all: bool) -> Result<Tally> {
    let mut tally = Tally::default();
    let path = job.logs.join(format!("{}.log", job.name));
    let mut log = fs::File::create(&path).with_context(|| path.display().to_string())?;
    let begun = Instant::now();
    let mut unwritten = None;
    let result = mutants::run(
        &paths::workspace(),
        &paths::target(),
        driver,
        all,
        |outcome| {
            if outcome.caught() {
                tally.passed += 1;
            } else {
                tally.failed += 1;
                job.screen.detail(&outcome.to_string());
            }
            job.step.progress(&outcome.name);
            let line = writeln!(log, "{:>5} s  {outcome}", begun.elapsed().as_secs());
            unwritten = line.err().or(unwritten.take());
        },
    );
    if let Some(error) = unwritten {
        return Err(error).with_context(|| path.display().to_string());
    }
    match result {
        Ok(_) | Err(mutants::Error::Failed(_)) => Ok(tally),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::test_result;

    #[test]
    fn a_closing_line_says_what_passed_and_failed() {
        let line = "test result: FAILED. 54 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.80s";
        assert_eq!(test_result(line), Some((54, 1)));
        let line = "test result: ok. 7 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(test_result(line), Some((7, 0)));
        assert_eq!(test_result("test a::b ... ok"), None);
    }
}
