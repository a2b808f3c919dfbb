//! Why not: every rule that a request breaks.

use core::fmt;

use handoff_abi::{ApicId, Owner, PartitionId, PciFunction, PhysRange, RequesterId};
use heapless::Vec;

use super::machine::MemoryKind;

/// A list inside a [`Plan`](super::Plan) that has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum List {
    /// Processors.
    Cpus,
    /// Memory ranges.
    MemoryRanges,
    /// PCI functions.
    Functions,
    /// Requester ids.
    Requesters,
    /// Buses.
    Buses,
    /// Ranges that the domain maps.
    DomainMaps,
    /// Machine singletons.
    Singletons,
}

impl List {
    const fn name(self) -> &'static str {
        match self {
            Self::Cpus => "processors",
            Self::MemoryRanges => "memory ranges",
            Self::Functions => "PCI functions",
            Self::Requesters => "requester ids",
            Self::Buses => "buses",
            Self::DomainMaps => "domain mappings",
            Self::Singletons => "machine singletons",
        }
    }
}

/// Something that runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Supply {
    /// Frames for remapping tables.
    TablePages,
    /// Slots of the ledger.
    LedgerSlots,
    /// Interrupt remapping entries.
    InterruptHandles,
    /// Domain ids.
    Domains,
}

impl Supply {
    const fn name(self) -> &'static str {
        match self {
            Self::TablePages => "remapping table pages",
            Self::LedgerSlots => "ledger slots",
            Self::InterruptHandles => "interrupt handles",
            Self::Domains => "domains",
        }
    }
}

/// What a reason is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Resource {
    /// The partition that was asked for.
    Partition(PartitionId),
    /// A processor.
    Cpu(ApicId),
    /// Memory.
    Memory(PhysRange),
    /// A PCI function.
    Function(PciFunction),
    /// A machine singleton.
    Singleton(u64),
    /// The machine or the request as a whole.
    Machine,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(partition) => write!(f, "partition {partition}"),
            Self::Cpu(cpu) => write!(f, "processor {cpu}"),
            Self::Memory(range) => write!(f, "memory {range}"),
            Self::Function(function) => write!(f, "function {function}"),
            Self::Singleton(number) => write!(f, "singleton {number}"),
            Self::Machine => f.write_str("the machine"),
        }
    }
}

macro_rules! reasons {
    ($(
        $(#[$doc:meta])*
        $name:ident $({ $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? })?
            = $rule:literal, $resource:expr, ($($message:tt)+);
    )+) => {
        /// A rule that a request breaks, with the resource that breaks it.
        ///
        /// `Display` gives an English sentence, [`rule`](Self::rule) a short word for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[non_exhaustive]
        pub enum Reason {
            $(
                $(#[$doc])*
                $name $({ $($(#[$field_doc])* $field: $type),+ })?,
            )+
        }

        impl Reason {
            /// The rule's name: lower case, words joined by `-`.
            #[must_use]
            pub const fn rule(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $rule,)+
                }
            }

            /// What it is about.
            #[must_use]
            #[expect(unused_variables, reason = "a reason has more fields than its resource")]
            pub const fn resource(&self) -> Resource {
                match *self {
                    $(Self::$name $({ $($field),+ })? => $resource,)+
                }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name $({ $($field),+ })? => reasons!(@write f, $($message)+),)+
                }
            }
        }

        #[cfg(test)]
        impl Reason {
            /// The name of every rule.
            pub(super) const RULES: &[&str] = &[$($rule),+];
        }
    };
    (@write $f:ident, $($message:tt)+) => { write!($f, $($message)+) };
}

reasons! {
    /// The name is empty or longer than [`Plan::MAX_NAME`](super::Plan::MAX_NAME) bytes.
    Name {
        /// Its length in bytes.
        length: usize,
    } = "name", Resource::Machine,
        ("the name has {length} bytes; it must have 1 to {}", super::Plan::MAX_NAME);
    /// The partition's number is the prime's, or something belongs to it already.
    PartitionTaken {
        /// The number.
        partition: PartitionId,
    } = "partition-taken", Resource::Partition(partition),
        ("partition {partition} exists already");
    /// The partition would share its status and mailboxes with one that exists: their numbers are
    /// the same modulo [`handoff_abi::MAX_PARTITIONS`].
    PartitionCollides {
        /// The number.
        partition: PartitionId,
        /// The partition that exists.
        other: PartitionId,
    } = "partition-collides", Resource::Partition(partition),
        ("partition {partition} would use the mailboxes of partition {other}");
    /// The plan has more of something than a plan can hold.
    TooMany {
        /// What.
        list: List,
        /// The most there can be.
        most: usize,
    } = "too-many", Resource::Machine,
        ("a plan holds at most {most} {}", list.name());

    /// No processor was asked for.
    NoCpu = "no-cpu", Resource::Machine,
        ("no processor was asked for");
    /// There is no such processor.
    CpuMissing {
        /// The processor.
        cpu: ApicId,
    } = "cpu-missing", Resource::Cpu(cpu),
        ("the machine has no processor {cpu}");
    /// The processor is asked for more than once.
    CpuTwice {
        /// The processor.
        cpu: ApicId,
    } = "cpu-twice", Resource::Cpu(cpu),
        ("processor {cpu} is asked for more than once");
    /// The processor is not the prime's to give.
    CpuOwner {
        /// The processor.
        cpu: ApicId,
        /// Whose it is.
        owner: Owner,
    } = "cpu-owner", Resource::Cpu(cpu),
        ("processor {cpu} belongs to {owner} and cannot be given away");
    /// The prime executes on the processor.
    CpuRunsPrime {
        /// The processor.
        cpu: ApicId,
    } = "cpu-runs-prime", Resource::Cpu(cpu),
        ("the prime runs on processor {cpu}");
    /// The processor is the bootstrap processor, which must never be sent INIT.
    CpuBootstrap {
        /// The processor.
        cpu: ApicId,
    } = "cpu-bootstrap", Resource::Cpu(cpu),
        ("processor {cpu} is the bootstrap processor: INIT would send it back to firmware");
    /// Fewer processors are free than were asked for.
    TooFewCpus {
        /// How many were asked for.
        asked: u32,
        /// How many there are.
        free: u32,
    } = "too-few-cpus", Resource::Machine,
        ("{asked} processors were asked for and {free} are free");
    /// A hardware thread of the same core stays with somebody else.
    SmtSplit {
        /// The processor.
        cpu: ApicId,
        /// The thread that stays.
        sibling: ApicId,
    } = "smt-split", Resource::Cpu(cpu),
        ("processor {cpu} shares a core with processor {sibling}, which is not given with it");
    /// The processor's features are not those of the processor it is compared with: one that the
    /// prime runs on, or else the first of the machine.
    CpuFeatures {
        /// The processor.
        cpu: ApicId,
        /// The one it differs from.
        other: ApicId,
    } = "cpu-features", Resource::Cpu(cpu),
        ("processor {cpu} has other features than processor {other}");
    /// The processor's microcode is not that of the processor it is compared with.
    CpuMicrocode {
        /// The processor.
        cpu: ApicId,
        /// The one it differs from.
        other: ApicId,
    } = "cpu-microcode", Resource::Cpu(cpu),
        ("processor {cpu} has other microcode than processor {other}");

    /// The range has no byte.
    MemoryEmpty {
        /// Where it would be.
        range: PhysRange,
    } = "memory-empty", Resource::Memory(range),
        ("memory {range} is empty");
    /// Base, length or alignment are not whole page frames.
    MemoryMisaligned {
        /// What was asked for; from address 0 where the planner was to choose.
        range: PhysRange,
    } = "memory-misaligned", Resource::Memory(range),
        ("memory {range} is not whole page frames of 4 KiB");
    /// The alignment is not a power of two of at least 4096.
    AlignmentInvalid {
        /// The alignment.
        alignment: u64,
    } = "alignment-invalid", Resource::Machine,
        ("{alignment:#x} is no alignment for memory: not a power of two of at least 4096");
    /// Part of the range is asked for twice.
    MemoryTwice {
        /// The part.
        range: PhysRange,
    } = "memory-twice", Resource::Memory(range),
        ("memory {range} is asked for more than once");
    /// Part of the range is not in the memory map.
    MemoryMissing {
        /// The part.
        range: PhysRange,
    } = "memory-missing", Resource::Memory(range),
        ("the machine has no memory at {range}");
    /// Part of the range belongs to another partition or a workload, or is quarantined.
    MemoryOwner {
        /// The part.
        range: PhysRange,
        /// Whose it is.
        owner: Owner,
    } = "memory-owner", Resource::Memory(range),
        ("memory {range} belongs to {owner} and cannot be given away");
    /// Part of the range is firmware's.
    MemoryFirmware {
        /// The part.
        range: PhysRange,
        /// What it is.
        kind: MemoryKind,
    } = "memory-firmware", Resource::Memory(range),
        ("memory {range} belongs to firmware ({})", kind.name());
    /// Part of the range is the baton's.
    MemoryBaton {
        /// The part.
        range: PhysRange,
    } = "memory-baton", Resource::Memory(range),
        ("memory {range} is part of the baton, which no kernel owns");
    /// Part of the range is not free RAM.
    MemoryKind {
        /// The part.
        range: PhysRange,
        /// What it is.
        kind: MemoryKind,
    } = "memory-kind", Resource::Memory(range),
        ("memory {range} is {}, not usable", kind.name());
    /// Part of the range is where devices send interrupts to, 0xFEE0_0000 to 0xFEEF_FFFF (Intel SDM
    /// volume 3, section 12.11.1): no remapping table may lead there.
    MemoryInterrupts {
        /// The part.
        range: PhysRange,
    } = "memory-interrupts", Resource::Memory(range),
        ("memory {range} is where interrupts are sent to");
    /// Part of the range is a function's registers.
    MemoryRegisters {
        /// The part.
        range: PhysRange,
        /// Whose registers.
        function: PciFunction,
    } = "memory-registers", Resource::Memory(range),
        ("memory {range} holds registers of function {function}");
    /// A device that stays behind keeps reaching part of the range on firmware's behalf.
    MemoryReserved {
        /// The part.
        range: PhysRange,
        /// The device.
        function: PciFunction,
    } = "memory-reserved", Resource::Memory(range),
        ("memory {range} is reserved for function {function}, which stays behind");
    /// The range ends above what the tables of a remapping unit reach.
    MemoryTooHigh {
        /// The range.
        range: PhysRange,
        /// How many bits of address the tables translate.
        bits: u32,
    } = "memory-too-high", Resource::Memory(range),
        ("memory {range} is above the {bits} bits that remapping tables reach");
    /// There is less memory than the partition can do with.
    MemoryTooSmall {
        /// Bytes it would have.
        have: u64,
        /// Bytes it needs.
        need: u64,
    } = "memory-too-small", Resource::Machine,
        ("{have:#x} bytes of memory are too few: {need:#x} are needed");
    /// No free range is long enough.
    MemoryNotFound {
        /// Bytes that were asked for.
        length: u64,
        /// Alignment that was asked for.
        alignment: u64,
    } = "memory-not-found", Resource::Machine,
        ("no {length:#x} bytes of memory aligned to {alignment:#x} are free");
    /// The page that was asked for is none that a processor can be started from.
    Trampoline {
        /// The page.
        range: PhysRange,
    } = "trampoline", Resource::Memory(range),
        ("no processor can be started from memory {range}: it is not a page from 0x1000 to 0x9f000");
    /// No page that a processor can be started from is free.
    TrampolineNotFound = "trampoline-not-found", Resource::Machine,
        ("no page from 0x1000 to 0x9f000 is free to start processors from");

    /// There is no such function.
    FunctionMissing {
        /// The function.
        function: PciFunction,
    } = "function-missing", Resource::Function(function),
        ("the machine has no function {function}");
    /// The function is asked for more than once.
    FunctionTwice {
        /// The function.
        function: PciFunction,
    } = "function-twice", Resource::Function(function),
        ("function {function} is asked for more than once");
    /// The function is a bridge.
    FunctionBridge {
        /// The function.
        function: PciFunction,
    } = "function-bridge", Resource::Function(function),
        ("function {function} is a bridge, and bridges stay with the steward");
    /// The function is not the prime's to give.
    FunctionOwner {
        /// The function.
        function: PciFunction,
        /// Whose it is.
        owner: Owner,
    } = "function-owner", Resource::Function(function),
        ("function {function} belongs to {owner} and cannot be given away");
    /// The function is on a root bus.
    FunctionRootBus {
        /// The function.
        function: PciFunction,
    } = "function-root-bus", Resource::Function(function),
        ("function {function} is not below a root port, and a root bus is shared by all");
    /// Two functions send requests with the same id, and one of them stays behind.
    RequesterShared {
        /// The function that was asked for.
        function: PciFunction,
        /// The one that stays.
        culprit: PciFunction,
        /// The id they share.
        id: RequesterId,
    } = "requester-shared", Resource::Function(function),
        ("function {function} shares requester id {id} with function {culprit}, which stays behind");
    /// Two functions can reach each other without passing a remapping unit, and one stays behind.
    GroupSplit {
        /// The function that was asked for.
        function: PciFunction,
        /// The one that stays.
        culprit: PciFunction,
    } = "group-split", Resource::Function(function),
        ("function {function} cannot be kept apart from function {culprit}, which stays behind");
    /// A function on the same bus stays behind.
    BusShared {
        /// The function that was asked for.
        function: PciFunction,
        /// The one that stays.
        culprit: PciFunction,
    } = "bus-shared", Resource::Function(function),
        ("function {function} is on the same bus as function {culprit}, which stays behind");
    /// The function's bus has no memory mapped configuration space.
    NoEcam {
        /// The function.
        function: PciFunction,
    } = "no-ecam", Resource::Function(function),
        ("the bus of function {function} has no memory mapped configuration space");
    /// A region that is reserved for the function is neither firmware's nor all the partition's.
    ReservedOutside {
        /// The function.
        function: PciFunction,
        /// The region.
        range: PhysRange,
    } = "reserved-outside", Resource::Function(function),
        ("function {function} keeps reaching {range}, which is neither the partition's nor reserved by firmware");
    /// A region that is reserved for the function is reserved for one that stays behind, too.
    ReservedShared {
        /// The function.
        function: PciFunction,
        /// The one that stays.
        culprit: PciFunction,
        /// What they share.
        range: PhysRange,
    } = "reserved-shared", Resource::Function(function),
        ("function {function} shares reserved memory {range} with function {culprit}, which stays behind");
    /// The function's interrupt line is shared with one that stays behind. A refusal where the
    /// function has nothing but that line, otherwise a warning: its INTx must stay disabled.
    IntxShared {
        /// The function.
        function: PciFunction,
        /// The one that stays.
        culprit: PciFunction,
        /// The line: a global system interrupt.
        line: u32,
    } = "intx-shared", Resource::Function(function),
        ("function {function} shares interrupt line {line} with function {culprit}, which stays behind");
    /// A page of the function's registers holds registers of one that stays behind.
    RegistersShared {
        /// The function.
        function: PciFunction,
        /// The one that stays.
        culprit: PciFunction,
        /// A page that they share.
        range: PhysRange,
    } = "registers-shared", Resource::Function(function),
        ("function {function} and function {culprit}, which stays behind, have registers in the same page {range}");
    /// The function cannot send as many interrupts as it is to have handles.
    TooManyInterrupts {
        /// The function.
        function: PciFunction,
        /// How many were asked for.
        asked: u16,
        /// How many it can send.
        most: u16,
    } = "too-many-interrupts", Resource::Function(function),
        ("{asked} interrupts were asked for function {function}, which has {most}");
    /// No usable unit remaps the function's requests.
    Uncovered {
        /// The function.
        function: PciFunction,
    } = "uncovered", Resource::Function(function),
        ("no remapping unit covers function {function}: its DMA cannot be fenced");
    /// The machine has no remapping unit at all.
    NoIommu {
        /// The function.
        function: PciFunction,
    } = "no-iommu", Resource::Function(function),
        ("the machine has no remapping unit: DMA of function {function} cannot be fenced");
    /// The function's unit cannot remap interrupts.
    NoInterruptRemapping {
        /// The function.
        function: PciFunction,
    } = "no-interrupt-remapping", Resource::Function(function),
        ("the remapping unit of function {function} cannot fence its interrupts");
    /// The partition's kernel writes interrupt messages of its own, and the function's unit only keeps
    /// those in bounds that it was made for.
    OpenMessages {
        /// The function.
        function: PciFunction,
    } = "open-messages", Resource::Function(function),
        ("the kernel knows nothing of remapped interrupts: function {function}, or who makes it forge messages, can raise any vector on any processor");
    /// The function needs ATS, with which it reaches memory that the unit has not checked.
    AtsRequired {
        /// The function.
        function: PciFunction,
    } = "ats-required", Resource::Function(function),
        ("function {function} needs ATS, with which it can pass the fence");

    /// There is no such singleton.
    SingletonMissing {
        /// Its number.
        number: u64,
    } = "singleton-missing", Resource::Singleton(number),
        ("the machine has no singleton {number}");
    /// The singleton is asked for more than once.
    SingletonTwice {
        /// Its number.
        number: u64,
    } = "singleton-twice", Resource::Singleton(number),
        ("singleton {number} is asked for more than once");
    /// The singleton is not the prime's to give.
    SingletonTaken {
        /// Its number.
        number: u64,
        /// Whose it is.
        owner: Owner,
    } = "singleton-taken", Resource::Singleton(number),
        ("singleton {number} belongs to {owner} and cannot be given away");

    /// Something runs short.
    Short {
        /// What.
        supply: Supply,
        /// How much is needed.
        need: u64,
        /// How much is left.
        left: u64,
    } = "short", Resource::Machine,
        ("{need} {} are needed and {left} are left", supply.name());
}

/// Everything that was found out about a request: what refuses it, and what is worth knowing.
///
/// Each list has an end. Where one was full, [`truncated`](Self::truncated) says so; a refusal is
/// never lost altogether, since the list that holds it is then full of others.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    refusals: Vec<Reason, { Self::CAPACITY }>,
    warnings: Vec<Reason, { Self::CAPACITY }>,
    truncated: bool,
}

impl Findings {
    /// The most refusals, and the most warnings, that are kept.
    pub const CAPACITY: usize = 48;

    /// Nothing found yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            refusals: Vec::new(),
            warnings: Vec::new(),
            truncated: false,
        }
    }

    /// What refuses the request.
    #[must_use]
    pub fn refusals(&self) -> &[Reason] {
        &self.refusals
    }

    /// What does not refuse it.
    #[must_use]
    pub fn warnings(&self) -> &[Reason] {
        &self.warnings
    }

    /// Whether there was more than the lists hold.
    #[must_use]
    pub const fn truncated(&self) -> bool {
        self.truncated
    }

    pub(super) fn clear(&mut self) {
        self.refusals.clear();
        self.warnings.clear();
        self.truncated = false;
    }

    pub(super) fn refuse(&mut self, reason: Reason) {
        if !self.refusals.contains(&reason) {
            self.truncated |= self.refusals.push(reason).is_err();
        }
    }

    pub(super) fn warn(&mut self, reason: Reason) {
        if !self.warnings.contains(&reason) {
            self.truncated |= self.warnings.push(reason).is_err();
        }
    }

    /// A warning, or a refusal where `strict`.
    pub(super) fn doubt(&mut self, strict: bool, reason: Reason) {
        if strict {
            self.refuse(reason);
        } else {
            self.warn(reason);
        }
    }
}

/// A request was refused; the [`Findings`] say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Refused {
    /// How many refusals are in the findings: at least one.
    pub refusals: usize,
    /// The first of them.
    pub first: Reason,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.refusals {
            0 | 1 => write!(f, "the request is refused: {}", self.first),
            more => write!(
                f,
                "the request is refused for {more} reasons: {}",
                self.first
            ),
        }
    }
}

impl core::error::Error for Refused {}
