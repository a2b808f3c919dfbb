//! Every table: a sound one, a truncated one, one with impossible lengths, one with oddities that
//! real machines have.

use acpi_capture::table::*;
use handoff_abi::{ApicId, PhysAddr};

use crate::build::{self, Bytes, fix_sum, range};

#[test]
fn a_table_is_refused_when_truncated_renamed_or_damaged() {
    let table = build::mcfg(&[(0xb000_0000, 0, 0, 255)]);
    for length in 0..table.len() {
        assert!(
            matches!(
                Mcfg::parse(&table[..length]),
                Err(TableError::Truncated { .. })
            ),
            "{length} bytes"
        );
    }
    assert_eq!(
        Madt::parse(&table).unwrap_err(),
        TableError::Signature {
            expected: Signature::MADT,
            found: Signature::MCFG
        }
    );
    let mut damaged = table.clone();
    damaged[50] ^= 1;
    assert!(matches!(
        Mcfg::parse(&damaged),
        Err(TableError::Checksum { sum: 1 | 255, .. })
    ));
    assert!(Mcfg::from_sdt(Sdt::parse_any_sum(&damaged).unwrap()).is_ok());
    // A stated length below the header's.
    let mut short = table;
    short[4..8].copy_from_slice(&35_u32.to_le_bytes());
    assert!(matches!(
        Sdt::parse_any_sum(&short),
        Err(TableError::Truncated { needed: 36, .. })
    ));
}

#[test]
fn bytes_after_the_stated_length_do_not_belong_to_the_table() {
    let table = build::mcfg(&[(0xb000_0000, 0, 0, 255)]);
    let mut longer = table.clone();
    longer.extend_from_slice(&[0xaa; 64]);
    let mcfg = Mcfg::parse(&longer).unwrap();
    assert_eq!(mcfg.sdt().bytes(), table);
    assert_eq!(mcfg.allocations().count(), 1);
}

#[test]
fn an_rsdp_of_acpi_1_has_an_rsdt_only() {
    let rsdp = Rsdp::parse(&build::rsdp_v1(0x7fe_0000)).unwrap();
    assert_eq!((rsdp.rsdt, rsdp.xsdt), (PhysAddr(0x7fe_0000), PhysAddr(0)));
}

#[test]
fn an_rsdp_with_a_bad_extended_sum_loses_its_xsdt() {
    let mut bytes = build::rsdp(0x1000, 0x2000);
    assert_eq!(Rsdp::parse(&bytes).unwrap().xsdt, PhysAddr(0x2000));
    bytes[24] ^= 0x10;
    let rsdp = Rsdp::parse(&bytes).unwrap();
    assert!(!rsdp.extended_checksum_valid);
    assert_eq!((rsdp.rsdt, rsdp.xsdt), (PhysAddr(0x1000), PhysAddr(0)));
    bytes[0] = b'X';
    assert!(matches!(
        Rsdp::parse(&bytes),
        Err(RsdpError::Signature { .. })
    ));
    let bytes = build::rsdp(0x1000, 0x2000);
    assert!(matches!(
        Rsdp::parse(&bytes[..30]),
        Err(RsdpError::Truncated { .. })
    ));
}

#[test]
fn root_tables_of_both_widths_list_their_addresses() {
    let wide = build::xsdt(&[0x1_2345_6789, 0, 7]);
    let root = RootTable::parse(&wide).unwrap();
    let addresses: Vec<_> = root.addresses().map(|address| address.0).collect();
    assert_eq!(addresses, [0x1_2345_6789, 0, 7]);
    let narrow = build::rsdt(&[0xffff_0000, 5]);
    let root = RootTable::parse(&narrow).unwrap();
    let addresses: Vec<_> = root.addresses().map(|address| address.0).collect();
    assert_eq!(addresses, [0xffff_0000, 5]);
    assert!(RootTable::parse(&build::mcfg(&[])).is_err());
}

#[test]
fn a_madt_yields_every_kind_of_entry() {
    let unknown = vec![0x7f, 5, 1, 2, 3];
    let table = build::madt(
        0xfee0_0000,
        1,
        &[
            build::local_apic(1, 0, 1),
            build::local_x2apic(300, 0x1_0000, 1),
            build::io_apic(4, 0xfec0_0000, 24),
            build::source_override(0, 2, 5),
            build::nmi_source(13, 9),
            build::local_apic_nmi(0xff, 5, 1),
            build::local_x2apic_nmi(300, 5, 0),
            build::local_apic_override(0x12_3456_7000),
            build::wakeup(0x7f00_1000),
            unknown.clone(),
        ],
    );
    let madt = Madt::parse(&table).unwrap();
    assert!(madt.flags().contains(MadtFlags::PCAT_COMPAT));
    assert_eq!(madt.local_apic(), PhysAddr(0x12_3456_7000));
    assert_eq!(madt.local_apic_32(), PhysAddr(0xfee0_0000));
    let entries: Vec<_> = madt.entries().collect::<Result<_, _>>().unwrap();
    let offset = table.len() - unknown.len();
    assert_eq!(
        entries,
        [
            MadtEntry::LocalApic(LocalApic {
                apic_id: ApicId(0),
                uid: 1,
                flags: ProcessorFlags::ENABLED,
                x2apic: false
            }),
            MadtEntry::LocalApic(LocalApic {
                apic_id: ApicId(0x1_0000),
                uid: 300,
                flags: ProcessorFlags::ENABLED,
                x2apic: true
            }),
            MadtEntry::IoApic(IoApic {
                id: 4,
                address: PhysAddr(0xfec0_0000),
                interrupt_base: 24
            }),
            MadtEntry::SourceOverride(SourceOverride {
                bus: 0,
                source: 0,
                interrupt: 2,
                flags: 5
            }),
            MadtEntry::NmiSource(NmiSource {
                flags: 13,
                interrupt: 9
            }),
            MadtEntry::LocalApicNmi(LocalApicNmi {
                target: NmiTarget::All,
                flags: 5,
                lint: 1,
                x2apic: false
            }),
            MadtEntry::LocalApicNmi(LocalApicNmi {
                target: NmiTarget::Processor(300),
                flags: 5,
                lint: 0,
                x2apic: true
            }),
            MadtEntry::LocalApicOverride(PhysAddr(0x12_3456_7000)),
            MadtEntry::Wakeup(WakeupMailbox {
                version: 0,
                mailbox: PhysAddr(0x7f00_1000),
                reset_vector: None,
            }),
            MadtEntry::Unknown(RawEntry {
                kind: 0x7f,
                offset,
                bytes: &unknown
            }),
        ]
    );
}

#[test]
fn disabled_and_repeated_processors_do_not_count() {
    let table = build::madt(
        0xfee0_0000,
        0,
        &[
            build::local_apic(0, 6, 1),
            build::local_apic(1, 255, 0),
            build::local_apic(2, 255, 0),
            build::local_apic(3, 4, 2),
            build::local_apic(4, 6, 1),
            build::local_x2apic(5, 9, 1),
        ],
    );
    let madt = Madt::parse(&table).unwrap();
    let found: Vec<_> = madt
        .processors()
        .map(|cpu| (cpu.apic_id.0, cpu.uid))
        .collect();
    assert_eq!(found, [(6, 0), (9, 5)]);
    assert_eq!(madt.processor(ApicId(4)), None);
    assert_eq!(madt.processor(ApicId(9)).unwrap().uid, 5);
}

#[test]
fn an_entry_that_is_too_short_is_one_error_and_the_next_is_read() {
    let table = build::madt(0, 0, &[vec![0, 4, 1, 1], build::local_apic(2, 2, 1)]);
    let entries: Vec<_> = Madt::parse(&table).unwrap().entries().collect();
    assert_eq!(
        entries[0],
        Err(EntryError::Short {
            table: Signature::MADT,
            offset: 44,
            kind: 0,
            length: 4,
            needed: 8
        })
    );
    assert!(entries[1].is_ok() && entries.len() == 2);
}

#[test]
fn a_length_of_zero_or_past_the_end_stops_the_iteration_with_an_error() {
    for (tail, expected) in [
        (
            vec![0, 0, 1, 1],
            EntryError::Stuck {
                table: Signature::MADT,
                offset: 52,
                length: 0,
            },
        ),
        (
            vec![0, 1, 1, 1],
            EntryError::Stuck {
                table: Signature::MADT,
                offset: 52,
                length: 1,
            },
        ),
        (
            vec![0, 9, 1, 1, 1, 1, 1, 1],
            EntryError::Overrun {
                table: Signature::MADT,
                offset: 52,
                length: 9,
                left: 8,
            },
        ),
        (
            vec![0],
            EntryError::Overrun {
                table: Signature::MADT,
                offset: 52,
                length: 2,
                left: 1,
            },
        ),
    ] {
        let table = build::madt(0, 0, &[build::local_apic(0, 0, 1), tail]);
        let entries: Vec<_> = Madt::parse(&table).unwrap().entries().collect();
        assert!(entries[0].is_ok());
        assert_eq!(entries[1..], [Err(expected)]);
        assert!(expected.is_final());
    }
}

#[test]
fn ecam_memory_is_counted_from_bus_0() {
    let table = build::mcfg(&[
        (0xe000_0000, 0, 0, 255),
        (0x40_0000_0000, 1, 16, 31),
        (0, 2, 9, 3),
        (u64::MAX - 0xfff, 3, 0, 0),
    ]);
    let mcfg = Mcfg::parse(&table).unwrap();
    let memory: Vec<_> = mcfg.allocations().map(|a| a.memory()).collect();
    assert_eq!(
        memory,
        [
            Some(range(0xe000_0000, 0xf000_0000)),
            Some(range(0x40_0100_0000, 0x40_0200_0000)),
            None,
            None
        ]
    );
    let second = mcfg.allocation_of(1, 20).unwrap();
    assert_eq!(
        second.buses(20, 20),
        Some(range(0x40_0140_0000, 0x40_0150_0000))
    );
    assert_eq!(second.buses(15, 20), None);
    assert_eq!(mcfg.allocation_of(1, 32), None);
    assert_eq!(mcfg.allocation_of(2, 5), None);
}

#[test]
fn an_mcfg_with_half_an_allocation_at_its_end_has_the_whole_ones() {
    let mut table = build::mcfg(&[(0xe000_0000, 0, 0, 63), (1, 2, 3, 4)]);
    table.truncate(table.len() - 8);
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    fix_sum(&mut table, 9);
    assert_eq!(Mcfg::parse(&table).unwrap().allocations().count(), 1);
}

#[test]
fn proximity_domains_have_eight_bits_in_a_srat_of_revision_1() {
    let entries = [
        build::srat_apic(0x0302_0100, 7, 1),
        build::srat_memory(0x0505_0501, 0x1000, 0x2000, 1),
        build::srat_x2apic(2, 0x300, 0),
    ];
    let domains = |revision| {
        let table = build::srat(revision, &entries);
        let entries: Vec<_> = Srat::parse(&table)
            .unwrap()
            .entries()
            .map(|entry| match entry.unwrap() {
                Affinity::Processor {
                    domain, enabled, ..
                } => (domain, enabled),
                Affinity::Memory(memory) => {
                    assert_eq!(memory.range, range(0x1000, 0x3000));
                    (memory.domain, true)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        entries
    };
    assert_eq!(domains(1), [(0, true), (1, true), (2, false)]);
    assert_eq!(
        domains(3),
        [(0x0302_0100, true), (0x0505_0501, true), (2, false)]
    );
}

#[test]
fn a_hole_of_zeros_in_a_srat_ends_it_with_an_error() {
    let table = build::srat(3, &[build::srat_apic(0, 1, 1), vec![0; 16]]);
    let entries: Vec<_> = Srat::parse(&table).unwrap().entries().collect();
    assert_eq!(entries.len(), 2);
    assert!(matches!(
        entries[1],
        Err(EntryError::Stuck {
            offset: 64,
            length: 0,
            ..
        })
    ));
}

#[test]
fn a_slit_is_a_matrix_and_may_be_longer_but_not_shorter() {
    let mut table = build::slit(&[vec![10, 21], vec![31, 10]]);
    let slit = Slit::parse(&table).unwrap();
    assert_eq!(slit.localities(), 2);
    assert_eq!(
        [(0, 1), (1, 0), (1, 1)].map(|(a, b)| slit.distance(a, b)),
        [Some(21), Some(31), Some(10)]
    );
    assert_eq!(slit.distance(0, 2), None);
    table[36..44].copy_from_slice(&3_u64.to_le_bytes());
    fix_sum(&mut table, 9);
    assert!(matches!(
        Slit::parse(&table),
        Err(TableError::Truncated {
            needed: 53,
            have: 48,
            ..
        })
    ));
    table[36..44].copy_from_slice(&u64::MAX.to_le_bytes());
    fix_sum(&mut table, 9);
    assert!(Slit::parse(&table).is_err());
    // One locality in a table with room for eight.
    let long = sdt_with(1, 64);
    assert_eq!(Slit::parse(&long).unwrap().distance(0, 0), Some(10));
}

fn sdt_with(localities: u64, cells: usize) -> Vec<u8> {
    let body = Bytes::new().u64(localities).raw(&vec![10; cells]);
    build::sdt(b"SLIT", 1, &body.0)
}

#[test]
fn a_fadt_of_any_length_has_the_fields_that_are_whole() {
    let mut whole = build::fadt((0x1000, 0x2_0000_0000), (0x3000, 0x4_0000_0000));
    whole[76..80].copy_from_slice(&0x608_u32.to_le_bytes());
    whole[109..111].copy_from_slice(&0x0003_u16.to_le_bytes());
    whole[112..116].copy_from_slice(&(1_u32 << 10 | 1 << 19).to_le_bytes());
    whole[116..128].copy_from_slice(&Bytes::new().raw(&[1, 8, 0, 1]).u64(0xcf9).0);
    whole[128] = 6;
    fix_sum(&mut whole, 9);
    let fadt = Fadt::parse(&whole).unwrap();
    assert_eq!(
        (fadt.facs_32().0, fadt.facs_64().0),
        (0x1000, 0x2_0000_0000)
    );
    assert_eq!(
        (fadt.dsdt_32().0, fadt.dsdt_64().0),
        (0x3000, 0x4_0000_0000)
    );
    assert_eq!(fadt.pm_timer(), 0x608);
    assert_eq!(
        fadt.boot_architecture(),
        BootArchitecture::LEGACY_DEVICES | BootArchitecture::KEYBOARD_8042
    );
    assert!(
        fadt.flags()
            .contains(FadtFlags::FORCE_APIC_PHYSICAL_DESTINATION_MODE)
    );
    let (register, value) = fadt.reset().unwrap();
    assert_eq!((register.space, register.address, value), (1, 0xcf9, 6));
    for length in 36..whole.len() {
        let mut cut = whole[..length].to_vec();
        cut[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        fix_sum(&mut cut, 9);
        let fadt = Fadt::parse(&cut);
        if length < 44 {
            assert!(fadt.is_err(), "{length}");
            continue;
        }
        let fadt = fadt.unwrap();
        let expected = if length >= 148 { 0x4_0000_0000 } else { 0 };
        assert_eq!(fadt.dsdt_64().0, expected, "{length}");
        let expected = if length >= 140 { 0x2_0000_0000 } else { 0 };
        assert_eq!(fadt.facs_64().0, expected, "{length}");
        assert_eq!(fadt.dsdt_32().0, 0x3000);
        let address = fadt.reset().map(|(register, _)| register.address);
        assert_eq!(address, (length > 128).then_some(0xcf9), "{length}");
        let timer = if length >= 80 { 0x608 } else { 0 };
        assert_eq!(fadt.pm_timer(), timer, "{length}");
    }
}

#[test]
fn an_hpet_table_says_where_the_block_is() {
    let hpet = Hpet::parse(&build::hpet(0xfed0_0000, 2)).unwrap();
    assert_eq!((hpet.base.0, hpet.number), (0xfed0_0000, 2));
    assert_eq!(hpet.minimum_tick, 100);
}
