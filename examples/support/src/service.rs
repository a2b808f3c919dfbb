//! The key-value service: the workload's store behind its UDP port.

use alloc::vec;
use core::fmt;

use baton_workload::protocol::MAX_DATAGRAM;
use baton_workload::{Server, Workload, answer};
use heapless::Vec;
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpCidr,
    Ipv4Address,
};

use crate::clock;
use crate::net::{Net, count};

/// Datagrams that the socket has room for each way. Each is answered before the next is taken, so
/// more than one is there only while an answer waits for a neighbour's address.
const DATAGRAMS: usize = 64;
/// Frames taken in one [`Service::poll`].
const BUDGET: usize = 64;
/// The longest list of neighbours that the workload keeps.
const NEIGHBOURS: usize = baton_workload::layout::NEIGHBOURS;
/// An ARP packet in an Ethernet frame.
const ARP_FRAME: usize = 42;

/// Why the service did not come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreezeError {
    /// Answers could not be put into the transmit ring in time.
    Unsent {
        /// Bytes of datagrams that were received and not answered yet.
        received: usize,
        /// Bytes of answers that wait.
        answers: usize,
    },
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsent { received, answers } => write!(
                f,
                "{received} bytes of requests and {answers} bytes of answers are left"
            ),
        }
    }
}

impl core::error::Error for FreezeError {}

/// What the service has besides the workload's memory: a network stack and a socket, both empty
/// whenever it is at rest. So a successor makes its own, in advance.
pub struct Service<'a> {
    net: Net<'a>,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    server: Server,
    /// The neighbours that the network stack was told of.
    told: Vec<([u8; 4], [u8; 6]), NEIGHBOURS>,
}

impl fmt::Debug for Service<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("net", &self.net)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

fn now() -> Instant {
    Instant::from_micros((clock::now() / 1000) as i64)
}

impl<'a> Service<'a> {
    /// The service on `net`, answering with the letter `kernel`. Nothing happens before
    /// [`poll`](Self::poll).
    ///
    /// Returns `None` where the network stack does not take the configuration or the port.
    #[must_use]
    pub fn new(mut net: Net<'a>, kernel: u8) -> Option<Self> {
        let network = net.workload().network();
        let mut config = Config::new(EthernetAddress(network.mac).into());
        config.random_seed = clock::tsc();
        let mut interface = Interface::new(config, &mut net, now());
        let own = IpCidr::new(Ipv4Address::from(network.address).into(), network.prefix);
        let mut fits = true;
        interface.update_ip_addrs(|addresses| fits = addresses.push(own).is_ok());
        if let Some(gateway) = network.gateway {
            fits &= interface
                .routes_mut()
                .add_default_ipv4_route(gateway.into())
                .is_ok();
        }
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
                vec![0; DATAGRAMS * MAX_DATAGRAM],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        fits &= socket.bind(network.port).is_ok();
        let mut sockets = SocketSet::new(vec![]);
        let socket = sockets.add(socket);
        let mut service = Self {
            net,
            interface,
            sockets,
            socket,
            server: Server { kernel },
            told: Vec::new(),
        };
        service.tell_neighbours();
        fits.then_some(service)
    }

    /// The workload.
    #[must_use]
    pub const fn workload(&self) -> &Workload<'a> {
        self.net.workload()
    }

    /// The workload, to be changed by its owner.
    pub const fn workload_mut(&mut self) -> &mut Workload<'a> {
        self.net.workload_mut()
    }

    /// Tells the network stack of the neighbours that the workload knows and it does not, as if
    /// each had just answered.
    pub fn tell_neighbours(&mut self) {
        let network = self.workload().network();
        for (address, mac) in self.workload().neighbours() {
            if self.told.contains(&(address, mac)) {
                continue;
            }
            let mut answer = Answer::new(address, mac, network.address, network.mac);
            self.interface
                .poll_ingress_single(now(), &mut answer, &mut self.sockets);
            self.told.retain(|&(known, _)| known != address);
            // The list is as long as the workload's.
            let _ = self.told.push((address, mac));
        }
    }

    /// Takes the service up, or up again after [`drain_and_freeze`](Self::drain_and_freeze). For
    /// the owner of the workload.
    pub fn start(&mut self) {
        self.tell_neighbours();
        self.net.set_taking(true);
    }

    /// Answers what has come in, up to a bound; says how many frames that were. Never waits. For
    /// the owner of the workload.
    pub fn poll(&mut self) -> usize {
        let mut frames = 0;
        self.net.reclaim();
        while frames < BUDGET {
            let time = now();
            let taken = self
                .interface
                .poll_ingress_single(time, &mut self.net, &mut self.sockets);
            if matches!(taken, PollIngressSingleResult::None) {
                break;
            }
            frames += 1;
            self.answer(time);
        }
        if frames == 0 {
            // Answers may have waited for a buffer or for a neighbour's address.
            self.answer(now());
        }
        self.net.kick();
        frames
    }

    /// Whether [`poll`](Self::poll) has something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.net.has_work()
    }

    /// Answers every request in the socket and puts every answer into the transmit ring, as far as
    /// there is room.
    fn answer(&mut self, time: Instant) {
        let mut request = [0; MAX_DATAGRAM];
        let mut reply = [0; MAX_DATAGRAM];
        loop {
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.socket);
            if socket.can_recv() && socket.can_send() {
                let workload = self.net.workload_mut();
                let counters = workload.counters();
                match socket.recv_slice(&mut request) {
                    Ok((length, from)) => {
                        let store = &mut workload.store;
                        let request = &request[..length];
                        let length = answer(self.server, store, counters, request, &mut reply);
                        if let Some(length) = length {
                            // There is room for it.
                            let _ = socket.send_slice(&reply[..length], from.endpoint);
                        }
                    }
                    // Too long for a request.
                    Err(_) => count(&counters.malformed),
                }
            }
            let sent = self
                .interface
                .poll_egress(time, &mut self.net, &mut self.sockets);
            let socket = self.sockets.get::<udp::Socket<'_>>(self.socket);
            let more = socket.can_recv() && socket.can_send();
            if !more && matches!(sent, PollResult::None) {
                return;
            }
        }
    }

    /// Stops taking frames, and answers every request that was taken: afterwards all of the
    /// workload is in its memory. What is in the receive ring stays there for whoever goes on.
    ///
    /// # Errors
    /// Where that was not done within `microseconds`; the service is still at rest then, and may be
    /// taken up again by [`start`](Self::start).
    pub fn drain_and_freeze(&mut self, microseconds: u64) -> Result<(), FreezeError> {
        self.net.set_taking(false);
        let deadline = clock::Deadline::after(microseconds);
        loop {
            self.answer(now());
            self.net.kick();
            let socket = self.sockets.get::<udp::Socket<'_>>(self.socket);
            let (received, answers) = (socket.recv_queue(), socket.send_queue());
            if received == 0 && answers == 0 {
                return Ok(());
            }
            if deadline.expired() {
                return Err(FreezeError::Unsent { received, answers });
            }
        }
    }
}

/// A device that receives one frame: the answer of a neighbour.
struct Answer(Option<[u8; ARP_FRAME]>);

impl Answer {
    fn new(from: [u8; 4], from_mac: [u8; 6], to: [u8; 4], to_mac: [u8; 6]) -> Self {
        let mut bytes = [0; ARP_FRAME];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        EthernetRepr {
            src_addr: EthernetAddress(from_mac),
            dst_addr: EthernetAddress(to_mac),
            ethertype: EthernetProtocol::Arp,
        }
        .emit(&mut frame);
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(from_mac),
            source_protocol_addr: from.into(),
            target_hardware_addr: EthernetAddress(to_mac),
            target_protocol_addr: to.into(),
        }
        .emit(&mut smoltcp::wire::ArpPacket::new_unchecked(
            frame.payload_mut(),
        ));
        Self(Some(bytes))
    }
}

struct Frame([u8; ARP_FRAME]);

impl phy::RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// What is sent into nothing.
struct Nowhere;

impl phy::TxToken for Nowhere {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut nothing = [0; 2048];
        f(&mut nothing[..length.min(2048)])
    }
}

impl phy::Device for Answer {
    type RxToken<'b> = Frame;
    type TxToken<'b> = Nowhere;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Nowhere)> {
        self.0.take().map(|frame| (Frame(frame), Nowhere))
    }

    fn transmit(&mut self, _: Instant) -> Option<Nowhere> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}
