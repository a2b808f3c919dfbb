//! What PVH says at entry: memory map, modules, command line, RSDP.

use handoff_abi::{PhysAddr, PhysRange};
use heapless::Vec;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// Lists longer than this are cut off, and [`BootInfo::truncated`] says so.
const MAX_ENTRIES: usize = 64;
const MAX_MODULES: usize = 4;
const MAX_COMMAND_LINE: usize = 1024;

/// A file the boot loader put into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its bytes.
    pub range: PhysRange,
}

/// The start info (Xen, "x86/HVM direct boot ABI", `hvm_start_info`), copied out.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// The memory map: range and type, as in ACPI 6.5, table 15.5 (1 is usable).
    pub memory: Vec<(PhysRange, u32), MAX_ENTRIES>,
    /// The modules.
    pub modules: Vec<Module, MAX_MODULES>,
    /// Where the RSDP is.
    pub rsdp: PhysAddr,
    command_line: Vec<u8, MAX_COMMAND_LINE>,
    /// Whether there was more than this structure has room for.
    pub truncated: bool,
}

impl BootInfo {
    /// Copies it out; `None` where there is no valid start info of version 1.
    ///
    /// # Safety
    /// The first 4 GiB are mapped at their physical addresses, and `start_info` is what PVH passed.
    #[must_use]
    pub unsafe fn read(start_info: PhysAddr) -> Option<Self> {
        let word = |offset: u64| {
            // SAFETY: the caller says that the start info is there and mapped.
            unsafe { load::<u32>(start_info.0 + offset) }
        };
        let long = |offset: u64| {
            // SAFETY: as above; version 1 of the structure is 56 bytes long.
            unsafe { load::<u64>(start_info.0 + offset) }
        };
        if start_info.0 == 0 || word(0) != MAGIC || word(4) < 1 {
            return None;
        }
        let mut info = Self {
            memory: Vec::new(),
            modules: Vec::new(),
            rsdp: PhysAddr(long(32)),
            command_line: Vec::new(),
            truncated: false,
        };
        let (modules, list) = (word(12), long(16));
        for index in 0..u64::from(modules) {
            let at = list + index * 32;
            // SAFETY: the list has as many entries of 32 bytes as the start info says.
            let base = unsafe { load::<u64>(at) };
            // SAFETY: as above.
            let size = unsafe { load::<u64>(at + 8) };
            let range = PhysRange::new(PhysAddr(base), size).ok()?;
            info.truncated |= info.modules.push(Module { range }).is_err();
        }
        let (map, entries) = (long(40), word(48));
        for index in 0..u64::from(entries) {
            let at = map + index * 24;
            // SAFETY: the map has as many entries of 24 bytes as the start info says.
            let base = unsafe { load::<u64>(at) };
            // SAFETY: as above.
            let size = unsafe { load::<u64>(at + 8) };
            // SAFETY: as above.
            let kind = unsafe { load::<u32>(at + 16) };
            let range = PhysRange::new(PhysAddr(base), size).ok()?;
            info.truncated |= info.memory.push((range, kind)).is_err();
        }
        let line = long(24);
        if line != 0 {
            for offset in 0.. {
                // SAFETY: the command line ends with a zero, which has not been read yet.
                let byte = unsafe { load::<u8>(line + offset) };
                if byte == 0 {
                    break;
                }
                if info.command_line.push(byte).is_err() {
                    info.truncated = true;
                    break;
                }
            }
        }
        Some(info)
    }

    /// The command line, or as much of it as is UTF-8.
    #[must_use]
    pub fn command_line(&self) -> &str {
        match str::from_utf8(&self.command_line) {
            Ok(line) => line,
            Err(error) => {
                str::from_utf8(&self.command_line[..error.valid_up_to()]).unwrap_or_default()
            }
        }
    }

    /// What follows `key=` in the command line.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        self.command_line()
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The ranges of usable memory.
    pub fn usable(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.memory
            .iter()
            .filter(|&&(_, kind)| kind == 1)
            .map(|&(range, _)| range)
    }
}

/// # Safety
/// `address` is mapped, readable, and every bit pattern is a `T`.
unsafe fn load<T: Copy>(address: u64) -> T {
    let pointer = core::ptr::with_exposed_provenance::<T>(address as usize);
    // SAFETY: the caller's promise.
    unsafe { pointer.read_unaligned() }
}
