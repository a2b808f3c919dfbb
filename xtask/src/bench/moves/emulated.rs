//! The same moves by a kernel on the units that QEMU emulates: instructions, and what the unit was
//! told, from the emulator's own trace.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use iommu_bench::model::{Counts, Phases};
use iommu_bench::{Case, Vendor};

use crate::process::Run;

/// How long the emulator may take. It takes seconds.
const DEADLINE: Duration = Duration::from_secs(300);

/// The status of an emulator that the kernel ended in good order: 2 doubled, and 1 more
/// (`isa-debug-exit`).
const WELL: i32 = 5;

/// The marks where phases begin (`iommu/bench/guest`).
const MARKS: [u8; 4] = [20, 21, 22, 23];

/// What one phase cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Instructions.
    pub(super) instructions: u64,
    /// Invalidation commands.
    pub(super) commands: u64,
    /// Waits of either kind.
    pub(super) waits: u64,
    /// Register writes.
    pub(super) mmio_writes: u64,
    /// Register reads.
    pub(super) mmio_reads: u64,
}

impl Cost {
    /// Whether it is what the model counted.
    pub(super) const fn agrees(&self, model: &Counts) -> bool {
        self.commands == model.commands
            && self.waits == model.waits + model.barriers
            && self.mmio_writes == model.mmio_writes
            && self.mmio_reads == model.mmio_reads
    }
}

/// Runs the kernel once on a machine with such a unit.
pub(super) fn run(
    vendor: Vendor,
    cases: &[Case],
    kernel: &Path,
    plugin: &Path,
    directory: &Path,
) -> Result<Vec<Phases<Cost>>> {
    fs::create_dir_all(directory)?;
    let path = |name: &str| directory.join(name).display().to_string();
    let escaped = |name: &str| path(name).replace(',', ",,");
    let unit = match vendor {
        Vendor::VtD => "intel-iommu,intremap=on",
        Vendor::AmdVi => "amd-iommu,intremap=on",
    };
    let plugin = plugin.display().to_string().replace(',', ",,");
    let (said, trace) = (directory.join("said.txt"), directory.join("trace.log"));
    let finished = Run::new("setpriv")
        .arguments(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .arguments(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "128M"])
        .arguments(["-nodefaults", "-no-user-config", "-display", "none"])
        .arguments(["-no-reboot", "-icount", "shift=0"])
        .arguments(["-plugin", &format!("file={plugin}"), "-device", unit])
        .arguments(["-kernel", &kernel.display().to_string()])
        .arguments([
            "-chardev",
            &format!("file,id=said,path={}", escaped("said.txt")),
        ])
        .arguments(["-device", "isa-debugcon,iobase=0xe9,chardev=said"])
        .arguments(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arguments(["-d", "plugin,guest_errors", "-D", &path("trace.log")])
        .arguments(["-trace", "memory_region_ops_*", "-trace", "vtd_*"])
        .arguments(["-trace", "amdvi_*"])
        .log(directory.join("qemu.log"))
        .deadline(DEADLINE)
        .finish(|_| ())?;
    let said = fs::read_to_string(said).unwrap_or_default();
    if finished.status.code() != Some(WELL) {
        bail!(
            "the machine ended with {}; the kernel said:\n{said}{}",
            finished.status,
            finished.tail()
        );
    }
    let trace = File::open(&trace).with_context(|| format!("no trace {}", trace.display()))?;
    let phases = read(vendor, BufReader::new(trace))?;
    ensure!(
        phases.len() == cases.len(),
        "{} moves were made, not {}; the kernel said:\n{said}",
        phases.len(),
        cases.len()
    );
    Ok(phases)
}

/// What is counted while a trace is read.
#[derive(Default)]
struct Counting {
    cost: Cost,
    /// Accesses as the unit's own events tell them.
    of_unit: u64,
}

/// Every move in a trace.
fn read(vendor: Vendor, lines: impl BufRead) -> Result<Vec<Phases<Cost>>> {
    let mut moves = Vec::new();
    let mut counting = Counting::default();
    let mut instructions = 0;
    let mut before = 0;
    let mut costs: Vec<Cost> = Vec::new();
    for line in lines.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let (event, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let number = |index: usize| rest.split(' ').nth(index)?.parse::<u64>().ok();
        match event {
            // The one processor's: all that it executed, for it never waits.
            "baton-count" => instructions = number(1).context("a count without a number")?,
            "baton-mark" => {
                let Some(place) = MARKS
                    .iter()
                    .position(|&mark| number(0) == Some(mark.into()))
                else {
                    continue;
                };
                ensure!(place == costs.len(), "a phase is missing");
                let mut counted = std::mem::take(&mut counting);
                let accesses = counted.cost.mmio_reads + counted.cost.mmio_writes;
                ensure!(
                    place == 0 || accesses == counted.of_unit,
                    "{accesses} accesses were made, and the unit saw {}",
                    counted.of_unit
                );
                // The mark itself is an instruction.
                counted.cost.instructions = instructions - before - 1;
                before = instructions;
                costs.push(counted.cost);
                if let [_, prepare, blackout, settle] = costs[..] {
                    moves.push(Phases {
                        prepare,
                        blackout,
                        settle,
                    });
                    costs.clear();
                }
            }
            _ => counting.take(vendor, event, rest)?,
        }
    }
    ensure!(costs.is_empty(), "the last move has no end");
    Ok(moves)
}

impl Counting {
    fn take(&mut self, vendor: Vendor, event: &str, rest: &str) -> Result<()> {
        let region = match vendor {
            Vendor::VtD => "name 'intel_iommu'",
            Vendor::AmdVi => "name 'amdvi-mmio'",
        };
        match (vendor, event) {
            (_, "memory_region_ops_read") if rest.ends_with(region) => self.cost.mmio_reads += 1,
            (_, "memory_region_ops_write") if rest.ends_with(region) => self.cost.mmio_writes += 1,
            // AMD-Vi's event for a read stands for a write too.
            (Vendor::VtD, "vtd_reg_read" | "vtd_reg_write")
            | (Vendor::AmdVi, "amdvi_mmio_read" | "amdvi_mmio_write") => self.of_unit += 1,
            (Vendor::VtD, "vtd_inv_desc") => self.cost.commands += 1,
            (Vendor::AmdVi, "amdvi_command_exec") => self.cost.commands += 1,
            (Vendor::VtD, "vtd_inv_desc_wait_sw") | (Vendor::AmdVi, "amdvi_completion_wait") => {
                self.cost.waits += 1;
                // It was counted as a command.
                self.cost.commands = self
                    .cost
                    .commands
                    .checked_sub(1)
                    .context("a wait that is no command")?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Cost, read};
    use iommu_bench::Vendor;
    use iommu_bench::model::Counts;

    // The lines are QEMU 7.2.22's own.
    const MOVE: &str = "\
memory_region_ops_write cpu 0 mr 0x5 addr 0xfed90018 value 0x0 size 4 name 'intel_iommu'
baton-count 0 1000 0 0
baton-mark 20 0
baton-count 0 1001 0 0
baton-mark 21 0
memory_region_ops_write cpu 0 mr 0x5 addr 0xfed90088 value 0x90 size 8 name 'intel_iommu'
vtd_reg_write addr 0x88 size 0x8 value 0x90
vtd_inv_desc invalidate desc type context-cache high 0x0 low 0x11
vtd_inv_desc invalidate desc type wait high 0x2003000 low 0x100000065
vtd_inv_desc_wait_sw wait invalidate status write addr 0x2003000 data 0x1
memory_region_ops_write cpu 0 mr 0x5 addr 0xfed90088 value 0x90 size 8 name 'hpet'
baton-count 0 3545 0 0
baton-mark 22 0
baton-count 0 3546 0 0
baton-mark 23 0
";

    #[test]
    fn a_phase_has_what_is_between_its_marks() {
        let moves = read(Vendor::VtD, MOVE.as_bytes()).unwrap();
        let blackout = Cost {
            instructions: 2543,
            commands: 1,
            waits: 1,
            mmio_writes: 1,
            mmio_reads: 0,
        };
        assert_eq!(moves.len(), 1);
        assert_eq!(moves[0].blackout, blackout);
        assert_eq!(moves[0].prepare, Cost::default());
        assert_eq!(moves[0].settle, Cost::default());
        let model = Counts {
            commands: 1,
            waits: 1,
            mmio_writes: 1,
            ..Counts::default()
        };
        assert!(blackout.agrees(&model));
        for wrong in [
            Counts { waits: 2, ..model },
            Counts {
                commands: 0,
                ..model
            },
            Counts {
                mmio_reads: 1,
                ..model
            },
            Counts {
                mmio_writes: 2,
                ..model
            },
        ] {
            assert!(!blackout.agrees(&wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_trace_that_is_not_whole_is_refused() {
        let lost = MOVE.replace("baton-mark 22 0\n", "");
        assert!(read(Vendor::VtD, lost.as_bytes()).is_err());
        let cut = MOVE.rsplit_once("baton-mark 23").unwrap().0;
        assert!(read(Vendor::VtD, cut.as_bytes()).is_err());
        let unseen = MOVE.replace("vtd_reg_write", "vtd_other");
        assert!(read(Vendor::VtD, unseen.as_bytes()).is_err());
    }
}
