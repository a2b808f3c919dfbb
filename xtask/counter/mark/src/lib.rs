//! Marks: instructions that do nothing, and that the plugin in the emulator (`xtask/counter`) counts
//! between.
//!
//! A mark is a NOP with a displacement that no compiler makes (`0f 1f /0`, Intel SDM volume 2B), so
//! the kernels that are measured are the kernels that run: one instruction for each mark, no branch,
//! no device and no memory.
#![no_std]

use core::arch::asm;

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
