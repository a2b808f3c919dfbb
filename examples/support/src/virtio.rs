//! Modern virtio over PCI: where a function's registers are, and how a device is brought up
//! (Virtual I/O Device 1.2, sections 3.1 and 4.1).

use core::fmt;

use baton_workload::Registers;
use baton_workload::queue::RingAddresses;
use handoff_abi::{PhysAddr, PhysRange};

use crate::clock;
use crate::mmio::Mmio;
use crate::pci::{Function, capability};

/// The vendor of all virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// The id of a modern network device.
pub const NET: u16 = 0x1041;
/// The id of a modern block device.
pub const BLOCK: u16 = 0x1042;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM: the device goes through the IOMMU.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// No MSI-X entry.
pub const NO_VECTOR: u16 = 0xffff;

/// Offsets in the common configuration (section 4.1.4.3).
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_VECTOR: usize = 0x10;
const DEVICE_STATUS: usize = 0x14;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFFSET: usize = 0x1e;
const QUEUE_DESCRIPTORS: usize = 0x20;
const QUEUE_AVAILABLE: usize = 0x28;
const QUEUE_USED: usize = 0x30;
const COMMON_LENGTH: usize = 0x38;

/// Bits of the device status (section 2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 64;
    pub(super) const FAILED: u8 = 128;
}

/// How long a device may take to reset, in microseconds.
const RESET: u64 = 1_000_000;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VirtioError {
    /// It has not the registers of a modern device: which structure is missing (section 4.1.4, type
    /// of the capability).
    Structure(u8),
    /// It did not finish its reset in time.
    Reset,
    /// It does not offer a feature that is needed.
    Feature(u64),
    /// It did not accept the features.
    FeaturesRefused(u64),
    /// It has no queue of this number, or one that is too small.
    Queue {
        /// The number.
        index: u16,
        /// The size that the device offers.
        offered: u16,
    },
    /// It has no MSI-X, or too few entries.
    Interrupts,
    /// It did not accept an MSI-X entry.
    Vector(u16),
    /// The workload's memory cannot be laid out.
    Memory,
    /// It did not answer in time.
    Timeout,
    /// It answered with an error: the status byte of a block request (section 5.2.6).
    Status(u8),
    /// It broke the rules of a ring.
    Ring,
}

impl fmt::Display for VirtioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Structure(kind) => write!(f, "the device has no structure of type {kind}"),
            Self::Reset => f.write_str("the device did not finish its reset"),
            Self::Feature(missing) => write!(f, "the device does not offer {missing:#x}"),
            Self::FeaturesRefused(features) => {
                write!(f, "the device did not accept {features:#x}")
            }
            Self::Queue { index, offered } => {
                write!(
                    f,
                    "the device offers {offered} descriptors in queue {index}"
                )
            }
            Self::Interrupts => f.write_str("the device has too few MSI-X entries"),
            Self::Vector(entry) => write!(f, "the device did not accept MSI-X entry {entry}"),
            Self::Memory => f.write_str("there is no room for the queues"),
            Self::Timeout => f.write_str("the device did not answer in time"),
            Self::Status(status) => write!(f, "the device answered with status {status}"),
            Self::Ring => f.write_str("the device broke the rules of a ring"),
        }
    }
}

impl core::error::Error for VirtioError {}

/// Where a function's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Common configuration.
    pub common: PhysRange,
    /// Notifications.
    pub notify: PhysRange,
    /// Bytes between the notification registers of two queues.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: PhysRange,
    /// Device configuration.
    pub device: PhysRange,
    /// The MSI-X table, and how many entries it has.
    pub msix: (PhysRange, u16),
}

impl Places {
    /// Reads the function's capabilities (section 4.1.4).
    ///
    /// # Errors
    /// Where a structure is missing.
    pub fn find(function: &Function) -> Result<Self, VirtioError> {
        let mut found = [None; 5];
        let mut multiplier = 0;
        for (id, at) in function.capabilities() {
            let config = function.config();
            if id != capability::VENDOR || at > 0xec {
                continue;
            }
            let kind = config.read8(at + 3);
            let bar = function
                .bar(usize::from(config.read8(at + 4)))
                .filter(|bar| bar.memory);
            let (offset, length) = (config.read32(at + 8), config.read32(at + 12));
            let range = bar.and_then(|bar| {
                let base = bar.address.checked_add(u64::from(offset))?;
                PhysRange::new(base, u64::from(length)).ok()
            });
            // Of several of one kind the first is to be preferred.
            if let (Some(slot @ None), Some(range)) = (found.get_mut(usize::from(kind)), range) {
                *slot = Some(range);
                if kind == 2 {
                    multiplier = config.read32(at + 16);
                }
            }
        }
        let [_, common, notify, isr, device] = found;
        let (table, entries) = function.msix_table().ok_or(VirtioError::Interrupts)?;
        Ok(Self {
            common: common
                .filter(|range| range.length() >= COMMON_LENGTH as u64)
                .ok_or(VirtioError::Structure(1))?,
            notify: notify.ok_or(VirtioError::Structure(2))?,
            notify_multiplier: multiplier,
            isr: isr.ok_or(VirtioError::Structure(3))?,
            device: device.ok_or(VirtioError::Structure(4))?,
            msix: (
                PhysRange::new(table, u64::from(entries) * 16)
                    .map_err(|_| VirtioError::Interrupts)?,
                entries,
            ),
        })
    }

    /// Where the registers are, to hold a workload's record against.
    #[must_use]
    pub const fn registers(&self) -> Registers {
        const fn bounds(range: PhysRange) -> core::ops::Range<u64> {
            range.base().0..range.end().0
        }
        Registers {
            common: bounds(self.common),
            isr: bounds(self.isr),
            device: bounds(self.device),
            notify: bounds(self.notify),
            msix_table: bounds(self.msix.0),
            msix_entries: self.msix.1 as u32,
        }
    }

    /// What has to be mapped into the window, uncached, before the device is used.
    #[must_use]
    pub const fn windows(&self) -> [PhysRange; 5] {
        [self.common, self.notify, self.isr, self.device, self.msix.0]
    }
}

/// A device's registers.
#[derive(Debug)]
pub struct Transport {
    places: Places,
    common: Mmio,
    device: Mmio,
}

impl Transport {
    /// The device with its registers there. Touches nothing.
    ///
    /// # Safety
    /// [`Places::find`] found them, and the window maps [`Places::windows`] uncached for as long as
    /// the value is used.
    #[must_use]
    pub unsafe fn new(places: Places) -> Self {
        // SAFETY: the caller's promise.
        let common = unsafe { Mmio::new(places.common.base(), COMMON_LENGTH) };
        // SAFETY: the caller's promise.
        let device = unsafe { Mmio::new(places.device.base(), places.device.length() as usize) };
        Self {
            places,
            common,
            device,
        }
    }

    /// Where its registers are.
    #[must_use]
    pub const fn places(&self) -> &Places {
        &self.places
    }

    /// The device configuration.
    #[must_use]
    pub const fn device(&self) -> &Mmio {
        &self.device
    }

    /// Resets the device, and negotiates features: all of `needed`, and those of `wanted` that it
    /// offers. Says which were agreed on.
    ///
    /// # Errors
    /// [`VirtioError`].
    pub fn begin(&self, needed: u64, wanted: u64) -> Result<u64, VirtioError> {
        let common = &self.common;
        common.write8(DEVICE_STATUS, 0);
        if !clock::wait_until(RESET, || common.read8(DEVICE_STATUS) == 0) {
            return Err(VirtioError::Reset);
        }
        common.write8(DEVICE_STATUS, status::ACKNOWLEDGE);
        common.write8(DEVICE_STATUS, status::ACKNOWLEDGE | status::DRIVER);
        common.write32(DEVICE_FEATURE_SELECT, 0);
        let low = common.read32(DEVICE_FEATURE);
        common.write32(DEVICE_FEATURE_SELECT, 1);
        let offered = u64::from(low) | u64::from(common.read32(DEVICE_FEATURE)) << 32;
        let missing = needed & !offered;
        if missing != 0 {
            common.write8(DEVICE_STATUS, status::FAILED);
            return Err(VirtioError::Feature(missing));
        }
        let agreed = needed | wanted & offered;
        common.write32(DRIVER_FEATURE_SELECT, 0);
        common.write32(DRIVER_FEATURE, agreed as u32);
        common.write32(DRIVER_FEATURE_SELECT, 1);
        common.write32(DRIVER_FEATURE, (agreed >> 32) as u32);
        let features_ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        common.write8(DEVICE_STATUS, features_ok);
        if common.read8(DEVICE_STATUS) & status::FEATURES_OK == 0 {
            common.write8(DEVICE_STATUS, status::FAILED);
            return Err(VirtioError::FeaturesRefused(agreed));
        }
        common.write16(CONFIG_VECTOR, NO_VECTOR);
        Ok(agreed)
    }

    /// Sets up queue `index` and says where it is notified. `entry` is the MSI-X entry it is to
    /// use, or [`NO_VECTOR`].
    ///
    /// # Errors
    /// [`VirtioError`].
    pub fn set_queue(
        &self,
        index: u16,
        size: u16,
        addresses: &RingAddresses,
        entry: u16,
    ) -> Result<PhysAddr, VirtioError> {
        let common = &self.common;
        common.write16(QUEUE_SELECT, index);
        let offered = common.read16(QUEUE_SIZE);
        if offered < size {
            return Err(VirtioError::Queue { index, offered });
        }
        common.write16(QUEUE_SIZE, size);
        common.write16(QUEUE_VECTOR, entry);
        if common.read16(QUEUE_VECTOR) != entry {
            return Err(VirtioError::Vector(entry));
        }
        for (register, address) in [
            (QUEUE_DESCRIPTORS, addresses.descriptors),
            (QUEUE_AVAILABLE, addresses.available),
            (QUEUE_USED, addresses.used),
        ] {
            // 64-bit fields are written as two halves (section 4.1.3.1).
            common.write32(register, address as u32);
            common.write32(register + 4, (address >> 32) as u32);
        }
        let offset = u64::from(common.read16(QUEUE_NOTIFY_OFFSET))
            * u64::from(self.places.notify_multiplier);
        if offset + 2 > self.places.notify.length() {
            return Err(VirtioError::Structure(2));
        }
        common.write16(QUEUE_ENABLE, 1);
        Ok(PhysAddr(self.places.notify.base().0 + offset))
    }

    /// Sets DRIVER_OK: the device works from now on.
    pub fn finish(&self) {
        let status = self.common.read8(DEVICE_STATUS);
        self.common
            .write8(DEVICE_STATUS, status | status::DRIVER_OK);
    }

    /// Whether the device works: DRIVER_OK, and no need for a reset. Writes nothing.
    #[must_use]
    pub fn is_working(&self) -> bool {
        let status = self.common.read8(DEVICE_STATUS);
        status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == status::DRIVER_OK
    }

    /// Where the device believes queue `index` to be. Writes nothing but the number of the queue
    /// that is looked at, so whoever owns the device must not be setting it up meanwhile.
    #[must_use]
    pub fn queue_addresses(&self, index: u16) -> RingAddresses {
        let common = &self.common;
        common.write16(QUEUE_SELECT, index);
        let read = |register: usize| {
            u64::from(common.read32(register)) | u64::from(common.read32(register + 4)) << 32
        };
        RingAddresses {
            descriptors: read(QUEUE_DESCRIPTORS),
            available: read(QUEUE_AVAILABLE),
            used: read(QUEUE_USED),
        }
    }
}
