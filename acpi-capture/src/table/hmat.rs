//! Heterogeneous Memory Attribute Table (ACPI 6.5, section 5.2.28).

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::entry::{EntryError, FieldWidth, RawEntries, RawEntry};
use super::raw::{HmatCacheRaw, HmatLatencyRaw, HmatProximityRaw, HmatRaw};
use super::{Sdt, Signature, TableError};

/// Which processors are directly at a memory: a structure of type 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemoryProximity {
    /// The proximity domain of the memory.
    pub memory: u32,
    /// The proximity domain of what is directly at it, where the table says.
    pub initiator: Option<u32>,
}

/// What the numbers of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Measure {
    /// Latency of reading or writing.
    AccessLatency,
    /// Latency of reading.
    ReadLatency,
    /// Latency of writing.
    WriteLatency,
    /// Bandwidth of reading or writing.
    AccessBandwidth,
    /// Bandwidth of reading.
    ReadBandwidth,
    /// Bandwidth of writing.
    WriteBandwidth,
    /// Any other number of the data type field.
    Unknown(u8),
}

/// Latencies or bandwidths between proximity domains: a structure of type 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPerformance<'a> {
    /// Bits 3:0: 0 for memory, 1 to 3 for a level of a memory side cache. Bit 4: the minimum
    /// transfer size counts. Bit 5: for accesses that are not sequential.
    pub flags: u8,
    /// What the numbers are.
    pub measure: Measure,
    /// Exponent of the least transfer, in bytes, where the flags say that it counts.
    pub minimum_transfer: u8,
    /// What one is: picoseconds for latencies, MB/s for bandwidths.
    pub base_unit: u64,
    initiators: &'a [U32],
    targets: &'a [U32],
    cells: &'a [U16],
}

impl<'a> MemoryPerformance<'a> {
    /// The proximity domains that access, in the matrix's order.
    pub fn initiators(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.initiators.iter().map(|domain| domain.get())
    }

    /// The proximity domains of memory, in the matrix's order.
    pub fn targets(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.targets.iter().map(|domain| domain.get())
    }

    /// The number, in base units, for accesses from one proximity domain to the memory of another;
    /// `None` where the matrix has none, or says that the one does not reach the other.
    #[must_use]
    pub fn value(&self, initiator: u32, target: u32) -> Option<u64> {
        let row = self.initiators().position(|domain| domain == initiator)?;
        let column = self.targets().position(|domain| domain == target)?;
        let cell = row.checked_mul(self.targets.len())?.checked_add(column)?;
        match self.cells.get(cell)?.get() {
            0 | 0xffff => None,
            number => u64::from(number).checked_mul(self.base_unit),
        }
    }
}

/// A cache in front of memory: a structure of type 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySideCache<'a> {
    /// The proximity domain of the memory.
    pub memory: u32,
    /// Bytes of the cache.
    pub size: u64,
    /// `Cache Attributes`: levels in bits 3:0, this level in 7:4, associativity in 11:8, write
    /// policy in 15:12, bytes of a line in 31:16.
    pub attributes: u32,
    handles: &'a [U16],
}

impl<'a> MemorySideCache<'a> {
    /// Handles of the SMBIOS structures that describe it.
    pub fn smbios_handles(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.handles.iter().map(|handle| handle.get())
    }
}

/// A structure of the HMAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HmatStructure<'a> {
    /// Type 0.
    Proximity(MemoryProximity),
    /// Type 1.
    Performance(MemoryPerformance<'a>),
    /// Type 2.
    SideCache(MemorySideCache<'a>),
    /// Any other type.
    Unknown(RawEntry<'a>),
}

/// The structures of an HMAT, in order.
#[derive(Clone, Debug)]
pub struct HmatStructures<'a>(RawEntries<'a>);

impl<'a> Iterator for HmatStructures<'a> {
    type Item = Result<HmatStructure<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(decode))
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn decode(entry: RawEntry<'_>) -> Result<HmatStructure<'_>, EntryError> {
    let table = Signature::HMAT;
    Ok(match entry.kind {
        0 => {
            let raw: HmatProximityRaw = entry.fixed(table)?;
            HmatStructure::Proximity(MemoryProximity {
                memory: raw.memory.get(),
                initiator: (raw.flags.get() & 1 != 0).then(|| raw.initiator.get()),
            })
        }
        1 => {
            let raw: HmatLatencyRaw = entry.fixed(table)?;
            let (rows, columns) = (count(raw.initiators.get()), count(raw.targets.get()));
            // Four bytes for each domain and two for each cell.
            let cells = rows.saturating_mul(columns);
            let needed = rows
                .saturating_add(columns)
                .saturating_mul(4)
                .saturating_add(cells.saturating_mul(2))
                .saturating_add(size_of::<HmatLatencyRaw>());
            let short = EntryError::Short {
                table,
                offset: entry.offset,
                kind: entry.kind,
                length: entry.bytes.len(),
                needed,
            };
            let rest = entry.after::<HmatLatencyRaw>();
            let (initiators, rest) =
                <[U32]>::ref_from_prefix_with_elems(rest, rows).map_err(|_| short)?;
            let (targets, rest) =
                <[U32]>::ref_from_prefix_with_elems(rest, columns).map_err(|_| short)?;
            let (cells, _) = <[U16]>::ref_from_prefix_with_elems(rest, cells).map_err(|_| short)?;
            HmatStructure::Performance(MemoryPerformance {
                flags: raw.flags,
                measure: match raw.data_type {
                    0 => Measure::AccessLatency,
                    1 => Measure::ReadLatency,
                    2 => Measure::WriteLatency,
                    3 => Measure::AccessBandwidth,
                    4 => Measure::ReadBandwidth,
                    5 => Measure::WriteBandwidth,
                    number => Measure::Unknown(number),
                },
                minimum_transfer: raw.minimum_transfer,
                base_unit: raw.base_unit.get(),
                initiators,
                targets,
                cells,
            })
        }
        2 => {
            let raw: HmatCacheRaw = entry.fixed(table)?;
            let handles = usize::from(raw.handles.get());
            let rest = entry.after::<HmatCacheRaw>();
            let short = EntryError::Short {
                table,
                offset: entry.offset,
                kind: entry.kind,
                length: entry.bytes.len(),
                needed: size_of::<HmatCacheRaw>().saturating_add(handles.saturating_mul(2)),
            };
            let (handles, _) =
                <[U16]>::ref_from_prefix_with_elems(rest, handles).map_err(|_| short)?;
            HmatStructure::SideCache(MemorySideCache {
                memory: raw.domain.get(),
                size: raw.size.get(),
                attributes: raw.attributes.get(),
                handles,
            })
        }
        _ => HmatStructure::Unknown(entry),
    })
}

/// The HMAT.
#[derive(Clone, Copy, Debug)]
pub struct Hmat<'a> {
    sdt: Sdt<'a>,
}

impl<'a> Hmat<'a> {
    /// Views `bytes` as an HMAT.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as an HMAT.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let sdt = sdt.expect(Signature::HMAT, size_of::<HmatRaw>())?;
        Ok(Self { sdt })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// The structures, in order.
    #[must_use]
    pub fn structures(&self) -> HmatStructures<'a> {
        let offset = size_of::<HmatRaw>();
        HmatStructures(RawEntries::new(
            Signature::HMAT,
            FieldWidth::WordAndDouble,
            offset,
            self.sdt.tail(offset),
        ))
    }
}
