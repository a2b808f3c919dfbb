//! The emulated machine: started, connected to and, however things end, stopped.

mod boot;
mod command_line;
mod devices;
mod iommu;
mod plug;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use handoff_abi::RequesterId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

pub(crate) use boot::{BootPath, Firmware, Loader};
pub(crate) use command_line::{Counted, LinuxFiles, MachineOptions, TRACE_MMIO};
pub(crate) use iommu::Iommu;

use plug::Plugs;

use crate::console::{Console, Watcher};
use crate::process::bound_command;
use crate::qmp::Qmp;

/// How long the emulator may take to connect its sockets.
const CONNECT: Duration = Duration::from_secs(20);

/// How long it may take to end when asked to.
const QUIT: Duration = Duration::from_secs(15);

/// How often a start is tried again when another process took the port in between.
const PORT_TRIES: usize = 5;

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A machine that runs, or stands before its first instruction.
pub(crate) struct Machine {
    /// The emulator's control connection.
    pub(crate) qmp: Qmp,
    /// The consoles, COM1 and COM2.
    pub(crate) consoles: [Console; 2],
    /// Where the host's clients reach the service.
    pub(crate) service: SocketAddrV4,
    /// The host's thread of each CPU. One thread for all under `-icount`.
    pub(crate) cpu_threads: Vec<u32>,
    /// The remapping hardware.
    pub(crate) iommu: Iommu,
    plugs: Plugs,
    files: Files,
    child: Guarded,
}

/// What the machine leaves behind, all in one directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// The directory.
    pub(crate) directory: PathBuf,
}

impl Files {
    /// The emulator's trace.
    pub(crate) fn trace(&self) -> PathBuf {
        self.directory.join("trace.log")
    }

    /// All packets of the network device.
    pub(crate) fn packets(&self) -> PathBuf {
        self.directory.join("net.pcap")
    }

    /// What the firmware said.
    pub(crate) fn firmware(&self) -> PathBuf {
        self.directory.join("firmware.log")
    }

    /// What the emulator said.
    pub(crate) fn emulator(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    /// Removes them.
    pub(crate) fn discard(&self) {
        for file in [
            self.trace(),
            self.packets(),
            self.firmware(),
            self.emulator(),
            self.directory.join("com1.log"),
            self.directory.join("com2.log"),
            self.directory.join("disk.img"),
        ]
        .into_iter()
        .chain(self.for_booting())
        {
            // What is not there need not be removed.
            let _ = fs::remove_file(file);
        }
    }

    /// How often the firmware was entered again after the first start: whole starts, or entries by
    /// the reset vector (as after INIT to the bootstrap processor), whichever are more.
    pub(crate) fn firmware_reentries(&self) -> Result<u64> {
        let mut said = String::new();
        // OVMF says what it starts on the first kernel's console.
        for path in [self.firmware(), self.directory.join("com1.log")] {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            said.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok(reentries(&said))
    }
}

/// SeaBIOS says the first in every start, and the second whenever it runs again without one; OVMF
/// says the third before whatever it starts.
fn reentries(said: &str) -> u64 {
    let count = |text| said.matches(text).count() as u64;
    let starts = count("Running on QEMU (").max(count("BdsDxe: starting "));
    let resumes = count("In resume (status=");
    starts.saturating_sub(1).max(resumes)
}

/// The emulators that run now, so that one can be ended from outside of whoever waits for it.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every emulator that this process runs. Whoever waits for one finds its consoles closed.
pub(crate) fn kill_all() {
    for &id in running().iter() {
        if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
            // It is in the list, so nobody has waited for it yet and the number is still its own.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A child that is killed when dropped, and the directory of its sockets.
struct Guarded {
    child: Child,
    sockets: PathBuf,
}

impl Guarded {
    fn new(child: Child, sockets: PathBuf) -> Self {
        running().push(child.id());
        Self { child, sockets }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut running = running();
        running.retain(|&id| id != self.child.id());
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

impl Machine {
    /// Starts the emulator with `options`, its files in `directory`, and stands before the first
    /// instruction until [`Machine::run`].
    pub(crate) fn start(
        options: &MachineOptions,
        directory: &Path,
        watcher: &Watcher,
    ) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut tries = PORT_TRIES;
        loop {
            tries -= 1;
            match Self::try_start(options, directory, watcher) {
                Err(error) if tries > 0 && port_was_taken(&error) => {}
                other => return other,
            }
        }
    }

    fn try_start(options: &MachineOptions, directory: &Path, watcher: &Watcher) -> Result<Self> {
        let files = Files {
            directory: directory.to_path_buf(),
        };
        // Names of sockets must be short (108 bytes), so they do not lie in the directory of the files.
        let sockets = std::env::temp_dir().join(format!(
            "baton-{}-{}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&sockets)?;
        let listen = |name: &str| -> Result<UnixListener> {
            let listener = UnixListener::bind(sockets.join(name))
                .with_context(|| format!("cannot listen in {}", sockets.display()))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let qmp = listen("qmp")?;
        let com1 = listen("com1")?;
        let com2 = listen("com2")?;
        let service = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()?);

        let arguments = options.arguments(&files, &sockets, service)?;
        let said = File::create(files.emulator())?;
        let child = bound_command("qemu-system-x86_64".as_ref())
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let mut child = Guarded::new(child, sockets);

        let end = Instant::now() + CONNECT;
        let mut connect = |listener: &UnixListener| accept(listener, &mut child.child, &files, end);
        let qmp = connect(&qmp)?;
        let com1 = connect(&com1)?;
        let com2 = connect(&com2)?;
        let mut qmp = Qmp::new(qmp, directory).with_context(|| said_by(&files))?;
        let consoles = [
            Console::new("COM1", com1, &directory.join("com1.log"), watcher.clone())?,
            Console::new("COM2", com2, &directory.join("com2.log"), watcher.clone())?,
        ];
        let cpu_threads = qmp.cpu_threads()?;
        Ok(Self {
            qmp,
            consoles,
            service,
            cpu_threads,
            iommu: options.iommu,
            plugs: Plugs::new(options.late_devices()),
            files,
            child,
        })
    }

    /// Lets the machine run.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({}))?;
        Ok(())
    }

    /// Plugs the devices that can be by now, and says how many.
    pub(crate) fn plug(&mut self) -> Result<usize> {
        self.plugs.round(&mut self.qmp)
    }

    /// The names of devices that are still to be plugged.
    pub(crate) fn unplugged(&self) -> Vec<&str> {
        self.plugs.waiting()
    }

    /// The requester id of each device that has a name.
    pub(crate) fn requesters(&mut self) -> Result<BTreeMap<String, RequesterId>> {
        plug::requesters(&mut self.qmp)
    }

    /// Traces the requests of devices, or no more: there is one line, or more, for each.
    pub(crate) fn trace_requests(&mut self, enable: bool) -> Result<()> {
        for pattern in self.iommu.trace_requests() {
            self.qmp.trace(pattern, enable)?;
        }
        Ok(())
    }

    /// Its files.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// How often the whole machine was reset, as the emulator says.
    pub(crate) fn resets(&self) -> usize {
        let events = self.qmp.events();
        events.iter().filter(|name| *name == "RESET").count()
    }

    /// Ends the emulator in good order, so that all its logs are complete.
    pub(crate) fn quit(mut self) -> Result<Files> {
        // The emulator may close the connection before the answer is out: its end is what counts.
        let _ = self.qmp.execute("quit", json!({}));
        let end = Instant::now() + QUIT;
        while self.child.child.try_wait()?.is_none() {
            if Instant::now() >= end {
                bail!(
                    "the emulator did not end within {} s of `quit`",
                    QUIT.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(self.files.clone())
    }
}

fn free_port() -> Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no free UDP port")?;
    Ok(socket.local_addr()?.port())
}

fn port_was_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("Could not set up host forwarding rule")
}

fn accept(
    listener: &UnixListener,
    child: &mut Child,
    files: &Files,
    end: Instant,
) -> Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("the emulator ended at once ({status}): {}", said_by(files));
        }
        if Instant::now() >= end {
            bail!("the emulator did not connect: {}", said_by(files));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn said_by(files: &Files) -> String {
    let said = fs::read_to_string(files.emulator()).unwrap_or_default();
    let said = said.trim();
    if said.is_empty() {
        "the emulator said nothing".to_owned()
    } else {
        format!("the emulator said: {said}")
    }
}

#[cfg(test)]
mod tests {
    use super::reentries;

    // What SeaBIOS 1.16.2 says in one start: the banner comes twice.
    const START: &str =
        "SeaBIOS (version 1.16.2)\nRunning on QEMU (q35)\nSeaBIOS (version 1.16.2)\n";

    #[test]
    fn one_start_is_no_reentry() {
        assert_eq!(reentries(START), 0);
    }

    #[test]
    fn each_start_of_uefi_counts() {
        let start = "BdsDxe: loading Boot0001 \"disk\"\nBdsDxe: starting Boot0001 \"disk\"\n";
        assert_eq!(reentries(start), 0);
        assert_eq!(reentries(&start.repeat(3)), 2);
    }

    #[test]
    fn a_reset_and_an_init_are_reentries() {
        let resume = "In resume (status=0)\nIn 32bit resume\nAttempting a hard reboot\n";
        assert_eq!(reentries(&format!("{START}{resume}{START}")), 1);
        assert_eq!(reentries(&format!("{START}{START}{START}")), 2);
        assert_eq!(reentries(&format!("{START}In resume (status=0)\n")), 1);
    }
}
