//! Child processes that cannot outlive their deadline, or this process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How many of the last lines of a failed program go into its error.
const TAIL: usize = 30;

/// A command line to be run to its end.
pub(crate) struct Run {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    without: Vec<OsString>,
    directory: Option<PathBuf>,
    log: Option<PathBuf>,
    deadline: Duration,
}

/// What a program that ended left behind.
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// All it wrote, both streams, line by line in the order of arrival.
    pub(crate) lines: Vec<String>,
}

impl Finished {
    /// The last lines, for an error message.
    pub(crate) fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(TAIL);
        self.lines[from..].join("\n")
    }
}

impl Run {
    /// A run of `program`.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            without: Vec::new(),
            directory: None,
            log: None,
            deadline: Duration::from_secs(600),
        }
    }

    /// Adds arguments.
    pub(crate) fn arguments<S: AsRef<OsStr>>(mut self, all: impl IntoIterator<Item = S>) -> Self {
        self.arguments
            .extend(all.into_iter().map(|one| one.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn set(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Removes an environment variable.
    pub(crate) fn unset(mut self, name: impl AsRef<OsStr>) -> Self {
        self.without.push(name.as_ref().to_owned());
        self
    }

    /// Runs in `directory`.
    pub(crate) fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_path_buf());
        self
    }

    /// Writes all that the program says to `path` too.
    pub(crate) fn log(mut self, path: impl AsRef<Path>) -> Self {
        self.log = Some(path.as_ref().to_path_buf());
        self
    }

    /// The longest time it may take.
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command as a person would type it.
    pub(crate) fn shown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.environment {
            text.push_str(&format!("{}={} ", name.display(), quoted(value)));
        }
        text.push_str(&quoted(&self.program));
        for argument in &self.arguments {
            text.push(' ');
            text.push_str(&quoted(argument));
        }
        text
    }

    /// Runs the program to its end and calls `each` for every line it writes. A program that ends
    /// badly is no error here; one that cannot be started or that is still running at the deadline is.
    pub(crate) fn finish(&self, mut each: impl FnMut(&str)) -> Result<Finished> {
        let mut log = match &self.log {
            Some(path) => Some(
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
            ),
            None => None,
        };
        let mut child = self.spawn()?;
        let (sender, lines_in) = mpsc::channel();
        for stream in [
            child
                .stdout
                .take()
                .map(|s| Box::new(s) as Box<dyn Read + Send>),
            child
                .stderr
                .take()
                .map(|s| Box::new(s) as Box<dyn Read + Send>),
        ]
        .into_iter()
        .flatten()
        {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    if sender.send(text).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);

        let end = Instant::now() + self.deadline;
        let mut lines = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                kill(&mut child);
                bail!(
                    "`{}` was still running after {} s and was killed; its last lines:\n{}",
                    self.shown(),
                    self.deadline.as_secs(),
                    tail(&lines)
                );
            }
            match lines_in.recv_timeout(left.min(Duration::from_millis(500))) {
                Ok(line) => {
                    if let Some(log) = &mut log {
                        writeln!(log, "{line}")?;
                    }
                    each(&line);
                    lines.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // Both streams are closed; a program may close them and stay.
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Finished { status, lines });
            }
            if Instant::now() >= end {
                kill(&mut child);
                bail!("`{}` closed its output but did not end", self.shown());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Like [`Run::finish`], and a program that ends badly is an error with its last lines.
    pub(crate) fn succeed(&self, each: impl FnMut(&str)) -> Result<Finished> {
        let finished = self.finish(each)?;
        if !finished.status.success() {
            bail!(
                "`{}` failed ({}); its last lines:\n{}",
                self.shown(),
                finished.status,
                finished.tail()
            );
        }
        Ok(finished)
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = bound_command(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for name in &self.without {
            command.env_remove(name);
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown()))
    }
}

/// A command that the kernel kills when the thread that starts it ends, so that nothing that was
/// started is left over however this process ends. Needs `setpriv` (util-linux); without it the
/// command is run plainly.
pub(crate) fn bound_command(program: &OsStr) -> Command {
    match find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The file that `program` names in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn kill(child: &mut Child) {
    // The child leads a group of its own (`process_group(0)`), so this ends what it started too. It
    // may have ended by itself in between: then there is nothing to kill and nothing to report.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::Run;
    use std::time::{Duration, Instant};

    #[test]
    fn both_streams_are_seen_line_by_line() {
        let mut seen = Vec::new();
        let finished = Run::new("sh")
            .arguments(["-c", "echo one; echo two >&2"])
            .succeed(|line| seen.push(line.to_owned()))
            .unwrap();
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(finished.lines.len(), 2);
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_its_last_lines() {
        let error = Run::new("sh")
            .arguments(["-c", "echo the reason; exit 3"])
            .succeed(|_| ())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("the reason"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_program_and_what_it_started_die_at_the_deadline() {
        let begun = Instant::now();
        let error = Run::new("sh")
            .arguments(["-c", "sleep 60 & echo $!; wait"])
            .deadline(Duration::from_millis(300))
            .succeed(|_| ())
            .err()
            .unwrap()
            .to_string();
        assert!(begun.elapsed() < Duration::from_secs(10));
        let sleeper = error.lines().last().unwrap().trim().to_owned();
        // The signal is sent; the kernel takes its time to deliver it.
        let running = || {
            let state =
                std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
            state.contains("(sleep)") && !state.contains(") Z")
        };
        while running() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!running());
    }
}
