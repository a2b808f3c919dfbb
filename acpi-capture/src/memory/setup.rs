//! `setup_data`: what a boot loader hands to Linux beside its boot parameters (Linux boot protocol
//! 2.09 and later, "64-bit physical pointer to linked list of struct setup_data").

use core::fmt;

use handoff_abi::{PhysAddr, PhysRange};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use crate::ReadPhys;

#[derive(FromBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned)]
#[repr(C)]
struct HeaderRaw {
    next: U64,
    kind: U32,
    length: U32,
}

#[derive(FromBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned)]
#[repr(C)]
struct IndirectRaw {
    kind: U32,
    reserved: U32,
    length: U64,
    address: U64,
}

/// What an item of `setup_data` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SetupKind {
    /// 1: entries of the system address map that did not fit the boot parameters.
    E820Extension,
    /// 2: a device tree.
    DeviceTree,
    /// 3: the option ROM of a PCI function.
    PciRom,
    /// 4: what UEFI said.
    Efi,
    /// 5: properties of devices of Apple's.
    AppleProperties,
    /// 6: the setup of a Jailhouse cell.
    Jailhouse,
    /// 7: the blob of a confidential guest.
    ConfidentialComputing,
    /// 8: the measurements of the kernel before.
    Ima,
    /// 9: a seed of randomness.
    RngSeed,
    /// 10: what the kernel before hands over (kexec handover).
    KexecHandover,
    /// Any other number.
    Unknown(u32),
}

impl SetupKind {
    const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::E820Extension,
            2 => Self::DeviceTree,
            3 => Self::PciRom,
            4 => Self::Efi,
            5 => Self::AppleProperties,
            6 => Self::Jailhouse,
            7 => Self::ConfidentialComputing,
            8 => Self::Ima,
            9 => Self::RngSeed,
            10 => Self::KexecHandover,
            number => Self::Unknown(number),
        }
    }
}

/// An item of `setup_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SetupItem {
    /// Where its header is.
    pub header: PhysAddr,
    /// What it is.
    pub kind: SetupKind,
    /// Its data; elsewhere than behind the header, where it is indirect.
    pub data: PhysRange,
    /// Whether the header only points to the data.
    pub indirect: bool,
}

/// Why the list ends where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SetupError {
    /// The memory of an item cannot be read. The list ends here.
    Unreadable {
        /// Where its header is, or was to be.
        header: PhysAddr,
    },
    /// The data of an item would wrap past the end of the address space. The next item is still
    /// read.
    Wraps {
        /// Where its header is.
        header: PhysAddr,
        /// Bytes the data was to have.
        length: u64,
    },
    /// An indirect item has too few bytes to say what it points to, or points to an indirect one.
    /// The next item is still read.
    Indirect {
        /// Where its header is.
        header: PhysAddr,
    },
    /// There are more items than are followed; the list may be a ring.
    TooMany {
        /// The first one not read.
        header: PhysAddr,
    },
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { header } => {
                write!(f, "the setup data at {header} is unreadable")
            }
            Self::Wraps { header, length } => {
                write!(f, "the setup data at {header} is to have {length:#x} bytes")
            }
            Self::Indirect { header } => {
                write!(f, "the setup data at {header} points nowhere")
            }
            Self::TooMany { header } => {
                write!(f, "the setup data from {header} on is too much")
            }
        }
    }
}

impl core::error::Error for SetupError {}

/// The items of `setup_data`, in order. Each header is read once.
#[derive(Clone, Debug)]
pub struct SetupData<M> {
    memory: M,
    next: PhysAddr,
    followed: usize,
}

impl<M: ReadPhys> SetupData<M> {
    /// The most items that are followed. Linux itself makes fewer than ten.
    pub const MAX_ITEMS: usize = 64;
    /// The bit of the type field that says that the data is elsewhere.
    const INDIRECT: u32 = 1 << 31;

    /// The list that begins at `first`, which the boot parameters give; zero for an empty one.
    #[must_use]
    pub const fn new(memory: M, first: PhysAddr) -> Self {
        Self {
            memory,
            next: first,
            followed: 0,
        }
    }

    fn item(&self, header: PhysAddr, raw: &HeaderRaw) -> Result<SetupItem, SetupError> {
        let length = u64::from(raw.length.get());
        let wraps = |length| SetupError::Wraps { header, length };
        let data = header
            .checked_add(size_of::<HeaderRaw>() as u64)
            .and_then(|at| PhysRange::new(at, length).ok())
            .ok_or(wraps(length))?;
        // Linux marks an indirect item by the bit alone, in the header; the type of the data is
        // in the data, with the bit.
        if raw.kind.get() & Self::INDIRECT == 0 {
            return Ok(SetupItem {
                header,
                kind: SetupKind::from_number(raw.kind.get()),
                data,
                indirect: false,
            });
        }
        let mut bytes = [0; size_of::<IndirectRaw>()];
        if data.length() < bytes.len() as u64 {
            return Err(SetupError::Indirect { header });
        }
        self.memory
            .read(data.base(), &mut bytes)
            .map_err(|_| SetupError::Indirect { header })?;
        let raw: IndirectRaw = zerocopy::transmute!(bytes);
        let kind = raw.kind.get() & !Self::INDIRECT;
        if kind == 0 {
            return Err(SetupError::Indirect { header });
        }
        let length = raw.length.get();
        Ok(SetupItem {
            header,
            kind: SetupKind::from_number(kind),
            data: PhysRange::new(PhysAddr(raw.address.get()), length).map_err(|_| wraps(length))?,
            indirect: true,
        })
    }
}

impl<M: ReadPhys> Iterator for SetupData<M> {
    type Item = Result<SetupItem, SetupError>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.next;
        if header.0 == 0 {
            return None;
        }
        self.next = PhysAddr(0);
        if self.followed >= Self::MAX_ITEMS {
            return Some(Err(SetupError::TooMany { header }));
        }
        self.followed = self.followed.saturating_add(1);
        let mut bytes = [0; size_of::<HeaderRaw>()];
        if self.memory.read(header, &mut bytes).is_err() {
            return Some(Err(SetupError::Unreadable { header }));
        }
        let raw: HeaderRaw = zerocopy::transmute!(bytes);
        self.next = PhysAddr(raw.next.get());
        Some(self.item(header, &raw))
    }
}
