//! What the model reports: broken rules, faults, counts and a history.

use core::fmt;

/// A rule of the architecture (or, where it says so, of a fence) that software broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each variant's sentence is in its Display")]
pub enum Rule {
    AccessWidth,
    AccessOutsideWindow,
    WriteToReadOnlyRegister,
    RegisterNotImplemented,
    ReservedBitsInRegister,
    SeveralCommandsAtOnce,
    CommandWhileOneIsPending,
    CommandNotSupported,
    RootTableAddressInvalid,
    RootTablePointerNeverSet,
    TranslationOnBeforeInvalidation,
    TranslationOnBeforeInterruptRemapping,
    TranslationSwitchedOff,
    InterruptTableAddressInvalid,
    InterruptTablePointerNeverSet,
    InterruptRemappingOnBeforeInvalidation,
    InterruptRemappingSwitchedOff,
    CompatibilityFormatPasses,
    QueueAddressWhileEnabled,
    QueueEnabledWithTail,
    QueueDisabledWhileBusy,
    QueueTailInvalid,
    PendingDescriptorOverwritten,
    InvalidDescriptor,
    RegisterInvalidationWhileQueued,
    FaultEventChangedWhileUnmasked,
    FaultEventAddressInvalid,
    ProtectedRangeChangedWhileEnabled,
    TornEntry,
    EntryReusedBeforeInvalidation,
    DomainIdZeroInCachingMode,
    DomainIdTooLarge,
    DomainIdWithTwoTables,
    TranslatedRequestsAllowed,
    ContextEntryInvalid,
    LeafCoversInterruptRange,
    LeafCoversTables,
    PageTableMalformed,
    ReleasedMemoryStillReachable,
    UndrainedWrite,
    MemoryAccessMisaligned,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccessWidth => "a register is accessed in its own width or in aligned halves",
            Self::AccessOutsideWindow => "accesses stay inside the window and are aligned",
            Self::WriteToReadOnlyRegister => "a read-only register is not written",
            Self::RegisterNotImplemented => "only implemented registers are written",
            Self::ReservedBitsInRegister => "reserved register bits are written as zero",
            Self::SeveralCommandsAtOnce => "GCMD changes one thing at a time and replays nothing",
            Self::CommandWhileOneIsPending => "a command waits for the one before it",
            Self::CommandNotSupported => "only supported commands are given",
            Self::RootTableAddressInvalid => "RTADDR holds an address and a mode the unit has",
            Self::RootTablePointerNeverSet => "SRTP comes before TE",
            Self::TranslationOnBeforeInvalidation => {
                "after SRTP the context cache, then the IOTLB, are invalidated globally before TE"
            }
            Self::TranslationOnBeforeInterruptRemapping => {
                "fence: interrupts are remapped before translation is switched on"
            }
            Self::TranslationSwitchedOff => "fence: translation is never switched off",
            Self::InterruptTableAddressInvalid => "IRTA holds an address and a mode the unit has",
            Self::InterruptTablePointerNeverSet => "SIRTP comes before IRE",
            Self::InterruptRemappingOnBeforeInvalidation => {
                "after SIRTP the interrupt entry cache is invalidated globally before IRE"
            }
            Self::InterruptRemappingSwitchedOff => {
                "fence: interrupt remapping is never switched off"
            }
            Self::CompatibilityFormatPasses => {
                "fence: compatibility format interrupts are blocked before TE"
            }
            Self::QueueAddressWhileEnabled => "IQA is written only while the queue is off",
            Self::QueueEnabledWithTail => "IQT is zero when the queue is switched on",
            Self::QueueDisabledWhileBusy => "the queue is empty when it is switched off",
            Self::QueueTailInvalid => "IQT is a slot of the queue",
            Self::PendingDescriptorOverwritten => "a pending descriptor is not overwritten",
            Self::InvalidDescriptor => "descriptors are valid",
            Self::RegisterInvalidationWhileQueued => {
                "CCMD and IOTLB are not used while the queue is on"
            }
            Self::FaultEventChangedWhileUnmasked => "the fault event is masked while it is changed",
            Self::FaultEventAddressInvalid => "the fault event is aimed at the interrupt range",
            Self::ProtectedRangeChangedWhileEnabled => {
                "protected ranges are changed only while they are off"
            }
            Self::TornEntry => "an entry that is present never shows a half of another",
            Self::EntryReusedBeforeInvalidation => {
                "an entry is not reused before its old contents are invalidated"
            }
            Self::DomainIdZeroInCachingMode => "domain id 0 is not used in caching mode",
            Self::DomainIdTooLarge => "domain ids fit CAP.ND",
            Self::DomainIdWithTwoTables => "one domain id has one set of page tables",
            Self::TranslatedRequestsAllowed => "fence: no translated requests, no pass-through",
            Self::ContextEntryInvalid => "present context entries are valid",
            Self::LeafCoversInterruptRange => "no leaf covers FEE0_0000 to FEEF_FFFF",
            Self::LeafCoversTables => "no leaf covers the unit's own structures",
            Self::PageTableMalformed => "page tables are well-formed",
            Self::ReleasedMemoryStillReachable => "memory is released after it is unreachable",
            Self::UndrainedWrite => "invalidations drain writes in flight",
            Self::MemoryAccessMisaligned => "table memory is accessed in aligned 8 bytes",
        })
    }
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The unit, by its number in the machine.
    pub unit: usize,
    /// The rule.
    pub rule: Rule,
    /// What exactly happened.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}: {}: {}", self.unit, self.rule, self.detail)
    }
}

/// Why a request was blocked: the fault reason encodings of VT-d section 7.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the architecture's names")]
pub enum Reason {
    RootNotPresent = 0x1,
    ContextNotPresent = 0x2,
    ContextInvalid = 0x3,
    AddressTooWide = 0x4,
    NoWrite = 0x5,
    NoRead = 0x6,
    TablePointerInvalid = 0x7,
    RootPointerInvalid = 0x8,
    ContextPointerInvalid = 0x9,
    RootReserved = 0xa,
    ContextReserved = 0xb,
    EntryReserved = 0xc,
    BlockedByType = 0xd,
    OutputIsInterrupt = 0xe,
    InterruptReserved = 0x20,
    IndexTooLarge = 0x21,
    InterruptNotPresent = 0x22,
    InterruptPointerInvalid = 0x23,
    InterruptEntryReserved = 0x24,
    CompatibilityBlocked = 0x25,
    SourceMismatch = 0x26,
}

/// What a unit did that software can see or wait for, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Software moved a queue's tail.
    TailWritten {
        /// The unit.
        unit: usize,
    },
    /// A unit completed a wait descriptor.
    WaitDone {
        /// The unit.
        unit: usize,
    },
    /// A unit completed a global command; the bit of GCMD.
    CommandDone {
        /// The unit.
        unit: usize,
        /// The command's bit.
        bit: u32,
        /// Whether it switched something on, or was a one-shot.
        on: bool,
    },
    /// A unit processed an invalidation.
    Invalidated {
        /// The unit.
        unit: usize,
        /// What was invalidated.
        kind: Invalidation,
    },
}

/// An invalidation, as a unit processed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the descriptor's fields")]
pub enum Invalidation {
    ContextGlobal,
    ContextDomain {
        did: u16,
    },
    ContextDevice {
        did: u16,
        sid: u16,
        mask: u8,
    },
    IotlbGlobal,
    IotlbDomain {
        did: u16,
    },
    IotlbPages {
        did: u16,
        address: u64,
        mask: u8,
        hint: bool,
    },
    InterruptGlobal,
    InterruptIndex {
        index: u16,
        mask: u8,
    },
}

/// Accesses and work, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says what is counted")]
pub struct Counters {
    pub mmio_writes: u64,
    pub mmio_reads: u64,
    pub context_descriptors: u64,
    pub iotlb_descriptors: u64,
    pub interrupt_descriptors: u64,
    pub waits: u64,
    pub tail_writes: u64,
    pub root_pointer_sets: u64,
    pub interrupt_pointer_sets: u64,
}

impl Counters {
    /// All descriptors, waits included.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        self.context_descriptors + self.iotlb_descriptors + self.interrupt_descriptors + self.waits
    }
}

impl core::ops::Sub for Counters {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            mmio_writes: self.mmio_writes - before.mmio_writes,
            mmio_reads: self.mmio_reads - before.mmio_reads,
            context_descriptors: self.context_descriptors - before.context_descriptors,
            iotlb_descriptors: self.iotlb_descriptors - before.iotlb_descriptors,
            interrupt_descriptors: self.interrupt_descriptors - before.interrupt_descriptors,
            waits: self.waits - before.waits,
            tail_writes: self.tail_writes - before.tail_writes,
            root_pointer_sets: self.root_pointer_sets - before.root_pointer_sets,
            interrupt_pointer_sets: self.interrupt_pointer_sets - before.interrupt_pointer_sets,
        }
    }
}

/// Work on memory, counted for the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says what is counted")]
pub struct MemoryCounters {
    pub stores: u64,
    pub loads: u64,
    pub lines_written_back: u64,
}
