//! Time from the time stamp counter, and bounds on every wait.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::PortReadOnly;

use crate::mark::{WAIT, WAITED, mark};

/// Ticks a second of the ACPI power management timer (ACPI 6.5, section 4.8.3.3).
const PM_TIMER_HERTZ: u64 = 3_579_545;
/// How long the calibration measures, in ticks of that timer: about 5 ms, which one tick more or
/// less makes wrong by 56 parts in a million.
const PM_TIMER_TICKS: u32 = 17_898;

static HERTZ: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the counter, and CR4.TSD is never set here.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Says how many ticks a second the time stamp counter makes.
pub fn set_hertz(hertz: u64) {
    HERTZ.store(hertz, Ordering::Relaxed);
}

/// Ticks a second of the time stamp counter; 0 before anybody said it.
#[must_use]
pub fn hertz() -> u64 {
    HERTZ.load(Ordering::Relaxed)
}

/// Measures the time stamp counter against the ACPI power management timer at `port`; `None` where
/// that timer does not move.
///
/// # Safety
/// `port` is the FADT's PM_TMR_BLK.
#[must_use]
pub unsafe fn calibrate(port: u16) -> Option<u64> {
    let mut timer = PortReadOnly::<u32>::new(port);
    let mut now = || {
        // SAFETY: the port is the timer's, and reading it has no side effect. 24 bits are always
        // implemented.
        unsafe { timer.read() & 0xff_ffff }
    };
    // Begin at an edge, so that the start is exact.
    let first = now();
    let mut start = first;
    for _ in 0..1_000_000 {
        start = now();
        if start != first {
            break;
        }
    }
    let begin = tsc();
    for _ in 0..100_000_000_u64 {
        // Reading the timer is slow on real machines and slower on emulated ones; nobody else is
        // waited for, so there is no PAUSE either.
        for instant in 0..200_u32 {
            core::hint::black_box(instant);
        }
        let passed = now().wrapping_sub(start) & 0xff_ffff;
        if passed >= PM_TIMER_TICKS {
            let ticks = u128::from(tsc().wrapping_sub(begin));
            let hertz = ticks * u128::from(PM_TIMER_HERTZ) / u128::from(passed);
            return u64::try_from(hertz).ok().filter(|&hertz| hertz != 0);
        }
    }
    None
}

/// Nanoseconds that `ticks` of the time stamp counter take; 0 before [`set_hertz`].
#[must_use]
pub fn nanoseconds(ticks: u64) -> u64 {
    match hertz() {
        0 => 0,
        hertz => (u128::from(ticks) * 1_000_000_000 / u128::from(hertz)) as u64,
    }
}

/// Nanoseconds since the time stamp counter was 0, which all kernels of one power-on agree on.
#[must_use]
pub fn now() -> u64 {
    nanoseconds(tsc())
}

/// The end of a period.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadline {
    start: u64,
    ticks: u64,
}

impl Deadline {
    /// `microseconds` from now.
    ///
    /// Before [`set_hertz`] a microsecond counts as 10,000 ticks: too long, but finite.
    #[must_use]
    pub fn after(microseconds: u64) -> Self {
        let ticks = match hertz() {
            0 => microseconds.saturating_mul(10_000),
            hertz => (u128::from(microseconds) * u128::from(hertz) / 1_000_000) as u64,
        };
        Self {
            start: tsc(),
            ticks,
        }
    }

    /// Whether it is over. Executes a PAUSE, since whoever asks is waiting.
    #[must_use]
    pub fn expired(&self) -> bool {
        core::hint::spin_loop();
        tsc().wrapping_sub(self.start) >= self.ticks
    }
}

/// Waits until another processor or a device that works by itself has `done` it, or for
/// `microseconds`; says whether it was done.
///
/// As [`wait_until`], but always counted as one wait, even where the other was quick: how quick depends
/// on who runs when, and what is counted must not.
pub fn wait_for_other(microseconds: u64, done: impl FnMut() -> bool) -> bool {
    mark::<WAIT>();
    let done = wait_until(microseconds, done);
    mark::<WAITED>();
    done
}

/// Waits until `done`, or for `microseconds`; says whether it was done.
pub fn wait_until(microseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Deadline::after(microseconds);
    if done() {
        return true;
    }
    mark::<WAIT>();
    let done = loop {
        if deadline.expired() {
            break done();
        }
        if done() {
            break true;
        }
    };
    mark::<WAITED>();
    done
}
