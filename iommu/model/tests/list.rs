//! `docs/iommu-tests.md` says which test shows what. The tests that it names exist, and no row of it
//! is empty.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How many properties there are.
const ROWS: usize = 108;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The file that a name like `both/fence::a_test` stands for.
fn file(module: &str) -> PathBuf {
    let roots = [
        ("qtest/", "iommu/qtest/tests"),
        ("model/", "iommu/model/tests"),
        ("src/", "iommu/src"),
        ("acpi/", "acpi-capture/tests/it"),
        ("plan/", "partition-core/src/plan/tests"),
        ("core/", "partition-core/tests"),
        ("abi/", "handoff-abi/tests"),
    ];
    let (root, rest) = roots
        .iter()
        .find_map(|(prefix, root)| Some((*root, module.strip_prefix(prefix)?)))
        .unwrap_or(("iommu/tests", module));
    repository().join(root).join(format!("{rest}.rs"))
}

/// Whether a source has this test: a function, or the first argument of a macro that makes one.
fn has_test(source: &str, test: &str) -> bool {
    let made = format!("{test}, \"");
    let function = format!("fn {test}(");
    source.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with(&made) || line.starts_with(&function)
    })
}

/// Whether xtask has a check or a scenario of this name.
fn has_check(name: &str) -> bool {
    let wanted = format!("name: \"{name}\"");
    ["checks.rs", "scenarios.rs"].iter().any(|file| {
        let path = repository().join("xtask/src/test").join(file);
        fs::read_to_string(path).unwrap().contains(&wanted)
    })
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows: number, and what is said of it last.
fn rows(page: &str) -> BTreeMap<usize, String> {
    let mut rows = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let ["", number, property, shown, ""] = cells[..] else {
            continue;
        };
        if let Ok(number) = number.parse() {
            assert!(!property.is_empty(), "row {number}");
            let before = rows.insert(number, shown.to_owned());
            assert!(before.is_none(), "row {number} is there twice");
        }
    }
    rows
}

#[test]
fn every_row_names_tests_that_exist_or_says_why_there_is_none() {
    let page = fs::read_to_string(repository().join("docs/iommu-tests.md")).unwrap();
    let rows = rows(&page);
    assert!(rows.keys().copied().eq(1..=ROWS), "{:?}", rows.keys());
    let mut missing = Vec::new();
    let mut named = 0;
    for (number, shown) in &rows {
        let before = named;
        for quote in quoted(shown) {
            if let Some(check) = quote.strip_prefix("check ") {
                named += 1;
                if !has_check(check) {
                    missing.push(format!("row {number}: no check {check}"));
                }
            } else if let Some((module, test)) = quote.rsplit_once("::") {
                named += 1;
                let source = fs::read_to_string(file(module)).unwrap_or_default();
                if !has_test(&source, test) {
                    missing.push(format!("row {number}: no test {quote}"));
                }
            }
        }
        // Without a test there is a sentence.
        assert!(
            named > before || shown.len() > 60,
            "row {number}: {shown:?}"
        );
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 200, "{named} tests are named");
}

#[test]
fn a_name_that_is_not_there_would_be_noticed() {
    let source = "    fn a_test() {}\n    made_by_a_macro, \"rule\", Refused,\n// fn only_named(\n";
    assert!(has_test(source, "a_test") && has_test(source, "made_by_a_macro"));
    for absent in ["a_tes", "test", "only_named", "rule"] {
        assert!(!has_test(source, absent), "{absent}");
    }
    assert!(has_check("host-tests") && !has_check("host-test"));
    assert_eq!(quoted("a `b` c `d::e`").collect::<Vec<_>>(), ["b", "d::e"]);
}
