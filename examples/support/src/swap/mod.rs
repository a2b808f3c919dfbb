//! Baton in an example kernel: the machine is divided, handed over and taken over here.
//!
//! [`run`] is where each kernel begins, whether it boots or is launched. Its processors then have
//! [roles](processors::Role): the control processor holds the [`kernel::Kernel`] and follows the
//! protocol, the service processor serves, freezes and commits.

pub mod asked;
pub mod attack;
pub mod bad_plans;
pub mod bring_up;
pub mod command_line;
pub mod control;
pub mod devices;
pub mod entered;
pub mod faults;
pub mod fence;
pub mod filtered;
pub mod first;
pub mod generator;
pub mod handoff;
pub mod handover;
pub mod holes;
pub mod host;
pub mod inventory;
pub mod kernel;
pub mod launch;
pub mod linux;
pub mod load;
pub mod misbehave;
pub mod modules;
pub mod own_devices;
pub mod plug;
pub mod processors;
pub mod reclaim;
pub mod remapping;
pub mod reserved;
pub mod serving;
pub mod spoil;
pub mod undo;
pub mod work;

use handoff_abi::{DomainId, PartitionId};

use crate::boot::{BootInfo, Entry};
use crate::{console, cpu, println};

pub use kernel::Config;

/// The vector of the network device's interrupts, on whichever kernel serves.
pub const NIC_VECTOR: u8 = 0x40;
/// The domain of the workload's devices.
pub const WORKLOAD_DOMAIN: DomainId = DomainId(1);

/// The domain of a partition's devices.
#[must_use]
pub const fn domain_of(partition: PartitionId) -> DomainId {
    DomainId(16 + partition.0)
}

/// A kernel's life, from its entry on.
pub fn run(entry: Entry, config: &'static Config) -> ! {
    let (loader, information) = match entry {
        Entry::Loaded {
            loader,
            information,
        } => (loader, information),
        // SAFETY: this is the entry, on the successor's first processor.
        Entry::Successor { argument, receipt } => unsafe {
            entered::enter(config, argument, receipt)
        },
    };
    // SAFETY: the first UART of a PC is at this port, and nobody else runs yet.
    unsafe { console::init(0x3f8) };
    // SAFETY: the boot tables map the first 4 GiB.
    let info = match unsafe { BootInfo::read(loader, information) } {
        Ok(info) => info,
        Err(error) => {
            println!("@failed kernel={} text=\"{error}\"", config.name);
            cpu::halt_forever()
        }
    };
    println!("{}: command line '{}'", config.name, info.command_line());
    // SAFETY: this is the entry, with what the boot loader passed.
    if let Err(error) = unsafe { first::boot(config, &info) } {
        println!("@failed kernel={} text=\"{error}\"", config.name);
    }
    cpu::halt_forever()
}
