//! The hand-over of the workload, from the control processor's side, in both directions.

use handoff_abi::{ApicId, Exchange, InterruptTarget, Message, Owner, PartitionId, message, state};
use iommu::Pending;
use partition_core::mailbox::{Receiver, Sender};
use partition_core::watch::Watch;

use super::handoff::write_handoff;
use super::kernel::{Failure, Kernel, failure};
use super::launch::interrupts_of;
use super::misbehave::Point;
use super::processors::{self, Role};
use super::serving::{self, Order};
use super::{control, generator};
use crate::{clock, console, println};

/// How long a kernel may take to answer a message, in microseconds.
const ANSWER: u64 = 2_000_000;
/// How long the service processor may take to hear that it is to expect a commit: less than that.
const HEAR: u64 = 1_000_000;
/// How long the service processor may take to freeze and commit.
const FREEZE: u64 = 5_000_000;
/// How long an operator may look at a frozen workload.
const INSPECT: u64 = 15_000_000;

/// How a hand-over is to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Hold between freeze and commit, and between commit and service, for the operator's look.
    pub inspect: bool,
    /// Stay as a warm standby.
    pub stay: bool,
    /// How many requests the load generator puts into the receive ring before the freeze.
    pub requests: u64,
}

/// A mailbox between two partitions of the exchange.
fn mailbox(
    exchange: &'static Exchange,
    from: PartitionId,
    to: PartitionId,
) -> Option<&'static handoff_abi::Mailbox> {
    exchange
        .mailboxes
        .get(Exchange::place(from))?
        .get(Exchange::place(to))
}

/// Sends a message.
pub fn send(kernel: &Kernel, to: PartitionId, message: &Message) -> Result<(), Failure> {
    let mailbox = mailbox(kernel.exchange, kernel.me, to)
        .ok_or_else(|| failure!("there is no mailbox to partition {to}"))?;
    Sender::new(mailbox).send(message)?;
    Ok(())
}

/// Takes a message out, if there is one.
pub fn receive(kernel: &Kernel, from: PartitionId) -> Result<Option<Message>, Failure> {
    let mailbox = mailbox(kernel.exchange, from, kernel.me)
        .ok_or_else(|| failure!("there is no mailbox from partition {from}"))?;
    Ok(Receiver::new(mailbox).receive()?)
}

/// Sends a message and waits for the answer of this kind to this very message: the last word is a
/// number that the answer repeats. One to an earlier message, which came too late, is passed over.
pub fn ask(
    kernel: &Kernel,
    to: PartitionId,
    message: &Message,
    answer: u64,
) -> Result<Message, Failure> {
    let mut asked = *message;
    asked[7] = clock::tsc();
    send(kernel, to, &asked)?;
    let mut found = None;
    let mut corrupt = None;
    clock::wait_until(ANSWER, || match receive(kernel, to) {
        Ok(Some(reply)) if (reply[0], reply[7]) == (answer, asked[7]) => {
            found = Some(reply);
            true
        }
        Ok(_) => false,
        Err(error) => {
            corrupt = Some(error);
            true
        }
    });
    match (found, corrupt) {
        (Some(reply), _) => Ok(reply),
        (None, Some(error)) => Err(error),
        (None, None) => Err(failure!("partition {to} did not answer in time")),
    }
}

/// Points every interrupt entry of the workload's devices at a processor.
fn retarget(kernel: &mut Kernel, target: InterruptTarget) -> Result<(), Failure> {
    let functions = workload_functions(kernel);
    let mut pending = Pending::none();
    for source in functions {
        for handle in interrupts_of(kernel, source)? {
            pending = pending.merge(kernel.unit()?.retarget(handle, target)?);
        }
    }
    kernel.unit()?.flush(pending)?;
    Ok(())
}

/// The requesters that belong to the workload, as the ledger has them.
fn workload_functions(kernel: &Kernel) -> alloc::vec::Vec<handoff_abi::RequesterId> {
    let owner = Owner::Workload(kernel.workload.id);
    kernel
        .view()
        .into_iter()
        .flat_map(|view| view.owned_by(owner))
        .filter(|entry| entry.kind == handoff_abi::resource::FUNCTION)
        .map(|entry| handoff_abi::RequesterId(entry.base as u16))
        .collect()
}

/// Hands the workload, and stewardship with it, to `next`. Where that fails before the commit, this
/// kernel serves on.
pub fn hand_over(kernel: &mut Kernel, next: PartitionId, manner: Manner) -> Result<(), Failure> {
    let expect: Message = [message::EXPECT, manner.inspect.into(), 0, 0, 0, 0, 0, 0];
    let reply = match ask(kernel, next, &expect, message::EXPECTING) {
        Ok(reply) => reply,
        Err(error) => {
            // Where it wakes up after all it is to know that nobody commits. It may not look.
            let _ = send(kernel, next, &[message::STAND, 0, 0, 0, 0, 0, 0, 0]);
            return Err(error);
        }
    };
    let theirs = target_of(&reply, kernel, next)?;
    let ours = InterruptTarget {
        destination: kernel.service_cpu,
        vector: super::NIC_VECTOR,
    };
    let result = try_hand_over(kernel, next, theirs, manner);
    if let Err(error) = result {
        retarget(kernel, ours)?;
        serving::give(Order::Serve);
        processors::wake(kernel.service_cpu);
        send(kernel, next, &[message::STAND, 0, 0, 0, 0, 0, 0, 0])?;
        println!("@rolled-back text=\"{error}\"");
        return Err(error);
    }
    kernel.unit = None;
    kernel.swaps += 1;
    Ok(())
}

/// What the next owner says about where it wants interrupts, checked against the ledger.
fn target_of(
    reply: &Message,
    kernel: &Kernel,
    next: PartitionId,
) -> Result<InterruptTarget, Failure> {
    let destination = ApicId(u32::try_from(reply[1]).unwrap_or(u32::MAX));
    let vector = u8::try_from(reply[2]).ok().filter(|&vector| vector >= 32);
    let theirs = kernel
        .cpus_of(Owner::Partition(next))
        .contains(&destination);
    match vector {
        Some(vector) if theirs => Ok(InterruptTarget {
            destination,
            vector,
        }),
        _ => Err(failure!(
            "partition {next} wants interrupts at processor {destination}, which is not its own"
        )),
    }
}

fn try_hand_over(
    kernel: &mut Kernel,
    next: PartitionId,
    theirs: InterruptTarget,
    manner: Manner,
) -> Result<(), Failure> {
    // Interrupts of the workload's devices go to the next owner from here on, so this kernel polls
    // until it freezes: none of this is in the blackout.
    serving::give(Order::Poll);
    processors::wake(kernel.service_cpu);
    if let Some(fence) = kernel.unit.take() {
        let (fence, taken_over) = fence.taken_over();
        kernel.unit = Some(fence);
        taken_over?;
    }
    retarget(kernel, theirs)?;
    write_handoff_for(kernel, next)?;
    if manner.requests > 0 {
        serving::give(Order::Rest);
        processors::wake(kernel.service_cpu);
        if !clock::wait_until(FREEZE, || serving::order() == Order::Resting) {
            return Err(failure!("the service does not rest"));
        }
        generator::offer(kernel, manner.requests)?;
    }
    let slot = kernel.workload.ledger_slot as u16;
    let steward = kernel
        .steward
        .take()
        .ok_or_else(|| failure!("this kernel is not the steward"))?;
    let armed = match steward.arm(slot, next) {
        Ok(armed) => armed,
        Err((steward, error)) => {
            kernel.steward = Some(steward);
            return Err(error.into());
        }
    };
    serving::arm(armed);
    let order = if manner.inspect {
        Order::FreezeAndHold
    } else {
        Order::FreezeAndCommit
    };
    serving::give(order);
    processors::wake(kernel.service_cpu);
    let settled = |order| matches!(order, Order::Frozen | Order::Committed | Order::Thawed);
    control::wait_halted(FREEZE, || settled(serving::order()));
    if serving::order() == Order::Frozen {
        let workload = kernel.workload;
        println!(
            "@frozen workload={:#x} length={:#x}",
            workload.base.0, workload.length
        );
        let go = clock::wait_until(INSPECT, || {
            console::read_line().is_some_and(|line| line.trim() == "go")
        });
        serving::give(if go { Order::Commit } else { Order::Thaw });
        processors::wake(kernel.service_cpu);
        control::wait_halted(FREEZE, || {
            settled(serving::order()) && serving::order() != Order::Frozen
        });
    }
    if serving::order() == Order::Committed {
        return Ok(());
    }
    // The service processor holds the right to commit until it has said that it thawed.
    serving::give(Order::Thaw);
    processors::wake(kernel.service_cpu);
    control::wait_halted(FREEZE, || serving::order() == Order::Thawed);
    kernel.steward = serving::disarmed();
    serving::give(Order::Serve);
    Err(failure!("the workload was not committed"))
}

/// The handoff with the unit's final record, for whoever takes over: the partition that was
/// launched, or one that stayed and has read it before.
fn write_handoff_for(kernel: &mut Kernel, next: PartitionId) -> Result<(), Failure> {
    if kernel
        .successor
        .as_ref()
        .is_some_and(|launched| launched.partition == next)
    {
        return write_handoff(kernel).map(drop);
    }
    super::reclaim::write_return(kernel, next)
}

/// After the commit: this kernel gives up all its processors, this one last.
pub fn retire(kernel: &mut Kernel) -> ! {
    let me = crate::cpu::apic_id();
    println!("@retired partition={} swap={}", kernel.me, kernel.swaps);
    for cpu in processors::present() {
        if cpu != me {
            processors::assign(cpu, Role::Park);
        }
    }
    kernel.status.enter(state::RETIRED, clock::tsc());
    processors::run_first(me, Role::Park)
}

/// Whether the workload has come to this kernel, and with it stewardship.
#[must_use]
pub fn has_come(kernel: &Kernel) -> bool {
    kernel.steward.is_none()
        && kernel
            .view()
            .is_some_and(|view| view.steward() == kernel.me)
        && kernel.status.state() == state::SERVING
}

/// Answers what another kernel asks.
pub fn answer(kernel: &mut Kernel, from: PartitionId) -> Result<(), Failure> {
    let Some(message) = receive(kernel, from)? else {
        return Ok(());
    };
    match message[0] {
        message::EXPECT => {
            let misbehaviour = core::mem::take(&mut kernel.misbehaviour);
            misbehaviour.at(Point::Expecting, &kernel.status);
            let hold = message[1] == 1;
            if !misbehaviour.is_deaf() {
                serving::give(if hold {
                    Order::ExpectAndHold
                } else {
                    Order::Expect
                });
                processors::wake(kernel.service_cpu);
            }
            // After the commit nobody could take the service back from a processor that does not
            // hear of it: it says itself that it waits.
            if !clock::wait_until(HEAR, serving::expects) {
                serving::give(Order::Stand);
                println!("@declined text=\"the service processor does not expect the commit\"");
                return Ok(());
            }
            let reply = [
                message::EXPECTING,
                kernel.service_cpu.0.into(),
                super::NIC_VECTOR.into(),
                0,
                0,
                0,
                0,
                message[7],
            ];
            send(kernel, from, &reply)
        }
        message::STAND => {
            serving::give(Order::Stand);
            processors::wake(kernel.service_cpu);
            Ok(())
        }
        message::DRAIN => {
            let mut reply = super::faults::drain(kernel)?;
            reply[7] = message[7];
            send(kernel, from, &reply)
        }
        // Answers that nobody waits for any more.
        message::EXPECTING | message::DRAINED => Ok(()),
        message::RETURN => hand_over(kernel, from, Manner::default()),
        other => Err(failure!(
            "partition {from} sent a message of unknown kind {other}"
        )),
    }
}

/// Whom this kernel talks to.
#[must_use]
pub fn peers(kernel: &Kernel) -> [Option<PartitionId>; 2] {
    [
        kernel.prime,
        kernel.successor.as_ref().map(|launched| launched.partition),
    ]
}

/// Whether a peer has gone as far as `wanted`.
#[must_use]
pub fn is_in(kernel: &Kernel, peer: PartitionId, wanted: u32) -> bool {
    Watch::join(kernel.exchange, peer).is_some_and(|mut watch| watch.look() == Ok(wanted))
}
