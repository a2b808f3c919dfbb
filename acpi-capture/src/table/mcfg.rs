//! Memory-mapped configuration space (PCI Firmware Specification 3.3, section 4.1.2).

use core::fmt;

use handoff_abi::{PhysAddr, PhysRange};
use zerocopy::FromBytes;

use super::raw::{McfgAllocationRaw, McfgRaw};
use super::{Sdt, Signature, TableError};

/// Configuration space of some buses of one segment group: 1 MiB a bus.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EcamAllocation {
    /// Where bus 0 of the segment group is, or would be if the allocation had it.
    pub base: PhysAddr,
    /// The segment group.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

impl EcamAllocation {
    /// Bytes of configuration space of one bus.
    pub const BUS_LENGTH: u64 = 1 << 20;

    /// The memory of buses `first` to `last`; `None` where the allocation does not have them all,
    /// or where its memory would not fit the address space.
    #[must_use]
    pub fn buses(&self, first: u8, last: u8) -> Option<PhysRange> {
        if first > last || first < self.first_bus || last > self.last_bus {
            return None;
        }
        let base = self
            .base
            .checked_add(u64::from(first).checked_mul(Self::BUS_LENGTH)?)?;
        let count = u64::from(last.checked_sub(first)?).checked_add(1)?;
        PhysRange::new(base, count.checked_mul(Self::BUS_LENGTH)?).ok()
    }

    /// All the memory of the allocation; `None` where its buses are in the wrong order or its
    /// memory would not fit the address space.
    #[must_use]
    pub fn memory(&self) -> Option<PhysRange> {
        self.buses(self.first_bus, self.last_bus)
    }
}

impl fmt::Debug for EcamAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}-{:02x} at {}",
            self.segment, self.first_bus, self.last_bus, self.base
        )
    }
}

/// The MCFG table.
#[derive(Clone, Copy, Debug)]
pub struct Mcfg<'a> {
    sdt: Sdt<'a>,
}

impl<'a> Mcfg<'a> {
    /// Views `bytes` as an MCFG.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as an MCFG.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let sdt = sdt.expect(Signature::MCFG, size_of::<McfgRaw>())?;
        Ok(Self { sdt })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// The allocations, as they stand in the table. Bytes left over at the end are ignored.
    pub fn allocations(&self) -> impl Iterator<Item = EcamAllocation> + use<'a> {
        self.sdt
            .tail(size_of::<McfgRaw>())
            .chunks_exact(size_of::<McfgAllocationRaw>())
            .filter_map(|bytes| McfgAllocationRaw::read_from_bytes(bytes).ok())
            .map(|raw| EcamAllocation {
                base: PhysAddr(raw.base.get()),
                segment: raw.segment.get(),
                first_bus: raw.first_bus,
                last_bus: raw.last_bus,
            })
    }

    /// The allocation that has this bus.
    #[must_use]
    pub fn allocation_of(&self, segment: u16, bus: u8) -> Option<EcamAllocation> {
        self.allocations().find(|allocation| {
            allocation.segment == segment && allocation.buses(bus, bus).is_some()
        })
    }
}
