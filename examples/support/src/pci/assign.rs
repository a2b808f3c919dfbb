//! Bus numbers and memory for what firmware has not seen: functions that were plugged after it ran.
//!
//! What firmware set stays as it is, with one exception: where a bridge's window is too small for what
//! was plugged behind it, the windows that are still empty are given up, and laid out anew in the
//! memory that they had. That memory comes through the bridge above for certain. Reference: PCI-to-PCI Bridge Architecture Specification 1.2, section 3.2.5.

use alloc::vec::Vec;
use core::fmt;

use handoff_abi::{PhysAddr, PhysRange, RequesterId};

use super::{
    BAR0, COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, Ecam, Function, INTERRUPT_LINE,
    INTERRUPT_PIN, SECONDARY_BUS,
};
use crate::memory::Carver;

const PRIMARY_BUS: usize = 0x18;
const SUBORDINATE_BUS: usize = 0x1a;
const MEMORY_BASE: usize = 0x20;
const MEMORY_LIMIT: usize = 0x22;
const PREFETCHABLE_BASE: usize = 0x24;
const PREFETCHABLE_LIMIT: usize = 0x26;
const PREFETCHABLE_BASE_HIGH: usize = 0x28;
const PREFETCHABLE_LIMIT_HIGH: usize = 0x2c;

/// Windows of bridges begin and end at multiples of this.
const GRANULE: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;

/// Why not everything that was plugged can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AssignError {
    /// There is no number left for the bus behind a bridge.
    NoBusNumber(RequesterId),
    /// There is no room for a function's register window.
    NoRoom {
        /// The function.
        function: RequesterId,
        /// The base address register.
        bar: usize,
        /// The window's bytes.
        size: u64,
    },
    /// There is no room for the window of a bridge.
    NoWindow {
        /// The bridge.
        bridge: RequesterId,
        /// The window's bytes.
        size: u64,
    },
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBusNumber(bridge) => {
                write!(f, "no number is left for the bus behind bridge {bridge}")
            }
            Self::NoRoom {
                function,
                bar,
                size,
            } => write!(
                f,
                "there is no room for the {size:#x} bytes of BAR {bar} of {function}"
            ),
            Self::NoWindow { bridge, size } => write!(
                f,
                "there is no room for a window of {size:#x} bytes of bridge {bridge}"
            ),
        }
    }
}

impl core::error::Error for AssignError {}

/// The functions on one bus, without those behind its bridges.
fn functions(ecam: &Ecam, bus: u8) -> Vec<Function> {
    let mut all = Vec::new();
    for device in 0..32 {
        for number in 0..8 {
            let found = RequesterId::new(bus, device, number).and_then(|id| ecam.function(id));
            let alone = match &found {
                Some(function) => !function.is_multifunction(),
                None => true,
            };
            all.extend(found);
            if number == 0 && alone {
                break;
            }
        }
    }
    all
}

/// The buses behind a bridge, if they are numbered as bridges on `bus` can be.
fn numbers(bridge: &Function, bus: u8, room: u8) -> Option<(u8, u8)> {
    let secondary = bridge.secondary_bus()?;
    let subordinate = bridge.config().read8(SUBORDINATE_BUS);
    (secondary > bus && secondary <= subordinate && subordinate <= room)
        .then_some((secondary, subordinate))
}

/// Numbers the buses that have no number yet, behind bridges on `bus` and below. No number above
/// `last` is given. Returns how many were.
///
/// # Errors
/// [`AssignError::NoBusNumber`].
pub fn number_buses(ecam: &Ecam, bus: u8, last: u8) -> Result<usize, AssignError> {
    let mut given = 0;
    number(ecam, bus, last, &mut given)?;
    Ok(given)
}

/// Returns the highest number in use.
fn number(ecam: &Ecam, bus: u8, last: u8, given: &mut usize) -> Result<u8, AssignError> {
    let (mut numbered, mut others) = (Vec::new(), Vec::new());
    for bridge in functions(ecam, bus) {
        match numbers(&bridge, bus, last) {
            Some((secondary, subordinate)) => numbered.push((secondary, subordinate, bridge)),
            None if bridge.secondary_bus().is_some() => others.push(bridge),
            None => {}
        }
    }
    numbered.sort_by_key(|&(secondary, ..)| secondary);
    let mut highest = bus;
    for (index, (secondary, subordinate, bridge)) in numbered.iter().enumerate() {
        // The range of a bridge may grow up to that of the next one.
        let room = numbered
            .get(index + 1)
            .map_or(last, |(next, ..)| next.saturating_sub(1))
            .max(*subordinate);
        let reached = number(ecam, *secondary, room, given)?.max(*subordinate);
        if reached > *subordinate {
            bridge.config().write8(SUBORDINATE_BUS, reached);
        }
        highest = highest.max(reached);
    }
    for bridge in others {
        let next = highest
            .checked_add(1)
            .filter(|&next| next <= last)
            .ok_or(AssignError::NoBusNumber(bridge.id()))?;
        let config = bridge.config();
        config.write8(PRIMARY_BUS, bus);
        // Configuration requests for all that may be found there have to pass meanwhile.
        config.write8(SUBORDINATE_BUS, last);
        config.write8(SECONDARY_BUS, next);
        *given += 1;
        highest = number(ecam, next, last, given)?;
        config.write8(SUBORDINATE_BUS, highest);
    }
    Ok(highest)
}

/// One of the windows of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Prefetchable,
}

/// The windows of a bridge that are open.
#[must_use]
pub fn bridge_windows(bridge: &Function) -> Vec<PhysRange> {
    [Kind::Memory, Kind::Prefetchable]
        .into_iter()
        .filter_map(|kind| window(bridge, kind))
        .collect()
}

fn window(bridge: &Function, kind: Kind) -> Option<PhysRange> {
    let config = bridge.config();
    let part = |at: usize| u64::from(config.read16(at) & 0xfff0) << 16;
    let (base, limit) = match kind {
        Kind::Memory => (part(MEMORY_BASE), part(MEMORY_LIMIT)),
        Kind::Prefetchable => (
            part(PREFETCHABLE_BASE) | u64::from(config.read32(PREFETCHABLE_BASE_HIGH)) << 32,
            part(PREFETCHABLE_LIMIT) | u64::from(config.read32(PREFETCHABLE_LIMIT_HIGH)) << 32,
        ),
    };
    (base != 0 && base <= limit)
        .then(|| PhysRange::from_bounds(PhysAddr(base), PhysAddr(limit + GRANULE)))
}

fn open_window(bridge: &Function, kind: Kind, range: PhysRange) {
    let config = bridge.config();
    let (base, limit) = (range.base().0, range.end().0 - GRANULE);
    match kind {
        Kind::Memory => {
            config.write16(MEMORY_BASE, (base >> 16) as u16);
            config.write16(MEMORY_LIMIT, (limit >> 16) as u16);
        }
        Kind::Prefetchable => {
            config.write16(PREFETCHABLE_BASE, (base >> 16) as u16);
            config.write16(PREFETCHABLE_LIMIT, (limit >> 16) as u16);
            config.write32(PREFETCHABLE_BASE_HIGH, (base >> 32) as u32);
            config.write32(PREFETCHABLE_LIMIT_HIGH, (limit >> 32) as u32);
        }
    }
}

/// A base address register of a function, for memory.
#[derive(Clone, Copy, Debug)]
struct Register {
    index: usize,
    size: u64,
    wide: bool,
    kind: Kind,
    set: Option<PhysRange>,
}

fn registers(function: &Function) -> Vec<Register> {
    let mut all = Vec::new();
    let mut index = 0;
    while index < function.bar_count() {
        let low = function.config().read32(BAR0 + 4 * index);
        let wide = low & 7 == 4;
        if let Some(size) = function.bar_size(index) {
            let kind = if low & 8 != 0 {
                Kind::Prefetchable
            } else {
                Kind::Memory
            };
            let set = function
                .bar(index)
                .and_then(|bar| PhysRange::new(bar.address, size).ok());
            all.push(Register {
                index,
                size,
                wide,
                kind,
                set,
            });
        }
        index += if wide { 2 } else { 1 };
    }
    all
}

/// What lies on a bus and behind its bridges, as far as it is not placed: bytes for each window,
/// and the strictest alignment.
#[derive(Clone, Copy, Debug, Default)]
struct Need {
    bytes: u64,
    alignment: u64,
}

impl Need {
    fn add(&mut self, bytes: u64, alignment: u64) {
        self.bytes = self.bytes.next_multiple_of(alignment).saturating_add(bytes);
        self.alignment = self.alignment.max(alignment);
    }

    /// The window that all of it fits in, in whatever order. Each window of a power of two wastes
    /// less than its own size before it.
    fn window(self) -> (u64, u64) {
        let length = self.bytes.next_multiple_of(GRANULE);
        (length, self.alignment.max(GRANULE))
    }
}

/// Memory that a bus passes on.
#[derive(Debug)]
struct Pools {
    memory: Carver,
    /// `None` on a root bus, whose windows pass everything.
    prefetchable: Option<Carver>,
}

impl Pools {
    /// Room for a register or a bridge's window. What may be prefetched lies well with what may
    /// not.
    fn take(&mut self, kind: Kind, length: u64, alignment: u64, wide: bool) -> Option<PhysRange> {
        let below = if wide { u64::MAX } else { FOUR_GIB };
        let prefetchable = match (kind, &mut self.prefetchable) {
            (Kind::Prefetchable, Some(pool)) => pool.take(length, alignment, below),
            _ => None,
        };
        prefetchable.or_else(|| self.memory.take(length, alignment, FOUR_GIB))
    }

    /// Adds windows that were given up. On a root bus it makes no difference what they were for.
    fn add(&mut self, windows: &[(Kind, PhysRange)]) {
        let of = |wanted: &[Kind]| {
            let found = windows.iter().filter(|(kind, _)| wanted.contains(kind));
            merged(found.map(|&(_, range)| range).collect())
        };
        let memory = match &mut self.prefetchable {
            None => of(&[Kind::Memory, Kind::Prefetchable]),
            Some(pool) => {
                of(&[Kind::Prefetchable]).for_each(|range| pool.add(range));
                of(&[Kind::Memory])
            }
        };
        memory.for_each(|range| self.memory.add(range));
    }

    fn reserve(&mut self, range: PhysRange) {
        self.memory.reserve(range);
        if let Some(pool) = &mut self.prefetchable {
            pool.reserve(range);
        }
    }
}

/// Ranges, with those that lie side by side as one.
fn merged(mut ranges: Vec<PhysRange>) -> impl Iterator<Item = PhysRange> {
    ranges.sort();
    let mut ranges = ranges.into_iter().peekable();
    core::iter::from_fn(move || {
        let mut range = ranges.next()?;
        while let Some(next) = ranges.next_if(|next| next.base() == range.end()) {
            range = PhysRange::from_bounds(range.base(), next.end());
        }
        Some(range)
    })
}

/// Gives every base address register for memory that is not set a place, on the root bus `bus` and
/// behind its bridges, and lets the functions answer there.
///
/// # Errors
/// [`AssignError::NoRoom`] and [`AssignError::NoWindow`]. What was placed before stays.
pub fn assign_memory(ecam: &Ecam, bus: u8) -> Result<(), AssignError> {
    let pools = Pools {
        memory: Carver::new(),
        prefetchable: None,
    };
    place(ecam, bus, pools)
}

fn place(ecam: &Ecam, bus: u8, mut pools: Pools) -> Result<(), AssignError> {
    let functions: Vec<(Function, Vec<Register>)> = functions(ecam, bus)
        .into_iter()
        .map(|function| {
            let registers = registers(&function);
            (function, registers)
        })
        .collect();
    // What is placed already, by firmware or before.
    let mut empty = Vec::new();
    let mut short = false;
    for (function, registers) in &functions {
        let set = registers.iter().filter_map(|register| register.set);
        set.for_each(|range| pools.reserve(range));
        let Some(secondary) = function.secondary_bus() else {
            continue;
        };
        for kind in [Kind::Memory, Kind::Prefetchable] {
            let (length, _) = need(ecam, secondary, kind).window();
            let Some(range) = window(function, kind) else {
                short |= length != 0;
                continue;
            };
            pools.reserve(range);
            if is_empty(ecam, secondary, range) {
                short |= length > range.length();
                empty.push((function, kind, range));
            }
        }
    }
    if short {
        for &(function, kind, _) in &empty {
            close_window(function, kind);
        }
        let windows: Vec<_> = empty
            .iter()
            .map(|&(_, kind, range)| (kind, range))
            .collect();
        pools.add(&windows);
    }
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    for (function, registers) in &functions {
        let missing = registers.iter().filter(|register| register.set.is_none());
        wanted.extend(missing.map(|register| Wanted {
            function,
            length: register.size,
            alignment: register.size,
            kind: register.kind,
            wide: register.wide,
            register: Some(register.index),
        }));
        let Some(secondary) = function.secondary_bus() else {
            continue;
        };
        for kind in [Kind::Memory, Kind::Prefetchable] {
            let need = need(ecam, secondary, kind);
            if need.bytes != 0 && window(function, kind).is_none() {
                let (length, alignment) = need.window();
                wanted.push(Wanted {
                    function,
                    length,
                    alignment,
                    kind,
                    wide: false,
                    register: None,
                });
            }
        }
    }
    // The strictest first, so that nothing is wasted between them.
    wanted.sort_by_key(|wanted| core::cmp::Reverse((wanted.alignment, wanted.length)));
    for one in wanted {
        one.put(&mut pools)?;
    }
    for (function, registers) in &functions {
        let Some(secondary) = function.secondary_bus() else {
            if !registers.is_empty() {
                function.enable_memory();
            }
            continue;
        };
        let pool = |kind| {
            let mut carver = Carver::new();
            if let Some(range) = window(function, kind) {
                carver.add(range);
            }
            carver
        };
        place(
            ecam,
            secondary,
            Pools {
                memory: pool(Kind::Memory),
                prefetchable: Some(pool(Kind::Prefetchable)),
            },
        )?;
        // A bridge passes on what it is told to, downwards and upwards. What makes requests is kept
        // from it by its own bit.
        let command = function.config().read16(COMMAND);
        function
            .config()
            .write16(COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER);
    }
    Ok(())
}

/// A register or a bridge's window that has to be placed.
struct Wanted<'a> {
    function: &'a Function,
    length: u64,
    alignment: u64,
    kind: Kind,
    wide: bool,
    /// The register's index; `None` for a window.
    register: Option<usize>,
}

impl Wanted<'_> {
    fn put(&self, pools: &mut Pools) -> Result<(), AssignError> {
        let found = pools.take(self.kind, self.length, self.alignment, self.wide);
        match (self.register, found) {
            (Some(index), Some(range)) => {
                self.function.set_bar(index, range.base());
                Ok(())
            }
            (None, Some(range)) => {
                open_window(self.function, self.kind, range);
                Ok(())
            }
            (Some(bar), None) => Err(AssignError::NoRoom {
                function: self.function.id(),
                bar,
                size: self.length,
            }),
            (None, None) => Err(AssignError::NoWindow {
                bridge: self.function.id(),
                size: self.length,
            }),
        }
    }
}

/// Closes a window in which nothing lies.
fn close_window(bridge: &Function, kind: Kind) {
    // A base above its limit is a window of nothing.
    let config = bridge.config();
    let (base, limit) = match kind {
        Kind::Memory => (MEMORY_BASE, MEMORY_LIMIT),
        Kind::Prefetchable => (PREFETCHABLE_BASE, PREFETCHABLE_LIMIT),
    };
    config.write16(base, 0xfff0);
    config.write16(limit, 0);
    if kind == Kind::Prefetchable {
        config.write32(PREFETCHABLE_BASE_HIGH, 0);
        config.write32(PREFETCHABLE_LIMIT_HIGH, 0);
    }
}

/// What has to be placed on a bus and behind its bridges.
fn need(ecam: &Ecam, bus: u8, kind: Kind) -> Need {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for function in functions(ecam, bus) {
        let missing = registers(&function)
            .into_iter()
            .filter(|register| register.set.is_none() && register.kind == kind);
        all.extend(missing.map(|register| {
            let size = register.size.max(handoff_abi::FRAME_SIZE);
            (size, size)
        }));
        if let Some(secondary) = function.secondary_bus()
            && window(&function, kind).is_none()
        {
            let below = need(ecam, secondary, kind);
            if below.bytes != 0 {
                let (length, alignment) = below.window();
                all.push((alignment, length));
            }
        }
    }
    all.sort_unstable_by_key(|&one| core::cmp::Reverse(one));
    let mut need = Need::default();
    for (alignment, length) in all {
        need.add(length, alignment);
    }
    need
}

/// Whether nothing on a bus or behind its bridges lies in `range`.
fn is_empty(ecam: &Ecam, bus: u8, range: PhysRange) -> bool {
    functions(ecam, bus).iter().all(|function| {
        let register = |register: &Register| register.set.is_some_and(|set| set.overlaps(range));
        let windows = bridge_windows(function);
        !registers(function).iter().any(register)
            && !windows.iter().any(|window| window.overlaps(range))
    })
}

/// Writes down which interrupt lines functions have that firmware has not seen, as far as firmware
/// said what it is for a port: each bridge turns the pins of the devices below it by their number
/// (section 9.1).
pub fn route_lines(ecam: &Ecam, root: u8) {
    for port in functions(ecam, root) {
        let pin = port.config().read8(INTERRUPT_PIN);
        let (Some(line), Some(secondary)) = (port.interrupt_line(), port.secondary_bus()) else {
            continue;
        };
        route(ecam, secondary, 0, (pin, line as u8));
    }
}

/// `turned` is by how much the pins of devices on `bus` are turned on their way to the port.
fn route(ecam: &Ecam, bus: u8, turned: u8, port: (u8, u8)) {
    for function in functions(ecam, bus) {
        let device = turned.wrapping_add(function.id().device());
        if let Some(secondary) = function.secondary_bus() {
            route(ecam, secondary, device, port);
        }
        let pin = function.config().read8(INTERRUPT_PIN);
        let known = function.interrupt_line().is_some();
        if known || !(1..=4).contains(&pin) {
            continue;
        }
        if (pin - 1 + device) % 4 + 1 == port.0 {
            function.config().write8(INTERRUPT_LINE, port.1);
        }
    }
}
