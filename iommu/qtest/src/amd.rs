//! A machine with QEMU's `amd-iommu` behind the AMD-Vi driver.
//!
//! All devices sit on bus 0: the emulated unit looks up memory requests from behind a bridge as if
//! they came from bus 0. Table memory is the emulator's own, in a file that both have open: to lay
//! out and look through 65,536 device table entries over the socket would take a minute.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};
use iommu::amd::{CapabilityHeader, Config, InterruptHandle, PrepareError, Unit};
use iommu::{Access, TableMemory};

use crate::{
    Bus, Edu, Function, MINE, Observer, Qemu, QemuRegisters, Settings, Step, THEIRS, WallClock, id,
    target,
};

/// Where the emulated unit's registers lie.
pub const AMD_REGISTERS: u64 = 0xfed8_0000;

const fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + length))
}

/// The register window.
pub const AMD_WINDOW: PhysRange = range(AMD_REGISTERS, 0x4000);
/// The memory of the driver's tables.
pub const AMD_ARENA: PhysRange = range(0x7000_0000, 0x60_0000);

/// The first device number of the `edu` devices; the unit itself is device 1.
const FIRST_DEVICE: u8 = 4;
const FIRST_WINDOW: u64 = 0xc000_0000;
const EDU_REGISTERS: u64 = 1 << 20;

/// The driver on the emulated machine.
pub type AmdDriver = Unit<QemuRegisters, SharedTables, WallClock>;

/// The emulated machine's memory, in a file that the emulator maps.
#[derive(Debug)]
pub struct SharedTables {
    file: File,
    observer: Observer,
}

impl TableMemory for SharedTables {
    fn load(&self, at: PhysAddr) -> u64 {
        self.observer.see(Step::Load(at.0));
        let mut word = [0; 8];
        self.file
            .read_exact_at(&mut word, at.0)
            .expect("the file is as long as memory");
        u64::from_le_bytes(word)
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.observer.see(Step::Store(at.0));
        self.file
            .write_all_at(&value.to_le_bytes(), at.0)
            .expect("the file is as long as memory");
    }

    fn write_back(&mut self, at: PhysAddr, _length: u64) {
        // The emulated unit has no cache between it and memory.
        self.observer.see(Step::WriteBack(at.0));
    }
}

/// A machine with an AMD-Vi unit, and devices on bus 0.
#[derive(Debug)]
pub struct AmdMachine {
    bus: Bus,
    memory: File,
    edus: Vec<Edu>,
}

/// A file that nobody else uses.
fn memory_file() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("iommu-qtest-memory-{}-{number}", std::process::id());
    std::env::temp_dir().join(name)
}

impl AmdMachine {
    /// Starts a machine with this many devices, each of which may make requests.
    ///
    /// # Panics
    /// Where the emulator does not start, or a device is not where it should be.
    #[must_use]
    pub fn start(devices: usize) -> Self {
        let path = memory_file();
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(2 << 30).map(|()| file))
            .expect("the temporary directory is writable");
        let text = path.display();
        let mut arguments = vec![
            "-object".to_owned(),
            format!("memory-backend-file,id=ram,size=2G,mem-path={text},share=on"),
            "-machine".to_owned(),
            "memory-backend=ram".to_owned(),
            "-device".to_owned(),
            "amd-iommu,intremap=on".to_owned(),
        ];
        let numbers: Vec<u8> = (FIRST_DEVICE..).take(devices).collect();
        for number in &numbers {
            arguments.push("-device".to_owned());
            arguments.push(format!(
                "edu,dma_mask={:#x},bus=pcie.0,addr={number:#x}",
                u64::MAX
            ));
        }
        let qemu = Qemu::start(&Settings {
            arguments,
            trace: ["amdvi_*", "apic_deliver_irq"].map(str::to_owned).to_vec(),
        });
        // Both have it open.
        std::fs::remove_file(&path).expect("the file is there");
        let bus = Bus::new(qemu);
        let edus = numbers.iter().enumerate().map(|(index, &number)| {
            let address = RequesterId::new(0, number, 0).expect("a device number");
            let function = Function::new(bus.clone(), address);
            assert_eq!(function.read(0), 0x11e8_1234, "no edu device at {address}");
            let window = FIRST_WINDOW + index as u64 * EDU_REGISTERS;
            function.write(0x10, window as u32);
            function.enable_memory();
            function.set_bus_master(true);
            assert_eq!(bus.read32(window), 0x0100_00ed);
            Edu::new(bus.clone(), function, address, window)
        });
        let edus = edus.collect();
        Self {
            bus,
            memory: file,
            edus,
        }
    }

    /// The processor's view.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The devices.
    #[must_use]
    pub fn edus(&self) -> &[Edu] {
        &self.edus
    }

    /// The configuration for this machine's unit, read from its configuration space.
    ///
    /// # Panics
    /// Where the unit is not where QEMU puts it.
    #[must_use]
    pub fn config(&self) -> Config {
        let address = RequesterId::new(0, 1, 0).expect("a device number");
        let function = Function::new(self.bus.clone(), address);
        let at = function.capability(0x0f).expect("an IOMMU's capability");
        Config {
            host_address_bits: 40,
            capability: CapabilityHeader::from_bits_retain(function.read(at)),
            // HtTunEn, IotlbSup, PreFSup, PPRSup.
            ivhd_flags: 0xd1,
            timeout_microseconds: 2_000_000,
            ..Config::default()
        }
    }

    /// Registers and memory for a driver.
    ///
    /// # Panics
    /// Where the file cannot be opened twice.
    #[must_use]
    pub fn platform(&self, observer: &Observer) -> (QemuRegisters, SharedTables) {
        self.bus.settle();
        (
            QemuRegisters::new(self.bus.clone(), AMD_REGISTERS, observer.clone()),
            SharedTables {
                file: self.memory.try_clone().expect("a file can be shared"),
                observer: observer.clone(),
            },
        )
    }

    /// The driver for this machine's unit, not enabled yet, and what sees its accesses.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn driver(&self, config: Config) -> Result<(AmdDriver, Observer), PrepareError> {
        let observer = Observer::default();
        // What lies in the arena beforehand must not matter.
        self.bus.fill(AMD_ARENA.base().0, AMD_ARENA.length(), 0xa5);
        let (registers, memory) = self.platform(&observer);
        let clock = WallClock::default();
        let driver = Unit::prepare(registers, memory, clock, AMD_WINDOW, AMD_ARENA, config)?;
        Ok((driver, observer))
    }
}

/// A machine whose unit the driver brought up, with the domains 1, which has [`MINE`], and 2, which
/// has [`THEIRS`]. No device is in either.
#[derive(Debug)]
pub struct AmdFence {
    /// The machine.
    pub machine: AmdMachine,
    /// What sees the driver's accesses.
    pub observer: Observer,
    /// The driver.
    pub driver: AmdDriver,
}

impl AmdFence {
    /// Starts a machine and brings its unit up.
    ///
    /// # Panics
    /// Where any of that fails.
    #[must_use]
    pub fn new(devices: usize) -> Self {
        Self::with(devices, |config| config)
    }

    /// As [`new`](Self::new), with another configuration.
    ///
    /// # Panics
    /// Where any of that fails.
    #[must_use]
    pub fn with(devices: usize, change: impl FnOnce(Config) -> Config) -> Self {
        let machine = AmdMachine::start(devices);
        let config = change(machine.config());
        let (mut driver, observer) = machine.driver(config).expect("the unit is fit for use");
        for (domain, memory) in [(id(1), MINE), (id(2), THEIRS)] {
            driver.create_domain(domain).expect("a new domain");
            let mapped = driver.map(domain, memory.base().0, memory, Access::READ_WRITE);
            let mapped = mapped.expect("memory that can be mapped");
            driver.flush(mapped).expect("nothing to do yet");
        }
        driver.enable().expect("the unit comes up");
        Self {
            machine,
            observer,
            driver,
        }
    }

    /// A device; clones are the same device.
    #[must_use]
    pub fn edu(&self, index: usize) -> Edu {
        self.machine.edus()[index].clone()
    }

    /// Attaches a device.
    ///
    /// # Panics
    /// Where that fails.
    pub fn attach(&mut self, device: usize, domain: DomainId) {
        let requester = self.edu(device).requester();
        let pending = self.driver.attach(requester, domain);
        let pending = pending.expect("a device that is blocked");
        self.driver.flush(pending).expect("the unit obeys");
    }

    /// Gives a device an interrupt and programs it.
    ///
    /// # Panics
    /// Where that fails.
    pub fn interrupt(&mut self, device: usize, processor: u32, vector: u8) -> InterruptHandle {
        let edu = self.edu(device);
        let set = self
            .driver
            .allocate_interrupt(edu.requester(), target(processor, vector));
        let (handle, pending) = set.expect("a free entry");
        self.driver.flush(pending).expect("the unit obeys");
        edu.set_message(handle.message());
        handle
    }

    /// Whether the device can both read and write at `address`, a device address equal to the
    /// physical one; proved by what lands, never by what the device says.
    #[must_use]
    pub fn reaches(&self, device: usize, address: u64) -> bool {
        crate::reaches(self.machine.bus(), &self.edu(device), address, address)
    }

    /// Whether what the device writes at `address` leaves what is there as it was.
    #[must_use]
    pub fn cannot_write(&self, device: usize, address: u64) -> bool {
        let bus = self.machine.bus();
        let edu = self.edu(device);
        let before = bus.read(address, 16);
        edu.dma_write(address, 16);
        bus.read(address, 16) == before
    }
}
