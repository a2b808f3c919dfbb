//! An independent judge: the rules once more, written with sets of page numbers and trials of all
//! choices, and sharing nothing with the planner but the types. Slow, and only for small machines.

use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString};

use super::*;

const PAGE: u64 = 4096;
const VERY_SMALL: u64 = 0x300;

fn pages(range: PhysRange) -> BTreeSet<u64> {
    if range.length() == 0 {
        return BTreeSet::new();
    }
    (range.base().0 / PAGE..=(range.end().0 - 1) / PAGE).collect()
}

fn ensure(condition: bool, what: &str) -> Result<(), String> {
    condition.then_some(()).ok_or_else(|| what.to_string())
}

fn may(owner: Owner) -> bool {
    matches!(owner, PRIME | Owner::Parked)
}

fn distinct<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}

fn wants(ask: &Ask, function: PciFunction) -> bool {
    ask.functions.iter().any(|wish| wish.function == function)
}

fn ids(function: &Function) -> BTreeSet<(u16, RequesterId)> {
    let segment = function.function.segment;
    let mut ids: BTreeSet<_> = function
        .isolation
        .requesters
        .as_slice()
        .iter()
        .map(|id| (segment, *id))
        .collect();
    ids.insert((segment, function.function.requester));
    ids
}

/// Pages that could be given away, were it not for what devices that are asked for keep reaching.
fn free_pages(world: &World, ask: &Ask) -> BTreeSet<u64> {
    let mut free = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for region in &world.memory {
        let given = region.kind == MemoryKind::Usable && may(region.owner);
        let list = if given { &mut free } else { &mut taken };
        list.extend(pages(region.range));
    }
    for window in &world.windows {
        taken.extend(pages(window.range));
    }
    for reservation in &world.reservations {
        if !wants(ask, reservation.function) {
            taken.extend(pages(reservation.range));
        }
    }
    &free - &taken
}

fn unreserved(world: &World, mut free: BTreeSet<u64>) -> BTreeSet<u64> {
    for reservation in &world.reservations {
        free = &free - &pages(reservation.range);
    }
    free
}

fn cpu_is_free(world: &World, id: u32) -> bool {
    let mut entries = world
        .cpus
        .iter()
        .filter(|cpu| cpu.apic_id.0 == id)
        .peekable();
    entries.peek().is_some() && entries.all(|cpu| may(cpu.owner) && !cpu.is_bsp && !cpu.runs_prime)
}

fn cpus_are_in_doubt(world: &World, set: &BTreeSet<u32>) -> bool {
    let reference = world
        .cpus
        .iter()
        .find(|cpu| cpu.runs_prime)
        .unwrap_or(&world.cpus[0]);
    world
        .cpus
        .iter()
        .filter(|cpu| set.contains(&cpu.apic_id.0))
        .any(|cpu| {
            let split = world
                .cpus
                .iter()
                .any(|other| other.core == cpu.core && !set.contains(&other.apic_id.0));
            split || cpu.features != reference.features || cpu.microcode != reference.microcode
        })
}

fn judge_cpus(world: &World, ask: &Ask) -> Result<(), String> {
    let known: Vec<u32> = world.cpus.iter().map(|cpu| cpu.apic_id.0).collect();
    match &ask.cpus {
        Cpus::These(ids) => {
            ensure(!ids.is_empty(), "no cpu")?;
            ensure(distinct(ids), "cpu twice")?;
            ensure(ids.iter().all(|id| cpu_is_free(world, *id)), "cpu not free")?;
            let set = ids.iter().copied().collect();
            ensure(!ask.strict || !cpus_are_in_doubt(world, &set), "cpu doubt")
        }
        Cpus::Count(count) => {
            ensure(*count > 0, "no cpu")?;
            let free: Vec<u32> = known
                .into_iter()
                .filter(|id| cpu_is_free(world, *id))
                .collect();
            let possible = (0_u32..1 << free.len()).any(|mask| {
                let set: BTreeSet<u32> = (0..free.len())
                    .filter(|bit| mask >> bit & 1 == 1)
                    .map(|bit| free[bit])
                    .collect();
                set.len() == *count as usize && !(ask.strict && cpus_are_in_doubt(world, &set))
            });
            ensure(possible, "no choice of cpus")
        }
    }
}

/// The pages that the request names itself.
fn judge_memory(world: &World, ask: &Ask) -> Result<BTreeSet<u64>, String> {
    let free = free_pages(world, ask);
    let mut named = BTreeSet::new();
    match &ask.memory {
        Memory::These(ranges) => {
            ensure(ranges.len() <= Plan::MAX_RANGES, "too many ranges")?;
            let mut total = 0;
            for range in ranges {
                ensure(range.length() > 0, "empty")?;
                let aligned = range.base().0 % PAGE == 0 && range.length() % PAGE == 0;
                ensure(aligned, "misaligned")?;
                for page in pages(*range) {
                    ensure(named.insert(page), "page twice")?;
                    ensure(free.contains(&page), "page not free")?;
                }
                total += range.length();
            }
            ensure(total >= ask.least_memory.max(PAGE), "too small")?;
        }
        &Memory::Bytes {
            length,
            alignment,
            below,
        } => {
            ensure(length > 0 && length % PAGE == 0, "length")?;
            ensure(
                alignment.count_ones() == 1 && alignment >= PAGE,
                "alignment",
            )?;
            ensure(length >= ask.least_memory, "too small")?;
            let free = unreserved(world, free.clone());
            let fits = (0x100..VERY_SMALL).any(|first| {
                (first * PAGE).is_multiple_of(alignment)
                    && first * PAGE + length <= below
                    && (first..first + length / PAGE).all(|page| free.contains(&page))
            });
            ensure(fits, "no room")?;
        }
    }
    match ask.trampoline {
        Trampoline::None => {}
        Trampoline::At(PhysAddr(at)) => {
            ensure(at % PAGE == 0 && at > 0 && at < 0xa_0000, "trampoline")?;
            let page = at / PAGE;
            ensure(free.contains(&page) && !named.contains(&page), "trampoline")?;
        }
        Trampoline::Any => {
            let found = (1..0xa0).any(|page| free.contains(&page) && !named.contains(&page));
            ensure(found, "no trampoline")?;
        }
    }
    Ok(named)
}

fn judge_function(
    world: &World,
    ask: &Ask,
    wish: &FunctionRequest,
    memory: &BTreeSet<u64>,
) -> Result<(), String> {
    let mut all = world.functions.iter();
    let entry = all
        .find(|entry| entry.function == wish.function)
        .ok_or("no such function")?;
    ensure(entry.kind == FunctionKind::Endpoint, "bridge")?;
    ensure(may(entry.owner), "function owner")?;
    ensure(entry.isolation.below.is_some(), "root bus")?;
    let most = if entry.messages > 0 {
        entry.messages
    } else {
        u16::from(entry.intx.is_some())
    };
    ensure(wish.interrupts <= most, "interrupts")?;
    let bus = entry.function.requester.bus();
    let has_ecam = world.ecam.iter().any(|window| {
        window.segment == entry.function.segment
            && (window.first_bus..=window.last_bus).contains(&bus)
    });
    ensure(has_ecam, "ecam")?;
    let stays = |function: PciFunction| !wants(ask, function);
    for other in world.functions.iter().filter(|other| stays(other.function)) {
        if other.kind == FunctionKind::Endpoint {
            ensure(ids(entry).is_disjoint(&ids(other)), "id shared")?;
            ensure(entry.isolation.group != other.isolation.group, "group")?;
            let place = |f: &Function| (f.function.segment, f.function.requester.bus());
            ensure(place(entry) != place(other), "bus shared")?;
        }
        if entry.intx.is_some() && entry.intx == other.intx && !other.intx_disabled {
            ensure(entry.messages > 0 && !ask.strict, "line shared")?;
        }
    }
    let is_endpoint = |function: PciFunction| {
        let mut all = world.functions.iter();
        all.any(|entry| entry.function == function && entry.kind == FunctionKind::Endpoint)
    };
    let own = world.windows.iter().filter(|w| w.function == wish.function);
    for own in own {
        for other in &world.windows {
            if stays(other.function) && is_endpoint(other.function) && ask.strict {
                let apart = pages(own.range).is_disjoint(&pages(other.range));
                ensure(apart, "registers shared")?;
            }
        }
    }
    let unit = entry
        .unit
        .and_then(|unit| world.units.get(usize::from(unit)));
    let fenced =
        unit.is_some_and(|unit| unit.usable && unit.interrupt_remapping) && !entry.ats_required;
    ensure(fenced || ask.accept_unfenced, "unfenced")?;
    let open = unit.is_some_and(|unit| unit.usable && !unit.remaps_any_message);
    let alone = world.functions.iter().all(|other| {
        other.unit != entry.unit || other.kind != FunctionKind::Endpoint || !stays(other.function)
    });
    let allowed = alone || ask.messages != (Messages::Any { accept_open: false });
    ensure(allowed || !open, "open messages")?;
    let reserved = world
        .reservations
        .iter()
        .filter(|reservation| reservation.function == wish.function);
    for reservation in reserved {
        let mut firmwares = BTreeSet::new();
        let mut others = BTreeSet::new();
        for region in &world.memory {
            let firmware = region.owner == Owner::Firmware;
            let list = if firmware {
                &mut firmwares
            } else {
                &mut others
            };
            list.extend(pages(region.range));
        }
        let allowed = &(&firmwares - &others) | memory;
        let all = pages(reservation.range);
        ensure(all.is_subset(&allowed), "reserved outside")?;
        for other in &world.reservations {
            let shared = stays(other.function) && !all.is_disjoint(&pages(other.range));
            ensure(!shared, "reserved shared")?;
        }
    }
    Ok(())
}

/// Whether the request can be granted; where not, a word about why.
pub(super) fn acceptable(world: &World, ask: &Ask) -> Result<(), String> {
    ensure((1..=32).contains(&ask.name.len()), "name")?;
    let owners: BTreeSet<Owner> = (world.cpus.iter().map(|cpu| cpu.owner))
        .chain(world.memory.iter().map(|region| region.owner))
        .chain(world.functions.iter().map(|function| function.owner))
        .chain(world.singletons.iter().map(|singleton| singleton.owner))
        .chain([Owner::Partition(world.prime)])
        .collect();
    for owner in owners {
        if let Owner::Partition(other) = owner {
            ensure(other.0 % 8 != ask.partition.0 % 8, "partition")?;
        }
    }
    judge_cpus(world, ask)?;
    let memory = judge_memory(world, ask)?;
    ensure(
        distinct(ask.functions.iter().map(|wish| wish.function)),
        "function twice",
    )?;
    for wish in &ask.functions {
        judge_function(world, ask, wish, &memory)
            .map_err(|why| format!("{}: {why}", wish.function))?;
    }
    ensure(distinct(&ask.singletons), "singleton twice")?;
    for number in &ask.singletons {
        let mut entries = world
            .singletons
            .iter()
            .filter(|s| s.number == *number)
            .peekable();
        ensure(entries.peek().is_some(), "no such singleton")?;
        ensure(entries.all(|s| may(s.owner)), "singleton owner")?;
    }
    let handles: u32 = ask
        .functions
        .iter()
        .map(|wish| u32::from(wish.interrupts))
        .sum();
    ensure(handles <= world.budget.interrupt_handles, "handles")?;
    let ranges = match &ask.memory {
        Memory::These(ranges) => ranges.len() as u64,
        Memory::Bytes { .. } => 1,
    } + u64::from(ask.trampoline != Trampoline::None);
    ensure(2 * ranges < world.budget.ledger_slots, "slots")?;
    let covered = |wish: &&FunctionRequest| {
        let mut all = world.functions.iter();
        let entry = all.find(|entry| entry.function == wish.function).unwrap();
        let unit = entry
            .unit
            .and_then(|unit| world.units.get(usize::from(unit)));
        unit.is_some_and(|unit| unit.usable)
    };
    if ask.functions.iter().any(|wish| covered(&wish)) {
        ensure(world.budget.domain.is_some(), "domain")?;
        // Budgets of pages that are made up are either far too small or ample.
        ensure(world.budget.table_pages > 3, "table pages")?;
    }
    Ok(())
}

/// Checks a plan against the machine and the request it was made for.
pub(super) fn check(world: &World, ask: &Ask, plan: &Plan) -> Result<(), String> {
    // Processors.
    let cpus: Vec<u32> = plan.cpus().iter().map(|cpu| cpu.0).collect();
    ensure(distinct(&cpus), "cpu twice")?;
    ensure(
        cpus.iter().all(|id| cpu_is_free(world, *id)),
        "cpu not free",
    )?;
    match &ask.cpus {
        Cpus::These(ids) => ensure(cpus == *ids, "other cpus")?,
        Cpus::Count(count) => ensure(cpus.len() == *count as usize, "cpu count")?,
    }
    // Memory.
    let free = free_pages(world, ask);
    let mut memory = BTreeSet::new();
    let trampoline = plan.trampoline().map(|page| range(page.0, PAGE));
    for range in plan.memory().iter().copied().chain(trampoline) {
        ensure(
            range.base().0 % PAGE == 0 && range.length() % PAGE == 0,
            "misaligned",
        )?;
        for page in pages(range) {
            ensure(memory.insert(page), "page twice")?;
            ensure(free.contains(&page), "page not free")?;
        }
    }
    match &ask.memory {
        Memory::These(ranges) => ensure(plan.memory() == ranges, "other memory")?,
        &Memory::Bytes { length, below, .. } => {
            ensure(plan.memory().len() == 1, "pieces")?;
            ensure(plan.memory()[0].length() == length, "length")?;
            ensure(plan.memory()[0].end().0 <= below, "below")?;
        }
    }
    ensure(
        plan.trampoline().is_some() == (ask.trampoline != Trampoline::None),
        "trampoline",
    )?;
    // Devices: closed under groups and ids, and with every id attached.
    let given: BTreeSet<PciFunction> = plan.functions().iter().map(|f| f.function).collect();
    let asked: BTreeSet<PciFunction> = ask.functions.iter().map(|f| f.function).collect();
    ensure(given == asked, "other functions")?;
    let (mine, others): (Vec<&Function>, Vec<&Function>) = world
        .functions
        .iter()
        .partition(|entry| given.contains(&entry.function));
    let mut attached: BTreeSet<(u16, u16, RequesterId)> = BTreeSet::new();
    for entry in &mine {
        ensure(may(entry.owner), "function owner")?;
        for (segment, id) in ids(entry) {
            let clash = others
                .iter()
                .filter(|other| other.kind == FunctionKind::Endpoint)
                .any(|other| ids(other).contains(&(segment, id)));
            ensure(!clash, "id of another")?;
            if let Some(unit) = entry.unit
                && world
                    .units
                    .get(usize::from(unit))
                    .is_some_and(|unit| unit.usable)
            {
                attached.insert((unit, segment, id));
            }
        }
    }
    let planned: Vec<_> = plan
        .requesters()
        .iter()
        .map(|requester| (requester.unit, requester.segment, requester.id))
        .collect();
    ensure(distinct(&planned), "id twice")?;
    ensure(
        planned.iter().copied().collect::<BTreeSet<_>>() == attached,
        "ids",
    )?;
    let accepted = ask.accept_unfenced || ask.messages != Messages::Handles;
    ensure(accepted || plan.is_fenced(), "unfenced")?;
    // What the domain maps: all of the memory, and of the rest only what firmware has reserved.
    let mut mapped = BTreeSet::new();
    for map in plan.maps() {
        for page in pages(map.range) {
            ensure(mapped.insert(page), "mapped twice")?;
            let own = memory.contains(&page);
            ensure(own == (map.reason == MapReason::Memory), "map reason")?;
            let reserved = world.reservations.iter().any(|reservation| {
                wants(ask, reservation.function) && pages(reservation.range).contains(&page)
            });
            ensure(own || reserved, "mapped too much")?;
        }
    }
    if attached.is_empty() {
        ensure(
            mapped.is_empty() && plan.domain().is_none(),
            "maps without a domain",
        )?;
    } else {
        ensure(memory.is_subset(&mapped), "memory not mapped")?;
        for reservation in &world.reservations {
            if wants(ask, reservation.function) {
                ensure(
                    pages(reservation.range).is_subset(&mapped),
                    "reserved not mapped",
                )?;
            }
        }
    }
    // Budgets.
    let budget = world.budget;
    ensure(plan.table_pages() <= budget.table_pages, "table pages")?;
    ensure(plan.ledger_slots() <= budget.ledger_slots, "ledger slots")?;
    ensure(
        plan.interrupt_handles() <= budget.interrupt_handles,
        "handles",
    )?;
    ensure(
        plan.domain().is_none() || plan.domain() == budget.domain,
        "domain",
    )?;
    ensure(plan.singletons() == ask.singletons, "singletons")
}
