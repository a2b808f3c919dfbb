//! A board with devices on it, set up as firmware would.

use handoff_abi::RequesterId;

use crate::{Bus, Edu, Function, Qemu, Settings};

/// Where the emulated unit's registers lie (Intel chipsets: `DRHD_BASE` of the first unit).
pub const VTD_REGISTERS: u64 = 0xfed9_0000;

/// The bytes of registers that an `edu` has.
const EDU_REGISTERS: u64 = 1 << 20;
/// Where devices' registers begin: above the 2 GiB of RAM.
const FIRST_WINDOW: u64 = 0xc000_0000;
/// The device numbers on bus 0 that bridges take; tests place devices below.
const FIRST_BRIDGE: u8 = 0x10;

/// Where an `edu` sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On bus 0, as an integrated endpoint.
    RootBus {
        /// Device number, 1 to 15.
        device: u8,
        /// Function number.
        function: u8,
    },
    /// Alone below a root port of its own.
    RootPort,
    /// Below the one PCI Express to PCI bridge, which sits alone below a root port. Requests carry
    /// the bridge's secondary bus, device 0, function 0.
    PcieToPciBridge,
    /// Below the one conventional bridge on bus 0 (`i82801b11`). Requests carry the bridge's id.
    ConventionalBridge,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    /// The options of the unit, after `intel-iommu,`.
    pub unit: &'a str,
    /// Where to place `edu` devices.
    pub devices: &'a [Place],
    /// The addresses that the devices' own registers can hold. Devices that cannot address all of
    /// memory cut the address off, and reach other memory than they were told to.
    pub dma_mask: u64,
    /// Whether the unit covers bus 0 and all below it. Where it does not, requests from there pass
    /// it by, as on machines where some devices have no unit.
    pub covered: bool,
}

impl Default for Board<'_> {
    fn default() -> Self {
        Self {
            unit: "intremap=on",
            devices: &[Place::RootPort],
            dma_mask: u64::MAX,
            covered: true,
        }
    }
}

/// A machine with bus numbers and addresses given out.
#[derive(Debug)]
pub struct Machine {
    bus: Bus,
    edus: Vec<Edu>,
}

/// A device, and the bridges above it, as they will be found.
struct Planned {
    address: RequesterId,
    requester: RequesterId,
}

/// A bridge, its buses, and how many devices are below it.
struct PlannedBridge {
    address: RequesterId,
    secondary: u8,
    subordinate: u8,
    /// Which of the board's devices are below.
    devices: Vec<usize>,
}

/// The command line and the numbers that come out of it.
#[derive(Default)]
struct Plan {
    arguments: Vec<String>,
    devices: Vec<Option<Planned>>,
    bridges: Vec<PlannedBridge>,
    buses: u8,
}

fn id(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::new(bus, device, function).expect("device and function numbers in range")
}

impl Plan {
    fn device(&mut self, text: String) {
        self.arguments.push("-device".to_owned());
        self.arguments.push(text);
    }

    fn edu(&mut self, at: &str, mask: u64) {
        self.device(format!("edu,dma_mask={mask:#x},{at}"));
    }

    fn bridge_slot(&self) -> u8 {
        // Bridges on bus 0 take one device number each.
        let above: usize = self.bridges.iter().filter(|b| b.address.bus() == 0).count();
        let slot = FIRST_BRIDGE + above as u8;
        assert!(slot < 0x1f, "too many bridges");
        slot
    }

    fn root_port(&mut self, devices: Vec<usize>, buses: u8) -> u8 {
        let slot = self.bridge_slot();
        let secondary = self.buses + 1;
        self.buses += buses;
        self.device(format!(
            "pcie-root-port,id=bus{secondary},bus=pcie.0,addr={slot:#x},chassis={slot},slot={slot}"
        ));
        self.bridges.push(PlannedBridge {
            address: id(0, slot, 0),
            secondary,
            subordinate: self.buses,
            devices,
        });
        secondary
    }

    fn new(board: &Board<'_>) -> Self {
        let mut plan = Self {
            devices: board.devices.iter().map(|_| None).collect(),
            ..Self::default()
        };
        if !board.covered {
            let machine = ["-machine", "default_bus_bypass_iommu=on"];
            plan.arguments.extend(machine.map(str::to_owned));
        }
        plan.device(format!("intel-iommu,{}", board.unit));
        let mask = board.dma_mask;
        let places = |wanted: Place| -> Vec<usize> {
            let found = board.devices.iter().enumerate();
            found
                .filter(|&(_, &place)| place == wanted)
                .map(|(index, _)| index)
                .collect()
        };
        for (index, &place) in board.devices.iter().enumerate() {
            let (address, requester) = match place {
                Place::RootBus { device, function } => {
                    assert!(
                        (1..FIRST_BRIDGE).contains(&device),
                        "device number {device}"
                    );
                    plan.edu(
                        &format!("bus=pcie.0,addr={device:#x}.{function},multifunction=on"),
                        mask,
                    );
                    let address = id(0, device, function);
                    (address, address)
                }
                Place::RootPort => {
                    let bus = plan.root_port(vec![index], 1);
                    plan.edu(&format!("bus=bus{bus}"), mask);
                    (id(bus, 0, 0), id(bus, 0, 0))
                }
                Place::PcieToPciBridge | Place::ConventionalBridge => continue,
            };
            plan.devices[index] = Some(Planned { address, requester });
        }
        let below = places(Place::PcieToPciBridge);
        if !below.is_empty() {
            let upper = plan.root_port(below.clone(), 2);
            let lower = upper + 1;
            plan.device(format!("pcie-pci-bridge,id=bus{lower},bus=bus{upper}"));
            plan.bridges.push(PlannedBridge {
                address: id(upper, 0, 0),
                secondary: lower,
                subordinate: lower,
                devices: below.clone(),
            });
            plan.below_bridge(&below, lower, id(lower, 0, 0), mask);
        }
        let below = places(Place::ConventionalBridge);
        if !below.is_empty() {
            let slot = plan.bridge_slot();
            plan.buses += 1;
            let lower = plan.buses;
            plan.device(format!(
                "i82801b11-bridge,id=bus{lower},bus=pcie.0,addr={slot:#x}"
            ));
            plan.bridges.push(PlannedBridge {
                address: id(0, slot, 0),
                secondary: lower,
                subordinate: lower,
                devices: below.clone(),
            });
            plan.below_bridge(&below, lower, id(0, slot, 0), mask);
        }
        plan
    }

    fn below_bridge(&mut self, devices: &[usize], bus: u8, requester: RequesterId, mask: u64) {
        for (&index, device) in devices.iter().zip(4..) {
            self.edu(&format!("bus=bus{bus},addr={device:#x}"), mask);
            self.devices[index] = Some(Planned {
                address: id(bus, device, 0),
                requester,
            });
        }
    }

    /// The registers of a device. Devices below one bridge lie side by side, in the order of the
    /// bridges, which nest.
    fn windows(&self) -> Vec<u64> {
        let mut order: Vec<usize> = Vec::new();
        for bridge in &self.bridges {
            for &device in &bridge.devices {
                if !order.contains(&device) {
                    order.push(device);
                }
            }
        }
        for device in 0..self.devices.len() {
            if !order.contains(&device) {
                order.push(device);
            }
        }
        let mut windows = vec![0; order.len()];
        for (place, &device) in order.iter().enumerate() {
            windows[device] = FIRST_WINDOW + place as u64 * EDU_REGISTERS;
        }
        windows
    }
}

impl Machine {
    /// Starts a machine, and gives out bus numbers and addresses. Every device may make requests.
    ///
    /// # Panics
    /// Where the emulator does not start, or a device is not where it should be.
    #[must_use]
    pub fn start(board: &Board<'_>) -> Self {
        let plan = Plan::new(board);
        let qemu = Qemu::start(&Settings {
            arguments: plan.arguments.clone(),
            trace: ["vtd_*", "apic_deliver_irq"].map(str::to_owned).to_vec(),
        });
        let bus = Bus::new(qemu);
        let windows = plan.windows();
        for bridge in &plan.bridges {
            let below: Vec<u64> = bridge.devices.iter().map(|&i| windows[i]).collect();
            let start = *below.iter().min().expect("a device below each bridge");
            let end = *below.iter().max().expect("as before") + EDU_REGISTERS;
            Function::new(bus.clone(), bridge.address).set_up_bridge(
                bridge.secondary,
                bridge.subordinate,
                start..end,
            );
        }
        let edus = plan.devices.iter().zip(&windows).map(|(planned, &window)| {
            let planned = planned.as_ref().expect("every device has a place");
            let function = Function::new(bus.clone(), planned.address);
            assert_eq!(
                function.read(0),
                0x11e8_1234,
                "no edu device at {}",
                planned.address
            );
            function.write(0x10, window as u32);
            function.enable_memory();
            function.set_bus_master(true);
            // Its identification register proves that the address is decoded.
            assert_eq!(bus.read32(window), 0x0100_00ed);
            Edu::new(bus.clone(), function, planned.requester, window)
        });
        let edus = edus.collect();
        Self { bus, edus }
    }

    /// The processor's view.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The devices, in the order of [`Board::devices`].
    #[must_use]
    pub fn edus(&self) -> &[Edu] {
        &self.edus
    }
}
