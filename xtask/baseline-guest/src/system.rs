//! What an init system would have done: mounts, modules, names.

use std::error::Error;
use std::fs;

use baseline_guest::control::BootId;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

pub(crate) fn mount_all() -> Result<(), Box<dyn Error>> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target)?;
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|e| format!("mount {target}: {e}"))?;
    }
    Ok(())
}

/// Loads the modules that a list in the root directory names, in its order.
pub(crate) fn load_modules(list: &str) -> Result<(), Box<dyn Error>> {
    let names = fs::read_to_string(format!("/{list}")).map_err(|e| format!("{list}: {e}"))?;
    for name in names.lines() {
        let file = fs::File::open(format!("/{name}")).map_err(|e| format!("{name}: {e}"))?;
        finit_module(&file, c"", ModuleInitFlags::empty()).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

pub(crate) fn boot_id() -> Result<BootId, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    Ok(u128::from_str_radix(&digits, 16)
        .map_err(|e| format!("boot id {text:?}: {e}"))?
        .to_be_bytes())
}

/// Release and version of the running kernel.
pub(crate) fn kernel_name() -> Result<String, Box<dyn Error>> {
    let name = nix::sys::utsname::uname()?;
    Ok(format!(
        "{} {} {}",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.version().to_string_lossy()
    ))
}

pub(crate) fn uptime_ms() -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/uptime")?;
    let (seconds, hundredths) = text
        .split_whitespace()
        .next()
        .and_then(|first| first.split_once('.'))
        .ok_or_else(|| format!("uptime {text:?}"))?;
    Ok(seconds.parse::<u64>()? * 1000 + hundredths.parse::<u64>()? * 10)
}

/// The time stamp counter of the processor that this runs on.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every processor with 64-bit mode has the counter, and Linux lets programs read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
