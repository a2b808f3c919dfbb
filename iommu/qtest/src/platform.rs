//! What the driver asks of its embedder, over the socket.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use handoff_abi::PhysAddr;
use iommu::{Deadline, RegisterIo, TableMemory};

use crate::Bus;

/// How often the driver did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
    /// Register reads.
    pub register_reads: u64,
    /// Register writes.
    pub register_writes: u64,
    /// Loads from table memory.
    pub loads: u64,
    /// Stores to table memory.
    pub stores: u64,
    /// Calls to write cache lines back.
    pub write_backs: u64,
}

/// One access of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It reads the register at this offset.
    ReadRegister(u32),
    /// It writes the register at this offset.
    WriteRegister(u32),
    /// It loads from table memory.
    Load(u64),
    /// It stores to table memory.
    Store(u64),
    /// It writes cache lines back.
    WriteBack(u64),
}

type Hook = Box<dyn FnMut(Step)>;

/// Sees each access of the driver, before it happens. Clones share what they see.
#[derive(Clone, Default)]
pub struct Observer {
    counts: Rc<Cell<AccessCounts>>,
    hook: Rc<RefCell<Option<Hook>>>,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.get().fmt(f)
    }
}

impl Observer {
    /// How often the driver did what since the last call of this function.
    #[must_use]
    pub fn take(&self) -> AccessCounts {
        self.counts.take()
    }

    /// Has `hook` run before each access from now on.
    pub fn before_each_access(&self, hook: impl FnMut(Step) + 'static) {
        *self.hook.borrow_mut() = Some(Box::new(hook));
    }

    /// Ends [`before_each_access`](Self::before_each_access).
    pub fn stop(&self) {
        *self.hook.borrow_mut() = None;
    }

    pub(crate) fn see(&self, step: Step) {
        let mut counts = self.counts.get();
        let count = match step {
            Step::ReadRegister(_) => &mut counts.register_reads,
            Step::WriteRegister(_) => &mut counts.register_writes,
            Step::Load(_) => &mut counts.loads,
            Step::Store(_) => &mut counts.stores,
            Step::WriteBack(_) => &mut counts.write_backs,
        };
        *count += 1;
        self.counts.set(counts);
        if let Some(hook) = self.hook.borrow_mut().as_mut() {
            hook(step);
        }
    }
}

/// The register window of the emulated unit.
#[derive(Debug)]
pub struct QemuRegisters {
    bus: Bus,
    base: u64,
    observer: Observer,
}

impl QemuRegisters {
    /// The window at `base`.
    #[must_use]
    pub const fn new(bus: Bus, base: u64, observer: Observer) -> Self {
        Self {
            bus,
            base,
            observer,
        }
    }
}

impl RegisterIo for QemuRegisters {
    fn read32(&mut self, offset: u32) -> u32 {
        self.observer.see(Step::ReadRegister(offset));
        self.bus.read32(self.base + u64::from(offset))
    }

    fn write32(&mut self, offset: u32, value: u32) {
        self.observer.see(Step::WriteRegister(offset));
        self.bus.write32(self.base + u64::from(offset), value);
    }

    fn read64(&mut self, offset: u32) -> u64 {
        self.observer.see(Step::ReadRegister(offset));
        self.bus.read64(self.base + u64::from(offset))
    }

    fn write64(&mut self, offset: u32, value: u64) {
        self.observer.see(Step::WriteRegister(offset));
        self.bus.write64(self.base + u64::from(offset), value);
    }
}

/// The emulated machine's memory.
#[derive(Debug)]
pub struct QemuTables {
    bus: Bus,
    observer: Observer,
}

impl QemuTables {
    /// The memory on `bus`.
    #[must_use]
    pub const fn new(bus: Bus, observer: Observer) -> Self {
        Self { bus, observer }
    }
}

impl TableMemory for QemuTables {
    fn load(&self, at: PhysAddr) -> u64 {
        self.observer.see(Step::Load(at.0));
        self.bus.read64(at.0)
    }

    fn store(&mut self, at: PhysAddr, value: u64) {
        self.observer.see(Step::Store(at.0));
        self.bus.write64(at.0, value);
    }

    fn write_back(&mut self, at: PhysAddr, _length: u64) {
        // The emulated unit says that it does not snoop, but it has no cache between it and memory.
        self.observer.see(Step::WriteBack(at.0));
    }
}

/// The host's clock. The emulated unit does what it is told within the access that tells it, so a
/// period that runs out is always a failure.
#[derive(Debug, Default)]
pub struct WallClock {
    end: Option<Instant>,
}

impl Deadline for WallClock {
    fn start(&mut self, microseconds: u32) {
        self.end = Some(Instant::now() + Duration::from_micros(microseconds.into()));
    }

    fn expired(&mut self) -> bool {
        self.end.is_none_or(|end| Instant::now() >= end)
    }
}
