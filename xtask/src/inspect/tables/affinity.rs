//! What lies near what: SRAT and HMAT.

use super::Entry;
use super::interrupts::ENABLED;
use crate::inspect::layout::As::{Address, Bytes, Choice, Flags, Hex, Number, Reserved, Size};
use crate::inspect::layout::Spec;

pub(super) const SRAT: &[Entry] = &[
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

pub(super) const HMAT: &[Entry] = &[
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
