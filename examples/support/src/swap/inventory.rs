//! The machine as the planner wants it: from the captured tables, the ledger, and what
//! configuration space says.

use alloc::vec::Vec;

use acpi_capture::Capture;
use acpi_capture::table::{BridgeBuses, EcamAllocation, PciTopology};
use handoff_abi::{
    ApicId, Exchange, Owner, PartitionId, PciFunction, PhysAddr, PhysRange, RequesterId, UnitKind,
    resource,
};
use partition_core::plan::alias::{self, Acs, Facts, Isolation, PortType};
use partition_core::plan::{
    Budget, Buses, Cpu, CpuRequest, EcamWindow, Function, FunctionKind, FunctionRequest, Machine,
    MemoryKind, MemoryRegion, MemoryRequest, Messages, PageSize, Request, Reservation, Singleton,
    Trampoline, Unit, Window,
};

use super::kernel::{Failure, Kernel, copy_out, failure};
use super::processors::{self, Role};
use super::remapping::Remapping;
use super::{devices, domain_of};
use crate::paging::Access;
use crate::pci::{self, Ecam, assign, capability};
use crate::println;

/// Offset of the first extended capability, and the ACS capability's id (PCI Express Base
/// Specification, sections 7.6.1 and 7.7.11).
const EXTENDED: usize = 0x100;
const ACS: u32 = 0x0d;

/// Maps all of configuration space, for this kernel alone from now on.
///
/// # Errors
/// Where MCFG does not say where it is.
pub fn map_configuration(
    kernel: &mut Kernel,
    captured: &Capture<'_>,
) -> Result<EcamAllocation, Failure> {
    let mcfg = captured
        .mcfg()
        .ok_or_else(|| failure!("there is no MCFG table"))??;
    let allocation = mcfg
        .allocation_of(0, 0)
        .ok_or_else(|| failure!("the MCFG table does not have bus 0 of segment 0"))?;
    let range = allocation
        .memory()
        .ok_or_else(|| failure!("configuration space lies nowhere"))?;
    kernel.map(range, Access::Device)?;
    devices::clear();
    // SAFETY: just mapped, for good.
    devices::add(unsafe { Ecam::new(allocation.base, allocation.first_bus, allocation.last_bus) });
    Ok(allocation)
}

/// What configuration space says of the machine's functions.
#[derive(Debug)]
pub struct Topology {
    facts: Vec<Facts>,
    isolation: Vec<Isolation>,
    lines: Vec<Lines>,
    classes: Vec<u32>,
    ids: Vec<(u16, u16)>,
    windows: Vec<Window>,
    ecam: Vec<EcamWindow>,
}

/// A function's ways to interrupt.
#[derive(Clone, Copy, Debug)]
struct Lines {
    line: Option<u32>,
    disabled: bool,
    messages: u16,
}

/// A function that is fenced, with every requester id it may use.
#[derive(Debug)]
pub struct Bridge {
    /// The function.
    pub function: PciFunction,
    /// Its ids.
    pub requesters: Vec<RequesterId>,
}

impl PciTopology for Topology {
    fn bridge_buses(&self, function: PciFunction) -> Option<BridgeBuses> {
        let facts = self.facts.iter().find(|facts| facts.function == function)?;
        match facts.kind {
            FunctionKind::Bridge(buses) => Some(BridgeBuses {
                secondary: buses.secondary,
                subordinate: buses.subordinate,
            }),
            FunctionKind::Endpoint => None,
        }
    }
}

impl Topology {
    /// Looks at all of configuration space, which is mapped on the way, and finds the remapping
    /// unit.
    ///
    /// # Errors
    /// Where the tables do not say where these are.
    pub fn scan(kernel: &mut Kernel, captured: &Capture<'_>) -> Result<Self, Failure> {
        let allocation = map_configuration(kernel, captured)?;
        let remapping = Remapping::of(captured)?;
        if let Some(remapping) = remapping {
            let unit = remapping.unit()?;
            kernel.map(unit.registers, Access::Device)?;
            kernel.unit_window = unit.registers;
            kernel.unit_kind = Some(unit.kind);
        }

        let mut topology = Self {
            facts: Vec::new(),
            isolation: Vec::new(),
            lines: Vec::new(),
            classes: Vec::new(),
            ids: Vec::new(),
            windows: Vec::new(),
            ecam: Vec::new(),
        };
        topology.ecam.push(EcamWindow {
            segment: 0,
            first_bus: allocation.first_bus,
            last_bus: allocation.last_bus,
            base: allocation.base,
        });
        devices::scan(0, &mut |function| topology.add(function));
        for facts in &mut topology.facts {
            facts.quirk = remapping.and_then(|remapping| remapping.alias_of(facts.function));
        }
        topology.isolation = topology
            .facts
            .iter()
            .zip(0..)
            .map(|(facts, group)| Isolation::alone(facts.function, group))
            .collect();
        alias::groups(&topology.facts, &mut topology.isolation)?;
        Ok(topology)
    }

    fn add(&mut self, function: &pci::Function) {
        let config = function.config();
        let at = PciFunction {
            segment: 0,
            requester: function.id(),
        };
        let kind = match function.secondary_bus() {
            Some(secondary) => FunctionKind::Bridge(Buses {
                secondary,
                subordinate: config.read8(0x1a),
            }),
            None => FunctionKind::Endpoint,
        };
        if let FunctionKind::Bridge(_) = kind {
            self.windows.extend(
                assign::bridge_windows(function)
                    .into_iter()
                    .map(|range| Window {
                        function: at,
                        range,
                    }),
            );
        }
        let express = function.capability(capability::EXPRESS);
        let port =
            express.and_then(|at| PortType::from_bits((config.read16(at + 2) >> 4 & 0xf) as u8));
        self.facts.push(Facts {
            function: at,
            kind,
            port,
            acs: express.map_or(Acs::empty(), |_| acs(function)),
            phantom_functions: 0,
            quirk: None,
        });
        self.lines.push(Lines {
            line: function.interrupt_line(),
            disabled: function.is_intx_disabled(),
            messages: function.messages(),
        });
        self.classes.push(function.class());
        self.ids.push((function.vendor(), function.device()));
    }

    /// Every function, bridges too.
    pub fn functions(&self) -> impl Iterator<Item = PciFunction> + '_ {
        self.facts.iter().map(|facts| facts.function)
    }

    /// Functions that are no bridges and sit below a root port: what can be given away.
    pub fn endpoints(&self) -> impl Iterator<Item = PciFunction> + '_ {
        self.facts
            .iter()
            .filter(|facts| {
                facts.kind == FunctionKind::Endpoint && facts.function.requester.bus() != 0
            })
            .map(|facts| facts.function)
    }

    /// The first function of this class and sub-class.
    #[must_use]
    pub fn of_class(&self, class: u32) -> Option<PciFunction> {
        self.all_of_class(class).next()
    }

    /// The functions of this class and sub-class.
    pub fn all_of_class(&self, class: u32) -> impl Iterator<Item = PciFunction> + '_ {
        self.facts
            .iter()
            .zip(&self.classes)
            .filter(move |(_, found)| **found >> 8 == class)
            .map(|(facts, _)| facts.function)
    }

    /// Functions of this vendor and device.
    pub fn of_device(&self, vendor: u16, device: u16) -> impl Iterator<Item = PciFunction> + '_ {
        self.facts
            .iter()
            .zip(&self.ids)
            .filter(move |(_, found)| **found == (vendor, device))
            .map(|(facts, _)| facts.function)
    }

    /// Whether it is the network device, which belongs to the workload.
    #[must_use]
    pub fn is_nic(&self, function: PciFunction) -> bool {
        self.of_class(0x0200) == Some(function)
    }

    /// Whether a function shares a requester id with another one.
    #[must_use]
    pub fn is_alone(&self, function: PciFunction) -> bool {
        let group = |at: PciFunction| {
            let place = self.facts.iter().position(|facts| facts.function == at)?;
            self.isolation.get(place).map(|isolation| isolation.group)
        };
        self.endpoints()
            .filter(|&other| group(other) == group(function))
            .count()
            == 1
    }

    /// Every requester id of a function.
    #[must_use]
    pub fn requesters(&self, function: PciFunction) -> Vec<RequesterId> {
        self.facts
            .iter()
            .zip(&self.isolation)
            .find(|(facts, _)| facts.function == function)
            .map(|(_, isolation)| isolation.requesters.as_slice().to_vec())
            .unwrap_or_default()
    }

    /// Every endpoint that a unit covers, with its ids. What no unit covers stays without bus
    /// mastering and is never given away.
    #[must_use]
    pub fn fenced(&self, remapping: &Remapping<'_>) -> Vec<Bridge> {
        self.endpoints()
            .filter(|&function| remapping.unit_of(function, self).is_some())
            .map(|function| Bridge {
                function,
                requesters: self.requesters(function),
            })
            .collect()
    }

    /// Windows of the bridge on the root bus above a function, memory only.
    pub fn windows_above(&self, bus: u8) -> impl Iterator<Item = PhysRange> + '_ {
        self.windows.iter().filter_map(move |window| {
            let buses = self.bridge_buses(window.function)?;
            let above = window.function.requester.bus() == 0
                && (buses.secondary..=buses.subordinate).contains(&bus);
            above.then_some(window.range)
        })
    }
}

fn acs(function: &pci::Function) -> Acs {
    let config = function.config();
    let mut at = EXTENDED;
    for _ in 0..48 {
        let header = config.read32(at);
        if header & 0xffff == ACS {
            return Acs::from_bits_retain(config.read16(at + 4));
        }
        at = (header >> 20 & 0xffc) as usize;
        if at < EXTENDED {
            break;
        }
    }
    Acs::empty()
}

/// All that a [`Machine`] borrows.
#[derive(Debug)]
pub struct Inventory {
    cpus: Vec<Cpu>,
    memory: Vec<MemoryRegion>,
    functions: Vec<Function>,
    reservations: Vec<Reservation>,
    units: Vec<Unit>,
    singletons: Vec<Singleton>,
    budget: Budget,
    /// What configuration space says.
    pub topology: Topology,
}

impl Inventory {
    /// Takes stock.
    ///
    /// # Errors
    /// Where the captured tables cannot be read, or this kernel is not the steward.
    pub fn take(kernel: &mut Kernel) -> Result<Self, Failure> {
        // SAFETY: the window maps the baton.
        let bytes = unsafe { copy_out(kernel.baton.capture) };
        let captured = Capture::parse(&bytes)?;
        let topology = Topology::scan(kernel, &captured)?;
        let remapping = Remapping::needed(&captured)?;
        let view = kernel
            .view()
            .ok_or_else(|| failure!("there is no ledger"))?;
        let owner = |kind, number| {
            view.find(kind, number, 1)
                .map_or(Owner::Firmware, |entry| entry.word.owner)
        };
        let madt = captured
            .madt()
            .ok_or_else(|| failure!("there is no MADT"))??;
        let own = processors::identity(crate::cpu::apic_id());
        let cpus = madt
            .processors()
            .map(|cpu| {
                // One that never ran here is another's: its features and microcode are not known,
                // and the number of its core is as this processor counts them.
                let identity = processors::identity(cpu.apic_id);
                let cpuid = identity.or(own).map(|known| known.cpuid);
                Cpu {
                    apic_id: cpu.apic_id,
                    core: cpuid.map_or(cpu.apic_id.0, |cpuid| cpuid.core_of(cpu.apic_id)),
                    is_bsp: cpu.apic_id == kernel.bootstrap,
                    runs_prime: matches!(
                        processors::role(cpu.apic_id),
                        Role::Control | Role::Service
                    ),
                    features: identity.map_or(0, |known| known.cpuid.features),
                    microcode: identity.map_or(0, |known| known.microcode),
                    owner: owner(resource::CPU, cpu.apic_id.0.into()),
                }
            })
            .collect();
        let mut reservations = Vec::new();
        let functions = topology
            .facts
            .iter()
            .zip(&topology.isolation)
            .zip(&topology.classes)
            .zip(&topology.lines)
            .map(|(((facts, isolation), &class), lines)| {
                let function = facts.function;
                let reserved = remapping.reserved_for(function, &topology);
                // Where nobody knows what it keeps reaching, it is not given away.
                let unit = reserved
                    .as_ref()
                    .and_then(|_| remapping.unit_of(function, &topology));
                for range in reserved.into_iter().flatten() {
                    reservations.push(Reservation { function, range });
                }
                Function {
                    function,
                    class,
                    kind: facts.kind,
                    isolation: *isolation,
                    unit,
                    intx: lines.line,
                    intx_disabled: lines.disabled,
                    messages: lines.messages,
                    ats_required: false,
                    owner: owner(
                        resource::FUNCTION,
                        super::launch::function_number(facts.function),
                    ),
                }
            })
            .collect();
        let singletons = view
            .entries()
            .filter(|entry| entry.kind == resource::SINGLETON)
            .map(|entry| Singleton {
                number: entry.base,
                owner: entry.word.owner,
            })
            .collect();
        let memory = memory(kernel);
        let next = next_partition(kernel);
        let unit = kernel.unit()?;
        let budget = Budget {
            table_pages: unit.free_frames() as u64,
            ledger_slots: view.free_slots() as u64,
            interrupt_handles: 64,
            domain: Some(domain_of(next)),
        };
        let units = alloc::vec![Unit {
            usable: true,
            interrupt_remapping: true,
            remaps_any_message: unit.kind() == UnitKind::AmdVi,
            levels: unit.levels() as u8,
            largest_page: PageSize::Size2MiB,
        }];
        Ok(Self {
            cpus,
            memory,
            functions,
            reservations,
            units,
            singletons,
            budget,
            topology,
        })
    }

    /// The machine, for the planner.
    #[must_use]
    pub fn machine<'a>(&'a self, kernel: &Kernel) -> Machine<'a> {
        Machine {
            prime: kernel.me,
            cpus: &self.cpus,
            memory: &self.memory,
            functions: &self.functions,
            reservations: &self.reservations,
            units: &self.units,
            windows: &self.topology.windows,
            ecam: &self.topology.ecam,
            singletons: &self.singletons,
            budget: self.budget,
        }
    }
}

/// The number of the partition that is launched next: one that was not used before, unless all were,
/// and whose place in the exchange is nobody's.
#[must_use]
pub fn next_partition(kernel: &Kernel) -> PartitionId {
    const MOST: u16 = 0x7fff;
    let partitions = || {
        let owners = kernel.view().into_iter().flat_map(|view| view.entries());
        owners.filter_map(|entry| match entry.word.owner {
            Owner::Partition(partition) => Some(partition),
            _ => None,
        })
    };
    let is_free = |number: &u16| {
        let place = Exchange::place(PartitionId(*number));
        partitions()
            .chain([kernel.me])
            .all(|partition| Exchange::place(partition) != place)
    };
    let highest = partitions().map(|partition| partition.0).max().unwrap_or(0);
    let used = highest.max(kernel.me.0).max(kernel.launches);
    // Two of the places at most are taken, so there is always one.
    let number = (used.saturating_add(1)..=MOST)
        .chain(1..=MOST)
        .find(is_free);
    PartitionId(number.unwrap_or(0))
}

/// The ledger's memory, with what this kernel uses of its own told apart from what is free.
fn memory(kernel: &Kernel) -> Vec<MemoryRegion> {
    let mut regions = Vec::new();
    let Some(view) = kernel.view() else {
        return regions;
    };
    for entry in view.entries() {
        let Some(range) = entry.range() else {
            continue;
        };
        let owner = entry.word.owner;
        let mut add = |range: PhysRange, kind| {
            if !range.is_empty() {
                regions.push(MemoryRegion { range, kind, owner });
            }
        };
        if owner == Owner::Firmware {
            add(range, MemoryKind::Reserved);
            continue;
        }
        if owner != kernel.owner() {
            add(range, MemoryKind::Usable);
            continue;
        }
        let mut free: Vec<_> = kernel
            .memory
            .free()
            .iter()
            .map(|free| free.intersection(range))
            .chain(low_memory(kernel).map(|free| free.intersection(range)))
            .filter(|free| !free.is_empty())
            .collect();
        free.sort();
        let mut at = range.base();
        for part in free {
            add(PhysRange::from_bounds(at, part.base()), MemoryKind::InUse);
            add(part, MemoryKind::Usable);
            at = part.end();
        }
        add(PhysRange::from_bounds(at, range.end()), MemoryKind::InUse);
    }
    regions
}

/// Low memory that can be a trampoline: all but what firmware's data area and this kernel use.
fn low_memory(kernel: &Kernel) -> impl Iterator<Item = PhysRange> {
    let own = kernel.trampoline_page;
    let floor = PhysAddr(0x1000);
    let ceiling = PhysAddr(0x9_0000);
    [
        PhysRange::from_bounds(floor, own),
        PhysRange::from_bounds(PhysAddr(own.0 + 0x1000), ceiling),
    ]
    .into_iter()
}

/// What an operator wishes for.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The partition's number.
    pub partition: PartitionId,
    /// Its name.
    pub name: &'a str,
    /// Its processors.
    pub cpus: Vec<ApicId>,
    /// Its memory: these ranges, or, where there are none, 512 MiB anywhere.
    pub ranges: Vec<PhysRange>,
    /// Its functions.
    pub functions: Vec<FunctionRequest>,
    /// Its singletons.
    pub singletons: Vec<u64>,
    /// What its kernel knows of remapped interrupts.
    pub messages: Messages,
    /// The least memory that its image can do with.
    pub least_memory: u64,
    /// What is doubtful is refused.
    pub strict: bool,
}

/// Bytes a successor gets.
pub const MEMORY: u64 = 512 << 20;

impl Wish<'_> {
    /// The request for the planner.
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        let memory = if self.ranges.is_empty() {
            MemoryRequest::Bytes {
                length: MEMORY,
                alignment: 2 << 20,
                below: PhysAddr(1 << 32),
            }
        } else {
            MemoryRequest::These(&self.ranges)
        };
        Request {
            partition: self.partition,
            name: self.name,
            cpus: CpuRequest::These(&self.cpus),
            memory,
            least_memory: self.least_memory,
            trampoline: Trampoline::Any,
            functions: &self.functions,
            singletons: &self.singletons,
            accept_unfenced: false,
            messages: self.messages,
            strict: self.strict,
        }
    }

    /// What a successor gets where nobody says anything else: the idle processors but the first,
    /// 512 MiB, the disk and the last device that shares its requester id with nobody.
    #[must_use]
    pub fn usual(kernel: &Kernel, name: &'static str, topology: &Topology) -> Wish<'static> {
        let view = kernel.view();
        let mine = |function: PciFunction| {
            view.and_then(|view| {
                view.find(
                    resource::FUNCTION,
                    super::launch::function_number(function),
                    1,
                )
            })
            .is_some_and(|entry| entry.word.owner == kernel.owner())
        };
        let disk = topology.of_class(0x0100).filter(|&disk| mine(disk));
        let edu = topology
            .of_device(0x1234, 0x11e8)
            .filter(|&edu| mine(edu) && topology.is_alone(edu))
            .last();
        let functions = disk
            .into_iter()
            .chain(edu)
            .map(|function| FunctionRequest {
                function,
                interrupts: 1,
            })
            .collect();
        let cpus = processors::present()
            .filter(|&cpu| processors::role(cpu) == Role::Idle && cpu != kernel.bootstrap)
            .take(2)
            .collect();
        let console = if kernel.console.port == 0x3f8 {
            resource::UART_1
        } else {
            resource::UART_0
        };
        let wish = Wish {
            partition: next_partition(kernel),
            name,
            cpus,
            ranges: Vec::new(),
            functions,
            singletons: alloc::vec![console],
            messages: Messages::Handles,
            least_memory: 64 << 20,
            strict: false,
        };
        if wish.cpus.len() < 2 {
            println!("only {} processors are idle", wish.cpus.len());
        }
        wish
    }
}
