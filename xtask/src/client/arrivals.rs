//! When answers came, from which kernel, and how long none came.

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Nanoseconds since 1970.
    pub(crate) at: u64,
    /// The letter of the kernel that answered.
    pub(crate) kernel: u8,
    /// How many swaps it says there were.
    pub(crate) swap: u8,
}

/// A time without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The last answer before it, nanoseconds since 1970.
    pub(crate) from: u64,
    /// The first answer after it.
    pub(crate) to: u64,
}

impl Gap {
    /// How long it was.
    pub(crate) fn nanoseconds(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// Whether it touches `[from, to]`.
    fn touches(&self, (from, to): (u64, u64)) -> bool {
        self.from <= to && self.to >= from
    }
}

/// All gaps between one answer and the next, in order.
pub(crate) fn gaps(arrivals: &[Arrival]) -> impl Iterator<Item = Gap> {
    arrivals.windows(2).map(|pair| Gap {
        from: pair[0].at,
        to: pair[1].at,
    })
}

/// The longest gap that touches `window`.
pub(crate) fn longest_in(arrivals: &[Arrival], window: (u64, u64)) -> Option<Gap> {
    gaps(arrivals)
        .filter(|gap| gap.touches(window))
        .max_by_key(Gap::nanoseconds)
}

/// The median length of the gaps that touch none of `windows`.
pub(crate) fn median_outside(arrivals: &[Arrival], windows: &[(u64, u64)]) -> Option<u64> {
    let mut lengths: Vec<u64> = gaps(arrivals)
        .filter(|gap| !windows.iter().any(|window| gap.touches(*window)))
        .map(|gap| gap.nanoseconds())
        .collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() / 2).copied()
}

/// Which kernels answered, in order: letter, swaps and the time of the first answer of each.
pub(crate) fn served_by(arrivals: &[Arrival]) -> Vec<Arrival> {
    let mut runs: Vec<Arrival> = Vec::new();
    for arrival in arrivals {
        let same = runs
            .last()
            .is_some_and(|run| (run.kernel, run.swap) == (arrival.kernel, arrival.swap));
        if !same {
            runs.push(*arrival);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: u64, kernel: u8, swap: u8) -> Arrival {
        Arrival { at, kernel, swap }
    }

    fn some() -> Vec<Arrival> {
        vec![
            at(0, b'a', 0),
            at(10, b'a', 0),
            at(20, b'a', 0),
            at(90, b'b', 1),
            at(100, b'b', 1),
            at(112, b'b', 1),
        ]
    }

    #[test]
    fn the_median_leaves_out_what_happens_during_swaps() {
        assert_eq!(median_outside(&some(), &[(25, 80)]), Some(10));
        assert_eq!(median_outside(&some(), &[(0, 200)]), None);
    }

    #[test]
    fn the_longest_gap_is_looked_for_around_the_window_only() {
        let longest = longest_in(&some(), (85, 105)).unwrap();
        assert_eq!(longest.nanoseconds(), 70);
        assert_eq!(longest_in(&some(), (101, 105)).unwrap().nanoseconds(), 12);
    }

    #[test]
    fn each_change_of_the_serving_kernel_is_told_once() {
        assert_eq!(served_by(&some()), [at(0, b'a', 0), at(90, b'b', 1)]);
    }
}
