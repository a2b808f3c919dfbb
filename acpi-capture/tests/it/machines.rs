//! Every real machine, divided at random: what each part sees is exactly its part, and the parts
//! together with what nobody got are the machine, without overlap.

use std::collections::{BTreeMap, BTreeSet};

use acpi_capture::memory::{MemoryKind, MemoryMap};
use acpi_capture::partition::{HostBridge, PartitionView, ResetWord, Window, WindowKind};
use acpi_capture::table::*;
use acpi_capture::*;
use handoff_abi::{ApicId, PhysAddr, PhysRange};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::build::{self, Bytes, Memory, range};
use crate::corpus::{self, Entry, assemble, corpus, say};
use crate::namespace::{Value, devices};
use crate::partition::capture_of;

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = &bytes[at..at + length];
    bytes
        .iter()
        .rev()
        .fold(0, |n, &byte| n << 8 | u64::from(byte))
}

/// The entries of a table that have a byte of type and a byte of length.
fn entries(bytes: &[u8], mut at: usize) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while at + 2 <= bytes.len() {
        let length = usize::from(bytes[at + 1]);
        if length < 2 || at + length > bytes.len() {
            break;
        }
        found.push(&bytes[at..at + length]);
        at += length;
    }
    found
}

#[derive(Clone, Copy, Debug)]
struct Cpu {
    id: u32,
    uid: u32,
    x2apic: bool,
}

/// A machine as the plainest of loops reads it.
struct Real {
    name: String,
    blob: Vec<u8>,
    cpus: Vec<Cpu>,
    madt: Vec<u8>,
    srat: Option<Vec<u8>>,
    slit: Option<Vec<u8>>,
    /// ECAM base, segment, first and last bus.
    buses: Vec<(u64, u16, u8, u8)>,
    /// Addresses that no part may see.
    secrets: Vec<u64>,
}

impl Real {
    fn read(name: &str, memory: &Memory) -> Option<Self> {
        let blob = capture_of(memory, corpus::RSDP);
        let whole = Capture::parse(&blob).unwrap();
        let bytes = |signature| whole.find(signature).map(|sdt| sdt.bytes().to_vec());
        let madt = bytes(Signature::MADT)?;
        let mut secrets: Vec<u64> = memory.0.keys().copied().collect();
        let mut cpus: Vec<Cpu> = Vec::new();
        for entry in entries(&madt, 44) {
            let (cpu, flags) = match (entry[0], entry.len()) {
                (0, 8..) => (
                    Cpu {
                        id: entry[3].into(),
                        uid: entry[2].into(),
                        x2apic: false,
                    },
                    entry[4],
                ),
                (9, 16..) => (
                    Cpu {
                        id: number(entry, 4, 4) as u32,
                        uid: number(entry, 12, 4) as u32,
                        x2apic: true,
                    },
                    entry[8],
                ),
                (1, 12..) => {
                    secrets.push(number(entry, 4, 4));
                    continue;
                }
                _ => continue,
            };
            if flags & 1 == 1 && cpus.iter().all(|other| other.id != cpu.id) {
                cpus.push(cpu);
            }
        }
        for (signature, at) in [(Signature::HPET, 44), (Signature::DMAR, 56)] {
            if let Some(table) = bytes(signature) {
                secrets.push(number(&table, at, 8));
            }
        }
        if let Some(table) = bytes(Signature::IVRS) {
            secrets.push(number(&table, 56, 8));
        }
        let mcfg = bytes(Signature::MCFG).unwrap_or_default();
        let buses = mcfg
            .get(44..)
            .unwrap_or(&[])
            .chunks_exact(16)
            .map(|a| (number(a, 0, 8), number(a, 8, 2) as u16, a[10], a[11]));
        let buses = buses.filter(|&(base, ..)| base != 0).take(1).collect();
        (!cpus.is_empty()).then(|| Self {
            name: name.to_owned(),
            cpus,
            srat: bytes(Signature::SRAT),
            slit: bytes(Signature::SLIT),
            madt,
            buses,
            secrets,
            blob: blob.clone(),
        })
    }

    /// What the MADT of a part must be: processors in the order asked for, then the override, then
    /// the pins of these processors.
    fn expected_madt(&self, part: &Part) -> Vec<u8> {
        let own: Vec<_> = part.cpus.iter().map(|&place| self.cpus[place]).collect();
        let mut written: Vec<Vec<u8>> = own
            .iter()
            .map(|cpu| match cpu.x2apic {
                true => build::local_x2apic(cpu.uid, cpu.id, 1),
                false => build::local_apic(cpu.uid as u8, cpu.id as u8, 1),
            })
            .collect();
        let whole = entries(&self.madt, 44);
        written.extend(
            whole
                .iter()
                .find(|e| e[0] == 5)
                .map(|e| build::local_apic_override(number(e, 4, 8))),
        );
        for entry in whole {
            let (uid, all) = match entry[0] {
                4 => (number(entry, 2, 1), 0xff),
                0xa => (number(entry, 4, 4), 0xffff_ffff),
                _ => continue,
            };
            if uid == all || own.iter().any(|cpu| u64::from(cpu.uid) == uid) {
                let flags = |at| number(entry, at, 2) as u16;
                written.push(match entry[0] {
                    4 => build::local_apic_nmi(uid as u8, flags(3), entry[5]),
                    _ => build::local_x2apic_nmi(uid as u32, flags(2), entry[8]),
                });
            }
        }
        let address = number(&self.madt, 36, 4) as u32;
        build::madt(address, 0, &written)[36..].to_vec()
    }

    /// SRAT and SLIT of a part: bodies, or none.
    fn expected_nodes(&self, part: &Part) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let Some(srat) = &self.srat else {
            return (None, None);
        };
        let wide = srat[8] >= 2;
        let mut of_cpu = BTreeMap::new();
        let mut memory = Vec::new();
        for entry in entries(srat, 48) {
            match (entry[0], entry.len()) {
                (0, 16..) if entry[4] & 1 == 1 => {
                    let high = if wide { number(entry, 9, 3) } else { 0 };
                    let domain = number(entry, 2, 1) | high << 8;
                    of_cpu.entry(number(entry, 3, 1)).or_insert((domain, false));
                }
                (2, 24..) if entry[12] & 1 == 1 => {
                    let domain = number(entry, 4, 4);
                    of_cpu.entry(number(entry, 8, 4)).or_insert((domain, true));
                }
                (1, 40..) if entry[28] & 1 == 1 => {
                    let mask = if wide { u64::MAX } else { 0xff };
                    let domain = number(entry, 2, 4) & mask;
                    let (base, length) = (number(entry, 8, 8), number(entry, 16, 8));
                    memory.push((domain, range(base, base.saturating_add(length)), entry[28]));
                }
                _ => {}
            }
        }
        let mut used = BTreeSet::new();
        for &place in &part.cpus {
            used.extend(of_cpu.get(&u64::from(self.cpus[place].id)).map(|&(d, _)| d));
        }
        if used.is_empty() {
            return (None, None);
        }
        let pieces: Vec<_> = memory
            .iter()
            .flat_map(|&(domain, near, flags)| {
                let own = part.memory.iter().map(move |own| own.intersection(near));
                own.filter(|piece| !piece.is_empty())
                    .map(move |piece| (domain, piece, flags & 0b101))
            })
            .collect();
        used.extend(pieces.iter().map(|&(domain, ..)| domain));
        let new = |domain| used.iter().position(|&d| d == domain).unwrap() as u32;
        let mut written = Vec::new();
        for &place in &part.cpus {
            let id = self.cpus[place].id;
            if let Some(&(domain, x2apic)) = of_cpu.get(&u64::from(id)) {
                written.push(match x2apic {
                    true => build::srat_x2apic(new(domain), id, 1),
                    false => build::srat_apic(new(domain), id as u8, 1),
                });
            }
        }
        for (domain, piece, flags) in pieces {
            let (base, length) = (piece.base().0, piece.length());
            written.push(build::srat_memory(new(domain), base, length, flags.into()));
        }
        let slit = self.slit.as_ref().map(|slit| {
            let size = number(slit, 36, 8);
            let cell = |from: u64, to: u64| match (from < size && to < size, from == to) {
                (true, _) => slit[44 + (from * size + to) as usize],
                (false, true) => 10,
                (false, false) => 20,
            };
            let row = |&from| used.iter().map(|&to| cell(from, to)).collect();
            let rows: Vec<Vec<u8>> = used.iter().map(row).collect();
            build::slit(&rows)[36..].to_vec()
        });
        (Some(build::srat(3, &written)[36..].to_vec()), slit)
    }
}

/// A part of a machine. The one with number 0 is what the first kernel and firmware keep.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Places among the machine's processors.
    cpus: Vec<usize>,
    memory: Vec<PhysRange>,
    /// Runs of buses: first, last.
    buses: Vec<(u8, u8)>,
}

/// How a machine is divided: for each thing, whose it is, taken modulo the number of parts.
#[derive(Clone, Debug)]
struct Division {
    parts: usize,
    owners: Vec<usize>,
    cuts: Vec<u64>,
}

fn division() -> impl Strategy<Value = Division> {
    let owners = prop::collection::vec(any::<usize>(), 64);
    let cuts = prop::collection::vec(any::<u64>(), 0..12);
    (2_usize..6, owners, cuts).prop_map(|(parts, owners, cuts)| Division {
        parts,
        owners,
        cuts,
    })
}

impl Division {
    fn owner(&self, of: usize, parts: &[Part]) -> usize {
        let owner = self.owners[of % self.owners.len()].rotate_left(of as u32 / 64) % self.parts;
        // Who has no processor can own nothing.
        if parts[owner].cpus.is_empty() {
            0
        } else {
            owner
        }
    }

    fn divide(&self, machine: &Real, memory: &[PhysRange]) -> Vec<Part> {
        let mut parts = vec![Part::default(); self.parts];
        for place in 0..machine.cpus.len() {
            let owner = self.owners[place % self.owners.len()].rotate_left(place as u32 / 64);
            parts[owner % self.parts].cpus.push(place);
        }
        // Each range in pieces, cut at frame boundaries.
        let mut piece = 0;
        for whole in memory {
            let frames = whole.length() / 4096;
            let mut edges: Vec<u64> = self.cuts.iter().map(|cut| cut % (frames + 1)).collect();
            edges.extend([0, frames]);
            edges.sort_unstable();
            for pair in edges.windows(2).filter(|pair| pair[0] < pair[1]) {
                piece += 1;
                let base = whole.base().0;
                let owner = self.owner(piece, &parts);
                let part = range(base + pair[0] * 4096, base + pair[1] * 4096);
                parts[owner].memory.push(part);
            }
        }
        if let Some(&(_, _, first, last)) = machine.buses.first() {
            let mut bus = u16::from(first);
            while bus <= u16::from(last) {
                let run = self.owners[usize::from(bus) % 64] as u16 % 24;
                let end = (bus + run).min(last.into());
                let owner = self.owner(usize::from(bus), &parts);
                parts[owner].buses.push((bus as u8, end as u8));
                bus = end + 1;
            }
        }
        parts
    }
}

/// Where the windows of a run of buses are: far from all memory.
fn window_of(first: u8) -> PhysRange {
    let base = 0x4_5a3c_0000_0000 + (u64::from(first) << 32);
    range(base, base + 0x1000_0000)
}

/// Writes the tables of a part, reads them back, and holds them against the part. Gives the
/// processors, the memory and the buses that its kernel sees.
fn check_part(
    machine: &Real,
    number: usize,
    parts: &[Part],
) -> (Vec<u32>, Vec<PhysRange>, Vec<u8>) {
    let part = &parts[number];
    let name = &machine.name;
    let whole = Capture::parse(&machine.blob).unwrap();
    let cpus: Vec<_> = part
        .cpus
        .iter()
        .map(|&p| ApicId(machine.cpus[p].id))
        .collect();
    let (ecam, segment, ..) = machine.buses.first().copied().unwrap_or_default();
    let windows: Vec<_> = part
        .buses
        .iter()
        .map(|&(first, _)| {
            [Window {
                kind: WindowKind::Memory64Prefetchable,
                range: window_of(first),
            }]
        })
        .collect();
    let bridges: Vec<_> = part
        .buses
        .iter()
        .zip(&windows)
        .map(|(&(first_bus, last_bus), windows)| HostBridge {
            segment,
            first_bus,
            last_bus,
            ecam: PhysAddr(ecam),
            windows,
        })
        .collect();
    // The tables lie in the part's own memory, where it has enough.
    let roomy = part.memory.iter().find(|own| own.length() >= 0x1_0000);
    let place = roomy.map_or(0x6_0000_0000_0000, |own| own.base().0);
    let view = PartitionView {
        cpus: &cpus,
        memory: &part.memory,
        reserved: &[],
        bridges: &bridges,
        reset: ResetWord {
            address: PhysAddr(place),
            value: 0x5a,
        },
        wakeup: None,
        place: PhysAddr(place),
    };
    let mut buffer = vec![0xee; 0x1_0000];
    let tables = view
        .write(&whole, &mut buffer)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    buffer.truncate(tables.range.length() as usize);
    let mut memory = Memory::default();
    memory.put(place, buffer.clone());
    let blob = capture_of(&memory, place);
    let small = Capture::parse(&blob).unwrap();
    assert!(
        small.tables().all(|t| t.state == State::Sound),
        "{name}: {small:?}"
    );

    // Exactly these tables, each of them what it must be to the byte.
    let body = |signature| small.find(signature).map(|sdt| sdt.body().to_vec());
    assert_eq!(
        body(Signature::MADT),
        Some(machine.expected_madt(part)),
        "{name}"
    );
    let (srat, slit) = machine.expected_nodes(part);
    assert_eq!(body(Signature::SRAT), srat, "{name}");
    assert_eq!(body(Signature::SLIT), slit, "{name}");
    let allocations: Vec<_> = part
        .buses
        .iter()
        .map(|&(a, b)| (ecam, segment, a, b))
        .collect();
    let mcfg = (!allocations.is_empty()).then(|| build::mcfg(&allocations)[36..].to_vec());
    assert_eq!(body(Signature::MCFG), mcfg, "{name}");
    let namespace = small
        .tables()
        .find(|t| t.signature == Signature::DSDT)
        .unwrap();
    let mut fadt = vec![0; 276];
    let mut put = |at: usize, bytes: &[u8]| fadt[at..at + bytes.len()].copy_from_slice(bytes);
    put(109, &0b11_0100_u16.to_le_bytes());
    let flags: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 19 | 1 << 20;
    put(112, &flags.to_le_bytes());
    put(116, &Bytes::new().raw(&[0, 8, 0, 1]).u64(place).0);
    put(128, &[0x5a]);
    put(131, &[5]);
    put(140, &namespace.address.0.to_le_bytes());
    assert_eq!(body(Signature::FADT).unwrap(), fadt[36..], "{name}");
    let mut names: Vec<_> = small.tables().map(|t| t.signature.to_string()).collect();
    names.sort_unstable();
    let mut expected = vec!["APIC", "DSDT", "FACP", "RSDP", "XSDT"];
    expected.extend(mcfg.map(|_| "MCFG"));
    expected.extend(srat.map(|_| "SRAT"));
    expected.extend(slit.map(|_| "SLIT"));
    expected.sort_unstable();
    assert_eq!(names, expected, "{name}");
    for table in small.tables().filter(|t| t.kind == CapturedKind::Sdt) {
        let sdt = Sdt::parse(table.bytes).unwrap();
        assert_eq!(
            (&sdt.oem_id(), &sdt.oem_table_id()),
            (b"BATON ", b"PARTITIO")
        );
    }

    // The namespace has a host bridge for each run of buses, and nothing else but the space that
    // configures them.
    let found = devices(small.find(Signature::DSDT).unwrap().body());
    let mut buses = Vec::new();
    for (place, &(first, last)) in part.buses.iter().enumerate() {
        let device = &found[&format!("PB{place:02X}")];
        assert_eq!(device["_BBN"], Value::Integer(first.into()), "{name}");
        assert_eq!(device["_SEG"], Value::Integer(segment.into()), "{name}");
        buses.extend(first..=last);
    }
    let extra = usize::from(!part.buses.is_empty());
    assert_eq!(found.len(), part.buses.len() + extra, "{name}");

    // No address of anything else, in any byte.
    let foreign = parts
        .iter()
        .enumerate()
        .filter(|&(other, _)| other != number);
    let foreign = foreign.flat_map(|(_, other)| {
        let memory = other.memory.iter().map(|range| range.base().0);
        memory.chain(
            other
                .buses
                .iter()
                .map(|&(first, _)| window_of(first).base().0),
        )
    });
    let allowed: BTreeSet<u64> = part
        .memory
        .iter()
        .flat_map(|own| [own.base().0, own.end().0, own.length()])
        .collect();
    for secret in machine.secrets.iter().copied().chain(foreign) {
        let bytes = secret.to_le_bytes();
        // Few bytes are in every table.
        let telling = bytes.iter().filter(|&&byte| byte != 0).count() >= 3;
        if telling && !allowed.contains(&secret) {
            let there = buffer.windows(8).any(|window| window == bytes);
            assert!(!there, "{name}: {secret:#x}");
        }
    }

    // What its kernel makes of it.
    let madt = small.madt().unwrap().unwrap();
    let seen: Vec<_> = madt.processors().map(|cpu| cpu.apic_id.0).collect();
    let map: MemoryMap<512> = view.memory_map(&tables).unwrap();
    let own = |kind| map.of_kind(kind).collect::<Vec<_>>();
    let mut memory = own(MemoryKind::Usable);
    match roomy {
        Some(_) => memory.extend(own(MemoryKind::Reserved)),
        None => assert_eq!(own(MemoryKind::Reserved), [tables.range], "{name}"),
    }
    (seen, memory, buses)
}

/// Ranges in order, those that touch as one; panics where two overlap.
fn merged(mut ranges: Vec<PhysRange>) -> Vec<PhysRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PhysRange> = Vec::new();
    for next in ranges {
        match merged.last_mut() {
            Some(last) if last.end() > next.base() => panic!("{last} and {next} overlap"),
            Some(last) if last.end() == next.base() => {
                *last = range(last.base().0, next.end().0);
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// Usable memory of the maps of the corpus, in whole frames.
fn memory_maps(corpus: &[Entry]) -> Vec<Vec<PhysRange>> {
    let usable = |entry: &Entry| {
        let text = String::from_utf8_lossy(&entry.bytes).into_owned();
        let lines = text.lines().filter(|line| {
            let kind = line
                .split_once(' ')
                .and_then(|(_, rest)| rest.split_once(' '));
            !line.starts_with('#')
                && kind.is_some_and(|(_, kind)| matches!(kind.trim(), "usable" | "System RAM"))
        });
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let ranges = lines.map(|line| {
            let columns: Vec<_> = line.split(' ').collect();
            let (start, end) = (hex(columns[0]), hex(columns[1]) + 1);
            range(start.next_multiple_of(4096), end & !4095)
        });
        merged(ranges.filter(|range| !range.is_empty()).collect())
    };
    corpus::of_kind(corpus, "e820")
        .into_iter()
        .map(usable)
        .collect()
}

/// Divides a machine and holds every part, and all of them together, against it. Says how many
/// parts had tables written.
fn check_division(machine: &Real, division: &Division, usable: &[PhysRange]) -> usize {
    let name = &machine.name;
    let parts = division.divide(machine, usable);
    let share = &parts[0];
    let mut cpus: Vec<u32> = share.cpus.iter().map(|&p| machine.cpus[p].id).collect();
    let mut memory = share.memory.clone();
    let mut buses: Vec<u8> = share.buses.iter().flat_map(|&(a, b)| a..=b).collect();
    let mut written = 0;
    for number in 1..parts.len() {
        if parts[number].cpus.is_empty() {
            continue;
        }
        let seen = check_part(machine, number, &parts);
        cpus.extend(seen.0);
        memory.extend(seen.1);
        buses.extend(seen.2);
        written += 1;
    }
    cpus.sort_unstable();
    let mut all: Vec<u32> = machine.cpus.iter().map(|cpu| cpu.id).collect();
    all.sort_unstable();
    assert_eq!(cpus, all, "{name}");
    assert_eq!(merged(memory), *usable, "{name}");
    buses.sort_unstable();
    let all: Option<Vec<_>> = machine.buses.first().map(|&(_, _, a, b)| (a..=b).collect());
    assert_eq!(buses, all.unwrap_or_default(), "{name}");
    written
}

/// Divides a machine of anybody's at random, `rounds` times, with made-up memory. Says how many
/// parts had tables written; `None` where there are no processors to divide.
pub(crate) fn divide_at_random(name: &str, memory: &Memory, rounds: usize) -> Option<usize> {
    let machine = Real::read(name, memory)?;
    let usable = [
        range(0x1000, 0x9_f000),
        range(0x10_0000, 0x7f00_0000),
        range(0x1_0000_0000, 0x8_8000_0000),
    ];
    let mut runner = TestRunner::deterministic();
    let mut written = 0;
    for _ in 0..rounds {
        let division = division().new_tree(&mut runner).unwrap().current();
        written += check_division(&machine, &division, &usable);
    }
    Some(written)
}

#[test]
fn the_parts_of_every_real_machine_are_the_machine() {
    let Some(corpus) = corpus() else { return };
    let maps = memory_maps(corpus);
    let mut machines: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in corpus
        .iter()
        .filter(|entry| entry.kind.starts_with("acpi:"))
    {
        machines.entry(&entry.machine).or_default().push(entry);
    }
    let mut runner = TestRunner::deterministic();
    let (mut divided, mut complete, mut divisions, mut written) = (0, 0, 0, 0);
    for (place, (name, entries)) in machines.iter().enumerate() {
        let Some((memory, _)) = assemble(place, entries) else {
            continue;
        };
        let Some(machine) = Real::read(name, &memory) else {
            continue;
        };
        let is_complete = entries.iter().any(|entry| entry.kind == "acpi:DSDT");
        divided += 1;
        complete += usize::from(is_complete);
        for round in 0..if is_complete { 12 } else { 1 } {
            let division = division().new_tree(&mut runner).unwrap().current();
            let usable = &maps[(place * 7 + round) % maps.len()];
            divisions += 1;
            written += check_division(&machine, &division, usable);
        }
    }
    say(&format!(
        "corpus: {divided} machines, {complete} of them complete, divided {divisions} times into \
         {written} partitions"
    ));
    assert!(divided > 400 && complete >= 50 && written > 1000);
}
