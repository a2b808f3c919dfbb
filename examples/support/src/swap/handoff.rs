//! The handoff of a successor, written into its place in the baton.

use handoff_abi::{
    AmdViState, Clock, Console, Cpu, Domain, Ecam, Envelope, Exchange, Extent, FRAME_SIZE,
    Features, Function, Handoff, InterruptHandle, InterruptTarget, Memory, Owner, PartitionId,
    PciFunction, PhysAddr, PhysRange, Platform, VtdUnit, Writer, memory, purpose, resource,
};
use iommu::State;
use partition_core::plan::Plan;

use super::command_line;
use super::kernel::{Failure, Kernel, copy_in, failure, page_of};
use super::spoil::Spoil;
use crate::clock;

/// Bytes of one handoff's place.
pub const HANDOFF: u64 = 8192;
/// What two of these kernels must be able to do, so that one can follow the other.
pub const REQUIRED: Features = Features::ADOPT_DEVICES;
/// Where a partition's handoff is.
#[must_use]
pub fn handoff_at(kernel: &Kernel, partition: PartitionId) -> PhysAddr {
    let place = Exchange::place(partition) as u64;
    PhysAddr(kernel.baton.handoff.base().0 + place * HANDOFF)
}

/// An interrupt entry as a record of a handoff.
#[must_use]
pub fn handle_record(
    function: PciFunction,
    handle: iommu::InterruptHandle,
    target: InterruptTarget,
    message: u32,
) -> InterruptHandle {
    let written = handle.message();
    InterruptHandle {
        function,
        unit: 0,
        handle: handle.index,
        message_address: written.address,
        message_data: written.data,
        destination: target.destination,
        vector: target.vector.into(),
        message,
    }
}

/// Appends the record of the remapping unit.
pub fn append_state(writer: &mut Writer<'_>, state: &State) -> Result<(), Failure> {
    match state {
        State::VtD(state) => writer.critical(state)?,
        State::AmdVi(state) => writer.critical(state)?,
    }
    Ok(())
}

/// The record of the remapping unit in a handoff.
///
/// # Errors
/// Where there is none.
pub fn state_of(handoff: &Handoff<'_>) -> Result<State, Failure> {
    let vtd = handoff.first::<VtdUnit>().map(State::VtD);
    vtd.or_else(|| handoff.first::<AmdViState>().map(State::AmdVi))
        .ok_or_else(|| failure!("the handoff has no record of the remapping unit"))
}

/// Writes the successor's handoff: before the launch, and again between freeze and commit, when the
/// unit's record is the final one.
/// Returns its length in bytes.
pub fn write_handoff(kernel: &mut Kernel) -> Result<usize, Failure> {
    let state = kernel.unit()?.record()?;
    let launched = kernel
        .successor
        .as_ref()
        .ok_or_else(|| failure!("there is no partition"))?;
    let plan = &launched.plan;
    let at = handoff_at(kernel, launched.partition);
    let epoch = kernel.view().map_or(0, |view| view.stewardship().epoch);
    let mut buffer = [0_u8; HANDOFF as usize];
    let mut writer = Writer::new(
        &mut buffer,
        Envelope {
            version: launched.version,
            self_address: at,
            features: kernel.config.speaks.features,
            required: REQUIRED,
            epoch: epoch.into(),
            writer: kernel.me,
            reader: launched.partition,
            swaps: kernel.swaps,
        },
    )?;
    for extent in kernel.baton.extents() {
        writer.critical(&extent)?;
    }
    let extent = |purpose, range: PhysRange| Extent {
        purpose,
        reserved: 0,
        base: range.base(),
        length: range.length().next_multiple_of(FRAME_SIZE),
    };
    if let Some(page) = plan.trampoline() {
        writer.critical(&extent(purpose::TRAMPOLINE, page_of(page)))?;
    }
    writer.optional(&extent(purpose::MODULES, kernel.modules))?;
    for &cpu in plan.cpus() {
        writer.critical(&Cpu {
            apic_id: cpu,
            acpi_uid: cpu.0,
        })?;
    }
    let entry = |range: PhysRange, kind| Memory {
        base: range.base(),
        length: range.length(),
        kind,
        reserved: 0,
    };
    writer.critical(&entry(launched.loaded, memory::LOADED))?;
    for &range in plan.memory() {
        let rest = if range.base() == launched.loaded.base() {
            PhysRange::from_bounds(launched.loaded.end(), range.end())
        } else {
            range
        };
        writer.critical(&entry(rest, 1))?;
    }
    for planned in plan.functions() {
        writer.critical(&Function {
            function: planned.function,
            domain: launched.domain,
            workload: 0,
            reserved: 0,
        })?;
    }
    // What serves this kernel's own devices is none of the successor's business.
    let shared = kernel
        .handles
        .iter()
        .filter(|handle| !kernel.functions.contains(&handle.function));
    for handle in launched.handles.iter().chain(shared) {
        writer.critical(handle)?;
    }
    writer.critical(&launched.firmware)?;
    // A host's unit has none before it is taken over, which is when the service is.
    if let Some(state) = state {
        append_state(&mut writer, &state)?;
    }
    writer.critical(&kernel.workload)?;
    writer.critical(&Domain {
        domain: launched.domain,
        reserved: 0,
        owner: Owner::Partition(launched.partition).to_wire(),
    })?;
    writer.critical(&console_of(plan))?;
    writer.critical(&Clock {
        tsc_hertz: clock::hertz(),
    })?;
    for bus in plan.buses() {
        writer.critical(&Ecam {
            base: PhysAddr(bus.ecam.base().0 - (u64::from(bus.bus) << 20)),
            segment: bus.segment,
            first_bus: bus.bus,
            last_bus: bus.bus,
            reserved: 0,
        })?;
    }
    writer.critical(&Platform {
        bootstrap: kernel.bootstrap,
        reserved: 0,
    })?;
    writer.append(command_line::KIND, 0, launched.command_line.as_bytes())?;
    let spoil = Spoil::of(&launched.command_line);
    spoil.append(&mut writer)?;
    let length = writer.finish().len();
    let length = spoil.spoil(&mut buffer, length, launched.version)?;
    let blob = buffer.get(..length).unwrap_or(&[]);
    // SAFETY: the place is the reader's part of the handoff extent; nobody reads it before the
    // launch, and between freeze and commit only after the commit.
    unsafe { copy_in(at, blob) };
    Ok(length)
}

fn console_of(plan: &Plan) -> Console {
    let port = if plan.singletons().contains(&resource::UART_0) {
        0x3f8
    } else {
        0x2f8
    };
    Console {
        port,
        baud: 115_200,
    }
}
