//! Root System Description Pointer (ACPI 6.5, section 5.2.5.3).

use core::fmt;

use handoff_abi::PhysAddr;

use super::checksum;
use super::raw::RsdpRaw;

/// Why bytes are not an RSDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RsdpError {
    /// Fewer bytes than an RSDP of its revision has.
    Truncated {
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The first eight bytes are not `RSD PTR `.
    Signature {
        /// What they are.
        found: [u8; 8],
    },
    /// The first 20 bytes do not add up to zero.
    Checksum {
        /// What they add up to, modulo 256.
        sum: u8,
    },
}

impl fmt::Display for RsdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, have } => {
                write!(f, "an RSDP needs {needed} bytes and has {have}")
            }
            Self::Signature { found } => {
                write!(
                    f,
                    "an RSDP was expected, there is \"{}\"",
                    found.escape_ascii()
                )
            }
            Self::Checksum { sum } => {
                write!(
                    f,
                    "the RSDP's first 20 bytes add up to {sum:#04x} instead of zero"
                )
            }
        }
    }
}

impl core::error::Error for RsdpError {}

/// Root System Description Pointer: where the list of all tables is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rsdp {
    /// 0 for ACPI 1.0, 2 from ACPI 2.0 on.
    pub revision: u8,
    /// Who made it: any six bytes.
    pub oem_id: [u8; 6],
    /// The RSDT, or zero.
    pub rsdt: PhysAddr,
    /// The XSDT, or zero; always zero where the extended checksum is wrong.
    pub xsdt: PhysAddr,
    /// Revision 2 and later: whether all the bytes that the RSDP counts add up to zero. A wrong
    /// sum is tolerated, at the price of the XSDT.
    pub extended_checksum_valid: bool,
}

impl Rsdp {
    /// Bytes of an ACPI 1.0 RSDP.
    pub const LENGTH_V1: usize = 20;
    /// Bytes of a later one.
    pub const LENGTH_V2: usize = size_of::<RsdpRaw>();

    /// Reads an RSDP from its bytes.
    ///
    /// # Errors
    /// Where the bytes are too few, begin with another signature, or fail the ACPI 1.0 checksum.
    pub fn parse(bytes: &[u8]) -> Result<Self, RsdpError> {
        let Some(first) = bytes.get(..Self::LENGTH_V1) else {
            return Err(RsdpError::Truncated {
                needed: Self::LENGTH_V1,
                have: bytes.len(),
            });
        };
        // An ACPI 1.0 RSDP is the beginning of a later one.
        let mut whole = [0; Self::LENGTH_V2];
        for (to, &from) in whole.iter_mut().zip(bytes) {
            *to = from;
        }
        let raw: RsdpRaw = zerocopy::transmute!(whole);
        if raw.signature != *b"RSD PTR " {
            return Err(RsdpError::Signature {
                found: raw.signature,
            });
        }
        match checksum(first) {
            0 => {}
            sum => return Err(RsdpError::Checksum { sum }),
        }
        let mut rsdp = Self {
            revision: raw.revision,
            oem_id: raw.oem_id,
            rsdt: PhysAddr(u64::from(raw.rsdt.get())),
            xsdt: PhysAddr(0),
            extended_checksum_valid: false,
        };
        if raw.revision >= 2 {
            if bytes.len() < Self::LENGTH_V2 {
                return Err(RsdpError::Truncated {
                    needed: Self::LENGTH_V2,
                    have: bytes.len(),
                });
            }
            // The stated length of real ones is 36; a longer one may have come with bytes enough.
            let stated = usize::try_from(raw.length.get()).unwrap_or(usize::MAX);
            rsdp.extended_checksum_valid = stated >= Self::LENGTH_V2
                && bytes
                    .get(..stated)
                    .is_some_and(|bytes| checksum(bytes) == 0);
            if rsdp.extended_checksum_valid {
                rsdp.xsdt = PhysAddr(raw.xsdt.get());
            }
        }
        Ok(rsdp)
    }
}
