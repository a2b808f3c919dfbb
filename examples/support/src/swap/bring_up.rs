//! A kernel's own footing, the same for one that booted and one that was launched: page tables,
//! heap, interrupts, clock, and the processor that runs.

use alloc::boxed::Box;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};
use heapless::Vec;

use super::kernel::{Config, Failure, failure, page_of};
use crate::boot::Image;
use crate::cpu::PerCpu;
use crate::memory::{Carver, Frames};
use crate::paging::{Access, AddressSpace, MapError};
use crate::{apic, clock, cpu, mmio};

/// Bytes set aside for page tables.
const TABLES: u64 = 8 << 20;
const FOUR_GIB: u64 = 1 << 32;

/// What a kernel begins with.
#[derive(Debug, Default)]
pub struct Start {
    /// Memory that it owns and that nothing is in.
    pub free: Vec<PhysRange, 64>,
    /// What else it reaches through its window, and how.
    pub window: Vec<(PhysRange, Access), 64>,
    /// What it also maps at its physical address, for code that outlives its page tables.
    pub identity: Vec<PhysRange, 4>,
}

/// A kernel's footing.
#[derive(Debug)]
pub struct Footing {
    /// Memory that is left.
    pub memory: Carver,
    /// Frames for page tables.
    pub frames: Frames,
    /// The page tables in force.
    pub space: AddressSpace,
}

/// Builds page tables and goes onto them, gives the heap its memory, and readies the processor that
/// runs. Called once, on a kernel's first processor, with all of `start` reachable at its physical
/// address through the window in force.
///
/// # Errors
/// Where memory is short.
///
/// # Safety
/// `start` is the truth: the free memory is nobody's, the rest is mapped as it may be, and the
/// image lies at `physical`.
pub unsafe fn bring_up(
    config: &Config,
    physical: PhysAddr,
    start: &Start,
) -> Result<Footing, Failure> {
    let image = Image::own();
    let mut memory = Carver::new();
    start.free.iter().for_each(|&range| memory.add(range));
    let tables = memory
        .take(TABLES, FRAME_SIZE, FOUR_GIB)
        .ok_or(MapError::Frames)?;
    // SAFETY: just taken out of memory that is nobody's.
    let mut frames = unsafe { Frames::new(tables) };
    let mut space = AddressSpace::new(&mut frames)?;
    space.map_image(&image, physical, &mut frames)?;
    let free = start.free.iter().map(|&range| (range, Access::Data));
    for (range, access) in free.chain(start.window.iter().copied()) {
        space.map_window(config.window, range, access, &mut frames)?;
    }
    for &range in &start.identity {
        space.map(range.base().0, range, Access::Trampoline, &mut frames)?;
    }
    let apic_page = page_of(apic::base());
    space.map_window(config.window, apic_page, Access::Device, &mut frames)?;
    // SAFETY: the image is mapped where it is linked, the stack with it, and the window follows.
    unsafe { space.activate() };
    // SAFETY: the tables in force have the window there; no pointer into the old one is left.
    unsafe { mmio::set_window(config.window) };
    let heap = memory
        .take(config.heap, FRAME_SIZE, u64::MAX)
        .ok_or(MapError::Frames)?;
    // SAFETY: just taken out of free memory, all of which is in the window.
    unsafe { (config.add_heap)(heap) };
    // SAFETY: the tables in force are the kernel's own, and the value is never freed.
    unsafe { cpu::init_this(Box::leak(Box::new(PerCpu::new()))) };
    // SAFETY: just mapped.
    unsafe { apic::init(apic::base()) };
    apic::enable_this().ok_or_else(|| failure!("there is no local APIC"))?;
    Ok(Footing {
        memory,
        frames,
        space,
    })
}

/// Sets the clock to a rate that somebody measured.
pub fn set_clock(hertz: u64) {
    clock::set_hertz(hertz);
    let _ = apic::calibrate_timer();
}
