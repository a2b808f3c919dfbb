//! `cargo xtask inspect`: what firmware tables, captures, memory maps and handoffs say, and what is
//! wrong with them.
//!
//! The parsers of `acpi-capture` and `handoff-abi` judge; the layouts here only name the fields. So
//! what is shown as wrong is what a kernel would refuse or leave out.

mod acpi;
mod archive;
mod document;
mod handoff;
mod layout;
mod memory;
mod smbios;
mod tables;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use acpi_capture::memory::E820Entries;
use acpi_capture::table::Madt;
use anyhow::{Context, Result, bail};

use document::Document;

/// The longest file that is read.
const MAX_FILE: u64 = 64 << 20;

/// How many bytes are shown of what is not understood.
const DUMPED: usize = 1024;

/// What bytes are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// What they look like.
    Auto,
    /// An ACPI table, RSDP or FACS.
    Acpi,
    /// SMBIOS structures without an entry point.
    Smbios,
    /// A system address map of the BIOS: entries of 20 bytes.
    E820,
    /// A system address map of PVH: entries of 24 bytes.
    PvhMap,
    /// A UEFI memory map; see --descriptor.
    Uefi,
    /// One item of setup_data.
    SetupData,
    /// A handoff.
    Handoff,
}

/// What is to be shown, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Tables, SMBIOS dumps, captures, archives of `cargo xtask capture`, memory maps, handoffs.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Show all bytes of what is not understood, not only the first.
    #[arg(long)]
    all: bool,
    /// What the files are. Memory maps do not say what they are.
    #[arg(long = "as", value_enum, default_value = "auto")]
    format: Format,
    /// Bytes of a descriptor of a UEFI memory map.
    #[arg(long, default_value_t = 48)]
    descriptor: usize,
}

impl Options {
    fn limit(&self) -> usize {
        if self.all { usize::MAX } else { DUMPED }
    }
}

/// A file and what is in it.
#[derive(serde::Serialize)]
struct Inspected {
    file: String,
    errors: usize,
    notes: usize,
    content: Document,
}

/// Shows the files. An error where one of them has something that cannot be used.
pub(crate) fn run(options: &Options) -> Result<()> {
    let inspected: Vec<_> = options
        .files
        .iter()
        .map(|file| inspect(file, options))
        .collect();
    let text = shown(&inspected, options.json)?;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // Nobody reads on: `| head` is no error.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let wrong = inspected.iter().filter(|one| one.errors > 0).count();
    if wrong > 0 {
        bail!(
            "{wrong} of {} files have something that cannot be used",
            inspected.len()
        );
    }
    Ok(())
}

fn shown(inspected: &[Inspected], json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(inspected)? + "\n");
    }
    Ok(inspected
        .iter()
        .map(|one| {
            format!(
                "{}: {} errors, {} notes\n{}\n",
                one.file, one.errors, one.notes, one.content
            )
        })
        .collect())
}

fn inspect(path: &Path, options: &Options) -> Inspected {
    let content = match read(path) {
        Ok(bytes) => recognised(&bytes, options, None, true),
        Err(error) => {
            let mut document = Document::new("unreadable", 0, 0);
            document.error(format_args!("{error:#}"));
            document
        }
    };
    let (errors, notes) = content.count();
    Inspected {
        file: path.display().to_string(),
        errors,
        notes,
        content,
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).context("the file cannot be opened")?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .context("the file cannot be read")?;
    if bytes.len() as u64 > MAX_FILE {
        bail!("the file is longer than {}", crate::ui::bytes(MAX_FILE));
    }
    Ok(bytes)
}

/// What the bytes are, as far as they can be told. Files within an archive are no archives.
fn recognised(
    bytes: &[u8],
    options: &Options,
    madt: Option<&Madt<'_>>,
    archives: bool,
) -> Document {
    let limit = options.limit();
    match options.format {
        Format::Auto => {}
        Format::Acpi if bytes.starts_with(b"RSD PTR ") => return acpi::rsdp(bytes, 0),
        Format::Acpi => return acpi::table(bytes, 0, limit, madt),
        Format::Smbios => return smbios::structures(bytes, 0),
        Format::E820 => return memory::e820(bytes, E820Entries::BIOS),
        Format::PvhMap => return memory::e820(bytes, E820Entries::PVH),
        Format::Uefi => return memory::uefi(bytes, options.descriptor),
        Format::SetupData => return memory::setup(bytes, limit),
        Format::Handoff => return handoff::handoff(bytes),
    }
    if archive::looks_like_capture(bytes) {
        return archive::capture(bytes, limit);
    }
    if handoff::looks_like_handoff(bytes) {
        return handoff::handoff(bytes);
    }
    if bytes.starts_with(b"RSD PTR ") {
        return acpi::rsdp(bytes, 0);
    }
    if bytes.starts_with(b"_SM_") || bytes.starts_with(b"_SM3_") {
        return smbios::dump(bytes);
    }
    if archives && archive::looks_like_archive(bytes) {
        return archive::archive(bytes, options);
    }
    if acpi::looks_like_table(bytes) {
        return acpi::table(bytes, 0, limit, madt);
    }
    if memory::looks_like_setup(bytes) {
        return memory::setup(bytes, limit);
    }
    if smbios::looks_like_structures(bytes) {
        return smbios::structures(bytes, 0);
    }
    if let Some(size) = memory::looks_like_uefi(bytes) {
        return memory::uefi(bytes, size);
    }
    if let Some(map) = memory::text(bytes) {
        return map;
    }
    let mut document = Document::new("not recognised", 0, bytes.len());
    document.error(match bytes.len() {
        0 => "the file is empty",
        _ => "the bytes are nothing that Baton knows; --as says what they are meant to be",
    });
    document.dump(0, bytes, limit);
    document
}
