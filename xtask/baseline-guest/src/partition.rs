//! What Linux finds where its machine is one partition of a larger one: told on its console, one fact
//! a line, for the host to compare with what the partition was given.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use baseline_guest::layout;
use nix::libc;

use crate::system;

/// How long the console's or the disk's device may take to appear once its driver is loaded.
const APPEARANCE: Duration = Duration::from_secs(10);
/// Messages of the kernel that are errors or worse (`KERN_ERR` is 3), by their level.
const ERROR: u64 = 3;
/// What is an error whatever its level.
const ALARMS: [&str; 7] = [
    "BUG:",
    "Call Trace",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Exception",
    "WARNING:",
    "Oops",
];

/// Whether the command line says that this is a partition.
pub(crate) fn is_one() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .any(|word| word == layout::PARTITION)
}

/// The console, once its driver has one.
pub(crate) fn console() -> Result<File, Box<dyn Error>> {
    appears(Path::new(layout::CONSOLE))?;
    Ok(OpenOptions::new().write(true).open(layout::CONSOLE)?)
}

fn appears(path: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > APPEARANCE {
            return Err(format!("{} does not appear", path.display()).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Tells all facts. `first` is the time stamp counter at this program's start.
pub(crate) fn tell(console: &mut File, first: u64) -> Result<(), Box<dyn Error>> {
    let kernel = system::kernel_name()?;
    writeln!(console, "@linux-kernel first_tsc={first} text=\"{kernel}\"")?;
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let usable = std::thread::available_parallelism()?;
    writeln!(
        console,
        "@linux-cpus nproc={usable} online={}",
        online.trim()
    )?;
    memory(console)?;
    functions(console)?;
    disk(console)?;
    messages(console)?;
    writeln!(console, "@linux-ready")?;
    console.flush()?;
    Ok(())
}

fn memory(console: &mut File) -> Result<(), Box<dyn Error>> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let total: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or("/proc/meminfo has no total")?;
    writeln!(console, "@linux-memory bytes={}", total * 1024)?;
    // Only what is at the top level; what it contains is indented.
    let map = fs::read_to_string("/proc/iomem")?;
    for line in map.lines().filter(|line| !line.starts_with(' ')) {
        let (range, what) = line.split_once(" : ").ok_or("/proc/iomem has no names")?;
        let (first, last) = range.split_once('-').ok_or("/proc/iomem has no ranges")?;
        let first = u64::from_str_radix(first, 16)?;
        let last = u64::from_str_radix(last, 16)?;
        writeln!(
            console,
            "@linux-iomem base={first:#x} length={:#x} text=\"{what}\"",
            last - first + 1
        )?;
    }
    Ok(())
}

fn functions(console: &mut File) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<_> = fs::read_dir("/sys/bus/pci/devices")?
        .collect::<Result<Vec<_>, _>>()?
        .iter()
        .map(std::fs::DirEntry::path)
        .collect();
    entries.sort();
    for path in entries {
        let read = |name: &str| {
            let text = fs::read_to_string(path.join(name)).unwrap_or_default();
            text.trim().trim_start_matches("0x").to_owned()
        };
        let driver = fs::read_link(path.join("driver"))
            .ok()
            .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
        let messages = fs::read_dir(path.join("msi_irqs")).map_or(0, Iterator::count);
        writeln!(
            console,
            "@linux-function id={} device={}:{} class={} driver={} messages={messages}",
            path.file_name().unwrap_or_default().to_string_lossy(),
            read("vendor"),
            read("device"),
            read("class"),
            driver.as_deref().unwrap_or("none"),
        )?;
    }
    Ok(())
}

/// Writes a pattern to the disk and reads it back from the device. The host looks for it there.
fn disk(console: &mut File) -> Result<(), Box<dyn Error>> {
    let path = Path::new(layout::PARTITION_DISK);
    appears(path)?;
    let pattern: Vec<u8> = (0..layout::PATTERN_BYTES).map(layout::pattern).collect();
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    file.seek(SeekFrom::Start(layout::PATTERN_AT))?;
    file.write_all(&pattern)?;
    file.sync_all()?;
    // What is cached would be read from memory.
    let (at, length) = (layout::PATTERN_AT, layout::PATTERN_BYTES);
    nix::fcntl::posix_fadvise(
        &file,
        i64::try_from(at)?,
        i64::try_from(length)?,
        nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?;
    file.seek(SeekFrom::Start(at))?;
    let mut back = vec![0; pattern.len()];
    file.read_exact(&mut back)?;
    let bytes = file.seek(SeekFrom::End(0))?;
    writeln!(
        console,
        "@linux-disk bytes={bytes} written_and_read={}",
        back == pattern
    )?;
    Ok(())
}

/// The kernel's own messages: how many there are, and those that are errors.
fn messages(console: &mut File) -> Result<(), Box<dyn Error>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut record = [0; 8192];
    let mut count = 0_u64;
    loop {
        let length = match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            // Messages were overwritten before they were read: the next read goes on after them.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                writeln!(console, "@linux-error text=\"messages were lost\"")?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        count += 1;
        let text = String::from_utf8_lossy(&record[..length]);
        let (head, rest) = text.split_once(';').ok_or("a message has no head")?;
        let level: u64 = head.split(',').next().unwrap_or_default().parse()?;
        let line = rest.lines().next().unwrap_or_default().replace('"', "'");
        // The lower three bits; the rest is the facility.
        if level & 7 <= ERROR || ALARMS.iter().any(|alarm| line.contains(alarm)) {
            writeln!(console, "@linux-error level={} text=\"{line}\"", level & 7)?;
        }
    }
    writeln!(console, "@linux-messages count={count}")?;
    Ok(())
}
