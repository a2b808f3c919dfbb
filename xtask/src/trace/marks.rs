//! What the plugin in the emulator (`xtask/counter`) wrote among the trace: marks that the kernels
//! passed, and the instructions that each CPU had executed there.

use std::collections::BTreeMap;

use super::Place;

/// Instructions of one CPU since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Executed {
    /// While it did not wait.
    pub(crate) worked: u64,
    /// While it waited for something else.
    pub(crate) waited: u64,
    /// How often it began to wait.
    pub(crate) waits: u64,
}

/// A mark that a kernel passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Where in the trace.
    pub(crate) place: Place,
    /// Which mark, as in `examples/support/src/mark.rs`.
    pub(crate) number: u8,
    /// The CPU that passed it.
    pub(crate) cpu: u32,
    /// Every CPU's count.
    pub(crate) counts: BTreeMap<u32, Executed>,
    /// Where each CPU's instructions since the mark before were: by the address of the block. Only
    /// in the range that the plugin was told to keep.
    pub(crate) blocks: Vec<(u32, u64, u64)>,
}

/// Reads the plugin's lines: a mark comes after what belongs to it.
#[derive(Default)]
pub(super) struct Marks {
    next: Mark,
}

impl Marks {
    /// Takes a line; a mark, where it ends one.
    pub(super) fn take(&mut self, line: &str, place: Place) -> Option<Mark> {
        let (kind, rest) = line.strip_prefix("baton-")?.split_once(' ')?;
        let mut words = rest.split(' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        match kind {
            "block" => {
                let (cpu, rest) = rest.split_once(' ')?;
                let (address, instructions) = rest.split_once(' ')?;
                let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
                self.next
                    .blocks
                    .push((cpu.parse().ok()?, address, instructions.parse().ok()?));
            }
            "count" => {
                let cpu = u32::try_from(number()?).ok()?;
                let executed = Executed {
                    worked: number()?,
                    waited: number()?,
                    waits: number()?,
                };
                self.next.counts.insert(cpu, executed);
            }
            "mark" => {
                let mut mark = std::mem::take(&mut self.next);
                mark.number = u8::try_from(number()?).ok()?;
                mark.cpu = u32::try_from(number()?).ok()?;
                mark.place = place;
                return Some(mark);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Executed, Marks};

    #[test]
    fn a_mark_has_what_was_written_before_it() {
        let mut marks = Marks::default();
        let lines = [
            "baton-block 1 0xffffffff80200000 17",
            "baton-count 0 5 6 7",
            "baton-count 1 1000 0 0",
        ];
        for line in lines {
            assert_eq!(marks.take(line, 1), None);
        }
        let mark = marks.take("baton-mark 2 1", 9).unwrap();
        assert_eq!((mark.number, mark.cpu, mark.place), (2, 1, 9));
        assert_eq!(mark.blocks, [(1, 0xffff_ffff_8020_0000, 17)]);
        let first = Executed {
            worked: 5,
            waited: 6,
            waits: 7,
        };
        assert_eq!(mark.counts[&0], first);
        assert_eq!(mark.counts[&1].worked, 1000);
        let next = marks.take("baton-mark 3 0", 10).unwrap();
        assert!(next.blocks.is_empty() && next.counts.is_empty());
    }

    #[test]
    fn other_lines_are_no_marks() {
        let mut marks = Marks::default();
        for line in ["", "baton-", "baton-mark x 1", "12@1.2:event", "mark 1 2"] {
            assert_eq!(marks.take(line, 1), None, "{line}");
        }
    }
}
