//! What a Linux says of its machine, held against the plan of its partition.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::console::Done;
use crate::event::Event;
use crate::report;

/// What Linux says of every machine like this and what harms nothing: that there is no IOAPIC, which is
/// meant; and that there is no console yet, as the driver of its own is a module.
const EXPECTED: [&str; 2] = [
    "ACPI: No IOAPIC entries present",
    "Warning: unable to open an initial console.",
];
/// The most memory that Linux may keep from what it counts: its code, its tables, and what is reserved
/// for it at the end of the partition.
const KEPT: u64 = 96 << 20;
/// The most that its memory map may have less than the partition: where its processors wait.
const RESERVED: u64 = 1 << 20;

/// What the prime planned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Planned {
    partition: u64,
    cpus: u64,
    /// First and last plus one.
    memory: Vec<(u64, u64)>,
    functions: BTreeSet<String>,
    /// Whether one of them is not fenced.
    open: bool,
}

impl Planned {
    /// Reads what a launch said.
    pub(super) fn read(done: &Done) -> Result<Self> {
        let mut planned = Self {
            partition: done.one("launched")?.number("partition")?,
            ..Self::default()
        };
        for event in done.all("plan") {
            match event.need("kind")? {
                "cpu" => planned.cpus += 1,
                "memory" => {
                    let base = event.number("base")?;
                    planned.memory.push((base, base + event.number("length")?));
                }
                "function" => {
                    planned.functions.insert(event.need("id")?.to_owned());
                    planned.open |= event.need("fenced")? != "true";
                }
                _ => {}
            }
        }
        Ok(planned)
    }

    fn bytes(&self) -> u64 {
        self.memory.iter().map(|(base, end)| end - base).sum()
    }
}

/// What a Linux says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Its release and version.
    pub(crate) kernel: String,
    /// The time stamp counter when its first process began.
    pub(crate) first_tsc: u64,
    cpus: u64,
    memory_bytes: u64,
    /// RAM in its memory map: first and last plus one.
    ram: Vec<(u64, u64)>,
    functions: Vec<Function>,
    disk: bool,
    errors: Vec<String>,
    messages: u64,
}

#[derive(Clone, Debug)]
struct Function {
    id: String,
    driver: String,
    messages: u64,
}

impl Facts {
    /// Reads the events on its console.
    pub(super) fn read(events: &[Event]) -> Result<Self> {
        let mut facts = Self::default();
        for event in events {
            let text = || event.get("text").unwrap_or_default().to_owned();
            match event.word.as_str() {
                "linux-kernel" => {
                    facts.kernel = text();
                    facts.first_tsc = event.number("first_tsc")?;
                }
                "linux-cpus" => facts.cpus = event.number("nproc")?,
                "linux-memory" => facts.memory_bytes = event.number("bytes")?,
                "linux-iomem" if text() == "System RAM" => {
                    let base = event.number("base")?;
                    facts.ram.push((base, base + event.number("length")?));
                }
                "linux-function" => facts.functions.push(Function {
                    id: event.need("id")?.to_owned(),
                    driver: event.need("driver")?.to_owned(),
                    messages: event.number("messages")?,
                }),
                "linux-disk" => facts.disk = event.get("written_and_read") == Some("true"),
                "linux-error" => facts.errors.push(text()),
                "linux-messages" => facts.messages = event.number("count")?,
                _ => {}
            }
        }
        Ok(facts)
    }

    /// What it says must be what was planned, and nothing more.
    pub(super) fn check(&self, planned: &Planned) -> Result<()> {
        ensure!(
            self.cpus == planned.cpus,
            "Linux runs on {} of {} processors",
            self.cpus,
            planned.cpus
        );
        let bytes = planned.bytes();
        ensure!(
            self.memory_bytes <= bytes && self.memory_bytes + KEPT >= bytes,
            "Linux counts {:#x} bytes of {bytes:#x}",
            self.memory_bytes
        );
        for &(base, end) in &self.ram {
            ensure!(
                planned
                    .memory
                    .iter()
                    .any(|&(first, last)| first <= base && end <= last),
                "Linux takes {base:#x}..{end:#x} for RAM, which is not its own"
            );
        }
        let ram: u64 = self.ram.iter().map(|(base, end)| end - base).sum();
        ensure!(
            ram + RESERVED >= bytes,
            "Linux has {ram:#x} bytes in its memory map of {bytes:#x}"
        );
        let found: BTreeSet<String> = self
            .functions
            .iter()
            .map(|found| found.id.clone())
            .collect();
        ensure!(
            found == planned.functions,
            "Linux finds the functions {found:?} and not {:?}",
            planned.functions
        );
        for function in &self.functions {
            ensure!(
                function.driver != "none" && function.messages > 0,
                "Linux does not drive {}: driver {}, {} messages",
                function.id,
                function.driver,
                function.messages
            );
        }
        ensure!(
            self.disk,
            "what Linux writes to its disk is not what it reads"
        );
        let unexpected = self.unexpected();
        ensure!(unexpected.is_empty(), "Linux complains: {unexpected:?}");
        ensure!(
            self.messages > 100,
            "only {} messages of the kernel were looked at",
            self.messages
        );
        Ok(())
    }

    fn unexpected(&self) -> Vec<&String> {
        let errors = self.errors.iter();
        errors
            .filter(|error| !EXPECTED.contains(&error.as_str()))
            .collect()
    }

    /// For the report.
    pub(super) fn report(
        &self,
        planned: &Planned,
        launch_to_init_ns: u64,
        tsc_hertz: u64,
    ) -> report::Linux {
        report::Linux {
            kernel: self.kernel.clone(),
            partition: planned.partition,
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            pci_functions: self
                .functions
                .iter()
                .map(|found| found.id.clone())
                .collect(),
            interrupts_open: planned.open,
            kernel_errors: self.errors.clone(),
            launch_to_init_ns,
            cold_boot_ns: None,
            kexec_ns: None,
            tsc_hertz,
            partitions: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Facts, Planned};
    use crate::event::Event;

    const SAID: &str = "\
@linux-kernel first_tsc=77 text=\"Linux 6.1\"
@linux-cpus nproc=2 online=0-1
@linux-memory bytes=490381312
@linux-iomem base=0x20000 length=0x40000 text=\"System RAM\"
@linux-iomem base=0x7a0000 length=0xd9000 text=\"Reserved\"
@linux-iomem base=0x3800000 length=0x1ffc0000 text=\"System RAM\"
@linux-function id=0000:04:00.0 device=1af4:1041 class=020000 driver=virtio-pci messages=3
@linux-disk bytes=1048576 written_and_read=true
@linux-error level=3 text=\"ACPI: No IOAPIC entries present\"
@linux-messages count=323
@linux-ready
";

    fn planned() -> Planned {
        Planned {
            partition: 2,
            cpus: 2,
            memory: vec![(0x2_0000, 0x6_0000), (0x380_0000, 0x2380_0000)],
            functions: ["0000:04:00.0".to_owned()].into(),
            open: true,
        }
    }

    fn check(said: &str) -> Result<(), String> {
        let events: Vec<Event> = said.lines().filter_map(Event::parse).collect();
        let facts = Facts::read(&events).map_err(|error| error.to_string())?;
        facts.check(&planned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_machine_that_is_as_planned_is_accepted() {
        assert_eq!(check(SAID), Ok(()));
    }

    #[test]
    fn whatever_is_not_as_planned_is_found() {
        for (from, to, word) in [
            ("nproc=2", "nproc=1", "processors"),
            ("bytes=490381312", "bytes=290381312", "counts"),
            ("bytes=490381312", "bytes=990381312", "counts"),
            (
                "base=0x20000 length=0x40000",
                "base=0x20000 length=0x41000",
                "not its own",
            ),
            ("0x1ffc0000", "0x1f000000", "memory map"),
            ("0000:04:00.0", "0000:00:00.0", "functions"),
            ("driver=virtio-pci", "driver=none", "does not drive"),
            ("messages=3", "messages=0", "does not drive"),
            ("written_and_read=true", "written_and_read=false", "disk"),
            ("No IOAPIC entries present", "AE_NOT_FOUND", "complains"),
            ("count=323", "count=3", "messages"),
        ] {
            assert!(SAID.contains(from));
            let error = check(&SAID.replace(from, to)).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let without = |word: &str| -> String {
            SAID.lines()
                .filter(|line| !line.contains(word))
                .map(|line| format!("{line}\n"))
                .collect()
        };
        for word in [
            "linux-cpus",
            "linux-function",
            "linux-disk",
            "linux-messages",
        ] {
            assert!(check(&without(word)).is_err(), "{word}");
        }
    }
}
