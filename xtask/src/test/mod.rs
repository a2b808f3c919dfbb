//! `cargo xtask test`: everything that can be checked without a person.

mod checks;
mod delta;
mod facts;
mod handoffs;
mod host;
mod linux;
mod plugged;
mod queue;
mod scenarios;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build;
use crate::paths;
use crate::setup::{Tool, Toolchain};
use crate::ui::Screen;

/// What is to be tested.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TestOptions {
    /// The long ones too.
    #[arg(long)]
    pub(crate) full: bool,
    /// Only the one of this name or, where there is none, those whose name contains this; may be given
    /// several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// List all names and stop.
    #[arg(long)]
    pub(crate) list: bool,
    /// Keep the logs of scenarios that passed.
    #[arg(long)]
    pub(crate) keep_logs: bool,
}

impl TestOptions {
    /// Whether `name` was asked for. What is long only runs when asked for by name or with `--full`.
    fn wants(&self, name: &str, long: bool) -> bool {
        if self.only.is_empty() {
            return self.full || !long;
        }
        self.only.iter().any(|only| {
            // A whole name means just that, so that `chain` is not also all chains there are.
            if is_name(only) {
                name == only
            } else {
                name.contains(only.as_str())
            }
        })
    }
}

/// Whether there is a check or a scenario of just this name.
fn is_name(wanted: &str) -> bool {
    let checks = checks::ALL.iter().map(|check| check.name);
    let scenarios = scenarios::ALL.iter().map(|scenario| scenario.name);
    checks.chain(scenarios).any(|name| name == wanted)
}

/// What a check or a scenario found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// What passed.
    pub(crate) passed: u64,
    /// What failed.
    pub(crate) failed: u64,
    /// What could not be run here, and why.
    pub(crate) not_run: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.not_run.extend(other.not_run);
    }
}

/// What has to be there for the scenarios that are wanted, beside what every one needs.
pub(crate) fn tools(options: &TestOptions) -> Vec<Tool> {
    let mut tools = Vec::new();
    for scenario in scenarios::ALL {
        if options.wants(scenario.name, scenario.long) {
            for tool in scenario.boot.tools() {
                if !tools.contains(&tool) {
                    tools.push(tool);
                }
            }
        }
    }
    tools
}

/// Runs them.
pub(crate) fn run(options: &TestOptions, toolchain: &Toolchain, screen: &Screen) -> Result<()> {
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut durations: Vec<(&str, Duration)> = Vec::new();
    let logs = paths::target().join("test");
    fs::create_dir_all(&logs)?;

    screen.heading("Checks");
    for check in checks::ALL {
        if options.wants(check.name, check.long) {
            let since = Instant::now();
            tally.add(check.run(toolchain, screen, &logs));
            durations.push((check.name, since.elapsed()));
        }
    }
    let wanted: Vec<_> = scenarios::ALL
        .iter()
        .filter(|scenario| options.wants(scenario.name, scenario.long))
        .collect();
    if !wanted.is_empty() {
        screen.heading("Scenarios");
        let recipes = [&build::KERNELS[..], &[build::MINIMAL]].concat();
        let built = build::run(toolchain, &recipes, screen).and_then(|images| {
            if tools(options).contains(&Tool::UefiTarget) {
                build::uefi_boot(toolchain, &images, screen)?;
            }
            Ok(images)
        });
        match built {
            Ok(images) => {
                for scenario in wanted {
                    let since = Instant::now();
                    let passed = scenario.run(&images, screen, &logs, options.keep_logs);
                    tally.passed += u64::from(passed);
                    tally.failed += u64::from(!passed);
                    durations.push((scenario.name, since.elapsed()));
                }
            }
            Err(error) => {
                screen.line(&format!("  the kernels cannot be built: {error:#}"));
                tally.failed += wanted.len() as u64;
            }
        }
    }
    if durations.is_empty() {
        bail!("nothing is called like that: see --list");
    }
    durations.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    screen.line("");
    let slowest: Vec<String> = durations
        .iter()
        .take(5)
        .map(|(name, took)| format!("{name} {} s", took.as_secs()))
        .collect();
    screen.line(&format!(
        "{} s in all; longest: {}",
        begun.elapsed().as_secs(),
        slowest.join(", ")
    ));
    for why in &tally.not_run {
        screen.line(&format!("not run: {why}"));
    }
    // The last line, for people and for scripts.
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} failed", tally.failed);
    }
    Ok(())
}

/// Prints all names.
pub(crate) fn list() {
    let checks = checks::ALL
        .iter()
        .map(|check| (check.name, check.about, check.long));
    let scenarios = scenarios::ALL
        .iter()
        .map(|scenario| (scenario.name, scenario.about, scenario.long));
    for (name, about, long) in checks.chain(scenarios) {
        let long = if long { " (long: with --full)" } else { "" };
        println!("{name:<26} {about}{long}");
    }
}

#[cfg(test)]
mod tests {
    use super::{TestOptions, checks, scenarios};
    use std::collections::BTreeSet;

    fn options(only: &[&str], full: bool) -> TestOptions {
        TestOptions {
            full,
            only: only.iter().map(|&name| name.to_owned()).collect(),
            list: false,
            keep_logs: false,
        }
    }

    #[test]
    fn every_name_is_there_once() {
        let names: Vec<&str> = checks::ALL
            .iter()
            .map(|check| check.name)
            .chain(scenarios::ALL.iter().map(|scenario| scenario.name))
            .collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), distinct.len());
    }

    #[test]
    fn long_ones_run_when_asked_for() {
        assert!(options(&[], false).wants("quick", false));
        assert!(!options(&[], false).wants("slow", true));
        assert!(options(&[], true).wants("slow", true));
        assert!(options(&["slo"], false).wants("slow", true));
        assert!(!options(&["slo"], true).wants("quick", false));
    }
}
