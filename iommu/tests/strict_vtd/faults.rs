//! Fault records, and what cannot stop.

use handoff_abi::RequesterId;
use iommu::{Access, FaultReason, FaultRequest};
use iommu_model::{Injection, Schedule, UnitConfig};

use crate::rig::*;

fn faults(rig: &mut Rig) -> (Vec<iommu::Fault>, bool) {
    let mut found = Vec::new();
    let count = rig.units[0].drain_faults(|f| found.push(f)).unwrap();
    assert_eq!(count.records as usize, found.len());
    (found, count.overflowed)
}

#[test]
fn a_fault_names_source_address_access_and_reason() {
    let mut rig = Rig::one();
    rig.attach(DEVICE, A);
    let at = 0x3_0000_0000;
    let pending = rig.units[0].map(A, at, range(at, 0x1000), Access::READ);
    rig.flush(pending.unwrap());
    let (handle, pending) = rig.units[0]
        .allocate_interrupt(DEVICE, target(1, 0x41))
        .unwrap();
    rig.flush(pending);
    let message = handle.message();
    let write = |address| FaultRequest::Write { address };
    let read = |address| FaultRequest::Read { address };
    let interrupt = |index| FaultRequest::Interrupt { index };
    type Act = Box<dyn Fn(&Rig)>;
    let send = |sid: RequesterId, address: u64, data| -> Act {
        Box::new(move |r: &Rig| {
            let _ = r.machine.msi(0, sid.0, address, data);
        })
    };
    let dma = |sid: RequesterId, at: u64, writes: bool| -> Act {
        Box::new(move |r: &Rig| {
            let _ = if writes {
                r.write(sid, at)
            } else {
                r.read(sid, at)
            };
        })
    };
    let cases: Vec<(Act, RequesterId, FaultRequest, FaultReason, u8)> = vec![
        (
            dma(DEVICE, B_BASE + 0x1234, true),
            DEVICE,
            write(B_BASE + 0x1000),
            FaultReason::NotPermitted,
            5,
        ),
        (
            dma(DEVICE, B_BASE, false),
            DEVICE,
            read(B_BASE),
            FaultReason::NotPermitted,
            6,
        ),
        (
            dma(DEVICE, at, true),
            DEVICE,
            write(at),
            FaultReason::NotPermitted,
            5,
        ),
        (
            dma(DEVICE, 1 << 39, true),
            DEVICE,
            write(1 << 39),
            FaultReason::AddressTooWide,
            4,
        ),
        (
            dma(RequesterId(0x0209), A_BASE, true),
            RequesterId(0x0209),
            write(A_BASE),
            FaultReason::Blocked,
            2,
        ),
        (
            dma(OTHER, A_BASE, false),
            OTHER,
            read(A_BASE),
            FaultReason::Blocked,
            1,
        ),
        (
            send(OTHER, message.address.0, message.data),
            OTHER,
            interrupt(handle.index),
            FaultReason::InterruptSource,
            0x26,
        ),
        (
            send(OTHER, 0xfee0_0010 | 9 << 5, 0),
            OTHER,
            interrupt(9),
            FaultReason::InterruptEntry,
            0x22,
        ),
        (
            send(OTHER, 0xfee0_0010 | 0x7000 << 5, 0),
            OTHER,
            interrupt(0x7000),
            FaultReason::InterruptEntry,
            0x21,
        ),
        (
            send(OTHER, 0xfee0_1000, 0x30),
            OTHER,
            interrupt(0),
            FaultReason::InterruptFormat,
            0x25,
        ),
    ];
    for (act, source, request, reason, code) in cases {
        act(&rig);
        let (found, overflowed) = faults(&mut rig);
        assert_eq!(found.len(), 1, "{request:?}");
        assert!(!overflowed);
        let fault = found[0];
        assert_eq!((fault.source, fault.request), (source, request));
        assert_eq!(
            (fault.reason, fault.code, fault.pasid),
            (reason, code, None)
        );
    }
    rig.sound();
}

#[test]
fn the_ring_is_drained_in_order_however_it_lies() {
    for records in [1_u16, 2, 7, 8, 256] {
        for fault_offset in [0x22, 0x100] {
            let model = UnitConfig {
                fault_records: records,
                fault_offset,
                ..UnitConfig::default()
            };
            let mut rig = Rig::up(Schedule::Lazy, &[model]);
            let mut next = 0x1000_u16;
            for round in [1, records, 1, records / 2 + 1, records, records] {
                let expected: Vec<_> = (next..next + round).map(RequesterId).collect();
                next += round;
                for device in &expected {
                    let _ = rig.write(*device, 0);
                }
                let (found, overflowed) = faults(&mut rig);
                let sources: Vec<_> = found.iter().map(|f| f.source).collect();
                assert_eq!(sources, expected, "{records} records");
                assert!(!overflowed);
            }
            let (none, _) = faults(&mut rig);
            assert!(none.is_empty());
            rig.sound();
        }
    }
}

#[test]
fn more_faults_than_records_overflow_and_recording_goes_on_afterwards() {
    for records in [1_u16, 8] {
        let model = UnitConfig {
            fault_records: records,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        for round in 0..3 {
            for sid in 0..records + 3 {
                let _ = rig.write(RequesterId(0x1000 + round * 64 + sid), 0);
            }
            let (found, overflowed) = faults(&mut rig);
            assert_eq!(found.len(), usize::from(records));
            assert!(overflowed);
        }
        let _ = rig.write(DEVICE, 0x5000);
        let (found, overflowed) = faults(&mut rig);
        assert_eq!(found.len(), 1);
        assert!(!overflowed);
        rig.sound();
    }
}

#[test]
fn faults_from_before_are_cleared_at_bring_up() {
    for records in [1_u16, 8] {
        let model = UnitConfig {
            fault_records: records,
            fence_rules: false,
            ..UnitConfig::default()
        };
        let mut rig = Rig::prepared(Schedule::Lazy, &[model]);
        for page in 0..0x400_u64 {
            rig.machine.poke(0x7000_0000 + page * 8, 0);
        }
        rig.machine.left_on(0, 0x7000_0000, None, None);
        for sid in 0..records + 1 {
            let _ = rig.write(RequesterId(0x1000 + sid), 0);
        }
        rig.units[0].enable().unwrap();
        assert!(rig.machine.fault_messages(0).is_empty());
        let (found, overflowed) = faults(&mut rig);
        assert!(found.is_empty() && !overflowed);
        let _ = rig.write(DEVICE, 0);
        assert_eq!(faults(&mut rig).0.len(), 1);
    }
}

#[test]
fn a_device_that_never_stops_does_not_keep_the_handler() {
    for records in [1_u16, 8, 256] {
        let model = UnitConfig {
            fault_records: records,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        let machine = rig.machine.clone();
        let mut next = 0;
        let mut seen = 0_u32;
        let _ = rig.write(DEVICE, 0);
        rig.units[0]
            .drain_faults(|_| {
                seen += 1;
                assert!(seen <= 1000, "it goes on for ever");
                for _ in 0..3 {
                    next += 1;
                    let _ = machine.dma_write(0, 0x4000 + next, 0, &[1]);
                }
            })
            .unwrap();
        assert!(seen <= 2 * u32::from(records) + 4);
    }
}

#[test]
fn a_silenced_device_is_blocked_all_the_same_and_heard_again() {
    for caching_mode in [false, true] {
        let model = UnitConfig {
            caching_mode,
            ..UnitConfig::default()
        };
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        for attached in [false, true] {
            if attached {
                rig.attach(DEVICE, A);
            }
            let _ = rig.write(DEVICE, B_BASE);
            assert_eq!(faults(&mut rig).0.len(), 1);
            let pending = rig.units[0].silence(DEVICE, true).unwrap();
            rig.flush(pending);
            assert!(rig.write(DEVICE, B_BASE).is_err());
            assert!(rig.write(OTHER, B_BASE).is_err());
            let (found, _) = faults(&mut rig);
            assert_eq!(found.len(), 1, "attached: {attached}");
            assert_eq!(found[0].source, OTHER);
            let pending = rig.units[0].silence(DEVICE, false).unwrap();
            rig.flush(pending);
            let _ = rig.write(DEVICE, B_BASE);
            assert_eq!(faults(&mut rig).0.len(), 1);
            if attached {
                assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
            }
        }
        // An attachment is heard.
        let pending = rig.units[0].block(DEVICE);
        rig.flush(pending);
        let pending = rig.units[0].silence(DEVICE, true).unwrap();
        rig.flush(pending);
        rig.attach(DEVICE, A);
        let _ = rig.write(DEVICE, B_BASE);
        assert_eq!(faults(&mut rig).0.len(), 1);
        rig.sound();
    }
}

#[test]
fn a_unit_that_vanishes_anywhere_gives_errors_and_ends() {
    type Act = fn(&mut Rig) -> bool;
    let acts: [Act; 6] = [
        |r| r.units[0].drain_faults(|_| ()).is_err(),
        |r| r.units[0].invalidate_everything().is_err(),
        |r| {
            r.units[0]
                .move_devices(&[DEVICE], Some(B), iommu::vtd::Pending::none())
                .is_err()
        },
        |r| r.units[0].record().is_err(),
        |r| r.units[0].set_fault_message(Some(message())).is_err(),
        |r| r.units[0].recover_queue().is_err(),
    ];
    for act in acts {
        let mut rig = Rig::one();
        rig.attach(DEVICE, A);
        rig.machine.inject(0, Injection::Gone);
        assert!(act(&mut rig));
    }
    // And in the middle of each.
    for act in acts {
        for steps in 0..40 {
            let mut rig = Rig::one();
            rig.attach(DEVICE, A);
            let _ = rig.write(OTHER, 0);
            rig.machine.inject(0, Injection::GoneAfter(steps));
            let _ = act(&mut rig);
        }
    }
    for steps in 0..60 {
        let mut rig = Rig::prepared(Schedule::Lazy, &[UnitConfig::default()]);
        rig.machine.inject(0, Injection::GoneAfter(steps));
        let before = rig.machine.now();
        let _ = rig.units[0].enable();
        assert!(rig.machine.now() - before < 1_000_000);
    }
}

#[test]
fn after_a_drain_the_next_fault_is_announced_whatever_happened_meanwhile() {
    for records in [1_u16, 2, 8] {
        for meanwhile in 0..20 {
            let model = UnitConfig {
                fault_records: records,
                ..UnitConfig::default()
            };
            let mut rig = Rig::up(Schedule::Lazy, &[model]);
            let machine = rig.machine.clone();
            let mut next = 0;
            let _ = rig.write(DEVICE, 0);
            let announced = rig.machine.fault_messages(0).len();
            assert_eq!(announced, 1);
            let mut first = true;
            let count = rig.units[0].drain_faults(|_| {
                if core::mem::take(&mut first) {
                    for _ in 0..meanwhile {
                        next += 1;
                        let _ = machine.dma_write(0, 0x4000 + next, 0, &[1]);
                    }
                }
            });
            // A handler that drains whenever it is told to, and until there is no more.
            if count.unwrap().more {
                while rig.units[0].drain_faults(|_| ()).unwrap().more {}
            }
            let mut seen = rig.machine.fault_messages(0).len();
            for _ in 0..30 {
                let now = rig.machine.fault_messages(0).len();
                if now > seen {
                    seen = now;
                    while rig.units[0].drain_faults(|_| ()).unwrap().more {}
                }
            }
            let _ = rig.write(OTHER, 0);
            let after = rig.machine.fault_messages(0).len();
            assert!(
                after > seen,
                "{records} records, {meanwhile} meanwhile: never told again"
            );
        }
    }
}

#[test]
fn an_error_of_the_queue_does_not_silence_faults_for_ever() {
    for injection in [
        Injection::QueueErrors(1),
        Injection::TimeOuts(1),
        Injection::CompletionErrors(1),
    ] {
        let mut rig = Rig::one();
        rig.attach(DEVICE, A);
        rig.machine.inject(0, injection);
        let pending = rig.units[0].block(DEVICE);
        rig.flush(pending);
        // The error was announced; the handler does both that it has to.
        assert_eq!(rig.machine.fault_messages(0).len(), 1, "{injection:?}");
        rig.units[0].recover_queue().unwrap();
        rig.units[0].drain_faults(|_| ()).unwrap();
        let _ = rig.write(DEVICE, 0);
        assert_eq!(rig.machine.fault_messages(0).len(), 2, "{injection:?}");
        rig.sound();
    }
}
