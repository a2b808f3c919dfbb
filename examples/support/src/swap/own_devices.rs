//! The devices a kernel drives for itself: the disk, and the `edu` devices.

use alloc::vec;
use alloc::vec::Vec;

use baton_workload::memory::Memory;
use handoff_abi::{FRAME_SIZE, InterruptTarget, PciFunction};
use spin::Mutex;

use super::devices;
use super::first::set_aside;
use super::kernel::{Failure, Kernel, failure};
use crate::block::Block;
use crate::edu::Edu;
use crate::paging::Access;
use crate::virtio::Places;
use crate::{cpu, mmio, println};

/// The vector of this kernel's first `edu` device; the others follow.
pub const FIRST_VECTOR: u8 = 0x50;
/// How long the disk may take, in microseconds.
const DISK: u64 = 2_000_000;
/// The sector that a kernel writes to show that the disk is its own.
const SCRATCH: u64 = 8;

/// The `edu` devices.
pub static EDUS: Mutex<Vec<(PciFunction, Edu)>> = Mutex::new(Vec::new());
static DISK_DRIVER: Mutex<Option<(PciFunction, Block<'static>)>> = Mutex::new(None);

/// Gives each function that has no interrupt entry one, which goes to this processor.
pub fn set_aside_all(kernel: &mut Kernel) -> Result<(), Failure> {
    for (function, index) in kernel.functions.clone().into_iter().zip(0..) {
        if kernel
            .handles
            .iter()
            .any(|handle| handle.function == function)
        {
            continue;
        }
        let target = InterruptTarget {
            destination: cpu::apic_id(),
            vector: FIRST_VECTOR + index,
        };
        set_aside(kernel, function, 1, target)?;
    }
    Ok(())
}

/// Takes up every function of this kernel that it has a driver for and does not drive yet.
pub fn take_up(kernel: &mut Kernel) -> Result<(), Failure> {
    for function in kernel.functions.clone() {
        let device = devices::function(function)?;
        if device.class() >> 8 == 0x0100 {
            take_up_disk(kernel, function)?;
        } else if Edu::window(&device).is_some() {
            take_up_edu(kernel, function)?;
        }
    }
    Ok(())
}

fn take_up_edu(kernel: &mut Kernel, function: PciFunction) -> Result<(), Failure> {
    if EDUS.lock().iter().any(|(found, _)| *found == function) {
        return Ok(());
    }
    let device = devices::function(function)?;
    let window = Edu::window(&device).ok_or_else(|| failure!("{function} is no such device"))?;
    kernel.map(window, Access::Device)?;
    // SAFETY: just mapped; the fence keeps the device to this partition's memory.
    let edu = unsafe { Edu::create(&device) }?;
    if let Some(handle) = kernel
        .handles
        .iter()
        .find(|handle| handle.function == function)
    {
        // SAFETY: the device has MSI only, no table.
        unsafe { devices::set_message(handle) }?;
    }
    EDUS.lock().push((function, edu));
    Ok(())
}

fn take_up_disk(kernel: &mut Kernel, function: PciFunction) -> Result<(), Failure> {
    if DISK_DRIVER.lock().is_some() {
        return Ok(());
    }
    let device = devices::function(function)?;
    let places = Places::find(&device)?;
    for window in places.windows() {
        kernel.map(window, Access::Device)?;
    }
    let range = kernel
        .memory
        .take(Block::MEMORY, FRAME_SIZE, u64::MAX)
        .ok_or_else(|| failure!("there is no memory for the disk's ring"))?;
    // SAFETY: the range was just taken out of free memory and is reached through this value only.
    let memory = unsafe { Memory::new(mmio::pointer(range.base()), range.length()) }
        .ok_or_else(|| failure!("the disk's memory does not begin at a page"))?;
    // SAFETY: the windows are mapped, the function is this kernel's, and its domain maps the memory
    // at its physical address.
    let mut disk = unsafe { Block::create(&device, places, &memory, range.base().0) }?;
    let mut sector = vec![0; 512];
    disk.read(0, &mut sector, DISK)?;
    let label = sector
        .iter()
        .take_while(|byte| byte.is_ascii_graphic())
        .count();
    let pattern: Vec<u8> = (0..512_u32)
        .map(|index| (index as u8) ^ kernel.config.letter)
        .collect();
    disk.write(SCRATCH, &pattern, DISK)?;
    let mut back = vec![0; 512];
    disk.read(SCRATCH, &mut back, DISK)?;
    println!(
        "@disk function={function} sectors={} label={} written_and_read={}",
        disk.sectors(),
        core::str::from_utf8(&sector[..label]).unwrap_or("?"),
        back == pattern
    );
    if back != pattern {
        return Err(failure!("the disk does not keep what is written to it"));
    }
    *DISK_DRIVER.lock() = Some((function, disk));
    Ok(())
}

/// Forgets a device that is given away.
pub fn let_go(function: PciFunction) {
    EDUS.lock().retain(|(found, _)| *found != function);
    let mut disk = DISK_DRIVER.lock();
    if disk.as_ref().is_some_and(|(found, _)| *found == function) {
        *disk = None;
    }
}

/// How many devices this kernel drives.
#[must_use]
pub fn count() -> usize {
    EDUS.lock().len() + usize::from(DISK_DRIVER.lock().is_some())
}
