//! A decoder for the byte code of the smaller machine's namespace, written from ACPI 6.5, sections
//! 20.2 and 6.4, that accepts nothing else.

use std::collections::BTreeMap;

/// A resource descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// An address space descriptor.
    Space {
        /// Large descriptor's item name: 07h double word, 08h word, 0Ah quad word.
        item: u8,
        /// 0 memory, 1 ports, 2 bus numbers.
        kind: u8,
        general: u8,
        specific: u8,
        minimum: u64,
        maximum: u64,
        length: u64,
    },
    /// A fixed 32-bit memory descriptor.
    Fixed { base: u64, length: u64 },
}

/// What a name holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Integer(u64),
    Resources(Vec<Resource>),
}

pub(crate) type Device = BTreeMap<String, Value>;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }
    fn number(&mut self, bytes: usize) -> u64 {
        let taken = self.take(bytes);
        taken.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }
    fn name(&mut self) -> String {
        let name = self.take(4);
        assert!(matches!(name[0], b'A'..=b'Z' | b'_'), "{name:?}");
        let rest = |b: &u8| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_');
        assert!(name[1..].iter().all(rest), "{name:?}");
        String::from_utf8(name.to_vec()).unwrap()
    }
    /// PkgLength, and the bytes it spans.
    fn package(&mut self) -> Self {
        let lead = self.byte();
        let more = usize::from(lead >> 6);
        let length = match more {
            0 => usize::from(lead & 0x3f),
            _ => {
                assert_eq!(lead & 0x30, 0);
                usize::from(lead & 0xf) | (self.number(more) as usize) << 4
            }
        };
        Self(self.take(length - 1 - more))
    }
    fn integer(&mut self) -> u64 {
        match self.byte() {
            0 => 0,
            1 => 1,
            0x0a => self.number(1),
            0x0b => self.number(2),
            0x0c => self.number(4),
            0x0e => self.number(8),
            other => panic!("{other:#x} is no integer"),
        }
    }
}

fn resources(mut template: Reader<'_>) -> Vec<Resource> {
    let mut found = Vec::new();
    loop {
        let tag = template.byte();
        if tag == 0x79 {
            template.byte();
            assert!(template.0.is_empty());
            return found;
        }
        let length = template.number(2) as usize;
        let mut body = Reader(template.take(length));
        found.push(match tag {
            0x86 => {
                assert_eq!(body.byte(), 1, "not writable");
                Resource::Fixed {
                    base: body.number(4),
                    length: body.number(4),
                }
            }
            0x87 | 0x88 | 0x8a => {
                let width = [(0x87, 4), (0x88, 2), (0x8a, 8)];
                let width = width.iter().find(|w| w.0 == tag).unwrap().1;
                let [kind, general, specific] = [body.byte(), body.byte(), body.byte()];
                let granularity = body.number(width);
                let [minimum, maximum] = [body.number(width), body.number(width)];
                let translation = body.number(width);
                assert_eq!((granularity, translation), (0, 0));
                Resource::Space {
                    item: tag & 0x7f,
                    kind,
                    general,
                    specific,
                    minimum,
                    maximum,
                    length: body.number(width),
                }
            }
            other => panic!("descriptor {other:#x}"),
        });
        assert!(body.0.is_empty());
    }
}

/// The devices of `\_SB`, by name, in the block after the DSDT's header.
pub(crate) fn devices(block: &[u8]) -> BTreeMap<String, Device> {
    let mut block = Reader(block);
    assert_eq!(block.byte(), 0x10, "a scope");
    let mut scope = block.package();
    assert!(block.0.is_empty());
    assert_eq!(scope.byte(), b'\\');
    assert_eq!(scope.name(), "_SB_");
    let mut devices = BTreeMap::new();
    while !scope.0.is_empty() {
        assert_eq!(scope.take(2), [0x5b, 0x82], "a device");
        let mut body = scope.package();
        let name = body.name();
        let mut device = Device::new();
        while !body.0.is_empty() {
            assert_eq!(body.byte(), 0x08, "a name");
            let name = body.name();
            let value = if body.0[0] == 0x11 {
                body.byte();
                let mut buffer = body.package();
                let size = buffer.integer() as usize;
                assert_eq!(size, buffer.0.len());
                Value::Resources(resources(buffer))
            } else {
                Value::Integer(body.integer())
            };
            assert!(device.insert(name, value).is_none());
        }
        assert!(devices.insert(name, device).is_none());
    }
    devices
}

/// The compressed form of a plug-and-play id, by the rule of ACPI 6.5, section 19.6.37.
pub(crate) fn eisa_id(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let letter = |at: usize| u32::from(bytes[at] - 0x40);
    let digit = |at: usize| (bytes[at] as char).to_digit(16).unwrap();
    let swapped = letter(0) << 26
        | letter(1) << 21
        | letter(2) << 16
        | digit(3) << 12
        | digit(4) << 8
        | digit(5) << 4
        | digit(6);
    u64::from(swapped.swap_bytes())
}
