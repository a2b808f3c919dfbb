//! Why a Linux kernel is refused.

use core::fmt;

use handoff_abi::PhysRange;

/// Why a file is not a kernel that can be started by the 64-bit boot protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BzImageError {
    /// It ends before its headers, or before what they say is in it.
    Truncated {
        /// Bytes there are.
        have: usize,
    },
    /// It has no boot flag AA55h; `boot_flag`.
    BootFlag(u16),
    /// It has no setup header; what is there instead of `HdrS`.
    Magic(u32),
    /// Its boot protocol is older than 2.12, or not 2; `version`.
    Version(u16),
    /// Its setup header is too short for version 2.12, or longer than its place.
    HeaderLength {
        /// The offset at which it ends.
        end: usize,
    },
    /// It is a zImage, which is loaded below 1 MiB; `loadflags`.
    LoadedLow,
    /// It has no 64-bit entry: XLF_KERNEL_64 is not set.
    No64BitEntry {
        /// `xloadflags`.
        xloadflags: u16,
    },
    /// Its protected-mode part has no room for an entry.
    NoKernel {
        /// Bytes of that part.
        length: usize,
    },
    /// The compressed kernel is not inside the protected-mode part.
    Payload {
        /// `payload_offset`.
        offset: u32,
        /// `payload_length`.
        length: u32,
    },
    /// The alignment is not a power of two from 4 KiB to 1 GiB, or less than the least.
    Alignment {
        /// `kernel_alignment`.
        kernel_alignment: u32,
        /// `min_alignment`, the logarithm of the least.
        min_alignment: u8,
    },
    /// The preferred address is 0, not aligned, or too high; `pref_address`.
    PreferredAddress(u64),
    /// The room that the kernel asks for does not hold what is loaded.
    InitSize {
        /// `init_size`.
        init_size: u64,
        /// Bytes that are loaded.
        length: usize,
    },
}

impl fmt::Display for BzImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { have } => {
                write!(f, "the kernel is truncated: it ends after {have} bytes")
            }
            Self::BootFlag(flag) => {
                write!(f, "the kernel has boot flag {flag:#06x}, not 0xaa55")
            }
            Self::Magic(magic) => {
                write!(f, "the kernel has no setup header: {magic:#010x}, not HdrS")
            }
            Self::Version(version) => write!(
                f,
                "the kernel's boot protocol is {}.{:02}, not 2.12 to 2.255",
                version >> 8,
                version & 0xff
            ),
            Self::HeaderLength { end } => {
                write!(f, "the kernel's setup header cannot end at {end:#x}")
            }
            Self::LoadedLow => f.write_str("the kernel is to be loaded below 1 MiB"),
            Self::No64BitEntry { xloadflags } => write!(
                f,
                "the kernel has no 64-bit entry: xloadflags {xloadflags:#06x}"
            ),
            Self::NoKernel { length } => {
                write!(f, "the kernel's protected-mode part has {length} bytes")
            }
            Self::Payload { offset, length } => write!(
                f,
                "the kernel's payload of {length:#x} bytes at {offset:#x} is not in it"
            ),
            Self::Alignment {
                kernel_alignment,
                min_alignment,
            } => write!(
                f,
                "the kernel's alignment {kernel_alignment:#x}, at least 1 << {min_alignment}, is none"
            ),
            Self::PreferredAddress(address) => {
                write!(f, "the kernel cannot prefer address {address:#x}")
            }
            Self::InitSize { init_size, length } => write!(
                f,
                "the kernel asks for {init_size:#x} bytes and has {length:#x}"
            ),
        }
    }
}

impl core::error::Error for BzImageError {}

/// Why an initial RAM disk is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InitrdError {
    /// There is nothing in it.
    Empty,
    /// What is there is neither an archive nor compressed in a way that Linux knows.
    Unknown {
        /// Where.
        offset: usize,
    },
    /// An archive's member makes no sense, or the archive ends before its trailer.
    Damaged {
        /// Where the member begins.
        offset: usize,
    },
}

impl fmt::Display for InitrdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the initial RAM disk is empty"),
            Self::Unknown { offset } => write!(
                f,
                "the initial RAM disk has no archive at {offset:#x} and nothing that can be unpacked"
            ),
            Self::Damaged { offset } => write!(
                f,
                "the initial RAM disk's archive is damaged at {offset:#x}, or ends too soon"
            ),
        }
    }
}

impl core::error::Error for InitrdError {}

/// What room is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Piece {
    /// The kernel, with what it needs until it has read its memory map.
    Kernel,
    /// Zero page, command line and `setup_data`.
    Parameters,
    /// The initial RAM disk.
    Initrd,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel",
            Self::Parameters => "the kernel's parameters",
            Self::Initrd => "the initial RAM disk",
        })
    }
}

/// Why a kernel cannot be placed in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum LinuxPlaceError {
    /// The memory map is not in ascending order, overlaps, or has an empty range or more entries than
    /// can be told; the first entry that is wrong.
    MemoryMap {
        /// Its place in the map.
        entry: usize,
    },
    /// There is not enough RAM below 1 MiB, where Linux starts its further processors from. The first
    /// 64 KiB do not count, nor does what lies from 9F000h on.
    NoLowMemory {
        /// Bytes that are needed in one piece.
        need: u64,
        /// Bytes of the largest piece.
        have: u64,
    },
    /// There is no room.
    NoRoom {
        /// For what.
        piece: Piece,
        /// Bytes that are needed in one piece.
        need: u64,
        /// What its address must be a multiple of.
        alignment: u64,
        /// Bytes of the largest piece below `limit`, from 1 MiB on.
        have: u64,
        /// The address past the last that it may have.
        limit: u64,
    },
    /// The kernel only runs at one address, and there is no room there.
    NotRelocatable(PhysRange),
    /// The command line is longer than the kernel takes.
    CommandLineLength {
        /// Bytes it has.
        have: u64,
        /// Bytes it may have.
        limit: u64,
    },
    /// The command line has a zero in it, where Linux would take it to end.
    CommandLineZero {
        /// Where.
        offset: usize,
    },
    /// The kernel does not take the place of the RSDP from its zero page, and would use the whole
    /// machine's tables: its boot protocol is older than 2.15; `version`.
    RsdpIgnored(u16),
    /// The RSDP cannot be at address 0, which stands for none.
    Rsdp,
    /// The processor uses 5-level paging and the kernel cannot be entered so.
    FiveLevelPaging,
    /// The initial RAM disk cannot be used.
    Initrd(InitrdError),
    /// The initial RAM disk is larger than can be told.
    InitrdLength(usize),
    /// An item of `setup_data` is one that the loader makes itself, is indirect, or is too long.
    SetupData {
        /// Its place.
        item: usize,
    },
}

impl fmt::Display for LinuxPlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemoryMap { entry } => {
                write!(f, "entry {entry} of the kernel's memory map is impossible")
            }
            Self::NoLowMemory { need, have } => write!(
                f,
                "Linux needs {need:#x} bytes of RAM between 0x10000 and 0x9f000 and has {have:#x}"
            ),
            Self::NoRoom {
                piece,
                need,
                alignment,
                have,
                limit,
            } => write!(
                f,
                "{piece} needs {need:#x} bytes at a multiple of {alignment:#x} below {limit:#x}; \
                 the largest piece has {have:#x}"
            ),
            Self::NotRelocatable(range) => {
                write!(
                    f,
                    "the kernel only runs at {range}, which is not all free RAM"
                )
            }
            Self::CommandLineLength { have, limit } => write!(
                f,
                "the command line has {have} bytes; the kernel takes {limit}"
            ),
            Self::CommandLineZero { offset } => {
                write!(f, "the command line has a zero at {offset}")
            }
            Self::RsdpIgnored(version) => write!(
                f,
                "the kernel's boot protocol {}.{:02} does not say that it takes its RSDP from the \
                 zero page: 2.15 does",
                version >> 8,
                version & 0xff
            ),
            Self::Rsdp => f.write_str("the RSDP cannot be at address 0"),
            Self::FiveLevelPaging => {
                f.write_str("the kernel cannot be entered with 5-level paging")
            }
            Self::Initrd(error) => error.fmt(f),
            Self::InitrdLength(length) => {
                write!(f, "an initial RAM disk of {length:#x} bytes is too large")
            }
            Self::SetupData { item } => {
                write!(f, "item {item} of setup_data cannot be passed on")
            }
        }
    }
}

impl core::error::Error for LinuxPlaceError {}

impl From<InitrdError> for LinuxPlaceError {
    fn from(error: InitrdError) -> Self {
        Self::Initrd(error)
    }
}
