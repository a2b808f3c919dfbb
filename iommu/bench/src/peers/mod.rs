//! How other drivers move a device from domain to domain, one after the other.
//!
//! | driver | functions it is in |
//! | --- | --- |
//! | Linux, VT-d | `device_block_translation`, `domain_context_clear_one`, `intel_context_flush_no_pasid`, `domain_context_mapping_one`, `qi_submit_sync` |
//! | Xen, VT-d | `reassign_device_ownership`, `domain_context_mapping_one`, `iommu_flush_context_device`, `iommu_flush_iotlb_dsi`, `queue_invalidate_wait` |
//! | ACRN, VT-d | `move_pt_device`, `iommu_detach_device`, `iommu_attach_device`, `dmar_issue_qi_request` |
//! | Linux, AMD-Vi | `amd_iommu_attach_device`, `detach_device`, `attach_device`, `dev_update_dte`, `update_dte256`, `iommu_queue_command_sync`, `iommu_completion_wait` |
//! | Xen, AMD-Vi | `reassign_device`, `amd_iommu_setup_domain_device`, `amd_iommu_set_root_page_table`, `amd_iommu_flush_device`, `send_iommu_command`, `flush_command_buffer` |
//!
//! None of them gives a unit two invalidations of one device together, and each invalidation has a
//! wait of its own.

pub mod amd;
pub mod vtd;

use core::fmt;

use handoff_abi::{PhysAddr, RequesterId};
use iommu::{Deadline, TableMemory};

use crate::platform::{Observer, Phase};
use crate::run::PATIENCE;

/// A wait was not done in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the unit did not finish in time")
    }
}

impl core::error::Error for TimedOut {}

/// One device after the other.
pub(crate) fn all(
    devices: &[RequesterId],
    observer: &mut impl Observer,
    mut one: impl FnMut(RequesterId) -> Result<(), TimedOut>,
) -> Result<(), TimedOut> {
    observer.begin(Phase::Prepare);
    observer.begin(Phase::Move);
    for &device in devices {
        one(device)?;
    }
    observer.begin(Phase::Settle);
    observer.begin(Phase::Done);
    Ok(())
}

/// Looks at `at` until it holds `done`. `meanwhile` is what is done at each look that finds it is
/// not. The clock is looked at only then: none of these drivers does before.
fn wait_for<M: TableMemory, C: Deadline>(
    memory: &M,
    clock: &mut C,
    at: PhysAddr,
    done: u64,
    mut meanwhile: impl FnMut(),
) -> Result<(), TimedOut> {
    let mut started = false;
    while memory.load(at) != done {
        meanwhile();
        if !started {
            clock.start(PATIENCE);
            started = true;
        } else if clock.expired() {
            return Err(TimedOut);
        }
    }
    Ok(())
}
