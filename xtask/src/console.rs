//! A kernel's console: the far end of an emulated UART.
//!
//! A thread reads the socket, so that nothing is lost while nobody waits; each line gets the time of
//! its arrival, goes to a log file and to whoever watches, and is kept.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::event::{Event, Line};

/// A longer line than this is cut: a kernel that runs wild must not fill the host's memory.
const LONGEST_LINE: usize = 4096;

/// Told every line as it arrives, with the console's name.
pub(crate) type Watcher = Arc<dyn Fn(&str, &Line) + Send + Sync>;

/// One console.
pub(crate) struct Console {
    name: String,
    stream: UnixStream,
    shared: Arc<Shared>,
    read: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// `ok`, `refused` or `failed`.
    pub(crate) result: String,
    /// The kernel's sentence about it.
    pub(crate) text: String,
    /// All events between the command and its end.
    pub(crate) events: Vec<Event>,
    /// When the command was sent.
    pub(crate) sent: SystemTime,
    /// When its end was seen.
    pub(crate) ended: SystemTime,
}

impl Done {
    /// The events with `word`.
    pub(crate) fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |event| event.word == word)
    }

    /// The first event with `word`, which must be there.
    pub(crate) fn one(&self, word: &str) -> Result<&Event> {
        self.events
            .iter()
            .find(|event| event.word == word)
            .with_context(|| format!("the kernel printed no @{word} line"))
    }
}

impl Console {
    /// Takes over `stream`; writes all that comes to the file `log`.
    pub(crate) fn new(
        name: &str,
        stream: UnixStream,
        log: &Path,
        watcher: Watcher,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let reader = stream.try_clone()?;
        let for_thread = Arc::clone(&shared);
        let thread_name = name.to_owned();
        thread::Builder::new()
            .name(format!("console {name}"))
            .spawn(move || read_lines(&thread_name, reader, file, &for_thread, &watcher))?;
        Ok(Self {
            name: name.to_owned(),
            stream,
            shared,
            read: 0,
        })
    }

    /// Its name, as the watcher is told.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sends a line.
    pub(crate) fn send(&mut self, line: &str) -> Result<()> {
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("cannot send `{line}` to console {}", self.name))
    }

    /// Sends a command and waits for its `@done`. What came before belongs to nobody any more.
    pub(crate) fn command(&mut self, line: &str, deadline: Duration) -> Result<Done> {
        self.skip();
        let sent = SystemTime::now();
        self.send(line)?;
        self.wait_done(line, sent, deadline)
    }

    /// Sends a command that must end with `result=ok`.
    pub(crate) fn command_ok(&mut self, line: &str, deadline: Duration) -> Result<Done> {
        let done = self.command(line, deadline)?;
        if done.result != "ok" {
            bail!(
                "the kernel on console {} answered `{line}` with {}: {}",
                self.name,
                done.result,
                done.text
            );
        }
        Ok(done)
    }

    /// Waits for the `@done` of a command that was sent at `sent`.
    pub(crate) fn wait_done(
        &mut self,
        line: &str,
        sent: SystemTime,
        deadline: Duration,
    ) -> Result<Done> {
        let word = line.split(' ').next().unwrap_or(line);
        let mut events = Vec::new();
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(next) = self.next_line(left)? else {
                bail!(
                    "the kernel on console {} did not end `{line}` within {:.1} s; its last lines:\n{}",
                    self.name,
                    deadline.as_secs_f64(),
                    self.tail(12)
                );
            };
            let Some(event) = next.event else { continue };
            self.is_alive(&event)?;
            if event.word == "done" && event.get("command") == Some(word) {
                return Ok(Done {
                    result: event.need("result")?.to_owned(),
                    text: event.get("text").unwrap_or("").to_owned(),
                    events,
                    sent,
                    ended: next.at,
                });
            }
            events.push(event);
        }
    }

    /// Waits for an event with `word` and returns it with the time of its arrival.
    pub(crate) fn wait_event(
        &mut self,
        word: &str,
        deadline: Duration,
    ) -> Result<(SystemTime, Event)> {
        self.wait_any(&[word], deadline)
    }

    /// The same for an event with any of `words`.
    pub(crate) fn wait_any(
        &mut self,
        words: &[&str],
        deadline: Duration,
    ) -> Result<(SystemTime, Event)> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(next) = self.next_line(left)? else {
                bail!(
                    "no @{} came on console {} within {:.1} s; its last lines:\n{}",
                    words.join(" or @"),
                    self.name,
                    deadline.as_secs_f64(),
                    self.tail(12)
                );
            };
            let Some(event) = next.event else { continue };
            if words.contains(&event.word.as_str()) {
                return Ok((next.at, event));
            }
            self.is_alive(&event)?;
        }
    }

    /// An error where `event` is a kernel's last: there is nothing more to wait for.
    fn is_alive(&self, event: &Event) -> Result<()> {
        if ["panic", "exception", "failed"].contains(&event.word.as_str()) {
            bail!("the kernel on console {} gave up: {event}", self.name);
        }
        Ok(())
    }

    /// The next line nobody has taken yet; `None` at the deadline. An error when the console is gone.
    pub(crate) fn next_line(&mut self, deadline: Duration) -> Result<Option<Line>> {
        let end = Instant::now() + deadline;
        let mut state = self.shared.lock();
        loop {
            if let Some(line) = state.lines.get(self.read) {
                self.read += 1;
                return Ok(Some(line.clone()));
            }
            if state.closed {
                drop(state);
                bail!(
                    "console {} is gone (the emulator ended); its last lines:\n{}",
                    self.name,
                    self.tail(12)
                );
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Passes over everything that has come so far: what is waited for next must be new.
    pub(crate) fn skip(&mut self) {
        self.read = self.shared.lock().lines.len();
    }

    /// All lines so far, taken or not.
    pub(crate) fn history(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// The last `count` lines, for an error message.
    pub(crate) fn tail(&self, count: usize) -> String {
        let state = self.shared.lock();
        let from = state.lines.len().saturating_sub(count);
        let mut text = String::new();
        for line in &state.lines[from..] {
            text.push_str("    | ");
            text.push_str(&line.text);
            text.push('\n');
        }
        if text.is_empty() {
            text.push_str("    (none)\n");
        }
        text.pop();
        text
    }
}

fn read_lines(
    name: &str,
    mut stream: UnixStream,
    mut log: File,
    shared: &Shared,
    watcher: &Watcher,
) {
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        for &byte in &buffer[..count] {
            if byte == b'\n' || pending.len() >= LONGEST_LINE {
                keep(name, &mut pending, &mut log, shared, watcher);
            }
            if byte != b'\n' && byte != b'\r' {
                pending.push(byte);
            }
        }
    }
    if !pending.is_empty() {
        keep(name, &mut pending, &mut log, shared, watcher);
    }
    shared.lock().closed = true;
    shared.changed.notify_all();
}

fn keep(name: &str, pending: &mut Vec<u8>, log: &mut File, shared: &Shared, watcher: &Watcher) {
    let line = Line::now(String::from_utf8_lossy(pending).into_owned());
    pending.clear();
    let since = line.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The log is for a person afterwards: a full disk must not stop the run that is being watched.
    let _ = writeln!(
        log,
        "{}.{:06} {}",
        since.as_secs(),
        since.subsec_micros(),
        line.text
    );
    watcher(name, &line);
    shared.lock().lines.push(line);
    shared.changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::Console;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    fn pair(name: &str) -> (Console, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let log = std::env::temp_dir().join(format!("baton-console-{}-{name}", std::process::id()));
        let console = Console::new(name, ours, &log, Arc::new(|_, _| ())).unwrap();
        std::fs::remove_file(log).unwrap();
        (console, theirs)
    }

    #[test]
    fn a_command_ends_with_its_own_done() {
        let (mut console, mut kernel) = pair("own");
        let answer = thread::spawn(move || {
            let mut got = [0; 5];
            kernel.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"plan\n");
            kernel
                .write_all(
                    b"text\n@done command=other result=ok text=\"\"\n@plan cpus=2\r\n\
                      @done command=plan result=refused text=\"not so\"\n",
                )
                .unwrap();
            kernel
        });
        let done = console.command("plan", Duration::from_secs(5)).unwrap();
        assert_eq!(
            (done.result.as_str(), done.text.as_str()),
            ("refused", "not so")
        );
        assert_eq!(done.one("plan").unwrap().get("cpus"), Some("2"));
        assert_eq!(done.all("done").count(), 1);
        drop(answer.join().unwrap());
    }

    #[test]
    fn a_silent_kernel_is_an_error_at_the_deadline() {
        let (mut console, mut kernel) = pair("silent");
        kernel.write_all(b"the last words\n").unwrap();
        let error = console
            .command("status", Duration::from_millis(200))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("the last words"), "{error}");
    }

    #[test]
    fn a_kernel_that_gives_up_is_an_error_at_once() {
        let (mut console, mut kernel) = pair("gives-up");
        kernel.write_all(b"@panic text=\"no more\"\n").unwrap();
        let error = console
            .wait_event("up", Duration::from_secs(60))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("no more"), "{error}");
    }

    #[test]
    fn a_closed_console_is_an_error_at_once() {
        let (mut console, kernel) = pair("closed");
        drop(kernel);
        let error = console
            .wait_event("up", Duration::from_secs(60))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("is gone"), "{error}");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let (mut console, mut kernel) = pair("endless");
        kernel.write_all(&vec![b'x'; 10_000]).unwrap();
        let line = console.next_line(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(line.text.len(), super::LONGEST_LINE);
    }
}
