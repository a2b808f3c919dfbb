//! The smaller machine: exactly the partition, and nothing of the rest.

use std::collections::{BTreeMap, BTreeSet};

use acpi_capture::memory::{MemoryKind, MemoryRegion};
use acpi_capture::partition::*;
use acpi_capture::table::*;
use acpi_capture::*;
use handoff_abi::{ApicId, PhysAddr, PhysRange};
use proptest::prelude::*;

use crate::build::{self, Bytes, Memory, range};
use crate::namespace::{Resource, Value, devices, eisa_id};

const RSDP: u64 = 0xe_0000;
const PLACE: u64 = 0x1_2340_0000;

/// A processor of the whole machine.
#[derive(Clone, Debug)]
pub(crate) struct ModelCpu {
    pub(crate) apic_id: u32,
    uid: u32,
    x2apic: bool,
    node: u32,
}

/// A whole machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cpus: Vec<ModelCpu>,
    /// Numbers of the proximity domains, one for each node.
    domains: Vec<u32>,
    has_srat: bool,
    has_slit: bool,
    nmi_for_all: bool,
    nmi_each: bool,
    override_address: bool,
    /// Addresses that no partition may see.
    secrets: Vec<u64>,
}

/// Memory of node `node`: 4 GiB each, from 4 GiB on.
fn node_memory(node: u32) -> PhysRange {
    let base = 0x1_0000_0000 * (u64::from(node) + 1);
    range(base, base + 0x1_0000_0000)
}

impl Machine {
    fn distance(&self, from: usize, to: usize) -> u8 {
        if from == to {
            10
        } else {
            20 + (from * 7 + to * 3) as u8
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        let s = &self.secrets;
        let mut entries: Vec<_> = self
            .cpus
            .iter()
            .map(|cpu| match cpu.x2apic {
                true => build::local_x2apic(cpu.uid, cpu.apic_id, 1),
                false => build::local_apic(cpu.uid as u8, cpu.apic_id as u8, 1),
            })
            .collect();
        // Places for processors that are not there, with an id that one has.
        entries.push(build::local_apic(0xfe, self.cpus[0].apic_id as u8, 0));
        entries.push(build::io_apic(0x77, s[0] as u32, 0));
        entries.push(build::source_override(0, 2, 0));
        entries.push(build::nmi_source(5, 3));
        if self.nmi_for_all {
            entries.push(build::local_apic_nmi(0xff, 5, 1));
            entries.push(build::local_x2apic_nmi(0xffff_ffff, 5, 1));
        }
        if self.nmi_each {
            for cpu in &self.cpus {
                entries.push(match cpu.x2apic {
                    true => build::local_x2apic_nmi(cpu.uid, 13, 0),
                    false => build::local_apic_nmi(cpu.uid as u8, 13, 0),
                });
            }
        }
        if self.override_address {
            entries.push(build::local_apic_override(0xfee0_0000));
        }
        entries.push(vec![0x80, 4, 9, 9]);
        let mut tables = vec![
            build::fadt((0, 0), (0, s[1])),
            build::madt(0xfee0_0000, 1, &entries),
            build::mcfg(&[(0xb000_0000, 0, 0, 255), (s[2], 7, 0, 3)]),
            build::hpet(s[3], 0),
            build::dmar(46, 1, &[build::drhd(true, 0, s[4], &[])]),
            build::sdt(b"IVRS", 2, &[0x55; 64]),
        ];
        if self.has_srat {
            let mut entries = vec![build::srat_memory(999, s[5], 0x1000, 0)];
            for cpu in &self.cpus {
                let domain = self.domains[cpu.node as usize];
                entries.push(match cpu.x2apic {
                    true => build::srat_x2apic(domain, cpu.apic_id, 1),
                    false => build::srat_apic(domain, cpu.apic_id as u8, 1),
                });
            }
            for (node, &domain) in self.domains.iter().enumerate() {
                let memory = node_memory(node as u32);
                let (base, length) = (memory.base().0, memory.length());
                entries.push(build::srat_memory(domain, base, length, 0b011));
            }
            tables.push(build::srat(3, &entries));
        }
        if self.has_slit {
            let size = self.domains.iter().max().unwrap() + 1;
            let place = |domain| self.domains.iter().position(|&d| d == domain);
            let rows: Vec<Vec<u8>> = (0..size)
                .map(|from| {
                    let cell = |to| match (place(from), place(to)) {
                        (Some(from), Some(to)) => self.distance(from, to),
                        _ => 0xfe,
                    };
                    (0..size).map(cell).collect()
                })
                .collect();
            tables.push(build::slit(&rows));
        }
        let mut memory = Memory::default();
        let mut pointers = Vec::new();
        for (place, table) in tables.into_iter().enumerate() {
            let at = 0x7fd0_0000 + 0x1_0000 * place as u64;
            pointers.push(at);
            memory.put(at, table);
        }
        memory.put(s[1], build::sdt(b"DSDT", 2, &[0xa3; 200]));
        memory.put(0x7fe0_0000, build::xsdt(&pointers));
        memory.put(RSDP, build::rsdp(0, 0x7fe0_0000));
        memory
    }
}

pub(crate) fn capture_of(memory: &Memory, rsdp: u64) -> Vec<u8> {
    let request = CaptureRequest::new(PhysAddr(rsdp), SmbiosSource::None);
    crate::capture::take(memory, &request)
}

prop_compose! {
    fn model_machine()(
        nodes in 1_usize..5,
        cpus in prop::collection::vec((any::<u32>(), any::<bool>(), any::<u32>()), 1..12),
        domains in prop::collection::btree_set(0_u32..12, 5),
        flags: [bool; 5],
        secrets in prop::collection::vec(any::<u64>(), 6),
        uid_base in 0_u32..100,
    ) -> Machine {
        let mut taken = BTreeSet::new();
        let cpus: Vec<_> = cpus
            .into_iter()
            .enumerate()
            .filter_map(|(place, (id, x2apic, node))| {
                let apic_id = if x2apic { id } else { id & 0xff };
                let cpu = ModelCpu {
                    apic_id,
                    uid: uid_base + place as u32,
                    x2apic,
                    node: node % nodes as u32,
                };
                (taken.insert(apic_id) && apic_id != u32::MAX).then_some(cpu)
            })
            .collect();
        // Sorted sets come in order; the real world does not.
        let domains = domains.into_iter().rev().take(nodes).collect();
        // Far away from everything that is in a partition, and full of distinct bytes.
        let secrets = secrets
            .into_iter()
            .enumerate()
            .map(|(place, s)| 0x00ab_0000_0000_0000 | (s & 0xff_ffff_f000) << 4 | (place as u64) << 8 | 0x40)
            .collect();
        Machine {
            cpus,
            domains,
            has_srat: flags[0],
            has_slit: flags[0] && flags[1],
            nmi_for_all: flags[2],
            nmi_each: flags[3],
            override_address: flags[4],
            secrets,
        }
    }
}

/// What a partition asks for, with everything it borrows.
#[derive(Clone, Debug)]
struct Wish {
    cpus: Vec<ApicId>,
    memory: Vec<PhysRange>,
    reserved: Vec<MemoryRegion>,
    /// First bus, last bus, windows.
    bridges: Vec<(u8, u8, Vec<Window>)>,
    wakeup: bool,
    high_ecam: bool,
}

impl Wish {
    fn ecam(&self) -> u64 {
        if self.high_ecam {
            0x80_0000_0000
        } else {
            0xb000_0000
        }
    }

    fn with<T>(&self, use_view: impl FnOnce(&PartitionView<'_>) -> T) -> T {
        let bridges: Vec<_> = self
            .bridges
            .iter()
            .map(|(first_bus, last_bus, windows)| HostBridge {
                segment: 0,
                first_bus: *first_bus,
                last_bus: *last_bus,
                ecam: PhysAddr(self.ecam()),
                windows,
            })
            .collect();
        use_view(&PartitionView {
            cpus: &self.cpus,
            memory: &self.memory,
            reserved: &self.reserved,
            bridges: &bridges,
            reset: ResetWord {
                address: PhysAddr(0x1_5000_0008),
                value: 0x5a,
            },
            wakeup: self.wakeup.then_some(PhysAddr(0x1_5000_1000)),
            place: PhysAddr(PLACE),
        })
    }
}

fn window(kind: WindowKind, start: u64, end: u64) -> Window {
    Window {
        kind,
        range: range(start, end),
    }
}

prop_compose! {
    fn wish()(
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        slices in prop::collection::vec((0_u64..0x4_0000, 1_u64..0x8000), 1..4),
        buses in prop::collection::vec((1_u8..20, 0_u8..4), 0..4),
        windows: [bool; 3],
        wakeup: bool,
        high_ecam: bool,
    ) -> (Vec<prop::sample::Index>, Wish) {
        let mut memory: Vec<PhysRange> = Vec::new();
        for (page, pages) in slices {
            let base = 0x1_0000_0000 + page * 0x8_0000;
            let next = range(base, base + pages * 0x1000);
            if !memory.iter().any(|other| other.overlaps(next)) {
                memory.push(next);
            }
        }
        let mut first = 0;
        let bridges = buses
            .into_iter()
            .enumerate()
            .map(|(place, (gap, more))| {
                let first_bus = first + gap;
                let last_bus = first_bus + more;
                first = last_bus;
                let base = place as u64;
                let all = [
                    window(WindowKind::Io, 0x1000 * (base + 1), 0x1000 * (base + 2)),
                    window(WindowKind::Memory32, 0xe000_0000 + base * 0x20_0000, 0xe020_0000 + base * 0x20_0000),
                    window(WindowKind::Memory64Prefetchable, 0x70_0000_0000 + base * 0x4000_0000, 0x70_0010_0000 + base * 0x4000_0000),
                ];
                let windows = all.into_iter().zip(windows).filter(|(_, wanted)| *wanted);
                (first_bus, last_bus, windows.map(|(window, _)| window).collect())
            })
            .collect();
        let reserved = vec![MemoryRegion {
            range: range(0x1_5000_0000, 0x1_5000_2000),
            kind: MemoryKind::Reserved,
        }];
        (chosen, Wish { cpus: Vec::new(), memory, reserved, bridges, wakeup, high_ecam })
    }
}

fn choose(machine: &Machine, chosen: &[prop::sample::Index], mut wish: Wish) -> Wish {
    for index in chosen {
        let id = ApicId(machine.cpus[index.index(machine.cpus.len())].apic_id);
        if !wish.cpus.contains(&id) {
            wish.cpus.push(id);
        }
    }
    wish
}

/// The body of a table, after the common header.
fn body(capture: &Capture<'_>, signature: Signature) -> Vec<u8> {
    capture.find(signature).unwrap().body().to_vec()
}

/// MADT entries the partition must have, in order, built from the specification.
fn expected_madt(machine: &Machine, wish: &Wish) -> Vec<u8> {
    let of = |id: &ApicId| machine.cpus.iter().find(|cpu| cpu.apic_id == id.0).unwrap();
    let own: Vec<_> = wish.cpus.iter().map(of).collect();
    let mut bytes = Bytes::new().u32(0xfee0_0000).u32(0);
    for cpu in &own {
        bytes = bytes.raw(&match cpu.x2apic {
            true => build::local_x2apic(cpu.uid, cpu.apic_id, 1),
            false => build::local_apic(cpu.uid as u8, cpu.apic_id as u8, 1),
        });
    }
    if machine.override_address {
        bytes = bytes.raw(&build::local_apic_override(0xfee0_0000));
    }
    if machine.nmi_for_all {
        bytes = bytes.raw(&build::local_apic_nmi(0xff, 5, 1));
        bytes = bytes.raw(&build::local_x2apic_nmi(0xffff_ffff, 5, 1));
    }
    if machine.nmi_each {
        // In the order of the whole machine's table.
        for cpu in &machine.cpus {
            if own.iter().any(|own| own.uid == cpu.uid) {
                bytes = bytes.raw(&match cpu.x2apic {
                    true => build::local_x2apic_nmi(cpu.uid, 13, 0),
                    false => build::local_apic_nmi(cpu.uid as u8, 13, 0),
                });
            }
        }
    }
    if wish.wakeup {
        bytes = bytes.raw(&build::wakeup(0x1_5000_1000));
    }
    bytes.0
}

/// New numbers of the nodes that the partition touches, by node.
fn expected_nodes(machine: &Machine, wish: &Wish) -> BTreeMap<u32, u32> {
    let of = |id: &ApicId| machine.cpus.iter().find(|cpu| cpu.apic_id == id.0).unwrap();
    let mut used: BTreeSet<u32> = wish.cpus.iter().map(|id| of(id).node).collect();
    for node in 0..machine.domains.len() as u32 {
        if wish
            .memory
            .iter()
            .any(|own| own.overlaps(node_memory(node)))
        {
            used.insert(node);
        }
    }
    let mut sorted: Vec<_> = used.into_iter().collect();
    sorted.sort_by_key(|&node| machine.domains[node as usize]);
    let numbered = sorted.into_iter().enumerate();
    numbered.map(|(new, node)| (node, new as u32)).collect()
}

fn expected_srat(machine: &Machine, wish: &Wish, nodes: &BTreeMap<u32, u32>) -> Vec<u8> {
    let mut bytes = Bytes::new().u32(1).u64(0);
    for id in &wish.cpus {
        let cpu = machine.cpus.iter().find(|cpu| cpu.apic_id == id.0).unwrap();
        let domain = nodes[&cpu.node];
        bytes = bytes.raw(&match cpu.x2apic {
            true => build::srat_x2apic(domain, cpu.apic_id, 1),
            false => build::srat_apic(domain, cpu.apic_id as u8, 1),
        });
    }
    for node in 0..machine.domains.len() as u32 {
        for own in &wish.memory {
            let piece = own.intersection(node_memory(node));
            if !piece.is_empty() {
                let (base, length) = (piece.base().0, piece.length());
                bytes = bytes.raw(&build::srat_memory(nodes[&node], base, length, 1));
            }
        }
    }
    bytes.0
}

fn check_namespace(block: &[u8], wish: &Wish) {
    let mut found = devices(block);
    for (place, (first, last, windows)) in wish.bridges.iter().enumerate() {
        let device = found.remove(&format!("PB{place:02X}")).unwrap();
        let integer = |name: &str| match &device[name] {
            Value::Integer(integer) => *integer,
            other => panic!("{other:?}"),
        };
        assert_eq!(integer("_HID"), eisa_id("PNP0A08"));
        assert_eq!(integer("_CID"), eisa_id("PNP0A03"));
        assert_eq!(integer("_UID"), place as u64);
        assert_eq!(integer("_SEG"), 0);
        assert_eq!(integer("_BBN"), u64::from(*first));
        assert_eq!(device.len(), 6);
        let mut expected = vec![Resource::Space {
            item: 8,
            kind: 2,
            general: 0x0c,
            specific: 0,
            minimum: u64::from(*first),
            maximum: u64::from(*last),
            length: u64::from(last - first) + 1,
        }];
        for window in windows {
            let (item, kind, specific) = match window.kind {
                WindowKind::Io => (8, 1, 3),
                WindowKind::Memory32 => (7, 0, 1),
                WindowKind::Memory64Prefetchable => (0xa, 0, 7),
                other => panic!("{other:?}"),
            };
            expected.push(Resource::Space {
                item,
                kind,
                general: 0x0c,
                specific,
                minimum: window.range.base().0,
                maximum: window.range.end().0 - 1,
                length: window.range.length(),
            });
        }
        assert_eq!(device["_CRS"], Value::Resources(expected));
    }
    let config = found.remove("CFGS");
    assert!(found.is_empty(), "{found:?}");
    if wish.bridges.is_empty() {
        assert_eq!(config, None);
        return;
    }
    let config = config.unwrap();
    assert_eq!(config["_HID"], Value::Integer(eisa_id("PNP0C02")));
    let expected = wish.bridges.iter().map(|(first, last, _)| {
        let base = wish.ecam() + (u64::from(*first) << 20);
        let length = (u64::from(last - first) + 1) << 20;
        match wish.high_ecam {
            false => Resource::Fixed { base, length },
            true => Resource::Space {
                item: 0xa,
                kind: 0,
                general: 0x0d,
                specific: 1,
                minimum: base,
                maximum: base + length - 1,
                length,
            },
        }
    });
    assert_eq!(config["_CRS"], Value::Resources(expected.collect()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_partition_sees_exactly_itself(machine in model_machine(), wished in wish()) {
        let wish = choose(&machine, &wished.0, wished.1);
        let blob = capture_of(&machine.memory(), RSDP);
        let whole = Capture::parse(&blob).unwrap();
        let mut buffer = vec![0xee; 0x8000];
        let tables = wish.with(|view| view.write(&whole, &mut buffer)).unwrap();
        prop_assert_eq!(tables.rsdp, PhysAddr(PLACE));
        buffer.truncate(tables.range.length() as usize);

        // Memory that has these tables and nothing else: every pointer leads to one of them.
        let mut memory = Memory::default();
        memory.put(PLACE, buffer.clone());
        let blob = capture_of(&memory, PLACE);
        let small = Capture::parse(&blob).unwrap();
        prop_assert!(small.tables().all(|table| table.state == State::Sound), "{small:?}");
        let mut signatures: Vec<_> =
            small.tables().map(|table| table.signature.to_string()).collect();
        signatures.sort();
        let mut expected = vec!["APIC", "DSDT", "FACP", "RSDP", "XSDT"];
        if !wish.bridges.is_empty() {
            expected.push("MCFG");
        }
        if machine.has_srat {
            expected.push("SRAT");
        }
        if machine.has_slit {
            expected.push("SLIT");
        }
        expected.sort_unstable();
        prop_assert_eq!(signatures, expected);

        // Each table, byte for byte.
        prop_assert_eq!(body(&small, Signature::MADT), expected_madt(&machine, &wish));
        let ids: Vec<_> = small.madt().unwrap().unwrap().processors().map(|cpu| cpu.apic_id).collect();
        prop_assert_eq!(&ids, &wish.cpus);
        if !wish.bridges.is_empty() {
            let mcfg = wish.bridges.iter().map(|&(first, last, _)| (wish.ecam(), 0, first, last));
            let mcfg = build::mcfg(&mcfg.collect::<Vec<_>>());
            prop_assert_eq!(body(&small, Signature::MCFG), &mcfg[36..]);
        }
        let nodes = expected_nodes(&machine, &wish);
        if machine.has_srat {
            let srat = expected_srat(&machine, &wish, &nodes);
            prop_assert_eq!(body(&small, Signature::SRAT), srat);
        }
        if machine.has_slit {
            let mut by_number: Vec<_> = nodes.iter().map(|(&node, &new)| (new, node as usize)).collect();
            by_number.sort_unstable();
            let row = |from| by_number.iter().map(|&(_, to)| machine.distance(from, to)).collect();
            let rows: Vec<Vec<u8>> = by_number.iter().map(|&(_, from)| row(from)).collect();
            prop_assert_eq!(body(&small, Signature::SLIT), &build::slit(&rows)[36..]);
        }
        let dsdt = small.find(Signature::DSDT).unwrap();
        let address = small.tables().find(|t| t.signature == Signature::DSDT).unwrap().address;
        let mut fadt = vec![0; 276 - 36];
        let mut put = |at: usize, bytes: &[u8]| fadt[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
        // No VGA, no ASPM control, no CMOS clock.
        put(109, &0b11_0100_u16.to_le_bytes());
        let flags: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 19 | 1 << 20;
        put(112, &flags.to_le_bytes());
        put(116, &Bytes::new().raw(&[0, 8, 0, 1]).u64(0x1_5000_0008).0);
        put(128, &[0x5a]);
        put(131, &[5]);
        put(140, &address.0.to_le_bytes());
        prop_assert_eq!(body(&small, Signature::FADT), fadt);
        check_namespace(dsdt.body(), &wish);

        // Nothing of the rest, in any byte.
        for secret in &machine.secrets {
            let secret = secret.to_le_bytes();
            prop_assert!(!buffer.windows(6).any(|bytes| bytes == &secret[1..7]));
        }

        // The memory map.
        let map = wish.with(|view| view.memory_map::<64>(&tables)).unwrap();
        let mut edges: Vec<u64> = vec![0, PLACE, tables.range.end().0, 0x1_5000_0000, 0x1_5000_2000];
        edges.extend(wish.memory.iter().flat_map(|r| [r.base().0, r.end().0]));
        for edge in edges {
            for address in [edge.wrapping_sub(1), edge] {
                let address = PhysAddr(address);
                let reserved = tables.range.contains(address)
                    || wish.reserved.iter().any(|r| r.range.contains(address));
                let expected = if reserved {
                    Some(MemoryKind::Reserved)
                } else if wish.memory.iter().any(|r| r.contains(address)) {
                    Some(MemoryKind::Usable)
                } else {
                    None
                };
                prop_assert_eq!(map.kind_at(address), expected);
            }
        }
    }

    #[test]
    fn a_buffer_that_is_too_small_is_an_error_and_never_written_past(
        machine in model_machine(),
        wished in wish(),
        size in 0_usize..2048,
    ) {
        let wish = choose(&machine, &wished.0, wished.1);
        let blob = capture_of(&machine.memory(), RSDP);
        let whole = Capture::parse(&blob).unwrap();
        let needed = wish
            .with(|view| view.write(&whole, &mut vec![0; 0x8000]))
            .unwrap()
            .range
            .length() as usize;
        let result = wish.with(|view| view.write(&whole, &mut vec![0; size]));
        if size >= needed {
            prop_assert_eq!(result.unwrap().range.length() as usize, needed);
        } else {
            prop_assert_eq!(result, Err(PartitionError::Buffer { have: size }));
        }
    }
}

fn plain_machine() -> Machine {
    let cpu = |apic_id| ModelCpu {
        apic_id,
        uid: apic_id,
        x2apic: false,
        node: 0,
    };
    Machine {
        cpus: (0..4).map(cpu).collect(),
        domains: vec![0],
        has_srat: false,
        has_slit: false,
        nmi_for_all: true,
        nmi_each: false,
        override_address: false,
        secrets: (0..6)
            .map(|place| 0x00ab_cdef_0000_0040 + place * 0x1_0000)
            .collect(),
    }
}

fn plain_wish() -> Wish {
    Wish {
        cpus: vec![ApicId(2), ApicId(3)],
        memory: vec![range(0x1_0000_0000, 0x1_2000_0000)],
        reserved: vec![],
        bridges: vec![
            (
                3,
                3,
                vec![window(WindowKind::Memory32, 0xe000_0000, 0xe020_0000)],
            ),
            (5, 6, vec![window(WindowKind::Io, 0x1000, 0x2000)]),
        ],
        wakeup: false,
        high_ecam: false,
    }
}

/// Tables for partitions of plain machines, for other programs to judge. None has a wakeup mailbox:
/// compilers from before ACPI 6.4 do not know that entry.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let mut full = plain_machine();
    full.has_srat = true;
    full.has_slit = true;
    full.nmi_each = true;
    full.override_address = true;
    full.cpus.push(ModelCpu {
        apic_id: 0x1_0203,
        uid: 77,
        x2apic: true,
        node: 0,
    });
    let mut wide = plain_wish();
    wide.cpus.push(ApicId(0x1_0203));
    wide.high_ecam = true;
    wide.bridges[0].2 = vec![
        window(WindowKind::Io, 0, 0x1000),
        window(WindowKind::Memory32, 0xe000_0000, 0xe020_0000),
        window(
            WindowKind::Memory64Prefetchable,
            0x70_0000_0000,
            0x70_4000_0000,
        ),
        window(WindowKind::Memory64Prefetchable, 0xd000_0000, 0xd040_0000),
    ];
    wide.bridges[1].2 = vec![];
    let mut bare = plain_wish();
    bare.bridges.clear();
    [
        (plain_machine(), plain_wish()),
        (full.clone(), wide),
        (full, plain_wish()),
        (plain_machine(), bare),
    ]
    .map(|(machine, wish)| {
        let blob = capture_of(&machine.memory(), RSDP);
        let mut buffer = vec![0; 0x4000];
        let whole = Capture::parse(&blob).unwrap();
        let tables = wish.with(|view| view.write(&whole, &mut buffer)).unwrap();
        buffer.truncate(tables.range.length() as usize);
        buffer
    })
    .into()
}

/// The address of the samples' RSDP.
pub(crate) const SAMPLE_PLACE: u64 = PLACE;

fn refusal(change: impl FnOnce(&mut Wish)) -> PartitionError {
    let mut wish = plain_wish();
    change(&mut wish);
    let blob = capture_of(&plain_machine().memory(), RSDP);
    let whole = Capture::parse(&blob).unwrap();
    wish.with(|view| view.write(&whole, &mut vec![0; 0x4000]))
        .unwrap_err()
}

#[test]
fn a_view_that_contradicts_itself_or_the_machine_is_refused_by_name() {
    use PartitionError as E;
    assert_eq!(refusal(|w| w.cpus.clear()), E::NoCpu);
    assert_eq!(
        refusal(|w| w.cpus.push(ApicId(9))),
        E::UnknownCpu(ApicId(9))
    );
    assert_eq!(
        refusal(|w| w.cpus.push(ApicId(2))),
        E::DuplicateCpu(ApicId(2))
    );
    let second = range(0x1_1000_0000, 0x1_1000_1000);
    assert_eq!(
        refusal(|w| w.memory.push(second)),
        E::MemoryOverlap {
            first: range(0x1_0000_0000, 0x1_2000_0000),
            second
        }
    );
    assert_eq!(refusal(|w| w.bridges[0].1 = 2), E::Buses { bridge: 0 });
    assert_eq!(
        refusal(|w| w.bridges[0].1 = 5),
        E::BusOverlap {
            first: 0,
            second: 1
        }
    );
    for bad in [
        window(WindowKind::Io, 0x1000, 0x1000),
        window(WindowKind::Io, 0xf000, 0x1_0001),
        window(WindowKind::Memory32, 0xffff_0000, 0x1_0000_1000),
    ] {
        assert_eq!(
            refusal(|w| w.bridges[1].2.push(bad)),
            E::Window {
                bridge: 1,
                window: bad
            }
        );
    }
    for (kind, start, end, with) in [
        (WindowKind::Io, 0x1fff, 0x2001, range(0x1000, 0x2000)),
        (
            WindowKind::Memory32,
            0xe010_0000,
            0xe030_0000,
            range(0xe000_0000, 0xe020_0000),
        ),
        (
            WindowKind::Memory64Prefetchable,
            0x1_1fff_0000,
            0x1_3000_0000,
            range(0x1_0000_0000, 0x1_2000_0000),
        ),
        (
            WindowKind::Memory32,
            0xb050_0000,
            0xb058_0000,
            range(0xb050_0000, 0xb070_0000),
        ),
    ] {
        let bad = window(kind, start, end);
        assert_eq!(
            refusal(|w| w.bridges[1].2.push(bad)),
            E::WindowOverlap {
                bridge: 1,
                window: bad,
                with
            }
        );
    }
    // Ports and memory with the same numbers do not overlap.
    let blob = capture_of(&plain_machine().memory(), RSDP);
    let whole = Capture::parse(&blob).unwrap();
    let mut wish = plain_wish();
    wish.bridges[0]
        .2
        .push(window(WindowKind::Memory32, 0x1000, 0x2000));
    assert!(wish.with(|v| v.write(&whole, &mut vec![0; 0x4000])).is_ok());
    for (place, length) in [(PLACE + 8, 64), (u64::MAX - 0xf, 64)] {
        let result = plain_wish().with(|view| {
            let place = PhysAddr(place);
            PartitionView { place, ..*view }.write(&whole, &mut vec![0; length])
        });
        let place = PhysAddr(place);
        assert_eq!(result, Err(E::Place { place, length }));
    }
}

#[test]
fn nothing_of_what_was_in_the_buffer_gets_into_the_tables() {
    let blob = capture_of(&plain_machine().memory(), RSDP);
    let whole = Capture::parse(&blob).unwrap();
    let images = [0x00, 0xff].map(|fill| {
        let mut buffer = vec![fill; 0x4000];
        let tables = plain_wish().with(|view| view.write(&whole, &mut buffer));
        buffer.truncate(tables.unwrap().range.length() as usize);
        buffer
    });
    assert_eq!(images[0], images[1]);
}

#[test]
fn more_than_256_host_bridges_cannot_be_named() {
    let blob = capture_of(&plain_machine().memory(), RSDP);
    let whole = Capture::parse(&blob).unwrap();
    let bridge = |segment| HostBridge {
        segment,
        first_bus: 0,
        last_bus: 0,
        ecam: PhysAddr(0x80_0000_0000 + (u64::from(segment) << 28)),
        windows: &[],
    };
    let bridges: Vec<_> = (0..257).map(bridge).collect();
    let with = |count: usize| {
        plain_wish().with(|view| {
            let bridges = &bridges[..count];
            PartitionView { bridges, ..*view }.write(&whole, &mut vec![0; 0x2_0000])
        })
    };
    assert!(with(256).is_ok());
    assert_eq!(
        with(257),
        Err(PartitionError::TooManyBridges { limit: 256 })
    );
}

#[test]
fn a_machine_without_a_sound_madt_has_no_partitions() {
    let mut memory = plain_machine().memory();
    memory.0.get_mut(&0x7fd1_0000).unwrap()[40] ^= 1;
    let blob = capture_of(&memory, RSDP);
    let whole = Capture::parse(&blob).unwrap();
    assert_eq!(
        plain_wish().with(|view| view.write(&whole, &mut vec![0; 0x4000])),
        Err(PartitionError::NoMadt)
    );
}

/// The tables of a partition, as its kernel finds them.
fn written(memory: &Memory, wish: &Wish) -> Vec<u8> {
    let blob = capture_of(memory, RSDP);
    let whole = Capture::parse(&blob).unwrap();
    let mut buffer = vec![0; 0x4000];
    let tables = wish.with(|view| view.write(&whole, &mut buffer)).unwrap();
    buffer.truncate(tables.range.length() as usize);
    let mut small = Memory::default();
    small.put(PLACE, buffer);
    capture_of(&small, PLACE)
}

/// The same machine with this SRAT and SLIT.
fn with_affinities(srat: Vec<u8>, slit: Option<Vec<u8>>) -> Memory {
    let mut memory = plain_machine().memory();
    let xsdt = memory.0[&0x7fe0_0000][36..].to_vec();
    let mut pointers: Vec<u64> = xsdt
        .chunks(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    for (place, table) in [Some(srat), slit].into_iter().flatten().enumerate() {
        let at = 0x7ff0_0000 + 0x1_0000 * place as u64;
        pointers.push(at);
        memory.put(at, table);
    }
    memory.put(0x7fe0_0000, build::xsdt(&pointers));
    memory
}

#[test]
fn windows_reach_to_the_end_of_what_their_kind_can_address() {
    let mut wish = plain_wish();
    wish.bridges.truncate(1);
    wish.bridges[0].2 = vec![
        window(WindowKind::Io, 0, 0x1_0000),
        window(WindowKind::Memory32, 0xff00_0000, 0x1_0000_0000),
        // So low that the numbers of ports would do.
        window(WindowKind::Memory32, 0x8000, 0x9000),
    ];
    let blob = written(&plain_machine().memory(), &wish);
    let capture = Capture::parse(&blob).unwrap();
    let block = capture.find(Signature::DSDT).unwrap().body().to_vec();
    let bridge = &devices(&block)["PB00"];
    let Value::Resources(resources) = &bridge["_CRS"] else {
        panic!("resources")
    };
    let found: Vec<_> = resources[1..]
        .iter()
        .map(|resource| match *resource {
            Resource::Space {
                item,
                kind,
                minimum,
                maximum,
                length,
                ..
            } => (item, kind, minimum, maximum, length),
            ref other => panic!("{other:?}"),
        })
        .collect();
    // The length of all ports does not fit the descriptor of 16 bits.
    assert_eq!(
        found,
        [
            (7, 1, 0, 0xffff, 0x1_0000),
            (7, 0, 0xff00_0000, 0xffff_ffff, 0x100_0000),
            (7, 0, 0x8000, 0x8fff, 0x1000),
        ]
    );
}

#[test]
fn affinities_that_are_switched_off_or_somebody_elses_are_left_out() {
    let own = range(0x1_0000_0000, 0x1_2000_0000);
    let wish = plain_wish();
    let memory = |domain, flags| build::srat_memory(domain, own.base().0, own.length(), flags);
    let processors: Vec<_> = wish
        .cpus
        .iter()
        .map(|cpu| build::srat_apic(7, cpu.0 as u8, 1))
        .collect();
    let entries = [&processors[..], &[memory(9, 0), memory(7, 1)]].concat();
    let blob = written(&with_affinities(build::srat(3, &entries), None), &wish);
    let capture = Capture::parse(&blob).unwrap();
    let srat = capture.srat().unwrap().unwrap();
    let domains: Vec<_> = srat
        .entries()
        .map(|entry| match entry.unwrap() {
            Affinity::Processor { domain, .. } => domain,
            Affinity::Memory(affinity) => affinity.domain,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(domains, vec![0; wish.cpus.len() + 1]);
    assert!(capture.slit().is_none());
    // Of the processors only some have a place: the others have none in the smaller table either.
    let entries = [&processors[..1], &[memory(7, 1)]].concat();
    let blob = written(&with_affinities(build::srat(3, &entries), None), &wish);
    let capture = Capture::parse(&blob).unwrap();
    assert_eq!(capture.srat().unwrap().unwrap().entries().count(), 2);
    // Where none has one, there is no table.
    let blob = written(
        &with_affinities(build::srat(3, &[memory(7, 1)]), None),
        &wish,
    );
    assert!(Capture::parse(&blob).unwrap().srat().is_none());
}

#[test]
fn a_distance_that_the_table_has_not_is_that_of_a_neighbour() {
    let wish = plain_wish();
    let [first, second] = wish.cpus[..] else {
        panic!("two processors")
    };
    let srat = build::srat(
        3,
        &[
            build::srat_apic(0, first.0 as u8, 1),
            build::srat_apic(5, second.0 as u8, 1),
        ],
    );
    let slit = build::slit(&[vec![10, 31], vec![32, 10]]);
    let blob = written(&with_affinities(srat, Some(slit)), &wish);
    let capture = Capture::parse(&blob).unwrap();
    let slit = capture.slit().unwrap().unwrap();
    let distances = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(from, to)| slit.distance(from, to));
    assert_eq!(distances, [Some(10), Some(20), Some(20), Some(10)]);
}

#[test]
fn a_processor_keeps_the_kind_of_entry_that_firmware_gave_it() {
    let mut machine = plain_machine();
    let id = machine.cpus[1].apic_id;
    assert!(id < 0xff);
    machine.cpus[1].x2apic = true;
    machine.has_srat = true;
    let mut wish = plain_wish();
    wish.cpus = vec![ApicId(id)];
    let blob = written(&machine.memory(), &wish);
    let capture = Capture::parse(&blob).unwrap();
    let madt = capture.madt().unwrap().unwrap();
    let cpu = madt.processor(ApicId(id)).unwrap();
    assert!(cpu.x2apic);
    let srat = capture.srat().unwrap().unwrap();
    let entries: Vec<_> = srat.entries().flatten().collect();
    assert!(
        entries.iter().any(|entry| matches!(
            *entry,
            Affinity::Processor { apic_id, x2apic: true, .. } if apic_id == ApicId(id)
        )),
        "{entries:?}"
    );
}
