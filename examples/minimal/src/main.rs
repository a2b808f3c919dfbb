//! The smallest embedding of Baton, without a support crate.
//!
//! Processor 0 is the prime. It lays down a baton in memory nobody else uses, starts processor 1
//! as the successor, hands it a workload (a counter in memory) with one store, and parks. The
//! successor claims processor 0 and runs work on it. There are no devices in it, so no fence.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm, x86_64::_rdtsc};
use core::fmt::Write;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use handoff_abi::*;
use iommu::Deadline;
use partition_core::apic::XApic;
use partition_core::baton::{Baton, Sizes};
use partition_core::cpu::StartState;
use partition_core::ledger::{LedgerView, Steward};
use partition_core::park::{self, ParkArea};
use partition_core::trampoline::{Timing, Trampoline};
use partition_core::watch::{OwnStatus, Watch};
use uart_16550::{Config, Uart16550Tty, backend::PioBackend};

global_asm!(include_str!("boot.s"), prime = sym prime);

const PRIME: PartitionId = PartitionId(1);
const SUCCESSOR: PartitionId = PartitionId(2);
const BOOTSTRAP: ApicId = ApicId(0);
const SECOND: ApicId = ApicId(1);
const SPEAKS: Speaks = Speaks { newest: AbiVersion::NEWEST, oldest: AbiVersion::OLDEST, features: Features::empty() };
/// Memory that a real kernel takes from the firmware's map: everything is identity mapped here.
const BATON: PhysAddr = PhysAddr(0x100_0000);
const TRAMPOLINE: PhysAddr = PhysAddr(0x8000);
const LOCAL_APIC: u64 = 0xfee0_0000;
/// What survives: the workload, at an address of its own.
const WORKLOAD: PhysAddr = PhysAddr(0x200_0000);
const ANSWER_MICROSECONDS: u32 = 1_000_000;

/// A clock over the time stamp counter, at a rate that no processor is below.
struct Clock(u64);

impl Deadline for Clock {
    fn start(&mut self, microseconds: u32) {
        self.0 = now() + u64::from(microseconds) * 1000;
    }

    fn expired(&mut self) -> bool {
        core::hint::spin_loop();
        now() > self.0
    }
}

fn now() -> u64 {
    // SAFETY: every processor with 64-bit mode has the instruction, and nothing here disables it.
    unsafe { _rdtsc() }
}

fn at(address: PhysAddr) -> NonNull<u8> {
    NonNull::new(address.0 as *mut u8).expect("nothing here is at address 0")
}

fn shared<T>(range: PhysRange) -> &'static T {
    // SAFETY: called for the ledger, the exchange and the workload's counter, which are atomics in
    // identity mapped memory, aligned to pages, that nothing else uses.
    unsafe { at(range.base()).cast().as_ref() }
}

fn counter() -> &'static AtomicU64 {
    shared(PhysRange::from_bounds(WORKLOAD, PhysAddr(WORKLOAD.0 + FRAME_SIZE)))
}

fn apic() -> XApic {
    // SAFETY: QEMU's xAPIC is at its architectural place, identity mapped; no handler uses it.
    unsafe { XApic::new(at(PhysAddr(LOCAL_APIC))) }
}

fn say(line: core::fmt::Arguments<'_>) {
    // SAFETY: the first UART of the machine is at this port and one processor at a time says
    // something: each waits for what the other does.
    let uart = unsafe { Uart16550Tty::<PioBackend>::new_port(0x3f8, Config::default()) };
    if let Ok(mut uart) = uart {
        let _ = writeln!(uart, "{line}");
    }
}

fn page_table() -> u64 {
    let table: u64;
    // SAFETY: reading CR3 at privilege level 0 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) table, options(nomem, nostack)) };
    table
}

fn start_at(entry: extern "C" fn(u64) -> !, argument: u64) -> StartState {
    static STACKS: AtomicU64 = AtomicU64::new(0x300_0000);
    // The call that would have come here leaves RSP 8 below a multiple of 16.
    let stack = STACKS.fetch_add(0x1_0000, SeqCst) + 0xfff8;
    StartState { page_table: page_table(), entry: entry as usize as u64, stack, argument }
}

extern "C" fn prime() -> ! {
    say(format_args!("prime: up"));
    let room = PhysRange::new(BATON, 0x10_0000).expect("a small range");
    let sizes = Sizes { handoff: 0x1000, capture: 0x1000, filtered: 0x1000, iommu: 0x1000 };
    let baton = Baton::lay_out(room, &sizes).expect("1 MiB is enough");

    // Who owns what: two processors, and the workload.
    let mut steward = Steward::format(shared::<Ledger>(baton.ledger), PRIME);
    let mut add = |kind, base, owner| steward.add(kind, base, 1, Owner::Partition(owner)).expect("an empty ledger");
    add(resource::CPU, BOOTSTRAP.0.into(), PRIME);
    add(resource::CPU, SECOND.0.into(), SUCCESSOR);
    let workload = add(resource::WORKLOAD, 1, PRIME);

    // SAFETY: the area's memory is identity mapped, and nobody else's.
    let area = unsafe { ParkArea::install(at(baton.park.base()), baton.park.base()) }.expect("an aligned area");
    // SAFETY: QEMU leaves the page free, and no processor is in it.
    let trampoline = unsafe { Trampoline::install(at(TRAMPOLINE), TRAMPOLINE, BOOTSTRAP, Timing::default()) };

    // The handoff: what the successor has to know.
    let mut buffer = [0; 1024];
    let envelope = Envelope {
        version: AbiVersion::NEWEST,
        self_address: baton.handoff.base(),
        features: Features::empty(),
        required: Features::empty(),
        epoch: 1,
        writer: PRIME,
        reader: SUCCESSOR,
        swaps: 0,
    };
    let mut writer = Writer::new(&mut buffer, envelope).expect("room for a header");
    for extent in baton.extents() {
        writer.critical(&extent).expect("room");
    }
    let record = Workload {
        id: WorkloadId(1),
        domain: DomainId(0),
        ledger_slot: workload.into(),
        base: WORKLOAD,
        length: FRAME_SIZE,
        layout: 0,
        layout_version: 1,
    };
    writer.critical(&record).expect("room");
    let blob = writer.finish();
    // SAFETY: the extent is a page, the blob at most 1 KiB on this stack.
    unsafe { at(baton.handoff.base()).copy_from_nonoverlapping(NonNull::from(blob).cast(), blob.len()) };

    // Launch, and wait until the successor is ready.
    let exchange = shared::<Exchange>(baton.exchange);
    let own = OwnStatus::new(exchange, PRIME).expect("a place");
    let mut watch = Watch::prepare(exchange, SUCCESSOR).expect("a place");
    let state = start_at(successor, baton.handoff.base().0);
    // SAFETY: all of memory is mapped by the page table, and the stack is new.
    unsafe { trampoline.expect("a low page").start(SECOND, &state, &area, &mut apic(), &mut Clock(0)) }.expect("it starts");
    watch.wait(state::READY, ANSWER_MICROSECONDS, &mut Clock(0)).expect("it gets ready");
    say(format_args!("prime: the successor is ready"));

    // Serve, freeze, commit, park.
    counter().store(41, SeqCst);
    let armed = steward.arm(workload, SUCCESSOR).map_err(|(_, error)| error).expect("its workload");
    own.enter(state::FROZEN, now());
    say(format_args!("prime: commit"));
    let parked = area.expect(BOOTSTRAP).expect("a slot");
    own.enter(state::RETIRED, now());
    armed.commit().map_err(|(_, error)| error).expect("nobody else writes");
    // SAFETY: this is the processor that was expected; interrupts were never enabled.
    unsafe { park::enter(&parked) }
}

extern "C" fn successor(handoff: u64) -> ! {
    let found_at = PhysAddr(handoff);
    let mut copy = [0_u8; 1024];
    // SAFETY: the handoff's extent is a page, longer than the copy, and identity mapped.
    unsafe { at(found_at).copy_to_nonoverlapping(NonNull::from(&mut copy).cast(), copy.len()) };
    let handoff = Handoff::parse(&copy, found_at, &SPEAKS).expect("a handoff");
    let baton = Baton::find(&handoff).expect("a baton");
    let workload = handoff.first::<Workload>().expect("a workload");
    let (ledger, exchange) = (shared::<Ledger>(baton.ledger), shared::<Exchange>(baton.exchange));
    let own = OwnStatus::new(exchange, handoff.header().reader).expect("a place");
    for state in [state::ENTERED, state::NEGOTIATED, state::READY] {
        own.enter(state, now());
    }
    let view = LedgerView::new(ledger).expect("a ledger");
    while view.steward() != SUCCESSOR {
        core::hint::spin_loop();
    }
    own.enter(state::SERVING, now());
    let value = counter().fetch_add(1, SeqCst) + 1;
    say(format_args!("successor: serving, the counter at {} is {value}", workload.base));

    // The prime's processor, and everything else it had.
    let mut steward = Steward::take_up(ledger, SUCCESSOR).expect("the commit made it the steward");
    // SAFETY: the prime made the area, and it is identity mapped here too.
    let area = unsafe { ParkArea::adopt(at(baton.park.base()), baton.park.base()) }.expect("an area");
    let proof = area.confirm(BOOTSTRAP, ANSWER_MICROSECONDS, &mut Clock(0)).expect("it parks");
    steward.release_cpu(proof, Owner::Partition(SUCCESSOR)).expect("it was the prime's");
    let inherited = steward.inherit(PRIME, Owner::Partition(SUCCESSOR)).expect("no processor is left");
    say(format_args!("successor: steward, {inherited} more entries inherited"));
    // SAFETY: the page table maps everything, and the stack is new.
    unsafe { area.claim(BOOTSTRAP, &start_at(worker, 0), &mut apic(), ANSWER_MICROSECONDS, &mut Clock(0)) }
        .expect("it wakes up");
    halt()
}

extern "C" fn worker(_: u64) -> ! {
    say(format_args!("successor: processor 0 works for me, the counter is {}", counter().load(SeqCst)));
    halt()
}

fn halt() -> ! {
    loop {
        // SAFETY: HLT at privilege level 0 only waits.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say(format_args!("{info}"));
    halt()
}
