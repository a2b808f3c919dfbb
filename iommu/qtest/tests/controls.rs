//! What goes wrong when the order of things is wrong. Each test does by hand what the driver must
//! not do, and sees the damage: so the other tests would see it, too.

use handoff_abi::{PhysAddr, PhysRange};
use iommu::Access;
use iommu::vtd::{Config, Pending};
use iommu_qtest::{Board, Fence, MINE, Machine, Place, THEIRS, id, raw, reaches};

/// A device address that both domains map, and where each does.
const SHARED: u64 = 0x5000_0000;
const IN_FIRST: u64 = 0x3000_0000;
const IN_SECOND: u64 = 0x3800_0000;

fn two() -> Fence {
    let mut fence = Fence::new(&Board {
        devices: &[Place::RootPort, Place::RootPort],
        ..Board::default()
    });
    for (domain, memory) in [(1, IN_FIRST), (2, IN_SECOND)] {
        let memory = PhysRange::new(PhysAddr(memory), 0x1000).unwrap();
        let pending = fence
            .driver
            .map(id(domain), SHARED, memory, Access::READ_WRITE);
        fence.flush(pending.unwrap());
    }
    fence.attach(0, id(1));
    fence.attach(1, id(2));
    fence
}

/// Which domain's memory the first device finds at the address both have.
#[derive(Debug, PartialEq, Eq)]
enum Finds {
    First,
    Second,
    Nothing,
}

fn finds(fence: &Fence) -> Finds {
    let first = reaches(fence.bus(), &fence.edu(0), SHARED, IN_FIRST);
    let second = reaches(fence.bus(), &fence.edu(0), SHARED, IN_SECOND);
    match (first, second) {
        (true, false) => Finds::First,
        (false, true) => Finds::Second,
        (false, false) => Finds::Nothing,
        (true, true) => panic!("one address is two"),
    }
}

/// Rewrites the first device's context entry as the second's, in one go and without a word to the
/// unit.
fn switch_context(fence: &Fence) {
    let [to, from] = [0, 1].map(|device| {
        let requester = fence.edu(device).requester();
        fence.raw().context_entry(requester).unwrap()
    });
    let bus = fence.bus();
    bus.write64(to + 8, bus.read64(from + 8));
    bus.write64(to, bus.read64(from));
}

#[test]
fn a_stale_translation_is_used_until_it_is_invalidated() {
    let mut fence = two();
    let page = MINE.base().0;
    fence.assert_reaches(0, page);
    let pending = fence.driver.unmap(id(1), page, 0x1000).unwrap();
    assert!(fence.reaches(0, page, page), "the translation was hot");
    fence.flush(pending);
    assert!(!fence.reaches(0, page, page));
    assert_eq!(fence.faults().len(), 1);
}

#[test]
fn a_dropped_token_is_made_up_for_by_invalidating_everything() {
    let mut fence = two();
    let page = MINE.base().0;
    fence.assert_reaches(0, page);
    drop(fence.driver.unmap(id(1), page, 0x1000).unwrap());
    drop(fence.driver.block(fence.edu(1).requester()));
    assert!(fence.reaches(0, page, page));
    fence.driver.invalidate_everything().unwrap();
    assert!(!fence.reaches(0, page, page));
    assert_eq!(fence.driver.domain_of(fence.edu(1).requester()), None);
    assert!(!fence.reaches(1, THEIRS.base().0, THEIRS.base().0));
}

#[test]
fn a_new_context_entry_is_not_noticed_without_invalidation() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    switch_context(&fence);
    assert_eq!(finds(&fence), Finds::First);
}

#[test]
fn invalidating_the_context_cache_alone_leaves_the_old_translations() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    switch_context(&fence);
    let requester = fence.edu(0).requester();
    fence
        .raw()
        .submit(&[raw::descriptor::context_device(requester, 1)]);
    assert_eq!(finds(&fence), Finds::First);
}

#[test]
fn invalidating_the_translations_alone_leaves_the_old_context() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    switch_context(&fence);
    fence.raw().submit(&[raw::descriptor::iotlb_domain(1)]);
    assert_eq!(finds(&fence), Finds::First);
}

#[test]
fn invalidating_the_new_domain_leaves_the_old_translations() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    switch_context(&fence);
    let requester = fence.edu(0).requester();
    fence.raw().submit(&[
        raw::descriptor::context_device(requester, 1),
        raw::descriptor::iotlb_domain(2),
    ]);
    assert_eq!(finds(&fence), Finds::First);
}

#[test]
fn translations_before_contexts_is_the_wrong_order() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    switch_context(&fence);
    let requester = fence.edu(0).requester();
    fence.raw().submit(&[raw::descriptor::iotlb_domain(1)]);
    // A request at this moment refills the one from the other.
    assert_eq!(finds(&fence), Finds::First);
    fence
        .raw()
        .submit(&[raw::descriptor::context_device(requester, 1)]);
    assert_eq!(finds(&fence), Finds::First, "the old mapping stays live");
}

#[test]
fn contexts_before_translations_is_the_right_order() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    switch_context(&fence);
    let requester = fence.edu(0).requester();
    fence
        .raw()
        .submit(&[raw::descriptor::context_device(requester, 1)]);
    assert_eq!(finds(&fence), Finds::First);
    fence.raw().submit(&[raw::descriptor::iotlb_domain(1)]);
    assert_eq!(finds(&fence), Finds::Second);
}

#[test]
fn a_context_that_is_no_longer_present_is_used_while_translations_are_hot() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    let requester = fence.edu(0).requester();
    let entry = fence.raw().context_entry(requester).unwrap();
    fence.bus().write64(entry, fence.bus().read64(entry) & !1);
    fence
        .raw()
        .submit(&[raw::descriptor::context_device(requester, 1)]);
    assert_eq!(finds(&fence), Finds::First);
    fence.raw().submit(&[raw::descriptor::iotlb_domain(1)]);
    assert_eq!(finds(&fence), Finds::Nothing);
}

#[test]
fn the_driver_passes_the_same_probe() {
    let mut fence = two();
    assert_eq!(finds(&fence), Finds::First);
    let requester = fence.edu(0).requester();
    fence
        .driver
        .move_devices(&[requester], Some(id(2)), Pending::none())
        .unwrap();
    assert_eq!(finds(&fence), Finds::Second);
    let pending = fence.driver.block(requester);
    fence.flush(pending);
    assert_eq!(finds(&fence), Finds::Nothing);
}

#[test]
fn a_root_table_counts_only_once_it_is_latched() {
    let fence = two();
    assert_eq!(finds(&fence), Finds::First);
    let empty = 0x6000_0000;
    fence.bus().fill(empty, 0x1000, 0);
    fence.bus().write64(fence.window().base().0 + 0x20, empty);
    assert_eq!(fence.raw().root_table(), empty);
    assert_eq!(finds(&fence), Finds::First);
    fence
        .raw()
        .command(raw::TES | raw::QIES | raw::IRES | 1 << 30);
    assert_eq!(finds(&fence), Finds::Nothing);
}

#[test]
fn without_translation_every_device_reaches_all_memory() {
    let fence = two();
    let at = THEIRS.base().0;
    assert!(!fence.reaches(0, at, at));
    fence.raw().command(raw::QIES | raw::IRES);
    assert_eq!(fence.raw().status() & raw::TES, 0);
    assert!(fence.reaches(0, at, at), "the fence is gone");
    fence.raw().command(raw::TES | raw::QIES | raw::IRES);
    assert!(!fence.reaches(0, at, at));
}

#[test]
fn before_the_driver_runs_every_device_reaches_all_memory() {
    let machine = Machine::start(&Board::default());
    let at = THEIRS.base().0;
    assert!(reaches(machine.bus(), &machine.edus()[0], at, at));
    // To lay tables out changes nothing; to put them into force does.
    let (mut driver, observer) = machine.driver(Config::default()).unwrap();
    assert_eq!(observer.take().register_writes, 0);
    assert!(reaches(machine.bus(), &machine.edus()[0], at, at));
    driver.enable().unwrap();
    assert!(!reaches(machine.bus(), &machine.edus()[0], at, at));
}

#[test]
fn a_device_that_cuts_addresses_off_would_pass_a_fence_test_by_mistake() {
    // The device's own default mask is 28 bits: it cannot even name the other's memory.
    let mut fence = Fence::new(&Board {
        devices: &[Place::RootPort],
        dma_mask: (1 << 28) - 1,
        ..Board::default()
    });
    let low = PhysRange::new(PhysAddr(0x0010_0000), 0x1000).unwrap();
    fence.map(id(1), low, Access::READ_WRITE);
    fence.attach(0, id(1));
    let foreign = 0x2010_0000;
    fence.bus().write(foreign, b"the other's data");
    fence.bus().write(low.base().0, b"some of my own..");
    fence.edu(0).dma_read(low.base().0, 16);
    fence.bus().write(low.base().0, &[0; 16]);
    fence.edu(0).dma_write(foreign, 16);
    // "Blocked", and without a record: it went elsewhere.
    assert_eq!(fence.bus().read(foreign, 16), b"the other's data");
    assert_eq!(fence.raw().fault(), None);
    assert_eq!(fence.bus().read(low.base().0, 16), b"some of my own..");
}

#[test]
fn a_device_that_no_unit_covers_reaches_all_memory() {
    // Nothing in the unit can tell: who plans partitions must know what units cover.
    let mut fence = Fence::new(&Board {
        covered: false,
        ..Board::default()
    });
    let at = THEIRS.base().0;
    assert!(fence.reaches(0, at, at));
    let pending = fence.driver.block(fence.edu(0).requester());
    fence.flush(pending);
    assert!(fence.reaches(0, at, at));
    assert_eq!(fence.faults(), []);
}
