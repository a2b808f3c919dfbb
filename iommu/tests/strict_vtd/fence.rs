//! Who reaches what memory.

use handoff_abi::DomainId;
use iommu::Access;
use iommu::vtd::{AttachError, DomainError, MapError};
use iommu_model::{Reason, Schedule, UnitConfig};
use proptest::prelude::*;

use crate::rig::*;

#[test]
fn addresses_beyond_the_width_fault_as_such() {
    for (widths, expected) in [(0b0010, 39), (0b0100, 48), (0b1000, 57)] {
        let model = UnitConfig {
            address_widths: widths,
            guest_width: 57,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        let end = 1_u64 << expected;
        assert_eq!(rig.write(DEVICE, end), Err(Reason::AddressTooWide));
        assert_eq!(rig.write(DEVICE, end - 8), Err(Reason::NoWrite));
        rig.sound();
    }
}

#[test]
fn the_guest_width_bounds_what_can_be_mapped() {
    let model = UnitConfig {
        guest_width: 42,
        address_widths: 0b0100,
        ..UnitConfig::default()
    };
    let mut rig = Rig::up(Schedule::Lazy, &[model]);
    let memory = range(0x3_0000_0000, 0x1000);
    let limit = 1 << 42;
    assert!(matches!(
        rig.units[0].map(A, limit, memory, Access::READ),
        Err(MapError::AddressTooWide { .. })
    ));
    let last = limit - 0x1000;
    let pending = rig.units[0].map(A, last, memory, Access::READ).unwrap();
    rig.flush(pending);
    rig.attach(DEVICE, A);
    assert_eq!(rig.read(DEVICE, last), Ok(0x3_0000_0000));
    rig.sound();
}

#[test]
fn the_largest_leaves_the_unit_has_are_used_and_never_larger_ones() {
    for (large_pages, tables) in [(0b00, 2 + 512), (0b01, 2), (0b11, 1), (0b10, 2 + 512)] {
        let model = UnitConfig {
            large_pages,
            address_widths: 0b0010,
            ..UnitConfig::default()
        };
        let mut rig = Rig::prepared(Schedule::Lazy, &[model]);
        let unit = &mut rig.units[0];
        unit.create_domain(A).unwrap();
        let before = unit.free_frames();
        // 1 GiB at 1 GiB.
        let pending = unit.map(A, 1 << 30, range(5 << 30, 1 << 30), Access::READ_WRITE);
        unit.flush(pending.unwrap()).unwrap();
        assert_eq!(before - unit.free_frames() + 1, tables, "{large_pages:#b}");
        let pending = unit.attach(DEVICE, A).unwrap();
        unit.flush(pending).unwrap();
        unit.enable().unwrap();
        assert_eq!(
            rig.write(DEVICE, (1 << 30) + 0x12_3456),
            Ok((5 << 30) + 0x12_3456)
        );
        rig.sound();
    }
}

#[test]
fn domains_and_devices_have_one_life_at_a_time() {
    let model = UnitConfig {
        domain_bits_code: 0,
        ..UnitConfig::default()
    };
    let mut rig = Rig::up(Schedule::Lazy, &[model]);
    let unit = &mut rig.units[0];
    for id in [0, 16, 0xffff] {
        let error = unit.create_domain(DomainId(id)).unwrap_err();
        assert!(matches!(error, DomainError::IdOutOfRange { limit: 16, .. }));
    }
    assert_eq!(unit.create_domain(A), Err(DomainError::Exists(A)));
    assert_eq!(unit.create_domain(DomainId(15)), Ok(()));
    assert_eq!(
        unit.destroy_domain(DomainId(9)),
        Err(DomainError::Unknown(DomainId(9)))
    );
    let pending = unit.attach(DEVICE, A).unwrap();
    unit.flush(pending).unwrap();
    let twice = unit.attach(DEVICE, B).unwrap_err();
    assert!(matches!(
        twice,
        AttachError::AlreadyAttached { domain: A, .. }
    ));
    assert!(matches!(
        unit.destroy_domain(A),
        Err(DomainError::Attached { devices: 1, .. })
    ));
    let blocked = unit.block(DEVICE);
    assert_eq!(
        unit.attach(DEVICE, B).unwrap_err(),
        AttachError::NotFlushed(DEVICE)
    );
    assert!(matches!(
        unit.destroy_domain(A),
        Err(DomainError::Attached { .. })
    ));
    unit.flush(blocked).unwrap();
    let free = unit.free_frames();
    unit.destroy_domain(A).unwrap();
    assert!(unit.free_frames() > free, "its tables are free again");
    assert_eq!(
        unit.attach(DEVICE, A).unwrap_err(),
        AttachError::UnknownDomain(A)
    );
    let pending = unit.attach(DEVICE, B).unwrap();
    unit.flush(pending).unwrap();
    assert_eq!(rig.write(DEVICE, B_BASE), Ok(B_BASE));
    rig.sound();
}

#[test]
fn an_arena_that_runs_short_refuses_and_goes_on() {
    let model = UnitConfig::default();
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
    let small = range(arena(0).base().0, 0x8000);
    let mut unit = iommu::vtd::Unit::prepare(
        machine.registers(0),
        machine.memory(),
        machine.clock(),
        range(window(0), 0x1000),
        small,
        config(&UnitConfig::default()),
    )
    .unwrap();
    unit.enable().unwrap();
    unit.create_domain(A).unwrap();
    // Every GiB needs a table of 2 MiB pages, every odd page one of 4 KiB pages as well.
    let mut mapped = 0;
    let error = loop {
        let at = (8 + mapped) << 30 | 0x1000;
        match unit.map(A, at, range(at, 0x1000), Access::READ_WRITE) {
            Ok(pending) => unit.flush(pending).unwrap(),
            Err(error) => break error,
        }
        mapped += 1;
    };
    assert!(matches!(error, MapError::ArenaFull { .. }), "{error:?}");
    assert!(mapped >= 1);
    while unit.free_frames() > 0 {
        unit.create_domain(handoff_abi::DomainId(10 + unit.free_frames() as u16))
            .unwrap();
    }
    assert_eq!(unit.create_domain(B), Err(DomainError::ArenaFull));
    assert_eq!(unit.attach(DEVICE, A).unwrap_err(), AttachError::ArenaFull);
    machine.audit();
    machine.assert_no_violations();
}

proptest! {
    /// Any set of mappings against a naive map of pages.
    #[test]
    fn mappings_are_what_was_asked_for(
        large_pages in 0_u8..4,
        widths in prop::sample::select(vec![0b0010_u8, 0b0100, 0b0110]),
        maps in prop::collection::vec(
            (0_u64..40, 0_u64..40, 1_u64..40, prop::sample::select(vec![1_u64, 1, 256, 512]), 1_u8..4),
            1..12,
        ),
    ) {
        let model = UnitConfig { large_pages, address_widths: widths, ..UnitConfig::default() };
        let mut rig = Rig::prepared(Schedule::Lazy, &[model]);
        let unit = &mut rig.units[0];
        unit.create_domain(A).unwrap();
        let mut oracle = std::collections::BTreeMap::new();
        for (iova, at, count, unit_pages, access) in maps {
            let (iova, at) = (iova * unit_pages, 0x10_0000 + at * unit_pages);
            let count = count.min(16) * unit_pages;
            let pages = iova..iova + count;
            let free = pages.clone().all(|p| !oracle.contains_key(&p));
            let access = Access::from_bits_retain(access);
            let memory = range(at * 4096, count * 4096);
            match unit.map(A, iova * 4096, memory, access) {
                Ok(pending) => {
                    prop_assert!(free, "mapped over a mapping");
                    unit.flush(pending).unwrap();
                    for page in pages {
                        oracle.insert(page, (at + page - iova, access.bits()));
                    }
                }
                Err(error) => prop_assert!(!free, "{:?}", error),
            }
        }
        let pending = unit.attach(DEVICE, A).unwrap();
        unit.flush(pending).unwrap();
        unit.enable().unwrap();
        let mut seen = std::collections::BTreeMap::new();
        for run in rig.machine.reach(0, DEVICE.0) {
            let access = u8::from(run.read) | u8::from(run.write) << 1;
            for page in 0..run.length / 4096 {
                seen.insert(run.iova / 4096 + page, (run.at / 4096 + page, access));
            }
        }
        prop_assert_eq!(seen, oracle);
        rig.sound();
    }
}
