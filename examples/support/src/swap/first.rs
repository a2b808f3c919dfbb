//! The first kernel: from the firmware's machine to one with a baton, a ledger and a fence.

use alloc::boxed::Box;
use alloc::vec::Vec;

use acpi_capture::memory::{MemoryKind, MemoryRegion};
use acpi_capture::{Capture, CaptureRequest, ReadPhys, capture};
use handoff_abi::{
    ApicId, Console, Exchange, FRAME_SIZE, InterruptHandle, InterruptTarget, Ledger, Owner,
    PartitionId, PciFunction, PhysAddr, PhysRange, UnitKind, Workload as WorkloadRecord,
    WorkloadId, resource,
};
use iommu::{Access as DmaAccess, HostManaged};
use partition_core::baton::{Baton, Sizes};
use partition_core::ledger::Steward;
use partition_core::park::{self, ParkArea};
use partition_core::trampoline::Trampoline;
use partition_core::watch::OwnStatus;

use super::bring_up::{Start, bring_up, set_clock};
use super::command_line::option;
use super::faults::Faults;
use super::fence::Fence;
use super::handoff::handle_record;
use super::host::HostVtd;
use super::inventory::{Bridge, Topology};
use super::kernel::{
    Config, Failure, KERNEL, Kernel, Patience, Unit, dma_pieces, failure, page_of, shared,
    unit_parts,
};
use super::launch::{function_number, timing};
use super::misbehave::Misbehaviour;
use super::processors::{self, Role};
use super::remapping::{Remapping, arena_length, vendor};
use super::{WORKLOAD_DOMAIN, devices, domain_of, own_devices, plug, reserved, serving, work};
use crate::boot::{BootInfo, Image, LOAD_OFFSET};
use crate::memory::Carver;
use crate::paging::Access;
use crate::{apic, clock, mmio, pci, println};

/// Who boots first.
const FIRST: PartitionId = PartitionId(1);
/// Room for all of the baton but the tables of the remapping unit.
const BATON: u64 = 512 << 10;
/// Bytes for what is captured of firmware.
const CAPTURE: u64 = 96 << 10;
/// Where the first kernel starts its processors from.
const TRAMPOLINE: PhysAddr = PhysAddr(0x8000);
const FOUR_GIB: u64 = 1 << 32;
/// Bytes for the tables of this kernel's own driver of the unit, where it has one.
const HOST_POOL: u64 = 2 << 20;

/// Reads firmware's tables through the window.
struct Window<'a>(&'a BootInfo);

impl ReadPhys for Window<'_> {
    type Error = PhysAddr;

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), PhysAddr> {
        for (offset, byte) in (0_u64..).zip(into) {
            let address = at.checked_add(offset).ok_or(at)?;
            let mut known = self.0.memory().iter();
            if !known.any(|region| region.range.contains(address)) {
                return Err(address);
            }
            // SAFETY: the window maps all regions of the map.
            *byte = unsafe { mmio::pointer(address).read_volatile() };
        }
        Ok(())
    }
}

/// Memory as bytes.
///
/// # Safety
/// The memory is mapped, holds bytes, and nobody else uses it as long as the slice is used.
unsafe fn bytes_at(range: PhysRange) -> &'static mut [u8] {
    let at = mmio::pointer(range.base());
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), range.length() as usize) }
}

/// Boots: the machine is this kernel's alone.
///
/// # Errors
/// Where the machine is not one that can be shared; the sentence says why.
///
/// # Safety
/// Called once, from the entry, with what the boot loader passed.
pub unsafe fn boot(config: &'static Config, info: &BootInfo) -> Result<(), Failure> {
    let image = Image::own();
    let physical = PhysAddr(image.start - LOAD_OFFSET);
    let image_range = PhysRange::from_bounds(physical, PhysAddr(image.end - LOAD_OFFSET));
    let mut free = Carver::new();
    info.usable().for_each(|range| free.add(range));
    free.reserve(image_range);
    free.reserve(info.structure);
    for &module in &info.modules {
        free.reserve(module);
    }
    // How large the baton is depends on the machine. So firmware is captured first, and what was
    // captured is carried into the baton.
    let kept = free
        .take(CAPTURE, FRAME_SIZE, FOUR_GIB)
        .ok_or_else(|| failure!("no room for firmware's tables"))?;
    // SAFETY: just taken out of free memory, which the boot tables map, and it holds bytes.
    let buffer = unsafe { bytes_at(kept) };
    let request = CaptureRequest::new(info.rsdp, info.smbios);
    let summary = capture(&Window(info), &request, buffer)?;
    let sizes = Sizes {
        handoff: 64 << 10,
        capture: CAPTURE,
        filtered: 64 << 10,
        iommu: arena_length(&Capture::parse(buffer)?)?,
    };
    let room = free
        .take(BATON + sizes.iommu, park::ALIGNMENT, FOUR_GIB)
        .ok_or_else(|| failure!("no room for the baton"))?;
    let baton = Baton::lay_out(room, &sizes)?;
    let workload = free
        .take(work::length(), 2 << 20, FOUR_GIB)
        .ok_or_else(|| failure!("no room for the workload"))?;

    let mut start = Start::default();
    let _ = start.window.push((kept, Access::Data));
    for &range in free.free() {
        let _ = start.free.push(range);
    }
    for &MemoryRegion { range, kind } in info.memory() {
        // Firmware's own, and registers: SeaBIOS keeps the ACPI tables in such a range.
        let access = match kind {
            MemoryKind::Usable | MemoryKind::AcpiReclaimable | MemoryKind::AcpiNvs => Access::Data,
            _ => Access::Device,
        };
        if range.end().0 <= FOUR_GIB {
            let _ = start.window.push((range, access));
        }
    }
    let _ = start.identity.push(page_of(TRAMPOLINE));
    let _ = start.identity.push(baton.park);
    // SAFETY: firmware's memory map says what is free; the image lies where it was loaded.
    let footing = unsafe { bring_up(config, physical, &start) }?;
    // SAFETY: every PC has the two 8259s, and nobody else runs yet.
    unsafe { apic::mask_8259() };
    for MemoryRegion { range, kind } in info.memory() {
        println!("memory {range}: {kind}");
    }

    // From here on what was captured is read only from the baton.
    // SAFETY: the window maps it, nobody else knows of it, and it holds bytes.
    let from = unsafe { bytes_at(kept) };
    // SAFETY: as above; it is the baton's.
    let buffer = unsafe { bytes_at(baton.capture) };
    for (to, &from) in buffer.iter_mut().zip(&*from) {
        *to = from;
    }
    let captured = Capture::parse(buffer)?;
    println!(
        "@captured tables={} bad_checksum={} skipped={} bytes={}",
        summary.sound, summary.bad_checksum, summary.skipped, summary.length
    );
    let fadt = captured
        .fadt()
        .ok_or_else(|| failure!("there is no FADT"))??;
    let port = u16::try_from(fadt.pm_timer()).unwrap_or(0);
    // SAFETY: the port is the FADT's.
    let hertz = unsafe { clock::calibrate(port) };
    set_clock(hertz.ok_or_else(|| failure!("the power management timer does not run"))?);

    // SAFETY: the baton is mapped, nobody else knows of it, and the areas begin at page boundaries.
    let ledger: &'static Ledger = unsafe { shared(baton.ledger) };
    // SAFETY: as above.
    let exchange: &'static Exchange = unsafe { shared(baton.exchange) };
    let mapped = mmio::pointer(baton.park.base());
    // SAFETY: the area is mapped through the window for good, and nobody is in it.
    let park = unsafe { ParkArea::install(mapped, baton.park.base()) }?;
    let bootstrap = crate::cpu::apic_id();
    // SAFETY: the page is free low memory, mapped, and no processor is in it.
    let trampoline =
        unsafe { Trampoline::install(mmio::pointer(TRAMPOLINE), TRAMPOLINE, bootstrap, timing()) }?;
    let status = OwnStatus::new(exchange, FIRST).ok_or_else(|| failure!("there is no place"))?;
    let modules = info
        .modules
        .first()
        .copied()
        .unwrap_or(PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)));
    let mut kernel = Kernel {
        config,
        me: FIRST,
        version: config.speaks.newest,
        baton,
        ledger,
        exchange,
        status,
        park,
        trampoline,
        trampoline_page: TRAMPOLINE,
        bootstrap,
        space: footing.space,
        frames: footing.frames,
        memory: footing.memory,
        steward: Some(Steward::format(ledger, FIRST)),
        unit: None,
        unit_window: PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)),
        unit_kind: None,
        faults: Faults::default(),
        domain: domain_of(FIRST),
        workload: WorkloadRecord {
            id: WorkloadId(1),
            domain: WORKLOAD_DOMAIN,
            ledger_slot: 0,
            base: workload.base(),
            length: workload.length(),
            layout: work::LAYOUT,
            layout_version: work::LAYOUT_VERSION,
        },
        functions: Vec::new(),
        handles: Vec::new(),
        successor: None,
        launches: FIRST.0,
        prime: None,
        modules,
        swaps: 0,
        console: Console {
            port: 0x3f8,
            baud: 115_200,
        },
        service_cpu: ApicId(0),
        held: false,
        misbehaviour: Misbehaviour::default(),
    };
    kernel.memory.add(kept);
    processors::init(park);
    if option(info.command_line(), "plug") == Some("operator") {
        plug::by_operator(&mut kernel, &captured)?;
    }
    let topology = Topology::scan(&mut kernel, &captured)?;
    // These kernels use messages only. What stays then disturbs nobody on a line that it shares.
    if option(info.command_line(), "intx") != Some("firmware") {
        topology.functions().for_each(devices::disable_intx);
    }
    fill_ledger(&mut kernel, info, &captured, &topology, workload)?;
    fence(
        &mut kernel,
        info.command_line(),
        &captured,
        &topology,
        workload,
    )?;
    start_processors(&mut kernel)?;
    kernel.functions = topology
        .endpoints()
        .filter(|&function| !topology.is_nic(function))
        .collect();
    own_devices::set_aside_all(&mut kernel)?;
    own_devices::take_up(&mut kernel)?;
    serving::init(serving::Shared {
        ledger,
        exchange,
        me: FIRST,
    });
    work::create(&mut kernel, workload)?;
    processors::assign(kernel.service_cpu, Role::Service);
    super::control::announce(&kernel);
    let me = bootstrap;
    *KERNEL.lock() = Some(Box::new(kernel));
    processors::run_first(me, Role::Control)
}

/// Every resource of the machine gets its owner.
fn fill_ledger(
    kernel: &mut Kernel,
    info: &BootInfo,
    captured: &Capture<'_>,
    topology: &Topology,
    workload: PhysRange,
) -> Result<(), Failure> {
    let me = kernel.owner();
    let baton = kernel.baton.extents();
    let madt = captured
        .madt()
        .ok_or_else(|| failure!("there is no MADT"))??;
    let workload_id = kernel.workload.id;
    let unit = kernel.unit_window;
    let steward = kernel.steward()?;
    for cpu in madt.processors() {
        steward.add(resource::CPU, cpu.apic_id.0.into(), 1, me)?;
    }
    for &MemoryRegion { range, kind } in info.memory() {
        let owner = if kind == MemoryKind::Usable {
            me
        } else {
            Owner::Firmware
        };
        steward.add(resource::MEMORY, range.base().0, range.length(), owner)?;
    }
    let parts = baton
        .iter()
        .map(|extent| (PhysRange::new(extent.base, extent.length), Owner::Baton))
        .chain([(Ok(workload), Owner::Workload(workload_id))]);
    for (part, owner) in parts {
        let part = part?;
        let slot = steward
            .view()
            .find(resource::MEMORY, part.base().0, part.length())
            .ok_or_else(|| failure!("memory {part} is in no range of the map"))?
            .slot;
        let slot = steward.split(slot, part)?;
        steward.transfer(slot, owner)?;
    }
    for function in topology.endpoints() {
        let owner = if topology.is_nic(function) {
            Owner::Workload(workload_id)
        } else {
            me
        };
        steward.add(resource::FUNCTION, function_number(function), 1, owner)?;
    }
    for singleton in [
        resource::UART_0,
        resource::UART_1,
        resource::RESET,
        resource::INTERRUPT_CONTROLLERS,
        resource::RTC,
        resource::ACPI_FIXED_HARDWARE,
        resource::PCI_BRIDGES,
        resource::PCI_CONFIG_PORTS,
    ] {
        steward.add(resource::SINGLETON, singleton, 1, me)?;
    }
    if !unit.is_empty() {
        steward.add(
            resource::REMAPPING_UNIT,
            unit.base().0,
            unit.length(),
            Owner::Baton,
        )?;
    }
    // An AMD-Vi unit is a function as well.
    let own = Remapping::of(captured)?
        .map(|remapping| remapping.unit())
        .transpose()?
        .and_then(|unit| Some((unit.segment, unit.amd_vi?.function)));
    if let Some((segment, requester)) = own {
        let function = PciFunction { segment, requester };
        steward.add(
            resource::FUNCTION,
            function_number(function),
            1,
            Owner::Baton,
        )?;
    }
    let slot = steward.add(resource::WORKLOAD, workload_id.0.into(), 1, me)?;
    kernel.workload.ledger_slot = slot.into();
    Ok(())
}

/// The unit on: the NIC reaches the workload's memory, this partition's devices its own, and every
/// other device nothing.
fn fence(
    kernel: &mut Kernel,
    line: &str,
    captured: &Capture<'_>,
    topology: &Topology,
    workload: PhysRange,
) -> Result<(), Failure> {
    let endpoints: Vec<_> = topology.endpoints().collect();
    devices::quiesce(&endpoints)?;
    devices::isolate(topology.functions())?;
    if let Some(io_apic) = captured
        .madt()
        .and_then(Result::ok)
        .and_then(|madt| madt.io_apics().next())
    {
        kernel.map(page_of(io_apic.address), Access::Device)?;
        // SAFETY: just mapped, and firmware says that it is one.
        unsafe { apic::mask_io_apic(io_apic.address) };
    }
    let Some(remapping) = Remapping::of(captured)? else {
        println!("@unfenced text=\"there is no remapping unit, and nothing to give away\"");
        return Ok(());
    };
    // SAFETY: firmware's table names the window, just mapped by `Topology::scan`; the arena is the
    // baton's and nobody else's.
    let (registers, memory, timer) = unsafe { unit_parts(kernel.unit_window, kernel.baton.iommu) };
    let endpoints: Vec<_> = topology.endpoints().collect();
    let limit = reserved::of(&remapping, topology, &endpoints)
        .iter()
        .chain(kernel.memory_of(kernel.owner()).last())
        .map(|range| range.end().0)
        .max()
        .unwrap_or(FOUR_GIB);
    let unit = Unit::prepare(
        registers,
        memory,
        timer,
        &remapping.unit()?,
        kernel.baton.iommu,
        remapping.config(limit)?,
    )?;
    let pool = if option(line, "iommu") == Some("host") {
        host_pool(kernel)?
    } else {
        PhysRange::from_bounds(PhysAddr(0), PhysAddr(0))
    };
    kernel.unit = Some(if pool.is_empty() {
        Fence::Own(unit)
    } else {
        hosted(kernel, unit, pool)?
    });
    let mine = kernel.domain;
    kernel.unit()?.create_domain(WORKLOAD_DOMAIN)?;
    kernel.unit()?.create_domain(mine)?;
    for piece in dma_pieces(workload) {
        let unit = kernel.unit()?;
        let pending = unit.map(
            WORKLOAD_DOMAIN,
            piece.base().0,
            piece,
            DmaAccess::READ_WRITE,
        )?;
        unit.flush(pending)?;
    }
    for range in kernel.memory_of(kernel.owner()) {
        // No device reaches the tables that it is fenced by.
        let before =
            PhysRange::from_bounds(range.base(), pool.base().clamp(range.base(), range.end()));
        let after =
            PhysRange::from_bounds(pool.end().clamp(range.base(), range.end()), range.end());
        for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
            kernel.map_dma(mine, part)?;
        }
    }
    for bridge in topology.fenced(&remapping) {
        let Bridge {
            function,
            requesters,
        } = bridge;
        let domain = if topology.is_nic(function) {
            WORKLOAD_DOMAIN
        } else {
            mine
        };
        let reserved = reserved::of(&remapping, topology, &[function]);
        reserved::map(kernel, domain, &reserved)?;
        for requester in requesters {
            if kernel.unit()?.domain_of(requester).is_none() {
                let unit = kernel.unit()?;
                let pending = unit.attach_reserved(requester, domain, &reserved)?;
                unit.flush(pending)?;
            }
        }
    }
    kernel.unit()?.enable()?;
    println!(
        "@fenced vendor={} unit={:#x} arena_free={} host={}",
        vendor(kernel.unit()?.kind()),
        kernel.unit_window.base().0,
        kernel.unit()?.free_frames(),
        if pool.is_empty() { "no" } else { "yes" }
    );
    Ok(())
}

/// Memory for the tables of this kernel's own driver.
fn host_pool(kernel: &mut Kernel) -> Result<PhysRange, Failure> {
    kernel
        .memory
        .take(HOST_POOL, HOST_POOL, FOUR_GIB)
        .ok_or_else(|| failure!("no room for the host's tables"))
}

/// The unit under this kernel's own driver, with Baton's tables beside it.
fn hosted(kernel: &Kernel, unit: Unit, pool: PhysRange) -> Result<Fence, Failure> {
    if unit.kind() != UnitKind::VtD {
        return Err(failure!("this kernel's own driver knows VT-d alone"));
    }
    let window = kernel.unit_window;
    // SAFETY: the window was mapped by `Topology::scan`; this driver has it alone, for the tables
    // beside it are not in force, and when they are it does nothing any more.
    let registers = unsafe { mmio::Mmio::new(window.base(), window.length() as usize) };
    // SAFETY: the pool was just taken from this kernel's free memory, which the window maps, and is
    // not given back.
    let host = unsafe { HostVtd::new(registers, pool) }.map_err(|error| failure!("{error}"))?;
    HostManaged::new(host, unit)
        .map(Fence::Host)
        .map_err(|_| failure!("the tables are in force already"))
}

/// Gives a function's messages interrupt entries that go to a processor of this kernel.
pub fn set_aside(
    kernel: &mut Kernel,
    function: PciFunction,
    messages: u16,
    target: InterruptTarget,
) -> Result<(), Failure> {
    for message in 0..messages {
        let record = match kernel.unit.as_mut() {
            Some(unit) => {
                let (handle, pending) = unit.allocate_interrupt(function.requester, target)?;
                unit.flush(pending)?;
                handle_record(function, handle, target, message.into())
            }
            None => unfenced(function, target, message),
        };
        kernel.handles.push(record);
    }
    Ok(())
}

/// Where there is no remapping: the message goes straight to the processor.
fn unfenced(function: PciFunction, target: InterruptTarget, message: u16) -> InterruptHandle {
    let (address, data) = pci::message(target.destination, target.vector);
    InterruptHandle {
        function,
        unit: u16::MAX,
        handle: 0,
        message_address: address,
        message_data: data,
        destination: target.destination,
        vector: target.vector.into(),
        message: message.into(),
    }
}

/// All processors come up; one of them serves, the rest are idle.
fn start_processors(kernel: &mut Kernel) -> Result<(), Failure> {
    let bootstrap = kernel.bootstrap;
    let mut cpus = kernel.cpus_of(kernel.owner());
    cpus.retain(|&cpu| cpu != bootstrap);
    for &cpu in &cpus {
        start(kernel, cpu)?;
    }
    kernel.service_cpu = cpus
        .first()
        .copied()
        .ok_or_else(|| failure!("one processor is not enough"))?;
    Ok(())
}

/// Starts a processor of this kernel by INIT and start-up.
pub fn start(kernel: &mut Kernel, cpu: ApicId) -> Result<(), Failure> {
    let root = kernel.space.root().0;
    let state = processors::start_state(cpu, root)
        .ok_or_else(|| failure!("there is no place for processor {cpu}"))?;
    // SAFETY: this kernel's tables map the trampoline at its physical address; the stack is the
    // processor's own; the processor is this kernel's.
    unsafe {
        kernel.trampoline.start(
            cpu,
            &state,
            &kernel.park,
            &mut processors::ipi(),
            &mut Patience::default(),
        )
    }?;
    if !processors::has_come(cpu) {
        return Err(failure!("processor {cpu} arrived and did not come up"));
    }
    Ok(())
}
