//! Taking a running unit over: devices notice nothing, and nothing the old steward left is believed.

use iommu::vtd::{AdoptError, Pending, State};
use iommu::{Access, Reach};
use iommu_model::{Injection, Reason, RegisterWrite, Schedule, UnitConfig};

use crate::rig::*;

#[test]
fn a_device_that_keeps_running_notices_nothing() {
    for model in models() {
        for schedule in schedules(3) {
            let (mut rig, state) = running(schedule, &model);
            let before = rig.machine.counters(0);
            let latched = rig.machine.latched(0);
            rig.machine.attack(0, DEVICE.0, A_BASE);
            rig.machine.attack(0, OTHER.0, A_BASE);
            let machine = rig.machine.clone();
            rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
            for attack in rig.machine.take_attacks() {
                assert_eq!(attack.result.is_ok(), attack.sid == DEVICE.0);
            }
            assert_eq!(rig.machine.latched(0), latched);
            let spent = rig.machine.counters(0) - before;
            let sets = (spent.root_pointer_sets, spent.interrupt_pointer_sets);
            assert_eq!(sets, (0, 0));
            assert_eq!(spent.waits, 1);
            let both = [DEVICE, OTHER];
            rig.units[0]
                .move_devices(&both, Some(B), Pending::none())
                .unwrap();
            for device in both {
                assert_eq!(rig.write(device, B_BASE), Ok(B_BASE));
                assert!(rig.write(device, A_BASE).is_err());
            }
            rig.machine.release(A_BASE, PART, &[]);
            rig.units[0].destroy_domain(A).unwrap();
            rig.sound();
        }
    }
}

#[test]
fn a_domain_without_devices_is_put_before_the_caller_too() {
    let model = UnitConfig::default();
    let mut rig = Rig::one();
    let state = rig.units[0].record().unwrap();
    let result = adopt(&rig.machine, 0, &model, &state, |reach| {
        !matches!(
            reach,
            Reach::Memory {
                requester: None,
                domain: B,
                ..
            }
        )
    });
    assert!(
        matches!(result, Err(AdoptError::NotAllowed(_))),
        "{result:?}"
    );
}

#[test]
fn a_record_that_is_wrong_anywhere_is_refused() {
    type Change = fn(&mut State);
    let changes: [(&str, Change); 20] = [
        ("register_base", |s| s.register_base += 0x1000),
        ("register_length", |s| s.register_length += 0x1000),
        ("capability", |s| s.capability ^= 1 << 34),
        ("extended_capability", |s| s.extended_capability ^= 1),
        ("root_table_address", |s| s.root_table_address += 0x1000),
        ("root mode", |s| s.root_table_address |= 1 << 10),
        ("queue_address", |s| s.queue_address += 0x1000),
        ("queue size", |s| s.queue_address |= 1),
        ("interrupt_table_address", |s| {
            s.interrupt_table_address += 0x1000
        }),
        ("interrupt table size", |s| s.interrupt_table_address ^= 1),
        ("interrupt mode", |s| s.interrupt_table_address |= 1 << 11),
        ("status outside", |s| s.status_address = 0x9000),
        ("status in the queue", |s| {
            s.status_address = s.queue_address
        }),
        ("status unaligned", |s| s.status_address += 4),
        ("arena_base", |s| s.arena_base += 0x1000),
        ("arena_length", |s| s.arena_length -= 0x1000),
        ("levels", |s| s.levels += 1),
        ("no levels", |s| s.levels = 0),
        ("host_address_bits", |s| s.host_address_bits = 64),
        ("domain_count", |s| s.domain_count = 65),
    ];
    let domains: [(&str, Change); 8] = [
        ("fewer domains", |s| s.domain_count -= 1),
        ("a domain twice", |s| {
            s.domains[2] = s.domains[0];
            s.domain_count += 1;
        }),
        ("two domains with one root", |s| {
            s.domains[2] = s.domains[0];
            s.domains[2].id = 7;
            s.domain_count += 1;
        }),
        ("roots exchanged", |s| {
            let root = s.domains[0].root;
            s.domains[0].root = s.domains[1].root;
            s.domains[1].root = root;
        }),
        ("an id of 0", |s| s.domains[0].id = 0),
        ("an id too large", |s| s.domains[0].id = 0x1_0001),
        ("a root outside the arena", |s| s.domains[0].root = A_BASE),
        ("translation off", |s| s.global_status &= !TE),
    ];
    let model = UnitConfig::default();
    for (what, change) in changes.into_iter().chain(domains) {
        let (rig, mut state) = running(Schedule::Lazy, &model);
        let writes = rig.machine.counters(0).mmio_writes;
        let stores = rig.machine.memory_counters().stores;
        change(&mut state);
        let result = adopt(&rig.machine, 0, &model, &state, |_| true);
        assert!(result.is_err(), "{what} is believed");
        assert_eq!(rig.machine.counters(0).mmio_writes, writes, "{what}");
        assert_eq!(rig.machine.memory_counters().stores, stores, "{what}");
        assert_eq!(rig.write(DEVICE, A_BASE), Ok(A_BASE));
    }
    // What is for people only does no harm.
    let (rig, mut state) = running(Schedule::Lazy, &model);
    state.queue_tail ^= 5;
    state.sequence = state.sequence.wrapping_add(0x7fff_0000);
    state.domains[0].attached = 99;
    adopt(&rig.machine, 0, &model, &state, |_| true).unwrap();
    rig.sound();
}

#[test]
fn registers_that_changed_since_are_refused() {
    let model = UnitConfig::default();
    let writes: [RegisterWrite; 3] = [(0x20, 0x66_0000), (0xb8, 0x66_0007), (0x90, 0x66_0000)];
    for write in writes {
        let (rig, state) = running(Schedule::Lazy, &model);
        rig.machine.force_register(0, write);
        let result = adopt(&rig.machine, 0, &model, &state, |_| true);
        assert!(
            matches!(result, Err(AdoptError::Mismatch { .. })),
            "{result:?}"
        );
    }
    for bit in [TE, IRE, QIE, CFI] {
        let (rig, state) = running(Schedule::Lazy, &model);
        rig.machine.force_status(0, rig.machine.status(0) ^ bit);
        let result = adopt(&rig.machine, 0, &model, &state, |_| true);
        assert!(
            matches!(result, Err(AdoptError::Mismatch { .. })),
            "{result:?}"
        );
    }
}

/// Where the entries lie that the hostile tests change.
struct Places {
    root: u64,
    context: u64,
    top: u64,
    middle: u64,
    irte: u64,
}

fn places(rig: &Rig) -> Places {
    let (root, irta) = rig.machine.latched(0);
    let root = root.unwrap() & !0xfff;
    let bus = rig.machine.peek(root + u64::from(DEVICE.0 >> 8) * 16) & !0xfff;
    let context = bus + u64::from(DEVICE.0 & 0xff) * 16;
    let table = rig.machine.peek(context) & !0xfff;
    let top = table + (A_BASE >> 30 & 511) * 8;
    let middle = (rig.machine.peek(top) & !0xfff) + (A_BASE >> 21 & 511) * 8;
    Places {
        root,
        context,
        top,
        middle,
        irte: irta.unwrap() & !0xfff,
    }
}

#[test]
fn hostile_tables_are_refused_and_nothing_is_written() {
    type Change = fn(&Rig, &Places);
    fn flip(rig: &Rig, at: u64, bits: u64) {
        rig.machine.poke(at, rig.machine.peek(at) ^ bits);
    }
    let changes: [(&str, Change); 26] = [
        ("a leaf over the interrupt range", |r, p| {
            r.machine.poke(p.middle + 16, 0xfee0_0083)
        }),
        ("a device address in the interrupt range", |r, p| {
            // The table for 3 to 4 GiB, with one leaf below FEE0_0000 to FF00_0000.
            let spare = 0x4000_0000 + 0x7f_e000;
            for word in 0..512 {
                r.machine.poke(spare + word * 8, 0);
            }
            r.machine.poke(spare + 0x1f7 * 8, 0x2_0000_0083);
            r.machine.poke(p.top - 8, spare | 3);
        }),
        ("a leaf over the arena", |r, p| {
            r.machine.poke(p.middle + 16, 0x4000_0083)
        }),
        ("a leaf beyond the machine", |r, p| {
            r.machine.poke(p.middle + 16, 1 << 46 | 0x83)
        }),
        ("a leaf that is not aligned", |r, p| {
            r.machine.poke(p.middle + 16, 0x1_4000_1083)
        }),
        ("a leaf with the snoop bit", |r, p| {
            flip(r, p.middle, 1 << 11)
        }),
        ("a leaf with an ignored bit", |r, p| {
            flip(r, p.middle, 1 << 52)
        }),
        ("a leaf with an execute bit", |r, p| {
            flip(r, p.middle, 1 << 2)
        }),
        ("a table pointer without write", |r, p| flip(r, p.top, 2)),
        ("a table pointer to its own table", |r, p| {
            r.machine.poke(p.top, p.top & !0xfff | 3);
        }),
        ("a table pointer to the root table", |r, p| {
            r.machine.poke(p.top, p.root | 3)
        }),
        ("a table pointer outside the arena", |r, p| {
            r.machine.poke(p.top, 0x6000_0003)
        }),
        ("two pointers to one table", |r, p| {
            r.machine.poke(p.top + 8, r.machine.peek(p.top));
        }),
        ("an absent entry that is not zero", |r, p| {
            r.machine.poke(p.middle + 16, 0x5000)
        }),
        ("a context table outside the arena", |r, p| {
            r.machine.poke(p.root + 0x70 * 16, 0x6000_0001);
        }),
        ("one context table for two buses", |r, p| {
            let entry = r.machine.peek(p.root + u64::from(DEVICE.0 >> 8) * 16);
            r.machine.poke(p.root + 0x70 * 16, entry);
        }),
        ("reserved bits in a root entry", |r, p| {
            flip(r, p.root + u64::from(DEVICE.0 >> 8) * 16, 2);
        }),
        ("an upper half of a root entry", |r, p| {
            flip(r, p.root + u64::from(DEVICE.0 >> 8) * 16 + 8, 1);
        }),
        ("reserved bits in a context entry", |r, p| {
            flip(r, p.context, 1 << 4)
        }),
        ("device TLBs", |r, p| flip(r, p.context, 1 << 2)),
        ("pass-through", |r, p| flip(r, p.context, 2 << 2)),
        ("another width", |r, p| flip(r, p.context + 8, 3)),
        ("another domain's id", |r, p| {
            flip(r, p.context + 8, (1 ^ 2) << 8)
        }),
        ("another domain's tables", |r, p| flip(r, p.context, 0x1000)),
        ("an interrupt entry for any source", |r, p| {
            flip(r, p.irte + 8, 1 << 18)
        }),
        ("an interrupt entry that is an NMI", |r, p| {
            flip(r, p.irte, 4 << 5)
        }),
    ];
    let model = UnitConfig {
        address_widths: 0b0010,
        host_width: 52,
        ..UnitConfig::default()
    };
    for (what, change) in changes {
        let (rig, state) = running(Schedule::Lazy, &model);
        change(&rig, &places(&rig));
        let writes = rig.machine.counters(0).mmio_writes;
        let stores = rig.machine.memory_counters().stores;
        let result = adopt(&rig.machine, 0, &model, &state, |_| true);
        assert!(
            matches!(result, Err(AdoptError::Table { .. })),
            "{what}: {result:?}"
        );
        assert_eq!(rig.machine.counters(0).mmio_writes, writes, "{what}");
        assert_eq!(rig.machine.memory_counters().stores, stores, "{what}");
    }
}

#[test]
fn a_page_size_that_the_unit_lacks_is_refused() {
    let model = UnitConfig {
        large_pages: 0,
        address_widths: 0b0010,
        ..UnitConfig::default()
    };
    let (rig, state) = running(Schedule::Lazy, &model);
    let places = places(&rig);
    rig.machine.poke(places.middle + 64, 0x1_4000_0083);
    let result = adopt(&rig.machine, 0, &model, &state, |_| true);
    assert!(
        matches!(result, Err(AdoptError::Table { .. })),
        "{result:?}"
    );
}

#[test]
fn an_error_pending_in_the_queue_is_repaired_at_takeover() {
    let model = UnitConfig::default();
    for injection in [Injection::QueueErrors(1), Injection::TimeOuts(1)] {
        let (mut rig, _) = running(Schedule::Lazy, &model);
        let pending = rig.units[0].block(OTHER);
        rig.machine.inject(0, injection);
        drop(rig.units[0].submit(pending).unwrap());
        let state = rig.units[0].record().unwrap();
        for _ in 0..50 {
            let _ = rig.units[0].domain_of(DEVICE);
        }
        let machine = rig.machine.clone();
        rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
        assert_eq!(rig.write(OTHER, B_BASE), Err(Reason::ContextNotPresent));
        rig.attach(OTHER, A);
        rig.sound();
    }
}

#[test]
fn a_second_error_behind_the_first_is_repaired_at_takeover_too() {
    let model = UnitConfig::default();
    let (mut rig, _) = running(Schedule::Lazy, &model);
    let pending = rig.units[0].block(OTHER);
    rig.machine.inject(0, Injection::QueueErrors(1));
    drop(rig.units[0].submit(pending).unwrap());
    rig.machine.inject(0, Injection::TimeOuts(1));
    let state = rig.units[0].record().unwrap();
    let machine = rig.machine.clone();
    rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
    assert_eq!(rig.write(OTHER, B_BASE), Err(Reason::ContextNotPresent));
    rig.attach(OTHER, A);
    rig.sound();
}

#[test]
fn the_count_of_waits_goes_round() {
    let model = UnitConfig::default();
    for before in 0..6 {
        let (rig, mut state) = running(Schedule::Lazy, &model);
        let mut rig = rig;
        state.sequence = u32::MAX - before;
        let machine = rig.machine.clone();
        rig.units[0] = adopt(&machine, 0, &model, &state, |_| true).unwrap();
        for round in 0..12 {
            let (to, base) = if round % 2 == 0 {
                (B, B_BASE)
            } else {
                (A, A_BASE)
            };
            let at = 0x20_0000_1000;
            let memory = range(0x3_0000_0000, 0x1000);
            let mapped = rig.units[0]
                .map(to, at, memory, Access::READ_WRITE)
                .unwrap();
            let moved = rig.units[0].move_devices(&[DEVICE], Some(to), mapped);
            moved.unwrap();
            assert_eq!(rig.write(DEVICE, base), Ok(base));
            assert_eq!(rig.write(DEVICE, at), Ok(0x3_0000_0000));
            let unmapped = rig.units[0].unmap(to, at, 0x1000).unwrap();
            rig.flush(unmapped);
            assert_eq!(rig.write(DEVICE, at), Err(Reason::NoWrite));
        }
        rig.sound();
    }
}
