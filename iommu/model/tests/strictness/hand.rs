//! The smallest driver there can be, in raw numbers, so that the model is tested on its own.

use handoff_abi::PhysAddr;
use iommu::{Deadline, RegisterIo, TableMemory};
use iommu_model::{Clock, Machine, MachineConfig, Reason, Registers, Rule, Tables, UnitConfig};

pub(crate) const ROOT: u64 = 0x10_0000;
pub(crate) const CONTEXT: u64 = 0x10_1000;
pub(crate) const QUEUE: u64 = 0x10_2000;
pub(crate) const INTERRUPTS: u64 = 0x10_3000;
pub(crate) const STATUS: u64 = 0x10_4000;
/// Page tables of two domains, three levels each.
pub(crate) const TABLES: [u64; 2] = [0x11_0000, 0x12_0000];
/// What the two domains map their address 0x8000 to.
pub(crate) const FRAMES: [u64; 2] = [0x200_0000, 0x300_0000];
pub(crate) const IOVA: u64 = 0x8000;
/// A requester on bus 1.
pub(crate) const SID: u16 = 0x0108;

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const WBF: u32 = 1 << 27;
pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IRE: u32 = 1 << 25;
pub(crate) const SIRTP: u32 = 1 << 24;

pub(crate) struct Hand {
    pub(crate) machine: Machine,
    pub(crate) registers: Registers,
    pub(crate) tables: Tables,
    pub(crate) clock: Clock,
    pub(crate) tail: u64,
    pub(crate) waits: u32,
    pub(crate) flush: bool,
}

impl Hand {
    pub(crate) fn new(unit: UnitConfig) -> Self {
        Self::with(MachineConfig::default(), unit)
    }

    pub(crate) fn with(config: MachineConfig, unit: UnitConfig) -> Self {
        let machine = Machine::new(config, std::slice::from_ref(&unit));
        Self {
            registers: machine.registers(0),
            tables: machine.memory(),
            clock: machine.clock(),
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

    pub(crate) fn status(&mut self) -> u32 {
        self.registers.read32(0x1c)
    }

    /// One command, and its completion.
    pub(crate) fn command(&mut self, bit: u32) {
        let now = self.status() & 0x96ff_ffff;
        self.registers.write32(0x18, now | bit);
        self.clock.start(10_000);
        while (self.status() & bit != 0) == (bit == WBF) {
            assert!(!self.clock.expired(), "command {bit:#x} never completed");
        }
    }

    pub(crate) fn submit(&mut self, low: u64, high: u64) {
        let at = QUEUE + self.tail;
        self.store(at, low);
        self.store(at + 8, high);
        self.tail = (self.tail + 16) % 4096;
    }

    pub(crate) fn ring(&mut self) {
        self.registers.write64(0x88, self.tail);
    }

    /// A wait with a status write, and its completion; false where it never came.
    pub(crate) fn wait(&mut self) -> bool {
        self.waits += 1;
        let number = u64::from(self.waits);
        self.submit(number << 32 | 1 << 5 | 5, STATUS);
        self.ring();
        self.clock.start(10_000);
        while self.tables.load(PhysAddr(STATUS)) & 0xffff_ffff != number {
            if self.clock.expired() {
                return false;
            }
        }
        true
    }

    pub(crate) fn build_tables(&mut self) {
        for page in [ROOT, CONTEXT, QUEUE, INTERRUPTS, STATUS] {
            self.zero(page);
        }
        for (root, frame) in TABLES.into_iter().zip(FRAMES) {
            for level in 0..3 {
                self.zero(root + level * 4096);
            }
            self.store(root + 8 * (IOVA >> 30), (root + 4096) | 3);
            self.store(root + 4096 + 8 * (IOVA >> 21 & 511), (root + 8192) | 3);
            self.store(root + 8192 + 8 * (IOVA >> 12 & 511), frame | 3);
        }
        self.store(ROOT + 16, CONTEXT | 1);
    }

    pub(crate) fn context_at() -> u64 {
        CONTEXT + u64::from(SID & 0xff) * 16
    }

    /// Attaches the requester to a domain: the upper half first.
    pub(crate) fn attach(&mut self, domain: usize) {
        let at = Self::context_at();
        self.store(at + 8, (domain as u64 + 1) << 8 | 1);
        self.store(at, TABLES[domain] | 1);
    }

    pub(crate) fn clear_present(&mut self) {
        let at = Self::context_at();
        let low = self.tables.load(PhysAddr(at));
        self.store(at, low & !1);
    }

    pub(crate) fn queue_on(&mut self) {
        self.registers.write64(0x88, 0);
        self.registers.write64(0x90, QUEUE);
        self.tail = 0;
        self.command(QIE);
    }

    pub(crate) fn root_on(&mut self) {
        self.registers.write64(0x20, ROOT);
        self.command(SRTP);
        self.submit(1 << 4 | 1, 0);
        self.submit(1 << 4 | 0xc0 | 2, 0);
        assert!(self.wait());
    }

    pub(crate) fn interrupts_on(&mut self) {
        self.registers.write64(0xb8, INTERRUPTS | 7);
        self.command(SIRTP);
        self.submit(4, 0);
        assert!(self.wait());
        self.command(IRE);
    }

    /// All of it, in the right order.
    pub(crate) fn bring_up(&mut self) {
        self.build_tables();
        self.queue_on();
        self.root_on();
        self.interrupts_on();
        self.command(TE);
    }

    /// Moves the requester from domain 1 (number 0) to domain 2, correctly.
    pub(crate) fn move_over(&mut self) {
        self.clear_present();
        self.submit(3 << 4 | 1 | 1 << 16 | u64::from(SID) << 32, 0);
        self.submit(2 << 4 | 0xc0 | 2 | 1 << 16, 0);
        assert!(self.wait());
        self.attach(1);
    }

    /// An interrupt entry: vector, destination, exact requester.
    pub(crate) fn interrupt_entry(&mut self, index: u64, vector: u64, destination: u64, sid: u16) {
        let at = INTERRUPTS + index * 16;
        self.store(at + 8, 1 << 18 | u64::from(sid));
        self.store(at, destination << 40 | vector << 16 | 1);
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

pub(crate) fn up() -> Hand {
    let mut hand = Hand::new(UnitConfig::default());
    hand.bring_up();
    hand.attach(0);
    hand
}

/// Where a write by the requester lands.
pub(crate) fn write(hand: &Hand) -> Result<u64, Reason> {
    let dma = hand.machine.dma_write(0, SID, IOVA, b"data");
    dma.blocked.map_or_else(|| Ok(dma.landed[0].0), Err)
}
