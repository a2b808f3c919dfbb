//! What a person sees while something runs: one line for each step as it ends, what the machine
//! says below it, and a spinner with the time on whatever is slow.
//!
//! Where standard error is no terminal there is no spinner: a step that lasts long says so every
//! few seconds in a line of its own, so that a log shows progress too.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a step without a terminal says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The screen. Clones share it.
#[derive(Clone)]
pub(crate) struct Screen {
    state: Arc<Mutex<State>>,
    terminal: bool,
}

struct State {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Screen {
    /// The screen on standard error.
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                bar: None,
                last_line: Instant::now(),
            })),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a line above whatever spins.
    pub(crate) fn line(&self, text: &str) {
        let mut state = self.lock();
        state.last_line = Instant::now();
        match &state.bar {
            Some(bar) => bar.println(text),
            None => {
                // Nobody may be reading any more: that is no reason to stop the run.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }

    /// Prints an indented line: something the current step found out.
    pub(crate) fn detail(&self, text: &str) {
        self.line(&format!("      {text}"));
    }

    /// Prints a heading.
    pub(crate) fn heading(&self, text: &str) {
        self.line("");
        self.line(&self.strong(text));
    }

    /// Begins a step. It is finished by [`Step::done`] or [`Step::failed`].
    pub(crate) fn step(&self, title: &str) -> Step {
        if self.terminal {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("  {spinner} {prefix}  {wide_msg} {elapsed}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            self.lock().bar = Some(bar);
        }
        Step {
            screen: self.clone(),
            title: title.to_owned(),
            started: Instant::now(),
            finished: false,
        }
    }

    fn strong(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.terminal {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// One step of a longer sequence.
pub(crate) struct Step {
    screen: Screen,
    title: String,
    started: Instant,
    finished: bool,
}

impl Step {
    /// Says what the step is at, on the spinner or, now and then, in a line.
    pub(crate) fn progress(&self, text: &str) {
        let due = {
            let state = self.screen.lock();
            if let Some(bar) = &state.bar {
                bar.set_message(text.to_owned());
                false
            } else {
                state.last_line.elapsed() > HEARTBEAT
            }
        };
        if due {
            let seconds = self.started.elapsed().as_secs();
            self.screen
                .line(&format!("  .. {}: {text} ({seconds} s)", self.title));
        }
    }

    /// Ends the step well.
    pub(crate) fn done(mut self, text: &str) {
        let mark = self.screen.paint("32", "ok");
        self.end(&mark, text);
    }

    /// Ends the step badly. What failed and what to do is in `text`.
    pub(crate) fn failed(mut self, text: &str) {
        let mark = self.screen.paint("31", "--");
        self.end(&mark, text);
    }

    fn end(&mut self, mark: &str, text: &str) {
        self.finished = true;
        if let Some(bar) = self.screen.lock().bar.take() {
            bar.finish_and_clear();
        }
        let took = self.started.elapsed();
        self.screen.line(&format!(
            "  {mark} {:<22} {text}  {}",
            self.title,
            self.screen
                .paint("2", &format!("[{:.1} s]", took.as_secs_f64()))
        ));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // An error returned early by `?` drops the step: the line must still show where it was.
        if !self.finished {
            let mark = self.screen.paint("31", "--");
            self.end(&mark, "failed");
        }
    }
}

/// `nanoseconds` in the unit that a person reads best.
pub(crate) fn duration(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// `bytes` in the binary unit that divides it, or the nearest one.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            return if bytes.is_multiple_of(unit) {
                format!("{} {name}", bytes / unit)
            } else {
                format!("{:.1} {name}", bytes as f64 / unit as f64)
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::{bytes, duration};

    #[test]
    fn durations_use_the_unit_that_fits() {
        assert_eq!(duration(999), "999 ns");
        assert_eq!(duration(1_500), "1.5 us");
        assert_eq!(duration(2_000_000), "2.0 ms");
        assert_eq!(duration(3_250_000_000), "3.25 s");
    }

    #[test]
    fn sizes_use_the_unit_that_fits() {
        assert_eq!(bytes(512), "512 bytes");
        assert_eq!(bytes(512 << 20), "512 MiB");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
