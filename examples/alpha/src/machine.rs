//! The machine as alpha finds it: own page tables, heap, interrupts, clock.

use alloc::boxed::Box;

use baton_support::boot::{BootInfo, Image, PVH_OFFSET};
use baton_support::cpu::PerCpu;
use baton_support::memory::{Carver, Frames};
use baton_support::paging::{Access, AddressSpace, MapError};
use baton_support::{PhysAddr, PhysRange, acpi, apic, clock, cpu, mmio, println};
use heapless::Vec;

/// Where alpha maps physical memory.
const WINDOW: u64 = 0xffff_8000_0000_0000;
const HEAP: u64 = 32 << 20;
const TABLES: u64 = 4 << 20;
const FOUR_GIB: u64 = 1 << 32;

/// What alpha has brought up.
pub(crate) struct Machine {
    pub(crate) memory: Carver,
    pub(crate) frames: Frames,
    pub(crate) space: AddressSpace,
    pub(crate) firmware: acpi::Firmware,
}

pub(crate) fn bring_up(info: &BootInfo) -> Result<Machine, MapError> {
    let image = Image::own();
    let physical = PhysAddr(image.start - PVH_OFFSET);
    let mut memory = Carver::new();
    info.usable().for_each(|range| memory.add(range));
    memory.reserve(PhysRange::from_bounds(
        physical,
        PhysAddr(image.end - PVH_OFFSET),
    ));
    for module in &info.modules {
        memory.reserve(module.range);
    }
    let tables = memory
        .take(TABLES, 4096, FOUR_GIB)
        .ok_or(MapError::Frames)?;
    // SAFETY: just taken out of free memory.
    let mut frames = unsafe { Frames::new(tables) };

    let mut space = AddressSpace::new(&mut frames)?;
    space.map_image(&image, physical, &mut frames)?;
    let mut mapped = Vec::<PhysRange, 64>::new();
    for &(range, kind) in &info.memory {
        let access = match kind {
            1 | 3 | 4 => Access::Data,
            // Firmware's own, and registers: SeaBIOS keeps the ACPI tables in such a range.
            _ if range.end().0 <= FOUR_GIB => Access::Device,
            _ => continue,
        };
        space.map_window(WINDOW, range, access, &mut frames)?;
        // The list is as long as the memory map.
        let _ = mapped.push(range);
    }
    // SAFETY: the image is mapped where it is linked, the stack with it, and the window follows.
    unsafe { space.activate() };
    // SAFETY: the tables in force have the window there; no pointer into the identity map is left.
    unsafe { mmio::set_window(WINDOW) };

    let heap = memory.take(HEAP, 4096, u64::MAX).ok_or(MapError::Frames)?;
    // SAFETY: just taken out of free memory, all of which is in the window.
    unsafe { crate::add_heap(heap) };
    // SAFETY: the tables in force are the kernel's own, and the value is never freed.
    unsafe { cpu::init_this(Box::leak(Box::new(PerCpu::new()))) };

    // SAFETY: every PC has the two 8259s, and nobody else runs yet.
    unsafe { apic::mask_8259() };
    // SAFETY: the window maps these ranges, and firmware has written its tables for good.
    let firmware = unsafe { acpi::find(info.rsdp, &mapped) };
    let mut machine = Machine {
        memory,
        frames,
        space,
        firmware,
    };
    machine.map_device(page(apic::base()))?;
    // SAFETY: just mapped.
    unsafe { apic::init(apic::base()) };
    apic::enable_this();
    if let Some(base) = firmware.io_apic {
        machine.map_device(page(PhysAddr(base)))?;
        // SAFETY: just mapped, and firmware says that it is one.
        unsafe { apic::mask_io_apic(PhysAddr(base)) };
    }
    // SAFETY: the port is the FADT's.
    let hertz = firmware
        .pm_timer
        .and_then(|port| unsafe { clock::calibrate(port) });
    clock::set_hertz(hertz.unwrap_or(1_000_000_000));
    println!(
        "time stamp counter {} Hz, APIC timer {:?} Hz",
        clock::hertz(),
        apic::calibrate_timer()
    );
    Ok(machine)
}

impl Machine {
    /// Maps device registers into the window.
    pub(crate) fn map_device(&mut self, range: PhysRange) -> Result<(), MapError> {
        self.space
            .map_window(WINDOW, range, Access::Device, &mut self.frames)
    }
}

fn page(base: PhysAddr) -> PhysRange {
    PhysRange::from_bounds(base, PhysAddr(base.0 + 4096))
}
