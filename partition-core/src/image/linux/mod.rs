//! Linux kernels: reading a bzImage, placing it, and what it is told.
//!
//! [`BzImage::parse`] checks the file before anything is written. [`BzImage::place`] looks for room
//! for the kernel, its initial RAM disk and what the boot protocol wants, in the memory that the
//! kernel is told it has; what is missing or contradicts itself is an error there.
//! [`LinuxLayout::load`] writes all of it, and [`LinuxLayout::tables`] makes the page tables that the
//! kernel is entered with.
//!
//! Names and numbers are those of the Linux/x86 boot protocol
//! (`Documentation/arch/x86/boot.rst` and `zero-page.rst` in Linux's sources), of which this is the
//! 64-bit part. Nothing keeps a kernel from choosing its own address (KASLR): its memory map is all
//! that bounds it.

mod entry;
mod error;
mod header;
mod initrd;
mod load;
mod place;

pub use error::{BzImageError, InitrdError, LinuxPlaceError, Piece};
pub use header::BzImage;
pub use initrd::{InitrdFormat, check_initrd};
pub use load::LinuxLoadError;
pub use place::{E820Entry, LinuxLayout, LinuxRequest, SetupDataItem};

#[cfg(test)]
mod tests;
