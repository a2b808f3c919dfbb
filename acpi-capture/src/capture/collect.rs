//! Following firmware's pointers.

use handoff_abi::{PhysAddr, PhysRange};
use zerocopy::{FromBytes, IntoBytes};

use super::blob::{BlobHeader, CapturedKind, DirectoryEntry, MAGIC, State, VERSION};
use super::{CaptureError, CaptureRequest, CaptureSummary, ReadPhys, SmbiosSource};
use crate::smbios::{SmbiosEntry, SmbiosStructure, SmbiosStructures};
use crate::table::raw::SdtHeader;
use crate::table::{Fadt, RootTable, Rsdp, Sdt, Signature, checksum};

/// Directory entries beside those of the root table's pointers: RSDP, both root tables, two DSDT,
/// two FACS, two SMBIOS entry points, two SMBIOS tables, and one for what was too much.
const OTHERS: usize = 12;
/// How much is read at once where the end of what is readable is not known.
const PIECE: usize = 4096;
/// Where SMBIOS is looked for without UEFI.
const SCAN: PhysRange = PhysRange::from_bounds(PhysAddr(0xf_0000), PhysAddr(0x10_0000));
/// The least length of a FACS (ACPI 6.5, table 5.14).
const FACS_LENGTH: usize = 64;

/// Copies what firmware told the first kernel into `buffer`, which then begins with a blob that
/// [`Capture::parse`](super::Capture::parse) reads.
///
/// Every table that can be reached is copied, also those with a bad checksum. What could not be
/// copied stands in the blob's directory with the reason. SMBIOS is optional: the capture does not
/// fail for want of it.
///
/// # Errors
/// Where there is no RSDP at the given address, no sound root table, or no room for the directory
/// and these two.
pub fn capture<M: ReadPhys>(
    memory: &M,
    request: &CaptureRequest,
    buffer: &mut [u8],
) -> Result<CaptureSummary, CaptureError> {
    let address = request.rsdp;
    let mut rsdp_bytes = [0; Rsdp::LENGTH_V2];
    let mut rsdp_length = Rsdp::LENGTH_V2;
    if memory.read(address, &mut rsdp_bytes).is_err() {
        // An ACPI 1.0 RSDP may be the last thing in readable memory.
        rsdp_length = Rsdp::LENGTH_V1;
        rsdp_bytes = [0; Rsdp::LENGTH_V2];
        let (first, _) = rsdp_bytes.split_at_mut(Rsdp::LENGTH_V1);
        memory
            .read(address, first)
            .map_err(|_| CaptureError::RsdpUnreadable { address })?;
    }
    let rsdp_bytes = rsdp_bytes.get(..rsdp_length).unwrap_or(&[]);
    let rsdp = Rsdp::parse(rsdp_bytes).map_err(|error| CaptureError::Rsdp { address, error })?;
    let rsdp_bytes = match rsdp.revision {
        0 | 1 => rsdp_bytes.get(..Rsdp::LENGTH_V1).unwrap_or(rsdp_bytes),
        _ => rsdp_bytes,
    };

    let have = buffer.len();
    let Some((header, rest)) = buffer.split_at_mut_checked(size_of::<BlobHeader>()) else {
        return Err(CaptureError::Buffer {
            needed: size_of::<BlobHeader>(),
            have,
        });
    };
    let pointers = root_length(memory, &rsdp).min(request.max_tables);
    let capacity = pointers.saturating_add(OTHERS);
    let Ok((directory, bytes)) = <[DirectoryEntry]>::mut_from_prefix_with_elems(rest, capacity)
    else {
        let directory = capacity.saturating_mul(size_of::<DirectoryEntry>());
        return Err(CaptureError::Buffer {
            needed: directory.saturating_add(size_of::<BlobHeader>()),
            have,
        });
    };
    let mut collector = Collector {
        memory,
        max_table_length: request.max_table_length,
        directory,
        entries: 0,
        start: have.saturating_sub(bytes.len()),
        bytes,
        used: 0,
        summary: CaptureSummary {
            length: 0,
            sound: 0,
            bad_checksum: 0,
            skipped: 0,
        },
    };

    let rsdp_signature = Signature(*b"RSDP");
    collector.keep(CapturedKind::Rsdp, rsdp_signature, address, rsdp_bytes);
    let root = collector.root(&rsdp)?;
    collector.follow(root, pointers, request.max_tables);
    collector.follow_fadt();
    collector.smbios(request.smbios);

    let (entries, length, mut summary) = collector.close();
    let blob_header = BlobHeader {
        magic: MAGIC,
        version: VERSION.into(),
        length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        entries: u32::try_from(entries).unwrap_or(u32::MAX).into(),
        reserved: 0.into(),
        rsdp: address.0.into(),
    };
    header.copy_from_slice(blob_header.as_bytes());
    summary.length = length;
    Ok(summary)
}

/// How many pointers the root tables have at most, from their stated lengths alone.
fn root_length<M: ReadPhys>(memory: &M, rsdp: &Rsdp) -> usize {
    let count = |address: PhysAddr, width: usize| {
        let mut header = [0; size_of::<SdtHeader>()];
        if address.0 == 0 || memory.read(address, &mut header).is_err() {
            return 0;
        }
        SdtHeader::read_from_bytes(&header).map_or(0, |header| {
            let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
            length
                .saturating_sub(Sdt::HEADER_LENGTH)
                .checked_div(width)
                .unwrap_or(0)
        })
    };
    count(rsdp.xsdt, 8).max(count(rsdp.rsdt, 4))
}

/// A place in the copied bytes.
#[derive(Clone, Copy)]
struct Span {
    at: usize,
    length: usize,
}

struct Collector<'m, 'b, M> {
    memory: &'m M,
    max_table_length: usize,
    directory: &'b mut [DirectoryEntry],
    entries: usize,
    /// Where in the blob `bytes` begins.
    start: usize,
    bytes: &'b mut [u8],
    used: usize,
    summary: CaptureSummary,
}

impl<M: ReadPhys> Collector<'_, '_, M> {
    fn span(&self, span: Span) -> &[u8] {
        self.bytes
            .get(span.at..)
            .and_then(|rest| rest.get(..span.length))
            .unwrap_or(&[])
    }

    /// Room for `length` more bytes, at a multiple of 8.
    fn room(&self, length: usize) -> Option<Span> {
        let at = self
            .start
            .checked_add(self.used)?
            .checked_next_multiple_of(8)?
            .checked_sub(self.start)?;
        let end = at.checked_add(length)?;
        // The blob's length and offsets are 32 bits wide.
        u32::try_from(self.start.checked_add(end)?).ok()?;
        (end <= self.bytes.len()).then_some(Span { at, length })
    }

    /// Reads from memory into fresh room, which counts as used only once it is recorded.
    fn read(&mut self, address: PhysAddr, length: usize) -> Result<Span, State> {
        let span = self.room(length).ok_or(State::NoRoom)?;
        let into = self
            .bytes
            .get_mut(span.at..)
            .and_then(|rest| rest.get_mut(..length))
            .ok_or(State::NoRoom)?;
        self.memory
            .read(address, into)
            .map_err(|_| State::Unreadable)?;
        Ok(span)
    }

    /// Writes the directory entry of what was copied, or why it was not.
    fn record(
        &mut self,
        kind: CapturedKind,
        signature: Signature,
        address: PhysAddr,
        stated: usize,
        outcome: Result<(Span, State), State>,
    ) {
        let Some(entry) = self.directory.get_mut(self.entries) else {
            return;
        };
        self.entries = self.entries.saturating_add(1);
        let (state, offset, length) = match outcome {
            Ok((span, state)) => {
                // The gap before it must not keep what was in the buffer before.
                if let Some(gap) = self.bytes.get_mut(self.used..span.at) {
                    gap.fill(0);
                }
                self.used = span.at.saturating_add(span.length);
                (state, self.start.saturating_add(span.at), span.length)
            }
            Err(state) => (state, 0, 0),
        };
        let counter = match state {
            State::Sound => &mut self.summary.sound,
            State::BadChecksum | State::Shortened => &mut self.summary.bad_checksum,
            _ => &mut self.summary.skipped,
        };
        *counter = counter.saturating_add(1);
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).into();
        *entry = DirectoryEntry {
            signature: signature.0,
            kind: kind.to_wire().into(),
            state: state.to_wire().into(),
            address: address.0.into(),
            stated: narrow(stated),
            offset: narrow(offset),
            length: narrow(length),
            reserved: 0.into(),
        };
    }

    /// Puts bytes that were read before into the blob.
    fn keep(&mut self, kind: CapturedKind, signature: Signature, address: PhysAddr, from: &[u8]) {
        let outcome = self
            .room(from.len())
            .and_then(|span| {
                let into = self.bytes.get_mut(span.at..)?.get_mut(..span.length)?;
                into.copy_from_slice(from);
                Some((span, State::Sound))
            })
            .ok_or(State::NoRoom);
        self.record(kind, signature, address, from.len(), outcome);
    }

    /// Whether something was copied from this address before.
    fn is_known(&self, address: PhysAddr) -> bool {
        self.directory
            .iter()
            .take(self.entries)
            .any(|entry| entry.address.get() == address.0 && entry.length.get() != 0)
    }

    /// Copies a table with the common header. What is copied is what is judged: memory is read
    /// once for the length, and once for all bytes.
    fn table(&mut self, address: PhysAddr) -> Option<Span> {
        let kind = CapturedKind::Sdt;
        let mut signature = Signature([0; 4]);
        let mut stated = 0;
        let outcome = self.read_table(address, &mut signature, &mut stated);
        self.record(kind, signature, address, stated, outcome);
        outcome.ok().map(|(span, _)| span)
    }

    fn read_table(
        &mut self,
        address: PhysAddr,
        signature: &mut Signature,
        stated: &mut usize,
    ) -> Result<(Span, State), State> {
        if self.is_known(address) {
            return Err(State::Duplicate);
        }
        let mut header = [0; size_of::<SdtHeader>()];
        self.memory
            .read(address, &mut header)
            .map_err(|_| State::Unreadable)?;
        let header = SdtHeader::read_from_bytes(&header).map_err(|_| State::NotATable)?;
        if !Signature(header.signature).is_printable() {
            return Err(State::NotATable);
        }
        *signature = Signature(header.signature);
        *stated = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
        if *stated < Sdt::HEADER_LENGTH {
            return Err(State::NotATable);
        }
        if *stated > self.max_table_length {
            return Err(State::TooLong);
        }
        let span = self.read(address, *stated)?;
        let state = match checksum(self.span(span)) {
            0 => State::Sound,
            _ => State::BadChecksum,
        };
        Ok((span, state))
    }

    /// Copies the root table: the XSDT, or the RSDT if there is no sound XSDT.
    fn root(&mut self, rsdp: &Rsdp) -> Result<Span, CaptureError> {
        for address in [rsdp.xsdt, rsdp.rsdt] {
            if address.0 == 0 {
                continue;
            }
            if let Some(span) = self.table(address)
                && RootTable::parse(self.span(span)).is_ok()
            {
                return Ok(span);
            }
        }
        Err(CaptureError::NoRoot {
            xsdt: rsdp.xsdt,
            rsdt: rsdp.rsdt,
        })
    }

    /// Copies the tables that the root table lists.
    fn follow(&mut self, root: Span, pointers: usize, max_tables: usize) {
        for place in 0_usize.. {
            let next = RootTable::parse(self.span(root))
                .ok()
                .and_then(|root| root.addresses().nth(place));
            let Some(address) = next else { return };
            if place >= pointers.min(max_tables) {
                let signature = Signature([0; 4]);
                self.record(
                    CapturedKind::Sdt,
                    signature,
                    address,
                    0,
                    Err(State::TooMany),
                );
                return;
            }
            // A null pointer is an unused place, which firmware leaves often.
            if address.0 != 0 {
                self.table(address);
            }
        }
    }

    /// Copies what the FADT points to.
    fn follow_fadt(&mut self) {
        let fadt = self
            .directory
            .iter()
            .take(self.entries)
            .find(|entry| entry.signature == Signature::FADT.0 && entry.length.get() != 0)
            .and_then(|entry| {
                let at = usize::try_from(entry.offset.get()).ok()?;
                let span = Span {
                    at: at.checked_sub(self.start)?,
                    length: usize::try_from(entry.length.get()).ok()?,
                };
                // A FADT with a bad sum still points to its DSDT, which has a sum of its own.
                Fadt::from_sdt(Sdt::parse_any_sum(self.span(span)).ok()?).ok()
            })
            .map(|fadt| {
                (
                    [fadt.dsdt_64(), fadt.dsdt_32()],
                    [fadt.facs_64(), fadt.facs_32()],
                )
            });
        let Some((dsdts, facses)) = fadt else { return };
        for address in dsdts {
            if address.0 != 0 && !self.is_known(address) {
                self.table(address);
            }
        }
        for address in facses {
            if address.0 != 0 && !self.is_known(address) {
                self.facs(address);
            }
        }
    }

    fn facs(&mut self, address: PhysAddr) {
        let mut stated = 0;
        let outcome = self.read_facs(address, &mut stated);
        self.record(
            CapturedKind::Facs,
            Signature::FACS,
            address,
            stated,
            outcome,
        );
    }

    fn read_facs(&mut self, address: PhysAddr, stated: &mut usize) -> Result<(Span, State), State> {
        let mut first = [0; 8];
        self.memory
            .read(address, &mut first)
            .map_err(|_| State::Unreadable)?;
        let [s0, s1, s2, s3, length @ ..] = first;
        *stated = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if Signature([s0, s1, s2, s3]) != Signature::FACS || *stated < FACS_LENGTH {
            return Err(State::NotATable);
        }
        if *stated > self.max_table_length {
            return Err(State::TooLong);
        }
        self.read(address, *stated).map(|span| (span, State::Sound))
    }

    fn smbios(&mut self, source: SmbiosSource) {
        match source {
            SmbiosSource::None => {}
            SmbiosSource::At { entry_32, entry_64 } => {
                for address in [entry_64, entry_32].into_iter().flatten() {
                    self.smbios_entry(address);
                }
            }
            SmbiosSource::Scan => {
                // The first of each format; the 64-bit one leads to the fuller table.
                for wide in [true, false] {
                    if let Some(address) = self.scan(wide) {
                        self.smbios_entry(address);
                    }
                }
            }
        }
    }

    fn scan(&self, wide: bool) -> Option<PhysAddr> {
        (SCAN.base().0..SCAN.end().0)
            .step_by(16)
            .map(PhysAddr)
            .find(|&address| {
                let mut anchor = [0; 4];
                if self.memory.read(address, &mut anchor).is_err()
                    || !matches!(&anchor, b"_SM_" | b"_SM3")
                {
                    return false;
                }
                self.read_entry(address)
                    .is_ok_and(|(entry, _)| entry.is_64_bit == wide)
            })
    }

    /// An entry point and its bytes.
    fn read_entry(
        &self,
        address: PhysAddr,
    ) -> Result<(SmbiosEntry, [u8; SmbiosEntry::MAX_LENGTH]), State> {
        let mut bytes = [0; SmbiosEntry::MAX_LENGTH];
        // The 64-bit entry point is shorter and may lie at the end of readable memory.
        for length in [SmbiosEntry::MAX_LENGTH, 31, 24] {
            let (into, _) = bytes.split_at_mut(length);
            if self.memory.read(address, into).is_ok() {
                return match SmbiosEntry::parse(into) {
                    Ok(entry) => Ok((entry, bytes)),
                    Err(_) => Err(State::NotATable),
                };
            }
        }
        Err(State::Unreadable)
    }

    fn smbios_entry(&mut self, address: PhysAddr) {
        let kind = CapturedKind::SmbiosEntry;
        let (entry, bytes) = match self.read_entry(address) {
            Ok(found) => found,
            Err(state) => {
                self.record(kind, Signature(*b"_SM_"), address, 0, Err(state));
                return;
            }
        };
        let signature = match entry.is_64_bit {
            true => Signature(*b"_SM3"),
            false => Signature(*b"_SM_"),
        };
        let bytes = bytes.get(..entry.length).unwrap_or(&bytes);
        self.keep(kind, signature, address, bytes);
        if !self.is_known(entry.table) {
            let stated = usize::try_from(entry.table_length).unwrap_or(usize::MAX);
            let outcome = self.smbios_table(entry.table, stated);
            self.record(
                CapturedKind::SmbiosStructures,
                Signature(*b"SMBS"),
                entry.table,
                stated,
                outcome,
            );
        }
    }

    /// Copies SMBIOS structures: at most `stated` bytes, up to the end-of-table structure. The
    /// 64-bit entry point states a maximum that may reach past what can be read, so this goes
    /// piece by piece.
    fn smbios_table(&mut self, address: PhysAddr, stated: usize) -> Result<(Span, State), State> {
        let wanted = stated.min(self.max_table_length);
        let room = self.room(0).ok_or(State::NoRoom)?;
        let left = self.bytes.len().saturating_sub(room.at);
        let mut length = 0_usize;
        let mut readable = true;
        while readable && length < wanted.min(left) {
            // Up to the next page boundary, so that a hole in memory costs no readable byte.
            let Some(from) = address.checked_add(length as u64) else {
                break;
            };
            let in_page = usize::try_from(from.0 & 0xfff).unwrap_or(0);
            let piece = PIECE
                .saturating_sub(in_page)
                .min(wanted.min(left).saturating_sub(length));
            let into = self
                .bytes
                .get_mut(room.at.saturating_add(length)..)
                .and_then(|rest| rest.get_mut(..piece))
                .ok_or(State::NoRoom)?;
            readable = self.memory.read(from, into).is_ok();
            if readable {
                length = length.saturating_add(piece);
            }
        }
        let copied = self.span(Span {
            at: room.at,
            length,
        });
        let mut structures = SmbiosStructures::new(copied);
        let ended = structures
            .by_ref()
            .map_while(Result::ok)
            .any(|structure| structure.kind == SmbiosStructure::END_OF_TABLE);
        if ended {
            length = structures.offset();
        }
        let span = self
            .room(length)
            .filter(|span| span.length != 0)
            .ok_or(if readable {
                State::NoRoom
            } else {
                State::Unreadable
            })?;
        let state = match (ended, length < stated) {
            (false, true) => State::Shortened,
            _ => State::Sound,
        };
        Ok((span, state))
    }

    /// Zeros what is left of the directory's room and gives the numbers for the header.
    fn close(self) -> (usize, usize, CaptureSummary) {
        // The directory has a fixed room, so that the tables after it need not be moved. Unused
        // entries are kept out of the count; their bytes must not be what was there before.
        for entry in self.directory.iter_mut().skip(self.entries) {
            entry.as_mut_bytes().fill(0);
        }
        let length = self.start.saturating_add(self.used);
        (self.entries, length, self.summary)
    }
}
