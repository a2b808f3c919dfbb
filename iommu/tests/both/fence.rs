//! Who reaches what memory.

use handoff_abi::{DomainId, RequesterId};
use iommu::{Access, MapError, UnmapError};
use iommu_model::{Reach, Schedule};
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
                assert_eq!(rig.write(device, at), Err(UNMAPPED[0]), "{at:#x}");
                assert_eq!(rig.read(device, at), Err(UNMAPPED[1]), "{at:#x}");
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
    assert_eq!(dma.blocked, Some(UNMAPPED[0]));
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
    #![proptest_config(cases())]
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
