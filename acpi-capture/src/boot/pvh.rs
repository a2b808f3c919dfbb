//! PVH: `hvm_start_info` (Xen, "x86/HVM direct boot ABI").

use handoff_abi::PhysAddr;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::run::{Kind, PVH_MODULE, Run};
use super::{BootError, BootItem, Step, given, load, structure};
use crate::ReadPhys;
use crate::memory::E820Entries;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StartInfoRaw {
    magic: U32,
    version: U32,
    flags: U32,
    modules: U32,
    module_list: U64,
    command_line: U64,
    rsdp: U64,
    memory_map: U64,
    memory_map_entries: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<StartInfoRaw>() == 56);

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;

/// What of the start info was not said yet.
#[derive(Clone, Debug)]
pub(super) struct StartInfo {
    steps: [Option<Step>; 5],
}

impl StartInfo {
    pub(super) fn read(memory: &impl ReadPhys, address: PhysAddr) -> Result<Self, BootError> {
        let raw: StartInfoRaw = load(memory, address)?;
        if raw.magic.get() != MAGIC {
            return Err(BootError::Magic {
                address,
                found: raw.magic.get(),
            });
        }
        if raw.version.get() < VERSION {
            return Err(BootError::Version {
                address,
                found: raw.version.get(),
                needed: VERSION,
            });
        }
        let structure = structure(address, size_of::<StartInfoRaw>() as u64)?;
        let list = |kind, at: U64, count: U32, size| {
            Some(Step::List(Run::of(
                kind,
                PhysAddr(at.get()),
                count.get(),
                size,
            )))
        };
        Ok(Self {
            steps: [
                Some(Step::Item(structure)),
                given(raw.rsdp.get()).map(|at| Step::Item(BootItem::Rsdp(at))),
                given(raw.command_line.get()).map(|at| Step::Item(BootItem::CommandLine(at))),
                list(Kind::PvhModules, raw.module_list, raw.modules, PVH_MODULE),
                list(
                    Kind::E820,
                    raw.memory_map,
                    raw.memory_map_entries,
                    E820Entries::PVH as u32,
                ),
            ],
        })
    }

    pub(super) fn next(&mut self) -> Option<Step> {
        self.steps.iter_mut().find_map(Option::take)
    }
}
