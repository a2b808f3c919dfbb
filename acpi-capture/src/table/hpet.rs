//! High Precision Event Timer description (IA-PC HPET Specification 1.0a, section 3.2.4).

use handoff_abi::PhysAddr;

use super::raw::HpetRaw;
use super::{Sdt, Signature, TableError};

/// One block of high precision event timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Hpet {
    /// The hardware id: PCI vendor in bits 31:16, legacy replacement in 15, counter size in 13,
    /// number of comparators less one in 12:8, revision in 7:0.
    pub block_id: u32,
    /// The registers.
    pub base: PhysAddr,
    /// The block's number; device scopes call it the enumeration id.
    pub number: u8,
    /// The least tick of the main counter, in counts, in periodic mode.
    pub minimum_tick: u16,
}

impl Hpet {
    /// Reads the table.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Reads the table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'_>) -> Result<Self, TableError> {
        let raw: HpetRaw = sdt.fixed(Signature::HPET)?;
        Ok(Self {
            block_id: raw.block_id.get(),
            base: PhysAddr(raw.address.address.get()),
            number: raw.number,
            minimum_tick: raw.minimum_tick.get(),
        })
    }
}
