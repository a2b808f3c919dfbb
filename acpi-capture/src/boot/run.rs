//! A list of entries of one size.

use handoff_abi::PhysAddr;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BootError, BootItem, MAX_ENTRIES, given, load, module};
use crate::ReadPhys;
use crate::memory::{E820Entries, UefiDescriptors};

/// `hvm_modlist_entry`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PvhModuleRaw {
    base: U64,
    size: U64,
    command_line: U64,
    reserved: U64,
}

/// What the entries are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Base, length and type number.
    E820,
    /// Descriptors of UEFI.
    Uefi,
    /// Modules as PVH lists them.
    PvhModules,
}

impl Kind {
    /// Bytes of an entry that mean something.
    const fn needed(self) -> u32 {
        match self {
            Self::E820 => 20,
            Self::Uefi => 40,
            Self::PvhModules => 32,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    kind: Kind,
    next: PhysAddr,
    left: u32,
    size: u32,
    followed: u32,
}

impl Run {
    /// `count` entries of `size` bytes from `at` on.
    pub(super) const fn of(kind: Kind, at: PhysAddr, count: u32, size: u32) -> Self {
        Self {
            kind,
            next: at,
            left: count,
            size,
            followed: 0,
        }
    }

    /// As many entries of `size` bytes from `at` on as there are in `length`.
    ///
    /// # Errors
    /// Where an entry is too small, or they are no whole number.
    pub(super) fn within(
        kind: Kind,
        at: PhysAddr,
        length: u32,
        size: u32,
    ) -> Result<Self, BootError> {
        if size < kind.needed() || length.checked_rem(size) != Some(0) {
            return Err(BootError::Length {
                address: at,
                length: size,
            });
        }
        let count = length.checked_div(size).unwrap_or(0);
        Ok(Self::of(kind, at, count, size))
    }

    /// The next entry. The list ends at what cannot be read.
    pub(super) fn next(&mut self, memory: &impl ReadPhys) -> Option<Result<BootItem, BootError>> {
        let address = self.next;
        self.left = self.left.checked_sub(1)?;
        if self.followed >= MAX_ENTRIES {
            self.left = 0;
            return Some(Err(BootError::TooMany { address }));
        }
        self.followed = self.followed.saturating_add(1);
        let item = entry(self.kind, memory, address);
        match (item, address.checked_add(self.size.into())) {
            (Err(BootError::Unreadable { .. }), _) => self.left = 0,
            (_, Some(next)) => self.next = next,
            (_, None) => self.left = 0,
        }
        Some(item)
    }
}

fn entry(kind: Kind, memory: &impl ReadPhys, at: PhysAddr) -> Result<BootItem, BootError> {
    let unreadable = BootError::Unreadable { address: at };
    match kind {
        Kind::E820 => {
            let bytes: [u8; E820Entries::BIOS] = load(memory, at)?;
            let mut entries = E820Entries::parse(&bytes, bytes.len()).map_err(|_| unreadable)?;
            entries.next().map(BootItem::Memory).ok_or(unreadable)
        }
        Kind::Uefi => {
            let bytes: [u8; 40] = load(memory, at)?;
            let mut entries =
                UefiDescriptors::parse(&bytes, bytes.len()).map_err(|_| unreadable)?;
            entries.next().map(BootItem::Memory).ok_or(unreadable)
        }
        Kind::PvhModules => {
            let raw: PvhModuleRaw = load(memory, at)?;
            module(
                raw.base.get(),
                raw.size.get(),
                given(raw.command_line.get()),
            )
        }
    }
}

/// Bytes of an entry of PVH's list of modules.
pub(super) const PVH_MODULE: u32 = size_of::<PvhModuleRaw>() as u32;
const _: () = assert!(PVH_MODULE == Kind::PvhModules.needed());
