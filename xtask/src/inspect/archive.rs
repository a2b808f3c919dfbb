//! What holds several tables: Baton's own capture, and the archive that `cargo xtask capture`
//! writes.

use std::io::Read;

use acpi_capture::table::{Madt, Sdt};
use acpi_capture::{Capture, CapturedKind, CapturedTable, State};

use super::document::Document;
use super::layout::{As, Spec, fields};
use super::{Options, acpi, recognised, smbios};

/// The head of a capture.
const HEADER: &[Spec] = &[
    (8, "magic", As::Text),
    (4, "version", As::Number),
    (4, "length", As::Size),
    (4, "tables", As::Number),
    (4, "reserved", As::Reserved),
    (8, "RSDP was at", As::Address),
];

/// More members than an archive of one machine has.
const MEMBERS: usize = 4096;

/// Whether these bytes begin like a capture.
pub(super) fn looks_like_capture(bytes: &[u8]) -> bool {
    bytes.starts_with(b"BATONFW\0")
}

/// A capture: its head, then each table where it lies in the file.
pub(super) fn capture(bytes: &[u8], limit: usize) -> Document {
    let mut document = Document::new("capture of firmware tables", 0, bytes.len());
    document.fields = fields(bytes, 0, 0, bytes.len(), HEADER);
    match Capture::parse(bytes) {
        Err(error) => document.error(error),
        Ok(capture) => {
            let madt = capture.madt().and_then(Result::ok);
            for table in capture.tables() {
                // The table's bytes are a part of the file's.
                let base = (table.bytes.as_ptr().addr()).wrapping_sub(bytes.as_ptr().addr());
                let base = Some(base).filter(|&base| base < bytes.len()).unwrap_or(0);
                document
                    .parts
                    .push(captured(&table, base, limit, madt.as_ref()));
            }
        }
    }
    document
}

fn captured(
    table: &CapturedTable<'_>,
    base: usize,
    limit: usize,
    madt: Option<&Madt<'_>>,
) -> Document {
    let mut part = if !table.state.is_copied() {
        let mut part = Document::new(format!("{}: not copied", table.signature), base, 0);
        let stated = table.stated_length;
        part.note(format_args!("{:?}, it states {stated} bytes", table.state));
        part
    } else {
        match table.kind {
            CapturedKind::Rsdp => acpi::rsdp(table.bytes, base),
            CapturedKind::SmbiosEntry => smbios::entry(table.bytes, base),
            CapturedKind::SmbiosStructures => smbios::structures(table.bytes, base),
            _ => acpi::table(table.bytes, base, limit, madt),
        }
    };
    part.fact(format_args!("it was at {}", table.address));
    if table.state == State::Shortened {
        part.note("it was copied up to where the memory could be read");
    }
    part
}

/// Whether these bytes begin like a tar archive (POSIX.1-1988, ustar).
pub(super) fn looks_like_archive(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

/// An archive: each of its files.
pub(super) fn archive(bytes: &[u8], options: &Options) -> Document {
    let mut document = Document::new("archive", 0, bytes.len());
    let mut files = Vec::new();
    if let Err(error) = members(bytes, &mut files) {
        document.error(format_args!(
            "the archive cannot be read to its end: {error}"
        ));
    }
    // An IVRS table is judged with the MADT beside it.
    let madt = files
        .iter()
        .find(|(_, bytes)| bytes.starts_with(b"APIC") && Sdt::parse(bytes).is_ok());
    let madt = madt.and_then(|(_, bytes)| Madt::parse(bytes).ok());
    for (name, bytes) in &files {
        let mut part = recognised(bytes, options, madt.as_ref(), false);
        part.title = format!("{name}: {}", part.title);
        document.parts.push(part);
    }
    document
}

fn members(bytes: &[u8], into: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    for member in tar::Archive::new(bytes).entries()?.take(MEMBERS) {
        let mut member = member?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        let name = member.path_bytes().escape_ascii().to_string();
        let mut content = Vec::new();
        // No more than is there, whatever the header states.
        (&mut member)
            .take(bytes.len() as u64)
            .read_to_end(&mut content)?;
        into.push((name, content));
    }
    Ok(())
}
