//! The tables that describe one thing each, and the HMAT.

use acpi_capture::table::*;
use handoff_abi::{PciFunction, PhysAddr, RequesterId};

use crate::build::{self, fix_sum, range, sdt};
use crate::build_small::*;

#[test]
fn an_hmat_says_how_near_memory_is() {
    let table = hmat_sample();
    let hmat = Hmat::parse(&table).unwrap();
    let structures: Vec<_> = hmat.structures().map(Result::unwrap).collect();
    let [
        HmatStructure::Proximity(first),
        HmatStructure::Proximity(second),
        HmatStructure::Performance(matrix),
        HmatStructure::SideCache(cache),
        HmatStructure::Unknown(unknown),
    ] = structures[..]
    else {
        panic!("{structures:?}")
    };
    assert_eq!((first.memory, first.initiator), (0, Some(0)));
    assert_eq!((second.memory, second.initiator), (2, None));
    assert_eq!(matrix.measure, Measure::AccessLatency);
    let value = |from, to| matrix.value(from, to);
    assert_eq!(
        [value(0, 0), value(0, 1), value(0, 2), value(1, 0)],
        [Some(100), Some(200), Some(300), Some(400)]
    );
    // Not given, not reachable, not in the matrix.
    assert_eq!(
        [value(1, 1), value(1, 2), value(2, 0), value(0, 3)],
        [None; 4]
    );
    assert_eq!((cache.memory, cache.size), (2, 1 << 34));
    assert_eq!(cache.smbios_handles().collect::<Vec<_>>(), [0x1100, 0x1101]);
    assert_eq!((unknown.kind, unknown.bytes.len()), (9, 12));
}

#[test]
fn a_matrix_that_claims_more_than_it_has_is_one_error_and_the_next_structure_is_read() {
    for (rows, columns) in [(3, 3), (u32::MAX, u32::MAX), (u32::MAX, 1), (0, u32::MAX)] {
        let mut matrix = hmat_matrix(0, 1, &[0, 1], &[0, 1], &[1, 2, 3, 4]);
        matrix[12..16].copy_from_slice(&u32::to_le_bytes(rows));
        matrix[16..20].copy_from_slice(&u32::to_le_bytes(columns));
        let table = hmat(&[matrix, hmat_proximity(1, 1, 2)]);
        let read: Vec<_> = Hmat::parse(&table).unwrap().structures().collect();
        assert!(
            matches!(
                read[..],
                [
                    Err(EntryError::Short { kind: 1, .. }),
                    Ok(HmatStructure::Proximity(_))
                ]
            ),
            "{read:?}"
        );
    }
    let mut cache = hmat_cache(0, 1, 0, &[1]);
    cache[30..32].copy_from_slice(&2_u16.to_le_bytes());
    let table = hmat(&[cache]);
    let read = Hmat::parse(&table).unwrap().structures().next();
    assert!(matches!(
        read,
        Some(Err(EntryError::Short { needed: 36, .. }))
    ));
}

#[test]
fn lengths_that_lead_nowhere_end_an_hmat() {
    for length in [0_u32, 7, 1000, u32::MAX] {
        let mut table = hmat(&[hmat_proximity(0, 0, 0), hmat_proximity(0, 0, 0)]);
        table[44..48].copy_from_slice(&length.to_le_bytes());
        fix_sum(&mut table, 9);
        let read: Vec<_> = Hmat::parse(&table).unwrap().structures().collect();
        assert_eq!(read.len(), 1);
        assert!(read[0].unwrap_err().is_final());
    }
}

#[test]
fn a_console_has_what_its_revision_has() {
    let table = spcr(4, b"\\_SB.UAR1");
    let spcr4 = Spcr::parse(&table).unwrap();
    assert_eq!((spcr4.interface(), spcr4.terminal()), (1, 3));
    assert_eq!(spcr4.registers().address, 0x3f8);
    assert_eq!((spcr4.irq(), spcr4.global_interrupt()), (Some(4), Some(4)));
    assert_eq!(spcr4.baud_rate(), Some(115_200));
    assert_eq!(spcr4.clock(), Some(1_843_200));
    assert_eq!(spcr4.path(), b"\\_SB.UAR1");
    assert_eq!(
        spcr4.pci_function(),
        Some(PciFunction {
            segment: 0,
            requester: RequesterId::new(0, 0x16, 3).unwrap()
        })
    );
    // Older ones have no path, and reserved bytes where the clock is.
    for (revision, clock) in [(1, None), (2, None), (3, Some(1_843_200))] {
        let table = spcr(revision, b"");
        assert_eq!(table.len(), 80);
        let old = Spcr::parse(&table).unwrap();
        assert_eq!((old.clock(), old.path()), (clock, &b""[..]));
        assert_eq!(old.baud_rate(), Some(115_200));
    }
    let patched = |at: usize, bytes: &[u8]| {
        let mut table = spcr(4, b"\\_SB.UAR1");
        table[at..at + bytes.len()].copy_from_slice(bytes);
        fix_sum(&mut table, 9);
        table
    };
    // A rate in numbers; none; no PCI function; a path that points past the table.
    let table = patched(80, &1_500_000_u32.to_le_bytes());
    assert_eq!(Spcr::parse(&table).unwrap().baud_rate(), Some(1_500_000));
    let table = patched(58, &[0]);
    assert_eq!(Spcr::parse(&table).unwrap().baud_rate(), None);
    let table = patched(64, &[0xff; 4]);
    assert_eq!(Spcr::parse(&table).unwrap().pci_function(), None);
    let table = patched(69, &[32]);
    assert_eq!(Spcr::parse(&table).unwrap().pci_function(), None);
    let table = patched(86, &[0xff, 0xff]);
    assert_eq!(Spcr::parse(&table).unwrap().path(), b"");
}

#[test]
fn debug_ports_are_read_up_to_the_first_that_makes_no_sense() {
    let table = dbg2(&[
        (0x8000, 0, b"\\_SB.UAR1", &[(0x3f8, 8), (0x2f8, 8)]),
        (0x8003, 0x8086, b".", &[]),
    ]);
    let dbg2_view = Dbg2::parse(&table).unwrap();
    let ports: Vec<_> = dbg2_view.ports().map(Result::unwrap).collect();
    assert_eq!(ports.len(), 2);
    assert_eq!((ports[0].kind, ports[0].subkind), (0x8000, 0));
    assert_eq!(
        (ports[0].path, ports[0].oem_data),
        (&b"\\_SB.UAR1"[..], &[0xab, 0xcd][..])
    );
    let registers: Vec<_> = ports[0]
        .registers()
        .map(|(r, size)| (r.address, size))
        .collect();
    assert_eq!(registers, [(0x3f8, 8), (0x2f8, 8)]);
    assert_eq!(
        (ports[1].kind, ports[1].subkind, ports[1].path),
        (0x8003, 0x8086, &b"."[..])
    );
    let patched = |at: usize, bytes: &[u8]| {
        let mut table = table.clone();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        fix_sum(&mut table, 9);
        table
    };
    let read = |table: &[u8]| {
        let ports = Dbg2::parse(table).unwrap().ports();
        ports.map(|port| port.is_ok()).collect::<Vec<_>>()
    };
    // More than there are; a first one outside; lengths too small and too great; registers, path
    // and data of the maker outside the device.
    assert_eq!(read(&patched(40, &[0xff; 4])), [true, true, false]);
    assert_eq!(read(&patched(36, &[0xff; 4])), [false]);
    assert_eq!(read(&patched(45, &[21, 0])), [false]);
    assert_eq!(read(&patched(45, &[0xff, 0xff])), [false]);
    for at in [47, 50, 54, 62, 64] {
        let table = patched(at, &[0xff, 0xff]);
        let ports: Vec<_> = Dbg2::parse(&table)
            .unwrap()
            .ports()
            .map(Result::unwrap)
            .collect();
        assert_eq!(ports.len(), 2);
        // No more than the device has bytes for.
        assert!(ports[0].registers().count() <= 5);
    }
}

#[test]
fn a_boot_picture_says_where_it_is_and_how_it_is_turned() {
    let picture = Bgrt::parse(&bgrt(0b101, 0x7000_0000)).unwrap();
    assert_eq!(picture.image, PhysAddr(0x7000_0000));
    assert_eq!((picture.displayed, picture.turned), (true, 180));
    assert_eq!((picture.offset_x, picture.offset_y), (640, 200));
    assert!(!Bgrt::parse(&bgrt(0b110, 0)).unwrap().displayed);
    assert!(matches!(
        Bgrt::parse(&sdt(b"BGRT", 1, &[0; 19])),
        Err(TableError::Truncated { needed: 56, .. })
    ));
}

#[test]
fn a_tpm_has_a_log_only_where_the_table_reaches_that_far() {
    let tpm = Tpm2::parse(&tpm2(7, Some((0x1_0000, 0x7100_0000)))).unwrap();
    assert_eq!((tpm.platform_class, tpm.start_method), (1, 7));
    assert_eq!(tpm.control_area, PhysAddr(0xfed4_0040));
    assert_eq!(tpm.log, Some(range(0x7100_0000, 0x7101_0000)));
    let none = [
        tpm2(6, None),
        tpm2(7, Some((0, 0x7100_0000))),
        tpm2(7, Some((1, 0))),
        tpm2(7, Some((2, u64::MAX))),
        // Cut within the address, as real ones of 68 bytes are.
        sdt(b"TPM2", 3, &[1; 68 - 36]),
    ];
    for table in none {
        assert_eq!(Tpm2::parse(&table).unwrap().log, None);
    }
}

#[test]
fn small_tables_are_read() {
    let flags = Waet::parse(&waet(0x8000_0001)).unwrap();
    assert!(flags.contains(Waet::RTC_GOOD) && !flags.contains(Waet::PM_TIMER_GOOD));
    let table = ecdt(0x66, 0x62, b"\\_SB.PCI0.EC0");
    let controller = Ecdt::parse(&table).unwrap();
    assert_eq!(
        (controller.control.address, controller.data.address),
        (0x66, 0x62)
    );
    assert_eq!(
        (controller.gpe_bit, controller.path),
        (0x6e, &b"\\_SB.PCI0.EC0"[..])
    );
    // A path that does not end.
    let mut table = sdt(b"ECDT", 1, &[1; 40]);
    table[65..].fill(b'A');
    fix_sum(&mut table, 9);
    assert_eq!(Ecdt::parse(&table).unwrap().path, [b'A'; 11]);
}

#[test]
fn a_madt_names_every_controller_of_the_specification() {
    let entries: Vec<_> = (0..=0x1c_u8)
        .map(|kind| {
            let mut entry = vec![0; 32];
            entry[..2].copy_from_slice(&[kind, 32]);
            entry
        })
        .collect();
    let table = build::madt(0xfee0_0000, 0, &entries);
    for (kind, entry) in Madt::parse(&table).unwrap().entries().enumerate() {
        let expected = matches!(
            (kind, entry.unwrap()),
            (0 | 9, MadtEntry::LocalApic(_))
                | (1, MadtEntry::IoApic(_))
                | (2, MadtEntry::SourceOverride(_))
                | (3, MadtEntry::NmiSource(_))
                | (4 | 10, MadtEntry::LocalApicNmi(_))
                | (5, MadtEntry::LocalApicOverride(_))
                | (6, MadtEntry::IoSapic(_))
                | (7, MadtEntry::LocalSapic(_))
                | (8, MadtEntry::PlatformInterrupt(_))
                | (0xb..=0xf | 0x11..=0x1b, MadtEntry::Foreign(..))
                | (0x10, MadtEntry::Wakeup(_))
                | (0x1c, MadtEntry::Unknown(_))
        );
        assert!(expected, "{kind:#x}");
    }
}

#[test]
fn a_mailbox_of_version_1_has_a_reset_vector() {
    let entry = |version: u16, length: u8| {
        let mut entry = vec![16, length];
        entry.extend_from_slice(&version.to_le_bytes());
        entry.extend_from_slice(&[0; 4]);
        entry.extend_from_slice(&0x7f00_1000_u64.to_le_bytes());
        entry.extend_from_slice(&0x7f00_2000_u64.to_le_bytes());
        entry.truncate(usize::from(length));
        build::madt(0, 0, &[entry])
    };
    let vector = |table: &[u8]| match Madt::parse(table).unwrap().entries().next() {
        Some(Ok(MadtEntry::Wakeup(wakeup))) => wakeup.reset_vector,
        other => panic!("{other:?}"),
    };
    assert_eq!(vector(&entry(1, 24)), Some(PhysAddr(0x7f00_2000)));
    assert_eq!(vector(&entry(0, 24)), None);
    assert_eq!(vector(&entry(1, 23)), None);
    assert_eq!(vector(&entry(1, 16)), None);
}

#[test]
fn processors_beyond_255_are_told_apart_and_repeated_ones_are_not() {
    // 4096 processors whose ids step by 16, each one twice, and one that is disabled.
    let once: Vec<_> = (0..4096)
        .map(|n| build::local_x2apic(n, n * 16, 1))
        .collect();
    let disabled = vec![build::local_x2apic(9999, 99_999, 0)];
    let table = build::madt(0xfee0_0000, 0, &[once.clone(), once, disabled].concat());
    let madt = Madt::parse(&table).unwrap();
    let ids: Vec<_> = madt.processors().map(|cpu| cpu.apic_id.0).collect();
    assert_eq!(ids, (0..4096).map(|n| n * 16).collect::<Vec<_>>());
    // What is past the limit does not count.
    let many: Vec<_> = (0..9000).map(|n| build::local_x2apic(n, n, 1)).collect();
    let table = build::madt(0xfee0_0000, 0, &many);
    let madt = Madt::parse(&table).unwrap();
    assert_eq!(madt.processors().count(), Madt::MAX_PROCESSORS);
}

#[test]
fn devices_near_memory_are_named_by_pci_or_by_the_namespace() {
    let entry = |kind: u8, handle_type: u8, handle: [u8; 16], flags: u32| {
        let head = build::Bytes::new().raw(&[kind, 32, 0, handle_type]).u32(7);
        head.raw(&handle).u32(flags).u32(0).0
    };
    let mut pci = [0; 16];
    pci[..4].copy_from_slice(&[3, 0, 0x81, 0x0a]);
    let acpi = *b"ACPI0016\x05\0\0\0\0\0\0\0";
    let table = build::srat(
        3,
        &[
            entry(5, 1, pci, 1),
            entry(6, 0, acpi, 0),
            entry(5, 9, acpi, 1),
            entry(3, 0, pci, 0),
        ],
    );
    let read: Vec<_> = Srat::parse(&table)
        .unwrap()
        .entries()
        .map(Result::unwrap)
        .collect();
    let device = |handle, enabled, is_port| {
        Affinity::Device(GenericAffinity {
            domain: 7,
            handle,
            enabled,
            is_port,
        })
    };
    let function = PciFunction {
        segment: 3,
        requester: RequesterId(0x810a),
    };
    assert_eq!(read[0], device(DeviceHandle::Pci(function), true, false));
    let named = DeviceHandle::Acpi {
        hardware_id: *b"ACPI0016",
        uid: [5, 0, 0, 0],
    };
    assert_eq!(read[1], device(named, false, true));
    let other = DeviceHandle::Other {
        kind: 9,
        handle: acpi,
    };
    assert_eq!(read[2], device(other, true, false));
    assert!(matches!(read[3], Affinity::Unknown(_)));
}

#[test]
fn a_fadt_prefers_its_wide_fields_and_falls_back_on_its_ports() {
    let table = build::fadt((0x1000, 0x2000), (0x3000, 0));
    let fadt = Fadt::parse(&table).unwrap();
    // FACS and X_FACS are both set and differ.
    assert_eq!(
        (fadt.facs(), fadt.dsdt()),
        (PhysAddr(0x2000), PhysAddr(0x3000))
    );
    let mut table = table;
    // PM1a_CNT by its port, of two bytes; GPE0 by both.
    table[64..68].copy_from_slice(&0x1804_u32.to_le_bytes());
    table[89] = 2;
    table[80..84].copy_from_slice(&0x1860_u32.to_le_bytes());
    table[220..232].copy_from_slice(&register(0, 32, 0xfe00_0000));
    table[45] = 4;
    fix_sum(&mut table, 9);
    let fadt = Fadt::parse(&table).unwrap();
    let port = fadt.block(FadtBlock::Pm1aControl).unwrap();
    assert_eq!((port.space, port.bit_width, port.address), (1, 16, 0x1804));
    let wide = fadt.block(FadtBlock::Gpe0).unwrap();
    assert_eq!(
        (wide.space, wide.bit_width, wide.address),
        (0, 32, 0xfe00_0000)
    );
    for missing in [
        FadtBlock::Pm1bControl,
        FadtBlock::Gpe1,
        FadtBlock::SleepControl,
    ] {
        assert_eq!(fadt.block(missing), None);
    }
    assert_eq!(fadt.preferred_profile(), 4);
    // Revision 6 with the length of revision 1: the length decides.
    let mut short = table;
    short.truncate(116);
    short[4..8].copy_from_slice(&116_u32.to_le_bytes());
    fix_sum(&mut short, 9);
    let fadt = Fadt::parse(&short).unwrap();
    assert_eq!(fadt.version().0, 6);
    assert_eq!(fadt.facs(), PhysAddr(0x1000));
    assert_eq!(fadt.block(FadtBlock::Gpe0).unwrap().address, 0x1860);
}

#[test]
fn every_console_and_debug_port_of_the_corpus_is_understood() {
    let Some(corpus) = crate::corpus::corpus() else {
        return;
    };
    let printable = |path: &[u8]| path.iter().all(|byte| (0x20..0x7f).contains(byte));
    let (mut ports, mut blocks) = (0, 0);
    for entry in crate::corpus::of_kind(corpus, "acpi:SPCR") {
        let spcr = Spcr::parse(&entry.bytes).unwrap();
        assert!(printable(spcr.path()), "{}", entry.name);
        assert!(
            spcr.baud_rate().is_none_or(|rate| rate % 300 == 0),
            "{}",
            entry.name
        );
    }
    for entry in crate::corpus::of_kind(corpus, "acpi:DBG2") {
        let dbg2 = Dbg2::parse(&entry.bytes).unwrap();
        let stated = u32::from_le_bytes(entry.bytes[40..44].try_into().unwrap());
        let read: Vec<_> = dbg2.ports().map(Result::unwrap).collect();
        assert_eq!(read.len(), stated as usize, "{}", entry.name);
        for port in read {
            assert!(printable(port.path), "{}", entry.name);
            assert!((0x8000..=0x8003).contains(&port.kind), "{}", entry.name);
            let registers = usize::from(entry.bytes[port.offset + 3]);
            assert_eq!(port.registers().count(), registers, "{}", entry.name);
            (ports, blocks) = (ports + 1, blocks + registers);
        }
    }
    crate::corpus::say(&format!(
        "corpus: {ports} debug ports with {blocks} register blocks"
    ));
    assert!(ports > 150 && blocks > 150);
}
