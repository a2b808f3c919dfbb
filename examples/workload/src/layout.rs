//! The layout of the workload's memory, version 1.
//!
//! A header of one page, then areas in whole pages, all by offset from the start. What never
//! changes after the network device was set up is under a checksum; the rest is live.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::buffers::BUFFER;
use crate::memory::{PAGE, shared};
use crate::protocol::MAX_VALUE;
use crate::queue::{MAX_SIZE, Queue};
use crate::store::{Counters as StoreCounters, Store};

/// "BATONKV1".
pub const MAGIC: u64 = u64::from_le_bytes(*b"BATONKV1");
/// The version described here.
pub const VERSION: u32 = 1;
/// Neighbours that the header has room for.
pub const NEIGHBOURS: usize = 16;
/// Bytes of the header that never change once the device is set up, but for the checksum itself.
const FIXED: usize = 256;
const CHECKSUM_AT: usize = 132;

/// What an area holds, as its place in the header's list.
pub mod area {
    /// The store's slots.
    pub const STORE: usize = 0;
    /// The receive ring and its driver's state.
    pub const RECEIVE_QUEUE: usize = 1;
    /// The transmit ring and its driver's state.
    pub const TRANSMIT_QUEUE: usize = 2;
    /// The receive buffers, one for each descriptor.
    pub const RECEIVE_BUFFERS: usize = 3;
    /// The transmit buffers, one for each descriptor.
    pub const TRANSMIT_BUFFERS: usize = 4;
    /// How many there are.
    pub const COUNT: usize = 5;
}

shared! {
    /// Where an area is.
    Area, 16 {
        /// From the start of the memory, whole pages.
        offset: AtomicU64 = 0,
        /// Bytes, whole pages.
        length: AtomicU64 = 8,
    }
}
shared! {
    /// Who a neighbour is.
    Neighbour, 16 {
        /// Its IPv4 address, first byte lowest; 0 where the entry is free.
        address: AtomicU32 = 0,
        /// Zero.
        reserved: AtomicU32 = 4,
        /// Its Ethernet address, first byte lowest.
        mac: AtomicU64 = 8,
    }
}
shared! {
    /// The network device, as the kernel that set it up found it.
    NicRecord, 88 {
        /// Segment in bits 31:16, requester id in 15:0.
        function: AtomicU32 = 0,
        /// 1 once the device has been set up.
        present: AtomicU32 = 4,
        /// Features that were negotiated.
        features: AtomicU64 = 8,
        /// Physical address of the common configuration.
        common: AtomicU64 = 16,
        /// Physical address of the interrupt status.
        isr: AtomicU64 = 24,
        /// Physical address of the device configuration.
        device: AtomicU64 = 32,
        /// Physical address where each queue is notified.
        notify: [AtomicU64; 2] = 40,
        /// Physical address of the MSI-X table.
        msix_table: AtomicU64 = 56,
        /// Entries in the MSI-X table.
        msix_entries: AtomicU32 = 64,
        /// The MSI-X entry that each queue uses, 0xffff for none.
        msix_entry: [AtomicU32; 2] = 68,
        /// Zero.
        reserved: AtomicU32 = 76,
        /// Zero.
        reserved2: AtomicU64 = 80,
    }
}
shared! {
    /// What is counted, over all kernels. For people; nothing depends on it.
    Counters, 80 {
        /// Frames taken from the receive ring.
        frames_received: AtomicU64 = 0,
        /// Frames given to the transmit ring.
        frames_sent: AtomicU64 = 8,
        /// Datagrams that were answered.
        answered: AtomicU64 = 16,
        /// Of them, those that were refused.
        refused: AtomicU64 = 24,
        /// Datagrams that were dropped because they are no request.
        malformed: AtomicU64 = 32,
        /// Frames that were dropped: too short or too long.
        dropped: AtomicU64 = 40,
        /// Doorbells rung on the transmit queue.
        doorbells: AtomicU64 = 48,
        /// Time stamp counter at the last of them.
        last_doorbell: AtomicU64 = 56,
        /// Time stamp counter at the first of them since the last swap.
        first_doorbell: AtomicU64 = 64,
        /// How many swaps the workload has seen.
        swaps: AtomicU64 = 72,
    }
}
shared! {
    /// The header.
    Header, 4096 {
        /// [`MAGIC`].
        magic: AtomicU64 = 0,
        /// [`VERSION`].
        version: AtomicU32 = 8,
        /// 4096.
        header_length: AtomicU32 = 12,
        /// Bytes of the whole memory.
        length: AtomicU64 = 16,
        /// Where the memory begins for the device: descriptors contain addresses.
        dma_base: AtomicU64 = 24,
        /// The areas, in the order of [`area`].
        areas: [Area; area::COUNT] = 32,
        /// Slots of the store.
        store_slots: AtomicU32 = 112,
        /// Bytes of the longest value.
        value_capacity: AtomicU32 = 116,
        /// Descriptors of the receive and of the transmit ring.
        queue_size: [AtomicU32; 2] = 120,
        /// Bytes of a buffer.
        buffer_size: AtomicU32 = 128,
        /// CRC-32 (ISO-HDLC) of bytes 0 to 255, with these four as zero.
        checksum: AtomicU32 = 132,
        /// The Ethernet address, first byte lowest.
        mac: AtomicU64 = 136,
        /// The IPv4 address, first byte lowest.
        address: AtomicU32 = 144,
        /// Length of the network prefix.
        prefix: AtomicU32 = 148,
        /// The gateway's IPv4 address, first byte lowest; 0 for none.
        gateway: AtomicU32 = 152,
        /// The UDP port.
        port: AtomicU32 = 156,
        /// The network device.
        nic: NicRecord = 160,
        /// Zero.
        reserved: AtomicU64 = 248,
        /// Live from here on: neighbours that have been learnt.
        neighbours: [Neighbour; NEIGHBOURS] = 256,
        /// The store's counters.
        store: StoreCounters = 512,
        /// What is counted.
        counters: Counters = 528,
        /// Zero.
        reserved2: [AtomicU64; 436] = 608,
    }
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Slots of the store, a power of two.
    pub store_slots: u32,
    /// Descriptors of the receive ring, a power of two of at most [`MAX_SIZE`].
    pub receive: u16,
    /// Descriptors of the transmit ring, likewise.
    pub transmit: u16,
}

impl Geometry {
    /// As the demonstration has it: 4096 slots, rings of 256.
    pub const DEMO: Self = Self {
        store_slots: 4096,
        receive: MAX_SIZE,
        transmit: MAX_SIZE,
    };

    /// Offset and length of each area, and the length of the whole memory; `None` where a size is
    /// impossible.
    #[must_use]
    pub fn areas(&self) -> Option<([(u64, u64); area::COUNT], u64)> {
        let ring = |size: u16| size.is_power_of_two() && size <= MAX_SIZE;
        if !self.store_slots.is_power_of_two()
            || self.store_slots > 1 << 20
            || !ring(self.receive)
            || !ring(self.transmit)
        {
            return None;
        }
        let mut at = PAGE;
        let areas = [
            u64::from(self.store_slots) * Store::SLOT,
            Queue::bytes(self.receive),
            Queue::bytes(self.transmit),
            u64::from(self.receive) * BUFFER as u64,
            u64::from(self.transmit) * BUFFER as u64,
        ]
        .map(|length| {
            let length = length.next_multiple_of(PAGE);
            let offset = at;
            at += length;
            (offset, length)
        });
        Some((areas, at))
    }

    /// Bytes of the whole memory; `None` where a size is impossible.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        Some(self.areas()?.1)
    }
}

/// Who the workload is on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// The IPv4 address.
    pub address: [u8; 4],
    /// Length of the network prefix.
    pub prefix: u8,
    /// The gateway, if there is one.
    pub gateway: Option<[u8; 4]>,
    /// The UDP port.
    pub port: u16,
}

/// The network device, as a kernel needs to know it to go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Segment in bits 31:16, requester id in 15:0.
    pub function: u32,
    /// Features that were negotiated.
    pub features: u64,
    /// Physical address of the common configuration.
    pub common: u64,
    /// Physical address of the interrupt status.
    pub isr: u64,
    /// Physical address of the device configuration.
    pub device: u64,
    /// Physical address where each queue is notified: receive, transmit.
    pub notify: [u64; 2],
    /// Physical address of the MSI-X table.
    pub msix_table: u64,
    /// Entries in the MSI-X table.
    pub msix_entries: u32,
    /// The MSI-X entry that each queue uses, 0xffff for none.
    pub msix_entry: [u16; 2],
}

pub(crate) fn pack_mac(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

pub(crate) fn unpack_mac(packed: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = packed.to_le_bytes();
    [a, b, c, d, e, f]
}

impl Header {
    /// The checksum that the fixed part should have.
    pub(crate) fn computed_checksum(&self, words: &[AtomicU32]) -> u32 {
        let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
        let mut digest = crc.digest();
        for (at, word) in words.iter().take(FIXED / 4).enumerate() {
            let value = if at == CHECKSUM_AT / 4 {
                0
            } else {
                word.load(Relaxed)
            };
            digest.update(&value.to_le_bytes());
        }
        digest.finalize()
    }

    pub(crate) fn set_network(&self, network: &Network) {
        self.mac.store(pack_mac(network.mac), Relaxed);
        self.address
            .store(u32::from_le_bytes(network.address), Relaxed);
        self.prefix.store(u32::from(network.prefix), Relaxed);
        let gateway = network.gateway.unwrap_or_default();
        self.gateway.store(u32::from_le_bytes(gateway), Relaxed);
        self.port.store(u32::from(network.port), Relaxed);
    }

    pub(crate) fn network(&self) -> Option<Network> {
        let gateway = self.gateway.load(Relaxed).to_le_bytes();
        let network = Network {
            mac: unpack_mac(self.mac.load(Relaxed)),
            address: self.address.load(Relaxed).to_le_bytes(),
            prefix: u8::try_from(self.prefix.load(Relaxed)).ok()?,
            gateway: (gateway != [0; 4]).then_some(gateway),
            port: u16::try_from(self.port.load(Relaxed)).ok()?,
        };
        // Such as no interface can have: multicast, nobody, everybody.
        let unicast = |address: [u8; 4]| !matches!(address[0], 0 | 127 | 224..);
        let valid = network.mac[0] & 1 == 0
            && network.mac != [0; 6]
            && self.mac.load(Relaxed) >> 48 == 0
            && network.prefix <= 32
            && network.port != 0
            && unicast(network.address)
            && network.gateway.is_none_or(unicast);
        valid.then_some(network)
    }

    pub(crate) fn set_nic(&self, nic: &Nic) {
        let record = &self.nic;
        record.function.store(nic.function, Relaxed);
        record.features.store(nic.features, Relaxed);
        record.common.store(nic.common, Relaxed);
        record.isr.store(nic.isr, Relaxed);
        record.device.store(nic.device, Relaxed);
        record.msix_table.store(nic.msix_table, Relaxed);
        record.msix_entries.store(nic.msix_entries, Relaxed);
        for (to, from) in record.notify.iter().zip(nic.notify) {
            to.store(from, Relaxed);
        }
        for (to, from) in record.msix_entry.iter().zip(nic.msix_entry) {
            to.store(u32::from(from), Relaxed);
        }
        record.present.store(1, Relaxed);
    }

    pub(crate) fn nic(&self) -> Option<Nic> {
        let record = &self.nic;
        if record.present.load(Relaxed) != 1 {
            return None;
        }
        let [receive, transmit] = &record.msix_entry;
        let [receive_notify, transmit_notify] = &record.notify;
        Some(Nic {
            function: record.function.load(Relaxed),
            features: record.features.load(Relaxed),
            common: record.common.load(Relaxed),
            isr: record.isr.load(Relaxed),
            device: record.device.load(Relaxed),
            notify: [receive_notify.load(Relaxed), transmit_notify.load(Relaxed)],
            msix_table: record.msix_table.load(Relaxed),
            msix_entries: record.msix_entries.load(Relaxed),
            msix_entry: [
                u16::try_from(receive.load(Relaxed)).ok()?,
                u16::try_from(transmit.load(Relaxed)).ok()?,
            ],
        })
    }

    pub(crate) fn value_capacity_is_ours(&self) -> bool {
        self.value_capacity.load(Relaxed) as usize == MAX_VALUE
            && self.buffer_size.load(Relaxed) as usize == BUFFER
            && u64::from(self.header_length.load(Relaxed)) == PAGE
    }
}
