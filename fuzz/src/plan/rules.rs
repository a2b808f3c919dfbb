//! The planner's rules once more, one address at a time: a plan has to keep all of them, and each
//! refusal and warning has to be true of the machine and the request.

use std::collections::BTreeSet;

use handoff_abi::{
    ApicId, Exchange, Owner, PartitionId, PciFunction, PhysAddr, PhysRange, RequesterId,
};
use partition_core::plan::alias::{Facts, Isolation};
use partition_core::plan::{
    Cpu, CpuRequest, EcamWindow, Findings, Function, List, Machine, MapReason, MemoryKind,
    MemoryRegion, MemoryRequest, Messages, Plan, Reason, Refused, Request, Supply, Trampoline,
    Unit,
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Writes to here are interrupts.
const INTERRUPTS: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// What [`groups`](partition_core::plan::alias::groups) found: functions that can send the same id
/// are of one group, and each sends its own.
pub(super) fn groups_keep_ids_together(facts: &[Facts], isolation: &[Isolation]) {
    for (one, mine) in facts.iter().zip(isolation) {
        let ids = mine.requesters.as_slice();
        assert_eq!(ids[0], one.function.requester);
        assert!(distinct(ids.iter().map(|id| id.0)));
        for (other, theirs) in facts.iter().zip(isolation) {
            let common = mine.requesters.common(&theirs.requesters).is_some();
            if common && one.function.segment == other.function.segment {
                assert_eq!(mine.group, theirs.group, "{one:?} {other:?}");
            }
        }
    }
}

/// Looks at what the planner said.
pub(super) fn judge(
    machine: &Machine<'_>,
    request: &Request<'_>,
    findings: &Findings,
    result: &Result<Plan, Refused>,
) {
    let case = Case { machine, request };
    match result {
        Ok(plan) => {
            assert!(findings.refusals().is_empty());
            case.stands(plan);
        }
        Err(refused) => {
            assert_eq!(findings.refusals().first(), Some(&refused.first));
            assert_eq!(findings.refusals().len(), refused.refusals);
        }
    }
    for (reasons, refuses) in [(findings.refusals(), true), (findings.warnings(), false)] {
        for (index, reason) in reasons.iter().enumerate() {
            assert!(case.is_true(reason), "not so: {reason}");
            assert!(!reasons[..index].contains(reason), "said twice: {reason}");
            // A function that is listed twice may have two answers.
            let refuses_here = match reason {
                Reason::SmtSplit { .. }
                | Reason::CpuFeatures { .. }
                | Reason::CpuMicrocode { .. }
                | Reason::RegistersShared { .. } => request.strict,
                Reason::IntxShared { function, .. } => {
                    let mut entries = case.entries(*function);
                    request.strict
                        || entries.any(|entry| (entry.messages == 0) == refuses) == refuses
                }
                Reason::OpenMessages { function } => {
                    let accepted = request.messages == Messages::Any { accept_open: true };
                    let mut entries = case.entries(*function);
                    !accepted
                        && entries.any(|entry| case.has_unit_alone(entry.unit) != refuses)
                            == refuses
                }
                Reason::Uncovered { .. }
                | Reason::NoIommu { .. }
                | Reason::NoInterruptRemapping { .. }
                | Reason::AtsRequired { .. } => !request.accept_unfenced,
                _ => true,
            };
            assert_eq!(refuses_here, refuses, "{reason}");
            assert!(!reason.to_string().is_empty() && !reason.resource().to_string().is_empty());
        }
    }
}

fn distinct<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}

fn page_of(range: PhysRange) -> std::ops::Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    let end = u128::from(range.end().0).next_multiple_of(PAGE.into());
    range.base().0 & !(PAGE - 1)..end.min(u64::MAX.into()) as u64
}

struct Case<'a> {
    machine: &'a Machine<'a>,
    request: &'a Request<'a>,
}

impl<'a> Case<'a> {
    fn may(&self, owner: Owner) -> bool {
        owner == Owner::Parked || owner == Owner::Partition(self.machine.prime)
    }

    fn owners(&self) -> impl Iterator<Item = PartitionId> {
        (self.machine.cpus.iter().map(|entry| entry.owner))
            .chain(self.machine.memory.iter().map(|entry| entry.owner))
            .chain(self.machine.functions.iter().map(|entry| entry.owner))
            .chain(self.machine.singletons.iter().map(|entry| entry.owner))
            .chain([Owner::Partition(self.machine.prime)])
            .filter_map(|owner| match owner {
                Owner::Partition(partition) => Some(partition),
                _ => None,
            })
    }

    fn asks(&self, function: PciFunction) -> bool {
        let mut all = self.request.functions.iter();
        all.any(|wish| wish.function == function)
    }

    fn entries(&self, function: PciFunction) -> impl Iterator<Item = &'a Function> {
        let all = self.machine.functions.iter();
        all.filter(move |entry| entry.function == function)
    }

    fn cpus(&self, id: ApicId) -> impl Iterator<Item = &'a Cpu> {
        self.machine
            .cpus
            .iter()
            .filter(move |cpu| cpu.apic_id == id)
    }

    fn cpu_is_free(&self, id: ApicId) -> bool {
        self.cpus(id).count() > 0
            && self
                .cpus(id)
                .all(|cpu| self.may(cpu.owner) && !cpu.is_bsp && !cpu.runs_prime)
    }

    fn reference(&self) -> Option<&'a Cpu> {
        let all = self.machine.cpus;
        all.iter().find(|cpu| cpu.runs_prime).or(all.first())
    }

    fn regions(&self, at: u64) -> impl Iterator<Item = &'a MemoryRegion> {
        let all = self.machine.memory.iter();
        all.filter(move |region| region.range.contains(PhysAddr(at)))
    }

    fn is_free(&self, at: u64) -> bool {
        let usable =
            |region: &MemoryRegion| region.kind == MemoryKind::Usable && self.may(region.owner);
        let here = |range: PhysRange| range.contains(PhysAddr(at));
        self.regions(at).count() > 0
            && self.regions(at).all(usable)
            && !INTERRUPTS.contains(&at)
            && !self.machine.windows.iter().any(|window| here(window.range))
            && !self
                .machine
                .reservations
                .iter()
                .any(|reserved| here(reserved.range) && !self.asks(reserved.function))
    }

    /// The first byte of a range, and each address in it where something begins or ends: what holds
    /// of an address holds up to the next of these.
    fn steps(&self, range: PhysRange) -> Vec<u64> {
        let asked: &[PhysRange] = match self.request.memory {
            MemoryRequest::These(ranges) => ranges,
            MemoryRequest::Bytes { .. } => &[],
        };
        let ranges = (self.machine.memory.iter().map(|entry| entry.range))
            .chain(self.machine.windows.iter().map(|entry| entry.range))
            .chain(self.machine.reservations.iter().map(|entry| entry.range))
            .chain(asked.iter().copied());
        let mut steps: Vec<_> = ranges
            .flat_map(|range| [range.base().0, range.end().0])
            .chain([INTERRUPTS.start, INTERRUPTS.end, range.base().0])
            .filter(|&at| range.contains(PhysAddr(at)))
            .collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    fn all(&self, range: PhysRange, holds: impl Fn(u64) -> bool) -> bool {
        self.steps(range).into_iter().all(holds)
    }

    /// The lowest place for memory that the planner is to choose.
    fn lowest(&self, length: u64, alignment: u64, below: u64) -> Option<u64> {
        let whole = PhysRange::from_bounds(PhysAddr(0), PhysAddr(u64::MAX));
        // The lowest place is as far down as it can be: at 1 MiB, or right behind something.
        self.steps(whole)
            .into_iter()
            .chain([MIB])
            .filter(|&at| at >= MIB)
            .filter_map(|at| at.checked_next_multiple_of(alignment))
            .filter(|&base| base.checked_add(length).is_some_and(|end| end <= below))
            .filter(|&base| {
                let range = PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + length));
                let mut reserved = self.machine.reservations.iter();
                self.all(range, |at| self.is_free(at))
                    && !reserved.any(|reserved| reserved.range.overlaps(range))
            })
            .min()
    }

    /// The memory that the plan has if there is one, without the trampoline.
    fn memory(&self) -> Vec<PhysRange> {
        match self.request.memory {
            MemoryRequest::These(ranges) => {
                let there = ranges.iter().filter(|range| !range.is_empty());
                there.take(Plan::MAX_RANGES).copied().collect()
            }
            MemoryRequest::Bytes {
                length,
                alignment,
                below,
            } if length != 0 && alignment.is_power_of_two() && alignment >= PAGE => self
                .lowest(length, alignment, below.0)
                .map(|base| PhysRange::from_bounds(PhysAddr(base), PhysAddr(base + length)))
                .into_iter()
                .collect(),
            MemoryRequest::Bytes { .. } => Vec::new(),
        }
    }

    fn trampoline(&self) -> Option<PhysAddr> {
        match self.request.trampoline {
            Trampoline::None => None,
            Trampoline::At(page) => Some(page),
            Trampoline::Any => {
                let memory = self.memory();
                let taken = |range| memory.iter().any(|other| other.overlaps(range));
                (1..0xa0).map(|page| PhysAddr(page * PAGE)).find(|&page| {
                    let range = page_at(page);
                    !taken(range) && self.all(range, |at| self.is_free(at))
                })
            }
        }
    }

    /// Every range that the request names, and the page.
    fn named(&self) -> Vec<PhysRange> {
        let mut named = match self.request.memory {
            MemoryRequest::These(ranges) => ranges.to_vec(),
            MemoryRequest::Bytes { .. } => self.memory(),
        };
        if let Trampoline::At(page) = self.request.trampoline {
            named.push(page_at(page));
        }
        named
    }

    fn unit(&self, entry: &Function) -> Option<(u16, &'a Unit)> {
        let index = entry.unit?;
        let unit = self.machine.units.get(usize::from(index))?;
        unit.usable.then_some((index, unit))
    }

    fn ecam(&self, function: PciFunction) -> Option<&'a EcamWindow> {
        let bus = function.requester.bus();
        self.machine.ecam.iter().find(|window| {
            window.segment == function.segment
                && (window.first_bus..=window.last_bus).contains(&bus)
        })
    }

    fn ids(&self, entry: &Function) -> BTreeSet<(u16, RequesterId)> {
        let ids = entry.isolation.requesters.as_slice().iter().copied();
        ids.chain([entry.function.requester])
            .map(|id| (entry.function.segment, id))
            .collect()
    }

    fn staying(&self) -> impl Iterator<Item = &'a Function> {
        let all = self.machine.functions.iter();
        all.filter(|entry| !self.asks(entry.function))
    }

    fn requesters(&self) -> BTreeSet<(u16, u16, RequesterId)> {
        let mut all = BTreeSet::new();
        for entry in self.machine.functions {
            if let Some((unit, _)) = self.unit(entry)
                && self.asks(entry.function)
            {
                all.extend(
                    self.ids(entry)
                        .into_iter()
                        .map(|(segment, id)| (unit, segment, id)),
                );
            }
        }
        all
    }

    fn reserved(&self) -> impl Iterator<Item = PhysRange> {
        let all = self.machine.reservations.iter();
        all.filter(|entry| self.asks(entry.function))
            .map(|entry| entry.range)
    }

    /// Everything that must hold of a plan.
    fn stands(&self, plan: &Plan) {
        let (machine, request) = (self.machine, self.request);
        assert_eq!(
            (plan.partition(), plan.name()),
            (request.partition, request.name)
        );
        assert!((1..=Plan::MAX_NAME).contains(&plan.name().len()));
        let place = Exchange::place(plan.partition());
        assert!(self.owners().all(|other| Exchange::place(other) != place));

        let cpus = plan.cpus();
        assert!(!cpus.is_empty() && distinct(cpus));
        assert!(cpus.iter().all(|&id| self.cpu_is_free(id)));
        match request.cpus {
            CpuRequest::These(ids) => assert_eq!(cpus, ids),
            CpuRequest::Count(count) => assert_eq!(cpus.len(), count as usize),
        }
        for cpu in machine
            .cpus
            .iter()
            .filter(|cpu| cpus.contains(&cpu.apic_id))
        {
            let mut core = machine.cpus.iter().filter(|other| other.core == cpu.core);
            let like =
                |other: &Cpu| (other.features, other.microcode) == (cpu.features, cpu.microcode);
            let whole = core.all(|other| cpus.contains(&other.apic_id));
            assert!(!request.strict || whole && self.reference().is_none_or(like));
        }

        self.memory_stands(plan);
        self.functions_stand(plan);
        self.maps_stand(plan);

        assert!(plan.singletons() == request.singletons && distinct(plan.singletons()));
        for &number in plan.singletons() {
            let entries = || {
                machine
                    .singletons
                    .iter()
                    .filter(|entry| entry.number == number)
            };
            assert!(entries().count() > 0 && entries().all(|entry| self.may(entry.owner)));
        }
        let budget = machine.budget;
        assert!(plan.table_pages() <= budget.table_pages);
        assert!(plan.ledger_slots() <= budget.ledger_slots);
        assert!(plan.interrupt_handles() <= budget.interrupt_handles);
        let domain = budget.domain.filter(|_| !plan.requesters().is_empty());
        assert_eq!(plan.domain(), domain);
    }

    fn memory_stands(&self, plan: &Plan) {
        let expected = match self.request.memory {
            MemoryRequest::These(ranges) => ranges.to_vec(),
            MemoryRequest::Bytes { .. } => self.memory(),
        };
        assert_eq!(plan.memory(), expected);
        assert_eq!(plan.trampoline(), self.trampoline());
        let asked = self.request.trampoline != Trampoline::None;
        assert_eq!(plan.trampoline().is_some(), asked);
        if let Some(page) = plan.trampoline() {
            assert!(page.is_aligned_to(PAGE) && (0x1000..0xa_0000).contains(&page.0));
        }
        let mut all = plan.memory().to_vec();
        let total: u64 = all.iter().map(|range| range.length()).sum();
        assert!(total >= self.request.least_memory.max(PAGE));
        all.extend(plan.trampoline().map(page_at));
        for (index, &range) in all.iter().enumerate() {
            assert!(!range.is_empty() && range.is_aligned_to(PAGE));
            assert!(!all[..index].iter().any(|other| other.overlaps(range)));
            assert!(
                self.all(range, |at| self.is_free(at)),
                "{range} is not free"
            );
        }
    }

    fn functions_stand(&self, plan: &Plan) {
        let (machine, request) = (self.machine, self.request);
        let given: Vec<_> = plan
            .functions()
            .iter()
            .map(|given| given.function)
            .collect();
        let wanted: Vec<_> = request.functions.iter().map(|wish| wish.function).collect();
        assert!(distinct(&given), "a function twice: {given:?}");
        assert_eq!(given, wanted);
        let handles = request
            .functions
            .iter()
            .map(|wish| u32::from(wish.interrupts));
        assert_eq!(plan.interrupt_handles(), handles.sum::<u32>());
        for (wish, given) in request.functions.iter().zip(plan.functions()) {
            assert_eq!(wish.interrupts, given.interrupts);
            assert!(self.entries(wish.function).count() > 0);
            for entry in self.entries(wish.function) {
                self.function_stands(entry, wish.interrupts);
                let unit = self.unit(entry);
                let fenced =
                    unit.is_some_and(|(_, unit)| unit.interrupt_remapping) && !entry.ats_required;
                assert!(fenced || request.accept_unfenced);
                assert!(fenced || !given.fenced);
                if let Messages::Any { accept_open } = request.messages
                    && unit.is_some_and(|(_, unit)| !unit.remaps_any_message)
                {
                    assert!(accept_open || self.has_unit_alone(entry.unit));
                    assert!(!given.fenced);
                }
            }
            let mut units = self
                .entries(wish.function)
                .filter_map(|entry| self.unit(entry));
            assert_eq!(given.unit, units.next().map(|(index, _)| index));
        }
        let planned: Vec<_> = plan
            .requesters()
            .iter()
            .map(|id| (id.unit, id.segment, id.id))
            .collect();
        assert_eq!(planned, self.requesters().into_iter().collect::<Vec<_>>());
        let place = |function: &PciFunction| (function.segment, function.requester.bus());
        let buses: BTreeSet<_> = given.iter().map(place).collect();
        assert_eq!(buses.len(), plan.buses().len());
        for (bus, expected) in plan.buses().iter().zip(buses) {
            assert_eq!((bus.segment, bus.bus), expected);
            let mut windows = machine.ecam.iter();
            assert!(windows.any(|window| {
                window.segment == bus.segment
                    && (window.first_bus..=window.last_bus).contains(&bus.bus)
                    && u128::from(bus.ecam.base().0)
                        == u128::from(window.base.0) + (u128::from(bus.bus) << 20)
            }));
            assert_eq!(bus.ecam.length(), MIB);
        }
    }

    fn function_stands(&self, entry: &Function, interrupts: u16) {
        assert!(self.may(entry.owner) && !entry.is_bridge() && entry.isolation.below.is_some());
        assert!(interrupts <= entry.messages.max(u16::from(entry.intx.is_some())));
        let bus = |entry: &Function| (entry.function.segment, entry.function.requester.bus());
        for other in self.staying() {
            if !other.is_bridge() {
                assert!(self.ids(entry).is_disjoint(&self.ids(other)));
                assert_ne!(entry.isolation.group, other.isolation.group);
                assert_ne!(bus(entry), bus(other));
            }
            if entry.intx.is_some() && entry.intx == other.intx && !other.intx_disabled {
                assert!(entry.messages > 0 && !self.request.strict);
            }
        }
        for own in self.machine.windows {
            for other in self.machine.windows {
                let (a, b) = (page_of(own.range), page_of(other.range));
                let apart = a.start.max(b.start) >= a.end.min(b.end);
                assert!(
                    own.function != entry.function
                        || self.asks(other.function)
                        || self.entries(other.function).any(Function::is_bridge)
                        || apart
                        || !self.request.strict
                );
            }
        }
    }

    fn maps_stand(&self, plan: &Plan) {
        let mut own = plan.memory().to_vec();
        own.extend(plan.trampoline().map(page_at));
        let is_own = |at| own.iter().any(|range| range.contains(PhysAddr(at)));
        let firmware = |region: &MemoryRegion| region.owner == Owner::Firmware;
        let reserved: Vec<_> = self.reserved().collect();
        for &range in &reserved {
            let memory = |at| {
                plan.memory()
                    .iter()
                    .any(|range| range.contains(PhysAddr(at)))
            };
            assert!(self.steps_with(range, &own).into_iter().all(|at| {
                memory(at) || self.regions(at).count() > 0 && self.regions(at).all(firmware)
            }));
            for other in self.machine.reservations {
                assert!(self.asks(other.function) || !other.range.overlaps(range));
            }
        }
        let maps = plan.maps();
        if plan.requesters().is_empty() {
            assert!(maps.is_empty());
            return;
        }
        for (index, map) in maps.iter().enumerate() {
            assert!(!map.range.is_empty());
            assert!(
                !maps[..index]
                    .iter()
                    .any(|other| other.range.overlaps(map.range))
            );
            for at in self.steps_with(map.range, &own) {
                assert_eq!(is_own(at), map.reason == MapReason::Memory);
                let asked = || reserved.iter().any(|range| range.contains(PhysAddr(at)));
                assert!(is_own(at) || asked());
            }
        }
        let mapped: Vec<_> = maps.iter().map(|map| map.range).collect();
        for range in own.iter().chain(&reserved) {
            for at in self.steps_with(*range, &mapped) {
                assert!(mapped.iter().any(|map| map.contains(PhysAddr(at))));
            }
        }
    }

    fn steps_with(&self, range: PhysRange, more: &[PhysRange]) -> Vec<u64> {
        let borders = more
            .iter()
            .flat_map(|range| [range.base().0, range.end().0]);
        let inside = borders.filter(|&at| range.contains(PhysAddr(at)));
        let mut steps = self.steps(range);
        steps.extend(inside);
        steps
    }

    /// Whether a reason holds.
    fn is_true(&self, reason: &Reason) -> bool {
        let (machine, request) = (self.machine, self.request);
        match *reason {
            Reason::Name { length } => {
                length == request.name.len() && !(1..=Plan::MAX_NAME).contains(&length)
            }
            Reason::PartitionTaken { partition } => {
                partition == request.partition && self.owners().any(|other| other == partition)
            }
            Reason::PartitionCollides { partition, other } => {
                partition == request.partition
                    && other != partition
                    && Exchange::place(other) == Exchange::place(partition)
                    && self.owners().any(|owner| owner == other)
            }
            Reason::TooMany { list, most } => self.is_too_many(list, most),
            Reason::Short { supply, need, left } => {
                need > left && self.left(supply) == left && self.may_need(supply, need)
            }
            Reason::SingletonMissing { number } => {
                request.singletons.contains(&number)
                    && machine
                        .singletons
                        .iter()
                        .all(|entry| entry.number != number)
            }
            Reason::SingletonTwice { number } => {
                request.singletons.iter().filter(|&&n| n == number).count() > 1
            }
            Reason::SingletonTaken { number, owner } => {
                let mut entries = machine.singletons.iter();
                request.singletons.contains(&number)
                    && !self.may(owner)
                    && entries.any(|entry| (entry.number, entry.owner) == (number, owner))
            }
            _ => self
                .is_true_of_cpus(reason)
                .or_else(|| self.is_true_of_memory(reason))
                .or_else(|| self.is_true_of_functions(reason))
                .expect("a reason without a check"),
        }
    }

    fn is_too_many(&self, list: List, most: usize) -> bool {
        let (request, functions) = (self.request, self.request.functions);
        let (have, expected) = match (list, request.memory) {
            (List::Cpus, _) => match request.cpus {
                CpuRequest::These(ids) => (ids.len(), Plan::MAX_CPUS),
                CpuRequest::Count(count) => (count as usize, Plan::MAX_CPUS),
            },
            (List::MemoryRanges, MemoryRequest::These(ranges)) => (ranges.len(), Plan::MAX_RANGES),
            (List::Functions, _) => (functions.len(), Plan::MAX_FUNCTIONS),
            (List::Requesters, _) => (self.requesters().len(), Plan::MAX_REQUESTERS),
            (List::Buses, _) => (functions.len(), Plan::MAX_BUSES),
            // A reserved region can be mapped in as many pieces as there is room between others.
            (List::DomainMaps, _) => (
                (self.reserved().count() + 1) * (Plan::MAX_RANGES + 2),
                Plan::MAX_MAPS,
            ),
            (List::Singletons, _) => (request.singletons.len(), Plan::MAX_SINGLETONS),
            _ => return false,
        };
        most == expected && have > most
    }

    fn left(&self, supply: Supply) -> u64 {
        let budget = self.machine.budget;
        match supply {
            Supply::TablePages => budget.table_pages,
            Supply::LedgerSlots => budget.ledger_slots,
            Supply::InterruptHandles => budget.interrupt_handles.into(),
            Supply::Domains => budget.domain.is_some().into(),
            _ => unreachable!("a supply without a check"),
        }
    }

    fn may_need(&self, supply: Supply, need: u64) -> bool {
        match supply {
            Supply::InterruptHandles => {
                let wishes = self.request.functions.iter();
                let most = wishes.map(|wish| u64::from(wish.interrupts)).sum::<u64>();
                need <= most
            }
            Supply::LedgerSlots => need <= (Plan::MAX_RANGES as u64 + 1) * 2 + 1,
            Supply::Domains | Supply::TablePages => !self.requesters().is_empty(),
            _ => unreachable!("a supply without a check"),
        }
    }

    fn is_true_of_cpus(&self, reason: &Reason) -> Option<bool> {
        let machine = self.machine;
        let (these, count): (&[ApicId], _) = match self.request.cpus {
            CpuRequest::These(ids) => (ids, 0),
            CpuRequest::Count(count) => (&[], count),
        };
        let named = |cpu: ApicId| these.contains(&cpu);
        let chosen = |cpu| named(cpu) || count > 0 && self.cpu_is_free(cpu);
        let differs = |cpu, other, what: fn(&Cpu) -> u64| {
            let reference = self.reference();
            chosen(cpu)
                && reference.is_some_and(|reference| {
                    reference.apic_id == other
                        && self.cpus(cpu).any(|cpu| what(cpu) != what(reference))
                })
        };
        Some(match *reason {
            Reason::NoCpu => these.is_empty() && count == 0,
            Reason::CpuMissing { cpu } => named(cpu) && self.cpus(cpu).count() == 0,
            Reason::CpuTwice { cpu } => these.iter().filter(|&&id| id == cpu).count() > 1,
            Reason::CpuOwner { cpu, owner } => {
                named(cpu) && !self.may(owner) && self.cpus(cpu).any(|cpu| cpu.owner == owner)
            }
            Reason::CpuRunsPrime { cpu } => named(cpu) && self.cpus(cpu).any(|cpu| cpu.runs_prime),
            Reason::CpuBootstrap { cpu } => named(cpu) && self.cpus(cpu).any(|cpu| cpu.is_bsp),
            Reason::TooFewCpus { asked, free } => {
                let all: BTreeSet<_> = machine.cpus.iter().map(|cpu| cpu.apic_id).collect();
                let there = all.into_iter().filter(|&id| self.cpu_is_free(id)).count();
                asked == count && there == free as usize && free < asked
            }
            Reason::SmtSplit { cpu, sibling } => {
                let mut pairs = self.cpus(cpu).flat_map(|cpu| {
                    self.cpus(sibling)
                        .map(move |sibling| (cpu.core, sibling.core))
                });
                cpu != sibling && chosen(cpu) && !named(sibling) && pairs.any(|(a, b)| a == b)
            }
            Reason::CpuFeatures { cpu, other } => differs(cpu, other, |cpu| cpu.features),
            Reason::CpuMicrocode { cpu, other } => differs(cpu, other, |cpu| cpu.microcode.into()),
            _ => return None,
        })
    }

    fn is_true_of_memory(&self, reason: &Reason) -> Option<bool> {
        let (machine, request) = (self.machine, self.request);
        let named = self.named();
        let asked =
            |part: PhysRange| !part.is_empty() && named.iter().any(|all| all.contains_range(part));
        let region = |part: PhysRange, holds: &dyn Fn(&MemoryRegion) -> bool| {
            let mut regions = machine.memory.iter();
            asked(part) && regions.any(|entry| entry.range.contains_range(part) && holds(entry))
        };
        Some(match *reason {
            Reason::MemoryEmpty { range } => {
                range.is_empty()
                    && match request.memory {
                        MemoryRequest::These(ranges) => ranges.contains(&range),
                        MemoryRequest::Bytes { length, .. } => length == 0,
                    }
            }
            Reason::MemoryMisaligned { range } => {
                !range.is_aligned_to(PAGE)
                    && match request.memory {
                        MemoryRequest::These(ranges) => ranges.contains(&range),
                        MemoryRequest::Bytes { length, .. } => range.length() == length,
                    }
            }
            Reason::AlignmentInvalid { alignment } => {
                let valid = alignment.is_power_of_two() && alignment >= PAGE;
                let MemoryRequest::Bytes {
                    alignment: wanted, ..
                } = request.memory
                else {
                    return Some(false);
                };
                alignment == wanted && !valid
            }
            Reason::MemoryTwice { range } => {
                let mut named = named.clone();
                named.extend(self.memory());
                let over = named.iter().filter(|all| all.contains_range(range));
                !range.is_empty() && over.count() > 1
            }
            Reason::MemoryMissing { range } => {
                asked(range) && self.all(range, |at| self.regions(at).count() == 0)
            }
            Reason::MemoryOwner { range, owner } => {
                !self.may(owner) && region(range, &|entry| entry.owner == owner)
            }
            Reason::MemoryFirmware { range, kind } => region(range, &|entry| {
                (entry.owner, entry.kind) == (Owner::Firmware, kind)
            }),
            Reason::MemoryBaton { range } => region(range, &|entry| entry.owner == Owner::Baton),
            Reason::MemoryKind { range, kind } => {
                kind != MemoryKind::Usable
                    && region(range, &|entry| entry.kind == kind && self.may(entry.owner))
            }
            Reason::MemoryInterrupts { range } => {
                asked(range)
                    && INTERRUPTS.start <= range.base().0
                    && range.end().0 <= INTERRUPTS.end
            }
            Reason::MemoryRegisters { range, function } => {
                let mut windows = machine.windows.iter();
                asked(range)
                    && windows.any(|window| {
                        window.function == function && window.range.contains_range(range)
                    })
            }
            Reason::MemoryReserved { range, function } => {
                let mut reserved = machine.reservations.iter();
                asked(range)
                    && !self.asks(function)
                    && reserved.any(|entry| {
                        entry.function == function && entry.range.contains_range(range)
                    })
            }
            Reason::MemoryTooHigh { range, bits } => {
                let mapped = self.memory().into_iter().chain(self.reserved());
                let page = self.trampoline().map(page_at);
                bits < 64
                    && range.end().0 > 1 << bits
                    && mapped.chain(page).any(|all| all.contains_range(range))
                    && machine
                        .units
                        .iter()
                        .any(|unit| u32::from(unit.levels.clamp(1, 6)) * 9 + 12 == bits)
            }
            Reason::MemoryTooSmall { have, need } => {
                let lengths = self.memory().into_iter().map(|range| range.length());
                let sum = lengths.fold(0, u64::saturating_add);
                need == request.least_memory.max(PAGE) && have < need && have == sum
            }
            Reason::MemoryNotFound { length, alignment } => {
                let MemoryRequest::Bytes {
                    length: l,
                    alignment: a,
                    below,
                } = request.memory
                else {
                    return Some(false);
                };
                (length, alignment) == (l, a) && self.lowest(l, a, below.0).is_none()
            }
            Reason::Trampoline { range } => {
                let page = range.base();
                request.trampoline == Trampoline::At(page)
                    && !(page.is_aligned_to(PAGE) && (0x1000..0xa_0000).contains(&page.0))
            }
            Reason::TrampolineNotFound => {
                request.trampoline == Trampoline::Any && self.trampoline().is_none()
            }
            _ => return None,
        })
    }

    /// Whether nobody else has a device behind this unit.
    fn has_unit_alone(&self, unit: Option<u16>) -> bool {
        let mut functions = self.machine.functions.iter();
        functions.all(|entry| entry.unit != unit || entry.is_bridge() || self.asks(entry.function))
    }

    fn is_true_of_functions(&self, reason: &Reason) -> Option<bool> {
        let (machine, request) = (self.machine, self.request);
        let asks = |function| self.asks(function);
        let asked = |function, holds: &dyn Fn(&Function) -> bool| {
            asks(function) && self.entries(function).any(holds)
        };
        // An entry of the function and one of another, which stays.
        let pair = |function, culprit, holds: &dyn Fn(&Function, &Function) -> bool| {
            asked(function, &|entry| {
                let mut others = self.staying().filter(|other| other.function == culprit);
                others.any(|other| holds(entry, other))
            })
        };
        let reserved = |function: PciFunction, range: PhysRange| {
            machine
                .reservations
                .iter()
                .any(|entry| entry.function == function && entry.range.contains_range(range))
        };
        let unit = |entry: &Function| self.unit(entry).map(|(_, unit)| unit);
        Some(match *reason {
            Reason::FunctionMissing { function } => {
                asks(function) && self.entries(function).count() == 0
            }
            Reason::FunctionTwice { function } => {
                let wishes = request.functions.iter();
                wishes.filter(|wish| wish.function == function).count() > 1
            }
            Reason::FunctionBridge { function } => asked(function, &Function::is_bridge),
            Reason::FunctionOwner { function, owner } => {
                !self.may(owner) && asked(function, &|entry| entry.owner == owner)
            }
            Reason::FunctionRootBus { function } => {
                asked(function, &|entry| entry.isolation.below.is_none())
            }
            Reason::RequesterShared {
                function,
                culprit,
                id,
            } => pair(function, culprit, &|entry, other| {
                let id = (function.segment, id);
                !other.is_bridge() && self.ids(entry).contains(&id) && self.ids(other).contains(&id)
            }),
            Reason::GroupSplit { function, culprit } => pair(function, culprit, &|entry, other| {
                !other.is_bridge() && entry.isolation.group == other.isolation.group
            }),
            Reason::BusShared { function, culprit } => {
                let bus = |function: PciFunction| (function.segment, function.requester.bus());
                bus(function) == bus(culprit)
                    && pair(function, culprit, &|_, other| !other.is_bridge())
            }
            Reason::NoEcam { function } => {
                // A window that is there must not be believed to reach over the end.
                let lost = |window: &EcamWindow| {
                    let bus = u64::from(function.requester.bus()) << 20;
                    let base = window.base.0.checked_add(bus);
                    base.and_then(|base| base.checked_add(MIB)).is_none()
                };
                asks(function) && self.ecam(function).is_none_or(lost)
            }
            Reason::ReservedOutside { function, range } => {
                let own = self.memory();
                let holds = |at| {
                    let mut regions = self.regions(at).peekable();
                    own.iter().any(|range| range.contains(PhysAddr(at)))
                        || regions.peek().is_some()
                            && regions.all(|region| region.owner == Owner::Firmware)
                };
                asks(function)
                    && reserved(function, range)
                    && !self.steps_with(range, &own).into_iter().all(holds)
            }
            Reason::ReservedShared {
                function,
                culprit,
                range,
            } => {
                asks(function)
                    && !asks(culprit)
                    && !range.is_empty()
                    && reserved(function, range)
                    && reserved(culprit, range)
            }
            Reason::IntxShared {
                function,
                culprit,
                line,
            } => pair(function, culprit, &|entry, other| {
                (entry.intx, other.intx) == (Some(line), Some(line)) && !other.intx_disabled
            }),
            Reason::RegistersShared {
                function,
                culprit,
                range,
            } => {
                let has = |function| {
                    machine.windows.iter().any(|window| {
                        window.function == function
                            && page_of(window.range).contains(&range.base().0)
                    })
                };
                asks(function) && !asks(culprit) && has(function) && has(culprit)
            }
            Reason::TooManyInterrupts {
                function,
                asked: wanted,
                most,
            } => {
                let mut wishes = request.functions.iter();
                wanted > most
                    && wishes.any(|wish| (wish.function, wish.interrupts) == (function, wanted))
                    && asked(function, &|entry| {
                        most == entry.messages.max(u16::from(entry.intx.is_some()))
                    })
            }
            Reason::Uncovered { function } => asked(function, &|entry| unit(entry).is_none()),
            Reason::NoIommu { function } => asks(function) && machine.units.is_empty(),
            Reason::NoInterruptRemapping { function } => asked(function, &|entry| {
                unit(entry).is_some_and(|unit| !unit.interrupt_remapping)
            }),
            Reason::AtsRequired { function } => asked(function, &|entry| entry.ats_required),
            Reason::OpenMessages { function } => {
                request.messages != Messages::Handles
                    && asked(function, &|entry| {
                        unit(entry).is_some_and(|unit| !unit.remaps_any_message)
                    })
            }
            _ => return None,
        })
    }
}

fn page_at(page: PhysAddr) -> PhysRange {
    PhysRange::from_bounds(page, PhysAddr(page.0.saturating_add(PAGE)))
}
