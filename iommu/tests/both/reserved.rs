//! What firmware reserves for a device: VT-d's RMRR, AMD-Vi's IVMD.

use handoff_abi::{DomainId, PhysRange};
use iommu::{Access, AttachError, Pending, Reach};
use iommu_model::Schedule;

use crate::rig::*;

/// Part of it is the first domain's memory.
const INSIDE: u64 = A_BASE + PART - 0x2000;
/// Nobody's memory.
const APART: u64 = 0x3_0000_1000;
const LENGTH: u64 = 0x5000;

fn map_reserved(rig: &mut Rig, domain: DomainId, memory: PhysRange) -> Vec<PhysRange> {
    let mut parts = Vec::new();
    while let Some(part) = rig.units[0].first_unmapped(domain, memory) {
        let pending = rig.units[0].map(domain, part.base().0, part, Access::READ_WRITE);
        rig.flush(pending.unwrap());
        parts.push(part);
    }
    parts
}

#[test]
fn what_a_domain_lacks_of_reserved_memory_is_named_part_by_part() {
    for model in models() {
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        let page = range(APART + 0x2000, 0x1000);
        let pending = rig.units[0].map(A, page.base().0, page, Access::READ_WRITE);
        rig.flush(pending.unwrap());
        assert_eq!(
            map_reserved(&mut rig, A, range(APART, LENGTH)),
            [range(APART, 0x2000), range(APART + 0x3000, 0x2000)]
        );
        // A domain's own memory is mapped already, in larger leaves.
        assert_eq!(
            map_reserved(&mut rig, A, range(INSIDE, LENGTH)),
            [range(INSIDE + 0x2000, 0x3000)]
        );
        for memory in [range(INSIDE, LENGTH), range(APART, LENGTH)] {
            assert_eq!(rig.units[0].first_unmapped(A, memory), None);
        }
        // Firmware need not begin or end at pages.
        let odd = range(C_BASE + 0x800, 0x1000);
        assert_eq!(rig.units[0].first_unmapped(A, odd), Some(odd));
        let nowhere = DomainId(9);
        assert_eq!(rig.units[0].first_unmapped(nowhere, odd), None);
        rig.sound();
    }
}

#[test]
fn what_is_beyond_the_tables_is_not_taken_for_what_lies_below() {
    let rig = Rig::one();
    let beyond = range(A_BASE + (1 << 48), 0x1000);
    assert_eq!(rig.units[0].first_unmapped(A, beyond), Some(beyond));
}

#[test]
fn reserved_memory_follows_its_device_and_is_never_out_of_its_reach() {
    for &way in WAYS {
        for model in models() {
            let mut rig = Rig::up(Schedule::Lazy, &[model]);
            let reserved = range(APART, LENGTH);
            let refused = AttachError::ReservedNotMapped {
                requester: DEVICE,
                memory: reserved,
            };
            let early = rig.units[0].attach_reserved(DEVICE, A, &[reserved]);
            assert_eq!(early.unwrap_err(), refused);
            map_reserved(&mut rig, A, reserved);
            let pending = rig.units[0].attach_reserved(DEVICE, A, &[reserved]);
            rig.flush(pending.unwrap());
            rig.attach(OTHER, A);
            map_reserved(&mut rig, B, reserved);
            for at in [APART, APART + LENGTH - 1] {
                assert_eq!(rig.write(DEVICE, at), Ok(at));
            }
            rig.make_move(&[DEVICE], Some(B), way);
            let pending = rig.units[0].unmap(A, APART, LENGTH).unwrap();
            rig.flush(pending);
            for at in [APART, APART + LENGTH - 1, B_BASE] {
                assert_eq!(rig.write(DEVICE, at), Ok(at));
            }
            // Whoever stays behind loses it.
            assert_eq!(rig.write(OTHER, APART), Err(UNMAPPED[0]));
            assert_eq!(rig.write(OTHER, A_BASE), Ok(A_BASE));
            rig.sound();
        }
    }
}

#[test]
fn whoever_adopts_a_unit_is_asked_for_reserved_memory_too() {
    let model = UnitConfig::default();
    let mut rig = Rig::up(Schedule::Lazy, std::slice::from_ref(&model));
    let reserved = range(APART, LENGTH);
    map_reserved(&mut rig, A, reserved);
    let pending = rig.units[0].attach_reserved(DEVICE, A, &[reserved]);
    rig.flush(pending.unwrap());
    let state = rig.units[0].record().unwrap();
    let mut seen = 0;
    let adopted = adopt(&rig.machine, 0, &model, &state, |reach| {
        if let Reach::Memory {
            requester: Some(DEVICE),
            memory,
            ..
        } = *reach
            && reserved.contains_range(memory)
        {
            seen += memory.length();
        }
        true
    });
    assert_eq!(seen, LENGTH);
    let mut unit = adopted.unwrap();
    assert_eq!(unit.first_unmapped(A, reserved), None);
    let moved = unit.move_devices(&[DEVICE], None, Pending::none());
    moved.unwrap();
    assert!(rig.write(DEVICE, APART).is_err());
}
