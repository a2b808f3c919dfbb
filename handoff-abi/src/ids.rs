//! The names of the things that have owners, and of the owners.

use core::fmt;
use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
            FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A local APIC id, 32 bits wide everywhere, as in the x2APIC (Intel SDM volume 3, section
    /// 12.12.2); an xAPIC uses the low 8 bits.
    ApicId(u32)
}
id! {
    /// A partition: the resources that one kernel owns. Numbers are given by the steward and are
    /// not used again within one power-on.
    PartitionId(u16)
}
id! {
    /// A workload: what survives the swap where it lies in memory.
    WorkloadId(u16)
}
id! {
    /// An IOMMU address space: the *domain identifier* of VT-d (section 3.4.3) and the *DomainID*
    /// of AMD-Vi (section 2.2.2). Zero is never used: VT-d's caching mode reserves it.
    DomainId(u16)
}

/// The id that a PCI Express transaction carries: bus number in bits 15:8, device in 7:3,
/// function in 2:0 (PCI Express Base Specification, section 2.2.6.2).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// The id of `function` (0 to 7) of `device` (0 to 31) on `bus`; `None` out of these bounds.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self(
            (bus as u16) << 8 | (device as u16) << 3 | function as u16,
        ))
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 0x1f) as u8
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A PCI function of the machine: its segment group and the id it makes requests with.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PciFunction {
    /// The PCI segment group (ACPI 6.5, section 6.5.6).
    pub segment: u16,
    /// Bus, device and function.
    pub requester: RequesterId,
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.requester)
    }
}

impl fmt::Debug for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who owns a resource. Each resource has exactly one owner at every instant.
///
/// On the wire an owner is 32 bits: the kind in bits 31:16 and the number in 15:0
/// ([`to_wire`](Self::to_wire), [`from_wire`](Self::from_wire)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Owner {
    /// Firmware: reserved memory, ACPI NVS, and all that no kernel may touch.
    Firmware,
    /// A partition, that is, the kernel that runs there.
    Partition(PartitionId),
    /// A workload, which moves from kernel to kernel with all that it owns.
    Workload(WorkloadId),
    /// Nobody runs it: a CPU in the park page, a device that is blocked and quiet. The steward may
    /// give it away.
    Parked,
    /// It could not be proved released; nobody may use it until the machine restarts.
    Quarantined,
    /// Baton itself: the memory that carries the handoff from kernel to kernel.
    Baton,
}

impl Owner {
    /// The 32 bits that stand for this owner.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Firmware => 0x0001_0000,
            Self::Partition(id) => 0x0002_0000 | id.0 as u32,
            Self::Workload(id) => 0x0003_0000 | id.0 as u32,
            Self::Parked => 0x0004_0000,
            Self::Quarantined => 0x0005_0000,
            Self::Baton => 0x0006_0000,
        }
    }

    /// The owner that these 32 bits stand for; `None` where they stand for none.
    #[must_use]
    pub const fn from_wire(bits: u32) -> Option<Self> {
        let number = bits as u16;
        match (bits >> 16, number) {
            (1, 0) => Some(Self::Firmware),
            (2, _) => Some(Self::Partition(PartitionId(number))),
            (3, _) => Some(Self::Workload(WorkloadId(number))),
            (4, 0) => Some(Self::Parked),
            (5, 0) => Some(Self::Quarantined),
            (6, 0) => Some(Self::Baton),
            _ => None,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firmware => f.write_str("firmware"),
            Self::Partition(id) => write!(f, "partition {id}"),
            Self::Workload(id) => write!(f, "workload {id}"),
            Self::Parked => f.write_str("parked"),
            Self::Quarantined => f.write_str("quarantined"),
            Self::Baton => f.write_str("baton"),
        }
    }
}

const _: () = {
    assert!(size_of::<PciFunction>() == 4);
    assert!(offset_of!(PciFunction, segment) == 0);
    assert!(offset_of!(PciFunction, requester) == 2);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requester_id_has_the_fields_of_the_pcie_specification() {
        let id = RequesterId::new(0x3a, 0x1f, 5).unwrap();
        assert_eq!(id.0, 0x3afd);
        assert_eq!((id.bus(), id.device(), id.function()), (0x3a, 0x1f, 5));
        assert_eq!(RequesterId::new(0, 32, 0), None);
        assert_eq!(RequesterId::new(0, 0, 8), None);
    }

    #[test]
    fn an_owner_has_its_kind_above_its_number_and_is_told_in_words() {
        for (owner, bits, text) in [
            (Owner::Firmware, 0x1_0000, "firmware"),
            (Owner::Partition(PartitionId(7)), 0x2_0007, "partition 7"),
            (Owner::Workload(WorkloadId(9)), 0x3_0009, "workload 9"),
            (Owner::Parked, 0x4_0000, "parked"),
            (Owner::Quarantined, 0x5_0000, "quarantined"),
            (Owner::Baton, 0x6_0000, "baton"),
        ] {
            assert_eq!(owner.to_wire(), bits, "{owner}");
            assert_eq!(Owner::from_wire(bits), Some(owner));
            assert_eq!(std::format!("{owner}"), text);
        }
        for nonsense in [0, 0x1_0001, 0x4_0001, 0x7_0000, u32::MAX] {
            assert_eq!(Owner::from_wire(nonsense), None, "{nonsense:#x}");
        }
    }

    #[test]
    fn a_function_is_told_as_people_write_it() {
        let requester = RequesterId::new(0x3a, 0x1f, 5).unwrap();
        let function = PciFunction {
            segment: 0x12,
            requester,
        };
        for text in [std::format!("{requester}"), std::format!("{requester:?}")] {
            assert_eq!(text, "3a:1f.5");
        }
        for text in [std::format!("{function}"), std::format!("{function:?}")] {
            assert_eq!(text, "0012:3a:1f.5");
        }
    }

    proptest! {
        #[test]
        fn owner_survives_the_wire(bits: u32) {
            if let Some(owner) = Owner::from_wire(bits) {
                prop_assert_eq!(owner.to_wire(), bits);
            }
        }
    }
}
