//! The AMD-Vi driver against the strict register model of `iommu-model`: what it writes, in which
//! order, and who reaches what at every instant.

#[path = "strict_amd/adoption.rs"]
mod adoption;
#[path = "strict_amd/bring_up.rs"]
mod bring_up;
#[path = "strict_amd/closing.rs"]
mod closing;
#[path = "strict_amd/commands.rs"]
mod commands;
#[path = "strict_amd/events.rs"]
mod events;
#[path = "strict_amd/fence.rs"]
mod fence;
#[path = "strict_amd/interrupts.rs"]
mod interrupts;
#[path = "strict_amd/swap.rs"]
mod swap;
#[path = "strict_amd/vendor.rs"]
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
