//! The layouts of the ACPI tables that are known, field by field.
//!
//! Section numbers are those of ACPI 6.5 unless another specification is named.

mod affinity;
mod console;
mod fixed;
mod interrupts;
mod remapping;

use self::affinity::{HMAT, SRAT};
pub(super) use self::console::DEBUG_PORT;
use self::console::SPCR;
use self::fixed::FADT;
use self::interrupts::MADT;
pub(super) use self::remapping::SCOPE;
use self::remapping::{DMAR, IVRS};
use super::layout::As::{Address, Choice, Flags, Gas, Hex, Meaning, Number, Reserved, Size, Text};
use super::layout::Spec;

/// How the entries of a table begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// No entries.
    None,
    /// A type and a length of one byte each.
    Bytes,
    /// A type and a length of two bytes each.
    Words,
    /// A type of two bytes, and a length of four at offset 4.
    Wide,
    /// A type of one byte, flags, and a length of two bytes.
    Ivrs,
    /// No head: entries of this many bytes.
    Fixed(usize),
}

/// What is known of a table.
pub(super) struct Table {
    pub(super) signature: &'static [u8; 4],
    pub(super) name: &'static str,
    /// The fields after the common header.
    pub(super) fixed: &'static [Spec],
    /// How its entries begin.
    pub(super) head: Head,
    pub(super) entries: &'static [Entry],
}

/// What is known of an entry: its type, its name, and the fields after the head.
pub(super) type Entry = (u64, &'static str, &'static [Spec]);

/// The common header (section 5.2.6).
pub(super) const HEADER: &[Spec] = &[
    (4, "signature", Text),
    (4, "length", Size),
    (1, "revision", Number),
    (1, "checksum", Hex),
    (6, "OEM id", Text),
    (8, "OEM table id", Text),
    (4, "OEM revision", Hex),
    (4, "creator id", Text),
    (4, "creator revision", Hex),
];

/// Root System Description Pointer (section 5.2.5.3).
pub(super) const RSDP: &[Spec] = &[
    (8, "signature", Text),
    (1, "checksum", Hex),
    (6, "OEM id", Text),
    (
        1,
        "revision",
        Choice(&[(0, "ACPI 1.0"), (2, "ACPI 2.0 and later")]),
    ),
    (4, "RSDT", Address),
    (4, "length", Size),
    (8, "XSDT", Address),
    (1, "extended checksum", Hex),
    (3, "reserved", Reserved),
];

/// Firmware ACPI Control Structure (section 5.2.10).
pub(super) const FACS: &[Spec] = &[
    (4, "signature", Text),
    (4, "length", Size),
    (4, "hardware signature", Hex),
    (4, "waking vector", Address),
    (4, "global lock", Flags(&[(0, "pending"), (1, "owned")])),
    (4, "flags", Flags(&[(0, "S4BIOS"), (1, "64-bit wake")])),
    (8, "64-bit waking vector", Address),
    (1, "version", Number),
    (3, "reserved", Reserved),
    (4, "OSPM flags", Flags(&[(0, "64-bit wake environment")])),
];

/// All tables that are known.
pub(super) const ALL: &[Table] = &[
    Table {
        signature: b"APIC",
        name: "interrupt controllers and processors (MADT)",
        fixed: &[
            (4, "local APIC address", Address),
            (4, "flags", Flags(&[(0, "two 8259s")])),
        ],
        head: Head::Bytes,
        entries: MADT,
    },
    Table {
        signature: b"SRAT",
        name: "affinity of processors and memory (SRAT)",
        fixed: &[(4, "reserved (1)", Hex), (8, "reserved", Reserved)],
        head: Head::Bytes,
        entries: SRAT,
    },
    Table {
        signature: b"DMAR",
        name: "DMA remapping, VT-d (DMAR)",
        fixed: &[
            (
                1,
                "host address width",
                Meaning(|width| format!("{} bits", width + 1)),
            ),
            (
                1,
                "flags",
                Flags(&[
                    (0, "interrupt remapping"),
                    (1, "x2APIC opt-out"),
                    (2, "DMA control opt-in"),
                ]),
            ),
            (10, "reserved", Reserved),
        ],
        head: Head::Words,
        entries: DMAR,
    },
    Table {
        signature: b"IVRS",
        name: "I/O virtualisation, AMD-Vi (IVRS)",
        fixed: &[
            (
                4,
                "information",
                Meaning(|info| {
                    format!(
                        "physical addresses {} bits, virtual {}",
                        info >> 8 & 0x7f,
                        info >> 15 & 0x7f
                    )
                }),
            ),
            (8, "reserved", Reserved),
        ],
        head: Head::Ivrs,
        entries: IVRS,
    },
    Table {
        signature: b"HMAT",
        name: "memory attributes (HMAT)",
        fixed: &[(4, "reserved", Reserved)],
        head: Head::Wide,
        entries: HMAT,
    },
    Table {
        signature: b"MCFG",
        name: "PCI Express configuration space (MCFG)",
        fixed: &[(8, "reserved", Reserved)],
        head: Head::Fixed(16),
        entries: &[(
            0,
            "allocation",
            &[
                (8, "base", Address),
                (2, "segment", Hex),
                (1, "first bus", Hex),
                (1, "last bus", Hex),
                (4, "reserved", Reserved),
            ],
        )],
    },
    Table {
        signature: b"XSDT",
        name: "root table, 64-bit (XSDT)",
        fixed: &[],
        head: Head::Fixed(8),
        entries: &[(0, "table", &[(8, "address", Address)])],
    },
    Table {
        signature: b"RSDT",
        name: "root table, 32-bit (RSDT)",
        fixed: &[],
        head: Head::Fixed(4),
        entries: &[(0, "table", &[(4, "address", Address)])],
    },
    Table {
        signature: b"FACP",
        name: "fixed hardware (FADT)",
        fixed: FADT,
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"SLIT",
        name: "distances (SLIT)",
        fixed: &[(8, "localities", Number)],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"HPET",
        name: "event timer (HPET)",
        fixed: &[
            (4, "hardware id", Hex),
            (12, "registers", Gas),
            (1, "number", Number),
            (2, "minimum tick", Number),
            (1, "page protection", Hex),
        ],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"SPCR",
        name: "serial console (SPCR)",
        fixed: SPCR,
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"DBG2",
        name: "debug ports (DBG2)",
        fixed: &[(4, "devices offset", Hex), (4, "devices", Number)],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"BGRT",
        name: "boot graphics (BGRT)",
        fixed: &[
            (2, "version", Number),
            (
                1,
                "status",
                Flags(&[(0, "displayed"), (1, "turned by 90"), (2, "turned by 180")]),
            ),
            (1, "image type", Choice(&[(0, "bitmap")])),
            (8, "image", Address),
            (4, "offset x", Number),
            (4, "offset y", Number),
        ],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"TPM2",
        name: "trusted platform module (TPM2)",
        fixed: &[
            (2, "platform class", Choice(&[(0, "client"), (1, "server")])),
            (2, "reserved", Reserved),
            (8, "control area", Address),
            (
                4,
                "start method",
                Choice(&[
                    (2, "ACPI"),
                    (6, "FIFO"),
                    (7, "command response buffer"),
                    (8, "command response buffer with ACPI"),
                ]),
            ),
        ],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"WAET",
        name: "emulated devices (WAET)",
        fixed: &[(
            4,
            "flags",
            Flags(&[(0, "RTC is good"), (1, "PM timer is good")]),
        )],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"ECDT",
        name: "embedded controller (ECDT)",
        fixed: &[
            (12, "control", Gas),
            (12, "data", Gas),
            (4, "uid", Number),
            (1, "GPE bit", Number),
        ],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"DSDT",
        name: "namespace, main part (DSDT)",
        fixed: &[],
        head: Head::None,
        entries: &[],
    },
    Table {
        signature: b"SSDT",
        name: "namespace, further part (SSDT)",
        fixed: &[],
        head: Head::None,
        entries: &[],
    },
];
