//! Images that must be refused, made from a whole one by breaking one thing.

use anyhow::{Context, Result, bail};

/// Offsets in an ELF64 header (System V gABI, chapter 4).
const MACHINE: usize = 18;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_SIZE: usize = 54;
const PROGRAM_HEADER_COUNT: usize = 56;

/// Offsets in a program header, and the type of one that is loaded (chapter 5).
const SEGMENT_MEMORY_SIZE: usize = 40;
const LOAD: u32 = 1;

/// An architecture that these kernels are not for (EM_AARCH64).
const OTHER_MACHINE: u16 = 183;

/// More memory than any partition of the demo has.
const TOO_MUCH: u64 = 1 << 40;

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The second half of the file is missing.
    Truncated,
    /// It is for another architecture.
    WrongArchitecture,
    /// It wants more memory than the partition has.
    Oversized,
}

impl Broken {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Truncated, Self::WrongArchitecture, Self::Oversized];

    /// Its name in the archive.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated.elf",
            Self::WrongArchitecture => "wrong-arch.elf",
            Self::Oversized => "oversized.elf",
        }
    }

    /// Breaks `whole`.
    pub(crate) fn made_from(self, whole: &[u8]) -> Result<Vec<u8>> {
        if whole.get(..5) != Some(b"\x7fELF\x02") {
            bail!("the image to be broken is no ELF64 file");
        }
        let mut image = whole.to_vec();
        match self {
            Self::Truncated => image.truncate(cut(whole)?),
            Self::WrongArchitecture => put(&mut image, MACHINE, &OTHER_MACHINE.to_le_bytes())?,
            Self::Oversized => {
                let last = *loaded(whole)?.last().context("the image loads nothing")?;
                put(
                    &mut image,
                    last + SEGMENT_MEMORY_SIZE,
                    &TOO_MUCH.to_le_bytes(),
                )?;
            }
        }
        Ok(image)
    }
}

/// Where to cut, so that a part of what is loaded is missing: debugging information behind it would
/// not be missed.
fn cut(image: &[u8]) -> Result<usize> {
    let mut end = 0;
    for header in loaded(image)? {
        let offset = u64::from_le_bytes(array(image, header + 8)?);
        let length = u64::from_le_bytes(array(image, header + 32)?);
        end = end.max(offset.saturating_add(length));
    }
    let end = usize::try_from(end)?.min(image.len());
    Ok(end / 2)
}

/// Offsets of the program headers of all segments that are loaded.
fn loaded(image: &[u8]) -> Result<Vec<usize>> {
    let first = usize::try_from(u64::from_le_bytes(array(image, PROGRAM_HEADERS)?))?;
    let size = usize::from(u16::from_le_bytes(array(image, PROGRAM_HEADER_SIZE)?));
    let count = usize::from(u16::from_le_bytes(array(image, PROGRAM_HEADER_COUNT)?));
    let mut found = Vec::new();
    for number in 0..count {
        let header = number
            .checked_mul(size)
            .and_then(|offset| first.checked_add(offset))
            .context("the program headers are out of bounds")?;
        if u32::from_le_bytes(array(image, header)?) == LOAD {
            found.push(header);
        }
    }
    Ok(found)
}

fn array<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N]> {
    image
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .context("the image is too short for its headers")
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    image
        .get_mut(at..at + bytes.len())
        .context("the image is too short for its headers")?
        .copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Broken, LOAD, TOO_MUCH};

    /// An ELF64 header, two program headers, the second of which is loaded, and 64 bytes for it.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 64 + 2 * 56 + 64];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        image[18] = 62;
        image[32] = 64;
        image[54] = 56;
        image[56] = 2;
        let load = 64 + 56;
        image[load..load + 4].copy_from_slice(&LOAD.to_le_bytes());
        image[load + 8] = 176;
        image[load + 32] = 64;
        image[load + 40] = 64;
        image
    }

    #[test]
    fn each_broken_image_differs_in_one_thing() {
        let whole = image();
        let other = Broken::WrongArchitecture.made_from(&whole).unwrap();
        assert_eq!(other[18..20], [183, 0]);
        let changed = |image: &[u8]| {
            (0..whole.len())
                .filter(|&at| image[at] != whole[at])
                .count()
        };
        assert_eq!(changed(&other), 1);

        let large = Broken::Oversized.made_from(&whole).unwrap();
        let at = 64 + 56 + 40;
        assert_eq!(large[at..at + 8], TOO_MUCH.to_le_bytes());
        assert_eq!(large.len(), whole.len());

        let short = Broken::Truncated.made_from(&whole).unwrap();
        assert_eq!(short, whole[..(176 + 64) / 2]);
    }

    #[test]
    fn what_is_no_image_cannot_be_broken() {
        for broken in Broken::ALL {
            assert!(broken.made_from(b"").is_err());
            assert!(broken.made_from(&[0; 200]).is_err());
        }
        let mut wild = image();
        wild[33..40].fill(0xff);
        assert!(Broken::Oversized.made_from(&wild).is_err());
    }
}
