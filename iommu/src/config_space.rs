//! PCI configuration space and the lists of capabilities in it.

use core::fmt;

use handoff_abi::PciFunction;

/// The Status register (PCI Express Base Specification, section 7.5.1.1.4).
const STATUS: u16 = 0x06;
/// Capabilities List in it: there is a list.
const CAPABILITIES_LIST: u16 = 1 << 4;
/// Header Type, the lower byte of this word (section 7.5.1.1.9).
const HEADER_TYPE: u16 = 0x0e;
/// Header Layout in it: 0 an endpoint, 1 a bridge, 2 a CardBus bridge.
const LAYOUT: u16 = 0x7f;
/// Capabilities Pointer of header types 0 and 1 (section 7.5.1.1.11).
const CAPABILITIES_POINTER: u16 = 0x34;
/// Where capabilities may lie: behind the header, within the 256 bytes that every function has.
const FIRST_CAPABILITY: u16 = 0x40;
/// The PCI Express capability's id (section 7.5.3.1).
const PCI_EXPRESS: u16 = 0x10;
/// Bytes of it that every version of it has, up to Link Capabilities.
const PCI_EXPRESS_LENGTH: u16 = 0x0c;
/// The first extended capability (section 7.6.3).
const FIRST_EXTENDED: u16 = 0x100;
/// Where configuration space ends.
const END: u16 = 0x1000;
/// What reads of a function that is not there give. No register read here can have this value.
const GONE: u16 = 0xffff;

/// PCI configuration space, by function.
///
/// An access has exactly 16 bits: a wider write to the Command register would clear bits of Status.
/// `offset` is even and below 4096. Where the way to configuration space ends at 256 (ports CF8h and
/// CFCh), what lies behind reads as ones. Writes are not posted: when one returns, the function has
/// it (the memory-mapped access of PCI Express and the ports both do that).
pub trait ConfigSpace {
    /// Why a function cannot be reached at all (no window for its segment or bus, say);
    /// [`Infallible`](core::convert::Infallible) where every function can.
    type Error;

    /// Reads 2 bytes. Ones come from a function that does not answer.
    ///
    /// # Errors
    /// Where the function cannot be reached.
    fn read16(&mut self, function: PciFunction, offset: u16) -> Result<u16, Self::Error>;

    /// Writes 2 bytes.
    ///
    /// # Errors
    /// Where the function cannot be reached.
    fn write16(
        &mut self,
        function: PciFunction,
        offset: u16,
        value: u16,
    ) -> Result<(), Self::Error>;
}

/// Why a function's configuration space cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError<E> {
    /// It cannot be reached.
    Unreachable {
        /// The function.
        function: PciFunction,
        /// Why.
        error: E,
    },
    /// The function does not answer: a register reads all ones.
    Gone {
        /// The function.
        function: PciFunction,
        /// The register's offset.
        offset: u16,
    },
    /// A list of capabilities runs in a circle or out of bounds, so that it is not known what the
    /// function has.
    CapabilityList {
        /// The function.
        function: PciFunction,
        /// Where the list goes wrong.
        offset: u16,
    },
}

impl<E> ConfigError<E> {
    /// The function.
    #[must_use]
    pub const fn function(&self) -> PciFunction {
        match *self {
            Self::Unreachable { function, .. }
            | Self::Gone { function, .. }
            | Self::CapabilityList { function, .. } => function,
        }
    }
}

impl<E: fmt::Display> fmt::Display for ConfigError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.function())?;
        match self {
            Self::Unreachable { error, .. } => write!(f, "configuration space: {error}"),
            Self::Gone { offset, .. } => write!(f, "gone, register {offset:#x} reads all ones"),
            Self::CapabilityList { offset, .. } => {
                write!(f, "the list of capabilities is broken at {offset:#x}")
            }
        }
    }
}

impl<E: core::error::Error> core::error::Error for ConfigError<E> {}

/// Reads a register that is never all ones.
pub(crate) fn read<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
    offset: u16,
) -> Result<u16, ConfigError<S::Error>> {
    match config.read16(function, offset) {
        Ok(GONE) => Err(ConfigError::Gone { function, offset }),
        Ok(value) => Ok(value),
        Err(error) => Err(ConfigError::Unreachable { function, error }),
    }
}

/// Writes a register.
pub(crate) fn write<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
    offset: u16,
    value: u16,
) -> Result<(), ConfigError<S::Error>> {
    config
        .write16(function, offset, value)
        .map_err(|error| ConfigError::Unreachable { function, error })
}

/// The offset of the PCI Express capability; `None` for a conventional function.
pub(crate) fn find_express<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
) -> Result<Option<u16>, ConfigError<S::Error>> {
    let broken = |offset| ConfigError::CapabilityList { function, offset };
    if read(config, function, STATUS)? & CAPABILITIES_LIST == 0 {
        return Ok(None);
    }
    // A CardBus bridge has its pointer elsewhere, and no PCI Express capability.
    if read(config, function, HEADER_TYPE)? & LAYOUT > 1 {
        return Ok(None);
    }
    let mut from = CAPABILITIES_POINTER;
    let mut at = read(config, function, from)? & 0xfc;
    // One bit for each place where a capability can be: in a circle one comes round again.
    let mut seen = 0_u64;
    while at != 0 {
        let place = 1 << (at / 4);
        if at < FIRST_CAPABILITY || seen & place != 0 {
            return Err(broken(from));
        }
        seen |= place;
        let header = read(config, function, at)?;
        if header & 0xff == PCI_EXPRESS {
            let fits = at + PCI_EXPRESS_LENGTH <= FIRST_EXTENDED;
            return if fits {
                Ok(Some(at))
            } else {
                Err(broken(from))
            };
        }
        from = at;
        at = header >> 8 & 0xfc;
    }
    Ok(None)
}

/// Calls `each` with the id and the offset of every extended capability of a function that has the PCI
/// Express capability (section 7.6). A capability that is told of has 8 bytes at least.
pub(crate) fn for_each_extended<S: ConfigSpace>(
    config: &mut S,
    function: PciFunction,
    mut each: impl FnMut(u16, u16),
) -> Result<(), ConfigError<S::Error>> {
    let first = config
        .read16(function, FIRST_EXTENDED)
        .map_err(|error| ConfigError::Unreachable { function, error })?;
    // Ones: the way ends at 256 bytes. Zero: there is no capability.
    if first == GONE || first == 0 {
        return Ok(());
    }
    let (mut from, mut at) = (FIRST_EXTENDED, FIRST_EXTENDED);
    // A list of more than there are places is a circle.
    for _ in 0..(END - FIRST_EXTENDED) / 4 {
        let id = read(config, function, at)?;
        let link = read(config, function, at + 2)?;
        each(id, at);
        from = at;
        at = link >> 4 & 0xffc;
        if at == 0 {
            return Ok(());
        }
        if at < FIRST_EXTENDED || at + 8 > END {
            break;
        }
    }
    Err(ConfigError::CapabilityList {
        function,
        offset: from,
    })
}
