//! What QEMU says it did.

use std::fmt;

use crate::Bus;

/// One line of the trace.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// The event's name.
    pub name: String,
    /// The rest of the line.
    pub text: String,
}

impl Event {
    /// The number that follows `key`.
    ///
    /// # Panics
    /// Where the line has none.
    #[must_use]
    pub fn field(&self, key: &str) -> u64 {
        let mut words = self
            .text
            .split(|c: char| c.is_whitespace() || c == ',' || c == ':' || c == '(' || c == ')');
        words
            .by_ref()
            .find(|&word| word == key)
            .and_then(|_| words.find(|word| !word.is_empty()))
            .and_then(|word| match word.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => word.parse().ok(),
            })
            .unwrap_or_else(|| panic!("no number `{key}` in {self:?}"))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.text)
    }
}

/// The trace from some point on. QEMU writes a line before it answers the command that caused it,
/// so whatever was done before a look at the trace is in it.
#[derive(Debug)]
pub struct Trace {
    bus: Bus,
    from: usize,
}

impl Trace {
    pub(crate) fn from_here(bus: &Bus) -> Self {
        Self {
            bus: bus.clone(),
            from: bus.trace_text().len(),
        }
    }

    /// Everything since this trace began, or since the last call of this function.
    pub fn take(&mut self) -> Vec<Event> {
        let text = self.bus.trace_text();
        let new = text.get(self.from..).unwrap_or_default();
        // A line may be half written by something that was not asked for; it is left for later.
        let whole = new
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        self.from += whole;
        String::from_utf8_lossy(&new[..whole])
            .lines()
            .map(|line| {
                let (name, text) = line.split_once(' ').unwrap_or((line, ""));
                Event {
                    name: name.to_owned(),
                    text: text.to_owned(),
                }
            })
            .collect()
    }

    /// As [`take`](Self::take), the events of one name alone.
    pub fn take_named(&mut self, name: &str) -> Vec<Event> {
        let mut events = self.take();
        events.retain(|event| event.name == name);
        events
    }
}
