//! The records of a handoff: one fixed structure for each kind.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{ApicId, DomainId, PartitionId, PciFunction, PhysAddr, WorkloadId};

/// What a record is. Numbers are never used again for something else.
pub mod kind {
    /// [`Extent`](super::Extent): a piece of the baton.
    pub const EXTENT: u32 = 1;
    /// [`Cpu`](super::Cpu): a processor of the reader's partition.
    pub const CPU: u32 = 2;
    /// [`Memory`](super::Memory): an entry of the reader's memory map.
    pub const MEMORY: u32 = 3;
    /// [`Function`](super::Function): a PCI function of the reader's partition.
    pub const FUNCTION: u32 = 4;
    /// [`InterruptHandle`](super::InterruptHandle): a remapping entry that serves a function.
    pub const INTERRUPT_HANDLE: u32 = 5;
    /// [`Firmware`](super::Firmware): the tables of the smaller machine.
    pub const FIRMWARE: u32 = 6;
    /// [`VtdUnit`](super::VtdUnit): a VT-d unit that runs from the baton's tables.
    pub const VTD_UNIT: u32 = 7;
    /// [`Workload`](super::Workload): memory and domain of a workload.
    pub const WORKLOAD: u32 = 8;
    /// [`Console`](super::Console): the reader's console.
    pub const CONSOLE: u32 = 9;
    /// [`Clock`](super::Clock): the time stamp counter's rate.
    pub const CLOCK: u32 = 10;
    /// [`Ecam`](super::Ecam): where configuration space is mapped.
    pub const ECAM: u32 = 11;
    /// [`History`](super::History): from version 0.2, when the last swap's steps were.
    pub const HISTORY: u32 = 12;
    /// [`Domain`](super::Domain): an IOMMU domain and its owner.
    pub const DOMAIN: u32 = 13;
    /// [`Platform`](super::Platform): what every kernel has to know of the whole machine.
    pub const PLATFORM: u32 = 14;

    /// Reserved: the architectural state of a virtual CPU.
    pub const VCPU: u32 = 0x100;
    /// Reserved: a device that belongs to a workload and is no PCI function.
    pub const WORKLOAD_DEVICE: u32 = 0x101;
    /// Reserved: a unit that the embedder's own driver runs.
    pub const HOST_MANAGED_IOMMU: u32 = 0x102;
    /// [`AmdViState`](super::AmdViState): from version 0.2, an AMD-Vi unit that runs from the baton's
    /// tables.
    pub const AMD_VI_UNIT: u32 = 0x103;
    /// Reserved: what a survivor needs to recover after a crash.
    pub const CRASH_RECOVERY: u32 = 0x104;
    /// Reserved: Linux as prime.
    pub const LINUX_PRIME: u32 = 0x105;
    /// Reserved: the UEFI memory map and runtime services.
    pub const UEFI: u32 = 0x106;
}

/// What an entry of the reader's memory map is, besides the types of ACPI 6.5, table 15.5.
pub mod memory {
    /// What the loader filled: image, page tables and firmware tables. The reader's own, and not free;
    /// it may use what it does not need any more. (An OEM defined type there.)
    pub const LOADED: u32 = 0xf000_0001;
}

/// What a piece of the baton holds.
pub mod purpose {
    /// Handoff blobs.
    pub const HANDOFF: u32 = 1;
    /// The firmware tables as captured.
    pub const CAPTURE: u32 = 2;
    /// The [`Ledger`](crate::Ledger).
    pub const LEDGER: u32 = 3;
    /// The [`Exchange`](crate::Exchange): status of each partition, and mailboxes.
    pub const EXCHANGE: u32 = 4;
    /// The park page and its slots.
    pub const PARK: u32 = 5;
    /// Tables and queues of the remapping units.
    pub const IOMMU: u32 = 6;
    /// A page below 1 MiB from which the reader's partition starts its processors.
    pub const TRAMPOLINE: u32 = 7;
    /// The archive of kernel images.
    pub const MODULES: u32 = 8;
    /// The filtered tables of the smaller machines.
    pub const FILTERED: u32 = 9;
}

macro_rules! record {
    (
        $(#[$doc:meta])*
        $name:ident = $kind:ident, $size:literal {
            $( $(#[$field_doc:meta])* $field:ident : $type:ty = $offset:literal, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $type, )*
        }

        impl Record for $name {
            const KIND: u32 = kind::$kind;
        }

        const _: () = {
            assert!(size_of::<$name>() == $size && $size % 8 == 0);
            $( assert!(offset_of!($name, $field) == $offset); )*
        };
    };
}

/// A record's fixed structure: what follows its [`RecordHeader`](crate::RecordHeader).
///
/// A longer payload than the structure is a newer minor version's, and the rest is ignored; a
/// shorter one is an error.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// The kind in the record's header.
    const KIND: u32;
}

record! {
    /// A piece of the baton. No kernel of the chain ever owns it as ordinary memory.
    Extent = EXTENT, 24 {
        /// One of [`purpose`].
        purpose: u32 = 0,
        /// Zero.
        reserved: u32 = 4,
        /// The first byte, at a page boundary.
        base: PhysAddr = 8,
        /// Bytes, whole pages.
        length: u64 = 16,
    }
}
record! {
    /// A processor of the reader's partition. The first such record is the one that runs at entry.
    Cpu = CPU, 8 {
        /// Its local APIC id.
        apic_id: ApicId = 0,
        /// The processor's unique id in the ACPI tables (ACPI 6.5, section 5.2.12.2).
        acpi_uid: u32 = 4,
    }
}
record! {
    /// An entry of the reader's memory map.
    Memory = MEMORY, 24 {
        /// The first byte.
        base: PhysAddr = 0,
        /// Bytes.
        length: u64 = 8,
        /// The type as in ACPI 6.5, table 15.5: 1 usable, 2 reserved, 3 ACPI, 4 ACPI NVS; or one of
        /// [`memory`].
        kind: u32 = 16,
        /// Zero.
        reserved: u32 = 20,
    }
}
record! {
    /// A PCI function that the reader may drive.
    Function = FUNCTION, 16 {
        /// Which.
        function: PciFunction = 0,
        /// The domain it is attached to.
        domain: DomainId = 4,
        /// 0 where it belongs to the reader's partition, else 1 + the workload's number.
        workload: u16 = 6,
        /// Zero.
        reserved: u64 = 8,
    }
}
record! {
    /// An interrupt remapping entry that is set aside for a function. The reader programs the
    /// function with the message given here; where the interrupt goes, the steward decides.
    InterruptHandle = INTERRUPT_HANDLE, 32 {
        /// The function whose requests the entry accepts.
        function: PciFunction = 0,
        /// The unit that holds the entry: its place among the unit records, from 0.
        unit: u16 = 4,
        /// The entry's index.
        handle: u16 = 6,
        /// What goes into the function's message address registers.
        message_address: PhysAddr = 8,
        /// What goes into its message data register.
        message_data: u32 = 16,
        /// Where it is sent now.
        destination: ApicId = 20,
        /// With which vector, in the low 8 bits.
        vector: u32 = 24,
        /// Which of the function's messages it serves, from 0.
        message: u32 = 28,
    }
}
record! {
    /// The firmware tables of the reader's machine.
    Firmware = FIRMWARE, 16 {
        /// The filtered RSDP.
        rsdp: PhysAddr = 0,
        /// The SMBIOS entry point as captured, or 0.
        smbios: PhysAddr = 8,
    }
}
/// A domain of a [`VtdUnit`] or of an AMD-Vi unit ([`AmdViState`]).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct VtdDomain {
    /// The physical address of the root of its tables.
    pub root: u64,
    /// Its id.
    pub id: u32,
    /// How many devices are attached to it. For people; whoever adopts the unit counts them.
    pub attached: u32,
}

const _: () = {
    assert!(size_of::<VtdDomain>() == 16);
    assert!(offset_of!(VtdDomain, root) == 0);
    assert!(offset_of!(VtdDomain, id) == 8);
    assert!(offset_of!(VtdDomain, attached) == 12);
};

record! {
    /// A VT-d unit whose tables and queue lie in the baton, as one steward leaves it to the next:
    /// plain numbers, compared with the unit's registers by whoever adopts it, never believed alone.
    /// Registers are those of VT-d, chapter 11.
    VtdUnit = VTD_UNIT, 1128 {
        /// Physical address of the register window.
        register_base: u64 = 0,
        /// Its length in bytes.
        register_length: u64 = 8,
        /// CAP.
        capability: u64 = 16,
        /// ECAP.
        extended_capability: u64 = 24,
        /// RTADDR.
        root_table_address: u64 = 32,
        /// IQA.
        queue_address: u64 = 40,
        /// IRTA.
        interrupt_table_address: u64 = 48,
        /// Physical address of the 4 bytes that waits write to.
        status_address: u64 = 56,
        /// Physical address of the arena.
        arena_base: u64 = 64,
        /// Its length in bytes.
        arena_length: u64 = 72,
        /// GSTS.
        global_status: u32 = 80,
        /// The slot at the queue's tail. For people; the register is what counts.
        queue_tail: u32 = 84,
        /// The number of the last wait.
        sequence: u32 = 88,
        /// How many levels the domains' tables have.
        levels: u32 = 92,
        /// How many bits the machine's physical addresses have.
        host_address_bits: u32 = 96,
        /// How many of `domains` count.
        domain_count: u32 = 100,
        /// The domains.
        domains: [VtdDomain; VtdUnit::MAX_DOMAINS] = 104,
    }
}

impl VtdUnit {
    /// The most domains that a unit has.
    pub const MAX_DOMAINS: usize = 64;
}

record! {
    /// An AMD-Vi unit whose tables and rings lie in the baton, as one steward leaves it to the next:
    /// plain numbers, compared with the unit's registers by whoever adopts it, never believed alone.
    /// Registers are those of AMD-Vi, section 3.4.
    AmdViState = AMD_VI_UNIT, 1136 {
        /// Physical address of the register window.
        register_base: u64 = 0,
        /// Its length in bytes.
        register_length: u64 = 8,
        /// Extended Feature Register; 0 where the unit has none.
        extended_feature: u64 = 16,
        /// IOMMU Control Register.
        control: u64 = 24,
        /// Device Table Base Address Register.
        device_table_base: u64 = 32,
        /// Command Buffer Base Address Register.
        command_buffer_base: u64 = 40,
        /// Event Log Base Address Register.
        event_log_base: u64 = 48,
        /// Physical address of the 8 bytes that waits write to.
        status_address: u64 = 56,
        /// Physical address of the arena.
        arena_base: u64 = 64,
        /// Its length in bytes.
        arena_length: u64 = 72,
        /// The number of the last wait. For people: the next steward counts anew.
        sequence: u64 = 80,
        /// The first four bytes of the unit's capability block in PCI configuration space.
        capability_header: u32 = 88,
        /// The flags of the unit's IVHD.
        ivhd_flags: u32 = 92,
        /// The slot at the command buffer's tail. For people; the register is what counts.
        command_tail: u32 = 96,
        /// How many levels the domains' tables have.
        levels: u32 = 100,
        /// How many bits the machine's physical addresses have.
        host_address_bits: u32 = 104,
        /// How many of `domains` count.
        domain_count: u32 = 108,
        /// The domains.
        domains: [VtdDomain; AmdViState::MAX_DOMAINS] = 112,
    }
}

impl AmdViState {
    /// The most domains that a unit has.
    pub const MAX_DOMAINS: usize = 64;
}

record! {
    /// A workload: it stays where it is and moves by the commit.
    Workload = WORKLOAD, 40 {
        /// Which.
        id: WorkloadId = 0,
        /// The domain its devices are attached to.
        domain: DomainId = 2,
        /// The ledger slot whose word the commit stores to.
        ledger_slot: u32 = 4,
        /// The first byte of its memory.
        base: PhysAddr = 8,
        /// Bytes of its memory.
        length: u64 = 16,
        /// What the memory holds: a magic number that both kernels know.
        layout: u64 = 24,
        /// The version of that layout.
        layout_version: u64 = 32,
    }
}
record! {
    /// The reader's console: a 16550-compatible UART in port space.
    Console = CONSOLE, 8 {
        /// The first of its eight ports.
        port: u32 = 0,
        /// Bits a second.
        baud: u32 = 4,
    }
}
record! {
    /// The rate of the time stamp counter, measured once.
    Clock = CLOCK, 8 {
        /// Ticks a second.
        tsc_hertz: u64 = 0,
    }
}
record! {
    /// Configuration space of some buses of a segment, memory mapped (PCI Firmware Specification
    /// 3.3, section 4.1.2).
    Ecam = ECAM, 16 {
        /// Where bus 0 of the segment would be, whether it is in the range or not.
        base: PhysAddr = 0,
        /// The segment group.
        segment: u16 = 8,
        /// The first bus.
        first_bus: u8 = 10,
        /// The last bus.
        last_bus: u8 = 11,
        /// Zero.
        reserved: u32 = 12,
    }
}
record! {
    /// From version 0.2, not critical: what the last swap cost, for the people who watch.
    History = HISTORY, 32 {
        /// Time stamp counter at the last freeze.
        frozen_at: u64 = 0,
        /// Time stamp counter at the last commit.
        committed_at: u64 = 8,
        /// Who held the machine before.
        previous: PartitionId = 16,
        /// Zero.
        reserved: [u16; 3] = 18,
        /// The swap's number since power-on.
        swap: u64 = 24,
    }
}
record! {
    /// An IOMMU domain and who owns it.
    Domain = DOMAIN, 8 {
        /// Which.
        domain: DomainId = 0,
        /// Zero.
        reserved: u16 = 2,
        /// The owner, as [`Owner::to_wire`](crate::Owner::to_wire).
        owner: u32 = 4,
    }
}
record! {
    /// What every kernel has to know of the whole machine.
    Platform = PLATFORM, 8 {
        /// The bootstrap processor, which nobody sends INIT: it would go back to firmware.
        bootstrap: ApicId = 0,
        /// Zero.
        reserved: u32 = 4,
    }
}
