//! PCI configuration space, as far as making a function quiet and having its requests go upstream
//! needs it, with functions that misbehave.
//!
//! Written from the PCI Express Base Specification, and of no use to drivers of anything.

use core::cell::RefCell;
use core::fmt;
use std::collections::BTreeMap;
use std::rc::Rc;

use handoff_abi::PciFunction;
use iommu::ConfigSpace;

/// What a function does otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It does not answer: reads give ones, writes are lost.
    Gone,
    /// It does not answer after so many accesses more.
    GoneAfter(u32),
    /// Writes are lost.
    ReadOnly,
    /// Transactions are pending for so many reads of Device Status more.
    PendingFor(u32),
    /// Transactions are pending for ever.
    PendingForEver,
    /// No window leads to it.
    Unreachable,
}

/// The error of a function that no window leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoWindow;

impl fmt::Display for NoWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no window")
    }
}

impl core::error::Error for NoWindow {}

/// An access that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAccess {
    /// Whose configuration space.
    pub function: PciFunction,
    /// The register's offset.
    pub offset: u16,
    /// What was written; `None` for a read.
    pub written: Option<u16>,
}

/// A consequence that the rest of the machine is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Software made an access; it has had no effect yet.
    Access(ConfigAccess),
    /// A function became a bus master or ceased to be one.
    BusMaster(PciFunction, bool),
    /// The completion of a read came from this function, and pushed its posted writes ahead.
    Completion(PciFunction),
}

struct Function {
    space: Box<[u8; 4096]>,
    /// Registers that can be written, beside Command: which bits of each.
    writable: BTreeMap<u16, u16>,
    express: Option<u16>,
    gone: bool,
    gone_after: Option<u32>,
    read_only: bool,
    unreachable: bool,
    pending: u32,
}

impl Function {
    fn word(&self, offset: u16) -> u16 {
        let at = usize::from(offset);
        u16::from_le_bytes([self.space[at], self.space[at + 1]])
    }

    fn set_word(&mut self, offset: u16, value: u16) {
        let at = usize::from(offset);
        self.space[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Counts an access; whether the function answers it.
    fn answers(&mut self) -> bool {
        if let Some(left) = &mut self.gone_after {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => self.gone = true,
            }
        }
        !self.gone
    }
}

struct Inner {
    functions: BTreeMap<PciFunction, Function>,
    accesses: Vec<ConfigAccess>,
    observer: Option<Box<dyn FnMut(Effect)>>,
}

impl Inner {
    fn tell(&mut self, effect: Effect) {
        if let Effect::Access(access) = effect {
            self.accesses.push(access);
        }
        if let Some(observer) = &mut self.observer {
            observer(effect);
        }
    }
}

/// The configuration space of a machine. Clones share it.
#[derive(Clone)]
pub struct ConfigSpaces(Rc<RefCell<Inner>>);

impl fmt::Debug for ConfigSpaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} functions", self.0.borrow().functions.len())
    }
}

impl Default for ConfigSpaces {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(Inner {
            functions: BTreeMap::new(),
            accesses: Vec::new(),
            observer: None,
        })))
    }
}

impl ConfigSpaces {
    /// Adds a function that is a bus master: memory space, bus master and SERR# enabled. Its
    /// capabilities, as pairs of id and offset, are linked in this order.
    pub fn add(&self, at: PciFunction, capabilities: &[(u8, u8)]) {
        let mut function = Function {
            space: Box::new([0; 4096]),
            writable: BTreeMap::new(),
            express: None,
            gone: false,
            gone_after: None,
            read_only: false,
            unreachable: false,
            pending: 0,
        };
        function.set_word(0x00, 0x1234);
        function.set_word(0x02, 0x11e8);
        function.set_word(0x04, 0x0106);
        let mut link = 0x34_usize;
        for &(id, offset) in capabilities {
            function.set_word(0x06, 0x0010);
            function.space[link] = offset;
            function.space[usize::from(offset)] = id;
            function.space[usize::from(offset) + 1] = 0;
            link = usize::from(offset) + 1;
            if id == 0x10 {
                function.express = Some(offset.into());
            }
        }
        self.0.borrow_mut().functions.insert(at, function);
    }

    /// Sets a byte of a function's configuration space to anything.
    ///
    /// # Panics
    /// Where there is no such function.
    pub fn poke(&self, at: PciFunction, offset: u16, value: u8) {
        let mut inner = self.0.borrow_mut();
        inner
            .functions
            .get_mut(&at)
            .expect("no such function")
            .space[usize::from(offset)] = value;
    }

    /// Gives a function extended capabilities, as pairs of id and offset, linked in this order. The
    /// first of them lies at 100h.
    ///
    /// # Panics
    /// Where there is no such function.
    pub fn extend(&self, at: PciFunction, capabilities: &[(u16, u16)]) {
        let mut inner = self.0.borrow_mut();
        let function = inner.functions.get_mut(&at).expect("no such function");
        let next = capabilities.iter().skip(1).map(|&(_, offset)| offset);
        for (&(id, offset), next) in capabilities.iter().zip(next.chain([0])) {
            function.set_word(offset, id);
            function.set_word(offset + 2, next << 4 | 1);
        }
    }

    /// Gives a function a register of 16 bits, of which software can write some.
    ///
    /// # Panics
    /// Where there is no such function.
    pub fn register(&self, at: PciFunction, offset: u16, value: u16, writable: u16) {
        let mut inner = self.0.borrow_mut();
        let function = inner.functions.get_mut(&at).expect("no such function");
        function.set_word(offset, value);
        function.writable.insert(offset, writable);
    }

    /// A register as the function has it.
    ///
    /// # Panics
    /// Where there is no such function.
    #[must_use]
    pub fn word(&self, at: PciFunction, offset: u16) -> u16 {
        self.0.borrow().functions[&at].word(offset)
    }

    /// Has a function misbehave from now on.
    ///
    /// # Panics
    /// Where there is no such function.
    pub fn misbehave(&self, at: PciFunction, how: Misbehaviour) {
        let mut inner = self.0.borrow_mut();
        let function = inner.functions.get_mut(&at).expect("no such function");
        match how {
            Misbehaviour::Gone => function.gone = true,
            Misbehaviour::GoneAfter(accesses) => function.gone_after = Some(accesses),
            Misbehaviour::ReadOnly => function.read_only = true,
            Misbehaviour::PendingFor(reads) => function.pending = reads,
            Misbehaviour::PendingForEver => function.pending = u32::MAX,
            Misbehaviour::Unreachable => function.unreachable = true,
        }
    }

    /// Tells `observer` of everything that has consequences.
    pub fn observe(&self, observer: impl FnMut(Effect) + 'static) {
        self.0.borrow_mut().observer = Some(Box::new(observer));
    }

    /// The Command register as the function has it.
    ///
    /// # Panics
    /// Where there is no such function.
    #[must_use]
    pub fn command(&self, at: PciFunction) -> u16 {
        self.0.borrow().functions[&at].word(0x04)
    }

    /// Whether the function is a bus master.
    #[must_use]
    pub fn is_bus_master(&self, at: PciFunction) -> bool {
        self.command(at) & 4 != 0
    }

    /// The accesses since the last call.
    #[must_use]
    pub fn take_accesses(&self) -> Vec<ConfigAccess> {
        core::mem::take(&mut self.0.borrow_mut().accesses)
    }
}

impl ConfigSpace for ConfigSpaces {
    type Error = NoWindow;

    fn read16(&mut self, at: PciFunction, offset: u16) -> Result<u16, NoWindow> {
        assert!(offset.is_multiple_of(2) && offset < 4096, "{offset:#x}");
        let mut inner = self.0.borrow_mut();
        inner.tell(Effect::Access(ConfigAccess {
            function: at,
            offset,
            written: None,
        }));
        let Some(function) = inner.functions.get_mut(&at) else {
            return Ok(0xffff);
        };
        if function.unreachable {
            return Err(NoWindow);
        }
        if !function.answers() {
            return Ok(0xffff);
        }
        let mut value = function.word(offset);
        if function
            .express
            .is_some_and(|express| express + 0x0a == offset)
        {
            if function.pending > 0 {
                value |= 1 << 5;
            }
            if function.pending < u32::MAX {
                function.pending = function.pending.saturating_sub(1);
            }
        }
        inner.tell(Effect::Completion(at));
        Ok(value)
    }

    fn write16(&mut self, at: PciFunction, offset: u16, value: u16) -> Result<(), NoWindow> {
        assert!(offset.is_multiple_of(2) && offset < 4096, "{offset:#x}");
        let mut inner = self.0.borrow_mut();
        inner.tell(Effect::Access(ConfigAccess {
            function: at,
            offset,
            written: Some(value),
        }));
        let Some(function) = inner.functions.get_mut(&at) else {
            return Ok(());
        };
        if function.unreachable {
            return Err(NoWindow);
        }
        if !function.answers() || function.read_only {
            return Ok(());
        }
        if let Some(&writable) = function.writable.get(&offset) {
            let kept = function.word(offset) & !writable;
            function.set_word(offset, kept | value & writable);
        }
        // What is not writable by itself is read-only here, but for Command.
        if offset == 0x04 {
            let before = function.word(offset) & 4 != 0;
            function.set_word(offset, value & 0x0547);
            let now = value & 4 != 0;
            if before != now {
                inner.tell(Effect::BusMaster(at, now));
            }
        }
        Ok(())
    }
}
