//! The fence as these kernels work it: a unit that Baton drives, or one that the kernel drives itself
//! (`iommu=host`) until it retires.

use alloc::vec::Vec;
use core::ops::Deref;

use handoff_abi::{ApicId, DomainId, InterruptMessage, InterruptTarget, PhysRange, RequesterId};
use iommu::mmio::{CacheFlush, DirectMemory, Mmio};
use iommu::{
    Access, Fault, FaultCount, HostManaged, InterruptHandle, MoveMethod, Pending, RegisterError,
    State,
};

use super::host::HostVtd;
use super::kernel::{Failure, Timer, Unit};
use crate::{mmio, println};

/// A host's unit, with the tables that wait beside it.
type Managed = HostManaged<HostVtd, Mmio, DirectMemory, Timer>;

/// The unit with its tables. What only looks at them is the same for both kinds.
#[derive(Debug)]
pub enum Fence {
    /// Baton's driver has it.
    Own(Unit),
    /// The kernel's own driver has it.
    Host(Managed),
}

impl Deref for Fence {
    type Target = Unit;

    fn deref(&self) -> &Unit {
        match self {
            Self::Own(unit) => unit,
            Self::Host(managed) => managed.own(),
        }
    }
}

/// What a host has done already leaves nothing to flush.
fn done<E>(result: Result<(), E>) -> Result<Pending, E> {
    result.map(|()| Pending::none())
}

macro_rules! both {
    ($self:expr, $unit:ident => $own:expr, $managed:ident => $host:expr) => {
        match $self {
            Self::Own($unit) => Ok($own?),
            Self::Host($managed) => Ok($host?),
        }
    };
}

impl Fence {
    /// See [`Unit::enable`]: a host's unit is on already.
    pub fn enable(&mut self) -> Result<(), Failure> {
        both!(self, unit => unit.enable(), _managed => Ok::<_, Failure>(()))
    }

    /// See [`Unit::create_domain`].
    pub fn create_domain(&mut self, id: DomainId) -> Result<(), Failure> {
        both!(self, unit => unit.create_domain(id), managed => managed.create_domain(id))
    }

    /// See [`Unit::destroy_domain`].
    pub fn destroy_domain(&mut self, id: DomainId) -> Result<(), Failure> {
        both!(self, unit => unit.destroy_domain(id), managed => managed.destroy_domain(id))
    }

    /// See [`Unit::map`].
    pub fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.map(domain, iova, memory, access),
            managed => done(managed.map(domain, iova, memory, access))
        )
    }

    /// See [`Unit::unmap`].
    pub fn unmap(&mut self, domain: DomainId, iova: u64, length: u64) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.unmap(domain, iova, length),
            managed => done(managed.unmap(domain, iova, length))
        )
    }

    /// See [`Unit::attach`].
    pub fn attach(&mut self, requester: RequesterId, domain: DomainId) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.attach(requester, domain),
            managed => done(managed.attach(requester, domain))
        )
    }

    /// See [`Unit::attach_reserved`]. A host's driver maps what it is told to, and is not asked.
    pub fn attach_reserved(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
        reserved: &[PhysRange],
    ) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.attach_reserved(requester, domain, reserved),
            managed => done(managed.attach(requester, domain))
        )
    }

    /// See [`Unit::block`].
    pub fn block(&mut self, requester: RequesterId) -> Result<Pending, Failure> {
        both!(
            self,
            unit => Ok::<_, Failure>(unit.block(requester)),
            managed => done(managed.block(requester))
        )
    }

    /// See [`Unit::move_devices`]. A host's driver moves one by one.
    pub fn move_devices(
        &mut self,
        devices: &[RequesterId],
        to: Option<DomainId>,
        with: Pending,
    ) -> Result<MoveMethod, Failure> {
        both!(
            self,
            unit => unit.move_devices(devices, to, with),
            managed => managed.move_devices(devices, to).map(|()| MoveMethod::Selective)
        )
    }

    /// See [`Unit::allocate_interrupt`].
    pub fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<(InterruptHandle, Pending), Failure> {
        both!(
            self,
            unit => unit.allocate_interrupt(source, target),
            managed => managed.allocate_interrupt(source, target).map(|handle| (handle, Pending::none()))
        )
    }

    /// Lets a device raise any vector at one processor, whatever message it sends, where the unit can: see
    /// `iommu::amd::Unit::open_vectors`. The messages of a kernel that knows nothing of remapping pass a
    /// VT-d unit, or do not, whatever is done for the device.
    pub fn open_vectors(
        &mut self,
        source: RequesterId,
        destination: ApicId,
    ) -> Result<Pending, Failure> {
        match self {
            Self::Own(Unit::AmdVi(unit)) => Ok(unit.open_vectors(source, destination)?),
            Self::Own(Unit::VtD(_)) | Self::Host(_) => Ok(Pending::none()),
        }
    }

    /// See [`Unit::retarget`].
    pub fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.retarget(handle, target),
            managed => done(managed.retarget(handle, target))
        )
    }

    /// See [`Unit::clear_interrupt`].
    pub fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.clear_interrupt(handle),
            managed => done(managed.clear_interrupt(handle))
        )
    }

    /// See [`Unit::clear_interrupts`].
    pub fn clear_interrupts(&mut self, source: RequesterId) -> Result<Pending, Failure> {
        let managed = match self {
            Self::Own(unit) => return Ok(unit.clear_interrupts(source)),
            Self::Host(managed) => managed,
        };
        let all: Vec<_> = managed.own().interrupts_of(source).collect();
        for interrupt in all {
            managed.clear_interrupt(interrupt.handle)?;
        }
        Ok(Pending::none())
    }

    /// See [`Unit::flush`].
    pub fn flush(&mut self, pending: Pending) -> Result<(), Failure> {
        both!(self, unit => unit.flush(pending), _managed => Ok::<_, Failure>(()))
    }

    /// See [`Unit::silence`]: a host's driver is not asked to.
    pub fn silence(&mut self, requester: RequesterId, silent: bool) -> Result<Pending, Failure> {
        both!(
            self,
            unit => unit.silence(requester, silent),
            _managed => Ok::<_, Failure>(Pending::none())
        )
    }

    /// See [`Unit::set_fault_message`]; says whether faults are announced from now on. An AMD-Vi
    /// unit's message stands in a function's configuration space, which these kernels leave alone, and
    /// a host's unit has the host's.
    ///
    /// # Errors
    /// As there.
    pub fn announce_faults(&mut self, message: InterruptMessage) -> Result<bool, RegisterError> {
        match self {
            Self::Own(unit @ Unit::VtD(_)) => {
                unit.set_fault_message(Some(message))?;
                Ok(true)
            }
            Self::Own(_) | Self::Host(_) => Ok(false),
        }
    }

    /// See [`Unit::drain_faults`]. This kernel's own driver leaves the fault records alone.
    ///
    /// # Errors
    /// As there.
    pub fn drain_faults(&mut self, each: impl FnMut(Fault)) -> Result<FaultCount, RegisterError> {
        match self {
            Self::Own(unit) => unit.drain_faults(each),
            Self::Host(managed) => managed.own_mut().drain_faults(each),
        }
    }

    /// What the next steward must know; `None` while the unit is a host's, and there is nothing that
    /// anybody could take over.
    pub fn record(&mut self) -> Result<Option<State>, Failure> {
        both!(
            self,
            unit => unit.record().map(Some),
            _managed => Ok::<_, Failure>(None)
        )
    }

    /// Makes a host's unit Baton's: this kernel is about to retire. Where the unit does not do it, it
    /// has no driver but this, which can be asked again.
    pub fn taken_over(self) -> (Self, Result<(), Failure>) {
        let Self::Host(managed) = self else {
            return (self, Ok(()));
        };
        let queue = managed.host().queue();
        let mapped = mmio::pointer(queue.base());
        // SAFETY: the window maps the queue, which is the host's driver's: that does nothing any more
        // from here on. Every processor with 64-bit mode has CLFLUSH.
        let mut memory = unsafe { DirectMemory::new(queue, mapped, CacheFlush::Clflush) };
        match managed.take_over(&mut memory) {
            Ok(unit) => {
                println!("@taken-over unit={:#x}", unit.window().base().0);
                (Self::Own(unit), Ok(()))
            }
            Err((managed, error)) => (Self::Host(managed), Err(error.into())),
        }
    }
}
