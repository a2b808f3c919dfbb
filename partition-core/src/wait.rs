//! Waiting for another processor, for so long and no longer.

use iommu::Deadline;

/// Looks until something is found, or the time is over, and once more then: whoever waits may itself
/// have been kept from running, on a virtual processor for longer than the whole time, and what came
/// meanwhile has come in time.
pub(crate) fn look_for<T>(
    microseconds: u32,
    deadline: &mut impl Deadline,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    deadline.start(microseconds);
    loop {
        let found = look();
        if found.is_some() {
            return found;
        }
        if deadline.expired() {
            return look();
        }
    }
}
