//! The service processor: it serves the workload, and it is the one that freezes and commits, or
//! waits for the commit and goes on.
//!
//! The control processor speaks to it through one word. Nothing of the critical path, from the
//! freeze to the first service of the next kernel, waits for any other processor of either kernel.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use handoff_abi::{Exchange, Ledger, PartitionId, state};
use partition_core::ledger::{Armed, LedgerView, Steward};
use partition_core::watch::OwnStatus;
use spin::{Mutex, Once};

use super::processors::{Role, role};
use crate::clock;
use crate::cpu::{apic_id, wait_for_interrupt};
use crate::mark::{COMMITTED, FREEZE, SERVED, TAKEN, WAIT, WAITED, mark};
use crate::service::Service;

/// How long the service may take to come to rest, in microseconds.
const DRAIN: u64 = 1_000_000;
/// How long the service processor holds a frozen workload before it serves on, in microseconds.
const HOLD: u64 = 20_000_000;
/// How long it spins for a commit that was announced, in microseconds.
const EXPECT: u64 = 30_000_000;

/// What the service processor is asked to do, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// Serve.
    Serve,
    /// Serve without waiting for interrupts: they go to the next kernel already.
    Poll,
    /// Take nothing any more, and be ready to freeze.
    Rest,
    /// Answer: nothing is taken any more; halted.
    Resting,
    /// Freeze, and commit as soon as frozen.
    FreezeAndCommit,
    /// Freeze, and hold until told to commit or to serve on.
    FreezeAndHold,
    /// Answer: everything is in the workload's memory. Held.
    Frozen,
    /// Commit what is frozen.
    Commit,
    /// Answer: committed; the workload is the next kernel's.
    Committed,
    /// Serve on, with nothing committed.
    Thaw,
    /// Answer: the commit failed or was not asked for in time; it serves on.
    Thawed,
    /// Wait for another kernel's commit, halted.
    Stand,
    /// Wait for another kernel's commit, spinning: it is about to come.
    Expect,
    /// As `Expect`, and hold after it until told to serve.
    ExpectAndHold,
    /// Answer: the commit has come; held.
    Held,
}

const ORDERS: [Order; 15] = [
    Order::Serve,
    Order::Poll,
    Order::Rest,
    Order::Resting,
    Order::FreezeAndCommit,
    Order::FreezeAndHold,
    Order::Frozen,
    Order::Commit,
    Order::Committed,
    Order::Thaw,
    Order::Thawed,
    Order::Stand,
    Order::Expect,
    Order::ExpectAndHold,
    Order::Held,
];

static ORDER: AtomicU32 = AtomicU32::new(Order::Stand as u32);
/// Whether the service processor spins for a commit.
static EXPECTS: AtomicBool = AtomicBool::new(false);
/// Whether it waits, halted, for a commit that nobody has announced.
static STANDS: AtomicBool = AtomicBool::new(false);
static FROZEN_AT: AtomicU64 = AtomicU64::new(0);
static COMMITTED_AT: AtomicU64 = AtomicU64::new(0);
static SERVED_AT: AtomicU64 = AtomicU64::new(0);
static SWAPS: AtomicU64 = AtomicU64::new(0);
/// The right to commit, from the control processor; or the stewardship back.
static ARMED: Mutex<Option<Armed<'static>>> = Mutex::new(None);
static DISARMED: Mutex<Option<Steward<'static>>> = Mutex::new(None);

/// The order in force.
#[must_use]
pub fn order() -> Order {
    ORDERS
        .get(ORDER.load(Ordering::Acquire) as usize)
        .copied()
        .unwrap_or(Order::Serve)
}

/// Gives an order.
pub fn give(order: Order) {
    ORDER.store(order as u32, Ordering::Release);
}

/// Whether the service processor spins for the commit of another kernel: only then may that kernel
/// be told to commit.
#[must_use]
pub fn expects() -> bool {
    EXPECTS.load(Ordering::Acquire)
}

/// Whether the service processor waits, halted, for a commit that nobody has announced yet.
#[must_use]
pub fn stands() -> bool {
    STANDS.load(Ordering::Acquire)
}

/// Gives the service processor the right to commit.
pub fn arm(armed: Armed<'static>) {
    *ARMED.lock() = Some(armed);
}

/// Takes the stewardship back after [`Order::Thawed`].
#[must_use]
pub fn disarmed() -> Option<Steward<'static>> {
    DISARMED.lock().take()
}

/// Time stamps of the last freeze, commit and first service on this kernel.
#[must_use]
pub fn times() -> (u64, u64, u64) {
    (
        FROZEN_AT.load(Ordering::Relaxed),
        COMMITTED_AT.load(Ordering::Relaxed),
        SERVED_AT.load(Ordering::Relaxed),
    )
}

/// Whose ledger and whose place in the exchange the service processor uses.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// The ledger.
    pub ledger: &'static Ledger,
    /// The exchange.
    pub exchange: &'static Exchange,
    /// This kernel's partition.
    pub me: PartitionId,
}

static SHARED: Once<Shared> = Once::new();

/// Says where the service processor looks for the commit and states how far it is.
pub fn init(shared: Shared) {
    SHARED.call_once(|| shared);
}

/// How often the workload has changed hands, as it says itself.
#[must_use]
pub fn swaps() -> u64 {
    SWAPS.load(Ordering::Relaxed)
}

/// The service processor's loop, until its role is another.
pub fn run(service: &mut Service<'static>) {
    let Some(&Shared {
        ledger,
        exchange,
        me,
    }) = SHARED.get()
    else {
        return;
    };
    let mine = || LedgerView::new(ledger).is_ok_and(|view| view.steward() == me);
    let own = OwnStatus::new(exchange, me);
    let status = |state| {
        if let Some(own) = &own {
            own.enter(state, clock::tsc());
        }
    };
    while role(apic_id()) == Role::Service {
        match order() {
            now @ (Order::Serve | Order::Thawed) => {
                if service.poll() == 0 {
                    wait_for_interrupt(|| {
                        service.has_work() || order() != now || role(apic_id()) != Role::Service
                    });
                }
            }
            Order::Poll => {
                if service.poll() == 0 {
                    core::hint::spin_loop();
                }
            }
            asked @ (Order::FreezeAndCommit | Order::FreezeAndHold) => {
                freeze_and_commit(service, asked == Order::FreezeAndHold, &status);
            }
            asked @ (Order::Expect | Order::ExpectAndHold) => {
                EXPECTS.store(true, Ordering::Release);
                let heard = clock::wait_until(EXPECT, || mine() || order() != asked);
                EXPECTS.store(false, Ordering::Release);
                if heard && order() == asked {
                    take(service, asked == Order::ExpectAndHold, &status);
                } else if order() == asked {
                    give(Order::Stand);
                }
            }
            Order::Rest => give(Order::Resting),
            Order::Thaw | Order::Commit => give(Order::Thawed),
            Order::Stand => {
                // Whoever sees that it stands may end what is counted: the rest of the way into the
                // wait belongs to the wait.
                mark::<WAIT>();
                STANDS.store(true, Ordering::Release);
                wait_for_interrupt(|| order() != Order::Stand || role(apic_id()) != Role::Service);
                STANDS.store(false, Ordering::Release);
                mark::<WAITED>();
            }
            now @ (Order::Resting | Order::Frozen | Order::Committed | Order::Held) => {
                wait_for_interrupt(|| order() != now || role(apic_id()) != Role::Service);
            }
        }
    }
}

fn freeze_and_commit(service: &mut Service<'static>, hold: bool, status: &impl Fn(u32)) {
    mark::<FREEZE>();
    let mut go = service.drain_and_freeze(DRAIN).is_ok();
    FROZEN_AT.store(clock::tsc(), Ordering::Relaxed);
    status(state::FROZEN);
    if hold && go {
        give(Order::Frozen);
        go = clock::wait_until(HOLD, || order() != Order::Frozen) && order() == Order::Commit;
    }
    let Some(armed) = ARMED.lock().take() else {
        thaw(service, status);
        return;
    };
    let steward = if go {
        match armed.commit() {
            Ok(()) => {
                mark::<COMMITTED>();
                give(Order::Committed);
                return;
            }
            Err((steward, _)) => steward,
        }
    } else {
        armed.disarm()
    };
    *DISARMED.lock() = Some(steward);
    thaw(service, status);
}

fn thaw(service: &mut Service<'static>, status: &impl Fn(u32)) {
    service.start();
    status(state::SERVING);
    give(Order::Thawed);
}

fn take(service: &mut Service<'static>, hold: bool, status: &impl Fn(u32)) {
    mark::<TAKEN>();
    COMMITTED_AT.store(clock::tsc(), Ordering::Relaxed);
    if hold {
        give(Order::Held);
        // The workload is this kernel's now: it serves even where nobody says so.
        clock::wait_until(HOLD, || order() != Order::Held);
    }
    service.workload_mut().count_swap();
    SWAPS.store(service.workload().swaps(), Ordering::Relaxed);
    service.start();
    service.poll();
    mark::<SERVED>();
    SERVED_AT.store(clock::tsc(), Ordering::Relaxed);
    status(state::SERVING);
    give(Order::Serve);
}
