//! Decoded tables are written again by the tests' own writers: what comes out must mean the same,
//! and mostly is the same, byte for byte. So no field is read from the wrong place, and none is
//! dropped.

use acpi_capture::table::*;
use acpi_capture::{SmbiosStructure, SmbiosStructures, StructureError};
use handoff_abi::{DeviceScope, ScopeKind};

use crate::build::{self, Bytes};
use crate::build_small as small;
use crate::corpus::{Entry, corpus, say};
use crate::hostile;

/// The bodies of the table as it was and as it is written again, without what no field says.
struct Pair {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Pair {
    fn of(sdt: Sdt<'_>, after: Vec<u8>) -> Self {
        Self {
            before: sdt.body().to_vec(),
            after: Sdt::parse(&after).unwrap().body().to_vec(),
        }
    }
}

fn processor(uid: u32) -> u8 {
    u8::try_from(uid).unwrap()
}

fn madt_entry(entry: MadtEntry<'_>) -> Vec<u8> {
    match entry {
        MadtEntry::LocalApic(cpu) if cpu.x2apic => {
            build::local_x2apic(cpu.uid, cpu.apic_id.0, cpu.flags.bits())
        }
        MadtEntry::LocalApic(cpu) => {
            build::local_apic(processor(cpu.uid), cpu.apic_id.0 as u8, cpu.flags.bits())
        }
        MadtEntry::IoApic(io) => build::io_apic(io.id, io.address.0 as u32, io.interrupt_base),
        MadtEntry::SourceOverride(o) => {
            let mut bytes = build::source_override(o.source, o.interrupt, o.flags);
            bytes[2] = o.bus;
            bytes
        }
        MadtEntry::NmiSource(nmi) => build::nmi_source(nmi.flags, nmi.interrupt),
        MadtEntry::LocalApicNmi(nmi) => match (nmi.target, nmi.x2apic) {
            (NmiTarget::All, true) => build::local_x2apic_nmi(u32::MAX, nmi.flags, nmi.lint),
            (NmiTarget::All, false) => build::local_apic_nmi(0xff, nmi.flags, nmi.lint),
            (NmiTarget::Processor(uid), true) => build::local_x2apic_nmi(uid, nmi.flags, nmi.lint),
            (NmiTarget::Processor(uid), false) => {
                build::local_apic_nmi(processor(uid), nmi.flags, nmi.lint)
            }
        },
        MadtEntry::LocalApicOverride(address) => build::local_apic_override(address.0),
        MadtEntry::Wakeup(wakeup) => build::wakeup(wakeup.mailbox.0),
        MadtEntry::Foreign(_, raw) | MadtEntry::Unknown(raw) => raw.bytes.to_vec(),
        other => panic!("no writer for {other:?}"),
    }
}

fn madt(sdt: Sdt<'_>) -> Pair {
    let madt = Madt::from_sdt(sdt).unwrap();
    let entries: Vec<_> = madt.entries().flatten().map(madt_entry).collect();
    let mut before = sdt.body().to_vec();
    let (flags, address) = (madt.flags().bits(), madt.local_apic_32().0 as u32);
    let after = build::madt(address, flags, &entries);
    // Rubbish after the last entry that can be read.
    if let Some(Err(error)) = madt.entries().last() {
        let (EntryError::Stuck { offset, .. } | EntryError::Overrun { offset, .. }) = error else {
            panic!("{error}")
        };
        before.truncate(offset - 36);
    }
    Pair {
        before,
        after: after[36..].to_vec(),
    }
}

fn mcfg(sdt: Sdt<'_>) -> Pair {
    let allocations: Vec<_> = Mcfg::from_sdt(sdt)
        .unwrap()
        .allocations()
        .map(|a| (a.base.0, a.segment, a.first_bus, a.last_bus))
        .collect();
    let mut pair = Pair::of(sdt, build::mcfg(&allocations));
    pair.before.truncate(8 + 16 * allocations.len());
    pair
}

fn srat(sdt: Sdt<'_>) -> Pair {
    let wide = sdt.revision() >= 2;
    let mut entries = Vec::new();
    let mut end = sdt.bytes().len();
    for entry in Srat::from_sdt(sdt).unwrap().entries() {
        entries.push(match entry {
            Ok(Affinity::Processor {
                apic_id,
                domain,
                clock_domain,
                enabled,
                x2apic,
            }) => {
                let flags = u32::from(enabled);
                let (mut bytes, clock) = match x2apic {
                    true => (build::srat_x2apic(domain, apic_id.0, flags), 16),
                    false => (build::srat_apic(domain, apic_id.0 as u8, flags), 12),
                };
                bytes[clock..clock + 4].copy_from_slice(&clock_domain.to_le_bytes());
                bytes
            }
            Ok(Affinity::Memory(memory)) => build::srat_memory(
                memory.domain,
                memory.range.base().0,
                memory.range.length(),
                memory.flags.bits(),
            ),
            Ok(Affinity::Unknown(raw)) => raw.bytes.to_vec(),
            Err(EntryError::Stuck { offset, .. }) => {
                end = offset;
                continue;
            }
            other => panic!("{other:?}"),
        });
    }
    let after = build::srat(if wide { 3 } else { 1 }, &entries);
    let mut before = sdt.bytes()[36..end].to_vec();
    // Reserved fields, which real tables fill: the 1 of the fixed part, and what follows the
    // length of memory.
    before[..4].copy_from_slice(&[1, 0, 0, 0]);
    let mut at = 12;
    while at < before.len() {
        if before[at] == 1 {
            before[at + 24..at + 28].fill(0);
        }
        at += usize::from(before[at + 1]);
    }
    Pair {
        before,
        after: after[36..].to_vec(),
    }
}

fn slit(sdt: Sdt<'_>) -> Pair {
    let slit = Slit::from_sdt(sdt).unwrap();
    let size = slit.localities() as u32;
    let row = |from| (0..size).map(move |to| slit.distance(from, to).unwrap());
    let rows: Vec<Vec<u8>> = (0..size).map(|from| row(from).collect()).collect();
    let mut pair = Pair::of(sdt, build::slit(&rows));
    // One table has a row of rubbish more than its matrix.
    pair.before.truncate(pair.after.len());
    pair
}

fn hpet(sdt: Sdt<'_>) -> Pair {
    let hpet = Hpet::from_sdt(sdt).unwrap();
    let mut after = build::hpet(hpet.base.0, hpet.number);
    after[36..40].copy_from_slice(&hpet.block_id.to_le_bytes());
    after[53..55].copy_from_slice(&hpet.minimum_tick.to_le_bytes());
    let mut pair = Pair {
        before: sdt.body().to_vec(),
        after: after[36..].to_vec(),
    };
    // The rest of the register description, and the page protection, are not read.
    for body in [&mut pair.before, &mut pair.after] {
        body[4..8].fill(0);
        body[19] = 0;
    }
    pair
}

fn device_scope(scope: &DeviceScope) -> Vec<u8> {
    let kind = match scope.kind {
        ScopeKind::PciEndpoint => 1,
        ScopeKind::PciSubHierarchy => 2,
        ScopeKind::IoApic => 3,
        ScopeKind::MsiCapableHpet => 4,
        _ => 5,
    };
    let path: Vec<_> = scope
        .path()
        .iter()
        .map(|h| (h.device, h.function))
        .collect();
    build::scope(kind, scope.enumeration_id, scope.start_bus, &path)
}

fn dmar(sdt: Sdt<'_>) -> Pair {
    let dmar = Dmar::from_sdt(sdt).unwrap();
    let mut before = sdt.body().to_vec();
    let scopes = |scopes: Scopes<'_>| -> Vec<Vec<u8>> {
        scopes.map(|scope| device_scope(&scope.unwrap())).collect()
    };
    let mut structures = Vec::new();
    let mut at = 48;
    for structure in dmar.structures() {
        let (bytes, fixed) = match structure.unwrap() {
            DmarStructure::Unit(unit) => {
                let about = unit.description;
                let pages = about.registers.length() / 4096;
                let mut bytes = build::drhd(
                    about.include_all,
                    about.segment,
                    about.registers.base().0,
                    &scopes(unit.scopes()),
                );
                bytes[5] = pages.trailing_zeros() as u8;
                (bytes, 16)
            }
            DmarStructure::ReservedMemory(r) => (
                build::rmrr(r.segment, r.base.0, r.limit.0, &scopes(r.scopes())),
                24,
            ),
            DmarStructure::RootPortAts(ats) => {
                let fixed = [u8::from(ats.all_ports), 0, ats.segment as u8, 0];
                (build::structure(2, &fixed, &scopes(ats.scopes())), 8)
            }
            DmarStructure::StaticAffinity(near) => {
                let fixed = Bytes::new().u32(0).u64(near.registers.0).u32(near.domain);
                (build::structure(3, &fixed.0, &[]), 20)
            }
            DmarStructure::NamespaceDevice(device) => {
                let fixed = Bytes::new().raw(&[0, 0, 0, device.number]).raw(device.name);
                let mut bytes = build::structure(4, &fixed.0, &[]);
                // Padding after the name.
                let length = u16::from_le_bytes(before[at - 36 + 2..][..2].try_into().unwrap());
                bytes.resize(usize::from(length), 0);
                bytes[2..4].copy_from_slice(&length.to_le_bytes());
                let fixed = usize::from(length);
                (bytes, fixed)
            }
            DmarStructure::TranslationCache(cache) => {
                let fixed = [u8::from(cache.atc_required), 0, cache.segment as u8, 0];
                (build::structure(5, &fixed, &scopes(cache.scopes())), 8)
            }
            DmarStructure::DeviceProperties(about) => {
                let fixed = [0, 0, about.segment as u8, 0];
                (build::structure(6, &fixed, &scopes(about.scopes())), 8)
            }
            other => panic!("{other:?}"),
        };
        // Two bytes of each scope are not read: reserved, or properties of the device.
        let mut scope = at - 36 + fixed;
        let end = at - 36 + bytes.len();
        while scope < end {
            before[scope + 2..scope + 4].fill(0);
            // Real tables have an enumeration id for PCI functions, which means nothing.
            if before[scope] < 3 {
                before[scope + 4] = 0;
            }
            scope += usize::from(before[scope + 1]);
        }
        at += bytes.len();
        structures.push(bytes);
    }
    let width = dmar.host_address_width() as u8;
    let after = build::dmar(width, dmar.flags().bits(), &structures);
    Pair {
        before,
        after: after[36..].to_vec(),
    }
}

fn ivhd_device(device: IvhdDevice<'_>) -> Vec<u8> {
    match device {
        IvhdDevice::All(settings) => build::device(1, 0, settings.bits()),
        IvhdDevice::Span(span) => {
            let last = (span.last != span.first).then_some(span.last.0);
            match (span.alias, last) {
                (Some(alias), last) => build::device_alias(span.first.0, last, alias.0),
                (None, Some(last)) => build::device_range(span.first.0, last, span.settings.bits()),
                (None, None) => build::device(2, span.first.0, span.settings.bits()),
            }
        }
        IvhdDevice::Special(special) => {
            let (variety, handle) = match special.kind {
                SpecialKind::IoApic(handle) => (1, handle),
                SpecialKind::Hpet(handle) => (2, handle),
                other => panic!("{other:?}"),
            };
            build::special(
                variety,
                handle,
                special.requester.0,
                special.settings.bits(),
            )
        }
        IvhdDevice::Acpi(device) => {
            let integer;
            let (format, uid) = match device.uid {
                AcpiUid::None => (0, &b""[..]),
                AcpiUid::Integer(number) => {
                    integer = number.to_le_bytes();
                    (1, &integer[..])
                }
                AcpiUid::Text(text) => (2, text),
                AcpiUid::Other { format, bytes } => (format, bytes),
                other => panic!("{other:?}"),
            };
            let mut bytes =
                build::acpi_device(device.requester.0, &device.hardware_id, format, uid);
            bytes[3] = device.settings.bits();
            bytes[12..20].copy_from_slice(&device.compatible_id);
            bytes
        }
        other => panic!("{other:?}"),
    }
}

fn ivrs(sdt: Sdt<'_>) -> Pair {
    let ivrs = Ivrs::from_sdt(sdt).unwrap();
    let mut before = Bytes::new().u32(ivrs.information()).u64(0).0;
    let mut after = before.clone();
    for block in ivrs.blocks() {
        match block.unwrap() {
            IvrsBlock::Unit(unit) => {
                let devices: Vec<_> = unit.devices().map(|d| ivhd_device(d.unwrap())).collect();
                let about = unit.description;
                let base = about.registers.base().0;
                let (id, kind) = (unit.requester.0, unit.block);
                let mut bytes = build::ivhd(kind, about.segment, id, base, &devices);
                bytes[1] = unit.flags.bits();
                bytes[6..8].copy_from_slice(&unit.capability.to_le_bytes());
                bytes[18..20].copy_from_slice(&unit.information.to_le_bytes());
                bytes[20..24].copy_from_slice(&unit.attributes.to_le_bytes());
                if let Some(features) = unit.features {
                    bytes[24..32].copy_from_slice(&features.to_le_bytes());
                    bytes[32..40].copy_from_slice(&unit.features2.unwrap_or(0).to_le_bytes());
                }
                after.extend_from_slice(&bytes);
                // The block as it was, without padding.
                let end = unit.offset + {
                    let length = &sdt.bytes()[unit.offset + 2..unit.offset + 4];
                    usize::from(u16::from_le_bytes(length.try_into().unwrap()))
                };
                let mut at = unit.offset + if kind == 0x10 { 24 } else { 40 };
                let mut plain = sdt.bytes()[unit.offset..at].to_vec();
                if kind == 0x11 {
                    plain[32..40].fill(0);
                }
                while at < end {
                    let length = match sdt.bytes()[at] {
                        0xf0 => 22 + usize::from(sdt.bytes()[at + 21]),
                        kind => 4 << (kind >> 6),
                    };
                    if sdt.bytes()[at] & !0x40 != 0 {
                        plain.extend_from_slice(&sdt.bytes()[at..at + length]);
                    }
                    at += length;
                }
                let length = plain.len() as u16;
                plain[2..4].copy_from_slice(&length.to_le_bytes());
                before.extend_from_slice(&plain);
            }
            IvrsBlock::Memory(memory) => {
                let (kind, ids) = match memory.target {
                    IvmdTarget::All => (0x20, (0, 0)),
                    IvmdTarget::One(one) => (0x21, (one.0, 0)),
                    IvmdTarget::Range(first, last) => (0x22, (first.0, last.0)),
                };
                let (base, length) = (memory.base.0, memory.length);
                let bytes = build::ivmd(kind, memory.flags.bits(), ids, base, length);
                after.extend_from_slice(&bytes);
                before.extend_from_slice(&sdt.bytes()[memory.offset..memory.offset + 32]);
            }
            IvrsBlock::Unknown(raw) => {
                after.extend_from_slice(raw.bytes);
                before.extend_from_slice(raw.bytes);
            }
            other => panic!("{other:?}"),
        }
    }
    Pair { before, after }
}

fn bgrt(sdt: Sdt<'_>) -> Pair {
    let picture = Bgrt::from_sdt(sdt).unwrap();
    let status = u8::from(picture.displayed) | (picture.turned / 90 * 2) as u8;
    let mut after = small::bgrt(status, picture.image.0)[36..].to_vec();
    after[..2].copy_from_slice(&picture.version.to_le_bytes());
    after[3] = picture.image_type;
    after[12..16].copy_from_slice(&picture.offset_x.to_le_bytes());
    after[16..20].copy_from_slice(&picture.offset_y.to_le_bytes());
    let mut before = sdt.body().to_vec();
    // Bits that are reserved.
    before[2] &= 7;
    Pair { before, after }
}

fn tpm2(sdt: Sdt<'_>) -> Pair {
    let tpm = Tpm2::from_sdt(sdt).unwrap();
    let log = tpm.log.map(|log| (log.length() as u32, log.base().0));
    let mut after = small::tpm2(tpm.start_method, log)[36..].to_vec();
    after[..2].copy_from_slice(&tpm.platform_class.to_le_bytes());
    after[4..12].copy_from_slice(&tpm.control_area.0.to_le_bytes());
    let mut before = sdt.body().to_vec();
    before[2..4].fill(0);
    if before.len() > after.len() {
        before.truncate(after.len());
    }
    if before.len() > 28 {
        // Parameters of the start method.
        before[16..28].fill(0);
    }
    Pair { before, after }
}

fn ecdt(sdt: Sdt<'_>) -> Pair {
    let controller = Ecdt::from_sdt(sdt).unwrap();
    let gas = |register: GenericAddress| {
        let head = [
            register.space,
            register.bit_width,
            register.bit_offset,
            register.access_size,
        ];
        Bytes::new().raw(&head).u64(register.address).0
    };
    let after = Bytes::new()
        .raw(&gas(controller.control))
        .raw(&gas(controller.data))
        .u32(controller.uid)
        .u8(controller.gpe_bit)
        .raw(controller.path)
        .0;
    let mut before = sdt.body().to_vec();
    before.truncate(after.len());
    Pair { before, after }
}

/// The structures of an SMBIOS table, written again.
fn smbios(bytes: &[u8]) -> (Vec<u8>, usize) {
    let mut structures = SmbiosStructures::new(bytes);
    let mut after = Vec::new();
    for structure in structures.by_ref() {
        let structure = match structure {
            Ok(structure) => structure,
            Err(StructureError::Stray { count, .. }) => {
                after.resize(after.len() + count, 0);
                continue;
            }
            Err(_) => break,
        };
        let strings: Vec<_> = structure.strings().map(<[u8]>::to_vec).collect();
        assert_eq!(structure.string(0), None);
        assert_eq!(structure.string(strings.len() as u8 + 1), None);
        let mut bytes = structure.formatted.to_vec();
        assert_eq!(bytes[0], structure.kind);
        assert_eq!(bytes[2..4], structure.handle.to_le_bytes());
        for (number, string) in strings.iter().enumerate() {
            assert_eq!(structure.string(number as u8 + 1), Some(&string[..]));
            bytes.extend_from_slice(string);
            bytes.push(0);
        }
        bytes.resize(bytes.len() + if strings.is_empty() { 2 } else { 1 }, 0);
        after.extend_from_slice(&bytes);
        if structure.kind == SmbiosStructure::END_OF_TABLE {
            break;
        }
    }
    (after, structures.offset())
}

type Writer = fn(Sdt<'_>) -> Pair;

const WRITERS: [(&[u8; 4], Writer); 10] = [
    (b"APIC", madt),
    (b"MCFG", mcfg),
    (b"SRAT", srat),
    (b"SLIT", slit),
    (b"HPET", hpet),
    (b"DMAR", dmar),
    (b"IVRS", ivrs),
    (b"BGRT", bgrt),
    (b"TPM2", tpm2),
    (b"ECDT", ecdt),
];

fn writer_of(bytes: &[u8]) -> Option<Writer> {
    let found = WRITERS
        .iter()
        .find(|(name, _)| bytes.starts_with(&name[..]));
    found.map(|&(_, writer)| writer)
}

#[test]
fn own_tables_come_out_as_they_went_in() {
    let mut checked = 0;
    for table in hostile::tables() {
        let Some(writer) = writer_of(&table) else {
            continue;
        };
        // The sample has a name that goes on after its end.
        if table.starts_with(b"DMAR") {
            continue;
        }
        let pair = writer(Sdt::parse(&table).unwrap());
        assert_eq!(pair.before, pair.after, "{:?}", &table[..4]);
        checked += 1;
    }
    assert!(checked >= 9, "{checked}");
}

#[test]
fn every_well_formed_table_of_the_corpus_comes_out_as_it_went_in() {
    let Some(corpus) = corpus() else { return };
    let mut checked = std::collections::BTreeMap::new();
    let mut differ = Vec::new();
    for entry in corpus {
        let Some(writer) = writer_of(&entry.bytes) else {
            continue;
        };
        let Ok(sdt) = Sdt::parse(&entry.bytes) else {
            continue;
        };
        let pair = writer(sdt);
        if pair.before != pair.after {
            differ.push(&entry.name);
        }
        *checked.entry(sdt.signature().to_string()).or_insert(0) += 1;
    }
    say(&format!(
        "corpus: written again {checked:?}, {differ:?} differ"
    ));
    assert!(differ.is_empty(), "{differ:?}");
    assert!(checked.len() == WRITERS.len() && checked.values().sum::<i32>() > 2000);
}

#[test]
fn every_smbios_table_of_the_corpus_comes_out_as_it_went_in() {
    let Some(corpus) = corpus() else { return };
    let tables = |entry: &'static Entry| match entry.kind.as_str() {
        "smbios-table" => Some(&entry.bytes[..]),
        "smbios-dump" => Some(&entry.bytes[32..]),
        _ => None,
    };
    let mut checked = 0;
    for (name, table) in corpus.iter().filter_map(|e| Some((&e.name, tables(e)?))) {
        let (after, read) = smbios(table);
        assert_eq!(after, table[..read], "{name}");
        checked += 1;
    }
    say(&format!("corpus: {checked} SMBIOS tables written again"));
    assert!(checked > 70);
}
