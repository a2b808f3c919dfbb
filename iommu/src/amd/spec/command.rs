//! Commands, 128 bits each (section 2.4).

use handoff_abi::{DomainId, PhysAddr, RequesterId};

/// A command as it lies in the buffer. The code is in bits 63:60.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Command {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl Command {
    const fn new(code: u64, operand: u64, high: u64) -> Self {
        Self {
            low: code << 60 | operand,
            high,
        }
    }

    /// COMPLETION_WAIT (section 2.4.1): stores the 8 bytes `data` at `at`, a multiple of 8, when
    /// everything before it is done. S, bit 0. The next command is not fetched before (F, bit 2),
    /// so that nothing overtakes it either.
    #[must_use]
    pub const fn completion_wait(at: PhysAddr, data: u64) -> Self {
        Self::new(1, at.0 & 0x000f_ffff_ffff_fff8 | 1 << 2 | 1, data)
    }

    /// COMPLETION_WAIT that only keeps order: what comes after it begins when everything before it
    /// is done. Without it the unit may execute commands in any order.
    #[must_use]
    pub const fn barrier() -> Self {
        Self::new(1, 1 << 2, 0)
    }

    /// INVALIDATE_DEVTAB_ENTRY (section 2.4.2): DeviceID, bits 15:0.
    #[must_use]
    pub const fn device_entry(device: RequesterId) -> Self {
        Self::new(2, device.0 as u64, 0)
    }

    /// INVALIDATE_IOMMU_PAGES (section 2.4.3) for all addresses of a domain and all levels of its
    /// tables: DomainID, bits 47:32; S, bit 64, with all address bits below the highest set; PDE,
    /// bit 65.
    #[must_use]
    pub const fn pages(domain: DomainId) -> Self {
        Self::new(3, (domain.0 as u64) << 32, 0x7fff_ffff_ffff_f003)
    }

    /// INVALIDATE_INTERRUPT_TABLE (section 2.4.5): DeviceID, bits 15:0.
    #[must_use]
    pub const fn interrupt_table(device: RequesterId) -> Self {
        Self::new(5, device.0 as u64, 0)
    }

    /// INVALIDATE_IOMMU_ALL (section 2.4.8), for units with IASup.
    #[must_use]
    pub const fn all() -> Self {
        Self::new(8, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bits_of_the_specification() {
        let device = RequesterId::new(2, 1, 0).unwrap();
        for (command, low, high) in [
            (
                Command::completion_wait(PhysAddr(0x9008), 7),
                0x1000_0000_0000_900d,
                7,
            ),
            (Command::barrier(), 0x1000_0000_0000_0004, 0),
            (Command::device_entry(device), 0x2000_0000_0000_0208, 0),
            (
                Command::pages(DomainId(0x1234)),
                0x3000_1234_0000_0000,
                0x7fff_ffff_ffff_f003,
            ),
            (Command::interrupt_table(device), 0x5000_0000_0000_0208, 0),
            (Command::all(), 0x8000_0000_0000_0000, 0),
        ] {
            assert_eq!((command.low, command.high), (low, high));
        }
    }
}
