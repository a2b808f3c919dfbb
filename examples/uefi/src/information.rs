//! Multiboot2's boot information (Multiboot2 Specification 2.0, section 3.6), as it is written.

use core::fmt;
use core::slice;

use uefi::mem::memory_map::MemoryMap;

use crate::memory::{NoMemory, Pages};

/// Room for everything: a memory map has some hundred descriptors of 48 bytes.
const ROOM: usize = 256 << 10;

/// What was to be written does not fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overflow {
    /// The tag.
    kind: u32,
    /// Bytes of its content.
    bytes: usize,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no room for tag {} of {} bytes in the boot information",
            self.kind, self.bytes
        )
    }
}

/// The boot information.
pub(crate) struct Information {
    pages: Pages,
    used: usize,
}

impl Information {
    /// An empty one.
    pub(crate) fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            pages: Pages::low(ROOM)?,
            used: 8,
        })
    }

    /// Writes a tag of these pieces.
    fn tag(&mut self, kind: u32, content: &[&[u8]]) -> Result<(), Overflow> {
        let length: usize = content.iter().map(|piece| piece.len()).sum();
        let room = self
            .pages
            .bytes()
            .get_mut(self.used..self.used + 8 + length);
        let mut room = room.ok_or(Overflow {
            kind,
            bytes: length,
        })?;
        // It fits into the room, so the length does into 32 bits.
        let size = (8 + length) as u32;
        for piece in [&kind.to_le_bytes()[..], &size.to_le_bytes()]
            .iter()
            .chain(content)
        {
            let (here, rest) = room.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            room = rest;
        }
        self.used = (self.used + 8 + length).next_multiple_of(8);
        Ok(())
    }

    pub(crate) fn command_line(&mut self, line: &str) -> Result<(), Overflow> {
        self.tag(1, &[line.as_bytes(), &[0]])
    }

    pub(crate) fn module(&mut self, base: usize, length: usize) -> Result<(), Overflow> {
        // Pages of this program's lie below 4 GiB.
        let (base, end) = (base as u32, (base + length) as u32);
        self.tag(3, &[&base.to_le_bytes(), &end.to_le_bytes(), &[0]])
    }

    /// A copy of the RSDP: tag and length for its version.
    pub(crate) fn rsdp(
        &mut self,
        address: usize,
        kind: u32,
        length: usize,
    ) -> Result<(), Overflow> {
        self.tag(kind, &[firmware(address, length)])
    }

    /// A copy of an SMBIOS entry point. Where its length is, and where its version.
    pub(crate) fn smbios(
        &mut self,
        address: usize,
        length_at: usize,
        version_at: usize,
    ) -> Result<(), Overflow> {
        let length = firmware(address, 8)[length_at];
        let entry = firmware(address, length.into());
        let Some(version) = entry.get(version_at..version_at + 2) else {
            return Ok(());
        };
        self.tag(13, &[version, &[0; 6], entry])
    }

    pub(crate) fn system_table(&mut self, address: usize) -> Result<(), Overflow> {
        self.tag(12, &[&(address as u64).to_le_bytes()])
    }

    pub(crate) fn frame_buffer(
        &mut self,
        base: usize,
        pitch: usize,
        width: usize,
        height: usize,
        red_first: bool,
    ) -> Result<(), Overflow> {
        let numbers = [pitch, width, height].map(|number| (number as u32).to_le_bytes());
        // Direct colours of 32 bits: position and size of red, green and blue.
        let colours: [u8; 6] = match red_first {
            true => [0, 8, 8, 8, 16, 8],
            false => [16, 8, 8, 8, 0, 8],
        };
        self.tag(
            8,
            &[
                &(base as u64).to_le_bytes(),
                numbers.as_flattened(),
                &[32, 1, 0, 0],
                &colours,
            ],
        )
    }

    /// The last memory map.
    pub(crate) fn memory_map(&mut self, map: &impl MemoryMap) -> Result<(), Overflow> {
        let form = map.meta();
        self.tag(
            17,
            &[
                &(form.desc_size as u32).to_le_bytes(),
                &form.desc_version.to_le_bytes(),
                &map.buffer()[..form.map_size],
            ],
        )
    }

    /// Ends it, and says where it is.
    pub(crate) fn finish(mut self) -> u32 {
        // Where the end does not fit, the total size says where the tags end.
        let _ = self.tag(0, &[]);
        let total = self.used as u32;
        self.pages.bytes()[..4].copy_from_slice(&total.to_le_bytes());
        self.pages.base() as u32
    }
}

/// A table of firmware's.
fn firmware(address: usize, length: usize) -> &'static [u8] {
    let first = core::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: the configuration tables say that a table of at least this length is there (UEFI 2.10,
    // section 4.6); until boot services end all of memory is mapped, and nobody writes it.
    unsafe { slice::from_raw_parts(first, length) }
}
