//! `include/baton.h` against the Rust types: a C program that knows only the header prints layouts,
//! constants and what blobs mean, and each line has to be the one that the Rust side prints.
//!
//! The compilers are `CC` and `CXX`, else `cc` and `c++`. Where there is none the test says so and
//! checks nothing.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use handoff_abi::*;

use crate::blobs::{AT, BLOBS, SPEAKS};
use crate::describe::{layout, meaning};
use crate::golden::{LAYOUTS, kept_text, path};

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    fs::read_to_string(root().join("include/baton.h")).unwrap()
}

/// The compiler that `variable` names, or `default`; `None`, and a line past the test harness, where
/// it cannot be started.
fn compiler(variable: &str, default: &str) -> Option<String> {
    let name = env::var(variable).unwrap_or_else(|_| default.into());
    let started = Command::new(&name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if started.is_ok_and(|status| status.success()) {
        return Some(name);
    }
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED: no compiler `{name}`, so include/baton.h is not tested; install one or set {variable}"
    );
    None
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn compile(compiler: &str, options: &[&str], source: &Path, output: &Path) -> Result<(), String> {
    let done = Command::new(compiler)
        .args(options)
        .arg("-I")
        .arg(root().join("include"))
        .arg(source)
        .arg("-o")
        .arg(output)
        .output()
        .unwrap();
    if done.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&done.stderr).into_owned())
}

fn run(program: &Path, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", done.status);
    String::from_utf8(done.stdout).unwrap()
}

/// The C program, built; `None` where there is no compiler.
fn reader(scratch: &Scratch) -> Option<PathBuf> {
    let cc = compiler("CC", "cc")?;
    let program = scratch.0.join("reader");
    let source = root().join("tests/contract/reader.c");
    let options = [
        "-std=c11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
    ];
    compile(&cc, &options, &source, &program).unwrap();
    Some(program)
}

fn read(program: &Path, how: &str, file: &Path, speaks: &Speaks) -> String {
    let arguments = [
        how,
        file.to_str().unwrap(),
        &format!("{:#x}", AT.0),
        &speaks.newest.minor.to_string(),
        &format!("{:#x}", speaks.features.bits()),
    ];
    run(program, &arguments, "")
}

#[test]
fn c_has_the_sizes_and_offsets_of_rust() {
    let scratch = Scratch::new("layout");
    let Some(program) = reader(&scratch) else {
        return;
    };
    // The image's note is read by the loader; these are the numbers of `docs/abi.md`.
    let note = "note 24\nnote.version 0 4\nnote.reserved 4 4\nnote.features 8 8\nnote.entry 16 8\n";
    let found = run(&program, &["layout"], "");
    assert_eq!(found, layout() + note);
    assert_eq!(found, kept_text(LAYOUTS[LAYOUTS.len() - 1]) + note);

    let exchange = Exchange::default();
    let within = |element: *const u8| element.addr() - std::ptr::from_ref(&exchange).addr();
    let slot = std::mem::offset_of!(Ledger, slots) + 1021 * size_of::<LedgerSlot>();
    let expected = [
        slot + std::mem::offset_of!(LedgerSlot, word),
        within(std::ptr::from_ref(&exchange.status[3].state).cast()),
        within(std::ptr::from_ref(&exchange.mailboxes[1][2].slots[3][4]).cast()),
        within(std::ptr::from_ref(&exchange.mailboxes[2][1].tail).cast()),
    ];
    let expected: String = expected.map(|offset| format!("{offset}\n")).concat();
    assert_eq!(run(&program, &["elements"], ""), expected);
}

#[test]
fn c_reads_every_golden_blob_as_rust_does() {
    let scratch = Scratch::new("golden");
    let Some(program) = reader(&scratch) else {
        return;
    };
    let first_only = Speaks {
        newest: AbiVersion::V0_1,
        ..SPEAKS
    };
    for blob in BLOBS {
        let file = path(&format!("{}.bin", blob.name));
        let meant = kept_text(&format!("{}.txt", blob.name));
        assert_eq!(
            read(&program, "read", &file, &SPEAKS),
            meant,
            "{}",
            blob.name
        );
        let bytes = fs::read(&file).unwrap();
        assert_eq!(
            read(&program, "read", &file, &first_only),
            meaning(&Handoff::parse(&bytes, AT, &first_only)),
            "{}",
            blob.name
        );
    }
}

/// CRC-32 as RFC 1952 has it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Each 4 bytes of the header and of the first record's header, with numbers that are likely to slip
/// through, under a checksum that fits and under one that does not; and pieces of the whole.
fn damaged(whole: &[u8]) -> Vec<Vec<u8>> {
    let length = whole.len();
    let mut all = Vec::new();
    for offset in (0..length.min(112)).step_by(4) {
        for number in [
            0,
            1,
            2,
            7,
            8,
            15,
            16,
            17,
            24,
            72,
            79,
            80,
            88,
            length as u32,
            1 << 20,
            !0,
            !7,
        ] {
            for summed in [true, false] {
                let mut bytes = whole.to_vec();
                bytes[offset..offset + 4].copy_from_slice(&number.to_le_bytes());
                if summed && offset != 52 {
                    bytes[52..56].fill(0);
                    let sum = crc32(&bytes);
                    bytes[52..56].copy_from_slice(&sum.to_le_bytes());
                }
                all.push(bytes);
            }
        }
    }
    for cut in [0, 71, length - 8, length - 1] {
        all.push(whole[..cut].to_vec());
    }
    all
}

#[test]
fn c_and_rust_refuse_the_same_blobs_for_the_same_reason() {
    let scratch = Scratch::new("refused");
    let Some(program) = reader(&scratch) else {
        return;
    };
    let small = BLOBS.iter().filter(|blob| !blob.name.contains("full"));
    let blobs: Vec<_> = small.flat_map(|blob| damaged(&blob.write())).collect();
    let mut file = Vec::new();
    for blob in &blobs {
        file.extend((blob.len() as u32).to_le_bytes());
        file.extend(blob);
    }
    let theirs = read(&program, "many", &scratch.file("blobs", file), &SPEAKS);
    let theirs: Vec<_> = theirs.split_terminator("end\n").collect();
    assert_eq!(theirs.len(), blobs.len());

    let mut checks = std::collections::BTreeSet::new();
    for (blob, theirs) in blobs.iter().zip(theirs) {
        let read = Handoff::parse(blob, AT, &SPEAKS);
        checks.insert(
            read.as_ref()
                .err()
                .map(std::mem::discriminant)
                .map(|check| format!("{check:?}")),
        );
        match read {
            // Rust names features, C gives their bits.
            Err(HandoffError::Features { missing }) => assert_eq!(
                theirs,
                format!(
                    "refused: handoff requires what this kernel has not: {:#x}\n",
                    missing.bits()
                )
            ),
            read => assert_eq!(theirs, meaning(&read), "{blob:02x?}"),
        }
    }
    // Every check refused something, and some damage is none.
    assert_eq!(checks.len(), 14, "{checks:?}");
}

#[test]
fn c_takes_live_words_apart_as_rust_does() {
    let scratch = Scratch::new("words");
    let Some(program) = reader(&scratch) else {
        return;
    };
    let owners = [
        Owner::Firmware,
        Owner::Partition(PartitionId(0xfedc)),
        Owner::Workload(WorkloadId(1)),
        Owner::Parked,
        Owner::Quarantined,
        Owner::Baton,
    ];
    let phases = [
        Phase::Free,
        Phase::Pending,
        Phase::Settled,
        Phase::Intent,
        Phase::Effect,
        Phase::Split,
    ];
    // The program takes every number apart both ways.
    let ask = |bits: &[u64], which: &str| -> String {
        let input: String = bits.iter().map(|bits| format!("{bits:x}\n")).collect();
        let answer = run(&program, &["words"], &input);
        let lines = answer.lines().filter(|line| line.starts_with(which));
        lines.map(|line| format!("{line}\n")).collect()
    };

    let (mut words, mut expected) = (Vec::new(), String::new());
    for (index, phase) in phases.into_iter().enumerate() {
        for owner in owners {
            for next in owners {
                for epoch in [0, 1, 0xabc, 0xfff] {
                    let word = LedgerWord {
                        owner,
                        next,
                        phase,
                        epoch,
                    };
                    let bits = word.to_wire();
                    words.push(bits);
                    expected += &format!(
                        "word {index} {:#x} {:#x} {epoch} {bits:016x}\n",
                        owner.to_wire(),
                        next.to_wire()
                    );
                }
            }
        }
    }
    assert_eq!(ask(&words, "word"), expected);

    let (mut words, mut expected) = (Vec::new(), String::new());
    for holder in [0, 1, 0x8001, 0xffff] {
        for epoch in [0, 1, 0xa_bcde, 0xf_ffff] {
            for follows in [
                None,
                Some((1, 0)),
                Some((0xffff, 1021)),
                Some((0x8000, 0x7ff)),
            ] {
                let stewardship = Stewardship {
                    holder: PartitionId(holder),
                    follows: follows.map(|(next, slot)| (PartitionId(next), slot)),
                    epoch,
                };
                let bits = stewardship.to_wire();
                words.push(bits);
                expected += &match follows {
                    Some((next, slot)) => {
                        format!("stewardship {holder} {next} {slot} {epoch} {bits:016x}\n")
                    }
                    None => format!("stewardship {holder} {epoch} {bits:016x}\n"),
                };
            }
        }
    }
    assert_eq!(ask(&words, "stewardship"), expected);

    let (mut words, mut expected) = (Vec::new(), String::new());
    for cpu in [0, 1, 0x8000_0001, u32::MAX] {
        for state in [park_state::EMPTY, park_state::LEFT, u32::MAX] {
            let bits = ParkSlot::to_wire(ApicId(cpu), state);
            assert_eq!(ParkSlot::from_wire(bits), (ApicId(cpu), state));
            words.push(bits);
            expected += &format!("park {cpu} {state} {bits:016x}\n");
        }
    }
    assert_eq!(ask(&words, "park"), expected);
}

macro_rules! constants {
    ($( $prefix:literal { $( $name:ident = $value:expr ),* $(,)? } )*) => {
        /// Every constant of the header that has a counterpart, and its value.
        fn constants() -> BTreeMap<String, u64> {
            let mut all = BTreeMap::new();
            $($( all.insert(concat!("BATON_", $prefix, stringify!($name)).into(), $value as u64); )*)*
            all
        }
    };
}

constants! {
    "" {
        MAGIC = MAGIC,
        MAX_LENGTH = MAX_LENGTH,
        VERSION_MAJOR = AbiVersion::NEWEST.major,
        VERSION_MINOR = AbiVersion::NEWEST.minor,
        VERSION_MINOR_OLDEST = AbiVersion::OLDEST.minor,
        HEADER_LENGTH_0_1 = Header::LENGTH_V0_1,
        HEADER_LENGTH_0_2 = Header::LENGTH_V0_2,
        RECORD_CRITICAL = RecordHeader::CRITICAL,
        MAX_DOMAINS = VtdUnit::MAX_DOMAINS,
        LEDGER_MAGIC = Ledger::MAGIC,
        LEDGER_SLOTS = Ledger::CAPACITY,
        MAX_PARTITIONS = MAX_PARTITIONS,
        MAILBOX_SLOTS = MAILBOX_SLOTS,
        MESSAGE_WORDS = size_of::<Message>() / 8,
        // Documented with `PartitionStatus::partition` and with the image's note.
        PLACE_IN_USE = 0x1_0000,
        NOTE_TYPE = 1,
    }
    "PARK_" {
        AREA = ParkSlot::AREA,
        FIRST = ParkSlot::FIRST,
        COUNT = ParkSlot::COUNT,
    }
    "FEATURE_" {
        ADOPT_DEVICES = Features::ADOPT_DEVICES.bits(),
        VT_D = Features::VT_D.bits(),
        AMD_VI = Features::AMD_VI.bits(),
        STANDBY = Features::STANDBY.bits(),
    }
    "OWNER_" {
        FIRMWARE = Owner::Firmware.to_wire(),
        PARTITION = Owner::Partition(PartitionId(0)).to_wire(),
        WORKLOAD = Owner::Workload(WorkloadId(0)).to_wire(),
        PARKED = Owner::Parked.to_wire(),
        QUARANTINED = Owner::Quarantined.to_wire(),
        BATON = Owner::Baton.to_wire(),
    }
    "PHASE_" {
        FREE = phase(Phase::Free),
        PENDING = phase(Phase::Pending),
        SETTLED = phase(Phase::Settled),
        INTENT = phase(Phase::Intent),
        EFFECT = phase(Phase::Effect),
        SPLIT = phase(Phase::Split),
    }
}

fn phase(phase: Phase) -> u64 {
    let owner = Owner::Parked;
    LedgerWord {
        owner,
        next: owner,
        phase,
        epoch: 0,
    }
    .to_wire()
        & 0xf
}

/// The constants of all modules that have nothing else (`kind`, `state` and so on), out of their source:
/// none can be added there and be missing here.
fn constants_of_modules() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for source in ["records.rs", "live.rs"] {
        let text = fs::read_to_string(root().join("src").join(source)).unwrap();
        let mut module = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("pub mod ") {
                module = Some(name.trim_end_matches(" {").to_uppercase());
            } else if line == "}" {
                module = None;
            } else if let (Some(module), Some(item)) =
                (&module, line.strip_prefix("    pub const "))
            {
                let (name, rest) = item.split_once(": ").unwrap();
                let (kind, value) = rest.trim_end_matches(';').split_once(" = ").unwrap();
                let prefix = match (module.as_str(), kind) {
                    ("RESOURCE", "u64") => "SINGLETON",
                    (module, _) => module,
                };
                let value = match value.strip_prefix("0x") {
                    Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16).unwrap(),
                    None => value.parse().unwrap(),
                };
                all.insert(format!("BATON_{prefix}_{name}"), value);
            }
        }
    }
    all
}

#[test]
fn c_has_exactly_the_constants_of_rust() {
    let mut expected = constants();
    let of_modules = constants_of_modules();
    assert!(of_modules.len() >= 50, "{of_modules:?}");
    assert_eq!(
        of_modules["BATON_KIND_AMD_VI_UNIT"],
        u64::from(kind::AMD_VI_UNIT)
    );
    expected.extend(of_modules);

    // Constants of the header: macros with a value and without parameters.
    let header = header();
    let names: Vec<_> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, _)| name)
        .filter(|name| !name.contains('('))
        .collect();
    let found: Vec<_> = expected.keys().map(String::as_str).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, found);

    let scratch = Scratch::new("constants");
    let Some(cc) = compiler("CC", "cc") else {
        return;
    };
    let mut source = String::from("#include \"baton.h\"\n#include <stdio.h>\nint main(void) {\n");
    for name in &names {
        source += &format!("printf(\"%llu\\n\", (unsigned long long)({name}));\n");
    }
    source += "return 0; }\n";
    let source = scratch.file("constants.c", source);
    let program = scratch.0.join("constants");
    compile(
        &cc,
        &["-std=c11", "-Wall", "-Wextra", "-Werror"],
        &source,
        &program,
    )
    .unwrap();
    let values = run(&program, &[], "");
    let values: BTreeMap<_, _> = names
        .iter()
        .map(|name| name.to_string())
        .zip(values.lines().map(|line| line.parse::<u64>().unwrap()))
        .collect();
    assert_eq!(values, expected);
}

#[test]
fn the_header_compiles_alone_as_c_and_as_cpp_without_a_warning() {
    let scratch = Scratch::new("alone");
    let twice = "#include \"baton.h\"\n#include \"baton.h\"\n";
    let object = scratch.0.join("object.o");
    if let Some(cc) = compiler("CC", "cc") {
        let source = scratch.file("alone.c", format!("{twice}int nothing_else;\n"));
        for standard in ["-std=c11", "-std=gnu11", "-std=c17"] {
            for atomic in [None, Some("-DBATON_ATOMIC(type)=volatile type")] {
                // -Wpadded: a structure in which a byte belongs to no field is an error.
                let mut options = vec![standard, "-ffreestanding", "-c", "-Wpadded"];
                options.extend(WARNINGS);
                options.extend(atomic);
                compile(&cc, &options, &source, &object).unwrap();
            }
        }
    }
    if let Some(cxx) = compiler("CXX", "c++") {
        let source = scratch.file("alone.cc", format!("{twice}int nothing_else;\n"));
        for standard in ["-std=c++11", "-std=c++17", "-std=c++20"] {
            let mut options = vec![standard, "-c"];
            options.extend(WARNINGS);
            compile(&cxx, &options, &source, &object).unwrap();
        }
    }
}

/// The asserts in the header are real: a header with a field moved, narrowed or added does not
/// compile.
#[test]
fn a_header_with_another_layout_does_not_compile() {
    let scratch = Scratch::new("changed");
    let Some(cc) = compiler("CC", "cc") else {
        return;
    };
    let object = scratch.0.join("object.o");
    let header = header();
    let lines: Vec<_> = header.lines().collect();
    let mut tried = 0;
    for (number, line) in lines.iter().enumerate() {
        if !line.starts_with('\t') || !line.contains("; /*") {
            continue;
        }
        // Every field of every structure, once with another field in front of it.
        let mut changed = lines.clone();
        changed.insert(number, "\tuint8_t intruder;");
        let source = scratch.file("changed.c", changed.join("\n"));
        let options = ["-std=c11", "-fsyntax-only"];
        let refused = compile(&cc, &options, &source, &object).unwrap_err();
        assert!(
            refused.contains("static assertion failed"),
            "{line}: {refused}"
        );
        tried += 1;
    }
    let fields = layout().lines().filter(|line| line.contains('.')).count();
    assert_eq!(
        tried,
        fields + 4,
        "every field, and the four of the image's note"
    );
}
