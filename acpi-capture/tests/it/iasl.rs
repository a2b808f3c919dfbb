//! What other programs say of the tables that were written or read. Run with `--ignored`: the
//! compiler (`iasl`, package `acpica-tools` of Debian) is not part of the toolchain, and without it
//! these tests fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use acpi_capture::{Capture, CapturedKind};

use crate::build::Memory;
use crate::partition::{SAMPLE_PLACE, capture_of, samples};

fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Runs the compiler and gives everything it printed.
fn iasl(arguments: &[&str], directory: &Path) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("iasl (Debian package acpica-tools) must be installed for this test");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(
        output.status.success(),
        "iasl {arguments:?} failed:\n{printed}"
    );
    printed
}

fn assert_quiet(printed: &str, file: &str) {
    let lower = printed.to_lowercase();
    let clean = lower
        .replace("0 errors, 0 warnings, 0 remarks", "")
        .replace("0 errors", "");
    for word in ["error", "warning", "remark", "invalid", "unknown", "bad "] {
        assert!(!clean.contains(word), "{file}: {word}\n{printed}");
    }
}

#[test]
#[ignore = "needs iasl"]
fn iasl_disassembles_and_recompiles_every_written_table_without_a_word() {
    let mut judged = 0;
    for (number, sample) in samples().into_iter().enumerate() {
        let directory = directory(&format!("iasl-{number}"));
        let mut memory = Memory::default();
        memory.put(SAMPLE_PLACE, sample);
        let blob = capture_of(&memory, SAMPLE_PLACE);
        for table in Capture::parse(&blob).unwrap().tables() {
            // The compiler takes no RSDP.
            if table.kind != CapturedKind::Sdt {
                continue;
            }
            let name = table.signature.to_string().to_lowercase();
            let binary = format!("{name}.dat");
            std::fs::write(directory.join(&binary), table.bytes).unwrap();
            let printed = iasl(&["-d", &binary], &directory);
            assert_quiet(&printed, &binary);
            let source = format!("{name}.dsl");
            let text = std::fs::read_to_string(directory.join(&source)).unwrap();
            assert_quiet(
                &text.replace("Table Header:", ""),
                &format!("{number}/{source}"),
            );
            let printed = iasl(&["-p", "again", &source], &directory);
            assert!(printed.contains("0 Errors, 0 Warnings, 0 Remarks"));
            assert_quiet(&printed, &source);
            if name != "dsdt" {
                // Data tables come out as they went in, creator and checksum apart.
                let again = std::fs::read(directory.join("again.aml")).unwrap();
                let (start, length) = if name == "rsdp" {
                    (9, 36)
                } else {
                    (36, again.len())
                };
                assert_eq!(again.len(), table.bytes.len(), "{number}/{name}");
                assert_eq!(
                    again[start..length],
                    table.bytes[start..length],
                    "{number}/{name}"
                );
            }
            judged += 1;
        }
    }
    println!("iasl judged {judged} tables");
    assert!(judged >= 20);
}

/// Tables of the tests' own writers that the compiler knows: so the fixtures are what the
/// specification says, by another judge than the parser that reads them.
#[test]
#[ignore = "needs iasl"]
fn iasl_reads_the_tests_own_tables_as_they_were_meant() {
    use crate::build::{device_alias, device_range, ivhd, ivmd, ivrs, special};
    use crate::build_small::*;
    let devices = [
        device_range(0x0008, 0xfffe, 0),
        device_alias(0xff00, Some(0xffff), 0x00a5),
        special(1, 0x21, 0x00a0, 0xd7),
    ];
    let tables: [(&str, Vec<u8>, &[&str]); 8] = [
        (
            "ivrs",
            ivrs(&[
                ivhd(0x10, 0, 2, 0xfd50_0000, &devices),
                // The compiler of 2022 does not know type 40h.
                ivhd(0x11, 0, 2, 0xfd50_0000, &devices),
                ivmd(0x22, 8, (0, 0xfff), 0x97b9_7000, 0x1000),
            ]),
            &[
                "Source Used Device ID : 00A5",
                "Device ID : FFFE",
                "Handle : 21",
            ],
        ),
        ("hmat", hmat_sample_known(), &["Side Cache", "Latency"]),
        (
            "spcr",
            spcr(2, b""),
            &["Terminal Type : 03", "PCI Vendor ID : 8086"],
        ),
        (
            "dbg2",
            dbg2(&[(0x8000, 0, b"\\_SB.UAR1", &[(0x3f8, 8)])]),
            &["Port Type : 8000", "Address : 00000000000003F8"],
        ),
        (
            "bgrt",
            bgrt(1, 0x7000_0000),
            &["Image Address : 0000000070000000"],
        ),
        ("tpm2", tpm2(7, None), &["Start Method : 07"]),
        ("waet", waet(3), &["Flags (decoded below) : 00000003"]),
        (
            "ecdt",
            ecdt(0x66, 0x62, b"\\_SB.EC0"),
            &["GPE Number : 6E", "\\_SB.EC0"],
        ),
    ];
    for (name, table, expected) in tables {
        let directory = directory(&format!("iasl-own-{name}"));
        std::fs::write(directory.join("table.dat"), table).unwrap();
        iasl(&["-d", "table.dat"], &directory);
        let text = std::fs::read_to_string(directory.join("table.dsl")).unwrap();
        let lacks: Vec<_> = expected.iter().filter(|w| !text.contains(**w)).collect();
        assert!(lacks.is_empty(), "{name} lacks {lacks:?}:\n{text}");
    }
}

/// An HMAT without the structure of an unknown type.
fn hmat_sample_known() -> Vec<u8> {
    use crate::build_small::*;
    hmat(&[
        hmat_proximity(1, 0, 0),
        hmat_matrix(0, 100, &[0, 1], &[0, 1], &[1, 2, 3, 4]),
        hmat_cache(1, 1 << 34, 0x0040_1111, &[0x1100]),
    ])
}

/// What `dmidecode` finds in each SMBIOS table of the corpus.
#[test]
#[ignore = "needs dmidecode"]
fn dmidecode_finds_the_same_structures() {
    let Some(corpus) = crate::corpus::corpus() else {
        return;
    };
    let directory = directory("dmidecode");
    let mut judged = 0;
    for entry in corpus.iter().filter(|entry| entry.kind == "smbios-dump") {
        let file = directory.join("table.dump");
        std::fs::write(&file, &entry.bytes).unwrap();
        let output = Command::new("dmidecode")
            .arg("--from-dump")
            .arg(&file)
            .output()
            .expect("dmidecode (Debian package dmidecode) must be installed for this test");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        // "Handle 0x0000, DMI type 0, 24 bytes"
        let theirs: Vec<(u16, u8, usize)> = printed
            .lines()
            .filter_map(|line| {
                let (handle, rest) = line.strip_prefix("Handle 0x")?.split_once(", DMI type ")?;
                let (kind, length) = rest.split_once(", ")?;
                let length = length.strip_suffix(" bytes")?;
                Some((
                    u16::from_str_radix(handle, 16).ok()?,
                    kind.parse().ok()?,
                    length.parse().ok()?,
                ))
            })
            .collect();
        let ours: Vec<_> = acpi_capture::SmbiosStructures::new(&entry.bytes[32..])
            .flatten()
            .map(|s| (s.handle, s.kind, s.formatted.len()))
            .collect();
        // The dump's entry point may count fewer structures than there are.
        assert!(!theirs.is_empty(), "{}: {printed}", entry.name);
        assert_eq!(ours[..theirs.len()], theirs, "{}", entry.name);
        judged += 1;
    }
    println!("dmidecode judged {judged} tables");
    assert!(judged > 5);
}
