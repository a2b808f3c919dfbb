//! Tables of our own, each of them damaged in every way; and those of real machines, where there
//! are any.

use std::path::{Path, PathBuf};
use std::process::Command;

use acpi_capture::table::{Dmar, Madt, checksum};
use handoff_abi::*;
use proptest::prelude::*;

use super::document::Document;
use super::handoff::RECORDS;
use super::layout::length_of;
use super::{Format, Inspected, Options, recognised, shown};

fn options() -> Options {
    Options {
        files: Vec::new(),
        json: false,
        all: false,
        format: Format::Auto,
        descriptor: 48,
    }
}

fn read(bytes: &[u8]) -> Document {
    recognised(bytes, &options(), None, true)
}

/// What is printed, both ways. The JSON is read back.
fn print(content: Document) -> (String, serde_json::Value) {
    let (errors, notes) = content.count();
    let one = [Inspected {
        file: "it".to_owned(),
        errors,
        notes,
        content,
    }];
    let json = shown(&one, true).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value[0]["errors"], errors);
    (shown(&one, false).unwrap(), value)
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[3, 0]);
    bytes.extend_from_slice(b"BATON TESTTEST\x01\0\0\0BATN\x01\0\0\0");
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes).wrapping_neg();
    bytes
}

fn madt() -> Vec<u8> {
    let mut body = 0xfee0_0000_u32.to_le_bytes().to_vec();
    body.extend_from_slice(&[1, 0, 0, 0]);
    body.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend_from_slice(&[0, 8, 1, 2, 0, 0, 0, 0]);
    body.extend_from_slice(&[9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    body.extend_from_slice(&[1, 12, 8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    body.extend_from_slice(&[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    body.extend_from_slice(&[4, 6, 0xff, 5, 0, 1]);
    body.extend_from_slice(&[0x7f, 4, 1, 2]);
    table(b"APIC", &body)
}

fn dmar() -> Vec<u8> {
    let mut body = vec![38, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&[0, 0, 24, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&0xfed9_0000_u64.to_le_bytes());
    body.extend_from_slice(&[1, 8, 0, 0, 0, 0, 2, 0]);
    body.extend_from_slice(&[1, 0, 32, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&0x7d00_0000_u64.to_le_bytes());
    body.extend_from_slice(&0x7f7f_ffff_u64.to_le_bytes());
    body.extend_from_slice(&[1, 8, 0, 0, 0, 0, 2, 0]);
    table(b"DMAR", &body)
}

fn ivrs() -> Vec<u8> {
    let mut body = vec![0, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&[0x10, 0, 40, 0, 2, 0, 0x40, 0]);
    body.extend_from_slice(&0xfd50_0000_u64.to_le_bytes());
    body.extend_from_slice(&[0; 8]);
    body.extend_from_slice(&[3, 8, 0, 0, 4, 0xff, 0xff, 0]);
    body.extend_from_slice(&[0x48, 0, 0, 0, 8, 0xa0, 0, 1]);
    table(b"IVRS", &body)
}

fn handoff_blob() -> Vec<u8> {
    let mut buffer = [0; 4096];
    let envelope = Envelope {
        version: AbiVersion::V0_2,
        self_address: PhysAddr(0x12_3000),
        features: Features::VT_D,
        required: Features::empty(),
        epoch: 1,
        writer: PartitionId(1),
        reader: PartitionId(2),
        swaps: 5,
    };
    let mut writer = Writer::new(&mut buffer, envelope).unwrap();
    let cpu = Cpu {
        apic_id: ApicId(3),
        acpi_uid: 4,
    };
    writer.critical(&cpu).unwrap();
    writer.optional(&Clock { tsc_hertz: 7 }).unwrap();
    writer.append(0x7777, 0, &[1; 8]).unwrap();
    writer.finish().to_vec()
}

fn capture_blob() -> Vec<u8> {
    let tables = [
        ("APIC", madt()),
        ("DMAR", dmar()),
        ("OEMX", table(b"OEMX", &[1, 2, 3])),
    ];
    let tables: Vec<_> = tables.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    crate::capture::as_captured(&tables).unwrap()
}

const SMBIOS: &[u8] = b"\x00\x18\x00\x00\x01\x02\x00\xe0\x03\x0f\0\0\0\0\0\0\0\0\0\0\0\0\0\0Maker\x001.0\x00Today\0\0\
    \x01\x1b\x01\0\x01\x09\0\0ABCDEFGHIJKLMNOP\0\0\0Maker\0\0\x7f\x04\x02\0\0\0";

fn uefi_map() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, base, pages) in [(7_u64, 0x10_0000_u64, 0x100_u64), (0, 0x20_0000, 16)] {
        for number in [kind, base, 0, pages, 0xf, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

fn setup_item() -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(&[1, 0, 0, 0, 20, 0, 0, 0]);
    for number in [0x1_0000_0000_u64, 0x1000] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&[1, 0, 0, 0]);
    bytes
}

fn archive() -> Vec<u8> {
    let files = [
        ("acpi/APIC", madt()),
        ("acpi/IVRS", ivrs()),
        ("dmi/DMI", SMBIOS.to_vec()),
        ("memory/firmware", b"0 9fbff System RAM\n".to_vec()),
        ("capture.bin", capture_blob()),
    ];
    let files: Vec<_> = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    crate::capture::pack(&files).unwrap()
}

fn fixtures() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("APIC: interrupt controllers and processors (MADT)", madt()),
        ("DMAR: DMA remapping, VT-d (DMAR)", dmar()),
        ("IVRS: I/O virtualisation, AMD-Vi (IVRS)", ivrs()),
        ("OEMX: not known to Baton", table(b"OEMX", &[9; 40])),
        ("FACP: fixed hardware (FADT)", table(b"FACP", &[1; 240])),
        ("handoff", handoff_blob()),
        ("capture of firmware tables", capture_blob()),
        ("SMBIOS structures", SMBIOS.to_vec()),
        ("UEFI memory map", uefi_map()),
        ("setup_data", setup_item()),
        (
            "memory map as text",
            b"00000000-0009fbff : System RAM\n  00001000-00001fff : Kernel code\n".to_vec(),
        ),
        ("archive", archive()),
    ]
}

/// A field's number, by the names of parts and the field.
fn number(document: &Document, part: &str, name: &str) -> Option<u64> {
    let own = document.fields.iter().find(|field| field.name == name);
    if document.title.starts_with(part) && own.is_some() {
        return own.and_then(|field| field.number);
    }
    document.parts.iter().find_map(|of| number(of, part, name))
}

#[test]
fn every_kind_of_file_is_recognised_and_nothing_is_wrong_with_it() {
    for (title, bytes) in fixtures() {
        let document = read(&bytes);
        assert_eq!(document.title, title);
        let (text, _) = print(document);
        assert!(text.contains(": 0 errors"), "{text}");
    }
}

#[test]
fn fields_have_the_values_that_the_parsers_read() {
    let bytes = madt();
    let (shown, parsed) = (read(&bytes), Madt::parse(&bytes).unwrap());
    assert_eq!(
        number(&shown, "APIC", "local APIC address"),
        Some(parsed.local_apic().0)
    );
    assert_eq!(number(&shown, "local x2APIC", "x2APIC id"), Some(0x1234));
    let io_apic = parsed.io_apics().next().unwrap();
    assert_eq!(
        number(&shown, "I/O APIC", "address"),
        Some(io_apic.address.0)
    );
    assert_eq!(shown.parts.len(), parsed.entries().count());
    assert!(shown.parts.last().unwrap().title.contains("unknown"));
    let bytes = dmar();
    let (shown, parsed) = (read(&bytes), Dmar::parse(&bytes).unwrap());
    let unit = parsed.units().next().unwrap();
    assert_eq!(
        number(&shown, "remapping unit", "registers"),
        Some(unit.registers.base().0)
    );
    let region = parsed.reserved_memory().next().unwrap();
    assert_eq!(
        number(&shown, "reserved memory", "limit"),
        Some(region.limit.0)
    );
    assert_eq!(number(&shown, "scope", "path"), Some(2));
    let shown = read(&handoff_blob());
    assert_eq!(number(&shown, "processor", "APIC id"), Some(3));
    assert_eq!(number(&shown, "handoff", "swaps"), Some(5));
    assert!(
        shown
            .parts
            .last()
            .unwrap()
            .title
            .contains("unknown kind 0x7777")
    );
}

#[test]
fn the_layout_of_every_record_is_as_long_as_the_record() {
    let of = |kind: u32| {
        let (_, _, specs) = RECORDS.iter().find(|(of, _, _)| *of == kind).unwrap();
        length_of(specs)
    };
    macro_rules! same {
        ($($record:ty),*) => {
            [$((<$record>::KIND, size_of::<$record>())),*]
        };
    }
    let sizes = same!(
        Extent,
        Cpu,
        Memory,
        Function,
        InterruptHandle,
        Firmware,
        Workload,
        Console,
        Clock,
        Ecam,
        History,
        Domain,
        Platform
    );
    for (kind, size) in sizes {
        assert_eq!(of(kind), size, "{kind:#x}");
    }
    let domains = size_of::<VtdDomain>() * VtdUnit::MAX_DOMAINS;
    assert_eq!(of(kind::VTD_UNIT) + domains, size_of::<VtdUnit>());
    assert_eq!(of(kind::AMD_VI_UNIT) + domains, size_of::<AmdViState>());
    assert_eq!(RECORDS.len(), sizes.len() + 2);
}

#[test]
fn a_wrong_checksum_is_an_error_that_says_the_right_one() {
    let mut bytes = madt();
    let right = bytes[9];
    bytes[9] ^= 0x5a;
    let document = read(&bytes);
    assert_eq!(document.count().0, 1);
    let text = &document.findings[0].text;
    assert!(
        text.ends_with(&format!("the checksum should be {right:#04x}")),
        "{text}"
    );
    // The rest is shown all the same.
    assert_eq!(document.parts.len(), 7);
}

#[test]
fn an_entry_that_is_too_long_is_an_error_with_its_offset() {
    let mut bytes = madt();
    bytes[0x2d] = 200;
    bytes[9] = bytes[9].wrapping_sub(checksum(&bytes));
    let document = read(&bytes);
    assert_eq!(document.count().0, 1, "{document}");
    assert!(
        document
            .findings
            .iter()
            .any(|finding| finding.text.contains("0x2c"))
    );
    assert!(document.parts.is_empty());
}

#[test]
fn what_is_cut_off_has_an_error_at_every_length() {
    for (title, bytes) in fixtures() {
        // Maps, structures and archives may end anywhere and still be one.
        let whole = ["APIC", "DMAR", "IVRS", "OEMX", "FACP", "handoff", "capture"];
        if !whole.iter().any(|start| title.starts_with(start)) {
            continue;
        }
        for end in 0..bytes.len() {
            let document = read(&bytes[..end]);
            assert!(
                document.count().0 > 0,
                "{title} cut off at {end}: {document}"
            );
        }
    }
}

#[test]
fn overlaps_of_a_memory_map_are_found() {
    let map = read(b"0 9ffff usable\n9f000 fffff reserved\n");
    assert_eq!(map.count(), (1, 0), "{map}");
    let map = read(b"0 9ffff usable\n9f000 fffff usable\n");
    assert_eq!(map.count(), (0, 1), "{map}");
    let hidden = read(b"00000000-00000000 : System RAM\n");
    assert!(hidden.to_string().contains("without the right to see them"));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_of_its_own() {
    let document = super::inspect(Path::new("/nowhere/at/all"), &options());
    assert_eq!(document.errors, 1);
    assert!(document.content.to_string().contains("cannot be opened"));
    let document = read(b"");
    assert_eq!(document.findings[0].text, "the file is empty");
}

#[test]
fn a_long_unknown_table_is_cut_short_unless_asked_for() {
    let bytes = table(b"OEMX", &[7; 5000]);
    let (text, _) = print(read(&bytes));
    assert!(text.contains("more bytes (--all shows them)"));
    let all = Options {
        all: true,
        ..options()
    };
    let (text, _) = print(recognised(&bytes, &all, None, true));
    assert!(!text.contains("more bytes") && text.lines().count() > 5000 / 16);
}

const FORMATS: [Format; 8] = [
    Format::Auto,
    Format::Acpi,
    Format::Smbios,
    Format::E820,
    Format::PvhMap,
    Format::Uefi,
    Format::SetupData,
    Format::Handoff,
];

fn every_way(bytes: &[u8], descriptor: usize) {
    for format in FORMATS {
        let options = Options {
            format,
            descriptor,
            ..options()
        };
        print(recognised(bytes, &options, None, true));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), size in 0_usize..100) {
        every_way(&bytes, size);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(
        which in 0_usize..12,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        mend in any::<bool>(),
    ) {
        let (_, mut bytes) = fixtures().swap_remove(which);
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if mend && bytes.len() > 9 {
            bytes[9] = bytes[9].wrapping_sub(checksum(&bytes));
        }
        every_way(&bytes, 48);
    }
}

/// Unpacks a pack of the corpus; `None`, after saying so, where there is none.
fn unpack(pack: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let root = std::env::var_os("BATON_CORPUS").map_or(default, PathBuf::from);
    let archive = root.join(format!("{pack}.tar.xz"));
    if !archive.is_file() {
        eprintln!(
            "corpus: SKIPPED, there is no {} (set BATON_CORPUS)",
            archive.display()
        );
        return None;
    }
    let into = std::env::temp_dir().join(format!("baton-inspect-{pack}-{}", std::process::id()));
    std::fs::create_dir_all(&into).unwrap();
    let status = Command::new("tar")
        .arg("xJf")
        .arg(&archive)
        .current_dir(&into)
        .status();
    assert!(status.unwrap().success(), "{}", archive.display());
    Some(into)
}

fn files_below(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, into),
            false => into.push(path),
        }
    }
}

#[test]
fn every_file_of_whole_real_machines_is_recognised() {
    for (pack, at_least) in [("acpi-machines", 500), ("smbios", 100), ("e820", 200)] {
        let Some(root) = unpack(pack) else { continue };
        let mut files = Vec::new();
        files_below(&root, &mut files);
        eprintln!("corpus: {} files of {pack}", files.len());
        assert!(files.len() >= at_least, "{pack}");
        for file in &files {
            let bytes = std::fs::read(file).unwrap();
            let document = read(&bytes);
            assert_ne!(document.title, "not recognised", "{}", file.display());
            let wrong_sum = |document: &Document| {
                document
                    .findings
                    .iter()
                    .any(|f| f.text.contains("add up to"))
            };
            // Vendors' tables with a wrong sum are normal; nothing else is wrong with these.
            let (errors, _) = document.count();
            let expected = usize::from(wrong_sum(&document));
            assert!(errors == expected, "{}: {document}", file.display());
            print(document);
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
