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
/// SMBIOS entry points are looked for at multiples of this.
const PARAGRAPH: usize = 16;
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
    let roots = [rsdp.xsdt, rsdp.rsdt].map(|address| (address, root_header(memory, address)));
    let pointers = root_length(&roots).min(request.max_tables);
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
    let root = collector.root(&rsdp, &roots)?;
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

/// The common header of a table, as it was read, or why it was not.
type HeaderBytes = Result<[u8; size_of::<SdtHeader>()], State>;

fn read_header<M: ReadPhys>(memory: &M, address: PhysAddr) -> HeaderBytes {
    let mut header = [0; size_of::<SdtHeader>()];
    match memory.read(address, &mut header) {
        Ok(()) => Ok(header),
        Err(_) => Err(State::Unreadable),
    }
}

/// The header of a root table; `None` where the RSDP has none.
fn root_header<M: ReadPhys>(memory: &M, address: PhysAddr) -> Option<HeaderBytes> {
    (address.0 != 0).then(|| read_header(memory, address))
}

/// The XSDT and the RSDT: where they are to be, and their headers.
type Roots = [(PhysAddr, Option<HeaderBytes>); 2];

/// How many pointers the root tables have at most, from their stated lengths alone.
fn root_length(roots: &Roots) -> usize {
    let count = |header: &Option<HeaderBytes>, width: usize| {
        let Some(Ok(header)) = header else { return 0 };
        SdtHeader::read_from_bytes(header).map_or(0, |header| {
            let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
            length
                .saturating_sub(Sdt::HEADER_LENGTH)
                .checked_div(width)
                .unwrap_or(0)
        })
    };
    let [(_, xsdt), (_, rsdt)] = roots;
    count(xsdt, 8).max(count(rsdt, 4))
}

/// A place in the copied bytes.
#[derive(Clone, Copy)]
struct Span {
    at: usize,
    length: usize,
}

/// An SMBIOS entry point and its bytes.
type EntryPoint = (SmbiosEntry, [u8; SmbiosEntry::MAX_LENGTH]);

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

    /// Puts `first`, which was read before, into fresh room, and reads what follows it in memory
    /// behind it, `length` bytes in all. The room counts as used only once it is recorded.
    ///
    /// Nothing is read twice: what was judged is what is kept, also where somebody changes it
    /// meanwhile.
    fn read(&mut self, address: PhysAddr, first: &[u8], length: usize) -> Result<Span, State> {
        let span = self.room(length).ok_or(State::NoRoom)?;
        let into = self
            .bytes
            .get_mut(span.at..)
            .and_then(|rest| rest.get_mut(..length))
            .ok_or(State::NoRoom)?;
        let (head, rest) = into
            .split_at_mut_checked(first.len())
            .ok_or(State::NotATable)?;
        head.copy_from_slice(first);
        if !rest.is_empty() {
            let address = address
                .checked_add(first.len() as u64)
                .ok_or(State::Unreadable)?;
            self.memory
                .read(address, rest)
                .map_err(|_| State::Unreadable)?;
        }
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

    /// Copies a table with the common header.
    fn table(&mut self, address: PhysAddr) -> Option<Span> {
        if self.is_known(address) {
            let nothing = Signature([0; 4]);
            let outcome = Err(State::Duplicate);
            self.record(CapturedKind::Sdt, nothing, address, 0, outcome);
            return None;
        }
        let header = read_header(self.memory, address);
        self.table_after(address, header)
    }

    /// Copies a table whose header was read before.
    fn table_after(&mut self, address: PhysAddr, header: HeaderBytes) -> Option<Span> {
        let mut signature = Signature([0; 4]);
        let mut stated = 0;
        let outcome = header
            .and_then(|header| self.read_table(address, &header, &mut signature, &mut stated));
        self.record(CapturedKind::Sdt, signature, address, stated, outcome);
        outcome.ok().map(|(span, _)| span)
    }

    fn read_table(
        &mut self,
        address: PhysAddr,
        bytes: &[u8; size_of::<SdtHeader>()],
        signature: &mut Signature,
        stated: &mut usize,
    ) -> Result<(Span, State), State> {
        let header = SdtHeader::read_from_bytes(bytes).map_err(|_| State::NotATable)?;
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
        let span = self.read(address, bytes, *stated)?;
        let state = match checksum(self.span(span)) {
            0 => State::Sound,
            _ => State::BadChecksum,
        };
        Ok((span, state))
    }

    /// Copies the root table: the XSDT, or the RSDT if there is no sound XSDT.
    fn root(&mut self, rsdp: &Rsdp, roots: &Roots) -> Result<Span, CaptureError> {
        for &(address, header) in roots {
            if let Some(header) = header
                && let Some(span) = self.table_after(address, header)
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
        self.read(address, &first, *stated)
            .map(|span| (span, State::Sound))
    }

    fn smbios(&mut self, source: SmbiosSource) {
        match source {
            SmbiosSource::None => {}
            SmbiosSource::At { entry_32, entry_64 } => {
                for address in [entry_64, entry_32].into_iter().flatten() {
                    let entry = self.read_paragraph(address).and_then(|first| {
                        // The caller says that there is one.
                        self.complete_entry(address, &first)
                    });
                    self.smbios_entry(address, entry);
                }
            }
            SmbiosSource::Scan => {
                // The first of each format; the 64-bit one leads to the fuller table.
                for found in self.scan().into_iter().flatten() {
                    let (address, entry) = found;
                    self.smbios_entry(address, Ok(entry));
                }
            }
        }
    }

    fn read_paragraph(&self, address: PhysAddr) -> Result<[u8; PARAGRAPH], State> {
        let mut first = [0; PARAGRAPH];
        match self.memory.read(address, &mut first) {
            Ok(()) => Ok(first),
            Err(_) => Err(State::Unreadable),
        }
    }

    /// The first 64-bit and the first 32-bit entry point that can be scanned for.
    fn scan(&self) -> [Option<(PhysAddr, EntryPoint)>; 2] {
        let mut found = [None; 2];
        for address in (SCAN.base().0..SCAN.end().0).step_by(PARAGRAPH) {
            let address = PhysAddr(address);
            let [wide, narrow] = &mut found;
            let Ok(first) = self.read_paragraph(address) else {
                continue;
            };
            let slot = match first {
                [b'_', b'S', b'M', b'3', ..] => wide,
                [b'_', b'S', b'M', b'_', ..] => narrow,
                _ => continue,
            };
            if slot.is_none() {
                let entry = self.complete_entry(address, &first);
                *slot = entry.ok().map(|entry| (address, entry));
            }
        }
        found
    }

    /// An entry point that begins with these bytes. The rest is read, as much as it says.
    fn complete_entry(
        &self,
        address: PhysAddr,
        first: &[u8; PARAGRAPH],
    ) -> Result<EntryPoint, State> {
        let &[_, _, _, kind, _, narrow, wide, ..] = first;
        let length = match kind {
            b'3' => usize::from(wide).max(24),
            _ => usize::from(narrow).max(31),
        };
        let mut bytes = [0; SmbiosEntry::MAX_LENGTH];
        let whole = bytes.get_mut(..length).ok_or(State::NotATable)?;
        let (head, rest) = whole
            .split_at_mut_checked(PARAGRAPH)
            .ok_or(State::NotATable)?;
        head.copy_from_slice(first);
        let after = address
            .checked_add(PARAGRAPH as u64)
            .ok_or(State::Unreadable)?;
        self.memory
            .read(after, rest)
            .map_err(|_| State::Unreadable)?;
        match SmbiosEntry::parse(whole) {
            Ok(entry) => Ok((entry, bytes)),
            Err(_) => Err(State::NotATable),
        }
    }

    fn smbios_entry(&mut self, address: PhysAddr, entry: Result<EntryPoint, State>) {
        let kind = CapturedKind::SmbiosEntry;
        let (entry, bytes) = match entry {
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
            .flatten()
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
