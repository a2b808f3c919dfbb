//! Which interrupts get through. What QEMU delivers is told by its trace of the local APICs.

use handoff_abi::{InterruptMessage, InterruptTarget, RequesterId};
use iommu::vtd::{Config, InterruptError, TriggerMode};
use iommu::{FaultReason, FaultRequest};
use iommu_qtest::{Board, Fence, MINE, Place, UNMAPPED, delivered, id, raw, target};

const TWO: Board<'static> = Board {
    unit: "intremap=on",
    devices: &[Place::RootPort, Place::RootPort],
    dma_mask: u64::MAX,
    covered: true,
};

fn two() -> Fence {
    let mut fence = Fence::new(&TWO);
    fence.attach(0, id(1));
    fence.attach(1, id(2));
    fence
}

#[test]
fn a_devices_own_entry_delivers_where_it_says() {
    let mut fence = two();
    let handles = [fence.interrupt(0, 0, 0x41), fence.interrupt(1, 1, 0x52)];
    assert_ne!(handles[0], handles[1]);
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41)]);
    fence.edu(1).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x52)]);
    assert_eq!(fence.faults(), []);
}

#[test]
fn the_message_is_in_remappable_format() {
    let mut fence = two();
    let handle = fence.interrupt(0, 0, 0x41);
    assert_eq!(handle.message(), raw::message::remappable(handle.index));
}

#[test]
fn another_devices_handle_is_dropped() {
    let mut fence = two();
    let handle = fence.interrupt(1, 1, 0x52);
    let mut trace = fence.bus().trace();
    fence.edu(0).set_message(handle.message());
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
    // The same message of the right device is delivered.
    fence.edu(1).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x52)]);
}

#[test]
fn handles_that_are_not_set_are_dropped() {
    let mut fence = two();
    let own = fence.interrupt(0, 0, 0x41);
    let mut trace = fence.bus().trace();
    let entries = fence.raw().interrupt_table().1 as u16;
    for handle in (0..entries).filter(|&handle| handle != own.index) {
        fence.edu(0).set_message(raw::message::remappable(handle));
        fence.edu(0).raise();
    }
    assert_eq!(delivered(&trace.take()), []);
    fence.edu(0).set_message(own.message());
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41)]);
}

#[test]
fn handles_beyond_the_table_are_dropped_whatever_lies_there() {
    let mut fence = two();
    fence.interrupt(0, 0, 0x41);
    let (table, entries) = fence.raw().interrupt_table();
    let requester = fence.edu(0).requester();
    // Just past the end of the table there is what would be a good entry of this device, if it
    // were one.
    let beyond = table + u64::from(entries) * 16;
    let kept = fence.bus().read(beyond, 16);
    fence
        .bus()
        .write64(beyond + 8, 1 << 18 | u64::from(requester.0));
    fence.bus().write64(beyond, 0x0000_0100_0055_0001);
    let mut trace = fence.bus().trace();
    for handle in [entries as u16, 0x7fff, 0x8000, 0xffff] {
        fence.edu(0).set_message(raw::message::remappable(handle));
        fence.edu(0).raise();
    }
    assert_eq!(delivered(&trace.take()), []);
    fence.bus().write(beyond, &kept);
}

#[test]
fn retargeting_moves_the_destination_and_loses_nothing() {
    let mut fence = two();
    let handle = fence.interrupt(0, 0, 0x41);
    let edu = fence.edu(0);
    let mut trace = fence.bus().trace();
    edu.raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41)]);

    // One interrupt before each single access of the driver, and one after each.
    let raised = std::rc::Rc::new(std::cell::Cell::new(0));
    let (device, count) = (edu.clone(), raised.clone());
    fence.observer().before_each_access(move |_| {
        device.raise();
        count.set(count.get() + 1);
    });
    let pending = fence.driver.retarget(handle, target(1, 0x52)).unwrap();
    fence.flush(pending);
    fence.observer().stop();
    edu.raise();
    let interrupts = delivered(&trace.take());
    assert_eq!(interrupts.len(), raised.get() + 1, "each was delivered");
    let old = interrupts.iter().take_while(|&&i| i == (0, 0x41)).count();
    assert!(old > 0, "some went to the old target");
    assert!(old < interrupts.len(), "some to the new one");
    assert!(
        interrupts[old..].iter().all(|&i| i == (1, 0x52)),
        "and none elsewhere, or back: {interrupts:x?}"
    );
}

#[test]
fn a_cleared_entry_drops_and_is_given_out_anew() {
    let mut fence = two();
    let handle = fence.interrupt(0, 0, 0x41);
    let pending = fence.driver.clear_interrupt(handle).unwrap();
    fence.flush(pending);
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
    let table = fence.raw().interrupt_table().0;
    assert_eq!(
        fence.bus().read(table + u64::from(handle.index) * 16, 16),
        [0; 16]
    );
    // Every entry can be had, this one among them, and then no more.
    let source = fence.edu(1).requester();
    let mut handles = Vec::new();
    let mut pending = iommu::vtd::Pending::none();
    for _ in 0..256 {
        let (handle, more) = fence
            .driver
            .allocate_interrupt(source, target(1, 0x52))
            .unwrap();
        handles.push(handle);
        pending = pending.merge(more);
    }
    fence.flush(pending);
    // The index: a handle is its device's.
    assert!(handles.iter().any(|given| given.index == handle.index));
    assert_eq!(
        fence
            .driver
            .allocate_interrupt(source, target(1, 0x52))
            .map(drop),
        Err(InterruptError::Full(source))
    );
    // The old device still holds the handle, which is now another's.
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
    fence.edu(1).set_message(handle.message());
    fence.edu(1).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x52)]);
}

#[test]
fn a_device_that_is_no_bus_master_neither_writes_nor_interrupts() {
    let mut fence = two();
    fence.interrupt(0, 0, 0x41);
    let edu = fence.edu(0);
    let at = MINE.base().0;
    fence.assert_reaches(0, at);
    edu.function().set_bus_master(false);
    let mut trace = fence.bus().trace();
    edu.raise();
    assert_eq!(delivered(&trace.take()), []);
    assert!(!fence.reaches(0, at, at));
    assert_eq!(fence.faults(), [], "the request never reached the unit");
    edu.function().set_bus_master(true);
    edu.raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41)]);
    fence.assert_reaches(0, at);
}

#[test]
fn a_device_without_a_domain_interrupts_until_its_entry_is_cleared() {
    let mut fence = two();
    let handle = fence.interrupt(0, 0, 0x41);
    let requester = fence.edu(0).requester();
    let pending = fence.driver.block(requester);
    fence.flush(pending);
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41)]);
    let pending = fence.driver.clear_interrupt(handle).unwrap();
    fence.flush(pending);
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
}

#[test]
fn targets_that_are_more_than_a_vector_of_one_processor_are_refused() {
    let mut fence = two();
    let source = fence.edu(0).requester();
    for (processor, vector) in [(0, 0), (0, 2), (0, 15), (0xff, 0x41), (0x100, 0x41)] {
        let bad = target(processor, vector);
        assert_eq!(
            fence.driver.allocate_interrupt(source, bad).map(drop),
            Err(InterruptError::BadTarget(bad))
        );
    }
    let handle = fence.interrupt(0, 0, 0x41);
    let broadcast: InterruptTarget = target(0xff, 0x41);
    assert_eq!(
        fence.driver.retarget(handle, broadcast).map(drop),
        Err(InterruptError::BadTarget(broadcast))
    );
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41)]);
}

#[test]
fn devices_below_a_bridge_interrupt_with_the_id_they_share() {
    let mut fence = Fence::new(&Board {
        devices: &[Place::PcieToPciBridge, Place::PcieToPciBridge],
        ..Board::default()
    });
    let handle = fence.interrupt(0, 0, 0x41);
    fence.edu(1).set_message(handle.message());
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    fence.edu(1).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41), (0, 0x41)]);
    // An entry for the id a device has in configuration space is of no use to it.
    let address = fence.edu(1).function().address();
    let (handle, pending) = fence
        .driver
        .allocate_interrupt(address, target(0, 0x42))
        .unwrap();
    fence.flush(pending);
    fence.edu(1).set_message(handle.message());
    fence.edu(1).raise();
    assert_eq!(delivered(&trace.take()), []);
}

#[test]
fn the_fault_event_goes_to_the_processor_it_is_aimed_at_and_is_not_remapped() {
    let message =
        |processor, vector| -> InterruptMessage { raw::message::compatible(processor, vector) };
    let mut fence = Fence::with_config(
        &TWO,
        Config {
            fault_message: Some(message(1, 0x81)),
            ..Config::default()
        },
    );
    fence.attach(0, id(1));
    let at = UNMAPPED.base().0;
    let mut trace = fence.bus().trace();
    fence.edu(0).dma_write(at, 16);
    assert_eq!(delivered(&trace.take()), [(1, 0x81)]);
    // While the fault is pending there is no other event; after the drain there is.
    fence.edu(0).dma_write(at, 16);
    assert_eq!(delivered(&trace.take()), []);
    assert_eq!(fence.faults().len(), 1);
    fence.edu(0).dma_write(at, 16);
    assert_eq!(delivered(&trace.take()), [(1, 0x81)]);
    assert_eq!(fence.faults().len(), 1);
    // To a processor of the next steward.
    fence
        .driver
        .set_fault_message(Some(message(0, 0x82)))
        .unwrap();
    fence.edu(0).dma_write(at, 16);
    assert_eq!(delivered(&trace.take()), [(0, 0x82)]);
    assert_eq!(fence.faults().len(), 1);
    // And to nobody.
    fence.driver.set_fault_message(None).unwrap();
    fence.edu(0).dma_write(at, 16);
    assert_eq!(delivered(&trace.take()), []);
    let faults = fence.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].reason, FaultReason::NotPermitted);
    assert_eq!(faults[0].request, FaultRequest::Write { address: at });
}

#[test]
fn an_io_apic_pin_goes_through_its_entry() {
    let mut fence = Fence::new(&Board {
        devices: &[Place::RootBus {
            device: 1,
            function: 0,
        }],
        ..Board::default()
    });
    // Where firmware's table says the I/O APIC of this machine is.
    let io_apic = RequesterId::new(0xff, 0, 0).unwrap();
    let (handle, pending) = fence
        .driver
        .allocate_interrupt_with(io_apic, target(1, 0x71), TriggerMode::Level)
        .unwrap();
    fence.flush(pending);
    let apic = raw::IoApic::new(fence.bus().clone());
    let entry = handle.redirection_entry(0x71, TriggerMode::Level, false);
    for pin in 16..24 {
        apic.set(pin, entry);
    }
    let mut trace = fence.bus().trace();
    // Without a message set up the device uses its interrupt line.
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x71)]);
    let pending = fence.driver.clear_interrupt(handle).unwrap();
    fence.flush(pending);
    for pin in 16..24 {
        apic.set(pin, entry);
    }
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
}

#[test]
fn the_functions_of_one_device_are_told_apart() {
    let places = [0, 1].map(|function| Place::RootBus {
        device: 3,
        function,
    });
    let mut fence = Fence::new(&Board {
        devices: &places,
        ..Board::default()
    });
    let handle = fence.interrupt(1, 1, 0x52);
    fence.edu(0).set_message(handle.message());
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
    fence.edu(1).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x52)]);
}
