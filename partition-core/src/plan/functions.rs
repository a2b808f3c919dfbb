//! The rules for PCI functions.

use handoff_abi::{FRAME_SIZE, PciFunction, PhysAddr, PhysRange, RequesterId};

use super::findings::{List, Reason};
use super::machine::{Function, Machine};
use super::outcome::{PlannedBus, PlannedFunction, Requester};
use super::request::{FunctionRequest, Messages, Request};
use super::{Draft, push};

/// The configuration space of one bus (PCI Express Base Specification, section 7.2.2).
const ECAM_BUS_SHIFT: u32 = 20;

impl Request<'_> {
    pub(super) fn asks_for(&self, function: PciFunction) -> bool {
        self.functions
            .iter()
            .any(|wanted| wanted.function == function)
    }
}

impl Function {
    /// Every id that it sends, its own in any case.
    fn requester_ids(&self) -> impl Iterator<Item = RequesterId> {
        let own = self.function.requester;
        let others = self.isolation.requesters.as_slice().iter().copied();
        core::iter::once(own).chain(others.filter(move |id| *id != own))
    }

    fn shared_requester(&self, other: &Self) -> Option<RequesterId> {
        if self.function.segment != other.function.segment {
            return None;
        }
        self.requester_ids()
            .find(|id| other.requester_ids().any(|theirs| theirs == *id))
    }
}

impl<'a> Machine<'a> {
    fn function_entries(&self, function: PciFunction) -> impl Iterator<Item = &'a Function> {
        self.functions
            .iter()
            .filter(move |entry| entry.function == function)
    }

    /// Where the registers of a function are; of a bridge, what it forwards.
    pub fn windows_of(&self, function: PciFunction) -> impl Iterator<Item = PhysRange> + use<'a> {
        self.windows
            .iter()
            .filter(move |window| window.function == function)
            .map(|window| window.range)
    }

    fn ecam(&self, function: PciFunction) -> Option<PhysRange> {
        let bus = function.requester.bus();
        let window = self.ecam.iter().find(|window| {
            window.segment == function.segment && window.first_bus <= bus && bus <= window.last_bus
        })?;
        let base = window.base.checked_add(u64::from(bus) << ECAM_BUS_SHIFT)?;
        PhysRange::new(base, 1 << ECAM_BUS_SHIFT).ok()
    }
}

impl<'a> Draft<'a> {
    pub(super) fn functions(&mut self) {
        let wanted = self.request.functions;
        for (index, wish) in wanted.iter().enumerate() {
            let function = wish.function;
            let mut earlier = wanted.iter().take(index);
            if earlier.any(|other| other.function == function) {
                self.findings.refuse(Reason::FunctionTwice { function });
                continue;
            }
            let mut planned: Option<PlannedFunction> = None;
            let mut found = false;
            // The same function once more is a contradiction: it is given where each entry of it
            // allows that, and given once.
            for entry in self.machine.function_entries(function) {
                found = true;
                let Some(this) = self.function(entry, wish) else {
                    continue;
                };
                let first = planned.get_or_insert(this);
                first.fenced &= this.fenced;
                first.unit = first.unit.or(this.unit);
            }
            if !found {
                self.findings.refuse(Reason::FunctionMissing { function });
            }
            let Some(planned) = planned else {
                continue;
            };
            let handles = u32::from(planned.interrupts);
            self.plan.interrupt_handles = self.plan.interrupt_handles.saturating_add(handles);
            push(
                &mut self.plan.functions,
                planned,
                List::Functions,
                self.findings,
            );
        }
        self.plan.requesters.sort_unstable();
        self.plan.buses.sort_unstable();
    }

    /// The rules for one entry; `None` where it is a bridge.
    fn function(&mut self, entry: &'a Function, wish: &FunctionRequest) -> Option<PlannedFunction> {
        let function = entry.function;
        let owner = entry.owner;
        if !self.machine.may_give(owner) {
            self.findings
                .refuse(Reason::FunctionOwner { function, owner });
        }
        if entry.is_bridge() {
            self.findings.refuse(Reason::FunctionBridge { function });
            return None;
        }
        if entry.isolation.below.is_none() {
            self.findings.refuse(Reason::FunctionRootBus { function });
        }
        self.neighbours(entry);
        self.line(entry);
        self.registers(entry);
        let most = entry.messages.max(u16::from(entry.intx.is_some()));
        if wish.interrupts > most {
            self.findings.refuse(Reason::TooManyInterrupts {
                function,
                asked: wish.interrupts,
                most,
            });
        }
        self.bus(function);
        let (unit, fenced) = self.unit(entry);
        Some(PlannedFunction {
            function,
            interrupts: wish.interrupts,
            unit,
            fenced,
        })
    }

    /// Functions that stay behind and cannot be kept apart; each is named once.
    fn neighbours(&mut self, entry: &Function) {
        let function = entry.function;
        let request = self.request;
        let staying = |other: &&Function| !other.is_bridge() && !request.asks_for(other.function);
        for other in self.machine.functions.iter().filter(staying) {
            let culprit = other.function;
            let same_bus = (function.segment, function.requester.bus())
                == (culprit.segment, culprit.requester.bus());
            let reason = if let Some(id) = entry.shared_requester(other) {
                Reason::RequesterShared {
                    function,
                    culprit,
                    id,
                }
            } else if entry.isolation.group == other.isolation.group {
                Reason::GroupSplit { function, culprit }
            } else if same_bus && entry.isolation.below.is_some() {
                Reason::BusShared { function, culprit }
            } else {
                continue;
            };
            let named = |found: &Reason| match *found {
                Reason::RequesterShared { culprit: other, .. }
                | Reason::GroupSplit { culprit: other, .. }
                | Reason::BusShared { culprit: other, .. } => {
                    other == culprit && found.rule() == reason.rule()
                }
                _ => false,
            };
            if !self.findings.refusals().iter().any(named) {
                self.findings.refuse(reason);
            }
        }
    }

    fn line(&mut self, entry: &Function) {
        let Some(line) = entry.intx else {
            return;
        };
        for other in self.machine.functions {
            let uses = other.intx == Some(line) && !other.intx_disabled;
            if uses && !self.request.asks_for(other.function) {
                let reason = Reason::IntxShared {
                    function: entry.function,
                    culprit: other.function,
                    line,
                };
                let needed = entry.messages == 0;
                self.findings.doubt(needed || self.request.strict, reason);
            }
        }
    }

    fn registers(&mut self, entry: &Function) {
        let function = entry.function;
        let (machine, request) = (self.machine, self.request);
        let bridge = |function| {
            let mut entries = machine.function_entries(function);
            entries.any(Function::is_bridge)
        };
        for range in machine.windows_of(function).map(pages) {
            for other in machine.windows {
                let culprit = other.function;
                let common = range.intersection(pages(other.range));
                if common.is_empty() || request.asks_for(culprit) || bridge(culprit) {
                    continue;
                }
                self.findings.doubt(
                    request.strict,
                    Reason::RegistersShared {
                        function,
                        culprit,
                        range: PhysRange::from_bounds(
                            common.base(),
                            PhysAddr(common.base().0.saturating_add(FRAME_SIZE)),
                        ),
                    },
                );
            }
        }
    }

    fn bus(&mut self, function: PciFunction) {
        let Some(ecam) = self.machine.ecam(function) else {
            self.findings.refuse(Reason::NoEcam { function });
            return;
        };
        let bus = PlannedBus {
            segment: function.segment,
            bus: function.requester.bus(),
            ecam,
        };
        if !self.plan.buses.contains(&bus) {
            push(&mut self.plan.buses, bus, List::Buses, self.findings);
        }
    }

    /// Whether every device of a unit is asked for, so that only this partition's can forge messages
    /// that it lets through.
    fn has_unit_alone(&self, unit: Option<u16>) -> bool {
        let behind = |entry: &&Function| entry.unit == unit && !entry.is_bridge();
        let mut behind = self.machine.functions.iter().filter(behind);
        behind.all(|entry| self.request.asks_for(entry.function))
    }

    /// The unit that remaps a function's requests, and whether all of them are fenced.
    fn unit(&mut self, entry: &Function) -> (Option<u16>, bool) {
        let function = entry.function;
        let usable = entry.unit.and_then(|index| {
            let unit = self.machine.units.get(usize::from(index))?;
            unit.usable.then_some((index, unit))
        });
        let mut fenced = true;
        let mut unfenced = |reason| {
            fenced = false;
            self.findings.doubt(!self.request.accept_unfenced, reason);
        };
        match usable {
            None if self.machine.units.is_empty() => unfenced(Reason::NoIommu { function }),
            None => unfenced(Reason::Uncovered { function }),
            Some((_, unit)) if !unit.interrupt_remapping => {
                unfenced(Reason::NoInterruptRemapping { function });
            }
            Some(_) => {}
        }
        if entry.ats_required {
            unfenced(Reason::AtsRequired { function });
        }
        if let Messages::Any { accept_open } = self.request.messages
            && usable.is_some_and(|(_, unit)| !unit.remaps_any_message)
        {
            fenced = false;
            let accepted = accept_open || self.has_unit_alone(entry.unit);
            self.findings
                .doubt(!accepted, Reason::OpenMessages { function });
        }
        let unit = usable.map(|(index, _)| index);
        if let Some(unit) = unit {
            for id in entry.requester_ids() {
                let requester = Requester {
                    unit,
                    segment: function.segment,
                    id,
                };
                if !self.plan.requesters.contains(&requester) {
                    push(
                        &mut self.plan.requesters,
                        requester,
                        List::Requesters,
                        self.findings,
                    );
                }
            }
        }
        (unit, fenced)
    }
}

/// A range grown to whole pages of 4 KiB.
fn pages(range: PhysRange) -> PhysRange {
    if range.is_empty() {
        return range;
    }
    let base = range.base().0 & !FRAME_SIZE.saturating_sub(1);
    let end = range
        .end()
        .0
        .checked_next_multiple_of(FRAME_SIZE)
        .unwrap_or(u64::MAX);
    PhysRange::from_bounds(PhysAddr(base), PhysAddr(end))
}
