//! The type for units of either vendor, driven by one code against both strict models.

#[path = "both/host.rs"]
mod host;

use handoff_abi::{
    AmdViUnit, ApicId, DomainId, InterruptTarget, PhysAddr, PhysRange, RequesterId,
    UnitDescription, UnitKind,
};
use iommu::{
    Access, AdoptError, ArenaNeeds, AttachError, Config, Deadline, InterruptError, MoveError,
    MoveMethod, Pending, PrepareError, Reach, RegisterIo, State, TableMemory, Unit,
};

const A: DomainId = DomainId(1);
const A_BASE: u64 = 0x1_0000_0000;
const B: DomainId = DomainId(2);
const B_BASE: u64 = 0x1_8000_0000;
const PART: u64 = 0x40_0000;
const NEEDS: ArenaNeeds = ArenaNeeds {
    buses: 3,
    interrupt_sources: 2,
    // Three levels for each domain, one table at each, and one more for the second 2 MiB.
    page_tables: 8,
    switch: true,
};

fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(base), length).unwrap()
}

fn target(destination: u32, vector: u8) -> InterruptTarget {
    InterruptTarget {
        destination: ApicId(destination),
        vector,
    }
}

/// A machine with one unit, whichever it is.
trait Machine {
    type Registers: RegisterIo;
    type Memory: TableMemory;
    type Clock: Deadline;

    fn description(&self) -> UnitDescription;
    fn config(&self) -> Config;
    fn parts(&self) -> (Self::Registers, Self::Memory, Self::Clock);
    /// Where a write of the device lands.
    fn write(&self, device: RequesterId, iova: u64) -> Option<u64>;
    /// What an interrupt message of the device raises.
    fn message(&self, device: RequesterId, address: u64, data: u32) -> Option<(u32, u8)>;
    /// Lets a device write to `iova` whenever the driver does something.
    fn attack(&self, device: RequesterId, iova: u64);
    /// Where each such write landed.
    fn attacks(&self) -> Vec<(RequesterId, Option<u64>)>;
    /// Whether translation or interrupt remapping was switched off since this was asked last.
    fn was_off(&self) -> bool;
    /// The unit executes no command any more, or does again.
    fn stand_still(&self, still: bool);
    fn sound(&self);

    fn arena(&self) -> PhysRange {
        let length = NEEDS.length(self.description().kind, &self.config());
        range(0x4000_0000, length)
    }
}

type UnitOf<T> = Unit<<T as Machine>::Registers, <T as Machine>::Memory, <T as Machine>::Clock>;

struct VtD(iommu_model::Machine);

impl VtD {
    fn new() -> Self {
        use iommu_model::{Machine, MachineConfig, UnitConfig};
        Self(Machine::new(
            MachineConfig::default(),
            &[UnitConfig::default()],
        ))
    }
}

impl Machine for VtD {
    type Registers = iommu_model::Registers;
    type Memory = iommu_model::Tables;
    type Clock = iommu_model::Clock;

    fn description(&self) -> UnitDescription {
        let length = iommu_model::UnitConfig::default().window_length();
        UnitDescription {
            kind: UnitKind::VtD,
            segment: 0,
            registers: range(0xfed9_0000, length.into()),
            include_all: true,
            amd_vi: None,
        }
    }

    fn config(&self) -> Config {
        Config {
            host_address_bits: 46,
            timeout_microseconds: 20_000,
            ..Config::default()
        }
    }

    fn parts(&self) -> (Self::Registers, Self::Memory, Self::Clock) {
        (self.0.registers(0), self.0.memory(), self.0.clock())
    }

    fn write(&self, device: RequesterId, iova: u64) -> Option<u64> {
        let dma = self.0.dma_write(0, device.0, iova, b"x");
        dma.landed.first().map(|landed| landed.0)
    }

    fn message(&self, device: RequesterId, address: u64, data: u32) -> Option<(u32, u8)> {
        match self.0.msi(0, device.0, address, data) {
            iommu_model::Interrupt::Delivered {
                destination,
                vector,
                ..
            } => Some((destination, vector)),
            _ => None,
        }
    }

    fn attack(&self, device: RequesterId, iova: u64) {
        self.0.attack(0, device.0, iova);
    }

    fn attacks(&self) -> Vec<(RequesterId, Option<u64>)> {
        let attacks = self.0.take_attacks().into_iter();
        attacks
            .map(|attack| (RequesterId(attack.sid), attack.result.ok()))
            .collect()
    }

    fn was_off(&self) -> bool {
        // TE and IRE of GCMD.
        let fence = 1 << 31 | 1 << 25;
        let off = |event| matches!(event, iommu_model::Event::CommandDone { bit, on: false, .. } if bit & fence != 0);
        self.0.take_events().into_iter().any(off)
    }

    fn stand_still(&self, still: bool) {
        use iommu_model::Injection::{Nothing, StuckQueue};
        self.0.inject(0, if still { StuckQueue } else { Nothing });
    }

    fn sound(&self) {
        self.0.audit();
        self.0.assert_no_violations();
    }
}

struct AmdVi(iommu_model::amd::Machine, iommu_model::amd::UnitConfig);

impl AmdVi {
    fn new() -> Self {
        use iommu_model::amd::{Machine, MachineConfig, UnitConfig};
        let unit = UnitConfig::default();
        let machine = Machine::new(MachineConfig::default(), std::slice::from_ref(&unit));
        Self(machine, unit)
    }
}

impl Machine for AmdVi {
    type Registers = iommu_model::amd::Registers;
    type Memory = iommu_model::amd::Tables;
    type Clock = iommu_model::amd::Clock;

    fn description(&self) -> UnitDescription {
        UnitDescription {
            kind: UnitKind::AmdVi,
            segment: 0,
            registers: range(0xfed8_0000, self.1.window_length().into()),
            include_all: false,
            amd_vi: Some(AmdViUnit {
                function: RequesterId(2),
                capability_offset: 0x40,
                flags: u8::from(self.1.coherent) << 5,
            }),
        }
    }

    fn config(&self) -> Config {
        Config {
            host_address_bits: 46,
            timeout_microseconds: 200_000,
            capability_header: self.1.capability(),
            ..Config::default()
        }
    }

    fn parts(&self) -> (Self::Registers, Self::Memory, Self::Clock) {
        (self.0.registers(0), self.0.memory(), self.0.clock())
    }

    fn write(&self, device: RequesterId, iova: u64) -> Option<u64> {
        let dma = self.0.dma_write(0, device.0, iova, b"x");
        dma.landed.first().map(|landed| landed.0)
    }

    fn message(&self, device: RequesterId, address: u64, data: u32) -> Option<(u32, u8)> {
        match self.0.msi(0, device.0, address, data) {
            iommu_model::amd::Interrupt::Delivered {
                destination,
                vector,
                ..
            } => Some((destination, vector)),
            _ => None,
        }
    }

    fn attack(&self, device: RequesterId, iova: u64) {
        self.0.attack(0, device.0, iova);
    }

    fn attacks(&self) -> Vec<(RequesterId, Option<u64>)> {
        let attacks = self.0.take_attacks().into_iter();
        attacks
            .map(|attack| (RequesterId(attack.sid), attack.result.ok()))
            .collect()
    }

    fn was_off(&self) -> bool {
        let off = |event| matches!(event, iommu_model::amd::Event::Control { value, .. } if value & 1 == 0);
        self.0.take_events().into_iter().any(off)
    }

    fn stand_still(&self, still: bool) {
        use iommu_model::amd::Injection::{Nothing, StuckCommands};
        self.0
            .inject(0, if still { StuckCommands } else { Nothing });
    }

    fn sound(&self) {
        self.0.audit();
        self.0.assert_no_violations();
    }
}

fn prepared<T: Machine>(machine: &T) -> UnitOf<T> {
    let (registers, memory, clock) = machine.parts();
    let description = machine.description();
    let (arena, config) = (machine.arena(), machine.config());
    let mut unit = Unit::prepare(registers, memory, clock, &description, arena, config).unwrap();
    for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
        unit.create_domain(domain).unwrap();
        let mapped = unit.map(domain, base, range(base, PART), Access::READ_WRITE);
        unit.flush(mapped.unwrap()).unwrap();
    }
    unit
}

fn adopt<T: Machine>(
    machine: &T,
    state: &State,
    allow: impl FnMut(&Reach) -> bool,
) -> Result<UnitOf<T>, AdoptError> {
    let (registers, memory, clock) = machine.parts();
    let window = machine.description().registers;
    let (arena, config) = (machine.arena(), machine.config());
    Unit::adopt(
        registers, memory, clock, window, arena, state, config, allow,
    )
}

fn devices(count: u16) -> Vec<RequesterId> {
    (0..count)
        .map(|i| RequesterId(((i % 3 + 1) << 8) | (i / 3)))
        .collect()
}

#[track_caller]
fn all_in<T: Machine>(
    machine: &T,
    unit: &UnitOf<T>,
    devices: &[RequesterId],
    to: Option<DomainId>,
) {
    for &device in devices {
        assert_eq!(unit.domain_of(device), to);
        assert_eq!(
            machine.write(device, A_BASE),
            (to == Some(A)).then_some(A_BASE)
        );
        assert_eq!(
            machine.write(device, B_BASE),
            (to == Some(B)).then_some(B_BASE)
        );
    }
}

/// A unit from nothing to its second steward.
fn life<T: Machine>(machine: &T) {
    let mut unit = prepared(machine);
    assert_eq!(unit.kind(), machine.description().kind);
    assert_eq!(unit.arena(), machine.arena());
    unit.enable().unwrap();
    assert_eq!(unit.domain_ids().collect::<Vec<_>>(), [A, B]);

    // Interrupts: each device's own, whatever the messages look like.
    let devices = devices(20);
    let (first, second) = (devices[0], devices[1]);
    let (handle, pending) = unit.allocate_interrupt(first, target(1, 0x41)).unwrap();
    let (other, more) = unit.allocate_interrupt(second, target(2, 0x42)).unwrap();
    unit.flush(pending.merge(more)).unwrap();
    let message = handle.message();
    let raised = |of| machine.message(of, message.address.0, message.data);
    assert_eq!(raised(first), Some((1, 0x41)));
    assert_eq!(raised(second), None);
    assert_eq!(handle, unit.interrupt_handle(first, handle.index));
    let of = |unit: &UnitOf<T>, source| {
        let handles = unit.interrupts_of(source).map(|i| i.handle);
        handles.collect::<Vec<_>>()
    };
    assert_eq!(of(&unit, first), [handle]);
    assert_eq!(of(&unit, second), [other]);
    assert_eq!(unit.interrupts().count(), 2);
    let pending = unit.retarget(handle, target(3, 0x41)).unwrap();
    unit.flush(pending).unwrap();
    assert_eq!(raised(first), Some((3, 0x41)));
    // A handle is of one device.
    let forged = unit.interrupt_handle(devices[2], handle.index);
    assert_eq!(unit.interrupt(forged), None);
    let refused = unit.retarget(forged, target(3, 0x41)).unwrap_err();
    assert_eq!(refused, InterruptError::NotSet(forged));

    // Devices, one by one and many.
    let pending = unit.attach(first, A).unwrap();
    unit.flush(pending).unwrap();
    let reserved = [range(A_BASE + PART, 0x1000)];
    assert_eq!(
        unit.attach_reserved(second, A, &reserved).unwrap_err(),
        AttachError::ReservedNotMapped {
            requester: second,
            memory: reserved[0]
        }
    );
    let inside = [range(A_BASE + 0x1000, 0x20_0000)];
    let pending = unit.attach_reserved(second, A, &inside).unwrap();
    unit.flush(pending).unwrap();
    for to in [Some(A), Some(B), None, Some(A)] {
        let prepared = unit.prepare_move(&devices, to).unwrap();
        let method = prepared.method();
        assert_ne!(method, MoveMethod::Selective);
        let moving = unit.start_prepared(prepared, Pending::none()).unwrap();
        let installed = unit.install_move(moving).unwrap();
        assert_eq!(unit.wait_installed(installed), Ok(method));
        all_in(machine, &unit, &devices, to);
    }
    let few = unit.move_devices(&devices[..2], Some(B), Pending::none());
    assert_eq!(few, Ok(MoveMethod::Selective));
    all_in(machine, &unit, &devices[..2], Some(B));
    all_in(machine, &unit, &devices[2..], Some(A));
    let unknown = unit.move_devices(&devices, Some(DomainId(9)), Pending::none());
    let expected = AttachError::UnknownDomain(DomainId(9));
    assert_eq!(unknown, Err(MoveError::Attach(expected)));

    // Maps.
    assert_eq!(unit.translate(B, B_BASE).unwrap().memory.base().0, B_BASE);
    let mut mapped = 0;
    assert!(unit.for_each_leaf(B, |leaf| {
        mapped += leaf.memory.length();
        true
    }));
    assert_eq!(mapped, PART);
    let pending = unit.unmap(B, B_BASE, PART).unwrap();
    unit.flush(pending).unwrap();
    assert_eq!(machine.write(first, B_BASE), None);
    let pending = unit.map(B, B_BASE, range(B_BASE, PART), Access::READ_WRITE);
    unit.flush(pending.unwrap()).unwrap();

    // Faults.
    let mut faults = Vec::new();
    while unit.drain_faults(|fault| faults.push(fault)).unwrap().more {}
    assert!(faults.iter().any(|fault| fault.source == first));
    let silenced = unit.silence(devices[3], true).unwrap();
    unit.flush(silenced).unwrap();
    assert_eq!(machine.write(devices[3], B_BASE), None);
    assert_eq!(unit.drain_faults(|_| ()).unwrap().records, 0);
    let heard = unit.silence(devices[3], false).unwrap();
    unit.flush(heard).unwrap();

    // The next steward.
    let state = unit.record().unwrap();
    assert_eq!(state.kind(), unit.kind());
    assert_eq!(state.levels(), unit.levels());
    assert_eq!(state.register_base(), unit.window().base().0);
    drop(unit.into_parts());
    let refused = adopt(machine, &state, |reach| {
        !matches!(reach, Reach::Memory { domain: B, .. })
    });
    assert!(matches!(refused, Err(AdoptError::NotAllowed(_))));
    let mut unit = adopt(machine, &state, |_| true).unwrap();
    all_in(machine, &unit, &devices[..2], Some(B));
    assert_eq!(of(&unit, second), [other]);
    unit.set_fault_message(None).unwrap();
    let pending = unit.clear_interrupts(first);
    let gone = unit.move_devices(&devices, None, pending);
    assert_eq!(gone, Ok(MoveMethod::Global));
    assert_eq!(raised(first), None);
    assert_eq!(of(&unit, first), []);
    all_in(machine, &unit, &devices, None);
    for domain in [A, B] {
        unit.destroy_domain(domain).unwrap();
    }
    assert!(!unit.recover_queue().unwrap());
    unit.invalidate_everything().unwrap();
    machine.sound();
}

#[test]
fn one_code_drives_a_vtd_unit_and_an_amd_vi_unit() {
    life(&VtD::new());
    life(&AmdVi::new());
}

#[test]
fn a_description_that_is_not_one_of_its_kind_is_refused() {
    let machine = AmdVi::new();
    let (registers, memory, clock) = machine.parts();
    let description = UnitDescription {
        amd_vi: None,
        ..machine.description()
    };
    let (arena, config) = (machine.arena(), machine.config());
    let refused = Unit::prepare(registers, memory, clock, &description, arena, config);
    assert_eq!(refused.unwrap_err(), PrepareError::Description);
}
