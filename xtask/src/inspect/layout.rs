//! Structures as lists of fields: how long each is, what it is called, and how to read it.
//!
//! A field that the bytes do not reach is left out: the parsers say that something is too short.

use super::document::Field;

/// How a field is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum As {
    /// A number that people read in decimal.
    Number,
    /// A number that people read in hexadecimal.
    Hex,
    /// A physical address.
    Address,
    /// So many bytes.
    Size,
    /// ASCII.
    Text,
    /// Any bytes.
    Bytes,
    /// Zero, or nobody knows.
    Reserved,
    /// Bits, by their numbers.
    Flags(&'static [(u32, &'static str)]),
    /// One of these.
    Choice(&'static [(u64, &'static str)]),
    /// A Generic Address Structure (ACPI 6.5, section 5.2.3.2).
    Gas,
    /// A PCI bus, device and function in 16 bits.
    Requester,
    /// A segment group and a requester id in 32 bits.
    Function,
    /// A fact that is put together from the number.
    Meaning(fn(u64) -> String),
}

/// A field of a structure.
pub(super) type Spec = (usize, &'static str, As);

/// The kinds of address space (ACPI 6.5, table 5.1).
const SPACES: &[(u64, &str)] = &[
    (0, "memory"),
    (1, "ports"),
    (2, "PCI configuration"),
    (3, "embedded controller"),
    (4, "SMBus"),
    (5, "CMOS"),
    (6, "PCI BAR"),
    (10, "platform communications channel"),
    (0x7f, "fixed hardware"),
];

/// The little-endian number in at most eight bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let take = bytes.get(..8).unwrap_or(bytes);
    take.iter()
        .rev()
        .fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// The number of `length` bytes at `offset`, where there are so many.
pub(super) fn number_at(bytes: &[u8], offset: usize, length: usize) -> Option<u64> {
    let end = offset.checked_add(length)?;
    bytes.get(offset..end).map(number)
}

/// The name of a number in a list.
pub(super) fn name_of(list: &[(u64, &'static str)], number: u64) -> Option<&'static str> {
    let found = list.iter().find(|(of, _)| *of == number);
    found.map(|(_, name)| *name)
}

/// A requester id as people write it.
pub(super) fn requester(id: u64) -> String {
    format!("{:02x}:{:02x}.{}", (id >> 8) & 0xff, (id >> 3) & 31, id & 7)
}

/// Text as it is, without the zeros or spaces that fill it up.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    format!("\"{}\"", bytes.get(..end).unwrap_or(&[]).escape_ascii())
}

fn hex(bytes: &[u8]) -> String {
    let shown: String = bytes.iter().take(32).map(|b| format!("{b:02x}")).collect();
    match bytes.len() {
        0..=32 => shown,
        more => format!("{shown}... ({more} bytes)"),
    }
}

fn flags(number: u64, names: &[(u32, &str)]) -> String {
    let set = |bit: u32| number.checked_shr(bit).is_some_and(|n| n & 1 == 1);
    let mut said: Vec<String> = names
        .iter()
        .filter(|(bit, _)| set(*bit))
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let unknown = (0..64).filter(|&bit| set(bit) && !names.iter().any(|(of, _)| *of == bit));
    said.extend(unknown.map(|bit| format!("bit {bit}")));
    said.join(", ")
}

fn gas(bytes: &[u8]) -> String {
    let [space, width, shift, access, address @ ..] = bytes else {
        return String::new();
    };
    let address = number(address);
    if (*space, *width, address) == (0, 0, 0) {
        return "not there".to_owned();
    }
    let space = name_of(SPACES, u64::from(*space)).map_or_else(
        || format!("space {space:#x}"),
        |name| format!("{name} at {address:#x}"),
    );
    let access = match access {
        0 => String::new(),
        1..=4 => format!(", accessed by {} bits", 8 << (access - 1)),
        other => format!(", access size {other}"),
    };
    format!("{space}, {width} bits from bit {shift}{access}")
}

/// One field, at `offset` of the file.
fn field(offset: usize, bytes: &[u8], (length, name, kind): Spec) -> Field {
    let is_number = length <= 8 && !matches!(kind, As::Text | As::Bytes | As::Gas);
    let value = number(bytes);
    let digits = length * 2 + 2;
    let in_hex = || format!("{value:#0digits$x}");
    let (shown, meaning) = match kind {
        As::Number => (value.to_string(), String::new()),
        As::Hex | As::Address => (in_hex(), String::new()),
        As::Size => (in_hex(), crate::ui::bytes(value)),
        As::Text => (text(bytes), String::new()),
        As::Bytes => (hex(bytes), String::new()),
        As::Gas => (hex(bytes), gas(bytes)),
        As::Reserved => {
            let odd = bytes.iter().any(|&byte| byte != 0);
            let meaning = if odd { "not zero" } else { "" };
            (hex(bytes), meaning.to_owned())
        }
        As::Flags(names) => (in_hex(), flags(value, names)),
        As::Choice(names) => (
            in_hex(),
            name_of(names, value).unwrap_or("not known").to_owned(),
        ),
        As::Requester => (in_hex(), requester(value)),
        As::Function => (
            in_hex(),
            format!("{:04x}:{}", value & 0xffff, requester(value >> 16)),
        ),
        As::Meaning(of) => (in_hex(), of(value)),
    };
    Field {
        offset,
        length,
        name,
        number: is_number.then_some(value),
        value: shown,
        meaning,
    }
}

/// How many bytes these fields have.
pub(super) fn length_of(specs: &[Spec]) -> usize {
    specs.iter().map(|(length, _, _)| length).sum()
}

/// The fields of a structure that begins at `start` in `bytes`, which begin at `base` of the file;
/// as many of them as lie before `end`.
pub(super) fn fields(
    bytes: &[u8],
    base: usize,
    start: usize,
    end: usize,
    specs: &[Spec],
) -> Vec<Field> {
    let bytes = bytes.get(..end).unwrap_or(bytes);
    let mut at = start;
    let mut found = Vec::new();
    for &spec in specs {
        let Some(here) = at.checked_add(spec.0).and_then(|next| bytes.get(at..next)) else {
            break;
        };
        found.push(field(base + at, here, spec));
        at += spec.0;
    }
    found
}
