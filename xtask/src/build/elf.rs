//! Where a section of an image lies.

use std::ops::Range;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::endian::LittleEndian;

/// The virtual addresses of the section called `name`.
pub(crate) fn section(image: &[u8], name: &str) -> Result<Range<u64>> {
    let header = ElfBytes::<LittleEndian>::minimal_parse(image)
        .ok()
        .and_then(|image| image.section_header_by_name(name).ok()?)
        .with_context(|| format!("the image has no section {name}"))?;
    Ok(header.sh_addr..header.sh_addr + header.sh_size)
}
