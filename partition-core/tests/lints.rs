//! What reads bytes that somebody else wrote must not be able to panic: clippy is told so in the
//! source, which keeps to it, and this holds the source to saying it.

use std::fs;
use std::path::{Path, PathBuf};

const LINTS: [&str; 5] = [
    "arithmetic_side_effects",
    "indexing_slicing",
    "unwrap_used",
    "expect_used",
    "panic",
];

/// Each denies the lints for itself and all modules below.
const ROOTS: [&str; 8] = [
    "acpi-capture/src/lib.rs",
    "handoff-abi/src/lib.rs",
    "partition-core/src/plan/mod.rs",
    "partition-core/src/image/mod.rs",
    "partition-core/src/ledger.rs",
    "partition-core/src/mailbox.rs",
    "partition-core/src/baton.rs",
    "partition-core/src/watch.rs",
];

fn sources_below(path: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_below(&path, into);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn what_reads_foreign_bytes_denies_what_can_panic() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for root in ROOTS {
        let path = workspace.join(root);
        let text = fs::read_to_string(&path).unwrap();
        // Inner attributes end where the first item begins.
        let attributes = text
            .split("\nuse ")
            .next()
            .and_then(|text| text.split("\nmod ").next())
            .unwrap();
        let denied = attributes.split("deny(").nth(1).unwrap_or("");
        for lint in LINTS {
            let denies = denied.contains(&format!("clippy::{lint}"));
            assert!(denies, "{root} does not deny {lint}");
        }
        let mut sources = vec![path.clone()];
        if path.ends_with("lib.rs") || path.ends_with("mod.rs") {
            sources_below(path.parent().unwrap(), &mut sources);
        }
        for source in sources {
            if source.components().any(|part| part.as_os_str() == "tests") {
                continue;
            }
            let text = fs::read_to_string(&source).unwrap();
            for word in ["allow", "expect", "warn"] {
                for lint in LINTS {
                    let exempt = format!("{word}(clippy::{lint}");
                    assert!(!text.contains(&exempt), "{}: {exempt}", source.display());
                }
            }
        }
    }
}
