//! Which interrupts get through, and where they go.

use handoff_abi::{ApicId, RequesterId, UnitKind};
use iommu::amd::{Config, InterruptError, InterruptFormat, InterruptHandle};
use iommu_model::amd::{Interrupt, Reason, Schedule, UnitConfig};

use crate::rig::*;

const FORMATS: [InterruptFormat; 3] = [
    InterruptFormat::Bits32,
    InterruptFormat::Bits128,
    InterruptFormat::Bits128X2Apic,
];

fn up(interrupt_format: InterruptFormat, model: UnitConfig) -> Rig {
    let model = UnitConfig {
        x2apic: true,
        ..model
    };
    Rig::up_with(Schedule::Lazy, &[model], |config| Config {
        interrupt_format,
        ..config
    })
}

fn arrives(destination: u32, vector: u8) -> Interrupt {
    Interrupt::Delivered {
        destination,
        vector,
        mode: 0,
        logical: false,
        remapped: true,
    }
}

/// A system management interrupt: no entry of any table stops it, only a filter that not every unit
/// has.
const fn is_smi(data: u32) -> bool {
    data >> 8 & 7 == 2
}

impl Rig {
    fn raise(&self, handle: InterruptHandle) -> Interrupt {
        let message = handle.message();
        let (address, data) = (message.address.0, message.data);
        self.machine.msi(0, handle.source.0, address, data)
    }

    fn set(&mut self, source: RequesterId, destination: u32, vector: u8) -> InterruptHandle {
        let set = self.units[0].allocate_interrupt(source, target(destination, vector));
        let (handle, pending) = set.unwrap();
        self.flush(pending);
        handle
    }
}

#[test]
fn an_entry_delivers_where_it_says_and_only_for_its_device() {
    for format in FORMATS {
        for coherent in [false, true] {
            let model = UnitConfig {
                coherent,
                ..UnitConfig::default()
            };
            let mut rig = up(format, model);
            let own = rig.set(DEVICE, 1, 0x41);
            let other = rig.set(OTHER, 2, 0x41);
            assert_eq!((own.index, other.index), (0x41, 0x41));
            assert_eq!(rig.raise(own), arrives(1, 0x41), "{format:?}");
            assert_eq!(rig.raise(other), arrives(2, 0x41));
            let stranger = InterruptHandle {
                source: RequesterId(0x77),
                ..own
            };
            assert!(matches!(rig.raise(stranger), Interrupt::Blocked(_)));
            // The vector is taken: another index, the same vector.
            let second = rig.set(DEVICE, 3, 0x41);
            assert_ne!(second.index, own.index);
            assert_eq!(rig.raise(second), arrives(3, 0x41));
            rig.sound();
        }
    }
    let mut rig = up(InterruptFormat::Bits128X2Apic, UnitConfig::default());
    let far = rig.set(DEVICE, 0x1234_5678, 0x41);
    assert_eq!(rig.raise(far), arrives(0x1234_5678, 0x41));
    rig.sound();
}

#[test]
fn indices_that_are_not_set_and_other_delivery_modes_are_blocked() {
    for format in FORMATS {
        let mut rig = up(format, UnitConfig::default());
        rig.set(DEVICE, 1, 0x41);
        for data in (0..0x800).filter(|&data| data != 0x41 && !is_smi(data)) {
            let result = rig.machine.msi(0, DEVICE.0, 0xfee0_0000, data);
            assert!(
                matches!(result, Interrupt::Blocked(_)),
                "{data:#x}: {result:?}"
            );
        }
        // Nothing in the address, nor in the rest of the data, makes another interrupt of it.
        for (address, data) in [
            (0xfeef_f000, 0x41),
            (0xfee0_000c, 0x41),
            (0xfee0_1000, 0xc041),
        ] {
            let result = rig.machine.msi(0, DEVICE.0, address, data);
            let blocked = matches!(result, Interrupt::Blocked(_));
            assert!(
                blocked || result == arrives(1, 0x41),
                "{address:#x}: {result:?}"
            );
        }
        assert!(!rig.machine.lint(0, DEVICE.0, 0));
        assert!(!rig.machine.lint(0, DEVICE.0, 1));
        rig.sound();
    }
}

#[test]
fn where_there_is_a_filter_only_devices_that_firmware_locked_in_raise_smi() {
    const LOCKED: u16 = 0x00a4;
    for smi_filters in [0, 1, 4, 16] {
        let model = UnitConfig {
            smi_filters,
            ..UnitConfig::default()
        };
        let mut rig = Rig::prepared(Schedule::Lazy, std::slice::from_ref(&model));
        if smi_filters > 1 {
            // Firmware's: one device, and one for good.
            rig.machine
                .force_register(0, (0x60, 1 << 16 | u64::from(DEVICE.0)));
            rig.machine
                .force_register(0, (0x68, 0b11 << 16 | u64::from(LOCKED)));
        }
        rig.units[0].enable().unwrap();
        let raises = |rig: &Rig, device: u16| {
            let result = rig.machine.msi(0, device, 0xfee0_0000, 0x200);
            !matches!(result, Interrupt::Blocked(_))
        };
        for round in 0..2 {
            for device in [DEVICE.0, OTHER.0, 0] {
                assert_eq!(raises(&rig, device), smi_filters == 0, "round {round}");
            }
            assert_eq!(raises(&rig, LOCKED), smi_filters != 1);
            // The next steward switches it on again where somebody switched it off.
            let state = rig.units[0].record().unwrap();
            drop(rig.units.pop().unwrap().into_parts());
            let off = state.control & !(1 << 22);
            rig.machine.force_register(0, (0x18, off));
            let unit = adopt(&rig.machine, 0, &model, &state, |_| true).unwrap();
            rig.units.push(unit);
        }
        rig.sound();
    }
}

#[test]
fn a_kernel_that_knows_nothing_of_the_fence_reaches_its_own_processor_alone() {
    for format in FORMATS {
        let mut rig = up(format, UnitConfig::default());
        let pending = rig.units[0].open_vectors(DEVICE, ApicId(3)).unwrap();
        rig.flush(pending);
        for data in (0..0x800).filter(|&data| !is_smi(data)) {
            for address in [0xfee0_0000, 0xfee0_1000, 0xfeef_f000] {
                let result = rig.machine.msi(0, DEVICE.0, address, data);
                let vector = data as u8;
                if data < 0x200 && vector >= 16 {
                    assert_eq!(result, arrives(3, vector), "{data:#x}");
                } else {
                    assert!(matches!(result, Interrupt::Blocked(_)), "{data:#x}");
                }
            }
        }
        let error = rig.units[0].open_vectors(DEVICE, ApicId(2)).unwrap_err();
        assert!(matches!(error, InterruptError::InUse(_)));
        assert!(matches!(
            rig.units[0].open_vectors(OTHER, ApicId(u32::MAX)),
            Err(InterruptError::BadTarget(_))
        ));
        let moved = rig.units[0].retarget_all(DEVICE, ApicId(5)).unwrap();
        rig.flush(moved);
        for data in [0x10, 0x41, 0xff, 0x1ff] {
            let result = rig.machine.msi(0, DEVICE.0, 0xfee0_0000, data);
            assert_eq!(result, arrives(5, data as u8));
        }
        let cleared = rig.units[0].clear_interrupts(DEVICE);
        rig.flush(cleared);
        let result = rig.machine.msi(0, DEVICE.0, 0xfee0_0000, 0x41);
        assert!(matches!(result, Interrupt::Blocked(_)));
        rig.sound();
    }
}

#[test]
fn a_retargeted_interrupt_goes_to_the_old_target_or_the_new_one_and_then_to_the_new_one() {
    for format in FORMATS {
        let mut rig = up(format, UnitConfig::default());
        let handle = rig.set(DEVICE, 1, 0x41);
        let neighbours = [rig.set(DEVICE, 1, 0x40), rig.set(DEVICE, 1, 0x42)];
        // Another processor: one store, in every format. In the short one also another vector.
        let vector = if format == InterruptFormat::Bits32 {
            0x66
        } else {
            0x41
        };
        let stores = rig.machine.memory_counters().stores;
        let pending = rig.units[0].retarget(handle, target(2, vector)).unwrap();
        assert_eq!(rig.machine.memory_counters().stores - stores, 1);
        let between = rig.raise(handle);
        assert!(between == arrives(1, 0x41) || between == arrives(2, vector));
        rig.flush(pending);
        assert_eq!(rig.raise(handle), arrives(2, vector), "{format:?}");
        for (neighbour, vector) in neighbours.into_iter().zip([0x40, 0x42]) {
            assert_eq!(rig.raise(neighbour), arrives(1, vector));
        }
        let same = rig.units[0].retarget(handle, target(2, vector)).unwrap();
        assert!(same.is_none());
        rig.sound();
    }
}

#[test]
fn where_both_halves_change_the_device_gets_another_table() {
    let formats = [InterruptFormat::Bits128, InterruptFormat::Bits128X2Apic];
    for format in formats {
        // To the model a table in the place of another is one given away too early. Here both have
        // the same owner, and hold the same but for the one entry.
        let model = UnitConfig {
            fence_rules: false,
            ..UnitConfig::default()
        };
        let mut rig = up(format, model);
        let handle = rig.set(DEVICE, 1, 0x41);
        let neighbour = rig.set(DEVICE, 1, 0x42);
        let free = rig.units[0].free_frames();
        let pending = rig.units[0].retarget(handle, target(2, 0x66)).unwrap();
        assert_eq!(rig.units[0].free_frames(), free - 2);
        let between = rig.raise(handle);
        assert!(between == arrives(1, 0x41) || between == arrives(2, 0x66));
        // A flush of something else does not free the old table.
        rig.attach(OTHER, A);
        assert_eq!(rig.units[0].free_frames(), free - 2);
        rig.flush(pending);
        assert_eq!(rig.units[0].free_frames(), free);
        assert_eq!(rig.raise(handle), arrives(2, 0x66));
        assert_eq!(rig.raise(neighbour), arrives(1, 0x42));
        // Without a flush there is an end.
        let mut error = None;
        for round in 0..100_u8 {
            match rig.units[0].retarget(handle, target(1, 0x70 + round)) {
                Ok(pending) => drop(pending),
                Err(other) => {
                    error = Some(other);
                    break;
                }
            }
        }
        assert_eq!(error, Some(InterruptError::NotFlushed));
        rig.units[0].invalidate_everything().unwrap();
        assert_eq!(rig.units[0].free_frames(), free);
        rig.sound();
    }
}

#[test]
fn a_cleared_entry_is_free_when_that_was_flushed() {
    for format in FORMATS {
        let mut rig = up(format, UnitConfig::default());
        let handle = rig.set(DEVICE, 1, 0x41);
        let pending = rig.units[0].clear_interrupt(handle).unwrap();
        assert_eq!(
            rig.units[0]
                .set_interrupt(handle, target(2, 0x41))
                .unwrap_err(),
            InterruptError::InUse(handle)
        );
        // Its vector is the first choice, and not free.
        let (other, set) = rig.units[0]
            .allocate_interrupt(DEVICE, target(1, 0x41))
            .unwrap();
        assert_ne!(other, handle);
        let cleared = rig.units[0].clear_interrupt(other).unwrap();
        rig.flush(pending.merge(set).merge(cleared));
        assert!(matches!(
            rig.raise(handle),
            Interrupt::Blocked(Reason::InterruptNotEnabled)
        ));
        assert_eq!(
            rig.units[0].clear_interrupt(handle).unwrap_err(),
            InterruptError::NotSet(handle)
        );
        let set = rig.units[0].set_interrupt(handle, target(2, 0x55)).unwrap();
        rig.flush(set);
        assert_eq!(rig.raise(handle), arrives(2, 0x55));
        assert_eq!(rig.units[0].interrupts().count(), 1);
        rig.sound();
    }
}

#[test]
fn an_entry_cleared_after_a_batch_was_submitted_is_not_free_with_it() {
    for format in FORMATS {
        let mut rig = up(format, UnitConfig::default());
        let handles = [rig.set(DEVICE, 1, 0x41), rig.set(DEVICE, 1, 0x42)];
        let first = rig.units[0].clear_interrupt(handles[0]).unwrap();
        let first = rig.units[0].submit(first).unwrap();
        let before = rig.machine.counters(0);
        drop(rig.units[0].clear_interrupt(handles[1]).unwrap());
        rig.units[0].wait(first).unwrap();
        // Both are free, since both were proved.
        let spent = rig.machine.counters(0) - before;
        assert_eq!(spent.all_commands, 1);
        for handle in handles {
            let set = rig.units[0].set_interrupt(handle, target(2, 0x55)).unwrap();
            rig.flush(set);
            assert_eq!(rig.raise(handle), arrives(2, 0x55));
        }
        rig.sound();
    }
}

#[test]
fn targets_and_indices_that_are_none_are_refused() {
    let mut rig = up(InterruptFormat::Bits32, UnitConfig::default());
    let unit = &mut rig.units[0];
    for bad in [target(1, 15), target(255, 32), target(256, 32)] {
        let error = unit.allocate_interrupt(DEVICE, bad).unwrap_err();
        assert_eq!(error, InterruptError::BadTarget(bad));
    }
    for index in [0, 15, 0x100, 0x10f, 0x200, 0x7ff, u16::MAX] {
        let handle = InterruptHandle::new(UnitKind::AmdVi, DEVICE, index);
        let error = unit.set_interrupt(handle, target(1, 32)).unwrap_err();
        assert_eq!(error, InterruptError::BadIndex(handle));
        assert_eq!(unit.interrupt(handle), None);
    }
    assert!(rig.machine.denied(0, DEVICE.0), "nothing was changed");
    // There is an end to the vectors of a device.
    for _ in 16..=255 {
        let set = rig.units[0].allocate_interrupt(DEVICE, target(1, 32));
        let (_, pending) = set.unwrap();
        rig.flush(pending);
    }
    assert_eq!(
        rig.units[0]
            .allocate_interrupt(DEVICE, target(1, 32))
            .unwrap_err(),
        InterruptError::Full(DEVICE)
    );
    rig.sound();
}

#[test]
fn a_device_without_memory_can_have_interrupts_and_the_other_way_round() {
    let mut rig = Rig::one();
    let handle = rig.set(DEVICE, 1, 0x41);
    assert!(rig.write(DEVICE, A_BASE).is_err());
    rig.attach(OTHER, A);
    let result = rig.machine.msi(0, OTHER.0, 0xfee0_0000, 0x41);
    assert!(matches!(result, Interrupt::Blocked(_)));
    rig.attach(DEVICE, A);
    assert_eq!(rig.raise(handle), arrives(1, 0x41));
    let blocked = rig.units[0].block(DEVICE);
    rig.flush(blocked);
    assert_eq!(rig.raise(handle), arrives(1, 0x41));
    rig.sound();
}
