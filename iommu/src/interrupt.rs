//! Interrupt entries, and the messages that name them.

use core::fmt;

use handoff_abi::{InterruptMessage, InterruptTarget, PhysAddr, RequesterId, UnitKind};

/// How an interrupt is signalled at the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TriggerMode {
    /// Each message is one interrupt. All message signalled interrupts are of this kind.
    Edge,
    /// Asserted until the processor's end-of-interrupt. Only I/O APIC pins.
    Level,
}

/// An interrupt entry: the device whose messages it accepts, and its index as the message names it.
///
/// VT-d units have one table for all devices, and the index is that of the table, 16 bits.
/// AMD-Vi units have a table for each device, and the index is the low 11 bits of the message's
/// data (AMD-Vi section 2.2.5): the vector in bits 7:0, and in bits 10:8 the delivery mode, 0 for
/// fixed and 1 for lowest priority. No other mode has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct InterruptHandle {
    /// The architecture of the unit, which the form of the message follows.
    pub kind: UnitKind,
    /// The only device whose messages the entry accepts.
    pub source: RequesterId,
    /// The index.
    pub index: u16,
}

impl InterruptHandle {
    /// The entry of this index; whether it is set, the unit tells.
    #[must_use]
    pub const fn new(kind: UnitKind, source: RequesterId, index: u16) -> Self {
        Self {
            kind,
            source,
            index,
        }
    }

    /// The message that raises this interrupt, for the device's MSI capability or MSI-X table.
    ///
    /// VT-d: in remappable format (section 5.1.2.2): address bits 31:20 are `0xFEE`, 19:5 the
    /// index's low 15 bits, bit 4 the format, bit 3 (SHV) clear, bit 2 the index's bit 15; the data
    /// is 0, as there is no subhandle. AMD-Vi: the data is the index; the processor that the
    /// address names (here 0) is not looked at.
    #[must_use]
    pub const fn message(self) -> InterruptMessage {
        let index = self.index as u64;
        match self.kind {
            UnitKind::AmdVi => InterruptMessage {
                address: PhysAddr(0xfee0_0000),
                data: self.index as u32,
            },
            _ => InterruptMessage {
                address: PhysAddr(0xfee0_0000 | (index & 0x7fff) << 5 | 1 << 4 | index >> 15 << 2),
                data: 0,
            },
        }
    }

    /// The redirection table entry that makes an I/O APIC pin raise this interrupt, with the mask,
    /// bit 16, clear. Bit 15 is the trigger mode, bit 13 the polarity (1: active low).
    ///
    /// VT-d: in remappable format (section 5.1.2.1): bits 63:49 are the index's low 15 bits, bit 48
    /// the format, bit 11 the index's bit 15; `vector` must be that of the remapping entry, or the
    /// end of a level interrupt does not find its pin. AMD-Vi: the index in bits 10:0, so that its
    /// low byte must be the `vector`, which is not looked at here.
    #[must_use]
    pub const fn redirection_entry(
        self,
        vector: u8,
        trigger: TriggerMode,
        active_low: bool,
    ) -> u64 {
        let index = self.index as u64;
        let level = match trigger {
            TriggerMode::Edge => 0,
            TriggerMode::Level => 1 << 15,
        };
        let signal = level | (active_low as u64) << 13;
        match self.kind {
            UnitKind::AmdVi => signal | index & 0x7ff,
            _ => signal | (index & 0x7fff) << 49 | 1 << 48 | index >> 15 << 11 | vector as u64,
        }
    }
}

impl fmt::Display for InterruptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupt {:#x} of {}", self.index, self.source)
    }
}

/// An interrupt entry that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Interrupt {
    /// Its device and index.
    pub handle: InterruptHandle,
    /// Where its interrupts go.
    pub target: InterruptTarget,
}

/// Why an interrupt entry was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InterruptError {
    /// The vector is below 16, or the APIC id means all processors or does not fit (8 bits unless
    /// the unit was prepared for 32).
    BadTarget(InterruptTarget),
    /// There is no such index: it lies beyond VT-d's table, or is that of a vector below 16 or of a
    /// delivery mode that is neither fixed nor lowest priority (AMD-Vi).
    BadIndex(InterruptHandle),
    /// The entry is not set, or it is another device's.
    NotSet(InterruptHandle),
    /// The entry is set, or was cleared and that was not flushed.
    InUse(InterruptHandle),
    /// Every entry of the table that is this device's is in use.
    Full(RequesterId),
    /// AMD-Vi: the arena has no room for another table.
    ArenaFull,
    /// AMD-Vi: too many tables took the place of others, and that was not flushed.
    NotFlushed,
}

impl fmt::Display for InterruptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTarget(target) => write!(
                f,
                "vector {} of processor {} is not a target",
                target.vector, target.destination
            ),
            Self::BadIndex(handle) => write!(f, "there is no {handle}"),
            Self::NotSet(handle) => write!(f, "{handle} is not set"),
            Self::InUse(handle) => write!(f, "{handle} is in use"),
            Self::Full(source) => write!(f, "no interrupt entry is free for {source}"),
            Self::ArenaFull => f.write_str("the arena is full"),
            Self::NotFlushed => f.write_str("too many interrupt tables wait for a flush"),
        }
    }
}

impl core::error::Error for InterruptError {}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: RequesterId = RequesterId(0x0208);

    #[test]
    fn messages_to_vtd_have_the_remappable_format() {
        let handle = |index| InterruptHandle::new(UnitKind::VtD, DEVICE, index);
        let address = |index| handle(index).message().address.0;
        assert_eq!(address(0), 0xfee0_0010);
        assert_eq!(address(1), 0xfee0_0030);
        assert_eq!(address(0xffff), 0xfeef_fff4);
        assert_eq!(handle(0x1234).message().data, 0);
        assert_eq!(
            handle(0x8001).redirection_entry(0x40, TriggerMode::Level, true),
            0x0003_0000_0000_a840
        );
    }

    #[test]
    fn a_message_to_amd_vi_names_the_index_and_no_processor() {
        let handle = InterruptHandle::new(UnitKind::AmdVi, DEVICE, 0x141);
        assert_eq!(handle.message().address, PhysAddr(0xfee0_0000));
        assert_eq!(handle.message().data, 0x141);
        assert_eq!(
            handle.redirection_entry(0x41, TriggerMode::Level, true),
            0xa141
        );
    }
}
