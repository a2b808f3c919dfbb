//! Load from inside of the machine, for the bench: a second network device on the workload's wire,
//! driven by the control processor.
//!
//! It stands where the clients' gateway is, so the service needs to know nothing of it.

use alloc::vec;
use core::fmt;

use baton_workload::Geometry;
use baton_workload::memory::{Memory, PAGE};
use baton_workload::protocol::{MAX_DATAGRAM, Reply, Request, op, status};
use handoff_abi::PciFunction;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint, Ipv4Address};
use spin::Mutex;

use super::kernel::{Failure, Kernel, failure};
use super::{devices, own_devices};
use crate::net::{Address, Net};
use crate::paging::Access;
use crate::virtio::Places;
use crate::{clock, mmio, println};

/// Its place on the network, and the workload's.
const ADDRESS: Address = Address {
    address: [10, 0, 2, 2],
    prefix: 24,
    gateway: None,
    port: 40_000,
};
const SERVICE: ([u8; 4], u16) = ([10, 0, 2, 15], 7777);
/// The store is never used; the rings have room for every request at once.
const GEOMETRY: Geometry = Geometry {
    store_slots: 1,
    receive: 64,
    transmit: 64,
};
/// The most requests that are out at a time.
pub const MOST: u64 = 32;
/// Bytes of each value.
const VALUE: usize = 64;
/// How long one exchange may take, in microseconds.
const ANSWER: u64 = 2_000_000;

static GENERATOR: Mutex<Option<Generator>> = Mutex::new(None);

/// The generator: a client with a network stack of its own.
struct Generator {
    net: Net<'static>,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// The number of the last request.
    sequence: u64,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

fn now() -> Instant {
    Instant::from_micros((clock::now() / 1000) as i64)
}

/// What is written as request `sequence`.
fn value(sequence: u64) -> [u8; VALUE] {
    core::array::from_fn(|index| (sequence as u8).wrapping_mul(31).wrapping_add(index as u8))
}

/// `rounds` times: a value is written, and read back.
///
/// # Errors
/// Where there is no second network device, or an answer is late or wrong.
pub fn rounds(kernel: &mut Kernel, rounds: u64) -> Result<(), Failure> {
    with(kernel, |generator| {
        for _ in 0..rounds {
            generator.send(op::WRITE, 1)?;
            generator.collect(op::WRITE, 1)?;
            generator.send_read_back(1)?;
            generator.collect(op::READ, 1)?;
        }
        println!("@load rounds={rounds} requests={}", generator.sequence);
        Ok(())
    })
}

/// Puts `count` writes into the workload's receive ring.
///
/// # Errors
/// Where there is no second network device, or it does not take them.
pub fn offer(kernel: &mut Kernel, count: u64) -> Result<(), Failure> {
    with(kernel, |generator| generator.send(op::WRITE, count))
}

/// Takes the answers to what was [offered](offer), and reads every value back from whoever serves
/// now.
///
/// # Errors
/// Where an answer is late or wrong.
pub fn settle(kernel: &mut Kernel, count: u64) -> Result<(), Failure> {
    with(kernel, |generator| {
        let letter = generator.collect(op::WRITE, count)?;
        generator.send_read_back(count)?;
        generator.collect(op::READ, count)?;
        println!(
            "@load offered={count} answered={count} by={} read_back={count}",
            char::from(letter)
        );
        Ok(())
    })
}

fn with(
    kernel: &mut Kernel,
    work: impl FnOnce(&mut Generator) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut generator = GENERATOR.lock();
    if generator.is_none() {
        *generator = Some(Generator::create(kernel)?);
    }
    generator
        .as_mut()
        .map_or_else(|| Err(failure!("there is no generator")), work)
}

/// The network device among a kernel's own functions: the workload's is not one of them.
fn device_of(kernel: &Kernel) -> Option<PciFunction> {
    kernel.functions.iter().copied().find(|&function| {
        devices::function(function).is_ok_and(|device| device.class() >> 8 == 0x0200)
    })
}

impl Generator {
    fn create(kernel: &mut Kernel) -> Result<Self, Failure> {
        let function =
            device_of(kernel).ok_or_else(|| failure!("there is no second network device"))?;
        own_devices::set_aside_all(kernel)?;
        let message = kernel
            .handles
            .iter()
            .find(|handle| handle.function == function)
            .map(|handle| (handle.message_address, handle.message_data))
            .ok_or_else(|| failure!("{function} has no interrupt entry"))?;
        let device = devices::function(function)?;
        let places = Places::find(&device)?;
        for window in places.windows() {
            kernel.map(window, Access::Device)?;
        }
        let length = GEOMETRY
            .length()
            .ok_or_else(|| failure!("the generator's rings have no size"))?;
        let range = kernel
            .memory
            .take(length, PAGE, u64::MAX)
            .ok_or_else(|| failure!("there is no memory for the generator"))?;
        // SAFETY: the range was just taken out of free memory and is reached through this value
        // only.
        let memory = unsafe { Memory::new(mmio::pointer(range.base()), range.length()) }
            .ok_or_else(|| failure!("the generator's memory does not begin at a page"))?;
        // SAFETY: the windows are mapped, the function is this kernel's, and its domain maps the
        // memory at its physical address.
        let mut net = unsafe {
            Net::create(
                &device,
                places,
                &memory,
                range.base().0,
                &GEOMETRY,
                &ADDRESS,
                message,
            )
        }?;
        let mac = net.workload().network().mac;
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = u64::from(function.requester.0);
        let mut interface = Interface::new(config, &mut net, now());
        let own = IpCidr::new(Ipv4Address::from(ADDRESS.address).into(), ADDRESS.prefix);
        let mut fits = true;
        interface.update_ip_addrs(|addresses| fits = addresses.push(own).is_ok());
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; MOST as usize],
                vec![0; MOST as usize * MAX_DATAGRAM],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        fits &= socket.bind(ADDRESS.port).is_ok();
        if !fits {
            return Err(failure!("the network stack does not take the generator"));
        }
        let mut sockets = SocketSet::new(vec![]);
        let socket = sockets.add(socket);
        Ok(Self {
            net,
            interface,
            sockets,
            socket,
            sequence: 0,
        })
    }

    fn poll(&mut self) {
        self.net.reclaim();
        self.interface.poll(now(), &mut self.net, &mut self.sockets);
        self.net.kick();
    }

    /// Sends `count` further writes, and waits until the device has taken every frame: it is in the
    /// other device's ring then.
    fn send(&mut self, kind: u8, count: u64) -> Result<(), Failure> {
        for _ in 0..count {
            self.sequence += 1;
            self.submit(kind, self.sequence)?;
        }
        self.flush()
    }

    /// Asks for the last `count` values that were written.
    fn send_read_back(&mut self, count: u64) -> Result<(), Failure> {
        for sequence in self.sequence + 1 - count..=self.sequence {
            self.submit(op::READ, sequence)?;
        }
        self.flush()
    }

    fn submit(&mut self, kind: u8, sequence: u64) -> Result<(), Failure> {
        let value = value(sequence);
        let key = sequence as u32;
        let request = if kind == op::WRITE {
            Request::Write {
                sequence,
                key,
                value: &value,
            }
        } else {
            Request::Read { sequence, key }
        };
        let mut datagram = [0; MAX_DATAGRAM];
        let length = request
            .encode(&mut datagram)
            .ok_or_else(|| failure!("a request does not fit a datagram"))?;
        let to = IpEndpoint::new(Ipv4Address::from(SERVICE.0).into(), SERVICE.1);
        self.sockets
            .get_mut::<udp::Socket<'_>>(self.socket)
            .send_slice(&datagram[..length], to)
            .map_err(|_| failure!("too many requests at a time"))
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let sent = clock::wait_until(ANSWER, || {
            self.poll();
            let waiting = self
                .sockets
                .get::<udp::Socket<'_>>(self.socket)
                .send_queue();
            let transmit = &self.net.workload().transmit;
            waiting == 0 && transmit.free_count() == transmit.size()
        });
        if sent {
            return Ok(());
        }
        Err(failure!("the generator's requests were not taken in time"))
    }

    /// Takes the answers to the last `count` requests, each once and in any order, and says who
    /// signed them.
    fn collect(&mut self, kind: u8, count: u64) -> Result<u8, Failure> {
        let first = self.sequence + 1 - count;
        let mut missing = (1_u64 << count) - 1;
        let mut letter = None;
        let mut wrong = None;
        clock::wait_until(ANSWER, || {
            self.poll();
            let mut datagram = [0; MAX_DATAGRAM];
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.socket);
            while let Ok((length, _)) = socket.recv_slice(&mut datagram) {
                match Reply::decode(&datagram[..length]) {
                    Ok(reply) => {
                        let bit = reply.sequence.checked_sub(first).filter(|&at| at < count);
                        let bit = bit.map_or(0, |at| 1 << at);
                        let right = reply.op == kind
                            && reply.status == status::OK
                            && missing & bit != 0
                            && letter.is_none_or(|letter| letter == reply.kernel)
                            && (kind == op::WRITE || reply.value == value(reply.sequence));
                        if !right {
                            wrong = Some(reply.sequence);
                        }
                        missing &= !bit;
                        letter = Some(reply.kernel);
                    }
                    Err(_) => wrong = Some(0),
                }
            }
            missing == 0 || wrong.is_some()
        });
        match (wrong, letter) {
            (Some(sequence), _) => Err(failure!("the answer to request {sequence} is wrong")),
            (None, Some(letter)) if missing == 0 => Ok(letter),
            _ => Err(failure!(
                "{} of {count} answers did not come in time",
                missing.count_ones()
            )),
        }
    }
}
