//! What a person reads of an error: what is wrong, and where.

use std::fmt::Display;

use acpi_capture::memory::*;
use acpi_capture::partition::*;
use acpi_capture::table::*;
use acpi_capture::*;
use handoff_abi::{ApicId, PathHop, PhysAddr, RequesterId};

use crate::build::{self, range};
use crate::build_small;

fn says(what: impl Display, text: &str) {
    assert_eq!(what.to_string(), text);
}

fn id(number: u16) -> RequesterId {
    RequesterId(number)
}

#[test]
fn of_a_pointer_or_a_table() {
    let found = *b"RSD PTR\0";
    says(
        RsdpError::Truncated {
            needed: 36,
            have: 20,
        },
        "an RSDP needs 36 bytes and has 20",
    );
    says(
        RsdpError::Signature { found },
        "an RSDP was expected, there is \"RSD PTR\\x00\"",
    );
    says(
        RsdpError::Checksum { sum: 7 },
        "the RSDP's first 20 bytes add up to 0x07 instead of zero",
    );
    let table = Signature::MADT;
    says(
        TableError::Truncated {
            table,
            needed: 44,
            have: 40,
        },
        "APIC needs 44 bytes and has 40",
    );
    says(
        TableError::Signature {
            expected: Signature::MCFG,
            found: table,
        },
        "MCFG was expected, the table is APIC",
    );
    says(
        TableError::Checksum { table, sum: 0xf1 },
        "the bytes of APIC add up to 0xf1 instead of zero",
    );
    let (offset, kind, length) = (44, 3, 5);
    says(
        EntryError::Stuck {
            table,
            offset,
            length,
        },
        "APIC: the entry at 0x2c states a length of 5; the rest is unread",
    );
    says(
        EntryError::Overrun {
            table,
            offset,
            length,
            left: 4,
        },
        "APIC: the entry at 0x2c needs 5 bytes and 4 are left",
    );
    says(
        EntryError::Short {
            table,
            offset,
            kind,
            length,
            needed: 8,
        },
        "APIC: the entry at 0x2c of type 3 has 5 bytes instead of 8",
    );
}

#[test]
fn of_a_capture() {
    for (state, text) in [
        (State::Sound, "sound"),
        (State::BadChecksum, "bad checksum"),
        (State::Unreadable, "skipped, unreadable"),
        (State::NotATable, "skipped, not a table"),
        (State::TooLong, "skipped, too long"),
        (State::NoRoom, "skipped, no room"),
        (State::TooMany, "skipped with all after it, too many tables"),
        (State::Duplicate, "skipped, listed before"),
        (State::Shortened, "shortened, unreadable from there on"),
    ] {
        says(state, text);
    }
    says(BlobError::Magic, "these bytes are not a capture");
    says(
        BlobError::Version { found: 9 },
        "the capture has layout version 9",
    );
    says(
        BlobError::Truncated {
            needed: 64,
            have: 3,
        },
        "the capture needs 64 bytes and has 3",
    );
    says(
        BlobError::Entry { index: 2 },
        "entry 2 of the capture's directory is wrong",
    );
    let address = PhysAddr(0xf_5a40);
    says(
        CaptureError::RsdpUnreadable { address },
        "the RSDP at 0xf5a40 is unreadable",
    );
    says(
        CaptureError::Rsdp {
            address,
            error: RsdpError::Checksum { sum: 1 },
        },
        "at 0xf5a40: the RSDP's first 20 bytes add up to 0x01 instead of zero",
    );
    says(
        CaptureError::NoRoot {
            xsdt: PhysAddr(0x1000),
            rsdt: PhysAddr(0x2000),
        },
        "neither the XSDT at 0x1000 nor the RSDT at 0x2000 can be used",
    );
    says(
        CaptureError::Buffer {
            needed: 100,
            have: 10,
        },
        "the capture needs a buffer of at least 100 bytes and has 10",
    );
}

#[test]
fn of_memory_and_its_maps() {
    for (kind, text) in [
        (MemoryKind::Usable, "usable"),
        (MemoryKind::SpecificPurpose, "specific purpose"),
        (MemoryKind::AcpiReclaimable, "ACPI tables"),
        (MemoryKind::Persistent, "persistent"),
        (MemoryKind::AcpiNvs, "ACPI NVS"),
        (MemoryKind::Runtime, "UEFI runtime"),
        (MemoryKind::Reserved, "reserved"),
        (MemoryKind::Unusable, "unusable"),
    ] {
        says(kind, text);
    }
    says(
        SourceError::EntrySize {
            size: 8,
            needed: 20,
        },
        "memory map entries of 8 bytes need at least 20",
    );
    says(
        SourceError::Length {
            length: 41,
            size: 20,
        },
        "41 bytes are not a whole number of memory map entries of 20",
    );
    let header = PhysAddr(0x9000);
    says(
        SetupError::Unreadable { header },
        "the setup data at 0x9000 is unreadable",
    );
    says(
        SetupError::Wraps { header, length: 16 },
        "the setup data at 0x9000 is to have 0x10 bytes",
    );
    says(
        SetupError::Indirect { header },
        "the setup data at 0x9000 points nowhere",
    );
    says(
        SetupError::TooMany { header },
        "the setup data from 0x9000 on is too much",
    );
    let mut map = MemoryMap::<1>::new();
    let reserved = |start, end| MemoryRegion {
        range: range(start, end),
        kind: MemoryKind::Reserved,
    };
    map.insert(reserved(0, 0x1000)).unwrap();
    let full = map.insert(reserved(0x8000, 0x9000)).unwrap_err();
    says(full, "the memory map has room for 1 regions");
}

#[test]
fn of_smbios() {
    says(
        SmbiosError::Anchor { found: *b"_XX_" },
        "an SMBIOS entry point was expected, there is \"_XX_\"",
    );
    says(
        SmbiosError::Truncated {
            needed: 24,
            have: 7,
        },
        "an SMBIOS entry point needs 24 bytes and has 7",
    );
    says(
        SmbiosError::Checksum { sum: 0x10 },
        "the bytes of the SMBIOS entry point add up to 0x10 instead of zero",
    );
    let offset = 0x20;
    says(
        StructureError::Length { offset, length: 3 },
        "the SMBIOS structure at 0x20 states a length of 3",
    );
    says(
        StructureError::Strings { offset },
        "the strings of the SMBIOS structure at 0x20 do not end",
    );
    says(
        StructureError::Stray { offset, count: 2 },
        "2 stray zeros between SMBIOS structures at 0x20",
    );
}

#[test]
fn of_dmar_and_its_devices() {
    let fault = RegionFault::Reversed {
        base: PhysAddr(0x2000),
        limit: PhysAddr(0xfff),
    };
    let wraps = RegionFault::Wraps {
        base: PhysAddr(0x2000),
        limit: PhysAddr(u64::MAX),
    };
    says(
        wraps,
        "a reserved region from 0x2000 to 0xffffffffffffffff wraps",
    );
    let offset = 0x30;
    says(
        DmarFinding::Structure(EntryError::Stuck {
            table: Signature::DMAR,
            offset,
            length: 0,
        }),
        "DMAR: the entry at 0x30 states a length of 0; the rest is unread",
    );
    let hop = PathHop {
        device: 33,
        function: 1,
    };
    for (error, text) in [
        (
            ScopeError::Length { length: 6, left: 4 },
            "DMAR at 0x30: a device scope of 6 bytes where 4 are left",
        ),
        (
            ScopeError::Path { length: 3 },
            "DMAR at 0x30: a device scope with a path of 3 bytes",
        ),
        (
            ScopeError::Hop { hop },
            "DMAR at 0x30: a device scope names device 33 function 1",
        ),
        (
            ScopeError::Kind { kind: 9 },
            "DMAR at 0x30: a device scope of type 9",
        ),
    ] {
        says(DmarFinding::Scope { offset, error }, text);
    }
    for (finding, text) in [
        (
            DmarFinding::TooManyUnits { offset },
            "DMAR: the units from 0x30 on are too many",
        ),
        (
            DmarFinding::DeadUnit { offset },
            "DMAR: the unit at 0x30 has no usable registers",
        ),
        (
            DmarFinding::DuplicateUnit { offset },
            "DMAR: the unit at 0x30 was defined before",
        ),
        (
            DmarFinding::SecondIncludeAll { offset },
            "DMAR: the unit at 0x30 is not the first that is to cover the rest of its segment, which is uncovered",
        ),
        (
            DmarFinding::Region { offset, fault },
            "DMAR at 0x30: a reserved region ends at 0xfff, before its start 0x2000",
        ),
        (
            DmarFinding::UnknownStructure { offset, kind: 99 },
            "DMAR: the structure at 0x30 has type 99",
        ),
    ] {
        says(finding, text);
    }
    for (why, text) in [
        (Uncovered::NoUnit, "no remapping unit covers it"),
        (
            Uncovered::Conflict {
                first: 1,
                second: 4,
            },
            "units 1 and 4 both claim it",
        ),
        (
            Uncovered::DeadUnit { index: 3 },
            "unit 3 covers it and has no usable registers",
        ),
        (
            Uncovered::Unreadable { offset },
            "the structure at 0x30 is unreadable and may name it",
        ),
        (Uncovered::TheUnitItself { index: 2 }, "it is unit 2 itself"),
        (
            Uncovered::Aliases {
                first: id(0x0308),
                second: id(0x0400),
            },
            "its requests arrive as 03:01.0 or as 04:00.0",
        ),
    ] {
        says(why, text);
    }
}

#[test]
fn of_ivrs_and_its_devices() {
    let offset = 0x48;
    let (first, last) = (id(0x0100), id(0x01ff));
    for (error, text) in [
        (
            DeviceError::Overrun {
                offset,
                kind: 0x43,
                needed: 8,
                left: 5,
                requester: None,
            },
            "IVRS: the device entry at 0x48 of type 0x43 needs 8 bytes and 5 are left",
        ),
        (
            DeviceError::Stuck { offset, kind: 0xf1 },
            "IVRS: the device entry at 0x48 has type 0xf1; the rest of its block is unread",
        ),
        (
            DeviceError::NoEnd {
                offset,
                first,
                last,
            },
            "IVRS: the range from 01:00.0 on at 0x48 has no end",
        ),
        (
            DeviceError::NoStart { offset, last },
            "IVRS: the range up to 01:1f.7 at 0x48 has no start",
        ),
        (
            DeviceError::Reversed {
                offset,
                first: last,
                last: first,
            },
            "IVRS: the range from 01:1f.7 to 01:00.0 at 0x48 ends before it begins",
        ),
    ] {
        says(IvrsFinding::Device(error), text);
    }
    for (finding, text) in [
        (
            IvrsFinding::Block(EntryError::Overrun {
                table: Signature::IVRS,
                offset,
                length: 40,
                left: 8,
            }),
            "IVRS: the entry at 0x48 needs 40 bytes and 8 are left",
        ),
        (
            IvrsFinding::TooManyUnits { offset },
            "IVRS: the units from 0x48 on are too many",
        ),
        (
            IvrsFinding::DeadUnit { offset },
            "IVRS: the unit at 0x48 has no registers of its own",
        ),
        (
            IvrsFinding::DuplicateBlock { offset },
            "IVRS: the block at 0x48 was there before",
        ),
        (
            IvrsFinding::Registers { offset },
            "IVRS: the block at 0x48 puts its unit's registers elsewhere",
        ),
        (
            IvrsFinding::LesserBlock { offset },
            "IVRS: the block at 0x48 counts, as a better one is unreadable",
        ),
        (
            IvrsFinding::Region {
                offset,
                fault: RegionFault::Reversed {
                    base: PhysAddr(0x2000),
                    limit: PhysAddr(0),
                },
            },
            "IVRS at 0x48: a reserved region ends at 0x0, before its start 0x2000",
        ),
        (
            IvrsFinding::UnalignedRegion { offset },
            "IVRS: the memory at 0x48 is not of whole pages",
        ),
        (
            IvrsFinding::ReversedTarget { offset },
            "IVRS: the memory at 0x48 is for a reversed range",
        ),
        (
            IvrsFinding::UnknownBlock { offset, kind: 0x12 },
            "IVRS: the block at 0x48 has type 0x12",
        ),
        (
            IvrsFinding::UnknownDevice { offset, kind: 0x10 },
            "IVRS: the entry at 0x48 has type 0x10",
        ),
        (
            IvrsFinding::RepeatedSource {
                index: 1,
                kind: SpecialKind::Hpet(0),
                requester: id(0x00a0),
            },
            "IVRS: unit 1 names Hpet(0) again, as 00:14.0",
        ),
        (
            IvrsFinding::StrayIoApic { index: 0, id: 33 },
            "IVRS: unit 0 names I/O APIC 33, which is not there",
        ),
        (
            IvrsFinding::MissingIoApic { id: 32 },
            "IVRS: no unit names I/O APIC 32",
        ),
    ] {
        says(finding, text);
    }
}

#[test]
fn of_a_partition_that_cannot_be() {
    let window = Window {
        kind: WindowKind::Memory32,
        range: range(0xc000_0000, 0xd000_0000),
    };
    let table = TableError::Checksum {
        table: Signature::SRAT,
        sum: 2,
    };
    for (error, text) in [
        (
            PartitionError::from(table),
            "the bytes of SRAT add up to 0x02 instead of zero",
        ),
        (PartitionError::NoMadt, "the capture has no sound MADT"),
        (PartitionError::NoCpu, "the partition has no processor"),
        (
            PartitionError::UnknownCpu(ApicId(5)),
            "the MADT has no enabled processor 5",
        ),
        (
            PartitionError::DuplicateCpu(ApicId(5)),
            "processor 5 is listed twice",
        ),
        (
            PartitionError::MemoryOverlap {
                first: range(0, 0x2000),
                second: range(0x1000, 0x3000),
            },
            "memory 0x0..0x2000 and 0x1000..0x3000 overlap",
        ),
        (
            PartitionError::Buses { bridge: 1 },
            "the buses of host bridge 1 make no sense",
        ),
        (
            PartitionError::BusOverlap {
                first: 0,
                second: 2,
            },
            "host bridges 0 and 2 share a bus",
        ),
        (
            PartitionError::TooManyBridges { limit: 16 },
            "there can be 16 host bridges",
        ),
        (
            PartitionError::Window { bridge: 1, window },
            "Memory32 window 0xc0000000..0xd0000000 of host bridge 1 makes no sense",
        ),
        (
            PartitionError::WindowOverlap {
                bridge: 1,
                window,
                with: range(0xcfff_f000, 0xe000_0000),
            },
            "Memory32 window 0xc0000000..0xd0000000 of host bridge 1 overlaps 0xcffff000..0xe0000000",
        ),
        (
            PartitionError::TooManyNodes { limit: 64 },
            "the partition spans more than 64 proximity domains",
        ),
        (
            PartitionError::Place {
                place: PhysAddr(0x1008),
                length: 4096,
            },
            "4096 bytes of tables cannot be at 0x1008",
        ),
        (
            PartitionError::Buffer { have: 100 },
            "the tables do not fit a buffer of 100 bytes",
        ),
    ] {
        says(error, text);
    }
}

#[test]
fn of_a_table_and_of_what_it_lists() {
    let madt = build::madt(0xfee0_0000, 1, &[]);
    let sdt = Sdt::parse(&madt).unwrap();
    assert_eq!(
        format!("{sdt:?}"),
        format!(
            "Sdt {{ signature: APIC, revision: {}, length: 44 }}",
            madt[8]
        )
    );
    let table = build_small::dbg2(&[(0x8000, 1, b".", &[(0x3f8, 8)])]);
    let shown = format!("{:?}", Dbg2::parse(&table).unwrap());
    assert!(
        shown.starts_with("[Ok(DebugPort {") && shown.contains("kind: 32768"),
        "{shown}"
    );
    let blob = crate::capture::take(
        &crate::capture::machine(),
        &CaptureRequest::new(PhysAddr(0xf_5a40), SmbiosSource::None),
    );
    let shown = format!("{:?}", Capture::parse(&blob).unwrap());
    assert_eq!(shown.matches("CapturedTable {").count(), 11, "{shown}");
}
