//! A virtio block device, one request at a time, polled.

use baton_workload::memory::{Memory, PAGE};
use baton_workload::queue::{Queue, Segment};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use handoff_abi::PhysAddr;

use crate::clock;
use crate::mmio::Mmio;
use crate::pci::Function;
use crate::virtio::{ACCESS_PLATFORM, NO_VECTOR, Places, Transport, VERSION_1, VirtioError};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Sectors in the longest request.
pub const MAX_SECTORS: usize = PAGE as usize / SECTOR;

const SIZE: u16 = 8;
/// What a request asks for (Virtual I/O Device 1.2, section 5.2.6).
const IN: u64 = 0;
const OUT: u64 = 1;
/// Offsets from the end of the ring: the request's header and status, and the data.
const HEADER: u64 = Queue::bytes(SIZE);
const STATUS: u64 = HEADER + 16;
const DATA: u64 = HEADER + PAGE;

/// The driver.
#[derive(Debug)]
pub struct Block<'a> {
    queue: Queue<'a>,
    notify: Mmio,
    header: &'a [AtomicU64; 3],
    data: &'a [AtomicU64; PAGE as usize / 8],
    base: u64,
    sectors: u64,
    /// A request did not come back: the device may still write to the memory.
    broken: bool,
}

impl<'a> Block<'a> {
    /// Bytes of memory that the driver needs.
    pub const MEMORY: u64 = DATA + PAGE;

    /// Resets the device and sets it up with its ring at the start of `memory`, which begins at
    /// `dma_base` for the device.
    ///
    /// # Errors
    /// [`VirtioError`].
    ///
    /// # Safety
    /// As [`Net::create`](crate::net::Net::create), for a block device.
    pub unsafe fn create(
        function: &Function,
        places: Places,
        memory: &Memory<'a>,
        dma_base: u64,
    ) -> Result<Self, VirtioError> {
        function.enable_memory();
        // SAFETY: the caller's promise.
        let transport = unsafe { Transport::new(places) };
        transport.begin(VERSION_1 | ACCESS_PLATFORM, 0)?;
        let mut queue = Queue::create(memory, 0, SIZE).map_err(|_| VirtioError::Memory)?;
        queue.set_interrupts(false);
        let header = memory.get(HEADER).ok_or(VirtioError::Memory)?;
        let data = memory.get(DATA).ok_or(VirtioError::Memory)?;
        function.set_bus_master(true);
        let notify = transport.set_queue(0, SIZE, &queue.addresses(dma_base), NO_VECTOR)?;
        transport.finish();
        let capacity = transport.device();
        let sectors = u64::from(capacity.read32(0)) | u64::from(capacity.read32(4)) << 32;
        // SAFETY: the register is in the mapped window, by the caller's promise.
        let notify = unsafe { Mmio::new(PhysAddr(notify.0), 2) };
        Ok(Self {
            queue,
            notify,
            header,
            data,
            base: dma_base,
            sectors,
            broken: false,
        })
    }

    /// How many sectors it has.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Reads whole sectors from `sector` on, at most [`MAX_SECTORS`].
    ///
    /// # Errors
    /// [`VirtioError`]; also where the device takes longer than `microseconds`, after which it is
    /// not used any more.
    pub fn read(
        &mut self,
        sector: u64,
        to: &mut [u8],
        microseconds: u64,
    ) -> Result<(), VirtioError> {
        self.request(IN, sector, to.len(), microseconds)?;
        for (bytes, word) in to.chunks_mut(8).zip(self.data) {
            let word = word.load(Relaxed).to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        Ok(())
    }

    /// Writes whole sectors from `sector` on, at most [`MAX_SECTORS`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(
        &mut self,
        sector: u64,
        from: &[u8],
        microseconds: u64,
    ) -> Result<(), VirtioError> {
        if self.broken {
            return Err(VirtioError::Timeout);
        }
        for (bytes, word) in from.chunks_exact(8).zip(self.data) {
            let mut whole = [0; 8];
            whole.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(whole), Relaxed);
        }
        self.request(OUT, sector, from.len(), microseconds)
    }

    fn request(
        &mut self,
        kind: u64,
        sector: u64,
        length: usize,
        microseconds: u64,
    ) -> Result<(), VirtioError> {
        if self.broken {
            return Err(VirtioError::Timeout);
        }
        let count = length / SECTOR;
        let inside = sector
            .checked_add(count as u64)
            .is_some_and(|end| end <= self.sectors);
        if !length.is_multiple_of(SECTOR) || count == 0 || count > MAX_SECTORS || !inside {
            return Err(VirtioError::Memory);
        }
        let [first, second, status] = self.header;
        first.store(kind, Relaxed);
        second.store(sector, Relaxed);
        status.store(0xff, Relaxed);
        let segment = |offset: u64, length: usize, device_writes: bool| Segment {
            address: self.base + offset,
            length: length as u32,
            device_writes,
        };
        let chain = [
            segment(HEADER, 16, false),
            segment(DATA, length, kind == IN),
            segment(STATUS, 1, true),
        ];
        self.queue.submit(&chain).map_err(|_| VirtioError::Ring)?;
        if self.queue.wants_notification() {
            self.notify.write16(0, 0);
        }
        let mut came = Ok(None);
        clock::wait_for_other(microseconds, || {
            came = self.queue.take_used();
            came != Ok(None)
        });
        if !matches!(came, Ok(Some(_))) {
            self.broken = true;
            return Err(came.map_or(VirtioError::Ring, |_| VirtioError::Timeout));
        }
        match status.load(Relaxed) as u8 {
            0 => Ok(()),
            other => Err(VirtioError::Status(other)),
        }
    }
}
