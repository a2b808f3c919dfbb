//! The smaller machine: the firmware tables that a successor sees.

use alloc::vec;
use alloc::vec::Vec;

use acpi_capture::Capture;
use acpi_capture::memory::{MemoryKind, MemoryMap, MemoryRegion};
use acpi_capture::partition::{HostBridge, PartitionView, ResetWord, Window, WindowKind};
use handoff_abi::{Exchange, Firmware as Found, PhysAddr, PhysRange};
use partition_core::plan::Plan;

use super::inventory::Topology;
use super::kernel::{Failure, Kernel, copy_in, copy_out, zero};
use crate::println;

/// Bytes of one partition's tables.
const PLACE: u64 = 8192;

/// Memory of a partition that its kernel is told is firmware's, because it knows nothing of Baton.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    /// The memory.
    pub range: PhysRange,
    /// The mailbox there, at which its further processors wait.
    pub wakeup: Option<PhysAddr>,
}

/// What was written.
#[derive(Debug)]
pub struct Tables {
    /// Where the kernel finds them.
    pub firmware: Found,
    /// The partition's memory map.
    pub memory_map: MemoryMap<64>,
    /// The byte that stands for the machine's reset register.
    pub reset: PhysAddr,
}

/// Writes the tables for a plan into the baton.
///
/// # Errors
/// Where the captured tables cannot be cut down so.
pub fn write(kernel: &mut Kernel, plan: &Plan, shown: Option<Firmware>) -> Result<Tables, Failure> {
    // SAFETY: the window maps the baton.
    let bytes = unsafe { copy_out(kernel.baton.capture) };
    let captured = Capture::parse(&bytes)?;
    let topology = Topology::scan(kernel, &captured)?;
    let index = Exchange::place(plan.partition()) as u64;
    let place = PhysAddr(kernel.baton.filtered.base().0 + index * PLACE);
    let reserved: Vec<_> = kernel
        .baton
        .extents()
        .iter()
        .filter_map(|extent| PhysRange::new(extent.base, extent.length).ok())
        .map(|range| MemoryRegion {
            range,
            kind: MemoryKind::Reserved,
        })
        .chain(shown.map(|shown| MemoryRegion {
            range: shown.range,
            kind: MemoryKind::AcpiNvs,
        }))
        .collect();
    let windows: Vec<Vec<Window>> = plan
        .buses()
        .iter()
        .map(|bus| {
            topology
                .windows_above(bus.bus)
                .map(|range| {
                    let low = range.end().0 <= 1 << 32;
                    let kind = if low {
                        WindowKind::Memory32
                    } else {
                        WindowKind::Memory64Prefetchable
                    };
                    Window { kind, range }
                })
                .collect()
        })
        .collect();
    let bridges: Vec<_> = plan
        .buses()
        .iter()
        .zip(&windows)
        .map(|(bus, windows)| HostBridge {
            segment: bus.segment,
            first_bus: bus.bus,
            last_bus: bus.bus,
            ecam: PhysAddr(bus.ecam.base().0 - (u64::from(bus.bus) << 20)),
            windows,
        })
        .collect();
    let reset = PhysAddr(place.0 + PLACE - 8);
    let view = PartitionView {
        cpus: plan.cpus(),
        memory: plan.memory(),
        reserved: &reserved,
        bridges: &bridges,
        reset: ResetWord {
            address: reset,
            value: 1,
        },
        wakeup: shown.and_then(|shown| shown.wakeup),
        place,
    };
    let mut buffer = vec![0; PLACE as usize - 16];
    let tables = view.write(&captured, &mut buffer)?;
    // SAFETY: the place is the partition's part of the extent, and nobody reads it yet.
    unsafe { copy_in(place, &buffer) };
    // SAFETY: as above; nobody has asked for a reset.
    unsafe { zero(reset, 8) };
    println!(
        "@filtered-tables rsdp={:#x} bytes={}",
        tables.rsdp.0,
        tables.range.length()
    );
    let smbios = captured
        .smbios_entries()
        .next()
        .map_or(PhysAddr(0), |(address, _)| address);
    Ok(Tables {
        memory_map: view.memory_map(&tables)?,
        firmware: Found {
            rsdp: tables.rsdp,
            smbios,
        },
        reset,
    })
}
