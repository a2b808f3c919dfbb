//! What a boot loader says at entry: memory map, modules, command line, where firmware's tables are.
//!
//! Three protocols: the start info of PVH ([`BootItems::pvh`]), the boot information of Multiboot2
//! ([`BootItems::multiboot2`]) and Linux's boot parameters ([`BootItems::linux`]). Each is read into the
//! same [`BootItem`]s, one after the other and every byte once. Nothing in them is trusted: a list is
//! followed for [`MAX_ENTRIES`] at most, and an item that makes no sense is an error in
//! its place, after which the next item follows.
//!
//! ```
//! use acpi_capture::boot::{BootItem, BootItems};
//! use acpi_capture::memory::MemoryMap;
//! # use acpi_capture::ReadPhys;
//! # use handoff_abi::PhysAddr;
//! # struct Memory(Vec<u8>);
//! # impl ReadPhys for Memory {
//! #     type Error = ();
//! #     fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), ()> {
//! #         let from = usize::try_from(at.0).map_err(drop)?;
//! #         into.copy_from_slice(self.0.get(from..from + into.len()).ok_or(())?);
//! #         Ok(())
//! #     }
//! # }
//! # let mut bytes = vec![0; 0x2000];
//! # bytes[0x1000..0x1008].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
//! # let (memory, start_info) = (Memory(bytes), PhysAddr(0x1000));
//! let mut map = MemoryMap::<128>::new();
//! let mut rsdp = None;
//! for item in BootItems::pvh(&memory, start_info)? {
//!     match item? {
//!         BootItem::Memory(region) => map.insert(region)?,
//!         BootItem::Rsdp(at) => rsdp = Some(at),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

use core::fmt;

use handoff_abi::{PhysAddr, PhysRange};

use crate::ReadPhys;
use crate::memory::{MemoryRegion, SetupError};

mod linux;
mod multiboot2;
mod pvh;
mod run;

use linux::ZeroPage;
use multiboot2::Tags;
use pvh::StartInfo;
use run::Run;

/// The most entries of one list that are read, and the most tags.
pub const MAX_ENTRIES: u32 = 4096;

/// What EAX holds when a Multiboot2 loader enters the kernel.
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

/// A frame buffer that firmware or the boot loader set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Framebuffer {
    /// Where its first pixel is.
    pub base: PhysAddr,
    /// Bytes from a line to the next.
    pub pitch: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits of a pixel.
    pub bits_per_pixel: u8,
}

/// One thing that the boot loader says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BootItem {
    /// Where the command line is: bytes up to a zero.
    CommandLine(PhysAddr),
    /// A file that the boot loader put into memory.
    Module {
        /// Its bytes.
        range: PhysRange,
        /// Its own command line, up to a zero.
        command_line: Option<PhysAddr>,
    },
    /// A region of the memory map. Where several maps are given, all of their regions come.
    Memory(MemoryRegion),
    /// Where the RSDP is, or a copy of it that the boot loader made.
    Rsdp(PhysAddr),
    /// A copy of the RSDP as ACPI 1.0 has it, of 20 bytes. Of use where no [`Self::Rsdp`] comes.
    RsdpV1(PhysAddr),
    /// Where an SMBIOS entry point is, or a copy of it that the boot loader made.
    Smbios {
        /// Where.
        entry: PhysAddr,
        /// Whether it is the 64-bit entry point of SMBIOS 3.
        is_64_bit: bool,
    },
    /// The UEFI system table.
    EfiSystemTable(PhysAddr),
    /// UEFI's boot services were left running, so that its memory map is not the last one.
    EfiBootServices,
    /// A frame buffer.
    Framebuffer(Framebuffer),
    /// The protocol's own structure. Other items may point into it, and the memory map does not know
    /// of it: it is kept as it is until they were copied out.
    Structure(PhysRange),
}

/// What is wrong with what the boot loader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BootError {
    /// Memory that has to be read cannot be. What follows from it is missing.
    Unreadable {
        /// Where.
        address: PhysAddr,
    },
    /// There is something else where the protocol's structure was to be.
    Magic {
        /// Where.
        address: PhysAddr,
        /// What is there.
        found: u32,
    },
    /// The structure is of a version that says too little.
    Version {
        /// The structure.
        address: PhysAddr,
        /// Its version.
        found: u32,
        /// The version that is needed.
        needed: u32,
    },
    /// A structure has fewer bytes than it needs, or more than there are.
    Length {
        /// The structure.
        address: PhysAddr,
        /// Bytes it says it has.
        length: u32,
    },
    /// A module or a list would wrap past the end of the address space.
    Wraps {
        /// Where it begins.
        address: PhysAddr,
        /// Bytes it was to have.
        length: u64,
    },
    /// There are more entries than are followed.
    TooMany {
        /// The first one not read.
        address: PhysAddr,
    },
    /// An item of Linux's `setup_data` is wrong.
    Setup(SetupError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { address } => {
                write!(f, "what the boot loader left at {address} is unreadable")
            }
            Self::Magic { address, found } => write!(
                f,
                "the boot loader's structure was to be at {address}, there is {found:#010x}"
            ),
            Self::Version {
                address,
                found,
                needed,
            } => write!(
                f,
                "the boot loader's structure at {address} is of version {found:#x}, {needed:#x} is needed"
            ),
            Self::Length { address, length } => write!(
                f,
                "the boot loader's structure at {address} cannot have {length} bytes"
            ),
            Self::Wraps { address, length } => write!(
                f,
                "what the boot loader left at {address} was to have {length:#x} bytes"
            ),
            Self::TooMany { address } => {
                write!(f, "the boot loader's list from {address} on is too long")
            }
            Self::Setup(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for BootError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Setup(error) => Some(error),
            _ => None,
        }
    }
}

/// What a protocol says next: an item, or a list of them.
#[derive(Clone, Copy, Debug)]
enum Step {
    Item(BootItem),
    List(Run),
}

#[derive(Clone, Debug)]
enum Protocol<M> {
    Pvh(StartInfo),
    Multiboot2(Tags),
    Linux(ZeroPage<M>),
}

/// What the boot loader says, in the order in which it says it.
#[derive(Clone, Debug)]
pub struct BootItems<M> {
    memory: M,
    protocol: Protocol<M>,
    list: Option<Run>,
}

impl<M: ReadPhys + Clone> BootItems<M> {
    const fn new(memory: M, protocol: Protocol<M>) -> Self {
        Self {
            memory,
            protocol,
            list: None,
        }
    }

    /// What PVH passes in EBX: the start info (`hvm_start_info` of Xen's "x86/HVM direct boot ABI").
    ///
    /// # Errors
    /// Where there is no start info of version 1 or later.
    pub fn pvh(memory: M, start_info: PhysAddr) -> Result<Self, BootError> {
        let protocol = Protocol::Pvh(StartInfo::read(&memory, start_info)?);
        Ok(Self::new(memory, protocol))
    }

    /// What Multiboot2 passes in EBX: the boot information (Multiboot2 Specification 2.0,
    /// section 3.6). That EAX had [`MULTIBOOT2_MAGIC`] is for the caller to see.
    ///
    /// # Errors
    /// Where it cannot be read, or is too short to hold a tag.
    pub fn multiboot2(memory: M, information: PhysAddr) -> Result<Self, BootError> {
        let protocol = Protocol::Multiboot2(Tags::read(&memory, information)?);
        Ok(Self::new(memory, protocol))
    }

    /// What Linux's boot protocol passes in RSI: the boot parameters, called the zero page, of
    /// version 2.12 or later, and `setup_data` as far as it holds more of the memory map.
    ///
    /// # Errors
    /// Where they cannot be read, or are not of such a version.
    pub fn linux(memory: M, boot_params: PhysAddr) -> Result<Self, BootError> {
        let protocol = Protocol::Linux(ZeroPage::read(memory.clone(), boot_params)?);
        Ok(Self::new(memory, protocol))
    }
}

impl<M: ReadPhys> Iterator for BootItems<M> {
    type Item = Result<BootItem, BootError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(list) = &mut self.list {
                if let Some(item) = list.next(&self.memory) {
                    return Some(item);
                }
                self.list = None;
            }
            let step = match &mut self.protocol {
                Protocol::Pvh(start_info) => Ok(start_info.next()?),
                Protocol::Multiboot2(tags) => tags.next(&self.memory)?,
                Protocol::Linux(zero_page) => zero_page.next()?,
            };
            match step {
                Ok(Step::Item(item)) => return Some(Ok(item)),
                Ok(Step::List(list)) => self.list = Some(list),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Copies a structure out.
fn load<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    memory: &impl ReadPhys,
    at: PhysAddr,
) -> Result<T, BootError> {
    let mut raw = T::new_zeroed();
    memory
        .read(at, raw.as_mut_bytes())
        .map_err(|_| BootError::Unreadable { address: at })?;
    Ok(raw)
}

/// An address, where one is given.
const fn given(address: u64) -> Option<PhysAddr> {
    if address == 0 {
        None
    } else {
        Some(PhysAddr(address))
    }
}

/// A module of these bytes.
fn module(base: u64, length: u64, command_line: Option<PhysAddr>) -> Result<BootItem, BootError> {
    match PhysRange::new(PhysAddr(base), length) {
        Ok(range) => Ok(BootItem::Module {
            range,
            command_line,
        }),
        Err(_) => Err(BootError::Wraps {
            address: PhysAddr(base),
            length,
        }),
    }
}

/// The protocol's structure.
fn structure(address: PhysAddr, length: u64) -> Result<BootItem, BootError> {
    PhysRange::new(address, length)
        .map(BootItem::Structure)
        .map_err(|_| BootError::Wraps { address, length })
}
