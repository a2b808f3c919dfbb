//! Taking a running unit over from the kernel before, while a device goes on.

use std::cell::Cell;
use std::rc::Rc;

use handoff_abi::{PhysAddr, PhysRange, RequesterId};
use iommu::vtd::spec::Register;
use iommu::vtd::{AdoptError, Config, State, TableFault, Unit};
use iommu::{Access, Reach};
use iommu_qtest::{
    Board, Driver, Fence, MINE, Observer, Place, Step, THEIRS, WallClock, delivered, id, raw,
    reaches, target,
};

/// Two devices, each in a domain of its own and with an interrupt.
fn two() -> Fence {
    let mut fence = Fence::new(&Board {
        devices: &[Place::RootPort, Place::RootPort],
        ..Board::default()
    });
    fence.attach(0, id(1));
    fence.attach(1, id(2));
    fence.interrupt(0, 0, 0x41);
    fence.interrupt(1, 1, 0x52);
    fence
}

fn adopt(
    fence: &Fence,
    observer: &Observer,
    state: &State,
    allow: impl FnMut(&Reach) -> bool,
) -> Result<Driver, AdoptError> {
    let (registers, memory) = fence.machine().platform(observer);
    Unit::adopt(
        registers,
        memory,
        WallClock::default(),
        fence.window(),
        fence.driver.arena(),
        state,
        Config::default(),
        allow,
    )
}

/// What the first kernel set up, and no more.
fn as_set_up(fence: &Fence) -> impl FnMut(&Reach) -> bool + use<> {
    let devices = [0, 1].map(|device| fence.edu(device).requester());
    move |reach| match *reach {
        Reach::Memory {
            requester: Some(requester),
            iova,
            memory,
            ..
        } => {
            let own = if requester == devices[0] {
                MINE
            } else {
                THEIRS
            };
            iova == memory.base().0 && own.contains_range(memory) && devices.contains(&requester)
        }
        Reach::Interrupt { source, target, .. } => {
            (source == devices[0] && target.vector == 0x41)
                || (source == devices[1] && target.vector == 0x52)
        }
        _ => false,
    }
}

#[test]
fn no_transfer_fails_while_the_unit_is_adopted() {
    let mut fence = two();
    let own = MINE.base().0;
    let foreign = THEIRS.base().0;
    let state = fence.driver.record().unwrap();
    let before = (
        fence.raw().root_table(),
        fence.raw().interrupt_table(),
        fence.raw().queue(),
    );

    let observer = Observer::default();
    let (bus, edu) = (fence.bus().clone(), fence.edu(0));
    let done = Rc::new(Cell::new(0));
    let count = done.clone();
    let mut loads = 0_u32;
    observer.before_each_access(move |step| {
        // Loads change nothing and are many; between any two others there is a transfer.
        if matches!(step, Step::Load(_)) {
            loads += 1;
            if !loads.is_multiple_of(64) {
                return;
            }
        }
        assert!(reaches(&bus, &edu, own, own), "DMA failed at {step:?}");
        count.set(count.get() + 1);
    });
    fence.bus().write(foreign, b"the other's data");
    let mut trace = fence.bus().trace();
    let adopted = adopt(&fence, &observer, &state, as_set_up(&fence)).unwrap();
    observer.stop();
    let events = trace.take();
    println!("{} transfers, {:?}", done.get(), observer.take());
    assert!(done.get() > 50, "{} transfers on the way", done.get());

    // GCMD, RTADDR and IRTA are not written at all, so nothing can have been toggled.
    for event in events.iter().filter(|e| e.name == "vtd_reg_write") {
        let offset = event.field("addr");
        assert!(![0x18, 0x20, 0x90, 0xb8].contains(&offset), "{event:?}");
    }
    let waits = events.iter().filter(|e| e.name == "vtd_inv_desc_wait_sw");
    assert_eq!(waits.count(), 1);
    assert_eq!(
        before,
        (
            fence.raw().root_table(),
            fence.raw().interrupt_table(),
            fence.raw().queue(),
        )
    );
    assert_eq!(fence.raw().fault(), None);

    // The new driver knows what is there, and commands it.
    fence.replace_driver((adopted, observer));
    let devices = [0, 1].map(|device| fence.edu(device).requester());
    assert_eq!(fence.driver.domain_of(devices[0]), Some(id(1)));
    assert_eq!(fence.driver.domain_of(devices[1]), Some(id(2)));
    assert!(fence.driver.domain_ids().eq([id(1), id(2)]));
    fence.assert_reaches(0, own);
    fence.assert_not_permitted(0, foreign, Some(foreign));
    let handles: Vec<_> = fence.driver.interrupts().map(|i| i.handle).collect();
    assert_eq!(handles.len(), 2);
    let mut trace = fence.bus().trace();
    fence.edu(0).raise();
    let pending = fence.driver.retarget(handles[0], target(1, 0x61)).unwrap();
    let pending = pending.merge(fence.driver.block(devices[1]));
    fence.flush(pending);
    fence.edu(0).raise();
    assert_eq!(delivered(&trace.take()), [(0, 0x41), (1, 0x61)]);
    assert!(!fence.reaches(1, foreign, foreign));
    assert_eq!(fence.faults().len(), 1);
    // Tables that it makes now do not collide with those it found.
    let more = PhysRange::new(PhysAddr(0x3000_0000), 0x1000).unwrap();
    fence.map(id(1), more, Access::READ_WRITE);
    fence.driver.create_domain(id(3)).unwrap();
    fence.map(id(3), more, Access::READ_WRITE);
    fence.assert_reaches(0, more.base().0);
    fence.assert_reaches(0, own);
    fence.attach(1, id(3));
    fence.assert_reaches(1, more.base().0);
}

#[test]
fn a_unit_is_adopted_again_and_again() {
    let mut fence = two();
    for round in 0..4_u64 {
        let state = fence.driver.record().unwrap();
        let observer = Observer::default();
        let adopted = adopt(&fence, &observer, &state, |_| true).unwrap();
        fence.replace_driver((adopted, observer));
        fence.assert_reaches(0, MINE.base().0);
        // Each leaves the queue elsewhere, over its end too.
        let page = PhysRange::new(MINE.end(), 0x1000).unwrap();
        for _ in 0..45 {
            fence.map(id(1), page, Access::READ_WRITE);
            let pending = fence.driver.unmap(id(1), page.base().0, 0x1000).unwrap();
            fence.flush(pending);
        }
        println!("round {round}, tail {:#x}", fence.raw().queue_tail());
        fence.bus().write(page.base().0, b"memory of nobody");
        fence.assert_not_permitted(0, page.base().0, Some(page.base().0));
    }
}

#[test]
fn everything_the_tables_allow_is_asked_for() {
    let mut fence = two();
    // A domain that nobody is in, and a read-only leaf.
    fence.driver.create_domain(id(7)).unwrap();
    let unattached = PhysRange::new(PhysAddr(0x3000_0000), 0x20_0000).unwrap();
    fence.map(id(7), unattached, Access::READ);
    let state = fence.driver.record().unwrap();
    let mut asked = Vec::new();
    adopt(&fence, &Observer::default(), &state, |reach| {
        asked.push(*reach);
        true
    })
    .unwrap();
    let devices = [0, 1].map(|device| fence.edu(device).requester());
    let mut wanted = Vec::new();
    for (requester, domain, memory) in [
        (Some(devices[0]), id(1), MINE),
        (Some(devices[1]), id(2), THEIRS),
    ] {
        for page in 0..memory.length() / 0x1000 {
            let base = memory.base().0 + page * 0x1000;
            wanted.push(Reach::Memory {
                requester,
                domain,
                iova: base,
                memory: PhysRange::new(PhysAddr(base), 0x1000).unwrap(),
                access: Access::READ_WRITE,
            });
        }
    }
    wanted.push(Reach::Memory {
        requester: None,
        domain: id(7),
        iova: unattached.base().0,
        memory: unattached,
        access: Access::READ,
    });
    for (index, (source, target)) in [(devices[0], target(0, 0x41)), (devices[1], target(1, 0x52))]
        .into_iter()
        .enumerate()
    {
        wanted.push(Reach::Interrupt {
            source,
            index: index as u16,
            target,
        });
    }
    assert_eq!(asked, wanted);
    // Whichever one of them is refused, the unit is not taken, and nothing is written.
    for refused in [0, 15, 16, 32, 33, 34] {
        let observer = Observer::default();
        let mut number = 0;
        let mut trace = fence.bus().trace();
        let result = adopt(&fence, &observer, &state, |_| {
            number += 1;
            number != refused + 1
        });
        assert_eq!(
            result.map(drop),
            Err(AdoptError::NotAllowed(wanted[refused]))
        );
        assert_untouched(&observer);
        assert_eq!(trace.take_named("vtd_reg_write"), []);
    }
    fence.assert_reaches(0, MINE.base().0);
}

fn assert_untouched(observer: &Observer) {
    let counts = observer.take();
    assert_eq!(
        (counts.register_writes, counts.stores),
        (0, 0),
        "a refused unit is left alone"
    );
}

/// That adoption is refused with nothing written; why.
fn refusal(fence: &Fence, state: &State) -> AdoptError {
    let observer = Observer::default();
    let result = adopt(fence, &observer, state, as_set_up(fence));
    assert_untouched(&observer);
    result.map(drop).unwrap_err()
}

#[test]
fn a_record_that_does_not_fit_the_registers_is_refused() {
    let mut fence = two();
    let good = fence.driver.record().unwrap();
    type Change = fn(&mut State);
    let mismatches: [(Register, Change); 6] = [
        (Register::Capability, |s| s.capability ^= 1 << 7),
        (Register::ExtendedCapability, |s| {
            s.extended_capability ^= 1 << 7;
        }),
        (Register::RootTableAddress, |s| {
            s.root_table_address += 0x1000;
        }),
        (Register::InterruptTableAddress, |s| {
            s.interrupt_table_address += 0x10_0000;
        }),
        (Register::InvalidationQueueAddress, |s| {
            s.queue_address += 0x1000;
        }),
        (Register::GlobalStatus, |s| s.global_status &= !raw::TES),
    ];
    for (wanted, change) in mismatches {
        let mut state = good;
        change(&mut state);
        match refusal(&fence, &state) {
            AdoptError::Mismatch { register, .. } => assert_eq!(register, wanted.into()),
            error => panic!("{wanted}: {error}"),
        }
    }
    let fields: [(&str, Change); 9] = [
        ("register_base", |s| s.register_base += 0x1000),
        ("register_length", |s| s.register_length += 0x1000),
        ("arena_base", |s| s.arena_base += 0x1000),
        ("arena_length", |s| s.arena_length -= 0x1000),
        ("levels", |s| s.levels = 4),
        ("host_address_bits", |s| s.host_address_bits = 64),
        ("domain_count", |s| s.domain_count = 65),
        ("domains.id", |s| s.domains[1].id = s.domains[0].id),
        ("domains.root", |s| s.domains[1].root = s.domains[0].root),
    ];
    for (wanted, change) in fields {
        let mut state = good;
        change(&mut state);
        match refusal(&fence, &state) {
            AdoptError::Record { field, .. } => assert_eq!(field, wanted),
            error => panic!("{wanted}: {error}"),
        }
    }
    // Domains exchanged: each id with the other's tables.
    let mut state = good;
    state.domains.swap(0, 1);
    (state.domains[0].id, state.domains[1].id) = (1, 2);
    assert!(matches!(
        refusal(&fence, &state),
        AdoptError::Table {
            fault: TableFault::Domain(_),
            ..
        }
    ));
    // The unmodified record is accepted after all of that.
    adopt(&fence, &Observer::default(), &good, as_set_up(&fence)).unwrap();
}

#[test]
fn registers_that_are_not_those_of_a_running_fence_are_refused() {
    let mut fence = two();
    let state = fence.driver.record().unwrap();
    let on = raw::TES | raw::QIES | raw::IRES;
    for off in [raw::TES, raw::QIES, raw::IRES] {
        fence.raw().command(on & !off);
        assert!(
            matches!(
                refusal(&fence, &state),
                AdoptError::Mismatch {
                    register: iommu::Register::VtD(Register::GlobalStatus),
                    ..
                }
            ),
            "{off:#x}"
        );
        if off == raw::QIES {
            fence.raw().set_queue_tail(0);
        }
        fence.raw().command(on);
        assert_eq!(fence.raw().status() & on, on);
    }
    // A root table written, though not latched.
    let root = fence.raw().root_table();
    let register = fence.window().base().0 + 0x20;
    fence.bus().write64(register, root + 0x1000);
    assert_eq!(
        refusal(&fence, &state),
        AdoptError::Mismatch {
            register: iommu::Register::VtD(Register::RootTableAddress),
            recorded: root,
            found: root + 0x1000,
        }
    );
}

/// Whether an error is the one that is wanted.
type Wanted = Box<dyn Fn(&AdoptError) -> bool>;

/// Where the entries are that a hostile kernel would change.
struct Entries {
    root: u64,
    context: u64,
    top: u64,
    leaf: u64,
    interrupt: u64,
}

fn entries(fence: &Fence, requester: RequesterId) -> Entries {
    let tables = fence.raw().second_stage_tables(requester);
    let (leaf, ..) = fence.raw().leaf(requester, MINE.base().0).unwrap();
    Entries {
        root: fence.raw().root_entry(requester.bus()),
        context: fence.raw().context_entry(requester).unwrap(),
        // Three levels: entry 0 of the top one covers the first gibibyte.
        top: tables[0],
        leaf,
        interrupt: fence.raw().interrupt_table().0,
    }
}

#[test]
fn hostile_tables_are_refused() {
    let mut fence = two();
    let state = fence.driver.record().unwrap();
    let requester = fence.edu(0).requester();
    let e = entries(&fence, requester);
    let bus = fence.bus().clone();
    let load = |at| bus.read64(at);
    let arena = fence.driver.arena();
    let root_of_mine = load(e.context) & !0xfff;

    // Where, what, and what is found to be wrong.
    let cases: Vec<(&str, u64, u64, Wanted)> = vec![
        (
            "a leaf into the other's memory",
            e.leaf,
            THEIRS.base().0 | 3,
            Box::new(|error| {
                matches!(error, AdoptError::NotAllowed(Reach::Memory { memory, .. })
                if THEIRS.contains_range(*memory))
            }),
        ),
        (
            "a leaf into the tables",
            e.leaf,
            arena.base().0 | 3,
            table_fault(|fault| matches!(fault, TableFault::OwnTables(_))),
        ),
        (
            "a leaf into the interrupt range",
            e.leaf,
            0xfee0_0003,
            table_fault(|fault| *fault == TableFault::InterruptRange),
        ),
        (
            "a leaf with the snoop bit",
            e.leaf,
            load(e.leaf) | 1 << 11,
            table_fault(|fault| matches!(fault, TableFault::ForeignBits(_))),
        ),
        (
            "a gibibyte over the tables",
            e.top + 8,
            0x4000_0083,
            table_fault(|fault| matches!(fault, TableFault::OwnTables(_))),
        ),
        (
            "a table that is its own child",
            e.top + 8,
            root_of_mine | 3,
            table_fault(|fault| matches!(fault, TableFault::Shared(_))),
        ),
        (
            "a table outside the arena",
            e.top + 8,
            THEIRS.base().0 | 3,
            table_fault(|fault| matches!(fault, TableFault::OutsideArena(_))),
        ),
        (
            "a device that passes through",
            e.context,
            load(e.context) | 0b10 << 2,
            table_fault(|fault| matches!(fault, TableFault::TranslationType(_))),
        ),
        (
            "a device with a device-TLB",
            e.context,
            load(e.context) | 0b01 << 2,
            table_fault(|fault| matches!(fault, TableFault::TranslationType(_))),
        ),
        (
            "another domain's id with these tables",
            e.context + 8,
            load(e.context + 8) ^ (1 ^ 2) << 8,
            table_fault(|fault| matches!(fault, TableFault::Domain(_))),
        ),
        (
            "tables that are no domain's",
            e.context,
            load(e.context) + 0x1000,
            table_fault(|fault| matches!(fault, TableFault::Domain(_))),
        ),
        (
            "one level more",
            e.context + 8,
            load(e.context + 8) + 1,
            table_fault(|fault| *fault == TableFault::Levels),
        ),
        (
            "a context table outside the arena",
            e.root,
            THEIRS.base().0 | 1,
            table_fault(|fault| matches!(fault, TableFault::OutsideArena(_))),
        ),
        (
            "a context table for a second bus",
            fence.raw().root_entry(200),
            load(e.root),
            table_fault(|fault| matches!(fault, TableFault::Shared(_))),
        ),
        (
            "reserved bits in a root entry",
            e.root,
            load(e.root) | 1 << 1,
            table_fault(|fault| matches!(fault, TableFault::ForeignBits(_))),
        ),
        (
            "an interrupt from any source",
            e.interrupt + 8,
            load(e.interrupt + 8) & !(3 << 18),
            table_fault(|fault| matches!(fault, TableFault::ForeignBits(_))),
        ),
        (
            "an interrupt that is an NMI",
            e.interrupt,
            load(e.interrupt) | 0b100 << 5,
            table_fault(|fault| matches!(fault, TableFault::ForeignBits(_))),
        ),
        (
            "an interrupt to a logical destination",
            e.interrupt,
            load(e.interrupt) | 1 << 2,
            table_fault(|fault| matches!(fault, TableFault::ForeignBits(_))),
        ),
        (
            "an interrupt with another vector",
            e.interrupt,
            load(e.interrupt) ^ 1 << 16,
            Box::new(|error| matches!(error, AdoptError::NotAllowed(Reach::Interrupt { .. }))),
        ),
    ];
    for (what, at, value, wanted) in cases {
        let good = bus.read64(at);
        assert_ne!(good, value, "{what}");
        bus.write64(at, value);
        let error = refusal(&fence, &state);
        assert!(wanted(&error), "{what}: {error}");
        bus.write64(at, good);
    }
    let observer = Observer::default();
    let adopted = adopt(&fence, &observer, &state, as_set_up(&fence)).unwrap();
    fence.replace_driver((adopted, observer));
    fence.assert_reaches(0, MINE.base().0);
}

fn table_fault(wanted: impl Fn(&TableFault) -> bool + 'static) -> Wanted {
    Box::new(move |error| matches!(error, AdoptError::Table { fault, .. } if wanted(fault)))
}

#[test]
fn a_queue_that_the_old_kernel_left_stopped_at_an_error_is_taken_over() {
    let mut fence = two();
    let own = MINE.base().0;
    fence.assert_reaches(0, own);
    // What the old one had under way: it never saw the end of this.
    let pending = fence.driver.unmap(id(1), own, 0x1000).unwrap();
    let state = fence.driver.record().unwrap();
    drop(pending);
    fence.raw().submit(&[(0xf, 0)]);
    assert_eq!(fence.raw().fault_status() & 1 << 4, 1 << 4, "IQE is set");
    assert_ne!(fence.raw().queue_head(), fence.raw().queue_tail());
    assert!(fence.reaches(0, own, own), "the translation is still hot");

    let observer = Observer::default();
    let adopted = adopt(&fence, &observer, &state, as_set_up(&fence)).unwrap();
    fence.replace_driver((adopted, observer));
    assert_eq!(fence.raw().fault_status() & 1 << 4, 0, "IQE is cleared");
    assert_eq!(fence.raw().queue_head(), fence.raw().queue_tail());
    // The caches hold what the tables say.
    assert!(!fence.reaches(0, own, own));
    assert_eq!(fence.faults().len(), 1);
    fence.assert_reaches(0, own + 0x1000);
}

#[test]
fn a_blocking_that_the_old_kernel_did_not_flush_is_finished() {
    let mut fence = two();
    let own = MINE.base().0;
    fence.assert_reaches(0, own);
    drop(fence.driver.block(fence.edu(0).requester()));
    assert!(fence.reaches(0, own, own), "hot");
    let state = fence.driver.record().unwrap();
    let observer = Observer::default();
    let adopted = adopt(&fence, &observer, &state, as_set_up(&fence)).unwrap();
    fence.replace_driver((adopted, observer));
    assert!(!fence.reaches(0, own, own));
    assert_eq!(fence.faults().len(), 1);
    fence.attach(0, id(1));
    fence.assert_reaches(0, own);
}

#[test]
fn a_fault_that_the_old_kernel_did_not_drain_is_told_to_the_new_one() {
    let mut fence = two();
    let foreign = THEIRS.base().0;
    fence.edu(0).dma_write(foreign, 16);
    let state = fence.driver.record().unwrap();
    let observer = Observer::default();
    let adopted = adopt(&fence, &observer, &state, as_set_up(&fence)).unwrap();
    fence.replace_driver((adopted, observer));
    let faults = fence.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].source, fence.edu(0).requester());
    assert_eq!(faults[0].address(), Some(foreign));
}
