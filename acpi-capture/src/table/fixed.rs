//! Small tables of one fixed structure: BGRT, TPM2, WAET, ECDT.

use bitflags::bitflags;
use handoff_abi::{PhysAddr, PhysRange};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::fadt::GenericAddress;
use super::raw::{BgrtRaw, EcdtRaw, Tpm2Raw, WaetRaw};
use super::{Sdt, Signature, TableError};

/// The picture that firmware left on the screen (ACPI 6.5, section 5.2.23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Bgrt {
    /// 1.
    pub version: u16,
    /// Whether it is on the screen now.
    pub displayed: bool,
    /// By how many degrees it is turned clockwise: 0, 90, 180 or 270.
    pub turned: u16,
    /// 0: a bitmap.
    pub image_type: u8,
    /// The picture.
    pub image: PhysAddr,
    /// Pixels from the left edge of the screen.
    pub offset_x: u32,
    /// Pixels from its upper edge.
    pub offset_y: u32,
}

impl Bgrt {
    /// Reads the table.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Reads the table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'_>) -> Result<Self, TableError> {
        let raw: BgrtRaw = sdt.fixed(Signature::BGRT)?;
        Ok(Self {
            version: raw.version.get(),
            displayed: raw.status & 1 != 0,
            turned: u16::from(raw.status >> 1 & 3).saturating_mul(90),
            image_type: raw.image_type,
            image: PhysAddr(raw.image.get()),
            offset_x: raw.offset_x.get(),
            offset_y: raw.offset_y.get(),
        })
    }
}

/// The Trusted Platform Module (TCG ACPI Specification 1.3, section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Tpm2 {
    /// 0 a client, 1 a server.
    pub platform_class: u16,
    /// The control area, or zero.
    pub control_area: PhysAddr,
    /// How a command is started: 6 memory-mapped (TIS), 7 command response buffer, and others.
    pub start_method: u32,
    /// The log of what firmware measured; `None` where the table ends before it, or says none.
    pub log: Option<PhysRange>,
}

impl Tpm2 {
    /// Where the length and the address of the log are, after the parameters of the start method.
    const LOG: usize = 64;

    /// Reads the table.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Reads the table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'_>) -> Result<Self, TableError> {
        let raw: Tpm2Raw = sdt.fixed(Signature::TPM2)?;
        let log = U32::read_from_prefix(sdt.tail(Self::LOG))
            .ok()
            .and_then(|(length, rest)| {
                let (address, _) = U64::read_from_prefix(rest).ok()?;
                PhysRange::new(PhysAddr(address.get()), u64::from(length.get())).ok()
            });
        Ok(Self {
            platform_class: raw.platform_class.get(),
            control_area: PhysAddr(raw.control_area.get()),
            start_method: raw.start_method.get(),
            log: log.filter(|log| log.base().0 != 0 && !log.is_empty()),
        })
    }
}

bitflags! {
    /// Which emulated devices behave better than real ones (Windows ACPI Emulated Devices Table).
    /// Unnamed bits are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Waet: u32 {
        /// The clock needs no reading after an interrupt.
        const RTC_GOOD = 1;
        /// One reading of the power management timer is enough.
        const PM_TIMER_GOOD = 1 << 1;
        const _ = !0;
    }
}

impl Waet {
    /// Reads the table.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Reads the table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'_>) -> Result<Self, TableError> {
        let raw: WaetRaw = sdt.fixed(Signature::WAET)?;
        Ok(Self::from_bits_retain(raw.flags.get()))
    }
}

/// The embedded controller, for use before the namespace is read (ACPI 6.5, section 5.2.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecdt<'a> {
    /// Its command and status register.
    pub control: GenericAddress,
    /// Its data register.
    pub data: GenericAddress,
    /// Its `_UID`.
    pub uid: u32,
    /// The bit of the general purpose event it raises.
    pub gpe_bit: u8,
    /// Its path in the namespace, up to a NUL. Any bytes.
    pub path: &'a [u8],
}

impl<'a> Ecdt<'a> {
    /// Reads the table.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Reads the table.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw: EcdtRaw = sdt.fixed(Signature::ECDT)?;
        let path = sdt.tail(size_of::<EcdtRaw>());
        Ok(Self {
            control: raw.control.into(),
            data: raw.data.into(),
            uid: raw.uid.get(),
            gpe_bit: raw.gpe_bit,
            path: path.split(|&byte| byte == 0).next().unwrap_or(path),
        })
    }
}
