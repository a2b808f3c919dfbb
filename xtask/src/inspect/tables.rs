//! The layouts of the ACPI tables that are known, field by field.
//!
//! Section numbers are those of ACPI 6.5 unless another specification is named.

use super::layout::As;
use super::layout::As::{
    Address, Bytes, Choice, Flags, Gas, Hex, Meaning, Number, Requester, Reserved, Size, Text,
};
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

const INTI: As = Meaning(|flags| {
    let polarity = [
        "polarity of the bus",
        "active high",
        "polarity 2",
        "active low",
    ];
    let trigger = ["trigger of the bus", "edge", "trigger 2", "level"];
    format!(
        "{}, {}",
        polarity[(flags & 3) as usize],
        trigger[(flags >> 2 & 3) as usize]
    )
});

const CPU_FLAGS: As = Flags(&[(0, "enabled"), (1, "can be brought online")]);
const ENABLED: As = Flags(&[(0, "enabled")]);

const MADT: &[Entry] = &[
    (
        0,
        "local APIC",
        &[
            (1, "processor uid", Number),
            (1, "APIC id", Hex),
            (4, "flags", CPU_FLAGS),
        ],
    ),
    (
        1,
        "I/O APIC",
        &[
            (1, "id", Number),
            (1, "reserved", Reserved),
            (4, "address", Address),
            (4, "first interrupt", Number),
        ],
    ),
    (
        2,
        "interrupt source override",
        &[
            (1, "bus", Number),
            (1, "source", Number),
            (4, "global interrupt", Number),
            (2, "flags", INTI),
        ],
    ),
    (
        3,
        "NMI source",
        &[(2, "flags", INTI), (4, "global interrupt", Number)],
    ),
    (
        4,
        "local APIC NMI",
        &[
            (
                1,
                "processor uid",
                Meaning(|uid| {
                    if uid == 0xff {
                        "all".into()
                    } else {
                        uid.to_string()
                    }
                }),
            ),
            (2, "flags", INTI),
            (1, "LINT", Number),
        ],
    ),
    (
        5,
        "local APIC address override",
        &[(2, "reserved", Reserved), (8, "address", Address)],
    ),
    (
        6,
        "I/O SAPIC",
        &[
            (1, "id", Number),
            (1, "reserved", Reserved),
            (4, "first interrupt", Number),
            (8, "address", Address),
        ],
    ),
    (
        7,
        "local SAPIC",
        &[
            (1, "processor", Number),
            (1, "id", Hex),
            (1, "eid", Hex),
            (3, "reserved", Reserved),
            (4, "flags", CPU_FLAGS),
            (4, "uid", Number),
        ],
    ),
    (
        8,
        "platform interrupt",
        &[
            (2, "flags", INTI),
            (
                1,
                "type",
                Choice(&[(1, "PMI"), (2, "INIT"), (3, "corrected platform error")]),
            ),
            (1, "processor id", Hex),
            (1, "processor eid", Hex),
            (1, "vector", Hex),
            (4, "global interrupt", Number),
            (4, "platform flags", Flags(&[(0, "processor override")])),
        ],
    ),
    (
        9,
        "local x2APIC",
        &[
            (2, "reserved", Reserved),
            (4, "x2APIC id", Hex),
            (4, "flags", CPU_FLAGS),
            (4, "processor uid", Number),
        ],
    ),
    (
        10,
        "local x2APIC NMI",
        &[
            (2, "flags", INTI),
            (
                4,
                "processor uid",
                Meaning(|uid| {
                    if uid == 0xffff_ffff {
                        "all".into()
                    } else {
                        uid.to_string()
                    }
                }),
            ),
            (1, "LINT", Number),
            (3, "reserved", Reserved),
        ],
    ),
    (11, "GICC (another architecture's)", &[]),
    (12, "GICD (another architecture's)", &[]),
    (13, "GIC MSI frame (another architecture's)", &[]),
    (14, "GICR (another architecture's)", &[]),
    (15, "GIC ITS (another architecture's)", &[]),
    (
        16,
        "multiprocessor wakeup",
        &[
            (2, "mailbox version", Number),
            (4, "reserved", Reserved),
            (8, "mailbox", Address),
            (8, "reset vector", Address),
        ],
    ),
];

const SRAT: &[Entry] = &[
    (
        0,
        "processor",
        &[
            (1, "proximity domain, low", Number),
            (1, "APIC id", Hex),
            (4, "flags", ENABLED),
            (1, "SAPIC eid", Hex),
            (3, "proximity domain, high", Number),
            (4, "clock domain", Number),
        ],
    ),
    (
        1,
        "memory",
        &[
            (4, "proximity domain", Number),
            (2, "reserved", Reserved),
            (8, "base", Address),
            (8, "length", Size),
            (4, "reserved", Reserved),
            (
                4,
                "flags",
                Flags(&[
                    (0, "enabled"),
                    (1, "hot-pluggable"),
                    (2, "non-volatile"),
                    (3, "specific purpose"),
                ]),
            ),
            (8, "reserved", Reserved),
        ],
    ),
    (
        2,
        "processor, x2APIC",
        &[
            (2, "reserved", Reserved),
            (4, "proximity domain", Number),
            (4, "x2APIC id", Hex),
            (4, "flags", ENABLED),
            (4, "clock domain", Number),
            (4, "reserved", Reserved),
        ],
    ),
    (5, "generic initiator", GENERIC),
    (6, "generic port", GENERIC),
];
const GENERIC: &[Spec] = &[
    (1, "reserved", Reserved),
    (1, "handle type", Choice(&[(0, "ACPI"), (1, "PCI")])),
    (4, "proximity domain", Number),
    (16, "handle", Bytes),
    (
        4,
        "flags",
        Flags(&[(0, "enabled"), (1, "architectural transactions")]),
    ),
    (4, "reserved", Reserved),
];

const ATS: &[Spec] = &[
    (1, "flags", Flags(&[(0, "all of the segment, or required")])),
    (1, "reserved", Reserved),
    (2, "segment", Hex),
];
const DMAR: &[Entry] = &[
    (
        0,
        "remapping unit (DRHD)",
        &[
            (
                1,
                "flags",
                Flags(&[(0, "everything that no other unit names")]),
            ),
            (
                1,
                "size",
                Meaning(|size| crate::ui::bytes(4096 << (size & 15))),
            ),
            (2, "segment", Hex),
            (8, "registers", Address),
        ],
    ),
    (
        1,
        "reserved memory (RMRR)",
        &[
            (2, "reserved", Reserved),
            (2, "segment", Hex),
            (8, "base", Address),
            (8, "limit", Address),
        ],
    ),
    (2, "root ports with ATS (ATSR)", ATS),
    (
        3,
        "static affinity (RHSA)",
        &[
            (4, "reserved", Reserved),
            (8, "registers", Address),
            (4, "proximity domain", Number),
        ],
    ),
    (
        4,
        "namespace device (ANDD)",
        &[(3, "reserved", Reserved), (1, "number", Number)],
    ),
    (5, "SoC translation caches (SATC)", ATS),
    (
        6,
        "SoC device properties (SIDP)",
        &[(2, "reserved", Reserved), (2, "segment", Hex)],
    ),
];

/// A device scope (VT-d, section 8.3.1); its path follows.
pub(super) const SCOPE: &[Spec] = &[
    (
        1,
        "type",
        Choice(&[
            (1, "PCI function"),
            (2, "PCI bridge and all behind it"),
            (3, "I/O APIC"),
            (4, "HPET"),
            (5, "namespace device"),
        ]),
    ),
    (1, "length", Number),
    (1, "flags", Hex),
    (1, "reserved", Reserved),
    (1, "enumeration id", Number),
    (1, "start bus", Hex),
];

const IVHD: &[Spec] = &[
    (2, "unit's function", Requester),
    (2, "capability", Hex),
    (8, "registers", Address),
    (2, "segment", Hex),
    (
        2,
        "information",
        Meaning(|info| format!("MSI {}, unit {}", info & 31, info >> 8 & 31)),
    ),
    (4, "features or attributes", Hex),
];
const IVHD_LONG: &[Spec] = &[
    (2, "unit's function", Requester),
    (2, "capability", Hex),
    (8, "registers", Address),
    (2, "segment", Hex),
    (
        2,
        "information",
        Meaning(|info| format!("MSI {}, unit {}", info & 31, info >> 8 & 31)),
    ),
    (4, "attributes", Hex),
    (8, "extended features", Hex),
    (8, "extended features 2", Hex),
];
const IVMD: &[Spec] = &[
    (2, "device", Requester),
    (2, "last device", Requester),
    (2, "segment", Hex),
    (6, "reserved", Reserved),
    (8, "base", Address),
    (8, "length", Size),
];
const IVRS: &[Entry] = &[
    (0x10, "unit, type 10h (IVHD)", IVHD),
    (0x11, "unit, type 11h (IVHD)", IVHD_LONG),
    (0x40, "unit, type 40h (IVHD)", IVHD_LONG),
    (0x20, "memory for all devices (IVMD)", IVMD),
    (0x21, "memory for one device (IVMD)", IVMD),
    (0x22, "memory for some devices (IVMD)", IVMD),
];

const HMAT: &[Entry] = &[
    (
        0,
        "memory proximity",
        &[
            (2, "flags", Flags(&[(0, "initiator is right")])),
            (2, "reserved", Reserved),
            (4, "initiator", Number),
            (4, "memory", Number),
            (4, "reserved", Reserved),
            (8, "reserved", Reserved),
            (8, "reserved", Reserved),
        ],
    ),
    (
        1,
        "latency and bandwidth",
        &[
            (1, "flags", Hex),
            (
                1,
                "measure",
                Choice(&[
                    (0, "access latency"),
                    (1, "read latency"),
                    (2, "write latency"),
                    (3, "access bandwidth"),
                    (4, "read bandwidth"),
                    (5, "write bandwidth"),
                ]),
            ),
            (1, "minimum transfer", Number),
            (1, "reserved", Reserved),
            (4, "initiators", Number),
            (4, "targets", Number),
            (4, "reserved", Reserved),
            (8, "unit", Number),
        ],
    ),
    (
        2,
        "memory-side cache",
        &[
            (4, "memory", Number),
            (4, "reserved", Reserved),
            (8, "size", Size),
            (4, "attributes", Hex),
            (2, "address mode", Hex),
            (2, "SMBIOS handles", Number),
        ],
    ),
];

const FADT: &[Spec] = &[
    (4, "FACS", Address),
    (4, "DSDT", Address),
    (1, "interrupt model", Hex),
    (
        1,
        "profile",
        Choice(&[
            (0, "unspecified"),
            (1, "desktop"),
            (2, "mobile"),
            (3, "workstation"),
            (4, "enterprise server"),
            (5, "small server"),
            (6, "appliance"),
            (7, "performance server"),
            (8, "tablet"),
        ]),
    ),
    (2, "SCI interrupt", Number),
    (4, "SMI command port", Hex),
    (1, "ACPI enable", Hex),
    (1, "ACPI disable", Hex),
    (1, "S4BIOS request", Hex),
    (1, "P-state control", Hex),
    (4, "PM1a event port", Hex),
    (4, "PM1b event port", Hex),
    (4, "PM1a control port", Hex),
    (4, "PM1b control port", Hex),
    (4, "PM2 control port", Hex),
    (4, "PM timer port", Hex),
    (4, "GPE0 port", Hex),
    (4, "GPE1 port", Hex),
    (1, "PM1 event length", Number),
    (1, "PM1 control length", Number),
    (1, "PM2 control length", Number),
    (1, "PM timer length", Number),
    (1, "GPE0 length", Number),
    (1, "GPE1 length", Number),
    (1, "GPE1 base", Number),
    (1, "C-state control", Hex),
    (2, "C2 latency", Number),
    (2, "C3 latency", Number),
    (2, "flush size", Number),
    (2, "flush stride", Number),
    (1, "duty offset", Number),
    (1, "duty width", Number),
    (1, "day alarm", Hex),
    (1, "month alarm", Hex),
    (1, "century", Hex),
    (
        2,
        "boot architecture",
        Flags(&[
            (0, "legacy devices"),
            (1, "8042"),
            (2, "no VGA"),
            (3, "no MSI"),
            (4, "no ASPM"),
            (5, "no CMOS clock"),
        ]),
    ),
    (1, "reserved", Reserved),
    (
        4,
        "flags",
        Flags(&[
            (0, "WBINVD"),
            (1, "WBINVD flushes"),
            (2, "C1"),
            (3, "C2 on many"),
            (4, "power button"),
            (5, "sleep button"),
            (6, "fixed RTC"),
            (7, "RTC wakes S4"),
            (8, "32-bit timer"),
            (9, "dock"),
            (10, "reset register"),
            (11, "sealed case"),
            (12, "headless"),
            (13, "CPU software sleep"),
            (14, "PCI Express wake"),
            (15, "platform clock"),
            (16, "S4 RTC status valid"),
            (17, "remote power on"),
            (18, "APIC cluster"),
            (19, "APIC physical"),
            (20, "hardware-reduced"),
            (21, "low-power S0"),
        ]),
    ),
    (12, "reset register", Gas),
    (1, "reset value", Hex),
    (2, "ARM boot architecture", Hex),
    (1, "minor version", Hex),
    (8, "FACS (64-bit)", Address),
    (8, "DSDT (64-bit)", Address),
    (12, "PM1a event", Gas),
    (12, "PM1b event", Gas),
    (12, "PM1a control", Gas),
    (12, "PM1b control", Gas),
    (12, "PM2 control", Gas),
    (12, "PM timer", Gas),
    (12, "GPE0", Gas),
    (12, "GPE1", Gas),
    (12, "sleep control", Gas),
    (12, "sleep status", Gas),
    (8, "hypervisor", Text),
];

const SPCR: &[Spec] = &[
    (
        1,
        "interface",
        Choice(&[
            (0, "16550"),
            (1, "16450"),
            (3, "PL011"),
            (0x12, "16550 with a Generic Address"),
        ]),
    ),
    (3, "reserved", Reserved),
    (12, "registers", Gas),
    (
        1,
        "interrupt type",
        Flags(&[
            (0, "8259"),
            (1, "I/O APIC"),
            (2, "SAPIC"),
            (3, "GIC"),
            (4, "PLIC/APLIC"),
        ]),
    ),
    (1, "IRQ", Number),
    (4, "global interrupt", Number),
    (
        1,
        "baud rate",
        Choice(&[
            (0, "as it is"),
            (3, "9600"),
            (4, "19200"),
            (6, "57600"),
            (7, "115200"),
        ]),
    ),
    (1, "parity", Number),
    (1, "stop bits", Number),
    (
        1,
        "flow control",
        Flags(&[(0, "DCD"), (1, "RTS/CTS"), (2, "XON/XOFF")]),
    ),
    (
        1,
        "terminal",
        Choice(&[(0, "VT100"), (1, "VT100+"), (2, "VT-UTF8"), (3, "ANSI")]),
    ),
    (1, "language", Number),
    (2, "PCI device id", Hex),
    (2, "PCI vendor id", Hex),
    (1, "PCI bus", Hex),
    (1, "PCI device", Hex),
    (1, "PCI function", Hex),
    (4, "PCI flags", Hex),
    (1, "PCI segment", Hex),
    (4, "clock", Number),
    (4, "precise baud rate", Number),
    (2, "namespace path length", Number),
    (2, "namespace path offset", Hex),
];

/// A device of the DBG2.
pub(super) const DEBUG_PORT: &[Spec] = &[
    (1, "revision", Number),
    (2, "length", Number),
    (1, "registers", Number),
    (2, "namespace path length", Number),
    (2, "namespace path offset", Hex),
    (2, "OEM data length", Number),
    (2, "OEM data offset", Hex),
    (
        2,
        "port type",
        Choice(&[
            (0x8000, "serial"),
            (0x8001, "IEEE 1394"),
            (0x8002, "USB"),
            (0x8003, "network"),
        ]),
    ),
    (2, "port subtype", Hex),
    (2, "reserved", Reserved),
    (2, "addresses offset", Hex),
    (2, "sizes offset", Hex),
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
