//! Processors and interrupt controllers: the MADT.

use super::Entry;
use crate::inspect::layout::As;
use crate::inspect::layout::As::{Address, Choice, Flags, Hex, Meaning, Number, Reserved};

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
pub(super) const ENABLED: As = Flags(&[(0, "enabled")]);

pub(super) const MADT: &[Entry] = &[
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
