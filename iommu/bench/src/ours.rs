//! Baton's own ways.

pub(crate) mod vtd {
    use handoff_abi::RequesterId;
    use iommu::vtd::{Config, Pending, Unit};
    use iommu::{Access, MoveMethod};

    use crate::case::RESIDENT;
    use crate::platform::{Observer, Phase, Platform};
    use crate::run::{A, ARENA, B, Failure, MEMORY, PATIENCE};

    type Driver<P> =
        Unit<<P as Platform>::Registers, <P as Platform>::Memory, <P as Platform>::Clock>;

    /// A unit that is up, with the devices in the first domain.
    pub(crate) fn bring_up<P: Platform>(
        platform: &P,
        devices: &[RequesterId],
    ) -> Result<Driver<P>, Failure> {
        let config = Config {
            host_address_bits: 39,
            timeout_microseconds: PATIENCE,
            ..Config::default()
        };
        let mut unit = Unit::prepare(
            platform.registers(),
            platform.memory(),
            platform.clock(),
            platform.window(),
            ARENA,
            config,
        )
        .map_err(Failure::at("prepare"))?;
        for (domain, memory) in [A, B].into_iter().zip(MEMORY) {
            unit.create_domain(domain)
                .map_err(Failure::at("create a domain"))?;
            let mapped = unit
                .map(domain, memory.base().0, memory, Access::READ_WRITE)
                .map_err(Failure::at("map"))?;
            unit.flush(mapped).map_err(Failure::at("flush"))?;
        }
        unit.enable().map_err(Failure::at("enable"))?;
        unit.move_devices(&[RESIDENT], Some(B), Pending::none())
            .map_err(Failure::at("attach"))?;
        unit.move_devices(devices, Some(A), Pending::none())
            .map_err(Failure::at("attach"))?;
        Ok(unit)
    }

    /// Moves them without preparation.
    pub(crate) fn batch<R: iommu::RegisterIo, M: iommu::TableMemory, C: iommu::Deadline>(
        unit: &mut Unit<R, M, C>,
        devices: &[RequesterId],
        observer: &mut impl Observer,
    ) -> Result<MoveMethod, Failure> {
        observer.begin(Phase::Prepare);
        observer.begin(Phase::Move);
        let moving = unit
            .start_move(devices, Some(B), Pending::none())
            .map_err(Failure::at("start"))?;
        let method = unit.finish_move(moving).map_err(Failure::at("finish"))?;
        observer.begin(Phase::Settle);
        observer.begin(Phase::Done);
        Ok(method)
    }
}

pub(crate) mod amd {
    use handoff_abi::RequesterId;
    use iommu::amd::{Config, Moving, Pending, Unit};
    use iommu::{Access, Deadline, MoveMethod, RegisterIo, TableMemory};

    use crate::case::RESIDENT;
    use crate::platform::{Observer, Phase, Platform};
    use crate::run::{A, ARENA, B, Failure, MEMORY, PATIENCE};

    type Driver<P> =
        Unit<<P as Platform>::Registers, <P as Platform>::Memory, <P as Platform>::Clock>;

    /// IVHD flags: Coherent.
    const COHERENT: u8 = 1 << 5;

    /// A unit that is up, with the devices in the first domain.
    pub(crate) fn bring_up<P: Platform>(
        platform: &P,
        devices: &[RequesterId],
    ) -> Result<Driver<P>, Failure> {
        let config = Config {
            host_address_bits: 40,
            capability: platform.capability(),
            ivhd_flags: COHERENT,
            timeout_microseconds: PATIENCE,
            ..Config::default()
        };
        let mut unit = Unit::prepare(
            platform.registers(),
            platform.memory(),
            platform.clock(),
            platform.window(),
            ARENA,
            config,
        )
        .map_err(Failure::at("prepare"))?;
        for (domain, memory) in [A, B].into_iter().zip(MEMORY) {
            unit.create_domain(domain)
                .map_err(Failure::at("create a domain"))?;
            let mapped = unit
                .map(domain, memory.base().0, memory, Access::READ_WRITE)
                .map_err(Failure::at("map"))?;
            unit.flush(mapped).map_err(Failure::at("flush"))?;
        }
        unit.enable().map_err(Failure::at("enable"))?;
        unit.move_devices(&[RESIDENT], Some(B), Pending::none())
            .map_err(Failure::at("attach"))?;
        unit.move_devices(devices, Some(A), Pending::none())
            .map_err(Failure::at("attach"))?;
        Ok(unit)
    }

    /// Moves them without preparation.
    pub(crate) fn batch<R: RegisterIo, M: TableMemory, C: Deadline>(
        unit: &mut Unit<R, M, C>,
        devices: &[RequesterId],
        observer: &mut impl Observer,
    ) -> Result<MoveMethod, Failure> {
        observer.begin(Phase::Prepare);
        observer.begin(Phase::Move);
        let moving = unit
            .start_move(devices, Some(B), Pending::none())
            .map_err(Failure::at("start"))?;
        finish(unit, moving, observer)
    }

    /// Moves them as it was prepared.
    pub(crate) fn switch<R: RegisterIo, M: TableMemory, C: Deadline>(
        unit: &mut Unit<R, M, C>,
        devices: &[RequesterId],
        observer: &mut impl Observer,
    ) -> Result<MoveMethod, Failure> {
        observer.begin(Phase::Prepare);
        let prepared = unit
            .prepare_move(devices, Some(B))
            .map_err(Failure::at("prepare the move"))?;
        observer.begin(Phase::Move);
        let moving = unit
            .start_prepared(prepared, Pending::none())
            .map_err(Failure::at("start"))?;
        finish(unit, moving, observer)
    }

    fn finish<R: RegisterIo, M: TableMemory, C: Deadline>(
        unit: &mut Unit<R, M, C>,
        moving: Moving<'_>,
        observer: &mut impl Observer,
    ) -> Result<MoveMethod, Failure> {
        let installed = unit.install_move(moving).map_err(Failure::at("install"))?;
        observer.begin(Phase::Settle);
        let method = unit
            .wait_installed(installed)
            .map_err(Failure::at("settle"))?;
        observer.begin(Phase::Done);
        Ok(method)
    }
}
