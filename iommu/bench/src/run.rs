//! One measurement from the bring-up of a unit to its end.

use core::fmt::{self, Write as _};

use handoff_abi::{DomainId, PhysAddr, PhysRange, RequesterId};
use iommu::MoveMethod;

use crate::case::{Case, Vendor, Way, devices};
use crate::platform::{Observer, Platform};
use crate::{ours, peers};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    step: &'static str,
    reason: heapless::String<80>,
}

impl Failure {
    /// `error` at `step`; as much of it as there is room for.
    pub(crate) fn at<E: fmt::Debug>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| {
            let mut reason = heapless::String::new();
            // What does not fit is cut off.
            let _ = write!(reason, "{error:?}");
            Self { step, reason }
        }
    }
}

const NOT_MOVED: Failure = Failure {
    step: "a device is not in the new domain",
    reason: heapless::String::new(),
};

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.reason)
    }
}

impl core::error::Error for Failure {}

impl From<peers::TimedOut> for Failure {
    fn from(error: peers::TimedOut) -> Self {
        Self::at("move")(error)
    }
}

/// Brings the unit up, and moves the devices. Says how they were moved, where Baton chose.
///
/// # Errors
/// Where anything was refused, or not done in time.
pub fn run<P: Platform>(
    platform: &P,
    case: Case,
    observer: &mut impl Observer,
) -> Result<Option<MoveMethod>, Failure> {
    let all = devices(case.devices);
    let moved = match case.vendor {
        Vendor::VtD => {
            let mut unit = ours::vtd::bring_up(platform, &all)?;
            if case.way.is_ours() {
                let method = ours::vtd::batch(&mut unit, &all, observer)?;
                let moved = |&device: &RequesterId| unit.domain_of(device) == Some(B);
                return all
                    .iter()
                    .all(moved)
                    .then_some(Some(method))
                    .ok_or(NOT_MOVED);
            }
            drop(unit);
            let mut unit = peers::vtd::Unit::take(platform);
            match case.way {
                Way::Xen => peers::all(&all, observer, |device| unit.xen(device)),
                Way::Acrn => peers::all(&all, observer, |device| unit.acrn(device)),
                _ => peers::all(&all, observer, |device| unit.linux(device)),
            }?;
            all.iter().all(|&device| unit.is_moved(device))
        }
        Vendor::AmdVi => {
            let mut unit = ours::amd::bring_up(platform, &all)?;
            if case.way.is_ours() {
                let method = match case.way {
                    Way::Switch => ours::amd::switch(&mut unit, &all, observer),
                    _ => ours::amd::batch(&mut unit, &all, observer),
                }?;
                let moved = |&device: &RequesterId| unit.domain_of(device) == Some(B);
                return all
                    .iter()
                    .all(moved)
                    .then_some(Some(method))
                    .ok_or(NOT_MOVED);
            }
            drop(unit);
            let mut unit = peers::amd::Unit::take(platform);
            match case.way {
                Way::Xen => peers::all(&all, observer, |device| unit.xen(device)),
                _ => peers::all(&all, observer, |device| unit.linux(device)),
            }?;
            all.iter().all(|&device| unit.is_moved(device))
        }
    };
    moved.then_some(None).ok_or(NOT_MOVED)
}
