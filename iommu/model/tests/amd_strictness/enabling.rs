//! The order of bring-up, the device table as a whole, registers, units found running or gone.

use handoff_abi::PhysAddr;
use iommu::{RegisterIo, TableMemory};
use iommu_model::amd::{
    Injection, Interrupt, Machine, MachineConfig, Reason, Rule, Schedule, UnitConfig,
};

use crate::hand::*;

#[test]
fn a_correct_driver_breaks_no_rule_under_any_schedule() {
    let schedules = [Schedule::Lazy, Schedule::Eager]
        .into_iter()
        .chain((0..2).map(Schedule::Random));
    for schedule in schedules {
        for bits in 0..8 {
            let config = MachineConfig {
                schedule,
                ..MachineConfig::default()
            };
            let unit = UnitConfig {
                coherent: bits & 1 != 0,
                caches_not_present: bits & 2 != 0,
                reorders: bits & 4 != 0,
                ..UnitConfig::default()
            };
            let mut hand = Hand::with(config, unit);
            hand.bring_up();
            hand.attach(0);
            assert_eq!(write(&hand), Ok(FRAMES[0]), "{schedule:?}");
            hand.interrupts(9);
            hand.interrupt_entry(5, 0x51, 3);
            hand.run(&[interrupts_command(SID)]);
            let got = hand.machine.msi(0, SID, 0xfee0_0000, 5);
            assert!(matches!(got, Interrupt::Delivered { .. }), "{schedule:?}");
            hand.move_over();
            assert_eq!(write(&hand), Ok(FRAMES[1]), "{schedule:?}");
            hand.machine.release(FRAMES[0], 4096, &[]);
            hand.machine.audit();
            hand.machine.assert_no_violations();
        }
    }
}

#[test]
fn a_unit_that_is_off_lets_everything_pass() {
    let hand = Hand::new(UnitConfig::default());
    assert_eq!(write(&hand), Ok(IOVA));
    let got = hand.machine.msi(0, SID, 0xfee0_3000, 0x451);
    let passed = Interrupt::Delivered {
        destination: 3,
        vector: 0x51,
        mode: 4,
        logical: false,
        remapped: false,
    };
    assert_eq!(got, passed);
    assert!(hand.machine.lint(0, SID, 0));
}

#[test]
fn an_entry_that_is_not_valid_lets_everything_pass() {
    let mut hand = Hand::new(lax());
    hand.prepare();
    let at = Hand::entry_at(SID);
    hand.machine.poke(at, 0);
    hand.machine.poke(at + 16, 0);
    // Memory is blocked and interrupts are not, or the other way round.
    hand.machine.poke(Hand::entry_at(0x0200) + 16, 0);
    hand.machine.poke(Hand::entry_at(0x0300), RW | 3);
    hand.enable();
    hand.run(&[ALL]);
    assert_eq!(write(&hand), Ok(IOVA));
    let passes = |sid: u16| {
        let got = hand.machine.msi(0, sid, 0xfee0_3000, 0x51);
        matches!(
            got,
            Interrupt::Delivered {
                remapped: false,
                ..
            }
        )
    };
    assert!(passes(SID) && passes(0x0200) && !passes(0x0300));
    let dma = |sid| hand.machine.dma_write(0, sid, IOVA, &[1]).blocked;
    assert_eq!(dma(0x0200), Some(Reason::NoWrite));
    assert_eq!(dma(0x0300), None);
    assert_eq!(hand.machine.reach(0, SID)[0].length, 1 << 48);
    hand.machine.assert_no_violations();
    hand.machine.release(FRAMES[0], 4096, &[0x0300]);
    hand.broke(Rule::ReleasedMemoryStillReachable);
}

#[test]
fn the_unit_is_enabled_last_and_everything_denied_before() {
    type Act = fn(&mut Hand);
    let cases: [(Act, Rule); 12] = [
        (
            |h| h.machine.poke(Hand::entry_at(0xffff), 0),
            Rule::EntryFailsOpen,
        ),
        (
            |h| h.machine.poke(Hand::entry_at(0xffff) + 16, 0),
            Rule::EntryFailsOpen,
        ),
        (
            |h| h.machine.poke(Hand::entry_at(0xffff) + 16, 1 << 60 | 1),
            Rule::EntryFailsOpen,
        ),
        (
            |h| h.machine.poke(Hand::entry_at(0), RW | 3),
            Rule::EntryFailsOpen,
        ),
        (
            |h| h.machine.poke(Hand::entry_at(SID), Hand::translating(0)),
            Rule::EnabledBeforeDenied,
        ),
        (
            |h| {
                h.machine.poke(INTERRUPTS + 16, 1);
                let word = 2 << 60 | INTERRUPTS | 9 << 1 | 1;
                h.machine.poke(Hand::entry_at(SID) + 16, word);
            },
            Rule::EnabledBeforeDenied,
        ),
        // The rubbish that is in memory when nobody wrote it.
        (
            |h| h.registers.write64(0x00, 0x4000_0000 | 0x1ff),
            Rule::EntryFailsOpen,
        ),
        (
            |h| h.registers.write64(0x00, 0),
            Rule::DeviceTableAddressInvalid,
        ),
        (
            |h| h.registers.write64(0x00, 1 << 50 | 0x1ff),
            Rule::DeviceTableAddressInvalid,
        ),
        (
            |h| h.registers.write64(0x00, DEVICES | 0xff),
            Rule::DeviceTableTooShort,
        ),
        (
            |h| {
                h.write_control(COHERENT | GA_EN);
                h.control |= CMD_BUF_EN;
            },
            Rule::EnabledBeforeConfigured,
        ),
        (
            |h| {
                h.write_control(COHERENT | CMD_BUF_EN | EVENT_LOG_EN);
                h.control |= GA_EN;
            },
            Rule::EnabledBeforeConfigured,
        ),
    ];
    for (act, rule) in cases {
        let mut hand = Hand::new(UnitConfig::default());
        hand.prepare();
        act(&mut hand);
        hand.machine.assert_no_violations();
        hand.write_control(hand.control | IOMMU_EN);
        hand.broke(rule);
    }
    let mut hand = Hand::new(UnitConfig::default());
    hand.prepare();
    hand.enable();
    hand.machine.assert_no_violations();
    hand.write_control(hand.control & !IOMMU_EN);
    hand.broke(Rule::TranslationSwitchedOff);
}

#[test]
fn a_table_that_was_not_written_back_is_not_what_the_unit_sees() {
    let mut hand = Hand::new(UnitConfig {
        coherent: false,
        ..UnitConfig::default()
    });
    hand.prepare();
    let at = PhysAddr(Hand::entry_at(0x1234));
    hand.machine.poke(at.0, 0);
    hand.tables.store(at, DENIED[0]);
    hand.write_control(hand.control | IOMMU_EN);
    hand.broke(Rule::EntryFailsOpen);
}

#[test]
fn after_enabling_every_cache_is_emptied() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.prepare();
    hand.enable();
    hand.machine.audit();
    hand.broke(Rule::NotInvalidatedAfterEnable);
    hand.machine.forget_violations();
    hand.run(&[ALL]);
    hand.machine.audit();
    hand.machine.assert_no_violations();

    // Without INVALIDATE_IOMMU_ALL one by one, and the domains as they come into use.
    let mut hand = Hand::new(UnitConfig {
        invalidate_all: false,
        ..UnitConfig::default()
    });
    hand.prepare();
    hand.enable();
    for sid in 0..=0xffff {
        hand.submit(entry_command(sid));
        hand.submit(interrupts_command(sid));
        if sid % 64 == 0 {
            assert!(hand.wait());
        }
    }
    assert!(hand.wait());
    hand.machine.audit();
    hand.machine.assert_no_violations();
    hand.attach(0);
    hand.machine.audit();
    hand.broke(Rule::NotInvalidatedAfterEnable);
    hand.machine.forget_violations();
    hand.run(&[domain_command(1)]);
    hand.machine.audit();
    hand.machine.assert_no_violations();
}

#[test]
fn register_accesses_have_the_right_width_and_place() {
    type Access = fn(&mut Hand);
    let cases: [(Access, Rule); 14] = [
        (|h| h.registers.write64(0x1c, 0), Rule::AccessWidth),
        (
            |h| assert_ne!(h.registers.read32(0x22), 1),
            Rule::AccessOutsideWindow,
        ),
        (
            |h| assert_ne!(h.registers.read32(0x4000), 1),
            Rule::AccessOutsideWindow,
        ),
        (
            |h| assert_ne!(h.registers.read64(0x3000), 1),
            Rule::RegisterNotImplemented,
        ),
        (
            |h| h.registers.write64(0x38, 0),
            Rule::RegisterNotImplemented,
        ),
        (
            |h| h.registers.write64(0x100, 0),
            Rule::RegisterNotImplemented,
        ),
        (
            |h| h.registers.write64(0x170, 0),
            Rule::RegisterNotImplemented,
        ),
        (
            |h| h.registers.write64(0x30, 0),
            Rule::WriteToReadOnlyRegister,
        ),
        (
            |h| h.registers.write64(0x00, 1 << 60),
            Rule::ReservedBitsInRegister,
        ),
        (
            |h| h.registers.write64(0x2008, 8),
            Rule::ReservedBitsInRegister,
        ),
        (
            |h| h.registers.write64(0x2020, 1 << 5),
            Rule::ReservedBitsInRegister,
        ),
        // Features: guest translation; more segments; XTEn; NumIntRemapMode.
        (
            |h| h.registers.write64(0x18, 1 << 16),
            Rule::FeatureNotSupported,
        ),
        (
            |h| h.registers.write64(0x18, 1 << 34),
            Rule::FeatureNotSupported,
        ),
        (
            |h| h.registers.write64(0x18, XT_EN | GA_EN),
            Rule::FeatureNotSupported,
        ),
    ];
    for (access, rule) in cases {
        let mut hand = Hand::new(UnitConfig::default());
        access(&mut hand);
        hand.broke(rule);
    }
    // XTEn needs GAEn.
    let mut hand = Hand::new(UnitConfig {
        x2apic: true,
        ..UnitConfig::default()
    });
    hand.registers.write64(0x18, XT_EN);
    hand.broke(Rule::FeatureNotSupported);

    let mut hand = Hand::new(UnitConfig::default());
    hand.registers.write32(0x00, DEVICES as u32 | 0x1ff);
    hand.registers.write32(0x04, 3);
    assert_eq!(hand.registers.read64(0x00), 3 << 32 | DEVICES | 0x1ff);
    assert_eq!(hand.registers.read32(0x04), 3);
    assert_eq!(hand.registers.read64(0x38), 0, "absent");
    assert_eq!(hand.registers.read64(0x30) >> 6 & 3, 3, "IASup, GASup");
    hand.machine.assert_no_violations();
}

#[test]
fn a_new_device_table_serves_when_the_caches_are_empty() {
    let mut hand = up();
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    hand.fill(OTHER_DEVICES, DENIED);
    hand.registers.write64(0x00, OTHER_DEVICES | 0x1ff);
    assert_eq!(
        write(&hand),
        Ok(FRAMES[0]),
        "the caches still have the old one"
    );
    hand.run(&[entry_command(SID)]);
    assert_eq!(write(&hand), Ok(FRAMES[0]), "so has the IOTLB");
    hand.machine.audit();
    hand.broke(Rule::NotInvalidatedAfterEnable);
    hand.machine.forget_violations();
    hand.run(&[ALL]);
    assert_eq!(write(&hand), Err(Reason::NoWrite));
    hand.machine.audit();
    assert_eq!(hand.machine.counters(0).table_switches, 1);
    hand.machine.assert_no_violations();

    // One that fails open, at once.
    let mut hand = up();
    hand.registers.write64(0x00, 0x4000_0000 | 0x1ff);
    hand.broke(Rule::EntryFailsOpen);

    // In halves.
    let mut hand = up();
    hand.fill(OTHER_DEVICES, DENIED);
    hand.registers.write32(0x00, OTHER_DEVICES as u32 | 0x1ff);
    hand.broke(Rule::BaseWrittenInHalves);

    // A unit that does not take it.
    let mut hand = Hand::new(UnitConfig {
        live_table_switch: false,
        ..UnitConfig::default()
    });
    hand.bring_up();
    hand.fill(OTHER_DEVICES, DENIED);
    hand.registers.write64(0x00, OTHER_DEVICES | 0x1ff);
    hand.broke(Rule::DeviceTableChangedWhileEnabled);
}

#[test]
fn the_device_table_can_have_segments_and_an_end() {
    let mut hand = Hand::new(UnitConfig {
        segments: 1,
        ..UnitConfig::default()
    });
    hand.control |= 1 << 34;
    hand.prepare();
    hand.fill(OTHER_DEVICES, DENIED);
    hand.registers.write64(0x00, DEVICES | 0xff);
    hand.registers.write64(0x100, OTHER_DEVICES | 0xff);
    hand.machine.poke(OTHER_DEVICES + 0x10 * 32 + 8, 1);
    hand.enable();
    hand.run(&[ALL]);
    hand.machine.audit();
    hand.machine.assert_no_violations();
    hand.store(OTHER_DEVICES + 0x10 * 32, Hand::translating(0));
    hand.run(&[entry_command(0x8010)]);
    let dma = hand.machine.dma_write(0, 0x8010, IOVA, &[1]);
    assert_eq!(dma.landed, [(FRAMES[0], 1)]);
    hand.machine.assert_no_violations();

    let mut hand = Hand::new(lax());
    hand.prepare();
    hand.registers.write64(0x00, DEVICES);
    hand.enable();
    hand.run(&[ALL]);
    let dma = hand.machine.dma_write(0, 0x80, IOVA, &[1]);
    assert_eq!(dma.blocked, Some(Reason::DeviceBeyondTable));
    assert_eq!(hand.next_event()[0] & !(1 << 53), 2 << 60 | 0x80);
    let dma = hand.machine.dma_write(0, 0x7f, IOVA, &[1]);
    assert_eq!(dma.blocked, Some(Reason::NoWrite));
    // A table where there is no memory.
    hand.registers.write64(0x00, 1 << 50 | 0x1ff);
    hand.run(&[ALL]);
    let dma = hand.machine.dma_write(0, 0x80, IOVA, &[1]);
    assert_eq!(dma.blocked, Some(Reason::DeviceTableUnreadable));
}

#[test]
fn units_work_apart() {
    let config = UnitConfig::default();
    let machine = Machine::new(MachineConfig::default(), &[config.clone(), config]);
    let mut hand = Hand {
        registers: machine.registers(1),
        tables: machine.memory(),
        clock: machine.clock(),
        ..Hand::new(UnitConfig::default())
    };
    hand.machine = machine.clone();
    hand.bring_up();
    hand.attach(0);
    let dma = |unit| machine.dma_write(unit, SID, IOVA, &[1]).landed;
    assert_eq!(dma(0), [(IOVA, 1)], "this one is off");
    assert_eq!(dma(1), [(FRAMES[0], 1)]);
    assert_eq!(machine.counters(0).mmio_writes, 0);
    machine.release(FRAMES[1], 4096, &[]);
    let violations = machine.violations();
    assert_eq!((violations.len(), violations[0].unit), (1, 0));
}

#[test]
fn a_unit_can_be_found_running() {
    let mut hand = Hand::new(UnitConfig::default());
    hand.build_tables();
    hand.fill(DEVICES, DENIED);
    hand.machine.poke(Hand::entry_at(SID) + 8, 1);
    hand.machine.poke(Hand::entry_at(SID), Hand::translating(0));
    let control = hand.control;
    hand.machine
        .left_on(0, DEVICES | 0x1ff, COMMANDS | RING, EVENTS | RING, control);
    let run = COMMAND_RUN | EVENT_RUN;
    assert_eq!(hand.status() & run, run);
    assert_eq!(hand.registers.read64(0x18), control | IOMMU_EN);
    assert_eq!(write(&hand), Ok(FRAMES[0]));
    hand.move_over();
    assert_eq!(write(&hand), Ok(FRAMES[1]));
    hand.machine.audit();
    hand.machine.assert_no_violations();
    hand.machine.force_register(0, (0x00, 0x66_0000));
    assert_eq!(hand.registers.read64(0x00), 0x66_0000);
}

#[test]
fn a_unit_can_vanish() {
    let mut hand = up();
    hand.machine.inject(0, Injection::GoneAfter(3));
    for _ in 0..3 {
        let _ = hand.status();
    }
    assert_eq!(hand.status(), u64::MAX);
    assert_eq!(hand.registers.read32(0x18), u32::MAX);
}

#[test]
#[should_panic(expected = "without a deadline")]
fn polling_without_a_deadline_is_stopped() {
    let mut hand = Hand::new(UnitConfig::default());
    loop {
        let _ = hand.status();
    }
}

#[test]
fn misaligned_table_accesses_bite() {
    let hand = Hand::new(UnitConfig::default());
    assert_eq!(hand.tables.load(PhysAddr(4)), 0);
    hand.broke(Rule::MemoryAccessMisaligned);
}
