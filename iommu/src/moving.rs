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
    /// By exchanging the table that says which domain a device is in for another that was prepared:
    /// also the stores and register writes are the same, however many they are.
    Switch,
}
