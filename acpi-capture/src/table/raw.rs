//! The layouts of the tables, byte for byte, for parsing and for writing alike.
//!
//! All fields are little-endian and unaligned: firmware puts tables at any address.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! layout {
    ($(
        $(#[$doc:meta])*
        $name:ident [$size:literal] { $($field:ident : $type:ty,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

layout! {
    /// Root System Description Pointer (ACPI 6.5, table 5.3). Its first 20 bytes are ACPI 1.0's.
    RsdpRaw[36] {
        signature: [u8; 8],
        checksum: u8,
        oem_id: [u8; 6],
        revision: u8,
        rsdt: U32,
        length: U32,
        xsdt: U64,
        extended_checksum: u8,
        reserved: [u8; 3],
    }

    /// The common header (ACPI 6.5, table 5.4).
    SdtHeader[36] {
        signature: [u8; 4],
        length: U32,
        revision: u8,
        checksum: u8,
        oem_id: [u8; 6],
        oem_table_id: [u8; 8],
        oem_revision: U32,
        creator_id: [u8; 4],
        creator_revision: U32,
    }

    /// Generic Address Structure (ACPI 6.5, table 5.1).
    GasRaw[12] {
        space: u8,
        bit_width: u8,
        bit_offset: u8,
        access_size: u8,
        address: U64,
    }

    /// Fixed ACPI Description Table (ACPI 6.5, table 5.9).
    FadtRaw[276] {
        header: SdtHeader,
        firmware_control: U32,
        dsdt: U32,
        interrupt_model: u8,
        preferred_profile: u8,
        sci_interrupt: U16,
        smi_command: U32,
        acpi_enable: u8,
        acpi_disable: u8,
        s4bios_request: u8,
        pstate_control: u8,
        pm1a_event: U32,
        pm1b_event: U32,
        pm1a_control: U32,
        pm1b_control: U32,
        pm2_control: U32,
        pm_timer: U32,
        gpe0: U32,
        gpe1: U32,
        pm1_event_length: u8,
        pm1_control_length: u8,
        pm2_control_length: u8,
        pm_timer_length: u8,
        gpe0_length: u8,
        gpe1_length: u8,
        gpe1_base: u8,
        cstate_control: u8,
        c2_latency: U16,
        c3_latency: U16,
        flush_size: U16,
        flush_stride: U16,
        duty_offset: u8,
        duty_width: u8,
        day_alarm: u8,
        month_alarm: u8,
        century: u8,
        boot_architecture: U16,
        reserved: u8,
        flags: U32,
        reset_register: GasRaw,
        reset_value: u8,
        arm_boot_architecture: U16,
        minor_version: u8,
        x_firmware_control: U64,
        x_dsdt: U64,
        x_pm1a_event: GasRaw,
        x_pm1b_event: GasRaw,
        x_pm1a_control: GasRaw,
        x_pm1b_control: GasRaw,
        x_pm2_control: GasRaw,
        x_pm_timer: GasRaw,
        x_gpe0: GasRaw,
        x_gpe1: GasRaw,
        sleep_control: GasRaw,
        sleep_status: GasRaw,
        hypervisor_vendor: U64,
    }

    /// Fixed part of the MADT (ACPI 6.5, table 5.19).
    MadtRaw[44] {
        header: SdtHeader,
        local_apic: U32,
        flags: U32,
    }

    /// MADT type 0 (ACPI 6.5, table 5.21).
    LocalApicRaw[8] {
        kind: u8,
        length: u8,
        uid: u8,
        apic_id: u8,
        flags: U32,
    }

    /// MADT type 1 (ACPI 6.5, table 5.24).
    IoApicRaw[12] {
        kind: u8,
        length: u8,
        id: u8,
        reserved: u8,
        address: U32,
        interrupt_base: U32,
    }

    /// MADT type 2 (ACPI 6.5, table 5.25).
    SourceOverrideRaw[10] {
        kind: u8,
        length: u8,
        bus: u8,
        source: u8,
        interrupt: U32,
        flags: U16,
    }

    /// MADT type 3 (ACPI 6.5, table 5.27).
    NmiSourceRaw[8] {
        kind: u8,
        length: u8,
        flags: U16,
        interrupt: U32,
    }

    /// MADT type 4 (ACPI 6.5, table 5.28).
    LocalApicNmiRaw[6] {
        kind: u8,
        length: u8,
        uid: u8,
        flags: U16,
        lint: u8,
    }

    /// MADT type 5 (ACPI 6.5, table 5.29).
    LocalApicOverrideRaw[12] {
        kind: u8,
        length: u8,
        reserved: U16,
        address: U64,
    }

    /// MADT type 9 (ACPI 6.5, table 5.34).
    LocalX2ApicRaw[16] {
        kind: u8,
        length: u8,
        reserved: U16,
        apic_id: U32,
        flags: U32,
        uid: U32,
    }

    /// MADT type 0Ah (ACPI 6.5, table 5.35).
    LocalX2ApicNmiRaw[12] {
        kind: u8,
        length: u8,
        flags: U16,
        uid: U32,
        lint: u8,
        reserved: [u8; 3],
    }

    /// MADT type 10h (ACPI 6.5, table 5.43); version 1 of the mailbox adds a reset vector.
    WakeupRaw[16] {
        kind: u8,
        length: u8,
        version: U16,
        reserved: U32,
        mailbox: U64,
    }

    /// Fixed part of the MCFG (PCI Firmware Specification 3.3, table 4-2).
    McfgRaw[44] {
        header: SdtHeader,
        reserved: U64,
    }

    /// One allocation of the MCFG (PCI Firmware Specification 3.3, table 4-3).
    McfgAllocationRaw[16] {
        base: U64,
        segment: U16,
        first_bus: u8,
        last_bus: u8,
        reserved: U32,
    }

    /// Fixed part of the SRAT (ACPI 6.5, table 5.58).
    SratRaw[48] {
        header: SdtHeader,
        one: U32,
        reserved: U64,
    }

    /// SRAT type 0 (ACPI 6.5, table 5.59).
    SratApicRaw[16] {
        kind: u8,
        length: u8,
        domain_low: u8,
        apic_id: u8,
        flags: U32,
        sapic_eid: u8,
        domain_high: [u8; 3],
        clock_domain: U32,
    }

    /// SRAT type 1 (ACPI 6.5, table 5.61).
    SratMemoryRaw[40] {
        kind: u8,
        length: u8,
        domain: U32,
        reserved1: U16,
        base: U64,
        size: U64,
        reserved2: U32,
        flags: U32,
        reserved3: U64,
    }

    /// SRAT type 2 (ACPI 6.5, table 5.63).
    SratX2ApicRaw[24] {
        kind: u8,
        length: u8,
        reserved1: U16,
        domain: U32,
        apic_id: U32,
        flags: U32,
        clock_domain: U32,
        reserved2: U32,
    }

    /// Fixed part of the SLIT (ACPI 6.5, table 5.70).
    SlitRaw[44] {
        header: SdtHeader,
        localities: U64,
    }

    /// HPET description table (IA-PC HPET Specification 1.0a, section 3.2.4).
    HpetRaw[56] {
        header: SdtHeader,
        block_id: U32,
        address: GasRaw,
        number: u8,
        minimum_tick: U16,
        page_protection: u8,
    }

    /// Fixed part of the DMAR table (VT-d, section 8.1).
    DmarRaw[48] {
        header: SdtHeader,
        host_address_width: u8,
        flags: u8,
        reserved: [u8; 10],
    }

    /// DMA Remapping Hardware Unit Definition (VT-d, section 8.3).
    DrhdRaw[16] {
        kind: U16,
        length: U16,
        flags: u8,
        size: u8,
        segment: U16,
        base: U64,
    }

    /// Device scope (VT-d, section 8.3.1); its path follows.
    ScopeRaw[6] {
        kind: u8,
        length: u8,
        flags: u8,
        reserved: u8,
        enumeration_id: u8,
        start_bus: u8,
    }

    /// Reserved Memory Region Reporting (VT-d, section 8.4).
    RmrrRaw[24] {
        kind: U16,
        length: U16,
        reserved: U16,
        segment: U16,
        base: U64,
        limit: U64,
    }

    /// Root Port ATS Capability Reporting (VT-d, section 8.5), and SoC Integrated Address
    /// Translation Cache Reporting (section 8.8), which has the same layout.
    AtsrRaw[8] {
        kind: U16,
        length: U16,
        flags: u8,
        reserved: u8,
        segment: U16,
    }

    /// Remapping Hardware Static Affinity (VT-d, section 8.6).
    RhsaRaw[20] {
        kind: U16,
        length: U16,
        reserved: U32,
        base: U64,
        domain: U32,
    }

    /// ACPI Name-space Device Declaration (VT-d, section 8.7); the name follows.
    AnddRaw[8] {
        kind: U16,
        length: U16,
        reserved: [u8; 3],
        number: u8,
    }

    /// SoC Integrated Device Property Reporting (VT-d, section 8.9).
    SidpRaw[8] {
        kind: U16,
        length: U16,
        reserved: U16,
        segment: U16,
    }

    /// Fixed part of the IVRS table (AMD IOMMU, section 5.2.1).
    IvrsRaw[48] {
        header: SdtHeader,
        information: U32,
        reserved: U64,
    }

    /// I/O Virtualization Hardware Definition, type 10h (AMD IOMMU, section 5.2.2.1).
    IvhdRaw[24] {
        kind: u8,
        flags: u8,
        length: U16,
        requester: U16,
        capability: U16,
        base: U64,
        segment: U16,
        information: U16,
        features: U32,
    }

    /// What types 11h and 40h add to the type 10h block (AMD IOMMU, sections 5.2.2.2 and
    /// 5.2.2.3).
    IvhdExtensionRaw[16] {
        features: U64,
        features2: U64,
    }

    /// I/O Virtualization Memory Definition (AMD IOMMU, section 5.2.2.9).
    IvmdRaw[32] {
        kind: u8,
        flags: u8,
        length: U16,
        requester: U16,
        last_requester: U16,
        segment: U16,
        reserved: [u8; 6],
        base: U64,
        size: U64,
    }

    /// A device entry of four bytes (AMD IOMMU, section 5.2.2.5).
    DeviceEntry4Raw[4] {
        kind: u8,
        requester: U16,
        settings: u8,
    }

    /// A device entry with an alias (AMD IOMMU, section 5.2.2.6).
    DeviceAliasRaw[8] {
        kind: u8,
        requester: U16,
        settings: u8,
        reserved1: u8,
        alias: U16,
        reserved2: u8,
    }

    /// A device entry with extended settings (AMD IOMMU, section 5.2.2.6).
    DeviceExtendedRaw[8] {
        kind: u8,
        requester: U16,
        settings: u8,
        extended: U32,
    }

    /// A special device (AMD IOMMU, section 5.2.2.6).
    SpecialDeviceRaw[8] {
        kind: u8,
        reserved: U16,
        settings: u8,
        handle: u8,
        requester: U16,
        variety: u8,
    }

    /// An ACPI device (AMD IOMMU, section 5.2.2.7); its unique id follows.
    AcpiDeviceRaw[22] {
        kind: u8,
        requester: U16,
        settings: u8,
        hardware_id: [u8; 8],
        compatible_id: [u8; 8],
        uid_format: u8,
        uid_length: u8,
    }

    /// MADT type 6 (ACPI 6.5, table 5.30).
    IoSapicRaw[16] {
        kind: u8,
        length: u8,
        id: u8,
        reserved: u8,
        interrupt_base: U32,
        address: U64,
    }

    /// MADT type 7 (ACPI 6.5, table 5.31); the unique id as a string follows.
    LocalSapicRaw[16] {
        kind: u8,
        length: u8,
        processor: u8,
        sapic_id: u8,
        sapic_eid: u8,
        reserved: [u8; 3],
        flags: U32,
        uid: U32,
    }

    /// MADT type 8 (ACPI 6.5, table 5.32).
    PlatformInterruptRaw[16] {
        kind: u8,
        length: u8,
        flags: U16,
        interrupt_type: u8,
        processor: u8,
        processor_eid: u8,
        vector: u8,
        interrupt: U32,
        platform_flags: U32,
    }

    /// SRAT types 5 and 6 (ACPI 6.5, tables 5.66 and 5.68).
    SratGenericRaw[32] {
        kind: u8,
        length: u8,
        reserved1: u8,
        handle_type: u8,
        domain: U32,
        handle: [u8; 16],
        flags: U32,
        reserved2: U32,
    }

    /// Fixed part of the HMAT (ACPI 6.5, table 5.145).
    HmatRaw[40] {
        header: SdtHeader,
        reserved: U32,
    }

    /// HMAT type 0 (ACPI 6.5, table 5.146).
    HmatProximityRaw[40] {
        kind: U16,
        reserved1: U16,
        length: U32,
        flags: U16,
        reserved2: U16,
        initiator: U32,
        memory: U32,
        reserved3: U32,
        base: U64,
        size: U64,
    }

    /// HMAT type 1 (ACPI 6.5, table 5.147); the matrix follows.
    HmatLatencyRaw[32] {
        kind: U16,
        reserved1: U16,
        length: U32,
        flags: u8,
        data_type: u8,
        minimum_transfer: u8,
        reserved2: u8,
        initiators: U32,
        targets: U32,
        reserved3: U32,
        base_unit: U64,
    }

    /// HMAT type 2 (ACPI 6.5, table 5.148); handles follow.
    HmatCacheRaw[32] {
        kind: U16,
        reserved1: U16,
        length: U32,
        domain: U32,
        reserved2: U32,
        size: U64,
        attributes: U32,
        address_mode: U16,
        handles: U16,
    }

    /// Serial Port Console Redirection Table, up to what every revision has.
    SpcrRaw[80] {
        header: SdtHeader,
        interface: u8,
        reserved1: [u8; 3],
        registers: GasRaw,
        interrupt_type: u8,
        irq: u8,
        interrupt: U32,
        baud_rate: u8,
        parity: u8,
        stop_bits: u8,
        flow_control: u8,
        terminal: u8,
        language: u8,
        pci_device: U16,
        pci_vendor: U16,
        pci_bus: u8,
        pci_slot: u8,
        pci_function: u8,
        pci_flags: U32,
        pci_segment: u8,
        clock: U32,
    }

    /// What revision 4 of the SPCR adds; a path in the namespace follows.
    SpcrExtensionRaw[8] {
        precise_baud_rate: U32,
        path_length: U16,
        path_offset: U16,
    }

    /// Fixed part of the Debug Port Table 2.
    Dbg2Raw[44] {
        header: SdtHeader,
        devices_offset: U32,
        devices: U32,
    }

    /// A device of the DBG2.
    Dbg2DeviceRaw[22] {
        revision: u8,
        length: U16,
        registers: u8,
        path_length: U16,
        path_offset: U16,
        oem_length: U16,
        oem_offset: U16,
        port_type: U16,
        port_subtype: U16,
        reserved: U16,
        registers_offset: U16,
        sizes_offset: U16,
    }

    /// Boot Graphics Resource Table (ACPI 6.5, table 5.115).
    BgrtRaw[56] {
        header: SdtHeader,
        version: U16,
        status: u8,
        image_type: u8,
        image: U64,
        offset_x: U32,
        offset_y: U32,
    }

    /// Trusted Platform Module 2 table (TCG ACPI Specification 1.3, section 8).
    Tpm2Raw[52] {
        header: SdtHeader,
        platform_class: U16,
        reserved: U16,
        control_area: U64,
        start_method: U32,
    }

    /// Windows ACPI Emulated Devices Table.
    WaetRaw[40] {
        header: SdtHeader,
        flags: U32,
    }

    /// Embedded Controller Boot Resources Table (ACPI 6.5, table 5.57); the path follows.
    EcdtRaw[65] {
        header: SdtHeader,
        control: GasRaw,
        data: GasRaw,
        uid: U32,
        gpe_bit: u8,
    }
}
