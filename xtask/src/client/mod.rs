//! The load: a client that writes and reads the key-value store for as long as it is told to.
//!
//! Nothing is ever sent twice. A request that is not answered in time is given up and reported, so
//! that a lost packet shows as what it is.

pub(crate) mod arrivals;
mod book;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use arrivals::Arrival;
use book::Book;
pub(crate) use book::Totals;
use wire::{Operation, Random, parse_reply, request, value_of};

/// How the load is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadOptions {
    /// Decides which keys are written and read in which order.
    pub(crate) seed: u64,
    /// How many keys.
    pub(crate) keys: u32,
    /// How many requests may be under way at once.
    pub(crate) window: usize,
    /// The shortest time between two requests.
    pub(crate) interval: Duration,
    /// After which time a request is given up.
    pub(crate) patience: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            keys: 256,
            window: 8,
            interval: Duration::from_micros(500),
            patience: Duration::from_secs(5),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct LoadReport {
    /// Sums over the whole load and the final reading.
    pub(crate) totals: Totals,
    /// Acknowledged writes that were gone at some time, or at the end.
    pub(crate) lost_writes: u64,
    /// Writes that were applied more often than they were sent.
    pub(crate) duplicated_writes: u64,
    /// Keys read again at the end.
    pub(crate) read_back: u64,
    /// Keys among them that were not answered: nothing is known of their last writes.
    pub(crate) read_back_unanswered: u64,
    /// How many writes the store says it has applied, in the last answer.
    pub(crate) applied: u64,
    /// Numbers of all requests that were sent.
    pub(crate) sequences: BTreeSet<u64>,
    /// All answers.
    pub(crate) arrivals: Vec<Arrival>,
    /// The first few things that were wrong, in words.
    pub(crate) complaints: Vec<String>,
}

/// The books at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshot {
    /// Sums.
    pub(crate) totals: Totals,
    /// Acknowledged writes found missing so far.
    pub(crate) lost_writes: u64,
    /// Writes found applied too often so far.
    pub(crate) duplicated_writes: u64,
    /// The number of the last request.
    pub(crate) last_sequence: u64,
}

/// A load under way.
pub(crate) struct Load {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<Result<()>>>,
    receiver: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    socket: UdpSocket,
    options: LoadOptions,
    clock: Clock,
    /// Send no more: the final reading is next.
    draining: AtomicBool,
    /// Stop receiving too.
    ended: AtomicBool,
    state: Mutex<State>,
}

struct State {
    book: Book,
    arrivals: Vec<Arrival>,
    sequences: BTreeSet<u64>,
    applied: u64,
    read_back: u64,
    read_back_unanswered: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time that never goes back, on the scale that traces and consoles use.
#[derive(Clone, Copy)]
struct Clock {
    epoch: u64,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            epoch: u64::try_from(epoch.as_nanos()).unwrap_or(u64::MAX),
            start: Instant::now(),
        }
    }

    fn now(&self) -> u64 {
        self.epoch + u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Load {
    /// Starts the load on `service`.
    pub(crate) fn start(service: SocketAddrV4, options: LoadOptions) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no UDP socket")?;
        socket.connect(service)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let shared = Arc::new(Shared {
            socket,
            options,
            clock: Clock::new(),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                book: Book::new(options.keys),
                arrivals: Vec::new(),
                sequences: BTreeSet::new(),
                applied: 0,
                read_back: 0,
                read_back_unanswered: 0,
            }),
        });
        let for_sender = Arc::clone(&shared);
        let for_receiver = Arc::clone(&shared);
        let sender = thread::Builder::new()
            .name("load sender".into())
            .spawn(move || send_all(&for_sender))?;
        let receiver = thread::Builder::new()
            .name("load receiver".into())
            .spawn(move || receive_all(&for_receiver))?;
        Ok(Self {
            shared,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// The sums so far.
    pub(crate) fn totals(&self) -> Totals {
        self.shared.lock().book.totals
    }

    /// The books as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.shared.lock();
        Snapshot {
            totals: state.book.totals,
            lost_writes: state.book.lost_writes(),
            duplicated_writes: state.book.duplicated_writes(),
            last_sequence: state.sequences.last().copied().unwrap_or(0),
        }
    }

    /// Waits until `count` more requests have been answered.
    pub(crate) fn wait_answers(&self, count: u64, deadline: Duration) -> Result<()> {
        let goal = self.totals().answered + count;
        let end = Instant::now() + deadline;
        while self.totals().answered < goal {
            if Instant::now() >= end {
                let so_far = self.totals();
                bail!(
                    "the service answered {} requests of {} and then none for {:.1} s",
                    so_far.answered,
                    so_far.sent,
                    deadline.as_secs_f64()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Sends nothing more, reads every key that was written once again, and says what came of it all.
    pub(crate) fn finish(mut self) -> Result<LoadReport> {
        self.shared.draining.store(true, Ordering::Relaxed);
        let sent = join(self.sender.take());
        self.shared.ended.store(true, Ordering::Relaxed);
        let received = join(self.receiver.take());
        sent.and(received)?;
        let state = self.shared.lock();
        Ok(LoadReport {
            totals: state.book.totals,
            lost_writes: state.book.lost_writes(),
            duplicated_writes: state.book.duplicated_writes(),
            read_back: state.read_back,
            read_back_unanswered: state.read_back_unanswered,
            applied: state.applied,
            sequences: state.sequences.clone(),
            arrivals: state.arrivals.clone(),
            complaints: state.book.complaints.clone(),
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

fn join(thread: Option<JoinHandle<Result<()>>>) -> Result<()> {
    match thread.map(JoinHandle::join) {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(_)) => bail!("a thread of the load panicked"),
    }
}

fn send_all(shared: &Shared) -> Result<()> {
    let options = shared.options;
    let mut random = Random::new(options.seed);
    let mut due = Instant::now();
    while !shared.draining.load(Ordering::Relaxed) {
        pause_until(due);
        // A late start is not made up for: the load must not come in bursts.
        due = due.max(Instant::now()) + options.interval;
        let operation = if random.below(2) == 0 {
            Operation::Write
        } else {
            Operation::Read
        };
        let key = random.below(u64::from(options.keys)) as u32;
        send(shared, operation, key)?;
    }
    drain(shared);
    read_back(shared)
}

/// Reads every key that was ever written. Nothing is sent twice here either.
fn read_back(shared: &Shared) -> Result<()> {
    let keys = shared.lock().book.written_keys();
    let before = shared.lock().book.totals;
    for &key in &keys {
        if shared.ended.load(Ordering::Relaxed) {
            break;
        }
        pause_until(Instant::now() + shared.options.interval);
        while !send(shared, Operation::Read, key)? {
            if shared.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            pause_until(Instant::now() + Duration::from_micros(200));
        }
    }
    drain(shared);
    let mut state = shared.lock();
    state.read_back = keys.len() as u64;
    state.read_back_unanswered = state.book.totals.unanswered - before.unanswered;
    Ok(())
}

/// Sends a request if the window and the key allow; says whether it did.
fn send(shared: &Shared, operation: Operation, key: u32) -> Result<bool> {
    let sequence = {
        let mut state = shared.lock();
        let now = shared.clock.now();
        let patience = u64::try_from(shared.options.patience.as_nanos()).unwrap_or(u64::MAX);
        state.book.give_up(now.saturating_sub(patience));
        if state.book.outstanding() >= shared.options.window || state.book.is_busy(key) {
            return Ok(false);
        }
        let sequence = state.book.issue(operation, key, now);
        state.sequences.insert(sequence);
        sequence
    };
    let value = match operation {
        Operation::Write => value_of(key, sequence),
        Operation::Read => Vec::new(),
    };
    match shared
        .socket
        .send(&request(operation, sequence, key, &value))
    {
        Ok(_) => Ok(true),
        // The emulator is gone, or not there yet: the request stays unanswered, as it is.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error).context("cannot send to the service"),
    }
}

/// Waits until nothing is under way.
fn drain(shared: &Shared) {
    let end = Instant::now() + shared.options.patience;
    while shared.lock().book.outstanding() > 0
        && Instant::now() < end
        && !shared.ended.load(Ordering::Relaxed)
    {
        thread::sleep(Duration::from_millis(1));
    }
    shared.lock().book.give_up(u64::MAX);
}

fn receive_all(shared: &Shared) -> Result<()> {
    let mut buffer = [0; 2048];
    while !shared.ended.load(Ordering::Relaxed) {
        let length = match shared.socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock
                        | ErrorKind::TimedOut
                        | ErrorKind::ConnectionRefused
                        | ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error).context("cannot receive from the service"),
        };
        let at = shared.clock.now();
        let mut state = shared.lock();
        match parse_reply(&buffer[..length]) {
            Ok(reply) => {
                state.arrivals.push(Arrival {
                    at,
                    kernel: reply.kernel,
                    swap: reply.swap,
                });
                state.applied = state.applied.max(reply.applied);
                state.book.judge(&reply);
            }
            Err(what) => state.book.strange(what),
        }
    }
    Ok(())
}

fn pause_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

#[cfg(test)]
mod tests;
