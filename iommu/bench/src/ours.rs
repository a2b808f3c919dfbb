//! Baton's own ways.

use handoff_abi::RequesterId;
use iommu::{
    Access, Config, Deadline, MoveError, MoveMethod, Moving, Pending, RegisterIo, TableMemory, Unit,
};

use crate::case::RESIDENT;
use crate::platform::{Observer, Phase, Platform};
use crate::run::{A, ARENA, B, Failure, MEMORY, PATIENCE};

type UnitOf<P> = Unit<<P as Platform>::Registers, <P as Platform>::Memory, <P as Platform>::Clock>;

/// A unit that is up, with the devices in the first domain.
pub(crate) fn bring_up<P: Platform>(
    platform: &P,
    devices: &[RequesterId],
) -> Result<UnitOf<P>, Failure> {
    let config = Config {
        host_address_bits: 39,
        timeout_microseconds: PATIENCE,
        capability_header: platform.capability_header(),
        ..Config::default()
    };
    let (registers, memory, clock) = platform.parts();
    let description = platform.description();
    let mut unit = Unit::prepare(registers, memory, clock, &description, ARENA, config)?;
    for (domain, memory) in [A, B].into_iter().zip(MEMORY) {
        unit.create_domain(domain)?;
        let mapped = unit.map(domain, memory.base().0, memory, Access::READ_WRITE)?;
        unit.flush(mapped)?;
    }
    unit.enable()?;
    unit.move_devices(&[RESIDENT], Some(B), Pending::none())?;
    unit.move_devices(devices, Some(A), Pending::none())?;
    Ok(unit)
}

/// Moves them without preparation.
pub(crate) fn batch<R: RegisterIo, M: TableMemory, C: Deadline>(
    unit: &mut Unit<R, M, C>,
    devices: &[RequesterId],
    observer: &mut impl Observer,
) -> Result<MoveMethod, MoveError> {
    observer.begin(Phase::Prepare);
    observer.begin(Phase::Move);
    let moving = unit.start_move(devices, Some(B), Pending::none())?;
    finish(unit, moving, observer)
}

/// Moves them by tables that were prepared.
pub(crate) fn switch<R: RegisterIo, M: TableMemory, C: Deadline>(
    unit: &mut Unit<R, M, C>,
    devices: &[RequesterId],
    observer: &mut impl Observer,
) -> Result<MoveMethod, MoveError> {
    observer.begin(Phase::Prepare);
    let prepared = unit.prepare_switch(devices, Some(B))?;
    observer.begin(Phase::Move);
    let moving = unit.start_prepared(prepared, Pending::none())?;
    finish(unit, moving, observer)
}

fn finish<R: RegisterIo, M: TableMemory, C: Deadline>(
    unit: &mut Unit<R, M, C>,
    moving: Moving<'_>,
    observer: &mut impl Observer,
) -> Result<MoveMethod, MoveError> {
    let installed = unit.install_move(moving)?;
    observer.begin(Phase::Settle);
    let method = unit.wait_installed(installed)?;
    observer.begin(Phase::Done);
    Ok(method)
}
