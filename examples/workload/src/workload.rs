//! The workload as a whole: created once, adopted by each kernel that takes it over.

use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::buffers::{BUFFER, Buffers};
use crate::layout::{Geometry, Header, MAGIC, Network, Nic, VERSION, area, pack_mac, unpack_mac};
use crate::memory::{Memory, PAGE};
use crate::protocol::MAX_VALUE;
use crate::queue::{Queue, QueueError, Segment};
use crate::store::Store;

/// Why a workload cannot be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CreateError {
    /// A size is impossible.
    Geometry(Geometry),
    /// The memory is too small.
    Room {
        /// Bytes that are needed.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// The place where the device is to see the memory is not at a page boundary, or too near the
    /// end of the address space.
    DmaBase(u64),
    /// No interface can have such a configuration.
    Network(Network),
    /// A ring cannot be laid out.
    Queue(QueueError),
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(geometry) => write!(f, "a workload cannot have {geometry:?}"),
            Self::Room { need, have } => write!(f, "{need} bytes are needed, {have} are there"),
            Self::DmaBase(base) => write!(f, "the memory cannot be at {base:#x} for the device"),
            Self::Network(network) => write!(f, "no interface can have {network:?}"),
            Self::Queue(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for CreateError {}

/// Why a workload cannot be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdoptError {
    /// The memory is too small for a header.
    Short(u64),
    /// The magic number is another one.
    Magic(u64),
    /// The layout is of another version.
    Version(u32),
    /// The fixed part of the header has been changed, or was never finished.
    Checksum {
        /// As the header has it.
        stated: u32,
        /// As it should be.
        computed: u32,
    },
    /// The header states another length than the memory has.
    Length {
        /// As the header has it.
        stated: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// The device knows the memory at another place.
    DmaBase {
        /// As the header has it.
        stated: u64,
        /// As the caller has it.
        given: u64,
    },
    /// A size is not what this version has.
    Geometry,
    /// An area is not where this version has it.
    Area {
        /// Which, as in [`area`].
        area: usize,
        /// The offset that the header states.
        offset: u64,
        /// The length that the header states.
        length: u64,
    },
    /// No interface can have such a configuration.
    Network,
    /// The device's description cannot be right.
    Nic,
    /// A ring cannot be taken over.
    Queue {
        /// Which, as in [`area`].
        area: usize,
        /// Why.
        error: QueueError,
    },
    /// A descriptor that is out does not name its own buffer.
    Descriptor {
        /// Which ring, as in [`area`].
        area: usize,
        /// The descriptor.
        id: u16,
        /// What it says.
        segment: Segment,
    },
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(length) => write!(f, "{length} bytes have no room for a header"),
            Self::Magic(magic) => write!(f, "the magic number is {magic:#x}"),
            Self::Version(version) => {
                write!(f, "the layout is of version {version}, not {VERSION}")
            }
            Self::Checksum { stated, computed } => write!(
                f,
                "the header's checksum is {stated:#x} and should be {computed:#x}"
            ),
            Self::Length { stated, have } => {
                write!(f, "{stated} bytes are stated, {have} are there")
            }
            Self::DmaBase { stated, given } => write!(
                f,
                "the device knows the memory at {stated:#x}, not at {given:#x}"
            ),
            Self::Geometry => f.write_str("a size is not what this layout has"),
            Self::Area {
                area,
                offset,
                length,
            } => write!(f, "area {area} cannot be {length:#x} bytes at {offset:#x}"),
            Self::Network => f.write_str("no interface can have this configuration"),
            Self::Nic => f.write_str("the network device's description cannot be right"),
            Self::Queue { area, error } => write!(f, "ring in area {area}: {error}"),
            Self::Descriptor { area, id, segment } => write!(
                f,
                "descriptor {id} of the ring in area {area} names {:#x} bytes at {:#x}",
                segment.length, segment.address
            ),
        }
    }
}

impl core::error::Error for AdoptError {}

/// A view of the workload.
///
/// Making one changes nothing (but for [`create`](Self::create)), and it keeps no copy of anything
/// that is live. Any number of kernels may hold one and read; which of them may change the workload
/// is for them to agree on.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    header: &'a Header,
    words: &'a [AtomicU32],
    network: Network,
    dma_base: u64,
    /// The store.
    pub store: Store<'a>,
    /// The ring of frames that come in.
    pub receive: Queue<'a>,
    /// The ring of frames that go out.
    pub transmit: Queue<'a>,
    /// Buffers of the frames that come in, by descriptor.
    pub receive_buffers: Buffers<'a>,
    /// Buffers of the frames that go out, by descriptor.
    pub transmit_buffers: Buffers<'a>,
}

impl<'a> Workload<'a> {
    /// Lays the workload out at the start of `memory`, empty, and gives every receive buffer to the
    /// receive ring. `dma_base` is where the memory begins for the device.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn create(
        memory: &Memory<'a>,
        geometry: &Geometry,
        network: &Network,
        dma_base: u64,
    ) -> Result<Self, CreateError> {
        let (areas, length) = geometry.areas().ok_or(CreateError::Geometry(*geometry))?;
        let room = CreateError::Room {
            need: length,
            have: memory.length(),
        };
        if !dma_base.is_multiple_of(PAGE) || dma_base.checked_add(length).is_none() {
            return Err(CreateError::DmaBase(dma_base));
        }
        let words = memory
            .slice::<AtomicU64>(0, (length / 8) as usize)
            .ok_or(room)?;
        words.iter().for_each(|word| word.store(0, Relaxed));
        let header = memory.get::<Header>(0).ok_or(room)?;
        header.version.store(VERSION, Relaxed);
        header.header_length.store(PAGE as u32, Relaxed);
        header.length.store(length, Relaxed);
        header.dma_base.store(dma_base, Relaxed);
        for (to, (offset, length)) in header.areas.iter().zip(areas) {
            to.offset.store(offset, Relaxed);
            to.length.store(length, Relaxed);
        }
        header.store_slots.store(geometry.store_slots, Relaxed);
        header.value_capacity.store(MAX_VALUE as u32, Relaxed);
        let [receive, transmit] = &header.queue_size;
        receive.store(u32::from(geometry.receive), Relaxed);
        transmit.store(u32::from(geometry.transmit), Relaxed);
        header.buffer_size.store(BUFFER as u32, Relaxed);
        header.set_network(network);
        header.network().ok_or(CreateError::Network(*network))?;

        for (area, size) in [
            (area::RECEIVE_QUEUE, geometry.receive),
            (area::TRANSMIT_QUEUE, geometry.transmit),
        ] {
            Queue::create(memory, areas[area].0, size).map_err(CreateError::Queue)?;
        }
        let mut workload = Self::view(memory, header, geometry, &areas, *network, dma_base)
            .ok_or(CreateError::Geometry(*geometry))?;
        for id in 0..geometry.receive {
            let segment = workload.receive_segment(id);
            // All descriptors of a new ring are free.
            let _ = workload.receive.submit_at(id, &segment);
        }
        workload.transmit.set_interrupts(false);
        // A header without its checksum is not adopted, so the order of these two does not matter.
        header.magic.store(MAGIC, Relaxed);
        workload.seal();
        Ok(workload)
    }

    /// Lays a view over the workload in `memory`, which `dma_base` is the start of for the device.
    /// Changes nothing, and is safe whatever the memory holds. Whoever owns the workload may go on
    /// with it meanwhile.
    ///
    /// # Errors
    /// [`AdoptError`]: the first thing that cannot be right.
    pub fn adopt(memory: &Memory<'a>, dma_base: u64) -> Result<Self, AdoptError> {
        let header = memory
            .get::<Header>(0)
            .ok_or(AdoptError::Short(memory.length()))?;
        let magic = header.magic.load(Acquire);
        if magic != MAGIC {
            return Err(AdoptError::Magic(magic));
        }
        let version = header.version.load(Relaxed);
        if version != VERSION {
            return Err(AdoptError::Version(version));
        }
        let words = memory
            .slice::<AtomicU32>(0, size_of::<Header>() / 4)
            .ok_or(AdoptError::Short(memory.length()))?;
        let stated = header.checksum.load(Relaxed);
        let computed = header.computed_checksum(words);
        if stated != computed {
            return Err(AdoptError::Checksum { stated, computed });
        }
        let stated = header.dma_base.load(Relaxed);
        if stated != dma_base {
            return Err(AdoptError::DmaBase {
                stated,
                given: dma_base,
            });
        }
        // Each field is read once: what was checked is what is used.
        let [receive, transmit] = &header.queue_size;
        let size = |from: &AtomicU32| u16::try_from(from.load(Relaxed)).ok();
        let geometry = size(receive)
            .zip(size(transmit))
            .map(|(receive, transmit)| Geometry {
                store_slots: header.store_slots.load(Relaxed),
                receive,
                transmit,
            })
            .filter(|_| header.value_capacity_is_ours())
            .ok_or(AdoptError::Geometry)?;
        let (areas, length) = geometry.areas().ok_or(AdoptError::Geometry)?;
        let stated = header.length.load(Relaxed);
        if stated != length || length > memory.length() {
            return Err(AdoptError::Length {
                stated,
                have: memory.length(),
            });
        }
        // Version 1 has one arrangement of the areas for each geometry.
        for (area, (stated, expected)) in header.areas.iter().zip(areas).enumerate() {
            let (offset, length) = (stated.offset.load(Relaxed), stated.length.load(Relaxed));
            if (offset, length) != expected {
                return Err(AdoptError::Area {
                    area,
                    offset,
                    length,
                });
            }
        }
        let network = header.network().ok_or(AdoptError::Network)?;
        if header.nic.present.load(Relaxed) > 1
            || (header.nic.present.load(Relaxed) == 1 && header.nic().is_none())
        {
            return Err(AdoptError::Nic);
        }
        for (area, size) in [
            (area::RECEIVE_QUEUE, geometry.receive),
            (area::TRANSMIT_QUEUE, geometry.transmit),
        ] {
            Queue::adopt(memory, areas[area].0, size)
                .map_err(|error| AdoptError::Queue { area, error })?;
        }
        Self::view(memory, header, &geometry, &areas, network, dma_base).ok_or(AdoptError::Geometry)
    }

    fn view(
        memory: &Memory<'a>,
        header: &'a Header,
        geometry: &Geometry,
        areas: &[(u64, u64); area::COUNT],
        network: Network,
        dma_base: u64,
    ) -> Option<Self> {
        Some(Self {
            header,
            words: memory.slice(0, size_of::<Header>() / 4)?,
            network,
            dma_base,
            store: Store::at(
                memory,
                areas[area::STORE].0,
                geometry.store_slots,
                &header.store,
            )?,
            receive: Queue::adopt(memory, areas[area::RECEIVE_QUEUE].0, geometry.receive).ok()?,
            transmit: Queue::adopt(memory, areas[area::TRANSMIT_QUEUE].0, geometry.transmit)
                .ok()?,
            receive_buffers: Buffers::at(memory, areas[area::RECEIVE_BUFFERS].0, geometry.receive)?,
            transmit_buffers: Buffers::at(
                memory,
                areas[area::TRANSMIT_BUFFERS].0,
                geometry.transmit,
            )?,
        })
    }

    /// Whether what is live makes sense: cursors, and the address in every descriptor that is out.
    /// Holds whenever nobody is in the middle of a change, so a kernel asks once the other has
    /// frozen the workload. Bounded by the size of the rings.
    ///
    /// # Errors
    /// [`AdoptError`]: the first thing that cannot be right.
    pub fn check_rings(&self) -> Result<(), AdoptError> {
        for (area, queue) in [
            (area::RECEIVE_QUEUE, &self.receive),
            (area::TRANSMIT_QUEUE, &self.transmit),
        ] {
            queue
                .check()
                .map_err(|error| AdoptError::Queue { area, error })?;
            for id in (0..queue.size()).filter(|&id| queue.is_busy(id)) {
                let Some(segment) = queue.descriptor(id) else {
                    continue;
                };
                let whole = self.segment(area, id);
                let right = segment.address == whole.address
                    && segment.length <= whole.length
                    && segment.device_writes == whole.device_writes;
                if !right {
                    return Err(AdoptError::Descriptor { area, id, segment });
                }
            }
        }
        Ok(())
    }

    fn segment(&self, area: usize, id: u16) -> Segment {
        let receive = area == area::RECEIVE_QUEUE;
        let buffers = if receive {
            &self.receive_buffers
        } else {
            &self.transmit_buffers
        };
        Segment {
            address: self.dma_base + buffers.offset(id),
            length: BUFFER as u32,
            device_writes: receive,
        }
    }

    /// The buffer of receive descriptor `id`, for the device.
    #[must_use]
    pub fn receive_segment(&self, id: u16) -> Segment {
        self.segment(area::RECEIVE_QUEUE, id)
    }

    /// The first `length` bytes of the buffer of transmit descriptor `id`, for the device.
    #[must_use]
    pub fn transmit_segment(&self, id: u16, length: usize) -> Segment {
        Segment {
            length: length.min(BUFFER) as u32,
            ..self.segment(area::TRANSMIT_QUEUE, id)
        }
    }

    /// Where the memory begins for the device.
    #[must_use]
    pub const fn dma_base(&self) -> u64 {
        self.dma_base
    }

    /// Bytes of the memory that the workload uses.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.header.length.load(Relaxed)
    }

    /// Who the workload is on the network.
    #[must_use]
    pub const fn network(&self) -> Network {
        self.network
    }

    /// The network device; `None` before it was set up.
    #[must_use]
    pub fn nic(&self) -> Option<Nic> {
        self.header.nic()
    }

    /// Notes the network device, once it has been set up. Part of what never changes afterwards.
    pub fn set_nic(&mut self, nic: &Nic) {
        self.header.set_nic(nic);
        self.seal();
    }

    fn seal(&self) {
        let checksum = self.header.computed_checksum(self.words);
        self.header.checksum.store(checksum, Release);
    }

    /// What is counted.
    #[must_use]
    pub const fn counters(&self) -> &'a crate::layout::Counters {
        &self.header.counters
    }

    /// How many swaps the workload has seen.
    #[must_use]
    pub fn swaps(&self) -> u64 {
        self.header.counters.swaps.load(Relaxed)
    }

    /// Counts a swap. For the kernel that has just become the owner.
    pub fn count_swap(&mut self) {
        let counters = &self.header.counters;
        counters.first_doorbell.store(0, Relaxed);
        counters.swaps.store(self.swaps() + 1, Relaxed);
    }

    /// The neighbours that have been learnt: IPv4 and Ethernet address.
    pub fn neighbours(&self) -> impl Iterator<Item = ([u8; 4], [u8; 6])> + use<'a> {
        self.header.neighbours.iter().filter_map(|neighbour| {
            let address = neighbour.address.load(Acquire);
            let mac = unpack_mac(neighbour.mac.load(Relaxed));
            (address != 0 && mac[0] & 1 == 0).then_some((address.to_le_bytes(), mac))
        })
    }

    /// Remembers a neighbour. Where there is no room the one that shares its last bits is
    /// forgotten: it will be asked for again.
    pub fn learn(&mut self, address: [u8; 4], mac: [u8; 6]) {
        let wanted = u32::from_le_bytes(address);
        if wanted == 0 {
            return;
        }
        let table = &self.header.neighbours;
        let place = table
            .iter()
            .find(|entry| entry.address.load(Relaxed) == wanted)
            .or_else(|| table.iter().find(|entry| entry.address.load(Relaxed) == 0))
            .unwrap_or(&table[usize::from(address[3]) % table.len()]);
        let mac = pack_mac(mac);
        if place.address.load(Relaxed) == wanted && place.mac.load(Relaxed) == mac {
            return;
        }
        // Free while the two halves do not belong together.
        place.address.store(0, Relaxed);
        place.mac.store(mac, Release);
        place.address.store(wanted, Release);
    }
}
