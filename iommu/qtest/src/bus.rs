//! What a processor can do: read and write memory and ports.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;

use crate::{Qemu, Trace};

/// The processor's view of the emulated machine. Clones share the one emulator.
#[derive(Clone, Debug)]
pub struct Bus(Rc<RefCell<Qemu>>);

fn number(reply: &str) -> u64 {
    let digits = reply.strip_prefix("0x").unwrap_or(reply);
    u64::from_str_radix(digits, 16)
        .unwrap_or_else(|error| panic!("QEMU answered `{reply}`: {error}"))
}

impl Bus {
    /// The bus of an emulator.
    #[must_use]
    pub fn new(qemu: Qemu) -> Self {
        Self(Rc::new(RefCell::new(qemu)))
    }

    fn get(&self, command: &str) -> u64 {
        number(&self.0.borrow_mut().call(command))
    }

    fn put(&self, command: &str) {
        self.0.borrow_mut().post(command);
    }

    /// Reads 4 bytes in one access.
    #[must_use]
    pub fn read32(&self, address: u64) -> u32 {
        self.get(&format!("readl {address:#x}")) as u32
    }

    /// Reads 8 bytes in one access.
    #[must_use]
    pub fn read64(&self, address: u64) -> u64 {
        self.get(&format!("readq {address:#x}"))
    }

    /// Writes 4 bytes in one access.
    pub fn write32(&self, address: u64, value: u32) {
        self.put(&format!("writel {address:#x} {value:#x}"));
    }

    /// Writes 8 bytes in one access.
    pub fn write64(&self, address: u64, value: u64) {
        self.put(&format!("writeq {address:#x} {value:#x}"));
    }

    /// Reads memory.
    #[must_use]
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        if length == 0 {
            return Vec::new();
        }
        let reply = self
            .0
            .borrow_mut()
            .call(&format!("read {address:#x} {length:#x}"));
        let digits = reply.strip_prefix("0x").unwrap_or(&reply);
        let bytes: Vec<u8> = (0..digits.len() / 2)
            .filter_map(|i| u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok())
            .collect();
        assert_eq!(bytes.len(), length, "QEMU answered `{reply}`");
        bytes
    }

    /// Writes memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        // Short commands, so that many fit the socket.
        for (chunk, at) in bytes.chunks(256).zip((address..).step_by(256)) {
            let mut command = format!("write {at:#x} {:#x} 0x", chunk.len());
            for byte in chunk {
                write!(command, "{byte:02x}").expect("a string takes everything");
            }
            self.put(&command);
        }
    }

    /// Fills memory with one byte.
    pub fn fill(&self, address: u64, length: u64, byte: u8) {
        self.put(&format!("memset {address:#x} {length:#x} {byte:#x}"));
    }

    /// Reads 4 bytes from a port.
    #[must_use]
    pub fn in32(&self, port: u16) -> u32 {
        self.get(&format!("inl {port:#x}")) as u32
    }

    /// Writes 4 bytes to a port.
    pub fn out32(&self, port: u16, value: u32) {
        self.put(&format!("outl {port:#x} {value:#x}"));
    }

    /// Waits until everything written has arrived.
    pub fn settle(&self) {
        self.0.borrow_mut().settle();
    }

    /// What QEMU does from now on.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.settle();
        Trace::from_here(self)
    }

    pub(crate) fn trace_text(&self) -> Vec<u8> {
        self.settle();
        let path = self.0.borrow().trace_file();
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What QEMU wrote to its standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        self.settle();
        self.0.borrow().errors()
    }
}
