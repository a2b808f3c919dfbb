//! Multiboot2: the tags of the boot information (Multiboot2 Specification 2.0, section 3.6).

use handoff_abi::PhysAddr;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::run::{Kind, Run};
use super::{BootError, BootItem, Framebuffer, MAX_ENTRIES, Step, load, module, structure};
use crate::ReadPhys;

/// The head of the boot information and of each tag: in the first total size and zero, in the
/// others type and size.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeadRaw {
    first: U32,
    second: U32,
}

/// Two words behind the head of a tag: bounds of a module, or size and version of the entries of a
/// memory map.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PairRaw {
    first: U32,
    second: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FramebufferRaw {
    base: U64,
    pitch: U32,
    width: U32,
    height: U32,
    bits_per_pixel: u8,
    kind: u8,
    reserved: [u8; 2],
}

/// Bytes of a head.
const HEAD: u32 = size_of::<HeadRaw>() as u32;

/// The tags that have not been read yet.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    /// The boot information, until that was said.
    whole: Option<BootItem>,
    next: PhysAddr,
    /// Bytes of the boot information from `next` on.
    left: u32,
    followed: u32,
}

impl Tags {
    pub(super) fn read(memory: &impl ReadPhys, address: PhysAddr) -> Result<Self, BootError> {
        let head: HeadRaw = load(memory, address)?;
        let length = head.first.get();
        let wrong = BootError::Length { address, length };
        Ok(Self {
            whole: Some(structure(address, length.into())?),
            next: address.checked_add(HEAD.into()).ok_or(wrong)?,
            left: length
                .checked_sub(HEAD)
                .filter(|&left| left >= HEAD)
                .ok_or(wrong)?,
            followed: 0,
        })
    }

    /// What the next tag that is known says.
    pub(super) fn next(&mut self, memory: &impl ReadPhys) -> Option<Result<Step, BootError>> {
        if let Some(whole) = self.whole.take() {
            return Some(Ok(Step::Item(whole)));
        }
        loop {
            // A loader that leaves the end tag out says by the total size where the tags end.
            if self.left < HEAD {
                return None;
            }
            let address = self.next;
            if self.followed >= MAX_ENTRIES {
                self.left = 0;
                return Some(Err(BootError::TooMany { address }));
            }
            self.followed = self.followed.saturating_add(1);
            let head: HeadRaw = match load(memory, address) {
                Ok(head) => head,
                Err(error) => {
                    self.left = 0;
                    return Some(Err(error));
                }
            };
            let (kind, size) = (head.first.get(), head.second.get());
            if kind == 0 {
                self.left = 0;
                return None;
            }
            if size < HEAD || size > self.left {
                self.left = 0;
                return Some(Err(BootError::Length {
                    address,
                    length: size,
                }));
            }
            // Each tag begins at a multiple of 8 bytes. The padding of the last one may be missing.
            let step = size.checked_next_multiple_of(8).unwrap_or(size);
            self.left = self.left.saturating_sub(step);
            match address.checked_add(step.into()) {
                Some(next) => self.next = next,
                None => self.left = 0,
            }
            match tag(memory, address, kind, size) {
                Ok(None) => {}
                Ok(Some(step)) => return Some(Ok(step)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// What the tag at `address` says, if it is one that is known.
fn tag(
    memory: &impl ReadPhys,
    address: PhysAddr,
    kind: u32,
    size: u32,
) -> Result<Option<Step>, BootError> {
    let wrong = BootError::Length {
        address,
        length: size,
    };
    // Where the bytes from `offset` on are, of which the tag has to have `needed`.
    let content = |offset: u32, needed: u32| {
        let end = offset.checked_add(needed).ok_or(wrong)?;
        if size < end {
            return Err(wrong);
        }
        address.checked_add(offset.into()).ok_or(wrong)
    };
    let item = match kind {
        1 => BootItem::CommandLine(content(HEAD, 1)?),
        3 => {
            let bounds: PairRaw = load(memory, content(HEAD, 8)?)?;
            let (base, end) = (bounds.first.get(), bounds.second.get());
            let length = end.checked_sub(base).ok_or(BootError::Wraps {
                address: PhysAddr(base.into()),
                length: u64::from(end).wrapping_sub(base.into()),
            })?;
            module(base.into(), length.into(), content(16, 1).ok())?
        }
        6 | 17 => {
            let form: PairRaw = load(memory, content(HEAD, 8)?)?;
            let list = if kind == 6 { Kind::E820 } else { Kind::Uefi };
            let length = size.checked_sub(16).ok_or(wrong)?;
            let run = Run::within(list, content(16, 0)?, length, form.first.get())?;
            return Ok(Some(Step::List(run)));
        }
        8 => {
            let raw: FramebufferRaw = load(memory, content(HEAD, 24)?)?;
            // 2 is text.
            if raw.kind == 2 {
                return Ok(None);
            }
            BootItem::Framebuffer(Framebuffer {
                base: PhysAddr(raw.base.get()),
                pitch: raw.pitch.get(),
                width: raw.width.get(),
                height: raw.height.get(),
                bits_per_pixel: raw.bits_per_pixel,
            })
        }
        11 => {
            let table: U32 = load(memory, content(HEAD, 4)?)?;
            BootItem::EfiSystemTable(PhysAddr(table.get().into()))
        }
        12 => {
            let table: U64 = load(memory, content(HEAD, 8)?)?;
            BootItem::EfiSystemTable(PhysAddr(table.get()))
        }
        13 => {
            let entry = content(16, 5)?;
            let anchor: [u8; 5] = load(memory, entry)?;
            BootItem::Smbios {
                entry,
                is_64_bit: &anchor == b"_SM3_",
            }
        }
        // The RSDP of ACPI 1, and of 2 and later.
        14 => BootItem::RsdpV1(content(HEAD, 20)?),
        15 => BootItem::Rsdp(content(HEAD, 36)?),
        18 => BootItem::EfiBootServices,
        _ => return Ok(None),
    };
    Ok(Some(Step::Item(item)))
}
