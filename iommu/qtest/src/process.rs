//! The emulator's process and the qtest protocol.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long the emulator may take over any one reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// How many commands are sent before their replies are read. Well below what the socket holds, so
/// neither side can block with the other waiting for it.
const MAX_OUTSTANDING: u32 = 128;

/// How to start an emulator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Arguments beyond the ones every machine has.
    pub arguments: Vec<String>,
    /// Patterns of trace events to record.
    pub trace: Vec<String>,
}

/// An emulator with nothing but a halted processor in it, and the socket by which a test plays
/// processor. It is killed when this is dropped, and by the system when the test dies.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    socket: BufReader<UnixStream>,
    directory: PathBuf,
    /// Commands whose replies were not read yet.
    outstanding: u32,
    commands: u64,
}

/// A directory that no other test uses, now or at the same time.
fn fresh_directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("iommu-qtest-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return path,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("cannot make {}: {error}", path.display()),
        }
    }
}

/// 64 KiB whose reset vector is `cli; hlt; jmp` back to the `hlt`.
fn halting_firmware() -> Vec<u8> {
    let mut image = vec![0; 0x1_0000];
    image[0xfff0..0xfff4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    image
}

impl Qemu {
    /// Starts an emulator and waits until it answers.
    ///
    /// # Panics
    /// Where it does not start; with its words.
    #[must_use]
    pub fn start(settings: &Settings) -> Self {
        let directory = fresh_directory();
        let firmware = directory.join("halt.bin");
        fs::write(&firmware, halting_firmware()).expect("the temporary directory is writable");
        let errors = File::create(directory.join("stderr")).expect("as above");
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(REPLY_TIMEOUT))
            .and_then(|()| ours.set_write_timeout(Some(REPLY_TIMEOUT)))
            .expect("sockets have time-outs");

        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-nodefaults", "-display", "none", "-machine", "q35"])
            .args(["-accel", "tcg", "-m", "2G", "-smp", "2"])
            // Time jumps to the next event instead of passing: a transfer that takes 100 ms of
            // machine time takes 1 ms.
            .args(["-icount", "shift=0,sleep=off"])
            // The protocol runs over a socket that QEMU inherits as its standard input.
            .args(["-chardev", "socket,id=qtest,fd=0"])
            .args(["-object", "qtest,id=qtest0,chardev=qtest,log=/dev/null"])
            .arg("-bios")
            .arg(&firmware)
            .arg("-D")
            .arg(directory.join("trace"))
            .args(&settings.arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(errors);
        for pattern in &settings.trace {
            command.args(["-trace", pattern]);
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        // The other end of the socket, which `command` still holds, must not outlive QEMU's.
        drop(command);

        let mut qemu = Self {
            child,
            socket: BufReader::new(ours),
            directory,
            outstanding: 0,
            commands: 0,
        };
        qemu.call("endianness");
        qemu
    }

    /// Sends a command and returns what follows the `OK` of the reply.
    ///
    /// # Panics
    /// Where the emulator refuses, ends or does not answer in time.
    pub fn call(&mut self, command: &str) -> String {
        self.settle();
        self.send(command);
        self.reply(command)
    }

    /// Sends a command whose reply has nothing of interest, without waiting for it. Commands are
    /// executed in the order they are sent in.
    ///
    /// # Panics
    /// As [`call`](Self::call), possibly only at a later command.
    pub fn post(&mut self, command: &str) {
        self.send(command);
        self.outstanding += 1;
        if self.outstanding == MAX_OUTSTANDING {
            self.settle();
        }
    }

    /// Waits until every command sent was executed.
    pub fn settle(&mut self) {
        while self.outstanding != 0 {
            self.outstanding -= 1;
            self.reply("a command posted before");
        }
    }

    fn send(&mut self, command: &str) {
        self.commands += 1;
        let mut line = String::with_capacity(command.len() + 1);
        line.push_str(command);
        line.push('\n');
        if let Err(error) = self.socket.get_mut().write_all(line.as_bytes()) {
            self.fail(command, &error.to_string());
        }
    }

    fn reply(&mut self, command: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            match self.socket.read_line(&mut line) {
                Ok(0) => self.fail(command, "it ended"),
                Ok(_) => {}
                Err(error) => self.fail(command, &error.to_string()),
            }
            let text = line.trim_end();
            // What the interrupt controllers do is told in between.
            if text.starts_with("IRQ ") {
                continue;
            }
            if let Some(rest) = text.strip_prefix("OK") {
                return rest.trim_start().to_owned();
            }
            self.fail(command, text);
        }
    }

    fn fail(&mut self, command: &str, why: &str) -> ! {
        let status = self.child.try_wait();
        panic!(
            "QEMU, command `{command}`: {why} (process: {status:?}); it said:\n{}",
            self.errors()
        )
    }

    /// What the emulator wrote to its standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        fs::read_to_string(self.directory.join("stderr")).unwrap_or_default()
    }

    /// How many commands were sent.
    #[must_use]
    pub const fn commands(&self) -> u64 {
        self.commands
    }

    /// The file that the trace goes to.
    #[must_use]
    pub fn trace_file(&self) -> PathBuf {
        self.directory.join("trace")
    }

    /// The directory with the emulator's files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Each may fail because it is done already; nothing is left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
