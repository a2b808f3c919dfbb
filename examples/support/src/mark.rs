//! Marks for `cargo xtask bench`: instructions that do nothing, and that the plugin in the emulator
//! counts between (`xtask/counter`).
//!
//! A mark is a NOP with a displacement that no compiler makes (`0f 1f /0`, Intel SDM volume 2B), so
//! the kernels that are measured are the kernels that run: one instruction for each mark, no branch,
//! no device and no memory.

use core::arch::asm;

/// The service processor begins to freeze.
pub const FREEZE: i32 = 1;
/// The commit is stored.
pub const COMMITTED: i32 = 2;
/// The next kernel's service processor has seen the commit.
pub const TAKEN: i32 = 3;
/// The first answer's doorbell has been rung.
pub const SERVED: i32 = 4;
/// Devices and interrupts are about to be fenced for a successor, and are.
pub const FENCE: i32 = 5;
/// See [`FENCE`].
pub const FENCED: i32 = 6;
/// A successor's first processor is about to be started.
pub const LAUNCH: i32 = 7;
/// The successor is ready.
pub const READY: i32 = 8;
/// What another kernel had is about to be taken over, and is.
pub const RECLAIM: i32 = 9;
/// See [`RECLAIM`].
pub const RECLAIMED: i32 = 10;
/// From here on the processor waits for something that is not ready. A wait may be inside another.
pub const WAIT: i32 = 254;
/// From here on it does not, as far as the innermost wait goes.
pub const WAITED: i32 = 255;

/// `TAB` in the upper three bytes, little-endian.
const SPELT: i32 = i32::from_le_bytes([0, b'T', b'A', b'B']);

/// Leaves the mark `WHICH`, below 256. Nothing is moved across it by the compiler.
#[inline(always)]
pub fn mark<const WHICH: i32>() {
    // SAFETY: a NOP does not access its operand, and changes neither registers nor flags.
    unsafe {
        asm!(
            "nop dword ptr [rax + {mark}]",
            mark = const SPELT + WHICH,
            options(nostack, preserves_flags)
        );
    }
}
