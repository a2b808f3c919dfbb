//! Posted writes that are in flight when their device moves to another domain.
//!
//! The device issues writes to one device address without end, as long as it is a bus master. Each
//! waits in the fabric and may arrive at any moment, and is translated when it arrives. Both domains
//! map the address, so that a late arrival is a write to the new domain's memory that the old owner
//! issued. The model tries an arrival at every thing that software does.

use handoff_abi::{PciFunction, RequesterId};
use iommu::Access;
use iommu::ConfigSpace;
use iommu::quiesce::{BusMaster, quiesce};
use iommu_model::Arrival;
use iommu_model::pci::ConfigSpaces;

use crate::rig::*;

/// What both domains map, each to its own memory.
const SHARED: u64 = 0x5000;
/// Bus Master Enable in the Command register.
const COMMAND: u16 = 4;

fn functions(count: u16) -> Vec<PciFunction> {
    (0..count)
        .map(|number| PciFunction {
            segment: 0,
            requester: RequesterId(0x0200 | number),
        })
        .collect()
}

/// What is done before the devices are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// They are made quiet.
    Quiesce,
    /// Bus mastering is switched off and not read back.
    WriteOnly,
    /// Bus mastering is read and stays on.
    ReadOnly,
    /// Nothing.
    Nothing,
}

/// The moments at which a write can arrive, from the beginning of the preparation to the end of the
/// move.
fn arrivals(rig: &mut Rig, count: u16, way: Way, before: Before) -> Vec<Arrival<Reason>> {
    let functions = functions(count);
    let devices: Vec<_> = functions.iter().map(|f| f.requester).collect();
    for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
        let memory = range(base, 0x1000);
        let mapped = rig.units[0].map(domain, SHARED, memory, Access::READ_WRITE);
        rig.flush(mapped.unwrap());
    }
    rig.make_move(&devices, Some(A), Way::Batch);
    let mut spaces = ConfigSpaces::default();
    let masters: Vec<_> = functions
        .iter()
        .map(|&function| {
            // Every second one is conventional: nothing but the read-back is read from it.
            let express: &[_] = &[(0x10, 0x70)];
            let conventional = function.requester.function() % 2 == 0;
            spaces.add(function, if conventional { &[] } else { express });
            BusMaster::find(&mut spaces, function).unwrap()
        })
        .collect();
    let machine = rig.machine.clone();
    spaces.observe(move |effect| machine.follow(effect));
    for device in &devices {
        rig.machine.stream(0, device.0, SHARED);
    }
    match before {
        Before::Quiesce => {
            let mut clock = rig.machine.clock();
            quiesce(&mut spaces, &mut clock, 1000, &masters).unwrap();
        }
        Before::WriteOnly => {
            for &function in &functions {
                spaces.write16(function, COMMAND, 0x0102).unwrap();
            }
        }
        Before::ReadOnly => {
            for &function in &functions {
                spaces.read16(function, COMMAND).unwrap();
            }
        }
        Before::Nothing => {}
    }
    rig.make_move(&devices, Some(B), way);
    rig.machine.take_arrivals()
}

/// How many of these land in the new domain's memory.
fn late(arrivals: &[Arrival<Reason>]) -> usize {
    let lands = |at| arrivals.iter().filter(|a| a.result == Ok(at)).count();
    assert!(
        lands(A_BASE) > 0,
        "none landed while the devices were in the old domain"
    );
    lands(B_BASE)
}

/// Every way and number of devices, on these units.
fn everywhere(models: &[UnitConfig], mut each: impl FnMut(&mut Rig, u16, Way)) {
    for model in models {
        for schedule in schedules(1) {
            for &way in WAYS {
                for count in [1, 12] {
                    let mut rig = Rig::up(schedule, std::slice::from_ref(model));
                    each(&mut rig, count, way);
                    rig.machine.assert_no_violations();
                }
            }
        }
    }
}

#[test]
fn no_write_of_a_quiet_device_lands_in_its_new_domain_whenever_it_arrives() {
    everywhere(&models(), |rig, count, way| {
        let arrivals = arrivals(rig, count, way, Before::Quiesce);
        assert_eq!(late(&arrivals), 0, "{way:?}, {count} devices");
    });
}

#[test]
fn without_quiescing_some_write_lands_in_the_new_domain() {
    everywhere(&[UnitConfig::default()], |rig, count, way| {
        let arrivals = arrivals(rig, count, way, Before::Nothing);
        assert!(late(&arrivals) > 0, "{way:?}, {count} devices");
    });
}

#[test]
fn bus_mastering_off_without_the_read_back_is_not_enough() {
    everywhere(&[UnitConfig::default()], |rig, count, way| {
        let arrivals = arrivals(rig, count, way, Before::WriteOnly);
        assert!(late(&arrivals) > 0, "{way:?}, {count} devices");
        // What arrives late was issued while the device was a bus master still.
        let last = arrivals.last().map(|a| (a.issued, a.at));
        assert!(last.is_some_and(|(issued, at)| issued < at));
    });
}

#[test]
fn a_read_from_a_device_that_goes_on_is_not_enough() {
    for &way in WAYS {
        let mut rig = Rig::one();
        let arrivals = arrivals(&mut rig, 1, way, Before::ReadOnly);
        assert!(late(&arrivals) > 0, "{way:?}");
    }
}

#[test]
fn after_quiescing_nothing_is_under_way() {
    for &way in WAYS {
        let mut rig = Rig::one();
        arrivals(&mut rig, 3, way, Before::Quiesce);
        let before = rig.machine.actions();
        rig.make_move(&[RequesterId(0x0200)], None, Way::Batch);
        assert!(rig.machine.actions() > before);
        assert_eq!(rig.machine.take_arrivals(), []);
    }
}

#[test]
fn a_device_whose_domain_stays_writes_on_while_others_are_moved() {
    for &way in WAYS {
        let mut rig = Rig::one();
        rig.attach(OTHER, A);
        rig.machine.stream(0, OTHER.0, A_BASE);
        let before = rig.machine.actions();
        let arrivals = arrivals(&mut rig, 12, way, Before::Quiesce);
        let own: Vec<_> = arrivals.iter().filter(|a| a.sid == OTHER.0).collect();
        assert_eq!(own.len() as u64, rig.machine.actions() - before);
        assert!(own.iter().all(|a| a.result == Ok(A_BASE)));
        rig.sound();
    }
}
