//! The archive of kernel images that came with the first kernel.

use handoff_abi::PhysRange;
use tar_no_std::TarArchiveRef;

use crate::mmio;

/// The bytes of the archive.
///
/// # Safety
/// The window maps them, and nobody writes them while the result is used.
#[must_use]
pub unsafe fn archive<'a>(range: PhysRange) -> &'a [u8] {
    let start = mmio::pointer(range.base()).as_ptr();
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(start, range.length() as usize) }
}

/// The file of this name, with or without `.elf`.
#[must_use]
pub fn find<'a>(archive: &'a [u8], name: &str) -> Option<&'a [u8]> {
    TarArchiveRef::new(archive)
        .ok()?
        .entries()
        .find(|entry| {
            let filename = entry.filename();
            filename
                .as_str()
                .is_ok_and(|found| found == name || found.strip_suffix(".elf") == Some(name))
        })
        .map(|entry| entry.data())
}
