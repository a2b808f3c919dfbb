//! ACPI tables: the header, the fields, the entries, and what the parsers find wrong.

use acpi_capture::table::{
    Bgrt, Dbg2, Dmar, Ecdt, Fadt, Hmat, Hpet, Ivrs, Madt, Mcfg, RootTable, Rsdp, Sdt, Slit, Spcr,
    Srat, TableError, Tpm2, Waet, checksum,
};
use acpi_capture::table::{DmarFinding, IvrsFinding};

use super::document::Document;
use super::layout::{As, Spec, fields, length_of, number, number_at, requester, text};
use super::tables::{ALL, DEBUG_PORT, Entry, FACS, HEADER, Head, RSDP, SCOPE, Table};

/// Whether these bytes may be a table with the common header, or a FACS.
pub(super) fn looks_like_table(bytes: &[u8]) -> bool {
    let Some(signature) = bytes.get(..4) else {
        return false;
    };
    let name = signature
        .iter()
        .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_!$#@ ".contains(byte));
    let known = signature == b"FACS" || ALL.iter().any(|table| table.signature == signature);
    // A table that nobody knows has to look like one by its length too.
    let length = number_at(bytes, 4, 4).unwrap_or(0);
    let likely = (36..=64 << 20).contains(&length);
    name && (known || likely && bytes.len() >= 36)
}

/// The RSDP.
pub(super) fn rsdp(bytes: &[u8], base: usize) -> Document {
    let mut document = Document::new("RSDP: root pointer", base, bytes.len());
    let end = if bytes.get(15) == Some(&0) { 20 } else { 36 };
    document.fields = fields(bytes, base, 0, end, RSDP);
    match Rsdp::parse(bytes) {
        Err(error) => document.error(error),
        Ok(rsdp) if rsdp.revision >= 2 && !rsdp.extended_checksum_valid => {
            document.error("the extended checksum is wrong: the XSDT is not to be used");
        }
        Ok(_) => {}
    }
    document
}

/// A table with the common header, or a FACS. `base` is where it begins in the file.
pub(super) fn table(bytes: &[u8], base: usize, limit: usize, madt: Option<&Madt<'_>>) -> Document {
    let signature = bytes.get(..4).unwrap_or(bytes);
    if signature == b"FACS" {
        let mut document = Document::new("FACS: control structure", base, bytes.len());
        document.fields = fields(bytes, base, 0, bytes.len(), FACS);
        match number_at(bytes, 4, 4) {
            Some(length) if length >= 64 && length <= bytes.len() as u64 => {}
            stated => document.error(format_args!(
                "the FACS states a length of {} bytes and has {}",
                stated.unwrap_or(0),
                bytes.len()
            )),
        }
        return document;
    }
    let known = ALL.iter().find(|table| table.signature == signature);
    let name = known.map_or("not known to Baton", |table| table.name);
    let title = format!("{}: {name}", signature.escape_ascii());
    let stated = number_at(bytes, 4, 4).and_then(|length| usize::try_from(length).ok());
    // What the parsers see: no byte after the stated length.
    let whole = stated
        .filter(|&length| length >= Sdt::HEADER_LENGTH)
        .and_then(|length| bytes.get(..length))
        .unwrap_or(bytes);
    let mut document = Document::new(title, base, whole.len());
    document.fields = fields(whole, base, 0, whole.len(), HEADER);
    match Sdt::parse_any_sum(bytes) {
        Err(error) => document.error(error),
        Ok(_) => match checksum(whole) {
            0 => {}
            sum => document.error(format_args!(
                "the bytes add up to {sum:#04x} instead of zero: the checksum should be {:#04x}",
                whole.get(9).copied().unwrap_or(0).wrapping_sub(sum)
            )),
        },
    }
    if bytes.len() > whole.len() {
        document.note(format_args!(
            "{} bytes follow the stated length",
            bytes.len() - whole.len()
        ));
    }
    let Some(known) = known else {
        let body = whole.get(Sdt::HEADER_LENGTH..).unwrap_or(&[]);
        if !body.is_empty() {
            document.dump(base + Sdt::HEADER_LENGTH, body, limit);
        }
        return document;
    };
    let fixed = fields(whole, base, Sdt::HEADER_LENGTH, whole.len(), known.fixed);
    document.fields.extend(fixed);
    document.parts = entries(whole, base, known);
    special(&mut document, whole, base, limit, known);
    if let Ok(sdt) = Sdt::parse(&mend(whole)) {
        ask(&mut document, sdt, madt);
    }
    document
}

/// The entries of a table.
fn entries(bytes: &[u8], base: usize, table: &Table) -> Vec<Document> {
    let mut at = Sdt::HEADER_LENGTH + length_of(table.fixed);
    let mut found = Vec::new();
    while at < bytes.len() {
        let left = &bytes[at..];
        let head: &[Spec] = match table.head {
            Head::None => break,
            Head::Fixed(_) => &[],
            Head::Bytes => &[(1, "type", As::Hex), (1, "length", As::Number)],
            Head::Words => &[(2, "type", As::Hex), (2, "length", As::Number)],
            Head::Wide => &[
                (2, "type", As::Hex),
                (2, "reserved", As::Reserved),
                (4, "length", As::Number),
            ],
            Head::Ivrs => &[
                (1, "type", As::Hex),
                (1, "flags", As::Hex),
                (2, "length", As::Number),
            ],
        };
        let field = |offset, length| number_at(left, offset, length);
        let (kind, length) = match table.head {
            Head::None => break,
            Head::Fixed(length) => (Some(0), Some(length as u64)),
            Head::Bytes => (field(0, 1), field(1, 1)),
            Head::Words => (field(0, 2), field(2, 2)),
            Head::Wide => (field(0, 2), field(4, 4)),
            Head::Ivrs => (field(0, 1), field(2, 2)),
        };
        let (Some(kind), Some(length)) = (kind, length) else {
            break;
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        // What is too short or too long ends the list; the parser says so.
        let Some(entry) = left
            .get(..length)
            .filter(|_| length > 0 && length >= length_of(head))
        else {
            break;
        };
        found.push(one_entry(entry, base + at, kind, head, table));
        at += length;
    }
    found
}

fn one_entry(bytes: &[u8], base: usize, kind: u64, head: &[Spec], table: &Table) -> Document {
    let known: Option<&Entry> = table.entries.iter().find(|(of, _, _)| *of == kind);
    let title = known.map_or_else(
        || format!("unknown entry of type {kind:#x}"),
        |(_, name, _)| (*name).to_owned(),
    );
    let mut document = Document::new(title, base, bytes.len());
    document.fields = fields(bytes, base, 0, bytes.len(), head);
    let Some((_, _, specs)) = known else {
        document.dump(base, bytes, 256);
        return document;
    };
    let start = length_of(head);
    let own = fields(bytes, base, start, bytes.len(), specs);
    document.fields.extend(own);
    let after = start + length_of(specs);
    match (table.signature, kind) {
        (b"DMAR", 0 | 1 | 2 | 5 | 6) => document.parts = scopes(bytes, base, after),
        (b"IVRS", 0x10 | 0x11 | 0x40) => document.parts = devices(bytes, base, after),
        (_, _) => {
            if let Some(rest) = bytes.get(after..).filter(|rest| !rest.is_empty()) {
                document.dump(base + after, rest, 256);
            }
        }
    }
    document
}

/// The device scopes of a structure of the DMAR table.
fn scopes(bytes: &[u8], base: usize, mut at: usize) -> Vec<Document> {
    let mut found = Vec::new();
    while let Some(length) = number_at(bytes, at + 1, 1) {
        let length = length as usize;
        let Some(scope) = bytes.get(at..at + length).filter(|_| length >= 6) else {
            break;
        };
        let mut document = Document::new("scope", base + at, length);
        document.fields = fields(scope, base + at, 0, length, SCOPE);
        for (hop, pair) in scope.get(6..).unwrap_or(&[]).chunks_exact(2).enumerate() {
            let place = base + at + 6 + hop * 2;
            let spec = [(2, "path", As::Meaning(hop_meaning))];
            document.fields.extend(fields(pair, place, 0, 2, &spec));
        }
        found.push(document);
        at += length;
    }
    found
}

fn hop_meaning(number: u64) -> String {
    format!("device {:02x}, function {}", number & 0xff, number >> 8)
}

/// The settings of a device (AMD IOMMU, section 5.2.2.5).
const SETTINGS: As = As::Flags(&[
    (0, "INIT passes"),
    (1, "ExtINT passes"),
    (2, "NMI passes"),
    (4, "system management, low"),
    (5, "system management, high"),
    (6, "LINT0 passes"),
    (7, "LINT1 passes"),
]);

/// The device entries of a unit of the IVRS table (AMD IOMMU, section 5.2.2.5 and later).
fn devices(bytes: &[u8], base: usize, mut at: usize) -> Vec<Document> {
    const SHORT: &[Spec] = &[
        (1, "type", As::Hex),
        (2, "device", As::Requester),
        (1, "settings", SETTINGS),
    ];
    const ALIAS: &[Spec] = &[
        (1, "type", As::Hex),
        (2, "device", As::Requester),
        (1, "settings", SETTINGS),
        (1, "reserved", As::Reserved),
        (2, "arrives as", As::Requester),
        (1, "reserved", As::Reserved),
    ];
    const EXTENDED: &[Spec] = &[
        (1, "type", As::Hex),
        (2, "device", As::Requester),
        (1, "settings", SETTINGS),
        (4, "extended", As::Flags(&[(31, "ATS disabled")])),
    ];
    const SPECIAL: &[Spec] = &[
        (1, "type", As::Hex),
        (2, "reserved", As::Reserved),
        (1, "settings", SETTINGS),
        (1, "handle", As::Number),
        (2, "device", As::Requester),
        (1, "variety", As::Choice(&[(1, "I/O APIC"), (2, "HPET")])),
    ];
    const ACPI: &[Spec] = &[
        (1, "type", As::Hex),
        (2, "device", As::Requester),
        (1, "settings", SETTINGS),
        (8, "hardware id", As::Text),
        (8, "compatible id", As::Text),
        (
            1,
            "uid format",
            As::Choice(&[(0, "none"), (1, "integer"), (2, "text")]),
        ),
        (1, "uid length", As::Number),
    ];
    let mut found = Vec::new();
    while let Some(&kind) = bytes.get(at) {
        let length = match kind {
            0xf0 => 22 + number_at(bytes, at + 21, 1).unwrap_or(0) as usize,
            0..=0x3f => 4,
            0x40..=0x7f => 8,
            0x80..=0xbf => 16,
            _ => 32,
        };
        let Some(entry) = at.checked_add(length).and_then(|end| bytes.get(at..end)) else {
            break;
        };
        let (name, specs) = match kind {
            0 => ("padding", &SHORT[..1]),
            1 => ("all devices", SHORT),
            2 => ("one device", SHORT),
            3 => ("first device", SHORT),
            4 => ("last device", SHORT),
            0x42 => ("one device with an alias", ALIAS),
            0x43 => ("first device with an alias", ALIAS),
            0x46 => ("one device, extended", EXTENDED),
            0x47 => ("first device, extended", EXTENDED),
            0x48 => ("special device", SPECIAL),
            0xf0 => ("ACPI device", ACPI),
            _ => ("unknown device entry", &SHORT[..1]),
        };
        let mut document = Document::new(name, base + at, length);
        document.fields = fields(entry, base + at, 0, length, specs);
        let after = length_of(specs);
        if let Some(rest) = entry
            .get(after..)
            .filter(|rest| rest.iter().any(|&b| b != 0))
        {
            document.dump(base + at + after, rest, 256);
        }
        found.push(document);
        at += length;
    }
    found
}

/// What is neither a field nor an entry with a head.
fn special(document: &mut Document, bytes: &[u8], base: usize, limit: usize, known: &Table) {
    let after = Sdt::HEADER_LENGTH + length_of(known.fixed);
    let rest = bytes.get(after..).unwrap_or(&[]);
    match known.signature {
        b"SLIT" => {
            let n = number_at(bytes, 36, 8).and_then(|n| usize::try_from(n).ok());
            let Some(n) = n.filter(|&n| n > 0) else {
                return;
            };
            for (row, distances) in rest.chunks(n).take(n).enumerate() {
                let mut line = Document::new(
                    format!("from locality {row}"),
                    base + after + row * n,
                    distances.len(),
                );
                line.dump(line.offset, distances, limit);
                document.parts.push(line);
            }
        }
        b"DBG2" => {
            let mended = mend(bytes);
            let Ok(dbg2) = Dbg2::parse(&mended) else {
                return;
            };
            for port in dbg2.ports().flatten() {
                let mut part = Document::new("debug port", base + port.offset, 0);
                let own = bytes.get(port.offset..).unwrap_or(&[]);
                part.length = number_at(own, 1, 2).unwrap_or(0) as usize;
                part.fields = fields(own, part.offset, 0, part.length, DEBUG_PORT);
                part.fact(format_args!("path {}", text(port.path)));
                for (register, size) in port.registers() {
                    part.fact(format_args!(
                        "registers in space {}, at {:#x}, {size} bytes",
                        register.space, register.address
                    ));
                }
                document.parts.push(part);
            }
        }
        b"ECDT" => document.fact(format_args!("path {}", text(rest))),
        _ if known.head == Head::None && !rest.is_empty() => {
            document.dump(base + after, rest, limit);
        }
        _ => {}
    }
}

/// The same bytes under a right checksum: one wrong byte does not hide what else there is.
fn mend(bytes: &[u8]) -> Vec<u8> {
    let mut mended = bytes.to_vec();
    if let Some(place) = mended.get_mut(9) {
        *place = place.wrapping_sub(checksum(bytes));
    }
    mended
}

/// Puts in what the table's own parser has to say.
fn ask(document: &mut Document, sdt: Sdt<'_>, madt: Option<&Madt<'_>>) {
    let refused = match &sdt.signature().0 {
        b"APIC" => Madt::from_sdt(sdt).map(|madt| {
            madt.entries().for_each(|entry| failed(document, entry));
            let (processors, io_apics) = (madt.processors().count(), madt.io_apics().count());
            document.fact(format_args!(
                "{processors} enabled processors, {io_apics} I/O APICs"
            ));
        }),
        b"SRAT" => {
            Srat::from_sdt(sdt).map(|srat| srat.entries().for_each(|entry| failed(document, entry)))
        }
        b"HMAT" => Hmat::from_sdt(sdt)
            .map(|hmat| hmat.structures().for_each(|entry| failed(document, entry))),
        b"DMAR" => Dmar::from_sdt(sdt).map(|dmar| {
            dmar.findings(|finding| match finding {
                DmarFinding::Structure(_) | DmarFinding::Scope { .. } => document.error(finding),
                odd => document.note(odd),
            });
        }),
        b"IVRS" => Ivrs::from_sdt(sdt).map(|ivrs| {
            ivrs.findings(madt, |finding| match finding {
                IvrsFinding::Block(_) | IvrsFinding::Device(_) => document.error(finding),
                odd => document.note(odd),
            });
            for special in ivrs.special_devices() {
                let (unit, _, device) = special;
                document.fact(format_args!(
                    "{:?} below unit {unit} arrives as {}",
                    device.kind,
                    requester(u64::from(device.requester.0))
                ));
            }
        }),
        b"DBG2" => {
            Dbg2::from_sdt(sdt).map(|dbg2| dbg2.ports().for_each(|port| failed(document, port)))
        }
        b"MCFG" => Mcfg::from_sdt(sdt).map(|mcfg| {
            for allocation in mcfg.allocations() {
                if allocation.memory().is_none() {
                    document.error(format_args!("{allocation:?} is no range of memory"));
                }
            }
            if !sdt.body().get(8..).unwrap_or(&[]).len().is_multiple_of(16) {
                document.note("the last allocation is cut off");
            }
        }),
        b"SLIT" => Slit::from_sdt(sdt).map(|slit| {
            let localities = slit.localities().min(u64::from(u16::MAX)) as u32;
            for own in 0..localities {
                if slit.distance(own, own) != Some(10) {
                    document.note(format_args!(
                        "locality {own} is not at distance 10 from itself"
                    ));
                }
            }
        }),
        b"FACP" => Fadt::from_sdt(sdt).map(|fadt| {
            let (short, long) = (fadt.dsdt_32().0, fadt.dsdt_64().0);
            if short != 0 && long != 0 && short != long {
                document.note("the two addresses of the DSDT differ");
            }
            if fadt.dsdt().0 == 0 {
                document.error("there is no DSDT");
            }
            if fadt.facs_32().0 != 0 && fadt.facs_64().0 != 0 && fadt.facs_32() != fadt.facs_64() {
                document.note("the two addresses of the FACS differ");
            }
        }),
        b"XSDT" | b"RSDT" => RootTable::parse(sdt.bytes()).map(|root| {
            let width = if sdt.signature().0 == *b"XSDT" { 8 } else { 4 };
            let repeated = sdt
                .body()
                .chunks_exact(width)
                .map(number)
                .collect::<std::collections::BTreeSet<_>>();
            if repeated.len() != root.addresses().count() {
                document.note("an address is there twice");
            }
        }),
        b"HPET" => Hpet::from_sdt(sdt).map(drop),
        b"SPCR" => Spcr::from_sdt(sdt).map(drop),
        b"BGRT" => Bgrt::from_sdt(sdt).map(drop),
        b"TPM2" => Tpm2::from_sdt(sdt).map(drop),
        b"WAET" => Waet::from_sdt(sdt).map(drop),
        b"ECDT" => Ecdt::from_sdt(sdt).map(drop),
        _ => Ok::<(), TableError>(()),
    };
    if let Err(error) = refused {
        document.error(error);
    }
}

fn failed<T, E: std::fmt::Display>(document: &mut Document, entry: Result<T, E>) {
    if let Err(error) = entry {
        document.error(error);
    }
}
