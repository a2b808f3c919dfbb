//! The smallest embedding of Baton, without a support crate. Only `boot.s` is not shown here.
//!
//! Processor 0 is the prime: it lays down a baton, starts processor 1 as the successor, hands it a
//! workload (a counter in memory) with one store, and parks. The successor claims processor 0 and
//! runs work on it. There are no devices in it, so no fence. Errors end in the panic handler.
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
const CPU_0: ApicId = ApicId(0);
const CPU_1: ApicId = ApicId(1);
const SPEAKS: Speaks = Speaks::every_version(Features::empty());
/// Memory that a real kernel takes from the firmware's map: everything is identity mapped here.
const BATON: PhysAddr = PhysAddr(0x100_0000);
const TRAMPOLINE: PhysAddr = PhysAddr(0x8000);
const LOCAL_APIC: PhysAddr = PhysAddr(0xfee0_0000);
/// What survives: the workload, at an address of its own.
const WORKLOAD: PhysAddr = PhysAddr(0x200_0000);
/// How long anything may take, in microseconds.
const PATIENCE: u32 = 5_000_000;

/// A clock over the time stamp counter: exact at 1 GHz, and not more than a few times too quick.
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
    NonNull::new(address.0 as *mut u8).unwrap()
}

fn shared<T>(base: PhysAddr) -> &'static T {
    // SAFETY: called for the ledger, the exchange and the workload's counter, which are atomics in
    // identity mapped memory, aligned to pages, that nothing else uses.
    unsafe { at(base).cast().as_ref() }
}

fn apic() -> XApic {
    // SAFETY: QEMU's xAPIC is at its architectural place, identity mapped; no handler uses it.
    unsafe { XApic::new(at(LOCAL_APIC)) }
}

fn say(line: core::fmt::Arguments<'_>) {
    // SAFETY: the first UART of the machine is at this port, and each processor says something only
    // while the other one waits for what it does.
    let uart = unsafe { Uart16550Tty::<PioBackend>::new_port(0x3f8, Config::default()) };
    let _ = writeln!(uart.unwrap(), "{line}");
}

fn start_at(entry: extern "C" fn(u64) -> !, argument: u64) -> StartState {
    static STACKS: AtomicU64 = AtomicU64::new(0x300_0000);
    let page_table: u64;
    // SAFETY: reading CR3 at privilege level 0 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) page_table, options(nomem, nostack)) };
    // The call that would have come here leaves RSP 8 below a multiple of 16.
    let stack = STACKS.fetch_add(0x1_0000, SeqCst) + 0xfff8;
    StartState {
        page_table,
        entry: entry as usize as u64,
        stack,
        argument,
    }
}

extern "C" fn prime() -> ! {
    let room = PhysRange::new(BATON, 0x10_0000).unwrap();
    let baton = Baton::lay_out(room, &Sizes::pages(1)).unwrap();

    // Who owns what: two processors, and the workload.
    let mut steward = Steward::format(shared(baton.ledger.base()), PRIME);
    let mut add = |kind, base, owner| steward.add(kind, base, 1, Owner::Partition(owner)).unwrap();
    add(resource::CPU, 0, PRIME);
    add(resource::CPU, 1, SUCCESSOR);
    let workload = add(resource::WORKLOAD, 1, PRIME);

    let park = baton.park.base();
    // SAFETY: the area's memory is identity mapped, and nobody else's.
    let area = unsafe { ParkArea::install(at(park), park) }.unwrap();
    // SAFETY: QEMU leaves the page free, and no processor is in it.
    let page = unsafe { Trampoline::install(at(TRAMPOLINE), TRAMPOLINE, CPU_0, Timing::default()) };

    // The handoff: what the successor has to know.
    let place = baton.handoff.base();
    let mut buffer = [0; 1024];
    let envelope = Envelope::new(PRIME, SUCCESSOR, place);
    let mut writer = Writer::new(&mut buffer, envelope).unwrap();
    for extent in baton.extents() {
        writer.critical(&extent).unwrap();
    }
    let blob = writer.finish();
    // SAFETY: the extent is a page, the blob at most 1 KiB on this stack.
    unsafe { at(place).copy_from_nonoverlapping(NonNull::from(blob).cast(), blob.len()) };

    // Launch, and wait until the successor is ready.
    let exchange = shared(baton.exchange.base());
    let own = OwnStatus::new(exchange, PRIME).unwrap();
    let mut watch = Watch::prepare(exchange, SUCCESSOR).unwrap();
    let (state, mut clock) = (start_at(successor, place.0), Clock(0));
    let mut page = page.unwrap();
    // SAFETY: all of memory is mapped by the page table, and the stack is new.
    unsafe { page.start(CPU_1, &state, &area, &mut apic(), &mut clock) }.unwrap();
    watch.wait(state::READY, PATIENCE, &mut clock).unwrap();
    say(format_args!("prime: the successor is ready"));

    // Serve, freeze, commit, park.
    shared::<AtomicU64>(WORKLOAD).store(41, SeqCst);
    let armed = steward.arm(workload, SUCCESSOR).unwrap();
    let parked = area.expect(CPU_0).unwrap();
    own.enter(state::RETIRED, now());
    say(format_args!("prime: commit"));
    armed.commit().unwrap();
    // SAFETY: this is the processor that was expected; interrupts were never enabled.
    unsafe { park::enter(&parked) }
}

extern "C" fn successor(handoff: u64) -> ! {
    let (place, mut copy, mut clock) = (PhysAddr(handoff), [0_u8; 1024], Clock(0));
    // SAFETY: the handoff's extent is a page, longer than the copy, and identity mapped.
    unsafe { at(place).copy_to_nonoverlapping(NonNull::from(&mut copy).cast(), copy.len()) };
    let handoff = Handoff::parse(&copy, place, &SPEAKS).unwrap();
    let baton = Baton::find(&handoff).unwrap();
    let ledger = shared(baton.ledger.base());
    let view = LedgerView::new(ledger).unwrap();
    let exchange = shared(baton.exchange.base());
    let own = OwnStatus::arrive(exchange, view, handoff.header(), CPU_1).unwrap();
    for state in [state::ENTERED, state::NEGOTIATED, state::READY] {
        own.enter(state, now());
    }
    clock.start(PATIENCE);
    while view.steward() != SUCCESSOR {
        assert!(!clock.expired(), "the commit does not come");
    }
    own.enter(state::SERVING, now());
    let value = shared::<AtomicU64>(WORKLOAD).fetch_add(1, SeqCst) + 1;
    say(format_args!("successor: serving, the counter is {value}"));

    // The prime's processor, and everything else it had.
    let mut steward = Steward::take_up(ledger, SUCCESSOR).unwrap();
    let me = Owner::Partition(SUCCESSOR);
    let park = baton.park.base();
    // SAFETY: the prime made the area, and it is identity mapped here too.
    let area = unsafe { ParkArea::adopt(at(park), park) }.unwrap();
    let stopped = area.confirm(CPU_0, PATIENCE, &mut clock).unwrap();
    steward.release_cpu(stopped, me).unwrap();
    steward.inherit(PRIME, me).unwrap();
    let state = start_at(worker, 0);
    // SAFETY: the page table maps everything, and the stack is new.
    unsafe { area.claim(CPU_0, &state, &mut apic(), PATIENCE, &mut clock) }.unwrap();
    halt()
}

extern "C" fn worker(_: u64) -> ! {
    say(format_args!("successor: processor 0 works for me"));
    halt()
}

fn halt() -> ! {
    // SAFETY: it never returns, and HLT at privilege level 0 only waits.
    unsafe { asm!("2:", "hlt", "jmp 2b", options(noreturn)) };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say(format_args!("{info}"));
    halt()
}
