//! The captured bytes and their directory, and the way back from there.
//!
//! Layout, all little-endian: a [`BlobHeader`], then its [`DirectoryEntry`]s, then the bytes of
//! the tables, each at a multiple of 8. Offsets count from the header's first byte.

use core::fmt;

use handoff_abi::PhysAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::smbios::{SmbiosEntry, SmbiosError, SmbiosStructures};
use crate::table::{
    Dmar, Fadt, Hmat, Hpet, Ivrs, Madt, Mcfg, Rsdp, RsdpError, Sdt, Signature, Slit, Srat,
    TableError,
};

/// `BATONFW` and a zero.
pub(super) const MAGIC: [u8; 8] = *b"BATONFW\0";
/// The version of the layout.
pub(super) const VERSION: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BlobHeader {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) length: U32,
    pub(super) entries: U32,
    pub(super) reserved: U32,
    pub(super) rsdp: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DirectoryEntry {
    pub(super) signature: [u8; 4],
    pub(super) kind: U16,
    pub(super) state: U16,
    pub(super) address: U64,
    /// Bytes the table itself states, also where they were not copied.
    pub(super) stated: U32,
    pub(super) offset: U32,
    pub(super) length: U32,
    pub(super) reserved: U32,
}

const _: () = assert!(size_of::<BlobHeader>() == 32 && size_of::<DirectoryEntry>() == 32);

/// What a captured table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum CapturedKind {
    /// The RSDP.
    Rsdp,
    /// A table with the common header.
    Sdt,
    /// The FACS, as it was at that moment: firmware and kernel both write it.
    Facs,
    /// An SMBIOS entry point.
    SmbiosEntry,
    /// SMBIOS structures.
    SmbiosStructures,
}

/// How the copying of a table went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum State {
    /// Copied, and sound as far as a checksum tells. (FACS and SMBIOS structures have none.)
    Sound,
    /// Copied, with a bad checksum.
    BadChecksum,
    /// Skipped: the memory there cannot be read.
    Unreadable,
    /// Skipped: what is there is no table.
    NotATable,
    /// Skipped: it is longer than the limit.
    TooLong,
    /// Skipped: the buffer is full.
    NoRoom,
    /// Skipped: there are more pointers than the limit allows to follow. The address is that of
    /// the first one not followed.
    TooMany,
    /// Skipped: the same address was captured before.
    Duplicate,
    /// Copied up to where the memory can be read: SMBIOS structures only.
    Shortened,
}

impl State {
    pub(super) const fn to_wire(self) -> u16 {
        match self {
            Self::Sound => 0,
            Self::BadChecksum => 1,
            Self::Unreadable => 2,
            Self::NotATable => 3,
            Self::TooLong => 4,
            Self::NoRoom => 5,
            Self::TooMany => 6,
            Self::Duplicate => 7,
            Self::Shortened => 8,
        }
    }

    const fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Sound,
            1 => Self::BadChecksum,
            2 => Self::Unreadable,
            3 => Self::NotATable,
            4 => Self::TooLong,
            5 => Self::NoRoom,
            6 => Self::TooMany,
            7 => Self::Duplicate,
            8 => Self::Shortened,
            _ => return None,
        })
    }

    /// Whether the bytes are in the capture.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        matches!(self, Self::Sound | Self::BadChecksum | Self::Shortened)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sound => "sound",
            Self::BadChecksum => "bad checksum",
            Self::Unreadable => "skipped, unreadable",
            Self::NotATable => "skipped, not a table",
            Self::TooLong => "skipped, too long",
            Self::NoRoom => "skipped, no room",
            Self::TooMany => "skipped with all after it, too many tables",
            Self::Duplicate => "skipped, listed before",
            Self::Shortened => "shortened, unreadable from there on",
        })
    }
}

impl CapturedKind {
    pub(super) const fn to_wire(self) -> u16 {
        match self {
            Self::Rsdp => 1,
            Self::Sdt => 2,
            Self::Facs => 3,
            Self::SmbiosEntry => 4,
            Self::SmbiosStructures => 5,
        }
    }

    const fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Rsdp,
            2 => Self::Sdt,
            3 => Self::Facs,
            4 => Self::SmbiosEntry,
            5 => Self::SmbiosStructures,
            _ => return None,
        })
    }
}

/// Why bytes are not a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BlobError {
    /// They do not begin with the magic number.
    Magic,
    /// The layout is of another version.
    Version {
        /// Which.
        found: u32,
    },
    /// There are fewer bytes than header or directory say.
    Truncated {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes there are.
        have: usize,
    },
    /// An entry of the directory points outside the blob, into the directory, or has a kind or
    /// state that is not known.
    Entry {
        /// Its place in the directory.
        index: usize,
    },
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("these bytes are not a capture"),
            Self::Version { found } => write!(f, "the capture has layout version {found}"),
            Self::Truncated { needed, have } => {
                write!(f, "the capture needs {needed} bytes and has {have}")
            }
            Self::Entry { index } => {
                write!(f, "entry {index} of the capture's directory is wrong")
            }
        }
    }
}

impl core::error::Error for BlobError {}

/// A table of a capture: its bytes and where they came from, or why they are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedTable<'a> {
    /// What it is.
    pub kind: CapturedKind,
    /// Its signature; `RSDP`, `FACS`, `_SM_`, `_SM3` or `SMBS` for what has no common header, and
    /// zeros where none could be read.
    pub signature: Signature,
    /// The address it had.
    pub address: PhysAddr,
    /// How the copying went.
    pub state: State,
    /// The length it states, also where it was not copied; zero where none could be read.
    pub stated_length: u32,
    /// Its bytes; none where they were not copied.
    pub bytes: &'a [u8],
}

/// What firmware told the first kernel.
#[derive(Clone, Copy)]
pub struct Capture<'a> {
    blob: &'a [u8],
    directory: &'a [DirectoryEntry],
    rsdp: PhysAddr,
}

impl<'a> Capture<'a> {
    /// Reads a capture. Bytes after it are ignored.
    ///
    /// # Errors
    /// Where the bytes are no capture, or one that is damaged.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let truncated = |needed: u64| BlobError::Truncated {
            needed,
            have: bytes.len(),
        };
        if !bytes.starts_with(&MAGIC) {
            return Err(BlobError::Magic);
        }
        let (header, _) = BlobHeader::read_from_prefix(bytes)
            .map_err(|_| truncated(size_of::<BlobHeader>() as u64))?;
        if header.version.get() != VERSION {
            return Err(BlobError::Version {
                found: header.version.get(),
            });
        }
        let length = header.length.get();
        let blob = usize::try_from(length)
            .ok()
            .and_then(|length| bytes.get(..length))
            .ok_or(truncated(u64::from(length)))?;
        let after = blob.get(size_of::<BlobHeader>()..).unwrap_or(&[]);
        let count = usize::try_from(header.entries.get()).unwrap_or(usize::MAX);
        let (directory, rest) = <[DirectoryEntry]>::ref_from_prefix_with_elems(after, count)
            .map_err(|_| {
                let entries = u64::from(header.entries.get())
                    .saturating_mul(size_of::<DirectoryEntry>() as u64);
                truncated(entries.saturating_add(size_of::<BlobHeader>() as u64))
            })?;
        let first_byte = blob.len().saturating_sub(rest.len());
        let capture = Self {
            blob,
            directory,
            rsdp: PhysAddr(header.rsdp.get()),
        };
        for (index, entry) in directory.iter().enumerate() {
            let offset = usize::try_from(entry.offset.get()).unwrap_or(usize::MAX);
            let in_place = entry.length.get() == 0 || offset >= first_byte;
            if !in_place || capture.view(entry).is_none() {
                return Err(BlobError::Entry { index });
            }
        }
        Ok(capture)
    }

    fn view(&self, entry: &DirectoryEntry) -> Option<CapturedTable<'a>> {
        let state = State::from_wire(entry.state.get())?;
        let offset = usize::try_from(entry.offset.get()).ok()?;
        let length = usize::try_from(entry.length.get()).ok()?;
        let bytes = self.blob.get(offset..)?.get(..length)?;
        if !state.is_copied() && !bytes.is_empty() {
            return None;
        }
        Some(CapturedTable {
            kind: CapturedKind::from_wire(entry.kind.get())?,
            signature: Signature(entry.signature),
            address: PhysAddr(entry.address.get()),
            state,
            stated_length: entry.stated.get(),
            bytes,
        })
    }

    /// All the bytes of the capture.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.blob
    }

    /// Where the RSDP was.
    #[must_use]
    pub fn rsdp_address(&self) -> PhysAddr {
        self.rsdp
    }

    /// Every table and every pointer that led to none, in the order they were reached.
    pub fn tables(&self) -> impl Iterator<Item = CapturedTable<'a>> + use<'a> {
        let capture = *self;
        self.directory
            .iter()
            .filter_map(move |entry| capture.view(entry))
    }

    /// The copied tables with a common header and this signature, in the order they were reached,
    /// whatever their checksums.
    pub fn all(&self, signature: Signature) -> impl Iterator<Item = CapturedTable<'a>> + use<'a> {
        self.tables().filter(move |table| {
            table.kind == CapturedKind::Sdt
                && table.state.is_copied()
                && table.signature == signature
        })
    }

    /// The first sound table with this signature. Where firmware lists one signature twice, the
    /// first is the one that counts.
    #[must_use]
    pub fn find(&self, signature: Signature) -> Option<Sdt<'a>> {
        self.all(signature)
            .find_map(|table| Sdt::parse(table.bytes).ok())
    }

    fn typed<T>(
        &self,
        signature: Signature,
        view: impl Fn(Sdt<'a>) -> Result<T, TableError>,
    ) -> Option<Result<T, TableError>> {
        self.find(signature).map(view)
    }

    /// The RSDP.
    ///
    /// # Errors
    /// Where the blob holds something else in its place.
    pub fn rsdp(&self) -> Result<Rsdp, RsdpError> {
        let bytes = self
            .tables()
            .find(|table| table.kind == CapturedKind::Rsdp)
            .map_or(&[][..], |table| table.bytes);
        Rsdp::parse(bytes)
    }

    /// The MADT, if there is a sound one.
    #[must_use]
    pub fn madt(&self) -> Option<Result<Madt<'a>, TableError>> {
        self.typed(Signature::MADT, Madt::from_sdt)
    }

    /// The FADT, if there is a sound one.
    #[must_use]
    pub fn fadt(&self) -> Option<Result<Fadt<'a>, TableError>> {
        self.typed(Signature::FADT, Fadt::from_sdt)
    }

    /// The MCFG, if there is a sound one.
    #[must_use]
    pub fn mcfg(&self) -> Option<Result<Mcfg<'a>, TableError>> {
        self.typed(Signature::MCFG, Mcfg::from_sdt)
    }

    /// The SRAT, if there is a sound one.
    #[must_use]
    pub fn srat(&self) -> Option<Result<Srat<'a>, TableError>> {
        self.typed(Signature::SRAT, Srat::from_sdt)
    }

    /// The SLIT, if there is a sound one.
    #[must_use]
    pub fn slit(&self) -> Option<Result<Slit<'a>, TableError>> {
        self.typed(Signature::SLIT, Slit::from_sdt)
    }

    /// The HMAT, if there is a sound one.
    #[must_use]
    pub fn hmat(&self) -> Option<Result<Hmat<'a>, TableError>> {
        self.typed(Signature::HMAT, Hmat::from_sdt)
    }

    /// The first HPET table, if there is a sound one.
    #[must_use]
    pub fn hpet(&self) -> Option<Result<Hpet, TableError>> {
        self.typed(Signature::HPET, Hpet::from_sdt)
    }

    /// The DMAR table, if there is a sound one.
    #[must_use]
    pub fn dmar(&self) -> Option<Result<Dmar<'a>, TableError>> {
        self.typed(Signature::DMAR, Dmar::from_sdt)
    }

    /// The IVRS table, if there is a sound one.
    #[must_use]
    pub fn ivrs(&self) -> Option<Result<Ivrs<'a>, TableError>> {
        self.typed(Signature::IVRS, Ivrs::from_sdt)
    }

    /// The SMBIOS entry points, with the addresses they had.
    pub fn smbios_entries(
        &self,
    ) -> impl Iterator<Item = (PhysAddr, Result<SmbiosEntry, SmbiosError>)> + use<'a> {
        self.tables()
            .filter(|table| table.kind == CapturedKind::SmbiosEntry)
            .map(|table| (table.address, SmbiosEntry::parse(table.bytes)))
    }

    /// The SMBIOS structures, if they were captured.
    #[must_use]
    pub fn smbios_structures(&self) -> Option<SmbiosStructures<'a>> {
        self.tables()
            .find(|table| table.kind == CapturedKind::SmbiosStructures && table.state.is_copied())
            .map(|table| SmbiosStructures::new(table.bytes))
    }
}

impl fmt::Debug for Capture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tables()).finish()
    }
}
