//! Who reaches what memory.

use handoff_abi::DomainId;
use iommu::Access;
use iommu::amd::{AttachError, Config, DomainError, MapError};
use iommu_model::amd::{Reason, Schedule, UnitConfig};
use proptest::prelude::*;

use crate::rig::*;

#[test]
fn addresses_beyond_the_width_fault_as_such() {
    for bits in [39, 48, 57] {
        let mut rig = Rig::up_with(Schedule::Lazy, &[UnitConfig::default()], |config| Config {
            iova_limit: 1 << bits,
            ..config
        });
        rig.attach(DEVICE, A);
        let end = 1_u64 << bits;
        assert_eq!(rig.write(DEVICE, end), Err(Reason::AddressTooWide));
        assert_eq!(rig.write(DEVICE, end - 8), Err(Reason::NotPresent));
        rig.sound();
    }
}

#[test]
fn the_largest_leaves_are_used() {
    let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
    let unit = &mut rig.units[0];
    unit.create_domain(A).unwrap();
    let before = unit.free_frames();
    // 1 GiB at 1 GiB: an entry of the root.
    let pending = unit.map(A, 1 << 30, range(5 << 30, 1 << 30), Access::READ_WRITE);
    unit.flush(pending.unwrap()).unwrap();
    assert_eq!(before, unit.free_frames());
    // 4 MiB at 2 MiB: two entries of one more table.
    let pending = unit.map(
        A,
        2 << 30 | 0x20_0000,
        range(0x40_0000, 0x40_0000),
        Access::READ,
    );
    unit.flush(pending.unwrap()).unwrap();
    assert_eq!(before, unit.free_frames() + 1);
    unit.enable().unwrap();
    rig.attach(DEVICE, A);
    assert_eq!(
        rig.write(DEVICE, (1 << 30) + 0x12_3456),
        Ok((5 << 30) + 0x12_3456)
    );
    assert_eq!(rig.read(DEVICE, 2 << 30 | 0x5f_ffff), Ok(0x7f_ffff));
    assert_eq!(rig.write(DEVICE, 2 << 30 | 0x5f_ffff), Err(Reason::NoWrite));
    rig.sound();
}

#[test]
fn what_is_hypertransports_is_never_mapped() {
    let mut rig = Rig::up_with(Schedule::Lazy, &[UnitConfig::default()], |config| Config {
        iova_limit: 1 << 48,
        ..config
    });
    let unit = &mut rig.units[0];
    let all = Access::READ_WRITE;
    for (iova, memory) in [
        (0x5000_0000, range(0xfd_0000_0000, 0x1000)),
        (0x5000_0000, range(0xff_ffff_f000, 0x1000)),
        (0xfd_0000_0000, range(0x5000_0000, 0x1000)),
        (0xfc_ffff_f000, range(0x5000_0000, 0x2000)),
    ] {
        let error = unit.map(A, iova, memory, all).unwrap_err();
        assert!(matches!(error, MapError::SpecialRange { .. }), "{error:?}");
    }
    let above = unit.map(A, 0x100_0000_0000, range(0x100_0000_0000, 0x1000), all);
    unit.flush(above.unwrap()).unwrap();
    rig.sound();
}

#[test]
fn a_device_is_attached_only_where_its_reserved_memory_is_mapped() {
    let mut rig = Rig::one();
    let unit = &mut rig.units[0];
    let reserved = range(0x3_0000_0000, 0x3000);
    let refused = AttachError::ReservedNotMapped {
        requester: DEVICE,
        memory: reserved,
    };
    let all = Access::READ_WRITE;
    assert_eq!(
        unit.attach_reserved(DEVICE, A, &[reserved]).unwrap_err(),
        refused
    );
    let part = range(0x3_0000_0000, 0x1000);
    let pending = unit.map(A, part.base().0, part, all).unwrap();
    unit.flush(pending).unwrap();
    assert_eq!(
        unit.attach_reserved(DEVICE, A, &[reserved]).unwrap_err(),
        refused
    );
    // Elsewhere, or not for writing, is not enough.
    let rest = range(0x3_0000_1000, 0x2000);
    let elsewhere = unit.map(A, rest.base().0, range(0x3_0001_1000, 0x2000), all);
    unit.flush(elsewhere.unwrap()).unwrap();
    assert_eq!(
        unit.attach_reserved(DEVICE, A, &[reserved]).unwrap_err(),
        refused
    );
    let pending = unit.unmap(A, rest.base().0, 0x2000).unwrap();
    unit.flush(pending).unwrap();
    let pending = unit.map(A, rest.base().0, rest, Access::READ).unwrap();
    unit.flush(pending).unwrap();
    assert_eq!(
        unit.attach_reserved(DEVICE, A, &[reserved]).unwrap_err(),
        refused
    );
    assert_eq!(unit.domain_of(DEVICE), None);
    let pending = unit.unmap(A, rest.base().0, 0x2000).unwrap();
    unit.flush(pending).unwrap();
    let pending = unit.map(A, rest.base().0, rest, all).unwrap();
    let attached = unit.attach_reserved(DEVICE, A, &[reserved, range(A_BASE, PART)]);
    rig.flush(pending.merge(attached.unwrap()));
    assert_eq!(rig.write(DEVICE, 0x3_0000_2fff), Ok(0x3_0000_2fff));
    rig.sound();
}

#[test]
fn domains_and_devices_have_one_life_at_a_time() {
    let mut rig = Rig::one();
    let unit = &mut rig.units[0];
    let error = unit.create_domain(DomainId(0)).unwrap_err();
    assert!(matches!(error, DomainError::IdOutOfRange { .. }));
    assert_eq!(unit.create_domain(A), Err(DomainError::Exists(A)));
    assert_eq!(unit.create_domain(DomainId(0xffff)), Ok(()));
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
    let at = |frames: u64| range(arena(0).base().0, frames * 0x1000);
    let prepare = |frames| {
        iommu::amd::Unit::prepare(
            machine.registers(0),
            machine.memory(),
            machine.clock(),
            range(window(0), 0x4000),
            at(frames),
            config(&model),
        )
    };
    // Device table, two rings, and the frame that waits write to.
    assert!(prepare(512 + 4).is_err());
    let mut unit = prepare(512 + 5 + 6).unwrap();
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
        unit.create_domain(DomainId(10 + unit.free_frames() as u16))
            .unwrap();
    }
    assert_eq!(unit.create_domain(B), Err(DomainError::ArenaFull));
    assert_eq!(
        unit.allocate_interrupt(DEVICE, target(1, 32)).unwrap_err(),
        iommu::amd::InterruptError::ArenaFull
    );
    // The device table is there already.
    let attached = unit.attach(DEVICE, A).unwrap();
    unit.flush(attached).unwrap();
    machine.audit();
    machine.assert_no_violations();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Any set of mappings against a naive map of pages.
    #[test]
    fn mappings_are_what_was_asked_for(
        bits in prop::sample::select(vec![39_u32, 48, 57]),
        maps in prop::collection::vec(
            (0_u64..40, 0_u64..40, 1_u64..40, prop::sample::select(vec![1_u64, 1, 256, 512]), 1_u8..4),
            1..12,
        ),
    ) {
        let mut rig = Rig::prepared_with(Schedule::Lazy, &[UnitConfig::default()], |config| Config {
            iova_limit: 1 << bits,
            ..config
        });
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
        unit.enable().unwrap();
        rig.attach(DEVICE, A);
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
