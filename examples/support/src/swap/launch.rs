//! The prime's way from a request to a successor that is ready, each step with its undo.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use handoff_abi::{
    AbiVersion, ApicId, Clock, Console, Cpu, Domain, DomainId, Ecam, Envelope, Extent, FRAME_SIZE,
    Features, Firmware, Function, InterruptHandle, InterruptTarget, Memory, Owner, PartitionId,
    PciFunction, PhysAddr, PhysRange, Platform, RequesterId, Writer, purpose, resource, state,
};
use iommu::vtd::{self, Pending};
use partition_core::cpu::StartState;
use partition_core::image::paging::{self, Caching, Identity, TableFrames};
use partition_core::image::{Access as ImageAccess, Image, WritePhys};
use partition_core::plan::{Findings, Plan, plan};
use partition_core::trampoline::{Timing, Trampoline};
use partition_core::watch::Watch;

use super::inventory::{Inventory, Wish};
use super::kernel::{Failure, Kernel, Timer, copy_in, failure, page_of, zero};
use super::processors::{self, Role};
use super::{command_line, devices, filtered, modules, own_devices};
use crate::{apic, clock, mmio, println};

/// How long a successor may take from its launch until it is ready, in microseconds.
const READY: u32 = 15_000_000;
/// How long a processor may take to park.
const PARK: u32 = 2_000_000;
/// Bytes of one handoff's place.
const HANDOFF: u64 = 8192;
/// What a successor of these kernels must be able to do.
const REQUIRED: Features = Features::ADOPT_DEVICES;
/// The vector that a successor is told its functions' interrupts come with, first of several.
const FIRST_VECTOR: u8 = 0x50;
/// The kind of a memory record for what the loader filled: image, tables, stack (an OEM defined
/// type of ACPI 6.5, table 15.5).
pub const LOADED: u32 = 0xf000_0001;

/// How far a launch has come; the undo goes back from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing was touched.
    Planned,
    /// The ledger has the partition's resources.
    Carved,
    /// Its devices are in its domain.
    Fenced,
    /// Its memory is filled.
    Loaded,
    /// Its first processor may run.
    Started,
}

/// A partition that this kernel launches or has launched.
#[derive(Debug)]
pub struct Launched {
    /// Its number.
    pub partition: PartitionId,
    /// The image's name.
    pub name: String,
    /// What it has.
    pub plan: Plan,
    /// The version its handoff is written in.
    pub version: AbiVersion,
    /// The domain of its devices.
    pub domain: DomainId,
    /// Its interrupt entries.
    pub handles: Vec<InterruptHandle>,
    /// Its place in the exchange.
    pub watch: Option<Watch<'static>>,
    /// How far it is.
    pub stage: Stage,
    /// Its command line.
    pub command_line: String,
    loaded: PhysRange,
    firmware: Firmware,
}

impl Launched {
    /// The processor that is to serve: the last.
    #[must_use]
    pub fn service_cpu(&self) -> ApicId {
        self.plan.cpus().last().copied().unwrap_or(ApicId(0))
    }
}

/// Where a partition's handoff is.
#[must_use]
pub fn handoff_at(kernel: &Kernel, partition: PartitionId) -> PhysAddr {
    let place = handoff_abi::Exchange::place(partition) as u64;
    PhysAddr(kernel.baton.handoff.base().0 + place * HANDOFF)
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let start = clock::now();
    let result = work();
    let passed = clock::now() - start;
    match &result {
        Ok(_) => println!("@step name={name} ns={passed}"),
        Err(error) => println!("@step name={name} ns={passed} failed=yes text=\"{error}\""),
    }
    result
}

/// Prints the plan that a wish comes to, or every reason why there is none.
pub fn dry_run(kernel: &mut Kernel, wish: &Wish<'_>) -> Result<(), Failure> {
    make_plan(kernel, wish).map(drop)
}

fn make_plan(kernel: &mut Kernel, wish: &Wish<'_>) -> Result<Plan, Failure> {
    let inventory = Inventory::take(kernel)?;
    let mut findings = Findings::new();
    let request = wish.request();
    let result = plan(&inventory.machine(kernel), &request, &mut findings);
    for reason in findings.warnings() {
        println!(
            "@warning rule={} resource={} text=\"{reason}\"",
            reason.rule(),
            Word(reason.resource())
        );
    }
    for reason in findings.refusals() {
        println!(
            "@refused rule={} resource={} text=\"{reason}\"",
            reason.rule(),
            Word(reason.resource())
        );
    }
    let plan = result.map_err(|refused| Failure::from_error(refused).refusal())?;
    for cpu in plan.cpus() {
        println!("@plan kind=cpu id={cpu}");
    }
    for range in plan.memory() {
        println!(
            "@plan kind=memory base={:#x} length={:#x}",
            range.base().0,
            range.length()
        );
    }
    for function in plan.functions() {
        println!(
            "@plan kind=function id={} fenced={}",
            function.function, function.fenced
        );
    }
    for bus in plan.buses() {
        println!(
            "@plan kind=bus id={:#x} base={:#x}",
            bus.bus,
            bus.ecam.base().0
        );
    }
    println!(
        "@plan kind=cost table_pages={} ledger_slots={} interrupt_handles={}",
        plan.table_pages(),
        plan.ledger_slots(),
        plan.interrupt_handles()
    );
    Ok(plan)
}

/// A value printed as one word.
struct Word<T>(T);

impl<T: fmt::Display> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in alloc::format!("{}", self.0).chars() {
            let character = if character.is_whitespace() {
                '-'
            } else {
                character
            };
            fmt::Write::write_char(f, character)?;
        }
        Ok(())
    }
}

/// Launches a successor and waits until it is ready. Where that fails, everything is taken back and
/// the machine is as it was.
pub fn launch(kernel: &mut Kernel, name: &str, wish: &Wish<'_>, line: &str) -> Result<(), Failure> {
    if let Some(launched) = &kernel.successor {
        return Err(failure!(
            "partition {} is there already",
            launched.partition
        ));
    }
    let result = try_launch(kernel, name, wish, line);
    if result.is_err() && kernel.successor.is_some() {
        let undone = undo(kernel);
        if let Err(error) = undone {
            println!("@undo result=failed text=\"{error}\"");
        }
    }
    result
}

fn try_launch(kernel: &mut Kernel, name: &str, wish: &Wish<'_>, line: &str) -> Result<(), Failure> {
    let begin = clock::now();
    // SAFETY: the archive is in memory that this kernel owns and nobody writes.
    let archive = unsafe { modules::archive(kernel.modules) };
    let file = modules::find(archive, name)
        .ok_or_else(|| failure!("there is no image '{name}'").refusal())?;
    let image = step("check", || {
        let image = Image::parse(file)?;
        negotiate(kernel, &image)?;
        Ok(image)
    })
    .map_err(Failure::refusal)?;
    let version = negotiate(kernel, &image)?;
    let plan = step("plan", || make_plan(kernel, wish))?;
    let domain = plan
        .domain()
        .ok_or_else(|| failure!("the plan has no domain"))?;
    kernel.launches = plan.partition().0;
    kernel.successor = Some(Launched {
        partition: plan.partition(),
        name: String::from(name),
        plan,
        version,
        domain,
        handles: Vec::new(),
        watch: None,
        stage: Stage::Planned,
        command_line: String::from(line),
        loaded: PhysRange::from_bounds(PhysAddr(0), PhysAddr(0)),
        firmware: Firmware {
            rsdp: PhysAddr(0),
            smbios: PhysAddr(0),
        },
    });
    step("carve", || carve(kernel))?;
    step("fence", || fence(kernel))?;
    let (tables, entry) = step("load", || load(kernel, &image))?;
    let prepared = clock::now();
    step("launch", || start(kernel, tables, entry))?;
    step("ready", || ready(kernel))?;
    println!(
        "@ready partition={} kernel={name} version={version} prepare_ns={} launch_to_ready_ns={}",
        launched(kernel)?.partition,
        prepared - begin,
        clock::now() - prepared
    );
    Ok(())
}

fn negotiate(kernel: &Kernel, image: &Image<'_>) -> Result<AbiVersion, Failure> {
    let note = image.note();
    let ours = &kernel.config.speaks;
    let version = ours
        .newest
        .common(note.version)
        .filter(|&version| ours.reads(version))
        .ok_or_else(|| {
            failure!(
                "the image speaks version {}, this kernel {} to {}",
                note.version,
                ours.oldest,
                ours.newest
            )
        })?;
    let missing = REQUIRED.difference(note.features);
    if !missing.is_empty() {
        return Err(failure!("the image lacks {missing}"));
    }
    Ok(version)
}

fn launched(kernel: &mut Kernel) -> Result<&mut Launched, Failure> {
    kernel
        .successor
        .as_mut()
        .ok_or_else(|| failure!("there is no partition"))
}

/// The ledger gets the partition's entries, intended for it; its processors are parked.
fn carve(kernel: &mut Kernel) -> Result<(), Failure> {
    let launched = launched(kernel)?;
    launched.stage = Stage::Carved;
    let owner = Owner::Partition(launched.partition);
    let plan = launched.plan.clone();
    for &cpu in plan.cpus() {
        processors::assign(cpu, Role::Park);
        let proof = kernel.park.confirm(cpu, PARK, &mut Timer::default())?;
        kernel.steward()?.release_cpu(proof, owner)?;
    }
    let steward = kernel.steward()?;
    let trampoline = plan.trampoline().map(page_of);
    for part in plan.memory().iter().copied().chain(trampoline) {
        let slot = steward
            .view()
            .find(resource::MEMORY, part.base().0, part.length())
            .ok_or_else(|| failure!("the ledger has no memory {part}"))?
            .slot;
        let slot = steward.split(slot, part)?;
        steward.intend(slot, owner)?;
    }
    let functions = plan
        .functions()
        .iter()
        .map(|planned| function_number(planned.function));
    let functions = functions.map(|number| (resource::FUNCTION, number));
    let singletons = plan
        .singletons()
        .iter()
        .map(|&number| (resource::SINGLETON, number));
    for (kind, number) in functions.chain(singletons) {
        let slot = steward
            .view()
            .find(kind, number, 1)
            .ok_or_else(|| failure!("the ledger has no resource {number:#x} of kind {kind}"))?
            .slot;
        steward.intend(slot, owner)?;
    }
    for &part in plan.memory() {
        kernel.memory.reserve(part);
    }
    if let Some(page) = trampoline {
        kernel.memory.reserve(page);
    }
    Ok(())
}

/// How the ledger numbers a function.
#[must_use]
pub const fn function_number(function: PciFunction) -> u64 {
    (function.segment as u64) << 16 | function.requester.0 as u64
}

fn requesters(plan: &Plan) -> Vec<RequesterId> {
    plan.requesters()
        .iter()
        .map(|requester| requester.id)
        .collect()
}

/// Its memory leaves the reach of the prime's devices, its devices go into its domain, and its
/// interrupt entries are set aside. Then the intents take effect.
fn fence(kernel: &mut Kernel) -> Result<(), Failure> {
    let launched = launched(kernel)?;
    launched.stage = Stage::Fenced;
    let (plan, domain, partition) = (launched.plan.clone(), launched.domain, launched.partition);
    for planned in plan.functions() {
        own_devices::let_go(planned.function);
        devices::set_bus_master(planned.function, false)?;
        devices::disable_messages(planned.function);
    }
    for &range in plan.memory() {
        kernel.unmap_dma(kernel.domain, range)?;
    }
    kernel.unit()?.create_domain(domain)?;
    for &range in plan.memory() {
        kernel.map_dma(domain, range)?;
    }
    let first = plan.cpus().first().copied().unwrap_or(ApicId(0));
    let mut handles = Vec::new();
    let mut pending = Pending::none();
    let mut vector = FIRST_VECTOR;
    for planned in plan.functions() {
        let source = planned.function.requester;
        for old in interrupts_of(kernel, source)? {
            pending = pending.merge(kernel.unit()?.clear_interrupt(old)?);
        }
        for message in 0..planned.interrupts {
            let target = InterruptTarget {
                destination: first,
                vector,
            };
            let (handle, more) = kernel.unit()?.allocate_interrupt(source, target)?;
            pending = pending.merge(more);
            handles.push(handle_record(
                planned.function,
                handle,
                target,
                message.into(),
            ));
            vector += 1;
        }
    }
    let method = kernel
        .unit()?
        .move_devices(&requesters(&plan), Some(domain), pending)?;
    println!(
        "@fence partition={partition} devices={} method={method:?}",
        plan.functions().len()
    );
    let launched = self::launched(kernel)?;
    launched.handles = handles;
    let moved: Vec<_> = plan
        .functions()
        .iter()
        .map(|planned| planned.function)
        .collect();
    kernel
        .handles
        .retain(|handle| !moved.contains(&handle.function));
    kernel
        .functions
        .retain(|function| !moved.contains(function));
    let owner = Owner::Partition(partition);
    let steward = kernel.steward()?;
    let intended: Vec<_> = steward
        .view()
        .entries()
        .filter(|entry| entry.word.next == owner && entry.word.owner != owner)
        .map(|entry| entry.slot)
        .collect();
    for slot in intended {
        steward.effect(slot)?;
        steward.complete(slot)?;
    }
    Ok(())
}

/// The interrupt entries that accept a requester.
pub fn interrupts_of(
    kernel: &mut Kernel,
    source: RequesterId,
) -> Result<Vec<vtd::InterruptHandle>, Failure> {
    let unit = kernel.unit()?;
    Ok(unit
        .interrupts()
        .filter(|interrupt| interrupt.source == source)
        .map(|interrupt| interrupt.handle)
        .collect())
}

/// An interrupt entry as a record of a handoff.
#[must_use]
pub fn handle_record(
    function: PciFunction,
    handle: vtd::InterruptHandle,
    target: InterruptTarget,
    message: u32,
) -> InterruptHandle {
    let written = handle.message();
    InterruptHandle {
        function,
        unit: 0,
        handle: handle.0,
        message_address: written.address,
        message_data: written.data,
        destination: target.destination,
        vector: target.vector.into(),
        message,
    }
}

/// Writes through the window into memory that was carved out.
struct Carved;

impl WritePhys for Carved {
    type Error = core::convert::Infallible;

    fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Self::Error> {
        // SAFETY: the loader stays inside the room it was given, which is the partition's memory:
        // the window maps it, and nothing of this kernel is there any more.
        unsafe { copy_in(at, bytes) };
        Ok(())
    }

    fn zero(&mut self, at: PhysAddr, length: u64) -> Result<(), Self::Error> {
        // SAFETY: as above.
        unsafe { zero(at, length) };
        Ok(())
    }
}

/// Frames for the entry tables, from the partition's memory.
struct EntryFrames {
    next: u64,
    end: u64,
}

impl TableFrames for EntryFrames {
    fn allocate(&mut self) -> Option<PhysAddr> {
        let frame = PhysAddr(self.next);
        self.next = self
            .next
            .checked_add(FRAME_SIZE)
            .filter(|&next| next <= self.end)?;
        // SAFETY: the frame is in the partition's memory, past the image.
        unsafe { zero(frame, FRAME_SIZE) };
        Some(frame)
    }

    fn load(&self, at: PhysAddr) -> u64 {
        let entry = mmio::pointer(at).cast::<u64>();
        // SAFETY: the builder reads only entries of frames that were allocated above.
        unsafe { entry.read() }
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        let entry = mmio::pointer(at).cast::<u64>();
        // SAFETY: the builder writes only entries of frames that were allocated above.
        unsafe { entry.write(value) };
    }
}

fn load(kernel: &mut Kernel, image: &Image<'_>) -> Result<(PhysAddr, u64), Failure> {
    let launched = launched(kernel)?;
    launched.stage = Stage::Loaded;
    let plan = launched.plan.clone();
    let room = plan
        .memory()
        .iter()
        .copied()
        .max_by_key(|range| range.length())
        .ok_or_else(|| failure!("the plan has no memory"))?;
    let layout = image.place(room)?;
    layout.load(&mut Carved)?;
    let end = layout.range().end().0.next_multiple_of(FRAME_SIZE);
    let mut frames = EntryFrames {
        next: end,
        end: room.end().0,
    };
    let data = ImageAccess {
        write: true,
        execute: false,
    };
    let code = ImageAccess {
        write: true,
        execute: true,
    };
    let mut identity = Vec::new();
    let mut add = |range, access, caching| {
        identity.push(Identity {
            range,
            access,
            caching,
        })
    };
    for &range in plan.memory() {
        add(range, data, Caching::WriteBack);
    }
    for extent in kernel.baton.extents() {
        let access = if extent.purpose == purpose::PARK {
            code
        } else {
            data
        };
        add(
            PhysRange::new(extent.base, extent.length)?,
            access,
            Caching::WriteBack,
        );
    }
    if let Some(page) = plan.trampoline() {
        add(page_of(page), code, Caching::WriteBack);
    }
    add(page_of(apic::base()), data, Caching::Uncached);
    let tables = paging::build(&mut frames, &layout, &identity)?;
    let loaded = PhysRange::from_bounds(room.base(), PhysAddr(frames.next));
    let firmware = filtered::write(kernel, &plan)?;
    let launched = self::launched(kernel)?;
    launched.loaded = loaded;
    launched.firmware = firmware;
    let bytes = write_handoff(kernel)?;
    let launched = self::launched(kernel)?;
    let (partition, version) = (launched.partition, launched.version);
    let at = handoff_at(kernel, partition).0;
    println!("@handoff bytes={bytes} at={at:#x} version={version}");
    Ok((tables.root, layout.entry()))
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
    let memory = |range: PhysRange, kind| Memory {
        base: range.base(),
        length: range.length(),
        kind,
        reserved: 0,
    };
    writer.critical(&memory(launched.loaded, LOADED))?;
    for &range in plan.memory() {
        let rest = if range.base() == launched.loaded.base() {
            PhysRange::from_bounds(launched.loaded.end(), range.end())
        } else {
            range
        };
        writer.critical(&memory(rest, 1))?;
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
    writer.critical(&state)?;
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
    let blob = writer.finish();
    // SAFETY: the place is the reader's part of the handoff extent; nobody reads it before the
    // launch, and between freeze and commit only after the commit.
    unsafe { copy_in(at, blob) };
    Ok(blob.len())
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

/// Starts its first processor by its own trampoline.
fn start(kernel: &mut Kernel, root: PhysAddr, entry: u64) -> Result<(), Failure> {
    let launched = self::launched(kernel)?;
    launched.stage = Stage::Started;
    let partition = launched.partition;
    let cpu = launched.plan.cpus().first().copied();
    let cpu = cpu.ok_or_else(|| failure!("the plan has no processor"))?;
    let page = launched.plan.trampoline();
    let page = page.ok_or_else(|| failure!("the plan has no trampoline"))?;
    let state = StartState {
        page_table: root.0,
        entry,
        stack: 0,
        argument: handoff_at(kernel, partition).0,
    };
    self::launched(kernel)?.watch = Watch::prepare(kernel.exchange, partition);
    // SAFETY: the page is the partition's alone, mapped in the window, and no processor is in it.
    let mut trampoline =
        unsafe { Trampoline::install(mmio::pointer(page), page, kernel.bootstrap, timing()) }?;
    // SAFETY: the entry tables map the page, the image and its entry; the image brings its own
    // stack; the processor is the partition's, parked until now.
    unsafe {
        trampoline.start(
            cpu,
            &state,
            &kernel.park,
            &mut processors::ipi(),
            &mut Timer::default(),
        )
    }?;
    Ok(())
}

/// QEMU's processors need no pause between INIT and start-up, like all since about 2010; but on a
/// busy host it may take long until one runs at all.
#[must_use]
pub fn timing() -> Timing {
    Timing {
        init_to_startup: 0,
        startup_to_startup: 20_000,
        arrival: 5_000_000,
    }
}

fn ready(kernel: &mut Kernel) -> Result<(), Failure> {
    let ours = kernel.config.speaks.newest;
    let launched = launched(kernel)?;
    let expected = launched.version;
    let watch = launched
        .watch
        .as_mut()
        .ok_or_else(|| failure!("nobody watches it"))?;
    watch.wait(state::READY, READY, &mut Timer::default())?;
    let (version, features) = watch.negotiated(ours)?;
    let missing = REQUIRED.difference(features);
    if version != expected || !missing.is_empty() {
        return Err(failure!("it speaks version {version} and lacks {missing}"));
    }
    Ok(())
}

/// Takes everything back from a partition, however far it came: its processors are taken, its
/// devices are quiet and in this kernel's domain, its memory is this kernel's again.
pub fn undo(kernel: &mut Kernel) -> Result<(), Failure> {
    let Some(launched) = kernel.successor.take() else {
        return Ok(());
    };
    let begin = clock::now();
    let partition = launched.partition;
    let me = kernel.owner();
    let root = kernel.space.root().0;
    if launched.stage >= Stage::Carved {
        for &cpu in launched.plan.cpus() {
            let running = launched.stage >= Stage::Started;
            let proof = if running {
                // SAFETY: the processor is the partition's, which is this kernel's to end; this
                // kernel's tables map its trampoline and the area at their physical addresses.
                unsafe {
                    kernel.trampoline.take(
                        cpu,
                        &kernel.park,
                        root,
                        &mut processors::ipi(),
                        &mut Timer::default(),
                    )
                }
                .map_err(Failure::from)
            } else {
                processors::assign(cpu, Role::Park);
                kernel
                    .park
                    .confirm(cpu, PARK, &mut Timer::default())
                    .map_err(Failure::from)
            };
            match proof {
                Ok(proof) => {
                    println!("@taken cpu={cpu} proof={:?}", proof.proof());
                    kernel.steward()?.release_cpu(proof, me)?;
                }
                Err(error) => {
                    println!("@quarantined partition={partition} cpu={cpu} text=\"{error}\"");
                    kernel.steward()?.quarantine(partition)?;
                    return Err(error);
                }
            }
        }
    }
    if launched.stage >= Stage::Fenced {
        take_devices_back(kernel, &launched)?;
    }
    kernel.steward()?.inherit(partition, me)?;
    kernel.steward()?.join()?;
    if launched.stage >= Stage::Fenced {
        kernel.functions.extend(
            launched
                .plan
                .functions()
                .iter()
                .map(|planned| planned.function),
        );
        own_devices::set_aside_all(kernel)?;
        own_devices::take_up(kernel)?;
    }
    if launched.stage >= Stage::Carved {
        for &range in launched.plan.memory() {
            kernel.memory.add(range);
        }
        for &cpu in launched.plan.cpus() {
            claim(kernel, cpu)?;
        }
    }
    if let Some(watch) = launched.watch {
        watch.clear();
    }
    println!("@undone partition={partition} ns={}", clock::now() - begin);
    Ok(())
}

fn take_devices_back(kernel: &mut Kernel, launched: &Launched) -> Result<(), Failure> {
    let domain = launched.domain;
    let mut pending = Pending::none();
    for planned in launched.plan.functions() {
        devices::set_bus_master(planned.function, false)?;
        devices::disable_messages(planned.function);
        for handle in interrupts_of(kernel, planned.function.requester)? {
            pending = pending.merge(kernel.unit()?.clear_interrupt(handle)?);
        }
    }
    let mine = kernel.domain;
    kernel
        .unit()?
        .move_devices(&requesters(&launched.plan), Some(mine), pending)?;
    if kernel.unit()?.domain_ids().any(|id| id == domain) {
        kernel.unit()?.destroy_domain(domain)?;
    }
    for &range in launched.plan.memory() {
        let there = kernel
            .unit()?
            .translate(mine, range.base().0.max(super::kernel::DMA_FLOOR));
        if there.is_none() {
            kernel.map_dma(mine, range)?;
        }
    }
    Ok(())
}

/// Claims a parked processor for this kernel and waits until it has come up.
pub fn claim(kernel: &mut Kernel, cpu: ApicId) -> Result<(), Failure> {
    let root = kernel.space.root().0;
    let state = processors::start_state(cpu, root)
        .ok_or_else(|| failure!("there is no place for processor {cpu}"))?;
    // SAFETY: this kernel's tables map the area at its physical address, and the stack is the
    // processor's own, unused while it is absent.
    unsafe {
        kernel.park.claim(
            cpu,
            &state,
            &mut processors::ipi(),
            PARK,
            &mut Timer::default(),
        )
    }?;
    if !processors::has_come(cpu) {
        return Err(failure!("processor {cpu} was claimed and did not come up"));
    }
    Ok(())
}
