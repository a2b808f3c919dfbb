//! What the emulated unit of QEMU 7.2 does not enforce or record, though the architecture says so.
//! No other test here proves anything about these; the register model (`iommu-model`) does.
//!
//! Each test expects the hole. Where one fails, the emulator was mended: turn the test around and
//! move it to those of the fence.

use handoff_abi::{InterruptMessage, PhysAddr, PhysRange};
use iommu::Access;
use iommu_qtest::{Board, Fence, MINE, Place, UNMAPPED, delivered, id, raw, target};

fn two() -> Fence {
    let mut fence = Fence::new(&Board {
        devices: &[Place::RootPort, Place::RootPort],
        ..Board::default()
    });
    fence.attach(0, id(1));
    fence.attach(1, id(2));
    fence
}

/// Has the first device write the message to memory, as a plain DMA write.
fn write_message(fence: &Fence, message: InterruptMessage) {
    let own = MINE.base().0;
    fence.bus().write32(own, message.data);
    fence.edu(0).dma_read(own, 4);
    fence.edu(0).dma_write(message.address.0, 4);
}

#[test]
fn qemu_delivers_compatibility_format_messages_though_they_are_off() {
    let fence = two();
    assert_eq!(fence.raw().status() & raw::CFIS, 0);
    assert_eq!(fence.raw().status() & raw::IRES, raw::IRES);
    let edu = fence.edu(0);
    edu.set_message(raw::message::compatible(1, 0x66));
    let mut trace = fence.bus().trace();
    edu.raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x66)]);
    assert_eq!(fence.raw().fault(), None);
}

#[test]
fn qemu_delivers_compatibility_format_dma_writes_even_of_a_blocked_device() {
    let mut fence = two();
    let own = MINE.base().0;
    fence.bus().write32(own, 0x67);
    fence.edu(0).dma_read(own, 4);
    let pending = fence.driver.block(fence.edu(0).requester());
    fence.flush(pending);
    let mut trace = fence.bus().trace();
    fence
        .edu(0)
        .dma_write(raw::message::compatible(1, 0x67).address.0, 4);
    assert_eq!(delivered(&trace.take()), [(1, 0x67)]);
    assert_eq!(fence.raw().fault(), None);
}

#[test]
fn qemu_does_not_verify_the_source_of_a_message_that_is_a_dma_write() {
    let mut fence = two();
    let handle = fence.interrupt(1, 1, 0x44);
    // As a message it is dropped.
    fence.edu(0).set_message(handle.message());
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), []);
    // As a write to the same address it is not.
    write_message(&fence, handle.message());
    assert_eq!(delivered(&trace.take()), [(1, 0x44)]);
    assert_eq!(fence.raw().fault(), None);
}

#[test]
fn qemu_records_no_fault_for_a_write_through_a_cached_read_only_translation() {
    let mut fence = two();
    let memory = PhysRange::new(PhysAddr(0x3000_0000), 0x1000).unwrap();
    let at = memory.base().0;
    fence.map(id(1), memory, Access::READ);
    fence.bus().write(at, b"read-only memory");
    fence.edu(0).dma_read(at, 16);
    fence.bus().write(MINE.base().0, b"something else..");
    fence.edu(0).dma_read(MINE.base().0, 16);
    fence.edu(0).dma_write(at, 16);
    assert_eq!(
        fence.bus().read(at, 16),
        b"read-only memory",
        "it is blocked"
    );
    assert_eq!(fence.raw().fault(), None, "and nothing tells of it");
}

#[test]
fn qemu_records_no_fault_of_interrupt_remapping() {
    let mut fence = two();
    let foreign = fence.interrupt(1, 1, 0x44);
    let own = fence.interrupt(0, 0, 0x43);
    let pending = fence.driver.clear_interrupt(own).unwrap();
    fence.flush(pending);
    let mut trace = fence.bus().trace();
    for handle in [foreign.index, own.index, 0x0fff] {
        fence.edu(0).set_message(raw::message::remappable(handle));
        fence.edu(0).raise();
        assert_eq!(delivered(&trace.take()), [], "{handle} is dropped");
        assert_eq!(fence.raw().fault(), None, "and nothing tells of it");
    }
}

#[test]
fn qemu_does_not_cache_interrupt_entries() {
    // So a forgotten invalidation of the interrupt entry cache cannot be seen here.
    let mut fence = two();
    let handle = fence.interrupt(0, 0, 0x43);
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x43)]);
    let pending = fence.driver.retarget(handle, target(1, 0x45)).unwrap();
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x45)], "before the flush");
    fence.flush(pending);
}

#[test]
fn qemu_caches_nothing_that_is_absent_in_caching_mode() {
    // So a forgotten invalidation after making something present cannot be seen here.
    let mut fence = Fence::new(&Board {
        unit: "intremap=on,caching-mode=on",
        ..Board::default()
    });
    let at = UNMAPPED.base().0;
    assert!(!fence.reaches(0, at, at));
    let pending = fence
        .driver
        .attach(fence.edu(0).requester(), id(1))
        .unwrap();
    assert!(!pending.is_none(), "the driver does ask for it");
    assert!(!fence.reaches(0, at, at));
    assert!(fence.reaches(0, MINE.base().0, MINE.base().0));
    let memory = PhysRange::new(PhysAddr(at), 0x1000).unwrap();
    let mapped = fence.driver.map(id(1), at, memory, Access::READ_WRITE);
    let pending = pending.merge(mapped.unwrap());
    assert!(fence.reaches(0, at, at), "before the flush");
    fence.flush(pending);
}

#[test]
fn qemu_forgets_everything_when_the_root_table_is_latched() {
    // So a forgotten invalidation after that cannot be seen here. CAP.ESRTPS is not reported.
    let mut fence = two();
    let page = MINE.base().0;
    fence.assert_reaches(0, page);
    drop(fence.driver.unmap(id(1), page, 0x1000).unwrap());
    assert!(fence.reaches(0, page, page));
    fence
        .raw()
        .command(raw::TES | raw::QIES | raw::IRES | 1 << 30);
    assert!(!fence.reaches(0, page, page));
}

#[test]
fn qemu_lets_devices_read_the_interrupt_range() {
    let fence = two();
    fence.edu(0).dma_read(0xfee0_0000, 4);
    assert_eq!(fence.raw().fault(), None);
}

#[test]
fn qemu_drops_more_translations_than_a_page_selective_invalidation_names() {
    // The driver does not use it: its mistakes in it could not be seen here.
    let mut fence = two();
    let far = PhysRange::new(PhysAddr(MINE.base().0 + 0x10_0000), 0x1000).unwrap();
    fence.map(id(1), far, Access::READ_WRITE);
    let far = far.base().0;
    assert!(fence.reaches(0, far, far));
    drop(fence.driver.unmap(id(1), far, 0x1000).unwrap());
    assert!(fence.reaches(0, far, far));
    // Type 2, page-selective (11b), domain 1; one page, 256 pages before.
    let other_page = (2 | 3 << 4 | 1 << 16, MINE.base().0);
    fence.raw().submit(&[other_page]);
    assert!(!fence.reaches(0, far, far));
    assert_eq!(fence.raw().fault().map(|fault| fault.address), Some(far));
}

#[test]
fn qemu_does_not_verify_the_source_of_the_io_apic() {
    let mut fence = Fence::new(&Board {
        devices: &[
            Place::RootBus {
                device: 1,
                function: 0,
            },
            Place::RootPort,
        ],
        ..Board::default()
    });
    // An entry of a device that is not the I/O APIC.
    let source = fence.edu(1).requester();
    let (handle, pending) = fence
        .driver
        .allocate_interrupt_with(source, target(1, 0x71), iommu::vtd::TriggerMode::Level)
        .unwrap();
    fence.flush(pending);
    let entry = handle.redirection_entry(0x71, iommu::vtd::TriggerMode::Level, false);
    let apic = raw::IoApic::new(fence.bus().clone());
    let mut trace = fence.bus().trace();
    for pin in 16..24 {
        apic.set(pin, entry);
    }
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x71)]);
    // Nor does it stop an entry in compatibility format: physical, processor 1, level.
    for pin in 16..24 {
        apic.set(pin, 1 << 56 | 1 << 15 | 0x72);
    }
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(1, 0x72)]);
}
