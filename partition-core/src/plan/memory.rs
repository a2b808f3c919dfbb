//! The rules for memory.

use core::iter;

use handoff_abi::{FRAME_SIZE, Owner, PciFunction, PhysAddr, PhysRange};

use super::findings::{List, Reason};
use super::machine::{Machine, MemoryKind, MemoryRegion};
use super::outcome::{DomainMap, MapReason};
use super::request::{MemoryRequest, Trampoline};
use super::{Draft, push};

const MIB: u64 = 1 << 20;
/// The first page that a start-up message can name and that is not the real-mode vector table.
const TRAMPOLINE_FIRST: PhysAddr = PhysAddr(0x1000);
/// Vectors A0h to BFh of a start-up message are reserved: legacy video memory begins here.
const TRAMPOLINE_END: PhysAddr = PhysAddr(0xa_0000);
/// Where devices send interrupts to.
const INTERRUPTS: PhysRange = PhysRange::from_bounds(PhysAddr(0xfee0_0000), PhysAddr(0xfef0_0000));

impl<'a> Machine<'a> {
    /// Why a region cannot be given away; `range` is the part of it that was asked for.
    fn region_reason(&self, region: &MemoryRegion, range: PhysRange) -> Option<Reason> {
        let kind = region.kind;
        match region.owner {
            Owner::Baton => Some(Reason::MemoryBaton { range }),
            Owner::Firmware => Some(Reason::MemoryFirmware { range, kind }),
            owner if !self.may_give(owner) => Some(Reason::MemoryOwner { range, owner }),
            _ if kind != MemoryKind::Usable => Some(Reason::MemoryKind { range, kind }),
            _ => None,
        }
    }

    fn reserved_for(&self, function: PciFunction) -> impl Iterator<Item = PhysRange> + use<'a> {
        self.reservations
            .iter()
            .filter(move |reservation| reservation.function == function)
            .map(|reservation| reservation.range)
    }

    /// The first part from `from` on that no region covers; it ends where the next region begins,
    /// or with the address space.
    fn hole(&self, from: PhysAddr) -> PhysRange {
        let mut at = from;
        // Each step passes the end of a region for good.
        while let Some(end) = self
            .memory
            .iter()
            .filter(|region| region.range.contains(at))
            .map(|region| region.range.end())
            .max()
        {
            at = end;
        }
        let next = self
            .memory
            .iter()
            .filter(|region| !region.range.is_empty() && region.range.base() > at)
            .map(|region| region.range.base())
            .min();
        PhysRange::from_bounds(at, next.unwrap_or(PhysAddr(u64::MAX)))
    }
}

impl<'a> Draft<'a> {
    pub(super) fn memory(&mut self) {
        match self.request.memory {
            MemoryRequest::These(ranges) => self.take_memory(ranges),
            MemoryRequest::Bytes {
                length,
                alignment,
                below,
            } => self.choose_memory(length, alignment, below),
        }
        let (have, need) = (
            self.plan.memory_bytes(),
            self.request.least_memory.max(FRAME_SIZE),
        );
        if have < need && !self.memory_was_not_found() {
            self.findings.refuse(Reason::MemoryTooSmall { have, need });
        }
        self.trampoline();
        let trampoline = self.plan.trampoline;
        let trampoline = trampoline.and_then(|page| PhysRange::new(page, FRAME_SIZE).ok());
        for range in self.plan.memory.clone().into_iter().chain(trampoline) {
            self.map(range, MapReason::Memory);
        }
    }

    /// The planner was to choose and found a better reason than that nothing is too little.
    fn memory_was_not_found(&self) -> bool {
        matches!(self.request.memory, MemoryRequest::Bytes { .. }) && self.plan.memory.is_empty()
    }

    fn take_memory(&mut self, ranges: &[PhysRange]) {
        for (index, &range) in ranges.iter().enumerate() {
            if range.is_empty() {
                self.findings.refuse(Reason::MemoryEmpty { range });
                continue;
            }
            if !range.is_aligned_to(FRAME_SIZE) {
                self.findings.refuse(Reason::MemoryMisaligned { range });
            }
            for other in ranges.iter().take(index) {
                let range = range.intersection(*other);
                if !range.is_empty() {
                    self.findings.refuse(Reason::MemoryTwice { range });
                }
            }
            self.refuse_blocked(range);
            push(
                &mut self.plan.memory,
                range,
                List::MemoryRanges,
                self.findings,
            );
        }
    }

    fn choose_memory(&mut self, length: u64, alignment: u64, below: PhysAddr) {
        let range = PhysRange::from_bounds(PhysAddr(0), PhysAddr(length));
        if length == 0 {
            self.findings.refuse(Reason::MemoryEmpty { range });
            return;
        }
        if !range.is_aligned_to(FRAME_SIZE) {
            self.findings.refuse(Reason::MemoryMisaligned { range });
        }
        if !alignment.is_power_of_two() || alignment < FRAME_SIZE {
            self.findings.refuse(Reason::AlignmentInvalid { alignment });
            return;
        }
        match self.search(length, alignment, below) {
            Some(range) => push(
                &mut self.plan.memory,
                range,
                List::MemoryRanges,
                self.findings,
            ),
            None => self
                .findings
                .refuse(Reason::MemoryNotFound { length, alignment }),
        }
    }

    /// The lowest range above 1 MiB with nothing in its way; also not what devices keep reaching,
    /// whoever gets the device.
    fn search(&self, length: u64, alignment: u64, below: PhysAddr) -> Option<PhysRange> {
        let mut base = MIB.checked_next_multiple_of(alignment)?;
        // Each step passes the end of something in the way for good.
        loop {
            let range = PhysRange::new(PhysAddr(base), length).ok()?;
            if range.end() > below {
                return None;
            }
            let reserved = self
                .machine
                .reservations
                .iter()
                .map(|reservation| reservation.range)
                .find(|reserved| reserved.overlaps(range));
            let blocker = self.blockers(range).map(|(whole, _)| whole).next();
            let Some(blocker) = reserved.or(blocker) else {
                return Some(range);
            };
            base = blocker.end().0.checked_next_multiple_of(alignment)?;
        }
    }

    fn refuse_blocked(&mut self, range: PhysRange) {
        let (machine, request) = (self.machine, self.request);
        for (_, reason) in blockers(machine, request, range) {
            self.findings.refuse(reason);
        }
    }

    fn blockers(&self, range: PhysRange) -> impl Iterator<Item = (PhysRange, Reason)> + use<'a> {
        blockers(self.machine, self.request, range)
    }

    fn trampoline(&mut self) {
        match self.request.trampoline {
            Trampoline::None => {}
            Trampoline::At(page) => self.take_trampoline(page),
            Trampoline::Any => {
                self.plan.trampoline = self.search_trampoline();
                if self.plan.trampoline.is_none() {
                    self.findings.refuse(Reason::TrampolineNotFound);
                }
            }
        }
    }

    fn take_trampoline(&mut self, page: PhysAddr) {
        let range = frame(page);
        let possible = page >= TRAMPOLINE_FIRST && page < TRAMPOLINE_END;
        if !possible || !page.is_aligned_to(FRAME_SIZE) {
            self.findings.refuse(Reason::Trampoline { range });
            return;
        }
        self.refuse_blocked(range);
        if self.plan.memory.iter().any(|other| other.overlaps(range)) {
            self.findings.refuse(Reason::MemoryTwice { range });
        }
        self.plan.trampoline = Some(page);
    }

    fn search_trampoline(&self) -> Option<PhysAddr> {
        let pages = iter::successors(Some(TRAMPOLINE_FIRST), |page| page.checked_add(FRAME_SIZE));
        pages
            .take_while(|page| *page < TRAMPOLINE_END)
            .find(|&page| {
                let range = frame(page);
                self.blockers(range).next().is_none()
                    && !self.plan.memory.iter().any(|other| other.overlaps(range))
            })
    }

    /// Adds what is not mapped yet to what the domain maps.
    fn map(&mut self, range: PhysRange, reason: MapReason) {
        let mut at = range.base();
        // Each step passes the end of a mapping, or makes one.
        while at < range.end() {
            let covering = self.plan.maps.iter().find(|map| map.range.contains(at));
            if let Some(map) = covering {
                at = map.range.end();
                continue;
            }
            let next = self
                .plan
                .maps
                .iter()
                .map(|map| map.range.base())
                .filter(|base| *base > at)
                .min();
            let end = next.map_or(range.end(), |next| next.min(range.end()));
            let map = DomainMap {
                range: PhysRange::from_bounds(at, end),
                reason,
            };
            push(&mut self.plan.maps, map, List::DomainMaps, self.findings);
            at = end;
        }
    }

    /// The rules for what devices keep reaching on firmware's behalf.
    pub(super) fn reservations(&mut self) {
        let (machine, request) = (self.machine, self.request);
        for wanted in request.functions {
            let function = wanted.function;
            for range in machine.reserved_for(function) {
                for other in machine.reservations {
                    let common = range.intersection(other.range);
                    if !common.is_empty() && !request.asks_for(other.function) {
                        self.findings.refuse(Reason::ReservedShared {
                            function,
                            culprit: other.function,
                            range: common,
                        });
                    }
                }
                if self.holds_reserved(range) {
                    self.map(range, MapReason::Reserved);
                } else {
                    self.findings
                        .refuse(Reason::ReservedOutside { function, range });
                }
            }
        }
    }

    /// Whether every byte is the partition's or only firmware's.
    fn holds_reserved(&self, range: PhysRange) -> bool {
        let regions = || self.machine.memory.iter();
        let mut at = range.base();
        // Each step passes a border of something for good.
        while at < range.end() {
            let own = self.plan.memory.iter().any(|memory| memory.contains(at));
            let mut here = regions()
                .filter(|region| region.range.contains(at))
                .peekable();
            let firmware =
                here.peek().is_some() && here.all(|region| region.owner == Owner::Firmware);
            if !own && !firmware {
                return false;
            }
            let borders = regions()
                .map(|region| region.range)
                .chain(self.plan.memory.iter().copied())
                .flat_map(|range| [range.base(), range.end()]);
            at = borders
                .filter(|border| *border > at)
                .min()
                .unwrap_or(range.end());
        }
        true
    }
}

/// What is in the way of giving a range away: where all of it is, and why.
fn blockers<'a>(
    machine: &'a Machine<'a>,
    request: &'a super::Request<'a>,
    range: PhysRange,
) -> impl Iterator<Item = (PhysRange, Reason)> + use<'a> {
    let regions = machine.memory.iter().filter_map(move |region| {
        let part = region.range.intersection(range);
        if part.is_empty() {
            return None;
        }
        Some((region.range, machine.region_reason(region, part)?))
    });
    let interrupts = iter::once(INTERRUPTS).filter_map(move |whole| {
        let range = whole.intersection(range);
        (!range.is_empty()).then_some((whole, Reason::MemoryInterrupts { range }))
    });
    let registers = machine.windows.iter().filter_map(move |window| {
        let reason = Reason::MemoryRegisters {
            range: window.range.intersection(range),
            function: window.function,
        };
        window
            .range
            .overlaps(range)
            .then_some((window.range, reason))
    });
    let reserved = machine
        .reservations
        .iter()
        .filter(|reservation| !request.asks_for(reservation.function))
        .filter_map(move |reservation| {
            let reason = Reason::MemoryReserved {
                range: reservation.range.intersection(range),
                function: reservation.function,
            };
            let overlaps = reservation.range.overlaps(range);
            overlaps.then_some((reservation.range, reason))
        });
    let holes = iter::successors(Some(machine.hole(range.base())), |hole| {
        Some(machine.hole(hole.end()))
    })
    .take_while(move |hole| hole.base() < range.end())
    .map(move |hole| {
        let range = hole.intersection(range);
        (hole, Reason::MemoryMissing { range })
    });
    regions
        .chain(interrupts)
        .chain(registers)
        .chain(reserved)
        .chain(holes)
}

/// The page of 4 KiB at `page`, as far as the address space goes.
fn frame(page: PhysAddr) -> PhysRange {
    PhysRange::from_bounds(page, PhysAddr(page.0.saturating_add(FRAME_SIZE)))
}
