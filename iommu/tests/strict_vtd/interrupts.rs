//! Who interrupts whom.

use handoff_abi::{RequesterId, UnitKind};
use iommu::vtd::{InterruptError, InterruptHandle, Pending, TriggerMode};
use iommu_model::{Injection, Interrupt, Reason, Schedule, UnitConfig};

use crate::rig::*;

fn delivered(destination: u32, vector: u8) -> Interrupt {
    Interrupt::Delivered {
        destination,
        vector,
        mode: 0,
        remapped: true,
    }
}

fn set(rig: &mut Rig, source: RequesterId, destination: u32, vector: u8) -> InterruptHandle {
    let (handle, pending) = rig.units[0]
        .allocate_interrupt(source, target(destination, vector))
        .unwrap();
    rig.flush(pending);
    handle
}

fn named(source: RequesterId, index: u16) -> InterruptHandle {
    InterruptHandle::new(UnitKind::VtD, source, index)
}

fn send(rig: &Rig, sid: RequesterId, handle: InterruptHandle) -> Interrupt {
    let message = handle.message();
    rig.machine.msi(0, sid.0, message.address.0, message.data)
}

#[test]
fn a_handle_serves_its_device_and_no_other() {
    for model in models() {
        for schedule in schedules(2) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            // In caching mode the entries are known to be absent by now.
            for index in 0..4 {
                let _ = send(&rig, DEVICE, named(DEVICE, index));
            }
            let first = set(&mut rig, DEVICE, 2, 0x41);
            let second = set(&mut rig, OTHER, 3, 0x42);
            assert_ne!(first, second);
            assert_eq!(send(&rig, DEVICE, first), delivered(2, 0x41));
            assert_eq!(send(&rig, OTHER, second), delivered(3, 0x42));
            let forged = Interrupt::Blocked(Reason::SourceMismatch);
            assert_eq!(send(&rig, DEVICE, second), forged);
            assert_eq!(send(&rig, OTHER, first), forged);
            for bit in 0..16 {
                let near = RequesterId(DEVICE.0 ^ 1 << bit);
                assert_eq!(send(&rig, near, first), forged, "bit {bit}");
            }
            rig.sound();
        }
    }
}

#[test]
fn nothing_but_handles_raises_an_interrupt() {
    let mut rig = Rig::one();
    let handle = set(&mut rig, DEVICE, 2, 0x41);
    for destination in 0..4_u64 {
        for mode in 0..8 {
            let address = 0xfee0_0000 | destination << 12;
            let got = rig.machine.msi(0, DEVICE.0, address, mode << 8 | 0x30);
            assert_eq!(got, Interrupt::Blocked(Reason::CompatibilityBlocked));
        }
    }
    for index in 0..0x1_0000_u64 {
        let address = 0xfee0_0010 | (index & 0x7fff) << 5 | (index >> 15) << 2;
        let got = rig.machine.msi(0, DEVICE.0, address, 0);
        let expected = if index == u64::from(handle.index) {
            delivered(2, 0x41)
        } else if index < 256 {
            Interrupt::Blocked(Reason::InterruptNotPresent)
        } else {
            Interrupt::Blocked(Reason::IndexTooLarge)
        };
        assert_eq!(got, expected, "{index:#x}");
    }
}

#[test]
fn handles_of_a_large_table_use_all_sixteen_bits() {
    let model = UnitConfig::default();
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
    let config = iommu::vtd::Config {
        interrupt_entries: 65536,
        ..config(&UnitConfig::default())
    };
    let mut unit = prepare(&machine, 0, &model, config).unwrap();
    unit.enable().unwrap();
    assert_eq!(machine.latched(0).1.map(|a| a & 0xf), Some(15));
    for (index, address) in [(0x8001_u16, 0xfee0_0034_u64), (0x7fff, 0xfeef_fff0)] {
        assert_eq!(named(DEVICE, index).message().address.0, address);
        let got = machine.msi(0, DEVICE.0, address, 0);
        assert_eq!(got, Interrupt::Blocked(Reason::InterruptNotPresent));
        assert_eq!(
            machine.all_faults(0).last().unwrap().1,
            u64::from(index) << 48
        );
    }
    let (handle, pending) = unit.allocate_interrupt(DEVICE, target(1, 0x40)).unwrap();
    unit.flush(pending).unwrap();
    let message = handle.message();
    let got = machine.msi(0, DEVICE.0, message.address.0, message.data);
    assert_eq!(got, delivered(1, 0x40));
    machine.audit();
    machine.assert_no_violations();
}

#[test]
fn targets_that_are_none_are_refused() {
    for extended in [false, true] {
        let model = UnitConfig {
            extended_interrupts: extended,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        let all = if extended { u32::MAX } else { 0xff };
        for bad in [
            target(1, 0),
            target(1, 15),
            target(all, 0x40),
            target(u32::MAX, 0x40),
        ] {
            let error = rig.units[0].allocate_interrupt(DEVICE, bad).unwrap_err();
            assert_eq!(error, InterruptError::BadTarget(bad));
        }
        let wide = target(0x0012_3456, 0x40);
        let result = rig.units[0].allocate_interrupt(DEVICE, wide);
        if extended {
            let (handle, pending) = result.unwrap();
            rig.flush(pending);
            assert_eq!(send(&rig, DEVICE, handle), delivered(0x0012_3456, 0x40));
        } else {
            assert_eq!(result.unwrap_err(), InterruptError::BadTarget(wide));
            let handle = set(&mut rig, DEVICE, 0xfe, 0xff);
            assert_eq!(send(&rig, DEVICE, handle), delivered(0xfe, 0xff));
        }
        rig.sound();
    }
}

#[test]
fn a_cleared_handle_is_dead_after_the_flush_and_only_then_reused() {
    for model in models() {
        for schedule in schedules(3) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            let handle = set(&mut rig, DEVICE, 2, 0x41);
            assert_eq!(send(&rig, DEVICE, handle), delivered(2, 0x41));
            let pending = rig.units[0].clear_interrupt(handle).unwrap();
            // The control: the cache has it still.
            assert_eq!(send(&rig, DEVICE, handle), delivered(2, 0x41));
            assert!(rig.units[0].interrupt(handle).is_none());
            let others: Vec<_> = (0..255).map(|_| set(&mut rig, OTHER, 3, 0x50)).collect();
            assert!(
                !others.iter().any(|other| other.index == handle.index),
                "given out too early"
            );
            let full = rig.units[0].allocate_interrupt(OTHER, target(3, 0x50));
            assert_eq!(full.unwrap_err(), InterruptError::Full(OTHER));
            rig.flush(pending);
            let dead = Interrupt::Blocked(Reason::InterruptNotPresent);
            assert_eq!(send(&rig, DEVICE, handle), dead);
            let anew = set(&mut rig, OTHER, 3, 0x51);
            assert_eq!(anew.index, handle.index);
            assert_eq!(send(&rig, OTHER, anew), delivered(3, 0x51));
            let forged = Interrupt::Blocked(Reason::SourceMismatch);
            assert_eq!(send(&rig, DEVICE, handle), forged);
            rig.sound();
        }
    }
}

#[test]
fn a_retarget_goes_to_the_old_or_the_new_place_and_then_to_the_new() {
    for model in models() {
        for schedule in schedules(3) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            let handle = set(&mut rig, DEVICE, 2, 0x41);
            assert_eq!(send(&rig, DEVICE, handle), delivered(2, 0x41));
            let pending = rig.units[0].retarget(handle, target(5, 0x99)).unwrap();
            let between = send(&rig, DEVICE, handle);
            assert!([delivered(2, 0x41), delivered(5, 0x99)].contains(&between));
            rig.flush(pending);
            assert_eq!(send(&rig, DEVICE, handle), delivered(5, 0x99));
            let same = rig.units[0].retarget(handle, target(5, 0x99)).unwrap();
            assert!(same.is_none());
            let bad = rig.units[0].retarget(handle, target(5, 3)).unwrap_err();
            assert_eq!(bad, InterruptError::BadTarget(target(5, 3)));
            assert_eq!(send(&rig, DEVICE, handle), delivered(5, 0x99));
            rig.sound();
        }
    }
}

#[test]
fn handles_that_are_not_set_cannot_be_changed() {
    let mut rig = Rig::one();
    let others = set(&mut rig, OTHER, 1, 0x70);
    for handle in [
        named(DEVICE, 3),
        named(DEVICE, 256),
        named(DEVICE, u16::MAX),
        // Set, but for another device.
        named(DEVICE, others.index),
    ] {
        let expected = InterruptError::NotSet(handle);
        assert_eq!(rig.units[0].clear_interrupt(handle).unwrap_err(), expected);
        let retarget = rig.units[0].retarget(handle, target(1, 0x40));
        assert_eq!(retarget.unwrap_err(), expected);
        assert!(rig.units[0].interrupt(handle).is_none());
    }
}

#[test]
fn blocking_a_device_does_not_stop_its_interrupts_but_clearing_does() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let handle = set(&mut rig, DEVICE, 2, 0x41);
    let pending = rig.units[0].block(DEVICE);
    rig.flush(pending);
    assert!(rig.write(DEVICE, A_BASE).is_err());
    assert_eq!(send(&rig, DEVICE, handle), delivered(2, 0x41));
    let pending = rig.units[0].clear_interrupt(handle).unwrap();
    rig.flush(pending);
    assert!(matches!(send(&rig, DEVICE, handle), Interrupt::Blocked(_)));
    rig.sound();
}

#[test]
fn a_level_triggered_pin_keeps_its_trigger_mode() {
    let mut rig = Rig::one();
    let (handle, pending) = rig.units[0]
        .allocate_interrupt_with(OTHER, target(1, 0x33), TriggerMode::Level)
        .unwrap();
    rig.flush(pending);
    let trigger = |rig: &Rig| {
        let irta = rig.machine.latched(0).1.unwrap() & !0xfff;
        rig.machine.peek(irta + u64::from(handle.index) * 16) >> 4 & 1
    };
    assert_eq!(trigger(&rig), 1);
    let pending = rig.units[0].retarget(handle, target(2, 0x34)).unwrap();
    rig.flush(pending);
    assert_eq!(trigger(&rig), 1);
    assert_eq!(send(&rig, OTHER, handle), delivered(2, 0x34));
    // The pin's entry: format, index, vector, level (VT-d section 5.1.5.1).
    let pin = handle.redirection_entry(0x34, TriggerMode::Level, true);
    let index = u64::from(handle.index);
    assert_eq!(pin, index << 49 | 1 << 48 | 1 << 15 | 1 << 13 | 0x34);
    let high = named(DEVICE, 0x8003).redirection_entry(0x20, TriggerMode::Edge, false);
    assert_eq!(high, 3 << 49 | 1 << 48 | 1 << 11 | 0x20);
}

#[test]
fn many_interrupts_change_with_one_wait() {
    let mut rig = Rig::one();
    let handles: Vec<_> = (0..100)
        .map(|i| set(&mut rig, DEVICE, 1, 0x40 + i))
        .collect();
    for &handle in &handles {
        let _ = send(&rig, DEVICE, handle);
    }
    let before = rig.machine.counters(0);
    let mut pending = Pending::none();
    for &handle in &handles {
        let more = rig.units[0].retarget(handle, target(7, 0x77)).unwrap();
        pending = pending.merge(more);
    }
    rig.flush(pending);
    let spent = rig.machine.counters(0) - before;
    assert_eq!((spent.waits, spent.mmio_writes), (1, 1));
    for &handle in &handles {
        assert_eq!(send(&rig, DEVICE, handle), delivered(7, 0x77));
    }
    rig.sound();
}

#[test]
fn a_failed_invalidation_keeps_a_handle_from_being_reused() {
    let mut rig = Rig::one();
    let handle = set(&mut rig, DEVICE, 2, 0x41);
    let _ = send(&rig, DEVICE, handle);
    let pending = rig.units[0].clear_interrupt(handle).unwrap();
    rig.machine.inject(0, Injection::StuckQueue);
    rig.units[0].flush(pending).unwrap_err();
    for _ in 0..255 {
        let (other, _pending) = rig.units[0]
            .allocate_interrupt(OTHER, target(1, 0x60))
            .unwrap();
        assert_ne!(other.index, handle.index);
    }
    assert!(
        rig.units[0]
            .allocate_interrupt(OTHER, target(1, 0x60))
            .is_err()
    );
    rig.machine.inject(0, Injection::Nothing);
    rig.units[0].invalidate_everything().unwrap();
    let anew = set(&mut rig, OTHER, 1, 0x61);
    assert_eq!(anew.index, handle.index);
    assert_eq!(send(&rig, OTHER, anew), delivered(1, 0x61));
    rig.sound();
}
