//! The processors of one kernel: how each gets its stack and tables, and what it is to do.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use handoff_abi::ApicId;
use partition_core::apic::XApic;
use partition_core::cpu::StartState;
use partition_core::park::{self, ParkArea};
use partition_core::plan::CpuIdentity;
use spin::Once;
use x86_64::registers::model_specific::Msr;

use crate::cpu::{PerCpu, init_this, wait_for_interrupt};
use crate::mark::{WAITED, mark};
use crate::{apic, clock, mmio};

/// The most processors a kernel uses; APIC ids are below it on the demo machine.
pub const MAX: usize = 16;
/// Wakes a processor that waits for something to do.
pub const WAKE_VECTOR: u8 = 0xf0;
const STACK: usize = 256 * 1024;
/// IA32_BIOS_SIGN_ID (Intel SDM volume 3, section 11.11.7).
const MICROCODE: u32 = 0x8b;
/// How long a processor may take to come up, in microseconds.
const ANSWER: u64 = 2_000_000;

/// What a processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// It is not this kernel's, or has not come up.
    Absent,
    /// It waits, halted.
    Idle,
    /// It follows the console, the mailboxes and the protocol.
    Control,
    /// It serves the workload, or waits to.
    Service,
    /// It computes a piece of work and is idle again.
    Work,
    /// It goes into the park area.
    Park,
}

const ROLES: [Role; 6] = [
    Role::Absent,
    Role::Idle,
    Role::Control,
    Role::Service,
    Role::Work,
    Role::Park,
];

#[repr(C, align(4096))]
struct Area {
    stack: UnsafeCell<[u8; STACK]>,
    per_cpu: UnsafeCell<PerCpu>,
    role: AtomicU32,
    result: AtomicU64,
    identity: Once<Identity>,
}

/// What a processor said of itself when it came up.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// CPUID.
    pub cpuid: CpuIdentity,
    /// The microcode update's revision.
    pub microcode: u32,
}

// SAFETY: the stack and the tables are touched by the one processor whose index this is, and by
// whoever starts it only while its role is Absent.
unsafe impl Sync for Area {}

static AREAS: [Area; MAX] = [const {
    Area {
        stack: UnsafeCell::new([0; STACK]),
        per_cpu: UnsafeCell::new(PerCpu::new()),
        role: AtomicU32::new(Role::Absent as u32),
        result: AtomicU64::new(0),
        identity: Once::new(),
    }
}; MAX];

static PARK: Once<ParkArea<'static>> = Once::new();

/// Says where processors are parked.
pub fn init(park: ParkArea<'static>) {
    PARK.call_once(|| park);
}

fn area(cpu: ApicId) -> Option<&'static Area> {
    AREAS.get(usize::try_from(cpu.0).ok()?)
}

/// The role of a processor.
#[must_use]
pub fn role(cpu: ApicId) -> Role {
    area(cpu)
        .and_then(|area| ROLES.get(area.role.load(Ordering::Acquire) as usize))
        .copied()
        .unwrap_or(Role::Absent)
}

/// Every processor that is this kernel's and has come up.
pub fn present() -> impl Iterator<Item = ApicId> {
    (0..MAX as u32)
        .map(ApicId)
        .filter(|&cpu| role(cpu) != Role::Absent)
}

/// What a processor said of itself; `None` for one that never came up in this kernel.
#[must_use]
pub fn identity(cpu: ApicId) -> Option<Identity> {
    area(cpu)?.identity.get().copied()
}

/// Gives a processor that has come up another role, and wakes it.
pub fn assign(cpu: ApicId, role: Role) {
    if let Some(area) = area(cpu) {
        area.role.store(role as u32, Ordering::Release);
        wake(cpu);
    }
}

/// Wakes a processor of this kernel, to look again at what it waits for.
pub fn wake(cpu: ApicId) {
    if cpu != crate::cpu::apic_id() {
        apic::send(cpu, WAKE_VECTOR);
    }
}

/// The state in which a processor of this kernel is to be started or claimed; `page_table` is the
/// kernel's own. `None` for a processor that there is no room for, or that is up already.
#[must_use]
pub fn start_state(cpu: ApicId, page_table: u64) -> Option<StartState> {
    let area = area(cpu).filter(|_| role(cpu) == Role::Absent)?;
    let stack = area.stack.get().addr() as u64 + STACK as u64;
    Some(StartState {
        page_table,
        entry: (start as extern "C" fn(u64) -> !) as usize as u64,
        // As after the call that this entry never had.
        stack: stack - 8,
        argument: cpu.0.into(),
    })
}

/// Waits until a processor that was started or claimed has come up.
#[must_use]
pub fn has_come(cpu: ApicId) -> bool {
    clock::wait_for_other(ANSWER, || role(cpu) != Role::Absent)
}

extern "C" fn start(argument: u64) -> ! {
    // It may have been halted, waiting, when it was taken for this.
    mark::<WAITED>();
    let cpu = ApicId(argument as u32);
    let Some(area) = area(cpu) else {
        crate::cpu::halt_forever()
    };
    // SAFETY: only this processor uses its tables, from here on, and it comes here once until its
    // role is Absent again, when it has left for the park area.
    let per_cpu = unsafe { &mut *area.per_cpu.get() };
    // SAFETY: the processor runs on its own stack in the kernel's page tables, with interrupts
    // disabled, and uses no other tables from now on.
    unsafe { init_this(per_cpu) };
    apic::enable_this();
    area.identity.call_once(identify);
    area.role.store(Role::Idle as u32, Ordering::Release);
    run(cpu)
}

/// The first processor takes its place: from here on it does what its role says.
pub fn run_first(cpu: ApicId, role: Role) -> ! {
    if let Some(area) = area(cpu) {
        area.identity.call_once(identify);
        area.role.store(role as u32, Ordering::Release);
    }
    run(cpu)
}

/// Asks the processor that calls this.
fn identify() -> Identity {
    let cpuid = CpuIdentity::read(|leaf, sub| {
        let answer = core::arch::x86_64::__cpuid_count(leaf, sub);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    });
    let mut register = Msr::new(MICROCODE);
    // The revision is there after a write of 0 and CPUID leaf 1.
    // SAFETY: every processor with 64-bit mode has the register; a write of 0 asks for the revision
    // and installs nothing.
    unsafe { register.write(0) };
    let _ = core::arch::x86_64::__cpuid(1);
    // SAFETY: as above; to read it changes nothing.
    let revision = unsafe { register.read() };
    Identity {
        cpuid,
        microcode: cpuid.microcode(revision),
    }
}

fn run(cpu: ApicId) -> ! {
    loop {
        match role(cpu) {
            Role::Control => super::control::run(),
            Role::Service => super::work::serve(),
            Role::Work => work(cpu),
            Role::Park => park_this(cpu),
            Role::Idle | Role::Absent => wait_for_interrupt(|| role(cpu) != Role::Idle),
        }
    }
}

/// The answer to a piece of work that depends on the processor and on every step.
fn answer(cpu: ApicId) -> u64 {
    (0..10_000).fold(u64::from(cpu.0) + 1, |value: u64, _| {
        let value = value ^ value << 13;
        let value = value ^ value >> 7;
        value ^ value << 17
    })
}

fn work(cpu: ApicId) {
    let result = answer(cpu);
    if let Some(area) = area(cpu) {
        area.result.store(result, Ordering::Relaxed);
        area.role.store(Role::Idle as u32, Ordering::Release);
    }
}

/// Has an idle processor do a piece of work; whether it did it, and right.
#[must_use]
pub fn works(cpu: ApicId) -> bool {
    let Some(area) = area(cpu) else {
        return false;
    };
    area.result.store(0, Ordering::Relaxed);
    assign(cpu, Role::Work);
    clock::wait_for_other(ANSWER, || role(cpu) != Role::Work)
        && area.result.load(Ordering::Relaxed) == answer(cpu)
}

fn park_this(cpu: ApicId) -> ! {
    let state = PARK.get().map(|park| park.expect(cpu));
    x86_64::instructions::interrupts::disable();
    apic::quiet_this();
    if let Some(area) = area(cpu) {
        area.role.store(Role::Absent as u32, Ordering::Release);
    }
    let Some(Ok(state)) = state else {
        // There is no slot: the processor stays here, halted. It is not proved stopped, and the
        // steward keeps what it can reach.
        crate::cpu::halt_forever()
    };
    // SAFETY: this is the processor that was expected; interrupts are off, the LVTs are masked, the
    // area is mapped at its physical address, and nothing runs here afterwards.
    unsafe { park::enter(&state) }
}

/// The local APIC of the processor that calls this, to send with.
#[must_use]
pub fn ipi() -> XApic {
    // SAFETY: the window maps the local APIC uncached; nothing here sends from an interrupt handler.
    unsafe { XApic::new(mmio::pointer(apic::base())) }
}
