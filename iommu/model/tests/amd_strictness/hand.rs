//! The smallest driver there can be, in raw numbers, so that the model is tested on its own.

use handoff_abi::PhysAddr;
use iommu::{Deadline, RegisterIo, TableMemory};
use iommu_model::amd::{
    Clock, Machine, MachineConfig, Reason, Registers, Rule, Tables, UnitConfig,
};

pub(crate) const COMMANDS: u64 = 0x10_0000;
pub(crate) const EVENTS: u64 = 0x10_1000;
pub(crate) const STORE: u64 = 0x10_2000;
/// An interrupt table with 512 entries of up to 16 bytes.
pub(crate) const INTERRUPTS: u64 = 0x10_4000;
pub(crate) const DEVICES: u64 = 0x20_0000;
/// Room for another device table.
pub(crate) const OTHER_DEVICES: u64 = 0x60_0000;
/// Page tables of two domains, three levels each.
pub(crate) const TABLES: [u64; 2] = [0x11_0000, 0x12_0000];
/// What the two domains map their address 0x8000 to.
pub(crate) const FRAMES: [u64; 2] = [0x200_0000, 0x300_0000];
pub(crate) const IOVA: u64 = 0x8000;
pub(crate) const SID: u16 = 0x0108;

pub(crate) const READ: u64 = 1 << 61;
pub(crate) const WRITE: u64 = 1 << 62;
pub(crate) const RW: u64 = READ | WRITE;
/// V, TV, no levels, no access; IV, interrupts aborted.
pub(crate) const DENIED: [u64; 4] = [3, 0, 1, 0];

pub(crate) const IOMMU_EN: u64 = 1 << 0;
pub(crate) const EVENT_LOG_EN: u64 = 1 << 2;
pub(crate) const EVENT_INT_EN: u64 = 1 << 3;
pub(crate) const COHERENT: u64 = 1 << 10;
pub(crate) const CMD_BUF_EN: u64 = 1 << 12;
pub(crate) const GA_EN: u64 = 1 << 17;
pub(crate) const XT_EN: u64 = 1 << 50;
pub(crate) const EVENT_RUN: u64 = 1 << 3;
pub(crate) const COMMAND_RUN: u64 = 1 << 4;

pub(crate) const RING: u64 = 8 << 56;
/// The command that empties all caches.
pub(crate) const ALL: (u64, u64) = (8 << 60, 0);
/// A wait that only keeps order.
pub(crate) const BARRIER: (u64, u64) = (1 << 60 | 4, 0);

pub(crate) fn entry_command(sid: u16) -> (u64, u64) {
    (2 << 60 | u64::from(sid), 0)
}

pub(crate) fn interrupts_command(sid: u16) -> (u64, u64) {
    (5 << 60 | u64::from(sid), 0)
}

/// All pages of a domain, directories included.
pub(crate) fn domain_command(did: u64) -> (u64, u64) {
    (3 << 60 | did << 32, 0x7fff_ffff_ffff_f000 | 3)
}

pub(crate) struct Hand {
    pub(crate) machine: Machine,
    pub(crate) registers: Registers,
    pub(crate) tables: Tables,
    pub(crate) clock: Clock,
    pub(crate) control: u64,
    pub(crate) tail: u64,
    pub(crate) waits: u64,
    pub(crate) flush: bool,
}

impl Hand {
    pub(crate) fn new(unit: UnitConfig) -> Self {
        Self::with(MachineConfig::default(), unit)
    }

    pub(crate) fn with(config: MachineConfig, unit: UnitConfig) -> Self {
        let machine = Machine::new(config, std::slice::from_ref(&unit));
        let format = if unit.guest_apic { GA_EN } else { 0 } | if unit.x2apic { XT_EN } else { 0 };
        Self {
            registers: machine.registers(0),
            tables: machine.memory(),
            clock: machine.clock(),
            control: COHERENT | CMD_BUF_EN | EVENT_LOG_EN | format,
            tail: 0,
            waits: 0,
            flush: !unit.coherent,
            machine,
        }
    }

    pub(crate) fn store(&mut self, at: u64, value: u64) {
        self.tables.store(PhysAddr(at), value);
        if self.flush {
            self.tables.write_back(PhysAddr(at), 8);
        }
    }

    pub(crate) fn zero(&mut self, at: u64) {
        for word in (at..at + 4096).step_by(8) {
            self.tables.store(PhysAddr(word), 0);
        }
        if self.flush {
            self.tables.write_back(PhysAddr(at), 4096);
        }
    }

    /// Fills a device table, as if it had been stored and written back.
    pub(crate) fn fill(&self, at: u64, entry: [u64; 4]) {
        self.machine.fill(at, &entry, 512);
    }

    pub(crate) fn status(&mut self) -> u64 {
        self.registers.read64(0x2020)
    }

    /// Polls until the status bits are as wanted; false where they never are.
    pub(crate) fn awaits(&mut self, bits: u64, value: u64) -> bool {
        self.clock.start(10_000);
        while self.status() & bits != value {
            if self.clock.expired() {
                return false;
            }
        }
        true
    }

    pub(crate) fn write_control(&mut self, value: u64) {
        self.control = value;
        self.registers.write64(0x18, value);
    }

    pub(crate) fn submit(&mut self, (low, high): (u64, u64)) {
        let at = COMMANDS + self.tail;
        self.store(at, low);
        self.store(at + 8, high);
        self.tail = (self.tail + 16) % 4096;
    }

    pub(crate) fn ring(&mut self) {
        self.registers.write64(0x2008, self.tail);
    }

    /// A wait with a store, and its completion; false where it never came.
    pub(crate) fn wait(&mut self) -> bool {
        self.waits += 1;
        let number = self.waits;
        self.submit((1 << 60 | STORE | 1, number));
        self.ring();
        self.clock.start(10_000);
        while self.tables.load(PhysAddr(STORE)) != number {
            if self.clock.expired() {
                return false;
            }
        }
        true
    }

    /// These commands, one after the other, and a wait.
    #[track_caller]
    pub(crate) fn run(&mut self, commands: &[(u64, u64)]) {
        for &command in commands {
            self.submit(command);
            self.submit(BARRIER);
        }
        assert!(self.wait(), "{commands:x?} never completed");
    }

    pub(crate) fn build_tables(&mut self) {
        for page in [COMMANDS, EVENTS, STORE, INTERRUPTS, INTERRUPTS + 4096] {
            self.zero(page);
        }
        for (root, frame) in TABLES.into_iter().zip(FRAMES) {
            for level in 0..3 {
                self.zero(root + level * 4096);
            }
            self.store(root + 8 * (IOVA >> 30), (root + 4096) | 2 << 9 | RW | 1);
            let middle = root + 4096 + 8 * (IOVA >> 21 & 511);
            self.store(middle, (root + 8192) | 1 << 9 | RW | 1);
            self.store(root + 8192 + 8 * (IOVA >> 12 & 511), frame | RW | 1);
        }
    }

    /// Everything but `IommuEn`.
    pub(crate) fn prepare(&mut self) {
        self.build_tables();
        self.fill(DEVICES, DENIED);
        self.registers.write64(0x00, DEVICES | 0x1ff);
        self.registers.write64(0x08, COMMANDS | RING);
        self.registers.write64(0x10, EVENTS | RING);
        self.write_control(self.control);
    }

    pub(crate) fn enable(&mut self) {
        self.write_control(self.control | IOMMU_EN);
        let run = COMMAND_RUN | EVENT_RUN;
        assert!(self.awaits(run, run), "it does not run");
    }

    /// All of it, in the right order.
    pub(crate) fn bring_up(&mut self) {
        self.prepare();
        self.enable();
        self.run(&[ALL]);
    }

    pub(crate) fn entry_at(sid: u16) -> u64 {
        DEVICES + u64::from(sid) * 32
    }

    /// The first word of an entry that translates by the tables of a domain.
    pub(crate) fn translating(domain: usize) -> u64 {
        TABLES[domain] | 3 << 9 | RW | 3
    }

    /// Writes the entry of the requester for a domain: the half without permissions first.
    pub(crate) fn write_entry(&mut self, domain: usize) {
        let at = Self::entry_at(SID);
        self.store(at + 8, domain as u64 + 1);
        self.store(at, Self::translating(domain));
    }

    /// Attaches the requester to a domain.
    pub(crate) fn attach(&mut self, domain: usize) {
        self.write_entry(domain);
        self.run(&[entry_command(SID)]);
    }

    pub(crate) fn block(&mut self) {
        self.store(Self::entry_at(SID), DENIED[0]);
    }

    /// Moves the requester from domain 1 (number 0) to domain 2, correctly.
    pub(crate) fn move_over(&mut self) {
        self.block();
        self.run(&[entry_command(SID), domain_command(1)]);
        self.attach(1);
    }

    /// Gives the requester its interrupt table.
    pub(crate) fn interrupts(&mut self, length: u64) {
        let word = 2 << 60 | INTERRUPTS | length << 1 | 1;
        self.store(Self::entry_at(SID) + 16, word);
        self.run(&[entry_command(SID), interrupts_command(SID)]);
    }

    /// An interrupt entry of 128 bits: vector, destination.
    pub(crate) fn interrupt_entry(&mut self, index: u64, vector: u64, destination: u64) {
        let at = INTERRUPTS + index * 16;
        self.store(at + 8, vector | (destination >> 24) << 56);
        self.store(at, (destination & 0xff_ffff) << 8 | 1);
    }

    /// Reads the event at the head when it has arrived, clears it and moves the head.
    #[track_caller]
    pub(crate) fn next_event(&mut self) -> [u64; 2] {
        let head = self.registers.read64(0x2010);
        assert_ne!(head, self.registers.read64(0x2018), "no event");
        let at = PhysAddr(EVENTS + head);
        self.clock.start(10_000);
        while self.tables.load(at) >> 60 == 0 {
            assert!(!self.clock.expired(), "the event never arrived");
        }
        let event = [self.tables.load(at), self.tables.load(PhysAddr(at.0 + 8))];
        self.store(at.0, 0);
        self.registers.write64(0x2010, (head + 16) % 4096);
        event
    }

    #[track_caller]
    pub(crate) fn broke(&self, rule: Rule) {
        let violations = self.machine.violations();
        assert!(
            violations.iter().any(|v| v.rule == rule),
            "{rule:?} is not among {violations:?}"
        );
    }
}

/// A unit that is on, with the requester in domain 1.
pub(crate) fn up() -> Hand {
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.attach(0);
    hand
}

/// A unit with a forgiving test: only what the architecture itself says.
pub(crate) fn lax() -> UnitConfig {
    UnitConfig {
        fence_rules: false,
        denied_when_enabled: false,
        ..UnitConfig::default()
    }
}

/// Where a write by the requester lands.
pub(crate) fn write(hand: &Hand) -> Result<u64, Reason> {
    let dma = hand.machine.dma_write(0, SID, IOVA, b"data");
    dma.blocked.map_or_else(|| Ok(dma.landed[0].0), Err)
}

/// Why an access of one byte is blocked, if it is.
pub(crate) fn blocked(hand: &Hand, at: u64, write: bool) -> Option<Reason> {
    if write {
        hand.machine.dma_write(0, SID, at, &[1]).blocked
    } else {
        hand.machine.dma_read(0, SID, at, 1).blocked
    }
}
