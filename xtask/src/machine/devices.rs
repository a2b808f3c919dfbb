//! The machine's devices: on the command line, or plugged while it runs.

use serde_json::{Map, Value};

/// The first PCI slot of a root port. Slot 1 stays free: an AMD IOMMU takes it.
const FIRST_SLOT: u32 = 2;

/// A device that copies memory and raises interrupts on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edu {
    /// Alone below a root port of its own.
    Alone,
    /// Two of them below one conventional bridge, so that they share its requester id.
    Pair,
}

/// A device as the emulator is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    driver: &'static str,
    properties: Vec<(&'static str, String)>,
}

impl Device {
    fn new(driver: &'static str, id: &str) -> Self {
        Self {
            driver,
            properties: Vec::new(),
        }
        .with("id", id)
    }

    fn on(driver: &'static str, id: &str, bus: &str) -> Self {
        Self::new(driver, id).with("bus", bus)
    }

    fn with(mut self, key: &'static str, value: &str) -> Self {
        self.properties.push((key, value.to_owned()));
        self
    }

    fn property(&self, key: &str) -> &str {
        let found = self.properties.iter().find(|(name, _)| *name == key);
        found.map_or("", |(_, value)| value)
    }

    /// The device that it lies below, where that is no bridge but has a bus of another kind.
    pub(super) fn parent(&self) -> Option<&str> {
        self.bus().strip_suffix(".0")
    }

    /// Its name.
    pub(super) fn id(&self) -> &str {
        self.property("id")
    }

    /// The name of the bridge that it lies below; empty for one on the root bus.
    pub(super) fn bus(&self) -> &str {
        self.property("bus")
    }

    /// As the argument of `-device`.
    pub(super) fn argument(&self) -> String {
        let mut argument = self.driver.to_owned();
        for (key, value) in &self.properties {
            argument.push_str(&format!(",{key}={value}"));
        }
        argument
    }

    /// As the arguments of `device_add`.
    pub(super) fn arguments(&self) -> Value {
        let mut arguments = Map::new();
        arguments.insert("driver".to_owned(), self.driver.into());
        for (key, value) in &self.properties {
            arguments.insert((*key).to_owned(), value.as_str().into());
        }
        Value::Object(arguments)
    }
}

/// The devices of a machine, in the order in which they have to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    /// Root ports.
    pub(super) ports: Vec<Device>,
    /// What is below them.
    pub(super) below: Vec<Device>,
}

impl Devices {
    /// The network device, the disk and `edu`. Where instructions are counted there is a second
    /// network device for the load. Where there is to be a Linux it has a network device, a disk and a
    /// console. What is below root ports is there at start, or comes `late`.
    pub(super) fn of(edu: &[Edu], counted: bool, linux: bool, late: bool) -> Self {
        let mut devices = Self::default();
        let port = devices.root_port();
        devices.network("nic", "net", &port, counted);
        let port = devices.root_port();
        devices
            .below
            .push(behind_iommu(Device::on("virtio-blk-pci", "blk", &port)).with("drive", "disk"));
        for (number, kind) in (1..).zip(edu) {
            let name = format!("edu{number}");
            match kind {
                Edu::Alone => {
                    let port = devices.root_port();
                    devices.below.push(copier(&name, &port));
                }
                Edu::Pair => {
                    let port = if late {
                        devices.root_port_with_room()
                    } else {
                        devices.root_port()
                    };
                    let bridge = format!("bridge{number}");
                    devices
                        .below
                        .push(Device::on("pcie-pci-bridge", &bridge, &port));
                    for (half, slot) in [("a", "1"), ("b", "2")] {
                        let device = copier(&format!("{name}{half}"), &bridge);
                        devices.below.push(device.with("addr", slot));
                    }
                }
            }
        }
        if counted {
            let port = devices.root_port();
            devices.network("load", "load", &port, counted);
        }
        if linux {
            devices.of_linux();
        }
        devices
    }

    /// With one queue, interrupts of the disk can go to one processor: behind AMD-Vi they have to.
    fn of_linux(&mut self) {
        let port = self.root_port();
        self.network("linuxnic", "linuxnet", &port, false);
        let port = self.root_port();
        let disk = behind_iommu(Device::on("virtio-blk-pci", "linuxblk", &port));
        let disk = disk.with("drive", "linuxdisk").with("num-queues", "1");
        let port = self.root_port();
        let serial = behind_iommu(Device::on("virtio-serial-pci", "linuxserial", &port));
        let console = Device::on("virtconsole", "linuxhvc", "linuxserial.0");
        let console = console.with("chardev", "linuxconsole");
        self.below.extend([disk, serial, console]);
    }

    fn root_port(&mut self) -> String {
        let number = self.ports.len() as u32 + 1;
        let name = format!("port{number}");
        let slot = FIRST_SLOT + number - 1;
        self.ports.push(
            Device::new("pcie-root-port", &name)
                .with("chassis", &number.to_string())
                .with("addr", &format!("{slot:#x}")),
        );
        name
    }

    /// A root port with room for a bridge and what is below it, which come later: firmware gives a port
    /// that is empty one bus and 2 MiB. Where they are there already, firmware that is asked for room
    /// gives the port a last bus before its first.
    fn root_port_with_room(&mut self) -> String {
        let name = self.root_port();
        if let Some(port) = self.ports.pop() {
            let port = port.with("bus-reserve", "1").with("mem-reserve", "8M");
            self.ports.push(port);
        }
        name
    }

    /// Without an option ROM: the firmware's network boot would drive the device first. Where
    /// instructions are counted it sends by a timer of the machine: a thread of the emulator's own
    /// would do so at any time.
    fn network(&mut self, id: &str, netdev: &str, port: &str, timed: bool) {
        let mut device = behind_iommu(Device::on("virtio-net-pci", id, port))
            .with("netdev", netdev)
            .with("romfile", "");
        if timed {
            device = device.with("tx", "timer");
        }
        self.below.push(device);
    }
}

/// A virtio device whose DMA goes where every function's goes, remapped or not.
fn behind_iommu(device: Device) -> Device {
    device
        .with("iommu_platform", "on")
        .with("disable-legacy", "on")
        .with("ioeventfd", "off")
}

/// A device that copies. The mask is all ones, or it cuts addresses silently and a fence seems to
/// hold.
fn copier(id: &str, bus: &str) -> Device {
    Device::on("edu", id, bus).with("dma_mask", "0xffffffffffffffff")
}

#[cfg(test)]
mod tests {
    use super::{Devices, Edu};
    use serde_json::json;

    #[test]
    fn a_device_is_told_of_in_the_same_words_on_the_command_line_and_over_qmp() {
        let devices = Devices::of(&[Edu::Pair], false, false, false);
        let half = devices.below.last().unwrap();
        assert_eq!(
            half.argument(),
            "edu,id=edu1b,bus=bridge1,dma_mask=0xffffffffffffffff,addr=2"
        );
        assert_eq!(
            half.arguments(),
            json!({"driver": "edu", "id": "edu1b", "bus": "bridge1",
                   "dma_mask": "0xffffffffffffffff", "addr": "2"})
        );
    }

    #[test]
    fn every_device_comes_after_what_it_is_below() {
        let devices = Devices::of(&[Edu::Alone, Edu::Pair, Edu::Alone], true, true, true);
        let mut there: Vec<&str> = devices.ports.iter().map(|port| port.id()).collect();
        for device in &devices.below {
            let above = device.parent().unwrap_or(device.bus());
            assert!(there.contains(&above), "{device:?}");
            there.push(device.id());
        }
        assert_eq!(devices.ports.len(), 9);
        assert_eq!(devices.below.len(), 2 + 5 + 1 + 4);
    }
}
