//! RSDT and XSDT: the list of all tables (ACPI 6.5, sections 5.2.7 and 5.2.8).

use handoff_abi::PhysAddr;

use super::{Sdt, Signature, TableError};

/// A root table of either width.
#[derive(Clone, Copy, Debug)]
pub struct RootTable<'a> {
    sdt: Sdt<'a>,
    wide: bool,
}

impl<'a> RootTable<'a> {
    /// Views `bytes` as an RSDT or an XSDT.
    ///
    /// # Errors
    /// Where they are neither.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        let sdt = Sdt::parse(bytes)?;
        let wide = sdt.signature() == Signature::XSDT;
        if !wide {
            sdt.expect(Signature::RSDT, 0)?;
        }
        Ok(Self { sdt, wide })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// The addresses it lists, in order, zeros included. Bytes left over at the end are ignored.
    pub fn addresses(&self) -> impl Iterator<Item = PhysAddr> + use<'a> {
        let wide = self.wide;
        self.sdt
            .body()
            .chunks_exact(if wide { 8 } else { 4 })
            .map(move |entry| {
                // Little-endian, so a narrow entry is a wide one without its upper half.
                let mut bytes = [0; 8];
                for (to, &from) in bytes.iter_mut().zip(entry) {
                    *to = from;
                }
                PhysAddr(u64::from_le_bytes(bytes))
            })
    }
}
