//! Every field is where the specification has it, and every number means what it says there.

use acpi_capture::table::*;
use acpi_capture::*;
use handoff_abi::{PciFunction, PhysAddr, RequesterId, ScopeKind, UnitDescription, UnitKind};

use crate::build::{self, Bytes, fix_sum, sdt};
use crate::build_small;

#[test]
fn a_table_gives_back_its_own_bytes_and_header() {
    let dmar = build::dmar(39, 0, &[]);
    let fadt = build::fadt((0, 0), (0, 0));
    let hmat = build_small::hmat_sample();
    let ivrs = build::ivrs(&[]);
    let slit = build::slit(&[vec![10]]);
    let spcr = build_small::spcr(4, b".");
    let srat = build::srat(3, &[]);
    let dbg2 = build_small::dbg2(&[]);
    let xsdt = build::xsdt(&[0x1000]);
    for (sdt, table) in [
        (Dmar::parse(&dmar).unwrap().sdt(), &dmar),
        (Fadt::parse(&fadt).unwrap().sdt(), &fadt),
        (Hmat::parse(&hmat).unwrap().sdt(), &hmat),
        (Ivrs::parse(&ivrs).unwrap().sdt(), &ivrs),
        (Slit::parse(&slit).unwrap().sdt(), &slit),
        (Spcr::parse(&spcr).unwrap().sdt(), &spcr),
        (Srat::parse(&srat).unwrap().sdt(), &srat),
        (Dbg2::parse(&dbg2).unwrap().sdt(), &dbg2),
        (RootTable::parse(&xsdt).unwrap().sdt(), &xsdt),
    ] {
        assert_eq!(sdt.bytes(), table);
        assert_eq!(sdt.body(), &table[36..]);
        assert_eq!(sdt.signature().0, table[..4]);
        assert_eq!(sdt.revision(), table[8]);
        assert_eq!(sdt.oem_id(), *b"VENDOR");
        assert_eq!(sdt.oem_table_id(), *b"MACHINE\0");
        assert_eq!(sdt.oem_revision(), 7);
    }
}

#[test]
fn a_table_shorter_than_its_fixed_part_is_refused_with_both_lengths() {
    let table = sdt(b"HPET", 1, &[0; 19]);
    assert_eq!(
        Hpet::parse(&table).unwrap_err(),
        TableError::Truncated {
            table: Signature::HPET,
            needed: 56,
            have: 55
        }
    );
}

#[test]
fn a_console_has_each_rate_of_the_specification() {
    for (number, rate) in [
        (0, None),
        (3, Some(9600)),
        (4, Some(19200)),
        (5, None),
        (6, Some(57600)),
        (7, Some(115_200)),
    ] {
        let mut table = build_small::spcr(2, b"");
        table[58] = number;
        fix_sum(&mut table, 9);
        assert_eq!(Spcr::parse(&table).unwrap().baud_rate(), rate, "{number}");
    }
}

#[test]
fn a_console_says_what_it_is_and_how_it_interrupts() {
    let with = |fields: &[(usize, u8)]| {
        let mut table = build_small::spcr(2, b"");
        for &(at, byte) in fields {
            table[at] = byte;
        }
        fix_sum(&mut table, 9);
        table
    };
    let table = with(&[(36, 0x12)]);
    assert_eq!(Spcr::parse(&table).unwrap().interface(), 0x12);
    // The interrupt type: bit 0 is the pair of 8259s, all others are controllers with numbers.
    for (kind, irq, global) in [
        (0, None, None),
        (1, Some(4), None),
        (2, None, Some(4)),
        (3, Some(4), Some(4)),
        (8, None, Some(4)),
    ] {
        let table = with(&[(52, kind)]);
        let spcr = Spcr::parse(&table).unwrap();
        assert_eq!(
            (spcr.irq(), spcr.global_interrupt()),
            (irq, global),
            "{kind}"
        );
    }
    // Neither number of a PCI device is all ones.
    for fields in [[(64, 0xff), (65, 0xff)], [(66, 0xff), (67, 0xff)]] {
        let table = with(&fields);
        assert_eq!(Spcr::parse(&table).unwrap().pci_function(), None);
    }
    let table = with(&[(64, 0xff), (66, 0xff)]);
    assert!(Spcr::parse(&table).unwrap().pci_function().is_some());
}

#[test]
fn a_debug_port_may_be_nothing_but_its_fixed_part() {
    let port = Bytes::new().u8(0).u16(22).raw(&[0; 19]).0;
    let body = Bytes::new().u32(44).u32(2).raw(&port).raw(&port);
    let table = sdt(b"DBG2", 0, &body.0);
    let ports: Vec<_> = Dbg2::parse(&table).unwrap().ports().collect();
    assert_eq!(ports.len(), 2);
    assert!(ports.iter().all(Result::is_ok), "{ports:?}");
}

#[test]
fn a_signature_is_printable_where_each_byte_is() {
    for (bytes, printable) in [
        (*b"APIC", true),
        (*b"A ~!", true),
        (*b"API\x7f", false),
        (*b"\x1fPIC", false),
        (*b"AP\xffC", false),
    ] {
        assert_eq!(Signature(bytes).is_printable(), printable);
    }
}

#[test]
fn a_matrix_measures_what_its_number_says() {
    for (number, measure) in [
        (0, Measure::AccessLatency),
        (1, Measure::ReadLatency),
        (2, Measure::WriteLatency),
        (3, Measure::AccessBandwidth),
        (4, Measure::ReadBandwidth),
        (5, Measure::WriteBandwidth),
        (6, Measure::Unknown(6)),
    ] {
        let matrix = build_small::hmat_matrix(number, 1, &[0], &[0], &[1]);
        let table = build_small::hmat(&[matrix]);
        let hmat = Hmat::parse(&table).unwrap();
        let Some(Ok(HmatStructure::Performance(matrix))) = hmat.structures().next() else {
            panic!("a matrix")
        };
        assert_eq!(matrix.measure, measure);
    }
}

/// Register blocks, where their port, their length and their extended address are (ACPI 6.5,
/// table 5.9).
const BLOCKS: [(FadtBlock, usize, usize, usize); 8] = [
    (FadtBlock::Pm1aEvent, 56, 88, 148),
    (FadtBlock::Pm1bEvent, 60, 88, 160),
    (FadtBlock::Pm1aControl, 64, 89, 172),
    (FadtBlock::Pm1bControl, 68, 89, 184),
    (FadtBlock::Pm2Control, 72, 90, 196),
    (FadtBlock::PmTimer, 76, 91, 208),
    (FadtBlock::Gpe0, 80, 92, 220),
    (FadtBlock::Gpe1, 84, 93, 232),
];

#[test]
fn each_register_block_is_where_its_fields_say() {
    let with = |fields: &[(usize, &[u8])]| {
        let mut table = build::fadt((0, 0), (0, 0));
        for &(at, bytes) in fields {
            table[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fix_sum(&mut table, 9);
        table
    };
    let extended = build_small::register(0, 32, 0x1_2345_6780);
    for (block, port_at, length_at, extended_at) in BLOCKS {
        let port = 0x0608_u32.to_le_bytes();
        let table = with(&[(port_at, &port), (length_at, &[4])]);
        let fadt = Fadt::parse(&table).unwrap();
        assert_eq!(
            fadt.block(block),
            Some(GenericAddress {
                space: 1,
                bit_width: 32,
                bit_offset: 0,
                access_size: 0,
                address: 0x608
            })
        );
        for (other, ..) in BLOCKS.into_iter().filter(|other| other.0 != block) {
            assert_eq!(fadt.block(other), None, "{block:?} is not {other:?}");
        }
        // The extended address goes first.
        let table = with(&[
            (port_at, &port),
            (length_at, &[4]),
            (extended_at, &extended),
        ]);
        let found = Fadt::parse(&table).unwrap().block(block).unwrap();
        assert_eq!((found.space, found.address), (0, 0x1_2345_6780));
    }
    for (block, at) in [
        (FadtBlock::SleepControl, 244),
        (FadtBlock::SleepStatus, 256),
    ] {
        let table = with(&[(at, &extended)]);
        let fadt = Fadt::parse(&table).unwrap();
        assert_eq!(fadt.block(block).unwrap().address, 0x1_2345_6780);
        assert_eq!(fadt.block(FadtBlock::Gpe1), None);
        let table = with(&[]);
        assert_eq!(Fadt::parse(&table).unwrap().block(block), None);
    }
}

#[test]
fn each_number_of_a_fadt_is_where_its_field_is() {
    let mut table = build::fadt((0, 0), (0, 0));
    for (at, bytes) in [
        (45, &[4][..]),
        (46, &0x0109_u16.to_le_bytes()),
        (48, &0x00b2_u32.to_le_bytes()),
        (52, &[0xa1]),
        (64, &0x0604_u32.to_le_bytes()),
        (76, &0x0608_u32.to_le_bytes()),
        (109, &0x0014_u16.to_le_bytes()),
        // The errata in the upper half.
        (131, &[0x35]),
    ] {
        table[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fix_sum(&mut table, 9);
    let fadt = Fadt::parse(&table).unwrap();
    assert_eq!(fadt.preferred_profile(), 4);
    assert_eq!(fadt.sci_interrupt(), 0x109);
    assert_eq!(fadt.smi_command(), 0xb2);
    assert_eq!(fadt.acpi_enable(), 0xa1);
    assert_eq!(fadt.pm1a_control(), 0x604);
    assert_eq!(fadt.pm_timer(), 0x608);
    assert_eq!(fadt.boot_architecture().bits(), 0x14);
    assert_eq!(fadt.version(), (6, 5));
}

#[test]
fn a_scope_may_name_a_device_of_the_namespace_and_ends_with_its_structure() {
    let named = build::scope(5, 9, 0, &[(2, 1)]);
    let table = build::dmar(
        39,
        0,
        &[build::drhd(
            false,
            0,
            0xfed9_0000,
            &[named, vec![1, 8, 0, 0, 0]],
        )],
    );
    let dmar = Dmar::parse(&table).unwrap();
    let Some(Ok(DmarStructure::Unit(unit))) = dmar.structures().next() else {
        panic!("a unit")
    };
    let scopes: Vec<_> = unit.scopes().collect();
    assert_eq!(scopes.len(), 2);
    let first = scopes[0].unwrap();
    assert_eq!(
        (first.kind, first.enumeration_id),
        (ScopeKind::AcpiNamespaceDevice, 9)
    );
    assert_eq!(scopes[1], Err(ScopeError::Length { length: 6, left: 5 }));
}

#[test]
fn a_unit_of_ivrs_says_its_message_and_what_it_is_in_the_common_words() {
    let mut unit = build::ivhd(0x11, 3, 0x0002, 0xfeb8_0000, &[]);
    unit[18..20].copy_from_slice(&0xffe5_u16.to_le_bytes());
    let table = build::ivrs(&[unit]);
    let ivrs = Ivrs::parse(&table).unwrap();
    let unit = ivrs.units().next().unwrap();
    assert_eq!(unit.message_number(), 5);
    let described: Vec<_> = ivrs.descriptions().collect();
    assert_eq!(described, [unit.description]);
    assert_eq!(
        (described[0].kind, described[0].segment),
        (UnitKind::AmdVi, 3)
    );
}

#[test]
fn a_memory_definition_that_wraps_is_a_finding() {
    let table = build::ivrs(&[build::ivmd(0x20, 8, (0, 0), u64::MAX - 0xfff, 0x2000)]);
    let mut found = Vec::new();
    Ivrs::parse(&table)
        .unwrap()
        .findings(None, |finding| found.push(finding));
    assert!(
        matches!(found[..], [IvrsFinding::Region { offset: 48, .. }]),
        "{found:?}"
    );
}

#[test]
fn a_topology_can_be_lent() {
    struct OneBridge;
    impl PciTopology for OneBridge {
        fn bridge_buses(&self, function: PciFunction) -> Option<BridgeBuses> {
            (function.requester == RequesterId(0x0010)).then_some(BridgeBuses {
                secondary: 3,
                subordinate: 5,
            })
        }
    }
    fn secondary(topology: impl PciTopology, id: u16) -> Option<u8> {
        let function = PciFunction {
            segment: 0,
            requester: RequesterId(id),
        };
        Some(topology.bridge_buses(function)?.secondary)
    }
    assert_eq!(secondary(&OneBridge, 0x0010), Some(3));
    assert_eq!(secondary(OneBridge, 0x0018), None);
}

#[test]
fn structures_after_stray_zeros_are_read_and_after_a_bad_length_not() {
    let offset = 4;
    assert!(!StructureError::Stray { offset, count: 1 }.is_final());
    assert!(StructureError::Strings { offset }.is_final());
    assert!(StructureError::Length { offset, length: 2 }.is_final());
}

#[test]
fn an_entry_that_ends_within_its_second_part_is_short() {
    // A unit of type 11h has 16 bytes more than one of type 10h.
    let block = build::ivhd(0x11, 0, 2, 0xfeb8_0000, &[])[..30].to_vec();
    let mut block = block;
    block[2] = 30;
    let table = build::ivrs(&[block]);
    let read = Ivrs::parse(&table).unwrap().blocks().next();
    assert_eq!(
        read.unwrap().unwrap_err(),
        EntryError::Short {
            table: Signature::IVRS,
            offset: 48,
            kind: 0x11,
            length: 30,
            needed: 40
        }
    );
}

#[test]
fn a_capture_gives_each_table_by_its_kind() {
    let mut memory = build::Memory::default();
    let tables = [
        build::mcfg(&[(0xb000_0000, 0, 0, 255)]),
        build_small::hmat_sample(),
        build::hpet(0xfed0_0000, 0),
        build::ivrs(&[]),
        build::dmar(39, 0, &[]),
        // A table that is nothing but its header.
        sdt(b"TINY", 1, &[]),
    ];
    let places: Vec<u64> = (1..=tables.len() as u64).map(|n| n * 0x1_0000).collect();
    memory.put(0xf_0000, build::rsdp(0, 0x8000));
    memory.put(0x8000, build::xsdt(&places));
    for (&at, table) in places.iter().zip(&tables) {
        memory.put(at, table.clone());
    }
    let request = CaptureRequest::new(PhysAddr(0xf_0000), SmbiosSource::None);
    let blob = crate::capture::take(&memory, &request);
    let capture = Capture::parse(&blob).unwrap();
    assert_eq!(capture.bytes(), blob);
    assert_eq!(
        capture
            .mcfg()
            .unwrap()
            .unwrap()
            .allocations()
            .next()
            .unwrap()
            .base,
        PhysAddr(0xb000_0000)
    );
    assert_eq!(capture.hmat().unwrap().unwrap().sdt().bytes(), tables[1]);
    assert_eq!(capture.hpet().unwrap().unwrap().base.0, 0xfed0_0000);
    assert_eq!(capture.ivrs().unwrap().unwrap().sdt().bytes(), tables[3]);
    assert_eq!(capture.dmar().unwrap().unwrap().sdt().bytes(), tables[4]);
    let tiny = capture.find(Signature(*b"TINY")).unwrap();
    assert_eq!((tiny.bytes(), tiny.body()), (&tables[5][..], &[][..]));
}

#[test]
fn an_facs_of_another_name_or_a_length_that_cannot_be_is_left_out_with_the_reason() {
    let state = |facs: Vec<u8>, most: Option<usize>| {
        let mut memory = build::Memory::default();
        memory.put(0xf_0000, build::rsdp(0, 0x8000));
        memory.put(0x8000, build::xsdt(&[0x1_0000]));
        memory.put(0x1_0000, build::fadt((0, 0x2_0000), (0, 0)));
        memory.put(0x2_0000, facs);
        let mut request = CaptureRequest::new(PhysAddr(0xf_0000), SmbiosSource::None);
        if let Some(most) = most {
            request.max_table_length = most;
        }
        let blob = crate::capture::take(&memory, &request);
        let capture = Capture::parse(&blob).unwrap();
        capture
            .tables()
            .find(|table| table.kind == CapturedKind::Facs)
            .unwrap()
            .state
    };
    let patched = |at: usize, bytes: &[u8]| {
        let mut facs = build::facs();
        facs[at..at + bytes.len()].copy_from_slice(bytes);
        facs
    };
    assert_eq!(state(build::facs(), None), State::Sound);
    assert_eq!(state(patched(0, b"FACE"), None), State::NotATable);
    assert_eq!(
        state(patched(4, &63_u32.to_le_bytes()), None),
        State::NotATable
    );
    let long = Bytes::new().raw(b"FACS").u32(300).raw(&[0; 292]).0;
    assert_eq!(state(long.clone(), None), State::Sound);
    assert_eq!(state(long.clone(), Some(300)), State::Sound);
    assert_eq!(state(long, Some(299)), State::TooLong);
}

#[test]
fn an_smbios_entry_point_in_a_hole_of_memory_is_unreadable() {
    let mut memory = crate::capture::machine();
    let at = SmbiosSource::At {
        entry_32: Some(PhysAddr(0x4000_0000)),
        entry_64: None,
    };
    let request = CaptureRequest::new(PhysAddr(0xf_5a40), at);
    let blob = crate::capture::take(&memory, &request);
    let capture = Capture::parse(&blob).unwrap();
    let entry = capture
        .tables()
        .find(|table| table.kind == CapturedKind::SmbiosEntry)
        .unwrap();
    assert_eq!(entry.state, State::Unreadable);
    assert!(capture.smbios_structures().is_none());
    // Structures that would wrap past the end of the address space end there.
    memory.put(0x9000, build::smbios_entry_64(u64::MAX - 0xfff, 0x4000));
    memory.put(u64::MAX - 0xfff, vec![1; 0x1000]);
    let at = SmbiosSource::At {
        entry_32: None,
        entry_64: Some(PhysAddr(0x9000)),
    };
    let request = CaptureRequest::new(PhysAddr(0xf_5a40), at);
    let blob = crate::capture::take(&memory, &request);
    let capture = Capture::parse(&blob).unwrap();
    let stored = capture
        .tables()
        .find(|table| table.kind == CapturedKind::SmbiosStructures)
        .unwrap();
    assert_eq!(
        (stored.state, stored.bytes.len()),
        (State::Shortened, 0x1000)
    );
}

#[test]
fn only_whole_tables_with_the_common_header_are_found_by_signature() {
    let memory = crate::capture::machine();
    let mut request = CaptureRequest::new(PhysAddr(0xf_5a40), SmbiosSource::None);
    let blob = crate::capture::take(&memory, &request);
    let capture = Capture::parse(&blob).unwrap();
    assert_eq!(capture.all(Signature::FADT).count(), 1);
    // It was copied, and has no such header.
    assert_eq!(capture.all(Signature::FACS).count(), 0);
    // One that is as long as may be is copied, one that is longer is only listed.
    for (most, found) in [(276, 1), (275, 0)] {
        request.max_table_length = most;
        let blob = crate::capture::take(&memory, &request);
        let capture = Capture::parse(&blob).unwrap();
        assert_eq!(capture.all(Signature::FADT).count(), found);
        let listed = capture.tables();
        assert_eq!(
            listed
                .filter(|table| table.signature == Signature::FADT)
                .count(),
            1
        );
    }
}

#[test]
fn of_an_old_rsdp_no_byte_that_follows_is_kept() {
    let mut memory = crate::capture::machine();
    let rsdp = build::rsdp_v1(0x7fe_0001);
    let followed = Bytes::new().raw(&rsdp).raw(&[0xdd; 44]).0;
    memory.put(0xf_5a40, followed);
    let request = CaptureRequest::new(PhysAddr(0xf_5a40), SmbiosSource::None);
    let blob = crate::capture::take(&memory, &request);
    let capture = Capture::parse(&blob).unwrap();
    let stored = capture
        .tables()
        .find(|table| table.kind == CapturedKind::Rsdp)
        .unwrap();
    assert_eq!(stored.bytes, rsdp);
}

#[test]
fn of_two_entry_points_of_one_format_the_first_counts_and_holes_are_passed_over() {
    let mut memory = build::Memory::default();
    memory.put(0xe_0000, build::rsdp(0, 0x8000));
    memory.put(0x8000, build::xsdt(&[]));
    // Only the second half of the area can be read.
    let mut area = vec![0; 0x8000];
    for (at, table) in [(0x100, 0x10_0000), (0x200, 0x20_0000)] {
        let entry = build::smbios_entry_32(table, 0x40, 1);
        area[at..at + entry.len()].copy_from_slice(&entry);
    }
    memory.put(0xf_8000, area);
    let request = CaptureRequest::new(PhysAddr(0xe_0000), SmbiosSource::Scan);
    let blob = crate::capture::take(&memory, &request);
    let capture = Capture::parse(&blob).unwrap();
    let found: Vec<_> = capture
        .smbios_entries()
        .map(|(at, entry)| (at, entry.unwrap().table))
        .collect();
    assert_eq!(found, [(PhysAddr(0xf_8100), PhysAddr(0x10_0000))]);
}

#[test]
fn root_ports_with_translation_services_are_read_like_any_scope() {
    let port = build::scope(2, 0, 0, &[(1, 0)]);
    let fixed = Bytes::new().u8(1).u8(0).u16(2).0;
    let table = build::dmar(39, 0, &[build::structure(2, &fixed, &[port])]);
    let dmar = Dmar::parse(&table).unwrap();
    let Some(Ok(DmarStructure::RootPortAts(ports))) = dmar.structures().next() else {
        panic!("root ports")
    };
    assert!(ports.all_ports && ports.segment == 2);
    // The other bits of the flags are reserved.
    for (kind, flags) in [(2, 0xfe), (5, 0xfe), (2, 0xff), (5, 0xff)] {
        let fixed = Bytes::new().u8(flags).u8(0).u16(0).0;
        let table = build::dmar(39, 0, &[build::structure(kind, &fixed, &[])]);
        let said = match Dmar::parse(&table).unwrap().structures().next() {
            Some(Ok(DmarStructure::RootPortAts(ports))) => ports.all_ports,
            Some(Ok(DmarStructure::TranslationCache(cache))) => cache.atc_required,
            other => panic!("{other:?}"),
        };
        assert_eq!(said, flags & 1 == 1);
    }
    let scopes: Vec<_> = ports.scopes().map(Result::unwrap).collect();
    assert_eq!(scopes.len(), 1);
    assert_eq!(scopes[0].kind, ScopeKind::PciSubHierarchy);
}

#[test]
fn a_special_device_whose_entry_is_cut_may_have_been_any() {
    // Its id is not where that of other entries is.
    let error = DeviceError::Overrun {
        offset: 0,
        kind: 0x48,
        needed: 8,
        left: 5,
        requester: Some(RequesterId(0x0100)),
    };
    assert_eq!(error.may_name(), (RequesterId(0), RequesterId(0xffff)));
}

#[test]
fn a_unit_covers_the_rest_where_it_says_so_itself() {
    let table = build::dmar(
        39,
        0,
        &[
            build::drhd(false, 0, 0xfed9_0000, &[]),
            build::drhd(false, 0, 0xfed9_1000, &[]),
            // The second once more.
            build::drhd(true, 0, 0xfed9_1000, &[]),
        ],
    );
    let dmar = Dmar::parse(&table).unwrap();
    let units: Vec<_> = dmar
        .units()
        .map(|unit| (unit.registers.base().0, unit.include_all))
        .collect();
    assert_eq!(units, [(0xfed9_0000, false), (0xfed9_1000, true)]);
}

#[test]
fn an_entry_that_is_nothing_but_its_header_is_passed_over() {
    let table = build::madt(0, 0, &[vec![0x80, 2], build::local_apic(1, 2, 1)]);
    let madt = Madt::parse(&table).unwrap();
    let entries: Vec<_> = madt.entries().collect();
    assert_eq!(entries.len(), 2);
    assert!(
        matches!(entries[1], Ok(MadtEntry::LocalApic(_))),
        "{entries:?}"
    );
    let (table, offset, kind) = (Signature::MADT, 44, 0);
    assert!(
        !EntryError::Short {
            table,
            offset,
            kind,
            length: 4,
            needed: 8
        }
        .is_final()
    );
}

#[test]
fn the_information_of_an_ivrs_is_kept_whole() {
    let mut table = build::ivrs(&[]);
    table[36..40].copy_from_slice(&0x0040_3042_u32.to_le_bytes());
    fix_sum(&mut table, 9);
    let ivrs = Ivrs::parse(&table).unwrap();
    assert_eq!(ivrs.information(), 0x0040_3042);
    assert_eq!(ivrs.physical_address_width(), 0x30);
    assert_eq!(ivrs.virtual_address_width(), 0);
}

#[test]
fn text_in_a_madt_ends_with_its_first_zero() {
    let head = Bytes::new().raw(&[7, 22, 1, 2, 3, 0, 0, 0]).u32(1).u32(9);
    let entry = head.raw(b"SOC1\0x").0;
    let table = build::madt(0, 0, &[entry]);
    let madt = Madt::parse(&table).unwrap();
    let Some(Ok(MadtEntry::LocalSapic(cpu))) = madt.entries().next() else {
        panic!("a processor")
    };
    assert_eq!((cpu.processor, cpu.id, cpu.eid, cpu.uid), (1, 2, 3, 9));
    assert_eq!(cpu.uid_text, b"SOC1");
}

#[test]
fn a_processor_of_a_srat_is_enabled_by_the_first_flag_alone() {
    for (flags, expected) in [(0, false), (1, true), (2, false), (3, true)] {
        let table = build::srat(
            3,
            &[
                build::srat_apic(1, 2, flags),
                build::srat_x2apic(1, 0x300, flags),
            ],
        );
        let srat = Srat::parse(&table).unwrap();
        for entry in srat.entries() {
            let Ok(Affinity::Processor { enabled, .. }) = entry else {
                panic!("{entry:?}")
            };
            assert_eq!(enabled, expected, "{flags}");
        }
    }
}

#[test]
fn a_scope_of_a_pci_device_has_no_number_of_its_own() {
    for (kind, number) in [(1, 0), (2, 0), (3, 9), (4, 9), (5, 9)] {
        let unit = build::drhd(
            false,
            0,
            0xfed9_0000,
            &[build::scope(kind, 9, 0, &[(2, 1)])],
        );
        let table = build::dmar(39, 0, &[unit]);
        let dmar = Dmar::parse(&table).unwrap();
        let Some(Ok(DmarStructure::Unit(unit))) = dmar.structures().next() else {
            panic!("a unit")
        };
        let scope = unit.scopes().next().unwrap().unwrap();
        assert_eq!(scope.enumeration_id, number, "{kind}");
    }
}

#[test]
fn a_match_gives_its_unit_where_there_is_one() {
    let unit = UnitDescription {
        kind: UnitKind::VtD,
        segment: 0,
        registers: build::range(0xfed9_0000, 0xfed9_1000),
        include_all: true,
        amd_vi: None,
    };
    let covered = Covered {
        index: 3,
        unit,
        via: Via::IncludeAll,
    };
    assert_eq!(UnitMatch::Covered(covered).covered(), Some(covered));
    assert_eq!(UnitMatch::Uncovered(Uncovered::NoUnit).covered(), None);
}

#[test]
fn settings_of_ivrs_devices_are_put_together() {
    assert_eq!(
        DeviceSettings::from_bits_retain(0xcf).system_management(),
        0
    );
    assert_eq!(
        DeviceSettings::from_bits_retain(0x2f).system_management(),
        2
    );
    let covered = |devices: &[Vec<u8>], id: u16| {
        let table = build::ivrs(&[build::ivhd(0x40, 0, 0x0002, 0xfd50_0000, devices)]);
        let function = PciFunction {
            segment: 0,
            requester: RequesterId(id),
        };
        match Ivrs::parse(&table).unwrap().unit_for(function) {
            IvrsMatch::Covered(covered) => Ok(covered),
            IvrsMatch::Uncovered(why) => Err(why),
        }
    };
    // A device of the namespace, and an entry for all.
    let named = build::acpi_device(0x00a5, b"AMDI0020", 0, b"");
    let all = build::device(1, 0, 0x01);
    let devices = [named, all];
    assert_eq!(covered(&devices, 0x00a5).unwrap().settings.bits(), 0x41);
    assert_eq!(covered(&devices, 0x00a6).unwrap().settings.bits(), 0x01);
    // The same alias twice is no contradiction.
    let alias = build::device_alias(0x0100, None, 0x0200);
    let found = covered(&[alias.clone(), alias.clone()], 0x0100).unwrap();
    assert_eq!(found.arrives_as, RequesterId(0x0200));
    let other = build::device_alias(0x0100, None, 0x0300);
    assert!(matches!(
        covered(&[alias, other], 0x0100),
        Err(Uncovered::Aliases { .. })
    ));
}

#[test]
fn a_range_whose_entry_is_cut_may_have_been_of_any_length() {
    let first = RequesterId(0x0100);
    for kind in [0x02, 0x03, 0x42, 0x43, 0x46, 0x47, 0xf0] {
        let error = DeviceError::Overrun {
            offset: 0,
            kind,
            needed: 8,
            left: 5,
            requester: Some(first),
        };
        let last = match kind {
            0x03 | 0x43 | 0x47 => RequesterId(0xffff),
            _ => first,
        };
        assert_eq!(error.may_name(), (first, last), "{kind:#x}");
    }
}

#[test]
fn a_range_of_one_device_is_a_range() {
    let named = build::acpi_device(0x00a5, b"AMDI0020", 0, b"");
    let devices = [build::device_range(0x0105, 0x0105, 0), named];
    let unit = build::ivhd(0x40, 0, 0x0002, 0xfd50_0000, &devices);
    let table = build::ivrs(&[unit, build::ivmd(0x22, 8, (0x0105, 0x0105), 0x1000, 0x1000)]);
    let ivrs = Ivrs::parse(&table).unwrap();
    let unit = ivrs.units().next().unwrap();
    let devices: Vec<_> = unit.devices().map(Result::unwrap).collect();
    let [IvhdDevice::Span(span), IvhdDevice::Acpi(named)] = devices[..] else {
        panic!("{devices:?}")
    };
    assert_eq!(
        (span.first, span.last),
        (RequesterId(0x0105), RequesterId(0x0105))
    );
    assert_eq!(named.uid, AcpiUid::None);
    let mut found = Vec::new();
    ivrs.findings(None, |finding| found.push(finding));
    assert_eq!(found, []);
}

/// An entry with an alias that its block ends within.
fn cut(id: u16) -> Vec<u8> {
    build::device_alias(id, None, 0)[..5].to_vec()
}

#[test]
fn the_most_precise_doubt_counts_and_of_two_the_first() {
    let range = build::device_range(0x0100, 0x01ff, 0);
    // A block that is no more than its beginning may have been a unit for all.
    let lost = build::ivhd(0x10, 0, 0x0003, 0xfd60_0000, &[])[..8].to_vec();
    let mut lost = lost;
    lost[2] = 8;
    let unit = |function, base, devices: &[Vec<u8>]| build::ivhd(0x40, 0, function, base, devices);
    let one = unit(0x0002, 0xfd50_0000, &[range, cut(0x0110)]);
    let other = unit(0x0003, 0xfd60_0000, &[cut(0x0110)]);
    let at = |table: &[u8], id| {
        let function = PciFunction {
            segment: 0,
            requester: RequesterId(id),
        };
        match Ivrs::parse(table).unwrap().unit_for(function) {
            IvrsMatch::Uncovered(Uncovered::Unreadable { offset }) => Some(offset),
            _ => None,
        }
    };
    // The header, the block that is lost, the fixed part, two entries of the range.
    let table = build::ivrs(&[lost, one.clone()]);
    assert_eq!(at(&table, 0x0110), Some(48 + 8 + 40 + 8));
    assert_eq!(at(&table, 0x0111), None);
    let table = build::ivrs(&[one, other]);
    assert_eq!(at(&table, 0x0110), Some(48 + 40 + 8));
}

#[test]
fn structures_as_long_as_their_entry_point_says_are_whole_without_an_end() {
    let structures = build::smbios_structure(0, 0, &[0; 20], &["vendor"]);
    let stored = |stated: usize| {
        let mut memory = crate::capture::machine();
        memory.put(0x9000, build::smbios_entry_32(0x7f0_0000, stated as u16, 1));
        let mut page = structures.clone();
        page.resize(0x1000, 0xcc);
        memory.put(0x7f0_0000, page);
        let at = SmbiosSource::At {
            entry_32: Some(PhysAddr(0x9000)),
            entry_64: None,
        };
        let request = CaptureRequest::new(PhysAddr(0xf_5a40), at);
        let blob = crate::capture::take(&memory, &request);
        let capture = Capture::parse(&blob).unwrap();
        let table = capture
            .tables()
            .find(|table| table.kind == CapturedKind::SmbiosStructures)
            .unwrap();
        (table.state, table.bytes.len())
    };
    let whole = structures.len();
    assert_eq!(stored(whole), (State::Sound, whole));
}
