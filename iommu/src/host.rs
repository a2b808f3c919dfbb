//! A unit that the embedder drives itself, until it is taken over.

use core::fmt;

use handoff_abi::{DomainId, InterruptTarget, PhysRange, RequesterId};

use crate::{
    Access, AttachError, Deadline, DomainError, EnableError, InterruptError, InterruptHandle,
    InvalidateError, MapError, RegisterIo, TableMemory, Unit, UnmapError,
};

/// An embedder's own driver of a unit.
///
/// Every function returns when what it did is in force: a translation or an interrupt that it took
/// away is out of the unit's caches. Where it returns an error, nothing has changed.
///
/// The caches tell domains apart by the number in the tables (VT-d: DID; AMD-Vi: `DomainID`), so the
/// host must put none there that is the [`DomainId`] of a domain of Baton's. Else the translations of
/// two domains could mix from the exchange of the tables until everything was invalidated. A driver
/// that numbers its own from above the greatest of Baton's is on the safe side.
pub trait HostDriver {
    /// Why the driver did not do it.
    type Error;

    /// Makes an empty address space. A driver that makes them on demand has nothing to do.
    ///
    /// # Errors
    /// The driver's own.
    fn create_domain(&mut self, id: DomainId) -> Result<(), Self::Error>;

    /// Takes away an address space that no device is attached to.
    ///
    /// # Errors
    /// The driver's own.
    fn destroy_domain(&mut self, id: DomainId) -> Result<(), Self::Error>;

    /// Lets the devices of a domain reach `memory` at the device addresses from `iova` on.
    ///
    /// # Errors
    /// The driver's own.
    fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<(), Self::Error>;

    /// Takes `length` bytes of device addresses from `iova` on out of a domain.
    ///
    /// # Errors
    /// The driver's own.
    fn unmap(&mut self, domain: DomainId, iova: u64, length: u64) -> Result<(), Self::Error>;

    /// Lets a blocked device use a domain.
    ///
    /// # Errors
    /// The driver's own.
    fn attach(&mut self, requester: RequesterId, domain: DomainId) -> Result<(), Self::Error>;

    /// Takes all memory out of a device's reach.
    ///
    /// # Errors
    /// The driver's own.
    fn block(&mut self, requester: RequesterId) -> Result<(), Self::Error>;

    /// Takes a free interrupt entry of a device and points it at a processor. The handle's index is
    /// what the device's messages name.
    ///
    /// # Errors
    /// The driver's own.
    fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<InterruptHandle, Self::Error>;

    /// Sends the interrupts of an entry elsewhere.
    ///
    /// # Errors
    /// The driver's own.
    fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<(), Self::Error>;

    /// Drops the interrupts of an entry from now on.
    ///
    /// # Errors
    /// The driver's own.
    fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<(), Self::Error>;
}

/// Why an operation on a host-managed unit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError<E> {
    /// The host's driver did not do it.
    Host(E),
    /// The own tables cannot have the domain.
    Domain(DomainError),
    /// They cannot have the mapping.
    Map(MapError),
    /// They cannot lose it, or not in this part.
    Unmap(UnmapError),
    /// They cannot have the device.
    Attach(AttachError),
    /// They cannot have the interrupt.
    Interrupt(InterruptError),
    /// Something of them is another unit's.
    Invalidate(InvalidateError),
}

impl<E: fmt::Display> fmt::Display for HostError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(error) => write!(f, "the host's driver: {error}"),
            Self::Domain(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Unmap(error) => error.fmt(f),
            Self::Attach(error) => error.fmt(f),
            Self::Interrupt(error) => error.fmt(f),
            Self::Invalidate(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for HostError<E> {}

macro_rules! own_errors {
    ($($variant:ident($error:ty)),* $(,)?) => {
        $(impl<E> From<$error> for HostError<E> {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

own_errors! {
    Domain(DomainError),
    Map(MapError),
    Unmap(UnmapError),
    Attach(AttachError),
    Interrupt(InterruptError),
    Invalidate(InvalidateError),
}

/// A unit that its host drives, and tables of Baton's own that are kept beside it.
///
/// Each operation is done by the host's driver, and the same is written into the tables of a
/// [`Unit`] that was prepared and not enabled. So at any time they say what the host's say, and
/// [`take_over`](Self::take_over) only has to put them into force: a few register writes, however
/// much was mapped, while translation and interrupt remapping stay on.
///
/// Where either side refuses, the other is put back. What cannot be put back is closed in the own
/// tables, never open.
#[derive(Debug)]
pub struct HostManaged<H, R, M, C> {
    host: H,
    own: Unit<R, M, C>,
}

impl<H: HostDriver, R: RegisterIo, M: TableMemory, C: Deadline> HostManaged<H, R, M, C> {
    /// Puts the tables of `own`, which was prepared and not enabled, beside those of the host.
    ///
    /// What the host has in force already is entered into `own` before, or through
    /// [`own_mut`](Self::own_mut): domains, mappings, devices, and interrupts at the index that they
    /// have ([`Unit::set_interrupt`]). A device that is in no domain there is blocked when the unit
    /// is taken over.
    ///
    /// Returns both back where `own` is in force already.
    ///
    /// # Errors
    /// Where there is nothing to take over.
    #[expect(
        clippy::result_large_err,
        reason = "nothing is lost, and nothing is copied twice"
    )]
    pub fn new(host: H, own: Unit<R, M, C>) -> Result<Self, (H, Unit<R, M, C>)> {
        if own.is_prepared() {
            Ok(Self { host, own })
        } else {
            Err((host, own))
        }
    }

    /// The host's driver.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// The host's driver, for what is the host's alone. What is changed there past this type has to
    /// be entered into the [own tables](Self::own_mut) too.
    pub const fn host_mut(&mut self) -> &mut H {
        &mut self.host
    }

    /// The tables that wait.
    pub const fn own(&self) -> &Unit<R, M, C> {
        &self.own
    }

    /// The tables that wait, to enter what the host has in force. What pends is flushed at once, and
    /// reaches no unit.
    pub const fn own_mut(&mut self) -> &mut Unit<R, M, C> {
        &mut self.own
    }

    /// Makes an empty domain.
    ///
    /// # Errors
    /// See [`HostError`]; nothing has changed.
    pub fn create_domain(&mut self, id: DomainId) -> Result<(), HostError<H::Error>> {
        self.own.create_domain(id)?;
        self.host.create_domain(id).map_err(|error| {
            // Made just now, and empty.
            let _ = self.own.destroy_domain(id);
            HostError::Host(error)
        })
    }

    /// Takes a domain away that no device is attached to.
    ///
    /// # Errors
    /// See [`HostError`]. Where it is the host's, the domain is gone in the own tables.
    pub fn destroy_domain(&mut self, id: DomainId) -> Result<(), HostError<H::Error>> {
        self.own.destroy_domain(id)?;
        self.host.destroy_domain(id).map_err(HostError::Host)
    }

    /// Lets the devices of `domain` reach `memory` at the device addresses from `iova` on.
    ///
    /// # Errors
    /// See [`HostError`]; nothing has changed.
    pub fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        memory: PhysRange,
        access: Access,
    ) -> Result<(), HostError<H::Error>> {
        let pending = self.own.map(domain, iova, memory, access)?;
        self.own.flush(pending)?;
        if let Err(error) = self.host.map(domain, iova, memory, access) {
            let pending = self.own.unmap(domain, iova, memory.length())?;
            self.own.flush(pending)?;
            return Err(HostError::Host(error));
        }
        Ok(())
    }

    /// Takes `length` bytes of device addresses from `iova` on out of a domain.
    ///
    /// # Errors
    /// See [`HostError`]. Where it is the host's, the own tables have lost the mapping: after the
    /// take-over it is out of reach.
    pub fn unmap(
        &mut self,
        domain: DomainId,
        iova: u64,
        length: u64,
    ) -> Result<(), HostError<H::Error>> {
        let pending = self.own.unmap(domain, iova, length)?;
        self.own.flush(pending)?;
        let unmapped = self.host.unmap(domain, iova, length);
        unmapped.map_err(HostError::Host)
    }

    /// Lets a blocked device use a domain.
    ///
    /// # Errors
    /// See [`HostError`]; nothing has changed.
    pub fn attach(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
    ) -> Result<(), HostError<H::Error>> {
        let pending = self.own.attach(requester, domain)?;
        self.own.flush(pending)?;
        if let Err(error) = self.host.attach(requester, domain) {
            let pending = self.own.block(requester);
            self.own.flush(pending)?;
            return Err(HostError::Host(error));
        }
        Ok(())
    }

    /// Takes all memory out of a device's reach.
    ///
    /// # Errors
    /// See [`HostError`]. Where it is the host's, the device is blocked from the take-over on.
    pub fn block(&mut self, requester: RequesterId) -> Result<(), HostError<H::Error>> {
        let pending = self.own.block(requester);
        self.own.flush(pending)?;
        self.host.block(requester).map_err(HostError::Host)
    }

    /// Moves devices, each from whatever domain it is attached to, or none, into the domain `to`, or
    /// into none. All are blocked before the first is attached anew.
    ///
    /// How many invalidations and waits that are is for the host's driver to say; a unit that was
    /// taken over does it with one wait ([`Unit::move_devices`]).
    ///
    /// # Errors
    /// See [`HostError`]. Devices that are not in `to` then are blocked.
    pub fn move_devices(
        &mut self,
        devices: &[RequesterId],
        to: Option<DomainId>,
    ) -> Result<(), HostError<H::Error>> {
        for &requester in devices {
            self.block(requester)?;
        }
        let Some(to) = to else { return Ok(()) };
        devices
            .iter()
            .try_for_each(|&requester| self.attach(requester, to))
    }

    /// Takes a free interrupt entry of a device and points it at a processor.
    ///
    /// # Errors
    /// See [`HostError`]; nothing has changed, but where the host gave an entry that the own tables
    /// cannot have and does not take it back.
    pub fn allocate_interrupt(
        &mut self,
        source: RequesterId,
        target: InterruptTarget,
    ) -> Result<InterruptHandle, HostError<H::Error>> {
        let handle = self
            .host
            .allocate_interrupt(source, target)
            .map_err(HostError::Host)?;
        match self.own.set_interrupt(handle, target) {
            Ok(pending) => {
                self.own.flush(pending)?;
                Ok(handle)
            }
            Err(error) => {
                self.host.clear_interrupt(handle).map_err(HostError::Host)?;
                Err(error.into())
            }
        }
    }

    /// Sends the interrupts of an entry elsewhere.
    ///
    /// # Errors
    /// See [`HostError`]; nothing has changed.
    pub fn retarget(
        &mut self,
        handle: InterruptHandle,
        target: InterruptTarget,
    ) -> Result<(), HostError<H::Error>> {
        let old = self.own.interrupt(handle).map(|entry| entry.target);
        let pending = self.own.retarget(handle, target)?;
        self.own.flush(pending)?;
        if let (Err(error), Some(old)) = (self.host.retarget(handle, target), old) {
            let pending = self.own.retarget(handle, old)?;
            self.own.flush(pending)?;
            return Err(HostError::Host(error));
        }
        Ok(())
    }

    /// Drops the interrupts of an entry from now on.
    ///
    /// # Errors
    /// See [`HostError`]. Where it is the host's, they are dropped from the take-over on.
    pub fn clear_interrupt(&mut self, handle: InterruptHandle) -> Result<(), HostError<H::Error>> {
        let pending = self.own.clear_interrupt(handle)?;
        self.own.flush(pending)?;
        self.host.clear_interrupt(handle).map_err(HostError::Host)
    }

    /// Puts the own tables into force in place of the host's, and is the unit's driver from there
    /// on. Translation and interrupt remapping stay on: a device that both tables allow the same
    /// never notices.
    ///
    /// The host's driver must not touch the unit any more, and is dropped. `queue` reaches the memory
    /// of the invalidation queue that the host left running (VT-d; see [`Unit::enable_over`]). The
    /// host's tables stay as they are and can be freed.
    ///
    /// # Errors
    /// [`EnableError`], with what there was: the unit may be left anywhere on the way, and this can
    /// be called again.
    #[expect(
        clippy::result_large_err,
        reason = "nothing is lost, and nothing is copied twice"
    )]
    pub fn take_over<Q: TableMemory>(
        mut self,
        queue: &mut Q,
    ) -> Result<Unit<R, M, C>, (Self, EnableError)> {
        match self.own.enable_over(queue) {
            Ok(()) => Ok(self.own),
            Err(error) => Err((self, error)),
        }
    }
}
