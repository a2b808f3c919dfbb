//! Fixed ACPI Description Table (ACPI 6.5, section 5.2.9).

use core::mem::offset_of;

use bitflags::bitflags;
use handoff_abi::PhysAddr;
use zerocopy::FromBytes;

use super::raw::{FadtRaw, GasRaw};
use super::{Sdt, Signature, TableError};

bitflags! {
    /// Fixed feature flags (ACPI 6.5, table 5.10). Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FadtFlags: u32 {
        /// `WBINVD` works.
        const WBINVD = 1;
        /// C1 is supported on every processor.
        const PROC_C1 = 1 << 2;
        /// The power button is not a fixed feature.
        const PWR_BUTTON = 1 << 4;
        /// The sleep button is not a fixed feature.
        const SLP_BUTTON = 1 << 5;
        /// The reset register works.
        const RESET_REG_SUP = 1 << 10;
        /// There is neither screen nor keyboard.
        const HEADLESS = 1 << 12;
        /// Local APICs must be used in clustered logical mode.
        const FORCE_APIC_CLUSTER_MODEL = 1 << 18;
        /// Local APICs must be used in physical destination mode.
        const FORCE_APIC_PHYSICAL_DESTINATION_MODE = 1 << 19;
        /// There is no ACPI hardware interface.
        const HW_REDUCED_ACPI = 1 << 20;
        const _ = !0;
    }
}

bitflags! {
    /// IA-PC boot architecture flags (ACPI 6.5, table 5.11). Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BootArchitecture: u16 {
        /// There are devices on an LPC or ISA bus.
        const LEGACY_DEVICES = 1;
        /// There is a keyboard controller at ports 0x60 and 0x64.
        const KEYBOARD_8042 = 1 << 1;
        /// VGA must not be probed.
        const VGA_NOT_PRESENT = 1 << 2;
        /// Message signalled interrupts must not be used.
        const MSI_NOT_SUPPORTED = 1 << 3;
        /// ASPM must not be touched.
        const PCIE_ASPM_CONTROLS = 1 << 4;
        /// There is no CMOS clock.
        const CMOS_RTC_NOT_PRESENT = 1 << 5;
        const _ = !0;
    }
}

/// Generic Address Structure: a register in some address space (ACPI 6.5, section 5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GenericAddress {
    /// 0 system memory, 1 system I/O, 2 PCI configuration space, others as in the specification.
    pub space: u8,
    /// Width of the register in bits.
    pub bit_width: u8,
    /// First bit of the register.
    pub bit_offset: u8,
    /// 0 undefined, 1 byte, 2 word, 3 double word, 4 quad word.
    pub access_size: u8,
    /// Address in that space.
    pub address: u64,
}

impl From<GasRaw> for GenericAddress {
    fn from(raw: GasRaw) -> Self {
        Self {
            space: raw.space,
            bit_width: raw.bit_width,
            bit_offset: raw.bit_offset,
            access_size: raw.access_size,
            address: raw.address.get(),
        }
    }
}

/// Start and end of the fields of more than one byte that have accessors.
const FIELDS: [(usize, usize); 9] = [
    (
        offset_of!(FadtRaw, sci_interrupt),
        offset_of!(FadtRaw, smi_command),
    ),
    (
        offset_of!(FadtRaw, smi_command),
        offset_of!(FadtRaw, acpi_enable),
    ),
    (
        offset_of!(FadtRaw, pm1a_control),
        offset_of!(FadtRaw, pm1b_control),
    ),
    (offset_of!(FadtRaw, pm_timer), offset_of!(FadtRaw, gpe0)),
    (
        offset_of!(FadtRaw, boot_architecture),
        offset_of!(FadtRaw, reserved),
    ),
    (
        offset_of!(FadtRaw, flags),
        offset_of!(FadtRaw, reset_register),
    ),
    (
        offset_of!(FadtRaw, reset_register),
        offset_of!(FadtRaw, reset_value),
    ),
    (
        offset_of!(FadtRaw, x_firmware_control),
        offset_of!(FadtRaw, x_dsdt),
    ),
    (
        offset_of!(FadtRaw, x_dsdt),
        offset_of!(FadtRaw, x_pm1a_event),
    ),
];

/// Fixed ACPI Description Table, of any revision.
///
/// The length of the table decides which fields there are, not its revision: real tables have
/// both in every combination. A field that is not there, or not whole, reads as zero.
#[derive(Clone, Copy)]
pub struct Fadt<'a> {
    sdt: Sdt<'a>,
    raw: FadtRaw,
}

impl<'a> Fadt<'a> {
    /// The least length: up to and with `DSDT`.
    const LEAST: usize = 44;

    /// Views `bytes` as a FADT.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a FADT.
    ///
    /// # Errors
    /// Where it is none.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let sdt = sdt.expect(Signature::FADT, Self::LEAST)?;
        let have = sdt.bytes().len();
        // Half a field is no field.
        let whole_fields = FIELDS
            .iter()
            .find(|&&(start, end)| start < have && have < end)
            .map_or(have, |&(start, _)| start);
        let mut whole = [0; size_of::<FadtRaw>()];
        for (to, &from) in whole.iter_mut().zip(sdt.bytes().iter().take(whole_fields)) {
            *to = from;
        }
        let Ok(raw) = FadtRaw::read_from_bytes(&whole) else {
            return Err(TableError::Truncated {
                table: Signature::FADT,
                needed: size_of::<FadtRaw>(),
                have,
            });
        };
        Ok(Self { sdt, raw })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// `FIRMWARE_CTRL`: the FACS by its 32-bit address, or zero.
    #[must_use]
    pub fn facs_32(&self) -> PhysAddr {
        PhysAddr(u64::from(self.raw.firmware_control.get()))
    }

    /// `X_FIRMWARE_CTRL`: the FACS by its 64-bit address, or zero.
    #[must_use]
    pub fn facs_64(&self) -> PhysAddr {
        PhysAddr(self.raw.x_firmware_control.get())
    }

    /// `DSDT`: the DSDT by its 32-bit address, or zero.
    #[must_use]
    pub fn dsdt_32(&self) -> PhysAddr {
        PhysAddr(u64::from(self.raw.dsdt.get()))
    }

    /// `X_DSDT`: the DSDT by its 64-bit address, or zero.
    #[must_use]
    pub fn dsdt_64(&self) -> PhysAddr {
        PhysAddr(self.raw.x_dsdt.get())
    }

    /// The interrupt of the system control interrupt.
    #[must_use]
    pub fn sci_interrupt(&self) -> u16 {
        self.raw.sci_interrupt.get()
    }

    /// The port of the system management command register, or zero.
    #[must_use]
    pub fn smi_command(&self) -> u32 {
        self.raw.smi_command.get()
    }

    /// What is written to [`smi_command`](Self::smi_command) to enable ACPI.
    #[must_use]
    pub fn acpi_enable(&self) -> u8 {
        self.raw.acpi_enable
    }

    /// The port of the PM1a control register block, or zero.
    #[must_use]
    pub fn pm1a_control(&self) -> u32 {
        self.raw.pm1a_control.get()
    }

    /// The port of the power management timer, or zero. It counts at 3.579545 MHz.
    #[must_use]
    pub fn pm_timer(&self) -> u32 {
        self.raw.pm_timer.get()
    }

    /// IA-PC boot architecture flags.
    #[must_use]
    pub fn boot_architecture(&self) -> BootArchitecture {
        BootArchitecture::from_bits_retain(self.raw.boot_architecture.get())
    }

    /// Fixed feature flags.
    #[must_use]
    pub fn flags(&self) -> FadtFlags {
        FadtFlags::from_bits_retain(self.raw.flags.get())
    }

    /// The reset register and the value to write there; `None` where the flags do not offer it or
    /// the table ends before.
    #[must_use]
    pub fn reset(&self) -> Option<(GenericAddress, u8)> {
        let has_fields = self.sdt.bytes().len() > offset_of!(FadtRaw, reset_value);
        (has_fields && self.flags().contains(FadtFlags::RESET_REG_SUP))
            .then(|| (self.raw.reset_register.into(), self.raw.reset_value))
    }
}
