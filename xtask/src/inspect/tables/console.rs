//! Consoles and debug ports: SPCR and DBG2.

use crate::inspect::layout::As::{Choice, Flags, Gas, Hex, Number, Reserved};
use crate::inspect::layout::Spec;

pub(super) const SPCR: &[Spec] = &[
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
pub(in crate::inspect) const DEBUG_PORT: &[Spec] = &[
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
