//! Why a unit is not brought up.

use core::fmt;

use handoff_abi::PhysRange;

use crate::amd::spec::{CapabilityHeader, Control, InterruptFormat};
use crate::vtd::spec::TranslationMode;
use crate::{ArenaError, InvalidateError, RegisterError};

/// Why a unit cannot be used as a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ProbeError {
    /// Its registers read as all ones: it is switched off or hidden.
    Gone,
    /// VT-d: no queued invalidation (ECAP.QI).
    NoQueuedInvalidation,
    /// VT-d: no interrupt remapping (ECAP.IR): devices could forge interrupts.
    NoInterruptRemapping,
    /// VT-d: 32-bit APIC ids were asked for and it has none (ECAP.EIM).
    NoExtendedInterruptMode,
    /// AMD-Vi: interrupt entries of this format were asked for and it has none (GASup, XTSup).
    NoInterruptFormat(InterruptFormat),
    /// AMD-Vi: this is not the header of an IOMMU's capability block.
    NotAnIommu(CapabilityHeader),
    /// No table depth it supports (VT-d: CAP.SAGAW, CAP.MGAW; AMD-Vi: HATS) reaches the device
    /// addresses asked for.
    NoAddressWidth {
        /// The limit that was asked for.
        iova_limit: u64,
        /// The first device address that no tables of it translate.
        supported: u64,
    },
    /// Some of its registers lie outside the window.
    WindowTooSmall {
        /// The window.
        window: PhysRange,
        /// How many bytes it must have.
        needed: u64,
    },
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the unit's registers read as all ones"),
            Self::NoQueuedInvalidation => f.write_str("the unit has no queued invalidation"),
            Self::NoInterruptRemapping => f.write_str("the unit has no interrupt remapping"),
            Self::NoExtendedInterruptMode => f.write_str("the unit has no 32-bit APIC ids"),
            Self::NoInterruptFormat(format) => {
                write!(f, "the unit has no interrupt entries of format {format:?}")
            }
            Self::NotAnIommu(header) => {
                write!(f, "{:#010x} is not an IOMMU's capability", header.bits())
            }
            Self::NoAddressWidth {
                iova_limit,
                supported,
            } => write!(
                f,
                "no table depth reaches {iova_limit:#x}, at most {supported:#x}"
            ),
            Self::WindowTooSmall { window, needed } => {
                write!(
                    f,
                    "register window {window} is shorter than {needed:#x} bytes"
                )
            }
        }
    }
}

impl core::error::Error for ProbeError {}

/// Why a unit's tables could not be laid out. No register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PrepareError {
    /// The unit is not fit for use.
    Probe(ProbeError),
    /// The arena is no arena.
    Arena(ArenaError),
    /// The arena has too few frames for the tables every unit has.
    ArenaFull,
    /// The arena lies too high: beyond the machine's physical addresses, or, on AMD-Vi, not below
    /// 4 GiB, where any kernel can take the tables over.
    ArenaTooHigh {
        /// The arena.
        arena: PhysRange,
        /// The first address that is too high.
        limit: u64,
    },
    /// VT-d: the number of interrupt entries is not a power of two from 256 to 65536.
    InterruptEntries(u32),
    /// The width of physical addresses is not from 12 to 52 bits.
    HostAddressBits(u8),
    /// The unit's description is not one of its kind, or the kind is none this crate has.
    Description,
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(error) => error.fmt(f),
            Self::Arena(error) => error.fmt(f),
            Self::ArenaFull => f.write_str("the arena is too small"),
            Self::ArenaTooHigh { arena, limit } => {
                write!(f, "arena {arena} does not end below {limit:#x}")
            }
            Self::InterruptEntries(entries) => {
                write!(f, "{entries} is not a size of an interrupt table")
            }
            Self::HostAddressBits(bits) => {
                write!(f, "{bits} is not a width of physical addresses")
            }
            Self::Description => f.write_str("the unit is described as none of a known kind"),
        }
    }
}

impl core::error::Error for PrepareError {}

/// Why a unit was not brought up, or not wholly. What it translates or blocks by then, it goes on
/// to translate or block: nothing is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum EnableError {
    /// A register did not do what it should have.
    Register(RegisterError),
    /// An invalidation was not done.
    Invalidate(InvalidateError),
    /// VT-d: firmware left translation on with tables of another kind, which cannot be exchanged
    /// without switching translation off (section 11.4.5).
    TranslationMode(TranslationMode),
    /// AMD-Vi: firmware left the unit on with interrupt entries of another format, which cannot be
    /// exchanged together with the device table. No register was written.
    InterruptFormat {
        /// The control register.
        control: Control,
    },
    /// Somebody else's queue runs in this memory. It has to be closed by a command there, for which
    /// `enable_over` takes the memory. No register was written.
    QueueRuns(PhysRange),
    /// The queue that runs is none that can be closed: it lies in the arena, beyond the machine's
    /// addresses or short of its own tail, or, on VT-d, its descriptors have 256 bits. No register
    /// was written.
    QueueUnusable {
        /// The register with its address (VT-d: IQA; AMD-Vi: the command buffer's base).
        address: u64,
        /// The register with its tail.
        tail: u64,
    },
    /// The memory given to `enable_over` does not hold what is stored to this slot of the queue. The
    /// unit was not told to look at it.
    QueueMemory(PhysRange),
    /// AMD-Vi: a device table entry does not deny what it should, or the table is not whole: the
    /// memory does not hold what was stored. The unit was not told of it.
    DeviceTable {
        /// Where the entry lies.
        entry: handoff_abi::PhysAddr,
    },
}

impl From<RegisterError> for EnableError {
    fn from(error: RegisterError) -> Self {
        Self::Register(error)
    }
}

impl From<InvalidateError> for EnableError {
    fn from(error: InvalidateError) -> Self {
        Self::Invalidate(error)
    }
}

impl fmt::Display for EnableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(error) => error.fmt(f),
            Self::Invalidate(error) => error.fmt(f),
            Self::TranslationMode(mode) => {
                write!(f, "the unit translates already, with {mode:?} tables")
            }
            Self::InterruptFormat { control } => write!(
                f,
                "the unit is on with interrupt entries of another format, control {:#x}",
                control.bits()
            ),
            Self::QueueRuns(memory) => write!(f, "another's queue runs at {memory}"),
            Self::QueueUnusable { address, tail } => write!(
                f,
                "the queue that runs cannot be closed: base {address:#x}, tail {tail:#x}"
            ),
            Self::QueueMemory(slot) => {
                write!(f, "the queue's slot at {slot} does not hold what is stored")
            }
            Self::DeviceTable { entry } => {
                write!(f, "the device table entry at {entry} lets requests pass")
            }
        }
    }
}

impl core::error::Error for EnableError {}
