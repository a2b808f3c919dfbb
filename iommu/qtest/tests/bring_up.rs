//! How the driver brings the unit up, as QEMU's trace of the registers tells it.

use std::cell::Cell;
use std::rc::Rc;

use iommu::vtd::{Config, EnableError};
use iommu_qtest::{
    Board, Event, Fence, MINE, Machine, Observer, THEIRS, delivered, id, raw, reaches,
};

/// GCMD.
const COMMAND: u64 = 0x18;
/// GCMD: latch the root table, latch the interrupt table. Neither stays set.
const SRTP: u64 = 1 << 30;
const SIRTP: u64 = 1 << 24;
/// GSTS: a flush of the write buffer is under way, advanced fault logging; and all that stays as
/// it is written.
const STAY: u64 = 0x96ff_ffff;

/// Register writes in order: offset, size, value.
fn writes(events: &[Event]) -> Vec<(u64, u64, u64)> {
    events
        .iter()
        .filter(|event| event.name == "vtd_reg_write")
        .map(|event| {
            (
                event.field("addr"),
                event.field("size"),
                event.field("value"),
            )
        })
        .collect()
}

fn at(writes: &[(u64, u64, u64)], wanted: impl Fn(&(u64, u64, u64)) -> bool) -> usize {
    writes
        .iter()
        .position(wanted)
        .unwrap_or_else(|| panic!("no such write in {writes:x?}"))
}

#[test]
fn registers_are_written_in_the_order_of_the_specification() {
    let machine = Machine::start(&Board::default());
    let (mut driver, observer) = machine.driver(Config::default()).unwrap();
    let mut trace = machine.bus().trace();
    let _ = observer.take();
    driver.enable().unwrap();
    let counted = observer.take();
    let events = trace.take();
    let writes = writes(&events);
    assert_eq!(counted.register_writes, writes.len() as u64);
    let reads = events.iter().filter(|event| event.name == "vtd_reg_read");
    assert_eq!(counted.register_reads, reads.count() as u64);

    // Each command changes one bit of what stays, or gives one order.
    let commands: Vec<u64> = writes
        .iter()
        .filter(|write| write.0 == COMMAND)
        .map(|write| write.2)
        .collect();
    let mut before = 0;
    for &command in &commands {
        let changed = (command & STAY) ^ before;
        let orders = command & !STAY & 0xffff_ffff;
        assert_eq!(
            changed.count_ones() + orders.count_ones(),
            1,
            "{commands:x?}"
        );
        before = command & STAY;
    }
    assert_eq!(before, u64::from(raw::TES | raw::QIES | raw::IRES));

    let command = |bit: u64| move |w: &(u64, u64, u64)| w.0 == COMMAND && w.2 & bit != 0;
    let tail = |w: &(u64, u64, u64)| w.0 == 0x88 && w.2 != 0;
    let order = [
        (
            "fault event masked",
            at(&writes, |w| w.0 == 0x38 && w.2 >> 31 == 1),
        ),
        ("root table written", at(&writes, |w| w.0 == 0x20)),
        ("root table latched", at(&writes, command(SRTP))),
        ("queue written", at(&writes, |w| w.0 == 0x90)),
        ("queue on", at(&writes, command(raw::QIES.into()))),
        ("caches invalidated", at(&writes, tail)),
        ("interrupt table written", at(&writes, |w| w.0 == 0xb8)),
        ("interrupt table latched", at(&writes, command(SIRTP))),
        (
            "interrupt remapping on",
            at(&writes, command(raw::IRES.into())),
        ),
        ("translation on", at(&writes, command(raw::TES.into()))),
    ];
    for pair in order.windows(2) {
        assert!(
            pair[0].1 < pair[1].1,
            "{} after {}: {writes:x?}",
            pair[0].0,
            pair[1].0
        );
    }
    // Between the interrupt table and its use, its cache is invalidated.
    let between = &writes[order[7].1..order[8].1];
    assert!(between.iter().any(tail), "{between:x?}");
    // Contexts before translations before interrupts.
    let names: Vec<&str> = events
        .iter()
        .map(|event| &*event.name)
        .filter(|name| name.starts_with("vtd_inv_desc_"))
        .collect();
    assert_eq!(
        names,
        [
            "vtd_inv_desc_cc_global",
            "vtd_inv_desc_iotlb_global",
            "vtd_inv_desc_wait_sw",
            "vtd_inv_desc_iec",
            "vtd_inv_desc_wait_sw",
        ]
    );
}

#[test]
fn tables_are_flushed_for_a_unit_that_does_not_snoop() {
    let machine = Machine::start(&Board::default());
    let (mut driver, observer) = machine.driver(Config::default()).unwrap();
    assert!(observer.take().write_backs > 0);
    driver.enable().unwrap();
    assert!(observer.take().write_backs > 0);
}

#[test]
fn a_unit_that_translates_already_is_taken_over_without_a_gap() {
    // The tables of a first driver play firmware's.
    let mut fence = Fence::new(&Board::default());
    fence.attach(0, id(1));
    fence.interrupt(0, 1, 0x33);
    let own = MINE.base().0;
    let foreign = THEIRS.base().0;
    fence.assert_reaches(0, own);

    // The second has the same memory for the device, in tables of its own.
    let second = fence.machine().second_driver(Config::default()).unwrap();
    let first = fence.replace_driver(second);
    fence.make_domains();
    fence.attach(0, id(1));
    let handle = fence.interrupt(0, 0, 0x44);
    // Nothing of it is in force: the entry with this handle is still the first driver's.
    let mut trace = fence.bus().trace();
    fence.edu(0).set_message(handle.message());
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x33)]);

    let (bus, edu) = (fence.bus().clone(), fence.edu(0));
    let done = Rc::new(Cell::new(0));
    let count = done.clone();
    fence.observer().before_each_access(move |_| {
        assert!(reaches(&bus, &edu, own, own), "DMA failed on the way");
        edu.dma_write(foreign, 16);
        count.set(count.get() + 1);
    });
    fence.bus().write(foreign, b"the other's data");
    let mut trace = fence.bus().trace();
    let mut queue = fence.machine().platform(&Observer::default()).1;
    fence.driver.enable_over(&mut queue).unwrap();
    fence.observer().stop();
    assert!(done.get() > 30, "{} transfers on the way", done.get());
    assert_eq!(
        fence.bus().read(foreign, 16),
        b"the other's data",
        "nor did the fence ever open"
    );
    let on = u64::from(raw::TES | raw::IRES);
    for write in writes(&trace.take()) {
        if write.0 == COMMAND {
            assert_eq!(write.2 & on, on, "switched off on the way: {write:x?}");
        }
    }
    // The attacks on the way left a record.
    let _ = fence.driver.drain_faults(|_| {}).unwrap();
    fence.assert_reaches(0, own);
    fence.assert_not_permitted(0, foreign, Some(foreign));
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x44)]);
    // The first one's tables are plain memory now.
    fence
        .bus()
        .fill(first.arena().base().0, first.arena().length(), 0xee);
    let pending = fence.driver.block(fence.edu(0).requester());
    fence.flush(pending);
    assert!(!fence.reaches(0, own, own));
}

#[test]
fn faults_from_before_are_not_told_as_news() {
    let mut fence = Fence::new(&Board::default());
    fence.attach(0, id(1));
    fence.edu(0).dma_write(THEIRS.base().0, 16);
    assert!(fence.raw().fault().is_some());
    let second = fence.machine().second_driver(Config::default()).unwrap();
    fence.replace_driver(second);
    let mut queue = fence.machine().platform(&Observer::default()).1;
    fence.driver.enable_over(&mut queue).unwrap();
    assert_eq!(fence.raw().fault(), None);
    assert_eq!(fence.faults(), []);
}

/// A unit that a first driver left on, as firmware would, with these descriptors last in its queue.
fn left_running(last: &[(u64, u64)]) -> Fence {
    let mut fence = Fence::new(&Board::default());
    fence.attach(0, id(1));
    fence.raw().submit(last);
    let second = fence.machine().second_driver(Config::default()).unwrap();
    fence.replace_driver(second);
    fence.make_domains();
    fence.attach(0, id(1));
    fence
}

#[test]
fn this_unit_never_switches_a_queue_off_behind_anything_but_a_wait() {
    let fence = left_running(&[raw::descriptor::iotlb_domain(1)]);
    let on = raw::TES | raw::IRES;
    fence.raw().command(on);
    assert_ne!(fence.raw().status() & raw::QIES, 0);
    assert!(
        fence.bus().errors().contains("improper state"),
        "{}",
        fence.bus().errors()
    );
    let status = fence.raw().queue() + 0x2000;
    fence.raw().submit(&[raw::descriptor::wait(status, 1)]);
    fence.raw().command(on);
    assert_eq!(fence.raw().status() & raw::QIES, 0);
}

#[test]
fn a_queue_that_runs_is_closed_behind_a_wait_whatever_came_last() {
    let nowhere = 0x7030_0000;
    let device = handoff_abi::RequesterId::new(1, 0, 0).unwrap();
    for last in [
        raw::descriptor::iotlb_domain(1),
        raw::descriptor::context_device(device, 1),
        raw::descriptor::wait(nowhere, 1),
    ] {
        let mut fence = left_running(&[last]);
        let own = MINE.base().0;
        let queue = fence.raw().queue();
        let before = fence.bus().read(queue, 4096);
        let observer = Observer::default();
        let (_, mut memory) = fence.machine().platform(&observer);
        // Without the memory nothing happens at all.
        let trace = fence.bus().trace();
        let error = fence.driver.enable().unwrap_err();
        let EnableError::QueueRuns(range) = error else {
            panic!("{error:?}");
        };
        assert_eq!((range.base().0, range.length()), (queue, 4096));
        let mut trace = trace;
        assert_eq!(writes(&trace.take()), []);

        let mut trace = fence.bus().trace();
        fence.driver.enable_over(&mut memory).unwrap();
        let events = trace.take();
        let on = u64::from(raw::TES | raw::IRES);
        for write in writes(&events) {
            if write.0 == COMMAND {
                assert_eq!(write.2 & on, on, "switched off on the way: {write:x?}");
            }
        }
        let first = events
            .iter()
            .find(|event| event.name.starts_with("vtd_inv_desc_"))
            .unwrap();
        assert_eq!(first.name, "vtd_inv_desc_wait_sw");
        assert_ne!(fence.raw().queue(), queue, "the unit has a new queue");
        assert!(fence.bus().read(queue, 4096) == before, "as it was");
        let counts = observer.take();
        assert_eq!((counts.stores, counts.write_backs), (4, 2));
        assert_eq!(fence.bus().errors(), "");
        fence.assert_reaches(0, own);
        let foreign = THEIRS.base().0;
        fence.bus().write(foreign, b"the other's data");
        fence.assert_not_permitted(0, foreign, Some(foreign));
    }
}

#[test]
fn the_drivers_own_queue_is_closed_behind_a_wait_too() {
    let mut fence = Fence::new(&Board::default());
    fence.raw().submit(&[raw::descriptor::iotlb_domain(1)]);
    fence.driver.enable().unwrap();
    fence.attach(0, id(1));
    fence.assert_reaches(0, MINE.base().0);
}
