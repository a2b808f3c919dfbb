//! Beta: the example kernel that is launched beside alpha and takes over from it.
//!
//! It differs from alpha in everything but the support crate's sources: link address, allocator,
//! where it maps physical memory, size of its heap, and the minor version it speaks.
#![no_std]
#![no_main]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use baton_support::boot::{BatonNote, Entry};
use baton_support::swap::{self, Config};
use baton_support::{PhysRange, cpu, mmio};
use buddy_system_allocator::Heap;
use handoff_abi::{AbiVersion, Features, Speaks};
use spin::Mutex;

baton_support::entry!(main);

const FEATURES: Features = Features::ADOPT_DEVICES
    .union(Features::VT_D)
    .union(Features::STANDBY);

#[used]
#[unsafe(link_section = ".note.baton")]
static NOTE: BatonNote = BatonNote::new(
    AbiVersion::V0_2.major,
    AbiVersion::V0_2.minor,
    FEATURES.bits(),
);

/// Two kernels are made of these sources, of other names and compiler flags.
const NAME: &str = match option_env!("BATON_KERNEL") {
    Some(name) => name,
    None => env!("CARGO_PKG_NAME"),
};

static CONFIG: Config = Config {
    name: NAME,
    letter: NAME.as_bytes()[0],
    speaks: Speaks {
        newest: AbiVersion::V0_2,
        oldest: AbiVersion::V0_1,
        features: FEATURES,
    },
    window: 0xffff_c000_0000_0000,
    heap: 16 << 20,
    add_heap,
};

fn main(entry: Entry) -> ! {
    swap::run(entry, &CONFIG)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    baton_support::console::print_last_words(format_args!("@panic text=\"{info}\"\n"));
    cpu::halt_forever()
}

/// The kernel's allocator: buddies.
struct Allocator(Mutex<Heap<32>>);

#[global_allocator]
static HEAP: Allocator = Allocator(Mutex::new(Heap::empty()));

/// # Safety
/// As [`Config::add_heap`].
unsafe fn add_heap(range: PhysRange) {
    let start = mmio::pointer(range.base()).as_ptr();
    cpu::without_interrupts(|| {
        // SAFETY: the caller's promise.
        unsafe { HEAP.0.lock().init(start.addr(), range.length() as usize) };
    });
}

// SAFETY: the heap hands out each byte once; the lock makes it one caller's at a time, and it is
// never taken with interrupts on, so no handler can wait for what it interrupted.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        cpu::without_interrupts(|| {
            let block = self.0.lock().alloc(layout);
            block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        cpu::without_interrupts(|| {
            if let Some(block) = NonNull::new(block) {
                // SAFETY: the caller's promise: allocated here, with this layout.
                unsafe { self.0.lock().dealloc(block, layout) };
            }
        });
    }
}
