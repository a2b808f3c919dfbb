//! Seeded mistakes in the IOMMU drivers: each must be caught by the strict tests.
//!
//! A mutant is a file in `iommu/mutants` that names a source file, says what it breaks, and gives a
//! snippet of the source with its replacement. The crates concerned are copied to a workspace of
//! their own under `target/mutants`, one mutant at a time is applied there, and the tests are run
//! against it: first those that its file names as likely to notice, and all of them where those do
//! not. A mutant that does not apply, does not compile or that no test notices is an error.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the copied workspace is made of.
const CRATES: [&str; 3] = ["handoff-abi", "iommu", "iommu/model"];
/// Where it has them. Cargo tells what it built by names, versions and places inside the workspace:
/// with the places of the repository, the next build there would find mutants ready-made.
const PLACE: &str = "mutant";
/// What the names of AMD-Vi's mutants begin with.
const AMD: &str = "amd-";
/// The longest a run of the tests may take. A mutant that hangs them is caught by that.
const LIMIT: Duration = Duration::from_secs(300);
/// The longest a build may take. Nothing is learnt from a build that takes longer.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// How many random cases each property is tried with.
const CASES: &str = "48";

/// Why the run failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// A file could not be read, written or copied, or a command not be started.
    Io(PathBuf, io::Error),
    /// A mutant's file is not in the form it should be.
    Malformed(PathBuf, &'static str),
    /// The tests fail, or do not compile, without any mutant.
    Baseline(String),
    /// There is nothing to run, or nothing of the name that was asked for.
    NoMutants,
    /// Mutants that did not apply, did not compile or survived.
    Failed(Vec<Outcome>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Malformed(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Baseline(output) => write!(f, "the tests fail without a mutant:\n{output}"),
            Self::NoMutants => f.write_str("no such mutants"),
            Self::Failed(outcomes) => {
                writeln!(f, "{} mutants are not caught:", outcomes.len())?;
                outcomes.iter().try_for_each(|o| writeln!(f, "  {o}"))
            }
        }
    }
}

impl std::error::Error for Error {}

/// How it went with one mutant.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// These tests failed.
    Caught(Vec<String>),
    /// The tests did not end in time.
    Hung,
    /// Its snippet is not in the source exactly once.
    DoesNotApply(usize),
    /// The compiler refuses it.
    DoesNotCompile(String),
    /// Every test passed.
    Survived,
}

/// One mutant and how it went.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The mutant's name: its file's, without the extension.
    pub(crate) name: String,
    /// What it breaks.
    pub(crate) breaks: String,
    /// How it went.
    pub(crate) verdict: Verdict,
}

impl Outcome {
    /// Whether the tests noticed.
    #[must_use]
    pub(crate) fn caught(&self) -> bool {
        matches!(self.verdict, Verdict::Caught(_) | Verdict::Hung)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): ", self.name, self.breaks)?;
        match &self.verdict {
            Verdict::Caught(tests) => {
                let first = tests.first().map_or("?", String::as_str);
                write!(f, "caught by {} tests, {first}", tests.len())
            }
            Verdict::Hung => f.write_str("caught: the tests never ended"),
            Verdict::DoesNotApply(times) => {
                write!(f, "does not apply: its snippet is there {times} times")
            }
            Verdict::DoesNotCompile(output) => write!(f, "does not compile:\n{output}"),
            Verdict::Survived => f.write_str("SURVIVED"),
        }
    }
}

/// Whose mutants are to be tried. What both drivers share is tried with VT-d's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// VT-d.
    Vtd,
    /// AMD-Vi.
    Amd,
}

impl Driver {
    /// The integration test of `iommu` for it.
    const fn tests(self) -> &'static str {
        match self {
            Self::Vtd => "strict_vtd",
            Self::Amd => "strict_amd",
        }
    }

    fn owns(self, mutant: &Mutant) -> bool {
        mutant.name.starts_with(AMD) == (self == Self::Amd)
    }
}

/// Runs the mutants of a driver: all, or of each three neighbours one. `root` is the repository,
/// `target` where cargo builds what both have in common, and `progress` is told of each as it is
/// done.
///
/// # Errors
/// See [`Error`]. All mutants are tried before [`Error::Failed`] is given.
pub(crate) fn run(
    root: &Path,
    target: &Path,
    driver: Driver,
    all: bool,
    mut progress: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>, Error> {
    let mut mutants = Mutant::all(&root.join("iommu/mutants"))?;
    mutants.retain(|mutant| driver.owns(mutant));
    if !all {
        let mut keep = [true, false, false].into_iter().cycle();
        mutants.retain(|_| keep.next() == Some(true));
    }
    if mutants.is_empty() {
        return Err(Error::NoMutants);
    }
    let base = root.join("target/mutants");
    fs::create_dir_all(&base).map_err(at(&base))?;
    // Two runs in one place would judge each other's mutants.
    let path = base.join("lock");
    let lock = fs::File::create(&path).map_err(at(&path))?;
    lock.lock().map_err(at(&path))?;
    let workspace = Workspace::copy(root, &base, target)?;
    let tests: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.test(driver)).collect();
    for test in tests {
        match workspace.test(test, &[])? {
            Verdict::Survived => {}
            other => {
                let outcome = Outcome {
                    name: format!("no mutant, {test}"),
                    breaks: "nothing".into(),
                    verdict: other,
                };
                return Err(Error::Baseline(outcome.to_string()));
            }
        }
    }
    let mut outcomes = Vec::new();
    for mutant in mutants {
        let verdict = workspace.with(&mutant, driver)?;
        let outcome = Outcome {
            name: mutant.name,
            breaks: mutant.breaks,
            verdict,
        };
        progress(&outcome);
        outcomes.push(outcome);
    }
    let failed: Vec<_> = outcomes.iter().filter(|o| !o.caught()).cloned().collect();
    if failed.is_empty() {
        Ok(outcomes)
    } else {
        Err(Error::Failed(failed))
    }
}

/// A mistake to make.
struct Mutant {
    name: String,
    breaks: String,
    file: PathBuf,
    /// The integration test that has to notice, where it is not the driver's.
    test: Option<String>,
    /// What the names of tests begin with, or have in them, that are likely to notice.
    likely: Vec<String>,
    original: String,
    replacement: String,
}

impl Mutant {
    /// The integration test of `iommu` that has to notice.
    fn test(&self, driver: Driver) -> &str {
        self.test.as_deref().unwrap_or(driver.tests())
    }

    fn all(directory: &Path) -> Result<Vec<Self>, Error> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory).map_err(at(directory))? {
            let path = entry.map_err(at(directory))?.path();
            if path.extension().is_some_and(|e| e == "mutant") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// The form: `file:` and `breaks:` lines, a `test:` line where it is not the driver's test that
    /// has to notice, a `likely:` line with parts of the names of tests that should, `--- original`, the snippet, `+++ mutant`, the replacement. The last end of line
    /// of both belongs to the form, so that a snippet can end within a line.
    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(at(path))?;
        let malformed = |why| Error::Malformed(path.into(), why);
        let (head, rest) = text
            .split_once("--- original\n")
            .ok_or(malformed("no line `--- original`"))?;
        let (original, replacement) = rest
            .split_once("+++ mutant\n")
            .ok_or(malformed("no line `+++ mutant`"))?;
        let field = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
        };
        if original.trim().is_empty() || original == replacement {
            return Err(malformed("the snippet is empty or not changed"));
        }
        Ok(Self {
            name: path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default(),
            breaks: field("breaks:").ok_or(malformed("no line `breaks:`"))?,
            file: field("file:").ok_or(malformed("no line `file:`"))?.into(),
            test: field("test:"),
            likely: field("likely:")
                .map(|names| names.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            original: without_end(original),
            replacement: without_end(replacement),
        })
    }
}

fn without_end(text: &str) -> String {
    text.strip_suffix('\n').unwrap_or(text).to_owned()
}

/// The copy that mutants are applied to.
struct Workspace {
    root: PathBuf,
    base: PathBuf,
    target: PathBuf,
}

impl Workspace {
    fn copy(from: &Path, base: &Path, target: &Path) -> Result<Self, Error> {
        let root = base.join("workspace");
        if root.exists() {
            fs::remove_dir_all(&root).map_err(at(&root))?;
        }
        for name in CRATES {
            copy_directory(&from.join(name), &root.join(PLACE).join(name))?;
        }
        let lock = from.join("Cargo.lock");
        fs::copy(&lock, root.join("Cargo.lock")).map_err(at(&lock))?;
        let manifest = from.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).map_err(at(&manifest))?;
        let path = root.join("Cargo.toml");
        fs::write(&path, reduced_manifest(&text)).map_err(at(&path))?;
        Ok(Self {
            root,
            base: base.to_path_buf(),
            target: target.to_path_buf(),
        })
    }

    /// The verdict on one mutant; the source is put back as it was.
    fn with(&self, mutant: &Mutant, driver: Driver) -> Result<Verdict, Error> {
        let path = self.root.join(PLACE).join(&mutant.file);
        let source = fs::read_to_string(&path).map_err(at(&path))?;
        let times = source.matches(&mutant.original).count();
        if times != 1 {
            return Ok(Verdict::DoesNotApply(times));
        }
        let mutated = source.replacen(&mutant.original, &mutant.replacement, 1);
        fs::write(&path, mutated).map_err(at(&path))?;
        let verdict = self.test(mutant.test(driver), &mutant.likely);
        fs::write(&path, source).map_err(at(&path))?;
        verdict
    }

    fn cargo<'a>(&self, test: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command
            .args(["test", "--offline", "--quiet", "-p", "iommu"])
            .args(["--test", test])
            .args(arguments)
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("PROPTEST_CASES", CASES)
            // The same cases each time, so that the verdicts repeat.
            .env("PROPTEST_RNG_SEED", "1")
            // A failing case of a mutant is nobody's regression, and need not be small.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
        command
    }

    /// Builds an integration test and runs what is likely to fail of it, and all of it where nothing
    /// does. `Survived` says that all of it passed.
    fn test(&self, test: &str, likely: &[String]) -> Result<Verdict, Error> {
        let (built, output) = self.run(self.cargo(test, ["--no-run"]), "build", BUILD_LIMIT)?;
        if !built.is_some_and(|status| status.success()) {
            return Ok(Verdict::DoesNotCompile(last_lines(&output, 30)));
        }
        if !likely.is_empty() {
            let names = likely.iter().map(String::as_str);
            let verdict = self.judge(test, ["--"].into_iter().chain(names))?;
            if !matches!(verdict, Verdict::Survived) {
                return Ok(verdict);
            }
        }
        self.judge(test, [])
    }

    /// Runs an integration test, or what of it the arguments leave.
    fn judge<'a>(
        &self,
        test: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Verdict, Error> {
        let (ran, output) = self.run(self.cargo(test, arguments), "run", LIMIT)?;
        Ok(match ran {
            None => Verdict::Hung,
            Some(status) if status.success() => Verdict::Survived,
            Some(_) => Verdict::Caught(failed_tests(&output)),
        })
    }

    /// Runs a command to its end or to the limit; `None` where it had to be ended.
    fn run(
        &self,
        mut command: Command,
        what: &str,
        limit: Duration,
    ) -> Result<(Option<ExitStatus>, String), Error> {
        let log = self.base.join(format!("{what}.log"));
        let out = fs::File::create(&log).map_err(at(&log))?;
        let err = out.try_clone().map_err(at(&log))?;
        let mut child = command
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(at(Path::new("cargo")))?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(at(&log))? {
                break Some(status);
            }
            if started.elapsed() > limit {
                // The whole group: cargo's child is what hangs.
                let group = format!("-{}", child.id());
                Command::new("kill")
                    .args(["-KILL", "--", &group])
                    .status()
                    .map_err(at(Path::new("kill")))?;
                child.wait().map_err(at(&log))?;
                break None;
            }
            // There is nothing to be told when a child ends but by asking.
            thread::sleep(Duration::from_millis(20));
        };
        let output = fs::read(&log).map_err(at(&log))?;
        Ok((status, String::from_utf8_lossy(&output).into_owned()))
    }
}

/// The names under the last heading `failures:` of each test binary's output.
fn failed_tests(output: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut listing = false;
    for line in output.lines() {
        if line == "failures:" {
            listing = true;
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| listing) {
            if !name.contains(' ') && !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        } else if !line.is_empty() {
            listing = false;
        }
    }
    names
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The root manifest with only the crates that are copied. The profiles stay, so that dependencies
/// which are built already serve here too.
fn reduced_manifest(text: &str) -> String {
    let members: String = CRATES
        .iter()
        .map(|name| format!("    \"{PLACE}/{name}\",\n"))
        .collect();
    let mut out = format!("[workspace]\nresolver = \"3\"\nmembers = [\n{members}]\n");
    let mut keep = false;
    for line in text.lines() {
        if line.starts_with('[') {
            keep = line != "[workspace]";
        }
        if keep {
            let line = line.replace("path = \"", &format!("path = \"{PLACE}/"));
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(at(to))?;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(at(&path))?.is_dir() {
            if entry.file_name() != "target" {
                copy_directory(&path, &target)?;
            }
        } else {
            fs::copy(&path, &target).map_err(at(&path))?;
        }
    }
    Ok(())
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |error| Error::Io(path.into(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_failed_tests_are_found() {
        let output = "running 3 tests\n..F\nfailures:\n\n---- one::two stdout ----\n\
                      thread panicked\n\n\nfailures:\n    one::two\n    three\n\n\
                      test result: FAILED. 1 passed\n    not::this\n";
        assert_eq!(failed_tests(output), ["one::two", "three"]);
    }

    #[test]
    fn the_reduced_manifest_keeps_what_the_crates_inherit() {
        let text = "[workspace]\nmembers = [\n    \"x\",\n]\nexclude = [\"fuzz\"]\n\n\
                    [workspace.package]\nversion = \"1\"\n\n[profile.dev]\npanic = \"abort\"\n";
        let reduced = reduced_manifest(text);
        assert!(reduced.contains("[workspace.package]\nversion = \"1\""));
        assert!(!reduced.contains("exclude") && !reduced.contains("\"x\""));
        assert!(reduced.contains("abort"));
    }

    #[test]
    fn the_copy_is_nowhere_in_its_workspace_where_the_repository_has_it() {
        let text = "[workspace]\nmembers = [\n\"iommu\",\n]\n[workspace.dependencies]\n\
            iommu = { version = \"1\", path = \"iommu\" }\ncrc = \"3\"\n[profile.dev]\nopt-level = 1\n";
        let reduced = reduced_manifest(text);
        assert!(reduced.contains("\"mutant/iommu\",") && !reduced.contains("\"iommu\""));
        assert!(reduced.contains("path = \"mutant/iommu\""));
        assert!(reduced.contains("crc = \"3\"") && reduced.contains("opt-level = 1"));
    }

    /// The names of the tests in an integration test of `iommu`, modules before them.
    fn names_of(test: &str) -> Vec<String> {
        let directory = crate::paths::workspace().join("iommu/tests");
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
        let functions = |source: &str, before: &str| -> Vec<String> {
            let names = source.lines().filter_map(|line| {
                let (name, _) = line.strip_prefix("fn ")?.split_once("()")?;
                Some(format!("{before}{name}"))
            });
            names.collect()
        };
        let root = read(&format!("{test}.rs"));
        let mut names = functions(&root, "");
        let lines: Vec<_> = root.lines().collect();
        for pair in lines.windows(2) {
            let path = pair[0].strip_prefix("#[path = \"");
            let path = path.and_then(|rest| rest.strip_suffix("\"]"));
            let module = pair[1].strip_prefix("mod ");
            let module = module.and_then(|rest| rest.strip_suffix(';'));
            if let (Some(path), Some(module)) = (path, module) {
                names.extend(functions(&read(path), &format!("{module}::")));
            }
        }
        names
    }

    #[test]
    fn what_is_likely_to_notice_is_there() {
        let mutants = Mutant::all(&crate::paths::workspace().join("iommu/mutants")).unwrap();
        for mutant in mutants {
            let amd = Driver::Amd.owns(&mutant);
            let names = names_of(mutant.test(if amd { Driver::Amd } else { Driver::Vtd }));
            assert!(!mutant.likely.is_empty(), "{}: nothing is", mutant.name);
            for likely in &mutant.likely {
                let there = names.iter().any(|name| name.contains(likely.as_str()));
                assert!(there, "{}: {likely}", mutant.name);
            }
        }
    }

    #[test]
    fn every_mutant_has_its_one_place() {
        let root = crate::paths::workspace();
        for mutant in Mutant::all(&root.join("iommu/mutants")).unwrap() {
            let source = fs::read_to_string(root.join(&mutant.file)).unwrap();
            let times = source.matches(&mutant.original).count();
            assert_eq!(times, 1, "{}", mutant.name);
        }
    }
}
