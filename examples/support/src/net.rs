//! The network device: a driver whose whole state is in the workload's memory.

use baton_workload::memory::Memory;
use baton_workload::queue::DeviceError;
use baton_workload::{BUFFER, Geometry, Network, Nic, Workload};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use handoff_abi::{PhysAddr, PhysRange};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Cidr,
};
use spin::Once;

use crate::clock;
use crate::mmio::Mmio;
use crate::pci::{Function, MsixTable};
use crate::virtio::{ACCESS_PLATFORM, Places, Transport, VERSION_1, VirtioError};

/// VIRTIO_NET_F_MAC.
const MAC: u64 = 1 << 5;
/// What each frame is preceded by in its buffer: `virtio_net_hdr` with `num_buffers`, as
/// VERSION_1 has it whether buffers are merged or not (Virtual I/O Device 1.2, section 5.1.6).
const HEADER: usize = 12;
/// The longest Ethernet frame, without its check sequence.
const FRAME: usize = 1514;
/// The shortest that has an Ethernet header.
const SHORTEST: usize = 14;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// The MSI-X entry of both queues. The transmit queue interrupts only when asked to.
const ENTRY: u16 = 0;

/// What the workload is to be on the network, but for the Ethernet address, which is the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The IPv4 address.
    pub address: [u8; 4],
    /// Length of the network prefix.
    pub prefix: u8,
    /// The gateway, if there is one.
    pub gateway: Option<[u8; 4]>,
    /// The UDP port.
    pub port: u16,
}

/// The driver.
#[derive(Debug)]
pub struct Net<'a> {
    /// A frame that was received: copied out before anything looks at it.
    received: [u8; BUFFER],
    ring: Rings<'a>,
}

#[derive(Debug)]
struct Rings<'a> {
    workload: Workload<'a>,
    notify: [Mmio; 2],
    /// A frame that is to be sent, before it is copied into a buffer.
    sending: [u8; HEADER + FRAME],
    /// Whether chains were given to each queue that it was not notified of.
    pending: [bool; 2],
    /// Whether frames are taken from the receive ring.
    taking: bool,
    /// Whether the device broke the rules in a way that it cannot be gone on with.
    broken: bool,
}

impl<'a> Net<'a> {
    /// Resets the device and sets it up with a workload that is laid out in `memory`, which begins
    /// at `dma_base` for the device. Its interrupts are the message `address`, `data`.
    ///
    /// # Errors
    /// [`VirtioError`]. The device may be left without its driver, but never with one.
    ///
    /// # Safety
    /// `places` are `function`'s, and the window maps [`Places::windows`] uncached for good. The
    /// device is a virtio network device and nobody else's, and the memory at `dma_base` is
    /// `memory` for it.
    pub unsafe fn create(
        function: &Function,
        places: Places,
        memory: &Memory<'a>,
        dma_base: u64,
        geometry: &Geometry,
        address: &Address,
        message: (PhysAddr, u32),
    ) -> Result<Self, VirtioError> {
        function.enable_memory();
        // SAFETY: the caller's promise.
        let transport = unsafe { Transport::new(places) };
        let features = transport.begin(VERSION_1 | ACCESS_PLATFORM | MAC, 0)?;
        let mut mac = [0; 6];
        for (offset, byte) in mac.iter_mut().enumerate() {
            *byte = transport.device().read8(offset);
        }
        let network = Network {
            mac,
            address: address.address,
            prefix: address.prefix,
            gateway: address.gateway,
            port: address.port,
        };
        let mut workload = Workload::create(memory, geometry, &network, dma_base)
            .map_err(|_| VirtioError::Memory)?;

        // SAFETY: the caller's promise: the table is mapped.
        let table = unsafe { MsixTable::new(places.msix.0.base(), places.msix.1) };
        (0..places.msix.1).for_each(|entry| {
            table.mask(entry);
        });
        if !table.set(ENTRY, message.0, message.1) || !function.enable_msix(true) {
            return Err(VirtioError::Interrupts);
        }
        function.set_bus_master(true);
        let notify = [
            transport.set_queue(
                RECEIVE,
                workload.receive.size(),
                &workload.receive.addresses(dma_base),
                ENTRY,
            )?,
            transport.set_queue(
                TRANSMIT,
                workload.transmit.size(),
                &workload.transmit.addresses(dma_base),
                ENTRY,
            )?,
        ];
        workload.set_nic(&Nic {
            function: u32::from(function.id().0),
            features,
            common: places.common.base().0,
            isr: places.isr.base().0,
            device: places.device.base().0,
            notify: notify.map(|address| address.0),
            msix_table: places.msix.0.base().0,
            msix_entries: u32::from(places.msix.1),
            msix_entry: [ENTRY, ENTRY],
        });
        transport.finish();
        // SAFETY: the notification registers are in the mapped window, by the caller's promise.
        let mut net = unsafe { Self::over(workload, notify) };
        net.ring.pending[usize::from(RECEIVE)] = true;
        net.ring.taking = true;
        net.kick();
        Ok(net)
    }

    /// Goes on with the device of a workload that was adopted: touches no register, and takes no
    /// frame before [`set_taking`](Self::set_taking).
    ///
    /// # Errors
    /// Where the workload has no device, or not such a one.
    ///
    /// # Safety
    /// The window maps [`windows`] of the workload's device uncached for good, and the caller has
    /// checked that these are registers of a device of the workload's.
    pub unsafe fn adopt(workload: Workload<'a>) -> Result<Self, VirtioError> {
        let nic = workload.nic().ok_or(VirtioError::Structure(1))?;
        if nic.features != VERSION_1 | ACCESS_PLATFORM | MAC {
            return Err(VirtioError::Feature(nic.features));
        }
        // SAFETY: the caller's promise.
        Ok(unsafe { Self::over(workload, nic.notify.map(PhysAddr)) })
    }

    /// # Safety
    /// Both registers are mapped for good.
    unsafe fn over(workload: Workload<'a>, notify: [PhysAddr; 2]) -> Self {
        // SAFETY: the caller's promise.
        let notify = notify.map(|address| unsafe { Mmio::new(address, 2) });
        Self {
            received: [0; BUFFER],
            ring: Rings {
                workload,
                notify,
                sending: [0; HEADER + FRAME],
                pending: [false; 2],
                taking: false,
                broken: false,
            },
        }
    }

    /// The workload.
    #[must_use]
    pub const fn workload(&self) -> &Workload<'a> {
        &self.ring.workload
    }

    /// The workload, to be changed by its owner.
    pub const fn workload_mut(&mut self) -> &mut Workload<'a> {
        &mut self.ring.workload
    }

    /// Whether frames are taken from the receive ring from now on.
    pub const fn set_taking(&mut self, taking: bool) {
        self.ring.taking = taking;
    }

    /// Whether the receive ring has a frame that would be taken, or the transmit ring has something
    /// to reclaim that is waited for.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let ring = &self.ring;
        let workload = &ring.workload;
        let receive = ring.taking && workload.receive.has_used();
        let transmit = workload.transmit.interrupts() && workload.transmit.has_used();
        !ring.broken && (receive || transmit)
    }

    /// Takes back the buffers that were sent.
    pub fn reclaim(&mut self) {
        self.ring.reclaim();
    }

    /// Notifies the device of what it was given, if it wants to know.
    pub fn kick(&mut self) {
        self.ring.kick();
    }
}

/// What a queue held that cannot be: its device wrote it, or whoever had the queue before.
#[derive(Clone, Copy, Debug)]
pub struct Nonsense {
    /// The queue's name.
    pub queue: &'static str,
    /// What it was.
    pub error: DeviceError,
    /// Whether the queue cannot be read any further, and the device has to be reset; otherwise it
    /// was skipped.
    pub ends_service: bool,
}

/// The first nonsense of each queue: what was skipped, and what ended the service. The driver is
/// the service processor's; this is what the control processor, which has the console, sees of it.
static NONSENSE: [[Once<Nonsense>; 2]; 2] = [const { [Once::new(), Once::new()] }; 2];
/// Of that, what [`news`] gave already: one bit for each.
static TOLD: AtomicU32 = AtomicU32::new(0);

fn notice(queue: u16, error: DeviceError) -> Nonsense {
    let ends_service = !matches!(error, DeviceError::NotOwned { .. });
    let nonsense = Nonsense {
        queue: if queue == RECEIVE {
            "receive"
        } else {
            "transmit"
        },
        error,
        ends_service,
    };
    let place = NONSENSE.get(usize::from(queue));
    if let Some(first) = place.and_then(|kinds| kinds.get(usize::from(ends_service))) {
        first.call_once(|| nonsense);
    }
    nonsense
}

/// What the queues held that cannot be, the first of each kind.
pub fn nonsense() -> impl Iterator<Item = Nonsense> {
    NONSENSE.iter().flatten().filter_map(Once::get).copied()
}

/// The same, each once.
pub fn news() -> impl Iterator<Item = Nonsense> {
    NONSENSE
        .iter()
        .flatten()
        .zip(0..)
        .filter_map(|(once, place)| {
            let found = once.get()?;
            let bit = 1 << place;
            (TOLD.fetch_or(bit, Relaxed) & bit == 0).then_some(*found)
        })
}

/// Adds one to a counter that only the owner of the workload writes.
pub(crate) fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// What has to be mapped into the window, uncached, to go on with this device.
#[must_use]
pub fn windows(nic: &Nic) -> [PhysRange; 2] {
    nic.notify.map(|address| {
        PhysRange::from_bounds(PhysAddr(address), PhysAddr(address.saturating_add(2)))
    })
}

impl Rings<'_> {
    /// A chain that was not the device's is skipped, and counted by the ring; a ring whose cursors
    /// are wrong cannot be read any further.
    fn judge(&mut self, queue: u16, error: DeviceError) {
        self.broken |= notice(queue, error).ends_service;
    }

    fn reclaim(&mut self) {
        while !self.broken {
            match self.workload.transmit.take_used() {
                Ok(None) => return,
                Ok(Some(_)) => {}
                Err(error) => self.judge(TRANSMIT, error),
            }
        }
    }

    /// Makes sure that there is a free transmit buffer. Where there is none the device is asked to
    /// interrupt, so that nobody has to poll for it.
    fn can_send(&mut self) -> bool {
        if self.workload.transmit.free().is_none() {
            self.reclaim();
        }
        if self.workload.transmit.free().is_none() {
            self.workload.transmit.set_interrupts(true);
            // What came back before the device saw that would not interrupt any more.
            self.reclaim();
        }
        let can = self.workload.transmit.free().is_some();
        if can {
            self.workload.transmit.set_interrupts(false);
        }
        can
    }

    /// Sends the first `length` bytes of `sending` after its header.
    fn send(&mut self, length: usize) {
        let workload = &mut self.workload;
        let Some(id) = workload.transmit.free() else {
            count(&workload.counters().dropped);
            return;
        };
        let bytes = HEADER + length;
        workload
            .transmit_buffers
            .copy_in(id, &self.sending[..bytes]);
        let segment = workload.transmit_segment(id, bytes);
        // The descriptor was free just now.
        if workload.transmit.submit_at(id, &segment).is_ok() {
            count(&workload.counters().frames_sent);
            self.pending[usize::from(TRANSMIT)] = true;
        }
    }

    /// Takes a frame from the receive ring into `to` and gives its buffer back to the device. Says
    /// how long it is.
    fn take(&mut self, to: &mut [u8; BUFFER]) -> Option<usize> {
        while self.taking && !self.broken {
            let used = match self.workload.receive.take_used() {
                Ok(None) => return None,
                Ok(Some(used)) => used,
                Err(error) => {
                    self.judge(RECEIVE, error);
                    continue;
                }
            };
            let length = (used.length as usize).min(BUFFER);
            self.workload
                .receive_buffers
                .copy_out(used.head, &mut to[..length]);
            let segment = self.workload.receive_segment(used.head);
            // The descriptor has just become free.
            let _ = self.workload.receive.submit_at(used.head, &segment);
            self.pending[usize::from(RECEIVE)] = true;
            if (HEADER + SHORTEST..=HEADER + FRAME).contains(&length) {
                count(&self.workload.counters().frames_received);
                return Some(length);
            }
            count(&self.workload.counters().dropped);
        }
        None
    }

    fn kick(&mut self) {
        for (index, register) in (0_u16..).zip(&self.notify) {
            let queue = match index {
                RECEIVE => &self.workload.receive,
                _ => &self.workload.transmit,
            };
            let pending = &mut self.pending[usize::from(index)];
            if !core::mem::take(pending) || !queue.wants_notification() {
                continue;
            }
            register.write16(0, index);
            if index == TRANSMIT {
                let (now, counters) = (clock::tsc(), self.workload.counters());
                count(&counters.doorbells);
                counters.last_doorbell.store(now, Relaxed);
                if counters.first_doorbell.load(Relaxed) == 0 {
                    counters.first_doorbell.store(now, Relaxed);
                }
            }
        }
    }

    /// Remembers who asks for the workload's address, or answers when it asked: what the network
    /// stack learns from a frame, its successor learns from the workload.
    fn learn(&mut self, frame: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else {
            return;
        };
        if frame.ethertype() != EthernetProtocol::Arp {
            return;
        }
        let arp = ArpPacket::new_checked(frame.payload());
        let Ok(Ok(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request | ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(mac),
            source_protocol_addr: source,
            target_protocol_addr: target,
            ..
        })) = arp.map(|arp| ArpRepr::parse(&arp))
        else {
            return;
        };
        let network = self.workload.network();
        let own = Ipv4Cidr::new(network.address.into(), network.prefix);
        let unicast = !(source.is_unspecified() || source.is_multicast() || source.is_broadcast());
        if target.octets() == network.address
            && own.contains_addr(&source)
            && unicast
            && mac[0] & 1 == 0
        {
            self.workload.learn(source.octets(), mac);
        }
    }
}

/// A frame that was received.
#[derive(Debug)]
pub struct Received<'b>(&'b [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// A frame to be sent.
#[derive(Debug)]
pub struct Sending<'b, 'a>(&'b mut Rings<'a>);

impl phy::TxToken for Sending<'_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        // The network stack keeps to the device's MTU.
        let length = length.min(FRAME);
        self.0.sending[..HEADER].fill(0);
        let result = f(&mut self.0.sending[HEADER..HEADER + length]);
        self.0.send(length);
        result
    }
}

impl<'a> phy::Device for Net<'a> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b, 'a>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_, 'a>)> {
        // Each frame may be answered, so none is taken that could not be.
        if !self.ring.can_send() {
            return None;
        }
        let length = self.ring.take(&mut self.received)?;
        let frame = &self.received[HEADER..length];
        self.ring.learn(frame);
        Some((Received(frame), Sending(&mut self.ring)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, 'a>> {
        self.ring.can_send().then_some(Sending(&mut self.ring))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}
