//! What the boot loader says at entry, copied out: memory map, modules, command line, firmware's tables.

use core::fmt;

use acpi_capture::boot::{BootError, BootItem, BootItems, MULTIBOOT2_MAGIC};
use acpi_capture::memory::{MapError, MemoryKind, MemoryMap, MemoryRegion};
use acpi_capture::{ReadPhys, SmbiosSource};
use handoff_abi::{PhysAddr, PhysRange};
use heapless::Vec;

const MAX_REGIONS: usize = 128;
const MAX_MODULES: usize = 4;
const MAX_COMMAND_LINE: usize = 1024;

/// What the boot loader says.
#[derive(Clone, Debug)]
pub struct BootInfo {
    map: MemoryMap<MAX_REGIONS>,
    /// The modules.
    pub modules: Vec<PhysRange, MAX_MODULES>,
    /// Where the RSDP is.
    pub rsdp: PhysAddr,
    /// Where SMBIOS is to be looked for.
    pub smbios: SmbiosSource,
    /// The boot loader's structure, in which the RSDP may lie.
    pub structure: PhysRange,
    command_line: Vec<u8, MAX_COMMAND_LINE>,
}

/// Why a kernel does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBootInfo {
    /// The kernel was entered by a boot loader, and this is not what Multiboot2 has in EAX.
    Loader(u32),
    /// The boot loader's structure is wrong.
    Boot(BootError),
    /// There are too many regions.
    Map(MapError),
    /// There are too many modules.
    Modules,
    /// The command line is too long.
    CommandLine,
    /// There is no RSDP.
    NoRsdp,
}

impl fmt::Display for NoBootInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(magic) => write!(f, "no boot loader has {magic:#x} in EAX"),
            Self::Boot(error) => fmt::Display::fmt(error, f),
            Self::Map(error) => fmt::Display::fmt(error, f),
            Self::Modules => write!(f, "there are more than {MAX_MODULES} modules"),
            Self::CommandLine => {
                write!(f, "the command line has more than {MAX_COMMAND_LINE} bytes")
            }
            Self::NoRsdp => f.write_str("the boot loader names no RSDP"),
        }
    }
}

impl From<BootError> for NoBootInfo {
    fn from(error: BootError) -> Self {
        Self::Boot(error)
    }
}

/// Memory below 4 GiB, which the boot tables map.
#[derive(Clone, Copy)]
struct Low;

impl ReadPhys for Low {
    type Error = ();

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), ()> {
        let end = at.checked_add(into.len() as u64).ok_or(())?;
        if at.0 == 0 || end.0 > 1 << 32 {
            return Err(());
        }
        for (address, byte) in (at.0..).zip(into) {
            let pointer = core::ptr::with_exposed_provenance::<u8>(address as usize);
            // SAFETY: `BootInfo::read`'s caller says that all of it is mapped; nobody else runs, and
            // any byte is a byte.
            *byte = unsafe { pointer.read_volatile() };
        }
        Ok(())
    }
}

impl BootInfo {
    /// Copies it out.
    ///
    /// # Errors
    /// Where it is not one that can be understood, or says more than there is room for.
    ///
    /// # Safety
    /// The first 4 GiB are mapped at their physical addresses.
    pub unsafe fn read(loader: u32, information: PhysAddr) -> Result<Self, NoBootInfo> {
        let items = match loader {
            0 => BootItems::pvh(Low, information),
            MULTIBOOT2_MAGIC => BootItems::multiboot2(Low, information),
            other => return Err(NoBootInfo::Loader(other)),
        }?;
        let nothing = PhysRange::from_bounds(PhysAddr(0), PhysAddr(0));
        let mut info = Self {
            map: MemoryMap::new(),
            modules: Vec::new(),
            rsdp: PhysAddr(0),
            smbios: SmbiosSource::Scan,
            structure: nothing,
            command_line: Vec::new(),
        };
        let (mut rsdp, mut rsdp_v1) = (None, None);
        let (mut entry_32, mut entry_64) = (None, None);
        for item in items {
            match item? {
                BootItem::Memory(region) => info.map.insert(region).map_err(NoBootInfo::Map)?,
                BootItem::Module { range, .. } => {
                    let pushed = info.modules.push(range);
                    pushed.map_err(|_| NoBootInfo::Modules)?;
                }
                BootItem::CommandLine(at) => info.copy_command_line(at)?,
                BootItem::Rsdp(at) => rsdp = Some(at),
                BootItem::RsdpV1(at) => rsdp_v1 = Some(at),
                BootItem::Smbios { entry, is_64_bit } => {
                    *(if is_64_bit {
                        &mut entry_64
                    } else {
                        &mut entry_32
                    }) = Some(entry);
                }
                BootItem::Structure(range) => info.structure = range,
                _ => {}
            }
        }
        if entry_32.or(entry_64).is_some() {
            info.smbios = SmbiosSource::At { entry_32, entry_64 };
        }
        info.rsdp = rsdp.or(rsdp_v1).ok_or(NoBootInfo::NoRsdp)?;
        Ok(info)
    }

    fn copy_command_line(&mut self, from: PhysAddr) -> Result<(), NoBootInfo> {
        for offset in 0.. {
            let address = PhysAddr(from.0 + offset);
            let mut byte = [0];
            let read = Low.read(address, &mut byte);
            read.map_err(|()| BootError::Unreadable { address })?;
            if byte == [0] {
                break;
            }
            let pushed = self.command_line.push(byte[0]);
            pushed.map_err(|_| NoBootInfo::CommandLine)?;
        }
        Ok(())
    }

    /// The memory map.
    #[must_use]
    pub fn memory(&self) -> &[MemoryRegion] {
        self.map.regions()
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

    /// The ranges of usable memory.
    pub fn usable(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.memory()
            .iter()
            .filter(|region| region.kind == MemoryKind::Usable)
            .map(|region| region.range)
    }
}
