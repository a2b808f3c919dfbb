//! What the ACPICA compiler says of the tables that were written. Run with `--ignored`: the
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
