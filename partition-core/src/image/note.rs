//! The note by which a kernel says that it can take over a machine.

use handoff_abi::{AbiVersion, Features};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// What an image says of itself in its Baton note.
///
/// The note is in a segment of type PT_NOTE, at a multiple of 4 bytes, with the name
/// [`NAME`](Self::NAME) and the type [`TYPE`](Self::TYPE). Its descriptor, little-endian:
///
/// | offset | bytes | meaning |
/// | --- | --- | --- |
/// | 0 | 2 | ABI version, major |
/// | 2 | 2 | ABI version, minor |
/// | 4 | 4 | reserved; written as zero and ignored |
/// | 8 | 8 | [`Features`] |
/// | 16 | 8 | virtual address of the entry |
///
/// Later versions append; a reader ignores what it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BatonNote {
    /// The newest version of the handoff that it reads.
    pub version: AbiVersion,
    /// What it can do.
    pub features: Features,
    /// The virtual address at which it is entered, as linked.
    pub entry: u64,
}

impl BatonNote {
    /// The note's name, with the zero that ends it.
    pub const NAME: &[u8; 6] = b"Baton\0";
    /// The note's type.
    pub const TYPE: u32 = 1;
    /// The least length of the descriptor in bytes.
    pub const LENGTH: usize = size_of::<Descriptor>();

    pub(super) fn from_descriptor(bytes: &[u8]) -> Option<Self> {
        let (descriptor, _) = Descriptor::read_from_prefix(bytes).ok()?;
        Some(Self {
            version: AbiVersion {
                major: descriptor.major,
                minor: descriptor.minor,
            },
            features: Features::from_bits_retain(descriptor.features),
            entry: descriptor.entry,
        })
    }
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    major: u16,
    minor: u16,
    _reserved: u32,
    features: u64,
    entry: u64,
}

const _: () = assert!(size_of::<Descriptor>() == 24);
