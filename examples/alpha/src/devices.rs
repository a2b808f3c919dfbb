//! The devices of the demo machine: the network device that the workload owns.

use core::fmt;

use baton_support::net::{Address, Net};
use baton_support::paging::MapError;
use baton_support::pci::{self, Ecam};
use baton_support::service::Service;
use baton_support::virtio::{self, Places, VirtioError};
use baton_support::{cpu, mmio, println};
use baton_workload::memory::Memory;
use baton_workload::{Geometry, protocol};

use crate::machine::Machine;

/// The vector of the network device.
pub(crate) const NET_VECTOR: u8 = 0x50;

/// As QEMU's user network has it.
const ADDRESS: Address = Address {
    address: [10, 0, 2, 15],
    prefix: 24,
    gateway: Some([10, 0, 2, 2]),
    port: protocol::PORT,
};

/// Why there is no service.
#[derive(Debug)]
pub(crate) enum DeviceError {
    /// Firmware did not say where configuration space is.
    NoEcam,
    /// There is no network device.
    NoNet,
    /// There is no memory for the workload.
    NoMemory,
    /// Registers could not be mapped.
    Map(MapError),
    /// The device cannot be used.
    Virtio(VirtioError),
    /// The network stack does not take the configuration.
    Stack,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEcam => f.write_str("firmware does not say where configuration space is"),
            Self::NoNet => f.write_str("there is no network device"),
            Self::NoMemory => f.write_str("there is no memory for the workload"),
            Self::Map(error) => error.fmt(f),
            Self::Virtio(error) => error.fmt(f),
            Self::Stack => f.write_str("the network stack does not take the configuration"),
        }
    }
}

impl From<MapError> for DeviceError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<VirtioError> for DeviceError {
    fn from(error: VirtioError) -> Self {
        Self::Virtio(error)
    }
}

pub(crate) fn bring_up(machine: &mut Machine) -> Result<Service<'static>, DeviceError> {
    let (base, first, last) = machine.firmware.ecam.ok_or(DeviceError::NoEcam)?;
    let base = baton_support::PhysAddr(base);
    machine.map_device(Ecam::range(base, first, last))?;
    // SAFETY: just mapped, and MCFG says that it is there.
    let ecam = unsafe { Ecam::new(base, first, last) };
    let mut net = None;
    ecam.scan(0, &mut |function| {
        println!("pci {function}");
        if (function.vendor(), function.device()) == (virtio::VENDOR, virtio::NET) {
            net = Some(function.id());
        }
    });
    let function = net
        .and_then(|id| ecam.function(id))
        .ok_or(DeviceError::NoNet)?;
    let places = Places::find(&function)?;
    for window in places.windows() {
        machine.map_device(window)?;
    }

    let geometry = Geometry::DEMO;
    let room = geometry
        .length()
        .and_then(|length| machine.memory.take(length, 2 << 20, u64::MAX))
        .ok_or(DeviceError::NoMemory)?;
    // SAFETY: just taken out of free memory, which is in the window for good, and reached through
    // this value alone.
    let memory = unsafe { Memory::new(mmio::pointer(room.base()), room.length()) }
        .ok_or(DeviceError::NoMemory)?;
    // SAFETY: the windows are mapped for good; nobody else knows the device; and without an IOMMU
    // the memory is for the device where it is.
    let net = unsafe {
        Net::create(
            &function,
            places,
            &memory,
            room.base().0,
            &geometry,
            &ADDRESS,
            pci::message(cpu::apic_id(), NET_VECTOR),
        )
    }?;
    println!(
        "workload at {room}, network device {} at {:?}",
        function.id(),
        net.workload().network()
    );
    Service::new(net, b'a').ok_or(DeviceError::Stack)
}
