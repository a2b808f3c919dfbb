//! Whether an initial RAM disk is one.

use super::InitrdError;

/// How an initial RAM disk, or the part of it that could not be looked into, is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InitrdFormat {
    /// Archives in cpio's "new ASCII" format, each complete.
    Cpio,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by bzip2.
    Bzip2,
    /// Compressed by LZMA.
    Lzma,
    /// Compressed by XZ.
    Xz,
    /// Compressed by LZO.
    Lzo,
    /// Compressed by LZ4, in its legacy format.
    Lz4,
    /// Compressed by Zstandard.
    Zstd,
}

/// The first bytes by which Linux knows a compressed one.
const COMPRESSED: [(&[u8], InitrdFormat); 8] = [
    (b"\x1f\x8b", InitrdFormat::Gzip),
    (b"\x1f\x9e", InitrdFormat::Gzip),
    (b"BZh", InitrdFormat::Bzip2),
    (b"\x5d\x00", InitrdFormat::Lzma),
    (b"\xfd7zXZ\0", InitrdFormat::Xz),
    (b"\x89LZO", InitrdFormat::Lzo),
    (b"\x02\x21\x4c\x18", InitrdFormat::Lz4),
    (b"\x28\xb5\x2f\xfd", InitrdFormat::Zstd),
];

const MAGIC_LENGTH: usize = 6;
const HEADER_LENGTH: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!\0";

/// Looks through an initial RAM disk as far as it can be read without unpacking it
/// (`Documentation/driver-api/early-userspace/buffer-format.rst` in Linux's sources): archives are
/// followed from member to member to their end, and what comes after them, padding by zeros apart,
/// must be something that Linux unpacks.
///
/// # Errors
/// Where Linux would find no archive there, or only part of one.
pub fn check_initrd(bytes: &[u8]) -> Result<InitrdFormat, InitrdError> {
    let mut at = 0;
    let mut archives = 0_u32;
    loop {
        let zeros = tail(bytes, at)
            .iter()
            .take_while(|&&byte| byte == 0)
            .count();
        at = zeros.saturating_add(at);
        let rest = tail(bytes, at);
        if rest.is_empty() {
            return match archives {
                0 => Err(InitrdError::Empty),
                _ => Ok(InitrdFormat::Cpio),
            };
        }
        if is_member(rest) {
            at = archive(bytes, at)?;
            archives = archives.saturating_add(1);
            continue;
        }
        return COMPRESSED
            .iter()
            .find(|(magic, _)| rest.starts_with(magic))
            .map(|&(_, format)| format)
            .ok_or(InitrdError::Unknown { offset: at });
    }
}

fn tail(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or(&[])
}

/// Format 070701, or 070702 with a checksum for each member.
fn is_member(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

/// Follows an archive's members; says where it ends.
fn archive(bytes: &[u8], start: usize) -> Result<usize, InitrdError> {
    let mut at = start;
    loop {
        let damaged = InitrdError::Damaged { offset: at };
        let rest = tail(bytes, at);
        if !is_member(rest) {
            return Err(damaged);
        }
        let header = rest.get(..HEADER_LENGTH).ok_or(damaged)?;
        // Eight hexadecimal digits each; field 6 is the file's size, field 11 its name's.
        let number = |field: usize| {
            let digits = header.get(MAGIC_LENGTH..)?.chunks_exact(8).nth(field)?;
            digits.iter().try_fold(0_usize, |value, &digit| {
                let digit = char::from(digit).to_digit(16)?;
                value.checked_mul(16)?.checked_add(digit as usize)
            })
        };
        let size = number(6).ok_or(damaged)?;
        let name_size = number(11).ok_or(damaged)?;
        // Header and name, then the content, each padded to a multiple of 4 from the archive's start.
        let padded = |from: usize, length: usize| {
            let end = from.checked_add(length)?;
            let inside = end.checked_sub(start)?.checked_next_multiple_of(4)?;
            start.checked_add(inside)
        };
        let name_at = at.checked_add(HEADER_LENGTH).ok_or(damaged)?;
        let name = tail(bytes, name_at).get(..name_size).ok_or(damaged)?;
        let content = padded(name_at, name_size).ok_or(damaged)?;
        let content_end = content.checked_add(size).ok_or(damaged)?;
        if name.last() != Some(&0) || content_end > bytes.len() {
            return Err(damaged);
        }
        let next = padded(content, size).ok_or(damaged)?;
        if name == TRAILER {
            return Ok(next);
        }
        at = next;
    }
}
