//! Moving devices from domain to domain: what it costs, counted from QEMU's own trace, and what a
//! device that never stops sees of it.

use std::cell::RefCell;
use std::rc::Rc;

use handoff_abi::{PhysAddr, PhysRange, RequesterId};
use iommu::vtd::{Config, MoveError, Pending};
use iommu::{Access, MoveMethod};
use iommu_qtest::{
    Board, Edu, Event, Fence, MINE, Place, Step, THEIRS, Trace, delivered, id, raw, target,
};

/// `count` devices on bus 0, eight functions to each device number, all in domain 1 and with
/// translations in the unit's caches.
fn many(unit: &str, count: usize) -> Fence {
    let places: Vec<Place> = (0..count)
        .map(|index| Place::RootBus {
            device: 1 + index as u8 / 8,
            function: index as u8 % 8,
        })
        .collect();
    let mut fence = Fence::new(&Board {
        unit,
        devices: &places,
        ..Board::default()
    });
    for device in 0..count {
        fence.attach(device, id(1));
        fence.assert_reaches(device, MINE.base().0);
    }
    fence
}

fn requesters(fence: &Fence) -> Vec<RequesterId> {
    let edus = fence.machine().edus().iter();
    edus.map(Edu::requester).collect()
}

/// What the unit was made to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    contexts: usize,
    translations: usize,
    interrupts: usize,
    waits: usize,
    register_writes: usize,
    register_reads: usize,
}

fn cost(fence: &Fence, trace: &mut Trace) -> Cost {
    let counted = fence.observer().take();
    let events = trace.take();
    let of = |names: &[&str]| {
        let counted = events.iter().filter(|event| names.contains(&&*event.name));
        counted.count()
    };
    let cost = Cost {
        contexts: of(&[
            "vtd_inv_desc_cc_global",
            "vtd_inv_desc_cc_devices",
            "vtd_inv_desc_cc_domain",
        ]),
        translations: of(&[
            "vtd_inv_desc_iotlb_global",
            "vtd_inv_desc_iotlb_domain",
            "vtd_inv_desc_iotlb_pages",
        ]),
        interrupts: of(&["vtd_inv_desc_iec"]),
        waits: of(&["vtd_inv_desc_wait_sw"]),
        register_writes: of(&["vtd_reg_write"]),
        register_reads: of(&["vtd_reg_read"]),
    };
    // The trace and what the driver's traits saw tell the same.
    assert_eq!(cost.register_writes as u64, counted.register_writes);
    assert_eq!(cost.register_reads as u64, counted.register_reads);
    assert_eq!(
        cost.contexts + cost.translations + cost.interrupts + cost.waits,
        of(&["vtd_inv_desc"]),
        "every descriptor is of a kind that is counted: {events:?}"
    );
    // Whatever is written is the queue's tail, or, in a switch, RTADDR and GCMD before it.
    let writes = events.iter().filter(|e| e.name == "vtd_reg_write");
    let written: Vec<_> = writes.map(|event| event.field("addr")).collect();
    match written.as_slice() {
        [0x20, 0x18, tail @ ..] | tail => assert!(tail.iter().all(|&at| at == 0x88)),
    }
    cost
}

/// Moves all devices of a machine into domain 2 and returns what that cost.
fn move_all(fence: &mut Fence, with: Pending) -> (MoveMethod, Cost) {
    let devices = requesters(fence);
    let mut trace = fence.bus().trace();
    let _ = fence.observer().take();
    let method = fence
        .driver
        .move_devices(&devices, Some(id(2)), with)
        .unwrap();
    (method, cost(fence, &mut trace))
}

fn assert_moved(fence: &mut Fence) {
    for device in 0..fence.machine().edus().len() {
        let requester = fence.edu(device).requester();
        assert_eq!(fence.driver.domain_of(requester), Some(id(2)));
        fence.assert_reaches(device, THEIRS.base().0);
        let (was, mine) = (MINE.base().0, MINE.base().0);
        assert!(!fence.reaches(device, was, mine), "{requester}");
        assert_eq!(fence.faults().len(), 1);
    }
}

#[test]
fn a_few_devices_cost_a_descriptor_each_and_one_for_the_domain_and_one_wait() {
    for count in [1, 2, 8] {
        let mut fence = many("intremap=on", count);
        let (method, cost) = move_all(&mut fence, Pending::none());
        assert_eq!(method, MoveMethod::Selective);
        assert_eq!(
            cost,
            Cost {
                contexts: count,
                translations: 1,
                interrupts: 0,
                waits: 1,
                register_writes: 1,
                register_reads: 0,
            },
            "{count} devices"
        );
        assert_moved(&mut fence);
    }
}

#[test]
fn many_devices_cost_three_descriptors_with_their_one_wait() {
    for count in [9, 32] {
        let mut fence = many("intremap=on", count);
        let (method, cost) = move_all(&mut fence, Pending::none());
        assert_eq!(method, MoveMethod::Global);
        assert_eq!(
            cost,
            Cost {
                contexts: 1,
                translations: 1,
                interrupts: 0,
                waits: 1,
                register_writes: 1,
                register_reads: 0,
            },
            "{count} devices"
        );
        assert_moved(&mut fence);
    }
}

#[test]
fn a_switch_costs_the_same_for_any_number_of_devices() {
    for count in [1, 9, 32] {
        let mut fence = many("intremap=on", count);
        let devices = requesters(&fence);
        let prepared = fence.driver.prepare_switch(&devices, Some(id(2))).unwrap();
        assert_eq!(prepared.method(), MoveMethod::Switch);
        // Nothing is in force of it yet.
        fence.assert_reaches(0, MINE.base().0);
        let mut trace = fence.bus().trace();
        let _ = fence.observer().take();
        let moving = fence
            .driver
            .start_prepared(prepared, Pending::none())
            .unwrap();
        assert_eq!(fence.driver.finish_move(moving), Ok(MoveMethod::Switch));
        assert_eq!(
            cost(&fence, &mut trace),
            Cost {
                contexts: 1,
                translations: 1,
                interrupts: 0,
                waits: 1,
                register_writes: 3,
                register_reads: 2,
            },
            "{count} devices"
        );
        assert_moved(&mut fence);
    }
}

#[test]
fn devices_of_two_domains_and_their_interrupts_share_the_one_wait() {
    let mut fence = many("intremap=on", 4);
    // One of them comes from a third domain.
    fence.driver.create_domain(id(3)).unwrap();
    fence.map(id(3), MINE, Access::READ_WRITE);
    let last = fence.edu(3).requester();
    let pending = fence.driver.block(last);
    fence.flush(pending);
    fence.attach(3, id(3));
    let handles: Vec<_> = (0..4)
        .map(|device| fence.interrupt(device, 0, 0x40 + device as u8))
        .collect();
    let mut with = Pending::none();
    for (handle, vector) in handles.into_iter().zip(0x50..) {
        let pending = fence.driver.retarget(handle, target(1, vector)).unwrap();
        with = with.merge(pending);
    }
    let (_, cost) = move_all(&mut fence, with);
    assert_eq!(
        cost,
        Cost {
            contexts: 4,
            translations: 2,
            interrupts: 4,
            waits: 1,
            register_writes: 1,
            register_reads: 0,
        }
    );
    assert_moved(&mut fence);
    let mut trace = fence.bus().trace();
    for device in 0..4 {
        fence.edu(device).raise();
    }
    assert_eq!(
        delivered(&trace.take()),
        [(1, 0x50), (1, 0x51), (1, 0x52), (1, 0x53)]
    );
}

#[test]
fn in_caching_mode_what_becomes_present_is_invalidated_too() {
    let mut fence = many("intremap=on,caching-mode=on", 2);
    let (_, cost) = move_all(&mut fence, Pending::none());
    assert_eq!(
        cost,
        Cost {
            contexts: 4,
            translations: 2,
            interrupts: 0,
            waits: 2,
            register_writes: 2,
            register_reads: 0,
        }
    );
    assert_moved(&mut fence);
}

#[test]
fn blocking_many_devices_costs_one_wait() {
    let mut fence = many("intremap=on", 16);
    let devices = requesters(&fence);
    let mut trace = fence.bus().trace();
    let _ = fence.observer().take();
    fence
        .driver
        .move_devices(&devices, None, Pending::none())
        .unwrap();
    let cost = cost(&fence, &mut trace);
    assert_eq!(
        (cost.waits, cost.register_writes, cost.register_reads),
        (1, 1, 0)
    );
    for (device, &requester) in devices.iter().enumerate() {
        assert_eq!(fence.driver.domain_of(requester), None);
        assert!(!fence.reaches(device, MINE.base().0, MINE.base().0));
        assert_eq!(fence.faults().len(), 1);
    }
}

#[test]
fn moving_devices_leaves_the_translations_of_others_warm() {
    let mut fence = many("intremap=on", 2);
    let stays = fence.edu(1);
    fence.driver.create_domain(id(3)).unwrap();
    fence.map(id(3), MINE, Access::READ_WRITE);
    let pending = fence.driver.block(stays.requester());
    fence.flush(pending);
    fence.attach(1, id(3));
    fence.assert_reaches(1, MINE.base().0);
    let moved = fence.edu(0).requester();
    fence
        .driver
        .move_devices(&[moved], Some(id(2)), Pending::none())
        .unwrap();
    let mut trace = fence.bus().trace();
    fence.assert_reaches(1, MINE.base().0);
    let walks: Vec<Event> = trace.take_named("vtd_iotlb_page_update");
    assert_eq!(walks, [], "no walk was needed");
}

/// A device address that both domains map, and where each does.
const SHARED: u64 = 0x5000_0000;
const IN_FIRST: u64 = 0x3000_0000;
const IN_SECOND: u64 = 0x3800_0000;

/// What came of a write to the address that both domains map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landed {
    First,
    Second,
    Nowhere,
}

/// A device that writes to that address again and again, and what came of it.
struct Writer {
    edu: Edu,
    bus: iommu_qtest::Bus,
    unit: raw::Unit,
    number: u64,
    seen: Vec<Landed>,
    /// Why writes landed nowhere: the codes of the faults.
    codes: Vec<u8>,
}

impl Writer {
    fn new(fence: &Fence, device: usize) -> Self {
        Self {
            edu: fence.edu(device),
            bus: fence.bus().clone(),
            unit: fence.raw().clone(),
            number: 0,
            seen: Vec::new(),
            codes: Vec::new(),
        }
    }

    fn write(&mut self) -> Landed {
        // The buffer's contents do not matter, only where they land: memory is marked before.
        self.number += 1;
        for at in [IN_FIRST, IN_SECOND] {
            self.bus.write64(at, self.number << 32 | 0xdead);
        }
        let untouched = self.number << 32 | 0xdead;
        self.edu.dma_write(SHARED, 8);
        let landed = match [IN_FIRST, IN_SECOND].map(|at| self.bus.read64(at) != untouched) {
            [true, false] => Landed::First,
            [false, true] => Landed::Second,
            [false, false] => Landed::Nowhere,
            [true, true] => panic!("one write landed twice"),
        };
        self.seen.push(landed);
        let fault = self.unit.fault();
        assert_eq!(fault.is_some(), landed == Landed::Nowhere, "{fault:?}");
        if let Some(fault) = fault {
            assert_eq!(fault.source, self.edu.requester());
            self.unit.clear_fault();
            if !self.codes.contains(&fault.reason) {
                self.codes.push(fault.reason);
            }
        }
        landed
    }
}

fn two_maps(config: Config) -> Fence {
    let mut fence = Fence::with_config(&Board::default(), config);
    for (domain, memory) in [(1, IN_FIRST), (2, IN_SECOND)] {
        let memory = PhysRange::new(PhysAddr(memory), 0x1000).unwrap();
        let pending = fence
            .driver
            .map(id(domain), SHARED, memory, Access::READ_WRITE);
        fence.flush(pending.unwrap());
    }
    fence.attach(0, id(1));
    fence
}

#[test]
fn a_device_that_never_stops_sees_the_old_domain_then_nothing_then_the_new_one() {
    let mut fence = two_maps(Config::default());
    let writer = Rc::new(RefCell::new(Writer::new(&fence, 0)));
    assert_eq!(writer.borrow_mut().write(), Landed::First);
    let device = writer.clone();
    fence.observer().before_each_access(move |_| {
        device.borrow_mut().write();
    });
    let requester = fence.edu(0).requester();
    fence
        .driver
        .move_devices(&[requester], Some(id(2)), Pending::none())
        .unwrap();
    fence.observer().stop();
    assert_eq!(writer.borrow_mut().write(), Landed::Second);

    let mut changes = writer.borrow().seen.clone();
    println!("{} writes during the move", changes.len() - 2);
    changes.dedup();
    assert_eq!(changes, [Landed::First, Landed::Nowhere, Landed::Second]);
    // Never for an entry that was there in part.
    let codes = writer.borrow().codes.clone();
    assert_eq!(codes, [raw::reason::CONTEXT_NOT_PRESENT]);
}

#[test]
fn a_device_that_never_stops_sees_nothing_after_the_wait_of_its_blocking() {
    let mut fence = two_maps(Config::default());
    let writer = Rc::new(RefCell::new(Writer::new(&fence, 0)));
    assert_eq!(writer.borrow_mut().write(), Landed::First);
    let device = writer.clone();
    fence.observer().before_each_access(move |_| {
        device.borrow_mut().write();
    });
    let pending = fence.driver.block(fence.edu(0).requester());
    fence.flush(pending);
    fence.observer().stop();
    assert_eq!(writer.borrow_mut().write(), Landed::Nowhere);
    let mut changes = writer.borrow().seen.clone();
    changes.dedup();
    assert_eq!(changes, [Landed::First, Landed::Nowhere]);
    let codes = writer.borrow().codes.clone();
    assert_eq!(codes, [raw::reason::CONTEXT_NOT_PRESENT]);
}

#[test]
fn a_device_that_never_stops_finds_tables_that_are_whole_or_absent() {
    let mut fence = Fence::new(&Board::default());
    let writer = Rc::new(RefCell::new(Writer::new(&fence, 0)));
    let device = writer.clone();
    let (mut last, mut run) = (0, 0_u32);
    fence.observer().before_each_access(move |step| {
        if let Step::Store(at) | Step::Load(at) = step {
            // A new table is zeroed word by word, out of the unit's sight: a look at some of these
            // is enough.
            run = if at == last + 8 { run + 1 } else { 0 };
            last = at;
            if run > 2 && !run.is_multiple_of(64) {
                return;
            }
        }
        device.borrow_mut().write();
    });
    let memory = PhysRange::new(PhysAddr(IN_FIRST), 0x1000).unwrap();
    // First the device, so that every table of the mapping is built in the unit's sight.
    fence.attach(0, id(1));
    let pending = fence
        .driver
        .map(id(1), SHARED, memory, Access::READ_WRITE)
        .unwrap();
    fence.flush(pending);
    fence.observer().stop();
    assert_eq!(writer.borrow_mut().write(), Landed::First);
    let mut changes = writer.borrow().seen.clone();
    changes.dedup();
    assert_eq!(changes, [Landed::Nowhere, Landed::First]);
    // No bus, no device, no page; never an entry that was there in part.
    let codes = writer.borrow().codes.clone();
    assert_eq!(
        codes,
        [
            raw::reason::ROOT_NOT_PRESENT,
            raw::reason::CONTEXT_NOT_PRESENT,
            raw::reason::WRITE,
        ]
    );
}

#[test]
fn a_move_whose_wait_fails_leaves_the_device_out_of_the_new_domain() {
    let mut fence = two_maps(Config {
        timeout_microseconds: 30_000,
        ..Config::default()
    });
    let mut writer = Writer::new(&fence, 0);
    assert_eq!(writer.write(), Landed::First);
    // Behind the driver's back the queue is switched off: the unit executes nothing.
    fence.raw().command(raw::TES | raw::IRES);
    assert_eq!(fence.raw().status() & raw::QIES, 0);
    let requester = fence.edu(0).requester();
    let result = fence
        .driver
        .move_devices(&[requester], Some(id(2)), Pending::none());
    assert!(
        matches!(result, Err(MoveError::Invalidate(_))),
        "{result:?}"
    );
    assert_eq!(fence.driver.domain_of(requester), None);
    // Not invalidated, so the old translation may live; never the new one.
    assert_ne!(writer.write(), Landed::Second);
    // Nor can the device be attached anew before that is made up for.
    assert!(fence.driver.attach(requester, id(2)).is_err());
    assert!(fence.driver.destroy_domain(id(1)).is_err());

    fence.raw().command(raw::TES | raw::IRES | raw::QIES);
    fence.driver.invalidate_everything().unwrap();
    assert_eq!(writer.write(), Landed::Nowhere);
    fence.attach(0, id(2));
    assert_eq!(writer.write(), Landed::Second);
}

#[test]
fn a_move_to_a_domain_that_is_not_there_changes_nothing() {
    let mut fence = two_maps(Config::default());
    let mut writer = Writer::new(&fence, 0);
    let mut trace = fence.bus().trace();
    let requester = fence.edu(0).requester();
    let result = fence
        .driver
        .move_devices(&[requester], Some(id(9)), Pending::none());
    assert!(matches!(result, Err(MoveError::Attach(_))), "{result:?}");
    assert_eq!(trace.take_named("vtd_reg_write"), []);
    assert_eq!(fence.driver.domain_of(requester), Some(id(1)));
    assert_eq!(writer.write(), Landed::First);
    assert_eq!(writer.seen, [Landed::First]);
    assert_eq!(fence.faults(), []);
}
