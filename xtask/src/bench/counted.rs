//! Swaps on a machine whose time is instructions, with load from inside of it: figures that repeat
//! exactly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::spent::{Part, Spent};
use crate::build::Images;
use crate::console::Watcher;
use crate::machine::{Counted, Iommu, Machine, MachineOptions, TRACE_MMIO};
use crate::paths;
use crate::session;
use crate::setup::Toolchain;
use crate::trace::{Counts, Executed, Mark, Trace};
use crate::ui::Step;

/// The marks that the kernels leave (`examples/support/src/mark.rs`).
mod mark {
    pub(super) const FREEZE: u8 = 1;
    pub(super) const COMMITTED: u8 = 2;
    pub(super) const TAKEN: u8 = 3;
    pub(super) const SERVED: u8 = 4;
    pub(super) const FENCE: u8 = 5;
    pub(super) const FENCED: u8 = 6;
    pub(super) const LAUNCH: u8 = 7;
    pub(super) const READY: u8 = 8;
    pub(super) const RECLAIM: u8 = 9;
    pub(super) const RECLAIMED: u8 = 10;
}

/// The regions of configuration space and of the IOMMU's registers.
const CONFIGURATION: &str = "pcie-mmcfg-mmio";
const IOMMU: [&str; 2] = ["intel_iommu", "amdvi-mmio"];

/// Each swap: the successor, and how many requests wait in the receive ring at the freeze.
const SWAPS: [(&str, u64); 3] = [("beta.elf", 1), ("gamma.elf", 8), ("alpha.elf", 1)];

/// Writes and read-backs before each swap.
const ROUNDS: u64 = 20;

/// How long anything may take, with every instruction counted.
const LONG: Duration = Duration::from_secs(300);

/// What a part of a swap cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Cost {
    /// Instructions of the processors that did it, without those of waiting for something else.
    pub(super) instructions: u64,
    /// How often one of them had to wait for something else.
    pub(super) waits: u64,
    /// Reads and writes of devices' registers in memory, without configuration space.
    pub(super) mmio: Counts,
    /// Reads and writes of I/O ports: the console.
    pub(super) ports: Counts,
    /// Reads and writes of configuration space.
    pub(super) config: Counts,
    /// Invalidation commands, and those of them that are waited for.
    pub(super) invalidation_commands: u64,
    /// Wait descriptors.
    pub(super) invalidation_waits: u64,
}

/// What one swap cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Swap {
    /// The successor.
    pub(super) to: String,
    /// Requests that waited in the ring at the freeze.
    pub(super) requests: u64,
    /// Fencing the successor's devices and interrupts.
    pub(super) fence: Cost,
    /// From the start of the successor's first processor until it is ready.
    pub(super) launch_to_ready: Cost,
    /// From the freeze to the first answer's doorbell: the blackout.
    pub(super) freeze_to_service: Cost,
    /// Taking everything over from the old kernel.
    pub(super) reclaim: Cost,
    /// What the instructions from freeze to service were spent on.
    pub(super) spent: Spent,
}

/// Builds the plugin that counts.
pub(super) fn plugin(toolchain: &Toolchain, step: &Step) -> Result<PathBuf> {
    let run = toolchain
        .cargo("build")
        .arguments(["--release", "--package", "baton-counter"])
        .set("CARGO_TARGET_DIR", paths::target())
        .deadline(LONG);
    run.succeed(|line| step.progress(line.trim()))?;
    let plugin = paths::target().join("release/libbaton_counter.so");
    ensure!(plugin.is_file(), "{} was not built", plugin.display());
    Ok(plugin)
}

/// Runs the chain once on a machine of its own, and counts.
pub(super) fn run(
    images: &Images,
    iommu: Iommu,
    plugin: &Path,
    directory: &Path,
    step: &Step,
) -> Result<Vec<Swap>> {
    let mut options = MachineOptions::demo(&images.first, Some(&images.modules)).behind(iommu);
    options.counted = Some(Counted {
        plugin: plugin.to_path_buf(),
        kept: (mark::FREEZE, mark::SERVED),
    });
    options.trace.push(TRACE_MMIO.to_owned());
    let silent: Watcher = Arc::new(|_, _| ());
    let mut machine = Machine::start(&options, directory, &silent)?;
    machine.run()?;
    session::wait_first(&mut machine)?;
    let mut images_before = vec!["alpha.elf"];
    for (number, (image, requests)) in SWAPS.into_iter().enumerate() {
        let (old, new) = (number % 2, 1 - number % 2);
        step.progress(&format!("to {image}"));
        machine.consoles[old].command_ok(&format!("load {ROUNDS}"), LONG)?;
        machine.consoles[old].command_ok(&format!("launch {image}"), LONG)?;
        machine.consoles[new].skip();
        let line = format!("handover load={requests}");
        let done = machine.consoles[old].command_ok(&line, LONG)?;
        let load = done.one("load")?;
        ensure!(
            load.number("answered")? == requests && load.number("read_back")? == requests,
            "the load was not answered: {load}"
        );
        machine.consoles[new].wait_event("serving", LONG)?;
        machine.consoles[new].command_ok("reclaim", LONG)?;
        images_before.push(image);
    }
    ensure!(machine.resets() == 0, "the machine was reset");
    let threads = machine.cpu_threads.clone();
    let files = machine.quit()?;
    let trace = Trace::read(&files.trace(), &threads)?;
    let mut swaps = Vec::new();
    let mut marks = trace.marks();
    for ((image, requests), before) in SWAPS.into_iter().zip(images_before) {
        let swap;
        (swap, marks) = measure(&trace, marks)?;
        let mut parts = Vec::new();
        for (blocks, image) in swap.blocks.into_iter().zip([before, image]) {
            let kernel = images.read(image)?;
            parts.push(Part { blocks, kernel });
        }
        swaps.push(Swap {
            to: image.trim_end_matches(".elf").to_owned(),
            requests,
            fence: swap.fence,
            launch_to_ready: swap.launch_to_ready,
            freeze_to_service: swap.freeze_to_service,
            reclaim: swap.reclaim,
            spent: Spent::of(&parts)?,
        });
    }
    files.discard();
    Ok(swaps)
}

struct Measured {
    fence: Cost,
    launch_to_ready: Cost,
    freeze_to_service: Cost,
    reclaim: Cost,
    /// Where the instructions were, of the old kernel and of the new one.
    blocks: [Vec<(u64, u64)>; 2],
}

/// The first swap that `marks` tell of, and the marks behind it.
fn measure<'a>(trace: &Trace, marks: &'a [Mark]) -> Result<(Measured, &'a [Mark])> {
    let mut rest = marks;
    let mut next = |number: u8| -> Result<&'a Mark> {
        let at = rest.iter().position(|mark| mark.number == number);
        let at = at.with_context(|| format!("no kernel passed mark {number}"))?;
        let mark = &rest[at];
        rest = &rest[at + 1..];
        Ok(mark)
    };
    let (fence, fenced) = (next(mark::FENCE)?, next(mark::FENCED)?);
    let (launch, ready) = (next(mark::LAUNCH)?, next(mark::READY)?);
    let (freeze, committed) = (next(mark::FREEZE)?, next(mark::COMMITTED)?);
    let (taken, served) = (next(mark::TAKEN)?, next(mark::SERVED)?);
    let (reclaim, reclaimed) = (next(mark::RECLAIM)?, next(mark::RECLAIMED)?);
    for (from, to) in [
        (fence, fenced),
        (freeze, committed),
        (taken, served),
        (reclaim, reclaimed),
    ] {
        if from.cpu != to.cpu {
            bail!("CPU {} began and CPU {} ended it", from.cpu, to.cpu);
        }
    }
    // All the processors that are not the old kernel's are the successor's.
    let successors: Vec<u32> = ready
        .counts
        .keys()
        .copied()
        .filter(|cpu| ![launch.cpu, freeze.cpu].contains(cpu))
        .collect();
    let mut critical = cost(trace, freeze, committed, &[freeze.cpu]);
    critical.add(&cost(trace, taken, served, &[taken.cpu]));
    let blocks = |mark: &Mark| {
        let cpu = mark.cpu;
        let of_it = mark.blocks.iter().filter(move |block| block.0 == cpu);
        of_it
            .map(|&(_, address, instructions)| (address, instructions))
            .collect()
    };
    let measured = Measured {
        fence: cost(trace, fence, fenced, &[fence.cpu]),
        launch_to_ready: cost(trace, launch, ready, &successors),
        freeze_to_service: critical,
        reclaim: cost(trace, reclaim, reclaimed, &[reclaim.cpu]),
        blocks: [blocks(committed), blocks(served)],
    };
    Ok((measured, rest))
}

/// What `cpus` did between two marks.
fn cost(trace: &Trace, from: &Mark, to: &Mark, cpus: &[u32]) -> Cost {
    let at = |mark: &Mark, cpu: u32| mark.counts.get(&cpu).copied().unwrap_or_default();
    let sum = |part: fn(&Executed) -> u64| -> u64 {
        cpus.iter()
            .map(|&cpu| part(&at(to, cpu)) - part(&at(from, cpu)))
            .sum()
    };
    let places = from.place..to.place;
    let mut cost = Cost {
        instructions: sum(|executed| executed.worked),
        waits: sum(|executed| executed.waits),
        ..Cost::default()
    };
    let accesses = trace.accesses_in(&places, cpus);
    if IOMMU.iter().any(|region| accesses.contains_key(region)) {
        let fence = trace.fence_in(&places);
        cost.invalidation_commands = fence.invalidation_commands;
        cost.invalidation_waits = fence.waits;
    }
    for (region, counts) in accesses {
        let kind = match region {
            CONFIGURATION => &mut cost.config,
            "serial" | "acpi-tmr" | "ioport80" | "pci-conf-idx" | "pci-conf-data" => {
                &mut cost.ports
            }
            _ => &mut cost.mmio,
        };
        kind.join(counts);
    }
    cost
}

impl Cost {
    fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.waits += other.waits;
        self.mmio.join(other.mmio);
        self.ports.join(other.ports);
        self.config.join(other.config);
        self.invalidation_commands += other.invalidation_commands;
        self.invalidation_waits += other.invalidation_waits;
    }
}
