//! The order and the form of what is written while a unit is brought up.

use handoff_abi::{DomainId, PhysAddr, RequesterId};
use iommu::Access;
use iommu::amd::{
    CapabilityHeader, Config, EnableError, InterruptFormat, PrepareError, ProbeError,
};
use iommu_model::amd::{Attack, Event, Injection, Interrupt, Reason, Schedule, UnitConfig};

use crate::rig::*;

#[test]
fn every_kind_of_unit_comes_up_without_breaking_a_rule() {
    for model in models() {
        for schedule in schedules(2) {
            let mut rig = Rig::up(schedule, std::slice::from_ref(&model));
            let on = IOMMU_EN | EVENT_LOG_EN | CMD_BUF_EN;
            assert_eq!(rig.machine.control(0) & on, on);
            assert!(rig.write(DEVICE, A_BASE).is_err());
            rig.attach(DEVICE, A);
            assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE), "{model:?}");
            assert_eq!(rig.read(DEVICE, A_BASE + PART - 1), Ok(A_BASE + PART - 1));
            assert_eq!(rig.write(DEVICE, B_BASE), Err(Reason::NotPresent));
            rig.sound();
        }
    }
}

#[test]
fn every_one_of_the_65536_devices_is_denied_before_the_unit_is_on() {
    let rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
    let table = rig.units[0].arena().base().0;
    for id in 0..=0xffff_u64 {
        let word = |i: u64| rig.machine.peek(table + id * 32 + i * 8);
        // V, TV, Mode 0, no IR, no IW; IV, IntCtl 00b, no pass.
        assert_eq!([word(0), word(1), word(2), word(3)], [0b11, 0, 0b1, 0]);
    }
    let rig = Rig::one();
    for id in (0..=0xffff).step_by(0x11).chain([0xffff]) {
        assert!(rig.machine.denied(0, id), "{id:#x}");
        assert!(rig.write(RequesterId(id), A_BASE).is_err());
        let message = rig.machine.msi(0, id, 0xfee0_0000, 0x41);
        assert!(matches!(message, Interrupt::Blocked(_)), "{message:?}");
        assert!(!rig.machine.lint(0, id, 0) && !rig.machine.lint(0, id, 1));
    }
    rig.sound();
}

#[test]
fn a_table_that_does_not_deny_is_never_put_into_force() {
    for (word, value) in [(0, 0), (0, 0b01), (2, 0), (3, 1)] {
        let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
        let at = rig.units[0].arena().base().0 + 0x1234 * 32 + word * 8;
        rig.machine.poke(at, value);
        let writes = rig.machine.counters(0).mmio_writes;
        assert!(matches!(
            rig.units[0].enable(),
            Err(EnableError::DeviceTable { .. })
        ));
        assert_eq!(rig.machine.counters(0).mmio_writes, writes);
        assert_eq!(rig.machine.control(0) & IOMMU_EN, 0);
    }
}

#[test]
fn devices_attached_beforehand_are_never_cut_off() {
    let model = UnitConfig {
        denied_when_enabled: false,
        ..UnitConfig::default()
    };
    let mut rig = Rig::prepared(Schedule::Lazy, &[model]);
    let unit = &mut rig.units[0];
    unit.create_domain(A).unwrap();
    let mapped = unit.map(A, A_BASE, range(A_BASE, PART), Access::READ_WRITE);
    let attached = unit.attach(DEVICE, A).unwrap();
    unit.flush(mapped.unwrap().merge(attached)).unwrap();
    assert_eq!(rig.machine.counters(0).mmio_writes, 0);
    rig.machine.attack(0, DEVICE.0, A_BASE);
    rig.units[0].enable().unwrap();
    let attacks = rig.machine.take_attacks();
    assert!(attacks.len() > 10);
    assert!(attacks.iter().all(|attack| attack.result == Ok(A_BASE)));
    assert!(rig.write(OTHER, A_BASE).is_err());
    rig.sound();
}

#[test]
fn a_unit_that_was_left_on_gets_the_new_table_without_a_gap() {
    for model in models() {
        let model = UnitConfig {
            x2apic: false,
            ..model
        };
        let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
        // Firmware's: all devices denied but one, which reaches the page at `A_BASE`.
        let table = 0x2000_0000;
        machine.fill(table, &[0b11, 0, 0b1, 0], 512);
        let (root, middle, leaf) = (0x2100_0000, 0x2100_1000, 0x2100_2000);
        for page in [root, middle, leaf] {
            machine.fill(page, &[0], 1);
        }
        let rights = 3 << 61;
        machine.poke(root + 4 * 8, rights | 2 << 9 | middle | 1);
        machine.poke(middle, rights | 1 << 9 | leaf | 1);
        machine.poke(leaf, rights | A_BASE | 1);
        let at = table + u64::from(DEVICE.0) * 32;
        machine.poke(at, rights | 3 << 9 | root | 0b11);
        machine.poke(at + 8, 1);
        let coherent = u64::from(model.coherent) << 10;
        machine.left_on(
            0,
            table | 0x1ff,
            0x2200_0000 | 9 << 56,
            0x2210_0000 | 9 << 56,
            CMD_BUF_EN | EVENT_LOG_EN | coherent,
        );
        let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
        unit.create_domain(A).unwrap();
        let mapped = unit.map(A, A_BASE, range(A_BASE, PART), Access::READ_WRITE);
        let attached = unit.attach(DEVICE, A).unwrap();
        unit.flush(mapped.unwrap().merge(attached)).unwrap();
        machine.attack(0, DEVICE.0, A_BASE);
        machine.attack(0, DEVICE.0, B_BASE);
        machine.attack(0, OTHER.0, A_BASE);
        unit.enable_over(&mut machine.memory()).unwrap();
        let attacks = machine.take_attacks();
        for attack in &attacks {
            let own = attack.sid == DEVICE.0 && attack.result == Ok(A_BASE);
            assert!(own || attack.result.is_err(), "{attack:?}");
        }
        let through = attacks
            .iter()
            .filter(|attack| attack.result.is_ok())
            .count();
        assert_eq!(through * 3, attacks.len(), "never refused either");
        assert!(machine.take_events().iter().all(|event| match event {
            Event::Control { value, .. } => value & IOMMU_EN != 0,
            _ => true,
        }));
        machine.audit();
        machine.assert_no_violations();
    }
}

/// Brings a unit up that firmware left on, with a device whose translation of `A_BASE` fills the caches
/// under the id `theirs`; the driver has that device in `B`, and another in `A`. Gives where requests
/// of that other at `A_BASE` landed on the way.
fn over_full_caches(model: &UnitConfig, schedule: Schedule, theirs: DomainId) -> Vec<Attack> {
    let machine = machine(schedule, std::slice::from_ref(model));
    let table = 0x2000_0000;
    machine.fill(table, &[0b11, 0, 0b1, 0], 512);
    let (root, middle, leaf) = (0x2100_0000, 0x2100_1000, 0x2100_2000);
    for page in [root, middle, leaf] {
        machine.fill(page, &[0], 1);
    }
    let rights = 3 << 61;
    machine.poke(root + 4 * 8, rights | 2 << 9 | middle | 1);
    machine.poke(middle, rights | 1 << 9 | leaf | 1);
    machine.poke(leaf, rights | C_BASE | 1);
    let at = table + u64::from(OTHER.0) * 32;
    machine.poke(at, rights | 3 << 9 | root | 0b11);
    machine.poke(at + 8, theirs.0.into());
    let coherent = u64::from(model.coherent) << 10;
    machine.left_on(
        0,
        table | 0x1ff,
        0x2200_0000 | 9 << 56,
        0x2210_0000 | 9 << 56,
        CMD_BUF_EN | EVENT_LOG_EN | coherent,
    );
    assert_eq!(
        machine.dma_write(0, OTHER.0, A_BASE, b"x").landed[0].0,
        C_BASE
    );
    let mut unit = prepare(&machine, 0, model, config(model)).unwrap();
    for (device, domain, base) in [(DEVICE, A, A_BASE), (OTHER, B, B_BASE)] {
        unit.create_domain(domain).unwrap();
        let mapped = unit.map(domain, base, range(base, PART), Access::READ_WRITE);
        let attached = unit.attach(device, domain).unwrap();
        unit.flush(mapped.unwrap().merge(attached)).unwrap();
    }
    machine.attack(0, DEVICE.0, A_BASE);
    unit.enable_over(&mut machine.memory()).unwrap();
    let attacks = machine.take_attacks();
    for at in [A_BASE, A_BASE + 0xff8, A_BASE + 0x1000] {
        let landed = machine.dma_write(0, DEVICE.0, at, b"x").landed;
        assert_eq!(landed[0].0, at, "{theirs:?}");
        let blocked = machine.dma_write(0, OTHER.0, at, b"x").blocked;
        assert_eq!(blocked, Some(UNMAPPED[0]), "{theirs:?}");
    }
    machine.audit();
    machine.assert_no_violations();
    attacks
}

#[test]
fn nothing_that_firmware_left_in_the_caches_is_used_once_a_unit_is_up() {
    let foreign = |attack: &Attack| attack.result.is_ok_and(|at| at != A_BASE);
    for model in models() {
        let model = UnitConfig {
            x2apic: false,
            ..model
        };
        for schedule in [Schedule::Lazy, Schedule::Random(1)] {
            // Under an id that is not in use here it is never used by a device of another.
            let attacks = over_full_caches(&model, schedule, DomainId(9));
            assert!(!attacks.iter().any(foreign), "{attacks:?}");
            for theirs in [A, B] {
                over_full_caches(&model, schedule, theirs);
            }
        }
    }
    // Under an equal id it can be, until the unit was told to forget it: the ids matter.
    let model = UnitConfig {
        invalidate_all: false,
        ..UnitConfig::default()
    };
    let mixed = over_full_caches(&model, Schedule::Lazy, A);
    assert!(mixed.iter().any(foreign));
}

#[test]
fn a_unit_left_on_with_another_interrupt_format_is_refused_untouched() {
    let model = UnitConfig::default();
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
    let table = 0x2000_0000;
    machine.fill(table, &[0b11, 0, 0b1, 0], 512);
    machine.left_on(
        0,
        table | 0x1ff,
        0x2200_0000 | 9 << 56,
        0x2210_0000 | 9 << 56,
        GA_EN,
    );
    let mut unit = prepare(&machine, 0, &model, config(&model)).unwrap();
    assert!(matches!(
        unit.enable(),
        Err(EnableError::InterruptFormat { .. })
    ));
    assert_eq!(machine.counters(0).mmio_writes, 0);
    let matching = Config {
        interrupt_format: InterruptFormat::Bits128,
        ..config(&model)
    };
    prepare(&machine, 0, &model, matching)
        .unwrap()
        .enable()
        .unwrap();
    machine.audit();
    machine.assert_no_violations();
}

#[test]
fn a_run_bit_that_never_changes_is_an_error_and_can_be_tried_again() {
    for bits in [1 << 3, 1 << 4] {
        let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
        rig.machine.inject(0, Injection::StuckRun(bits));
        let before = rig.machine.now();
        let error = rig.units[0].enable().unwrap_err();
        assert!(matches!(error, EnableError::Register(_)), "{error:?}");
        assert!(rig.machine.now() - before < 1_000_000, "it took too long");
        rig.machine.inject(0, Injection::Nothing);
        rig.units[0].enable().unwrap();
        assert!(rig.write(DEVICE, A_BASE).is_err());
        rig.sound();
    }
}

#[test]
fn commands_that_stand_still_are_an_error_and_everything_stays_denied() {
    for injection in [Injection::StuckCommands, Injection::LostWaits(1000)] {
        let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
        rig.machine.inject(0, injection);
        assert!(matches!(
            rig.units[0].enable(),
            Err(EnableError::Invalidate(_))
        ));
        assert!(rig.write(DEVICE, A_BASE).is_err());
        rig.machine.inject(0, Injection::Nothing);
        rig.units[0].invalidate_everything().unwrap();
        rig.sound();
    }
}

#[test]
fn a_unit_that_cannot_be_a_fence_is_refused_before_anything_is_written() {
    let plain = UnitConfig::default();
    type Expected = fn(&ProbeError) -> bool;
    let wide = Config {
        interrupt_format: InterruptFormat::Bits128,
        ..config(&plain)
    };
    let cases: [(UnitConfig, Config, Expected); 4] = [
        (
            UnitConfig {
                guest_apic: false,
                ..plain.clone()
            },
            wide,
            |e| matches!(e, ProbeError::NoInterruptFormat(_)),
        ),
        (
            plain.clone(),
            Config {
                interrupt_format: InterruptFormat::Bits128X2Apic,
                ..wide
            },
            |e| matches!(e, ProbeError::NoInterruptFormat(_)),
        ),
        (
            UnitConfig {
                levels: 4,
                ..plain.clone()
            },
            Config {
                iova_limit: 1 << 49,
                ..config(&plain)
            },
            |e| matches!(e, ProbeError::NoAddressWidth { .. }),
        ),
        (
            plain.clone(),
            Config {
                capability: CapabilityHeader::from_bits_retain(0x0003_0005),
                ..config(&plain)
            },
            |e| matches!(e, ProbeError::NotAnIommu(_)),
        ),
    ];
    for (model, config, expected) in cases {
        let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
        let error = prepare(&machine, 0, &model, config).unwrap_err();
        let PrepareError::Probe(error) = error else {
            panic!("{error:?}")
        };
        assert!(expected(&error), "{error:?}");
        assert_eq!(machine.counters(0).mmio_writes, 0);
    }
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&plain));
    machine.inject(0, Injection::Gone);
    assert_eq!(
        prepare(&machine, 0, &plain, config(&plain)).unwrap_err(),
        PrepareError::Probe(ProbeError::Gone)
    );
}

#[test]
fn tables_lie_below_4_gib() {
    let model = UnitConfig::default();
    let machine = machine(Schedule::Lazy, std::slice::from_ref(&model));
    for base in [0x1_0000_0000, 0xff80_0000 + 0x1000] {
        let result = iommu::amd::Unit::prepare(
            machine.registers(0),
            machine.memory(),
            machine.clock(),
            range(window(0), 0x4000),
            range(base, 0x80_0000),
            config(&model),
        );
        assert!(matches!(result, Err(PrepareError::ArenaTooHigh { .. })));
    }
    let rig = Rig::one();
    let mut unit = rig.units.into_iter().next().unwrap();
    let state = unit.record().unwrap();
    let commands = PhysAddr(state.command_buffer_base & 0x000f_ffff_ffff_f000);
    assert!(unit.arena().contains(commands));
    assert_eq!(state.command_buffer_base >> 56, 9, "512 commands");
    assert_eq!(state.event_log_base >> 56, 9, "512 events");
    // As an adopter expects that knows only the architecture (Linux in a crash kernel): a device
    // table for all ids, below 4 GiB like both rings.
    assert_eq!(state.device_table_base & 0x1ff, 0x1ff);
    for base in [
        state.device_table_base,
        state.command_buffer_base,
        state.event_log_base,
    ] {
        let at = base & 0x000f_ffff_ffff_f000;
        assert!(at + 0x20_0000 <= 1 << 32 && unit.arena().contains(PhysAddr(at)));
    }
}

#[test]
fn the_depth_of_tables_is_the_least_that_reaches() {
    for (limit, max, levels) in [
        (1 << 32, 6, 3),
        (1 << 39, 6, 3),
        (1 << 40, 4, 4),
        (1 << 49, 5, 5),
    ] {
        let model = UnitConfig {
            levels: max,
            ..UnitConfig::default()
        };
        let rig = Rig::prepared_with(Schedule::Lazy, &[model], |config| Config {
            iova_limit: limit,
            ..config
        });
        assert_eq!(rig.units[0].levels(), levels);
    }
}
