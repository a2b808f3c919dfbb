//! The unit as the specification describes it, without the driver: an oracle, and the hand of
//! somebody who gets it wrong on purpose. Every constant is this module's own (Intel Virtualization
//! Technology for Directed I/O, revision 4.1; sections named below).

use handoff_abi::RequesterId;

use crate::Bus;

/// GSTS (section 11.4.4.2): translation enabled.
pub const TES: u32 = 1 << 31;
/// GSTS: queued invalidation enabled.
pub const QIES: u32 = 1 << 26;
/// GSTS: interrupt remapping enabled.
pub const IRES: u32 = 1 << 25;
/// GSTS: compatibility format interrupts pass.
pub const CFIS: u32 = 1 << 23;

/// FSTS (section 11.4.7.1): a fault was lost.
pub const PFO: u32 = 1 << 0;
/// FSTS: a fault is recorded.
pub const PPF: u32 = 1 << 1;

/// Reasons of faults (section 7.1.3).
pub mod reason {
    /// The root entry is not present.
    pub const ROOT_NOT_PRESENT: u8 = 0x01;
    /// The context entry is not present.
    pub const CONTEXT_NOT_PRESENT: u8 = 0x02;
    /// The address is wider than the domain.
    pub const BEYOND_WIDTH: u8 = 0x04;
    /// A write without write permission.
    pub const WRITE: u8 = 0x05;
    /// A read without read permission.
    pub const READ: u8 = 0x06;
    /// The translation leads to the interrupt address range.
    pub const INTERRUPT_RANGE: u8 = 0x0e;
}

/// Where tables lie in their entries: bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A fault record (section 11.4.7.6), bit by bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// SID.
    pub source: RequesterId,
    /// FR.
    pub reason: u8,
    /// FI, the page's address.
    pub address: u64,
    /// T: a read, not a write.
    pub read: bool,
}

/// The unit's registers by name.
#[derive(Clone, Debug)]
pub struct Unit {
    bus: Bus,
    base: u64,
}

impl Unit {
    /// The unit with its registers at `base`.
    #[must_use]
    pub const fn new(bus: Bus, base: u64) -> Self {
        Self { bus, base }
    }

    /// CAP.
    #[must_use]
    pub fn capability(&self) -> u64 {
        self.bus.read64(self.base + 0x08)
    }

    /// ECAP.
    #[must_use]
    pub fn extended_capability(&self) -> u64 {
        self.bus.read64(self.base + 0x10)
    }

    /// GSTS.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.bus.read32(self.base + 0x1c)
    }

    /// Writes GCMD, as it is given.
    pub fn command(&self, value: u32) {
        self.bus.write32(self.base + 0x18, value);
    }

    /// FSTS.
    #[must_use]
    pub fn fault_status(&self) -> u32 {
        self.bus.read32(self.base + 0x34)
    }

    /// The root table that is in RTADDR.
    #[must_use]
    pub fn root_table(&self) -> u64 {
        self.bus.read64(self.base + 0x20) & ADDRESS
    }

    /// The queue that is in IQA.
    #[must_use]
    pub fn queue(&self) -> u64 {
        self.bus.read64(self.base + 0x90) & ADDRESS
    }

    /// IQA.
    #[must_use]
    pub fn queue_register(&self) -> u64 {
        self.bus.read64(self.base + 0x90)
    }

    /// Writes IQA.
    pub fn set_queue_register(&self, value: u64) {
        self.bus.write64(self.base + 0x90, value);
    }

    /// IQT.
    #[must_use]
    pub fn queue_tail(&self) -> u64 {
        self.bus.read64(self.base + 0x88)
    }

    /// Writes IQT.
    pub fn set_queue_tail(&self, value: u64) {
        self.bus.write64(self.base + 0x88, value);
    }

    /// IQH.
    #[must_use]
    pub fn queue_head(&self) -> u64 {
        self.bus.read64(self.base + 0x80)
    }

    /// The table that is in IRTA, and how many entries it has.
    #[must_use]
    pub fn interrupt_table(&self) -> (u64, u32) {
        let value = self.bus.read64(self.base + 0xb8);
        (value & ADDRESS, 2 << (value & 0xf))
    }

    /// Where the root entry of a bus lies.
    #[must_use]
    pub fn root_entry(&self, bus: u8) -> u64 {
        self.root_table() + u64::from(bus) * 16
    }

    /// Where the context entry of a device lies; `None` where its bus has no table.
    #[must_use]
    pub fn context_entry(&self, requester: RequesterId) -> Option<u64> {
        let root = self.bus.read64(self.root_entry(requester.bus()));
        (root & 1 != 0).then(|| (root & ADDRESS) + u64::from(requester.0 & 0xff) * 16)
    }

    /// The context table of a device's bus.
    #[must_use]
    pub fn context_table(&self, requester: RequesterId) -> Option<u64> {
        Some(self.context_entry(requester)? & !0xfff)
    }

    /// Every second-stage table of a device, the top one first, level by level.
    #[must_use]
    pub fn second_stage_tables(&self, requester: RequesterId) -> Vec<u64> {
        let Some(entry) = self.context_entry(requester) else {
            return Vec::new();
        };
        let (low, high) = (self.bus.read64(entry), self.bus.read64(entry + 8));
        if low & 1 == 0 {
            return Vec::new();
        }
        let levels = (high & 7) + 2;
        let mut tables = vec![low & ADDRESS];
        let mut upper = tables.clone();
        for _ in 1..levels {
            let mut lower = Vec::new();
            for table in upper {
                for entry in self.page(table) {
                    if entry & 3 != 0 && entry & 1 << 7 == 0 {
                        lower.push(entry & ADDRESS);
                    }
                }
            }
            tables.extend(&lower);
            upper = lower;
        }
        tables
    }

    fn page(&self, address: u64) -> Vec<u64> {
        self.bus
            .read(address, 4096)
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect()
    }

    /// The entry that translates `address` for a device, and where it lies, with the size of what
    /// it maps. `None` where a table is missing; the entry itself may be empty.
    #[must_use]
    pub fn leaf(&self, requester: RequesterId, address: u64) -> Option<(u64, u64, u64)> {
        let entry = self.context_entry(requester)?;
        let (low, high) = (self.bus.read64(entry), self.bus.read64(entry + 8));
        let mut table = low & ADDRESS;
        for level in (1..=(high & 7) + 2).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = table + ((address >> shift) & 0x1ff) * 8;
            let value = self.bus.read64(at);
            if level == 1 || value & 1 << 7 != 0 {
                return Some((at, value, 1 << shift));
            }
            if value & 3 == 0 {
                return None;
            }
            table = value & ADDRESS;
        }
        None
    }

    /// The oldest fault record, if there is one. It stays.
    #[must_use]
    pub fn fault(&self) -> Option<FaultRecord> {
        let status = self.fault_status();
        if status & PPF == 0 {
            return None;
        }
        let index = u64::from(status >> 8 & 0xff);
        let records = self.base + (self.capability() >> 24 & 0x3ff) * 16;
        let low = self.bus.read64(records + index * 16);
        let high = self.bus.read64(records + index * 16 + 8);
        assert_ne!(high & 1 << 63, 0, "PPF without a record at FRI");
        Some(FaultRecord {
            source: RequesterId(high as u16),
            reason: (high >> 32) as u8,
            address: low & !0xfff,
            read: high & 1 << 62 != 0,
        })
    }

    /// Takes the oldest fault record away, and a lost fault's mark.
    pub fn clear_fault(&self) {
        let index = u64::from(self.fault_status() >> 8 & 0xff);
        let records = self.base + (self.capability() >> 24 & 0x3ff) * 16;
        // F is cleared by a one in bit 63 of the upper half.
        self.bus.write32(records + index * 16 + 12, 1 << 31);
        self.bus.write32(self.base + 0x34, PFO);
    }

    /// Puts descriptors into the queue and has the unit execute them, with no wait at the end
    /// unless the caller gives one. The emulated unit is done when this returns.
    pub fn submit(&self, descriptors: &[(u64, u64)]) {
        let slots = 256 << (self.queue_register() & 7);
        let mut slot = self.queue_tail() / 16;
        for &(low, high) in descriptors {
            let at = self.queue() + slot * 16;
            self.bus.write64(at + 8, high);
            self.bus.write64(at, low);
            slot = (slot + 1) % slots;
        }
        self.set_queue_tail(slot * 16);
        self.bus.settle();
    }
}

/// Invalidation descriptors (section 6.5.2).
pub mod descriptor {
    use handoff_abi::RequesterId;

    /// The context entries of one device, cached with this domain id.
    #[must_use]
    pub const fn context_device(requester: RequesterId, domain: u16) -> (u64, u64) {
        (
            1 | 3 << 4 | (domain as u64) << 16 | (requester.0 as u64) << 32,
            0,
        )
    }

    /// The translations of one domain, reads and writes drained.
    #[must_use]
    pub const fn iotlb_domain(domain: u16) -> (u64, u64) {
        (2 | 2 << 4 | 3 << 6 | (domain as u64) << 16, 0)
    }

    /// A wait that writes `data` to `address`.
    #[must_use]
    pub const fn wait(address: u64, data: u32) -> (u64, u64) {
        (5 | 1 << 5 | (data as u64) << 32, address)
    }
}

/// Interrupt messages in remappable and in compatibility format (sections 5.1.2, 5.1.3).
pub mod message {
    use handoff_abi::{InterruptMessage, PhysAddr};

    /// Remappable, without subhandle: it names an entry.
    #[must_use]
    pub const fn remappable(handle: u16) -> InterruptMessage {
        let index = handle as u64;
        InterruptMessage {
            address: PhysAddr(0xfee0_0010 | (index & 0x7fff) << 5 | (index >> 15) << 2),
            data: 0,
        }
    }

    /// Compatibility format: it names a processor and a vector, past the table.
    #[must_use]
    pub const fn compatible(processor: u8, vector: u8) -> InterruptMessage {
        InterruptMessage {
            address: PhysAddr(0xfee0_0000 | (processor as u64) << 12),
            data: vector as u32,
        }
    }
}

/// The I/O APIC (82093AA data sheet, section 3).
#[derive(Clone, Debug)]
pub struct IoApic(Bus);

impl IoApic {
    const SELECT: u64 = 0xfec0_0000;
    const WINDOW: u64 = 0xfec0_0010;

    /// The machine's one.
    #[must_use]
    pub const fn new(bus: Bus) -> Self {
        Self(bus)
    }

    fn write(&self, register: u32, value: u32) {
        self.0.write32(Self::SELECT, register);
        self.0.write32(Self::WINDOW, value);
    }

    /// Sets the redirection table entry of a pin. It is masked while it is half written.
    pub fn set(&self, pin: u32, entry: u64) {
        let low = 0x10 + 2 * pin;
        self.write(low, 1 << 16);
        self.write(low + 1, (entry >> 32) as u32);
        self.write(low, entry as u32);
    }
}
