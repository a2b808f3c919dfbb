//! A unit that a host drives, beside tables of Baton's own, until it is taken over.
//!
//! The host here is the driver itself, on tables elsewhere: all that is asked of one.

use iommu::{HostDriver, HostError, HostManaged, InterruptHandle};

use super::*;

/// The host's own id for a domain: the unit must not find two sets of tables under one.
fn theirs(id: DomainId) -> DomainId {
    DomainId(id.0 + 0x20)
}

/// A host's driver, which can be made to refuse.
struct Host<T: Machine> {
    unit: UnitOf<T>,
    refuses: bool,
}

impl<T: Machine> Host<T> {
    /// Drives the machine's unit from `0x5000_0000` on.
    fn new(machine: &T) -> Self {
        let (registers, memory, clock) = machine.parts();
        let (description, config) = (machine.description(), machine.config());
        let arena = range(0x5000_0000, machine.arena().length());
        let unit = Unit::prepare(registers, memory, clock, &description, arena, config);
        let mut unit = unit.unwrap();
        unit.enable().unwrap();
        Self {
            unit,
            refuses: false,
        }
    }

    fn flushed<E: std::fmt::Debug>(
        &mut self,
        work: impl FnOnce(&mut UnitOf<T>) -> Result<Pending, E>,
    ) -> Result<(), Refused> {
        if self.refuses {
            return Err(Refused);
        }
        let pending = work(&mut self.unit).unwrap();
        self.unit.flush(pending).unwrap();
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

impl<T: Machine> HostDriver for Host<T> {
    type Error = Refused;

    fn create_domain(&mut self, id: DomainId) -> Result<(), Refused> {
        self.flushed(|unit| unit.create_domain(theirs(id)).map(|()| Pending::none()))
    }

    fn destroy_domain(&mut self, id: DomainId) -> Result<(), Refused> {
        self.flushed(|unit| unit.destroy_domain(theirs(id)).map(|()| Pending::none()))
    }

    fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<(), Refused> {
        self.flushed(|unit| unit.map(theirs(domain), iova, memory, access))
    }

    fn unmap(&mut self, domain: DomainId, iova: u64, length: u64) -> Result<(), Refused> {
        self.flushed(|unit| unit.unmap(theirs(domain), iova, length))
    }

    fn attach(&mut self, requester: RequesterId, domain: DomainId) -> Result<(), Refused> {
        self.flushed(|unit| unit.attach(requester, theirs(domain)))
    }

    fn block(&mut self, requester: RequesterId) -> Result<(), Refused> {
        self.flushed(|unit| Ok::<_, ()>(unit.block(requester)))
    }

    fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<InterruptHandle, Refused> {
        if self.refuses {
            return Err(Refused);
        }
        let (handle, pending) = self.unit.allocate_interrupt(source, target).unwrap();
        self.unit.flush(pending).unwrap();
        Ok(handle)
    }

    fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<(), Refused> {
        self.flushed(|unit| unit.retarget(handle, target))
    }

    fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<(), Refused> {
        self.flushed(|unit| unit.clear_interrupt(handle))
    }
}

type Managed<T> =
    HostManaged<Host<T>, <T as Machine>::Registers, <T as Machine>::Memory, <T as Machine>::Clock>;

fn managed<T: Machine>(machine: &T) -> Managed<T> {
    let host = Host::new(machine);
    let (registers, memory, clock) = machine.parts();
    let (description, config) = (machine.description(), machine.config());
    let own = Unit::prepare(
        registers,
        memory,
        clock,
        &description,
        machine.arena(),
        config,
    );
    HostManaged::new(host, own.unwrap()).unwrap_or_else(|_| panic!("it was never enabled"))
}

/// Two domains with memory, one device in each and one in none, and an interrupt of each.
fn furnished<T: Machine>(machine: &T) -> (Managed<T>, Vec<RequesterId>, Vec<InterruptHandle>) {
    let mut managed = managed(machine);
    let devices = devices(3);
    for (domain, base) in [(A, A_BASE), (B, B_BASE)] {
        managed.create_domain(domain).unwrap();
        managed
            .map(domain, base, range(base, PART), Access::READ_WRITE)
            .unwrap();
    }
    managed.attach(devices[0], A).unwrap();
    managed.attach(devices[1], B).unwrap();
    let mut handles = Vec::new();
    for (number, &device) in (0..).zip(&devices) {
        let target = target(number, 0x41 + number as u8);
        // The host has entries of its own, so an index is not just the next one, nor the vector.
        managed
            .host_mut()
            .allocate_interrupt(device, target)
            .unwrap();
        let handle = managed.allocate_interrupt(device, target);
        handles.push(handle.unwrap());
    }
    (managed, devices, handles)
}

#[track_caller]
fn raises<T: Machine>(machine: &T, handle: InterruptHandle, expected: Option<(u32, u8)>) {
    let message = handle.message();
    let raised = machine.message(handle.source, message.address.0, message.data);
    assert_eq!(raised, expected, "{handle}");
}

fn taken_over<T: Machine>(machine: &T) {
    let (mut managed, devices, handles) = furnished(machine);
    managed.move_devices(&devices[1..2], Some(A)).unwrap();
    managed.move_devices(&devices[1..2], Some(B)).unwrap();
    managed.retarget(handles[1], target(3, 0x51)).unwrap();
    let reached = [Some(A_BASE), Some(B_BASE), None];
    let expect = |machine: &T| {
        for (number, &device) in devices.iter().enumerate() {
            for base in [A_BASE, B_BASE] {
                let expected = reached[number].filter(|&reached| reached == base);
                assert_eq!(machine.write(device, base), expected);
            }
        }
        raises(machine, handles[0], Some((0, 0x41)));
        raises(machine, handles[1], Some((3, 0x51)));
        raises(machine, handles[2], Some((2, 0x43)));
    };
    expect(machine);

    for (&device, reached) in devices.iter().zip(reached) {
        machine.attack(device, reached.unwrap_or(A_BASE));
    }
    machine.was_off();
    let (_, mut memory, _) = machine.parts();
    let Ok(mut unit) = managed.take_over(&mut memory) else {
        panic!("it was not taken over");
    };
    let attacks = machine.attacks();
    assert!(attacks.len() > 10);
    for (device, landed) in attacks {
        let number = devices.iter().position(|&known| known == device).unwrap();
        assert_eq!(landed, reached[number], "{device}");
    }
    assert!(!machine.was_off());
    expect(machine);
    assert_eq!(unit.arena(), machine.arena());

    // From here on it is a unit like any other, also for the next steward.
    let state = unit.record().unwrap();
    let mut unit = adopt(machine, &state, |_| true).unwrap();
    unit.move_devices(&devices, Some(B), Pending::none())
        .unwrap();
    all_in(machine, &unit, &devices, Some(B));
    machine.sound();
}

#[test]
fn a_host_is_taken_over_without_a_gap() {
    taken_over(&VtD::new());
    taken_over(&AmdVi::new());
}

fn refused<T: Machine>(machine: &T) {
    let (mut managed, devices, handles) = furnished(machine);
    let (c, c_base) = (DomainId(3), 0x2_0000_0000);
    let refused = HostError::Host(Refused);
    managed.host_mut().refuses = true;
    assert_eq!(managed.create_domain(c), Err(refused));
    let more = range(c_base, PART);
    assert_eq!(
        managed.map(A, c_base, more, Access::READ_WRITE),
        Err(refused)
    );
    assert_eq!(managed.attach(devices[2], A), Err(refused));
    assert_eq!(
        managed.allocate_interrupt(devices[2], target(1, 0x60)),
        Err(refused)
    );
    assert_eq!(managed.retarget(handles[0], target(3, 0x61)), Err(refused));
    assert!(managed.own().domain_ids().eq([A, B]));
    assert_eq!(managed.own().translate(A, c_base), None);
    assert_eq!(managed.own().domain_of(devices[2]), None);
    let old = managed.own().interrupt(handles[0]).unwrap();
    assert_eq!(old.target, target(0, 0x41));
    // What is taken away is closed here, whether the host did it or not.
    assert_eq!(managed.unmap(B, B_BASE, PART), Err(refused));
    assert_eq!(managed.block(devices[0]), Err(refused));
    assert_eq!(managed.clear_interrupt(handles[1]), Err(refused));
    assert_eq!(machine.write(devices[0], A_BASE), Some(A_BASE));
    let (_, mut memory, _) = machine.parts();
    let Ok(unit) = managed.take_over(&mut memory) else {
        panic!("it was not taken over");
    };
    assert_eq!(machine.write(devices[0], A_BASE), None);
    assert_eq!(machine.write(devices[1], B_BASE), None);
    raises(machine, handles[0], Some((0, 0x41)));
    raises(machine, handles[1], None);
    assert_eq!(unit.domain_of(devices[1]), Some(B));
    machine.sound();
}

#[test]
fn what_the_host_refuses_is_not_open_after_it() {
    refused(&VtD::new());
    refused(&AmdVi::new());
}

fn interrupted<T: Machine>(machine: &T) {
    let (managed, devices, _) = furnished(machine);
    for (&device, base) in devices.iter().zip([A_BASE, B_BASE, A_BASE]) {
        machine.attack(device, base);
    }
    machine.was_off();
    machine.stand_still(true);
    let (_, mut memory, _) = machine.parts();
    let Err((managed, error)) = managed.take_over(&mut memory) else {
        panic!("a unit that stands still was taken over");
    };
    assert!(!format!("{error}").is_empty());
    machine.stand_still(false);
    let Ok(unit) = managed.take_over(&mut memory) else {
        panic!("it was not taken over the second time");
    };
    for (device, landed) in machine.attacks() {
        let own = match unit.domain_of(device) {
            Some(A) => Some(A_BASE),
            Some(B) => Some(B_BASE),
            _ => None,
        };
        assert!(landed == own || landed.is_none(), "{device} {landed:x?}");
    }
    assert!(!machine.was_off());
    all_in(machine, &unit, &devices[..1], Some(A));
    machine.sound();
}

#[test]
fn a_take_over_that_fails_opens_nothing_and_can_be_made_again() {
    interrupted(&VtD::new());
    interrupted(&AmdVi::new());
}

fn in_force<T: Machine>(machine: &T) {
    let host = Host::new(machine);
    let other = Host::new(machine);
    assert!(HostManaged::new(host, other.unit).is_err());
}

#[test]
fn tables_that_are_in_force_are_not_waiting() {
    in_force(&VtD::new());
    in_force(&AmdVi::new());
}
