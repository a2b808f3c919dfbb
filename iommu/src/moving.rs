//! How devices are moved.

/// How the devices of a move were invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MoveMethod {
    /// Device by device and domain by domain, for a few devices: the caches of the others stay
    /// warm.
    Selective,
    /// Everything at once, for many: the batch has the same length however many they are.
    Global,
}
