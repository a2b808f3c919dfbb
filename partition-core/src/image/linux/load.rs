//! Writing a placed kernel, and what it is told, into memory.

use core::fmt;

use handoff_abi::{FRAME_SIZE, PhysAddr, PhysRange};

use super::header::{HEADER, field};
use super::place::{
    E820_SIZE, SETUP_DATA_HEADER, SETUP_E820_EXT, ZERO_PAGE_ENTRIES, item_length, parameters,
};
use super::{E820Entry, LinuxLayout, Piece, entry};
use crate::image::WritePhys;

/// Offsets in the zero page that are not the setup header's.
mod offset {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x70;
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0xc0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0xc4;
    pub(super) const EXT_CMD_LINE_PTR: usize = 0xc8;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// Why a kernel was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LinuxLoadError<E> {
    /// What could not be written.
    pub piece: Piece,
    /// Where it was to go.
    pub range: PhysRange,
    /// Why.
    pub error: E,
}

impl<E: fmt::Display> fmt::Display for LinuxLoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cannot be written to {}: {}",
            self.piece, self.range, self.error
        )
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for LinuxLoadError<E> {}

impl LinuxLayout<'_> {
    /// Copies the kernel and its initial RAM disk into memory, and writes what the kernel is told.
    /// What the parameters' pages have besides becomes zero.
    ///
    /// # Errors
    /// Where memory cannot be written.
    pub fn load<M: WritePhys>(&self, memory: &mut M) -> Result<(), LinuxLoadError<M::Error>> {
        let failed = |piece, range| {
            move |error| LinuxLoadError {
                piece,
                range,
                error,
            }
        };
        let kernel = self.image.kernel();
        memory
            .write(self.kernel().base(), kernel)
            .map_err(failed(Piece::Kernel, self.kernel()))?;
        if let Some(bytes) = self.request.initrd {
            memory
                .write(self.initrd().base(), bytes)
                .map_err(failed(Piece::Initrd, self.initrd()))?;
        }
        self.load_parameters(memory)
            .map_err(failed(Piece::Parameters, self.parameters()))
    }

    fn load_parameters<M: WritePhys>(&self, memory: &mut M) -> Result<(), M::Error> {
        let range = self.parameters();
        memory.zero(range.base(), range.length())?;
        let at = self.parameter(parameters::ENTRY);
        memory.write(at, &entry::page(at.0, self.zero_page().0, self.entry().0))?;
        memory.write(self.zero_page(), &self.zero_page_bytes())?;
        // The zero that ends it is there.
        memory.write(
            self.parameter(parameters::COMMAND_LINE),
            self.request.command_line,
        )?;
        self.load_setup_data(memory)
    }

    fn load_setup_data<M: WritePhys>(&self, memory: &mut M) -> Result<(), M::Error> {
        let further = self.further_entries();
        let extended = (further.len() as u64).saturating_mul(E820_SIZE);
        let items = self.request.setup_data;
        let mut at = self.parameter(self.setup_data);
        let mut left = items.len().saturating_add(usize::from(!further.is_empty()));
        // Each item says where the next is; the sums were found to be possible when it was placed.
        let mut begin = |memory: &mut M, kind: u32, length: u64| {
            left = left.saturating_sub(1);
            let after = PhysAddr(at.0.saturating_add(item_length(length).unwrap_or(0)));
            let next = if left == 0 { 0 } else { after.0 };
            let mut header = [0; SETUP_DATA_HEADER as usize];
            put(&mut header, 0, &next.to_le_bytes());
            put(&mut header, 8, &kind.to_le_bytes());
            put(&mut header, 12, &(length as u32).to_le_bytes());
            memory.write(at, &header)?;
            let data = PhysAddr(at.0.saturating_add(SETUP_DATA_HEADER));
            at = after;
            Ok(data)
        };
        if !further.is_empty() {
            let mut data = begin(memory, SETUP_E820_EXT, extended)?;
            for entry in further {
                memory.write(data, &e820(entry))?;
                data = PhysAddr(data.0.saturating_add(E820_SIZE));
            }
        }
        for item in items {
            let data = begin(memory, item.kind, item.data.len() as u64)?;
            memory.write(data, item.data)?;
        }
        Ok(())
    }

    /// The entries of the memory map that the zero page has no room for.
    fn further_entries(&self) -> &[E820Entry] {
        let map = self.request.memory_map;
        map.get(ZERO_PAGE_ENTRIES..).unwrap_or(&[])
    }

    fn zero_page_bytes(&self) -> [u8; FRAME_SIZE as usize] {
        /// A loader without a number of its own.
        const UNDEFINED: u8 = 0xff;
        let mut page = [0; FRAME_SIZE as usize];
        let mut put = |at: usize, bytes: &[u8]| put(&mut page, at, bytes);
        put(HEADER, self.image.header());
        put(field::TYPE_OF_LOADER, &[UNDEFINED]);
        put(field::EXT_LOADER, &[0; 2]);
        // A PC, whatever the file says.
        put(field::HARDWARE_SUBARCH, &[0; 12]);
        put(offset::ACPI_RSDP_ADDR, &self.request.rsdp.0.to_le_bytes());

        let (image, length) = (self.initrd().base().0, self.initrd().length());
        let (low, high) = halves(image);
        put(field::RAMDISK_IMAGE, &low);
        put(offset::EXT_RAMDISK_IMAGE, &high);
        let (low, high) = halves(length);
        put(field::RAMDISK_SIZE, &low);
        put(offset::EXT_RAMDISK_SIZE, &high);
        let (low, high) = halves(self.parameter(parameters::COMMAND_LINE).0);
        put(field::CMD_LINE_PTR, &low);
        put(offset::EXT_CMD_LINE_PTR, &high);

        let listed = !self.request.setup_data.is_empty() || !self.further_entries().is_empty();
        let list = if listed {
            self.parameter(self.setup_data).0
        } else {
            0
        };
        put(field::SETUP_DATA, &list.to_le_bytes());
        let mut at = offset::E820_TABLE;
        let mut count = 0_u8;
        for entry in self.request.memory_map.iter().take(ZERO_PAGE_ENTRIES) {
            put(at, &e820(entry));
            at = at.saturating_add(E820_SIZE as usize);
            count = count.saturating_add(1);
        }
        put(offset::E820_ENTRIES, &[count]);
        page
    }
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in page.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The lower and the upper 32 bits.
fn halves(number: u64) -> ([u8; 4], [u8; 4]) {
    (
        (number as u32).to_le_bytes(),
        ((number >> 32) as u32).to_le_bytes(),
    )
}

fn e820(entry: &E820Entry) -> [u8; E820_SIZE as usize] {
    let mut bytes = [0; E820_SIZE as usize];
    put(&mut bytes, 0, &entry.range.base().0.to_le_bytes());
    put(&mut bytes, 8, &entry.range.length().to_le_bytes());
    put(&mut bytes, 16, &entry.kind.to_le_bytes());
    bytes
}
