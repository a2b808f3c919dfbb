//! The prime's way from a request to a successor that is ready, each step with its undo.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use handoff_abi::{
    AbiVersion, ApicId, DomainId, Firmware, InterruptHandle, InterruptTarget, Owner, PartitionId,
    PciFunction, PhysAddr, PhysRange, RequesterId, resource, state,
};
use iommu::Pending;
use partition_core::cpu::StartState;
use partition_core::image::Image;
use partition_core::plan::{Findings, Plan, plan};
use partition_core::trampoline::{Timing, Trampoline};
use partition_core::watch::Watch;

use super::handoff::{REQUIRED, handle_record, handoff_at};
use super::inventory::{Inventory, Wish};
use super::kernel::{Failure, Kernel, Patience, failure, page_of};
use super::load::load;
use super::processors::{self, Role};
use super::undo::undo;
use super::{devices, modules, own_devices, reserved};
use crate::mark::{FENCE, FENCED, LAUNCH, mark};
use crate::{clock, mmio, println};

/// How long a successor may take from its first instruction until it has read its handoff, in
/// microseconds. It is some thousand instructions; the rest is for a host that is busy.
const ENTERED: u32 = 3_000_000;
/// How long it may take from there until it is ready.
const READY: u32 = 15_000_000;
/// How long a processor may take to park.
pub const PARK: u32 = 2_000_000;
/// The vector that a successor is told its functions' interrupts come with, first of several.
const FIRST_VECTOR: u8 = 0x50;
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
    /// The part of its memory that the loader filled.
    pub loaded: PhysRange,
    /// Where its firmware tables are.
    pub firmware: Firmware,
    /// The byte that it writes to ask for a reset, where it knows nothing of Baton.
    pub reset: Option<PhysAddr>,
}

impl Launched {
    /// A partition of which nothing is touched yet.
    pub(super) fn new(
        kernel: &Kernel,
        name: &str,
        plan: Plan,
        line: &str,
    ) -> Result<Self, Failure> {
        let domain = plan
            .domain()
            .ok_or_else(|| failure!("the plan has no domain"))?;
        Ok(Self {
            partition: plan.partition(),
            name: String::from(name),
            plan,
            version: kernel.config.speaks.newest,
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
            reset: None,
        })
    }

    /// The processor that is to serve: the last.
    #[must_use]
    pub fn service_cpu(&self) -> ApicId {
        self.plan.cpus().last().copied().unwrap_or(ApicId(0))
    }
}

/// Does a step, and says how long it took.
pub(super) fn step<T>(name: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
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

/// The plan that a wish comes to; what is in its way is printed.
pub(super) fn make_plan(kernel: &mut Kernel, wish: &Wish<'_>) -> Result<Plan, Failure> {
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
    kernel.launches = plan.partition().0;
    kernel.successor = Some(Launched {
        version,
        ..Launched::new(kernel, name, plan, line)?
    });
    step("carve", || carve(kernel))?;
    mark::<FENCE>();
    step("fence", || fence(kernel))?;
    mark::<FENCED>();
    let (tables, entry) = step("load", || load(kernel, &image))?;
    let prepared = clock::now();
    mark::<LAUNCH>();
    step("launch", || {
        let partition = launched(kernel)?.partition;
        let state = StartState {
            page_table: tables.0,
            entry,
            stack: 0,
            argument: handoff_at(kernel, partition).0,
        };
        start(kernel, &state, true)
    })?;
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

/// The partition that is on its way.
///
/// # Errors
/// Where there is none.
pub fn launched(kernel: &mut Kernel) -> Result<&mut Launched, Failure> {
    kernel
        .successor
        .as_mut()
        .ok_or_else(|| failure!("there is no partition"))
}

/// The ledger gets the partition's entries, intended for it; its processors are parked.
pub(super) fn carve(kernel: &mut Kernel) -> Result<(), Failure> {
    let launched = launched(kernel)?;
    launched.stage = Stage::Carved;
    let owner = Owner::Partition(launched.partition);
    let plan = launched.plan.clone();
    for &cpu in plan.cpus() {
        processors::assign(cpu, Role::Park);
        let proof = kernel.park.confirm(cpu, PARK, &mut Patience::default())?;
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

/// The requester ids of the plan's functions.
#[must_use]
pub fn requesters(plan: &Plan) -> Vec<RequesterId> {
    plan.requesters()
        .iter()
        .map(|requester| requester.id)
        .collect()
}

/// Its memory leaves the reach of the prime's devices, its devices go into its domain, and its
/// interrupt entries are set aside. Then the intents take effect.
pub(super) fn fence(kernel: &mut Kernel) -> Result<(), Failure> {
    let launched = launched(kernel)?;
    launched.stage = Stage::Fenced;
    let (plan, domain, partition) = (launched.plan.clone(), launched.domain, launched.partition);
    let writes_own_messages = launched.reset.is_some();
    let functions = functions(&plan);
    for &function in &functions {
        own_devices::let_go(function);
    }
    devices::quiesce(&functions)?;
    for &range in plan.memory() {
        kernel.unmap_dma(kernel.domain, range)?;
    }
    kernel.unit()?.create_domain(domain)?;
    for &range in plan.memory() {
        kernel.map_dma(domain, range)?;
    }
    let kept = reserved::of_plan(&plan);
    reserved::map(kernel, domain, &kept)?;
    let first = plan.cpus().first().copied().unwrap_or(ApicId(0));
    let mut handles = Vec::new();
    let mut pending = clear_interrupts(kernel, &functions)?;
    let mut vector = FIRST_VECTOR;
    for planned in plan.functions() {
        let source = planned.function.requester;
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
    let requesters = requesters(&plan);
    if writes_own_messages {
        // What was cleared must be gone before it is set anew.
        kernel.unit()?.flush(pending)?;
        pending = Pending::none();
        for &requester in &requesters {
            pending = pending.merge(kernel.unit()?.open_vectors(requester, first)?);
        }
    }
    let method = kernel
        .unit()?
        .move_devices(&requesters, Some(domain), pending)?;
    reserved::unmap(kernel, kernel.domain, &kept)?;
    kernel.faults.forget(&requesters);
    println!(
        "@fence partition={partition} devices={} method={method:?}",
        plan.functions().len()
    );
    let launched = self::launched(kernel)?;
    launched.handles = handles;
    kernel
        .handles
        .retain(|handle| !functions.contains(&handle.function));
    kernel
        .functions
        .retain(|function| !functions.contains(function));
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

/// The plan's functions.
#[must_use]
pub fn functions(plan: &Plan) -> Vec<PciFunction> {
    plan.functions()
        .iter()
        .map(|planned| planned.function)
        .collect()
}

/// Drops the interrupts of functions that change hands, from the flush of the result on.
pub fn clear_interrupts(
    kernel: &mut Kernel,
    functions: &[PciFunction],
) -> Result<Pending, Failure> {
    let unit = kernel.unit()?;
    let mut pending = Pending::none();
    for function in functions {
        pending = pending.merge(unit.clear_interrupts(function.requester)?);
    }
    Ok(pending)
}

/// The interrupt entries that accept a requester.
pub fn interrupts_of(
    kernel: &mut Kernel,
    source: RequesterId,
) -> Result<Vec<iommu::InterruptHandle>, Failure> {
    let unit = kernel.unit()?;
    Ok(unit
        .interrupts_of(source)
        .map(|interrupt| interrupt.handle)
        .collect())
}

/// Starts its first processor by its own trampoline. A kernel that knows Baton is watched from then on.
pub(super) fn start(kernel: &mut Kernel, state: &StartState, watched: bool) -> Result<(), Failure> {
    let launched = self::launched(kernel)?;
    launched.stage = Stage::Started;
    let partition = launched.partition;
    let cpu = launched.plan.cpus().first().copied();
    let cpu = cpu.ok_or_else(|| failure!("the plan has no processor"))?;
    let page = launched.plan.trampoline();
    let page = page.ok_or_else(|| failure!("the plan has no trampoline"))?;
    // SAFETY: the page is the partition's alone, mapped in the window, and no processor is in it.
    let mut trampoline =
        unsafe { Trampoline::install(mmio::pointer(page), page, kernel.bootstrap, timing()) }?;
    if watched {
        self::launched(kernel)?.watch = Watch::prepare(kernel.exchange, partition)
            .map(|watch| watch.with_receipt(trampoline.receipt()));
    }
    // SAFETY: the entry tables map the page, the image and its entry; the image or the state brings a
    // stack; the processor is the partition's, parked until now.
    unsafe {
        trampoline.start(
            cpu,
            state,
            &kernel.park,
            &mut processors::ipi(),
            &mut Patience::default(),
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
    watch.wait(state::ENTERED, ENTERED, &mut Patience::default())?;
    watch.wait(state::READY, READY, &mut Patience::default())?;
    let (version, features) = watch.negotiated(ours)?;
    let missing = REQUIRED.difference(features);
    if version != expected || !missing.is_empty() {
        return Err(failure!("it speaks version {version} and lacks {missing}"));
    }
    Ok(())
}
