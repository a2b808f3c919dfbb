//! Own tables that reproduce, one by one, what is odd in the tables of real machines, and what is
//! read from each, kept as text beside this file. `BATON_SNAPSHOTS=write` writes the text anew; the
//! difference is then to be read like any other change.

use std::fmt::Write;
use std::path::Path;

use acpi_capture::memory::{E820Entries, MemoryMap, UefiDescriptors};
use acpi_capture::table::*;
use acpi_capture::{SmbiosEntry, SmbiosStructures};
use handoff_abi::{PciFunction, RequesterId};

use crate::build::{self, BRIDGE, Bytes, ENDPOINT, HPET, IO_APIC, fix_sum};
use crate::build_small as small;
use crate::dmar::Topology;

fn function(number: u16) -> PciFunction {
    PciFunction {
        segment: 0,
        requester: RequesterId(number),
    }
}

/// Everything the views give of one table, as text.
fn describe(bytes: &[u8]) -> String {
    let mut text = String::new();
    let out = &mut text;
    let sdt = match Sdt::parse_any_sum(bytes) {
        Ok(sdt) => sdt,
        Err(error) => return format!("refused: {error}\n"),
    };
    writeln!(
        out,
        "{} revision {}, {} bytes, OEM \"{}\" \"{}\", sum {:#04x}",
        sdt.signature(),
        sdt.revision(),
        sdt.bytes().len(),
        sdt.oem_id().escape_ascii(),
        sdt.oem_table_id().escape_ascii(),
        checksum(sdt.bytes()),
    )
    .unwrap();
    if let Err(error) = describe_table(sdt, out) {
        writeln!(out, "refused: {error}").unwrap();
    }
    text
}

fn lines<T: std::fmt::Debug, E: std::fmt::Display>(
    out: &mut String,
    items: impl Iterator<Item = Result<T, E>>,
) {
    for item in items {
        match item {
            Ok(item) => writeln!(out, "  {item:?}").unwrap(),
            Err(error) => writeln!(out, "  unreadable: {error}").unwrap(),
        }
    }
}

fn describe_table(sdt: Sdt<'_>, out: &mut String) -> Result<(), TableError> {
    match sdt.signature() {
        Signature::MADT => {
            let madt = Madt::from_sdt(sdt)?;
            lines(out, madt.entries());
            let ids: Vec<_> = madt.processors().map(|cpu| cpu.apic_id.0).collect();
            writeln!(
                out,
                "processors {ids:?}, local APICs at {}",
                madt.local_apic()
            )
            .unwrap();
        }
        Signature::SRAT => lines(out, Srat::from_sdt(sdt)?.entries()),
        Signature::HMAT => lines(out, Hmat::from_sdt(sdt)?.structures()),
        Signature::SLIT => {
            let slit = Slit::from_sdt(sdt)?;
            for from in 0..slit.localities() as u32 {
                let row = (0..slit.localities() as u32).map(|to| slit.distance(from, to));
                writeln!(out, "  {:?}", row.flatten().collect::<Vec<_>>()).unwrap();
            }
        }
        Signature::MCFG => {
            for allocation in Mcfg::from_sdt(sdt)?.allocations() {
                writeln!(out, "  {allocation:?}: {:?}", allocation.memory()).unwrap();
            }
        }
        Signature::HPET => writeln!(out, "  {:?}", Hpet::from_sdt(sdt)?).unwrap(),
        Signature::FADT => {
            let fadt = Fadt::from_sdt(sdt)?;
            writeln!(
                out,
                "  FACS {} {} taken {}, DSDT {} {} taken {}, reset {:?}",
                fadt.facs_32(),
                fadt.facs_64(),
                fadt.facs(),
                fadt.dsdt_32(),
                fadt.dsdt_64(),
                fadt.dsdt(),
                fadt.reset()
            )
            .unwrap();
        }
        Signature::DMAR => describe_dmar(Dmar::from_sdt(sdt)?, out),
        Signature::IVRS => describe_ivrs(Ivrs::from_sdt(sdt)?, out),
        Signature::SPCR => writeln!(out, "  {:?}", Spcr::from_sdt(sdt)?).unwrap(),
        Signature::DBG2 => lines(out, Dbg2::from_sdt(sdt)?.ports()),
        Signature::BGRT => writeln!(out, "  {:?}", Bgrt::from_sdt(sdt)?).unwrap(),
        Signature::TPM2 => writeln!(out, "  {:?}", Tpm2::from_sdt(sdt)?).unwrap(),
        Signature::WAET => writeln!(out, "  {:?}", Waet::from_sdt(sdt)?).unwrap(),
        Signature::ECDT => writeln!(out, "  {:?}", Ecdt::from_sdt(sdt)?).unwrap(),
        _ => {}
    }
    Ok(())
}

fn describe_dmar(dmar: Dmar<'_>, out: &mut String) {
    for structure in dmar.structures() {
        let (name, scopes) = match &structure {
            Ok(DmarStructure::Unit(unit)) => {
                let about = unit.description;
                let (segment, registers, all) = (about.segment, about.registers, about.include_all);
                let text = format!("unit segment {segment} at {registers} include-all {all}");
                (text, Some(unit.scopes()))
            }
            Ok(DmarStructure::ReservedMemory(r)) => (
                format!("memory {} to {}: {:?}", r.base, r.limit, r.region()),
                Some(r.scopes()),
            ),
            Ok(DmarStructure::DeviceProperties(p)) => (
                format!("properties, segment {}", p.segment),
                Some(p.scopes()),
            ),
            Ok(other) => (format!("{other:?}"), None),
            Err(error) => (format!("unreadable: {error}"), None),
        };
        writeln!(out, "  {name}").unwrap();
        for scope in scopes.into_iter().flatten() {
            match scope {
                Ok(scope) => writeln!(
                    out,
                    "    {:?} id {} bus {} {:?}",
                    scope.kind,
                    scope.enumeration_id,
                    scope.start_bus,
                    scope.path()
                ),
                Err(error) => writeln!(out, "    unreadable: {error}"),
            }
            .unwrap();
        }
    }
    dmar.findings(|finding| writeln!(out, "odd: {finding}").unwrap());
    let topology = Topology::default();
    for number in [0x0010, 0x00a0, 0x0100] {
        let found = match dmar.unit_for(function(number), &topology) {
            UnitMatch::Covered(found) => format!("unit {} via {:?}", found.index, found.via),
            UnitMatch::Uncovered(why) => format!("uncovered: {why}"),
        };
        writeln!(out, "{}: {found}", RequesterId(number)).unwrap();
    }
}

fn describe_ivrs(ivrs: Ivrs<'_>, out: &mut String) {
    for unit in ivrs.units() {
        writeln!(
            out,
            "  unit {} by the block of type {:#x} at {:#x}: segment {} at {}",
            unit.requester,
            unit.block,
            unit.offset,
            unit.description.segment,
            unit.description.registers
        )
        .unwrap();
        for device in unit.devices() {
            match device {
                Ok(device) => writeln!(out, "    {device:?}").unwrap(),
                Err(error) => writeln!(out, "    unreadable: {error}").unwrap(),
            }
        }
    }
    for memory in ivrs.memory() {
        writeln!(
            out,
            "  memory {:?}: {:?}",
            memory.target,
            memory.unity_map()
        )
        .unwrap();
    }
    let madt = build::madt(0xfee0_0000, 1, &[build::io_apic(0x21, 0xfec0_0000, 0)]);
    let madt = Madt::parse(&madt).unwrap();
    ivrs.findings(Some(&madt), |finding| {
        writeln!(out, "odd: {finding}").unwrap()
    });
    for number in [0x0002, 0x0010, 0x00a0, 0xff08] {
        let found = match ivrs.unit_for(function(number)) {
            IvrsMatch::Covered(found) => format!(
                "unit {} as {} {:?}",
                found.index, found.arrives_as, found.settings
            ),
            IvrsMatch::Uncovered(why) => format!("uncovered: {why}"),
        };
        writeln!(out, "{}: {found}", RequesterId(number)).unwrap();
    }
}

/// The same table, damaged under a right checksum.
fn patched(mut table: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    table[at..at + bytes.len()].copy_from_slice(bytes);
    fix_sum(&mut table, 9);
    table
}

/// DMAR tables.
fn dmar_oddities() -> Vec<(&'static str, Vec<u8>)> {
    use build::{dmar, drhd, rmrr, scope, structure};
    let endpoint = || scope(ENDPOINT, 0, 0, &[(2, 0)]);
    let io_apic = |id| scope(IO_APIC, id, 0xf0, &[(31, 0)]);
    let graphics = || drhd(false, 0, 0xfed9_0000, &[endpoint()]);
    let rest = || drhd(true, 0, 0xfed9_1000, &[io_apic(8)]);
    let hpets: Vec<_> = (0..8).map(|n| scope(HPET, 0, 0xf0, &[(15, n)])).collect();
    vec![
        (
            "every unit twice and two that cover the rest",
            dmar(
                39,
                1,
                &[
                    graphics(),
                    rest(),
                    graphics(),
                    rest(),
                    drhd(true, 0, 0xfed9_2000, &[]),
                ],
            ),
        ),
        (
            "registers at zero",
            dmar(39, 1, &[drhd(false, 0, 0, &[endpoint()]), rest()]),
        ),
        (
            "reserved memory of every strange size",
            dmar(
                39,
                1,
                &[
                    rest(),
                    rmrr(0, 0, 0, &[endpoint()]),
                    rmrr(0, 0, 0xfff, &[endpoint()]),
                    rmrr(0, 0x7d00_0000, 0x7cff_ffff, &[endpoint()]),
                    rmrr(0, 0x4000_0000, 0x7fff_ffff, &[endpoint()]),
                    rmrr(0, 0x8000, 0x1000, &[endpoint()]),
                    rmrr(0, 0x1234, u64::MAX, &[endpoint()]),
                ],
            ),
        ),
        (
            "an I/O APIC that is not the MADT's",
            dmar(39, 1, &[drhd(true, 0, 0xfed9_1000, &[io_apic(0xc8)])]),
        ),
        (
            "no scope at all",
            dmar(36, 0, &[drhd(true, 0, 0xfed9_0000, &[])]),
        ),
        (
            "eight scopes of one HPET",
            dmar(39, 1, &[drhd(true, 0, 0xfed9_0000, &hpets)]),
        ),
        (
            "translation caches, properties and scope flags",
            dmar(
                46,
                5,
                &[
                    rest(),
                    structure(5, &[1, 0, 0, 0], &[endpoint()]),
                    structure(6, &[0, 0, 0, 0], &[vec![1, 8, 0x51, 0, 0, 0, 2, 0]]),
                    structure(4, b"\0\0\0\x01\\_SB.PCI0.I2C0\0\0", &[]),
                    structure(7, &[0; 12], &[]),
                ],
            ),
        ),
        (
            "lengths that make no sense",
            patched(
                dmar(
                    39,
                    1,
                    &[
                        drhd(false, 0, 0xfed9_0000, &[vec![1, 7, 0, 0, 0, 0, 2]]),
                        rest(),
                        graphics(),
                    ],
                ),
                48 + 23 + 24 + 2,
                &[0, 0],
            ),
        ),
        (
            "a path of three hops below a bridge",
            dmar(
                46,
                1,
                &[drhd(
                    false,
                    0,
                    0xfed9_0000,
                    &[
                        scope(ENDPOINT, 0, 0, &[(0x1c, 4), (0, 0), (4, 0)]),
                        scope(BRIDGE, 0, 0, &[(3, 0)]),
                    ],
                )],
            ),
        ),
    ]
}

/// IVRS tables.
fn ivrs_oddities() -> Vec<(&'static str, Vec<u8>)> {
    use build::{acpi_device, device, device_alias, device_range, ivhd, ivmd, ivrs, special};
    let base = 0xfd50_0000;
    let devices = |sources: &[Vec<u8>]| {
        let mut devices = vec![
            device_range(0x0008, 0xfffe, 0),
            device_alias(0xff00, Some(0xffff), 0x00a5),
            device(0, 0, 0),
        ];
        devices.extend_from_slice(sources);
        devices
    };
    let io_apic = || special(1, 0x21, 0x00a0, 0xd7);
    let mut newest = devices(&[special(2, 0, 0x00a0, 0), io_apic()]);
    let older = newest.clone();
    newest.push(acpi_device(0x00a5, b"AMDI0020", 2, b"\\_SB.FUR0"));
    let unit = |devices: &[Vec<u8>]| ivhd(0x10, 0, 2, base, devices);
    vec![
        (
            "one unit as 10h, 11h and 40h",
            ivrs(&[
                unit(&older),
                ivhd(0x11, 0, 2, base, &older),
                ivhd(0x40, 0, 2, base, &newest),
            ]),
        ),
        (
            "a block of type 51h and memory of one byte",
            ivrs(&[
                unit(&older),
                ivmd(0x21, 8, (0x20, 0), 0x3477_2000, 0x28_0000),
                ivmd(0x51, 8, (0x20, 0), 0x3477_2000, 0x28_0000),
                ivmd(0x22, 8, (0, 0xfff), 0x97b9_7000, 1),
                ivmd(0x22, 8, (0xfff, 0), 0x9618_e123, 1),
            ]),
        ),
        ("no I/O APIC", ivrs(&[unit(&devices(&[]))])),
        (
            "an I/O APIC twice and one that is not the MADT's",
            ivrs(&[unit(&devices(&[
                io_apic(),
                special(1, 0x21, 0x00a1, 0),
                special(1, 0x80, 1, 0),
            ]))]),
        ),
        (
            "a block that leaves the next one unaligned",
            ivrs(&[
                unit(&devices(&[io_apic(), vec![0; 3]])),
                ivhd(0x10, 0, 0x4002, base + 0x4000, &[device(2, 0x4008, 0)]),
            ]),
        ),
        (
            "a unique id longer than its block",
            ivrs(&[
                unit(&older),
                ivhd(
                    0x40,
                    0,
                    2,
                    base,
                    &[device_range(8, 0xffff, 0), vec![0xf0, 0x10, 0, 0, 0x41]],
                ),
            ]),
        ),
        (
            "only a block with an unreadable entry",
            ivrs(&[ivhd(
                0x40,
                0,
                2,
                base,
                &[device_range(8, 0xffff, 0), device(3, 0x10, 0)],
            )]),
        ),
    ]
}

/// All other ACPI tables.
fn other_oddities() -> Vec<(&'static str, Vec<u8>)> {
    use build::*;
    let disabled: Vec<_> = (1..6).map(|uid| local_apic(uid, 0xff, 0)).collect();
    let garbage = [local_apic(0, 0, 1), vec![0x43, 0, 0x12, 0x99, 0xa0]];
    vec![
        (
            "disabled processors with one id",
            madt(
                0xfee0_0000,
                1,
                &[vec![local_apic(0, 0, 1)], disabled].concat(),
            ),
        ),
        (
            "x2APIC entries with ids below 255",
            madt(
                0xfee0_0000,
                1,
                &[local_x2apic(0, 0, 1), local_x2apic(1, 2, 1)],
            ),
        ),
        (
            "entries of types 7Fh and FFh",
            madt(
                0xfee0_0000,
                1,
                &[
                    vec![0x7f, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                    vec![0xff, 4, 1, 2],
                    local_apic(0, 0, 1),
                ],
            ),
        ),
        (
            "garbage after a valid start",
            madt(0xfee0_0000, 1, &garbage),
        ),
        (
            "a hole of zeros in a SRAT",
            srat(3, &[srat_apic(0, 0, 1), vec![0; 16], srat_apic(1, 1, 1)]),
        ),
        (
            "a SLIT of one domain and 108 bytes",
            sdt(b"SLIT", 1, &Bytes::new().u64(1).u8(10).raw(&[0; 63]).0),
        ),
        ("a FADT of revision 6 and 116 bytes", {
            let mut table = fadt((0x1000, 0x2000), (0x3000, 0x4000));
            table.truncate(116);
            patched(table, 4, &116_u32.to_le_bytes())
        }),
        (
            "FACS and X_FACS that differ",
            fadt((0x1000, 0x2000), (0x3000, 0x3000)),
        ),
        ("a vendor's table with a bad sum", {
            let mut table = sdt(b"OEMB", 1, &[1, 2, 3]);
            table[9] ^= 0x55;
            table
        }),
        (
            "an OEM id of zeros and unprintable bytes",
            small::renamed(waet_table(), b"\0\0\0\0\0\0", b"A M \xff\x01\0\0"),
        ),
        (
            "a table that is shorter than its header",
            sdt(b"HPET", 1, &[])[..20].to_vec(),
        ),
        ("an HPET that ends early", sdt(b"HPET", 1, &[0; 19])),
        ("memory near and far", small::hmat_sample()),
        ("a console", small::spcr(4, b"\\_SB.UAR1")),
        (
            "two debug ports",
            small::dbg2(&[
                (0x8000, 0, b"\\_SB.UAR1", &[(0x3f8, 8)]),
                (0x8003, 0x8086, b".", &[]),
            ]),
        ),
        ("a picture", small::bgrt(1, 0x7000_0000)),
        ("a TPM without a log", small::tpm2(6, None)),
        (
            "a TPM with a log",
            small::tpm2(7, Some((0x1_0000, 0x7100_0000))),
        ),
        (
            "an embedded controller",
            small::ecdt(0x66, 0x62, b"\\_SB.PCI0.LPCB.EC0"),
        ),
        (
            "segments of configuration space",
            mcfg(&[(0xe000_0000, 0, 0, 255), (0x1, 1, 9, 3)]),
        ),
    ]
}

fn waet_table() -> Vec<u8> {
    small::waet(3)
}

/// SMBIOS tables and memory maps, which have no common header.
fn headless() -> Vec<(&'static str, String)> {
    use build::{smbios_entry_32, smbios_entry_64, smbios_structure};
    let end = smbios_structure(127, 9, &[], &[]);
    let board = smbios_structure(2, 2, &[1, 2, 9], &["maker", "board"]);
    let structures = |bytes: &[u8]| {
        let mut text = String::new();
        for structure in SmbiosStructures::new(bytes) {
            match structure {
                Ok(s) => {
                    let strings: Vec<_> =
                        s.strings().map(|t| t.escape_ascii().to_string()).collect();
                    let third = s.string(9).map(<[u8]>::len);
                    writeln!(
                        text,
                        "  type {} handle {} {} bytes {strings:?}, string 9: {third:?}",
                        s.kind,
                        s.handle,
                        s.formatted.len()
                    )
                }
                Err(error) => writeln!(text, "  unreadable: {error}"),
            }
            .unwrap();
        }
        text
    };
    let descriptors = |entries: &[(u32, u64, u64, u64)], size: usize| {
        let mut bytes = Vec::new();
        for &(kind, base, pages, attribute) in entries {
            let start = bytes.len();
            let head = Bytes::new().u32(kind).u32(0).u64(base).u64(0);
            bytes.extend_from_slice(&head.u64(pages).u64(attribute).0);
            bytes.resize(start + size, 0);
        }
        let regions = UefiDescriptors::parse(&bytes, size).unwrap();
        format!("{:#?}\n", MemoryMap::<64>::from_regions(regions).unwrap())
    };
    let e820 = |entries: &[(u64, u64, u32)]| {
        let bytes = entries
            .iter()
            .fold(Bytes::new(), |bytes, &(base, length, kind)| {
                bytes.u64(base).u64(length).u32(kind)
            });
        let regions = E820Entries::parse(&bytes.0, E820Entries::BIOS).unwrap();
        format!("{:#?}\n", MemoryMap::<64>::from_regions(regions).unwrap())
    };
    vec![
        (
            "SMBIOS: stray bytes between structures",
            structures(&[board.clone(), vec![0, 0], end.clone()].concat()),
        ),
        (
            "SMBIOS: no end-of-table",
            structures(&[board.clone(), board.clone()].concat()),
        ),
        (
            "SMBIOS: a maximum length above the real one",
            structures(&[board.clone(), end.clone(), vec![0xff; 40]].concat()),
        ),
        (
            "SMBIOS: handles used twice, string numbers out of range",
            structures(&[board.clone(), board, end].concat()),
        ),
        (
            "SMBIOS: two entry points of different versions",
            format!(
                "{:?}\n{:?}\n",
                SmbiosEntry::parse(&smbios_entry_32(0xe_0000, 200, 3)),
                SmbiosEntry::parse(&smbios_entry_64(0xf_0000, 0x4000))
            ),
        ),
        (
            "e820: does not start at 0, types 7, 9, 16 and 20, up to 64 TiB",
            e820(&[
                (0x1000, 0x9_e000, 1),
                (0x10_0000, 0x7000_0000, 1),
                (0x7010_0000, 0x10_0000, 9),
                (0x7020_0000, 0x10_0000, 16),
                (0x7030_0000, 0x10_0000, 20),
                (0x1_0000_0000, 0x40_0000_0000, 1),
                (0x100_0000_0000, 0x3f00_0000_0000, 7),
            ]),
        ),
        (
            "UEFI: unsorted, attribute 0, descriptors of 48 bytes",
            descriptors(
                &[
                    (7, 0x10_0000, 0x100, 0xf),
                    (4, 0, 0xa0, 0xf),
                    (7, 0x40_0000, 0x100, 0),
                    (11, 0xfed0_0000, 0x10, 1 << 63 | 1),
                    (6, 0x20_0000, 0x10, 1 << 63 | 0xf),
                ],
                48,
            ),
        ),
    ]
}

/// Compares text with what is kept under this name.
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(format!("{name}.txt"));
    if std::env::var_os("BATON_SNAPSHOTS").is_some_and(|what| what == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differs = kept
        .lines()
        .zip(text.lines())
        .find(|(kept, now)| kept != now);
    assert!(
        kept == text,
        "{name} differs from {}, first at {differs:#?}",
        path.display()
    );
}

fn snapshot(name: &str, tables: &[(&str, Vec<u8>)]) {
    let text: Vec<_> = tables
        .iter()
        .map(|(title, bytes)| format!("# {title}\n{}", describe(bytes)))
        .collect();
    check(name, &text.join("\n"));
}

#[test]
fn odd_dmar_tables_read_as_before() {
    snapshot("dmar", &dmar_oddities());
}

#[test]
fn odd_ivrs_tables_read_as_before() {
    snapshot("ivrs", &ivrs_oddities());
}

#[test]
fn other_odd_tables_read_as_before() {
    snapshot("tables", &other_oddities());
}

#[test]
fn odd_smbios_tables_and_memory_maps_read_as_before() {
    let text: Vec<_> = headless()
        .into_iter()
        .map(|(title, text)| format!("# {title}\n{text}"))
        .collect();
    check("headless", &text.join("\n"));
}
