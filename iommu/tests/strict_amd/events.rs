//! Taking events out of the log.

use handoff_abi::RequesterId;
use iommu::amd::Config;
use iommu::{Access, Fault, FaultReason, FaultRequest};
use iommu_model::amd::{Injection, Schedule, UnitConfig};

use crate::rig::*;

impl Rig {
    fn drain(&mut self) -> (Vec<Fault>, iommu::FaultCount) {
        let mut faults = Vec::new();
        let count = self.units[0].drain_faults(|fault| faults.push(fault));
        (faults, count.unwrap())
    }
}

#[test]
fn a_refused_request_is_told_with_who_what_where_and_why() {
    for model in models().into_iter().filter(|model| model.invalidate_all) {
        let mut rig = Rig::up(Schedule::Lazy, &[model]);
        rig.attach(DEVICE, A);
        assert!(rig.write(DEVICE, B_BASE + 0x1234).is_err());
        assert!(rig.read(DEVICE, B_BASE).is_err());
        assert!(rig.write(DEVICE, 1 << 39).is_err());
        assert!(rig.read(OTHER, A_BASE).is_err());
        rig.machine.msi(0, OTHER.0, 0xfee0_0000, 0x41);
        let (faults, count) = rig.drain();
        let seen: Vec<_> = faults
            .iter()
            .map(|fault| (fault.source, fault.request, fault.reason))
            .collect();
        let access = |address| FaultRequest::Access { address };
        assert_eq!(
            seen[..4],
            [
                (DEVICE, access(B_BASE + 0x1000), FaultReason::NotPermitted),
                (DEVICE, access(B_BASE), FaultReason::NotPermitted),
                (DEVICE, access(1 << 39), FaultReason::AddressTooWide),
                (
                    OTHER,
                    FaultRequest::Read { address: A_BASE },
                    FaultReason::Blocked
                ),
            ]
        );
        assert!(
            matches!(
                seen[4],
                (
                    OTHER,
                    FaultRequest::Interrupt { .. },
                    FaultReason::InterruptEntry
                )
            ),
            "{:?}",
            seen[4]
        );
        assert_eq!(
            (count.records, count.overflowed, count.more),
            (5, false, false)
        );
        assert_eq!(rig.drain().0, []);
        rig.sound();
    }
}

#[test]
fn where_the_page_is_there_the_direction_is_told() {
    let mut rig = Rig::one();
    let at = 0x3_0000_0000;
    for (at, access) in [(at, Access::READ), (at + 0x1000, Access::WRITE)] {
        let mapped = rig.units[0].map(A, at, range(at, 0x1000), access).unwrap();
        rig.flush(mapped);
    }
    rig.attach(DEVICE, A);
    assert!(rig.write(DEVICE, at).is_err());
    assert!(rig.read(DEVICE, at + 0x1000).is_err());
    let (faults, _) = rig.drain();
    assert_eq!(faults[0].request, FaultRequest::Write { address: at });
    let address = at + 0x1000;
    assert_eq!(faults[1].request, FaultRequest::Read { address });
    assert_eq!(faults[1].reason, FaultReason::NotPermitted);
    rig.sound();
}

#[test]
fn the_log_wraps_and_no_event_is_seen_twice() {
    let mut rig = Rig::one();
    let mut seen = 0;
    for round in 0..40_u64 {
        for i in 0..50 {
            let address = (round * 50 + i) * 0x1000;
            assert!(rig.write(DEVICE, address).is_err());
        }
        let (faults, count) = rig.drain();
        for fault in faults {
            assert_eq!(fault.address(), Some(seen * 0x1000));
            seen += 1;
        }
        assert!(!count.overflowed);
    }
    assert_eq!(seen, 2000);
    rig.sound();
}

#[test]
fn a_log_that_overflowed_is_started_again() {
    let mut rig = Rig::one();
    for _ in 0..2000 {
        assert!(rig.write(DEVICE, B_BASE).is_err());
    }
    let (faults, count) = rig.drain();
    assert!(count.overflowed && !count.more, "{count:?}");
    assert!(faults.len() >= 500);
    assert!(rig.machine.counters(0).events_lost > 0);
    assert!(rig.write(OTHER, A_BASE).is_err());
    let (faults, count) = rig.drain();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].source, OTHER);
    assert!(!count.overflowed);
    rig.sound();
}

#[test]
fn an_entry_that_lags_is_waited_for_and_one_that_never_comes_has_an_end() {
    let slow = UnitConfig {
        event_steps: 50,
        ..UnitConfig::default()
    };
    let mut rig = Rig::up(Schedule::Lazy, &[slow]);
    for _ in 0..5 {
        assert!(rig.write(DEVICE, B_BASE).is_err());
    }
    assert_eq!(rig.drain().0.len(), 5);
    rig.sound();

    let mut rig = Rig::one();
    rig.machine.inject(0, Injection::LostEvents(1));
    assert!(rig.write(DEVICE, B_BASE).is_err());
    assert!(rig.write(OTHER, B_BASE).is_err());
    let before = rig.machine.now();
    let (faults, count) = rig.drain();
    assert!(rig.machine.now() - before < 1_000_000);
    assert_eq!(faults, []);
    assert!(count.more, "it is not passed over");
    // Until the log overflows: then it is started again.
    for _ in 0..600 {
        assert!(rig.write(DEVICE, B_BASE).is_err());
    }
    assert!(rig.drain().1.overflowed);
    assert!(rig.write(OTHER, B_BASE).is_err());
    assert_eq!(rig.drain().0.len(), 1);
    rig.sound();
}

#[test]
fn a_silenced_device_is_blocked_and_not_heard_of() {
    let mut rig = Rig::one();
    let silenced = rig.units[0].silence(DEVICE, true).unwrap();
    rig.flush(silenced);
    assert!(rig.write(DEVICE, A_BASE).is_err());
    assert!(rig.write(OTHER, A_BASE).is_err());
    let (faults, _) = rig.drain();
    let sources: Vec<RequesterId> = faults.iter().map(|fault| fault.source).collect();
    assert_eq!(sources, [OTHER]);
    // Attached, it is heard again.
    rig.attach(DEVICE, A);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    assert!(rig.write(DEVICE, B_BASE).is_err());
    assert_eq!(rig.drain().0.len(), 1);
    let silenced = rig.units[0].silence(DEVICE, true).unwrap();
    rig.flush(silenced);
    assert_eq!(
        rig.write(DEVICE, A_BASE),
        Ok(A_BASE),
        "nothing else changes"
    );
    assert!(rig.write(DEVICE, B_BASE).is_err());
    assert_eq!(rig.drain().0, []);
    let heard = rig.units[0].silence(DEVICE, false).unwrap();
    rig.flush(heard);
    assert!(rig.write(DEVICE, B_BASE).is_err());
    assert_eq!(rig.drain().0.len(), 1);
    rig.sound();
}

#[test]
fn an_event_is_announced_and_after_a_drain_the_next_one_is() {
    let mut rig = Rig::prepared_with(Schedule::Lazy, &[UnitConfig::default()], |config| Config {
        fault_interrupt: true,
        ..config
    });
    rig.machine.set_msi(0, 0xfee0_3000, 0x61);
    rig.units[0].enable().unwrap();
    for round in 1..4 {
        assert!(rig.write(DEVICE, B_BASE).is_err());
        // The unit takes its time.
        let _ = rig.units[0].record().unwrap();
        let _ = rig.units[0].invalidate_everything();
        assert_eq!(rig.machine.messages(0).len(), round);
        assert_eq!(rig.drain().0.len(), 1);
    }
    rig.units[0].set_fault_interrupt(false).unwrap();
    assert!(rig.write(DEVICE, B_BASE).is_err());
    let _ = rig.units[0].invalidate_everything();
    assert_eq!(rig.machine.messages(0).len(), 3);
    assert_eq!(rig.drain().0.len(), 1);
    rig.sound();
}

#[test]
fn a_device_that_makes_faults_without_end_does_not_keep_the_caller() {
    let mut rig = Rig::one();
    rig.machine.attack(0, DEVICE.0, B_BASE);
    let (faults, _) = rig.drain();
    assert!(faults.len() <= 512);
    let (faults, _) = rig.drain();
    assert!(faults.len() <= 512);
    drop(rig.machine.take_attacks());
    rig.sound();
}
