//! System Locality Distance Information Table (ACPI 6.5, section 5.2.17).

use super::raw::SlitRaw;
use super::{Sdt, Signature, TableError};

/// Relative distances between proximity domains; 10 is the distance to itself.
#[derive(Clone, Copy, Debug)]
pub struct Slit<'a> {
    sdt: Sdt<'a>,
    localities: u64,
}

impl<'a> Slit<'a> {
    /// Views `bytes` as a SLIT.
    ///
    /// # Errors
    /// Where they are none, or are fewer than the matrix needs.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a SLIT. It may be longer than its matrix; real ones are.
    ///
    /// # Errors
    /// Where it is another one, or is shorter than the matrix.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw: SlitRaw = sdt.fixed(Signature::SLIT)?;
        let localities = raw.localities.get();
        let needed = localities
            .checked_mul(localities)
            .and_then(|cells| cells.checked_add(size_of::<SlitRaw>() as u64))
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(usize::MAX);
        let sdt = sdt.expect(Signature::SLIT, needed)?;
        Ok(Self { sdt, localities })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// How many proximity domains the matrix has: they are numbered from 0.
    #[must_use]
    pub fn localities(&self) -> u64 {
        self.localities
    }

    /// The distance from one proximity domain to another; `None` where the matrix has either not.
    #[must_use]
    pub fn distance(&self, from: u32, to: u32) -> Option<u8> {
        let (from, to) = (u64::from(from), u64::from(to));
        if from >= self.localities || to >= self.localities {
            return None;
        }
        let cell = from.checked_mul(self.localities)?.checked_add(to)?;
        self.sdt
            .tail(size_of::<SlitRaw>())
            .get(usize::try_from(cell).ok()?)
            .copied()
    }
}
