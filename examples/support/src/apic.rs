//! Interrupt controllers: the local APIC in xAPIC mode, and silence from the 8259s and IO APICs.

use core::sync::atomic::{AtomicU64, Ordering};

use handoff_abi::{ApicId, PhysAddr};
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

use crate::clock;
use crate::interrupts::SPURIOUS;
use crate::mmio::Mmio;

/// Register offsets (Intel SDM volume 3, table 12-1).
const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const END_OF_INTERRUPT: usize = 0xb0;
const LOGICAL_DESTINATION: usize = 0xd0;
const DESTINATION_FORMAT: usize = 0xe0;
const SPURIOUS_VECTOR: usize = 0xf0;
const ERROR_STATUS: usize = 0x280;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const TIMER: usize = 0x320;
const THERMAL: usize = 0x330;
const PERFORMANCE: usize = 0x340;
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
const ERROR: usize = 0x370;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DELIVERY_PENDING: u32 = 1 << 12;
const ASSERT: u32 = 1 << 14;
const MODE_NMI: u32 = 4 << 8;
/// Divide by 16.
const DIVIDE: u32 = 3;

/// IA32_APIC_BASE.
const APIC_BASE: u32 = 0x1b;
/// How long the APIC may take to accept an interrupt, in microseconds.
const ACCEPT: u64 = 1000;

static BASE: AtomicU64 = AtomicU64::new(0);
/// Ticks a second of the timer after the divider; 0 before it was measured.
static TIMER_HERTZ: AtomicU64 = AtomicU64::new(0);

/// Says where the local APICs' page is; the same for all processors.
///
/// # Safety
/// The page is in the window, uncached, for good.
pub unsafe fn init(base: PhysAddr) {
    BASE.store(base.0, Ordering::Relaxed);
}

/// The local APIC's address, from IA32_APIC_BASE of the processor that calls this.
#[must_use]
pub fn base() -> PhysAddr {
    // SAFETY: every x86-64 processor has the register.
    let value = unsafe { Msr::new(APIC_BASE).read() };
    PhysAddr(value & 0x000f_ffff_ffff_f000)
}

fn registers() -> Option<Mmio> {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return None;
    }
    // SAFETY: `init` was promised that the page is mapped.
    Some(unsafe { Mmio::new(PhysAddr(base), 4096) })
}

/// Enables the local APIC of the processor that calls this, all its local vectors masked, its
/// logical destination none.
///
/// Returns its id; `None` before [`init`].
pub fn enable_this() -> Option<ApicId> {
    let apic = registers()?;
    for vector in [TIMER, THERMAL, PERFORMANCE, LINT0, LINT1, ERROR] {
        apic.write32(vector, MASKED | 0xfe);
    }
    apic.write32(DESTINATION_FORMAT, u32::MAX);
    apic.write32(LOGICAL_DESTINATION, 0);
    apic.write32(TASK_PRIORITY, 0);
    apic.write32(SPURIOUS_VECTOR, 1 << 8 | u32::from(SPURIOUS));
    apic.write32(ERROR_STATUS, 0);
    Some(ApicId(apic.read32(ID) >> 24))
}

/// Stops the timer of the processor that calls this, and masks its local vectors.
pub fn quiet_this() {
    if let Some(apic) = registers() {
        apic.write32(TIMER_INITIAL, 0);
        for vector in [TIMER, THERMAL, PERFORMANCE, LINT0, LINT1, ERROR] {
            apic.write32(vector, MASKED | 0xfe);
        }
    }
}

/// Ends the interrupt in service on the processor that calls this.
pub fn acknowledge() {
    if let Some(apic) = registers() {
        apic.write32(END_OF_INTERRUPT, 0);
    }
}

/// Sends `vector` to one processor. Says whether the APIC accepted it in time.
pub fn send(to: ApicId, vector: u8) -> bool {
    command(to, ASSERT | u32::from(vector))
}

/// Sends an NMI to one processor. Says whether the APIC accepted it in time.
pub fn send_nmi(to: ApicId) -> bool {
    command(to, ASSERT | MODE_NMI)
}

fn command(to: ApicId, low: u32) -> bool {
    // 8 bits of destination; 255 would be everybody.
    let (Some(apic), Some(id)) = (
        registers(),
        u8::try_from(to.0).ok().filter(|&id| id != u8::MAX),
    ) else {
        return false;
    };
    let idle = || clock::wait_until(ACCEPT, || apic.read32(COMMAND_LOW) & DELIVERY_PENDING == 0);
    x86_64::instructions::interrupts::without_interrupts(|| {
        if !idle() {
            return false;
        }
        apic.write32(COMMAND_HIGH, u32::from(id) << 24);
        apic.write32(COMMAND_LOW, low);
        idle()
    })
}

/// Measures the timer of the processor that calls this against [`clock`], which has to run, and
/// remembers the rate for all. Says it in ticks a second.
pub fn calibrate_timer() -> Option<u64> {
    const MICROSECONDS: u64 = 1_000;
    let apic = registers()?;
    apic.write32(TIMER, MASKED | 0xfe);
    apic.write32(TIMER_DIVIDE, DIVIDE);
    apic.write32(TIMER_INITIAL, u32::MAX);
    let begin = clock::tsc();
    clock::wait_until(MICROSECONDS, || false);
    let left = apic.read32(TIMER_CURRENT);
    let passed = clock::nanoseconds(clock::tsc().wrapping_sub(begin));
    apic.write32(TIMER_INITIAL, 0);
    let ticks = u128::from(u32::MAX - left);
    let hertz = u64::try_from(ticks * 1_000_000_000 / u128::from(passed.max(1))).ok()?;
    TIMER_HERTZ.store(hertz, Ordering::Relaxed);
    (hertz != 0).then_some(hertz)
}

/// Makes the timer of the processor that calls this raise `vector` every `microseconds`; 0 stops
/// it. Says whether it could: the timer has to be measured first.
pub fn start_tick(vector: u8, microseconds: u64) -> bool {
    let hertz = TIMER_HERTZ.load(Ordering::Relaxed);
    let Some(apic) = registers() else {
        return false;
    };
    if microseconds == 0 {
        apic.write32(TIMER_INITIAL, 0);
        apic.write32(TIMER, MASKED | 0xfe);
        return true;
    }
    let count = u128::from(hertz) * u128::from(microseconds) / 1_000_000;
    let Some(count) = u32::try_from(count).ok().filter(|&count| count != 0) else {
        return false;
    };
    apic.write32(TIMER_DIVIDE, DIVIDE);
    apic.write32(TIMER, PERIODIC | u32::from(vector));
    apic.write32(TIMER_INITIAL, count);
    true
}

/// Masks every line of both 8259s.
///
/// # Safety
/// The machine has them, and they are this kernel's.
pub unsafe fn mask_8259() {
    for port in [0xa1, 0x21] {
        // SAFETY: the port is an 8259's mask register, whose only effect is to mask.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// Masks every line of the IO APIC at `base`.
///
/// # Safety
/// It is one, it is in the window for now, uncached, and it is this kernel's.
pub unsafe fn mask_io_apic(base: PhysAddr) {
    // SAFETY: the caller's promise. IOREGSEL and IOWIN are at 0 and 0x10.
    let io = unsafe { Mmio::new(base, 0x20) };
    io.write32(0, 1);
    let lines = (io.read32(0x10) >> 16 & 0xff) + 1;
    for line in 0..lines {
        io.write32(0, 0x10 + 2 * line);
        let low = io.read32(0x10);
        io.write32(0x10, low | MASKED);
    }
}
