//! A machine behind the driver, with two partitions' memory, and attacks on it.

use handoff_abi::{
    ApicId, DomainId, FRAME_SIZE, InterruptTarget, PhysAddr, PhysRange, RequesterId,
};
use iommu::vtd::{Config, EnableError, InterruptHandle, PrepareError, Unit};
use iommu::{Access, Fault, FaultReason, FaultRequest};

use crate::{
    Board, Bus, Edu, Event, Machine, Observer, QemuRegisters, QemuTables, VTD_REGISTERS, WallClock,
    raw,
};

/// The driver on the emulated machine.
pub type Driver = Unit<QemuRegisters, QemuTables, WallClock>;

const fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + length))
}

/// Memory of the domain 1.
pub const MINE: PhysRange = range(0x1000_0000, 0x1_0000);
/// Memory of the domain 2.
pub const THEIRS: PhysRange = range(0x2000_0000, 0x1_0000);
/// Memory of no domain, next to domain 1's.
pub const UNMAPPED: PhysRange = range(0x1001_0000, 0x1_0000);

const WINDOW: PhysRange = range(VTD_REGISTERS, FRAME_SIZE);
const ARENA: PhysRange = range(0x7000_0000, 0x10_0000);
const SECOND_ARENA: PhysRange = range(0x7010_0000, 0x10_0000);

/// A domain's id.
#[must_use]
pub const fn id(number: u16) -> DomainId {
    DomainId(number)
}

/// What the unit is to say of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Who.
    pub source: RequesterId,
    /// The page.
    pub page: u64,
    /// The specification's code for the reason.
    pub code: u8,
    /// What the driver makes of the code.
    pub reason: FaultReason,
}

/// What a device tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// To read.
    Read,
    /// To write.
    Write,
}

/// A machine whose unit the driver brought up.
#[derive(Debug)]
pub struct Fence {
    machine: Machine,
    observer: Observer,
    raw: raw::Unit,
    /// The driver.
    pub driver: Driver,
}

impl Machine {
    /// The driver for this machine's unit, not enabled yet, and what sees its accesses.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn driver(&self, config: Config) -> Result<(Driver, Observer), PrepareError> {
        self.driver_in(ARENA, config)
    }

    /// As [`driver`](Self::driver), with tables in other memory.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn second_driver(&self, config: Config) -> Result<(Driver, Observer), PrepareError> {
        self.driver_in(SECOND_ARENA, config)
    }

    fn driver_in(
        &self,
        arena: PhysRange,
        config: Config,
    ) -> Result<(Driver, Observer), PrepareError> {
        let observer = Observer::default();
        let (registers, memory) = self.platform(&observer);
        // What lies in the arena beforehand must not matter.
        self.bus().fill(arena.base().0, arena.length(), 0xa5);
        let clock = WallClock::default();
        let driver = Unit::prepare(registers, memory, clock, WINDOW, arena, config)?;
        Ok((driver, observer))
    }

    /// Registers and memory for a driver.
    #[must_use]
    pub fn platform(&self, observer: &Observer) -> (QemuRegisters, QemuTables) {
        (
            QemuRegisters::new(self.bus().clone(), VTD_REGISTERS, observer.clone()),
            QemuTables::new(self.bus().clone(), observer.clone()),
        )
    }

    /// The unit without the driver.
    #[must_use]
    pub fn raw(&self) -> raw::Unit {
        raw::Unit::new(self.bus().clone(), VTD_REGISTERS)
    }
}

impl Fence {
    /// Starts a machine, and brings its unit up with the domains 1, which has [`MINE`], and 2,
    /// which has [`THEIRS`]. No device is in either.
    ///
    /// # Panics
    /// Where any of that fails.
    #[must_use]
    pub fn new(board: &Board<'_>) -> Self {
        Self::with_config(board, Config::default())
    }

    /// As [`new`](Self::new), with another configuration.
    ///
    /// # Panics
    /// Where any of that fails.
    #[must_use]
    pub fn with_config(board: &Board<'_>, config: Config) -> Self {
        let machine = Machine::start(board);
        let (driver, observer) = machine.driver(config).expect("the unit is fit for use");
        let raw = machine.raw();
        let mut fence = Self {
            machine,
            observer,
            raw,
            driver,
        };
        fence.make_domains();
        fence.enable().expect("the unit comes up");
        fence
    }

    /// Makes the two domains in the driver.
    ///
    /// # Panics
    /// Where that fails.
    pub fn make_domains(&mut self) {
        for (domain, memory) in [(id(1), MINE), (id(2), THEIRS)] {
            self.driver.create_domain(domain).expect("a new domain");
            self.map(domain, memory, Access::READ_WRITE);
        }
    }

    fn enable(&mut self) -> Result<(), EnableError> {
        self.driver.enable()
    }

    /// Exchanges the driver for another of the same unit.
    pub fn replace_driver(&mut self, (driver, observer): (Driver, Observer)) -> Driver {
        self.observer = observer;
        std::mem::replace(&mut self.driver, driver)
    }

    /// The machine.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The processor's view.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        self.machine.bus()
    }

    /// The unit without the driver.
    #[must_use]
    pub const fn raw(&self) -> &raw::Unit {
        &self.raw
    }

    /// What sees the driver's accesses.
    #[must_use]
    pub const fn observer(&self) -> &Observer {
        &self.observer
    }

    /// A device; clones are the same device.
    #[must_use]
    pub fn edu(&self, index: usize) -> Edu {
        self.machine.edus()[index].clone()
    }

    /// The register window.
    #[must_use]
    pub const fn window(&self) -> PhysRange {
        WINDOW
    }

    /// Maps memory in a domain at its own address.
    ///
    /// # Panics
    /// Where the driver refuses.
    pub fn map(&mut self, domain: DomainId, memory: PhysRange, access: Access) {
        let pending = self.driver.map(domain, memory.base().0, memory, access);
        self.flush(pending.expect("the memory can be mapped"));
    }

    /// Attaches a device.
    ///
    /// # Panics
    /// Where the driver refuses.
    pub fn attach(&mut self, device: usize, domain: DomainId) {
        let requester = self.edu(device).requester();
        let pending = self.driver.attach(requester, domain);
        self.flush(pending.expect("the device can be attached"));
    }

    /// Waits for an invalidation.
    ///
    /// # Panics
    /// Where it fails.
    pub fn flush(&mut self, pending: iommu::vtd::Pending) {
        self.driver.flush(pending).expect("the unit invalidates");
    }

    /// Has a device raise what an interrupt entry of its own says.
    ///
    /// # Panics
    /// Where the driver refuses.
    pub fn interrupt(&mut self, device: usize, processor: u32, vector: u8) -> InterruptHandle {
        let edu = self.edu(device);
        let target = target(processor, vector);
        let (handle, pending) = self
            .driver
            .allocate_interrupt(edu.requester(), target)
            .expect("an entry is free");
        self.flush(pending);
        edu.set_message(handle.message());
        handle
    }

    /// Every fault since the last call, through the driver.
    ///
    /// # Panics
    /// Where the unit is gone, or lost one.
    pub fn faults(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let count = self
            .driver
            .drain_faults(|fault| faults.push(fault))
            .expect("the unit is there");
        assert_eq!(count.records as usize, faults.len());
        assert!(!count.overflowed, "a fault was lost: {faults:?}");
        faults
    }

    /// Checks that the device reads and writes `address` in both directions, with no fault.
    ///
    /// # Panics
    /// Where it does not.
    pub fn assert_reaches(&mut self, device: usize, address: u64) {
        assert!(
            self.reaches(device, address, address),
            "{} does not reach {address:#x}",
            self.edu(device).requester()
        );
        assert_eq!(self.faults(), []);
    }

    /// Whether what the device reads at `iova` is what the processor wrote at `memory`, and the
    /// other way round.
    #[must_use]
    pub fn reaches(&self, device: usize, iova: u64, memory: u64) -> bool {
        reaches(self.bus(), &self.edu(device), iova, memory)
    }

    /// Has a device in domain 1, or one whose buffer was filled before, attack `target`, and checks
    /// that nothing came of it but the fault record that is expected: in the unit's registers, and
    /// as the driver hands it over.
    ///
    /// `memory` is the physical memory that the attack would reach, if it is memory.
    ///
    /// # Panics
    /// Where anything else happens.
    pub fn assert_blocked(
        &mut self,
        device: usize,
        attack: Attack,
        target: u64,
        memory: Option<u64>,
        expected: Blocked,
    ) {
        assert_eq!(self.faults(), [], "before the attack");
        let bus = self.bus().clone();
        let edu = self.edu(device);
        let before = memory.map(|memory| bus.read(memory, LENGTH));
        match attack {
            Attack::Write => edu.dma_write(target, LENGTH),
            Attack::Read => edu.dma_read(target, LENGTH),
        }
        let found = self.raw.fault();
        assert_eq!(
            found,
            Some(raw::FaultRecord {
                source: expected.source,
                reason: expected.code,
                address: expected.page,
                read: attack == Attack::Read,
            }),
            "{attack:?} of {target:#x}: record in the registers"
        );
        let address = expected.page;
        let request = match attack {
            Attack::Write => FaultRequest::Write { address },
            Attack::Read => FaultRequest::Read { address },
        };
        let fault = Fault {
            source: expected.source,
            request,
            reason: expected.reason,
            code: expected.code,
            pasid: None,
        };
        assert_eq!(self.faults(), [fault], "{attack:?} of {target:#x}");
        assert_eq!(self.raw.fault_status() & 3, 0, "nothing is left recorded");
        if let (Some(memory), Some(before)) = (memory, before) {
            assert_eq!(
                bus.read(memory, LENGTH),
                before,
                "{attack:?} of {target:#x}: memory changed"
            );
        }
    }

    /// Has the device, which is in domain 1, read and write `target`, which it must not reach, and
    /// proves both blocked: the memory at `memory`, if it is memory, keeps a canary, and what lies
    /// there does not come out through the device.
    ///
    /// # Panics
    /// Where it is not blocked, or not recorded as `code`s 6 and 5, not permitted.
    pub fn assert_not_permitted(&mut self, device: usize, target: u64, memory: Option<u64>) {
        self.assert_blocked_both_ways(
            device,
            target,
            memory,
            [raw::reason::READ, raw::reason::WRITE],
            FaultReason::NotPermitted,
        );
    }

    /// As [`assert_not_permitted`](Self::assert_not_permitted), with the codes for read and write
    /// and the reason given.
    ///
    /// # Panics
    /// Where it is not blocked, or not recorded so.
    pub fn assert_blocked_both_ways(
        &mut self,
        device: usize,
        target: u64,
        memory: Option<u64>,
        codes: [u8; 2],
        reason: FaultReason,
    ) {
        let bus = self.bus().clone();
        let edu = self.edu(device);
        let own = MINE.base().0 + 0x8000;
        let expected = |code| Blocked {
            source: edu.requester(),
            page: target & !(FRAME_SIZE - 1),
            code,
            reason,
        };

        // What the device would bring out has a pattern that is found nowhere else.
        bus.write(own, &[0x11; LENGTH]);
        edu.dma_read(own, LENGTH);
        let secret = memory.map(|memory| bus.read(memory, LENGTH));
        self.assert_blocked(device, Attack::Read, target, memory, expected(codes[0]));
        bus.write(own, &[0x22; LENGTH]);
        edu.dma_write(own, LENGTH);
        let brought = bus.read(own, LENGTH);
        assert!(
            brought == [0x11; LENGTH] || brought == [0; LENGTH],
            "the device read {brought:02x?} at {target:#x}"
        );
        if let Some(secret) = secret {
            assert_ne!(secret, brought, "the secret must differ from the canary");
        }

        bus.write(own, &[0x33; LENGTH]);
        edu.dma_read(own, LENGTH);
        self.assert_blocked(device, Attack::Write, target, memory, expected(codes[1]));
        // And the device is as able as before.
        self.assert_reaches(device, own);
    }
}

/// How many bytes an attack has.
const LENGTH: usize = 16;

/// The target of an interrupt.
#[must_use]
pub const fn target(processor: u32, vector: u8) -> InterruptTarget {
    InterruptTarget {
        destination: ApicId(processor),
        vector,
    }
}

/// Whether what the device reads at `iova` is what the processor wrote at `memory`, and the other
/// way round. Each call uses bytes that no call before it has used.
#[must_use]
pub fn reaches(bus: &Bus, edu: &Edu, iova: u64, memory: u64) -> bool {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The splitmix64 finalizer: distinct numbers give distinct, scattered words.
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let pattern = (word ^ word >> 27 | 1).to_le_bytes();
    bus.write(memory, &pattern);
    edu.dma_read(iova, pattern.len());
    bus.write(memory, &[0; 8]);
    edu.dma_write(iova, pattern.len());
    bus.read(memory, pattern.len()) == pattern
}

/// The interrupts in a piece of trace: destination and vector.
#[must_use]
pub fn delivered(events: &[Event]) -> Vec<(u64, u64)> {
    events
        .iter()
        .filter(|event| event.name == "apic_deliver_irq")
        .map(|event| (event.field("dest"), event.field("vector")))
        .collect()
}
