//! Walking the variable-length entries that follow a table's fixed part.

use core::fmt;

use zerocopy::FromBytes;

use super::Signature;

/// Why an entry of a table cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum EntryError {
    /// The entry's length does not even cover its own header, so nothing after it can be found.
    /// The iteration ends here.
    Stuck {
        /// The table.
        table: Signature,
        /// Where in the table the entry begins, in bytes.
        offset: usize,
        /// The length it states.
        length: usize,
    },
    /// The entry reaches past the end of the table. The iteration ends here.
    Overrun {
        /// The table.
        table: Signature,
        /// Where in the table the entry begins, in bytes.
        offset: usize,
        /// The length it states; the header's, where not even that fits.
        length: usize,
        /// Bytes left in the table.
        left: usize,
    },
    /// The entry is shorter than its kind must be. The next entry is still read.
    Short {
        /// The table.
        table: Signature,
        /// Where in the table the entry begins, in bytes.
        offset: usize,
        /// Its type field.
        kind: u16,
        /// The length it states.
        length: usize,
        /// The least length of this kind.
        needed: usize,
    },
}

impl EntryError {
    /// Whether entries after this one could not be read either.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Short { .. })
    }
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck {
                table,
                offset,
                length,
            } => write!(
                f,
                "{table}: the entry at {offset:#x} states a length of {length}; the rest is unread"
            ),
            Self::Overrun {
                table,
                offset,
                length,
                left,
            } => write!(
                f,
                "{table}: the entry at {offset:#x} needs {length} bytes and {left} are left"
            ),
            Self::Short {
                table,
                offset,
                kind,
                length,
                needed,
            } => write!(
                f,
                "{table}: the entry at {offset:#x} of type {kind} has {length} bytes instead of \
                 {needed}"
            ),
        }
    }
}

impl core::error::Error for EntryError {}

/// An entry as it stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// Its type field.
    pub kind: u16,
    /// Where in the table it begins, in bytes.
    pub offset: usize,
    /// All its bytes, type and length included.
    pub bytes: &'a [u8],
}

impl<'a> RawEntry<'a> {
    /// The fixed structure of this entry.
    pub(crate) fn fixed<T: FromBytes>(&self, table: Signature) -> Result<T, EntryError> {
        match T::read_from_prefix(self.bytes) {
            Ok((fixed, _)) => Ok(fixed),
            Err(_) => Err(EntryError::Short {
                table,
                offset: self.offset,
                kind: self.kind,
                length: self.bytes.len(),
                needed: size_of::<T>(),
            }),
        }
    }

    /// The fixed structure of this entry, in two parts.
    pub(crate) fn fixed_pair<T: FromBytes, U: FromBytes>(
        &self,
        table: Signature,
    ) -> Result<(T, U), EntryError> {
        let needed = size_of::<T>().saturating_add(size_of::<U>());
        let first = self.fixed(table)?;
        match U::read_from_prefix(self.after::<T>()) {
            Ok((second, _)) => Ok((first, second)),
            Err(_) => Err(EntryError::Short {
                table,
                offset: self.offset,
                kind: self.kind,
                length: self.bytes.len(),
                needed,
            }),
        }
    }

    /// What follows the fixed structure `T`.
    pub(crate) fn after<T>(&self) -> &'a [u8] {
        self.bytes.get(size_of::<T>()..).unwrap_or(&[])
    }
}

/// How wide the type and length fields of a table's entries are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FieldWidth {
    /// One byte each: MADT, SRAT.
    Byte,
    /// Two bytes each: DMAR.
    Word,
    /// A byte of type, a byte of flags, and two bytes of length: IVRS.
    ByteAndWord,
    /// Two bytes of type, two reserved, and four of length: HMAT.
    WordAndDouble,
}

impl FieldWidth {
    /// Bytes that the two fields take, and what lies between them.
    const fn header(self) -> usize {
        match self {
            Self::Byte => 2,
            Self::Word | Self::ByteAndWord => 4,
            Self::WordAndDouble => 8,
        }
    }
}

/// The entries of a table, in order.
#[derive(Clone, Debug)]
pub(crate) struct RawEntries<'a> {
    table: Signature,
    width: FieldWidth,
    offset: usize,
    left: &'a [u8],
}

impl<'a> RawEntries<'a> {
    /// The entries in `bytes`, which begin at `offset` of `table`.
    pub(crate) const fn new(
        table: Signature,
        width: FieldWidth,
        offset: usize,
        bytes: &'a [u8],
    ) -> Self {
        Self {
            table,
            width,
            offset,
            left: bytes,
        }
    }

    /// Type and length of the next entry.
    fn header(&self) -> Option<(u16, usize)> {
        match self.width {
            FieldWidth::Byte => {
                let &[kind, length] = self.left.first_chunk()?;
                Some((u16::from(kind), usize::from(length)))
            }
            FieldWidth::Word => {
                let &[k0, k1, l0, l1] = self.left.first_chunk()?;
                let length = u16::from_le_bytes([l0, l1]);
                Some((u16::from_le_bytes([k0, k1]), usize::from(length)))
            }
            FieldWidth::ByteAndWord => {
                let &[kind, _, l0, l1] = self.left.first_chunk()?;
                let length = u16::from_le_bytes([l0, l1]);
                Some((u16::from(kind), usize::from(length)))
            }
            FieldWidth::WordAndDouble => {
                let &[k0, k1, _, _, l0, l1, l2, l3] = self.left.first_chunk()?;
                let length = u32::from_le_bytes([l0, l1, l2, l3]);
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Some((u16::from_le_bytes([k0, k1]), length))
            }
        }
    }

    fn fail(&mut self, error: EntryError) -> Option<Result<RawEntry<'a>, EntryError>> {
        self.left = &[];
        Some(Err(error))
    }
}

impl<'a> Iterator for RawEntries<'a> {
    type Item = Result<RawEntry<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let (table, offset, left) = (self.table, self.offset, self.left.len());
        let header = self.width.header();
        let Some((kind, length)) = self.header() else {
            return self.fail(EntryError::Overrun {
                table,
                offset,
                length: header,
                left,
            });
        };
        if length < header {
            return self.fail(EntryError::Stuck {
                table,
                offset,
                length,
            });
        }
        let Some((bytes, rest)) = self.left.split_at_checked(length) else {
            return self.fail(EntryError::Overrun {
                table,
                offset,
                length,
                left,
            });
        };
        self.left = rest;
        self.offset = self.offset.saturating_add(length);
        Some(Ok(RawEntry {
            kind,
            offset,
            bytes,
        }))
    }
}
