//! Devices that make faults without end, and what it costs to be told of them.

use handoff_abi::{PciFunction, RequesterId};
use iommu::quiesce::QuiesceError;
use iommu::storm::{FaultCounts, Limit, Stopped, stop};
use iommu_model::pci::{ConfigSpaces, Misbehaviour, NoWindow};
use proptest::prelude::*;

use crate::rig::*;

const LIMIT: Limit = Limit {
    faults: 64,
    window: 1_000_000,
};

/// What the handler of fault messages has, and what it did.
struct Handler {
    counts: FaultCounts<16>,
    spaces: ConfigSpaces,
    stopped: Vec<Stopped<(), NoWindow>>,
    drains: u64,
    /// Faults that were handed over, and the largest number in one drain.
    faults: u64,
    most: u32,
    /// What the processor did in it: register accesses, loads, stores, looks at the clock.
    actions: u64,
    /// The most of it in one drain that stopped nobody.
    most_actions: u64,
}

impl Handler {
    fn new(devices: &[RequesterId]) -> Self {
        let spaces = ConfigSpaces::default();
        for &requester in devices {
            spaces.add(function(requester), &[]);
        }
        Self {
            counts: FaultCounts::new(LIMIT),
            spaces,
            stopped: Vec::new(),
            drains: 0,
            faults: 0,
            most: 0,
            actions: 0,
            most_actions: 0,
        }
    }

    /// What is done when the unit announces faults.
    fn run(&mut self, rig: &mut Rig) {
        let before = rig.machine.actions();
        let now = rig.machine.now();
        let counts = &mut self.counts;
        let drained = rig.units[0].drain_faults(|fault| counts.note(fault.source, now));
        let drained = drained.unwrap();
        self.drains += 1;
        self.faults += u64::from(drained.records);
        self.most = self.most.max(drained.records);
        let spent = rig.machine.actions() - before;
        let mut idle = true;
        while let Some(storm) = self.counts.next_storm() {
            idle = false;
            let functions = [function(storm.requester)];
            let stopped = stop(storm, &functions, &mut self.spaces, |requester| {
                rig.silence(requester);
                Ok(())
            });
            self.stopped.push(stopped);
        }
        if idle {
            self.most_actions = self.most_actions.max(spent);
        }
        self.actions += rig.machine.actions() - before;
    }
}

fn function(requester: RequesterId) -> PciFunction {
    PciFunction {
        segment: 0,
        requester,
    }
}

/// The unit does what it has to, and tells the handler.
fn interrupt(rig: &mut Rig, handler: &mut Handler, seen: &mut usize) {
    rig.idle();
    let announced = rig.announced();
    if announced > *seen {
        *seen = announced;
        handler.run(rig);
    }
}

/// `requests` of a device in turn with the handler; the device stops when it is no bus master, or
/// does not.
fn rage(rig: &mut Rig, handler: &mut Handler, device: RequesterId, requests: u64, obeys: bool) {
    let mut seen = rig.announced();
    for request in 0..requests {
        if obeys && !handler.spaces.is_bus_master(function(device)) {
            break;
        }
        // Many at once, of which a unit may record only some.
        assert!(rig.write(device, C_BASE + request % 512 * 0x1000).is_err());
        if request % 7 == 0 {
            interrupt(rig, handler, &mut seen);
        }
    }
    interrupt(rig, handler, &mut seen);
}

#[test]
fn a_hundred_thousand_faults_cost_no_more_than_the_first_few() {
    // One that has no domain, and one that has one and keeps missing it.
    for attached in [false, true] {
        let mut spent = Vec::new();
        for requests in [5_000, 100_000] {
            let mut rig = Rig::announcing();
            if attached {
                rig.attach(DEVICE, A);
            }
            let mut handler = Handler::new(&[DEVICE]);
            // It does not even obey when its bus mastering is taken away.
            rage(&mut rig, &mut handler, DEVICE, requests, false);
            assert_eq!(handler.stopped.len(), 1, "one silence");
            let stopped = handler.stopped[0];
            assert_eq!(stopped.storm.requester, DEVICE);
            assert!(stopped.is_bounded() && stopped.bus_masters.is_ok());
            assert!(!handler.spaces.is_bus_master(function(DEVICE)));
            // Nobody is told of what came afterwards.
            assert!(handler.faults <= u64::from(LIMIT.faults) + u64::from(RECORDS));
            assert!(handler.most <= RECORDS);
            // A few accesses for each fault, and for each drain.
            let bound = 16 + 8 * u64::from(handler.most);
            assert!(handler.most_actions <= bound, "{}", handler.most_actions);
            spent.push((handler.drains, handler.faults, handler.actions));
            // Others are heard as before.
            let mut seen = rig.announced();
            let faults = handler.faults;
            assert!(rig.write(OTHER, C_BASE).is_err());
            interrupt(&mut rig, &mut handler, &mut seen);
            assert_eq!(handler.faults, faults + 1);
            rig.sound();
        }
        assert_eq!(spent[0], spent[1], "twenty times as many cost the same");
    }
}

#[test]
fn one_whose_refused_interrupts_go_on_is_no_bus_master_any_more() {
    let mut rig = Rig::announcing();
    let mut handler = Handler::new(&[DEVICE]);
    let mut seen = rig.announced();
    let mut sent = 0;
    while handler.spaces.is_bus_master(function(DEVICE)) {
        sent += 1;
        assert!(sent < 10_000, "never stopped");
        rig.forge_interrupt(DEVICE);
        interrupt(&mut rig, &mut handler, &mut seen);
    }
    assert_eq!(handler.stopped.len(), 1);
    rig.sound();
}

#[test]
fn a_storm_among_others_is_found_and_the_others_stay() {
    let mut rig = Rig::announcing();
    let others: Vec<_> = (0..40).map(|i| RequesterId(0x0400 | i << 3)).collect();
    let mut all = others.clone();
    all.push(DEVICE);
    let mut handler = Handler::new(&all);
    let mut seen = rig.announced();
    for round in 0..200_usize {
        assert!(rig.write(others[round % 40], C_BASE).is_err());
        interrupt(&mut rig, &mut handler, &mut seen);
        for _ in 0..3 {
            assert!(rig.write(DEVICE, C_BASE).is_err());
            interrupt(&mut rig, &mut handler, &mut seen);
        }
    }
    let storms: Vec<_> = handler.stopped.iter().map(|s| s.storm.requester).collect();
    assert_eq!(storms, [DEVICE]);
    assert!(
        others
            .iter()
            .all(|&o| handler.spaces.is_bus_master(function(o)))
    );
    rig.sound();
}

#[test]
fn one_that_keeps_its_bus_mastering_is_silenced_all_the_same() {
    let mut rig = Rig::announcing();
    let mut handler = Handler::new(&[DEVICE]);
    handler
        .spaces
        .misbehave(function(DEVICE), Misbehaviour::ReadOnly);
    rage(&mut rig, &mut handler, DEVICE, 2_000, true);
    assert_eq!(handler.stopped.len(), 1);
    let stopped = handler.stopped[0];
    assert!(stopped.is_bounded());
    assert!(matches!(
        stopped.bus_masters,
        Err(QuiesceError::StillBusMaster { .. })
    ));
    rig.sound();
}

#[test]
fn a_device_that_obeys_makes_no_fault_after_it_was_stopped() {
    let mut rig = Rig::announcing();
    let mut handler = Handler::new(&[DEVICE]);
    rage(&mut rig, &mut handler, DEVICE, 100_000, true);
    let made = rig.faults_made();
    assert!(made < 2_000, "{made} faults");
    assert_eq!(handler.stopped.len(), 1);
    // Its new owner is heard again.
    handler.counts.forget(DEVICE);
    rig.attach(DEVICE, A);
    assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    let faults = handler.faults;
    rage(&mut rig, &mut handler, DEVICE, 1, false);
    assert_eq!(handler.faults, faults + 1);
    rig.sound();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Any devices that make faults in any bursts, those that obey and those that do not.
    #[test]
    fn whoever_storms_is_stopped_once_and_nobody_else_is(
        bursts in prop::collection::vec((0_u16..6, 1_u64..200), 1..40),
        obedient in prop::collection::vec(any::<bool>(), 6),
    ) {
        let devices: Vec<_> = (0..6).map(|i| RequesterId(0x0300 | i << 3)).collect();
        let mut rig = Rig::announcing();
        let mut handler = Handler::new(&devices);
        let mut made = [0; 6];
        for (number, requests) in bursts {
            let number = usize::from(number);
            rage(&mut rig, &mut handler, devices[number], requests, obedient[number]);
            made[number] += requests;
        }
        for (device, made) in devices.iter().zip(made) {
            let stopped = handler.stopped.iter().filter(|s| s.storm.requester == *device).count();
            prop_assert!(stopped <= 1);
            prop_assert_eq!(stopped == 0, handler.spaces.is_bus_master(function(*device)));
            // A unit need not record everything; what it records of nobody else is counted.
            prop_assert!(stopped == 0 || made >= u64::from(LIMIT.faults));
        }
        let storms = handler.stopped.len() as u64;
        let told = made.map(|made| made.min(u64::from(LIMIT.faults))).iter().sum::<u64>();
        prop_assert!(handler.faults <= told + (storms + 1) * u64::from(RECORDS));
        rig.sound();
    }
}
