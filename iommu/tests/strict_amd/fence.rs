//! Who reaches what memory.

use handoff_abi::{DomainId, RequesterId};
use iommu::Access;
use iommu::amd::{AttachError, Config, DomainError, MapError, UnmapError};
use iommu_model::amd::{Reach, Reason, Schedule, UnitConfig};
use proptest::prelude::*;

use crate::rig::*;

#[test]
fn a_device_reaches_its_domain_and_nothing_else() {
    for model in models() {
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        rig.attach(OTHER, B);
        for (device, own, foreign) in [(DEVICE, A_BASE, B_BASE), (OTHER, B_BASE, A_BASE)] {
            for at in [own, own + 0x1f_fff8, own + PART - 8] {
                assert_eq!(rig.write(device, at), Ok(at));
                assert_eq!(rig.read(device, at), Ok(at));
            }
            let arena = arena(0).base().0;
            let outside = [
                foreign,
                own - 8,
                own + PART,
                0,
                0xfed9_0000,
                arena,
                arena + 0x3000,
            ];
            for at in outside {
                assert_eq!(rig.write(device, at), Err(Reason::NotPresent), "{at:#x}");
                assert_eq!(rig.read(device, at), Err(Reason::NotPresent), "{at:#x}");
            }
            let whole = Reach {
                iova: own,
                at: own,
                length: PART,
                read: true,
                write: true,
            };
            assert_eq!(rig.machine.reach(0, device.0), [whole]);
        }
        rig.sound();
    }
}

#[test]
fn a_blocked_write_changes_nothing_and_a_blocked_read_gives_nothing() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.machine.poke(B_BASE, 0x0123_4567_89ab_cdef);
    let dma = rig.machine.dma_write(0, DEVICE.0, B_BASE, &[0xff; 8]);
    assert!(dma.landed.is_empty());
    assert_eq!(rig.machine.peek(B_BASE), 0x0123_4567_89ab_cdef);
    assert!(rig.machine.dma_read(0, DEVICE.0, B_BASE, 8).data.is_empty());
}

#[test]
fn dma_over_a_border_lands_up_to_it() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let end = A_BASE + PART;
    let dma = rig.machine.dma_write(0, DEVICE.0, end - 2, &[1; 8]);
    assert_eq!(dma.landed, [(end - 2, 2)]);
    assert_eq!(dma.blocked, Some(Reason::NotPresent));
}

#[test]
fn read_only_and_write_only_are_kept() {
    let mut rig = Rig::one();
    let at = 0x3_0000_0000;
    for (iova, access) in [(at, Access::READ), (at + 0x1000, Access::WRITE)] {
        let pending = rig.units[0].map(A, iova, range(iova, 0x1000), access);
        rig.flush(pending.unwrap());
    }
    rig.attach(DEVICE, A);
    assert_eq!(rig.read(DEVICE, at), Ok(at));
    assert_eq!(rig.write(DEVICE, at), Err(Reason::NoWrite));
    assert_eq!(rig.write(DEVICE, at + 0x1000), Ok(at + 0x1000));
    assert_eq!(rig.read(DEVICE, at + 0x1000), Err(Reason::NoRead));
    rig.sound();
}

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
fn no_mapping_touches_the_interrupt_range_or_the_tables() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let before = rig.machine.reach(0, DEVICE.0);
    let unit = &mut rig.units[0];
    let all = Access::READ_WRITE;
    for (iova, memory) in [
        (0x5000_0000, range(0xfee0_0000, 0x1000)),
        (0x5000_0000, range(0xfeef_f000, 0x1000)),
        (0x5000_0000, range(0xfed0_0000, 0x20_0000)),
        (0xfee0_0000, range(0x5000_0000, 0x1000)),
        (0xfee8_0000, range(0xfee8_0000, 0x1000)),
        (0xc000_0000, range(0xc000_0000, 0x4000_0000)),
    ] {
        let error = unit.map(A, iova, memory, all).unwrap_err();
        assert!(
            matches!(error, MapError::InterruptRange { .. }),
            "{error:?}"
        );
    }
    for memory in [
        arena(0),
        range(arena(0).base().0 + 0x3000, 0x1000),
        range(arena(0).base().0 - 0x1000, 0x2000),
        range(0x4000_0000, 0x4000_0000),
    ] {
        let error = unit.map(A, 0x5_0000_0000, memory, all).unwrap_err();
        assert!(matches!(error, MapError::OwnTables { .. }), "{error:?}");
    }
    assert_eq!(rig.machine.reach(0, DEVICE.0), before);
    // Right up to it on both sides is well.
    let unit = &mut rig.units[0];
    let below = unit.map(A, 0xfec0_0000, range(0xfec0_0000, 0x20_0000), all);
    let below = below.unwrap();
    let above = unit.map(A, 0xfef0_0000, range(0xfef0_0000, 0x10_0000), all);
    let both = below.merge(above.unwrap());
    rig.flush(both);
    assert_eq!(rig.write(DEVICE, 0xfedf_fff8), Ok(0xfedf_fff8));
    assert_eq!(rig.write(DEVICE, 0xfef0_0000), Ok(0xfef0_0000));
    rig.sound();
}

#[test]
fn what_cannot_be_mapped_or_unmapped_changes_nothing() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let before = rig.machine.reach(0, DEVICE.0);
    let free = rig.units[0].free_frames();
    let unit = &mut rig.units[0];
    let all = Access::READ_WRITE;
    let page = range(0x3_0000_0000, 0x1000);
    let map = [
        unit.map(DomainId(7), 0, page, all).err(),
        unit.map(A, 1, page, all).err(),
        unit.map(A, 0, range(0x1800, 0x1000), all).err(),
        unit.map(A, 0, range(0x1000, 0x800), all).err(),
        unit.map(A, 0, range(0x1000, 0), all).err(),
        unit.map(A, 0, page, Access::empty()).err(),
        unit.map(A, 1 << 39, page, all).err(),
        unit.map(A, u64::MAX - 0xfff, page, all).err(),
        unit.map(A, 0, range(1 << 46, 0x1000), all).err(),
        unit.map(A, A_BASE, page, all).err(),
        unit.map(A, A_BASE + PART - 0x1000, range(0x3_0000_0000, 0x2000), all)
            .err(),
        unit.map(A, A_BASE - 0x1000, range(0x3_0000_0000, 0x2000), all)
            .err(),
    ];
    assert!(map.iter().all(Option::is_some), "{map:?}");
    let unmap = [
        unit.unmap(DomainId(7), 0, 0x1000).err(),
        unit.unmap(A, A_BASE, 0).err(),
        unit.unmap(A, A_BASE, 0x800).err(),
        unit.unmap(A, A_BASE + 1, 0x1000).err(),
        unit.unmap(A, u64::MAX - 0xfff, 0x1000).err(),
        unit.unmap(A, A_BASE - 0x1000, 0x2000).err(),
        unit.unmap(A, A_BASE, PART + 0x1000).err(),
    ];
    assert!(unmap.iter().all(Option::is_some), "{unmap:?}");
    let split = unit.unmap(A, A_BASE, 0x1000);
    assert!(
        matches!(split, Err(UnmapError::WouldSplit { .. })),
        "{split:?}"
    );
    assert_eq!(rig.machine.reach(0, DEVICE.0), before);
    assert_eq!(rig.units[0].free_frames(), free);
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

#[test]
fn every_entry_of_a_long_mapping_is_visible_to_a_unit_that_does_not_snoop() {
    let model = UnitConfig {
        coherent: false,
        ..UnitConfig::default()
    };
    let mut rig = Rig::up(Schedule::Lazy, &[model]);
    rig.attach(DEVICE, A);
    // Many cache lines of entries in each table, over several tables, in both sizes.
    for (iova, memory) in [
        (0x20_0000_1000, range(0x3_0000_3000, 0x60_0000)),
        (0x21_0000_0000, range(0x4_0000_0000, 0x400 << 21)),
    ] {
        let pending = rig.units[0]
            .map(A, iova, memory, Access::READ_WRITE)
            .unwrap();
        rig.flush(pending);
        let run = Reach {
            iova,
            at: memory.base().0,
            length: memory.length(),
            read: true,
            write: true,
        };
        assert!(rig.machine.reach(0, DEVICE.0).contains(&run), "{run:x?}");
        let pending = rig.units[0].unmap(A, iova, memory.length()).unwrap();
        rig.flush(pending);
        assert_eq!(rig.machine.reach(0, DEVICE.0).len(), 1, "all of it is gone");
    }
    rig.sound();
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

    /// A request in any place reaches what the naive answer says.
    #[test]
    fn any_request_is_answered_as_the_naive_answer_says(offset: u64, write: bool) {
        let mut rig = Rig::one();
        rig.attach(DEVICE, A);
        let iova = if offset % 3 == 0 { offset } else { A_BASE - PART + offset % (3 * PART) };
        let got = if write { rig.write(DEVICE, iova) } else { rig.read(DEVICE, iova) };
        if (A_BASE..A_BASE + PART).contains(&iova) {
            prop_assert_eq!(got, Ok(iova));
        } else {
            prop_assert!(got.is_err());
        }
        let stranger = RequesterId(offset as u16);
        if stranger != DEVICE {
            prop_assert!(rig.write(stranger, A_BASE).is_err());
        }
    }
}
