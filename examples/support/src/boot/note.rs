//! The ELF note by which a loader of Baton's knows a kernel that can be a successor.

use super::arch::_successor_start;

/// What an image says of itself in section `.note.baton`: name "Baton", type 1.
///
/// The kernel puts a static of this type there:
/// ```ignore
/// #[used]
/// #[unsafe(link_section = ".note.baton")]
/// static NOTE: BatonNote = BatonNote::new(0, 1, 0);
/// ```
#[derive(Debug)]
#[repr(C)]
pub struct BatonNote {
    name_size: u32,
    descriptor_size: u32,
    kind: u32,
    name: [u8; 8],
    /// Two halves of 16 bits in one array: the descriptor begins at a multiple of 4, not of 8.
    version: [u16; 2],
    reserved: u32,
    features: [u32; 2],
    /// The entry's address, 64 bits at a multiple of 4.
    entry: EntryAddress,
}

/// A function's address, aligned as a note's descriptor is.
#[derive(Debug)]
#[repr(C, packed(4))]
struct EntryAddress(unsafe extern "C" fn());

impl BatonNote {
    /// Bytes of the descriptor: major and minor `u16`, reserved `u32`, features `u64`, entry address
    /// `u64` (`docs/abi.md`).
    pub const DESCRIPTOR_SIZE: u32 = 24;

    /// The note of a kernel that speaks this version and these features, and begins at
    /// `_successor_start`.
    #[must_use]
    pub const fn new(major: u16, minor: u16, features: u64) -> Self {
        Self {
            name_size: 6,
            descriptor_size: Self::DESCRIPTOR_SIZE,
            kind: 1,
            name: *b"Baton\0\0\0",
            version: [major, minor],
            reserved: 0,
            features: [features as u32, (features >> 32) as u32],
            entry: EntryAddress(_successor_start),
        }
    }
}

const _: () = {
    assert!(size_of::<BatonNote>() == 44);
    assert!(core::mem::offset_of!(BatonNote, version) == 20);
    assert!(core::mem::offset_of!(BatonNote, entry) == 36);
    assert!(align_of::<BatonNote>() == 4);
};
