//! The VT-d driver against the strict register model of `iommu-model`: what it writes, in which
//! order, and who reaches what at every instant.

#[path = "strict_vtd/adoption.rs"]
mod adoption;
#[path = "strict_vtd/bring_up.rs"]
mod bring_up;
#[path = "strict_vtd/closing.rs"]
mod closing;
#[path = "strict_vtd/faults.rs"]
mod faults;
#[path = "strict_vtd/fence.rs"]
mod fence;
#[path = "strict_vtd/holes.rs"]
mod holes;
#[path = "strict_vtd/interrupts.rs"]
mod interrupts;
#[path = "strict_vtd/invalidation.rs"]
mod invalidation;
#[path = "strict_vtd/swap.rs"]
mod swap;
#[path = "strict_vtd/switch.rs"]
mod switch;
#[path = "strict_vtd/vendor.rs"]
mod vendor;

// For either vendor.
#[path = "both/adoption.rs"]
mod adoption_of_either;
#[path = "both/bring_up.rs"]
mod bring_up_of_either;
#[path = "both/fence.rs"]
mod fence_of_either;
#[path = "both/in_flight.rs"]
mod in_flight;
#[path = "both/moves.rs"]
mod moves;
#[path = "both/random.rs"]
mod random;
#[path = "both/reserved.rs"]
mod reserved;
#[path = "both/rig.rs"]
mod rig;
#[path = "both/rogue.rs"]
mod rogue;
#[path = "both/storm.rs"]
mod storm;
