//! QMP, the emulator's control protocol: one JSON object on each line, both ways.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The longest that any command may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where a virtqueue lies, as the device model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct RingAddresses {
    /// The queue's number.
    pub(crate) queue: u16,
    /// Entries.
    pub(crate) size: u32,
    /// Descriptor table.
    pub(crate) descriptors: u64,
    /// Available ring (driver area).
    pub(crate) available: u64,
    /// Used ring (device area).
    pub(crate) used: u64,
}

impl RingAddresses {
    /// From the emulator's answer.
    fn told(queue: u16, answer: &Value) -> Option<Self> {
        let number = |key: &str| answer[key].as_u64();
        Some(Self {
            queue,
            size: u32::try_from(number("vring-num")?).ok()?,
            descriptors: number("vring-desc")?,
            available: number("vring-avail")?,
            used: number("vring-used")?,
        })
    }

    /// Bytes of the three parts (virtio 1.x, 2.7).
    pub(crate) fn bytes(&self) -> u64 {
        let entries = u64::from(self.size);
        16 * entries + (6 + 2 * entries) + (6 + 8 * entries)
    }
}

/// A connection to a running emulator.
pub(crate) struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
    events: Arc<Mutex<Vec<String>>>,
    scratch: PathBuf,
    serial: u64,
}

impl Qmp {
    /// Greets the emulator at the other end of `stream`. Memory is read through files in `scratch`.
    pub(crate) fn new(stream: UnixStream, scratch: &Path) -> Result<Self> {
        let reader = stream.try_clone()?;
        let (sender, answers) = mpsc::channel();
        let events = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&events);
        thread::Builder::new().name("qmp".into()).spawn(move || {
            for line in BufReader::new(reader)
                .lines()
                .map_while(std::io::Result::ok)
            {
                let Ok(value) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                match event(&value) {
                    Some(event) => kept
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(event),
                    None => {
                        if sender.send(value).is_err() {
                            return;
                        }
                    }
                }
            }
        })?;
        let mut qmp = Self {
            stream,
            answers,
            events,
            scratch: scratch.to_path_buf(),
            serial: 0,
        };
        let greeting = qmp.answer(DEADLINE)?;
        if greeting.get("QMP").is_none() {
            bail!("the emulator greeted with {greeting}, which is not QMP");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.serial += 1;
        let id = self.serial;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        writeln!(self.stream, "{request}")
            .with_context(|| format!("cannot send `{command}` to the emulator"))?;
        loop {
            let mut answer = self
                .answer(DEADLINE)
                .with_context(|| format!("`{command}` was not answered"))?;
            // An answer to an earlier command that was given up is still on its way.
            if answer.get("id") != Some(&json!(id)) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("the emulator refused `{command}`: {}", error["desc"]);
            }
            return Ok(answer["return"].take());
        }
    }

    /// Runs a line of the human monitor.
    pub(crate) fn monitor(&mut self, line: &str) -> Result<String> {
        let told = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(told.as_str().unwrap_or("").replace("\r\n", "\n"))
    }

    /// Reads guest physical memory. The machine runs on: a caller that wants a still picture stops it
    /// or has the kernel wait.
    pub(crate) fn physical_memory(&mut self, base: u64, length: u64) -> Result<Vec<u8>> {
        let file = self.scratch.join("memory.bin");
        self.execute(
            "pmemsave",
            json!({ "val": base, "size": length, "filename": file }),
        )?;
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // It is a scratch file of this run: left behind it only costs space until the run ends.
        let _ = fs::remove_file(&file);
        if bytes.len() as u64 != length {
            bail!(
                "the emulator saved {} bytes of memory at {base:#x}, not {length}",
                bytes.len()
            );
        }
        Ok(bytes)
    }

    /// Where queue `queue` of the only virtio device called `device` (such as `virtio-net`) lies.
    pub(crate) fn ring_addresses(&mut self, device: &str, queue: u16) -> Result<RingAddresses> {
        let path = self.virtio_path(device)?;
        let told = self.execute(
            "x-query-virtio-queue-status",
            json!({ "path": path, "queue": queue }),
        )?;
        RingAddresses::told(queue, &told)
            .with_context(|| format!("the emulator said {told} about queue {queue} of {device}"))
    }

    fn virtio_path(&mut self, device: &str) -> Result<String> {
        let all = self.execute("x-query-virtio", json!({}))?;
        let paths: Vec<&str> = all
            .as_array()
            .into_iter()
            .flatten()
            .filter(|entry| entry["name"] == device)
            .filter_map(|entry| entry["path"].as_str())
            .collect();
        match paths[..] {
            [path] => Ok(path.to_owned()),
            _ => bail!(
                "the machine has {} devices called {device}, not one",
                paths.len()
            ),
        }
    }

    /// Switches trace events on or off; `pattern` as the emulator takes it.
    pub(crate) fn trace(&mut self, pattern: &str, enable: bool) -> Result<()> {
        self.execute(
            "trace-event-set-state",
            json!({ "name": pattern, "enable": enable }),
        )?;
        Ok(())
    }

    /// The host's thread of each CPU, in the order of CPUs.
    pub(crate) fn cpu_threads(&mut self) -> Result<Vec<u32>> {
        let told = self.execute("query-cpus-fast", json!({}))?;
        let mut threads: Vec<(u64, u32)> = told
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|cpu| {
                let index = cpu["cpu-index"].as_u64()?;
                let thread = u32::try_from(cpu["thread-id"].as_u64()?).ok()?;
                Some((index, thread))
            })
            .collect();
        threads.sort_unstable();
        Ok(threads.into_iter().map(|(_, thread)| thread).collect())
    }

    /// The names of all events so far.
    pub(crate) fn events(&self) -> Vec<String> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn answer(&mut self, deadline: Duration) -> Result<Value> {
        match self.answers.recv_timeout(deadline) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the emulator did not answer within {} s",
                    deadline.as_secs()
                )
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the emulator is gone"),
        }
    }
}

/// The name of an event, such as `RESET`.
fn event(value: &Value) -> Option<String> {
    Some(value.get("event")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Qmp, RingAddresses};
    use serde_json::json;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn events_between_a_command_and_its_answer_are_kept() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let emulator = thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            let mut lines = BufReader::new(theirs).lines();
            writeln!(
                out,
                "{}",
                json!({"QMP": {"version": {}, "capabilities": []}})
            )
            .unwrap();
            lines.next().unwrap().unwrap();
            writeln!(out, "{}", json!({"return": {}, "id": 1})).unwrap();
            lines.next().unwrap().unwrap();
            writeln!(
                out,
                "{}",
                json!({"timestamp": {"seconds": 12, "microseconds": 34}, "event": "RESET",
                       "data": {"guest": true}})
            )
            .unwrap();
            writeln!(out, "{}", json!({"return": "stale", "id": 99})).unwrap();
            writeln!(out, "{}", json!({"return": "told", "id": 2})).unwrap();
            lines.next().unwrap().unwrap();
            writeln!(
                out,
                "{}",
                json!({"error": {"class": "x", "desc": "no such"}, "id": 3})
            )
            .unwrap();
        });
        let mut qmp = Qmp::new(ours, &std::env::temp_dir()).unwrap();
        assert_eq!(qmp.monitor("info status").unwrap(), "told");
        let events = qmp.events();
        assert_eq!(events, ["RESET"]);
        assert!(
            qmp.monitor("bad")
                .err()
                .unwrap()
                .to_string()
                .contains("no such")
        );
        emulator.join().unwrap();
    }

    #[test]
    fn ring_addresses_are_read_from_the_emulators_names() {
        let told = json!({
            "name": "virtio-net", "queue-index": 0, "inuse": 0, "used-idx": 5,
            "vring-num": 256, "vring-num-default": 256, "vring-align": 4096,
            "vring-desc": 0x1000, "vring-avail": 0x2000, "vring-used": 0x3000,
        });
        let rings = RingAddresses::told(1, &told).unwrap();
        assert_eq!((rings.queue, rings.size, rings.bytes()), (1, 256, 6668));
        assert_eq!(
            (rings.descriptors, rings.available, rings.used),
            (0x1000, 0x2000, 0x3000)
        );
    }
}
