//! What a device may do to memory.

use bitflags::bitflags;

/// The accesses that a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Access(u8);

bitflags! {
    impl Access: u8 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

impl Access {
    /// Read and write.
    pub const READ_WRITE: Self = Self::all();
}

/// The addresses that are interrupts rather than memory when a device writes to them: 1 MiB from
/// `0xFEE0_0000` (Intel SDM volume 3, section 12.11.1). No mapping may touch them, on either
/// side: neither vendor translates them (VT-d section 3.14; AMD-Vi section 2.1.4.2).
pub const INTERRUPT_RANGE: handoff_abi::PhysRange = handoff_abi::PhysRange::from_bounds(
    handoff_abi::PhysAddr(0xfee0_0000),
    handoff_abi::PhysAddr(0xfef0_0000),
);
