//! Linux: the boot parameters, `struct boot_params` (Linux, Documentation/arch/x86/zero-page.rst and
//! boot.rst).

use handoff_abi::PhysAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::run::{Kind, Run};
use super::{BootError, BootItem, Framebuffer, Step, given, load, module, structure};
use crate::ReadPhys;
use crate::memory::{E820Entries, SetupData, SetupItem, SetupKind};

/// `screen_info`, from offset 0 on, as far as a linear frame buffer goes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ScreenRaw {
    text: [u8; 0x0f],
    kind: u8,
    points: U16,
    width: U16,
    height: U16,
    depth: U16,
    base: U32,
    size: U32,
    commands: [u8; 4],
    pitch: U16,
    colours: [u8; 16],
    capabilities: U32,
    base_high: U32,
}

/// Offset 70h.
const RSDP: u64 = 0x70;

/// From offset C0h on.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HighHalvesRaw {
    ramdisk: U32,
    ramdisk_size: U32,
    command_line: U32,
}

/// `efi_info`, from offset 1C0h on, and what is up to the number of entries at 1E8h.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EfiRaw {
    signature: [u8; 4],
    system_table: U32,
    descriptor_size: U32,
    descriptor_version: U32,
    memory_map: U32,
    memory_map_size: U32,
    system_table_high: U32,
    memory_map_high: U32,
    other: [u8; 8],
    e820_entries: u8,
}

/// `setup_header` from offset 1FEh to 258h.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderRaw {
    boot_flag: U16,
    jump: U16,
    magic: [u8; 4],
    version: U16,
    real_mode: [u8; 0x10],
    ramdisk: U32,
    ramdisk_size: U32,
    boot_sector: [u8; 8],
    command_line: U32,
    kernel: [u8; 0x24],
    setup_data: U64,
}

const _: () = {
    assert!(size_of::<ScreenRaw>() == 0x3e);
    assert!(size_of::<EfiRaw>() == 0x29);
    assert!(size_of::<HeaderRaw>() == 0x5a);
};

/// Bytes of the boot parameters.
const BOOT_PARAMS: u64 = 4096;
const HIGH_HALVES: u64 = 0xc0;
const EFI: u64 = 0x1c0;
const HEADER: u64 = 0x1fe;
const E820: u64 = 0x2d0;
/// Entries of the memory map in the boot parameters themselves.
const E820_ENTRIES: u32 = 128;
/// The first version whose loader can be asked for a 64-bit entry.
const VERSION: u32 = 0x020c;

/// What of the boot parameters was not said yet.
#[derive(Clone, Debug)]
pub(super) struct ZeroPage<M> {
    steps: [Option<Result<Step, BootError>>; 8],
    setup: SetupData<M>,
}

const fn joined(low: U32, high: U32) -> u64 {
    (high.get() as u64) << 32 | low.get() as u64
}

impl<M: ReadPhys> ZeroPage<M> {
    pub(super) fn read(memory: M, address: PhysAddr) -> Result<Self, BootError> {
        let at = |offset: u64| {
            address
                .checked_add(offset)
                .ok_or(BootError::Unreadable { address })
        };
        let header: HeaderRaw = load(&memory, at(HEADER)?)?;
        if &header.magic != b"HdrS" {
            return Err(BootError::Magic {
                address,
                found: u32::from_le_bytes(header.magic),
            });
        }
        let version = u32::from(header.version.get());
        if version < VERSION {
            return Err(BootError::Version {
                address,
                found: version,
                needed: VERSION,
            });
        }
        let screen: ScreenRaw = load(&memory, address)?;
        let rsdp: U64 = load(&memory, at(RSDP)?)?;
        let high: HighHalvesRaw = load(&memory, at(HIGH_HALVES)?)?;
        let efi: EfiRaw = load(&memory, at(EFI)?)?;
        let e820 = at(E820)?;

        let item = |item| Some(Ok(Step::Item(item)));
        let line = joined(header.command_line, high.command_line);
        let size = joined(header.ramdisk_size, high.ramdisk_size);
        let ramdisk = joined(header.ramdisk, high.ramdisk);
        // The loader was a UEFI application, or started by one.
        let by_efi = &efi.signature == b"EL64" || &efi.signature == b"EL32";
        let system_table = joined(efi.system_table, efi.system_table_high);
        Ok(Self {
            steps: [
                item(structure(address, BOOT_PARAMS)?),
                given(rsdp.get()).and_then(|at| item(BootItem::Rsdp(at))),
                given(line).and_then(|at| item(BootItem::CommandLine(at))),
                (size != 0).then(|| module(ramdisk, size, None).map(Step::Item)),
                framebuffer(&screen).and_then(item),
                given(system_table)
                    .filter(|_| by_efi)
                    .and_then(|at| item(BootItem::EfiSystemTable(at))),
                Some(Ok(Step::List(Run::of(
                    Kind::E820,
                    e820,
                    u32::from(efi.e820_entries).min(E820_ENTRIES),
                    E820Entries::BIOS as u32,
                )))),
                by_efi.then(|| {
                    let map = joined(efi.memory_map, efi.memory_map_high);
                    let (length, size) = (efi.memory_map_size.get(), efi.descriptor_size.get());
                    Run::within(Kind::Uefi, PhysAddr(map), length, size).map(Step::List)
                }),
            ],
            setup: SetupData::new(memory, PhysAddr(header.setup_data.get())),
        })
    }

    pub(super) fn next(&mut self) -> Option<Result<Step, BootError>> {
        if let Some(step) = self.steps.iter_mut().find_map(Option::take) {
            return Some(step);
        }
        loop {
            match self.setup.next()? {
                Ok(item) if item.kind == SetupKind::E820Extension => {
                    return Some(more_entries(&item).map(Step::List));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(BootError::Setup(error))),
            }
        }
    }
}

/// Entries of the memory map for which the boot parameters had no room.
fn more_entries(item: &SetupItem) -> Result<Run, BootError> {
    let at = item.data.base();
    let length = item.data.length();
    let whole = u32::try_from(length).map_err(|_| BootError::Wraps {
        address: at,
        length,
    })?;
    Run::within(Kind::E820, at, whole, E820Entries::BIOS as u32)
}

/// The linear frame buffer, if the screen is one.
fn framebuffer(screen: &ScreenRaw) -> Option<BootItem> {
    /// `VIDEO_TYPE_VLFB`, set up through VESA, and `VIDEO_TYPE_EFI`.
    const LINEAR: [u8; 2] = [0x23, 0x70];
    /// `VIDEO_CAPABILITY_64BIT_BASE`.
    const HIGH: u32 = 1 << 1;
    if !LINEAR.contains(&screen.kind) {
        return None;
    }
    let base = if screen.capabilities.get() & HIGH == 0 {
        screen.base.get().into()
    } else {
        joined(screen.base, screen.base_high)
    };
    Some(BootItem::Framebuffer(Framebuffer {
        base: PhysAddr(base),
        pitch: screen.pitch.get().into(),
        width: screen.width.get().into(),
        height: screen.height.get().into(),
        bits_per_pixel: u8::try_from(screen.depth.get()).unwrap_or(u8::MAX),
    }))
}
