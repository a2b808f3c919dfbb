//! One measurement from the bring-up of a unit to its end.

use core::fmt;

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId, UnitKind};
use iommu::{
    AttachError, DomainError, EnableError, InvalidateError, MapError, MoveError, MoveMethod,
    PrepareError,
};

use crate::case::{Case, Way, devices};
use crate::peers::{self, TimedOut};
use crate::platform::{Observer, Platform};
use crate::{Vendor, ours};

/// The domain the devices come from.
pub const A: DomainId = DomainId(1);
/// The domain they go to.
pub const B: DomainId = DomainId(2);

const fn range(base: u64, length: u64) -> PhysRange {
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + length))
}

/// The memory of the unit's tables.
pub const ARENA: PhysRange = range(0x200_0000, 0x80_0000);
/// Memory in which the waits of others say that they are done.
pub const STATUS: PhysRange = range(0x280_0000, 0x1_0000);
/// What devices in the two domains reach, at addresses equal to the physical ones.
pub const MEMORY: [PhysRange; 2] = [range(0x1000_0000, 0x1_0000), range(0x2000_0000, 0x1_0000)];

/// The longest a unit may take over anything, in microseconds.
pub(crate) const PATIENCE: u32 = 1_000_000;

/// What did not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The unit of the platform is of the other vendor than the case says.
    OtherVendor,
    /// Its tables were not laid out.
    Prepare(PrepareError),
    /// A domain was not made.
    Domain(DomainError),
    /// Memory was not mapped.
    Map(MapError),
    /// What was mapped was not flushed.
    Invalidate(InvalidateError),
    /// The unit was not brought up.
    Enable(EnableError),
    /// The move was not prepared.
    Attach(AttachError),
    /// Baton did not move the devices.
    Move(MoveError),
    /// Another way did not move them.
    TimedOut(TimedOut),
    /// The move was made, and the tables do not have this device in the new domain.
    NotMoved(RequesterId),
}

macro_rules! from {
    ($($error:ident => $variant:ident),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from!(
    PrepareError => Prepare,
    DomainError => Domain,
    MapError => Map,
    InvalidateError => Invalidate,
    EnableError => Enable,
    AttachError => Attach,
    MoveError => Move,
    TimedOut => TimedOut
);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherVendor => f.write_str("the unit is of the other vendor"),
            Self::Prepare(error) => error.fmt(f),
            Self::Domain(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Invalidate(error) => error.fmt(f),
            Self::Enable(error) => error.fmt(f),
            Self::Attach(error) => error.fmt(f),
            Self::Move(error) => error.fmt(f),
            Self::TimedOut(error) => error.fmt(f),
            Self::NotMoved(device) => write!(f, "{device} is not in the new domain"),
        }
    }
}

impl core::error::Error for Failure {}

/// Brings the unit up, and moves the devices. Says how they were moved, where Baton chose.
///
/// # Errors
/// Where anything was refused, or not done in time.
pub fn run<P: Platform>(
    platform: &P,
    case: Case,
    observer: &mut impl Observer,
) -> Result<Option<MoveMethod>, Failure> {
    let kind = platform.description().kind;
    if (kind == UnitKind::AmdVi) != (case.vendor == Vendor::AmdVi) {
        return Err(Failure::OtherVendor);
    }
    let all = devices(case.devices);
    let mut unit = ours::bring_up(platform, &all)?;
    match case.way {
        Way::Batch | Way::Switch => {
            let method = match case.way {
                Way::Switch => ours::switch(&mut unit, &all, observer)?,
                _ => ours::batch(&mut unit, &all, observer)?,
            };
            moved(&all, |device| unit.domain_of(device) == Some(B))?;
            Ok(Some(method))
        }
        Way::Linux | Way::Xen | Way::Acrn => {
            let parts = unit.into_parts();
            if case.vendor == Vendor::VtD {
                let mut unit = peers::vtd::Unit::take(parts);
                match case.way {
                    Way::Xen => peers::all(&all, observer, |device| unit.xen(device)),
                    Way::Acrn => peers::all(&all, observer, |device| unit.acrn(device)),
                    _ => peers::all(&all, observer, |device| unit.linux(device)),
                }?;
                moved(&all, |device| unit.is_moved(device))?;
            } else {
                let mut unit = peers::amd::Unit::take(parts);
                match case.way {
                    Way::Xen => peers::all(&all, observer, |device| unit.xen(device)),
                    _ => peers::all(&all, observer, |device| unit.linux(device)),
                }?;
                moved(&all, |device| unit.is_moved(device))?;
            }
            Ok(None)
        }
    }
}

fn moved(devices: &[RequesterId], is: impl Fn(RequesterId) -> bool) -> Result<(), Failure> {
    match devices.iter().find(|&&device| !is(device)) {
        Some(&device) => Err(Failure::NotMoved(device)),
        None => Ok(()),
    }
}
