//! Serial ports that firmware speaks on: the Serial Port Console Redirection Table and the Debug
//! Port Table 2, both specified by Microsoft.

use core::fmt;

use handoff_abi::{PciFunction, RequesterId};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::entry::EntryError;
use super::fadt::GenericAddress;
use super::raw::{Dbg2DeviceRaw, Dbg2Raw, GasRaw, SpcrExtensionRaw, SpcrRaw};
use super::{Sdt, Signature, TableError};

/// The bytes of a string that a table points to, up to a NUL; none where it points elsewhere.
fn text(bytes: &[u8], offset: u16, length: u16) -> &[u8] {
    let text = bytes
        .get(usize::from(offset)..)
        .and_then(|rest| rest.get(..usize::from(length)))
        .unwrap_or(&[]);
    text.split(|&byte| byte == 0).next().unwrap_or(text)
}

/// The SPCR: the serial port that firmware uses as a console.
#[derive(Clone, Copy)]
pub struct Spcr<'a> {
    sdt: Sdt<'a>,
    raw: SpcrRaw,
    extension: Option<SpcrExtensionRaw>,
}

impl<'a> Spcr<'a> {
    /// Views `bytes` as a SPCR.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a SPCR.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw: SpcrRaw = sdt.fixed(Signature::SPCR)?;
        let extension = SpcrExtensionRaw::read_from_prefix(sdt.tail(size_of::<SpcrRaw>()));
        Ok(Self {
            sdt,
            raw,
            extension: extension
                .ok()
                .filter(|_| sdt.revision() >= 4)
                .map(|(extension, _)| extension),
        })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// What kind of port it is: 0 a full 16550, 1 a 16450 or compatible with one; others as the
    /// subtypes of the DBG2.
    #[must_use]
    pub fn interface(&self) -> u8 {
        self.raw.interface
    }

    /// Its registers.
    #[must_use]
    pub fn registers(&self) -> GenericAddress {
        self.raw.registers.into()
    }

    /// Its interrupt on a pair of 8259s, if it has one.
    #[must_use]
    pub fn irq(&self) -> Option<u8> {
        (self.raw.interrupt_type & 1 != 0).then_some(self.raw.irq)
    }

    /// Its global system interrupt, if it has one.
    #[must_use]
    pub fn global_interrupt(&self) -> Option<u32> {
        (self.raw.interrupt_type & !1 != 0).then(|| self.raw.interrupt.get())
    }

    /// Bits per second; `None` where the port is to be left as it is, or the number is not known.
    #[must_use]
    pub fn baud_rate(&self) -> Option<u32> {
        let precise = self.extension.map_or(0, |e| e.precise_baud_rate.get());
        match (precise, self.raw.baud_rate) {
            (0, 3) => Some(9600),
            (0, 4) => Some(19200),
            (0, 6) => Some(57600),
            (0, 7) => Some(115_200),
            (0, _) => None,
            (precise, _) => Some(precise),
        }
    }

    /// The type of the terminal: 0 VT100, 1 VT100+, 2 VT-UTF8, 3 ANSI.
    #[must_use]
    pub fn terminal(&self) -> u8 {
        self.raw.terminal
    }

    /// The clock of the port in Hz, where the table says.
    #[must_use]
    pub fn clock(&self) -> Option<u32> {
        // Reserved before revision 3.
        match (self.sdt.revision(), self.raw.clock.get()) {
            (0..3, _) | (_, 0) => None,
            (_, clock) => Some(clock),
        }
    }

    /// The PCI function that the port is on, where it is on one.
    #[must_use]
    pub fn pci_function(&self) -> Option<PciFunction> {
        let raw = &self.raw;
        if raw.pci_vendor.get() == 0xffff || raw.pci_device.get() == 0xffff {
            return None;
        }
        Some(PciFunction {
            segment: u16::from(raw.pci_segment),
            requester: RequesterId::new(raw.pci_bus, raw.pci_slot, raw.pci_function)?,
        })
    }

    /// Its path in the namespace; empty where the table does not say. Any bytes.
    #[must_use]
    pub fn path(&self) -> &'a [u8] {
        self.extension.map_or(&[], |extension| {
            let (offset, length) = (extension.path_offset.get(), extension.path_length.get());
            text(self.sdt.bytes(), offset, length)
        })
    }
}

/// A debug port: a device of the DBG2.
#[derive(Clone, Copy, Debug)]
pub struct DebugPort<'a> {
    /// Where in the table the device begins, in bytes.
    pub offset: usize,
    /// 8000h serial, 8001h 1394, 8002h USB, 8003h network.
    pub kind: u16,
    /// Which of that kind.
    pub subkind: u16,
    /// Its path in the namespace, or a dot. Any bytes.
    pub path: &'a [u8],
    /// What only its maker can read.
    pub oem_data: &'a [u8],
    registers: &'a [u8],
    sizes: &'a [u8],
}

impl<'a> DebugPort<'a> {
    /// Its register blocks and their sizes in bytes, as far as the device has both.
    pub fn registers(&self) -> impl Iterator<Item = (GenericAddress, u32)> + use<'a> {
        let blocks = self.registers.chunks_exact(size_of::<GasRaw>());
        let sizes = self.sizes.chunks_exact(size_of::<U32>());
        blocks.zip(sizes).filter_map(|(block, size)| {
            let block = GasRaw::read_from_bytes(block).ok()?;
            Some((block.into(), U32::read_from_bytes(size).ok()?.get()))
        })
    }
}

impl fmt::Debug for Spcr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spcr")
            .field("interface", &self.interface())
            .field("registers", &self.registers())
            .field("irq", &self.irq())
            .field("global_interrupt", &self.global_interrupt())
            .field("baud_rate", &self.baud_rate())
            .field("terminal", &self.terminal())
            .field("clock", &self.clock())
            .field("pci_function", &self.pci_function())
            .field("path", &format_args!("\"{}\"", self.path().escape_ascii()))
            .finish()
    }
}

/// The DBG2: the ports a debugger can be at.
#[derive(Clone, Copy)]
pub struct Dbg2<'a> {
    sdt: Sdt<'a>,
    raw: Dbg2Raw,
}

impl<'a> Dbg2<'a> {
    /// Views `bytes` as a DBG2.
    ///
    /// # Errors
    /// Where they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        Self::from_sdt(Sdt::parse(bytes)?)
    }

    /// Views a table as a DBG2.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn from_sdt(sdt: Sdt<'a>) -> Result<Self, TableError> {
        let raw = sdt.fixed(Signature::DBG2)?;
        Ok(Self { sdt, raw })
    }

    /// The table itself.
    #[must_use]
    pub fn sdt(&self) -> Sdt<'a> {
        self.sdt
    }

    /// The ports, in order, at most as many as the table says there are.
    #[must_use]
    pub fn ports(&self) -> DebugPorts<'a> {
        let offset = usize::try_from(self.raw.devices_offset.get()).unwrap_or(usize::MAX);
        DebugPorts {
            bytes: self.sdt.bytes(),
            offset,
            left: self.raw.devices.get(),
        }
    }
}

impl fmt::Debug for Dbg2<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ports()).finish()
    }
}

/// The ports of a DBG2, in order.
#[derive(Clone, Debug)]
pub struct DebugPorts<'a> {
    bytes: &'a [u8],
    offset: usize,
    left: u32,
}

impl<'a> Iterator for DebugPorts<'a> {
    type Item = Result<DebugPort<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (table, offset) = (Signature::DBG2, self.offset);
        let rest = self.bytes.get(offset..).unwrap_or(&[]);
        let fixed = size_of::<Dbg2DeviceRaw>();
        let Ok((raw, _)) = Dbg2DeviceRaw::read_from_prefix(rest) else {
            self.left = 0;
            return Some(Err(EntryError::Overrun {
                table,
                offset,
                length: fixed,
                left: rest.len(),
            }));
        };
        let length = usize::from(raw.length.get());
        if length < fixed {
            self.left = 0;
            return Some(Err(EntryError::Stuck {
                table,
                offset,
                length,
            }));
        }
        let Some(device) = rest.get(..length) else {
            self.left = 0;
            return Some(Err(EntryError::Overrun {
                table,
                offset,
                length,
                left: rest.len(),
            }));
        };
        self.offset = offset.saturating_add(length);
        let count = usize::from(raw.registers);
        let part = |from: u16, size: usize| {
            let length = size.saturating_mul(count);
            let rest = device.get(usize::from(from)..).unwrap_or(&[]);
            // What lies past the device's end is not there.
            rest.get(..length).unwrap_or(rest)
        };
        let oem = device.get(usize::from(raw.oem_offset.get())..);
        let oem = oem.and_then(|rest| rest.get(..usize::from(raw.oem_length.get())));
        Some(Ok(DebugPort {
            offset,
            kind: raw.port_type.get(),
            subkind: raw.port_subtype.get(),
            path: text(device, raw.path_offset.get(), raw.path_length.get()),
            oem_data: oem.unwrap_or(&[]),
            registers: part(raw.registers_offset.get(), size_of::<GasRaw>()),
            sizes: part(raw.sizes_offset.get(), size_of::<U32>()),
        }))
    }
}
