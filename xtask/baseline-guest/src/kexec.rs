//! Loading the next kernel while the service goes on.

use std::error::Error;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use baseline_guest::control::KexecState;
use baseline_guest::layout;
use nix::libc;

/// The preparation of a kexec, which a thread of its own carries out.
pub(crate) struct Preparation {
    progress: Arc<Mutex<(KexecState, Option<String>)>>,
}

impl Default for Preparation {
    fn default() -> Self {
        Self {
            progress: Arc::new(Mutex::new((KexecState::Idle, None))),
        }
    }
}

impl Preparation {
    /// Starts the preparation, unless that has been done.
    pub(crate) fn start(&mut self) -> std::io::Result<()> {
        if self.state().0 != KexecState::Idle {
            return Ok(());
        }
        let progress = Arc::clone(&self.progress);
        thread::Builder::new().spawn(move || {
            let end = match load() {
                Ok(()) => (KexecState::Loaded, None),
                Err(reason) => (KexecState::Failed, Some(reason.to_string())),
            };
            *progress.lock().unwrap_or_else(PoisonError::into_inner) = end;
        })?;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.0 == KexecState::Idle {
            progress.0 = KexecState::Loading;
        }
        Ok(())
    }

    /// How far it is, and why it failed.
    pub(crate) fn state(&self) -> (KexecState, Option<String>) {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn load() -> Result<(), Box<dyn Error>> {
    crate::system::load_modules(layout::DISK_MODULES)?;
    let disk = find_disk()?;
    let mut reader = BufReader::with_capacity(1 << 20, disk);
    loop {
        let archive = cpio::newc::Reader::new(reader)?;
        if archive.entry().is_trailer() {
            break;
        }
        // `kexec_file_load` wants regular files; the root file system is in memory.
        let name = archive.entry().name().to_owned();
        if name != layout::KERNEL && name != layout::INITRAMFS {
            return Err(format!("unknown file {name:?} on the disk").into());
        }
        reader = archive.to_writer(File::create(format!("/{name}"))?)?;
    }
    let kernel = open(layout::KERNEL)?;
    let initramfs = open(layout::INITRAMFS)?;
    let mut command_line = fs::read("/proc/cmdline")?;
    while command_line.last() == Some(&b'\n') {
        command_line.pop();
    }
    command_line.push(0);
    // SAFETY: both descriptors are open for the duration of the call; the pointer and
    // the length name a buffer that ends with its only zero byte, as the call wants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            command_line.len(),
            command_line.as_ptr(),
            0_usize,
        )
    };
    nix::errno::Errno::result(result).map_err(|e| format!("kexec_file_load: {e}"))?;
    // The kernel has its own copy now.
    drop((kernel, initramfs));
    fs::remove_file(format!("/{}", layout::KERNEL))?;
    fs::remove_file(format!("/{}", layout::INITRAMFS))?;
    Ok(())
}

/// Opens the disk that holds the kernel.
fn find_disk() -> Result<File, Box<dyn Error>> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        // A block device without a serial number is another one.
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim() == layout::DISK_SERIAL {
            return Ok(File::open(
                std::path::Path::new("/dev").join(entry.file_name()),
            )?);
        }
    }
    Err(format!("no disk has the serial number {:?}", layout::DISK_SERIAL).into())
}

fn open(name: &str) -> Result<File, Box<dyn Error>> {
    Ok(File::open(format!("/{name}")).map_err(|e| format!("{name} on the disk: {e}"))?)
}
