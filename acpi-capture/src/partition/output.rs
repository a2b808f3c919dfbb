//! Tables one after the other in a buffer, each with its header, length and checksum.

use core::mem::offset_of;

use handoff_abi::{PhysAddr, PhysRange};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::PartitionError;
use crate::aml::Full;
use crate::table::raw::{RsdpRaw, SdtHeader};
use crate::table::{Rsdp, Signature, checksum};

/// Every table begins at a multiple of this.
const ALIGNMENT: usize = 16;

/// The buffer that the tables go to.
pub(super) struct Output<'b> {
    place: PhysAddr,
    buffer: &'b mut [u8],
    length: usize,
}

impl<'b> Output<'b> {
    /// An output with room set aside for the RSDP at its start.
    pub(super) fn new(place: PhysAddr, buffer: &'b mut [u8]) -> Result<Self, PartitionError> {
        let length = buffer.len();
        let fits = PhysRange::new(place, length as u64).is_ok();
        if !place.is_aligned_to(ALIGNMENT as u64) || !fits {
            return Err(PartitionError::Place { place, length });
        }
        if length < Rsdp::LENGTH_V2 {
            return Err(PartitionError::Buffer { have: length });
        }
        Ok(Self {
            place,
            buffer,
            length: Rsdp::LENGTH_V2,
        })
    }

    /// The memory of all that was written.
    pub(super) fn range(&self) -> PhysRange {
        let end = self.place.0.saturating_add(self.length as u64);
        PhysRange::from_bounds(self.place, PhysAddr(end))
    }

    fn full(&self) -> PartitionError {
        PartitionError::Buffer {
            have: self.buffer.len(),
        }
    }

    /// Writes a table: `fixed` first, which begins with the common header, then what `rest` writes.
    /// Signature, revision, length and the rest of the header are filled in.
    pub(super) fn table<T: IntoBytes + Immutable>(
        &mut self,
        signature: Signature,
        revision: u8,
        fixed: &T,
        rest: impl FnOnce(&mut Body<'_>) -> Result<(), PartitionError>,
    ) -> Result<PhysAddr, PartitionError> {
        let full = self.full();
        let start = self
            .length
            .checked_next_multiple_of(ALIGNMENT)
            .ok_or(full)?;
        // What lies between two tables must not be what was in the buffer before.
        self.buffer.get_mut(self.length..start).ok_or(full)?.fill(0);
        let room = self.buffer.get_mut(start..).ok_or(full)?;
        let mut body = Body {
            room,
            length: 0,
            full,
        };
        body.push(fixed)?;
        rest(&mut body)?;
        let length = body.length;
        let table = room.get_mut(..length).ok_or(full)?;
        let mut header = SdtHeader::new_zeroed();
        header.signature = signature.0;
        header.length = u32::try_from(length).map_err(|_| full)?.into();
        header.revision = revision;
        header.oem_id = *b"BATON ";
        header.oem_table_id = *b"PARTITIO";
        header.oem_revision = 1.into();
        header.creator_id = *b"BATN";
        header.creator_revision = 1.into();
        let (head, _) = table
            .split_at_mut_checked(size_of::<SdtHeader>())
            .ok_or(full)?;
        head.copy_from_slice(header.as_bytes());
        let sum = checksum(table);
        if let Some(byte) = table.get_mut(offset_of!(SdtHeader, checksum)) {
            *byte = sum.wrapping_neg();
        }
        self.length = start.saturating_add(length);
        self.place.checked_add(start as u64).ok_or(full)
    }

    /// Writes the RSDP to the start of the buffer.
    pub(super) fn rsdp(&mut self, xsdt: PhysAddr) -> Result<(), PartitionError> {
        let mut rsdp = RsdpRaw::new_zeroed();
        rsdp.signature = *b"RSD PTR ";
        rsdp.oem_id = *b"BATON ";
        rsdp.revision = 2;
        rsdp.length = 36.into();
        rsdp.xsdt = xsdt.0.into();
        let first = rsdp.as_bytes().get(..Rsdp::LENGTH_V1).unwrap_or(&[]);
        rsdp.checksum = checksum(first).wrapping_neg();
        rsdp.extended_checksum = checksum(rsdp.as_bytes()).wrapping_neg();
        let full = self.full();
        let (into, _) = self
            .buffer
            .split_at_mut_checked(Rsdp::LENGTH_V2)
            .ok_or(full)?;
        into.copy_from_slice(rsdp.as_bytes());
        Ok(())
    }
}

/// The table that is being written.
pub(super) struct Body<'b> {
    room: &'b mut [u8],
    length: usize,
    full: PartitionError,
}

impl Body<'_> {
    /// Appends a fixed structure.
    pub(super) fn push<T: IntoBytes + Immutable + ?Sized>(
        &mut self,
        structure: &T,
    ) -> Result<(), PartitionError> {
        let bytes = structure.as_bytes();
        let into = self
            .room
            .get_mut(self.length..)
            .and_then(|room| room.get_mut(..bytes.len()))
            .ok_or(self.full)?;
        into.copy_from_slice(bytes);
        self.length = self.length.saturating_add(bytes.len());
        Ok(())
    }

    /// Appends what `write` puts into the room that is left, and says how long it is.
    pub(super) fn with_room(
        &mut self,
        write: impl FnOnce(&mut [u8]) -> Result<usize, Full>,
    ) -> Result<(), PartitionError> {
        let room = self.room.get_mut(self.length..).ok_or(self.full)?;
        let length = write(room).map_err(|Full| self.full)?;
        self.length = self.length.saturating_add(length);
        Ok(())
    }
}
