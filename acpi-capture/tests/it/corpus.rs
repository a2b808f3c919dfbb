//! The tables of about a thousand real machines. They are not part of the repository:
//! `BATON_CORPUS` says where they are, and the tests say how many files they read.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use acpi_capture::memory::{MemoryKind, MemoryMap, MemoryRegion, UefiDescriptors};
use acpi_capture::partition::{HostBridge, PartitionError, PartitionView, ResetWord};
use acpi_capture::table::*;
use acpi_capture::*;
use handoff_abi::{ApicId, PhysAddr};

use crate::build::{self, Bytes, Memory, range};
use crate::dmar::{Topology, function};
use crate::hostile::read_everything;

/// A file of the corpus, by its row in the manifest.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) machine: String,
    checksum: String,
    pub(crate) bytes: Vec<u8>,
}

impl Entry {
    /// A table of a machine that is not in the corpus.
    pub(crate) fn of_stranger(machine: &str, name: String, bytes: Vec<u8>) -> Self {
        let signature = bytes.get(..4).unwrap_or(&[]);
        Self {
            name,
            kind: format!("acpi:{}", String::from_utf8_lossy(signature)),
            machine: machine.to_owned(),
            checksum: "unknown".to_owned(),
            bytes,
        }
    }
}

/// Says something that is seen also where the output of passing tests is not shown.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn root() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    std::env::var_os("BATON_CORPUS").map_or(default, PathBuf::from)
}

fn unpack() -> Option<PathBuf> {
    let corpus = root();
    if !corpus.join("MANIFEST.tsv").is_file() {
        say(&format!(
            "corpus: SKIPPED, there is none at {} (set BATON_CORPUS)",
            corpus.display()
        ));
        return None;
    }
    let into =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("corpus-{}", std::process::id()));
    std::fs::create_dir_all(&into).unwrap();
    for pack in ["acpi-tables", "acpi-machines", "smbios", "e820", "memmap"] {
        let archive = corpus.join(format!("{pack}.tar.xz"));
        let status = Command::new("tar")
            .arg("xJf")
            .arg(&archive)
            .current_dir(&into)
            .status();
        assert!(status.unwrap().success(), "{}", archive.display());
    }
    std::fs::copy(corpus.join("MANIFEST.tsv"), into.join("MANIFEST.tsv")).unwrap();
    Some(into)
}

/// What QEMU gives: not in the manifest.
fn qemu_tables() -> Vec<Entry> {
    let directory = root().join("qemu-7.2");
    let files = std::fs::read_dir(directory).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            Entry {
                kind: match name.ends_with(".ivrs") {
                    true => "acpi:IVRS".to_owned(),
                    false => "acpi:DMAR".to_owned(),
                },
                machine: format!("qemu-7.2/{name}"),
                name: format!("qemu-7.2/{name}"),
                checksum: "ok".to_owned(),
                bytes: std::fs::read(&path).unwrap(),
            }
        })
        .collect()
}

/// The corpus, read once; `None`, after saying so, where there is none.
pub(crate) fn corpus() -> Option<&'static [Entry]> {
    static CORPUS: OnceLock<Option<Vec<Entry>>> = OnceLock::new();
    let read = || {
        let root = unpack()?;
        let manifest = std::fs::read_to_string(root.join("MANIFEST.tsv")).unwrap();
        let entries = manifest.lines().skip(1).filter_map(|line| {
            let columns: Vec<_> = line.split('\t').collect();
            let bytes = std::fs::read(root.join(columns[0])).ok()?;
            Some(Entry {
                name: columns[0].to_owned(),
                kind: columns[2].to_owned(),
                machine: columns[3].to_owned(),
                checksum: columns[5].to_owned(),
                bytes,
            })
        });
        let entries: Vec<_> = entries.chain(qemu_tables()).collect();
        std::fs::remove_dir_all(&root).unwrap();
        say(&format!("corpus: {} files", entries.len()));
        assert!(entries.len() > 7000);
        Some(entries)
    };
    CORPUS.get_or_init(read).as_deref()
}

pub(crate) fn of_kind<'a>(corpus: &'a [Entry], kind: &str) -> Vec<&'a Entry> {
    let found: Vec<_> = corpus.iter().filter(|entry| entry.kind == kind).collect();
    assert!(!found.is_empty(), "{kind}");
    say(&format!("corpus: {} files of kind {kind}", found.len()));
    found
}

#[test]
fn every_file_is_read_without_panic_and_checksums_agree_with_the_manifest() {
    let Some(corpus) = corpus() else { return };
    let mut judged = BTreeMap::new();
    for entry in corpus {
        read_everything(&entry.bytes);
        let bad = entry.checksum == "bad";
        if !entry.kind.starts_with("acpi:") || !(bad || entry.checksum == "ok") {
            continue;
        }
        let sound = match entry.kind.as_str() {
            "acpi:RSDP" => Rsdp::parse(&entry.bytes).is_ok(),
            _ => Sdt::parse(&entry.bytes).is_ok(),
        };
        assert_eq!(sound, !bad, "{}", entry.name);
        *judged.entry(entry.checksum.as_str()).or_insert(0) += 1;
    }
    say(&format!("corpus: checksums {judged:?}"));
}

#[test]
fn every_madt_mcfg_srat_slit_fadt_and_hpet_is_understood() {
    let Some(corpus) = corpus() else { return };
    let mut processors = 0;
    let mut errors = Vec::new();
    for entry in of_kind(corpus, "acpi:APIC") {
        let madt = Madt::parse(&entry.bytes).unwrap();
        processors += madt.processors().count();
        errors.extend(
            madt.entries()
                .filter_map(Result::err)
                .map(|e| (&entry.name, e)),
        );
        assert!(madt.processors().count() > 0, "{}", entry.name);
        for cpu in madt.processors() {
            assert_eq!(madt.processor(cpu.apic_id), Some(cpu), "{}", entry.name);
        }
    }
    for entry in of_kind(corpus, "acpi:SRAT") {
        let srat = Srat::parse(&entry.bytes).unwrap();
        errors.extend(
            srat.entries()
                .filter_map(Result::err)
                .map(|e| (&entry.name, e)),
        );
    }
    say(&format!(
        "corpus: {processors} processors, entry errors {errors:?}"
    ));
    for entry in of_kind(corpus, "acpi:MCFG") {
        let mcfg = Mcfg::parse(&entry.bytes).unwrap();
        for allocation in mcfg.allocations() {
            let memory = allocation.memory();
            assert!(memory.is_some(), "{}: {allocation:?}", entry.name);
            let bus = allocation.first_bus;
            let found = mcfg.allocation_of(allocation.segment, bus).unwrap();
            assert_eq!(found.segment, allocation.segment);
        }
    }
    for entry in of_kind(corpus, "acpi:SLIT") {
        let slit = Slit::parse(&entry.bytes).unwrap();
        for domain in 0..slit.localities() as u32 {
            assert_eq!(slit.distance(domain, domain), Some(10), "{}", entry.name);
        }
    }
    for entry in of_kind(corpus, "acpi:FACP") {
        let fadt = Fadt::parse(&entry.bytes).unwrap();
        assert!(
            fadt.dsdt_32().0 != 0 || fadt.dsdt_64().0 != 0,
            "{}",
            entry.name
        );
    }
    for entry in of_kind(corpus, "acpi:HPET") {
        let hpet = Hpet::parse(&entry.bytes).unwrap();
        assert!(hpet.base.0 >> 40 == 0, "{}: {:?}", entry.name, hpet);
    }
}

/// Units and reserved regions of a DMAR table by the plainest of loops: segment, base and whether
/// it covers the rest; base and limit; and how many scopes there are.
type PlainDmar = (Vec<(u16, u64, bool)>, Vec<(u64, u64)>, usize);

fn plain_dmar(bytes: &[u8]) -> PlainDmar {
    let word = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let quad = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (mut units, mut regions, mut scopes) = (Vec::new(), Vec::new(), 0);
    let mut at = 48;
    while at < bytes.len() {
        let length = usize::from(word(at + 2));
        let mut scope = match word(at) {
            0 => {
                units.push((word(at + 6), quad(at + 8), bytes[at + 4] & 1 == 1));
                at + 16
            }
            1 => {
                regions.push((quad(at + 8), quad(at + 16)));
                at + 24
            }
            _ => at + length,
        };
        while scope < at + length {
            scopes += 1;
            scope += usize::from(bytes[scope + 1]);
        }
        at += length;
    }
    (units, regions, scopes)
}

#[test]
fn every_dmar_table_is_understood_and_every_oddity_is_found() {
    let Some(corpus) = corpus() else { return };
    let mut oddities = BTreeMap::new();
    let mut odd = |what: &'static str| *oddities.entry(what).or_insert(0) += 1;
    let (mut hops, mut covered) = (0, 0);
    for entry in of_kind(corpus, "acpi:DMAR") {
        let dmar = Dmar::parse(&entry.bytes).unwrap();
        let (units, regions, scopes) = plain_dmar(&entry.bytes);
        let mut read = (Vec::new(), Vec::new(), 0);
        for structure in dmar.structures() {
            match structure.unwrap_or_else(|error| panic!("{}: {error}", entry.name)) {
                DmarStructure::Unit(unit) => {
                    let about = unit.description;
                    let base = about.registers.base().0;
                    read.0.push((about.segment, base, about.include_all));
                    for scope in unit.scopes() {
                        let scope = scope.unwrap_or_else(|e| panic!("{}: {e}", entry.name));
                        hops = hops.max(scope.path().len());
                        read.2 += 1;
                    }
                }
                DmarStructure::ReservedMemory(region) => {
                    read.1.push((region.base.0, region.limit.0));
                    for scope in region.scopes().map(Result::unwrap) {
                        hops = hops.max(scope.path().len());
                        read.2 += 1;
                    }
                }
                _ => {}
            }
        }
        assert_eq!(read, (units, regions, scopes), "{}", entry.name);
        dmar.findings(|finding| {
            odd(match finding {
                DmarFinding::DeadUnit { .. } => "dead unit",
                DmarFinding::DuplicateUnit { .. } => "duplicate unit",
                DmarFinding::SecondIncludeAll { .. } => "second include-all",
                DmarFinding::Region { .. } => "bad region",
                DmarFinding::Scope { .. } => "bad scope",
                DmarFinding::UnknownStructure { .. } => "unknown structure",
                other => panic!("{}: {other}", entry.name),
            });
        });
        let topology = Topology::default();
        for device in 0..32 {
            let found = dmar.unit_for(function(0, device, 0), &topology);
            covered += usize::from(found.covered().is_some());
        }
        for source in dmar.interrupt_sources(&topology) {
            assert!(source.index < dmar.units().count());
        }
        for unit in dmar.units() {
            assert!(unit.registers.length() >= 4096);
        }
    }
    say(&format!(
        "corpus: DMAR oddities {oddities:?}, longest path {hops}, {covered} functions of bus 0 covered"
    ));
    assert!(covered > 0);
}

/// Checks a map of these regions at the edge of each, against what the regions say one by one.
fn check_map(name: &str, regions: &[MemoryRegion]) -> usize {
    let map = MemoryMap::<512>::from_regions(regions.iter().copied())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let sorted = map.regions().windows(2).all(|pair| {
        let (a, b) = (pair[0], pair[1]);
        a.range.end() < b.range.base() || (a.range.end() == b.range.base() && a.kind != b.kind)
    });
    assert!(sorted, "{name}");
    for region in regions {
        let (base, end) = (region.range.base().0, region.range.end().0);
        for probe in [base.wrapping_sub(1), base, end.wrapping_sub(1), end] {
            let here = regions
                .iter()
                .filter(|other| other.range.contains(PhysAddr(probe)));
            let expected = here.map(|other| other.kind).max();
            assert_eq!(
                map.kind_at(PhysAddr(probe)),
                expected,
                "{name} at {probe:#x}"
            );
        }
    }
    let frames = map.in_frames().unwrap();
    assert!(frames.total(MemoryKind::Usable) <= map.total(MemoryKind::Usable));
    map.regions().len()
}

#[test]
fn every_system_address_map_is_normalised() {
    let Some(corpus) = corpus() else { return };
    let mut largest = 0;
    for entry in of_kind(corpus, "e820") {
        let text = String::from_utf8_lossy(&entry.bytes);
        let regions: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .map(|line| {
                let (start, rest) = line.split_once(' ').unwrap();
                let (last, kind) = rest.split_once(' ').unwrap();
                let start = u64::from_str_radix(start, 16).unwrap();
                let last = u64::from_str_radix(last, 16).unwrap();
                let number = match kind.trim() {
                    "usable" | "System RAM" => 1,
                    "reserved" | "device reserved" => 2,
                    "ACPI data" => 3,
                    "ACPI NVS" => 4,
                    "unusable" => 5,
                    "persistent (type 7)" => 7,
                    other => other.strip_prefix("type ").unwrap().parse().unwrap(),
                };
                MemoryRegion::from_e820(start, last - start + 1, number)
            })
            .collect();
        largest = largest.max(check_map(&entry.name, &regions));
    }
    say(&format!(
        "corpus: at most {largest} regions in a system address map"
    ));
}

/// A line of a UEFI map: type, start, last byte or end, attribute.
fn uefi_line(line: &str) -> Option<(u32, u64, u64, u64)> {
    let hex = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    if let Some((head, tail)) = line.split_once("range=[") {
        let (start, rest) = tail.split_once('-')?;
        let end: String = rest.chars().take_while(|&c| c != ']' && c != ')').collect();
        let last = if rest.contains(']') {
            hex(&end)?
        } else {
            hex(&end)? - 1
        };
        if let Some(head) = head.trim().strip_prefix("type=") {
            let (kind, attribute) = head.split_once(", attr=")?;
            let attribute = hex(attribute.trim_end_matches([',', ' ']))?;
            return Some((kind.parse().ok()?, hex(start)?, last, attribute));
        }
        let name = head.trim_start_matches('[').split('|').next()?.trim();
        let write_back = u64::from(head.contains("|WB")) << 3;
        let runtime = u64::from(head.contains("|RUN")) << 63;
        return Some((uefi_type(name)?, hex(start)?, last, write_back | runtime));
    }
    let columns: Vec<_> = line.split_whitespace().collect();
    let [name, start, last, .., attribute] = columns[..] else {
        return None;
    };
    let (start, last) = match start.split_once('-') {
        Some((start, last)) => (hex(start)?, hex(last)?),
        None => (hex(start)?, hex(last)?),
    };
    Some((uefi_type(name)?, start, last, hex(attribute)?))
}

fn uefi_type(name: &str) -> Option<u32> {
    Some(match name.to_ascii_lowercase().replace('_', " ").as_str() {
        "reserved" => 0,
        "loader code" | "loadercode" => 1,
        "loader data" | "loaderdata" => 2,
        "boot code" | "bs code" => 3,
        "boot data" | "bs data" => 4,
        "runtime code" | "rt code" => 5,
        "runtime data" | "rt data" => 6,
        "conventional memory" | "conventional" | "available" => 7,
        "acpi reclaim memory" | "acpi reclaim" | "acpi recl" => 9,
        "acpi memory nvs" | "acpi mem nvs" | "acpi nvs" => 10,
        "memory mapped i/o" | "mmio" | "memmapio" => 11,
        _ => return None,
    })
}

#[test]
fn every_uefi_memory_map_is_normalised() {
    let Some(corpus) = corpus() else { return };
    let (mut lines, mut largest) = (0, 0);
    for kind in ["uefi-memmap", "uefi-memmap(dmesg)"] {
        for entry in of_kind(corpus, kind) {
            let text = String::from_utf8_lossy(&entry.bytes);
            let mut map = Vec::new();
            for line in text.lines() {
                if line.starts_with('#') || line.trim().is_empty() {
                    continue;
                }
                let (kind, start, last, attribute) =
                    uefi_line(line).unwrap_or_else(|| panic!("{}: {line}", entry.name));
                let pages = (last - start + 1) / 4096;
                let descriptor = Bytes::new().u32(kind).u32(0).u64(start).u64(0).u64(pages);
                // Descriptors of 48 bytes, as firmware has them.
                map.extend_from_slice(&descriptor.u64(attribute).u64(0).0);
                lines += 1;
            }
            let regions: Vec<_> = UefiDescriptors::parse(&map, 48).unwrap().collect();
            assert!(!regions.is_empty(), "{}", entry.name);
            largest = largest.max(check_map(&entry.name, &regions));
        }
    }
    say(&format!(
        "corpus: {lines} descriptors, at most {largest} regions in a normalised UEFI map"
    ));
}

#[test]
fn every_smbios_file_is_understood() {
    let Some(corpus) = corpus() else { return };
    for entry in of_kind(corpus, "smbios-entry") {
        let point = SmbiosEntry::parse(&entry.bytes);
        assert_eq!(
            point.is_ok(),
            entry.checksum == "ok",
            "{}: {point:?}",
            entry.name
        );
    }
    let mut outcome = BTreeMap::new();
    for (kind, skip) in [("smbios-table", 0), ("smbios-dump", 32)] {
        for entry in of_kind(corpus, kind) {
            let table = &entry.bytes[skip..];
            let read: Vec<_> = SmbiosStructures::new(table).collect();
            let ended =
                matches!(read.last(), Some(Ok(s)) if s.kind == SmbiosStructure::END_OF_TABLE);
            let failed = matches!(read.last(), Some(Err(_)));
            *outcome.entry((ended, failed)).or_insert(0) += 1;
            // Counted another way: where each structure begins if one hops from end to end.
            let mut plain = 0;
            let mut at = 0;
            while at + 4 <= table.len() {
                while at + 4 <= table.len() && table[at..at + 2] == [0, 0] {
                    // Zeros that nobody counts.
                    at += table[at..].iter().take_while(|&&byte| byte == 0).count();
                }
                if at + 4 > table.len() || table[at + 1] < 4 {
                    break;
                }
                let mut end = at + usize::from(table[at + 1]);
                while end + 1 < table.len() && table[end..end + 2] != [0, 0] {
                    end += 1;
                }
                if end + 1 >= table.len() {
                    break;
                }
                plain += 1;
                if table[at] == 127 {
                    break;
                }
                at = end + 2;
            }
            assert_eq!(read.iter().flatten().count(), plain, "{}", entry.name);
        }
    }
    say(&format!(
        "corpus: SMBIOS tables by (end-of-table, error) {outcome:?}"
    ));
}

#[test]
fn whole_machines_are_captured_and_cut_down() {
    let Some(corpus) = corpus() else { return };
    let mut machines: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in corpus
        .iter()
        .filter(|entry| entry.kind.starts_with("acpi:"))
    {
        machines.entry(&entry.machine).or_default().push(entry);
    }
    let (mut captured, mut cut, mut with_nodes) = (0, 0, 0);
    for (number, (name, entries)) in machines.iter().enumerate() {
        let Some((memory, copied)) = assemble(number, entries) else {
            continue;
        };
        let blob = crate::partition::capture_of(&memory, RSDP);
        let whole = Capture::parse(&blob).unwrap();
        let addresses: HashSet<_> = whole
            .tables()
            .filter(|table| table.state.is_copied())
            .map(|table| {
                assert_eq!(table.bytes, memory.0[&table.address.0], "{name}");
                table.address.0
            })
            .collect();
        for (address, entry) in &copied {
            assert!(addresses.contains(address), "{name}: {}", entry.name);
        }
        captured += 1;
        let Some(Ok(madt)) = whole.madt() else {
            continue;
        };
        cut_down(name, &whole, &madt);
        with_nodes += usize::from(whole.srat().is_some());
        cut += 1;
    }
    say(&format!(
        "corpus: {captured} machines captured, {cut} cut down, {with_nodes} of these with affinities"
    ));
    assert!(captured > 400 && cut > 400);
}

pub(crate) const RSDP: u64 = 0xf_0010;

/// Memory with all tables of a machine at unaligned addresses below a new root table, and which of
/// the tables must be captured from where.
pub(crate) fn assemble<'a>(
    number: usize,
    entries: &[&'a Entry],
) -> Option<(Memory, Vec<(u64, &'a Entry)>)> {
    let mut memory = Memory::default();
    let mut pointers = Vec::new();
    let mut copied = Vec::new();
    let mut at = 0x7000_0001 + number as u64;
    for entry in entries {
        let listed = Sdt::parse_any_sum(&entry.bytes).is_ok_and(|sdt| {
            sdt.bytes().len() == entry.bytes.len() && sdt.signature().is_printable()
        });
        let root = ["acpi:RSDP", "acpi:RSDT", "acpi:XSDT", "acpi:FACS"].contains(&&*entry.kind);
        if root || !listed {
            continue;
        }
        // Pointers of the FADT lead to where its tables were; there is nothing there now.
        memory.put(at, entry.bytes.clone());
        pointers.push(at);
        copied.push((at, *entry));
        at += entry.bytes.len() as u64 + 3;
    }
    if pointers.is_empty() {
        return None;
    }
    memory.put(0x6fff_0003, build::xsdt(&pointers));
    memory.put(RSDP, build::rsdp(0, 0x6fff_0003));
    Some((memory, copied))
}

/// Gives every other processor of a machine to a partition and checks what it sees.
fn cut_down(name: &str, whole: &Capture<'_>, madt: &Madt<'_>) {
    let cpus: Vec<ApicId> = madt
        .processors()
        .step_by(2)
        .map(|cpu| cpu.apic_id)
        .collect();
    let ecam = whole
        .mcfg()
        .and_then(Result::ok)
        .and_then(|mcfg| mcfg.allocations().next());
    let bridges: Vec<_> = ecam
        .iter()
        .map(|allocation| HostBridge {
            segment: allocation.segment,
            first_bus: allocation.first_bus,
            last_bus: allocation.first_bus,
            ecam: allocation.base,
            windows: &[],
        })
        .collect();
    let view = PartitionView {
        cpus: &cpus,
        memory: &[range(0x1_0000_0000, 0x1_4000_0000)],
        reserved: &[],
        bridges: &bridges,
        reset: ResetWord {
            address: PhysAddr(0x1_4000_0000),
            value: 1,
        },
        wakeup: None,
        place: PhysAddr(0x1_4000_1000),
    };
    let mut buffer = vec![0; 0x1_0000];
    let tables = match view.write(whole, &mut buffer) {
        Ok(tables) => tables,
        Err(PartitionError::NoCpu) => return,
        Err(error) => panic!("{name}: {error}"),
    };
    buffer.truncate(tables.range.length() as usize);
    let mut memory = Memory::default();
    memory.put(tables.rsdp.0, buffer);
    let blob = crate::partition::capture_of(&memory, tables.rsdp.0);
    let small = Capture::parse(&blob).unwrap();
    let seen = small.madt().unwrap().unwrap();
    let ids: Vec<_> = seen.processors().map(|cpu| cpu.apic_id).collect();
    assert_eq!(ids, cpus, "{name}");
    for cpu in seen.processors() {
        let before = madt.processor(cpu.apic_id).unwrap();
        assert_eq!((cpu.uid, cpu.x2apic), (before.uid, before.x2apic), "{name}");
    }
    assert!(seen.io_apics().next().is_none(), "{name}");
    assert!(seen.entries().all(|entry| entry.is_ok()), "{name}");
    for hidden in [Signature::DMAR, Signature::IVRS, Signature::HPET] {
        assert!(small.find(hidden).is_none(), "{name}");
    }
    if let Some(Ok(srat)) = small.srat() {
        for entry in srat.entries().map(Result::unwrap) {
            match entry {
                Affinity::Processor { apic_id, .. } => assert!(cpus.contains(&apic_id)),
                Affinity::Memory(memory) => {
                    assert!(view.memory[0].contains_range(memory.range), "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
