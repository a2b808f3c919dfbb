//! Remapping hardware: DMAR and IVRS.

use super::Entry;
use crate::inspect::layout::As::{
    Address, Choice, Flags, Hex, Meaning, Number, Requester, Reserved, Size,
};
use crate::inspect::layout::Spec;

const ATS: &[Spec] = &[
    (1, "flags", Flags(&[(0, "all of the segment, or required")])),
    (1, "reserved", Reserved),
    (2, "segment", Hex),
];
pub(super) const DMAR: &[Entry] = &[
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
pub(in crate::inspect) const SCOPE: &[Spec] = &[
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
pub(super) const IVRS: &[Entry] = &[
    (0x10, "unit, type 10h (IVHD)", IVHD),
    (0x11, "unit, type 11h (IVHD)", IVHD_LONG),
    (0x40, "unit, type 40h (IVHD)", IVHD_LONG),
    (0x20, "memory for all devices (IVMD)", IVMD),
    (0x21, "memory for one device (IVMD)", IVMD),
    (0x22, "memory for some devices (IVMD)", IVMD),
];
