//! What devices keep reaching on firmware's behalf: VT-d's RMRR, AMD-Vi's IVMD.
//!
//! It is mapped in the domain of its device before that is let in, and follows it from domain to domain.

use alloc::vec::Vec;

use handoff_abi::{DomainId, PciFunction, PhysRange};
use iommu::Access;
use partition_core::plan::{MapReason, Plan};

use super::inventory::Topology;
use super::kernel::{Failure, Kernel};
use super::remapping::Remapping;

/// Of some functions. What a damaged part of the table might have said is not in it: such functions
/// are not given away.
pub fn of(
    remapping: &Remapping<'_>,
    topology: &Topology,
    functions: &[PciFunction],
) -> Vec<PhysRange> {
    functions
        .iter()
        .filter_map(|&function| remapping.reserved_for(function, topology))
        .flatten()
        .collect()
}

/// Of the functions of a plan.
#[must_use]
pub fn of_plan(plan: &Plan) -> Vec<PhysRange> {
    plan.maps()
        .iter()
        .filter(|map| map.reason == MapReason::Reserved)
        .map(|map| map.range)
        .collect()
}

/// Lets the devices of a domain reach it.
///
/// # Errors
/// Where the unit's tables are full, or do not reach so far.
pub fn map(kernel: &mut Kernel, domain: DomainId, reserved: &[PhysRange]) -> Result<(), Failure> {
    for &memory in reserved {
        let unit = kernel.unit()?;
        while let Some(part) = unit.first_unmapped(domain, memory) {
            let pending = unit.map(domain, part.base().0, part, Access::READ_WRITE)?;
            unit.flush(pending)?;
        }
    }
    Ok(())
}

/// Takes it out of the reach of the devices that stay behind.
///
/// # Errors
/// Where the unit does not answer.
pub fn unmap(kernel: &mut Kernel, domain: DomainId, reserved: &[PhysRange]) -> Result<(), Failure> {
    for memory in reserved {
        let unit = kernel.unit()?;
        let mut at = memory.base().0;
        while at < memory.end().0 {
            let Some(leaf) = unit.translate(domain, at) else {
                at += handoff_abi::FRAME_SIZE;
                continue;
            };
            let pending = unit.unmap(domain, leaf.iova, leaf.memory.length())?;
            unit.flush(pending)?;
            at = leaf.iova + leaf.memory.length();
        }
    }
    Ok(())
}
