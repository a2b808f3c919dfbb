//! `cargo xtask capture`: this machine's own firmware tables in one file, for `cargo xtask inspect`
//! and for tests.
//!
//! The file is a tar archive: `acpi/NAME`, `dmi/smbios_entry_point`, `dmi/DMI`, `memory/firmware`
//! (what firmware said, as text), `memory/iomem` (what Linux made of it), and `capture.bin`, the
//! ACPI tables as a kernel would have captured them. Linux does not say where the tables were, so
//! the addresses in `capture.bin` are made up.
//!
//! What names a machine or its owner is left out: serial numbers, asset tags and the UUID are
//! masked, and the tables with licence keys are not taken.

use std::fs;
use std::path::{Path, PathBuf};

use acpi_capture::table::{Sdt, checksum};
use acpi_capture::{
    CaptureRequest, ReadPhys, SmbiosSource, SmbiosStructure, SmbiosStructures, capture,
};
use anyhow::{Context, Result, bail};
use handoff_abi::PhysAddr;

use crate::ui::Screen;

/// Where to, and from where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CaptureOptions {
    /// The file to write.
    file: PathBuf,
    /// The root of the file system to read /sys and /proc from.
    #[arg(long, default_value = "/", value_name = "DIRECTORY")]
    root: PathBuf,
    /// Keep serial numbers, asset tags, the UUID and licence keys.
    #[arg(long)]
    keep_serials: bool,
}

/// Tables that hold keys of licences.
const SECRET: [&str; 2] = ["MSDM", "SLIC"];

/// Where the made-up addresses begin.
const FIRST: u64 = 0x1000_0000;

/// What was taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) missing: Vec<String>,
}

/// Takes the tables and writes the file.
pub(crate) fn run(options: &CaptureOptions, screen: &Screen) -> Result<()> {
    let taken = take(&options.root, options.keep_serials)?;
    for missing in &taken.missing {
        screen.line(&format!("  not taken: {missing}"));
    }
    let archive = pack(&taken.files)?;
    fs::write(&options.file, archive)
        .with_context(|| format!("{} cannot be written", options.file.display()))?;
    screen.line(&format!(
        "  {} files in {}",
        taken.files.len(),
        options.file.display()
    ));
    Ok(())
}

/// Reads what there is below `root`. An error where no ACPI table can be read.
pub(crate) fn take(root: &Path, keep_serials: bool) -> Result<Taken> {
    let mut taken = Taken::default();
    let tables = acpi_tables(
        &root.join("sys/firmware/acpi/tables"),
        keep_serials,
        &mut taken,
    )?;
    if let Some(blob) = as_captured(&tables) {
        taken.files.push(("capture.bin".to_owned(), blob));
    } else {
        taken
            .missing
            .push("capture.bin: the tables do not fit".to_owned());
    }
    for (name, bytes) in tables {
        taken.files.push((format!("acpi/{name}"), bytes));
    }
    let dmi = root.join("sys/firmware/dmi/tables");
    for name in ["smbios_entry_point", "DMI"] {
        if let Some(mut bytes) = taken.read(&dmi.join(name)) {
            if name == "DMI" && !keep_serials {
                mask(&mut bytes);
            }
            taken.files.push((format!("dmi/{name}"), bytes));
        }
    }
    match firmware_map(&root.join("sys/firmware/memmap")) {
        Ok(map) => taken.files.push(("memory/firmware".to_owned(), map)),
        Err(error) => taken.missing.push(format!("{error:#}")),
    }
    if let Some(map) = taken.read(&root.join("proc/iomem")) {
        if map.is_empty() || !map.iter().any(|byte| (b'1'..=b'9').contains(byte)) {
            let text = "proc/iomem: the addresses are hidden; run as root";
            taken.missing.push(text.to_owned());
        } else {
            taken.files.push(("memory/iomem".to_owned(), map));
        }
    }
    Ok(taken)
}

impl Taken {
    /// The file's bytes, or a line about why they are missing.
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.missing.push(format!("{}: {error}", path.display()));
                None
            }
        }
    }
}

/// The tables, by name: the signature, and a number where there are several.
fn acpi_tables(
    directory: &Path,
    keep_serials: bool,
    taken: &mut Taken,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut names = Vec::new();
    for part in ["", "dynamic"] {
        let listed = match fs::read_dir(directory.join(part)) {
            Ok(listed) => listed,
            Err(_) if part == "dynamic" => continue,
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "{}: no ACPI tables; this needs Linux on a machine with ACPI, and root",
                        directory.display()
                    )
                });
            }
        };
        for entry in listed {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push((part, entry.file_name().to_string_lossy().into_owned()));
            }
        }
    }
    names.sort();
    let mut tables = Vec::new();
    for (part, name) in names {
        let path = directory.join(part).join(&name);
        if !keep_serials && SECRET.iter().any(|secret| name.starts_with(secret)) {
            taken
                .missing
                .push(format!("{}: it holds a licence key", path.display()));
            continue;
        }
        let Some(bytes) = taken.read(&path) else {
            continue;
        };
        let name = match part {
            "" => name,
            part => format!("{part}-{name}"),
        };
        tables.push((name, bytes));
    }
    if tables.is_empty() {
        bail!("{}: no table can be read; run as root", directory.display());
    }
    Ok(tables)
}

/// Linux's list of what firmware said, as lines of `start end type`.
fn firmware_map(directory: &Path) -> Result<Vec<u8>> {
    let listed = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut entries = Vec::new();
    for entry in listed {
        let entry = entry?.path();
        let number = entry
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let Some(number): Option<u32> = number else {
            continue;
        };
        let read = |name: &str| -> Result<String> {
            let path = entry.join(name);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Ok(text.trim().trim_start_matches("0x").to_owned())
        };
        entries.push((number, [read("start")?, read("end")?, read("type")?]));
    }
    if entries.is_empty() {
        bail!("{}: it is empty", directory.display());
    }
    // Firmware's own order.
    entries.sort();
    let lines = entries.iter().map(|(_, entry)| entry.join(" ") + "\n");
    Ok(lines.collect::<String>().into_bytes())
}

/// Memory with the tables at addresses of our own.
struct Made(Vec<(u64, Vec<u8>)>);

impl ReadPhys for Made {
    type Error = ();

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), ()> {
        let found = self.0.iter().find_map(|(base, bytes)| {
            let start = usize::try_from(at.0.checked_sub(*base)?).ok()?;
            bytes.get(start..start.checked_add(into.len())?)
        });
        into.copy_from_slice(found.ok_or(())?);
        Ok(())
    }
}

impl Made {
    fn put(&mut self, bytes: Vec<u8>) -> u64 {
        let last = self.0.last();
        let at = last.map_or(FIRST, |(base, bytes)| {
            (base + bytes.len() as u64).next_multiple_of(64)
        });
        self.0.push((at, bytes));
        at
    }
}

/// The tables as a kernel would have captured them, under root tables of our own.
pub(crate) fn as_captured(tables: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut memory = Made(Vec::new());
    let mut pointers = Vec::new();
    let mut facs = 0;
    let mut dsdt = 0;
    for (name, bytes) in tables {
        match name.as_str() {
            "FACS" => facs = memory.put(bytes.clone()),
            "DSDT" => dsdt = memory.put(bytes.clone()),
            _ => {}
        }
    }
    for (_, bytes) in tables {
        let mut bytes = bytes.clone();
        match bytes.first_chunk() {
            Some(b"FACS" | b"DSDT" | b"XSDT" | b"RSDT") => continue,
            Some(b"FACP") => point(&mut bytes, facs, dsdt),
            _ => {}
        }
        pointers.push(memory.put(bytes));
    }
    let body: Vec<u8> = pointers.iter().flat_map(|at| at.to_le_bytes()).collect();
    let mut root = b"XSDT".to_vec();
    let length = u32::try_from(Sdt::HEADER_LENGTH + body.len()).ok()?;
    root.extend_from_slice(&length.to_le_bytes());
    root.extend_from_slice(&[1, 0]);
    root.extend_from_slice(b"BATON CAPTURED\x01\0\0\0BATN\x01\0\0\0");
    root.extend_from_slice(&body);
    root[9] = checksum(&root).wrapping_neg();
    let root = memory.put(root);
    let mut rsdp = b"RSD PTR \0BATON \x02\0\0\0\0\x24\0\0\0".to_vec();
    rsdp.extend_from_slice(&root.to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    rsdp[8] = checksum(rsdp.get(..20)?).wrapping_neg();
    rsdp[32] = checksum(&rsdp).wrapping_neg();
    let rsdp = memory.put(rsdp);
    let request = CaptureRequest::new(PhysAddr(rsdp), SmbiosSource::None);
    let room: usize = memory.0.iter().map(|(_, bytes)| bytes.len() + 64).sum();
    let mut buffer = vec![0; room + (64 << 10)];
    let summary = capture(&memory, &request, &mut buffer).ok()?;
    buffer.truncate(summary.length);
    Some(buffer)
}

/// Makes a FADT point to where FACS and DSDT are in the made-up memory (ACPI 6.5, table 5.9).
fn point(fadt: &mut [u8], facs: u64, dsdt: u64) {
    let before = checksum(fadt);
    let mut put = |at: usize, length: usize, number: u64| {
        if let Some(place) = fadt.get_mut(at..at + length) {
            place.copy_from_slice(&number.to_le_bytes()[..length]);
        }
    };
    put(36, 4, facs);
    put(40, 4, dsdt);
    put(132, 8, facs);
    put(140, 8, dsdt);
    let changed = checksum(fadt).wrapping_sub(before);
    // A wrong sum stays wrong by as much.
    if let Some(place) = fadt.get_mut(9) {
        *place = place.wrapping_sub(changed);
    }
}

/// Fields of SMBIOS structures that name one machine: type, and offsets of the numbers of strings
/// (SMBIOS 3.7, sections 7.2 to 7.40).
const SERIALS: &[(u8, &[usize])] = &[
    (1, &[0x07]),
    (2, &[0x07, 0x08]),
    (3, &[0x07, 0x08]),
    (4, &[0x20, 0x21]),
    (17, &[0x18, 0x19]),
    (22, &[0x07]),
    (39, &[0x08, 0x09]),
];

/// Puts `X` in place of serial numbers and asset tags, and zeros in place of the UUID.
fn mask(table: &mut [u8]) {
    let mut ranges: Vec<(std::ops::Range<usize>, u8)> = Vec::new();
    let mut structures = SmbiosStructures::new(table);
    loop {
        let at = structures.offset();
        let Some(found) = structures.next() else {
            break;
        };
        let Ok(structure) = found else { continue };
        ranges.extend(masked(&structure, at));
    }
    for (range, with) in ranges {
        if let Some(place) = table.get_mut(range) {
            place.fill(with);
        }
    }
}

fn masked(structure: &SmbiosStructure<'_>, at: usize) -> Vec<(std::ops::Range<usize>, u8)> {
    let mut ranges = Vec::new();
    let formatted = structure.formatted.len();
    if structure.kind == 1 && formatted >= 0x18 {
        ranges.push((at + 8..at + 0x18, 0));
    }
    let of = SERIALS.iter().find(|(kind, _)| *kind == structure.kind);
    let numbers = of.map_or(&[][..], |(_, offsets)| offsets);
    for number in numbers.iter().filter_map(|&o| structure.formatted.get(o)) {
        let mut place = at + formatted;
        for (index, string) in structure.strings().enumerate() {
            if index + 1 == usize::from(*number) {
                ranges.push((place..place + string.len(), b'X'));
            }
            place += string.len() + 1;
        }
    }
    ranges
}

pub(crate) fn pack(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        builder.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use acpi_capture::table::checksum;
    use acpi_capture::{Capture, SmbiosStructures};

    use super::{mask, pack, take};

    fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&[b'T'; 26]);
        bytes.extend_from_slice(body);
        bytes[9] = checksum(&bytes).wrapping_neg();
        bytes
    }

    const DMI: &[u8] =
        b"\x01\x1b\x01\0\x01\x02\0\x03ABCDEFGHIJKLMNOP\0\0\0Maker\0Model\0S3R1AL\0\0\
        \x7f\x04\x02\0\0\0";

    /// A directory that is removed with the value.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("baton-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn put(&self, path: &str, bytes: &[u8]) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn whole(name: &str) -> Self {
            let tree = Self::new(name);
            let tables = "sys/firmware/acpi/tables";
            tree.put(&format!("{tables}/APIC"), &table(b"APIC", &[0; 8]));
            tree.put(&format!("{tables}/FACP"), &table(b"FACP", &[0; 240]));
            tree.put(&format!("{tables}/DSDT"), &table(b"DSDT", &[0x10; 8]));
            tree.put(&format!("{tables}/SSDT1"), &table(b"SSDT", &[1]));
            tree.put(&format!("{tables}/SSDT2"), &table(b"SSDT", &[2]));
            tree.put(&format!("{tables}/MSDM"), &table(b"MSDM", b"KEY"));
            tree.put(&format!("{tables}/dynamic/SSDT3"), &table(b"SSDT", &[3]));
            tree.put(&format!("{tables}/data/BERT"), b"not a table");
            tree.put("sys/firmware/dmi/tables/DMI", DMI);
            for (place, entry) in [
                ["0x0", "0x9fbff", "System RAM"],
                ["0x9fc00", "0x9ffff", "Reserved"],
            ]
            .iter()
            .enumerate()
            {
                for (name, value) in ["start", "end", "type"].iter().zip(entry) {
                    let path = format!("sys/firmware/memmap/{place}/{name}");
                    tree.put(&path, format!("{value}\n").as_bytes());
                }
            }
            tree.put("proc/iomem", b"00000000-00000000 : System RAM\n");
            tree
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_machine_s_tables_are_taken_and_a_kernel_s_reader_finds_them() {
        let tree = Tree::whole("taken");
        let taken = take(&tree.0, false).unwrap();
        let file = |name: &str| {
            let found = taken.files.iter().find(|(of, _)| of == name);
            found.map(|(_, bytes)| bytes.clone())
        };
        assert_eq!(file("acpi/SSDT1").unwrap(), table(b"SSDT", &[1]));
        assert_eq!(file("acpi/dynamic-SSDT3").unwrap(), table(b"SSDT", &[3]));
        let map = file("memory/firmware").unwrap();
        assert_eq!(map, b"0 9fbff System RAM\n9fc00 9ffff Reserved\n");
        let blob = file("capture.bin").unwrap();
        let capture = Capture::parse(&blob).unwrap();
        assert_eq!(capture.all(acpi_capture::table::Signature::SSDT).count(), 3);
        let fadt = capture.fadt().unwrap().unwrap();
        let dsdt = capture.find(acpi_capture::table::Signature::DSDT).unwrap();
        assert_eq!(dsdt.bytes(), table(b"DSDT", &[0x10; 8]));
        assert!(capture.tables().any(|table| table.address == fadt.dsdt()));
        assert!(!pack(&taken.files).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_there_is_said_and_keys_stay_behind() {
        let tree = Tree::whole("missing");
        let said =
            |taken: &super::Taken, word: &str| taken.missing.iter().any(|m| m.contains(word));
        let taken = take(&tree.0, false).unwrap();
        assert!(said(&taken, "MSDM") && !taken.files.iter().any(|(name, _)| name.contains("MSDM")));
        assert!(said(&taken, "smbios_entry_point"));
        assert!(said(&taken, "iomem: the addresses are hidden"));
        let kept = take(&tree.0, true).unwrap();
        assert!(kept.files.iter().any(|(name, _)| name == "acpi/MSDM"));
        let dmi = |taken: &super::Taken| {
            let found = taken.files.iter().find(|(name, _)| name == "dmi/DMI");
            found.unwrap().1.clone()
        };
        assert_eq!(dmi(&kept), DMI);
        assert_ne!(dmi(&taken), DMI);
    }

    #[test]
    fn without_tables_there_is_a_clear_error() {
        let error = take(Path::new("/nowhere/at/all"), false).unwrap_err();
        assert!(format!("{error:#}").contains("no ACPI tables"));
        let tree = Tree::new("empty");
        fs::create_dir_all(tree.0.join("sys/firmware/acpi/tables")).unwrap();
        let error = take(&tree.0, false).unwrap_err();
        assert!(format!("{error:#}").contains("no table can be read"));
    }

    #[test]
    fn serial_number_and_uuid_are_masked_and_nothing_else() {
        let mut masked = DMI.to_vec();
        mask(&mut masked);
        let system = SmbiosStructures::new(&masked).next().unwrap().unwrap();
        let strings: Vec<_> = system.strings().collect();
        assert_eq!(strings, [&b"Maker"[..], b"Model", b"XXXXXX"]);
        assert_eq!(system.formatted[8..0x18], [0; 16]);
        assert_eq!(SmbiosStructures::new(&masked).count(), 2);
        assert_eq!(masked.len(), DMI.len());
    }
}
