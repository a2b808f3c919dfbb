//! The smaller machine: the firmware tables that a successor sees.

use alloc::vec;
use alloc::vec::Vec;

use acpi_capture::Capture;
use acpi_capture::memory::{MemoryKind, MemoryRegion};
use acpi_capture::partition::{HostBridge, PartitionView, ResetWord, Window, WindowKind};
use handoff_abi::{Exchange, Firmware, PhysAddr, PhysRange};
use partition_core::plan::Plan;

use super::inventory::Topology;
use super::kernel::{Failure, Kernel, copy_in, copy_out};
use crate::println;

/// Bytes of one partition's tables.
const PLACE: u64 = 8192;

/// Writes the tables for a plan into the baton.
///
/// # Errors
/// Where the captured tables cannot be cut down so.
pub fn write(kernel: &mut Kernel, plan: &Plan) -> Result<Firmware, Failure> {
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
    let view = PartitionView {
        cpus: plan.cpus(),
        memory: plan.memory(),
        reserved: &reserved,
        bridges: &bridges,
        reset: ResetWord {
            address: PhysAddr(place.0 + PLACE - 8),
            value: 1,
        },
        wakeup: None,
        place,
    };
    let mut buffer = vec![0; PLACE as usize - 16];
    let tables = view.write(&captured, &mut buffer)?;
    // SAFETY: the place is the partition's part of the extent, and nobody reads it yet.
    unsafe { copy_in(place, &buffer) };
    println!(
        "@filtered-tables rsdp={:#x} bytes={}",
        tables.rsdp.0,
        tables.range.length()
    );
    let smbios = captured
        .smbios_entries()
        .next()
        .map_or(PhysAddr(0), |(address, _)| address);
    Ok(Firmware {
        rsdp: tables.rsdp,
        smbios,
    })
}
