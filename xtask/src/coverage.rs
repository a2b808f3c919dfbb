//! `cargo xtask coverage`: which lines of the parts that read what others wrote the tests run.
//!
//! The compiler in use instruments, and the LLVM tools that rustup has for just that compiler read what
//! comes of it: they are the one thing that has to be installed. Tests with the corpus are left out, so
//! that the figures are of the project's own tests and the same everywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{Run, find};
use crate::ui::{Screen, Step};

/// The least share of the lines of each group that tests have to run, in percent.
const LEAST: f64 = 95.0;

/// The packages whose tests are run.
const PACKAGES: [&str; 3] = ["handoff-abi", "acpi-capture", "partition-core"];

/// What the figures are told for: a name, and the files or directories below the workspace.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "parsers",
        &[
            "acpi-capture/src/boot/",
            "acpi-capture/src/capture/",
            "acpi-capture/src/memory/",
            "acpi-capture/src/smbios.rs",
            "acpi-capture/src/table/",
            "handoff-abi/src/header.rs",
            "handoff-abi/src/read.rs",
            "handoff-abi/src/records.rs",
            "handoff-abi/src/version.rs",
        ],
    ),
    (
        "filter",
        &["acpi-capture/src/aml.rs", "acpi-capture/src/partition/"],
    ),
    ("planner", &["partition-core/src/plan/"]),
    ("ledger", &["partition-core/src/ledger.rs"]),
];

/// The tools that read what an instrumented program leaves.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    profdata: PathBuf,
    cov: PathBuf,
}

/// How often each line of each file was run; the paths are those below the workspace.
type Lines = BTreeMap<String, BTreeMap<usize, u64>>;

/// The figures of a group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: &'static str,
    lines: usize,
    covered: usize,
    /// The lines that no test runs, by file.
    left: BTreeMap<String, Vec<usize>>,
}

impl Group {
    fn new(name: &'static str, paths: &[&str], lines: &Lines) -> Self {
        let mut group = Self {
            name,
            lines: 0,
            covered: 0,
            left: BTreeMap::new(),
        };
        let belongs = |file: &str| paths.iter().any(|path| file.starts_with(path));
        for (file, counts) in lines.iter().filter(|(file, _)| belongs(file)) {
            group.lines += counts.len();
            let left: Vec<usize> = counts
                .iter()
                .filter(|&(_, &count)| count == 0)
                .map(|(&line, _)| line)
                .collect();
            group.covered += counts.len() - left.len();
            if !left.is_empty() {
                group.left.insert(file.clone(), left);
            }
        }
        group
    }

    fn percent(&self) -> f64 {
        100.0 * self.covered as f64 / self.lines.max(1) as f64
    }

    /// Whether enough of it is covered. A group without a line is one whose files have moved.
    pub(crate) fn enough(&self) -> bool {
        self.lines > 0 && self.percent() >= LEAST
    }

    /// The figures as a line.
    pub(crate) fn figures(&self) -> String {
        format!(
            "{} of {} lines, {:.2} %",
            self.covered,
            self.lines,
            self.percent()
        )
    }

    /// What is left: a line for each file.
    pub(crate) fn left(&self) -> impl Iterator<Item = String> {
        self.left
            .iter()
            .map(|(file, lines)| format!("{file}: {}", ranges(lines)))
    }
}

/// `3-5, 9` for 3, 4, 5 and 9.
fn ranges(lines: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &line in lines {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == line => *last = line,
            _ => ranges.push((line, line)),
        }
    }
    let shown: Vec<String> = ranges
        .iter()
        .map(|&(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    shown.join(", ")
}

/// Measures, prints, and fails where a group has too little.
pub(crate) fn run(no_install: bool, screen: &Screen) -> Result<()> {
    screen.heading("Line coverage");
    let tools = match Tools::find()? {
        Some(tools) => tools,
        None if no_install => bail!(
            "rustup's component llvm-tools is missing and nothing may be installed; run by hand:\n    {}",
            Tools::BY_HAND
        ),
        None => Tools::install(screen)?,
    };
    let step = screen.step("tests, instrumented");
    let groups = measure(&tools, &step)?;
    step.done("every line is counted");
    let mut little = Vec::new();
    for group in &groups {
        screen.line(&format!("  {:<10} {}", group.name, group.figures()));
        for left in group.left() {
            screen.detail(&left);
        }
        if !group.enough() {
            little.push(group.name);
        }
    }
    if !little.is_empty() {
        bail!("less than {LEAST} % of {}", little.join(", "));
    }
    Ok(())
}

impl Tools {
    /// What installs them.
    pub(crate) const BY_HAND: &str = "rustup component add llvm-tools";

    /// The tools that belong to the compiler in use, where they are there.
    pub(crate) fn find() -> Result<Option<Self>> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let said = Run::new(rustc)
            .arguments(["--print", "target-libdir"])
            .directory(paths::workspace())
            .deadline(Duration::from_secs(30))
            .succeed(|_| ())?;
        let libraries = said
            .lines
            .last()
            .context("rustc does not say where its libraries are")?;
        let bin = Path::new(libraries).with_file_name("bin");
        let tools = Self {
            profdata: bin.join("llvm-profdata"),
            cov: bin.join("llvm-cov"),
        };
        let there = tools.profdata.is_file() && tools.cov.is_file();
        Ok(there.then_some(tools))
    }

    fn install(screen: &Screen) -> Result<Self> {
        if find("rustup").is_none() {
            bail!(
                "the LLVM tools of the compiler in use are missing. They come with rustup, and \
                 there is none; nothing else here needs it"
            );
        }
        let step = screen.step("Set-up");
        let mut words = Self::BY_HAND.split(' ');
        let program = words.next().context("there is a command")?;
        Run::new(program)
            .arguments(words)
            .unset("RUST_BACKTRACE")
            .directory(paths::workspace())
            .deadline(Duration::from_secs(5 * 60))
            .succeed(|line| step.progress(line))?;
        let tools =
            Self::find()?.context("rustup was asked for llvm-tools and has not got them")?;
        step.done("installed rustup's component llvm-tools");
        Ok(tools)
    }
}

/// A cargo command whose programs count what they run.
fn cargo(target: &Path) -> Run {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = PACKAGES.iter().flat_map(|name| ["--package", name]);
    Run::new(cargo)
        .unset("CARGO_MANIFEST_DIR")
        .unset("CARGO_PKG_NAME")
        .unset("CARGO_ENCODED_RUSTFLAGS")
        .set("RUSTFLAGS", "-Cinstrument-coverage")
        .set("CARGO_TARGET_DIR", target)
        .set("LLVM_PROFILE_FILE", target.join("profiles/%m-%p.profraw"))
        // Tests with the corpus say that they are skipped.
        .set("BATON_CORPUS", target.join("no-corpus"))
        .directory(paths::workspace())
        .deadline(Duration::from_secs(30 * 60))
        .arguments(["test", "--lib", "--tests"])
        .arguments(packages)
}

/// Runs the tests and counts. The figures are in the order of [`GROUPS`].
pub(crate) fn measure(tools: &Tools, step: &Step) -> Result<Vec<Group>> {
    let target = paths::target().join("coverage");
    let profiles = target.join("profiles");
    // What an earlier run counted is of an earlier state of the sources.
    if profiles.exists() {
        fs::remove_dir_all(&profiles)?;
    }
    cargo(&target).succeed(|line| step.progress(line.trim()))?;
    let built = cargo(&target)
        .arguments(["--no-run", "--message-format=json"])
        .succeed(|_| ())?;
    let programs = programs(&built.lines)?;

    let mut raw = Vec::new();
    for entry in fs::read_dir(&profiles).context("the tests left no counts")? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "profraw") {
            raw.push(path);
        }
    }
    let merged = target.join("merged.profdata");
    Run::new(&tools.profdata)
        .arguments(["merge", "--sparse", "-o"])
        .arguments([&merged])
        .arguments(raw)
        .succeed(|_| ())?;
    let told = Run::new(&tools.cov)
        .arguments(["export", "--format=lcov", "--instr-profile"])
        .arguments([&merged])
        .arguments(programs.iter().flat_map(|program| ["--object", program]))
        .succeed(|_| ())?;
    let mut lines = counts(&told.lines);
    for (file, counts) in &mut lines {
        let path = paths::workspace().join(file);
        let source =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let end = before_tests(&source);
        counts.retain(|&line, _| line <= end);
    }
    Ok(GROUPS
        .iter()
        .map(|(name, paths)| Group::new(name, paths, &lines))
        .collect())
}

/// The test programs that cargo names in its messages.
fn programs(messages: &[String]) -> Result<Vec<String>> {
    let mut programs = Vec::new();
    for line in messages.iter().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if let Some(program) = message["executable"].as_str() {
            programs.push(program.to_owned());
        }
    }
    if programs.is_empty() {
        bail!("cargo names no test program");
    }
    Ok(programs)
}

/// The counts of the workspace's own sources in LLVM's words: `SF:` is a file, `DA:` a line and how
/// often it was run. Files of tests count for nothing.
fn counts(lcov: &[String]) -> Lines {
    let root = paths::workspace();
    let mut lines = Lines::new();
    let mut file = None;
    for line in lcov {
        if let Some(path) = line.strip_prefix("SF:") {
            file = Path::new(path)
                .strip_prefix(&root)
                .ok()
                .and_then(Path::to_str)
                .filter(|path| !path.contains("/tests/") && !path.ends_with("/tests.rs"));
        } else if let (Some(file), Some(rest)) = (file, line.strip_prefix("DA:"))
            && let Some((line, count)) = rest.split_once(',')
            && let (Ok(line), Ok(count)) = (line.parse(), count.parse())
        {
            lines
                .entry(file.to_owned())
                .or_default()
                .insert(line, count);
        }
    }
    lines
}

/// The last line before the tests that a source ends with, or its last line.
fn before_tests(source: &str) -> usize {
    let lines: Vec<&str> = source.lines().collect();
    lines
        .windows(2)
        .position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        })
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{GROUPS, Group, before_tests, counts, programs, ranges};
    use crate::paths;

    fn words(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn lines_are_counted_by_file_and_tests_are_left_out() {
        let root = paths::workspace();
        let root = root.display();
        let lcov = words(&[
            &format!("SF:{root}/a/src/ledger.rs"),
            "FN:3,name",
            "DA:3,1",
            "DA:4,0",
            "end_of_record",
            &format!("SF:{root}/a/tests/ledger.rs"),
            "DA:1,0",
            "end_of_record",
            "SF:/elsewhere/src/lib.rs",
            "DA:1,0",
        ]);
        let expected = BTreeMap::from([("a/src/ledger.rs".to_owned(), [(3, 1), (4, 0)].into())]);
        assert_eq!(counts(&lcov), expected);
    }

    #[test]
    fn a_group_has_the_lines_of_its_files_and_fails_below_the_least() {
        let lines = BTreeMap::from([
            ("a/one.rs".to_owned(), (1..=19).map(|n| (n, 1)).collect()),
            ("a/two.rs".to_owned(), BTreeMap::from([(7, 0)])),
            ("b/one.rs".to_owned(), BTreeMap::from([(1, 0)])),
        ]);
        let group = Group::new("a", &["a/"], &lines);
        assert_eq!(group.figures(), "19 of 20 lines, 95.00 %");
        assert_eq!(group.left().collect::<Vec<_>>(), ["a/two.rs: 7"]);
        assert!(group.enough());
        assert!(!Group::new("b", &["a/", "b/"], &lines).enough());
        assert!(!Group::new("moved", &["c/"], &lines).enough());
    }

    #[test]
    fn every_group_is_where_it_is_said_to_be() {
        for (name, paths) in GROUPS {
            for path in paths {
                assert!(paths::workspace().join(path).exists(), "{name}: {path}");
            }
        }
    }

    #[test]
    fn lines_in_a_row_are_told_as_one_range() {
        assert_eq!(ranges(&[3, 4, 5, 9, 11, 12]), "3-5, 9, 11-12");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn the_tests_that_a_source_ends_with_do_not_count() {
        assert_eq!(
            before_tests("fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n"),
            2
        );
        assert_eq!(before_tests("#[cfg(test)]\nmod tests;\nfn a() {}\n"), 3);
    }

    #[test]
    fn the_programs_are_those_that_cargo_names() {
        let messages = words(&[
            "   Compiling a",
            r#"{"reason":"compiler-artifact","executable":null}"#,
            r#"{"reason":"compiler-artifact","executable":"/t/debug/deps/it-1"}"#,
        ]);
        assert_eq!(programs(&messages).unwrap(), ["/t/debug/deps/it-1"]);
        assert!(programs(&messages[..2]).is_err());
    }
}
