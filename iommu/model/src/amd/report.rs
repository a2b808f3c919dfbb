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
    BaseWrittenInHalves,
    FeatureNotSupported,
    EnabledBeforeConfigured,
    EnabledBeforeDenied,
    EntryFailsOpen,
    EntryTrustsDevice,
    DeviceTableAddressInvalid,
    DeviceTableTooShort,
    DeviceTableChangedWhileEnabled,
    NotInvalidatedAfterEnable,
    TranslationSwitchedOff,
    FormatChangedWhileEnabled,
    CommandBufferInvalid,
    CommandBufferChangedWhileRunning,
    CommandTailInvalid,
    CommandsSwitchedOffWhileBusy,
    PendingCommandOverwritten,
    InvalidCommand,
    InvalidationRangeUndefined,
    EnabledAgainBeforeStopped,
    EventLogInvalid,
    EventLogChangedWhileRunning,
    EventHeadInvalid,
    EventSkipped,
    EventInterruptAimless,
    ExclusionRangeUsed,
    TornEntry,
    EntryReusedBeforeInvalidation,
    DeviceEntryInvalid,
    InterruptEntryInvalid,
    InterruptTableMisaligned,
    InterruptTableTooLong,
    InterruptTablesOverlap,
    DomainIdWithTwoTables,
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
            Self::AccessWidth => "a register is accessed whole or in aligned halves",
            Self::AccessOutsideWindow => "accesses stay inside the window and are aligned",
            Self::WriteToReadOnlyRegister => "a read-only register is not written",
            Self::RegisterNotImplemented => "only implemented registers are accessed",
            Self::ReservedBitsInRegister => "reserved register bits are written as zero",
            Self::BaseWrittenInHalves => "a base in use is replaced in one access",
            Self::FeatureNotSupported => "only features the unit has are switched on",
            Self::EnabledBeforeConfigured => {
                "IommuEn comes last: the device table, the command buffer and the interrupt format \
                 are set before"
            }
            Self::EnabledBeforeDenied => {
                "fence: every device table entry denies DMA and interrupts when the unit is \
                 switched on"
            }
            Self::EntryFailsOpen => {
                "fence: no device table entry lets anything pass untranslated or unmapped"
            }
            Self::EntryTrustsDevice => {
                "fence: no translated requests, exclusion, port I/O, system management or special \
                 interrupts for devices"
            }
            Self::DeviceTableAddressInvalid => "the device table lies in memory",
            Self::DeviceTableTooShort => "fence: the device table has an entry for every device id",
            Self::DeviceTableChangedWhileEnabled => {
                "this unit's device table is changed only while it is off"
            }
            Self::NotInvalidatedAfterEnable => {
                "after IommuEn, and after a switch to another device table, every entry, interrupt \
                 table and used domain is invalidated"
            }
            Self::TranslationSwitchedOff => "fence: the unit is never switched off",
            Self::FormatChangedWhileEnabled => {
                "interrupt format and segmentation do not change while the unit is on"
            }
            Self::CommandBufferInvalid => "the command buffer has 256 to 32768 slots in memory",
            Self::CommandBufferChangedWhileRunning => {
                "base and head of the command buffer change only while CmdBufRun is clear"
            }
            Self::CommandTailInvalid => "the command tail is a slot of the buffer",
            Self::CommandsSwitchedOffWhileBusy => "the command buffer is empty when switched off",
            Self::PendingCommandOverwritten => "a command that was not fetched is not overwritten",
            Self::InvalidCommand => "commands are valid",
            Self::InvalidationRangeUndefined => "an invalidation has a size",
            Self::EnabledAgainBeforeStopped => {
                "CmdBufEn and EventLogEn are set again only after the run bit is clear"
            }
            Self::EventLogInvalid => "the event log has 256 to 32768 entries in memory",
            Self::EventLogChangedWhileRunning => {
                "base and tail of the event log change only while EventLogRun is clear"
            }
            Self::EventHeadInvalid => "the event head stays between head and tail",
            Self::EventSkipped => "an event is not passed over before it has arrived",
            Self::EventInterruptAimless => {
                "the event interrupt is aimed at the interrupt range before it is switched on"
            }
            Self::ExclusionRangeUsed => "fence: there is no exclusion range",
            Self::TornEntry => "an entry that lets something pass never shows a half of another",
            Self::EntryReusedBeforeInvalidation => {
                "fence: an entry is not given anew before its old contents are invalidated"
            }
            Self::DeviceEntryInvalid => "device table entries are valid",
            Self::InterruptEntryInvalid => "interrupt entries that remap are valid",
            Self::InterruptTableMisaligned => "interrupt tables are aligned to 128 bytes",
            Self::InterruptTableTooLong => "interrupt tables have at most the entries a device can",
            Self::InterruptTablesOverlap => "interrupt tables do not overlap",
            Self::DomainIdWithTwoTables => "one domain id has one set of page tables",
            Self::LeafCoversInterruptRange => "no leaf leads to an address that is not memory",
            Self::LeafCoversTables => "no leaf covers the unit's own structures",
            Self::PageTableMalformed => "page tables are well-formed",
            Self::ReleasedMemoryStillReachable => "memory is released after it is unreachable",
            Self::UndrainedWrite => "writes in flight are awaited before memory is released",
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

/// Why a request was blocked. The event it is logged with (section 2.5) is [`Reason::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the variants say it")]
pub enum Reason {
    /// The device id has no entry in the device table.
    DeviceBeyondTable,
    /// The device table entry could not be read.
    DeviceTableUnreadable,
    /// Reserved bits of the device table entry are set.
    DeviceEntryReserved,
    /// A field of the device table entry holds a value that means nothing.
    DeviceEntryEncoding,
    /// The device table entry says TV = 0.
    TranslationNotValid,
    /// The address is beyond what the levels cover.
    AddressTooWide,
    /// A page table entry is not present.
    NotPresent,
    NoRead,
    NoWrite,
    /// Reserved bits of a page table entry are set, or its address is not aligned to its size.
    EntryReserved,
    /// A next level that is not below, a page size that cannot be, or skipped address bits that
    /// are not zero.
    LevelInvalid,
    /// A page table could not be read.
    PageTableUnreadable,
    /// The translation leads where there is no memory; no event.
    NoMemory,
    /// A request in a special address range that is not what the range is for.
    SpecialAddress,
    /// The device table entry says to abort interrupts.
    InterruptAborted,
    /// A delivery mode that may not pass.
    DeliveryMode,
    /// The index is beyond the interrupt table.
    IndexTooLarge,
    /// The interrupt entry does not remap.
    InterruptNotEnabled,
    /// Reserved bits or values in the interrupt entry.
    InterruptEntryReserved,
}

impl Reason {
    /// The event code: 1 `ILLEGAL_DEV_TABLE_ENTRY`, 2 `IO_PAGE_FAULT`, 3
    /// `DEV_TAB_HARDWARE_ERROR`, 4 `PAGE_TAB_HARDWARE_ERROR`, 8 `INVALID_DEVICE_REQUEST`; 0 for
    /// no event.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::DeviceEntryReserved | Self::DeviceEntryEncoding => 1,
            Self::DeviceTableUnreadable => 3,
            Self::PageTableUnreadable => 4,
            Self::SpecialAddress => 8,
            Self::NoMemory | Self::DeliveryMode => 0,
            _ => 2,
        }
    }

    /// PR, PE and RZ of an `IO_PAGE_FAULT`: present, permission missing, reserved bits.
    pub(crate) fn flags(self) -> (bool, bool, bool) {
        match self {
            Self::NoRead | Self::NoWrite => (true, true, false),
            Self::EntryReserved | Self::InterruptEntryReserved => (true, false, true),
            Self::LevelInvalid => (true, false, false),
            _ => (false, false, false),
        }
    }
}

/// A request that a unit refused, whether or not an event was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device.
    pub sid: u16,
    /// The domain of its entry, where the entry could be read.
    pub did: u16,
    /// The address it used.
    pub address: u64,
    /// Whether it wrote.
    pub write: bool,
    /// Whether it was an interrupt.
    pub interrupt: bool,
    /// Why it was refused.
    pub reason: Reason,
}

/// What a unit did that software can see or wait for, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Software moved the command tail.
    TailWritten {
        /// The unit.
        unit: usize,
    },
    /// A unit completed a COMPLETION_WAIT.
    WaitDone {
        /// The unit.
        unit: usize,
    },
    /// Software wrote the control register.
    Control {
        /// The unit.
        unit: usize,
        /// What it holds now.
        value: u64,
    },
    /// Software gave a unit that is on another device table.
    TableSwitched {
        /// The unit.
        unit: usize,
    },
    /// A unit executed an invalidation.
    Invalidated {
        /// The unit.
        unit: usize,
        /// What was invalidated.
        kind: Invalidation,
    },
}

/// An invalidation, as a unit executed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the command's fields")]
pub enum Invalidation {
    /// INVALIDATE_IOMMU_ALL.
    All,
    /// INVALIDATE_DEVTAB_ENTRY.
    Entry { sid: u16 },
    /// INVALIDATE_INTERRUPT_TABLE.
    Interrupts { sid: u16 },
    /// INVALIDATE_IOMMU_PAGES: 2^`shift` bytes from `address`; 64 is everything.
    Pages {
        did: u16,
        address: u64,
        shift: u8,
        directories: bool,
    },
}

/// Accesses and work, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says what is counted")]
pub struct Counters {
    pub mmio_writes: u64,
    pub mmio_reads: u64,
    pub entry_commands: u64,
    pub page_commands: u64,
    pub interrupt_commands: u64,
    pub all_commands: u64,
    pub other_commands: u64,
    /// COMPLETION_WAITs that store or interrupt: those that software can wait for.
    pub waits: u64,
    /// COMPLETION_WAITs that only keep order.
    pub barriers: u64,
    pub tail_writes: u64,
    pub table_switches: u64,
    pub events_logged: u64,
    pub events_lost: u64,
}

impl Counters {
    /// All commands, waits included.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.entry_commands
            + self.page_commands
            + self.interrupt_commands
            + self.all_commands
            + self.other_commands
            + self.waits
            + self.barriers
    }
}

impl core::ops::Sub for Counters {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            mmio_writes: self.mmio_writes - before.mmio_writes,
            mmio_reads: self.mmio_reads - before.mmio_reads,
            entry_commands: self.entry_commands - before.entry_commands,
            page_commands: self.page_commands - before.page_commands,
            interrupt_commands: self.interrupt_commands - before.interrupt_commands,
            all_commands: self.all_commands - before.all_commands,
            other_commands: self.other_commands - before.other_commands,
            waits: self.waits - before.waits,
            barriers: self.barriers - before.barriers,
            tail_writes: self.tail_writes - before.tail_writes,
            table_switches: self.table_switches - before.table_switches,
            events_logged: self.events_logged - before.events_logged,
            events_lost: self.events_lost - before.events_lost,
        }
    }
}
