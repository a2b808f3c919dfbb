//! Handoff blobs.

use handoff_abi::{
    AbiVersion, Features, Handoff, Header, MAGIC, Owner, PhysAddr, RecordHeader, Speaks, kind,
    purpose,
};

use super::document::Document;
use super::layout::{As, Spec, fields, length_of, number_at};

const HEADER: &[Spec] = &[
    (8, "magic", As::Text),
    (2, "major version", As::Number),
    (2, "minor version", As::Number),
    (4, "header length", As::Number),
    (8, "length", As::Size),
    (8, "address", As::Address),
    (8, "features", FEATURES),
    (8, "required features", FEATURES),
    (4, "records", As::Number),
    (4, "checksum", As::Hex),
    (8, "epoch", As::Number),
    (2, "writer", As::Number),
    (2, "reader", As::Number),
    (4, "reserved", As::Reserved),
    (8, "swaps", As::Number),
];

const FEATURES: As = As::Flags(&[
    (0, "adopts devices"),
    (1, "VT-d"),
    (2, "AMD-Vi"),
    (3, "standby"),
]);

const RECORD: &[Spec] = &[
    (4, "kind", As::Hex),
    (4, "flags", As::Flags(&[(0, "critical")])),
    (4, "length", As::Number),
    (4, "reserved", As::Reserved),
];

/// A record's kind, its name and its fields.
pub(super) type Known = (u32, &'static str, &'static [Spec]);

/// The records that are known.
pub(super) const RECORDS: &[Known] = &[
    (
        kind::EXTENT,
        "piece of the baton",
        &[
            (
                4,
                "purpose",
                As::Choice(&[
                    (purpose::HANDOFF as u64, "handoff"),
                    (purpose::CAPTURE as u64, "captured firmware tables"),
                    (purpose::LEDGER as u64, "ledger"),
                    (purpose::EXCHANGE as u64, "exchange"),
                    (purpose::PARK as u64, "park page"),
                    (purpose::IOMMU as u64, "IOMMU tables"),
                    (purpose::TRAMPOLINE as u64, "trampoline"),
                    (purpose::MODULES as u64, "kernel images"),
                    (purpose::FILTERED as u64, "filtered tables"),
                ]),
            ),
            (4, "reserved", As::Reserved),
            (8, "base", As::Address),
            (8, "length", As::Size),
        ],
    ),
    (
        kind::CPU,
        "processor",
        &[(4, "APIC id", As::Hex), (4, "ACPI uid", As::Number)],
    ),
    (
        kind::MEMORY,
        "memory",
        &[
            (8, "base", As::Address),
            (8, "length", As::Size),
            (
                4,
                "type",
                As::Choice(&[(1, "usable"), (2, "reserved"), (3, "ACPI"), (4, "ACPI NVS")]),
            ),
            (4, "reserved", As::Reserved),
        ],
    ),
    (
        kind::FUNCTION,
        "PCI function",
        &[
            (4, "function", As::Function),
            (2, "domain", As::Number),
            (2, "workload", As::Meaning(workload)),
            (8, "reserved", As::Reserved),
        ],
    ),
    (
        kind::INTERRUPT_HANDLE,
        "interrupt handle",
        &[
            (4, "function", As::Function),
            (2, "unit", As::Number),
            (2, "handle", As::Number),
            (8, "message address", As::Address),
            (4, "message data", As::Hex),
            (4, "destination", As::Hex),
            (4, "vector", As::Hex),
            (4, "message", As::Number),
        ],
    ),
    (
        kind::FIRMWARE,
        "firmware tables",
        &[(8, "RSDP", As::Address), (8, "SMBIOS", As::Address)],
    ),
    (kind::VTD_UNIT, "VT-d unit", VTD),
    (
        kind::WORKLOAD,
        "workload",
        &[
            (2, "id", As::Number),
            (2, "domain", As::Number),
            (4, "ledger slot", As::Number),
            (8, "base", As::Address),
            (8, "length", As::Size),
            (8, "layout", As::Hex),
            (8, "layout version", As::Number),
        ],
    ),
    (
        kind::CONSOLE,
        "console",
        &[(4, "port", As::Hex), (4, "baud", As::Number)],
    ),
    (kind::CLOCK, "clock", &[(8, "TSC hertz", As::Number)]),
    (
        kind::ECAM,
        "configuration space",
        &[
            (8, "base", As::Address),
            (2, "segment", As::Hex),
            (1, "first bus", As::Hex),
            (1, "last bus", As::Hex),
            (4, "reserved", As::Reserved),
        ],
    ),
    (
        kind::HISTORY,
        "history",
        &[
            (8, "frozen at", As::Number),
            (8, "committed at", As::Number),
            (2, "previous", As::Number),
            (6, "reserved", As::Reserved),
            (8, "swap", As::Number),
        ],
    ),
    (
        kind::DOMAIN,
        "domain",
        &[
            (2, "domain", As::Number),
            (2, "reserved", As::Reserved),
            (4, "owner", As::Meaning(owner)),
        ],
    ),
    (
        kind::PLATFORM,
        "platform",
        &[
            (4, "bootstrap processor", As::Hex),
            (4, "reserved", As::Reserved),
        ],
    ),
    (kind::AMD_VI_UNIT, "AMD-Vi unit", AMD_VI),
];

const VTD: &[Spec] = &[
    (8, "registers", As::Address),
    (8, "registers, length", As::Size),
    (8, "CAP", As::Hex),
    (8, "ECAP", As::Hex),
    (8, "RTADDR", As::Address),
    (8, "IQA", As::Address),
    (8, "IRTA", As::Address),
    (8, "status address", As::Address),
    (8, "arena", As::Address),
    (8, "arena, length", As::Size),
    (4, "GSTS", As::Hex),
    (4, "queue tail", As::Number),
    (4, "sequence", As::Number),
    (4, "levels", As::Number),
    (4, "host address bits", As::Number),
    (4, "domains", As::Number),
];
const AMD_VI: &[Spec] = &[
    (8, "registers", As::Address),
    (8, "registers, length", As::Size),
    (8, "extended features", As::Hex),
    (8, "control", As::Hex),
    (8, "device table", As::Address),
    (8, "command buffer", As::Address),
    (8, "event log", As::Address),
    (8, "status address", As::Address),
    (8, "arena", As::Address),
    (8, "arena, length", As::Size),
    (8, "sequence", As::Number),
    (4, "capability header", As::Hex),
    (4, "IVHD flags", As::Hex),
    (4, "command tail", As::Number),
    (4, "levels", As::Number),
    (4, "host address bits", As::Number),
    (4, "domains", As::Number),
];
const UNIT_DOMAIN: &[Spec] = &[
    (8, "root", As::Address),
    (4, "id", As::Number),
    (4, "attached", As::Number),
];
/// The most domains that a unit's record has.
const DOMAINS: usize = 64;

fn workload(number: u64) -> String {
    match number.checked_sub(1) {
        None => "the partition's own".to_owned(),
        Some(workload) => format!("workload {workload}"),
    }
}

fn owner(bits: u64) -> String {
    let bits = u32::try_from(bits).unwrap_or(u32::MAX);
    Owner::from_wire(bits).map_or_else(|| "nobody known".to_owned(), |owner| format!("{owner:?}"))
}

/// Whether these bytes begin like a handoff.
pub(super) fn looks_like_handoff(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC.to_le_bytes())
}

/// A handoff, as Baton's own reader sees it.
pub(super) fn handoff(bytes: &[u8]) -> Document {
    let mut document = Document::new("handoff", 0, bytes.len());
    let stated = number_at(bytes, 12, 4).unwrap_or(0) as usize;
    // A header that lies about its length is shown as far as its version has fields.
    let known = length_of(HEADER).min(stated.max(Header::LENGTH_V0_1 as usize));
    document.fields = fields(bytes, 0, 0, known, HEADER);
    let speaks = Speaks {
        newest: AbiVersion::NEWEST,
        oldest: AbiVersion::OLDEST,
        features: Features::all(),
    };
    // In a file there is no place to compare with: it is taken to lie where it says.
    let at = PhysAddr(number_at(bytes, 24, 8).unwrap_or(0));
    if let Err(error) = Handoff::parse(bytes, at, &speaks) {
        document.error(error);
    }
    let mut place = stated;
    while place < bytes.len() {
        let length = number_at(bytes, place.saturating_add(8), 4).unwrap_or(0) as usize;
        let end = place.checked_add(length);
        let Some(record) = end.and_then(|end| bytes.get(place..end)) else {
            break;
        };
        // The parser has said that the length is wrong; there is no way on from here.
        if length < size_of::<RecordHeader>() {
            break;
        }
        document.parts.push(one(record, place));
        place += length;
    }
    document
}

fn one(bytes: &[u8], base: usize) -> Document {
    let number = number_at(bytes, 0, 4).unwrap_or(0);
    let known = RECORDS.iter().find(|(of, _, _)| u64::from(*of) == number);
    let title = known.map_or_else(
        || format!("record of unknown kind {number:#x}"),
        |(_, name, _)| (*name).to_owned(),
    );
    let mut document = Document::new(title, base, bytes.len());
    document.fields = fields(bytes, base, 0, bytes.len(), RECORD);
    let Some((kind, _, specs)) = known else {
        document.dump(base, bytes, 256);
        return document;
    };
    let start = length_of(RECORD);
    let own = fields(bytes, base, start, bytes.len(), specs);
    document.fields.extend(own);
    let mut after = start + length_of(specs);
    if matches!(*kind, kind::VTD_UNIT | kind::AMD_VI_UNIT) {
        let count = number_at(bytes, after - 4, 4).unwrap_or(0) as usize;
        for place in 0..count.min(DOMAINS) {
            let own = fields(bytes, base, after + place * 16, bytes.len(), UNIT_DOMAIN);
            document.fields.extend(own);
        }
        if count > DOMAINS {
            document.error(format_args!("{count} domains of at most {DOMAINS}"));
        }
        after += DOMAINS * length_of(UNIT_DOMAIN);
    }
    if let Some(rest) = bytes.get(after..).filter(|rest| !rest.is_empty()) {
        document.note(format_args!(
            "{} bytes of a newer version follow",
            rest.len()
        ));
        document.dump(base + after, rest, 256);
    }
    document
}
