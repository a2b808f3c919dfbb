//! After the commit: stewardship is taken up, and everything of the old kernel reclaimed.

use alloc::vec::Vec;

use acpi_capture::Capture;
use handoff_abi::{
    Envelope, FRAME_SIZE, Features, Handoff, InterruptTarget, Owner, PartitionId, PciFunction,
    PhysAddr, PhysRange, RequesterId, UnitKind, Writer, resource,
};
use iommu::amd::spec::DeviceTableBase;
use iommu::{Config, Reach};
use partition_core::ledger::{LedgerView, Steward};

use super::fence::Fence;
use super::handoff::{HANDOFF, append_state, handoff_at, state_of};
use super::inventory::Topology;
use super::kernel::{
    DMA_FLOOR, Failure, Kernel, Patience, Unit, copy_in, copy_out, failure, unit_parts,
};
use super::launch::{clear_interrupts, function_number};
use super::processors::{self, Role};
use super::remapping::Remapping;
use super::undo::claim;
use super::{devices, domain_of, own_devices, reserved, serving};
use crate::mark::{RECLAIM, RECLAIMED, mark};
use crate::paging::Access;
use crate::{clock, mmio, println};

/// How long an old kernel's processor may take to park, in microseconds.
const PARK: u32 = 5_000_000;

/// Takes up stewardship and adopts the remapping unit, which translates and remaps all the while.
pub fn take_up(kernel: &mut Kernel) -> Result<(), Failure> {
    let begin = clock::now();
    kernel.steward = Some(Steward::take_up(kernel.ledger, kernel.me)?);
    let at = handoff_at(kernel, kernel.me);
    let range = PhysRange::new(at, HANDOFF)?;
    // SAFETY: the window maps the baton.
    let copy = unsafe { copy_out(range) };
    let handoff = Handoff::parse(&copy, at, &kernel.config.speaks)?;
    kernel.swaps = serving::swaps();
    let record = state_of(&handoff)?;
    // SAFETY: the window maps the baton.
    let bytes = unsafe { copy_out(kernel.baton.capture) };
    let captured = Capture::parse(&bytes)?;
    let topology = Topology::scan(kernel, &captured)?;
    let remapping = Remapping::needed(&captured)?;
    if remapping.unit()?.kind != record.kind() {
        return Err(failure!("the handoff's unit is not of the machine's kind"));
    }
    // SAFETY: the captured tables name the window, just mapped; the arena is the baton's, and
    // this kernel is the steward now.
    let (registers, memory, timer) = unsafe { unit_parts(kernel.unit_window, kernel.baton.iommu) };
    let view = LedgerView::new(kernel.ledger)?;
    let unit = Unit::adopt(
        registers,
        memory,
        timer,
        kernel.unit_window,
        kernel.baton.iommu,
        &record,
        Config::default(),
        |reach| {
            let allowed = allowed(&view, &remapping, &topology, reach);
            if !allowed {
                println!("@disallowed text=\"{reach}\"");
            }
            allowed
        },
    )?;
    kernel.unit = Some(Fence::Own(unit));
    kernel.faults.taken_over();
    println!(
        "@took-up partition={} swap={} ns={}",
        kernel.me,
        kernel.swaps,
        clock::now() - begin
    );
    Ok(())
}

/// Whether what the tables allow is what the ledger allows: a device reaches its owner's memory and
/// what firmware reserves for its owner's devices,
/// and interrupts go to processors of whoever runs its owner.
fn allowed(
    view: &LedgerView<'_>,
    remapping: &Remapping<'_>,
    topology: &Topology,
    reach: &Reach,
) -> bool {
    let functions = |requester: RequesterId| {
        topology
            .endpoints()
            .filter(move |&function| topology.requesters(function).contains(&requester))
    };
    let owner_of = |requester: RequesterId| {
        functions(requester)
            .next()
            .and_then(|function| view.find(resource::FUNCTION, function_number(function), 1))
            .map(|entry| entry.word.owner)
    };
    match *reach {
        Reach::Memory {
            requester: Some(requester),
            memory,
            ..
        } => owner_of(requester).is_some_and(|owner| {
            covers(view, owner, memory) || keeps(view, remapping, topology, owner, memory)
        }),
        // Nobody reaches a domain without devices.
        Reach::Memory {
            requester: None, ..
        } => true,
        Reach::Interrupt { source, target, .. } => {
            let runs = match owner_of(source) {
                Some(Owner::Workload(id)) => view
                    .find(resource::WORKLOAD, id.0.into(), 1)
                    .map(|entry| entry.word.owner),
                other => other,
            };
            let destination = view
                .find(resource::CPU, target.destination.0.into(), 1)
                .map(|entry| entry.word.owner);
            runs.is_some() && destination == runs
        }
        _ => false,
    }
}

/// Whether firmware has all of this memory reserved for devices of an owner: whatever is in one
/// domain reaches it alike.
fn keeps(
    view: &LedgerView<'_>,
    remapping: &Remapping<'_>,
    topology: &Topology,
    owner: Owner,
    memory: PhysRange,
) -> bool {
    let theirs: Vec<_> = topology
        .endpoints()
        .filter(|&function| {
            view.find(resource::FUNCTION, function_number(function), 1)
                .is_some_and(|entry| entry.word.owner == owner)
        })
        .collect();
    reserved::of(remapping, topology, &theirs)
        .iter()
        .any(|range| range.contains_range(memory))
}

/// Whether the owner has all of this memory, in as many entries as it takes.
fn covers(view: &LedgerView<'_>, owner: Owner, memory: PhysRange) -> bool {
    let mut at = memory.base();
    while at < memory.end() {
        let next = view
            .owned_by(owner)
            .filter_map(|entry| entry.range())
            .find(|range| range.contains(at));
        match next {
            Some(range) => at = range.end(),
            None => return false,
        }
    }
    true
}

/// The handoff for a kernel that has stayed: it knows everything but the unit's record.
pub fn write_return(kernel: &mut Kernel, next: PartitionId) -> Result<(), Failure> {
    let state = kernel
        .unit()?
        .record()?
        .ok_or_else(|| failure!("the remapping unit was not taken over"))?;
    let at = handoff_at(kernel, next);
    let mut buffer = [0_u8; HANDOFF as usize];
    let epoch = kernel.view().map_or(0, |view| view.stewardship().epoch);
    let mut writer = Writer::new(
        &mut buffer,
        Envelope {
            version: kernel.version,
            self_address: at,
            features: kernel.config.speaks.features,
            required: Features::empty(),
            epoch: epoch.into(),
            writer: kernel.me,
            reader: next,
            swaps: kernel.swaps,
        },
    )?;
    append_state(&mut writer, &state)?;
    let blob = writer.finish();
    // SAFETY: the place is the reader's part of the handoff extent; it reads it after the commit.
    unsafe { copy_in(at, blob) };
    Ok(())
}

/// Takes everything over from the kernel that was prime and has retired: every processor, every
/// page, every device, every singleton.
pub fn reclaim(kernel: &mut Kernel) -> Result<(), Failure> {
    let old = kernel
        .prime
        .ok_or_else(|| failure!("there is nobody to reclaim from"))?;
    mark::<RECLAIM>();
    let begin = clock::now();
    let me = kernel.owner();
    let cpus = kernel.cpus_of(Owner::Partition(old));
    for &cpu in &cpus {
        let proof = kernel.park.confirm(cpu, PARK, &mut Patience::default())?;
        kernel.steward()?.release_cpu(proof, me)?;
        claim(kernel, cpu)?;
        let works = processors::works(cpu);
        println!("@claimed cpu={cpu} works={works}");
        if !works {
            return Err(failure!("processor {cpu} does not work"));
        }
    }
    let functions: Vec<PciFunction> = kernel
        .view()
        .into_iter()
        .flat_map(|view| view.owned_by(Owner::Partition(old)))
        .filter(|entry| entry.kind == resource::FUNCTION)
        .map(|entry| PciFunction {
            segment: 0,
            requester: RequesterId(entry.base as u16),
        })
        .collect();
    let memory = kernel.memory_of(Owner::Partition(old));
    kernel.steward()?.inherit(old, me)?;
    let bytes = take_memory(kernel, &memory)?;
    take_devices(kernel, old, &memory, &functions)?;
    kernel.steward()?.join()?;
    kernel.prime = None;
    mark::<RECLAIMED>();
    if let Some(watch) = partition_core::watch::Watch::join(kernel.exchange, old) {
        watch.clear();
    }
    println!(
        "@reclaimed cpus={} bytes={bytes} devices={} ns={}",
        cpus.len(),
        functions.len(),
        clock::now() - begin
    );
    unreclaimed(kernel);
    consolidate(kernel);
    Ok(())
}

/// Maps what the old kernel had, writes each page and reads it back, and adds it to what is free.
fn take_memory(kernel: &mut Kernel, memory: &[PhysRange]) -> Result<u64, Failure> {
    let mut bytes = 0;
    for &range in memory {
        kernel.map(range, Access::Data)?;
        let frames = range.base().0..range.end().0;
        for frame in frames.step_by(4096) {
            let word = mmio::pointer(PhysAddr(frame)).cast::<u64>();
            // SAFETY: just mapped; the old kernel's processors are proved stopped, so nobody else
            // uses the memory, and what is there is put back.
            let kept = unsafe { word.read_volatile() };
            let pattern = frame ^ 0xa5a5_5a5a_c3c3_3c3c;
            // SAFETY: as above.
            unsafe { word.write_volatile(pattern) };
            // SAFETY: as above.
            let back = unsafe { word.read_volatile() };
            // SAFETY: as above.
            unsafe { word.write_volatile(kept) };
            if back != pattern {
                return Err(failure!(
                    "the page at {frame:#x} does not keep what is written to it"
                ));
            }
        }
        bytes += range.length();
        kernel.memory.add(range);
    }
    let modules = kernel.modules;
    kernel.memory.reserve(modules);
    Ok(bytes)
}

/// The old kernel's devices go into this kernel's domain, and their interrupts to this kernel.
fn take_devices(
    kernel: &mut Kernel,
    old: PartitionId,
    memory: &[PhysRange],
    functions: &[PciFunction],
) -> Result<(), Failure> {
    let mine = kernel.domain;
    for &range in memory {
        if range.end().0 > DMA_FLOOR {
            kernel.map_dma(mine, range)?;
        }
    }
    // SAFETY: the window maps the baton.
    let bytes = unsafe { copy_out(kernel.baton.capture) };
    let captured = Capture::parse(&bytes)?;
    let topology = Topology::scan(kernel, &captured)?;
    let remapping = Remapping::needed(&captured)?;
    reserved::map(
        kernel,
        mine,
        &reserved::of(&remapping, &topology, functions),
    )?;
    let mut requesters = Vec::new();
    devices::quiesce(functions)?;
    let pending = clear_interrupts(kernel, functions)?;
    for &function in functions {
        for requester in topology.requesters(function) {
            if !requesters.contains(&requester) {
                requesters.push(requester);
            }
        }
    }
    kernel
        .unit()?
        .move_devices(&requesters, Some(mine), pending)?;
    kernel.faults.forget(&requesters);
    let theirs = domain_of(old);
    if kernel.unit()?.domain_ids().any(|id| id == theirs) {
        kernel.unit()?.destroy_domain(theirs)?;
    }
    kernel.functions.extend(functions.iter().copied());
    own_devices::set_aside_all(kernel)?;
    own_devices::take_up(kernel)
}

/// Bytes of AMD-Vi's device tables in the unit's arena; VT-d's are no longer than the buses that there
/// are.
fn device_tables(kernel: &Kernel) -> u64 {
    match kernel.unit_kind {
        Some(UnitKind::AmdVi) => 2 * DeviceTableBase::FRAMES * FRAME_SIZE,
        _ => 0,
    }
}

/// What is not this kernel's, and why.
fn unreclaimed(kernel: &Kernel) {
    let Some(view) = kernel.view() else {
        return;
    };
    for entry in view
        .entries()
        .filter(|entry| entry.kind == resource::MEMORY)
    {
        let (what, why) = match entry.word.owner {
            Owner::Firmware => ("firmware", "firmware"),
            Owner::Baton => ("baton", "carried from kernel to kernel"),
            Owner::Quarantined => ("quarantined", "could not be proved released"),
            Owner::Workload(_) => ("workload", "the workload's, which is served"),
            Owner::Partition(partition) if partition == kernel.me => continue,
            Owner::Partition(_) | Owner::Parked => ("partition", "another partition's"),
        };
        let mut length = entry.length;
        // The length of these is the architecture's, whatever the machine has.
        let tables = device_tables(kernel);
        let iommu = kernel.baton.iommu.base().0;
        if tables > 0 && (entry.base..entry.base + length).contains(&iommu) {
            println!(
                "@unreclaimed what=device-tables base={iommu:#x} bytes={tables} why=\"an entry for each requester id, in the table that the unit reads and in one for a move\""
            );
            length = length.saturating_sub(tables);
        }
        println!(
            "@unreclaimed what={what} base={:#x} bytes={length} why=\"{why}\"",
            entry.base
        );
    }
    println!(
        "@owned devices={} processors={}",
        own_devices::count(),
        processors::present().count()
    );
}

/// The bootstrap processor takes the control role, so that any other can be given away, and the
/// interrupts of this kernel's devices go there.
fn consolidate(kernel: &mut Kernel) {
    let bootstrap = kernel.bootstrap;
    let now = crate::cpu::apic_id();
    if now == bootstrap || processors::role(bootstrap) != Role::Idle {
        return;
    }
    for handle in &mut kernel.handles {
        let source = handle.function.requester;
        if handle.destination == now && handle.vector != u32::from(super::NIC_VECTOR) {
            let target = InterruptTarget {
                destination: bootstrap,
                vector: handle.vector as u8,
            };
            if let Some(unit) = kernel.unit.as_mut()
                && let Ok(pending) =
                    unit.retarget(unit.interrupt_handle(source, handle.handle), target)
                && unit.flush(pending).is_ok()
            {
                handle.destination = bootstrap;
            }
        }
    }
    processors::assign(now, Role::Idle);
    processors::assign(bootstrap, Role::Control);
}
