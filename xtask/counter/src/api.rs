//! The part of QEMU's plugin interface that is used here, in version 1 (QEMU 6.0 to 8.1;
//! docs/devel/tcg-plugins in its documentation). The emulator exports the functions itself.

use core::ffi::{c_char, c_int, c_uint, c_void};

/// Names this plugin in calls.
pub(crate) type Id = u64;

/// A block of code that is being translated.
#[repr(C)]
pub(crate) struct Block {
    opaque: [u8; 0],
}

/// An instruction of it.
#[repr(C)]
pub(crate) struct Instruction {
    opaque: [u8; 0],
}

/// The callback reads and writes no registers of the CPU (`QEMU_PLUGIN_CB_NO_REGS`).
pub(crate) const NO_REGISTERS: c_int = 0;
/// Add to a 64-bit number (`QEMU_PLUGIN_INLINE_ADD_U64`).
pub(crate) const ADD: c_int = 0;

pub(crate) type OnTranslate = extern "C" fn(Id, *mut Block);
pub(crate) type OnExecute = extern "C" fn(c_uint, *mut c_void);

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: OnTranslate);
    pub(crate) fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        callback: OnExecute,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: OnExecute,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_inline(
        instruction: *mut Instruction,
        operation: c_int,
        to: *mut c_void,
        number: u64,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
    pub(crate) fn qemu_plugin_insn_size(instruction: *const Instruction) -> usize;
    pub(crate) fn qemu_plugin_outs(text: *const c_char);
}
