//! Checked views of the ACPI tables that a partitioning kernel reads.
//!
//! Each view is made by a `parse(&[u8])` that checks signature, length and checksum once, and
//! then hands out owned values. No accessor panics, whatever the bytes are. Entries of a table
//! come from an iterator of `Result`s: an entry that is too short for its kind is an error of its
//! own and the next one is still read; an entry whose length makes no sense ends the iteration,
//! after one error that says where.
//!
//! Reference: Advanced Configuration and Power Interface Specification 6.5, section 5.2.

use core::fmt;

use zerocopy::FromBytes;

mod console;
mod definitions;
mod dmar;
mod entry;
mod fadt;
mod fixed;
mod hmat;
mod hpet;
mod ivrs;
mod madt;
mod mcfg;
pub(crate) mod raw;
mod root;
mod rsdp;
mod slit;
mod srat;

pub use console::{Dbg2, DebugPort, DebugPorts, Spcr};
pub use dmar::{
    Andd, Atsr, BridgeBuses, Covered, Dmar, DmarFinding, DmarFlags, DmarStructure, Drhd,
    InterruptSource, InterruptSourceKind, PciTopology, RegionFault, Rhsa, Rmrr, Satc, ScopeError,
    Scopes, Sidp, Structures, Uncovered, UnitMatch, Via,
};
pub use entry::{EntryError, RawEntry};
pub use fadt::{BootArchitecture, Fadt, FadtBlock, FadtFlags, GenericAddress};
pub use fixed::{Bgrt, Ecdt, Tpm2, Waet};
pub use hmat::{
    Hmat, HmatStructure, HmatStructures, Measure, MemoryPerformance, MemoryProximity,
    MemorySideCache,
};
pub use hpet::Hpet;
pub use ivrs::{
    AcpiDevice, AcpiUid, Blocks, DeviceError, DeviceSettings, DeviceSpan, Devices, Ivhd,
    IvhdDevice, IvhdFlags, Ivmd, IvmdFlags, IvmdTarget, Ivrs, IvrsBlock, IvrsCovered, IvrsFinding,
    IvrsMatch, SpecialDevice, SpecialKind, UnityMap,
};
pub use madt::{
    ForeignController, IoApic, IoSapic, LocalApic, LocalApicNmi, LocalSapic, Madt, MadtEntries,
    MadtEntry, MadtFlags, NmiSource, NmiTarget, PlatformInterrupt, ProcessorFlags, SourceOverride,
    WakeupMailbox,
};
pub use mcfg::{EcamAllocation, Mcfg};
pub use root::RootTable;
pub use rsdp::{Rsdp, RsdpError};
pub use slit::Slit;
pub use srat::{
    Affinity, DeviceHandle, GenericAffinity, MemoryAffinity, MemoryAffinityFlags, Srat, SratEntries,
};

/// Numbers of the MADT's entries, for writing.
pub(crate) use madt::kind as madt_kind;
/// Numbers of the SRAT's entries, for writing.
pub(crate) use srat::kind as srat_kind;

use raw::SdtHeader;

/// The four bytes that name a table (ACPI 6.5, section 5.2.6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// Multiple APIC Description Table.
    pub const MADT: Self = Self(*b"APIC");
    /// Fixed ACPI Description Table.
    pub const FADT: Self = Self(*b"FACP");
    /// Firmware ACPI Control Structure.
    pub const FACS: Self = Self(*b"FACS");
    /// Differentiated System Description Table.
    pub const DSDT: Self = Self(*b"DSDT");
    /// Secondary System Description Table.
    pub const SSDT: Self = Self(*b"SSDT");
    /// Root System Description Table, 32-bit addresses.
    pub const RSDT: Self = Self(*b"RSDT");
    /// Extended System Description Table, 64-bit addresses.
    pub const XSDT: Self = Self(*b"XSDT");
    /// Memory-mapped configuration space.
    pub const MCFG: Self = Self(*b"MCFG");
    /// System Resource Affinity Table.
    pub const SRAT: Self = Self(*b"SRAT");
    /// System Locality Distance Information Table.
    pub const SLIT: Self = Self(*b"SLIT");
    /// High Precision Event Timer.
    pub const HPET: Self = Self(*b"HPET");
    /// DMA Remapping Reporting (Intel VT-d).
    pub const DMAR: Self = Self(*b"DMAR");
    /// I/O Virtualization Reporting Structure (AMD-Vi).
    pub const IVRS: Self = Self(*b"IVRS");
    /// Heterogeneous Memory Attribute Table.
    pub const HMAT: Self = Self(*b"HMAT");
    /// Serial Port Console Redirection Table.
    pub const SPCR: Self = Self(*b"SPCR");
    /// Debug Port Table 2.
    pub const DBG2: Self = Self(*b"DBG2");
    /// Boot Graphics Resource Table.
    pub const BGRT: Self = Self(*b"BGRT");
    /// Trusted Platform Module 2 table.
    pub const TPM2: Self = Self(*b"TPM2");
    /// Windows ACPI Emulated Devices Table.
    pub const WAET: Self = Self(*b"WAET");
    /// Embedded Controller Boot Resources Table.
    pub const ECDT: Self = Self(*b"ECDT");

    /// Whether all four bytes are printable ASCII, as every signature in use is.
    #[must_use]
    pub fn is_printable(self) -> bool {
        self.0.iter().all(|byte| (0x20..0x7f).contains(byte))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why bytes are not the table they were taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TableError {
    /// There are fewer bytes than the table, or its fixed part, has.
    Truncated {
        /// The table that was asked for.
        table: Signature,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The table is another one.
    Signature {
        /// The table that was asked for.
        expected: Signature,
        /// What the first four bytes say.
        found: Signature,
    },
    /// The bytes do not add up to zero (ACPI 6.5, section 5.2.6).
    Checksum {
        /// Which table.
        table: Signature,
        /// What they add up to, modulo 256.
        sum: u8,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated {
                table,
                needed,
                have,
            } => {
                write!(f, "{table} needs {needed} bytes and has {have}")
            }
            Self::Signature { expected, found } => {
                write!(f, "{expected} was expected, the table is {found}")
            }
            Self::Checksum { table, sum } => {
                write!(
                    f,
                    "the bytes of {table} add up to {sum:#04x} instead of zero"
                )
            }
        }
    }
}

impl core::error::Error for TableError {}

/// The sum of all bytes, modulo 256; zero over a sound table.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Any system description table: the common header, and bytes enough for its stated length.
///
/// Bytes past the stated length are cut off.
#[derive(Clone, Copy)]
pub struct Sdt<'a> {
    bytes: &'a [u8],
    header: SdtHeader,
}

impl<'a> Sdt<'a> {
    /// Bytes of the common header.
    pub const HEADER_LENGTH: usize = size_of::<SdtHeader>();

    /// Views `bytes` as a table with any signature.
    ///
    /// # Errors
    /// Where the bytes are fewer than the header says, or do not add up to zero.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        let table = Self::parse_any_sum(bytes)?;
        match checksum(table.bytes) {
            0 => Ok(table),
            sum => Err(TableError::Checksum {
                table: table.signature(),
                sum,
            }),
        }
    }

    /// Like [`parse`](Self::parse), for a caller who accepts a table with a bad checksum, as
    /// vendors' tables often have.
    ///
    /// # Errors
    /// Where the bytes are fewer than the header says.
    pub fn parse_any_sum(bytes: &'a [u8]) -> Result<Self, TableError> {
        let Ok((header, _)) = SdtHeader::read_from_prefix(bytes) else {
            return Err(TableError::Truncated {
                table: Signature(bytes.first_chunk().copied().unwrap_or_default()),
                needed: Self::HEADER_LENGTH,
                have: bytes.len(),
            });
        };
        let stated = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
        let needed = stated.max(Self::HEADER_LENGTH);
        match bytes.get(..stated) {
            Some(bytes) if stated >= Self::HEADER_LENGTH => Ok(Self { bytes, header }),
            _ => Err(TableError::Truncated {
                table: Signature(header.signature),
                needed,
                have: bytes.len().min(stated),
            }),
        }
    }

    /// The signature.
    #[must_use]
    pub fn signature(&self) -> Signature {
        Signature(self.header.signature)
    }

    /// The revision of the table's own layout.
    #[must_use]
    pub fn revision(&self) -> u8 {
        self.header.revision
    }

    /// Who made the table: any six bytes.
    #[must_use]
    pub fn oem_id(&self) -> [u8; 6] {
        self.header.oem_id
    }

    /// The maker's name for it: any eight bytes.
    #[must_use]
    pub fn oem_table_id(&self) -> [u8; 8] {
        self.header.oem_table_id
    }

    /// The maker's revision of it.
    #[must_use]
    pub fn oem_revision(&self) -> u32 {
        self.header.oem_revision.get()
    }

    /// All bytes of the table.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes after the common header.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(Self::HEADER_LENGTH..).unwrap_or(&[])
    }

    /// The table, where it has this signature and at least `needed` bytes.
    pub(crate) fn expect(self, expected: Signature, needed: usize) -> Result<Self, TableError> {
        if self.signature() != expected {
            return Err(TableError::Signature {
                expected,
                found: self.signature(),
            });
        }
        if self.bytes.len() < needed {
            return Err(TableError::Truncated {
                table: expected,
                needed,
                have: self.bytes.len(),
            });
        }
        Ok(self)
    }

    /// The fixed structure at the table's start, where the table is that long and has that
    /// signature.
    pub(crate) fn fixed<T: FromBytes>(&self, expected: Signature) -> Result<T, TableError> {
        let table = self.expect(expected, 0)?;
        match T::read_from_prefix(table.bytes) {
            Ok((fixed, _)) => Ok(fixed),
            Err(_) => Err(TableError::Truncated {
                table: expected,
                needed: size_of::<T>(),
                have: table.bytes.len(),
            }),
        }
    }

    /// The bytes from `offset` on.
    pub(crate) fn tail(&self, offset: usize) -> &'a [u8] {
        self.bytes.get(offset..).unwrap_or(&[])
    }
}

impl fmt::Debug for Sdt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sdt")
            .field("signature", &self.signature())
            .field("revision", &self.revision())
            .field("length", &self.bytes.len())
            .finish()
    }
}
