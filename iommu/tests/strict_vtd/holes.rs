//! What QEMU's unit is known to let through or not to record (`iommu/qtest/tests/known_holes.rs`,
//! and the machine of its own that the demonstration boots for it): here it is stopped, and told.

use handoff_abi::RequesterId;
use iommu::{Access, FaultReason, FaultRequest};
use iommu_model::{Interrupt, Reason};

use crate::rig::*;

/// Drains one fault, and says who it was, what for and why.
fn told(rig: &mut Rig) -> (RequesterId, FaultRequest, FaultReason) {
    let mut all = Vec::new();
    let count = rig.units[0].drain_faults(|fault| all.push(fault)).unwrap();
    assert!(!count.overflowed);
    assert_eq!(all.len(), 1, "{all:?}");
    (all[0].source, all[0].request, all[0].reason)
}

/// A unit with an entry for another device, and one entry that was cleared again.
fn with_handles() -> (
    Rig,
    iommu::vtd::InterruptHandle,
    iommu::vtd::InterruptHandle,
) {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    rig.attach(OTHER, B);
    let mut set = |source| {
        let (handle, pending) = rig.units[0]
            .allocate_interrupt(source, target(1, 0x44))
            .unwrap();
        rig.units[0].flush(pending).unwrap();
        handle
    };
    let (others, cleared) = (set(OTHER), set(DEVICE));
    let pending = rig.units[0].clear_interrupt(cleared).unwrap();
    rig.flush(pending);
    (rig, others, cleared)
}

#[test]
fn a_message_of_another_device_is_blocked_and_recorded_however_it_is_written() {
    // By its MSI capability or by DMA, it is the same write to a unit.
    let (mut rig, others, _) = with_handles();
    let message = others.message();
    let sent = rig
        .machine
        .msi(0, DEVICE.0, message.address.0, message.data);
    assert_eq!(sent, Interrupt::Blocked(Reason::SourceMismatch));
    let request = FaultRequest::Interrupt {
        index: others.index,
    };
    assert_eq!(
        told(&mut rig),
        (DEVICE, request, FaultReason::InterruptSource)
    );
    rig.sound();
}

#[test]
fn a_message_in_compatibility_format_is_blocked_and_recorded() {
    let (mut rig, _, _) = with_handles();
    for blocked in [false, true] {
        if blocked {
            let pending = rig.units[0].block(DEVICE);
            rig.flush(pending);
        }
        let sent = rig.machine.msi(0, DEVICE.0, 0xfee0_1000, 0x44);
        assert_eq!(sent, Interrupt::Blocked(Reason::CompatibilityBlocked));
        let (source, _, reason) = told(&mut rig);
        assert_eq!((source, reason), (DEVICE, FaultReason::InterruptFormat));
    }
    rig.sound();
}

#[test]
fn a_message_with_a_handle_that_is_not_set_is_blocked_and_recorded() {
    let (mut rig, _, cleared) = with_handles();
    for (index, why) in [
        (cleared.index, Reason::InterruptNotPresent),
        (0x0fff, Reason::IndexTooLarge),
    ] {
        let address = 0xfee0_0010 | u64::from(index) << 5;
        let sent = rig.machine.msi(0, DEVICE.0, address, 0);
        assert_eq!(sent, Interrupt::Blocked(why));
        let request = FaultRequest::Interrupt { index };
        assert_eq!(
            told(&mut rig),
            (DEVICE, request, FaultReason::InterruptEntry)
        );
    }
    rig.sound();
}

#[test]
fn a_write_through_a_cached_read_only_translation_is_blocked_and_recorded() {
    let mut rig = Rig::one();
    let at = 0x3_0000_0000;
    let pending = rig.units[0].map(A, at, range(at, 0x1000), Access::READ);
    rig.flush(pending.unwrap());
    rig.attach(DEVICE, A);
    // The control: the translation is in the cache, and stays there without an invalidation.
    assert_eq!(rig.read(DEVICE, at), Ok(at));
    let pending = rig.units[0].unmap(A, at, 0x1000).unwrap();
    assert_eq!(rig.read(DEVICE, at), Ok(at));
    assert_eq!(rig.write(DEVICE, at), Err(Reason::NoWrite));
    let request = FaultRequest::Write { address: at };
    assert_eq!(told(&mut rig), (DEVICE, request, FaultReason::NotPermitted));
    rig.flush(pending);
    assert_eq!(rig.read(DEVICE, at), Err(Reason::NoRead));
    rig.sound();
}
