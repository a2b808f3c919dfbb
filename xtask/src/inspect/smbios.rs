//! SMBIOS: entry points and structures.

use acpi_capture::{SmbiosEntry, SmbiosStructure, SmbiosStructures};

use super::document::{Document, Field};
use super::layout::{As, Spec, fields, text};

/// Where `dmidecode --dump-bin` puts the structures.
const DUMPED_AT: usize = 0x20;

/// The 64-bit entry point (SMBIOS 3.7, table 4).
const ENTRY_64: &[Spec] = &[
    (5, "anchor", As::Text),
    (1, "checksum", As::Hex),
    (1, "length", As::Number),
    (1, "major version", As::Number),
    (1, "minor version", As::Number),
    (1, "document revision", As::Number),
    (1, "entry point revision", As::Number),
    (1, "reserved", As::Reserved),
    (4, "structures, at most", As::Size),
    (8, "structures", As::Address),
];

/// The 32-bit entry point (SMBIOS 3.7, table 1).
const ENTRY_32: &[Spec] = &[
    (4, "anchor", As::Text),
    (1, "checksum", As::Hex),
    (1, "length", As::Number),
    (1, "major version", As::Number),
    (1, "minor version", As::Number),
    (2, "largest structure", As::Size),
    (1, "entry point revision", As::Number),
    (5, "formatted area", As::Bytes),
    (5, "intermediate anchor", As::Text),
    (1, "intermediate checksum", As::Hex),
    (2, "structures", As::Size),
    (4, "structures", As::Address),
    (2, "number of structures", As::Number),
    (1, "BCD revision", As::Hex),
];

/// Names of types (SMBIOS 3.7, table 3).
const TYPES: &[(u64, &str)] = &[
    (0, "platform firmware"),
    (1, "system"),
    (2, "baseboard"),
    (3, "enclosure"),
    (4, "processor"),
    (7, "cache"),
    (8, "port connector"),
    (9, "slot"),
    (11, "OEM strings"),
    (12, "configuration options"),
    (13, "firmware language"),
    (14, "group"),
    (15, "event log"),
    (16, "memory array"),
    (17, "memory device"),
    (18, "memory error"),
    (19, "array mapped address"),
    (20, "device mapped address"),
    (24, "hardware security"),
    (32, "boot status"),
    (38, "IPMI"),
    (39, "power supply"),
    (41, "onboard device"),
    (42, "management controller interface"),
    (43, "TPM"),
    (44, "processor, further"),
    (45, "firmware inventory"),
    (126, "inactive"),
    (127, "end of table"),
];

/// Fields behind the head of the types that people look at first: offset 4 and on.
const KNOWN: &[(u8, &[Spec])] = &[
    (
        0,
        &[
            (1, "vendor (string)", As::Number),
            (1, "version (string)", As::Number),
            (2, "start segment", As::Hex),
            (1, "release date (string)", As::Number),
            (1, "ROM size, (n + 1) * 64 KiB", As::Number),
            (8, "characteristics", As::Hex),
        ],
    ),
    (
        1,
        &[
            (1, "manufacturer (string)", As::Number),
            (1, "product (string)", As::Number),
            (1, "version (string)", As::Number),
            (1, "serial number (string)", As::Number),
            (16, "UUID", As::Bytes),
        ],
    ),
    (
        2,
        &[
            (1, "manufacturer (string)", As::Number),
            (1, "product (string)", As::Number),
            (1, "version (string)", As::Number),
            (1, "serial number (string)", As::Number),
            (1, "asset tag (string)", As::Number),
        ],
    ),
    (
        16,
        &[
            (1, "location", As::Hex),
            (1, "use", As::Hex),
            (1, "error correction", As::Hex),
            (4, "maximum capacity, KiB", As::Number),
            (2, "error handle", As::Hex),
            (2, "number of devices", As::Number),
        ],
    ),
    (
        19,
        &[
            (4, "start, KiB", As::Hex),
            (4, "end, KiB", As::Hex),
            (2, "array handle", As::Hex),
            (1, "partition width", As::Number),
        ],
    ),
];

const HEAD: &[Spec] = &[
    (1, "type", As::Choice(TYPES)),
    (1, "length", As::Number),
    (2, "handle", As::Hex),
];

/// An entry point alone, or one with structures at offset 20h, as `dmidecode --dump-bin` writes it.
pub(super) fn dump(bytes: &[u8]) -> Document {
    let mut document = Document::new("SMBIOS dump", 0, bytes.len());
    document.parts.push(entry(bytes, 0));
    if let Some(table) = bytes.get(DUMPED_AT..).filter(|table| !table.is_empty()) {
        let stated = SmbiosEntry::parse(bytes).map(|entry| entry.table_length as usize);
        let table = match stated {
            Ok(length) if length < table.len() => &table[..length],
            Ok(length) => {
                // The 64-bit entry point states a maximum.
                if bytes.starts_with(b"_SM_") && length > table.len() {
                    document.error(format_args!(
                        "the entry point states {length} bytes of structures, there are {}",
                        table.len()
                    ));
                }
                table
            }
            Err(_) => table,
        };
        document.parts.push(structures(table, DUMPED_AT));
    }
    document
}

/// An entry point.
pub(super) fn entry(bytes: &[u8], base: usize) -> Document {
    let specs = match bytes.starts_with(b"_SM3_") {
        true => ENTRY_64,
        false => ENTRY_32,
    };
    let length = bytes.len().min(super::layout::length_of(specs));
    let mut document = Document::new("SMBIOS entry point", base, length);
    document.fields = fields(bytes, base, 0, length, specs);
    match SmbiosEntry::parse(bytes) {
        Err(error) => document.error(error),
        Ok(entry) => document.fact(format_args!(
            "SMBIOS {}.{}, {} bits",
            entry.major,
            entry.minor,
            if entry.is_64_bit { 64 } else { 32 }
        )),
    }
    document
}

/// Whether these bytes may be structures without an entry point.
pub(super) fn looks_like_structures(bytes: &[u8]) -> bool {
    // Two whole structures of types that are known, or a list that makes sense up to its end.
    let known = |s: &SmbiosStructure<'_>| TYPES.iter().any(|(kind, _)| *kind == u64::from(s.kind));
    let mut first = SmbiosStructures::new(bytes).take(2);
    let two = (first.next(), first.next());
    if matches!(&two, (Some(Ok(a)), Some(Ok(b))) if known(a) && known(b)) {
        return true;
    }
    let mut last = None;
    for structure in SmbiosStructures::new(bytes) {
        match structure {
            Ok(structure) => last = Some(structure.kind),
            Err(error) if error.is_final() => return false,
            Err(_) => {}
        }
    }
    last == Some(SmbiosStructure::END_OF_TABLE)
}

/// The structures.
pub(super) fn structures(bytes: &[u8], base: usize) -> Document {
    let mut document = Document::new("SMBIOS structures", base, bytes.len());
    let mut structures = SmbiosStructures::new(bytes);
    let mut ended = false;
    let mut handles = std::collections::BTreeSet::new();
    loop {
        let at = structures.offset();
        match structures.next() {
            None => break,
            Some(Err(error)) if error.is_final() => document.error(error),
            Some(Err(error)) => document.note(error),
            Some(Ok(structure)) => {
                if !handles.insert(structure.handle) {
                    document.note(format_args!(
                        "handle {:#06x} is there twice",
                        structure.handle
                    ));
                }
                ended = structure.kind == SmbiosStructure::END_OF_TABLE;
                let used = structures.offset().saturating_sub(at);
                document.parts.push(one(&structure, base + at, used));
            }
        }
    }
    if !ended {
        document.note("there is no end-of-table structure");
    }
    document
}

fn one(structure: &SmbiosStructure<'_>, base: usize, length: usize) -> Document {
    let kind = u64::from(structure.kind);
    let name =
        super::layout::name_of(TYPES, kind).map_or_else(|| format!("type {kind}"), str::to_owned);
    let mut document = Document::new(name, base, length);
    let formatted = structure.formatted;
    document.fields = fields(formatted, base, 0, formatted.len(), HEAD);
    let known = KNOWN.iter().find(|(of, _)| *of == structure.kind);
    let specs = known.map_or(&[][..], |(_, specs)| specs);
    let own = fields(formatted, base, 4, formatted.len(), specs);
    document.fields.extend(own);
    for field in &mut document.fields {
        if !field.name.ends_with("(string)") {
            continue;
        }
        let number = field.number.unwrap_or(0) as u8;
        field.meaning = match (number, structure.string(number)) {
            (0, _) => "none".to_owned(),
            (_, Some(string)) => text(string),
            (_, None) => "there is no such string".to_owned(),
        };
    }
    let after = 4 + super::layout::length_of(specs);
    if let Some(rest) = formatted.get(after..).filter(|rest| !rest.is_empty()) {
        document.dump(base + after, rest, 256);
    }
    let mut at = base + formatted.len();
    for string in structure.strings() {
        document.fields.push(Field {
            offset: at,
            length: string.len(),
            name: "string",
            number: None,
            value: text(string),
            meaning: String::new(),
        });
        at += string.len() + 1;
    }
    document
}
