//! From bytes to tables. A fuzzer hardly ever hits a right checksum, and seldom a right length; so
//! these are filled in, and the input says where they are to be wrong.

/// Reads the input from its start; zeros where it has ended.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn double(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }

    pub fn quad(&mut self) -> u64 {
        u64::from(self.double()) | u64::from(self.double()) << 32
    }
}

pub fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
}

/// Makes the byte at `at` such that all bytes add up to zero.
pub fn fix_sum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = checksum(bytes).wrapping_neg();
}

/// A table with the common header.
pub fn sdt(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(b"VENDORMACHINE\0");
    table.extend_from_slice(&[0; 12]);
    table.extend_from_slice(body);
    fix_sum(&mut table, 9);
    table
}

/// How a kind of table is put together.
pub struct Shape {
    pub signature: &'static [u8; 4],
    /// Bytes between the common header and the first entry.
    pub fixed: usize,
    /// Where an entry has its type and its length, and the bytes of its header.
    pub entry: Option<EntryShape>,
}

#[derive(Clone, Copy)]
pub struct EntryShape {
    pub header: usize,
    pub length_at: usize,
    pub length_bytes: usize,
}

const BYTES: EntryShape = EntryShape {
    header: 2,
    length_at: 1,
    length_bytes: 1,
};

/// The kinds of tables, in the order of the first byte of the input.
pub const SHAPES: [Shape; 16] = [
    shape(b"APIC", 8, Some(BYTES)),
    shape(b"SRAT", 12, Some(BYTES)),
    shape(
        b"DMAR",
        12,
        Some(EntryShape {
            header: 4,
            length_at: 2,
            length_bytes: 2,
        }),
    ),
    shape(
        b"IVRS",
        12,
        Some(EntryShape {
            header: 4,
            length_at: 2,
            length_bytes: 2,
        }),
    ),
    shape(
        b"HMAT",
        4,
        Some(EntryShape {
            header: 8,
            length_at: 4,
            length_bytes: 4,
        }),
    ),
    shape(
        b"DBG2",
        8,
        Some(EntryShape {
            header: 3,
            length_at: 1,
            length_bytes: 2,
        }),
    ),
    shape(b"MCFG", 8, None),
    shape(b"SLIT", 8, None),
    shape(b"FACP", 240, None),
    shape(b"HPET", 20, None),
    shape(b"SPCR", 52, None),
    shape(b"BGRT", 20, None),
    shape(b"TPM2", 40, None),
    shape(b"WAET", 4, None),
    shape(b"ECDT", 29, None),
    shape(b"XSDT", 0, None),
];

const fn shape(signature: &'static [u8; 4], fixed: usize, entry: Option<EntryShape>) -> Shape {
    Shape {
        signature,
        fixed,
        entry,
    }
}

/// One entry of a table as the input says.
///
/// The input has a byte of flags, a byte of type, a byte of length, and as many bytes of content;
/// bit 0 of the flags asks for a wrong length, by what the other bits say, and bit 1 for sixteen
/// times the content.
fn entry(input: &mut Input<'_>, shape: EntryShape) -> Vec<u8> {
    let (flags, kind, length) = (input.byte(), input.byte(), input.byte());
    let count = usize::from(length) * if flags & 2 != 0 { 16 } else { 1 };
    let content = input.take(count);
    let mut bytes = vec![0; shape.header];
    bytes[0] = kind;
    bytes.extend_from_slice(content);
    let mut stated = bytes.len() as u32;
    if flags & 1 != 0 {
        stated = stated.wrapping_add((flags as i8 >> 2) as u32);
    }
    let (at, width) = (shape.length_at, shape.length_bytes);
    bytes[at..at + width].copy_from_slice(&stated.to_le_bytes()[..width]);
    bytes
}

/// The entries that the input asks for.
pub fn entries(input: &mut Input<'_>, shape: EntryShape) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    while !input.is_empty() && entries.len() < 300 {
        entries.push(entry(input, shape));
    }
    entries
}

/// A table that the input asks for: a byte for the kind, one for the revision, the fixed part, and
/// entries, or bytes as they are.
pub fn table(bytes: &[u8]) -> Vec<u8> {
    let mut input = Input(bytes);
    let shape = &SHAPES[usize::from(input.byte()) % SHAPES.len()];
    let revision = input.byte();
    let mut body = input.take(shape.fixed).to_vec();
    match shape.entry {
        Some(entry) => {
            body.resize(shape.fixed, 0);
            if shape.signature == b"DBG2" {
                // The devices begin right behind, in two cases of three.
                if body[0] % 3 != 0 {
                    body[..4].copy_from_slice(&44_u32.to_le_bytes());
                }
            }
            body.extend(entries(&mut input, entry).concat());
        }
        None => body.extend_from_slice(input.0),
    }
    sdt(shape.signature, revision, &body)
}
