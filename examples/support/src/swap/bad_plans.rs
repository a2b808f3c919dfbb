//! Requests that no plan can meet, for dry runs: each is the usual one with one thing wrong.

use alloc::vec;

use handoff_abi::{ApicId, FRAME_SIZE, Owner, PciFunction, PhysAddr, PhysRange, RequesterId};
use partition_core::plan::FunctionRequest;

use super::inventory::{Inventory, MEMORY, Wish};
use super::kernel::{Failure, Kernel, failure};
use crate::cpu::apic_id;

/// An APIC id that no processor of the demo machine has.
const NO_CPU: ApicId = ApicId(0x99);
/// Where no machine of this kind has memory.
const NO_MEMORY: PhysAddr = PhysAddr(1 << 38);
/// A function that does not answer.
const NO_FUNCTION: PciFunction = PciFunction {
    segment: 0,
    requester: RequesterId(0x7f00),
};
/// A singleton that there is none of.
const NO_SINGLETON: u64 = 0x99;

/// Makes the wish a bad one; `good` leaves it as it is.
///
/// # Errors
/// Where there is no such plan, or the machine has not what it takes to be wrong about.
pub fn spoil(kernel: &mut Kernel, wish: &mut Wish<'_>, name: &str) -> Result<(), Failure> {
    let function = |function| FunctionRequest {
        function,
        interrupts: 1,
    };
    match name {
        "good" => {}
        "overlap" => {
            let baton = kernel.baton.ledger.base().0 & !0x1f_ffff;
            wish.ranges = vec![PhysRange::new(PhysAddr(baton), MEMORY)?];
        }
        "shared-requester" => {
            let inventory = Inventory::take(kernel)?;
            let shared = inventory
                .topology
                .of_device(0x1234, 0x11e8)
                .find(|&function| !inventory.topology.is_alone(function))
                .ok_or_else(|| failure!("no device shares a requester id"))?;
            wish.functions = vec![function(shared)];
        }
        "own-cpu" => wish.cpus = vec![kernel.service_cpu, apic_id()],
        "absent-cpu" => wish.cpus.push(NO_CPU),
        "absent-memory" => wish.ranges = vec![PhysRange::new(NO_MEMORY, MEMORY)?],
        "absent-function" => wish.functions.push(function(NO_FUNCTION)),
        "absent-singleton" => wish.singletons.push(NO_SINGLETON),
        // From the middle of the machine's memory to beyond its end.
        "past-the-end" => {
            let last = kernel
                .memory_of(kernel.owner())
                .last()
                .copied()
                .ok_or_else(|| failure!("there is no memory"))?;
            let begin = PhysAddr((last.end().0 - MEMORY / 2) & !(FRAME_SIZE - 1));
            wish.ranges = vec![PhysRange::new(begin, MEMORY)?];
        }
        "cpu-twice" => wish.cpus.extend(wish.cpus.first().copied()),
        "registers" => wish.ranges = vec![PhysRange::new(kernel.unit_window.base(), MEMORY)?],
        "firmware" => {
            let reserved = kernel
                .memory_of(Owner::Firmware)
                .last()
                .copied()
                .ok_or_else(|| failure!("firmware has no memory"))?;
            wish.ranges = vec![reserved];
        }
        "absent-interrupts" => {
            if let Some(first) = wish.functions.first_mut() {
                first.interrupts = 64;
            }
        }
        other => return Err(failure!("there is no plan '{other}'")),
    }
    Ok(())
}
