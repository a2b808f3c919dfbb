//! `/init` of the measured Linux guest: brings the network up, serves, and ends
//! the running kernel when the host asks for it.
//!
//! This is the whole of user space: no init system, no root file system, no
//! orderly stop of other services. A real machine takes longer for both reboots.

mod kexec;
mod network;
mod partition;
mod system;

use std::error::Error;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};

use baseline_guest::control::{self, KexecState, Operation};
use baseline_guest::layout;
use baseline_guest::store::Store;
use baton_workload::protocol;
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    let reason = match run() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let mut console = std::io::stderr();
    // The console is the only place left to complain to.
    let _ = writeln!(console, "baseline guest: {reason}");
    let _ = console.flush();
    // The host sees the emulator exit instead of waiting for its deadline.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<std::convert::Infallible, Box<dyn Error>> {
    let first = system::time_stamp();
    system::mount_all()?;
    if partition::is_one() {
        system::load_modules(layout::PARTITION_MODULES)?;
        let mut console = partition::console()?;
        let told = partition::tell(&mut console, first).and_then(|()| network::configure());
        if let Err(error) = told {
            writeln!(console, "@linux-failed text=\"{error}\"")?;
            return Err(error);
        }
    } else {
        system::load_modules(layout::SERVICE_MODULES)?;
        network::configure()?;
    }
    let socket = UdpSocket::bind(("0.0.0.0", protocol::PORT)).map_err(|e| format!("bind: {e}"))?;
    let mut guest = Guest {
        boot: system::boot_id()?,
        kernel: system::kernel_name()?,
        store: Store::default(),
        kexec: kexec::Preparation::default(),
        first,
    };
    let mut buffer = [0; 2048];
    loop {
        let (length, client) = socket
            .recv_from(&mut buffer)
            .map_err(|e| format!("receive: {e}"))?;
        guest.answer(&socket, client, &buffer[..length])?;
    }
}

struct Guest {
    boot: control::BootId,
    kernel: String,
    store: Store,
    kexec: kexec::Preparation,
    /// The time stamp counter at this program's start.
    first: u64,
}

impl Guest {
    /// Answers one packet. A packet that is neither a request of the service nor a
    /// control request is dropped; so is a reply that cannot be sent.
    fn answer(
        &mut self,
        socket: &UdpSocket,
        client: SocketAddr,
        packet: &[u8],
    ) -> Result<(), Box<dyn Error>> {
        if let Ok(request) = protocol::Request::decode(packet) {
            let mut datagram = [0; protocol::MAX_DATAGRAM];
            if let Some(length) = self.store.serve(&request).encode(&mut datagram) {
                let _ = socket.send_to(&datagram[..length], client);
            }
        } else if let Some(request) = control::Request::parse(packet) {
            let (reply, end) = self.control(request)?;
            let _ = socket.send_to(&reply.to_bytes(), client);
            if let Some(mode) = end {
                reboot(mode).map_err(|e| format!("reboot: {e}"))?;
            }
        }
        Ok(())
    }

    fn control(
        &mut self,
        request: control::Request,
    ) -> Result<(control::Reply, Option<RebootMode>), Box<dyn Error>> {
        let mut end = None;
        let refusal = if request.operation == Operation::Describe {
            None
        } else if request.boot != self.boot {
            Some("that boot has ended".to_owned())
        } else {
            match request.operation {
                Operation::Clear => {
                    self.store = Store::default();
                    None
                }
                Operation::Load => self.kexec.start().err().map(|e| e.to_string()),
                Operation::Kexec if self.kexec.state().0 != KexecState::Loaded => {
                    Some("no kernel is loaded".to_owned())
                }
                Operation::Kexec => {
                    end = Some(RebootMode::RB_KEXEC);
                    None
                }
                Operation::FirmwareReboot => {
                    end = Some(RebootMode::RB_AUTOBOOT);
                    None
                }
                Operation::PowerOff => {
                    end = Some(RebootMode::RB_POWER_OFF);
                    None
                }
                Operation::Panic => {
                    // Returns only where the kernel has no such key.
                    std::fs::write("/proc/sysrq-trigger", "c")
                        .err()
                        .map(|e| e.to_string())
                }
                Operation::Describe => None,
            }
        };
        let (kexec, failure) = self.kexec.state();
        let reply = control::Reply {
            operation: request.operation,
            accepted: refusal.is_none(),
            kexec,
            nonce: request.nonce,
            uptime_ms: system::uptime_ms()?,
            boot: self.boot,
            first_tsc: self.first,
            tsc: system::time_stamp(),
            text: refusal.or(failure).unwrap_or_else(|| self.kernel.clone()),
        };
        Ok((reply, end))
    }
}
