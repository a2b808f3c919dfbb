//! What the host asks the guest beside the load: which boot this is, to prepare its
//! end, and to end it. Requests are repeated until they are answered, except the one
//! that ends a boot.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use baseline_guest::control::{BootId, KexecState, Operation, Reply, Request};

use crate::machine::Machine;

/// How long one attempt waits for its answer.
const ATTEMPT: Duration = Duration::from_millis(50);
/// For what takes no longer than an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The operator of a running guest.
pub(crate) struct Operator {
    socket: UdpSocket,
    nonce: u64,
}

impl Operator {
    pub(crate) fn new(service: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no UDP socket")?;
        socket.connect(service)?;
        socket.set_read_timeout(Some(ATTEMPT))?;
        Ok(Self { socket, nonce: 0 })
    }

    /// Waits for the guest and lets it describe itself; `except` is a boot that is
    /// to be over.
    pub(crate) fn wait_for_boot(
        &mut self,
        machine: &mut Machine,
        except: Option<BootId>,
        limit: Duration,
    ) -> Result<Reply> {
        self.ask(machine, Operation::Describe, [0; 16], limit, |reply| {
            Some(reply.boot) != except
        })
        .context("the guest did not come up")
    }

    /// Has the guest load the kernel that kexec is to start, and waits for it.
    pub(crate) fn load_kernel(
        &mut self,
        machine: &mut Machine,
        boot: BootId,
        limit: Duration,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            // Asking again does not load again.
            let reply = self.ask(machine, Operation::Load, boot, ANSWER_LIMIT, |_| true)?;
            match reply.kexec {
                KexecState::Loaded if reply.accepted => return Ok(()),
                KexecState::Loading if reply.accepted => std::thread::sleep(ATTEMPT),
                _ => bail!("the guest cannot load a kernel: {}", reply.text),
            }
        }
        bail!(
            "the guest did not load a kernel within {} s",
            limit.as_secs()
        );
    }

    /// Has the guest forget what is stored: each load keeps books of its own, from an
    /// empty store on.
    pub(crate) fn clear(&mut self, machine: &mut Machine, boot: BootId) -> Result<()> {
        let reply = self.ask(machine, Operation::Clear, boot, ANSWER_LIMIT, |_| true)?;
        if !reply.accepted {
            bail!("the guest does not empty its store: {}", reply.text);
        }
        Ok(())
    }

    /// Ends a boot: sent once, and not waited for.
    pub(crate) fn end(&mut self, operation: Operation, boot: BootId) -> Result<()> {
        let request = self.request(operation, boot);
        self.socket
            .send(&request.to_bytes())
            .context("cannot send to the guest")?;
        Ok(())
    }

    /// Sends a request until an answer to it is one that `accept` takes.
    fn ask(
        &mut self,
        machine: &mut Machine,
        operation: Operation,
        boot: BootId,
        limit: Duration,
        accept: impl Fn(&Reply) -> bool,
    ) -> Result<Reply> {
        let request = self.request(operation, boot);
        let end = Instant::now() + limit;
        let mut buffer = [0; 2048];
        while Instant::now() < end {
            check(machine)?;
            let attempt = Instant::now() + ATTEMPT;
            // A failure to send or to receive does not end this: it is what a guest
            // that is down looks like.
            let _ = self.socket.send(&request.to_bytes());
            while Instant::now() < attempt {
                if let Ok(length) = self.socket.recv(&mut buffer)
                    && let Some(reply) = Reply::parse(&buffer[..length])
                    && reply.nonce == request.nonce
                    && accept(&reply)
                {
                    return Ok(reply);
                }
            }
        }
        bail!(
            "the guest did not answer {operation:?} within {} s; its console ends so:\n{}",
            limit.as_secs(),
            machine.consoles[0].tail(12)
        );
    }

    fn request(&mut self, operation: Operation, boot: BootId) -> Request {
        self.nonce += 1;
        Request {
            operation,
            nonce: self.nonce,
            boot,
        }
    }
}

/// Fails when the emulator has ended, which it does when the guest's program cannot
/// go on and switches the machine off.
fn check(machine: &mut Machine) -> Result<()> {
    while machine.consoles[0].next_line(Duration::ZERO)?.is_some() {}
    Ok(())
}
