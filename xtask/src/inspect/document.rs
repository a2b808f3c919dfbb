//! What was found in some bytes, apart from how it is shown: as text for people, as JSON for
//! programs.

use std::fmt::{self, Write};

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Nothing wrong: what the bytes come to.
    Fact,
    /// Odd, and common in real tables: a reader can go on.
    Note,
    /// Something cannot be used.
    Error,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) text: String,
}

/// A field: where it is, what it is called, what it holds, and what that means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Field {
    /// In bytes from the start of the file or of the part with a `file` of its own.
    pub(super) offset: usize,
    pub(super) length: usize,
    pub(super) name: &'static str,
    /// The number, where the field is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) number: Option<u64>,
    pub(super) value: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) meaning: String,
}

/// Bytes that are shown as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Dump {
    pub(super) offset: usize,
    /// In hexadecimal, without spaces.
    pub(super) bytes: String,
    /// How many more there are that are not shown.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) left_out: usize,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A table, an entry of one, or a whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Document {
    pub(super) title: String,
    /// In bytes from the start of the file.
    pub(super) offset: usize,
    pub(super) length: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) fields: Vec<Field>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<Self>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dump: Option<Dump>,
}

impl Document {
    /// A document about `length` bytes at `offset`.
    pub(super) fn new(title: impl Into<String>, offset: usize, length: usize) -> Self {
        Self {
            title: title.into(),
            offset,
            length,
            ..Self::default()
        }
    }

    /// Adds something that cannot be used.
    pub(super) fn error(&mut self, text: impl fmt::Display) {
        self.find(Severity::Error, text);
    }

    /// Adds something that is odd.
    pub(super) fn note(&mut self, text: impl fmt::Display) {
        self.find(Severity::Note, text);
    }

    /// Adds what the bytes come to.
    pub(super) fn fact(&mut self, text: impl fmt::Display) {
        self.find(Severity::Fact, text);
    }

    fn find(&mut self, severity: Severity, text: impl fmt::Display) {
        self.findings.push(Finding {
            severity,
            text: text.to_string(),
        });
    }

    /// Shows at most `limit` of these bytes as they are.
    pub(super) fn dump(&mut self, offset: usize, bytes: &[u8], limit: usize) {
        let shown = bytes.get(..limit).unwrap_or(bytes);
        let mut text = String::with_capacity(shown.len() * 2);
        for byte in shown {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        self.dump = Some(Dump {
            offset,
            bytes: text,
            left_out: bytes.len() - shown.len(),
        });
    }

    /// How many findings there are, here and in the parts: errors and notes.
    pub(super) fn count(&self) -> (usize, usize) {
        let here = |severity| {
            let of = self.findings.iter().filter(|f| f.severity == severity);
            of.count()
        };
        let own = (here(Severity::Error), here(Severity::Note));
        self.parts.iter().fold(own, |(errors, notes), part| {
            let (e, n) = part.count();
            (errors + e, notes + n)
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let pad = "  ".repeat(depth);
        writeln!(
            f,
            "{pad}{:04x}  {}, {} bytes",
            self.offset, self.title, self.length
        )?;
        for finding in &self.findings {
            let word = match finding.severity {
                Severity::Fact => "",
                Severity::Note => "note: ",
                Severity::Error => "ERROR: ",
            };
            writeln!(f, "{pad}      {word}{}", finding.text)?;
        }
        let widest = |of: fn(&Field) -> usize| self.fields.iter().map(of).max().unwrap_or(0);
        let name = widest(|field| field.name.len());
        let value = widest(|field| field.value.len()).min(34);
        for field in &self.fields {
            let line = format!(
                "{pad}  {:04x}  {:<name$}  {:<value$}  {}",
                field.offset, field.name, field.value, field.meaning
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        if let Some(dump) = &self.dump {
            dump.show(f, &pad)?;
        }
        self.parts
            .iter()
            .try_for_each(|part| part.show(f, depth + 1))
    }
}

impl Dump {
    fn show(&self, f: &mut fmt::Formatter<'_>, pad: &str) -> fmt::Result {
        for (number, line) in self.bytes.as_bytes().chunks(32).enumerate() {
            write!(f, "{pad}  {:04x} ", self.offset + number * 16)?;
            let mut text = String::new();
            for pair in line.chunks(2) {
                let pair = std::str::from_utf8(pair).map_err(|_| fmt::Error)?;
                let byte = u8::from_str_radix(pair, 16).map_err(|_| fmt::Error)?;
                write!(f, " {pair}")?;
                text.push(match byte {
                    0x20..0x7f => char::from(byte),
                    _ => '.',
                });
            }
            let gap = 3 * (16 - line.len() / 2);
            writeln!(f, "{:gap$}  {text}", "")?;
        }
        match self.left_out {
            0 => Ok(()),
            more => writeln!(
                f,
                "{pad}        ... and {more} more bytes (--all shows them)"
            ),
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, 0)
    }
}
