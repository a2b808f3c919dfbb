//! Multiple APIC Description Table (ACPI 6.5, section 5.2.12).

use bitflags::bitflags;
use handoff_abi::{ApicId, PhysAddr};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::entry::{EntryError, FieldWidth, RawEntries, RawEntry};
use super::raw::{
    IoApicRaw, IoSapicRaw, LocalApicNmiRaw, LocalApicOverrideRaw, LocalApicRaw, LocalSapicRaw,
    LocalX2ApicNmiRaw, LocalX2ApicRaw, MadtRaw, NmiSourceRaw, PlatformInterruptRaw,
    SourceOverrideRaw, WakeupRaw,
};
use super::{Sdt, Signature, TableError};

/// Type fields of the entries (ACPI 6.5, table 5.20).
pub(crate) mod kind {
    pub(crate) const LOCAL_APIC: u8 = 0;
    pub(crate) const IO_APIC: u8 = 1;
    pub(crate) const SOURCE_OVERRIDE: u8 = 2;
    pub(crate) const NMI_SOURCE: u8 = 3;
    pub(crate) const LOCAL_APIC_NMI: u8 = 4;
    pub(crate) const LOCAL_APIC_OVERRIDE: u8 = 5;
    pub(crate) const IO_SAPIC: u8 = 6;
    pub(crate) const LOCAL_SAPIC: u8 = 7;
    pub(crate) const PLATFORM_INTERRUPT: u8 = 8;
    pub(crate) const LOCAL_X2APIC: u8 = 9;
    pub(crate) const LOCAL_X2APIC_NMI: u8 = 0xa;
    pub(crate) const WAKEUP: u8 = 0x10;

    /// The unique id that stands for all processors in a type 4 entry.
    pub(crate) const ALL_PROCESSORS_BYTE: u8 = 0xff;
    /// The unique id that stands for all processors in a type 0Ah entry.
    pub(crate) const ALL_PROCESSORS: u32 = 0xffff_ffff;
}

bitflags! {
    /// The table's own flags (ACPI 6.5, table 5.19). Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MadtFlags: u32 {
        /// There is a pair of 8259 interrupt controllers too.
        const PCAT_COMPAT = 1;
        const _ = !0;
    }
}

bitflags! {
    /// Local APIC flags (ACPI 6.5, table 5.22). Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ProcessorFlags: u32 {
        /// The processor is ready for use.
        const ENABLED = 1;
        /// It is not, but can be brought in at run time.
        const ONLINE_CAPABLE = 2;
        const _ = !0;
    }
}

/// A processor: an entry of type 0 or 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApic {
    /// Its local APIC id.
    pub apic_id: ApicId,
    /// Its unique id, the one its device object in the namespace has.
    pub uid: u32,
    /// Whether it may be used.
    pub flags: ProcessorFlags,
    /// Whether the entry is of type 9 (x2APIC), which holds ids of 32 bits.
    pub x2apic: bool,
}

/// An I/O APIC: an entry of type 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub address: PhysAddr,
    /// The global system interrupt of its first input.
    pub interrupt_base: u32,
}

/// Where an ISA interrupt really goes: an entry of type 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SourceOverride {
    /// The bus: 0, ISA.
    pub bus: u8,
    /// The interrupt on that bus.
    pub source: u8,
    /// The global system interrupt.
    pub interrupt: u32,
    /// Polarity in bits 1:0, trigger mode in 3:2 (ACPI 6.5, table 5.26).
    pub flags: u16,
}

/// A global system interrupt that is an NMI: an entry of type 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NmiSource {
    /// Polarity in bits 1:0, trigger mode in 3:2.
    pub flags: u16,
    /// The global system interrupt.
    pub interrupt: u32,
}

/// Whose local interrupt pin an NMI comes in at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NmiTarget {
    /// Every processor's.
    All,
    /// That of the processor with this unique id.
    Processor(u32),
}

/// A local interrupt pin that is an NMI: an entry of type 4 or 0Ah.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LocalApicNmi {
    /// Whose.
    pub target: NmiTarget,
    /// Polarity in bits 1:0, trigger mode in 3:2.
    pub flags: u16,
    /// The pin: `LINT0` or `LINT1`.
    pub lint: u8,
    /// Whether the entry is of type 0Ah (x2APIC).
    pub x2apic: bool,
}

/// Where processors wait to be started without INIT: an entry of type 10h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct WakeupMailbox {
    /// Version of the mailbox.
    pub version: u16,
    /// The mailbox: one page.
    pub mailbox: PhysAddr,
    /// From version 1 on: where a processor is sent that goes back to waiting.
    pub reset_vector: Option<PhysAddr>,
}

/// An interrupt controller of Itanium: an entry of type 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IoSapic {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub address: PhysAddr,
    /// The global system interrupt of its first input.
    pub interrupt_base: u32,
}

/// A processor of Itanium: an entry of type 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalSapic<'a> {
    /// The id its processor object has.
    pub processor: u8,
    /// Its local SAPIC id.
    pub id: u8,
    /// Its local SAPIC EID.
    pub eid: u8,
    /// Whether it may be used.
    pub flags: ProcessorFlags,
    /// Its unique id as a number.
    pub uid: u32,
    /// Its unique id as a string, up to a NUL. Any bytes.
    pub uid_text: &'a [u8],
}

/// A platform interrupt of Itanium: an entry of type 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PlatformInterrupt {
    /// Polarity in bits 1:0, trigger mode in 3:2.
    pub flags: u16,
    /// 1 PMI, 2 INIT, 3 corrected platform error.
    pub kind: u8,
    /// The processor it goes to: id and EID.
    pub processor: (u8, u8),
    /// Its I/O SAPIC vector.
    pub vector: u8,
    /// The global system interrupt.
    pub interrupt: u32,
    /// Bit 0: the processor is only a hint.
    pub platform_flags: u32,
}

/// What an entry is that describes a machine of another architecture. Such an entry is in no table
/// of an x86-64 machine, so its content is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ForeignController {
    /// Type 0Bh: GIC CPU interface (Arm).
    Gicc,
    /// Type 0Ch: GIC distributor (Arm).
    Gicd,
    /// Type 0Dh: GIC MSI frame (Arm).
    GicMsiFrame,
    /// Type 0Eh: GIC redistributor (Arm).
    Gicr,
    /// Type 0Fh: GIC interrupt translation service (Arm).
    GicIts,
    /// Type 11h: core interrupt controller (LoongArch).
    CorePic,
    /// Type 12h: legacy I/O interrupt controller (LoongArch).
    LegacyIoPic,
    /// Type 13h: HyperTransport interrupt controller (LoongArch).
    HtPic,
    /// Type 14h: extended I/O interrupt controller (LoongArch).
    ExtendedIoPic,
    /// Type 15h: MSI interrupt controller (LoongArch).
    MsiPic,
    /// Type 16h: bridge I/O interrupt controller (LoongArch).
    BridgeIoPic,
    /// Type 17h: LPC interrupt controller (LoongArch).
    LpcPic,
    /// Type 18h: hart-local interrupt controller (RISC-V).
    Rintc,
    /// Type 19h: incoming MSI controller (RISC-V).
    Imsic,
    /// Type 1Ah: advanced platform-level interrupt controller (RISC-V).
    Aplic,
    /// Type 1Bh: platform-level interrupt controller (RISC-V).
    Plic,
}

impl ForeignController {
    const fn from_kind(kind: u8) -> Option<Self> {
        Some(match kind {
            0xb => Self::Gicc,
            0xc => Self::Gicd,
            0xd => Self::GicMsiFrame,
            0xe => Self::Gicr,
            0xf => Self::GicIts,
            0x11 => Self::CorePic,
            0x12 => Self::LegacyIoPic,
            0x13 => Self::HtPic,
            0x14 => Self::ExtendedIoPic,
            0x15 => Self::MsiPic,
            0x16 => Self::BridgeIoPic,
            0x17 => Self::LpcPic,
            0x18 => Self::Rintc,
            0x19 => Self::Imsic,
            0x1a => Self::Aplic,
            0x1b => Self::Plic,
            _ => return None,
        })
    }
}

/// An entry of the MADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MadtEntry<'a> {
    /// Type 0 or 9: a processor.
    LocalApic(LocalApic),
    /// Type 1: an I/O APIC.
    IoApic(IoApic),
    /// Type 2: an interrupt source override.
    SourceOverride(SourceOverride),
    /// Type 3: an NMI source.
    NmiSource(NmiSource),
    /// Type 4 or 0Ah: an NMI at a local interrupt pin.
    LocalApicNmi(LocalApicNmi),
    /// Type 5: the local APICs' registers, in place of the 32-bit address of the fixed part.
    LocalApicOverride(PhysAddr),
    /// Type 6: an I/O SAPIC.
    IoSapic(IoSapic),
    /// Type 7: a processor with a local SAPIC.
    LocalSapic(LocalSapic<'a>),
    /// Type 8: a platform interrupt source.
    PlatformInterrupt(PlatformInterrupt),
    /// Type 10h: the multiprocessor wakeup mailbox.
    Wakeup(WakeupMailbox),
    /// Types 0Bh to 0Fh and 11h to 1Bh: an interrupt controller of another architecture.
    Foreign(ForeignController, RawEntry<'a>),
    /// Any other type.
    Unknown(RawEntry<'a>),
}

/// The entries of a MADT, in order.
#[derive(Clone, Debug)]
pub struct MadtEntries<'a>(RawEntries<'a>);

impl<'a> Iterator for MadtEntries<'a> {
    type Item = Result<MadtEntry<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(decode))
    }
}

fn decode(entry: RawEntry<'_>) -> Result<MadtEntry<'_>, EntryError> {
    let table = Signature::MADT;
    Ok(match u8::try_from(entry.kind).unwrap_or(u8::MAX) {
        kind::LOCAL_APIC => {
            let raw: LocalApicRaw = entry.fixed(table)?;
            MadtEntry::LocalApic(LocalApic {
                apic_id: ApicId(u32::from(raw.apic_id)),
                uid: u32::from(raw.uid),
                flags: ProcessorFlags::from_bits_retain(raw.flags.get()),
                x2apic: false,
            })
        }
        kind::IO_APIC => {
            let raw: IoApicRaw = entry.fixed(table)?;
            MadtEntry::IoApic(IoApic {
                id: raw.id,
                address: PhysAddr(u64::from(raw.address.get())),
                interrupt_base: raw.interrupt_base.get(),
            })
        }
        kind::SOURCE_OVERRIDE => {
            let raw: SourceOverrideRaw = entry.fixed(table)?;
            MadtEntry::SourceOverride(SourceOverride {
                bus: raw.bus,
                source: raw.source,
                interrupt: raw.interrupt.get(),
                flags: raw.flags.get(),
            })
        }
        kind::NMI_SOURCE => {
            let raw: NmiSourceRaw = entry.fixed(table)?;
            MadtEntry::NmiSource(NmiSource {
                flags: raw.flags.get(),
                interrupt: raw.interrupt.get(),
            })
        }
        kind::LOCAL_APIC_NMI => {
            let raw: LocalApicNmiRaw = entry.fixed(table)?;
            MadtEntry::LocalApicNmi(LocalApicNmi {
                target: match raw.uid {
                    kind::ALL_PROCESSORS_BYTE => NmiTarget::All,
                    uid => NmiTarget::Processor(u32::from(uid)),
                },
                flags: raw.flags.get(),
                lint: raw.lint,
                x2apic: false,
            })
        }
        kind::LOCAL_APIC_OVERRIDE => {
            let raw: LocalApicOverrideRaw = entry.fixed(table)?;
            MadtEntry::LocalApicOverride(PhysAddr(raw.address.get()))
        }
        kind::LOCAL_X2APIC => {
            let raw: LocalX2ApicRaw = entry.fixed(table)?;
            MadtEntry::LocalApic(LocalApic {
                apic_id: ApicId(raw.apic_id.get()),
                uid: raw.uid.get(),
                flags: ProcessorFlags::from_bits_retain(raw.flags.get()),
                x2apic: true,
            })
        }
        kind::LOCAL_X2APIC_NMI => {
            let raw: LocalX2ApicNmiRaw = entry.fixed(table)?;
            MadtEntry::LocalApicNmi(LocalApicNmi {
                target: match raw.uid.get() {
                    kind::ALL_PROCESSORS => NmiTarget::All,
                    uid => NmiTarget::Processor(uid),
                },
                flags: raw.flags.get(),
                lint: raw.lint,
                x2apic: true,
            })
        }
        kind::WAKEUP => {
            let raw: WakeupRaw = entry.fixed(table)?;
            let reset_vector = U64::read_from_prefix(entry.after::<WakeupRaw>());
            MadtEntry::Wakeup(WakeupMailbox {
                version: raw.version.get(),
                mailbox: PhysAddr(raw.mailbox.get()),
                reset_vector: reset_vector
                    .ok()
                    .filter(|_| raw.version.get() >= 1)
                    .map(|(address, _)| PhysAddr(address.get())),
            })
        }
        kind::IO_SAPIC => {
            let raw: IoSapicRaw = entry.fixed(table)?;
            MadtEntry::IoSapic(IoSapic {
                id: raw.id,
                address: PhysAddr(raw.address.get()),
                interrupt_base: raw.interrupt_base.get(),
            })
        }
        kind::LOCAL_SAPIC => {
            let raw: LocalSapicRaw = entry.fixed(table)?;
            let text = entry.after::<LocalSapicRaw>();
            MadtEntry::LocalSapic(LocalSapic {
                processor: raw.processor,
                id: raw.sapic_id,
                eid: raw.sapic_eid,
                flags: ProcessorFlags::from_bits_retain(raw.flags.get()),
                uid: raw.uid.get(),
                uid_text: text.split(|&byte| byte == 0).next().unwrap_or(text),
            })
        }
        kind::PLATFORM_INTERRUPT => {
            let raw: PlatformInterruptRaw = entry.fixed(table)?;
            MadtEntry::PlatformInterrupt(PlatformInterrupt {
                flags: raw.flags.get(),
                kind: raw.interrupt_type,
                processor: (raw.processor, raw.processor_eid),
                vector: raw.vector,
                interrupt: raw.interrupt.get(),
                platform_flags: raw.platform_flags.get(),
            })
        }
        kind => match ForeignController::from_kind(kind) {
            Some(controller) => MadtEntry::Foreign(controller, entry),
            None => MadtEntry::Unknown(entry),
        },
    })
}

/// The MADT.
#[derive(Clone, Copy, Debug)]
pub struct Madt<'a> {
    sdt: Sdt<'a>,
    local_apic: u32,
    flags: MadtFlags,
}

/// Words of the filter for processors that were seen before.
const SEEN_WORDS: usize = 128;

/// How often a table is looked through again for an id that may have been there before.
const SEARCHES: usize = 2048;

fn enabled(entry: Result<MadtEntry<'_>, EntryError>) -> Option<LocalApic> {
    match entry {
        Ok(MadtEntry::LocalApic(cpu)) if cpu.flags.contains(ProcessorFlags::ENABLED) => Some(cpu),
        _ => None,
    }
}

/// The id of an enabled processor, and nothing else of the entry, for a look-up that may go through all of them.
fn enabled_id(entry: &RawEntry<'_>) -> Option<ApicId> {
    let (id, flags) = match (u8::try_from(entry.kind).ok()?, entry.bytes) {
        (kind::LOCAL_APIC, &[_, _, _, id, flags, _, _, _, ..]) => (u32::from(id), flags),
        (kind::LOCAL_X2APIC, &[_, _, _, _, a, b, c, d, flags, _, _, _, _, _, _, _, ..]) => {
            (u32::from_le_bytes([a, b, c, d]), flags)
        }
        _ => return None,
    };
    let flags = ProcessorFlags::from_bits_retain(flags.into());
    flags
        .contains(ProcessorFlags::ENABLED)
        .then_some(ApicId(id))
}

impl<'a> Madt<'a> {
    /// The most enabled entries that count. No x86-64 machine has as many; the limit bounds the
    /// time it takes to tell repeated ones.
    pub const MAX_PROCESSORS: usize = 8192;

    /// Views `bytes` as a MADT.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a MADT.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw: MadtRaw = sdt.fixed(Signature::MADT)?;
        Ok(Self {
            sdt,
            local_apic: raw.local_apic.get(),
            flags: MadtFlags::from_bits_retain(raw.flags.get()),
        })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// The table's own flags.
    #[must_use]
    pub fn flags(&self) -> MadtFlags {
        self.flags
    }

    /// The 32-bit address of the local APICs in the fixed part.
    #[must_use]
    pub fn local_apic_32(&self) -> PhysAddr {
        PhysAddr(u64::from(self.local_apic))
    }

    /// Where the local APICs' registers are: the override, if there is one, else the 32-bit
    /// address.
    #[must_use]
    pub fn local_apic(&self) -> PhysAddr {
        self.local_apic_override()
            .unwrap_or_else(|| self.local_apic_32())
    }

    /// The override of type 5.
    #[must_use]
    pub fn local_apic_override(&self) -> Option<PhysAddr> {
        self.entries().flatten().find_map(|entry| match entry {
            MadtEntry::LocalApicOverride(address) => Some(address),
            _ => None,
        })
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> MadtEntries<'a> {
        let offset = size_of::<MadtRaw>();
        MadtEntries(RawEntries::new(
            Signature::MADT,
            FieldWidth::Byte,
            offset,
            self.sdt.tail(offset),
        ))
    }

    /// The processors that are enabled, each APIC id once, in the table's order, at most
    /// [`MAX_PROCESSORS`](Self::MAX_PROCESSORS) of them. Firmware lists the boot processor first.
    /// Past some thousand repetitions, what looks like one more is taken for one.
    pub fn processors(&self) -> impl Iterator<Item = LocalApic> + use<'a> {
        let all = self.entries();
        // One bit for each id that may have come before, so that a table without repetitions is
        // read in one pass. Where the bit is set, the table is looked through again: there is no
        // memory to keep all ids in.
        let mut seen = [0_u64; SEEN_WORDS];
        let mut searches = 0_usize;
        let candidates = all.clone().filter_map(enabled);
        candidates
            .take(Self::MAX_PROCESSORS)
            .enumerate()
            .filter_map(move |(place, cpu)| {
                let id = usize::try_from(cpu.apic_id.0).unwrap_or(0);
                // Ids of large machines are sparse in their lower bits.
                let bit = (id ^ id >> 13) % (SEEN_WORDS * 64);
                let word = seen.get_mut(bit / 64)?;
                let mask = 1 << (bit % 64);
                if *word & mask == 0 {
                    *word |= mask;
                    return Some(cpu);
                }
                // Ids that are made to share their bits would make each of them cost a pass.
                searches = searches.saturating_add(1);
                if searches > SEARCHES {
                    return None;
                }
                let earlier = all.clone().0.flatten();
                let mut earlier = earlier.filter_map(|entry| enabled_id(&entry)).take(place);
                (!earlier.any(|other| other == cpu.apic_id)).then_some(cpu)
            })
    }

    /// The enabled processor with this APIC id.
    #[must_use]
    pub fn processor(&self, apic_id: ApicId) -> Option<LocalApic> {
        self.entries().flatten().find_map(|entry| match entry {
            MadtEntry::LocalApic(cpu)
                if cpu.apic_id == apic_id && cpu.flags.contains(ProcessorFlags::ENABLED) =>
            {
                Some(cpu)
            }
            _ => None,
        })
    }

    /// The I/O APICs, in the table's order.
    pub fn io_apics(&self) -> impl Iterator<Item = IoApic> + use<'a> {
        self.entries().flatten().filter_map(|entry| match entry {
            MadtEntry::IoApic(io_apic) => Some(io_apic),
            _ => None,
        })
    }
}
