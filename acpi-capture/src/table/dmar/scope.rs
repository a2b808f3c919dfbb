//! Device scopes (VT-d, section 8.3.1).

use core::fmt;

use handoff_abi::{DeviceScope, PathHop, ScopeKind};
use zerocopy::FromBytes;

use crate::table::raw::ScopeRaw;

/// Why a device scope cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ScopeError {
    /// Its length is less than a scope's, or reaches past the structure. The iteration ends here.
    Length {
        /// The length it states.
        length: usize,
        /// Bytes left in the structure.
        left: usize,
    },
    /// Its path has no hop, half a hop, or more than [`DeviceScope::MAX_HOPS`]. The next scope is
    /// still read.
    Path {
        /// Bytes of the path.
        length: usize,
    },
    /// A hop names a device above 31 or a function above 7. The next scope is still read.
    Hop {
        /// The hop.
        hop: PathHop,
    },
    /// Its type is not one that is known. The next scope is still read.
    Kind {
        /// The type field.
        kind: u8,
    },
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { length, left } => {
                write!(f, "a device scope of {length} bytes where {left} are left")
            }
            Self::Path { length } => {
                write!(f, "a device scope with a path of {length} bytes")
            }
            Self::Hop { hop } => {
                write!(
                    f,
                    "a device scope names device {} function {}",
                    hop.device, hop.function
                )
            }
            Self::Kind { kind } => write!(f, "a device scope of type {kind}"),
        }
    }
}

impl core::error::Error for ScopeError {}

/// The device scopes of a structure, in order.
#[derive(Clone, Debug)]
pub struct Scopes<'a> {
    left: &'a [u8],
}

impl<'a> Scopes<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }
}

impl Iterator for Scopes<'_> {
    type Item = Result<DeviceScope, ScopeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let left = self.left.len();
        let Ok((raw, _)) = ScopeRaw::read_from_prefix(self.left) else {
            let length = size_of::<ScopeRaw>();
            self.left = &[];
            return Some(Err(ScopeError::Length { length, left }));
        };
        let length = usize::from(raw.length);
        let whole = (length >= size_of::<ScopeRaw>())
            .then(|| self.left.split_at_checked(length))
            .flatten();
        let Some((scope, rest)) = whole else {
            self.left = &[];
            return Some(Err(ScopeError::Length { length, left }));
        };
        self.left = rest;
        Some(decode(
            &raw,
            scope.get(size_of::<ScopeRaw>()..).unwrap_or(&[]),
        ))
    }
}

fn decode(raw: &ScopeRaw, path: &[u8]) -> Result<DeviceScope, ScopeError> {
    let kind = match raw.kind {
        1 => ScopeKind::PciEndpoint,
        2 => ScopeKind::PciSubHierarchy,
        3 => ScopeKind::IoApic,
        4 => ScopeKind::MsiCapableHpet,
        5 => ScopeKind::AcpiNamespaceDevice,
        kind => return Err(ScopeError::Kind { kind }),
    };
    let bad_path = ScopeError::Path { length: path.len() };
    let mut hops = [PathHop::default(); DeviceScope::MAX_HOPS];
    let (pairs, rest) = path.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad_path);
    }
    let hops = hops.get_mut(..pairs.len()).ok_or(bad_path)?;
    for (hop, &[device, function]) in hops.iter_mut().zip(pairs) {
        *hop = PathHop { device, function };
        if device > 31 || function > 7 {
            return Err(ScopeError::Hop { hop: *hop });
        }
    }
    let id = match kind {
        ScopeKind::PciEndpoint | ScopeKind::PciSubHierarchy => 0,
        _ => raw.enumeration_id,
    };
    DeviceScope::new(kind, id, raw.start_bus, hops).ok_or(bad_path)
}
