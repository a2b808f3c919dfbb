//! The little of ACPI Machine Language that describes a host bridge: names, devices, integers and
//! resource templates.
//!
//! Reference: ACPI 6.5, section 20.2 for the byte codes and 6.4 for resource descriptors.

/// There is no room for more bytes, or a number does not fit its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Four characters that name an object: a letter or underscore first, then digits as well.
pub(crate) type NameSeg = [u8; 4];

/// A plug-and-play id such as `PNP0A08` in its compressed form (ACPI 6.5, section 19.6.37).
pub(crate) const fn pnp_id(product: u16) -> u32 {
    // Three letters of five bits each, then the product number, as big-endian bytes: "PNP" is
    // 41h D0h.
    let [high, low] = product.to_be_bytes();
    u32::from_le_bytes([0x41, 0xd0, high, low])
}

mod opcode {
    pub(super) const ZERO: u8 = 0x00;
    pub(super) const ONE: u8 = 0x01;
    pub(super) const NAME: u8 = 0x08;
    pub(super) const BYTE: u8 = 0x0a;
    pub(super) const WORD: u8 = 0x0b;
    pub(super) const DWORD: u8 = 0x0c;
    pub(super) const SCOPE: u8 = 0x10;
    pub(super) const BUFFER: u8 = 0x11;
    pub(super) const DEVICE: [u8; 2] = [0x5b, 0x82];
    pub(super) const ROOT: u8 = b'\\';
}

mod descriptor {
    pub(super) const END: u8 = 0x79;
    pub(super) const MEMORY_32_FIXED: u8 = 0x86;
    pub(super) const DWORD_ADDRESS: u8 = 0x87;
    pub(super) const WORD_ADDRESS: u8 = 0x88;
    pub(super) const QWORD_ADDRESS: u8 = 0x8a;
}

/// What an address space descriptor describes (ACPI 6.5, section 6.4.3.5), with its type specific
/// flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Memory that may have side effects: read and write, not cacheable.
    Memory,
    /// Memory without side effects: read and write, prefetchable.
    Prefetchable,
    /// Ports, the entire range.
    Io,
    /// Bus numbers.
    BusNumber,
}

impl Space {
    const fn code_and_flags(self) -> [u8; 2] {
        match self {
            Self::Memory => [0, 0b001],
            Self::Prefetchable => [0, 0b111],
            Self::Io => [1, 0b11],
            Self::BusNumber => [2, 0],
        }
    }
}

/// Whether a resource is for the device itself or for what lies below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// For the device itself.
    Consumer,
    /// For the devices below.
    Producer,
}

/// A descriptor's width in bytes of each of its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// Two bytes.
    Word,
    /// Four bytes.
    DWord,
    /// Eight bytes.
    QWord,
}

/// Writes byte code into a buffer.
pub(crate) struct Encoder<'b> {
    buffer: &'b mut [u8],
    length: usize,
}

impl<'b> Encoder<'b> {
    pub(crate) fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    /// Bytes written.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.length.checked_add(bytes.len()).ok_or(Full)?;
        let into = self.buffer.get_mut(self.length..end).ok_or(Full)?;
        into.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) -> Result<(), Full> {
        let end = at.checked_add(bytes.len()).ok_or(Full)?;
        let into = self.buffer.get_mut(at..end).ok_or(Full)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    /// A package: its length, always in the form of three bytes (up to 1 MiB), then its content.
    fn package(&mut self, content: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        let at = self.length;
        self.bytes(&[0; 3])?;
        content(self)?;
        // The length counts its own bytes.
        let length = u32::try_from(self.length.saturating_sub(at)).map_err(|_| Full)?;
        if length >= 1 << 20 {
            return Err(Full);
        }
        let [low, high, _, _] = (length >> 4).to_le_bytes();
        let [nibble, _, _, _] = (length & 0xf).to_le_bytes();
        self.patch(at, &[0b1000_0000 | nibble, low, high])
    }

    /// `Scope (\name) { content }`
    pub(crate) fn scope(
        &mut self,
        name: NameSeg,
        content: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.bytes(&[opcode::SCOPE])?;
        self.package(|aml| {
            aml.bytes(&[opcode::ROOT])?;
            aml.bytes(&name)?;
            content(aml)
        })
    }

    /// `Device (name) { content }`
    pub(crate) fn device(
        &mut self,
        name: NameSeg,
        content: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.bytes(&opcode::DEVICE)?;
        self.package(|aml| {
            aml.bytes(&name)?;
            content(aml)
        })
    }

    /// `Name (name, integer)`
    pub(crate) fn name_integer(&mut self, name: NameSeg, integer: u32) -> Result<(), Full> {
        self.bytes(&[opcode::NAME])?;
        self.bytes(&name)?;
        let [b0, b1, _, _] = integer.to_le_bytes();
        match integer {
            0 => self.bytes(&[opcode::ZERO]),
            1 => self.bytes(&[opcode::ONE]),
            2..=0xff => self.bytes(&[opcode::BYTE, b0]),
            0x100..=0xffff => self.bytes(&[opcode::WORD, b0, b1]),
            0x1_0000.. => {
                self.bytes(&[opcode::DWORD])?;
                self.bytes(&integer.to_le_bytes())
            }
        }
    }

    /// `Name (name, ResourceTemplate () { content })`
    pub(crate) fn name_resources(
        &mut self,
        name: NameSeg,
        content: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.bytes(&[opcode::NAME])?;
        self.bytes(&name)?;
        self.bytes(&[opcode::BUFFER])?;
        self.package(|aml| {
            aml.bytes(&[opcode::WORD])?;
            let size = aml.length;
            aml.bytes(&[0; 2])?;
            let start = aml.length;
            content(aml)?;
            // A checksum of zero stands for none (ACPI 6.5, section 6.4.2.9).
            aml.bytes(&[descriptor::END, 0])?;
            let length = aml.length.saturating_sub(start);
            let length = u16::try_from(length).map_err(|_| Full)?;
            aml.patch(size, &length.to_le_bytes())
        })
    }

    /// An address space descriptor for `base` to `base + length - 1`, both ends fixed, decoded
    /// positively and without translation. The numbers must fit the width.
    pub(crate) fn address_space(
        &mut self,
        width: Width,
        space: Space,
        usage: Usage,
        base: u64,
        length: u64,
    ) -> Result<(), Full> {
        let (code, bytes) = match width {
            Width::Word => (descriptor::WORD_ADDRESS, 2),
            Width::DWord => (descriptor::DWORD_ADDRESS, 4),
            Width::QWord => (descriptor::QWORD_ADDRESS, 8_usize),
        };
        let last = base
            .checked_add(length)
            .and_then(|end| end.checked_sub(1))
            .ok_or(Full)?;
        // Two type bytes, one of general flags, five numbers.
        let size = bytes.saturating_mul(5).saturating_add(3);
        self.bytes(&[code])?;
        self.bytes(&u16::try_from(size).map_err(|_| Full)?.to_le_bytes())?;
        let [kind, flags] = space.code_and_flags();
        // _MIF and _MAF.
        let general = 0b1100
            | match usage {
                Usage::Consumer => 1,
                Usage::Producer => 0,
            };
        self.bytes(&[kind, general, flags])?;
        let (granularity, translation) = (0_u64, 0_u64);
        for number in [granularity, base, last, translation, length] {
            let number = number.to_le_bytes();
            let (number, rest) = number.split_at_checked(bytes).ok_or(Full)?;
            if rest.iter().any(|&byte| byte != 0) {
                return Err(Full);
            }
            self.bytes(number)?;
        }
        Ok(())
    }

    /// `Memory32Fixed (ReadWrite, base, length)`
    pub(crate) fn memory_32_fixed(&mut self, base: u32, length: u32) -> Result<(), Full> {
        self.bytes(&[descriptor::MEMORY_32_FIXED, 9, 0, 1])?;
        self.bytes(&base.to_le_bytes())?;
        self.bytes(&length.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    #[test]
    fn a_plug_and_play_id_is_compressed() {
        // ACPI 6.5, section 19.6.37: PNP0C09 is 090CD041h.
        assert_eq!(pnp_id(0x0c09), 0x090c_d041);
        assert_eq!(pnp_id(0x0a03), 0x030a_d041);
    }

    #[test]
    fn a_package_is_shorter_than_a_mebibyte() {
        for (content, fits) in [((1 << 20) - 4, true), ((1 << 20) - 3, false)] {
            let mut buffer = vec![0; 2 << 20];
            let mut aml = Encoder::new(&mut buffer);
            let content = vec![0xa3; content];
            let result = aml.package(|aml| aml.bytes(&content));
            assert_eq!(result.is_ok(), fits);
            if fits {
                // All bits of the length: four in the first byte, eight in each that follows.
                assert!(buffer.starts_with(&[0x8f, 0xff, 0xff]));
            }
        }
    }

    #[test]
    fn a_number_that_its_descriptor_cannot_hold_is_not_cut() {
        let mut buffer = [0; 64];
        for (width, last) in [(Width::Word, 0xffff), (Width::DWord, 0xffff_ffff)] {
            let write = |buffer: &mut [u8], base| {
                let mut aml = Encoder::new(buffer);
                aml.address_space(width, Space::Io, Usage::Producer, base, 1)
            };
            assert_eq!(write(&mut buffer, last), Ok(()));
            assert_eq!(write(&mut buffer, last + 1), Err(Full));
        }
        let mut aml = Encoder::new(&mut buffer);
        for (base, length) in [(0, 0), (u64::MAX, 2)] {
            assert_eq!(
                aml.address_space(Width::QWord, Space::Memory, Usage::Producer, base, length),
                Err(Full)
            );
        }
    }
}
