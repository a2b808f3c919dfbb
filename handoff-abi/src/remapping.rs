//! What `acpi-capture` learns from DMAR or IVRS and `iommu` and the planner act on: units, the
//! devices they cover, and memory that firmware's own devices must keep reaching.

use crate::{ApicId, PhysAddr, PhysRange, RequesterId};

/// Which architecture a remapping unit follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum UnitKind {
    /// Intel Virtualization Technology for Directed I/O.
    VtD,
    /// AMD I/O Virtualization Technology (IOMMU).
    AmdVi,
}

/// One IOMMU as firmware describes it: a VT-d DRHD or an AMD-Vi IVHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UnitDescription {
    /// The architecture.
    pub kind: UnitKind,
    /// The PCI segment group it serves.
    pub segment: u16,
    /// Its register window. The length is what firmware says, or the smallest the architecture
    /// allows (4 KiB for VT-d, 16 KiB for AMD-Vi) where firmware does not say.
    pub registers: PhysRange,
    /// VT-d: `INCLUDE_PCI_ALL`, it covers every function of its segment that no other unit names.
    pub include_all: bool,
    /// What an AMD-Vi unit has besides; `None` for VT-d.
    pub amd_vi: Option<AmdViUnit>,
}

/// What firmware says of an AMD-Vi unit alone (AMD-Vi section 5.2.2).
///
/// The unit is a PCI function, and some of what it can do stands only in its configuration space:
/// whoever describes it to the driver reads the four bytes at `capability_offset` of `function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AmdViUnit {
    /// The PCI function that is the unit. Its own requests are not translated.
    pub function: RequesterId,
    /// Where in its configuration space the capability block (id 0Fh) begins.
    pub capability_offset: u16,
    /// The flags of the IVHD as they stand: HtTunEn, bit 0; PassPW, 1; ResPassPW, 2; Isoc, 3;
    /// IotlbSup, 4; Coherent, 5; PreFSup, 6; PPRSup, 7.
    pub flags: u8,
}

/// What a device scope names (VT-d section 8.3.1; AMD-Vi section 5.2.2.1 for the special devices).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PCI endpoint.
    PciEndpoint,
    /// A PCI bridge, and with it all that lies below.
    PciSubHierarchy,
    /// An I/O APIC; the enumeration id is its id in the MADT.
    IoApic,
    /// An HPET timer block that can send messages; the enumeration id is its number.
    MsiCapableHpet,
    /// A device with a name in the ACPI namespace and none on PCI.
    AcpiNamespaceDevice,
}

/// One step of a path through bridges: device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PathHop {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// A device as firmware names it: a start bus and a path of hops through bridges from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceScope {
    /// What it names.
    pub kind: ScopeKind,
    /// The I/O APIC's id, the HPET's number or the ACPI device number; 0 for PCI.
    pub enumeration_id: u8,
    /// The bus on which the path begins.
    pub start_bus: u8,
    hops: [PathHop; Self::MAX_HOPS],
    hop_count: u8,
}

impl DeviceScope {
    /// The longest path that is followed. Real tables have at most three hops.
    pub const MAX_HOPS: usize = 8;

    /// A scope with this path; `None` where the path is empty or longer than
    /// [`MAX_HOPS`](Self::MAX_HOPS).
    #[must_use]
    pub fn new(
        kind: ScopeKind,
        enumeration_id: u8,
        start_bus: u8,
        path: &[PathHop],
    ) -> Option<Self> {
        let mut hops = [PathHop::default(); Self::MAX_HOPS];
        if path.is_empty() {
            return None;
        }
        hops.get_mut(..path.len())?.copy_from_slice(path);
        Some(Self {
            kind,
            enumeration_id,
            start_bus,
            hops,
            hop_count: u8::try_from(path.len()).ok()?,
        })
    }

    /// The path: at least one hop.
    #[must_use]
    pub fn path(&self) -> &[PathHop] {
        self.hops.get(..usize::from(self.hop_count)).unwrap_or(&[])
    }
}

/// Memory that a device keeps reaching on firmware's behalf: a VT-d RMRR or an AMD-Vi IVMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ReservedRegion {
    /// The PCI segment group of the devices.
    pub segment: u16,
    /// The memory, grown to whole page frames.
    pub range: PhysRange,
}

/// The processor and vector an interrupt is sent to; always physical destination mode and a
/// delivery mode that only raises a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptTarget {
    /// The processor.
    pub destination: ApicId,
    /// The vector, 16 to 255.
    pub vector: u8,
}

/// A message signalled interrupt as a device's capability takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptMessage {
    /// What goes into the message address registers.
    pub address: PhysAddr,
    /// What goes into the message data register.
    pub data: u32,
}
