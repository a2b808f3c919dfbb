//! Attacks on the fence, by this kernel's own device: each attempt is one line, and each must leave
//! one fault record with the steward.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use handoff_abi::{
    ApicId, FRAME_SIZE, InterruptHandle, Message, Owner, PhysAddr, PhysRange, UnitKind, message,
    resource,
};

use super::handover::ask;
use super::kernel::{Failure, Kernel, copy_in, copy_out, failure};
use super::own_devices::{EDUS, FIRST_VECTOR};
use super::{NIC_VECTOR, devices, faults};
use crate::edu::Direction;
use crate::{clock, cpu, interrupts, pci, println};

/// Bytes of one attempt.
const LENGTH: usize = 64;
/// How long the device's own interrupt may take, in microseconds.
const OWN_INTERRUPT: u64 = 5_000_000;
/// How long a forged one is waited for. That it does not come later either is seen from outside.
const FORGED_INTERRUPT: u64 = 50_000;
/// VT-d: every entry below this is tried with a device that it is not for.
const FORGED: u16 = 12;
/// AMD-Vi: the delivery modes that are tried beside the fixed one, as bits 10:8 of a message's data
/// have them. A system management interrupt is not among them: no entry stops it.
const MODES: [(&str, u32); 4] = [("lowest", 1), ("nmi", 4), ("init", 5), ("extint", 7)];
/// How many vectors the kernels use for such devices.
const VECTORS: u8 = 0x20;
/// An address that no memory is at.
const BEYOND: u64 = 1 << 38;
/// How many faults a device makes that nobody stops.
const STORM: u32 = 100;
/// How long the device may take for one DMA.
const DMA: u64 = 2_000_000;
/// What an attempt's bytes are.
const CANARY: u8 = 0xc5;

/// What the steward says of the fault records since the last time.
fn drained(kernel: &mut Kernel) -> Result<Message, Failure> {
    match kernel.prime {
        Some(prime) if kernel.unit.is_none() => ask(
            kernel,
            prime,
            &[message::DRAIN, 0, 0, 0, 0, 0, 0, 0],
            message::DRAINED,
        ),
        _ => faults::drain(kernel),
    }
}

struct Target {
    name: &'static str,
    address: PhysAddr,
}

fn targets(kernel: &Kernel) -> Vec<Target> {
    let page = |range: PhysRange, offset: u64| PhysAddr(range.base().0 + offset);
    let other = match (kernel.prime, &kernel.successor) {
        (Some(prime), _) => Some(prime),
        (None, Some(launched)) => Some(launched.partition),
        (None, None) => None,
    };
    let mut all = Vec::new();
    let mut add = |name, address| all.push(Target { name, address });
    if let Some(memory) = other.and_then(|other| kernel.memory_of(Owner::Partition(other)).pop()) {
        add(
            "foreign-memory",
            PhysAddr(memory.base().0 + memory.length() / 2),
        );
    }
    add(
        "workload",
        page(
            PhysRange::from_bounds(kernel.workload.base, kernel.workload.base),
            0,
        ),
    );
    add("ledger", page(kernel.baton.ledger, 0));
    add("handoff", page(kernel.baton.handoff, 0));
    // From 2 MiB on are the queues of an AMD-Vi unit.
    let tables = [0, 0x4000, 0x8000, 0x20_0000, 0x20_2000];
    for offset in tables
        .into_iter()
        .filter(|&offset| offset < kernel.baton.iommu.length())
    {
        add("iommu-tables", page(kernel.baton.iommu, offset));
    }
    add("unit-registers", page(kernel.unit_window, 0));
    if let Some(bar) = foreign_bar(kernel) {
        add("foreign-bar", bar);
    }
    add("beyond-memory", PhysAddr(BEYOND));
    all
}

/// A BAR that is not this partition's: a device of the other one where this kernel can see it, and
/// the workload's network device otherwise.
fn foreign_bar(kernel: &Kernel) -> Option<PhysAddr> {
    if let Some(launched) = &kernel.successor {
        let planned = launched.plan.functions().last()?;
        let device = devices::function(planned.function).ok()?;
        return device.bar(0).map(|bar| bar.address);
    }
    Some(super::work::register()).filter(|register| register.0 != 0)
}

/// Attacks with this kernel's first `edu` device.
pub fn attack(kernel: &mut Kernel) -> Result<(), Failure> {
    let targets = targets(kernel);
    let (source, own) = {
        let edus = EDUS.lock();
        let (function, _) = edus
            .first()
            .ok_or_else(|| failure!("there is no device to attack with"))?;
        (*function, function.requester)
    };
    let scratch = kernel
        .memory
        .take(FRAME_SIZE, FRAME_SIZE, u64::MAX)
        .ok_or_else(|| failure!("there is no memory to attack with"))?;
    let scratch = scratch.base();
    let _ = drained(kernel)?;
    let mut attempts = 0_u32;
    let mut blocked = 0_u32;
    // Every VT-d unit records what it blocks, AMD-Vi units do but for emulated ones: of those it can
    // be told only from outside. One that recorded anything has to record everything.
    let mut records = kernel.unit_kind == Some(UnitKind::VtD);
    for target in &targets {
        for direction in [Direction::ToMemory, Direction::FromMemory] {
            attempts += 1;
            let write = direction == Direction::ToMemory;
            let kept = attempt(scratch, target.address, direction)?;
            let faults = drained(kernel)?;
            let recorded = faults[1] == 1
                && faults[2] == u64::from(own.0)
                && faults[3] >> 12 == target.address.0 >> 12
                && (faults[5] == 1) == write;
            records |= faults[1] != 0;
            let held = kept && (recorded || !records);
            blocked += u32::from(held);
            println!(
                "@attempt n={attempts} kind={} by={source} target={} address={:#x} blocked={} fault={} source={:#06x} reason={}",
                if write { "write" } else { "read" },
                target.name,
                target.address.0,
                if held { "yes" } else { "no" },
                if recorded { "yes" } else { "no" },
                faults[2],
                faults[4]
            );
        }
    }
    interrupts(kernel, &mut attempts, &mut blocked)?;
    println!("@attacked attempts={attempts} blocked={blocked}");
    Ok(())
}

/// Has this kernel's first `edu` device make one fault after the other, as fast as it can, until
/// somebody has taken its bus mastering away; then once more, which must leave no record. The steward is
/// asked to look after each, or not before the end.
pub fn storm(kernel: &mut Kernel, asks: bool) -> Result<(), Failure> {
    let function = EDUS
        .lock()
        .first()
        .map(|(function, _)| *function)
        .ok_or_else(|| failure!("there is no device to attack with"))?;
    let _ = drained(kernel)?;
    let (mut attempts, mut records) = (0_u32, 0);
    while attempts < STORM && devices::function(function)?.is_bus_master() {
        attempts += 1;
        miss()?;
        if asks {
            records += drained(kernel)?[1];
        }
    }
    if !asks {
        records += drained(kernel)?[1];
    }
    let bus_master = devices::function(function)?.is_bus_master();
    miss()?;
    let after = drained(kernel)?[1];
    println!(
        "@stormed by={function} attempts={attempts} records={records} after={after} bus_master={}",
        if bus_master { "yes" } else { "no" }
    );
    Ok(())
}

/// One write that no domain lets pass.
fn miss() -> Result<(), Failure> {
    let mut edus = EDUS.lock();
    let (_, edu) = edus
        .first_mut()
        .ok_or_else(|| failure!("there is no device to attack with"))?;
    Ok(edu.dma(Direction::ToMemory, BEYOND, 0, 4, DMA)?)
}

/// One DMA. Whether nothing came through, as far as the device can tell: what it read into its
/// buffer is not what is at the address.
fn attempt(scratch: PhysAddr, address: PhysAddr, direction: Direction) -> Result<bool, Failure> {
    let mut edus = EDUS.lock();
    let (_, edu) = edus
        .first_mut()
        .ok_or_else(|| failure!("there is no device to attack with"))?;
    let length = LENGTH as u64;
    // SAFETY: the scratch page is this kernel's, mapped, and nothing else is in it.
    unsafe { copy_in(scratch, &[CANARY; LENGTH]) };
    edu.dma(Direction::FromMemory, scratch.0, 0, length, DMA)?;
    edu.dma(direction, address.0, 0, length, DMA)?;
    if direction == Direction::ToMemory {
        return Ok(true);
    }
    edu.dma(Direction::ToMemory, scratch.0, 0, length, DMA)?;
    // SAFETY: as above.
    let read = unsafe {
        copy_out(PhysRange::from_bounds(
            scratch,
            PhysAddr(scratch.0 + length),
        ))
    };
    // QEMU hands zeros to a device whose read was blocked, or leaves its buffer; anything else would
    // be what is at the address.
    Ok(read.iter().all(|&byte| byte == CANARY || byte == 0))
}

/// Raises interrupts: with the device's own entry, which must come, and with every other entry, which
/// must not.
fn interrupts(kernel: &mut Kernel, attempts: &mut u32, blocked: &mut u32) -> Result<(), Failure> {
    let (function, own) = {
        let edus = EDUS.lock();
        let (function, _) = edus
            .first()
            .ok_or_else(|| failure!("there is no device to attack with"))?;
        let own = kernel
            .handles
            .iter()
            .find(|handle| handle.function == *function)
            .copied();
        (
            *function,
            own.ok_or_else(|| failure!("{function} has no interrupt entry"))?,
        )
    };
    if !raises(&own, OWN_INTERRUPT)? {
        return Err(failure!("the device's own interrupt does not come"));
    }
    for message in forged(kernel, &own) {
        *attempts += 1;
        let forged = InterruptHandle {
            message_address: message.address,
            message_data: message.data,
            ..own
        };
        // One that reached this kernel is counted here; one that reached another is seen from
        // outside.
        let came = raises(&forged, FORGED_INTERRUPT)?;
        *blocked += u32::from(!came);
        println!(
            "@attempt n={attempts} kind=interrupt by={function} target={} address={:#x} data={:#x} blocked={} fault=no",
            message.name,
            message.address.0,
            message.data,
            if came { "no" } else { "yes" }
        );
    }
    // SAFETY: the device has MSI only, no table.
    unsafe { devices::set_message(&own) }?;
    Ok(())
}

/// A message that is not the device's own.
struct Forged {
    name: String,
    address: PhysAddr,
    data: u32,
}

/// What can be forged. VT-d: the entries of others. On AMD-Vi a device has no way to name another's
/// entries, so it tries the vectors of every processor that is not this kernel's as if there were no
/// remapping, and other delivery modes.
fn forged(kernel: &Kernel, own: &InterruptHandle) -> Vec<Forged> {
    let requester = own.function.requester;
    if kernel.unit_kind != Some(UnitKind::AmdVi) {
        return (0..FORGED)
            .filter(|&index| index != own.handle)
            .map(|index| {
                let handle = iommu::InterruptHandle::new(UnitKind::VtD, requester, index);
                let message = handle.message();
                Forged {
                    name: format!("handle-{index}"),
                    address: message.address,
                    data: message.data,
                }
            })
            .collect();
    }
    let mut all = Vec::new();
    for cpu in others(kernel) {
        let mut add = |name, data: u32| {
            // The index of the device's own entry raises its own interrupt, whatever address it is
            // sent to.
            if data != u32::from(own.handle) {
                let (address, _) = pci::message(cpu, 0);
                all.push(Forged {
                    name,
                    address,
                    data,
                });
            }
        };
        for vector in [NIC_VECTOR, FIRST_VECTOR, FIRST_VECTOR + 1] {
            add(format!("vector-{vector:#x}-cpu-{cpu}"), vector.into());
        }
        for (name, mode) in MODES {
            add(
                format!("{name}-cpu-{cpu}"),
                mode << 8 | u32::from(FIRST_VECTOR),
            );
        }
    }
    all
}

/// The processors that are not this kernel's; where all are, all but this one.
fn others(kernel: &Kernel) -> Vec<ApicId> {
    let (me, own) = (cpu::apic_id(), kernel.cpus_of(kernel.owner()));
    let all = kernel.view().into_iter().flat_map(|view| view.entries());
    let cpus: Vec<_> = all
        .filter(|entry| entry.kind == resource::CPU)
        .map(|entry| ApicId(entry.base as u32))
        .collect();
    let foreign = |cpu: &ApicId| !own.contains(cpu);
    if cpus.iter().any(foreign) {
        cpus.into_iter().filter(foreign).collect()
    } else {
        cpus.into_iter().filter(|&cpu| cpu != me).collect()
    }
}

/// Interrupts of `edu` devices that have come to this kernel.
fn came() -> u64 {
    (FIRST_VECTOR..FIRST_VECTOR + VECTORS)
        .map(interrupts::count)
        .sum()
}

fn raises(handle: &InterruptHandle, microseconds: u64) -> Result<bool, Failure> {
    // SAFETY: the device has MSI only, no table.
    unsafe { devices::set_message(handle) }?;
    let before = came();
    let mut edus = EDUS.lock();
    let (_, edu) = edus
        .first_mut()
        .ok_or_else(|| failure!("there is no device to attack with"))?;
    edu.raise(1);
    let raised = clock::wait_until(microseconds, || came() != before);
    edu.acknowledge();
    Ok(raised)
}
