//! The line protocol of the kernels' consoles.
//!
//! A line that begins with `@` is an event: a word and then `key=value` pairs. A value has no spaces,
//! unless it is quoted (`text="two words"`). Every other line is text for people.

use std::fmt;
use std::time::SystemTime;

use anyhow::{Context, Result};

/// An event line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// The word after `@`.
    pub(crate) word: String,
    pairs: Vec<(String, String)>,
}

impl Event {
    /// Reads a line; `None` for text that is no event.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix('@')?;
        let (word, mut rest) = match rest.split_once(' ') {
            Some((word, rest)) => (word, rest),
            None => (rest, ""),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if word.is_empty() || !word.chars().all(plain) {
            return None;
        }
        let mut pairs = Vec::new();
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                break;
            }
            let (key, after) = rest.split_once('=')?;
            if key.is_empty() || key.contains(' ') {
                return None;
            }
            let value = if let Some(quoted) = after.strip_prefix('"') {
                let end = closing_quote(quoted)?;
                rest = &quoted[end + 1..];
                &quoted[..end]
            } else {
                let (value, after) = after.split_once(' ').unwrap_or((after, ""));
                rest = after;
                value
            };
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Some(Self {
            word: word.to_owned(),
            pairs,
        })
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The value of `key`, which must be there.
    pub(crate) fn need(&self, key: &str) -> Result<&str> {
        self.get(key)
            .with_context(|| format!("the kernel's line `{self}` has no `{key}`"))
    }

    /// The value of `key` as a number, decimal or with `0x`.
    pub(crate) fn number(&self, key: &str) -> Result<u64> {
        let value = self.need(key)?;
        number(value).with_context(|| format!("`{key}` in the kernel's line `{self}` is no number"))
    }

    /// Whether `key` says yes.
    pub(crate) fn yes(&self, key: &str) -> bool {
        self.get(key) == Some("yes")
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.word)?;
        for (key, value) in &self.pairs {
            if value.contains(' ') || value.is_empty() {
                write!(f, " {key}=\"{value}\"")?;
            } else {
                write!(f, " {key}={value}")?;
            }
        }
        Ok(())
    }
}

/// Where a quoted value ends: at the first quote that the line's end or another pair follows, so that
/// a sentence may have quotes of its own.
fn closing_quote(text: &str) -> Option<usize> {
    text.match_indices('"').map(|(at, _)| at).find(|at| {
        let rest = &text[at + 1..];
        let next = rest.trim_start();
        next.is_empty()
            || (next.len() < rest.len()
                && next.split_once('=').is_some_and(|(key, _)| {
                    !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                }))
    })
}

/// A number, decimal or hexadecimal with `0x`; underscores are allowed.
pub(crate) fn number(text: &str) -> Option<u64> {
    let text = text.replace('_', "");
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A line as it came from a console.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// When its last byte arrived.
    pub(crate) at: SystemTime,
    /// The line without its end.
    pub(crate) text: String,
    /// The event it is, if it is one.
    pub(crate) event: Option<Event>,
}

impl Line {
    /// A line that arrived now.
    pub(crate) fn now(text: String) -> Self {
        Self {
            at: SystemTime::now(),
            event: Event::parse(&text),
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, number};
    use proptest::prelude::*;

    #[test]
    fn an_event_has_a_word_and_pairs() {
        let event = Event::parse("@up kernel=alpha abi=0.1 cpus=2 memory=0x8000").unwrap();
        assert_eq!(event.word, "up");
        assert_eq!(event.get("kernel"), Some("alpha"));
        assert_eq!(event.number("cpus").unwrap(), 2);
        assert_eq!(event.number("memory").unwrap(), 0x8000);
        assert!(event.number("abi").is_err());
        assert!(event.need("none").is_err());
    }

    #[test]
    fn a_quoted_value_may_have_spaces() {
        let event =
            Event::parse("@done command=plan result=refused text=\"two words\" more=1").unwrap();
        assert_eq!(event.get("text"), Some("two words"));
        assert_eq!(event.get("more"), Some("1"));
        let within = Event::parse("@x text=\"there is no command \"go\" here\" n=1").unwrap();
        assert_eq!(within.get("text"), Some("there is no command \"go\" here"));
        assert_eq!(within.get("n"), Some("1"));
        let empty = Event::parse("@done command=x result=ok text=\"\"").unwrap();
        assert_eq!(empty.get("text"), Some(""));
    }

    #[test]
    fn a_carriage_return_does_not_belong_to_a_value() {
        let event = Event::parse("@serving swap=3\r").unwrap();
        assert_eq!(event.number("swap").unwrap(), 3);
    }

    #[test]
    fn text_for_people_is_no_event() {
        for line in [
            "",
            "hello @up",
            "@",
            "@ up",
            "@up kernel",
            "@up text=\"open",
            "@up =1",
        ] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("10"), Some(10));
        assert_eq!(number("0x1_0000"), Some(0x1_0000));
        assert_eq!(number("ten"), None);
        assert_eq!(number(""), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in ".{0,80}") {
            let _ = Event::parse(&line);
        }

        #[test]
        fn what_is_printed_is_read_back(
            word in "[a-z]{1,8}",
            pairs in prop::collection::vec(("[a-z]{1,6}", "[a-z0-9.:x ]{0,12}"), 0..6),
        ) {
            let event = Event { word, pairs };
            prop_assert_eq!(Event::parse(&event.to_string()), Some(event));
        }
    }
}
