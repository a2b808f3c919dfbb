//! Memory maps: of UEFI and of the BIOS, as bytes and as text, and items of `setup_data`.

use acpi_capture::ReadPhys;
use acpi_capture::memory::{
    E820Entries, MemoryKind, MemoryMap, MemoryRegion, SetupData, UefiDescriptors,
};
use handoff_abi::{PhysAddr, PhysRange};

use super::document::Document;
use super::layout::{As, Spec, fields, number_at};

/// More regions than any real map has.
const REGIONS: usize = 1024;

/// A descriptor of a UEFI memory map (UEFI 2.10, section 7.2.3).
const UEFI: &[Spec] = &[
    (
        4,
        "type",
        As::Choice(&[
            (0, "reserved"),
            (1, "loader code"),
            (2, "loader data"),
            (3, "boot services code"),
            (4, "boot services data"),
            (5, "runtime code"),
            (6, "runtime data"),
            (7, "conventional"),
            (8, "unusable"),
            (9, "ACPI reclaimable"),
            (10, "ACPI NVS"),
            (11, "memory-mapped I/O"),
            (12, "memory-mapped ports"),
            (13, "PAL code"),
            (14, "persistent"),
            (15, "unaccepted"),
        ]),
    ),
    (4, "padding", As::Bytes),
    (8, "base", As::Address),
    (8, "virtual base", As::Address),
    (8, "pages", As::Number),
    (
        8,
        "attributes",
        As::Flags(&[
            (0, "UC"),
            (1, "WC"),
            (2, "WT"),
            (3, "WB"),
            (4, "UCE"),
            (12, "WP"),
            (13, "RP"),
            (14, "XP"),
            (15, "NV"),
            (16, "more reliable"),
            (17, "RO"),
            (18, "specific purpose"),
            (19, "crypto"),
            (63, "runtime"),
        ]),
    ),
];

/// An entry of the system address map (ACPI 6.5, section 15.1).
const E820: &[Spec] = &[
    (8, "base", As::Address),
    (8, "length", As::Size),
    (
        4,
        "type",
        As::Choice(&[
            (1, "usable"),
            (2, "reserved"),
            (3, "ACPI"),
            (4, "ACPI NVS"),
            (5, "unusable"),
            (6, "disabled"),
            (7, "persistent"),
        ]),
    ),
    (4, "reserved", As::Reserved),
];

const SETUP: &[Spec] = &[
    (8, "next", As::Address),
    (
        4,
        "type",
        As::Choice(&[
            (1, "more of the system address map"),
            (2, "device tree"),
            (3, "PCI option ROM"),
            (4, "UEFI"),
            (5, "Apple properties"),
            (6, "Jailhouse"),
            (7, "confidential computing"),
            (8, "measurements"),
            (9, "random seed"),
            (10, "kexec handover"),
            (0x8000_0000, "indirect"),
        ]),
    ),
    (4, "length", As::Size),
];

/// The size of a descriptor, where these bytes may be a UEFI memory map.
pub(super) fn looks_like_uefi(bytes: &[u8]) -> Option<usize> {
    // Nothing says what a map is: every descriptor has to be one that firmware would write.
    [48, 40, 56, 64].into_iter().find(|&size| {
        let sound = |descriptor: &[u8]| {
            let kind = number_at(descriptor, 0, 4).unwrap_or(u64::MAX);
            let base = number_at(descriptor, 8, 8).unwrap_or(1);
            let pages = number_at(descriptor, 24, 8).unwrap_or(0);
            let length = pages.checked_mul(4096);
            !(16..0x7000_0000).contains(&kind)
                && base.is_multiple_of(4096)
                && pages != 0
                && length.is_some_and(|length| base.checked_add(length).is_some())
        };
        bytes.len() >= 2 * size && bytes.len().is_multiple_of(size) && bytes.chunks(size).all(sound)
    })
}

/// A UEFI memory map with descriptors of this size.
pub(super) fn uefi(bytes: &[u8], size: usize) -> Document {
    let mut document = Document::new("UEFI memory map", 0, bytes.len());
    match UefiDescriptors::parse(bytes, size) {
        Err(error) => document.error(error),
        Ok(descriptors) => {
            for (place, region) in descriptors.clone().enumerate() {
                let part = part(bytes, place, size, UEFI, region);
                document.parts.push(part);
            }
            total(&mut document, descriptors);
        }
    }
    document
}

/// A system address map with entries of this size.
pub(super) fn e820(bytes: &[u8], size: usize) -> Document {
    let mut document = Document::new("system address map", 0, bytes.len());
    match E820Entries::parse(bytes, size) {
        Err(error) => document.error(error),
        Ok(entries) => {
            for (place, region) in entries.clone().enumerate() {
                let part = part(bytes, place, size, E820, region);
                document.parts.push(part);
            }
            total(&mut document, entries);
        }
    }
    document
}

fn part(bytes: &[u8], place: usize, size: usize, specs: &[Spec], region: MemoryRegion) -> Document {
    let at = place * size;
    let mut part = Document::new(format!("{:?}: {}", region.range, region.kind), at, size);
    part.fields = fields(bytes, 0, at, at + size, specs);
    part
}

/// What the regions come to, and whether they contradict each other.
fn total(document: &mut Document, regions: impl Iterator<Item = MemoryRegion> + Clone) {
    let mut sorted: Vec<_> = regions.clone().collect();
    let unsorted = sorted
        .windows(2)
        .any(|pair| pair[0].range.base() > pair[1].range.base());
    if unsorted {
        document.note("the entries are not in order");
    }
    sorted.sort_by_key(|region| region.range.base());
    for pair in sorted.windows(2) {
        if pair[0].range.end() > pair[1].range.base() {
            let kinds = (pair[0].kind, pair[1].kind);
            let text = format!(
                "{:?} ({}) and {:?} ({}) overlap",
                pair[0].range, kinds.0, pair[1].range, kinds.1
            );
            match kinds.0 == kinds.1 {
                true => document.note(text),
                false => document.error(text),
            }
        }
    }
    if sorted.iter().any(|region| region.range.length() == 0) {
        document.note("an entry is empty");
    }
    match MemoryMap::<REGIONS>::from_regions(regions) {
        Err(error) => document.error(error),
        Ok(map) => document.fact(format_args!(
            "{} usable in {} regions",
            crate::ui::bytes(map.total(MemoryKind::Usable)),
            map.regions().len()
        )),
    }
}

/// A memory map as text: lines of `start end type`, the end inclusive, in hexadecimal; or lines of
/// `start-end : name` as in Linux's `/proc/iomem`; or lines of `type start end pages attributes` as
/// the UEFI shell prints them.
pub(super) fn text(bytes: &[u8]) -> Option<Document> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut regions = Vec::new();
    let mut document = Document::new("memory map as text", 0, bytes.len());
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let at = offset;
        offset += line.len();
        let own = line.trim_end();
        if own.trim().is_empty() || own.starts_with('#') {
            continue;
        }
        let (range, name) = split(own)?;
        let region = MemoryRegion {
            range,
            kind: kind_of(name),
        };
        let title = format!("{range:?}: {name} ({})", region.kind);
        document.parts.push(Document::new(title, at, own.len()));
        // What is indented is a part of what is above it.
        if !own.starts_with(' ') {
            regions.push(region);
        }
    }
    if document.parts.is_empty() {
        return None;
    }
    if regions.iter().all(|region| region.range.length() <= 1) {
        document.note("all addresses are zero: it was read without the right to see them");
    } else {
        total(&mut document, regions.iter().copied());
    }
    Some(document)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn split(line: &str) -> Option<(PhysRange, &str)> {
    let line = line.trim();
    let (start, last, name) = match line.split_once(" : ") {
        Some((range, name)) => {
            let (start, last) = range.split_once('-')?;
            (start, last, name)
        }
        None => {
            let (first, rest) = line.split_once(' ')?;
            let (second, third) = rest.split_once(' ')?;
            // The UEFI shell's `memmap` puts the type first.
            match third.split_once(' ') {
                Some((last, _)) if hex(first).is_none() || hex(last).is_some() => {
                    (second, last, first)
                }
                _ => (first, second, third),
            }
        }
    };
    let (start, last) = (hex(start)?, hex(last)?);
    let length = last.checked_sub(start)?.checked_add(1)?;
    Some((PhysRange::new(PhysAddr(start), length).ok()?, name.trim()))
}

fn kind_of(name: &str) -> MemoryKind {
    match name.to_ascii_lowercase().as_str() {
        "system ram" | "usable" | "available" | "bs_code" | "bs_data" | "loadercode"
        | "loaderdata" => MemoryKind::Usable,
        "acpi tables" | "acpi data" | "acpi_recl" => MemoryKind::AcpiReclaimable,
        "acpi non-volatile storage" | "acpi nvs" | "acpi_nvs" => MemoryKind::AcpiNvs,
        "persistent memory" | "persistent" => MemoryKind::Persistent,
        "soft reserved" => MemoryKind::SpecificPurpose,
        "unusable memory" | "unusable" => MemoryKind::Unusable,
        "rt_code" | "rt_data" => MemoryKind::Runtime,
        _ => MemoryKind::Reserved,
    }
}

/// Memory that holds one item and nothing else.
struct Item<'a> {
    bytes: &'a [u8],
}

/// Where the item is taken to lie: a file says nothing of it.
const ITEM_AT: u64 = 0x1000;

impl ReadPhys for Item<'_> {
    type Error = ();

    fn read(&self, at: PhysAddr, into: &mut [u8]) -> Result<(), ()> {
        let start = at.0.checked_sub(ITEM_AT).ok_or(())?;
        let start = usize::try_from(start).map_err(drop)?;
        let end = start.checked_add(into.len()).ok_or(())?;
        into.copy_from_slice(self.bytes.get(start..end).ok_or(())?);
        Ok(())
    }
}

/// Whether these bytes may be one item of `setup_data`.
pub(super) fn looks_like_setup(bytes: &[u8]) -> bool {
    let kind = number_at(bytes, 8, 4).unwrap_or(0);
    let length = number_at(bytes, 12, 4).unwrap_or(u64::MAX);
    matches!(kind, 1..=10 | 0x8000_0000) && length.checked_add(16) == Some(bytes.len() as u64)
}

/// One item of `setup_data`.
pub(super) fn setup(bytes: &[u8], limit: usize) -> Document {
    let mut document = Document::new("setup_data", 0, bytes.len());
    document.fields = fields(bytes, 0, 0, bytes.len(), SETUP);
    match SetupData::new(Item { bytes }, PhysAddr(ITEM_AT)).next() {
        None => document.error("there is no item"),
        Some(Err(error)) => document.error(error),
        Some(Ok(item)) => document.fact(format_args!(
            "{:?}, {} bytes{}",
            item.kind,
            item.data.length(),
            if item.indirect { ", elsewhere" } else { "" }
        )),
    }
    let data = bytes.get(16..).unwrap_or(&[]);
    if number_at(bytes, 8, 4) == Some(1) {
        let mut map = e820(data, E820Entries::BIOS);
        map.offset = 16;
        document.parts.push(map);
    } else if !data.is_empty() {
        document.dump(16, data, limit);
    }
    document
}
