//! Alpha: the example kernel that boots first.
#![no_std]
#![no_main]

extern crate alloc;

mod devices;
mod machine;

use core::sync::atomic::Ordering::Relaxed;

use baton_support::boot::{BatonNote, BootInfo, Entry};
use baton_support::service::Service;
use baton_support::{PhysRange, apic, console, cpu, interrupts, mmio, println};
use linked_list_allocator::Heap;
use spin::Mutex;

/// The timer's vector, and its period in microseconds: how long a command may wait to be read.
const TICK_VECTOR: u8 = 0x40;
const TICK: u64 = 10_000;

baton_support::entry!(main);

#[used]
#[unsafe(link_section = ".note.baton")]
static NOTE: BatonNote = BatonNote::new(0, 1, 0);

fn main(entry: Entry) -> ! {
    let Entry::Pvh { start_info } = entry else {
        cpu::halt_forever();
    };
    // SAFETY: the first UART of a PC is at 0x3f8, and nobody else runs yet.
    unsafe { baton_support::console::init(0x3f8) };
    // SAFETY: PVH passed the address, and the boot tables map the first 4 GiB.
    let Some(info) = (unsafe { BootInfo::read(start_info) }) else {
        println!("alpha: no start info");
        cpu::halt_forever();
    };
    println!("alpha: command line '{}'", info.command_line());
    for (range, kind) in &info.memory {
        println!("memory {range} type {kind}");
    }
    let machine = match machine::bring_up(&info) {
        Ok(machine) => machine,
        Err(error) => {
            println!("alpha: {error}");
            cpu::halt_forever()
        }
    };
    let mut machine = machine;
    println!(
        "@up kernel=alpha abi=0.1 cpus=1 memory={}",
        machine.memory.free_bytes()
    );
    let service = match devices::bring_up(&mut machine) {
        Ok(service) => service,
        Err(error) => {
            println!("alpha: {error}");
            cpu::halt_forever()
        }
    };
    println!("@serving");
    run(service)
}

/// Serves, and listens to the console.
fn run(mut service: Service<'_>) -> ! {
    if !apic::start_tick(TICK_VECTOR, TICK) {
        println!("alpha: no timer; the console is heard only when a frame arrives");
    }
    loop {
        let frames = service.poll();
        if let Some(line) = console::read_line() {
            command(&service, line.trim());
        }
        if frames == 0 {
            cpu::wait_for_interrupt(|| service.has_work());
        }
    }
}

fn command(service: &Service<'_>, line: &str) {
    let word = line.split_ascii_whitespace().next().unwrap_or_default();
    let (result, text) = match word {
        "help" => {
            println!("help    this list");
            println!("status  what the service has done");
            ("ok", "")
        }
        "status" => {
            let workload = service.workload();
            let counters = workload.counters();
            let (answered, refused) = (&counters.answered, &counters.refused);
            println!(
                "@status answered={} refused={} malformed={} received={} sent={} dropped={} \
                 doorbells={} keys={} applied={} swaps={} interrupts={} ticks={}",
                answered.load(Relaxed),
                refused.load(Relaxed),
                counters.malformed.load(Relaxed),
                counters.frames_received.load(Relaxed),
                counters.frames_sent.load(Relaxed),
                counters.dropped.load(Relaxed),
                counters.doorbells.load(Relaxed),
                workload.store.keys(),
                workload.store.applied(),
                workload.swaps(),
                interrupts::count(devices::NET_VECTOR),
                interrupts::count(TICK_VECTOR),
            );
            for (address, mac) in workload.neighbours() {
                println!("neighbour {address:?} is {mac:x?}");
            }
            match workload.store.check() {
                Ok(()) => ("ok", ""),
                Err(_) => ("failed", "the store contradicts itself"),
            }
        }
        _ => ("refused", "unknown command"),
    };
    println!("@done command={word} result={result} text=\"{text}\"");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    baton_support::console::print_last_words(format_args!("@panic text=\"{info}\"\n"));
    cpu::halt_forever()
}

/// Gives `range` to the allocator.
///
/// # Safety
/// The memory is mapped in the window and nobody else's.
pub(crate) unsafe fn add_heap(range: PhysRange) {
    let start = mmio::pointer(range.base()).as_ptr();
    cpu::without_interrupts(|| {
        // SAFETY: the caller's promise.
        unsafe { HEAP.0.lock().init(start, range.length() as usize) };
    });
}

/// The kernel's allocator: a linked list of free blocks.
struct Allocator(Mutex<Heap>);

#[global_allocator]
static HEAP: Allocator = Allocator(Mutex::new(Heap::empty()));

// SAFETY: the heap hands out each byte once; the lock makes it one caller's at a time, and it is
// never taken with interrupts on, so no handler can wait for what it interrupted.
unsafe impl core::alloc::GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: core::alloc::Layout) -> *mut u8 {
        cpu::without_interrupts(|| {
            self.0
                .lock()
                .allocate_first_fit(layout)
                .map_or(core::ptr::null_mut(), |block| block.as_ptr())
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: core::alloc::Layout) {
        cpu::without_interrupts(|| {
            if let Some(block) = core::ptr::NonNull::new(block) {
                // SAFETY: the caller's promise: allocated here, with this layout.
                unsafe { self.0.lock().deallocate(block, layout) };
            }
        });
    }
}
