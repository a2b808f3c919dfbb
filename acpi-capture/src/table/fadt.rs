//! Fixed ACPI Description Table (ACPI 6.5, section 5.2.9).

use core::mem::offset_of;

use bitflags::bitflags;
use handoff_abi::PhysAddr;

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

/// Start and end of a field.
macro_rules! fields {
    ($($field:ident : $type:ty),* $(,)?) => {
        [$((
            offset_of!(FadtRaw, $field),
            // No field is near the end of the address space.
            offset_of!(FadtRaw, $field).wrapping_add(size_of::<$type>()),
        )),*]
    };
}

/// The fields of more than one byte that have accessors.
const FIELDS: [(usize, usize); 25] = fields! {
    sci_interrupt: u16,
    smi_command: u32,
    pm1a_event: u32,
    pm1b_event: u32,
    pm1a_control: u32,
    pm1b_control: u32,
    pm2_control: u32,
    pm_timer: u32,
    gpe0: u32,
    gpe1: u32,
    boot_architecture: u16,
    flags: u32,
    reset_register: GasRaw,
    x_firmware_control: u64,
    x_dsdt: u64,
    x_pm1a_event: GasRaw,
    x_pm1b_event: GasRaw,
    x_pm1a_control: GasRaw,
    x_pm1b_control: GasRaw,
    x_pm2_control: GasRaw,
    x_pm_timer: GasRaw,
    x_gpe0: GasRaw,
    x_gpe1: GasRaw,
    sleep_control: GasRaw,
    sleep_status: GasRaw,
};

/// A register block of the ACPI hardware interface (ACPI 6.5, section 4.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum FadtBlock {
    /// `PM1a_EVT_BLK`.
    Pm1aEvent,
    /// `PM1b_EVT_BLK`.
    Pm1bEvent,
    /// `PM1a_CNT_BLK`.
    Pm1aControl,
    /// `PM1b_CNT_BLK`.
    Pm1bControl,
    /// `PM2_CNT_BLK`.
    Pm2Control,
    /// `PM_TMR_BLK`.
    PmTimer,
    /// `GPE0_BLK`.
    Gpe0,
    /// `GPE1_BLK`.
    Gpe1,
    /// `SLEEP_CONTROL_REG`.
    SleepControl,
    /// `SLEEP_STATUS_REG`.
    SleepStatus,
}

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
        let raw = zerocopy::transmute!(whole);
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

    /// The FACS, or zero: by its 64-bit address, where there is one. Real tables have both, and not
    /// always the same.
    #[must_use]
    pub fn facs(&self) -> PhysAddr {
        match self.facs_64() {
            PhysAddr(0) => self.facs_32(),
            address => address,
        }
    }

    /// The DSDT, or zero: by its 64-bit address, where there is one.
    #[must_use]
    pub fn dsdt(&self) -> PhysAddr {
        match self.dsdt_64() {
            PhysAddr(0) => self.dsdt_32(),
            address => address,
        }
    }

    /// What the machine is for: 1 a desktop, 2 a mobile, 4 an enterprise server, and others.
    #[must_use]
    pub fn preferred_profile(&self) -> u8 {
        self.raw.preferred_profile
    }

    /// The version of the specification that the table says it follows: major, minor.
    #[must_use]
    pub fn version(&self) -> (u8, u8) {
        (self.sdt.revision(), self.raw.minor_version & 0xf)
    }

    /// A register block: by its extended address, where there is one, else by its port; `None`
    /// where the table has neither.
    #[must_use]
    pub fn block(&self, block: FadtBlock) -> Option<GenericAddress> {
        let raw = &self.raw;
        let (extended, port, length) = match block {
            FadtBlock::Pm1aEvent => (raw.x_pm1a_event, raw.pm1a_event, raw.pm1_event_length),
            FadtBlock::Pm1bEvent => (raw.x_pm1b_event, raw.pm1b_event, raw.pm1_event_length),
            FadtBlock::Pm1aControl => {
                (raw.x_pm1a_control, raw.pm1a_control, raw.pm1_control_length)
            }
            FadtBlock::Pm1bControl => {
                (raw.x_pm1b_control, raw.pm1b_control, raw.pm1_control_length)
            }
            FadtBlock::Pm2Control => (raw.x_pm2_control, raw.pm2_control, raw.pm2_control_length),
            FadtBlock::PmTimer => (raw.x_pm_timer, raw.pm_timer, raw.pm_timer_length),
            FadtBlock::Gpe0 => (raw.x_gpe0, raw.gpe0, raw.gpe0_length),
            FadtBlock::Gpe1 => (raw.x_gpe1, raw.gpe1, raw.gpe1_length),
            FadtBlock::SleepControl => (raw.sleep_control, 0.into(), 0),
            FadtBlock::SleepStatus => (raw.sleep_status, 0.into(), 0),
        };
        if extended.address.get() != 0 {
            return Some(extended.into());
        }
        (port.get() != 0).then(|| GenericAddress {
            space: 1,
            bit_width: length.saturating_mul(8),
            bit_offset: 0,
            access_size: 0,
            address: u64::from(port.get()),
        })
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
