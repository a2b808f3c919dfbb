//! The IVRS table and the questions which unit covers a device, under which id, and what memory it
//! keeps reaching.

use acpi_capture::table::*;
use handoff_abi::{AmdViUnit, PciFunction, RequesterId, UnitKind};
use proptest::prelude::*;

use crate::build::{
    acpi_device, device, device_alias, device_range, io_apic, ivhd, ivmd, ivrs, madt, range,
    special,
};

const UNIT: u16 = 0x0002;
const BASE: u64 = 0xfd50_0000;

fn id(number: u16) -> RequesterId {
    RequesterId(number)
}

fn function(number: u16) -> PciFunction {
    PciFunction {
        segment: 0,
        requester: id(number),
    }
}

/// Register base and id on arrival of the unit that covers a function, or why none does.
fn covered(table: &[u8], number: u16) -> Result<(u64, u16), Uncovered> {
    let ivrs = Ivrs::parse(table).unwrap();
    match ivrs.unit_for(function(number)) {
        IvrsMatch::Covered(covered) => {
            let unit = ivrs.units().nth(covered.index).unwrap();
            assert_eq!(unit.description, covered.unit);
            Ok((covered.unit.registers.base().0, covered.arrives_as.0))
        }
        IvrsMatch::Uncovered(why) => Err(why),
    }
}

fn findings(table: &[u8], madt: Option<&[u8]>) -> Vec<IvrsFinding> {
    let madt = madt.map(|bytes| Madt::parse(bytes).unwrap());
    let mut found = Vec::new();
    Ivrs::parse(table)
        .unwrap()
        .findings(madt.as_ref(), |finding| found.push(finding));
    found
}

/// What a desktop of 2020 says: each unit three times, a range that reaches into an alias range,
/// padding, two I/O APICs and an HPET, ACPI devices in the last block.
fn desktop() -> Vec<u8> {
    let mut devices = vec![
        device_range(0x0008, 0xfffe, 0),
        device_alias(0xff00, Some(0xffff), 0x00a5),
        device(0, 0, 0),
        special(2, 0, 0x00a0, 0),
        special(1, 0x21, 0x00a0, 0xd7),
        special(1, 0x22, 0x0001, 0),
    ];
    let old = ivhd(0x10, 0, UNIT, BASE, &devices);
    let middle = ivhd(0x11, 0, UNIT, BASE, &devices);
    devices.push(acpi_device(0x00a5, b"AMDI0020", 2, b"\\_SB.FUR0"));
    devices.push(acpi_device(0x00a5, b"AMDI0020", 1, &7_u64.to_le_bytes()));
    devices.push(acpi_device(0x0099, b"PNPD0040", 0, b""));
    ivrs(&[old, middle, ivhd(0x40, 0, UNIT, BASE, &devices)])
}

#[test]
fn a_unit_that_is_listed_three_times_is_one_unit_by_its_best_block() {
    let table = desktop();
    let ivrs = Ivrs::parse(&table).unwrap();
    assert_eq!(ivrs.blocks().count(), 3);
    assert_eq!(
        (ivrs.physical_address_width(), ivrs.virtual_address_width()),
        (48, 64)
    );
    let units: Vec<_> = ivrs.units().collect();
    let [unit] = units[..] else {
        panic!("{units:?}")
    };
    assert_eq!(unit.block, 0x40);
    assert_eq!(unit.description.kind, UnitKind::AmdVi);
    assert_eq!(unit.description.registers, range(BASE, BASE + 0x4000));
    assert_eq!(
        unit.description.amd_vi,
        Some(AmdViUnit {
            function: id(UNIT),
            capability_offset: 0x40,
            flags: 0xb0
        })
    );
    assert!(
        unit.flags
            .contains(IvhdFlags::COHERENT | IvhdFlags::IOTLB_SUPPORT)
    );
    assert_eq!(
        (unit.features, unit.features2),
        (Some(0x22_a2c0_f000_01f2), Some(0x11))
    );
    assert_eq!(findings(&table, None), []);
    assert_eq!(
        covered(&table, UNIT),
        Err(Uncovered::TheUnitItself { index: 0 })
    );
    assert_eq!(covered(&table, 0x0001), Err(Uncovered::NoUnit));
    assert_eq!(covered(&table, 0x0008), Ok((BASE, 0x0008)));
    assert_eq!(covered(&table, 0x00a5), Ok((BASE, 0x00a5)));
    // The two ranges overlap: the alias counts in both.
    for number in [0xff00, 0xfffe, 0xffff] {
        assert_eq!(covered(&table, number), Ok((BASE, 0x00a5)));
    }
    let other_segment = PciFunction {
        segment: 1,
        ..function(8)
    };
    assert_eq!(
        ivrs.unit_for(other_segment),
        IvrsMatch::Uncovered(Uncovered::NoUnit)
    );
}

#[test]
fn entries_of_every_kind_are_read() {
    let extended = |kind, first: u16, settings: u8, word: u32| {
        [device(kind, first, settings), word.to_le_bytes().to_vec()].concat()
    };
    let table = ivrs(&[ivhd(
        0x40,
        0,
        UNIT,
        BASE,
        &[
            device(1, 0, 0x40),
            device(2, 0x10, 0x81),
            device_alias(0x18, None, 0x20),
            vec![0x40, 0, 0, 0, 0, 0, 0, 0],
            extended(0x46, 0x28, 2, 1 << 31),
            extended(0x47, 0x30, 4, 0),
            device(4, 0x37, 0xff),
            special(1, 5, 0xa0, 0xd7),
            special(2, 1, 0xa1, 0),
            special(9, 8, 0xa2, 0),
            acpi_device(0x98, b"AMDI0020", 1, &9_u64.to_le_bytes()),
            acpi_device(0x98, b"AMDI0020", 1, &[1, 2]),
            acpi_device(0x98, b"AMDI0020", 3, b"x"),
            acpi_device(0x98, b"AMDI0020", 0, b"x"),
            acpi_device(0x98, b"AMDI0020", 2, b""),
            device(5, 1, 1),
            vec![0x44, 0, 0, 0, 0, 0, 0, 0],
        ],
    )]);
    let ivrs = Ivrs::parse(&table).unwrap();
    let unit = ivrs.units().next().unwrap();
    let plain = DeviceSpan {
        first: id(0x10),
        last: id(0x10),
        alias: None,
        settings: DeviceSettings::INIT_PASS | DeviceSettings::LINT1_PASS,
        ats_disabled: false,
    };
    let acpi = |uid| {
        IvhdDevice::Acpi(AcpiDevice {
            requester: id(0x98),
            settings: DeviceSettings::LINT0_PASS,
            hardware_id: *b"AMDI0020",
            compatible_id: [0; 8],
            uid,
        })
    };
    let special = |kind, number, settings| {
        IvhdDevice::Special(SpecialDevice {
            kind,
            requester: id(number),
            settings: DeviceSettings::from_bits_retain(settings),
        })
    };
    let read: Vec<_> = unit.devices().map(Result::unwrap).collect();
    let offset = table.len() - 12;
    assert_eq!(
        read,
        [
            IvhdDevice::All(DeviceSettings::LINT0_PASS),
            IvhdDevice::Span(plain),
            IvhdDevice::Span(DeviceSpan {
                first: id(0x18),
                last: id(0x18),
                alias: Some(id(0x20)),
                settings: DeviceSettings::empty(),
                ..plain
            }),
            IvhdDevice::Span(DeviceSpan {
                first: id(0x28),
                last: id(0x28),
                settings: DeviceSettings::EXTERNAL_INTERRUPT_PASS,
                ats_disabled: true,
                ..plain
            }),
            IvhdDevice::Span(DeviceSpan {
                first: id(0x30),
                last: id(0x37),
                settings: DeviceSettings::NMI_PASS,
                ..plain
            }),
            special(SpecialKind::IoApic(5), 0xa0, 0xd7),
            special(SpecialKind::Hpet(1), 0xa1, 0),
            special(
                SpecialKind::Other {
                    variety: 9,
                    handle: 8
                },
                0xa2,
                0
            ),
            acpi(AcpiUid::Integer(9)),
            acpi(AcpiUid::Other {
                format: 1,
                bytes: &[1, 2]
            }),
            acpi(AcpiUid::Other {
                format: 3,
                bytes: b"x"
            }),
            acpi(AcpiUid::Other {
                format: 0,
                bytes: b"x"
            }),
            acpi(AcpiUid::Text(b"")),
            IvhdDevice::Unknown { offset, kind: 5 },
            IvhdDevice::Unknown {
                offset: offset + 4,
                kind: 0x44
            },
        ]
    );
    assert_eq!(
        DeviceSettings::from_bits_retain(0x30).system_management(),
        3
    );
    // Settings add up: "all" says Lint0, the entry for the one says the rest.
    let found = ivrs.unit_for(function(0x10)).covered().unwrap();
    assert_eq!(found.settings.bits(), 0xc1);
    assert!(
        ivrs.unit_for(function(0x28))
            .covered()
            .unwrap()
            .ats_disabled
    );
    assert_eq!(covered(&table, 0x18), Ok((BASE, 0x20)));
    // What only "all" names is covered, and so is any ACPI device.
    assert_eq!(covered(&table, 0xbeef), Ok((BASE, 0xbeef)));
    assert_eq!(covered(&table, 0x98), Ok((BASE, 0x98)));
    let kinds: Vec<_> = ivrs.interrupt_sources().map(|source| source.kind).collect();
    assert_eq!(
        kinds,
        [InterruptSourceKind::IoApic(5), InterruptSourceKind::Hpet(1)]
    );
}

#[test]
fn registers_are_longer_where_there_are_performance_counters() {
    let mut with_counters = ivhd(0x11, 0, UNIT, BASE, &[]);
    with_counters[25] |= 2;
    let mut old = ivhd(0x10, 0, UNIT, BASE, &[]);
    old[20..24].copy_from_slice(&(1_u32 << 13 | 1 << 17).to_le_bytes());
    for block in [with_counters, old] {
        let table = ivrs(&[block]);
        let unit = Ivrs::parse(&table).unwrap().units().next().unwrap();
        assert_eq!(unit.description.registers.length(), 0x8_0000);
    }
}

#[test]
fn an_unreadable_entry_isolates_the_devices_it_names_and_no_others() {
    let whole = device_range(0x08, 0xffff, 0);
    let unreadable = |tail: Vec<u8>| ivrs(&[ivhd(0x40, 0, UNIT, BASE, &[whole.clone(), tail])]);
    let doubt = |table: &[u8], number| matches!(covered(table, number), Err(Uncovered::Unreadable { offset }) if offset >= 88);
    // A unique id that reaches past the block.
    let mut long_uid = acpi_device(0x98, b"AMDI0020", 2, b"abc");
    long_uid[21] = 4;
    // A truncated alias, a truncated select.
    for tail in [
        long_uid,
        device_alias(0x98, None, 0x20)[..7].to_vec(),
        device(2, 0x98, 0)[..3].to_vec(),
    ] {
        let table = unreadable(tail);
        assert!(doubt(&table, 0x98));
        assert_eq!(covered(&table, 0x97), Ok((BASE, 0x97)));
        assert_eq!(covered(&table, 0x99), Ok((BASE, 0x99)));
        assert!(matches!(
            findings(&table, None)[..],
            [IvrsFinding::Device(DeviceError::Overrun { .. })]
        ));
    }
    // A range that does not end may be of anything above its start; one within another, of
    // anything between; one that ends before it begins, of what lies between its ends.
    let table = unreadable(device(3, 0x98, 0));
    assert_eq!(covered(&table, 0x97), Ok((BASE, 0x97)));
    assert!(doubt(&table, 0x98) && doubt(&table, 0xffff));
    let nested = [device(3, 0x90, 0), device(3, 0x98, 0), device(4, 0xa0, 0)].concat();
    let table = unreadable(nested);
    for (number, doubted) in [(0x8f, false), (0x90, true), (0xa0, true), (0xa1, false)] {
        assert_eq!(doubt(&table, number), doubted, "{number:#x}");
    }
    let table = unreadable(device_range(0xa0, 0x90, 0));
    for (number, doubted) in [(0x8f, false), (0x90, true), (0xa0, true), (0xa1, false)] {
        assert_eq!(doubt(&table, number), doubted, "{number:#x}");
    }
    let table = unreadable(device(4, 0x90, 0));
    for (number, doubted) in [(0x08, true), (0x90, true), (0x91, false)] {
        assert_eq!(doubt(&table, number), doubted, "{number:#x}");
    }
    // A type whose length nobody knows ends the block, and might have been for any device of a
    // range; not for one that has an entry of its own.
    let table = ivrs(&[ivhd(
        0x40,
        0,
        UNIT,
        BASE,
        &[whole, device(2, 0x18, 0), vec![0x80, 1, 2, 3]],
    )]);
    assert_eq!(covered(&table, 0x18), Ok((BASE, 0x18)));
    assert!(doubt(&table, 0x20));
}

#[test]
fn a_block_with_an_unreadable_entry_gives_way_to_an_older_one_of_the_same_unit() {
    let whole = device_range(0x08, 0xffff, 0);
    for reversed in [false, true] {
        let mut blocks = [
            ivhd(0x10, 0, UNIT, BASE, std::slice::from_ref(&whole)),
            ivhd(0x11, 0, UNIT, BASE, std::slice::from_ref(&whole)),
            ivhd(0x40, 0, UNIT, BASE, &[whole.clone(), vec![0xc0, 0, 0, 0]]),
        ];
        if reversed {
            blocks.reverse();
        }
        let table = ivrs(&blocks);
        let unit = Ivrs::parse(&table).unwrap().units().next().unwrap();
        assert_eq!(unit.block, 0x11);
        assert_eq!(covered(&table, 0x18), Ok((BASE, 0x18)));
        let found = findings(&table, None);
        assert!(found.contains(&IvrsFinding::LesserBlock {
            offset: unit.offset
        }));
    }
}

#[test]
fn of_two_blocks_of_one_type_the_same_counts_in_either_order() {
    let long = ivhd(0x10, 0, UNIT, BASE, &[device_range(0x08, 0xff, 0)]);
    let short = ivhd(0x10, 0, UNIT, BASE + 0x4000, &[device(2, 0x08, 0)]);
    let alike = ivhd(0x10, 0, UNIT, BASE, &[device_range(0x08, 0xfe, 0)]);
    for [first, second] in [
        [&long, &short],
        [&short, &long],
        [&long, &alike],
        [&alike, &long],
    ] {
        let table = ivrs(&[first.clone(), second.clone()]);
        assert_eq!(covered(&table, 0xff), Ok((BASE, 0xff)));
        assert!(
            findings(&table, None).contains(&IvrsFinding::DuplicateBlock {
                offset: 48 + first.len()
            })
        );
    }
}

#[test]
fn a_bad_block_takes_no_other_unit_with_it() {
    let good = ivhd(0x11, 0, UNIT, BASE, &[device_range(0x08, 0xff, 0)]);
    let short = [&[0x40, 0, 20, 0][..], &[0; 16]].concat();
    for tail in [
        short.clone(),
        // Lengths of zero and past the end.
        vec![0x11, 0, 0, 0],
        vec![0x11, 0, 41, 0],
        vec![0x11, 0],
    ] {
        let table = ivrs(&[good.clone(), tail]);
        assert_eq!(covered(&table, 0x08), Ok((BASE, 0x08)));
        assert!(matches!(
            covered(&table, 0x100),
            Err(Uncovered::Unreadable { .. })
        ));
        assert!(matches!(
            findings(&table, None)[..],
            [IvrsFinding::Block(_)]
        ));
    }
    // A short block is stepped over.
    let table = ivrs(&[short, good]);
    assert_eq!(covered(&table, 0x08), Ok((BASE, 0x08)));
}

#[test]
fn units_without_registers_of_their_own_cover_nothing() {
    let devices = |first, last| [device_range(first, last, 0)];
    for base in [0, 0x1000, !0x3fff, u64::MAX] {
        let table = ivrs(&[
            ivhd(0x10, 0, UNIT, base, &devices(0x08, 0xff)),
            ivhd(0x10, 0, 0x102, BASE, &devices(0x108, 0x1ff)),
        ]);
        assert_eq!(covered(&table, 0x08), Err(Uncovered::DeadUnit { index: 0 }));
        assert_eq!(covered(&table, 0x108), Ok((BASE, 0x108)));
    }
    let table = ivrs(&[
        ivhd(0x10, 0, UNIT, BASE, &devices(0x08, 0xff)),
        ivhd(0x10, 0, 0x102, BASE, &devices(0x108, 0x1ff)),
    ]);
    assert_eq!(covered(&table, 0x08), Err(Uncovered::DeadUnit { index: 0 }));
    assert_eq!(
        covered(&table, 0x108),
        Err(Uncovered::DeadUnit { index: 1 })
    );
    assert_eq!(findings(&table, None).len(), 2);
}

#[test]
fn two_units_that_name_a_device_alike_leave_it_uncovered() {
    let table = ivrs(&[
        ivhd(0x10, 0, UNIT, BASE, &[device_range(0x08, 0x1ff, 0)]),
        ivhd(
            0x10,
            0,
            0x102,
            BASE + 0x4000,
            &[device_range(0x180, 0x2ff, 0), device(2, 0x10, 0)],
        ),
    ]);
    assert_eq!(covered(&table, 0x08), Ok((BASE, 0x08)));
    // Its own entry is more precise than the other unit's range.
    assert_eq!(covered(&table, 0x10), Ok((BASE + 0x4000, 0x10)));
    assert_eq!(
        covered(&table, 0x180),
        Err(Uncovered::Conflict {
            first: 0,
            second: 1
        })
    );
    assert_eq!(covered(&table, 0x200), Ok((BASE + 0x4000, 0x200)));
}

#[test]
fn contradicting_aliases_leave_a_device_uncovered() {
    let table = ivrs(&[ivhd(
        0x10,
        0,
        UNIT,
        BASE,
        &[
            device_alias(0x100, Some(0x1ff), 0xa5),
            device_alias(0x110, None, 0xa0),
            device(2, 0x120, 0),
        ],
    )]);
    assert_eq!(
        covered(&table, 0x110),
        Err(Uncovered::Aliases {
            first: id(0xa5),
            second: id(0xa0)
        })
    );
    assert_eq!(covered(&table, 0x111), Ok((BASE, 0xa5)));
    assert_eq!(covered(&table, 0x120), Ok((BASE, 0xa5)));
}

#[test]
fn memory_definitions_become_unity_maps_of_whole_pages() {
    let map = |block: Vec<u8>| {
        let table = ivrs(&[block]);
        let ivrs = Ivrs::parse(&table).unwrap();
        let memory = ivrs.memory().next().unwrap();
        memory
            .unity_map()
            .map(|map| (map.region.range, map.read, map.write))
    };
    // Unity with reading only; an exclusion range, whose other flags do not count.
    let at = 0x7d90_0000;
    assert_eq!(
        map(ivmd(0x21, 0b011, (0x60, 0), at, 0x1000)),
        Ok((range(at, at + 0x1000), true, false))
    );
    assert_eq!(
        map(ivmd(0x21, 0b1000, (0x60, 0), at, 0x1000)),
        Ok((range(at, at + 0x1000), true, true))
    );
    // One byte, in the middle of a page.
    assert_eq!(
        map(ivmd(0x22, 8, (0, 0xfff), at + 0x123, 1)),
        Ok((range(at, at + 0x1000), true, true))
    );
    assert_eq!(
        map(ivmd(0x22, 8, (0, 0xfff), at + 0xfff, 2)),
        Ok((range(at, at + 0x2000), true, true))
    );
    let (empty, ..) = map(ivmd(0x20, 7, (0, 0), 0, 0)).unwrap();
    assert!(empty.is_empty());
    for (base, length) in [(u64::MAX, 2), (1, u64::MAX), (u64::MAX - 0xfff, 1)] {
        assert!(matches!(
            map(ivmd(0x20, 7, (0, 0), base, length)),
            Err(RegionFault::Wraps { .. })
        ));
    }
}

#[test]
fn memory_definitions_are_for_all_one_or_a_range() {
    let table = ivrs(&[
        ivmd(0x20, 7, (0, 0), 0x1000, 0x1000),
        ivmd(0x21, 7, (0x60, 0x70), 0x2000, 0x1000),
        ivmd(0x22, 8, (0, 0xfff), 0x3000, 1),
        // The last one first.
        ivmd(0x22, 8, (0x2000, 0x1000), 0x4000, 0x1000),
        // Not in the specification, and in three real tables.
        ivmd(0x51, 8, (0x60, 0), 0x5000, 0x1000),
    ]);
    let ivrs = Ivrs::parse(&table).unwrap();
    let reached = |number| {
        let maps = ivrs.reserved_for(function(number)).map(Result::unwrap);
        maps.map(|map| map.region.range.base().0)
            .collect::<Vec<_>>()
    };
    assert_eq!(reached(0x60), [0x1000, 0x2000, 0x3000]);
    assert_eq!(reached(0x61), [0x1000, 0x3000]);
    assert_eq!(reached(0x1000), [0x1000, 0x4000]);
    assert_eq!(reached(0x2001), [0x1000]);
    assert_eq!(ivrs.lost_memory(), None);
    assert_eq!(
        findings(&table, None),
        [
            IvrsFinding::UnalignedRegion { offset: 48 + 64 },
            IvrsFinding::ReversedTarget { offset: 48 + 96 },
            IvrsFinding::UnknownBlock {
                offset: 48 + 128,
                kind: 0x51
            }
        ]
    );
}

#[test]
fn a_memory_definition_that_cannot_be_read_is_known_to_be_lost() {
    let mut short = ivmd(0x21, 7, (0x60, 0), 0x1000, 0x1000);
    short.truncate(24);
    short[2] = 24;
    let unit = ivhd(0x10, 0, UNIT, BASE, &[device_range(0x08, 0xff, 0)]);
    let table = ivrs(&[short, unit]);
    assert!(Ivrs::parse(&table).unwrap().lost_memory().is_some());
    // It casts no doubt on units.
    assert_eq!(covered(&table, 0x60), Ok((BASE, 0x60)));
}

#[test]
fn blocks_need_not_be_aligned() {
    // One byte of padding at the end of the first block leaves all others at odd offsets.
    let first = ivhd(0x10, 0, UNIT, BASE, &[device_range(0x08, 0xff, 0), vec![0]]);
    let second = ivhd(
        0x10,
        0,
        0x102,
        BASE + 0x4000,
        &[device_range(0x108, 0x1ff, 0)],
    );
    let table = ivrs(&[first, second]);
    assert_eq!(findings(&table, None), []);
    assert_eq!(covered(&table, 0x108), Ok((BASE + 0x4000, 0x108)));
}

#[test]
fn interrupt_sources_are_held_against_the_madt() {
    let unit = |sources: &[Vec<u8>]| ivrs(&[ivhd(0x10, 0, UNIT, BASE, sources)]);
    let madt = madt(
        0xfee0_0000,
        1,
        &[
            io_apic(0x21, 0xfec0_0000, 0),
            io_apic(0x22, 0xfec0_1000, 24),
        ],
    );
    // Missing, doubled alike, doubled otherwise, unknown to the MADT.
    let table = unit(&[
        special(1, 0x21, 0xa0, 0),
        special(1, 0x21, 0xa0, 0),
        special(1, 0x23, 0xa1, 0),
        special(1, 0x23, 0xa2, 0),
    ]);
    assert_eq!(
        findings(&table, Some(&madt)),
        [
            IvrsFinding::RepeatedSource {
                index: 0,
                kind: SpecialKind::IoApic(0x21),
                requester: id(0xa0)
            },
            IvrsFinding::StrayIoApic { index: 0, id: 0x23 },
            IvrsFinding::RepeatedSource {
                index: 0,
                kind: SpecialKind::IoApic(0x23),
                requester: id(0xa2)
            },
            IvrsFinding::StrayIoApic { index: 0, id: 0x23 },
            IvrsFinding::MissingIoApic { id: 0x22 },
        ]
    );
    let ivrs = Ivrs::parse(&table).unwrap();
    let source = ivrs.interrupt_source(InterruptSourceKind::IoApic(0x21));
    assert_eq!(source.unwrap().function, Some(function(0xa0)));
    for kind in [
        InterruptSourceKind::IoApic(0x23),
        InterruptSourceKind::IoApic(0x22),
        InterruptSourceKind::Hpet(0),
    ] {
        assert_eq!(ivrs.interrupt_source(kind), None);
    }
}

#[test]
fn sources_without_number_take_no_more_time_than_their_bytes() {
    // 128 units of 59 sources each: with a look back for each source this took minutes here.
    let units: Vec<_> = (0..128_u16)
        .map(|unit| {
            let sources: Vec<_> = (0..59).map(|n| special(1, n, unit << 8 | 1, 0)).collect();
            let base = BASE + u64::from(unit) * 0x4000;
            ivhd(0x10, 0, unit << 8 | 2, base, &sources)
        })
        .collect();
    let table = ivrs(&units);
    let started = std::time::Instant::now();
    assert_eq!(findings(&table, None).len(), 127 * 59);
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
}

#[test]
fn a_machine_of_four_units_keeps_them_apart() {
    let units: Vec<_> = (0..4_u16)
        .flat_map(|node| {
            let bus = node << 13;
            let devices = [
                device_range(bus | 0x08, bus | 0x1fff, 0),
                special(1, 0x80 + node as u8, bus | 1, 0),
            ];
            [0x10, 0x11, 0x40].map(|block| {
                let base = BASE + u64::from(node) * 0x10_0000;
                ivhd(block, 0, bus | 2, base, &devices)
            })
        })
        .collect();
    for reversed in [false, true] {
        let mut units = units.clone();
        if reversed {
            units.reverse();
        }
        let table = ivrs(&units);
        let ivrs = Ivrs::parse(&table).unwrap();
        assert_eq!(ivrs.units().count(), 4);
        assert!(ivrs.units().all(|unit| unit.block == 0x40));
        for node in 0..4_u16 {
            let number = node << 13 | 0x100;
            let base = BASE + u64::from(node) * 0x10_0000;
            assert_eq!(covered(&table, number), Ok((base, number)));
            let kind = InterruptSourceKind::IoApic(0x80 + node as u8);
            let source = ivrs.interrupt_source(kind).unwrap();
            assert_eq!(source.function, Some(function(node << 13 | 1)));
            assert_eq!(source.unit.registers.base().0, base);
        }
    }
}

#[test]
fn more_blocks_than_are_read_cast_doubt_on_what_nobody_names() {
    let blocks: Vec<_> = (0..200_u16)
        .map(|unit| {
            let base = BASE + u64::from(unit) * 0x4000;
            ivhd(0x10, 0, unit << 8 | 2, base, &[device(2, unit << 8 | 8, 0)])
        })
        .collect();
    let table = ivrs(&blocks);
    assert_eq!(covered(&table, 0x0508), Ok((BASE + 5 * 0x4000, 0x0508)));
    assert!(matches!(
        covered(&table, 150 << 8 | 8),
        Err(Uncovered::Unreadable { .. })
    ));
    let found = findings(&table, None);
    assert!(matches!(found[..], [IvrsFinding::TooManyUnits { .. }]));
}

/// An entry as the model knows it: precision, first, last, alias, settings.
type Plain = (u8, u16, u16, Option<u16>, u8);

prop_compose! {
    fn plain_entry()(
        kind in 0_u8..5,
        first in 0_u16..48,
        more in 1_u16..16,
        alias in 0_u16..4,
        settings: u8,
    ) -> Plain {
        let last = first + more;
        match kind {
            0 => (0, 0, u16::MAX, None, settings),
            1 => (1, first, last, None, settings),
            2 => (2, first, first, None, settings),
            // Entries with an alias are written without settings.
            3 => (1, first, last, Some(alias), 0),
            _ => (2, first, first, Some(alias), 0),
        }
    }
}

fn write(entry: &Plain) -> Vec<u8> {
    let &(precision, first, last, alias, settings) = entry;
    match (precision, alias) {
        (0, _) => device(1, 0, settings),
        (1, None) => device_range(first, last, settings),
        (1, Some(alias)) => device_alias(first, Some(last), alias),
        (_, None) => device(2, first, settings),
        (_, Some(alias)) => device_alias(first, None, alias),
    }
}

/// The unit, the id on arrival and the settings, by the plainest of loops.
fn model(units: &[Vec<Plain>], number: u16) -> Option<(usize, u16, u8)> {
    let names = |entry: &&Plain| (entry.1..=entry.2).contains(&number);
    let rank = |unit: &Vec<Plain>| unit.iter().filter(names).map(|entry| entry.0).max();
    let best = units.iter().filter_map(rank).max()?;
    let winners: Vec<_> = (0..units.len())
        .filter(|&unit| rank(&units[unit]) == Some(best))
        .collect();
    let [winner] = winners[..] else { return None };
    let entries: Vec<_> = units[winner].iter().filter(names).collect();
    let mut aliases: Vec<_> = entries.iter().filter_map(|entry| entry.3).collect();
    aliases.sort();
    aliases.dedup();
    let arrives_as = match aliases[..] {
        [] => number,
        [alias] => alias,
        _ => return None,
    };
    let settings = entries.iter().fold(0, |all, entry| all | entry.4);
    Some((winner, arrives_as, settings))
}

proptest! {
    #[test]
    fn the_look_up_agrees_with_the_model_in_any_order(
        units in prop::collection::vec(prop::collection::vec(plain_entry(), 0..6), 1..4),
        order in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
        blocks in prop::collection::vec(0_u8..3, 12),
        number in 0_u16..64,
    ) {
        // Each unit by the same entries in one to three blocks, all blocks in any order, and the
        // entries in another order in each.
        let mut written = Vec::new();
        for place in order {
            let (unit, kind) = (place % 4, blocks[place]);
            let Some(entries) = units.get(unit) else { continue };
            let mut entries: Vec<_> = entries.iter().map(write).collect();
            if place % 3 == 0 {
                entries.reverse();
            }
            let block = [0x10, 0x11, 0x40][usize::from(kind)];
            let base = BASE + 0x4000 * unit as u64;
            written.push(ivhd(block, 0, 0xff00 + unit as u16, base, &entries));
        }
        let table = ivrs(&written);
        let found = Ivrs::parse(&table).unwrap().unit_for(function(number)).covered();
        let found = found.map(|c| {
            let unit = (c.unit.registers.base().0 - BASE) / 0x4000;
            (unit as usize, c.arrives_as.0, c.settings.bits())
        });
        prop_assert_eq!(found, model(&units, number));
    }

    #[test]
    fn damaged_blocks_never_add_coverage(
        units in prop::collection::vec(prop::collection::vec(plain_entry(), 1..6), 1..4),
        cut in 1_usize..40,
        number in 0_u16..64,
    ) {
        // The last unit's block ends early, in the middle of anything.
        let blocks: Vec<_> = units.iter().enumerate().map(|(unit, entries)| {
            let entries: Vec<_> = entries.iter().map(write).collect();
            ivhd(0x10, 0, 0xff00 + unit as u16, BASE + 0x4000 * unit as u64, &entries)
        }).collect();
        let whole = ivrs(&blocks);
        let mut damaged = blocks.clone();
        let last = damaged.last_mut().unwrap();
        let length = last.len().saturating_sub(cut).max(4);
        last.truncate(length);
        last[2..4].copy_from_slice(&(length as u16).to_le_bytes());
        let damaged = ivrs(&damaged);
        let before = Ivrs::parse(&whole).unwrap().unit_for(function(number)).covered();
        let after = Ivrs::parse(&damaged).unwrap().unit_for(function(number)).covered();
        if let Some(after) = after {
            // Only the unit that lost entries may have lost a claim that made a conflict.
            let lost = units.len() - 1;
            prop_assert!(
                before.is_some_and(|before| before.index == after.index) || after.index == lost
                    || model(&units[..lost], number).is_some()
            );
        }
    }
}

#[test]
fn every_ivrs_table_of_the_corpus_is_understood() {
    let Some(corpus) = crate::corpus::corpus() else {
        return;
    };
    let mut distinct = std::collections::BTreeSet::new();
    let mut oddities = std::collections::BTreeMap::new();
    let (mut tables, mut covered, mut aliased, mut acpi) = (0, 0, 0, 0);
    for entry in crate::corpus::of_kind(corpus, "acpi:IVRS") {
        let name = &entry.name;
        tables += 1;
        distinct.insert(&entry.bytes);
        let ivrs = Ivrs::parse(&entry.bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        for block in ivrs.blocks() {
            if let IvrsBlock::Unit(unit) = block.unwrap_or_else(|e| panic!("{name}: {e}")) {
                for device in unit.devices() {
                    let device = device.unwrap_or_else(|e| panic!("{name}: {e}"));
                    acpi += usize::from(matches!(device, IvhdDevice::Acpi(_)));
                }
            }
        }
        let blocks = ivrs.blocks().filter_map(|block| match block {
            Ok(IvrsBlock::Unit(unit)) => Some(unit.block),
            _ => None,
        });
        let best = blocks.max();
        for unit in ivrs.units() {
            assert_eq!(Some(unit.block), best, "{name}");
            assert!(unit.is_usable(), "{name}");
            let itself = PciFunction {
                segment: unit.description.segment,
                requester: unit.requester,
            };
            assert!(ivrs.unit_for(itself).covered().is_none(), "{name}");
        }
        for number in (0..=u16::MAX).step_by(251) {
            match ivrs.unit_for(function(number)) {
                IvrsMatch::Covered(found) => {
                    covered += 1;
                    aliased += usize::from(found.arrives_as != id(number));
                }
                IvrsMatch::Uncovered(Uncovered::NoUnit | Uncovered::TheUnitItself { .. }) => {}
                IvrsMatch::Uncovered(why) => panic!("{name}: {number:#x}: {why}"),
            }
        }
        let beside = corpus.iter().find(|other| {
            other.kind == "acpi:APIC"
                && other.name.rsplit_once('/').unwrap().0 == name.rsplit_once('/').unwrap().0
        });
        let madt = beside.map(|madt| Madt::parse(&madt.bytes).unwrap());
        ivrs.findings(madt.as_ref(), |finding| {
            let what = match finding {
                IvrsFinding::UnknownBlock { .. } => "unknown block",
                IvrsFinding::UnalignedRegion { .. } => "unaligned memory",
                IvrsFinding::RepeatedSource { .. } => "repeated source",
                IvrsFinding::StrayIoApic { .. } => "I/O APIC not in the MADT",
                IvrsFinding::MissingIoApic { .. } => "I/O APIC not in the IVRS",
                other => panic!("{name}: {other}"),
            };
            *oddities.entry(what).or_insert(0) += 1;
        });
        for memory in ivrs.memory() {
            let map = memory.unity_map().unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(map.read && map.region.range.contains(memory.base), "{name}");
        }
    }
    crate::corpus::say(&format!(
        "corpus: {tables} IVRS tables, {} of them distinct, {acpi} ACPI devices, {covered} ids \
         covered, {aliased} of them under an alias, oddities {oddities:?}",
        distinct.len()
    ));
    assert!(tables > 90 && acpi > 0 && aliased > 0);
}
