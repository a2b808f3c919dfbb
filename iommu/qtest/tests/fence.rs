//! What devices can and cannot reach once the driver has brought the unit up.

use handoff_abi::{PhysAddr, PhysRange, RequesterId};
use iommu::vtd::{Config, MapError};
use iommu::{Access, FaultReason};
use iommu_qtest::{
    Attack, Blocked, Board, Edu, Fence, Function, MINE, Place, THEIRS, UNMAPPED, id, raw,
};

/// Two devices, each below a root port, the first in domain 1 and the second in domain 2.
fn two() -> Fence {
    let mut fence = Fence::new(&Board {
        devices: &[Place::RootPort, Place::RootPort],
        ..Board::default()
    });
    fence.attach(0, id(1));
    fence.attach(1, id(2));
    fence
}

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

#[test]
fn a_device_reads_and_writes_its_own_memory() {
    let mut fence = two();
    for page in [0, 0x1000, 0xf000] {
        fence.assert_reaches(0, MINE.base().0 + page);
    }
    fence.assert_reaches(1, THEIRS.base().0);
}

#[test]
fn a_device_cannot_read_or_write_the_other_partitions_memory() {
    let mut fence = two();
    let at = THEIRS.base().0 + 0x3000;
    fence.bus().write(at, b"the other's data");
    fence.assert_not_permitted(0, at, Some(at));
    // Nor memory that is nobody's, next to its own, and at the beginning.
    for at in [UNMAPPED.base().0, 0x5000, 0x0009_fff0] {
        fence.bus().write(at, b"memory of nobody");
        fence.assert_not_permitted(0, at, Some(at));
    }
}

#[test]
fn the_same_attack_lands_in_the_domain_that_has_the_memory() {
    // What makes the attack above fail is the domain, not the way it is made.
    let mut fence = two();
    fence.assert_reaches(1, THEIRS.base().0 + 0x3000);
    let requester = fence.edu(0).requester();
    fence
        .driver
        .move_devices(&[requester], Some(id(2)), iommu::vtd::Pending::none())
        .unwrap();
    fence.assert_reaches(0, THEIRS.base().0 + 0x3000);
}

#[test]
fn read_only_memory_is_read_and_not_written() {
    let mut fence = two();
    let memory = range(0x3000_0000, 0x1000);
    let at = memory.base().0;
    fence.map(id(1), memory, Access::READ);
    let edu = fence.edu(0);
    fence.bus().write(at, b"read-only memory");
    fence.assert_blocked(
        0,
        Attack::Write,
        at,
        Some(at),
        Blocked {
            source: edu.requester(),
            page: at,
            code: raw::reason::WRITE,
            reason: FaultReason::NotPermitted,
        },
    );
    edu.dma_read(at, 16);
    edu.dma_write(MINE.base().0, 16);
    assert_eq!(fence.bus().read(MINE.base().0, 16), b"read-only memory");
    assert_eq!(fence.faults(), []);
}

#[test]
fn write_only_memory_is_written_and_not_read() {
    let mut fence = two();
    let memory = range(0x3000_0000, 0x1000);
    let at = memory.base().0;
    fence.map(id(1), memory, Access::WRITE);
    let edu = fence.edu(0);
    fence.bus().write(MINE.base().0, b"to be written on");
    edu.dma_read(MINE.base().0, 16);
    fence.assert_blocked(
        0,
        Attack::Read,
        at,
        Some(at),
        Blocked {
            source: edu.requester(),
            page: at,
            code: raw::reason::READ,
            reason: FaultReason::NotPermitted,
        },
    );
    fence.bus().write(MINE.base().0, b"to be written on");
    edu.dma_read(MINE.base().0, 16);
    edu.dma_write(at, 16);
    assert_eq!(fence.bus().read(at, 16), b"to be written on");
    assert_eq!(fence.faults(), []);
}

#[test]
fn addresses_beyond_the_width_of_the_domain_are_blocked() {
    let mut fence = two();
    for target in [1 << 39, 1 << 40 | MINE.base().0, 1 << 62] {
        // Cut off at the width, the address would be one of the device's own.
        let codes = [raw::reason::BEYOND_WIDTH; 2];
        fence.assert_blocked_both_ways(0, target, None, codes, FaultReason::AddressTooWide);
    }
    // The last page inside is just not mapped.
    fence.assert_not_permitted(0, (1 << 39) - 0x1000, None);
}

#[test]
fn four_levels_translate_addresses_that_three_do_not() {
    let mut fence = Fence::with_config(
        &Board {
            unit: "intremap=on,aw-bits=48",
            ..Board::default()
        },
        Config {
            iova_limit: 1 << 48,
            ..Config::default()
        },
    );
    fence.attach(0, id(1));
    let memory = range(0x3000_0000, 0x1000);
    for iova in [1 << 39, (1 << 48) - 0x1000, 0x1234_5678_9000] {
        let pending = fence.driver.map(id(1), iova, memory, Access::READ_WRITE);
        fence.flush(pending.unwrap());
        assert!(fence.reaches(0, iova, memory.base().0), "{iova:#x}");
    }
    fence.assert_not_permitted(0, 1 << 40, None);
    let codes = [raw::reason::BEYOND_WIDTH; 2];
    fence.assert_blocked_both_ways(0, 1 << 48, None, codes, FaultReason::AddressTooWide);
}

#[test]
fn the_units_own_tables_and_queue_are_out_of_reach() {
    let mut fence = two();
    fence.interrupt(0, 0, 0x41);
    let requester = fence.edu(0).requester();
    let (interrupts, entries) = fence.raw().interrupt_table();
    assert_eq!(entries, 256);
    let mut tables = vec![
        ("root table", fence.raw().root_table()),
        (
            "context table",
            fence.raw().context_table(requester).unwrap(),
        ),
        ("queue", fence.raw().queue()),
        ("interrupt table", interrupts),
    ];
    let second_stage = fence.raw().second_stage_tables(requester);
    assert_eq!(second_stage.len(), 3, "one table on each level");
    tables.extend(second_stage.iter().map(|&table| ("page table", table)));
    let theirs = fence.raw().second_stage_tables(fence.edu(1).requester());
    tables.extend(theirs.iter().map(|&table| ("other's page table", table)));
    for (name, table) in tables {
        // Where there is something to gain: the entry in use, not an empty one.
        let page = fence.bus().read(table, 4096);
        let used = page.iter().position(|&byte| byte != 0).unwrap_or(0) as u64 & !0xf;
        println!("{name} at {table:#x}, entry at {used:#x}");
        let target = table + used;
        if fence.bus().read(target, 16) == [0; 16] {
            panic!("the {name} is empty");
        }
        fence.assert_not_permitted(0, target, Some(target));
        assert_eq!(fence.bus().read(table, 4096), page, "{name}");
    }
    // The word that waits write to.
    let arena = fence.driver.arena();
    for frame in (0..8).map(|frame| arena.base().0 + frame * 0x1000) {
        fence.bus().write(frame + 0xff0, &[0x77; 16]);
        fence.assert_not_permitted(0, frame + 0xff0, Some(frame + 0xff0));
    }
}

#[test]
fn registers_of_devices_and_of_the_unit_are_out_of_reach() {
    let mut fence = two();
    let (own, other) = (fence.edu(0), fence.edu(1));
    for victim in [&own, &other] {
        let target = victim.destination_register_address();
        let codes = [raw::reason::READ, raw::reason::WRITE];
        fence.assert_blocked_both_ways(0, target, None, codes, FaultReason::NotPermitted);
    }
    // A write that went through would have gone into the register.
    let marker = THEIRS.base().0 + 0x123;
    other.dma_write(marker, 1);
    assert_eq!(other.destination_register(), marker);
    let pattern = 0x0000_0000_1000_0666_u64;
    fence.bus().write64(MINE.base().0, pattern);
    own.dma_read(MINE.base().0, 8);
    own.dma_write(other.destination_register_address(), 8);
    assert_eq!(other.destination_register(), marker);
    assert_eq!(fence.faults().len(), 1);

    let window = fence.window().base().0;
    fence.assert_not_permitted(0, window, None);
}

#[test]
fn a_write_does_land_in_another_devices_registers_where_they_are_mapped() {
    // The control for the test above: it is the tables that stop it.
    let mut fence = two();
    let (own, other) = (fence.edu(0), fence.edu(1));
    fence.map(id(1), range(other.registers(), 0x1000), Access::READ_WRITE);
    let pattern = 0x0000_0000_1000_0666_u64;
    fence.bus().write64(MINE.base().0, pattern);
    own.dma_read(MINE.base().0, 8);
    own.dma_write(other.destination_register_address(), 8);
    assert_eq!(other.destination_register(), pattern);
}

#[test]
fn a_transfer_across_the_end_of_the_memory_stops_there() {
    let mut fence = two();
    let edu = fence.edu(0);
    let end = MINE.end().0;
    fence.bus().write(MINE.base().0, &[0x5c; 64]);
    edu.dma_read(MINE.base().0, 64);
    fence.bus().write(end - 32, &[0xaa; 64]);
    edu.dma_write(end - 32, 64);
    let around = fence.bus().read(end - 32, 64);
    assert_eq!(around[..32], [0x5c; 32], "what is inside lands");
    assert_eq!(around[32..], [0xaa; 32], "what is outside does not");
    let faults = fence.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].address(), Some(end));
    assert_eq!(faults[0].access(), Some(Access::WRITE));
    assert_eq!(faults[0].source, edu.requester());
}

#[test]
fn a_device_that_nobody_attached_reaches_nothing() {
    let mut fence = Fence::new(&Board {
        devices: &[
            Place::RootPort,
            Place::RootPort,
            Place::RootBus {
                device: 3,
                function: 0,
            },
            Place::RootBus {
                device: 3,
                function: 1,
            },
        ],
        ..Board::default()
    });
    // On bus 0 one function of a device is attached and another not: there is a context table, and
    // an empty entry in it. On the second root port's bus there is none.
    fence.attach(0, id(1));
    fence.attach(2, id(1));
    let at = MINE.base().0;
    fence.bus().write(at, b"memory of domain");
    for (device, code) in [
        (1, raw::reason::ROOT_NOT_PRESENT),
        (3, raw::reason::CONTEXT_NOT_PRESENT),
    ] {
        let expected = Blocked {
            source: fence.edu(device).requester(),
            page: at,
            code,
            reason: FaultReason::Blocked,
        };
        for attack in [Attack::Read, Attack::Write] {
            fence.assert_blocked(device, attack, at, Some(at), expected);
        }
    }
    fence.assert_reaches(0, at);
    fence.assert_reaches(2, at);
}

#[test]
fn a_blocked_device_reaches_nothing_though_its_translations_were_hot() {
    let mut fence = two();
    let at = MINE.base().0;
    fence.assert_reaches(0, at);
    let requester = fence.edu(0).requester();
    let pending = fence.driver.block(requester);
    fence.flush(pending);
    assert_eq!(fence.driver.domain_of(requester), None);
    let expected = Blocked {
        source: requester,
        page: at,
        code: raw::reason::CONTEXT_NOT_PRESENT,
        reason: FaultReason::Blocked,
    };
    for attack in [Attack::Read, Attack::Write] {
        fence.assert_blocked(0, attack, at, Some(at), expected);
    }
    fence.assert_reaches(1, THEIRS.base().0);
    // The entry is empty, not only absent.
    let entry = fence.raw().context_entry(requester).unwrap();
    assert_eq!(fence.bus().read(entry, 16), [0; 16]);
}

#[test]
fn unmapped_memory_is_out_of_reach_once_that_is_flushed() {
    let mut fence = two();
    let (first, second) = (MINE.base().0, MINE.base().0 + 0x1000);
    fence.assert_reaches(0, first);
    fence.assert_reaches(0, second);
    let pending = fence.driver.unmap(id(1), second, 0x1000).unwrap();
    fence.flush(pending);
    fence.bus().write(second, b"no longer theirs");
    fence.assert_not_permitted(0, second, Some(second));
    fence.assert_reaches(0, first);
    // And mapped elsewhere, it is found there.
    let memory = range(0x3000_0000, 0x1000);
    let pending = fence.driver.map(id(1), second, memory, Access::READ_WRITE);
    fence.flush(pending.unwrap());
    assert!(fence.reaches(0, second, memory.base().0));
}

#[test]
fn devices_below_a_pcie_to_pci_bridge_share_the_requester_id_of_its_bus() {
    let mut fence = Fence::new(&Board {
        devices: &[
            Place::PcieToPciBridge,
            Place::PcieToPciBridge,
            Place::RootPort,
        ],
        ..Board::default()
    });
    let shared = fence.edu(0).requester();
    assert_eq!(shared, fence.edu(1).requester());
    assert_eq!((shared.device(), shared.function()), (0, 0));
    assert_eq!(shared.bus(), fence.edu(0).function().address().bus());
    assert_ne!(shared, fence.edu(0).function().address());
    shared_requester(&mut fence);
}

#[test]
fn devices_below_a_conventional_bridge_share_the_requester_id_of_the_bridge() {
    let mut fence = Fence::new(&Board {
        devices: &[
            Place::ConventionalBridge,
            Place::ConventionalBridge,
            Place::RootPort,
        ],
        ..Board::default()
    });
    let shared = fence.edu(0).requester();
    assert_eq!(shared, fence.edu(1).requester());
    assert_eq!(shared.bus(), 0, "the bridge is on bus 0");
    assert_ne!(fence.edu(0).function().address().bus(), 0);
    shared_requester(&mut fence);
}

/// Devices 0 and 1 make requests with one id: to the unit they are one.
fn shared_requester(fence: &mut Fence) {
    let at = MINE.base().0;
    let code_without = raw::reason::ROOT_NOT_PRESENT;
    // To attach the id that a device has in configuration space is of no use.
    let address = fence.edu(0).function().address();
    let pending = fence.driver.attach(address, id(1)).unwrap();
    fence.flush(pending);
    let requester = fence.edu(0).requester();
    let code = if requester.bus() == address.bus() {
        raw::reason::CONTEXT_NOT_PRESENT
    } else {
        code_without
    };
    let expected = Blocked {
        source: requester,
        page: at,
        code,
        reason: FaultReason::Blocked,
    };
    fence.bus().write(at, b"memory of domain");
    fence.assert_blocked(0, Attack::Read, at, Some(at), expected);
    fence.assert_blocked(1, Attack::Write, at, Some(at), expected);
    // To attach the shared one gives the memory to both.
    fence.attach(0, id(1));
    fence.assert_reaches(0, at);
    fence.assert_reaches(1, at);
    fence.assert_not_permitted(1, THEIRS.base().0, None);
}

#[test]
fn a_device_whose_bus_is_given_another_number_reaches_nothing_under_it() {
    let mut fence = two();
    let at = MINE.base().0;
    fence.assert_reaches(0, at);
    let requester = fence.edu(0).requester();
    let port = (0..32).find_map(|device| {
        let function = Function::new(fence.bus().clone(), RequesterId(device << 3));
        let is_bridge = function.read(0) != u32::MAX && function.read(0x0c) >> 16 & 0x7f == 1;
        let secondary = (function.read(0x18) >> 8) as u8;
        (is_bridge && secondary == requester.bus()).then_some(function)
    });
    let port = port.expect("a root port leads to the device");
    let buses = port.read(0x18);
    let number = 0x40;
    port.write(0x18, buses & 0xff00_00ff | number << 8 | number << 16);
    let expected = Blocked {
        source: RequesterId((number as u16) << 8 | requester.0 & 0xff),
        page: at,
        code: raw::reason::ROOT_NOT_PRESENT,
        reason: FaultReason::Blocked,
    };
    fence.bus().write(at, b"memory of domain");
    // QEMU has entries cached by the device's place, whatever its number: a unit has them by the id
    // that requests come with, and would not find this one.
    fence.driver.invalidate_everything().unwrap();
    fence.assert_blocked(0, Attack::Read, at, Some(at), expected);
    fence.assert_blocked(0, Attack::Write, at, Some(at), expected);
    fence.assert_reaches(1, THEIRS.base().0);
    port.write(0x18, buses);
    fence.driver.invalidate_everything().unwrap();
    fence.assert_reaches(0, at);
}

#[test]
fn two_mebibyte_and_one_gibibyte_leaves_map_what_they_say_and_no_more() {
    for (size, at) in [(2 << 20, 0x3000_0000_u64), (1 << 30, 0x4000_0000)] {
        let mut fence = two();
        // Elsewhere than where the memory lies, so that nothing works by being left alone.
        let iova = 0x20_0000_0000 + size;
        // The arena lies in the second gibibyte of memory, so the big leaf covers the first.
        let memory = if size == 1 << 30 { 0 } else { at };
        let pending = fence
            .driver
            .map(id(1), iova, range(memory, size), Access::READ_WRITE);
        fence.flush(pending.unwrap());
        let requester = fence.edu(0).requester();
        let (_, entry, covers) = fence.raw().leaf(requester, iova).unwrap();
        assert_eq!(covers, size, "one leaf covers it");
        assert_eq!(entry & 0x87, 0x83, "read, write, page size");
        for offset in [0, 0x1000, size / 2 + 0x2000, size - 0x1000] {
            assert!(
                fence.reaches(0, iova + offset, memory + offset),
                "{offset:#x} of {size:#x}"
            );
        }
        assert_eq!(fence.faults(), []);
        fence.assert_not_permitted(0, iova - 0x1000, None);
        fence.assert_not_permitted(0, iova + size, None);
    }
}

#[test]
fn no_mapping_touches_the_interrupt_range_or_the_tables() {
    let mut fence = two();
    let cases = [
        (0xfee0_0000_u64, range(0x3000_0000, 0x1000)),
        (0x3000_0000, range(0xfee0_0000, 0x1000)),
        (0xc000_0000, range(0, 0x4000_0000)),
        (0xfee0_0000 - 0x1000, range(0x3000_0000, 0x2000)),
    ];
    for (iova, memory) in cases {
        assert_eq!(
            fence
                .driver
                .map(id(1), iova, memory, Access::READ_WRITE)
                .map(drop),
            Err(MapError::InterruptRange { iova, memory })
        );
    }
    for memory in [fence.driver.arena(), range(0x6fff_f000, 0x2000)] {
        assert_eq!(
            fence
                .driver
                .map(id(1), 0x3000_0000, memory, Access::READ)
                .map(drop),
            Err(MapError::OwnTables { memory })
        );
    }
}

#[test]
fn a_forged_leaf_that_leads_into_the_interrupt_range_faults() {
    // The driver refuses to make one; this one is made past it.
    let mut fence = two();
    let edu = fence.edu(0);
    let at = MINE.base().0 + 0x4000;
    let (entry, value, size) = fence.raw().leaf(edu.requester(), at).unwrap();
    assert_eq!(size, 0x1000);
    fence.bus().write64(entry, value & 0xfff | 0xfee0_0000);
    fence.assert_blocked(
        0,
        Attack::Write,
        at,
        None,
        Blocked {
            source: edu.requester(),
            page: at,
            code: raw::reason::INTERRUPT_RANGE,
            reason: FaultReason::InterruptRange,
        },
    );
}

#[test]
fn a_silenced_device_is_blocked_without_a_record() {
    let mut fence = two();
    let edu = fence.edu(0);
    let requester = edu.requester();
    let at = MINE.base().0;
    let pending = fence.driver.block(requester);
    fence.flush(pending);
    let pending = fence.driver.silence(requester, true).unwrap();
    fence.flush(pending);
    fence.bus().write(at, b"memory of domain");
    edu.dma_write(at, 16);
    assert_eq!(fence.raw().fault(), None);
    assert_eq!(fence.faults(), []);
    assert_eq!(fence.bus().read(at, 16), b"memory of domain");
    // Another device is heard meanwhile.
    fence.assert_blocked(
        1,
        Attack::Write,
        at,
        Some(at),
        Blocked {
            source: fence.edu(1).requester(),
            page: at,
            code: raw::reason::WRITE,
            reason: FaultReason::NotPermitted,
        },
    );
    let pending = fence.driver.silence(requester, false).unwrap();
    fence.flush(pending);
    fence.assert_blocked(
        0,
        Attack::Write,
        at,
        Some(at),
        Blocked {
            source: requester,
            page: at,
            code: raw::reason::CONTEXT_NOT_PRESENT,
            reason: FaultReason::Blocked,
        },
    );
}

#[test]
fn a_second_devices_fault_before_a_drain_is_told_as_lost() {
    let mut fence = two();
    let (first, second): (Edu, Edu) = (fence.edu(0), fence.edu(1));
    first.dma_write(UNMAPPED.base().0, 16);
    second.dma_write(UNMAPPED.base().0 + 0x1000, 16);
    assert_eq!(fence.raw().fault_status() & 3, raw::PPF | raw::PFO);
    let mut faults = Vec::new();
    let count = fence
        .driver
        .drain_faults(|fault| faults.push(fault))
        .unwrap();
    assert_eq!((count.records, count.overflowed), (1, true));
    assert_eq!(faults[0].source, first.requester());
    // After the drain both are heard again.
    assert_eq!(fence.raw().fault_status() & 3, 0);
    second.dma_write(UNMAPPED.base().0 + 0x1000, 16);
    let faults = fence.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].source, second.requester());
    assert_eq!(faults[0].address(), Some(UNMAPPED.base().0 + 0x1000));
}
