//! A plugin for QEMU that counts the instructions each CPU executes between *marks*.
//!
//! A mark is an instruction that does nothing, a long NOP with a displacement that no compiler makes
//! (`xtask/counter/mark`), so marking changes neither the devices nor the time of what is
//! measured. At each mark the plugin writes into the emulator's log, among the trace of the devices,
//! so one file has everything in its order:
//!
//! ```text
//! baton-count CPU WORKED WAITED WAITS
//! baton-mark NUMBER CPU
//! ```
//!
//! There is a count for each CPU that has executed anything: instructions that it executed since the
//! start, those while it waited for something else (between the marks 254 and 255), and how often it
//! began to wait.
//!
//! Between the marks `from` and `to` of the plugin's arguments it also keeps where the instructions
//! were, and writes before each mark on the way, for each CPU and block of code:
//!
//! ```text
//! baton-block CPU ADDRESS INSTRUCTIONS
//! ```
//!
//! All CPUs must run in one thread, as they do under `-icount`: the count is one number that the
//! emulated code adds to, and it is charged to the CPU that ran when the next block begins.

mod api;

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use api::{Block, Id, Instruction};

/// A NOP of seven bytes, `0f 1f 80` and a displacement, whose upper bytes spell `TAB` and whose
/// lowest byte is the mark.
const MARK: [u8; 3] = [0x0f, 0x1f, 0x80];
const SPELT: [u8; 3] = *b"TAB";
/// The marks around a wait for something else.
const WAIT: u8 = 254;
const WAITED: u8 = 255;

/// The version of the interface; QEMU looks for it by this name.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// Instructions that all CPUs have executed. Emulated code adds to it.
static EXECUTED: AtomicU64 = AtomicU64::new(0);

static COUNTER: Mutex<Counter> = Mutex::new(Counter::new());

#[derive(Clone, Copy)]
struct Cpu {
    worked: u64,
    waited: u64,
    waits: u64,
    /// How many waits it is in, one inside the other.
    waiting: u32,
}

struct Counter {
    /// What was charged so far.
    charged: u64,
    /// Whom the next instructions are charged to: the CPU, and its block's address.
    running: (usize, u64),
    cpus: [Cpu; 256],
    /// The marks between which blocks are kept.
    range: Option<(u8, u8)>,
    /// Instructions by CPU and block, while they are kept.
    blocks: Option<BTreeMap<(usize, u64), u64>>,
}

impl Counter {
    const fn new() -> Self {
        const CPU: Cpu = Cpu {
            worked: 0,
            waited: 0,
            waits: 0,
            waiting: 0,
        };
        Self {
            charged: 0,
            running: (0, 0),
            cpus: [CPU; 256],
            range: None,
            blocks: None,
        }
    }

    /// Charges what was executed since the last call to whoever ran.
    fn charge(&mut self) {
        let executed = EXECUTED.load(Ordering::Relaxed);
        let more = executed.wrapping_sub(self.charged);
        self.charged = executed;
        let Some(cpu) = self.cpus.get_mut(self.running.0) else {
            return;
        };
        if cpu.waiting > 0 {
            cpu.waited += more;
            return;
        }
        cpu.worked += more;
        if let Some(blocks) = &mut self.blocks {
            *blocks.entry(self.running).or_default() += more;
        }
    }

    /// A CPU is at a mark; says what to log.
    fn mark(&mut self, cpu: usize, number: u8) -> String {
        self.charge();
        let mut said = String::new();
        let Some(at) = self.cpus.get_mut(cpu) else {
            return said;
        };
        match number {
            WAIT => {
                at.waits += u64::from(at.waiting == 0);
                at.waiting += 1;
                return said;
            }
            WAITED => {
                at.waiting = at.waiting.saturating_sub(1);
                return said;
            }
            _ => {}
        }
        for ((cpu, address), instructions) in self.blocks.iter().flatten() {
            // A String takes everything.
            let _ = writeln!(said, "baton-block {cpu} {address:#x} {instructions}");
        }
        if let Some(blocks) = &mut self.blocks {
            blocks.clear();
        }
        for (cpu, count) in self.cpus.iter().enumerate() {
            if count.worked + count.waited > 0 {
                let Cpu {
                    worked,
                    waited,
                    waits,
                    ..
                } = count;
                let _ = writeln!(said, "baton-count {cpu} {worked} {waited} {waits}");
            }
        }
        let _ = writeln!(said, "baton-mark {number} {cpu}");
        if let Some((from, to)) = self.range {
            if number == from {
                self.blocks = Some(BTreeMap::new());
            } else if number == to {
                self.blocks = None;
            }
        }
        said
    }
}

/// The counter; there is one thread, and a panic in it ends the emulator.
fn counter() -> std::sync::MutexGuard<'static, Counter> {
    match COUNTER.lock() {
        Ok(counter) => counter,
        Err(poisoned) => poisoned.into_inner(),
    }
}

extern "C" fn execute(cpu: c_uint, address: *mut c_void) {
    let mut counter = counter();
    counter.charge();
    counter.running = (cpu as usize, address.addr() as u64);
}

extern "C" fn mark(cpu: c_uint, number: *mut c_void) {
    let said = counter().mark(cpu as usize, number.addr() as u8);
    let Ok(said) = CString::new(said) else { return };
    if said.is_empty() {
        return;
    }
    // SAFETY: the text ends with a zero and lives through the call, which copies it.
    unsafe { api::qemu_plugin_outs(said.as_ptr()) };
}

/// The number of a mark, where an instruction is one.
fn mark_number(instruction: *const Instruction) -> Option<u8> {
    // SAFETY: the instruction is one of the block that is being translated.
    let size = unsafe { api::qemu_plugin_insn_size(instruction) };
    // SAFETY: as above.
    let bytes = unsafe { api::qemu_plugin_insn_data(instruction) };
    // SAFETY: the emulator keeps this many bytes there while it translates.
    let bytes = unsafe { core::slice::from_raw_parts(bytes.cast::<u8>(), size) };
    let (opcode, displacement) = bytes.split_first_chunk::<3>()?;
    let (&number, spelt) = displacement.split_first()?;
    (*opcode == MARK && spelt == SPELT).then_some(number)
}

extern "C" fn translate(_: Id, block: *mut Block) {
    // SAFETY: the emulator gives a block that is being translated, for the time of this call.
    let address = unsafe { api::qemu_plugin_tb_vaddr(block) };
    let address = core::ptr::without_provenance_mut(address as usize);
    // SAFETY: as above; the callback takes the address as a number.
    unsafe {
        api::qemu_plugin_register_vcpu_tb_exec_cb(block, execute, api::NO_REGISTERS, address);
    };
    // SAFETY: as above.
    let instructions = unsafe { api::qemu_plugin_tb_n_insns(block) };
    for index in 0..instructions {
        // SAFETY: the index is below the number of instructions.
        let instruction = unsafe { api::qemu_plugin_tb_get_insn(block, index) };
        let to: *mut c_void = EXECUTED.as_ptr().cast();
        // SAFETY: the number lives as long as the process, and only the one thread of all CPUs
        // adds to it.
        unsafe {
            api::qemu_plugin_register_vcpu_insn_exec_inline(instruction, api::ADD, to, 1);
        };
        if let Some(number) = mark_number(instruction) {
            let number = core::ptr::without_provenance_mut(number.into());
            // SAFETY: as above; the callback takes the mark as a number.
            unsafe {
                api::qemu_plugin_register_vcpu_insn_exec_cb(
                    instruction,
                    mark,
                    api::NO_REGISTERS,
                    number,
                );
            };
        }
    }
}

/// QEMU calls this once, with the arguments of its command line.
///
/// # Safety
/// `arguments` are `count` strings, as the interface promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let mut range = (None, None);
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: below the count, by the caller's promise.
        let place = unsafe { arguments.add(index) };
        // SAFETY: as above.
        let argument = unsafe { place.read() };
        // SAFETY: as above: it is a string.
        let argument = unsafe { CStr::from_ptr(argument) };
        let (name, value) = match argument.to_str().ok().and_then(|it| it.split_once('=')) {
            Some((name, value)) => (name, value.parse().ok()),
            None => return 1,
        };
        match name {
            "from" => range.0 = value,
            "to" => range.1 = value,
            _ => return 1,
        }
    }
    counter().range = range.0.zip(range.1);
    // SAFETY: the id is this plugin's, and the callback lives as long as the process.
    unsafe { api::qemu_plugin_register_vcpu_tb_trans_cb(id, translate) };
    0
}
