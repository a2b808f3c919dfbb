//! The invalidation queue: what happens when it wraps, stops at an error, or is switched off and on
//! under running translation.

use std::cell::Cell;
use std::rc::Rc;

use handoff_abi::{PhysAddr, PhysRange};
use iommu::Access;
use iommu_qtest::{Board, Fence, MINE, Step, id, raw};

/// IQT.
const TAIL: u32 = 0x88;

fn one() -> Fence {
    let mut fence = Fence::new(&Board::default());
    fence.attach(0, id(1));
    fence
}

fn page(number: u64) -> PhysRange {
    PhysRange::new(PhysAddr(0x3000_0000 + number * 0x1000), 0x1000).unwrap()
}

#[test]
fn the_queue_goes_round_and_every_round_invalidates() {
    let mut fence = one();
    let at = 0x5000_1000;
    // A neighbour keeps the tables in place, so that a round is short.
    let neighbour = fence.driver.map(id(1), at - 0x1000, page(9), Access::READ);
    fence.flush(neighbour.unwrap());
    let mut tails = Vec::new();
    for round in 0..300 {
        let memory = page(round % 2);
        let pending = fence.driver.map(id(1), at, memory, Access::READ_WRITE);
        fence.flush(pending.unwrap());
        if round % 10 == 0 {
            assert!(fence.reaches(0, at, memory.base().0), "round {round}");
        }
        let pending = fence.driver.unmap(id(1), at, 0x1000).unwrap();
        fence.flush(pending);
        if round % 10 == 0 {
            assert!(!fence.reaches(0, at, memory.base().0), "round {round}");
            assert_eq!(fence.faults().len(), 1);
        }
        tails.push(fence.raw().queue_tail());
    }
    let wraps = tails.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(wraps >= 2, "{wraps} wraps in {} descriptors", 2 * 300);
    assert_eq!(fence.raw().queue_head(), fence.raw().queue_tail());
    assert_eq!(fence.raw().fault_status(), 0);
}

/// Has what the driver is about to submit spoilt once: the first descriptor becomes one that the
/// architecture does not have.
fn spoil_next_submission(fence: &Fence) -> Rc<Cell<u32>> {
    let spoilt = Rc::new(Cell::new(0));
    let (raw, bus, count) = (fence.raw().clone(), fence.bus().clone(), spoilt.clone());
    fence.observer().before_each_access(move |step| {
        if step == Step::WriteRegister(TAIL) && count.get() == 0 {
            count.set(1);
            bus.write64(raw.queue() + raw.queue_tail(), 0xf);
        }
    });
    spoilt
}

#[test]
fn an_invalidation_that_the_unit_stopped_at_is_given_to_it_again() {
    let mut fence = one();
    let at = MINE.base().0;
    fence.assert_reaches(0, at);
    let spoilt = spoil_next_submission(&fence);
    let mut trace = fence.bus().trace();
    let pending = fence.driver.unmap(id(1), at, 0x1000).unwrap();
    fence.flush(pending);
    fence.observer().stop();
    assert_eq!(spoilt.get(), 1);
    assert!(
        fence.bus().errors().contains("invalid"),
        "the unit did stop: {}",
        fence.bus().errors()
    );
    let invalidated = trace.take_named("vtd_inv_desc_iotlb_domain");
    assert_eq!(invalidated.len(), 1, "the spoilt one was made up for");
    assert!(!fence.reaches(0, at, at));
    assert_eq!(fence.faults().len(), 1);
    // And the queue goes on.
    let pending = fence.driver.block(fence.edu(0).requester());
    fence.flush(pending);
    assert!(!fence.reaches(0, at + 0x1000, at + 0x1000));
    assert_eq!(fence.raw().fault_status() & 1 << 4, 0, "IQE is cleared");
}

#[test]
fn a_fault_handler_that_finds_the_queue_stopped_makes_it_run_again() {
    let mut fence = one();
    let at = MINE.base().0;
    fence.assert_reaches(0, at);
    spoil_next_submission(&fence);
    let pending = fence.driver.unmap(id(1), at, 0x1000).unwrap();
    let submitted = fence.driver.submit(pending).unwrap();
    fence.observer().stop();
    assert_eq!(fence.raw().fault_status() & 1 << 4, 1 << 4, "IQE is set");
    assert!(fence.reaches(0, at, at), "nothing was invalidated");
    assert_eq!(fence.driver.recover_queue(), Ok(true));
    assert!(!fence.reaches(0, at, at));
    fence.driver.wait(submitted).unwrap();
    assert_eq!(fence.faults().len(), 1);
    assert_eq!(fence.driver.recover_queue(), Ok(false));
}

#[test]
fn devices_go_on_while_the_queue_is_off() {
    let mut fence = one();
    let at = MINE.base().0;
    fence.assert_reaches(0, at);
    fence.raw().command(raw::TES | raw::IRES);
    assert_eq!(fence.raw().status() & raw::QIES, 0);
    fence.assert_reaches(0, at);
    fence.assert_reaches(0, at + 0x1000);
    fence.bus().write(MINE.end().0, b"memory of nobody");
    fence.assert_not_permitted(0, MINE.end().0, Some(MINE.end().0));
    fence.raw().set_queue_tail(0);
    fence.raw().set_queue_register(fence.raw().queue());
    fence.raw().command(raw::TES | raw::IRES | raw::QIES);
    assert_eq!(fence.raw().status() & raw::QIES, raw::QIES);
    fence.assert_reaches(0, at);
}

#[test]
fn unlinked_tables_are_used_again_only_after_the_flush() {
    let mut fence = one();
    let requester = fence.edu(0).requester();
    let before = fence.raw().second_stage_tables(requester);
    let at = 0x40_0000_0000;
    let pending = fence.driver.map(id(1), at, page(0), Access::READ_WRITE);
    fence.flush(pending.unwrap());
    assert!(fence.reaches(0, at, page(0).base().0));
    let mut unlinked = fence.raw().second_stage_tables(requester);
    unlinked.retain(|table| !before.contains(table));
    assert_eq!(unlinked.len(), 2, "a table on each of the lower levels");

    let other = fence.driver.unmap(id(1), MINE.base().0, 0x1000).unwrap();
    let earlier = fence.driver.submit(other).unwrap();
    let pending = fence.driver.unmap(id(1), at, 0x1000).unwrap();
    assert_eq!(fence.raw().second_stage_tables(requester), before);
    // The unit may be on its way through them: whatever is built now is built of other frames.
    let free = fence.driver.free_frames();
    for number in 3..=60 {
        fence.driver.create_domain(id(number)).unwrap();
    }
    // A batch for the same domain that was submitted before proves nothing.
    fence.driver.wait(earlier).unwrap();
    assert_eq!(fence.driver.free_frames(), free - 58);
    for table in unlinked {
        // What the unit may find there permits neither reading nor writing.
        let page = fence.bus().read(table, 4096);
        assert!(page.iter().step_by(8).all(|byte| byte & 3 == 0));
    }
    fence.flush(pending);
    assert_eq!(fence.driver.free_frames(), free - 58 + 2);
}
