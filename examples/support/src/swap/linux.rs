//! An unmodified Linux in a partition: it knows nothing of Baton, and takes what it is shown for the
//! machine.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use handoff_abi::{ApicId, PhysAddr, PhysRange, UnitKind};
use partition_core::image::Access;
use partition_core::image::linux::{BzImage, E820Entry, LinuxRequest, check_initrd};
use partition_core::image::paging::{Caching, Identity, Levels, identity};
use partition_core::plan::{FunctionRequest, Messages, Plan};
use partition_core::wakeup::WakeupArea;

use super::filtered::{self, Firmware, Tables};
use super::inventory::{Inventory, MEMORY, Topology, Wish, next_partition};
use super::kernel::{Failure, Kernel, Patience, failure, page_of};
use super::launch::{self, Launched, PARK, Stage, carve, fence, make_plan, start, step};
use super::load::{Carved, EntryFrames};
use super::processors;
use super::{modules, undo};
use crate::{clock, mmio, println};

/// RAM below 1 MiB, from where it starts its further processors.
const LOW: PhysRange = PhysRange::from_bounds(PhysAddr(0x2_0000), PhysAddr(0x6_0000));
/// The last of its memory, which it is told is firmware's: where its processors wait, and the tables
/// that they and the first one come with.
const RESERVED: u64 = 256 << 10;
/// Its network device, its disk and its console: class and sub-class.
const CLASSES: [u32; 3] = [0x0200, 0x0100, 0x0780];

/// What the operator asks for. All other words are for Linux.
struct Asked<'a> {
    /// `kernel=`: the kernel among the modules.
    kernel: &'a str,
    /// `ramdisk=`: the initial RAM disk.
    ramdisk: &'a str,
    /// `mib=`: how much memory above 1 MiB.
    length: u64,
    /// `low=no`: none below 1 MiB.
    low: bool,
    /// `open-interrupts`: its devices' interrupt messages may pass where the unit cannot keep them in
    /// bounds.
    accept_open: bool,
    words: Vec<&'a str>,
}

impl<'a> Asked<'a> {
    fn read(words: &[&'a str]) -> Result<Self, Failure> {
        let mut asked = Self {
            kernel: "vmlinuz",
            ramdisk: "initramfs",
            length: MEMORY,
            low: true,
            accept_open: false,
            words: Vec::new(),
        };
        for &word in words {
            match word.split_once('=') {
                None if word == "open-interrupts" => asked.accept_open = true,
                Some(("kernel", name)) => asked.kernel = name,
                Some(("ramdisk", name)) => asked.ramdisk = name,
                Some(("low", "no")) => asked.low = false,
                Some(("mib", number)) => {
                    let mib: u32 = number
                        .parse()
                        .map_err(|_| failure!("'{number}' is no number").refusal())?;
                    asked.length = u64::from(mib) << 20;
                }
                _ => asked.words.push(word),
            }
        }
        Ok(asked)
    }
}

const CODE: Access = Access {
    write: true,
    execute: true,
};

/// What Linux is told beside what the operator says: the time stamp counter's rate, as there is no
/// other clock; to look for no device by port, or where no table says that there are buses; that the
/// UARTs of a PC are not its own; and that an interrupt to all processors would reach others' too; and
/// that it is to ask for a reset before it tries the machine's own ways. Without the last, on a machine
/// without ACPI's registers, it would go to firmware at once.
///
/// An AMD-Vi unit looks a message up by its vector alone, so the vectors of a device can be open at one
/// processor only, the first: there Linux is to have all interrupts of devices.
fn command_line(kernel: &Kernel, cpus: usize, words: &[&str]) -> String {
    let affinity = match kernel.unit_kind {
        Some(UnitKind::AmdVi) if cpus > 1 => {
            format!("irqaffinity=0 isolcpus=managed_irq,1-{}", cpus - 1)
        }
        _ => String::new(),
    };
    format!(
        "console=hvc0 tsc_early_khz={} tsc=reliable pci=noearly,lastbus=0 8250.nr_uarts=0 \
         no_ipi_broadcast=1 reboot=acpi {affinity} {}",
        clock::hertz() / 1000,
        words.join(" ")
    )
}

/// Launches a Linux. Where that fails, everything is taken back and the machine is as it was.
///
/// # Errors
/// Where it would not start, before anything is touched; or a step that failed.
pub fn launch(kernel: &mut Kernel, words: &[&str]) -> Result<(), Failure> {
    if let Some(launched) = &kernel.successor {
        return Err(failure!(
            "partition {} is there already",
            launched.partition
        ));
    }
    let result = try_launch(kernel, words);
    if result.is_err()
        && kernel.successor.is_some()
        && let Err(error) = undo::undo(kernel)
    {
        println!("@undo result=failed text=\"{error}\"");
    }
    result
}

fn try_launch(kernel: &mut Kernel, words: &[&str]) -> Result<(), Failure> {
    let begin = clock::now();
    // SAFETY: the archive is in memory that this kernel owns and nobody writes.
    let archive = unsafe { modules::archive(kernel.modules) };
    let asked = Asked::read(words)?;
    let find = |name| {
        modules::find(archive, name).ok_or_else(|| failure!("there is no file '{name}'").refusal())
    };
    let (file, initrd) = (find(asked.kernel)?, find(asked.ramdisk)?);
    let image = step("check", || check(file, initrd)).map_err(Failure::refusal)?;
    let plan = step("plan", || {
        let wish = wish(kernel, &asked)?;
        make_plan(kernel, &wish)
    })?;
    let reserved = reserved(&plan)?;
    let line = command_line(kernel, plan.cpus().len(), &asked.words);
    let firmware = Firmware {
        wakeup: Some(reserved.base()),
        range: reserved,
    };
    let tables = filtered::write(kernel, &plan, Some(firmware)).map_err(Failure::refusal)?;
    let map = memory_map(&tables);
    let request = LinuxRequest {
        memory_map: &map,
        taken: &[],
        command_line: line.as_bytes(),
        initrd: Some(initrd),
        rsdp: tables.firmware.rsdp,
        setup_data: &[],
        levels: Levels::Four,
    };
    let layout = step("place", || Ok(image.place(&request)?)).map_err(Failure::refusal)?;
    println!(
        "@linux kernel={} parameters={} initrd={}",
        layout.kernel(),
        layout.parameters(),
        layout.initrd()
    );

    let cpus: Vec<ApicId> = plan.cpus().to_vec();
    kernel.launches = plan.partition().0;
    kernel.successor = Some(Launched::new(kernel, "linux", plan, &line)?);
    launch::launched(kernel)?.reset = Some(tables.reset);
    step("carve", || carve(kernel))?;
    step("fence", || fence(kernel))?;
    let (state, waiting) = step("load", || {
        launch::launched(kernel)?.stage = Stage::Loaded;
        layout.load(&mut Carved)?;
        let at = reserved.base();
        let waiting = cpus.get(1..).unwrap_or(&[]);
        // SAFETY: the window maps the partition's memory, and nobody uses this part yet.
        let area = unsafe { WakeupArea::install(mmio::pointer(at), at, waiting) }?;
        let mut frames = EntryFrames {
            next: area.range().end().0,
            end: reserved.end().0,
        };
        let trampoline = launch::launched(kernel)?.plan.trampoline();
        let way_in: Vec<_> = trampoline.map(page_of).map(code).into_iter().collect();
        let state = layout.start_state(&layout.tables(&mut frames, &way_in)?);
        let ranges = [area.range(), kernel.park.range(), LOW].map(code);
        let root = identity(&mut frames, Levels::Four, ranges)?.root;
        let waiting: Vec<_> = waiting
            .iter()
            .filter_map(|&cpu| Some((cpu, area.start_state(cpu, root.0)?)))
            .collect();
        Ok((state, waiting))
    })?;
    let prepared = clock::now();
    let tsc = clock::tsc();
    step("launch", || {
        launch::launched(kernel)?.stage = Stage::Started;
        for (cpu, state) in &waiting {
            // SAFETY: the tables map the park area and the code that the processor comes to, in
            // memory that the partition takes for firmware's.
            unsafe {
                kernel.park.claim(
                    *cpu,
                    state,
                    &mut processors::ipi(),
                    PARK,
                    &mut Patience::default(),
                )
            }?;
        }
        start(kernel, &state, false)
    })?;
    println!(
        "@launched partition={} kernel=linux cpus={} prepare_ns={} tsc={tsc}",
        launch::launched(kernel)?.partition,
        cpus.len(),
        prepared - begin
    );
    Ok(())
}

fn check<'a>(file: &'a [u8], initrd: &[u8]) -> Result<BzImage<'a>, Failure> {
    // It has no clock but the time stamp counter, whose rate it cannot find out by itself.
    if clock::hertz() < 1000 {
        return Err(failure!("the time stamp counter's rate is not known"));
    }
    let image = BzImage::parse(file)?;
    if !image.is_intact() {
        return Err(failure!("the kernel is damaged: its checksum is wrong"));
    }
    check_initrd(initrd)?;
    Ok(image)
}

const fn code(range: PhysRange) -> Identity {
    Identity {
        range,
        access: CODE,
        caching: Caching::WriteBack,
    }
}

fn memory_map(tables: &Tables) -> Vec<E820Entry> {
    let entry = |region: &acpi_capture::memory::MemoryRegion| E820Entry {
        range: region.range,
        kind: region.kind.to_e820(),
    };
    tables.memory_map.regions().iter().map(entry).collect()
}

/// The end of the partition's large piece of memory.
fn reserved(plan: &Plan) -> Result<PhysRange, Failure> {
    let largest = plan.memory().iter().max_by_key(|range| range.length());
    let end = largest.map_or(0, |range| range.end().0);
    let base = end
        .checked_sub(RESERVED)
        .ok_or_else(|| failure!("the partition has no memory"))?;
    Ok(PhysRange::new(PhysAddr(base), RESERVED)?)
}

/// Two processors, memory on both sides of 1 MiB, and of each of its classes the last device that
/// nobody else needs.
fn wish(kernel: &mut Kernel, asked: &Asked<'_>) -> Result<Wish<'static>, Failure> {
    let topology = Inventory::take(kernel)?.topology;
    let large = kernel
        .memory
        .clone()
        .take(asked.length, 2 << 20, 1 << 32)
        .ok_or_else(|| failure!("there are no {:#x} bytes in one piece", asked.length).refusal())?;
    let mut ranges: Vec<_> = asked.low.then_some(LOW).into_iter().collect();
    ranges.push(large);
    let usual = Wish::usual(kernel, "linux", &topology);
    Ok(Wish {
        partition: next_partition(kernel),
        ranges,
        messages: Messages::Any {
            accept_open: asked.accept_open,
        },
        // What it needs is looked at when it is placed.
        least_memory: 0,
        functions: devices(kernel, &topology),
        singletons: Vec::new(),
        ..usual
    })
}

fn devices(kernel: &Kernel, topology: &Topology) -> Vec<FunctionRequest> {
    CLASSES
        .iter()
        .filter_map(|&class| {
            topology
                .all_of_class(class)
                .filter(|function| kernel.functions.contains(function))
                .last()
        })
        // Linux allocates its interrupts itself.
        .map(|function| FunctionRequest {
            function,
            interrupts: 0,
        })
        .collect()
}

/// Looks whether the Linux has asked for a reset, and ends it where it has. Linux waits 15 ms before it
/// tries the machine's own ways.
///
/// # Errors
/// Where it cannot be ended.
pub fn look(kernel: &mut Kernel) -> Result<(), Failure> {
    let Some(reset) = kernel
        .successor
        .as_ref()
        .and_then(|launched| launched.reset)
    else {
        return Ok(());
    };
    let word = mmio::pointer(reset);
    // SAFETY: the word is in the baton, which the window maps.
    if unsafe { word.read_volatile() } == 0 {
        return Ok(());
    }
    println!(
        "@linux-reset text=\"Linux asked for a reset: the partition ends, the machine goes on\""
    );
    undo::undo(kernel)
}
